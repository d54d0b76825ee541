package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"runtime/debug"
	"sync"
	"time"
)

// Suite runs checks one after the other and counts what failed.
type Suite struct {
	at     addresses
	only   *regexp.Regexp
	limit  time.Duration
	args   []string
	failed int
	stdin  *bufio.Reader
}

// T is one running check. Its methods end the check when what they ask does not hold.
type T struct {
	*Suite
	context.Context
	name     string
	mutex    sync.Mutex
	cleanups []func()
}

// Ends a check; never seen outside this file.
type failure string

// Check runs one check and prints its line.
func (s *Suite) Check(name string, body func(*T)) {
	if !s.only.MatchString(name) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.limit)
	defer cancel()
	t := &T{Suite: s, Context: ctx, name: name}
	done := make(chan string, 1)
	go func() { done <- t.run(body) }()
	var why string
	select {
	case why = <-done:
	case <-time.After(s.limit + 5*time.Second):
		why = fmt.Sprintf("does not end within %v", s.limit)
	}
	if why != "" {
		s.failed++
		fmt.Printf("FAILED %s: %s\n", name, why)
		return
	}
	fmt.Printf("ok %s\n", name)
}

func (t *T) run(body func(*T)) (why string) {
	defer func() {
		// Cleaning up must not hide why a check failed, nor hang it.
		for i := len(t.cleanups) - 1; i >= 0; i-- {
			func() {
				defer func() { _ = recover() }()
				t.cleanups[i]()
			}()
		}
	}()
	defer func() {
		switch problem := recover().(type) {
		case nil:
		case failure:
			why = string(problem)
		default:
			why = fmt.Sprintf("panic: %v", problem)
			fmt.Fprintf(os.Stderr, "%s\n%s\n", why, debug.Stack())
		}
	}()
	body(t)
	return ""
}

// Await asks whoever runs this program for something and waits for the answering line.
func (s *Suite) Await(what string) {
	if s.stdin == nil {
		s.stdin = bufio.NewReader(os.Stdin)
	}
	fmt.Printf("await %s\n", what)
	if _, err := s.stdin.ReadString('\n'); err != nil {
		fmt.Printf("FAILED await_%s: nobody answers: %v\n", what, err)
		os.Exit(1)
	}
}

// Fatalf ends the check.
func (t *T) Fatalf(format string, args ...any) {
	panic(failure(fmt.Sprintf(format, args...)))
}

// Cleanup is done when the check ends, last first.
func (t *T) Cleanup(f func()) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// Ok ends the check unless err is nil.
func (t *T) Ok(err error, what string) {
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// True ends the check unless the condition holds.
func (t *T) True(condition bool, format string, args ...any) {
	if !condition {
		t.Fatalf(format, args...)
	}
}

// Name makes a name that no other run uses.
func (t *T) Name(kind string) string {
	return "interop-" + kind + "-" + randomHex(6)
}

// Equal ends the check unless both are deeply equal.
func Equal[V any](t *T, got, want V, what string) {
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: got %s, want %s", what, short(got), short(want))
	}
}

// SameBytes ends the check unless both hold the same bytes (none and nil are the same).
func SameBytes(t *T, got, want []byte, what string) {
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: got %d bytes %s, want %d bytes %s", what, len(got), short(got), len(want), short(want))
	}
}

// Receive waits for one value until the check's time is up.
func Receive[V any](t *T, from <-chan V, what string) V {
	select {
	case value, open := <-from:
		if !open {
			t.Fatalf("%s: the channel is closed", what)
		}
		return value
	case <-t.Done():
		t.Fatalf("%s: nothing came in time", what)
	}
	panic("not reached")
}

// Closed waits until a channel is closed.
func Closed[V any](t *T, from <-chan V, what string) {
	for {
		select {
		case _, open := <-from:
			if !open {
				return
			}
		case <-t.Done():
			t.Fatalf("%s: not closed in time", what)
		}
	}
}

// Eventually polls until the condition holds.
func (t *T) Eventually(what string, condition func() bool) {
	for !condition() {
		select {
		case <-t.Done():
			t.Fatalf("%s: not within the time", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// InTime does something again when it was late: a busy machine is late now and then, a broker that waits for the
// wrong thing always. The attempt says why it was late, or nothing; what must hold in any case it checks itself.
func (t *T) InTime(attempt func() (late string)) {
	var tried []string
	for range 4 {
		late := attempt()
		if late == "" {
			return
		}
		tried = append(tried, late)
	}
	t.Fatalf("never in time: %q", tried)
}

// Survives checks that a connection is kept while its client has nothing to say. A busy machine may stop all of
// us for longer than a short interval allows, so that longer ones are tried before it counts.
func (t *T) Survives(attempt func(interval time.Duration) error) {
	var tried []string
	for _, interval := range []time.Duration{time.Second, 3 * time.Second, 9 * time.Second} {
		err := attempt(interval)
		if err == nil {
			return
		}
		tried = append(tried, fmt.Sprintf("with %v: %v", interval, err))
	}
	t.Fatalf("the connection ended: %q", tried)
}

func short(value any) string {
	text := fmt.Sprintf("%+v", value)
	if len(text) > 300 {
		return text[:300] + "..."
	}
	return text
}

func randomBytes(count int) []byte {
	bytes := make([]byte, count)
	if _, err := rand.Read(bytes); err != nil {
		panic(err)
	}
	return bytes
}

func randomHex(count int) string {
	return hex.EncodeToString(randomBytes(count))
}
