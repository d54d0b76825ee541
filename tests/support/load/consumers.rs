//! Consumers: what they get they acknowledge, give back or commit, and now and then they publish.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::amqp::{self, Amqp};
use super::super::history::{Event, MessageId, Queue, digest};
use super::super::mqtt::{self, Connect, Mqtt};
use super::super::random::Random;
use super::super::remoting::{self, PULL_NOT_FOUND, PULL_RETRY_IMMEDIATELY, Pull, Remoting, SUCCESS, Send};
use super::super::stomp::{Frame, Stomp, receipt_of};
use super::super::wire::{PATIENCE, timed_out, unexpected};
use super::publishers::{Unconfirmed, to_users};
use super::{Addresses, Load, MESSAGE_QUEUES, SESSION, SHARED, STOMP_ORDERS, USERS};

/// Consumed messages between two publishes of a consumer.
const PROMISE_AFTER: usize = 16;

/// What was acknowledged, until a later publish on the same connection is confirmed.
struct Promises {
    queue: Queue,
    /// Acknowledged since the last publish.
    settled: Vec<MessageId>,
    /// Acknowledged before the publish that is not confirmed yet.
    awaited: Option<Vec<MessageId>>,
}

impl Promises {
    fn new(queue: Queue) -> Self {
        Self {
            queue,
            settled: Vec::new(),
            awaited: None,
        }
    }

    fn settle(&mut self, load: &Load, message: MessageId) {
        let queue = self.queue;
        load.recorder.record(Event::Settled { queue, message });
        self.settled.push(message);
    }

    /// Whether it is time for a publish. Not while everything is drained: what is published then would come
    /// to queues that were drained already.
    fn is_due(&self, load: &Load) -> bool {
        !load.draining.load(Ordering::Relaxed) && self.awaited.is_none() && self.settled.len() >= PROMISE_AFTER
    }

    fn published(&mut self) {
        self.awaited = Some(std::mem::take(&mut self.settled));
    }

    fn confirmed(&mut self, load: &Load) {
        let queue = self.queue;
        for message in self.awaited.take().into_iter().flatten() {
            load.recorder.record(Event::Promised { queue, message });
        }
    }
}

/// A consumer with manual acknowledgements, some of them multiple, and some messages given back.
pub(super) struct AmqpConsumer<'a> {
    load: &'a Load,
    client: Amqp,
    publisher: u32,
    queue: Queue,
    /// Of two consumers of one queue each sees a part of it; that the other one had a message and its
    /// connection never brought it, only the broker knows.
    stream: u32,
    random: Random,
    promises: Promises,
    unconfirmed: Unconfirmed,
    /// Delivered, not settled.
    held: BTreeMap<u64, MessageId>,
    seen: Vec<MessageId>,
}

impl<'a> AmqpConsumer<'a> {
    pub(super) fn new(
        load: &'a Load,
        addresses: &Addresses,
        publisher: u32,
        queue: Queue,
        mut random: Random,
    ) -> io::Result<Self> {
        let mut client = Amqp::connect(addresses.amqp)?;
        client.confirm_select()?;
        client.qos(random.between(5, 50) as u16)?;
        client.consume(queue, false)?;
        Ok(Self {
            load,
            client,
            publisher,
            queue,
            stream: if queue == SHARED { random.next() as u32 } else { 0 },
            random,
            promises: Promises::new(queue),
            unconfirmed: Unconfirmed::default(),
            held: BTreeMap::new(),
            seen: Vec::new(),
        })
    }

    pub(super) fn run(mut self, is_done: impl Fn(&[MessageId]) -> bool) -> io::Result<()> {
        while !is_done(&self.seen) || !self.held.is_empty() {
            match self.client.next_event(Instant::now() + self.load.pause)? {
                Some(amqp::Event::Delivery(delivery)) => self.see(delivery),
                Some(event) => {
                    self.unconfirmed.see(self.load, event)?;
                    if self.unconfirmed.messages.is_empty() {
                        self.promises.confirmed(self.load);
                    }
                }
                None => self.settle_all()?,
            }
            if self.held.len() > 3 {
                self.settle_some()?;
            }
            if self.promises.is_due(self.load) {
                self.publish()?;
            }
        }
        Ok(())
    }

    fn see(&mut self, delivery: amqp::Delivery) {
        let message = self
            .load
            .recorder
            .deliver(self.queue, self.stream, &delivery.body, delivery.redelivered);
        // An alien is a fault already; it is never settled.
        if let Some(message) = message {
            self.held.insert(delivery.tag, message);
            self.seen.push(message);
        }
    }

