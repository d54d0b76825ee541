//! Checkpoints, index pages, retention: a short way back to the same state, and space given back.

mod support;

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::Config;
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::*;
use rocketbridge_core::store::storage::{Area, FileId, Storage};
use rocketbridge_core::time::Millis;
use support::*;

/// Few pages in memory, so that lists go to the index files.
fn config() -> Config {
    Config {
        index_cache: 4 * 1304,
        checkpoint_bytes: u64::MAX,
        tail_cache: 64 << 10,
        ..Config::default()
    }
}

fn open(storage: &CrashStorage) -> Harness {
    Harness::on(storage.clone(), config()).expect("it can be read back")
}

/// What a broker would show to clients: queues with their messages, topics with theirs, offsets.
fn shown(harness: &Harness) -> Vec<String> {
    let mut lines = Vec::new();
    for name in ["a", "b", "late"] {
        let mut client = harness.client();
        let Ok(Reply::Queue(state)) = client.ask(&harness.engine, Request::FindQueue { name: bytes(name) }) else {
            continue;
        };
        lines.push(format!("queue {name}: {} ready", state.ready));
        client.subscribe(name, None);
        harness.engine.sync_once().unwrap();
        let all: Vec<_> = client
            .deliveries()
            .iter()
            .map(|delivery| format!("{} {}", delivery.sequence, body(delivery)))
            .collect();
        assert_eq!(all.len() as u64, state.ready, "the count of {name}");
        lines.extend(all);
    }
    let mut client = harness.client();
    for queue_id in 0..4 {
        let Ok(Reply::Offsets(bounds)) = client.ask(
            &harness.engine,
            Request::Bounds {
                topic: bytes("both"),
                queue_id,
            },
        ) else {
            continue;
        };
        lines.push(format!("topic both/{queue_id}: {bounds:?}"));
        let pull = Pull {
            group: bytes("g"),
            topic: bytes("both"),
            queue_id,
            offset: bounds.start,
            messages_max: 100_000,
            bytes_max: u32::MAX,
            filter: Some(Filter::All),
            hold: false,
        };
        if let Ok(Reply::Pulled(pulled)) = client.ask(&harness.engine, Request::Pull(pull)) {
            lines.extend(
                pulled
                    .messages
                    .iter()
                    .map(|m| String::from_utf8_lossy(&m.payload()).into_owned()),
            );
        }
        let committed = Request::CommittedOffset {
            group: bytes("g"),
            topic: bytes("both"),
            queue_id,
        };
        lines.push(format!("{:?}", client.ask(&harness.engine, committed)));
    }
    lines
}

/// Some work over two queues behind one exchange; `step` picks what.
fn work(harness: &Harness, client: &mut Client, random: &mut Random, steps: u64, count: &mut u64) {
    let subscription = client.subscribe("a", Some(100));
    for _ in 0..steps {
        match random.below(10) {
            0..6 => {
                *count += 1;
                client.publish(message(Entry::Exchange, "both", "k", &format!("body {count}")));
            }
            6..9 => {
                for delivery in client.deliveries() {
                    if random.below(3) > 0 {
                        client.settle(subscription, delivery.sequence, 1, Settle::Ack);
                    }
                }
            }
            _ => {
                let offset = random.below(*count / 4 + 1);
                let queue_id = random.below(4) as u32;
                client.request(Request::CommitOffset {
                    group: bytes("g"),
                    topic: bytes("both"),
                    queue_id,
                    offset,
                });
            }
        }
    }
    client.request(Request::Unsubscribe { subscription });
    harness.engine.sync_once().expect("the disk works");
    for delivery in client.deliveries() {
        client.settle(subscription, delivery.sequence, 1, Settle::Release);
    }
}

fn set_up(harness: &Harness) -> Client {
    let mut client = harness.client();
    client
        .ask(
            &harness.engine,
            Request::DeclareExchange(exchange("both", ExchangeKind::Fanout)),
        )
        .unwrap();
    for name in ["a", "b"] {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
        let bind = binding(Source::Exchange(bytes("both")), Matcher::Key(Bytes::new()), name);
        client.ask(&harness.engine, Request::Bind(bind)).unwrap();
    }
    client
}

