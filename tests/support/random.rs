//! Seeded random numbers: a failure names its seed, and `ROCKETBRIDGE_SEED` replays it.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: small, and good enough to choose what a test does.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From `ROCKETBRIDGE_SEED`, else from the clock. The seed is printed.
    pub fn from_environment() -> Self {
        let given = std::env::var("ROCKETBRIDGE_SEED").ok();
        let seed = given.map_or_else(clock_seed, |text| text.parse().expect("ROCKETBRIDGE_SEED is a number"));
        println!("ROCKETBRIDGE_SEED={seed}");
        Self(seed)
    }

    /// An independent sequence for a thread of its own.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// In `0..end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// In `low..high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Letters and digits.
    pub fn word(&mut self, len: usize) -> String {
        let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
        (0..len).map(|_| char::from(*self.pick(letters))).collect()
    }
}

fn clock_seed() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is right");
    since.as_nanos() as u64 & 0xffff_ffff
}
