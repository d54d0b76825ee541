//! Durable changes to topology, offsets and holders: what a `Change` record holds (`FORMAT.md`, "Change").

use bytes::{BufMut, Bytes};

use crate::address::{Level, Pattern};
use crate::attributes::Attributes;
use crate::engine::dedup::{OpenKey, Scope};
use crate::engine::policy_codec::{put_alternate, put_dedup, put_hash_on, put_limit, put_policy};
use crate::engine::pop::PopPlace;
use crate::engine::progress::Entry;
use crate::engine::timers::Axis;
use crate::engine::transactions::Half;
use crate::message::{self, Format};
use crate::policy::{Limit, Policy};
use crate::request::{
    Binding, Destination, Exchange, ExchangeKind, Headers, Matcher, Queue, Retry, RetryPolicy, Source, Will,
};
use crate::store::record::Position;
use crate::time::Millis;

/// Stands for no queue.
const NO_QUEUE: u32 = u32::MAX;

/// One durable change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Exchange(Exchange),
    ExchangeGone(Bytes),
    Queue {
        id: u32,
        queue: Queue,
    },
    QueueGone {
        id: u32,
    },
    /// With the number of the queue it leads to, if it leads to one: names are used again.
    Bound {
        queue: Option<u32>,
        binding: Binding,
    },
    Unbound {
        queue: Option<u32>,
        binding: Binding,
    },
    Topic {
        name: Bytes,
        queues: u32,
    },
    /// A group registered on a topic: from now on the topic's transient messages are kept for it.
    Group {
        group: Bytes,
        topic: Bytes,
    },
    Offset {
        group: Bytes,
        topic: Bytes,
        queue_id: u32,
        offset: u64,
    },
    /// A named session that outlives its connection; its queue is a `Queue` of its own.
    Holder {
        name: Bytes,
        keep: u64,
    },
    HolderGone(Bytes),
    /// The queue had its first consumer: after a crash its entries may have been delivered.
    Consumed {
        id: u32,
    },
    /// What a named session wrote on a lease; 0 takes it away.
    Note {
        id: u32,
        sequence: u64,
        note: u32,
    },
    /// What is published when a named session's client is lost.
    Will {
        holder: Bytes,
        will: Box<Will>,
    },
    /// It was published, or is not to be any more.
    WillGone(Bytes),
    /// A named session is a member of a shared queue.
    Member {
        holder: Bytes,
        id: u32,
        cookie: Bytes,
    },
    MemberGone {
        holder: Bytes,
        id: u32,
    },
    /// A queue got last values that were there already, one after the other from that sequence on.
    Recalled {
        id: u32,
        first: u64,
        entries: Vec<Entry>,
    },
    /// The last value of an address, for records that do not say it themselves and for checkpoints.
    Retained {
        address: Bytes,
        entry: Entry,
    },
    /// Dedup keys are open, for checkpoints.
    KeysOpen {
        scope: Scope,
        keys: Vec<OpenKey>,
    },
    /// A named session closed one of its dedup keys.
    KeyClosed {
        holder: Bytes,
        number: u64,
    },
    /// A group's progress with a message queue that it pops from.
    PopState {
        place: PopPlace,
        head: u64,
        next: u64,
        acked: Vec<(u64, u64)>,
    },
    /// Popped messages are done with: first, count.
    PopAcked {
        place: PopPlace,
        ranges: Vec<(u64, u64)>,
    },
    /// Popped messages came back so often: first, count, attempts.
    PopReturned {
        place: PopPlace,
        runs: Vec<(u64, u64, u32)>,
    },
    /// A group goes on from another offset.
    Reset {
        group: Bytes,
        topic: Bytes,
        queue_id: u32,
        offset: u64,
    },
    /// The last change of a clean stop: up to where each queue's entries had been handed out.
    Stopped {
        delivered: Vec<(u32, u64)>,
    },
    /// A queue has another limit and policy.
    QueueAltered {
        id: u32,
        limit: Limit,
        policy: Option<Box<Policy>>,
    },
    /// Messages came back so often: first sequence, count, attempts.
    Attempts {
        id: u32,
        runs: Vec<(u64, u64, u32)>,
    },
    /// Messages of the queue may expire.
    Expiring {
        id: u32,
    },
    /// Ranges of a queue's sequences are done with: first, count.
    Purged {
        id: u32,
        ranges: Vec<(u64, u64)>,
    },
    /// By how many milliseconds the wall is ahead of the clock of relative timers, which stands there.
    Clock {
        ahead: i64,
        elapsed: Millis,
    },
    /// Timers before this record fired: all due before a time, and some that are due right then.
    Fired {
        axis: Axis,
        before: u64,
        positions: Vec<Position>,
    },
    /// A timed message was taken back.
    TimerRecalled {
        axis: Axis,
        due: u64,
        position: Position,
    },
    /// In a checkpoint: a half message.
    Half {
        position: Position,
        half: Half,
    },
    /// In a checkpoint: the number of the next half message.
    HalfNumbers {
        next: u64,
    },
    /// A half message was asked about for the nth time, and when it is asked about next.
    HalfChecked {
        position: Position,
        checks: u32,
        next: Millis,
    },
    /// A half message was committed, rolled back, or given up.
    HalfDone {
        position: Position,
    },
    /// How a group's messages are tried again.
    Retry {
        group: Bytes,
        retry: Retry,
    },
    /// In a checkpoint: timers of a minute, which has no others whose records lie before `end`.
    Timers {
        axis: Axis,
        minute: u64,
        end: Position,
        timers: Bytes,
    },
    /// Checkpoint: a full page of a list of entries. Either the number of a page in the index files, or the
    /// entries.
    Page {
        list: u64,
        number: u64,
        done: u64,
        first: u64,
        mixed: bool,
        stored: Option<u32>,
        entries: Bytes,
    },
    /// Checkpoint: what is behind a list's pages, with the sizes of its open entries and its head.
    Tail {
        list: u64,
        head: u64,
        start: u64,
        done: u64,
        bytes: u64,
        entries: Bytes,
    },
    /// Checkpoint: the number that the next queue gets.
    Numbers {
        next_queue: u32,
    },
    /// Checkpoint: until when topics want the messages of a segment, and how many entries ever needed it.
    Segment {
        number: u64,
        keep_until: u64,
        pinned: u64,
    },
    /// Checkpoint: a topic at its place in the table of topics.
    TopicAt {
        id: u32,
        name: Bytes,
        queues: u32,
    },
}

