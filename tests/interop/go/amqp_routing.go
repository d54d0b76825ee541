package main

import (
	"fmt"
	"sort"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

func amqpRoutingChecks(s *Suite) {
	amqpCheck(s, "default_exchange_routes_to_the_queue_named_by_the_key", func(t *amqpT) {
		one, two := t.durableQueue(), t.durableQueue()
		t.publish("", two, transient("two"))
		t.publish("", one, transient("one"))
		Equal(t.T, string(t.getSoon(one).Body), "one", "body")
		Equal(t.T, string(t.getSoon(two).Body), "two", "body")
	})
	amqpCheck(s, "direct_exchange_compares_keys", func(t *amqpT) {
		t.routes(t.exchange("direct"), map[string][]string{
			"a":      {"a", "A"},
			"b":      {"b"},
			"a-or-b": {"a", "b"},
			"empty":  {""},
			"dots":   {"x.y"},
		}, map[string]string{
			"a":   "a a-or-b",
			"b":   "a-or-b b",
			"A":   "a",
			"":    "empty",
			"x.y": "dots",
			"x":   "",
		})
	})
	amqpCheck(s, "fanout_exchange_ignores_keys", func(t *amqpT) {
		t.routes(t.exchange("fanout"), map[string][]string{"one": {""}, "two": {"some.key"}}, map[string]string{
			"":         "one two",
			"some.key": "one two",
			"other":    "one two",
		})
	})
	amqpCheck(s, "topic_exchange_matches_patterns", func(t *amqpT) {
		t.routes(t.exchange("topic"), map[string][]string{
			"all":         {"#"},
			"one word":    {"*"},
			"a.*":         {"a.*"},
			"a.#":         {"a.#"},
			"*.b.#":       {"*.b.#"},
			"#.c":         {"#.c"},
			"a.#.c":       {"a.#.c"},
			"literal":     {"a.b.c"},
			"both match":  {"a.b.c", "a.b.*"},
			"empty words": {"a..c"},
		}, map[string]string{
			"":        "all",
			"a":       "a.# all one word",
			"a.b":     "*.b.# a.# a.* all",
			"a.c":     "#.c a.# a.#.c a.* all",
			"a.b.c":   "#.c *.b.# a.# a.#.c all both match literal",
			"x.b":     "*.b.# all",
			"x.y":     "all",
			"a..c":    "#.c a.# a.#.c all empty words",
			"c":       "#.c all one word",
			"a.x.y.c": "#.c a.# a.#.c all",
		})
	})
	amqpCheck(s, "headers_exchange_matches_all_or_any", func(t *amqpT) {
		exchange := t.exchange("headers")
		bindings := map[string]amqp.Table{
			"all":      {"x-match": "all", "type": "report", "pages": int32(3)},
			"default":  {"type": "report", "urgent": true},
			"any":      {"x-match": "any", "type": "report", "pages": int32(3)},
			"presence": {"x-match": "all", "pages": nil},
		}
		queues := map[string]string{}
		for name, args := range bindings {
			queues[name] = t.queue()
			t.bind(queues[name], "", exchange, args)
		}
		for _, row := range []struct {
			headers amqp.Table
			want    string
		}{
			{amqp.Table{"type": "report", "pages": int32(3)}, "all any presence"},
			{amqp.Table{"type": "report", "pages": int64(3)}, "all any presence"},
			{amqp.Table{"type": "report", "pages": int32(4)}, "any presence"},
			{amqp.Table{"type": "letter", "pages": "3"}, "presence"},
			{amqp.Table{"type": "report", "urgent": true}, "any default"},
			{amqp.Table{"type": "report", "urgent": true, "other": "x"}, "any default"},
			{amqp.Table{"type": "letter"}, ""},
			{nil, ""},
		} {
			marker := randomHex(4)
			t.publish(exchange, "ignored", amqp.Publishing{Headers: row.headers, Body: []byte(marker)})
			Equal(t.T, t.whoGot(queues, marker), row.want, fmt.Sprintf("queues for headers %v", row.headers))
		}
	})
	amqpCheck(s, "amq_topic_and_amq_direct_route", func(t *amqpT) {
		queue := t.queue()
		key := t.Name("key")
		t.bind(queue, key+".#", "amq.topic", nil)
		t.bind(queue, key, "amq.direct", nil)
		t.publish("amq.topic", key+".x.y", transient("by topic"))
		Equal(t.T, string(t.getSoon(queue).Body), "by topic", "body")
		t.publish("amq.direct", key, transient("by direct"))
		message := t.getSoon(queue)
		Equal(t.T, string(message.Body), "by direct", "body")
		Equal(t.T, message.Exchange+" "+message.RoutingKey, "amq.direct "+key, "where it says it came from")
	})
	amqpCheck(s, "a_queue_gets_one_copy_whatever_matched", func(t *amqpT) {
		exchange, queue := t.exchange("topic"), t.queue()
		for _, key := range []string{"#", "a.*", "a.b", "*.b"} {
			t.bind(queue, key, exchange, nil)
		}
		t.publish(exchange, "a.b", transient("x"))
		t.publish(exchange, "a.b", transient("y"))
		t.readyBecomes(queue, 2)
		Equal(t.T, string(t.get(queue, true).Body)+string(t.get(queue, true).Body), "xy", "bodies")
	})
	amqpCheck(s, "exchanges_can_be_bound_to_exchanges", func(t *amqpT) {
		front, back, queue := t.exchange("topic"), t.exchange("fanout"), t.queue()
		t.Ok(t.ch.ExchangeBind(back, "logs.#", front, false, nil), "bind the exchanges")
		t.bind(queue, "", back, nil)
		t.publish(front, "other", transient("not this"))
		t.publish(front, "logs.error", transient("this"))
		message := t.getSoon(queue)
		Equal(t.T, string(message.Body), "this", "body")
		Equal(t.T, message.Exchange, front, "the exchange it was published to")
		t.Ok(t.ch.ExchangeUnbind(back, "logs.#", front, false, nil), "unbind the exchanges")
		t.publish(front, "logs.error", transient("not this either"))
		t.publish(back, "", transient("last"))
		Equal(t.T, string(t.getSoon(queue).Body), "last", "body")
	})
	amqpCheck(s, "unbind_stops_routing_and_keeps_what_is_queued", func(t *amqpT) {
		exchange, queue := t.exchange("direct"), t.queue()
		t.bind(queue, "k", exchange, nil)
		t.publish(exchange, "k", transient("before"))
		t.Ok(t.ch.QueueUnbind(queue, "k", exchange, nil), "unbind")
		t.Ok(t.ch.QueueUnbind(queue, "k", exchange, nil), "unbind again")
		t.publish(exchange, "k", transient("between"))
		t.bind(queue, "k", exchange, nil)
		t.publish(exchange, "k", transient("after"))
		t.readyBecomes(queue, 2)
		Equal(t.T, string(t.get(queue, true).Body), "before", "first")
		Equal(t.T, string(t.get(queue, true).Body), "after", "second")
	})
	amqpCheck(s, "internal_exchange_takes_nothing_from_clients", func(t *amqpT) {
		internal := t.Name("internal")
		t.Ok(t.ch.ExchangeDeclare(internal, "fanout", false, true, true, false, nil), "declare")
		front, queue := t.exchange("fanout"), t.queue()
		t.Ok(t.ch.ExchangeBind(internal, "", front, false, nil), "bind the exchanges")
		t.bind(queue, "", internal, nil)
		t.closesChannel(403, "publish to it", func(ch *amqp.Channel) error {
			return ch.Publish(internal, "", false, false, transient("x"))
		})
		t.publish(front, "", transient("by the front"))
		Equal(t.T, string(t.getSoon(queue).Body), "by the front", "body")
	})
}

// routes binds a queue for each name with all its keys, publishes with each key of want and checks which
// queues got it (names sorted, separated by blanks).
func (t *amqpT) routes(exchange string, bindings map[string][]string, want map[string]string) {
	queues := map[string]string{}
	for name, keys := range bindings {
		queues[name] = t.queue()
		for _, key := range keys {
			t.bind(queues[name], key, exchange, nil)
		}
	}
	for key, names := range want {
		marker := randomHex(4)
		t.publish(exchange, key, transient(marker))
		Equal(t.T, t.whoGot(queues, marker), names, fmt.Sprintf("queues for key %q", key))
	}
}

// whoGot empties the queues and names those that held exactly one message, the marker.
func (t *amqpT) whoGot(queues map[string]string, marker string) string {
	var names []string
	for name, queue := range queues {
		for {
			// A get on the channel of the publish comes after it: routing is done by then.
			message, ok, err := t.ch.Get(queue, true)
			t.Ok(err, "get")
			if !ok {
				break
			}
			Equal(t.T, string(message.Body), marker, "body in queue "+name)
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return strings.Join(names, " ")
}
