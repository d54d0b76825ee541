//! Topics, native consumer groups, pulls and offsets.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use crate::address::TOPIC_NAME_MAX;
use crate::boundary::{Notice, RequestId};
use crate::engine::change::Change;
use crate::engine::entries::EntryList;
use crate::engine::links::{LinkId, LinkState};
use crate::engine::progress::Entry;
use crate::engine::state::State;
use crate::engine::trie::Map;
use crate::filter::Sql;
use crate::request::{self, Filter, GroupSubscription, Join, Pull, PullStatus, Pulled, Refusal, Reply};
use crate::store::chunk::Slice;
use crate::store::pages::ListId;
use crate::store::record::{Later, MessageRecord, Position};
use crate::time::Millis;

/// Most message queues of one topic.
const TOPIC_QUEUES_MAX: u32 = 1024;

/// Entries one pull looks at before it says that none matched (RocketMQ: 16,000 bytes of entries).
const PULL_SCAN_MAX: usize = 800;

/// Bytes of properties that the expression of one pull looks at before it says that none matched.
const FILTER_COST_MAX: usize = 8 << 20;

/// Entries that a pull with an expression takes at a time.
const FILTER_AHEAD: usize = 32;

/// Most topics of one group's subscription.
const SUBSCRIPTIONS_MAX: usize = 1024;

/// Says that a limit of the broker is reached.
pub(crate) fn limit(what: &str, max: usize) -> Refusal {
    Refusal::Invalid(format!("the broker's limit of {max} {what} is reached"))
}

/// A queue lock's life without renewal (RocketMQ: 60 s).
const LOCK_LIFE: Millis = Millis::from_secs(60);

/// A named log of message queues.
pub(crate) struct Topic {
    pub name: Bytes,
    pub queues: Vec<MessageQueue>,
    /// The message queue that the next message without an order gets.
    pub turn: u32,
}

/// One message queue of a topic: offset mode, it knows nothing of consumers.
pub(crate) struct MessageQueue {
    pub entries: EntryList,
    /// Held pulls.
    waiting: Vec<(LinkId, RequestId)>,
    dirty: bool,
}

impl MessageQueue {
    fn new(entries: EntryList) -> Self {
        Self {
            entries,
            waiting: Vec::new(),
            dirty: false,
        }
    }

    /// The offset that the next entry gets.
    pub(crate) fn end(&self) -> u64 {
        self.entries.end()
    }

    pub(crate) fn bounds(&self) -> Range<u64> {
        self.entries.head()..self.end()
    }

    pub(crate) fn replay_push(&mut self, offset: u64, entry: Entry) {
        if self.entries.end() == 0 {
            self.entries.skip_to(offset);
        }
        if offset == self.end() {
            self.entries.push(entry);
        }
    }
}

/// A held pull: where it waits and what it asked.
pub(crate) struct Pulling {
    topic: u32,
    pull: Pull,
}

/// A native consumer group.
#[derive(Default)]
pub(crate) struct Group {
    members: BTreeMap<Bytes, Member>,
    subscriptions: Map<Bytes, GroupSubscription>,
    pub offsets: Map<(Bytes, u32), u64>,
    /// Where pulls are to go on, told by the next one.
    pub resets: Map<(Bytes, u32), u64>,
    locks: Map<(Bytes, u32), (Bytes, Millis)>,
}

impl Group {
    /// Every member gets every message and keeps its own offsets.
    pub(crate) fn is_broadcasting(&self) -> bool {
        self.members.values().any(|member| member.broadcasting)
    }

    /// Somebody consumes in order: has a message queue for itself.
    pub(crate) fn is_locked(&self, now: Millis) -> bool {
        self.locks.values().any(|(_, until)| *until > now)
    }
}

struct Member {
    link: LinkId,
    broadcasting: bool,
}

/// RocketMQ's hash of a tag: Java's `String.hashCode` over UTF-16 units; 0 for no tag.
pub fn tag_hash(tag: &[u8]) -> i32 {
    let step = |hash: i32, unit: u16| hash.wrapping_mul(31).wrapping_add(i32::from(unit));
    match std::str::from_utf8(tag) {
        Ok(text) => text.encode_utf16().fold(0, step),
        Err(_) => String::from_utf8_lossy(tag).encode_utf16().fold(0, step),
    }
}

