//! Dedup keys: what was taken once is not stored again while its key is open.

mod support;

use rocketbridge_core::attributes::{Attributes, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::Config;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::properties;
use rocketbridge_core::request::*;
use rocketbridge_core::time::Millis;
use support::*;

const KEY: &str = "x-key";

fn window(keys_max: u32, time: Option<u64>) -> Dedup {
    Dedup {
        property: bytes(KEY),
        keys_max,
        time: time.map(Millis),
    }
}

fn keyed(key: &str) -> Attributes {
    let mut builder = AttributesBuilder::default();
    builder.put(Name::User(KEY.as_bytes()), Value::Text(key.as_bytes()));
    builder.finish()
}

fn to_exchange(key: &str, body: &str) -> Publish {
    Publish {
        attributes: keyed(key),
        ..message(Entry::Exchange, "e", "", body)
    }
}

/// An exchange `e` with that window and a queue `q` bound to it.
fn with_exchange(client: &mut Client, harness: &Harness, window: Dedup) {
    let declare = Exchange {
        dedup: Some(window),
        ..exchange("e", ExchangeKind::Fanout)
    };
    let bind = binding(Source::Exchange(bytes("e")), Matcher::Key(bytes("")), "q");
    for request in [
        Request::DeclareExchange(declare),
        Request::DeclareQueue(queue("q")),
        Request::Bind(bind),
    ] {
        client.ask(&harness.engine, request).unwrap();
    }
}

/// What became of the messages published last, in their order.
fn fates(client: &mut Client, harness: &Harness) -> Vec<Fate> {
    harness.engine.sync_once().unwrap();
    let mut fates: Vec<(u64, Fate)> = Vec::new();
    for event in client.events() {
        if let Event::Outcome(outcome) = event {
            fates.extend((0..u64::from(outcome.count)).map(|n| (outcome.first + n, outcome.fate)));
        }
    }
    fates.sort_by_key(|(token, _)| *token);
    fates.into_iter().map(|(_, fate)| fate).collect()
}

/// Publishes and says which of them were copies.
fn copies(client: &mut Client, harness: &Harness, publishes: Vec<Publish>) -> Vec<bool> {
    for publish in publishes {
        client.publish(publish);
    }
    let is_copy = |fate| match fate {
        Fate::Stored(_) => false,
        Fate::Duplicate(_) => true,
        other => panic!("{other:?}"),
    };
    fates(client, harness).into_iter().map(is_copy).collect()
}

fn bodies_of(client: &mut Client, harness: &Harness, queue: &str) -> Vec<String> {
    client.subscribe(queue, None);
    harness.engine.sync_once().unwrap();
    client.bodies()
}

#[test]
fn publish_with_an_open_dedup_key_is_stored_once() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, None));
    let publishes = vec![
        to_exchange("a", "a1"),
        to_exchange("b", "b1"),
        to_exchange("a", "a2"),
        message(Entry::Exchange, "e", "", "keyless"),
        message(Entry::Exchange, "e", "", "keyless"),
    ];
    let found = copies(&mut client, &harness, publishes);
    assert_eq!(found, [false, false, true, false, false]);

    // The process dies and comes back: the keys came back with the messages.
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    let publishes = vec![to_exchange("b", "b2"), to_exchange("c", "c1"), to_exchange("a", "a3")];
    assert_eq!(copies(&mut client, &harness, publishes), [true, false, true]);
    assert_eq!(
        bodies_of(&mut client, &harness, "q"),
        ["a1", "b1", "keyless", "keyless", "c1"]
    );
}

#[test]
fn a_copy_is_told_as_safe_only_when_the_first_one_is() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, None));
    client.publish(to_exchange("a", "a1"));
    client.publish(to_exchange("a", "a2"));
    assert!(client.events().is_empty());
    assert_eq!(fates(&mut client, &harness).len(), 2);
}

