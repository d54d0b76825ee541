package main

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Entity synchronisation: one service owns the entities of a kind and publishes every change to a durable
// fanout exchange; every consuming service has a durable queue of its own there, shared by its instances.
var entityExchanges = []string{"exchange_user", "exchange_group"}

// Consuming services. The last one starts late.
var entityServices = []string{"consumer_org_rpc", "consumer_audit", "consumer_search"}

const (
	entitiesOfAKind = 1000
	// Entities of a kind that are published at a time while the broker is killed.
	entityBatch = 320
	// Channels that publish entities of one kind, each with a connection of its own for every four.
	publisherLanes = 32
	confirmWindow  = 50
)

type entity struct {
	ID      string `json:"id"`
	Kind    string `json:"kind"`
	Version int    `json:"version"`
	Name    string `json:"name"`
}

func entityQueue(exchange, service string) string { return exchange + "_" + service }

// sync is the state of one run: what was published and what each service has seen.
type entitySync struct {
	*Suite
	mutex sync.Mutex
	// Entities by exchange and message id.
	published map[string]map[string][]byte
	// Message ids that were published more than once: their outcome was lost, or they came back.
	repeated map[string]bool
	returned int
	// Closed when every queue is there: until then nothing is published again.
	ready    chan struct{}
	services map[string]*entityService
}

// entityService is what the instances of one consuming service did together.
type entityService struct {
	sync     *entitySync
	name     string
	mutex    sync.Mutex
	seen     map[string]int // times processed, by message id
	failed   map[string]bool
	share    [2]int
	retried  int
	problem  string
	stopping chan struct{}
	stopped  sync.WaitGroup
}

func entitySyncSuite(s *Suite) {
	run := &entitySync{Suite: s, published: map[string]map[string][]byte{}, repeated: map[string]bool{},
		ready: make(chan struct{}), services: map[string]*entityService{}}
	for _, exchange := range entityExchanges {
		run.published[exchange] = map[string][]byte{}
	}
	for _, name := range entityServices {
		run.services[name] = &entityService{sync: run, name: name, seen: map[string]int{}, failed: map[string]bool{},
			stopping: make(chan struct{})}
	}
	s.Check("entity_sync_what_nobody_wants_yet_is_returned_and_published_again", run.firstEntities)
	s.Check("entity_sync_instances_compete_and_get_again_what_they_nacked", run.everyday)
	s.Check("entity_sync_nothing_is_lost_when_the_broker_is_killed", run.throughAKill)
	s.Check("entity_sync_a_late_service_gets_the_whole_history", run.lateService)
	s.Check("entity_sync_a_native_group_created_later_reads_all_entities_from_all_queues", run.nativeGroup)
	s.Check("entity_sync_a_native_message_reaches_the_amqp_queues", run.nativeProducer)
}

// declareExchanges is what the publishing service does at its start.
func declareExchanges(ch *amqp.Channel) error {
	for _, exchange := range entityExchanges {
		if err := ch.ExchangeDeclare(exchange, "fanout", true, false, false, false, nil); err != nil {
			return err
		}
	}
	return nil
}

// declareQueues is what a consuming service does at its start.
func declareQueues(ch *amqp.Channel, service string) error {
	if err := declareExchanges(ch); err != nil {
		return err
	}
	for _, exchange := range entityExchanges {
		queue := entityQueue(exchange, service)
		if _, err := ch.QueueDeclare(queue, true, false, false, false, nil); err != nil {
			return err
		}
		if err := ch.QueueBind(queue, "", exchange, false, nil); err != nil {
			return err
		}
	}
	return nil
}

func (run *entitySync) firstEntities(t *T) {
	ch := t.channel(t.dialAMQP(amqp.Config{}))
	for _, exchange := range entityExchanges { // from an earlier run on the same broker
		for _, service := range entityServices {
			_, err := ch.QueueDelete(entityQueue(exchange, service), false, false, false)
			t.Ok(err, "delete an old queue")
		}
		t.Ok(ch.ExchangeDelete(exchange, false, false), "delete an old exchange")
	}
	t.Ok(declareExchanges(ch), "declare the exchanges")
	done := make(chan struct{})
	go func() {
		run.publish(t, 0, 50)
		close(done)
	}()
	t.Eventually("a first round of returns", func() bool { return run.returns() >= 50 })
	for _, service := range entityServices {
		t.Ok(declareQueues(ch, service), "declare the queues")
	}
	close(run.ready)
	Closed(t, done, "the publisher")
	for _, exchange := range entityExchanges {
		for _, service := range entityServices {
			state, err := ch.QueueDeclarePassive(entityQueue(exchange, service), true, false, false, false, nil)
			t.Ok(err, "look at the queue")
			t.True(state.Messages >= 50, "queue %s has %d messages", state.Name, state.Messages)
		}
	}
}

