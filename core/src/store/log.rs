//! The commit log: appends records to the tail chunk, keeps the newest as a read cache, finds any by its
//! position. Writing and syncing happen outside the engine's lock, see [`super::writer`].

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::store::chunk::{ChunkWriter, Slice};
use crate::store::record::{self, ALIGN, HEADER, Header, Kind, Position, framed_len};
use crate::store::segments::Segments;
use crate::store::storage::{FileId, Storage};
use crate::time::Millis;

/// Version of everything in a data folder; a newer one is refused.
pub const FORMAT_VERSION: u32 = 1;

/// Memory of one tail chunk.
const CHUNK_SIZE: usize = 1 << 20;

/// Bytes read at once from a segment whose records are not in memory any more, by a reader that goes on.
const READ_SIZE: usize = 64 << 10;

/// Bytes read where nobody has read before: records of one queue among many lie far apart.
const READ_SIZE_FIRST: usize = 4 << 10;

/// Blocks of older records kept after they were read.
const READ_CACHE: usize = 64;

/// A segment's last record: tells where the log goes on.
pub(crate) const END_LEN: usize = framed_len(8);
/// A segment's first record: tells the format's version.
pub(crate) const HEAD_LEN: usize = framed_len(8);

struct LogChunk {
    base: u64,
    writer: ChunkWriter,
}

impl LogChunk {
    fn end(&self) -> u64 {
        self.base + self.writer.len() as u64
    }
}

/// The log's tail in memory and the way to everything before it.
pub(crate) struct Log {
    storage: Arc<dyn Storage>,
    segment_size: u64,
    cache_max: usize,
    chunks: VecDeque<LogChunk>,
    cached: usize,
    /// Where the next record goes.
    end: u64,
    /// Everything before this was taken by the writer.
    taken: u64,
    /// Told by the sync thread; goes into every record.
    synced: Position,
    blocks: VecDeque<(u64, Slice)>,
    /// Batches that were begun and not ended: one in another is part of it.
    batches: u32,
    segments: Segments,
}

