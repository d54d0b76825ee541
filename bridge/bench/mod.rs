//! `rocketbridge bench`: a load on any broker of a protocol that costs far less than the broker, and the engine
//! alone. A measuring instrument, not a client.
//!
//! Messages are encoded once, numbered in place ([`template`]) and written in large pieces ([`publishers`]); readers
//! look at lengths, numbers and checksums and at nothing else ([`consumers`], [`tally`]). One thread serves all
//! connections that publish, another all that consume. What differs from protocol to protocol is behind
//! [`protocol::Protocol`]; [`engine`] has no connections at all.

mod amqp;
mod body;
mod consumers;
mod engine;
mod latency;
mod mqtt;
pub mod options;
mod process;
mod protocol;
mod publishers;
mod report;
mod rocketmq;
mod shared;
mod stomp;
mod tally;
mod template;
mod url;
mod watch;
mod wire;

use std::process::ExitCode;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use consumers::Consumer;
use options::{Kind, Mode, Options};
use protocol::Protocol;
use publishers::Publisher;
use report::{Idle, Part, Report};
use shared::{Shared, lock};
use tally::{Streams, Tally};
use template::Batch;
use watch::Watch;
use wire::{Fault, Wire};

/// How long idle connections are left alone before they are measured: brokers free what they free when connections
/// are quiet.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// How long a broker is left to read the last acknowledgements and goodbyes of a phase before its queues are drained or
/// removed.
const GOODBYE_TIME: Duration = Duration::from_millis(20);

/// Runs what the options say and prints what was found. The exit code is 1 when something was lost or altered,
/// or the broker failed.
pub fn run(options: &Options) -> ExitCode {
    raise_file_limit();
    let report = match options.kind {
        Kind::Engine => engine::run(options),
        Kind::Amqp => load("amqp", options, &mut amqp::Amqp::new(options)),
        Kind::Mqtt => load("mqtt", options, &mut mqtt::Mqtt::new(options)),
        Kind::Stomp => load("stomp", options, &mut stomp::Stomp::new(options)),
        Kind::RocketMq => load("rocketmq", options, &mut rocketmq::RocketMq::new(options)),
    };
    print!("{report}");
    if let Some(fault) = &report.fault {
        eprintln!("rocketbridge bench: {fault}");
    } else if report.lost > 0 {
        let (lost, seconds) = (report::grouped(report.lost), options.patience.as_secs_f64());
        eprintln!("rocketbridge bench: {lost} messages were lost: nothing came any more for {seconds} s");
    }
    if options.json {
        println!("{}", report.json());
    }
    if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Many connections need many descriptors: as many as the system gives.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // The limit that there is may do.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// One run against a broker, from its declarations to their removal.
fn load(name: &'static str, options: &Options, protocol: &mut dyn Protocol) -> Report {
    let mut report = Report::new(name);
    watch::listen_to_signals();
    let prepared = protocol.prepare();
    let is_prepared = prepared.is_ok();
    let result = prepared.and_then(|()| {
        let run = Run {
            options,
            protocol: &*protocol,
        };
        run.go(&mut report)
    });
    if let Err(fault) = result {
        report.fault = Some(fault.to_string());
    }
    if options.mode != Mode::Fill {
        match protocol.clean_up() {
            Ok(None) => {}
            Ok(Some(words)) => eprintln!("rocketbridge bench: {words}"),
            // Who was not let in has nothing to remove.
            Err(fault) if is_prepared => eprintln!("rocketbridge bench: not everything was removed: {fault}"),
            Err(_) => {}
        }
    }
    report
}

struct Run<'a> {
    options: &'a Options,
    protocol: &'a dyn Protocol,
}

/// What is done at the same time.
#[derive(Clone, Copy)]
struct Phase {
    name: &'static str,
    publish: bool,
    consume: bool,
}

