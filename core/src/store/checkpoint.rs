//! Checkpoint files: changes that make the state as it was at a place in the log. `FORMAT.md`, "Checkpoint".
//!
//! A checkpoint is read back whole or not at all: its last record says that it is complete.

use std::io;
use std::sync::Arc;

use crate::engine::Change;
use crate::store::chunk::Slice;
use crate::store::log::FORMAT_VERSION;
use crate::store::record::{self, HEADER, Header, Kind, Position, framed_len};
use crate::store::recovery::Reader;
use crate::store::storage::{Area, FileId, Storage};
use crate::time::Millis;

/// Changes are put into records of about this size, bytes.
const RECORD_SIZE: usize = 64 << 10;

/// The file of a checkpoint.
pub(crate) const fn checkpoint_file(number: u64) -> FileId {
    FileId {
        area: Area::Checkpoints,
        number,
    }
}

/// What the last record of a checkpoint tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// The log is to be applied from here on.
    pub start: Position,
    /// The log up to here was on the disk: the checkpoint may hold effects of all of it.
    pub end: Position,
    /// The first index page that was never used.
    pub pages_end: u32,
    /// Changes in the file.
    pub changes: u64,
    /// The stored time of its making.
    pub stored_at: Millis,
}

const TRAILER_LEN: usize = 4 + 4 + 4 * 8;

/// Writes one checkpoint.
pub(crate) struct CheckpointWriter {
    storage: Arc<dyn Storage>,
    file: FileId,
    /// Where the next record will be in the file.
    offset: u64,
    changes: u64,
    payload: Vec<u8>,
    /// Whole records that are to be written at `written`.
    records: Vec<u8>,
    written: u64,
}

impl CheckpointWriter {
    /// A checkpoint of that number, which must be new.
    pub(crate) fn new(storage: &Arc<dyn Storage>, number: u64) -> io::Result<Self> {
        let file = checkpoint_file(number);
        storage.claim(file, 0)?;
        Ok(Self {
            storage: Arc::clone(storage),
            file,
            offset: 0,
            changes: 0,
            payload: Vec::new(),
            records: Vec::new(),
            written: 0,
        })
    }

    /// Adds a change. Nothing is written yet.
    pub(crate) fn put(&mut self, change: &Change) {
        let at = self.payload.len();
        self.payload.extend_from_slice(&[0; 4]);
        change.encode(&mut self.payload);
        let len = (self.payload.len() - at - 4) as u32;
        self.payload[at..at + 4].copy_from_slice(&len.to_le_bytes());
        self.changes += 1;
        if self.payload.len() >= RECORD_SIZE {
            self.end_record(Kind::Change);
        }
    }

    fn end_record(&mut self, kind: Kind) {
        let at = self.records.len();
        let len = framed_len(self.payload.len());
        self.records.resize(at + len, 0);
        let record = &mut self.records[at..];
        record[HEADER..HEADER + self.payload.len()].copy_from_slice(&self.payload);
        let header = Header {
            kind,
            flags: 0,
            position: Position(self.offset),
            synced: Position(0),
            stored_at: Millis(0),
        };
        record::seal(record, header);
        self.payload.clear();
        self.offset += len as u64;
    }

    /// Writes what was put. Not under the engine's lock.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.records.is_empty() {
            self.storage.write(self.file, self.written, &self.records)?;
            self.written = self.offset;
            self.records.clear();
        }
        Ok(())
    }

    /// Writes the last record and makes the checkpoint durable; gives its size.
    pub(crate) fn finish(mut self, trailer: Trailer) -> io::Result<u64> {
        if !self.payload.is_empty() {
            self.end_record(Kind::Change);
        }
        self.flush()?;
        self.storage.sync(self.file)?;
        self.payload.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        self.payload.extend_from_slice(&trailer.pages_end.to_le_bytes());
        for number in [trailer.start.0, trailer.end.0, self.changes, trailer.stored_at.0] {
            self.payload.extend_from_slice(&number.to_le_bytes());
        }
        self.end_record(Kind::CheckpointEnd);
        self.flush()?;
        self.storage.sync(self.file)?;
        Ok(self.offset)
    }

    /// How many changes were put.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }
}

/// Reads a checkpoint's last record, checking every record before it. `None` when it is not whole.
pub(crate) fn check(storage: &dyn Storage, number: u64) -> io::Result<Option<Trailer>> {
    let mut trailer = None;
    let whole = each_record(storage, number, |kind, payload| {
        if kind == Kind::CheckpointEnd {
            trailer = read_trailer(payload);
        }
    })?;
    Ok(trailer.filter(|_| whole))
}

/// Calls `each` with every change of a checkpoint that was checked.
pub(crate) fn read(storage: &dyn Storage, number: u64, mut each: impl FnMut(Change)) -> io::Result<()> {
    each_record(storage, number, |kind, payload| {
        let mut left = payload;
        while kind == Kind::Change && left.len() >= 4 {
            let (len, rest) = left.split_at(4);
            let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize;
            if len == 0 || len > rest.len() {
                // What fills the record up to its length.
                break;
            }
            let (change, rest) = rest.split_at(len);
            match Change::decode(change) {
                Some(change) => each(change),
                None => tracing::error!(number, "skipping a change of a checkpoint that cannot be read"),
            }
            left = rest;
        }
    })?;
    Ok(())
}

/// Gives whether the file ends with a checkpoint's last record.
fn each_record(storage: &dyn Storage, number: u64, mut each: impl FnMut(Kind, &[u8])) -> io::Result<bool> {
    let mut reader = Reader::new(storage, checkpoint_file(number), 0);
    loop {
        let record: Result<(Header, Slice), _> = reader.record(Position(reader.offset()))?;
        let Ok((header, bytes)) = record else { return Ok(false) };
        each(header.kind, &bytes[HEADER..]);
        match header.kind {
            Kind::Change => {}
            Kind::CheckpointEnd => return Ok(true),
            _ => return Ok(false),
        }
    }
}

/// A trailer that this broker can read.
fn read_trailer(payload: &[u8]) -> Option<Trailer> {
    let payload = payload.get(..TRAILER_LEN)?;
    let small = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().expect("4 bytes"));
    let large = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().expect("8 bytes"));
    (small(0) <= FORMAT_VERSION).then(|| Trailer {
        pages_end: small(4),
        start: Position(large(8)),
        end: Position(large(16)),
        changes: large(24),
        stored_at: Millis(large(32)),
    })
}
