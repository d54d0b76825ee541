//! What is noted on a lease of the session's own queue.
//!
//! ```text
//! bits 0 to 15: packet identifier | bit 16: the client has the message | bits 17 and 18: the QoS it was sent with
//! ```

const RECEIVED: u32 = 1 << 16;
const QOS_SHIFT: u32 = 17;

/// What an exchange was noted as, on this connection or an earlier one.
pub(super) struct Note {
    /// The packet identifier, where it is not the one that the sequence gives.
    pub(super) packet_id: Option<u16>,
    /// PUBREC came.
    pub(super) is_received: bool,
    /// The QoS that it was sent with; `None` when the subscriptions tell.
    pub(super) qos: Option<u8>,
}

impl Note {
    pub(super) fn of(note: u32) -> Self {
        Self {
            packet_id: Some(note as u16).filter(|id| *id != 0),
            is_received: note & RECEIVED != 0,
            qos: Some((note >> QOS_SHIFT & 3) as u8).filter(|qos| *qos != 0),
        }
    }

    /// The message was sent like that.
    pub(super) fn sent(packet_id: u16, qos: u8) -> u32 {
        u32::from(packet_id) | u32::from(qos) << QOS_SHIFT
    }

    /// The client has the message.
    pub(super) fn received(packet_id: u16) -> u32 {
        u32::from(packet_id) | RECEIVED
    }
}
