//! A queue: its entries by level of priority, its consumers, and what its policy has to remember.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::boundary::SubscriptionId;
use crate::engine::attempts::Attempts;
use crate::engine::entries::EntryList;
use crate::engine::links::LinkId;
use crate::engine::progress::{Entry, Progress, Taken};
use crate::engine::ranges::Ranges;
use crate::engine::select::Selector;
use crate::history::Reason;
use crate::policy::{DeadLetter, Limit, Overflow, Policy};
use crate::request::{self, Acknowledge};
use crate::time::Millis;

/// A sequence number holds its level of priority above this bit, so that it says by itself to which list it
/// belongs, in the log too.
const LEVEL_SHIFT: u32 = 56;

/// The level of priority that a sequence belongs to.
pub(crate) const fn level_of(sequence: u64) -> u8 {
    (sequence >> LEVEL_SHIFT) as u8
}

/// The first sequence of a level.
pub(crate) const fn first_of(level: u8) -> u64 {
    (level as u64) << LEVEL_SHIFT
}

/// A queue and what its consumers have done with it. There may be a million that do nothing: what only busy
/// ones need is behind `extra`.
pub(crate) struct Queue {
    pub spec: Spec,
    /// The lowest level; higher ones are in `extra`.
    pub progress: Progress,
    consumers: Option<Box<Consumers>>,
    /// What only some queues need.
    extra: Option<Box<Extra>>,
    /// One of the consumers is the only one allowed.
    pub exclusive_consumer: bool,
    /// It ever had a consumer.
    pub had_consumer: bool,
    /// Belongs to a named session: transient messages are not kept while nobody is there.
    pub of_holder: bool,
    /// Already among the queues to be looked at in this hold.
    pub dirty: bool,
    /// Messages may expire at its head.
    pub expiring: bool,
}

/// A [`request::Queue`] in few bytes.
pub(crate) struct Spec {
    pub name: Box<[u8]>,
    pub durable: bool,
    pub exclusive: bool,
    pub auto_delete: bool,
    pub addressable: bool,
    /// Of a queue that was declared with anything else.
    more: Option<Box<More>>,
}

/// What few queues are declared with.
#[derive(Clone, Default, PartialEq)]
struct More {
    limit: Limit,
    policy: Option<Box<Policy>>,
    arguments: Bytes,
}

impl Spec {
    pub(crate) fn to_name(&self) -> Bytes {
        Bytes::copy_from_slice(&self.name)
    }

    /// As it was declared.
    pub(crate) fn to_queue(&self) -> request::Queue {
        let More {
            limit,
            policy,
            arguments,
        } = self.more.as_deref().cloned().unwrap_or_default();
        request::Queue {
            name: self.to_name(),
            durable: self.durable,
            exclusive: self.exclusive,
            auto_delete: self.auto_delete,
            addressable: self.addressable,
            limit,
            policy,
            arguments,
        }
    }

    pub(crate) fn limit(&self) -> Limit {
        self.more.as_ref().map_or(Limit::NONE, |more| more.limit)
    }

    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.more.as_ref()?.policy.as_deref()
    }

    /// Gives it another limit and policy; gives the policy it had.
    pub(crate) fn alter(&mut self, limit: Limit, policy: Option<Box<Policy>>) -> Option<Box<Policy>> {
        let more = self.more.get_or_insert_default();
        more.limit = limit;
        let before = std::mem::replace(&mut more.policy, policy);
        if **more == More::default() {
            self.more = None;
        }
        before
    }
}

impl From<request::Queue> for Spec {
    fn from(queue: request::Queue) -> Self {
        // What a client's buffer or a piece of the log holds is not kept for the sake of a few bytes.
        let more = More {
            limit: queue.limit,
            policy: queue.policy,
            arguments: Bytes::copy_from_slice(&queue.arguments),
        };
        Self {
            name: (*queue.name).into(),
            durable: queue.durable,
            exclusive: queue.exclusive,
            auto_delete: queue.auto_delete,
            addressable: queue.addressable,
            more: (more != More::default()).then(|| Box::new(more)),
        }
    }
}

