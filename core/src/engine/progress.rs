//! What a queue's consumers have done with its entries: lease mode.
//!
//! ```text
//!    head                next                 end
//!     |  acked, leased,   |  never handed out  |
//!     |  or returned      |                    |
//! ```
//! An entry is acked (a bit), returned (in a set of ranges, delivered again first), leased (neither), or
//! not handed out yet. Counts are differences of counters, never scans.

use std::ops::Range;

use crate::engine::entries::EntryList;
use crate::engine::ranges::Ranges;
pub(crate) use crate::store::pages::{Entry, RECALLED};

/// Entries of one queue from the head on and what became of them.
pub(crate) struct Progress {
    entries: EntryList,
    next: u64,
    returned: Ranges,
    /// Acked entries between head and `next`.
    acked_behind: u64,
    /// Acked entries that were never handed out (purge, limit, transient messages before a restart).
    acked_ahead: u64,
    /// Entries below this may have been delivered in an earlier life of the broker.
    suspect_below: u64,
    /// Bytes of bodies not acked.
    bytes: u64,
}

/// An entry taken to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub sequence: u64,
    pub entry: Entry,
    pub redelivered: bool,
}

impl Progress {
    /// Nothing was ever in the list.
    pub(crate) fn new(entries: EntryList) -> Self {
        Self {
            next: entries.head(),
            entries,
            returned: Ranges::default(),
            acked_behind: 0,
            acked_ahead: 0,
            suspect_below: 0,
            bytes: 0,
        }
    }

    /// The sequence that the next entry gets.
    pub(crate) fn end(&self) -> u64 {
        self.entries.end()
    }

    /// The first sequence never handed out.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Entries waiting to be delivered.
    pub(crate) fn ready(&self) -> u64 {
        (self.end() - self.next - self.acked_ahead) + self.returned.count()
    }

    /// Entries leased.
    pub(crate) fn leased(&self) -> u64 {
        (self.next - self.entries.head()) - self.acked_behind - self.returned.count()
    }

    /// Bytes of bodies that are not acked.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends an entry and gives its sequence.
    pub(crate) fn push(&mut self, entry: Entry) -> u64 {
        self.bytes += entry.body_len();
        self.entries.push(entry)
    }

    /// A message was handed over and is done with before it became an entry: only its sequence is used.
    /// Must not be called while anything is ready.
    pub(crate) fn pass(&mut self) -> u64 {
        debug_assert_eq!(self.ready(), 0);
        let sequence = self.end();
        let head = self.entries.head();
        if self.entries.is_empty() {
            self.entries.skip_to(sequence + 1);
            self.next = sequence + 1;
        } else {
            self.entries.push_done();
            self.acked_behind += self.end() - self.next;
            self.acked_ahead = 0;
            self.next = self.end();
            self.head_moved(head);
        }
        sequence
    }

    /// The entry that [`take`](Self::take) would give.
    pub(crate) fn peek(&mut self) -> Option<Entry> {
        let sequence = match self.returned.iter().next() {
            Some(range) => range.start,
            None => self.entries.next_open(self.next)?,
        };
        self.entries.get(sequence)
    }

