//! What a client gets.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::boundary::Delivery;
use rocketbridge_core::message::Message;
use rocketbridge_core::request::Request;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Cursor, Outbox};

use super::Close;
use super::client::{Client, settled};
use super::connect::SUBSCRIPTION;
use super::note::Note;
use super::subscribe::Asked;
use crate::codec::properties::PropertyId;
use crate::codec::{PacketType, Version, publish_flags, put_bytes16, put_fixed_header, put_variable, variable_len};
use crate::inflight::{Flight, Step, packet_id_of};
use crate::mapping::{FORMAT, Origin, put_foreign_properties, put_topic, seconds_left, split_expiry};
use crate::reason_code::ReasonCode;
use crate::subscriptions::Matched;

/// Length of a topic alias property.
const ALIAS_LEN: usize = 3;
/// Length of a message expiry property.
const EXPIRY_LEN: usize = 5;

/// How one message is delivered.
struct Terms {
    qos: u8,
    retain: bool,
    /// Subscription identifiers, as encoded properties.
    identifiers: Bytes,
}

impl Client {
    /// Sends a delivery, or lets it wait while the client has as many messages in flight as it accepts. Core
    /// keeps to that for the session's own queue; shared subscriptions add to it.
    pub(super) fn deliver(&mut self, now: Now, delivery: Delivery, out: &mut Outbox) -> Result<(), Close> {
        if self.may_resend && delivery.leased && !delivery.redelivered && delivery.subscription == SUBSCRIPTION {
            // What was sent over earlier connections comes first.
            self.may_resend = false;
            self.earlier = None;
        }
        if delivery.leased && (!self.waiting.is_empty() || self.in_flight.len() >= usize::from(self.is.window)) {
            self.waiting.push_back(delivery);
            return Ok(());
        }
        self.send(now, &delivery, out)
    }

    /// Sends what waited, as far as there is room for it.
    pub(super) fn deliver_waiting(&mut self, now: Now, out: &mut Outbox) -> Result<(), Close> {
        while self.in_flight.len() < usize::from(self.is.window)
            && let Some(delivery) = self.waiting.pop_front()
        {
            self.send(now, &delivery, out)?;
        }
        Ok(())
    }

    /// Appends the PUBLISH of a delivery; what the client cannot get is done with.
    fn send(&mut self, now: Now, delivery: &Delivery, out: &mut Outbox) -> Result<(), Close> {
        if !delivery.leased && self.send_common(delivery, out) {
            return Ok(());
        }
        let note = Note::of(delivery.note);
        if note.is_received
            && let Some(packet_id) = note.packet_id
        {
            return self.release(delivery, packet_id, out);
        }
        let message = &delivery.message;
        let (format, header) = message.origin();
        let origin = (format == FORMAT).then(|| Origin::parse(header)).flatten();
        let waited = Millis(now.wall.0.saturating_sub(message.stored_at().0));
        // Its buffer is lent to the packet for a while.
        let mut foreign = std::mem::take(&mut self.foreign);
        foreign.clear();
        let result = match &origin {
            Some(origin) => self.send_publish(delivery, waited, origin, out),
            None if put_topic(message, &mut foreign) => {
                let topic_len = foreign.len();
                if self.is.version == Version::V5 {
                    put_foreign_properties(message, waited, &mut foreign);
                }
                let (topic, properties) = foreign.split_at(topic_len);
                let origin = Origin {
                    version: 0,
                    qos: u8::from(message.is_persistent()),
                    topic,
                    client_id: b"",
                    properties,
                };
                self.send_publish(delivery, Millis(0), &origin, out)
            }
            None => self.done(delivery, out),
        };
        self.foreign = foreign;
        result
    }

    /// Sends what all clients of this version get with QoS 0, which is encoded once for all of them; `false` when this
    /// one gets something else.
    fn send_common(&mut self, delivery: &Delivery, out: &mut Outbox) -> bool {
        if delivery.recalled || self.is.outgoing_alias_maximum > 0 || self.member(delivery.subscription).is_some() {
            return false;
        }
        let version = self.is.version;
        let form = usize::from(version == Version::V5);
        let Some(packet) = delivery.message.form(form, |message| common_packet(message, version)) else {
            return false;
        };
        let Some(topic) = topic_of(packet) else { return false };
        let matched = self.subscriptions.matched(topic);
        let is_common = matched.qos.is_some()
            && !matched.no_local
            && matched.identifiers.is_empty()
            && !(matched.retain_as_published && delivery.message.is_retained())
            && packet.len() <= self.is.packet_size_max as usize;
        if is_common {
            out.body(packet, || packet.clone());
            self.counted.publishes_out += 1;
            self.counted.payload_bytes_out += delivery.message.body().len() as u64;
        }
        is_common
    }

