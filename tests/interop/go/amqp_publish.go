package main

import (
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Body sizes that meet every edge of the framing: none, one byte, one frame, more than 64 KiB, many frames.
var bodySizes = []int{0, 1, 256, 65_537, 1 << 20, 4 << 20}

func amqpPublishChecks(s *Suite) {
	amqpCheck(s, "every_publish_is_confirmed_once", func(t *amqpT) {
		const count = 2000
		queue := t.durableQueue()
		t.confirmMode()
		confirms := t.ch.NotifyPublish(make(chan amqp.Confirmation, count))
		for i := range count {
			t.publish("", queue, persistent([]byte(fmt.Sprint(i))))
		}
		for tag := uint64(1); tag <= count; tag++ {
			Equal(t.T, Receive(t.T, confirms, "a confirm"), amqp.Confirmation{DeliveryTag: tag, Ack: true}, "confirm")
		}
		Equal(t.T, t.ready(queue), count, "messages in the queue")
	})
	amqpCheck(s, "unroutable_and_transient_publishes_are_confirmed_too", func(t *amqpT) {
		t.confirmMode()
		t.confirmed("amq.direct", t.Name("nobody"), persistent([]byte("to nobody")))
		t.confirmed("", t.queue(), transient("to a transient queue"))
		t.confirmed("", t.durableQueue(), transient("to a durable queue"))
	})
	amqpCheck(s, "mandatory_return_precedes_its_confirm", func(t *amqpT) {
		exchange, queue := t.exchange("direct"), t.durableQueue()
		t.bind(queue, "routed", exchange, nil)
		t.confirmMode()
		// Without buffers the client's reader hands over one event after the other, in wire order.
		returns := t.ch.NotifyReturn(make(chan amqp.Return))
		confirms := t.ch.NotifyPublish(make(chan amqp.Confirmation))
		message := amqp.Publishing{
			Headers: amqp.Table{"answer": int32(42)}, ContentType: "text/plain", MessageId: "m-1",
			DeliveryMode: amqp.Persistent, Body: randomBytes(5000),
		}
		for tag := uint64(1); tag <= 20; tag += 2 {
			t.Ok(t.ch.Publish(exchange, "routed", true, false, message), "publish")
			t.Ok(t.ch.Publish(exchange, "unroutable", true, false, message), "publish")
			var order []string
			for range 3 {
				select {
				case back := <-returns:
					Equal(t.T, back.ReplyCode, 312, "reply code")
					Equal(t.T, back.ReplyText, "NO_ROUTE", "reply text")
					Equal(t.T, back.Exchange+" "+back.RoutingKey, exchange+" unroutable", "where it went")
					Equal(t.T, back.MessageId+back.ContentType, "m-1text/plain", "its properties")
					Equal(t.T, back.Headers, message.Headers, "its headers")
					SameBytes(t.T, back.Body, message.Body, "its body")
					order = append(order, "return")
				case confirm := <-confirms:
					t.True(confirm.Ack, "confirm %d is a nack", confirm.DeliveryTag)
					order = append(order, fmt.Sprint("confirm ", confirm.DeliveryTag-tag))
				case <-t.Done():
					t.Fatalf("only %v came in time", order)
				}
			}
			t.True(slices.Index(order, "return") < slices.Index(order, "confirm 1"), "the order of events is %v", order)
		}
		Equal(t.T, t.ready(queue), 10, "routed messages")
	})
	amqpCheck(s, "mandatory_to_a_fanout_without_queues_is_returned", func(t *amqpT) {
		exchange := t.exchange("fanout")
		returns := t.ch.NotifyReturn(make(chan amqp.Return, 1))
		t.Ok(t.ch.Publish(exchange, "", true, false, persistent([]byte("x"))), "publish")
		Equal(t.T, Receive(t.T, returns, "the return").ReplyCode, 312, "reply code")
	})
	amqpCheck(s, "a_transaction_takes_effect_as_a_whole", func(t *amqpT) {
		other := t.channel(t.conn)
		queue := t.durableQueue()
		t.Ok(t.ch.Tx(), "tx.select")
		t.publish("", queue, persistent([]byte("rolled back")))
		t.Ok(t.ch.TxRollback(), "tx.rollback")
		for _, body := range []string{"one", "two", "three"} {
			t.publish("", queue, persistent([]byte(body)))
		}
		state, err := other.QueueDeclarePassive(queue, true, false, false, false, nil)
		t.Ok(err, "declare passively")
		Equal(t.T, state.Messages, 0, "messages before the commit")
		t.Ok(t.ch.TxCommit(), "tx.commit")
		for _, body := range []string{"one", "two", "three"} {
			message := t.get(queue, false)
			Equal(t.T, string(message.Body), body, "body")
			t.Ok(message.Ack(false), "ack")
		}
		t.Ok(t.ch.TxRollback(), "tx.rollback of the acks")
		t.Ok(t.ch.Close(), "close the channel")
		for _, body := range []string{"one", "two", "three"} {
			message, ok, err := other.Get(queue, true)
			t.Ok(err, "get")
			Equal(t.T, fmt.Sprint(ok, string(message.Body), message.Redelivered), "true"+body+"true", "again")
		}
	})
	amqpCheck(s, "a_mandatory_message_of_a_transaction_comes_back_at_its_commit", func(t *amqpT) {
		returns := t.ch.NotifyReturn(make(chan amqp.Return, 1))
		t.Ok(t.ch.Tx(), "tx.select")
		t.Ok(t.ch.Publish("amq.direct", t.Name("nobody"), true, false, transient("x")), "publish")
		t.Ok(t.ch.TxCommit(), "tx.commit")
		Equal(t.T, Receive(t.T, returns, "the return").ReplyCode, 312, "reply code")
	})
	for _, size := range bodySizes {
		amqpCheck(s, fmt.Sprintf("body_of_%d_bytes_is_unchanged", size), func(t *amqpT) {
			queue := t.durableQueue()
			deliveries := t.consume(queue, false)
			t.confirmMode()
			for _, mode := range []uint8{amqp.Persistent, amqp.Transient} {
				body := randomBytes(size)
				t.confirmed("", queue, amqp.Publishing{DeliveryMode: mode, Body: body})
				delivery := Receive(t.T, deliveries, "the delivery")
				SameBytes(t.T, delivery.Body, body, "body")
				t.Ok(delivery.Ack(false), "ack")
			}
		})
	}
	amqpCheck(s, "every_property_is_unchanged", func(t *amqpT) {
		queue := t.durableQueue()
		sent := amqp.Publishing{
			ContentType: "application/json", ContentEncoding: "gzip", DeliveryMode: 2, Priority: 7,
			CorrelationId: "correlation", ReplyTo: "reply-queue", Expiration: "600000", MessageId: "message-1",
			Timestamp: time.Unix(1_700_000_000, 0), Type: "order.created", UserId: "guest", AppId: "interop",
			Headers: amqp.Table{"k": "v"}, Body: []byte("{}"),
		}
		t.publish("", queue, sent)
		got := t.getSoon(queue)
		back := amqp.Publishing{
			ContentType: got.ContentType, ContentEncoding: got.ContentEncoding, DeliveryMode: got.DeliveryMode,
			Priority: got.Priority, CorrelationId: got.CorrelationId, ReplyTo: got.ReplyTo,
			Expiration: got.Expiration, MessageId: got.MessageId, Timestamp: got.Timestamp, Type: got.Type,
			UserId: got.UserId, AppId: got.AppId, Headers: got.Headers, Body: got.Body,
		}
		t.True(back.Timestamp.Equal(sent.Timestamp), "timestamp: got %v", back.Timestamp)
		back.Timestamp = sent.Timestamp
		Equal(t.T, back, sent, "properties")
	})
	amqpCheck(s, "a_message_without_properties_has_none", func(t *amqpT) {
		queue := t.queue()
		t.publish("", queue, amqp.Publishing{Body: []byte("x")})
		got := t.getSoon(queue)
		Equal(t.T, fmt.Sprint(got.ContentType, got.MessageId, got.AppId, got.Type, got.ReplyTo, got.CorrelationId,
			got.Expiration, got.Priority, len(got.Headers), got.Timestamp.IsZero()), "0 0 true", "properties")
	})
	amqpCheck(s, "every_header_type_is_unchanged", func(t *amqpT) {
		queue := t.durableQueue()
		nested := amqp.Table{"deep": amqp.Table{"deeper": amqp.Table{"list": []any{int32(1), "two", nil, true}}}}
		headers := amqp.Table{
			"bool-true": true, "bool-false": false,
			"int8": int8(-8), "byte": byte(200), "int16": int16(-16), "uint16": uint16(65_535),
			"int32": int32(-2_147_483_648), "uint32": uint32(4_294_967_295), "int64": int64(-1 << 62),
			"float": float32(0.5), "double": float64(-1e300),
			"decimal": amqp.Decimal{Scale: 2, Value: 12_345},
			"text":    "grüße, 世界", "empty": "", "long": string(make([]byte, 3000)),
			"bytes": []byte{0, 1, 2, 255}, "time": time.Unix(1_700_000_001, 0).UTC(), "void": nil,
			"list": []any{"a", int64(2), []any{"b"}, amqp.Table{}}, "table": nested,
		}
		t.publish("", queue, amqp.Publishing{Headers: headers, Body: []byte("x")})
		got := t.getSoon(queue).Headers
		when, _ := got["time"].(time.Time)
		t.True(when.Equal(headers["time"].(time.Time)), "time: got %v", got["time"])
		got["time"] = headers["time"]
		for name, want := range headers {
			Equal(t.T, got[name], want, "header "+name)
		}
		Equal(t.T, len(got), len(headers), "number of headers")
	})
	amqpCheck(s, "publishing_to_a_missing_exchange_closes_the_channel_with_404", func(t *amqpT) {
		missing := t.Name("missing")
		t.closesChannel(404, "publish", func(ch *amqp.Channel) error {
			// More frames of the failed publish are on their way when the channel ends.
			return ch.Publish(missing, "k", false, false, amqp.Publishing{Body: randomBytes(1 << 20)})
		})
	})
	amqpCheck(s, "what_was_published_before_a_channel_error_counts", func(t *amqpT) {
		queue, missing := t.durableQueue(), t.Name("missing")
		t.closesChannel(404, "publish", func(ch *amqp.Channel) error {
			for range 10 {
				if err := ch.Publish("", queue, false, false, persistent([]byte("x"))); err != nil {
					return err
				}
			}
			return ch.Publish(missing, "k", false, false, transient("y"))
		})
		t.readyBecomes(queue, 10)
	})
}
