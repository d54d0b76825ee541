//! Checkpoints of the state, and what follows from them: a short restart, and segments that may go.
//!
//! A checkpoint is taken in slices while the broker works. It notes where the log was when it began; what
//! happened since is applied again at a restart, on a state that holds some of it already. Therefore every
//! change can be applied twice, see [`super::replay`].

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::boundary::Shortage;
use crate::engine::Engine;
use crate::engine::change::Change;
use crate::engine::entries::{EntryList, Open, Page, Slot};
use crate::engine::progress::Progress;
use crate::engine::queue::level_of;
use crate::engine::replay::replay_change;
use crate::engine::router::QueueId;
use crate::engine::state::{STEPS_MAX, State};
use crate::engine::timers::TimerCursor;
use crate::engine::writer::is_full;
use crate::request::{Binding, Destination, Source};
use crate::store::checkpoint::{self, CheckpointWriter, Trailer};
use crate::store::pages::{ENTRY_LEN, Entry, ListId, Owner, PAGE_ENTRIES, get_entry, put_entry};
use crate::store::record::Position;
use crate::store::storage::{Area, FileId, Storage};
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
struct Checkpoint {
    number: u64,
    start: Position,
}

/// What the maintenance of the store has to remember.
#[derive(Default)]
pub(crate) struct Maintenance {
    /// The last two, the older first.
    checkpoints: VecDeque<Checkpoint>,
    /// Size of the last one, bytes.
    size: u64,
    taken_at: Millis,
    /// Little room is left: topics give up messages before their time.
    tight: bool,
    /// The log says that publishers wait for room.
    told_full: bool,
    /// Segments that were not to be copied forward.
    stuck: BTreeSet<u64>,
    /// Segments that nothing needs since a checkpoint of that number.
    unneeded: VecDeque<(u64, u64)>,
}

/// How far a checkpoint has come.
#[derive(Default)]
struct Cursor {
    stage: Stage,
    /// The queue or topic that is next, and in a topic the message queue.
    at: usize,
    message_queue: usize,
    /// In its list, the first sequence that is missing; nothing when the list has not begun.
    sequence: Option<u64>,
    names: Vec<Bytes>,
    /// The last value that comes next.
    address: Vec<u8>,
    timers: TimerCursor,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Front,
    Queues,
    Topics,
    Groups,
    Timers,
    Halves,
    Holders,
    Retained,
    Rest,
    Keys,
    Pops,
    Done,
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

