package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

var messageID = regexp.MustCompile(`^[0-9A-Fa-f]{32}$`)

func rocketmqProduceChecks(s *Suite) {
	s.Check("rocketmq_send_result_tells_ids_queue_and_offset", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		offsets := map[int]int64{}
		ids := map[string]bool{}
		for i := range 3 * topicQueues {
			result := t.send(p, message(topic, "%d", i))
			t.True(messageID.MatchString(result.MsgID), "message id %q", result.MsgID)
			t.True(messageID.MatchString(result.OffsetMsgID), "offset message id %q", result.OffsetMsgID)
			t.True(!ids[result.OffsetMsgID] && !ids[result.MsgID], "an id came twice: %v", result)
			ids[result.OffsetMsgID], ids[result.MsgID] = true, true
			Equal(t, result.MessageQueue.Topic, topic, "topic")
			t.True(result.MessageQueue.BrokerName != "", "no broker name")
			Equal(t, result.QueueOffset, offsets[result.MessageQueue.QueueId], "queue offset")
			offsets[result.MessageQueue.QueueId]++
		}
		Equal(t, offsets, map[int]int64{0: 3, 1: 3, 2: 3, 3: 3}, "messages per queue of a topic made by its first message")
	})
	s.Check("rocketmq_a_message_arrives_as_it_was_sent", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		sent := message(topic, "hello")
		sent.Flag = 77
		sent.WithTag("tag-a").WithKeys([]string{"key1", "key2"}).WithShardingKey("shard")
		sent.WithProperty("user", "grüße, 世界")
		sent.WithProperty("empty-is-dropped", "")
		before := time.Now().UnixMilli() - 1000
		result := t.send(p, sent)
		got := Receive(t, t.member(t.Name("group"), topic).inbox, "the message")
		Equal(t, got.Topic, topic, "topic")
		Equal(t, string(got.Body), "hello", "body")
		Equal(t, got.Flag, int32(77), "flag")
		Equal(t, got.GetTags()+"|"+got.GetKeys()+"|"+got.GetShardingKey(), "tag-a|key1 key2|shard", "tag, keys, sharding key")
		Equal(t, got.GetProperty("user"), "grüße, 世界", "user property")
		Equal(t, got.MsgId, result.MsgID, "message id")
		Equal(t, got.OffsetMsgId, result.OffsetMsgID, "offset message id")
		Equal(t, got.Queue.QueueId, result.MessageQueue.QueueId, "queue")
		Equal(t, got.QueueOffset, result.QueueOffset, "queue offset")
		Equal(t, got.ReconsumeTimes, int32(0), "reconsume times")
		t.True(strings.HasPrefix(got.BornHost, "127.0.0.1:"), "born host %q", got.BornHost)
		t.True(got.StoreHost != "" && got.StoreSize > 90, "store host %q, size %d", got.StoreHost, got.StoreSize)
		for what, at := range map[string]int64{"born": got.BornTimestamp, "stored": got.StoreTimestamp} {
			t.True(at >= before && at <= time.Now().UnixMilli()+1000, "%s at %d", what, at)
		}
	})
	s.Check("rocketmq_async_sends_are_answered", func(t *T) {
		const count = 500
		p, topic := t.producer(), t.Name("topic")
		answers := make(chan error, count)
		t.send(p, message(topic, "0"))
		for i := 1; i < count; i++ {
			err := p.SendAsync(t, func(_ context.Context, result *primitive.SendResult, err error) {
				if err == nil && (result.Status != primitive.SendOK || !messageID.MatchString(result.MsgID)) {
					err = errNotStored
				}
				answers <- err
			}, message(topic, "%d", i))
			t.Ok(err, "send asynchronously")
		}
		for range count - 1 {
			t.Ok(Receive(t, answers, "an answer"), "asynchronous send")
		}
		Equal(t, t.bodies(t.member(t.Name("group"), topic), count), numbers(0, count), "bodies")
	})
	s.Check("rocketmq_oneway_sends_arrive", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		t.send(p, message(topic, "0"))
		for i := 1; i < 100; i++ {
			t.Ok(p.SendOneWay(t, message(topic, "%d", i)), "send one way")
		}
		Equal(t, t.bodies(t.member(t.Name("group"), topic), 100), numbers(0, 100), "bodies")
	})
	s.Check("rocketmq_batch_is_stored_whole_in_one_queue", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		var batch []*primitive.Message
		for i := range 50 {
			msg := message(topic, "%d", i).WithTag(fmt.Sprint("tag-", i%2)).WithKeys([]string{fmt.Sprint("key-", i)})
			msg.WithProperty("number", fmt.Sprint(i))
			batch = append(batch, msg)
		}
		result := t.send(p, batch...)
		Equal(t, result.QueueOffset, 0, "offset of the first message")
		Equal(t, len(strings.Split(result.OffsetMsgID, ",")), 50, "number of offset message ids")
		m := t.member(t.Name("group"), topic)
		byOffset := map[int64]*primitive.MessageExt{}
		for range 50 {
			msg := Receive(t, m.inbox, "a message of the batch")
			Equal(t, msg.Queue.QueueId, result.MessageQueue.QueueId, "queue")
			byOffset[msg.QueueOffset] = msg
		}
		for i := range 50 {
			msg := byOffset[int64(i)]
			t.True(msg != nil, "nothing at offset %d", i)
			Equal(t, fmt.Sprintf("%s %s %s %s", msg.Body, msg.GetTags(), msg.GetKeys(), msg.GetProperty("number")),
				fmt.Sprintf("%d tag-%d key-%d %d", i, i%2, i, i), "message")
		}
		t.nothingMore(p, topic, m)
	})
	s.Check("rocketmq_sharding_key_keeps_its_messages_in_one_queue", func(t *T) {
		p, topic := t.producer(producer.WithQueueSelector(producer.NewHashQueueSelector())), t.Name("topic")
		queueOf := map[string]int{}
		used := map[int]bool{}
		for i := range 100 {
			key := fmt.Sprint("shard-", i%10)
			queue := t.send(p, message(topic, "%d", i).WithShardingKey(key)).MessageQueue.QueueId
			known, seen := queueOf[key]
			t.True(!seen || known == queue, "%s went to queues %d and %d", key, known, queue)
			queueOf[key] = queue
			used[queue] = true
		}
		t.True(len(used) > 1, "ten keys went to one queue")
	})
	s.Check("rocketmq_the_chosen_queue_is_used", func(t *T) {
		p, topic := t.producer(producer.WithQueueSelector(producer.NewManualQueueSelector())), t.Name("topic")
		name := t.brokerName(t.producer())
		t.send(t.producer(), message(topic, "make the topic"))
		for _, id := range []int{3, 1, 2, 0, 3} {
			msg := message(topic, "to %d", id)
			msg.Queue = &primitive.MessageQueue{Topic: topic, BrokerName: name, QueueId: id}
			Equal(t, t.send(p, msg).MessageQueue.QueueId, id, "queue")
		}
	})
	for _, size := range []int{1, 256, 4095, 4097, 65_537, 1 << 20, 4 << 20} {
		s.Check(fmt.Sprintf("rocketmq_body_of_%d_bytes_is_unchanged", size), func(t *T) {
			topic := t.Name("topic")
			body := randomBytes(size)
			plain := t.producer(producer.WithCompressMsgBodyOverHowmuch(8 << 20))
			count := 1
			t.send(plain, primitive.NewMessage(topic, body))
			if size < 4<<20 { // random bytes grow by compressing, beyond what a broker takes
				t.send(t.producer(), primitive.NewMessage(topic, body))
				count++
			}
			m := t.member(t.Name("group"), topic)
			for range count {
				SameBytes(t, Receive(t, m.inbox, "the message").Body, body, "body")
			}
		})
	}
	s.Check("rocketmq_body_beyond_the_limit_is_refused", func(t *T) {
		p := t.producer(producer.WithCompressMsgBodyOverHowmuch(64 << 20))
		_, err := p.SendSync(t, primitive.NewMessage(t.Name("topic"), randomBytes(5<<20)))
		t.True(err != nil, "a body of 5 MiB was taken")
		t.send(p, message(t.Name("topic"), "the producer still works"))
	})
}
