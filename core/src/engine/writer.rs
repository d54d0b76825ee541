//! Writing and syncing, outside the engine's lock.
//!
//! Whoever finds bytes unwritten and the writer's lock free writes them, in position order. Only the sync
//! thread calls `fdatasync`. Lock order: writer, then engine; the sync signal is taken alone. A failed write
//! or sync is final: nothing is confirmed after it. A condition is notified only when somebody waits for it:
//! otherwise each notification is a system call for nothing.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::boundary::Shortage;
use crate::engine::Engine;
use crate::engine::config::Flush;
use crate::store::chunk::Slice;
use crate::store::record::Position;
use crate::store::storage::{FileId, Storage};

/// How long written or unwritten bytes that nobody waits for may stay unsynced.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// How long one waits for the sync thread before looking again.
const STEP_PAUSE: Duration = Duration::from_millis(5);

/// Unsynced bytes at which the sync thread does not wait any longer in asynchronous mode.
const SYNC_AT: usize = 8 << 20;

/// How much of the log is prepared at once for small writes that are synced.
const PREPARED_AT_ONCE: u64 = 1 << 20;

/// A larger write is not worth preparing for: its messages share the sync.
const SMALL_WRITE_MAX: u64 = 64 << 10;

/// The disk refused a write or a sync.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed: {0}; nothing is confirmed any more")]
pub struct StoreFailed(pub String);

/// What writing needs beside the engine's state.
pub(crate) struct Writer {
    storage: Arc<dyn Storage>,
    segment_size: u64,
    flush: Flush,
    writing: Mutex<Writing>,
    signal: Mutex<Signal>,
    signalled: Condvar,
    /// The signal is set already: spares taking its lock.
    requested: AtomicBool,
    /// There was no room for the next segment.
    pub(crate) full: AtomicBool,
    /// There is a sync thread; others let it do the work.
    has_thread: AtomicBool,
    /// The sync thread has done a step.
    stepped: Condvar,
}

struct Writing {
    pieces: Vec<(Position, Slice)>,
    /// Everything before this is in the kernel.
    written: Position,
    /// Everything before this is on the disk.
    synced: Position,
    /// Everything before this is written or prepared to be.
    prepared: u64,
    claimed: HashSet<u64>,
    failed: Option<StoreFailed>,
}

#[derive(Default)]
struct Signal {
    requested: bool,
    closing: bool,
    /// The sync thread waits to be asked.
    idle: bool,
    /// How many wait for a step of it.
    awaiting: usize,
}

impl Writer {
    pub(crate) fn new(storage: Arc<dyn Storage>, segment_size: u64, flush: Flush, start: Position) -> Self {
        let writing = Writing {
            pieces: Vec::new(),
            written: start,
            synced: start,
            prepared: start.0,
            claimed: HashSet::new(),
            failed: None,
        };
        Self {
            storage,
            segment_size,
            flush,
            writing: Mutex::new(writing),
            signal: Mutex::default(),
            signalled: Condvar::new(),
            requested: AtomicBool::new(false),
            full: AtomicBool::new(false),
            has_thread: AtomicBool::new(false),
            stepped: Condvar::new(),
        }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) -> MutexGuard<'_, Signal> {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sync thread has done a step, or ends.
    fn tell_step(&self) {
        if self.signal().awaiting > 0 {
            self.stepped.notify_all();
        }
    }

    pub(crate) fn request_sync(&self) {
        if !self.requested.swap(true, Ordering::AcqRel) {
            let idle = {
                let mut signal = self.signal();
                signal.requested = true;
                signal.idle
            };
            if idle {
                self.signalled.notify_one();
            }
        }
    }

    /// Waits until somebody asks or the interval is over; gives whether the engine is closing.
    fn wait(&self) -> bool {
        let mut signal = self.signal();
        if !signal.requested && !signal.closing {
            signal.idle = true;
            signal = self
                .signalled
                .wait_timeout_while(signal, SYNC_INTERVAL, |signal| !signal.requested && !signal.closing)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            signal.idle = false;
        }
        signal.requested = false;
        self.requested.store(false, Ordering::Release);
        signal.closing
    }

