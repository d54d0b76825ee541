//! Queue policy: expiry, limits, priority, consumers, delivery limit, dead letters.

mod support;

use bytes::Bytes;
use rocketbridge_core::attributes::{Attribute, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::history::Reason;
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::*;
use rocketbridge_core::time::{Clock, Millis};
use support::*;

struct Broker {
    harness: Harness,
    client: Client,
}

impl Broker {
    fn new() -> Self {
        Self::on(Harness::new())
    }

    fn on(harness: Harness) -> Self {
        let client = harness.client();
        Self { harness, client }
    }

    fn kill(self) -> Self {
        let Self { harness, client } = self;
        drop(client);
        let at = harness.clock.now().mono;
        Self::on(harness.kill()).at(at)
    }

    fn restart(self) -> Self {
        let Self { harness, client } = self;
        drop(client);
        Self::on(harness.restart())
    }

    /// A new clock goes on where the old one was.
    fn at(self, mono: Millis) -> Self {
        let now = self.harness.clock.now().mono;
        self.harness.clock.advance((mono - now).0);
        self
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.client.ask(&self.harness.engine, request).expect("granted")
    }

    fn queue(&mut self, name: &str, limit: Limit, policy: Policy) {
        self.ask(Request::DeclareQueue(Queue {
            limit,
            policy: Some(Box::new(policy)),
            ..queue(name)
        }));
    }

    fn publish(&mut self, to: &str, body: &str) -> Fate {
        self.publish_as(message(Entry::Queue, to, "", body))
    }

    fn publish_as(&mut self, publish: Publish) -> Fate {
        let token = self.client.publish(publish);
        self.sync();
        let fates = self.client.events().into_iter().find_map(|event| match event {
            Event::Outcome(outcome) if outcome.first == token => Some(outcome.fate),
            _ => None,
        });
        fates.expect("an outcome")
    }

    fn sync(&self) {
        self.harness.engine.sync_once().unwrap();
    }

    fn advance(&self, millis: u64) {
        self.harness.clock.advance(millis);
        self.harness.engine.tick();
    }

    /// Ready messages of a queue; `None` when it is gone.
    fn ready(&mut self, name: &str) -> Option<u64> {
        let found = Request::FindQueue { name: bytes(name) };
        match self.client.ask(&self.harness.engine, found) {
            Ok(Reply::Queue(state)) => Some(state.ready),
            Err(Refusal::NotFound { .. }) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Takes one message; with a lease.
    fn get(&mut self, name: &str) -> Option<Delivery> {
        let request = Request::Get {
            subscription: SubscriptionId(99),
            queue: bytes(name),
            leased: true,
        };
        match self.ask(request) {
            Reply::Got(got) => got.map(|got| got.delivery),
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, delivery: &Delivery, action: Settle) {
        self.client.settle(delivery.subscription, delivery.sequence, 1, action);
        self.sync();
    }

    /// Takes everything, without a lease.
    fn drain(&mut self, name: &str) -> Vec<Delivery> {
        let mut all = Vec::new();
        let request = |subscription| Request::Get {
            subscription: SubscriptionId(subscription),
            queue: bytes(name),
            leased: false,
        };
        while let Reply::Got(Some(got)) = self.ask(request(98)) {
            all.push(got.delivery);
        }
        // The number is used for one queue only.
        self.client = self.harness.client();
        all
    }

    fn bodies(&mut self, name: &str) -> Vec<String> {
        self.drain(name).iter().map(body).collect()
    }
}

fn messages(max: u64) -> Limit {
    Limit {
        messages: Some(max),
        bytes: None,
    }
}

fn to_queue(name: &str) -> Option<DeadLetter> {
    Some(DeadLetter {
        way: Way::Queue,
        key: Some(bytes(name)),
    })
}

fn with(attribute: Attribute, value: u64, publish: Publish) -> Publish {
    let mut builder = AttributesBuilder::default();
    builder.put(Name::Known(attribute), Value::Uint(value));
    Publish {
        attributes: builder.finish(),
        ..publish
    }
}

fn living(millis: u64, to: &str, body: &str) -> Publish {
    with(Attribute::TimeToLive, millis, message(Entry::Queue, to, "", body))
}

fn deaths(delivery: &Delivery) -> Vec<(Bytes, Reason, u64)> {
    let history = delivery.message.history().expect("a history");
    history
        .deaths
        .into_iter()
        .map(|death| (death.queue, death.reason, death.count))
        .collect()
}

// --- settling -----------------------------------------------------------------------------------------

#[test]
fn nacked_message_returns_to_its_place() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    for n in 0..6 {
        broker.publish("q", &n.to_string());
    }
    let taken: Vec<Delivery> = (0..4).filter_map(|_| broker.get("q")).collect();
    // In any order, and others in between are acked.
    for (at, action) in [
        (3, Settle::Release),
        (0, Settle::Release),
        (1, Settle::Ack),
        (2, Settle::Release),
    ] {
        broker.settle(&taken[at], action);
    }
    let again = broker.drain("q");
    let seen: Vec<_> = again.iter().map(|d| (body(d), d.redelivered)).collect();
    let expected = [("0", true), ("2", true), ("3", true), ("4", false), ("5", false)];
    assert_eq!(seen, expected.map(|(body, again)| (body.to_owned(), again)));
}

#[test]
fn ack_multiple_costs_runs_not_messages() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    broker.ask(Request::DeclareQueue(queue("marker")));
    // Where the log goes on.
    let end = |broker: &mut Broker| {
        let marker = message(Entry::Queue, "marker", "", "m");
        let marker = Publish {
            detailed: true,
            ..marker
        };
        match broker.publish_as(marker) {
            Fate::Stored(stored) => stored.position.0,
            other => panic!("{other:?}"),
        }
    };
    end(&mut broker);
    let cost = |broker: &mut Broker, count: u32| {
        for n in 0..count {
            broker.client.publish(message(Entry::Queue, "q", "", &n.to_string()));
        }
        let subscription = broker.client.subscribe("q", None);
        broker.sync();
        let deliveries = broker.client.deliveries();
        assert_eq!(deliveries.len(), count as usize);
        let before = end(broker);
        broker
            .client
            .settle(subscription, deliveries[0].sequence, count, Settle::Ack);
        let after = end(broker);
        broker.client.request(Request::Unsubscribe { subscription });
        broker.sync();
        assert_eq!(broker.ready("q"), Some(0));
        after - before
    };
    let few = cost(&mut broker, 10);
    let many = cost(&mut broker, 5_000);
    assert_eq!(few, many, "bytes of the log");
    // They stay gone over a crash, although they were taken off the list in slices.
    let mut broker = broker.kill();
    assert_eq!(broker.ready("q"), Some(0));
}

// --- limits -------------------------------------------------------------------------------------------

#[test]
fn drop_head_drops_what_would_be_delivered_next() {
    let mut broker = Broker::new();
    broker.queue("q", messages(3), Policy::default());
    for n in 0..3 {
        broker.publish("q", &n.to_string());
    }
    let first = broker.get("q").expect("0");
    broker.publish("q", "3");
    // What came back would be next, and is too much.
    broker.settle(&first, Settle::Release);
    assert_eq!(broker.bodies("q"), ["1", "2", "3"]);
    for n in 0..5 {
        broker.publish("q", &n.to_string());
    }
    assert_eq!(broker.bodies("q"), ["2", "3", "4"]);
    // Of several levels, that is the highest.
    let priorities = Policy {
        priorities: 5,
        ..Policy::default()
    };
    broker.queue("p", messages(2), priorities);
    for (priority, text) in [(5, "high"), (1, "low"), (1, "low too")] {
        broker.publish_as(with(
            Attribute::Priority,
            priority,
            message(Entry::Queue, "p", "", text),
        ));
    }
    assert_eq!(broker.bodies("p"), ["low", "low too"]);
}

#[test]
fn a_byte_limit_counts_bodies_that_are_ready() {
    let mut broker = Broker::new();
    let limit = Limit {
        messages: None,
        bytes: Some(10),
    };
    broker.queue("q", limit, Policy::default());
    broker.publish("q", "aaaa");
    broker.publish("q", "bbbb");
    let leased = broker.get("q").expect("aaaa");
    broker.publish("q", "cccc");
    assert_eq!(broker.ready("q"), Some(2), "what is leased is not counted");
    broker.publish("q", "dddd");
    assert_eq!(broker.ready("q"), Some(2));
    broker.settle(&leased, Settle::Release);
    assert_eq!(broker.bodies("q"), ["cccc", "dddd"]);
    broker.publish("q", "longer than allowed");
    assert_eq!(broker.ready("q"), Some(0));
}

#[test]
fn a_full_queue_may_refuse_and_the_others_still_get_the_message() {
    for overflow in [Overflow::Reject, Overflow::RejectAndDeadLetter] {
        let mut broker = Broker::new();
        let policy = Policy {
            overflow,
            dead_letter: to_queue("dead"),
            ..Policy::default()
        };
        broker.queue("full", messages(1), policy);
        broker.ask(Request::DeclareQueue(queue("other")));
        broker.ask(Request::DeclareQueue(queue("dead")));
        broker.ask(Request::DeclareExchange(exchange("e", ExchangeKind::Fanout)));
        for name in ["full", "other"] {
            let all = Matcher::Key(Bytes::new());
            broker.ask(Request::Bind(binding(Source::Exchange(bytes("e")), all, name)));
        }
        assert!(matches!(broker.publish("full", "0"), Fate::Stored(_)));
        assert_eq!(broker.publish("full", "1"), Fate::Rejected(Reject::QueueFull));
        let both = message(Entry::Exchange, "e", "", "2");
        assert_eq!(broker.publish_as(both), Fate::Rejected(Reject::QueueFull));
        assert_eq!(broker.bodies("full"), ["0"]);
        assert_eq!(broker.bodies("other"), ["2"]);
        let dead = broker.drain("dead");
        if overflow == Overflow::Reject {
            assert!(dead.is_empty());
        } else {
            assert_eq!(dead.iter().map(body).collect::<Vec<_>>(), ["1", "2"]);
            assert_eq!(deaths(&dead[0]), [(bytes("full"), Reason::Limit, 1)]);
        }
        assert!(matches!(broker.publish("full", "3"), Fate::Stored(_)));
    }
}

#[test]
fn a_batch_for_a_full_queue_that_refuses_is_refused_whole() {
    let mut broker = Broker::new();
    let policy = Policy {
        overflow: Overflow::Reject,
        ..Policy::default()
    };
    broker.queue("full", messages(1), policy);
    broker.ask(Request::DeclareQueue(queue("other")));
    broker.publish("full", "0");
    let commit = Commit {
        publishes: vec![
            message(Entry::Queue, "other", "", "1"),
            message(Entry::Queue, "full", "", "1"),
        ],
        ..Commit::default()
    };
    let reply = broker.client.ask(&broker.harness.engine, Request::Commit(commit));
    let refused = Refusal::Rejected {
        index: 1,
        reject: Reject::QueueFull,
    };
    assert_eq!(reply.expect_err("it is full"), refused);
    assert_eq!((broker.ready("full"), broker.ready("other")), (Some(1), Some(0)));
}

#[test]
fn a_limit_of_nothing_serves_only_who_is_waiting() {
    let mut broker = Broker::new();
    broker.queue("q", messages(0), Policy::default());
    broker.publish("q", "nobody");
    assert_eq!(broker.ready("q"), Some(0));
    broker.client.subscribe("q", None);
    broker.sync();
    broker.client.events();
    broker.client.publish(message(Entry::Queue, "q", "", "somebody"));
    assert_eq!(broker.client.bodies(), ["somebody"]);
}

// --- expiry -------------------------------------------------------------------------------------------

#[test]
fn expiry_acts_at_the_head_only() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    broker.publish_as(living(100, "q", "short"));
    broker.publish_as(living(1000, "q", "long"));
    broker.publish_as(living(100, "q", "behind it"));
    broker.advance(500);
    assert_eq!(
        broker.ready("q"),
        Some(2),
        "the one behind a message that lives waits for it"
    );
    broker.advance(499);
    assert_eq!(broker.ready("q"), Some(2));
    broker.advance(1);
    assert_eq!(broker.ready("q"), Some(0));
    assert_eq!(broker.bodies("q"), [""; 0]);
}

#[test]
fn the_shorter_of_the_messages_and_the_queues_time_counts() {
    let mut broker = Broker::new();
    let policy = |ttl| Policy {
        message_ttl: Some(Millis(ttl)),
        ..Policy::default()
    };
    broker.queue("q", Limit::NONE, policy(1000));
    broker.publish_as(living(400, "q", "own"));
    broker.publish_as(living(5000, "q", "too long"));
    broker.publish("q", "none");
    broker.advance(400);
    assert_eq!(broker.ready("q"), Some(2));
    // Over a crash too, and through whatever the queue's next deadline is.
    let mut broker = broker.kill();
    assert_eq!(broker.ready("q"), Some(2));
    broker.advance(600);
    assert_eq!(broker.ready("q"), Some(0));
    broker.queue("now", Limit::NONE, policy(0));
    assert!(matches!(broker.publish("now", "nobody waits"), Fate::Stored(stored) if stored.routes == 1));
    assert_eq!(broker.ready("now"), Some(0));
    broker.client.subscribe("now", None);
    broker.sync();
    broker.client.events();
    broker
        .client
        .publish(message(Entry::Queue, "now", "", "somebody waits"));
    assert_eq!(broker.client.bodies(), ["somebody waits"]);
}

#[test]
fn the_engine_says_when_the_next_head_expires() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    assert_eq!(broker.harness.engine.next_deadline(), None);
    broker.publish_as(living(700, "q", "m"));
    let due = broker.harness.engine.next_deadline().expect("a deadline");
    broker.harness.clock.advance(700);
    broker.harness.engine.fire();
    assert_eq!(broker.harness.engine.next_deadline(), None, "{due:?}");
    assert_eq!(broker.ready("q"), Some(0));
}

