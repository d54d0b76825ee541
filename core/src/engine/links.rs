//! Connections as the engine sees them: what each is told in a hold, what waits for the disk, and who is held back.
//!
//! A link hears everything in one order. What it is told is staged until the hold ends
//! ([`State::finish`]) and goes to its inbox then; behind a reply that waits for the disk it waits as well.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::task::Waker;

use bytes::Bytes;

use crate::boundary::{Event, Fate, Notice, Outcome, Peer, RequestId, SubscriptionId};
use crate::engine::group::Pulling;
use crate::engine::queue::Subscription;
use crate::engine::router::QueueId;
use crate::engine::state::{STEPS_MAX, State, Work};
use crate::engine::trie::Map;
use crate::inbox::{Inbox, Places};
use crate::request::{Pop, Refusal, Reply};
use crate::store::record::Position;

/// A link's number; the serial tells it from an earlier one of the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId {
    index: u32,
    serial: u32,
}

/// One connection as the engine sees it.
pub(crate) struct LinkState {
    serial: u32,
    inbox: Inbox,
    pub peer: Peer,
    pub logged_in: bool,
    /// Events of this hold.
    staged: Vec<Event>,
    staged_deliveries: usize,
    staged_bytes: usize,
    /// Of the last delivery staged.
    places: Places,
    /// Deliveries and bytes that still fit into the inbox, as far as this hold has asked.
    room: (usize, usize),
    touched: bool,
    /// Events behind a reply that waits for the disk: order is kept.
    held: VecDeque<(Position, Event)>,
    held_deliveries: usize,
    held_bytes: usize,
    pub subscriptions: Map<SubscriptionId, Subscription>,
    /// Exclusive queues, gone when the link goes.
    pub exclusive: Vec<QueueId>,
    /// The named session this link holds.
    pub holder: Option<Bytes>,
    native: Option<Box<Native>>,
    /// Queues with a delivery that found the inbox full.
    parked: Option<Box<Parked>>,
    /// Wants to be told when publishing goes on.
    pub blocked: bool,
    /// Was told what is short.
    told_shortage: bool,
}

/// What only links of native clients need.
#[derive(Default)]
pub(crate) struct Native {
    /// Consumer groups, each with this link's client id.
    pub memberships: Vec<(Bytes, Bytes)>,
    /// Producer groups.
    pub producing: Vec<Bytes>,
    /// Held pulls.
    pub pulls: Map<RequestId, Pulling>,
    /// Held pops.
    pub pops: Map<RequestId, Pop>,
}

/// Queues in the order in which they found an inbox full. Thousands may wait for one consumer.
#[derive(Default)]
pub(crate) struct Parked {
    order: VecDeque<QueueId>,
    known: Map<QueueId, ()>,
}

impl Parked {
    fn add(&mut self, queue: QueueId) {
        if self.known.insert(queue, ()).is_none() {
            self.order.push_back(queue);
        }
    }

    fn pop(&mut self) -> Option<QueueId> {
        let queue = self.order.pop_front()?;
        self.known.remove(&queue);
        Some(queue)
    }
}

/// An outcome that waits for the disk.
struct Waiting {
    mark: Position,
    link: LinkId,
    outcome: Outcome,
    mergeable: bool,
}

/// Memory for events that is kept for the next hold.
const SPARE_EVENTS_MAX: usize = 64;

/// All connections, and what waits for the disk on their behalf.
#[derive(Default)]
pub(crate) struct Links {
    list: Vec<Option<Box<LinkState>>>,
    free: Vec<u32>,
    serial: u32,
    /// Told something in this hold.
    touched: Vec<LinkId>,
    spare_events: Vec<Vec<Event>>,
    /// With a reply that waits for the disk.
    held: Vec<LinkId>,
    /// To be told when publishing goes on.
    blocked: Vec<LinkId>,
    waiting: VecDeque<Waiting>,
    /// Outcomes before this index belong to earlier holds and are not merged with.
    waiting_base: usize,
}

