package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// amqpT is a check with one connection and one channel of its own.
type amqpT struct {
	*T
	conn *amqp.Connection
	ch   *amqp.Channel
}

func amqpSuite(s *Suite) {
	amqpConnectionChecks(s)
	amqpTopologyChecks(s)
	amqpRoutingChecks(s)
	amqpPublishChecks(s)
	amqpConsumeChecks(s)
	amqpErrorChecks(s)
	amqpReplyChecks(s)
}

// amqpCheck runs a check that wants a connection and a channel.
func amqpCheck(s *Suite, name string, body func(*amqpT)) {
	s.Check("amqp_"+name, func(t *T) {
		conn := t.dialAMQP(amqp.Config{})
		body(&amqpT{T: t, conn: conn, ch: t.channel(conn)})
	})
}

func (t *T) dialAMQP(config amqp.Config) *amqp.Connection {
	if config.Heartbeat == 0 {
		config.Heartbeat = time.Minute
	}
	config.Locale = "en_US"
	conn, err := amqp.DialConfig(t.at.amqp, config)
	t.Ok(err, "connect")
	t.Cleanup(func() { _ = conn.CloseDeadline(time.Now().Add(2 * time.Second)) })
	return conn
}

func (t *T) channel(conn *amqp.Connection) *amqp.Channel {
	ch, err := conn.Channel()
	t.Ok(err, "open a channel")
	return ch
}

// queue declares a server-named queue that goes with this check's connection.
func (t *amqpT) queue() string {
	queue, err := t.ch.QueueDeclare("", false, false, true, false, nil)
	t.Ok(err, "declare a server-named queue")
	return queue.Name
}

// durableQueue declares a durable queue that is deleted after the check.
func (t *amqpT) durableQueue() string {
	name := t.Name("queue")
	_, err := t.ch.QueueDeclare(name, true, false, false, false, nil)
	t.Ok(err, "declare a durable queue")
	t.onOtherChannelAfterwards(func(ch *amqp.Channel) { _, _ = ch.QueueDelete(name, false, false, false) })
	return name
}

// exchange declares a durable exchange that is deleted after the check.
func (t *amqpT) exchange(kind string) string {
	name := t.Name(kind)
	t.Ok(t.ch.ExchangeDeclare(name, kind, true, false, false, false, nil), "declare a "+kind+" exchange")
	t.onOtherChannelAfterwards(func(ch *amqp.Channel) { _ = ch.ExchangeDelete(name, false, false) })
	return name
}

func (t *amqpT) onOtherChannelAfterwards(clean func(*amqp.Channel)) {
	t.Cleanup(func() {
		if conn, err := amqp.Dial(t.at.amqp); err == nil {
			if ch, err := conn.Channel(); err == nil {
				clean(ch)
			}
			_ = conn.Close()
		}
	})
}

func (t *amqpT) bind(queue, key, exchange string, args amqp.Table) {
	t.Ok(t.ch.QueueBind(queue, key, exchange, false, args), "bind "+queue+" to "+exchange)
}

// publish publishes without waiting for anything.
func (t *amqpT) publish(exchange, key string, message amqp.Publishing) {
	t.Ok(t.ch.PublishWithContext(t, exchange, key, false, false, message), "publish")
}

// confirmed publishes on a channel in confirm mode and waits for the confirm.
func (t *amqpT) confirmed(exchange, key string, message amqp.Publishing) {
	confirmation, err := t.ch.PublishWithDeferredConfirmWithContext(t, exchange, key, false, false, message)
	t.Ok(err, "publish")
	acked, err := confirmation.WaitContext(t)
	t.Ok(err, "wait for the confirm")
	t.True(acked, "the publish was nacked")
}

func (t *amqpT) confirmMode() {
	t.Ok(t.ch.Confirm(false), "confirm.select")
}

func (t *amqpT) consume(queue string, autoAck bool) <-chan amqp.Delivery {
	deliveries, err := t.ch.ConsumeWithContext(context.Background(), queue, "", autoAck, false, false, false, nil)
	t.Ok(err, "consume")
	return deliveries
}

func (t *amqpT) get(queue string, autoAck bool) amqp.Delivery {
	message, ok, err := t.ch.Get(queue, autoAck)
	t.Ok(err, "get")
	t.True(ok, "get found the queue empty")
	return message
}

// getSoon gets from a queue that a message was published to without a confirm.
func (t *amqpT) getSoon(queue string) (message amqp.Delivery) {
	t.Eventually("a message in the queue", func() bool {
		var ok bool
		var err error
		message, ok, err = t.ch.Get(queue, true)
		t.Ok(err, "get")
		return ok
	})
	return message
}

// ready is how many messages a passive declare counts.
func (t *amqpT) ready(queue string) int {
	state, err := t.ch.QueueDeclarePassive(queue, false, false, false, false, nil)
	t.Ok(err, "declare "+queue+" passively")
	return state.Messages
}

func (t *amqpT) readyBecomes(queue string, count int) {
	last := -1
	defer func() {
		if last != count {
			fmt.Fprintf(os.Stderr, "%s: queue %s has %d messages, not %d\n", t.name, queue, last, count)
		}
	}()
	t.Eventually("the queue's message count", func() bool {
		last = t.ready(queue)
		return last == count
	})
}

func persistent(body []byte) amqp.Publishing {
	return amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body}
}

func transient(text string) amqp.Publishing {
	return amqp.Publishing{Body: []byte(text)}
}

// refused checks that an error is the broker's, with this code.
func (t *T) refused(err error, code int, what string) *amqp.Error {
	var refusal *amqp.Error
	if !errors.As(err, &refusal) {
		t.Fatalf("%s: got %v, want reply code %d", what, err, code)
	}
	if refusal.Code != code || !refusal.Server {
		t.Fatalf("%s: got %v, want reply code %d from the server", what, refusal, code)
	}
	return refusal
}

// closesChannel checks that an action ends its channel, and only that, with this code.
func (t *amqpT) closesChannel(code int, what string, action func(*amqp.Channel) error) {
	ch := t.channel(t.conn)
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := action(ch); err != nil {
		t.refused(err, code, what)
	} else {
		t.refused(Receive(t.T, closed, what+": the channel's end"), code, what)
	}
	t.True(!t.conn.IsClosed(), "%s: the connection was closed too", what)
	t.Ok(t.channel(t.conn).Close(), what+": another channel afterwards")
}

// closesConnection checks that an action ends its connection with this code.
func (t *T) closesConnection(code int, what string, action func(*amqp.Channel) error) {
	conn := t.dialAMQP(amqp.Config{})
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	ch := t.channel(conn)
	// The action itself may only see that the connection is gone.
	_ = action(ch)
	t.refused(Receive(t, closed, what+": the connection's end"), code, what)
}
