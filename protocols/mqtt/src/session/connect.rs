//! From CONNECT to CONNACK.

use std::sync::atomic::Ordering::Relaxed;

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::attributes::{Attribute, AttributesBuilder};
use rocketbridge_core::boundary::{RequestId, SubscriptionId};
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::{Acknowledge, Attach, Credentials, Limit, Refusal, Reply, Request, Subscribe, Will};
use rocketbridge_core::time::Millis;
use rocketbridge_session::Outbox;
use tracing::debug;

use super::client::{Client, Connected};
use super::{MqttSession, State};
use crate::codec::properties::{PropertyId, put_bytes, put_number};
use crate::codec::text::{is_sys, is_topic_name, level_count};
use crate::codec::{self, Connect, PacketType, Version, put_fixed_header, put_variable, variable_len};
use crate::config::Config;
use crate::mapping::{self, FORMAT, queue_of};
use crate::reason_code::ReasonCode;

/// The one consumer of a connection: of its session's queue.
pub(super) const SUBSCRIPTION: SubscriptionId = SubscriptionId(1);

const LOGIN: RequestId = RequestId(1);
const ATTACH: RequestId = RequestId(2);
const CONSUME: RequestId = RequestId(3);
/// The first request number of a connected client.
pub(super) const FIRST_REQUEST: u64 = 4;

/// "The session never expires" (5.0, 3.1.2.11.2); what clean session 0 means before 5.0.
const FOREVER: u32 = u32::MAX;

/// What CONNECT said, until core has answered.
pub(super) struct Connecting {
    version: Version,
    /// Another broker.
    is_bridge: bool,
    client_id: Bytes,
    /// The client brought no identifier.
    is_assigned: bool,
    clean_start: bool,
    keep_alive: u16,
    /// It is not what the client asked for.
    has_other_keep_alive: bool,
    expiry: Expiry,
    /// Unacknowledged messages that the client and we both accept.
    window: u16,
    /// Largest packet that the client accepts, bytes.
    packet_size_max: u32,
    has_password: bool,
    /// What to publish when the connection is lost.
    will: Option<Box<Will>>,
    /// The client asked for response information.
    wants_response_information: bool,
    outgoing_alias_maximum: u16,
    is_present: bool,
    cookies: Vec<Bytes>,
    shares: Vec<(Bytes, Bytes)>,
}

/// How long a session lives without a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    /// What the client gets, seconds; [`FOREVER`] is for ever.
    seconds: u32,
    /// It asked for something else.
    is_changed: bool,
}

impl Expiry {
    fn new(asked: u32, config: &Config) -> Self {
        let limit = match config.session_expiry_max.as_secs() {
            0 => FOREVER,
            seconds => u32::try_from(seconds).unwrap_or(FOREVER),
        };
        Self {
            seconds: asked.min(limit),
            is_changed: asked > limit,
        }
    }

    fn keep(self) -> Millis {
        match self.seconds {
            FOREVER => Millis(u64::MAX),
            seconds => Millis::from_secs(u64::from(seconds)),
        }
    }
}

/// How long core keeps a session whose client asked for `seconds` in DISCONNECT.
pub(super) fn keep_of(seconds: u32, config: &Config) -> Millis {
    Expiry::new(seconds, config).keep()
}

