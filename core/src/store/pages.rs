//! Index entries, and the shared files that hold those of long lists, 64 to a page.
//!
//! Pages are derived from the log and are not synced on the message path: a checkpoint syncs those that it
//! names. Therefore a page that a checkpoint may name is not written again while that checkpoint may be
//! used ([`Pages::free`]). `FORMAT.md`, "Pages", tells the bytes.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::record::Position;
use crate::store::storage::{Area, FileId, Storage};
use crate::time::Millis;

/// A place in the log (or in memory) that an index points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
pub(crate) struct Entry {
    pub position: Position,
    /// Length of the record, bytes.
    pub size: u32,
    /// In a topic's message queue: the tag's hash. In a queue: when it expires, Unix milliseconds, 0 for
    /// never; above that how much of the record is not its body; above that flags.
    pub word: u64,
}

/// The part of a queue entry's word that says when it expires; what would be later than it can say (the year
/// 2109) never does.
const EXPIRES: u64 = (1 << 42) - 1;
const OVERHEAD_SHIFT: u32 = 42;
const OVERHEAD_MAX: u64 = (1 << 21) - 1;
/// In a queue entry's word: the message is a last value that was there before somebody asked for it.
pub(crate) const RECALLED: u64 = 1 << 63;

impl Entry {
    /// Stands for a message that never became an entry.
    pub(crate) const NONE: Self = Self {
        position: Position(0),
        size: 0,
        word: 0,
    };

    /// A queue's entry.
    pub(crate) fn of_queue(position: Position, size: u32, body: usize, expires_at: u64) -> Self {
        let overhead = u64::from(size).saturating_sub(body as u64).min(OVERHEAD_MAX);
        let expires_at = if expires_at > EXPIRES { 0 } else { expires_at };
        Self {
            position,
            size,
            word: expires_at | overhead << OVERHEAD_SHIFT,
        }
    }

    /// Lets a queue's entry expire then, unless it does earlier.
    pub(crate) fn expire_at(&mut self, at: u64) {
        let earlier = match self.expires_at() {
            0 => at,
            own => own.min(at),
        };
        // What is due at once needs some time that is not 0.
        let at = if earlier > EXPIRES { 0 } else { earlier.max(1) };
        self.word = self.word & !EXPIRES | at;
    }

    /// When a queue's entry expires, Unix milliseconds; 0 for never.
    pub(crate) fn expires_at(self) -> u64 {
        self.word & EXPIRES
    }

    /// Whether a queue's entry has expired.
    pub(crate) fn is_expired(self, now: Millis) -> bool {
        let at = self.expires_at();
        at != 0 && at <= now.0
    }

    /// Bytes of the body of a queue's entry.
    pub(crate) fn body_len(self) -> u64 {
        u64::from(self.size).saturating_sub(self.word >> OVERHEAD_SHIFT & OVERHEAD_MAX)
    }

    /// Whether it is a last value that was there before.
    pub(crate) fn is_recalled(self) -> bool {
        self.word & RECALLED != 0
    }
}

/// Entries of one page.
pub(crate) const PAGE_ENTRIES: usize = 64;

/// The entries of a page.
pub(crate) type PageEntries = [Entry; PAGE_ENTRIES];

/// Bytes of one entry in a file.
pub(crate) const ENTRY_LEN: usize = 20;
const PAGE_HEADER: usize = 24;
/// Bytes of a page in its file.
pub(crate) const PAGE_LEN: usize = PAGE_HEADER + PAGE_ENTRIES * ENTRY_LEN;
/// Pages of one file.
const PAGES_PER_FILE: u64 = 16_384;

/// Pages that were read and are kept for the next reader.
const CACHE: usize = 512;

/// Which list of entries a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ListId(pub u64);

/// Whose list it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The queue of that number, and its level of priority.
    Queue(u32, u8),
    /// A topic's message queue: number of the topic, number in it.
    MessageQueue(u32, u32),
}

impl ListId {
    const MESSAGE_QUEUE: u64 = 1 << 62;

    /// The list of a queue at one level of priority.
    pub(crate) const fn queue(id: u32, level: u8) -> Self {
        Self((level as u64) << 32 | id as u64)
    }

    /// The list of a topic's message queue.
    pub(crate) const fn message_queue(topic: u32, queue: u32) -> Self {
        Self(Self::MESSAGE_QUEUE | (topic as u64) << 16 | queue as u64)
    }

    /// Whose list it is.
    pub(crate) const fn owner(self) -> Owner {
        if self.0 & Self::MESSAGE_QUEUE == 0 {
            Owner::Queue(self.0 as u32, (self.0 >> 32) as u8)
        } else {
            Owner::MessageQueue((self.0 >> 16) as u32, self.0 as u32 & 0xFFFF)
        }
    }
}