#[test]
fn a_checkpoint_and_the_log_behind_it_make_the_state_that_the_whole_log_makes() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let harness = open(&CrashStorage::default());
        let mut client = set_up(&harness);
        let mut count = 0;
        for _ in 0..3 {
            work(&harness, &mut client, &mut random, 300, &mut count);
            harness.engine.checkpoint().unwrap();
        }
        work(&harness, &mut client, &mut random, 100, &mut count);
        client
            .ask(&harness.engine, Request::DeclareQueue(queue("late")))
            .unwrap();
        client.publish(message(Entry::Queue, "late", "", "to the late one"));
        harness.engine.sync_once().unwrap();
        let with_checkpoint = harness.storage.after_kill();
        let without = harness.storage.after_kill();
        for number in without.files(Area::Checkpoints).unwrap() {
            let file = FileId {
                area: Area::Checkpoints,
                number,
            };
            without.remove(file).unwrap();
        }
        let expected = shown(&open(&without));
        assert!(expected.len() > 500, "{}", expected.len());
        assert_eq!(shown(&open(&with_checkpoint)), expected, "seed {seed}");
        // And once more, from the checkpoint of a broker that began with one.
        let again = open(&with_checkpoint);
        again.engine.checkpoint().unwrap();
        let third = again.storage.after_kill();
        drop(again);
        assert_eq!(shown(&open(&third)), expected, "seed {seed}, again");
    }
}

#[test]
fn a_checkpoint_cut_off_anywhere_changes_nothing() {
    let mut random = Random(5);
    let harness = open(&CrashStorage::default());
    let mut client = set_up(&harness);
    let mut count = 0;
    work(&harness, &mut client, &mut random, 300, &mut count);
    harness.engine.checkpoint().unwrap();
    work(&harness, &mut client, &mut random, 300, &mut count);
    let expected = shown(&open(&harness.storage.after_kill()));
    drop(client);
    let before = harness.storage.after_kill();
    drop(harness);
    let mut whole = false;
    for step in 0.. {
        let harness = open(&before.after_kill());
        harness.storage.fail_after(step);
        whole = harness.engine.checkpoint().is_ok();
        let after = harness.storage.after_power_cut(&mut random);
        assert_eq!(shown(&open(&after)), expected, "the power goes after {step} steps");
        if whole {
            break;
        }
    }
    assert!(whole);
}

fn segments(harness: &Harness) -> Vec<u64> {
    harness.storage.files(Area::Log).unwrap()
}

fn let_time_pass(harness: &Harness) {
    for _ in 0..4 {
        harness.clock.advance(20_000);
        harness.engine.maintain().unwrap();
    }
}

#[test]
fn segments_that_nothing_needs_are_removed() {
    let config = Config {
        retention: Millis::from_secs(60),
        ..config()
    };
    let harness = Harness::on(CrashStorage::default(), config.clone()).unwrap();
    let mut client = set_up(&harness);
    let padding = "x".repeat(1000);
    for n in 0..500 {
        client.publish(message(Entry::Exchange, "both", "k", &format!("{n} {padding}")));
    }
    for name in ["a", "b"] {
        client
            .ask(&harness.engine, Request::PurgeQueue { name: bytes(name) })
            .unwrap();
    }
    let before = segments(&harness);
    assert!(before.len() > 8, "{before:?}");
    // The topic wants them for a minute.
    harness.engine.maintain().unwrap();
    assert_eq!(segments(&harness), before);
    harness.clock.advance(60_000);
    let_time_pass(&harness);
    assert!(segments(&harness).len() <= 2, "{:?}", segments(&harness));
    let mut first = 0;
    for queue_id in 0..4 {
        let topic = bytes("both");
        let Ok(Reply::Offsets(bounds)) = client.ask(&harness.engine, Request::Bounds { topic, queue_id }) else {
            panic!("the topic is there")
        };
        first += bounds.start;
    }
    assert!((400..500).contains(&first), "{first}");
    // Everything goes on, also after a restart.
    client.publish(message(Entry::Exchange, "both", "k", "after"));
    harness.engine.sync_once().unwrap();
    let harness = Harness::on(harness.storage.after_kill(), config).unwrap();
    let mut client = harness.client();
    client.subscribe("a", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), ["after"]);
}

