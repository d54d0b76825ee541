package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// client5 is a connected MQTT 5.0 client.
type client5 struct {
	*paho.Client
	t       *T
	connack *paho.Connack
	inbox   chan mqttMessage
	ended   chan *paho.Disconnect
}

// mqtt5 connects an MQTT 5.0 client.
func (t *T) mqtt5(connect paho.Connect) *client5 {
	conn, err := net.Dial("tcp", t.at.mqtt)
	t.Ok(err, "connect")
	c := &client5{t: t, inbox: make(chan mqttMessage, 100_000), ended: make(chan *paho.Disconnect, 1)}
	c.Client = paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			p := r.Packet
			c.inbox <- mqttMessage{topic: p.Topic, body: p.Payload, qos: p.QoS, retained: p.Retain,
				duplicate: p.Duplicate(), properties: p.Properties}
			return true, nil
		}},
		OnServerDisconnect: func(d *paho.Disconnect) { c.ended <- d },
	})
	t.Cleanup(func() { _ = c.Client.Disconnect(&paho.Disconnect{}); _ = conn.Close() })
	if connect.KeepAlive == 0 {
		connect.KeepAlive = 30
	}
	c.connack, err = c.Client.Connect(t, &connect)
	t.Ok(err, "connect")
	return c
}

func (t *T) clean5() *client5 {
	return t.mqtt5(paho.Connect{ClientID: t.Name("mqtt5"), CleanStart: true})
}

func (c *client5) subscribe(options paho.SubscribeOptions, identifier int) byte {
	subscribe := &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{options}}
	if identifier > 0 {
		subscribe.Properties = &paho.SubscribeProperties{SubscriptionIdentifier: &identifier}
	}
	suback, err := c.Client.Subscribe(c.t, subscribe)
	c.t.Ok(err, "subscribe to "+options.Topic)
	return suback.Reasons[0]
}

func (c *client5) publish(p *paho.Publish) {
	response, err := c.Client.Publish(c.t, p)
	c.t.Ok(err, "publish to "+p.Topic)
	if p.QoS > 0 {
		c.t.True(response.ReasonCode == 0 || response.ReasonCode == 0x10, "PUBACK says 0x%02x", response.ReasonCode)
	}
}

func pointer[V any](value V) *V { return &value }

