//! Clients of all four protocols that publish and consume until they are stopped or the broker is gone,
//! and record what they do and see in a [`History`](super::history::History).
//!
//! Who gets what (topics are shared across the protocols):
//!
//! ```text
//! exchange_user  fanout exchange, two AMQP publishers, a native and   -> queues `single`, `shared`, and `stomp_users`
//!                a STOMP one                                             for STOMP; native group
//! orders         topic, a native and an MQTT publisher                -> MQTT session; durable STOMP subscription;
//!                                                                        native group
//! devices        an MQTT and a STOMP publisher                        -> MQTT session; queue `devices` by amq.topic;
//!                                                                        native group
//! ```
//!
//! Consumers publish too, now and then: when that is confirmed, what they acknowledged before it holds, and
//! so do the offsets that they committed.

mod consumers;
mod publishers;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::consumers::{AmqpConsumer, Group, MqttSession, NativeGroup, StompConsumer, subscribe};
use self::publishers::{amqp_publisher, mqtt_publisher, native_publisher, stomp_publisher};
use super::amqp::Amqp;
use super::broker::Broker;
use super::history::{Event, MessageId, Queue, Recorder};
use super::mqtt::{Connect, Mqtt};
use super::random::Random;
use super::remoting::{Remoting, SUCCESS, Send};
use super::stomp::Stomp;
use super::wire::{PATIENCE, unexpected};

pub const USERS: &str = "exchange_user";
pub const ORDERS: &str = "orders";
pub const DEVICES: &str = "devices";

/// Queues and groups by the names in the history; those of AMQP are the queues' own.
pub const SINGLE: Queue = "single";
pub const SHARED: Queue = "shared";
pub const AMQP_DEVICES: Queue = "devices";
pub const STOMP_USERS: Queue = "stomp_users";
pub const STOMP_ORDERS: Queue = "stomp_orders";
pub const SESSION: Queue = "session";
pub const NATIVE_USERS: Queue = "native_users";
pub const NATIVE_ORDERS: Queue = "native_orders";
pub const NATIVE_DEVICES: Queue = "native_devices";

/// Who gets what is published to a topic.
const USERS_GET: [Queue; 4] = [SINGLE, SHARED, STOMP_USERS, NATIVE_USERS];
const ORDERS_GET: [Queue; 3] = [SESSION, STOMP_ORDERS, NATIVE_ORDERS];
const DEVICES_GET: [Queue; 3] = [SESSION, AMQP_DEVICES, NATIVE_DEVICES];

const AMQP_QUEUES: [&str; 4] = [SINGLE, SHARED, STOMP_USERS, AMQP_DEVICES];
const MESSAGE_QUEUES: u32 = 4;

/// Where a broker listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub amqp: SocketAddr,
    pub mqtt: SocketAddr,
    pub stomp: SocketAddr,
    pub remoting: SocketAddr,
}

impl Addresses {
    pub fn of(broker: &Broker) -> Self {
        Self {
            amqp: broker.address("amqp"),
            mqtt: broker.address("mqtt"),
            stomp: broker.address("stomp"),
            remoting: broker.address("remoting"),
        }
    }
}

/// What the clients of all of a broker's lives share.
pub struct Load {
    pub recorder: Recorder,
    pub stop: AtomicBool,
    /// The longest that a publisher waits between two bursts, and a consumer for a message: what says how hard the
    /// broker has to work.
    pub pause: Duration,
    /// Most bodies are smaller.
    pub body_max: u64,
    /// Consumers only consume any more.
    draining: AtomicBool,
    sequences: Mutex<HashMap<u32, u64>>,
    groups: Mutex<HashMap<(Queue, u32), Offsets>>,
    /// Digest of the body by position in the log.
    positions: Mutex<HashMap<u64, u64>>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            recorder: Recorder::default(),
            stop: AtomicBool::new(false),
            pause: Duration::from_millis(20),
            body_max: 600,
            draining: AtomicBool::new(false),
            sequences: Mutex::default(),
            groups: Mutex::default(),
            positions: Mutex::default(),
        }
    }
}

/// What a group has seen of a message queue.
#[derive(Clone, Copy, Debug, Default)]
struct Offsets {
    /// One more than the highest offset pulled.
    pulled: u64,
    /// The highest offset that was asked to be committed.
    asked: u64,
    /// The highest offset whose commit was followed by a confirmed publish.
    promised: u64,
}