#[test]
fn a_million_messages_that_expire_at_once_stop_nobody() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    let count = 20_000;
    for n in 0..count {
        let transient = Publish {
            persistent: false,
            ..living(10, "q", &n.to_string())
        };
        broker.client.publish(transient);
    }
    broker.harness.clock.advance(10);
    // Each hold does its part.
    broker.harness.engine.tick();
    assert_eq!(broker.ready("q"), Some(0));
}

#[test]
fn a_queue_that_nobody_uses_goes() {
    let mut broker = Broker::new();
    let policy = Policy {
        expires: Some(Millis(1000)),
        ..Policy::default()
    };
    broker.queue("q", Limit::NONE, policy.clone());
    broker.advance(999);
    broker.publish("q", "publishing is no use");
    broker.advance(1);
    assert_eq!(broker.ready("q"), None);
    broker.queue("q", Limit::NONE, policy.clone());
    broker.advance(900);
    broker.queue("q", Limit::NONE, policy.clone());
    broker.advance(900);
    broker.get("q");
    broker.advance(900);
    assert_eq!(broker.ready("q"), Some(0), "declaring and getting are");
    let subscription = broker.client.subscribe("q", None);
    broker.sync();
    broker.advance(10_000);
    assert_eq!(broker.ready("q"), Some(0), "so is consuming, as long as it lasts");
    broker.ask(Request::Unsubscribe { subscription });
    broker.advance(999);
    assert_eq!(broker.ready("q"), Some(0));
    broker.advance(1);
    assert_eq!(broker.ready("q"), None);
    // Its time begins anew with the broker.
    broker.queue("q", Limit::NONE, policy);
    let mut broker = broker.restart();
    broker.advance(999);
    assert_eq!(broker.ready("q"), Some(0));
    broker.advance(1);
    assert_eq!(broker.ready("q"), None);
}