    /// Tries once more to make the next segment, for there may be room by now: when publishers wait and nobody
    /// settles anything, nobody else writes and would look.
    pub(crate) fn look_for_room(&self) -> io::Result<()> {
        // Not taken for nothing: who writes may hold it as long as the disk takes.
        if self.full.load(Ordering::Acquire) {
            let mut writing = self.writing();
            if writing.failed.is_none() {
                self.claim_ahead(&mut writing)?;
            }
        }
        Ok(())
    }

    fn write_pieces(&self, writing: &mut Writing) -> io::Result<()> {
        // A segment's end is written only when the next segment exists: recovery relies on it.
        for (position, _) in &writing.pieces {
            let segment = position.0 / self.segment_size;
            if writing.claimed.insert(segment) {
                self.storage.claim(FileId::segment(segment), self.segment_size)?;
            }
        }
        if self.flush == Flush::Sync {
            self.prepare(writing)?;
        }
        for (position, piece) in writing.pieces.drain(..) {
            let segment = position.0 / self.segment_size;
            self.storage
                .write(FileId::segment(segment), position.0 % self.segment_size, &piece)?;
        }
        Ok(())
    }

    /// Prepares the log a good part ahead of what is to be written now.
    fn prepare(&self, writing: &mut Writing) -> io::Result<()> {
        let (Some((first, _)), Some((last, piece))) = (writing.pieces.first(), writing.pieces.last()) else {
            return Ok(());
        };
        let end = last.0 + piece.len() as u64;
        if end <= writing.prepared {
            return Ok(());
        }
        if end - first.0 > SMALL_WRITE_MAX {
            writing.prepared = end;
            return Ok(());
        }
        let segment = last.0 / self.segment_size;
        let base = segment * self.segment_size;
        let ahead = (end + PREPARED_AT_ONCE).min(base + self.segment_size);
        let range = writing.prepared.max(base) - base..ahead - base;
        writing.prepared = ahead;
        match self.storage.prepare(FileId::segment(segment), range) {
            // What is written itself may still fit.
            Err(error) if is_full(&error) => Ok(()),
            result => result,
        }
    }

    fn sync_segments(&self, writing: &Writing) -> io::Result<()> {
        let last = (writing.written.0 - 1) / self.segment_size;
        for segment in writing.synced.0 / self.segment_size..=last {
            self.storage.sync(FileId::segment(segment))?;
        }
        Ok(())
    }

    /// Makes the next segment before it is needed, so that a full disk shows early.
    fn claim_ahead(&self, writing: &mut Writing) -> io::Result<()> {
        let at = writing.written.0;
        if at % self.segment_size > self.segment_size / 2 {
            let next = at / self.segment_size + 1;
            if !writing.claimed.contains(&next) {
                match self.storage.claim(FileId::segment(next), self.segment_size) {
                    Ok(()) => {
                        writing.claimed.insert(next);
                        self.full.store(false, Ordering::Release);
                    }
                    // The other half of this segment is for acks, until there is room again.
                    Err(error) if is_full(&error) => self.full.store(true, Ordering::Release),
                    Err(error) => return Err(error),
                }
            }
        }
        writing.claimed.retain(|segment| *segment >= at / self.segment_size);
        Ok(())
    }
}

