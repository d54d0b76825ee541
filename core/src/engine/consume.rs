//! Queues and their consumers: offering, delivering, settling, getting.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use crate::boundary::{Delivery, Event, Notice, Settle, Settlement, SubscriptionId};
use crate::engine::change::Change;
use crate::engine::entries::EntryList;
use crate::engine::progress::{Entry, Progress, Taken};
use crate::engine::ranges::Ranges;
use crate::engine::router::QueueId;
use crate::engine::state::{LinkId, STEPS_MAX, State, Work};
use crate::message::Message;
use crate::request::{self, Acknowledge, Got, Refusal, Reply, Subscribe};

/// A queue and what its consumers have done with it.
pub(crate) struct Queue {
    pub spec: request::Queue,
    /// Encoded name: the topic that reaches it.
    pub topic: Bytes,
    pub progress: Progress,
    /// The connection whose exclusive queue this is.
    pub owner: Option<LinkId>,
    pub consumers: Vec<(LinkId, SubscriptionId)>,
    /// The consumer that is asked first next time.
    turn: usize,
    /// One of the consumers is the only one allowed.
    pub exclusive_consumer: bool,
    /// It ever had a consumer.
    pub had_consumer: bool,
    /// Belongs to a named session: transient messages are not kept while nobody is there.
    pub of_holder: bool,
    /// Sessions that share it; a queue with members goes with the last one.
    pub members: u32,
    /// What a named session wrote on its leases, by sequence.
    pub notes: BTreeMap<u64, u32>,
    /// Already among the queues to be looked at in this hold.
    dirty: bool,
}

impl Queue {
    pub(crate) fn new(spec: request::Queue, topic: Bytes, entries: EntryList) -> Self {
        Self {
            spec,
            topic,
            progress: Progress::new(entries),
            owner: None,
            consumers: Vec::new(),
            turn: 0,
            exclusive_consumer: false,
            had_consumer: false,
            of_holder: false,
            members: 0,
            notes: BTreeMap::new(),
            dirty: false,
        }
    }

    pub(crate) fn set_note(&mut self, sequence: u64, note: u32) {
        if note == 0 {
            self.notes.remove(&sequence);
        } else {
            self.notes.insert(sequence, note);
        }
    }

    /// A session whose client is away gets no transient messages.
    pub(crate) fn leaves_out(&self, persistent: bool) -> bool {
        !persistent && self.of_holder && self.consumers.is_empty()
    }

    fn is_over_limit(&self) -> bool {
        let limit = self.spec.limit;
        let ready = self.progress.ready();
        ready > 0
            && (limit.messages.is_some_and(|max| ready > max)
                || limit.bytes.is_some_and(|max| self.progress.bytes() > max))
    }
}

/// A consumer as its link keeps it.
pub(crate) struct Subscription {
    pub queue: QueueId,
    acknowledge: Acknowledge,
    window: Option<u32>,
    /// Sequences leased to it.
    leases: Ranges,
    /// Deliveries go to it. Not one that was made for gets, nor one that ended with leases open.
    active: bool,
}

impl Subscription {
    fn has_credit(&self) -> bool {
        self.window.is_none_or(|window| self.leases.count() < u64::from(window))
    }

    fn leases_message(&self, persistent: bool) -> bool {
        match self.acknowledge {
            Acknowledge::Never => false,
            Acknowledge::Always => true,
            Acknowledge::Persistent => persistent,
        }
    }
}

/// Forgets what was written on leases that are done with.
pub(crate) fn drop_notes(notes: &mut BTreeMap<u64, u32>, range: &Range<u64>) {
    while let Some((at, _)) = notes.range(range.clone()).next() {
        let at = *at;
        notes.remove(&at);
    }
}

impl State {
    pub(crate) fn queue(&mut self, id: QueueId) -> Option<&mut Queue> {
        self.queues.get_mut(id as usize)?.as_deref_mut()
    }

    /// The queue of that name, unless it is another connection's exclusive one.
    pub(crate) fn queue_for(&mut self, link: LinkId, name: &Bytes) -> Result<QueueId, Refusal> {
        let Some(id) = self.queue_ids.get(name).copied() else {
            return Err(Refusal::NotFound {
                what: "queue",
                name: name.clone(),
            });
        };
        match self.queue(id) {
            Some(queue) if queue.owner.is_some_and(|owner| owner != link) => Err(Refusal::Locked),
            _ => Ok(id),
        }
    }

