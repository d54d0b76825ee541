package main

import (
	amqp "github.com/rabbitmq/amqp091-go"
)

func amqpErrorChecks(s *Suite) {
	amqpCheck(s, "missing_things_are_404", func(t *amqpT) {
		queue, exchange, missing := t.queue(), t.exchange("direct"), t.Name("missing")
		for what, action := range map[string]func(*amqp.Channel) error{
			"passive declare of a queue": func(ch *amqp.Channel) error {
				_, err := ch.QueueDeclarePassive(missing, false, false, false, false, nil)
				return err
			},
			"passive declare of an exchange": func(ch *amqp.Channel) error {
				return ch.ExchangeDeclarePassive(missing, "direct", false, false, false, false, nil)
			},
			"bind a missing queue":         func(ch *amqp.Channel) error { return ch.QueueBind(missing, "k", exchange, false, nil) },
			"bind to a missing exchange":   func(ch *amqp.Channel) error { return ch.QueueBind(queue, "k", missing, false, nil) },
			"bind from a missing exchange": func(ch *amqp.Channel) error { return ch.ExchangeBind(exchange, "k", missing, false, nil) },
			"purge":                        func(ch *amqp.Channel) error { _, err := ch.QueuePurge(missing, false); return err },
			"get":                          func(ch *amqp.Channel) error { _, _, err := ch.Get(missing, true); return err },
			"consume": func(ch *amqp.Channel) error {
				_, err := ch.Consume(missing, "", true, false, false, false, nil)
				return err
			},
		} {
			t.closesChannel(404, what, action)
		}
	})
	amqpCheck(s, "redeclaring_differently_is_406", func(t *amqpT) {
		queue, exchange := t.durableQueue(), t.exchange("direct")
		t.closesChannel(406, "another type", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(exchange, "fanout", true, false, false, false, nil)
		})
		t.closesChannel(406, "a durable exchange as transient", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(exchange, "direct", false, false, false, false, nil)
		})
		t.closesChannel(406, "an exchange as auto-delete", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(exchange, "direct", true, true, false, false, nil)
		})
		t.closesChannel(406, "a durable queue as transient", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(queue, false, false, false, false, nil)
			return err
		})
		t.closesChannel(406, "a queue as auto-delete", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(queue, true, true, false, false, nil)
			return err
		})
	})
	amqpCheck(s, "unknown_exchange_type_is_406", func(t *amqpT) {
		name := t.Name("strange")
		t.closesChannel(406, "declare", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(name, "no-such-type", false, true, false, false, nil)
		})
	})
	amqpCheck(s, "reserved_names_are_403", func(t *amqpT) {
		queue := t.queue()
		t.closesChannel(403, "declare a queue amq.x", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare("amq.interop", false, true, false, false, nil)
			return err
		})
		t.closesChannel(403, "declare an exchange amq.x", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare("amq.interop", "fanout", false, true, false, false, nil)
		})
		t.closesChannel(403, "delete a predeclared exchange", func(ch *amqp.Channel) error {
			return ch.ExchangeDelete("amq.fanout", false, false)
		})
		t.closesChannel(403, "bind to the default exchange", func(ch *amqp.Channel) error {
			return ch.QueueBind(queue, "k", "", false, nil)
		})
		t.closesChannel(403, "declare the default exchange", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare("", "direct", true, false, false, false, nil)
		})
	})
	amqpCheck(s, "unknown_delivery_tag_is_406", func(t *amqpT) {
		queue := t.queue()
		t.closesChannel(406, "ack of nothing", func(ch *amqp.Channel) error { return ch.Ack(1, false) })
		t.closesChannel(406, "nack of nothing", func(ch *amqp.Channel) error { return ch.Nack(7, false, true) })
		t.closesChannel(406, "reject of nothing", func(ch *amqp.Channel) error { return ch.Reject(7, true) })
		t.publish("", queue, transient("x"))
		t.readyBecomes(queue, 1)
		t.closesChannel(406, "acking twice", func(ch *amqp.Channel) error {
			message, _, err := ch.Get(queue, false)
			if err != nil {
				return err
			}
			if err := message.Ack(false); err != nil {
				return err
			}
			return message.Ack(false)
		})
	})
	s.Check("amqp_a_consumer_tag_used_twice_is_530", func(t *T) {
		t.closesConnection(530, "consume", func(ch *amqp.Channel) error {
			queue, err := ch.QueueDeclare("", false, true, true, false, nil)
			t.Ok(err, "declare")
			_, err = ch.Consume(queue.Name, "tag", true, false, false, false, nil)
			t.Ok(err, "consume")
			_, err = ch.Consume(queue.Name, "tag", true, false, false, false, nil)
			return err
		})
	})
	s.Check("amqp_immediate_is_540", func(t *T) {
		t.closesConnection(540, "publish", func(ch *amqp.Channel) error {
			return ch.Publish("amq.direct", "k", false, true, transient("x"))
		})
	})
	s.Check("amqp_prefetch_size_is_540", func(t *T) {
		t.closesConnection(540, "qos", func(ch *amqp.Channel) error { return ch.Qos(0, 4096, false) })
	})
	s.Check("amqp_recover_without_requeue_is_540", func(t *T) {
		t.closesConnection(540, "recover", func(ch *amqp.Channel) error { return ch.Recover(false) })
	})
	amqpCheck(s, "queue_arguments_are_kept_and_compared", func(t *amqpT) {
		for name, value := range map[string]any{"x-message-ttl": int32(60000), "x-expires": int32(60000),
			"x-dead-letter-exchange": "amq.fanout", "x-max-priority": int32(5), "x-single-active-consumer": true,
			"x-queue-type": "quorum"} {
			queue := t.Name("queue")
			declare := func(ch *amqp.Channel, args amqp.Table) error {
				_, err := ch.QueueDeclare(queue, true, false, false, false, args)
				return err
			}
			t.Ok(declare(t.ch, amqp.Table{name: value}), "a queue with "+name)
			t.Ok(declare(t.ch, amqp.Table{name: value}), "the same again")
			t.closesChannel(406, "without "+name, func(ch *amqp.Channel) error { return declare(ch, nil) })
			_, err := t.ch.QueueDelete(queue, false, false, false)
			t.Ok(err, "delete")
		}
		t.closesChannel(406, "a negative time to live", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(t.Name("queue"), true, false, false, false, amqp.Table{"x-message-ttl": int32(-1)})
			return err
		})
	})
	s.Check("amqp_an_error_leaves_the_broker_usable", func(t *T) {
		t.closesConnection(540, "publish", func(ch *amqp.Channel) error {
			return ch.Publish("amq.direct", "k", false, true, amqp.Publishing{Body: randomBytes(1 << 20)})
		})
		conn := t.dialAMQP(amqp.Config{})
		c := &amqpT{T: t, conn: conn, ch: t.channel(conn)}
		queue := c.queue()
		c.publish("", queue, transient("x"))
		c.getSoon(queue)
	})
}
