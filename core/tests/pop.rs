//! Popping by native groups: leases that end by themselves, message groups in order, progress; and how groups are
//! reset, how far behind they are, and what locks do.

mod support;

use std::sync::Arc;

use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::Config;
use rocketbridge_core::filter::{Names, Sql};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::properties;
use rocketbridge_core::request::*;
use rocketbridge_core::time::Millis;
use support::*;

fn native_to(topic: &str, queue: u32, properties: &[(&str, &str)], body: &str) -> Publish {
    let mut origin = Vec::new();
    for (name, value) in properties {
        properties::push(&mut origin, name.as_bytes(), value.as_bytes());
    }
    Publish {
        format: Format::NATIVE,
        origin: origin.into(),
        native: Some(Box::new(Native {
            queue_id: Some(queue),
            topic_queues: 2,
            ..Native::default()
        })),
        ..message(Entry::Native, topic, "", body)
    }
}

fn send(client: &mut Client, bodies: &[&str]) {
    for body in bodies {
        client.publish(native_to("t", 0, &[], body));
    }
}

/// Sends `key:body` words, the keys being message groups.
fn send_in_groups(client: &mut Client, words: &str) {
    for word in words.split(' ') {
        let (group, _) = word.split_once(':').unwrap();
        client.publish(native_to("t", 0, &[("__SHARDINGKEY", group)], word));
    }
}

fn pop_of(messages_max: u32) -> Pop {
    Pop {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: Some(0),
        messages_max,
        bytes_max: 1 << 20,
        invisible: Millis(10_000),
        filter: None,
        from: PopFrom::Begin,
        in_order: false,
        attempt: bytes(""),
        hold: false,
    }
}

fn popped(result: Result<Reply, Refusal>) -> Popped {
    match result {
        Ok(Reply::Popped(popped)) => *popped,
        other => panic!("{other:?}"),
    }
}

fn take(client: &mut Client, harness: &Harness, pop: Pop) -> Vec<PoppedMessage> {
    popped(client.ask(&harness.engine, Request::Pop(pop))).messages
}

fn text(message: &PoppedMessage) -> String {
    String::from_utf8(message.message.body().to_vec()).unwrap()
}

fn texts(messages: &[PoppedMessage]) -> Vec<String> {
    messages.iter().map(text).collect()
}

fn held(message: &PoppedMessage) -> Held {
    Held {
        queue_id: message.queue_id,
        offset: message.offset,
        lease: message.lease,
    }
}

fn ack(client: &mut Client, harness: &Harness, messages: &[PoppedMessage]) -> Vec<bool> {
    let ack = AckPopped {
        group: bytes("g"),
        topic: bytes("t"),
        messages: messages.iter().map(held).collect(),
    };
    match client.ask(&harness.engine, Request::AckPopped(ack)) {
        Ok(Reply::Settled(settled)) => settled,
        other => panic!("{other:?}"),
    }
}

fn change(client: &mut Client, harness: &Harness, message: &PoppedMessage, invisible: u64) -> Result<Reply, Refusal> {
    let change = ChangeInvisible {
        group: bytes("g"),
        topic: bytes("t"),
        message: held(message),
        invisible: Millis(invisible),
    };
    client.ask(&harness.engine, Request::ChangeInvisible(change))
}

