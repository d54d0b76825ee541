//! The boundary's laws, each a test of its own name.

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use rocketbridge_core::address::Pattern;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Flush};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use support::*;

fn declare(harness: &Harness, client: &mut Client, name: &str) {
    client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
}

fn to_queue(name: &str, body: &str) -> Publish {
    message(Entry::Queue, name, "", body)
}

fn native(topic: &str, tag: &str, body: &str, queue_id: Option<u32>) -> Publish {
    let properties = if tag.is_empty() {
        String::new()
    } else {
        format!("TAGS\x01{tag}\x02")
    };
    let native = Native {
        queue_id,
        topic_queues: 4,
        ..Native::default()
    };
    Publish {
        format: Format::NATIVE,
        origin: bytes(&properties),
        detailed: true,
        native: Some(Box::new(native)),
        ..message(Entry::Native, topic, tag, body)
    }
}

fn pull(client: &mut Client, harness: &Harness, topic: &str, queue_id: u32, offset: u64) -> Pulled {
    let pull = Pull {
        group: bytes("g"),
        topic: bytes(topic),
        queue_id,
        offset,
        messages_max: 1000,
        bytes_max: u32::MAX,
        filter: Some(Filter::All),
        hold: false,
    };
    match client.ask(&harness.engine, Request::Pull(pull)) {
        Ok(Reply::Pulled(pulled)) => *pulled,
        other => panic!("{other:?}"),
    }
}

#[test]
fn consume_ok_precedes_the_first_delivery() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&harness, &mut client, "q");
    for n in 0..5 {
        client.publish(to_queue("q", &n.to_string()));
    }
    client.events();
    client.subscribe("q", None);
    // The first consumer of a durable queue is noted durably, and nothing is delivered before that.
    assert!(client.events().iter().all(|event| !matches!(event, Event::Delivery(_))));
    harness.engine.sync_once().unwrap();
    let events = client.events();
    let reply = events
        .iter()
        .position(|event| matches!(event, Event::Reply { .. }))
        .unwrap();
    let first = events
        .iter()
        .position(|event| matches!(event, Event::Delivery(_)))
        .unwrap();
    assert!(reply < first);
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, Event::Delivery(_)))
            .count(),
        5
    );
}

#[test]
fn cancel_ok_follows_the_last_delivery() {
    let harness = Harness::new();
    let (mut consumer, mut publisher) = (harness.client(), harness.client());
    declare(&harness, &mut publisher, "q");
    let subscription = consumer.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    publisher.publish(to_queue("q", "before"));
    consumer.request(Request::Unsubscribe { subscription });
    publisher.publish(to_queue("q", "after"));
    harness.engine.sync_once().unwrap();
    let events = consumer.events();
    assert!(
        matches!(
            events.last(),
            Some(Event::Reply {
                result: Ok(Reply::Done),
                ..
            })
        ),
        "{events:?}"
    );
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, Event::Delivery(_)))
            .count(),
        1
    );
}