#[test]
fn a_copy_is_told_the_place_of_the_first_one() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, None));
    for body in ["other", "a1", "a2"] {
        let key = if body == "other" { "o" } else { "a" };
        client.publish(Publish {
            detailed: true,
            ..to_exchange(key, body)
        });
    }
    let found = fates(&mut client, &harness);
    let (Fate::Stored(first), Fate::Duplicate(second)) = (found[1], found[2]) else {
        panic!("{found:?}")
    };
    assert_eq!(
        (first.position, first.queue_id, first.queue_offset),
        (second.position, second.queue_id, second.queue_offset)
    );
}

#[test]
fn the_oldest_keys_are_forgotten_beyond_the_window_s_number() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(2, None));
    let keys = ["a", "b", "a", "c", "a", "c"].map(|key| to_exchange(key, "m"));
    let found = copies(&mut client, &harness, keys.into());
    assert_eq!(found, [false, false, true, false, false, true]);
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    let keys = ["c", "a", "b", "c"].map(|key| to_exchange(key, "m"));
    assert_eq!(copies(&mut client, &harness, keys.into()), [true, true, false, false]);
}

#[test]
fn a_key_is_forgotten_when_the_window_s_time_is_over_also_over_a_crash() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, Some(10_000)));
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a1")]), [false]);
    harness.clock.advance(9_999);
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a2")]), [true]);
    harness.clock.advance(1);
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a3")]), [false]);
    harness.clock.advance(6_000);
    harness.engine.tick();
    drop(client);
    // The broker comes back after 3 s, of which its monotonic clock knows nothing.
    let clock = ManualClock::default();
    clock.advance(19_000);
    let harness = Harness::at(clock, harness.storage.after_kill(), Config::default()).unwrap();
    let mut client = harness.client();
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a4")]), [true]);
    harness.clock.advance(1_000);
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a5")]), [false]);
    drop(client);
    // The wall clock was set back: a key is never remembered longer than the window says.
    let harness = harness.kill();
    let mut client = harness.client();
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a6")]), [true]);
    harness.clock.advance(10_000);
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a7")]), [false]);
}

#[test]
fn keys_of_all_addresses_together_are_limited() {
    let config = Config {
        dedup_keys_max: 10,
        ..Config::default()
    };
    let harness = Harness::on(CrashStorage::default(), config).unwrap();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(1000, None));
    let keys = (0..20).map(|n| to_exchange(&n.to_string(), "m"));
    let found = copies(&mut client, &harness, keys.collect());
    assert!(found.iter().all(|copy| !copy));
    let keys = [9, 10, 19].map(|n| to_exchange(&n.to_string(), "m"));
    assert_eq!(copies(&mut client, &harness, keys.into())[1..], [false, true]);
}

#[test]
fn an_exchange_that_is_gone_has_forgotten_its_keys() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, None));
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a1")]), [false]);
    let name = bytes("e");
    let delete = Request::DeleteExchange { name, if_unused: false };
    client.ask(&harness.engine, delete).unwrap();
    with_exchange(&mut client, &harness, window(100, None));
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a2")]), [false]);
}

#[test]
fn a_refused_message_opens_no_key() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, None));
    let name = bytes("e");
    let delete = Request::DeleteExchange { name, if_unused: false };
    client.ask(&harness.engine, delete).unwrap();
    client.publish(to_exchange("a", "a1"));
    assert_eq!(fates(&mut client, &harness), [Fate::Rejected(Reject::NoExchange)]);
    with_exchange(&mut client, &harness, window(100, None));
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a2")]), [false]);
}

