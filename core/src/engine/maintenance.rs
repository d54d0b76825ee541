//! Keeping the store small: when checkpoints are taken, what retention lets go, which segments are removed, and who
//! waits when the disk is nearly full. The thread that does it also works off what takes long.
//!
//! How a checkpoint is taken is in [`super::checkpoint`]; what few messages keep is copied forward by
//! [`super::moving`].

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::boundary::Shortage;
use crate::engine::Engine;
use crate::engine::state::STEPS_MAX;
use crate::engine::writer::is_full;
use crate::store::record::Position;
use crate::store::storage::{Area, FileId};
use crate::time::Millis;

/// A checkpoint is taken this long after the last one, if the log has grown by as much as the last one took.
const INTERVAL: Millis = Millis::from_secs(15);

/// Between two looks at what is to be done.
const PAUSE: Duration = Duration::from_millis(250);

/// Slices of what takes long, about 0.1 ms each, and a pause for others to have their turn: the lock goes to whoever
/// comes first. On a busy machine the pause is as long as it takes to get the processor again.
const SLICES_AT_ONCE: usize = 8;
const SLICE_PAUSE: Duration = Duration::from_micros(100);

/// When room is short: so much is used, percent, and less than so many bytes are free. A tenth of a large disk
/// is no reason to stop.
#[derive(Clone, Copy)]
struct Mark {
    used: u64,
    free: u64,
}

/// From here on topics give up messages before their time (RocketMQ: `diskSpaceCleanForciblyRatio`).
const TIGHT: Mark = Mark {
    used: 85,
    free: 8 << 30,
};

/// From here on publishers are held back (RocketMQ: `diskSpaceWarningLevelRatio`).
const FULL: Mark = Mark {
    used: 90,
    free: 4 << 30,
};

/// The file that is given up when the disk is full.
const RESERVE: FileId = FileId {
    area: Area::Reserve,
    number: 0,
};

/// A checkpoint that may be read back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checkpoint {
    pub number: u64,
    pub start: Position,
}

/// What the maintenance of the store has to remember.
#[derive(Default)]
pub(crate) struct Maintenance {
    /// The last two, the older first.
    pub checkpoints: VecDeque<Checkpoint>,
    /// Size of the last one, bytes.
    pub size: u64,
    pub taken_at: Millis,
    /// Little room is left: topics give up messages before their time.
    tight: bool,
    /// The log says that publishers wait for room.
    told_full: bool,
    /// Segments that were not to be copied forward.
    stuck: BTreeSet<u64>,
    /// Segments that nothing needs since a checkpoint of that number.
    unneeded: VecDeque<(u64, u64)>,
}

impl Maintenance {
    /// After a start: the checkpoint that was read back, which is the only one.
    pub(crate) fn recovered(number: u64, start: Position) -> Self {
        Self {
            checkpoints: VecDeque::from([Checkpoint { number, start }]),
            ..Self::default()
        }
    }
}

impl Engine {
    /// Keeps the store small: takes a checkpoint when one is due, gives up what retention lets go, removes
    /// segments that nothing needs. To be called every now and then, by one thread.
    ///
    /// # Errors
    /// The disk refused something that can wait; the log is untouched.
    pub fn maintain(&self) -> io::Result<()> {
        let mut maintenance = self.maintenance();
        let pages = Arc::clone(&self.lock().pages);
        pages
            .claim_ahead()
            .or_else(|error| is_full(&error).then_some(()).ok_or(error))?;
        let space = self.0.storage.space()?;
        let has_mark = |mark: Mark| space.is_some_and(|space| space.used() >= mark.used && space.free < mark.free);
        let full = self.0.writer.full.load(Ordering::Acquire);
        maintenance.tight = full || has_mark(TIGHT);
        self.find_unneeded(&mut maintenance)?;
        if self.is_due(&maintenance) {
            self.take_checkpoint(&mut maintenance).or_else(|error| {
                if is_full(&error) && self.release_reserve()? {
                    return self.take_checkpoint(&mut maintenance);
                }
                Err(error)
            })?;
        }
        self.remove_segments(&mut maintenance)?;
        let Maintenance { tight, stuck, .. } = &mut *maintenance;
        self.move_forward(*tight, stuck)?;
        self.0.writer.look_for_room()?;
        let full = self.0.writer.full.load(Ordering::Acquire);
        self.set_shortage(full || has_mark(FULL), &mut maintenance.told_full);
        if !maintenance.tight {
            self.0.storage.claim(RESERVE, self.0.segment_size / 8)?;
        }
        Ok(())
    }

