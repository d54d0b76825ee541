//! What an operator can set.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::stats::Stats;

/// The MQTT front-end's settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Largest packet accepted after CONNECT, bytes, fixed header included; told to MQTT 5.0 clients as
    /// Maximum Packet Size. Bounds the input memory of a connection. Default 16 MiB.
    pub packet_size_max: u32,
    /// Largest CONNECT packet accepted, bytes: all the memory that a client gets before it has logged
    /// in. A larger one gets CONNACK 0x95 (3.x: 3). Default 384 KiB: five fields of 64 KiB, and properties.
    pub connect_size_max: u32,
    /// How long a new connection may take to send CONNECT. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Most QoS 1 messages of an MQTT 5.0 client that wait for their PUBACK, and QoS 2 ones for their PUBCOMP: told
    /// as Receive Maximum, and a client that goes beyond it is disconnected with 0x93. It is no bound of memory:
    /// whatever the version, a client is not read while 4,096 of its messages (or this many, if it is fewer and the
    /// client older) wait to be stored. Default 65,535, which is no limit; at least 1.
    pub receive_maximum: u16,
    /// Most unacknowledged QoS 1 and 2 messages sent to one client; an MQTT 5.0 client may ask for fewer.
    /// Default 1,024; at least 1.
    pub inflight_max: u16,
    /// Most topic aliases that an MQTT 5.0 client may set; each costs its topic's bytes. Default 10.
    pub topic_alias_maximum: u16,
    /// Most topic aliases used towards an MQTT 5.0 client that allows some; each costs its topic's bytes.
    /// Default 16.
    pub outgoing_topic_alias_maximum: u16,
    /// Longest keep alive of MQTT 5.0 clients, seconds: one that asks for more, or for none, is told this. Zero
    /// is no limit. Default 0.
    pub keep_alive_max: u16,
    /// How long an MQTT 5.0 client waits, unread, while the broker takes no messages, before its QoS 1 and 2
    /// messages are answered with 0x97. Default 1 s.
    #[serde(with = "humantime_serde")]
    pub blocked_max: Duration,
    /// Topic filters that nobody may subscribe to: SUBACK says 0x80. Compared byte for byte. Default none.
    pub refused_filters: Vec<String>,
    /// What the response information of an MQTT 5.0 client that asks for it begins with; its client identifier
    /// follows. Empty gives none. Default `response/`.
    pub response_prefix: String,
    /// How often a client that has subscribed to `$SYS` topics gets their values, which it also gets with the
    /// subscription. Zero is never, and not with the subscription either. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub sys_interval: Duration,
    /// Most subscriptions of one session; beyond it SUBACK says 0x97 (3.1.1: 0x80). Default 100,000.
    pub subscriptions_max: usize,
    /// Most bytes that the topic filters of one session have together; beyond it the same. Default 8 MiB.
    pub subscriptions_bytes_max: u32,
    /// Most shared subscriptions of one session; beyond it SUBACK says 0x97 (3.1.1: 0x80). Default 100.
    pub shared_subscriptions_max: usize,
    /// Most levels of a topic name or filter. Default 200.
    pub topic_levels_max: usize,
    /// Longest life of a session without a connection; a session that asks for more gets this much, and
    /// MQTT 5.0 clients are told. Zero is no limit. Default 7 days.
    #[serde(with = "humantime_serde")]
    pub session_expiry_max: Duration,
    /// Most messages that wait for one session; the oldest is dropped to make room. Zero is no limit.
    /// Default 100,000.
    pub session_messages_max: u64,
    /// Most bytes of messages that wait for one session. Zero is no limit. Default 64 MiB.
    pub session_bytes_max: u64,
    /// Log every client in without credentials, whatever user name and password it shows, as Mosquitto
    /// does when no users are set up. Default false.
    pub ignore_credentials: bool,
    /// What all connections with these settings count together. Not a setting.
    #[serde(skip)]
    pub stats: Arc<Stats>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            packet_size_max: 16 << 20,
            connect_size_max: 384 << 10,
            connect_timeout: Duration::from_secs(10),
            receive_maximum: u16::MAX,
            inflight_max: 1024,
            topic_alias_maximum: 10,
            outgoing_topic_alias_maximum: 16,
            keep_alive_max: 0,
            blocked_max: Duration::from_secs(1),
            refused_filters: Vec::new(),
            response_prefix: "response/".into(),
            sys_interval: Duration::from_secs(10),
            subscriptions_max: 100_000,
            subscriptions_bytes_max: 8 << 20,
            shared_subscriptions_max: 100,
            topic_levels_max: 200,
            session_expiry_max: Duration::from_secs(7 * 24 * 3600),
            session_messages_max: 100_000,
            session_bytes_max: 64 << 20,
            ignore_credentials: false,
            stats: Arc::default(),
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
        let config = parse(r#"{"connect_timeout": "1m 5s", "inflight_max": 20}"#).expect("all known");
        assert_eq!(config.connect_timeout, Duration::from_secs(65));
        assert_eq!((config.inflight_max, config.receive_maximum), (20, u16::MAX));
        for wrong in [
            r#"{"inflight_maximum": 20}"#,
            r#"{"inflight_max": 70000}"#,
            r#"{"connect_timeout": 5}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