/// What only queues with certain policies, or in the middle of something long, have to remember.
#[derive(Default)]
pub(crate) struct Extra {
    /// The connection whose exclusive queue this is.
    owner: Option<LinkId>,
    /// Sessions that share it; a queue with members goes with the last one.
    pub members: u32,
    /// What a named session wrote on its leases, by sequence.
    pub notes: BTreeMap<u64, u32>,
    /// Levels of priority above the lowest that were ever used.
    levels: BTreeMap<u8, Progress>,
    /// How often messages came back, where that is counted.
    pub attempts: Attempts,
    /// Bytes of bodies that are leased, where a limit needs it.
    pub leased_bytes: u64,
    /// When its head is looked at, on the broker's clock.
    pub head_at: Option<u64>,
    /// When it goes, if nobody uses it until then.
    pub unused_at: Option<Millis>,
    /// Its time to live was changed: what its entries say about expiry is not true.
    pub ttl_altered: bool,
    /// Done with, and said so in the log, but not yet taken off the list.
    pub finishing: VecDeque<Range<u64>>,
    /// What connections had that are gone, and is not yet back in its place.
    pub returning: Vec<Ranges>,
    /// Given up, but not yet dead-lettered.
    pub dying: VecDeque<(Range<u64>, Reason)>,
    /// Messages dropped because the queue was full.
    pub dropped: u64,
    /// Never delivered, but before something that was: a consumer's selector did not take it.
    passed: Ranges,
    /// The only consumer that gets something.
    active: Option<(LinkId, SubscriptionId)>,
}

/// A queue's consumers. One is the usual number.
#[derive(Default)]
struct Consumers {
    /// Highest priority first, then in the order in which they came.
    list: SmallVec<[Consumer; 1]>,
    /// The consumer that is asked first next time.
    turn: usize,
    /// How many of them have a selector.
    selecting: usize,
}

/// A consumer as its queue keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Consumer {
    pub link: LinkId,
    pub subscription: SubscriptionId,
    pub priority: i32,
    /// It has a selector.
    pub selects: bool,
}

/// A consumer whose turn it may be.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// How many were asked before.
    pub step: usize,
    /// Its place among the consumers.
    at: usize,
    pub consumer: Consumer,
}

impl Queue {
    pub(crate) fn new(spec: request::Queue, entries: EntryList) -> Self {
        let expiring = spec.policy.as_ref().is_some_and(|policy| policy.message_ttl.is_some());
        Self {
            spec: spec.into(),
            progress: Progress::new(entries),
            consumers: None,
            extra: None,
            exclusive_consumer: false,
            had_consumer: false,
            of_holder: false,
            dirty: false,
            expiring,
        }
    }

    pub(crate) fn owner(&self) -> Option<LinkId> {
        self.extra.as_ref()?.owner
    }

    pub(crate) fn set_owner(&mut self, owner: Option<LinkId>) {
        self.extra_mut().owner = owner;
    }

    pub(crate) fn consumers(&self) -> &[Consumer] {
        self.consumers.as_ref().map_or(&[], |consumers| &consumers.list)
    }

    /// Whether any of its consumers has a selector.
    pub(crate) fn is_selected_from(&self) -> bool {
        self.consumers.as_ref().is_some_and(|consumers| consumers.selecting > 0)
    }

    pub(crate) fn take_consumers(&mut self) -> impl Iterator<Item = Consumer> + use<> {
        self.consumers.take().into_iter().flat_map(|consumers| consumers.list)
    }

    pub(crate) fn members(&self) -> u32 {
        self.extra.as_ref().map_or(0, |extra| extra.members)
    }

    /// What a named session wrote on a lease; 0 is nothing.
    pub(crate) fn note(&self, sequence: u64) -> u32 {
        let notes = self.extra.as_ref().map(|extra| &extra.notes);
        notes.and_then(|notes| notes.get(&sequence)).copied().unwrap_or(0)
    }

    pub(crate) fn notes(&self) -> impl Iterator<Item = (&u64, &u32)> {
        self.extra.iter().flat_map(|extra| &extra.notes)
    }

    /// Forgets what was written on leases that are done with.
    pub(crate) fn drop_notes(&mut self, range: &Range<u64>) {
        let Some(extra) = &mut self.extra else { return };
        while let Some((at, _)) = extra.notes.range(range.clone()).next() {
            let at = *at;
            extra.notes.remove(&at);
        }
    }

    pub(crate) fn extra(&self) -> Option<&Extra> {
        self.extra.as_deref()
    }

    pub(crate) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(crate) fn set_note(&mut self, sequence: u64, note: u32) {
        let notes = &mut self.extra_mut().notes;
        if note == 0 {
            notes.remove(&sequence);
        } else {
            notes.insert(sequence, note);
        }
    }

