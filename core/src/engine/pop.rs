//! Popping: native groups take messages of topics under a lease, without a connection that they belong to.
//!
//! What a group has done with a message queue is its [`Progress`]: everything before the head is done with, and
//! what lies between head and `next` is done with, leased, or ready to be handed out (again). A lease whose time is
//! over gives its messages back to their places; after the group's most attempts they go to its dead-letter topic.
//! In order means by message group: of messages with one ordering key none is handed out while an earlier one is
//! leased, so those of a lease come again before any that follow.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use bytes::Bytes;

use crate::address::fnv1a;
use crate::attributes::{Attribute, Name, Value};
use crate::boundary::{RequestId, Settle};
use crate::engine::change::Change;
use crate::engine::group::{limit, takes};
use crate::engine::links::LinkId;
use crate::engine::progress::Entry;
use crate::engine::ranges::Ranges;
use crate::engine::republish::{Done, edit_properties};
use crate::engine::retry::DEAD_LETTER_PREFIX;
use crate::engine::state::{STEPS_MAX, State};
use crate::engine::trie::Map;
use crate::message::Message;
use crate::request::{
    AckPopped, ChangeInvisible, Filter, Held, Pop, PopFrom, Popped, PoppedMessage, Refusal, Reply, SettlePopped,
};
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

/// Messages handed out together from one message queue, neighbours.
#[derive(Clone, Debug)]
struct Lease {
    count: u32,
    until: Millis,
    id: u64,
    /// Of the attempt that took them; 0 is none.
    attempt: u64,
    /// In order: the message group of each.
    groups: Vec<u64>,
}

/// What one group has done with one message queue.
#[derive(Debug, Default)]
struct Progress {
    group: Bytes,
    topic: u32,
    queue: u32,
    /// Everything before is done with.
    head: u64,
    /// From here on nothing was handed out or put aside.
    next: u64,
    acked: Ranges,
    ready: Ranges,
    leases: BTreeMap<u64, Lease>,
    /// Messages in them.
    leased: u64,
    /// How often those that are not done with came back.
    attempts: BTreeMap<u64, u32>,
    /// Messages below this may have been handed out in an earlier life.
    suspect_below: u64,
}

/// A progress as changes tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PopPlace {
    pub group: Bytes,
    pub topic: Bytes,
    pub queue: u32,
}

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

impl Progress {
    fn advance(&mut self) {
        let first = self.acked.iter().next();
        if let Some(first) = first.filter(|first| first.start <= self.head) {
            let to = first.end.max(self.head);
            self.acked.remove(0..to, |_| {});
            self.head = to;
        }
        self.next = self.next.max(self.head);
    }

    fn ack(&mut self, range: Range<u64>) {
        let range = range.start.max(self.head)..range.end;
        if range.is_empty() {
            return;
        }
        self.ready.remove(range.clone(), |_| {});
        while let Some((offset, _)) = self.attempts.range(range.clone()).next() {
            let offset = *offset;
            self.attempts.remove(&offset);
        }
        self.acked.insert(range);
        self.advance();
    }

    /// The lease that holds a message, and its first.
    fn lease_of(&self, offset: u64) -> Option<(u64, &Lease)> {
        let (first, lease) = self.leases.range(..=offset).next_back()?;
        (offset < first + u64::from(lease.count)).then_some((*first, lease))
    }

    /// What of a lease comes back: its message queue may have given up the rest meanwhile.
    fn still_there(&self, leased: Range<u64>) -> Range<u64> {
        leased.start.max(self.head)..leased.end
    }

    /// Everything before is gone from the message queue.
    fn skip_to(&mut self, start: u64) {
        if start > self.head {
            let range = self.head..start;
            self.ready.remove(range.clone(), |_| {});
            self.attempts = self.attempts.split_off(&start);
            self.acked.insert(range);
            self.advance();
        }
    }

    /// Begins anew from an offset.
    fn reset(&mut self, offset: u64) {
        (self.head, self.next) = (offset, offset);
        self.acked = Ranges::default();
        self.ready = Ranges::default();
        self.attempts.clear();
        self.suspect_below = 0;
    }
}

