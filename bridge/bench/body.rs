//! What stands in a body: who sent it, the how manieth it is, when, and a checksum over all of it.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | CRC-32 of the rest |
//! | 4..6 | the run, so that what an earlier one left is not counted |
//! | 6..8 | publisher |
//! | 8..12 | queue |
//! | 12..18 | sequence of this publisher in this queue, from 0 |
//! | 18..24 | microseconds since the run began when it was, or should have been, sent |
//!
//! Numbers are big-endian; what follows is filler.

use crc32fast::Hasher;

/// The shortest body that holds all that is verified.
pub const SIZE_MIN: usize = 24;

/// Who sent a message, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub run: u16,
    pub publisher: u16,
    pub queue: u32,
    /// Of this publisher in this queue.
    pub sequence: u64,
    /// Microseconds since the run began.
    pub sent_us: u64,
}

impl Stamp {
    /// The first bytes of a body that goes on with `filler`.
    pub fn write(&self, filler: &[u8]) -> [u8; SIZE_MIN] {
        let mut head = [0; SIZE_MIN];
        head[4..6].copy_from_slice(&self.run.to_be_bytes());
        head[6..8].copy_from_slice(&self.publisher.to_be_bytes());
        head[8..12].copy_from_slice(&self.queue.to_be_bytes());
        head[12..18].copy_from_slice(&self.sequence.to_be_bytes()[2..]);
        head[18..24].copy_from_slice(&self.sent_us.to_be_bytes()[2..]);
        let mut hasher = Hasher::new();
        hasher.update(&head[4..]);
        hasher.update(filler);
        head[..4].copy_from_slice(&hasher.finalize().to_be_bytes());
        head
    }

    /// Reads a body; `None` when it was altered or is none of ours.
    pub fn read(body: &[u8]) -> Option<Self> {
        let head = body.first_chunk()?;
        (crc32fast::hash(&body[4..]) == checksum(head)).then(|| fields(head))
    }
}

fn checksum(head: &[u8; SIZE_MIN]) -> u32 {
    number(&head[..4]) as u32
}

fn fields(head: &[u8; SIZE_MIN]) -> Stamp {
    Stamp {
        run: number(&head[4..6]) as u16,
        publisher: number(&head[6..8]) as u16,
        queue: number(&head[8..12]) as u32,
        sequence: number(&head[12..18]),
        sent_us: number(&head[18..24]),
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A body that comes in pieces.
#[derive(Debug)]
pub struct Pieces {
    head: [u8; SIZE_MIN],
    have: usize,
    hasher: Hasher,
    /// Bytes still to come.
    rest: u64,
}

impl Pieces {
    /// A body of that many bytes.
    pub fn of(size: u64) -> Self {
        Self {
            head: [0; SIZE_MIN],
            have: 0,
            hasher: Hasher::new(),
            rest: size,
        }
    }

    /// The next piece. Says whether it was the last.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        let skip = 4_usize.saturating_sub(self.have).min(piece.len());
        let head = (SIZE_MIN - self.have).min(piece.len());
        self.head[self.have..self.have + head].copy_from_slice(&piece[..head]);
        self.have += head;
        self.hasher.update(&piece[skip..]);
        self.rest = self.rest.saturating_sub(piece.len() as u64);
        self.rest == 0
    }

    /// What it says, once it is whole.
    pub fn stamp(self) -> Option<Stamp> {
        (self.have == SIZE_MIN && self.hasher.finalize() == checksum(&self.head)).then(|| fields(&self.head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        run: 0xBEEF,
        publisher: 7,
        queue: 99_999,
        sequence: 0x0102_0304_0506,
        sent_us: 0x0A0B_0C0D_0E0F,
    };

    fn body(size: usize) -> Vec<u8> {
        let filler = vec![b'x'; size - SIZE_MIN];
        let mut body = STAMP.write(&filler).to_vec();
        body.extend_from_slice(&filler);
        body
    }

    #[test]
    fn a_body_tells_what_was_written_into_it() {
        for size in [SIZE_MIN, 25, 256, 5000] {
            assert_eq!(Stamp::read(&body(size)), Some(STAMP));
        }
        assert_eq!(Stamp::read(b"short"), None);
    }

    #[test]
    fn any_altered_bit_is_noticed_whole_or_in_pieces() {
        let size = 60;
        for bit in 0..size * 8 {
            let mut altered = body(size);
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::read(&altered), None, "bit {bit}");
            let mut pieces = Pieces::of(size as u64);
            pieces.feed(&altered);
            assert_eq!(pieces.stamp(), None, "bit {bit}");
        }
    }

    #[test]
    fn pieces_of_any_length_are_one_body() {
        let body = body(100);
        for length in 1..=100 {
            let mut pieces = Pieces::of(100);
            let mut last = false;
            for piece in body.chunks(length) {
                assert!(!last);
                last = pieces.feed(piece);
            }
            assert!(last);
            assert_eq!(pieces.stamp(), Some(STAMP), "{length}");
        }
    }
}
