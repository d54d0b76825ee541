// Interop drives a broker with the Go clients that people use: amqp091-go, rocketmq-client-go, paho and
// go-stomp.
//
// Every suite is a subcommand, addresses are flags. It prints one line for each check, `ok NAME` or
// `FAILED NAME: why`, and ends with a non-zero status when one failed. A line `await NAME` asks whoever
// runs it to do something with the broker (kill and restart it) and to answer with a line on stdin.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"sort"
	"time"
)

// Where the broker listens.
type addresses struct {
	amqp       string
	mqtt       string
	nameServer string
	stomp      string
}

var suites = map[string]func(*Suite){
	"amqp":                   amqpSuite,
	"amqp-restart":           amqpRestartSuite,
	"entity-sync":            entitySyncSuite,
	"rocketmq":               rocketmqSuite,
	"rocketmq-later":         rocketmqLaterSuite,
	"rocketmq-later-restart": rocketmqLaterRestartSuite,
	"rocketmq-restart":       rocketmqRestartSuite,
	"tutorial":               tutorialSuite,
	"mqtt":                   mqttSuite,
	"stomp":                  stompSuite,
	"across":                 acrossSuite,
}

// Programs of their own, started by a suite as separate processes.
var programs = map[string]func(*Suite){
	"tutorial-producer": tutorialProducer,
	"tutorial-consumer": tutorialConsumer,
	"half-producer":     halfProducer,
}

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	run, isSuite := suites[os.Args[1]]
	if !isSuite {
		if run = programs[os.Args[1]]; run == nil {
			usage()
		}
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	suite := &Suite{}
	flags.StringVar(&suite.at.amqp, "amqp", "amqp://guest:guest@127.0.0.1:5672/", "AMQP `URL`")
	flags.StringVar(&suite.at.mqtt, "mqtt", "127.0.0.1:1883", "MQTT `host:port`")
	flags.StringVar(&suite.at.nameServer, "name-server", "127.0.0.1:9876", "RocketMQ name server `host:port`")
	flags.StringVar(&suite.at.stomp, "stomp", "127.0.0.1:61613", "STOMP `host:port`")
	flags.String("stomp-websocket", "", "not used by the Go clients")
	flags.String("mqtt-websocket", "", "not used by the Go clients")
	only := flags.String("only", "", "run only checks whose name matches this `regexp`")
	flags.DurationVar(&suite.limit, "limit", 180*time.Second, "longest `time` one check may take")
	_ = flags.Parse(os.Args[2:])
	suite.only = regexp.MustCompile(*only)
	suite.args = flags.Args()

	quietLibraries()
	run(suite)
	if suite.failed > 0 {
		os.Exit(1)
	}
}

func usage() {
	names := make([]string, 0, len(suites))
	for name := range suites {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintf(os.Stderr, "usage: interop SUITE [flags], with a suite of %v\n", names)
	os.Exit(2)
}
