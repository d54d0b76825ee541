//! Laws of atomic batches: all of one takes effect, or nothing.

mod support;

use std::collections::VecDeque;

use rocketbridge_core::boundary::*;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::time::Millis;
use support::*;

fn to_queue(name: &str, body: &str) -> Publish {
    message(Entry::Queue, name, "", body)
}

fn commit(publishes: Vec<Publish>, settlements: Vec<Settlement>) -> Request {
    Request::Commit(Commit {
        publishes,
        settlements,
        ..Commit::default()
    })
}

fn ready(client: &mut Client, harness: &Harness, name: &str) -> u64 {
    match client.ask(&harness.engine, Request::FindQueue { name: bytes(name) }) {
        Ok(Reply::Queue(state)) => state.ready,
        other => panic!("{other:?}"),
    }
}

fn declare(client: &mut Client, harness: &Harness, names: &[&str]) {
    for name in names {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
    }
}

#[test]
fn an_atomic_batch_is_applied_whole_or_not_at_all() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&mut client, &harness, &["a", "b"]);
    client.publish(to_queue("a", "leased"));
    let subscription = client.subscribe("a", None);
    harness.engine.sync_once().unwrap();
    let leased = client.deliveries().remove(0);
    let ack = Settlement {
        subscription,
        first: leased.sequence,
        count: 1,
        action: Settle::Ack,
    };
    let nowhere = message(Entry::Exchange, "no-such-exchange", "k", "x");
    let batch = vec![to_queue("b", "one"), nowhere, to_queue("b", "two")];
    let refused = client.ask(&harness.engine, commit(batch, vec![ack])).unwrap_err();
    let reject = Reject::NoExchange;
    assert_eq!(refused, Refusal::Rejected { index: 1, reject });
    assert_eq!(
        ready(&mut client, &harness, "b"),
        0,
        "nothing of a refused batch is published"
    );
    // What it would have settled is still leased: released, it comes again.
    client.settle(subscription, leased.sequence, 1, Settle::Release);
    let again = client.deliveries().remove(0);
    assert!(again.redelivered);

    let batch = vec![to_queue("b", "one"), to_queue("b", "two")];
    let reply = client.ask(&harness.engine, commit(batch, vec![ack]));
    assert!(matches!(reply, Ok(Reply::Done)), "{reply:?}");
    assert_eq!(ready(&mut client, &harness, "b"), 2);
    client.settle(subscription, leased.sequence, 1, Settle::Release);
    assert_eq!(client.bodies(), [""; 0], "what the batch has acked is gone");
}

#[test]
fn a_committed_batch_is_answered_when_it_is_safe_and_survives_a_kill() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&mut client, &harness, &["q"]);
    client.publish(to_queue("q", "old"));
    let subscription = client.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    let old = client.deliveries().remove(0);
    let ack = Settlement {
        subscription,
        first: old.sequence,
        count: 1,
        action: Settle::Ack,
    };
    client.request(commit(vec![to_queue("q", "new")], vec![ack]));
    let is_reply = |event: &Event| matches!(event, Event::Reply { .. });
    assert!(!client.events().iter().any(is_reply), "before the disk has it");
    harness.engine.sync_once().unwrap();
    assert!(client.events().iter().any(is_reply));
    let harness = harness.kill();
    let mut client = harness.client();
    client.subscribe("q", None);
    harness.engine.sync_once().unwrap();
    assert_eq!(client.bodies(), ["new"]);
}

