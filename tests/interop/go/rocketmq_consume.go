package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

func rocketmqConsumeChecks(s *Suite) {
	s.Check("rocketmq_a_group_reads_every_message_once", func(t *T) {
		p := t.producer()
		topic := t.topicWith(p, 200)
		m := t.member(t.Name("group"), topic)
		Equal(t, t.bodies(m, 200), numbers(0, 200), "bodies of what was there")
		for i := 200; i < 400; i++ {
			t.send(p, message(topic, "%d", i))
		}
		Equal(t, t.bodies(m, 200), numbers(200, 400), "bodies of what came")
		t.nothingMore(p, topic, m)
	})
	s.Check("rocketmq_a_waiting_pull_is_answered_at_once", func(t *T) {
		p := t.producer()
		topic := t.topicWith(p, 1)
		m := t.member(t.Name("group"), topic)
		t.bodies(m, 1)
		t.probe(topic, "warm up")
		t.bodies(m, topicQueues)
		// A pull that is not woken waits for 20 s; of these times half may be the machine's.
		var times []time.Duration
		for range 21 {
			start := time.Now()
			t.send(p, message(topic, "now"))
			t.bodies(m, 1)
			times = append(times, time.Since(start))
		}
		slices.Sort(times)
		t.True(times[10] < time.Second, "the messages took %v", times)
	})
	s.Check("rocketmq_groups_are_independent", func(t *T) {
		p := t.producer()
		topic := t.topicWith(p, 20)
		one, two := t.member(t.Name("one"), topic), t.member(t.Name("two"), topic)
		Equal(t, t.bodies(one, 20), numbers(0, 20), "bodies of group one")
		Equal(t, t.bodies(two, 20), numbers(0, 20), "bodies of group two")
	})
	s.Check("rocketmq_tag_expressions_select", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		for i := range 40 {
			msg := message(topic, "%d", i)
			if tag := []string{"a", "b", "c", ""}[i%4]; tag != "" {
				msg.WithTag(tag)
			}
			t.send(p, msg)
		}
		for expression, tags := range map[string]string{"a || b": "ab", "b": "b", "*": "abc-", "c||a": "ac", "": "abc-"} {
			selector := consumer.MessageSelector{Type: consumer.TAG, Expression: expression}
			m := t.selecting(t.Name("group"), topic, selector)
			want := 10 * len(tags)
			for range want {
				msg := Receive(t, m.inbox, "a message for "+expression)
				tag := msg.GetTags()
				if tag == "" {
					tag = "-"
				}
				t.True(strings.Contains(tags, tag), "%q got tag %q", expression, tag)
			}
			m.Stop()
		}
	})
	s.Check("rocketmq_sql_expressions_select", func(t *T) {
		p, topic := t.producer(), t.Name("topic")
		colours := []string{"red", "blue", ""}
		send := func(from, to int) {
			for i := from; i < to; i++ {
				msg := message(topic, "%d", i).WithTag(string(rune('a' + i%2)))
				msg.WithProperty("n", fmt.Sprint(i))
				if colour := colours[i%3]; colour != "" {
					msg.WithProperty("colour", colour)
				}
				t.send(p, msg)
			}
		}
		send(0, 30)
		for expression, wanted := range map[string]func(i int) bool{
			"n between 5 and 8":                              func(i int) bool { return i >= 5 && i <= 8 },
			"colour = 'red' AND n < 20":                      func(i int) bool { return i%3 == 0 && i < 20 },
			"colour is null or TAGS in ('b', 'c')":           func(i int) bool { return i%3 == 2 || i%2 == 1 },
			"colour is not null and not (colour = 'red')":    func(i int) bool { return i%3 == 1 },
			"n >= 10.0 and colour contains 'lu' and n <> 13": func(i int) bool { return i >= 10 && i%3 == 1 && i != 13 },
		} {
			m := t.selecting(t.Name("group"), topic, consumer.MessageSelector{Type: consumer.SQL92, Expression: expression})
			want := map[string]int{}
			for i := range 30 {
				if wanted(i) {
					want[fmt.Sprint(i)] = 1
				}
			}
			Equal(t, t.bodies(m, len(want)), want, "bodies for "+expression)
			m.Stop()
		}
		waits := t.selecting(t.Name("group"), topic, consumer.MessageSelector{Type: consumer.SQL92, Expression: "n = 33"})
		send(30, 36)
		Equal(t, string(Receive(t, waits.inbox, "the message that matches").Body), "33", "body")
	})
	s.Check("rocketmq_a_selective_group_still_moves_on", func(t *T) {
		p, topic, group := t.producer(), t.Name("topic"), t.Name("group")
		for i := range 100 {
			t.send(p, message(topic, "%d", i).WithTag("unwanted"))
		}
		m := t.selecting(group, topic, consumer.MessageSelector{Type: consumer.TAG, Expression: "wanted"})
		t.send(p, message(topic, "this").WithTag("wanted"))
		Equal(t, string(Receive(t, m.inbox, "the wanted message").Body), "this", "body")
	})
	s.Check("rocketmq_offsets_are_kept_over_a_restart_of_the_consumer", func(t *T) {
		p, group := t.producer(), t.Name("group")
		topic := t.topicWith(p, 20)
		first := t.oneByOne(group, topic)
		Equal(t, t.bodies(first, 20), numbers(0, 20), "bodies of the first life")
		last := t.stopAt(first, group, topic, 20)
		for i := 20; i < 40; i++ {
			t.send(p, message(topic, "%d", i))
		}
		// One by one again: what may come again comes before what is new.
		second := t.oneByOne(group, topic)
		bodies := t.bodies(second, 20)
		if bodies[last] == 1 {
			delete(bodies, last)
			bodies[string(Receive(t, second.inbox, "a message").Body)]++
		}
		Equal(t, bodies, numbers(20, 40), "bodies of the second life")
		t.nothingMore(p, topic, second)
	})
	s.Check("rocketmq_from_the_last_offset_gets_what_comes_after", func(t *T) {
		p := t.producer()
		topic := t.topicWith(p, 4)
		m := t.member(t.Name("group"), topic, consumer.WithConsumeFromWhere(consumer.ConsumeFromLastOffset))
		// What is young may come too: a broker answers 0 for a new group of a young topic.
		seen := map[string]int{}
		for i := range 20 {
			t.send(p, message(topic, "after-%d", i))
		}
		for after := 0; after < 20; {
			body := string(Receive(t, m.inbox, "a message").Body)
			seen[body]++
			Equal(t, seen[body], 1, "deliveries of "+body)
			if strings.HasPrefix(body, "after-") {
				after++
			}
		}
	})
	s.Check("rocketmq_broadcasting_gives_everything_to_everyone", func(t *T) {
		p, group := t.producer(), t.Name("group")
		topic := t.topicWith(p, 20)
		broadcasting := consumer.WithConsumerModel(consumer.BroadCasting)
		one, two := t.member(group, topic, broadcasting), t.member(group, topic, broadcasting)
		for i := 20; i < 40; i++ {
			t.send(p, message(topic, "%d", i))
		}
		Equal(t, t.bodies(one, 40), numbers(0, 40), "bodies of one")
		Equal(t, t.bodies(two, 40), numbers(0, 40), "bodies of two")
	})
	s.Check("rocketmq_orderly_consumption_keeps_the_order_of_a_sharding_key", func(t *T) {
		const keys, each = 12, 40
		p, topic := t.producer(producer.WithQueueSelector(producer.NewHashQueueSelector())), t.Name("topic")
		for i := range each {
			for key := range keys {
				t.send(p, message(topic, "%d", i).WithShardingKey(fmt.Sprint("key-", key)))
			}
		}
		var mutex sync.Mutex
		next := map[string]int{}
		busy := map[int]bool{}
		total := 0
		problems := make(chan string, keys*each)
		all := make(chan struct{})
		t.memberWith(&member{}, t.Name("group"), topic, consumer.MessageSelector{}, func(msg *primitive.MessageExt) {
			mutex.Lock()
			queue, key := msg.Queue.QueueId, msg.GetShardingKey()
			if busy[queue] {
				problems <- fmt.Sprintf("queue %d is consumed twice at a time", queue)
			}
			busy[queue] = true
			if string(msg.Body) != fmt.Sprint(next[key]) {
				problems <- fmt.Sprintf("%s: got %s, want %d", key, msg.Body, next[key])
			}
			next[key]++
			if total++; total == keys*each {
				close(all)
			}
			mutex.Unlock()
			time.Sleep(time.Millisecond) // work, so that a second consumer of the queue would show
			mutex.Lock()
			busy[queue] = false
			mutex.Unlock()
		}, consumer.WithConsumerOrder(true))
		select {
		case problem := <-problems:
			t.Fatalf("%s", problem)
		case <-all:
		case <-t.Done():
			t.Fatalf("only %d of %d messages came", total, keys*each)
		}
		t.True(len(problems) == 0, "order was broken")
	})
}