fn committed(client: &mut Client, harness: &Harness) -> Option<u64> {
    let request = Request::CommittedOffset {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 0,
    };
    match client.ask(&harness.engine, request) {
        Ok(Reply::Offset(offset)) => offset,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_popped_message_is_invisible_until_its_time_is_over() {
    let harness = Harness::new();
    let (mut one, mut two) = (harness.client(), harness.client());
    send(&mut one, &["a", "b", "c"]);
    let first = take(&mut one, &harness, pop_of(2));
    assert_eq!(texts(&first), ["a", "b"]);
    assert!(
        first
            .iter()
            .all(|message| message.attempts == 0 && !message.redelivered)
    );
    assert_eq!(texts(&take(&mut two, &harness, pop_of(9))), ["c"]);
    harness.clock.advance(9_999);
    assert!(take(&mut two, &harness, pop_of(9)).is_empty());
    harness.clock.advance(1);
    let again = take(&mut two, &harness, pop_of(9));
    assert_eq!(texts(&again), ["a", "b", "c"]);
    assert!(again.iter().all(|message| message.attempts == 1 && message.redelivered));
}

#[test]
fn acked_messages_never_come_again_and_the_committed_offset_is_the_first_that_is_not() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["a", "b", "c", "d"]);
    let messages = take(&mut client, &harness, pop_of(9));
    let middle = [messages[1].clone(), messages[3].clone()];
    assert_eq!(ack(&mut client, &harness, &middle), [true, true]);
    assert_eq!(committed(&mut client, &harness), Some(0));
    assert_eq!(ack(&mut client, &harness, &messages[..1]), [true]);
    assert_eq!(committed(&mut client, &harness), Some(2));
    // A message is settled once.
    assert_eq!(ack(&mut client, &harness, &messages[..2]), [false, false]);
    harness.clock.advance(10_000);
    assert_eq!(texts(&take(&mut client, &harness, pop_of(9))), ["c"]);
}

#[test]
fn acks_of_popped_messages_survive_a_crash_and_the_rest_comes_again() {
    for with_checkpoint in [false, true] {
        let harness = Harness::new();
        let mut client = harness.client();
        send(&mut client, &["a", "b", "c", "d", "e"]);
        let messages = take(&mut client, &harness, pop_of(4));
        ack(&mut client, &harness, &messages[1..3]);
        if with_checkpoint {
            harness.engine.checkpoint().unwrap();
        }
        harness.engine.sync_once().unwrap();
        drop(client);
        let harness = harness.kill();
        let mut client = harness.client();
        let again = take(&mut client, &harness, pop_of(9));
        assert_eq!(texts(&again), ["a", "d", "e"]);
        assert!(again.iter().all(|message| message.redelivered));
        // The new lease counts, an old number does not.
        assert_eq!(ack(&mut client, &harness, &messages[..1]), [false]);
        assert_eq!(ack(&mut client, &harness, &again), [true, true, true]);
        assert_eq!(committed(&mut client, &harness), Some(5));
    }
}

#[test]
fn what_was_popped_before_a_crash_can_be_settled_after_it() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["a", "b", "c"]);
    let messages = take(&mut client, &harness, pop_of(3));
    harness.engine.sync_once().unwrap();
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    assert_eq!(ack(&mut client, &harness, &messages[1..2]), [true]);
    assert_eq!(texts(&take(&mut client, &harness, pop_of(9))), ["a", "c"]);
}

#[test]
fn attempts_are_counted_over_a_restart() {
    let mut harness = Harness::new();
    send(&mut harness.client(), &["a"]);
    for attempts in 0..4 {
        let mut client = harness.client();
        let messages = take(&mut client, &harness, pop_of(1));
        assert_eq!(messages[0].attempts, attempts);
        harness.clock.advance(10_000);
        harness.engine.tick();
        drop(client);
        harness = harness.restart();
    }
}

#[test]
fn a_lease_that_ended_can_be_settled_as_long_as_nobody_else_has_the_message() {
    let harness = Harness::new();
    let (mut one, mut two) = (harness.client(), harness.client());
    send(&mut one, &["a", "b"]);
    let messages = take(&mut one, &harness, pop_of(2));
    harness.clock.advance(10_000);
    let other = take(&mut two, &harness, pop_of(1));
    assert_eq!(texts(&other), ["a"]);
    assert_eq!(ack(&mut one, &harness, &messages), [false, true]);
    assert_eq!(ack(&mut two, &harness, &other), [true]);
    assert_eq!(committed(&mut one, &harness), Some(2));
}

