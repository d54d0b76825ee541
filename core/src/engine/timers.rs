//! Messages that are delivered later.
//!
//! A timed message is a record that no queue and no topic points to, only a [`Wheel`]: it says itself when it
//! is due. When its time comes it is published again, routed by the bindings of that moment; in the same batch
//! a change says which timers have fired.
//!
//! There are two clocks. Absolute times follow the wall. Relative ones are measured on a clock that steps of
//! the wall do not touch and that goes on over a restart: [`Timers::elapsed`] is the monotonic clock plus a
//! number that is chosen at each start. What the log remembers is by how much the wall differs from it; that
//! is written when it changes by more than a second, that is, when the wall was stepped.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use bytes::Bytes;

use crate::boundary::{Deliver, Publish, Reject, Stored};
use crate::engine::change::Change;
use crate::engine::config::Flush;
use crate::engine::progress::Entry;
use crate::engine::publish::{Birth, Placed, is_durable};
use crate::engine::republish::{Done, Revived, edit_properties};
use crate::engine::state::State;
use crate::engine::wheel::{Search, Timer, Wheel};
use crate::message::Format;
use crate::properties;
use crate::request::{Refusal, Reply};
use crate::store::record::{self, Later, MessageRecord, Position};
use crate::time::{Millis, Now};

/// Timers that fire in one hold, and bytes of their records.
const FIRES_MAX: usize = 128;
const FIRE_BYTES_MAX: usize = 1 << 20;

/// Timers that change their bucket in one hold, or are looked at by a search.
const MOVES_MAX: usize = 8192;

/// Moved timers that one step of a checkpoint writes.
const CHECKPOINT_MOVED_MAX: usize = 1024;

/// By how much the wall must have been stepped before that is written down.
const STEP_MIN: u64 = 1000;

/// Which clock a timer is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Axis {
    /// Elapsed time.
    Relative = 0,
    /// The wall.
    Absolute = 1,
}

impl Axis {
    pub(crate) fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Relative),
            1 => Some(Self::Absolute),
            _ => None,
        }
    }
}

/// How far a checkpoint has come with the timers.
#[derive(Default)]
pub(crate) struct TimerCursor {
    wheel: u8,
    minute: u64,
    moved: Option<Position>,
}

/// A timed message that was copied forward.
#[derive(Clone, Copy)]
struct Moved {
    axis: Axis,
    due: u64,
    to: Position,
}

/// All timed messages.
pub(crate) struct Timers {
    relative: Wheel,
    absolute: Wheel,
    /// What the clock of relative timers is ahead of the monotonic one.
    ahead: i64,
    /// What the log says that the wall is ahead of the clock of relative timers.
    written: i64,
    /// The clock of relative timers was at least there.
    reached: u64,
    /// Messages that were copied forward, by their first position: whoever sent them knows no other.
    moved: BTreeMap<Position, Moved>,
}

impl Timers {
    pub(crate) fn new(now: Now) -> Self {
        Self {
            relative: Wheel::default(),
            absolute: Wheel::default(),
            ahead: now.wall.0 as i64 - now.mono.0 as i64,
            written: 0,
            reached: 0,
            moved: BTreeMap::new(),
        }
    }

    /// The clock of relative timers.
    pub(crate) fn elapsed(&self, now: Now) -> Millis {
        Millis((now.mono.0 as i64 + self.ahead).max(0) as u64)
    }

    fn wheel(&mut self, axis: Axis) -> &mut Wheel {
        match axis {
            Axis::Relative => &mut self.relative,
            Axis::Absolute => &mut self.absolute,
        }
    }

