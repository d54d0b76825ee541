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

fn rss() -> u64 {
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    s.lines().find(|l| l.starts_with("VmRSS")).unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("stat").split_whitespace().collect();
    (fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")) * 10_000
}


fn main() {
    let n: u64 = std::env::args().filter(|a| !a.starts_with("--")).nth(1).and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let folder = std::path::PathBuf::from("/tmp/rb-backlog");
    let _ = std::fs::remove_dir_all(&folder);
    let mut config = Config { flush: Flush::Async, ..Config::default() };
    config.tail_cache = 64 << 20;
    let open = || Engine::open(&folder, config.clone(), Arc::new(SystemClock(Instant::now()))).expect("open");
    let engine = open();
    let sync = std::thread::spawn({ let engine = engine.clone(); move || engine.run_sync() });
    let main = std::thread::spawn({ let engine = engine.clone(); move || engine.run_maintenance() });
    let peer = Peer { remote: "127.0.0.1:1".parse().unwrap(), local: "127.0.0.1:2".parse().unwrap() };
    let inbox = Inbox::new();
    let mut link = Broker::open(&engine, peer, inbox.clone());
    link.request(RequestId(0), Request::Login(Credentials::Anonymous));
    let name = Bytes::from_static(b"q");
    link.request(RequestId(1), Request::DeclareQueue(Queue { name: name.clone(), durable: true, exclusive: false, auto_delete: false, addressable: true, limit: Limit::NONE, policy: None, arguments: Bytes::new() }));
    let body = Bytes::from(vec![7; 256]);
    let mut batch = VecDeque::new();
    let mut events = Vec::new();
    let mut sent = 0;
    let started = Instant::now(); let cpu = cpu_micros();
    let mut worst = 0;
    while sent < n {
        while batch.len() < BATCH {
            batch.push_back(Publish { token: sent + batch.len() as u64, entry: Entry::Queue, topic: name.clone(), key: Bytes::new(), body: body.clone(), attributes: Attributes::EMPTY, format: Format(9), origin: Bytes::new(), persistent: true, ..Publish::default() });
        }
        let before = batch.len();
        let t = Instant::now();
        let _ = link.publish(&mut batch);
        worst = worst.max(t.elapsed().as_micros());
        sent += (before - batch.len()) as u64;
        if before == batch.len() { std::thread::yield_now(); }
        inbox.take(4096, &mut events, Waker::noop()); events.clear();
    }
    println!("fill {n}: {:?}, {:.3} us CPU each, RSS {} MiB, worst batch {worst} us", started.elapsed(), (cpu_micros() - cpu) as f64 / n as f64, rss());
    drop(link);
    let t = Instant::now();
    engine.close();
    sync.join().unwrap().unwrap(); main.join().unwrap();
    println!("close {:?} RSS {}", t.elapsed(), rss());
    drop(engine);
    let t = Instant::now();
    let engine = open();
    println!("open {:?} RSS {}", t.elapsed(), rss());
    let sync = std::thread::spawn({ let engine = engine.clone(); move || engine.run_sync() });
    let inbox = Inbox::new();
    let mut link = Broker::open(&engine, peer, inbox.clone());
    link.request(RequestId(0), Request::Login(Credentials::Anonymous));
    let subscription = SubscriptionId(1);
    link.request(RequestId(2), Request::Subscribe(Subscribe { subscription, queue: name.clone(), acknowledge: Acknowledge::Always, window: None, exclusive: false, priority: 0 }));
    let started = Instant::now(); let cpu = cpu_micros();
    let mut received = 0;
    let mut settlements = VecDeque::new();
    while received < n {
        let taken = inbox.take(4096, &mut events, Waker::noop());
        if taken.resume { link.resume(); }
        if events.is_empty() { std::thread::yield_now(); }
        for event in events.drain(..) {
            if let Event::Delivery(delivery) = event {
                assert_eq!(delivery.sequence, received);
                received += 1;
                match settlements.back_mut() {
                    Some(Settlement { first, count, .. }) if *first + u64::from(*count) == delivery.sequence => *count += 1,
                    _ => settlements.push_back(Settlement { subscription, first: delivery.sequence, count: 1, action: Settle::Ack }),
                }
            }
        }
        link.settle(&mut settlements);
    }
    println!("drain: {:?}, {:.3} us CPU each, RSS {}", started.elapsed(), (cpu_micros() - cpu) as f64 / n as f64, rss());
    drop(link);
    engine.close();
    sync.join().unwrap().unwrap();
    std::process::exit(0);
}