    fn settle_some(&mut self) -> io::Result<()> {
        let tags: Vec<u64> = self.held.keys().copied().collect();
        let tag = *self.random.pick(&tags);
        match self.random.below(8) {
            0 => {
                let message = self.held.remove(&tag).expect("it is held");
                let queue = self.queue;
                self.load.recorder.record(Event::Returned { queue, message });
                self.client.nack(tag, true)
            }
            1..4 => {
                let message = self.held.remove(&tag).expect("it is held");
                self.promises.settle(self.load, message);
                self.client.ack(tag, false)
            }
            _ => self.settle_up_to(tag),
        }
    }

    fn settle_all(&mut self) -> io::Result<()> {
        match self.held.last_key_value() {
            Some((tag, _)) => self.settle_up_to(*tag),
            None => Ok(()),
        }
    }

    fn settle_up_to(&mut self, tag: u64) -> io::Result<()> {
        let rest = self.held.split_off(&(tag + 1));
        for message in std::mem::replace(&mut self.held, rest).into_values() {
            self.promises.settle(self.load, message);
        }
        self.client.ack(tag, true)
    }

    fn publish(&mut self) -> io::Result<()> {
        let (message, body) = self.load.next_message(self.publisher, &mut self.random);
        self.unconfirmed.push(message);
        self.promises.published();
        self.client.publish(to_users(&body)).map(drop)
    }
}

/// The subscriber whose session stays.
pub(super) struct MqttSession<'a> {
    load: &'a Load,
    client: Mqtt,
    publisher: u32,
    random: Random,
    promises: Promises,
    published: Option<(u16, MessageId)>,
    seen: Vec<MessageId>,
}

impl<'a> MqttSession<'a> {
    pub(super) fn new(load: &'a Load, addresses: &Addresses, publisher: u32, random: Random) -> io::Result<Self> {
        let client = Mqtt::connect(addresses.mqtt, Connect::persistent(SESSION))?;
        assert!(client.session_present, "the session was there");
        Ok(Self {
            load,
            client,
            publisher,
            random,
            promises: Promises::new(SESSION),
            published: None,
            seen: Vec::new(),
        })
    }

    pub(super) fn run(mut self, is_done: impl Fn(&[MessageId]) -> bool) -> io::Result<()> {
        let mut held: Vec<(u16, MessageId)> = Vec::new();
        while !is_done(&self.seen) || !held.is_empty() {
            match self.client.next_event(Instant::now() + self.load.pause)? {
                Some(mqtt::Event::Message(message)) => {
                    let seen = self.load.recorder.deliver(SESSION, 0, &message.body, message.dup);
                    held.extend(seen.map(|seen| (message.packet_id, seen)));
                    self.seen.extend(seen);
                }
                Some(mqtt::Event::PubAck(packet_id)) => self.confirmed(packet_id)?,
                Some(event) => return unexpected(event),
                None => self.settle(&mut held)?,
            }
            if held.len() > 5 {
                self.settle(&mut held)?;
            }
            if self.promises.is_due(self.load) {
                self.publish()?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, held: &mut Vec<(u16, MessageId)>) -> io::Result<()> {
        for (packet_id, message) in held.drain(..) {
            self.promises.settle(self.load, message);
            self.client.puback(packet_id)?;
        }
        Ok(())
    }

    fn publish(&mut self) -> io::Result<()> {
        let (message, body) = self.load.next_message(self.publisher, &mut self.random);
        self.promises.published();
        let packet_id = self.client.publish("orders/session", 1, &body)?;
        self.published = Some((packet_id, message));
        Ok(())
    }

    fn confirmed(&mut self, packet_id: u16) -> io::Result<()> {
        let Some((_, message)) = self.published.take().filter(|(id, _)| *id == packet_id) else {
            return unexpected("PUBACK");
        };
        self.load.recorder.record(Event::Confirmed { message });
        self.promises.confirmed(self.load);
        Ok(())
    }
}

/// A STOMP subscription whose queue stays. That to `stomp_orders` is made by a durable subscription to the topic and
/// acknowledges in order, that to another queue acknowledges or gives back any.
pub(super) struct StompConsumer<'a> {
    load: &'a Load,
    client: Stomp,
    publisher: u32,
    queue: Queue,
    random: Random,
    promises: Promises,
    published: Option<(u64, MessageId)>,
    /// Header `ack` of what is not settled, in order of arrival.
    held: Vec<(String, MessageId)>,
    seen: Vec<MessageId>,
}

impl<'a> StompConsumer<'a> {
    pub(super) fn new(
        load: &'a Load,
        addresses: &Addresses,
        publisher: u32,
        queue: Queue,
        mut random: Random,
    ) -> io::Result<Self> {
        let mut client = Stomp::connect(addresses.stomp)?;
        let prefetch = random.between(5, 50).to_string();
        subscribe(&mut client, queue, &prefetch)?;
        Ok(Self {
            load,
            client,
            publisher,
            queue,
            random,
            promises: Promises::new(queue),
            published: None,
            held: Vec::new(),
            seen: Vec::new(),
        })
    }