#[test]
fn a_changed_invisible_time_counts_from_then_on_and_the_old_number_is_worth_nothing() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["a", "b", "c"]);
    let mut messages = take(&mut client, &harness, pop_of(3));
    let lease = match change(&mut client, &harness, &messages[1], 60_000) {
        Ok(Reply::Lease(lease)) => lease,
        other => panic!("{other:?}"),
    };
    let refused = change(&mut client, &harness, &messages[1], 60_000).unwrap_err();
    assert_eq!(refused, Refusal::LeaseEnded);
    harness.clock.advance(10_000);
    assert_eq!(texts(&take(&mut client, &harness, pop_of(9))), ["a", "c"]);
    messages[1].lease = lease;
    // Given back at once.
    assert!(matches!(
        change(&mut client, &harness, &messages[1], 0),
        Ok(Reply::Lease(0))
    ));
    assert_eq!(texts(&take(&mut client, &harness, pop_of(9))), ["b"]);
}

#[test]
fn after_the_most_attempts_a_popped_message_is_dead_lettered() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.publish(native_to("t", 0, &[("UNIQ_KEY", "u1")], "poison"));
    for attempt in 0..=16 {
        let messages = take(&mut client, &harness, pop_of(1));
        assert_eq!(
            (texts(&messages), messages[0].attempts),
            (vec!["poison".to_owned()], attempt)
        );
        harness.clock.advance(10_000);
    }
    assert!(take(&mut client, &harness, pop_of(1)).is_empty());
    assert_eq!(committed(&mut client, &harness), Some(1));
    let dead = Pop {
        topic: bytes("%DLQ%g"),
        ..pop_of(9)
    };
    let dead = take(&mut client, &harness, dead);
    assert_eq!(texts(&dead), ["poison"]);
    let properties = dead[0].message.native_properties();
    assert_eq!(properties::find(properties, b"DLQ_ORIGIN_TOPIC"), Some(&b"t"[..]));
    assert_eq!(properties::find(properties, b"DLQ_ORIGIN_MESSAGE_ID"), Some(&b"u1"[..]));
}

#[test]
fn a_group_has_only_so_many_messages_of_a_message_queue_leased() {
    const LEASED_MAX: usize = 100_000;
    let harness = Harness::new();
    let mut client = harness.client();
    for _ in 0..=LEASED_MAX {
        client.publish(native_to("t", 0, &[], ""));
        if client.next_token.is_multiple_of(10_000) {
            harness.engine.sync_once().unwrap();
            client.events();
        }
    }
    let mut leased = Vec::new();
    loop {
        let found = take(&mut client, &harness, pop_of(1024));
        if found.is_empty() {
            break;
        }
        leased.extend(found.iter().map(held));
    }
    assert_eq!(leased.len(), LEASED_MAX);
    let done = AckPopped {
        group: bytes("g"),
        topic: bytes("t"),
        messages: leased[7..8].to_vec(),
    };
    client.ask(&harness.engine, Request::AckPopped(done)).unwrap();
    let last = take(&mut client, &harness, pop_of(1024));
    assert_eq!(last.iter().map(|m| m.offset).collect::<Vec<_>>(), [LEASED_MAX as u64]);
}

fn in_order(messages_max: u32, attempt: &str) -> Pop {
    Pop {
        in_order: true,
        attempt: bytes(attempt),
        ..pop_of(messages_max)
    }
}

#[test]
fn in_order_a_message_group_waits_for_its_leased_messages_and_others_do_not() {
    let harness = Harness::new();
    let mut client = harness.client();
    send_in_groups(&mut client, "a:1 a:2 b:1 a:3 b:2 c:1");
    let first = take(&mut client, &harness, in_order(2, ""));
    assert_eq!(texts(&first), ["a:1", "a:2"]);
    let second = take(&mut client, &harness, in_order(9, ""));
    assert_eq!(texts(&second), ["b:1", "b:2", "c:1"]);
    assert_eq!(ack(&mut client, &harness, &first[..1]), [true]);
    assert!(take(&mut client, &harness, in_order(9, "")).is_empty());
    assert_eq!(ack(&mut client, &harness, &first[1..]), [true]);
    assert_eq!(texts(&take(&mut client, &harness, in_order(9, ""))), ["a:3"]);
}

