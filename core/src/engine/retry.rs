//! Retry and dead-letter topics of native consumer groups.
//!
//! A message that a group's consumer gives back is published again to the group's retry topic, later each
//! time; after the group's maximum it goes to the dead-letter topic. Both are topics like any other, but no
//! pattern over addresses sees them.

use bytes::Bytes;

use crate::boundary::{Deliver, Publish};
use crate::engine::change::Change;
use crate::engine::republish::{Done, Revived, edit_properties};
use crate::engine::state::State;
use crate::message::{Entry, Format, Message};
use crate::properties;
use crate::request::{DELAY_LEVELS, GiveBack, Refusal, Reply, Retry};
use crate::store::record::Later;
use crate::time::Millis;

/// What a group's retry topic begins with.
const RETRY_PREFIX: &[u8] = b"%RETRY%";
/// What a group's dead-letter topic begins with.
pub(crate) const DEAD_LETTER_PREFIX: &[u8] = b"%DLQ%";

/// When a message was to be delivered says nothing once it was.
const OF_TIMERS: [&[u8]; 4] = [b"DELAY", b"TIMER_DELAY_SEC", b"TIMER_DELAY_MS", b"TIMER_DELIVER_MS"];

impl State {
    pub(crate) fn retry_of(&self, group: &[u8]) -> Retry {
        self.retries.get(group).cloned().unwrap_or_default()
    }

    /// How a group's messages are tried again.
    pub(crate) fn set_retry(&mut self, group: Bytes, retry: Retry) -> Result<Reply, Refusal> {
        if !self.retries.contains_key(&group) && self.retries.len() >= self.config.groups_max {
            return Err(crate::engine::group::limit("consumer groups", self.config.groups_max));
        }
        if self.retries.get(&group) != Some(&retry) {
            self.change(&Change::Retry {
                group: group.clone(),
                retry: retry.clone(),
            });
            self.retries.insert(group, retry);
        }
        Ok(Reply::Done)
    }

    /// A consumer could not handle a message.
    pub(crate) fn give_back_message(&mut self, back: &GiveBack) -> Result<Reply, Refusal> {
        let not_found = || Refusal::NotFound {
            what: "message",
            name: back.position.to_string().into(),
        };
        let record = self.log.find(back.position).ok_or_else(not_found)?;
        let message = Message::new(record);
        if matches!(message.view().later(), Some(Later::Half(_))) {
            return Err(not_found());
        }
        let retry = self.retry_of(&back.group);
        if retry.queues == 0 {
            return Ok(Reply::Done);
        }
        let times = message.view().reconsume_times();
        // Less than nothing is the client's way to say "as the group has it".
        let max = back.attempts_max.filter(|max| *max >= 0).unwrap_or(retry.attempts_max);
        let is_dead = times >= max || back.level < 0;
        let mut revived = self.native_again(&message);
        let properties = revived.publish.origin.clone();
        let find = |name: &[u8]| properties::find(&properties, name);
        let topic = find(b"RETRY_TOPIC").unwrap_or(message.topic());
        let id = find(b"ORIGIN_MESSAGE_ID").unwrap_or(&back.id);
        let mut with = vec![(&b"RETRY_TOPIC"[..], topic), (b"ORIGIN_MESSAGE_ID", id)];
        let level = if back.level == 0 {
            times.saturating_add(3)
        } else {
            back.level
        };
        let level_text = level.to_string();
        let (prefix, queues) = if is_dead {
            with.extend([(&b"DLQ_ORIGIN_TOPIC"[..], topic), (b"DLQ_ORIGIN_MESSAGE_ID", id)]);
            (DEAD_LETTER_PREFIX, 1)
        } else {
            with.push((b"DELAY", level_text.as_bytes()));
            revived.publish.deliver = Deliver::After(match back.level {
                0 => retry.policy.delay(times),
                level => delay_of_level(level),
            });
            (RETRY_PREFIX, retry.queues)
        };
        revived.publish.topic = [prefix, &back.group].concat().into();
        revived.publish.origin = edit_properties(&properties, &OF_TIMERS, &with);
        revived.retag();
        let native = revived.native();
        native.reconsume_times = times.saturating_add(1);
        native.queue_id = Some(back.position.0 as u32 / 8 % queues);
        native.topic_queues = queues;
        self.republish(revived, Done::Nothing)
            .map_err(|reject| Refusal::Rejected { index: 0, reject })?;
        self.changed = true;
        Ok(Reply::Done)
    }

    /// The message as a native one that only the topic of its name sees.
    pub(crate) fn native_again(&self, message: &Message) -> Revived {
        let mut revived = Revived::of(message);
        if revived.publish.format != Format::NATIVE {
            let properties = message.view().properties();
            revived.publish.origin = Bytes::copy_from_slice(properties);
            revived.publish.format = Format::NATIVE;
            revived.publish.attributes = crate::attributes::Attributes::EMPTY;
        }
        revived.publish.entry = Entry::Queue;
        revived.publish.persistent = true;
        revived
    }

    /// What is sent to a retry topic after too many attempts, or by a group that consumes in order and tries
    /// again by itself, goes to the group's dead-letter topic.
    pub(crate) fn dead_letter_of(&self, publish: &Publish) -> Option<Publish> {
        let group = publish.topic.strip_prefix(RETRY_PREFIX)?;
        let native = publish.native.as_deref()?;
        let max = native.attempts_max.filter(|max| *max >= 0);
        let max = max.unwrap_or_else(|| self.retry_of(group).attempts_max);
        let is_orderly = self
            .groups
            .get(group)
            .is_some_and(|group| group.is_locked(self.now.mono));
        if native.reconsume_times <= max && !is_orderly {
            return None;
        }
        let origin = edit_properties(&publish.origin, &OF_TIMERS, &[]);
        let tag = properties::find(&origin, properties::TAGS).unwrap_or_default();
        let mut native = native.clone();
        native.queue_id = Some(0);
        native.topic_queues = 1;
        Some(Publish {
            token: publish.token,
            entry: Entry::Queue,
            topic: [DEAD_LETTER_PREFIX, group].concat().into(),
            key: origin.slice_ref(tag),
            body: publish.body.clone(),
            format: publish.format,
            origin,
            persistent: true,
            detailed: publish.detailed,
            native: Some(Box::new(native)),
            ..Publish::default()
        })
    }
}

fn delay_of_level(level: i32) -> Millis {
    let index = usize::try_from(level).unwrap_or(0).clamp(1, DELAY_LEVELS.len()) - 1;
    DELAY_LEVELS[index]
}
