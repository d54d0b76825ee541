//! What each segment of the log is still needed for.

use std::collections::VecDeque;

use crate::time::Millis;

/// One segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Entries that need a record of it: queues', timers' and others', not topics'.
    pub pins: i64,
    /// Such entries that there ever were.
    pub pinned: u64,
    /// The time until which topics want its messages.
    pub keep_until: Millis,
}

/// The segments that were written to, by number.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// Number of `all[0]`.
    first: u64,
    all: VecDeque<Segment>,
}

impl Segments {
    /// The segment of that number.
    pub(crate) fn get(&self, number: u64) -> Segment {
        let index = number.checked_sub(self.first);
        index
            .and_then(|index| self.all.get(index as usize))
            .copied()
            .unwrap_or_default()
    }

    /// The segment of that number, to be changed.
    pub(crate) fn at(&mut self, number: u64) -> &mut Segment {
        if self.all.is_empty() {
            self.first = number;
        }
        while number < self.first {
            self.all.push_front(Segment::default());
            self.first -= 1;
        }
        let index = (number - self.first) as usize;
        if index >= self.all.len() {
            self.all.resize_with(index + 1, Segment::default);
        }
        &mut self.all[index]
    }

    /// One more entry needs a record of that segment.
    pub(crate) fn pin(&mut self, number: u64) {
        let segment = self.at(number);
        segment.pins += 1;
        segment.pinned += 1;
    }

    /// One entry fewer does.
    pub(crate) fn unpin(&mut self, number: u64) {
        let segment = self.at(number);
        segment.pins -= 1;
        debug_assert!(segment.pins >= 0, "segment {number} is released more often than held");
    }

    /// The segment is gone.
    pub(crate) fn forget(&mut self, number: u64) {
        *self.at(number) = Segment::default();
        while self.all.len() > 1 && self.all[0] == Segment::default() {
            self.all.pop_front();
            self.first += 1;
        }
    }

    /// All of them, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Segment)> + '_ {
        (self.first..).zip(self.all.iter().copied())
    }
}
