//! One connection: the loop between a byte stream, its session and its link.
//!
//! A [`Connection`] is one task. Its turn is: read at most 64 KiB and hand it to the session, hand over at
//! most 256 events, say when a timeout has come, write. After each call of the session its orders are
//! carried out on the link, in their order. Turns follow each other until nothing is left to do or
//! the share of the worker thread is used up; then the task waits, or goes to the back of the run queue.
//!
//! The future is written by hand so that an idle connection costs its fields and nothing else; buffers
//! are lent by the worker thread (`scratch`). It knows no protocol ([`Session`]) and no broker
//! ([`Link`]).
//!
//! ```text
//!          close(), EOF, error                 flushed, our side shut
//!   Open ----------------------> Closing ---------------------------> Lingering
//!     |                             | 5 s, or the peer is gone            | EOF, or 2 s
//!     +------- told to drop --------+---------------------------------> Closed
//! ```

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, BytesMut};
use rocketbridge_core::boundary::{Admission, Event, Link};
use rocketbridge_core::inbox::{Inbox, Taken};
use rocketbridge_core::request::Request;
use rocketbridge_core::time::{Clock, Millis, Now};
use rocketbridge_session::{Order, Outbox, Session};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Sleep;
use tracing::debug;

use crate::clock::SystemClock;
use crate::connections::{Call, Ticket};
use crate::scratch::{self, READ_MAX};

/// Most events handed over in one turn.
const EVENTS_MAX: usize = 256;

/// Turns with little in them before the task yields.
const TURNS_MAX: u32 = 16;

/// Pieces of one vectored write. Sessions copy short bodies, so more are rare.
const PIECES_MAX: usize = 64;

/// Most unread input that is copied back in front of the next read; more stays where it is and is
/// appended to, so that a large frame in small pieces costs linear time.
const CARRY_MAX: usize = 16 * 1024;

/// How long the last bytes may take to reach a peer that reads slowly.
const FLUSH_TIME: Millis = Millis::from_secs(5);

/// How long the peer may take to close its side after we closed ours. Closing at once would answer
/// what it still sends with a reset, and a reset destroys our last bytes on their way to the reader.
const LINGER_TIME: Millis = Millis::from_secs(2);

/// After this long without a turn, memory kept for the next batch is freed.
const QUIET_TIME: Millis = Millis::from_secs(1);

/// Most bytes read of a peer that nothing can be written to any more: what a socket holds.
const LAST_READ_MAX: usize = 8 << 20;

/// How often publishes are tried again while `Event::Writable` cannot be seen behind other events.
const RETRY_TIME: Millis = Millis(100);

/// Where a connection's events come from: its inbox.
pub trait Events: Send + Unpin + 'static {
    /// See [`Inbox::take`].
    fn take(&self, max: usize, events: &mut Vec<Event>, waker: &Waker) -> Taken;

    /// See [`Inbox::hush`].
    fn hush(&self) {}

    /// See [`Inbox::is_full`].
    fn is_full(&self) -> bool {
        false
    }

    /// See [`Inbox::rest`].
    fn rest(&self) {}
}

impl Events for Inbox {
    fn take(&self, max: usize, events: &mut Vec<Event>, waker: &Waker) -> Taken {
        Inbox::take(self, max, events, waker)
    }

    fn hush(&self) {
        Inbox::hush(self);
    }

    fn is_full(&self) -> bool {
        Inbox::is_full(self)
    }

    fn rest(&self) {
        Inbox::rest(self);
    }
}

