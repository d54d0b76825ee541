//! The packets.

use bytes::Bytes;
use rocketbridge_session::Cursor;

use super::properties::Properties;
use crate::reason_code::ReasonCode;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Version {
    /// MQTT 3.1, protocol name `MQIsdp`.
    V31 = 3,
    /// MQTT 3.1.1.
    V311 = 4,
    /// MQTT 5.0.
    V5 = 5,
}

/// Who receives the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Packets come from a client.
    Server,
    /// Packets come from a server.
    Client,
}

/// The type of a packet (2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PacketType {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    /// From the first four bits of a packet.
    pub const fn from_first_byte(byte: u8) -> Option<Self> {
        Some(match byte >> 4 {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    /// The first byte of a packet of this type that is not PUBLISH.
    pub const fn first_byte(self) -> u8 {
        (self as u8) << 4 | self.flags()
    }

    /// The flags that the standard fixes (2.1.3); PUBLISH has its own.
    pub const fn flags(self) -> u8 {
        match self {
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => 2,
            _ => 0,
        }
    }
}

/// A packet. Its fields are slices of what was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(ConnAck),
    Publish(Publish),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe),
    SubAck(SubAck),
    Unsubscribe(Unsubscribe),
    UnsubAck(UnsubAck),
    PingReq,
    PingResp,
    Disconnect(Disconnect),
    Auth(Auth),
}

impl Packet {
    /// Its type.
    pub const fn packet_type(&self) -> PacketType {
        match self {
            Self::Connect(_) => PacketType::Connect,
            Self::ConnAck(_) => PacketType::ConnAck,
            Self::Publish(_) => PacketType::Publish,
            Self::PubAck(_) => PacketType::PubAck,
            Self::PubRec(_) => PacketType::PubRec,
            Self::PubRel(_) => PacketType::PubRel,
            Self::PubComp(_) => PacketType::PubComp,
            Self::Subscribe(_) => PacketType::Subscribe,
            Self::SubAck(_) => PacketType::SubAck,
            Self::Unsubscribe(_) => PacketType::Unsubscribe,
            Self::UnsubAck(_) => PacketType::UnsubAck,
            Self::PingReq => PacketType::PingReq,
            Self::PingResp => PacketType::PingResp,
            Self::Disconnect(_) => PacketType::Disconnect,
            Self::Auth(_) => PacketType::Auth,
        }
    }
}

/// CONNECT (3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The version it asks for.
    pub version: Version,
    /// The highest bit of the protocol level is set: a broker that calls as a bridge, and wants nothing back that
    /// came from it. Mosquitto's, not in the standard; not in 5.0, which has words for it.
    pub is_bridge: bool,
    /// Clean Start; Clean Session before 5.0.
    pub clean_start: bool,
    /// Seconds; 0 turns it off.
    pub keep_alive: u16,
    /// May be empty.
    pub client_id: Bytes,
    /// What to publish when the connection is lost.
    pub will: Option<Will>,
    /// UTF-8.
    pub user: Option<Bytes>,
    /// Any bytes.
    pub password: Option<Bytes>,
    pub properties: Properties,
}

/// The will in CONNECT (3.1.2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    pub topic: Bytes,
    pub payload: Bytes,
    /// 0, 1 or 2.
    pub qos: u8,
    pub retain: bool,
    pub properties: Properties,
}

/// CONNACK (3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    pub session_present: bool,
    /// A [`ReasonCode`] in 5.0, a return code before.
    pub code: u8,
    pub properties: Properties,
}

/// PUBLISH (3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub dup: bool,
    /// 0, 1 or 2.
    pub qos: u8,
    pub retain: bool,
    /// Empty when a topic alias stands for it.
    pub topic: Bytes,
    /// 0 when the QoS is 0.
    pub packet_id: u16,
    pub properties: Properties,
    pub payload: Bytes,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (3.4 to 3.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub packet_id: u16,
    pub reason: ReasonCode,
    pub properties: Properties,
}

/// SUBSCRIBE (3.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub packet_id: u16,
    pub properties: Properties,
    /// The validated payload, walked by [`filters`](Self::filters).
    pub payload: Bytes,
}

impl Subscribe {
    /// The topic filters with their options, in order.
    pub fn filters(&self) -> Filters<'_> {
        Filters(Cursor::new(&self.payload))
    }
}

/// Walks the payload of SUBSCRIBE.
#[derive(Clone, Debug)]
pub struct Filters<'a>(Cursor<'a>);

impl<'a> Iterator for Filters<'a> {
    type Item = (&'a [u8], SubscriptionOptions);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.0.bytes16().ok()?, SubscriptionOptions(self.0.u8().ok()?)))
    }
}

/// What a client wants of a subscription (5.0, 3.8.3.1), in one byte as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions(pub u8);

impl SubscriptionOptions {
    /// Whether that version may send it: no reserved bit, no QoS 3, no retain handling 3.
    /// [MQTT-3.8.3-5]
    pub const fn is_valid(self, version: Version) -> bool {
        match version {
            Version::V5 => self.0 & 0xC0 == 0 && self.qos() < 3 && self.0 & 0x30 != 0x30,
            Version::V31 | Version::V311 => self.0 < 3,
        }
    }

    /// The highest QoS of deliveries.
    pub const fn qos(self) -> u8 {
        self.0 & 3
    }

    /// The same with another QoS.
    #[must_use]
    pub const fn with_qos(self, qos: u8) -> Self {
        Self(self.0 & !3 | qos & 3)
    }

    /// The retain flag of deliveries is the publisher's. (5.0, 3.3.1.3)
    pub const fn retain_as_published(self) -> bool {
        self.0 & 8 != 0
    }

    /// Whether a subscription that is `new` or was there already gets the retained messages. (5.0, 3.3.1.3)
    pub const fn wants_retained(self, new: bool) -> bool {
        match self.0 >> 4 & 3 {
            0 => true,
            1 => new,
            _ => false,
        }
    }

    /// What a bridge means without having words for it: no local, retain as published.
    #[must_use]
    pub const fn of_bridge(self) -> Self {
        Self(self.0 | 0x0C)
    }

    /// Not what this client itself published. [MQTT-3.8.3-3]
    pub const fn no_local(self) -> bool {
        self.0 & 4 != 0
    }
}

/// SUBACK (3.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubAck {
    pub packet_id: u16,
    pub properties: Properties,
    /// One code for each filter.
    pub codes: Bytes,
}

/// UNSUBSCRIBE (3.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    pub packet_id: u16,
    pub properties: Properties,
    /// The validated payload, walked by [`filters`](Self::filters).
    pub payload: Bytes,
}

impl Unsubscribe {
    /// The topic filters, in order.
    pub fn filters(&self) -> UnsubscribeFilters<'_> {
        UnsubscribeFilters(Cursor::new(&self.payload))
    }
}

/// Walks the payload of UNSUBSCRIBE.
#[derive(Clone, Debug)]
pub struct UnsubscribeFilters<'a>(Cursor<'a>);

impl<'a> Iterator for UnsubscribeFilters<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        self.0.bytes16().ok()
    }
}

/// UNSUBACK (3.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsubAck {
    pub packet_id: u16,
    pub properties: Properties,
    /// One code for each filter; none before 5.0.
    pub codes: Bytes,
}

/// DISCONNECT (3.14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// As it came: a code that a client may not send is no reason to refuse a goodbye.
    pub code: u8,
    pub properties: Properties,
}

/// AUTH (5.0, 3.15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    pub reason: ReasonCode,
    pub properties: Properties,
}
