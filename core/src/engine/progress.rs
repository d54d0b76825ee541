//! What a queue's consumers have done with its entries: lease mode.
//!
//! ```text
//!    head                next                 end
//!     |  acked, leased,   |  never handed out  |
//!     |  or returned      |                    |
//! ```
//! An entry is acked (a bit), returned (in a set of ranges, delivered again first), leased (neither), or
//! not handed out yet. Counts are differences of counters, never scans.

use std::collections::VecDeque;
use std::ops::Range;

use crate::engine::ranges::Ranges;
use crate::store::record::Position;
use crate::time::Millis;

/// A place in the log (or in memory) that an index points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
pub(crate) struct Entry {
    pub position: Position,
    /// Length of the record, bytes.
    pub size: u32,
    /// In a topic's message queue: the tag's hash. In a queue: when it expires, Unix milliseconds, 0 for
    /// never, and flags above that.
    pub word: u64,
}

/// The part of a queue entry's word that says when it expires.
pub(crate) const EXPIRES: u64 = (1 << 48) - 1;
/// In a queue entry's word: the message is a last value that was there before somebody asked for it.
pub(crate) const RECALLED: u64 = 1 << 63;

impl Entry {
    /// Whether a queue's entry has expired.
    pub(crate) fn is_expired(self, wall: Millis) -> bool {
        let at = self.word & EXPIRES;
        at != 0 && at <= wall.0
    }

    /// Whether it is a last value that was there before.
    pub(crate) fn is_recalled(self) -> bool {
        self.word & RECALLED != 0
    }
}

/// Entries of one queue from `head` on and what became of them.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    entries: VecDeque<Entry>,
    /// One for each of `entries`.
    acked: VecDeque<bool>,
    head: u64,
    next: u64,
    returned: Ranges,
    /// Acked entries before `next`.
    acked_behind: u64,
    /// Acked entries that were never handed out (purge, limit, transient messages before a restart).
    acked_ahead: u64,
    /// Entries below this may have been delivered in an earlier life of the broker.
    suspect_below: u64,
    /// Bytes of records not acked.
    bytes: u64,
}

/// An entry taken to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub sequence: u64,
    pub entry: Entry,
    pub redelivered: bool,
}

/// Stands for a message that never became an entry.
const NO_ENTRY: Entry = Entry {
    position: Position(0),
    size: 0,
    word: 0,
};

