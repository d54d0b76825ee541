//! All of core's state, one struct behind one lock; and what happens at the end of each hold of it.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use crate::boundary::{Event, Fate, Notice, Outcome, Peer, RequestId, Shortage, SubscriptionId};
use crate::engine::change::Change;
use crate::engine::config::Config;
use crate::engine::dedup::Dedups;
use crate::engine::entries::EntryList;
use crate::engine::group::{Group, Pulling, Topic};
use crate::engine::holder::{Holder, PendingWill};
use crate::engine::pop::Pops;
use crate::engine::progress::{Entry, Progress};
use crate::engine::publish::Destinations;
use crate::engine::queue::Subscription;
use crate::engine::queues::Queues;
use crate::engine::republish::{Done, Revived};
use crate::engine::retained::Retained;
use crate::engine::router::{QueueId, Router};
use crate::engine::timers::Timers;
use crate::engine::transactions::Halves;
use crate::engine::trie::Map;
use crate::inbox::{Inbox, Places};
use crate::message::Message;
use crate::request::{Pop, Refusal, Reply, Retry};
use crate::store::log::Log;
use crate::store::memory::Memory;
use crate::store::pages::{ListId, Owner, Pages};
use crate::store::record::{Kind, Position};
use crate::time::{Millis, Now};

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

/// What is left to do, in order, when a hold had enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Deliver what is ready in a queue.
    Deliver(QueueId),
    /// Deliver what is ready in queues that found a link's inbox full.
    Resume(LinkId),
    /// Go on with the first of the last values asked for.
    Recall,
    /// Take off its list what a queue is done with.
    Finish(QueueId),
    /// Give back what lost connections had.
    Return(QueueId),
    /// Dead-letter what a queue gave up.
    Bury(QueueId),
    /// Give up what a queue has too much of.
    Limit(QueueId),
    /// Look at heads that expire and at queues that nobody uses.
    Deadlines,
    /// Release what queues that are gone kept.
    Dispose,
}

/// Memory for events that is kept for the next hold.
const SPARE_EVENTS_MAX: usize = 64;

/// What takes more steps than this is not for whoever comes by.
const STEPS_LONG: u64 = 4 * STEPS_MAX as u64;

/// Steps of one hold; a longer fan-out goes on in the next.
pub(crate) const STEPS_MAX: usize = 1024;

pub(crate) struct State {
    pub config: Arc<Config>,
    pub now: Now,
    /// The wall time, but never less than any stored time before.
    pub stored_at: Millis,
    pub log: Log,
    pub memory: Memory,
    /// Files of index entries.
    pub pages: Arc<Pages>,
    pub router: Router,
    pub queues: Queues,
    pub topics: Vec<Topic>,
    pub topic_ids: Map<Bytes, u32>,
    /// Topics that foreign publishes made.
    pub topics_auto: usize,
    pub groups: Map<Bytes, Group>,
    /// Groups that ever registered on a topic, by topic name.
    pub topic_groups: Map<Bytes, Vec<Bytes>>,
    pub holders: Map<Bytes, Holder>,
    pub dedups: Dedups,
    pub pops: Pops,
    /// When named sessions without a connection end.
    pub holder_ends: BTreeSet<(Millis, Bytes)>,
    /// Wills by the names of their sessions, which may be gone after a crash.
    pub wills: Map<Bytes, PendingWill>,
    /// When the wills of clients that are gone are published.
    pub will_times: BTreeSet<(Millis, Bytes)>,
    pub retained: Retained,
    /// Messages that full queues dropped.
    pub dropped: u64,
    links: Vec<Option<Box<LinkState>>>,
    free_links: Vec<u32>,
    serial: u32,
    touched: Vec<LinkId>,
    spare_events: Vec<Vec<Event>>,
    held_links: Vec<LinkId>,
    blocked_links: Vec<LinkId>,
    waiting: VecDeque<Waiting>,
    /// The log before this is as safe as the flush mode says.
    released: Position,
    /// Outcomes before this index belong to earlier holds and are not merged with.
    waiting_base: usize,
    /// Acks of durable queues in this hold: queue, first, count.
    pub settled: Vec<(QueueId, u64, u32)>,
    /// Queues that got something to deliver in this hold.
    pub dirty_queues: Vec<QueueId>,
    /// Message queues that got entries while pulls wait on them.
    pub dirty_topics: Vec<(u32, u32)>,
    pub work: VecDeque<Work>,
    /// What would take so many holds that nobody is to wait for it: the maintenance thread's, a slice at a time.
    pub long_work: VecDeque<Work>,
    pub steps: usize,
    /// When the heads of queues expire, on the broker's clock.
    pub heads: BTreeSet<(u64, QueueId)>,
    /// When queues go that nobody uses.
    pub unused: BTreeSet<(Millis, QueueId)>,
    /// What queues that are gone kept.
    pub disposed: Vec<Progress>,
    /// How many queues refuse messages when they are full, and how many keep transient ones: where there are
    /// none, nobody looks.
    pub refusing_queues: usize,
    pub keeping_queues: usize,
    /// The broker's own clock: wall time when it started, and what has passed since.
    started: Now,
    /// Scratch for native property strings.
    pub properties: Vec<u8>,
    payload: Vec<u8>,
    pub timers: Timers,
    pub halves: Halves,
    /// Members of producer groups, the one that was asked last at the end.
    pub producers: Map<Bytes, VecDeque<LinkId>>,
    /// How groups' messages are tried again, unless as usual.
    pub retries: Map<Bytes, Retry>,
    /// Something is due earlier than whoever calls [`Engine::tick`](crate::engine::Engine::tick) knows.
    pub deadline_moved: bool,
    /// Scratch of publishes that no link makes.
    pub destinations: Destinations,
    /// A message is being published again; those that it causes wait in `republishes`.
    pub republishing: bool,
    pub republishes: VecDeque<(Revived, Done)>,
    /// The request at hand changed something durable.
    pub changed: bool,
    /// Behind the last durable change that somebody waits for.
    last_change: Position,
    /// Records of an earlier life are being applied: nothing follows from them but what they say.
    pub replaying: bool,
    /// The broker is going down: nothing new is taken.
    pub closing: bool,
    /// What publishers have to wait for.
    pub shortage: Option<Shortage>,
}

