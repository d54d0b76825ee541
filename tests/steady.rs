//! A broker that works on and on stays as large as it was: memory and disk are flat once topics give up what is
//! older than their retention, and nothing that the history checker looks for goes wrong meanwhile.
//!
//! `ROCKETBRIDGE_STEADY_SECONDS` is how long the load runs (default 5, `tests/soak` says 3600). Sizes are judged
//! from [`JUDGED_FROM`] on: before that, what grows cannot be told from what warms up.

mod support;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use support::broker::{Broker, Options};
use support::history::{Event, Extent};
use support::load::{self, Addresses, CLIENTS, Load};
use support::random::Random;

const SECONDS_DEFAULT: u64 = 5;

/// What topics keep is a sixth of an hour, so that the first quarter of the hour fills them.
const RETENTION: Duration = Duration::from_secs(600);
const JUDGED_FROM: Duration = Duration::from_secs(3000);

/// How often sizes are looked at, and how often they are told.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const TELL_EVERY: usize = 60;

/// About 250 messages and 650 KB a second: a few percent of a core, and more than a segment in the retention.
const PAUSE: Duration = Duration::from_millis(360);
const BODY_MAX: u64 = 4000;

/// The mean of the last quarter may be a tenth more than that of the second one, and this much: the log is given up
/// in segments of 256 MiB, memory comes in pages and arenas.
const DISK_SLACK: u64 = 256 << 20;
const MEMORY_SLACK: u64 = 8 << 20;

/// The broker's size at a moment, bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    memory: u64,
    disk: u64,
}

#[test]
fn memory_and_disk_stay_as_they_are_under_load() {
    let seconds = std::env::var("ROCKETBRIDGE_STEADY_SECONDS");
    let seconds = seconds.map_or(SECONDS_DEFAULT, |text| text.parse().expect("a number"));
    let time = Duration::from_secs(seconds);
    let mut random = Random::from_environment();
    let mut load = Load::default();
    if time >= JUDGED_FROM {
        (load.pause, load.body_max) = (PAUSE, BODY_MAX);
    }
    let options = Options {
        config: format!("[store]\nretention = \"{}s\"\n", RETENTION.as_secs()),
        ..Options::default()
    };
    let mut broker = Broker::start_with(&options);
    load::set_up(&load, &Addresses::of(&broker), &mut random).expect("it works");
    let samples = work(&load, &mut broker, &mut random, time);
    let log = broker.whole_log();
    let broker = broker.restart(&options);
    load::drain(&load, &Addresses::of(&broker), &mut random).expect("it works");
    let complaints: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    load.recorder.with(|history| {
        let confirmed = history.count(|event| matches!(event, Event::Confirmed { .. }));
        let delivered = history.count(|event| matches!(event, Event::Delivered { .. }));
        println!("{confirmed} messages confirmed, {delivered} deliveries, judged to the last one");
        history.assert_good(Extent::Drained);
        // A busy machine does less, but not nothing.
        assert!(confirmed > 50, "too little was tested");
    });
    if time >= JUDGED_FROM {
        assert_flat("disk", &samples, |sample| sample.disk, DISK_SLACK);
        assert_flat("resident memory", &samples, |sample| sample.memory, MEMORY_SLACK);
    }
}

/// All clients at once for that time. The broker is killed at the end: when a client goes by itself, what it has
/// acknowledged last may never arrive, and what it had comes to another one late.
fn work(load: &Load, broker: &mut Broker, random: &mut Random, time: Duration) -> Vec<Sample> {
    let addresses = Addresses::of(broker);
    let start = Instant::now();
    let mut samples = Vec::new();
    let killed = AtomicBool::new(false);
    let (sender, failures) = channel();
    thread::scope(|scope| {
        for client in CLIENTS {
            let (random, sender, killed) = (random.fork(), sender.clone(), &killed);
            scope.spawn(move || {
                let result = client.run(load, &addresses, random);
                if !killed.load(Ordering::SeqCst) {
                    let _ = sender.send(format!("{client:?}: {result:?}"));
                }
            });
        }
        let mut failure = None;
        while failure.is_none() && start.elapsed() < time {
            failure = failures.recv_timeout(SAMPLE_EVERY).ok();
            let sample = Sample {
                memory: broker.resident_kib() << 10,
                disk: disk_usage(&broker.data_dir()),
            };
            samples.push(sample);
            if samples.len().is_multiple_of(TELL_EVERY) {
                let minutes = start.elapsed().as_secs() / 60;
                let (memory, disk) = (sample.memory >> 20, sample.disk >> 20);
                println!("{minutes} min: memory {memory} MiB, disk {disk} MiB");
            }
        }
        killed.store(true, Ordering::SeqCst);
        let alive = broker.is_running();
        broker.kill();
        // Not before the kill: the threads end when their broker is gone.
        assert_eq!(failure, None, "{}", broker.log());
        assert!(alive, "it ended by itself:\n{}", broker.log());
    });
    load.recorder.record(Event::Crashed);
    samples
}

/// What the files of a folder take of the disk. They come and go meanwhile.
fn disk_usage(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().map_while(Result::ok);
    let sizes = entries.map(|entry| -> io::Result<u64> {
        let metadata = entry.metadata()?;
        Ok(if metadata.is_dir() {
            disk_usage(&entry.path())
        } else {
            metadata.blocks() * 512
        })
    });
    sizes.map(Result::unwrap_or_default).sum()
}

fn assert_flat(what: &str, samples: &[Sample], size: impl Fn(&Sample) -> u64, slack: u64) {
    let [first, second, third, fourth] = quarters(samples, size);
    println!(
        "{what}: means of the quarters {}, {}, {}, {} KiB",
        first >> 10,
        second >> 10,
        third >> 10,
        fourth >> 10
    );
    assert!(
        is_flat(second, fourth, slack),
        "{what} grows: {second}, later {fourth} bytes"
    );
}

fn quarters(samples: &[Sample], size: impl Fn(&Sample) -> u64) -> [u64; 4] {
    [0, 1, 2, 3].map(|quarter| {
        let part = &samples[samples.len() * quarter / 4..samples.len() * (quarter + 1) / 4];
        part.iter().map(&size).sum::<u64>() / part.len() as u64
    })
}

fn is_flat(second: u64, fourth: u64, slack: u64) -> bool {
    fourth <= second + second / 10 + slack
}

/// The rule itself: an hour of samples that rise and fall passes, one that grows all the time does not.
#[test]
fn what_grows_is_told_from_what_rises_and_falls() {
    let hour = |size: fn(u64) -> u64| -> Vec<Sample> {
        let seconds = 0..3600;
        seconds
            .map(|second| Sample {
                memory: size(second) << 20,
                disk: 0,
            })
            .collect()
    };
    let flat = |samples: &[Sample]| {
        let [_, second, _, fourth] = quarters(samples, |sample| sample.memory);
        is_flat(second, fourth, MEMORY_SLACK)
    };
    assert!(flat(&hour(|second| 60 + second.min(600) / 10 + second % 7)));
    assert!(!flat(&hour(|second| 60 + second / 60)));
}
