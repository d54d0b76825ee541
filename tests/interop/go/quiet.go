package main

import (
	"os"

	"github.com/apache/rocketmq-client-go/v2/rlog"
)

// quietLibraries keeps the clients' own logs out of the way unless they are asked for.
func quietLibraries() {
	level := os.Getenv("ROCKETMQ_GO_LOG_LEVEL")
	if level == "" {
		level = "fatal"
	}
	rlog.SetLogLevel(level)
}
