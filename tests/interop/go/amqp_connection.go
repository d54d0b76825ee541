package main

import (
	"errors"
	"net/url"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func amqpConnectionChecks(s *Suite) {
	s.Check("amqp_server_says_who_it_is_and_what_it_can", func(t *T) {
		conn := t.dialAMQP(amqp.Config{})
		for _, name := range []string{"product", "version", "platform"} {
			text, _ := conn.Properties[name].(string)
			t.True(text != "", "server property %s is missing: %v", name, conn.Properties)
		}
		capabilities, _ := conn.Properties["capabilities"].(amqp.Table)
		for _, name := range []string{"publisher_confirms", "basic.nack", "consumer_cancel_notify",
			"exchange_exchange_bindings", "authentication_failure_close"} {
			t.True(capabilities[name] == true, "capability %s is missing: %v", name, capabilities)
		}
	})
	s.Check("amqp_tune_is_negotiated", func(t *T) {
		conn := t.dialAMQP(amqp.Config{ChannelMax: 17, FrameSize: 5000, Heartbeat: 7 * time.Second})
		Equal(t, conn.Config.ChannelMax, 17, "channel_max")
		Equal(t, conn.Config.FrameSize, 5000, "frame_max")
		Equal(t, conn.Config.Heartbeat, 7*time.Second, "heartbeat")
		server := t.dialAMQP(amqp.Config{})
		t.True(server.Config.ChannelMax >= 100, "the server's own channel_max is %d", server.Config.ChannelMax)
		t.True(server.Config.FrameSize >= 4096, "the server's own frame_max is %d", server.Config.FrameSize)
	})
	s.Check("amqp_a_body_is_split_at_a_small_frame_size", func(t *T) {
		conn := t.dialAMQP(amqp.Config{FrameSize: 4096})
		c := &amqpT{T: t, conn: conn, ch: t.channel(conn)}
		queue := c.queue()
		for _, size := range []int{4087, 4088, 4089, 8176, 65_537} {
			body := randomBytes(size)
			c.publish("", queue, amqp.Publishing{Body: body})
			SameBytes(t, c.getSoon(queue).Body, body, "body")
		}
	})
	s.Check("amqp_wrong_password_is_refused_with_403", func(t *T) {
		_, err := amqp.DialConfig(t.at.amqp, amqp.Config{SASL: []amqp.Authentication{
			&amqp.PlainAuth{Username: "guest", Password: "wrong"}}})
		var refusal *amqp.Error
		// This client does not ask for the reason: the code may be its own.
		t.True(errors.As(err, &refusal) && refusal.Code == 403, "login: got %v, want code 403", err)
	})
	s.Check("amqp_amqplain_login", func(t *T) {
		conn := t.dialAMQP(amqp.Config{SASL: []amqp.Authentication{
			&amqp.AMQPlainAuth{Username: "guest", Password: "guest"}}})
		t.Ok(t.channel(conn).Close(), "use the connection")
	})
	s.Check("amqp_unknown_virtual_host_is_refused_with_530", func(t *T) {
		at, err := url.Parse(t.at.amqp)
		t.Ok(err, "parse the address")
		at.Path = "/" + strings.Repeat("no", 3)
		_, err = amqp.DialConfig(at.String(), amqp.Config{})
		t.refused(err, 530, "open an unknown virtual host")
	})
	s.Check("amqp_idle_connection_is_kept_alive_by_heartbeats", func(t *T) {
		t.Survives(func(interval time.Duration) error {
			conn := t.dialAMQP(amqp.Config{Heartbeat: interval})
			closed := conn.NotifyClose(make(chan *amqp.Error, 1))
			// Both sides drop a peer that is silent for two or three intervals.
			select {
			case why := <-closed:
				return why
			case <-time.After(4 * interval):
			}
			_, err := conn.Channel()
			return err
		})
	})
	amqpCheck(s, "channels_are_independent", func(t *amqpT) {
		one, two := t.channel(t.conn), t.channel(t.conn)
		closed := one.NotifyClose(make(chan *amqp.Error, 1))
		_, err := one.QueueDeclarePassive(t.Name("missing"), false, false, false, false, nil)
		t.refused(err, 404, "passive declare of a missing queue")
		t.refused(Receive(t.T, closed, "the channel's end"), 404, "channel close")
		_, err = two.QueueDeclare("", false, true, true, false, nil)
		t.Ok(err, "use the other channel")
	})
	amqpCheck(s, "channel_numbers_are_used_again", func(t *amqpT) {
		conn := t.dialAMQP(amqp.Config{ChannelMax: 10})
		for range 30 {
			t.Ok(t.channel(conn).Close(), "close a channel")
		}
		for range 30 {
			_, err := t.channel(conn).QueueDeclarePassive(t.Name("missing"), false, false, false, false, nil)
			t.refused(err, 404, "passive declare of a missing queue")
		}
	})
	amqpCheck(s, "a_hundred_channels_at_once", func(t *amqpT) {
		queue := t.queue()
		for range 100 {
			ch := t.channel(t.conn)
			t.Ok(ch.Publish("", queue, false, false, transient("x")), "publish")
		}
		t.readyBecomes(queue, 100)
	})
	s.Check("amqp_closing_a_connection_is_answered", func(t *T) {
		conn := t.dialAMQP(amqp.Config{})
		closed := conn.NotifyClose(make(chan *amqp.Error, 1))
		t.Ok(conn.Close(), "close")
		Closed(t, closed, "the end of the connection")
	})
}