impl Links {
    /// A hold begins.
    pub(crate) fn begin(&mut self) {
        self.waiting_base = self.waiting.len();
    }

    /// Whether somebody waits for the log to be safe.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty() || !self.held.is_empty()
    }

    /// Whether a publisher is to be told when publishing goes on.
    pub(crate) fn is_any_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }
}

impl State {
    pub(crate) fn add_link(&mut self, peer: Peer, inbox: Inbox) -> LinkId {
        self.links.serial = self.links.serial.wrapping_add(1);
        let link = Box::new(LinkState {
            serial: self.links.serial,
            inbox,
            peer,
            logged_in: false,
            staged: Vec::new(),
            staged_deliveries: 0,
            staged_bytes: 0,
            places: Places::default(),
            room: (0, 0),
            touched: false,
            held: VecDeque::new(),
            held_deliveries: 0,
            held_bytes: 0,
            subscriptions: Map::default(),
            exclusive: Vec::new(),
            holder: None,
            native: None,
            parked: None,
            blocked: false,
            told_shortage: false,
        });
        let index = match self.links.free.pop() {
            Some(index) => {
                self.links.list[index as usize] = Some(link);
                index
            }
            None => {
                self.links.list.push(Some(link));
                self.links.list.len() as u32 - 1
            }
        };
        LinkId {
            index,
            serial: self.links.serial,
        }
    }

    pub(crate) fn link(&mut self, id: LinkId) -> Option<&mut LinkState> {
        self.links
            .list
            .get_mut(id.index as usize)?
            .as_deref_mut()
            .filter(|link| link.serial == id.serial)
    }

    pub(crate) fn remove_link(&mut self, id: LinkId) -> Option<Box<LinkState>> {
        self.link(id)?;
        self.links.free.push(id.index);
        self.links.list[id.index as usize].take()
    }

    fn touch(&mut self, id: LinkId) -> Option<&mut LinkState> {
        let link = self
            .links
            .list
            .get_mut(id.index as usize)?
            .as_deref_mut()
            .filter(|link| link.serial == id.serial)?;
        if !link.touched {
            link.touched = true;
            self.links.touched.push(id);
            if link.staged.capacity() == 0
                && let Some(spare) = self.links.spare_events.pop()
            {
                link.staged = spare;
            }
        }
        Some(link)
    }

    /// Tells a link something, behind everything it was told before.
    pub(crate) fn tell(&mut self, id: LinkId, event: Event) {
        let Some(link) = self.touch(id) else { return };
        if link.held.is_empty() {
            link.stage(event);
        } else {
            link.hold(Position(0), event);
        }
    }

    /// Tells a link something that goes with outcomes: not even a reply that waits for the disk is before it.
    pub(crate) fn tell_at_once(&mut self, id: LinkId, event: Event) {
        if let Some(link) = self.touch(id) {
            link.stage(event);
        }
    }

    pub(crate) fn notify(&mut self, id: LinkId, notice: Notice) {
        self.tell(id, Event::Notice(notice));
    }

    /// Whether the link's inbox has room for one more message.
    pub(crate) fn can_take(&mut self, id: LinkId) -> bool {
        self.touch(id).is_some_and(|link| {
            let (staged, bytes) = (
                link.staged_deliveries + link.held_deliveries,
                link.staged_bytes + link.held_bytes,
            );
            link.inbox.room(staged, bytes).is_some()
        })
    }

    /// Tells a link something that does not wait for anything.
    pub(crate) fn tell_now(&mut self, id: LinkId, notice: Notice) {
        if let Some(link) = self.touch(id) {
            link.stage(Event::Notice(notice));
        }
    }

    /// Answers a request. When it changed something durable, the answer waits for the disk.
    pub(crate) fn reply(&mut self, id: LinkId, request: RequestId, result: Result<Reply, Refusal>) {
        let event = Event::Reply { id: request, result };
        if !std::mem::take(&mut self.changed) {
            return self.tell(id, event);
        }
        let mark = self.log.end();
        self.last_change = mark;
        let Some(link) = self.touch(id) else { return };
        if link.held.is_empty() {
            self.links.held.push(id);
        }
        let Some(link) = self.link(id) else { return };
        link.hold(mark, event);
    }

