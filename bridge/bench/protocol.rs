//! What the load has to know of a protocol: how to connect, what a publish looks like, what comes back.

use std::sync::MutexGuard;

use super::body::Stamp;
use super::latency::Latencies;
use super::tally::{Order, Streams, Tally};
use super::template::Template;
use super::wire::{Fault, Talk};

/// A protocol and what this run wants of it.
pub trait Protocol: Sync {
    /// Makes what the run needs in the broker.
    ///
    /// # Errors
    /// [`Fault`]; what was made is left to [`clean_up`](Self::clean_up).
    fn prepare(&mut self) -> Result<(), Fault>;

    /// One publish.
    fn template(&self) -> Template;

    /// Connects a publisher.
    ///
    /// # Errors
    /// [`Fault`].
    fn publisher(&self, index: u32) -> Result<(Talk, Box<dyn Answers>), Fault>;

    /// Connects a consumer.
    ///
    /// # Errors
    /// [`Fault`].
    fn consumer(&self, index: u32) -> Result<(Talk, Box<dyn Consume>), Fault>;

    /// Connects somebody who then does nothing.
    ///
    /// # Errors
    /// [`Fault`].
    fn idler(&self, index: u32) -> Result<Talk, Fault>;

    /// What ends a connection in good order.
    fn goodbye(&self) -> Vec<u8>;

    /// Removes what the run made in the broker. Says in words what it could not remove.
    ///
    /// # Errors
    /// [`Fault`].
    fn clean_up(&self) -> Result<Option<String>, Fault>;
}

/// What a broker tells a publisher.
pub trait Answers: Send {
    /// Reads whole frames at the front of `input`, and gives how many bytes they were. What has to be answered is
    /// appended to `out`.
    ///
    /// # Errors
    /// [`Fault`] when the broker ends it.
    fn read(&mut self, input: &[u8], told: &mut dyn Told, out: &mut Vec<u8>) -> Result<usize, Fault>;
}

/// What became of a publisher's messages, by their numbers from 0.
pub trait Told {
    /// The first message that is not answered.
    fn first_open(&self) -> u64;
    /// The broker has taken it.
    fn confirm(&mut self, number: u64);
    /// The broker has not taken it.
    fn reject(&mut self, number: u64, why: &str);
    /// Something the user should know.
    fn notice(&mut self, words: &str);
}

/// What a broker tells a consumer.
pub trait Consume: Send {
    /// What makes deliveries begin.
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    /// Reads whole frames at the front of `input`, and gives how many bytes they were. Acknowledgements and further
    /// pulls are appended to `out`.
    ///
    /// # Errors
    /// [`Fault`] when the broker ends it.
    fn read(&mut self, input: &[u8], sink: &mut Sink<'_>, out: &mut Vec<u8>) -> Result<usize, Fault>;

    /// Acknowledges what is not yet.
    fn finish(&mut self, _out: &mut Vec<u8>) {}
}

/// Where a consumer's messages are counted while it is read.
pub struct Sink<'a> {
    pub run: u16,
    pub streams: Streams,
    /// The consumer's first queue.
    pub first_queue: u32,
    pub tally: MutexGuard<'a, Tally>,
    pub order: &'a mut Order,
    pub latencies: Option<&'a mut Latencies>,
    /// Microseconds since the run began.
    pub now_us: u64,
    pub counts: Counts,
}

/// What one read brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages of any kind.
    pub delivered: u64,
    /// Those that came before.
    pub duplicated: u64,
    /// With a wrong checksum, or in a queue they were not sent to.
    pub altered: u64,
    /// Of another run.
    pub foreign: u64,
}

impl Sink<'_> {
    /// A message came.
    pub fn message(&mut self, body: &[u8]) {
        self.stamp(Stamp::read(body));
    }

    /// A message came whose body says this.
    pub fn stamp(&mut self, stamp: Option<Stamp>) {
        let Some(stamp) = stamp else {
            self.counts.delivered += 1;
            self.counts.altered += 1;
            return;
        };
        if stamp.run != self.run {
            self.counts.foreign += 1;
            return;
        }
        self.counts.delivered += 1;
        let mine = stamp.queue % self.streams.stride == self.first_queue % self.streams.stride;
        let Some(stream) = self.streams.of(&stamp).filter(|_| mine) else {
            self.counts.altered += 1;
            return;
        };
        if self.tally.count(stream, stamp.sequence) {
            self.order.see(stream, stamp.sequence);
            if let Some(latencies) = &mut self.latencies {
                latencies.add(self.now_us.saturating_sub(stamp.sent_us), 1);
            }
        } else {
            self.counts.duplicated += 1;
        }
    }
}
