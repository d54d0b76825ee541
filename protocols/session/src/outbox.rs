//! What a session wants done: bytes for its peer and orders to core.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{Publish, RequestId, Settlement};
use rocketbridge_core::request::Request;

/// A run of orders of one kind. Neighbours are kept together so that the driver submits whole batches.
#[derive(Debug)]
pub enum Order {
    /// Messages to publish.
    Publish(VecDeque<Publish>),
    /// Leased messages to settle.
    Settle(VecDeque<Settlement>),
    /// A request.
    Request(RequestId, Box<Request>),
    /// The end of a held request's wait.
    Cancel(RequestId),
}

/// A body at least this long is sent from where it lies instead of being copied.
const SHARE_FROM: usize = 16 * 1024;

/// Bytes for the peer and orders to core, each in its order.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Nothing as long as the connection is idle.
    orders: Option<Box<Orders>>,
    /// Complete pieces, in front of `tail`.
    segments: VecDeque<Bytes>,
    tail: BytesMut,
    segment_bytes: usize,
    closing: bool,
}

#[derive(Debug, Default)]
struct Orders {
    waiting: VecDeque<Order>,
    spare_publishes: Option<VecDeque<Publish>>,
    spare_settlements: Option<VecDeque<Settlement>>,
}

impl Outbox {
    /// Above this many unsent bytes the driver neither reads nor hands over events.
    pub const HIGH_MARK: usize = 256 * 1024;
    /// Below this many it goes on.
    pub const LOW_MARK: usize = 64 * 1024;

    /// An outbox with nothing in it, and no memory.
    pub fn new() -> Self {
        Self::default()
    }

    // --- for sessions -------------------------------------------------------------------------

    /// Publishes a message after everything ordered so far.
    pub fn publish(&mut self, publish: Publish) {
        let orders = self.orders.get_or_insert_default();
        if let Some(Order::Publish(run)) = orders.waiting.back_mut() {
            run.push_back(publish);
        } else {
            let mut run = orders.spare_publishes.take().unwrap_or_default();
            run.push_back(publish);
            orders.waiting.push_back(Order::Publish(run));
        }
    }

    /// Settles leased messages after everything ordered so far. A settlement that goes on where the last
    /// one ended is merged with it.
    pub fn settle(&mut self, settlement: Settlement) {
        let orders = self.orders.get_or_insert_default();
        if let Some(Order::Settle(run)) = orders.waiting.back_mut() {
            if let Some(last) = run.back_mut()
                && last.subscription == settlement.subscription
                && last.action == settlement.action
                && last.first + u64::from(last.count) == settlement.first
                && let Some(count) = last.count.checked_add(settlement.count)
            {
                last.count = count;
                return;
            }
            run.push_back(settlement);
        } else {
            let mut run = orders.spare_settlements.take().unwrap_or_default();
            run.push_back(settlement);
            orders.waiting.push_back(Order::Settle(run));
        }
    }

    /// Asks core something after everything ordered so far.
    pub fn request(&mut self, id: RequestId, request: Request) {
        self.waiting().push_back(Order::Request(id, Box::new(request)));
    }

    /// Ends a held request's wait.
    pub fn cancel(&mut self, id: RequestId) {
        self.waiting().push_back(Order::Cancel(id));
    }

    /// Where to append bytes for the peer.
    pub fn bytes(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Appends a body: a short one is copied, a long one is sent from where it lies.
    pub fn body(&mut self, short: &[u8], shared: impl FnOnce() -> Bytes) {
        if short.len() < SHARE_FROM {
            self.tail.extend_from_slice(short);
            return;
        }
        self.seal_tail();
        let body = shared();
        self.segment_bytes += body.len();
        self.segments.push_back(body);
    }

    /// Closes the connection once everything appended so far is written. Later bytes are not sent.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Bytes the peer has not been sent yet.
    pub fn queued_bytes(&self) -> usize {
        self.segment_bytes + self.tail.len()
    }

    /// Whether orders wait, because core did not take all that was published.
    pub fn has_orders(&self) -> bool {
        self.orders.as_ref().is_some_and(|orders| !orders.waiting.is_empty())
    }

    /// Takes back all publishes that core has not taken: for a protocol that refuses them itself.
    pub fn withdraw_publishes(&mut self) -> Vec<Publish> {
        let mut withdrawn = Vec::new();
        let waiting = self.waiting();
        for order in waiting.iter_mut() {
            if let Order::Publish(run) = order {
                withdrawn.extend(run.drain(..));
            }
        }
        waiting.retain(|order| !matches!(order, Order::Publish(run) if run.is_empty()));
        withdrawn
    }

    // --- for the driver -----------------------------------------------------------------------

    /// The next run of orders.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.as_mut()?.waiting.pop_front()
    }

