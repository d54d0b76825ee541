//! Reading the log back: finds its end, tells a torn tail from damage, and seals the old end so that no
//! position ever names two records. The rules are told in `FORMAT.md`, "Recovery".

use std::collections::HashSet;
use std::io;

use crate::store::checkpoint::Trailer;
use crate::store::chunk::{ChunkWriter, Slice};
use crate::store::log::{END_LEN, FORMAT_VERSION};
use crate::store::record::{self, ALIGN, HEADER, Header, Kind, Position};
use crate::store::storage::{Area, FileId, Storage};
use crate::time::Millis;

/// Why a log cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A newer broker wrote it.
    #[error("segment {segment:020} has format version {version}, this broker reads up to {FORMAT_VERSION}")]
    NewerFormat {
        /// Start position of the segment.
        segment: u64,
        /// Its version.
        version: u32,
    },
    /// A record that was synced is not readable any more.
    #[error("segment {segment:020} is damaged at byte {offset}: {why}")]
    Damaged {
        /// Start position of the segment, which is its file's name.
        segment: u64,
        /// Byte offset in it.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// The storage failed.
    #[error("cannot read the log: {0}")]
    Io(#[from] io::Error),
}

/// Where reading ended and where writing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The segment in which writing goes on: no position in it was ever used.
    pub next_segment: u64,
    /// The last stored time, so that stored time never decreases.
    pub last_stored_at: Millis,
}

/// Calls `apply` with every record of the log in order, then seals its end and claims the segment in which
/// writing goes on. `unwritten_max` bounds what the last life may have shown of records that it never wrote.
pub(crate) fn replay(
    storage: &dyn Storage,
    segment_size: u64,
    unwritten_max: u64,
    from: Option<Trailer>,
    mut apply: impl FnMut(Header, Slice),
) -> Result<Recovered, RecoveryError> {
    let segments = storage.files(Area::Log)?;
    let start = from.map_or(Position(0), |trailer| trailer.start);
    let first = start.0 / segment_size;
    let mut recovered = Recovered {
        // Consumers may have seen records of segments that were never claimed: those are skipped too.
        next_segment: segments
            .last()
            .map_or(0, |last| last + 1 + unwritten_max.div_ceil(segment_size)),
        last_stored_at: from.map_or(Millis(0), |trailer| trailer.stored_at),
    };
    // A checkpoint holds effects of everything up to its end.
    let mut synced = from.map_or(Position(0), |trailer| trailer.end);
    if !segments.contains(&first) && (from.is_some() || !segments.is_empty()) {
        return Err(RecoveryError::Damaged {
            segment: first * segment_size,
            offset: 0,
            why: match from {
                Some(_) => "the segment is missing",
                None => "the log's begin was given up, and no checkpoint can be read",
            }
            .to_owned(),
        });
    }
    let mut current = segments.contains(&first).then_some(first);
    // What lies before the checkpoint is not applied, but may be needed.
    let mut reached: HashSet<u64> = segments.iter().copied().filter(|segment| *segment < first).collect();
    let mut batch = Batch::default();
    while let Some(segment) = current {
        reached.insert(segment);
        let offset = if segment == first { start.0 % segment_size } else { 0 };
        let scan = scan_segment(
            storage,
            (segment, offset),
            segment_size,
            &mut synced,
            &mut recovered,
            &mut |header, record| {
                batch.take(header, record, &mut apply);
            },
        )?;
        let end = match scan {
            Scan::Ended { next } if segments.contains(&next) => {
                current = Some(next);
                continue;
            }
            // A crash came between the seal and the claim: nobody saw anything of that life.
            Scan::Ended { next } => {
                recovered.next_segment = next;
                None
            }
            Scan::Stopped { offset } => Some(segment * segment_size + offset),
        };
        current = None;
        let end = match batch.start() {
            Some(start) if start < synced => return Err(cut_batch(start, segment_size)),
            // A batch is recovered whole or not at all: the log ends before it.
            Some(start) => Some(start.0),
            None => end,
        };
        if let Some(end) = end {
            let (last, offset) = (end / segment_size, end % segment_size);
            reached.retain(|segment| *segment <= last);
            seal_tail(storage, last, segment_size, offset, recovered.next_segment)?;
        }
    }
    // When only the last process died, what it wrote was read from the kernel. What is built on it now must not
    // lose it to a power cut.
    let unsynced = reached
        .iter()
        .filter(|segment| (**segment + 1) * segment_size > synced.0);
    for segment in unsynced {
        storage.sync(FileId::segment(*segment))?;
    }
    for unreached in segments.into_iter().filter(|segment| !reached.contains(segment)) {
        storage.remove(FileId::segment(unreached))?;
    }
    storage.claim(FileId::segment(recovered.next_segment), segment_size)?;
    Ok(recovered)
}