    /// The life of the thread that calls [`maintain`](Self::maintain) and does what takes long, such as emptying a
    /// queue of millions: returns when the engine is closed.
    pub fn run_maintenance(&self) {
        self.0.has_maintenance.store(true, Ordering::Release);
        let mut maintained_at = self.0.clock.now().mono;
        let mut closing = self.0.closing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let is_called = self.0.maintenance_called.load(Ordering::Acquire);
            let pause = if is_called { SLICE_PAUSE } else { PAUSE };
            let waited = self.0.closed.wait_timeout(closing, pause);
            closing = waited.unwrap_or_else(PoisonError::into_inner).0;
            if *closing {
                break;
            }
            drop(closing);
            if self.0.maintenance_called.swap(false, Ordering::AcqRel) {
                self.do_long_work();
            }
            let now = self.0.clock.now().mono;
            if now.since(maintained_at).0 >= PAUSE.as_millis() as u64 {
                maintained_at = now;
                if let Err(error) = self.maintain() {
                    tracing::warn!(%error, "the store cannot be kept small just now");
                }
            }
            closing = self.0.closing.lock().unwrap_or_else(PoisonError::into_inner);
        }
        self.0.has_maintenance.store(false, Ordering::Release);
    }

    /// Some slices of what takes long. If more is left, the end of the hold calls for it again.
    fn do_long_work(&self) {
        for _ in 0..SLICES_AT_ONCE {
            let is_left = self.hold(|state| {
                let work = state.long_work.pop_front();
                work.map(|work| state.go_on(work)).is_some()
            });
            if !is_left {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Gives up the space that was kept for this.
    fn release_reserve(&self) -> io::Result<bool> {
        let is_there = !self.0.storage.files(Area::Reserve)?.is_empty();
        if is_there {
            self.0.storage.remove(RESERVE)?;
        }
        Ok(is_there)
    }

    fn set_shortage(&self, is_full: bool, told: &mut bool) {
        // The writer may have held publishers back already, and says nothing.
        if std::mem::replace(told, is_full) != is_full {
            if is_full {
                tracing::warn!("the disk is nearly full: publishers wait or are refused");
            } else {
                tracing::info!("there is room on the disk again: publishing goes on");
            }
        }
        let shortage = is_full.then_some(Shortage::Disk);
        if self.lock().shortage == shortage {
            return;
        }
        self.hold(|state| {
            state.shortage = shortage;
            state.unblock();
        });
    }

    fn is_due(&self, maintenance: &Maintenance) -> bool {
        let state = self.lock();
        let last = maintenance.checkpoints.back();
        let grown = state.log.end().0 - last.map_or(self.0.log_begin.0, |last| last.start.0);
        let waited = self.0.clock.now().mono - maintenance.taken_at >= INTERVAL;
        // Segments go when two checkpoints know that nothing needs them.
        let wanted = !maintenance.unneeded.is_empty();
        grown >= state.config.checkpoint_bytes
            || (waited && (grown > maintenance.size || wanted))
            || (maintenance.tight && wanted)
    }

    /// Topics give up what their retention lets go; segments that nothing needs then are remembered.
    fn find_unneeded(&self, maintenance: &mut Maintenance) -> io::Result<()> {
        let there = self.0.storage.files(Area::Log)?;
        let (found, floor, number) = {
            let mut state = self.lock();
            let current = state.log.end().0 / self.0.segment_size;
            let wall = self.0.clock.now().wall;
            let next = state.pages.checkpoint() + 1;
            let known = &maintenance.unneeded;
            let mut early = maintenance.tight && known.is_empty();
            let (mut found, mut floor) = (Vec::new(), None);
            for number in there.into_iter().filter(|number| *number < current) {
                let segment = state.log.segments().get(number);
                // When room is short the oldest goes before its time, one after the other.
                let is_wanted = segment.keep_until > wall && !(segment.pins == 0 && std::mem::take(&mut early));
                if is_wanted {
                    floor = floor.or(Some(number));
                } else if segment.pins == 0 && !known.iter().any(|(known, _)| *known == number) {
                    found.push(number);
                }
            }
            (found, floor.unwrap_or(current), next)
        };
        // Topics have nothing in those that are found behind the first that they want.
        if let Some(last) = found.iter().filter(|number| **number < floor).max() {
            self.drop_topic_entries(Position((last + 1) * self.0.segment_size));
        }
        maintenance
            .unneeded
            .extend(found.into_iter().map(|segment| (segment, number)));
        Ok(())
    }

    /// Topics' entries that point before a position are given up, in slices.
    fn drop_topic_entries(&self, before: Position) {
        let mut topic = 0;
        loop {
            let mut state = self.lock();
            let end = (topic + STEPS_MAX / 8).min(state.topics.len());
            for topic in &mut state.topics[topic..end] {
                for queue in &mut topic.queues {
                    queue.entries.drop_before(before);
                }
            }
            if end == state.topics.len() {
                return;
            }
            topic = end;
        }
    }

    /// Removes segments that no checkpoint that may be read back needs.
    fn remove_segments(&self, maintenance: &mut Maintenance) -> io::Result<()> {
        if maintenance.checkpoints.len() < 2 {
            return Ok(());
        }
        let oldest = maintenance.checkpoints[0];
        let replayed_from = oldest.start.0 / self.0.segment_size;
        let mut kept = VecDeque::new();
        for (segment, checkpoint) in std::mem::take(&mut maintenance.unneeded) {
            if checkpoint > oldest.number || segment >= replayed_from {
                kept.push_back((segment, checkpoint));
                continue;
            }
            {
                let mut state = self.lock();
                if state.log.segments().get(segment).pins != 0 {
                    continue;
                }
                state.log.forget_segment(segment);
            }
            self.0.storage.remove(FileId::segment(segment))?;
            tracing::debug!(segment, "removed a segment that nothing needs");
        }
        maintenance.unneeded = kept;
        Ok(())
    }
}
