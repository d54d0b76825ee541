//! The whole broker in a process: addresses, engine, accept loops, and an orderly end.
//!
//! Used by the program and, on port 0, by tests: [`Server::start`], then [`Server::address`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Wake;
use std::thread;

use bytes::Bytes;
use rocketbridge_core::address::encode_name;
use rocketbridge_core::engine::{self, Engine, OpenError, StoreFailed};
use rocketbridge_core::request::Dedup;
use rocketbridge_core::time::{Clock, Millis};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tracing::{debug, error, warn};

use crate::clock::SystemClock;
use crate::config::{Config, Deduplicate, Flush};
use crate::connections::{Call, Connections};
use crate::listener::{self, Acceptor};
use crate::log;
use crate::protocols::{Bound, PROTOCOLS};

/// How long clients have to end their conversations when the broker stops.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// How long connections that are dropped have to be gone.
const DROP_TIME: Duration = Duration::from_secs(1);

/// How often the engine looks at what has expired.
const TICK: Duration = Duration::from_secs(1);

/// Why a broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, not ours, or not allowed.
    #[error("cannot listen at {address} for {protocol}: {error}")]
    Listen {
        /// The protocol's name.
        protocol: &'static str,
        /// As configured.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The data directory cannot be used.
    #[error("data directory {}: {error}", data_dir.display())]
    Open {
        /// As configured.
        data_dir: PathBuf,
        /// Why.
        error: OpenError,
    },
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A running broker. Dropping it without [`shutdown`](Self::shutdown) closes sockets and connections and
/// leaves the store as a crash would.
pub struct Server {
    addresses: Vec<(&'static str, Vec<SocketAddr>)>,
    accepting: Vec<JoinHandle<()>>,
    ticking: JoinHandle<()>,
    connections: Arc<Connections>,
    engine: Engine,
    /// How the sync thread ended.
    synced: oneshot::Receiver<Result<(), StoreFailed>>,
}

impl Server {
    /// Binds all addresses, opens the data directory, and accepts connections.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let clock = SystemClock::start();
        let mut listeners = Vec::new();
        for protocol in PROTOCOLS {
            let mut bound = Vec::new();
            for address in (protocol.listen)(&config) {
                let listener = listener::bind(address).await.and_then(|l| Ok((l.local_addr()?, l)));
                bound.push(listener.map_err(|error| StartError::Listen {
                    protocol: protocol.name,
                    address: address.clone(),
                    error,
                })?);
            }
            listeners.push((protocol, bound));
        }
        let bound = bound(
            &config,
            &listeners.iter().map(|(p, l)| (p.name, &l[..])).collect::<Vec<_>>(),
        );
        let engine =
            Engine::open(&config.data_dir, engine_config(&config, &bound), Arc::new(clock)).map_err(|error| {
                StartError::Open {
                    data_dir: config.data_dir.clone(),
                    error,
                }
            })?;
        let synced = run_sync(engine.clone()).map_err(StartError::Thread)?;
        let connections = Connections::new(config.limits.connections_max, config.limits.unfinished_max);
        let mut addresses = Vec::new();
        let mut accepting = Vec::new();
        for (protocol, bound_here) in listeners {
            let sessions = (protocol.sessions)(&config, &bound);
            addresses.push((protocol.name, bound_here.iter().map(|(address, _)| *address).collect()));
            for (_, listener) in bound_here {
                let acceptor = Acceptor {
                    protocol: protocol.name,
                    broker: engine.clone(),
                    transport: protocol.transport,
                    sessions: Arc::clone(&sessions),
                    connections: Arc::clone(&connections),
                    clock,
                };
                accepting.push(tokio::spawn(acceptor.run(listener)));
            }
        }
        Ok(Self {
            addresses,
            accepting,
            ticking: tokio::spawn(tick(engine.clone(), clock)),
            connections,
            engine,
            synced,
        })
    }

    /// Where it listens, by the protocols' names.
    pub fn addresses(&self) -> &[(&'static str, Vec<SocketAddr>)] {
        &self.addresses
    }

    /// The first address of a protocol.
    ///
    /// # Panics
    /// When there is no protocol of that name or it listens nowhere.
    pub fn address(&self, protocol: &str) -> SocketAddr {
        let addresses = self.addresses.iter().find(|(name, _)| *name == protocol);
        *addresses.and_then(|(_, all)| all.first()).expect("it listens")
    }

    /// All addresses as in the ready line: `amqp=127.0.0.1:5672 mqtt=...`. What is turned off is left out.
    pub fn listening(&self) -> String {
        let listening = self.addresses.iter().filter(|(_, all)| !all.is_empty());
        let named = listening.map(|(name, all)| {
            let all: Vec<_> = all.iter().map(ToString::to_string).collect();
            format!("{name}={}", all.join(","))
        });
        named.collect::<Vec<_>>().join(" ")
    }

    /// How many connections are open.
    pub fn connection_count(&self) -> usize {
        self.connections.count()
    }

    /// Puts what can change while running into force: limits on connections.
    pub fn reload(&self, config: &Config) {
        let limits = &config.limits;
        self.connections.set_max(limits.connections_max, limits.unfinished_max);
    }

    /// Waits until the store has failed: nothing is confirmed any more, and the process should end.
    pub async fn failed(&mut self) -> StoreFailed {
        match (&mut self.synced).await {
            Ok(Err(failed)) => failed,
            // The thread does not end well before the engine is closed, which takes `self`.
            Ok(Ok(())) | Err(_) => StoreFailed("the sync thread ended".into()),
        }
    }

    /// Stops accepting, lets every session say goodbye, waits up to 10 s for their peers, and writes
    /// everything.
    ///
    /// # Errors
    /// [`StoreFailed`] when not everything could be written.
    pub async fn shutdown(mut self) -> Result<(), StoreFailed> {
        for accepting in std::mem::take(&mut self.accepting) {
            accepting.abort();
            // Its socket is closed when the task is gone.
            let _ = accepting.await;
        }
        self.connections.tell(Call::SayGoodbye);
        if timeout(DRAIN_TIME, self.connections.emptied()).await.is_err() {
            warn!(
                connections = self.connections.count(),
                "connections dropped: their clients did not close them"
            );
            self.connections.tell(Call::Drop);
            let _ = timeout(DROP_TIME, self.connections.emptied()).await;
        }
        self.ticking.abort();
        let engine = self.engine.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || engine.close()).await {
            error!(%error, "the engine was not closed in good order");
        }
        match (&mut self.synced).await {
            Ok(result) => result,
            Err(_) => Err(StoreFailed("the sync thread ended".into())),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for accepting in &self.accepting {
            accepting.abort();
        }
        self.ticking.abort();
        self.connections.tell(Call::Drop);
    }
}

fn run_sync(engine: Engine) -> io::Result<oneshot::Receiver<Result<(), StoreFailed>>> {
    let (ended, synced) = oneshot::channel();
    let maintained = engine.clone();
    let maintenance = thread::Builder::new()
        .name("maintenance".into())
        .spawn(move || maintained.run_maintenance())?;
    thread::Builder::new().name("sync".into()).spawn(move || {
        let result = engine.run_sync();
        match &result {
            Err(failed) => log::last_words(|| error!("{failed}")),
            Ok(()) => drop(maintenance.join()),
        }
        // Nobody waits when the server was dropped.
        let _ = ended.send(result);
    })?;
    Ok(synced)
}

/// Wakes the task that ticks before it wanted to.
#[derive(Default)]
struct Alarm(Notify);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}

/// Calls the engine once a second, and whenever something is due.
async fn tick(engine: Engine, clock: SystemClock) {
    let alarm = Arc::new(Alarm::default());
    engine.set_alarm(Arc::clone(&alarm).into());
    let mut next_tick = Instant::now();
    loop {
        let now = Instant::now();
        if now >= next_tick {
            engine.tick();
            next_tick = now + TICK;
        } else {
            engine.fire();
        }
        let due = engine.next_deadline().map(|at| {
            let left = at.since(clock.now().mono).0;
            // Whoever fires as fast as it can lets others work in between.
            Instant::now() + Duration::from_millis(left.max(1))
        });
        let until = due.map_or(next_tick, |due| due.min(next_tick));
        tokio::select! {
            () = sleep_until(until) => {}
            () = alarm.0.notified() => {}
        }
    }
}

fn bound(config: &Config, listeners: &[(&str, &[(SocketAddr, TcpListener)])]) -> Bound {
    let broker = listeners
        .iter()
        .find(|(name, _)| *name == "remoting")
        .and_then(|(_, all)| all.first());
    let broker = broker.map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 10911)), |(address, _)| *address);
    let store_host = advertised(config.remoting.protocol.advertise.as_deref(), broker.port())
        .unwrap_or_else(|| SocketAddr::new(reachable_ip(broker.ip()), broker.port()));
    debug!(%broker, %store_host, "bound");
    Bound { broker, store_host }
}

