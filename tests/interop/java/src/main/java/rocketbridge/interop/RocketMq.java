package rocketbridge.interop;

import static rocketbridge.interop.Suite.isTrue;
import static rocketbridge.interop.Suite.next;
import static rocketbridge.interop.Suite.unique;

import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.common.ClientErrorCode;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What the checks of producers and consumers share. */
abstract class RocketMq {
    /** Message queues of a topic that is made by its first message. */
    static final int TOPIC_QUEUES = 4;

    final Suite suite;

    RocketMq(Suite suite) {
        this.suite = suite;
    }

    /** Checks of several client versions may run against one broker. */
    void check(String name, Suite.Check check) {
        suite.check("rocketmq_java_" + name, check);
    }

    DefaultMQProducer producer() throws Exception {
        DefaultMQProducer producer = patient(new DefaultMQProducer(unique("producers")));
        producer.setNamesrvAddr(suite.option("--name-server"));
        producer.start();
        suite.after(producer::shutdown);
        return producer;
    }

    /** The client's own patience of 3 s is short for a busy machine: it would send again what was stored. */
    static <P extends DefaultMQProducer> P patient(P producer) {
        producer.setSendMsgTimeout(60_000);
        producer.setMqClientApiTimeout(60_000);
        return producer;
    }

    static Message message(String topic, String body) {
        return new Message(topic, body.getBytes(StandardCharsets.UTF_8));
    }

    static String text(Message message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    static SendResult send(DefaultMQProducer producer, Message message) throws Exception {
        return stored(routed(() -> producer.send(message)));
    }

    interface Sending {
        SendResult send() throws Exception;
    }

    /** Where a busy machine kept the client from asking for a route, nothing was sent: it asks again. */
    static SendResult routed(Sending sending) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Suite.PATIENCE);
        while (true) {
            try {
                return sending.send();
            } catch (MQClientException problem) {
                boolean noRoute = problem.getResponseCode() == ClientErrorCode.NOT_FOUND_TOPIC_EXCEPTION;
                if (!noRoute || System.nanoTime() > deadline) {
                    throw problem;
                }
            }
        }
    }

    static SendResult stored(SendResult result) {
        isTrue(result.getSendStatus() == SendStatus.SEND_OK, "send status " + result);
        return result;
    }

    /** Sends `0`, `1` and so on to a new topic. */
    static String topicWith(DefaultMQProducer producer, int count) throws Exception {
        String topic = unique("topic");
        for (int i = 0; i < count; i++) {
            send(producer, message(topic, "" + i));
        }
        return topic;
    }

    /** One message to every message queue. */
    static void probe(DefaultMQProducer producer, String topic, String body) throws Exception {
        for (MessageQueue queue : producer.fetchPublishMessageQueues(topic)) {
            stored(producer.send(message(topic, body), queue));
        }
    }

    DefaultMQPushConsumer consumer(String group, String topic, String tags) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(suite.option("--name-server"));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setInstanceName(unique("member"));
        // Else it would not note the offsets of messages whose listener is about to return.
        consumer.setAwaitTerminationMillisWhenShutdown(60_000);
        consumer.setMqClientApiTimeout(60_000);
        consumer.subscribe(topic, tags);
        suite.after(consumer::shutdown);
        return consumer;
    }

    /** Starts a consumer whose messages go to the inbox. */
    static BlockingQueue<MessageExt> start(DefaultMQPushConsumer consumer) throws Exception {
        BlockingQueue<MessageExt> inbox = new LinkedBlockingQueue<>();
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            inbox.addAll(messages);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        return inbox;
    }

    BlockingQueue<MessageExt> member(String group, String topic) throws Exception {
        return start(consumer(group, topic, "*"));
    }

    static Map<String, Integer> bodies(BlockingQueue<MessageExt> inbox, int count) throws Exception {
        Map<String, Integer> bodies = new HashMap<>();
        for (int i = 0; i < count; i++) {
            bodies.merge(text(next(inbox, "message " + i + " of " + count)), 1, Integer::sum);
        }
        return bodies;
    }

    /** The bodies {@code from} to {@code to} less one, once each. */
    static Map<String, Integer> numbers(int from, int to) {
        Map<String, Integer> bodies = new HashMap<>();
        for (int i = from; i < to; i++) {
            bodies.put("" + i, 1);
        }
        return bodies;
    }

    /** The enumeration moved to another package with version 5. */
    static void broadcast(DefaultMQPushConsumer consumer) throws Exception {
        for (Method method : DefaultMQPushConsumer.class.getMethods()) {
            if (method.getName().equals("setMessageModel")) {
                for (Object model : method.getParameterTypes()[0].getEnumConstants()) {
                    if (model.toString().equals("BROADCASTING")) {
                        method.invoke(consumer, model);
                        return;
                    }
                }
            }
        }
        throw new AssertionError("no broadcasting in this client");
    }
}
