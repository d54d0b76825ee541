//! What groups that pop have done with message queues: what tools see of it, and how it outlives the broker.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::POP_MAX;
use super::leases::Lease;
use crate::engine::change::Change;
use crate::engine::ranges::Ranges;
use crate::engine::state::State;

/// What one group has done with one message queue.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub group: Bytes,
    pub topic: u32,
    pub queue: u32,
    /// Everything before is done with.
    pub head: u64,
    /// From here on nothing was handed out or put aside.
    pub next: u64,
    pub acked: Ranges,
    pub ready: Ranges,
    pub leases: BTreeMap<u64, Lease>,
    /// Messages in them.
    pub leased: u64,
    /// How often those that are not done with came back.
    pub attempts: BTreeMap<u64, u32>,
    /// Messages below this may have been handed out in an earlier life.
    pub suspect_below: u64,
}

/// A progress as changes tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PopPlace {
    pub group: Bytes,
    pub topic: Bytes,
    pub queue: u32,
}

impl Progress {
    pub(super) fn advance(&mut self) {
        let first = self.acked.iter().next();
        if let Some(first) = first.filter(|first| first.start <= self.head) {
            let to = first.end.max(self.head);
            self.acked.remove(0..to, |_| {});
            self.head = to;
        }
        self.next = self.next.max(self.head);
    }

    pub(super) fn ack(&mut self, range: Range<u64>) {
        let range = range.start.max(self.head)..range.end;
        if range.is_empty() {
            return;
        }
        self.ready.remove(range.clone(), |_| {});
        while let Some((offset, _)) = self.attempts.range(range.clone()).next() {
            let offset = *offset;
            self.attempts.remove(&offset);
        }
        self.acked.insert(range);
        self.advance();
    }

    /// The lease that holds a message, and its first.
    pub(super) fn lease_of(&self, offset: u64) -> Option<(u64, &Lease)> {
        let (first, lease) = self.leases.range(..=offset).next_back()?;
        (offset < first + u64::from(lease.count)).then_some((*first, lease))
    }

    /// What of a lease comes back: its message queue may have given up the rest meanwhile.
    pub(super) fn still_there(&self, leased: Range<u64>) -> Range<u64> {
        leased.start.max(self.head)..leased.end
    }

    /// Everything before is gone from the message queue.
    pub(super) fn skip_to(&mut self, start: u64) {
        if start > self.head {
            let range = self.head..start;
            self.ready.remove(range.clone(), |_| {});
            self.attempts = self.attempts.split_off(&start);
            self.acked.insert(range);
            self.advance();
        }
    }

    /// Begins anew from an offset.
    pub(super) fn reset(&mut self, offset: u64) {
        (self.head, self.next) = (offset, offset);
        self.acked = Ranges::default();
        self.ready = Ranges::default();
        self.attempts.clear();
        self.suspect_below = 0;
    }
}

impl State {
    pub(super) fn put_pop_progress(&mut self, group: Bytes, topic: u32, queue: u32, offset: u64) -> u32 {
        let id = self.pops.list.len() as u32;
        self.pops.ids.insert((group.clone(), topic, queue), id);
        self.pops.list.push(Progress {
            group,
            topic,
            queue,
            head: offset,
            next: offset,
            ..Progress::default()
        });
        id
    }

    pub(super) fn pop_place(&self, id: u32) -> PopPlace {
        let progress = &self.pops.list[id as usize];
        PopPlace {
            group: progress.group.clone(),
            topic: self.topics[progress.topic as usize].name.clone(),
            queue: progress.queue,
        }
    }

    /// What tools see as the committed offset of a group that pops: its first message that is not done with; and how
    /// many are leased.
    pub(crate) fn popped_offset(&self, group: &Bytes, topic: u32, queue: u32) -> Option<(u64, u64)> {
        let id = self.pops.ids.get(&(group.clone(), topic, queue))?;
        let progress = &self.pops.list[*id as usize];
        Some((progress.head, progress.leased))
    }