#[test]
fn in_order_the_same_messages_come_again_before_any_that_follow() {
    let harness = Harness::new();
    let mut client = harness.client();
    send_in_groups(&mut client, "a:1 a:2 a:3 a:4");
    for round in 0..3 {
        let messages = take(&mut client, &harness, in_order(2, ""));
        assert_eq!(texts(&messages), ["a:1", "a:2"], "round {round}");
        harness.clock.advance(10_000);
    }
    let messages = take(&mut client, &harness, in_order(2, ""));
    ack(&mut client, &harness, &messages[1..]);
    harness.clock.advance(10_000);
    assert_eq!(
        texts(&take(&mut client, &harness, in_order(9, ""))),
        ["a:1", "a:3", "a:4"]
    );
}

#[test]
fn the_same_attempt_again_gets_the_same_messages() {
    let harness = Harness::new();
    let mut client = harness.client();
    send_in_groups(&mut client, "a:1 a:2 a:3");
    let first = take(&mut client, &harness, in_order(2, "try-1"));
    assert!(take(&mut client, &harness, in_order(2, "try-2")).is_empty());
    let again = take(&mut client, &harness, in_order(2, "try-1"));
    assert_eq!(texts(&again), ["a:1", "a:2"]);
    assert!(again.iter().all(|message| message.attempts == 0));
    assert_eq!(ack(&mut client, &harness, &first), [false, false]);
    assert_eq!(ack(&mut client, &harness, &again), [true, true]);
}

#[test]
fn a_pop_passes_what_its_filter_does_not_take() {
    let harness = Harness::new();
    let mut client = harness.client();
    for n in 0..6 {
        client.publish(native_to("t", 0, &[("n", &n.to_string())], &format!("m{n}")));
    }
    let sql = Sql::compile("n between 2 and 3", Names::Native).unwrap();
    let pop = Pop {
        filter: Some(Filter::Sql(Arc::new(sql))),
        ..pop_of(9)
    };
    let messages = take(&mut client, &harness, pop);
    assert_eq!(texts(&messages), ["m2", "m3"]);
    ack(&mut client, &harness, &messages);
    assert_eq!(committed(&mut client, &harness), Some(6));
}

#[test]
fn a_pop_of_all_message_queues_takes_from_each() {
    let harness = Harness::new();
    let mut client = harness.client();
    for queue in [0, 1, 0, 1] {
        client.publish(native_to("t", queue, &[], "m"));
    }
    let all = Pop {
        queue_id: None,
        ..pop_of(3)
    };
    let Popped {
        messages, remaining, ..
    } = popped(client.ask(&harness.engine, Request::Pop(all.clone())));
    assert_eq!((messages.len(), remaining), (3, 1));
    let rest = take(&mut client, &harness, all);
    let mut places: Vec<_> = messages.iter().chain(&rest).map(|m| (m.queue_id, m.offset)).collect();
    places.sort_unstable();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn a_new_group_begins_where_it_says_and_stays_there_over_a_crash() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["old"]);
    let end = || Pop {
        from: PopFrom::End,
        ..pop_of(9)
    };
    assert!(take(&mut client, &harness, end()).is_empty());
    send(&mut client, &["new"]);
    harness.engine.sync_once().unwrap();
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    assert_eq!(texts(&take(&mut client, &harness, end())), ["new"]);
}

fn answers(client: &mut Client) -> Vec<Vec<String>> {
    let reply = |event| match event {
        Event::Reply { result, .. } => Some(texts(&popped(result).messages)),
        _ => None,
    };
    client.events().into_iter().filter_map(reply).collect()
}

#[test]
fn a_held_pop_is_answered_by_a_new_message_and_by_one_that_comes_back() {
    let harness = Harness::new();
    let (mut one, mut two) = (harness.client(), harness.client());
    send(&mut one, &["a"]);
    take(&mut one, &harness, pop_of(1));
    let waiting = || Pop {
        hold: true,
        ..pop_of(9)
    };
    two.request(Request::Pop(waiting()));
    assert!(answers(&mut two).is_empty());
    send(&mut one, &["b"]);
    assert_eq!(answers(&mut two), [["b"]]);
    two.request(Request::Pop(waiting()));
    assert_eq!(harness.engine.next_deadline(), Some(Millis(10_000)));
    harness.clock.advance(10_000);
    harness.engine.fire();
    assert_eq!(answers(&mut two), [["a", "b"]]);
    // Nobody waits for ever, and who is gone takes nothing.
    let id = two.request(Request::Pop(waiting()));
    two.link.cancel(id);
    assert_eq!(answers(&mut two), [Vec::<String>::new()]);
    two.request(Request::Pop(waiting()));
    drop(two);
    send(&mut one, &["c"]);
    assert_eq!(texts(&take(&mut one, &harness, pop_of(9))), ["c"]);
}