impl Run<'_> {
    fn go(&self, report: &mut Report) -> Result<(), Fault> {
        // A wrong process is told before anything is measured.
        self.usage()?;
        let idlers = self.idle(report)?;
        let phase = |name, publish, consume| Phase { name, publish, consume };
        let phases = match self.options.mode {
            Mode::Together => vec![phase("", true, self.options.consumers > 0)],
            Mode::Backlog => vec![phase("fill", true, false), phase("drain", false, true)],
            Mode::Fill => vec![phase("fill", true, false)],
            Mode::Drain => vec![phase("drain", false, true)],
        };
        // What the consumers are to get; a drain goes by what it was told.
        let mut expected = self.options.messages * u64::from(self.copies());
        for phase in phases {
            let shared = self.shared(phase);
            let result = self.phase(phase, &shared, expected, report);
            self.count(phase, &shared, &mut expected, report);
            result?;
        }
        drop(idlers);
        Ok(())
    }

    /// Each message goes to so many consumers.
    fn copies(&self) -> u32 {
        if self.options.fan_out {
            self.options.consumers
        } else {
            1
        }
    }

    fn shared(&self, phase: Phase) -> Shared {
        let together = phase.publish && phase.consume;
        let ahead = if together { self.options.ahead } else { 0 };
        let floors = if together && self.options.fan_out {
            self.options.threads.min(self.options.consumers) as usize
        } else {
            0
        };
        Shared::new(ahead, floors)
    }

    /// Adds what a phase has counted to the report.
    fn count(&self, phase: Phase, shared: &Shared, expected: &mut u64, report: &mut Report) {
        let load = |count: &std::sync::atomic::AtomicU64| count.load(SeqCst);
        if phase.publish {
            report.published = load(&shared.published);
            report.confirmed = load(&shared.confirmed);
            report.rejected = load(&shared.rejected);
            *expected = self.expected(shared);
        }
        if phase.consume {
            report.delivered = load(&shared.delivered);
            report.lost = expected.saturating_sub(load(&shared.unique));
        }
        report.duplicated += load(&shared.duplicated);
        report.out_of_order += load(&shared.out_of_order);
        report.altered += load(&shared.altered);
        report.foreign += load(&shared.foreign);
        report.latencies.merge(&lock(&shared.latencies));
        report.confirm_latencies.merge(&lock(&shared.confirm_latencies));
    }

    /// What consumers are to get of what was published: where messages are confirmed, only those that were.
    fn expected(&self, shared: &Shared) -> u64 {
        let taken = if self.options.confirm > 0 {
            shared.confirmed.load(SeqCst)
        } else {
            shared.published.load(SeqCst)
        };
        taken * u64::from(self.copies())
    }

    /// Opens connections that do nothing.
    fn idle(&self, report: &mut Report) -> Result<Vec<wire::Talk>, Fault> {
        if self.options.idle == 0 {
            return Ok(Vec::new());
        }
        let before = self.usage()?;
        let began = Instant::now();
        let idlers: Result<Vec<_>, Fault> = (0..self.options.idle).map(|index| self.protocol.idler(index)).collect();
        let idlers = idlers?;
        let seconds = began.elapsed().as_secs_f64();
        let after = self.usage()?;
        if before.is_some() {
            // Nothing tells when a broker has freed what it is going to free.
            thread::sleep(SETTLE_TIME);
        }
        let settled = self.usage()?;
        report.idle = Some(Idle {
            connections: self.options.idle,
            seconds,
            cpu: before.zip(after).map(|(before, after)| after.cpu - before.cpu),
            resident: before
                .zip(settled)
                .map(|(before, after)| after.resident.saturating_sub(before.resident)),
        });
        Ok(idlers)
    }

    /// What the broker's process has used.
    fn usage(&self) -> Result<Option<process::Usage>, Fault> {
        let Some(pid) = self.options.pid else { return Ok(None) };
        let usage = process::usage(pid).map_err(|error| Fault::Refused {
            what: format!("to be measured as process {pid}"),
            why: error.to_string(),
        })?;
        Ok(Some(usage))
    }

    fn phase(&self, phase: Phase, shared: &Shared, expected: u64, report: &mut Report) -> Result<(), Fault> {
        let options = self.options;
        // Consumers first: what is published before they are there would be lost on some.
        let consumers = if phase.consume { self.consumers()? } else { Vec::new() };
        let mut plan = publishers::Plan {
            window: options.confirm,
            rate: options.rate,
            publishers: options.publishers,
            begin_us: 0,
        };
        let publishers = if phase.publish {
            self.publishers(&plan)?
        } else {
            Vec::new()
        };
        let goodbye = self.protocol.goodbye();
        let together = phase.publish && phase.consume;
        let run = rocketmq::run_number(&options.name);
        let naps = options.rate == 0.0 && (options.confirm == 0 || options.confirm >= publishers::NAP_WINDOW);
        shared.set_main(thread::current());
        let publishing = publishers.len().min(options.threads as usize);
        shared.publishing.store(publishing as u64, SeqCst);
        let mut result = Ok(());
        thread::scope(|scope| {
            let watch = Watch::begin(options, shared, phase.consume, self.usage().ok().flatten());
            for (thread, consumers) in dealt(consumers, options.threads).into_iter().enumerate() {
                let plan = consumers::Plan {
                    thread,
                    run,
                    latencies: together,
                    naps,
                };
                let goodbye = &goodbye;
                scope.spawn(move || {
                    if let Err(fault) = consumers::run(consumers, plan, goodbye, shared) {
                        shared.fail(fault);
                    }
                });
            }
            plan.begin_us = shared.now_us();
            for publishers in dealt(publishers, options.threads) {
                let batch = Batch::new(&self.protocol.template(), options.size, options.queues, run);
                let goodbye = &goodbye;
                scope.spawn(move || {
                    if let Err(fault) = publishers::run(publishers, batch, plan, goodbye, shared) {
                        shared.fail(fault);
                    }
                });
            }
            let wanted = || if phase.publish { self.expected(shared) } else { expected };
            let ended = watch.until_over(&wanted, &|| self.usage().ok().flatten());
            shared.end();
            match ended {
                Ok((before, after)) => report.add(part(phase.name, before, after)),
                Err(fault) => result = Err(fault),
            }
        });
        // MQTT and STOMP answer no goodbye.
        thread::sleep(GOODBYE_TIME);
        result
    }

    fn publishers(&self, plan: &publishers::Plan) -> Result<Vec<Publisher>, Fault> {
        let options = self.options;
        let count = u64::from(options.publishers);
        (0..options.publishers)
            .map(|index| {
                let (talk, answers) = self.protocol.publisher(index)?;
                let messages = match options.seconds {
                    Some(_) => u64::MAX,
                    None => options.messages / count + u64::from(u64::from(index) < options.messages % count),
                };
                Ok(Publisher::new(index as u16, messages, talk.into_wire()?, answers, plan))
            })
            .collect()
    }

    fn consumers(&self) -> Result<Vec<Consumer>, Fault> {
        let options = self.options;
        // Consumers that share a queue share what they have seen of it.
        let groups = if options.fan_out {
            options.consumers
        } else {
            options.consumers.min(options.queues)
        };
        let streams = Streams {
            publishers: options.publishers,
            queues: options.queues,
            stride: if options.fan_out { 1 } else { groups },
        };
        let tallies: Vec<Arc<Mutex<Tally>>> = (0..groups).map(|_| Arc::default()).collect();
        (0..options.consumers)
            .map(|index| {
                let (talk, consume) = self.protocol.consumer(index)?;
                let wire: Wire = talk.into_wire()?;
                let group = index % groups;
                Ok(Consumer::new(
                    wire,
                    consume,
                    streams,
                    group,
                    Arc::clone(&tallies[group as usize]),
                ))
            })
            .collect()
    }
}

/// Shares out connections among threads.
fn dealt<T>(all: Vec<T>, threads: u32) -> Vec<Vec<T>> {
    let threads = (threads as usize).min(all.len());
    let mut hands: Vec<Vec<T>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, one) in all.into_iter().enumerate() {
        hands[index % threads].push(one);
    }
    hands
}

fn part(name: &'static str, before: watch::Sample, after: watch::Sample) -> Part {
    Part {
        name,
        messages: after.messages - before.messages,
        seconds: (after.at_us.saturating_sub(before.at_us)) as f64 / 1e6,
        cpu: before
            .broker
            .zip(after.broker)
            .map(|(before, after)| after.cpu - before.cpu),
        load_cpu: before
            .load
            .zip(after.load)
            .map(|(before, after)| after.cpu - before.cpu),
        resident: after.broker.map(|usage| usage.resident),
    }
}
