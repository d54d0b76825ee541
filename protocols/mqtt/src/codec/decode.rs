//! Bytes to packets.

use bytes::{Bytes, BytesMut};
use rocketbridge_session::{Cursor, Truncated};

use super::packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, PacketType, Publish, Side, SubAck, Subscribe, SubscriptionOptions,
    UnsubAck, Unsubscribe, Version, Will,
};
use super::properties::{Place, Properties, PropertyId};
use super::text::{is_name, is_shared, is_topic_filter, is_topic_name, split_shared};
use super::{DecodeError, take_variable};
use crate::reason_code::ReasonCode;

/// Cuts packets off the front of a stream. The first one must be CONNECT (for a client: CONNACK).
#[derive(Clone, Debug)]
pub struct Decoder {
    side: Side,
    version: Option<Version>,
    packet_size_max: u32,
}

impl Decoder {
    /// For a new connection; packets of more than `packet_size_max` bytes are refused.
    pub fn new(side: Side, packet_size_max: u32) -> Self {
        Self {
            side,
            version: None,
            packet_size_max,
        }
    }

    /// For a connection that speaks `version`: no CONNECT is expected any more.
    pub fn with_version(side: Side, version: Version, packet_size_max: u32) -> Self {
        Self {
            side,
            version: Some(version),
            packet_size_max,
        }
    }

    /// The version that CONNECT asked for.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Sets the largest packet from now on, bytes, fixed header included.
    pub fn set_packet_size_max(&mut self, packet_size_max: u32) {
        self.packet_size_max = packet_size_max;
    }

