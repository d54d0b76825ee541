//! All queues by their numbers and names. Numbers rise and are never used twice, so most of them are free
//! after a while: a client may make a queue for every question it asks.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::address::{encode_bytes, is_name_of};
use crate::engine::queue::Queue;
use crate::engine::router::QueueId;

/// Queues of one block.
const BLOCK: usize = 256;

type Block = [Option<Box<Queue>>; BLOCK];

/// The queues.
#[derive(Default)]
pub(crate) struct Queues {
    /// Blocks without a queue own no memory.
    blocks: Vec<Option<Box<Block>>>,
    next: QueueId,
    /// Numbers by encoded name. The names are with the queues.
    names: HashTable<QueueId>,
    hasher: RandomState,
}

fn place(id: QueueId) -> (usize, usize) {
    (id as usize / BLOCK, id as usize % BLOCK)
}

fn get(blocks: &[Option<Box<Block>>], id: QueueId) -> Option<&Queue> {
    let (block, at) = place(id);
    blocks.get(block)?.as_ref()?[at].as_deref()
}

impl Queues {
    /// How many queues have a name.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The queue of that encoded name, with its number.
    pub(crate) fn find(&self, name: &[u8]) -> Option<(QueueId, &Queue)> {
        let is_it = |id: &QueueId| self.get(*id).is_some_and(|queue| is_name_of(name, &queue.spec.name));
        let id = *self.names.find(self.hasher.hash_one(name), is_it)?;
        Some((id, self.get(id)?))
    }

    /// From now on the queue's name means it, whatever it meant before.
    pub(crate) fn name(&mut self, id: QueueId) {
        let Self {
            blocks, names, hasher, ..
        } = self;
        let name = |id| get(blocks, id).map_or(&[][..], |queue| &queue.spec.name);
        let hash = |id| hasher.hash_one(&*encode_bytes(name(id)));
        let encoded = encode_bytes(name(id));
        let is_it = |known: &QueueId| is_name_of(&encoded, name(*known));
        match names.entry(hash(id), is_it, |known| hash(*known)) {
            Entry::Occupied(mut entry) => *entry.get_mut() = id,
            Entry::Vacant(entry) => drop(entry.insert(id)),
        }
    }

    /// The number that the next new queue gets.
    pub(crate) fn next_id(&self) -> QueueId {
        self.next
    }

    /// Numbers below are not used again.
    pub(crate) fn use_up_to(&mut self, next: QueueId) {
        self.next = self.next.max(next);
    }

    pub(crate) fn get(&self, id: QueueId) -> Option<&Queue> {
        get(&self.blocks, id)
    }

    pub(crate) fn get_mut(&mut self, id: QueueId) -> Option<&mut Queue> {
        let (block, at) = place(id);
        self.blocks.get_mut(block)?.as_mut()?[at].as_deref_mut()
    }

    /// Puts a queue at its number, and its name to it.
    pub(crate) fn insert(&mut self, id: QueueId, queue: Queue) {
        let (block, at) = place(id);
        if self.blocks.len() <= block {
            self.blocks.resize_with(block + 1, || None);
        }
        let block = self.blocks[block].get_or_insert_with(|| Box::new([const { None }; BLOCK]));
        block[at] = Some(Box::new(queue));
        self.use_up_to(id + 1);
        self.name(id);
    }

    /// Takes a queue out, with its name if that still means it.
    pub(crate) fn remove(&mut self, id: QueueId) -> Option<Box<Queue>> {
        let name = encode_bytes(&self.get(id)?.spec.name);
        let hash = self.hasher.hash_one(&*name);
        if let Ok(entry) = self.names.find_entry(hash, |known| *known == id) {
            entry.remove();
        }
        let (block, at) = place(id);
        let slot = self.blocks.get_mut(block)?;
        let queues = slot.as_mut()?;
        let queue = queues[at].take();
        if queues.iter().all(Option::is_none) {
            *slot = None;
        }
        queue
    }

