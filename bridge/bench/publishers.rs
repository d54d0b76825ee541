//! A thread that publishes on some connections and reads what the broker says of it.

use std::io::ErrorKind;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};

use super::latency::Latencies;
use super::protocol::{Answers, Told};
use super::shared::{NAP, Shared, lock};
use super::tally::Seen;
use super::template::{Batch, Piece};
use super::wire::{Fault, Scratch, Wire};

/// How long a publisher with nothing to do waits before it looks again by itself.
const IDLE_TIME: Duration = Duration::from_millis(20);

/// How long it sleeps while it waits for the time of the next message: a poll waits for whole milliseconds.
const PACE_TIME: Duration = Duration::from_micros(100);

/// Answers in fewer bytes than that are little: more will come soon.
const FEW_ANSWERS: usize = 1024;

/// With fewer messages open, each answer is waited for.
pub const NAP_WINDOW: u64 = 50;

/// Messages whose answers are still open lie no further apart than so many windows.
const SPREAD: u64 = 8;

/// What all publishers do alike.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Open at most; 0: answers are not waited for.
    pub window: u64,
    /// Messages a second of all publishers; 0: as fast as it goes.
    pub rate: f64,
    pub publishers: u32,
    /// When the first message is due.
    pub begin_us: u64,
}

impl Plan {
    /// When a message should be sent.
    fn due_us(&self, publisher: u16, number: u64) -> u64 {
        let place = number as f64 * f64::from(self.publishers) + f64::from(publisher);
        self.begin_us + (place * 1e6 / self.rate) as u64
    }
}

/// One connection that publishes.
pub struct Publisher {
    index: u16,
    wire: Wire,
    answers: Box<dyn Answers>,
    messages: u64,
    sent: u64,
    open: Open,
    readable: bool,
    done: bool,
}

/// Messages that are not answered.
struct Open {
    answered: Seen,
    count: u64,
    rejected: u64,
    /// When each was sent, by its number modulo the length.
    sent_us: Vec<u64>,
    why: Option<String>,
}

impl Publisher {
    pub fn new(index: u16, messages: u64, wire: Wire, answers: Box<dyn Answers>, plan: &Plan) -> Self {
        let spread = if plan.window == 0 {
            0
        } else {
            (plan.window * SPREAD).next_power_of_two()
        };
        Self {
            index,
            wire,
            answers,
            messages,
            sent: 0,
            open: Open {
                answered: Seen::default(),
                count: 0,
                rejected: 0,
                sent_us: vec![0; spread as usize],
                why: None,
            },
            readable: true,
            done: false,
        }
    }

    /// How many may be sent now.
    fn room(&self, plan: &Plan, shared: &Shared, now_us: u64) -> u64 {
        let mut room = (self.messages - self.sent).min(shared.room());
        if plan.window > 0 {
            let spread = self.open.answered.below() + self.open.sent_us.len() as u64;
            let answered = self.open.count;
            room = room
                .min((answered + plan.window).saturating_sub(self.sent))
                .min(spread.saturating_sub(self.sent));
        }
        if plan.rate > 0.0 && room > 0 {
            // Few are due at once, unless the load is late: then it sends what has gathered.
            let due = (self.sent..self.sent + room.min(MOST_DUE)).take_while(|n| plan.due_us(self.index, *n) <= now_us);
            room = due.count() as u64;
        }
        room
    }

    /// One write, if there is room. Says whether something was sent.
    fn send(&mut self, plan: &Plan, shared: &Shared, batch: &mut Batch) -> Result<bool, Fault> {
        if self.done {
            return Ok(false);
        }
        self.wire.flush()?;
        if !self.wire.is_flushed() || shared.is_stopped() {
            return Ok(false);
        }
        let now_us = shared.now_us();
        let count = self.room(plan, shared, now_us).min(batch.capacity());
        if count == 0 {
            return Ok(false);
        }
        let (index, times) = (self.index, &mut self.open.sent_us);
        let mask = (times.len() as u64).wrapping_sub(1);
        let piece = Piece {
            publisher: index,
            first: self.sent,
            count,
        };
        let bytes = batch.bytes(piece, |number| {
            let sent_us = if plan.rate > 0.0 {
                plan.due_us(index, number)
            } else {
                now_us
            };
            if !times.is_empty() {
                times[(number & mask) as usize] = sent_us;
            }
            sent_us
        });
        self.sent += count;
        shared.published.fetch_add(count, SeqCst);
        shared.moved(now_us);
        self.wire.write(bytes)?;
        Ok(true)
    }

    fn read(&mut self, shared: &Shared, scratch: &mut Scratch, latencies: &mut Latencies) -> Result<usize, Fault> {
        let before = (self.open.count, self.open.rejected);
        let mut out = Vec::new();
        let measured = shared.measured.load(SeqCst);
        let brought = self.wire.read(scratch, |input| {
            let mut told = Teller {
                open: &mut self.open,
                latencies: measured.then_some(latencies),
                now_us: shared.now_us(),
                shared,
            };
            self.answers.read(input, &mut told, &mut out)
        })?;
        self.readable = brought.more;
        let rejected = self.open.rejected - before.1;
        if self.open.count > before.0 {
            shared.moved(shared.now_us());
            shared
                .confirmed
                .fetch_add(self.open.count - before.0 - rejected, SeqCst);
            if rejected > 0 {
                shared.rejected.fetch_add(rejected, SeqCst);
            }
        }
        if let Some(why) = self.open.why.take() {
            shared.notice(&format!("the broker does not take a message: {why}"));
        }
        if !out.is_empty() {
            self.wire.write(&out)?;
        }
        Ok(brought.bytes)
    }