/// Whether the filter takes an entry, as far as the entry tells.
pub(crate) fn takes(filter: &Filter, entry: Entry) -> bool {
    match filter {
        Filter::All | Filter::Sql(_) => true,
        Filter::Tags(hashes) => hashes.contains(&(entry.word as i32)),
    }
}

/// Whether a pull that found so much has no room for that entry.
fn is_full(pull: &Pull, messages: usize, bytes: u64, entry: Entry) -> bool {
    let too_much = bytes + u64::from(entry.size) > u64::from(pull.bytes_max);
    messages >= pull.messages_max.max(1) as usize || (too_much && messages > 0)
}

impl State {
    // --- topics -----------------------------------------------------------------------------------

    /// Makes a topic that does not exist; the message or request at hand carries its durability.
    pub(crate) fn add_topic(&mut self, name: Bytes, queues: u32) -> u32 {
        let name = Bytes::copy_from_slice(&name);
        let queues = queues.clamp(1, TOPIC_QUEUES_MAX);
        self.change_quietly(&Change::Topic {
            name: name.clone(),
            queues,
        });
        self.put_topic(name, queues)
    }

    pub(crate) fn put_topic(&mut self, name: Bytes, queues: u32) -> u32 {
        if let Some(id) = self.topic_ids.get(&name).copied() {
            let topic = &mut self.topics[id as usize];
            for queue in topic.queues.len() as u32..queues {
                let entries = EntryList::new(ListId::message_queue(id, queue), &self.pages);
                topic.queues.push(MessageQueue::new(entries));
            }
            return id;
        }
        let id = self.topics.len() as u32;
        self.topic_ids.insert(name.clone(), id);
        let list = |queue| EntryList::new(ListId::message_queue(id, queue), &self.pages);
        let queues = (0..queues).map(|queue| MessageQueue::new(list(queue))).collect();
        self.topics.push(Topic { name, queues, turn: 0 });
        id
    }

    pub(crate) fn find_topic(&self, name: &Bytes) -> Result<Reply, Refusal> {
        let topic = &self.topics[self.topic_id(name)? as usize];
        Ok(Reply::Topic(request::Topic {
            name: name.clone(),
            queues: topic.queues.len() as u32,
        }))
    }

    pub(crate) fn declare_topic(&mut self, name: &Bytes, queues: u32) -> Result<Reply, Refusal> {
        if self.topic_ids.contains_key(name) {
            return self.find_topic(name);
        }
        if name.is_empty() || name.len() > TOPIC_NAME_MAX {
            return Err(Refusal::Invalid(format!(
                "a topic's name has 1 to {TOPIC_NAME_MAX} bytes"
            )));
        }
        if self.topics.len() >= self.config.topics_max {
            return Err(limit("topics", self.config.topics_max));
        }
        self.add_topic(name.clone(), queues);
        self.changed = true;
        self.find_topic(name)
    }

    pub(crate) fn topic_id(&self, name: &Bytes) -> Result<u32, Refusal> {
        self.topic_ids.get(name).copied().ok_or_else(|| Refusal::NotFound {
            what: "topic",
            name: name.clone(),
        })
    }

    pub(crate) fn message_queue(&mut self, topic: &Bytes, queue: u32) -> Result<&mut MessageQueue, Refusal> {
        let id = self.topic_id(topic)?;
        self.topics[id as usize]
            .queues
            .get_mut(queue as usize)
            .ok_or_else(|| Refusal::Invalid(format!("topic has no message queue {queue}")))
    }

    pub(crate) fn append_to_topic(&mut self, topic: u32, queue: u32, entry: Entry) {
        self.log
            .keep_until(entry.position, self.stored_at + self.config.retention);
        let message_queue = &mut self.topics[topic as usize].queues[queue as usize];
        message_queue.entries.push(entry);
        self.wake_pulls(topic, queue);
        self.pops.wake(topic);
    }

    // --- pulls ------------------------------------------------------------------------------------

    /// Answers a pull, or keeps it waiting.
    pub(crate) fn pull(&mut self, link: LinkId, id: RequestId, pull: Pull) {
        match self.try_pull(&pull) {
            Ok(pulled) if pull.hold && pulled.status == PullStatus::NotFound => self.hold_pull(link, id, pull),
            Ok(pulled) => self.reply(link, id, Ok(Reply::Pulled(Box::new(pulled)))),
            Err(refusal) => self.reply(link, id, Err(refusal)),
        }
    }