impl Change {
    /// Encodes it behind what `out` holds.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Exchange(exchange) => {
                out.put_u8(1);
                put_bytes(out, &exchange.name);
                out.put_u8(exchange.kind as u8);
                put_bools(out, &[exchange.durable, exchange.auto_delete, exchange.internal]);
                put_alternate(out, exchange.alternate.as_ref());
                put_hash_on(out, &exchange.hash_on);
                put_dedup(out, exchange.dedup.as_ref());
                put_bytes(out, &exchange.arguments);
            }
            Self::ExchangeGone(name) => {
                out.put_u8(2);
                put_bytes(out, name);
            }
            Self::Queue { id, queue } => {
                out.put_u8(3);
                out.put_u32_le(*id);
                put_bytes(out, &queue.name);
                put_bools(
                    out,
                    &[queue.durable, queue.exclusive, queue.auto_delete, queue.addressable],
                );
                put_limit(out, queue.limit);
                put_policy(out, queue.policy.as_deref());
                put_bytes(out, &queue.arguments);
            }
            Self::QueueGone { id } => {
                out.put_u8(4);
                out.put_u32_le(*id);
            }
            Self::Bound { queue, binding } => {
                out.put_u8(5);
                out.put_u32_le(queue.unwrap_or(NO_QUEUE));
                put_binding(out, binding);
            }
            Self::Unbound { queue, binding } => {
                out.put_u8(6);
                out.put_u32_le(queue.unwrap_or(NO_QUEUE));
                put_binding(out, binding);
            }
            Self::Topic { name, queues } => {
                out.put_u8(7);
                put_bytes(out, name);
                out.put_u32_le(*queues);
            }
            Self::Group { group, topic } => {
                out.put_u8(8);
                put_bytes(out, group);
                put_bytes(out, topic);
            }
            Self::Offset {
                group,
                topic,
                queue_id,
                offset,
            } => {
                out.put_u8(9);
                put_bytes(out, group);
                put_bytes(out, topic);
                out.put_u32_le(*queue_id);
                out.put_u64_le(*offset);
            }
            Self::Holder { name, keep } => {
                out.put_u8(10);
                put_bytes(out, name);
                out.put_u64_le(*keep);
            }
            Self::HolderGone(name) => {
                out.put_u8(11);
                put_bytes(out, name);
            }
            Self::Consumed { id } => {
                out.put_u8(12);
                out.put_u32_le(*id);
            }
            Self::Note { id, sequence, note } => {
                out.put_u8(50);
                out.put_u32_le(*id);
                out.put_u64_le(*sequence);
                out.put_u32_le(*note);
            }
            Self::Will { holder, will } => {
                out.put_u8(51);
                put_bytes(out, holder);
                put_will(out, will);
            }
            Self::WillGone(holder) => {
                out.put_u8(52);
                put_bytes(out, holder);
            }
            Self::Member { holder, id, cookie } => {
                out.put_u8(53);
                put_bytes(out, holder);
                out.put_u32_le(*id);
                put_bytes(out, cookie);
            }
            Self::MemberGone { holder, id } => {
                out.put_u8(54);
                put_bytes(out, holder);
                out.put_u32_le(*id);
            }
            Self::Recalled { id, first, entries } => {
                out.put_u8(55);
                out.put_u32_le(*id);
                out.put_u64_le(*first);
                out.put_u32_le(entries.len() as u32);
                entries.iter().for_each(|entry| put_entry(out, *entry));
            }
            Self::Retained { address, entry } => {
                out.put_u8(56);
                put_bytes(out, address);
                put_entry(out, *entry);
            }
            Self::Clock { ahead, elapsed } => {
                out.put_u8(30);
                out.put_i64_le(*ahead);
                out.put_u64_le(elapsed.0);
            }
            Self::Fired {
                axis,
                before,
                positions,
            } => {
                out.put_u8(31);
                out.put_u8(*axis as u8);
                out.put_u64_le(*before);
                out.put_u32_le(positions.len() as u32);
                positions.iter().for_each(|position| out.put_u64_le(position.0));
            }
            Self::Half { position, half } => {
                out.put_u8(34);
                out.put_u64_le(position.0);
                out.put_u32_le(half.size);
                out.put_u64_le(half.offset);
                out.put_u64_le(half.next.0);
                out.put_u32_le(half.checks);
            }
            Self::HalfNumbers { next } => {
                out.put_u8(35);
                out.put_u64_le(*next);
            }
            Self::HalfChecked { position, checks, next } => {
                out.put_u8(36);
                out.put_u64_le(position.0);
                out.put_u32_le(*checks);
                out.put_u64_le(next.0);
            }
            Self::HalfDone { position } => {
                out.put_u8(37);
                out.put_u64_le(position.0);
            }
            Self::Retry { group, retry } => {
                out.put_u8(38);
                put_bytes(out, group);
                out.put_i32_le(retry.attempts_max);
                out.put_u32_le(retry.queues);
                match &retry.policy {
                    RetryPolicy::Levels(levels) => {
                        out.put_u8(0);
                        out.put_u32_le(levels.len() as u32);
                        levels.iter().for_each(|level| out.put_u64_le(level.0));
                    }
                    RetryPolicy::Exponential {
                        initial,
                        max,
                        multiplier,
                    } => {
                        out.put_u8(1);
                        out.put_u64_le(initial.0);
                        out.put_u64_le(max.0);
                        out.put_u32_le(*multiplier);
                    }
                }
            }
            Self::TimerRecalled { axis, due, position } => {
                out.put_u8(32);
                out.put_u8(*axis as u8);
                out.put_u64_le(*due);
                out.put_u64_le(position.0);
            }
            Self::Timers {
                axis,
                minute,
                end,
                timers,
            } => {
                out.put_u8(33);
                out.put_u8(*axis as u8);
                out.put_u64_le(*minute);
                out.put_u64_le(end.0);
                put_bytes(out, timers);
            }
            Self::KeysOpen { scope, keys } => {
                out.put_u8(40);
                let (kind, name) = scope.parts();
                out.put_u8(kind);
                put_bytes(out, name);
                out.put_u32_le(keys.len() as u32);
                for key in keys {
                    out.put_u128_le(key.fingerprint);
                    out.put_u64_le(key.position.0);
                    out.put_u64_le(key.closes_at);
                }
            }
            Self::KeyClosed { holder, number } => {
                out.put_u8(41);
                put_bytes(out, holder);
                out.put_u64_le(*number);
            }
            Self::PopState {
                place,
                head,
                next,
                acked,
            } => {
                out.put_u8(42);
                put_pop_place(out, place);
                out.put_u64_le(*head);
                out.put_u64_le(*next);
                put_pairs(out, acked);
            }
            Self::PopAcked { place, ranges } => {
                out.put_u8(43);
                put_pop_place(out, place);
                put_pairs(out, ranges);
            }
            Self::PopReturned { place, runs } => {
                out.put_u8(44);
                put_pop_place(out, place);
                out.put_u32_le(runs.len() as u32);
                for (first, count, attempts) in runs {
                    out.put_u64_le(*first);
                    out.put_u64_le(*count);
                    out.put_u32_le(*attempts);
                }
            }
            Self::Reset {
                group,
                topic,
                queue_id,
                offset,
            } => {
                out.put_u8(45);
                put_bytes(out, group);
                put_bytes(out, topic);
                out.put_u32_le(*queue_id);
                out.put_u64_le(*offset);
            }
            Self::Stopped { delivered } => {
                out.put_u8(13);
                out.put_u32_le(delivered.len() as u32);
                for (id, next) in delivered {
                    out.put_u32_le(*id);
                    out.put_u64_le(*next);
                }
            }
            Self::QueueAltered { id, limit, policy } => {
                out.put_u8(20);
                out.put_u32_le(*id);
                put_limit(out, *limit);
                put_policy(out, policy.as_deref());
            }
            Self::Attempts { id, runs } => {
                out.put_u8(21);
                out.put_u32_le(*id);
                out.put_u32_le(runs.len() as u32);
                for (first, count, attempts) in runs {
                    out.put_u64_le(*first);
                    out.put_u64_le(*count);
                    out.put_u32_le(*attempts);
                }
            }
            Self::Expiring { id } => {
                out.put_u8(23);
                out.put_u32_le(*id);
            }
            Self::Purged { id, ranges } => {
                out.put_u8(22);
                out.put_u32_le(*id);
                put_pairs(out, ranges);
            }
            Self::Page {
                list,
                number,
                done,
                first,
                mixed,
                stored,
                entries,
            } => {
                out.put_u8(60);
                for field in [*list, *number, *done, *first] {
                    out.put_u64_le(field);
                }
                put_bools(out, &[*mixed]);
                out.put_u32_le(stored.unwrap_or(u32::MAX));
                put_bytes(out, entries);
            }
            Self::Tail {
                list,
                head,
                start,
                done,
                bytes,
                entries,
            } => {
                out.put_u8(61);
                for field in [*list, *head, *start, *done, *bytes] {
                    out.put_u64_le(field);
                }
                put_bytes(out, entries);
            }
            Self::Numbers { next_queue } => {
                out.put_u8(62);
                out.put_u32_le(*next_queue);
            }
            Self::Segment {
                number,
                keep_until,
                pinned,
            } => {
                out.put_u8(63);
                out.put_u64_le(*number);
                out.put_u64_le(*keep_until);
                out.put_u64_le(*pinned);
            }
            Self::TopicAt { id, name, queues } => {
                out.put_u8(64);
                out.put_u32_le(*id);
                put_bytes(out, name);
                out.put_u32_le(*queues);
            }
        }
    }

    /// Decodes one change. `None` when the bytes are not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = Reader(bytes);
        Some(match at.u8()? {
            1 => Self::Exchange(Exchange {
                name: at.bytes()?,
                kind: match at.u8()? {
                    0 => ExchangeKind::Fanout,
                    1 => ExchangeKind::Direct,
                    2 => ExchangeKind::Pattern,
                    3 => ExchangeKind::Headers,
                    4 => ExchangeKind::Hash,
                    _ => return None,
                },
                durable: at.bool()?,
                auto_delete: at.bool()?,
                internal: at.bool()?,
                alternate: at.alternate()?,
                hash_on: at.hash_on()?,
                dedup: at.dedup()?,
                arguments: at.bytes()?,
            }),
            2 => Self::ExchangeGone(at.bytes()?),
            3 => Self::Queue {
                id: at.u32()?,
                queue: Queue {
                    name: at.bytes()?,
                    durable: at.bool()?,
                    exclusive: at.bool()?,
                    auto_delete: at.bool()?,
                    addressable: at.bool()?,
                    limit: at.limit()?,
                    policy: at.policy()?,
                    arguments: at.bytes()?,
                },
            },
            4 => Self::QueueGone { id: at.u32()? },
            5 => Self::Bound {
                queue: Some(at.u32()?).filter(|queue| *queue != NO_QUEUE),
                binding: at.binding()?,
            },
            6 => Self::Unbound {
                queue: Some(at.u32()?).filter(|queue| *queue != NO_QUEUE),
                binding: at.binding()?,
            },
            7 => Self::Topic {
                name: at.bytes()?,
                queues: at.u32()?,
            },
            8 => Self::Group {
                group: at.bytes()?,
                topic: at.bytes()?,
            },
            9 => Self::Offset {
                group: at.bytes()?,
                topic: at.bytes()?,
                queue_id: at.u32()?,
                offset: at.u64()?,
            },
            10 => Self::Holder {
                name: at.bytes()?,
                keep: at.u64()?,
            },
            11 => Self::HolderGone(at.bytes()?),
            12 => Self::Consumed { id: at.u32()? },
            13 => {
                let count = at.u32()?;
                // Nothing is allocated for what is merely claimed: collecting stops at the first missing byte.
                let delivered: Option<Vec<_>> = (0..count).map(|_| Some((at.u32()?, at.u64()?))).collect();
                Self::Stopped { delivered: delivered? }
            }
            40 => {
                let (kind, name) = (at.u8()?, at.bytes()?);
                let count = at.u32()?;
                let keys: Option<Vec<_>> = (0..count).map(|_| at.open_key()).collect();
                Self::KeysOpen {
                    scope: Scope::of(kind, name)?,
                    keys: keys?,
                }
            }
            41 => Self::KeyClosed {
                holder: at.bytes()?,
                number: at.u64()?,
            },
            42 => Self::PopState {
                place: at.pop_place()?,
                head: at.u64()?,
                next: at.u64()?,
                acked: at.pairs()?,
            },
            43 => Self::PopAcked {
                place: at.pop_place()?,
                ranges: at.pairs()?,
            },
            44 => {
                let place = at.pop_place()?;
                let count = at.u32()?;
                let runs: Option<Vec<_>> = (0..count).map(|_| Some((at.u64()?, at.u64()?, at.u32()?))).collect();
                Self::PopReturned { place, runs: runs? }
            }
            45 => Self::Reset {
                group: at.bytes()?,
                topic: at.bytes()?,
                queue_id: at.u32()?,
                offset: at.u64()?,
            },
            50 => Self::Note {
                id: at.u32()?,
                sequence: at.u64()?,
                note: at.u32()?,
            },
            51 => Self::Will {
                holder: at.bytes()?,
                will: Box::new(at.will()?),
            },
            52 => Self::WillGone(at.bytes()?),
            53 => Self::Member {
                holder: at.bytes()?,
                id: at.u32()?,
                cookie: at.bytes()?,
            },
            54 => Self::MemberGone {
                holder: at.bytes()?,
                id: at.u32()?,
            },
            55 => {
                let (id, first, count) = (at.u32()?, at.u64()?, at.u32()?);
                let entries: Option<Vec<_>> = (0..count).map(|_| at.entry()).collect();
                Self::Recalled {
                    id,
                    first,
                    entries: entries?,
                }
            }
            56 => Self::Retained {
                address: at.bytes()?,
                entry: at.entry()?,
            },
            30 => Self::Clock {
                ahead: at.u64()? as i64,
                elapsed: Millis(at.u64()?),
            },
            31 => {
                let (axis, before, count) = (Axis::of(at.u8()?)?, at.u64()?, at.u32()?);
                let positions: Option<Vec<_>> = (0..count).map(|_| Some(Position(at.u64()?))).collect();
                Self::Fired {
                    axis,
                    before,
                    positions: positions?,
                }
            }
            32 => Self::TimerRecalled {
                axis: Axis::of(at.u8()?)?,
                due: at.u64()?,
                position: Position(at.u64()?),
            },
            34 => Self::Half {
                position: Position(at.u64()?),
                half: Half {
                    size: at.u32()?,
                    offset: at.u64()?,
                    next: Millis(at.u64()?),
                    checks: at.u32()?,
                },
            },
            35 => Self::HalfNumbers { next: at.u64()? },
            36 => Self::HalfChecked {
                position: Position(at.u64()?),
                checks: at.u32()?,
                next: Millis(at.u64()?),
            },
            37 => Self::HalfDone {
                position: Position(at.u64()?),
            },
            38 => Self::Retry {
                group: at.bytes()?,
                retry: Retry {
                    attempts_max: at.u32()? as i32,
                    queues: at.u32()?,
                    policy: match at.u8()? {
                        0 => {
                            let count = at.u32()?;
                            let levels: Option<Vec<_>> = (0..count).map(|_| Some(Millis(at.u64()?))).collect();
                            RetryPolicy::Levels(levels?)
                        }
                        1 => RetryPolicy::Exponential {
                            initial: Millis(at.u64()?),
                            max: Millis(at.u64()?),
                            multiplier: at.u32()?,
                        },
                        _ => return None,
                    },
                },
            },
            33 => Self::Timers {
                axis: Axis::of(at.u8()?)?,
                minute: at.u64()?,
                end: Position(at.u64()?),
                timers: at.bytes()?,
            },
            20 => Self::QueueAltered {
                id: at.u32()?,
                limit: at.limit()?,
                policy: at.policy()?,
            },
            21 => {
                let (id, count) = (at.u32()?, at.u32()?);
                let runs: Option<Vec<_>> = (0..count).map(|_| Some((at.u64()?, at.u64()?, at.u32()?))).collect();
                Self::Attempts { id, runs: runs? }
            }
            23 => Self::Expiring { id: at.u32()? },
            22 => {
                let (id, count) = (at.u32()?, at.u32()?);
                let ranges: Option<Vec<_>> = (0..count).map(|_| Some((at.u64()?, at.u64()?))).collect();
                Self::Purged { id, ranges: ranges? }
            }
            60 => Self::Page {
                list: at.u64()?,
                number: at.u64()?,
                done: at.u64()?,
                first: at.u64()?,
                mixed: at.bool()?,
                stored: Some(at.u32()?).filter(|stored| *stored != u32::MAX),
                entries: at.bytes()?,
            },
            61 => Self::Tail {
                list: at.u64()?,
                head: at.u64()?,
                start: at.u64()?,
                done: at.u64()?,
                bytes: at.u64()?,
                entries: at.bytes()?,
            },
            62 => Self::Numbers { next_queue: at.u32()? },
            63 => Self::Segment {
                number: at.u64()?,
                keep_until: at.u64()?,
                pinned: at.u64()?,
            },
            64 => Self::TopicAt {
                id: at.u32()?,
                name: at.bytes()?,
                queues: at.u32()?,
            },
            _ => return None,
        })
    }
}