/// A client that runs in a thread of its own.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    AmqpPublisher {
        publisher: u32,
    },
    NativePublisher {
        publisher: u32,
        topic: &'static str,
    },
    MqttPublisher {
        publisher: u32,
        topic: &'static str,
    },
    StompPublisher {
        publisher: u32,
        topic: &'static str,
    },
    AmqpConsumer {
        publisher: u32,
        queue: Queue,
    },
    StompConsumer {
        publisher: u32,
        queue: Queue,
    },
    MqttSession {
        publisher: u32,
    },
    NativeGroup {
        publisher: u32,
        queue: Queue,
        topic: &'static str,
    },
}

/// All of them together.
pub const CLIENTS: [Client; 18] = [
    Client::AmqpPublisher { publisher: 1 },
    Client::AmqpPublisher { publisher: 2 },
    Client::NativePublisher {
        publisher: 3,
        topic: ORDERS,
    },
    Client::NativePublisher {
        publisher: 4,
        topic: USERS,
    },
    Client::MqttPublisher {
        publisher: 5,
        topic: DEVICES,
    },
    Client::MqttPublisher {
        publisher: 6,
        topic: ORDERS,
    },
    Client::StompPublisher {
        publisher: 7,
        topic: DEVICES,
    },
    Client::StompPublisher {
        publisher: 8,
        topic: USERS,
    },
    Client::AmqpConsumer {
        publisher: 11,
        queue: SINGLE,
    },
    Client::AmqpConsumer {
        publisher: 12,
        queue: SHARED,
    },
    Client::AmqpConsumer {
        publisher: 13,
        queue: SHARED,
    },
    Client::AmqpConsumer {
        publisher: 14,
        queue: AMQP_DEVICES,
    },
    Client::StompConsumer {
        publisher: 19,
        queue: STOMP_USERS,
    },
    Client::StompConsumer {
        publisher: 20,
        queue: STOMP_ORDERS,
    },
    Client::MqttSession { publisher: 15 },
    Client::NativeGroup {
        publisher: 16,
        queue: NATIVE_USERS,
        topic: USERS,
    },
    Client::NativeGroup {
        publisher: 17,
        queue: NATIVE_ORDERS,
        topic: ORDERS,
    },
    Client::NativeGroup {
        publisher: 18,
        queue: NATIVE_DEVICES,
        topic: DEVICES,
    },
];

/// Publishers of the first and the last message of each topic.
const FIRST_AND_LAST: [(u32, &str); 3] = [(91, USERS), (92, ORDERS), (93, DEVICES)];

/// Makes queues, bindings, topics and the session, and says who gets what.
pub fn set_up(load: &Load, addresses: &Addresses, random: &mut Random) -> io::Result<()> {
    let mut amqp = Amqp::connect(addresses.amqp)?;
    amqp.declare_exchange(USERS, "fanout", true)?;
    for queue in AMQP_QUEUES {
        amqp.declare_queue(queue, true)?;
    }
    amqp.bind(SINGLE, USERS, "")?;
    amqp.bind(SHARED, USERS, "")?;
    amqp.bind(STOMP_USERS, USERS, "")?;
    amqp.bind(AMQP_DEVICES, "amq.topic", "devices.#")?;
    amqp.close()?;

    let mut session = Mqtt::connect(addresses.mqtt, Connect::persistent(SESSION))?;
    session.subscribe("orders/#", 1)?;
    session.subscribe("devices/#", 1)?;
    session.disconnect()?;

    // A durable subscription makes its queue.
    subscribe(&mut Stomp::connect(addresses.stomp)?, STOMP_ORDERS, "1")?;

    for publisher in [1, 2, 4, 8, 11, 12, 13, 14, 16, 19, 20, 91] {
        load.recorder.route(publisher, &USERS_GET);
    }
    for publisher in [3, 6, 15, 17, 92] {
        load.recorder.route(publisher, &ORDERS_GET);
    }
    for publisher in [5, 7, 18, 93] {
        load.recorder.route(publisher, &DEVICES_GET);
    }
    // Pulls need topics, and a topic is made by its first message.
    publish_to_each_topic(load, &mut Remoting::connect(addresses.remoting)?, random).map(drop)
}

