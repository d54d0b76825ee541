//! Latencies, counted in classes of less than two percent width.

/// Classes of one power of two.
const STEPS: u64 = 64;
const STEPS_BITS: u32 = STEPS.ilog2();

/// A histogram of microseconds. Costs the same for a thousand values and for a billion.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    classes: Vec<u64>,
    count: u64,
    max: u64,
}

impl Latencies {
    /// Counts a value `times` times.
    pub fn add(&mut self, microseconds: u64, times: u64) {
        let class = class(microseconds);
        if class >= self.classes.len() {
            self.classes.resize(class + 1, 0);
        }
        self.classes[class] += times;
        self.count += times;
        self.max = self.max.max(microseconds);
    }

    /// Takes in what another thread counted.
    pub fn merge(&mut self, other: &Self) {
        if other.classes.len() > self.classes.len() {
            self.classes.resize(other.classes.len(), 0);
        }
        for (mine, theirs) in self.classes.iter_mut().zip(&other.classes) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest value; 0 when there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// What `share` (0 to 1) of all values do not exceed, within two percent; none when nothing was counted.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (class, count) in self.classes.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(upper(class).min(self.max));
            }
        }
        None
    }
}

/// Below 64 every value is a class, above there are 64 to each power of two.
fn class(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = value.ilog2() - STEPS_BITS;
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The largest value of a class.
fn upper(class: usize) -> u64 {
    let class = class as u64;
    if class < 2 * STEPS {
        return class;
    }
    let shift = class / STEPS - 1;
    ((class - shift * STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_its_class() {
        let mut last = 0;
        for value in (0..5000).chain((13..40).flat_map(|bits| (1 << bits) - 2..(1 << bits) + 3)) {
            let class = class(value);
            assert!(class == last || class == last + 1 || value > 5000, "{value}");
            last = class;
            assert!(upper(class) >= value && (upper(class) - value) * 50 <= value, "{value}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(0.5), None);
        for value in 1..=1000 {
            latencies.add(value * 10, 1);
        }
        let near = |share, value: u64| {
            let found = latencies.percentile(share).unwrap();
            assert!(
                found.abs_diff(value) * 50 <= value,
                "{share}: {found} is not about {value}"
            );
        };
        near(0.5, 5000);
        near(0.99, 9900);
        near(0.001, 10);
        assert_eq!(latencies.percentile(1.0), Some(10_000));
    }
}
