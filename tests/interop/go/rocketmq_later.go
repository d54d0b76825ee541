package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

// What comes as late as this is late. Nothing may come early.
const lateBy = 1500 * time.Millisecond

func rocketmqLaterSuite(s *Suite) {
	s.Check("rocketmq_delay_level_2_comes_after_5_seconds", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		t.send(p, message(topic, "at once"))
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 1)
		t.InTime(func() (late string) {
			before := time.Now()
			t.send(p, message(topic, "delayed").WithDelayTimeLevel(2))
			t.send(p, message(topic, "overtakes it"))
			first, second := Receive(t, m.inbox, "a message"), Receive(t, m.inbox, "a message")
			late = t.late(time.Since(before), 5*time.Second)
			if string(first.Body) == "delayed" {
				late = "what was sent at once came later"
				first, second = second, first
			}
			Equal(t, string(first.Body)+", "+string(second.Body), "overtakes it, delayed", "bodies")
			Equal(t, second.GetProperty("REAL_TOPIC"), topic, "property REAL_TOPIC")
			Equal(t, second.GetProperty("DELAY"), "", "property DELAY")
			return late
		})
	})
	s.Check("rocketmq_times_are_kept_to_the_millisecond_and_none_is_early", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		t.send(p, message(topic, "first"))
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 1)
		t.InTime(func() (late string) {
			wanted := map[string]time.Time{}
			for i := range 20 {
				due := time.Now().Add(time.Duration(1500+i*37) * time.Millisecond)
				msg := message(topic, "%d", i)
				switch i % 2 {
				case 0:
					msg.WithProperty("TIMER_DELIVER_MS", fmt.Sprint(due.UnixMilli()))
				default:
					msg.WithProperty("TIMER_DELAY_MS", fmt.Sprint(time.Until(due).Milliseconds()+1))
				}
				wanted[fmt.Sprint(i)] = due.Truncate(time.Millisecond)
				t.send(p, msg)
			}
			for range 20 {
				msg := Receive(t, m.inbox, "a delayed message")
				due := wanted[string(msg.Body)]
				stored := time.UnixMilli(msg.StoreTimestamp)
				t.True(!stored.Before(due), "%s is %v early", msg.Body, due.Sub(stored))
				if stored.Sub(due) >= 500*time.Millisecond {
					late = fmt.Sprintf("%s is %v late", msg.Body, stored.Sub(due))
				}
			}
			return late
		})
	})
	s.Check("rocketmq_a_delay_beyond_the_limit_is_refused", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		msg := message(topic, "too late")
		msg.WithProperty("TIMER_DELAY_SEC", fmt.Sprint(4*24*3600))
		_, err := p.SendSync(t, msg)
		t.True(err != nil, "a message to be delivered in four days was taken")
		t.True(strings.Contains(err.Error(), "delay"), "the error does not say why: %v", err)
	})
	rocketmqTransactionChecks(s)
	rocketmqRetryChecks(s)
}

// late says whether something took much longer than wanted. It must not have taken less.
func (t *T) late(took, wanted time.Duration) string {
	t.True(took >= wanted, "it took only %v, not %v", took, wanted)
	if took < wanted+lateBy {
		return ""
	}
	return fmt.Sprintf("it took %v, not %v", took, wanted)
}

// transactions answers as it is told.
type transactions struct {
	mutex   sync.Mutex
	execute primitive.LocalTransactionState
	check   primitive.LocalTransactionState
	checked chan *primitive.MessageExt
}

func (l *transactions) ExecuteLocalTransaction(*primitive.Message) primitive.LocalTransactionState {
	return l.execute
}

func (l *transactions) CheckLocalTransaction(msg *primitive.MessageExt) primitive.LocalTransactionState {
	l.checked <- msg
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.check
}

func (t *T) transactional(group string, execute, check primitive.LocalTransactionState) (rocketmq.TransactionProducer, *transactions) {
	listener := &transactions{execute: execute, check: check, checked: make(chan *primitive.MessageExt, 100)}
	p, err := rocketmq.NewTransactionProducer(listener, producer.WithNsResolver(t.nameServer()),
		producer.WithInstanceName(t.Name("producer")), producer.WithGroupName(group))
	t.Ok(err, "make a transaction producer")
	t.Ok(p.Start(), "start the transaction producer")
	t.Cleanup(func() { _ = p.Shutdown() })
	return p, listener
}

