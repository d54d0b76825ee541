package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	mqtt3 "github.com/eclipse/paho.mqtt.golang"

	"github.com/eclipse/paho.golang/paho"
)

func mqttSuite(s *Suite) {
	mqttChecks3(s)
	mqttSessionChecks3(s)
	mqttCompleteChecks(s)
	mqttChecks5(s)
}

// mqttMessage is what a subscriber got, of either version.
type mqttMessage struct {
	topic      string
	body       []byte
	qos        byte
	retained   bool
	duplicate  bool
	properties *paho.PublishProperties
}

// client3 is a connected MQTT 3.1.1 client.
type client3 struct {
	mqtt3.Client
	t     *T
	inbox chan mqttMessage
	lost  chan error
}

func (t *T) mqttOptions() *mqtt3.ClientOptions {
	return mqtt3.NewClientOptions().AddBroker("tcp://" + t.at.mqtt).SetClientID(t.Name("mqtt")).
		SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(time.Minute).
		SetMaxReconnectInterval(time.Second).SetOrderMatters(true)
}

// mqtt3 connects an MQTT 3.1.1 client with a clean session.
func (t *T) mqtt3() *client3 {
	return t.mqtt3With(t.mqttOptions())
}

func (t *T) mqtt3With(options *mqtt3.ClientOptions) *client3 {
	c := t.prepare3(options)
	t.done3(c.Connect(), "connect")
	return c
}

// prepare3 makes a client whose messages go to its inbox, before it connects.
func (t *T) prepare3(options *mqtt3.ClientOptions) *client3 {
	c := &client3{t: t, inbox: make(chan mqttMessage, 100_000), lost: make(chan error, 1)}
	options.SetDefaultPublishHandler(func(_ mqtt3.Client, m mqtt3.Message) {
		c.inbox <- mqttMessage{topic: m.Topic(), body: m.Payload(), qos: m.Qos(), retained: m.Retained(),
			duplicate: m.Duplicate()}
	})
	options.SetConnectionLostHandler(func(_ mqtt3.Client, why error) { c.lost <- why })
	c.Client = mqtt3.NewClient(options)
	t.Cleanup(func() { c.Disconnect(100) })
	return c
}

func (t *T) done3(token mqtt3.Token, what string) {
	select {
	case <-token.Done():
		t.Ok(token.Error(), what)
	case <-t.Done():
		t.Fatalf("%s: no answer in time", what)
	}
}

func (c *client3) subscribe(filter string, qos byte) byte {
	token := c.Client.Subscribe(filter, qos, nil)
	c.t.done3(token, "subscribe to "+filter)
	return token.(*mqtt3.SubscribeToken).Result()[filter]
}

func (c *client3) unsubscribe(filter string) {
	c.t.done3(c.Client.Unsubscribe(filter), "unsubscribe from "+filter)
}

func (c *client3) publish(topic string, qos byte, body []byte) {
	c.t.done3(c.Client.Publish(topic, qos, false, body), "publish to "+topic)
}

func (c *client3) next(what string) mqttMessage {
	return Receive(c.t, c.inbox, what)
}

