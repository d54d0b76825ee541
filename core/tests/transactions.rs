//! Laws of half messages, of retry topics, and of what happens to what nobody claims.

mod support;

use bytes::Bytes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::Config;
use rocketbridge_core::message::{Entry, Format, Message};
use rocketbridge_core::properties;
use rocketbridge_core::request::*;
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Clock, Millis};
use support::*;

fn property_string(pairs: &[(&str, &str)]) -> Bytes {
    let mut properties = Vec::new();
    for (name, value) in pairs {
        properties::push(&mut properties, name.as_bytes(), value.as_bytes());
    }
    properties.into()
}

fn native(topic: &str, body: &str, pairs: &[(&str, &str)]) -> Publish {
    Publish {
        detailed: true,
        format: Format::NATIVE,
        origin: property_string(pairs),
        native: Some(Box::new(Native {
            topic_queues: 1,
            queue_id: Some(0),
            ..Native::default()
        })),
        ..message(Entry::Native, topic, "", body)
    }
}

fn half(topic: &str, body: &str, more: &[(&str, &str)]) -> Publish {
    let mut pairs = vec![("TRAN_MSG", "true"), ("PGROUP", "producers"), ("UNIQ_KEY", "key")];
    pairs.extend(more);
    let mut publish = native(topic, body, &pairs);
    publish.native.as_mut().unwrap().half = true;
    publish
}

fn send(harness: &Harness, client: &mut Client, publish: Publish) -> Stored {
    client.publish(publish);
    harness.engine.sync_once().unwrap();
    let stored = client.events().into_iter().find_map(|event| match event {
        Event::Outcome(outcome) => match outcome.fate {
            Fate::Stored(stored) => Some(stored),
            other => panic!("{other:?}"),
        },
        _ => None,
    });
    stored.expect("it was stored")
}

fn end(harness: &Harness, client: &mut Client, stored: Stored, verdict: Verdict) -> TransactionEnd {
    let end = EndTransaction {
        position: stored.position,
        offset: stored.queue_offset,
        group: bytes("producers"),
        verdict,
        from_check: true,
    };
    match client.ask(&harness.engine, Request::EndTransaction(end)) {
        Ok(Reply::Transaction(end)) => end,
        other => panic!("{other:?}"),
    }
}

