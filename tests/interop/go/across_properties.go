package main

import (
	"fmt"
	"time"

	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/eclipse/paho.golang/paho"
	"github.com/go-stomp/stomp/v3"
	amqp "github.com/rabbitmq/amqp091-go"
)

// Properties that more than one protocol knows, as native clients see them.
var sharedProperties = map[string]string{
	"content-type":   "application/json",
	"correlation-id": "correlation-7",
	"reply-to":       "replies/here",
	"message-id":     "message-7",
	"type":           "order.created",
	"app-id":         "interop",
	"priority":       "5",
	"plain":          "grüße, 世界",
}

func acrossPropertyChecks(s *Suite) {
	s.Check("across_amqp_properties_reach_native_and_mqtt_clients", func(t *T) {
		c, topic := t.amqp(), t.Name("properties")
		t.Ok(c.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare")
		c.confirmMode()
		subscriber := t.clean5()
		subscriber.subscribe(paho.SubscribeOptions{Topic: topic + "/#", QoS: 1}, 0)
		c.confirmed(topic, "k", amqp.Publishing{
			DeliveryMode: amqp.Persistent, ContentType: "application/json", CorrelationId: "correlation-7",
			ReplyTo: "replies/here", MessageId: "message-7", Type: "order.created", AppId: "interop", Priority: 5,
			Timestamp: time.Unix(1_700_000_000, 0),
			Headers: amqp.Table{"plain": "grüße, 世界", "int": int32(-7), "long": int64(1) << 40, "bool": true,
				"double": 0.5, "x-sharding-key": "shard-1"},
			Body: []byte("{}"),
		})
		native := Receive(t, t.member(t.Name("group"), topic).inbox, "the message at the native client")
		for name, want := range sharedProperties {
			Equal(t, native.GetProperty(name), want, "native property "+name)
		}
		for name, want := range map[string]string{"int": "-7", "long": "1099511627776", "bool": "true",
			"double": "0.5", "timestamp": "1700000000000", "__SHARDINGKEY": "shard-1", "TAGS": "k"} {
			Equal(t, native.GetProperty(name), want, "native property "+name)
		}
		p := Receive(t, subscriber.inbox, "the message at the MQTT client").properties
		Equal(t, p.ContentType+"|"+p.ResponseTopic+"|"+string(p.CorrelationData),
			"application/json|$queue/replies/here|correlation-7", "MQTT's own properties")
		for name, want := range map[string]string{"message-id": "message-7", "type": "order.created",
			"app-id": "interop", "priority": "5", "plain": "grüße, 世界", "int": "-7", "bool": "true", "double": "0.5"} {
			Equal(t, p.User.Get(name), want, "MQTT user property "+name)
		}
	})
	s.Check("across_native_properties_reach_amqp_and_mqtt_clients", func(t *T) {
		c, topic := t.amqp(), t.Name("properties")
		t.Ok(c.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare")
		queue := c.durableQueue()
		c.bind(queue, "#", topic, nil)
		subscriber := t.clean5()
		subscriber.subscribe(paho.SubscribeOptions{Topic: topic + "/#", QoS: 1}, 0)
		msg := primitive.NewMessage(topic, []byte("{}")).WithTag("k").WithKeys([]string{"key1", "key2"})
		for name, value := range sharedProperties {
			msg.WithProperty(name, value)
		}
		t.send(t.producer(), msg)
		got := c.getSoon(queue)
		Equal(t, fmt.Sprint([]string{got.ContentType, got.CorrelationId, got.ReplyTo, got.MessageId, got.Type, got.AppId}),
			fmt.Sprint([]string{"application/json", "correlation-7", "replies/here", "message-7", "order.created", "interop"}),
			"AMQP properties")
		Equal(t, got.Priority, uint8(5), "priority")
		Equal(t, got.Headers["plain"], any("grüße, 世界"), "header plain")
		Equal(t, got.Headers["KEYS"], any("key1 key2"), "header KEYS")
		Equal(t, got.DeliveryMode, uint8(amqp.Persistent), "delivery mode")
		for name := range got.Headers {
			t.True(name != "UNIQ_KEY" && name != "TAGS" && name != "CLUSTER", "header %s is of no use here", name)
		}
		p := Receive(t, subscriber.inbox, "the message at the MQTT client").properties
		Equal(t, p.ContentType+"|"+p.ResponseTopic+"|"+string(p.CorrelationData),
			"application/json|replies/here|correlation-7", "MQTT's own properties")
		Equal(t, p.User.Get("plain")+"|"+p.User.Get("KEYS"), "grüße, 世界|key1 key2", "MQTT user properties")
	})
	s.Check("across_mqtt_and_native_properties_reach_stomp_clients", func(t *T) {
		c, topic := t.stomp(), t.Name("properties")
		subscription := c.subscribe("/topic/"+topic+".#", stomp.AckAuto)
		t.clean5().publish(&paho.Publish{Topic: topic + "/k", QoS: 1, Payload: []byte("{}"), Properties: &paho.PublishProperties{
			ContentType: "application/json", ResponseTopic: "replies/here", CorrelationData: []byte("correlation-7"),
			User: paho.UserProperties{{Key: "message-id", Value: "message-7"}, {Key: "type", Value: "order.created"},
				{Key: "app-id", Value: "interop"}, {Key: "priority", Value: "5"}, {Key: "plain", Value: "grüße, 世界"}},
		}})
		msg := primitive.NewMessage(topic, []byte("{}")).WithTag("k")
		// As the Java clients call it; this one has a name of its own.
		msg.WithProperty("__SHARDINGKEY", "shard-1")
		for name, value := range sharedProperties {
			msg.WithProperty(name, value)
		}
		fromMQTT := c.next(subscription, "MQTT's at STOMP").Header
		t.send(t.producer(), msg)
		fromNative := c.next(subscription, "RocketMQ's at STOMP").Header
		for name, want := range sharedProperties {
			switch name {
			case "message-id":
				name = "amqp-message-id"
			case "reply-to":
				Equal(t, fromMQTT.Get(name), "/topic/replies.here", "STOMP header "+name+" of MQTT's")
				Equal(t, fromNative.Get(name), "/reply-queue/"+want, "STOMP header "+name+" of RocketMQ's")
				continue
			}
			Equal(t, fromMQTT.Get(name), want, "STOMP header "+name+" of MQTT's")
			Equal(t, fromNative.Get(name), want, "STOMP header "+name+" of RocketMQ's")
		}
		Equal(t, fromNative.Get("x-sharding-key")+fromNative.Get("persistent"), "shard-1true", "ordering key, persistent")
		Equal(t, fromMQTT.Get("persistent"), "true", "QoS 1 is persistent")
	})
	s.Check("across_a_time_to_live_is_everybodys", func(t *T) {
		a, five, st, topic := t.amqp(), t.clean5(), t.stomp(), t.Name("expiry")
		t.Ok(a.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare")
		queue := a.durableQueue()
		a.bind(queue, "#", topic, nil)
		five.subscribe(paho.SubscribeOptions{Topic: topic + "/#", QoS: 1}, 0)
		subscription := st.subscribe("/topic/"+topic+".#", stomp.AckAuto)
		a.confirmMode()
		for from, publish := range map[string]func(){
			"amqp": func() {
				a.confirmed(topic, "k", amqp.Publishing{DeliveryMode: amqp.Persistent, Expiration: "600000", Body: []byte("x")})
			},
			"mqtt": func() {
				five.publish(&paho.Publish{Topic: topic + "/k", QoS: 1, Payload: []byte("x"),
					Properties: &paho.PublishProperties{MessageExpiry: pointer(uint32(600))}})
			},
			"stomp": func() {
				st.send("/topic/"+topic+".k", []byte("x"), "persistent", "true", "expiration", "600000")
			},
		} {
			publish()
			expiry := Receive(t, five.inbox, "the message at MQTT").properties.MessageExpiry
			t.True(expiry != nil && *expiry <= 600 && *expiry > 500, "of %s at MQTT: %v", from, expiry)
			Equal(t, a.getSoon(queue).Expiration, "600000", "of "+from+" at AMQP")
			Equal(t, st.next(subscription, "the message at STOMP").Header.Get("expiration"), "600000", "of "+from+" at STOMP")
		}
		native := t.bodies(t.member(t.Name("group"), topic), 3)
		Equal(t, native, map[string]int{"x": 3}, "bodies at the native group")
	})
	s.Check("across_mqtt_properties_reach_amqp_and_native_clients", func(t *T) {
		c, topic := t.amqp(), t.Name("properties")
		t.Ok(c.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare")
		queue := c.durableQueue()
		c.bind(queue, "#", topic, nil)
		publisher := t.clean5()
		publisher.publish(&paho.Publish{Topic: topic + "/k", QoS: 1, Payload: []byte("{}"), Properties: &paho.PublishProperties{
			ContentType: "application/json", ResponseTopic: "replies/here", CorrelationData: []byte("correlation-7"),
			User: paho.UserProperties{{Key: "message-id", Value: "message-7"}, {Key: "type", Value: "order.created"},
				{Key: "app-id", Value: "interop"}, {Key: "priority", Value: "5"}, {Key: "plain", Value: "grüße, 世界"}},
		}})
		got := c.getSoon(queue)
		Equal(t, fmt.Sprint([]string{got.ContentType, got.CorrelationId, got.ReplyTo, got.MessageId, got.Type, got.AppId}),
			fmt.Sprint([]string{"application/json", "correlation-7", "amq.topic/replies.here", "message-7", "order.created", "interop"}),
			"AMQP properties")
		Equal(t, got.Priority, uint8(5), "priority")
		Equal(t, got.Headers["plain"], any("grüße, 世界"), "header plain")
		native := Receive(t, t.member(t.Name("group"), topic).inbox, "the message at the native client")
		for name, want := range sharedProperties {
			Equal(t, native.GetProperty(name), want, "native property "+name)
		}
	})
}