#[test]
fn popping_agrees_with_a_model_under_random_operations_and_crashes() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let mut harness = Harness::new();
        let (mut sent, mut done) = (0u64, Vec::new());
        let mut leased: Vec<(PoppedMessage, u64)> = Vec::new();
        let mut client = harness.client();
        let mut time = 0;
        for _ in 0..200 {
            match random.below(8) {
                0 | 1 => {
                    client.publish(native_to("t", 0, &[], &sent.to_string()));
                    sent += 1;
                }
                2..=4 if sent > 0 => {
                    let found = take(&mut client, &harness, pop_of(1 + random.below(4) as u32));
                    for message in found {
                        assert!(
                            !done.contains(&message.offset),
                            "seed {seed}: {} came again",
                            message.offset
                        );
                        let is_leased = leased
                            .iter()
                            .any(|(l, until)| l.offset == message.offset && *until > time);
                        assert!(!is_leased, "seed {seed}: {} was leased", message.offset);
                        leased.retain(|(l, _)| l.offset != message.offset);
                        leased.push((message, time + 10_000));
                    }
                }
                5 if !leased.is_empty() => {
                    let at = random.below(leased.len() as u64) as usize;
                    let (message, _) = leased.remove(at);
                    assert_eq!(
                        ack(&mut client, &harness, std::slice::from_ref(&message)),
                        [true],
                        "seed {seed}"
                    );
                    done.push(message.offset);
                }
                6 => {
                    let millis = random.below(4_000);
                    harness.clock.advance(millis);
                    time += millis;
                }
                7 if random.below(4) == 0 => {
                    if random.below(2) == 0 {
                        harness.engine.checkpoint().unwrap();
                    }
                    harness.engine.sync_once().unwrap();
                    drop(client);
                    harness = harness.kill();
                    client = harness.client();
                    (time, leased) = (0, Vec::new());
                }
                _ => {}
            }
        }
        harness.clock.advance(10_000);
        let mut rest: Vec<u64> = Vec::new();
        // Without a message there is no topic.
        for _ in 0..sent {
            let found = take(&mut client, &harness, pop_of(100));
            if found.is_empty() {
                break;
            }
            rest.extend(found.iter().map(|message| message.offset));
        }
        rest.extend(&done);
        rest.sort_unstable();
        assert_eq!(rest, (0..sent).collect::<Vec<_>>(), "seed {seed}");
    }
}

// --- reset and lag --------------------------------------------------------------------------------------

fn pull(offset: u64, hold: bool) -> Request {
    Request::Pull(Pull {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 0,
        offset,
        messages_max: 32,
        bytes_max: 1 << 20,
        filter: Some(Filter::All),
        hold,
    })
}

fn commit(offset: u64) -> Request {
    Request::CommitOffset {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 0,
        offset,
    }
}

fn reset(to: ResetTo) -> Request {
    Request::ResetOffset {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: Some(0),
        to,
    }
}

/// Status and the offset to go on at.
fn pulled(result: Result<Reply, Refusal>) -> (PullStatus, u64) {
    match result {
        Ok(Reply::Pulled(pulled)) => (pulled.status, pulled.next_offset),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reset_of_a_message_queue_that_is_not_there_is_refused() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["a"]);
    client.ask(&harness.engine, commit(0)).unwrap();
    for queue_id in [2, u32::MAX] {
        let reset = Request::ResetOffset {
            group: bytes("g"),
            topic: bytes("t"),
            queue_id: Some(queue_id),
            to: ResetTo::End,
        };
        let result = client.ask(&harness.engine, reset);
        assert!(matches!(result, Err(Refusal::Invalid(_))), "{queue_id}: {result:?}");
    }
}

