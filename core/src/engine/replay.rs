//! Rebuilding the state from the log: every record is applied in order.

use bytes::Bytes;

use crate::attributes::Iter;
use crate::engine::change::Change;
use crate::engine::dedup::Scope;
use crate::engine::entries::EntryList;
use crate::engine::group::tag_hash;
use crate::engine::holder::PendingWill;
use crate::engine::progress::Entry;
use crate::engine::publish::expires_at;
use crate::engine::queue::level_of;
use crate::engine::retained::index_key;
use crate::engine::state::State;
use crate::engine::trie::Map;
use crate::request::{Binding, Destination};
use crate::store::chunk::Slice;
use crate::store::pages::ListId;
use crate::store::record::{FLAG_MOVED, HEADER, Header, Kind, MessageRecord, Position};
use crate::time::Millis;

/// What a replay has to remember until its end.
#[derive(Default)]
pub(crate) struct Replay {
    /// Set by a clean stop, cleared by anything behind it.
    delivered: Option<Map<(u32, u8), u64>>,
    /// Records so far.
    applied: u64,
}

impl Replay {
    /// Applies one record.
    pub(crate) fn apply(&mut self, state: &mut State, header: Header, record: &Slice) {
        self.delivered = None;
        self.applied += 1;
        if self.applied.is_multiple_of(1024) {
            state.store_pages();
        }
        state.stored_at = state.stored_at.max(header.stored_at);
        match header.kind {
            Kind::Message => replay_message(state, header, record),
            Kind::Settle => replay_settle(state, &record[HEADER..]),
            Kind::Change => match Change::decode(&record[HEADER..]) {
                Some(Change::Stopped { delivered }) => {
                    let by_level = |(id, next): (u32, u64)| ((id, level_of(next)), next);
                    self.delivered = Some(delivered.into_iter().map(by_level).collect());
                }
                Some(change @ Change::Fired { .. }) => state.replay_timers(header.position, change),
                Some(change) => replay_change(state, change),
                None => tracing::error!(position = %header.position, "skipping a change that cannot be read"),
            },
            Kind::SegmentHead | Kind::SegmentEnd | Kind::CheckpointEnd => {}
        }
    }

    /// Everything was applied.
    pub(crate) fn finish(self, state: &mut State) {
        for (id, queue) in state.queues.iter_mut() {
            let had_consumer = queue.had_consumer;
            for list in queue.levels_mut() {
                let level = level_of(list.next());
                let below = (self.delivered.as_ref()).map(|map| map.get(&(id, level)).copied().unwrap_or(0));
                list.replay_done(below, had_consumer);
            }
        }
        clamp_offsets(state);
        state.replay_pops_done();
        state.replay_timers_done();
        state.replay_holders_done();
        state.settled.clear();
        state.changed = false;
    }
}

fn replay_message(state: &mut State, header: Header, record: &Slice) {
    let view = MessageRecord::of(record);
    if !view.is_whole() {
        tracing::error!(position = %header.position, "skipping a message that cannot be read");
        return;
    }
    if header.flags & FLAG_MOVED != 0 {
        return state.moved(header.position, record);
    }
    let entry = Entry {
        position: header.position,
        size: record.len() as u32,
        word: 0,
    };
    if let Some((kind, name, fingerprint)) = view.dedup()
        && let Some(scope) = Scope::of(kind, Bytes::copy_from_slice(name))
    {
        state.replay_key(scope, fingerprint, header.position, header.stored_at);
    }
    if let Some(later) = view.later() {
        return state.replay_later(later, entry, view.native_queue().1);
    }
    if let Some((queue, offset)) = view.topic_queue()
        && let Some(topic) = state.topic_ids.get(view.topic()).copied()
        && let Some(queue) = state.topics[topic as usize].queues.get_mut(queue as usize)
    {
        queue.replay_push(
            offset,
            Entry {
                word: tag_hash(view.key()) as u64,
                ..entry
            },
        );
        state
            .log
            .keep_until(header.position, header.stored_at + state.config.retention);
    }
    let expires = expires_at(view.origin().0, Iter::new(view.attributes()), header.stored_at);
    let entry = Entry::of_queue(header.position, entry.size, view.body().len(), expires);
    for (id, sequence) in view.destinations() {
        let State { queues, log, pages, .. } = state;
        if let Some(queue) = queues.get_mut(id) {
            let entry = queue.with_ttl(entry, header.stored_at);
            queue.expiring |= entry.expires_at() != 0;
            let level = level_of(sequence);
            let list = queue.level_or(level, || EntryList::new(ListId::queue(id, level), pages));
            if list.replay_push(sequence, entry) {
                log.pin(entry.position);
            }
        }
    }
    if view.is_retained() {
        let is_empty = view.body().is_empty();
        state.replay_retained(index_key(view.topic(), view.key()), entry, is_empty);
    }
}

fn replay_settle(state: &mut State, payload: &[u8]) {
    for item in payload.chunks_exact(16) {
        let number = |at: usize| u32::from_le_bytes(item[at..at + 4].try_into().expect("4 bytes"));
        let (id, count) = (number(0), number(4));
        let first = u64::from_le_bytes(item[8..].try_into().expect("8 bytes"));
        let State { queues, log, .. } = state;
        if let Some(queue) = queues.get_mut(id) {
            let range = first..first.saturating_add(u64::from(count));
            queue.drop_notes(&range);
            queue.replay_done_with(range, |entry| log.unpin(entry.position));
        }
    }
}

/// Whether the queue that a binding leads to is still the one of that name.
fn is_current(state: &State, queue: Option<u32>, binding: &Binding) -> bool {
    match &binding.destination {
        Destination::Queue(name) => queue.is_some() && state.queue_id(name) == queue,
        Destination::Exchange(_) | Destination::Topics => true,
    }
}

