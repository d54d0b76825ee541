//! Patterns over levels, found in time that does not depend on patterns that do not match.

use std::collections::HashMap;
use std::num::NonZeroU32;

use bytes::Bytes;
use foldhash::fast::RandomState;

use crate::address::{Level, Pattern};

/// A hash map with a quick hash, seeded at random.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

/// Most levels of a pattern: bounds the depth of the search.
pub(crate) const LEVELS_MAX: usize = 200;

/// Made small: a million patterns have some millions of nodes, most of them with one child or one value.
#[derive(Default)]
struct Node {
    literal: Children,
    one: Option<NonZeroU32>,
    many: Option<NonZeroU32>,
    /// Values of patterns that end here, each with whether its first level is a wildcard that spares `$` and
    /// how often it was inserted; sorted, because thousands may share one pattern.
    here: Vec<(u64, bool, u32)>,
}

/// Nodes behind literal levels.
#[derive(Default)]
enum Children {
    #[default]
    None,
    One(Bytes, NonZeroU32),
    Many(Box<Map<Bytes, NonZeroU32>>),
}

impl Children {
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn get(&self, level: &[u8]) -> Option<NonZeroU32> {
        match self {
            Self::None => None,
            Self::One(text, node) => (**text == *level).then_some(*node),
            Self::Many(nodes) => nodes.get(level).copied(),
        }
    }

    /// Adds a level that is not there.
    fn insert(&mut self, level: Bytes, node: NonZeroU32) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(level, node),
            Self::One(text, first) => Self::Many(Box::new([(text, first), (level, node)].into_iter().collect())),
            Self::Many(mut nodes) => {
                nodes.insert(level, node);
                Self::Many(nodes)
            }
        };
    }

    fn remove(&mut self, level: &[u8]) {
        match self {
            Self::Many(nodes) => {
                nodes.remove(level);
                if nodes.is_empty() {
                    *self = Self::None;
                }
            }
            Self::One(text, _) if **text == *level => *self = Self::None,
            Self::None | Self::One(..) => {}
        }
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.one.is_none() && self.many.is_none() && self.here.is_empty()
    }
}

/// A multimap from patterns to numbers.
pub(crate) struct Trie {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

const ROOT: u32 = 0;

impl Default for Trie {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            free: Vec::new(),
        }
    }
}

/// Whether a first level begins with `$`, spelled plainly or as in an encoded topic name.
pub(crate) fn begins_with_dollar(level: &[u8]) -> bool {
    level.starts_with(b"$") || level.starts_with(b"|24")
}

fn spares(pattern: &Pattern) -> bool {
    pattern.spare_dollar && !matches!(pattern.levels.first(), None | Some(Level::Literal(_)))
}

impl Trie {
    /// Adds `value` under `pattern`; the same pair twice must be removed twice.
    pub(crate) fn insert(&mut self, pattern: &Pattern, value: u64) {
        let mut at = ROOT;
        for level in &pattern.levels {
            at = match self.child(at, level) {
                Some(next) => next,
                None => {
                    let next = self.new_node();
                    let node = &mut self.nodes[at as usize];
                    match level {
                        Level::Literal(text) => {
                            node.literal.insert(text.clone(), next);
                        }
                        Level::One => node.one = Some(next),
                        Level::Many => node.many = Some(next),
                    }
                    next.get()
                }
            };
        }
        let spare = spares(pattern);
        let here = &mut self.nodes[at as usize].here;
        match here.binary_search_by_key(&(value, spare), |(v, s, _)| (*v, *s)) {
            Ok(at) => here[at].2 += 1,
            Err(at) => {
                if here.is_empty() {
                    here.reserve_exact(1);
                }
                here.insert(at, (value, spare, 1));
            }
        }
    }