#[test]
fn a_reset_by_time_is_told_by_the_next_pull_and_commits_from_before_are_ignored() {
    let harness = Harness::new();
    let mut client = harness.client();
    for n in 0..5 {
        send(&mut client, &[&n.to_string()]);
        harness.clock.advance(1_000);
    }
    client.ask(&harness.engine, commit(5)).unwrap();
    let at = Millis(1_700_000_000_000 + 1_500);
    let places = client.ask(&harness.engine, reset(ResetTo::Time(at)));
    assert!(matches!(places, Ok(Reply::Places(places)) if places == [(0, 2)]));
    client.ask(&harness.engine, commit(5)).unwrap();
    assert_eq!(committed(&mut client, &harness), Some(2));

    // Told also after a crash, and once only.
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    client.ask(&harness.engine, commit(5)).unwrap();
    let result = client.ask(&harness.engine, pull(5, false));
    assert_eq!(pulled(result), (PullStatus::OffsetReset, 2));
    let result = client.ask(&harness.engine, pull(2, false));
    assert_eq!(pulled(result), (PullStatus::Found, 5));
    client.ask(&harness.engine, commit(4)).unwrap();
    assert_eq!(committed(&mut client, &harness), Some(4));
    harness.engine.sync_once().unwrap();
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    assert_eq!(committed(&mut client, &harness), Some(4));
    let result = client.ask(&harness.engine, pull(4, false));
    assert_eq!(pulled(result), (PullStatus::Found, 5));
}

#[test]
fn a_reset_ends_the_wait_of_a_held_pull() {
    let harness = Harness::new();
    let (mut consumer, mut tool) = (harness.client(), harness.client());
    send(&mut tool, &["a", "b"]);
    let unknown = tool.ask(&harness.engine, reset(ResetTo::End)).unwrap_err();
    assert!(matches!(unknown, Refusal::NotFound { what: "group", .. }));
    tool.ask(&harness.engine, commit(1)).unwrap();
    consumer.request(pull(2, true));
    assert!(consumer.events().is_empty());
    tool.ask(&harness.engine, reset(ResetTo::Offset(0))).unwrap();
    let told = consumer.events().into_iter().find_map(|event| match event {
        Event::Reply { result, .. } => Some(pulled(result)),
        _ => None,
    });
    assert_eq!(told, Some((PullStatus::OffsetReset, 0)));
}

#[test]
fn a_reset_of_a_group_that_pops_ends_its_leases() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["a", "b", "c"]);
    let messages = take(&mut client, &harness, pop_of(2));
    ack(&mut client, &harness, &messages[..1]);
    client.ask(&harness.engine, reset(ResetTo::Offset(0))).unwrap();
    assert_eq!(ack(&mut client, &harness, &messages[1..]), [false]);
    assert_eq!(texts(&take(&mut client, &harness, pop_of(9))), ["a", "b", "c"]);
    client.ask(&harness.engine, reset(ResetTo::End)).unwrap();
    assert!(take(&mut client, &harness, pop_of(9)).is_empty());
    drop(client);
    let harness = harness.kill();
    let mut client = harness.client();
    assert!(take(&mut client, &harness, pop_of(9)).is_empty());
}

fn join(client: &mut Client, harness: &Harness, broadcasting: bool) {
    let join = Request::JoinConsumers(Join {
        group: bytes("g"),
        client_id: bytes("c"),
        broadcasting,
        subscriptions: vec![],
    });
    client.ask(&harness.engine, join).unwrap();
}

#[test]
fn a_broadcasting_group_is_not_reset() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["a"]);
    join(&mut client, &harness, true);
    let refused = client.ask(&harness.engine, reset(ResetTo::End)).unwrap_err();
    assert!(matches!(refused, Refusal::Invalid(_)));
    let result = client.ask(&harness.engine, pull(0, false));
    assert_eq!(pulled(result), (PullStatus::Found, 1));
}

