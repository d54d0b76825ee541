//! Queues and their consumers: offering, delivering, settling, getting.

use std::ops::Range;

use bytes::Bytes;

use crate::address::encode_name;
use crate::boundary::{Delivery, Event, Notice, Settle, Settlement, SubscriptionId};
use crate::engine::change::Change;
use crate::engine::entries::EntryList;
use crate::engine::holder::is_of_sessions;
use crate::engine::links::LinkId;
use crate::engine::progress::{Entry, Taken};
use crate::engine::queue::{Consumer, Queue, Subscription, Turn};
use crate::engine::router::QueueId;
use crate::engine::select::Selector;
use crate::engine::state::{STEPS_MAX, State, Work};
use crate::history::Reason;
use crate::message::Message;
use crate::request::{Acknowledge, Got, Refusal, Reply, Subscribe};
use crate::store::pages::ListId;

impl State {
    pub(crate) fn queue(&mut self, id: QueueId) -> Option<&mut Queue> {
        self.queues.get_mut(id)
    }

    /// The queue of that name. An encoded name is as good as the name, unless both were so long that they were
    /// cut.
    pub(crate) fn queue_id(&self, name: &Bytes) -> Option<QueueId> {
        let (id, queue) = self.queues.find(&encode_name(name))?;
        (*queue.spec.name == **name).then_some(id)
    }

    /// The queue of that name, unless it is another connection's exclusive one or a session's whose the link has
    /// not.
    pub(crate) fn queue_for(&mut self, link: LinkId, name: &Bytes) -> Result<QueueId, Refusal> {
        let id = self.queue_id(name);
        if is_of_sessions(name) && !id.is_some_and(|id| self.is_in_session(link, id)) {
            return Err(Refusal::AccessRefused);
        }
        let Some(id) = id else {
            return Err(Refusal::NotFound {
                what: "queue",
                name: name.clone(),
            });
        };
        match self.queue(id) {
            Some(queue) if queue.owner().is_some_and(|owner| owner != link) => Err(Refusal::Locked),
            _ => Ok(id),
        }
    }

    // --- offering ---------------------------------------------------------------------------------

    /// A new message for a queue, at a level of priority: hands it to a consumer at once if nothing is before
    /// it, else keeps it.
    pub(crate) fn offer(&mut self, id: QueueId, level: u8, message: &Message, entry: Entry) {
        let persistent = message.is_persistent();
        let Some(queue) = self.queue(id) else { return };
        if queue.is_selected_from() {
            self.mark_dirty(id);
        } else if !queue.consumers().is_empty() && !queue.dirty && queue.ready() == 0 {
            // Nothing is before it: even a message that may not wait at all is handed over.
            if let Some(turn) = self.next_consumer(id, 0) {
                return self.hand_over(id, level, turn, message, entry);
            }
        } else if queue.leaves_out(persistent) {
            return;
        }
        self.keep(id, level, entry);
        self.enforce_limit(id);
        self.watch_head(id);
    }

    /// Appends an entry to a queue.
    pub(crate) fn keep(&mut self, id: QueueId, level: u8, entry: Entry) -> u64 {
        self.hold_entry(entry);
        let now = self.clock();
        let Self { queues, pages, .. } = self;
        let queue = queues.get_mut(id).expect("the caller looked");
        let entry = queue.with_ttl(entry, now);
        queue.expiring |= entry.expires_at() != 0;
        queue
            .level_or(level, || EntryList::new(ListId::queue(id, level), pages))
            .push(entry)
    }

