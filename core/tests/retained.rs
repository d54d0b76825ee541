//! Last values, notes on leases, wills, and queues that sessions share.

mod support;

use rocketbridge_core::address::Pattern;
use rocketbridge_core::attributes::{Attribute, Attributes, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::Config;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::time::Millis;
use support::*;

fn retained(key: &str, body: &str) -> Publish {
    Publish {
        retain: true,
        ..message(Entry::Topic, "t", key, body)
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::from_key_pattern(text.as_bytes())
}

fn recall(queue: &str, text: &str) -> Request {
    Request::Recall {
        queue: bytes(queue),
        pattern: pattern(text),
    }
}

fn session(name: &str, keep: u64) -> Attach {
    Attach {
        holder: bytes(name),
        clean: false,
        durable: keep > 0,
        keep: Millis(keep),
        limit: Limit::NONE,
        will: None,
    }
}

/// A connection that has taken a session, whose queue is bound to everything on topic `t`.
fn device(harness: &Harness, attach: Attach) -> (Client, bool, Vec<(bytes::Bytes, bytes::Bytes)>) {
    let mut client = harness.client();
    let Ok(Reply::Attached { present, shares, .. }) = client.ask(&harness.engine, Request::Attach(attach)) else {
        panic!("not attached");
    };
    (client, present, shares)
}

fn bind(queue: &str, text: &str) -> Request {
    Request::Bind(binding(Source::Everything, Matcher::Pattern(pattern(text)), queue))
}

/// The last values that match, as somebody new gets them.
fn last_values(harness: &Harness, text: &str) -> Vec<String> {
    let mut client = harness.client();
    let own = Queue {
        durable: false,
        exclusive: true,
        addressable: false,
        ..queue("reader")
    };
    client.ask(&harness.engine, Request::DeclareQueue(own)).unwrap();
    client.subscribe("reader", None);
    client.request(recall("reader", text));
    let deliveries = client.deliveries();
    assert!(deliveries.iter().all(|delivery| delivery.recalled));
    deliveries.iter().map(body).collect()
}

fn will(delay: u64, body: &str) -> Option<Box<Will>> {
    Some(Box::new(Will {
        delay: Millis(delay),
        entry: Entry::Topic,
        topic: bytes("t"),
        key: bytes("will"),
        body: bytes(body),
        attributes: Attributes::EMPTY,
        format: Format(9),
        origin: bytes("origin"),
        persistent: true,
        retain: false,
    }))
}

// --- last values ------------------------------------------------------------------------------

#[test]
fn the_last_value_of_an_address_comes_to_those_who_ask_later_and_an_empty_one_clears_it() {
    let harness = Harness::new();
    let mut client = harness.client();
    for (key, body) in [
        ("a", "1"),
        ("a", "2"),
        ("b.c", "3"),
        ("b.d", "4"),
        ("b", "5"),
        ("", "6"),
    ] {
        client.publish(retained(key, body));
    }
    client.publish(message(Entry::Topic, "t", "a", "not kept"));
    assert_eq!(last_values(&harness, "t.a"), ["2"]);
    assert_eq!(last_values(&harness, "t.*"), ["2", "5"]);
    assert_eq!(last_values(&harness, "t.b.#"), ["5", "3", "4"]);
    assert_eq!(last_values(&harness, "#"), ["6", "2", "5", "3", "4"]);
    client.publish(retained("b.c", ""));
    client.publish(message(Entry::Topic, "t", "b.d", ""));
    assert_eq!(last_values(&harness, "t.b.*"), ["4"]);
    assert_eq!(harness.engine.totals().last_values, 4);
}

#[test]
fn last_values_survive_a_kill_and_so_does_their_clearing_whatever_their_persistence() {
    let harness = Harness::new();
    let mut client = harness.client();
    for persistent in [false, true] {
        for n in 0..4 {
            let key = format!("{persistent}.{n}");
            client.publish(Publish {
                persistent,
                ..retained(&key, "old")
            });
            client.publish(Publish {
                persistent,
                ..retained(&key, if n % 2 == 0 { "" } else { "new" })
            });
        }
    }
    harness.engine.sync_once().unwrap();
    drop(client);
    let harness = harness.kill();
    assert_eq!(last_values(&harness, "#"), ["new"; 4]);
    let harness = harness.restart();
    assert_eq!(last_values(&harness, "t.true.*"), ["new"; 2]);
}

#[test]
fn a_last_value_that_has_expired_comes_to_nobody_and_is_given_up() {
    let harness = Harness::new();
    let mut client = harness.client();
    let mut builder = AttributesBuilder::default();
    builder.put(Name::Known(Attribute::TimeToLive), Value::Uint(1000));
    client.publish(Publish {
        attributes: builder.finish(),
        ..retained("a", "short")
    });
    client.publish(retained("b", "long"));
    assert_eq!(last_values(&harness, "#"), ["short", "long"]);
    harness.clock.advance(1001);
    assert_eq!(last_values(&harness, "#"), ["long"]);
    harness.engine.tick();
    assert_eq!(harness.engine.totals().last_values, 1);
}

#[test]
fn many_last_values_come_in_slices_all_of_them_once_and_in_order() {
    let harness = Harness::new();
    let mut client = harness.client();
    let mut expected = Vec::new();
    for n in 0..3000 {
        let key = format!("x{n:04}.y");
        client.publish(Publish {
            persistent: false,
            ..retained(&key, &key)
        });
        client.events();
        expected.push(key);
    }
    assert!(last_values(&harness, "#") == expected);
    assert!(last_values(&harness, "*.*.y") == expected);
}

#[test]
fn there_are_no_more_last_values_than_the_limit_says() {
    let config = Config {
        retained_max: 2,
        ..Config::default()
    };
    let harness = Harness::on(CrashStorage::default(), config).unwrap();
    let mut client = harness.client();
    for key in ["a", "b", "c", "a"] {
        client.publish(retained(key, "m"));
    }
    client.publish(retained("c", ""));
    harness.engine.sync_once().unwrap();
    let fates: Vec<bool> = client
        .events()
        .iter()
        .filter_map(|event| match event {
            Event::Outcome(outcome) => Some(outcome),
            _ => None,
        })
        .flat_map(|outcome| {
            let is_refused = outcome.fate == Fate::Rejected(Reject::QueueFull);
            (0..outcome.count).map(move |_| is_refused)
        })
        .collect();
    assert_eq!(fates.iter().filter(|refused| **refused).count(), 1);
    assert_eq!(harness.engine.totals().last_values, 2);
}

#[test]
fn last_values_asked_for_by_a_session_survive_a_kill_in_its_queue() {
    let harness = Harness::new();
    let mut client = harness.client();
    for n in 0..5 {
        client.publish(retained(&n.to_string(), &n.to_string()));
    }
    let (mut first, ..) = device(&harness, session("d", 10_000));
    first.ask(&harness.engine, recall("\0d", "#")).unwrap();
    drop((first, client));
    let harness = harness.kill();
    let (mut again, present, _) = device(&harness, session("d", 10_000));
    assert!(present);
    again.subscribe("\0d", None);
    harness.engine.sync_once().unwrap();
    let deliveries = again.deliveries();
    assert!(deliveries.iter().all(|delivery| delivery.recalled));
    assert_eq!(
        deliveries.iter().map(body).collect::<Vec<_>>(),
        ["0", "1", "2", "3", "4"]
    );
}

// --- notes ------------------------------------------------------------------------------------

#[test]
fn a_session_gets_its_leases_back_in_order_with_what_it_noted_also_after_a_kill() {
    let harness = Harness::new();
    let (mut first, ..) = device(&harness, session("d", 10_000));
    first.ask(&harness.engine, bind("\0d", "t.#")).unwrap();
    let subscription = first.subscribe("\0d", Some(4));
    let mut publisher = harness.client();
    for n in 0..6 {
        publisher.publish(message(Entry::Topic, "t", "a", &n.to_string()));
    }
    harness.engine.sync_once().unwrap();
    let sequences: Vec<u64> = first.deliveries().iter().map(|delivery| delivery.sequence).collect();
    assert_eq!(sequences.len(), 4);
    let notes = vec![(sequences[0], 7), (sequences[2], 9), (sequences[3], 5), (1000, 1)];
    first
        .ask(&harness.engine, Request::Note { subscription, notes })
        .unwrap();
    first.settle(subscription, sequences[0], 1, Settle::Ack);
    let notes = vec![(sequences[3], 0)];
    first
        .ask(&harness.engine, Request::Note { subscription, notes })
        .unwrap();
    drop((first, publisher));
    let check = |harness: &Harness| {
        let (mut again, present, _) = device(harness, session("d", 10_000));
        assert!(present);
        again.subscribe("\0d", Some(3));
        harness.engine.sync_once().unwrap();
        let deliveries = again.deliveries();
        let seen: Vec<_> = deliveries
            .iter()
            .map(|delivery| (body(delivery), delivery.redelivered, delivery.note))
            .collect();
        assert_eq!(
            seen,
            [
                ("1".to_owned(), true, 0),
                ("2".to_owned(), true, 9),
                ("3".to_owned(), true, 0)
            ]
        );
    };
    check(&harness);
    check(&harness.kill());
}

// --- wills ------------------------------------------------------------------------------------

/// What a subscriber that never leaves sees of wills.
fn watcher(harness: &Harness) -> Client {
    let mut client = harness.client();
    client
        .ask(&harness.engine, Request::DeclareQueue(queue("watch")))
        .unwrap();
    client.ask(&harness.engine, bind("watch", "t.will")).unwrap();
    client.subscribe("watch", None);
    client.events();
    client
}

fn seen(harness: &Harness, watcher: &mut Client) -> Vec<String> {
    harness.engine.tick();
    harness.engine.sync_once().unwrap();
    watcher.bodies()
}

#[test]
fn a_will_is_published_when_the_connection_is_lost_and_not_after_a_goodbye() {
    let harness = Harness::new();
    let mut watcher = watcher(&harness);
    for (keep, goodbye, expected) in [
        (0, None, &["w"][..]),
        (10_000, None, &["w"]),
        (0, Some(false), &[]),
        (10_000, Some(false), &[]),
        (0, Some(true), &["w"]),
        (10_000, Some(true), &["w"]),
    ] {
        let attach = Attach {
            will: will(0, "w"),
            ..session("d", keep)
        };
        let (mut client, ..) = device(&harness, attach);
        if let Some(keep_will) = goodbye {
            let keep = Millis(keep);
            client
                .ask(&harness.engine, Request::Detach { keep, keep_will })
                .unwrap();
        }
        drop(client);
        assert_eq!(seen(&harness, &mut watcher), expected, "{keep} {goodbye:?}");
    }
}

#[test]
fn a_will_waits_for_its_delay_or_the_end_of_the_session_and_not_for_a_client_that_is_back() {
    let harness = Harness::new();
    let mut watcher = watcher(&harness);
    let with = |keep, delay| Attach {
        will: will(delay, "w"),
        ..session("d", keep)
    };
    drop(device(&harness, with(10_000, 5000)));
    harness.clock.advance(4999);
    assert!(seen(&harness, &mut watcher).is_empty());
    harness.clock.advance(1);
    assert_eq!(seen(&harness, &mut watcher), ["w"]);
    // The session ends before.
    drop(device(&harness, with(2000, 5000)));
    harness.clock.advance(2000);
    assert_eq!(seen(&harness, &mut watcher), ["w"]);
    // No session outlives the connection.
    drop(device(&harness, with(0, 5000)));
    assert_eq!(seen(&harness, &mut watcher), ["w"]);
    // Its client is back in time.
    drop(device(&harness, with(10_000, 5000)));
    drop(device(&harness, session("d", 10_000)));
    harness.clock.advance(6000);
    assert!(seen(&harness, &mut watcher).is_empty());
    // Its client is back with another session.
    drop(device(&harness, with(10_000, 5000)));
    let clean = Attach {
        clean: true,
        ..session("d", 0)
    };
    let _other = device(&harness, clean);
    assert_eq!(seen(&harness, &mut watcher), ["w"]);
}

#[test]
fn the_will_of_a_connection_that_is_taken_over_is_published_unless_it_is_delayed() {
    let harness = Harness::new();
    let mut watcher = watcher(&harness);
    for (delay, expected) in [(0, &["w"][..]), (1000, &[])] {
        let attach = Attach {
            will: will(delay, "w"),
            ..session("d", 10_000)
        };
        let _first = device(&harness, attach);
        let (mut second, present, _) = device(&harness, session("d", 10_000));
        assert!(present);
        assert_eq!(seen(&harness, &mut watcher), expected);
        let (keep, keep_will) = (Millis(0), false);
        second
            .ask(&harness.engine, Request::Detach { keep, keep_will })
            .unwrap();
    }
}

#[test]
fn wills_survive_a_kill_and_are_published_once() {
    let harness = Harness::new();
    let mut watch = watcher(&harness);
    for (name, keep, delay) in [("a", 0, 0), ("b", 10_000, 0), ("c", 10_000, 5000), ("d", 10_000, 5000)] {
        let attach = Attach {
            will: will(delay, name),
            ..session(name, keep)
        };
        std::mem::forget(device(&harness, attach));
    }
    assert!(watch.bodies().is_empty());
    std::mem::forget(watch);
    let harness = harness.kill();
    let mut watch = watcher(&harness);
    let mut wills = seen(&harness, &mut watch);
    wills.sort();
    assert_eq!(wills, ["a", "b"]);
    let _back = device(&harness, session("d", 10_000));
    harness.clock.advance(5000);
    assert_eq!(seen(&harness, &mut watch), ["c"]);
    std::mem::forget(watch);
    let harness = harness.kill();
    let mut watch = watcher(&harness);
    let before = ["a", "b", "c"];
    let again: Vec<String> = seen(&harness, &mut watch);
    assert!(
        again.iter().all(|body| before.contains(&&body[..])) && again.len() <= 3,
        "{again:?}"
    );
    harness.clock.advance(10_000);
    assert!(seen(&harness, &mut watch).is_empty());
}

// --- shared queues ----------------------------------------------------------------------------

fn share(cookie: &str) -> Request {
    Request::Share(Share {
        queue: bytes("\0\0g"),
        limit: Limit::NONE,
        source: Source::Everything,
        matcher: Matcher::Pattern(pattern("t.#")),
        cookie: bytes(cookie),
    })
}

#[test]
fn members_compete_and_what_a_lost_member_had_goes_to_another_at_once() {
    let harness = Harness::new();
    let (mut first, ..) = device(&harness, session("a", 0));
    let (mut second, ..) = device(&harness, session("b", 10_000));
    for client in [&mut first, &mut second] {
        client.ask(&harness.engine, share("c")).unwrap();
        client.subscribe("\0\0g", None);
    }
    let mut publisher = harness.client();
    for n in 0..10 {
        publisher.publish(message(Entry::Topic, "t", "a", &n.to_string()));
    }
    harness.engine.sync_once().unwrap();
    let (mut to_first, mut to_second) = (first.bodies(), second.bodies());
    assert_eq!((to_first.len(), to_second.len()), (5, 5));
    drop(first);
    harness.engine.sync_once().unwrap();
    assert_eq!(second.bodies(), to_first);
    to_first.append(&mut to_second);
    to_first.sort();
    assert_eq!(to_first, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_shared_queue_lives_as_long_as_a_session_is_a_member_also_over_a_kill() {
    let harness = Harness::new();
    let (mut kept, ..) = device(&harness, session("kept", 10_000));
    let (mut brief, ..) = device(&harness, session("brief", 0));
    kept.ask(&harness.engine, share("mine")).unwrap();
    brief.ask(&harness.engine, share("c")).unwrap();
    drop((kept, brief));
    harness.client().publish(message(Entry::Topic, "t", "a", "m"));
    harness.engine.sync_once().unwrap();
    let harness = harness.kill();
    let (mut kept, present, shares) = device(&harness, session("kept", 10_000));
    assert!(present);
    assert_eq!(shares, [(bytes("\0\0g"), bytes("mine"))]);
    kept.subscribe("\0\0g", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(kept.bodies(), ["m"]);
    let queue = bytes("\0\0g");
    kept.ask(&harness.engine, Request::Unshare { queue }).unwrap();
    // What it had is gone with it: who shares it again begins with nothing.
    let (mut brief, ..) = device(&harness, session("brief", 0));
    brief.ask(&harness.engine, share("c")).unwrap();
    brief.subscribe("\0\0g", None);
    harness.engine.sync_once().unwrap();
    assert!(brief.bodies().is_empty());
    // One that only a session which did not survive was a member of is gone with it.
    harness.client().publish(message(Entry::Topic, "t", "a", "n"));
    harness.engine.sync_once().unwrap();
    assert_eq!(brief.bodies(), ["n"]);
    std::mem::forget(brief);
    let harness = harness.kill();
    kept = device(&harness, session("kept", 10_000)).0;
    kept.ask(&harness.engine, share("mine")).unwrap();
    kept.subscribe("\0\0g", None);
    harness.engine.sync_once().unwrap();
    assert!(kept.bodies().is_empty());
}

#[test]
fn sessions_wills_notes_and_last_values_survive_in_a_checkpoint() {
    let harness = Harness::new();
    let (mut kept, ..) = device(&harness, session("kept", 10_000));
    kept.ask(&harness.engine, bind("\0kept", "t.a")).unwrap();
    kept.ask(&harness.engine, bind("\0kept", "t.will")).unwrap();
    kept.ask(&harness.engine, share("mine")).unwrap();
    let subscription = kept.subscribe("\0kept", None);
    harness.engine.sync_once().unwrap();
    let mut publisher = harness.client();
    for n in 0..3000 {
        publisher.publish(Publish {
            persistent: false,
            ..retained(&format!("{n:04}"), "value")
        });
        publisher.events();
    }
    publisher.publish(message(Entry::Topic, "t", "a", "m"));
    harness.engine.sync_once().unwrap();
    let sequence = kept.deliveries().last().unwrap().sequence;
    let notes = vec![(sequence, 77)];
    kept.ask(&harness.engine, Request::Note { subscription, notes })
        .unwrap();
    let attach = Attach {
        will: will(0, "gone"),
        ..session("brief", 0)
    };
    let (brief, ..) = device(&harness, attach);
    harness.engine.checkpoint().unwrap();
    // What happens behind the checkpoint counts, too.
    publisher.publish(retained("0000", ""));
    harness.engine.sync_once().unwrap();
    harness.engine.checkpoint().unwrap();
    std::mem::forget((kept, publisher, brief));
    let harness = harness.kill();
    let totals = harness.engine.totals();
    assert_eq!((totals.last_values, totals.waiting_sessions), (2999, 1));
    assert_eq!(last_values(&harness, "#").len(), 2999);
    let (mut kept, present, shares) = device(&harness, session("kept", 10_000));
    assert!(present);
    assert_eq!(harness.engine.totals().waiting_sessions, 0);
    assert_eq!(shares.len(), 1);
    harness.engine.tick();
    kept.subscribe("\0kept", None);
    harness.engine.sync_once().unwrap();
    let seen: Vec<_> = kept.deliveries().iter().map(|d| (body(d), d.note)).collect();
    assert_eq!(seen, [("m".to_owned(), 77), ("gone".to_owned(), 0)]);
}
