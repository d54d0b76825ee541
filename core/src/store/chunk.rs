//! Memory that is written once, front to back, and shared while it is written.
//!
//! A [`Chunk`] is a fixed block; a [`ChunkWriter`] is its only writer and appends; what it has
//! appended is handed out as [`Slice`]s, which keep the block alive. Records are encoded straight
//! into the commit log's tail chunk, `pwrite` writes from it, and deliveries are slices of it.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

/// A block of memory whose front part, as far as its writer has come, is initialised and immutable.
struct Chunk {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: bytes below the writer's length are never written again, bytes above it are reachable only
// through the one `ChunkWriter`, and a `Slice` never reaches beyond what was appended before it was made.
unsafe impl Send for Chunk {}
unsafe impl Sync for Chunk {}

impl Chunk {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, 8).expect("a chunk is far below the address space")
    }

    fn new(capacity: usize) -> Self {
        assert!(capacity > 0);
        let layout = Self::layout(capacity);
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, capacity }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and nothing refers to it any more.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// Appends to a chunk.
pub(crate) struct ChunkWriter {
    chunk: Arc<Chunk>,
    len: usize,
}

impl ChunkWriter {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            chunk: Arc::new(Chunk::new(capacity)),
            len: 0,
        }
    }

    /// Bytes appended so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that still fit.
    pub(crate) fn room(&self) -> usize {
        self.chunk.capacity - self.len
    }

    /// Appends `size` bytes that `fill` writes, zeroed before.
    ///
    /// # Panics
    /// When they do not fit.
    pub(crate) fn append(&mut self, size: usize, fill: impl FnOnce(&mut [u8])) -> Slice {
        assert!(size <= self.room());
        let offset = self.len;
        // SAFETY: within the block, above `len`, so no slice reaches it, and this writer is the only
        // one that can: it takes `&mut self` and is not `Clone`. Zeroed before it becomes a `&mut [u8]`.
        let target = unsafe {
            let at = self.chunk.start.as_ptr().add(offset);
            at.write_bytes(0, size);
            std::slice::from_raw_parts_mut(at, size)
        };
        fill(target);
        self.len += size;
        self.slice(offset, size)
    }

    /// What lies at `offset`.
    ///
    /// # Panics
    /// When that was not appended yet.
    pub(crate) fn slice(&self, offset: usize, size: usize) -> Slice {
        assert!(offset + size <= self.len);
        Slice {
            chunk: Arc::clone(&self.chunk),
            offset: offset as u32,
            len: size as u32,
        }
    }
}

/// A part of a chunk. Cloning counts a reference; the bytes never change.
#[derive(Clone)]
pub(crate) struct Slice {
    chunk: Arc<Chunk>,
    offset: u32,
    len: u32,
}

impl Slice {
    /// The part of this slice at `offset`.
    ///
    /// # Panics
    /// When it is not within this slice.
    pub(crate) fn part(&self, offset: usize, size: usize) -> Self {
        assert!(offset + size <= self.len());
        Self {
            chunk: Arc::clone(&self.chunk),
            offset: self.offset + offset as u32,
            len: size as u32,
        }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a slice is only made over appended, hence initialised and immutable, bytes.
        unsafe { std::slice::from_raw_parts(self.chunk.start.as_ptr().add(self.offset as usize), self.len as usize) }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_outlive_their_writer_and_do_not_change() {
        let mut writer = ChunkWriter::new(64);
        let first = writer.append(3, |b| b.copy_from_slice(b"abc"));
        let second = writer.append(4, |b| b[..2].copy_from_slice(b"de"));
        assert_eq!((writer.len(), writer.room()), (7, 57));
        assert_eq!(&*writer.slice(1, 4), b"bcde");
        drop(writer);
        assert_eq!(&*first, b"abc");
        assert_eq!(&*second, b"de\0\0");
        assert_eq!(&*second.part(1, 2), b"e\0");
    }
}
