package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/eclipse/paho.golang/paho"
	"github.com/go-stomp/stomp/v3"
	amqp "github.com/rabbitmq/amqp091-go"
)

// acrossBeyondChecks are what is more than a message: last values, wills, requests and their answers.
func acrossBeyondChecks(s *Suite) {
	s.Check("across_an_mqtt_retained_message_is_an_amqp_message_once", func(t *T) {
		c, root := t.amqp(), t.Name("retained")
		t.Ok(c.ch.ExchangeDeclare(root, "topic", true, false, false, false, nil), "declare")
		queue, all := c.durableQueue(), c.durableQueue()
		c.bind(queue, "#", root, nil)
		c.bind(all, root+".#", "amq.topic", nil)
		five := t.clean5()
		retain := func(body string) {
			five.publish(&paho.Publish{Topic: root + "/room/light", QoS: 1, Retain: true, Payload: []byte(body),
				Properties: &paho.PublishProperties{ContentType: "text/plain",
					User: paho.UserProperties{{Key: "plain", Value: "grüße"}}}})
		}
		retain("on")
		got := c.getSoon(queue)
		Equal(t, fmt.Sprint(string(got.Body), got.Exchange, got.RoutingKey, got.ContentType, got.Headers["plain"]),
			fmt.Sprint("on", root, "room.light", "text/plain", "grüße"), "the retained message at AMQP")
		Equal(t, string(c.getSoon(all).Body), "on", "body at amq.topic")
		// A binding made later gets what comes later: AMQP knows no last values.
		later := c.durableQueue()
		c.bind(later, "#", root, nil)
		retain("off")
		Equal(t, string(c.getSoon(later).Body), "off", "first message of a later binding")
		Equal(t, string(c.getSoon(queue).Body), "off", "second message")
		// Subscribers of MQTT get the last value, and what AMQP publishes does not replace it.
		c.confirmMode()
		c.confirmed(root, "room.light", persistent([]byte("from amqp")))
		subscriber := t.mqtt3()
		subscriber.subscribe(root+"/#", 1)
		last := subscriber.next("the retained message")
		Equal(t, fmt.Sprint(string(last.body), last.retained), fmt.Sprint("off", true), "last value")
		Equal(t, string(c.getSoon(queue).Body), "from amqp", "third message")
		// Nobody's last value any more; the empty message itself is a message.
		retain("")
		Equal(t, len(c.getSoon(queue).Body), 0, "body of the message that removes the last value")
		fence := t.mqtt3()
		fence.subscribe(root+"/#", 1)
		fence.publish(root+"/fence", 1, []byte("fence"))
		Equal(t, string(fence.next("the fence").body), "fence", "first message after the last value is gone")
		c.getSoon(queue)
		_, more, err := c.ch.Get(queue, true)
		t.Ok(err, "get")
		t.True(!more, "more came than was published")
	})
	for _, delay := range []uint32{0, 1} {
		s.Check(fmt.Sprintf("across_an_mqtt_will_with_delay_%d_is_an_amqp_message", delay), func(t *T) {
			c, root := t.amqp(), t.Name("wills")
			t.Ok(c.ch.ExchangeDeclare(root, "topic", true, false, false, false, nil), "declare")
			queue := c.durableQueue()
			c.bind(queue, "*.state", root, nil)
			st := t.stomp()
			subscription := st.subscribe("/topic/"+root+".#", stomp.AckAuto)
			will := func(topic, body string) (*paho.WillMessage, *paho.WillProperties) {
				return &paho.WillMessage{Topic: topic, QoS: 1, Payload: []byte(body)},
					&paho.WillProperties{WillDelayInterval: pointer(delay),
						User: paho.UserProperties{{Key: "plain", Value: "grüße"}}}
			}
			connect := func(id, body string) *client5 {
				message, properties := will(root+"/"+id+"/state", body)
				return t.mqtt5(paho.Connect{ClientID: root + id, CleanStart: false, WillMessage: message, WillProperties: properties,
					Properties: &paho.ConnectProperties{SessionExpiryInterval: pointer(uint32(600)), RequestProblemInfo: true}})
			}
			// One that says good-bye has no will; with a delay, neither has one that comes back in time.
			good := connect("good", "never")
			t.Ok(good.Client.Disconnect(&paho.Disconnect{}), "disconnect")
			lost := connect("lost", "gone")
			began := time.Now()
			t.Ok(lost.Client.Disconnect(&paho.Disconnect{ReasonCode: 4}), "disconnect with the will")
			got := c.getSoon(queue)
			Equal(t, fmt.Sprint(string(got.Body), got.RoutingKey, got.Headers["plain"], got.DeliveryMode),
				fmt.Sprint("gone", "lost.state", "grüße", amqp.Persistent), "the will at AMQP")
			t.True(time.Since(began) >= time.Duration(delay)*time.Second, "the will came before its delay was over")
			Equal(t, string(st.next(subscription, "the will at STOMP").Body), "gone", "the will at STOMP")
			native := Receive(t, t.member(t.Name("group"), root).inbox, "the will at the native group")
			Equal(t, string(native.Body)+native.GetTags(), "gonelost.state", "the will at the native group")
			// A fence: the will of the good one would have come before.
			five := t.clean5()
			five.publish(&paho.Publish{Topic: root + "/fence/state", QoS: 1, Payload: []byte("fence")})
			Equal(t, string(c.getSoon(queue).Body), "fence", "the next message")
		})
	}
	s.Check("across_a_native_client_replies_to_an_mqtt_request", func(t *T) {
		service, answers := t.Name("service"), t.Name("answers")
		five := t.clean5()
		// The response topic is two levels: topic and tag, as for every message.
		responseTopic := answers + "/of/" + randomHex(4)
		five.subscribe(paho.SubscribeOptions{Topic: responseTopic, QoS: 1}, 0)
		p := t.producer()
		t.send(p, message(service, "makes the topic"))
		inbox := t.member(t.Name("group"), service).inbox
		Receive(t, inbox, "the first message")
		for _, correlation := range [][]byte{[]byte("seven"), {}, {0, 1, 254, 255}} {
			five.publish(&paho.Publish{Topic: service + "/ask", QoS: 1, Payload: []byte("what?"), Properties: &paho.PublishProperties{
				ResponseTopic: responseTopic, CorrelationData: correlation}})
			request := Receive(t, inbox, "the request")
			Equal(t, string(request.Body)+request.GetTags(), "what?ask", "request")
			Equal(t, request.GetProperty("reply-to"), responseTopic, "property reply-to")
			first, levels, _ := strings.Cut(request.GetProperty("reply-to"), "/")
			reply := message(first, "that").WithTag(strings.ReplaceAll(levels, "/", "."))
			reply.WithProperty("correlation-id", request.GetProperty("correlation-id"))
			t.send(p, reply)
			got := Receive(t, five.inbox, "the reply")
			Equal(t, got.topic+" "+string(got.body), responseTopic+" that", "reply")
			if len(correlation) > 0 && correlation[0] != 0 {
				SameBytes(t, got.properties.CorrelationData, correlation, "correlation data")
			}
		}
	})
	s.Check("across_amqp_and_stomp_clients_reply_to_an_mqtt_request", func(t *T) {
		service, answers := t.Name("service"), t.Name("answers")
		five, a, st := t.clean5(), t.amqp(), t.stomp()
		responseTopic := answers + "/me"
		five.subscribe(paho.SubscribeOptions{Topic: responseTopic, QoS: 1}, 0)
		queue := a.durableQueue()
		a.bind(queue, service+".ask", "amq.topic", nil)
		requests := st.subscribe("/topic/"+service+".ask", stomp.AckAuto)
		five.publish(&paho.Publish{Topic: service + "/ask", QoS: 1, Payload: []byte("what?"), Properties: &paho.PublishProperties{
			ResponseTopic: responseTopic, CorrelationData: []byte("seven")}})
		asked := a.getSoon(queue)
		Equal(t, asked.CorrelationId, "seven", "correlation id of the request at AMQP")
		// As every AMQP service answers: to the default exchange, by what the request says.
		a.confirmMode()
		a.confirmed("", asked.ReplyTo, amqp.Publishing{CorrelationId: asked.CorrelationId,
			DeliveryMode: amqp.Persistent, Body: []byte("from amqp")})
		got := Receive(t, five.inbox, "the reply of AMQP")
		Equal(t, string(got.body)+string(got.properties.CorrelationData), "from amqpseven", "reply of AMQP")
		frame := st.next(requests, "the request at STOMP")
		Equal(t, frame.Header.Get("correlation-id"), "seven", "correlation id of the request at STOMP")
		st.send(frame.Header.Get("reply-to"), []byte("from stomp"), "correlation-id", frame.Header.Get("correlation-id"))
		got = Receive(t, five.inbox, "the reply of STOMP")
		Equal(t, string(got.body)+string(got.properties.CorrelationData), "from stompseven", "reply of STOMP")
	})
	s.Check("across_an_mqtt_client_replies_to_amqp_and_stomp_requests", func(t *T) {
		service := t.Name("service")
		five, a, st := t.clean5(), t.amqp(), t.stomp()
		five.subscribe(paho.SubscribeOptions{Topic: service + "/ask", QoS: 1}, 0)
		answer := func(body string) {
			request := Receive(t, five.inbox, "the request")
			Equal(t, string(request.body), "what?", "request")
			five.publish(&paho.Publish{Topic: request.properties.ResponseTopic, QoS: 1, Payload: []byte(body),
				Properties: &paho.PublishProperties{CorrelationData: request.properties.CorrelationData}})
		}
		own, err := a.ch.QueueDeclare("", false, true, true, false, nil)
		t.Ok(err, "declare the reply queue")
		named := a.consume(own.Name, true)
		direct := a.consume(replyTo, true)
		for name, answers := range map[string]<-chan amqp.Delivery{own.Name: named, replyTo: direct} {
			a.publish("amq.topic", service+".ask", amqp.Publishing{ReplyTo: name, CorrelationId: "seven", Body: []byte("what?")})
			answer("to amqp")
			got := Receive(t, answers, "the answer")
			Equal(t, string(got.Body)+got.CorrelationId, "to amqpseven", "answer at AMQP by "+name)
		}
		replies := t.Name("replies")
		for _, destination := range []string{"/queue/" + replies, "/topic/" + replies + ".here"} {
			answers := st.subscribe(destination, stomp.AckAuto)
			st.send("/topic/"+service+".ask", []byte("what?"), "reply-to", destination, "correlation-id", "seven")
			answer("to stomp")
			frame := st.next(answers, "the answer")
			Equal(t, string(frame.Body)+frame.Header.Get("correlation-id"), "to stompseven", "answer at STOMP by "+destination)
		}
	})
	s.Check("across_a_stomp_client_answers_an_amqp_client_by_direct_reply_to", func(t *T) {
		a, st, service := t.amqp(), t.stomp(), t.Name("service")
		requests := st.subscribe("/queue/"+service, stomp.AckAuto)
		answers := a.consume(replyTo, true)
		a.publish("", service, amqp.Publishing{ReplyTo: replyTo, CorrelationId: "seven", Body: []byte("what?")})
		request := st.next(requests, "the request")
		st.send(request.Header.Get("reply-to"), []byte("that"), "correlation-id", request.Header.Get("correlation-id"))
		answer := Receive(t, answers, "the answer")
		Equal(t, string(answer.Body)+answer.CorrelationId, "thatseven", "body and correlation id")
	})
	s.Check("across_a_timed_native_message_reaches_amqp_when_it_is_due", func(t *T) {
		topic := t.Name("timed")
		c := t.amqp()
		t.Ok(c.ch.ExchangeDeclare(topic, "topic", true, false, false, false, nil), "declare")
		queue := c.durableQueue()
		c.bind(queue, "k", topic, nil)
		subscriber := t.mqtt3()
		subscriber.subscribe(topic+"/k", 1)
		later := message(topic, "later").WithTag("k")
		began := time.Now()
		later.WithProperty("TIMER_DELAY_MS", "1500")
		t.send(t.producer(), later)
		t.send(t.producer(), message(topic, "now").WithTag("k"))
		// On a busy machine the second may be sent when the first is due.
		got := map[string]int{}
		for range 2 {
			got["AMQP "+string(c.getSoon(queue).Body)]++
			got["MQTT "+string(subscriber.next("a message").body)]++
			t.True(got["AMQP later"]+got["MQTT later"] == 0 || time.Since(began) >= 1500*time.Millisecond,
				"it came before it was due")
		}
		Equal(t, got, map[string]int{"AMQP now": 1, "MQTT now": 1, "AMQP later": 1, "MQTT later": 1}, "messages")
	})
	s.Check("across_a_group_created_later_reads_what_every_protocol_published", func(t *T) {
		topic := t.Name("history")
		var want []string
		for from, publisher := range publishers {
			send := publisher(t, topic, "k")
			for i := range 5 {
				body := fmt.Sprint(from, i)
				send([]byte(body))
				want = append(want, body)
			}
		}
		m := t.selecting(t.Name("group"), topic, consumer.MessageSelector{Type: consumer.TAG, Expression: "k"})
		got := t.bodies(m, len(want))
		for _, body := range want {
			Equal(t, got[body], 1, "deliveries of "+body)
		}
	})
}