#[test]
fn a_batch_is_recovered_whole_or_not_at_all() {
    let mut random = Random(11);
    for round in 0..60 {
        let harness = Harness::new();
        let mut client = harness.client();
        declare(&mut client, &harness, &["a", "b"]);
        client.publish(to_queue("a", "token"));
        let subscription = client.subscribe("a", None);
        harness.engine.sync_once().unwrap();
        let token = client.deliveries().remove(0);
        let ack = Settlement {
            subscription,
            first: token.sequence,
            count: 1,
            action: Settle::Ack,
        };
        // Larger than a segment now and then.
        let count = 1 + random.below(40);
        let body = "x".repeat(1 + random.below(4000) as usize);
        let batch = (0..count).map(|_| to_queue("b", &body)).collect();
        client.request(commit(batch, vec![ack]));
        harness.storage.fail_after(random.below(4));
        let _ = harness.engine.sync_once();
        let disk = harness.storage.after_power_cut(&mut random);
        let harness = Harness::on(disk, Default::default()).unwrap();
        let mut client = harness.client();
        let (a, b) = (ready(&mut client, &harness, "a"), ready(&mut client, &harness, "b"));
        assert!(
            (a, b) == (1, 0) || (a, b) == (0, count),
            "round {round}: {a} of the token, {b} of {count} messages"
        );
    }
}

#[test]
fn a_batch_beyond_its_limits_is_refused() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&mut client, &harness, &["q"]);
    let many = (0..=Commit::ITEMS_MAX).map(|_| to_queue("q", "x")).collect();
    let refused = client.ask(&harness.engine, commit(many, Vec::new()));
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    let large = "x".repeat(Commit::BYTES_MAX / 2);
    let large = vec![to_queue("q", &large), to_queue("q", &large), to_queue("q", "x")];
    let refused = client.ask(&harness.engine, commit(large, Vec::new()));
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    assert_eq!(ready(&mut client, &harness, "q"), 0);
}

#[test]
fn a_batch_gives_back_what_nobody_is_there_for() {
    let harness = Harness::new();
    let mut client = harness.client();
    let exchange = exchange("e", ExchangeKind::Direct);
    client.ask(&harness.engine, Request::DeclareExchange(exchange)).unwrap();
    let lost = Publish {
        token: 42,
        mandatory: true,
        persistent: false,
        ..message(Entry::Exchange, "e", "nobody", "x")
    };
    client.request(commit(vec![lost], Vec::new()));
    harness.engine.sync_once().unwrap();
    let events: VecDeque<Event> = client.events().into();
    assert!(matches!(events[0], Event::Returned { token: 42, .. }), "{events:?}");
    assert!(
        matches!(
            events[1],
            Event::Reply {
                result: Ok(Reply::Done),
                ..
            }
        ),
        "{events:?}"
    );
}

fn native_to(topic: &str, body: &str) -> Publish {
    Publish {
        format: Format::NATIVE,
        native: Some(Box::new(Native {
            queue_id: Some(0),
            topic_queues: 1,
            ..Native::default()
        })),
        ..message(Entry::Native, topic, "", body)
    }
}

fn pop(client: &mut Client, harness: &Harness, topic: &str) -> Vec<PoppedMessage> {
    let pop = Pop {
        group: bytes("g"),
        topic: bytes(topic),
        queue_id: Some(0),
        messages_max: 10,
        bytes_max: 1 << 20,
        invisible: Millis(60_000),
        filter: None,
        from: PopFrom::Begin,
        in_order: false,
        attempt: bytes(""),
        hold: false,
    };
    match client.ask(&harness.engine, Request::Pop(pop)) {
        Ok(Reply::Popped(popped)) => popped.messages,
        other => panic!("{other:?}"),
    }
}

fn popped_bodies(messages: &[PoppedMessage]) -> Vec<String> {
    let text = |message: &PoppedMessage| String::from_utf8(message.message.body().to_vec()).unwrap();
    messages.iter().map(text).collect()
}

fn settling(messages: &[PoppedMessage], action: Settle) -> SettlePopped {
    let held = |message: &PoppedMessage| Held {
        queue_id: message.queue_id,
        offset: message.offset,
        lease: message.lease,
    };
    SettlePopped {
        group: bytes("g"),
        topic: bytes("t"),
        messages: messages.iter().map(held).collect(),
        action,
    }
}

