//! The list of protocols. A new one is a dependency, a line here and a field in [`Config`].

use std::net::SocketAddr;
use std::sync::Arc;

use rocketbridge_core::boundary::Peer;
use rocketbridge_core::request::Exchange;
use rocketbridge_core::time::Now;
use rocketbridge_mqtt::MqttSession;
use rocketbridge_session::Session;

use crate::config::Config;
use crate::listener::NewSession;
use crate::websocket::{Messages, Settings};

/// One kind of listening address.
pub struct Protocol {
    /// In the ready line, in the log and in the flag `--NAME-listen`.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// The configuration key of its addresses.
    pub listen_key: &'static str,
    /// Its addresses.
    pub listen: fn(&Config) -> &[String],
    /// What its connections are.
    pub transport: Transport,
    /// Prepares what makes its sessions, once all addresses are bound.
    pub sessions: fn(&Config, &Bound) -> NewSession,
}

/// What carries a protocol's bytes.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    /// Nothing but the connection.
    Plain,
    /// The messages of a WebSocket.
    WebSocket(&'static Settings),
}

static MQTT_WEBSOCKET: Settings = Settings {
    title: "MQTT over WebSocket",
    // The others are what clients of other brokers are set up with.
    paths: &["/mqtt", "/mqtt/", "/ws", "/ws/", "/"],
    subprotocols: &["mqtt", "mqttv3.1"],
    messages: Messages::Binary {
        packet_len: rocketbridge_mqtt::codec::packet_len,
    },
};

static STOMP_WEBSOCKET: Settings = Settings {
    title: "STOMP over WebSocket",
    paths: &["/ws", "/ws/", "/stomp", "/stomp/", "/"],
    subprotocols: &["v12.stomp", "v11.stomp", "v10.stomp"],
    messages: Messages::Any,
};

/// What is known once all addresses are bound.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// The broker's own first address, with its real port.
    pub broker: SocketAddr,
    /// The address in native message ids.
    pub store_host: SocketAddr,
}

/// All of them, in the order of the ready line.
#[rustfmt::skip]
pub const PROTOCOLS: &[Protocol] = &[
    Protocol { name: "amqp", title: "AMQP 0-9-1", listen_key: "amqp.listen", listen: |c| &c.amqp.listen, transport: Transport::Plain, sessions: |c, _| sessions(&c.amqp.protocol, rocketbridge_amqp::Session::new) },
    Protocol { name: "mqtt", title: "MQTT", listen_key: "mqtt.listen", listen: |c| &c.mqtt.listen, transport: Transport::Plain, sessions: |c, _| sessions(&c.mqtt.protocol, |config, _, seed, now| MqttSession::new(config, seed, now)) },
    Protocol { name: "mqtt_websocket", title: "MQTT over WebSocket", listen_key: "mqtt.websocket_listen", listen: |c| &c.mqtt.websocket_listen, transport: Transport::WebSocket(&MQTT_WEBSOCKET), sessions: |c, _| sessions(&c.mqtt.protocol, |config, _, seed, now| MqttSession::new(config, seed, now)) },
    Protocol { name: "stomp", title: "STOMP", listen_key: "stomp.listen", listen: |c| &c.stomp.listen, transport: Transport::Plain, sessions: |c, _| sessions(&c.stomp.protocol, rocketbridge_stomp::Session::new) },
    Protocol { name: "stomp_websocket", title: "STOMP over WebSocket", listen_key: "stomp.websocket_listen", listen: |c| &c.stomp.websocket_listen, transport: Transport::WebSocket(&STOMP_WEBSOCKET), sessions: |c, _| sessions(&c.stomp.protocol, rocketbridge_stomp::Session::new) },
    Protocol { name: "remoting", title: "RocketMQ clients", listen_key: "remoting.listen", listen: |c| &c.remoting.listen, transport: Transport::Plain, sessions: remoting },
    Protocol { name: "name_server", title: "RocketMQ clients that ask for routes", listen_key: "remoting.name_server_listen", listen: |c| &c.remoting.name_server_listen, transport: Transport::Plain, sessions: remoting },
];

fn sessions<C, S>(config: &C, new: fn(Arc<C>, Peer, u64, Now) -> S) -> NewSession
where
    C: Clone + Send + Sync + 'static,
    S: Session + 'static,
{
    let config = Arc::new(config.clone());
    Arc::new(move |peer, seed, now| Box::new(new(Arc::clone(&config), peer, seed, now)))
}

/// The name server tells clients where the broker is, so it must know the real port.
fn remoting(config: &Config, bound: &Bound) -> NewSession {
    let mut config = config.remoting.protocol.clone();
    config.broker_port = bound.broker.port();
    config.store_host = bound.store_host;
    sessions(&config, |config, peer, _, now| {
        rocketbridge_remoting::Session::new(config, peer, now)
    })
}

/// Exchanges that clients of some protocol take for granted.
pub fn exchanges() -> Vec<Exchange> {
    rocketbridge_amqp::predeclared_exchanges()
}
