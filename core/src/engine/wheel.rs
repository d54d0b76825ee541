//! Timers of one clock: which record is due when, a few bytes each.
//!
//! ```text
//!   far ahead        this minute and the next     this second and the next two
//!   minutes  ------>  seconds  ---------------->  milliseconds  ----> due
//! ```
//! A bucket holds the timers of its span in the order they came. Time ahead is taken apart step by step, a
//! bounded number of timers at a time, so nothing is ever sorted and nobody waits for long.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;

use crate::store::record::Position;

const MINUTE: u64 = 60_000;
const SECOND: u64 = 1000;

/// Memory of one full piece of a bucket.
const PIECE: usize = 4096;
/// Most bytes of one timer in a bucket.
const TIMER_MAX: usize = 2 + 10 + 5;

/// A record that is due at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    pub due: u64,
    pub position: Position,
    /// Length of the record.
    pub size: u32,
}

/// Timers that are due in one span of at most a minute.
#[derive(Default)]
pub(crate) struct Bucket {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were read.
    read: usize,
    /// Positions are stored as steps from one to the next: those before the first and after the last.
    read_position: u64,
    last_position: u64,
    highest: u64,
    len: u64,
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let (mut number, mut shift) = (0, 0);
    loop {
        let Some(byte) = bytes.get(*at) else { return number };
        *at += 1;
        number |= u64::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 || shift > 63 {
            return number;
        }
    }
}

/// Writes one timer of a bucket. `last` is the position of the timer before.
fn put_timer(out: &mut Vec<u8>, offset: u16, position: Position, size: u32, last: &mut u64) {
    out.extend_from_slice(&offset.to_le_bytes());
    put_varint(out, zigzag((position.0 / 8) as i64 - (*last / 8) as i64));
    put_varint(out, u64::from(size / 8));
    *last = position.0;
}

/// Reads one timer of a bucket at `at`: its offset, position and size. `position` is that of the timer before.
fn take_timer(piece: &[u8], at: &mut usize, position: &mut u64) -> Option<(u16, Position, u32)> {
    let offset = u16::from_le_bytes(piece.get(*at..*at + 2)?.try_into().ok()?);
    *at += 2;
    let step = unzigzag(take_varint(piece, at));
    *position = ((*position / 8) as i64).wrapping_add(step) as u64 * 8;
    let size = (take_varint(piece, at) * 8) as u32;
    Some((offset, Position(*position), size))
}

const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

impl Bucket {
    /// Adds a timer that is due `offset` milliseconds after the bucket's start.
    fn push(&mut self, offset: u16, position: Position, size: u32) {
        let is_full = |piece: &Vec<u8>| piece.len() + TIMER_MAX > PIECE;
        if self.pieces.back().is_none_or(is_full) {
            self.pieces.push_back(Vec::with_capacity(if self.pieces.is_empty() {
                TIMER_MAX
            } else {
                PIECE
            }));
        }
        let piece = self.pieces.back_mut().expect("just made sure of");
        if piece.capacity() - piece.len() < TIMER_MAX {
            let grown = (piece.capacity() * 2).clamp(64, PIECE);
            piece.reserve_exact(grown - piece.len());
        }
        put_timer(piece, offset, position, size, &mut self.last_position);
        self.highest = self.highest.max(position.0);
        self.len += 1;
    }

    /// Takes out the first timer: its offset, position and size.
    fn pop(&mut self) -> Option<(u16, Position, u32)> {
        let (timer, next) = self.peek()?;
        self.read = next;
        self.read_position = timer.1.0;
        self.len -= 1;
        if self.pieces.front().is_some_and(|piece| self.read >= piece.len()) {
            self.pieces.pop_front();
            self.read = 0;
        }
        Some(timer)
    }

    fn peek(&self) -> Option<((u16, Position, u32), usize)> {
        let piece = self.pieces.front()?;
        let (mut at, mut position) = (self.read, self.read_position);
        let timer = take_timer(piece, &mut at, &mut position)?;
        Some((timer, at))
    }