    /// Takes one packet from the front; `None` when more bytes are needed. What can be refused from the
    /// fixed header is refused before the rest arrives.
    ///
    /// # Errors
    /// [`DecodeError`]; the input is of no use then.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(&first) = input.first() else {
            return Ok(None);
        };
        let packet_type = self.opening_checked(first)?;
        // For these two Mosquitto looks at the length before anything else, and its test vectors ask
        // for it.
        let is_ping = matches!(packet_type, PacketType::PingReq | PacketType::PingResp);
        if !is_ping {
            self.check_first_byte(packet_type, first & 0x0F)?;
        }
        let Some((remaining, header_len)) = self.remaining_length(input)? else {
            return Ok(None);
        };
        self.check_remaining_length(packet_type, remaining)?;
        if is_ping {
            self.check_first_byte(packet_type, first & 0x0F)?;
        }
        let size = header_len as u32 + remaining;
        if size > self.packet_size_max {
            return Err(DecodeError::TooLarge {
                size,
                size_max: self.packet_size_max,
            });
        }
        if input.len() < size as usize {
            return Ok(None);
        }
        if remaining == 0 {
            // Nothing of it is kept, so the buffer need not become shared.
            let _ = input.split_to(size as usize);
            return self.body(packet_type, first & 0x0F, Bytes::new()).map(Some);
        }
        let body = input.split_to(size as usize).freeze().slice(header_len..);
        self.body(packet_type, first & 0x0F, body).map(Some)
    }

    /// The packet's type, when it may come now. [MQTT-3.1.0-1, MQTT-3.1.0-2]
    fn opening_checked(&self, first: u8) -> Result<PacketType, DecodeError> {
        let packet_type =
            PacketType::from_first_byte(first).ok_or(DecodeError::Protocol("packet type 0 is forbidden"))?;
        let opening = match self.side {
            Side::Server => PacketType::Connect,
            Side::Client => PacketType::ConnAck,
        };
        match (self.version, packet_type == opening) {
            (None, false) => Err(DecodeError::Protocol("the first packet opens the connection")),
            (Some(_), true) if self.side == Side::Server => Err(DecodeError::Protocol("a second CONNECT")),
            _ => Ok(packet_type),
        }
    }

    /// Whether the other side may send that type, with those flags (2.1.3).
    fn check_first_byte(&self, packet_type: PacketType, flags: u8) -> Result<(), DecodeError> {
        use PacketType::*;
        let is_expected = match packet_type {
            Connect | Subscribe | Unsubscribe | PingReq => self.side == Side::Server,
            ConnAck | SubAck | UnsubAck | PingResp => self.side == Side::Client,
            Auth => self.version.is_none_or(|version| version == Version::V5),
            Publish | PubAck | PubRec | PubRel | PubComp | Disconnect => true,
        };
        if !is_expected {
            // For these two Mosquitto looks at the flags first, and its test vectors ask for it.
            return Err(if flags != 0 && matches!(packet_type, SubAck | UnsubAck) {
                DecodeError::Malformed("reserved flags are set")
            } else {
                DecodeError::Protocol("the other side sends this packet")
            });
        }
        match packet_type {
            Publish if flags & 0x06 == 0x06 => Err(DecodeError::Malformed("QoS 3")),
            Publish if flags & 0x0E == 0x08 => Err(DecodeError::Malformed("DUP with QoS 0")),
            // The version decides, which the packet itself tells.
            Publish | Connect => Ok(()),
            // No AUTH exchange can have been agreed on, so the whole packet is out of place.
            Auth if flags != 0 => Err(DecodeError::Protocol("reserved flags are set")),
            // MQTT 3.1 has DUP and QoS in all of them and says nothing of what else they may be.
            _ if flags != packet_type.flags() && self.version != Some(Version::V31) => {
                Err(DecodeError::Malformed("reserved flags are set"))
            }
            _ => Ok(()),
        }
    }

    fn remaining_length(&self, input: &[u8]) -> Result<Option<(u32, usize)>, DecodeError> {
        let mut value = 0;
        for at in 1..=4 {
            let Some(&byte) = input.get(at) else {
                return Ok(None);
            };
            value |= u32::from(byte & 0x7F) << (7 * (at - 1));
            if byte & 0x80 == 0 {
                // Only 5.0 asks for the shortest form. [MQTT-1.5.5-1]
                if byte == 0 && at > 1 && self.version == Some(Version::V5) {
                    return Err(DecodeError::Malformed("remaining length longer than it needs to be"));
                }
                return Ok(Some((value, 1 + at)));
            }
        }
        Err(DecodeError::Malformed("remaining length of more than four bytes"))
    }

    fn check_remaining_length(&self, packet_type: PacketType, remaining: u32) -> Result<(), DecodeError> {
        use PacketType::*;
        let is_old = self.version.is_some_and(|version| version < Version::V5);
        let fits = match packet_type {
            PingReq | PingResp => remaining == 0,
            PubAck | PubRec | PubRel | PubComp | UnsubAck if is_old => remaining == 2,
            Disconnect if is_old => remaining == 0,
            _ => true,
        };
        if fits {
            Ok(())
        } else {
            Err(DecodeError::FixedHeader(packet_type))
        }
    }

    fn body(&mut self, packet_type: PacketType, flags: u8, body: Bytes) -> Result<Packet, DecodeError> {
        if packet_type == PacketType::Connect {
            let connect = connect(Body::new(body, self.side, Version::V5), flags)?;
            self.version = Some(connect.version);
            return Ok(Packet::Connect(Box::new(connect)));
        }
        // A client has told its version before it decodes; without that CONNACK is read as 3.1.1's.
        let version = self.version.unwrap_or(Version::V311);
        let mut body = Body::new(body, self.side, version);
        Ok(match packet_type {
            PacketType::Connect => unreachable!("returned above"),
            PacketType::ConnAck => Packet::ConnAck(connack(&mut body)?),
            PacketType::Publish => Packet::Publish(publish(body, flags)?),
            PacketType::PubAck => Packet::PubAck(ack(&mut body, packet_type)?),
            PacketType::PubRec => Packet::PubRec(ack(&mut body, packet_type)?),
            PacketType::PubRel => Packet::PubRel(ack(&mut body, packet_type)?),
            PacketType::PubComp => Packet::PubComp(ack(&mut body, packet_type)?),
            PacketType::Subscribe => Packet::Subscribe(subscribe(body)?),
            PacketType::SubAck => Packet::SubAck(suback(body)?),
            PacketType::Unsubscribe => Packet::Unsubscribe(unsubscribe(body)?),
            PacketType::UnsubAck => Packet::UnsubAck(unsuback(body)?),
            PacketType::PingReq => Packet::PingReq,
            PacketType::PingResp => Packet::PingResp,
            PacketType::Disconnect => Packet::Disconnect(disconnect(&mut body)?),
            PacketType::Auth => Packet::Auth(auth(&mut body)?),
        })
    }
}

