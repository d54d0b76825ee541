//! Transactions of native producers: half messages, how they end, and asking about those that do not.
//!
//! A half message is a record that nobody sees. Its producer commits it (then it is published again, routed by
//! the bindings of that moment) or rolls it back. While it does neither, the producers of its group are asked,
//! one after the other: first after `check_after`, then every `check_interval`, `check_max` times. Then it moves
//! to a topic of its own, for people to look at.
//!
//! What is known of a half message in memory is its place and when it is asked about next; everything else
//! stays in its record. Times are those of relative timers, see [`super::timers`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::boundary::{CheckTransaction, Notice, Publish, Stored};
use crate::engine::change::Change;
use crate::engine::config::Flush;
use crate::engine::group::limit;
use crate::engine::links::{LinkId, LinkState};
use crate::engine::progress::Entry;
use crate::engine::publish::{Birth, Placed};
use crate::engine::republish::{Done, Revived, edit_properties};
use crate::engine::state::State;
use crate::message::{self, Message};
use crate::properties;
use crate::request::{EndTransaction, Refusal, Reply, TransactionEnd, Verdict};
use crate::store::record::{Later, Position};
use crate::time::Millis;

/// Where half messages end that nobody claims.
const CHECK_MAX_TOPIC: &[u8] = b"TRANS_CHECK_MAX_TIME_TOPIC";

/// Half messages asked about in one hold.
const CHECKS_MAX: usize = 64;

/// How long to wait when a producer does not read.
const BUSY_WAIT: Millis = Millis::from_secs(1);

/// Half messages in one slice of a checkpoint.
const SLICE: usize = 1024;

/// RocketMQ's sysFlag of a committed message.
const COMMITTED: i32 = 0x8;

/// Properties that say what a half message is or when it is due: not those of the message that was committed.
const OF_HALF: [&[u8]; 5] = [
    b"TRAN_MSG",
    b"DELAY",
    b"TIMER_DELAY_SEC",
    b"TIMER_DELAY_MS",
    b"TIMER_DELIVER_MS",
];

/// What is known of a half message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    /// Length of its record.
    pub size: u32,
    /// Its number among all half messages.
    pub offset: u64,
    /// When it is asked about next, on the clock of relative timers.
    pub next: Millis,
    /// How often it was.
    pub checks: u32,
}

/// All half messages.
#[derive(Default)]
pub(crate) struct Halves {
    open: BTreeMap<Position, Half>,
    due: BTreeSet<(Millis, Position)>,
    /// The number of the next one.
    next_offset: u64,
}

impl Halves {
    fn put(&mut self, position: Position, half: Half) {
        self.next_offset = self.next_offset.max(half.offset + 1);
        if let Some(old) = self.open.insert(position, half) {
            self.due.remove(&(old.next, position));
        }
        self.due.insert((half.next, position));
    }

    fn remove(&mut self, position: Position) -> Option<Half> {
        let half = self.open.remove(&position)?;
        self.due.remove(&(half.next, position));
        Some(half)
    }