    /// Calls `each` with every timer in it.
    fn each(&self, mut each: impl FnMut(u16, Position, u32)) {
        let mut position = self.read_position;
        for (index, piece) in self.pieces.iter().enumerate() {
            let mut at = if index == 0 { self.read } else { 0 };
            while let Some((offset, position, size)) = take_timer(piece, &mut at, &mut position) {
                each(offset, position, size);
            }
        }
    }

    fn has(&self, offset: u64, position: Position) -> bool {
        let mut found = false;
        if position.0 <= self.highest {
            self.each(|at, other, _| found |= u64::from(at) == offset && other == position);
        }
        found
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that it takes.
    fn memory(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum::<usize>() + self.pieces.capacity() * size_of::<Vec<u8>>()
    }
}

/// How far a search through the time ahead has come.
#[derive(Default)]
pub(crate) struct Search {
    minute: u64,
    piece: usize,
    at: usize,
    /// Of the timer before.
    position: u64,
}

/// All timers of one clock.
#[derive(Default)]
pub(crate) struct Wheel {
    minutes: BTreeMap<u64, Bucket>,
    seconds: BTreeMap<u64, Bucket>,
    millis: BTreeMap<u64, Bucket>,
    /// Timers of minutes before this one go to seconds, those of seconds before that one to milliseconds.
    minutes_ahead: u64,
    seconds_ahead: u64,
    len: u64,
    /// Timers that were recalled, or fired while others of the same millisecond were not, with their times.
    gone: HashMap<Position, u64>,
    /// Places that timers had and have no more: what is met of them is passed over.
    left: HashSet<Position>,
    /// While the log is read back: everything due before the first that lies before the second has fired.
    fired: Vec<(u64, Position)>,
    /// While a checkpoint and the log behind it are read back: a minute's timers before that place in the
    /// log are all there.
    known: HashMap<u64, Position>,
}

impl Wheel {
    /// How many timers wait, those recalled among them.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Memory of all timers, bytes.
    pub(crate) fn memory(&self) -> usize {
        let buckets = self
            .minutes
            .values()
            .chain(self.seconds.values())
            .chain(self.millis.values());
        let one = size_of::<Bucket>() + size_of::<u64>();
        let left = self.gone.capacity() * 24 + self.left.capacity() * 16;
        buckets.map(|bucket| bucket.memory() + one).sum::<usize>() + left
    }

    pub(crate) fn insert(&mut self, now: u64, timer: Timer) {
        self.look_ahead(now);
        self.put(timer);
    }

    fn put(&mut self, timer: Timer) {
        let Timer { due, position, size } = timer;
        self.len += 1;
        if due / MINUTE >= self.minutes_ahead {
            let bucket = self.minutes.entry(due / MINUTE).or_default();
            bucket.push((due % MINUTE) as u16, position, size);
        } else {
            self.put_near(timer);
        }
    }

    fn put_near(&mut self, timer: Timer) {
        let Timer { due, position, size } = timer;
        if due / SECOND >= self.seconds_ahead {
            let bucket = self.seconds.entry(due / SECOND).or_default();
            bucket.push((due % SECOND) as u16, position, size);
        } else {
            self.millis.entry(due).or_default().push(0, position, size);
        }
    }

    fn look_ahead(&mut self, now: u64) {
        self.minutes_ahead = self.minutes_ahead.max(now / MINUTE + 2);
        self.seconds_ahead = self.seconds_ahead.max(now / SECOND + 3);
    }

