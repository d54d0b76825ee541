//! Popping: native groups take messages of topics under a lease, without a connection that they belong to.
//!
//! What a group has done with a message queue is its [`Progress`]: everything before the head is done with, and
//! what lies between head and `next` is done with, leased, or ready to be handed out (again). A lease whose time is
//! over gives its messages back to their places; after the group's most attempts they go to its dead-letter topic.
//! In order means by message group: of messages with one ordering key none is handed out while an earlier one is
//! leased, so those of a lease come again before any that follow.
//!
//! Here is how messages are found and handed out; how leases end is in [`leases`], what a group has done in
//! [`progress`].

mod leases;
mod progress;

use std::collections::BTreeSet;

use bytes::Bytes;

use leases::Lease;
pub(crate) use progress::PopPlace;
use progress::Progress;

use crate::address::fnv1a;
use crate::attributes::{Attribute, Name, Value};
use crate::boundary::RequestId;
use crate::engine::change::Change;
use crate::engine::group::{limit, takes};
use crate::engine::links::LinkId;
use crate::engine::progress::Entry;
use crate::engine::state::State;
use crate::engine::trie::Map;
use crate::message::Message;
use crate::request::{Filter, Pop, PopFrom, Popped, PoppedMessage, Refusal, Reply};
use crate::time::Millis;

/// Messages that one pop looks at in one message queue.
const SCAN_MAX: usize = 800;

/// Messages put aside because their message group is busy; beyond it nothing new is looked at.
const ASIDE_MAX: u64 = 4096;

/// Messages of one message queue that one group may have leased; beyond it nothing more is handed out.
const LEASED_MAX: u64 = 100_000;

/// Most pairs of group and message queue that are popped from.
const PROGRESS_MAX: usize = 200_000;

/// Most messages of one pop, and most settled by one request.
const POP_MAX: u32 = 1024;

/// All progress made by popping.
#[derive(Default)]
pub(crate) struct Pops {
    ids: Map<(Bytes, u32, u32), u32>,
    list: Vec<Progress>,
    /// When leases end: progress and first message.
    deadlines: BTreeSet<(Millis, u32, u64)>,
    last_id: u64,
    /// Held pops by topic.
    waiting: Map<u32, Vec<(LinkId, RequestId)>>,
    /// Topics where held pops may find something.
    dirty: Vec<u32>,
}

impl Pops {
    /// When the next lease ends, on the monotonic clock.
    pub(crate) fn next(&self) -> Option<Millis> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    /// A topic got something: held pops may find it.
    pub(crate) fn wake(&mut self, topic: u32) {
        if !self.waiting.is_empty() && self.waiting.contains_key(&topic) && !self.dirty.contains(&topic) {
            self.dirty.push(topic);
        }
    }

    /// Lease ids of this life: no earlier one had them.
    pub(crate) fn begin(&mut self, log_end: u64) {
        self.last_id = (log_end >> 3) << 32;
    }
}

/// What keeps messages in order: the ordering key, else all of the message queue.
fn message_group(message: &Message) -> u64 {
    let mut attributes = message.attributes();
    let key = attributes.find_map(|(name, value)| match (name, value) {
        (Name::Known(Attribute::OrderingKey), Value::Text(text)) => Some(fnv1a(text)),
        (Name::User(b"SHARDING_KEY"), Value::Text(text)) => Some(fnv1a(text)),
        _ => None,
    });
    key.unwrap_or(0)
}

/// What a pop finds in one message queue.
struct Found {
    offset: u64,
    group: u64,
    message: Message,
}

impl State {
    /// Answers a pop, or keeps it waiting.
    pub(crate) fn pop(&mut self, link: LinkId, id: RequestId, pop: Pop) {
        match self.try_pop(&pop) {
            Ok(popped) if pop.hold && popped.messages.is_empty() => self.hold_pop(link, id, pop),
            Ok(popped) => self.reply(link, id, Ok(Reply::Popped(Box::new(popped)))),
            Err(refusal) => self.reply(link, id, Err(refusal)),
        }
    }

    fn hold_pop(&mut self, link: LinkId, id: RequestId, pop: Pop) {
        let Ok(topic) = self.topic_id(&pop.topic) else { return };
        self.pops.waiting.entry(topic).or_default().push((link, id));
        if let Some(link) = self.link(link) {
            link.native().pops.insert(id, pop);
        }
    }

    /// The wait is over: answers with what there is.
    pub(crate) fn cancel_pop(&mut self, link: LinkId, id: RequestId) {
        if let Some(pop) = self.link(link).and_then(|link| link.has_native()?.pops.remove(&id)) {
            self.stop_popping(link, id, &pop);
            self.pop(link, id, Pop { hold: false, ..pop });
        }
    }

    pub(crate) fn stop_popping(&mut self, link: LinkId, id: RequestId, pop: &Pop) {
        let Ok(topic) = self.topic_id(&pop.topic) else { return };
        if let Some(waiting) = self.pops.waiting.get_mut(&topic) {
            waiting.retain(|waiting| *waiting != (link, id));
            if waiting.is_empty() {
                self.pops.waiting.remove(&topic);
            }
        }
    }