// --- priority and consumers -----------------------------------------------------------------------------

#[test]
fn higher_priorities_come_first_and_equal_ones_in_order() {
    let mut broker = Broker::new();
    let policy = Policy {
        priorities: 9,
        ..Policy::default()
    };
    broker.queue("q", Limit::NONE, policy);
    let mut expected = Vec::new();
    for (n, priority) in [3, 0, 9, 3, 200, 0].into_iter().enumerate() {
        let text = format!("{n}");
        broker.publish_as(with(
            Attribute::Priority,
            priority,
            message(Entry::Queue, "q", "", &text),
        ));
        expected.push((std::cmp::Reverse(priority.min(9)), text));
    }
    broker.publish("q", "6");
    expected.push((std::cmp::Reverse(0), "6".to_owned()));
    expected.sort();
    let expected: Vec<String> = expected.into_iter().map(|(_, text)| text).collect();
    // One comes back to its place; a crash changes nothing.
    let first = broker.get("q").expect("the first");
    broker.settle(&first, Settle::Release);
    let second = broker.get("q").expect("the first again");
    assert_eq!((body(&second), second.redelivered), (expected[0].clone(), true));
    let mut broker = broker.kill();
    assert_eq!(broker.ready("q"), Some(7));
    assert_eq!(broker.bodies("q"), expected);
    let mut broker = broker.kill();
    assert_eq!(
        broker.ready("q"),
        Some(0),
        "what was settled at any level stays settled"
    );
}