fn with_popped(publishes: Vec<Publish>, popped: Vec<SettlePopped>) -> Request {
    Request::Commit(Commit {
        publishes,
        popped,
        ..Commit::default()
    })
}

#[test]
fn a_batch_settles_popped_messages_with_its_publishes_or_none_of_them() {
    let harness = Harness::new();
    let mut client = harness.client();
    declare(&mut client, &harness, &["q"]);
    for body in ["a", "b", "c", "d"] {
        client.publish(native_to("t", body));
    }
    let first = pop(&mut client, &harness, "t");
    assert_eq!(popped_bodies(&first), ["a", "b", "c", "d"]);
    // A publish that cannot be: nothing is settled.
    let nowhere = message(Entry::Exchange, "no-such-exchange", "k", "x");
    let ack = settling(&first[..1], Settle::Ack);
    let refused = client.ask(
        &harness.engine,
        with_popped(vec![to_queue("q", "one"), nowhere], vec![ack.clone()]),
    );
    assert!(
        matches!(refused, Err(Refusal::Rejected { index: 1, .. })),
        "{refused:?}"
    );
    // A message that is settled twice, or is of an unknown lease: nothing is published, nothing settled.
    let stranger = SettlePopped {
        messages: vec![Held {
            lease: u64::MAX,
            ..ack.messages[0]
        }],
        ..ack.clone()
    };
    for more in [ack.clone(), stranger] {
        let batch = with_popped(vec![to_queue("q", "one")], vec![ack.clone(), more]);
        let refused = client.ask(&harness.engine, batch);
        assert!(matches!(refused, Err(Refusal::LeaseEnded)), "{refused:?}");
    }
    assert_eq!(ready(&mut client, &harness, "q"), 0);

    let parts = vec![
        ack,
        settling(&first[1..2], Settle::Release),
        settling(&first[2..3], Settle::Reject),
    ];
    let reply = client.ask(&harness.engine, with_popped(vec![to_queue("q", "one")], parts));
    assert!(matches!(reply, Ok(Reply::Done)), "{reply:?}");
    assert_eq!(ready(&mut client, &harness, "q"), 1);
    let again = pop(&mut client, &harness, "t");
    assert_eq!(popped_bodies(&again), ["b"], "only what was given back");
    assert_eq!(again[0].attempts, 1);
    assert_eq!(popped_bodies(&pop(&mut client, &harness, "%DLQ%g")), ["c"]);
    // A lease whose time is over and whose message another one has is not settled any more.
    harness.clock.advance(60_000);
    assert_eq!(popped_bodies(&pop(&mut client, &harness, "t")), ["b", "d"]);
    let late = settling(&first[3..], Settle::Ack);
    let refused = client.ask(&harness.engine, with_popped(vec![to_queue("q", "late")], vec![late]));
    assert!(matches!(refused, Err(Refusal::LeaseEnded)), "{refused:?}");
    assert_eq!(ready(&mut client, &harness, "q"), 1);
}

#[test]
fn a_power_cut_leaves_popped_messages_and_publishes_of_a_batch_together() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let harness = Harness::new();
        let mut client = harness.client();
        declare(&mut client, &harness, &["q"]);
        client.publish(native_to("t", "work"));
        harness.engine.sync_once().unwrap();
        let work = pop(&mut client, &harness, "t");
        let parts = vec![settling(&work, Settle::Ack)];
        client.request(with_popped(vec![to_queue("q", "result")], parts));
        harness.storage.fail_after(random.below(4));
        let _ = harness.engine.sync_once();
        let disk = harness.storage.after_power_cut(&mut random);
        let harness = Harness::on(disk, Default::default()).unwrap();
        let mut client = harness.client();
        let results = ready(&mut client, &harness, "q");
        // Leases of an earlier life are over.
        harness.clock.advance(60_000);
        let works = pop(&mut client, &harness, "t").len() as u64;
        assert_eq!(
            results + works,
            1,
            "seed {seed}: {results} results, {works} messages to do"
        );
    }
}
