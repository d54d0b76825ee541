package rocketbridge.interop;

import static rocketbridge.interop.Suite.equal;
import static rocketbridge.interop.Suite.inTime;
import static rocketbridge.interop.Suite.isTrue;
import static rocketbridge.interop.Suite.next;
import static rocketbridge.interop.Suite.unique;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.impl.factory.MQClientInstance;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Consuming with RocketMQ's Java client. */
final class RocketMqConsumer extends RocketMq {
    RocketMqConsumer(Suite suite) {
        super(suite);
    }

    void run() {
        check("a_group_reads_every_message_once", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 100);
            BlockingQueue<MessageExt> inbox = member(unique("group"), topic);
            equal(bodies(inbox, 100), numbers(0, 100), "bodies of what was there");
            for (int i = 100; i < 200; i++) {
                send(producer, message(topic, "" + i));
            }
            equal(bodies(inbox, 100), numbers(100, 200), "bodies of what came");
        });
        check("tag_expressions_select", () -> {
            DefaultMQProducer producer = producer();
            String topic = unique("topic");
            for (int i = 0; i < 30; i++) {
                Message message = message(topic, "" + i);
                message.setTags("abc".substring(i % 3, i % 3 + 1));
                send(producer, message);
            }
            for (String[] row : new String[][] {{"a || b", "ab"}, {"c", "c"}, {"*", "abc"}}) {
                BlockingQueue<MessageExt> inbox = start(consumer(unique("group"), topic, row[0]));
                for (int i = 0; i < 10 * row[1].length(); i++) {
                    String tag = next(inbox, "a message for " + row[0]).getTags();
                    isTrue(row[1].contains(tag), row[0] + " got tag " + tag);
                }
            }
        });
        check("sql_expressions_select", this::sql);
        check("a_wrong_sql_expression_ends_the_start_of_its_consumer", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 1);
            DefaultMQPushConsumer consumer = consumer(unique("group"), topic, "*");
            consumer.subscribe(topic, MessageSelector.bySql("n > 5 AND"));
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) ->
                ConsumeConcurrentlyStatus.CONSUME_SUCCESS);
            try {
                consumer.start();
            } catch (MQClientException refused) {
                equal(refused.getResponseCode(), 23, "response code");
                isTrue(refused.getErrorMessage().contains("character 10"), refused.getErrorMessage());
                return;
            }
            throw new AssertionError("the consumer started");
        });
        check("offsets_are_kept_over_a_restart_of_the_consumer", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 20);
            String group = unique("group");
            DefaultMQPushConsumer first = consumer(group, topic, "*");
            equal(bodies(start(first), 20), numbers(0, 20), "bodies of the first life");
            first.shutdown();
            for (int i = 20; i < 40; i++) {
                send(producer, message(topic, "" + i));
            }
            BlockingQueue<MessageExt> inbox = member(group, topic);
            equal(bodies(inbox, 20), numbers(20, 40), "bodies of the second life");
            probe(producer, topic, "last");
            equal(bodies(inbox, TOPIC_QUEUES), Map.of("last", TOPIC_QUEUES), "what else there is");
        });
        check("lite_pull_consumer_seeks_the_first_and_the_last_offset", this::seek);
        check("a_group_that_consumes_is_reset_by_time", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 20);
            String group = unique("group");
            DefaultMQPushConsumer consumer = consumer(group, topic, "*");
            BlockingQueue<MessageExt> inbox = start(consumer);
            equal(bodies(inbox, 20), numbers(0, 20), "bodies at first");
            MQClientInstance client = consumer.getDefaultMQPushConsumerImpl().getmQClientFactory();
            String broker = producer.fetchPublishMessageQueues(topic).get(0).getBrokerName();
            Map<MessageQueue, Long> offsets = client.getMQClientAPIImpl().invokeBrokerToResetOffset(
                client.findBrokerAddressInPublish(broker), topic, group, 0, true, 60_000);
            equal(new HashSet<>(offsets.values()), Collections.singleton(0L), "offsets");
            // Clients of version 4 wait for 10 s and then for their next round over the queues.
            equal(bodies(inbox, 20), numbers(0, 20), "bodies after the reset");
        });
        check("broadcasting_gives_everything_to_everyone", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 20);
            String group = unique("group");
            List<BlockingQueue<MessageExt>> inboxes = new ArrayList<>();
            for (int i = 0; i < 2; i++) {
                DefaultMQPushConsumer consumer = consumer(group, topic, "*");
                broadcast(consumer);
                inboxes.add(start(consumer));
            }
            for (BlockingQueue<MessageExt> inbox : inboxes) {
                equal(bodies(inbox, 20), numbers(0, 20), "bodies");
            }
        });
        check("members_share_the_queues_and_rebalance_at_once", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 1);
            String group = unique("group");
            BlockingQueue<MessageExt> stays = member(group, topic);
            shares(producer, topic, Arrays.asList(stays), 4);
            // The clients look by themselves every 20 s. Who is not told waits for that, and the second and third
            // time for a whole round of it: that makes 40 s at least, if only one of the two kinds is not told.
            inTime(() -> {
                long start = System.nanoTime();
                for (int round = 0; round < 3; round++) {
                    DefaultMQPushConsumer other = consumer(group, topic, "*");
                    BlockingQueue<MessageExt> comes = start(other);
                    shares(producer, topic, Arrays.asList(stays, comes), 2, 2);
                    other.shutdown();
                    shares(producer, topic, Arrays.asList(stays), 4);
                }
                long took = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - start);
                return took < 35 ? "" : "six changes took " + took + " s";
            });
        });
        check("orderly_members_keep_the_order_of_every_queue", this::orderly);
        check("a_message_that_failed_comes_again", () -> {
            DefaultMQProducer producer = producer();
            String topic = topicWith(producer, 8);
            DefaultMQPushConsumer consumer = consumer(unique("group"), topic, "*");
            Set<String> failed = ConcurrentHashMap.newKeySet();
            BlockingQueue<String> done = new LinkedBlockingQueue<>();
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                for (MessageExt message : messages) {
                    if (text(message).equals("5") && failed.add("5")) {
                        return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                    }
                    done.add(text(message));
                }
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            consumer.start();
            Map<String, Integer> bodies = new HashMap<>();
            for (int i = 0; i < 8; i++) {
                bodies.merge(next(done, "message " + i), 1, Integer::sum);
            }
            equal(bodies, numbers(0, 8), "bodies");
            equal(failed, Collections.singleton("5"), "what failed at first");
        });
    }

    private void sql() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        for (int i = 0; i < 30; i++) {
            Message message = message(topic, "" + i);
            message.setTags(i % 2 == 0 ? "a" : "b");
            message.putUserProperty("n", "" + i);
            if (i % 3 != 2) {
                message.putUserProperty("colour", i % 3 == 0 ? "red" : "blue");
            }
            send(producer, message);
        }
        Map<String, IntPredicate> rows = new LinkedHashMap<>();
        rows.put("n between 5 and 8", i -> i >= 5 && i <= 8);
        rows.put("colour = 'red' AND n < 20", i -> i % 3 == 0 && i < 20);
        rows.put("colour is null or TAGS in ('b', 'c')", i -> i % 3 == 2 || i % 2 == 1);
        rows.put("n >= 10.0 and colour startswith 'bl' and n <> 13", i -> i >= 10 && i % 3 == 1 && i != 13);
        for (Map.Entry<String, IntPredicate> row : rows.entrySet()) {
            Map<String, Integer> want = new HashMap<>();
            IntStream.range(0, 30).filter(row.getValue()).forEach(i -> want.put("" + i, 1));
            DefaultMQPushConsumer consumer = consumer(unique("group"), topic, "*");
            consumer.subscribe(topic, MessageSelector.bySql(row.getKey()));
            equal(bodies(start(consumer), want.size()), want, "bodies for " + row.getKey());
        }
        DefaultLitePullConsumer puller = new DefaultLitePullConsumer(unique("group"));
        puller.setNamesrvAddr(suite.option("--name-server"));
        puller.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        puller.subscribe(topic, MessageSelector.bySql("n in ('7', '11') and n > 8"));
        puller.start();
        suite.after(puller::shutdown);
        equal(poll(puller, 1), Set.of("11"), "bodies of the pull consumer");
    }

    private void seek() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = topicWith(producer, 40);
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Suite.PATIENCE);
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(unique("group"));
        consumer.setNamesrvAddr(suite.option("--name-server"));
        consumer.setAutoCommit(false);
        consumer.start();
        suite.after(consumer::shutdown);
        List<MessageQueue> queues = new ArrayList<>(consumer.fetchMessageQueues(topic));
        equal(queues.size(), TOPIC_QUEUES, "message queues");
        consumer.assign(queues);
        for (MessageQueue queue : queues) {
            consumer.seekToBegin(queue);
        }
        equal(poll(consumer, 40), numbers(0, 40).keySet(), "bodies from the first offset");
        for (MessageQueue queue : queues) {
            consumer.seekToEnd(queue);
        }
        for (int i = 40; i < 60; i++) {
            send(producer, message(topic, "" + i));
        }
        equal(poll(consumer, 20), numbers(40, 60).keySet(), "bodies from the last offset");
        MessageQueue queue = queues.get(0);
        long end = producer.maxOffset(queue);
        consumer.seek(queue, 3);
        for (long want = 3; want < end; ) {
            isTrue(System.nanoTime() < deadline, "nothing at offset " + want);
            for (MessageExt message : consumer.poll(1000)) {
                equal(message.getQueueId() + "/" + message.getQueueOffset(), queue.getQueueId() + "/" + want, "queue and offset");
                want++;
            }
        }
        consumer.commitSync();
    }

    /**
     * The first bodies that differ. One may come twice: the pull that a seek makes obsolete may be under way, and
     * the client (4.9.8) gives the program what it brings, too.
     */
    private static Set<String> poll(DefaultLitePullConsumer consumer, int count) {
        Set<String> bodies = new HashSet<>();
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Suite.PATIENCE);
        while (bodies.size() < count) {
            isTrue(System.nanoTime() < deadline, "only " + bodies.size() + " of " + count + " messages came");
            for (MessageExt message : consumer.poll(1000)) {
                bodies.add(text(message));
            }
        }
        return bodies;
    }

    /** Sends rounds of one message to every message queue until the members get them as wanted. */
    private static void shares(DefaultMQProducer producer, String topic, List<BlockingQueue<MessageExt>> members,
            Integer... want) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Suite.PATIENCE);
        Integer[] got = new Integer[members.size()];
        do {
            String round = unique("round");
            probe(producer, topic, round);
            Arrays.fill(got, 0);
            for (int total = 0; total < TOPIC_QUEUES; ) {
                for (int i = 0; i < members.size(); i++) {
                    MessageExt message = members.get(i).poll(1, TimeUnit.MILLISECONDS);
                    if (message != null && text(message).equals(round)) {
                        got[i]++;
                        total++;
                    }
                }
                isTrue(System.nanoTime() < deadline, "of four probes only " + Arrays.toString(got) + " came in time");
            }
            isTrue(System.nanoTime() < deadline || Arrays.equals(got, want),
                "the members have " + Arrays.toString(got) + " queues, not " + Arrays.toString(want));
        } while (!Arrays.equals(got, want));
    }

    private void orderly() throws Exception {
        int keys = 12;
        int each = 40;
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        for (int i = 0; i < each; i++) {
            for (int key = 0; key < keys; key++) {
                Message message = message(topic, "" + i);
                message.putUserProperty("key", "" + key);
                stored(producer.send(message, (all, m, number) -> all.get((Integer) number % all.size()), key));
            }
        }
        Map<String, Integer> next = new ConcurrentHashMap<>();
        Set<Integer> busy = ConcurrentHashMap.newKeySet();
        BlockingQueue<String> problems = new LinkedBlockingQueue<>();
        CountDownLatch all = new CountDownLatch(keys * each);
        String group = unique("group");
        for (int member = 0; member < 2; member++) {
            DefaultMQPushConsumer consumer = consumer(group, topic, "*");
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                for (MessageExt message : messages) {
                    if (!busy.add(message.getQueueId())) {
                        problems.add("queue " + message.getQueueId() + " is consumed twice at a time");
                    }
                    String key = message.getUserProperty("key");
                    int number = Integer.parseInt(text(message));
                    int expected = next.getOrDefault(key, 0);
                    // A client that gives a queue up while its listener runs does not commit what that has done:
                    // then the next one gets it again, but nothing is left out.
                    if (number > expected) {
                        problems.add("key " + key + ": got " + number + ", want " + expected);
                    }
                    if (number == expected) {
                        next.put(key, expected + 1);
                        all.countDown();
                    }
                    busy.remove(message.getQueueId());
                }
                return ConsumeOrderlyStatus.SUCCESS;
            });
            consumer.start();
        }
        isTrue(all.await(Suite.PATIENCE, TimeUnit.SECONDS), all.getCount() + " messages did not come");
        equal(problems.poll(), null, "problem");
    }
}