    /// The group goes on from that offset: leases end, and whoever holds one cannot settle it any more.
    pub(crate) fn reset_popped(&mut self, group: &Bytes, topic: u32, queue: u32, offset: u64) {
        let Some(id) = self.pops.ids.get(&(group.clone(), topic, queue)).copied() else {
            return;
        };
        self.pops.drop_leases(id);
        self.pops.list[id as usize].reset(offset);
        self.pops.wake(topic);
    }

    fn replay_progress(&mut self, place: &PopPlace) -> Option<&mut Progress> {
        let topic = self.topic_ids.get(&place.topic).copied()?;
        let id = match self.pops.ids.get(&(place.group.clone(), topic, place.queue)) {
            Some(id) => *id,
            None => self.put_pop_progress(place.group.clone(), topic, place.queue, 0),
        };
        self.pops.list.get_mut(id as usize)
    }

    pub(crate) fn replay_pop_state(&mut self, place: &PopPlace, head: u64, next: u64, acked: &[(u64, u64)]) {
        if let Some(progress) = self.replay_progress(place) {
            progress.reset(head);
            progress.next = next.max(head);
            for (first, count) in acked {
                progress.acked.insert(*first..first.saturating_add(*count));
            }
        }
    }

    pub(crate) fn replay_pop_acked(&mut self, place: &PopPlace, ranges: &[(u64, u64)]) {
        if let Some(progress) = self.replay_progress(place) {
            for (first, count) in ranges {
                let end = first.saturating_add(*count);
                progress.next = progress.next.max(end);
                progress.ack(*first..end);
            }
        }
    }

    pub(crate) fn replay_pop_returned(&mut self, place: &PopPlace, runs: &[(u64, u64, u32)]) {
        if let Some(progress) = self.replay_progress(place) {
            for (first, count, attempts) in runs {
                let end = first.saturating_add((*count).min(u64::from(POP_MAX)));
                progress.next = progress.next.max(end);
                for offset in (*first).max(progress.head)..end {
                    if !progress.acked.contains(offset) {
                        progress.attempts.insert(offset, *attempts);
                    }
                }
            }
        }
    }

    /// After a replay nothing is leased: what is not done with is ready, and may have been handed out.
    pub(crate) fn replay_pops_done(&mut self) {
        let Self { pops, topics, .. } = self;
        for progress in &mut pops.list {
            let queue = topics[progress.topic as usize].queues.get(progress.queue as usize);
            let (start, end) = queue.map_or((0, 0), |queue| (queue.entries.head(), queue.entries.end()));
            if progress.next > end {
                let acked: Vec<_> = progress.acked.iter().collect();
                let head = progress.head.min(end);
                let attempts = std::mem::take(&mut progress.attempts);
                progress.reset(head);
                progress.next = end;
                progress.attempts = attempts.into_iter().filter(|(offset, _)| *offset < end).collect();
                acked
                    .into_iter()
                    .for_each(|range| progress.acked.insert(range.start..range.end.min(end).max(range.start)));
            }
            progress.skip_to(start);
            let mut ready = Ranges::default();
            ready.insert(progress.head..progress.next);
            for range in progress.acked.iter() {
                ready.remove(range, |_| {});
            }
            progress.ready = ready;
            progress.suspect_below = end;
        }
    }

    /// Puts the next of the groups' progress. Gives whether there is no more.
    pub(crate) fn checkpoint_pops(&self, at: &mut usize, put: &mut dyn FnMut(&Change)) -> bool {
        let Some(progress) = self.pops.list.get(*at) else {
            return true;
        };
        let place = self.pop_place(*at as u32);
        *at += 1;
        let ranges = progress
            .acked
            .iter()
            .map(|range| (range.start, range.end - range.start));
        put(&Change::PopState {
            place: place.clone(),
            head: progress.head,
            next: progress.next,
            acked: ranges.collect(),
        });
        let runs: Vec<_> = progress
            .attempts
            .iter()
            .map(|(offset, attempts)| (*offset, 1, *attempts))
            .collect();
        for runs in runs.chunks(512) {
            put(&Change::PopReturned {
                place: place.clone(),
                runs: runs.to_vec(),
            });
        }
        false
    }
}