#[test]
fn retention_never_removes_a_queues_message() {
    let config = Config {
        retention: Millis::from_secs(60),
        ..config()
    };
    let harness = Harness::on(CrashStorage::default(), config.clone()).unwrap();
    let mut client = set_up(&harness);
    let padding = "x".repeat(1000);
    for n in 0..500 {
        client.publish(message(Entry::Exchange, "both", "k", &format!("{n} {padding}")));
    }
    // Queue a keeps one message of a hundred, b none.
    let subscription = client.subscribe("a", None);
    harness.engine.sync_once().unwrap();
    let mut kept = BTreeSet::new();
    for delivery in client.deliveries() {
        if delivery.sequence.is_multiple_of(100) {
            kept.insert(delivery.sequence);
        } else {
            client.settle(subscription, delivery.sequence, 1, Settle::Ack);
        }
    }
    client
        .ask(&harness.engine, Request::PurgeQueue { name: bytes("b") })
        .unwrap();
    let before = segments(&harness).len();
    harness.clock.advance(100_000_000);
    let_time_pass(&harness);
    assert!(segments(&harness).len() < before);
    drop(client);
    let_time_pass(&harness);
    let harness = harness.restart();
    let mut client = harness.client();
    client.subscribe("a", None);
    let left: BTreeSet<_> = client.deliveries().iter().map(|delivery| delivery.sequence).collect();
    assert_eq!(left, kept);
}

/// Each page of a long queue is read once to let go what it names: none of that by a publisher who comes by, nor by
/// who asked for it.
#[test]
fn emptying_a_long_queue_is_not_the_work_of_whoever_comes_by() {
    const MESSAGES: usize = 12_000;
    const PAGES: usize = MESSAGES / 64;
    let config = Config {
        index_cache: 0,
        ..config()
    };
    let harness = Harness::on(CrashStorage::default(), config).unwrap();
    let mut client = harness.client();
    let engine = harness.engine.clone();
    let maintenance = std::thread::Builder::new().name("maintenance".to_owned());
    let maintenance = maintenance.spawn(move || engine.run_maintenance()).unwrap();
    for delete in [false, true] {
        harness.storage.forget_page_reads();
        client.ask(&harness.engine, Request::DeclareQueue(queue("a"))).unwrap();
        client.ask(&harness.engine, Request::DeclareQueue(queue("b"))).unwrap();
        for _ in 0..MESSAGES {
            client.publish(message(Entry::Queue, "a", "", "x"));
        }
        let request = if delete {
            Request::DeleteQueue {
                name: bytes("a"),
                if_unused: false,
                if_empty: false,
            }
        } else {
            Request::PurgeQueue { name: bytes("a") }
        };
        let reply = client.ask(&harness.engine, request).unwrap();
        assert!(
            matches!(reply, Reply::Count(count) if count == MESSAGES as u64),
            "{reply:?}"
        );
        // Others come by until it is over.
        let until = std::time::Duration::from_secs(60);
        let (_sender, receiver) = std::sync::mpsc::channel::<()>();
        let mut waited = std::time::Duration::ZERO;
        loop {
            client.publish(message(Entry::Queue, "b", "", "x"));
            let read = harness.storage.page_reads();
            let own: usize = read
                .iter()
                .filter(|(name, _)| *name != "maintenance")
                .map(|(_, n)| n)
                .sum();
            // The last few thousand entries are anybody's.
            assert!(own <= PAGES / 2, "{own} of {PAGES} pages were read by others: {read:?}");
            if read.values().sum::<usize>() >= PAGES - 1 {
                break;
            }
            let pause = std::time::Duration::from_millis(1);
            let _ = receiver.recv_timeout(pause);
            waited += pause;
            assert!(waited < until, "the queue is not emptied: {read:?}");
        }
    }
    harness.engine.close();
    maintenance.join().unwrap();
}

/// Somebody else's files fill the disk and go away, while the only publisher waits and nobody settles anything.
#[test]
fn a_disk_that_is_not_full_any_more_is_noticed_although_nobody_writes() {
    let harness = Harness::on(CrashStorage::small(24 * SEGMENT), config()).unwrap();
    harness.storage.set_foreign(16 * SEGMENT);
    let mut publisher = harness.client();
    publisher
        .ask(&harness.engine, Request::DeclareQueue(queue("a")))
        .unwrap();
    let mut publish = || {
        let token = publisher.publish(message(Entry::Queue, "a", "", &"x".repeat(1000)));
        harness.engine.sync_once().expect("a full disk is no failure");
        let fate = publisher.events().into_iter().find_map(|event| match event {
            Event::Outcome(outcome) if outcome.first == token => Some(outcome.fate),
            _ => None,
        });
        fate.expect("it does not wait")
    };
    let refused = (0..100_000).any(|_| publish() == Fate::Rejected(Reject::Shortage(Shortage::Disk)));
    assert!(refused, "the disk is not full");
    harness.clock.advance(1_000);
    harness.engine.maintain().unwrap();
    assert_eq!(publish(), Fate::Rejected(Reject::Shortage(Shortage::Disk)));
    harness.storage.set_foreign(0);
    harness.clock.advance(1_000);
    harness.engine.maintain().unwrap();
    assert!(
        matches!(publish(), Fate::Stored(_)),
        "it is refused although there is room"
    );
}