    // --- offering ---------------------------------------------------------------------------------

    /// A new message for a queue: hands it to a consumer at once if nothing is before it, else keeps it.
    pub(crate) fn offer(&mut self, id: QueueId, message: &Message, entry: Entry) {
        let persistent = message.is_persistent();
        let Some(queue) = self.queue(id) else { return };
        if queue.progress.ready() == 0 && !queue.consumers.is_empty() && !queue.dirty {
            // Nothing is before it: even a message that may not wait at all is handed over.
            if let Some(consumer) = self.next_consumer(id) {
                return self.hand_over(id, consumer, message, entry);
            }
        } else if queue.leaves_out(persistent) {
            return;
        }
        self.keep(id, entry);
        self.enforce_limit(id);
    }

    /// Appends an entry to a queue.
    pub(crate) fn keep(&mut self, id: QueueId, entry: Entry) -> u64 {
        self.hold_entry(entry);
        let queue = self.queue(id).expect("the caller looked");
        queue.progress.push(entry)
    }

    fn hand_over(
        &mut self,
        id: QueueId,
        (link, subscription): (LinkId, SubscriptionId),
        message: &Message,
        entry: Entry,
    ) {
        let persistent = message.is_persistent();
        let state = self.link(link).and_then(|l| l.subscriptions.get(&subscription));
        let leased = state.is_some_and(|s| s.leases_message(persistent));
        let sequence = if leased {
            let sequence = self.keep(id, entry);
            let taken = self.queue(id).and_then(|queue| queue.progress.take());
            debug_assert_eq!(taken.map(|t| t.sequence), Some(sequence));
            self.lease(link, subscription, sequence);
            sequence
        } else {
            let durable = self.queue(id).is_some_and(|queue| queue.spec.durable);
            let sequence = self.queue(id).expect("the caller looked").progress.pass();
            if durable && !entry.position.is_memory() {
                self.settled_one(id, sequence);
            }
            sequence
        };
        let message = message.clone();
        self.tell(
            link,
            Event::Delivery(Delivery {
                subscription,
                sequence,
                redelivered: false,
                attempts: 0,
                leased,
                recalled: false,
                note: 0,
                message,
            }),
        );
    }

    fn lease(&mut self, link: LinkId, subscription: SubscriptionId, sequence: u64) {
        if let Some(state) = self.link(link).and_then(|l| l.subscriptions.get_mut(&subscription)) {
            state.leases.insert(sequence..sequence + 1);
        }
    }

    fn settled_one(&mut self, queue: QueueId, sequence: u64) {
        if let Some((last_queue, first, count)) = self.settled.last_mut()
            && *last_queue == queue
            && *first + u64::from(*count) == sequence
        {
            *count += 1;
            return;
        }
        self.settled.push((queue, sequence, 1));
    }

    pub(crate) fn enforce_limit(&mut self, id: QueueId) {
        while let Some(queue) = self.queue(id)
            && queue.is_over_limit()
        {
            let durable = queue.spec.durable;
            let mut dropped = None;
            let sequence = queue.progress.drop_next(|entry| dropped = Some(entry));
            self.entry_gone(id, durable, sequence, dropped);
        }
    }

    fn entry_gone(&mut self, id: QueueId, durable: bool, sequence: Option<u64>, entry: Option<Entry>) {
        let (Some(sequence), Some(entry)) = (sequence, entry) else {
            return;
        };
        if let Some(queue) = self.queue(id) {
            queue.notes.remove(&sequence);
        }
        self.release_entry(entry);
        if durable && !entry.position.is_memory() {
            self.settled_one(id, sequence);
        }
    }

    // --- delivering -------------------------------------------------------------------------------

    /// The next consumer in turn that can take a delivery.
    fn next_consumer(&mut self, id: QueueId) -> Option<(LinkId, SubscriptionId)> {
        let queue = self.queue(id)?;
        let (count, turn) = (queue.consumers.len(), queue.turn);
        for step in 0..count {
            let at = (turn + step) % count;
            let (link, subscription) = self.queue(id)?.consumers[at];
            let state = self.link(link).and_then(|l| l.subscriptions.get(&subscription));
            let has_credit = state.is_some_and(Subscription::has_credit);
            if has_credit && self.has_room(link, id) {
                self.queue(id)?.turn = (at + 1) % count;
                return Some((link, subscription));
            }
        }
        None
    }

