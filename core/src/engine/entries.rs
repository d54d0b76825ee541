//! A list of index entries: the newest in memory, full pages in memory for a while and then in the index
//! files, with a bit for each entry that is done with.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::store::pages::{Entry, ListId, PAGE_ENTRIES, PageEntries, Pages};
use crate::store::record::Position;

const PAGE: u64 = PAGE_ENTRIES as u64;

/// Entries with rising sequence numbers. Page `n` holds the entries `64 n .. 64 n + 64`.
pub(crate) struct EntryList {
    id: ListId,
    store: Arc<Pages>,
    /// The first entry that is kept. Those before it are gone.
    head: u64,
    /// Full pages from the one of `head` on.
    pages: PageDeque,
    /// The entries behind the pages, at most up to the end of their page, from `tail_start` on.
    tail: Tail,
    tail_start: u64,
}

/// Most lists are empty: then it is only a pointer.
#[derive(Default)]
struct Tail(Option<Box<TailEntries>>);

#[derive(Default)]
struct TailEntries {
    /// Bit `n` is entry `n` of the page that this becomes.
    done: u64,
    entries: SmallVec<[Entry; 2]>,
}

impl Tail {
    fn entries(&self) -> &[Entry] {
        self.0.as_ref().map_or(&[], |tail| &tail.entries)
    }

    fn len(&self) -> u64 {
        self.entries().len() as u64
    }

    fn done(&self) -> u64 {
        self.0.as_ref().map_or(0, |tail| tail.done)
    }

    fn push(&mut self, entry: Entry, done: u64) {
        let TailEntries { entries, done: all } = &mut **self.0.get_or_insert_default();
        if entries.len() == entries.capacity() {
            entries.reserve_exact(entries.len().min(PAGE_ENTRIES - entries.len()));
        }
        entries.push(entry);
        *all |= done;
    }

    /// Keeps its memory: lists that are emptied are filled again.
    fn clear(&mut self) {
        if let Some(tail) = &mut self.0 {
            tail.done = 0;
            tail.entries.clear();
        }
    }
}

/// Pages in a row. Most lists never have one: then it is only a pointer.
#[allow(clippy::box_collection, reason = "a pointer is smaller than an empty deque")]
#[derive(Default)]
struct PageDeque(Option<Box<VecDeque<Page>>>);

static NO_PAGES: VecDeque<Page> = VecDeque::new();

impl Deref for PageDeque {
    type Target = VecDeque<Page>;

    fn deref(&self) -> &VecDeque<Page> {
        self.0.as_deref().unwrap_or(&NO_PAGES)
    }
}

impl DerefMut for PageDeque {
    fn deref_mut(&mut self) -> &mut VecDeque<Page> {
        self.0.get_or_insert_default()
    }
}

/// A full page.
pub(crate) struct Page {
    /// Bit `n` is entry `n`.
    pub done: u64,
    /// Position of its first entry that was there: says which entries lie before a place in the log.
    pub first: Position,
    /// Its entries lie in more than one segment, or some in memory only.
    pub mixed: bool,
    pub slot: Slot,
}

/// Where the entries of a page are.
pub(crate) enum Slot {
    Resident(Box<PageEntries>),
    Stored(u32),
}

/// Entries that are not done with.
pub(crate) enum Open {
    /// So many of a page whose first record lies there, all in one segment.
    Page { first: Position, count: i64 },
    /// One of them.
    Entry { sequence: u64, entry: Entry },
}

/// A page's entries while somebody looks at them.
enum View<'a> {
    Resident(&'a PageEntries),
    Stored(Arc<PageEntries>),
    Tail(&'a [Entry], usize),
}

impl View<'_> {
    fn get(&self, at: usize) -> Entry {
        match self {
            View::Resident(entries) => entries[at],
            View::Stored(entries) => entries[at],
            View::Tail(tail, start) => tail[at - start],
        }
    }
}

/// The lowest position in the log among entries whose positions rise.
pub(crate) fn first_position(entries: &[Entry]) -> Position {
    let first = entries.iter().find(|entry| entry.size > 0);
    first.map_or(Position(u64::MAX), |entry| entry.position)
}

