//! Packets to bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::decode::BRIDGE_BIT;
use super::packet::{Ack, Connect, Packet, PacketType, Publish, Version};
use super::properties::Properties;
use crate::reason_code::ReasonCode;

/// Bytes that a variable byte integer takes.
pub const fn variable_len(value: u32) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Appends a variable byte integer (1.5.5).
pub fn put_variable(out: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends bytes behind a two-byte length. The caller has made sure that they are at most 65,535.
pub fn put_bytes16(out: &mut BytesMut, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}

/// Appends a fixed header.
pub fn put_fixed_header(out: &mut BytesMut, first_byte: u8, remaining: usize) {
    out.put_u8(first_byte);
    put_variable(out, remaining as u32);
}

impl Packet {
    /// Appends the packet as that version writes it; what the version does not have is left out.
    pub fn encode(&self, version: Version, out: &mut BytesMut) {
        let packet_type = self.packet_type();
        let mut body = BytesMut::new();
        let mut first_byte = packet_type.first_byte();
        match self {
            Self::Connect(connect) => put_connect(connect, &mut body),
            Self::ConnAck(connack) => {
                body.put_u8(u8::from(connack.session_present));
                body.put_u8(connack.code);
                put_properties(version, &connack.properties, &mut body);
            }
            Self::Publish(publish) => {
                first_byte |= publish_flags(publish.dup, publish.qos, publish.retain);
                put_publish(version, publish, &mut body);
            }
            Self::PubAck(ack) | Self::PubRec(ack) | Self::PubRel(ack) | Self::PubComp(ack) => {
                put_ack(version, ack, &mut body);
            }
            Self::Subscribe(subscribe) => {
                put_payload(
                    version,
                    subscribe.packet_id,
                    &subscribe.properties,
                    &subscribe.payload,
                    &mut body,
                );
            }
            Self::SubAck(suback) => {
                put_payload(version, suback.packet_id, &suback.properties, &suback.codes, &mut body);
            }
            Self::Unsubscribe(unsubscribe) => {
                put_payload(
                    version,
                    unsubscribe.packet_id,
                    &unsubscribe.properties,
                    &unsubscribe.payload,
                    &mut body,
                );
            }
            Self::UnsubAck(unsuback) => {
                put_payload(
                    version,
                    unsuback.packet_id,
                    &unsuback.properties,
                    &unsuback.codes,
                    &mut body,
                );
            }
            Self::PingReq | Self::PingResp => {}
            Self::Disconnect(disconnect) if version == Version::V5 => {
                put_code(disconnect.code, &disconnect.properties, &mut body);
            }
            Self::Disconnect(_) => {}
            Self::Auth(auth) => put_code(auth.reason as u8, &auth.properties, &mut body),
        }
        put_fixed_header(out, first_byte, body.len());
        out.put_slice(&body);
    }
}

/// The low four bits of a PUBLISH packet's first byte.
pub(crate) const fn publish_flags(dup: bool, qos: u8, retain: bool) -> u8 {
    (dup as u8) << 3 | qos << 1 | retain as u8
}

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP in its shortest form.
pub(crate) fn put_short_ack(
    out: &mut BytesMut,
    version: Version,
    packet_type: PacketType,
    packet_id: u16,
    reason: ReasonCode,
) {
    let has_reason = version == Version::V5 && reason != ReasonCode::Success;
    put_fixed_header(out, packet_type.first_byte(), 2 + usize::from(has_reason));
    out.put_u16(packet_id);
    if has_reason {
        out.put_u8(reason as u8);
    }
}

fn put_properties(version: Version, properties: &Properties, out: &mut BytesMut) {
    if version == Version::V5 {
        let bytes = properties.as_bytes();
        put_variable(out, bytes.len() as u32);
        out.put_slice(bytes);
    }
}

fn put_connect(connect: &Connect, out: &mut BytesMut) {
    let name: &[u8] = match connect.version {
        Version::V31 => b"MQIsdp",
        Version::V311 | Version::V5 => b"MQTT",
    };
    put_bytes16(out, name);
    out.put_u8(connect.version as u8 | if connect.is_bridge { BRIDGE_BIT } else { 0 });
    let will = connect.will.as_ref();
    let will_flags = will.map_or(0, |will| 0x04 | will.qos << 3 | u8::from(will.retain) << 5);
    out.put_u8(
        u8::from(connect.clean_start) << 1
            | will_flags
            | u8::from(connect.password.is_some()) << 6
            | u8::from(connect.user.is_some()) << 7,
    );
    out.put_u16(connect.keep_alive);
    put_properties(connect.version, &connect.properties, out);
    put_bytes16(out, &connect.client_id);
    if let Some(will) = will {
        put_properties(connect.version, &will.properties, out);
        put_bytes16(out, &will.topic);
        put_bytes16(out, &will.payload);
    }
    for field in [&connect.user, &connect.password].into_iter().flatten() {
        put_bytes16(out, field);
    }
}

fn put_publish(version: Version, publish: &Publish, out: &mut BytesMut) {
    put_bytes16(out, &publish.topic);
    if publish.qos > 0 {
        out.put_u16(publish.packet_id);
    }
    put_properties(version, &publish.properties, out);
    out.put_slice(&publish.payload);
}

fn put_ack(version: Version, ack: &Ack, out: &mut BytesMut) {
    out.put_u16(ack.packet_id);
    if version == Version::V5 {
        put_code(ack.reason as u8, &ack.properties, out);
    }
}

/// A reason code and properties, each left out when nothing follows and it says nothing.
fn put_code(code: u8, properties: &Properties, out: &mut BytesMut) {
    if properties.as_bytes().is_empty() {
        if code != 0 {
            out.put_u8(code);
        }
        return;
    }
    out.put_u8(code);
    put_properties(Version::V5, properties, out);
}

fn put_payload(version: Version, packet_id: u16, properties: &Properties, payload: &Bytes, out: &mut BytesMut) {
    out.put_u16(packet_id);
    put_properties(version, properties, out);
    out.put_slice(payload);
}
