//! All of core's state, one struct behind one lock; and what happens at the end of each hold of it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use crate::boundary::Shortage;
use crate::engine::change::Change;
use crate::engine::config::Config;
use crate::engine::dedup::Dedups;
use crate::engine::entries::EntryList;
use crate::engine::group::{Group, Topic};
use crate::engine::holder::{Holder, PendingWill};
use crate::engine::links::{LinkId, Links};
use crate::engine::pop::Pops;
use crate::engine::progress::{Entry, Progress};
use crate::engine::publish::Destinations;
use crate::engine::queues::Queues;
use crate::engine::republish::{Done, Revived};
use crate::engine::retained::Retained;
use crate::engine::router::{QueueId, Router};
use crate::engine::timers::Timers;
use crate::engine::transactions::Halves;
use crate::engine::trie::Map;
use crate::message::Message;
use crate::request::Retry;
use crate::store::log::Log;
use crate::store::memory::Memory;
use crate::store::pages::{ListId, Owner, Pages};
use crate::store::record::{Kind, Position};
use crate::time::{Millis, Now};

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
    pub links: Links,
    /// The log before this is as safe as the flush mode says.
    pub released: Position,
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
    pub last_change: Position,
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
    /// Publishers are held back until the disk has more.
    pub held_back: bool,
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
            links: Links::default(),
            released: Position(0),
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
        self.links.begin();
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

    /// Whether something is unwritten that somebody waits for.
    pub(crate) fn awaits_write(&self) -> bool {
        self.log.has_unwritten() && self.links.is_awaited()
    }

    /// Ends a hold: hands over what it has to tell.
    pub(crate) fn finish(&mut self) -> After {
        self.act_on_deadlines();
        self.deliver_dirty();
        self.answer_pulls();
        self.answer_pops();
        self.write_settled();
        self.store_pages();
        After {
            wakers: self.fill_inboxes(),
            unwritten: self.log.has_unwritten(),
            awaited: self.links.is_awaited(),
            work: !self.work.is_empty(),
            long_work: !self.long_work.is_empty(),
            deadline_moved: std::mem::take(&mut self.deadline_moved),
            unsynced: self.log.unsynced(),
            held_back: self.links.is_any_blocked() && self.shortage.is_none(),
        }
    }
}