func rocketmqTransactionChecks(s *Suite) {
	const commit, rollback, unknown = primitive.CommitMessageState, primitive.RollbackMessageState, primitive.UnknowState
	s.Check("rocketmq_a_transaction_is_committed_or_rolled_back", func(t *T) {
		topic := t.Name("topic")
		t.send(t.producer(), message(topic, "first"))
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 1)
		for _, state := range []primitive.LocalTransactionState{rollback, commit} {
			p, _ := t.transactional(t.Name("producers"), state, unknown)
			result, err := p.SendMessageInTransaction(t, message(topic, "%d", state))
			t.Ok(err, "send in a transaction")
			Equal(t, result.Status, primitive.SendOK, "send status")
		}
		msg := Receive(t, m.inbox, "the committed message")
		Equal(t, string(msg.Body), fmt.Sprint(int(commit)), "body")
		Equal(t, msg.SysFlag&0xC, int32(8), "transaction bits of the sysFlag")
		Equal(t, msg.GetProperty("TRAN_MSG"), "", "property TRAN_MSG")
		t.nothingMore(t.producer(), topic, m)
	})
	s.Check("rocketmq_an_unknown_transaction_is_committed_by_its_check", func(t *T) {
		topic := t.Name("topic")
		t.send(t.producer(), message(topic, "first"))
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 1)
		p, listener := t.transactional(t.Name("producers"), unknown, commit)
		t.InTime(func() (late string) {
			before := time.Now()
			_, err := p.SendMessageInTransaction(t, message(topic, "checked"))
			t.Ok(err, "send in a transaction")
			t.probe(topic, "overtakes it")
			bodies := map[string]int{}
			for range topicQueues {
				bodies[string(Receive(t, m.inbox, "a message").Body)]++
				t.True(bodies["checked"] == 0 || len(listener.checked) > 0, "it came before its check")
			}
			half := Receive(t, listener.checked, "the check")
			late = t.late(time.Since(before), 6*time.Second)
			Equal(t, string(half.Body)+" "+half.Topic, "checked "+topic, "half message")
			bodies[string(Receive(t, m.inbox, "the last message").Body)]++
			Equal(t, bodies, map[string]int{"overtakes it": topicQueues, "checked": 1}, "bodies")
			return late
		})
	})
	s.Check("rocketmq_another_member_is_checked_when_the_producer_is_killed", func(t *T) {
		topic, group := t.Name("topic"), t.Name("producers")
		t.send(t.producer(), message(topic, "first"))
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 1)
		// Only a producer that has sent something knows a broker to be a member at.
		other, listener := t.transactional(group, commit, commit)
		_, err := other.SendMessageInTransaction(t, message(topic, "its own"))
		t.Ok(err, "send in a transaction")
		t.bodies(m, 1)
		// A process of its own, so that it can be killed with its half message open.
		lines := t.program("half-producer", group, topic)
		Equal(t, Receive(t, lines, "the half message of the other process"), "sent", "line")
		for range lines {
			// It has killed itself.
		}
		half := Receive(t, listener.checked, "the check")
		Equal(t, string(half.Body), "orphan", "half message")
		Equal(t, string(Receive(t, m.inbox, "the committed message").Body), "orphan", "body")
	})
}

// halfProducer sends a half message, says so, and dies in the middle of its local transaction.
func halfProducer(s *Suite) {
	p, err := rocketmq.NewTransactionProducer(dying{},
		producer.WithNsResolver(primitive.NewPassthroughResolver([]string{s.at.nameServer})),
		producer.WithInstanceName("dying"), producer.WithGroupName(s.args[0]))
	must(err)
	must(p.Start())
	_, err = p.SendMessageInTransaction(context.Background(), primitive.NewMessage(s.args[1], []byte("orphan")))
	must(err)
}

type dying struct{}

func (dying) ExecuteLocalTransaction(*primitive.Message) primitive.LocalTransactionState {
	fmt.Println("sent")
	self, _ := os.FindProcess(os.Getpid())
	_ = self.Kill()
	select {}
}

func (dying) CheckLocalTransaction(*primitive.MessageExt) primitive.LocalTransactionState {
	return primitive.UnknowState
}

// attempt is one try at consuming a message.
type attempt struct {
	at    time.Time
	times int32
	topic string
}