fn pull(harness: &Harness, client: &mut Client, topic: &str) -> Vec<Message> {
    let pull = Request::Pull(Pull {
        group: bytes("g"),
        topic: bytes(topic),
        queue_id: 0,
        offset: 0,
        messages_max: 32,
        bytes_max: 1 << 20,
        filter: Some(Filter::All),
        hold: false,
    });
    match client.ask(&harness.engine, pull) {
        Ok(Reply::Pulled(pulled)) => pulled.messages,
        Err(Refusal::NotFound { .. }) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

fn bodies(harness: &Harness, client: &mut Client, topic: &str) -> Vec<String> {
    let text = |message: &Message| String::from_utf8(message.body().to_vec()).unwrap();
    pull(harness, client, topic).iter().map(text).collect()
}

fn property<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let value = properties::find(message.origin().1, name.as_bytes())?;
    Some(std::str::from_utf8(value).unwrap())
}

fn join(harness: &Harness, client: &mut Client) {
    let (group, client_id) = (bytes("producers"), bytes("c"));
    client
        .ask(&harness.engine, Request::JoinProducers { group, client_id })
        .unwrap();
}

/// Positions that the client is asked about.
fn asked(client: &mut Client) -> Vec<Position> {
    let only = |event| match event {
        Event::Notice(Notice::CheckTransaction(check)) => Some(check.position),
        _ => None,
    };
    client.events().into_iter().filter_map(only).collect()
}

fn pass(harness: &Harness, millis: u64) {
    harness.clock.advance(millis);
    harness.engine.tick();
}

#[test]
fn half_message_is_seen_by_nobody() {
    let harness = Harness::new();
    let mut client = harness.client();
    // A queue of the topic's name, one bound to everything, a group, and the message's id.
    for name in ["t", "all"] {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
        client.subscribe(name, None);
    }
    let pattern = rocketbridge_core::address::Pattern {
        levels: vec![rocketbridge_core::address::Level::Many],
        spare_dollar: false,
    };
    let everything = binding(Source::Everything, Matcher::Pattern(pattern), "all");
    client.ask(&harness.engine, Request::Bind(everything)).unwrap();
    let stored = send(&harness, &mut client, half("t", "half", &[]));
    pass(&harness, 1000);
    assert_eq!(client.bodies(), [""; 0]);
    assert_eq!(bodies(&harness, &mut client, "t"), [""; 0]);
    let position = stored.position;
    assert!(client.ask(&harness.engine, Request::View { position }).is_err());
    assert_eq!(
        end(&harness, &mut client, stored, Verdict::Rollback),
        TransactionEnd::Done
    );
    pass(&harness, 100_000);
    assert_eq!(client.bodies(), [""; 0]);
    assert_eq!(bodies(&harness, &mut client, "t"), [""; 0]);
    assert_eq!(harness.engine.half_count(), 0);
}

#[test]
fn committed_message_is_routed_by_the_bindings_at_commit() {
    let harness = Harness::new();
    let mut client = harness.client();
    for name in ["old", "new"] {
        client.ask(&harness.engine, Request::DeclareQueue(queue(name))).unwrap();
    }
    let fanout = exchange("t", ExchangeKind::Fanout);
    client.ask(&harness.engine, Request::DeclareExchange(fanout)).unwrap();
    let bound = |queue: &str| binding(Source::Exchange(bytes("t")), Matcher::Key(Bytes::new()), queue);
    client.ask(&harness.engine, Request::Bind(bound("old"))).unwrap();
    let stored = send(
        &harness,
        &mut client,
        half("t", "x", &[("TAGS", "tag"), ("DELAY", "3")]),
    );
    client.ask(&harness.engine, Request::Unbind(bound("old"))).unwrap();
    client.ask(&harness.engine, Request::Bind(bound("new"))).unwrap();
    assert_eq!(
        end(&harness, &mut client, stored, Verdict::Commit),
        TransactionEnd::Done
    );
    for (name, count) in [("old", 0), ("new", 1)] {
        match client.ask(&harness.engine, Request::FindQueue { name: bytes(name) }) {
            Ok(Reply::Queue(state)) => assert_eq!(state.ready, count, "{name}"),
            other => panic!("{other:?}"),
        }
    }
    let message = &pull(&harness, &mut client, "t")[0];
    assert_eq!((message.body(), message.key()), (&b"x"[..], &b"tag"[..]));
    assert_eq!(message.native_sys_flag() & 0xC, 0x8);
    assert_eq!(property(message, "PGROUP"), Some("producers"));
    assert_eq!(property(message, "TRAN_MSG"), None);
    assert_eq!(property(message, "DELAY"), None);
    // The record names the half: prepared transaction offset, behind the reconsume times.
    let record = message.native_record();
    assert_eq!(record[76..84], stored.position.0.to_be_bytes());
    // A transaction ends once.
    assert_eq!(
        end(&harness, &mut client, stored, Verdict::Commit),
        TransactionEnd::NotFound
    );
    assert_eq!(pull(&harness, &mut client, "t").len(), 1);
}

#[test]
fn only_its_own_group_ends_a_transaction_and_only_with_its_number() {
    let harness = Harness::new();
    let mut client = harness.client();
    let stored = send(&harness, &mut client, half("t", "x", &[]));
    let second = send(&harness, &mut client, half("t", "y", &[]));
    assert_eq!((stored.queue_offset, second.queue_offset), (0, 1));
    let mut ask = |group: &str, offset: u64| {
        let end = EndTransaction {
            position: stored.position,
            offset,
            group: bytes(group),
            verdict: Verdict::Commit,
            from_check: false,
        };
        match client.ask(&harness.engine, Request::EndTransaction(end)) {
            Ok(Reply::Transaction(end)) => end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask("others", 0), TransactionEnd::OtherGroup);
    assert_eq!(ask("producers", 1), TransactionEnd::OtherOffset);
    assert_eq!(ask("producers", 0), TransactionEnd::Done);
}

#[test]
fn an_unended_transaction_is_asked_about_on_schedule_and_given_up_in_the_end() {
    let harness = Harness::new();
    let mut client = harness.client();
    join(&harness, &mut client);
    let stored = send(&harness, &mut client, half("t", "lost", &[]));
    pass(&harness, 5999);
    assert_eq!(asked(&mut client), []);
    pass(&harness, 1);
    assert_eq!(asked(&mut client), [stored.position]);
    assert_eq!(
        end(&harness, &mut client, stored, Verdict::Unknown),
        TransactionEnd::Done
    );
    for _ in 1..15 {
        pass(&harness, 29_999);
        assert_eq!(asked(&mut client), []);
        pass(&harness, 1);
        assert_eq!(asked(&mut client), [stored.position]);
    }
    pass(&harness, 30_000);
    assert_eq!(asked(&mut client), []);
    let lost = &pull(&harness, &mut client, "TRANS_CHECK_MAX_TIME_TOPIC")[0];
    assert_eq!(lost.body(), b"lost");
    assert_eq!(property(lost, "REAL_TOPIC"), Some("t"));
    assert_eq!(
        end(&harness, &mut client, stored, Verdict::Commit),
        TransactionEnd::NotFound
    );
    assert_eq!(bodies(&harness, &mut client, "t"), [""; 0]);
}

#[test]
fn immunity_puts_off_the_first_question_and_limits_ending_unasked() {
    let harness = Harness::new();
    let mut client = harness.client();
    join(&harness, &mut client);
    let mut publish = half("t", "x", &[("CHECK_IMMUNITY_TIME_IN_SECONDS", "60")]);
    publish.native.as_mut().unwrap().born_at = harness.clock.now().wall;
    let stored = send(&harness, &mut client, publish);
    pass(&harness, 59_999);
    assert_eq!(asked(&mut client), []);
    pass(&harness, 2);
    assert_eq!(asked(&mut client), [stored.position]);
    let late = EndTransaction {
        position: stored.position,
        offset: 0,
        group: bytes("producers"),
        verdict: Verdict::Commit,
        from_check: false,
    };
    let reply = client.ask(&harness.engine, Request::EndTransaction(late));
    assert!(
        matches!(reply, Ok(Reply::Transaction(TransactionEnd::TooLate))),
        "{reply:?}"
    );
    assert_eq!(
        end(&harness, &mut client, stored, Verdict::Commit),
        TransactionEnd::Done
    );
}

#[test]
fn another_member_of_the_group_is_asked_when_the_producer_is_gone() {
    let harness = Harness::new();
    let (mut first, mut second) = (harness.client(), harness.client());
    join(&harness, &mut first);
    join(&harness, &mut second);
    let stored = send(&harness, &mut first, half("t", "x", &[]));
    drop(first);
    pass(&harness, 6000);
    assert_eq!(asked(&mut second), [stored.position]);
    // Members are asked in turn.
    let mut third = harness.client();
    join(&harness, &mut third);
    let mut count = [0, 0];
    for _ in 0..6 {
        pass(&harness, 30_000);
        count[0] += asked(&mut second).len();
        count[1] += asked(&mut third).len();
    }
    assert_eq!(count, [3, 3]);
    let group = bytes("producers");
    third.ask(&harness.engine, Request::LeaveProducers { group }).unwrap();
    pass(&harness, 30_000);
    assert_eq!((asked(&mut second).len(), asked(&mut third).len()), (1, 0));
}

#[test]
fn half_messages_survive_a_kill_with_their_schedule() {
    for checkpoint in [false, true] {
        let harness = Harness::new();
        let mut client = harness.client();
        join(&harness, &mut client);
        let [done, open] = ["done", "open"].map(|body| send(&harness, &mut client, half("t", body, &[])));
        pass(&harness, 6000);
        assert_eq!(asked(&mut client).len(), 2);
        end(&harness, &mut client, done, Verdict::Commit);
        if checkpoint {
            harness.engine.checkpoint().unwrap();
        }
        let later = send(&harness, &mut client, half("t", "later", &[]));
        assert_eq!(later.queue_offset, 2);
        let harness = harness.kill_for(10_000);
        let mut client = harness.client();
        join(&harness, &mut client);
        assert_eq!(bodies(&harness, &mut client, "t"), ["done"]);
        assert_eq!(harness.engine.half_count(), 2);
        pass(&harness, 0);
        assert_eq!(
            asked(&mut client),
            [later.position],
            "asked about first 6 s after it was made"
        );
        pass(&harness, 20_000);
        assert_eq!(asked(&mut client), [open.position], "30 s after the last time");
        assert_eq!(end(&harness, &mut client, open, Verdict::Commit), TransactionEnd::Done);
        assert_eq!(
            end(&harness, &mut client, later, Verdict::Rollback),
            TransactionEnd::Done
        );
        assert_eq!(send(&harness, &mut client, half("t", "new", &[])).queue_offset, 3);
        let harness = harness.kill_for(0);
        let mut client = harness.client();
        assert_eq!(bodies(&harness, &mut client, "t"), ["done", "open"]);
        assert_eq!(harness.engine.half_count(), 1);
    }
}

#[test]
fn a_commit_is_recovered_with_what_it_ends_or_not_at_all() {
    let mut random = Random(5);
    for round in 0..60 {
        let harness = Harness::new();
        let mut client = harness.client();
        let body = "x".repeat(1 + random.below(60_000) as usize);
        let stored = send(&harness, &mut client, half("t", &body, &[]));
        client.request(Request::EndTransaction(EndTransaction {
            position: stored.position,
            offset: stored.queue_offset,
            group: bytes("producers"),
            verdict: Verdict::Commit,
            from_check: false,
        }));
        harness.storage.fail_after(random.below(4));
        let _ = harness.engine.sync_once();
        let harness = Harness::on(harness.storage.after_power_cut(&mut random), Config::default()).unwrap();
        let mut client = harness.client();
        let count = (harness.engine.half_count(), bodies(&harness, &mut client, "t").len());
        assert!(count == (1, 0) || count == (0, 1), "round {round}: {count:?}");
    }
}

// --- retry and dead-letter topics ---------------------------------------------------------------------

fn give_back(position: Position, level: i32, attempts_max: Option<i32>) -> Request {
    Request::GiveBack(Box::new(GiveBack {
        group: bytes("g"),
        position,
        level,
        attempts_max,
        id: bytes("ID"),
    }))
}

#[test]
fn a_message_given_back_comes_again_later_each_time_and_then_to_the_dead_letters() {
    let harness = Harness::new();
    let mut client = harness.client();
    let first = send(&harness, &mut client, native("t", "x", &[("TAGS", "tag")]));
    let mut position = first.position;
    for (attempt, delay) in [10, 30, 60, 120].into_iter().enumerate() {
        client.ask(&harness.engine, give_back(position, 0, Some(4))).unwrap();
        pass(&harness, delay * 1000 - 1);
        assert_eq!(pull(&harness, &mut client, "%RETRY%g").len(), attempt);
        pass(&harness, 1);
        let again = pull(&harness, &mut client, "%RETRY%g");
        assert_eq!(again.len(), attempt + 1);
        let again = &again[attempt];
        assert_eq!((again.body(), again.key()), (&b"x"[..], &b"tag"[..]));
        assert_eq!(again.native_record()[72..76], (attempt as u32 + 1).to_be_bytes());
        assert_eq!(property(again, "RETRY_TOPIC"), Some("t"));
        assert_eq!(property(again, "ORIGIN_MESSAGE_ID"), Some("ID"));
        assert_eq!(property(again, "DELAY"), None);
        position = again.position();
    }
    client.ask(&harness.engine, give_back(position, 0, Some(4))).unwrap();
    let dead = &pull(&harness, &mut client, "%DLQ%g")[0];
    assert_eq!(dead.body(), b"x");
    assert_eq!(property(dead, "DLQ_ORIGIN_TOPIC"), Some("t"));
    assert_eq!(property(dead, "DLQ_ORIGIN_MESSAGE_ID"), Some("ID"));
    assert_eq!(property(dead, "RETRY_TOPIC"), Some("t"));
    assert_eq!(pull(&harness, &mut client, "%RETRY%g").len(), 4);
}

#[test]
fn the_consumer_may_choose_the_level_or_the_end() {
    let harness = Harness::new();
    let mut client = harness.client();
    let position = send(&harness, &mut client, native("t", "x", &[])).position;
    client.ask(&harness.engine, give_back(position, 2, None)).unwrap();
    client.ask(&harness.engine, give_back(position, 99, None)).unwrap();
    pass(&harness, 5000);
    assert_eq!(pull(&harness, &mut client, "%RETRY%g").len(), 1);
    pass(&harness, 7_195_000);
    assert_eq!(pull(&harness, &mut client, "%RETRY%g").len(), 2);
    client.ask(&harness.engine, give_back(position, -1, None)).unwrap();
    assert_eq!(pull(&harness, &mut client, "%DLQ%g").len(), 1);
    let nowhere = Position(position.0 + 8);
    assert!(client.ask(&harness.engine, give_back(nowhere, 0, None)).is_err());
}

#[test]
fn a_group_has_its_own_retry_policy_also_after_a_kill() {
    let harness = Harness::new();
    let mut client = harness.client();
    let retry = Retry {
        attempts_max: 3,
        queues: 1,
        policy: RetryPolicy::Exponential {
            initial: Millis(200),
            max: Millis(500),
            multiplier: 2,
        },
    };
    let group = bytes("g");
    client.ask(&harness.engine, Request::SetRetry { group, retry }).unwrap();
    harness.engine.sync_once().unwrap();
    let harness = harness.kill_for(0);
    let mut client = harness.client();
    let mut position = send(&harness, &mut client, native("t", "x", &[])).position;
    for (attempt, delay) in [200, 400, 500].into_iter().enumerate() {
        client.ask(&harness.engine, give_back(position, 0, Some(-1))).unwrap();
        pass(&harness, delay - 1);
        assert_eq!(pull(&harness, &mut client, "%RETRY%g").len(), attempt);
        pass(&harness, 1);
        position = pull(&harness, &mut client, "%RETRY%g")[attempt].position();
    }
    client.ask(&harness.engine, give_back(position, 0, Some(-1))).unwrap();
    assert_eq!(pull(&harness, &mut client, "%DLQ%g").len(), 1);
}

#[test]
fn what_is_sent_to_a_retry_topic_too_often_is_dead() {
    let harness = Harness::new();
    let mut client = harness.client();
    let sent = |attempts: i32, max: Option<i32>| {
        let mut publish = native("%RETRY%g", "x", &[("DELAY", "4")]);
        publish.entry = Entry::Queue;
        let native = publish.native.as_mut().unwrap();
        native.reconsume_times = attempts;
        native.attempts_max = max;
        publish
    };
    for (attempts, max, dead) in [(16, None, 0), (17, None, 1), (3, Some(3), 1), (4, Some(3), 2)] {
        send(&harness, &mut client, sent(attempts, max));
        assert_eq!(
            pull(&harness, &mut client, "%DLQ%g").len(),
            dead,
            "{attempts} of {max:?}"
        );
    }
    // A group with a lock consumes in order: it has tried often enough itself.
    let lock = Request::LockQueues {
        group: bytes("g"),
        client_id: bytes("c"),
        queues: vec![(bytes("%RETRY%g"), 0)],
    };
    client.ask(&harness.engine, lock).unwrap();
    send(&harness, &mut client, sent(1, Some(3)));
    assert_eq!(pull(&harness, &mut client, "%DLQ%g").len(), 3);
}

#[test]
fn a_foreign_message_is_tried_again_too() {
    let harness = Harness::new();
    let mut client = harness.client();
    let foreign = Publish {
        detailed: true,
        ..message(Entry::Topic, "t", "k", "from elsewhere")
    };
    let position = send(&harness, &mut client, foreign).position;
    client.ask(&harness.engine, give_back(position, 1, None)).unwrap();
    pass(&harness, 1000);
    let again = &pull(&harness, &mut client, "%RETRY%g")[0];
    assert_eq!((again.body(), again.key()), (&b"from elsewhere"[..], &b"k"[..]));
    assert_eq!(property(again, "RETRY_TOPIC"), Some("t"));
}
