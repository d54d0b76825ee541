//! What every protocol session is: a sans-I/O state machine of one connection.
//!
//! Bytes, events and the time come in; bytes for the peer and orders to core go out through an
//! [`Outbox`]. No socket, no task, no clock: a session is tested by a script. The bridge's driver owns
//! the socket and the [`Link`](rocketbridge_core::boundary::Link) and carries out the orders.

mod outbox;
mod read;
mod unacked;

pub use outbox::{Order, Outbox};
pub use read::{Cursor, Truncated};
pub use unacked::Unacked;

use bytes::BytesMut;
use rocketbridge_core::boundary::Event;
use rocketbridge_core::time::{Millis, Now};

/// One connection's state machine.
///
/// After each call the driver carries out the outbox's orders in their order and writes its bytes.
pub trait Session: Send {
    /// What the peer sent. Takes whole frames from the front of `input`; what stays comes again with
    /// more behind it. A session that has refused its peer takes everything.
    fn handle_bytes(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox);

    /// What core says. Drains `events`.
    fn handle_events(&mut self, now: Now, events: &mut Vec<Event>, out: &mut Outbox);

    /// [`next_timeout`](Self::next_timeout) has come.
    fn handle_timeout(&mut self, now: Now, out: &mut Outbox);

    /// The outbox fell below its low mark after it was above the high one: the peer reads again.
    fn handle_drained(&mut self, _now: Now, _out: &mut Outbox) {}

    /// The peer closed its side.
    fn handle_eof(&mut self, now: Now, out: &mut Outbox);

    /// The broker is going down: say goodbye in the protocol's way.
    fn handle_shutdown(&mut self, now: Now, out: &mut Outbox);

    /// When [`handle_timeout`](Self::handle_timeout) is due, on the monotonic clock.
    fn next_timeout(&self) -> Option<Millis>;

    /// Whether to read from the socket. The driver also stops reading while the outbox holds orders that
    /// core did not take yet, unless [`reads_while_blocked`](Self::reads_while_blocked), and while more
    /// than [`Outbox::HIGH_MARK`] bytes wait for the peer.
    fn wants_read(&self) -> bool {
        true
    }

    /// Whether to hand over events. The driver also keeps them back while more than
    /// [`Outbox::HIGH_MARK`] bytes wait for the peer.
    fn wants_events(&self) -> bool {
        true
    }

    /// Whether reading goes on while core refuses publishes: for protocols whose other requests share
    /// the connection and that answer a refusal themselves.
    fn reads_while_blocked(&self) -> bool {
        false
    }
}