    /// Takes apart at most `steps` timers of the time ahead. `false` when there is more to do.
    pub(crate) fn turn(&mut self, now: u64, mut steps: usize) -> bool {
        self.look_ahead(now);
        // What is due soonest first.
        while let Some(mut entry) = self.seconds.first_entry()
            && *entry.key() < self.seconds_ahead
        {
            let start = *entry.key() * SECOND;
            while steps > 0
                && let Some((offset, position, size)) = entry.get_mut().pop()
            {
                steps -= 1;
                let due = start + u64::from(offset);
                self.millis.entry(due).or_default().push(0, position, size);
            }
            if !entry.get().is_empty() {
                return false;
            }
            entry.remove();
        }
        while let Some(mut entry) = self.minutes.first_entry()
            && *entry.key() < self.minutes_ahead
        {
            let start = *entry.key() * MINUTE;
            // Out of the map, for those that are due within seconds go on to milliseconds at once.
            let mut bucket = std::mem::take(entry.get_mut());
            while steps > 0
                && let Some((offset, position, size)) = bucket.pop()
            {
                steps -= 1;
                self.put_near(Timer {
                    due: start + u64::from(offset),
                    position,
                    size,
                });
            }
            if !bucket.is_empty() {
                self.minutes.insert(start / MINUTE, bucket);
                return false;
            }
            self.minutes.remove(&(start / MINUTE));
        }
        true
    }

    /// The first millisecond with timers that are due, unless earlier ones are still to be taken apart.
    fn due(&self, now: u64) -> Option<u64> {
        let first = *self.millis.first_key_value()?.0;
        let is_behind = |start: Option<u64>| start.is_some_and(|start| start <= first);
        let second = self.seconds.first_key_value().map(|(key, _)| key * SECOND);
        let minute = self.minutes.first_key_value().map(|(key, _)| key * MINUTE);
        (first <= now && !is_behind(second) && !is_behind(minute)).then_some(first)
    }

    /// Takes out the next timer that is due; one that was recalled comes as `Err`.
    pub(crate) fn pop(&mut self, now: u64) -> Option<Result<Timer, Timer>> {
        loop {
            let due = self.due(now)?;
            let bucket = self.millis.get_mut(&due)?;
            let (_, position, size) = bucket.pop()?;
            if bucket.is_empty() {
                self.millis.remove(&due);
            }
            if !self.left.is_empty() && self.left.remove(&position) {
                continue;
            }
            self.len -= 1;
            let timer = Timer { due, position, size };
            let was_recalled = !self.gone.is_empty() && self.gone.remove(&position).is_some();
            return Some(if was_recalled { Err(timer) } else { Ok(timer) });
        }
    }

    /// Nothing is left that is due at that time.
    pub(crate) fn is_done(&self, due: u64) -> bool {
        !self.millis.contains_key(&due)
    }

    /// When [`turn`](Self::turn) or [`pop`](Self::pop) have something to do next.
    pub(crate) fn next(&self) -> Option<u64> {
        let minute = self
            .minutes
            .first_key_value()
            .map(|(key, _)| key.saturating_sub(1) * MINUTE);
        let second = self
            .seconds
            .first_key_value()
            .map(|(key, _)| key.saturating_sub(2) * SECOND);
        let millis = self.millis.first_key_value().map(|(key, _)| *key);
        [minute, second, millis].into_iter().flatten().min()
    }

    /// A timer shall not fire. `false` when it does not wait (any more). Looks through the timers of its minute at
    /// most: nothing else tells whether it fired.
    pub(crate) fn take_back(&mut self, timer: Timer) -> bool {
        let Timer { due, position, .. } = timer;
        let waits = |bucket: Option<&Bucket>, offset: u64| bucket.is_some_and(|bucket| bucket.has(offset, position));
        let waits = waits(self.millis.get(&due), 0)
            || waits(self.seconds.get(&(due / SECOND)), due % SECOND)
            || waits(self.minutes.get(&(due / MINUTE)), due % MINUTE);
        waits && self.recall(timer)
    }

    /// A timer that still waits shall not fire. `false` when it was recalled before.
    pub(crate) fn recall(&mut self, timer: Timer) -> bool {
        self.gone.insert(timer.position, timer.due).is_none()
    }

    // --- moving -----------------------------------------------------------------------------------