#[test]
fn return_precedes_its_confirm() {
    for flush in [Flush::Sync, Flush::Async] {
        let harness = Harness::flushing(flush);
        let mut client = harness.client();
        client
            .ask(
                &harness.engine,
                Request::DeclareExchange(exchange("e", ExchangeKind::Fanout)),
            )
            .unwrap();
        let token = client.publish(Publish {
            mandatory: true,
            ..message(Entry::Exchange, "e", "k", "body")
        });
        harness.engine.sync_once().unwrap();
        let events = client.events();
        match &events[..] {
            [
                Event::Returned {
                    token: returned,
                    message,
                },
                Event::Outcome(outcome),
            ] => {
                assert_eq!((*returned, outcome.first, outcome.count), (token, token, 1));
                assert_eq!((message.body(), message.key()), (&b"body"[..], &b"k"[..]));
                assert!(matches!(outcome.fate, Fate::Stored(Stored { routes: 0, .. })));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_publish_has_exactly_one_outcome() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let config = Config {
            unsynced_max: 3000,
            ..Config::default()
        };
        let harness = Harness::on(CrashStorage::default(), config).unwrap();
        let mut other = harness.client();
        declare(&harness, &mut other, "q");
        let mut client = harness.client();
        let (mut batch, mut taken, mut told) = (VecDeque::new(), 0u64, BTreeMap::new());
        let steps = random.below(80);
        for _ in 0..steps {
            for _ in 0..random.below(6) {
                let target = ["q", "nobody"][random.below(2) as usize];
                let entry = [Entry::Queue, Entry::Exchange, Entry::Topic][random.below(3) as usize];
                let persistent = random.below(2) == 0;
                let token = client.next_token;
                client.next_token += 1;
                batch.push_back(Publish {
                    token,
                    persistent,
                    ..message(entry, target, "", "some body or other")
                });
            }
            let before = batch.len();
            let admission = client.link.publish(&mut batch);
            taken += (before - batch.len()) as u64;
            assert_eq!(admission == Admission::All, batch.is_empty());
            if random.below(3) == 0 {
                harness.engine.sync_once().unwrap();
            }
            note_outcomes(client.events(), &mut told);
        }
        if random.below(2) == 0 {
            // The link goes with everything still open: nothing is told twice, nobody is harmed.
            drop(client);
            harness.engine.sync_once().unwrap();
            continue;
        }
        while !batch.is_empty() {
            harness.engine.sync_once().unwrap();
            let before = batch.len();
            let _ = client.link.publish(&mut batch);
            taken += (before - batch.len()) as u64;
        }
        harness.engine.sync_once().unwrap();
        note_outcomes(client.events(), &mut told);
        assert_eq!(told.len() as u64, taken, "seed {seed}");
        assert!(told.values().all(|count| *count == 1), "seed {seed}");
    }
}

fn note_outcomes(events: Vec<Event>, told: &mut BTreeMap<u64, u32>) {
    for event in events {
        if let Event::Outcome(outcome) = event {
            for token in outcome.first..outcome.first + u64::from(outcome.count) {
                *told.entry(token).or_default() += 1;
            }
        }
    }
}

#[test]
fn dropping_a_link_returns_its_leases_in_order() {
    let harness = Harness::new();
    let (mut first, mut second) = (harness.client(), harness.client());
    declare(&harness, &mut first, "q");
    let subscription = first.subscribe("q", None);
    for n in 0..10 {
        second.publish(to_queue("q", &n.to_string()));
    }
    harness.engine.sync_once().unwrap();
    assert_eq!(first.deliveries().len(), 10);
    first.settle(subscription, 3, 2, Settle::Ack);
    second.subscribe("q", Some(4));
    harness.engine.sync_once().unwrap();
    assert_eq!(second.bodies(), [""; 0]);
    drop(first);
    let deliveries = second.deliveries();
    assert_eq!(deliveries.iter().map(body).collect::<Vec<_>>(), ["0", "1", "2", "5"]);
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery.redelivered && delivery.leased)
    );
}

#[test]
fn nacked_message_returns_to_its_place() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&harness, &mut client, "q");
    for n in 0..6 {
        client.publish(to_queue("q", &n.to_string()));
    }
    let subscription = client.subscribe("q", Some(3));
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), ["0", "1", "2"]);
    client.settle(subscription, 1, 1, Settle::Release);
    let again = client.deliveries();
    assert_eq!(
        (body(&again[0]), again[0].redelivered, again.len()),
        ("1".to_owned(), true, 1)
    );
    client.settle(subscription, 0, 3, Settle::Ack);
    assert_eq!(client.bodies(), ["3", "4", "5"]);
}

#[test]
fn competing_consumers_take_turns() {
    let harness = Harness::new();
    let (mut one, mut two) = (harness.client(), harness.client());
    declare(&harness, &mut one, "q");
    one.subscribe("q", None);
    two.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    one.events();
    two.events();
    let mut publisher = harness.client();
    for n in 0..10 {
        publisher.publish(to_queue("q", &n.to_string()));
    }
    assert_eq!((one.deliveries().len(), two.deliveries().len()), (5, 5));
}

#[test]
fn a_queue_gets_one_copy_whatever_matched() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&harness, &mut client, "q");
    for name in ["t", "u"] {
        client
            .ask(
                &harness.engine,
                Request::DeclareExchange(exchange(name, ExchangeKind::Pattern)),
            )
            .unwrap();
    }
    let pattern = |text: &str| Matcher::Pattern(Pattern::from_key_pattern(text.as_bytes()));
    for text in ["a.*", "#", "a.b", "*.b"] {
        let bind = binding(Source::Exchange(bytes("t")), pattern(text), "q");
        client.ask(&harness.engine, Request::Bind(bind)).unwrap();
    }
    let to_exchange = Binding {
        destination: Destination::Exchange(bytes("u")),
        ..binding(Source::Exchange(bytes("t")), pattern("#"), "")
    };
    client.ask(&harness.engine, Request::Bind(to_exchange)).unwrap();
    let bind = binding(Source::Exchange(bytes("u")), pattern("#"), "q");
    client.ask(&harness.engine, Request::Bind(bind)).unwrap();
    for source in [Source::Topics, Source::Everything] {
        client
            .ask(&harness.engine, Request::Bind(binding(source, pattern("t.#"), "q")))
            .unwrap();
    }
    client.subscribe("q", None);
    client.publish(message(Entry::Exchange, "t", "a.b", "once"));
    client.publish(message(Entry::Topic, "t", "a.b", "once more"));
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), ["once", "once more"]);
}

