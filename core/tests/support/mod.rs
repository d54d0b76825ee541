//! What core's tests share: a clock moved by hand, a storage that crashes, and a client over a link.
#![allow(dead_code)]

mod disk;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use bytes::Bytes;
use rocketbridge_core::attributes::Attributes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine, EngineLink, Flush, OpenError};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::time::{Clock, Millis, Now};

pub use disk::CrashStorage;

/// A small segment, so that tests cross from one to the next.
pub const SEGMENT: u64 = 64 << 10;

/// Random numbers from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

/// Both clocks, moved by hand.
#[derive(Default)]
pub struct ManualClock {
    mono: AtomicU64,
    /// What the wall was stepped by, maybe below zero.
    stepped: AtomicU64,
}

impl ManualClock {
    /// The clock of a machine that starts when the wall says that.
    pub fn starting_at(wall: Millis) -> Self {
        let clock = Self::default();
        clock.step_wall(wall.0 as i64 - clock.now().wall.0 as i64);
        clock
    }

    pub fn advance(&self, millis: u64) {
        self.mono.fetch_add(millis, Ordering::Relaxed);
    }

    /// Steps the wall, forward or back.
    pub fn step_wall(&self, millis: i64) {
        self.stepped.fetch_add(millis as u64, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        let millis = self.mono.load(Ordering::Relaxed);
        let stepped = self.stepped.load(Ordering::Relaxed);
        Now {
            mono: Millis(millis),
            wall: Millis((1_700_000_000_000 + millis).wrapping_add(stepped)),
        }
    }
}

/// A broker on a crash storage.
pub struct Harness {
    pub engine: Engine,
    pub storage: CrashStorage,
    pub clock: Arc<ManualClock>,
}

impl Harness {
    pub fn new() -> Self {
        Self::on(CrashStorage::default(), Config::default()).unwrap()
    }

    pub fn flushing(flush: Flush) -> Self {
        Self::on(
            CrashStorage::default(),
            Config {
                flush,
                ..Config::default()
            },
        )
        .unwrap()
    }

    pub fn on(storage: CrashStorage, config: Config) -> Result<Self, OpenError> {
        Self::at(ManualClock::default(), storage, config)
    }

    /// With a clock that was moved before.
    pub fn at(clock: ManualClock, storage: CrashStorage, config: Config) -> Result<Self, OpenError> {
        let clock = Arc::new(clock);
        let engine = Engine::open_storage(Arc::new(storage.clone()), SEGMENT, config, clock.clone())?;
        Ok(Self { engine, storage, clock })
    }

    pub fn client(&self) -> Client {
        let peer = Peer {
            remote: "127.0.0.1:4711".parse().unwrap(),
            local: "127.0.0.1:1".parse().unwrap(),
        };
        let inbox = Inbox::new();
        let link = self.engine.open(peer, inbox.clone());
        let mut client = Client {
            link,
            inbox,
            next_request: 0,
            next_token: 0,
            next_subscription: 0,
        };
        client.request(Request::Login(Credentials::Anonymous));
        client.events();
        client
    }

    /// Stops in good order and starts again on the same disk.
    pub fn restart(self) -> Self {
        self.engine.close();
        self.engine.sync_once().unwrap();
        Self::on(self.storage.after_kill(), Config::default()).unwrap()
    }

    /// As [`kill`](Self::kill), and starts again so many milliseconds later: the wall has gone on, the
    /// monotonic clock begins anew.
    pub fn kill_for(self, millis: u64) -> Self {
        let clock = ManualClock::starting_at(Millis(self.clock.now().wall.0 + millis));
        Self::at(clock, self.storage.after_kill(), Config::default()).unwrap()
    }

    /// The process dies; what the kernel has stays.
    pub fn kill(self) -> Self {
        Self::on(self.storage.after_kill(), Config::default()).unwrap()
    }
}

/// A connection without a protocol.
pub struct Client {
    pub link: EngineLink,
    inbox: Inbox,
    next_request: u64,
    pub next_token: u64,
    next_subscription: u32,
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn message(entry: Entry, topic: &str, key: &str, body: &str) -> Publish {
    Publish {
        token: 0,
        entry,
        topic: bytes(topic),
        key: bytes(key),
        body: bytes(body),
        attributes: Attributes::EMPTY,
        format: Format(9),
        origin: Bytes::new(),
        persistent: true,
        ..Publish::default()
    }
}

pub fn queue(name: &str) -> Queue {
    Queue {
        name: bytes(name),
        durable: true,
        exclusive: false,
        auto_delete: false,
        addressable: true,
        limit: Limit::NONE,
        policy: None,
        arguments: Bytes::new(),
    }
}

pub fn exchange(name: &str, kind: ExchangeKind) -> Exchange {
    Exchange {
        name: bytes(name),
        kind,
        durable: true,
        auto_delete: false,
        internal: false,
        alternate: None,
        hash_on: HashOn::Key,
        dedup: None,
        arguments: Bytes::new(),
    }
}

pub fn binding(source: Source, matcher: Matcher, queue: &str) -> Binding {
    Binding {
        source,
        matcher,
        destination: Destination::Queue(bytes(queue)),
        arguments: Bytes::new(),
        cookie: Bytes::new(),
    }
}

impl Client {
    pub fn request(&mut self, request: Request) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.link.request(id, request);
        id
    }

    /// Publishes one message; gives its token.
    pub fn publish(&mut self, publish: Publish) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let mut batch = VecDeque::from([Publish { token, ..publish }]);
        assert_eq!(self.link.publish(&mut batch), Admission::All);
        token
    }

    /// A subscription whose deliveries must be settled, at most `window` at a time.
    pub fn subscribe(&mut self, queue: &str, window: Option<u32>) -> SubscriptionId {
        self.next_subscription += 1;
        let subscription = SubscriptionId(self.next_subscription);
        self.request(Request::Subscribe(Subscribe {
            subscription,
            queue: bytes(queue),
            acknowledge: Acknowledge::Always,
            window,
            exclusive: false,
            priority: 0,
            selector: None,
        }));
        subscription
    }

    pub fn settle(&mut self, subscription: SubscriptionId, first: u64, count: u32, action: Settle) {
        let mut batch = VecDeque::from([Settlement {
            subscription,
            first,
            count,
            action,
        }]);
        self.link.settle(&mut batch);
    }

    /// Everything core has said since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let taken = self.inbox.take(256, &mut events, Waker::noop());
            if taken.resume {
                self.link.resume();
            } else if taken.empty {
                return events;
            }
        }
    }

    pub fn deliveries(&mut self) -> Vec<Delivery> {
        let only = |event| match event {
            Event::Delivery(delivery) => Some(delivery),
            _ => None,
        };
        self.events().into_iter().filter_map(only).collect()
    }

    pub fn bodies(&mut self) -> Vec<String> {
        self.deliveries().iter().map(body).collect()
    }

    /// Asks and waits for the answer, letting the disk do its work.
    pub fn ask(&mut self, engine: &Engine, request: Request) -> Result<Reply, Refusal> {
        let wanted = self.request(request);
        engine.sync_once().unwrap();
        for event in self.events() {
            if let Event::Reply { id, result } = event
                && id == wanted
            {
                return result;
            }
        }
        panic!("no answer");
    }
}

pub fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body().to_vec()).unwrap()
}
