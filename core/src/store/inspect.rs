//! Looking at the data of a broker that does not run: every record, every checksum. Nothing is changed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::engine::Change;
use crate::message::Message;
use crate::store::checkpoint;
use crate::store::chunk::Slice;
use crate::store::log::FORMAT_VERSION;
use crate::store::pages::{self, ListId, Owner, PAGE_LEN};
use crate::store::record::{ALIGN, HEADER, Header, Kind, MessageRecord, Position, RECORD_MAX, RecordError, check};
use crate::store::recovery::{Reader, RecoveryError};
use crate::store::storage::{Area, FileId, FileStorage, Storage};

/// Bytes that are searched at once for the next whole record.
const BLOCK: usize = 1 << 20;

/// Why a data folder cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A broker runs on it.
    #[error("a running broker uses the data directory: stop it first")]
    Locked,
    /// There is no log in it.
    #[error("it is not the data directory of a broker")]
    NoStore,
    /// A newer broker wrote it.
    #[error("{0}")]
    Newer(RecoveryError),
    /// It cannot be read, or what was found cannot be told.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Something that is worth knowing about a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, within the data folder.
    pub file: String,
    /// Byte offset in it.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// What is lost by it.
    pub lost: String,
    /// Something that was safe is not there any more. Without, it is what a crash leaves behind.
    pub damage: bool,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub segments: u64,
    pub messages: u64,
    pub settlements: u64,
    pub changes: u64,
    pub bytes: u64,
    pub checkpoints: u64,
    pub pages: u64,
}

/// What kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    Segment,
    Message,
    Settle,
    Change,
}

/// One record, or a place where none can be read.
pub enum Item {
    /// A record.
    Record {
        position: u64,
        kind: RecordKind,
        /// Unix milliseconds.
        stored_at: u64,
        bytes: u64,
        /// More records of its atomic batch follow.
        batch_goes_on: bool,
        /// In words, without the message's own parts.
        words: String,
        /// Of a message record.
        message: Option<Message>,
        /// Durable queues and the sequence it has in each.
        destinations: Vec<(u32, u64)>,
        /// Message queue and offset in its topic.
        topic_queue: Option<(u32, u64)>,
    },
    /// Bytes that are no record although records follow.
    Gap { position: u64, bytes: u64, why: String },
}

/// A data folder that is only looked at.
pub struct Inspection {
    storage: FileStorage,
}

/// What a walk over a segment meets.
enum Met<'a> {
    Record(Header, &'a Slice),
    /// Something that is no record; the next whole one, if there is one in this segment.
    Gap {
        next: Option<u64>,
        why: RecordError,
    },
}