fn is_mixed(entries: &[Entry], store: &Pages) -> bool {
    let mut segments = entries
        .iter()
        .filter(|entry| entry.size > 0)
        .map(|entry| store.segment(entry.position));
    let first = segments.next();
    first.is_some_and(|first| segments.any(|segment| segment != first))
        || entries.iter().any(|entry| { entry.position }.is_memory())
}

fn bit(sequence: u64) -> u64 {
    1 << (sequence % PAGE)
}

/// Bits of one page for a range within it; `end` may be the page's end.
fn bits(range: Range<u64>) -> u64 {
    let count = range.end - range.start;
    if count == PAGE {
        u64::MAX
    } else {
        ((1 << count) - 1) << (range.start % PAGE)
    }
}

impl EntryList {
    /// An empty list whose first entry will get sequence 0.
    pub(crate) fn new(id: ListId, store: &Arc<Pages>) -> Self {
        Self {
            id,
            store: Arc::clone(store),
            head: 0,
            pages: PageDeque::default(),
            tail: Tail::default(),
            tail_start: 0,
        }
    }

    /// The first entry that is kept.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// The sequence that the next entry gets.
    pub(crate) fn end(&self) -> u64 {
        self.tail_start + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.end()
    }

    /// Nothing is kept, and the next entry gets that sequence.
    pub(crate) fn skip_to(&mut self, sequence: u64) {
        debug_assert!(self.is_empty() && sequence >= self.head);
        self.head = sequence;
        self.tail.clear();
        self.tail_start = sequence;
    }

    /// Appends an entry and gives its sequence.
    pub(crate) fn push(&mut self, entry: Entry) -> u64 {
        self.push_with(entry, false)
    }

    /// Uses a sequence for nothing.
    pub(crate) fn push_done(&mut self) -> u64 {
        self.push_with(Entry::NONE, true)
    }

    fn push_with(&mut self, entry: Entry, done: bool) -> u64 {
        let sequence = self.end();
        self.tail.push(entry, if done { bit(sequence) } else { 0 });
        if (sequence + 1).is_multiple_of(PAGE) {
            self.close_page();
        }
        sequence
    }

    /// The tail has come to the end of its page.
    fn close_page(&mut self) {
        let start = self.tail_start % PAGE;
        let end = self.end();
        // What was never there counts as done.
        let done = self.tail.done() | bits(self.tail_start - start..self.tail_start);
        let tail = self.tail.entries();
        let first = first_position(tail);
        if self.pages.is_empty() && done == u64::MAX {
            self.head = end;
        } else {
            let mut entries = Box::new([Entry::NONE; PAGE_ENTRIES]);
            entries[start as usize..].copy_from_slice(tail);
            self.store.note_resident(self.id, (end - 1) / PAGE);
            let mixed = is_mixed(tail, &self.store);
            self.pages.push_back(Page {
                done,
                first,
                mixed,
                slot: Slot::Resident(entries),
            });
        }
        self.tail.clear();
        self.tail_start = end;
    }

    /// The page of a sequence below the tail.
    fn page_index(&self, sequence: u64) -> usize {
        (sequence / PAGE - self.head / PAGE) as usize
    }