#[test]
fn fanout_with_an_empty_key_uses_every_message_queue() {
    let harness = Harness::new();
    let mut client = harness.client();
    client
        .ask(
            &harness.engine,
            Request::DeclareExchange(exchange("e", ExchangeKind::Fanout)),
        )
        .unwrap();
    for n in 0..40 {
        client.publish(message(Entry::Exchange, "e", "", &n.to_string()));
    }
    for queue in 0..4 {
        let pulled = pull(&mut client, &harness, "e", queue, 0);
        assert_eq!(pulled.messages.len(), 10);
        let numbers: Vec<u32> = pulled
            .messages
            .iter()
            .map(|message| std::str::from_utf8(message.body()).unwrap().parse().unwrap())
            .collect();
        assert!(numbers.is_sorted());
    }
}

#[test]
fn a_fan_out_is_one_value_that_is_encoded_once() {
    let harness = Harness::new();
    let mut publisher = harness.client();
    let fanout = Request::DeclareExchange(exchange("e", ExchangeKind::Fanout));
    publisher.ask(&harness.engine, fanout).unwrap();
    let mut consumers: Vec<Client> = (0..3).map(|_| harness.client()).collect();
    let mut encodings = 0;
    let mut deliver = |consumers: &mut [Client], publisher: &mut Client| {
        encodings = 0;
        publisher.publish(Publish {
            persistent: false,
            ..message(Entry::Exchange, "e", "", "for all")
        });
        harness.engine.sync_once().unwrap();
        let mut forms = Vec::new();
        for consumer in consumers {
            for delivery in consumer.deliveries() {
                let form = delivery.message.form(0, |message| {
                    encodings += 1;
                    Bytes::copy_from_slice(message.body())
                });
                forms.push(form.cloned());
            }
        }
        (forms, encodings)
    };
    for n in 0..consumers.len() {
        let name = format!("q{n}");
        declare(&harness, &mut consumers[n], &name);
        let binding = binding(Source::Exchange(bytes("e")), Matcher::Key(Bytes::new()), &name);
        consumers[n].ask(&harness.engine, Request::Bind(binding)).unwrap();
        consumers[n].subscribe(&name, None);
        let (forms, encodings) = deliver(&mut consumers, &mut publisher);
        match n {
            // Nobody else would use it.
            0 => assert_eq!((forms, encodings), (vec![None], 0)),
            _ => assert_eq!((forms, encodings), (vec![Some(bytes("for all")); n + 1], 1)),
        }
    }
}

#[test]
fn messages_with_one_key_keep_their_order_in_a_topic() {
    let harness = Harness::new();
    let mut client = harness.client();
    for n in 0..20 {
        client.publish(message(Entry::Topic, "devices", "42.cmd", &n.to_string()));
    }
    harness.engine.sync_once().unwrap();
    let counts: Vec<usize> = (0..4)
        .map(|q| pull(&mut client, &harness, "devices", q, 0).messages.len())
        .collect();
    assert_eq!(counts.iter().sum::<usize>(), 20);
    assert!(counts.contains(&20), "{counts:?}");
}

#[test]
fn a_new_exchange_removes_no_delivery() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&harness, &mut client, "q");
    declare(&harness, &mut client, "t");
    let everything = Matcher::Pattern(Pattern::from_key_pattern(b"t.#"));
    client
        .ask(
            &harness.engine,
            Request::Bind(binding(Source::Everything, everything, "q")),
        )
        .unwrap();
    client.subscribe("q", None);
    client.subscribe("t", None);
    harness.engine.sync_once().unwrap();
    client.events();
    let send = |client: &mut Client| {
        client.publish(message(Entry::Topic, "t", "k", "topic"));
        client.publish(native("t", "", "native", None));
        client.publish(to_queue("t", "queue"));
        let mut bodies = client.bodies();
        bodies.sort();
        bodies
    };
    let before = send(&mut client);
    assert_eq!(before, ["native", "native", "queue", "topic"]);
    for kind in [ExchangeKind::Direct, ExchangeKind::Headers] {
        client
            .ask(&harness.engine, Request::DeclareExchange(exchange("t", kind)))
            .unwrap();
        assert_eq!(send(&mut client), before);
    }
}

