//! Leases of popped messages, and how they end: by their time, by a word of who holds them, or for another time.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use bytes::Bytes;

use super::progress::Progress;
use super::{POP_MAX, Pops};
use crate::boundary::Settle;
use crate::engine::change::Change;
use crate::engine::ranges::Ranges;
use crate::engine::republish::{Done, edit_properties};
use crate::engine::retry::DEAD_LETTER_PREFIX;
use crate::engine::state::{STEPS_MAX, State};
use crate::request::{AckPopped, ChangeInvisible, Held, Refusal, Reply, SettlePopped};
use crate::time::Millis;

/// Messages handed out together from one message queue, neighbours.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub count: u32,
    pub until: Millis,
    pub id: u64,
    /// Of the attempt that took them; 0 is none.
    pub attempt: u64,
    /// In order: the message group of each.
    pub groups: Vec<u64>,
}

impl Pops {
    pub(super) fn new_lease_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn put_lease(&mut self, id: u32, first: u64, lease: Lease) {
        self.deadlines.insert((lease.until, id, first));
        let progress = &mut self.list[id as usize];
        progress.leased += u64::from(lease.count);
        progress.leases.insert(first, lease);
    }

    pub(super) fn take_lease(&mut self, id: u32, first: u64) -> Option<Lease> {
        let progress = &mut self.list[id as usize];
        let lease = progress.leases.remove(&first)?;
        progress.leased -= u64::from(lease.count);
        self.deadlines.remove(&(lease.until, id, first));
        Some(lease)
    }

    /// Takes one message out of its lease; the others stay leased.
    fn take_from_lease(&mut self, id: u32, offset: u64) -> Option<Lease> {
        let (first, _) = self.list[id as usize].lease_of(offset)?;
        let lease = self.take_lease(id, first)?;
        let at = (offset - first) as usize;
        let part = |range: Range<usize>| Lease {
            count: range.len() as u32,
            groups: lease.groups.get(range).unwrap_or_default().to_vec(),
            ..lease
        };
        if at > 0 {
            self.put_lease(id, first, part(0..at));
        }
        if at + 1 < lease.count as usize {
            self.put_lease(id, offset + 1, part(at + 1..lease.count as usize));
        }
        Some(part(at..at + 1))
    }

    pub(super) fn drop_leases(&mut self, id: u32) {
        let progress = &mut self.list[id as usize];
        progress.leased = 0;
        for (first, lease) in std::mem::take(&mut progress.leases) {
            self.deadlines.remove(&(lease.until, id, first));
        }
    }
}

impl State {
    /// Leases whose time is over end, some at a time. Gives whether there are more.
    pub(crate) fn end_leases(&mut self) -> bool {
        let mut steps = 0;
        while steps < STEPS_MAX {
            let now = self.now.mono;
            let Some((_, id, first)) = self.pops.deadlines.first().copied().filter(|(at, ..)| *at <= now) else {
                return false;
            };
            if let Some(lease) = self.pops.take_lease(id, first) {
                steps += lease.count as usize;
                self.give_back_popped(id, first..first + u64::from(lease.count));
            }
        }
        true
    }

    /// Messages return to their places, or go for good when they came back too often.
    fn give_back_popped(&mut self, id: u32, range: Range<u64>) {
        let mut runs: Vec<(u64, u64, u32)> = Vec::new();
        let attempts_max = self.retry_of(&self.pops.list[id as usize].group).attempts_max;
        let attempts_max = u32::try_from(attempts_max).unwrap_or(u32::MAX);
        for offset in self.pops.list[id as usize].still_there(range) {
            let progress = &mut self.pops.list[id as usize];
            let attempts = progress.attempts.get(&offset).copied().unwrap_or(0).saturating_add(1);
            if attempts > attempts_max && self.dead_letter_popped(id, offset) {
                continue;
            }
            let progress = &mut self.pops.list[id as usize];
            progress.attempts.insert(offset, attempts);
            progress.ready.insert(offset..offset + 1);
            match runs.last_mut() {
                Some((first, count, same)) if *first + *count == offset && *same == attempts => *count += 1,
                _ => runs.push((offset, 1, attempts)),
            }
        }
        if !runs.is_empty() {
            let place = self.pop_place(id);
            self.change_quietly(&Change::PopReturned { place, runs });
        }
        let topic = self.pops.list[id as usize].topic;
        self.pops.wake(topic);
    }

