//! A disk in memory that fails at any step and, after a power cut, holds of what was not synced any sectors,
//! applied in any order.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use rocketbridge_core::store::storage::{Area, FileId, Storage};

use crate::random::Random;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// How the disk fails; afterwards nothing works any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step is not done.
    Refused,
    /// A write is done in part.
    Short,
    /// The step is done, but says that it is not.
    Lied,
    /// No space is left.
    Full,
    /// Checkpoints and pages find no space for a while; the log does.
    Tight,
}

#[derive(Clone, Default)]
struct File {
    synced: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl File {
    fn settle(&mut self) {
        self.synced.resize(self.current.len(), 0);
        for (offset, bytes) in self.unsynced.drain(..) {
            self.synced[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        self.current[offset..end].copy_from_slice(bytes);
        self.unsynced.push((offset, bytes.to_vec()));
    }

    /// Of what was not synced every sector is there or not, and sectors of several writes may be of any of
    /// them.
    fn after_power_cut(&self, random: &mut Random) -> Self {
        let mut bytes = self.synced.clone();
        let kept = [0, 3, 6, 9, 10][random.index(5)];
        let mut sectors = Vec::new();
        for (offset, data) in &self.unsynced {
            let mut from = 0;
            while from < data.len() {
                let to = ((offset + from) / SECTOR * SECTOR + SECTOR - offset).min(data.len());
                sectors.push((offset + from, &data[from..to]));
                from = to;
            }
        }
        if random.once_in(2) {
            random.shuffle(&mut sectors);
        }
        for (offset, data) in sectors {
            if random.below(10) < kept {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[offset..end].copy_from_slice(data);
            }
        }
        Self {
            synced: bytes.clone(),
            current: bytes,
            unsynced: Vec::new(),
        }
    }
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<FileId, File>,
    steps: u64,
    fault: Option<(u64, Fault)>,
    /// For so many steps checkpoints and pages find no space.
    tight: u64,
    refused: bool,
    failed: bool,
}

impl Inner {
    /// Counts a step; when the fault has come, says which.
    fn step(&mut self, area: Area) -> io::Result<Option<Fault>> {
        if self.failed {
            return Err(io::Error::other("the disk is gone"));
        }
        self.steps += 1;
        if self.tight > 0 {
            self.tight -= 1;
            if area != Area::Log {
                self.refused = true;
                return Err(error(Fault::Full));
            }
        }
        match self.fault {
            Some((at, Fault::Tight)) if self.steps > at => {
                (self.fault, self.tight) = (None, 20);
                Ok(None)
            }
            Some((at, fault)) if self.steps > at => {
                self.failed = true;
                self.refused = true;
                Ok(Some(fault))
            }
            _ => Ok(None),
        }
    }

    /// A step that is done whole or not at all.
    fn whole(&mut self, area: Area, act: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        match self.step(area)? {
            None => act(self),
            Some(fault) => {
                if fault == Fault::Lied {
                    act(self)?;
                }
                Err(error(fault))
            }
        }
    }

    fn file(&mut self, file: FileId) -> io::Result<&mut File> {
        self.files.get_mut(&file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::Full => io::ErrorKind::StorageFull.into(),
        _ => io::Error::other("input/output error"),
    }
}

/// Clones are the same disk.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// After so many more steps the disk fails for good.
    pub fn fail_after(&self, steps: u64, fault: Fault) {
        let mut inner = self.inner();
        inner.fault = Some((inner.steps + steps, fault));
    }

    pub fn failed(&self) -> bool {
        self.inner().failed
    }

    /// It refused something, once or for good.
    pub fn has_refused(&self) -> bool {
        self.inner().refused
    }

    /// Nothing of the life so far reaches the disk any more.
    pub fn detach(&self) {
        self.inner().failed = true;
    }

    pub fn after_power_cut(&self, random: &mut Random) -> Self {
        self.copy(|file| file.after_power_cut(random))
    }

    /// Only the process died: what the kernel has stays, and is still not on the disk.
    pub fn after_kill(&self) -> Self {
        self.copy(File::clone)
    }

    /// A second disk with the same bytes.
    pub fn snapshot(&self) -> Self {
        self.copy(File::clone)
    }

    fn copy(&self, mut each: impl FnMut(&File) -> File) -> Self {
        let files = self.inner().files.iter().map(|(id, file)| (*id, each(file))).collect();
        Self(Arc::new(Mutex::new(Inner {
            files,
            ..Inner::default()
        })))
    }
}

impl Storage for Disk {
    fn files(&self, area: Area) -> io::Result<Vec<u64>> {
        let inner = self.inner();
        let of_area = inner.files.keys().filter(|file| file.area == area);
        Ok(of_area.map(|file| file.number).collect())
    }

    fn claim(&self, file: FileId, size: u64) -> io::Result<()> {
        self.inner().whole(file.area, |inner| {
            let zeros = || vec![0; size as usize];
            inner.files.entry(file).or_insert_with(|| File {
                synced: zeros(),
                current: zeros(),
                unsynced: Vec::new(),
            });
            Ok(())
        })
    }

    fn write(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner();
        let fault = inner.step(file.area)?;
        let file = inner.file(file)?;
        match fault {
            None | Some(Fault::Lied) => file.write(offset as usize, bytes),
            Some(Fault::Short) => file.write(offset as usize, &bytes[..bytes.len() / 2]),
            Some(Fault::Refused | Fault::Full | Fault::Tight) => {}
        }
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn prepare(&self, file: FileId, range: Range<u64>) -> io::Result<()> {
        let mut inner = self.inner();
        let bytes = &inner.file(file)?.current[range.start as usize..range.end as usize];
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "prepared what was written: {range:?}"
        );
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.inner();
        let bytes = inner.file(file)?.current.get(offset as usize..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn sync(&self, file: FileId) -> io::Result<()> {
        self.inner().whole(file.area, |inner| {
            inner.file(file)?.settle();
            Ok(())
        })
    }

    fn truncate(&self, file: FileId, size: u64) -> io::Result<()> {
        self.inner().whole(file.area, |inner| {
            let file = inner.file(file)?;
            file.current.truncate(size as usize);
            file.synced.clone_from(&file.current);
            file.unsynced.clear();
            Ok(())
        })
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.inner().whole(file.area, |inner| {
            inner.files.remove(&file);
            Ok(())
        })
    }
}
