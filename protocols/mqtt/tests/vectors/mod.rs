//! Packets as bytes: what each must be read as, or why it must be refused.

use bytes::BytesMut;
use rocketbridge_mqtt::codec::{DecodeError, Decoder, Packet, PacketType, Side, Version};

pub use PacketType::*;
pub use Side::{Client, Server};
pub use Version::{V5, V31, V311};

/// What a decoder makes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A packet of that type, which encodes to the same bytes again.
    Reads(PacketType),
    /// A packet of that type, which encodes to a shorter form.
    ReadsLonger(PacketType),
    Malformed,
    Protocol,
    FixedHeader,
    UnsupportedVersion,
}

pub use Expected::*;

/// Who receives it, the version spoken (`None` before CONNECT), the bytes, what they are.
pub type Row = (Side, Option<Version>, &'static [u8], Expected);

#[allow(dead_code)]
pub fn decode(side: Side, version: Option<Version>, bytes: &[u8]) -> Result<Option<Packet>, DecodeError> {
    let mut decoder = match version {
        Some(version) => Decoder::with_version(side, version, 1 << 20),
        None => Decoder::new(side, 1 << 20),
    };
    decoder.decode(&mut BytesMut::from(bytes))
}

const V3: Option<Version> = Some(V311);
const OLD: Option<Version> = Some(V31);
const NEW: Option<Version> = Some(V5);

pub const ROWS: &[Row] = &[
    // --- CONNECT
    (Server, None, b"\x10\x0D\0\x04MQTT\x04\x02\0\x0A\0\x01p", Reads(Connect)),
    (
        Server,
        None,
        b"\x10\x0F\0\x06MQIsdp\x03\x02\0\x0A\0\x01p",
        Reads(Connect),
    ),
    // Bridges set the highest bit of the level; there is none of 5.0.
    (Server, None, b"\x10\x0D\0\x04MQTT\x84\x02\0\x0A\0\x01p", Reads(Connect)),
    (
        Server,
        None,
        b"\x10\x0F\0\x06MQIsdp\x83\x02\0\x0A\0\x01p",
        Reads(Connect),
    ),
    (
        Server,
        None,
        b"\x10\x0E\0\x04MQTT\x85\x02\0\x0A\0\0\x01p",
        UnsupportedVersion,
    ),
    // MQTT 3.1 defines neither the flags of the fixed header nor the last one of CONNECT.
    (
        Server,
        None,
        b"\x14\x0F\0\x06MQIsdp\x03\x03\0\x0A\0\x01p",
        ReadsLonger(Connect),
    ),
    (
        Server,
        None,
        b"\x10\x0E\0\x04MQTT\x05\x02\0\x0A\0\0\x01p",
        Reads(Connect),
    ),
    (
        Server,
        None,
        b"\x10\x11\0\x04MQTT\x05\x42\0\x0A\0\0\0\0\x02\xFF\0",
        Reads(Connect),
    ),
    (
        Server,
        None,
        b"\x10\x13\0\x04MQTT\x05\x02\0\x0A\x05\x11\0\0\0\x3C\0\x01p",
        Reads(Connect),
    ),
    (
        Server,
        None,
        b"\x10\x23\0\x04MQTT\x05\xEE\0\x0A\x03\x21\0\x05\0\x01p\x05\x18\0\0\0\x01\0\x01t\0\x01\xFF\0\x01u\0\x01\0",
        Reads(Connect),
    ),
    (
        Server,
        None,
        b"\x10\x13\0\x04MQTT\x04\x06\0\x0A\0\x01p\0\x01t\0\x01m",
        Reads(Connect),
    ),
    (Server, None, b"\x11\x0D\0\x04MQTT\x04\x02\0\x0A\0\x01p", Malformed),
    (Server, None, b"\x10\x0D\0\x04MQTT\x04\x03\0\x0A\0\x01p", Malformed),
    (Server, None, b"\x10\x0D\0\x04MQTU\x04\x02\0\x0A\0\x01p", Malformed),
    (Server, None, b"\x10\x0D\0\x04MQTT\x04\x0A\0\x0A\0\x01p", Malformed),
    (
        Server,
        None,
        b"\x10\x13\0\x04MQTT\x04\x1E\0\x0A\0\x01p\0\x01t\0\x01m",
        Malformed,
    ),
    (
        Server,
        None,
        b"\x10\x13\0\x04MQTT\x04\x06\0\x0A\0\x01p\0\x01#\0\x01m",
        Malformed,
    ),
    (
        Server,
        None,
        b"\x10\x10\0\x04MQTT\x04\x42\0\x0A\0\x01p\0\x01x",
        Malformed,
    ),
    (
        Server,
        None,
        b"\x10\x10\0\x04MQTT\x04\x02\0\x0A\0\x01p\0\x01x",
        Malformed,
    ),
    (Server, None, b"\x10\x0D\0\x04MQTT\x04\x02\0\x0A\0\x01\x01", Malformed),
    (
        Server,
        None,
        b"\x10\x0D\0\x04MQTT\x06\x02\0\x0A\0\x01p",
        UnsupportedVersion,
    ),
    (
        Server,
        None,
        b"\x10\x0F\0\x06MQIsdp\x02\x02\0\x0A\0\x01p",
        UnsupportedVersion,
    ),
    (
        Server,
        None,
        b"\x10\x11\0\x04MQTT\x05\x02\0\x0A\x03\x21\0\0\0\x01p",
        Protocol,
    ),
    (
        Server,
        None,
        b"\x10\x12\0\x04MQTT\x05\x02\0\x0A\x04\x16\0\x01a\0\x01p",
        Protocol,
    ),
    (Server, None, b"\xC0\0", Protocol),
    (Server, V3, b"\x10\x0D\0\x04MQTT\x04\x02\0\x0A\0\x01p", Protocol),
    (Server, None, b"\x10\xFF\xFF\xFF\xFF\x7F", Malformed),
    // --- CONNACK
    (Client, V3, b"\x20\x02\x01\0", Reads(ConnAck)),
    (Client, NEW, b"\x20\x06\0\0\x03\x22\0\x0A", Reads(ConnAck)),
    (Client, NEW, b"\x20\x03\x02\0\0", Malformed),
    (Client, V3, b"\x20\x03\0\0\0", Malformed),
    (Server, V3, b"\x20\x02\0\0", Protocol),
    // --- PUBLISH
    (Server, V3, b"\x30\x05\0\x01t\xFFx", Reads(Publish)),
    (Server, V3, b"\x3B\x07\0\x01t\0\x01\xFFx", Reads(Publish)),
    (Server, V3, b"\x35\x05\0\x01t\0\x01", Reads(Publish)),
    (Server, NEW, b"\x30\x06\0\x01t\x02\x01\x01", Reads(Publish)),
    (Server, NEW, b"\x30\x07\0\0\x03\x23\0\x01x", Reads(Publish)),
    (Server, NEW, b"\x30\x0B\0\x01t\x07\x26\0\x01n\0\x01\x0A", Reads(Publish)),
    (Client, NEW, b"\x30\x08\0\x01t\x04\x0B\x01\x0B\x02", Reads(Publish)),
    (Server, NEW, b"\x30\x08\0\x01t\x04\x0B\x01\x0B\x02", Protocol),
    // The same length in more bytes than it needs is fine before 5.0.
    (Server, V3, b"\x30\x83\0\0\x01t", ReadsLonger(Publish)),
    (Server, NEW, b"\x30\x84\0\0\x01t\0", Malformed),
    (Server, V3, b"\x36\x05\0\x01t\0\x01", Malformed),
    (Server, V3, b"\x38\x03\0\x01t", Malformed),
    (Server, V3, b"\x30\x02\0\0", Malformed),
    (Server, NEW, b"\x30\x03\0\0\0", Malformed),
    (Server, V3, b"\x30\x03\0\x01+", Malformed),
    (Server, V3, b"\x30\x05\0\x03a/#", Malformed),
    (Server, V3, b"\x30\x03\0\x01\0", Malformed),
    (Server, V3, b"\x30\x05\0\x03\xED\xA0\x80", Malformed),
    (Server, V3, b"\x30\x04\0\x02\xC2\x9F", Malformed),
    (Server, V3, b"\x32\x05\0\x01t\0\0", Protocol),
    (Server, NEW, b"\x30\x06\0\x01t\x02\x01\x02", Protocol),
    (Server, NEW, b"\x30\x08\0\x01t\x04\x01\x01\x01\x01", Protocol),
    (Server, NEW, b"\x30\x08\0\x01t\x04\x08\0\x01#", Protocol),
    (Server, NEW, b"\x30\x06\0\x01t\x02\x24\x01", Protocol),
    (Server, NEW, b"\x30\x06\0\x01t\x02\x04\x01", Malformed),
    // What cannot be read outranks what is not allowed.
    (Server, NEW, b"\x30\x08\0\x01t\x04\x24\x01\x04\x01", Malformed),
    (Server, NEW, b"\x30\x05\0\x01t\x01\x26", Malformed),
    (Server, NEW, b"\x30\x07\0\x01t\x03\x0B\x80\0", Malformed),
    (Server, NEW, b"\x30\x0B\0\x01t\x07\x26\0\x01n\0\x01\0", Malformed),
    // --- PUBACK, PUBREC, PUBREL, PUBCOMP
    (Server, V3, b"\x40\x02\0\x01", Reads(PubAck)),
    (Server, V3, b"\x50\x02\0\x01", Reads(PubRec)),
    (Server, V3, b"\x62\x02\0\x01", Reads(PubRel)),
    (Server, V3, b"\x70\x02\0\x01", Reads(PubComp)),
    (Server, OLD, b"\x6A\x02\0\x01", ReadsLonger(PubRel)),
    (Server, V3, b"\x6A\x02\0\x01", Malformed),
    (Server, V3, b"\x41\x02\0\x01", Malformed),
    (Server, V3, b"\x40\x03\0\x01\0", FixedHeader),
    (Server, V3, b"\x40\x02\0\0", Protocol),
    (Server, NEW, b"\x40\x02\0\x01", Reads(PubAck)),
    (Server, NEW, b"\x40\x03\0\x01\x10", Reads(PubAck)),
    (Server, NEW, b"\x40\x03\0\x01\0", ReadsLonger(PubAck)),
    (Server, NEW, b"\x40\x04\0\x01\x80\0", ReadsLonger(PubAck)),
    (Server, NEW, b"\x40\x08\0\x01\0\x04\x1F\0\x01p", Reads(PubAck)),
    (Server, NEW, b"\x62\x03\0\x01\x92", Reads(PubRel)),
    (Server, NEW, b"\x70\x03\0\x01\x92", Reads(PubComp)),
    (Server, NEW, b"\x40\x03\0\x01\xFF", Protocol),
    (Server, NEW, b"\x70\x03\0\x01\x80", Protocol),
    (Server, NEW, b"\x40\x05\0\x01\0\0\0", Malformed),
    (Server, NEW, b"\x40\x0C\0\x01\0\x08\x1F\0\x01p\x1F\0\x01q", Protocol),
    (Server, NEW, b"\x40\x08\0\x01\0\x04\x23\0\x01\x70", Malformed),
    // --- SUBSCRIBE, SUBACK
    (Server, V3, b"\x82\x0A\0\x01\0\x01p\0\0\x01#\x02", Reads(Subscribe)),
    (Server, OLD, b"\x8A\x06\0\x01\0\x01p\0", ReadsLonger(Subscribe)),
    (Server, NEW, b"\x82\x09\0\x01\x02\x0B\x01\0\x01p\x2D", Reads(Subscribe)),
    (Server, NEW, b"\x82\x10\0\x01\0\0\x0A$share/g/p\0", Reads(Subscribe)),
    (Server, V3, b"\x80\x06\0\x01\0\x01p\0", Malformed),
    (Server, V3, b"\x82\x02\0\x01", Malformed),
    (Server, V3, b"\x82\x05\0\x01\0\0\0", Malformed),
    (Server, V3, b"\x82\x06\0\x01\0\x01p\x03", Malformed),
    (Server, V3, b"\x82\x06\0\x01\0\x01p\x04", Malformed),
    (Server, V3, b"\x82\x07\0\x01\0\x02a#\0", Malformed),
    (Server, V3, b"\x82\x08\0\x01\0\x03#/a\0", Malformed),
    (Server, V3, b"\x82\x06\0\0\0\x01p\0", Protocol),
    (Server, NEW, b"\x82\x07\0\x01\0\0\x01p\x30", Malformed),
    (Server, NEW, b"\x82\x07\0\x01\0\0\x01p\x40", Malformed),
    (Server, NEW, b"\x82\x09\0\x01\x02\x0B\0\0\x01p\0", Malformed),
    (Server, NEW, b"\x82\x0B\0\x01\x04\x0B\x01\x0B\x01\0\x01p\0", Protocol),
    (Server, NEW, b"\x82\x09\0\x01\x02\x01\0\0\x01p\0", Malformed),
    (Server, NEW, b"\x82\x0F\0\x01\0\0\x09$share/g/\0", Protocol),
    (Server, NEW, b"\x82\x10\0\x01\0\0\x0A$share/g/p\x04", Protocol),
    (Client, V3, b"\x90\x04\0\x01\x01\x80", Reads(SubAck)),
    (Client, NEW, b"\x90\x08\0\x01\x04\x1F\0\x01p\x9E", Reads(SubAck)),
    (Server, V3, b"\x90\x03\0\x01\0", Protocol),
    (Server, NEW, b"\x91\x03\0\x01\0", Malformed),
    // --- UNSUBSCRIBE, UNSUBACK
    (Server, V3, b"\xA2\x08\0\x01\0\x01p\0\x01q", Reads(Unsubscribe)),
    (
        Server,
        NEW,
        b"\xA2\x0D\0\x01\x07\x26\0\x01p\0\x01q\0\x01p",
        Reads(Unsubscribe),
    ),
    (Server, V3, b"\xA2\x02\0\x01", Malformed),
    (Server, V3, b"\xA2\x04\0\x01\0\0", Malformed),
    (Server, V3, b"\xA0\x05\0\x01\0\x01p", Malformed),
    (Server, NEW, b"\xA2\x08\0\x01\x02\x01\0\0\x01p", Malformed),
    (Client, V3, b"\xB0\x02\0\x01", Reads(UnsubAck)),
    (Client, NEW, b"\xB0\x05\0\x01\0\0\x11", Reads(UnsubAck)),
    (Server, NEW, b"\xB0\x04\0\x01\0\0", Protocol),
    // --- PINGREQ, PINGRESP, DISCONNECT, AUTH
    (Server, V3, b"\xC0\0", Reads(PingReq)),
    (Server, V3, b"\xC1\0", Malformed),
    (Server, NEW, b"\xC0\x01\0", FixedHeader),
    (Client, V3, b"\xD0\0", Reads(PingResp)),
    (Server, NEW, b"\xD0\0", Protocol),
    (Server, V3, b"\xE0\0", Reads(Disconnect)),
    (Server, NEW, b"\xE0\0", Reads(Disconnect)),
    (Server, NEW, b"\xE0\x01\x04", Reads(Disconnect)),
    (Server, NEW, b"\xE0\x07\0\x05\x11\0\0\0\x09", Reads(Disconnect)),
    (Server, V3, b"\xE0\x01\0", FixedHeader),
    (Server, V3, b"\xE1\0", Malformed),
    (Server, NEW, b"\xE0\x03\0\x01\0", Malformed),
    (Server, NEW, b"\xE0\x04\0\x02\x01\0", Protocol),
    (Server, NEW, b"\xF0\x06\x18\x04\x15\0\x01m", Reads(Auth)),
    (Server, NEW, b"\xF0\0", Reads(Auth)),
    (Server, NEW, b"\xF0\x01\x80", Protocol),
    (Server, NEW, b"\xF1\0", Protocol),
    (Server, V3, b"\xF0\0", Protocol),
    (Server, NEW, b"\0\0", Protocol),
];
