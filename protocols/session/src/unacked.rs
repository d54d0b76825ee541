//! Deliveries that a client has not settled yet, as runs: neighbours in one queue with neighbouring
//! delivery tags are one entry, however many they are.

use std::collections::VecDeque;

use rocketbridge_core::boundary::{Settle, Settlement, SubscriptionId};

/// Deliveries with consecutive tags from consecutive places in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    tag: u64,
    count: u32,
    subscription: SubscriptionId,
    sequence: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.tag + u64::from(self.count)
    }

    fn settlement(&self, action: Settle) -> Settlement {
        Settlement {
            subscription: self.subscription,
            first: self.sequence,
            count: self.count,
            action,
        }
    }

    /// The deliveries from `tag` on, which must lie inside.
    fn tail(&self, tag: u64) -> Self {
        let skipped = tag - self.tag;
        Self {
            tag,
            count: self.count - skipped as u32,
            subscription: self.subscription,
            sequence: self.sequence + skipped,
        }
    }

    /// The first `count` deliveries.
    fn head(&self, count: u64) -> Self {
        Self {
            count: count as u32,
            ..*self
        }
    }
}

/// Unsettled deliveries of one channel or subscription, by delivery tag.
#[derive(Clone, Debug, Default)]
pub struct Unacked {
    runs: VecDeque<Run>,
}

impl Unacked {
    /// Remembers a delivery; tags only rise.
    pub fn push(&mut self, tag: u64, subscription: SubscriptionId, sequence: u64) {
        if let Some(last) = self.runs.back_mut()
            && last.end() == tag
            && last.subscription == subscription
            && last.sequence + u64::from(last.count) == sequence
            && last.count < u32::MAX
        {
            last.count += 1;
            return;
        }
        self.runs.push_back(Run {
            tag,
            count: 1,
            subscription,
            sequence,
        });
    }

    /// Whether that tag is unsettled.
    pub fn contains(&self, tag: u64) -> bool {
        let at = self.runs.partition_point(|run| run.end() <= tag);
        self.runs.get(at).is_some_and(|run| run.tag <= tag)
    }

    /// Puts back deliveries that were taken out, the first of which has that tag.
    pub fn restore(&mut self, tag: u64, settlement: &Settlement) {
        let at = self.runs.partition_point(|run| run.tag < tag);
        let run = Run {
            tag,
            count: settlement.count,
            subscription: settlement.subscription,
            sequence: settlement.first,
        };
        self.runs.insert(at, run);
    }

    /// Takes out one delivery. `false` when that tag is not unsettled.
    #[must_use]
    pub fn settle_one(&mut self, tag: u64, action: Settle, each: impl FnOnce(u64, Settlement)) -> bool {
        let at = self.runs.partition_point(|run| run.end() <= tag);
        let Some(run) = self.runs.get_mut(at).filter(|run| run.tag <= tag) else {
            return false;
        };
        each(tag, run.tail(tag).head(1).settlement(action));
        let before = tag - run.tag;
        let after = run.end() - tag - 1;
        if before == 0 && after == 0 {
            self.runs.remove(at);
        } else if before == 0 {
            *run = run.tail(tag + 1);
        } else if after == 0 {
            *run = run.head(before);
        } else {
            let rest = run.tail(tag + 1);
            *run = run.head(before);
            self.runs.insert(at + 1, rest);
        }
        self.shrink();
        true
    }

    /// Takes out all deliveries up to and with that tag. `false`, with nothing taken, when that tag is not
    /// unsettled.
    #[must_use]
    pub fn settle_up_to(&mut self, tag: u64, action: Settle, mut each: impl FnMut(u64, Settlement)) -> bool {
        let at = self.runs.partition_point(|run| run.end() <= tag);
        if self.runs.get(at).is_none_or(|run| run.tag > tag) {
            return false;
        }
        for run in self.runs.drain(..at) {
            each(run.tag, run.settlement(action));
        }
        if let Some(first) = self.runs.front_mut() {
            let count = tag + 1 - first.tag;
            each(first.tag, first.head(count).settlement(action));
            if first.end() == tag + 1 {
                self.runs.pop_front();
            } else {
                *first = first.tail(tag + 1);
            }
        }
        self.shrink();
        true
    }

