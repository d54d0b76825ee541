//! What a client publishes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::attributes::{Attribute, Attributes, AttributesBuilder};
use rocketbridge_core::boundary::{Fate, HolderKey, Outcome, Publish as CorePublish, Reject};
use rocketbridge_core::message::Entry;
use rocketbridge_session::Outbox;

use super::Close;
use super::client::Client;
use crate::codec::properties::{PropertyId, PropertyValue};
use crate::codec::text::{is_sys, level_count};
use crate::codec::{Ack, PacketType, Publish, Version, put_short_ack};
use crate::config::Config;
use crate::mapping::{self, FORMAT, TopicAddress};
use crate::reason_code::ReasonCode;

/// Most publishes and releases of one client that wait for their outcomes; with more it is not heard. A read of the
/// driver of packets that are not tiny: what it holds is flushed together, and seldom has to wait unparsed.
const UNCONFIRMED_MAX: usize = 4096;

/// Size of the pieces that addresses and origins are cut from, bytes.
const SCRATCH_SIZE: usize = 1024;

/// A publish whose PUBACK or PUBREC is not sent, or a release whose PUBCOMP is not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unconfirmed {
    token: u64,
    packet_id: u16,
    /// PUBACK, PUBREC or PUBCOMP.
    answers_with: PacketType,
    answer: Option<ReasonCode>,
}

/// What only clients that publish need.
#[derive(Default)]
pub(super) struct Publishing {
    /// What topic aliases stand for; an empty topic is an alias not set.
    aliases: Vec<Bytes>,
    last_topic: Option<LastTopic>,
    attributes: AttributesBuilder,
    /// What becomes part of publishes is written here and split off.
    scratch: BytesMut,
    /// QoS 1 and 2 publishes whose PUBACK or PUBREC is not sent, in order.
    pub(super) unconfirmed: VecDeque<Unconfirmed>,
    /// QoS 2 publishes whose PUBREL has not come: packet identifier, and whether PUBREC was sent. No more than there
    /// are packet identifiers.
    unreleased: BTreeMap<u16, bool>,
    /// Those whose PUBREC was sent.
    unreleased_answered: usize,
    /// The client did not keep to the receive maximum: it is disconnected once all before that is answered.
    is_exceeded: bool,
}

/// The topic published to last, ready for the next message to it.
struct LastTopic {
    topic: Bytes,
    qos: u8,
    address: TopicAddress,
    /// Without properties.
    origin: Bytes,
}

impl Client {
    fn publishing(&mut self) -> &mut Publishing {
        self.publishing.get_or_insert_default()
    }