    fn hold_pull(&mut self, link: LinkId, id: RequestId, pull: Pull) {
        let Ok(topic) = self.topic_id(&pull.topic) else { return };
        self.topics[topic as usize].queues[pull.queue_id as usize]
            .waiting
            .push((link, id));
        if let Some(link) = self.link(link) {
            link.native().pulls.insert(id, Pulling { topic, pull });
        }
    }

    /// The wait is over: answers with what there is.
    pub(crate) fn cancel_pull(&mut self, link: LinkId, id: RequestId) {
        let Some(pulling) = self.link(link).and_then(|link| link.has_native()?.pulls.remove(&id)) else {
            return;
        };
        self.stop_waiting(link, id, &pulling);
        self.pull(
            link,
            id,
            Pull {
                hold: false,
                ..pulling.pull
            },
        );
    }

    pub(crate) fn stop_waiting(&mut self, link: LinkId, id: RequestId, pulling: &Pulling) {
        self.topics[pulling.topic as usize].queues[pulling.pull.queue_id as usize]
            .waiting
            .retain(|waiting| *waiting != (link, id));
    }

    /// Held pulls of message queues that got something are tried again.
    pub(crate) fn answer_pulls(&mut self) {
        for (topic, queue) in std::mem::take(&mut self.dirty_topics) {
            let message_queue = &mut self.topics[topic as usize].queues[queue as usize];
            message_queue.dirty = false;
            for (link, id) in std::mem::take(&mut message_queue.waiting) {
                let Some(Pulling { mut pull, .. }) =
                    self.link(link).and_then(|link| link.has_native()?.pulls.remove(&id))
                else {
                    continue;
                };
                match self.try_pull(&pull) {
                    // Others' messages do not end the wait, as in RocketMQ, but are not looked at again. What one
                    // look does not get through goes on at the client's next pull.
                    Ok(pulled)
                        if matches!(pulled.status, PullStatus::NotFound | PullStatus::NoneMatched)
                            && pulled.next_offset >= pulled.bounds.end =>
                    {
                        pull.offset = pulled.next_offset;
                        self.hold_pull(link, id, pull);
                    }
                    Ok(pulled) => self.reply(link, id, Ok(Reply::Pulled(Box::new(pulled)))),
                    Err(refusal) => self.reply(link, id, Err(refusal)),
                }
            }
        }
    }

    /// Held pulls of a message queue are tried again.
    pub(crate) fn wake_pulls(&mut self, topic: u32, queue: u32) {
        let message_queue = &mut self.topics[topic as usize].queues[queue as usize];
        if !message_queue.waiting.is_empty() && !std::mem::replace(&mut message_queue.dirty, true) {
            self.dirty_topics.push((topic, queue));
        }
    }

    /// The filter that a group joined with.
    pub(crate) fn joined_filter(&self, group: &Bytes, topic: &Bytes) -> Option<Filter> {
        let subscription = self.groups.get(group)?.subscriptions.get(topic)?;
        Some(subscription.filter.clone())
    }

    fn try_pull(&mut self, pull: &Pull) -> Result<Pulled, Refusal> {
        let filter = match &pull.filter {
            Some(filter) => filter.clone(),
            None => {
                let filter = self.joined_filter(&pull.group, &pull.topic);
                filter.ok_or(Refusal::NoSubscription)?
            }
        };
        let message_queue = self.message_queue(&pull.topic, pull.queue_id)?;
        let bounds = message_queue.bounds();
        let mut pulled = Pulled {
            status: PullStatus::OffsetMoved,
            messages: Vec::new(),
            next_offset: pull.offset,
            bounds: bounds.clone(),
        };
        if let Some(offset) = self.take_reset(&pull.group, &pull.topic, pull.queue_id) {
            pulled.status = PullStatus::OffsetReset;
            pulled.next_offset = offset;
            return Ok(pulled);
        }
        if pull.offset < bounds.start {
            pulled.next_offset = bounds.start;
            return Ok(pulled);
        }
        if pull.offset > bounds.end {
            pulled.next_offset = bounds.end;
            return Ok(pulled);
        }
        if pull.offset == bounds.end {
            pulled.status = PullStatus::NotFound;
            return Ok(pulled);
        }
        if let Filter::Sql(sql) = &filter {
            self.pull_by_expression(pull, sql, &mut pulled)?;
        } else {
            self.pull_by_entry(pull, &filter, &mut pulled)?;
        }
        pulled.status = if pulled.messages.is_empty() {
            PullStatus::NoneMatched
        } else {
            PullStatus::Found
        };
        Ok(pulled)
    }

