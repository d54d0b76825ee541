//! A connected client.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::attributes::AttributesBuilder;
use rocketbridge_core::boundary::{Settle, Settlement};
use rocketbridge_core::request::Request;
use rocketbridge_core::time::Millis;
use rocketbridge_session::Outbox;

use super::Close;
use super::connect::{FIRST_REQUEST, SUBSCRIPTION, keep_alive_span, keep_of};
use super::publish::{LastTopic, Unconfirmed};
use super::subscribe::{Asked, PendingAck};
use crate::codec::properties::PropertyId;
use crate::codec::{Ack, Disconnect, Packet, PacketType, Version, put_fixed_header, put_short_ack};
use crate::config::Config;
use crate::inflight::InFlight;
use crate::mapping::queue_of;
use crate::reason_code::ReasonCode;
use crate::subscriptions::{Subscription, Subscriptions};

/// What is settled when a client is connected.
pub(super) struct Connected {
    pub version: Version,
    pub client_id: Bytes,
    /// Seconds, 0 for off.
    pub keep_alive: u16,
    /// Largest packet that the client accepts, bytes.
    pub packet_size_max: u32,
    /// Most topic aliases that the client was told of.
    pub topic_alias_maximum: u16,
    /// The session outlives the connection.
    pub has_expiry: bool,
}

/// The state of a connected client.
pub(super) struct Client {
    pub(super) is: Connected,
    /// The name of its session's queue.
    pub(super) queue: Bytes,
    pub(super) subscriptions: Subscriptions,
    pub(super) in_flight: InFlight,
    /// What topic aliases stand for; an empty topic is an alias not set.
    pub(super) aliases: Vec<Bytes>,
    pub(super) last_topic: Option<LastTopic>,
    pub(super) attributes: AttributesBuilder,
    /// What becomes part of publishes is written here and split off.
    pub(super) scratch: BytesMut,
    /// Topic and properties of a delivery from another protocol.
    pub(super) foreign: BytesMut,
    pub(super) next_token: u64,
    /// QoS 1 publishes whose PUBACK is not sent, in order.
    pub(super) unconfirmed: VecDeque<Unconfirmed>,
    pub(super) next_request: u64,
    /// What core has not answered, in order.
    pub(super) asked: VecDeque<Asked>,
    /// SUBACKs and UNSUBACKs not sent, in order.
    pub(super) acks: VecDeque<PendingAck>,
}

impl Client {
    pub(super) fn new(is: Connected) -> Self {
        Self {
            queue: queue_of(&is.client_id),
            is,
            subscriptions: Subscriptions::default(),
            in_flight: InFlight::default(),
            aliases: Vec::new(),
            last_topic: None,
            attributes: AttributesBuilder::default(),
            scratch: BytesMut::new(),
            foreign: BytesMut::new(),
            next_token: 0,
            unconfirmed: VecDeque::new(),
            next_request: FIRST_REQUEST,
            asked: VecDeque::new(),
            acks: VecDeque::new(),
        }
    }

    /// Learns the subscriptions of a session that was there already.
    pub(super) fn resume(&mut self, cookies: &[Bytes]) {
        for cookie in cookies {
            if let Some((subscription, filter)) = Subscription::from_cookie(cookie) {
                self.subscriptions.insert(filter, subscription);
            }
        }
    }

    pub(super) fn id(&self) -> &[u8] {
        &self.is.client_id
    }

    pub(super) fn version(&self) -> Version {
        self.is.version
    }

    pub(super) fn keep_alive(&self) -> Option<Millis> {
        keep_alive_span(self.is.keep_alive)
    }

    pub(super) fn wants_read(&self, config: &Config) -> bool {
        // A 5.0 client keeps to the receive maximum by itself, and must still be heard then.
        let has_room =
            self.is.version == Version::V5 || self.unconfirmed.len() < usize::from(config.receive_maximum.max(1));
        has_room && self.asked.len() < Asked::READ_MAX
    }

    /// Everything that came is handled: gives memory back that an idle client does not need.
    pub(super) fn rest(&mut self) {
        const KEPT_MAX: usize = 4096;
        if self.foreign.capacity() > KEPT_MAX {
            self.foreign = BytesMut::new();
        }
    }

    pub(super) fn handle_packet(&mut self, packet: Packet, config: &Config, out: &mut Outbox) -> Result<(), Close> {
        match packet {
            Packet::Publish(publish) => self.handle_publish(publish, config, out),
            Packet::PubAck(ack) => {
                self.handle_puback(&ack, out);
                Ok(())
            }
            Packet::PubRec(ack) => self.handle_pubrec(&ack, out),
            Packet::PubRel(ack) => {
                // QoS 2 is refused, so nothing is kept under that identifier: the exchange is over.
                let reason = ReasonCode::Success;
                put_short_ack(out.bytes(), self.is.version, PacketType::PubComp, ack.packet_id, reason);
                Ok(())
            }
            Packet::PubComp(ack) => self.refuse_if_in_flight(&ack),
            Packet::Subscribe(subscribe) => self.handle_subscribe(&subscribe, config, out),
            Packet::Unsubscribe(unsubscribe) => self.handle_unsubscribe(&unsubscribe, out),
            Packet::PingReq => {
                put_fixed_header(out.bytes(), PacketType::PingResp.first_byte(), 0);
                Ok(())
            }
            Packet::Disconnect(disconnect) => Err(self.handle_disconnect(&disconnect, config, out)),
            // No authentication method was agreed on (5.0, 4.12); the decoder refuses the others.
            Packet::Auth(_)
            | Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => Err(ReasonCode::ProtocolError.into()),
        }
    }

    /// An identifier that is not in flight is ignored: it may be of an earlier connection.
    fn handle_puback(&mut self, ack: &Ack, out: &mut Outbox) {
        // A failure is final too: the client must not get it again. [MQTT-4.4.0-2]
        if let Some(sequence) = self.in_flight.remove(ack.packet_id) {
            out.settle(settled(sequence));
        }
    }

    /// Answers a PUBREC of nobody knows what, so that the exchange ends.
    fn handle_pubrec(&mut self, ack: &Ack, out: &mut Outbox) -> Result<(), Close> {
        self.refuse_if_in_flight(ack)?;
        if !ack.reason.is_failure() {
            out.bytes().put_u8(PacketType::PubRel.first_byte());
            out.bytes().put_u8(2);
            out.bytes().put_u16(ack.packet_id);
        }
        Ok(())
    }

    /// What is in flight is QoS 1, and only PUBACK answers that. [MQTT-4.3.2-3]
    fn refuse_if_in_flight(&self, ack: &Ack) -> Result<(), Close> {
        match self.in_flight.find(ack.packet_id) {
            Some(_) => Err(ReasonCode::ProtocolError.into()),
            None => Ok(()),
        }
    }

    fn handle_disconnect(&mut self, disconnect: &Disconnect, config: &Config, out: &mut Outbox) -> Close {
        if let Some(seconds) = disconnect.properties.number(PropertyId::SessionExpiry) {
            // 5.0, 3.14.2.2.2: a session that was to end cannot be kept after all.
            if seconds > 0 && !self.is.has_expiry {
                return ReasonCode::ProtocolError.into();
            }
            let keep = keep_of(seconds, config);
            let id = self.next_request_id();
            out.request(id, Request::Detach { keep, keep_will: true });
        }
        Close::Silently
    }
}

/// The settlement of one delivery that is done with.
pub(super) fn settled(sequence: u64) -> Settlement {
    Settlement {
        subscription: SUBSCRIPTION,
        first: sequence,
        count: 1,
        action: Settle::Ack,
    }
}
