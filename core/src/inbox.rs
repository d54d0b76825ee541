//! Everything core tells one connection, in one order.
//!
//! One mutex-guarded FIFO with an edge-triggered waker: however many events arrive between two looks of
//! the connection's task, it is woken once. Outcomes and replies always fit: a client bounds their number by
//! what it has outstanding, and the driver their bytes by asking no more when there are many. Deliveries take room up to a limit, and what does not fit waits in its queue
//! until the driver has emptied the inbox and calls [`Link::resume`](crate::boundary::Link::resume).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;

use crate::boundary::{Event, Notice};
use crate::message::Message;
use crate::request::Reply;

/// Deliveries that may wait in one inbox. Bounds memory: each is a reference into a chunk.
pub const DELIVERIES_MAX: usize = 2048;

/// Bytes of records that deliveries in one inbox may refer to; a record far from the one before it counts
/// for more.
pub const DELIVERY_BYTES_MAX: usize = 4 << 20;

/// Bytes that answers in one inbox may refer to before the driver asks no more: see [`Inbox::is_full`].
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A message keeps alive the whole block of memory that its record lies in, however little of it is its own: blocks of the log and of transient messages are at most this large.
const LOG_BLOCK: u64 = 1 << 20;
const MEMORY_BLOCK: u64 = 64 << 10;

/// What of such a block is charged to the first record in it. With [`DELIVERY_BYTES_MAX`] this bounds what a
/// connection that stopped reading keeps alive to 16 MiB.
const BLOCK_SHARE: u64 = 4;

/// The places of the last messages of a sequence, in the log and in memory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Places {
    log: u64,
    memory: u64,
}

impl Places {
    /// What the next message of the sequence counts for, bytes.
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

    /// What the next answer of the sequence counts for, bytes.
    fn charge_answer(&mut self, reply: &Reply) -> usize {
        match reply {
            Reply::Pulled(pulled) => pulled.messages.iter().map(|message| self.charge(message)).sum(),
            Reply::Got(Some(got)) => self.charge(&got.delivery.message),
            Reply::Message(message) => self.charge(message),
            Reply::Members(members) => members.iter().map(|member| size_of::<Bytes>() + member.len()).sum(),
            Reply::Attached { cookies, .. } => cookies.iter().map(|cookie| size_of::<Bytes>() + cookie.len()).sum(),
            _ => 0,
        }
    }
}

/// Charges of a sequence of deliveries, and of a sequence of answers.
#[derive(Clone, Copy, Default)]
struct Charges {
    deliveries: Places,
    answers: Places,
}

impl Charges {
    /// What the next event counts for: deliveries, bytes of them, bytes of answers.
    fn of(&mut self, event: &Event) -> (usize, usize, usize) {
        match event {
            Event::Delivery(delivery) => (1, self.deliveries.charge(&delivery.message), 0),
            Event::Notice(Notice::CheckTransaction(check)) => (1, self.deliveries.charge(&check.message), 0),
            Event::Reply { result: Ok(reply), .. } => (0, 0, self.answers.charge_answer(reply)),
            _ => (0, 0, 0),
        }
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
    answer_bytes: usize,
    /// Of what was pushed and what was taken.
    pushed: Charges,
    taken: Charges,
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

    /// So much was answered and not taken that the driver is to ask no more before it has taken some. A few
    /// bytes of requests can ask for a lot, and a peer that does not read has not asked for an end.
    pub fn is_full(&self) -> bool {
        self.state().answer_bytes >= ANSWER_BYTES_MAX
    }

    /// Appends events and gives the waker, if the task is to be woken. It is woken after all locks are
    /// released.
    pub fn push(&self, events: &mut Vec<Event>) -> Option<Waker> {
        if events.is_empty() {
            return None;
        }
        let mut state = self.state();
        for event in events.iter() {
            let (deliveries, delivery_bytes, answer_bytes) = state.pushed.of(event);
            state.deliveries += deliveries;
            state.delivery_bytes += delivery_bytes;
            state.answer_bytes += answer_bytes;
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

    /// Whoever takes is at work and looks again before it waits: what is pushed until then need not wake it.
    pub fn hush(&self) {
        let waker = self.state().waker.take();
        // Its task may end with it, which is none of the inbox's business.
        drop(waker);
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
            // The same events in the same order: the same charges.
            let (deliveries, delivery_bytes, answer_bytes) = state.taken.of(event);
            state.deliveries -= deliveries;
            state.delivery_bytes -= delivery_bytes;
            state.answer_bytes -= answer_bytes;
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
            attempts: 0,
            leased: false,
            recalled: false,
            note: 0,
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
    fn answers_that_are_not_taken_fill_an_inbox() {
        let inbox = Inbox::new();
        let answer = |position| {
            let Event::Delivery(delivery) = delivery(position) else {
                unreachable!()
            };
            Event::Reply {
                id: RequestId(0),
                result: Ok(Reply::Message(delivery.message)),
            }
        };
        let mut count = 0;
        while !inbox.is_full() {
            count += 1;
            inbox.push(&mut vec![answer(count * LOG_BLOCK)]);
        }
        assert!((4..=16).contains(&count), "{count}");
        inbox.take(usize::MAX, &mut Vec::new(), Waker::noop());
        assert_eq!(inbox.state().answer_bytes, 0);
    }

    #[test]
    fn whoever_is_at_work_is_not_woken_until_it_found_nothing_again() {
        let inbox = Inbox::new();
        let one = || vec![Event::Writable];
        let taken = inbox.take(1, &mut Vec::new(), Waker::noop());
        assert!(taken.empty && inbox.push(&mut one()).is_some());
        let mut events = Vec::new();
        inbox.take(1, &mut events, Waker::noop());
        inbox.take(1, &mut events, Waker::noop());
        inbox.hush();
        assert!(inbox.push(&mut one()).is_none(), "it looks by itself");
        inbox.take(1, &mut events, Waker::noop());
        assert!(inbox.take(1, &mut events, Waker::noop()).empty);
        assert!(inbox.push(&mut one()).is_some());
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
