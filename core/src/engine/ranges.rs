//! A set of sequence numbers, kept as ranges: what neighbours cost together, one alone costs.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers as disjoint ranges that do not touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    /// Nothing as long as it was never used: there may be millions of these.
    inner: Option<Box<Inner>>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    /// Start to end (exclusive).
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

static EMPTY: BTreeMap<u64, u64> = BTreeMap::new();

impl Ranges {
    fn ranges(&self) -> &BTreeMap<u64, u64> {
        self.inner.as_ref().map_or(&EMPTY, |inner| &inner.ranges)
    }

    /// How many numbers are in the set.
    pub(crate) fn count(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.count)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let below = self.ranges().range(..=number).next_back();
        below.is_some_and(|(_, end)| number < *end)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.ranges().iter().map(|(start, end)| *start..*end)
    }

    /// Adds numbers, some of which may be in already.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.inner.get_or_insert_default().insert(range);
        }
    }

    /// Removes those of the numbers that are in and calls `each` with them, in rising ranges.
    pub(crate) fn remove(&mut self, range: Range<u64>, each: impl FnMut(Range<u64>)) {
        if let Some(inner) = &mut self.inner {
            inner.remove(range, each);
        }
    }

    /// How many ranges there are.
    pub(crate) fn runs(&self) -> usize {
        self.ranges().len()
    }

    /// Takes the first range out.
    pub(crate) fn pop_first_run(&mut self) -> Option<Range<u64>> {
        let inner = self.inner.as_mut()?;
        let (start, end) = inner.ranges.pop_first()?;
        inner.count -= end - start;
        Some(start..end)
    }

    /// Takes the smallest number out.
    pub(crate) fn pop_first(&mut self) -> Option<u64> {
        self.inner.as_mut()?.pop_first()
    }
}

impl Inner {
    fn insert(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        while let Some((old_start, old_end)) = self.ranges.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if old_end < start {
                break;
            }
            self.ranges.remove(&old_start);
            self.count -= old_end - old_start;
            start = start.min(old_start);
            end = end.max(old_end);
        }
        self.ranges.insert(start, end);
        self.count += end - start;
    }

    fn remove(&mut self, range: Range<u64>, mut each: impl FnMut(Range<u64>)) {
        let mut at = range.start;
        if let Some((start, end)) = self.ranges.range(..at).next_back().map(|(s, e)| (*s, *e))
            && end > at
        {
            let cut = end.min(range.end);
            self.ranges.insert(start, at);
            self.count -= end - at;
            if cut < end {
                self.ranges.insert(cut, end);
                self.count += end - cut;
            }
            each(at..cut);
            at = cut;
        }
        while let Some((start, end)) = self.ranges.range(at..range.end).next().map(|(s, e)| (*s, *e)) {
            self.ranges.remove(&start);
            let cut = end.min(range.end);
            self.count -= end - start;
            if cut < end {
                self.ranges.insert(cut, end);
                self.count += end - cut;
            }
            each(start..cut);
            at = cut;
        }
    }

    fn pop_first(&mut self) -> Option<u64> {
        let (start, end) = self.ranges.pop_first()?;
        if start + 1 < end {
            self.ranges.insert(start + 1, end);
        }
        self.count -= 1;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ranges_behave_like_a_set_of_numbers() {
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
        for _ in 0..20_000 {
            let start = random(60);
            let range = start..start + random(6);
            match random(3) {
                0 => {
                    ranges.insert(range.clone());
                    model.extend(range);
                }
                1 => {
                    let mut removed = Vec::new();
                    ranges.remove(range.clone(), |r| removed.extend(r));
                    let expected: Vec<u64> = range.filter(|n| model.remove(n)).collect();
                    assert_eq!(removed, expected);
                }
                _ => assert_eq!(ranges.pop_first(), model.pop_first()),
            }
            assert!(ranges.iter().flatten().eq(model.iter().copied()));
            assert_eq!(ranges.count(), model.len() as u64);
        }
    }
}
