//! Last values: of each address, the newest message that was published to be kept for those who come later.
//!
//! An index over records, rebuilt from them: a flag in the record makes it the last value of its address. It
//! is sorted by address, so that a pattern visits only what lies below its literal levels, and a long answer
//! goes on where it stopped.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use crate::address::{Level, Pattern, levels_from_key};
use crate::boundary::{Publish, Reject};
use crate::engine::change::Change;
use crate::engine::links::LinkId;
use crate::engine::progress::{Entry, RECALLED};
use crate::engine::router::QueueId;
use crate::engine::state::{STEPS_MAX, State, Work};
use crate::engine::trie::begins_with_dollar;
use crate::request::{Refusal, Reply};

/// Between the levels of an address in the index: below every byte that a level is spelled with.
const SEPARATOR: u8 = 0;
/// Stands before a byte that would be below it, plus one.
const ESCAPE: u8 = 1;

/// Last values put into queues in one hold.
const RECALLED_MAX: usize = STEPS_MAX / 2;

/// The last value of every address that has one.
#[derive(Default)]
pub(crate) struct Retained {
    values: BTreeMap<Box<[u8]>, Entry>,
    /// What was asked for and not put into its queue yet.
    recalls: VecDeque<Recall>,
    /// Up to where the last look for expired values came.
    swept: Box<[u8]>,
}

struct Recall {
    queue: QueueId,
    pattern: Pattern,
    /// Everything before this was looked at.
    from: Vec<u8>,
}

/// How an address stands in the index.
pub(crate) fn index_key(topic: &[u8], key: &[u8]) -> Vec<u8> {
    let mut at = topic.to_vec();
    for level in levels_from_key(key)
        .into_iter()
        .flat_map(|text| text.split(|b| *b == b'.'))
    {
        at.push(SEPARATOR);
        put_level(&mut at, level);
    }
    at
}

fn put_level(out: &mut Vec<u8>, level: &[u8]) {
    for byte in level {
        if *byte <= ESCAPE {
            out.push(ESCAPE);
            out.push(byte + 1);
        } else {
            out.push(*byte);
        }
    }
}

impl Retained {
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    fn contains(&self, topic: &[u8], key: &[u8]) -> bool {
        !self.values.is_empty() && self.values.contains_key(&index_key(topic, key)[..])
    }

    /// Sets or, without an entry, removes the value of an address; gives the one before.
    pub(crate) fn set(&mut self, address: Vec<u8>, entry: Option<Entry>) -> Option<Entry> {
        match entry {
            Some(entry) => self.values.insert(address.into(), entry),
            None => self.values.remove(&address[..]),
        }
    }

    pub(crate) fn get(&self, address: &[u8]) -> Option<Entry> {
        self.values.get(address).copied()
    }

    /// Values whose address matches, from `from` on. Looks at no more than `steps` and gives where to go on.
    fn find(&self, pattern: &Pattern, from: &[u8], steps: usize) -> (Vec<Entry>, Option<Vec<u8>>) {
        let mut walk = Walk {
            values: &self.values,
            pattern,
            from,
            steps,
            found: Vec::new(),
            stopped_at: None,
        };
        walk.visit(0, &mut Vec::new());
        (walk.found, walk.stopped_at)
    }
}

/// One slice of a search.
struct Walk<'a> {
    values: &'a BTreeMap<Box<[u8]>, Entry>,
    pattern: &'a Pattern,
    from: &'a [u8],
    steps: usize,
    found: Vec<Entry>,
    stopped_at: Option<Vec<u8>>,
}

impl<'a> Walk<'a> {
    /// Looks at everything that begins with `prefix` and goes on as the levels from `depth` on say.
    fn visit(&mut self, depth: usize, prefix: &mut Vec<u8>) {
        let length = prefix.len();
        match self.pattern.levels.get(depth) {
            None => self.visit_one(prefix),
            Some(Level::Literal(text)) => {
                if depth > 0 {
                    prefix.push(SEPARATOR);
                }
                put_level(prefix, text);
                self.visit(depth + 1, prefix);
            }
            Some(Level::One) => self.visit_children(depth, prefix),
            Some(Level::Many) => self.visit_all(depth, prefix),
        }
        prefix.truncate(length);
    }