/// What the end of a hold asks for outside of it.
#[derive(Default)]
pub(crate) struct After {
    pub wakers: Vec<Waker>,
    pub unwritten: bool,
    /// Somebody waits for the disk.
    pub awaited: bool,
    pub work: bool,
    /// Something is left for the maintenance thread.
    pub long_work: bool,
    pub deadline_moved: bool,
    pub unsynced: usize,
}

impl State {
    pub(crate) fn new(config: Arc<Config>, log: Log, pages: Arc<Pages>, now: Now) -> Self {
        Self {
            config,
            now,
            stored_at: now.wall,
            log,
            memory: Memory::new(),
            pages,
            router: Router::default(),
            queues: Queues::default(),
            topics: Vec::new(),
            topic_ids: Map::default(),
            topics_auto: 0,
            groups: Map::default(),
            topic_groups: Map::default(),
            holders: Map::default(),
            dedups: Dedups::default(),
            pops: Pops::default(),
            holder_ends: BTreeSet::new(),
            wills: Map::default(),
            will_times: BTreeSet::new(),
            retained: Retained::default(),
            dropped: 0,
            links: Vec::new(),
            free_links: Vec::new(),
            serial: 0,
            touched: Vec::new(),
            spare_events: Vec::new(),
            held_links: Vec::new(),
            blocked_links: Vec::new(),
            waiting: VecDeque::new(),
            released: Position(0),
            waiting_base: 0,
            settled: Vec::new(),
            dirty_queues: Vec::new(),
            dirty_topics: Vec::new(),
            work: VecDeque::new(),
            long_work: VecDeque::new(),
            steps: 0,
            heads: BTreeSet::new(),
            unused: BTreeSet::new(),
            disposed: Vec::new(),
            refusing_queues: 0,
            keeping_queues: 0,
            started: now,
            properties: Vec::new(),
            payload: Vec::new(),
            timers: Timers::new(now),
            halves: Halves::default(),
            producers: Map::default(),
            retries: Map::default(),
            deadline_moved: false,
            destinations: Vec::new(),
            republishing: false,
            republishes: VecDeque::new(),
            changed: false,
            last_change: Position(0),
            replaying: false,
            closing: false,
            shortage: None,
        }
    }

    // --- links ------------------------------------------------------------------------------------