func mqttChecks3(s *Suite) {
	for _, qos := range []byte{0, 1} {
		s.Check(fmt.Sprintf("mqtt3_qos_%d_in_order", qos), func(t *T) {
			const count = 2000
			subscriber, publisher, topic := t.mqtt3(), t.mqtt3(), t.Name("topic")+"/a"
			Equal(t, subscriber.subscribe(topic, qos), qos, "granted QoS")
			for i := range count {
				token := publisher.Client.Publish(topic, qos, false, fmt.Sprint(i))
				if i%100 == 99 {
					t.done3(token, "publish")
				}
			}
			for i := range count {
				got := subscriber.next("a message")
				Equal(t, fmt.Sprintf("%s %s %d %t %t", got.topic, got.body, got.qos, got.retained, got.duplicate),
					fmt.Sprintf("%s %d %d false false", topic, i, qos), "message")
			}
		})
	}
	s.Check("mqtt3_a_message_has_the_lower_qos_of_both_sides", func(t *T) {
		subscriber, publisher, topic := t.mqtt3(), t.mqtt3(), t.Name("topic")
		subscriber.subscribe(topic+"/0", 0)
		subscriber.subscribe(topic+"/1", 1)
		for _, row := range []struct {
			name           string
			published, got byte
		}{{"/0", 1, 0}, {"/1", 0, 0}, {"/1", 1, 1}, {"/0", 0, 0}} {
			publisher.publish(topic+row.name, row.published, []byte("x"))
			Equal(t, subscriber.next("a message").qos, row.got, "QoS")
		}
	})
	for _, size := range bodySizes {
		s.Check(fmt.Sprintf("mqtt3_body_of_%d_bytes_is_unchanged", size), func(t *T) {
			subscriber, publisher, topic := t.mqtt3(), t.mqtt3(), t.Name("topic")+"/body"
			subscriber.subscribe(topic, 1)
			for _, qos := range []byte{0, 1} {
				body := randomBytes(size)
				publisher.publish(topic, qos, body)
				SameBytes(t, subscriber.next("the message").body, body, "body")
			}
		})
	}
	s.Check("mqtt3_wildcards_match", func(t *T) {
		publisher, root := t.mqtt3(), t.Name("w")
		topics := []string{"", "/a", "/a/b", "/a/b/c", "/a/", "//b", "/x/b", "/a.b/c", "/ü/日"}
		for filter, want := range map[string]string{
			"/#":       "|/a|/a/b|/a/b/c|/a/|//b|/x/b|/a.b/c|/ü/日|",
			"/+":       "/a|",
			"/+/b":     "/a/b|//b|/x/b|",
			"/a/+":     "/a/b|/a/|",
			"/a/#":     "/a|/a/b|/a/b/c|/a/|",
			"/+/+":     "/a/b|/a/|//b|/x/b|/a.b/c|/ü/日|",
			"/a/b/c":   "/a/b/c|",
			"/a.b/c":   "/a.b/c|",
			"/ü/+":     "/ü/日|",
			"/a/b/c/#": "/a/b/c|",
			"":         "|",
		} {
			subscriber := t.mqtt3()
			subscriber.subscribe(root+filter, 1)
			subscriber.subscribe(root+"-end", 1)
			for _, topic := range topics {
				publisher.publish(root+topic, 1, []byte(topic))
			}
			publisher.publish(root+"-end", 1, []byte("end"))
			got := ""
			for message := subscriber.next("a message"); message.topic != root+"-end"; message = subscriber.next("a message") {
				Equal(t, message.topic, root+string(message.body), "topic")
				got += string(message.body) + "|"
			}
			Equal(t, got, want, "topics for filter "+filter)
			subscriber.Disconnect(100)
		}
	})
	s.Check("mqtt3_topics_that_begin_with_a_slash_are_their_own", func(t *T) {
		subscriber, publisher, name := t.mqtt3(), t.mqtt3(), t.Name("slash")
		subscriber.subscribe("/"+name, 1)
		subscriber.subscribe("+/"+name+"/+", 1)
		publisher.publish(name, 1, []byte("without"))
		publisher.publish("/"+name, 1, []byte("with"))
		publisher.publish("/"+name+"/x", 1, []byte("deeper"))
		Equal(t, string(subscriber.next("a message").body), "with", "first")
		got := subscriber.next("a message")
		Equal(t, got.topic, "/"+name+"/x", "topic of the second")
	})
	s.Check("mqtt3_many_subscribers_get_one_copy_each", func(t *T) {
		publisher, topic := t.mqtt3(), t.Name("topic")+"/fan"
		var subscribers []*client3
		for range 30 {
			subscriber := t.mqtt3()
			subscriber.subscribe(topic, 1)
			subscribers = append(subscribers, subscriber)
		}
		for i := range 10 {
			publisher.publish(topic, 1, []byte(fmt.Sprint(i)))
		}
		for _, subscriber := range subscribers {
			for i := range 10 {
				Equal(t, string(subscriber.next("a message").body), fmt.Sprint(i), "body")
			}
		}
	})
	s.Check("mqtt3_unsubscribing_ends_deliveries", func(t *T) {
		subscriber, publisher, topic := t.mqtt3(), t.mqtt3(), t.Name("topic")
		subscriber.subscribe(topic+"/a", 1)
		subscriber.subscribe(topic+"/b", 1)
		publisher.publish(topic+"/a", 1, []byte("before"))
		Equal(t, string(subscriber.next("a message").body), "before", "body")
		subscriber.unsubscribe(topic + "/a")
		publisher.publish(topic+"/a", 1, []byte("after"))
		publisher.publish(topic+"/b", 1, []byte("other"))
		Equal(t, string(subscriber.next("a message").body), "other", "body")
	})
	s.Check("mqtt3_a_publisher_gets_its_own_messages", func(t *T) {
		client, topic := t.mqtt3(), t.Name("topic")
		client.subscribe(topic, 1)
		client.publish(topic, 1, []byte("to me"))
		Equal(t, string(client.next("a message").body), "to me", "body")
	})
	s.Check("mqtt3_an_empty_client_id_is_welcome_with_a_clean_session", func(t *T) {
		one := t.mqtt3With(t.mqttOptions().SetClientID(""))
		two := t.mqtt3With(t.mqttOptions().SetClientID(""))
		topic := t.Name("topic")
		one.subscribe(topic, 0)
		two.publish(topic, 0, []byte("x"))
		one.next("a message")
	})
	s.Check("mqtt3_keep_alive_keeps_an_idle_client", func(t *T) {
		t.Survives(func(interval time.Duration) error {
			client := t.mqtt3With(t.mqttOptions().SetKeepAlive(interval))
			// Longer than the two intervals after which a silent client would be dropped.
			select {
			case why := <-client.lost:
				return why
			case <-time.After(3 * interval):
			}
			token := client.Client.Publish(t.Name("topic"), 1, false, "x")
			<-token.Done()
			return token.Error()
		})
	})
	s.Check("mqtt3_a_silent_client_is_dropped_after_its_keep_alive", func(t *T) {
		conn, err := net.Dial("tcp", t.at.mqtt)
		t.Ok(err, "connect")
		defer conn.Close()
		id := t.Name("silent")
		packet := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 1, 0, byte(len(id))}, id...)
		start := time.Now()
		_, err = conn.Write(packet)
		t.Ok(err, "send CONNECT with a keep alive of one second")
		t.Ok(conn.SetReadDeadline(start.Add(time.Minute)), "set a deadline")
		total := 0
		for buffer := make([]byte, 16); err == nil; {
			var count int
			count, err = conn.Read(buffer)
			total += count
		}
		Equal(t, total, 4, "bytes that came, a CONNACK")
		t.True(time.Since(start) > time.Second, "dropped after %v: %v", time.Since(start), err)
		t.True(!errors.Is(err, os.ErrDeadlineExceeded), "not dropped within %v", time.Since(start))
	})
	s.Check("mqtt3_wrong_password_is_refused", func(t *T) {
		client := t.prepare3(t.mqttOptions().SetUsername("guest").SetPassword("wrong"))
		token := client.Connect()
		Closed(t, token.Done(), "the answer")
		t.True(token.Error() != nil, "the connection was accepted")
		t.mqtt3With(t.mqttOptions().SetUsername("guest").SetPassword("guest")).Disconnect(100)
	})
}

