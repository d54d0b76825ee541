//! What the remoting front-end is told at start.

use std::net::{IpAddr, SocketAddr};

use rocketbridge_core::time::Millis;
use serde::Deserialize;

use crate::codec::Limits;

/// Settings of the remoting front-end. One value serves all its connections.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The broker's name in routes. Clients keep offsets and locks by it: changing it makes them begin
    /// anew.
    pub broker_name: String,
    /// The cluster's name in routes.
    pub cluster_name: String,
    /// The address clients are told to connect to, `host` or `host:port`. Needed behind port forwarding
    /// and in containers; without it, it is the address that the asking connection came in on.
    pub advertise: Option<String>,
    /// Whether a send to a topic that does not exist makes it, when the producer's `defaultTopic` is
    /// `TBW102`.
    pub topics_auto_create: bool,
    /// Most message queues of a topic that a send makes; the producer asks for 4 unless told otherwise.
    pub topic_queues_max: u32,
    /// Largest message body, and largest batch, in bytes.
    pub body_max: usize,
    /// Largest frame, in bytes. Bounds memory per connection.
    pub frame_max: usize,
    /// Largest header, in bytes. Properties of 32 KiB need up to six times that much in JSON.
    pub header_max: usize,
    /// Most messages of one batch.
    pub batch_messages_max: usize,
    /// Most messages in the answer to one pull; clients ask for 32 unless told otherwise.
    pub pull_messages_max: u32,
    /// Most bytes in the answer to one pull. One message comes whatever its size.
    pub pull_bytes_max: u32,
    /// Longest time a pull is held, in milliseconds; clients ask for 15,000 to 20,000.
    pub pull_suspend_max_ms: u64,
    /// A connection without traffic in either direction is closed after this many milliseconds.
    pub idle_timeout_ms: u64,
    /// A message that the broker could not take after this many milliseconds is answered with "busy".
    pub busy_after_ms: u64,
    /// Most messages of one connection that are sent and not answered.
    pub sends_max: usize,
    /// Most bytes of their bodies.
    pub sends_bytes_max: usize,
    /// Most other requests of one connection that are not answered, held pulls among them.
    pub requests_max: usize,
    /// Most groups of one connection, producers and consumers together.
    pub groups_max: usize,
    /// The port of the broker listener as it is bound: the bridge fills it in.
    #[serde(skip)]
    pub broker_port: u16,
    /// The address in message ids, the same that core writes into records: the bridge fills it in.
    #[serde(skip)]
    pub store_host: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            broker_name: "rocketbridge".into(),
            cluster_name: "DefaultCluster".into(),
            advertise: None,
            topics_auto_create: true,
            topic_queues_max: 8,
            body_max: 4 << 20,
            frame_max: 16 << 20,
            header_max: 1 << 20,
            batch_messages_max: 32_768,
            pull_messages_max: 1024,
            pull_bytes_max: 256 << 10,
            pull_suspend_max_ms: 60_000,
            idle_timeout_ms: 120_000,
            busy_after_ms: 200,
            sends_max: 65_536,
            sends_bytes_max: 64 << 20,
            requests_max: 8192,
            groups_max: 1024,
            broker_port: 10911,
            store_host: SocketAddr::from(([127, 0, 0, 1], 10911)),
        }
    }
}

impl Config {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            frame_max: self.frame_max,
            header_max: self.header_max,
        }
    }

    pub(crate) fn idle_timeout(&self) -> Millis {
        Millis(self.idle_timeout_ms)
    }

    pub(crate) fn busy_after(&self) -> Millis {
        Millis(self.busy_after_ms)
    }

    /// The broker's address for a client whose connection came in on `local`.
    pub fn broker_address(&self, local: SocketAddr) -> String {
        let Some(advertise) = &self.advertise else {
            return SocketAddr::new(local.ip().to_canonical(), self.broker_port).to_string();
        };
        if let Ok(ip) = advertise.parse::<IpAddr>() {
            return SocketAddr::new(ip, self.broker_port).to_string();
        }
        let has_port = advertise
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port {
            advertise.clone()
        } else {
            format!("{advertise}:{}", self.broker_port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_the_advertised_address_or_the_one_they_came_in_on() {
        let mut config = Config {
            broker_port: 1234,
            ..Config::default()
        };
        let address = |config: &Config, local: &str| config.broker_address(local.parse().unwrap());
        assert_eq!(address(&config, "10.0.0.7:9876"), "10.0.0.7:1234");
        assert_eq!(address(&config, "[::ffff:10.0.0.7]:9876"), "10.0.0.7:1234");
        assert_eq!(address(&config, "[::1]:9876"), "[::1]:1234");
        for (advertise, told) in [
            ("mq.example.org", "mq.example.org:1234"),
            ("mq.example.org:77", "mq.example.org:77"),
            ("192.0.2.1", "192.0.2.1:1234"),
            ("192.0.2.1:77", "192.0.2.1:77"),
            ("fe80::1", "[fe80::1]:1234"),
            ("[fe80::1]:77", "[fe80::1]:77"),
        ] {
            config.advertise = Some(advertise.into());
            assert_eq!(address(&config, "10.0.0.7:9876"), told);
        }
    }
}
