//! What core's tests share: a clock moved by hand, a storage that crashes, and a client over a link.
#![allow(dead_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use bytes::Bytes;
use rocketbridge_core::attributes::Attributes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine, EngineLink, Flush, OpenError};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::store::storage::{Area, FileId, Storage};
use rocketbridge_core::time::{Clock, Millis, Now};

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

#[derive(Clone, Default)]
struct Segment {
    synced: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Segment {
    fn settle(&mut self) {
        self.synced.clone_from(&self.current);
        self.unsynced.clear();
    }
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<FileId, Segment>,
    /// Writes, syncs and claims still allowed before everything fails.
    steps_left: Option<u64>,
    writes: u64,
    syncs: u64,
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A disk in memory that forgets, tears and reorders what was not synced.
#[derive(Clone, Default)]
pub struct CrashStorage(Arc<Mutex<Disk>>);

impl CrashStorage {
    /// The power goes after so many more writes, syncs and claims.
    pub fn fail_after(&self, steps: u64) {
        self.0.lock().unwrap().steps_left = Some(steps);
    }

    pub fn writes(&self) -> u64 {
        self.0.lock().unwrap().writes
    }

    pub fn syncs(&self) -> u64 {
        self.0.lock().unwrap().syncs
    }

    /// The disk after the power was gone: of what was not synced, any part in any order may be there.
    pub fn after_power_cut(&self, random: &mut Random) -> Self {
        let disk = self.0.lock().unwrap();
        let mut after = Disk::default();
        for (number, segment) in &disk.files {
            let mut bytes = segment.synced.clone();
            for (offset, data) in &segment.unsynced {
                let kept = match random.below(4) {
                    0 => 0,
                    1 => random.below(data.len() as u64 + 1) as usize,
                    _ => data.len(),
                };
                let from = if random.below(8) == 0 { kept / 2 } else { 0 };
                bytes[offset + from..offset + kept].copy_from_slice(&data[from..kept]);
            }
            let settled = Segment {
                synced: bytes.clone(),
                current: bytes,
                unsynced: Vec::new(),
            };
            after.files.insert(*number, settled);
        }
        Self(Arc::new(Mutex::new(after)))
    }

    /// The disk as it is when only the process dies.
    pub fn after_kill(&self) -> Self {
        let mut after = Disk {
            files: self.0.lock().unwrap().files.clone(),
            ..Disk::default()
        };
        after.files.values_mut().for_each(Segment::settle);
        Self(Arc::new(Mutex::new(after)))
    }

    /// Changes one stored byte.
    pub fn damage(&self, segment: u64, offset: usize) {
        let mut disk = self.0.lock().unwrap();
        let segment = disk.files.get_mut(&FileId::segment(segment)).unwrap();
        segment.current[offset] ^= 0x55;
        segment.settle();
    }
}

impl Storage for CrashStorage {
    fn files(&self, area: Area) -> io::Result<Vec<u64>> {
        let disk = self.0.lock().unwrap();
        Ok(disk
            .files
            .keys()
            .filter(|file| file.area == area)
            .map(|file| file.number)
            .collect())
    }

    fn claim(&self, file: FileId, size: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.files.entry(file).or_insert_with(|| Segment {
            synced: vec![0; size as usize],
            current: vec![0; size as usize],
            unsynced: Vec::new(),
        });
        Ok(())
    }

    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.writes += 1;
        let segment = disk.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        let end = offset as usize + bytes.len();
        if segment.current.len() < end {
            segment.current.resize(end, 0);
            segment.synced.resize(end, 0);
        }
        segment.current[offset as usize..end].copy_from_slice(bytes);
        segment.unsynced.push((offset as usize, bytes.to_vec()));
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let disk = self.0.lock().unwrap();
        let segment = disk.files.get(&file).ok_or(io::ErrorKind::NotFound)?;
        let bytes = segment.current.get(offset as usize..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn sync(&self, file: FileId) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.syncs += 1;
        disk.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?.settle();
        Ok(())
    }

    fn truncate(&self, file: FileId, size: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let segment = disk.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        segment.current.truncate(size as usize);
        segment.settle();
        Ok(())
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.0.lock().unwrap().files.remove(&file);
        Ok(())
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
        let clock = Arc::new(ManualClock::default());
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
        let clock = Arc::new(ManualClock::default());
        let wall = self.clock.now().wall.0 + millis;
        clock.step_wall(wall as i64 - clock.now().wall.0 as i64);
        let storage = self.storage.after_kill();
        let engine =
            Engine::open_storage(Arc::new(storage.clone()), SEGMENT, Config::default(), clock.clone()).unwrap();
        Self { engine, storage, clock }
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
