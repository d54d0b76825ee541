//! Changes to bytes (`FORMAT.md`, "Change").

use bytes::BufMut;

use super::policy::{put_alternate, put_dedup, put_hash_on, put_limit, put_policy};
use super::{Change, NO_QUEUE};
use crate::address::Level;
use crate::codec::{put_bools, put_bytes};
use crate::engine::pop::PopPlace;
use crate::engine::progress::Entry;
use crate::request::{Binding, Destination, Matcher, RetryPolicy, Source, Will};

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
            Self::TimerMoved {
                axis,
                due,
                first,
                from,
                to,
            } => {
                out.put_u8(39);
                out.put_u8(*axis as u8);
                out.put_u64_le(*due);
                for position in [first, from, to] {
                    out.put_u64_le(position.0);
                }
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
