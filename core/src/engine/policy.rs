//! What queues do by themselves: give up what has expired, what is too much and what came back too often,
//! dead-letter it, go when nobody uses them, and do what is long in slices.

use std::ops::Range;

use bytes::Bytes;

use crate::address::{encode_name, is_reserved, name_is_cut, split_whole_key};
use crate::attributes::{Attribute, AttributesBuilder, Name, Value};
use crate::boundary::Publish;
use crate::engine::change::Change;
use crate::engine::links::LinkId;
use crate::engine::progress::{Entry, Progress};
use crate::engine::publish::time_to_live;
use crate::engine::queue::Queue;
use crate::engine::republish::{Done, Revived};
use crate::engine::router::QueueId;
use crate::engine::state::{STEPS_MAX, State, Work};
use crate::history::{History, Reason, entered};
use crate::message::{self, Format, Message};
use crate::policy::{DeadLetter, Limit, Overflow, Policy, Way};
use crate::request::{Refusal, Reply};
use crate::time::Millis;

/// Steps that a message costs which is published again.
const REPUBLISH_STEPS: usize = 8;

impl State {
    // --- limits -----------------------------------------------------------------------------------

    /// What a full queue drops is counted, and logged when the count has doubled.
    fn count_dropped(&mut self, id: QueueId) {
        let Some(queue) = self.queue(id).filter(|queue| queue.dead_letter().is_none()) else {
            return;
        };
        let extra = queue.extra_mut();
        extra.dropped += 1;
        let dropped = extra.dropped;
        if dropped.is_power_of_two() {
            tracing::warn!(queue = %queue.spec.name.escape_ascii(), dropped, "a full queue has dropped its oldest messages");
        }
        self.dropped += 1;
    }

    /// Gives up what would be delivered next until the queue holds no more than it may.
    pub(crate) fn enforce_limit(&mut self, id: QueueId) {
        while let Some(queue) = self.queue(id)
            && queue.is_over_limit()
        {
            let overflow = queue.policy().map_or(Overflow::DropHead, |policy| policy.overflow);
            if overflow != Overflow::DropHead {
                // What is there already stays.
                return;
            }
            if self.steps >= STEPS_MAX {
                return self.put_off(Work::Limit(id));
            }
            let Some(taken) = self.queue(id).and_then(|queue| queue.take()) else {
                return;
            };
            self.steps += 1;
            self.count_dropped(id);
            self.give_up(id, taken.sequence..taken.sequence + 1, Reason::Limit);
        }
    }

    /// Gives a queue another limit and policy, which count for what it holds as well.
    pub(crate) fn alter_queue(
        &mut self,
        link: LinkId,
        name: &Bytes,
        limit: Limit,
        policy: Option<Box<Policy>>,
    ) -> Result<Reply, Refusal> {
        let id = self.queue_for(link, name)?;
        if self.queue(id).is_some_and(|queue| queue.spec.durable) {
            let policy = policy.clone();
            self.change(&Change::QueueAltered { id, limit, policy });
        }
        self.put_policy(id, limit, policy);
        self.used(id);
        self.enforce_limit(id);
        self.mark_dirty(id);
        Ok(Reply::Done)
    }

    /// As [`alter_queue`](Self::alter_queue), now or before a restart.
    pub(crate) fn put_policy(&mut self, id: QueueId, limit: Limit, policy: Option<Box<Policy>>) {
        let Some(queue) = self.queue(id) else { return };
        let before = queue.spec.policy();
        let declared = before.map_or((0, false), |p| (p.priorities, p.keeps_all));
        let ttl = before.and_then(|before| before.message_ttl);
        let mut policy = policy.unwrap_or_default();
        (policy.priorities, policy.keeps_all) = declared;
        let counted = queue.spec.limit().bytes.is_some();
        if policy.message_ttl != ttl {
            queue.extra_mut().ttl_altered = true;
            queue.expiring = true;
        }
        let now = Some(policy.clone()).filter(|policy| **policy != Policy::default());
        let before = queue.spec.alter(limit, now);
        if limit.bytes.is_some() && !counted {
            let bytes = queue.levels().map(Progress::count_leased_bytes).sum();
            queue.extra_mut().leased_bytes = bytes;
        }
        self.count_policy(before.as_deref(), false);
        self.count_policy(Some(&policy), true);
        self.forget_head(id);
        self.watch_head(id);
    }