func mqttSessionChecks3(s *Suite) {
	s.Check("mqtt3_a_persistent_session_gets_what_was_published_while_away", func(t *T) {
		id, topic, publisher := t.Name("persistent"), t.Name("topic"), t.mqtt3()
		options := func() *mqtt3.ClientOptions { return t.mqttOptions().SetClientID(id).SetCleanSession(false) }
		client := t.prepare3(options())
		token := client.Connect()
		t.done3(token, "connect")
		Equal(t, token.(*mqtt3.ConnectToken).SessionPresent(), false, "session present at first")
		client.subscribe(topic+"/#", 1)
		client.Disconnect(100)
		for i := range 100 {
			publisher.publish(topic+"/x", 1, []byte(fmt.Sprint(i)))
		}
		client = t.prepare3(options())
		token = client.Connect()
		t.done3(token, "connect again")
		Equal(t, token.(*mqtt3.ConnectToken).SessionPresent(), true, "session present")
		for i := range 100 {
			got := client.next("a message from while away")
			Equal(t, fmt.Sprintf("%s %d", got.body, got.qos), fmt.Sprintf("%d 1", i), "message")
		}
		publisher.publish(topic+"/y", 1, []byte("now"))
		Equal(t, string(client.next("a message of now").body), "now", "body")
		client.Disconnect(100)
		// A clean session ends the persistent one.
		clean := t.prepare3(t.mqttOptions().SetClientID(id))
		token = clean.Connect()
		t.done3(token, "connect clean")
		Equal(t, token.(*mqtt3.ConnectToken).SessionPresent(), false, "session present for a clean session")
		clean.Disconnect(100)
		client = t.prepare3(options())
		token = client.Connect()
		t.done3(token, "connect after a clean session")
		Equal(t, token.(*mqtt3.ConnectToken).SessionPresent(), false, "session present after a clean session")
		t.mqtt3With(t.mqttOptions().SetClientID(id)).Disconnect(100)
	})
	s.Check("mqtt3_what_was_not_acknowledged_comes_again", func(t *T) {
		id, topic, publisher := t.Name("persistent"), t.Name("topic"), t.mqtt3()
		manual := func() *mqtt3.ClientOptions {
			return t.mqttOptions().SetClientID(id).SetCleanSession(false).SetAutoAckDisabled(true)
		}
		client := t.mqtt3With(manual())
		client.subscribe(topic, 1)
		for i := range 5 {
			publisher.publish(topic, 1, []byte(fmt.Sprint(i)))
			client.next("a message")
		}
		client.Disconnect(0)
		client = t.prepare3(manual().SetAutoAckDisabled(false))
		t.done3(client.Connect(), "connect again")
		for i := range 5 {
			again := client.next("a message again")
			Equal(t, fmt.Sprintf("%s %t", again.body, again.duplicate), fmt.Sprintf("%d true", i), "body and DUP")
		}
		// Messages are handled in order: when one more has come, those before it are acknowledged.
		publisher.publish(topic, 1, []byte("one more"))
		Equal(t, string(client.next("one more message").body), "one more", "body")
		client.publish(topic+"/elsewhere", 1, []byte("a round trip"))
		client.Disconnect(100)
		client = t.prepare3(manual().SetAutoAckDisabled(false))
		t.done3(client.Connect(), "connect a third time")
		publisher.publish(topic, 1, []byte("last"))
		got := client.next("the last message")
		if string(got.body) == "one more" {
			got = client.next("the last message")
		}
		Equal(t, string(got.body), "last", "what is left after the acknowledgements")
		client.Disconnect(100)
		t.mqtt3With(t.mqttOptions().SetClientID(id)).Disconnect(100)
	})
	s.Check("mqtt3_a_second_connection_takes_the_client_id_over", func(t *T) {
		id := t.Name("twice")
		one := t.mqtt3With(t.mqttOptions().SetClientID(id))
		two := t.mqtt3With(t.mqttOptions().SetClientID(id))
		Receive(t, one.lost, "the first connection's end")
		topic := t.Name("topic")
		two.subscribe(topic, 0)
		two.publish(topic, 0, []byte("x"))
		two.next("a message")
	})
	s.Check("mqtt3_a_clean_session_leaves_nothing_behind", func(t *T) {
		id, topic, publisher := t.Name("clean"), t.Name("topic"), t.mqtt3()
		client := t.mqtt3With(t.mqttOptions().SetClientID(id))
		client.subscribe(topic, 1)
		client.Disconnect(100)
		publisher.publish(topic, 1, []byte("lost"))
		client = t.mqtt3With(t.mqttOptions().SetClientID(id))
		client.subscribe(topic, 1)
		publisher.publish(topic, 1, []byte("kept"))
		Equal(t, string(client.next("a message").body), "kept", "body")
	})
}