#[test]
fn a_topic_knows_copies_by_the_unique_key_if_the_configuration_says_so() {
    let unique = Dedup {
        property: bytes("UNIQ_KEY"),
        keys_max: 100,
        time: None,
    };
    let config = Config {
        dedup_topics: vec![(bytes("t"), unique)],
        ..Config::default()
    };
    let native = |topic: &str, key: &str| {
        let mut origin = Vec::new();
        properties::push(&mut origin, b"UNIQ_KEY", key.as_bytes());
        Publish {
            format: Format::NATIVE,
            origin: origin.into(),
            native: Some(Box::new(Native {
                topic_queues: 1,
                ..Native::default()
            })),
            ..message(Entry::Native, topic, "", "m")
        }
    };
    let harness = Harness::on(CrashStorage::default(), config.clone()).unwrap();
    let mut client = harness.client();
    let publishes = vec![
        native("t", "1"),
        native("t", "2"),
        native("t", "1"),
        native("other", "1"),
        native("other", "1"),
    ];
    let found = copies(&mut client, &harness, publishes);
    assert_eq!(found, [false, false, true, false, false]);
    drop(client);
    let harness = Harness::on(harness.storage.after_kill(), config).unwrap();
    let mut client = harness.client();
    assert_eq!(copies(&mut client, &harness, vec![native("t", "2")]), [true]);
    // What a native client's unique key is, others call the message's id.
    let mut builder = AttributesBuilder::default();
    builder.text(rocketbridge_core::attributes::Attribute::MessageId, b"2");
    let foreign = Publish {
        attributes: builder.finish(),
        ..message(Entry::Topic, "t", "", "m")
    };
    assert_eq!(copies(&mut client, &harness, vec![foreign]), [true]);
}

// --- holders ------------------------------------------------------------------------------------------

fn attach(client: &mut Client, harness: &Harness, clean: bool) {
    let attach = Request::Attach(Attach {
        holder: bytes("device"),
        clean,
        durable: true,
        keep: Millis(100_000),
        will: None,
        limit: Limit::default(),
    });
    client.ask(&harness.engine, attach).unwrap();
}

fn numbered(number: u64, body: &str) -> Publish {
    Publish {
        holder_key: Some(HolderKey::Open(number)),
        ..message(Entry::Topic, "t", "", body)
    }
}

fn close(number: u64) -> Publish {
    Publish {
        holder_key: Some(HolderKey::Close(number)),
        ..Publish::default()
    }
}

#[test]
fn a_holder_s_key_is_open_until_it_is_closed_also_over_a_crash() {
    let harness = Harness::new();
    let mut client = harness.client();
    attach(&mut client, &harness, false);
    client.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    let everything = Matcher::Pattern(rocketbridge_core::address::Pattern::from_key_pattern(b"#"));
    let bind = Request::Bind(binding(Source::Everything, everything, "q"));
    client.ask(&harness.engine, bind).unwrap();

    let publishes = vec![numbered(7, "first"), numbered(8, "second"), numbered(7, "copy")];
    assert_eq!(copies(&mut client, &harness, publishes), [false, false, true]);
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    attach(&mut client, &harness, false);
    assert_eq!(copies(&mut client, &harness, vec![numbered(7, "copy")]), [true]);
    client.publish(close(7));
    client.publish(close(9));
    let routes: Vec<u32> = fates(&mut client, &harness)
        .into_iter()
        .map(|fate| match fate {
            Fate::Stored(stored) => stored.routes,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(routes.iter().filter(|routes| **routes > 0).count(), 1);
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    attach(&mut client, &harness, false);
    let publishes = vec![numbered(8, "copy"), numbered(7, "third"), numbered(7, "copy")];
    assert_eq!(copies(&mut client, &harness, publishes), [true, false, true]);
    assert_eq!(bodies_of(&mut client, &harness, "q"), ["first", "second", "third"]);
}

#[test]
fn closing_a_key_is_told_when_it_is_as_safe_as_a_message() {
    let harness = Harness::new();
    let mut client = harness.client();
    attach(&mut client, &harness, false);
    assert_eq!(copies(&mut client, &harness, vec![numbered(1, "m")]), [false]);
    client.publish(close(1));
    assert!(client.events().is_empty());
    assert_eq!(fates(&mut client, &harness).len(), 1);
}

#[test]
fn keys_of_holders_do_not_meet_and_end_with_their_holder() {
    let harness = Harness::new();
    let (mut first, mut second) = (harness.client(), harness.client());
    attach(&mut first, &harness, false);
    // Without a holder there is nobody to tell copies by.
    let publishes = vec![numbered(1, "m"), numbered(1, "m")];
    assert_eq!(copies(&mut second, &harness, publishes), [false, false]);
    assert_eq!(copies(&mut first, &harness, vec![numbered(1, "m")]), [false]);
    attach(&mut first, &harness, true);
    assert_eq!(copies(&mut first, &harness, vec![numbered(1, "m")]), [false]);
}

#[test]
fn a_copy_within_an_atomic_batch_is_left_out() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, None));
    assert_eq!(copies(&mut client, &harness, vec![to_exchange("a", "a1")]), [false]);
    let commit = Commit {
        publishes: vec![to_exchange("a", "a2"), to_exchange("b", "b1"), to_exchange("b", "b2")],
        ..Commit::default()
    };
    client.ask(&harness.engine, Request::Commit(commit)).unwrap();
    assert_eq!(bodies_of(&mut client, &harness, "q"), ["a1", "b1"]);
}