    /// Keeps count of queues that everybody has to look out for.
    pub(crate) fn count_policy(&mut self, policy: Option<&Policy>, add: bool) {
        let Some(policy) = policy else { return };
        let change = |count: &mut usize| *count = if add { *count + 1 } else { *count - 1 };
        if policy.overflow != Overflow::DropHead {
            change(&mut self.refusing_queues);
        }
        if policy.keeps_all {
            change(&mut self.keeping_queues);
        }
    }

    /// Lists of queues that are gone: what they kept is released, in slices when it is much.
    pub(crate) fn dispose(&mut self, lists: Vec<Progress>) {
        self.disposed
            .extend(lists.into_iter().filter(|list| !list.list().is_empty()));
        if !self.disposed.is_empty() {
            self.dispose_slice();
        }
    }

    /// Goes on with what queues that are gone kept.
    pub(crate) fn dispose_slice(&mut self) {
        while let Some(list) = self.disposed.last_mut() {
            let head = list.list().head();
            let left = list.list().end() - head;
            if self.steps >= STEPS_MAX {
                return self.put_off_steps(Work::Dispose, left);
            }
            let count = left.min((STEPS_MAX - self.steps) as u64);
            let Self { memory, log, .. } = self;
            list.ack(head..head + count, |entry| {
                let position = entry.position;
                if position.is_memory() {
                    memory.release(position);
                } else {
                    log.unpin(position);
                }
            });
            self.steps += count.max(1) as usize;
            if list.list().is_empty() {
                self.disposed.pop();
            }
        }
    }