    /// Takes out everything.
    pub fn settle_all(&mut self, action: Settle, mut each: impl FnMut(u64, Settlement)) {
        for run in std::mem::take(&mut self.runs) {
            each(run.tag, run.settlement(action));
        }
    }

    fn shrink(&mut self) {
        if self.runs.is_empty() && self.runs.capacity() > 64 {
            self.runs = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SubscriptionId = SubscriptionId(1);
    const TWO: SubscriptionId = SubscriptionId(2);

    fn pushed(count: u64) -> Unacked {
        let mut unacked = Unacked::default();
        (1..=count).for_each(|tag| unacked.push(tag, ONE, 100 + tag));
        unacked
    }

    fn settled(subscription: SubscriptionId, first: u64, count: u32) -> Settlement {
        Settlement {
            subscription,
            first,
            count,
            action: Settle::Ack,
        }
    }

    #[test]
    fn a_million_deliveries_in_a_row_are_one_run_and_one_settlement() {
        let mut unacked = pushed(1_000_000);
        assert_eq!(unacked.runs.len(), 1);
        let mut all = Vec::new();
        assert!(unacked.settle_up_to(1_000_000, Settle::Ack, |_, s| all.push(s)));
        assert_eq!(all, [settled(ONE, 101, 1_000_000)]);
        assert_eq!(unacked.runs.len(), 0);
    }

    #[test]
    fn what_is_put_back_is_settled_as_if_nothing_had_been() {
        let mut unacked = pushed(6);
        let mut taken = Vec::new();
        assert!(unacked.settle_one(5, Settle::Ack, |tag, s| taken.push((tag, s))));
        assert!(unacked.settle_up_to(3, Settle::Ack, |tag, s| taken.push((tag, s))));
        for (tag, settlement) in taken {
            unacked.restore(tag, &settlement);
        }
        let mut all = Vec::new();
        unacked.settle_all(Settle::Ack, |tag, s| all.push((tag, s.first, s.count)));
        assert_eq!(all, [(1, 101, 3), (4, 104, 1), (5, 105, 1), (6, 106, 1)]);
    }

    #[test]
    fn a_tag_is_settled_once() {
        let mut unacked = pushed(5);
        let mut all = Vec::new();
        for tag in [3, 1, 5, 2, 4] {
            assert!(unacked.settle_one(tag, Settle::Ack, |_, s| all.push(s.first)));
            assert!(!unacked.settle_one(tag, Settle::Ack, |_, _| panic!("settled twice")));
        }
        assert_eq!(all, [103, 101, 105, 102, 104]);
        assert!(!unacked.settle_one(0, Settle::Ack, |_, _| panic!("tag 0")));
        assert!(!unacked.settle_one(6, Settle::Ack, |_, _| panic!("tag 6")));
        assert!(!unacked.contains(5) && pushed(5).contains(5) && !pushed(5).contains(6));
    }

    #[test]
    fn multiple_takes_what_is_below_and_nothing_when_the_tag_is_unknown() {
        let mut unacked = pushed(3);
        unacked.push(5, TWO, 7);
        unacked.push(6, TWO, 8);
        assert!(!unacked.settle_up_to(4, Settle::Ack, |_, _| panic!("tag 4 was never leased")));
        let mut all = Vec::new();
        assert!(unacked.settle_up_to(5, Settle::Ack, |_, s| all.push(s)));
        assert_eq!(all, [settled(ONE, 101, 3), settled(TWO, 7, 1)]);
        all.clear();
        unacked.settle_all(Settle::Ack, |_, s| all.push(s));
        assert_eq!(all, [settled(TWO, 8, 1)]);
    }
}