/// The files of pages.
pub(crate) struct Pages {
    segment_size: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    /// The first page that was never used.
    next: u32,
    free: Vec<u32>,
    /// Freed pages with the number of the last checkpoint that may name each.
    freed: VecDeque<(u64, u32)>,
    /// Number of the last checkpoint that was begun.
    checkpoint: u64,
    cache: Vec<Option<(u32, Arc<PageEntries>)>>,
    /// Files with pages that no checkpoint has synced.
    unsynced: BTreeSet<u64>,
    /// Pages in memory, oldest first, and how many there may be.
    resident: VecDeque<(ListId, u64)>,
    resident_max: usize,
}

impl Pages {
    /// No pages yet, at most `resident_max` of them in memory.
    pub(crate) fn new(storage: Arc<dyn Storage>, segment_size: u64, resident_max: usize) -> Self {
        let inner = Mutex::new(Inner {
            storage,
            next: 0,
            free: Vec::new(),
            freed: VecDeque::new(),
            checkpoint: 1,
            cache: vec![None; CACHE],
            unsynced: BTreeSet::new(),
            resident: VecDeque::new(),
            resident_max,
        });
        Self { segment_size, inner }
    }

    /// The segment of the log that a position lies in.
    pub(crate) fn segment(&self, position: Position) -> u64 {
        position.0 / self.segment_size
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page was filled in memory.
    pub(crate) fn note_resident(&self, list: ListId, index: u64) {
        self.inner().resident.push_back((list, index));
    }

    /// The page that is to leave the memory next, if there are more than there may be. It may be gone.
    pub(crate) fn next_to_store(&self) -> Option<(ListId, u64)> {
        let mut inner = self.inner();
        (inner.resident.len() > inner.resident_max)
            .then(|| inner.resident.pop_front())
            .flatten()
    }

    /// Writes a page and gives its number.
    pub(crate) fn write(&self, list: ListId, index: u64, entries: &PageEntries) -> io::Result<u32> {
        let mut inner = self.inner();
        let number = match inner.free.pop() {
            Some(number) => number,
            None => {
                let number = inner.next;
                let file = u64::from(number) / PAGES_PER_FILE;
                if u64::from(number).is_multiple_of(PAGES_PER_FILE) {
                    inner.storage.claim(page_file(file), PAGES_PER_FILE * PAGE_LEN as u64)?;
                }
                inner.next += 1;
                number
            }
        };
        let (file, offset) = place(number);
        match inner
            .storage
            .write(page_file(file), offset, &encode(list, index, entries))
        {
            Ok(()) => {
                inner.unsynced.insert(file);
                Ok(number)
            }
            Err(error) => {
                inner.free.push(number);
                Err(error)
            }
        }
    }

    /// The entries of a page of that list.
    pub(crate) fn read(&self, number: u32, list: ListId, index: u64) -> io::Result<Arc<PageEntries>> {
        let mut inner = self.inner();
        let slot = number as usize % CACHE;
        if let Some((cached, entries)) = &inner.cache[slot]
            && *cached == number
        {
            return Ok(Arc::clone(entries));
        }
        let (file, offset) = place(number);
        let mut bytes = [0; PAGE_LEN];
        inner.storage.read(page_file(file), offset, &mut bytes)?;
        let entries = decode(list, index, &bytes)
            .map_err(|why| io::Error::other(format!("index file {file:020} is damaged at byte {offset}: {why}")))?;
        let entries = Arc::new(entries);
        inner.cache[slot] = Some((number, Arc::clone(&entries)));
        Ok(entries)
    }

    /// Makes the next file before it is needed: not under the engine's lock, since that takes a while.
    pub(crate) fn claim_ahead(&self) -> io::Result<()> {
        let (file, storage) = {
            let inner = self.inner();
            let next = u64::from(inner.next);
            if inner.resident.len() < inner.resident_max / 2 {
                return Ok(());
            }
            let is_late = next % PAGES_PER_FILE > PAGES_PER_FILE / 2;
            let file = next / PAGES_PER_FILE + u64::from(is_late);
            (file, Arc::clone(&inner.storage))
        };
        storage.claim(page_file(file), PAGES_PER_FILE * PAGE_LEN as u64)
    }

    /// A page is not needed any more. It is used again only when no checkpoint that may be read back can
    /// name it.
    pub(crate) fn free(&self, number: u32) {
        let mut inner = self.inner();
        let slot = number as usize % CACHE;
        if inner.cache[slot].as_ref().is_some_and(|(cached, _)| *cached == number) {
            inner.cache[slot] = None;
        }
        let last = inner.checkpoint;
        inner.freed.push_back((last, number));
    }

    /// A checkpoint begins; gives its number.
    pub(crate) fn begin_checkpoint(&self) -> u64 {
        let mut inner = self.inner();
        inner.checkpoint += 1;
        inner.checkpoint
    }

    /// Makes the pages durable that were written so far. Not under the engine's lock.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let (files, storage) = {
            let mut inner = self.inner();
            (std::mem::take(&mut inner.unsynced), Arc::clone(&inner.storage))
        };
        for file in &files {
            if let Err(error) = storage.sync(page_file(*file)) {
                self.inner().unsynced.extend(files);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Checkpoints with numbers below `oldest` are not read back any more.
    pub(crate) fn forget_checkpoints_below(&self, oldest: u64) {
        let mut inner = self.inner();
        while let Some((last, number)) = inner.freed.front().copied()
            && last < oldest
        {
            inner.freed.pop_front();
            inner.free.push(number);
        }
    }

    /// The first page that was never used: what a checkpoint notes.
    pub(crate) fn end(&self) -> u32 {
        self.inner().next
    }

    /// Pages in files that hold something.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        let inner = self.inner();
        inner.next as usize - inner.free.len() - inner.freed.len()
    }

    /// Number of the last checkpoint that was begun.
    pub(crate) fn checkpoint(&self) -> u64 {
        self.inner().checkpoint
    }

    /// The checkpoint of that number was read back.
    pub(crate) fn set_checkpoint(&self, number: u64) {
        self.inner().checkpoint = number;
    }

    /// After a checkpoint was read back: pages below `end` that `used` does not name are free once no old
    /// checkpoint may be read back.
    pub(crate) fn recovered(&self, end: u32, mut used: Vec<u32>) {
        used.sort_unstable();
        let mut inner = self.inner();
        inner.next = end;
        let mut used = used.into_iter().peekable();
        for number in 0..end {
            if used.next_if_eq(&number).is_none() {
                let last = inner.checkpoint;
                inner.freed.push_back((last, number));
            }
        }
    }
}

/// File and offset of a page.
pub(crate) fn place(number: u32) -> (u64, u64) {
    let number = u64::from(number);
    (number / PAGES_PER_FILE, number % PAGES_PER_FILE * PAGE_LEN as u64)
}

fn page_file(number: u64) -> FileId {
    FileId {
        area: Area::Pages,
        number,
    }
}

fn encode(list: ListId, index: u64, entries: &PageEntries) -> [u8; PAGE_LEN] {
    let mut bytes = [0; PAGE_LEN];
    bytes[8..16].copy_from_slice(&list.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&index.to_le_bytes());
    for (slot, entry) in bytes[PAGE_HEADER..].chunks_exact_mut(ENTRY_LEN).zip(entries) {
        put_entry(slot, *entry);
    }
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The entries of a page's bytes, if it is that page of that list.
pub(crate) fn decode(list: ListId, index: u64, bytes: &[u8; PAGE_LEN]) -> Result<PageEntries, &'static str> {
    if bytes[..4] != crc32fast::hash(&bytes[8..]).to_le_bytes() {
        return Err("the checksum is wrong");
    }
    if bytes[8..16] != list.0.to_le_bytes() || bytes[16..24] != index.to_le_bytes() {
        return Err("it is another list's page");
    }
    let mut entries = [Entry::NONE; PAGE_ENTRIES];
    for (slot, entry) in bytes[PAGE_HEADER..].chunks_exact(ENTRY_LEN).zip(&mut entries) {
        *entry = get_entry(slot);
    }
    Ok(entries)
}

/// Writes an entry over [`ENTRY_LEN`] bytes.
pub(crate) fn put_entry(slot: &mut [u8], entry: Entry) {
    slot[..8].copy_from_slice(&{ entry.position }.0.to_le_bytes());
    slot[8..12].copy_from_slice(&entry.size.to_le_bytes());
    slot[12..20].copy_from_slice(&{ entry.word }.to_le_bytes());
}

/// Reads what [`put_entry`] wrote.
pub(crate) fn get_entry(slot: &[u8]) -> Entry {
    let number = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("8 bytes"));
    Entry {
        position: Position(number(0)),
        size: u32::from_le_bytes(slot[8..12].try_into().expect("4 bytes")),
        word: number(12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::storage::MemoryStorage;

    /// Two checkpoints may be read back: a page that either may name must keep what it holds.
    #[test]
    fn a_freed_page_is_not_reused_before_the_next_checkpoint() {
        let pages = Pages::new(Arc::new(MemoryStorage::default()), 1 << 20, 0);
        let list = ListId::queue(1, 0);
        let entries = [Entry::NONE; PAGE_ENTRIES];
        let first = pages.write(list, 0, &entries).unwrap();
        let one = pages.begin_checkpoint();
        pages.free(first);
        let write = |index| pages.write(list, index, &entries).unwrap();
        assert_ne!(write(1), first);
        // The checkpoint that may name it is one of two.
        let two = pages.begin_checkpoint();
        pages.forget_checkpoints_below(one);
        assert_ne!(write(2), first);
        // It is the older one.
        pages.begin_checkpoint();
        assert_ne!(write(3), first);
        pages.forget_checkpoints_below(two);
        assert_eq!(write(4), first);
        assert!(pages.read(first, list, 0).is_err(), "it is another page now");
        assert!(pages.read(first, list, 4).is_ok());
    }
}