impl Pops {
    fn new_lease_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn put_lease(&mut self, id: u32, first: u64, lease: Lease) {
        self.deadlines.insert((lease.until, id, first));
        let progress = &mut self.list[id as usize];
        progress.leased += u64::from(lease.count);
        progress.leases.insert(first, lease);
    }

    fn take_lease(&mut self, id: u32, first: u64) -> Option<Lease> {
        let progress = &mut self.list[id as usize];
        let lease = progress.leases.remove(&first)?;
        progress.leased -= u64::from(lease.count);
        self.deadlines.remove(&(lease.until, id, first));
        Some(lease)
    }

    /// Takes one message out of its lease; the others stay leased.
    fn take_from_lease(&mut self, id: u32, offset: u64) -> Option<Lease> {
        let (first, _) = self.list[id as usize].lease_of(offset)?;
        let lease = self.take_lease(id, first)?;
        let at = (offset - first) as usize;
        let part = |range: Range<usize>| Lease {
            count: range.len() as u32,
            groups: lease.groups.get(range).unwrap_or_default().to_vec(),
            ..lease
        };
        if at > 0 {
            self.put_lease(id, first, part(0..at));
        }
        if at + 1 < lease.count as usize {
            self.put_lease(id, offset + 1, part(at + 1..lease.count as usize));
        }
        Some(part(at..at + 1))
    }

    fn drop_leases(&mut self, id: u32) {
        let progress = &mut self.list[id as usize];
        progress.leased = 0;
        for (first, lease) in std::mem::take(&mut progress.leases) {
            self.deadlines.remove(&(lease.until, id, first));
        }
    }

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