    pub(super) fn run(mut self, is_done: impl Fn(&[MessageId]) -> bool) -> io::Result<()> {
        while !is_done(&self.seen) || !self.held.is_empty() {
            match self.client.next_frame(Instant::now() + self.load.pause)? {
                Some(frame) if frame.command == "MESSAGE" => self.see(&frame)?,
                Some(frame) => self.confirmed(&frame)?,
                None => {
                    while !self.held.is_empty() {
                        self.settle(0)?;
                    }
                }
            }
            if self.held.len() > 3 {
                self.settle_some()?;
            }
            if self.promises.is_due(self.load) {
                self.publish()?;
            }
        }
        Ok(())
    }

    fn see(&mut self, frame: &Frame) -> io::Result<()> {
        let (Some(ack), Some(redelivered)) = (frame.header("ack"), frame.header("redelivered")) else {
            return unexpected(frame);
        };
        let seen = self
            .load
            .recorder
            .deliver(self.queue, 0, &frame.body, redelivered == "true");
        self.held.extend(seen.map(|message| (ack.to_owned(), message)));
        self.seen.extend(seen);
        Ok(())
    }

    fn settle_some(&mut self) -> io::Result<()> {
        let at = self.random.below(self.held.len() as u64) as usize;
        if self.queue == STOMP_ORDERS || !self.random.once_in(6) {
            return self.settle(at);
        }
        let (ack, message) = self.held.remove(at);
        let queue = self.queue;
        self.load.recorder.record(Event::Returned { queue, message });
        self.client.send("NACK", &[("id", &ack)], b"")
    }

    /// Acknowledges that message; where acknowledgements are cumulative, those before it too.
    fn settle(&mut self, at: usize) -> io::Result<()> {
        let first = if self.queue == STOMP_ORDERS { 0 } else { at };
        let settled: Vec<_> = self.held.drain(first..=at).collect();
        for (_, message) in &settled {
            self.promises.settle(self.load, *message);
        }
        let (ack, _) = settled.last().expect("there is one");
        self.client.send("ACK", &[("id", ack)], b"")
    }

    fn publish(&mut self) -> io::Result<()> {
        let (message, body) = self.load.next_message(self.publisher, &mut self.random);
        self.promises.published();
        let mut bytes = Vec::new();
        let receipt = self
            .client
            .put_send(&format!("/exchange/{USERS}"), &[], &body, &mut bytes);
        self.client.wire.send(&bytes)?;
        self.published = Some((receipt, message));
        Ok(())
    }

    fn confirmed(&mut self, frame: &Frame) -> io::Result<()> {
        let receipt = receipt_of(frame);
        let Some((_, message)) = self.published.take().filter(|(id, _)| Some(*id) == receipt) else {
            return unexpected(frame);
        };
        self.load.recorder.record(Event::Confirmed { message });
        self.promises.confirmed(self.load);
        Ok(())
    }
}

/// Subscribes to one of the two queues and waits for the receipt.
pub(super) fn subscribe(client: &mut Stomp, queue: Queue, prefetch: &str) -> io::Result<()> {
    let common = [("id", "load"), ("prefetch-count", prefetch)];
    let own: &[_] = if queue == STOMP_ORDERS {
        &[
            ("destination", "/topic/orders.#"),
            ("x-queue-name", STOMP_ORDERS),
            ("durable", "true"),
            ("auto-delete", "false"),
            ("ack", "client"),
        ]
    } else {
        &[("destination", "/amq/queue/stomp_users"), ("ack", "client-individual")]
    };
    client.call("SUBSCRIBE", &[&common, own].concat(), b"")
}

/// A native consumer group of one topic, and the publisher that its client is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) publisher: u32,
    pub(super) queue: Queue,
    pub(super) topic: &'static str,
}

/// One client that is the whole group: pulls all message queues at a time and commits offsets.
pub(super) struct NativeGroup<'a> {
    load: &'a Load,
    client: Remoting,
    group: Group,
    random: Random,
    offsets: Vec<u64>,
    promises: Promises,
    asked: HashMap<i64, Asked>,
}

/// What an answer is the answer to.
enum Asked {
    Pull(u32),
    Commit,
    /// With the offsets that were committed before.
    Publish(MessageId, Vec<u64>),
}