    /// Whether a delivery of that size fits into the link's inbox; when not, the queue is parked there.
    pub(crate) fn has_room(&mut self, id: LinkId, queue: QueueId) -> bool {
        let Some(link) = self.touch(id) else { return false };
        if link.room.0 == 0 || link.room.1 == 0 {
            let (staged, bytes) = (
                link.staged_deliveries + link.held_deliveries,
                link.staged_bytes + link.held_bytes,
            );
            match link.inbox.room(staged, bytes) {
                Some(room) => link.room = room,
                None => {
                    link.parked.get_or_insert_default().add(queue);
                    return false;
                }
            }
        }
        true
    }

    /// The link's inbox has room: queues that found it full go on, one after the other, until it is full again.
    pub(crate) fn resume(&mut self, id: LinkId) {
        loop {
            if self.steps >= STEPS_MAX {
                self.put_off(Work::Resume(id));
                return;
            }
            let Some(queue) = self.link(id).and_then(|link| link.parked.as_mut()?.pop()) else {
                return;
            };
            self.steps += 1;
            self.deliver(queue);
            let parked = self.link(id).and_then(|link| link.parked.as_ref());
            if parked.is_some_and(|parked| parked.known.contains_key(&queue)) {
                return;
            }
        }
    }

    /// Tells the outcome of a message that is not waiting for the disk.
    pub(crate) fn outcome_now(&mut self, id: LinkId, outcome: Outcome, mergeable: bool) {
        let Some(link) = self.touch(id) else { return };
        if mergeable
            && link.held.is_empty()
            && let Some(Event::Outcome(last)) = link.staged.last_mut()
            && merge(last, &outcome)
        {
            return;
        }
        // Outcomes are no replies: they need not wait behind one that waits for the disk.
        link.stage(Event::Outcome(outcome));
    }

    /// Tells the outcome of a message once the log up to here is as safe as the flush mode says.
    pub(crate) fn outcome_later(&mut self, link: LinkId, outcome: Outcome, mergeable: bool) {
        let mark = self.log.end();
        if mergeable
            && self.links.waiting.len() > self.links.waiting_base
            && let Some(last) = self.links.waiting.back_mut()
            && last.link == link
            && last.mergeable
            && merge(&mut last.outcome, &outcome)
        {
            last.mark = mark;
            return;
        }
        self.links.waiting.push_back(Waiting {
            mark,
            link,
            outcome,
            mergeable,
        });
    }

    /// Whether what lies there is as safe as the flush mode says: nobody has to wait for it.
    pub(crate) fn is_safe(&self, position: Position) -> bool {
        position < self.released.max(self.log.synced())
    }

    /// The log is safe up to `mark`: whoever waited for that is told.
    pub(crate) fn release(&mut self, mark: Position) {
        self.released = self.released.max(mark);
        while self.links.waiting.front().is_some_and(|waiting| waiting.mark <= mark) {
            let waiting = self.links.waiting.pop_front().expect("there is a front");
            if let Some(link) = self.touch(waiting.link) {
                link.stage(Event::Outcome(waiting.outcome));
            }
        }
        let mut held = std::mem::take(&mut self.links.held);
        held.retain(|id| self.touch(*id).is_some_and(|link| link.release(mark)));
        self.links.held = held;
    }

    /// Publishers that were held back are told to go on, once there is room again.
    pub(crate) fn unblock(&mut self) {
        if self.links.blocked.is_empty()
            || self.log.unsynced() > self.config.unsynced_max / 2
            || (self.shortage.is_some() && !self.closing)
        {
            return;
        }
        for id in std::mem::take(&mut self.links.blocked) {
            if let Some(link) = self.touch(id) {
                link.blocked = false;
                if std::mem::take(&mut link.told_shortage) {
                    link.stage(Event::Notice(Notice::Unblocked));
                }
                link.stage(Event::Writable);
            }
        }
    }

