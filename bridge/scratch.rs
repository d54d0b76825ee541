//! Memory that a worker thread lends to the connection whose turn it is.
//!
//! A turn of the driver never waits in the middle, so one buffer of each kind per thread is enough, and
//! an idle connection owns none.

use std::cell::Cell;

use bytes::BytesMut;
use rocketbridge_core::boundary::Event;

/// Most bytes read in one turn, and the size of the input buffer.
pub const READ_MAX: usize = 64 * 1024;

/// What the output buffer holds without growing.
const WRITE_SIZE: usize = 64 * 1024;

/// An output buffer that grew beyond this is not kept.
const WRITE_KEEP_MAX: usize = 512 * 1024;

/// An event list that grew beyond this is not kept.
const EVENTS_KEEP_MAX: usize = 1024;

thread_local! {
    static INPUT: Cell<BytesMut> = Cell::default();
    static OUTPUT: Cell<BytesMut> = Cell::default();
    static EVENTS: Cell<Vec<Event>> = Cell::default();
}

/// An empty buffer with room for [`READ_MAX`] bytes.
///
/// The memory of the last turn comes back unless somebody still holds a slice of it.
pub fn take_input() -> BytesMut {
    let mut buffer = INPUT.take();
    buffer.reserve(READ_MAX);
    buffer
}

/// Gives the input buffer back for the next turn on this thread.
pub fn give_input(mut buffer: BytesMut) {
    buffer.clear();
    INPUT.set(buffer);
}

/// An empty buffer to append output to.
pub fn take_output() -> BytesMut {
    let mut buffer = OUTPUT.take();
    buffer.reserve(WRITE_SIZE);
    buffer
}

/// Gives an output buffer back, whose bytes are all sent.
pub fn give_output(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.capacity() <= WRITE_KEEP_MAX {
        OUTPUT.set(buffer);
    }
}

/// An empty list of events.
pub fn take_events() -> Vec<Event> {
    EVENTS.take()
}

/// Gives the list of events back.
pub fn give_events(mut events: Vec<Event>) {
    events.clear();
    if events.capacity() <= EVENTS_KEEP_MAX {
        EVENTS.set(events);
    }
}
