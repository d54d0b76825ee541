//! Checkpoints of the state: how one is taken, and read back at a start.
//!
//! A checkpoint is taken in slices while the broker works. It notes where the log was when it began; what
//! happened since is applied again at a restart, on a state that holds some of it already. Therefore every
//! change can be applied twice, see [`super::replay`]. When one is due, and what may go then, is decided in
//! [`super::maintenance`].

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::change::Change;
use crate::engine::entries::{EntryList, Open, Page, Slot};
use crate::engine::maintenance::{Checkpoint, Maintenance};
use crate::engine::progress::Progress;
use crate::engine::queue::level_of;
use crate::engine::replay::replay_change;
use crate::engine::router::QueueId;
use crate::engine::state::{STEPS_MAX, State};
use crate::engine::timers::TimerCursor;
use crate::request::{Binding, Destination, Source};
use crate::store::checkpoint::{self, CheckpointWriter, Trailer};
use crate::store::pages::{ENTRY_LEN, Entry, ListId, Owner, PAGE_ENTRIES, get_entry, put_entry};
use crate::store::record::Position;
use crate::store::storage::{Area, Storage};
use crate::time::Millis;

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
    /// Takes a checkpoint now.
    ///
    /// # Errors
    /// The disk refused it; the ones before stay.
    pub fn checkpoint(&self) -> io::Result<()> {
        self.take_checkpoint(&mut self.maintenance())
    }

    pub(super) fn take_checkpoint(&self, maintenance: &mut Maintenance) -> io::Result<()> {
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
}

impl Cursor {
    /// Goes on with the next queue or topic.
    fn next_list(&mut self) {
        self.at += 1;
        self.message_queue = 0;
        self.sequence = None;
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