    fn visit_one(&mut self, address: &[u8]) {
        if address < self.from || !self.step(address) {
            return;
        }
        if let Some(entry) = self.values.get(address) {
            self.found.push(*entry);
        }
    }

    fn visit_children(&mut self, depth: usize, prefix: &mut Vec<u8>) {
        if depth > 0 {
            prefix.push(SEPARATOR);
        }
        let base = prefix.len();
        let mut at = std::cmp::max(&prefix[..], self.from).to_vec();
        while let Some(address) = self.first_from(&at)
            && address.starts_with(&prefix[..base])
        {
            if !self.step(&at) {
                return;
            }
            let level = address[base..].split(|b| *b == SEPARATOR).next().unwrap_or_default();
            if depth > 0 || !self.is_spared(level) {
                prefix.extend_from_slice(level);
                self.visit(depth + 1, prefix);
                prefix.truncate(base);
                if self.stopped_at.is_some() {
                    return;
                }
            }
            at = [&address[..base], level, &[SEPARATOR + 1]].concat();
        }
    }

    fn visit_all(&mut self, depth: usize, prefix: &[u8]) {
        let rest = &self.pattern.levels[depth + 1..];
        let below = |address: &[u8]| {
            depth == 0
                || address
                    .strip_prefix(prefix)
                    .is_some_and(|rest| matches!(rest.first(), None | Some(&SEPARATOR)))
        };
        let from = prefix.max(self.from);
        let values = self.values;
        for (address, entry) in values.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)) {
            if !below(address) {
                return;
            }
            if !self.step(address) {
                return;
            }
            let is_spared = depth == 0 && self.is_spared(address);
            if !is_spared && (rest.is_empty() || matches_behind(rest, &address[prefix.len()..], depth > 0)) {
                self.found.push(*entry);
            }
        }
    }

    fn is_spared(&self, level: &[u8]) -> bool {
        self.pattern.spare_dollar && begins_with_dollar(level)
    }

    fn first_from(&self, at: &[u8]) -> Option<&'a [u8]> {
        let mut range = self.values.range::<[u8], _>((Bound::Included(at), Bound::Unbounded));
        range.next().map(|(address, _)| &address[..])
    }

    /// Counts a step; without one left the search stops, to go on at that address.
    fn step(&mut self, at: &[u8]) -> bool {
        if self.steps == 0 {
            self.stopped_at.get_or_insert_with(|| at.to_vec());
            return false;
        }
        self.steps -= 1;
        true
    }
}

/// Whether levels behind a `Many` match the end of an address.
fn matches_behind(levels: &[Level], text: &[u8], is_separated: bool) -> bool {
    let all: Vec<&[u8]> = match (text, is_separated) {
        (b"", true) => Vec::new(),
        (text, true) => text[1..].split(|b| *b == SEPARATOR).collect(),
        (text, false) => text.split(|b| *b == SEPARATOR).collect(),
    };
    // Which suffixes of the text the levels from the last on match.
    let mut matched: Vec<bool> = (0..=all.len()).map(|from| from == all.len()).collect();
    for level in levels.iter().rev() {
        let mut next = vec![false; all.len() + 1];
        for from in (0..=all.len()).rev() {
            next[from] = match level {
                Level::Many => matched[from] || (from < all.len() && next[from + 1]),
                Level::One => from < all.len() && matched[from + 1],
                Level::Literal(text) => {
                    let mut spelled = Vec::new();
                    put_level(&mut spelled, text);
                    from < all.len() && all[from] == spelled && matched[from + 1]
                }
            };
        }
        matched = next;
    }
    matched.contains(&true)
}