    /// Removes what one [`insert`](Self::insert) added.
    pub(crate) fn remove(&mut self, pattern: &Pattern, value: u64) {
        let mut path = vec![ROOT];
        for level in &pattern.levels {
            match self.child(*path.last().expect("begins with the root"), level) {
                Some(next) => path.push(next),
                None => return,
            }
        }
        let spare = spares(pattern);
        let here = &mut self.nodes[*path.last().expect("begins with the root") as usize].here;
        let Ok(index) = here.binary_search_by_key(&(value, spare), |(v, s, _)| (*v, *s)) else {
            return;
        };
        here[index].2 -= 1;
        if here[index].2 == 0 {
            here.remove(index);
        }
        self.prune(&path, &pattern.levels);
    }

    fn prune(&mut self, path: &[u32], levels: &[Level]) {
        for (depth, level) in levels.iter().enumerate().rev() {
            let (parent, child) = (path[depth], path[depth + 1]);
            if !self.nodes[child as usize].is_empty() {
                return;
            }
            self.nodes[child as usize] = Node::default();
            self.free.push(child);
            let node = &mut self.nodes[parent as usize];
            match level {
                Level::Literal(text) => {
                    node.literal.remove(text);
                }
                Level::One => node.one = None,
                Level::Many => node.many = None,
            }
        }
    }

    /// Calls `found` with the value of every pattern that matches, maybe more than once. Gives how many nodes
    /// were looked at.
    pub(crate) fn find(&self, levels: &[&[u8]], found: &mut impl FnMut(u64)) -> u64 {
        let dollar = levels.first().is_some_and(|level| begins_with_dollar(level));
        let mut search = Search {
            trie: self,
            levels,
            dollar,
            reached: Vec::new(),
            found,
            steps: 0,
        };
        search.visit(ROOT, 0);
        search.steps
    }

    fn child(&self, at: u32, level: &Level) -> Option<u32> {
        let node = &self.nodes[at as usize];
        match level {
            Level::Literal(text) => node.literal.get(text),
            Level::One => node.one,
            Level::Many => node.many,
        }
        .map(NonZeroU32::get)
    }

    fn new_node(&mut self) -> NonZeroU32 {
        let node = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            self.nodes.len() as u32 - 1
        });
        NonZeroU32::new(node).expect("the root is there from the beginning and is never freed")
    }
}

struct Search<'a, F> {
    trie: &'a Trie,
    levels: &'a [&'a [u8]],
    dollar: bool,
    /// Nodes behind a `Many` and the first level from which each was searched on: from there everything
    /// behind is covered, which keeps the search short however many `Many` a pattern has.
    reached: Vec<(u32, usize)>,
    found: &'a mut F,
    steps: u64,
}