    /// Takes a checkpoint now.
    ///
    /// # Errors
    /// The disk refused it; the ones before stay.
    pub fn checkpoint(&self) -> io::Result<()> {
        self.take_checkpoint(&mut self.maintenance())
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

    fn take_checkpoint(&self, maintenance: &mut Maintenance) -> io::Result<()> {
        let (start, number, stored_at) = {
            let state = self.lock();
            (state.log.end(), state.pages.begin_checkpoint(), state.stored_at)
        };
        maintenance.taken_at = self.0.clock.now().mono;
        let mut writer = CheckpointWriter::new(&self.0.storage, number)?;
        let mut cursor = Cursor::default();
        while cursor.stage != Stage::Done {
            self.lock()
                .checkpoint_slice(&mut cursor, &mut |change| writer.put(change));
            writer.flush()?;
        }
        let (end, pages) = {
            let state = self.lock();
            (state.log.end(), Arc::clone(&state.pages))
        };
        // The checkpoint holds effects of the log up to here.
        self.sync_to_end()
            .map_err(|failed| io::Error::other(failed.to_string()))?;
        pages.sync()?;
        let trailer = Trailer {
            start,
            end,
            pages_end: pages.end(),
            changes: writer.changes(),
            stored_at,
        };
        maintenance.size = writer.finish(trailer)?;
        maintenance.checkpoints.push_back(Checkpoint { number, start });
        while maintenance.checkpoints.len() > 2 {
            maintenance.checkpoints.pop_front();
        }
        let oldest = maintenance.checkpoints[0].number;
        for old in self.0.storage.files(Area::Checkpoints)? {
            if old < oldest {
                self.0.storage.remove(checkpoint::checkpoint_file(old))?;
            }
        }
        if maintenance.checkpoints.len() == 2 {
            pages.forget_checkpoints_below(oldest);
        }
        Ok(())
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

impl Cursor {
    /// Goes on with the next queue or topic.
    fn next_list(&mut self) {
        self.at += 1;
        self.message_queue = 0;
        self.sequence = None;
    }
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

/// Puts one page of a list, or what is behind its pages; gives whether that was the last of it.
fn checkpoint_list(
    id: ListId,
    list: &EntryList,
    bytes: u64,
    at: &mut Option<u64>,
    put: &mut dyn FnMut(&Change),
) -> bool {
    if list.end() == 0 {
        return true;
    }
    let Some((number, page)) = list.page_at(at.unwrap_or(0)) else {
        let (start, entries, done) = list.tail();
        put(&Change::Tail {
            list: id.0,
            head: list.head(),
            start,
            done,
            bytes,
            entries: encode_entries(entries),
        });
        return true;
    };
    let (stored, entries) = match &page.slot {
        Slot::Stored(stored) => (Some(*stored), Bytes::new()),
        Slot::Resident(entries) => (None, encode_entries(&entries[..])),
    };
    put(&Change::Page {
        list: id.0,
        number,
        done: page.done,
        first: page.first.0,
        mixed: page.mixed,
        stored,
        entries,
    });
    *at = Some((number + 1) * PAGE_ENTRIES as u64);
    false
}

fn encode_entries(entries: &[Entry]) -> Bytes {
    let mut bytes = vec![0; entries.len() * ENTRY_LEN];
    for (slot, entry) in bytes.chunks_exact_mut(ENTRY_LEN).zip(entries) {
        put_entry(slot, *entry);
    }
    bytes.into()
}

fn entry_at(entries: &[u8], at: usize) -> Entry {
    entries
        .get(at * ENTRY_LEN..(at + 1) * ENTRY_LEN)
        .map_or(Entry::NONE, get_entry)
}

/// The newest checkpoint that is whole, with its number. Others are removed.
pub(crate) fn find(storage: &dyn Storage) -> io::Result<Option<(u64, Trailer)>> {
    let mut found = None;
    for number in storage.files(Area::Checkpoints)?.into_iter().rev() {
        if found.is_none() {
            found = checkpoint::check(storage, number)?.map(|trailer| (number, trailer));
        }
        if found.is_none_or(|(newest, _)| newest != number) {
            storage.remove(checkpoint::checkpoint_file(number))?;
        }
    }
    Ok(found)
}

impl State {
    /// Puts the next slice of a checkpoint.
    fn checkpoint_slice(&mut self, cursor: &mut Cursor, put: &mut dyn FnMut(&Change)) {
        let mut steps = 0;
        while steps < STEPS_MAX {
            steps += 1;
            let is_done = match cursor.stage {
                Stage::Front => {
                    self.checkpoint_front(put);
                    true
                }
                Stage::Queues => self.checkpoint_queue(cursor, put),
                Stage::Topics => self.checkpoint_topic(cursor, put),
                Stage::Groups => self.checkpoint_group(cursor, put),
                Stage::Timers => self.checkpoint_timers(&mut cursor.timers, put),
                Stage::Halves => self.checkpoint_halves(&mut cursor.sequence, put),
                Stage::Holders => self.checkpoint_holder(cursor.names.pop(), put),
                Stage::Retained => self.checkpoint_retained(&mut cursor.address, put),
                Stage::Rest => {
                    self.checkpoint_rest(put);
                    true
                }
                Stage::Keys => self.checkpoint_dedup(&mut cursor.at, &mut cursor.sequence, put),
                Stage::Pops => self.checkpoint_pops(&mut cursor.at, put),
                Stage::Done => return,
            };
            if is_done {
                cursor.stage = match cursor.stage {
                    Stage::Front => Stage::Queues,
                    Stage::Queues => Stage::Topics,
                    Stage::Topics => Stage::Groups,
                    Stage::Groups => Stage::Timers,
                    Stage::Timers => Stage::Halves,
                    Stage::Halves => Stage::Holders,
                    Stage::Holders => Stage::Retained,
                    Stage::Retained => Stage::Rest,
                    Stage::Rest => Stage::Keys,
                    Stage::Keys => Stage::Pops,
                    Stage::Pops | Stage::Done => Stage::Done,
                };
                cursor.at = 0;
                cursor.sequence = None;
                cursor.names = match cursor.stage {
                    Stage::Groups => self.groups.keys().cloned().collect(),
                    Stage::Holders => self.holder_names(),
                    _ => Vec::new(),
                };
            }
        }
    }

    /// What has to be as it was at the very begin: names may be used again later.
    fn checkpoint_front(&mut self, put: &mut dyn FnMut(&Change)) {
        put(&Change::Numbers {
            next_queue: self.queues.next_id(),
        });
        for (number, segment) in self.log.segments().iter() {
            put(&Change::Segment {
                number,
                keep_until: segment.keep_until.0,
                pinned: segment.pinned,
            });
        }
        for exchange in self.router.exchanges().filter(|exchange| exchange.durable) {
            put(&Change::Exchange(exchange.clone()));
        }
        for (binding, cookie) in self.router.bindings_to_exchanges() {
            let Destination::Exchange(name) = &binding.destination else {
                continue;
            };
            if self.is_durable(&binding.source) && self.router.exchange(name).is_some_and(|to| to.durable) {
                let binding = Binding {
                    cookie: cookie.clone(),
                    ..binding.clone()
                };
                put(&Change::Bound { queue: None, binding });
            }
        }
    }

    fn is_durable(&self, source: &Source) -> bool {
        match source {
            Source::Exchange(name) => self.router.exchange(name).is_some_and(|exchange| exchange.durable),
            Source::Topics | Source::Everything => true,
        }
    }

    /// One step of the queues; gives whether that was the last.
    fn checkpoint_queue(&mut self, cursor: &mut Cursor, put: &mut dyn FnMut(&Change)) -> bool {
        let Some((id, queue)) = self.queues.iter_from(cursor.at as QueueId).next() else {
            return true;
        };
        if id as usize != cursor.at {
            // The one that was next is gone.
            cursor.next_list();
            cursor.at = id as usize;
        }
        if !queue.spec.durable {
            cursor.next_list();
            return false;
        }
        if cursor.sequence.is_none() && cursor.message_queue == 0 {
            put(&Change::Queue {
                id,
                queue: queue.spec.to_queue(),
            });
            if queue.had_consumer {
                put(&Change::Consumed { id });
            }
            Self::checkpoint_policy(id, queue, put);
            for (binding, cookie) in self.router.bindings_of(id) {
                if self.is_durable(&binding.source) {
                    let binding = Binding {
                        cookie: cookie.clone(),
                        ..binding.clone()
                    };
                    put(&Change::Bound {
                        queue: Some(id),
                        binding,
                    });
                }
            }
        }
        // One list for each level of priority; they are counted as message queues of a topic are.
        let Some(level) = queue.levels().nth(cursor.message_queue) else {
            Self::checkpoint_finishing(id, queue, put);
            cursor.next_list();
            return false;
        };
        let list = ListId::queue(id, level_of(level.next()));
        if checkpoint_list(list, level.list(), level.bytes(), &mut cursor.sequence, put) {
            cursor.message_queue += 1;
            cursor.sequence = None;
        }
        false
    }

    fn checkpoint_topic(&mut self, cursor: &mut Cursor, put: &mut dyn FnMut(&Change)) -> bool {
        let Some(topic) = self.topics.get(cursor.at) else {
            return true;
        };
        let id = cursor.at as u32;
        if cursor.message_queue == 0 && cursor.sequence.is_none() {
            put(&Change::TopicAt {
                id,
                name: topic.name.clone(),
                queues: topic.queues.len() as u32,
            });
            for group in self.topic_groups.get(&topic.name).into_iter().flatten() {
                put(&Change::Group {
                    group: group.clone(),
                    topic: topic.name.clone(),
                });
            }
        }
        let Some(queue) = topic.queues.get(cursor.message_queue) else {
            cursor.next_list();
            return false;
        };
        let list = ListId::message_queue(id, cursor.message_queue as u32);
        if checkpoint_list(list, &queue.entries, 0, &mut cursor.sequence, put) {
            cursor.message_queue += 1;
            cursor.sequence = None;
            if cursor.message_queue == topic.queues.len() {
                cursor.next_list();
            }
        }
        false
    }

    fn checkpoint_group(&mut self, cursor: &mut Cursor, put: &mut dyn FnMut(&Change)) -> bool {
        let Some(name) = cursor.names.get(cursor.at) else {
            return true;
        };
        cursor.at += 1;
        if let Some(group) = self.groups.get(name) {
            for ((topic, queue_id), offset) in &group.offsets {
                put(&Change::Offset {
                    group: name.clone(),
                    topic: topic.clone(),
                    queue_id: *queue_id,
                    offset: *offset,
                });
            }
            for ((topic, queue_id), offset) in &group.resets {
                put(&Change::Reset {
                    group: name.clone(),
                    topic: topic.clone(),
                    queue_id: *queue_id,
                    offset: *offset,
                });
            }
        }
        false
    }

    /// What is small enough for one hold.
    fn checkpoint_rest(&mut self, put: &mut dyn FnMut(&Change)) {
        for (group, retry) in &self.retries {
            put(&Change::Retry {
                group: group.clone(),
                retry: retry.clone(),
            });
        }
        // Groups may wait for a topic that is not there yet.
        for (topic, groups) in &self.topic_groups {
            if self.topic_ids.contains_key(topic) {
                continue;
            }
            for group in groups {
                put(&Change::Group {
                    group: group.clone(),
                    topic: topic.clone(),
                });
            }
        }
    }

    /// Reads a checkpoint back into a state in which there is nothing yet.
    pub(crate) fn read_checkpoint(&mut self, storage: &dyn Storage, number: u64, trailer: &Trailer) -> io::Result<()> {
        self.pages.set_checkpoint(number);
        checkpoint::read(storage, number, |change| {
            if !self.restore(&change) {
                replay_change(self, change);
            }
        })?;
        let queues = self
            .queues
            .iter()
            .flat_map(|(_, queue)| queue.levels())
            .map(Progress::list);
        let topics = self
            .topics
            .iter()
            .flat_map(|topic| &topic.queues)
            .map(|queue| &queue.entries);
        let used = queues.chain(topics).flat_map(EntryList::stored_pages).collect();
        self.pages.recovered(trailer.pages_end, used);
        self.stored_at = self.stored_at.max(trailer.stored_at);
        Ok(())
    }

    /// Takes back what only checkpoints hold. Gives whether it was that.
    pub(crate) fn restore(&mut self, change: &Change) -> bool {
        match change {
            Change::Page {
                list,
                number,
                done,
                first,
                mixed,
                stored,
                entries,
            } => {
                let slot = match stored {
                    Some(stored) => Slot::Stored(*stored),
                    None => Slot::Resident(Box::new(std::array::from_fn(|at| entry_at(entries, at)))),
                };
                let page = Page {
                    done: *done,
                    first: Position(*first),
                    mixed: *mixed,
                    slot,
                };
                if let Some(entries) = self.list(ListId(*list)) {
                    entries.restore_page(*number, page);
                }
            }
            Change::Tail {
                list,
                head,
                start,
                done,
                bytes,
                entries,
            } => {
                let id = ListId(*list);
                let tail: Vec<Entry> = (0..entries.len() / ENTRY_LEN).map(|at| entry_at(entries, at)).collect();
                if let Some(list) = self.list(id) {
                    list.restore_tail(*start, &tail, *done);
                    list.restored(*head);
                }
                if let Owner::Queue(queue, level) = id.owner() {
                    self.restored_queue(queue, level, *bytes);
                }
            }
            Change::Numbers { next_queue } => {
                self.queues.use_up_to(*next_queue);
            }
            Change::Segment {
                number,
                keep_until,
                pinned,
            } => {
                let segment = self.log.segments().at(*number);
                segment.keep_until = Millis(*keep_until);
                segment.pinned = *pinned;
            }
            Change::TopicAt { id, name, queues } => {
                let put = self.put_topic(name.clone(), *queues);
                debug_assert_eq!(put, *id);
            }
            _ => return false,
        }
        true
    }

    /// A queue's list is complete: what was only in memory is gone, the rest needs its segments.
    fn restored_queue(&mut self, id: u32, level: u8, bytes: u64) {
        let Self { queues, log, pages, .. } = self;
        let Some(queue) = queues.get_mut(id) else {
            return;
        };
        let Some(progress) = queue.level_mut(level) else { return };
        let list = progress.list_mut();
        let mut lost = Vec::new();
        let mut bytes = bytes;
        list.each_open(|open| match open {
            Open::Page { first, count } => log.segments().at(pages.segment(first)).pins += count,
            Open::Entry { sequence, entry } if { entry.position }.is_memory() => {
                lost.push(sequence);
                bytes = bytes.saturating_sub(entry.body_len());
            }
            Open::Entry { entry, .. } => log.segments().at(pages.segment(entry.position)).pins += 1,
        });
        for sequence in lost {
            list.finish(sequence..sequence + 1, |_, _| {});
        }
        progress.restored(bytes);
    }
}
