//! Laws of timed messages: none early, none lost, none twice, and which clock counts.

mod support;

use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::properties;
use rocketbridge_core::request::*;
use rocketbridge_core::store::storage::{Area, Storage};
use rocketbridge_core::time::{Clock, Millis};
use support::*;

fn later(queue: &str, body: &str, deliver: Deliver) -> Publish {
    Publish {
        deliver,
        ..message(Entry::Queue, queue, "", body)
    }
}

fn after(millis: u64) -> Deliver {
    Deliver::After(Millis(millis))
}

/// A client with a queue that it consumes.
fn consumer(harness: &Harness, name: &str) -> Client {
    let mut client = harness.client();
    client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
    client.subscribe(name, None);
    harness.engine.sync_once().unwrap();
    client.events();
    client
}

/// Lets time pass millisecond by millisecond, calling the engine only when it asks for it; tells what came
/// when.
fn run(harness: &Harness, client: &mut Client, millis: u64) -> Vec<(u64, String)> {
    let mut came = Vec::new();
    for passed in 1..=millis {
        harness.clock.advance(1);
        if harness
            .engine
            .next_deadline()
            .is_some_and(|at| at <= harness.clock.now().mono)
        {
            harness.engine.tick();
        }
        came.extend(client.bodies().into_iter().map(|body| (passed, body)));
    }
    came
}

#[test]
fn no_timer_fires_early_and_none_is_late() {
    let harness = Harness::new();
    let mut client = consumer(&harness, "q");
    let wall = harness.clock.now().wall;
    let mut random = Random(3);
    let mut wanted = Vec::new();
    for n in 0..300 {
        let due = 1 + random.below(150_000);
        let deliver = if n % 2 == 0 {
            after(due)
        } else {
            Deliver::At(wall + Millis(due))
        };
        client.publish(later("q", &due.to_string(), deliver));
        wanted.push(due);
    }
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), [""; 0]);
    let came = run(&harness, &mut client, 150_000);
    assert!(
        came.iter().all(|(at, body)| *at == body.parse::<u64>().unwrap()),
        "{came:?}"
    );
    wanted.sort_unstable();
    assert_eq!(came.iter().map(|(at, _)| *at).collect::<Vec<_>>(), wanted);
    assert_eq!(harness.engine.next_deadline(), None);
}

#[test]
fn relative_timers_ignore_a_wall_clock_step() {
    let harness = Harness::new();
    let mut client = consumer(&harness, "q");
    client.publish(later("q", "relative", after(10_000)));
    let at = harness.clock.now().wall + Millis(3_600_000);
    client.publish(later("q", "absolute", Deliver::At(at)));
    harness.clock.step_wall(3_600_000 - 5000);
    assert_eq!(
        run(&harness, &mut client, 20_000),
        [(5000, "absolute".into()), (10_000, "relative".into())]
    );
    client.publish(later("q", "after the step", after(2000)));
    harness.clock.step_wall(-7_200_000);
    assert_eq!(run(&harness, &mut client, 3000), [(2000, "after the step".into())]);
    // A time that the wall has shown before it was set back, but does not show now, is in the future.
    let at = harness.clock.now().wall + Millis(1000);
    client.publish(later("q", "again", Deliver::At(at)));
    assert_eq!(run(&harness, &mut client, 2000), [(1000, "again".into())]);
}

#[test]
fn a_step_of_the_wall_does_not_reach_over_a_restart() {
    for step in [-7_200_000, 7_200_000] {
        let harness = Harness::new();
        let mut client = consumer(&harness, "q");
        client.publish(later("q", "first", after(60_000)));
        harness.clock.step_wall(step);
        run(&harness, &mut client, 5000);
        client.publish(later("q", "second", after(60_000)));
        harness.engine.sync_once().unwrap();
        let harness = harness.kill_for(20_000);
        let mut client = consumer(&harness, "q");
        let came = run(&harness, &mut client, 60_000);
        assert_eq!(
            came,
            [(35_000, "first".into()), (40_000, "second".into())],
            "step {step}"
        );
    }
}

#[test]
fn pending_timers_survive_a_kill_and_fire_once() {
    let mut harness = Harness::new();
    let mut random = Random(17);
    let mut wanted = Vec::new();
    let mut came = Vec::new();
    for life in 0..6 {
        let mut client = consumer(&harness, "q");
        for n in 0..40 {
            let body = format!("{life}-{n}");
            let span = random.below(30_000);
            let deliver = match n % 2 {
                0 => after(1 + span),
                _ => Deliver::At(harness.clock.now().wall + Millis(1 + span)),
            };
            client.publish(later("q", &body, deliver));
            wanted.push(body);
        }
        harness.engine.sync_once().unwrap();
        came.extend(settle_all(&harness, &mut client, 4000));
        if life % 2 == 0 {
            harness.engine.checkpoint().unwrap();
        }
        came.extend(settle_all(&harness, &mut client, 4000));
        harness.engine.sync_once().unwrap();
        harness = harness.kill_for(random.below(3000));
    }
    let mut client = consumer(&harness, "q");
    came.extend(settle_all(&harness, &mut client, 60_000));
    came.sort();
    wanted.sort();
    assert_eq!(came, wanted, "each once: {} of {}", came.len(), wanted.len());
    assert_eq!(harness.engine.timers().0, 0);
}

