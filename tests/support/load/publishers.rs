//! Publishers: bursts of messages, each confirmed before the next burst.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{Duration, Instant};

use super::super::amqp::{self, Amqp};
use super::super::history::{Event, MessageId};
use super::super::mqtt::{self, Connect, Mqtt};
use super::super::random::Random;
use super::super::remoting::{Remoting, SUCCESS, Send};
use super::super::stomp::{Stomp, put_frame, receipt_of};
use super::super::wire::{PATIENCE, timed_out, unexpected};
use super::{Addresses, Load, MESSAGE_QUEUES, USERS};

pub(super) fn amqp_publisher(load: &Load, addresses: &Addresses, publisher: u32, mut random: Random) -> io::Result<()> {
    let mut client = Amqp::connect(addresses.amqp)?;
    client.confirm_select()?;
    let mut pending = Unconfirmed::default();
    while !load.is_stopped() {
        let mut bytes = Vec::new();
        for _ in 0..burst(&mut random) {
            let (message, body) = load.next_message(publisher, &mut random);
            pending.push(message);
            client.put_publish(to_users(&body), &mut bytes);
        }
        client.wire.send(&bytes)?;
        let until = Instant::now() + PATIENCE;
        while !pending.messages.is_empty() {
            match client.next_event(until)? {
                Some(event) => pending.see(load, event)?,
                None => return timed_out("confirm"),
            }
        }
        if let Some(event) = client.next_event(pause(load, &mut random))? {
            return unexpected(event);
        }
    }
    Ok(())
}

pub(super) fn to_users(body: &[u8]) -> amqp::Publish<'_> {
    amqp::Publish {
        exchange: USERS,
        key: "",
        persistent: true,
        mandatory: true,
        body,
    }
}

/// What was published on a channel and is not confirmed.
#[derive(Default)]
pub(super) struct Unconfirmed {
    published: u64,
    pub(super) messages: BTreeMap<u64, MessageId>,
}

impl Unconfirmed {
    pub(super) fn push(&mut self, message: MessageId) {
        self.published += 1;
        self.messages.insert(self.published, message);
    }

    pub(super) fn see(&mut self, load: &Load, event: amqp::Event) -> io::Result<()> {
        let amqp::Event::Confirmed { tag, multiple, ack } = event else {
            return unexpected(event);
        };
        let rest = self.messages.split_off(&(tag + 1));
        let mut told = std::mem::replace(&mut self.messages, rest);
        if !multiple {
            self.messages.append(&mut told);
            let Some(message) = self.messages.remove(&tag) else {
                return unexpected("a second confirm");
            };
            told.insert(tag, message);
        }
        for message in told.into_values() {
            load.recorder.record(if ack {
                Event::Confirmed { message }
            } else {
                Event::Refused { message }
            });
        }
        Ok(())
    }
}

pub(super) fn native_publisher(
    load: &Load,
    addresses: &Addresses,
    publisher: u32,
    topic: &str,
    mut random: Random,
) -> io::Result<()> {
    let mut client = Remoting::connect(addresses.remoting)?;
    let mut pending = HashMap::new();
    while !load.is_stopped() {
        for _ in 0..burst(&mut random) {
            let (message, body) = load.next_message(publisher, &mut random);
            let opaque = client.send(Send {
                topic,
                tag: if topic == USERS { "" } else { "native" },
                queue_id: Some((message.sequence % u64::from(MESSAGE_QUEUES)) as u32),
                body: &body,
            })?;
            pending.insert(opaque, message);
        }
        let until = Instant::now() + PATIENCE;
        while !pending.is_empty() {
            let Some(response) = client.next_response(until)? else {
                return timed_out("answer to a send");
            };
            let Some(message) = pending.remove(&response.opaque) else {
                return unexpected(response);
            };
            match response.code {
                SUCCESS => load.recorder.record(Event::Confirmed { message }),
                _ => return unexpected(response),
            }
        }
        if let Some(response) = client.next_response(pause(load, &mut random))? {
            return unexpected(response);
        }
    }
    Ok(())
}

pub(super) fn mqtt_publisher(
    load: &Load,
    addresses: &Addresses,
    publisher: u32,
    topic: &str,
    mut random: Random,
) -> io::Result<()> {
    let client_id = format!("publisher-{publisher}");
    let mut client = Mqtt::connect(addresses.mqtt, Connect::clean(&client_id))?;
    let mut pending = HashMap::new();
    while !load.is_stopped() {
        let mut bytes = Vec::new();
        for _ in 0..burst(&mut random) {
            let (message, body) = load.next_message(publisher, &mut random);
            let topic = format!("{topic}/{}/cmd", random.below(10));
            pending.insert(client.put_publish(&topic, 1, &body, &mut bytes), message);
        }
        client.wire.send(&bytes)?;
        let until = Instant::now() + PATIENCE;
        while !pending.is_empty() {
            match client.next_event(until)? {
                Some(mqtt::Event::PubAck(packet_id)) => match pending.remove(&packet_id) {
                    Some(message) => load.recorder.record(Event::Confirmed { message }),
                    None => return unexpected("a second PUBACK"),
                },
                Some(event) => return unexpected(event),
                None => return timed_out("PUBACK"),
            }
        }
        if let Some(event) = client.next_event(pause(load, &mut random))? {
            return unexpected(event);
        }
    }
    Ok(())
}

/// Some bursts are transactions, which are there whole or not at all.
pub(super) fn stomp_publisher(
    load: &Load,
    addresses: &Addresses,
    publisher: u32,
    topic: &str,
    mut random: Random,
) -> io::Result<()> {
    let mut client = Stomp::connect(addresses.stomp)?;
    let mut pending = HashMap::new();
    while !load.is_stopped() {
        let mut bytes = Vec::new();
        let transaction: &[_] = if random.once_in(4) {
            &[("transaction", "burst")]
        } else {
            &[]
        };
        if !transaction.is_empty() {
            put_frame("BEGIN", transaction, b"", &mut bytes);
        }
        for _ in 0..burst(&mut random) {
            let (message, body) = load.next_message(publisher, &mut random);
            let destination = if topic == USERS {
                format!("/exchange/{USERS}")
            } else {
                format!("/topic/{topic}.{}.cmd", random.below(10))
            };
            pending.insert(client.put_send(&destination, transaction, &body, &mut bytes), message);
        }
        if !transaction.is_empty() {
            put_frame("COMMIT", transaction, b"", &mut bytes);
        }
        client.wire.send(&bytes)?;
        let until = Instant::now() + PATIENCE;
        while !pending.is_empty() {
            let Some(frame) = client.next_frame(until)? else {
                return timed_out("RECEIPT");
            };
            match receipt_of(&frame).and_then(|receipt| pending.remove(&receipt)) {
                Some(message) => load.recorder.record(Event::Confirmed { message }),
                None => return unexpected(frame),
            }
        }
        if let Some(frame) = client.next_frame(pause(load, &mut random))? {
            return unexpected(frame);
        }
    }
    Ok(())
}

/// How many messages are sent before any is confirmed.
fn burst(random: &mut Random) -> u64 {
    random.between(1, 9)
}

fn pause(load: &Load, random: &mut Random) -> Instant {
    Instant::now() + Duration::from_micros(random.below(load.pause.as_micros() as u64))
}