/// A connection as a future that ends with it. Dropping it drops the link and closes the stream.
pub struct Connection<S, L, E = Inbox> {
    // The link goes first and the ticket last: who waits for the last ticket finds no link any more.
    link: Option<L>,
    stream: S,
    events: E,
    session: Box<dyn Session>,
    out: Outbox,
    /// What the session has not taken yet; no memory when it is empty and the connection is idle.
    input: BytesMut,
    clock: SystemClock,
    timer: Option<Timer>,
    phase: Phase,
    last_active: Millis,
    /// When core last refused publishes that are still at the front of the orders.
    refused_at: Option<Millis>,
    /// The peer has not closed its side.
    readable: bool,
    /// Our side is not closed.
    writable: bool,
    /// Bytes were written to the stream and not flushed.
    unflushed: bool,
    /// Reading was stopped by the session, by core or by the peer's not reading.
    paused: bool,
    /// More than the high mark waits for the peer, and still more than the low mark.
    choked: bool,
    /// The session was told that the broker is going down.
    told: bool,
    /// The ticket knows this task's waker.
    registered: bool,
    /// Memory kept for the next batch was freed.
    quiet: bool,
    ticket: Ticket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The session talks with its peer.
    Open,
    /// The session said its last word: orders first, then the link ends, then the bytes go out. What
    /// the peer still sends is thrown away.
    Closing { until: Millis },
    /// Our side is shut; the peer's rest is thrown away until it closes its own.
    Lingering { until: Millis },
    /// All done.
    Closed,
}

/// The runtime's timer, armed for the earliest time it was needed for. A deadline that moves away, as a
/// keep alive does with every packet, does not touch it: it fires once in vain and is armed anew.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    at: Millis,
}

/// What one poll has used of its share.
#[derive(Default)]
struct Spent {
    bytes: usize,
    events: usize,
    turns: u32,
}

impl Spent {
    fn is_over(&self) -> bool {
        // Whoever sends that much at once has more to send.
        self.bytes >= READ_MAX / 2 || self.events >= EVENTS_MAX || self.turns >= TURNS_MAX
    }
}

