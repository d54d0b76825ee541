//! The engine in this process: publish to queues, take the deliveries, settle. No protocol, no sockets.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rocketbridge_core::address::encode_name;
use rocketbridge_core::boundary::{
    Broker, Event, Fate, Link, Peer, Publish, RequestId, Settle, Settlement, SubscriptionId,
};
use rocketbridge_core::engine::{self, Engine};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{Acknowledge, Credentials, Limit, Queue, Request, Subscribe};

use super::body::{SIZE_MIN, Stamp};
use super::latency::Latencies;
use super::options::{Flush, Mode, Options};
use super::process;
use super::report::{Part, Report};
use super::template::FILLER;
use super::wire::Fault;
use crate::clock::SystemClock;

/// Messages of one publish call.
const BATCH: u64 = 250;

/// Events of one look into the inbox, as the bridge's driver takes them.
const EVENTS_MAX: usize = 256;

/// Bodies that differ. A prime, so that neighbours in no number of queues are alike.
const BODIES: u64 = 4093;

/// The run has failed when nothing moves for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// No protocol's header bytes.
const FORMAT: Format = Format(99);

/// Bytes that no other run's bodies have.
const RUN: u16 = 0xE1;

/// Runs it.
pub fn run(options: &Options) -> Report {
    let mut report = Report::new("engine");
    report.of_this_process = true;
    let folder = std::env::temp_dir().join(format!("rocketbridge-bench-{}", options.name));
    if let Err(fault) = work(options, folder.clone(), &mut report) {
        report.fault = Some(fault.to_string());
    }
    // What was never made cannot be removed.
    let _ = std::fs::remove_dir_all(folder);
    report
}

fn work(options: &Options, folder: PathBuf, report: &mut Report) -> Result<(), Fault> {
    let config = engine::Config {
        flush: match options.flush {
            Flush::Sync => engine::Flush::Sync,
            Flush::Async => engine::Flush::Async,
        },
        ..engine::Config::default()
    };
    let engine = Engine::open(&folder, config, Arc::new(SystemClock::start()))
        .map_err(|error| refused("to open its folder", &error))?;
    let sync = thread::spawn({
        let engine = engine.clone();
        move || engine.run_sync()
    });
    let maintenance = thread::spawn({
        let engine = engine.clone();
        move || engine.run_maintenance()
    });
    let mut client = Client::new(&engine, options);
    let result = client.run(report);
    drop(client);
    engine.close();
    let written = sync.join();
    if matches!(written, Ok(Ok(()))) {
        // It ends when the engine is closed.
        let _ = maintenance.join();
    }
    match written {
        Ok(Ok(())) => result,
        Ok(Err(failed)) => Err(refused("to write", &failed)),
        Err(_) => Err(refused("to write", &"its thread panicked")),
    }
}