/// What follows the fixed header, and a position in it.
struct Body {
    bytes: Bytes,
    at: usize,
    side: Side,
    version: Version,
}

impl Body {
    fn new(bytes: Bytes, side: Side, version: Version) -> Self {
        Self {
            bytes,
            at: 0,
            side,
            version,
        }
    }

    fn read<'a, T>(
        &'a mut self,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let mut cursor = Cursor::new(&self.bytes[self.at..]);
        let value = read(&mut cursor)?;
        self.at = self.bytes.len() - cursor.remaining();
        Ok(value)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.read(|cursor| Ok(cursor.u8()?))
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.read(|cursor| Ok(cursor.u16()?))
    }

    /// [MQTT-2.2.1-3]
    fn packet_id(&mut self) -> Result<u16, DecodeError> {
        match self.u16()? {
            0 => Err(DecodeError::Protocol("packet identifier 0")),
            packet_id => Ok(packet_id),
        }
    }

    fn take(&mut self, count: usize) -> Result<Bytes, DecodeError> {
        self.read(|cursor| Ok(cursor.take(count).map(|_| ())?))?;
        Ok(self.bytes.slice(self.at - count..self.at))
    }

    fn bytes16(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn rest(self) -> Bytes {
        if self.at == 0 {
            return self.bytes;
        }
        self.bytes.slice(self.at..)
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.remaining() == 0 {
            Ok(())
        } else {
            Err(DecodeError::Malformed("bytes behind the last field"))
        }
    }

    /// The properties, which only 5.0 has.
    fn properties(&mut self, place: Place) -> Result<Properties, DecodeError> {
        if self.version < Version::V5 {
            return Ok(Properties::EMPTY);
        }
        let length = self.read(take_variable)?;
        if length == 0 {
            return Ok(Properties::EMPTY);
        }
        let bytes = self.take(length as usize)?;
        Properties::check(bytes, place, self.side)
    }

    /// The same where a packet may end in front of them.
    fn optional_properties(&mut self, packet_type: PacketType) -> Result<Properties, DecodeError> {
        if self.remaining() == 0 {
            return Ok(Properties::EMPTY);
        }
        self.properties(Place::Packet(packet_type))
    }
}

mod connect_flags {
    pub const RESERVED: u8 = 0x01;
    pub const CLEAN_START: u8 = 0x02;
    pub const WILL: u8 = 0x04;
    pub const WILL_QOS: u8 = 0x18;
    pub const WILL_RETAIN: u8 = 0x20;
    pub const PASSWORD: u8 = 0x40;
    pub const USER: u8 = 0x80;
}

/// Set in the protocol level by a bridge.
pub(super) const BRIDGE_BIT: u8 = 0x80;
const BRIDGE_LEVEL_3: u8 = 3 | BRIDGE_BIT;
const BRIDGE_LEVEL_4: u8 = 4 | BRIDGE_BIT;

fn version_of(name: &[u8], level: u8) -> Result<Version, DecodeError> {
    match (name, level) {
        (b"MQIsdp", 3 | BRIDGE_LEVEL_3) => Ok(Version::V31),
        (b"MQTT", 4 | BRIDGE_LEVEL_4) => Ok(Version::V311),
        (b"MQTT", 5) => Ok(Version::V5),
        (b"MQIsdp" | b"MQTT", level) => Err(DecodeError::UnsupportedVersion(level)),
        // [MQTT-3.1.2-1]
        _ => Err(DecodeError::Malformed("unknown protocol name")),
    }
}

/// The version that a CONNECT asks for of which only the beginning is there; `None` when more bytes are needed, which
/// are few.
///
/// # Errors
/// It names another protocol, or a version that nobody here speaks.
pub fn version_asked_for(input: &[u8]) -> Result<Option<Version>, DecodeError> {
    const NAME_LENGTHS: [u16; 2] = [4, 6];
    let mut cursor = Cursor::new(input);
    let mut parts = || {
        let mut byte = cursor.u8()?;
        for _ in 0..4 {
            byte = cursor.u8()?;
            if byte < 0x80 {
                break;
            }
        }
        let length = cursor.u16()?;
        if !NAME_LENGTHS.contains(&length) {
            return Ok((&[][..], byte));
        }
        Ok::<_, Truncated>((cursor.take(length.into())?, cursor.u8()?))
    };
    match parts() {
        Ok((name, level)) => version_of(name, level).map(Some),
        Err(Truncated) => Ok(None),
    }
}

