//! What survives: the recovered state is a prefix of the history that holds everything confirmed.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine, Flush, OpenError};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::store::recovery::RecoveryError;
use rocketbridge_core::time::Millis;
use support::*;

/// What a test did, in order, with what it was told to be safe.
#[derive(Default)]
struct History {
    /// Bodies by token, and the queue each went to.
    sent: Vec<(u64, usize, String)>,
    confirmed: BTreeSet<u64>,
    /// Tokens acked, with the number of syncs that were through when the ack was given.
    acked: Vec<u64>,
}

/// Publishes, consumes and acks at random until the disk fails or the steps are over.
fn run(storage: &CrashStorage, random: &mut Random, flush: Flush, steps: u64, fail_after: Option<u64>) -> History {
    let mut history = History::default();
    let config = Config {
        flush,
        ..Config::default()
    };
    let Ok(harness) = Harness::on(storage.clone(), config) else {
        return history;
    };
    let mut client = harness.client();
    for name in ["a", "b"] {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
    }
    client
        .ask(
            &harness.engine,
            Request::DeclareExchange(exchange("both", ExchangeKind::Fanout)),
        )
        .unwrap();
    for name in ["a", "b"] {
        let bind = binding(Source::Exchange(bytes("both")), Matcher::Key(Bytes::new()), name);
        client.ask(&harness.engine, Request::Bind(bind)).unwrap();
    }
    if let Some(steps) = fail_after {
        storage.fail_after(steps);
    }
    let subscription = client.subscribe("a", Some(5));
    let mut tokens_by_body = BTreeMap::new();
    for step in 0..steps {
        match random.below(8) {
            0..4 => {
                let to = random.below(3) as usize;
                let padding = "x".repeat(random.below(2000) as usize);
                let body = format!("{step} {padding}");
                let publish = match to {
                    0 => message(Entry::Queue, "a", "", &body),
                    1 => message(Entry::Queue, "b", "", &body),
                    _ => message(Entry::Exchange, "both", "", &body),
                };
                let token = client.publish(publish);
                tokens_by_body.insert(body.clone(), token);
                history.sent.push((token, to, body));
            }
            4..6 if harness.engine.sync_once().is_err() => {
                break;
            }
            _ => {}
        }
        for event in client.events() {
            match event {
                Event::Outcome(Outcome {
                    first,
                    count,
                    fate: Fate::Stored(_),
                }) => {
                    history.confirmed.extend(first..first + u64::from(count));
                }
                Event::Delivery(delivery) if random.below(3) > 0 => {
                    history.acked.push(tokens_by_body[&body(&delivery)]);
                    client.settle(subscription, delivery.sequence, 1, Settle::Ack);
                }
                Event::Delivery(delivery) if random.below(2) == 0 => {
                    client.settle(subscription, delivery.sequence, 1, Settle::Release);
                }
                _ => {}
            }
        }
    }
    // The process is gone: nothing of it may reach the disk any more.
    storage.fail_after(0);
    history
}

/// The bodies in a queue, in order.
fn content(engine: &Engine, client: &mut Client, name: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    let subscription = SubscriptionId(900 + name.len() as u32 + u32::from(name.as_bytes()[0]));
    while let Ok(Reply::Got(Some(got))) = client.ask(
        engine,
        Request::Get {
            subscription,
            queue: bytes(name),
            leased: true,
        },
    ) {
        bodies.push(body(&got.delivery));
    }
    bodies
}

fn judge(history: &History, storage: CrashStorage, context: &str) {
    let harness = match Harness::on(storage, Config::default()) {
        Ok(harness) => harness,
        Err(error) => panic!("{context}: {error}"),
    };
    let mut client = harness.client();
    let state = client.ask(&harness.engine, Request::FindQueue { name: bytes("a") });
    if state.is_err() {
        assert!(history.confirmed.is_empty(), "{context}: the queue is gone");
        return;
    }
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let found = content(&harness.engine, &mut client, name);
        let expected: Vec<_> = history
            .sent
            .iter()
            .filter(|(_, to, _)| *to == index || *to == 2)
            .collect();
        // In order, none invented, none twice.
        let mut position = 0;
        for body in &found {
            let at = expected[position..].iter().position(|(.., sent)| sent == body);
            let at = at.unwrap_or_else(|| panic!("{context}: {name} has {:.12} out of order or twice", body));
            position += at + 1;
        }
        let found: BTreeSet<_> = found.iter().collect();
        let last = expected
            .iter()
            .rposition(|(.., body)| found.contains(body))
            .map_or(0, |at| at + 1);
        for (at, (token, _, body)) in expected.iter().enumerate() {
            let missing = !found.contains(body);
            let acked = name == "a" && history.acked.contains(token);
            if missing && !acked {
                assert!(
                    !history.confirmed.contains(token),
                    "{context}: {name} lost confirmed {body:.12}"
                );
                assert!(at >= last, "{context}: {name} has a hole at {body:.12}: no prefix");
            }
        }
    }
}

