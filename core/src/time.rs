//! Time as an argument: core and the sessions never read a clock, they are handed [`Now`].

use std::ops::{Add, Sub};

/// A point in time or a span, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// Later than anything.
    pub const MAX: Self = Self(u64::MAX);

    /// `seconds` as milliseconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds * 1000)
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Millis {
    type Output = Self;
    fn add(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub for Millis {
    type Output = Self;
    fn sub(self, span: Self) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

/// The present, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Never goes back; its zero is arbitrary. Deadlines and idle times are measured on it.
    pub mono: Millis,
    /// Unix time. Stored times and absolute delivery times are on it; it may be stepped.
    pub wall: Millis,
}

/// Where [`Now`] comes from. The bridge reads the system's clocks; tests move theirs by hand.
pub trait Clock: Send + Sync + 'static {
    /// The present on both clocks.
    fn now(&self) -> Now;
}