    fn put_pop_progress(&mut self, group: Bytes, topic: u32, queue: u32, offset: u64) -> u32 {
        let id = self.pops.list.len() as u32;
        self.pops.ids.insert((group.clone(), topic, queue), id);
        self.pops.list.push(Progress {
            group,
            topic,
            queue,
            head: offset,
            next: offset,
            ..Progress::default()
        });
        id
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

    /// Leases whose time is over end, some at a time. Gives whether there are more.
    pub(crate) fn end_leases(&mut self) -> bool {
        let mut steps = 0;
        while steps < STEPS_MAX {
            let now = self.now.mono;
            let Some((_, id, first)) = self.pops.deadlines.first().copied().filter(|(at, ..)| *at <= now) else {
                return false;
            };
            if let Some(lease) = self.pops.take_lease(id, first) {
                steps += lease.count as usize;
                self.give_back_popped(id, first..first + u64::from(lease.count));
            }
        }
        true
    }

    /// Messages return to their places, or go for good when they came back too often.
    fn give_back_popped(&mut self, id: u32, range: Range<u64>) {
        let mut runs: Vec<(u64, u64, u32)> = Vec::new();
        let attempts_max = self.retry_of(&self.pops.list[id as usize].group).attempts_max;
        let attempts_max = u32::try_from(attempts_max).unwrap_or(u32::MAX);
        for offset in self.pops.list[id as usize].still_there(range) {
            let progress = &mut self.pops.list[id as usize];
            let attempts = progress.attempts.get(&offset).copied().unwrap_or(0).saturating_add(1);
            if attempts > attempts_max && self.dead_letter_popped(id, offset) {
                continue;
            }
            let progress = &mut self.pops.list[id as usize];
            progress.attempts.insert(offset, attempts);
            progress.ready.insert(offset..offset + 1);
            match runs.last_mut() {
                Some((first, count, same)) if *first + *count == offset && *same == attempts => *count += 1,
                _ => runs.push((offset, 1, attempts)),
            }
        }
        if !runs.is_empty() {
            let place = self.pop_place(id);
            self.change_quietly(&Change::PopReturned { place, runs });
        }
        let topic = self.pops.list[id as usize].topic;
        self.pops.wake(topic);
    }

    /// The message goes to the group's dead-letter topic, in one step with being done with here.
    fn dead_letter_popped(&mut self, id: u32, offset: u64) -> bool {
        let progress = &self.pops.list[id as usize];
        let list = &self.topics[progress.topic as usize].queues[progress.queue as usize].entries;
        let group = progress.group.clone();
        let Some(message) = list
            .get(offset)
            .and_then(|entry| self.message(entry.position, entry.size))
        else {
            return false;
        };
        let acked = Change::PopAcked {
            place: self.pop_place(id),
            ranges: vec![(offset, 1)],
        };
        let mut revived = self.native_again(&message);
        let properties = revived.publish.origin.clone();
        let find = |name: &[u8]| crate::properties::find(&properties, name).unwrap_or_default();
        let with = [
            (&b"DLQ_ORIGIN_TOPIC"[..], message.topic()),
            (b"DLQ_ORIGIN_MESSAGE_ID", find(crate::properties::UNIQUE_KEY)),
        ];
        let with: Vec<_> = with.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        revived.publish.origin = edit_properties(&properties, &[], &with);
        revived.publish.topic = [DEAD_LETTER_PREFIX, &group[..]].concat().into();
        revived.retag();
        let attempts = self.pops.list[id as usize].attempts.get(&offset).copied().unwrap_or(0);
        let native = revived.native();
        native.reconsume_times = i32::try_from(attempts).unwrap_or(i32::MAX);
        native.queue_id = Some(0);
        native.topic_queues = 1;
        if self.topic_id(&revived.publish.topic).is_err() {
            self.add_topic(revived.publish.topic.clone(), 1);
        }
        match self.republish(revived, Done::Change(acked)) {
            Ok(()) => {
                self.pops.list[id as usize].ack(offset..offset + 1);
                true
            }
            Err(reject) => {
                tracing::warn!(?reject, group = %group.escape_ascii(), "a popped message cannot be dead-lettered");
                false
            }
        }
    }

    fn pop_place(&self, id: u32) -> PopPlace {
        let progress = &self.pops.list[id as usize];
        PopPlace {
            group: progress.group.clone(),
            topic: self.topics[progress.topic as usize].name.clone(),
            queue: progress.queue,
        }
    }

    // --- settling ---------------------------------------------------------------------------------

    /// Messages are done with. Tells of each whether it was still this lease's to settle.
    pub(crate) fn ack_popped(&mut self, ack: &AckPopped) -> Result<Reply, Refusal> {
        if ack.messages.len() > POP_MAX as usize {
            return Err(Refusal::Invalid(format!(
                "at most {POP_MAX} messages are settled at once"
            )));
        }
        let topic = self.topic_id(&ack.topic)?;
        self.end_leases();
        let mut done: BTreeMap<u32, Ranges> = BTreeMap::new();
        let mut settled = Vec::with_capacity(ack.messages.len());
        for held in &ack.messages {
            let id = self.progress_of(&ack.group, topic, *held);
            let is_held = id.is_some_and(|id| self.take_held(id, held.offset, held.lease));
            settled.push(is_held);
            if let Some(id) = id.filter(|_| is_held) {
                self.pops.list[id as usize].ack(held.offset..held.offset + 1);
                done.entry(id).or_default().insert(held.offset..held.offset + 1);
            }
        }
        // As lazily durable as an offset: a lost one means a message twice.
        self.write_popped(done);
        self.pops.wake(topic);
        Ok(Reply::Settled(settled))
    }

    /// Whether a message is in the lease of that number. Also one whose lease ended, if nobody else has it yet.
    fn is_held(&self, id: u32, offset: u64, lease: u64) -> bool {
        let progress = &self.pops.list[id as usize];
        if let Some((_, current)) = progress.lease_of(offset) {
            return current.id == lease;
        }
        let came_back = progress.attempts.contains_key(&offset) && progress.ready.contains(offset);
        came_back || self.is_of_an_earlier_life(progress, offset, lease)
    }

    fn is_of_an_earlier_life(&self, progress: &Progress, offset: u64, lease: u64) -> bool {
        lease >> 32 < self.pops.last_id >> 32
            && offset < progress.suspect_below
            && offset >= progress.head
            && !progress.acked.contains(offset)
    }

    /// Takes a message that is held out of its lease.
    fn take_held(&mut self, id: u32, offset: u64, lease: u64) -> bool {
        if !self.is_held(id, offset, lease) {
            return false;
        }
        let progress = &self.pops.list[id as usize];
        if progress.lease_of(offset).is_some() {
            return self.pops.take_from_lease(id, offset).is_some();
        }
        if self.is_of_an_earlier_life(progress, offset, lease) && offset >= progress.next {
            // It was handed out before the broker came back.
            let progress = &mut self.pops.list[id as usize];
            let before = progress.next..offset;
            progress.ready.insert(before);
            progress.next = offset + 1;
        }
        true
    }

    fn progress_of(&self, group: &Bytes, topic: u32, held: Held) -> Option<u32> {
        self.pops.ids.get(&(group.clone(), topic, held.queue_id)).copied()
    }

    /// Whether all of a batch can be settled. Ends leases whose time is over, and changes nothing else.
    pub(crate) fn check_popped(&mut self, batch: &[SettlePopped]) -> Result<(), Refusal> {
        if batch.is_empty() {
            return Ok(());
        }
        self.end_leases();
        let mut seen = HashSet::new();
        for popped in batch {
            let topic = self.topic_id(&popped.topic)?;
            for held in &popped.messages {
                let id = self.progress_of(&popped.group, topic, *held);
                let is_held = id.is_some_and(|id| self.is_held(id, held.offset, held.lease));
                if !is_held || !seen.insert((id, held.offset)) {
                    return Err(Refusal::LeaseEnded);
                }
            }
        }
        Ok(())
    }

    /// Settles a part of a batch that was checked.
    pub(crate) fn settle_popped(&mut self, popped: &SettlePopped) {
        let Ok(topic) = self.topic_id(&popped.topic) else {
            return;
        };
        let mut done: BTreeMap<u32, Ranges> = BTreeMap::new();
        for held in &popped.messages {
            let Some(id) = self.progress_of(&popped.group, topic, *held) else {
                continue;
            };
            let only = held.offset..held.offset + 1;
            if !self.take_held(id, held.offset, held.lease) {
                continue;
            }
            match popped.action {
                Settle::Ack => {
                    self.pops.list[id as usize].ack(only.clone());
                    done.entry(id).or_default().insert(only);
                }
                Settle::Release => self.give_back_popped(id, only),
                Settle::Reject => {
                    if !self.dead_letter_popped(id, held.offset) {
                        // Not lost: it comes again.
                        self.give_back_popped(id, only);
                    }
                }
            }
        }
        self.write_popped(done);
        self.pops.wake(topic);
    }

    /// Notes for the log that messages are done with.
    fn write_popped(&mut self, done: BTreeMap<u32, Ranges>) {
        for (id, ranges) in done {
            let place = self.pop_place(id);
            let ranges = ranges.iter().map(|range| (range.start, range.end - range.start));
            let ranges = ranges.collect();
            self.change_quietly(&Change::PopAcked { place, ranges });
        }
    }

    /// A leased message stays invisible for another time, from now on. The lease gets another number.
    pub(crate) fn change_invisible(&mut self, change: &ChangeInvisible) -> Result<Reply, Refusal> {
        let topic = self.topic_id(&change.topic)?;
        self.end_leases();
        let held = change.message;
        let id = self.progress_of(&change.group, topic, held);
        let id = id.ok_or(Refusal::LeaseEnded)?;
        match self.pops.list[id as usize].lease_of(held.offset) {
            Some((_, lease)) if lease.id == held.lease => {}
            _ => return Err(Refusal::LeaseEnded),
        }
        let lease = self.pops.take_from_lease(id, held.offset).ok_or(Refusal::LeaseEnded)?;
        if change.invisible.0 == 0 {
            self.give_back_popped(id, held.offset..held.offset + 1);
            return Ok(Reply::Lease(0));
        }
        let lease_id = self.pops.new_lease_id();
        let lease = Lease {
            until: self.now.mono + change.invisible,
            id: lease_id,
            attempt: 0,
            ..lease
        };
        self.deadline_moved = true;
        self.pops.put_lease(id, held.offset, lease);
        Ok(Reply::Lease(lease_id))
    }

    // --- offsets ----------------------------------------------------------------------------------

    /// What tools see as the committed offset of a group that pops: its first message that is not done with; and how
    /// many are leased.
    pub(crate) fn popped_offset(&self, group: &Bytes, topic: u32, queue: u32) -> Option<(u64, u64)> {
        let id = self.pops.ids.get(&(group.clone(), topic, queue))?;
        let progress = &self.pops.list[*id as usize];
        Some((progress.head, progress.leased))
    }

    /// The group goes on from that offset: leases end, and whoever holds one cannot settle it any more.
    pub(crate) fn reset_popped(&mut self, group: &Bytes, topic: u32, queue: u32, offset: u64) {
        let Some(id) = self.pops.ids.get(&(group.clone(), topic, queue)).copied() else {
            return;
        };
        self.pops.drop_leases(id);
        self.pops.list[id as usize].reset(offset);
        self.pops.wake(topic);
    }

    // --- replay and checkpoint --------------------------------------------------------------------

    fn replay_progress(&mut self, place: &PopPlace) -> Option<&mut Progress> {
        let topic = self.topic_ids.get(&place.topic).copied()?;
        let id = match self.pops.ids.get(&(place.group.clone(), topic, place.queue)) {
            Some(id) => *id,
            None => self.put_pop_progress(place.group.clone(), topic, place.queue, 0),
        };
        self.pops.list.get_mut(id as usize)
    }

    pub(crate) fn replay_pop_state(&mut self, place: &PopPlace, head: u64, next: u64, acked: &[(u64, u64)]) {
        if let Some(progress) = self.replay_progress(place) {
            progress.reset(head);
            progress.next = next.max(head);
            for (first, count) in acked {
                progress.acked.insert(*first..first.saturating_add(*count));
            }
        }
    }

    pub(crate) fn replay_pop_acked(&mut self, place: &PopPlace, ranges: &[(u64, u64)]) {
        if let Some(progress) = self.replay_progress(place) {
            for (first, count) in ranges {
                let end = first.saturating_add(*count);
                progress.next = progress.next.max(end);
                progress.ack(*first..end);
            }
        }
    }

    pub(crate) fn replay_pop_returned(&mut self, place: &PopPlace, runs: &[(u64, u64, u32)]) {
        if let Some(progress) = self.replay_progress(place) {
            for (first, count, attempts) in runs {
                let end = first.saturating_add((*count).min(u64::from(POP_MAX)));
                progress.next = progress.next.max(end);
                for offset in (*first).max(progress.head)..end {
                    if !progress.acked.contains(offset) {
                        progress.attempts.insert(offset, *attempts);
                    }
                }
            }
        }
    }

    /// After a replay nothing is leased: what is not done with is ready, and may have been handed out.
    pub(crate) fn replay_pops_done(&mut self) {
        let Self { pops, topics, .. } = self;
        for progress in &mut pops.list {
            let queue = topics[progress.topic as usize].queues.get(progress.queue as usize);
            let (start, end) = queue.map_or((0, 0), |queue| (queue.entries.head(), queue.entries.end()));
            if progress.next > end {
                let acked: Vec<_> = progress.acked.iter().collect();
                let head = progress.head.min(end);
                let attempts = std::mem::take(&mut progress.attempts);
                progress.reset(head);
                progress.next = end;
                progress.attempts = attempts.into_iter().filter(|(offset, _)| *offset < end).collect();
                acked
                    .into_iter()
                    .for_each(|range| progress.acked.insert(range.start..range.end.min(end).max(range.start)));
            }
            progress.skip_to(start);
            let mut ready = Ranges::default();
            ready.insert(progress.head..progress.next);
            for range in progress.acked.iter() {
                ready.remove(range, |_| {});
            }
            progress.ready = ready;
            progress.suspect_below = end;
        }
    }

    /// Puts the next of the groups' progress. Gives whether there is no more.
    pub(crate) fn checkpoint_pops(&self, at: &mut usize, put: &mut dyn FnMut(&Change)) -> bool {
        let Some(progress) = self.pops.list.get(*at) else {
            return true;
        };
        let place = self.pop_place(*at as u32);
        *at += 1;
        let ranges = progress
            .acked
            .iter()
            .map(|range| (range.start, range.end - range.start));
        put(&Change::PopState {
            place: place.clone(),
            head: progress.head,
            next: progress.next,
            acked: ranges.collect(),
        });
        let runs: Vec<_> = progress
            .attempts
            .iter()
            .map(|(offset, attempts)| (*offset, 1, *attempts))
            .collect();
        for runs in runs.chunks(512) {
            put(&Change::PopReturned {
                place: place.clone(),
                runs: runs.to_vec(),
            });
        }
        false
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
