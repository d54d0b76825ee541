package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

// Message queues of a topic that is made by its first message.
const topicQueues = 4

func rocketmqSuite(s *Suite) {
	rocketmqProduceChecks(s)
	rocketmqConsumeChecks(s)
	rocketmqGroupChecks(s)
}

func (t *T) nameServer() primitive.NsResolver {
	return primitive.NewPassthroughResolver([]string{t.at.nameServer})
}

// producer starts a producer of its own connection.
func (t *T) producer(options ...producer.Option) rocketmq.Producer {
	options = append([]producer.Option{producer.WithNsResolver(t.nameServer()),
		producer.WithInstanceName(t.Name("producer")), producer.WithGroupName(t.Name("producers"))}, options...)
	p, err := rocketmq.NewProducer(options...)
	t.Ok(err, "make a producer")
	t.Ok(p.Start(), "start the producer")
	t.Cleanup(func() { _ = p.Shutdown() })
	return p
}

func message(topic, format string, args ...any) *primitive.Message {
	return primitive.NewMessage(topic, []byte(fmt.Sprintf(format, args...)))
}

// send sends one message and checks that it is stored.
func (t *T) send(p rocketmq.Producer, messages ...*primitive.Message) *primitive.SendResult {
	result, err := p.SendSync(t, messages...)
	t.Ok(err, "send")
	Equal(t, result.Status, primitive.SendOK, "send status")
	return result
}

// topicWith makes a topic by sending this many messages, `0`, `1` and so on.
func (t *T) topicWith(p rocketmq.Producer, count int) string {
	topic := t.Name("topic")
	for i := range count {
		t.send(p, message(topic, "%d", i))
	}
	return topic
}

// member is one push consumer; everything it gets goes to inbox.
type member struct {
	rocketmq.PushConsumer
	inbox chan *primitive.MessageExt
	last  atomic.Pointer[primitive.MessageExt]
	stop  sync.Once
}

// Stop shuts the consumer down. It tells the broker how far it came, as far as it has noted that itself: it notes
// a message a moment after the handler returns.
func (m *member) Stop() {
	m.stop.Do(func() { _ = m.Shutdown() })
}

// member starts a push consumer of a topic that exists.
func (t *T) member(group, topic string, options ...consumer.Option) *member {
	return t.selecting(group, topic, consumer.MessageSelector{}, options...)
}

func (t *T) selecting(group, topic string, selector consumer.MessageSelector, options ...consumer.Option) *member {
	m := &member{inbox: make(chan *primitive.MessageExt, 100_000)}
	t.memberWith(m, group, topic, selector, func(msg *primitive.MessageExt) {
		m.last.Store(msg)
		m.inbox <- msg
	}, options...)
	return m
}

func (t *T) memberWith(m *member, group, topic string, selector consumer.MessageSelector,
	handle func(*primitive.MessageExt), options ...consumer.Option) {
	options = append([]consumer.Option{consumer.WithNsResolver(t.nameServer()), consumer.WithGroupName(group),
		consumer.WithInstance(t.Name("member")), consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset)},
		options...)
	c, err := rocketmq.NewPushConsumer(options...)
	t.Ok(err, "make a push consumer")
	m.PushConsumer = c
	t.Ok(c.Subscribe(topic, selector, func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, msg := range messages {
			handle(msg)
		}
		return consumer.ConsumeSuccess, nil
	}), "subscribe")
	t.Ok(c.Start(), "start the push consumer")
	t.Cleanup(m.Stop)
}

// oneByOne starts a push consumer that takes a message when it has noted the one before.
func (t *T) oneByOne(group, topic string) *member {
	return t.member(group, topic, consumer.WithConsumeGoroutineNums(1))
}

// stopAt stops a consumer of oneByOne that has had this many messages, all there are, and waits until the broker
// knows how far it came: nobody answers that. The body of the last one comes back: that one may come again, as
// there may have been no time to note it.
func (t *T) stopAt(m *member, group, topic string, count int) (mayComeAgain string) {
	last := m.last.Load()
	m.Stop()
	t.Eventually("the group's offsets", func() bool { return t.committed(last.StoreHost, group, topic) >= count-1 })
	return string(last.Body)
}

// committed is how many messages of a topic the group has had, as the broker at this address has it.
func (t *T) committed(broker, group, topic string) (count int) {
	conn, err := net.DialTimeout("tcp", broker, time.Minute)
	t.Ok(err, "connect to the broker")
	defer conn.Close()
	t.Ok(conn.SetDeadline(time.Now().Add(time.Minute)), "set a deadline")
	for id := range topicQueues {
		const queryConsumerOffset, success = 14, 0
		header, err := json.Marshal(map[string]any{"code": queryConsumerOffset, "language": "GO", "opaque": id,
			"extFields": map[string]string{"consumerGroup": group, "topic": topic, "queueId": fmt.Sprint(id)}})
		t.Ok(err, "encode")
		frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(header)))
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(header)))
		_, err = conn.Write(append(frame, header...))
		t.Ok(err, "ask for an offset")
		head := make([]byte, 8)
		_, err = io.ReadFull(conn, head)
		t.Ok(err, "read an answer")
		body := make([]byte, binary.BigEndian.Uint32(head)-4)
		_, err = io.ReadFull(conn, body)
		t.Ok(err, "read an answer")
		var answer struct {
			Code      int
			ExtFields struct {
				Offset int `json:",string"`
			}
		}
		t.Ok(json.Unmarshal(body[:binary.BigEndian.Uint32(head[4:])&0xffffff], &answer), "decode an answer")
		if answer.Code == success {
			count += answer.ExtFields.Offset
		}
	}
	return count
}

