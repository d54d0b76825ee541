//! What the threads of a run tell each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use mio::Waker;

use super::latency::Latencies;
use super::wire::Fault;

/// What all publishers and consumers of a run share. Its clock counts microseconds since the run began.
pub struct Shared {
    began: Instant,
    /// Publishers may be so far ahead of the slowest consumer; 0: any distance.
    ahead: u64,
    pub published: AtomicU64,
    pub confirmed: AtomicU64,
    pub rejected: AtomicU64,
    pub delivered: AtomicU64,
    /// Different messages, of all consumers together.
    pub unique: AtomicU64,
    pub duplicated: AtomicU64,
    pub altered: AtomicU64,
    pub foreign: AtomicU64,
    pub out_of_order: AtomicU64,
    /// Consumer threads that end have added theirs.
    pub latencies: Mutex<Latencies>,
    pub confirm_latencies: Mutex<Latencies>,
    /// Latencies are counted.
    pub measured: AtomicBool,
    /// Publishers publish nothing more.
    stopped: AtomicBool,
    /// Everybody goes home.
    ended: AtomicBool,
    /// Threads of publishers that are not done.
    pub publishing: AtomicU64,
    fault: Mutex<Option<Fault>>,
    notices: Mutex<Vec<String>>,
    last_us: AtomicU64,
    /// Of each thread of consumers, how many its slowest consumer has; with fan-out only.
    floors: Vec<AtomicU64>,
    /// What consumers must reach for publishers to be woken; 0 is nothing.
    wanted: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
    main: OnceLock<Thread>,
}

impl Shared {
    /// `floors` is the number of consumer threads when all consumers get everything, else 0.
    pub fn new(ahead: u64, floors: usize) -> Self {
        Self {
            began: Instant::now(),
            ahead,
            published: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            unique: AtomicU64::new(0),
            duplicated: AtomicU64::new(0),
            altered: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            out_of_order: AtomicU64::new(0),
            latencies: Mutex::default(),
            confirm_latencies: Mutex::default(),
            measured: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            publishing: AtomicU64::new(0),
            fault: Mutex::new(None),
            notices: Mutex::default(),
            last_us: AtomicU64::new(0),
            floors: (0..floors).map(|_| AtomicU64::new(0)).collect(),
            wanted: AtomicU64::new(0),
            wakers: Mutex::default(),
            main: OnceLock::new(),
        }
    }

    /// Microseconds since the run began.
    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Something went on at that time.
    pub fn moved(&self, now_us: u64) {
        self.last_us.fetch_max(now_us, SeqCst);
    }

    /// When something went on last.
    pub fn last_us(&self) -> u64 {
        self.last_us.load(SeqCst)
    }

    /// How many more may be published.
    pub fn room(&self) -> u64 {
        if self.ahead == 0 {
            return u64::MAX;
        }
        (self.reached() + self.ahead).saturating_sub(self.published.load(SeqCst))
    }

    /// How many messages have reached everybody they are for.
    fn reached(&self) -> u64 {
        let slowest = self.floors.iter().map(|floor| floor.load(SeqCst)).min();
        let rejected = self.rejected.load(SeqCst);
        rejected + slowest.unwrap_or_else(|| self.unique.load(SeqCst))
    }

    /// A publisher found no room: it wants to be woken when a tenth of it is free. Says whether it is already.
    pub fn want_room(&self) -> bool {
        let wanted = (self.published.load(SeqCst) + (self.ahead / 10).max(1)).saturating_sub(self.ahead);
        self.wanted.store(wanted.max(1), SeqCst);
        self.reached() >= wanted
    }

    /// The slowest consumer of a thread has so many.
    pub fn set_floor(&self, thread: usize, count: u64) {
        if let Some(floor) = self.floors.get(thread) {
            floor.store(count, SeqCst);
        }
    }

    /// Whether all consumers get everything.
    pub fn has_floors(&self) -> bool {
        !self.floors.is_empty()
    }

    /// Consumers have received: publishers that wait for that go on.
    pub fn make_room(&self) {
        let wanted = self.wanted.load(SeqCst);
        if wanted > 0 && self.reached() >= wanted && self.wanted.swap(0, SeqCst) > 0 {
            self.wake_publishers();
        }
    }

    /// A thread of publishers can be woken by this.
    pub fn add_waker(&self, waker: Waker) {
        lock(&self.wakers).push(waker);
    }

    fn wake_publishers(&self) {
        for waker in lock(&self.wakers).iter() {
            // One that cannot be woken looks by itself soon.
            let _ = waker.wake();
        }
    }

    /// Nothing more is published.
    pub fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.wake_publishers();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// Everybody ends.
    pub fn end(&self) {
        self.stop();
        self.ended.store(true, SeqCst);
        self.wake_publishers();
    }

    pub fn is_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// The run cannot go on. The first reason counts.
    pub fn fail(&self, fault: Fault) {
        if !self.is_ended() {
            lock(&self.fault).get_or_insert(fault);
            self.wake_main();
        }
    }

    pub fn take_fault(&self) -> Option<Fault> {
        lock(&self.fault).take()
    }

    /// A thread of publishers has sent everything, and everything is answered.
    pub fn publisher_done(&self) {
        self.publishing.fetch_sub(1, SeqCst);
        self.wake_main();
    }

    /// Something the user should know. Said once.
    pub fn notice(&self, words: &str) {
        let mut notices = lock(&self.notices);
        if !notices.iter().any(|known| known == words) {
            notices.push(words.to_owned());
            eprintln!("rocketbridge bench: {words}");
        }
    }

    /// What the user was told last.
    pub fn last_notice(&self) -> Option<String> {
        lock(&self.notices).last().cloned()
    }

    /// The thread that waits for the end.
    pub fn set_main(&self, thread: Thread) {
        let _ = self.main.set(thread);
    }

    /// The run may be over.
    pub fn wake_main(&self) {
        if let Some(main) = self.main.get() {
            main.unpark();
        }
    }
}

/// Threads that panicked have said so.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a reader naps when a read brought little; the kernel adds some 50 us. A broker that writes message by
/// message would otherwise wake the load for each, and what is measured were the load.
pub const NAP: Duration = Duration::from_micros(20);