/// However the disk loses what was not synced: what was confirmed is there once, and its copy is known as one.
#[test]
fn a_power_cut_never_parts_a_message_from_its_key() {
    for seed in 0..60 {
        let harness = Harness::new();
        let mut client = harness.client();
        with_exchange(&mut client, &harness, window(100, None));
        let mut random = Random(seed);
        for n in 0..random.below(20) {
            client.publish(to_exchange(&n.to_string(), &n.to_string()));
            if random.below(3) == 0 {
                harness.engine.sync_once().unwrap();
            }
        }
        drop(client);
        let storage = harness.storage.after_power_cut(&mut random);
        let harness = Harness::on(storage, Config::default()).unwrap();
        let mut client = harness.client();
        let all = (0..20).map(|n| to_exchange(&n.to_string(), &n.to_string()));
        copies(&mut client, &harness, all.collect());
        let mut bodies: Vec<u32> = bodies_of(&mut client, &harness, "q")
            .iter()
            .map(|body| body.parse().unwrap())
            .collect();
        bodies.sort_unstable();
        assert_eq!(bodies, (0..20).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn values_of_other_kinds_than_text_are_keys_too() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(100, None));
    let valued = |value: Value<'_>| {
        let mut builder = AttributesBuilder::default();
        builder.put(Name::User(KEY.as_bytes()), value);
        Publish {
            attributes: builder.finish(),
            ..message(Entry::Exchange, "e", "", "m")
        }
    };
    let values = [
        Value::Int(5),
        Value::Int(6),
        Value::Int(5),
        Value::Bool(true),
        Value::Bool(true),
        Value::Null,
    ];
    let found = copies(&mut client, &harness, values.map(valued).into());
    assert_eq!(found, [false, false, true, false, true, false]);
}

#[test]
fn keys_come_back_from_a_checkpoint() {
    let harness = Harness::new();
    let mut client = harness.client();
    with_exchange(&mut client, &harness, window(1000, Some(60_000)));
    attach(&mut client, &harness, false);
    let all = || (0..700).map(|n| to_exchange(&n.to_string(), "m")).collect::<Vec<_>>();
    let found = copies(&mut client, &harness, all());
    assert!(found.iter().all(|copy| !copy));
    copies(&mut client, &harness, vec![numbered(1, "m"), numbered(2, "m")]);
    for round in 0..2 {
        harness.engine.checkpoint().unwrap();
        let key = format!("behind {round}");
        assert_eq!(copies(&mut client, &harness, vec![to_exchange(&key, "m")]), [false]);
    }
    client.publish(close(2));
    fates(&mut client, &harness);
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    attach(&mut client, &harness, false);
    let found = copies(&mut client, &harness, all());
    assert!(found.iter().all(|copy| *copy));
    let publishes = vec![
        to_exchange("behind 0", "m"),
        to_exchange("behind 1", "m"),
        to_exchange("new", "m"),
    ];
    assert_eq!(copies(&mut client, &harness, publishes), [true, true, false]);
    let publishes = vec![numbered(1, "m"), numbered(2, "m")];
    assert_eq!(copies(&mut client, &harness, publishes), [true, false]);
}
