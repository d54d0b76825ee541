package rocketbridge.interop;

import static rocketbridge.interop.Suite.BODY_SIZES;
import static rocketbridge.interop.Suite.equal;
import static rocketbridge.interop.Suite.isTrue;
import static rocketbridge.interop.Suite.next;
import static rocketbridge.interop.Suite.randomBody;
import static rocketbridge.interop.Suite.unique;

import java.lang.reflect.Type;
import java.net.URI;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.glassfish.tyrus.client.ClientManager;
import org.springframework.messaging.MessageDeliveryException;
import org.springframework.messaging.converter.MessageConverter;
import org.springframework.messaging.converter.SimpleMessageConverter;
import org.springframework.messaging.converter.StringMessageConverter;
import org.springframework.messaging.simp.stomp.ReactorNettyTcpStompClient;
import org.springframework.messaging.simp.stomp.StompClientSupport;
import org.springframework.messaging.simp.stomp.StompCommand;
import org.springframework.messaging.simp.stomp.StompFrameHandler;
import org.springframework.messaging.simp.stomp.StompHeaders;
import org.springframework.messaging.simp.stomp.StompSession;
import org.springframework.messaging.simp.stomp.StompSessionHandlerAdapter;
import org.springframework.scheduling.concurrent.ThreadPoolTaskScheduler;
import org.springframework.util.MimeTypeUtils;
import org.springframework.web.socket.WebSocketHttpHeaders;
import org.springframework.web.socket.client.standard.StandardWebSocketClient;
import org.springframework.web.socket.messaging.WebSocketStompClient;

/** STOMP with Spring's clients over TCP and WebSocket. What their sessions cannot say is in SpringFrames. */
public final class Spring {
    private static final int BODY_MAX = 16 << 20;

    private final Suite suite;
    private final ThreadPoolTaskScheduler scheduler = new ThreadPoolTaskScheduler();

    private Spring(Suite suite) {
        this.suite = suite;
        scheduler.setDaemon(true);
        scheduler.initialize();
    }

    public static void main(String[] words) throws Exception {
        Suite suite = new Suite(words, Map.of("--stomp", "127.0.0.1:61613", "--stomp-websocket", "127.0.0.1:15674"));
        new Spring(suite).run();
        new SpringFrames(suite).run();
        suite.end();
    }

    static String host(String address) {
        return address.substring(0, address.lastIndexOf(':'));
    }

    static int port(String address) {
        return Integer.parseInt(address.substring(address.lastIndexOf(':') + 1));
    }

    /** A message as it came. */
    private static final class Received {
        final StompHeaders headers;
        final Object body;

        Received(StompHeaders headers, Object body) {
            this.headers = headers;
            this.body = body;
        }
    }

    /** Notes everything that happens to a session. */
    private static final class Events extends StompSessionHandlerAdapter {
        final BlockingQueue<StompHeaders> connected = new LinkedBlockingQueue<>();
        final BlockingQueue<StompHeaders> errors = new LinkedBlockingQueue<>();
        final BlockingQueue<Throwable> lost = new LinkedBlockingQueue<>();
        private final Type type;

        Events(Type type) {
            this.type = type;
        }

        @Override
        public void afterConnected(StompSession session, StompHeaders headers) {
            connected.add(headers);
        }

        @Override
        public Type getPayloadType(StompHeaders headers) {
            return type;
        }

        @Override
        public void handleFrame(StompHeaders headers, Object body) {
            errors.add(headers);
        }

        @Override
        public void handleException(StompSession session, StompCommand command, StompHeaders headers, byte[] body, Throwable problem) {
            lost.add(problem);
        }

        @Override
        public void handleTransportError(StompSession session, Throwable problem) {
            lost.add(problem);
        }
    }

    /** A connected session. */
    private final class Client {
        final Events events;
        final StompHeaders connected;
        private final StompSession session;
        private final Type type;

        Client(String transport, Type type) throws Exception {
            this.type = type;
            events = new Events(type);
            MessageConverter converter = type == String.class ? new StringMessageConverter() : new SimpleMessageConverter();
            StompHeaders login = new StompHeaders();
            login.setLogin("guest");
            login.setPasscode("guest");
            if (transport.equals("tcp")) {
                String address = suite.option("--stomp");
                ReactorNettyTcpStompClient client = new ReactorNettyTcpStompClient(host(address), port(address));
                prepare(client, converter);
                suite.after(client::shutdown);
                session = client.connect(login, events).get(Suite.PATIENCE, TimeUnit.SECONDS);
            } else {
                ClientManager container = ClientManager.createClient();
                container.getProperties().put("org.glassfish.tyrus.incomingBufferSize", 2 * BODY_MAX);
                container.setDefaultMaxTextMessageBufferSize(BODY_MAX);
                container.setDefaultMaxBinaryMessageBufferSize(BODY_MAX);
                WebSocketStompClient client = new WebSocketStompClient(new StandardWebSocketClient(container));
                prepare(client, converter);
                client.setInboundMessageSizeLimit(BODY_MAX);
                client.start();
                suite.after(client::stop);
                URI uri = new URI("ws://" + suite.option("--stomp-websocket") + "/ws");
                session = client.connect(uri, new WebSocketHttpHeaders(), login, events).get(Suite.PATIENCE, TimeUnit.SECONDS);
            }
            connected = next(events.connected, "CONNECTED");
            session.setAutoReceipt(true);
        }