    /// All of them, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (QueueId, &Queue)> {
        self.iter_from(0)
    }

    /// Those with that number or a higher one.
    pub(crate) fn iter_from(&self, from: QueueId) -> impl Iterator<Item = (QueueId, &Queue)> {
        let (first, skip) = place(from);
        let blocks = self.blocks.iter().enumerate().skip(first);
        blocks
            .filter_map(|(number, block)| Some((number, block.as_ref()?)))
            .flat_map(move |(number, block)| {
                let skip = if number == first { skip } else { 0 };
                let slots = block.iter().enumerate().skip(skip);
                slots.filter_map(move |(at, slot)| Some(((number * BLOCK + at) as QueueId, slot.as_deref()?)))
            })
    }

    /// All of them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (QueueId, &mut Queue)> {
        self.blocks
            .iter_mut()
            .enumerate()
            .filter_map(|(number, block)| Some((number, block.as_mut()?)))
            .flat_map(|(number, block)| {
                let slots = block.iter_mut().enumerate();
                slots.filter_map(move |(at, slot)| Some(((number * BLOCK + at) as QueueId, slot.as_deref_mut()?)))
            })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::address::encode_name;
    use crate::engine::entries::EntryList;
    use crate::request::{self, Limit};
    use crate::store::pages::{ListId, Pages};
    use crate::store::storage::MemoryStorage;

    fn queue(id: QueueId, name: &str, pages: &Arc<Pages>) -> Queue {
        let spec = request::Queue {
            name: Bytes::copy_from_slice(name.as_bytes()),
            durable: false,
            exclusive: true,
            auto_delete: false,
            addressable: false,
            limit: Limit::NONE,
            policy: None,
            arguments: Bytes::new(),
        };
        Queue::new(spec, EntryList::new(ListId::queue(id, 0), pages))
    }

    #[test]
    fn queues_that_are_gone_cost_nothing_and_their_numbers_are_not_used_again() {
        let pages = Arc::new(Pages::new(Arc::new(MemoryStorage::default()), 1 << 20, 1));
        let mut queues = Queues::default();
        for n in 0..10_000 {
            let id = queues.next_id();
            assert_eq!(id, n);
            queues.insert(id, queue(id, &format!("q.{n}"), &pages));
            if n % 3000 != 0 {
                assert!(queues.remove(id).is_some());
            }
        }
        let left: Vec<_> = queues.iter().map(|(id, _)| id).collect();
        assert_eq!(left, [0, 3000, 6000, 9000]);
        assert_eq!(queues.iter_from(3001).next().map(|(id, _)| id), Some(6000));
        assert_eq!(queues.iter_mut().count(), 4);
        assert_eq!(queues.blocks.iter().flatten().count(), 4);
        assert_eq!(queues.len(), 4);
        for n in 0..10_000 {
            let name = encode_name(&format!("q.{n}").into());
            let found = queues.find(&name).map(|(id, _)| id);
            assert_eq!(found, Some(n).filter(|n| left.contains(n)));
        }
        assert!(queues.get(3000).is_some() && queues.get_mut(3001).is_none() && queues.get(1 << 31).is_none());
    }

    #[test]
    fn a_name_means_the_queue_that_took_it_last() {
        let pages = Arc::new(Pages::new(Arc::new(MemoryStorage::default()), 1 << 20, 1));
        let mut queues = Queues::default();
        let found = |queues: &Queues| queues.find(b"a").map(|(id, _)| id);
        queues.insert(1, queue(1, "a", &pages));
        queues.insert(2, queue(2, "a", &pages));
        assert_eq!((found(&queues), queues.len()), (Some(2), 1));
        queues.remove(1);
        assert_eq!(found(&queues), Some(2));
        queues.insert(3, queue(3, "a", &pages));
        queues.name(2);
        queues.remove(2);
        assert_eq!((found(&queues), queues.len()), (None, 0));
    }
}