impl Client {
    /// Works until told to stop or until the broker is gone, which is an error.
    pub fn run(self, load: &Load, addresses: &Addresses, random: Random) -> io::Result<()> {
        match self {
            Self::AmqpPublisher { publisher } => amqp_publisher(load, addresses, publisher, random),
            Self::NativePublisher { publisher, topic } => native_publisher(load, addresses, publisher, topic, random),
            Self::MqttPublisher { publisher, topic } => mqtt_publisher(load, addresses, publisher, topic, random),
            Self::StompPublisher { publisher, topic } => stomp_publisher(load, addresses, publisher, topic, random),
            Self::StompConsumer { publisher, queue } => {
                let consumer = StompConsumer::new(load, addresses, publisher, queue, random)?;
                consumer.run(|_| load.stop.load(Ordering::Relaxed))
            }
            Self::AmqpConsumer { publisher, queue } => {
                AmqpConsumer::new(load, addresses, publisher, queue, random)?.run(|_| load.stop.load(Ordering::Relaxed))
            }
            Self::MqttSession { publisher } => {
                MqttSession::new(load, addresses, publisher, random)?.run(|_| load.stop.load(Ordering::Relaxed))
            }
            Self::NativeGroup {
                publisher,
                queue,
                topic,
            } => {
                let group = Group {
                    publisher,
                    queue,
                    topic,
                };
                NativeGroup::new(load, addresses, group, random)?.run(|_| load.stop.load(Ordering::Relaxed))
            }
        }
    }
}

/// Publishes a last message to each topic, and consumes until each queue has given it.
pub fn drain(load: &Load, addresses: &Addresses, random: &mut Random) -> io::Result<()> {
    load.draining.store(true, Ordering::Relaxed);
    let mut native = Remoting::connect(addresses.remoting)?;
    let last = publish_to_each_topic(load, &mut native, random)?;
    for (publisher, queue, topic) in [(11, SINGLE, USERS), (12, SHARED, USERS), (14, AMQP_DEVICES, DEVICES)] {
        let until = Instant::now() + PATIENCE;
        let consumer = AmqpConsumer::new(load, addresses, publisher, queue, random.fork())?;
        consumer.run(|seen| seen.contains(&last[topic]) || Instant::now() > until)?;
    }
    for (publisher, queue, topic) in [(19, STOMP_USERS, USERS), (20, STOMP_ORDERS, ORDERS)] {
        let until = Instant::now() + PATIENCE;
        let consumer = StompConsumer::new(load, addresses, publisher, queue, random.fork())?;
        consumer.run(|seen| seen.contains(&last[topic]) || Instant::now() > until)?;
    }
    let until = Instant::now() + PATIENCE;
    let session = MqttSession::new(load, addresses, 15, random.fork())?;
    // Its last message is at the end of one queue, behind those of both topics.
    session.run(|seen| {
        let whole = [ORDERS, DEVICES].iter().all(|topic| seen.contains(&last[topic]));
        whole || Instant::now() > until
    })?;
    for client in CLIENTS {
        let Client::NativeGroup {
            publisher,
            queue,
            topic,
        } = client
        else {
            continue;
        };
        let ends = (0..MESSAGE_QUEUES).map(|id| native.max_offset(topic, id));
        let ends: Vec<u64> = ends.collect::<Result<_, _>>()?;
        let until = Instant::now() + PATIENCE;
        let group = Group {
            publisher,
            queue,
            topic,
        };
        NativeGroup::new(load, addresses, group, random.fork())?
            .run(|offsets| offsets.iter().zip(&ends).all(|(at, end)| at >= end) || Instant::now() > until)?;
    }
    Ok(())
}

fn publish_to_each_topic(
    load: &Load,
    native: &mut Remoting,
    random: &mut Random,
) -> io::Result<HashMap<&'static str, MessageId>> {
    let mut published = HashMap::new();
    for (publisher, topic) in FIRST_AND_LAST {
        let (message, body) = load.next_message(publisher, random);
        let response = native.send_and_wait(Send {
            topic,
            tag: if topic == USERS { "" } else { "each" },
            queue_id: Some(0),
            body: &body,
        })?;
        if response.code != SUCCESS {
            return unexpected(response);
        }
        load.recorder.record(Event::Confirmed { message });
        published.insert(topic, message);
    }
    Ok(published)
}

impl Load {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The publisher's next message, recorded as sent.
    pub fn next_message(&self, publisher: u32, random: &mut Random) -> (MessageId, Vec<u8>) {
        let sequence = {
            let mut sequences = self.sequences.lock().expect("no panic holds it");
            let sequence = sequences.entry(publisher).or_default();
            *sequence += 1;
            *sequence
        };
        let message = MessageId { publisher, sequence };
        let size = match random.below(20) {
            0 => random.between(4_000, 20_000),
            1 => 16,
            _ => random.between(100, self.body_max),
        };
        (message, self.recorder.send(message, size as usize, random))
    }

    fn offsets<R>(&self, queue: Queue, id: u32, act: impl FnOnce(&mut Offsets) -> R) -> R {
        let mut groups = self.groups.lock().expect("no panic holds it");
        act(groups.entry((queue, id)).or_default())
    }
}