/// Records of a batch whose last one was not read yet.
#[derive(Default)]
struct Batch(Vec<(Header, Slice)>);

impl Batch {
    /// Takes the next record of the log; applies it with the others of its batch when that is whole.
    fn take(&mut self, header: Header, record: Slice, apply: &mut impl FnMut(Header, Slice)) {
        if header.flags & record::FLAG_MORE != 0 {
            self.0.push((header, record));
            return;
        }
        for (header, record) in self.0.drain(..) {
            apply(header, record);
        }
        apply(header, record);
    }

    fn start(&self) -> Option<Position> {
        self.0.first().map(|(header, _)| header.position)
    }
}

fn cut_batch(start: Position, segment_size: u64) -> RecoveryError {
    RecoveryError::Damaged {
        segment: start.0 / segment_size * segment_size,
        offset: start.0 % segment_size,
        why: "the end of the batch that begins here is missing".to_owned(),
    }
}

enum Scan {
    /// The segment was ended in good order.
    Ended { next: u64 },
    /// The first place without a record, where the log ends.
    Stopped { offset: u64 },
}

fn scan_segment(
    storage: &dyn Storage,
    (segment, offset): (u64, u64),
    segment_size: u64,
    synced: &mut Position,
    recovered: &mut Recovered,
    apply: &mut impl FnMut(Header, Slice),
) -> Result<Scan, RecoveryError> {
    let base = segment * segment_size;
    // Most of a claimed segment was never written: a start must not pay for reading that.
    let written_end = storage.written_end(FileId::segment(segment))?.min(segment_size);
    let mut reader = Reader::new(storage, FileId::segment(segment), offset);
    loop {
        let position = Position(base + reader.offset);
        let record = match reader.record(position)? {
            Ok(record) => record,
            Err(why) => {
                let later = later_synced_mark(storage, segment, base, reader.offset, written_end)?;
                if position < *synced || later.is_some_and(|mark| position < mark) {
                    return Err(RecoveryError::Damaged {
                        segment: base,
                        offset: reader.offset,
                        why: why.to_string(),
                    });
                }
                return Ok(Scan::Stopped { offset: reader.offset });
            }
        };
        let (header, bytes) = record;
        *synced = (*synced).max(header.synced);
        recovered.last_stored_at = recovered.last_stored_at.max(header.stored_at);
        match header.kind {
            Kind::SegmentHead => {
                let version = u32::from_le_bytes(bytes[HEADER..HEADER + 4].try_into().expect("4 bytes"));
                if version > FORMAT_VERSION {
                    return Err(RecoveryError::NewerFormat { segment: base, version });
                }
            }
            Kind::SegmentEnd => {
                let next = u64::from_le_bytes(bytes[HEADER..HEADER + 8].try_into().expect("8 bytes"));
                return Ok(Scan::Ended {
                    next: next / segment_size,
                });
            }
            Kind::Message | Kind::Settle | Kind::Change => apply(header, bytes),
            // Only checkpoints have that.
            Kind::CheckpointEnd => {}
        }
    }
}

/// Reads the records of a file front to back in large blocks.
pub(crate) struct Reader<'a> {
    storage: &'a dyn Storage,
    file: FileId,
    offset: u64,
    block: Option<(u64, Slice)>,
}

const BLOCK: usize = 1 << 20;

