//! The one seam between the store and a disk: numbered files that are claimed, written and synced.
//!
//! [`FileStorage`] is a folder of files. Tests implement [`Storage`] to fail, tear, reorder and lose
//! unsynced writes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::StatVfs;
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek, statvfs};
use rustix::io::Errno;

use crate::store::record::HEADER;

/// Written at once to prepare a file. Larger pieces would make larger pages of the cache, to which small writes are
/// slow.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Segments of the commit log. No byte of them is written twice.
    Log,
    /// Pages of index entries, written again when they are free.
    Pages,
    /// Checkpoints, each written once.
    Checkpoints,
    /// Space that is given up when the disk is full, so that checkpoints can still be written.
    Reserve,
}

/// How full the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may be used in all.
    pub total: u64,
    /// Bytes that are free for us.
    pub free: u64,
}

impl Space {
    /// What is used, percent.
    pub fn used(self) -> u64 {
        100 - (self.free.min(self.total) * 100).div_ceil(self.total.max(1))
    }
}

/// A file: its area and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// What it is for.
    pub area: Area,
    /// Its number; of a segment, its place in the log in units of the segment size.
    pub number: u64,
}

impl FileId {
    /// The file of that segment of the log.
    pub const fn segment(number: u64) -> Self {
        Self {
            area: Area::Log,
            number,
        }
    }
}

/// Numbered files of bytes. Several threads may call it.
pub trait Storage: Send + Sync + 'static {
    /// The numbers of the area's files, in rising order.
    fn files(&self, area: Area) -> io::Result<Vec<u64>>;

    /// Makes a file of `size` zero bytes, if there is none, so that writing to it cannot run out of
    /// space; it exists after a power cut when this returns.
    fn claim(&self, file: FileId, size: u64) -> io::Result<()>;

    /// Writes bytes; they are durable after [`sync`](Self::sync).
    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Is told that the next writes and syncs are small and go to this part of a file, which was never written to.
    /// Only their speed depends on it.
    fn prepare(&self, _file: FileId, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the file's end.
    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// An offset from which on nothing was ever written. A storage that cannot tell gives `u64::MAX`.
    ///
    /// To be asked before the file is read: a file system takes what it has read ahead for written.
    fn written_end(&self, _file: FileId) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    /// Makes everything written to the file before this call durable.
    fn sync(&self, file: FileId) -> io::Result<()>;

    /// Ends the file at `size`, giving back the space behind it.
    fn truncate(&self, file: FileId, size: u64) -> io::Result<()>;

    /// Removes a file. One that is not there is none to remove.
    fn remove(&self, file: FileId) -> io::Result<()>;

    /// How full the disk is; `None` when there is none.
    fn space(&self) -> io::Result<Option<Space>> {
        Ok(None)
    }
}

/// Files in memory, for tests.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct MemoryStorage(Mutex<HashMap<FileId, Vec<u8>>>);

#[cfg(test)]
impl MemoryStorage {
    fn with<R>(&self, file: FileId, act: impl FnOnce(&mut Vec<u8>) -> R) -> io::Result<R> {
        let mut files = self.0.lock().unwrap();
        Ok(act(files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?))
    }
}

#[cfg(test)]
impl Storage for MemoryStorage {
    fn files(&self, area: Area) -> io::Result<Vec<u64>> {
        let files = self.0.lock().unwrap();
        let mut numbers: Vec<u64> = files
            .keys()
            .filter(|file| file.area == area)
            .map(|file| file.number)
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn claim(&self, file: FileId, size: u64) -> io::Result<()> {
        self.0
            .lock()
            .unwrap()
            .entry(file)
            .or_insert_with(|| vec![0; size as usize]);
        Ok(())
    }

    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(file, |content| {
            let end = offset as usize + bytes.len();
            content.resize(content.len().max(end), 0);
            content[offset as usize..end].copy_from_slice(bytes);
        })
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(file, |content| {
            let bytes = content.get(offset as usize..).unwrap_or_default();
            let count = bytes.len().min(buffer.len());
            buffer[..count].copy_from_slice(&bytes[..count]);
            count
        })
    }

    fn sync(&self, file: FileId) -> io::Result<()> {
        self.with(file, |_| ())
    }

    fn truncate(&self, file: FileId, size: u64) -> io::Result<()> {
        self.with(file, |content| content.truncate(size as usize))
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.0.lock().unwrap().remove(&file);
        Ok(())
    }
}

