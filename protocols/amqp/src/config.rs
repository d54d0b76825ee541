//! What an operator can set.

use serde::Deserialize;

/// Smallest frame size a peer may negotiate, in octets (4.2.3, `frame-min-size`).
pub const FRAME_MAX_FLOOR: u32 = 4096;

/// Settings of the AMQP front-end. Defaults are RabbitMQ's.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Most channels that one connection may have open at a time; a client may ask for fewer. Default
    /// 2047. A channel without consumers costs about 400 bytes.
    pub channel_max: u16,
    /// Largest frame in octets, header and end octet included; a client may ask for less, down to 4096.
    /// Default 131072. Bounds how much of one frame is held until it is complete.
    pub frame_max: u32,
    /// Heartbeat interval proposed to clients, in seconds; the client's answer counts. Zero proposes
    /// none. Default 60.
    pub heartbeat: u16,
    /// How long a connection may take from the first octet to `connection.open`, in seconds. Default 10.
    pub handshake_timeout: u32,
    /// Largest frame accepted before `connection.tune-ok`, in octets. Default 8192. Bounds what a peer
    /// that has not logged in makes us hold.
    pub initial_frame_max: u32,
    /// Largest message body in octets. Default 16 MiB. Bounds what one channel holds of a message that
    /// is not complete.
    pub message_size_max: u64,
    /// Most consumers on one channel. Default 10000.
    pub consumers_max: u32,
    /// How long to wait for `connection.close-ok` after we closed, in seconds. Default 5.
    pub close_timeout: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 60,
            handshake_timeout: 10,
            initial_frame_max: 8192,
            message_size_max: 16 << 20,
            consumers_max: 10_000,
            close_timeout: 5,
        }
    }
}
