//! A broker simulated: one seed decides everything that happens to it, and replays it.
//!
//! Links do random things ([`operations`]), a model says what must come of each ([`model`], [`world`]), the
//! disk fails at any step and forgets, tears and reorders what was not synced ([`disk`]). After each crash the
//! recovered state ([`probe`]) must be the state after some prefix of the history, and that prefix must hold
//! everything that was confirmed.
//!
//! `ROCKETBRIDGE_SEED` replays one seed, with everything that happens; `ROCKETBRIDGE_SEEDS` is how many are
//! tried (`tests/soak` tries 200,000), `ROCKETBRIDGE_SEEDS_FROM` the first of them.

mod disk;
mod life;
mod model;
mod names;
mod operations;
mod probe;
mod random;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tried by `cargo test`.
const SEEDS: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
    )
}

#[test]
fn every_recovered_state_is_a_prefix_that_holds_everything_confirmed() {
    if let Some(seed) = number("ROCKETBRIDGE_SEED") {
        life::simulate(seed, true);
        return;
    }
    let from = number("ROCKETBRIDGE_SEEDS_FROM").unwrap_or(0);
    let end = from + number("ROCKETBRIDGE_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(from);
    let failed = AtomicU64::new(u64::MAX);
    let crashes = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || failed.load(Ordering::Relaxed) < seed {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| life::simulate(seed, false))) {
                        Ok(count) => {
                            crashes.fetch_add(count, Ordering::Relaxed);
                        }
                        Err(_) => {
                            failed.fetch_min(seed, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(
        failed == u64::MAX,
        "seed {failed} failed: ROCKETBRIDGE_SEED={failed} replays it"
    );
    let crashes = crashes.into_inner();
    println!("{} seeds, {crashes} crashes", end - from);
    assert!(crashes >= end - from, "too few crashes: {crashes}");
}
