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
    /// Prepares what makes its sessions, once all addresses are bound.
    pub sessions: fn(&Config, &Bound) -> NewSession,
}

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
    Protocol { name: "amqp", title: "AMQP 0-9-1", listen_key: "amqp.listen", listen: |c| &c.amqp.listen, sessions: |c, _| sessions(&c.amqp.protocol, rocketbridge_amqp::Session::new) },
    Protocol { name: "mqtt", title: "MQTT", listen_key: "mqtt.listen", listen: |c| &c.mqtt.listen, sessions: mqtt },
    Protocol { name: "stomp", title: "STOMP", listen_key: "stomp.listen", listen: |c| &c.stomp.listen, sessions: |c, _| sessions(&c.stomp.protocol, rocketbridge_stomp::Session::new) },
    Protocol { name: "remoting", title: "RocketMQ clients", listen_key: "remoting.listen", listen: |c| &c.remoting.listen, sessions: remoting },
    Protocol { name: "name_server", title: "RocketMQ clients that ask for routes", listen_key: "remoting.name_server_listen", listen: |c| &c.remoting.name_server_listen, sessions: remoting },
];

fn sessions<C, S>(config: &C, new: fn(Arc<C>, Peer, u64, Now) -> S) -> NewSession
where
    C: Clone + Send + Sync + 'static,
    S: Session + 'static,
{
    let config = Arc::new(config.clone());
    Arc::new(move |peer, seed, now| Box::new(new(Arc::clone(&config), peer, seed, now)))
}

/// All connections count together.
fn mqtt(config: &Config, _: &Bound) -> NewSession {
    let config = Arc::new(config.mqtt.protocol.clone());
    let stats = Arc::<rocketbridge_mqtt::Stats>::default();
    Arc::new(move |_, seed, now| Box::new(MqttSession::new(Arc::clone(&config), Arc::clone(&stats), seed, now)))
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
