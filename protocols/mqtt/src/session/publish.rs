//! What a client publishes.

use bytes::{Bytes, BytesMut};
use rocketbridge_core::attributes::{Attribute, Attributes};
use rocketbridge_core::boundary::{Fate, Outcome, Publish as CorePublish, Reject};
use rocketbridge_core::message::Entry;
use rocketbridge_session::Outbox;

use super::Close;
use super::client::Client;
use crate::codec::properties::PropertyId;
use crate::codec::text::{LEVEL, level_count};
use crate::codec::{PacketType, Publish, Version, put_short_ack};
use crate::config::Config;
use crate::mapping::{self, FORMAT, TopicAddress};
use crate::reason_code::ReasonCode;

/// Size of the pieces that addresses and origins are cut from, bytes.
const SCRATCH_SIZE: usize = 1024;

/// A QoS 1 publish whose PUBACK is not sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unconfirmed {
    token: u64,
    packet_id: u16,
    answer: Option<ReasonCode>,
}

/// The topic published to last, ready for the next message to it.
pub(super) struct LastTopic {
    topic: Bytes,
    qos: u8,
    address: TopicAddress,
    /// Without properties.
    origin: Bytes,
}

impl Client {
    pub(super) fn handle_publish(
        &mut self,
        mut publish: Publish,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Close> {
        if publish.retain {
            return Err(ReasonCode::RetainNotSupported.into());
        }
        if publish.qos > 1 {
            return Err(ReasonCode::QosNotSupported.into());
        }
        // [MQTT-3.3.4-9]; before 5.0 there is no such promise, and reading stops instead.
        let is_v5 = self.is.version == Version::V5;
        if publish.qos > 0 && is_v5 && self.unconfirmed.len() >= usize::from(config.receive_maximum.max(1)) {
            return Err(ReasonCode::ReceiveMaximumExceeded.into());
        }
        self.resolve_alias(&mut publish)?;
        if level_count(&publish.topic) > config.topic_levels_max {
            return Err(ReasonCode::TopicNameInvalid.into());
        }
        let token = self.next_token;
        self.next_token += 1;
        if publish.qos > 0 {
            self.unconfirmed.push_back(Unconfirmed {
                token,
                packet_id: publish.packet_id,
                answer: None,
            });
        }
        out.publish(self.core_publish(publish, token));
        Ok(())
    }

    fn core_publish(&mut self, publish: Publish, token: u64) -> CorePublish {
        let properties = &publish.properties;
        mapping::put_attributes(properties, &mut self.attributes);
        let last = last_topic(
            &mut self.last_topic,
            &mut self.scratch,
            self.is.version,
            &publish,
            &self.is.client_id,
        );
        if last.address.is_cut {
            let end = last.topic.iter().position(|b| *b == LEVEL);
            let first = &last.topic[..end.unwrap_or(last.topic.len())];
            self.attributes.text(Attribute::Topic, first);
        }
        let origin = if properties.as_bytes().is_empty() {
            last.origin.clone()
        } else {
            reserve(&mut self.scratch, last.origin.len() + properties.as_bytes().len());
            self.scratch.extend_from_slice(&last.origin);
            mapping::put_forwarded(&mut self.scratch, properties);
            self.scratch.split().freeze()
        };
        let attributes = if properties.as_bytes().is_empty() && !last.address.is_cut {
            Attributes::EMPTY
        } else {
            self.attributes.finish()
        };
        CorePublish {
            token,
            entry: Entry::Topic,
            topic: last.address.name.clone(),
            key: last.address.key.clone(),
            body: publish.payload,
            attributes,
            format: FORMAT,
            origin,
            persistent: publish.qos > 0,
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
        if publish.topic.is_empty() {
            publish.topic = match self.aliases.get(index) {
                Some(topic) if !topic.is_empty() => topic.clone(),
                _ => return Err(ReasonCode::ProtocolError.into()),
            };
            return Ok(());
        }
        if self.aliases.len() <= index {
            self.aliases.resize(index + 1, Bytes::new());
        }
        if self.aliases[index] != publish.topic {
            self.aliases[index] = Bytes::copy_from_slice(&publish.topic);
        }
        Ok(())
    }

    /// Sends the PUBACKs that are due, in the order of the publishes. [MQTT-4.6.0-2]
    pub(super) fn handle_outcome(&mut self, outcome: Outcome, out: &mut Outbox) -> Result<(), Close> {
        let end = outcome.first + u64::from(outcome.count);
        let start = self
            .unconfirmed
            .partition_point(|publish| publish.token < outcome.first);
        let mut due = self
            .unconfirmed
            .range_mut(start..)
            .take_while(|publish| publish.token < end)
            .peekable();
        if due.peek().is_none() {
            return Ok(());
        }
        let Some(reason) = ReasonCode::of_fate(&outcome.fate) else {
            // Without a PUBACK the client sends them again when it is back.
            return Err(match outcome.fate {
                Fate::Rejected(Reject::Closed) => ReasonCode::ServerShuttingDown.into(),
                _ => ReasonCode::UnspecifiedError.into(),
            });
        };
        // Before 5.0 a refusal has no other words. [MQTT-3.3.5-2]
        if reason.is_failure() && self.is.version < Version::V5 {
            return Err(Close::Silently);
        }
        due.for_each(|publish| publish.answer = Some(reason));
        while let Some(Unconfirmed {
            packet_id,
            answer: Some(reason),
            ..
        }) = self.unconfirmed.front().copied()
        {
            put_short_ack(out.bytes(), self.is.version, PacketType::PubAck, packet_id, reason);
            self.unconfirmed.pop_front();
        }
        Ok(())
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