    /// Held pops of topics that got something are tried again, in the order they came.
    pub(crate) fn answer_pops(&mut self) {
        for topic in std::mem::take(&mut self.pops.dirty) {
            for (link, id) in self.pops.waiting.remove(&topic).unwrap_or_default() {
                if let Some(pop) = self.link(link).and_then(|link| link.has_native()?.pops.remove(&id)) {
                    self.pop(link, id, pop);
                }
            }
        }
    }

    fn try_pop(&mut self, pop: &Pop) -> Result<Popped, Refusal> {
        let topic = self.topic_id(&pop.topic)?;
        if pop.invisible.0 == 0 {
            return Err(Refusal::Invalid("messages cannot be invisible for no time".to_owned()));
        }
        let filter = match &pop.filter {
            Some(filter) => filter.clone(),
            None => self.joined_filter(&pop.group, &pop.topic).unwrap_or_default(),
        };
        let queues = self.topics[topic as usize].queues.len() as u32;
        let chosen = match pop.queue_id {
            Some(queue) if queue >= queues => {
                return Err(Refusal::Invalid(format!("topic has no message queue {queue}")));
            }
            Some(queue) => queue..queue + 1,
            None => 0..queues,
        };
        self.group(&pop.group)?;
        self.register_group(&pop.group, &pop.topic);
        self.end_leases();
        let mut popped = Popped {
            messages: Vec::new(),
            popped_at: self.now.wall,
            remaining: 0,
        };
        let turn = self.pops.last_id as u32;
        for step in 0..chosen.len() as u32 {
            let queue = chosen.start + (turn + step) % chosen.len() as u32;
            let id = self.pop_progress(&pop.group, topic, queue, pop.from)?;
            self.pop_from(id, pop, &filter, &mut popped);
            let end = self.topics[topic as usize].queues[queue as usize].end();
            let progress = &self.pops.list[id as usize];
            popped.remaining += end.saturating_sub(progress.next) + progress.ready.count();
        }
        Ok(popped)
    }

    /// The group's progress in a message queue, made if need be.
    fn pop_progress(&mut self, group: &Bytes, topic: u32, queue: u32, from: PopFrom) -> Result<u32, Refusal> {
        if let Some(id) = self.pops.ids.get(&(group.clone(), topic, queue)) {
            return Ok(*id);
        }
        if self.pops.list.len() >= PROGRESS_MAX {
            return Err(limit("groups that pop, times message queues", PROGRESS_MAX));
        }
        let name = self.topics[topic as usize].name.clone();
        let list = &self.topics[topic as usize].queues[queue as usize].entries;
        let (start, end) = (list.head(), list.end());
        let offset = match self.plain_offset(group, &name, queue) {
            Some(committed) => committed.clamp(start, end),
            None if from == PopFrom::End => end,
            None => start,
        };
        let place = PopPlace {
            group: group.clone(),
            topic: name,
            queue,
        };
        // Without it a restart would begin at another end, beyond what was handed out.
        self.change_quietly(&Change::PopState {
            place,
            head: offset,
            next: offset,
            acked: Vec::new(),
        });
        Ok(self.put_pop_progress(group.clone(), topic, queue, offset))
    }

    fn pop_from(&mut self, id: u32, pop: &Pop, filter: &Filter, popped: &mut Popped) {
        let progress = &mut self.pops.list[id as usize];
        let (topic, queue) = (progress.topic as usize, progress.queue as usize);
        let start = self.topics[topic].queues[queue].entries.head();
        progress.skip_to(start);
        let attempt = if pop.attempt.is_empty() {
            0
        } else {
            fnv1a(&pop.attempt).max(1)
        };
        if pop.in_order && attempt != 0 {
            self.take_attempt_back(id, attempt);
        }
        let found = self.find_for_pop(id, pop, filter, popped);
        if found.is_empty() {
            return;
        }
        let lease_id = self.pops.new_lease_id();
        let until = self.now.mono + pop.invisible;
        let mut at = 0;
        while at < found.len() {
            let first = found[at].offset;
            let run = (1..found.len() - at).find(|n| found[at + n].offset != first + *n as u64);
            let count = run.unwrap_or(found.len() - at);
            let groups = found[at..at + count].iter().map(|found| found.group);
            let lease = Lease {
                count: count as u32,
                until,
                id: lease_id,
                attempt,
                groups: if pop.in_order { groups.collect() } else { Vec::new() },
            };
            self.pops.put_lease(id, first, lease);
            at += count;
        }
        self.deadline_moved |= self.pops.next() == Some(until);
        let progress = &self.pops.list[id as usize];
        for Found { offset, message, .. } in found {
            let attempts = progress.attempts.get(&offset).copied().unwrap_or(0);
            popped.messages.push(PoppedMessage {
                queue_id: queue as u32,
                offset,
                lease: lease_id,
                attempts,
                redelivered: attempts > 0 || offset < progress.suspect_below,
                message,
            });
        }
    }