#[test]
fn recovered_state_is_a_prefix_that_holds_everything_confirmed() {
    // The power goes at every single step of the disk, and what was not synced is lost, torn or reordered.
    let mut crashes = 0;
    for seed in 0..12 {
        for fail_after in 0.. {
            let storage = CrashStorage::default();
            let mut random = Random(seed);
            let history = run(&storage, &mut random, Flush::Sync, 60, Some(fail_after));
            let mut chance = Random(seed * 1000 + fail_after);
            judge(
                &history,
                storage.after_power_cut(&mut chance),
                &format!("seed {seed}, step {fail_after}"),
            );
            crashes += 1;
            let finished = history.sent.len()
                == run(&CrashStorage::default(), &mut Random(seed), Flush::Sync, 60, None)
                    .sent
                    .len();
            if finished && fail_after > 40 {
                break;
            }
        }
    }
    assert!(crashes > 300, "{crashes}");
}

#[test]
fn what_was_written_survives_the_process_in_both_flush_modes() {
    for seed in 0..80 {
        for flush in [Flush::Sync, Flush::Async] {
            let storage = CrashStorage::default();
            let history = run(&storage, &mut Random(seed), flush, 150, None);
            judge(&history, storage.after_kill(), &format!("seed {seed}, {flush:?}"));
        }
    }
}

#[test]
fn a_crash_during_recovery_is_harmless() {
    for seed in 0..40 {
        let storage = CrashStorage::default();
        let mut random = Random(seed);
        let history = run(&storage, &mut random, Flush::Sync, 80, Some(20));
        let mut storage = storage.after_power_cut(&mut random);
        for step in 0..4 {
            storage.fail_after(step);
            let _ = Harness::on(storage.clone(), Config::default());
            storage = storage.after_power_cut(&mut random);
        }
        judge(&history, storage, &format!("seed {seed}"));
    }
}

#[test]
fn an_offset_beyond_the_recovered_end_is_clamped() {
    let harness = Harness::new();
    let mut client = harness.client();
    let native = |n: u32| Publish {
        format: Format::NATIVE,
        native: Some(Box::new(Native {
            queue_id: Some(0),
            topic_queues: 1,
            ..Native::default()
        })),
        ..message(Entry::Native, "t", "", &n.to_string())
    };
    let commit = |offset| Request::CommitOffset {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 0,
        offset,
    };
    let ask = || Request::CommittedOffset {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 0,
    };
    for n in 0..5 {
        client.publish(native(n));
    }
    client.ask(&harness.engine, commit(5)).unwrap();
    let kept = harness.storage.after_kill();
    for n in 5..9 {
        client.publish(native(n));
    }
    client.request(commit(9));
    // Nothing of that reached the disk, but the offset of a client that saw it must not hide what comes next.
    let harness = Harness::on(kept, Config::default()).unwrap();
    let mut client = harness.client();
    assert!(matches!(client.ask(&harness.engine, ask()), Ok(Reply::Offset(Some(5)))));
    client.ask(&harness.engine, commit(9)).unwrap();
    assert!(matches!(client.ask(&harness.engine, ask()), Ok(Reply::Offset(Some(5)))));
    client.publish(native(100));
    let harness = harness.restart();
    let mut client = harness.client();
    assert!(matches!(client.ask(&harness.engine, ask()), Ok(Reply::Offset(Some(5)))));
}

#[test]
fn after_a_crash_redelivered_is_never_falsely_absent() {
    let harness = Harness::new();
    let mut client = harness.client();
    for name in ["seen", "unseen"] {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
        client.publish(message(Entry::Queue, name, "", "m"));
    }
    client.subscribe("seen", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(client.deliveries().len(), 1);
    let harness = harness.kill();
    let mut client = harness.client();
    client.subscribe("seen", None);
    client.subscribe("unseen", None);
    harness.engine.sync_once().unwrap();
    let flags: Vec<bool> = client
        .deliveries()
        .iter()
        .map(|delivery| delivery.redelivered)
        .collect();
    assert_eq!(flags, [true, false]);
}

#[test]
fn redelivered_is_exact_after_a_clean_stop() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    for n in 0..4 {
        client.publish(message(Entry::Queue, "q", "", &n.to_string()));
    }
    client.subscribe("q", Some(2));
    harness.engine.sync_once().unwrap();
    assert_eq!(client.deliveries().len(), 2);
    drop(client);
    let harness = harness.restart();
    let mut client = harness.client();
    client.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    let seen: Vec<_> = client
        .deliveries()
        .iter()
        .map(|delivery| (body(delivery), delivery.redelivered))
        .collect();
    let expected = [("0", true), ("1", true), ("2", false), ("3", false)];
    assert_eq!(seen, expected.map(|(body, flag)| (body.to_owned(), flag)));
}