    /// The queue may have something to deliver: looked at when the hold ends.
    pub(crate) fn mark_dirty(&mut self, id: QueueId) {
        if let Some(queue) = self.queue(id)
            && !std::mem::replace(&mut queue.dirty, true)
        {
            self.dirty_queues.push(id);
        }
    }

    pub(crate) fn deliver_dirty(&mut self) {
        let mut index = 0;
        while index < self.dirty_queues.len() {
            let id = self.dirty_queues[index];
            index += 1;
            self.deliver(id);
        }
        self.dirty_queues.clear();
    }

    /// Hands out what is ready, as far as consumers can take it.
    pub(crate) fn deliver(&mut self, id: QueueId) {
        if let Some(queue) = self.queue(id) {
            queue.dirty = false;
        }
        while self
            .queue(id)
            .is_some_and(|queue| queue.progress.ready() > 0 && !queue.consumers.is_empty())
        {
            if self.steps >= STEPS_MAX {
                if !self.work.contains(&Work::Deliver(id)) {
                    self.work.push_back(Work::Deliver(id));
                }
                if let Some(queue) = self.queue(id) {
                    queue.dirty = true;
                }
                return;
            }
            self.steps += 1;
            let Some((link, subscription)) = self.next_consumer(id) else {
                return;
            };
            let Some((taken, message)) = self.take_message(id) else {
                return;
            };
            let delivery = self.delivery(link, subscription, id, taken, message);
            self.tell(link, Event::Delivery(delivery));
        }
    }

    /// Takes the next message out of a queue; skips what cannot be read any more.
    fn take_message(&mut self, id: QueueId) -> Option<(Taken, Message)> {
        loop {
            let taken = self.queue(id)?.progress.take()?;
            if !taken.entry.is_expired(self.now.wall)
                && let Some(message) = self.message(taken.entry.position, taken.entry.size)
            {
                return Some((taken, message));
            }
            self.done(id, taken.sequence..taken.sequence + 1);
        }
    }

    /// Removes what has expired at the head of a queue: what is behind a message that lives waits for it.
    pub(crate) fn expire(&mut self, id: QueueId) {
        let now = self.now.wall;
        while let Some(queue) = self.queue(id)
            && queue.progress.peek().is_some_and(|entry| entry.is_expired(now))
            && let Some(taken) = queue.progress.take()
        {
            self.done(id, taken.sequence..taken.sequence + 1);
        }
    }

    fn delivery(
        &mut self,
        link: LinkId,
        subscription: SubscriptionId,
        id: QueueId,
        taken: Taken,
        message: Message,
    ) -> Delivery {
        let persistent = message.is_persistent();
        let state = self.link(link).and_then(|l| l.subscriptions.get(&subscription));
        let leased = state.is_some_and(|s| s.leases_message(persistent));
        let mut note = 0;
        if leased {
            self.lease(link, subscription, taken.sequence);
            let notes = self.queue(id).map(|queue| &queue.notes);
            note = notes.and_then(|notes| notes.get(&taken.sequence)).copied().unwrap_or(0);
        } else {
            self.done(id, taken.sequence..taken.sequence + 1);
        }
        Delivery {
            subscription,
            sequence: taken.sequence,
            redelivered: taken.redelivered,
            attempts: 0,
            leased,
            recalled: taken.entry.is_recalled(),
            note,
            message,
        }
    }

    /// Entries are done with for good.
    pub(crate) fn done(&mut self, id: QueueId, range: Range<u64>) {
        let Self {
            queues,
            memory,
            log,
            settled,
            ..
        } = self;
        let Some(Some(queue)) = queues.get_mut(id as usize) else {
            return;
        };
        let mut stored = false;
        if !queue.notes.is_empty() {
            drop_notes(&mut queue.notes, &range);
        }
        queue.progress.ack(range.clone(), |entry| {
            if entry.position.is_memory() {
                memory.release(entry.position);
            } else {
                log.unpin(entry.position);
                stored = true;
            }
        });
        if !stored || !queue.spec.durable {
            return;
        }
        let count = (range.end - range.start).min(u64::from(u32::MAX)) as u32;
        match settled.last_mut() {
            Some((last, first, n)) if *last == id && *first + u64::from(*n) == range.start => *n += count,
            _ => settled.push((id, range.start, count)),
        }
    }