    /// Whether all was sent and answered.
    fn is_done(&self, plan: &Plan, shared: &Shared) -> bool {
        let sent = self.sent == self.messages || shared.is_stopped();
        sent && self.wire.is_flushed() && (plan.window == 0 || self.open.count == self.sent)
    }
}

/// More are never due at once.
const MOST_DUE: u64 = 4096;

struct Teller<'a> {
    open: &'a mut Open,
    latencies: Option<&'a mut Latencies>,
    now_us: u64,
    shared: &'a Shared,
}

impl Told for Teller<'_> {
    fn first_open(&self) -> u64 {
        self.open.answered.below()
    }

    fn confirm(&mut self, number: u64) {
        if !self.open.answered.insert(number) {
            return;
        }
        self.open.count += 1;
        let times = &self.open.sent_us;
        if let Some(latencies) = &mut self.latencies
            && !times.is_empty()
        {
            let sent_us = times[number as usize & (times.len() - 1)];
            latencies.add(self.now_us.saturating_sub(sent_us), 1);
        }
    }

    fn reject(&mut self, number: u64, why: &str) {
        if self.open.answered.insert(number) {
            self.open.count += 1;
            self.open.rejected += 1;
            self.open.why.get_or_insert_with(|| why.to_owned());
        }
    }

    fn notice(&mut self, words: &str) {
        self.shared.notice(words);
    }
}

/// Publishes until all is sent and answered, or the run ends.
///
/// # Errors
/// [`Fault`] of any of its connections.
pub fn run(
    mut publishers: Vec<Publisher>,
    mut batch: Batch,
    plan: Plan,
    goodbye: &[u8],
    shared: &Shared,
) -> Result<(), Fault> {
    let mut poll = Poll::new()?;
    let waker_token = Token(publishers.len());
    shared.add_waker(Waker::new(poll.registry(), waker_token)?);
    for (index, publisher) in publishers.iter_mut().enumerate() {
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut publisher.wire.stream, Token(index), interest)?;
    }
    let mut events = Events::with_capacity(1024);
    let mut scratch = Scratch::new();
    let mut latencies = Latencies::default();
    let mut publishing = true;
    let result = loop {
        if shared.is_ended() {
            break Ok(());
        }
        match turn(&mut publishers, &mut batch, &plan, shared, &mut scratch, &mut latencies) {
            Ok(Turn::Done) => {
                if publishing {
                    publishing = false;
                    shared.publisher_done();
                }
                // Not before the last message is where it belongs: some brokers forget with its publisher.
                wait(&mut poll, &mut events, IDLE_TIME)?;
            }
            Ok(Turn::Moved) => wait(&mut poll, &mut events, Duration::ZERO)?,
            Ok(Turn::Little) => {
                // So that answers gather.
                thread::sleep(NAP);
                wait(&mut poll, &mut events, Duration::ZERO)?;
            }
            Ok(Turn::Idle) if plan.rate > 0.0 && !shared.is_stopped() => {
                // The next message is due by the clock.
                thread::sleep(PACE_TIME);
                wait(&mut poll, &mut events, Duration::ZERO)?;
            }
            Ok(Turn::Idle) => {
                let now = shared.room() == 0 && shared.want_room();
                wait(&mut poll, &mut events, if now { Duration::ZERO } else { IDLE_TIME })?;
            }
            Err(fault) => break Err(fault),
        }
        for event in &events {
            if let Some(publisher) = publishers.get_mut(event.token().0) {
                publisher.readable |= event.is_readable() || event.is_read_closed();
            }
        }
    };
    lock(&shared.confirm_latencies).merge(&latencies);
    for publisher in &mut publishers {
        let _ = publisher.wire.write(goodbye);
    }
    result
}

enum Turn {
    /// All is sent and answered.
    Done,
    /// There is more to do.
    Moved,
    /// A few answers came, and nothing can be sent.
    Little,
    /// Nothing happened.
    Idle,
}

fn turn(
    publishers: &mut [Publisher],
    batch: &mut Batch,
    plan: &Plan,
    shared: &Shared,
    scratch: &mut Scratch,
    latencies: &mut Latencies,
) -> Result<Turn, Fault> {
    let (mut bytes, mut sent, mut done) = (0, false, true);
    for publisher in publishers {
        if publisher.readable {
            bytes += publisher.read(shared, scratch, latencies)?;
        }
        match publisher.send(plan, shared, batch) {
            Ok(progress) => sent |= progress,
            // The reason may wait to be read.
            Err(fault) => {
                publisher.read(shared, scratch, latencies)?;
                return Err(fault);
            }
        }
        publisher.done = publisher.done || publisher.is_done(plan, shared);
        done &= publisher.done;
    }
    Ok(if done {
        Turn::Done
    } else if sent {
        Turn::Moved
    } else if bytes == 0 {
        Turn::Idle
    } else if bytes < FEW_ANSWERS && plan.window >= NAP_WINDOW && plan.rate == 0.0 {
        Turn::Little
    } else {
        Turn::Moved
    })
}

/// Waits for events. An interrupted wait has brought none.
pub fn wait(poll: &mut Poll, events: &mut Events, time: Duration) -> Result<(), Fault> {
    match poll.poll(events, Some(time)) {
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(Fault::System(error)),
        _ => Ok(()),
    }
}
