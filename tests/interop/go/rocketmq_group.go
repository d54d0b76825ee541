package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

func rocketmqGroupChecks(s *Suite) {
	s.Check("rocketmq_two_members_share_the_queues", func(t *T) {
		p, group := t.producer(), t.Name("group")
		topic := t.topicWith(p, 1)
		one := t.member(group, topic)
		two := t.member(group, topic)
		t.shares(topic, []*member{one, two}, []int{2, 2})
		// While queues change hands a message may come to both: the new owner starts where the old one last said
		// that it was. Who has which queue is settled a moment after the shares look right, so rounds are sent
		// until one is shared without a double; what never settles ends with the check's time.
		for unsettled := "none"; unsettled != ""; {
			unsettled = t.round(p, topic, one, two, unsettled)
		}
	})
	s.Check("rocketmq_members_rebalance_at_once_when_one_comes_or_goes", func(t *T) {
		p, group := t.producer(), t.Name("group")
		topic := t.topicWith(p, 1)
		stays := t.member(group, topic)
		t.shares(topic, []*member{stays}, []int{4})
		// The clients look by themselves every 20 s. Who is not told waits for that, and the second and third time
		// for a whole round of it: that makes 40 s at least, if only one of the two kinds is not told.
		t.InTime(func() (late string) {
			start := time.Now()
			for range 3 {
				comes := t.member(group, topic)
				t.shares(topic, []*member{stays, comes}, []int{2, 2})
				comes.Stop()
				t.shares(topic, []*member{stays}, []int{4})
			}
			if took := time.Since(start); took >= 35*time.Second {
				return fmt.Sprintf("six changes took %v", took)
			}
			return ""
		})
	})
	s.Check("rocketmq_queue_locks_are_handed_over_by_a_clean_leave", func(t *T) {
		t.InTime(func() (late string) {
			p, group := t.producer(), t.Name("group")
			topic := t.topicWith(p, 1)
			start := time.Now()
			first := t.member(group, topic, consumer.WithConsumerOrder(true))
			t.shares(topic, []*member{first}, []int{4})
			first.Stop()
			second := t.member(group, topic, consumer.WithConsumerOrder(true))
			t.shares(topic, []*member{second}, []int{4})
			// A lock that nobody gave back would last 60 s.
			if took := time.Since(start); took >= time.Minute {
				return fmt.Sprintf("the second member had all queues after %v", took)
			}
			return ""
		})
	})
}

// round sends messages and takes them from two members; it says what is wrong when not each has a half of them,
// once. `before` is what was wrong last time.
func (t *T) round(p rocketmq.Producer, topic string, one, two *member, before string) (problem string) {
	const count = 200
	got, share, prefix := map[string]int{}, [2]int{}, randomHex(4)+"-"
	for i := range count {
		t.send(p, message(topic, "%s%d", prefix, i))
	}
	for len(got) < count {
		var msg *primitive.MessageExt
		var who int
		select {
		case msg = <-one.inbox:
		case msg = <-two.inbox:
			who = 1
		case <-t.Done():
			t.Fatalf("only %d of %d messages came; in the round before: %s", len(got), count, before)
		}
		if body := string(msg.Body); strings.HasPrefix(body, prefix) {
			got[body]++
			share[who]++
		}
	}
	if share != [2]int{count / 2, count / 2} {
		return fmt.Sprintf("of %d messages the members got %v", count, share)
	}
	return ""
}

// shares sends rounds of one message to every message queue until the members get them as wanted.
func (t *T) shares(topic string, members []*member, want []int) {
	for got := []int(nil); fmt.Sprint(got) != fmt.Sprint(want); {
		round := "round-" + randomHex(4)
		t.probe(topic, round)
		before := got
		got = make([]int, len(members))
		for total := 0; total < topicQueues; {
			last := total
			for i, m := range members {
				select {
				case msg := <-m.inbox:
					if string(msg.Body) == round {
						got[i]++
						total++
					}
				default:
				}
			}
			if total == last {
				t.True(t.Err() == nil, "of %d probes %v came, before that %v, want %v", topicQueues, got, before, want)
				time.Sleep(time.Millisecond) // polling several inboxes
			}
		}
	}
}
