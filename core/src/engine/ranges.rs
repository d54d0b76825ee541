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
    /// The lowest range, empty when the set is. Most sets have no other.
    first: Range<u64>,
    /// The others, start to end (exclusive).
    rest: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    /// How many numbers are in the set.
    pub(crate) fn count(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.count)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let Some(inner) = &self.inner else { return false };
        let below = inner.rest.range(..=number).next_back();
        inner.first.contains(&number) || below.is_some_and(|(_, end)| number < *end)
    }

    /// The smallest number from `from` on.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        let inner = self.inner.as_ref()?;
        if from < inner.first.end {
            return Some(from.max(inner.first.start));
        }
        if let Some((_, end)) = inner.rest.range(..=from).next_back()
            && from < *end
        {
            return Some(from);
        }
        inner.rest.range(from..).next().map(|(start, _)| *start)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.inner.iter().flat_map(|inner| {
            let first = Some(inner.first.clone()).filter(|first| !first.is_empty());
            first
                .into_iter()
                .chain(inner.rest.iter().map(|(start, end)| *start..*end))
        })
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
        let runs = |inner: &Inner| usize::from(!inner.first.is_empty()) + inner.rest.len();
        self.inner.as_deref().map_or(0, runs)
    }

    /// Takes the first range out.
    pub(crate) fn pop_first_run(&mut self) -> Option<Range<u64>> {
        let inner = self.inner.as_mut()?;
        let next = inner.next();
        let first = std::mem::replace(&mut inner.first, next);
        inner.count -= first.end - first.start;
        Some(first).filter(|first| !first.is_empty())
    }

    /// Takes the smallest number out.
    pub(crate) fn pop_first(&mut self) -> Option<u64> {
        let inner = self.inner.as_mut()?;
        let first = inner.first.next()?;
        inner.count -= 1;
        if inner.first.is_empty() {
            inner.first = inner.next();
        }
        Some(first)
    }
}

impl Inner {
    /// Takes out what becomes the lowest range when the lowest is gone.
    fn next(&mut self) -> Range<u64> {
        self.rest.pop_first().map_or(0..0, |(start, end)| start..end)
    }

    fn insert(&mut self, range: Range<u64>) {
        let first = &mut self.first;
        if first.is_empty() {
            self.count += range.end - range.start;
            *first = range;
        } else if range.start > first.end {
            self.insert_behind(range);
        } else if range.end < first.start {
            self.count += range.end - range.start;
            let second = std::mem::replace(first, range);
            self.rest.insert(second.start, second.end);
        } else {
            self.count -= first.end - first.start;
            *first = first.start.min(range.start)..first.end.max(range.end);
            // Grown, it may touch others.
            while let Some(next) = self.rest.first_entry().filter(|next| *next.key() <= first.end) {
                let (start, end) = next.remove_entry();
                self.count -= end - start;
                first.end = first.end.max(end);
            }
            self.count += first.end - first.start;
        }
    }

    /// Adds a range that the first does not touch.
    fn insert_behind(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        while let Some((old_start, old_end)) = self.rest.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if old_end < start {
                break;
            }
            self.rest.remove(&old_start);
            self.count -= old_end - old_start;
            start = start.min(old_start);
            end = end.max(old_end);
        }
        self.rest.insert(start, end);
        self.count += end - start;
    }

    fn remove(&mut self, range: Range<u64>, mut each: impl FnMut(Range<u64>)) {
        loop {
            let Range { start, end } = self.first;
            let cut = range.start.max(start)..range.end.min(end);
            if cut.is_empty() {
                break;
            }
            self.count -= cut.end - cut.start;
            if cut.end < end {
                self.first = cut.end..end;
                if start < cut.start {
                    self.rest.insert(cut.end, end);
                    self.first = start..cut.start;
                }
            } else if start < cut.start {
                self.first = start..cut.start;
            } else {
                self.first = self.next();
            }
            each(cut);
        }
        if !self.rest.is_empty() {
            self.remove_behind(range, each);
        }
    }

    /// Removes numbers that are in other ranges than the first.
    fn remove_behind(&mut self, range: Range<u64>, mut each: impl FnMut(Range<u64>)) {
        let mut at = range.start;
        if let Some((start, end)) = self.rest.range(..at).next_back().map(|(s, e)| (*s, *e))
            && end > at
        {
            let cut = end.min(range.end);
            self.rest.insert(start, at);
            self.count -= end - at;
            if cut < end {
                self.rest.insert(cut, end);
                self.count += end - cut;
            }
            each(at..cut);
            at = cut;
        }
        while let Some((start, end)) = self.rest.range(at..range.end).next().map(|(s, e)| (*s, *e)) {
            self.rest.remove(&start);
            let cut = end.min(range.end);
            self.count -= end - start;
            if cut < end {
                self.rest.insert(cut, end);
                self.count += end - cut;
            }
            each(start..cut);
            at = cut;
        }
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
            let from = random(70);
            assert_eq!(ranges.next(from), model.range(from..).next().copied());
        }
    }
}