impl MqttSession {
    pub(super) fn handle_connect(&mut self, connect: Connect, out: &mut Outbox) {
        self.stats.packets_in.fetch_add(1, Relaxed);
        let version = connect.version;
        let properties = &connect.properties;
        let number = |id, absent| properties.number(id).unwrap_or(absent);
        let packet_size_max = number(PropertyId::MaximumPacketSize, u32::MAX);
        if let Some(reason) = refusal_of(&connect, &self.config) {
            self.refuse(version, packet_size_max, reason, out);
            return;
        }
        let is_assigned = connect.client_id.is_empty();
        let client_id = if is_assigned {
            Bytes::from(format!("auto-{:016x}", self.seed))
        } else {
            Bytes::copy_from_slice(&connect.client_id)
        };
        let asked = match version {
            Version::V5 => number(PropertyId::SessionExpiry, 0),
            Version::V31 | Version::V311 if connect.clean_start => 0,
            Version::V31 | Version::V311 => FOREVER,
        };
        let receive_maximum = number(PropertyId::ReceiveMaximum, u32::from(u16::MAX)) as u16;
        let credentials = credentials_of(&connect, &self.config);
        // One below `$SYS` is dropped as such a publish is: a bridge of Mosquitto tells its state there.
        let will = connect.will.as_ref().filter(|will| !is_sys(&will.topic));
        let will = will.map(|will| Box::new(will_of(will, version, &client_id)));
        let alias_maximum = number(PropertyId::TopicAliasMaximum, 0) as u16;
        let connecting = Connecting {
            version,
            is_bridge: connect.is_bridge,
            client_id,
            is_assigned,
            clean_start: connect.clean_start,
            keep_alive: keep_alive_of(&connect, &self.config),
            has_other_keep_alive: keep_alive_of(&connect, &self.config) != connect.keep_alive,
            expiry: Expiry::new(asked, &self.config),
            window: receive_maximum.min(self.config.inflight_max).max(1),
            packet_size_max,
            has_password: matches!(credentials, Credentials::Password { .. }),
            will,
            wants_response_information: number(PropertyId::RequestResponseInformation, 0) == 1,
            outgoing_alias_maximum: alias_maximum.min(self.config.outgoing_topic_alias_maximum),
            is_present: false,
            cookies: Vec::new(),
            shares: Vec::new(),
        };
        out.request(LOGIN, Request::Login(credentials));
        self.state = State::Connecting(Box::new(connecting));
    }

    pub(super) fn handle_connect_reply(&mut self, id: RequestId, result: Result<Reply, Refusal>, out: &mut Outbox) {
        let State::Connecting(connecting) = &mut self.state else {
            return;
        };
        match (id, result) {
            (LOGIN, Ok(_)) => connecting.attach(&self.config, out),
            (
                ATTACH,
                Ok(Reply::Attached {
                    present,
                    cookies,
                    shares,
                }),
            ) => {
                connecting.is_present = present;
                connecting.cookies = cookies;
                connecting.shares = shares;
            }
            (CONSUME, Ok(_)) => self.accept(out),
            (id, Ok(reply)) => {
                debug!(?id, ?reply, "unexpected reply");
                self.refuse_connecting(ReasonCode::UnspecifiedError, out);
            }
            (id, Err(refusal)) => {
                debug!(client_id = %connecting.client_id.escape_ascii(), ?id, %refusal, "connection refused");
                let reason = match (id, &refusal) {
                    (LOGIN, Refusal::AccessRefused) if connecting.has_password => ReasonCode::BadUserNameOrPassword,
                    (ATTACH, Refusal::Invalid(_)) => ReasonCode::ClientIdentifierNotValid,
                    (_, Refusal::Closed) => ReasonCode::ServerUnavailable,
                    _ => ReasonCode::of_refusal(&refusal),
                };
                self.refuse_connecting(reason, out);
            }
        }
    }

    /// Everything is answered: CONNACK, and on with what came meanwhile.
    fn accept(&mut self, out: &mut Outbox) {
        let State::Connecting(connecting) = std::mem::replace(&mut self.state, State::Closed) else {
            return;
        };
        let mut topic_alias_maximum = self.config.topic_alias_maximum;
        let mut properties = BytesMut::new();
        let size_max = connecting.packet_size_max as usize;
        let fits = |properties: &BytesMut| connack_len(connecting.version, properties.len()) <= size_max;
        if connecting.version == Version::V5 {
            connecting.put_properties(&self.config, topic_alias_maximum, &mut properties);
            let mut information = BytesMut::new();
            connecting.put_response_information(&self.config, &mut information);
            // That information and aliases are what a client can do without.
            if connack_len(Version::V5, properties.len() + information.len()) <= size_max {
                properties.unsplit(information);
            } else if !fits(&properties) {
                topic_alias_maximum = 0;
                properties.clear();
                connecting.put_properties(&self.config, topic_alias_maximum, &mut properties);
            }
        }
        if !fits(&properties) {
            // [MQTT-3.1.2-24]
            self.close(out);
            return;
        }
        put_connack(out, connecting.version, connecting.is_present, 0, &properties);
        self.decoder.set_packet_size_max(self.config.packet_size_max);
        let mut client = Client::new(Connected {
            version: connecting.version,
            is_bridge: connecting.is_bridge,
            client_id: connecting.client_id,
            keep_alive: connecting.keep_alive,
            window: connecting.window,
            packet_size_max: connecting.packet_size_max,
            topic_alias_maximum,
            outgoing_alias_maximum: connecting.outgoing_alias_maximum,
            keep: connecting.expiry.keep(),
            is_kept: connecting.is_present || connecting.expiry.keep() > Millis(0),
        });
        client.resume(&connecting.cookies);
        client.resume_shared(connecting.shares, out);
        client.counted.packets_out += 1;
        self.stats.connected();
        self.state = State::Connected(Box::new(client));
    }