/// Whether an error says that the disk is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Writing {
    fn fail(&mut self, error: &io::Error) -> StoreFailed {
        self.failed
            .get_or_insert_with(|| StoreFailed(error.to_string()))
            .clone()
    }

    fn check(&self) -> Result<(), StoreFailed> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl Engine {
    /// A hold has left bytes to be written.
    pub(crate) fn wrote_to_log(&self, awaited: bool, unsynced: usize) {
        let writer = &self.0.writer;
        match writer.flush {
            Flush::Sync if awaited || unsynced > SYNC_AT => writer.request_sync(),
            Flush::Async if awaited || unsynced > SYNC_AT => {
                self.write_through();
                if unsynced > SYNC_AT {
                    writer.request_sync();
                }
            }
            // Acks and offsets: they go with what somebody waits for, or with the sync thread's next step.
            Flush::Sync | Flush::Async => {}
        }
    }

    /// Writes what is unwritten, unless somebody is at it: they look again before they leave.
    fn write_through(&self) {
        loop {
            let Ok(mut writing) = self.0.writer.writing.try_lock() else {
                return;
            };
            if writing.failed.is_some() || self.write_some(&mut writing).is_err() {
                self.0.writer.request_sync();
                return;
            }
            drop(writing);
            if !self.lock().awaits_write() {
                return;
            }
        }
    }

    /// Writes what was appended so far and, in asynchronous mode, tells who waited for it. Says whether there
    /// was anything.
    fn write_some(&self, writing: &mut Writing) -> Result<bool, StoreFailed> {
        writing.check()?;
        let end = self.lock().log.take_unwritten(&mut writing.pieces);
        if writing.pieces.is_empty() {
            return Ok(false);
        }
        self.0
            .writer
            .write_pieces(writing)
            .map_err(|error| writing.fail(&error))?;
        writing.written = end;
        if self.0.writer.flush == Flush::Async {
            let after = {
                let mut state = self.lock();
                state.begin(self.0.clock.now());
                state.release(end);
                state.finish()
            };
            for waker in after.wakers {
                waker.wake();
            }
        }
        Ok(true)
    }

    /// Writes and syncs everything appended so far and tells who waited for it. The sync thread's one
    /// step; tests call it in its place.
    ///
    /// # Errors
    /// When the disk failed, now or before.
    pub fn sync_once(&self) -> Result<(), StoreFailed> {
        let writer = &self.0.writer;
        let mut writing = writer.writing();
        while self.write_some(&mut writing)? {}
        let (written, synced) = (writing.written, writing.synced);
        if written == synced {
            drop(writing);
            if writer.flush == Flush::Async && self.lock().awaits_write() {
                // Whoever appended just now found this thread at it.
                self.write_through();
            }
            return Ok(());
        }
        if writer.flush == Flush::Async {
            // Others go on writing while this thread waits for the disk.
            let snapshot = Writing {
                pieces: Vec::new(),
                written,
                synced,
                prepared: written.0,
                claimed: HashSet::new(),
                failed: None,
            };
            drop(writing);
            let result = writer.sync_segments(&snapshot);
            writing = writer.writing();
            result.map_err(|error| writing.fail(&error))?;
        } else {
            writer.sync_segments(&writing).map_err(|error| writing.fail(&error))?;
        }
        writing.synced = written;
        writer.claim_ahead(&mut writing).map_err(|error| writing.fail(&error))?;
        drop(writing);
        let after = {
            let mut state = self.lock();
            state.begin(self.0.clock.now());
            state.log.set_synced(written);
            state.release(written);
            if self.0.writer.full.load(Ordering::Acquire) {
                state.shortage = Some(Shortage::Disk);
            }
            state.unblock();
            state.finish()
        };
        self.follow_up(after);
        Ok(())
    }

    /// The sync thread's life: returns when the engine is closed, or at once when the disk fails.
    ///
    /// # Errors
    /// The process is to end: nothing is confirmed any more.
    pub fn run_sync(&self) -> Result<(), StoreFailed> {
        let writer = &self.0.writer;
        writer.has_thread.store(true, Ordering::Release);
        let result = loop {
            let closing = writer.wait();
            let result = self.sync_once();
            writer.tell_step();
            if closing || result.is_err() {
                break result;
            }
        };
        writer.has_thread.store(false, Ordering::Release);
        writer.tell_step();
        result
    }

    /// Makes everything appended so far durable. The sync thread does it, if there is one: no other thread
    /// calls `fdatasync` beside it.
    pub(crate) fn sync_to_end(&self) -> Result<(), StoreFailed> {
        let writer = &self.0.writer;
        let end = self.lock().log.end();
        while writer.has_thread.load(Ordering::Acquire) {
            {
                let writing = writer.writing();
                writing.check()?;
                if writing.synced >= end {
                    return Ok(());
                }
            }
            writer.request_sync();
            let mut signal = writer.signal();
            signal.awaiting += 1;
            // A step that ended before this wait began is found when it is over.
            let waited = writer.stepped.wait_timeout(signal, STEP_PAUSE);
            waited.unwrap_or_else(PoisonError::into_inner).0.awaiting -= 1;
        }
        self.sync_once()
    }

    /// Lets [`run_sync`](Self::run_sync) end once everything is durable.
    pub(crate) fn finish_writing(&self) {
        let writer = &self.0.writer;
        writer.signal().closing = true;
        writer.signalled.notify_all();
        *self.0.closing.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.closed.notify_all();
    }
}