    /// The link is told when publishing goes on.
    pub(crate) fn block(&mut self, id: LinkId) {
        if let Some(link) = self.link(id)
            && !std::mem::replace(&mut link.blocked, true)
        {
            self.links.blocked.push(id);
        }
        if let Some(shortage) = self.shortage
            && let Some(link) = self.link(id)
            && !std::mem::replace(&mut link.told_shortage, true)
        {
            self.notify(id, Notice::Blocked(shortage));
        }
    }

    /// The hold ends: what was told in it goes to inboxes. Gives who is to be woken.
    pub(crate) fn fill_inboxes(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for id in std::mem::take(&mut self.links.touched) {
            let Some(link) = self.link(id) else { continue };
            link.touched = false;
            link.room = (0, 0);
            link.staged_deliveries = 0;
            link.staged_bytes = 0;
            wakers.extend(link.inbox.push(&mut link.staged));
            // Idle connections own no memory for events: those at work take turns with it.
            let staged = std::mem::take(&mut link.staged);
            if self.links.spare_events.len() < SPARE_EVENTS_MAX && staged.capacity() <= STEPS_MAX / 2 {
                self.links.spare_events.push(staged);
            }
        }
        wakers
    }

    /// Where the messages of this peer say they come from.
    pub(crate) fn born_host(&mut self, id: LinkId) -> SocketAddr {
        let fallback = self.config.store_host;
        self.link(id).map_or(fallback, |link| link.peer.remote)
    }
}

impl LinkState {
    /// What only native clients need, to be added to.
    pub(crate) fn native(&mut self) -> &mut Native {
        self.native.get_or_insert_default()
    }

    /// The same, to be taken from; nothing, if nothing was ever added.
    pub(crate) fn has_native(&mut self) -> Option<&mut Native> {
        self.native.as_deref_mut()
    }

    fn stage(&mut self, event: Event) {
        let message = match &event {
            Event::Delivery(delivery) => Some(&delivery.message),
            Event::Notice(Notice::CheckTransaction(check)) => Some(&check.message),
            _ => None,
        };
        if let Some(message) = message {
            let size = self.places.charge(message);
            self.staged_deliveries += 1;
            self.staged_bytes += size;
            self.room = (self.room.0.saturating_sub(1), self.room.1.saturating_sub(size));
        }
        self.staged.push(event);
    }

    fn hold(&mut self, mark: Position, event: Event) {
        if let Event::Delivery(delivery) = &event {
            let size = delivery.message.record_len();
            self.held_deliveries += 1;
            self.held_bytes += size;
            self.room = (self.room.0.saturating_sub(1), self.room.1.saturating_sub(size));
        }
        self.held.push_back((mark, event));
    }

    /// Stages what waited for at most `mark`; gives whether something still waits.
    fn release(&mut self, mark: Position) -> bool {
        while self.held.front().is_some_and(|(wanted, _)| *wanted <= mark) {
            let (_, event) = self.held.pop_front().expect("there is a front");
            if let Event::Delivery(delivery) = &event {
                self.held_deliveries -= 1;
                self.held_bytes -= delivery.message.record_len();
            }
            self.stage(event);
        }
        !self.held.is_empty()
    }
}

/// Adds an outcome to the one before it when the same became of both.
fn merge(last: &mut Outcome, outcome: &Outcome) -> bool {
    let same = match (last.fate, outcome.fate) {
        (Fate::Duplicate(a), Fate::Duplicate(b)) => a.weak == b.weak,
        (Fate::Stored(a), Fate::Stored(b)) => (a.routes == 0) == (b.routes == 0) && a.weak == b.weak,
        (a, b) => a == b,
    };
    let follows = last.first + u64::from(last.count) == outcome.first;
    if same && follows {
        last.count += outcome.count;
    }
    same && follows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tens of thousands of connections may do nothing.
    #[test]
    fn a_link_is_small() {
        let size = size_of::<LinkState>();
        assert!(size <= 320, "{size} bytes");
    }
}