    fn refuse_connecting(&mut self, reason: ReasonCode, out: &mut Outbox) {
        if let State::Connecting(connecting) = &self.state {
            let (version, packet_size_max) = (connecting.version, connecting.packet_size_max);
            self.refuse(version, packet_size_max, reason, out);
        }
    }

    /// CONNACK with a refusal, and the end.
    pub(super) fn refuse(&mut self, version: Version, packet_size_max: u32, reason: ReasonCode, out: &mut Outbox) {
        debug!(?reason, "connection refused");
        if connack_len(version, 0) <= packet_size_max as usize {
            let code = match version {
                Version::V5 => reason as u8,
                Version::V31 | Version::V311 => reason.connect_return_code(),
            };
            put_connack(out, version, false, code, b"");
            self.stats.packets_out.fetch_add(1, Relaxed);
        }
        self.close(out);
    }
}

impl Connecting {
    fn attach(&mut self, config: &Config, out: &mut Outbox) {
        let keep = self.expiry.keep();
        out.request(
            ATTACH,
            Request::Attach(Attach {
                holder: self.client_id.clone(),
                clean: self.clean_start,
                durable: keep > Millis(0),
                keep,
                limit: limit_of(config),
                will: self.will.take(),
            }),
        );
        out.request(
            CONSUME,
            Request::Subscribe(Subscribe {
                subscription: SUBSCRIPTION,
                queue: queue_of(&self.client_id),
                acknowledge: Acknowledge::Persistent,
                window: Some(u32::from(self.window)),
                exclusive: false,
                priority: 0,
                selector: None,
            }),
        );
    }

    /// What a 5.0 client is told of us (3.2.2.3).
    fn put_properties(&self, config: &Config, topic_alias_maximum: u16, out: &mut BytesMut) {
        if self.expiry.is_changed {
            put_number(out, PropertyId::SessionExpiry, self.expiry.seconds);
        }
        put_number(
            out,
            PropertyId::ReceiveMaximum,
            u32::from(config.receive_maximum.max(1)),
        );
        put_number(out, PropertyId::MaximumPacketSize, config.packet_size_max);
        if self.is_assigned {
            put_bytes(out, PropertyId::AssignedClientIdentifier, &self.client_id);
        }
        if topic_alias_maximum > 0 {
            put_number(out, PropertyId::TopicAliasMaximum, u32::from(topic_alias_maximum));
        }
        if self.has_other_keep_alive {
            put_number(out, PropertyId::ServerKeepAlive, u32::from(self.keep_alive));
        }
    }

    /// What the client's answers should come to, when it asked for that (3.2.2.3.15).
    fn put_response_information(&self, config: &Config, out: &mut BytesMut) {
        let prefix = config.response_prefix.as_bytes();
        if self.wants_response_information && !prefix.is_empty() {
            let information = [prefix, &self.client_id].concat();
            // It has to serve as a part of a topic name.
            if is_topic_name(&information) && information.len() <= usize::from(u16::MAX) {
                put_bytes(out, PropertyId::ResponseInformation, &information);
            }
        }
    }
}

/// What a session's queue may hold, and one that sessions share.
pub(super) fn limit_of(config: &Config) -> Limit {
    Limit {
        messages: Some(config.session_messages_max).filter(|max| *max > 0),
        bytes: Some(config.session_bytes_max).filter(|max| *max > 0),
    }
}

/// The keep alive that counts: a 5.0 client is told ours when it asks for a longer one. (5.0, 3.2.2.3.14)
fn keep_alive_of(connect: &Connect, config: &Config) -> u16 {
    let (asked, limit) = (connect.keep_alive, config.keep_alive_max);
    if connect.version == Version::V5 && limit > 0 && (asked == 0 || asked > limit) {
        limit
    } else {
        asked
    }
}