    pub(super) fn handle_publish(
        &mut self,
        mut publish: Publish,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Close> {
        self.counted.publishes_in += 1;
        self.counted.payload_bytes_in += publish.payload.len() as u64;
        self.resolve_alias(&mut publish)?;
        if let Some(PropertyValue::Text(b"")) = publish.properties.find(PropertyId::ResponseTopic) {
            // It is a topic name, and those are not empty. (5.0, 3.3.2.3.5) [MQTT-4.7.3-1]
            return Err(ReasonCode::ProtocolError.into());
        }
        if level_count(&publish.topic) > config.topic_levels_max {
            return Err(ReasonCode::TopicNameInvalid.into());
        }
        if publish.qos == 2
            && let Some(is_answered) = self.publishing().unreleased.get(&publish.packet_id).copied()
        {
            // Sent again: it is here already. [MQTT-4.3.3-10]
            if is_answered {
                let (version, packet_id) = (self.is.version, publish.packet_id);
                put_short_ack(out.bytes(), version, PacketType::PubRec, packet_id, ReasonCode::Success);
                self.counted.packets_out += 1;
            }
            return Ok(());
        }
        if publish.qos > 0 && self.exceeds_receive_maximum(config) {
            // What was taken before is answered first: the client would send it again.
            self.publishing().is_exceeded = true;
            return Ok(());
        }
        if is_sys(&publish.topic) {
            // Those topics are the broker's own (4.7.2).
            return self.refuse_publish(&publish, ReasonCode::NotAuthorized, out);
        }
        let token = self.await_outcome(&publish);
        // Where the session is kept, core knows the message when it is sent again over another connection.
        let holder_key = (publish.qos == 2 && self.is.is_kept).then_some(HolderKey::Open(u64::from(publish.packet_id)));
        out.publish(CorePublish {
            holder_key,
            ..self.core_publish(publish, token)
        });
        Ok(())
    }

    /// [MQTT-3.3.4-9]; before 5.0 there is no such promise.
    fn exceeds_receive_maximum(&self, config: &Config) -> bool {
        let open = self
            .publishing
            .as_ref()
            .map_or(0, |all| all.unconfirmed.len() + all.unreleased_answered);
        self.is.version == Version::V5 && open >= usize::from(config.receive_maximum.max(1))
    }

    /// Whether so much of what the client sent waits for core that no more is taken from it. Core always answers, so
    /// this never waits for the client itself.
    pub(super) fn is_full(&self, config: &Config) -> bool {
        let Some(publishing) = self.publishing.as_deref() else {
            return false;
        };
        let limit = match self.is.version {
            // More than it was told is an error, and must be heard to be one.
            Version::V5 => UNCONFIRMED_MAX,
            Version::V31 | Version::V311 => UNCONFIRMED_MAX.min(config.receive_maximum.max(1).into()),
        };
        publishing.is_exceeded || publishing.unconfirmed.len() >= limit
    }

    /// The client sent more than the receive maximum, and all before that is answered.
    pub(super) fn is_to_end(&self) -> bool {
        let publishing = self.publishing.as_deref();
        publishing.is_some_and(|all| all.is_exceeded && all.unconfirmed.is_empty())
    }

    /// The token of a publish, whose outcome becomes an answer when its QoS wants one.
    fn await_outcome(&mut self, publish: &Publish) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        if publish.qos > 0 {
            self.publishing().unconfirmed.push_back(Unconfirmed {
                token,
                packet_id: publish.packet_id,
                answers_with: if publish.qos == 2 {
                    PacketType::PubRec
                } else {
                    PacketType::PubAck
                },
                answer: None,
            });
        }
        if publish.qos == 2 {
            self.publishing().unreleased.insert(publish.packet_id, false);
        }
        token
    }

    /// Answers a publish without asking core. Before 5.0 a refusal has no words: it is as if it had been
    /// taken. [MQTT-3.3.5-2]
    fn refuse_publish(&mut self, publish: &Publish, reason: ReasonCode, out: &mut Outbox) -> Result<(), Close> {
        let reason = match self.is.version {
            Version::V5 => reason,
            Version::V31 | Version::V311 => ReasonCode::Success,
        };
        if publish.qos > 0 {
            // The token is never published; it only keeps the order of the answers.
            let token = self.await_outcome(publish);
            self.answer(token..token + 1, reason);
            self.send_answers(out);
        }
        Ok(())
    }

    /// Core has taken no publishes for too long: what waits is answered with 0x97, or dropped if its QoS wants
    /// no answer.
    pub(super) fn withdraw_publishes(&mut self, out: &mut Outbox) {
        for publish in out.withdraw_publishes() {
            let unconfirmed = &self.publishing().unconfirmed;
            let index = unconfirmed.partition_point(|waiting| waiting.token < publish.token);
            if unconfirmed
                .get(index)
                .is_some_and(|waiting| waiting.token == publish.token)
            {
                self.answer(publish.token..publish.token + 1, ReasonCode::QuotaExceeded);
            } else {
                self.counted.dropped += 1;
            }
        }
        self.send_answers(out);
    }