        private void prepare(StompClientSupport client, MessageConverter converter) {
            client.setMessageConverter(converter);
            client.setTaskScheduler(scheduler);
            // Far longer than anything takes: what is tested is that it runs, not that it is quick.
            client.setDefaultHeartbeat(new long[] {20_000, 20_000});
            client.setReceiptTimeLimit(60_000);
        }

        void awaitReceipt(StompSession.Receiptable sent, String what) throws InterruptedException {
            CountDownLatch came = new CountDownLatch(1);
            sent.addReceiptTask(came::countDown);
            isTrue(came.await(Suite.PATIENCE, TimeUnit.SECONDS), what + ": no receipt, but " + events.lost + events.errors);
        }

        /** Returns when the broker has it. */
        void send(String destination, Object body, String... headers) throws InterruptedException {
            StompHeaders all = new StompHeaders();
            all.setDestination(destination);
            all.set("persistent", "true");
            all.setContentType(body instanceof String ? MimeTypeUtils.TEXT_PLAIN : MimeTypeUtils.APPLICATION_OCTET_STREAM);
            for (int i = 0; i < headers.length; i += 2) {
                all.set(headers[i], headers[i + 1]);
            }
            awaitReceipt(session.send(all, body), "SEND");
        }

        BlockingQueue<Received> subscribe(String destination, String ack, String... headers) throws InterruptedException {
            BlockingQueue<Received> inbox = new LinkedBlockingQueue<>();
            subscribeTo(inbox, destination, ack, headers);
            return inbox;
        }

        StompSession.Subscription subscribeTo(BlockingQueue<Received> inbox, String destination, String ack, String... headers)
                throws InterruptedException {
            StompHeaders all = new StompHeaders();
            all.setDestination(destination);
            all.setAck(ack);
            for (int i = 0; i < headers.length; i += 2) {
                all.set(headers[i], headers[i + 1]);
            }
            StompSession.Subscription subscription = session.subscribe(all, new StompFrameHandler() {
                @Override
                public Type getPayloadType(StompHeaders ignored) {
                    return type;
                }

                @Override
                public void handleFrame(StompHeaders headers, Object body) {
                    // Spring has no empty bodies.
                    Object empty = type == String.class ? "" : new byte[0];
                    inbox.add(new Received(headers, body == null ? empty : body));
                }
            });
            awaitReceipt(subscription, "SUBSCRIBE");
            return subscription;
        }

        void settle(Received message, boolean consumed) throws InterruptedException {
            awaitReceipt(session.acknowledge(message.headers.getAck(), consumed), consumed ? "ACK" : "NACK");
        }

        void disconnect() {
            try {
                session.disconnect();
            } catch (MessageDeliveryException problem) {
                // As below: the broker may be quicker.
            }
        }
    }

    private void run() {
        for (String transport : List.of("tcp", "websocket")) {
            checks(transport);
        }
    }