/// Applies a change; once more if need be.
pub(crate) fn replay_change(state: &mut State, change: Change) {
    match change {
        Change::Half { .. } | Change::HalfNumbers { .. } | Change::HalfChecked { .. } | Change::HalfDone { .. } => {
            state.replay_halves(change);
        }
        Change::Retry { group, retry } => {
            state.retries.insert(group, retry);
        }
        Change::Clock { .. } | Change::TimerRecalled { .. } | Change::TimerMoved { .. } | Change::Timers { .. } => {
            state.replay_timers(Position(0), change);
        }
        Change::Exchange(exchange) => {
            if state.router.exchange(&exchange.name).is_none() {
                state.remember_keys(&exchange);
                state.router.add_exchange(exchange);
            }
        }
        Change::ExchangeGone(name) => {
            state.forget_keys(&name);
            state.router.remove_exchange(&name);
        }
        Change::Queue { id, queue } => state.put_queue(id, queue),
        Change::QueueGone { id } => {
            if let Some(queue) = state.queues.remove(id) {
                state.release_entries(&queue);
                state.count_policy(queue.policy(), false);
                state.router.remove_queue(id);
            }
        }
        Change::Bound { queue, binding } => {
            if is_current(state, queue, &binding) {
                state.router.bind(&binding, queue);
            }
        }
        Change::Unbound { queue, binding } => {
            if is_current(state, queue, &binding) {
                state.router.unbind(&binding);
            }
        }
        Change::Topic { name, queues } => {
            state.put_topic(name, queues);
        }
        Change::Group { group, topic } => {
            state.put_topic_group(&group, &topic);
        }
        Change::Offset {
            group,
            topic,
            queue_id,
            offset,
        } => {
            let place = (topic, queue_id);
            let known = state.groups.entry(group.clone()).or_default();
            known.resets.remove(&place);
            known.offsets.insert(place.clone(), offset);
            if let Some(id) = state.topic_ids.get(&place.0).copied() {
                state.reset_popped(&group, id, queue_id, offset);
            }
        }
        Change::Holder { name, keep } => state.replay_holder(name, Millis(keep)),
        Change::HolderGone(name) => state.replay_holder_gone(&name),
        Change::Consumed { id } => {
            if let Some(queue) = state.queue(id) {
                queue.had_consumer = true;
            }
        }
        Change::Note { id, sequence, note } => {
            if let Some(queue) = state.queue(id) {
                queue.set_note(sequence, note);
            }
        }
        Change::Will { holder, will } => {
            state.wills.insert(holder, PendingWill { will, at: None });
        }
        Change::WillGone(holder) => {
            state.wills.remove(&holder);
        }
        Change::Member { holder, id, cookie } => state.replay_member(&holder, id, cookie),
        Change::MemberGone { holder, id } => state.leave_shared(&holder, id),
        Change::Recalled { id, first, entries } => {
            let State { queues, log, .. } = state;
            let Some(queue) = queues.get_mut(id) else {
                return;
            };
            for (sequence, entry) in (first..).zip(entries) {
                if queue.progress.replay_push(sequence, entry) {
                    log.pin(entry.position);
                }
            }
        }
        Change::Retained { address, entry } => state.replay_retained(address.to_vec(), entry, entry.size == 0),
        Change::QueueAltered { id, limit, policy } => {
            state.put_policy(id, limit, policy);
            if let Some(queue) = state.queue(id) {
                // What its entries say was said under other policies.
                queue.extra_mut().ttl_altered = true;
                queue.expiring = true;
            }
        }
        Change::Attempts { id, runs } => {
            if let Some(queue) = state.queue(id) {
                for (first, count, attempts) in runs {
                    let attempted = &mut queue.extra_mut().attempts;
                    attempted.set(first..first.saturating_add(count), attempts);
                }
            }
        }
        Change::Expiring { id } => {
            if let Some(queue) = state.queue(id) {
                queue.expiring = true;
            }
        }
        Change::Purged { id, ranges } => {
            let State { queues, log, .. } = state;
            if let Some(queue) = queues.get_mut(id) {
                for (first, count) in ranges {
                    let range = first..first.saturating_add(count);
                    queue.replay_done_with(range, |entry| log.unpin(entry.position));
                }
            }
        }
        Change::PopState {
            place,
            head,
            next,
            acked,
        } => state.replay_pop_state(&place, head, next, &acked),
        Change::PopAcked { place, ranges } => state.replay_pop_acked(&place, &ranges),
        Change::PopReturned { place, runs } => state.replay_pop_returned(&place, &runs),
        Change::Reset {
            group,
            topic,
            queue_id,
            offset,
        } => state.put_reset(&group, topic, queue_id, offset),
        Change::KeysOpen { scope, keys } => state.replay_keys(scope, keys),
        Change::KeyClosed { holder, number } => state.replay_key_closed(holder, number),
        Change::Stopped { .. }
        | Change::Fired { .. }
        | Change::Page { .. }
        | Change::Tail { .. }
        | Change::Numbers { .. }
        | Change::Segment { .. }
        | Change::TopicAt { .. } => {}
    }
}

/// An offset beyond the recovered end would hide the messages that come next.
fn clamp_offsets(state: &mut State) {
    let State {
        groups,
        topics,
        topic_ids,
        ..
    } = state;
    for group in groups.values_mut() {
        for ((topic, queue), offset) in group.offsets.iter_mut().chain(&mut group.resets) {
            let end = topic_ids
                .get(topic)
                .and_then(|id| topics[*id as usize].queues.get(*queue as usize))
                .map_or(0, |queue| queue.end());
            *offset = (*offset).min(end);
        }
    }
}
