//! Exchanges: cycles, alternates, hashing, headers, and topology that changes under way.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rocketbridge_core::address::Pattern;
use rocketbridge_core::attributes::{Attribute, Attributes, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::*;
use support::*;

struct Broker {
    harness: Harness,
    client: Client,
}

impl Broker {
    fn new() -> Self {
        let harness = Harness::new();
        let client = harness.client();
        Self { harness, client }
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.client.ask(&self.harness.engine, request).expect("granted")
    }

    fn queue(&mut self, name: &str) {
        self.ask(Request::DeclareQueue(queue(name)));
    }

    fn exchange(&mut self, name: &str, kind: ExchangeKind, alternate: Option<Way>) {
        self.ask(Request::DeclareExchange(Exchange {
            alternate,
            ..exchange(name, kind)
        }));
    }

    fn bind(&mut self, source: &str, key: &str, destination: Destination) {
        self.ask(Request::Bind(from(source, key, destination)));
    }

    /// How many copies of a message each queue gets.
    fn published(&mut self, publish: Publish, queues: &[&str]) -> Vec<u64> {
        self.client.publish(publish);
        queues
            .iter()
            .map(|name| match self.ask(Request::PurgeQueue { name: bytes(name) }) {
                Reply::Count(count) => count,
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

fn from(source: &str, key: &str, destination: Destination) -> Binding {
    Binding {
        destination,
        ..binding(Source::Exchange(bytes(source)), Matcher::Key(bytes(key)), "")
    }
}

fn to_queue(name: &str) -> Destination {
    Destination::Queue(bytes(name))
}

fn to_exchange(name: &str) -> Destination {
    Destination::Exchange(bytes(name))
}

fn to(exchange: &str, key: &str) -> Publish {
    message(Entry::Exchange, exchange, key, "m")
}

#[test]
fn a_cycle_of_exchanges_ends_and_gives_each_queue_one_copy() {
    let mut broker = Broker::new();
    for name in ["a", "b", "c"] {
        broker.exchange(name, ExchangeKind::Fanout, None);
    }
    broker.queue("q");
    for (source, destination) in [("a", "b"), ("b", "c"), ("c", "a"), ("a", "a")] {
        broker.bind(source, "", to_exchange(destination));
    }
    broker.bind("c", "", to_queue("q"));
    broker.bind("a", "x", to_queue("q"));
    assert_eq!(broker.published(to("a", ""), &["q"]), [1]);
    broker.ask(Request::Unbind(from("b", "", to_exchange("c"))));
    broker.ask(Request::Unbind(from("a", "x", to_queue("q"))));
    assert_eq!(broker.published(to("a", ""), &["q"]), [0]);
    assert_eq!(broker.published(to("c", ""), &["q"]), [1]);
    // An exchange takes its bindings with it, in both directions, and one to itself.
    for name in ["a", "c"] {
        broker.ask(Request::DeleteExchange {
            name: bytes(name),
            if_unused: false,
        });
        broker.exchange(name, ExchangeKind::Fanout, None);
    }
    assert_eq!(broker.published(to("a", ""), &["q"]), [0]);
    assert_eq!(broker.published(to("b", ""), &["q"]), [0]);
}

#[test]
fn auto_delete_exchanges_go_one_after_the_other_with_their_last_binding() {
    let mut broker = Broker::new();
    broker.queue("q");
    let count = 2_000;
    for n in 0..count {
        broker.ask(Request::DeclareExchange(Exchange {
            auto_delete: true,
            ..exchange(&format!("e{n}"), ExchangeKind::Fanout)
        }));
    }
    for n in 0..count - 1 {
        broker.bind(&format!("e{n}"), "", to_exchange(&format!("e{}", n + 1)));
    }
    let last = format!("e{}", count - 1);
    broker.bind(&last, "", to_queue("q"));
    broker.ask(Request::Unbind(from(&last, "", to_queue("q"))));
    for name in ["e0", &last] {
        let found = broker
            .client
            .ask(&broker.harness.engine, Request::FindExchange { name: bytes(name) });
        assert!(matches!(found, Err(Refusal::NotFound { .. })), "{name}");
    }
}

#[test]
fn what_no_binding_takes_goes_to_the_alternate_exchange() {
    let mut broker = Broker::new();
    let queues = ["taken", "rest", "named"];
    queues.iter().for_each(|name| broker.queue(name));
    broker.exchange("main", ExchangeKind::Direct, Some(Way::Exchange(bytes("second"))));
    broker.exchange("second", ExchangeKind::Direct, Some(Way::Exchange(bytes("third"))));
    // The third comes later, and leads back to the first.
    assert_eq!(broker.published(to("main", "k"), &queues), [0, 0, 0]);
    broker.exchange("third", ExchangeKind::Direct, Some(Way::Exchange(bytes("main"))));
    broker.bind("main", "k", to_queue("taken"));
    broker.bind("third", "other", to_queue("rest"));
    assert_eq!(broker.published(to("main", "k"), &queues), [1, 0, 0]);
    assert_eq!(broker.published(to("main", "other"), &queues), [0, 1, 0]);
    assert_eq!(broker.published(to("main", "nobody"), &queues), [0, 0, 0]);
    broker.exchange("by name", ExchangeKind::Fanout, Some(Way::Queue));
    assert_eq!(broker.published(to("by name", "named"), &queues), [0, 0, 1]);
    // A binding counts although nothing comes of it.
    broker.exchange("empty", ExchangeKind::Fanout, None);
    broker.bind("main", "x", to_exchange("empty"));
    broker.bind("third", "x", to_queue("rest"));
    assert_eq!(broker.published(to("main", "x"), &queues), [0, 0, 0]);
    // It is kept over a restart.
    let Broker { harness, client } = broker;
    drop(client);
    let harness = harness.restart();
    let client = harness.client();
    let mut broker = Broker { harness, client };
    assert_eq!(broker.published(to("main", "other"), &queues), [0, 1, 0]);
}

#[test]
fn alternates_and_bindings_lead_into_topics_too() {
    let mut broker = Broker::new();
    broker.queue("q");
    broker.exchange("out", ExchangeKind::Fanout, Some(Way::Topics));
    let pattern = Matcher::Pattern(Pattern::from_key_pattern(b"a.*.c"));
    broker.ask(Request::Bind(binding(Source::Topics, pattern.clone(), "q")));
    assert_eq!(broker.published(to("out", "a.b.c"), &["q"]), [1]);
    broker.exchange("in", ExchangeKind::Direct, None);
    broker.bind("in", "a.x.c", Destination::Topics);
    assert_eq!(broker.published(to("in", "a.x.c"), &["q"]), [1]);
    // The other way round: an exchange that is bound to all topics sees the whole address as the key.
    broker.exchange("all", ExchangeKind::Direct, None);
    broker.queue("whole");
    broker.ask(Request::Bind(Binding {
        destination: to_exchange("all"),
        ..binding(Source::Topics, Matcher::Pattern(Pattern::from_key_pattern(b"#")), "")
    }));
    broker.bind("all", "t.k.l", to_queue("whole"));
    let publish = message(Entry::Topic, "t", "k.l", "m");
    assert_eq!(broker.published(publish, &["whole"]), [1]);
}

fn properties(entries: &[(Name<'_>, Value<'_>)]) -> Attributes {
    let mut builder = AttributesBuilder::default();
    entries.iter().for_each(|(name, value)| builder.put(*name, *value));
    builder.finish()
}

#[test]
fn a_hashing_exchange_gives_each_message_to_one_queue_and_equal_ones_to_the_same() {
    let mut broker = Broker::new();
    let queues = ["a", "b", "c"];
    for (name, hash_on) in [
        ("by key", HashOn::Key),
        ("by header", HashOn::Property(bytes("user"))),
        ("by id", HashOn::Attribute(Attribute::MessageId)),
    ] {
        queues.iter().for_each(|queue| broker.queue(queue));
        broker.ask(Request::DeclareExchange(Exchange {
            hash_on,
            ..exchange(name, ExchangeKind::Hash)
        }));
        for queue in queues {
            broker.bind(name, "10", to_queue(queue));
        }
        let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for n in 0..90u64 {
            let what = n % 30;
            let id = format!("id{what}");
            let key = if name == "by key" { &id } else { "k" };
            let publish = Publish {
                attributes: properties(&[
                    (Name::User(b"user"), Value::Uint(what)),
                    (Name::Known(Attribute::MessageId), Value::Text(id.as_bytes())),
                ]),
                ..to(name, key)
            };
            let counts = broker.published(publish, &queues);
            assert_eq!(counts.iter().sum::<u64>(), 1);
            let before = places.insert(what, counts.clone());
            assert!(before.is_none_or(|before| before == counts), "{name}");
        }
        let used: std::collections::BTreeSet<_> = places.into_values().collect();
        assert_eq!(used.len(), 3, "{name}: every queue gets some");
    }
}

#[test]
fn headers_bindings_take_all_or_any() {
    let mut broker = Broker::new();
    let queues = ["all", "any", "present", "nothing"];
    queues.iter().for_each(|queue| broker.queue(queue));
    broker.exchange("h", ExchangeKind::Headers, None);
    let (kind, size) = (Name::User(&b"kind"[..]), Name::User(&b"size"[..]));
    let both = properties(&[(kind, Value::Text(b"report")), (size, Value::Int(3))]);
    let presence = properties(&[(kind, Value::Null)]);
    for (queue, all, wanted) in [
        ("all", true, &both),
        ("any", false, &both),
        ("present", true, &presence),
        ("nothing", true, &Attributes::EMPTY),
    ] {
        let headers = Headers {
            all,
            wanted: Bytes::copy_from_slice(wanted.as_bytes()),
        };
        let source = Source::Exchange(bytes("h"));
        broker.ask(Request::Bind(binding(source, Matcher::Headers(headers), queue)));
    }
    for (entries, expected) in [
        (
            &[(kind, Value::Text(b"report")), (size, Value::Uint(3))][..],
            [1, 1, 1, 1],
        ),
        (
            &[(kind, Value::Text(b"report")), (size, Value::Float(3.0))],
            [0, 1, 1, 1],
        ),
        (&[(kind, Value::Text(b"other"))], [0, 0, 1, 1]),
        (&[(size, Value::Int(3))], [0, 1, 0, 1]),
        (&[], [0, 0, 0, 1]),
    ] {
        let publish = Publish {
            attributes: properties(entries),
            ..to("h", "")
        };
        assert_eq!(broker.published(publish, &queues), expected, "{entries:?}");
    }
}

#[test]
fn a_topology_change_while_publishing_loses_and_doubles_nothing() {
    let mut broker = Broker::new();
    let keys = ["a", "b", "c", "d"];
    broker.queue("kept");
    broker.exchange("e", ExchangeKind::Pattern, None);
    let pattern = |text: &str| Matcher::Pattern(Pattern::from_key_pattern(text.as_bytes()));
    let source = || Source::Exchange(bytes("e"));
    broker.ask(Request::Bind(binding(source(), pattern("#"), "kept")));
    let done = AtomicBool::new(false);
    let count = 4_000;
    let (mut publisher, mut changer) = (broker.harness.client(), broker.harness.client());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..count {
                publisher.publish(message(Entry::Exchange, "e", keys[n % 4], &n.to_string()));
            }
            done.store(true, Ordering::Release);
        });
        let mut round = 0;
        while !done.load(Ordering::Acquire) {
            // Other bindings of the same queue, other queues and other exchanges come and go.
            changer.request(Request::Bind(binding(source(), pattern(keys[round % 4]), "kept")));
            changer.request(Request::DeclareQueue(queue("other")));
            changer.request(Request::Bind(binding(source(), pattern("#"), "other")));
            changer.request(Request::DeclareExchange(exchange("f", ExchangeKind::Fanout)));
            changer.request(Request::Bind(Binding {
                destination: to_exchange("f"),
                ..binding(source(), pattern("b"), "")
            }));
            changer.request(Request::Bind(from("f", "", to_queue("kept"))));
            changer.request(Request::DeleteExchange {
                name: bytes("f"),
                if_unused: false,
            });
            changer.request(Request::DeleteQueue {
                name: bytes("other"),
                if_unused: false,
                if_empty: false,
            });
            changer.request(Request::Unbind(binding(source(), pattern(keys[round % 4]), "kept")));
            changer.events();
            broker.harness.engine.sync_once().unwrap();
            round += 1;
        }
    });
    broker.harness.engine.sync_once().unwrap();
    broker.client.subscribe("kept", None);
    broker.harness.engine.sync_once().unwrap();
    let expected: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    assert_eq!(broker.client.bodies(), expected);
}