    /// Puts back publishes that core did not take, in front of everything else.
    pub fn put_back(&mut self, publishes: VecDeque<Publish>) {
        self.waiting().push_front(Order::Publish(publishes));
    }

    /// Puts back a request that core does not take now, in front of everything else.
    pub fn put_back_request(&mut self, id: RequestId, request: Box<Request>) {
        self.waiting().push_front(Order::Request(id, request));
    }

    /// Gives an emptied run back for its memory.
    pub fn recycle(&mut self, order: Order) {
        const SPARE_MAX: usize = 1024;
        let orders = self.orders.get_or_insert_default();
        match order {
            Order::Publish(run) if run.is_empty() && run.capacity() <= SPARE_MAX => {
                orders.spare_publishes = Some(run);
            }
            Order::Settle(run) if run.is_empty() && run.capacity() <= SPARE_MAX => {
                orders.spare_settlements = Some(run);
            }
            _ => {}
        }
    }

    /// Lends memory to append to; used when nothing is queued.
    pub fn lend(&mut self, memory: BytesMut) {
        if self.tail.is_empty() {
            self.tail = memory;
            self.tail.clear();
        }
    }

    /// Takes the memory back when everything is sent, so that an idle connection owns none; the runs'
    /// memory is dropped with `idle`.
    pub fn reclaim(&mut self, idle: bool) -> Option<BytesMut> {
        if idle {
            if !self.has_orders() {
                self.orders = None;
            }
            if self.segments.is_empty() {
                self.segments = VecDeque::new();
            }
        }
        (self.queued_bytes() == 0).then(|| std::mem::take(&mut self.tail))
    }

    /// Calls `each` with the pieces to be sent, in order, until it says `false`.
    pub fn pieces<'a>(&'a self, mut each: impl FnMut(&'a [u8]) -> bool) {
        for piece in self.segments.iter().map(|s| &s[..]).chain([&self.tail[..]]) {
            if !piece.is_empty() && !each(piece) {
                return;
            }
        }
    }

    /// `count` bytes were sent.
    ///
    /// # Panics
    /// When that is more than was queued.
    pub fn advance(&mut self, mut count: usize) {
        assert!(count <= self.queued_bytes());
        while let Some(first) = self.segments.front_mut() {
            let taken = count.min(first.len());
            let _ = first.split_to(taken);
            count -= taken;
            self.segment_bytes -= taken;
            if !first.is_empty() {
                return;
            }
            self.segments.pop_front();
        }
        if count == self.tail.len() {
            self.tail.clear();
        } else {
            let _ = self.tail.split_to(count);
        }
    }

    fn waiting(&mut self) -> &mut VecDeque<Order> {
        &mut self.orders.get_or_insert_default().waiting
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            self.segment_bytes += self.tail.len();
            self.segments.push_back(self.tail.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocketbridge_core::boundary::{Settle, SubscriptionId};

    fn sent(out: &Outbox) -> Vec<u8> {
        let mut all = Vec::new();
        out.pieces(|piece| {
            all.extend_from_slice(piece);
            true
        });
        all
    }

    #[test]
    fn pieces_are_sent_in_the_order_they_were_appended() {
        let mut out = Outbox::new();
        let long = Bytes::from(vec![7; SHARE_FROM]);
        out.bytes().extend_from_slice(b"head");
        out.body(&long.clone(), || long.clone());
        out.bytes().extend_from_slice(b"tail");
        let all = sent(&out);
        assert_eq!(all.len(), out.queued_bytes());
        let mut rest = &all[..];
        for step in [1, 3, 100, SHARE_FROM - 100, 2, 2] {
            out.advance(step);
            rest = &rest[step..];
            assert_eq!(sent(&out), rest);
        }
        assert_eq!(out.queued_bytes(), 0);
    }

    #[test]
    fn settlements_that_follow_each_other_are_one() {
        let mut out = Outbox::new();
        let settle = |first, count| Settlement {
            subscription: SubscriptionId(1),
            first,
            count,
            action: Settle::Ack,
        };
        out.settle(settle(1, 2));
        out.settle(settle(3, 1));
        out.settle(settle(9, 1));
        let Some(Order::Settle(run)) = out.next_order() else {
            panic!("no run")
        };
        assert_eq!(run, [settle(1, 3), settle(9, 1)]);
        assert!(out.next_order().is_none());
    }
}
