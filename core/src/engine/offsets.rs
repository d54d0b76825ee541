//! Offsets of groups: committing, resetting, lag.

use bytes::Bytes;

use crate::engine::change::Change;
use crate::engine::state::State;
use crate::request::{QueueLag, Refusal, Reply, ResetTo};
use crate::time::Millis;

impl State {
    /// The committed offset of a group that pulls.
    pub(crate) fn plain_offset(&self, group: &Bytes, topic: &Bytes, queue: u32) -> Option<u64> {
        let group = self.groups.get(group)?;
        let place = (topic.clone(), queue);
        group.resets.get(&place).or_else(|| group.offsets.get(&place)).copied()
    }

    /// The committed offset: of a group that pops its first message that is not done with. And how many are leased.
    fn offset_of(&self, group: &Bytes, topic: &Bytes, queue: u32) -> (Option<u64>, u64) {
        let popped = self.topic_ids.get(topic);
        match popped.and_then(|id| self.popped_offset(group, *id, queue)) {
            Some((head, leased)) => (Some(head), leased),
            None => (self.plain_offset(group, topic, queue), 0),
        }
    }

    pub(crate) fn committed_offset(&self, group: &Bytes, topic: &Bytes, queue: u32) -> Reply {
        Reply::Offset(self.offset_of(group, topic, queue).0)
    }

    pub(crate) fn commit_offset(
        &mut self,
        group: &Bytes,
        topic: &Bytes,
        queue: u32,
        offset: u64,
    ) -> Result<Reply, Refusal> {
        let end = self.message_queue(topic, queue)?.end();
        self.group(group)?;
        self.register_group(group, topic);
        let place = (topic.clone(), queue);
        if self.group(group)?.resets.contains_key(&place) {
            // From before the reset, which the client has not heard of yet.
            return Ok(Reply::Done);
        }
        self.set_offset(group, place, offset.min(end));
        Ok(Reply::Done)
    }

    fn set_offset(&mut self, group: &Bytes, place: (Bytes, u32), offset: u64) {
        let (topic, queue_id) = place.clone();
        let Ok(state) = self.group(group) else { return };
        state.resets.remove(&place);
        if state.offsets.insert(place, offset) == Some(offset) {
            return;
        }
        // Lazily durable, as RocketMQ's is: a lost one means messages twice, never lost ones.
        let change = Change::Offset {
            group: group.clone(),
            topic: topic.clone(),
            queue_id,
            offset,
        };
        self.change_quietly(&change);
        if let Some(id) = self.topic_ids.get(&topic).copied() {
            self.reset_popped(group, id, queue_id, offset);
        }
    }

    /// The group's consumers go on from another place.
    pub(crate) fn reset_offset(
        &mut self,
        group: &Bytes,
        topic: &Bytes,
        queue_id: Option<u32>,
        to: ResetTo,
    ) -> Result<Reply, Refusal> {
        let id = self.topic_id(topic)?;
        let queues = self.topics[id as usize].queues.len() as u32;
        let is_known = |groups: &Vec<Bytes>| groups.contains(group);
        if !self.groups.contains_key(group) && !self.topic_groups.get(topic).is_some_and(is_known) {
            return Err(Refusal::NotFound {
                what: "group",
                name: group.clone(),
            });
        }
        if self.group(group)?.is_broadcasting() {
            return Err(Refusal::Invalid(
                "the members of a broadcasting group keep their own offsets".to_owned(),
            ));
        }
        self.register_group(group, topic);
        let chosen = match queue_id {
            Some(queue) if queue >= queues => {
                return Err(Refusal::Invalid(format!("topic has no message queue {queue}")));
            }
            Some(queue) => queue..queue + 1,
            None => 0..queues,
        };
        let mut places = Vec::new();
        for queue in chosen {
            let bounds = self.message_queue(topic, queue)?.bounds();
            let offset = match to {
                ResetTo::End => bounds.end,
                ResetTo::Offset(offset) => offset.clamp(bounds.start, bounds.end),
                ResetTo::Time(at) => self.offset_at(topic, queue, at)?,
            };
            places.push((queue, offset));
            let change = Change::Reset {
                group: group.clone(),
                topic: topic.clone(),
                queue_id: queue,
                offset,
            };
            self.change(&change);
            self.put_reset(group, topic.clone(), queue, offset);
            self.wake_pulls(id, queue);
        }
        Ok(Reply::Places(places))
    }

    /// Who pops goes on from there at once, who pulls when it is told.
    pub(crate) fn put_reset(&mut self, group: &Bytes, topic: Bytes, queue: u32, offset: u64) {
        if let Some(id) = self.topic_ids.get(&topic).copied()
            && self.popped_offset(group, id, queue).is_some()
        {
            self.reset_popped(group, id, queue, offset);
            return;
        }
        self.groups
            .entry(group.clone())
            .or_default()
            .resets
            .insert((topic, queue), offset);
    }

    /// The offset that a group was reset to, for the pull that tells it.
    pub(crate) fn take_reset(&mut self, group: &Bytes, topic: &Bytes, queue: u32) -> Option<u64> {
        let state = self.groups.get(group).filter(|group| !group.resets.is_empty())?;
        let place = (topic.clone(), queue);
        let offset = state.resets.get(&place).copied().filter(|_| !state.is_broadcasting())?;
        self.set_offset(group, place, offset);
        Some(offset)
    }

    /// The first message stored at or after a time.
    pub(crate) fn offset_at(&mut self, topic: &Bytes, queue: u32, at: Millis) -> Result<u64, Refusal> {
        let mut range = self.message_queue(topic, queue)?.bounds();
        while range.start < range.end {
            let middle = range.start + (range.end - range.start) / 2;
            if self.stored_at_of(topic, queue, middle).unwrap_or(Millis(0)) < at {
                range.start = middle + 1;
            } else {
                range.end = middle;
            }
        }
        Ok(range.start)
    }

    fn stored_at_of(&mut self, topic: &Bytes, queue: u32, offset: u64) -> Option<Millis> {
        let entry = self.message_queue(topic, queue).ok()?.entries.get(offset)?;
        let message = self.message(entry.position, entry.size)?;
        Some(message.stored_at())
    }

    pub(crate) fn lag(&mut self, group: &Bytes, topic: &Bytes) -> Result<Reply, Refusal> {
        let id = self.topic_id(topic)?;
        let mut lags = Vec::new();
        for queue_id in 0..self.topics[id as usize].queues.len() as u32 {
            let end = self.message_queue(topic, queue_id)?.end();
            let (committed, leased) = self.offset_of(group, topic, queue_id);
            let last = committed.and_then(|offset| offset.checked_sub(1));
            lags.push(QueueLag {
                queue_id,
                end,
                committed,
                leased,
                stored_at: last.and_then(|offset| self.stored_at_of(topic, queue_id, offset)),
            });
        }
        Ok(Reply::Lag(lags))
    }
}
