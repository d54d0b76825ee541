package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

const tutorialTopic, tutorialGroup = "hellomq", "testGroup"

// tutorialSuite runs the two programs of every tutorial, each as a process of its own with default settings.
func tutorialSuite(s *Suite) {
	sent := map[string]bool{}
	s.Check("tutorial_producer_without_a_group_sends_ten_messages", func(t *T) {
		for line := range t.program("tutorial-producer") {
			sent[strings.TrimPrefix(line, "sent ")] = true
			if len(sent) == 10 {
				return
			}
		}
		t.Fatalf("it sent only %v", sent)
	})
	s.Check("tutorial_consumer_with_an_empty_selector_gets_them", func(t *T) {
		lines := t.program("tutorial-consumer")
		got := map[string]bool{}
		for len(got) < len(sent) {
			body := strings.TrimPrefix(Receive(t, lines, "a message"), "received ")
			t.True(sent[body] && !got[body], "it received %q, which was not sent or came twice", body)
			got[body] = true
		}
		t.program("tutorial-producer")
		for range 10 {
			Receive(t, lines, "a message of the second run")
		}
	})
}

// program starts this binary again; its lines come through the channel.
func (t *T) program(name string, args ...string) <-chan string {
	self, err := os.Executable()
	t.Ok(err, "find this program")
	command := exec.CommandContext(t, self, append([]string{name, "-name-server", t.at.nameServer}, args...)...)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	t.Ok(err, "make a pipe")
	t.Ok(command.Start(), "start "+name)
	t.Cleanup(func() { _ = command.Process.Kill() })
	lines := make(chan string, 1000)
	go func() {
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
		close(lines)
		_ = command.Wait()
	}()
	return lines
}

func tutorialProducer(s *Suite) {
	p, err := rocketmq.NewProducer(
		producer.WithNsResolver(primitive.NewPassthroughResolver([]string{s.at.nameServer})),
		producer.WithRetry(2),
	)
	must(err)
	must(p.Start())
	for i := range 10 {
		body := fmt.Sprintf("Hello RocketMQ Go Client! %d %s", i, randomHex(4))
		result, err := p.SendSync(context.Background(), &primitive.Message{Topic: tutorialTopic, Body: []byte(body)})
		must(err)
		if result.Status == primitive.SendOK {
			fmt.Println("sent " + body)
		}
	}
	must(p.Shutdown())
}

func tutorialConsumer(s *Suite) {
	c, err := rocketmq.NewPushConsumer(
		consumer.WithGroupName(tutorialGroup),
		consumer.WithNsResolver(primitive.NewPassthroughResolver([]string{s.at.nameServer})),
	)
	must(err)
	must(c.Subscribe(tutorialTopic, consumer.MessageSelector{},
		func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
			for _, msg := range messages {
				fmt.Println("received " + string(msg.Body))
			}
			return consumer.ConsumeSuccess, nil
		}))
	must(c.Start())
	select {} // until it is killed
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