    /// The client has the message since an earlier connection: the exchange goes on. [MQTT-4.4.0-1]
    fn release(&mut self, delivery: &Delivery, packet_id: u16, out: &mut Outbox) -> Result<(), Close> {
        let flight = Flight {
            subscription: delivery.subscription,
            sequence: delivery.sequence,
            step: Step::Released,
            is_qos_noted: true,
        };
        if self.in_flight.insert(Some(packet_id), flight) != Some(packet_id) {
            return Err(ReasonCode::UnspecifiedError.into());
        }
        put_fixed_header(out.bytes(), PacketType::PubRel.first_byte(), 2);
        out.bytes().put_u16(packet_id);
        self.counted.packets_out += 1;
        Ok(())
    }

    fn send_publish(
        &mut self,
        delivery: &Delivery,
        waited: Millis,
        origin: &Origin<'_>,
        out: &mut Outbox,
    ) -> Result<(), Close> {
        let Some(Terms {
            qos,
            retain,
            identifiers,
        }) = self.terms(delivery, origin)
        else {
            return self.done(delivery, out);
        };
        let is_v5 = self.is.version == Version::V5;
        let (expiry, properties) = split_expiry(origin.properties);
        let expiry = match expiry.map(|seconds| seconds_left(Millis::from_secs(seconds.into()), waited)) {
            None => None,
            Some(Some(left)) => Some(left),
            // Expired on its way.
            Some(None) => {
                self.counted.dropped += 1;
                return self.done(delivery, out);
            }
        };
        let payload = delivery.message.payload();
        let body = &payload[..];
        let fixed_len = 2 + usize::from(qos > 0) * 2 + body.len();
        let plain_properties_len = identifiers.len() + expiry.map_or(0, |_| EXPIRY_LEN) + properties.len();
        // Topic, length of the properties, remaining length and size of the packet.
        let lay_out = |alias: Option<(u16, bool)>| {
            let topic = match alias {
                Some((_, true)) => b"",
                _ => origin.topic,
            };
            let properties_len = plain_properties_len + alias.map_or(0, |_| ALIAS_LEN);
            let mut remaining = fixed_len + topic.len();
            if is_v5 {
                remaining += variable_len(properties_len as u32) + properties_len;
            }
            (
                topic,
                properties_len,
                remaining,
                1 + variable_len(remaining as u32) + remaining,
            )
        };
        let size_max = self.is.packet_size_max as usize;
        let mut alias = if is_v5 { self.alias_of(origin.topic) } else { None };
        let (mut topic, mut properties_len, mut remaining, mut size) = lay_out(alias);
        if size > size_max && alias.is_some() {
            // It may fit without: an alias is longer than the shortest topics, and one that is told comes on top.
            alias = None;
            (topic, properties_len, remaining, size) = lay_out(alias);
        }
        if size > size_max {
            // [MQTT-3.1.2-25]
            tracing::debug!(client_id = %self.is.client_id.escape_ascii(), size, "message larger than the client accepts");
            self.counted.dropped += 1;
            return self.done(delivery, out);
        }
        let bytes = out.bytes();
        bytes.reserve(size - body.len());
        // What comes back to a shared queue was sent to somebody else, or under another identifier. (3.3.1.1)
        let is_dup = qos > 0 && is_resent(delivery);
        let flags = publish_flags(is_dup, qos, retain);
        put_fixed_header(bytes, PacketType::Publish.first_byte() | flags, remaining);
        put_bytes16(bytes, topic);
        let id_at = bytes.len();
        if qos > 0 {
            bytes.put_u16(0);
        }
        if is_v5 {
            put_variable(bytes, properties_len as u32);
            bytes.put_slice(&identifiers);
            if let Some((alias, _)) = alias {
                bytes.put_u8(PropertyId::TopicAlias as u8);
                bytes.put_u16(alias);
            }
            if let Some(seconds) = expiry {
                bytes.put_u8(PropertyId::MessageExpiry as u8);
                bytes.put_u32(seconds);
            }
            bytes.put_slice(properties);
        }
        if qos > 0 {
            // Core keeps to a window below 65,535.
            let packet_id = self
                .begin_flight(delivery, qos, out)
                .ok_or(ReasonCode::UnspecifiedError)?;
            out.bytes()[id_at..id_at + 2].copy_from_slice(&packet_id.to_be_bytes());
        }
        out.body(body, || payload.share());
        if let Some((alias, false)) = alias {
            let aliases = self.outgoing_aliases.get_or_insert_default();
            aliases.insert(origin.topic.into(), alias);
        }
        self.counted.publishes_out += 1;
        self.counted.payload_bytes_out += body.len() as u64;
        if qos == 0 {
            return self.done(delivery, out);
        }
        Ok(())
    }

