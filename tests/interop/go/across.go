package main

import (
	"fmt"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	amqp "github.com/rabbitmq/amqp091-go"
)

// acrossSuite sends through one protocol and receives through another, in all sixteen directions.
func acrossSuite(s *Suite) {
	for from := range publishers {
		for to := range receivers {
			s.Check(fmt.Sprintf("across_%s_to_%s_every_body_in_order", from, to), func(t *T) { t.acrossPair(from, to) })
		}
	}
	acrossAddressChecks(s)
	acrossPropertyChecks(s)
	acrossStompChecks(s)
	acrossBeyondChecks(s)
}

// publish sends a persistent message to a topic and key and returns when it is confirmed.
type publish func(body []byte)

// publishers make a way to publish to (topic, key).
var publishers = map[string]func(t *T, topic, key string) publish{
	"amqp": func(t *T, topic, key string) publish {
		c := t.amqp()
		t.Ok(c.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare the exchange")
		c.confirmMode()
		return func(body []byte) { c.confirmed(topic, key, persistent(body)) }
	},
	"rocketmq": func(t *T, topic, key string) publish {
		// As they are by default, producers compress what is larger than 4 KiB; random bytes grow by it, so
		// that the largest body has to go as it is.
		byDefault := t.producer(producer.WithQueueSelector(producer.NewHashQueueSelector()))
		plain := t.producer(producer.WithQueueSelector(producer.NewHashQueueSelector()),
			producer.WithCompressMsgBodyOverHowmuch(8<<20))
		return func(body []byte) {
			p := byDefault
			if len(body) > 2<<20 {
				p = plain
			}
			t.send(p, primitive.NewMessage(topic, body).WithTag(key).WithShardingKey("one queue"))
		}
	},
	"mqtt": func(t *T, topic, key string) publish {
		c := t.mqtt3()
		return func(body []byte) { c.publish(topic+"/"+levels(key), 1, body) }
	},
}

// receivers make a channel of the bodies that come to a topic, which exists.
var receivers = map[string]func(t *T, topic, key string) <-chan []byte{
	"amqp": func(t *T, topic, key string) <-chan []byte {
		c := t.amqp()
		t.Ok(c.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare the exchange")
		queue := c.durableQueue()
		c.bind(queue, key, topic, nil)
		bodies := make(chan []byte, 1000)
		deliveries := c.consume(queue, false)
		go func() {
			for delivery := range deliveries {
				bodies <- delivery.Body
				_ = delivery.Ack(false)
			}
		}()
		return bodies
	},
	"rocketmq": func(t *T, topic, key string) <-chan []byte {
		bodies := make(chan []byte, 1000)
		t.memberWith(&member{}, t.Name("group"), topic, consumer.MessageSelector{}, func(msg *primitive.MessageExt) {
			if msg.GetTags() == key {
				bodies <- msg.Body
			}
		}, consumer.WithConsumerOrder(true))
		return bodies
	},
	"mqtt": func(t *T, topic, key string) <-chan []byte {
		c := t.mqtt3()
		c.subscribe(topic+"/#", 1)
		bodies := make(chan []byte, 1000)
		go func() {
			for message := range c.inbox {
				if message.topic == topic+"/"+levels(key) {
					bodies <- message.body
				}
			}
		}()
		return bodies
	},
}

// levels is how MQTT spells a key.
func levels(key string) string {
	swapped := []byte(key)
	for i, c := range swapped {
		switch c {
		case '.':
			swapped[i] = '/'
		case '/':
			swapped[i] = '.'
		}
	}
	return string(swapped)
}

// amqp connects and opens a channel.
func (t *T) amqp() *amqpT {
	conn := t.dialAMQP(amqp.Config{})
	return &amqpT{T: t, conn: conn, ch: t.channel(conn)}
}

func (t *T) acrossPair(from, to string) {
	topic, key := t.Name("across"), "some.key"
	send := publishers[from](t, topic, key)
	// Makes the topic, so that a native group can subscribe. It may come to the receiver or not.
	send([]byte("first"))
	bodies := receivers[to](t, topic, key)
	var sent [][]byte
	for range 2 {
		for _, size := range bodySizes {
			// RocketMQ has no empty messages.
			if size > 0 || (from != "rocketmq" && to != "rocketmq") {
				sent = append(sent, randomBytes(size))
			}
		}
	}
	for range 100 {
		sent = append(sent, randomBytes(256))
	}
	for _, body := range sent {
		send(body)
	}
	send([]byte("last"))
	first := true
	for i, want := range append(sent, []byte("last")) {
		got := Receive(t, bodies, fmt.Sprintf("message %d of %d", i, len(sent)))
		if first && string(got) == "first" {
			got = Receive(t, bodies, fmt.Sprintf("message %d of %d", i, len(sent)))
		}
		first = false
		SameBytes(t, got, want, fmt.Sprintf("message %d", i))
	}
	t.True(len(bodies) == 0, "there is more than was sent")
}

// acrossAddressChecks are the rows of the table of addresses.
func acrossAddressChecks(s *Suite) {
	s.Check("across_native_tag_42_cmd_of_devices_is_mqtt_devices_42_cmd", func(t *T) {
		subscriber := t.mqtt3()
		subscriber.subscribe("devices/42/cmd", 1)
		subscriber.subscribe("devices/+/cmd", 1)
		p := t.producer()
		body := randomHex(8)
		t.send(p, message("devices", "not this").WithTag("43.other"))
		t.send(p, message("devices", "%s", body).WithTag("42.cmd"))
		got := subscriber.next("the native message")
		Equal(t, got.topic+" "+string(got.body), "devices/42/cmd "+body, "topic and body at the MQTT client")

		m := t.selecting(t.Name("group"), "devices", consumer.MessageSelector{Type: consumer.TAG, Expression: "42.cmd"})
		body = randomHex(8)
		t.mqtt3().publish("devices/42/cmd", 1, []byte(body))
		for {
			msg := Receive(t, m.inbox, "the MQTT message")
			Equal(t, msg.Topic+" "+msg.GetTags(), "devices 42.cmd", "topic and tag at the native client")
			if string(msg.Body) == body {
				break
			}
		}
	})
	s.Check("across_an_amqp_exchange_and_key_is_the_same_address", func(t *T) {
		exchange := t.Name("exchange")
		c := t.amqp()
		t.Ok(c.ch.ExchangeDeclare(exchange, "topic", true, false, false, false, nil), "declare")
		queue := c.durableQueue()
		c.bind(queue, "*.cmd", exchange, nil)
		subscriber := t.mqtt3()
		subscriber.subscribe(exchange+"/42/cmd", 1)
		c.confirmMode()
		c.confirmed(exchange, "42.cmd", persistent([]byte("from amqp")))
		m := t.selecting(t.Name("group"), exchange, consumer.MessageSelector{Type: consumer.TAG, Expression: "42.cmd"})
		Equal(t, subscriber.next("AMQP's at MQTT").topic, exchange+"/42/cmd", "topic")
		Equal(t, Receive(t, m.inbox, "AMQP's at RocketMQ").GetTags(), "42.cmd", "tag")
		Equal(t, string(c.getSoon(queue).Body), "from amqp", "body")

		subscriber.publish(exchange+"/42/cmd", 1, []byte("from mqtt"))
		Equal(t, string(subscriber.next("MQTT's at MQTT").body), "from mqtt", "body")
		Equal(t, string(Receive(t, m.inbox, "MQTT's at RocketMQ").Body), "from mqtt", "body")
		Equal(t, string(c.getSoon(queue).Body), "from mqtt", "body")

		t.send(t.producer(), message(exchange, "from rocketmq").WithTag("42.cmd"))
		Equal(t, string(subscriber.next("RocketMQ's at MQTT").body), "from rocketmq", "body")
		Equal(t, string(Receive(t, m.inbox, "RocketMQ's at RocketMQ").Body), "from rocketmq", "body")
		got := c.getSoon(queue)
		Equal(t, string(got.Body)+" "+got.Exchange+" "+got.RoutingKey, "from rocketmq "+exchange+" 42.cmd", "delivery")
	})
	s.Check("across_amq_topic_sees_what_is_published_to_topics", func(t *T) {
		c, name := t.amqp(), t.Name("root")
		queue := c.queue()
		c.bind(queue, name+".#", "amq.topic", nil)
		subscriber := t.mqtt3()
		subscriber.subscribe(name+"/#", 1)
		c.confirmMode()
		c.confirmed("amq.topic", name+".a.b", persistent([]byte("from amqp")))
		Equal(t, subscriber.next("AMQP's at MQTT").topic, name+"/a/b", "topic")
		c.getSoon(queue)
		subscriber.publish(name+"/c/d", 1, []byte("from mqtt"))
		Equal(t, c.getSoon(queue).RoutingKey, name+".c.d", "routing key of MQTT's message")
		subscriber.next("MQTT's at MQTT")
		t.send(t.producer(), message(name, "from rocketmq").WithTag("e.f"))
		Equal(t, string(c.getSoon(queue).Body), "from rocketmq", "body")
		Equal(t, subscriber.next("RocketMQ's at MQTT").topic, name+"/e/f", "topic")
		m := t.member(t.Name("group"), name)
		tags := map[string]bool{}
		for range 3 {
			tags[Receive(t, m.inbox, "a message of the topic").GetTags()] = true
		}
		Equal(t, tags, map[string]bool{"a.b": true, "c.d": true, "e.f": true}, "tags at the native group")
	})
	s.Check("across_a_queue_is_the_topic_of_its_name", func(t *T) {
		c := t.amqp()
		queue := c.durableQueue()
		t.send(t.producer(), message(queue, "from rocketmq"))
		Equal(t, string(c.getSoon(queue).Body), "from rocketmq", "body")
		c.confirmMode()
		subscriber := t.mqtt3()
		subscriber.subscribe(queue, 1)
		subscriber.subscribe(queue+"/#", 1)
		c.confirmed("", queue, persistent([]byte("from amqp")))
		m := t.member(t.Name("group"), queue)
		Equal(t, t.bodies(m, 2), map[string]int{"from rocketmq": 1, "from amqp": 1}, "bodies at the native group")
		Equal(t, string(c.getSoon(queue).Body), "from amqp", "body")
		// What goes straight to a queue is nobody else's.
		subscriber.publish(queue+"/fence", 1, []byte("fence"))
		Equal(t, string(subscriber.next("the fence").body), "fence", "the first message at MQTT")
	})
	s.Check("across_names_are_encoded_for_native_clients", func(t *T) {
		c, name := t.amqp(), t.Name("enc")
		exchange := name + ".user events"
		t.Ok(c.ch.ExchangeDeclare(exchange, "fanout", true, false, false, false, nil), "declare")
		c.confirmMode()
		c.confirmed(exchange, "", persistent([]byte("hello")))
		m := t.member(t.Name("group"), name+"|2Euser|20events")
		Equal(t, string(Receive(t, m.inbox, "the message").Body), "hello", "body")
		queue := c.queue()
		c.bind(queue, "", exchange, nil)
		t.send(t.producer(), message(name+"|2Euser|20events", "back"))
		got := c.getSoon(queue)
		Equal(t, got.Exchange+" "+string(got.Body), exchange+" back", "delivery")
	})
	s.Check("across_a_new_exchange_removes_no_delivery", func(t *T) {
		c, name := t.amqp(), t.Name("mono")
		subscriber := t.mqtt3()
		subscriber.subscribe(name+"/+", 1)
		subscriber.publish(name+"/a", 1, []byte("before"))
		subscriber.next("the message before")
		t.Ok(c.ch.ExchangeDeclare(name, "direct", true, false, false, false, nil), "declare")
		subscriber.publish(name+"/a", 1, []byte("after"))
		Equal(t, string(subscriber.next("the message after").body), "after", "body")
		t.send(t.producer(), message(name, "native").WithTag("a"))
		Equal(t, string(subscriber.next("the native message").body), "native", "body")
	})
}
