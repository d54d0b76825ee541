package rocketbridge.interop;

import static rocketbridge.interop.Suite.equal;
import static rocketbridge.interop.Suite.inTime;
import static rocketbridge.interop.Suite.isTrue;
import static rocketbridge.interop.Suite.next;
import static rocketbridge.interop.Suite.unique;

import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Delays, transactions and retries with RocketMQ's Java client. */
final class RocketMqLater extends RocketMq {
    /** Nothing may come earlier than asked for; a JVM may be this late, milliseconds. */
    private static final long LATE = 2000;

    RocketMqLater(Suite suite) {
        super(suite);
    }

    void run() {
        check("delay_level_2_comes_after_5_seconds", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 1);
            BlockingQueue<MessageExt> inbox = member(unique("group"), topic);
            bodies(inbox, 1);
            inTime(() -> {
                Message delayed = message(topic, "delayed");
                delayed.setDelayTimeLevel(2);
                long before = System.nanoTime();
                send(producer, delayed);
                MessageExt came = next(inbox, "the delayed message");
                String late = late(before, System.nanoTime(), 5000);
                equal(text(came) + came.getTopic(), "delayed" + topic, "message");
                equal(came.getDelayTimeLevel(), 0, "delay level");
                return late;
            });
        });
        check("a_delayed_message_is_taken_back", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 1);
            BlockingQueue<MessageExt> inbox = member(unique("group"), topic);
            bodies(inbox, 1);
            List<String> handles = new ArrayList<>();
            for (String body : new String[] {"recalled", "kept"}) {
                Message message = message(topic, body);
                message.putUserProperty("user", "x");
                org.apache.rocketmq.common.message.MessageAccessor.putProperty(message, "TIMER_DELAY_MS", "8000");
                handles.add(handle(send(producer, message)));
            }
            // Clients before 5.3 know nothing of it: for them both come.
            Method recall = Arrays.stream(DefaultMQProducer.class.getMethods())
                .filter(method -> method.getName().equals("recallMessage")).findFirst().orElse(null);
            if (recall != null) {
                recall.invoke(producer, topic, handles.get(0));
                equal(bodies(inbox, 1), Map.of("kept", 1), "body");
            } else {
                equal(bodies(inbox, 2), Map.of("recalled", 1, "kept", 1), "bodies");
            }
            probe(producer, topic, "last");
            for (int i = 0; i < TOPIC_QUEUES; i++) {
                equal(text(next(inbox, "the last messages")), "last", "body");
            }
        });
        check("a_transaction_is_committed_or_rolled_back", () -> {
            String topic = topicWith(producer(), 1);
            BlockingQueue<MessageExt> inbox = member(unique("group"), topic);
            bodies(inbox, 1);
            for (LocalTransactionState state : new LocalTransactionState[] {
                LocalTransactionState.ROLLBACK_MESSAGE, LocalTransactionState.COMMIT_MESSAGE}) {
                TransactionMQProducer producer =
                    transactional(unique("producers"), new Listener(state, LocalTransactionState.UNKNOW));
                stored(routed(() -> producer.sendMessageInTransaction(message(topic, state.toString()), null)));
            }
            MessageExt came = next(inbox, "the committed message");
            equal(text(came), "COMMIT_MESSAGE", "body");
            isTrue(came.getPreparedTransactionOffset() > 0, "it names no half message");
            probe(producer(), topic, "last");
            for (int i = 0; i < TOPIC_QUEUES; i++) {
                equal(text(next(inbox, "the last messages")), "last", "body");
            }
        });
        check("an_unknown_transaction_is_committed_by_its_check", () -> {
            String topic = topicWith(producer(), 1);
            BlockingQueue<MessageExt> inbox = member(unique("group"), topic);
            bodies(inbox, 1);
            Listener listener = new Listener(LocalTransactionState.UNKNOW, LocalTransactionState.COMMIT_MESSAGE);
            TransactionMQProducer producer = transactional(unique("producers"), listener);
            inTime(() -> {
                long before = System.nanoTime();
                SendResult sent = stored(routed(() -> producer.sendMessageInTransaction(message(topic, "checked"), null)));
                probe(producer(), topic, "overtakes it");
                Map<String, Integer> seen = new HashMap<>();
                for (int i = 0; i <= TOPIC_QUEUES; i++) {
                    MessageExt came = next(inbox, "a message");
                    seen.merge(text(came), 1, Integer::sum);
                    if (text(came).equals("checked")) {
                        isTrue(!listener.checked.isEmpty(), "it came before its check");
                        equal(came.getMsgId(), sent.getMsgId(), "message id");
                    }
                }
                equal(seen, Map.of("overtakes it", TOPIC_QUEUES, "checked", 1), "bodies");
                MessageExt half = next(listener.checked, "the check");
                equal(text(half) + half.getTopic() + half.getTransactionId(), "checked" + topic + sent.getMsgId(), "half message");
                return late(before, System.nanoTime(), 6000);
            });
        });
        check("another_member_is_checked_when_the_producer_is_killed", () -> {
            String topic = topicWith(producer(), 1);
            String group = unique("producers");
            BlockingQueue<MessageExt> inbox = member(unique("group"), topic);
            bodies(inbox, 1);
            Listener listener = new Listener(LocalTransactionState.COMMIT_MESSAGE, LocalTransactionState.COMMIT_MESSAGE);
            // Only a producer that has sent something knows a broker to be a member at.
            TransactionMQProducer alive = transactional(group, listener);
            stored(routed(() -> alive.sendMessageInTransaction(message(topic, "its own"), null)));
            equal(text(next(inbox, "its own message")), "its own", "body");
            Process other = new ProcessBuilder(ProcessHandle.current().info().command().get(), "-XX:TieredStopAtLevel=1",
                "-Dcom.rocketmq.remoting.client.connect.timeout=60000", "-cp",
                System.getProperty("java.class.path"), "-Duser.home=" + System.getProperty("user.home"), "rocketbridge.interop.Main", "half-producer",
                "--name-server", suite.option("--name-server"), "--group", group, "--topic", topic)
                .redirectOutput(ProcessBuilder.Redirect.DISCARD).redirectError(ProcessBuilder.Redirect.INHERIT).start();
            isTrue(other.waitFor(Suite.PATIENCE, TimeUnit.SECONDS), "the other process does not die");
            equal(other.exitValue(), 7, "exit value of the other process");
            equal(text(next(listener.checked, "the check")), "orphan", "half message");
            equal(text(next(inbox, "the committed message")), "orphan", "body");
        });
        check("a_failing_consumer_gets_it_again_later_and_then_it_is_dead", () -> inTime(this::fail));
        check("a_message_that_fails_in_order_is_dead_in_the_end", () -> {
            DefaultMQProducer producer = producer();
            String topic = unique("topic");
            String group = unique("group");
            BlockingQueue<MessageExt> dead = deadLetters(producer, group);
            send(producer, message(topic, "bad"));
            DefaultMQPushConsumer consumer = consumer(group, topic, "*");
            consumer.setMaxReconsumeTimes(2);
            consumer.setSuspendCurrentQueueTimeMillis(100);
            BlockingQueue<Integer> attempts = new LinkedBlockingQueue<>();
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                attempts.add(messages.get(0).getReconsumeTimes());
                return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
            });
            consumer.start();
            equal(text(next(dead, "the dead letter")), "bad", "dead letter");
            equal(new ArrayList<>(attempts), List.of(0, 1, 2), "counts of attempts");
        });
    }

    private String fail() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        String group = unique("group");
        BlockingQueue<MessageExt> dead = deadLetters(producer, group);
        Message bad = message(topic, "bad");
        bad.setTags("tag");
        SendResult sent = send(producer, bad);
        DefaultMQPushConsumer consumer = consumer(group, topic, "*");
        consumer.setMaxReconsumeTimes(2);
        BlockingQueue<Long> times = new LinkedBlockingQueue<>();
        BlockingQueue<Integer> counts = new LinkedBlockingQueue<>();
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            times.add(System.nanoTime());
            counts.add(messages.get(0).getReconsumeTimes());
            // The first time as the broker has it, then as fast as it goes.
            context.setDelayLevelWhenNextConsume(messages.get(0).getReconsumeTimes() > 0 ? 1 : 0);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        long first = next(times, "the first attempt");
        long second = next(times, "the second attempt");
        long third = next(times, "the third attempt");
        MessageExt came = next(dead, "the dead letter");
        equal(text(came) + " " + came.getTags(), "bad tag", "dead letter");
        equal(came.getProperty("ORIGIN_MESSAGE_ID"), sent.getOffsetMsgId(), "property ORIGIN_MESSAGE_ID");
        equal(came.getProperty("RETRY_TOPIC"), topic, "property RETRY_TOPIC");
        equal(new ArrayList<>(counts), List.of(0, 1, 2), "counts of attempts");
        return late(first, second, 10_000) + late(second, third, 1000);
    }

    /** What comes to a group's dead-letter topic from now on. */
    private BlockingQueue<MessageExt> deadLetters(DefaultMQProducer producer, String group) throws Exception {
        send(producer, message("%DLQ%" + group, "before"));
        BlockingQueue<MessageExt> inbox = member(unique("readers"), "%DLQ%" + group);
        bodies(inbox, 1);
        return inbox;
    }

    /** Whether something took much longer than wanted, milliseconds. It must not have taken less. */
    private static String late(long from, long to, long wanted) {
        long took = TimeUnit.NANOSECONDS.toMillis(to - from);
        String what = "it took " + took + " ms, not " + wanted;
        isTrue(took >= wanted, what);
        return took < wanted + LATE ? "" : what;
    }

    /** Clients before 5.3 do not keep it. */
    private static String handle(SendResult result) throws Exception {
        for (Method method : SendResult.class.getMethods()) {
            if (method.getName().equals("getRecallHandle")) {
                return (String) method.invoke(result);
            }
        }
        return "";
    }

    private TransactionMQProducer transactional(String group, Listener listener) throws Exception {
        TransactionMQProducer producer = patient(new TransactionMQProducer(group));
        producer.setNamesrvAddr(suite.option("--name-server"));
        producer.setInstanceName(unique("producer"));
        producer.setTransactionListener(listener);
        producer.start();
        suite.after(producer::shutdown);
        return producer;
    }

    /** Sends a half message and dies in the middle of its local transaction. */
    static void sendHalf(String nameServer, String group, String topic) throws Exception {
        TransactionMQProducer producer = patient(new TransactionMQProducer(group));
        producer.setNamesrvAddr(nameServer);
        producer.setTransactionListener(new TransactionListener() {
            @Override public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                Runtime.getRuntime().halt(7);
                return LocalTransactionState.UNKNOW;
            }

            @Override public LocalTransactionState checkLocalTransaction(MessageExt message) {
                return LocalTransactionState.UNKNOW;
            }
        });
        producer.start();
        routed(() -> producer.sendMessageInTransaction(message(topic, "orphan"), null));
    }

    private static final class Listener implements TransactionListener {
        final BlockingQueue<MessageExt> checked = new LinkedBlockingQueue<>();
        private final LocalTransactionState execute;
        private final LocalTransactionState check;

        Listener(LocalTransactionState execute, LocalTransactionState check) {
            this.execute = execute;
            this.check = check;
        }

        @Override public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
            return execute;
        }

        @Override public LocalTransactionState checkLocalTransaction(MessageExt message) {
            checked.add(message);
            return check;
        }
    }
}