impl<S, L, E> Connection<S, L, E>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    L: Link + Unpin,
    E: Events,
{
    /// A connection just opened. `events` is the inbox that `link` was opened with.
    pub fn new(stream: S, link: L, events: E, session: Box<dyn Session>, clock: SystemClock, ticket: Ticket) -> Self {
        Self {
            link: Some(link),
            stream,
            events,
            session,
            out: Outbox::new(),
            input: BytesMut::new(),
            clock,
            timer: None,
            phase: Phase::Open,
            last_active: Millis(0),
            refused_at: None,
            readable: true,
            writable: true,
            unflushed: false,
            paused: false,
            choked: false,
            told: false,
            registered: false,
            quiet: true,
            ticket,
        }
    }

    /// One turn of an open connection. Says whether anything happened; when nothing did, the task's
    /// waker is registered with everything that may happen next.
    fn turn(&mut self, now: Now, cx: &mut Context<'_>, spent: &mut Spent) -> bool {
        // What this turn itself brings about it sees itself. A task that wakes itself is run once more, and the runtime
        // wakes another thread for it.
        self.events.hush();
        let mut progress = false;
        match self.ticket.call() {
            Call::SayGoodbye if !self.told => {
                self.told = true;
                self.session.handle_shutdown(now, &mut self.out);
                self.submit(now);
                progress = true;
            }
            Call::GiveUp => {
                debug!(kept = self.input.len(), "closed: limits.unfinished_max is reached");
                self.end(now);
                return true;
            }
            _ => {}
        }
        if self.may_read() {
            progress |= self.read(now, cx, spent);
        } else {
            self.paused = true;
        }
        if self.phase != Phase::Open {
            return true;
        }
        if self.may_take_events() {
            progress |= self.take_events(now, cx, spent);
        } else if self.retry_at().is_some_and(|at| at <= now.mono) {
            self.refused_at = None;
            self.submit(now);
        }
        if self.session.next_timeout().is_some_and(|at| at <= now.mono) {
            self.session.handle_timeout(now, &mut self.out);
            self.submit(now);
            progress = true;
        }
        if self.out.is_closing() {
            self.begin_close(now);
            return true;
        }
        progress |= self.write(now, cx);
        progress | self.watch_marks(now)
    }

    /// One turn of a connection that is ending.
    fn wind_down(&mut self, now: Now, until: Millis, cx: &mut Context<'_>, spent: &mut Spent) -> bool {
        if now.mono >= until {
            if self.out.has_orders() {
                debug!("connection ended before core took all it had published");
            }
            self.phase = Phase::Closed;
            return true;
        }
        let mut progress = false;
        if self.out.has_orders() {
            progress |= self.take_events(now, cx, spent);
            self.submit(now);
        }
        if !self.out.has_orders() {
            // Before the last bytes go out: who reads close-ok finds its leases returned and its
            // exclusive queues gone.
            self.link = None;
        }
        if self.readable {
            progress |= self.discard(cx, spent);
        }
        if self.link.is_some() {
            return progress;
        }
        if self.writable {
            progress |= self.write(now, cx);
        }
        if self.writable && self.out.queued_bytes() == 0 && !self.unflushed {
            match Pin::new(&mut self.stream).poll_shutdown(cx) {
                Poll::Pending => return progress,
                Poll::Ready(result) => {
                    self.writable = false;
                    self.readable &= result.is_ok();
                    self.phase = Phase::Lingering {
                        until: now.mono + LINGER_TIME,
                    };
                    progress = true;
                }
            }
        }
        if !self.writable && !self.readable {
            self.phase = Phase::Closed;
            return true;
        }
        progress
    }

    fn may_read(&self) -> bool {
        self.readable
            && !self.choked
            && self.session.wants_read()
            && (!self.out.has_orders() || self.session.reads_while_blocked())
    }

    fn may_take_events(&self) -> bool {
        self.phase == Phase::Open && !self.choked && self.session.wants_events()
    }

    /// When to try refused publishes again although `Event::Writable` was not seen.
    fn retry_at(&self) -> Option<Millis> {
        Some(self.refused_at? + RETRY_TIME)
    }

    fn read(&mut self, now: Now, cx: &mut Context<'_>, spent: &mut Spent) -> bool {
        if std::mem::take(&mut self.paused) && !self.input.is_empty() {
            // It may have stopped between two whole frames.
            self.handle_input(now);
            self.submit(now);
            return true;
        }
        let result = if self.input.len() <= CARRY_MAX {
            self.read_into_scratch(now, cx)
        } else {
            self.read_into_own(now, cx)
        };
        match result {
            Poll::Pending => false,
            Poll::Ready(Ok(count)) if count > 0 => {
                spent.bytes += count;
                self.submit(now);
                true
            }
            Poll::Ready(end) => {
                self.peer_ended(now, end.err());
                true
            }
        }
    }

    fn read_into_scratch(&mut self, now: Now, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = scratch::take_input();
        buffer.extend_from_slice(&self.input);
        let result = poll_read(&mut self.stream, &mut buffer, READ_MAX - self.input.len(), cx);
        if let Poll::Ready(Ok(1..)) = result {
            self.input.clear();
            self.session.handle_bytes(now, &mut buffer, &mut self.out);
            self.input.extend_from_slice(&buffer);
            if self.input.len() > CARRY_MAX {
                self.count_input();
            }
            self.note_pause();
        }
        scratch::give_input(buffer);
        result
    }

    fn read_into_own(&mut self, now: Now, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(READ_MAX);
        let result = poll_read(&mut self.stream, &mut self.input, READ_MAX, cx);
        if let Poll::Ready(Ok(1..)) = result {
            self.handle_input(now);
            if self.input.len() <= CARRY_MAX {
                // Not the whole large buffer for a small rest.
                self.input = BytesMut::from(&self.input[..]);
            }
        }
        result
    }

    fn handle_input(&mut self, now: Now) {
        let was_large = self.input.len() > CARRY_MAX;
        self.session.handle_bytes(now, &mut self.input, &mut self.out);
        if was_large {
            self.count_input();
        }
        self.note_pause();
    }

    /// Counts what is kept of an unfinished packet: the ticket knows it as long as it is more than [`CARRY_MAX`].
    fn count_input(&self) {
        let len = self.input.len();
        self.ticket.keep(if len > CARRY_MAX { len } else { 0 });
    }

    /// A session that stopped between two whole frames may go on with what is there before the next turn
    /// looks: by events of this one.
    fn note_pause(&mut self) {
        self.paused |= !self.session.wants_read();
    }

    /// Reads and throws away.
    fn discard(&mut self, cx: &mut Context<'_>, spent: &mut Spent) -> bool {
        let mut buffer = scratch::take_input();
        let result = poll_read(&mut self.stream, &mut buffer, READ_MAX, cx);
        scratch::give_input(buffer);
        match result {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => self.readable = false,
            Poll::Ready(Ok(count)) => spent.bytes += count,
            Poll::Ready(Err(_)) => self.peer_is_gone(),
        }
        true
    }

    fn take_events(&mut self, now: Now, cx: &mut Context<'_>, spent: &mut Spent) -> bool {
        let mut batch = scratch::take_events();
        let taken = self.events.take(EVENTS_MAX, &mut batch, cx.waker());
        if taken.resume
            && let Some(link) = &mut self.link
        {
            link.resume();
        }
        if !taken.empty {
            spent.events += batch.len();
            let count = batch.len();
            batch.retain(|event| !matches!(event, Event::Writable));
            if batch.len() < count {
                self.refused_at = None;
            }
            if self.phase == Phase::Open && !batch.is_empty() {
                self.session.handle_events(now, &mut batch, &mut self.out);
            }
            self.submit(now);
        }
        scratch::give_events(batch);
        !taken.empty
    }

    /// Carries out the session's orders, in their order, up to publishes that core refuses.
    fn submit(&mut self, now: Now) {
        let Some(link) = &mut self.link else { return };
        if self.out.has_orders() && self.events.is_full() {
            return;
        }
        while let Some(order) = self.out.next_order() {
            match order {
                Order::Publish(mut run) => {
                    if self.refused_at.is_none() && link.publish(&mut run) == Admission::Partial {
                        self.refused_at = Some(now.mono);
                    }
                    if !run.is_empty() && self.refused_at.is_some() {
                        self.out.put_back(run);
                        return;
                    }
                    self.refused_at = None;
                    self.out.recycle(Order::Publish(run));
                }
                Order::Settle(mut run) => {
                    link.settle(&mut run);
                    self.out.recycle(Order::Settle(run));
                }
                Order::Request(id, request) => {
                    if matches!(*request, Request::Commit(_)) && (self.refused_at.is_some() || link.is_busy()) {
                        self.refused_at.get_or_insert(now.mono);
                        self.out.put_back_request(id, request);
                        return;
                    }
                    link.request(id, *request);
                    if self.events.is_full() {
                        // Goes on when the session has taken some of the answers.
                        return;
                    }
                }
                Order::Cancel(id) => link.cancel(id),
            }
        }
        self.refused_at = None;
    }

    /// Writes what there is. Says whether to come again: the peer takes more, or it is gone.
    fn write(&mut self, now: Now, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while self.out.queued_bytes() > 0 {
            let result = poll_write(&mut self.stream, &self.out, cx);
            match result {
                Poll::Pending => return progress,
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.out.advance(count);
                    self.unflushed = true;
                    progress = true;
                }
                Poll::Ready(end) => {
                    self.write_failed(now, end.err(), cx);
                    return true;
                }
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => {
                    self.write_failed(now, Some(error), cx);
                    return true;
                }
            }
        }
        progress
    }

    fn write_failed(&mut self, now: Now, error: Option<io::Error>, cx: &mut Context<'_>) {
        let error = error.unwrap_or_else(|| io::ErrorKind::WriteZero.into());
        // What the peer sent before it went is in the socket still: the acks of a consumer that was behind.
        self.choked = false;
        let mut spent = Spent::default();
        while self.phase == Phase::Open && self.may_read() && spent.bytes < LAST_READ_MAX {
            if !self.read(now, cx, &mut spent) {
                break;
            }
        }
        if self.phase == Phase::Open {
            self.peer_ended(now, Some(error));
        } else {
            self.peer_is_gone();
        }
    }

    /// The peer closed its side, or the stream failed.
    fn peer_ended(&mut self, now: Now, error: Option<io::Error>) {
        self.readable = false;
        if let Some(error) = error {
            debug!(%error, "connection lost");
            self.peer_is_gone();
        }
        self.end(now);
    }

    /// Ends the session without a word of it.
    fn end(&mut self, now: Now) {
        self.session.handle_eof(now, &mut self.out);
        self.submit(now);
        self.begin_close(now);
    }

    fn peer_is_gone(&mut self) {
        self.readable = false;
        self.writable = false;
    }

    fn begin_close(&mut self, now: Now) {
        self.phase = Phase::Closing {
            until: now.mono + FLUSH_TIME,
        };
        self.input = BytesMut::new();
        self.ticket.keep(0);
    }

    /// Notices that the peer stopped reading, or reads again.
    fn watch_marks(&mut self, now: Now) -> bool {
        if self.phase != Phase::Open {
            return true;
        }
        let queued = self.out.queued_bytes();
        if self.choked && queued < Outbox::LOW_MARK {
            self.choked = false;
            self.session.handle_drained(now, &mut self.out);
            self.submit(now);
            return true;
        }
        self.choked |= queued > Outbox::HIGH_MARK;
        false
    }

    /// When the task must run although nothing happens.
    fn deadline(&self) -> Option<Millis> {
        let own = match self.phase {
            Phase::Closing { until } | Phase::Lingering { until } => return Some(until),
            Phase::Closed => return None,
            Phase::Open if self.quiet => None,
            Phase::Open => Some(self.last_active + QUIET_TIME),
        };
        let retry = if self.may_take_events() { None } else { self.retry_at() };
        [own, retry, self.session.next_timeout()].into_iter().flatten().min()
    }

    fn arm(&mut self, cx: &mut Context<'_>) {
        let Some(at) = self.deadline() else {
            self.timer = None;
            return;
        };
        let instant = self.clock.instant(at);
        let timer = self.timer.get_or_insert_with(|| Timer {
            sleep: Box::pin(tokio::time::sleep_until(instant)),
            at,
        });
        if at < timer.at || timer.sleep.is_elapsed() {
            timer.sleep.as_mut().reset(instant);
            timer.at = at;
        }
        if timer.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    /// Lends the thread's output buffer.
    fn lend(&mut self) {
        if self.out.queued_bytes() == 0 {
            self.out.lend(scratch::take_output());
        }
    }

    /// Takes the output buffer back if all is sent.
    fn reclaim(&mut self, idle: bool) {
        if let Some(buffer) = self.out.reclaim(idle) {
            scratch::give_output(buffer);
        }
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }
}