    fn hand_over(&mut self, id: QueueId, level: u8, turn: Turn, message: &Message, entry: Entry) {
        let Consumer { link, subscription, .. } = turn.consumer;
        let persistent = message.is_persistent();
        let state = self.link(link).and_then(|l| l.subscriptions.get(&subscription));
        let leased = state.is_some_and(|s| s.leases_message(persistent));
        let sequence = if leased {
            let sequence = self.keep(id, level, entry);
            if let Some(queue) = self.queue(id) {
                queue.served(turn);
                let taken = queue.take();
                debug_assert_eq!(taken.map(|t| t.sequence), Some(sequence));
            }
            self.lease(link, subscription, sequence);
            sequence
        } else {
            let Self { queues, pages, .. } = self;
            let queue = queues.get_mut(id).expect("the caller looked");
            queue.served(turn);
            let durable = queue.spec.durable;
            let list = queue.level_or(level, || EntryList::new(ListId::queue(id, level), pages));
            let sequence = list.pass();
            if durable && !entry.position.is_memory() {
                self.settled_run(id, sequence..sequence + 1);
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

    /// Notes for the log that messages of a durable queue are done with.
    fn settled_run(&mut self, queue: QueueId, range: Range<u64>) {
        let mut first = range.start;
        while first < range.end {
            let count = (range.end - first).min(u64::from(u32::MAX)) as u32;
            match self.settled.last_mut() {
                Some((last, at, n))
                    if *last == queue && *at + u64::from(*n) == first && n.checked_add(count).is_some() =>
                {
                    *n += count;
                }
                _ => self.settled.push((queue, first, count)),
            }
            first += u64::from(count);
        }
    }

    // --- delivering -------------------------------------------------------------------------------

    /// The next consumer in turn, from the one that is asked `from`th on, that can take a delivery.
    pub(crate) fn next_consumer(&mut self, id: QueueId, from: usize) -> Option<Turn> {
        let count = self.queue(id)?.consumers().len();
        for step in from..count {
            let turn = self.queue(id)?.consumer_at(step)?;
            let consumer = turn.consumer;
            let state = self
                .link(consumer.link)
                .and_then(|l| l.subscriptions.get(&consumer.subscription));
            let has_credit = state.is_some_and(Subscription::has_credit);
            if has_credit && self.has_room(consumer.link, id) {
                return Some(turn);
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
            if queue.is_selected_from() {
                return self.deliver_selected(id);
            }
        }
        while self
            .queue(id)
            .is_some_and(|queue| !queue.consumers().is_empty() && queue.ready() > 0)
        {
            if self.steps >= STEPS_MAX {
                self.put_off(Work::Deliver(id));
                if let Some(queue) = self.queue(id) {
                    queue.dirty = true;
                }
                return;
            }
            let Some(turn) = self.next_consumer(id, 0) else {
                break;
            };
            if let Some((taken, message)) = self.take_message(id) {
                self.hand_out(id, turn, taken, message);
            }
        }
        self.watch_head(id);
    }

    /// A consumer gets what was taken for it.
    pub(crate) fn hand_out(&mut self, id: QueueId, turn: Turn, taken: Taken, message: Message) {
        if let Some(queue) = self.queue(id) {
            queue.served(turn);
        }
        let Consumer { link, subscription, .. } = turn.consumer;
        let delivery = self.delivery(link, subscription, id, taken, message);
        self.tell(link, Event::Delivery(delivery));
    }

    /// Takes the next message out of a queue; skips what has expired or cannot be read any more. `None` when
    /// there is nothing, or when the hold has done enough.
    pub(crate) fn take_message(&mut self, id: QueueId) -> Option<(Taken, Message)> {
        loop {
            self.steps += 1;
            let taken = self.queue(id)?.take()?;
            let only = taken.sequence..taken.sequence + 1;
            if self.has_expired(id, taken.entry) {
                self.give_up(id, only, Reason::Expired);
            } else if let Some(message) = self.message(taken.entry.position, taken.entry.size) {
                return Some((taken, message));
            } else {
                self.done(id, only);
            }
            if self.steps >= STEPS_MAX {
                return None;
            }
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
        let (mut note, mut attempts) = (0, 0);
        if let Some(queue) = self.queue(id) {
            note = queue.note(taken.sequence);
            attempts = queue.extra().map_or(0, |extra| extra.attempts.get(taken.sequence));
        }
        if leased {
            self.lease(link, subscription, taken.sequence);
        } else {
            self.done(id, taken.sequence..taken.sequence + 1);
        }
        Delivery {
            subscription,
            sequence: taken.sequence,
            redelivered: taken.redelivered,
            attempts,
            leased,
            recalled: taken.entry.is_recalled(),
            note,
            message,
        }
    }

    /// Taken entries are done with for good. Many are noted at once and taken off the list in slices.
    pub(crate) fn done(&mut self, id: QueueId, range: Range<u64>) {
        if range.end - range.start <= STEPS_MAX as u64 {
            return self.done_now(id, range, true);
        }
        let Some(queue) = self.queue(id) else { return };
        let durable = queue.spec.durable;
        queue.extra_mut().finishing.push_back(range.clone());
        let steps = range.end - range.start;
        if durable {
            self.settled_run(id, range);
        }
        self.put_off_steps(Work::Finish(id), steps);
    }

    /// Goes on with what was noted as done with.
    pub(crate) fn finish_slice(&mut self, id: QueueId) {
        while self.steps < STEPS_MAX {
            let left = (STEPS_MAX - self.steps) as u64;
            let Some(queue) = self.queue(id) else { return };
            let finishing = &mut queue.extra_mut().finishing;
            let Some(range) = finishing.front_mut() else { return };
            let count = (range.end - range.start).min(left);
            let slice = range.start..range.start + count;
            range.start = slice.end;
            if range.is_empty() {
                finishing.pop_front();
            }
            self.steps += count as usize;
            self.done_now(id, slice, false);
        }
        let finishing = self
            .queue(id)
            .and_then(|queue| queue.extra_mut().finishing.front().cloned());
        let Some(range) = finishing else { return };
        self.put_off_steps(Work::Finish(id), range.end - range.start);
    }

    /// Takes entries off their list.
    fn done_now(&mut self, id: QueueId, range: Range<u64>, log_it: bool) {
        let Self {
            queues, memory, log, ..
        } = self;
        let Some(queue) = queues.get_mut(id) else {
            return;
        };
        queue.drop_notes(&range);
        let (mut stored, mut bytes) = (false, 0);
        if let Some(list) = queue.list_of(range.start) {
            list.ack(range.clone(), |entry| {
                bytes += entry.body_len();
                if entry.position.is_memory() {
                    memory.release(entry.position);
                } else {
                    log.unpin(entry.position);
                    stored = true;
                }
            });
        }
        if queue.extra().is_some() {
            let extra = queue.extra_mut();
            extra.leased_bytes = extra.leased_bytes.saturating_sub(bytes);
            if !extra.attempts.is_empty() {
                extra.attempts.remove(range.clone(), |_, _| {});
            }
        }
        if log_it && stored && queue.spec.durable {
            self.settled_run(id, range);
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
        let Some(queue) = self.queue(id).filter(|queue| queue.of_holder && queue.members() == 0) else {
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
                Settle::Ack => self.done(queue, range),
                Settle::Reject => self.give_up(queue, range, Reason::Rejected),
                Settle::Release => self.come_back(queue, range),
            }
        }
        self.enforce_limit(queue);
        if self.queue(queue).is_some_and(|queue| queue.ready() > 0) {
            self.mark_dirty(queue);
        }
    }

    /// Leased messages go back to their places, unless that has happened too often.
    fn come_back(&mut self, id: QueueId, range: Range<u64>) {
        let Some(queue) = self.queue(id) else { return };
        if !queue.counts_attempts() {
            return self.came_back(id, range);
        }
        let (durable, limit) = (
            queue.spec.durable,
            queue.policy().and_then(|policy| policy.delivery_limit),
        );
        let runs = queue.extra_mut().attempts.add(range);
        if durable {
            let runs = runs
                .iter()
                .map(|(run, n)| (run.start, run.end - run.start, *n))
                .collect();
            self.change_quietly(&Change::Attempts { id, runs });
        }
        for (run, attempts) in runs {
            if limit.is_some_and(|limit| attempts > limit) {
                self.give_up(id, run, Reason::DeliveryLimit);
            } else {
                self.came_back(id, run);
            }
        }
    }

    // --- requests ---------------------------------------------------------------------------------

    pub(crate) fn subscribe(&mut self, link: LinkId, subscribe: Subscribe) -> Result<Reply, Refusal> {
        let id = self.queue_for(link, &subscribe.queue)?;
        let queue = self.queue(id).expect("just found");
        let exclusive = subscribe.exclusive;
        if queue.exclusive_consumer || (exclusive && (queue.is_single_active() || !queue.consumers().is_empty())) {
            return Err(Refusal::InUse);
        }
        let state = self.link(link).ok_or(Refusal::Closed)?;
        if state.subscriptions.contains_key(&subscribe.subscription) {
            return Err(Refusal::Invalid("the subscription's number is in use".to_owned()));
        }
        let selects = subscribe.selector.is_some();
        let subscription = Subscription {
            selector: subscribe.selector.map(|sql| Box::new(Selector::new(sql))),
            ..Subscription::new(id, subscribe.acknowledge, subscribe.window)
        };
        state.subscriptions.insert(subscribe.subscription, subscription);
        let queue = self.queue(id).expect("just found");
        queue.exclusive_consumer = exclusive;
        queue.add_consumer(Consumer {
            link,
            subscription: subscribe.subscription,
            priority: subscribe.priority,
            selects,
        });
        self.consumed(id);
        self.used(id);
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
        if !queue.remove_consumer(link, id) {
            return;
        }
        queue.exclusive_consumer = false;
        if queue.consumers().is_empty() && queue.spec.auto_delete {
            return self.delete_queue(queue_id);
        }
        if queue.is_single_active() {
            // It is the next one's turn.
            self.mark_dirty(queue_id);
        }
        self.used(queue_id);
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
        if self.queue(queue_id).is_some_and(|queue| queue.is_single_active()) {
            return Err(Refusal::SingleActive);
        }
        self.used(queue_id);
        let state = self.link(link).ok_or(Refusal::Closed)?;
        let subscription = state
            .subscriptions
            .entry(id)
            .or_insert_with(|| Subscription::new(queue_id, Acknowledge::Always, None));
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
        let remaining = self.queue(queue_id).map_or(0, |queue| queue.ready());
        self.watch_head(queue_id);
        Ok(Reply::Got(Some(Box::new(Got { delivery, remaining }))))
    }

    pub(crate) fn purge(&mut self, link: LinkId, name: &Bytes) -> Result<Reply, Refusal> {
        let id = self.queue_for(link, name)?;
        self.expire(id);
        let queue = self.queue(id).expect("just found");
        let (count, ranges) = (queue.ready(), queue.take_all());
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
        let queue = subscription.queue;
        if subscription.leases.runs() <= STEPS_MAX {
            for range in subscription.leases.iter() {
                self.come_back(queue, range);
            }
            self.enforce_limit(queue);
            self.mark_dirty(queue);
        } else if let Some(state) = self.queue(queue) {
            state.extra_mut().returning.push(subscription.leases.clone());
            self.put_off_steps(Work::Return(queue), subscription.leases.runs() as u64);
        }
        self.remove_consumer(link, id, subscription.queue);
    }

    /// Goes on giving back what lost connections had.
    pub(crate) fn return_slice(&mut self, id: QueueId) {
        while self.steps < STEPS_MAX {
            self.steps += 1;
            let Some(queue) = self.queue(id) else { return };
            let returning = &mut queue.extra_mut().returning;
            let Some(leases) = returning.last_mut() else {
                self.enforce_limit(id);
                return self.mark_dirty(id);
            };
            match leases.pop_first_run() {
                Some(range) => self.come_back(id, range),
                None => drop(returning.pop()),
            }
        }
        let left = self.queue(id).map_or(0, |queue| {
            queue.extra_mut().returning.last().map_or(0, |leases| leases.runs())
        });
        self.put_off_steps(Work::Return(id), left as u64);
    }

    /// Ends all subscriptions to a queue that is going away.
    pub(crate) fn end_consumers(&mut self, id: QueueId) {
        let Some(queue) = self.queue(id) else { return };
        for Consumer { link, subscription, .. } in queue.take_consumers() {
            if let Some(state) = self.link(link) {
                state.subscriptions.remove(&subscription);
            }
            self.notify(link, Notice::SubscriptionEnded(subscription));
        }
    }

    /// Gives up what a queue that is gone kept.
    pub(crate) fn release_entries(&mut self, queue: &Queue) {
        for list in queue.levels() {
            for entry in list.entries() {
                self.release_entry(entry);
            }
        }
    }
}