func (run *entitySync) everyday(t *T) {
	for _, name := range entityServices[:2] {
		run.services[name].start()
	}
	run.publish(t, 50, entitiesOfAKind)
	for _, name := range entityServices[:2] {
		run.services[name].complete(t)
	}
	for _, name := range entityServices[:2] {
		service := run.services[name]
		service.mutex.Lock()
		t.True(service.retried > 0, "%s never got again what it nacked", name)
		t.True(service.share[0] > 50 && service.share[1] > 50, "%s: the instances' shares are %v", name, service.share)
		service.mutex.Unlock()
	}
}

func (run *entitySync) throughAKill(t *T) {
	var restarted atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for number := entitiesOfAKind; t.Err() == nil; number += entityBatch {
			last := restarted.Load()
			run.publish(t, number, number+entityBatch)
			if last {
				return
			}
		}
	}()
	before := run.count()
	t.Eventually("some entities on their way", func() bool { return run.count() > before+500 })
	run.Await("kill")
	run.Await("start")
	restarted.Store(true)
	Closed(t, done, "the publisher")
	for _, name := range entityServices[:2] {
		run.services[name].complete(t)
	}
	for _, name := range entityServices[:2] {
		run.services[name].stop()
	}
	ch := t.channel(t.dialAMQP(amqp.Config{}))
	for _, exchange := range entityExchanges {
		for _, service := range entityServices[:2] {
			t.Eventually("empty queues", func() bool {
				state, err := ch.QueueDeclarePassive(entityQueue(exchange, service), true, false, false, false, nil)
				t.Ok(err, "look at the queue")
				return state.Messages == 0 && state.Consumers == 0
			})
		}
	}
}

func (run *entitySync) lateService(t *T) {
	late := run.services[entityServices[2]]
	late.start()
	late.complete(t)
	late.stop()
}

func (run *entitySync) nativeGroup(t *T) {
	const exchange = "exchange_user"
	m := t.member("group_created_later", exchange)
	queues := map[int]int{}
	for missing := run.ids(exchange); len(missing) > 0; {
		msg := Receive(t, m.inbox, fmt.Sprintf("the last %d entities", len(missing)))
		id := msg.GetProperty("message-id")
		want, known := run.published[exchange][id]
		t.True(known, "message id %q was never published", id)
		SameBytes(t, msg.Body, want, "body of "+id)
		Equal(t, msg.GetProperty("content-type"), "application/json", "content type")
		Equal(t, msg.GetTags(), "", "tag")
		delete(missing, id)
		queues[msg.Queue.QueueId]++
	}
	t.True(len(queues) == topicQueues, "the entities are spread over the queues as %v", queues)
}

func (run *entitySync) nativeProducer(t *T) {
	const exchange = "exchange_user"
	ch := t.channel(t.dialAMQP(amqp.Config{}))
	body, err := json.Marshal(entity{ID: "native-1", Kind: exchange, Version: 1, Name: "from a native producer"})
	t.Ok(err, "encode")
	msg := message(exchange, "%s", body).WithKeys([]string{"native-1"})
	msg.WithProperty("origin", "native")
	sent := t.send(t.producer(), msg)
	for _, service := range entityServices {
		var got amqp.Delivery
		t.Eventually("the message in the queue of "+service, func() (ok bool) {
			got, ok, err = ch.Get(entityQueue(exchange, service), true)
			t.Ok(err, "get")
			return ok
		})
		SameBytes(t, got.Body, body, "body")
		Equal(t, got.Exchange, exchange, "exchange")
		Equal(t, got.MessageId, sent.MsgID, "message id")
		Equal(t, got.Headers["origin"], any("native"), "the user property as a header")
		Equal(t, got.DeliveryMode, uint8(amqp.Persistent), "delivery mode")
		other, err := ch.QueueDeclarePassive(entityQueue("exchange_group", service), true, false, false, false, nil)
		t.Ok(err, "look at the other queue")
		Equal(t, other.Messages, 0, "messages in the other exchange's queue")
	}
}

