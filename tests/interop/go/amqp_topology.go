package main

import (
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

func amqpTopologyChecks(s *Suite) {
	amqpCheck(s, "predeclared_exchanges_exist", func(t *amqpT) {
		for name, kind := range map[string]string{"amq.direct": "direct", "amq.fanout": "fanout",
			"amq.topic": "topic", "amq.headers": "headers", "amq.match": "headers"} {
			t.Ok(t.ch.ExchangeDeclarePassive(name, kind, true, false, false, false, nil), name)
			t.Ok(t.ch.ExchangeDeclare(name, kind, true, false, false, false, nil), "declare "+name+" as it is")
		}
	})
	amqpCheck(s, "declaring_again_alike_changes_nothing", func(t *amqpT) {
		exchange, queue := t.exchange("topic"), t.durableQueue()
		t.bind(queue, "k", exchange, nil)
		t.Ok(t.ch.ExchangeDeclare(exchange, "topic", true, false, false, false, nil), "declare the exchange again")
		_, err := t.ch.QueueDeclare(queue, true, false, false, false, nil)
		t.Ok(err, "declare the queue again")
		t.bind(queue, "k", exchange, nil)
		t.publish(exchange, "k", transient("once"))
		t.readyBecomes(queue, 1)
		Equal(t.T, string(t.get(queue, true).Body), "once", "body")
		Equal(t.T, t.ready(queue), 0, "messages left")
	})
	amqpCheck(s, "declaring_without_waiting_works", func(t *amqpT) {
		exchange, queue := t.Name("nowait"), t.Name("nowait")
		t.Ok(t.ch.ExchangeDeclare(exchange, "fanout", false, true, false, true, nil), "declare the exchange")
		_, err := t.ch.QueueDeclare(queue, false, false, true, true, nil)
		t.Ok(err, "declare the queue")
		t.Ok(t.ch.QueueBind(queue, "", exchange, true, nil), "bind")
		t.publish(exchange, "", transient("hello"))
		Equal(t.T, string(t.getSoon(queue).Body), "hello", "body")
	})
	amqpCheck(s, "passive_declare_counts_messages_and_consumers", func(t *amqpT) {
		queue := t.durableQueue()
		for range 3 {
			t.publish("", queue, transient("x"))
		}
		t.readyBecomes(queue, 3)
		t.Ok(t.ch.Qos(1, 0, false), "qos")
		Receive(t.T, t.consume(queue, false), "a delivery")
		state, err := t.ch.QueueDeclarePassive(queue, false, false, false, false, nil)
		t.Ok(err, "passive declare")
		Equal(t.T, state, amqp.Queue{Name: queue, Messages: 2, Consumers: 1}, "the queue's state")
	})
	amqpCheck(s, "passive_declare_asks_only_for_existence", func(t *amqpT) {
		queue := t.durableQueue()
		_, err := t.ch.QueueDeclarePassive(queue, false, true, false, false, amqp.Table{"x-max-length": int32(5)})
		t.Ok(err, "passive declare with other arguments")
	})
	amqpCheck(s, "server_named_queues_have_names_of_their_own", func(t *amqpT) {
		one, two := t.queue(), t.queue()
		t.True(strings.HasPrefix(one, "amq.gen-"), "the name is %q", one)
		t.True(one != two, "both are named %q", one)
		t.publish("", two, transient("to two"))
		Equal(t.T, string(t.getSoon(two).Body), "to two", "body")
		Equal(t.T, t.ready(one), 0, "messages in the other queue")
	})
	amqpCheck(s, "an_empty_queue_name_means_the_last_declared_one", func(t *amqpT) {
		queue := t.queue()
		t.bind("", "some-key", "amq.direct", nil)
		t.publish("amq.direct", "some-key", transient("hello"))
		Equal(t.T, string(t.getSoon("").Body), "hello", "body")
		Equal(t.T, t.ready(queue), 0, "messages left")
	})
	amqpCheck(s, "exclusive_queue_is_its_connections_alone", func(t *amqpT) {
		name := t.Name("exclusive")
		_, err := t.ch.QueueDeclare(name, false, false, true, false, nil)
		t.Ok(err, "declare")
		other := &amqpT{T: t.T, conn: t.dialAMQP(amqp.Config{})}
		other.closesChannel(405, "declare", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(name, false, false, true, false, nil)
			return err
		})
		other.closesChannel(405, "passive declare", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclarePassive(name, false, false, true, false, nil)
			return err
		})
		other.closesChannel(405, "consume", func(ch *amqp.Channel) error {
			_, err := ch.Consume(name, "", true, false, false, false, nil)
			return err
		})
		other.closesChannel(405, "delete", func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(name, false, false, false)
			return err
		})
	})
	amqpCheck(s, "exclusive_queue_goes_with_its_connection", func(t *amqpT) {
		name := t.Name("exclusive")
		owner := t.dialAMQP(amqp.Config{})
		_, err := t.channel(owner).QueueDeclare(name, false, false, true, false, nil)
		t.Ok(err, "declare")
		t.Ok(owner.Close(), "close the owner's connection")
		t.closesChannel(404, "passive declare", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
			return err
		})
	})
	amqpCheck(s, "auto_delete_queue_goes_with_its_last_consumer", func(t *amqpT) {
		name := t.Name("auto-delete")
		_, err := t.ch.QueueDeclare(name, false, true, false, false, nil)
		t.Ok(err, "declare")
		for _, tag := range []string{"one", "two"} {
			_, err = t.ch.Consume(name, tag, true, false, false, false, nil)
			t.Ok(err, "consume")
		}
		t.Ok(t.ch.Cancel("one", false), "cancel the first")
		Equal(t.T, t.ready(name), 0, "messages while one consumer is left")
		t.Ok(t.ch.Cancel("two", false), "cancel the last")
		t.closesChannel(404, "passive declare", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
			return err
		})
	})
	amqpCheck(s, "auto_delete_exchange_goes_with_its_last_binding", func(t *amqpT) {
		exchange, queue := t.Name("auto-delete"), t.queue()
		t.Ok(t.ch.ExchangeDeclare(exchange, "direct", false, true, false, false, nil), "declare")
		t.bind(queue, "a", exchange, nil)
		t.bind(queue, "b", exchange, nil)
		t.Ok(t.ch.QueueUnbind(queue, "a", exchange, nil), "unbind")
		t.Ok(t.ch.ExchangeDeclarePassive(exchange, "direct", false, true, false, false, nil), "one binding is left")
		t.Ok(t.ch.QueueUnbind(queue, "b", exchange, nil), "unbind")
		t.closesChannel(404, "passive declare", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclarePassive(exchange, "direct", false, true, false, false, nil)
		})
	})
	amqpCheck(s, "purge_removes_and_counts_what_is_ready", func(t *amqpT) {
		queue := t.durableQueue()
		for range 10 {
			t.publish("", queue, transient("x"))
		}
		t.readyBecomes(queue, 10)
		leased := t.get(queue, false)
		purged, err := t.ch.QueuePurge(queue, false)
		t.Ok(err, "purge")
		Equal(t.T, purged, 9, "purged messages")
		t.Ok(leased.Nack(false, true), "give the leased one back")
		t.readyBecomes(queue, 1)
	})
	amqpCheck(s, "delete_counts_what_went_with_the_queue", func(t *amqpT) {
		queue := t.durableQueue()
		for range 4 {
			t.publish("", queue, transient("x"))
		}
		t.readyBecomes(queue, 4)
		deleted, err := t.ch.QueueDelete(queue, false, false, false)
		t.Ok(err, "delete")
		Equal(t.T, deleted, 4, "deleted messages")
		deleted, err = t.ch.QueueDelete(queue, false, false, false)
		t.Ok(err, "delete what is gone")
		Equal(t.T, deleted, 0, "messages of a queue that is gone")
	})
	amqpCheck(s, "conditional_deletes_are_refused_with_406", func(t *amqpT) {
		queue, exchange := t.durableQueue(), t.exchange("fanout")
		t.bind(queue, "", exchange, nil)
		t.publish("", queue, transient("x"))
		t.readyBecomes(queue, 1)
		t.closesChannel(406, "delete a queue that is not empty", func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(queue, false, true, false)
			return err
		})
		t.closesChannel(406, "delete an exchange that has a binding", func(ch *amqp.Channel) error {
			return ch.ExchangeDelete(exchange, true, false)
		})
		t.consume(queue, false)
		t.closesChannel(406, "delete a queue that has a consumer", func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(queue, true, false, false)
			return err
		})
	})
	amqpCheck(s, "a_deleted_exchange_is_gone_and_deleting_again_is_ok", func(t *amqpT) {
		exchange := t.exchange("fanout")
		t.Ok(t.ch.ExchangeDelete(exchange, false, false), "delete")
		t.Ok(t.ch.ExchangeDelete(exchange, false, false), "delete what is gone")
		t.closesChannel(404, "publish to it", func(ch *amqp.Channel) error {
			return ch.Publish(exchange, "", false, false, transient("x"))
		})
	})
	amqpCheck(s, "a_deleted_queue_takes_its_bindings_along", func(t *amqpT) {
		exchange, queue := t.exchange("direct"), t.durableQueue()
		t.bind(queue, "k", exchange, nil)
		_, err := t.ch.QueueDelete(queue, false, false, false)
		t.Ok(err, "delete")
		_, err = t.ch.QueueDeclare(queue, true, false, false, false, nil)
		t.Ok(err, "declare again")
		t.confirmMode()
		t.confirmed(exchange, "k", persistent([]byte("nobody wants it")))
		Equal(t.T, t.ready(queue), 0, "messages in the new queue")
	})
}