#[test]
fn only_the_active_consumer_gets_something_until_it_goes() {
    let mut broker = Broker::new();
    let policy = Policy {
        single_active: true,
        ..Policy::default()
    };
    broker.queue("q", Limit::NONE, policy);
    let (mut one, mut two) = (broker.harness.client(), broker.harness.client());
    let first = one.subscribe("q", Some(1));
    two.subscribe("q", None);
    broker.sync();
    for n in 0..3 {
        broker.publish("q", &n.to_string());
    }
    let taken = one.deliveries();
    assert_eq!(taken.iter().map(body).collect::<Vec<_>>(), ["0"]);
    assert_eq!(two.bodies(), [""; 0], "not even when the active one has no credit");
    let refused = broker.client.ask(
        &broker.harness.engine,
        Request::Get {
            subscription: SubscriptionId(5),
            queue: bytes("q"),
            leased: true,
        },
    );
    assert!(matches!(refused, Err(Refusal::SingleActive)));
    let exclusive = Subscribe {
        subscription: SubscriptionId(6),
        queue: bytes("q"),
        acknowledge: Acknowledge::Always,
        window: None,
        exclusive: true,
        priority: 0,
        selector: None,
    };
    let refused = broker.client.ask(&broker.harness.engine, Request::Subscribe(exclusive));
    assert!(matches!(refused, Err(Refusal::InUse)));
    one.request(Request::Unsubscribe { subscription: first });
    assert_eq!(two.bodies(), ["1", "2"], "what the first has not settled stays with it");
    drop(one);
    assert_eq!(two.bodies(), ["0"]);
}