/// The will as core keeps it.
fn will_of(will: &codec::Will, version: Version, client_id: &[u8]) -> Will {
    let mut scratch = BytesMut::new();
    let topic = Bytes::copy_from_slice(&will.topic);
    let address = mapping::address_of(&topic, &mut scratch);
    let mut attributes = AttributesBuilder::default();
    mapping::put_attributes(&will.properties, &mut attributes);
    if address.is_cut {
        attributes.text(Attribute::Topic, mapping::raw_name(&topic));
    }
    let mut origin = BytesMut::new();
    mapping::put_origin(&mut origin, version, will.qos, &topic, client_id);
    mapping::put_forwarded(&mut origin, &will.properties);
    let delay = will.properties.number(PropertyId::WillDelay).unwrap_or(0);
    Will {
        delay: Millis::from_secs(delay.into()),
        entry: address.entry,
        topic: address.name,
        key: address.key,
        body: Bytes::copy_from_slice(&will.payload),
        attributes: attributes.finish(),
        format: FORMAT,
        origin: origin.freeze(),
        persistent: will.qos > 0,
        retain: will.retain && address.entry == Entry::Topic,
    }
}

/// What is wrong with a CONNECT whatever core says.
fn refusal_of(connect: &Connect, config: &Config) -> Option<ReasonCode> {
    if connect.properties.has(PropertyId::AuthenticationMethod) {
        return Some(ReasonCode::BadAuthenticationMethod);
    }
    if let Some(will) = &connect.will
        && level_count(&will.topic) > config.topic_levels_max
    {
        return Some(ReasonCode::TopicNameInvalid);
    }
    // [MQTT-3.1.3-8] of 3.1.1; MQTT 3.1 wants an identifier always.
    let needs_id = match connect.version {
        Version::V31 => true,
        Version::V311 => !connect.clean_start,
        Version::V5 => false,
    };
    (needs_id && connect.client_id.is_empty()).then_some(ReasonCode::ClientIdentifierNotValid)
}

fn credentials_of(connect: &Connect, config: &Config) -> Credentials {
    let field = |field: &Option<Bytes>| field.as_deref().map(Bytes::copy_from_slice).unwrap_or_default();
    // Forms that were left empty send both fields so.
    let is_empty = |field: &Option<Bytes>| field.as_ref().is_none_or(Bytes::is_empty);
    if config.ignore_credentials || is_empty(&connect.user) && is_empty(&connect.password) {
        return Credentials::Anonymous;
    }
    Credentials::Password {
        user: field(&connect.user),
        password: field(&connect.password),
    }
}

fn connack_len(version: Version, properties: usize) -> usize {
    let remaining = connack_remaining(version, properties);
    1 + variable_len(remaining as u32) + remaining
}

fn connack_remaining(version: Version, properties: usize) -> usize {
    match version {
        Version::V5 => 2 + variable_len(properties as u32) + properties,
        Version::V31 | Version::V311 => 2,
    }
}

pub(super) fn put_connack(out: &mut Outbox, version: Version, is_present: bool, code: u8, properties: &[u8]) {
    let out = out.bytes();
    let remaining = connack_remaining(version, properties.len());
    put_fixed_header(out, PacketType::ConnAck.first_byte(), remaining);
    // MQTT 3.1 has no such flag.
    out.put_u8(u8::from(is_present && version > Version::V31));
    out.put_u8(code);
    if version == Version::V5 {
        put_variable(out, properties.len() as u32);
        out.put_slice(properties);
    }
}

/// One and a half times the keep alive, milliseconds; `None` when it is off. [MQTT-3.1.2-22]
pub(super) fn keep_alive_span(seconds: u16) -> Option<Millis> {
    (seconds > 0).then(|| Millis(u64::from(seconds) * 1500))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::millis;
    use super::*;

    #[test]
    fn sessions_live_as_long_as_they_ask_within_the_limit() {
        let config = Config {
            session_expiry_max: Duration::from_secs(100),
            ..Config::default()
        };
        let expiry = Expiry::new(FOREVER, &config);
        assert_eq!((expiry.keep(), expiry.is_changed), (Millis(100_000), true));
        assert_eq!(Expiry::new(60, &config).keep(), Millis(60_000));
        let unlimited = Config {
            session_expiry_max: Duration::ZERO,
            ..Config::default()
        };
        let expiry = Expiry::new(FOREVER, &unlimited);
        assert_eq!((expiry.keep(), expiry.is_changed), (Millis(u64::MAX), false));
        assert_eq!(millis(Duration::MAX), Millis(u64::MAX));
    }
}
