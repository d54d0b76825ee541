//! What an operator can set.

use std::time::Duration;

use serde::Deserialize;

use crate::codec::Limits;

/// The STOMP front-end's settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Largest body of a frame, bytes. Bounds the input memory of a connection. Default 16 MiB.
    pub body_size_max: usize,
    /// Most headers of a frame. Default 256.
    pub headers_max: usize,
    /// Longest header, name and value together, bytes. Default 64 KiB.
    pub header_size_max: usize,
    /// Most bytes of all headers of a frame together. Default 256 KiB.
    pub headers_size_max: usize,
    /// Largest frame accepted before login, bytes: all the memory that a client gets until then. Default
    /// 16 KiB.
    pub connect_size_max: usize,
    /// How long a new connection may take to send CONNECT. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Shortest heart-beat interval that is agreed on, in either direction: a client that asks for a
    /// shorter one gets this. Default 250 ms.
    #[serde(with = "humantime_serde")]
    pub heart_beat_min: Duration,
    /// Most subscriptions of one connection, and most temporary queues. Default 10,000.
    pub subscriptions_max: usize,
    /// Most unacknowledged messages of a subscription that brings no `prefetch-count`. Zero is no limit, as
    /// in RabbitMQ. Default 0.
    pub prefetch_count: u32,
    /// Whether a NACK without `requeue` puts the message back into its queue; else it is refused for good.
    /// Default true.
    pub nack_requeue: bool,
    /// Most open transactions of one connection. Default 16.
    pub transactions_max: usize,
    /// Most bytes that the open transactions of one connection hold. Default 16 MiB.
    pub transactions_size_max: usize,
    /// Most SEND, ACK and NACK frames of one transaction. Default 10,000.
    pub transaction_frames_max: usize,
    /// `>` at the end of a subscription to `/topic` stands for any number of words, as `#` does. Default
    /// false.
    pub activemq_wildcards: bool,
    /// Slashes behind `/queue/` and `/topic/` are part of the name. Without, a destination with more of them
    /// is refused and `%2F` stands for one, as in RabbitMQ. Default false.
    pub slashes_in_names: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            body_size_max: 16 << 20,
            headers_max: 256,
            header_size_max: 64 << 10,
            headers_size_max: 256 << 10,
            connect_size_max: 16 << 10,
            connect_timeout: Duration::from_secs(10),
            heart_beat_min: Duration::from_millis(250),
            subscriptions_max: 10_000,
            prefetch_count: 0,
            nack_requeue: true,
            transactions_max: 16,
            transactions_size_max: 16 << 20,
            transaction_frames_max: 10_000,
            activemq_wildcards: false,
            slashes_in_names: false,
        }
    }
}

/// Longest command that is read: an unknown one is told to its sender.
const COMMAND_MAX: usize = 32;

impl Config {
    /// What the decoder keeps at most.
    pub fn limits(&self) -> Limits {
        Limits {
            command: COMMAND_MAX,
            headers: self.headers_max,
            header_line: self.header_size_max,
            head: self.headers_size_max,
            body: self.body_size_max,
            before_login: self.connect_size_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_the_default_and_typing_errors_are_refused() {
        let parse = |text| serde_json::from_str::<Config>(text);
        assert_eq!(parse("{}").expect("nothing is set"), Config::default());
        let config = parse(r#"{"heart_beat_min": "1s", "headers_max": 20}"#).expect("all known");
        assert_eq!(config.heart_beat_min, Duration::from_secs(1));
        assert_eq!(config.limits().headers, 20);
        for wrong in [r#"{"header_max": 20}"#, r#"{"connect_timeout": 5}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