#[test]
fn transient_messages_cost_no_write() {
    for flush in [Flush::Sync, Flush::Async] {
        let harness = Harness::flushing(flush);
        let mut client = harness.client();
        declare(&harness, &mut client, "q");
        client.subscribe("q", None);
        harness.engine.sync_once().unwrap();
        let (writes, syncs) = (harness.storage.writes(), harness.storage.syncs());
        for n in 0..1000 {
            client.publish(Publish {
                persistent: false,
                ..to_queue("q", &n.to_string())
            });
        }
        let deliveries = client.deliveries();
        assert_eq!(deliveries.len(), 1000);
        client.settle(deliveries[0].subscription, 0, 1000, Settle::Ack);
        harness.engine.sync_once().unwrap();
        assert_eq!((harness.storage.writes(), harness.storage.syncs()), (writes, syncs));
    }
}

#[test]
fn a_position_never_names_two_records() {
    let mut random = Random(5);
    let mut seen = BTreeSet::new();
    let mut storage = CrashStorage::default();
    for life in 0..30 {
        let harness = Harness::on(storage.clone(), Config::default()).unwrap();
        let mut client = harness.client();
        for _ in 0..random.below(60) {
            client.publish(native("t", "", &"x".repeat(random.below(3000) as usize), None));
            if random.below(4) == 0 {
                harness.engine.sync_once().unwrap();
            }
        }
        // Consumers see messages before the disk has them, so positions count from then on.
        for queue in 0..4 {
            let mut offset = 0;
            while let Ok(Reply::Pulled(pulled)) = pull_now(&mut client, queue, offset) {
                for message in &pulled.messages {
                    seen.insert((
                        message.position(),
                        message.body().len(),
                        life_of(message.position(), &seen, life),
                    ));
                }
                if pulled.messages.is_empty() {
                    break;
                }
                offset = pulled.next_offset;
            }
        }
        storage = if random.below(2) == 0 {
            harness.storage.after_power_cut(&mut random)
        } else {
            harness.storage.after_kill()
        };
    }
    let positions: BTreeSet<_> = seen.iter().map(|(position, ..)| position).collect();
    assert_eq!(positions.len(), seen.len());
    assert!(positions.len() > 100);
}

/// The life in which a position was first seen: a record read again in a later life is the same record.
fn life_of(
    position: rocketbridge_core::store::record::Position,
    seen: &BTreeSet<(rocketbridge_core::store::record::Position, usize, u32)>,
    life: u32,
) -> u32 {
    seen.iter()
        .find(|(known, ..)| *known == position)
        .map_or(life, |(.., first)| *first)
}

fn pull_now(client: &mut Client, queue_id: u32, offset: u64) -> Result<Reply, Refusal> {
    let pull = Pull {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id,
        offset,
        messages_max: 1000,
        bytes_max: u32::MAX,
        filter: Some(Filter::All),
        hold: false,
    };
    let wanted = client.request(Request::Pull(pull));
    let answer = client.events().into_iter().find_map(|event| match event {
        Event::Reply { id, result } if id == wanted => Some(result),
        _ => None,
    });
    answer.expect("a pull that is not held is answered at once")
}

#[test]
fn a_held_pull_is_answered_by_the_next_message_or_by_cancelling_it() {
    let harness = Harness::new();
    let (mut client, mut publisher) = (harness.client(), harness.client());
    publisher.publish(native("t", "", "first", Some(0)));
    let wait = |client: &mut Client, filter| {
        client.request(Request::Pull(Pull {
            group: bytes("g"),
            topic: bytes("t"),
            queue_id: 0,
            offset: 1,
            messages_max: 32,
            bytes_max: u32::MAX,
            filter: Some(filter),
            hold: true,
        }))
    };
    let held = wait(
        &mut client,
        Filter::Tags(vec![rocketbridge_core::engine::tag_hash(b"b")]),
    );
    assert!(client.events().is_empty());
    publisher.publish(native("t", "a", "not this", Some(0)));
    assert!(client.events().is_empty());
    publisher.publish(native("t", "b", "this", Some(0)));
    match &client.events()[..] {
        [
            Event::Reply {
                id,
                result: Ok(Reply::Pulled(pulled)),
            },
        ] => {
            assert_eq!((*id, pulled.messages.len(), pulled.next_offset), (held, 1, 3));
            assert_eq!(pulled.messages[0].body(), b"this");
        }
        other => panic!("{other:?}"),
    }
    let mut other = harness.client();
    let held = other.request(Request::Pull(Pull {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 0,
        offset: 3,
        messages_max: 32,
        bytes_max: u32::MAX,
        filter: Some(Filter::All),
        hold: true,
    }));
    assert!(other.events().is_empty());
    other.link.cancel(held);
    match &other.events()[..] {
        [
            Event::Reply {
                result: Ok(Reply::Pulled(pulled)),
                ..
            },
        ] => assert_eq!(pulled.status, PullStatus::NotFound),
        events => panic!("{events:?}"),
    }
    other.link.cancel(held);
    assert!(other.events().is_empty());
}