    /// The entry tells whether the message is wanted: only wanted ones are read.
    fn pull_by_entry(&mut self, pull: &Pull, filter: &Filter, pulled: &mut Pulled) -> Result<(), Refusal> {
        let mut wanted: Vec<Entry> = Vec::with_capacity(pull.messages_max.min(64) as usize);
        let mut bytes = 0u64;
        let message_queue = self.message_queue(&pull.topic, pull.queue_id)?;
        let scan_max = PULL_SCAN_MAX.max(pull.messages_max as usize);
        for (offset, entry) in message_queue.entries.iter_from(pull.offset).take(scan_max) {
            if takes(filter, entry) {
                if is_full(pull, wanted.len(), bytes, entry) {
                    break;
                }
                bytes += u64::from(entry.size);
                wanted.push(entry);
            }
            pulled.next_offset = offset + 1;
        }
        pulled.messages.reserve(wanted.len());
        for entry in wanted {
            pulled.messages.extend(self.message(entry.position, entry.size));
        }
        Ok(())
    }

    /// Every message is looked at where it lies.
    fn pull_by_expression(&mut self, pull: &Pull, sql: &Sql, pulled: &mut Pulled) -> Result<(), Refusal> {
        let (mut bytes, mut cost, mut seen) = (0u64, 0, 0);
        while seen < PULL_SCAN_MAX {
            let message_queue = self.message_queue(&pull.topic, pull.queue_id)?;
            let ahead = message_queue.entries.iter_from(pulled.next_offset);
            let entries: Vec<_> = ahead.take(FILTER_AHEAD).collect();
            if entries.is_empty() {
                pulled.next_offset = pulled.bounds.end;
                break;
            }
            for (offset, entry) in entries {
                if is_full(pull, pulled.messages.len(), bytes, entry) || cost > FILTER_COST_MAX {
                    return Ok(());
                }
                if let Some(message) = self.message(entry.position, entry.size) {
                    cost += sql.cost(message.native_properties().len());
                    if sql.matches_message(&message) {
                        bytes += u64::from(entry.size);
                        pulled.messages.push(message);
                    }
                }
                pulled.next_offset = offset + 1;
                seen += 1;
            }
        }
        Ok(())
    }

    // --- offsets ----------------------------------------------------------------------------------

    pub(crate) fn bounds(&mut self, topic: &Bytes, queue: u32) -> Result<Reply, Refusal> {
        Ok(Reply::Offsets(self.message_queue(topic, queue)?.bounds()))
    }

    pub(crate) fn search_offset(&mut self, topic: &Bytes, queue: u32, at: Millis) -> Result<Reply, Refusal> {
        Ok(Reply::Offset(Some(self.offset_at(topic, queue, at)?)))
    }

    /// From now on the topic's transient messages are kept for the group, and it counts as a route.
    pub(crate) fn register_group(&mut self, group: &Bytes, topic: &Bytes) {
        if self.put_topic_group(group, topic) {
            self.change_quietly(&Change::Group {
                group: group.clone(),
                topic: topic.clone(),
            });
        }
    }

    pub(crate) fn put_topic_group(&mut self, group: &Bytes, topic: &Bytes) -> bool {
        let groups = self.topic_groups.entry(topic.clone()).or_default();
        let is_new = !groups.contains(group);
        if is_new {
            groups.push(group.clone());
        }
        is_new
    }

    // --- members ----------------------------------------------------------------------------------

    /// The group of that name, made if need be.
    pub(crate) fn group(&mut self, name: &Bytes) -> Result<&mut Group, Refusal> {
        if !self.groups.contains_key(name) && self.groups.len() >= self.config.groups_max {
            return Err(limit("consumer groups", self.config.groups_max));
        }
        Ok(self.groups.entry(name.clone()).or_default())
    }