impl<F: FnMut(u64)> Search<'_, F> {
    fn visit(&mut self, at: u32, depth: usize) {
        self.steps += 1;
        let node = &self.trie.nodes[at as usize];
        if let Some(many) = node.many {
            self.visit_many(many.get(), depth);
        }
        if depth == self.levels.len() {
            self.report(node);
            return;
        }
        if let Some(next) = node.literal.get(self.levels[depth]) {
            self.visit(next.get(), depth + 1);
        }
        if let Some(next) = node.one {
            self.visit(next.get(), depth + 1);
        }
    }

    fn visit_many(&mut self, many: u32, depth: usize) {
        let upto = match self.reached.iter_mut().find(|(node, _)| *node == many) {
            Some((_, from)) if *from <= depth => return,
            Some((_, from)) => std::mem::replace(from, depth) - 1,
            None => {
                self.reached.push((many, depth));
                self.report(&self.trie.nodes[many as usize]);
                self.levels.len()
            }
        };
        let node = &self.trie.nodes[many as usize];
        if node.literal.is_empty() && node.one.is_none() && node.many.is_none() {
            return;
        }
        for from in depth..=upto {
            self.visit_behind(many, from);
        }
    }

    /// As [`visit`](Self::visit), but what ends at this node was reported already.
    fn visit_behind(&mut self, at: u32, depth: usize) {
        self.steps += 1;
        let node = &self.trie.nodes[at as usize];
        if let Some(many) = node.many {
            self.visit_many(many.get(), depth);
        }
        if depth == self.levels.len() {
            return;
        }
        if let Some(next) = node.literal.get(self.levels[depth]) {
            self.visit(next.get(), depth + 1);
        }
        if let Some(next) = node.one {
            self.visit(next.get(), depth + 1);
        }
    }

    fn report(&mut self, node: &Node) {
        for (value, spare, _) in &node.here {
            if !(*spare && self.dollar) {
                (self.found)(*value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn matches(pattern: &[Level], levels: &[&[u8]]) -> bool {
        match pattern.split_first() {
            None => levels.is_empty(),
            Some((Level::Many, rest)) => (0..=levels.len()).any(|skip| matches(rest, &levels[skip..])),
            Some((Level::One, rest)) => !levels.is_empty() && matches(rest, &levels[1..]),
            Some((Level::Literal(text), rest)) => levels.first() == Some(&&text[..]) && matches(rest, &levels[1..]),
        }
    }

    #[test]
    fn the_trie_finds_what_matches_level_by_level_and_nothing_else() {
        let mut seed = 11u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let words: [&'static [u8]; 3] = [b"a", b"b", b""];
        let mut trie = Trie::default();
        let mut patterns: Vec<Pattern> = Vec::new();
        for round in 0..3000 {
            if patterns.len() < 60 && random(3) > 0 {
                let levels = (0..random(6))
                    .map(|_| match random(5) {
                        0 => Level::Many,
                        1 => Level::One,
                        _ => Level::Literal(Bytes::from_static(words[random(3) as usize])),
                    })
                    .collect();
                let pattern = Pattern {
                    levels,
                    spare_dollar: false,
                };
                trie.insert(&pattern, patterns.len() as u64);
                patterns.push(pattern);
            } else if let Some(pattern) = patterns.pop() {
                trie.remove(&pattern, patterns.len() as u64);
            }
            let levels: Vec<&[u8]> = (0..random(6)).map(|_| words[random(3) as usize]).collect();
            let mut found = BTreeSet::new();
            trie.find(&levels, &mut |value| {
                found.insert(value);
            });
            let expected: BTreeSet<u64> = (0..patterns.len())
                .filter(|i| matches(&patterns[*i].levels, &levels))
                .map(|i| i as u64)
                .collect();
            assert_eq!(found, expected, "round {round}");
        }
        while let Some(pattern) = patterns.pop() {
            trie.remove(&pattern, patterns.len() as u64);
        }
        assert!(trie.nodes[0].is_empty() && trie.free.len() == trie.nodes.len() - 1);
    }

    /// A million patterns have some millions of nodes.
    #[test]
    fn a_node_is_small() {
        assert!(size_of::<Node>() <= 72, "{} bytes", size_of::<Node>());
    }

    #[test]
    fn wildcards_spare_levels_that_begin_with_a_dollar() {
        let mut trie = Trie::default();
        let pattern = |text: &'static str| {
            let mut pattern = Pattern::from_key_pattern(text.as_bytes());
            pattern.spare_dollar = true;
            pattern
        };
        trie.insert(&pattern("#"), 1);
        trie.insert(&pattern("*.b"), 2);
        trie.insert(&pattern("$SYS.#"), 3);
        let mut found = Vec::new();
        trie.find(&[b"$SYS", b"b"], &mut |value| found.push(value));
        assert_eq!(found, [3]);
    }

    #[test]
    fn many_wildcards_do_not_explode() {
        let mut trie = Trie::default();
        let text = "#.a.".repeat(60) + "z";
        trie.insert(&Pattern::from_key_pattern(text.as_bytes()), 1);
        let levels = vec![&b"a"[..]; 120];
        trie.find(&levels, &mut |_| panic!("no z"));
    }
}
