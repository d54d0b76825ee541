//! Times, and what the slowest of them may be on a machine that others use, too.

use std::io;
use std::time::Duration;

/// Times of one kind.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<Duration>);

impl Spread {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that `percent` of all do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted[index]
    }
}

/// Measures until 99 percent are within the limit, `attempts` times at most: noise only ever adds.
pub fn best_of(attempts: u32, p99_max: Duration, what: &str, mut measure: impl FnMut() -> io::Result<Spread>) {
    let mut tried = Vec::new();
    for _ in 0..attempts {
        let spread = measure().unwrap_or_else(|error| panic!("{what}: {error}"));
        let p99 = spread.percentile(99);
        println!(
            "{what}: median {:?}, p99 {p99:?} of {}",
            spread.percentile(50),
            spread.len()
        );
        if p99 <= p99_max {
            return;
        }
        tried.push(p99);
    }
    panic!("{what}: p99 was {tried:?}, more than {p99_max:?}");
}