    pub(crate) fn join(&mut self, link: LinkId, join: Join) -> Result<Reply, Refusal> {
        self.group(&join.group)?;
        if join.subscriptions.len() > SUBSCRIPTIONS_MAX {
            return Err(Refusal::Invalid(format!(
                "a group subscribes to at most {SUBSCRIPTIONS_MAX} topics"
            )));
        }
        for subscription in &join.subscriptions {
            self.register_group(&join.group, &subscription.topic);
        }
        let group = self.group(&join.group)?;
        let member = Member {
            link,
            broadcasting: join.broadcasting,
        };
        let known = group
            .members
            .insert(join.client_id.clone(), member)
            .is_some_and(|old| old.link == link);
        let before: Vec<Bytes> = group.subscriptions.keys().cloned().collect();
        for subscription in join.subscriptions {
            match group.subscriptions.get(&subscription.topic) {
                Some(old) if old.version > subscription.version => {}
                _ => {
                    group.subscriptions.insert(subscription.topic.clone(), subscription);
                }
            }
        }
        let topics_changed = before.len() != group.subscriptions.len();
        let membership = (join.group.clone(), join.client_id);
        if let Some(link) = self.link(link)
            && let native = link.native()
            && !native.memberships.contains(&membership)
        {
            native.memberships.push(membership);
        }
        if !known || topics_changed {
            self.tell_group(&join.group);
        }
        Ok(Reply::Done)
    }

    pub(crate) fn leave(&mut self, link: LinkId, group_name: &Bytes, client_id: &Bytes) {
        if let Some(native) = self.link(link).and_then(LinkState::has_native) {
            native
                .memberships
                .retain(|(group, client)| !(group == group_name && client == client_id));
        }
        let Some(group) = self.groups.get_mut(group_name) else {
            return;
        };
        if group.members.get(client_id).is_none_or(|member| member.link != link) {
            return;
        }
        group.members.remove(client_id);
        if group.members.is_empty() {
            group.subscriptions.clear();
        }
        self.tell_group(group_name);
    }

    fn tell_group(&mut self, name: &Bytes) {
        let Some(group) = self.groups.get(name) else { return };
        let mut links: Vec<LinkId> = group
            .members
            .values()
            .filter(|member| !member.broadcasting)
            .map(|member| member.link)
            .collect();
        links.sort_unstable();
        links.dedup();
        for link in links {
            self.notify(link, Notice::GroupChanged(name.clone()));
        }
    }

    pub(crate) fn members(&self, group: &Bytes) -> Reply {
        Reply::Members(
            self.groups
                .get(group)
                .map_or_else(Vec::new, |group| group.members.keys().cloned().collect()),
        )
    }

    // --- locks ------------------------------------------------------------------------------------

    pub(crate) fn lock_queues(
        &mut self,
        group: &Bytes,
        client: &Bytes,
        queues: Vec<(Bytes, u32)>,
    ) -> Result<Reply, Refusal> {
        let now = self.now.mono;
        let known: Vec<_> = queues
            .into_iter()
            .filter(|(topic, queue)| self.message_queue(topic, *queue).is_ok())
            .collect();
        let locks = &mut self.group(group)?.locks;
        let locked = known
            .into_iter()
            .filter(|queue| match locks.get(queue) {
                Some((owner, until)) if owner != client && *until > now => false,
                _ => {
                    locks.insert(queue.clone(), (client.clone(), now + LOCK_LIFE));
                    true
                }
            })
            .collect();
        Ok(Reply::Locked(locked))
    }

    /// A client that left has no locks any more.
    pub(crate) fn unlock_all(&mut self, group: &Bytes, client: &Bytes) {
        if let Some(group) = self.groups.get_mut(group) {
            group.locks.retain(|_, (owner, _)| owner != client);
        }
    }

    pub(crate) fn unlock_queues(&mut self, group: &Bytes, client: &Bytes, queues: &[(Bytes, u32)]) {
        let Some(group) = self.groups.get_mut(group) else {
            return;
        };
        for queue in queues {
            if group.locks.get(queue).is_some_and(|(owner, _)| owner == client) {
                group.locks.remove(queue);
            }
        }
    }

    pub(crate) fn view(&mut self, position: Position) -> Result<Reply, Refusal> {
        let record = self.log.find(position);
        let name = Bytes::from(position.to_string());
        let is_half = |record: &Slice| matches!(MessageRecord::of(record).later(), Some(Later::Half(_)));
        let record = record
            .filter(|record| !is_half(record))
            .ok_or(Refusal::NotFound { what: "message", name })?;
        Ok(Reply::Message(crate::message::Message::new(record)))
    }
}