    /// A named session's words on its leases, for when it comes back. Notes on other sequences are not kept.
    pub(crate) fn note(
        &mut self,
        link: LinkId,
        subscription: SubscriptionId,
        notes: &[(u64, u32)],
    ) -> Result<Reply, Refusal> {
        let Some(leases) = self.link(link).and_then(|link| link.subscriptions.get(&subscription)) else {
            return Ok(Reply::Done);
        };
        let id = leases.queue;
        let kept: Vec<_> = notes
            .iter()
            .copied()
            .filter(|(at, _)| leases.leases.contains(*at))
            .collect();
        let Some(queue) = self.queue(id).filter(|queue| queue.of_holder && queue.members == 0) else {
            return Ok(Reply::Done);
        };
        let durable = queue.spec.durable;
        for (sequence, note) in kept {
            if let Some(queue) = self.queue(id) {
                queue.set_note(sequence, note);
            }
            if durable {
                self.change(&Change::Note { id, sequence, note });
            }
        }
        Ok(Reply::Done)
    }

    // --- settling ---------------------------------------------------------------------------------

    pub(crate) fn settle_one(&mut self, link: LinkId, settlement: Settlement) {
        let Some(state) = self.link(link) else { return };
        let Some(subscription) = state.subscriptions.get_mut(&settlement.subscription) else {
            return;
        };
        let queue = subscription.queue;
        let mut ranges: [Option<Range<u64>>; 1] = [None];
        let mut more = Vec::new();
        let wanted = settlement.first..settlement.first.saturating_add(u64::from(settlement.count));
        subscription.leases.remove(wanted, |range| match &mut ranges[0] {
            none @ None => *none = Some(range),
            Some(_) => more.push(range),
        });
        if !subscription.active && subscription.leases.is_empty() {
            state.subscriptions.remove(&settlement.subscription);
        }
        for range in ranges.into_iter().flatten().chain(more) {
            match settlement.action {
                Settle::Ack | Settle::Reject => self.done(queue, range),
                Settle::Release => {
                    if let Some(queue) = self.queue(queue) {
                        queue.progress.release(range);
                    }
                }
            }
        }
        self.enforce_limit(queue);
        if self.queue(queue).is_some_and(|queue| queue.progress.ready() > 0) {
            self.mark_dirty(queue);
        }
    }

    // --- requests ---------------------------------------------------------------------------------

    pub(crate) fn subscribe(&mut self, link: LinkId, subscribe: Subscribe) -> Result<Reply, Refusal> {
        let id = self.queue_for(link, &subscribe.queue)?;
        let queue = self.queue(id).expect("just found");
        if queue.exclusive_consumer || (subscribe.exclusive && !queue.consumers.is_empty()) {
            return Err(Refusal::InUse);
        }
        let state = self.link(link).ok_or(Refusal::Closed)?;
        if state.subscriptions.contains_key(&subscribe.subscription) {
            return Err(Refusal::Invalid("the subscription's number is in use".to_owned()));
        }
        state.subscriptions.insert(
            subscribe.subscription,
            Subscription {
                queue: id,
                acknowledge: subscribe.acknowledge,
                window: subscribe.window,
                leases: Ranges::default(),
                active: true,
            },
        );
        let queue = self.queue(id).expect("just found");
        queue.exclusive_consumer = subscribe.exclusive;
        queue.consumers.push((link, subscribe.subscription));
        self.consumed(id);
        self.mark_dirty(id);
        Ok(Reply::Done)
    }

    /// Notes that a durable queue is consumed from. Nobody gets anything of it before that is as safe as a
    /// confirmed message, not even when it was another one's coming that is being noted.
    fn consumed(&mut self, id: QueueId) {
        let Some(queue) = self.queue(id).filter(|queue| queue.spec.durable) else {
            return;
        };
        if std::mem::replace(&mut queue.had_consumer, true) {
            self.rests_on_changes();
        } else {
            self.change(&Change::Consumed { id });
        }
    }

