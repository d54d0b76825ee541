//! What the protocols share: the broker's process, the window, the publisher's brake, numbered bodies.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::RunOptions;

/// The clock ticks of `/proc/PID/stat`, fixed by the kernel's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of one write.
pub const WRITE_SIZE: usize = 64 * 1024;

/// Room for one read.
const READ_SIZE: usize = 256 * 1024;

/// How long one reader naps; the kernel adds some 50 us.
const NAP: Duration = Duration::from_micros(20);

/// A read of deliveries that brought less is followed by a nap.
pub const FEW_DELIVERIES: usize = 8 * 1024;

/// A process as the kernel accounts for it.
#[derive(Clone, Copy)]
pub struct Process {
    pid: u32,
}

impl Process {
    pub fn new(pid: u32) -> Self {
        Self { pid }
    }

    pub fn this() -> Self {
        Self::new(std::process::id())
    }

    /// User and system time so far, seconds.
    pub fn cpu(self) -> f64 {
        let stat = self.file("stat");
        // The name in parentheses may hold anything.
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
        (ticks(11) + ticks(12)) / TICKS_PER_SECOND
    }

    /// Resident memory, KiB.
    pub fn resident(self) -> f64 {
        let status = self.file("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim_end_matches("kB").trim().parse().expect("a number")
    }

    fn file(self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid)).expect("the process runs")
    }
}

/// Something that advances, and how far the publisher may be ahead of it.
struct Mark {
    reached: AtomicU64,
    /// What it must reach for the publisher to be woken.
    wanted: AtomicU64,
    window: Window,
}

/// How far a publisher may be ahead of something.
#[derive(Clone, Copy)]
pub enum Window {
    Unlimited,
    /// Of confirms: a publisher that waits goes on with the first confirm that comes, as clients do. (Were it to wait
    /// for some, Nagle's algorithm in brokers that leave it on would wait for it.)
    Confirmed(u64),
    /// Of deliveries: no part of the protocol, so a publisher that waits sleeps until a tenth is free.
    Delivered(u64),
}

impl Window {
    /// 0 is no limit.
    pub fn confirmed(size: u64) -> Self {
        if size == 0 {
            Self::Unlimited
        } else {
            Self::Confirmed(size)
        }
    }

    /// 0 is no limit.
    pub fn delivered(size: u64) -> Self {
        if size == 0 {
            Self::Unlimited
        } else {
            Self::Delivered(size)
        }
    }

    /// How much may be sent in all when `reached` were confirmed or delivered.
    fn limit(self, reached: u64) -> u64 {
        match self {
            Self::Unlimited => u64::MAX,
            Self::Confirmed(size) | Self::Delivered(size) => reached + size,
        }
    }

    /// What must be reached for a publisher that sent so many to be woken.
    fn wanted(self, sent: u64) -> u64 {
        match self {
            Self::Unlimited => 0,
            Self::Confirmed(size) => (sent + 1).saturating_sub(size),
            Self::Delivered(size) => (sent + (size / 10).max(1)).saturating_sub(size),
        }
    }
}

/// Holds the publisher back.
pub struct Gate {
    marks: Vec<Mark>,
    sent: AtomicU64,
    stopped: AtomicBool,
    /// The publisher has sent its last message.
    finished: AtomicBool,
    publisher: OnceLock<Thread>,
}

impl Gate {
    /// One mark for each window.
    pub fn new(windows: impl IntoIterator<Item = Window>) -> Self {
        let mark = |window| Mark {
            reached: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            window,
        };
        Self {
            marks: windows.into_iter().map(mark).collect(),
            sent: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            publisher: OnceLock::new(),
        }
    }

    /// Mark `index` is at `to`.
    pub fn advance(&self, index: usize, to: u64) {
        let before = self.marks[index].reached.swap(to, SeqCst);
        let wanted = self.marks[index].wanted.load(SeqCst);
        if before < wanted && wanted <= to {
            self.wake();
        }
    }

    pub fn reached(&self, index: usize) -> u64 {
        self.marks[index].reached.load(SeqCst)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(SeqCst)
    }