fn connect(mut body: Body, first_flags: u8) -> Result<Connect, DecodeError> {
    let name = body.bytes16()?;
    let level = body.u8()?;
    body.version = version_of(&name, level)?;
    let version = body.version;
    let flags = body.u8()?;
    if version > Version::V31 && (first_flags != 0 || flags & connect_flags::RESERVED != 0) {
        return Err(DecodeError::Malformed("reserved flags are set"));
    }
    let has_will = flags & connect_flags::WILL != 0;
    let will_qos = (flags & connect_flags::WILL_QOS) >> 3;
    if will_qos == 3 || !has_will && flags & (connect_flags::WILL_QOS | connect_flags::WILL_RETAIN) != 0 {
        return Err(DecodeError::Malformed("will flags that contradict each other"));
    }
    let (has_user, has_password) = (flags & connect_flags::USER != 0, flags & connect_flags::PASSWORD != 0);
    // [MQTT-3.1.2-22], dropped in 5.0.
    if version < Version::V5 && has_password && !has_user {
        return Err(DecodeError::Malformed("a password without a user name"));
    }
    let keep_alive = body.u16()?;
    let properties = body.properties(Place::Packet(PacketType::Connect))?;
    // 5.0, 3.1.2.11.10
    if properties.has(PropertyId::AuthenticationData) && !properties.has(PropertyId::AuthenticationMethod) {
        return Err(DecodeError::Protocol("authentication data without a method"));
    }
    let client_id = name_field(&mut body)?;
    let will = has_will
        .then(|| {
            let properties = body.properties(Place::Will)?;
            let topic = body.bytes16()?;
            if !is_topic_name(&topic) {
                return Err(DecodeError::Malformed("will topic is not a topic name"));
            }
            Ok(Will {
                topic,
                payload: body.bytes16()?,
                qos: will_qos,
                retain: flags & connect_flags::WILL_RETAIN != 0,
                properties,
            })
        })
        .transpose()?;
    let user = has_user.then(|| name_field(&mut body)).transpose()?;
    let password = has_password.then(|| body.bytes16()).transpose()?;
    body.end()?;
    Ok(Connect {
        version,
        is_bridge: level & BRIDGE_BIT != 0,
        clean_start: flags & connect_flags::CLEAN_START != 0,
        keep_alive,
        client_id,
        will,
        user,
        password,
        properties,
    })
}

fn name_field(body: &mut Body) -> Result<Bytes, DecodeError> {
    let name = body.bytes16()?;
    if !is_name(&name) {
        return Err(DecodeError::Malformed("a name that is not clean UTF-8"));
    }
    Ok(name)
}

fn connack(body: &mut Body) -> Result<ConnAck, DecodeError> {
    let flags = body.u8()?;
    if flags > 1 {
        return Err(DecodeError::Malformed("reserved flags are set"));
    }
    let code = body.u8()?;
    let properties = body.properties(Place::Packet(PacketType::ConnAck))?;
    body.end()?;
    Ok(ConnAck {
        session_present: flags == 1,
        code,
        properties,
    })
}

fn publish(mut body: Body, flags: u8) -> Result<Publish, DecodeError> {
    let qos = flags >> 1 & 3;
    let topic = body.bytes16()?;
    // In 5.0 a topic alias may stand for the topic; whether there is one shows below.
    if !is_topic_name(&topic) && (!topic.is_empty() || body.version < Version::V5) {
        return Err(DecodeError::Malformed("topic is not a topic name"));
    }
    let packet_id = if qos > 0 { body.packet_id()? } else { 0 };
    let properties = body.properties(Place::Packet(PacketType::Publish))?;
    if topic.is_empty() && !properties.has(PropertyId::TopicAlias) {
        return Err(DecodeError::Malformed("neither topic nor topic alias"));
    }
    Ok(Publish {
        dup: flags & 8 != 0,
        qos,
        retain: flags & 1 != 0,
        topic,
        packet_id,
        properties,
        payload: body.rest(),
    })
}