impl<S, L, E> Future for Connection<S, L, E>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    L: Link + Unpin,
    E: Events,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.registered {
            this.ticket.register(cx.waker());
            this.registered = true;
        }
        if this.ticket.call() == Call::Drop {
            return Poll::Ready(());
        }
        this.lend();
        let mut spent = Spent::default();
        loop {
            let now = this.clock.now();
            let progress = match this.phase {
                Phase::Open => this.turn(now, cx, &mut spent),
                Phase::Closing { until } | Phase::Lingering { until } => this.wind_down(now, until, cx, &mut spent),
                Phase::Closed => {
                    debug!("closed");
                    this.reclaim(true);
                    return Poll::Ready(());
                }
            };
            spent.turns += 1;
            if !progress {
                let active = spent.turns > 1;
                if active {
                    this.last_active = now.mono;
                }
                this.quiet = !active && this.last_active + QUIET_TIME <= now.mono;
                this.reclaim(this.quiet);
                if this.quiet {
                    this.events.rest();
                }
                this.arm(cx);
                return Poll::Pending;
            }
            if spent.is_over() {
                this.last_active = now.mono;
                this.quiet = false;
                this.reclaim(false);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    max: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut limited = buffer.limit(max);
    pin!(stream.read_buf(&mut limited)).poll(cx)
}

fn poll_write<S: AsyncWrite + Unpin>(stream: &mut S, out: &Outbox, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
    let mut count = 0;
    out.pieces(|piece| {
        pieces[count] = IoSlice::new(piece);
        count += 1;
        count < PIECES_MAX
    });
    Pin::new(stream).poll_write_vectored(cx, &pieces[..count])
}

#[cfg(test)]
mod tests;
