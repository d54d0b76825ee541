package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/go-stomp/stomp/v3"
	"github.com/go-stomp/stomp/v3/frame"
)

// client is a STOMP 1.2 connection of go-stomp.
type stompT struct {
	*T
	conn *stomp.Conn
}

func (t *T) stomp() *stompT {
	conn, err := stomp.Dial("tcp", t.at.stomp, stomp.ConnOpt.Login("guest", "guest"), stomp.ConnOpt.Host("/"),
		stomp.ConnOpt.AcceptVersion(stomp.V12), stomp.ConnOpt.HeartBeat(time.Minute, time.Minute),
		stomp.ConnOpt.WriteChannelCapacity(1000), stomp.ConnOpt.ReadChannelCapacity(1000),
		// The library's own patience is short for a busy machine.
		stomp.ConnOpt.HeartBeatError(time.Minute), stomp.ConnOpt.MsgSendTimeout(time.Minute),
		stomp.ConnOpt.RcvReceiptTimeout(time.Minute), stomp.ConnOpt.DisconnectReceiptTimeout(time.Minute))
	t.Ok(err, "connect with STOMP")
	t.Cleanup(func() { _ = conn.MustDisconnect() })
	return &stompT{T: t, conn: conn}
}

// send returns when the receipt has come; headers are names and values in turn.
func (c *stompT) send(destination string, body []byte, headers ...string) {
	options := []func(*frame.Frame) error{stomp.SendOpt.Receipt}
	for i := 0; i < len(headers); i += 2 {
		options = append(options, stomp.SendOpt.Header(headers[i], headers[i+1]))
	}
	c.Ok(c.conn.Send(destination, "", body, options...), "send to "+destination)
}

// subscribe returns when the subscription is made.
func (c *stompT) subscribe(destination string, ack stomp.AckMode, headers ...string) *stomp.Subscription {
	options := []func(*frame.Frame) error{}
	for i := 0; i < len(headers); i += 2 {
		options = append(options, stomp.SubscribeOpt.Header(headers[i], headers[i+1]))
	}
	subscription, err := c.conn.Subscribe(destination, ack, options...)
	c.Ok(err, "subscribe to "+destination)
	// Frames are handled in their order.
	c.send("/topic/"+c.Name("fence"), nil)
	return subscription
}

func (c *stompT) next(subscription *stomp.Subscription, what string) *stomp.Message {
	msg := Receive(c.T, subscription.C, what)
	c.Ok(msg.Err, what)
	return msg
}

// The same client as a publisher and a receiver of `across`.
func init() {
	publishers["stomp"] = func(t *T, topic, key string) publish {
		c := t.stomp()
		return func(body []byte) { c.send("/topic/"+topic+"."+key, body, "persistent", "true") }
	}
	receivers["stomp"] = func(t *T, topic, key string) <-chan []byte {
		c := t.stomp()
		subscription := c.subscribe("/topic/"+topic+".#", stomp.AckClientIndividual, "prefetch-count", "50")
		bodies := make(chan []byte, 1000)
		go func() {
			for msg := range subscription.C {
				if msg.Err != nil {
					return
				}
				if err := c.conn.Ack(msg); err != nil {
					return
				}
				if address := strings.ReplaceAll(msg.Destination[1:], "/", "."); strings.HasSuffix(address, topic+"."+key) {
					bodies <- msg.Body
				}
			}
		}()
		return bodies
	}
}