/// As [`run`], settling what comes.
fn settle_all(harness: &Harness, client: &mut Client, millis: u64) -> Vec<String> {
    let mut came = Vec::new();
    for _ in 0..millis / 10 {
        harness.clock.advance(10);
        harness.engine.tick();
        for delivery in client.deliveries() {
            came.push(body(&delivery));
            client.settle(delivery.subscription, delivery.sequence, 1, Settle::Ack);
        }
    }
    came
}

#[test]
fn a_delayed_message_is_routed_by_the_bindings_of_its_time() {
    let harness = Harness::new();
    let mut old = consumer(&harness, "old");
    let mut new = consumer(&harness, "new");
    let topic = exchange("e", ExchangeKind::Direct);
    old.ask(&harness.engine, Request::DeclareExchange(topic)).unwrap();
    let bound = |queue: &str| binding(Source::Exchange(bytes("e")), Matcher::Key(bytes("k")), queue);
    old.ask(&harness.engine, Request::Bind(bound("old"))).unwrap();
    old.publish(Publish {
        deliver: after(1000),
        ..message(Entry::Exchange, "e", "k", "x")
    });
    old.ask(&harness.engine, Request::Unbind(bound("old"))).unwrap();
    old.ask(&harness.engine, Request::Bind(bound("new"))).unwrap();
    harness.clock.advance(1000);
    harness.engine.tick();
    harness.engine.sync_once().unwrap();
    assert_eq!(new.bodies(), ["x"]);
    assert_eq!(old.bodies(), [""; 0]);
}

#[test]
fn a_time_beyond_the_limit_is_refused_and_one_in_the_past_is_now() {
    let harness = Harness::new();
    let mut client = consumer(&harness, "q");
    let wall = harness.clock.now().wall;
    let day = 24 * 3600 * 1000;
    for deliver in [after(3 * day + 1), Deliver::At(wall + Millis(3 * day + 1))] {
        client.publish(later("q", "x", deliver));
        let events = client.events();
        let rejected = |event: &Event| matches!(event, Event::Outcome(o) if o.fate == Fate::Rejected(Reject::TooLate));
        assert!(events.iter().any(rejected), "{events:?}");
    }
    for deliver in [after(0), Deliver::At(Millis(1)), Deliver::At(wall)] {
        client.publish(later("q", "now", deliver));
        harness.engine.sync_once().unwrap();
        assert_eq!(client.bodies(), ["now"]);
    }
    let year = Config {
        delay_max: Millis(365 * day),
        ..Config::default()
    };
    let harness = Harness::on(CrashStorage::default(), year).unwrap();
    let mut client = consumer(&harness, "q");
    client.publish(later("q", "far", after(364 * day)));
    harness.engine.sync_once().unwrap();
    harness.clock.advance(364 * day - 1);
    harness.engine.tick();
    assert_eq!(client.bodies(), [""; 0]);
    harness.clock.advance(1);
    harness.engine.tick();
    assert_eq!(client.bodies(), ["far"]);
}

fn native(body: &str, key: &str, deliver: Deliver) -> Publish {
    let mut properties = Vec::new();
    properties::push(&mut properties, properties::UNIQUE_KEY, key.as_bytes());
    properties::push(&mut properties, b"DELAY", b"3");
    properties::push(&mut properties, properties::TAGS, b"tag");
    Publish {
        deliver,
        detailed: true,
        format: Format::NATIVE,
        origin: properties.into(),
        native: Some(Box::new(Native {
            topic_queues: 4,
            queue_id: Some(2),
            ..Native::default()
        })),
        ..message(Entry::Native, "t", "tag", body)
    }
}

fn stored(engine: &Engine, client: &mut Client) -> Stored {
    engine.sync_once().unwrap();
    let stored = client.events().into_iter().find_map(|event| match event {
        Event::Outcome(outcome) => match outcome.fate {
            Fate::Stored(stored) => Some(stored),
            _ => None,
        },
        _ => None,
    });
    stored.expect("it was stored")
}

