//! A thread that reads some consumers' connections, and counts.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::latency::Latencies;
use super::protocol::{Consume, Counts, Sink};
use super::publishers::wait;
use super::shared::{NAP, Shared, lock};
use super::tally::{Order, Streams, Tally};
use super::wire::{Brought, Fault, Scratch, Wire};

/// How long a thread with nothing to read waits before it looks whether the run has ended.
const IDLE_TIME: Duration = Duration::from_millis(20);

/// A read of deliveries that brought less is followed by a nap.
const FEW_DELIVERIES: usize = 8 * 1024;

/// The nap grows with the number of consumers, up to this many.
const NAP_CONSUMERS_MAX: u32 = 50;

/// With more, the slowest consumer is looked for only when somebody waits for it.
const FLOOR_ALWAYS_MAX: usize = 1000;

/// One connection that consumes.
pub struct Consumer {
    wire: Wire,
    consume: Box<dyn Consume>,
    streams: Streams,
    first_queue: u32,
    tally: Arc<Mutex<Tally>>,
    order: Order,
    /// Different messages since the run began.
    unique: u64,
    readable: bool,
}

impl Consumer {
    pub fn new(
        wire: Wire,
        consume: Box<dyn Consume>,
        streams: Streams,
        first_queue: u32,
        tally: Arc<Mutex<Tally>>,
    ) -> Self {
        Self {
            wire,
            consume,
            streams,
            first_queue,
            tally,
            order: Order::default(),
            unique: 0,
            readable: true,
        }
    }
}

/// What a thread of consumers is told.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which thread it is.
    pub thread: usize,
    pub run: u16,
    /// Whether the time from publish to delivery means something.
    pub latencies: bool,
    /// Whether it may nap after small reads.
    pub naps: bool,
}

struct Reader<'a> {
    plan: Plan,
    shared: &'a Shared,
    scratch: Scratch,
    latencies: Latencies,
    out: Vec<u8>,
}

impl Reader<'_> {
    fn read(&mut self, consumer: &mut Consumer, first: bool) -> Result<usize, Fault> {
        let shared = self.shared;
        let now_us = shared.now_us();
        let measured = self.plan.latencies && shared.measured.load(SeqCst);
        let mut counts = Counts::default();
        self.out.clear();
        let take = |input: &[u8]| {
            let mut sink = Sink {
                run: self.plan.run,
                streams: consumer.streams,
                first_queue: consumer.first_queue,
                tally: lock(&consumer.tally),
                order: &mut consumer.order,
                latencies: measured.then_some(&mut self.latencies),
                now_us: if first { now_us } else { shared.now_us() },
                counts,
            };
            let taken = consumer.consume.read(input, &mut sink, &mut self.out);
            counts = sink.counts;
            taken
        };
        let result = if first {
            consumer
                .wire
                .take_first(take)
                .map(|()| Brought { bytes: 0, more: true })
        } else {
            consumer.wire.read(&mut self.scratch, take)
        };
        // What came before a connection ended counts.
        if counts.delivered > 0 {
            let unique = counts.delivered - counts.duplicated - counts.altered;
            consumer.unique += unique;
            shared.delivered.fetch_add(counts.delivered, SeqCst);
            shared.unique.fetch_add(unique, SeqCst);
            shared.moved(shared.now_us());
        }
        for (total, count) in [
            (&shared.duplicated, counts.duplicated),
            (&shared.altered, counts.altered),
            (&shared.foreign, counts.foreign),
            (&shared.out_of_order, std::mem::take(&mut consumer.order.wrong)),
        ] {
            if count > 0 {
                total.fetch_add(count, SeqCst);
            }
        }
        let brought = result?;
        consumer.readable = brought.more;
        if self.out.is_empty() {
            consumer.wire.flush()?;
        } else {
            consumer.wire.write(&self.out)?;
        }
        Ok(brought.bytes)
    }
}

/// Reads until the run ends.
///
/// # Errors
/// [`Fault`] of any of its connections.
pub fn run(mut consumers: Vec<Consumer>, plan: Plan, goodbye: &[u8], shared: &Shared) -> Result<(), Fault> {
    let mut poll = Poll::new()?;
    let mut reader = Reader {
        plan,
        shared,
        scratch: Scratch::new(),
        latencies: Latencies::default(),
        out: Vec::new(),
    };
    for (index, consumer) in consumers.iter_mut().enumerate() {
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut consumer.wire.stream, Token(index), interest)?;
        let mut out = Vec::new();
        consumer.consume.begin(&mut out);
        consumer.wire.write(&out)?;
    }
    let nap = NAP * (consumers.len() as u32).min(NAP_CONSUMERS_MAX);
    let mut events = Events::with_capacity(4096);
    let mut ready: Vec<usize> = (0..consumers.len()).collect();
    let mut unfinished = Vec::new();
    let mut is_first = true;
    let result = 'run: loop {
        let mut bytes = 0;
        let readers = ready.len();
        for index in ready.drain(..) {
            let consumer = &mut consumers[index];
            let first = is_first && consumer.wire.has_input();
            match reader.read(consumer, first) {
                Ok(count) => bytes += count,
                Err(fault) => break 'run Err(fault),
            }
            if consumer.readable {
                unfinished.push(index);
            }
        }
        is_first = false;
        std::mem::swap(&mut ready, &mut unfinished);
        if shared.has_floors() && (consumers.len() <= FLOOR_ALWAYS_MAX || bytes == 0) {
            let slowest = consumers.iter().map(|consumer| consumer.unique).min();
            shared.set_floor(plan.thread, slowest.unwrap_or(u64::MAX));
        }
        shared.make_room();
        if shared.is_ended() {
            break Ok(());
        }
        if plan.naps && bytes > 0 && ready.is_empty() && bytes / readers < FEW_DELIVERIES {
            // So that deliveries gather.
            thread::sleep(nap);
        }
        let time = if ready.is_empty() { IDLE_TIME } else { Duration::ZERO };
        wait(&mut poll, &mut events, time)?;
        for event in &events {
            let index = event.token().0;
            let consumer = &mut consumers[index];
            if event.is_writable() {
                consumer.wire.flush()?;
            }
            if (event.is_readable() || event.is_read_closed()) && !consumer.readable {
                consumer.readable = true;
                ready.push(index);
            }
        }
    };
    lock(&shared.latencies).merge(&reader.latencies);
    for consumer in &mut consumers {
        let mut out = Vec::new();
        consumer.consume.finish(&mut out);
        out.extend_from_slice(goodbye);
        let _ = consumer.wire.write(&out);
    }
    result
}
