//! Durable changes to topology, offsets and holders: what a `Change` record holds (`FORMAT.md`, "Change").

mod decode;
mod encode;
mod policy;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::engine::dedup::{OpenKey, Scope};
use crate::engine::pop::PopPlace;
use crate::engine::progress::Entry;
use crate::engine::timers::Axis;
use crate::engine::transactions::Half;
use crate::policy::{Limit, Policy};
use crate::request::{Binding, Exchange, Queue, Retry, Will};
use crate::store::record::Position;
use crate::time::Millis;

/// Stands for no queue.
const NO_QUEUE: u32 = u32::MAX;

/// One durable change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Exchange(Exchange),
    ExchangeGone(Bytes),
    Queue {
        id: u32,
        queue: Queue,
    },
    QueueGone {
        id: u32,
    },
    /// With the number of the queue it leads to, if it leads to one: names are used again.
    Bound {
        queue: Option<u32>,
        binding: Binding,
    },
    Unbound {
        queue: Option<u32>,
        binding: Binding,
    },
    Topic {
        name: Bytes,
        queues: u32,
    },
    /// A group registered on a topic: from now on the topic's transient messages are kept for it.
    Group {
        group: Bytes,
        topic: Bytes,
    },
    Offset {
        group: Bytes,
        topic: Bytes,
        queue_id: u32,
        offset: u64,
    },
    /// A named session that outlives its connection; its queue is a `Queue` of its own.
    Holder {
        name: Bytes,
        keep: u64,
    },
    HolderGone(Bytes),
    /// The queue had its first consumer: after a crash its entries may have been delivered.
    Consumed {
        id: u32,
    },
    /// What a named session wrote on a lease; 0 takes it away.
    Note {
        id: u32,
        sequence: u64,
        note: u32,
    },
    /// What is published when a named session's client is lost.
    Will {
        holder: Bytes,
        will: Box<Will>,
    },
    /// It was published, or is not to be any more.
    WillGone(Bytes),
    /// A named session is a member of a shared queue.
    Member {
        holder: Bytes,
        id: u32,
        cookie: Bytes,
    },
    MemberGone {
        holder: Bytes,
        id: u32,
    },
    /// A queue got last values that were there already, one after the other from that sequence on.
    Recalled {
        id: u32,
        first: u64,
        entries: Vec<Entry>,
    },
    /// The last value of an address, for records that do not say it themselves and for checkpoints.
    Retained {
        address: Bytes,
        entry: Entry,
    },
    /// Dedup keys are open, for checkpoints.
    KeysOpen {
        scope: Scope,
        keys: Vec<OpenKey>,
    },
    /// A named session closed one of its dedup keys.
    KeyClosed {
        holder: Bytes,
        number: u64,
    },
    /// A group's progress with a message queue that it pops from.
    PopState {
        place: PopPlace,
        head: u64,
        next: u64,
        acked: Vec<(u64, u64)>,
    },
    /// Popped messages are done with: first, count.
    PopAcked {
        place: PopPlace,
        ranges: Vec<(u64, u64)>,
    },
    /// Popped messages came back so often: first, count, attempts.
    PopReturned {
        place: PopPlace,
        runs: Vec<(u64, u64, u32)>,
    },
    /// A group goes on from another offset.
    Reset {
        group: Bytes,
        topic: Bytes,
        queue_id: u32,
        offset: u64,
    },
    /// The last change of a clean stop: up to where each queue's entries had been handed out.
    Stopped {
        delivered: Vec<(u32, u64)>,
    },
    /// A queue has another limit and policy.
    QueueAltered {
        id: u32,
        limit: Limit,
        policy: Option<Box<Policy>>,
    },
    /// Messages came back so often: first sequence, count, attempts.
    Attempts {
        id: u32,
        runs: Vec<(u64, u64, u32)>,
    },
    /// Messages of the queue may expire.
    Expiring {
        id: u32,
    },
    /// Ranges of a queue's sequences are done with: first, count.
    Purged {
        id: u32,
        ranges: Vec<(u64, u64)>,
    },
    /// By how many milliseconds the wall is ahead of the clock of relative timers, which stands there.
    Clock {
        ahead: i64,
        elapsed: Millis,
    },
    /// Timers before this record fired: all due before a time, and some that are due right then.
    Fired {
        axis: Axis,
        before: u64,
        positions: Vec<Position>,
    },
    /// A timed message was taken back.
    TimerRecalled {
        axis: Axis,
        due: u64,
        position: Position,
    },
    /// A timed message was copied forward; `first` is where it was stored at first.
    TimerMoved {
        axis: Axis,
        due: u64,
        first: Position,
        from: Position,
        to: Position,
    },
    /// In a checkpoint: a half message.
    Half {
        position: Position,
        half: Half,
    },
    /// In a checkpoint: the number of the next half message.
    HalfNumbers {
        next: u64,
    },
    /// A half message was asked about for the nth time, and when it is asked about next.
    HalfChecked {
        position: Position,
        checks: u32,
        next: Millis,
    },
    /// A half message was committed, rolled back, or given up.
    HalfDone {
        position: Position,
    },
    /// How a group's messages are tried again.
    Retry {
        group: Bytes,
        retry: Retry,
    },
    /// In a checkpoint: timers of a minute, which has no others whose records lie before `end`.
    Timers {
        axis: Axis,
        minute: u64,
        end: Position,
        timers: Bytes,
    },
    /// Checkpoint: a full page of a list of entries. Either the number of a page in the index files, or the
    /// entries.
    Page {
        list: u64,
        number: u64,
        done: u64,
        first: u64,
        mixed: bool,
        stored: Option<u32>,
        entries: Bytes,
    },
    /// Checkpoint: what is behind a list's pages, with the sizes of its open entries and its head.
    Tail {
        list: u64,
        head: u64,
        start: u64,
        done: u64,
        bytes: u64,
        entries: Bytes,
    },
    /// Checkpoint: the number that the next queue gets.
    Numbers {
        next_queue: u32,
    },
    /// Checkpoint: until when topics want the messages of a segment, and how many entries ever needed it.
    Segment {
        number: u64,
        keep_until: u64,
        pinned: u64,
    },
    /// Checkpoint: a topic at its place in the table of topics.
    TopicAt {
        id: u32,
        name: Bytes,
        queues: u32,
    },
}
