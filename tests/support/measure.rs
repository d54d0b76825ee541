//! Times, and what the slowest of them may be on a machine that others use, too; memory, and its peak.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::broker::Broker;

/// Times of one kind.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<Duration>);

impl Spread {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that `percent` of all do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted[index]
    }
}

/// How many hops from thread to thread something that is measured may take: each is as late as the machine is.
const HOPS: u32 = 4;

/// Measures until 99 percent are within the limit, `attempts` times at most: noise only ever adds. What the
/// machine itself takes meanwhile is added to the limit.
pub fn best_of(attempts: u32, p99_max: Duration, what: &str, mut measure: impl FnMut() -> io::Result<Spread>) {
    let mut tried = Vec::new();
    for _ in 0..attempts {
        let control = Control::start();
        let spread = measure().unwrap_or_else(|error| panic!("{what}: {error}"));
        let machine = control.end().percentile(99);
        let p99 = spread.percentile(99);
        println!(
            "{what}: median {:?}, p99 {p99:?} of {}; p99 of the machine itself {machine:?}",
            spread.percentile(50),
            spread.len()
        );
        if p99 <= p99_max + machine * HOPS {
            return;
        }
        tried.push((p99, machine));
    }
    panic!("{what}: p99, and that of the machine itself, were {tried:?}, more than {p99_max:?}");
}

/// Measures the machine: how late is a thread that waits for a byte of another one?
struct Control {
    /// Dropped, it ends the measuring.
    stop: Sender<()>,
    measured: JoinHandle<Spread>,
}

impl Control {
    const EVERY: Duration = Duration::from_millis(2);

    fn start() -> Self {
        let (mut here, mut there) = UnixStream::pair().expect("two sockets");
        thread::spawn(move || {
            let mut byte = [0];
            while there
                .read_exact(&mut byte)
                .and_then(|()| there.write_all(&byte))
                .is_ok()
            {}
        });
        let (stop, stopped) = channel::<()>();
        let measured = thread::spawn(move || {
            let (mut spread, mut byte) = (Spread::default(), [0]);
            while spread.len() == 0 || stopped.recv_timeout(Self::EVERY) == Err(RecvTimeoutError::Timeout) {
                let start = Instant::now();
                here.write_all(&byte).expect("it is read");
                here.read_exact(&mut byte).expect("it comes back");
                spread.add(start.elapsed());
            }
            spread
        });
        Self { stop, measured }
    }

    fn end(self) -> Spread {
        drop(self.stop);
        self.measured.join().expect("it does not panic")
    }
}

/// How much longer than it takes to run a process takes since its start: its threads wait for a processor, too.
/// 1 where the system does not tell.
pub fn stretch(pid: u32) -> f64 {
    let (mut running, mut waiting) = (0.0, 0.0);
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    for task in tasks.map_while(Result::ok) {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut nanoseconds = text.split_whitespace().map_while(|word| word.parse::<f64>().ok());
        running += nanoseconds.next().unwrap_or(0.0);
        waiting += nanoseconds.next().unwrap_or(0.0);
    }
    if running > 0.0 { 1.0 + waiting / running } else { 1.0 }
}

/// Watches a broker's resident memory.
pub struct Memory {
    before: u64,
    peak: Arc<AtomicU64>,
    /// Dropped, it ends the watching.
    stop: Sender<()>,
    ended: Receiver<()>,
}

impl Memory {
    const EVERY: Duration = Duration::from_millis(5);

    pub fn watch(broker: &Broker) -> Self {
        let pid = broker.pid();
        let before = resident_kib(pid).expect("it runs");
        let peak = Arc::new(AtomicU64::new(before));
        let (stop, stopped) = channel::<()>();
        let (end, ended) = channel();
        let seen = Arc::clone(&peak);
        thread::spawn(move || {
            while stopped.recv_timeout(Self::EVERY) == Err(RecvTimeoutError::Timeout) {
                seen.fetch_max(resident_kib(pid).unwrap_or(0), Ordering::Relaxed);
            }
            let _ = end.send(());
        });
        Self {
            before,
            peak,
            stop,
            ended,
        }
    }

    /// The most it had more than at the start, KiB.
    pub fn growth(&self) -> u64 {
        self.peak.load(Ordering::Relaxed) - self.before
    }

    /// Ends the watching.
    pub fn assert_growth_below(self, max_kib: u64) {
        let growth = self.growth();
        drop(self.stop);
        let _ = self.ended.recv();
        println!("resident memory: {} KiB, and {growth} KiB more at most", self.before);
        assert!(
            growth < max_kib,
            "resident memory grew by {growth} KiB from {} KiB",
            self.before
        );
    }
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Sets a flag when it goes out of scope, also by a panic: a thread that waits for it would wait for ever.
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
