//! Rebuilding the state from the log: every record is applied in order.

use crate::attributes::Iter;
use crate::engine::change::Change;
use crate::engine::group::tag_hash;
use crate::engine::progress::Entry;
use crate::engine::publish::expires_at;
use crate::engine::state::State;
use crate::engine::trie::Map;
use crate::request::Destination;
use crate::store::chunk::Slice;
use crate::store::record::{HEADER, Header, Kind, MessageRecord};
use crate::time::Millis;

/// What a replay has to remember until its end.
#[derive(Default)]
pub(crate) struct Replay {
    /// Set by a clean stop, cleared by anything behind it.
    delivered: Option<Map<u32, u64>>,
}

impl Replay {
    /// Applies one record.
    pub(crate) fn apply(&mut self, state: &mut State, header: Header, record: &Slice) {
        self.delivered = None;
        state.stored_at = state.stored_at.max(header.stored_at);
        match header.kind {
            Kind::Message => replay_message(state, header, record),
            Kind::Settle => replay_settle(state, &record[HEADER..]),
            Kind::Change => match Change::decode(&record[HEADER..]) {
                Some(Change::Stopped { delivered }) => self.delivered = Some(delivered.into_iter().collect()),
                Some(change) => replay_change(state, change),
                None => tracing::error!(position = %header.position, "skipping a change that cannot be read"),
            },
            Kind::SegmentHead | Kind::SegmentEnd => {}
        }
    }

    /// Everything was applied.
    pub(crate) fn finish(self, state: &mut State) {
        for (id, queue) in state.queues.iter_mut().enumerate() {
            let Some(queue) = queue else { continue };
            let below = self
                .delivered
                .as_ref()
                .map(|map| map.get(&(id as u32)).copied().unwrap_or(0));
            queue.progress.replay_done(below, queue.had_consumer);
        }
        clamp_offsets(state);
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
    let entry = Entry {
        position: header.position,
        size: record.len() as u32,
        word: 0,
    };
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
    }
    let word = expires_at(view.origin().0, Iter::new(view.attributes()), header.stored_at);
    for (id, sequence) in view.destinations() {
        let State { queues, log, .. } = state;
        if let Some(Some(queue)) = queues.get_mut(id as usize)
            && queue.progress.replay_push(sequence, Entry { word, ..entry })
        {
            log.pin(entry.position);
        }
    }
}

fn replay_settle(state: &mut State, payload: &[u8]) {
    for item in payload.chunks_exact(16) {
        let number = |at: usize| u32::from_le_bytes(item[at..at + 4].try_into().expect("4 bytes"));
        let (id, count) = (number(0), number(4));
        let first = u64::from_le_bytes(item[8..].try_into().expect("8 bytes"));
        let State { queues, log, .. } = state;
        if let Some(Some(queue)) = queues.get_mut(id as usize) {
            let range = first..first.saturating_add(u64::from(count));
            queue.progress.ack(range, |entry| log.unpin(entry.position));
        }
    }
}

fn replay_change(state: &mut State, change: Change) {
    match change {
        Change::Exchange(exchange) => {
            if state.router.exchange(&exchange.name).is_none() {
                state.router.add_exchange(exchange);
            }
        }
        Change::ExchangeGone(name) => {
            state.router.remove_exchange(&name);
        }
        Change::Queue { id, queue } => state.put_queue(id, queue),
        Change::QueueGone { id } => {
            if let Some(queue) = state.queues.get_mut(id as usize).and_then(Option::take) {
                state.release_entries(&queue);
                state.queue_ids.remove(&queue.spec.name);
                state.router.remove_queue(&queue.topic, id);
            }
        }
        Change::Bound(binding) => {
            let queue = match &binding.destination {
                Destination::Queue(name) => state.queue_ids.get(name).copied(),
                Destination::Exchange(_) => None,
            };
            state.router.bind(&binding, queue);
        }
        Change::Unbound(binding) => {
            state.router.unbind(&binding);
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
            state
                .groups
                .entry(group)
                .or_default()
                .offsets
                .insert((topic, queue_id), offset);
        }
        Change::Holder { name, keep } => state.replay_holder(name, Millis(keep)),
        Change::HolderGone(name) => {
            state.holders.remove(&name);
        }
        Change::Consumed { id } => {
            if let Some(queue) = state.queue(id) {
                queue.had_consumer = true;
            }
        }
        Change::QueueAltered { id, limit, policy } => {
            if let Some(queue) = state.queue(id) {
                queue.spec.limit = limit;
                queue.spec.policy = policy;
            }
        }
        Change::Attempts { .. } | Change::Purged { .. } => {}
        Change::Stopped { .. } => {}
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
        for ((topic, queue), offset) in &mut group.offsets {
            let end = topic_ids
                .get(topic)
                .and_then(|id| topics[*id as usize].queues.get(*queue as usize))
                .map_or(0, |queue| queue.end());
            *offset = (*offset).min(end);
        }
    }
}