#[test]
fn a_full_inbox_parks_deliveries_and_loses_none() {
    let harness = Harness::new();
    let (mut consumer, mut publisher) = (harness.client(), harness.client());
    declare(&harness, &mut publisher, "q");
    consumer.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    for n in 0..10_000 {
        publisher.publish(Publish {
            persistent: false,
            ..to_queue("q", &n.to_string())
        });
        publisher.events();
    }
    let bodies = consumer.bodies();
    assert_eq!(bodies.len(), 10_000);
    assert!(bodies.iter().enumerate().all(|(n, body)| *body == n.to_string()));
}

#[test]
fn a_position_that_nobody_was_given_shows_nothing() {
    let harness = Harness::new();
    let mut client = harness.client();
    let mut view = |position: u64| {
        let position = rocketbridge_core::store::record::Position(position);
        match client.ask(&harness.engine, Request::View { position }) {
            Ok(Reply::Message(message)) => Some(message.body().to_vec()),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    };
    let mut publisher = harness.client();
    for n in 0..3 {
        publisher.publish(native("t", "", &n.to_string(), None));
    }
    let mut seen: Vec<_> = (0..4000).filter_map(&mut view).collect();
    seen.extend(
        [u64::MAX, u64::MAX - 7, 1 << 62, i64::MAX as u64 - 7]
            .into_iter()
            .filter_map(&mut view),
    );
    assert_eq!(seen, [b"0", b"1", b"2"]);
}

/// Each time the inbox has room, as many queues go on as it has room for, and all of them in the end.
#[test]
fn thousands_of_queues_may_wait_for_one_full_inbox() {
    const QUEUES: usize = 3000;
    const EACH: usize = 5;
    let broker = Harness::flushing(Flush::Async);
    let mut publisher = broker.client();
    let mut consumer = broker.client();
    for index in 0..QUEUES {
        let name = format!("q{index}");
        consumer.request(Request::DeclareQueue(queue(&name)));
        consumer.subscribe(&name, None);
    }
    consumer.events();
    for number in 0..EACH {
        for index in 0..QUEUES {
            let transient = Publish {
                persistent: false,
                ..message(Entry::Queue, &format!("q{index}"), "", &number.to_string())
            };
            publisher.publish(transient);
        }
    }
    let mut next = std::collections::HashMap::new();
    for event in consumer.events() {
        let Event::Delivery(delivery) = event else { continue };
        let expected = next.entry(delivery.subscription).or_insert(0);
        assert_eq!(delivery.message.body(), expected.to_string().as_bytes());
        *expected += 1;
    }
    assert_eq!(next.len(), QUEUES);
    assert!(next.values().all(|count| *count == EACH));
}

/// However little may wait for the disk: the disk is not let rest while publishers wait for it.
#[test]
fn publishers_that_are_held_back_do_not_wait_for_the_next_step_of_an_idle_disk() {
    const ROUNDS: usize = 10;
    let config = Config {
        flush: Flush::Async,
        unsynced_max: 4096,
        ..Config::default()
    };
    let harness = Harness::on(CrashStorage::default(), config).unwrap();
    let mut client = harness.client();
    client.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    let engine = harness.engine.clone();
    let disk = std::thread::spawn(move || engine.run_sync());
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    let mut waited = std::time::Duration::ZERO;
    for _ in 0..ROUNDS {
        let mut batch = VecDeque::new();
        while client.link.publish(&mut batch) == Admission::All {
            let token = client.next_token;
            client.next_token += 1;
            let publish = message(Entry::Queue, "q", "", &"x".repeat(100));
            batch.push_back(Publish { token, ..publish });
        }
        client.next_token -= 1;
        while !client.events().iter().any(|event| matches!(event, Event::Writable)) {
            let pause = std::time::Duration::from_millis(1);
            let _ = receiver.recv_timeout(pause);
            waited += pause;
        }
    }
    harness.engine.close();
    disk.join().unwrap().unwrap();
    assert!(waited.as_millis() < 100 * ROUNDS as u128, "{waited:?}");
}