impl State {
    /// Whether the message changes the last value of its address, so that it has to be in the log.
    pub(crate) fn check_retained(&self, publish: &Publish) -> Result<bool, Reject> {
        if !publish.retain {
            return Ok(false);
        }
        let exists = self.retained.contains(&publish.topic, &publish.key);
        if !publish.body.is_empty() && !exists && self.retained.len() >= self.config.retained_max {
            return Err(Reject::QueueFull);
        }
        Ok(exists || !publish.body.is_empty())
    }

    /// The message becomes the last value of its address, or clears it. `topic` is the one it entered.
    pub(crate) fn retain(&mut self, publish: &Publish, topic: Option<u32>, entry: Entry) {
        let address = index_key(&publish.topic, &publish.key);
        let new = (!publish.body.is_empty()).then_some(entry);
        // A record in the topic for those without one does not tell its address.
        if topic.is_some_and(|topic| self.topics[topic as usize].name != publish.topic) {
            let entry = new.unwrap_or(Entry { size: 0, ..entry });
            let address = Bytes::from(address.clone());
            self.change_quietly(&Change::Retained { address, entry });
        }
        self.set_retained(address, new);
    }

    pub(crate) fn set_retained(&mut self, address: Vec<u8>, entry: Option<Entry>) {
        if let Some(entry) = entry {
            self.hold_entry(entry);
        }
        if let Some(old) = self.retained.set(address, entry) {
            self.release_entry(old);
        }
    }

    pub(crate) fn recall(&mut self, link: LinkId, name: &Bytes, pattern: Pattern) -> Result<Reply, Refusal> {
        let queue = self.queue_for(link, name)?;
        if self.retained.len() > 0 {
            self.retained.recalls.push_back(Recall {
                queue,
                pattern,
                from: Vec::new(),
            });
            if !self.work.contains(&Work::Recall) {
                self.work.push_back(Work::Recall);
            }
        }
        Ok(Reply::Done)
    }

    /// Puts the next last values that somebody asked for into their queue.
    pub(crate) fn go_on_recalling(&mut self) {
        let Some(recall) = self.retained.recalls.pop_front() else {
            return;
        };
        let (mut found, next) = self.retained.find(&recall.pattern, &recall.from, RECALLED_MAX);
        let now = self.clock();
        found.retain(|entry| !entry.is_expired(now));
        if self.queue(recall.queue).is_none() {
            // It went meanwhile.
        } else {
            self.put_recalled(recall.queue, found);
            if let Some(from) = next {
                // Others have their turn between.
                self.retained.recalls.push_back(Recall { from, ..recall });
            }
        }
        if !self.retained.recalls.is_empty() && !self.work.contains(&Work::Recall) {
            self.work.push_back(Work::Recall);
        }
    }

    fn put_recalled(&mut self, id: QueueId, mut entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut first = None;
        for entry in &mut entries {
            entry.word |= RECALLED;
            let sequence = self.keep(id, 0, *entry);
            first.get_or_insert(sequence);
        }
        let durable = self.queue(id).is_some_and(|queue| queue.spec.durable);
        if let Some(first) = first
            && durable
        {
            self.change_quietly(&Change::Recalled { id, first, entries });
        }
        self.enforce_limit(id);
        self.mark_dirty(id);
    }

    /// Gives up values that have expired; a part of them each time.
    pub(crate) fn sweep_retained(&mut self) {
        let wall = self.now.wall;
        let from = std::mem::take(&mut self.retained.swept);
        let mut range = self
            .retained
            .values
            .range::<[u8], _>((Bound::Included(&from[..]), Bound::Unbounded));
        let expired: Vec<Vec<u8>> = range
            .by_ref()
            .take(STEPS_MAX)
            .filter(|(_, entry)| entry.is_expired(wall))
            .map(|(address, _)| address.to_vec())
            .collect();
        self.retained.swept = range.next().map(|(address, _)| address.clone()).unwrap_or_default();
        for address in expired {
            self.set_retained(address, None);
        }
    }

