//! Consumers with selectors: each gets what its selector takes, in order; the rest stays in its place for others.
//!
//! A consumer looks at every message once: what it did not take is behind it, and it looks again only at what
//! came back since. So a queue of messages that nobody's selector takes costs each consumer its length once,
//! and nothing per message that comes later.

use std::ops::Range;

use smallvec::SmallVec;

use crate::engine::progress::{Progress, Taken};
use crate::engine::queue::{Consumer, first_of, level_of};
use crate::engine::ranges::Ranges;
use crate::engine::router::QueueId;
use crate::engine::state::{STEPS_MAX, State, Work};
use crate::filter::Sql;
use crate::history::Reason;
use crate::message::Message;

/// Bytes of properties and parts of expressions that cost about what handing out a message does.
const COST_OF_STEP: usize = 4096;

/// What a consumer wants, and what it has looked at already.
pub(crate) struct Selector {
    sql: Box<Sql>,
    /// It looked at everything before, for each level of priority.
    looked: SmallVec<[(u8, u64); 1]>,
    /// What came back since, among that.
    again: Ranges,
}

impl Selector {
    pub(crate) fn new(sql: Box<Sql>) -> Self {
        Self {
            sql,
            looked: SmallVec::new(),
            again: Ranges::default(),
        }
    }

    fn looked_before(&mut self, level: u8) -> &mut u64 {
        let at = self.looked.iter().position(|(known, _)| *known == level);
        let at = at.unwrap_or_else(|| {
            self.looked.push((level, first_of(level)));
            self.looked.len() - 1
        });
        &mut self.looked[at].1
    }

    /// The next message of a level that this consumer has not seen as it waits now.
    fn next_of(&mut self, list: &Progress) -> Option<u64> {
        let level = level_of(list.next());
        while let Some(at) = self.again.next(first_of(level)).filter(|at| level_of(*at) == level) {
            self.again.remove(at..at + 1, |_| {});
            if list.has_returned(at) {
                return Some(at);
            }
        }
        let looked_before = self.looked_before(level);
        let next = list.next_ready(*looked_before)?;
        *looked_before = next + 1;
        Some(next)
    }

    /// Messages are in their places again.
    fn look_again(&mut self, range: Range<u64>) {
        let looked_before = *self.looked_before(level_of(range.start));
        self.again
            .insert(range.start..range.end.min(looked_before.max(range.start)));
    }
}

impl State {
    /// Hands out what is ready in a queue some of whose consumers select.
    pub(crate) fn deliver_selected(&mut self, id: QueueId) {
        // Consumers that found nothing since the last one that did.
        let mut in_vain = 0;
        while self.queue(id).is_some_and(|queue| queue.ready() > 0) {
            if self.steps >= STEPS_MAX {
                let Some(queue) = self.queue(id) else { return };
                queue.dirty = true;
                let steps = queue.ready();
                return self.put_off_steps(Work::Deliver(id), steps);
            }
            let Some(turn) = self.next_consumer(id, in_vain) else {
                break;
            };
            match self.take_for(id, turn.consumer) {
                Some((taken, message)) => {
                    in_vain = 0;
                    self.hand_out(id, turn, taken, message);
                }
                // Otherwise it may have looked at as much as a hold may.
                None if self.steps < STEPS_MAX => in_vain = turn.step + 1,
                None => {}
            }
        }
        self.watch_head(id);
    }

    /// Takes the next message that a consumer wants. `None` when there is none, or when the hold has done enough.
    fn take_for(&mut self, id: QueueId, consumer: Consumer) -> Option<(Taken, Message)> {
        if !consumer.selects {
            return self.take_message(id);
        }
        // Out of the subscription meanwhile, since both are looked at.
        let mut selector = self.selector_of(consumer)?.take()?;
        let found = self.select(id, &mut selector);
        *self.selector_of(consumer)? = Some(selector);
        found
    }

    fn selector_of(&mut self, consumer: Consumer) -> Option<&mut Option<Box<Selector>>> {
        let subscriptions = &mut self.link(consumer.link)?.subscriptions;
        Some(&mut subscriptions.get_mut(&consumer.subscription)?.selector)
    }

    fn select(&mut self, id: QueueId, selector: &mut Selector) -> Option<(Taken, Message)> {
        while self.steps < STEPS_MAX {
            self.steps += 1;
            let queue = self.queue(id)?;
            let sequence = queue.levels().rev().find_map(|list| selector.next_of(list))?;
            let taken = queue.take_at(sequence)?;
            let only = sequence..sequence + 1;
            if self.has_expired(id, taken.entry) {
                self.give_up(id, only, Reason::Expired);
                continue;
            }
            let Some(message) = self.message(taken.entry.position, taken.entry.size) else {
                self.done(id, only);
                continue;
            };
            self.steps += selector.sql.cost(message.native_properties().len()) / COST_OF_STEP;
            if selector.sql.matches_message(&message) {
                return Some((taken, message));
            }
            self.queue(id)?.put_back(taken);
        }
        None
    }

    /// Leased messages are in their places again: those who select look at them once more.
    pub(crate) fn came_back(&mut self, id: QueueId, range: Range<u64>) {
        let Some(queue) = self.queue(id) else { return };
        queue.give_back(range.clone());
        if !queue.is_selected_from() {
            return;
        }
        let mut at = 0;
        while let Some(consumer) = self.queue(id).and_then(|queue| queue.consumers().get(at).copied()) {
            at += 1;
            if let Some(Some(selector)) = self.selector_of(consumer) {
                selector.look_again(range.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::entries::EntryList;
    use crate::filter::Names;
    use crate::store::pages::{Entry, ListId, Pages};
    use crate::store::storage::MemoryStorage;

    #[test]
    fn a_selector_looks_once_and_again_only_at_what_came_back() {
        let pages = Arc::new(Pages::new(Arc::new(MemoryStorage::default()), 1 << 20, usize::MAX));
        let mut list = Progress::new(EntryList::new(ListId(1), &pages));
        let sql = Sql::compile("a = 1", Names::Native).expect("it compiles");
        let mut selector = Selector::new(Box::new(sql));
        for _ in 0..10_000 {
            list.push(Entry::NONE);
        }
        let look = |selector: &mut Selector, list: &mut Progress| {
            let seen: Vec<_> = std::iter::from_fn(|| {
                let at = selector.next_of(list)?;
                list.take_at(at)?;
                list.release(at..at + 1);
                Some(at)
            })
            .collect();
            seen
        };
        assert!(look(&mut selector, &mut list).into_iter().eq(0..10_000));
        list.push(Entry::NONE);
        assert_eq!(look(&mut selector, &mut list), [10_000]);
        // Another consumer had two of them; one it is done with.
        for at in [17, 4000] {
            list.take_at(at);
        }
        list.ack(17..18, |_| {});
        list.release(4000..4001);
        selector.look_again(17..18);
        selector.look_again(4000..4001);
        assert_eq!(look(&mut selector, &mut list), [4000]);
        assert_eq!(look(&mut selector, &mut list), []);
    }
}