#[test]
fn a_full_disk_holds_publishers_back_and_loses_nothing() {
    const TOTAL: u64 = 24 * SEGMENT;
    let config = Config {
        index_cache: 16 << 20,
        ..config()
    };
    let harness = Harness::on(CrashStorage::small(TOTAL), config).unwrap();
    let mut publisher = harness.client();
    publisher
        .ask(&harness.engine, Request::DeclareQueue(queue("a")))
        .unwrap();
    let padding = "x".repeat(1000);
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for round in 0..3 {
        // Until the broker says no.
        for n in 0.. {
            let body = format!("{round} {n} {padding}");
            let token = publisher.publish(message(Entry::Queue, "a", "", &body));
            harness.engine.sync_once().expect("a full disk is no failure");
            let fate = publisher.events().into_iter().find_map(|event| match event {
                Event::Outcome(outcome) if outcome.first == token => Some(outcome.fate),
                _ => None,
            });
            match fate {
                Some(Fate::Stored(_)) => sent.push(body),
                Some(Fate::Rejected(Reject::Shortage(Shortage::Disk))) => break,
                other => panic!("{other:?}"),
            }
            if n % 20 == 0 {
                harness.clock.advance(1_000);
                harness.engine.maintain().unwrap();
            }
        }
        assert!(
            harness.storage.used() * 100 / TOTAL >= 80,
            "refused when {} were used",
            harness.storage.used()
        );
        // One that waits is told that it has to.
        let waiting = Publish {
            waits: true,
            ..message(Entry::Queue, "a", "", "waits")
        };
        let mut batch = VecDeque::from([waiting]);
        assert_eq!(publisher.link.publish(&mut batch), Admission::Partial);
        let blocked = Event::Notice(Notice::Blocked(Shortage::Disk));
        assert_eq!(format!("{:?}", publisher.events()), format!("{:?}", [blocked]));
        // Consumers go on, and make room.
        let mut consumer = harness.client();
        let subscription = consumer.subscribe("a", None);
        harness.engine.sync_once().unwrap();
        loop {
            let deliveries = consumer.deliveries();
            let Some(last) = deliveries.last() else { break };
            let first = deliveries[0].sequence;
            got.extend(deliveries.iter().map(body));
            consumer.settle(subscription, first, (last.sequence - first + 1) as u32, Settle::Ack);
        }
        for _ in 0..30 {
            harness.clock.advance(1_000);
            harness.engine.maintain().unwrap();
            harness.engine.sync_once().unwrap();
        }
        let told = publisher.events();
        let goes_on = told.iter().any(|event| matches!(event, Event::Writable));
        assert!(goes_on, "{told:?}, {} used", harness.storage.used());
    }
    assert_eq!(got, sent);
}

