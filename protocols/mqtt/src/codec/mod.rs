//! Bytes to packets and back, for MQTT 3.1, 3.1.1 and 5.0 and all 15 packet types.
//!
//! One [`Decoder`] reads all versions; CONNECT sets the version. It copies nothing (fields are slices of the
//! input), allocates nothing that a peer merely claims, and is strict: what it gives out satisfies
//! every rule that can be checked without knowing the session. Where the standard leaves a choice it
//! does what Mosquitto does. Properties: [`properties`]; strings and topics: [`text`].

mod decode;
mod encode;
mod packet;
pub mod properties;
pub mod text;

pub use decode::{Decoder, version_asked_for};
pub(crate) use encode::{publish_flags, put_short_ack};
pub use encode::{put_bytes16, put_fixed_header, put_variable, variable_len};
pub use packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Filters, Packet, PacketType, Publish, Side, SubAck, Subscribe,
    SubscriptionOptions, UnsubAck, Unsubscribe, UnsubscribeFilters, Version, Will,
};

use rocketbridge_session::{Cursor, Truncated};

use crate::reason_code::ReasonCode;

/// Longest remaining length (2.2.3): four bytes of seven bits.
pub const REMAINING_LENGTH_MAX: u32 = 0x0FFF_FFFF;

/// Why bytes are not a packet. All of them end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The fixed header says a length that its type cannot have: closed without an answer.
    #[error("impossible length of {0:?}")]
    FixedHeader(PacketType),
    /// It cannot be read.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// It can be read, but may not be like this.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// Larger than the limit.
    #[error("packet of {size} bytes, at most {size_max} are accepted")]
    TooLarge {
        /// What the fixed header claims, bytes.
        size: u32,
        /// What is accepted, bytes.
        size_max: u32,
    },
    /// CONNECT asks for a version that nobody here speaks.
    #[error("unsupported protocol level {0}")]
    UnsupportedVersion(u8),
}

impl DecodeError {
    /// What an MQTT 5.0 peer is told in DISCONNECT, if anything.
    pub fn reason_code(self) -> Option<ReasonCode> {
        match self {
            Self::FixedHeader(_) => None,
            Self::Malformed(_) => Some(ReasonCode::MalformedPacket),
            Self::Protocol(_) => Some(ReasonCode::ProtocolError),
            Self::TooLarge { .. } => Some(ReasonCode::PacketTooLarge),
            Self::UnsupportedVersion(_) => Some(ReasonCode::UnsupportedProtocolVersion),
        }
    }
}

impl From<Truncated> for DecodeError {
    fn from(_: Truncated) -> Self {
        Self::Malformed("it ends inside a field")
    }
}

/// How long the packet is that begins with these bytes, fixed header included (2.1); `None` when five bytes are not
/// there and fewer do not tell.
pub fn packet_len(input: &[u8]) -> Option<usize> {
    let remaining = take_variable(&mut Cursor::new(input.get(1..)?)).ok()?;
    Some(1 + variable_len(remaining) + remaining as usize)
}

/// A variable byte integer in its shortest form. [MQTT-1.5.5-1]
fn take_variable(cursor: &mut Cursor<'_>) -> Result<u32, DecodeError> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let byte = cursor.u8()?;
        value |= u32::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            if byte == 0 && shift > 0 {
                return Err(DecodeError::Malformed(
                    "variable byte integer longer than it needs to be",
                ));
            }
            return Ok(value);
        }
    }
    Err(DecodeError::Malformed("variable byte integer of more than four bytes"))
}