#[test]
fn consumers_of_higher_priority_are_served_first_as_long_as_they_can_take() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    let consumer = |priority, window, number| {
        let mut client = broker.harness.client();
        client.request(Request::Subscribe(Subscribe {
            subscription: SubscriptionId(number),
            queue: bytes("q"),
            acknowledge: Acknowledge::Always,
            window: Some(window),
            exclusive: false,
            priority,
            selector: None,
        }));
        client
    };
    let mut low = consumer(-1, 10, 1);
    let mut high = [consumer(7, 2, 2), consumer(7, 2, 3)];
    let mut middle = consumer(0, 1, 4);
    broker.sync();
    for n in 0..7 {
        broker.publish("q", &n.to_string());
    }
    let [one, two] = &mut high;
    assert_eq!([one.bodies(), two.bodies()], [["0", "2"], ["1", "3"]]);
    assert_eq!(middle.bodies(), ["4"]);
    assert_eq!(low.bodies(), ["5", "6"]);
}

// --- delivery limit -------------------------------------------------------------------------------------

fn counting(limit: u32) -> Policy {
    Policy {
        counts_attempts: true,
        delivery_limit: Some(limit),
        dead_letter: to_queue("dead"),
        ..Policy::default()
    }
}

#[test]
fn delivery_limit_survives_restart() {
    let mut broker = Broker::new();
    broker.queue("q", Limit::NONE, counting(3));
    broker.ask(Request::DeclareQueue(queue("dead")));
    broker.publish("q", "poison");
    for attempts in 0..2 {
        let delivery = broker.get("q").expect("it is there");
        assert_eq!((delivery.attempts, delivery.redelivered), (attempts, attempts > 0));
        broker.settle(&delivery, Settle::Release);
    }
    let mut broker = broker.kill();
    let delivery = broker.get("q").expect("it is there");
    assert_eq!(delivery.attempts, 2);
    broker.settle(&delivery, Settle::Release);
    let mut broker = broker.restart();
    let delivery = broker.get("q").expect("it is there");
    assert_eq!(delivery.attempts, 3);
    // A connection that is lost counts as well.
    broker.client = broker.harness.client();
    assert_eq!(broker.ready("q"), Some(0));
    let dead = broker.drain("dead");
    assert_eq!(deaths(&dead[0]), [(bytes("q"), Reason::DeliveryLimit, 1)]);
    assert_eq!(dead[0].attempts, 0);
}