    /// When one is to be asked about next, on the clock of relative timers.
    pub(crate) fn next(&self) -> Option<Millis> {
        Some(self.due.first()?.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

fn entry_of(position: Position, half: Half) -> Entry {
    Entry {
        position,
        size: half.size,
        word: 0,
    }
}

/// The producer group of a half message.
fn group_of(message: &Message) -> &[u8] {
    properties::find(message.view().properties(), b"PGROUP").unwrap_or_default()
}

/// How long after it was made a message is not asked about, if it says so itself.
fn immunity(properties: &[u8]) -> Option<Millis> {
    let text = properties::find(properties, b"CHECK_IMMUNITY_TIME_IN_SECONDS")?;
    let seconds: u64 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
    Some(Millis(seconds.saturating_mul(1000)))
}

impl State {
    // --- producers --------------------------------------------------------------------------------

    pub(crate) fn join_producers(&mut self, link: LinkId, group: Bytes) -> Result<Reply, Refusal> {
        if !self.producers.contains_key(&group) && self.producers.len() >= self.config.groups_max {
            return Err(limit("producer groups", self.config.groups_max));
        }
        let Some(state) = self.link(link) else {
            return Err(Refusal::Closed);
        };
        let producing = &mut state.native().producing;
        if !producing.contains(&group) {
            producing.push(group.clone());
            self.producers.entry(group).or_default().push_back(link);
        }
        Ok(Reply::Done)
    }

    pub(crate) fn leave_producers(&mut self, link: LinkId, group: &Bytes) {
        if let Some(native) = self.link(link).and_then(LinkState::has_native) {
            native.producing.retain(|other| other != group);
        }
        if let Some(members) = self.producers.get_mut(group) {
            members.retain(|member| *member != link);
            if members.is_empty() {
                self.producers.remove(group);
            }
        }
    }

    // --- half messages ----------------------------------------------------------------------------

    /// When a half message is asked about first.
    pub(crate) fn first_check(&self, publish: &Publish) -> Later {
        let wait = immunity(&publish.origin).unwrap_or(self.config.check_after);
        Later::Half(self.timers.elapsed(self.now) + wait)
    }

    pub(crate) fn put_half(&mut self, publish: &Publish, birth: Birth, placed: &Placed, later: Later) -> Stored {
        self.note_clock();
        let offset = self.halves.next_offset;
        let queue = placed.topic_queue.map_or(0, |(_, queue, _)| queue);
        let (position, message) = self.store_later(publish, birth, (queue, offset), later);
        let entry = Entry {
            position,
            size: message.record_len() as u32,
            word: 0,
        };
        self.hold_entry(entry);
        self.add_half(later, entry, offset);
        Stored {
            position,
            queue_id: queue,
            queue_offset: offset,
            routes: placed.routes.max(1),
            weak: self.config.flush == Flush::Async,
        }
    }

    fn add_half(&mut self, later: Later, entry: Entry, offset: u64) {
        let Later::Half(next) = later else { return };
        let half = Half {
            size: entry.size,
            offset,
            next,
            checks: 0,
        };
        self.deadline_moved |= self.halves.next().is_none_or(|first| next < first);
        self.halves.put(entry.position, half);
    }

    pub(crate) fn end_transaction(&mut self, end: &EndTransaction) -> Result<Reply, Refusal> {
        let answer = |end| Ok(Reply::Transaction(end));
        let Some(half) = self.halves.open.get(&end.position).copied() else {
            return answer(TransactionEnd::NotFound);
        };
        let Some(message) = self.message(end.position, half.size) else {
            return answer(TransactionEnd::NotFound);
        };
        if group_of(&message) != end.group {
            return answer(TransactionEnd::OtherGroup);
        }
        if half.offset != end.offset {
            return answer(TransactionEnd::OtherOffset);
        }
        let is_late = immunity(message.view().properties())
            .is_some_and(|immunity| self.now.wall.since(message.born_at()) > immunity);
        if !end.from_check && is_late && end.verdict != Verdict::Unknown {
            return answer(TransactionEnd::TooLate);
        }
        match end.verdict {
            Verdict::Unknown => return answer(TransactionEnd::Done),
            Verdict::Rollback => self.change(&Change::HalfDone { position: end.position }),
            Verdict::Commit => {
                let mut revived = Revived::of(&message);
                revived.birth.prepared = end.position.0;
                revived.native().sys_flag |= COMMITTED;
                revived.publish.origin = edit_properties(&revived.publish.origin, &OF_HALF, &[]);
                revived.retag();
                let done = Done::Change(Change::HalfDone { position: end.position });
                self.republish(revived, done)
                    .map_err(|reject| Refusal::Rejected { index: 0, reject })?;
                self.changed = true;
            }
        }
        self.forget_half(end.position);
        answer(TransactionEnd::Done)
    }

    fn forget_half(&mut self, position: Position) {
        if let Some(half) = self.halves.remove(position) {
            self.release_entry(entry_of(position, half));
        }
    }

    /// Asks about half messages whose time has come. Gives whether there are more.
    pub(crate) fn check_halves(&mut self) -> bool {
        let time = self.timers.elapsed(self.now);
        for _ in 0..CHECKS_MAX {
            let Some((next, position)) = self.halves.due.first().copied() else {
                return false;
            };
            if next > time || self.closing {
                return false;
            }
            let Some(half) = self.halves.open.get(&position).copied() else {
                self.halves.due.pop_first();
                continue;
            };
            self.check_half(position, half, time);
        }
        true
    }

    fn check_half(&mut self, position: Position, half: Half, time: Millis) {
        let Some(message) = self.message(position, half.size) else {
            return self.forget_half(position);
        };
        if half.checks >= self.config.check_max {
            return self.give_up_half(position, half, &message, time);
        }
        let group = Bytes::copy_from_slice(group_of(&message));
        let asked = self.ask_producer(&group, position, half, message);
        let next = match asked {
            Asked::Busy => Half {
                next: time + BUSY_WAIT,
                ..half
            },
            // Without a producer it counts as well: else it would stay for ever.
            Asked::One | Asked::Nobody => Half {
                next: time + self.config.check_interval,
                checks: half.checks + 1,
                ..half
            },
        };
        if next.checks > half.checks {
            self.change_quietly(&Change::HalfChecked {
                position,
                checks: next.checks,
                next: next.next,
            });
        }
        self.halves.put(position, next);
    }

    /// Asks the next producer of the group that can take the question.
    fn ask_producer(&mut self, group: &Bytes, position: Position, half: Half, message: Message) -> Asked {
        let count = self.producers.get(group).map_or(0, |members| members.len());
        for _ in 0..count {
            let Some(members) = self.producers.get_mut(group) else {
                break;
            };
            members.rotate_left(1);
            let Some(link) = members.back().copied() else { break };
            if !self.can_take(link) {
                continue;
            }
            let check = CheckTransaction {
                group: group.clone(),
                position,
                offset: half.offset,
                message,
            };
            self.tell_now(link, Notice::CheckTransaction(Box::new(check)));
            return Asked::One;
        }
        if count > 0 { Asked::Busy } else { Asked::Nobody }
    }

    /// Nobody claims it.
    fn give_up_half(&mut self, position: Position, half: Half, message: &Message, time: Millis) {
        let mut revived = Revived::of(message);
        revived.publish.entry = message::Entry::Queue;
        revived.publish.topic = Bytes::from_static(CHECK_MAX_TOPIC);
        let native = revived.native();
        native.queue_id = Some(0);
        native.topic_queues = 1;
        let checks = half.checks.to_string();
        let real = [
            (&b"REAL_TOPIC"[..], message.topic()),
            (b"TRANSACTION_CHECK_TIMES", checks.as_bytes()),
        ];
        let with_real = edit_properties(&revived.publish.origin, &[], &real);
        if with_real.len() <= properties::PROPERTIES_MAX {
            revived.publish.origin = with_real;
        }
        revived.retag();
        let topic = message.topic().escape_ascii();
        match self.republish(revived, Done::Change(Change::HalfDone { position })) {
            Ok(()) => {
                tracing::warn!(%topic, %position, "nobody ended a transaction: its message is in TRANS_CHECK_MAX_TIME_TOPIC");
                self.forget_half(position);
            }
            Err(why) => {
                tracing::warn!(%topic, %position, ?why, "a transaction that nobody ended cannot be moved away");
                let next = time + self.config.check_interval;
                self.halves.put(position, Half { next, ..half });
            }
        }
    }

    // --- checkpoint and replay --------------------------------------------------------------------

    /// Puts what re-creates half messages from that position on; gives whether those were the last.
    pub(crate) fn checkpoint_halves(&self, from: &mut Option<u64>, put: &mut dyn FnMut(&Change)) -> bool {
        if from.is_none() {
            put(&Change::HalfNumbers {
                next: self.halves.next_offset,
            });
        }
        let start = Position(from.unwrap_or(0));
        let slice = self.halves.open.range(start..).take(SLICE);
        let mut count = 0;
        for (position, half) in slice {
            put(&Change::Half {
                position: *position,
                half: *half,
            });
            *from = Some(position.0 + 1);
            count += 1;
        }
        count < SLICE
    }

    pub(crate) fn replay_half(&mut self, later: Later, entry: Entry, offset: u64) {
        if !self.halves.open.contains_key(&{ entry.position }) {
            self.log.pin(entry.position);
            self.add_half(later, entry, offset);
        }
    }

    pub(crate) fn replay_halves(&mut self, change: Change) {
        match change {
            Change::Half { position, half } => {
                self.log.repin(position);
                self.halves.put(position, half);
            }
            Change::HalfNumbers { next } => self.halves.next_offset = self.halves.next_offset.max(next),
            Change::HalfChecked { position, checks, next } => {
                if let Some(half) = self.halves.open.get(&position).copied() {
                    self.halves.put(position, Half { next, checks, ..half });
                }
            }
            Change::HalfDone { position } if self.halves.remove(position).is_some() => self.log.unpin(position),
            _ => {}
        }
    }
}

/// How a question to a producer group went.
enum Asked {
    One,
    /// There are producers, but none reads.
    Busy,
    Nobody,
}