func (run *entitySync) returns() int {
	run.mutex.Lock()
	defer run.mutex.Unlock()
	return run.returned
}

func (run *entitySync) count() (count int) {
	run.mutex.Lock()
	defer run.mutex.Unlock()
	for _, ids := range run.published {
		count += len(ids)
	}
	return count
}

func (run *entitySync) ids(exchange string) map[string]bool {
	run.mutex.Lock()
	defer run.mutex.Unlock()
	ids := map[string]bool{}
	for id := range run.published[exchange] {
		ids[id] = true
	}
	return ids
}

// publish publishes the entities of both kinds and returns when all of them are confirmed and routed.
func (run *entitySync) publish(t *T, from, to int) {
	var lanes sync.WaitGroup
	for _, exchange := range entityExchanges {
		for first := 0; first < publisherLanes; first += 4 {
			connection := &connector{at: run.at.amqp}
			var users sync.WaitGroup
			for lane := first; lane < first+4; lane++ {
				var mine []amqp.Publishing
				for i := from + lane; i < to; i += publisherLanes {
					mine = append(mine, run.newEntity(exchange, i))
				}
				lanes.Add(1)
				users.Add(1)
				go func() {
					defer lanes.Done()
					defer users.Done()
					for len(mine) > 0 && t.Err() == nil {
						if mine = run.attempt(t, connection, exchange, mine); len(mine) > 0 {
							Closed(t, run.ready, "the queues")
						}
					}
				}()
			}
			go func() {
				users.Wait()
				connection.close()
			}()
		}
	}
	lanes.Wait()
}

func (run *entitySync) newEntity(exchange string, number int) amqp.Publishing {
	value := entity{ID: fmt.Sprintf("%s-%d", exchange, number), Kind: exchange, Version: 1, Name: randomHex(20)}
	body, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent,
		MessageId: value.ID, Timestamp: time.Now(), Body: body}
}

// attempt publishes in confirm mode and gives back what has to be published again: returned, nacked, or
// without an answer when the channel ended.
func (run *entitySync) attempt(t *T, connection *connector, exchange string, messages []amqp.Publishing) []amqp.Publishing {
	ch := connection.channel()
	if ch == nil {
		return messages
	}
	defer func() { _ = ch.Close() }()
	if ch.Confirm(false) != nil {
		return messages
	}
	returns := ch.NotifyReturn(make(chan amqp.Return, len(messages)))
	confirms := ch.NotifyPublish(make(chan amqp.Confirmation, len(messages)))
	var again []amqp.Publishing
	outstanding := map[uint64]amqp.Publishing{}
	back := map[string]bool{}
	next := 0
	for next < len(messages) || len(outstanding) > 0 {
		for next < len(messages) && len(outstanding) < confirmWindow {
			message := messages[next]
			run.remember(exchange, message)
			outstanding[ch.GetNextPublishSeqNo()] = message
			next++
			if err := ch.PublishWithContext(t, exchange, "", true, false, message); err != nil {
				return run.publishAgain(append(again, rest(outstanding, messages[next:])...), 0)
			}
		}
		confirm, open := <-confirms
		if !open {
			return run.publishAgain(append(again, rest(outstanding, messages[next:])...), 0)
		}
		// A return precedes its confirm, so it is here by now.
		for drained := false; !drained; {
			select {
			case message, open := <-returns:
				if drained = !open; open {
					back[message.MessageId] = true
				}
			default:
				drained = true
			}
		}
		message := outstanding[confirm.DeliveryTag]
		delete(outstanding, confirm.DeliveryTag)
		if !confirm.Ack || back[message.MessageId] {
			again = append(again, message)
		}
	}
	return run.publishAgain(again, len(back))
}

func rest(outstanding map[uint64]amqp.Publishing, messages []amqp.Publishing) []amqp.Publishing {
	for _, message := range outstanding {
		messages = append(messages, message)
	}
	return messages
}

func (run *entitySync) remember(exchange string, message amqp.Publishing) {
	run.mutex.Lock()
	defer run.mutex.Unlock()
	run.published[exchange][message.MessageId] = message.Body
}