    private void checks(String transport) {
        String prefix = "spring_" + transport + "_";
        suite.check(prefix + "speaks_the_highest_version_with_heart_beats", () -> {
            Client client = new Client(transport, byte[].class);
            equal(client.connected.getFirst("version"), "1.2", "version");
            equal(client.connected.getHeartbeat(), new long[] {20_000, 20_000}, "heart-beat");
            isTrue(client.connected.getSession() != null, "no session in " + client.connected);
            client.disconnect();
        });
        suite.check(prefix + "every_binary_body_is_unchanged_in_order", () -> {
            Client client = new Client(transport, byte[].class);
            String destination = "/queue/" + unique("queue");
            BlockingQueue<Received> inbox = client.subscribe(destination, "auto");
            for (int size : BODY_SIZES) {
                byte[] body = randomBody(size);
                client.send(destination, body, "number", String.valueOf(size));
                Received got = next(inbox, "body of " + size + " bytes");
                isTrue(Arrays.equals((byte[]) got.body, body), "body of " + size + " bytes");
                equal(got.headers.getFirst("number"), String.valueOf(size), "header");
                equal(got.headers.getDestination(), destination, "destination");
                equal(got.headers.getContentType(), MimeTypeUtils.APPLICATION_OCTET_STREAM, "content type");
            }
            isTrue(inbox.isEmpty(), "more came than was sent");
        });
        suite.check(prefix + "text_and_headers_with_special_characters_are_unchanged", () -> {
            Client client = new Client(transport, String.class);
            String destination = "/topic/" + unique("topic");
            BlockingQueue<Received> inbox = client.subscribe(destination, "auto");
            String special = "a:b\\c\nd\re grüße";
            for (String body : List.of("", "x", "grüße, 世界 🚀", "y".repeat(70_000), "nul \0 inside")) {
                client.send(destination, body, "special", special);
                Received got = next(inbox, "text");
                equal(got.body, body, "text");
                equal(got.headers.getFirst("special"), special, "header");
            }
        });
        suite.check(prefix + "what_is_acknowledged_is_done_and_the_rest_comes_again", () -> {
            String destination = "/queue/" + unique("queue");
            Client first = new Client(transport, String.class);
            for (int i = 0; i < 10; i++) {
                first.send(destination, String.valueOf(i));
            }
            BlockingQueue<Received> inbox = first.subscribe(destination, "client");
            Received fifth = null;
            for (int i = 0; i < 10; i++) {
                Received got = next(inbox, "message " + i);
                equal(got.body, String.valueOf(i), "order");
                equal(got.headers.getFirst("redelivered"), "false", "redelivered");
                fifth = i == 4 ? got : fifth;
            }
            first.settle(fifth, true);
            first.disconnect();
            Client second = new Client(transport, String.class);
            inbox = second.subscribe(destination, "client-individual");
            for (int i = 5; i < 10; i++) {
                Received got = next(inbox, "message " + i + " again");
                equal(got.body, String.valueOf(i), "order");
                equal(got.headers.getFirst("redelivered"), "true", "redelivered");
                second.settle(got, true);
            }
            second.disconnect();
            Client third = new Client(transport, String.class);
            inbox = third.subscribe(destination, "client-individual");
            third.send(destination, "the end");
            equal(next(inbox, "the end").body, "the end", "first message of an empty queue");
        });
        suite.check(prefix + "a_refused_message_comes_again_at_once", () -> {
            Client client = new Client(transport, String.class);
            String destination = "/queue/" + unique("queue");
            BlockingQueue<Received> inbox = client.subscribe(destination, "client-individual");
            client.send(destination, "again");
            for (int turn = 0; turn < 3; turn++) {
                Received got = next(inbox, "turn " + turn);
                equal(got.headers.getFirst("redelivered"), turn == 0 ? "false" : "true", "redelivered");
                client.settle(got, false);
            }
        });
        suite.check(prefix + "a_durable_subscription_keeps_messages_while_its_client_is_away", () -> {
            String destination = "/topic/" + unique("topic");
            String[] durable = {"durable", "true", "auto-delete", "false", "id", unique("id")};
            Client client = new Client(transport, String.class);
            client.subscribe(destination, "client-individual", durable);
            client.disconnect();
            Client other = new Client(transport, String.class);
            other.send(destination, "missed");
            Client again = new Client(transport, String.class);
            BlockingQueue<Received> inbox = new LinkedBlockingQueue<>();
            StompSession.Subscription subscription = again.subscribeTo(inbox, destination, "client-individual", durable);
            Received got = next(inbox, "the message that was missed");
            equal(got.body, "missed", "body");
            again.settle(got, true);
            StompHeaders end = new StompHeaders();
            end.set("durable", "true");
            subscription.unsubscribe(end);
        });
        suite.check(prefix + "unsubscribing_ends_it", () -> {
            Client client = new Client(transport, String.class);
            String destination = "/topic/" + unique("topic");
            BlockingQueue<Received> one = new LinkedBlockingQueue<>();
            StompSession.Subscription subscription = client.subscribeTo(one, destination, "auto");
            BlockingQueue<Received> other = client.subscribe(destination, "auto");
            client.send(destination, "both");
            equal(next(one, "both").body + "" + next(other, "both").body, "bothboth", "bodies");
            subscription.unsubscribe();
            client.send(destination, "other");
            equal(next(other, "other").body, "other", "body");
            isTrue(one.isEmpty(), "it came after UNSUBSCRIBE");
        });
        suite.check(prefix + "an_error_says_what_was_wrong_and_ends_the_session", () -> {
            Client client = new Client(transport, String.class);
            StompHeaders headers = new StompHeaders();
            headers.setDestination("/nowhere/x");
            try {
                client.session.send(headers, "x");
            } catch (MessageDeliveryException problem) {
                // The connection may end before the call does.
            }
            equal(next(client.events.errors, "ERROR").getFirst("message"), "Unknown destination", "message");
            next(client.events.lost, "the end of the connection");
            isTrue(!client.session.isConnected(), "it is still connected");
        });
        suite.check(prefix + "a_wrong_password_is_refused", () -> {
            Events events = new Events(byte[].class);
            StompHeaders login = new StompHeaders();
            login.setLogin("guest");
            login.setPasscode("wrong");
            if (transport.equals("tcp")) {
                String address = suite.option("--stomp");
                ReactorNettyTcpStompClient client = new ReactorNettyTcpStompClient(host(address), port(address));
                suite.after(client::shutdown);
                client.connect(login, events);
            } else {
                WebSocketStompClient client = new WebSocketStompClient(new StandardWebSocketClient());
                suite.after(client::stop);
                client.start();
                client.connect(new URI("ws://" + suite.option("--stomp-websocket") + "/ws"), new WebSocketHttpHeaders(), login, events);
            }
            equal(next(events.errors, "ERROR").getFirst("message"), "Bad CONNECT", "message");
            equal(events.connected.size(), 0, "CONNECTED frames");
        });
    }
}