func stompSuite(s *Suite) {
	check := func(name string, body func(*stompT)) {
		s.Check("stomp_"+name, func(t *T) { body(t.stomp()) })
	}
	check("every_body_and_header_is_unchanged", func(c *stompT) {
		destination := "/queue/" + c.Name("queue")
		subscription := c.subscribe(destination, stomp.AckClientIndividual)
		for i, size := range bodySizes {
			body := randomBytes(size)
			c.send(destination, body, "number", fmt.Sprint(i), "odd\n:\\name\r", "odd\n:\\value\r", "persistent", "true")
			msg := c.next(subscription, "the message")
			SameBytes(c.T, msg.Body, body, "body")
			Equal(c.T, msg.Header.Get("number"), fmt.Sprint(i), "header number")
			Equal(c.T, msg.Header.Get("odd\n:\\name\r"), "odd\n:\\value\r", "an escaped header")
			Equal(c.T, msg.Header.Get("redelivered")+msg.Destination, "false"+destination, "redelivered, destination")
			c.Ok(c.conn.Ack(msg), "ack")
		}
	})
	check("unacknowledged_messages_return_in_order", func(c *stompT) {
		destination := "/queue/" + c.Name("queue")
		for i := range 50 {
			c.send(destination, []byte(fmt.Sprint(i)), "persistent", "true")
		}
		first := c.T.stomp()
		subscription := first.subscribe(destination, stomp.AckClient, "prefetch-count", "10")
		for i := range 10 {
			msg := first.next(subscription, "a message")
			Equal(c.T, string(msg.Body), fmt.Sprint(i), "body")
			if i == 4 {
				c.Ok(first.conn.Ack(msg), "ack of five messages")
			}
		}
		c.Ok(first.conn.Disconnect(), "disconnect")
		// No fence behind it: the client reads no receipt while messages wait for somebody to take them.
		again, err := c.conn.Subscribe(destination, stomp.AckAuto)
		c.Ok(err, "subscribe")
		seen := map[string]bool{}
		for len(seen) < 45 {
			msg := c.next(again, "a message")
			_, twice := seen[string(msg.Body)]
			c.True(!twice && len(seen)+5 == int(atoi(c.T, string(msg.Body))), "%s out of order", msg.Body)
			seen[string(msg.Body)] = true
			c.True(len(seen) > 5 || msg.Header.Get("redelivered") == "true", "%s was delivered before", msg.Body)
		}
	})
	check("a_transaction_takes_effect_as_a_whole", func(c *stompT) {
		in, out := "/queue/"+c.Name("in"), "/queue/"+c.Name("out")
		c.send(in, []byte("work"), "persistent", "true")
		source := c.subscribe(in, stomp.AckClientIndividual)
		results := c.T.stomp()
		result := results.subscribe(out, stomp.AckAuto)
		for _, commits := range []bool{false, true} {
			msg := c.next(source, "the work")
			tx := c.conn.Begin()
			for i := range 10 {
				c.Ok(tx.Send(out, "", []byte(fmt.Sprint(commits, i)), stomp.SendOpt.Header("persistent", "true")), "send")
			}
			c.Ok(tx.Ack(msg), "ack")
			if !commits {
				c.Ok(tx.Abort(), "abort")
				c.Ok(c.conn.Nack(msg), "nack: it was not settled")
				continue
			}
			c.Ok(tx.Commit(), "commit")
		}
		for i := range 10 {
			Equal(c.T, string(results.next(result, "a result").Body), fmt.Sprint(true, i), "body")
		}
	})
	check("a_durable_subscription_keeps_what_comes_while_it_is_away", func(c *stompT) {
		destination, id := "/topic/"+c.Name("news")+".x", c.Name("id")
		subscribe := func(c *stompT) *stomp.Subscription {
			s, err := c.conn.Subscribe(destination, stomp.AckClientIndividual, stomp.SubscribeOpt.Id(id),
				stomp.SubscribeOpt.Header("durable", "true"))
			c.Ok(err, "subscribe")
			c.send("/topic/"+c.Name("fence"), nil)
			return s
		}
		first := c.T.stomp()
		subscribe(first)
		c.Ok(first.conn.Disconnect(), "disconnect")
		c.send(destination, []byte("while away"), "persistent", "true")
		subscription := subscribe(c)
		msg := c.next(subscription, "what came meanwhile")
		Equal(c.T, string(msg.Body), "while away", "body")
		c.Ok(c.conn.Ack(msg), "ack")
	})
	check("an_error_ends_the_connection", func(c *stompT) {
		err := c.conn.Send("/exchange/"+c.Name("nix")+"/k", "", []byte("x"), stomp.SendOpt.Receipt)
		c.True(err != nil && strings.Contains(err.Error(), "not_found"), "got %v", err)
	})
}

func atoi(t *T, text string) (number int64) {
	_, err := fmt.Sscan(text, &number)
	t.Ok(err, "a number")
	return number
}
