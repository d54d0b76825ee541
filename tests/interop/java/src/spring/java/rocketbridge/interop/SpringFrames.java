package rocketbridge.interop;

import static rocketbridge.interop.Suite.equal;
import static rocketbridge.interop.Suite.isTrue;
import static rocketbridge.interop.Suite.next;
import static rocketbridge.interop.Suite.unique;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.springframework.context.support.StaticApplicationContext;
import org.springframework.messaging.Message;
import org.springframework.messaging.simp.SimpMessageType;
import org.springframework.messaging.simp.broker.BrokerAvailabilityEvent;
import org.springframework.messaging.simp.stomp.StompBrokerRelayMessageHandler;
import org.springframework.messaging.simp.stomp.StompCommand;
import org.springframework.messaging.simp.stomp.StompHeaderAccessor;
import org.springframework.messaging.simp.stomp.StompReactorNettyCodec;
import org.springframework.messaging.support.ExecutorSubscribableChannel;
import org.springframework.messaging.support.MessageBuilder;
import org.springframework.messaging.tcp.TcpConnection;
import org.springframework.messaging.tcp.TcpConnectionHandler;
import org.springframework.messaging.tcp.reactor.ReactorNettyTcpClient;

/** Transactions and heart-beats with the frames of Spring's codec, and Spring's relay to a broker. */
final class SpringFrames {
    private final Suite suite;

    SpringFrames(Suite suite) {
        this.suite = suite;
    }

    private static Message<byte[]> frame(StompCommand command, String body, String... headers) {
        StompHeaderAccessor accessor = StompHeaderAccessor.create(command);
        for (int i = 0; i < headers.length; i += 2) {
            accessor.setNativeHeader(headers[i], headers[i + 1]);
        }
        return MessageBuilder.createMessage(body.getBytes(StandardCharsets.UTF_8), accessor.getMessageHeaders());
    }

    private static String text(Message<byte[]> message) {
        return new String(message.getPayload(), StandardCharsets.UTF_8);
    }

    private static String header(Message<byte[]> message, String name) {
        return StompHeaderAccessor.wrap(message).getFirstNativeHeader(name);
    }

    /** A connection whose frames are Spring's, as the relay makes them. */
    private final class Connection implements TcpConnectionHandler<byte[]> {
        final BlockingQueue<Message<byte[]>> messages = new LinkedBlockingQueue<>();
        final BlockingQueue<Message<byte[]>> beats = new LinkedBlockingQueue<>();
        private final BlockingQueue<Message<byte[]>> others = new LinkedBlockingQueue<>();
        private final BlockingQueue<TcpConnection<byte[]>> connections = new LinkedBlockingQueue<>();
        private final TcpConnection<byte[]> connection;
        final Message<byte[]> connected;
        private int receipts;

        Connection(String heartBeat) throws Exception {
            String address = suite.option("--stomp");
            ReactorNettyTcpClient<byte[]> client =
                    new ReactorNettyTcpClient<>(Spring.host(address), Spring.port(address), new StompReactorNettyCodec());
            suite.after(client::shutdown);
            client.connect(this);
            connection = next(connections, "the connection");
            StompHeaderAccessor login = StompHeaderAccessor.create(StompCommand.CONNECT);
            login.setAcceptVersion("1.1,1.2");
            login.setHost("/");
            login.setLogin("guest");
            login.setPasscode("guest");
            login.setNativeHeader("heart-beat", heartBeat);
            send(MessageBuilder.createMessage(new byte[0], login.getMessageHeaders()));
            connected = other(StompCommand.CONNECTED);
        }

        void send(Message<byte[]> message) throws Exception {
            connection.send(message).get(Suite.PATIENCE, TimeUnit.SECONDS);
        }

        /** Sends a frame and waits for its receipt. */
        void done(StompCommand command, String body, String... headers) throws Exception {
            String[] all = Arrays.copyOf(headers, headers.length + 2);
            String receipt = "r" + receipts++;
            all[headers.length] = "receipt";
            all[headers.length + 1] = receipt;
            send(frame(command, body, all));
            equal(header(other(StompCommand.RECEIPT), "receipt-id"), receipt, "receipt");
        }

        private Message<byte[]> other(StompCommand command) throws InterruptedException {
            Message<byte[]> message = next(others, command.name());
            equal(StompHeaderAccessor.wrap(message).getCommand(), command, "command of " + message);
            return message;
        }

        @Override
        public void afterConnected(TcpConnection<byte[]> connection) {
            connections.add(connection);
        }

        @Override
        public void afterConnectFailure(Throwable problem) {}

        @Override
        public void handleMessage(Message<byte[]> message) {
            StompHeaderAccessor accessor = StompHeaderAccessor.wrap(message);
            if (SimpMessageType.HEARTBEAT.equals(accessor.getMessageType())) {
                beats.add(message);
            } else if (accessor.getCommand() == StompCommand.MESSAGE) {
                messages.add(message);
            } else {
                others.add(message);
            }
        }

        @Override
        public void handleFailure(Throwable problem) {}

        @Override
        public void afterConnectionClosed() {}
    }