    fn core_publish(&mut self, publish: Publish, token: u64) -> CorePublish {
        let properties = &publish.properties;
        let Publishing {
            last_topic: last,
            attributes,
            scratch,
            ..
        } = self.publishing.get_or_insert_default().as_mut();
        mapping::put_attributes(properties, attributes);
        let last = last_topic(last, scratch, self.is.version, &publish, &self.is.client_id);
        if last.address.is_cut {
            attributes.text(Attribute::Topic, mapping::raw_name(&last.topic));
        }
        let origin = if properties.as_bytes().is_empty() {
            last.origin.clone()
        } else {
            reserve(scratch, last.origin.len() + properties.as_bytes().len());
            scratch.extend_from_slice(&last.origin);
            mapping::put_forwarded(scratch, properties);
            scratch.split().freeze()
        };
        let attributes = if properties.as_bytes().is_empty() && !last.address.is_cut {
            Attributes::EMPTY
        } else {
            attributes.finish()
        };
        CorePublish {
            token,
            entry: last.address.entry,
            topic: last.address.name.clone(),
            key: last.address.key.clone(),
            body: publish.payload,
            attributes,
            format: FORMAT,
            origin,
            persistent: publish.qos > 0,
            // A queue has no last value.
            retain: publish.retain && last.address.entry == Entry::Topic,
            // Only 5.0 can say no to a publish, and only to one that is answered.
            waits: self.is.version != Version::V5 || publish.qos == 0,
            ..CorePublish::default()
        }
    }

    /// Puts the topic in the place of its alias, or remembers it under that. (5.0, 3.3.2.3.4)
    fn resolve_alias(&mut self, publish: &mut Publish) -> Result<(), Close> {
        let Some(alias) = publish.properties.number(PropertyId::TopicAlias) else {
            return Ok(());
        };
        if alias == 0 || alias > u32::from(self.is.topic_alias_maximum) {
            return Err(ReasonCode::TopicAliasInvalid.into());
        }
        let index = alias as usize - 1;
        let aliases = &mut self.publishing().aliases;
        if publish.topic.is_empty() {
            publish.topic = match aliases.get(index) {
                Some(topic) if !topic.is_empty() => topic.clone(),
                _ => return Err(ReasonCode::ProtocolError.into()),
            };
            return Ok(());
        }
        if aliases.len() <= index {
            aliases.resize(index + 1, Bytes::new());
        }
        if aliases[index] != publish.topic {
            aliases[index] = Bytes::copy_from_slice(&publish.topic);
        }
        Ok(())
    }

    /// What became of publishes is answered, in the order of the publishes. [MQTT-4.6.0-2, MQTT-4.6.0-3]
    pub(super) fn handle_outcome(&mut self, outcome: Outcome, out: &mut Outbox) -> Result<(), Close> {
        let tokens = outcome.first..outcome.first + u64::from(outcome.count);
        let unconfirmed = &self.publishing().unconfirmed;
        let start = unconfirmed.partition_point(|publish| publish.token < tokens.start);
        let is_due = unconfirmed.get(start).is_some_and(|publish| publish.token < tokens.end);
        if !is_due {
            return Ok(());
        }
        let Some(reason) = ReasonCode::of_fate(&outcome.fate) else {
            // Without an answer the client sends them again when it is back.
            return Err(match outcome.fate {
                Fate::Rejected(Reject::Closed) => ReasonCode::ServerShuttingDown.into(),
                _ => ReasonCode::UnspecifiedError.into(),
            });
        };
        // Before 5.0 a refusal has no other words. [MQTT-3.3.5-2]
        if reason.is_failure() && self.is.version < Version::V5 {
            return Err(Close::Silently);
        }
        self.answer(tokens, reason);
        self.send_answers(out);
        Ok(())
    }