fn pull(harness: &Harness, client: &mut Client) -> Pulled {
    let pull = Request::Pull(Pull {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 2,
        offset: 0,
        messages_max: 32,
        bytes_max: 1 << 20,
        filter: Some(Filter::All),
        hold: false,
    });
    match client.ask(&harness.engine, pull) {
        Ok(Reply::Pulled(pulled)) => *pulled,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_delayed_native_message_comes_to_its_queue_and_is_no_longer_marked_delayed() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.publish(native("x", "key", after(1000)));
    let told = stored(&harness.engine, &mut client);
    assert_eq!((told.queue_id, told.queue_offset), (2, 0));
    assert!(pull(&harness, &mut client).messages.is_empty());
    harness.clock.advance(1000);
    harness.engine.tick();
    let pulled = pull(&harness, &mut client);
    assert_eq!(pulled.messages.len(), 1);
    let fired = &pulled.messages[0];
    assert_eq!(
        (fired.topic(), fired.key(), fired.body()),
        (&b"t"[..], &b"tag"[..], &b"x"[..])
    );
    let (_, properties) = fired.origin();
    assert_eq!(properties::find(properties, b"DELAY"), None);
    assert_eq!(properties::find(properties, properties::UNIQUE_KEY), Some(&b"key"[..]));
    assert_eq!(properties::find(properties, b"REAL_TOPIC"), Some(&b"t"[..]));
    assert_eq!(properties::find(properties, b"REAL_QID"), Some(&b"2"[..]));
    assert_ne!(fired.position(), told.position);
}

#[test]
fn a_timed_message_that_is_taken_back_never_comes() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.publish(native("gone", "one", after(1000)));
    let position = stored(&harness.engine, &mut client).position;
    client.publish(native("stays", "two", after(1000)));
    harness.engine.sync_once().unwrap();
    let take_back = |key: &str| Request::TakeBack {
        position,
        unique_key: bytes(key),
    };
    assert!(client.ask(&harness.engine, take_back("two")).is_err(), "not its key");
    assert!(client.ask(&harness.engine, take_back("one")).is_ok());
    assert!(client.ask(&harness.engine, take_back("one")).is_err(), "not twice");
    let harness = harness.kill_for(0);
    let mut client = harness.client();
    harness.clock.advance(1000);
    harness.engine.tick();
    let bodies: Vec<_> = pull(&harness, &mut client)
        .messages
        .iter()
        .map(|m| m.body().to_vec())
        .collect();
    assert_eq!(bodies, [b"stays"]);
    assert!(client.ask(&harness.engine, take_back("one")).is_err());
}

#[test]
fn what_does_not_wait_any_more_cannot_be_taken_back() {
    let harness = Harness::new();
    let mut client = harness.client();
    let wall = harness.clock.now().wall;
    client.publish(native("taken", "one", Deliver::At(wall + Millis(1000))));
    harness.engine.sync_once().unwrap();
    let taken = stored(&harness.engine, &mut client).position;
    client.publish(native("fires", "two", Deliver::At(wall + Millis(500))));
    harness.engine.sync_once().unwrap();
    let fired = stored(&harness.engine, &mut client).position;
    let take_back = |position, key: &str| Request::TakeBack {
        position,
        unique_key: bytes(key),
    };
    client.ask(&harness.engine, take_back(taken, "one")).unwrap();
    harness.clock.advance(500);
    harness.engine.tick();
    assert_eq!(pull(&harness, &mut client).messages.len(), 1);
    harness.engine.sync_once().unwrap();
    // The wall goes back: what fired is ahead again, and was delivered nevertheless.
    harness.clock.step_wall(-400);
    assert!(client.ask(&harness.engine, take_back(fired, "two")).is_err());
    let harness = harness.kill_for(0);
    let mut client = harness.client();
    assert!(client.ask(&harness.engine, take_back(fired, "two")).is_err());
    assert!(client.ask(&harness.engine, take_back(taken, "one")).is_err());
}

#[test]
fn a_batch_may_hold_timed_messages() {
    let harness = Harness::new();
    let mut client = consumer(&harness, "q");
    let publishes = vec![later("q", "later", after(500)), later("q", "now", Deliver::Now)];
    let settlements = Vec::new();
    client.request(Request::Commit(Commit {
        publishes,
        settlements,
        ..Commit::default()
    }));
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), ["now"]);
    assert_eq!(run(&harness, &mut client, 600), [(500, "later".into())]);
}

/// The alarm is for whoever sleeps until the deadline it was told of.
#[test]
fn an_earlier_deadline_wakes_whoever_waits_for_a_later_one() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicU32);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let harness = Harness::new();
    let mut client = consumer(&harness, "q");
    let count = Arc::new(Count::default());
    harness.engine.set_alarm(Arc::clone(&count).into());
    let woken = || count.0.swap(0, Ordering::Relaxed);
    client.publish(later("q", "a", after(100_000)));
    assert_eq!(woken(), 1);
    client.publish(later("q", "b", after(200_000)));
    assert_eq!(woken(), 0);
    client.publish(later("q", "c", after(50)));
    assert_eq!(woken(), 1);
    assert_eq!(
        harness.engine.next_deadline(),
        Some(harness.clock.now().mono + Millis(50))
    );
}

