//! Sends and what became of them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{Fate, Outcome, Publish, Stored};
use rocketbridge_core::request::{Request, Topic};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;

use super::reply::Pending;
use super::{ReplyTo, Session, answer, busy, refuse};
use crate::codec::Command;
use crate::mapping::delay::{Handle, When};
use crate::mapping::names::{self, AUTO_CREATE_TOPIC};
use crate::mapping::offset_id;
use crate::mapping::send::{self, Envelope, REGION, UniqueKeys};
use crate::request_code::SEND_BATCH_MESSAGE;
use crate::response_code::{Refused, ResponseCode};

/// Messages that are published and have no outcome yet.
pub(super) struct Sends {
    /// One for each token from `first` on; those in front that are done are gone.
    slots: VecDeque<Slot>,
    first: u64,
    /// Bytes of the bodies of those that are not done.
    bytes: usize,
    batches: HashMap<u64, Batch>,
    /// When to look whether core has taken what was published.
    check_at: Option<Millis>,
    keys: UniqueKeys,
    /// Where properties are written to.
    properties: BytesMut,
    /// Where escaped text is unescaped to.
    scratch: Vec<u8>,
    /// The last topic, in memory of its own: producers mostly send to one.
    topic: Bytes,
}

struct Slot {
    sent_at: Millis,
    bytes: u32,
    kind: SlotKind,
}

enum SlotKind {
    Done,
    Single {
        to: ReplyTo,
        unique_key: Bytes,
        /// Topic and time of a message that can be taken back.
        recall: Option<Box<(Bytes, Millis)>>,
    },
    /// Of the batch whose first token this is.
    Part(u64),
}

/// One answer for several messages.
struct Batch {
    to: ReplyTo,
    remaining: usize,
    /// Of each message; those of refused ones are never told.
    positions: Vec<Position>,
    queue_id: u32,
    queue_offset: u64,
    refused: Option<Refused>,
}

/// A batch that waits for what is known of its topic.
#[derive(Debug)]
pub(super) struct Deferred {
    to: ReplyTo,
    envelope: Envelope,
    properties: Vec<u8>,
    body: Bytes,
}

