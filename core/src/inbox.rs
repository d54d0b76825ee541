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

/// Deliveries that may wait in one inbox. Bounds memory: each is a reference into a chunk.
pub const DELIVERIES_MAX: usize = 2048;

/// Bytes of records that deliveries in one inbox may refer to.
pub const DELIVERY_BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    deliveries: usize,
    delivery_bytes: usize,
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
                state.delivery_bytes += delivery.message.record_len();
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
                state.delivery_bytes -= delivery.message.record_len();
            }
        }
        let half_empty = state.deliveries <= DELIVERIES_MAX / 2 && state.delivery_bytes <= DELIVERY_BYTES_MAX / 2;
        let resume = half_empty && std::mem::take(&mut state.parked);
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