impl Log {
    /// A log that goes on at the start of `segment`.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        segment: u64,
        segment_size: u64,
        cache_max: usize,
        now: Millis,
    ) -> Self {
        let start = segment * segment_size;
        let mut log = Self {
            storage,
            segment_size,
            cache_max,
            chunks: VecDeque::new(),
            cached: 0,
            end: start,
            taken: start,
            synced: Position(start),
            blocks: VecDeque::new(),
            batches: 0,
            segments: Segments::default(),
        };
        log.append_head(now);
        log
    }

    /// As [`new`](Self::new), with what the log before counted for each segment.
    pub(crate) fn going_on(self, before: &mut Self) -> Self {
        Self {
            segments: std::mem::take(&mut before.segments),
            ..self
        }
    }

    /// Where the next record goes: everything durable is before it.
    pub(crate) fn end(&self) -> Position {
        Position(self.end)
    }

    /// Bytes that are not known to be on the disk.
    pub(crate) fn unsynced(&self) -> usize {
        self.end.saturating_sub(self.synced.0) as usize
    }

    pub(crate) fn synced(&self) -> Position {
        self.synced
    }

    pub(crate) fn set_synced(&mut self, synced: Position) {
        self.synced = synced;
    }

    /// Appends a record of `len` bytes that `fill` writes, header included.
    pub(crate) fn append(
        &mut self,
        len: usize,
        now: Millis,
        fill: impl FnOnce(&mut [u8], Position, Position),
    ) -> (Position, Slice) {
        debug_assert!(len.is_multiple_of(ALIGN));
        let left = self.segment_size - self.end % self.segment_size;
        if left < (len + END_LEN) as u64 {
            self.roll(now);
        }
        self.append_here(len, fill)
    }

    /// Appends a small record whose payload is in `payload`.
    pub(crate) fn append_payload(&mut self, kind: Kind, payload: &[u8], stored_at: Millis) -> Position {
        let len = framed_len(payload.len());
        let fill = |record: &mut [u8], position, synced| {
            record[HEADER..HEADER + payload.len()].copy_from_slice(payload);
            record::seal(
                record,
                Header {
                    kind,
                    flags: 0,
                    position,
                    synced,
                    stored_at,
                },
            );
        };
        self.append(len, stored_at, fill).0
    }

    /// What is appended until [`end_batch`](Self::end_batch) is recovered whole or not at all.
    pub(crate) fn begin_batch(&mut self) {
        self.batches += 1;
    }

    /// Ends a batch; gives whether it was the outermost one, whose last record is to be appended now.
    #[must_use]
    pub(crate) fn end_batch(&mut self) -> bool {
        debug_assert!(self.batches > 0);
        self.batches -= 1;
        self.batches == 0
    }

    /// One more entry points to a record in the log.
    pub(crate) fn pin(&mut self, position: Position) {
        self.segments.pin(position.0 / self.segment_size);
    }

    /// As [`pin`](Self::pin), for an entry that a checkpoint has counted already.
    pub(crate) fn repin(&mut self, position: Position) {
        self.segments.at(position.0 / self.segment_size).pins += 1;
    }

    /// One entry fewer does.
    pub(crate) fn unpin(&mut self, position: Position) {
        self.segments.unpin(position.0 / self.segment_size);
    }

    /// How many entries need a record of the log.
    pub(crate) fn pins(&self) -> u64 {
        let pins = self.segments.iter().map(|(_, segment)| segment.pins.max(0));
        pins.map(i64::unsigned_abs).sum()
    }

    /// A topic wants the record until then.
    pub(crate) fn keep_until(&mut self, position: Position, until: Millis) {
        let segment = self.segments.at(position.0 / self.segment_size);
        segment.keep_until = segment.keep_until.max(until);
    }

    /// A segment is removed: nothing of it is kept in memory either.
    pub(crate) fn forget_segment(&mut self, number: u64) {
        self.segments.forget(number);
        let range = number * self.segment_size..(number + 1) * self.segment_size;
        self.blocks.retain(|(base, _)| !range.contains(base));
    }

    /// What each segment is needed for.
    pub(crate) fn segments(&mut self) -> &mut Segments {
        &mut self.segments
    }

    fn append_here(&mut self, len: usize, fill: impl FnOnce(&mut [u8], Position, Position)) -> (Position, Slice) {
        // A segment that is filled to its last byte is followed by the next without a gap: what is written at
        // once must not lie in both.
        let segment = |position: u64| position / self.segment_size;
        let fits = self
            .chunks
            .back()
            .is_some_and(|c| c.writer.room() >= len && c.end() == self.end && segment(c.base) == segment(self.end));
        if !fits {
            self.chunks.push_back(LogChunk {
                base: self.end,
                writer: ChunkWriter::new(len.max(CHUNK_SIZE)),
            });
            self.cached += len.max(CHUNK_SIZE);
            self.trim();
        }
        let chunk = self.chunks.back_mut().expect("a chunk was just made sure of");
        let (position, synced) = (Position(self.end), self.synced);
        let more = self.batches > 0;
        let slice = chunk.writer.append(len, |record| {
            fill(record, position, synced);
            if more {
                record::mark_more(record);
            }
        });
        self.end += len as u64;
        (position, slice)
    }

    /// Ends the segment and begins the next.
    fn roll(&mut self, now: Millis) {
        let next = (self.end / self.segment_size + 1) * self.segment_size;
        self.append_here(END_LEN, |record, position, synced| {
            record[HEADER..HEADER + 8].copy_from_slice(&next.to_le_bytes());
            record::seal(
                record,
                Header {
                    kind: Kind::SegmentEnd,
                    flags: 0,
                    position,
                    synced,
                    stored_at: now,
                },
            );
        });
        self.end = next;
        self.append_head(now);
    }

    fn append_head(&mut self, now: Millis) {
        let kib = (self.segment_size >> 10) as u32;
        self.append_here(HEAD_LEN, |record, position, synced| {
            record[HEADER..HEADER + 4].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            record[HEADER + 4..HEADER + 8].copy_from_slice(&kib.to_le_bytes());
            record::seal(
                record,
                Header {
                    kind: Kind::SegmentHead,
                    flags: 0,
                    position,
                    synced,
                    stored_at: now,
                },
            );
        });
    }

    /// Drops the oldest chunks beyond the cache's size, but none that a reader would not find on the disk.
    fn trim(&mut self) {
        while self.cached > self.cache_max && self.chunks.len() > 1 && self.chunks[0].end() <= self.synced.0 {
            let chunk = self.chunks.pop_front().expect("more than one");
            self.cached -= chunk.writer.len() + chunk.writer.room();
        }
    }

    /// What was appended since the last call, in position order; the caller writes it before anybody
    /// else takes more.
    pub(crate) fn take_unwritten(&mut self, pieces: &mut Vec<(Position, Slice)>) -> Position {
        let first = self.chunks.partition_point(|chunk| chunk.end() <= self.taken);
        for chunk in self.chunks.range(first..) {
            let offset = self.taken.saturating_sub(chunk.base) as usize;
            let size = chunk.writer.len() - offset;
            if size > 0 {
                pieces.push((Position(chunk.base + offset as u64), chunk.writer.slice(offset, size)));
            }
        }
        self.taken = self.end;
        Position(self.end)
    }

    /// Whether [`take_unwritten`](Self::take_unwritten) would give anything.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.taken < self.end
    }

    /// The record of `len` bytes at `position`; `len` is what its index entry says.
    pub(crate) fn read(&mut self, position: Position, len: usize) -> io::Result<Slice> {
        let at = position.0;
        let index = self.chunks.partition_point(|chunk| chunk.end() <= at);
        if let Some(chunk) = self.chunks.get(index).filter(|chunk| chunk.base <= at) {
            return Ok(chunk.writer.slice((at - chunk.base) as usize, len));
        }
        for (base, block) in self.blocks.iter().rev() {
            if *base <= at && at + len as u64 <= base + block.len() as u64 {
                return Ok(block.part((at - base) as usize, len));
            }
        }
        self.read_block(at, len)
    }

    fn read_block(&mut self, at: u64, len: usize) -> io::Result<Slice> {
        let (segment, offset) = (at / self.segment_size, at % self.segment_size);
        // Not beyond what is on the disk: what is written there later would be missing in the block.
        let in_memory = self.chunks.front().map_or(self.end, |chunk| chunk.base);
        let readable = (self.segment_size - offset).min(in_memory.saturating_sub(at));
        let ahead = if self.goes_on(at) { READ_SIZE } else { READ_SIZE_FIRST };
        let size = len.max(ahead.min(readable as usize));
        let mut read = Ok(0);
        let block = ChunkWriter::new(size).append(size, |buffer| {
            read = self.storage.read(FileId::segment(segment), offset, buffer)
        });
        if read? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.blocks.len() >= READ_CACHE {
            self.blocks.pop_front();
        }
        self.blocks.push_back((at, block.clone()));
        Ok(block.part(0, len))
    }

    /// Whether somebody reads on from what was read lately.
    fn goes_on(&self, at: u64) -> bool {
        let near = |(base, block): &(u64, Slice)| *base <= at && at - base <= (block.len() + READ_SIZE) as u64;
        self.blocks.iter().rev().any(near)
    }

    /// The record at a position that a client named: checked, since anybody can make one up.
    pub(crate) fn find(&mut self, position: Position) -> Option<Slice> {
        if position.0 >= self.end || !position.0.is_multiple_of(ALIGN as u64) {
            return None;
        }
        let front = self.read_within(position, HEADER)?;
        let len = u32::from_le_bytes(front[..4].try_into().ok()?) as usize;
        if !(HEADER..=record::RECORD_MAX).contains(&len) || position.0 + len as u64 > self.end {
            return None;
        }
        let record = self.read_within(position, len)?;
        let (header, _) = record::check(&record, position).ok()?;
        (header.kind == Kind::Message && record::MessageRecord::of(&record).is_whole()).then_some(record)
    }

    /// As [`read`](Self::read), for a length that nobody vouches for.
    fn read_within(&mut self, position: Position, len: usize) -> Option<Slice> {
        let at = position.0;
        let index = self.chunks.partition_point(|chunk| chunk.end() <= at);
        match self.chunks.get(index).filter(|chunk| chunk.base <= at) {
            Some(chunk) if at + len as u64 > chunk.end() => None,
            _ => self.read(position, len).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::storage::MemoryStorage;

    /// A log of records of 1 KiB, nearly all of them on the disk only, and where they are.
    fn log_on_disk(records: usize) -> (Log, Vec<Position>) {
        let storage = Arc::new(MemoryStorage::default());
        storage.claim(FileId::segment(0), 0).unwrap();
        let mut log = Log::new(Arc::clone(&storage) as Arc<dyn Storage>, 0, 64 << 20, 0, Millis(0));
        let mut positions = Vec::new();
        for number in 0..records {
            let fill = |record: &mut [u8], _, _| record.fill(number as u8);
            positions.push(log.append(1024, Millis(0), fill).0);
        }
        let mut pieces = Vec::new();
        let end = log.take_unwritten(&mut pieces);
        for (position, piece) in pieces {
            storage.write(FileId::segment(0), position.0, &piece).unwrap();
        }
        log.set_synced(end);
        log.trim();
        (log, positions)
    }

    fn check(log: &mut Log, positions: &[Position], number: usize) {
        let record = log.read(positions[number], 1024).unwrap();
        assert!(record.iter().all(|byte| *byte == number as u8), "record {number}");
    }

    #[test]
    fn records_far_apart_are_read_alone_and_neighbours_together() {
        let (mut log, positions) = log_on_disk(8 << 10);
        for number in (0..6000).step_by(200) {
            check(&mut log, &positions, number);
        }
        assert_eq!(log.blocks.len(), 30);
        assert!(log.blocks.iter().all(|(_, block)| block.len() == READ_SIZE_FIRST));
        let (mut log, positions) = log_on_disk(8 << 10);
        for number in 0..640 {
            check(&mut log, &positions, number);
        }
        assert!(log.blocks.len() <= 12, "{} reads for 640 KiB", log.blocks.len());
    }
}