    /// Looks at up to `steps` timers of the time ahead, minutes from now on, for those whose record lies in
    /// `span` of the log; what was recalled comes as `Err`. Gives whether that was the last of it.
    pub(crate) fn search(
        &self,
        search: &mut Search,
        span: &Range<u64>,
        mut steps: usize,
        found: &mut Vec<Result<Timer, Timer>>,
    ) -> bool {
        let mut bytes = 0;
        let from = self.minutes_ahead.max(search.minute);
        for (minute, bucket) in self.minutes.range(from..) {
            if *minute != search.minute {
                *search = Search {
                    minute: *minute,
                    ..Search::default()
                };
            }
            while let Some(piece) = bucket.pieces.get(search.piece) {
                while search.at + 2 <= piece.len() {
                    if steps == 0 || found.len() >= FOUND_MAX || bytes >= FOUND_BYTES_MAX {
                        return false;
                    }
                    steps -= 1;
                    let Some((offset, position, size)) = take_timer(piece, &mut search.at, &mut search.position) else {
                        break;
                    };
                    let timer = Timer {
                        due: minute * MINUTE + u64::from(offset),
                        position,
                        size,
                    };
                    if span.contains(&position.0) && !self.left.contains(&position) {
                        bytes += size;
                        let was_recalled = self.gone.contains_key(&position);
                        found.push(if was_recalled { Err(timer) } else { Ok(timer) });
                    }
                }
                // The last piece may grow meanwhile.
                if search.piece + 1 == bucket.pieces.len() {
                    break;
                }
                (search.piece, search.at) = (search.piece + 1, 0);
            }
        }
        true
    }

    /// A timer that [`search`](Self::search) found is not needed at that place any more.
    pub(crate) fn leave(&mut self, position: Position) {
        self.gone.remove(&position);
        self.left.insert(position);
        self.len -= 1;
    }

    // --- checkpoints and replay -------------------------------------------------------------------

    /// The first minute from that one on that has timers.
    pub(crate) fn next_minute(&self, from: u64) -> Option<u64> {
        let minute = self.minutes.range(from..).next().map(|(key, _)| *key);
        let second = self.seconds.range(from * 60..).next().map(|(key, _)| key / 60);
        let millis = self.millis.range(from * MINUTE..).next().map(|(key, _)| key / MINUTE);
        [minute, second, millis].into_iter().flatten().min()
    }

    /// Calls `put` with the timers of a minute as bytes, in pieces.
    pub(crate) fn checkpoint(&self, minute: u64, mut put: impl FnMut(&[u8])) {
        let (mut bytes, mut last, mut count) = (Vec::new(), 0, 0);
        let mut add = |offset: u64, position: Position, size: u32| {
            if self.gone.contains_key(&position) || self.left.contains(&position) {
                return;
            }
            if count == CHECKPOINT_MAX {
                put(&bytes);
                bytes.clear();
                (last, count) = (0, 0);
            }
            count += 1;
            put_timer(&mut bytes, offset as u16, position, size, &mut last);
        };
        for (due, bucket) in self.millis.range(minute * MINUTE..(minute + 1) * MINUTE) {
            bucket.each(|_, position, size| add(due % MINUTE, position, size));
        }
        for (second, bucket) in self.seconds.range(minute * 60..(minute + 1) * 60) {
            bucket.each(|offset, position, size| add(second % 60 * SECOND + u64::from(offset), position, size));
        }
        if let Some(bucket) = self.minutes.get(&minute) {
            bucket.each(|offset, position, size| add(offset.into(), position, size));
        }
        if !bytes.is_empty() {
            put(&bytes);
        }
    }

    /// Replay of a checkpoint: timers of a minute, which are all of those before `end`. Gives each.
    pub(crate) fn restore(&mut self, minute: u64, end: Position, bytes: &[u8], mut each: impl FnMut(Timer)) {
        self.known.insert(minute, end);
        let (mut at, mut last) = (0, 0);
        while let Some((offset, position, size)) = take_timer(bytes, &mut at, &mut last) {
            let timer = Timer {
                due: minute * MINUTE + u64::from(offset),
                position,
                size,
            };
            each(timer);
            self.put(timer);
        }
    }