// bodies waits for this many messages and counts their bodies.
func (t *T) bodies(m *member, count int) map[string]int {
	bodies := map[string]int{}
	for got := range count {
		select {
		case msg := <-m.inbox:
			bodies[string(msg.Body)]++
		case <-t.Done():
			t.Fatalf("only %d of %d messages came", got, count)
		}
	}
	return bodies
}

// nothingMore sends one last message to every message queue and checks that it is all that comes.
func (t *T) nothingMore(p rocketmq.Producer, topic string, m *member) {
	last := "last-" + randomHex(4)
	t.probe(topic, last)
	for range topicQueues {
		Equal(t, string(Receive(t, m.inbox, "the last messages").Body), last, "message beyond what was expected")
	}
}

// probe sends one message to every message queue.
func (t *T) probe(topic, body string) {
	p := t.producer(producer.WithQueueSelector(producer.NewManualQueueSelector()))
	defer func() { _ = p.Shutdown() }()
	// The manual selector wants a queue: its broker's name comes with the result of a first send.
	finder := t.producer()
	defer func() { _ = finder.Shutdown() }()
	for id := range topicQueues {
		msg := message(topic, "%s", body)
		msg.Queue = &primitive.MessageQueue{Topic: topic, BrokerName: t.brokerName(finder), QueueId: id}
		t.send(p, msg)
	}
}

var brokerName struct {
	sync.Mutex
	name string
}

// brokerName asks once what the broker is called.
func (t *T) brokerName(p rocketmq.Producer) string {
	brokerName.Lock()
	defer brokerName.Unlock()
	if brokerName.name == "" {
		brokerName.name = t.send(p, message(t.Name("name"), "who are you")).MessageQueue.BrokerName
	}
	return brokerName.name
}

// numbers are the bodies `from` to `to` less one, once each.
func numbers(from, to int) map[string]int {
	bodies := map[string]int{}
	for i := from; i < to; i++ {
		bodies[fmt.Sprint(i)] = 1
	}
	return bodies
}

var errNotStored = errors.New("not stored")

// rocketmqRestartSuite checks what is left after the broker was killed and started again.
func rocketmqRestartSuite(s *Suite) {
	var topic, group, mayComeAgain string
	var positions map[string]primitive.SendResult
	s.Check("rocketmq_before_a_kill_a_group_consumes_the_first_half", func(t *T) {
		p := t.producer()
		topic, group = t.topicWith(p, 40), t.Name("group")
		m := t.oneByOne(group, topic)
		Equal(t, t.bodies(m, 40), numbers(0, 40), "bodies")
		// A consumer that stops in good order tells the broker how far it came.
		mayComeAgain = t.stopAt(m, group, topic, 40)
		positions = map[string]primitive.SendResult{}
		for i := 40; i < 80; i++ {
			positions[fmt.Sprint(i)] = *t.send(p, message(topic, "%d", i))
		}
	})
	s.Await("kill")
	s.Await("start")
	s.Check("rocketmq_after_a_kill_the_group_goes_on_where_it_was", func(t *T) {
		m := t.oneByOne(group, topic)
		for len(positions) > 0 {
			msg := Receive(t, m.inbox, "a message")
			if string(msg.Body) == mayComeAgain {
				mayComeAgain = ""
				continue
			}
			sent, known := positions[string(msg.Body)]
			t.True(known, "message %q is not of the second half, or came twice", msg.Body)
			delete(positions, string(msg.Body))
			Equal(t, msg.MsgId, sent.MsgID, "message id")
			Equal(t, msg.OffsetMsgId, sent.OffsetMsgID, "offset message id")
			Equal(t, msg.Queue.QueueId, sent.MessageQueue.QueueId, "queue")
			Equal(t, msg.QueueOffset, sent.QueueOffset, "queue offset")
		}
		t.nothingMore(t.producer(), topic, m)
	})
	s.Check("rocketmq_after_a_kill_a_new_group_reads_everything", func(t *T) {
		m := t.member(t.Name("group"), topic)
		seen := map[string]int{}
		for want := numbers(0, 80); len(want) > 0; {
			body := string(Receive(t, m.inbox, "a message").Body)
			seen[body]++
			if _, numbered := numbers(0, 80)[body]; numbered {
				Equal(t, seen[body], 1, "deliveries of "+body)
				delete(want, body)
			}
		}
	})
	s.Check("rocketmq_after_a_kill_offsets_go_on_without_a_gap", func(t *T) {
		p := t.producer(producer.WithQueueSelector(producer.NewManualQueueSelector()))
		queue := primitive.MessageQueue{Topic: topic, BrokerName: t.brokerName(t.producer()), QueueId: 1}
		var last int64
		for i := range 3 {
			msg := message(topic, "more")
			msg.Queue = &queue
			offset := t.send(p, msg).QueueOffset
			t.True(i == 0 || offset == last+1, "offset %d follows %d", offset, last)
			last = offset
		}
	})
	s.Check("rocketmq_a_client_that_lived_through_a_kill_goes_on", func(t *T) {
		p := t.producer()
		topic := t.topicWith(p, 4)
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 4)
		t.Await("kill")
		t.Await("start")
		// The clients notice by themselves: sends fail until then, and the group's member comes back.
		sent := map[string]bool{}
		for i := range 20 {
			body := fmt.Sprint("after-", i)
			t.Eventually("a send after the restart", func() bool {
				ctx, cancel := context.WithTimeout(t, 3*time.Second)
				defer cancel()
				result, err := p.SendSync(ctx, message(topic, "%s", body))
				return err == nil && result.Status == primitive.SendOK
			})
			sent[body] = true
		}
		for len(sent) > 0 {
			delete(sent, string(Receive(t, m.inbox, "the messages sent after the restart").Body))
		}
	})
}