fn ack(body: &mut Body, packet_type: PacketType) -> Result<Ack, DecodeError> {
    let packet_id = body.packet_id()?;
    let mut reason = ReasonCode::Success;
    let mut properties = Properties::EMPTY;
    if body.version == Version::V5 && body.remaining() > 0 {
        reason = ReasonCode::from_u8(body.u8()?)
            .filter(|reason| reason.is_allowed_in(packet_type))
            .ok_or(DecodeError::Protocol("reason code not allowed in this packet"))?;
        properties = body.optional_properties(packet_type)?;
    }
    body.end()?;
    Ok(Ack {
        packet_id,
        reason,
        properties,
    })
}

fn subscribe(mut body: Body) -> Result<Subscribe, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = body.properties(Place::Packet(PacketType::Subscribe))?;
    let version = body.version;
    let payload = body.rest();
    let mut cursor = Cursor::new(&payload);
    if cursor.remaining() == 0 {
        // [MQTT-3.8.3-2]
        return Err(DecodeError::Malformed("no topic filter"));
    }
    let mut unshared = Ok(());
    while cursor.remaining() > 0 {
        let filter = cursor.bytes16()?;
        let is_shared = version == Version::V5 && is_shared(filter) && is_name(filter);
        if !is_shared && !is_topic_filter(filter) {
            return Err(DecodeError::Malformed("not a topic filter"));
        }
        let options = SubscriptionOptions(cursor.u8()?);
        if !options.is_valid(version) {
            return Err(DecodeError::Malformed("reserved subscription options"));
        }
        if is_shared {
            if split_shared(filter).is_none() {
                unshared = Err(DecodeError::Protocol("shared subscription without a name or filter"));
            } else if options.no_local() {
                // [MQTT-3.8.3-4]
                unshared = Err(DecodeError::Protocol("no local on a shared subscription"));
            }
        }
    }
    unshared?;
    Ok(Subscribe {
        packet_id,
        properties,
        payload,
    })
}

fn suback(mut body: Body) -> Result<SubAck, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = body.properties(Place::Packet(PacketType::SubAck))?;
    Ok(SubAck {
        packet_id,
        properties,
        codes: body.rest(),
    })
}

fn unsubscribe(mut body: Body) -> Result<Unsubscribe, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = body.properties(Place::Packet(PacketType::Unsubscribe))?;
    let payload = body.rest();
    let mut cursor = Cursor::new(&payload);
    if cursor.remaining() == 0 {
        // [MQTT-3.10.3-2]
        return Err(DecodeError::Malformed("no topic filter"));
    }
    while cursor.remaining() > 0 {
        if !is_topic_filter(cursor.bytes16()?) {
            return Err(DecodeError::Malformed("not a topic filter"));
        }
    }
    Ok(Unsubscribe {
        packet_id,
        properties,
        payload,
    })
}

fn unsuback(mut body: Body) -> Result<UnsubAck, DecodeError> {
    let packet_id = body.packet_id()?;
    let properties = body.properties(Place::Packet(PacketType::UnsubAck))?;
    Ok(UnsubAck {
        packet_id,
        properties,
        codes: body.rest(),
    })
}

fn disconnect(body: &mut Body) -> Result<Disconnect, DecodeError> {
    let mut code = 0;
    let mut properties = Properties::EMPTY;
    if body.remaining() > 0 {
        code = body.u8()?;
        properties = body.optional_properties(PacketType::Disconnect)?;
    }
    body.end()?;
    Ok(Disconnect { code, properties })
}

fn auth(body: &mut Body) -> Result<Auth, DecodeError> {
    let mut reason = ReasonCode::Success;
    let mut properties = Properties::EMPTY;
    if body.remaining() > 0 {
        reason = ReasonCode::from_u8(body.u8()?)
            .filter(|reason| reason.is_allowed_in(PacketType::Auth))
            .ok_or(DecodeError::Protocol("reason code not allowed in this packet"))?;
        properties = body.optional_properties(PacketType::Auth)?;
    }
    body.end()?;
    Ok(Auth { reason, properties })
}