#[test]
fn lag_says_how_far_a_group_has_come_whether_it_pulls_or_pops() {
    let harness = Harness::new();
    let mut client = harness.client();
    send(&mut client, &["a", "b", "c"]);
    let lag = |client: &mut Client| match client.ask(
        &harness.engine,
        Request::Lag {
            group: bytes("g"),
            topic: bytes("t"),
        },
    ) {
        Ok(Reply::Lag(lags)) => lags,
        other => panic!("{other:?}"),
    };
    let lags = lag(&mut client);
    assert_eq!((lags.len(), lags[0].end, lags[0].committed), (2, 3, None));
    client.ask(&harness.engine, commit(2)).unwrap();
    let stored_at = Some(Millis(1_700_000_000_000));
    let expected = QueueLag {
        queue_id: 0,
        end: 3,
        committed: Some(2),
        leased: 0,
        stored_at,
    };
    assert_eq!(lag(&mut client)[0], expected);
    assert_eq!(texts(&take(&mut client, &harness, pop_of(9))), ["c"]);
    assert_eq!(lag(&mut client)[0], QueueLag { leased: 1, ..expected });
}

// --- locks ----------------------------------------------------------------------------------------------

fn lock(client: &mut Client, harness: &Harness, client_id: &str) -> usize {
    let request = Request::LockQueues {
        group: bytes("g"),
        client_id: bytes(client_id),
        queues: vec![(bytes("t"), 0)],
    };
    match client.ask(&harness.engine, request) {
        Ok(Reply::Locked(queues)) => queues.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_queue_lock_outlives_its_connection_but_not_its_client_s_goodbye() {
    let harness = Harness::new();
    let (mut one, mut two) = (harness.client(), harness.client());
    send(&mut one, &["a"]);
    join(&mut one, &harness, false);
    assert_eq!(lock(&mut one, &harness, "c"), 1);
    drop(one);
    assert_eq!(lock(&mut two, &harness, "d"), 0);
    harness.clock.advance(60_000);
    assert_eq!(lock(&mut two, &harness, "d"), 1);
    let leave = Request::LeaveConsumers {
        group: bytes("g"),
        client_id: bytes("d"),
    };
    two.ask(&harness.engine, leave).unwrap();
    assert_eq!(lock(&mut two, &harness, "e"), 1);
}

/// Retention takes messages away while a group has them leased: when the lease ends there is nothing to come back, and
/// nothing in the way of what follows.
#[test]
fn what_retention_took_from_a_lease_is_not_in_the_way_of_later_messages() {
    const LEASED: usize = 1000;
    let config = Config {
        retention: Millis(60_000),
        checkpoint_bytes: u64::MAX,
        ..Config::default()
    };
    let harness = Harness::on(CrashStorage::default(), config).unwrap();
    let mut client = harness.client();
    for _ in 0..LEASED {
        client.publish(native_to("t", 0, &[], &"x".repeat(1000)));
    }
    let long = |messages_max| Pop {
        bytes_max: u32::MAX,
        invisible: Millis(200_000),
        ..pop_of(messages_max)
    };
    let leased = [(); 2].map(|()| take(&mut client, &harness, long(1024)).len());
    assert_eq!(leased.iter().sum::<usize>(), LEASED);
    // Everything but the newest segment is given up; somebody pops meanwhile.
    harness.clock.advance(100_000);
    for _ in 0..4 {
        harness.clock.advance(20_000);
        harness.engine.maintain().unwrap();
    }
    send(&mut client, &["between"]);
    assert_eq!(texts(&take(&mut client, &harness, pop_of(1))), ["between"]);
    // All leases end.
    harness.clock.advance(400_000);
    let left = take(&mut client, &harness, long(1024));
    assert!(left.len() < LEASED / 10, "{} are still there", left.len());
    assert_eq!(ack(&mut client, &harness, &left), vec![true; left.len()]);
    send(&mut client, &["after"]);
    let result = popped(client.ask(&harness.engine, Request::Pop(pop_of(1))));
    assert_eq!(texts(&result.messages), ["after"]);
    assert_eq!(result.remaining, 0);
}