// mqttCompleteChecks are about what a message can be beyond QoS 0 and 1.
func mqttCompleteChecks(s *Suite) {
	s.Check("mqtt3_qos_2_in_order", func(t *T) {
		topic, client := t.Name("topic"), t.mqtt3()
		client.subscribe(topic, 2)
		for i := 0; i < 50; i++ {
			client.publish(topic, 2, []byte(fmt.Sprint(i)))
		}
		for i := 0; i < 50; i++ {
			got := client.next("a message")
			Equal(t, fmt.Sprintf("%s %d", got.body, got.qos), fmt.Sprintf("%d 2", i), "body and QoS")
		}
	})
	s.Check("mqtt3_retained_messages_come_to_later_subscribers", func(t *T) {
		topic, client := t.Name("topic"), t.mqtt3()
		for _, body := range []string{"old", "new"} {
			t.done3(client.Client.Publish(topic, 1, true, body), "publish a retained message")
		}
		client.subscribe(topic, 1)
		got := client.next("the retained message")
		Equal(t, fmt.Sprintf("%s %t", got.body, got.retained), "new true", "body and retain flag")
	})
	s.Check("mqtt3_a_will_is_published_when_the_client_is_taken_over", func(t *T) {
		id, topic, watcher := t.Name("id"), t.Name("will"), t.mqtt3()
		watcher.subscribe(topic, 1)
		t.mqtt3With(t.mqttOptions().SetClientID(id).SetAutoReconnect(false).SetWill(topic, "gone", 1, false))
		t.mqtt3With(t.mqttOptions().SetClientID(id))
		Equal(t, string(watcher.next("the will").body), "gone", "body")
	})
	s.Check("mqtt5_connack_limits_nothing", func(t *T) {
		p := t.clean5().connack.Properties
		t.True(p.MaximumQoS == nil || *p.MaximumQoS == 2, "maximum QoS %v", p.MaximumQoS)
		t.True(p.RetainAvailable && p.SharedSubAvailable && p.WildcardSubAvailable && p.SubIDAvailable, "all is available")
	})
}
