//! Everything core tells one connection, in one order.
//!
//! One mutex-guarded FIFO with an edge-triggered waker: however many events arrive between two looks of
//! the connection's task, it is woken once. Outcomes and replies always fit (a client bounds them by what
//! it has outstanding); deliveries take room up to a limit, and what does not fit waits in its queue
//! until the driver has emptied the inbox and calls [`Link::resume`](crate::boundary::Link::resume).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::boundary::Event;
use crate::message::Message;

/// Deliveries that may wait in one inbox. Bounds memory: each is a reference into a chunk.
pub const DELIVERIES_MAX: usize = 2048;

/// Bytes of records that deliveries in one inbox may refer to; a record far from the one before it counts
/// for more.
pub const DELIVERY_BYTES_MAX: usize = 4 << 20;

/// A delivery keeps alive the whole block of memory that its record lies in, however little of it is its
/// own: blocks of the log and of transient messages are at most this large.
const LOG_BLOCK: u64 = 1 << 20;
const MEMORY_BLOCK: u64 = 64 << 10;

/// What of such a block is charged to the first record in it. With [`DELIVERY_BYTES_MAX`] this bounds what a
/// connection that stopped reading keeps alive to 16 MiB.
const BLOCK_SHARE: u64 = 4;

/// The places of the last deliveries of a sequence, in the log and in memory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Places {
    log: u64,
    memory: u64,
}

impl Places {
    /// What the next delivery of the sequence counts for, bytes.
    pub(crate) fn charge(&mut self, message: &Message) -> usize {
        let position = message.position();
        let (before, block) = if position.is_memory() {
            (&mut self.memory, MEMORY_BLOCK)
        } else {
            (&mut self.log, LOG_BLOCK)
        };
        let distance = std::mem::replace(before, position.0).abs_diff(position.0);
        message.record_len().max((distance.min(block) / BLOCK_SHARE) as usize)
    }
}

/// Room for so few is quickly had again: an inbox does not keep it until its connection rests. Thousands that
/// connect at once would each hold what only their greeting needed.
const FEW_EVENTS: usize = 16;

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    deliveries: usize,
    delivery_bytes: usize,
    /// Of the last delivery pushed and the last one taken.
    pushed: Places,
    taken: Places,
    /// A delivery did not fit since the driver last looked.
    parked: bool,
    waker: Option<Waker>,
}

/// One connection's FIFO; clones are the same inbox.
#[derive(Clone, Default)]
pub struct Inbox(Arc<Mutex<State>>);

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many more deliveries, and bytes of them, fit behind those that are `staged`. When none does, the
    /// inbox remembers to ask for [`Taken::resume`].
    pub(crate) fn room(&self, staged: usize, staged_bytes: usize) -> Option<(usize, usize)> {
        let mut state = self.state();
        let room = DELIVERIES_MAX.saturating_sub(state.deliveries + staged);
        let room_bytes = DELIVERY_BYTES_MAX.saturating_sub(state.delivery_bytes + staged_bytes);
        if room == 0 || room_bytes == 0 {
            state.parked = true;
            return None;
        }
        Some((room, room_bytes))
    }

    /// Appends events and gives the waker, if the task is to be woken. It is woken after all locks are
    /// released.
    pub fn push(&self, events: &mut Vec<Event>) -> Option<Waker> {
        if events.is_empty() {
            return None;
        }
        let mut state = self.state();
        for event in events.iter() {
            if let Event::Delivery(delivery) = event {
                state.deliveries += 1;
                state.delivery_bytes += state.pushed.charge(&delivery.message);
            }
        }
        state.events.extend(events.drain(..));
        state.waker.take()
    }

    /// The connection has gone quiet: an empty inbox gives up its memory.
    pub fn rest(&self) {
        let mut state = self.state();
        if state.events.is_empty() {
            state.events = VecDeque::new();
        }
    }

    /// Moves up to `max` events to `events`. When nothing is there, keeps `waker` for the next push.
    pub fn take(&self, max: usize, events: &mut Vec<Event>, waker: &Waker) -> Taken {
        let mut state = self.state();
        if state.events.is_empty() {
            match &mut state.waker {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
            return Taken {
                empty: true,
                resume: std::mem::take(&mut state.parked),
            };
        }
        let count = max.min(state.events.len());
        for event in state.events.drain(..count) {
            events.push(event);
        }
        for event in &events[events.len() - count..] {
            if let Event::Delivery(delivery) = event {
                state.deliveries -= 1;
                // The same deliveries in the same order: the same charges.
                state.delivery_bytes -= state.taken.charge(&delivery.message);
            }
        }
        let half_empty = state.deliveries <= DELIVERIES_MAX / 2 && state.delivery_bytes <= DELIVERY_BYTES_MAX / 2;
        let resume = half_empty && std::mem::take(&mut state.parked);
        if state.events.is_empty() && state.events.capacity() <= FEW_EVENTS {
            state.events = VecDeque::new();
        }
        Taken { empty: false, resume }
    }
}