    pub(crate) fn unsubscribe(&mut self, link: LinkId, id: SubscriptionId) -> Result<Reply, Refusal> {
        let Some(state) = self.link(link) else {
            return Err(Refusal::Closed);
        };
        let Some(subscription) = state.subscriptions.get_mut(&id) else {
            return Ok(Reply::Done);
        };
        let queue = subscription.queue;
        subscription.active = false;
        if subscription.leases.is_empty() {
            state.subscriptions.remove(&id);
        }
        self.remove_consumer(link, id, queue);
        Ok(Reply::Done)
    }

    /// A consumer is gone from its queue; the queue may go with its last one.
    pub(crate) fn remove_consumer(&mut self, link: LinkId, id: SubscriptionId, queue_id: QueueId) {
        let Some(queue) = self.queue(queue_id) else { return };
        let before = queue.consumers.len();
        queue.consumers.retain(|consumer| *consumer != (link, id));
        queue.turn = 0;
        if queue.consumers.len() == before {
            return;
        }
        queue.exclusive_consumer = false;
        if queue.consumers.is_empty() && queue.spec.auto_delete {
            self.delete_queue(queue_id);
        }
    }

    pub(crate) fn get(
        &mut self,
        link: LinkId,
        id: SubscriptionId,
        name: &Bytes,
        leased: bool,
    ) -> Result<Reply, Refusal> {
        let queue_id = self.queue_for(link, name)?;
        if self.queue(queue_id).is_some_and(|queue| queue.exclusive_consumer) {
            return Err(Refusal::InUse);
        }
        let state = self.link(link).ok_or(Refusal::Closed)?;
        let subscription = state.subscriptions.entry(id).or_insert_with(|| Subscription {
            queue: queue_id,
            acknowledge: Acknowledge::Always,
            window: None,
            leases: Ranges::default(),
            active: true,
        });
        if subscription.queue != queue_id {
            return Err(Refusal::Ended);
        }
        subscription.acknowledge = if leased {
            Acknowledge::Always
        } else {
            Acknowledge::Never
        };
        let Some((taken, message)) = self.take_message(queue_id) else {
            return Ok(Reply::Got(None));
        };
        self.consumed(queue_id);
        let delivery = self.delivery(link, id, queue_id, taken, message);
        self.expire(queue_id);
        let remaining = self.queue(queue_id).map_or(0, |queue| queue.progress.ready());
        Ok(Reply::Got(Some(Box::new(Got { delivery, remaining }))))
    }

    pub(crate) fn purge(&mut self, link: LinkId, name: &Bytes) -> Result<Reply, Refusal> {
        let id = self.queue_for(link, name)?;
        self.expire(id);
        let queue = self.queue(id).expect("just found");
        let (count, ranges) = (queue.progress.ready(), queue.progress.ready_ranges());
        for range in ranges {
            self.done(id, range);
        }
        if !self.settled.is_empty() {
            self.write_settled();
            self.changed = true;
        }
        Ok(Reply::Count(count))
    }

    /// A link is gone or lost its hold on a queue: what was leased goes back to its place.
    pub(crate) fn end_subscription(&mut self, link: LinkId, id: SubscriptionId, subscription: &Subscription) {
        if let Some(queue) = self.queue(subscription.queue) {
            for range in subscription.leases.iter() {
                queue.progress.release(range);
            }
            self.mark_dirty(subscription.queue);
        }
        self.remove_consumer(link, id, subscription.queue);
    }

    /// Ends all subscriptions to a queue that is going away.
    pub(crate) fn end_consumers(&mut self, id: QueueId) {
        let Some(queue) = self.queue(id) else { return };
        for (link, subscription) in std::mem::take(&mut queue.consumers) {
            if let Some(state) = self.link(link) {
                state.subscriptions.remove(&subscription);
            }
            self.notify(link, Notice::SubscriptionEnded(subscription));
        }
    }

    /// Gives up what a queue that is gone kept.
    pub(crate) fn release_entries(&mut self, queue: &Queue) {
        for entry in queue.progress.entries() {
            self.release_entry(entry);
        }
    }
}