    /// Replay: the last value of an address.
    pub(crate) fn replay_retained(&mut self, address: Vec<u8>, entry: Entry, is_empty: bool) {
        self.set_retained(address, (!is_empty).then_some(entry));
    }

    /// Puts the next last value into a checkpoint, from `at` on; gives whether that was all.
    pub(crate) fn checkpoint_retained(&self, at: &mut Vec<u8>, put: &mut dyn FnMut(&Change)) -> bool {
        let from = Bound::Included(&at[..]);
        let Some((address, entry)) = self.retained.values.range::<[u8], _>((from, Bound::Unbounded)).next() else {
            return true;
        };
        put(&Change::Retained {
            address: Bytes::copy_from_slice(address),
            entry: *entry,
        });
        at.clear();
        at.extend_from_slice(address);
        at.push(SEPARATOR);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Position;

    fn entry(n: u64) -> Entry {
        Entry {
            position: Position(n),
            size: 1,
            word: 0,
        }
    }

    fn matches(pattern: &[Level], levels: &[&[u8]]) -> bool {
        match pattern.split_first() {
            None => levels.is_empty(),
            Some((Level::Many, rest)) => (0..=levels.len()).any(|skip| matches(rest, &levels[skip..])),
            Some((Level::One, rest)) => !levels.is_empty() && matches(rest, &levels[1..]),
            Some((Level::Literal(text), rest)) => levels.first() == Some(&&text[..]) && matches(rest, &levels[1..]),
        }
    }

    #[test]
    fn a_search_finds_what_matches_whatever_its_slices() {
        let mut seed = 5u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let words: [&[u8]; 6] = [b"a", b"b", b"", b"a-b", b"\x01", b"\0a"];
        let mut retained = Retained::default();
        let mut model: Vec<(Vec<&[u8]>, u64)> = Vec::new();
        for n in 0..400 {
            let levels: Vec<&[u8]> = (0..=random(4)).map(|_| words[random(6) as usize]).collect();
            let topic = if levels[0].is_empty() { b"|-" } else { levels[0] };
            let text = levels[1..].join(&b'.');
            let key = crate::address::key_from_levels((levels.len() > 1).then_some(&text[..]));
            // The first level is a topic name, which is never spelled with such bytes.
            if topic.iter().any(|b| *b <= ESCAPE) {
                continue;
            }
            retained.set(index_key(topic, &key), Some(entry(n)));
            let mut levels = levels;
            levels[0] = topic;
            model.retain(|(known, _)| *known != levels);
            model.push((levels, n));
        }
        assert_eq!(retained.len(), model.len());
        for _ in 0..2000 {
            let levels: Vec<Level> = (0..=random(4))
                .map(|at| match random(5) {
                    0 => Level::One,
                    1 => Level::Many,
                    n if at == 0 => Level::Literal(Bytes::from_static([&b"a"[..], b"b", b"|-"][n as usize - 2])),
                    _ => Level::Literal(Bytes::from_static(words[random(6) as usize])),
                })
                .collect();
            let pattern = Pattern {
                levels,
                spare_dollar: true,
            };
            // Enough to come to the end of one address.
            let steps = 8 + random(20) as usize;
            let (mut found, mut from) = (Vec::new(), Some(Vec::new()));
            while let Some(at) = from {
                let (some, next) = retained.find(&pattern, &at, steps);
                found.extend(some.iter().map(|entry| entry.position));
                assert_ne!(next.as_ref(), Some(&at), "it goes on");
                from = next;
            }
            let mut found: Vec<u64> = found.into_iter().map(|position| position.0).collect();
            found.sort_unstable();
            let mut expected: Vec<u64> = model
                .iter()
                .filter(|(address, _)| matches(&pattern.levels, address))
                .map(|(_, n)| *n)
                .collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{pattern:?}");
        }
    }
}