impl<'a> NativeGroup<'a> {
    pub(super) fn new(load: &'a Load, addresses: &Addresses, group: Group, random: Random) -> io::Result<Self> {
        let mut client = Remoting::connect(addresses.remoting)?;
        let Group { queue, topic, .. } = group;
        client.join(queue, &format!("client-of-{queue}"), &[topic])?;
        let mut offsets = Vec::new();
        for id in 0..MESSAGE_QUEUES {
            let committed = client.committed_offset(queue, topic, id)?.unwrap_or(0);
            load.offsets(queue, id, |known| {
                assert!(
                    (known.promised..=known.asked.max(known.promised)).contains(&committed),
                    "{queue} {id}: the offset is {committed} after {known:?}"
                );
                known.asked = committed;
            });
            offsets.push(committed);
        }
        Ok(Self {
            load,
            client,
            group,
            random,
            offsets,
            promises: Promises::new(queue),
            asked: HashMap::new(),
        })
    }

    pub(super) fn run(mut self, is_done: impl Fn(&[u64]) -> bool) -> io::Result<()> {
        for id in 0..MESSAGE_QUEUES {
            self.pull(id)?;
        }
        while !is_done(&self.offsets) {
            let Some(response) = self.client.next_response(Instant::now() + PATIENCE)? else {
                return timed_out("answer to a pull");
            };
            match self.asked.remove(&response.opaque) {
                Some(Asked::Pull(id)) => {
                    if self.see(id, &response)? {
                        self.commit(id)?;
                    }
                    self.pull(id)?;
                }
                Some(Asked::Commit) if response.code == SUCCESS => {}
                Some(Asked::Publish(message, offsets)) if response.code == SUCCESS => {
                    self.load.recorder.record(Event::Confirmed { message });
                    self.promises.confirmed(self.load);
                    for (id, offset) in offsets.into_iter().enumerate() {
                        self.load
                            .offsets(self.group.queue, id as u32, |known| known.promised = offset);
                    }
                }
                _ => return unexpected(response),
            }
            if self.promises.is_due(self.load) {
                self.publish()?;
            }
        }
        Ok(())
    }

    fn pull(&mut self, id: u32) -> io::Result<()> {
        let opaque = self.client.pull(Pull {
            group: self.group.queue,
            topic: self.group.topic,
            queue_id: id,
            offset: self.offsets[id as usize],
            messages_max: 8,
            suspend: self.load.pause.as_millis() as u64,
        })?;
        self.asked.insert(opaque, Asked::Pull(id));
        Ok(())
    }

    /// Whether the answer has messages.
    fn see(&mut self, id: u32, response: &remoting::Response) -> io::Result<bool> {
        match response.code {
            SUCCESS => {}
            PULL_NOT_FOUND | PULL_RETRY_IMMEDIATELY => return Ok(false),
            _ => return unexpected(response),
        }
        let queue = self.group.queue;
        for record in response.records() {
            let offset = &mut self.offsets[id as usize];
            assert_eq!(
                (record.queue_id, record.queue_offset),
                (id, *offset),
                "offsets have no gaps"
            );
            *offset += 1;
            let before = self.load.offsets(queue, id, |known| {
                let after = known.pulled.max(record.queue_offset + 1);
                std::mem::replace(&mut known.pulled, after)
            });
            self.check_position(record.position, &record.body);
            // Native records carry no mark; who pulls an offset again knows it.
            let redelivered = record.queue_offset < before;
            let seen = self.load.recorder.deliver(queue, id, &record.body, redelivered);
            if let Some(message) = seen {
                self.promises.settle(self.load, message);
            }
        }
        assert_eq!(response.number("nextBeginOffset") as u64, self.offsets[id as usize]);
        Ok(true)
    }

    /// A position never names two records, over all lives.
    fn check_position(&self, position: u64, body: &[u8]) {
        let mut positions = self.load.positions.lock().expect("no panic holds it");
        let known = *positions.entry(position).or_insert(digest(body));
        assert_eq!(known, digest(body), "position {position} names two records");
    }

    fn commit(&mut self, id: u32) -> io::Result<()> {
        let offset = self.offsets[id as usize];
        let Group { queue, topic, .. } = self.group;
        self.load
            .offsets(queue, id, |known| known.asked = known.asked.max(offset));
        let fields = serde_json::json!({
            "consumerGroup": queue, "topic": topic, "queueId": id.to_string(), "commitOffset": offset.to_string(),
        });
        let opaque = self.client.request(remoting::UPDATE_CONSUMER_OFFSET, fields, b"")?;
        self.asked.insert(opaque, Asked::Commit);
        Ok(())
    }

    fn publish(&mut self) -> io::Result<()> {
        let (message, body) = self.load.next_message(self.group.publisher, &mut self.random);
        self.promises.published();
        let opaque = self.client.send(Send {
            topic: self.group.topic,
            tag: if self.group.topic == USERS { "" } else { "group" },
            queue_id: Some((message.sequence % u64::from(MESSAGE_QUEUES)) as u32),
            body: &body,
        })?;
        self.asked.insert(opaque, Asked::Publish(message, self.offsets.clone()));
        Ok(())
    }
}