    void run() {
        suite.check("spring_frames_a_transaction_takes_effect_at_commit_or_never", () -> {
            Connection c = new Connection("0,0");
            String destination = "/queue/" + unique("queue");
            c.done(StompCommand.SEND, "to be acknowledged", "destination", destination, "persistent", "true");
            c.done(StompCommand.SUBSCRIBE, "", "id", "s", "destination", destination, "ack", "client-individual");
            Message<byte[]> first = next(c.messages, "the first message");
            for (StompCommand end : List.of(StompCommand.ABORT, StompCommand.COMMIT)) {
                c.done(StompCommand.BEGIN, "", "transaction", "t");
                for (int i = 0; i < 3; i++) {
                    c.send(frame(StompCommand.SEND, end + " " + i, "destination", destination, "transaction", "t", "persistent", "true"));
                }
                c.done(StompCommand.ACK, "", "id", header(first, "ack"), "transaction", "t");
                // A fence: what is sent after it comes after everything that the transaction let out too early.
                c.done(StompCommand.SEND, "fence", "destination", destination);
                Message<byte[]> fence = next(c.messages, "the fence");
                equal(text(fence), "fence", "what comes before the transaction ends");
                c.done(StompCommand.ACK, "", "id", header(fence, "ack"));
                c.done(end, "", "transaction", "t");
            }
            for (int i = 0; i < 3; i++) {
                Message<byte[]> got = next(c.messages, "message " + i);
                equal(text(got), "COMMIT " + i, "what the committed transaction sent");
                c.done(StompCommand.ACK, "", "id", header(got, "ack"));
            }
            c.done(StompCommand.DISCONNECT, "");
            Connection again = new Connection("0,0");
            again.done(StompCommand.SUBSCRIBE, "", "id", "s", "destination", destination, "ack", "client-individual");
            again.done(StompCommand.SEND, "the end", "destination", destination);
            equal(text(next(again.messages, "the end")), "the end", "first message of an empty queue");
        });
        suite.check("spring_frames_the_broker_sends_heart_beats_and_hears_them", () -> {
            Connection c = new Connection("30000,1000");
            equal(header(c.connected, "heart-beat"), "1000,30000", "heart-beat");
            Message<byte[]> beat = MessageBuilder.createMessage(new byte[] {'\n'}, StompHeaderAccessor.createForHeartbeat().getMessageHeaders());
            for (int i = 0; i < 3; i++) {
                next(c.beats, "heart-beat " + i);
                c.send(beat);
            }
            c.done(StompCommand.DISCONNECT, "");
        });
        suite.check("spring_relay_carries_the_frames_of_its_clients", () -> {
            String address = suite.option("--stomp");
            ExecutorSubscribableChannel in = new ExecutorSubscribableChannel();
            ExecutorSubscribableChannel out = new ExecutorSubscribableChannel();
            ExecutorSubscribableChannel broker = new ExecutorSubscribableChannel();
            BlockingQueue<Message<byte[]>> came = new LinkedBlockingQueue<>();
            out.subscribe(message -> {
                @SuppressWarnings("unchecked")
                Message<byte[]> bytes = (Message<byte[]>) message;
                if (StompHeaderAccessor.wrap(message).getCommand() != null) {
                    came.add(bytes);
                }
            });
            BlockingQueue<Boolean> available = new LinkedBlockingQueue<>();
            StaticApplicationContext context = new StaticApplicationContext();
            context.addApplicationListener(event -> {
                if (event instanceof BrokerAvailabilityEvent) {
                    available.add(((BrokerAvailabilityEvent) event).isBrokerAvailable());
                }
            });
            context.refresh();
            StompBrokerRelayMessageHandler relay =
                    new StompBrokerRelayMessageHandler(in, out, broker, List.of("/queue/", "/topic/", "/exchange/"));
            relay.setRelayHost(Spring.host(address));
            relay.setRelayPort(Spring.port(address));
            relay.setVirtualHost("/");
            relay.setSystemHeartbeatSendInterval(20_000);
            relay.setSystemHeartbeatReceiveInterval(20_000);
            relay.setApplicationEventPublisher(context);
            relay.start();
            suite.after(relay::stop);
            equal(next(available, "the broker"), true, "the broker is there for the relay");

            String session = unique("session");
            String destination = "/topic/" + unique("topic");
            in.send(of(session, StompCommand.CONNECT, "", "accept-version", "1.2", "host", "/", "heart-beat", "0,0"));
            equal(command(next(came, "CONNECTED")), StompCommand.CONNECTED, "command");
            in.send(of(session, StompCommand.SUBSCRIBE, "", "id", "s", "destination", destination, "receipt", "r1"));
            equal(header(next(came, "RECEIPT"), "receipt-id"), "r1", "receipt");
            in.send(of(session, StompCommand.SEND, "from a client", "destination", destination));
            equal(text(next(came, "the client's own message")), "from a client", "body");
            // What the application itself says goes over the relay's own connection.
            broker.send(of(null, StompCommand.SEND, "from the application", "destination", destination));
            Message<byte[]> got = next(came, "the application's message");
            equal(text(got), "from the application", "body");
            equal(header(got, "subscription"), "s", "subscription");
            in.send(of(session, StompCommand.DISCONNECT, "", "receipt", "r2"));
            equal(header(next(came, "RECEIPT"), "receipt-id"), "r2", "receipt");
            isTrue(available.isEmpty(), "the broker went away: " + available);
        });
    }

    private static StompCommand command(Message<byte[]> message) {
        return StompHeaderAccessor.wrap(message).getCommand();
    }

    private static Message<byte[]> of(String session, StompCommand command, String body, String... headers) {
        StompHeaderAccessor accessor = StompHeaderAccessor.create(command);
        if (session != null) {
            accessor.setSessionId(session);
        }
        for (int i = 0; i < headers.length; i += 2) {
            accessor.setNativeHeader(headers[i], headers[i + 1]);
            if (headers[i].equals("destination")) {
                accessor.setDestination(headers[i + 1]);
            }
            if (headers[i].equals("id")) {
                accessor.setSubscriptionId(headers[i + 1]);
            }
        }
        accessor.setLeaveMutable(true);
        return MessageBuilder.createMessage(body.getBytes(StandardCharsets.UTF_8), accessor.getMessageHeaders());
    }
}