/// Files of a folder, named by their 20-digit number; segments by the position at which each starts.
pub struct FileStorage {
    folder: PathBuf,
    segment_size: u64,
    files: Mutex<HashMap<FileId, Arc<File>>>,
    /// Files are opened to be changed.
    writable: bool,
    /// Held for the process's life: one broker a folder.
    _lock: File,
}

const fn folder_name(area: Area) -> &'static str {
    match area {
        Area::Log => "commitlog",
        Area::Pages => "index",
        Area::Checkpoints => "checkpoint",
        Area::Reserve => "reserve",
    }
}

/// Largest and smallest size of a segment. The smallest holds the longest record.
const SEGMENT_SIZE: u64 = 256 << 20;
const SEGMENT_SIZE_MIN: u64 = 64 << 20;

/// What the first segment's head says.
fn known_segment_size(log: &Path) -> io::Result<Option<u64>> {
    let mut names: Vec<_> = fs::read_dir(log)?.collect::<Result<_, _>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    let Some(first) = names.first() else { return Ok(None) };
    let mut kib = [0; 4];
    let read = File::open(first.path())?.read_at(&mut kib, HEADER as u64 + 4)?;
    let size = u64::from(u32::from_le_bytes(kib)) << 10;
    Ok(Some(size).filter(|size| read == 4 && *size >= SEGMENT_SIZE_MIN))
}

fn longest_file(log: &Path) -> io::Result<u64> {
    let mut longest = 0;
    for entry in fs::read_dir(log)? {
        longest = longest.max(entry?.metadata()?.len());
    }
    Ok(longest)
}

/// A 32nd of the disk, within limits: what is claimed ahead must not be most of it.
fn segment_size_for(disk: StatVfs) -> u64 {
    let wanted = disk.f_blocks * disk.f_frsize / 32;
    let power = 1 << (63 - wanted.max(1).leading_zeros());
    power.clamp(SEGMENT_SIZE_MIN, SEGMENT_SIZE)
}

impl FileStorage {
    /// Opens a data folder, making it when there is none. Its segments have the size they had before; new
    /// ones 256 MiB, on a small disk less.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process has it open.
    pub fn open(folder: &Path) -> io::Result<Self> {
        for area in [Area::Log, Area::Pages, Area::Checkpoints, Area::Reserve] {
            fs::create_dir_all(folder.join(folder_name(area)))?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let segment_size = match known_segment_size(&folder.join(folder_name(Area::Log)))? {
            Some(size) => size,
            None => segment_size_for(statvfs(folder)?),
        };
        Ok(Self {
            folder: folder.to_owned(),
            segment_size,
            files: Mutex::default(),
            writable: true,
            _lock: lock,
        })
    }

    /// Opens the data folder of a broker that does not run, to be read only. Nothing is made or changed.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process has it open, [`io::ErrorKind::NotFound`] when it is no
    /// data folder.
    pub fn open_to_read(folder: &Path) -> io::Result<Self> {
        let log = folder.join(folder_name(Area::Log));
        if !log.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let lock = File::open(folder.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let segment_size = match known_segment_size(&log)? {
            Some(size) => size,
            None => longest_file(&log)?
                .clamp(SEGMENT_SIZE_MIN, SEGMENT_SIZE)
                .next_power_of_two(),
        };
        Ok(Self {
            folder: folder.to_owned(),
            segment_size,
            files: Mutex::default(),
            writable: false,
            _lock: lock,
        })
    }

    /// Where a file lies within the data folder.
    pub fn name(&self, file: FileId) -> String {
        format!("{}/{:020}", folder_name(file.area), file.number * self.unit(file.area))
    }

    /// Bytes of a file.
    pub fn len(&self, file: FileId) -> io::Result<u64> {
        Ok(self.file(file)?.metadata()?.len())
    }

    /// Size of a log segment, bytes.
    pub fn segment_size(&self) -> u64 {
        self.segment_size
    }

    /// What a file's name counts in.
    fn unit(&self, area: Area) -> u64 {
        match area {
            Area::Log => self.segment_size,
            Area::Pages | Area::Checkpoints | Area::Reserve => 1,
        }
    }

    fn path(&self, file: FileId) -> PathBuf {
        let name = format!("{:020}", file.number * self.unit(file.area));
        self.folder.join(folder_name(file.area)).join(name)
    }

    fn sync_folder(&self, area: Area) -> io::Result<()> {
        File::open(self.folder.join(folder_name(area)))?.sync_all()
    }

    fn file(&self, id: FileId) -> io::Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&id) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(OpenOptions::new().read(true).write(self.writable).open(self.path(id))?);
        files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    fn forget(&self, file: FileId) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&file);
    }
}