#[test]
fn attempts_are_counted_for_each_message_of_a_run() {
    let mut broker = Broker::new();
    broker.queue("q", Limit::NONE, counting(1));
    broker.ask(Request::DeclareQueue(queue("dead")));
    for n in 0..4 {
        broker.publish("q", &n.to_string());
    }
    let subscription = broker.client.subscribe("q", None);
    broker.sync();
    let first = broker.client.deliveries();
    broker
        .client
        .settle(subscription, first[1].sequence, 2, Settle::Release);
    let again = broker.client.deliveries();
    assert_eq!(
        again.iter().map(|d| (body(d), d.attempts)).collect::<Vec<_>>(),
        [("1".into(), 1), ("2".into(), 1)]
    );
    broker
        .client
        .settle(subscription, first[0].sequence, 4, Settle::Release);
    let again = broker.client.deliveries();
    assert_eq!(
        again.iter().map(|d| (body(d), d.attempts)).collect::<Vec<_>>(),
        [("0".into(), 1), ("3".into(), 1)]
    );
    assert_eq!(broker.bodies("dead"), ["1", "2"]);
}

// --- dead letters ---------------------------------------------------------------------------------------

#[test]
fn dead_letter_and_ack_are_one_step() {
    // The log is cut at every length: the message is in one queue or in the other, never in both or none.
    let mut seed = Random(7);
    let mut seen = [0; 2];
    for steps in 0..40 {
        let mut broker = Broker::new();
        let policy = Policy {
            dead_letter: to_queue("dead"),
            ..Policy::default()
        };
        broker.queue("q", Limit::NONE, policy);
        broker.ask(Request::DeclareQueue(queue("dead")));
        broker.publish("q", "m");
        let delivery = broker.get("q").expect("m");
        broker.sync();
        let rejected = broker.harness.storage.clone();
        rejected.fail_after(steps % 4);
        broker
            .client
            .settle(delivery.subscription, delivery.sequence, 1, Settle::Reject);
        let _ = broker.harness.engine.sync_once();
        let storage = rejected.after_power_cut(&mut seed);
        let harness = Harness::on(storage, rocketbridge_core::engine::Config::default()).expect("it opens");
        let mut broker = Broker::on(harness);
        let found = (
            broker.ready("q").expect("a queue"),
            broker.ready("dead").expect("a queue"),
        );
        match found {
            (1, 0) => seen[0] += 1,
            (0, 1) => seen[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[test]
fn a_dead_letter_tells_where_it_was_given_up_and_why() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareExchange(exchange("dlx", ExchangeKind::Direct)));
    let policy = |key: Option<&str>, ttl: Option<u64>| Policy {
        dead_letter: Some(DeadLetter {
            way: Way::Exchange(bytes("dlx")),
            key: key.map(bytes),
        }),
        message_ttl: ttl.map(Millis),
        ..Policy::default()
    };
    // Work is refused, waits in the retry queue, and goes to work again.
    broker.queue("work", Limit::NONE, policy(Some("retry"), None));
    broker.queue("retry", Limit::NONE, policy(Some("work"), Some(1000)));
    for name in ["work", "retry"] {
        let source = Source::Exchange(bytes("dlx"));
        broker.ask(Request::Bind(binding(source, Matcher::Key(bytes(name)), name)));
    }
    broker.publish_as(living(60_000, "work", "job"));
    for round in 1..=3 {
        let delivery = broker.get("work").expect("a job");
        assert_eq!(body(&delivery), "job");
        if round > 1 {
            let history = delivery.message.history().expect("a history");
            assert_eq!(
                deaths(&delivery),
                [
                    (bytes("retry"), Reason::Expired, round - 1),
                    (bytes("work"), Reason::Rejected, round - 1)
                ]
            );
            assert_eq!(
                (&history.first.queue[..], history.first.reason),
                (&b"work"[..], Reason::Rejected)
            );
            assert_eq!(
                (&history.last.queue[..], history.last.reason),
                (&b"retry"[..], Reason::Expired)
            );
            let work = &history.deaths[1];
            assert_eq!((&work.way, &work.key[..]), (&Way::Queue, &b"work"[..]));
            assert_eq!(work.time_to_live, Some(60_000), "its own time is noted");
            assert_eq!(delivery.message.key(), b"work");
            assert_eq!(delivery.message.attributes().count(), 0, "and it has none any more");
        }
        broker.settle(&delivery, Settle::Reject);
        assert_eq!(broker.ready("retry"), Some(1));
        broker.advance(1000);
        assert_eq!(broker.ready("retry"), Some(0));
    }
    let mut broker = broker.kill();
    assert_eq!(broker.ready("work"), Some(1));
}

#[test]
fn a_message_does_not_go_round_by_itself() {
    let mut broker = Broker::new();
    for (name, to) in [("a", "b"), ("b", "a")] {
        let policy = Policy {
            message_ttl: Some(Millis(100)),
            dead_letter: to_queue(to),
            ..Policy::default()
        };
        broker.queue(name, Limit::NONE, policy);
    }
    broker.publish("a", "m");
    broker.advance(100);
    assert_eq!((broker.ready("a"), broker.ready("b")), (Some(0), Some(1)));
    broker.advance(100);
    assert_eq!((broker.ready("a"), broker.ready("b")), (Some(0), Some(0)));
    // What somebody refused may.
    broker.publish("a", "m");
    for name in ["a", "b", "a", "b"] {
        let delivery = broker.get(name).expect("m");
        broker.settle(&delivery, Settle::Reject);
        broker.client = broker.harness.client();
    }
    assert_eq!(broker.ready("a"), Some(1));
}

#[test]
fn many_dead_letters_at_once_are_done_in_slices() {
    let mut broker = Broker::new();
    let policy = Policy {
        dead_letter: to_queue("dead"),
        ..Policy::default()
    };
    broker.queue("q", Limit::NONE, policy);
    broker.ask(Request::DeclareQueue(queue("dead")));
    let count = 3_000;
    for n in 0..count {
        broker.client.publish(message(Entry::Queue, "q", "", &n.to_string()));
    }
    let subscription = broker.client.subscribe("q", None);
    broker.sync();
    let deliveries = broker.client.deliveries();
    broker
        .client
        .settle(subscription, deliveries[0].sequence, count, Settle::Reject);
    broker.sync();
    let expected: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    assert_eq!(broker.bodies("dead"), expected);
    assert_eq!(broker.ready("q"), Some(0));
}

// --- changing a policy ------------------------------------------------------------------------------------

#[test]
fn a_changed_policy_applies_to_what_is_stored() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    broker.ask(Request::DeclareQueue(queue("dead")));
    for n in 0..5 {
        broker.publish("q", &n.to_string());
    }
    let alter = |limit, policy: Policy| Request::AlterQueue {
        name: bytes("q"),
        limit,
        policy: Some(Box::new(policy)),
    };
    let dead = || Policy {
        dead_letter: to_queue("dead"),
        ..Policy::default()
    };
    broker.ask(alter(messages(3), dead()));
    assert_eq!(broker.ready("q"), Some(3));
    assert_eq!(broker.bodies("dead"), ["0", "1"]);
    broker.advance(500);
    let ttl = |millis| Policy {
        message_ttl: Some(Millis(millis)),
        ..dead()
    };
    broker.ask(alter(Limit::NONE, ttl(1000)));
    let mut broker = broker.kill();
    broker.advance(499);
    assert_eq!(broker.ready("q"), Some(3), "their time runs since they were stored");
    broker.ask(Request::AlterQueue {
        name: bytes("q"),
        limit: Limit::NONE,
        policy: Some(Box::new(ttl(2000))),
    });
    broker.advance(500);
    assert_eq!(broker.ready("q"), Some(3));
    broker.ask(alter(Limit::NONE, ttl(1000)));
    assert_eq!(broker.ready("q"), Some(0));
    assert_eq!(broker.bodies("dead"), ["2", "3", "4"]);
}

// --- what is long -------------------------------------------------------------------------------------------

#[test]
fn a_purge_and_a_deletion_of_much_are_done_in_slices_and_hold_over_a_crash() {
    for delete in [false, true] {
        let mut broker = Broker::new();
        broker.ask(Request::DeclareQueue(queue("q")));
        let count = 10_000;
        for n in 0..count {
            broker.client.publish(message(Entry::Queue, "q", "", &n.to_string()));
        }
        let kept = broker.get("q").expect("0");
        let request = if delete {
            Request::DeleteQueue {
                name: bytes("q"),
                if_unused: false,
                if_empty: false,
            }
        } else {
            Request::PurgeQueue { name: bytes("q") }
        };
        let reply = broker.ask(request);
        assert!(matches!(reply, Reply::Count(gone) if gone == count - 1), "{reply:?}");
        assert_eq!(broker.ready("q"), (!delete).then_some(0));
        if !delete {
            broker.publish("q", "new");
            broker.settle(&kept, Settle::Release);
            assert_eq!(broker.ready("q"), Some(2));
        }
        let mut broker = broker.kill();
        if delete {
            assert_eq!(broker.ready("q"), None);
        } else {
            assert_eq!(broker.bodies("q"), ["0", "new"]);
        }
    }
}

#[test]
fn what_a_lost_connection_had_in_many_runs_comes_back_in_slices() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    let count = 6_000u64;
    for n in 0..count {
        broker.client.publish(message(Entry::Queue, "q", "", &n.to_string()));
    }
    let mut consumer = broker.harness.client();
    let subscription = consumer.subscribe("q", None);
    broker.sync();
    let deliveries = consumer.deliveries();
    assert_eq!(deliveries.len() as u64, count);
    for delivery in deliveries.iter().step_by(2) {
        consumer.settle(subscription, delivery.sequence, 1, Settle::Ack);
    }
    drop(consumer);
    assert_eq!(broker.ready("q"), Some(count / 2));
    broker.client.subscribe("q", None);
    broker.sync();
    let expected: Vec<String> = (0..count).skip(1).step_by(2).map(|n| n.to_string()).collect();
    assert_eq!(broker.client.bodies(), expected);
}

#[test]
fn what_a_lost_connection_had_comes_back_in_order_at_the_cost_of_its_runs() {
    let mut broker = Broker::new();
    broker.ask(Request::DeclareQueue(queue("q")));
    let count = 20_000;
    for n in 0..count {
        broker.client.publish(message(Entry::Queue, "q", "", &n.to_string()));
    }
    let mut consumer = broker.harness.client();
    consumer.subscribe("q", None);
    broker.sync();
    assert_eq!(consumer.deliveries().len(), count);
    assert_eq!(broker.ready("q"), Some(0));
    drop(consumer);
    assert_eq!(broker.ready("q"), Some(count as u64));
    broker.client.subscribe("q", None);
    broker.sync();
    let again = broker.client.deliveries();
    assert!(again.iter().all(|delivery| delivery.redelivered));
    let expected: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    assert_eq!(again.iter().map(body).collect::<Vec<_>>(), expected);
}