/// The advertised address, when it is a number: a record has no room for a name.
fn advertised(advertise: Option<&str>, port: u16) -> Option<SocketAddr> {
    let advertise = advertise?;
    match advertise.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, port)),
        Err(_) => advertise.parse().ok(),
    }
}

/// An address that others may reach us at when we listen at `ip`.
fn reachable_ip(ip: IpAddr) -> IpAddr {
    if !ip.is_unspecified() {
        return ip;
    }
    // Connecting a UDP socket sends nothing: it only asks which of our addresses a packet would leave from.
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    outward.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}

fn dedup_topic(deduplicate: &Deduplicate) -> (Bytes, Dedup) {
    let dedup = Dedup {
        property: Bytes::from(deduplicate.property.clone()),
        keys_max: deduplicate.keys,
        time: deduplicate.time.map(|time| Millis(time.as_millis() as u64)),
    };
    (encode_name(&Bytes::from(deduplicate.topic.clone())), dedup)
}

fn engine_config(config: &Config, bound: &Bound) -> engine::Config {
    let users = config.users.iter().map(|user| engine::User {
        name: Bytes::from(user.name.clone()),
        password: Bytes::from(user.password.0.clone()),
        loopback_only: user.loopback_only,
    });
    engine::Config {
        flush: match config.store.flush {
            Flush::Sync => engine::Flush::Sync,
            Flush::Async => engine::Flush::Async,
        },
        users: users.collect(),
        exchanges: crate::protocols::exchanges(),
        anonymous_loopback: config.anonymous.loopback,
        store_host: bound.store_host,
        topics_auto_max: config.limits.topics_auto_max,
        retained_max: config.limits.retained_max,
        dedup_keys_max: config.limits.dedup_keys_max,
        dedup_topics: config.deduplicate.iter().map(dedup_topic).collect(),
        check_after: Millis(config.transactions.check_after.as_millis() as u64),
        check_interval: Millis(config.transactions.check_interval.as_millis() as u64),
        check_max: config.transactions.check_max,
        delay_max: Millis(config.timers.delay_max.as_millis() as u64),
        body_max: config.limits.body_size_max,
        checkpoint_bytes: config.store.checkpoint_size,
        retention: Millis(config.store.retention.as_millis() as u64),
        unsynced_max: config.limits.unsynced_max,
        transient_max: config.limits.transient_max,
        ..engine::Config::default()
    }
}