    fn time(&self, axis: Axis, now: Now) -> u64 {
        match axis {
            Axis::Relative => self.elapsed(now).0,
            Axis::Absolute => now.wall.0,
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> u64 {
        self.relative.len() + self.absolute.len()
    }

    pub(crate) fn memory(&self) -> usize {
        self.relative.memory() + self.absolute.memory()
    }

    /// When there is something to do next, on the monotonic clock.
    pub(crate) fn next(&self, now: Now) -> Option<Millis> {
        let after = |axis, next: u64| now.mono + Millis(next.saturating_sub(self.time(axis, now)));
        let relative = self.relative.next().map(|next| after(Axis::Relative, next));
        let absolute = self.absolute.next().map(|next| after(Axis::Absolute, next));
        [relative, absolute].into_iter().flatten().min()
    }
}

impl State {
    /// When a message is due, if later than now.
    ///
    /// # Errors
    /// When that is further ahead than allowed.
    pub(crate) fn later(&self, publish: &Publish) -> Result<Option<Later>, Reject> {
        if publish.native.as_deref().is_some_and(|native| native.half) {
            return Ok(Some(self.first_check(publish)));
        }
        let (delay, later) = match publish.deliver {
            Deliver::Now => return Ok(None),
            Deliver::After(delay) => {
                let due = self.timers.elapsed(self.now) + delay;
                (delay, Later::After(due))
            }
            Deliver::At(at) => (at.since(self.now.wall), Later::At(at)),
        };
        if delay > self.config.delay_max {
            return Err(Reject::TooLate);
        }
        Ok((delay.0 > 0).then_some(later))
    }

    /// Stores a message that is due later: nobody sees it before.
    pub(crate) fn put_later(&mut self, publish: &Publish, birth: Birth, placed: &Placed, later: Later) -> Stored {
        match later {
            Later::Half(_) => return self.put_half(publish, birth, placed, later),
            Later::After(_) => self.note_clock(),
            Later::At(_) => {}
        }
        let queue = placed.topic_queue.map_or(0, |(_, queue, _)| queue);
        let (position, message) = self.store_later(publish, birth, (queue, 0), later);
        let entry = Entry {
            position,
            size: message.record_len() as u32,
            word: 0,
        };
        self.hold_entry(entry);
        self.add_timer(later, entry);
        Stored {
            position,
            queue_id: queue,
            queue_offset: 0,
            routes: placed.routes.max(1),
            weak: !is_durable(position, publish, false) || self.config.flush == Flush::Async,
        }
    }

    fn add_timer(&mut self, later: Later, entry: Entry) {
        let (axis, due) = axis_of(later);
        let time = self.timers.time(axis, self.now);
        let timer = Timer {
            due,
            position: entry.position,
            size: entry.size,
        };
        let before = self.timers.wheel(axis).next();
        self.timers.wheel(axis).insert(time, timer);
        if before.is_none_or(|before| due < before) {
            self.deadline_moved = true;
        }
    }

    /// Writes down that the wall was stepped.
    pub(crate) fn note_clock(&mut self) {
        let elapsed = self.timers.elapsed(self.now);
        let ahead = self.now.wall.0 as i64 - elapsed.0 as i64;
        if ahead.abs_diff(self.timers.written) > STEP_MIN {
            self.timers.written = ahead;
            self.change_quietly(&Change::Clock { ahead, elapsed });
        }
    }

    /// Lets fire what is due, and takes apart the time ahead, a limited number of each. Gives whether there is
    /// more to do at once.
    pub(crate) fn turn_timers(&mut self) -> bool {
        if self.timers.relative.len() > 0 {
            self.note_clock();
        }
        let more = self.turn_wheel(Axis::Relative);
        self.turn_wheel(Axis::Absolute) || more
    }

    fn turn_wheel(&mut self, axis: Axis) -> bool {
        let time = self.timers.time(axis, self.now);
        let is_turned = self.timers.wheel(axis).turn(time, MOVES_MAX);
        let is_full = |state: &Self| state.log.unsynced() > state.config.unsynced_max && !state.closing;
        let (mut count, mut bytes) = (0, 0);
        let mut last = None;
        let mut positions = Vec::new();
        while count < FIRES_MAX
            && bytes < FIRE_BYTES_MAX
            && !is_full(self)
            && let Some(popped) = self.timers.wheel(axis).pop(time)
        {
            if count == 0 {
                self.begin_batch();
            }
            count += 1;
            let (Ok(timer) | Err(timer)) = popped;
            bytes += timer.size as usize;
            if last != Some(timer.due) {
                positions.clear();
            }
            last = Some(timer.due);
            positions.push(timer.position);
            if popped.is_ok() {
                self.fire(timer);
            }
            self.release_entry(Entry {
                position: timer.position,
                size: timer.size,
                word: 0,
            });
        }
        let Some(due) = last else {
            return !is_turned;
        };
        let before = if self.timers.wheel(axis).is_done(due) {
            positions.clear();
            due + 1
        } else {
            due
        };
        self.change_quietly(&Change::Fired {
            axis,
            before,
            positions,
        });
        self.end_batch();
        !is_full(self) && (!is_turned || count >= FIRES_MAX || bytes >= FIRE_BYTES_MAX)
    }

    fn fire(&mut self, timer: Timer) {
        let Some(message) = self.message(timer.position, timer.size) else {
            return;
        };
        let mut revived = Revived::of(&message);
        if revived.publish.format == Format::NATIVE {
            let queue = revived.native().queue_id.unwrap_or(0).to_string();
            let real = [(&b"REAL_TOPIC"[..], message.topic()), (b"REAL_QID", queue.as_bytes())];
            let properties = std::mem::take(&mut revived.publish.origin);
            revived.publish.origin = edit_properties(&properties, &[b"DELAY"], &real);
            if revived.publish.origin.len() > properties::PROPERTIES_MAX {
                revived.publish.origin = edit_properties(&properties, &[b"DELAY"], &[]);
            }
            revived.retag();
        }
        revived.publish.retain = message.view().is_retained();
        if let Err(why) = self.republish(revived, Done::Nothing) {
            tracing::warn!(?why, topic = %message.topic().escape_ascii(), "a delayed message cannot be delivered");
        }
    }

    /// Takes back a timed message that was not delivered yet. `unique_key` is the key it was sent with.
    pub(crate) fn take_back(&mut self, position: Position, unique_key: &[u8]) -> Result<Reply, Refusal> {
        let not_found = || Refusal::NotFound {
            what: "message",
            name: position.to_string().into(),
        };
        let position = self.timers.moved.get(&position).map_or(position, |moved| moved.to);
        let record = self.log.find(position).ok_or_else(not_found)?;
        let view = MessageRecord::of(&record);
        let later = view.later().ok_or_else(not_found)?;
        if matches!(later, Later::Half(_))
            || properties::find(view.properties(), properties::UNIQUE_KEY) != Some(unique_key)
        {
            return Err(not_found());
        }
        let (axis, due) = axis_of(later);
        let time = self.timers.time(axis, self.now);
        let timer = Timer {
            due,
            position,
            size: record.len() as u32,
        };
        // What is due may be on its way.
        if due <= time || !self.timers.wheel(axis).take_back(timer) {
            return Err(not_found());
        }
        self.change(&Change::TimerRecalled { axis, due, position });
        Ok(Reply::Done)
    }

    /// Copies the records of timed messages that lie in `span` to the log's end, a limited number, but for those
    /// that are due soon. Gives how many and whether that was the last of this clock.
    pub(crate) fn move_timers(&mut self, axis: Axis, search: &mut Search, span: &Range<u64>) -> (usize, bool) {
        let mut found = Vec::new();
        let is_over = self.timers.wheel(axis).search(search, span, MOVES_MAX, &mut found);
        let count = found.len();
        for timer in found {
            let (Ok(old) | Err(old)) = timer;
            if timer.is_ok() && !self.move_timer(axis, old) {
                continue;
            }
            self.timers.wheel(axis).leave(old.position);
            self.release_entry(Entry {
                position: old.position,
                size: old.size,
                word: 0,
            });
        }
        if is_over {
            let time = self.timers.time(axis, self.now);
            self.timers
                .moved
                .retain(|_, moved| moved.axis != axis || moved.due > time);
        }
        (count, is_over)
    }

    fn move_timer(&mut self, axis: Axis, old: Timer) -> bool {
        let Some(record) = self.log.find(old.position) else {
            return false;
        };
        let Ok((header, _)) = record::check(&record, old.position) else {
            return false;
        };
        let first = MessageRecord::of(&record).native_position();
        self.begin_batch();
        let to = self.copy_record(header, &record, false).0;
        self.change_quietly(&Change::TimerMoved {
            axis,
            due: old.due,
            first,
            from: old.position,
            to,
        });
        self.end_batch();
        let timer = Timer { position: to, ..old };
        self.log.pin(to);
        let time = self.timers.time(axis, self.now);
        self.timers.wheel(axis).insert(time, timer);
        let moved = Moved { axis, due: old.due, to };
        self.timers.moved.insert(first, moved);
        true
    }

    // --- checkpoint and replay --------------------------------------------------------------------

    /// Puts what re-creates the timers of one minute of a clock; gives whether that was the last.
    pub(crate) fn checkpoint_timers(&self, cursor: &mut TimerCursor, put: &mut dyn FnMut(&Change)) -> bool {
        let timers = &self.timers;
        let (axis, wheel) = match cursor.wheel {
            0 => (Axis::Relative, &timers.relative),
            1 => (Axis::Absolute, &timers.absolute),
            2 => {
                let from = cursor.moved.map_or(Bound::Unbounded, Bound::Excluded);
                let rest = timers.moved.range((from, Bound::Unbounded));
                cursor.moved = None;
                for (first, moved) in rest.take(CHECKPOINT_MOVED_MAX) {
                    cursor.moved = Some(*first);
                    put(&Change::TimerMoved {
                        axis: moved.axis,
                        due: moved.due,
                        first: *first,
                        from: *first,
                        to: moved.to,
                    });
                }
                cursor.wheel += u8::from(cursor.moved.is_none());
                return false;
            }
            _ => {
                put(&Change::Clock {
                    ahead: timers.written,
                    elapsed: timers.elapsed(self.now),
                });
                return true;
            }
        };
        let Some(minute) = wheel.next_minute(cursor.minute) else {
            cursor.wheel += 1;
            cursor.minute = 0;
            return false;
        };
        cursor.minute = minute + 1;
        let end = self.log.end();
        wheel.checkpoint(minute, |timers| {
            put(&Change::Timers {
                axis,
                minute,
                end,
                timers: Bytes::copy_from_slice(timers),
            });
        });
        false
    }

    pub(crate) fn replay_later(&mut self, later: Later, entry: Entry, offset: u64) {
        if matches!(later, Later::Half(_)) {
            return self.replay_half(later, entry, offset);
        }
        let (axis, due) = axis_of(later);
        let timer = Timer {
            due,
            position: entry.position,
            size: entry.size,
        };
        if self.timers.wheel(axis).replay_insert(timer) {
            self.log.pin(entry.position);
        }
    }

    /// Applies a change of timers that lies at `position` in the log, or in a checkpoint.
    pub(crate) fn replay_timers(&mut self, position: Position, change: Change) {
        let Self { timers, log, .. } = self;
        match change {
            Change::Clock { ahead, elapsed } => {
                timers.written = ahead;
                timers.reached = timers.reached.max(elapsed.0);
            }
            Change::Fired {
                axis,
                before,
                positions,
            } => {
                if axis == Axis::Relative {
                    timers.reached = timers.reached.max(before.saturating_sub(1));
                }
                let wheel = timers.wheel(axis);
                wheel.replay_fired(before, position, &positions, |position| log.unpin(position));
            }
            Change::TimerRecalled { axis, due, position } => {
                timers.wheel(axis).recall(Timer { due, position, size: 0 });
            }
            Change::TimerMoved {
                axis,
                due,
                first,
                from,
                to,
            } => {
                timers.wheel(axis).recall(Timer {
                    due,
                    position: from,
                    size: 0,
                });
                timers.moved.insert(first, Moved { axis, due, to });
            }
            Change::Timers {
                axis,
                minute,
                end,
                timers: bytes,
            } => timers
                .wheel(axis)
                .restore(minute, end, &bytes, |timer| log.repin(timer.position)),
            _ => {}
        }
    }

    /// After a replay: relative timers go on where they were, plus the time that passed on the wall.
    pub(crate) fn replay_timers_done(&mut self) {
        let now = self.now;
        let Self { timers, log, .. } = self;
        for axis in [Axis::Relative, Axis::Absolute] {
            timers.wheel(axis).replay_done(|position| log.unpin(position));
        }
        let elapsed = (now.wall.0 as i64 - timers.written).max(timers.reached as i64);
        timers.ahead = elapsed - now.mono.0 as i64;
    }
}

fn axis_of(later: Later) -> (Axis, u64) {
    match later {
        Later::After(due) | Later::Half(due) => (Axis::Relative, due.0),
        Later::At(due) => (Axis::Absolute, due.0),
    }
}