    /// The message goes to the group's dead-letter topic, in one step with being done with here.
    fn dead_letter_popped(&mut self, id: u32, offset: u64) -> bool {
        let progress = &self.pops.list[id as usize];
        let list = &self.topics[progress.topic as usize].queues[progress.queue as usize].entries;
        let group = progress.group.clone();
        let Some(message) = list
            .get(offset)
            .and_then(|entry| self.message(entry.position, entry.size))
        else {
            return false;
        };
        let acked = Change::PopAcked {
            place: self.pop_place(id),
            ranges: vec![(offset, 1)],
        };
        let mut revived = self.native_again(&message);
        let properties = revived.publish.origin.clone();
        let find = |name: &[u8]| crate::properties::find(&properties, name).unwrap_or_default();
        let with = [
            (&b"DLQ_ORIGIN_TOPIC"[..], message.topic()),
            (b"DLQ_ORIGIN_MESSAGE_ID", find(crate::properties::UNIQUE_KEY)),
        ];
        let with: Vec<_> = with.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        revived.publish.origin = edit_properties(&properties, &[], &with);
        revived.publish.topic = [DEAD_LETTER_PREFIX, &group[..]].concat().into();
        revived.retag();
        let attempts = self.pops.list[id as usize].attempts.get(&offset).copied().unwrap_or(0);
        let native = revived.native();
        native.reconsume_times = i32::try_from(attempts).unwrap_or(i32::MAX);
        native.queue_id = Some(0);
        native.topic_queues = 1;
        if self.topic_id(&revived.publish.topic).is_err() {
            self.add_topic(revived.publish.topic.clone(), 1);
        }
        match self.republish(revived, Done::Change(acked)) {
            Ok(()) => {
                self.pops.list[id as usize].ack(offset..offset + 1);
                true
            }
            Err(reject) => {
                tracing::warn!(?reject, group = %group.escape_ascii(), "a popped message cannot be dead-lettered");
                false
            }
        }
    }

    /// Messages are done with. Tells of each whether it was still this lease's to settle.
    pub(crate) fn ack_popped(&mut self, ack: &AckPopped) -> Result<Reply, Refusal> {
        if ack.messages.len() > POP_MAX as usize {
            return Err(Refusal::Invalid(format!(
                "at most {POP_MAX} messages are settled at once"
            )));
        }
        let topic = self.topic_id(&ack.topic)?;
        self.end_leases();
        let mut done: BTreeMap<u32, Ranges> = BTreeMap::new();
        let mut settled = Vec::with_capacity(ack.messages.len());
        for held in &ack.messages {
            let id = self.progress_of(&ack.group, topic, *held);
            let is_held = id.is_some_and(|id| self.take_held(id, held.offset, held.lease));
            settled.push(is_held);
            if let Some(id) = id.filter(|_| is_held) {
                self.pops.list[id as usize].ack(held.offset..held.offset + 1);
                done.entry(id).or_default().insert(held.offset..held.offset + 1);
            }
        }
        // As lazily durable as an offset: a lost one means a message twice.
        self.write_popped(done);
        self.pops.wake(topic);
        Ok(Reply::Settled(settled))
    }

    /// Whether a message is in the lease of that number. Also one whose lease ended, if nobody else has it yet.
    fn is_held(&self, id: u32, offset: u64, lease: u64) -> bool {
        let progress = &self.pops.list[id as usize];
        if let Some((_, current)) = progress.lease_of(offset) {
            return current.id == lease;
        }
        let came_back = progress.attempts.contains_key(&offset) && progress.ready.contains(offset);
        came_back || self.is_of_an_earlier_life(progress, offset, lease)
    }

    fn is_of_an_earlier_life(&self, progress: &Progress, offset: u64, lease: u64) -> bool {
        lease >> 32 < self.pops.last_id >> 32
            && offset < progress.suspect_below
            && offset >= progress.head
            && !progress.acked.contains(offset)
    }

