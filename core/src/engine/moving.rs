//! Copying forward: a segment that few records keep gives them to the log's end and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::entries::Open;
use crate::engine::progress::Progress;
use crate::engine::queue::level_of;
use crate::engine::retained::index_key;
use crate::engine::state::State;
use crate::engine::timers::Axis;
use crate::engine::wheel::Search;
use crate::store::chunk::Slice;
use crate::store::pages::Entry;
use crate::store::record::{self, Header, Kind, MessageRecord, Position};
use crate::store::recovery::Reader;
use crate::store::storage::FileId;

/// A segment is copied forward when fewer than one of so many of the entries that ever needed it still do.
const FEW: i64 = 8;

/// Records that are moved in one hold, and their bytes.
const MOVES_MAX: usize = 256;
const MOVE_BYTES_MAX: usize = 1 << 20;

/// What keeps a segment of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Its start position, which is its file's name.
    pub segment: u64,
    /// Entries that need it.
    pub entries: u64,
    /// The queue that most of them are in, with their number. Others are timed messages, messages of open
    /// transactions and last values.
    pub queue: Option<(Bytes, u64)>,
}

impl Engine {
    /// What keeps segments other than the newest, and whose it is.
    pub fn pinned(&self) -> Vec<Pinned> {
        let mut by_segment: BTreeMap<u64, (Bytes, u64)> = BTreeMap::new();
        let mut at = 0;
        loop {
            let state = self.lock();
            let Some((id, queue)) = state.queues.iter_from(at).next() else {
                break;
            };
            at = id + 1;
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            for level in queue.levels() {
                level.list().each_open(|open| match open {
                    Open::Page { first, count } => {
                        *counts.entry(state.pages.segment(first)).or_default() += count as u64;
                    }
                    Open::Entry { entry, .. } if { entry.position }.is_memory() => {}
                    Open::Entry { entry, .. } => *counts.entry(state.pages.segment(entry.position)).or_default() += 1,
                });
            }
            for (segment, count) in counts {
                let most = by_segment.entry(segment).or_default();
                if count > most.1 {
                    *most = (queue.spec.to_name(), count);
                }
            }
        }
        let mut state = self.lock();
        let current = state.log.end().0 / self.0.segment_size;
        let pinned = state
            .log
            .segments()
            .iter()
            .filter(|(number, segment)| *number < current && segment.pins > 0);
        pinned
            .map(|(number, segment)| Pinned {
                segment: number * self.0.segment_size,
                entries: segment.pins as u64,
                queue: by_segment.remove(&number),
            })
            .collect()
    }

    /// Copies the records of one segment forward, if there is one that few keep. `stuck` are those that were
    /// tried in vain.
    pub(crate) fn move_forward(&self, tight: bool, stuck: &mut BTreeSet<u64>) -> io::Result<()> {
        let chosen = {
            let mut state = self.lock();
            let current = state.log.end().0 / self.0.segment_size;
            let wall = self.0.clock.now().wall;
            state
                .log
                .segments()
                .iter()
                .find(|(number, segment)| {
                    *number + 1 < current
                        && segment.pins > 0
                        && segment.pins * FEW < segment.pinned as i64
                        && (segment.keep_until <= wall || tight)
                        && !stuck.contains(number)
                })
                .map(|(number, _)| number)
        };
        let Some(segment) = chosen else { return Ok(()) };
        let base = segment * self.0.segment_size;
        let mut reader = Reader::new(&*self.0.storage, FileId::segment(segment), 0);
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut moved = 0;
        loop {
            let next = reader.record(Position(base + reader.offset()))?;
            let is_last = !matches!(&next, Ok((header, _)) if header.kind != Kind::SegmentEnd);
            records.extend(next.ok().filter(|(header, _)| header.kind == Kind::Message));
            bytes += records.last().map_or(0, |(_, record): &(Header, Slice)| record.len());
            if is_last || records.len() >= MOVES_MAX || bytes >= MOVE_BYTES_MAX {
                bytes = 0;
                moved += self.hold(|state| {
                    let moves = records
                        .drain(..)
                        .filter(|(header, record)| state.move_record(*header, record));
                    moves.count()
                });
                // What was copied must not fill the memory.
                self.sync_to_end()
                    .map_err(|failed| io::Error::other(failed.to_string()))?;
            }
            if is_last {
                break;
            }
        }
        moved += self.move_timers_of(base..base + self.0.segment_size)?;
        let left = self.lock().log.segments().get(segment).pins;
        tracing::debug!(
            segment = base,
            moved,
            left,
            "copied what is needed of a segment forward"
        );
        if left > 0 {
            stuck.insert(segment);
        }
        Ok(())
    }