impl Inspection {
    /// Opens a data folder.
    ///
    /// # Errors
    /// [`InspectError`] says why not.
    pub fn open(folder: &Path) -> Result<Self, InspectError> {
        match FileStorage::open_to_read(folder) {
            Ok(storage) => Ok(Self { storage }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::WouldBlock => InspectError::Locked,
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => InspectError::NoStore,
                _ => InspectError::Io(error),
            }),
        }
    }

    // --- check ------------------------------------------------------------------------------------

    /// Verifies every record of the log, every checkpoint and every page of the index that the newest one names.
    ///
    /// # Errors
    /// When it cannot be read, or a newer broker wrote it.
    pub fn check(&self, found: &mut dyn FnMut(Finding)) -> Result<Counts, InspectError> {
        let mut counts = Counts::default();
        let start = self.check_checkpoints(&mut counts, found)?;
        self.check_log(start, &mut counts, found)?;
        Ok(counts)
    }

    fn check_log(
        &self,
        start: Option<Position>,
        counts: &mut Counts,
        found: &mut dyn FnMut(Finding),
    ) -> Result<(), InspectError> {
        let size = self.storage.segment_size();
        let segments = self.storage.files(Area::Log)?;
        let first_needed = start.map_or(0, |start| start.0 / size);
        if !segments.contains(&first_needed) && !segments.is_empty() {
            found(Finding {
                file: self.storage.name(FileId::segment(first_needed)),
                offset: 0,
                what: "the segment is missing".to_owned(),
                lost: "the broker does not start: what it holds cannot be made again".to_owned(),
                damage: true,
            });
        }
        let mut synced = start.unwrap_or(Position(0));
        let mut gaps = Vec::new();
        for &segment in &segments {
            counts.segments += 1;
            self.walk(segment, &mut |offset, met| {
                match met {
                    Met::Record(header, bytes) => {
                        synced = synced.max(header.synced);
                        counts.bytes += bytes.len() as u64;
                        let unread = match header.kind {
                            Kind::Message => {
                                counts.messages += 1;
                                !MessageRecord::of(bytes).is_whole()
                            }
                            Kind::Settle => {
                                counts.settlements += 1;
                                false
                            }
                            Kind::Change => {
                                counts.changes += 1;
                                Change::decode(&bytes[HEADER..]).is_none()
                            }
                            Kind::SegmentHead | Kind::SegmentEnd | Kind::CheckpointEnd => false,
                        };
                        if unread {
                            found(Finding {
                                file: self.storage.name(FileId::segment(segment)),
                                offset,
                                what: "a record whose checksum is right cannot be understood".to_owned(),
                                lost: "this record, at position ".to_owned() + &header.position.to_string(),
                                damage: true,
                            });
                        }
                    }
                    Met::Gap { next, why } => gaps.push((segment, offset, next, why)),
                }
                Ok(())
            })?;
        }
        for (segment, offset, next, why) in gaps {
            self.judge(segment, offset, next, why, synced, start, &segments, found)?;
        }
        Ok(())
    }

    /// Says whether a place without a record is the log's end, what a crash left, or damage.
    #[allow(clippy::too_many_arguments)]
    fn judge(
        &self,
        segment: u64,
        offset: u64,
        next: Option<u64>,
        why: RecordError,
        synced: Position,
        start: Option<Position>,
        segments: &[u64],
        found: &mut dyn FnMut(Finding),
    ) -> io::Result<()> {
        let position = segment * self.storage.segment_size() + offset;
        let file = self.storage.name(FileId::segment(segment));
        let was_safe = position < synced.0;
        if !was_safe && next.is_none() && why == RecordError::Blank {
            // Nothing was written here: the log's end, or a segment that was made ahead.
            return Ok(());
        }
        let len = self.storage.len(FileId::segment(segment))?;
        let lost = match next {
            _ if !was_safe => "nothing that was confirmed: the broker cuts the log here".to_owned(),
            Some(next) => format!("{} bytes, up to the next whole record at byte {next}", next - offset),
            None => {
                let later = segments.iter().filter(|other| **other > segment).count();
                format!(
                    "up to {} bytes, the rest of the file{}",
                    len.saturating_sub(offset),
                    if later > 0 { "; later segments were read" } else { "" }
                )
            }
        };
        let starts = start.is_some_and(|start| position < start.0);
        let lost = match (was_safe, starts) {
            (true, true) => lost + "; the broker starts, messages that lie there are not delivered",
            (true, false) => lost + "; the broker does not start",
            (false, _) => lost,
        };
        found(Finding {
            file,
            offset,
            what: why.to_string(),
            lost,
            damage: was_safe,
        });
        Ok(())
    }

    /// Gives where the log is to be applied from, after the newest whole checkpoint.
    fn check_checkpoints(
        &self,
        counts: &mut Counts,
        found: &mut dyn FnMut(Finding),
    ) -> Result<Option<Position>, InspectError> {
        let mut newest = None;
        for number in self.storage.files(Area::Checkpoints)?.into_iter().rev() {
            counts.checkpoints += 1;
            let trailer = checkpoint::check(&self.storage, number)?;
            match trailer {
                None => found(Finding {
                    file: self.storage.name(checkpoint::checkpoint_file(number)),
                    offset: 0,
                    what: "the checkpoint is not whole".to_owned(),
                    lost: "nothing, as long as an older one or the whole log is there".to_owned(),
                    damage: false,
                }),
                Some(trailer) if newest.is_none() => {
                    newest = Some(trailer.start);
                    self.check_pages(number, counts, found)?;
                }
                Some(_) => {}
            }
        }
        Ok(newest)
    }

    fn check_pages(
        &self,
        number: u64,
        counts: &mut Counts,
        found: &mut dyn FnMut(Finding),
    ) -> Result<(), InspectError> {
        let mut named = Vec::new();
        let mut queues = BTreeMap::new();
        let mut topics = BTreeMap::new();
        checkpoint::read(&self.storage, number, |change| match change {
            Change::Queue { id, queue } => {
                queues.insert(id, text(&queue.name));
            }
            Change::TopicAt { id, name, .. } => {
                topics.insert(id, text(&name));
            }
            Change::Page {
                list,
                number,
                stored: Some(stored),
                ..
            } => named.push((list, number, stored)),
            _ => {}
        })?;
        for (list, index, stored) in named {
            counts.pages += 1;
            let (file, offset) = pages::place(stored);
            let id = FileId {
                area: Area::Pages,
                number: file,
            };
            let mut bytes = [0; PAGE_LEN];
            let read = self.storage.read(id, offset, &mut bytes).unwrap_or(0);
            let what = if read < PAGE_LEN {
                "the page is missing"
            } else {
                match pages::decode(ListId(list), index, &bytes) {
                    Ok(_) => continue,
                    Err(why) => why,
                }
            };
            let whose = match ListId(list).owner() {
                Owner::Queue(queue, _) => format!("queue {}", queues.get(&queue).map_or("?", String::as_str)),
                Owner::MessageQueue(topic, queue) => {
                    format!(
                        "topic {}, message queue {queue}",
                        topics.get(&topic).map_or("?", String::as_str)
                    )
                }
            };
            found(Finding {
                file: self.storage.name(id),
                offset,
                what: what.to_owned(),
                lost: format!("the way to 64 messages of {whose}, from sequence {} on", index * 64),
                damage: true,
            });
        }
        Ok(())
    }

    // --- dump -------------------------------------------------------------------------------------

    /// Calls `each` with every record from position `from` up to `to`, in order, until it gives an error.
    ///
    /// # Errors
    /// That error, or why the log cannot be read.
    pub fn dump(&self, from: u64, to: u64, each: &mut dyn FnMut(Item) -> io::Result<()>) -> Result<(), InspectError> {
        let size = self.storage.segment_size();
        for segment in self.storage.files(Area::Log)? {
            let base = segment * size;
            if base.saturating_add(size) <= from || base >= to {
                continue;
            }
            self.walk(segment, &mut |offset, met| {
                let position = base + offset;
                if !(from..to).contains(&position) {
                    return Ok(());
                }
                match met {
                    Met::Record(header, bytes) => each(item(header, bytes)),
                    Met::Gap {
                        next: None,
                        why: RecordError::Blank,
                    } => Ok(()),
                    Met::Gap { next, why } => each(Item::Gap {
                        position,
                        bytes: next.map_or(0, |next| next - offset),
                        why: why.to_string(),
                    }),
                }
            })?;
        }
        Ok(())
    }

    /// Meets everything in a segment, front to back.
    fn walk(&self, segment: u64, each: &mut dyn FnMut(u64, Met<'_>) -> io::Result<()>) -> Result<(), InspectError> {
        let file = FileId::segment(segment);
        let base = segment * self.storage.segment_size();
        let written_end = self.storage.written_end(file)?.min(self.storage.len(file)?);
        let mut reader = Reader::new(&self.storage, file, 0);
        loop {
            let offset = reader.offset();
            match reader.record(Position(base + offset))? {
                Ok((header, bytes)) => {
                    if header.kind == Kind::SegmentHead {
                        let version = bytes[HEADER..HEADER + 4].try_into().map_or(0, u32::from_le_bytes);
                        if version > FORMAT_VERSION {
                            return Err(InspectError::Newer(RecoveryError::NewerFormat {
                                segment: base,
                                version,
                            }));
                        }
                    }
                    each(offset, Met::Record(header, &bytes))?;
                    if header.kind == Kind::SegmentEnd {
                        return Ok(());
                    }
                }
                Err(why) => {
                    let next = self.next_whole(file, base, offset, written_end)?;
                    each(offset, Met::Gap { next, why })?;
                    let Some(next) = next else { return Ok(()) };
                    reader = Reader::new(&self.storage, file, next);
                }
            }
        }
    }

    /// The first whole record behind a bad one.
    fn next_whole(&self, file: FileId, base: u64, bad: u64, written_end: u64) -> io::Result<Option<u64>> {
        let mut at = bad + ALIGN as u64;
        let mut buffer = vec![0; BLOCK];
        while at < written_end {
            let read = self.storage.read(file, at, &mut buffer)?;
            let mut skip = 0;
            while skip + HEADER <= read {
                let position = Position(base + at + skip as u64);
                if buffer[skip + 16..skip + 24] == position.0.to_le_bytes() {
                    let claimed = buffer[skip..skip + 4].try_into().map_or(0, u32::from_le_bytes) as usize;
                    if (HEADER..=RECORD_MAX).contains(&claimed) {
                        let mut bytes = vec![0; claimed];
                        let got = self.storage.read(file, at + skip as u64, &mut bytes)?;
                        if check(&bytes[..got], position).is_ok() {
                            return Ok(Some(at + skip as u64));
                        }
                    }
                }
                skip += ALIGN;
            }
            if read < buffer.len() || skip == 0 {
                break;
            }
            at += skip as u64;
        }
        Ok(None)
    }
}