fn put_entry(out: &mut Vec<u8>, entry: Entry) {
    out.put_u64_le(entry.position.0);
    out.put_u32_le(entry.size);
    out.put_u64_le(entry.word);
}

fn put_will(out: &mut Vec<u8>, will: &Will) {
    out.put_u64_le(will.delay.0);
    out.put_u8(will.entry as u8);
    out.put_u8(will.format.0);
    put_bools(out, &[will.persistent, will.retain]);
    for bytes in [&will.topic, &will.key, &will.body, &will.origin] {
        put_bytes(out, bytes);
    }
    put_bytes(out, will.attributes.as_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

pub(crate) fn put_bools(out: &mut Vec<u8>, bools: &[bool]) {
    out.extend(bools.iter().map(|b| u8::from(*b)));
}

fn put_pop_place(out: &mut Vec<u8>, place: &PopPlace) {
    put_bytes(out, &place.group);
    put_bytes(out, &place.topic);
    out.put_u32_le(place.queue);
}

fn put_pairs(out: &mut Vec<u8>, pairs: &[(u64, u64)]) {
    out.put_u32_le(pairs.len() as u32);
    for (first, count) in pairs {
        out.put_u64_le(*first);
        out.put_u64_le(*count);
    }
}

fn put_binding(out: &mut Vec<u8>, binding: &Binding) {
    match &binding.source {
        Source::Exchange(name) => {
            out.put_u8(0);
            put_bytes(out, name);
        }
        Source::Topics => out.put_u8(1),
        Source::Everything => out.put_u8(2),
    }
    match &binding.matcher {
        Matcher::Key(key) => {
            out.put_u8(0);
            put_bytes(out, key);
        }
        Matcher::Pattern(pattern) => {
            out.put_u8(1);
            put_bools(out, &[pattern.spare_dollar]);
            out.put_u32_le(pattern.levels.len() as u32);
            for level in &pattern.levels {
                match level {
                    Level::Literal(text) => {
                        out.put_u8(0);
                        put_bytes(out, text);
                    }
                    Level::One => out.put_u8(1),
                    Level::Many => out.put_u8(2),
                }
            }
        }
        Matcher::Headers(headers) => {
            out.put_u8(2);
            put_bools(out, &[headers.all]);
            put_bytes(out, &headers.wanted);
        }
    }
    match &binding.destination {
        Destination::Queue(name) => {
            out.put_u8(0);
            put_bytes(out, name);
        }
        Destination::Exchange(name) => {
            out.put_u8(1);
            put_bytes(out, name);
        }
        Destination::Topics => out.put_u8(2),
    }
    put_bytes(out, &binding.arguments);
    put_bytes(out, &binding.cookie);
}

pub(crate) struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(crate) fn bool(&mut self) -> Option<bool> {
        Some(self.u8()? != 0)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn bytes(&mut self) -> Option<Bytes> {
        let length = self.u32()?;
        self.take(length as usize).map(Bytes::copy_from_slice)
    }

    fn pop_place(&mut self) -> Option<PopPlace> {
        Some(PopPlace {
            group: self.bytes()?,
            topic: self.bytes()?,
            queue: self.u32()?,
        })
    }

    fn pairs(&mut self) -> Option<Vec<(u64, u64)>> {
        let count = self.u32()?;
        (0..count).map(|_| Some((self.u64()?, self.u64()?))).collect()
    }

    fn open_key(&mut self) -> Option<OpenKey> {
        Some(OpenKey {
            fingerprint: u128::from_le_bytes(self.take(16)?.try_into().ok()?),
            position: Position(self.u64()?),
            closes_at: self.u64()?,
        })
    }

    fn binding(&mut self) -> Option<Binding> {
        let source = match self.u8()? {
            0 => Source::Exchange(self.bytes()?),
            1 => Source::Topics,
            2 => Source::Everything,
            _ => return None,
        };
        let matcher = match self.u8()? {
            0 => Matcher::Key(self.bytes()?),
            1 => {
                let spare_dollar = self.bool()?;
                let count = self.u32()?;
                let levels: Option<Vec<_>> = (0..count).map(|_| self.level()).collect();
                Matcher::Pattern(Pattern {
                    levels: levels?,
                    spare_dollar,
                })
            }
            2 => Matcher::Headers(Headers {
                all: self.bool()?,
                wanted: self.bytes()?,
            }),
            _ => return None,
        };
        let destination = match self.u8()? {
            0 => Destination::Queue(self.bytes()?),
            1 => Destination::Exchange(self.bytes()?),
            2 => Destination::Topics,
            _ => return None,
        };
        Some(Binding {
            source,
            matcher,
            destination,
            arguments: self.bytes()?,
            cookie: self.bytes()?,
        })
    }

    fn entry(&mut self) -> Option<Entry> {
        Some(Entry {
            position: Position(self.u64()?),
            size: self.u32()?,
            word: self.u64()?,
        })
    }

    fn will(&mut self) -> Option<Will> {
        let delay = Millis(self.u64()?);
        let entry = match self.u8()? {
            0 => message::Entry::Exchange,
            1 => message::Entry::Queue,
            2 => message::Entry::Topic,
            3 => message::Entry::Native,
            _ => return None,
        };
        let format = Format(self.u8()?);
        let (persistent, retain) = (self.bool()?, self.bool()?);
        Some(Will {
            delay,
            entry,
            format,
            persistent,
            retain,
            topic: self.bytes()?,
            key: self.bytes()?,
            body: self.bytes()?,
            origin: self.bytes()?,
            attributes: Attributes::encoded(self.bytes()?),
        })
    }

    fn level(&mut self) -> Option<Level> {
        Some(match self.u8()? {
            0 => Level::Literal(self.bytes()?),
            1 => Level::One,
            2 => Level::Many,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{DeadLetter, HashOn, Overflow, Way};
    use crate::time::Millis;

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
}