    fn move_timers_of(&self, span: Range<u64>) -> io::Result<usize> {
        let mut moved = 0;
        for axis in [Axis::Relative, Axis::Absolute] {
            let mut search = Search::default();
            loop {
                let (count, is_over) = self.hold(|state| state.move_timers(axis, &mut search, &span));
                moved += count;
                if count > 0 {
                    self.sync_to_end()
                        .map_err(|failed| io::Error::other(failed.to_string()))?;
                }
                if is_over {
                    break;
                }
            }
        }
        Ok(moved)
    }
}

impl State {
    /// Copies a record to the log's end if a queue or a last value needs it; gives whether one did. Timed messages
    /// are found by their timers.
    fn move_record(&mut self, header: Header, old: &Slice) -> bool {
        let view = MessageRecord::of(old);
        if !view.is_whole() || view.later().is_some() {
            return false;
        }
        let needs = |entry: Option<Entry>| entry.is_some_and(|entry| { entry.position } == header.position);
        let in_queue = view.destinations().any(|(id, sequence)| {
            let queue = self.queues.get(id);
            let level = queue.and_then(|queue| queue.level(level_of(sequence)));
            level.is_some_and(|level| !level.list().is_done(sequence) && needs(level.list().get(sequence)))
        });
        let is_last_value = view.is_retained() && needs(self.retained.get(&index_key(view.topic(), view.key())));
        if !in_queue && !is_last_value {
            return false;
        }
        let (position, new) = self.copy_record(header, old, true);
        self.moved(position, &new);
        true
    }

    /// Appends a copy of a message's record, which is marked as one. `here`: it says of itself that it lies where
    /// it does.
    pub(crate) fn copy_record(&mut self, header: Header, old: &Slice, here: bool) -> (Position, Slice) {
        let native = MessageRecord::of(old).native().start;
        let stored_at = self.stored_at;
        self.log.append(old.len(), stored_at, |bytes, position, synced| {
            bytes.copy_from_slice(old);
            if here {
                bytes[native + 28..native + 36].copy_from_slice(&position.0.to_be_bytes());
            }
            let header = Header {
                flags: (header.flags & !record::FLAG_MORE) | record::FLAG_MOVED,
                position,
                synced,
                stored_at,
                ..header
            };
            record::seal(bytes, header);
        })
    }

    /// A record is a copy of one that those who need it point to: now they point to the copy.
    pub(crate) fn moved(&mut self, position: Position, record: &Slice) {
        let view = MessageRecord::of(record);
        let size = record.len() as u32;
        if let Some(later) = view.later() {
            let entry = Entry {
                position,
                size,
                word: 0,
            };
            return self.replay_later(later, entry, view.native_queue().1);
        }
        let Self { queues, log, .. } = self;
        for (id, sequence) in view.destinations() {
            let Some(queue) = queues.get_mut(id) else {
                continue;
            };
            let Some(list) = queue.list_of(sequence).map(Progress::list_mut) else {
                continue;
            };
            let Some(old) = list.get(sequence).filter(|_| !list.is_done(sequence)) else {
                continue;
            };
            if { old.position } != position && list.replace(sequence, Entry { position, size, ..old }) {
                log.pin(position);
                log.unpin(old.position);
            }
        }
        if view.is_retained() {
            let address = index_key(view.topic(), view.key());
            if let Some(old) = self.retained.get(&address) {
                self.set_retained(address, Some(Entry { position, size, ..old }));
            }
        }
    }
}