fn item(header: Header, bytes: &Slice) -> Item {
    let payload = &bytes[HEADER..];
    let view = MessageRecord::of(bytes);
    let is_message = header.kind == Kind::Message && view.is_whole();
    let (kind, words) = match header.kind {
        Kind::Message => (
            RecordKind::Message,
            if is_message { "" } else { "cannot be understood" }.to_owned(),
        ),
        Kind::Settle => (RecordKind::Settle, settled(payload)),
        Kind::Change => (
            RecordKind::Change,
            Change::decode(payload).map_or("cannot be understood".to_owned(), |change| words_of(&change)),
        ),
        Kind::SegmentHead => (RecordKind::Segment, "begins".to_owned()),
        Kind::SegmentEnd | Kind::CheckpointEnd => {
            let next = payload.first_chunk().copied().map_or(0, u64::from_le_bytes);
            (RecordKind::Segment, format!("ends, goes on at {next}"))
        }
    };
    Item::Record {
        position: header.position.0,
        kind,
        stored_at: header.stored_at.0,
        bytes: bytes.len() as u64,
        batch_goes_on: header.flags & crate::store::record::FLAG_MORE != 0,
        words,
        message: is_message.then(|| Message::new(bytes.clone())),
        destinations: if is_message {
            view.destinations().collect()
        } else {
            Vec::new()
        },
        topic_queue: if is_message { view.topic_queue() } else { None },
    }
}