impl Sends {
    pub(super) fn new(unique_prefix: u64) -> Self {
        Self {
            slots: VecDeque::new(),
            first: 0,
            bytes: 0,
            batches: HashMap::new(),
            check_at: None,
            keys: UniqueKeys::new(unique_prefix),
            properties: BytesMut::new(),
            scratch: Vec::new(),
            topic: Bytes::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn check_at(&self) -> Option<Millis> {
        self.check_at
    }

    fn next_token(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn index(&self, token: u64) -> Option<usize> {
        let index = usize::try_from(token.checked_sub(self.first)?).ok()?;
        (index < self.slots.len()).then_some(index)
    }

    /// When a message was sent that has no outcome.
    fn sent_at(&self, token: u64) -> Millis {
        self.index(token).map_or(Millis(0), |at| self.slots[at].sent_at)
    }

    /// The slot of a token is done; gives what it was.
    fn finish(&mut self, token: u64) -> SlotKind {
        let Some(at) = self.index(token) else {
            return SlotKind::Done;
        };
        let slot = &mut self.slots[at];
        self.bytes -= slot.bytes as usize;
        slot.bytes = 0;
        let kind = std::mem::replace(&mut slot.kind, SlotKind::Done);
        while let Some(Slot {
            kind: SlotKind::Done, ..
        }) = self.slots.front()
        {
            self.slots.pop_front();
            self.first += 1;
        }
        kind
    }

    /// The topic's name in memory of its own, which is the last one's if that was the same.
    fn topic(&mut self, name: &[u8]) -> Bytes {
        if self.topic != name {
            self.topic = Bytes::copy_from_slice(name);
        }
        self.topic.clone()
    }
}

impl Session {
    /// SEND_MESSAGE, SEND_MESSAGE_V2 and SEND_BATCH_MESSAGE.
    pub(super) fn send(&mut self, now: Now, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let header = send::send_header(command)?;
        let topic = header.topic.bytes();
        if *topic != self.sends.topic {
            names::check_send_topic(&topic)?;
        }
        send::check_sys_flag(header.sys_flag)?;
        let body = command.body();
        if body.len() > self.config.body_max {
            return Err(send::too_large(self.config.body_max));
        }
        if body.is_empty() {
            return Err(Refused::new(
                ResponseCode::MessageIllegal,
                "the message body length is zero",
            ));
        }
        let of_group = names::is_of_group(&topic);
        let makes_topic = self.config.topics_auto_create && *header.default_topic.bytes() == *AUTO_CREATE_TOPIC;
        let topic_queues = header.default_topic_queues.max(1) as u32;
        let envelope = Envelope {
            topic: self.sends.topic(&topic),
            queue_id: u32::try_from(header.queue_id).ok(),
            sys_flag: header.sys_flag,
            born_at: header.born_at,
            reconsume_times: header.reconsume_times,
            attempts_max: header.attempts_max,
            topic_queues: if makes_topic {
                topic_queues.min(self.config.topic_queues_max.max(1))
            } else {
                u32::from(of_group)
            },
        };
        let batch = header.batch || command.code() == SEND_BATCH_MESSAGE;
        if batch && envelope.queue_id.is_none() {
            // Core would put each message of the batch into a message queue of its own.
            let topic = envelope.topic.clone();
            let deferred = Deferred {
                to,
                envelope,
                properties: header.properties.bytes().into_owned(),
                body: body.clone(),
            };
            self.ask(Request::FindTopic { topic }, Pending::Send(Box::new(deferred)), out)?;
            return Ok(());
        }
        let mut scratch = std::mem::take(&mut self.sends.scratch);
        let properties = header.properties.bytes_in(&mut scratch);
        let result = if batch {
            self.publish_batch(now, to, &envelope, properties, body, out)
        } else {
            self.publish_one(now, to, &envelope, header.flag, properties, body, out)
        };
        self.sends.scratch = scratch;
        result
    }

    /// What is known of a deferred batch's topic is there: all of it goes to one message queue.
    pub(super) fn send_deferred(&mut self, now: Now, deferred: Deferred, topic: Option<Topic>, out: &mut Outbox) {
        let Deferred {
            to,
            mut envelope,
            properties,
            body,
        } = deferred;
        let queues = topic.map_or(envelope.topic_queues, |topic| topic.queues);
        envelope.queue_id = Some(to.opaque.unsigned_abs() % queues.max(1));
        if let Err(refused) = self.publish_batch(now, to, &envelope, &properties, &body, out) {
            refuse(out, to, &refused);
        }
    }

    fn check_room(&self, messages: usize, bytes: usize) -> Result<(), Refused> {
        let sends = &self.sends;
        let full = sends.slots.len() + messages > self.config.sends_max
            || sends.bytes + bytes > self.config.sends_bytes_max.max(self.config.body_max);
        if full {
            return Err(busy("too many messages of this connection wait to be stored"));
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn publish_one(
        &mut self,
        now: Now,
        to: ReplyTo,
        envelope: &Envelope,
        flag: i32,
        properties: &[u8],
        body: &Bytes,
        out: &mut Outbox,
    ) -> Result<(), Refused> {
        self.check_room(1, body.len())?;
        let cluster = self.config.cluster_name.as_bytes();
        let sends = &mut self.sends;
        let attempts = envelope.reconsume_times;
        let (keys, memory) = (&mut sends.keys, &mut sends.properties);
        let properties = send::properties(properties, attempts, cluster, now.wall, keys, memory)?;
        let publish = envelope.publish(sends.next_token(), flag, body.clone(), &properties, !to.oneway);
        let of_group = names::is_of_group(&envelope.topic);
        let due = properties.when.due.filter(|_| !of_group && !to.oneway);
        let kind = SlotKind::Single {
            to,
            unique_key: properties.unique_key,
            recall: due.map(|due| Box::new((envelope.topic.clone(), due))),
        };
        self.publish(now, publish, kind, out);
        Ok(())
    }

    fn publish_batch(
        &mut self,
        now: Now,
        to: ReplyTo,
        envelope: &Envelope,
        header_properties: &[u8],
        body: &Bytes,
        out: &mut Outbox,
    ) -> Result<(), Refused> {
        let cluster = self.config.cluster_name.as_bytes();
        let keys = &mut self.sends.keys;
        let memory = &mut self.sends.properties;
        // Only for what they may ask for: each message brings its own.
        let attempts = envelope.reconsume_times;
        check_batched(&send::properties(
            header_properties,
            attempts,
            cluster,
            now.wall,
            keys,
            memory,
        )?)?;
        let mut messages = Vec::new();
        for message in send::batch(body) {
            let message = message.map_err(|_| Refused::new(ResponseCode::MessageIllegal, "the batch is malformed"))?;
            if messages.len() == self.config.batch_messages_max {
                return Err(Refused::new(
                    ResponseCode::MessageIllegal,
                    format!("more than {} messages in one batch", self.config.batch_messages_max),
                ));
            }
            let properties = send::properties(message.properties, attempts, cluster, now.wall, keys, memory)?;
            check_batched(&properties)?;
            messages.push((message.flag, body.slice_ref(message.body), properties));
        }
        self.check_room(messages.len(), body.len())?;
        let first = self.sends.next_token();
        let batch = Batch {
            to,
            remaining: messages.len(),
            positions: vec![Position::default(); messages.len()],
            queue_id: 0,
            queue_offset: 0,
            refused: None,
        };
        self.sends.batches.insert(first, batch);
        for (flag, body, properties) in messages {
            let publish = envelope.publish(self.sends.next_token(), flag, body, &properties, true);
            self.publish(now, publish, SlotKind::Part(first), out);
        }
        Ok(())
    }

    fn publish(&mut self, now: Now, publish: Publish, kind: SlotKind, out: &mut Outbox) {
        let bytes = publish.body.len() as u32;
        self.sends.bytes += bytes as usize;
        self.sends.slots.push_back(Slot {
            sent_at: now.mono,
            bytes,
            kind,
        });
        self.sends.check_at.get_or_insert(now.mono + self.config.busy_after());
        out.publish(publish);
    }

    /// Core tells what became of messages.
    pub(super) fn handle_outcome(&mut self, outcome: Outcome, out: &mut Outbox) {
        for token in outcome.first..outcome.first.saturating_add(u64::from(outcome.count)) {
            let result = match outcome.fate {
                Fate::Stored(stored) | Fate::Duplicate(stored) => Ok(stored),
                Fate::Rejected(reject) => Err(reject.into()),
                Fate::Unknown => Err(Refused::new(
                    ResponseCode::SystemError,
                    "it is not known whether the message was stored",
                )),
            };
            self.finish_send(token, result, out);
        }
    }

    fn finish_send(&mut self, token: u64, result: Result<Stored, Refused>, out: &mut Outbox) {
        let host = self.config.store_host;
        match (self.sends.finish(token), result) {
            (SlotKind::Done, _) => {}
            (SlotKind::Single { to, .. }, Err(refused)) => refuse(out, to, &refused),
            (SlotKind::Single { to, unique_key, recall }, Ok(stored)) => {
                let mut buffer = [0; offset_id::ID_MAX];
                let id = offset_id_in(&mut buffer, host, stored.position);
                let handle = recall.map(|recall| {
                    let (topic, due) = *recall;
                    let handle = Handle {
                        topic,
                        broker: self.config.broker_name.clone().into(),
                        due,
                        unique_key: unique_key.clone(),
                        position: Some(stored.position),
                    };
                    handle.encode()
                });
                let place = (stored.queue_id, stored.queue_offset);
                answer_send(out, to, id, place, Some(&unique_key), handle.as_deref());
            }
            (SlotKind::Part(first), result) => {
                let Some(batch) = self.sends.batches.get_mut(&first) else {
                    return;
                };
                batch.remaining -= 1;
                match result {
                    Ok(stored) => {
                        batch.positions[(token - first) as usize] = stored.position;
                        if token == first {
                            batch.queue_id = stored.queue_id;
                            batch.queue_offset = stored.queue_offset;
                        }
                    }
                    Err(refused) => batch.refused = Some(refused),
                }
                if batch.remaining == 0
                    && let Some(batch) = self.sends.batches.remove(&first)
                {
                    answer_batch(out, &batch, host);
                }
            }
        }
    }

    /// Answers sends that core has not taken for too long with "busy" and takes them back, so that
    /// what was ordered behind them goes on. RocketMQ does the same after the same time.
    pub(super) fn withdraw_stuck_sends(&mut self, now: Now, out: &mut Outbox) {
        if self.sends.check_at.is_none_or(|at| at > now.mono) {
            return;
        }
        self.sends.check_at = None;
        if !out.has_orders() {
            return;
        }
        for publish in out.withdraw_publishes() {
            let due = self.sends.sent_at(publish.token) + self.config.busy_after();
            if due <= now.mono {
                let refused = busy("start flow control for a while");
                self.finish_send(publish.token, Err(refused), out);
            } else {
                self.sends.check_at.get_or_insert(due);
                out.publish(publish);
            }
        }
    }
}

/// A batch goes out at once and is no transaction.
fn check_batched(properties: &send::Properties) -> Result<(), Refused> {
    if properties.half || properties.when != When::default() {
        return Err(Refused::new(
            ResponseCode::MessageIllegal,
            "the message is illegal, a batch has no delay and is no transaction",
        ));
    }
    Ok(())
}

pub(super) fn offset_id_in(buffer: &mut [u8; offset_id::ID_MAX], host: SocketAddr, position: Position) -> &[u8] {
    let mut rest = &mut buffer[..];
    offset_id::push(&mut rest, host, position);
    let length = offset_id::ID_MAX - rest.len();
    &buffer[..length]
}

fn answer_batch(out: &mut Outbox, batch: &Batch, host: SocketAddr) {
    if let Some(refused) = &batch.refused {
        return refuse(out, batch.to, refused);
    }
    let mut ids = Vec::with_capacity(batch.positions.len() * 33);
    for position in &batch.positions {
        if !ids.is_empty() {
            ids.push(b',');
        }
        offset_id::push(&mut ids, host, *position);
    }
    answer_send(out, batch.to, &ids, (batch.queue_id, batch.queue_offset), None, None);
}

fn answer_send(
    out: &mut Outbox,
    to: ReplyTo,
    message_id: &[u8],
    (queue_id, queue_offset): (u32, u64),
    unique_key: Option<&[u8]>,
    recall_handle: Option<&str>,
) {
    let fields = |writer: &mut crate::codec::Writer<'_>| {
        writer.text("MSG_REGION", REGION.as_bytes());
        writer.text("TRACE_ON", b"true");
        writer.text("msgId", message_id);
        writer.number("queueId", i64::from(queue_id));
        writer.number("queueOffset", queue_offset as i64);
        if let Some(key) = unique_key {
            writer.text("transactionId", key);
        }
        if let Some(handle) = recall_handle {
            writer.text("recallHandle", handle.as_bytes());
        }
    };
    answer(out, to, ResponseCode::Success, "", fields, b"");
}

impl Deferred {
    pub(super) fn to(&self) -> ReplyTo {
        self.to
    }
}
