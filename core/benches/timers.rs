//! What pending timers cost, and how punctual they are.
//!
//! ```text
//! cargo bench -p rocketbridge-core --bench timers -- [TIMERS] [WITHIN_MS] [FIRST_MS]
//! ```
//! Publishes that many timed messages (default 100,000) which are due evenly within that time (1,000) from
//! `FIRST_MS` (5,000) on, prints the memory that the process and the timers take, then lets 10,000 messages a
//! second fire for 10 s and prints by how much they were late. `WITHIN_MS` 0 skips that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine, Flush};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::time::{Clock, Millis, Now};

struct SystemClock(Instant);

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let wall = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Now {
            mono: Millis(self.0.elapsed().as_millis() as u64),
            wall: Millis(wall.as_millis() as u64),
        }
    }
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

struct Client {
    link: rocketbridge_core::engine::EngineLink,
    inbox: Inbox,
    waker: Waker,
    token: u64,
}

impl Client {
    fn new(engine: &Engine) -> Self {
        let address = "127.0.0.1:1".parse().expect("an address");
        let peer = Peer {
            remote: address,
            local: address,
        };
        let inbox = Inbox::new();
        let mut link = engine.open(peer, inbox.clone());
        link.request(RequestId(0), Request::Login(Credentials::Anonymous));
        Self {
            link,
            inbox,
            waker: Waker::from(Arc::new(Unpark(thread::current()))),
            token: 0,
        }
    }

    fn publish(&mut self, deliver: Deliver) -> Publish {
        self.token += 1;
        Publish {
            token: self.token,
            entry: Entry::Queue,
            topic: Bytes::from_static(b"timers"),
            body: Bytes::from_static(b"sixteen bytes ..."),
            format: Format(9),
            deliver,
            ..Publish::default()
        }
    }

    fn send(&mut self, batch: &mut VecDeque<Publish>) {
        while self.link.publish(batch) == Admission::Partial {
            let mut is_writable = false;
            while !is_writable {
                self.events(|event| is_writable |= matches!(event, Event::Writable));
                if !is_writable {
                    thread::park();
                }
            }
        }
        self.events(|_| {});
    }

    /// Takes what there is; the next event unparks this thread.
    fn events(&mut self, mut each: impl FnMut(Event)) {
        let mut events = Vec::new();
        loop {
            let taken = self.inbox.take(256, &mut events, &self.waker);
            events.drain(..).for_each(&mut each);
            if taken.resume {
                self.link.resume();
            }
            if taken.empty && !taken.resume {
                return;
            }
        }
    }
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse::<u64>().ok());
    let count = numbers.next().unwrap_or(100_000);
    let within = numbers.next().unwrap_or(1000);
    let first = numbers.next().unwrap_or(5000);
    let folder = std::env::temp_dir().join(format!("rocketbridge-timers-{}", std::process::id()));
    let clock = Arc::new(SystemClock(Instant::now()));
    let config = Config {
        flush: Flush::Async,
        ..Config::default()
    };
    let engine = Engine::open(&folder, config, clock.clone()).expect("an empty folder");
    let syncing = engine.clone();
    thread::spawn(move || syncing.run_sync());
    let mut client = Client::new(&engine);
    let declare = Request::DeclareQueue(Queue {
        name: Bytes::from_static(b"timers"),
        durable: false,
        exclusive: false,
        auto_delete: false,
        addressable: false,
        limit: Limit::default(),
        policy: None,
        arguments: Bytes::new(),
    });
    client.link.request(RequestId(1), declare);

    // Far ahead, so that none fires meanwhile.
    let hour = 3_600_000;
    let before = resident();
    let start = Instant::now();
    let mut batch = VecDeque::new();
    for n in 0..count {
        batch.push_back(client.publish(Deliver::After(Millis(hour + n * 7919 % within.max(1)))));
        if batch.len() == 256 {
            client.send(&mut batch);
        }
    }
    client.send(&mut batch);
    let took = start.elapsed();
    let (pending, memory) = engine.timers();
    println!(
        "{pending} timers pending: {:.1} MB ({:.1} bytes each), process {:.1} MB more than without, {:.2} us each to publish",
        memory as f64 / 1e6,
        memory as f64 / pending.max(1) as f64,
        resident().saturating_sub(before) as f64 / 1e6,
        took.as_secs_f64() * 1e6 / count.max(1) as f64,
    );

    if within == 0 {
        std::process::exit(0);
    }
    client.link.request(
        RequestId(2),
        Request::Subscribe(Subscribe {
            subscription: SubscriptionId(1),
            queue: Bytes::from_static(b"timers"),
            acknowledge: Acknowledge::Never,
            window: None,
            exclusive: false,
            priority: 0,
            selector: None,
        }),
    );
    let wall = clock.now().wall;
    let total = 100_000u64;
    for n in 0..total {
        let at = wall + Millis(first + n / 10);
        let mut publish = client.publish(Deliver::At(at));
        publish.body = Bytes::copy_from_slice(&at.0.to_le_bytes());
        batch.push_back(publish);
        if batch.len() == 256 {
            client.send(&mut batch);
        }
    }
    client.send(&mut batch);
    let mut errors: Vec<i64> = Vec::with_capacity(total as usize);
    while errors.len() < total as usize {
        engine.fire();
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        client.events(|event| {
            if let Event::Delivery(delivery) = event
                && let Ok(due) = <[u8; 8]>::try_from(delivery.message.body())
            {
                let due = u64::from_le_bytes(due) as i64;
                errors.push(now.as_micros() as i64 - due * 1000);
            }
        });
        let now = clock.now();
        let wait = engine
            .next_deadline()
            .map_or(1, |at| at.since(now.mono).0)
            .clamp(1, 1000);
        thread::park_timeout(Duration::from_millis(wait));
    }
    errors.sort_unstable();
    let at = |part: f64| errors[((errors.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    println!(
        "{} fired, 10,000 a second: earliest {:.2} ms, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, latest {:.2} ms",
        errors.len(),
        at(0.0),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    let _ = std::fs::remove_dir_all(&folder);
    std::process::exit(0);
}
