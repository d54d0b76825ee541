package main

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/apache/rocketmq-client-go/v2/consumer"
)

// Far below the 20 s after which clients look by themselves: whoever meets it was told.
const atOnce = 3 * time.Second

func rocketmqGroupChecks(s *Suite) {
	s.Check("rocketmq_two_members_share_the_queues", func(t *T) {
		p, group := t.producer(), t.Name("group")
		topic := t.topicWith(p, 1)
		one := t.member(group, topic)
		two := t.member(group, topic)
		t.shares(topic, []*member{one, two}, []int{2, 2}, 30*time.Second)
		// While queues change hands a message may come to both: the new owner starts where the old one last said
		// that it was. Who has which queue is settled a moment after the shares look right, so rounds are sent
		// until one is shared without a double.
		for deadline := time.Now().Add(30 * time.Second); ; {
			both, want, round := map[string]int{}, map[string]int{}, randomHex(4)+"-"
			for i := range 200 {
				t.send(p, message(topic, "%s%d", round, i))
				want[round+fmt.Sprint(i)] = 1
			}
			for i, m := range []*member{one, two} {
				for share := 0; share < 100; {
					body := string(Receive(t, m.inbox, fmt.Sprintf("the share of member %d", i)).Body)
					if strings.HasPrefix(body, round) {
						both[body]++
						share++
					}
				}
			}
			if maps.Equal(both, want) {
				return
			}
			if time.Now().After(deadline) {
				Equal(t, both, want, "bodies of both members")
			}
		}
	})
	s.Check("rocketmq_members_rebalance_at_once_when_one_comes_or_goes", func(t *T) {
		p, group := t.producer(), t.Name("group")
		topic := t.topicWith(p, 1)
		stays := t.member(group, topic)
		t.shares(topic, []*member{stays}, []int{4}, 30*time.Second)
		// More than once: the clients' own timer could be lucky, but not three times.
		for range 3 {
			comes := t.member(group, topic)
			t.shares(topic, []*member{stays, comes}, []int{2, 2}, atOnce)
			comes.Stop()
			t.shares(topic, []*member{stays}, []int{4}, atOnce)
		}
	})
	s.Check("rocketmq_queue_locks_are_handed_over_by_a_clean_leave", func(t *T) {
		p, group := t.producer(), t.Name("group")
		topic := t.topicWith(p, 1)
		first := t.member(group, topic, consumer.WithConsumerOrder(true))
		t.shares(topic, []*member{first}, []int{4}, 30*time.Second)
		first.Stop()
		// A lock that nobody gave back would last 60 s.
		second := t.member(group, topic, consumer.WithConsumerOrder(true))
		t.shares(topic, []*member{second}, []int{4}, 30*time.Second)
	})
}

// shares sends rounds of one message to every message queue until the members get them as wanted.
func (t *T) shares(topic string, members []*member, want []int, within time.Duration) {
	deadline := time.Now().Add(within)
	for {
		round := "round-" + randomHex(4)
		t.probe(topic, round)
		got := make([]int, len(members))
		for total := 0; total < topicQueues; {
			before := total
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
			if total == before {
				if time.Now().After(deadline) {
					t.Fatalf("after %v only %v of %d probes came", within, got, topicQueues)
				}
				time.Sleep(time.Millisecond) // polling several inboxes
			}
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v the members have %v queues, want %v", within, got, want)
		}
	}
}