/// The segments between two lives of the broker were never written to, those of fired timers are not needed
/// any more; what a topic has before them stays.
#[test]
fn a_topic_keeps_what_lies_before_segments_that_nothing_needs() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.publish(native("first", "one", Deliver::Now));
    client.publish(native("second", "two", after(1000)));
    harness.engine.sync_once().unwrap();
    let harness = harness.kill_for(1000);
    harness.engine.tick();
    harness.engine.sync_once().unwrap();
    for _ in 0..3 {
        harness.clock.advance(60_000);
        harness.engine.maintain().unwrap();
    }
    let mut client = harness.client();
    let bodies: Vec<_> = pull(&harness, &mut client)
        .messages
        .iter()
        .map(|m| m.body().to_vec())
        .collect();
    assert_eq!(bodies, [&b"first"[..], b"second"]);
}

/// Some are due in days; what was sent beside them must not be kept as long.
#[test]
fn segments_that_few_timed_messages_keep_are_copied_forward() {
    const DAY: u64 = 86_400_000;
    let config = Config {
        retention: Millis(0),
        checkpoint_bytes: 1 << 14,
        ..Config::default()
    };
    let harness = Harness::on(CrashStorage::default(), config.clone()).unwrap();
    let mut client = harness.client();
    for name in ["q", "noise"] {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
    }
    let wall = harness.clock.now().wall;
    let padding = "x".repeat(1000);
    let (mut wanted, mut positions) = (Vec::new(), Vec::new());
    for n in 0..600 {
        client.publish(message(Entry::Queue, "noise", "", &padding));
        match n % 50 {
            7 => client.publish(later("q", &format!("after {n}"), after(DAY))),
            8 => client.publish(later("q", &format!("at {n}"), Deliver::At(wall + Millis(DAY)))),
            9 => {
                harness.engine.sync_once().unwrap();
                client.events();
                client.publish(native("native", &n.to_string(), after(DAY)));
                positions.push((n.to_string(), stored(&harness.engine, &mut client).position));
                continue;
            }
            _ => continue,
        };
        wanted.push(format!("{} {n}", if n % 50 == 7 { "after" } else { "at" }));
    }
    harness.engine.sync_once().unwrap();
    let mut take_back = |harness: &Harness, client: &mut Client, by_restart: &str| {
        let (key, position) = positions.pop().unwrap();
        let unique_key = bytes(&key);
        let reply = client.ask(&harness.engine, Request::TakeBack { position, unique_key });
        assert!(reply.is_ok(), "{by_restart}: {reply:?}");
    };
    take_back(&harness, &mut client, "where it was stored");
    let purge = Request::PurgeQueue { name: bytes("noise") };
    client.ask(&harness.engine, purge).unwrap();
    let segments = |harness: &Harness| harness.storage.files(Area::Log).unwrap().len();
    assert!(segments(&harness) > 8, "{}", segments(&harness));
    for _ in 0..40 {
        harness.clock.advance(20_000);
        harness.engine.maintain().unwrap();
    }
    assert!(segments(&harness) <= 3, "{}", segments(&harness));
    take_back(&harness, &mut client, "after it was copied");
    harness.engine.sync_once().unwrap();
    drop(client);
    let left = positions.len();
    let (storage, wall) = (harness.storage.after_kill(), harness.clock.now().wall);
    drop(harness);
    let restart = |storage: &CrashStorage| {
        Harness::at(ManualClock::starting_at(wall), storage.after_kill(), config.clone()).unwrap()
    };
    for with_checkpoint in [false, true] {
        let mut harness = restart(&storage);
        if with_checkpoint {
            harness.engine.checkpoint().unwrap();
            harness = restart(&harness.storage);
        }
        let mut client = harness.client();
        let (key, position) = positions[0].clone();
        let unique_key = bytes(&key);
        let reply = client.ask(&harness.engine, Request::TakeBack { position, unique_key });
        assert!(reply.is_ok(), "with a checkpoint {with_checkpoint}: {reply:?}");
        client.subscribe("q", None);
        harness.clock.advance(DAY);
        let mut came = Vec::new();
        for _ in 0..10_000 {
            harness.engine.tick();
            harness.clock.advance(1);
            harness.engine.sync_once().unwrap();
            came.extend(client.bodies());
        }
        came.sort();
        wanted.sort();
        assert_eq!(came, wanted, "with a checkpoint {with_checkpoint}");
        assert_eq!(pull(&harness, &mut client).messages.len(), left - 1);
    }
}
