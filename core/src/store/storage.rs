//! The one seam between the log and a disk: numbered segments that are claimed, written and synced.
//!
//! [`FileStorage`] is a folder of files. Tests implement [`Storage`] to fail, tear, reorder and lose
//! unsynced writes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;

/// Numbered segments of bytes. Several threads may call it; the log never writes one byte twice.
pub trait Storage: Send + Sync + 'static {
    /// The segments there are, in rising order.
    fn segments(&self) -> io::Result<Vec<u64>>;

    /// Makes a segment of `size` zero bytes, if there is none, so that writing to it cannot run out of
    /// space; it exists after a power cut when this returns.
    fn claim(&self, segment: u64, size: u64) -> io::Result<()>;

    /// Writes bytes; they are durable after [`sync`](Self::sync).
    fn write(&self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads up to `buffer.len()` bytes; fewer only at the segment's end.
    fn read(&self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// An offset from which on nothing was ever written. A storage that cannot tell gives `u64::MAX`.
    ///
    /// To be asked before the segment is read: a file system takes what it has read ahead for written.
    fn written_end(&self, _segment: u64) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    /// Makes everything written to the segment before this call durable.
    fn sync(&self, segment: u64) -> io::Result<()>;

    /// Ends the segment at `size`, giving back the space behind it.
    fn truncate(&self, segment: u64, size: u64) -> io::Result<()>;

    /// Removes a segment.
    fn remove(&self, segment: u64) -> io::Result<()>;
}

/// Segments as files of a folder, named by the 20-digit position at which each starts.
pub struct FileStorage {
    folder: PathBuf,
    segment_size: u64,
    files: Mutex<HashMap<u64, Arc<File>>>,
    /// Held for the process's life: one broker a folder.
    _lock: File,
}

impl FileStorage {
    /// Opens a data folder, making it when there is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process has it open.
    pub fn open(folder: &Path, segment_size: u64) -> io::Result<Self> {
        let log = folder.join("commitlog");
        fs::create_dir_all(&log)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            folder: log,
            segment_size,
            files: Mutex::default(),
            _lock: lock,
        })
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.folder.join(format!("{:020}", segment * self.segment_size))
    }

    fn file(&self, segment: u64) -> io::Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(segment))?);
        files.insert(segment, Arc::clone(&file));
        Ok(file)
    }

    fn forget(&self, segment: u64) {
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&segment);
    }
}

impl Storage for FileStorage {
    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let start = name
                .to_str()
                .filter(|name| name.len() == 20)
                .and_then(|name| name.parse::<u64>().ok());
            if let Some(start) = start.filter(|start| start.is_multiple_of(self.segment_size)) {
                segments.push(start / self.segment_size);
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }

    fn claim(&self, segment: u64, size: u64) -> io::Result<()> {
        let path = self.path(segment);
        if path.exists() {
            return Ok(());
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, size) {
            if error != Errno::OPNOTSUPP {
                let _ = fs::remove_file(&path);
                return Err(error.into());
            }
            file.set_len(size)?;
        }
        file.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }

    fn write(&self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(segment)?.write_all_at(bytes, offset)
    }

    fn read(&self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file(segment)?;
        let mut read = 0;
        while read < buffer.len() {
            match file.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn written_end(&self, segment: u64) -> io::Result<u64> {
        let file = self.file(segment)?;
        let mut end = 0;
        loop {
            let hole = seek(&*file, SeekFrom::Data(end)).and_then(|data| seek(&*file, SeekFrom::Hole(data)));
            match hole {
                Ok(hole) => end = hole,
                Err(Errno::NXIO) => return Ok(end),
                // Not every file system knows its holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(u64::MAX),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn truncate(&self, segment: u64, size: u64) -> io::Result<()> {
        let file = self.file(segment)?;
        file.set_len(size)?;
        file.sync_all()
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        self.forget(segment);
        fs::remove_file(self.path(segment))?;
        File::open(&self.folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 4 << 20;

    #[test]
    fn everything_written_is_before_the_written_end() {
        let folder = std::env::temp_dir().join(format!("rocketbridge-storage-{}", std::process::id()));
        let storage = FileStorage::open(&folder, SEGMENT).expect("a folder of its own");
        storage.claim(0, SEGMENT).expect("there is room");
        for offset in [0, 1 << 16, 3 << 20, SEGMENT - 8] {
            storage.write(0, offset, b"written!").expect("there is room");
            let end = storage.written_end(0).expect("it can be asked");
            assert!(end >= offset + 8, "{end} after a write at {offset}");
        }
        fs::remove_dir_all(folder).expect("it is ours");
    }
}