    // --- policy -----------------------------------------------------------------------------------

    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.spec.policy()
    }

    pub(crate) fn dead_letter(&self) -> Option<&DeadLetter> {
        self.policy()?.dead_letter.as_ref()
    }

    pub(crate) fn message_ttl(&self) -> Option<Millis> {
        self.policy()?.message_ttl
    }

    pub(crate) fn is_single_active(&self) -> bool {
        self.policy().is_some_and(|policy| policy.single_active)
    }

    pub(crate) fn counts_attempts(&self) -> bool {
        self.policy().is_some_and(|policy| policy.counts_attempts)
    }

    /// A session whose client is away gets no transient messages.
    pub(crate) fn leaves_out(&self, persistent: bool) -> bool {
        !persistent && self.of_holder && self.consumers().is_empty()
    }

    /// Whether every message is kept over a restart.
    pub(crate) fn keeps_all(&self) -> bool {
        self.policy().is_some_and(|policy| policy.keeps_all)
    }

    /// The level at which a message of that priority is queued.
    pub(crate) fn level_for(&self, priority: impl FnOnce() -> u64) -> u8 {
        match self.policy().map_or(0, |policy| policy.priorities) {
            0 => 0,
            highest => priority().min(u64::from(highest)) as u8,
        }
    }

    /// Whether it refuses another message of that size.
    pub(crate) fn refuses(&self, bytes: u64) -> bool {
        let limit = self.spec.limit();
        self.policy()
            .is_some_and(|policy| policy.overflow != Overflow::DropHead)
            && (limit.messages.is_some_and(|max| self.ready() + 1 > max)
                || limit.bytes.is_some_and(|max| self.ready_bytes() + bytes > max))
    }

    /// Whether it has to give up what would be delivered next.
    pub(crate) fn is_over_limit(&self) -> bool {
        let limit = self.spec.limit();
        if limit.messages.is_none() && limit.bytes.is_none() {
            return false;
        }
        let ready = self.ready();
        ready > 0
            && (limit.messages.is_some_and(|max| ready > max)
                || limit.bytes.is_some_and(|max| self.ready_bytes() > max))
    }

    // --- entries ----------------------------------------------------------------------------------

    /// All levels in use, the lowest first.
    pub(crate) fn levels(&self) -> impl DoubleEndedIterator<Item = &Progress> {
        let higher = self.extra.iter().flat_map(|extra| extra.levels.values());
        std::iter::once(&self.progress).chain(higher)
    }

    pub(crate) fn levels_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Progress> {
        let higher = self.extra.iter_mut().flat_map(|extra| extra.levels.values_mut());
        std::iter::once(&mut self.progress).chain(higher)
    }

    pub(crate) fn level(&self, level: u8) -> Option<&Progress> {
        match level {
            0 => Some(&self.progress),
            level => self.extra.as_deref()?.levels.get(&level),
        }
    }

    pub(crate) fn level_mut(&mut self, level: u8) -> Option<&mut Progress> {
        match level {
            0 => Some(&mut self.progress),
            level => self.extra.as_deref_mut()?.levels.get_mut(&level),
        }
    }

    /// Leaves the queue without entries.
    pub(crate) fn take_levels(&mut self, nothing: EntryList) -> Vec<Progress> {
        let lowest = std::mem::replace(&mut self.progress, Progress::new(nothing));
        let higher = self.extra.take().map(|extra| extra.levels).unwrap_or_default();
        std::iter::once(lowest).chain(higher.into_values()).collect()
    }

    /// The level of that number, made by `entries` when it is used for the first time.
    pub(crate) fn level_or(&mut self, level: u8, entries: impl FnOnce() -> EntryList) -> &mut Progress {
        if level == 0 {
            return &mut self.progress;
        }
        self.extra_mut().levels.entry(level).or_insert_with(|| {
            let mut entries = entries();
            entries.skip_to(first_of(level));
            Progress::new(entries)
        })
    }

    /// The list that a sequence is in.
    pub(crate) fn list_of(&mut self, sequence: u64) -> Option<&mut Progress> {
        self.level_mut(level_of(sequence))
    }

    /// The level whose turn it is to be delivered.
    fn top_mut(&mut self) -> &mut Progress {
        if let Some(extra) = self.extra.as_deref_mut()
            && let Some(level) = extra.levels.values_mut().rev().find(|level| level.ready() > 0)
        {
            return level;
        }
        &mut self.progress
    }

    /// The sequence that the next message of a level gets.
    pub(crate) fn end_of(&self, level: u8) -> u64 {
        if level == 0 {
            return self.progress.end();
        }
        let levels = self.extra.as_ref().map(|extra| &extra.levels);
        let known = levels.and_then(|levels| levels.get(&level));
        known.map_or(first_of(level), Progress::end)
    }

    /// Messages waiting to be delivered.
    pub(crate) fn ready(&self) -> u64 {
        self.levels().map(Progress::ready).sum()
    }

    /// Bytes of the bodies of what waits to be delivered.
    fn ready_bytes(&self) -> u64 {
        let leased = self.extra.as_ref().map_or(0, |extra| extra.leased_bytes);
        self.levels().map(Progress::bytes).sum::<u64>().saturating_sub(leased)
    }

    /// Takes the next entry to be delivered.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        let taken = self.top_mut().take()?;
        Some(self.taken(taken))
    }

    /// Takes an entry out of turn, for a consumer that selects.
    pub(crate) fn take_at(&mut self, sequence: u64) -> Option<Taken> {
        let taken = self.list_of(sequence)?.take_at(sequence)?;
        Some(self.taken(taken))
    }

    fn taken(&mut self, mut taken: Taken) -> Taken {
        if self.spec.limit().bytes.is_some() {
            self.extra_mut().leased_bytes += taken.entry.body_len();
        }
        if let Some(extra) = self.extra.as_deref_mut().filter(|extra| !extra.passed.is_empty()) {
            let only = taken.sequence..taken.sequence + 1;
            extra.passed.remove(only, |_| taken.redelivered = false);
        }
        taken
    }

    /// What was taken was not wanted after all: it is in its place again, as if nobody had looked.
    pub(crate) fn put_back(&mut self, taken: Taken) {
        let only = taken.sequence..taken.sequence + 1;
        self.give_back(only.clone());
        if !taken.redelivered {
            self.extra_mut().passed.insert(only);
        }
    }

    /// Whether only the lowest level was ever used.
    pub(crate) fn has_one_level(&self) -> bool {
        self.extra.as_ref().is_none_or(|extra| extra.levels.is_empty())
    }

    /// The first entry of each level that has something ready.
    pub(crate) fn heads(&mut self) -> impl Iterator<Item = (u8, Entry)> {
        self.levels_mut()
            .filter_map(|level| Some((level_of(level.next()), level.peek()?)))
    }

    /// Takes everything that is ready.
    pub(crate) fn take_all(&mut self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        self.levels_mut().for_each(|level| ranges.extend(level.take_all()));
        if let Some(extra) = self.extra.as_deref_mut() {
            extra.passed = Ranges::default();
        }
        if self.spec.limit().bytes.is_some() {
            let bytes = self.levels().map(Progress::bytes).sum();
            self.extra_mut().leased_bytes = bytes;
        }
        ranges
    }

    /// Leased entries go back to their places.
    pub(crate) fn give_back(&mut self, range: Range<u64>) {
        if self.spec.limit().bytes.is_some() {
            let all = self.levels().map(Progress::leased).sum::<u64>() == range.end - range.start;
            let bytes = if all {
                u64::MAX
            } else {
                let list = self.list_of(range.start);
                list.map_or(0, |list| {
                    let entries = range.clone().filter_map(|at| list.entry(at));
                    entries.map(Entry::body_len).sum()
                })
            };
            let extra = self.extra_mut();
            extra.leased_bytes = extra.leased_bytes.saturating_sub(bytes);
        }
        if let Some(list) = self.list_of(range.start) {
            list.release(range);
        }
    }

    /// An entry as this queue keeps it: its time is the shorter of the message's and the queue's.
    pub(crate) fn with_ttl(&self, mut entry: Entry, now: Millis) -> Entry {
        if let Some(ttl) = self.message_ttl() {
            entry.expire_at(now.0.saturating_add(ttl.0));
        }
        entry
    }

    /// Replay: entries are done with. Calls `gone` with each that was not before.
    pub(crate) fn replay_done_with(&mut self, range: Range<u64>, gone: impl FnMut(Entry)) {
        if let Some(list) = self.list_of(range.start) {
            list.ack(range.clone(), gone);
        }
        if let Some(extra) = self.extra.as_deref_mut()
            && !extra.attempts.is_empty()
        {
            extra.attempts.remove(range, |_, _| {});
        }
    }

    // --- consumers --------------------------------------------------------------------------------

    /// Adds a consumer behind those of its priority.
    pub(crate) fn add_consumer(&mut self, consumer: Consumer) {
        let Consumers { list, turn, selecting } = &mut **self.consumers.get_or_insert_default();
        *selecting += usize::from(consumer.selects);
        let at = list.partition_point(|known| known.priority >= consumer.priority);
        list.insert(at, consumer);
        *turn = 0;
    }

    /// Whether there was such a consumer.
    pub(crate) fn remove_consumer(&mut self, link: LinkId, subscription: SubscriptionId) -> bool {
        let Some(consumers) = &mut self.consumers else {
            return false;
        };
        let Consumers { list, turn, selecting } = &mut **consumers;
        let before = list.len();
        list.retain(|consumer| (consumer.link, consumer.subscription) != (link, subscription));
        *selecting = list.iter().filter(|consumer| consumer.selects).count();
        *turn = 0;
        let after = list.len();
        if after == 0 {
            self.consumers = None;
        }
        after < before
    }

    /// The consumer that is asked `step`th: those of the highest priority in turn, then those of the next.
    pub(crate) fn consumer_at(&mut self, step: usize) -> Option<Turn> {
        if self.is_single_active() {
            return (step == 0).then(|| self.active_consumer()).flatten();
        }
        let Consumers {
            list: consumers, turn, ..
        } = self.consumers.as_deref()?;
        let known = *consumers.get(step)?;
        let is_peer = |consumer: Option<&Consumer>| consumer.is_some_and(|c| c.priority == known.priority);
        if is_peer(consumers.first()) && is_peer(consumers.last()) {
            let at = (turn + step) % consumers.len();
            let consumer = consumers[at];
            return Some(Turn { step, at, consumer });
        }
        let start = consumers.partition_point(|consumer| consumer.priority > known.priority);
        let end = consumers.partition_point(|consumer| consumer.priority >= known.priority);
        let first = if (start..end).contains(turn) { *turn } else { start };
        let at = start + (first - start + step - start) % (end - start);
        let consumer = consumers[at];
        Some(Turn { step, at, consumer })
    }

    fn active_consumer(&mut self) -> Option<Turn> {
        let active = self.extra().and_then(|extra| extra.active);
        let is_active = |consumer: &Consumer| Some((consumer.link, consumer.subscription)) == active;
        if let Some(at) = self.consumers().iter().position(is_active) {
            let consumer = self.consumers()[at];
            return Some(Turn { step: 0, at, consumer });
        }
        let consumer = *self.consumers().first()?;
        self.extra_mut().active = Some((consumer.link, consumer.subscription));
        Some(Turn {
            step: 0,
            at: 0,
            consumer,
        })
    }

    /// A consumer gets something: the next one is asked first next time.
    pub(crate) fn served(&mut self, turn: Turn) {
        if let Some(consumers) = &mut self.consumers {
            let next = turn.at + 1;
            consumers.turn = if next < consumers.list.len() { next } else { 0 };
        }
    }
}

/// A consumer as its link keeps it.
pub(crate) struct Subscription {
    pub queue: u32,
    pub acknowledge: Acknowledge,
    pub window: Option<u32>,
    /// Sequences leased to it.
    pub leases: Ranges,
    /// Deliveries go to it. Not one that was made for gets, nor one that ended with leases open.
    pub active: bool,
    /// What it wants, if not everything.
    pub selector: Option<Box<Selector>>,
}

impl Subscription {
    pub(crate) fn new(queue: u32, acknowledge: Acknowledge, window: Option<u32>) -> Self {
        Self {
            queue,
            acknowledge,
            window,
            leases: Ranges::default(),
            active: true,
            selector: None,
        }
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.window.is_none_or(|window| self.leases.count() < u64::from(window))
    }

    pub(crate) fn leases_message(&self, persistent: bool) -> bool {
        match self.acknowledge {
            Acknowledge::Never => false,
            Acknowledge::Always => true,
            Acknowledge::Persistent => persistent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_queue_is_small() {
        assert!(size_of::<Queue>() <= 152, "{} bytes", size_of::<Queue>());
    }
}
