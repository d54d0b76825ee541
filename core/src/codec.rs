//! The fields that durable values are made of: numbers, names, ways. Values put them together
//! ([`Change`](crate::engine), [`History`](crate::history::History), [`Attributes`](crate::attributes::Attributes));
//! `store/FORMAT.md` says how.

use bytes::{BufMut, Bytes};

use crate::policy::Way;

pub(crate) fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

pub(crate) fn put_bools(out: &mut impl BufMut, bools: &[bool]) {
    bools.iter().for_each(|b| out.put_u8(u8::from(*b)));
}

pub(crate) fn put_way(out: &mut impl BufMut, way: &Way) {
    match way {
        Way::Queue => out.put_u8(0),
        Way::Topics => out.put_u8(1),
        Way::Exchange(name) => {
            out.put_u8(2);
            put_bytes(out, name);
        }
    }
}

/// Reads one field after the other; `None` when the bytes are not one. Nothing that they claim panics or asks for
/// memory beyond their own length.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const SIZE: usize>(&mut self) -> Option<[u8; SIZE]> {
        self.take(SIZE)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(crate) fn bool(&mut self) -> Option<bool> {
        Some(self.u8()? != 0)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// What [`put_bytes`] put, where it stands.
    pub(crate) fn slice(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// What [`put_bytes`] put.
    pub(crate) fn bytes(&mut self) -> Option<Bytes> {
        self.slice().map(Bytes::copy_from_slice)
    }

    pub(crate) fn way(&mut self) -> Option<Way> {
        Some(match self.u8()? {
            0 => Way::Queue,
            1 => Way::Topics,
            2 => Way::Exchange(self.bytes()?),
            _ => return None,
        })
    }
}
