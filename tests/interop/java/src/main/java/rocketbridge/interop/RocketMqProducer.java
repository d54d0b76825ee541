package rocketbridge.interop;

import static rocketbridge.interop.Suite.equal;
import static rocketbridge.interop.Suite.isTrue;
import static rocketbridge.interop.Suite.next;
import static rocketbridge.interop.Suite.randomBody;
import static rocketbridge.interop.Suite.unique;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Sending with RocketMQ's Java client. */
final class RocketMqProducer extends RocketMq {
    RocketMqProducer(Suite suite) {
        super(suite);
    }

    void run() {
        check("tutorial_producer_and_consumer", () -> {
            DefaultMQProducer producer = patient(new DefaultMQProducer("please_rename_unique_group_name"));
            producer.setNamesrvAddr(suite.option("--name-server"));
            producer.start();
            suite.after(producer::shutdown);
            for (int i = 0; i < 10; i++) {
                send(producer, new Message("TopicTest", "TagA", ("Hello RocketMQ " + i).getBytes()));
            }
            BlockingQueue<MessageExt> inbox = member("please_rename_unique_group_name_4", "TopicTest");
            Set<String> bodies = bodies(inbox, 10).keySet();
            equal(bodies.size(), 10, "different messages");
        });
        check("send_result_tells_ids_queue_and_offset", () -> {
            DefaultMQProducer producer = producer();
            String topic = unique("topic");
            Map<Integer, Long> offsets = new HashMap<>();
            Set<String> ids = new HashSet<>();
            for (int i = 0; i < 3 * TOPIC_QUEUES; i++) {
                SendResult result = send(producer, message(topic, "" + i));
                isTrue(result.getMsgId().matches("[0-9A-F]{32}"), "message id " + result);
                isTrue(result.getOffsetMsgId().matches("[0-9A-F]{32}"), "offset message id " + result);
                isTrue(ids.add(result.getMsgId()) && ids.add(result.getOffsetMsgId()), "an id came twice");
                int queue = result.getMessageQueue().getQueueId();
                equal(result.getQueueOffset(), offsets.getOrDefault(queue, 0L), "queue offset");
                offsets.merge(queue, 1L, Long::sum);
            }
            // The client goes round the queues, but begins anew when it hears of the topic's own route.
            equal(offsets.keySet(), Set.of(0, 1, 2, 3), "queues of a topic made by its first message");
        });
        check("a_message_arrives_as_it_was_sent", () -> {
            DefaultMQProducer producer = producer();
            Message sent = message(unique("topic"), "hello");
            sent.setTags("tag-a");
            sent.setKeys(Arrays.asList("key1", "key2"));
            sent.setFlag(77);
            sent.putUserProperty("user", "grüße, 世界");
            SendResult result = send(producer, sent);
            MessageExt got = next(member(unique("group"), sent.getTopic()), "the message");
            equal(text(got) + got.getTags() + got.getKeys() + got.getFlag(), "hellotag-akey1 key277", "message");
            equal(got.getUserProperty("user"), "grüße, 世界", "user property");
            equal(got.getMsgId(), result.getMsgId(), "message id");
            equal(got.getQueueId(), result.getMessageQueue().getQueueId(), "queue");
            equal(got.getQueueOffset(), result.getQueueOffset(), "queue offset");
            equal(got.getReconsumeTimes(), 0, "reconsume times");
            isTrue(Math.abs(System.currentTimeMillis() - got.getBornTimestamp()) < 60_000, "born at " + got.getBornTimestamp());
            isTrue(Math.abs(System.currentTimeMillis() - got.getStoreTimestamp()) < 60_000, "stored at " + got.getStoreTimestamp());
        });
        check("async_and_oneway_sends_arrive", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 1);
            BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
            for (int i = 1; i < 100; i++) {
                producer.send(message(topic, "" + i), new SendCallback() {
                    @Override public void onSuccess(SendResult result) {
                        answers.add(result.getSendStatus().name());
                    }

                    @Override public void onException(Throwable problem) {
                        answers.add(problem);
                    }
                });
            }
            for (int i = 1; i < 100; i++) {
                equal(next(answers, "an answer"), "SEND_OK", "answer");
            }
            for (int i = 100; i < 200; i++) {
                producer.sendOneway(message(topic, "" + i));
            }
            equal(bodies(member(unique("group"), topic), 200), numbers(0, 200), "bodies");
        });
        check("batch_is_stored_whole_in_one_queue", () -> {
            DefaultMQProducer producer = producer();
            String topic = unique("topic");
            List<Message> batch = new ArrayList<>();
            for (int i = 0; i < 50; i++) {
                Message message = message(topic, "" + i);
                message.setTags("tag-" + i % 2);
                batch.add(message);
            }
            SendResult result = stored(producer.send(batch));
            equal(result.getOffsetMsgId().split(",").length, 50, "number of offset message ids");
            BlockingQueue<MessageExt> inbox = member(unique("group"), topic);
            String[] byOffset = new String[50];
            for (int i = 0; i < 50; i++) {
                MessageExt message = next(inbox, "a message of the batch");
                equal(message.getQueueId(), result.getMessageQueue().getQueueId(), "queue");
                byOffset[(int) message.getQueueOffset()] = text(message) + " " + message.getTags();
            }
            for (int i = 0; i < 50; i++) {
                equal(byOffset[i], i + " tag-" + i % 2, "message at offset " + i);
            }
        });
        check("selector_and_chosen_queue_are_used", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 1);
            List<MessageQueue> queues = producer.fetchPublishMessageQueues(topic);
            equal(queues.size(), TOPIC_QUEUES, "message queues");
            for (MessageQueue queue : queues) {
                equal(stored(producer.send(message(topic, "x"), queue)).getMessageQueue(), queue, "queue");
            }
            for (int i = 0; i < 20; i++) {
                SendResult result = producer.send(message(topic, "x"), (all, m, id) -> all.get((Integer) id % all.size()), i);
                equal(stored(result).getMessageQueue().getQueueId(), i % TOPIC_QUEUES, "queue");
            }
        });
        for (int size : new int[] {1, 256, 4097, 65_537, 1 << 20, 4 << 20}) {
            check("body_of_" + size + "_bytes_is_unchanged", () -> {
                DefaultMQProducer producer = producer();
                if (size == 4 << 20) {
                    // Random bytes grow by compressing, beyond what a broker takes.
                    producer.setCompressMsgBodyOverHowmuch(8 << 20);
                }
                String topic = unique("topic");
                byte[] body = randomBody(size);
                send(producer, new Message(topic, body));
                isTrue(Arrays.equals(next(member(unique("group"), topic), "the message").getBody(), body), "the body differs");
            });
        }
        check("offsets_and_messages_can_be_looked_up", this::lookUp);
    }

    private void lookUp() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = topicWith(producer, TOPIC_QUEUES);
        MessageQueue queue = producer.fetchPublishMessageQueues(topic).get(0);
        for (int i = 0; i < 5; i++) {
            stored(producer.send(message(topic, "old"), queue));
        }
        long end = producer.maxOffset(queue);
        equal(producer.minOffset(queue), 0L, "minimum offset");
        equal(stored(producer, topic), 9L, "messages in the topic");
        long before = 0;
        SendResult marked = null;
        // Until a millisecond has passed between the two, so that the search can tell them apart.
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Suite.PATIENCE);
        while (marked == null) {
            long last = System.currentTimeMillis();
            while (System.currentTimeMillis() <= last + 2) {
                if (System.nanoTime() > deadline) {
                    throw new TimeoutException("the clock stands still");
                }
                Thread.onSpinWait();
            }
            before = System.currentTimeMillis();
            marked = stored(producer.send(message(topic, "marked"), queue));
        }
        equal(producer.searchOffset(queue, before), end, "first offset stored since then");
        equal(producer.searchOffset(queue, 0), 0L, "first offset stored ever");
        MessageExt viewed = producer.viewMessage(topic, marked.getOffsetMsgId());
        equal(text(viewed) + " at " + viewed.getQueueOffset(), "marked at " + end, "message by its offset message id");
    }

    /** How many messages were ever stored in a topic. */
    private static long stored(DefaultMQProducer producer, String topic) throws Exception {
        long count = 0;
        for (MessageQueue queue : producer.fetchPublishMessageQueues(topic)) {
            count += producer.maxOffset(queue);
        }
        return count;
    }
}