func (run *entitySync) publishAgain(messages []amqp.Publishing, returned int) []amqp.Publishing {
	run.mutex.Lock()
	defer run.mutex.Unlock()
	run.returned += returned
	for _, message := range messages {
		run.repeated[message.MessageId] = true
	}
	return messages
}

// start starts two instances of the service, each with a connection of its own.
func (service *entityService) start() {
	for instance := range 2 {
		service.stopped.Add(1)
		go func() {
			defer service.stopped.Done()
			connection := &connector{at: service.sync.at.amqp}
			defer connection.close()
			for {
				select {
				case <-service.stopping:
					return
				default:
					service.consume(instance, connection)
				}
			}
		}()
	}
}

func (service *entityService) stop() {
	close(service.stopping)
	service.stopped.Wait()
}

// consume works until its channel ends.
func (service *entityService) consume(instance int, connection *connector) {
	ch := connection.channel()
	if ch == nil {
		return
	}
	defer func() { _ = ch.Close() }()
	if declareQueues(ch, service.name) != nil || ch.Qos(10, 0, false) != nil {
		return
	}
	for _, exchange := range entityExchanges {
		deliveries, err := ch.Consume(entityQueue(exchange, service.name), "", false, false, false, false, nil)
		if err != nil {
			return
		}
		defer func() {
			for range deliveries { // the client's reader waits for somebody to take what is left
			}
		}()
		service.stopped.Add(1)
		go func() {
			defer service.stopped.Done()
			for delivery := range deliveries {
				if service.process(instance, exchange, delivery) {
					_ = delivery.Ack(false)
				} else {
					_ = delivery.Nack(false, true)
				}
			}
		}()
	}
	ended := ch.NotifyClose(make(chan *amqp.Error, 1))
	select {
	case <-ended:
	case <-service.stopping:
		_ = ch.Close()
	}
}

// process is the service's work. It fails for some entities at the first attempt.
func (service *entityService) process(instance int, exchange string, delivery amqp.Delivery) bool {
	service.mutex.Lock()
	defer service.mutex.Unlock()
	id := delivery.MessageId
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(id + service.name))
	if hash.Sum32()%10 == 0 && !service.failed[id] {
		service.failed[id] = true
		return false
	}
	service.sync.mutex.Lock()
	want, known := service.sync.published[exchange][id]
	repeated := service.sync.repeated[id]
	service.sync.mutex.Unlock()
	if !known || string(want) != string(delivery.Body) {
		service.fail("%s is not what was published to %s", id, exchange)
	}
	if service.failed[id] && service.seen[id] == 0 {
		service.retried++
		if !delivery.Redelivered && !repeated {
			service.fail("%s was nacked and came again without the redelivered flag", id)
		}
	}
	if service.seen[id]++; service.seen[id] > 1 && !repeated && !delivery.Redelivered {
		service.fail("%s was published once and came twice without the redelivered flag", id)
	}
	service.share[instance]++
	return true
}

func (service *entityService) fail(format string, args ...any) {
	if service.problem == "" {
		service.problem = service.name + ": " + fmt.Sprintf(format, args...)
	}
}

// complete waits until the service has processed everything that was published.
func (service *entityService) complete(t *T) {
	for _, exchange := range entityExchanges {
		for id := range service.sync.ids(exchange) {
			t.Eventually(id+" at "+service.name, func() bool {
				service.mutex.Lock()
				defer service.mutex.Unlock()
				t.True(service.problem == "", "%s", service.problem)
				return service.seen[id] > 0
			})
		}
	}
}

// connector keeps one connection and makes a new one when it was lost.
type connector struct {
	at     string
	mutex  sync.Mutex
	conn   *amqp.Connection
	closed bool
}

// channel opens a channel, on a new connection if need be; nil when the broker is not there.
func (c *connector) channel() *amqp.Channel {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.conn == nil || c.conn.IsClosed() {
		conn, err := amqp.DialConfig(c.at, amqp.Config{Heartbeat: time.Minute, Locale: "en_US"})
		if err != nil {
			time.Sleep(50 * time.Millisecond) // before the next attempt
			return nil
		}
		c.conn = conn
	}
	ch, err := c.conn.Channel()
	if err != nil {
		return nil
	}
	return ch
}

func (c *connector) close() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.conn != nil {
		_ = c.conn.Close()
	}
}