impl Progress {
    /// The sequence that the next entry gets.
    pub(crate) fn end(&self) -> u64 {
        self.head + self.entries.len() as u64
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
    #[cfg(test)]
    pub(crate) fn leased(&self) -> u64 {
        (self.next - self.head) - self.acked_behind - self.returned.count()
    }

    /// Bytes of records that are not acked.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends an entry and gives its sequence.
    pub(crate) fn push(&mut self, entry: Entry) -> u64 {
        let sequence = self.end();
        self.entries.push_back(entry);
        self.acked.push_back(false);
        self.bytes += u64::from(entry.size);
        sequence
    }

    /// A message was handed over and is done with before it became an entry: only its sequence is used.
    /// Must not be called while anything is ready.
    pub(crate) fn pass(&mut self) -> u64 {
        debug_assert_eq!(self.ready(), 0);
        let sequence = self.end();
        if self.entries.is_empty() {
            self.head += 1;
            self.next = self.head;
        } else {
            self.entries.push_back(NO_ENTRY);
            self.acked.push_back(true);
            self.acked_behind += self.end() - self.next;
            self.acked_ahead = 0;
            self.next = self.end();
        }
        sequence
    }

    /// The entry that [`take`](Self::take) would give.
    pub(crate) fn peek(&mut self) -> Option<Entry> {
        if let Some(range) = self.returned.iter().next() {
            return Some(self.entries[(range.start - self.head) as usize]);
        }
        let fresh = (self.next - self.head) as usize;
        let index = (fresh..self.entries.len()).find(|index| !self.acked[*index])?;
        Some(self.entries[index])
    }

    /// Takes the next entry to be delivered: returned ones first, in their order.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        if let Some(sequence) = self.returned.pop_first() {
            let entry = self.entries[(sequence - self.head) as usize];
            return Some(Taken {
                sequence,
                entry,
                redelivered: true,
            });
        }
        while self.next < self.end() {
            let sequence = self.next;
            let index = (sequence - self.head) as usize;
            self.next += 1;
            if self.acked[index] {
                self.acked_ahead -= 1;
                self.acked_behind += 1;
                continue;
            }
            let redelivered = sequence < self.suspect_below;
            return Some(Taken {
                sequence,
                entry: self.entries[index],
                redelivered,
            });
        }
        None
    }

    /// Entries are done with. Calls `gone` with each that was not before.
    pub(crate) fn ack(&mut self, range: Range<u64>, mut gone: impl FnMut(Entry)) {
        let range = range.start.max(self.head)..range.end.min(self.end());
        if range.is_empty() {
            return;
        }
        self.returned.remove(range.clone(), |_| {});
        for sequence in range {
            let index = (sequence - self.head) as usize;
            if !std::mem::replace(&mut self.acked[index], true) {
                self.bytes -= u64::from(self.entries[index].size);
                if sequence < self.next {
                    self.acked_behind += 1;
                } else {
                    self.acked_ahead += 1;
                }
                gone(self.entries[index]);
            }
        }
        self.advance();
    }

    /// Leased entries go back to their places.
    pub(crate) fn release(&mut self, range: Range<u64>) {
        debug_assert!(range.start >= self.head && range.end <= self.next);
        self.returned.insert(range);
    }

    /// Removes the entry that would be delivered next and gives its sequence.
    pub(crate) fn drop_next(&mut self, gone: impl FnMut(Entry)) -> Option<u64> {
        let taken = self.take()?;
        self.ack(taken.sequence..taken.sequence + 1, gone);
        Some(taken.sequence)
    }

    /// Everything ready is within these ranges: what a purge removes.
    pub(crate) fn ready_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<_> = self.returned.iter().collect();
        if self.next < self.end() {
            ranges.push(self.next..self.end());
        }
        ranges
    }

    /// All entries that are not acked.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries
            .iter()
            .zip(&self.acked)
            .filter(|(_, acked)| !**acked)
            .map(|(entry, _)| *entry)
    }

    /// Replay: puts an entry at its sequence. Sequences that are left out belonged to transient messages
    /// and count as acked. Gives whether the entry was new.
    pub(crate) fn replay_push(&mut self, sequence: u64, entry: Entry) -> bool {
        if self.entries.is_empty() && sequence >= self.head {
            self.head = sequence;
            self.next = sequence;
        }
        while self.end() < sequence {
            self.entries.push_back(NO_ENTRY);
            self.acked.push_back(true);
            self.acked_ahead += 1;
        }
        let is_new = sequence == self.end();
        if is_new {
            self.push(entry);
        }
        is_new
    }

    /// Ends a replay. `delivered_below` is the clean stop's word on what had been handed out; without it
    /// everything may have been, if there ever was a consumer.
    pub(crate) fn replay_done(&mut self, delivered_below: Option<u64>, had_consumer: bool) {
        self.suspect_below = match delivered_below {
            Some(below) => below,
            None if had_consumer => self.end(),
            None => 0,
        };
    }

    fn advance(&mut self) {
        while self.acked.front() == Some(&true) {
            self.entries.pop_front();
            self.acked.pop_front();
            if self.head < self.next {
                self.acked_behind -= 1;
            } else {
                self.acked_ahead -= 1;
                self.next += 1;
            }
            self.head += 1;
        }
        if self.entries.is_empty() && self.entries.capacity() > 1024 {
            self.entries = VecDeque::new();
            self.acked = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut progress = Progress::default();
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
        let mut progress = Progress::default();
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
