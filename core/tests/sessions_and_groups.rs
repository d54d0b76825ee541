//! Named sessions, exclusive and limited queues, native groups.

mod support;

use bytes::Bytes;
use rocketbridge_core::address::Pattern;
use rocketbridge_core::attributes::{Attribute, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::*;
use rocketbridge_core::time::Millis;
use support::*;

fn attach(clean: bool, keep: u64) -> Request {
    Request::Attach(Attach {
        holder: bytes("device"),
        clean,
        durable: keep > 0,
        keep: Millis(keep),
        limit: Limit::NONE,
        will: None,
    })
}

fn filter(text: &str, queue: &str) -> Request {
    let matcher = Matcher::Pattern(Pattern::from_key_pattern(text.as_bytes()));
    Request::Bind(Binding {
        cookie: bytes(text),
        ..binding(Source::Everything, matcher, queue)
    })
}

fn present(reply: Result<Reply, Refusal>) -> bool {
    match reply {
        Ok(Reply::Attached { present, .. }) => present,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_keeps_what_was_published_while_its_client_was_away() {
    let harness = Harness::new();
    let (mut device, mut other) = (harness.client(), harness.client());
    assert!(!present(device.ask(&harness.engine, attach(false, 10_000))));
    device.ask(&harness.engine, filter("t.#", "\0device")).unwrap();
    drop(device);
    other.publish(message(Entry::Topic, "t", "a", "kept"));
    other.publish(Publish {
        persistent: false,
        ..message(Entry::Topic, "t", "a", "transient")
    });
    let mut device = harness.client();
    assert!(present(device.ask(&harness.engine, attach(false, 10_000))));
    device.subscribe("\0device", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(device.bodies(), ["kept"]);
    drop(device);
    harness.clock.advance(10_001);
    harness.engine.tick();
    let mut device = harness.client();
    assert!(!present(device.ask(&harness.engine, attach(false, 10_000))));
}

#[test]
fn a_session_taken_over_is_told_and_its_leases_go_to_the_new_connection() {
    let harness = Harness::new();
    let (mut first, mut second) = (harness.client(), harness.client());
    first.ask(&harness.engine, attach(false, 1000)).unwrap();
    first.ask(&harness.engine, filter("t.#", "\0device")).unwrap();
    first.subscribe("\0device", None);
    second.publish(message(Entry::Topic, "t", "a", "m"));
    harness.engine.sync_once().unwrap();
    assert_eq!(first.bodies(), ["m"]);
    assert!(present(second.ask(&harness.engine, attach(false, 1000))));
    assert!(
        first
            .events()
            .iter()
            .any(|event| matches!(event, Event::Notice(Notice::HolderTaken)))
    );
    second.subscribe("\0device", None);
    harness.engine.sync_once().unwrap();
    let deliveries = second.deliveries();
    assert_eq!(
        (body(&deliveries[0]), deliveries[0].redelivered),
        ("m".to_owned(), true)
    );
    // A clean start throws away what there was.
    assert!(!present(first.ask(&harness.engine, attach(true, 0))));
    first.subscribe("\0device", None);
    harness.engine.sync_once().unwrap();
    assert!(first.deliveries().is_empty());
}

fn share(queue: &str) -> Request {
    Request::Share(Share {
        queue: bytes(queue),
        limit: Limit::NONE,
        source: Source::Everything,
        matcher: Matcher::Pattern(Pattern::from_key_pattern(b"t.#")),
        cookie: Bytes::new(),
    })
}

/// Everything that names a queue.
fn requests_on(name: &str) -> Vec<Request> {
    let name = bytes(name);
    let binding = || {
        binding(
            Source::Topics,
            Matcher::Pattern(Pattern::from_key_pattern(b"#")),
            "unused",
        )
    };
    let binding = || Binding {
        destination: Destination::Queue(name.clone()),
        ..binding()
    };
    vec![
        Request::DeclareQueue(Queue {
            name: name.clone(),
            ..queue("unused")
        }),
        Request::FindQueue { name: name.clone() },
        Request::PurgeQueue { name: name.clone() },
        Request::AlterQueue {
            name: name.clone(),
            limit: Limit::NONE,
            policy: None,
        },
        Request::Bind(binding()),
        Request::Unbind(binding()),
        Request::Subscribe(Subscribe {
            subscription: SubscriptionId(9),
            queue: name.clone(),
            acknowledge: Acknowledge::Always,
            exclusive: false,
            priority: 0,
            window: None,
            selector: None,
        }),
        Request::Get {
            subscription: SubscriptionId(10),
            queue: name.clone(),
            leased: false,
        },
        Request::Recall {
            queue: name.clone(),
            pattern: Pattern::from_key_pattern(b"#"),
        },
        Request::DeleteQueue {
            name: name.clone(),
            if_unused: false,
            if_empty: false,
        },
    ]
}

#[test]
fn only_a_session_reaches_its_queues() {
    let harness = Harness::new();
    let (mut device, mut other, mut publisher) = (harness.client(), harness.client(), harness.client());
    device.ask(&harness.engine, attach(false, 10_000)).unwrap();
    device.ask(&harness.engine, filter("t.#", "\0device")).unwrap();
    device.ask(&harness.engine, share("\0\0g")).unwrap();
    let mut refuses = |who: &str, other: &mut Client| {
        for name in ["\0device", "\0\0g", "\0nobody", "\0"] {
            for request in requests_on(name) {
                let text = format!("{who}: {request:?}");
                let refusal = other.ask(&harness.engine, request).expect_err(&text);
                assert_eq!(refusal, Refusal::AccessRefused, "{text}");
            }
        }
        for (name, is_there) in [("|00device", true), ("|00|00g", true), ("|00nobody", false)] {
            for persistent in [true, false] {
                let token = publisher.publish(Publish {
                    persistent,
                    ..message(Entry::Queue, name, "", "injected")
                });
                harness.engine.sync_once().unwrap();
                let fates: Vec<Fate> = publisher
                    .events()
                    .into_iter()
                    .filter_map(|event| match event {
                        Event::Outcome(outcome) if outcome.first == token => Some(outcome.fate),
                        _ => None,
                    })
                    .collect();
                let is_refused = matches!(fates[..], [Fate::Rejected(Reject::AccessRefused)]);
                assert_eq!(is_refused, is_there, "{name}: {fates:?}");
            }
        }
        for entry in [Entry::Native, Entry::Topic] {
            publisher.publish(message(entry, "|00device", "", "injected"));
        }
    };
    refuses("while its client is here", &mut other);
    drop(device);
    refuses("while its client is away", &mut other);
    // Another session is as foreign.
    let taken = Attach {
        holder: bytes("other"),
        clean: true,
        durable: true,
        keep: Millis(10_000),
        limit: Limit::NONE,
        will: None,
    };
    other.ask(&harness.engine, Request::Attach(taken)).unwrap();
    refuses("to another session", &mut other);
    publisher.publish(message(Entry::Topic, "t", "a", "kept"));
    let mut device = harness.client();
    assert!(present(device.ask(&harness.engine, attach(false, 10_000))));
    device.subscribe("\0device", None);
    device.subscribe("\0\0g", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(device.bodies(), ["kept", "kept"]);
}

#[test]
fn nothing_is_dead_lettered_to_a_sessions_queue() {
    let harness = Harness::new();
    let (mut device, mut other) = (harness.client(), harness.client());
    device.ask(&harness.engine, attach(false, 10_000)).unwrap();
    device.subscribe("\0device", None);
    let dead_letter = DeadLetter {
        way: Way::Queue,
        key: Some(bytes("\0device")),
    };
    let policy = Policy {
        dead_letter: Some(dead_letter),
        ..Policy::default()
    };
    let giving_up = Queue {
        policy: Some(Box::new(policy)),
        ..queue("q")
    };
    other.ask(&harness.engine, Request::DeclareQueue(giving_up)).unwrap();
    other.publish(message(Entry::Queue, "q", "", "injected"));
    let subscription = other.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    let sequence = other.deliveries()[0].sequence;
    other.settle(subscription, sequence, 1, Settle::Reject);
    harness.engine.sync_once().unwrap();
    assert!(device.bodies().is_empty());
    assert_eq!(harness.engine.totals().kept_messages, 0);
}

#[test]
fn nothing_is_dead_lettered_to_a_groups_retry_topic() {
    let harness = Harness::new();
    let mut client = harness.client();
    for (name, way, key) in [("q1", Way::Topics, "%RETRY%g.tag"), ("q2", Way::Queue, "%RETRY%g")] {
        let policy = Policy {
            dead_letter: Some(DeadLetter {
                way,
                key: Some(bytes(key)),
            }),
            ..Policy::default()
        };
        let giving_up = Queue {
            policy: Some(Box::new(policy)),
            ..queue(name)
        };
        client.ask(&harness.engine, Request::DeclareQueue(giving_up)).unwrap();
        client
            .ask(&harness.engine, Request::DeclareQueue(queue("%RETRY%g")))
            .unwrap();
        client.publish(message(Entry::Queue, name, "", "injected"));
        let subscription = client.subscribe(name, None);
        harness.engine.sync_once().unwrap();
        let sequence = client.deliveries()[0].sequence;
        client.settle(subscription, sequence, 1, Settle::Reject);
        harness.engine.sync_once().unwrap();
        let find = Request::FindTopic {
            topic: bytes("%RETRY%g"),
        };
        assert!(matches!(
            client.ask(&harness.engine, find),
            Err(Refusal::NotFound { .. })
        ));
        assert_eq!(harness.engine.totals().kept_messages, 0);
    }
}

#[test]
fn what_only_native_clients_write_to_is_refused_to_others() {
    let harness = Harness::new();
    let mut client = harness.client();
    for topic in [
        "%RETRY%g",
        "%DLQ%g",
        "%LMQ%q",
        "SCHEDULE_TOPIC_XXXX",
        "RMQ_SYS_TRANS_HALF_TOPIC",
    ] {
        client
            .ask(&harness.engine, Request::DeclareQueue(queue(topic)))
            .unwrap();
        client
            .ask(
                &harness.engine,
                Request::DeclareExchange(exchange(topic, ExchangeKind::Fanout)),
            )
            .unwrap();
        for entry in [Entry::Queue, Entry::Topic, Entry::Exchange, Entry::Native] {
            client.publish(message(entry, topic, "", "m"));
            harness.engine.sync_once().unwrap();
            let events = client.events();
            let is_refused = |event: &Event| matches!(event, Event::Outcome(outcome) if outcome.fate == Fate::Rejected(Reject::AccessRefused));
            assert!(events.iter().any(is_refused), "{topic} {entry:?}: {events:?}");
        }
        let find = Request::FindTopic { topic: bytes(topic) };
        assert!(matches!(
            client.ask(&harness.engine, find),
            Err(Refusal::NotFound { .. })
        ));
    }
    let will = Will {
        entry: Entry::Topic,
        topic: bytes("%RETRY%g"),
        key: Bytes::new(),
        body: bytes("will"),
        attributes: Default::default(),
        format: message(Entry::Topic, "t", "", "").format,
        origin: Bytes::new(),
        persistent: true,
        retain: false,
        delay: Millis(0),
    };
    let Request::Attach(attach) = attach(true, 0) else {
        unreachable!()
    };
    let with_will = Request::Attach(Attach {
        will: Some(Box::new(will)),
        ..attach
    });
    assert_eq!(
        client.ask(&harness.engine, with_will).unwrap_err(),
        Refusal::AccessRefused
    );
}

#[test]
fn exclusive_queues_are_locked_and_go_with_their_connection() {
    let harness = Harness::new();
    let (mut owner, mut other) = (harness.client(), harness.client());
    let exclusive = Queue {
        exclusive: true,
        addressable: false,
        ..queue("mine")
    };
    owner.ask(&harness.engine, Request::DeclareQueue(exclusive)).unwrap();
    let find = || Request::FindQueue { name: bytes("mine") };
    assert_eq!(other.ask(&harness.engine, find()).unwrap_err(), Refusal::Locked);
    owner.ask(&harness.engine, find()).unwrap();
    // Anybody may publish straight to it, but it leaves no topic behind.
    other.publish(message(Entry::Queue, "mine", "", "m"));
    owner.subscribe("mine", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(owner.bodies(), ["m"]);
    assert!(
        other
            .ask(&harness.engine, Request::FindTopic { topic: bytes("mine") })
            .is_err()
    );
    drop(owner);
    assert!(matches!(
        other.ask(&harness.engine, find()),
        Err(Refusal::NotFound { .. })
    ));
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer_and_tells_nobody_else() {
    let harness = Harness::new();
    let mut client = harness.client();
    client
        .ask(
            &harness.engine,
            Request::DeclareQueue(Queue {
                auto_delete: true,
                ..queue("q")
            }),
        )
        .unwrap();
    let subscription = client.subscribe("q", None);
    client
        .ask(&harness.engine, Request::Unsubscribe { subscription })
        .unwrap();
    assert!(
        client
            .ask(&harness.engine, Request::FindQueue { name: bytes("q") })
            .is_err()
    );
}

#[test]
fn deleting_a_queue_ends_its_subscriptions() {
    let harness = Harness::new();
    let (mut consumer, mut other) = (harness.client(), harness.client());
    other.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    let subscription = consumer.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    consumer.events();
    let delete = |if_unused| Request::DeleteQueue {
        name: bytes("q"),
        if_unused,
        if_empty: false,
    };
    assert_eq!(other.ask(&harness.engine, delete(true)).unwrap_err(), Refusal::InUse);
    other.ask(&harness.engine, delete(false)).unwrap();
    match &consumer.events()[..] {
        [Event::Notice(Notice::SubscriptionEnded(ended))] => assert_eq!(*ended, subscription),
        events => panic!("{events:?}"),
    }
}

#[test]
fn drop_head_drops_what_would_be_delivered_next() {
    let harness = Harness::new();
    let mut client = harness.client();
    let limit = Limit {
        messages: Some(3),
        bytes: None,
    };
    client
        .ask(&harness.engine, Request::DeclareQueue(Queue { limit, ..queue("q") }))
        .unwrap();
    for n in 0..5 {
        client.publish(message(Entry::Queue, "q", "", &n.to_string()));
    }
    let subscription = client.subscribe("q", Some(1));
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), ["2"]);
    client.publish(message(Entry::Queue, "q", "", "5"));
    client.publish(message(Entry::Queue, "q", "", "6"));
    client.settle(subscription, 2, 1, Settle::Ack);
    assert_eq!(client.bodies(), ["4"]);
}

#[test]
fn expiry_acts_at_the_head_only() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    let mut builder = AttributesBuilder::default();
    let mut living = |millis: Option<u64>, text: &str| {
        if let Some(millis) = millis {
            builder.put(Name::Known(Attribute::TimeToLive), Value::Uint(millis));
        }
        Publish {
            attributes: builder.finish(),
            ..message(Entry::Queue, "q", "", text)
        }
    };
    for (millis, text) in [
        (Some(10), "a"),
        (Some(10), "b"),
        (None, "c"),
        (Some(10), "d"),
        (Some(1000), "e"),
    ] {
        client.publish(living(millis, text));
    }
    let ready = |client: &mut Client, harness: &Harness| match client
        .ask(&harness.engine, Request::FindQueue { name: bytes("q") })
    {
        Ok(Reply::Queue(state)) => state.ready,
        other => panic!("{other:?}"),
    };
    assert_eq!(ready(&mut client, &harness), 5);
    harness.clock.advance(10);
    assert_eq!(ready(&mut client, &harness), 3);
    let harness = harness.restart();
    harness.clock.advance(10);
    let mut client = harness.client();
    client.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), ["c", "e"]);
    // A message that may not wait at all reaches a consumer that is there.
    client.publish(living(Some(0), "now"));
    assert_eq!(client.bodies(), ["now"]);
}

#[test]
fn headers_bindings_compare_values_by_type() {
    let harness = Harness::new();
    let mut client = harness.client();
    client
        .ask(
            &harness.engine,
            Request::DeclareExchange(exchange("h", ExchangeKind::Headers)),
        )
        .unwrap();
    let mut builder = AttributesBuilder::default();
    let mut attributes = |entries: &[(&str, Value<'_>)]| {
        for (name, value) in entries {
            builder.put(Name::User(name.as_bytes()), *value);
        }
        builder.finish()
    };
    let two = attributes(&[("a", Value::Int(1)), ("b", Value::Text(b"x"))]);
    for (name, all) in [("all", true), ("any", false)] {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
        let wanted = bytes::Bytes::copy_from_slice(two.as_bytes());
        let matcher = Matcher::Headers(Headers { all, wanted });
        let bind = binding(Source::Exchange(bytes("h")), matcher, name);
        client.ask(&harness.engine, Request::Bind(bind)).unwrap();
        client.subscribe(name, None);
    }
    harness.engine.sync_once().unwrap();
    client.events();
    let cases: [(&[(&str, Value<'_>)], usize); 4] = [
        (
            &[("a", Value::Uint(1)), ("b", Value::Text(b"x")), ("c", Value::Null)],
            2,
        ),
        (&[("a", Value::Int(1))], 1),
        (&[("a", Value::Float(1.0))], 0),
        (&[], 0),
    ];
    for (headers, expected) in cases {
        client.publish(Publish {
            attributes: attributes(headers),
            ..message(Entry::Exchange, "h", "", "m")
        });
        assert_eq!(client.bodies().len(), expected, "{headers:?}");
    }
}

#[test]
fn a_group_is_told_when_its_members_change() {
    let harness = Harness::new();
    let (mut one, mut two) = (harness.client(), harness.client());
    let join = |client: &str| {
        Request::JoinConsumers(Join {
            group: bytes("g"),
            client_id: bytes(client),
            broadcasting: false,
            subscriptions: vec![GroupSubscription {
                topic: bytes("t"),
                filter: Filter::All,
                version: 1,
            }],
        })
    };
    let told = |client: &mut Client| {
        client
            .events()
            .iter()
            .filter(|event| matches!(event, Event::Notice(Notice::GroupChanged(_))))
            .count()
    };
    one.request(join("one"));
    assert_eq!(told(&mut one), 1);
    one.request(join("one"));
    assert_eq!(told(&mut one), 0);
    two.request(join("two"));
    assert_eq!((told(&mut one), told(&mut two)), (1, 1));
    match one.ask(&harness.engine, Request::Members { group: bytes("g") }) {
        Ok(Reply::Members(members)) => assert_eq!(members, [bytes("one"), bytes("two")]),
        other => panic!("{other:?}"),
    }
    drop(two);
    assert_eq!(told(&mut one), 1);
}

#[test]
fn a_queue_lock_belongs_to_one_client_until_it_runs_out() {
    let harness = Harness::new();
    let mut client = harness.client();
    client
        .ask(
            &harness.engine,
            Request::DeclareTopic {
                topic: bytes("t"),
                queues: 1,
            },
        )
        .unwrap();
    let mut lock = |harness: &Harness, name: &str| {
        let queues = vec![(bytes("t"), 0)];
        let request = Request::LockQueues {
            group: bytes("g"),
            client_id: bytes(name),
            queues,
        };
        match client.ask(&harness.engine, request) {
            Ok(Reply::Locked(locked)) => locked.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (lock(&harness, "one"), lock(&harness, "two"), lock(&harness, "one")),
        (1, 0, 1)
    );
    harness.clock.advance(60_000);
    assert_eq!(lock(&harness, "two"), 1);
}

/// It would hide the messages that come next.
#[test]
fn an_offset_beyond_the_end_is_cut_to_the_end() {
    let mut harness = Harness::new();
    let mut client = harness.client();
    for n in 0..3 {
        client.publish(message(Entry::Topic, "t", "k", &n.to_string()));
    }
    harness.engine.sync_once().unwrap();
    let mut ends = Vec::new();
    for queue_id in 0..4 {
        let topic = bytes("t");
        let Ok(Reply::Offsets(bounds)) = client.ask(&harness.engine, Request::Bounds { topic, queue_id }) else {
            panic!("the topic is there")
        };
        ends.push(bounds.end);
        let commit = Request::CommitOffset {
            group: bytes("g"),
            topic: bytes("t"),
            queue_id,
            offset: 100,
        };
        client.ask(&harness.engine, commit).unwrap();
    }
    assert_eq!(ends.iter().sum::<u64>(), 3);
    for _ in 0..2 {
        for (queue_id, end) in (0..).zip(&ends) {
            let committed = Request::CommittedOffset {
                group: bytes("g"),
                topic: bytes("t"),
                queue_id,
            };
            match client.ask(&harness.engine, committed) {
                Ok(Reply::Offset(Some(offset))) => assert_eq!(offset, *end),
                other => panic!("{other:?}"),
            }
        }
        harness.engine.sync_once().unwrap();
        drop(client);
        harness = harness.kill();
        client = harness.client();
    }
}