impl Storage for FileStorage {
    fn files(&self, area: Area) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        let unit = self.unit(area);
        for entry in fs::read_dir(self.folder.join(folder_name(area)))? {
            let name = entry?.file_name();
            let start = name
                .to_str()
                .filter(|name| name.len() == 20)
                .and_then(|name| name.parse::<u64>().ok());
            if let Some(start) = start.filter(|start| start.is_multiple_of(unit)) {
                numbers.push(start / unit);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn claim(&self, file: FileId, size: u64) -> io::Result<()> {
        let path = self.path(file);
        if path.exists() {
            return Ok(());
        }
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        if size > 0
            && let Err(error) = fallocate(&made, FallocateFlags::empty(), 0, size)
        {
            if error != Errno::OPNOTSUPP {
                let _ = fs::remove_file(&path);
                return Err(error.into());
            }
            made.set_len(size)?;
        }
        made.sync_all()?;
        self.sync_folder(file.area)
    }

    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(file)?.write_all_at(bytes, offset)
    }

    /// Zeros are written there: a sync of bytes that were claimed and never written makes the file system note
    /// that they are now, which costs more than the bytes themselves, and on a busy machine far more.
    fn prepare(&self, file: FileId, range: Range<u64>) -> io::Result<()> {
        let file = self.file(file)?;
        let mut at = range.start;
        while at < range.end {
            let size = ZEROS.len().min((range.end - at) as usize);
            file.write_all_at(&ZEROS[..size], at)?;
            at += size as u64;
        }
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file(file)?;
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

    fn written_end(&self, file: FileId) -> io::Result<u64> {
        let file = self.file(file)?;
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

    fn sync(&self, file: FileId) -> io::Result<()> {
        let opened = self.file(file)?;
        match file.area {
            Area::Log => opened.sync_data(),
            // These grow, and nobody waits for them.
            _ => opened.sync_all(),
        }
    }

    fn truncate(&self, file: FileId, size: u64) -> io::Result<()> {
        let file = self.file(file)?;
        file.set_len(size)?;
        file.sync_all()
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.forget(file);
        match fs::remove_file(self.path(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.sync_folder(file.area)
    }

    fn space(&self) -> io::Result<Option<Space>> {
        let stat = statvfs(&self.folder)?;
        // What only the system's administrator may use counts as not there.
        let used = stat.f_blocks - stat.f_bfree;
        Ok(Some(Space {
            total: (used + stat.f_bavail) * stat.f_frsize,
            free: stat.f_bavail * stat.f_frsize,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 4 << 20;

    #[test]
    fn what_is_prepared_is_zeros_as_before() {
        let folder = std::env::temp_dir().join(format!("rocketbridge-prepared-{}", std::process::id()));
        let storage = FileStorage::open(&folder).expect("a folder of its own");
        let file = FileId::segment(0);
        storage.claim(file, SEGMENT).expect("there is room");
        storage.write(file, 0, b"written!").expect("there is room");
        storage.prepare(file, 8..100_000).expect("there is room");
        storage.write(file, 8, b"behind").expect("there is room");
        let mut read = vec![1; 200_000];
        assert_eq!(storage.read(file, 0, &mut read).expect("it is there"), read.len());
        assert!(read.starts_with(b"written!behind\0"));
        assert!(read[14..].iter().all(|byte| *byte == 0));
        let end = storage.written_end(file).expect("it can be asked");
        assert!((100_000..SEGMENT).contains(&end), "{end}");
        fs::remove_dir_all(folder).expect("it is ours");
    }

    #[test]
    fn everything_written_is_before_the_written_end() {
        let folder = std::env::temp_dir().join(format!("rocketbridge-storage-{}", std::process::id()));
        let storage = FileStorage::open(&folder).expect("a folder of its own");
        let file = FileId::segment(0);
        storage.claim(file, SEGMENT).expect("there is room");
        for offset in [0, 1 << 16, 3 << 20, SEGMENT - 8] {
            storage.write(file, offset, b"written!").expect("there is room");
            let end = storage.written_end(file).expect("it can be asked");
            assert!(end >= offset + 8, "{end} after a write at {offset}");
        }
        fs::remove_dir_all(folder).expect("it is ours");
    }
}