func rocketmqRetryChecks(s *Suite) {
	s.Check("rocketmq_a_failing_consumer_gets_it_again_later_and_then_it_is_dead", func(t *T) {
		t.InTime(func() (late string) {
			topic, group := t.Name("topic"), t.Name("group")
			p := t.producer()
			sent := t.send(p, message(topic, "bad").WithTag("tag"))
			t.send(p, message("%DLQ%"+group, "before"))
			dead := t.member(t.Name("readers"), "%DLQ%"+group)
			t.bodies(dead, 1)
			attempts := make(chan attempt, 10)
			c, err := rocketmq.NewPushConsumer(consumer.WithNsResolver(t.nameServer()), consumer.WithGroupName(group),
				consumer.WithInstance(t.Name("member")), consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
				consumer.WithMaxReconsumeTimes(2))
			t.Ok(err, "make a push consumer")
			t.Ok(c.Subscribe(topic, consumer.MessageSelector{}, func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
				for _, msg := range messages {
					attempts <- attempt{time.Now(), msg.ReconsumeTimes, msg.Topic}
					if msg.ReconsumeTimes > 0 {
						// The first time as the broker has it, then as fast as it goes.
						concurrently, _ := primitive.GetConcurrentlyCtx(ctx)
						concurrently.DelayLevelWhenNextConsume = 1
					}
				}
				return consumer.ConsumeRetryLater, nil
			}), "subscribe")
			t.Ok(c.Start(), "start the push consumer")
			t.Cleanup(func() { _ = c.Shutdown() })
			first := Receive(t, attempts, "the first attempt")
			second := Receive(t, attempts, "the second attempt")
			third := Receive(t, attempts, "the third attempt")
			Equal(t, fmt.Sprint(first.times, second.times, third.times), "0 1 2", "counts of attempts")
			Equal(t, third.topic, topic, "topic as the consumer sees it")
			msg := Receive(t, dead.inbox, "the dead letter")
			Equal(t, string(msg.Body)+" "+msg.GetTags(), "bad tag", "dead letter")
			Equal(t, msg.GetProperty("ORIGIN_MESSAGE_ID"), sent.OffsetMsgID, "property ORIGIN_MESSAGE_ID")
			Equal(t, msg.GetProperty("RETRY_TOPIC"), topic, "property RETRY_TOPIC")
			Equal(t, msg.ReconsumeTimes, int32(3), "reconsume times")
			Equal(t, len(attempts), 0, "attempts after the last")
			late = t.late(second.at.Sub(first.at), 10*time.Second)
			return late + t.late(third.at.Sub(second.at), time.Second)
		})
	})
}

// rocketmqLaterRestartSuite checks that what waits is kept when the broker is killed.
func rocketmqLaterRestartSuite(s *Suite) {
	const delayed = 100
	var topic, group string
	var before time.Time
	s.Check("rocketmq_before_a_kill_messages_are_delayed_and_a_transaction_is_open", func(t *T) {
		p := t.producer()
		topic, group = t.Name("topic"), t.Name("producers")
		t.send(p, message(topic, "first"))
		before = time.Now().Truncate(time.Millisecond)
		for i := range delayed {
			t.send(p, message(topic, "%d", i).WithDelayTimeLevel(3))
		}
		open, _ := t.transactional(group, primitive.UnknowState, primitive.UnknowState)
		_, err := open.SendMessageInTransaction(t, message(topic, "half"))
		t.Ok(err, "send in a transaction")
	})
	s.Await("kill")
	s.Await("start")
	s.Check("rocketmq_after_a_kill_delayed_messages_come_in_time_and_once", func(t *T) {
		m := t.member(t.Name("group"), topic)
		bodies := map[string]int{}
		for range 1 + delayed {
			msg := Receive(t, m.inbox, "a message")
			bodies[string(msg.Body)]++
			took := time.UnixMilli(msg.StoreTimestamp).Sub(before)
			t.True(took >= 10*time.Second || string(msg.Body) == "first", "%s came after %v", msg.Body, took)
		}
		want := numbers(0, delayed)
		want["first"] = 1
		Equal(t, bodies, want, "bodies")
	})
	s.Check("rocketmq_after_a_kill_an_open_transaction_is_checked", func(t *T) {
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 1+delayed)
		other, listener := t.transactional(group, primitive.CommitMessageState, primitive.CommitMessageState)
		_, err := other.SendMessageInTransaction(t, message(topic, "its own"))
		t.Ok(err, "send in a transaction")
		Equal(t, string(Receive(t, listener.checked, "the check").Body), "half", "half message")
		// The check may come before the end of its own transaction.
		Equal(t, t.bodies(m, 2), map[string]int{"its own": 1, "half": 1}, "bodies")
	})
}