func mqttChecks5(s *Suite) {
	s.Check("mqtt5_properties_are_unchanged", func(t *T) {
		subscriber, publisher, topic := t.clean5(), t.clean5(), t.Name("topic")+"/p"
		subscriber.subscribe(paho.SubscribeOptions{Topic: topic, QoS: 1}, 0)
		for qos := range byte(2) {
			publisher.publish(&paho.Publish{Topic: topic, QoS: qos, Payload: []byte("{}"), Properties: &paho.PublishProperties{
				ContentType: "application/json", ResponseTopic: "reply/here", CorrelationData: []byte{0, 1, 255},
				PayloadFormat: pointer(byte(1)), MessageExpiry: pointer(uint32(600)),
				User: paho.UserProperties{{Key: "a", Value: "1"}, {Key: "b", Value: "grüße"}, {Key: "a", Value: "2"}, {Key: "", Value: ""}},
			}})
			got := Receive(t, subscriber.inbox, "the message")
			Equal(t, got.qos, qos, "QoS")
			p := got.properties
			Equal(t, p.ContentType+" "+p.ResponseTopic, "application/json reply/here", "content type and response topic")
			SameBytes(t, p.CorrelationData, []byte{0, 1, 255}, "correlation data")
			t.True(p.PayloadFormat != nil && *p.PayloadFormat == 1, "payload format %v", p.PayloadFormat)
			t.True(p.MessageExpiry != nil && *p.MessageExpiry <= 600 && *p.MessageExpiry > 300, "message expiry %v", p.MessageExpiry)
			Equal(t, p.User, paho.UserProperties{{Key: "a", Value: "1"}, {Key: "b", Value: "grüße"}, {Key: "a", Value: "2"}, {Key: "", Value: ""}},
				"user properties in order")
		}
	})
	s.Check("mqtt5_properties_reach_311_subscribers_as_nothing", func(t *T) {
		old, publisher, topic := t.mqtt3(), t.clean5(), t.Name("topic")
		old.subscribe(topic, 1)
		publisher.publish(&paho.Publish{Topic: topic, QoS: 1, Payload: []byte("hello"), Properties: &paho.PublishProperties{
			ContentType: "text/plain", User: paho.UserProperties{{Key: "k", Value: "v"}}}})
		Equal(t, string(old.next("the message").body), "hello", "body")
		old.publish(topic, 1, []byte("back"))
		Equal(t, string(old.next("the message").body), "back", "body")
	})
	s.Check("mqtt5_connack_tells_what_the_server_can", func(t *T) {
		client := t.mqtt5(paho.Connect{CleanStart: true})
		p := client.connack.Properties
		t.True(p != nil && p.AssignedClientID != "", "no client id was assigned")
		t.True(p.ReceiveMaximum == nil || *p.ReceiveMaximum > 0, "receive maximum %v", p.ReceiveMaximum)
		t.True(p.WildcardSubAvailable, "no wildcards")
	})
	s.Check("mqtt5_a_session_lives_until_it_expires", func(t *T) {
		id, topic, publisher := t.Name("session"), t.Name("topic"), t.clean5()
		connect := func(clean bool, expiry uint32) *client5 {
			return t.mqtt5(paho.Connect{ClientID: id, CleanStart: clean,
				Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, RequestProblemInfo: true}})
		}
		client := connect(true, 600)
		Equal(t, client.connack.SessionPresent, false, "session present at first")
		client.subscribe(paho.SubscribeOptions{Topic: topic, QoS: 1}, 0)
		t.Ok(client.Client.Disconnect(&paho.Disconnect{}), "disconnect")
		for i := range 50 {
			publisher.publish(&paho.Publish{Topic: topic, QoS: 1, Payload: []byte(fmt.Sprint(i)),
				Properties: &paho.PublishProperties{User: paho.UserProperties{{Key: "n", Value: fmt.Sprint(i)}}}})
		}
		client = connect(false, 600)
		Equal(t, client.connack.SessionPresent, true, "session present")
		for i := range 50 {
			got := Receive(t, client.inbox, "a message from while away")
			Equal(t, string(got.body)+" "+got.properties.User.Get("n"), fmt.Sprintf("%d %d", i, i), "message")
		}
		t.Ok(client.Client.Disconnect(&paho.Disconnect{Properties: &paho.DisconnectProperties{
			SessionExpiryInterval: pointer(uint32(0))}}), "disconnect and end the session")
		// DISCONNECT is not answered: the session is gone when nobody wants its topic any more.
		t.Eventually("the end of the session", func() bool {
			response, err := publisher.Client.Publish(t, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("x")})
			t.Ok(err, "publish")
			return response.ReasonCode == 0x10
		})
		client = connect(false, 0)
		Equal(t, client.connack.SessionPresent, false, "session present after its end")
	})
	s.Check("mqtt5_no_local_spares_the_publisher", func(t *T) {
		client, other, topic := t.clean5(), t.clean5(), t.Name("topic")
		client.subscribe(paho.SubscribeOptions{Topic: topic, QoS: 1, NoLocal: true}, 0)
		client.publish(&paho.Publish{Topic: topic, QoS: 1, Payload: []byte("mine")})
		other.publish(&paho.Publish{Topic: topic, QoS: 1, Payload: []byte("theirs")})
		Equal(t, string(Receive(t, client.inbox, "a message").body), "theirs", "body")
	})
	s.Check("mqtt5_subscription_identifiers_come_with_the_message", func(t *T) {
		client, topic := t.clean5(), t.Name("topic")
		client.subscribe(paho.SubscribeOptions{Topic: topic + "/a", QoS: 1}, 7)
		client.subscribe(paho.SubscribeOptions{Topic: topic + "/b", QoS: 1}, 268_435_455)
		client.subscribe(paho.SubscribeOptions{Topic: topic + "/c", QoS: 1}, 0)
		for name, want := range map[string]*int{"/a": pointer(7), "/b": pointer(268_435_455), "/c": nil} {
			client.publish(&paho.Publish{Topic: topic + name, QoS: 1, Payload: []byte("x")})
			got := Receive(t, client.inbox, "a message").properties.SubscriptionIdentifier
			t.True((got == nil) == (want == nil) && (got == nil || *got == *want), "%s: identifier %v", name, got)
		}
	})
	s.Check("mqtt5_a_taken_over_client_is_told", func(t *T) {
		id := t.Name("twice")
		one := t.mqtt5(paho.Connect{ClientID: id, CleanStart: true})
		t.mqtt5(paho.Connect{ClientID: id, CleanStart: true})
		Equal(t, Receive(t, one.ended, "DISCONNECT").ReasonCode, byte(0x8e), "reason code")
	})
	s.Check("mqtt5_a_bad_filter_is_refused_and_good_ones_are_granted", func(t *T) {
		client, topic := t.clean5(), t.Name("topic")
		for qos := range byte(2) {
			Equal(t, client.subscribe(paho.SubscribeOptions{Topic: topic, QoS: qos}, 0), qos, "granted QoS")
		}
		unsuback, err := client.Client.Unsubscribe(t, &paho.Unsubscribe{Topics: []string{topic, topic + "/never"}})
		t.Ok(err, "unsubscribe")
		Equal(t, unsuback.Reasons, []byte{0, 0x11}, "reason codes of UNSUBACK")
	})
	s.Check("mqtt5_receive_maximum_of_the_client_is_kept", func(t *T) {
		conn := &countingClient{acknowledge: make(chan struct{})}
		topic, publisher := t.Name("topic"), t.clean5()
		conn.connect(t, topic, 3)
		for i := range 10 {
			publisher.publish(&paho.Publish{Topic: topic, QoS: 1, Payload: []byte(fmt.Sprint(i))})
		}
		for i := range 10 {
			got := Receive(t, conn.inbox, "a message")
			Equal(t, string(got.Payload), fmt.Sprint(i), "body")
			if i == 2 {
				// Three are unacknowledged: the server must wait, however long it takes.
				select {
				case more := <-conn.inbox:
					t.Fatalf("%s came beyond the receive maximum", more.Payload)
				case <-time.After(300 * time.Millisecond):
				}
				close(conn.acknowledge)
			}
		}
	})
}

// countingClient acknowledges only when told to.
type countingClient struct {
	acknowledge chan struct{}
	inbox       chan *paho.Publish
}

func (c *countingClient) connect(t *T, topic string, receiveMaximum uint16) {
	conn, err := net.Dial("tcp", t.at.mqtt)
	t.Ok(err, "connect")
	c.inbox = make(chan *paho.Publish, 100)
	var client *paho.Client
	client = paho.NewClient(paho.ClientConfig{
		Conn: conn, EnableManualAcknowledgment: true, SendAcksInterval: 10 * time.Millisecond,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			c.inbox <- r.Packet
			go func() {
				<-c.acknowledge
				_ = client.Ack(r.Packet)
			}()
			return true, nil
		}},
	})
	t.Cleanup(func() { _ = client.Disconnect(&paho.Disconnect{}); _ = conn.Close() })
	_, err = client.Connect(context.Background(), &paho.Connect{ClientID: t.Name("slow"), CleanStart: true, KeepAlive: 30,
		Properties: &paho.ConnectProperties{ReceiveMaximum: &receiveMaximum, RequestProblemInfo: true}})
	t.Ok(err, "connect")
	_, err = client.Subscribe(t, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: 1}}})
	t.Ok(err, "subscribe")
}