    /// Replay of a timed record. `false` when a checkpoint has said all about it.
    pub(crate) fn replay_insert(&mut self, timer: Timer) -> bool {
        let known = self.known.get(&(timer.due / MINUTE));
        if known.is_some_and(|end| timer.position < *end) {
            return false;
        }
        self.put(timer);
        true
    }

    /// Replay of what was fired: everything due before that time that lies before `end` in the log, and these.
    /// `dropped` is called with what is not needed any more at once.
    pub(crate) fn replay_fired(
        &mut self,
        before: u64,
        end: Position,
        others: &[Position],
        mut dropped: impl FnMut(Position),
    ) {
        for position in others {
            self.gone.insert(*position, before);
        }
        self.fired.retain(|(other, _)| *other > before);
        self.fired.push((before, end));
        while let Some(entry) = self.minutes.first_entry()
            && (entry.key() + 1) * MINUTE <= before
            && entry.get().highest < end.0
        {
            let bucket = entry.remove();
            self.len -= bucket.len;
            bucket.each(|_, position, _| dropped(position));
        }
        if self.gone.len() > 1024 {
            let whole = before / MINUTE * MINUTE;
            self.gone.retain(|_, due| *due >= whole);
        }
    }

    /// Ends a replay: what has fired is dropped.
    pub(crate) fn replay_done(&mut self, mut dropped: impl FnMut(Position)) {
        let fired = std::mem::take(&mut self.fired);
        self.known = HashMap::new();
        let latest = fired.iter().map(|(before, _)| *before).max().unwrap_or(0);
        let gone = std::mem::take(&mut self.gone);
        let first_gone = gone.values().min().copied();
        let touched: Vec<u64> = self.minutes.keys().copied().collect();
        for minute in touched {
            let is_over = minute * MINUTE < latest || first_gone.is_some_and(|due| due < (minute + 1) * MINUTE);
            if !is_over || !self.minutes.contains_key(&minute) {
                continue;
            }
            let bucket = self.minutes.remove(&minute).unwrap_or_default();
            self.len -= bucket.len;
            bucket.each(|offset, position, size| {
                let due = minute * MINUTE + u64::from(offset);
                let has_fired = fired.iter().any(|(before, end)| due < *before && position < *end);
                if has_fired || gone.contains_key(&position) {
                    dropped(position);
                } else {
                    self.put(Timer { due, position, size });
                }
            });
        }
    }
}

/// What one search gives at most, and the bytes of the records.
const FOUND_MAX: usize = 256;
const FOUND_BYTES_MAX: u32 = 1 << 20;

/// Timers in one change of a checkpoint.
const CHECKPOINT_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(due: u64, n: u64) -> Timer {
        Timer {
            due,
            position: Position(n * 408),
            size: 400,
        }
    }

    /// Everything that fires up to `until`, asked at each of these times.
    fn run(wheel: &mut Wheel, times: impl Iterator<Item = u64>) -> Vec<(u64, Timer)> {
        let mut fired = Vec::new();
        for now in times {
            while !wheel.turn(now, 7) {}
            while let Some(timer) = wheel.pop(now) {
                fired.extend(timer.ok().map(|timer| (now, timer)));
            }
        }
        fired
    }

    #[test]
    fn every_timer_fires_at_its_millisecond_in_order_and_once() {
        let mut seed = 5u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let start = 1_700_000_000_123;
        let mut wheel = Wheel::default();
        let mut wanted = Vec::new();
        for n in 0..20_000 {
            let due = start + 1 + random(180_000);
            wheel.insert(start, timer(due, n));
            wanted.push(timer(due, n));
        }
        wanted.sort_by_key(|timer| (timer.due, timer.position));
        let mut fired = run(&mut wheel, start..start + 190_000);
        assert!(fired.iter().all(|(now, timer)| *now == timer.due), "late or early");
        fired.sort_by_key(|(_, timer)| (timer.due, timer.position));
        let fired: Vec<_> = fired.into_iter().map(|(_, timer)| timer).collect();
        assert_eq!(fired, wanted);
        assert_eq!((wheel.len(), wheel.next()), (0, None));
    }

