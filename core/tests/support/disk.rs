//! A disk in memory: the power leaves it at any step, it may be small, and it knows who reads index pages.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use rocketbridge_core::store::storage::{Area, FileId, Space, Storage};

use super::Random;

#[derive(Clone, Default)]
struct Segment {
    synced: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Segment {
    fn settle(&mut self) {
        self.synced.clone_from(&self.current);
        self.unsynced.clear();
    }
}

#[derive(Default)]
struct Disk {
    files: BTreeMap<FileId, Segment>,
    /// Writes, syncs and claims still allowed before everything fails.
    steps_left: Option<u64>,
    writes: u64,
    syncs: u64,
    /// Bytes that it holds in all; no limit when there is none.
    total: Option<u64>,
    /// Bytes of somebody else's files.
    foreign: u64,
    /// How often each thread, by its name, has read index pages.
    page_reads: BTreeMap<String, usize>,
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        let own: usize = self.files.values().map(|file| file.current.len()).sum();
        self.foreign + own as u64
    }

    /// Makes sure that so many more bytes have room.
    fn room(&self, bytes: u64) -> io::Result<()> {
        match self.total {
            Some(total) if self.used() + bytes > total => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

/// A disk in memory that forgets, tears and reorders what was not synced.
#[derive(Clone, Default)]
pub struct CrashStorage(Arc<Mutex<Disk>>);

impl CrashStorage {
    /// A disk that holds so many bytes.
    pub fn small(total: u64) -> Self {
        let storage = Self::default();
        storage.0.lock().unwrap().total = Some(total);
        storage
    }

    /// Bytes that are used, somebody else's with them.
    pub fn used(&self) -> u64 {
        self.0.lock().unwrap().used()
    }

    /// Somebody else's files take so many bytes from now on.
    pub fn set_foreign(&self, bytes: u64) {
        self.0.lock().unwrap().foreign = bytes;
    }

    /// How often each thread, by its name, has read index pages since this was forgotten.
    pub fn page_reads(&self) -> BTreeMap<String, usize> {
        self.0.lock().unwrap().page_reads.clone()
    }

    pub fn forget_page_reads(&self) {
        self.0.lock().unwrap().page_reads.clear();
    }

    /// The power goes after so many more writes, syncs and claims.
    pub fn fail_after(&self, steps: u64) {
        self.0.lock().unwrap().steps_left = Some(steps);
    }

    pub fn writes(&self) -> u64 {
        self.0.lock().unwrap().writes
    }

    pub fn syncs(&self) -> u64 {
        self.0.lock().unwrap().syncs
    }

    /// The disk after the power was gone: of what was not synced, any part in any order may be there.
    pub fn after_power_cut(&self, random: &mut Random) -> Self {
        let disk = self.0.lock().unwrap();
        let mut after = Disk::default();
        for (number, segment) in &disk.files {
            let mut bytes = segment.synced.clone();
            for (offset, data) in &segment.unsynced {
                let kept = match random.below(4) {
                    0 => 0,
                    1 => random.below(data.len() as u64 + 1) as usize,
                    _ => data.len(),
                };
                let from = if random.below(8) == 0 { kept / 2 } else { 0 };
                bytes[offset + from..offset + kept].copy_from_slice(&data[from..kept]);
            }
            let settled = Segment {
                synced: bytes.clone(),
                current: bytes,
                unsynced: Vec::new(),
            };
            after.files.insert(*number, settled);
        }
        Self(Arc::new(Mutex::new(after)))
    }

    /// The disk as it is when only the process dies.
    pub fn after_kill(&self) -> Self {
        let mut after = Disk {
            files: self.0.lock().unwrap().files.clone(),
            ..Disk::default()
        };
        after.files.values_mut().for_each(Segment::settle);
        Self(Arc::new(Mutex::new(after)))
    }

    /// Changes one stored byte.
    pub fn damage(&self, segment: u64, offset: usize) {
        let mut disk = self.0.lock().unwrap();
        let segment = disk.files.get_mut(&FileId::segment(segment)).unwrap();
        segment.current[offset] ^= 0x55;
        segment.settle();
    }
}

impl Storage for CrashStorage {
    fn files(&self, area: Area) -> io::Result<Vec<u64>> {
        let disk = self.0.lock().unwrap();
        Ok(disk
            .files
            .keys()
            .filter(|file| file.area == area)
            .map(|file| file.number)
            .collect())
    }

    fn claim(&self, file: FileId, size: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        if !disk.files.contains_key(&file) {
            disk.room(size)?;
        }
        disk.files.entry(file).or_insert_with(|| Segment {
            synced: vec![0; size as usize],
            current: vec![0; size as usize],
            unsynced: Vec::new(),
        });
        Ok(())
    }

    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.writes += 1;
        let segment = disk.files.get(&file).ok_or(io::ErrorKind::NotFound)?;
        let end = offset as usize + bytes.len();
        let more = end.saturating_sub(segment.current.len());
        if more > 0 {
            disk.room(more as u64)?;
        }
        let segment = disk.files.get_mut(&file).expect("it was there");
        if segment.current.len() < end {
            segment.current.resize(end, 0);
            segment.synced.resize(end, 0);
        }
        segment.current[offset as usize..end].copy_from_slice(bytes);
        segment.unsynced.push((offset as usize, bytes.to_vec()));
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.0.lock().unwrap();
        if file.area == Area::Pages {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default().to_owned();
            *disk.page_reads.entry(name).or_default() += 1;
        }
        let segment = disk.files.get(&file).ok_or(io::ErrorKind::NotFound)?;
        let bytes = segment.current.get(offset as usize..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn sync(&self, file: FileId) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.syncs += 1;
        disk.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?.settle();
        Ok(())
    }

    fn truncate(&self, file: FileId, size: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let segment = disk.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        segment.current.truncate(size as usize);
        segment.settle();
        Ok(())
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.0.lock().unwrap().files.remove(&file);
        Ok(())
    }

    fn space(&self) -> io::Result<Option<Space>> {
        let disk = self.0.lock().unwrap();
        Ok(disk.total.map(|total| Space {
            total,
            free: total.saturating_sub(disk.used()),
        }))
    }
}