    pub(crate) fn add_link(&mut self, peer: Peer, inbox: Inbox) -> LinkId {
        self.serial = self.serial.wrapping_add(1);
        let link = Box::new(LinkState {
            serial: self.serial,
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
        let index = match self.free_links.pop() {
            Some(index) => {
                self.links[index as usize] = Some(link);
                index
            }
            None => {
                self.links.push(Some(link));
                self.links.len() as u32 - 1
            }
        };
        LinkId {
            index,
            serial: self.serial,
        }
    }

    pub(crate) fn link(&mut self, id: LinkId) -> Option<&mut LinkState> {
        self.links
            .get_mut(id.index as usize)?
            .as_deref_mut()
            .filter(|link| link.serial == id.serial)
    }

    pub(crate) fn remove_link(&mut self, id: LinkId) -> Option<Box<LinkState>> {
        self.link(id)?;
        self.free_links.push(id.index);
        self.links[id.index as usize].take()
    }

    // --- telling links ----------------------------------------------------------------------------

    fn touch(&mut self, id: LinkId) -> Option<&mut LinkState> {
        let link = self
            .links
            .get_mut(id.index as usize)?
            .as_deref_mut()
            .filter(|link| link.serial == id.serial)?;
        if !link.touched {
            link.touched = true;
            self.touched.push(id);
            if link.staged.capacity() == 0
                && let Some(spare) = self.spare_events.pop()
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
            self.held_links.push(id);
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
            && self.waiting.len() > self.waiting_base
            && let Some(last) = self.waiting.back_mut()
            && last.link == link
            && last.mergeable
            && merge(&mut last.outcome, &outcome)
        {
            last.mark = mark;
            return;
        }
        self.waiting.push_back(Waiting {
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
        while self.waiting.front().is_some_and(|waiting| waiting.mark <= mark) {
            let waiting = self.waiting.pop_front().expect("there is a front");
            if let Some(link) = self.touch(waiting.link) {
                link.stage(Event::Outcome(waiting.outcome));
            }
        }
        let mut held = std::mem::take(&mut self.held_links);
        held.retain(|id| self.touch(*id).is_some_and(|link| link.release(mark)));
        self.held_links = held;
    }

    /// Publishers that were held back are told to go on, once there is room again.
    pub(crate) fn unblock(&mut self) {
        if self.blocked_links.is_empty()
            || self.log.unsynced() > self.config.unsynced_max / 2
            || (self.shortage.is_some() && !self.closing)
        {
            return;
        }
        for id in std::mem::take(&mut self.blocked_links) {
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
            self.blocked_links.push(id);
        }
        if let Some(shortage) = self.shortage
            && let Some(link) = self.link(id)
            && !std::mem::replace(&mut link.told_shortage, true)
        {
            self.notify(id, Notice::Blocked(shortage));
        }
    }

    // --- the log ----------------------------------------------------------------------------------

    /// Writes a durable change; the request's answer waits for it.
    pub(crate) fn change(&mut self, change: &Change) {
        self.change_quietly(change);
        self.changed = true;
        self.last_change = self.log.end();
    }

    /// The answer to the request at hand says that something is there, which another request may have made just
    /// now: it waits for the disk, too.
    pub(crate) fn rests_on_changes(&mut self) {
        self.changed |= self.last_change > self.released;
    }

    /// Writes a durable change that nobody waits for.
    pub(crate) fn change_quietly(&mut self, change: &Change) {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        change.encode(&mut payload);
        self.log.append_payload(Kind::Change, &payload, self.stored_at);
        self.payload = payload;
    }

    /// Writes what was acked in this hold as one record.
    pub(crate) fn write_settled(&mut self) {
        if self.settled.is_empty() {
            return;
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        for (queue, first, count) in self.settled.drain(..) {
            payload.extend_from_slice(&queue.to_le_bytes());
            payload.extend_from_slice(&count.to_le_bytes());
            payload.extend_from_slice(&first.to_le_bytes());
        }
        self.log.append_payload(Kind::Settle, &payload, self.stored_at);
        self.payload = payload;
    }

    /// What is written until [`end_batch`](Self::end_batch) is recovered whole or not at all. Batches may be
    /// nested: the outermost counts.
    pub(crate) fn begin_batch(&mut self) {
        self.write_settled();
        self.log.begin_batch();
    }

    /// Ends a batch. Its last record is the one of what was settled meanwhile, be it nothing.
    pub(crate) fn end_batch(&mut self) {
        if self.log.end_batch() {
            if self.settled.is_empty() {
                self.log.append_payload(Kind::Settle, &[], self.stored_at);
            }
            self.write_settled();
        }
    }

    /// An entry that somebody keeps: its record stays until [`release_entry`](Self::release_entry).
    pub(crate) fn hold_entry(&mut self, entry: Entry) {
        if entry.position.is_memory() {
            self.memory.hold(entry.position);
        } else {
            self.log.pin(entry.position);
        }
    }

    /// The entry is not needed any more by one who held it.
    pub(crate) fn release_entry(&mut self, entry: Entry) {
        if entry.position.is_memory() {
            self.memory.release(entry.position);
        } else {
            self.log.unpin(entry.position);
        }
    }

    /// Index pages beyond what the memory may hold go to their files.
    pub(crate) fn store_pages(&mut self) {
        while let Some((list, page)) = self.pages.next_to_store() {
            let stored = self.list(list).map_or(Ok(()), |entries| entries.store_page(page));
            if let Err(error) = stored {
                // The log is the truth: the page stays in memory and is tried again.
                tracing::error!(%error, "cannot write an index page");
                self.pages.note_resident(list, page);
                return;
            }
        }
    }

    /// A list of entries by its number.
    pub(crate) fn list(&mut self, id: ListId) -> Option<&mut EntryList> {
        match id.owner() {
            Owner::Queue(queue, level) => {
                let Self { queues, pages, .. } = self;
                let queue = queues.get_mut(queue)?;
                Some(queue.level_or(level, || EntryList::new(id, pages)).list_mut())
            }
            Owner::MessageQueue(topic, queue) => {
                let topic = self.topics.get_mut(topic as usize)?;
                Some(&mut topic.queues.get_mut(queue as usize)?.entries)
            }
        }
    }

    /// The message behind an index entry, if it is still there.
    pub(crate) fn message(&mut self, position: Position, size: u32) -> Option<Message> {
        let record = if position.is_memory() {
            self.memory.get(position, size as usize)?
        } else {
            match self.log.read(position, size as usize) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(%position, %error, "cannot read a stored message");
                    return None;
                }
            }
        };
        Some(Message::new(record))
    }

    // --- holds ------------------------------------------------------------------------------------

    /// Begins a hold.
    pub(crate) fn begin(&mut self, now: Now) {
        self.now = now;
        self.stored_at = self.stored_at.max(now.wall);
        self.steps = 0;
        self.waiting_base = self.waiting.len();
    }

    /// The broker's clock: Unix time when it started and what has passed since, whatever became of the wall
    /// clock. What a relative time comes to is on it.
    pub(crate) fn clock(&self) -> Millis {
        self.started.wall + self.now.mono.since(self.started.mono)
    }

    /// When that time of the broker's clock comes, on the monotonic one.
    pub(crate) fn mono_of(&self, at: Millis) -> Millis {
        self.started.mono + at.since(self.started.wall)
    }

    /// Leaves something for another hold.
    pub(crate) fn put_off(&mut self, work: Work) {
        if !self.work.contains(&work) {
            self.work.push_back(work);
        }
    }

    /// Leaves something that takes so many more steps.
    pub(crate) fn put_off_steps(&mut self, work: Work, steps: u64) {
        if steps <= STEPS_LONG {
            self.put_off(work);
        } else if !self.long_work.contains(&work) {
            self.long_work.push_back(work);
        }
    }

    /// Whether somebody waits for the log to be safe.
    fn is_awaited(&self) -> bool {
        !self.waiting.is_empty() || !self.held_links.is_empty()
    }

    /// Whether something is unwritten that somebody waits for.
    pub(crate) fn awaits_write(&self) -> bool {
        self.log.has_unwritten() && self.is_awaited()
    }

    /// Ends a hold: hands over what it has to tell.
    pub(crate) fn finish(&mut self) -> After {
        self.act_on_deadlines();
        self.deliver_dirty();
        self.answer_pulls();
        self.answer_pops();
        self.write_settled();
        self.store_pages();
        let mut wakers = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(link) = self.link(id) else { continue };
            link.touched = false;
            link.room = (0, 0);
            link.staged_deliveries = 0;
            link.staged_bytes = 0;
            wakers.extend(link.inbox.push(&mut link.staged));
            // Idle connections own no memory for events: those at work take turns with it.
            let staged = std::mem::take(&mut link.staged);
            if self.spare_events.len() < SPARE_EVENTS_MAX && staged.capacity() <= STEPS_MAX / 2 {
                self.spare_events.push(staged);
            }
        }
        After {
            wakers,
            unwritten: self.log.has_unwritten(),
            awaited: self.is_awaited(),
            work: !self.work.is_empty(),
            long_work: !self.long_work.is_empty(),
            deadline_moved: std::mem::take(&mut self.deadline_moved),
            unsynced: self.log.unsynced(),
        }
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