    /// How a message is delivered; `None` when no subscription wants it any more.
    fn terms(&mut self, delivery: &Delivery, origin: &Origin<'_>) -> Option<Terms> {
        let matched = match self.member(delivery.subscription) {
            Some(member) => Matched::of(member.subscription),
            None => self
                .subscriptions
                .matched_from(origin.topic, origin.client_id, &self.is.client_id),
        };
        // What was begun is completed even when the subscription is gone. [MQTT-3.10.4-3]
        let begun = (delivery.redelivered && delivery.leased).then_some(2);
        // And as it was begun, whatever was subscribed to since. [MQTT-4.4.0-1]
        let sent = Note::of(delivery.note).qos.or_else(|| {
            let earlier = self.earlier.as_mut().filter(|_| is_resent(delivery))?;
            let matched = earlier.matched_from(origin.topic, origin.client_id, &self.is.client_id);
            matched.qos.filter(|qos| *qos > 0)
        });
        let granted = sent.or(matched.qos).or(begun)?;
        Some(Terms {
            // Core leases exactly what was published with QoS 1 or its like. [MQTT-3.8.4-8]
            qos: if delivery.leased {
                granted.min(origin.qos.max(1))
            } else {
                0
            },
            retain: delivery.recalled || matched.retain_as_published && delivery.message.is_retained(),
            identifiers: matched.identifiers,
        })
    }

    /// The alias of a topic, and whether the client knows it; `None` when there is no room for one.
    fn alias_of(&self, topic: &[u8]) -> Option<(u16, bool)> {
        if self.is.outgoing_alias_maximum == 0 {
            return None;
        }
        let aliases = self.outgoing_aliases.as_ref();
        if let Some(alias) = aliases.and_then(|aliases| aliases.get(topic)) {
            return Some((*alias, true));
        }
        let next = aliases.map_or(0, |aliases| aliases.len()) as u16 + 1;
        (next <= self.is.outgoing_alias_maximum).then_some((next, false))
    }

    /// Gives a message the packet identifier that it has, or had on an earlier connection.
    fn begin_flight(&mut self, delivery: &Delivery, qos: u8, out: &mut Outbox) -> Option<u16> {
        let is_own_queue = delivery.subscription == SUBSCRIPTION;
        let usual = is_own_queue.then(|| packet_id_of(delivery.sequence));
        let note = Note::of(delivery.note);
        let wanted = note.packet_id.or(usual);
        let flight = Flight {
            subscription: delivery.subscription,
            sequence: delivery.sequence,
            step: if qos == 2 { Step::Published2 } else { Step::Published1 },
            is_qos_noted: note.qos.is_some(),
        };
        let packet_id = self.in_flight.insert(wanted, flight)?;
        // Another than its sequence says, or a QoS than the subscriptions say: found again after a reconnect.
        let is_other = Some(packet_id) != wanted || note.qos.is_none() && self.earlier.is_some() && is_resent(delivery);
        if is_own_queue && is_other && self.is.keep > Millis(0) {
            if let Some(flight) = self.in_flight.get_mut(packet_id) {
                flight.is_qos_noted = true;
            }
            let notes = vec![(delivery.sequence, Note::sent(packet_id, qos))];
            let request = Request::Note {
                subscription: SUBSCRIPTION,
                notes,
            };
            self.ask(Asked::Other, request, out);
        }
        Some(packet_id)
    }

    fn done(&self, delivery: &Delivery, out: &mut Outbox) -> Result<(), Close> {
        if delivery.leased {
            out.settle(settled(delivery.subscription, delivery.sequence));
        }
        Ok(())
    }
}

/// Whether it is of the session's own queue, and may have been sent over an earlier connection.
fn is_resent(delivery: &Delivery) -> bool {
    delivery.redelivered && delivery.leased && delivery.subscription == SUBSCRIPTION
}

/// The PUBLISH that clients of that version get with QoS 0 unless there is more to say to one of them; empty when what
/// they get depends on the time.
fn common_packet(message: &Message, version: Version) -> Bytes {
    let (format, header) = message.origin();
    let Some(origin) = (format == FORMAT).then(|| Origin::parse(header)).flatten() else {
        return Bytes::new();
    };
    let is_v5 = version == Version::V5;
    if split_expiry(origin.properties).0.is_some() {
        return Bytes::new();
    }
    let payload = message.payload();
    let mut remaining = 2 + origin.topic.len() + payload.len();
    if is_v5 {
        remaining += variable_len(origin.properties.len() as u32) + origin.properties.len();
    }
    let mut packet = BytesMut::with_capacity(1 + variable_len(remaining as u32) + remaining);
    let first_byte = PacketType::Publish.first_byte() | publish_flags(false, 0, false);
    put_fixed_header(&mut packet, first_byte, remaining);
    put_bytes16(&mut packet, origin.topic);
    if is_v5 {
        put_variable(&mut packet, origin.properties.len() as u32);
        packet.put_slice(origin.properties);
    }
    packet.put_slice(&payload);
    packet.freeze()
}

/// The topic in a PUBLISH of our own.
fn topic_of(packet: &[u8]) -> Option<&[u8]> {
    let length = packet.get(1..)?.iter().position(|byte| *byte < 0x80)? + 1;
    Cursor::new(&packet[1 + length..]).bytes16().ok()
}
