package main

import (
	"fmt"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/eclipse/paho.golang/paho"
	"github.com/go-stomp/stomp/v3"
	amqp "github.com/rabbitmq/amqp091-go"
)

// acrossStompChecks are the rows of the table of addresses that STOMP has, properties, and what is more than a
// message.
func acrossStompChecks(s *Suite) {
	s.Check("across_stomp_topic_is_the_address_of_all", func(t *T) {
		c, topic := t.stomp(), t.Name("devices")
		subscriber := t.mqtt3()
		subscriber.subscribe(topic+"/42/cmd", 1)
		a := t.amqp()
		t.Ok(a.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare")
		queue, root := a.durableQueue(), a.durableQueue()
		a.bind(queue, "*.cmd", topic, nil)
		a.bind(root, topic+".#", "amq.topic", nil)
		// There is an exchange of the topic's name, so AMQP calls the address by it.
		subscription := c.subscribe("/topic/"+topic+".*.cmd", stomp.AckAuto)
		c.send("/topic/"+topic+".42.cmd", []byte("from stomp"), "persistent", "true")
		Equal(t, string(c.next(subscription, "STOMP's at STOMP").Body), "from stomp", "body")
		Equal(t, subscriber.next("STOMP's at MQTT").topic, topic+"/42/cmd", "topic")
		Equal(t, a.getSoon(queue).RoutingKey, "42.cmd", "routing key at the exchange")
		Equal(t, string(a.getSoon(root).Body), "from stomp", "body at amq.topic")
		m := t.selecting(t.Name("group"), topic, consumer.MessageSelector{Type: consumer.TAG, Expression: "42.cmd"})
		Equal(t, Receive(t, m.inbox, "STOMP's at RocketMQ").GetTags(), "42.cmd", "tag")

		t.send(t.producer(), message(topic, "from rocketmq").WithTag("42.cmd"))
		msg := c.next(subscription, "RocketMQ's at STOMP")
		Equal(t, string(msg.Body)+msg.Destination, "from rocketmq/topic/"+topic+".42.cmd", "body, destination")
		subscriber.publish(topic+"/42/cmd", 1, []byte("from mqtt"))
		msg = c.next(subscription, "MQTT's at STOMP")
		Equal(t, string(msg.Body)+msg.Destination, "from mqtt/topic/"+topic+".42.cmd", "body, destination")
		a.confirmMode()
		a.confirmed(topic, "42.cmd", persistent([]byte("from amqp")))
		msg = c.next(subscription, "AMQP's at STOMP")
		Equal(t, string(msg.Body)+msg.Destination, "from amqp/exchange/"+topic+"/42.cmd", "body, destination")
	})
	s.Check("across_stomp_queue_is_the_queue_of_all", func(t *T) {
		c, a := t.stomp(), t.amqp()
		queue := a.durableQueue()
		c.send("/queue/"+queue, []byte("from stomp"), "persistent", "true")
		Equal(t, string(a.getSoon(queue).Body), "from stomp", "body")
		subscription := c.subscribe("/amq/queue/"+queue, stomp.AckAuto)
		a.confirmMode()
		a.confirmed("", queue, persistent([]byte("from amqp")))
		msg := c.next(subscription, "AMQP's at STOMP")
		Equal(t, string(msg.Body)+msg.Destination, "from amqp/queue/"+queue, "body, destination")
		t.send(t.producer(), message(queue, "from rocketmq"))
		Equal(t, string(c.next(subscription, "RocketMQ's at STOMP").Body), "from rocketmq", "body")
		m := t.member(t.Name("group"), queue)
		Equal(t, t.bodies(m, 3), map[string]int{"from stomp": 1, "from amqp": 1, "from rocketmq": 1}, "at the native group")
	})
	s.Check("across_stomp_exchange_and_rocketmq_are_as_their_protocols", func(t *T) {
		c, a, topic := t.stomp(), t.amqp(), t.Name("topic")
		t.Ok(a.ch.ExchangeDeclare(topic, "direct", true, false, false, false, nil), "declare")
		queue := a.durableQueue()
		a.bind(queue, "k", topic, nil)
		c.send("/exchange/"+topic+"/k", []byte("through the exchange"), "persistent", "true")
		got := a.getSoon(queue)
		Equal(t, got.Exchange+got.RoutingKey+string(got.Body), topic+"kthrough the exchange", "delivery")
		c.send("/rocketmq/"+topic, []byte("to the topic"), "tag", "k", "key", "k1")
		Equal(t, string(a.getSoon(queue).Body), "to the topic", "body")
		m := t.member(t.Name("group"), topic)
		for range 2 {
			msg := Receive(t, m.inbox, "a message")
			Equal(t, msg.GetTags(), "k", "tag")
			if string(msg.Body) == "to the topic" {
				Equal(t, msg.GetKeys(), "k1", "key")
			}
		}
	})
	s.Check("across_properties_from_and_to_stomp", func(t *T) {
		c, a, topic := t.stomp(), t.amqp(), t.Name("properties")
		t.Ok(a.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare")
		queue := a.durableQueue()
		a.bind(queue, "#", topic, nil)
		five := t.clean5()
		five.subscribe(paho.SubscribeOptions{Topic: topic + "/#", QoS: 1}, 0)
		c.send("/topic/"+topic+".k", []byte("{}"), "persistent", "true", "content-type", "application/json",
			"correlation-id", "correlation-7", "reply-to", "/queue/replies", "amqp-message-id", "message-7",
			"type", "order.created", "app-id", "interop", "priority", "5", "timestamp", "1700000000",
			"expiration", "600000", "plain", "grüße, 世界")
		got := a.getSoon(queue)
		Equal(t, fmt.Sprint(got.ContentType, got.CorrelationId, got.ReplyTo, got.MessageId, got.Type, got.AppId, got.Priority,
			got.Timestamp.Unix(), got.Expiration, got.DeliveryMode, got.Headers["plain"]),
			fmt.Sprint("application/json", "correlation-7", "replies", "message-7", "order.created", "interop", 5,
				1_700_000_000, "600000", amqp.Persistent, "grüße, 世界"), "AMQP properties")
		p := Receive(t, five.inbox, "the message at the MQTT client").properties
		Equal(t, p.ContentType+"|"+p.ResponseTopic+"|"+string(p.CorrelationData), "application/json|$queue/replies|correlation-7",
			"MQTT's own properties")
		Equal(t, p.User.Get("plain")+p.User.Get("message-id"), "grüße, 世界message-7", "MQTT user properties")
		native := Receive(t, t.member(t.Name("group"), topic).inbox, "the message at the native client")
		for name, want := range map[string]string{"content-type": "application/json", "correlation-id": "correlation-7",
			"reply-to": "replies", "message-id": "message-7", "type": "order.created", "priority": "5",
			"timestamp": "1700000000000", "plain": "grüße, 世界"} {
			Equal(t, native.GetProperty(name), want, "native property "+name)
		}

		subscription := c.subscribe("/topic/"+topic+".#", stomp.AckAuto)
		a.confirmMode()
		a.confirmed(topic, "back", amqp.Publishing{DeliveryMode: amqp.Persistent, ContentType: "application/json",
			CorrelationId: "correlation-7", ReplyTo: "replies", MessageId: "message-7", Type: "order.created", Priority: 5,
			Headers: amqp.Table{"plain": "grüße, 世界", "int": int32(-7), "bool": true, "double": 0.5}, Body: []byte("{}")})
		header := c.next(subscription, "AMQP's at STOMP").Header
		for name, want := range map[string]string{"content-type": "application/json", "correlation-id": "correlation-7",
			"reply-to": "/reply-queue/replies", "amqp-message-id": "message-7", "type": "order.created", "priority": "5",
			"plain": "grüße, 世界", "int": "-7", "bool": "true", "double": "0.5", "persistent": "true"} {
			Equal(t, header.Get(name), want, "STOMP header "+name)
		}
		t.send(t.producer(), message(topic, "{}").WithTag("back").WithKeys([]string{"k1", "k2"}))
		header = c.next(subscription, "RocketMQ's at STOMP").Header
		Equal(t, header.Get("key")+"|"+header.Get("tag"), "k1 k2|back", "key and tag")
	})
	s.Check("across_a_stomp_transaction_is_seen_whole_or_not_at_all_by_a_native_group", func(t *T) {
		c, topic := t.stomp(), t.Name("tx")
		destination := "/topic/" + topic + ".k"
		c.send(destination, []byte("before"), "persistent", "true")
		m := t.member(t.Name("group"), topic)
		Equal(t, t.bodies(m, 1), map[string]int{"before": 1}, "bodies")
		send := func(tx *stomp.Transaction, count int) {
			for i := range count {
				body := []byte(fmt.Sprint(i))
				t.Ok(tx.Send(destination, "", body, stomp.SendOpt.Header("persistent", "true")), "send")
			}
		}
		aborted := c.conn.Begin()
		send(aborted, 7)
		t.Ok(aborted.Abort(), "abort")
		open := c.conn.Begin()
		send(open, 7)
		c.send(destination, []byte("between"), "persistent", "true")
		Equal(t, t.bodies(m, 1), map[string]int{"between": 1}, "bodies before the commit")
		t.Ok(open.Commit(), "commit")
		want := map[string]int{}
		for i := range 7 {
			want[fmt.Sprint(i)] = 1
		}
		Equal(t, t.bodies(m, 7), want, "bodies after the commit")
	})
	s.Check("across_a_stomp_client_replies_to_an_amqp_request", func(t *T) {
		c, a := t.stomp(), t.amqp()
		service := t.Name("service")
		requests := c.subscribe("/queue/"+service, stomp.AckAuto)
		replies, err := a.ch.QueueDeclare("", false, true, true, false, nil)
		t.Ok(err, "declare the reply queue")
		deliveries := a.consume(replies.Name, true)
		t.Ok(a.ch.PublishWithContext(t, "", service, false, false, amqp.Publishing{ReplyTo: replies.Name,
			CorrelationId: "7", Body: []byte("what?")}), "publish")
		request := c.next(requests, "the request")
		c.send(request.Header.Get("reply-to"), []byte("that"), "correlation-id", request.Header.Get("correlation-id"))
		reply := Receive(t, deliveries, "the reply")
		Equal(t, string(reply.Body)+reply.CorrelationId, "that7", "body and correlation id")

		// And the other way round, by a temporary queue.
		queue := a.durableQueue()
		c.send("/queue/"+queue, []byte("what?"), "reply-to", "/temp-queue/answers")
		asked := a.getSoon(queue)
		subscription := c.subscribe("/temp-queue/answers", stomp.AckAuto)
		t.Ok(a.ch.PublishWithContext(t, "", asked.ReplyTo, false, false, amqp.Publishing{Body: []byte("that")}), "reply")
		Equal(t, string(c.next(subscription, "the answer").Body), "that", "body")
	})
	s.Check("across_mqtt_telemetry_is_history_for_a_group_created_later", func(t *T) {
		topic := t.Name("telemetry")
		const devices, each = 5, 40
		for device := range devices {
			c := t.mqtt3()
			for i := range each {
				c.publish(fmt.Sprintf("%s/%d/temperature", topic, device), 1, []byte(fmt.Sprint(i)))
			}
		}
		inbox := make(chan *primitive.MessageExt, 1000)
		t.memberWith(&member{}, t.Name("group"), topic, consumer.MessageSelector{}, func(msg *primitive.MessageExt) {
			inbox <- msg
		}, consumer.WithConsumerOrder(true), consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset))
		next := map[string]int{}
		for range devices * each {
			msg := Receive(t, inbox, "a message of the history")
			Equal(t, string(msg.Body), fmt.Sprint(next[msg.GetTags()]), "next of "+msg.GetTags())
			next[msg.GetTags()]++
		}
		Equal(t, len(next), devices, "devices")
	})
	s.Check("across_delayed_and_transactional_native_messages_reach_mqtt_and_stomp", func(t *T) {
		topic := t.Name("later")
		c, subscriber := t.stomp(), t.mqtt3()
		subscription := c.subscribe("/topic/"+topic+".#", stomp.AckAuto)
		subscriber.subscribe(topic+"/#", 1)
		t.send(t.producer(), message(topic, "delayed").WithTag("k").WithDelayTimeLevel(1))
		Equal(t, string(c.next(subscription, "the delayed message").Body), "delayed", "body at STOMP")
		Equal(t, string(subscriber.next("the delayed message").body), "delayed", "body at MQTT")
		for _, state := range []primitive.LocalTransactionState{primitive.RollbackMessageState, primitive.CommitMessageState} {
			p, _ := t.transactional(t.Name("producers"), state, state)
			_, err := p.SendMessageInTransaction(t, message(topic, "state %d", state).WithTag("k"))
			t.Ok(err, "send in a transaction")
		}
		want := fmt.Sprintf("state %d", primitive.CommitMessageState)
		Equal(t, string(c.next(subscription, "the committed message").Body), want, "body at STOMP")
		Equal(t, string(subscriber.next("the committed message").body), want, "body at MQTT")
	})
	s.Check("across_stomp_clients_are_members_of_a_native_group", func(t *T) {
		topic, group := t.Name("topic"), t.Name("group")
		p := t.producer()
		for i := range 20 {
			t.send(p, message(topic, "%d", i).WithTag([]string{"a", "b"}[i%2]))
		}
		one, other := t.stomp(), t.stomp()
		subscribe := func(c *stompT) *stomp.Subscription {
			s, err := c.conn.Subscribe("/rocketmq/"+topic, stomp.AckClientIndividual, stomp.SubscribeOpt.Header("group", group),
				stomp.SubscribeOpt.Header("tag", "a"), stomp.SubscribeOpt.Header("prefetch-count", "5"))
			t.Ok(err, "subscribe")
			return s
		}
		first := subscribe(one)
		seen := map[string]int{}
		for range 5 {
			msg := one.next(first, "a message")
			Equal(t, msg.Header.Get("tag"), "a", "tag")
			seen[string(msg.Body)]++
			t.Ok(one.conn.Ack(msg), "ack")
		}
		held := one.next(first, "a message that is not acknowledged")
		t.Ok(one.conn.Nack(held), "nack")
		t.Ok(one.conn.Disconnect(), "disconnect")
		second := subscribe(other)
		for range 5 {
			msg := other.next(second, "a message")
			seen[string(msg.Body)]++
			t.Ok(other.conn.Ack(msg), "ack")
		}
		Equal(t, len(seen), 10, "different messages, each acknowledged once")
	})
}