    fn view(&self, sequence: u64) -> Option<View<'_>> {
        if sequence >= self.tail_start {
            return Some(View::Tail(self.tail.entries(), (self.tail_start % PAGE) as usize));
        }
        let page = self.pages.get(self.page_index(sequence))?;
        match &page.slot {
            Slot::Resident(entries) => Some(View::Resident(entries)),
            Slot::Stored(number) => match self.store.read(*number, self.id, sequence / PAGE) {
                Ok(entries) => Some(View::Stored(entries)),
                Err(error) => {
                    tracing::error!(%error, "cannot read an index page");
                    None
                }
            },
        }
    }

    /// An entry that is kept; `None` when its page cannot be read.
    pub(crate) fn get(&self, sequence: u64) -> Option<Entry> {
        if !(self.head..self.end()).contains(&sequence) {
            return None;
        }
        Some(self.view(sequence)?.get((sequence % PAGE) as usize))
    }

    fn done_word(&self, sequence: u64) -> u64 {
        if sequence >= self.tail_start {
            self.tail.done()
        } else {
            self.pages
                .get(self.page_index(sequence))
                .map_or(u64::MAX, |page| page.done)
        }
    }

    /// Whether an entry is done with.
    pub(crate) fn is_done(&self, sequence: u64) -> bool {
        sequence < self.head || (sequence < self.end() && self.done_word(sequence) & bit(sequence) != 0)
    }

    /// The first entry at or after `from` that is not done with.
    pub(crate) fn next_open(&self, from: u64) -> Option<u64> {
        let mut at = from.max(self.head);
        while at < self.end() {
            let open = !self.done_word(at) >> (at % PAGE);
            if open != 0 {
                let found = at + u64::from(open.trailing_zeros());
                return (found < self.end()).then_some(found);
            }
            at = (at / PAGE + 1) * PAGE;
        }
        None
    }

    /// How many entries of a range are done with.
    pub(crate) fn done_between(&self, range: Range<u64>) -> u64 {
        let (mut at, mut count) = (range.start.max(self.head), 0);
        let end = range.end.min(self.end());
        while at < end {
            let to = end.min((at / PAGE + 1) * PAGE);
            count += u64::from((self.done_word(at) & bits(at..to)).count_ones());
            at = to;
        }
        count
    }

    /// Entries are done with. Calls `gone` with the sequence of each that was not before, and with the
    /// entry if it can be read. Then the head moves on.
    pub(crate) fn finish(&mut self, range: Range<u64>, mut gone: impl FnMut(u64, Option<Entry>)) {
        let end = range.end.min(self.end());
        let mut at = range.start.max(self.head);
        while at < end {
            let to = end.min((at / PAGE + 1) * PAGE);
            let new = bits(at..to) & !self.done_word(at);
            if new != 0 {
                let base = at / PAGE * PAGE;
                let view = self.view(at);
                let mut left = new;
                while left != 0 {
                    let index = left.trailing_zeros() as u64;
                    left &= left - 1;
                    gone(base + index, view.as_ref().map(|view| view.get(index as usize)));
                }
                drop(view);
                if at >= self.tail_start {
                    if let Some(tail) = &mut self.tail.0 {
                        tail.done |= new;
                    }
                } else {
                    let index = self.page_index(at);
                    self.pages[index].done |= new;
                }
            }
            at = to;
        }
        self.advance();
    }

    /// Moves the head over what is done with and gives up its pages.
    fn advance(&mut self) {
        while let Some(page) = self.pages.front() {
            let open = !page.done >> (self.head % PAGE);
            if open != 0 {
                self.head += u64::from(open.trailing_zeros());
                return;
            }
            self.head = (self.head / PAGE + 1) * PAGE;
            self.drop_front_page();
        }
        let open = !self.tail.done() >> (self.head % PAGE);
        let steps = u64::from(open.trailing_zeros());
        self.head = (self.head + steps).min(self.end());
        if self.is_empty() {
            self.skip_to(self.head);
            if self.pages.capacity() > 64 {
                self.pages = PageDeque::default();
            }
        }
    }

    fn drop_front_page(&mut self) {
        if let Some(Page {
            slot: Slot::Stored(number),
            ..
        }) = self.pages.pop_front()
        {
            self.store.free(number);
        }
    }

    /// Gives up every entry that lies before a place in the log, for lists whose positions rise. Gives the
    /// number of them.
    pub(crate) fn drop_before(&mut self, position: Position) -> u64 {
        let head = self.head;
        while self.pages.len() > 1 && self.pages[1].first <= position
            || self.pages.len() == 1 && first_position(self.tail.entries()) <= position
        {
            self.head = (self.head / PAGE + 1) * PAGE;
            self.drop_front_page();
        }
        while let Some(entry) = self.get(self.head)
            && { entry.position } < position
        {
            self.head += 1;
            if self.head.is_multiple_of(PAGE) && !self.pages.is_empty() {
                self.drop_front_page();
            }
        }
        if self.is_empty() {
            self.skip_to(self.head);
        }
        self.head - head
    }

    /// The entries from `from` on that are not done with, with their sequences. A page that cannot be read
    /// is left out.
    pub(crate) fn iter_from(&self, from: u64) -> impl Iterator<Item = (u64, Entry)> + '_ {
        let mut view: Option<(u64, Option<View<'_>>)> = None;
        let mut at = from;
        std::iter::from_fn(move || {
            loop {
                let sequence = self.next_open(at)?;
                let page = sequence / PAGE;
                if view.as_ref().is_none_or(|(of, _)| *of != page) {
                    view = Some((page, self.view(sequence)));
                }
                match view.as_ref().and_then(|(_, view)| view.as_ref()) {
                    Some(view) => {
                        at = sequence + 1;
                        return Some((sequence, view.get((sequence % PAGE) as usize)));
                    }
                    None => at = (page + 1) * PAGE,
                }
            }
        })
    }

    /// Replaces an entry: its record lies somewhere else now. `false` when it is not kept.
    pub(crate) fn replace(&mut self, sequence: u64, entry: Entry) -> bool {
        if self.is_done(sequence) || sequence >= self.end() {
            return false;
        }
        let at = (sequence % PAGE) as usize;
        if sequence >= self.tail_start {
            if let Some(tail) = &mut self.tail.0 {
                tail.entries[at - (self.tail_start % PAGE) as usize] = entry;
            }
            return true;
        }
        let index = self.page_index(sequence);
        if let Slot::Stored(number) = self.pages[index].slot {
            // A checkpoint may name the page as it is: the change makes a new one.
            let Ok(entries) = self.store.read(number, self.id, sequence / PAGE) else {
                return false;
            };
            self.store.free(number);
            self.store.note_resident(self.id, sequence / PAGE);
            self.pages[index].slot = Slot::Resident(Box::new(*entries));
        }
        if let Slot::Resident(entries) = &mut self.pages[index].slot {
            entries[at] = entry;
        }
        self.pages[index].mixed = true;
        true
    }

    /// Moves a page that is in memory to the index files. Nothing happens when it is not there any more.
    ///
    /// # Errors
    /// The page stays in memory when it cannot be written.
    pub(crate) fn store_page(&mut self, number: u64) -> std::io::Result<()> {
        let Some(index) = number.checked_sub(self.head / PAGE) else {
            return Ok(());
        };
        if let Some(page) = self.pages.get_mut(index as usize)
            && let Slot::Resident(entries) = &page.slot
        {
            page.slot = Slot::Stored(self.store.write(self.id, number, entries)?);
        }
        Ok(())
    }

    // --- checkpoints ------------------------------------------------------------------------------

    /// The page that holds `sequence` or, when that is gone, the first behind it; with its number.
    pub(crate) fn page_at(&self, sequence: u64) -> Option<(u64, &Page)> {
        let number = sequence.max(self.head) / PAGE;
        Some((number, self.pages.get((number - self.head / PAGE) as usize)?))
    }

    /// What is behind the pages: first sequence, entries, bits of those done with.
    pub(crate) fn tail(&self) -> (u64, &[Entry], u64) {
        (self.tail_start, self.tail.entries(), self.tail.done())
    }

    /// Reads back a page of a checkpoint. Pages come in order; what lies between is done with.
    pub(crate) fn restore_page(&mut self, number: u64, page: Page) {
        if self.pages.is_empty() && self.tail.len() == 0 {
            self.head = self.head.max(number * PAGE);
            self.tail_start = number * PAGE;
        }
        while self.tail_start < number * PAGE {
            self.push_done();
        }
        if self.tail_start == number * PAGE && self.tail.len() == 0 {
            if matches!(page.slot, Slot::Resident(_)) {
                self.store.note_resident(self.id, number);
            }
            self.pages.push_back(page);
            self.tail_start += PAGE;
        }
        if self.head / PAGE < number && self.pages.len() == 1 {
            self.head = number * PAGE;
        }
    }

    /// Reads back the tail of a checkpoint, behind its pages.
    pub(crate) fn restore_tail(&mut self, start: u64, entries: &[Entry], done: u64) {
        if self.is_empty() && start >= self.end() {
            self.skip_to(start);
        }
        while self.end() < start {
            self.push_done();
        }
        for (sequence, entry) in (start..).zip(entries) {
            if sequence == self.end() {
                self.push_with(*entry, done & bit(sequence) != 0);
            }
        }
    }

    /// After everything was read back: the head is where the first open entry is, and not before `head`.
    pub(crate) fn restored(&mut self, head: u64) {
        if head > self.end() {
            self.finish(self.head..self.end(), |_, _| {});
            self.skip_to(head);
        } else {
            self.finish(self.head..head, |_, _| {});
        }
    }

    /// Calls `each` with every open entry; with those of a page together where they lie in one segment, so
    /// that the page need not be read.
    pub(crate) fn each_open(&self, mut each: impl FnMut(Open)) {
        let mut from = self.head;
        for (index, page) in self.pages.iter().enumerate() {
            let end = (self.head / PAGE + index as u64 + 1) * PAGE;
            if page.mixed {
                self.iter_from(from)
                    .take_while(|(sequence, _)| *sequence < end)
                    .for_each(|(sequence, entry)| each(Open::Entry { sequence, entry }));
            } else if page.done != u64::MAX {
                each(Open::Page {
                    first: page.first,
                    count: i64::from((!page.done >> (from % PAGE)).count_ones()),
                });
            }
            from = end;
        }
        self.iter_from(from)
            .for_each(|(sequence, entry)| each(Open::Entry { sequence, entry }));
    }

    /// The numbers of its pages in the index files.
    pub(crate) fn stored_pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.pages.iter().filter_map(|page| match page.slot {
            Slot::Stored(number) => Some(number),
            Slot::Resident(_) => None,
        })
    }
}