fn settled(payload: &[u8]) -> String {
    let runs = payload.chunks_exact(16).filter_map(|run| {
        let queue = u32::from_le_bytes(*run.first_chunk()?);
        let count = u64::from(u32::from_le_bytes(run.get(4..8)?.try_into().ok()?));
        let first = u64::from_le_bytes(run.get(8..16)?.try_into().ok()?);
        (count > 0).then(|| format!("queue {queue}: {first}..{}", first.saturating_add(count)))
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn words_of(change: &Change) -> String {
    match change {
        Change::Exchange(exchange) => format!("exchange {} declared, {:?}", text(&exchange.name), exchange.kind),
        Change::ExchangeGone(name) => format!("exchange {} deleted", text(name)),
        Change::Queue { id, queue } => format!("queue {id} declared: {}", text(&queue.name)),
        Change::QueueGone { id } => format!("queue {id} deleted"),
        Change::Topic { name, queues } => format!("topic {} made, {queues} message queues", text(name)),
        Change::Group { group, topic } => format!("group {} registered on topic {}", text(group), text(topic)),
        Change::Offset {
            group,
            topic,
            queue_id,
            offset,
        } => format!("group {} committed {offset} of {}/{queue_id}", text(group), text(topic)),
        Change::Holder { name, keep } => format!("session {} taken, kept {keep} ms", text(name)),
        Change::HolderGone(name) => format!("session {} ended", text(name)),
        Change::Consumed { id } => format!("queue {id} had its first consumer"),
        Change::Stopped { delivered } => format!("stopped in good order, {} queues", delivered.len()),
        Change::Purged { id, ranges } => {
            let count: u64 = ranges.iter().map(|(_, count)| *count).sum();
            format!("queue {id}: {count} messages removed")
        }
        Change::HalfDone { position } => format!("half message {position} is done with"),
        other => format!("{other:?}"),
    }
}
