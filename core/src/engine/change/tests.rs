use bytes::Bytes;

use super::*;
use crate::address::{Level, Pattern};
use crate::attributes::Attributes;
use crate::message::{self, Format};
use crate::policy::{DeadLetter, HashOn, Overflow, Way};
use crate::request::{Destination, ExchangeKind, Headers, Matcher, RetryPolicy, Source};

fn name(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn policy() -> Box<Policy> {
    Box::new(Policy {
        message_ttl: Some(Millis(0)),
        expires: Some(Millis(7)),
        overflow: Overflow::RejectAndDeadLetter,
        priorities: 255,
        single_active: true,
        counts_attempts: true,
        delivery_limit: Some(20),
        dead_letter: Some(DeadLetter {
            way: Way::Queue,
            key: Some(name("k")),
        }),
        keeps_all: true,
    })
}

fn place() -> PopPlace {
    PopPlace {
        group: name("g"),
        topic: name("t"),
        queue: 2,
    }
}

fn samples() -> Vec<Change> {
    let binding = Binding {
        source: Source::Everything,
        matcher: Matcher::Pattern(Pattern {
            levels: vec![Level::Literal(name("a")), Level::One, Level::Many],
            spare_dollar: true,
        }),
        destination: Destination::Queue(name("q")),
        arguments: name("args"),
        cookie: name("cookie"),
    };
    let entry = Entry {
        position: Position(8),
        size: 80,
        word: 9,
    };
    let headers = Binding {
        source: Source::Exchange(name("e")),
        matcher: Matcher::Headers(Headers {
            all: true,
            wanted: name("w"),
        }),
        destination: Destination::Exchange(name("f")),
        ..binding.clone()
    };
    vec![
        Change::Exchange(Exchange {
            name: name("e"),
            kind: ExchangeKind::Headers,
            durable: true,
            auto_delete: false,
            internal: true,
            alternate: Some(Way::Exchange(name("ae"))),
            hash_on: HashOn::Property(name("h")),
            dedup: Some(crate::request::Dedup {
                property: name("p"),
                keys_max: 5,
                time: Some(Millis(9)),
            }),
            arguments: name("x"),
        }),
        Change::ExchangeGone(name("e")),
        Change::Queue {
            id: 7,
            queue: Queue {
                name: name("q"),
                durable: true,
                exclusive: false,
                auto_delete: true,
                addressable: true,
                limit: Limit {
                    messages: Some(5),
                    bytes: None,
                },
                policy: Some(policy()),
                arguments: name(""),
            },
        },
        Change::QueueGone { id: 7 },
        Change::Bound {
            queue: Some(7),
            binding: binding.clone(),
        },
        Change::Unbound {
            queue: None,
            binding: headers,
        },
        Change::Topic {
            name: name("t"),
            queues: 4,
        },
        Change::Group {
            group: name("g"),
            topic: name("t"),
        },
        Change::Offset {
            group: name("g"),
            topic: name("t"),
            queue_id: 1,
            offset: u64::MAX,
        },
        Change::Holder {
            name: name("c"),
            keep: 9,
        },
        Change::HolderGone(name("c")),
        Change::Half {
            position: Position(8),
            half: Half {
                size: 400,
                offset: 3,
                next: Millis(9),
                checks: 2,
            },
        },
        Change::HalfNumbers { next: 4 },
        Change::HalfChecked {
            position: Position(8),
            checks: 3,
            next: Millis(10),
        },
        Change::HalfDone { position: Position(8) },
        Change::Retry {
            group: name("g"),
            retry: Retry::default(),
        },
        Change::Retry {
            group: name("g"),
            retry: Retry {
                attempts_max: -1,
                queues: 2,
                policy: RetryPolicy::Exponential {
                    initial: Millis(1),
                    max: Millis(2),
                    multiplier: 3,
                },
            },
        },
        Change::Clock {
            ahead: -5,
            elapsed: Millis(7),
        },
        Change::Fired {
            axis: Axis::Absolute,
            before: 9,
            positions: vec![Position(8), Position(16)],
        },
        Change::TimerMoved {
            axis: Axis::Absolute,
            due: 9,
            first: Position(8),
            from: Position(16),
            to: Position(24),
        },
        Change::TimerRecalled {
            axis: Axis::Relative,
            due: 1,
            position: Position(8),
        },
        Change::Timers {
            axis: Axis::Relative,
            minute: 3,
            end: Position(800),
            timers: name("timers"),
        },
        Change::KeysOpen {
            scope: Scope::Address(name("t")),
            keys: vec![OpenKey {
                fingerprint: 1 << 100,
                position: Position(8),
                closes_at: u64::MAX,
            }],
        },
        Change::PopState {
            place: place(),
            head: 1,
            next: 9,
            acked: vec![(3, 2)],
        },
        Change::PopAcked {
            place: place(),
            ranges: vec![(1, 2), (5, 1)],
        },
        Change::PopReturned {
            place: place(),
            runs: vec![(1, 2, 3)],
        },
        Change::Reset {
            group: name("g"),
            topic: name("t"),
            queue_id: 1,
            offset: 7,
        },
        Change::KeyClosed {
            holder: name("c"),
            number: 7,
        },
        Change::Consumed { id: 3 },
        Change::Note {
            id: 1,
            sequence: 2,
            note: 3,
        },
        Change::Will {
            holder: name("c"),
            will: Box::new(Will {
                delay: Millis(5),
                entry: message::Entry::Topic,
                topic: name("t"),
                key: name("k"),
                body: name("gone"),
                attributes: Attributes::encoded(name("attributes")),
                format: Format(2),
                origin: name("origin"),
                persistent: true,
                retain: false,
            }),
        },
        Change::WillGone(name("c")),
        Change::Member {
            holder: name("c"),
            id: 4,
            cookie: name("cookie"),
        },
        Change::MemberGone {
            holder: name("c"),
            id: 4,
        },
        Change::Recalled {
            id: 4,
            first: 5,
            entries: vec![entry; 2],
        },
        Change::Retained {
            address: name("t"),
            entry,
        },
        Change::Stopped {
            delivered: vec![(1, 2), (3, 4)],
        },
        Change::QueueAltered {
            id: 1,
            limit: Limit::NONE,
            policy: None,
        },
        Change::Attempts {
            id: 1,
            runs: vec![(5, 2, 1)],
        },
        Change::Expiring { id: 1 },
        Change::Purged {
            id: 1,
            ranges: vec![(5, 2)],
        },
        Change::Page {
            list: 1,
            number: 2,
            done: 3,
            first: 4,
            mixed: true,
            stored: None,
            entries: name("entries"),
        },
        Change::Tail {
            list: 1,
            head: 2,
            start: 3,
            done: 4,
            bytes: 5,
            entries: name("entries"),
        },
        Change::Numbers { next_queue: 3 },
        Change::Segment {
            number: 1,
            keep_until: 2,
            pinned: 3,
        },
        Change::TopicAt {
            id: 1,
            name: name("t"),
            queues: 4,
        },
    ]
}

#[test]
fn every_change_reads_back_and_no_truncation_panics() {
    for change in samples() {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        assert_eq!(Change::decode(&bytes), Some(change));
        for cut in 0..bytes.len() {
            assert_eq!(Change::decode(&bytes[..cut]), None);
        }
    }
}

/// A broker reads what an earlier one wrote. A line for each of [`samples`], in their order.
#[test]
fn every_change_stands_on_the_disk_byte_for_byte_as_before() {
    let lines = include_str!("samples.hex").lines();
    assert_eq!(lines.clone().count(), samples().len());
    for (change, line) in samples().into_iter().zip(lines) {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, line, "{change:?}");
    }
}
