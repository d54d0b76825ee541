package rocketbridge.interop;

import static rocketbridge.interop.Suite.BODY_SIZES;
import static rocketbridge.interop.Suite.equal;
import static rocketbridge.interop.Suite.isTrue;
import static rocketbridge.interop.Suite.next;
import static rocketbridge.interop.Suite.randomBody;
import static rocketbridge.interop.Suite.unique;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.AlreadyClosedException;
import com.rabbitmq.client.AuthenticationFailureException;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.RpcClient;
import com.rabbitmq.client.RpcClientParams;
import com.rabbitmq.client.RpcServer;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Date;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** AMQP 0-9-1 with RabbitMQ's Java client. */
final class Amqp {
    private static final AMQP.BasicProperties PERSISTENT = new AMQP.BasicProperties.Builder().deliveryMode(2).build();

    private final Suite suite;

    Amqp(Suite suite) {
        this.suite = suite;
    }

    private interface Action {
        void run(Channel channel) throws Exception;
    }

    private Connection connect() throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(suite.option("--amqp").replaceAll("/$", ""));
        factory.setAutomaticRecoveryEnabled(false);
        factory.setHandshakeTimeout(60_000);
        Connection connection = factory.newConnection();
        suite.after(() -> connection.close(2000));
        return connection;
    }

    private static void publish(Channel channel, String exchange, String key, String body) throws IOException {
        channel.basicPublish(exchange, key, PERSISTENT, body.getBytes(StandardCharsets.UTF_8));
    }

    private static String get(Channel channel, String queue) throws IOException {
        GetResponse response = channel.basicGet(queue, true);
        return response == null ? null : text(response.getBody()) + (response.getEnvelope().isRedeliver() ? " again" : "");
    }

    private static String text(byte[] body) {
        return new String(body, StandardCharsets.UTF_8);
    }

    private static int codeOf(Throwable problem) {
        for (Throwable at = problem; at != null; at = at.getCause()) {
            if (at instanceof ShutdownSignalException) {
                Object reason = ((ShutdownSignalException) at).getReason();
                if (reason instanceof AMQP.Channel.Close) {
                    return ((AMQP.Channel.Close) reason).getReplyCode();
                }
                if (reason instanceof AMQP.Connection.Close) {
                    return ((AMQP.Connection.Close) reason).getReplyCode();
                }
            }
        }
        throw new AssertionError("no reply code in " + problem, problem);
    }

    /** The action ends its channel with this code, and only that. */
    private static void closesChannel(Connection connection, int code, Action action) throws Exception {
        Channel channel = connection.createChannel();
        BlockingQueue<ShutdownSignalException> closed = new LinkedBlockingQueue<>();
        channel.addShutdownListener(closed::add);
        try {
            action.run(channel);
        } catch (IOException | AlreadyClosedException expected) {
            // The listener knows why.
        }
        equal(codeOf(next(closed, "the channel's end")), code, "reply code");
        connection.createChannel().close();
    }

    private void closesConnection(int code, Action action) throws Exception {
        Connection connection = connect();
        BlockingQueue<ShutdownSignalException> closed = new LinkedBlockingQueue<>();
        connection.addShutdownListener(closed::add);
        try {
            action.run(connection.createChannel());
        } catch (IOException | AlreadyClosedException expected) {
            // The listener knows why.
        }
        equal(codeOf(next(closed, "the connection's end")), code, "reply code");
    }

    void run() {
        suite.check("amqp_java_server_says_who_it_is", () -> {
            Map<String, Object> properties = connect().getServerProperties();
            isTrue(properties.get("product") != null && properties.get("version") != null, "server properties " + properties);
            Map<?, ?> capabilities = (Map<?, ?>) properties.get("capabilities");
            equal(capabilities.get("publisher_confirms"), true, "publisher confirms");
        });
        suite.check("amqp_java_wrong_password_and_unknown_virtual_host_are_refused", () -> {
            ConnectionFactory factory = new ConnectionFactory();
            factory.setUri(suite.option("--amqp").replace("guest:guest", "guest:wrong").replaceAll("/$", ""));
            try {
                factory.newConnection().close();
                throw new AssertionError("a wrong password was accepted");
            } catch (AuthenticationFailureException expected) {
                // That is it.
            }
            factory.setUri(suite.option("--amqp") + "no-such-host");
            try {
                factory.newConnection().close();
                throw new AssertionError("an unknown virtual host was accepted");
            } catch (IOException refused) {
                equal(codeOf(refused), 530, "reply code");
            }
        });
        suite.check("amqp_java_exchanges_of_all_types_route", this::routing);
        suite.check("amqp_java_queues_are_declared_purged_and_deleted", () -> {
            Connection connection = connect();
            Channel channel = connection.createChannel();
            String queue = unique("queue");
            equal(channel.queueDeclare(queue, true, false, false, null).getMessageCount(), 0, "a new queue");
            channel.confirmSelect();
            for (int i = 0; i < 5; i++) {
                publish(channel, "", queue, "x");
            }
            channel.waitForConfirmsOrDie(120_000);
            equal(channel.messageCount(queue), 5L, "messages");
            equal(channel.queuePurge(queue).getMessageCount(), 5, "purged messages");
            publish(channel, "", queue, "x");
            channel.waitForConfirmsOrDie(120_000);
            closesChannel(connection, 406, other -> other.queueDelete(queue, false, true));
            equal(channel.queueDelete(queue).getMessageCount(), 1, "deleted messages");
            isTrue(channel.queueDeclare().getQueue().startsWith("amq.gen-"), "a server-named queue");
        });
        suite.check("amqp_java_exclusive_and_auto_delete_queues_go", () -> {
            Connection owner = connect();
            Connection other = connect();
            String exclusive = owner.createChannel().queueDeclare().getQueue();
            closesChannel(other, 405, channel -> channel.queueDeclarePassive(exclusive));
            String autoDelete = unique("auto-delete");
            owner.createChannel().queueDeclare(autoDelete, false, false, true, null);
            owner.createChannel().basicConsume(autoDelete, true, (tag, message) -> { }, tag -> { });
            owner.close();
            closesChannel(other, 404, channel -> channel.queueDeclarePassive(exclusive));
            closesChannel(other, 404, channel -> channel.queueDeclarePassive(autoDelete));
        });
        suite.check("amqp_java_every_body_is_unchanged", () -> {
            Channel channel = connect().createChannel();
            String queue = channel.queueDeclare().getQueue();
            BlockingQueue<Delivery> inbox = new LinkedBlockingQueue<>();
            channel.basicConsume(queue, true, (tag, message) -> inbox.add(message), tag -> { });
            for (int size : BODY_SIZES) {
                byte[] body = randomBody(size);
                channel.basicPublish("", queue, null, body);
                isTrue(Arrays.equals(next(inbox, "a delivery").getBody(), body), "body of " + size + " bytes");
            }
        });
        suite.check("amqp_java_every_property_and_header_type_is_unchanged", this::properties);
        suite.check("amqp_java_mandatory_return_precedes_its_confirm", () -> {
            Channel channel = connect().createChannel();
            BlockingQueue<String> events = new LinkedBlockingQueue<>();
            channel.addReturnListener(message -> events.add(message.getReplyCode() + " " + text(message.getBody())));
            channel.addConfirmListener((tag, multiple) -> events.add("ack"), (tag, multiple) -> events.add("nack"));
            channel.confirmSelect();
            for (int i = 0; i < 20; i++) {
                channel.basicPublish("amq.direct", unique("nobody"), true, PERSISTENT, ("m" + i).getBytes());
                equal(next(events, "the return"), "312 m" + i, "first event");
                equal(next(events, "the confirm"), "ack", "second event");
            }
        });
        suite.check("amqp_java_prefetch_ack_nack_and_reject", () -> {
            Channel channel = connect().createChannel();
            // The one that Java declares by default would go with its consumer.
            String queue = channel.queueDeclare("", false, true, false, null).getQueue();
            channel.confirmSelect();
            for (int i = 0; i < 6; i++) {
                publish(channel, "", queue, "" + i);
            }
            channel.waitForConfirmsOrDie(120_000);
            channel.basicQos(4);
            BlockingQueue<Delivery> inbox = new LinkedBlockingQueue<>();
            String consumer = channel.basicConsume(queue, false, (tag, message) -> inbox.add(message), tag -> { });
            List<Long> tags = new ArrayList<>();
            for (int i = 0; i < 4; i++) {
                tags.add(next(inbox, "a delivery").getEnvelope().getDeliveryTag());
            }
            equal(channel.messageCount(queue), 2L, "messages that were not handed out");
            channel.basicCancel(consumer);
            channel.basicNack(tags.get(2), false, true);
            channel.basicAck(tags.get(0), false);
            channel.basicReject(tags.get(3), false);
            channel.basicReject(tags.get(1), true);
            for (String want : new String[] {"1 again", "2 again", "4", "5", null}) {
                equal(get(channel, queue), want, "what is left");
            }
        });
        suite.check("amqp_java_recover_redelivers", () -> {
            Channel channel = connect().createChannel();
            String queue = channel.queueDeclare().getQueue();
            publish(channel, "", queue, "x");
            isTrue(channel.basicGet(queue, false) != null, "the message is there");
            channel.basicRecover(true);
            equal(get(channel, queue), "x again", "what was recovered");
        });
        suite.check("amqp_java_a_deleted_queue_cancels_its_consumer", () -> {
            Connection connection = connect();
            String queue = unique("queue");
            connection.createChannel().queueDeclare(queue, false, false, false, null);
            BlockingQueue<String> cancelled = new LinkedBlockingQueue<>();
            connection.createChannel().basicConsume(queue, true, "tag", (tag, message) -> { }, cancelled::add);
            connection.createChannel().queueDelete(queue);
            equal(next(cancelled, "the cancel"), "tag", "consumer");
        });
        suite.check("amqp_java_rpc_client_is_answered_by_direct_reply_to", this::directReplyTo);
        suite.check("amqp_java_two_consumers_compete", this::competition);
        suite.check("amqp_java_errors_have_their_codes", this::errors);
    }

    private void routing() throws Exception {
        Channel channel = connect().createChannel();
        Object[][] rows = {
            {"direct", "a", null, "a", null, true}, {"direct", "a", null, "b", null, false},
            {"fanout", "", null, "anything", null, true},
            {"topic", "*.b.#", null, "a.b.c.d", null, true}, {"topic", "*.b.#", null, "b", null, false},
            {"headers", "", Map.of("x-match", "all", "a", 1), "", Map.of("a", 1), true},
            {"headers", "", Map.of("x-match", "all", "a", 1, "b", "x"), "", Map.of("a", 1), false},
            {"headers", "", Map.of("x-match", "any", "a", 1, "b", "x"), "", Map.of("a", 1), true},
        };
        for (Object[] row : rows) {
            String exchange = unique("exchange");
            channel.exchangeDeclare(exchange, (String) row[0], false, true, null);
            String queue = channel.queueDeclare().getQueue();
            @SuppressWarnings("unchecked") Map<String, Object> arguments = (Map<String, Object>) row[2];
            @SuppressWarnings("unchecked") Map<String, Object> headers = (Map<String, Object>) row[4];
            channel.queueBind(queue, exchange, (String) row[1], arguments);
            AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder().headers(headers).build();
            channel.basicPublish(exchange, (String) row[3], properties, "x".getBytes());
            equal(channel.basicGet(queue, true) != null, row[5], "whether it is routed: " + Arrays.toString(row));
        }
    }

    private void properties() throws Exception {
        Channel channel = connect().createChannel();
        String queue = channel.queueDeclare().getQueue();
        Map<String, Object> headers = new HashMap<>();
        headers.put("int", -7);
        headers.put("long", 1L << 40);
        headers.put("short", (short) 3);
        headers.put("byte", (byte) -1);
        headers.put("bool", true);
        headers.put("float", 0.5f);
        headers.put("double", 1e300);
        headers.put("decimal", new BigDecimal("123.45"));
        headers.put("time", new Date(1_700_000_001_000L));
        headers.put("bytes", new byte[] {0, -1});
        headers.put("nothing", null);
        headers.put("list", Arrays.asList(1, 2L, true));
        headers.put("table", Collections.singletonMap("inner", Collections.singletonMap("deep", 1)));
        Map<String, Object> sentHeaders = new HashMap<>(headers);
        sentHeaders.put("text", "grüße, 世界");
        AMQP.BasicProperties sent = new AMQP.BasicProperties.Builder()
            .contentType("application/json").contentEncoding("gzip").headers(sentHeaders).deliveryMode(2).priority(5)
            .correlationId("correlation").replyTo("reply").expiration("600000").messageId("message")
            .timestamp(new Date(1_700_000_000_000L)).type("type").userId("guest").appId("app").clusterId("cluster")
            .build();
        channel.basicPublish("", queue, sent, "{}".getBytes());
        AMQP.BasicProperties got = channel.basicGet(queue, true).getProps();
        for (Map.Entry<String, Object> header : headers.entrySet()) {
            equal(got.getHeaders().get(header.getKey()), header.getValue(), "header " + header.getKey());
        }
        equal(String.valueOf(got.getHeaders().get("text")), "grüße, 世界", "header text");
        equal(got.builder().headers(null).build(), sent.builder().headers(null).build(), "properties");
    }

    private void competition() throws Exception {
        int count = 200;
        Channel channel = connect().createChannel();
        String queue = unique("queue");
        channel.queueDeclare(queue, true, false, false, null);
        suite.after(() -> connect().createChannel().queueDelete(queue));
        Map<String, Integer> seen = new ConcurrentHashMap<>();
        CountDownLatch all = new CountDownLatch(count);
        int prefetch = 2;
        // Nobody acknowledges before both have their share, however slow one of them is.
        CountDownLatch[] shares = {new CountDownLatch(prefetch), new CountDownLatch(prefetch)};
        List<Delivery> held = Collections.synchronizedList(new ArrayList<>());
        for (int member = 0; member < 2; member++) {
            int number = member;
            Channel consuming = connect().createChannel();
            consuming.basicQos(prefetch);
            consuming.basicConsume(queue, false, (tag, message) -> {
                seen.merge(text(message.getBody()), 1, Integer::sum);
                all.countDown();
                if (shares[number].getCount() > 0) {
                    held.add(message);
                    shares[number].countDown();
                    if (shares[number].getCount() > 0) {
                        return;
                    }
                    waitFor(shares[1 - number]);
                    consuming.basicAck(message.getEnvelope().getDeliveryTag(), true);
                    return;
                }
                consuming.basicAck(message.getEnvelope().getDeliveryTag(), false);
            }, tag -> { });
        }
        for (int i = 0; i < count; i++) {
            publish(channel, "", queue, "" + i);
        }
        isTrue(all.await(Suite.PATIENCE, TimeUnit.SECONDS), "only " + seen.size() + " messages came");
        equal(seen.size(), count, "different messages");
        equal(held.size(), 2 * prefetch, "messages that were held at first");
    }

    private static void waitFor(CountDownLatch latch) throws IOException {
        try {
            latch.await();
        } catch (InterruptedException interrupted) {
            throw new IOException(interrupted);
        }
    }

    /** RpcClient's default reply queue is amq.rabbitmq.reply-to. */
    private void directReplyTo() throws Exception {
        Channel serving = connect().createChannel();
        String queue = serving.queueDeclare().getQueue();
        RpcServer server = new RpcServer(serving, queue) {
            @Override
            public byte[] handleCall(Delivery request, AMQP.BasicProperties replyProperties) {
                String replyTo = request.getProperties().getReplyTo();
                return (replyTo.startsWith("amq.rabbitmq.reply-to.") + " " + text(request.getBody())).getBytes();
            }
        };
        Thread thread = new Thread(() -> {
            try {
                server.mainloop();
            } catch (Exception ended) {
                // The connection ends with the check.
            }
        });
        thread.setDaemon(true);
        thread.start();
        RpcClient[] clients = new RpcClient[3];
        for (int i = 0; i < clients.length; i++) {
            clients[i] = new RpcClient(new RpcClientParams().channel(connect().createChannel()).exchange("").routingKey(queue)
                .timeout(30_000));
        }
        for (int i = 0; i < 30; i++) {
            equal(text(clients[i % 3].primitiveCall(("call " + i).getBytes())), "true call " + i, "answer");
        }
        for (RpcClient client : clients) {
            client.close();
        }
    }

    private void errors() throws Exception {
        Connection connection = connect();
        String queue = connection.createChannel().queueDeclare().getQueue();
        String missing = unique("missing");
        closesChannel(connection, 404, channel -> channel.queueDeclarePassive(missing));
        closesChannel(connection, 404, channel -> channel.exchangeDeclarePassive(missing));
        closesChannel(connection, 404, channel -> channel.queueBind(queue, missing, ""));
        closesChannel(connection, 404, channel -> channel.basicPublish(missing, "", null, new byte[0]));
        closesChannel(connection, 404, channel -> channel.basicGet(missing, true));
        closesChannel(connection, 406, channel -> channel.exchangeDeclare("amq.fanout", "direct", true));
        closesChannel(connection, 406, channel -> channel.basicAck(7, false));
        closesChannel(connection, 403, channel -> channel.queueDeclare("amq.mine", false, false, false, null));
        closesChannel(connection, 403, channel -> channel.exchangeDelete("amq.direct"));
        closesChannel(connection, 403, channel -> {
            connection.createChannel().basicConsume(queue, true, "alone", false, true, null, (tag, m) -> { }, tag -> { });
            channel.basicConsume(queue, true, (tag, message) -> { }, tag -> { });
        });
        closesConnection(530, channel -> {
            String own = channel.queueDeclare().getQueue();
            channel.basicConsume(own, true, "tag", (tag, message) -> { }, tag -> { });
            channel.basicConsume(own, true, "tag", (tag, message) -> { }, tag -> { });
        });
        closesConnection(540, channel -> channel.basicPublish("amq.direct", "k", false, true, null, new byte[0]));
        closesConnection(540, channel -> channel.basicQos(4096, 0, false));
        closesConnection(540, channel -> channel.basicRecover(false));
    }
}
