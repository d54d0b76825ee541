package main

import (
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

func amqpConsumeChecks(s *Suite) {
	amqpCheck(s, "deliveries_come_in_the_order_of_publishing", func(t *amqpT) {
		const count = 5000
		queue := t.durableQueue()
		deliveries := t.consume(queue, false)
		go func() {
			for i := range count {
				if t.ch.Publish("", queue, false, false, persistent([]byte(fmt.Sprint(i)))) != nil {
					return
				}
			}
		}()
		for i := range count {
			delivery := Receive(t.T, deliveries, "a delivery")
			Equal(t.T, string(delivery.Body), fmt.Sprint(i), "body")
			Equal(t.T, delivery.DeliveryTag, uint64(i+1), "delivery tag")
			Equal(t.T, delivery.Redelivered, false, "redelivered")
			if i%100 == 99 {
				t.Ok(delivery.Ack(true), "ack all so far")
			}
		}
		Equal(t.T, t.ready(queue), 0, "messages left")
	})
	amqpCheck(s, "a_delivery_tells_where_it_was_published", func(t *amqpT) {
		exchange, queue := t.exchange("topic"), t.queue()
		t.bind(queue, "#", exchange, nil)
		deliveries, err := t.ch.Consume(queue, "my-tag", true, false, false, false, nil)
		t.Ok(err, "consume")
		t.publish(exchange, "some.key", transient("x"))
		got := Receive(t.T, deliveries, "the delivery")
		Equal(t.T, got.Exchange+" "+got.RoutingKey+" "+got.ConsumerTag, exchange+" some.key my-tag", "delivery")
	})
	amqpCheck(s, "get_counts_what_is_left", func(t *amqpT) {
		queue := t.queue()
		_, ok, err := t.ch.Get(queue, true)
		t.Ok(err, "get from an empty queue")
		t.True(!ok, "an empty queue had a message")
		for i := range 5 {
			t.publish("", queue, transient(fmt.Sprint(i)))
		}
		t.readyBecomes(queue, 5)
		for i := range 5 {
			got := t.get(queue, i%2 == 0)
			Equal(t.T, fmt.Sprintf("%s, %d left", got.Body, got.MessageCount), fmt.Sprintf("%d, %d left", i, 4-i), "body and count")
		}
	})
	amqpCheck(s, "prefetch_limits_what_is_not_acknowledged", func(t *amqpT) {
		queue := t.durableQueue()
		for i := range 10 {
			t.publish("", queue, transient(fmt.Sprint(i)))
		}
		t.readyBecomes(queue, 10)
		t.Ok(t.ch.Qos(3, 0, false), "qos")
		deliveries := t.consume(queue, false)
		var held []amqp.Delivery
		for range 3 {
			held = append(held, Receive(t.T, deliveries, "a delivery"))
		}
		Equal(t.T, t.ready(queue), 7, "messages that were not handed out")
		t.Ok(held[1].Ack(false), "ack one")
		Equal(t.T, string(Receive(t.T, deliveries, "the next delivery").Body), "3", "body")
		Equal(t.T, t.ready(queue), 6, "messages that were not handed out")
		t.Ok(t.ch.Ack(0, true), "ack all")
		for i := 4; i < 7; i++ {
			Equal(t.T, string(Receive(t.T, deliveries, "a delivery").Body), fmt.Sprint(i), "body")
		}
		Equal(t.T, t.ready(queue), 3, "messages that were not handed out")
	})
	amqpCheck(s, "nacked_messages_return_to_their_place_redelivered", func(t *amqpT) {
		queue := t.durableQueue()
		for i := range 6 {
			t.publish("", queue, persistent([]byte(fmt.Sprint(i))))
		}
		t.readyBecomes(queue, 6)
		var held []amqp.Delivery
		for range 5 {
			held = append(held, t.get(queue, false))
		}
		t.Ok(held[3].Nack(false, true), "nack 3")
		t.Ok(held[1].Reject(true), "reject 1")
		t.Ok(held[0].Ack(false), "ack 0")
		t.readyBecomes(queue, 3)
		t.expect(queue, "1 redelivered", "3 redelivered", "5")
		t.Ok(t.ch.Nack(held[4].DeliveryTag, true, true), "nack all that is left")
		t.expect(queue, "2 redelivered", "4 redelivered")
		Equal(t.T, t.ready(queue), 0, "messages left")
	})
	amqpCheck(s, "rejected_without_requeue_is_gone", func(t *amqpT) {
		queue := t.durableQueue()
		for i := range 4 {
			t.publish("", queue, transient(fmt.Sprint(i)))
		}
		t.readyBecomes(queue, 4)
		t.Ok(t.get(queue, false).Reject(false), "reject 0")
		t.get(queue, false)
		t.Ok(t.get(queue, false).Nack(true, false), "nack 1 and 2")
		t.expect(queue, "3")
	})
	amqpCheck(s, "closing_a_channel_gives_back_what_it_held_in_order", func(t *amqpT) {
		queue := t.durableQueue()
		for i := range 5 {
			t.publish("", queue, persistent([]byte(fmt.Sprint(i))))
		}
		t.readyBecomes(queue, 5)
		holder := &amqpT{T: t.T, conn: t.conn, ch: t.channel(t.conn)}
		deliveries := holder.consume(queue, false)
		for range 5 {
			Receive(t.T, deliveries, "a delivery")
		}
		t.Ok(holder.ch.Close(), "close the channel")
		t.readyBecomes(queue, 5)
		t.expect(queue, "0 redelivered", "1 redelivered", "2 redelivered", "3 redelivered", "4 redelivered")
	})
	amqpCheck(s, "a_lost_connection_gives_back_what_it_held_in_order", func(t *amqpT) {
		queue := t.durableQueue()
		for i := range 5 {
			t.publish("", queue, persistent([]byte(fmt.Sprint(i))))
		}
		t.readyBecomes(queue, 5)
		conn := t.dialAMQP(amqp.Config{})
		holder := &amqpT{T: t.T, conn: conn, ch: t.channel(conn)}
		holder.get(queue, true)
		holder.get(queue, false)
		holder.get(queue, false)
		t.Ok(conn.Close(), "close the connection")
		t.readyBecomes(queue, 4)
		t.expect(queue, "1 redelivered", "2 redelivered", "3", "4")
	})
	amqpCheck(s, "recover_redelivers_what_is_not_acknowledged", func(t *amqpT) {
		queue := t.durableQueue()
		for i := range 3 {
			t.publish("", queue, transient(fmt.Sprint(i)))
		}
		t.readyBecomes(queue, 3)
		deliveries := t.consume(queue, false)
		for range 3 {
			Receive(t.T, deliveries, "a delivery")
		}
		t.Ok(t.ch.Recover(true), "recover")
		for i := range 3 {
			again := Receive(t.T, deliveries, "a delivery again")
			Equal(t.T, fmt.Sprintf("%s %t", again.Body, again.Redelivered), fmt.Sprintf("%d true", i), "delivery")
			t.Ok(again.Ack(false), "ack")
		}
		Equal(t.T, t.ready(queue), 0, "messages left")
	})
	amqpCheck(s, "cancel_ends_deliveries_and_keeps_the_rest", func(t *amqpT) {
		queue := t.durableQueue()
		t.Ok(t.ch.Qos(1, 0, false), "qos")
		deliveries, err := t.ch.Consume(queue, "tag", false, false, false, false, nil)
		t.Ok(err, "consume")
		t.publish("", queue, transient("0"))
		held := Receive(t.T, deliveries, "a delivery")
		t.publish("", queue, transient("1"))
		t.Ok(t.ch.Cancel("tag", false), "cancel")
		Closed(t.T, deliveries, "the deliveries")
		t.readyBecomes(queue, 1)
		t.Ok(held.Ack(false), "ack after the cancel")
		t.Ok(t.ch.Cancel("unknown", false), "cancel an unknown consumer")
		t.expect(queue, "1")
	})
	amqpCheck(s, "deleting_a_queue_cancels_its_consumers", func(t *amqpT) {
		queue := t.durableQueue()
		cancelled := t.ch.NotifyCancel(make(chan string, 1))
		deliveries, err := t.ch.Consume(queue, "tag", true, false, false, false, nil)
		t.Ok(err, "consume")
		_, err = t.channel(t.conn).QueueDelete(queue, false, false, false)
		t.Ok(err, "delete")
		Equal(t.T, Receive(t.T, cancelled, "the cancel"), "tag", "the cancelled consumer")
		Closed(t.T, deliveries, "the deliveries")
	})
	amqpCheck(s, "exclusive_consumer_is_alone", func(t *amqpT) {
		queue := t.durableQueue()
		_, err := t.ch.Consume(queue, "alone", true, true, false, false, nil)
		t.Ok(err, "consume exclusively")
		t.closesChannel(403, "a second consumer", func(ch *amqp.Channel) error {
			_, err := ch.Consume(queue, "", true, false, false, false, nil)
			return err
		})
		t.Ok(t.ch.Cancel("alone", false), "cancel")
		t.consume(queue, true)
		t.closesChannel(403, "an exclusive consumer beside another", func(ch *amqp.Channel) error {
			_, err := ch.Consume(queue, "", true, true, false, false, nil)
			return err
		})
	})
	amqpCheck(s, "competing_consumers_share_a_queue", func(t *amqpT) {
		const count, prefetch = 400, 5
		queue := t.durableQueue()
		t.confirmMode()
		var members []<-chan amqp.Delivery
		for range 2 {
			ch := t.channel(t.dialAMQP(amqp.Config{}))
			t.Ok(ch.Qos(prefetch, 0, false), "qos")
			deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
			t.Ok(err, "consume")
			members = append(members, deliveries)
		}
		for i := range count {
			t.confirmed("", queue, persistent([]byte(fmt.Sprint(i))))
		}
		// Nobody acknowledges yet, so that both have their share however slow one of them is.
		var held []amqp.Delivery
		for range prefetch {
			for _, deliveries := range members {
				held = append(held, Receive(t.T, deliveries, "a share of both"))
			}
		}
		Equal(t.T, t.ready(queue), count-len(held), "messages that were not handed out")
		seen := make(chan string, 2*count)
		take := func(delivery amqp.Delivery) {
			seen <- string(delivery.Body)
			_ = delivery.Ack(false)
		}
		for _, deliveries := range members {
			go func() {
				for delivery := range deliveries {
					take(delivery)
				}
			}()
		}
		for _, delivery := range held {
			take(delivery)
		}
		bodies := map[string]int{}
		for range count {
			bodies[Receive(t.T, seen, "a message")]++
		}
		Equal(t.T, bodies, numbers(0, count), "bodies")
	})
	amqpCheck(s, "a_waiting_consumer_takes_over_what_another_held", func(t *amqpT) {
		queue := t.durableQueue()
		conn := t.dialAMQP(amqp.Config{})
		first := &amqpT{T: t.T, conn: conn, ch: t.channel(conn)}
		held := first.consume(queue, false)
		t.publish("", queue, persistent([]byte("work")))
		Receive(t.T, held, "the delivery to the first")
		deliveries := t.consume(queue, false)
		t.Ok(conn.Close(), "close the first consumer's connection")
		again := Receive(t.T, deliveries, "the delivery to the second")
		Equal(t.T, fmt.Sprintf("%s %t", again.Body, again.Redelivered), "work true", "delivery")
		t.Ok(again.Ack(false), "ack")
	})
}

// expect gets messages one after the other: body, and whether redelivered.
func (t *amqpT) expect(queue string, want ...string) {
	var got []string
	for range want {
		message := t.get(queue, true)
		text := string(message.Body)
		if message.Redelivered {
			text += " redelivered"
		}
		got = append(got, text)
	}
	Equal(t.T, got, want, "messages of the queue")
}
