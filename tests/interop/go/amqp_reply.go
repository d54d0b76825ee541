package main

import (
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The pseudo-queue of direct reply-to.
const replyTo = "amq.rabbitmq.reply-to"

func amqpReplyChecks(s *Suite) {
	amqpCheck(s, "direct_reply_to_answers_who_asked", func(c *amqpT) {
		service := c.queue()
		requests := c.consume(service, true)
		type asker struct {
			*amqpT
			answers <-chan amqp.Delivery
		}
		var askers []asker
		for range 3 {
			own := &amqpT{T: c.T, conn: c.conn, ch: c.channel(c.conn)}
			askers = append(askers, asker{own, own.consume(replyTo, true)})
		}
		names := map[string]bool{}
		for i := range 30 {
			asker := askers[i%3]
			asker.publish("", service, amqp.Publishing{ReplyTo: replyTo, CorrelationId: fmt.Sprint(i), AppId: "asker",
				Headers: amqp.Table{"n": int32(i)}, Body: []byte("what?")})
			request := Receive(c.T, requests, "the request")
			c.True(strings.HasPrefix(request.ReplyTo, replyTo+"."), "reply-to is %s", request.ReplyTo)
			Equal(c.T, request.AppId+fmt.Sprint(request.Headers["n"], request.CorrelationId), fmt.Sprintf("asker%d%d", i, i),
				"the other properties")
			names[request.ReplyTo] = true
			// From another connection, as services do.
			answering := c.T.amqp()
			queue, err := answering.ch.QueueDeclarePassive(request.ReplyTo, false, false, false, false, nil)
			c.Ok(err, "ask whether anybody listens")
			Equal(c.T, queue.Name, request.ReplyTo, "name")
			answering.publish("", request.ReplyTo, amqp.Publishing{CorrelationId: request.CorrelationId, Body: []byte("that")})
			answer := Receive(c.T, asker.answers, "the answer")
			Equal(c.T, fmt.Sprint(answer.CorrelationId, string(answer.Body), answer.Exchange, answer.RoutingKey),
				fmt.Sprint(i, "that", "", request.ReplyTo), "the answer")
			c.Ok(answering.conn.Close(), "close")
		}
		Equal(c.T, len(names), 3, "reply queues")
	})
	amqpCheck(s, "direct_reply_to_goes_with_its_consumer", func(c *amqpT) {
		service := c.queue()
		requests := c.consume(service, true)
		asker := c.T.amqp()
		_, err := asker.ch.QueueDeclarePassive(replyTo, false, false, false, false, nil)
		c.Ok(err, "declare the pseudo-queue")
		_, err = asker.ch.ConsumeWithContext(c, replyTo, "answers", true, false, false, false, nil)
		c.Ok(err, "consume")
		asker.publish("", service, amqp.Publishing{ReplyTo: replyTo, Body: []byte("what?")})
		request := Receive(c.T, requests, "the request")
		c.Ok(asker.ch.Cancel("answers", false), "cancel")
		wantCode(c.T, 404, func() error {
			_, err := c.channel(c.conn).QueueDeclarePassive(request.ReplyTo, false, false, false, false, nil)
			return err
		})
		returned := c.ch.NotifyReturn(make(chan amqp.Return, 1))
		c.Ok(c.ch.PublishWithContext(c, "", request.ReplyTo, true, false, amqp.Publishing{Body: []byte("late")}), "reply")
		Equal(c.T, Receive(c.T, returned, "the late reply").ReplyCode, uint16(312), "reply code")
		// A channel may have another one when the first is gone.
		answers := asker.consume(replyTo, true)
		asker.publish("", service, amqp.Publishing{ReplyTo: replyTo, Body: []byte("what?")})
		c.publish("", Receive(c.T, requests, "the request").ReplyTo, amqp.Publishing{Body: []byte("that")})
		Equal(c.T, string(Receive(c.T, answers, "the answer").Body), "that", "body")
	})
	amqpCheck(s, "direct_reply_to_has_its_rules", func(c *amqpT) {
		wantCode(c.T, 406, func() error {
			_, err := c.channel(c.conn).ConsumeWithContext(c, replyTo, "", false, false, false, false, nil)
			return err
		})
		wantCode(c.T, 406, func() error {
			ch := c.channel(c.conn)
			_, err := ch.ConsumeWithContext(c, replyTo, "", true, false, false, false, nil)
			c.Ok(err, "the first consumer")
			_, err = ch.ConsumeWithContext(c, replyTo, "", true, false, false, false, nil)
			return err
		})
		ch := c.channel(c.conn)
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		c.Ok(ch.PublishWithContext(c, "", c.queue(), false, false, amqp.Publishing{ReplyTo: replyTo}), "publish")
		Equal(c.T, Receive(c.T, closed, "the channel's end").Code, 406, "a publish without a reply consumer")
	})
}

// wantCode is an error of the broker with that code.
func wantCode(t *T, code int, act func() error) {
	refusal, is := act().(*amqp.Error)
	t.True(is && refusal.Code == code, "got %v, want code %d", refusal, code)
}