    /// Takes a message that is held out of its lease.
    fn take_held(&mut self, id: u32, offset: u64, lease: u64) -> bool {
        if !self.is_held(id, offset, lease) {
            return false;
        }
        let progress = &self.pops.list[id as usize];
        if progress.lease_of(offset).is_some() {
            return self.pops.take_from_lease(id, offset).is_some();
        }
        if self.is_of_an_earlier_life(progress, offset, lease) && offset >= progress.next {
            // It was handed out before the broker came back.
            let progress = &mut self.pops.list[id as usize];
            let before = progress.next..offset;
            progress.ready.insert(before);
            progress.next = offset + 1;
        }
        true
    }

    fn progress_of(&self, group: &Bytes, topic: u32, held: Held) -> Option<u32> {
        self.pops.ids.get(&(group.clone(), topic, held.queue_id)).copied()
    }

    /// Whether all of a batch can be settled. Ends leases whose time is over, and changes nothing else.
    pub(crate) fn check_popped(&mut self, batch: &[SettlePopped]) -> Result<(), Refusal> {
        if batch.is_empty() {
            return Ok(());
        }
        self.end_leases();
        let mut seen = HashSet::new();
        for popped in batch {
            let topic = self.topic_id(&popped.topic)?;
            for held in &popped.messages {
                let id = self.progress_of(&popped.group, topic, *held);
                let is_held = id.is_some_and(|id| self.is_held(id, held.offset, held.lease));
                if !is_held || !seen.insert((id, held.offset)) {
                    return Err(Refusal::LeaseEnded);
                }
            }
        }
        Ok(())
    }

    /// Settles a part of a batch that was checked.
    pub(crate) fn settle_popped(&mut self, popped: &SettlePopped) {
        let Ok(topic) = self.topic_id(&popped.topic) else {
            return;
        };
        let mut done: BTreeMap<u32, Ranges> = BTreeMap::new();
        for held in &popped.messages {
            let Some(id) = self.progress_of(&popped.group, topic, *held) else {
                continue;
            };
            let only = held.offset..held.offset + 1;
            if !self.take_held(id, held.offset, held.lease) {
                continue;
            }
            match popped.action {
                Settle::Ack => {
                    self.pops.list[id as usize].ack(only.clone());
                    done.entry(id).or_default().insert(only);
                }
                Settle::Release => self.give_back_popped(id, only),
                Settle::Reject => {
                    if !self.dead_letter_popped(id, held.offset) {
                        // Not lost: it comes again.
                        self.give_back_popped(id, only);
                    }
                }
            }
        }
        self.write_popped(done);
        self.pops.wake(topic);
    }

    /// Notes for the log that messages are done with.
    fn write_popped(&mut self, done: BTreeMap<u32, Ranges>) {
        for (id, ranges) in done {
            let place = self.pop_place(id);
            let ranges = ranges.iter().map(|range| (range.start, range.end - range.start));
            let ranges = ranges.collect();
            self.change_quietly(&Change::PopAcked { place, ranges });
        }
    }

    /// A leased message stays invisible for another time, from now on. The lease gets another number.
    pub(crate) fn change_invisible(&mut self, change: &ChangeInvisible) -> Result<Reply, Refusal> {
        let topic = self.topic_id(&change.topic)?;
        self.end_leases();
        let held = change.message;
        let id = self.progress_of(&change.group, topic, held);
        let id = id.ok_or(Refusal::LeaseEnded)?;
        match self.pops.list[id as usize].lease_of(held.offset) {
            Some((_, lease)) if lease.id == held.lease => {}
            _ => return Err(Refusal::LeaseEnded),
        }
        let lease = self.pops.take_from_lease(id, held.offset).ok_or(Refusal::LeaseEnded)?;
        if change.invisible.0 == 0 {
            self.give_back_popped(id, held.offset..held.offset + 1);
            return Ok(Reply::Lease(0));
        }
        let lease_id = self.pops.new_lease_id();
        let lease = Lease {
            until: self.now.mono + change.invisible,
            id: lease_id,
            attempt: 0,
            ..lease
        };
        self.deadline_moved = true;
        self.pops.put_lease(id, held.offset, lease);
        Ok(Reply::Lease(lease_id))
    }
}