/// What [`Inbox::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Nothing was there; the waker is kept.
    pub empty: bool,
    /// The driver is to call [`Link::resume`](crate::boundary::Link::resume).
    pub resume: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::{Delivery, RequestId, SubscriptionId};
    use crate::request::Reply;
    use crate::store::chunk::ChunkWriter;
    use crate::store::record::Position;

    fn push(inbox: &Inbox, ids: std::ops::Range<u64>) {
        let reply = |id| Event::Reply {
            id: RequestId(id),
            result: Ok(Reply::Done),
        };
        inbox.push(&mut ids.map(reply).collect());
    }

    fn take(inbox: &Inbox, max: usize) -> Vec<u64> {
        let mut events = Vec::new();
        inbox.take(max, &mut events, Waker::noop());
        let id = |event: &Event| match event {
            Event::Reply { id, .. } => id.0,
            other => panic!("{other:?}"),
        };
        events.iter().map(id).collect()
    }

    fn kept(inbox: &Inbox) -> usize {
        inbox.state().events.capacity()
    }

    fn delivery(position: u64) -> Event {
        // Only its length and its place matter here.
        let record = ChunkWriter::new(200).append(200, |record| {
            record[16..24].copy_from_slice(&position.to_le_bytes());
        });
        Event::Delivery(Delivery {
            subscription: SubscriptionId(1),
            sequence: 0,
            redelivered: false,
            leased: false,
            message: Message::new(record),
        })
    }

    #[test]
    fn deliveries_from_all_over_the_log_fill_an_inbox_with_few() {
        for (distance, block) in [(1 << 20, LOG_BLOCK), (64 << 10, MEMORY_BLOCK)] {
            let base = if block == LOG_BLOCK { 0 } else { Position::MEMORY };
            let inbox = Inbox::new();
            let mut count = 0;
            while inbox.room(0, 0).is_some() {
                count += 1;
                inbox.push(&mut vec![delivery(base | (count * distance))]);
            }
            // Each keeps a block alive.
            assert!((4..=16 << 20).contains(&(count * block)), "{count} blocks of {block}");
            let mut events = Vec::new();
            let taken = inbox.take(usize::MAX, &mut events, Waker::noop());
            assert!(taken.resume && events.len() == count as usize);
            assert_eq!(inbox.room(0, 0), Some((DELIVERIES_MAX, DELIVERY_BYTES_MAX)));
        }
    }

    #[test]
    fn an_idle_inbox_owns_no_memory_and_a_busy_one_keeps_it() {
        let inbox = Inbox::new();
        push(&inbox, 0..3);
        assert_eq!(take(&inbox, 256), [0, 1, 2]);
        assert_eq!(kept(&inbox), 0, "a few events are no reason to keep memory");
        push(&inbox, 3..300);
        assert_eq!(take(&inbox, 256), Vec::from_iter(3..259));
        inbox.rest();
        assert_eq!(take(&inbox, 256), Vec::from_iter(259..300), "resting loses nothing");
        assert!(kept(&inbox) >= 256);
        inbox.rest();
        assert_eq!(kept(&inbox), 0);
    }
}