fn refused(what: &str, why: &dyn std::fmt::Display) -> Fault {
    Fault::Refused {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

/// One connection that publishes and consumes.
struct Client<'a> {
    options: &'a Options,
    engine: &'a Engine,
    link: <Engine as Broker>::Link,
    inbox: Inbox,
    waker: Waker,
    topics: Vec<Bytes>,
    bodies: Vec<Bytes>,
    began: Instant,
    published: u64,
    confirmed: u64,
    delivered: u64,
    /// Of each queue, the number of the message that comes next.
    next: Vec<u64>,
    /// When the message was published whose number divided by [`BATCH`] is the index, modulo the length.
    published_us: Vec<u64>,
    batch: VecDeque<Publish>,
    settlements: VecDeque<Settlement>,
    unsettled: u32,
    /// Nanoseconds of each whole batch's call.
    publishing: Latencies,
    last_tick: Instant,
    last_moved: Instant,
    events: Vec<Event>,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<'a> Client<'a> {
    fn new(engine: &'a Engine, options: &'a Options) -> Self {
        let inbox = Inbox::new();
        let local = Peer {
            remote: ([127, 0, 0, 1], 1).into(),
            local: ([127, 0, 0, 1], 2).into(),
        };
        Self {
            link: engine.open(local, inbox.clone()),
            inbox,
            engine,
            options,
            waker: Waker::from(Arc::new(Unpark(thread::current()))),
            topics: topics(options.queues),
            bodies: bodies(options.size),
            began: Instant::now(),
            published: 0,
            confirmed: 0,
            delivered: 0,
            next: (0..u64::from(options.queues)).collect(),
            published_us: vec![0; 1 << 16],
            batch: VecDeque::new(),
            settlements: VecDeque::new(),
            unsettled: 0,
            publishing: Latencies::default(),
            last_tick: Instant::now(),
            last_moved: Instant::now(),
            events: Vec::new(),
        }
    }

    fn run(&mut self, report: &mut Report) -> Result<(), Fault> {
        let messages = self.options.messages;
        self.ask(Request::Login(Credentials::Anonymous))?;
        self.ask_many(|queue| {
            Request::DeclareQueue(Queue {
                name: name(queue).into(),
                durable: true,
                exclusive: false,
                auto_delete: false,
                addressable: true,
                limit: Limit::default(),
                policy: None,
                arguments: Bytes::new(),
            })
        })?;
        let mut latencies = Latencies::default();
        let parts: &[(&str, bool, bool)] = match self.options.mode {
            Mode::Backlog => &[("fill", true, false), ("drain", false, true)],
            _ => &[("", true, true)],
        };
        for (name, publish, consume) in parts {
            if *consume {
                self.subscribe()?;
            }
            let before = Sample::take();
            self.last_moved = Instant::now();
            while *publish && self.confirmed < messages || *consume && self.delivered < messages {
                let result = self.turn(*publish, report, &mut latencies);
                report.published = self.published;
                report.confirmed = self.confirmed;
                report.delivered = self.delivered;
                report.lost = messages.saturating_sub(self.delivered);
                result?;
            }
            let after = Sample::take();
            report.add(Part {
                name,
                messages,
                seconds: (after.at - before.at).as_secs_f64(),
                cpu: Some(after.usage.cpu - before.usage.cpu),
                load_cpu: None,
                resident: Some(after.usage.resident),
            });
        }
        // The median: other programs that the kernel let work meanwhile are not in it.
        let median = self.publishing.percentile(0.5);
        report.publish_us = median.map(|nanoseconds| nanoseconds as f64 / 1000.0 / BATCH as f64);
        if self.options.mode != Mode::Backlog {
            report.latencies = latencies;
        }
        Ok(())
    }

    fn subscribe(&mut self) -> Result<(), Fault> {
        self.ask_many(|queue| {
            Request::Subscribe(Subscribe {
                subscription: SubscriptionId(queue),
                queue: name(queue).into(),
                acknowledge: Acknowledge::Always,
                window: None,
                exclusive: false,
                priority: 0,
                selector: None,
            })
        })
    }

    /// Asks the same of every queue, without waiting for each answer.
    fn ask_many(&mut self, request: impl Fn(u32) -> Request) -> Result<(), Fault> {
        const PIPELINE: u32 = 500;
        for first in (0..self.options.queues).step_by(PIPELINE as usize) {
            let last = (first + PIPELINE).min(self.options.queues) - 1;
            for queue in first..last {
                self.link.request(RequestId(1), request(queue));
            }
            self.ask(request(last))?;
        }
        Ok(())
    }

    /// Asks, and waits for the answer.
    fn ask(&mut self, request: Request) -> Result<(), Fault> {
        self.link.request(RequestId(0), request);
        let asked = Instant::now();
        let mut events = Vec::new();
        loop {
            let taken = self.inbox.take(1, &mut events, &self.waker);
            if taken.resume {
                self.link.resume();
            }
            if taken.empty {
                if asked.elapsed() > PATIENCE {
                    return Err(Fault::NoAnswer(PATIENCE.as_secs()));
                }
                thread::park_timeout(Duration::from_millis(10));
            }
            // Answers come in the order of the questions.
            match events.pop() {
                Some(Event::Reply {
                    result: Err(refusal), ..
                }) => return Err(refused("a request", &refusal)),
                Some(Event::Reply { id: RequestId(0), .. }) => return Ok(()),
                Some(Event::Delivery(delivery)) => self.events.push(Event::Delivery(delivery)),
                _ => {}
            }
        }
    }

    /// Publishes a batch if there is room, takes what there is, settles; sleeps when nothing can be done.
    fn turn(&mut self, publish: bool, report: &mut Report, latencies: &mut Latencies) -> Result<(), Fault> {
        let now_us = self.began.elapsed().as_micros() as u64;
        let open = self.published - self.confirmed;
        let left = self.options.messages - self.published;
        let ahead = match self.options.ahead {
            0 => u64::MAX,
            _ if self.options.mode == Mode::Backlog => u64::MAX,
            ahead => ahead,
        };
        let whole = BATCH.min(left).min(ahead);
        let count = whole.min(self.options.confirm.saturating_sub(open));
        let is_near = self.published + whole - self.delivered <= ahead;
        let mut moved = false;
        // Small rests of a window are left to gather.
        if publish && is_near && count > 0 && (count == whole || open == 0 || count == self.options.confirm) {
            moved = self.publish(count, now_us);
        }
        moved |= self.take(report, latencies)?;
        if self.last_tick.elapsed() > Duration::from_secs(1) {
            self.last_tick = Instant::now();
            self.engine.tick();
        }
        if moved {
            self.last_moved = Instant::now();
        } else {
            if self.last_moved.elapsed() > PATIENCE {
                return Err(Fault::Stalled(format!("nothing moved for {} s", PATIENCE.as_secs())));
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    fn publish(&mut self, count: u64, now_us: u64) -> bool {
        let queues = u64::from(self.options.queues);
        while (self.batch.len() as u64) < count {
            let token = self.published + self.batch.len() as u64;
            let slot = (token / BATCH) as usize % self.published_us.len();
            self.published_us[slot] = now_us;
            self.batch.push_back(Publish {
                token,
                entry: Entry::Queue,
                topic: self.topics[(token % queues) as usize].clone(),
                body: self.bodies[(token % BODIES) as usize].clone(),
                format: FORMAT,
                persistent: self.options.persistent,
                waits: true,
                ..Publish::default()
            });
        }
        let before = self.batch.len();
        let began = Instant::now();
        // What is not taken now is offered again.
        let _ = self.link.publish(&mut self.batch);
        if before as u64 == BATCH {
            self.publishing.add(began.elapsed().as_nanos() as u64, 1);
        }
        let taken = (before - self.batch.len()) as u64;
        self.published += taken;
        taken > 0
    }

    fn take(&mut self, report: &mut Report, latencies: &mut Latencies) -> Result<bool, Fault> {
        let mut events = std::mem::take(&mut self.events);
        let taken = self.inbox.take(EVENTS_MAX, &mut events, &self.waker);
        if taken.resume {
            self.link.resume();
        }
        let moved = !events.is_empty();
        let now_us = self.began.elapsed().as_micros() as u64;
        for event in events.drain(..) {
            match event {
                Event::Outcome(outcome) => {
                    let count = u64::from(outcome.count);
                    match outcome.fate {
                        Fate::Stored(_) | Fate::Duplicate(_) => self.confirmed += count,
                        Fate::Rejected(why) => return Err(refused("a message", &format!("{why:?}"))),
                        Fate::Unknown => return Err(refused("a message", &"its fate is unknown")),
                    }
                }
                Event::Delivery(delivery) => {
                    self.delivered += 1;
                    let queue = delivery.subscription.0 as usize;
                    let number = self.next[queue];
                    self.next[queue] += u64::from(self.options.queues);
                    let body = delivery.message.body();
                    if *body != self.bodies[(number % BODIES) as usize] {
                        // It is still one of ours if it is whole.
                        match Stamp::read(body).filter(|stamp| stamp.run == RUN) {
                            Some(_) => report.out_of_order += 1,
                            None => report.altered += 1,
                        }
                    }
                    let slot = (number / BATCH) as usize % self.published_us.len();
                    latencies.add(now_us.saturating_sub(self.published_us[slot]), 1);
                    self.settle(delivery.subscription, delivery.sequence);
                }
                _ => {}
            }
        }
        self.events = events;
        if self.unsettled >= self.options.ack_batch || (self.unsettled > 0 && self.delivered == self.options.messages) {
            self.unsettled = 0;
            self.link.settle(&mut self.settlements);
        }
        Ok(moved)
    }

    fn settle(&mut self, subscription: SubscriptionId, sequence: u64) {
        self.unsettled += 1;
        match self.settlements.back_mut() {
            Some(last) if last.subscription == subscription && last.first + u64::from(last.count) == sequence => {
                last.count += 1;
            }
            _ => self.settlements.push_back(Settlement {
                subscription,
                first: sequence,
                count: 1,
                action: Settle::Ack,
            }),
        }
    }
}

fn name(queue: u32) -> String {
    format!("rocketbridge-bench-{queue}")
}

/// The addresses of all queues, in one piece of memory, as a protocol cuts them out of what it read.
fn topics(queues: u32) -> Vec<Bytes> {
    let names: Vec<Bytes> = (0..queues).map(|queue| encode_name(&name(queue).into())).collect();
    let all = Bytes::from(names.concat());
    let mut end = 0;
    names
        .iter()
        .map(|name| {
            end += name.len();
            all.slice(end - name.len()..end)
        })
        .collect()
}

/// Bodies that differ, in one piece of memory.
fn bodies(size: usize) -> Vec<Bytes> {
    let filler = vec![FILLER; size - SIZE_MIN];
    let mut all = BytesMut::with_capacity(size * BODIES as usize);
    for number in 0..BODIES {
        let stamp = Stamp {
            run: RUN,
            sequence: number,
            ..Stamp::default()
        };
        all.extend_from_slice(&stamp.write(&filler));
        all.extend_from_slice(&filler);
    }
    let all = all.freeze();
    (0..BODIES as usize)
        .map(|number| all.slice(number * size..(number + 1) * size))
        .collect()
}

struct Sample {
    at: Instant,
    usage: process::Usage,
}

impl Sample {
    fn take() -> Self {
        Self {
            at: Instant::now(),
            usage: process::usage(std::process::id()).unwrap_or_default(),
        }
    }
}
