//! How often messages came back, by sequence: neighbours that came back together cost one entry.

use std::collections::BTreeMap;
use std::ops::Range;

/// A count for each sequence that has one.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// Start to end and count.
    runs: BTreeMap<u64, (u64, u32)>,
}

impl Attempts {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// 0 for a sequence without one.
    pub(crate) fn get(&self, sequence: u64) -> u32 {
        match self.runs.range(..=sequence).next_back() {
            Some((_, (end, count))) if sequence < *end => *count,
            _ => 0,
        }
    }

    /// All of them: sequences and their count.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<u64>, u32)> + '_ {
        self.runs.iter().map(|(start, (end, count))| (*start..*end, *count))
    }

    /// Takes counts out and calls `each` with them, in rising runs.
    pub(crate) fn remove(&mut self, range: Range<u64>, mut each: impl FnMut(Range<u64>, u32)) {
        if range.is_empty() {
            return;
        }
        let before = self.runs.range(..range.start).next_back();
        let mut at = match before {
            Some((start, (end, _))) if *end > range.start => *start,
            _ => range.start,
        };
        while at < range.end
            && let Some((start, (end, count))) = self.runs.range(at..range.end).next().map(|(s, e)| (*s, *e))
        {
            self.runs.remove(&start);
            if start < range.start {
                self.runs.insert(start, (range.start, count));
            }
            if end > range.end {
                self.runs.insert(range.end, (end, count));
            }
            each(start.max(range.start)..end.min(range.end), count);
            at = end;
        }
    }

    /// Gives sequences a count.
    pub(crate) fn set(&mut self, range: Range<u64>, count: u32) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone(), |_, _| {});
        let mut joined = range;
        if let Some((start, (end, before))) = self.runs.range(..joined.start).next_back().map(|(s, e)| (*s, *e))
            && end == joined.start
            && before == count
        {
            joined.start = start;
        }
        if let Some((end, after)) = self.runs.get(&joined.end).copied()
            && after == count
        {
            self.runs.remove(&joined.end);
            joined.end = end;
        }
        self.runs.insert(joined.start, (joined.end, count));
    }

    /// They came back once more. Gives the runs with their new counts.
    pub(crate) fn add(&mut self, range: Range<u64>) -> Vec<(Range<u64>, u32)> {
        let mut counted: Vec<(Range<u64>, u32)> = Vec::new();
        let mut at = range.start;
        self.remove(range.clone(), |known, count| {
            if at < known.start {
                counted.push((at..known.start, 1));
            }
            at = known.end;
            counted.push((known, count.saturating_add(1)));
        });
        if at < range.end {
            counted.push((at..range.end, 1));
        }
        for (run, count) in &counted {
            self.set(run.clone(), *count);
        }
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_behave_like_a_count_for_each() {
        let mut seed = 9u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut attempts = Attempts::default();
        let mut model = [0u32; 80];
        for _ in 0..20_000 {
            let start = random(70);
            let range = start..start + random(10);
            let each = &mut model[start as usize..range.end as usize];
            match random(3) {
                0 => {
                    let runs = attempts.add(range.clone());
                    each.iter_mut().for_each(|count| *count += 1);
                    let told: Vec<u32> = runs.iter().flat_map(|(run, n)| run.clone().map(|_| *n)).collect();
                    assert_eq!(told, each);
                }
                1 => {
                    let count = 1 + random(3) as u32;
                    attempts.set(range.clone(), count);
                    each.fill(count);
                }
                _ => {
                    let mut removed = 0;
                    attempts.remove(range.clone(), |run, _| removed += run.count());
                    assert_eq!(removed, each.iter().filter(|count| **count > 0).count());
                    each.fill(0);
                }
            }
            assert!((0..80).all(|n| attempts.get(n) == model[n as usize]));
        }
        attempts.remove(0..100, |_, _| {});
        attempts.set(0..10_000_000, 1);
        assert_eq!(attempts.add(0..10_000_000), [(0..10_000_000, 2)]);
        assert_eq!(attempts.iter().count(), 1);
    }
}