    #[test]
    fn it_says_when_it_wants_to_be_turned_next() {
        let start = 1_700_000_000_000;
        let mut wheel = Wheel::default();
        for due in [start + 1, start + 2500, start + 70_000, start + 86_400_000] {
            wheel.insert(start, timer(due, due));
        }
        // Only when it says so, and nothing is late.
        let mut now = start;
        let mut fired = Vec::new();
        for _ in 0..100 {
            while !wheel.turn(now, 100) {}
            while let Some(Ok(timer)) = wheel.pop(now) {
                assert_eq!(timer.due, now);
                fired.push(now - start);
            }
            match wheel.next() {
                Some(next) => {
                    assert!(next > now, "it wants to be turned again at once");
                    now = next;
                }
                None => break,
            }
        }
        assert_eq!(fired, [1, 2500, 70_000, 86_400_000]);
    }

    #[test]
    fn a_checkpoint_and_the_log_behind_it_give_the_same_timers() {
        let start = 1_700_000_000_000;
        let mut wheel = Wheel::default();
        for n in 0..1000u64 {
            wheel.insert(start, timer(start + 1 + n * 331, n));
        }
        run(&mut wheel, start..start + 50_000);
        assert!(wheel.recall(timer(start + 1 + 600 * 331, 600)));
        let mut restored = Wheel::default();
        let mut pinned = 0;
        let mut from = 0;
        while let Some(minute) = wheel.next_minute(from) {
            from = minute + 1;
            wheel.checkpoint(minute, |bytes| {
                restored.restore(minute, Position(1000 * 408), bytes, |_| pinned += 1);
            });
        }
        assert_eq!(pinned, wheel.len() - 1);
        // The log from before the checkpoint on says the same again, and what came later.
        for n in 0..1000u64 {
            restored.replay_insert(timer(start + 1 + n * 331, n));
        }
        restored.replay_fired(start + 50_000, Position(2000 * 408), &[], |_| {});
        let mut dropped = 0;
        restored.replay_done(|_| dropped += 1);
        let rest = |wheel: &mut Wheel| {
            let mut all = run(wheel, (start + 50_000..start + 400_000).step_by(100));
            all.sort_by_key(|(_, timer)| (timer.due, timer.position));
            all.into_iter().map(|(_, timer)| timer).collect::<Vec<_>>()
        };
        assert_eq!(rest(&mut restored), rest(&mut wheel));
    }

    #[test]
    fn a_timer_made_after_the_clock_went_back_is_not_taken_for_fired() {
        let mut wheel = Wheel::default();
        wheel.replay_insert(timer(10_000, 1));
        wheel.replay_insert(timer(90_000, 2));
        wheel.replay_fired(50_000, Position(3 * 408), &[], |_| {});
        // The wall went back: this one is due before the mark, but was made behind it.
        wheel.replay_insert(timer(20_000, 4));
        wheel.replay_fired(15_000, Position(5 * 408), &[], |_| {});
        wheel.replay_done(|_| {});
        let fired: Vec<_> = run(&mut wheel, [100_000].into_iter())
            .iter()
            .map(|(_, t)| t.due)
            .collect();
        assert_eq!(fired, [20_000, 90_000]);
    }

    #[test]
    fn ten_million_timers_take_less_than_100_megabytes() {
        // A tenth of them, at a tenth of the limit.
        for span in [60_000, 86_400_000] {
            let mut wheel = Wheel::default();
            let mut seed = 5u64;
            for n in 0..1_000_000u64 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                wheel.insert(0, timer(200_000 + (seed >> 33) % span, n));
            }
            let memory = wheel.memory();
            assert!(
                memory < 10_000_000,
                "{memory} bytes for a million timers within {span} ms"
            );
        }
    }
}
