//! Whether everything came, once, and in order.

use std::collections::VecDeque;

use super::body::Stamp;

/// Numbers that were seen, of one publisher in one queue. In-order numbers cost nothing; those that are ahead
/// of a gap cost a bit each.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// All below were seen.
    below: u64,
    /// From `below` on, 64 to a word; the first bit of the first word is `below`'s.
    ahead: VecDeque<u64>,
    /// Bits of the first word that are below `below`.
    offset: u32,
}

/// The most words ahead of a gap: half a billion messages. Beyond it they count as seen for the first time.
const AHEAD_MAX: usize = 1 << 23;

impl Seen {
    /// All numbers below were seen, and this one was not.
    pub fn below(&self) -> u64 {
        self.below
    }

    /// False when it was seen before.
    pub fn insert(&mut self, number: u64) -> bool {
        if number < self.below {
            return false;
        }
        if self.ahead.is_empty() && number == self.below {
            self.below += 1;
            return true;
        }
        if self.ahead.is_empty() {
            self.offset = 0;
        }
        let bit = number - self.below + u64::from(self.offset);
        let word = (bit / 64) as usize;
        if word >= AHEAD_MAX {
            return true;
        }
        if word >= self.ahead.len() {
            self.ahead.resize(word + 1, 0);
        }
        let mask = 1 << (bit % 64);
        if self.ahead[word] & mask != 0 {
            return false;
        }
        self.ahead[word] |= mask;
        while let Some(first) = self.ahead.front() {
            let ones = (first >> self.offset).trailing_ones().min(64 - self.offset);
            self.below += u64::from(ones);
            self.offset += ones;
            if self.offset < 64 {
                break;
            }
            self.ahead.pop_front();
            self.offset = 0;
        }
        true
    }
}

/// What consumers that share queues have received.
#[derive(Debug, Default)]
pub struct Tally {
    streams: Vec<Seen>,
    /// Different messages.
    pub unique: u64,
    /// Deliveries of a message that had come before.
    pub duplicated: u64,
}

impl Tally {
    /// Counts a message of a stream. False when it came before.
    pub fn count(&mut self, stream: usize, sequence: u64) -> bool {
        if stream >= self.streams.len() {
            self.streams.resize(stream + 1, Seen::default());
        }
        let new = self.streams[stream].insert(sequence);
        if new {
            self.unique += 1;
        } else {
            self.duplicated += 1;
        }
        new
    }
}

/// What one consumer saw last of each stream.
#[derive(Debug, Default)]
pub struct Order {
    next: Vec<u64>,
    /// Messages that came after a later one of the same publisher in the same queue.
    pub wrong: u64,
}

impl Order {
    /// Notes a message that was not seen before.
    pub fn see(&mut self, stream: usize, sequence: u64) {
        if stream >= self.next.len() {
            self.next.resize(stream + 1, 0);
        }
        if sequence >= self.next[stream] {
            self.next[stream] = sequence + 1;
        } else {
            self.wrong += 1;
        }
    }
}

/// Which streams a consumer can see, packed: `publishers` of every `stride`th queue.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    pub publishers: u32,
    pub queues: u32,
    /// The consumer's queues are `first`, `first + stride`, ...
    pub stride: u32,
}

impl Streams {
    /// The stream of a message; none when no publisher of this run can have sent it.
    pub fn of(&self, stamp: &Stamp) -> Option<usize> {
        if u32::from(stamp.publisher) >= self.publishers || stamp.queue >= self.queues {
            return None;
        }
        Some((stamp.queue / self.stride) as usize * self.publishers as usize + usize::from(stamp.publisher))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_in_any_order_are_new_once() {
        let mut state = 1_u64;
        let mut seen = Seen::default();
        let mut model = HashSet::new();
        for step in 0..200_000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (step / 2).saturating_sub(500) + (state >> 33) % 1000;
            assert_eq!(seen.insert(number), model.insert(number), "{number}");
        }
    }

    #[test]
    fn what_comes_in_order_needs_no_memory() {
        let mut seen = Seen::default();
        assert!((0..1000).all(|number| seen.insert(number)));
        assert!(seen.ahead.is_empty() && !seen.insert(999) && seen.insert(1000));
    }

    #[test]
    fn a_late_message_is_out_of_order_and_a_second_one_is_not() {
        let (mut tally, mut order) = (Tally::default(), Order::default());
        for sequence in [0, 1, 3, 2, 3, 4] {
            if tally.count(0, sequence) {
                order.see(0, sequence);
            }
        }
        assert_eq!((tally.unique, tally.duplicated, order.wrong), (5, 1, 1));
    }
}