impl Drop for EntryList {
    fn drop(&mut self) {
        for number in self.stored_pages() {
            self.store.free(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::storage::MemoryStorage;

    fn entry(n: u64) -> Entry {
        Entry {
            position: Position(1000 + 8 * n),
            size: 1,
            word: n,
        }
    }

    /// Random operations against a plain list; pages go to their files early.
    #[test]
    fn a_list_behaves_like_a_plain_list_wherever_its_pages_are() {
        let mut seed = 11u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for round in 0..20 {
            let pages = Arc::new(Pages::new(Arc::new(MemoryStorage::default()), 1 << 20, 3));
            let id = ListId::queue(7, 0);
            let mut list = EntryList::new(id, &pages);
            let start = random(200);
            list.skip_to(start);
            let mut open: std::collections::BTreeMap<u64, u64> = std::collections::BTreeMap::new();
            for _ in 0..3000 {
                match random(10) {
                    0..5 => {
                        let n = list.end();
                        assert_eq!(list.push(entry(n)), n);
                        open.insert(n, n);
                    }
                    5 => {
                        list.push_done();
                    }
                    6..8 if round % 2 == 0 => {
                        // Mostly in order, as consumers work.
                        let head = list.head();
                        let from = head + random(80).min(list.end() - head);
                        let range = from..from + random(100);
                        let mut gone = Vec::new();
                        list.finish(range.clone(), |sequence, entry| {
                            gone.push((sequence, entry.expect("it can be read").word));
                        });
                        let expected: Vec<_> = open.range(range).map(|(k, v)| (*k, *v)).collect();
                        assert_eq!(gone, expected);
                        gone.iter().for_each(|(n, _)| {
                            open.remove(n);
                        });
                    }
                    8 => {
                        let n = list.head() + random(list.end() - list.head() + 1);
                        let moved = Entry {
                            word: n + 1,
                            ..entry(n)
                        };
                        assert_eq!(list.replace(n, moved), open.contains_key(&n));
                        open.entry(n).and_modify(|word| *word = n + 1);
                    }
                    _ if round % 2 == 1 && random(4) == 0 => {
                        let before = Position(1000 + 8 * (list.head() + random(90)));
                        list.drop_before(before);
                        open.retain(|n, _| { entry(*n).position } >= before);
                    }
                    _ => {}
                }
                while let Some((of, page)) = pages.next_to_store() {
                    assert_eq!(of, id);
                    list.store_page(page).expect("it can be written");
                }
                let from = list.head() + random(70);
                let left: Vec<_> = list.iter_from(from).take(100).map(|(n, e)| (n, e.word)).collect();
                let expected: Vec<_> = open.range(from..).take(100).map(|(k, v)| (*k, *v)).collect();
                assert_eq!(left, expected);
                assert_eq!(list.next_open(0), open.keys().next().copied());
                let done = list.done_between(list.head()..list.end());
                assert_eq!(list.end() - list.head() - done, open.len() as u64);
            }
            let used = list.stored_pages().count();
            assert_eq!(pages.in_use(), used);
            drop(list);
            assert_eq!(pages.in_use(), 0);
        }
    }
}