    /// Takes the next entry to be delivered: returned ones first, in their order.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        if let Some(sequence) = self.returned.pop_first() {
            let entry = self.entries.get(sequence).unwrap_or(Entry::NONE);
            return Some(Taken {
                sequence,
                entry,
                redelivered: true,
            });
        }
        let sequence = self.entries.next_open(self.next);
        let skipped = sequence.unwrap_or_else(|| self.end()) - self.next;
        self.acked_ahead -= skipped;
        self.acked_behind += skipped;
        self.next += skipped;
        let sequence = sequence?;
        self.next += 1;
        // What cannot be read is handed on: there is no record of that size, so it is found missing.
        let entry = self.entries.get(sequence).unwrap_or(Entry::NONE);
        Some(Taken {
            sequence,
            entry,
            redelivered: sequence < self.suspect_below,
        })
    }

    /// The first entry at or after `from` that waits to be delivered.
    pub(crate) fn next_ready(&self, from: u64) -> Option<u64> {
        if from < self.next
            && let Some(returned) = self.returned.next(from)
        {
            return Some(returned);
        }
        self.entries.next_open(self.next.max(from))
    }

    /// Whether an entry came back and waits to be delivered again.
    pub(crate) fn has_returned(&self, sequence: u64) -> bool {
        self.returned.contains(sequence)
    }

    /// Takes an entry out of turn: one that came back, or the first that was never handed out.
    pub(crate) fn take_at(&mut self, sequence: u64) -> Option<Taken> {
        if sequence >= self.next {
            let returned = std::mem::take(&mut self.returned);
            let taken = self.take();
            self.returned = returned;
            debug_assert_eq!(taken.map(|taken| taken.sequence), Some(sequence));
            return taken;
        }
        self.returned.remove(sequence..sequence + 1, |_| {});
        Some(Taken {
            sequence,
            entry: self.entries.get(sequence).unwrap_or(Entry::NONE),
            redelivered: true,
        })
    }

    /// Entries are done with. Calls `gone` with each that was not before.
    pub(crate) fn ack(&mut self, range: Range<u64>, mut gone: impl FnMut(Entry)) {
        let range = range.start.max(self.entries.head())..range.end.min(self.end());
        if range.is_empty() {
            return;
        }
        self.returned.remove(range.clone(), |_| {});
        let head = self.entries.head();
        let Self {
            entries,
            next,
            acked_behind,
            acked_ahead,
            bytes,
            ..
        } = self;
        entries.finish(range, |sequence, entry| {
            if sequence < *next {
                *acked_behind += 1;
            } else {
                *acked_ahead += 1;
            }
            if let Some(entry) = entry {
                *bytes -= entry.body_len();
                gone(entry);
            }
        });
        self.head_moved(head);
    }

    /// Leased entries go back to their places.
    pub(crate) fn release(&mut self, range: Range<u64>) {
        debug_assert!(range.start >= self.entries.head() && range.end <= self.next);
        self.returned.insert(range);
    }

    /// Takes everything that is ready: it is within these ranges.
    pub(crate) fn take_all(&mut self) -> Vec<Range<u64>> {
        let mut ranges: Vec<_> = std::mem::take(&mut self.returned).iter().collect();
        if self.next < self.end() {
            ranges.push(self.next..self.end());
            self.acked_behind += self.acked_ahead;
            self.acked_ahead = 0;
            self.next = self.end();
        }
        ranges
    }

    /// An entry that is kept.
    pub(crate) fn entry(&self, sequence: u64) -> Option<Entry> {
        self.entries.get(sequence)
    }

    /// Bytes of the bodies of what is leased: looks at every entry that was handed out.
    pub(crate) fn count_leased_bytes(&self) -> u64 {
        let returned = |at: u64| self.returned.contains(at);
        let handed_out = self.entries.iter_from(0).take_while(|(at, _)| *at < self.next);
        handed_out
            .filter(|(at, _)| !returned(*at))
            .map(|(_, entry)| entry.body_len())
            .sum()
    }

    /// All entries that are not acked.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter_from(0).map(|(_, entry)| entry)
    }

    /// The entries themselves, for checkpoints and for moving records.
    pub(crate) fn list(&self) -> &EntryList {
        &self.entries
    }

    pub(crate) fn list_mut(&mut self) -> &mut EntryList {
        &mut self.entries
    }

    /// Replay: puts an entry at its sequence. Sequences that are left out belonged to transient messages
    /// and count as acked. Gives whether the entry was new.
    pub(crate) fn replay_push(&mut self, sequence: u64, entry: Entry) -> bool {
        if self.entries.is_empty() && sequence >= self.end() {
            self.entries.skip_to(sequence);
            self.next = sequence;
            self.acked_ahead = 0;
            self.acked_behind = 0;
        }
        while self.end() < sequence {
            self.entries.push_done();
            self.acked_ahead += 1;
        }
        let is_new = sequence == self.end();
        if is_new {
            self.push(entry);
        }
        is_new
    }

    /// Everything before this may have been delivered, in this life of the broker or an earlier one.
    pub(crate) fn maybe_delivered_below(&self) -> u64 {
        self.next.max(self.suspect_below.min(self.end()))
    }

    /// Ends a replay. `delivered_below` is the clean stop's word on what had been handed out; without it
    /// everything may have been, if there ever was a consumer.
    pub(crate) fn replay_done(&mut self, delivered_below: Option<u64>, had_consumer: bool) {
        self.suspect_below = match delivered_below {
            // Sequences of transient messages at the end are used again.
            Some(below) => below.min(self.end()),
            None if had_consumer => self.end(),
            None => 0,
        };
    }

    /// After a checkpoint was read back into the list: nothing is handed out, and the sizes of open entries
    /// come to `bytes`.
    pub(crate) fn restored(&mut self, bytes: u64) {
        self.next = self.entries.head();
        self.bytes = bytes;
        self.recount();
    }

    fn recount(&mut self) {
        self.acked_behind = 0;
        self.acked_ahead = self.entries.done_between(self.next..self.end());
    }

    /// The head has moved over acked entries: they are not counted any more.
    fn head_moved(&mut self, before: u64) {
        let head = self.entries.head();
        self.acked_behind -= head.min(self.next) - before;
        if head > self.next {
            self.acked_ahead -= head - self.next;
            self.next = head;
        }
        if self.entries.is_empty() {
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::pages::{ListId, Pages};
    use crate::store::record::Position;
    use crate::store::storage::MemoryStorage;

    fn progress() -> Progress {
        let pages = Arc::new(Pages::new(Arc::new(MemoryStorage::default()), 1 << 20, usize::MAX));
        Progress::new(EntryList::new(ListId(1), &pages))
    }

    fn entry(n: u64) -> Entry {
        Entry {
            position: Position(n),
            size: 1,
            word: 0,
        }
    }

    fn taken(progress: &mut Progress) -> Option<(u64, bool)> {
        progress.take().map(|t| (t.sequence, t.redelivered))
    }

    #[test]
    fn released_entries_come_again_in_their_order_before_fresh_ones() {
        let mut progress = progress();
        for n in 0..6 {
            progress.push(entry(n));
        }
        for n in 0..4 {
            assert_eq!(taken(&mut progress), Some((n, false)));
        }
        progress.release(2..3);
        progress.release(0..1);
        progress.ack(1..2, |_| {});
        assert_eq!((progress.ready(), progress.leased()), (4, 1));
        let order: Vec<_> = std::iter::from_fn(|| taken(&mut progress)).collect();
        assert_eq!(order, [(0, true), (2, true), (4, false), (5, false)]);
        progress.ack(0..6, |_| {});
        assert_eq!((progress.ready(), progress.leased(), progress.bytes()), (0, 0, 0));
        assert_eq!(progress.end(), 6);
    }

    #[test]
    fn counts_agree_with_a_model_under_random_operations() {
        #[derive(Clone, Copy, PartialEq, Debug)]
        enum State {
            Ready,
            Leased,
            Acked,
        }
        let mut seed = 3u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut progress = progress();
        let mut model: Vec<State> = Vec::new();
        for _ in 0..30_000 {
            match random(6) {
                0 | 1 => {
                    assert_eq!(progress.push(entry(0)), model.len() as u64);
                    model.push(State::Ready);
                }
                2 => {
                    let expected = model.iter().position(|s| *s == State::Ready);
                    // Returned entries come first, and they are always before fresh ones.
                    assert_eq!(progress.take().map(|t| t.sequence as usize), expected);
                    if let Some(at) = expected {
                        model[at] = State::Leased;
                    }
                }
                3 => {
                    let start = random(model.len() as u64 + 1);
                    let end = (start + random(4)).min(model.len() as u64);
                    progress.ack(start..end, |_| {});
                    model[start as usize..end as usize].fill(State::Acked);
                }
                4 => {
                    if let Some(at) = model.iter().position(|s| *s == State::Leased) {
                        progress.release(at as u64..at as u64 + 1);
                        model[at] = State::Ready;
                    }
                }
                _ => {
                    if progress.ready() == 0 {
                        assert_eq!(progress.pass(), model.len() as u64);
                        model.push(State::Acked);
                    }
                }
            }
            let count = |state| model.iter().filter(|s| **s == state).count() as u64;
            assert_eq!(
                (progress.ready(), progress.leased()),
                (count(State::Ready), count(State::Leased))
            );
        }
    }
}
