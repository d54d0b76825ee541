//! Transient messages: the same records, in memory only.
//!
//! Positions rise as in the log, with [`Position::MEMORY`] set. A block is kept while queue entries
//! point into it; a message that was handed over at once keeps its block only as long as somebody
//! still holds the message.

use std::collections::VecDeque;

use crate::store::chunk::{ChunkWriter, Slice};
use crate::store::record::Position;

/// Memory of one block. A longer record gets blocks' worth of positions and a block of its own.
const BLOCK: usize = 64 << 10;

struct Block {
    writer: ChunkWriter,
    /// Queue entries that point into it.
    live: u32,
}

/// The transient messages that queues hold.
pub(crate) struct Memory {
    /// Block numbers of `blocks[0]` and of the next block to be made.
    first: u64,
    blocks: VecDeque<Option<Block>>,
    held: usize,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self {
            first: 0,
            blocks: VecDeque::new(),
            held: 0,
        }
    }

    /// Bytes of memory held.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// How many queue entries point into it.
    pub(crate) fn entries(&self) -> u64 {
        self.blocks.iter().flatten().map(|block| u64::from(block.live)).sum()
    }

    /// Appends a record of `len` bytes that `fill` writes.
    pub(crate) fn append(&mut self, len: usize, fill: impl FnOnce(&mut [u8], Position)) -> (Position, Slice) {
        let fits = matches!(self.blocks.back(), Some(Some(block)) if block.writer.room() >= len);
        if !fits {
            self.retire_last();
            let capacity = len.max(BLOCK);
            self.blocks.push_back(Some(Block {
                writer: ChunkWriter::new(capacity),
                live: 0,
            }));
            self.held += capacity;
        }
        let number = self.first + self.blocks.len() as u64 - 1;
        let block = self
            .blocks
            .back_mut()
            .and_then(Option::as_mut)
            .expect("the last block is in use");
        let position = Position(Position::MEMORY | (number * BLOCK as u64 + block.writer.len() as u64));
        let slice = block.writer.append(len, |record| fill(record, position));
        if len > BLOCK {
            // Its positions run over the numbers of the following blocks, which stay empty.
            self.blocks.extend((0..len.div_ceil(BLOCK) - 1).map(|_| None));
        }
        (position, slice)
    }

    /// The record of `len` bytes at `position`, if it is still held.
    pub(crate) fn get(&self, position: Position, len: usize) -> Option<Slice> {
        let (index, offset) = self.locate(position)?;
        let block = self.blocks.get(index)?.as_ref()?;
        Some(block.writer.slice(offset, len))
    }

    /// One more queue entry points to `position`.
    pub(crate) fn hold(&mut self, position: Position) {
        if let Some((index, _)) = self.locate(position)
            && let Some(Some(block)) = self.blocks.get_mut(index)
        {
            block.live += 1;
        }
    }

    /// One queue entry fewer points to `position`.
    pub(crate) fn release(&mut self, position: Position) {
        let Some((index, _)) = self.locate(position) else {
            return;
        };
        let is_last = index + 1 == self.blocks.len();
        let Some(slot) = self.blocks.get_mut(index) else { return };
        let Some(block) = slot else { return };
        block.live -= 1;
        if block.live == 0 && !is_last {
            self.held -= block.writer.len() + block.writer.room();
            *slot = None;
            self.drop_front();
        }
    }

    fn locate(&self, position: Position) -> Option<(usize, usize)> {
        let place = position.0 & !Position::MEMORY;
        let index = (place / BLOCK as u64).checked_sub(self.first)?;
        Some((index as usize, (place % BLOCK as u64) as usize))
    }

    fn retire_last(&mut self) {
        if let Some(slot) = self.blocks.back_mut()
            && let Some(block) = slot
            && block.live == 0
        {
            self.held -= block.writer.len() + block.writer.room();
            *slot = None;
        }
        self.drop_front();
    }

    fn drop_front(&mut self) {
        while matches!(self.blocks.front(), Some(None)) {
            self.blocks.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_goes_when_nothing_in_it_is_held() {
        let mut memory = Memory::new();
        let put = |memory: &mut Memory, len: usize, byte| memory.append(len, |record, _| record.fill(byte)).0;
        let kept = put(&mut memory, 1000, 1);
        memory.hold(kept);
        for _ in 0..1000 {
            put(&mut memory, 1000, 2);
        }
        let long = put(&mut memory, 3 * BLOCK, 3);
        memory.hold(long);
        let after = put(&mut memory, 8, 4);
        memory.hold(after);
        assert_eq!(memory.held(), BLOCK + 3 * BLOCK + BLOCK);
        assert_eq!(memory.entries(), 3);
        assert_eq!(memory.get(kept, 1000).unwrap()[..], [1; 1000]);
        assert_eq!(memory.get(long, 3 * BLOCK).unwrap()[2 * BLOCK], 3);
        assert_eq!(memory.get(after, 8).unwrap()[..], [4; 8]);
        memory.release(kept);
        memory.release(long);
        assert_eq!((memory.held(), memory.entries()), (BLOCK, 1));
        assert!(memory.get(kept, 1000).is_none());
        assert!(after.is_memory() && kept < long && long < after);
    }
}