#[test]
fn damage_before_the_last_sync_is_reported_and_never_served() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    for _ in 0..20 {
        client.publish(message(Entry::Queue, "q", "", "body"));
        harness.engine.sync_once().unwrap();
    }
    let storage = harness.storage.after_kill();
    storage.damage(0, 700);
    match Harness::on(storage, Config::default()).map(|_| ()) {
        Err(OpenError::Recovery(RecoveryError::Damaged { segment: 0, offset, .. })) => assert!(offset <= 700),
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_declared_survives_a_restart() {
    let harness = Harness::new();
    let mut client = harness.client();
    client
        .ask(
            &harness.engine,
            Request::DeclareExchange(exchange("e", ExchangeKind::Direct)),
        )
        .unwrap();
    client.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    client
        .ask(
            &harness.engine,
            Request::DeclareQueue(Queue {
                durable: false,
                ..queue("gone")
            }),
        )
        .unwrap();
    let bind = binding(Source::Exchange(bytes("e")), Matcher::Key(bytes("k")), "q");
    client.ask(&harness.engine, Request::Bind(bind.clone())).unwrap();
    let attach = |clean| {
        Request::Attach(Attach {
            holder: bytes("device"),
            clean,
            durable: true,
            keep: rocketbridge_core::time::Millis::from_secs(60),
            limit: Limit::NONE,
            will: None,
        })
    };
    client.ask(&harness.engine, attach(false)).unwrap();
    let matcher = Matcher::Pattern(rocketbridge_core::address::Pattern::from_key_pattern(b"t.*"));
    let filter = Binding {
        cookie: bytes("filter"),
        ..binding(Source::Everything, matcher, "\0device")
    };
    client.ask(&harness.engine, Request::Bind(filter)).unwrap();
    drop(client);
    let mut harness = harness.kill();
    for _ in 0..3 {
        let mut client = harness.client();
        client.publish(message(Entry::Exchange, "e", "k", "one"));
        client.publish(message(Entry::Topic, "t", "x", "two"));
        client.publish(message(Entry::Exchange, "e", "other", "nowhere"));
        harness.engine.sync_once().unwrap();
        drop(client);
        harness = harness.restart();
    }
    let mut client = harness.client();
    assert!(
        client
            .ask(&harness.engine, Request::FindQueue { name: bytes("gone") })
            .is_err()
    );
    assert_eq!(content(&harness.engine, &mut client, "q"), ["one"; 3]);
    match client.ask(&harness.engine, attach(false)) {
        Ok(Reply::Attached {
            present: true, cookies, ..
        }) => assert_eq!(cookies, [bytes("filter")]),
        other => panic!("{other:?}"),
    }
    assert_eq!(content(&harness.engine, &mut client, "\0device"), ["two"; 3]);
    client.ask(&harness.engine, Request::Unbind(bind)).unwrap();
    client
        .ask(
            &harness.engine,
            Request::DeleteQueue {
                name: bytes("q"),
                if_unused: false,
                if_empty: false,
            },
        )
        .unwrap();
    let harness = harness.kill();
    let mut client = harness.client();
    assert!(
        client
            .ask(&harness.engine, Request::FindQueue { name: bytes("q") })
            .is_err()
    );
}

/// Records of many sizes: among so many segments some are filled to their last byte.
#[test]
fn a_segment_filled_to_its_last_byte_is_read_back() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.ask(&harness.engine, Request::DeclareQueue(queue("q"))).unwrap();
    let mut random = Random(3);
    let mut sent = Vec::new();
    for n in 0..20_000 {
        let body = format!("{n} {}", "x".repeat(random.below(300) as usize));
        client.publish(message(Entry::Queue, "q", "", &body));
        sent.push(body);
        if n % 100 == 0 {
            harness.engine.sync_once().unwrap();
        }
    }
    harness.engine.sync_once().unwrap();
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    let subscription = client.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    let mut got = Vec::new();
    loop {
        let deliveries = client.deliveries();
        let Some(last) = deliveries.last() else { break };
        let first = deliveries[0].sequence;
        client.settle(subscription, first, (last.sequence - first + 1) as u32, Settle::Ack);
        got.extend(deliveries.iter().map(body));
    }
    assert_eq!(got, sent);
}

#[test]
fn stored_time_never_decreases() {
    let mut harness = Harness::new();
    let mut random = Random(4);
    harness
        .client()
        .ask(&harness.engine, Request::DeclareQueue(queue("q")))
        .unwrap();
    let mut last = Millis(0);
    for _ in 0..4 {
        let mut client = harness.client();
        let subscription = client.subscribe("q", None);
        harness.engine.sync_once().unwrap();
        client.events();
        for n in 0..100 {
            // The wall is stepped to and fro, by up to an hour.
            harness.clock.step_wall(random.below(7_200_000) as i64 - 3_600_000);
            client.publish(message(Entry::Queue, "q", "", &n.to_string()));
            let delivered = client.deliveries();
            assert_eq!(delivered.len(), 1);
            let stored_at = delivered[0].message.stored_at();
            assert!(stored_at >= last, "{stored_at:?} after {last:?}");
            last = stored_at;
            client.settle(subscription, delivered[0].sequence, 1, Settle::Ack);
        }
        harness.engine.sync_once().unwrap();
        drop(client);
        // The next life's wall is behind what the last one has stored.
        harness = harness.kill();
    }
    assert!(last > Millis(1_700_000_000_000), "{last:?}");
}