/// A dead-letter queue that gains one message now and then must not keep everything beside it.
#[test]
fn a_segment_that_few_messages_keep_is_copied_forward() {
    let config = Config {
        retention: Millis::from_secs(60),
        ..config()
    };
    let harness = Harness::on(CrashStorage::default(), config.clone()).unwrap();
    let mut client = set_up(&harness);
    let padding = "x".repeat(1000);
    for n in 0..600 {
        client.publish(message(Entry::Exchange, "both", "k", &format!("{n} {padding}")));
    }
    let subscription = client.subscribe("a", None);
    harness.engine.sync_once().unwrap();
    let mut kept = Vec::new();
    for delivery in client.deliveries() {
        if delivery.sequence % 50 == 7 {
            kept.push((delivery.sequence, body(&delivery)));
        } else {
            client.settle(subscription, delivery.sequence, 1, Settle::Ack);
        }
    }
    client
        .ask(&harness.engine, Request::PurgeQueue { name: bytes("b") })
        .unwrap();
    let pinned = harness.engine.pinned();
    assert!(pinned.len() > 8, "{pinned:?}");
    assert_eq!(pinned[0].queue, Some((bytes("a"), pinned[0].entries)));
    harness.clock.advance(100_000_000);
    for _ in 0..20 {
        let_time_pass(&harness);
    }
    assert!(segments(&harness).len() <= 3, "{:?}", segments(&harness));
    drop(client);
    // The copies are what a restart finds, with and without a checkpoint behind them.
    let storage = harness.storage.after_kill();
    drop(harness);
    for storage in [storage.after_kill(), {
        let harness = Harness::on(storage.after_kill(), config.clone()).unwrap();
        harness.engine.checkpoint().unwrap();
        harness.storage.after_kill()
    }] {
        let harness = Harness::on(storage, config.clone()).unwrap();
        let mut client = harness.client();
        client.subscribe("a", None);
        let left: Vec<_> = client.deliveries().iter().map(|d| (d.sequence, body(d))).collect();
        assert_eq!(left, kept);
    }
}

#[test]
fn copying_forward_cut_off_anywhere_loses_nothing() {
    let config = Config {
        retention: Millis(0),
        ..config()
    };
    let mut random = Random(9);
    for step in (0..60).step_by(3) {
        let harness = Harness::on(CrashStorage::default(), config.clone()).unwrap();
        let mut client = set_up(&harness);
        client
            .ask(&harness.engine, Request::DeclareQueue(queue("later")))
            .unwrap();
        let mut timed = Vec::new();
        for n in 0..300 {
            if n % 60 == 0 {
                timed.push(n.to_string());
                client.publish(Publish {
                    deliver: Deliver::After(Millis::from_secs(100_000)),
                    ..message(Entry::Queue, "later", "", &n.to_string())
                });
            }
            client.publish(message(
                Entry::Exchange,
                "both",
                "k",
                &format!("{n} {}", "x".repeat(900)),
            ));
        }
        let subscription = client.subscribe("a", None);
        harness.engine.sync_once().unwrap();
        let mut kept = BTreeSet::new();
        for delivery in client.deliveries() {
            if delivery.sequence % 60 == 1 {
                kept.insert(delivery.sequence);
            } else {
                client.settle(subscription, delivery.sequence, 1, Settle::Ack);
            }
        }
        client
            .ask(&harness.engine, Request::PurgeQueue { name: bytes("b") })
            .unwrap();
        harness.storage.fail_after(step);
        for _ in 0..10 {
            harness.clock.advance(20_000);
            let _ = harness.engine.maintain();
        }
        let after = harness.storage.after_power_cut(&mut random);
        let harness = Harness::on(after, config.clone()).unwrap();
        let mut client = harness.client();
        client.subscribe("a", None);
        let left: BTreeSet<_> = client.deliveries().iter().map(|d| d.sequence).collect();
        assert!(left.is_superset(&kept), "step {step}: {kept:?} of {left:?}");
        client.subscribe("later", None);
        harness.clock.advance(200_000_000);
        let mut fired = Vec::new();
        for _ in 0..10 {
            harness.engine.tick();
            harness.engine.sync_once().unwrap();
            fired.extend(client.bodies());
        }
        fired.sort_by_key(|body| body.parse::<u32>().ok());
        assert_eq!(fired, timed, "step {step}");
    }
}

/// After a crash writing goes on behind a gap of segments that never were: they are no reason to give anything up.
#[test]
fn topics_keep_their_messages_over_a_crash_until_their_time() {
    let config = Config {
        retention: Millis::from_secs(3600),
        ..config()
    };
    let harness = Harness::on(CrashStorage::default(), config.clone()).unwrap();
    let mut client = set_up(&harness);
    for n in 0..300 {
        client.publish(message(
            Entry::Exchange,
            "both",
            "k",
            &format!("{n} {}", "x".repeat(900)),
        ));
    }
    harness.engine.sync_once().unwrap();
    let expected = shown(&harness);
    drop(client);
    let mut storage = harness.storage.after_kill();
    drop(harness);
    for _ in 0..3 {
        let harness = Harness::on(storage, config.clone()).unwrap();
        let_time_pass(&harness);
        assert_eq!(shown(&harness), expected);
        storage = harness.storage.after_kill();
    }
}
