//! The engine alone: publish to one queue, deliver, settle. A program, not a timed test:
//! `cargo bench -p rocketbridge-core`, or `-- FLUSH MESSAGES` with FLUSH `transient`, `async` or `sync`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use rocketbridge_core::attributes::Attributes;
use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine, Flush};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::time::{Clock, Millis, Now};

struct SystemClock(Instant);

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970");
        Now {
            mono: Millis(self.0.elapsed().as_millis() as u64),
            wall: Millis(wall.as_millis() as u64),
        }
    }
}

const BATCH: usize = 250;

fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("stat").split_whitespace().collect();
    (fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")) * 10_000
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let messages: usize = arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(2_000_000);
    match arguments.first().map(String::as_str) {
        Some(mode) => run(mode, messages),
        None => ["transient", "async", "sync"]
            .iter()
            .for_each(|mode| run(mode, messages)),
    }
}

fn run(mode: &str, messages: usize) {
    let folder = std::env::temp_dir().join(format!("rocketbridge-bench-{}", std::process::id()));
    let config = Config {
        flush: if mode == "sync" { Flush::Sync } else { Flush::Async },
        ..Config::default()
    };
    let engine = Engine::open(&folder, config, Arc::new(SystemClock(Instant::now()))).expect("open");
    let sync = std::thread::spawn({
        let engine = engine.clone();
        move || engine.run_sync()
    });
    let peer = Peer {
        remote: "127.0.0.1:1".parse().expect("address"),
        local: "127.0.0.1:2".parse().expect("address"),
    };
    let inbox = Inbox::new();
    let mut link = Broker::open(&engine, peer, inbox.clone());
    link.request(RequestId(0), Request::Login(Credentials::Anonymous));
    let name = Bytes::from_static(b"q");
    link.request(
        RequestId(1),
        Request::DeclareQueue(Queue {
            name: name.clone(),
            durable: true,
            exclusive: false,
            auto_delete: false,
            addressable: false,
            limit: Limit::NONE,
            policy: None,
            arguments: Bytes::new(),
        }),
    );
    let subscription = SubscriptionId(1);
    link.request(
        RequestId(2),
        Request::Subscribe(Subscribe {
            subscription,
            queue: name.clone(),
            acknowledge: Acknowledge::Always,
            window: None,
            exclusive: false,
            priority: 0,
        }),
    );
    // The queue is not a topic: an exchange of its own leads to it.
    link.request(
        RequestId(3),
        Request::Bind(Binding {
            source: Source::Everything,
            matcher: Matcher::Pattern(rocketbridge_core::address::Pattern::from_key_pattern(b"q.#")),
            destination: Destination::Queue(name.clone()),
            arguments: Bytes::new(),
            cookie: Bytes::new(),
        }),
    );
    let body = Bytes::from(vec![7; 256]);
    let (mut batch, mut settlements, mut events) = (VecDeque::new(), VecDeque::new(), Vec::new());
    let (mut sent, mut confirmed, mut received) = (0u64, 0u64, 0u64);
    let (started, cpu) = (Instant::now(), cpu_micros());
    while (received as usize) < messages || (confirmed as usize) < messages {
        if (sent as usize) < messages && sent - confirmed < 4000 {
            while batch.len() < BATCH {
                batch.push_back(Publish {
                    token: sent + batch.len() as u64,
                    entry: Entry::Topic,
                    topic: name.clone(),
                    key: Bytes::new(),
                    body: body.clone(),
                    attributes: Attributes::EMPTY,
                    format: Format(9),
                    origin: Bytes::new(),
                    persistent: mode != "transient",
                    ..Publish::default()
                });
            }
            let before = batch.len();
            let _ = link.publish(&mut batch);
            sent += (before - batch.len()) as u64;
        }
        let taken = inbox.take(4096, &mut events, Waker::noop());
        if taken.resume {
            link.resume();
        }
        if events.is_empty() {
            std::thread::yield_now();
        }
        for event in events.drain(..) {
            match event {
                Event::Outcome(outcome) => confirmed += u64::from(outcome.count),
                Event::Delivery(delivery) => {
                    received += 1;
                    match settlements.back_mut() {
                        Some(Settlement { first, count, .. }) if *first + u64::from(*count) == delivery.sequence => {
                            *count += 1;
                        }
                        _ => settlements.push_back(Settlement {
                            subscription,
                            first: delivery.sequence,
                            count: 1,
                            action: Settle::Ack,
                        }),
                    }
                }
                _ => {}
            }
        }
        if !settlements.is_empty() {
            link.settle(&mut settlements);
        }
    }
    let (elapsed, cpu) = (started.elapsed(), cpu_micros() - cpu);
    println!(
        "{mode:9} {:>9.0} messages/s  {:.3} us CPU a message",
        messages as f64 / elapsed.as_secs_f64(),
        cpu as f64 / messages as f64
    );
    drop(link);
    engine.close();
    sync.join().expect("sync thread").expect("disk");
    std::fs::remove_dir_all(&folder).expect("clean up");
}