impl<'a> Reader<'a> {
    /// The next record is the one at `offset`.
    pub(crate) fn new(storage: &'a dyn Storage, file: FileId, offset: u64) -> Self {
        Self {
            storage,
            file,
            offset,
            block: None,
        }
    }

    /// Where the next record is.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record, which must say that it lies at `position`.
    pub(crate) fn record(&mut self, position: Position) -> io::Result<Result<(Header, Slice), record::RecordError>> {
        let mut want = HEADER;
        loop {
            let Some(bytes) = self.bytes(want)? else {
                return Ok(Err(if want == HEADER {
                    record::RecordError::Blank
                } else {
                    record::RecordError::Length
                }));
            };
            let claimed = u32::from_le_bytes(bytes[..4].try_into().expect("at least a header")) as usize;
            if want == HEADER && (HEADER..=record::RECORD_MAX).contains(&claimed) {
                want = claimed;
                if want > HEADER {
                    continue;
                }
            }
            return Ok(record::check(&bytes, position).map(|(header, len)| {
                self.offset += len as u64;
                (header, bytes)
            }));
        }
    }

    /// `count` bytes at the current offset, `None` beyond the segment's end.
    fn bytes(&mut self, count: usize) -> io::Result<Option<Slice>> {
        if let Some((at, block)) = &self.block {
            let skip = (self.offset - at) as usize;
            if skip + count <= block.len() {
                return Ok(Some(block.part(skip, count)));
            }
        }
        let size = count.max(BLOCK);
        let mut read = Ok(0);
        let block =
            ChunkWriter::new(size).append(size, |buffer| read = self.storage.read(self.file, self.offset, buffer));
        let read = read?;
        if read < count {
            return Ok(None);
        }
        let block = block.part(0, read);
        let bytes = block.part(0, count);
        self.block = Some((self.offset, block));
        Ok(Some(bytes))
    }
}

/// Looks behind a bad record for whole ones: the highest synced mark among them says whether the bad one
/// had been on the disk, that is, whether this is damage or a torn tail.
fn later_synced_mark(
    storage: &dyn Storage,
    segment: u64,
    base: u64,
    bad: u64,
    written_end: u64,
) -> Result<Option<Position>, RecoveryError> {
    let mut highest = None;
    let mut at = bad + ALIGN as u64;
    let mut buffer = vec![0; BLOCK];
    while at < written_end {
        let read = storage.read(FileId::segment(segment), at, &mut buffer)?;
        let mut skip = 0;
        while skip + HEADER <= read {
            let position = Position(base + at + skip as u64);
            let claims_place = buffer[skip + 16..skip + 24] == position.0.to_le_bytes();
            if claims_place && position.0 != 0 {
                let len = u32::from_le_bytes(buffer[skip..skip + 4].try_into().expect("4 bytes")) as usize;
                if (HEADER..=record::RECORD_MAX).contains(&len) {
                    let mut bytes = vec![0; len];
                    let got = storage.read(FileId::segment(segment), at + skip as u64, &mut bytes)?;
                    if let Ok((header, _)) = record::check(&bytes[..got.min(len)], position) {
                        highest = highest.max(Some(header.synced));
                    }
                }
            }
            skip += ALIGN;
        }
        if read < buffer.len() {
            break;
        }
        at += skip as u64;
    }
    Ok(highest)
}

/// Cuts off what lies behind the recovered end and writes there that the log goes on in `next_segment`.
fn seal_tail(
    storage: &dyn Storage,
    segment: u64,
    segment_size: u64,
    offset: u64,
    next_segment: u64,
) -> Result<(), RecoveryError> {
    let position = Position(segment * segment_size + offset);
    let next = next_segment * segment_size;
    let mut end = [0; END_LEN];
    end[HEADER..HEADER + 8].copy_from_slice(&next.to_le_bytes());
    record::seal(
        &mut end,
        Header {
            kind: Kind::SegmentEnd,
            flags: 0,
            position,
            synced: Position(0),
            stored_at: Millis(0),
        },
    );
    storage.truncate(FileId::segment(segment), offset)?;
    storage.write(FileId::segment(segment), offset, &end)?;
    storage.sync(FileId::segment(segment))?;
    Ok(())
}