    /// The same attempt again: what it got comes again, as if it had not been handed out.
    fn take_attempt_back(&mut self, id: u32, attempt: u64) {
        let leases = &self.pops.list[id as usize].leases;
        let own = leases.iter().filter(|(_, lease)| lease.attempt == attempt);
        for first in own.map(|(first, _)| *first).collect::<Vec<_>>() {
            if let Some(lease) = self.pops.take_lease(id, first) {
                let progress = &mut self.pops.list[id as usize];
                let back = progress.still_there(first..first + u64::from(lease.count));
                progress.ready.insert(back);
            }
        }
    }

    fn find_for_pop(&mut self, id: u32, pop: &Pop, filter: &Filter, popped: &Popped) -> Vec<Found> {
        let progress = &self.pops.list[id as usize];
        let leasable = LEASED_MAX.saturating_sub(progress.leased) as usize;
        let wanted = pop.messages_max.clamp(1, POP_MAX) as usize;
        let bytes = popped.messages.iter().map(|popped| popped.message.record_len() as u64);
        let mut search = Search {
            room: wanted.saturating_sub(popped.messages.len()).min(leasable),
            bytes: bytes.sum(),
            bytes_max: pop.bytes_max.into(),
            is_first: popped.messages.is_empty(),
            busy: BTreeSet::new(),
            found: Vec::new(),
            steps: 0,
        };
        let (topic, queue) = (progress.topic as usize, progress.queue as usize);
        if pop.in_order {
            search.busy = progress
                .leases
                .values()
                .flat_map(|lease| lease.groups.iter().copied())
                .collect();
        }
        // What came back or was put aside is before everything else.
        let ready: Vec<u64> = progress.ready.iter().flatten().take(SCAN_MAX).collect();
        for offset in ready {
            let entry = self.topics[topic].queues[queue].entries.get(offset);
            match self.look(entry, filter, pop.in_order, &mut search) {
                Look::Full => return search.found,
                Look::Busy => {}
                Look::Gone => self.pops.list[id as usize].ack(offset..offset + 1),
                Look::Taken(group, message) => {
                    self.pops.list[id as usize].ready.remove(offset..offset + 1, |_| {});
                    search.found.push(Found { offset, group, message });
                }
            }
        }
        while search.steps < SCAN_MAX && self.pops.list[id as usize].ready.count() < ASIDE_MAX {
            let from = self.pops.list[id as usize].next;
            let list = &self.topics[topic].queues[queue].entries;
            let ahead: Vec<(u64, Entry)> = list.iter_from(from).take(32).collect();
            if ahead.is_empty() {
                break;
            }
            for (offset, entry) in ahead {
                let look = self.look(Some(entry), filter, pop.in_order, &mut search);
                let progress = &mut self.pops.list[id as usize];
                if offset > progress.next {
                    // Entries that were never there or cannot be read.
                    progress.acked.insert(progress.next..offset);
                }
                if matches!(look, Look::Full) {
                    progress.next = offset;
                    progress.advance();
                    return search.found;
                }
                progress.next = offset + 1;
                match look {
                    Look::Full => unreachable!("handled above"),
                    Look::Busy => progress.ready.insert(offset..offset + 1),
                    Look::Gone => progress.ack(offset..offset + 1),
                    Look::Taken(group, message) => search.found.push(Found { offset, group, message }),
                }
            }
        }
        search.found
    }

    fn look(&mut self, entry: Option<Entry>, filter: &Filter, in_order: bool, search: &mut Search) -> Look {
        search.steps += 1;
        if search.found.len() >= search.room {
            return Look::Full;
        }
        let Some(entry) = entry.filter(|entry| takes(filter, *entry)) else {
            return Look::Gone;
        };
        let size = u64::from(entry.size);
        let is_first = search.is_first && search.found.is_empty();
        if search.bytes + size > search.bytes_max && !is_first {
            return Look::Full;
        }
        let Some(message) = self.message(entry.position, entry.size) else {
            return Look::Gone;
        };
        if let Filter::Sql(sql) = filter
            && !sql.matches_message(&message)
        {
            return Look::Gone;
        }
        let group = if in_order { message_group(&message) } else { 0 };
        if in_order && search.busy.contains(&group) {
            return Look::Busy;
        }
        search.bytes += size;
        Look::Taken(group, message)
    }
}

/// How far a pop has come.
struct Search {
    room: usize,
    bytes: u64,
    bytes_max: u64,
    /// Nothing was found in other message queues.
    is_first: bool,
    /// Message groups of which something is leased.
    busy: BTreeSet<u64>,
    found: Vec<Found>,
    steps: usize,
}

/// What a pop thinks of a message.
enum Look {
    /// No more of it fits.
    Full,
    /// Its message group has to wait.
    Busy,
    /// Not wanted by this group, or not there any more.
    Gone,
    Taken(u64, Message),
}