    pub fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(publisher) = self.publisher.get() {
            publisher.unpark();
        }
    }

    fn room(&self, sent: u64) -> u64 {
        let limits = self
            .marks
            .iter()
            .map(|mark| mark.window.limit(mark.reached.load(SeqCst)));
        limits.min().unwrap_or(u64::MAX).saturating_sub(sent)
    }

    /// Waits for room; none when the run is over.
    fn wait(&self, sent: u64) -> Option<u64> {
        self.sent.store(sent, SeqCst);
        loop {
            if self.stopped.load(SeqCst) {
                self.finished.store(true, SeqCst);
                return None;
            }
            let room = self.room(sent);
            if room > 0 {
                return Some(room);
            }
            for mark in &self.marks {
                mark.wanted.store(mark.window.wanted(sent), SeqCst);
            }
            let enough = |mark: &Mark| mark.reached.load(SeqCst) >= mark.wanted.load(SeqCst);
            while !self.stopped.load(SeqCst) && !self.marks.iter().all(enough) {
                thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
}

/// A message as bytes on the wire, many times, in one piece.
pub struct Batch {
    bytes: Vec<u8>,
    each: usize,
    number_at: usize,
    id_at: Option<usize>,
}

impl Batch {
    /// Of `message`; its number is at `number_at`, an MQTT packet identifier at `id_at`.
    pub fn new(message: &[u8], number_at: usize, id_at: Option<usize>) -> Self {
        let count = (WRITE_SIZE / message.len()).max(1);
        Self {
            bytes: message.repeat(count),
            each: message.len(),
            number_at,
            id_at,
        }
    }

    /// Publishes until the gate ends it.
    pub fn publish(mut self, stream: &mut TcpStream, gate: &Gate) {
        gate.publisher.set(thread::current()).expect("there is one publisher");
        let capacity = (self.bytes.len() / self.each) as u64;
        let mut sent = 0;
        while let Some(room) = gate.wait(sent) {
            let count = room.min(capacity);
            let piece = self.numbered(sent, count);
            stream.write_all(piece).expect("the broker reads");
            sent += count;
        }
    }

    fn numbered(&mut self, first: u64, count: u64) -> &[u8] {
        let length = count as usize * self.each;
        for (message, number) in self.bytes[..length].chunks_exact_mut(self.each).zip(first..) {
            message[self.number_at..][..8].copy_from_slice(&number.to_be_bytes());
            if let Some(at) = self.id_at {
                // 1 to 65,535, each again long after its answer.
                let id = (number % 65_535) as u16 + 1;
                message[at..][..2].copy_from_slice(&id.to_be_bytes());
            }
        }
        &self.bytes[..length]
    }
}

/// The numbers one consumer sees.
#[derive(Default)]
pub struct Sequence {
    pub count: u64,
    next: u64,
    pub out_of_order: u64,
}

impl Sequence {
    pub fn see(&mut self, body: &[u8]) {
        let number = u64::from_be_bytes(body[..8].try_into().expect("eight bytes"));
        self.count += 1;
        if number >= self.next {
            self.next = number + 1;
        } else {
            self.out_of_order += 1;
        }
    }
}

/// Bytes from the broker, handed out frame by frame without a copy.
pub struct Input {
    stream: TcpStream,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// How long, and after reads of fewer bytes than what.
    nap: Option<(Duration, usize)>,
    /// Bytes of the last read.
    last: usize,
}

impl Input {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            bytes: vec![0; READ_SIZE],
            start: 0,
            end: 0,
            nap: None,
            last: 0,
        }
    }

    /// After a read that brought less than `little` bytes it naps. A broker that writes message by message would
    /// otherwise wake a reader for each, and what is measured were the readers. The more of them, the longer.
    pub fn napping(mut self, readers: usize, little: usize) -> Self {
        self.nap = Some((NAP * readers as u32, little));
        self
    }

    /// What was read and not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads more; false when the connection has ended.
    pub fn fill(&mut self) -> bool {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.bytes.len() {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        match self.nap {
            Some((nap, little)) if self.last < little => thread::sleep(nap),
            _ => {}
        }
        let count = self.stream.read(&mut self.bytes[self.end..]).unwrap_or(0);
        self.end += count;
        self.last = count;
        count > 0
    }

    /// The same connection, to write to.
    pub fn stream(&self) -> TcpStream {
        self.stream.try_clone().expect("a descriptor")
    }
}

/// Lets the threads of a run work through the window, then prints the line. Consumers are marks `consumers` of the
/// gate. Returns when everything was delivered, or patience has ended.
pub struct Run<'a> {
    pub name: String,
    pub options: &'a RunOptions,
    pub gate: &'a Gate,
    pub consumers: std::ops::Range<usize>,
    /// The mark of the publisher's confirms.
    pub confirms: Option<usize>,
    pub out_of_order: &'a AtomicU64,
}

impl Run<'_> {
    pub fn measure(&self) {
        thread::sleep(self.options.warm_up);
        let begin = self.sample();
        thread::sleep(self.options.measured);
        let end = self.sample();
        let behind = self.missing();
        let resident = self.options.broker.resident();
        self.gate.stop();
        let missing = self.wait_for_rest();
        let deliveries = end.delivered - begin.delivered;
        assert!(deliveries > 0, "nothing was delivered");
        let seconds = (end.at - begin.at).as_secs_f64();
        let per_delivery = |seconds: f64| seconds * 1e6 / deliveries as f64;
        println!(
            "name={} rate={:.0} cpu_us={:.3} load_us={:.3} rss_mib={:.1} deliveries={deliveries} behind={behind} lost={missing} \
             out_of_order={} unconfirmed={} load_average={}",
            self.name,
            deliveries as f64 / seconds,
            per_delivery(end.broker - begin.broker),
            per_delivery(end.this - begin.this),
            resident / 1024.0,
            self.out_of_order.load(SeqCst),
            self.unconfirmed(),
            load_average(),
        );
    }

    /// Says how many were not delivered.
    fn wait_for_rest(&self) -> u64 {
        let deadline = Instant::now() + self.options.patience;
        loop {
            let finished = self.gate.finished.load(SeqCst);
            let missing = self.missing();
            if (finished && missing == 0 && self.unconfirmed() == 0) || Instant::now() > deadline {
                return missing;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn missing(&self) -> u64 {
        // A delivery may be counted before the write that published it.
        (self.gate.sent() * self.consumers.len() as u64).saturating_sub(self.delivered())
    }

    fn unconfirmed(&self) -> u64 {
        self.confirms
            .map_or(0, |index| self.gate.sent().saturating_sub(self.gate.reached(index)))
    }

    fn delivered(&self) -> u64 {
        self.consumers.clone().map(|index| self.gate.reached(index)).sum()
    }

    fn sample(&self) -> Sample {
        Sample {
            at: Instant::now(),
            delivered: self.delivered(),
            broker: self.options.broker.cpu(),
            this: Process::this().cpu(),
        }
    }
}

struct Sample {
    at: Instant,
    delivered: u64,
    broker: f64,
    this: f64,
}

/// Of the last minute: other programs on this machine make every figure larger.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("the kernel says");
    text.split(' ').next().unwrap_or_default().to_owned()
}