    fn answer(&mut self, tokens: Range<u64>, reason: ReasonCode) {
        let unconfirmed = &mut self.publishing().unconfirmed;
        let start = unconfirmed.partition_point(|publish| publish.token < tokens.start);
        unconfirmed
            .range_mut(start..)
            .take_while(|publish| publish.token < tokens.end)
            .for_each(|publish| publish.answer = Some(reason));
    }

    fn send_answers(&mut self, out: &mut Outbox) {
        let Publishing {
            unconfirmed,
            unreleased,
            unreleased_answered,
            ..
        } = self.publishing.get_or_insert_default().as_mut();
        while let Some(Unconfirmed {
            packet_id,
            answers_with,
            answer: Some(reason),
            ..
        }) = unconfirmed.front().copied()
        {
            unconfirmed.pop_front();
            let reason = match answers_with {
                // The server may say so (5.0, 3.5.2.1); like Mosquitto it says it in PUBACK only. An identifier
                // that nobody knows is answered likewise, so that the exchange ends.
                PacketType::PubRec | PacketType::PubComp if !reason.is_failure() => ReasonCode::Success,
                _ => reason,
            };
            put_short_ack(out.bytes(), self.is.version, answers_with, packet_id, reason);
            self.counted.packets_out += 1;
            if answers_with != PacketType::PubRec {
                continue;
            }
            if reason.is_failure() {
                // The exchange is over. [MQTT-4.3.3-9]
                *unreleased_answered -= usize::from(unreleased.remove(&packet_id) == Some(true));
            } else if let Some(is_answered) = unreleased.get_mut(&packet_id) {
                *unreleased_answered += usize::from(!*is_answered);
                *is_answered = true;
            }
        }
    }

    /// Ends the client's QoS 2 exchange: the identifier may be used for another message. [MQTT-4.3.3-12]
    ///
    /// Where the session is kept, core knows the identifier too, and PUBCOMP waits until it has safely forgotten
    /// it: a new message under the same identifier must not be taken for the old one.
    pub(super) fn handle_pubrel(&mut self, ack: &Ack, out: &mut Outbox) {
        let publishing = self.publishing();
        let was_answered = publishing.unreleased.remove(&ack.packet_id) == Some(true);
        publishing.unreleased_answered -= usize::from(was_answered);
        if !self.is.is_kept {
            let reason = ReasonCode::Success;
            put_short_ack(out.bytes(), self.is.version, PacketType::PubComp, ack.packet_id, reason);
            self.counted.packets_out += 1;
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        self.publishing().unconfirmed.push_back(Unconfirmed {
            token,
            packet_id: ack.packet_id,
            answers_with: PacketType::PubComp,
            answer: None,
        });
        out.publish(CorePublish {
            token,
            holder_key: Some(HolderKey::Close(u64::from(ack.packet_id))),
            waits: true,
            ..CorePublish::default()
        });
    }
}

fn last_topic<'a>(
    last: &'a mut Option<LastTopic>,
    scratch: &mut BytesMut,
    version: Version,
    publish: &Publish,
    client_id: &[u8],
) -> &'a LastTopic {
    let is_same = last
        .as_ref()
        .is_some_and(|last| last.qos == publish.qos && last.topic == publish.topic);
    if !is_same {
        reserve(scratch, 2 * publish.topic.len() + client_id.len() + 64);
        mapping::put_origin(scratch, version, publish.qos, &publish.topic, client_id);
        let origin = scratch.split().freeze();
        // Cut from the origin, not from the packet: what is remembered must not hold the read buffer.
        let topic = origin.slice(4..4 + publish.topic.len());
        let address = mapping::address_of(&topic, scratch);
        *last = Some(LastTopic {
            topic,
            qos: publish.qos,
            address,
            origin,
        });
    }
    last.as_ref().expect("set above")
}

/// Small pieces are cut from larger ones, so that not each message costs an allocation.
fn reserve(scratch: &mut BytesMut, wanted: usize) {
    if scratch.capacity() < wanted {
        scratch.reserve(wanted.max(SCRATCH_SIZE));
    }
}
