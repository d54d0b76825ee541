package main

import (
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// amqpRestartSuite checks what is left after the broker was killed and started again: `await kill` and
// `await start` ask for it.
func amqpRestartSuite(s *Suite) {
	const count = 500
	var exchange, durable, transientQueue, progress string
	before := func(name string, body func(*amqpT)) { amqpCheck(s, "before_a_kill_"+name, body) }
	before("durable_things_are_made", func(t *amqpT) {
		exchange, durable, transientQueue = t.Name("durable"), t.Name("durable"), t.Name("transient")
		progress = t.Name("progress")
		t.Ok(t.ch.ExchangeDeclare(exchange, "topic", true, false, false, false, nil), "declare the exchange")
		for _, queue := range []string{durable, progress} {
			_, err := t.ch.QueueDeclare(queue, true, false, false, false, nil)
			t.Ok(err, "declare a durable queue")
		}
		_, err := t.ch.QueueDeclare(transientQueue, false, false, false, false, nil)
		t.Ok(err, "declare a transient queue")
		t.bind(durable, "keep.#", exchange, nil)
	})
	before("messages_are_confirmed", func(t *amqpT) {
		t.confirmMode()
		var last *amqp.DeferredConfirmation
		for i := range count {
			message := persistent([]byte(fmt.Sprint(i)))
			message.MessageId = fmt.Sprint("id-", i)
			message.Headers = amqp.Table{"number": int32(i)}
			var err error
			last, err = t.ch.PublishWithDeferredConfirm(exchange, "keep.it", true, false, message)
			t.Ok(err, "publish")
		}
		acked, err := last.WaitContext(t)
		t.Ok(err, "confirm")
		t.True(acked, "the last publish was nacked")
		for i := range 10 {
			t.confirmed("", progress, persistent([]byte(fmt.Sprint(i))))
		}
		t.confirmed("", durable, transient("a transient message in a durable queue"))
		// Acknowledged and held messages: 0 to 3 are done with, 4 to 6 are held by this connection.
		for i := range 7 {
			message := t.get(progress, false)
			if i < 4 {
				t.Ok(message.Ack(false), "ack")
			}
		}
		t.Ok(t.ch.Qos(1, 0, false), "a round trip behind the acks")
	})
	s.Await("kill")
	s.Await("start")
	after := func(name string, body func(*amqpT)) { amqpCheck(s, "after_a_kill_"+name, body) }
	after("durable_things_exist_and_transient_ones_do_not", func(t *amqpT) {
		t.Ok(t.ch.ExchangeDeclare(exchange, "topic", true, false, false, false, nil), "declare the exchange alike")
		_, err := t.ch.QueueDeclare(durable, true, false, false, false, nil)
		t.Ok(err, "declare the queue alike")
		t.closesChannel(404, "the transient queue", func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclarePassive(transientQueue, false, false, false, false, nil)
			return err
		})
	})
	after("confirmed_messages_are_all_there_in_order", func(t *amqpT) {
		Equal(t.T, t.ready(durable), count, "messages in the queue")
		for i := range count {
			message := t.get(durable, true)
			Equal(t.T, string(message.Body), fmt.Sprint(i), "body")
			Equal(t.T, message.MessageId, fmt.Sprint("id-", i), "message id")
			Equal(t.T, message.Headers, amqp.Table{"number": int32(i)}, "headers")
			Equal(t.T, message.Exchange+message.RoutingKey, exchange+"keep.it", "where it was published")
			Equal(t.T, message.DeliveryMode, uint8(amqp.Persistent), "delivery mode")
		}
	})
	after("what_was_held_comes_back_redelivered", func(t *amqpT) {
		// An ack is not confirmed, so the newest may be undone; nothing that was not acked may be missing.
		var got []string
		for t.ready(progress) > 0 {
			message := t.get(progress, true)
			got = append(got, string(message.Body))
			if held := string(message.Body); held == "4" || held == "5" || held == "6" {
				t.True(message.Redelivered, "message %s is not flagged as redelivered", held)
			}
		}
		t.True(len(got) >= 6, "only %v are left", got)
		Equal(t.T, got[len(got)-6:], []string{"4", "5", "6", "7", "8", "9"}, "the last six messages")
	})
	after("bindings_still_route", func(t *amqpT) {
		t.confirmMode()
		t.confirmed(exchange, "keep.routing", persistent([]byte("new")))
		Equal(t.T, string(t.get(durable, true).Body), "new", "body")
		for _, queue := range []string{durable, progress} {
			_, err := t.ch.QueueDelete(queue, false, false, false)
			t.Ok(err, "delete")
		}
		t.Ok(t.ch.ExchangeDelete(exchange, false, false), "delete the exchange")
	})
}