    /// After a restart: what is due for the queues there are.
    pub(crate) fn recovered(&mut self) {
        let ids: Vec<QueueId> = self.queues.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.used(id);
            self.watch_head(id);
        }
    }

    // --- expiry of messages -----------------------------------------------------------------------

    /// When an entry expires, on the broker's clock; `None` for never.
    fn deadline(&mut self, id: QueueId, entry: Entry) -> Option<u64> {
        let queue = self.queue(id)?;
        if !queue.expiring {
            return None;
        }
        if !queue.extra().is_some_and(|extra| extra.ttl_altered) {
            return Some(entry.expires_at()).filter(|at| *at != 0);
        }
        let ttl = queue.message_ttl().map(|ttl| ttl.0);
        let message = self.message(entry.position, entry.size)?;
        let own = time_to_live(&message);
        let live = own.into_iter().chain(ttl).min()?;
        Some(message.stored_at().0.saturating_add(live))
    }

    pub(crate) fn has_expired(&mut self, id: QueueId, entry: Entry) -> bool {
        let now = self.clock().0;
        self.deadline(id, entry).is_some_and(|at| at <= now)
    }

    /// Removes what has expired at the head of a queue: what is behind a message that lives waits for it.
    pub(crate) fn expire(&mut self, id: QueueId) {
        if !self.queue(id).is_some_and(|queue| queue.expiring) {
            return;
        }
        while self.steps < STEPS_MAX {
            let Some(level) = self.expired_level(id) else { return };
            let taken = self
                .queue(id)
                .and_then(|queue| queue.level_mut(level))
                .and_then(Progress::take);
            let Some(taken) = taken else { return };
            if let Some(queue) = self.queue(id).filter(|queue| queue.spec.limit().bytes.is_some()) {
                queue.extra_mut().leased_bytes += taken.entry.body_len();
            }
            self.steps += 1;
            self.give_up(id, taken.sequence..taken.sequence + 1, Reason::Expired);
        }
    }

    /// A level whose first message has expired.
    fn expired_level(&mut self, id: QueueId) -> Option<u8> {
        let queue = self.queue(id)?;
        if queue.has_one_level() {
            let entry = queue.progress.peek()?;
            return self.has_expired(id, entry).then_some(0);
        }
        let heads: Vec<(u8, Entry)> = queue.heads().collect();
        heads
            .into_iter()
            .find(|(_, entry)| self.has_expired(id, *entry))
            .map(|(level, _)| level)
    }

    /// Sees to it that a queue is looked at when its head expires.
    pub(crate) fn watch_head(&mut self, id: QueueId) {
        if self.replaying || !self.queue(id).is_some_and(|queue| queue.expiring) {
            return;
        }
        let queue = self.queue(id).expect("just seen");
        let next = if queue.has_one_level() {
            queue.progress.peek().and_then(|entry| self.deadline(id, entry))
        } else {
            let heads: Vec<(u8, Entry)> = queue.heads().collect();
            let deadlines = heads.into_iter().filter_map(|(_, entry)| self.deadline(id, entry));
            deadlines.min()
        };
        let Some(next) = next else { return };
        let queue = self.queue(id).expect("just seen");
        if queue
            .extra()
            .and_then(|extra| extra.head_at)
            .is_some_and(|at| at <= next)
        {
            return;
        }
        let before = queue.extra_mut().head_at.replace(next);
        if let Some(before) = before {
            self.heads.remove(&(before, id));
        }
        if self.heads.first().is_none_or(|(first, _)| next < *first) {
            self.deadline_moved = true;
        }
        self.heads.insert((next, id));
    }

    fn forget_head(&mut self, id: QueueId) {
        if let Some(queue) = self.queue(id)
            && queue.extra().is_some()
            && let Some(at) = queue.extra_mut().head_at.take()
        {
            self.heads.remove(&(at, id));
        }
    }

    // --- expiry of queues -------------------------------------------------------------------------

    /// Somebody uses the queue: if it goes unused, its time begins anew.
    pub(crate) fn used(&mut self, id: QueueId) {
        let now = self.now.mono;
        let Some(queue) = self.queue(id) else { return };
        let expires = queue.policy().and_then(|policy| policy.expires);
        let before = queue.extra().and_then(|extra| extra.unused_at);
        if expires.is_none() && before.is_none() {
            return;
        }
        let next = expires.filter(|_| queue.consumers().is_empty()).map(|span| now + span);
        queue.extra_mut().unused_at = next;
        if let Some(before) = before {
            self.unused.remove(&(before, id));
        }
        if let Some(next) = next {
            if self.unused.first().is_none_or(|(first, _)| next < *first) {
                self.deadline_moved = true;
            }
            self.unused.insert((next, id));
        }
    }

    /// What a checkpoint has to know of a queue besides its declaration and its lists.
    pub(crate) fn checkpoint_policy(id: QueueId, queue: &Queue, put: &mut dyn FnMut(&Change)) {
        if queue.expiring {
            put(&Change::Expiring { id });
        }
        let Some(extra) = queue.extra() else { return };
        if extra.ttl_altered {
            put(&Change::QueueAltered {
                id,
                limit: queue.spec.limit(),
                policy: queue.spec.policy().cloned().map(Box::new),
            });
        }
        let runs: Vec<_> = extra
            .attempts
            .iter()
            .map(|(run, n)| (run.start, run.end - run.start, n))
            .collect();
        if !runs.is_empty() {
            put(&Change::Attempts { id, runs });
        }
    }

    /// Once a queue's lists are in a checkpoint: what is done with but still on them.
    pub(crate) fn checkpoint_finishing(id: QueueId, queue: &Queue, put: &mut dyn FnMut(&Change)) {
        let ranges: Vec<_> = (queue.extra().into_iter())
            .flat_map(|extra| &extra.finishing)
            .map(|range| (range.start, range.end - range.start))
            .collect();
        if !ranges.is_empty() {
            put(&Change::Purged { id, ranges });
        }
    }

    /// A queue is gone: nothing is due for it any more.
    pub(crate) fn forget_deadlines(&mut self, id: QueueId) {
        self.forget_head(id);
        if let Some(queue) = self.queue(id)
            && let Some(at) = queue.extra().and_then(|extra| extra.unused_at)
        {
            self.unused.remove(&(at, id));
        }
    }

    /// Does what is due by now: looks at heads that expire, removes queues that nobody used.
    pub(crate) fn act_on_deadlines(&mut self) {
        let now = self.clock().0;
        while let Some((at, id)) = self.heads.first().copied()
            && at <= now
        {
            if self.steps >= STEPS_MAX {
                return self.put_off(Work::Deadlines);
            }
            self.forget_head(id);
            self.expire(id);
            self.watch_head(id);
            self.steps += 1;
        }
        let now = self.now.mono;
        while let Some((at, id)) = self.unused.first().copied()
            && at <= now
        {
            if self.steps >= STEPS_MAX {
                return self.put_off(Work::Deadlines);
            }
            self.steps += 1;
            self.delete_queue(id);
        }
    }

    /// When there is something to do again, on the monotonic clock.
    pub(crate) fn next_queue_deadline(&self) -> Option<Millis> {
        let head = self.heads.first().map(|(at, _)| self.mono_of(Millis(*at)));
        let unused = self.unused.first().map(|(at, _)| *at);
        head.into_iter().chain(unused).min()
    }

    // --- giving up --------------------------------------------------------------------------------

    /// Taken messages are not to be delivered: they are dead-lettered, if the queue says where.
    pub(crate) fn give_up(&mut self, id: QueueId, range: Range<u64>, reason: Reason) {
        let Some(queue) = self.queue(id) else { return };
        if queue.dead_letter().is_none() {
            return self.done(id, range);
        }
        let waits = queue.extra().is_some_and(|extra| !extra.dying.is_empty());
        if waits || range.end - range.start > 1 {
            queue.extra_mut().dying.push_back((range, reason));
            return self.put_off(Work::Bury(id));
        }
        self.dead_letter(id, range.start, reason);
    }

    /// Goes on with what was given up.
    pub(crate) fn bury_slice(&mut self, id: QueueId) {
        while self.steps < STEPS_MAX {
            let Some(queue) = self.queue(id) else { return };
            let dying = &mut queue.extra_mut().dying;
            let Some((range, reason)) = dying.front_mut() else {
                return;
            };
            let (sequence, reason) = (range.start, *reason);
            range.start += 1;
            if range.is_empty() {
                dying.pop_front();
            }
            self.dead_letter(id, sequence, reason);
        }
        self.put_off(Work::Bury(id));
    }

    fn dead_letter(&mut self, id: QueueId, sequence: u64, reason: Reason) {
        self.steps += REPUBLISH_STEPS;
        let only = sequence..sequence + 1;
        let entry = self
            .queue(id)
            .and_then(|queue| queue.list_of(sequence))
            .and_then(|list| list.entry(sequence));
        let message = entry.and_then(|entry| self.message(entry.position, entry.size));
        let Some(revived) = message.and_then(|message| self.dead(id, &message, reason)) else {
            return self.done(id, only);
        };
        if let Err(why) = self.republish(revived, Done::Entries(id, only.clone())) {
            tracing::debug!(?why, "a message that cannot be dead-lettered is dropped");
            self.done(id, only);
        }
    }

    /// A message that a full queue refuses goes where its dead ones go.
    pub(crate) fn dead_letter_refused(&mut self, id: QueueId, message: &Message) {
        if let Some(revived) = self.dead(id, message, Reason::Limit)
            && let Err(why) = self.republish(revived, Done::Nothing)
        {
            tracing::debug!(?why, "a message that cannot be dead-lettered is dropped");
        }
    }

    /// A message as it is dead-lettered by a queue.
    fn dead(&mut self, id: QueueId, message: &Message, reason: Reason) -> Option<Revived> {
        let now = self.stored_at;
        let queue = self.queue(id)?;
        let DeadLetter { way, key } = queue.dead_letter()?.clone();
        let time_to_live = time_to_live(message);
        let history = History::after(message, &queue.spec.to_name(), reason, now, time_to_live);
        let mut revived = Revived::of(message);
        let key = key.unwrap_or_else(|| entered(message).1);
        let (entry, topic, topic_name, key) = match way {
            Way::Queue => (message::Entry::Queue, encode_name(&key), Some(key), Bytes::new()),
            Way::Exchange(name) => (message::Entry::Exchange, name, None, key),
            Way::Topics => {
                let dot = key.iter().position(|b| *b == b'.').unwrap_or(key.len());
                let name = key.slice(..dot);
                let (topic, key) = split_whole_key(&key);
                (message::Entry::Topic, topic, Some(name), key)
            }
        };
        if is_reserved(&topic) {
            return None;
        }
        let publish = &mut revived.publish;
        publish.attributes = dead_attributes(publish, &history, topic_name.filter(|_| name_is_cut(&topic)));
        publish.entry = entry;
        publish.topic = topic;
        publish.key = key;
        let queues = self.config.topic_queues;
        let native = revived.native();
        native.queue_id = None;
        native.topic_queues = queues;
        revived.history = Some(Box::new(history));
        Some(revived)
    }
}

/// The attributes of a message that is dead-lettered: its history first, and no time to live any more.
fn dead_attributes(publish: &Publish, history: &History, topic_name: Option<Bytes>) -> crate::attributes::Attributes {
    let mut builder = AttributesBuilder::default();
    builder.put(Name::Known(Attribute::History), Value::Binary(&history.encode()));
    if publish.format == Format::NATIVE {
        return builder.finish();
    }
    for (name, value) in publish.attributes.iter() {
        let is_replaced = matches!(
            name,
            Name::Known(Attribute::History | Attribute::TimeToLive | Attribute::Topic)
        );
        if !is_replaced {
            builder.put(name, value);
        }
    }
    if let Some(name) = topic_name {
        builder.text(Attribute::Topic, &name);
    }
    builder.finish()
}
