//! The durability law, from outside: a broker that is killed at random moments, again and again, loses
//! nothing that it has confirmed and undoes nothing that it has promised.
//!
//! `ROCKETBRIDGE_KILLS` is how often (default 300), `ROCKETBRIDGE_SEED` replays the choices of a run (its
//! timing is the machine's).

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use support::broker::{Broker, Options};
use support::history::{Event, Extent};
use support::load::{self, Addresses, CLIENTS, Load};
use support::random::Random;

const KILLS_DEFAULT: u64 = 300;

/// One start in so many is killed before it is ready, while it recovers.
const EARLY_KILL: u64 = 10;

/// Kills of one data folder; then everything is drained and judged, and another round begins. A start reads
/// the whole log, which a few hundred lives make long.
const KILLS_A_ROUND: u64 = 60;

#[test]
fn what_was_confirmed_survives_any_number_of_kills() {
    let kills = std::env::var("ROCKETBRIDGE_KILLS").map_or(KILLS_DEFAULT, |text| text.parse().expect("a number"));
    let mut random = Random::from_environment();
    let mut left = kills;
    while left > 0 {
        let kills = left.min(KILLS_A_ROUND);
        one_data_folder(kills, &mut random);
        left -= kills;
    }
}

fn one_data_folder(kills: u64, random: &mut Random) {
    let load = Load::default();
    // Checkpoints come often, so that kills meet them.
    let options = Options {
        config: "[store]\ncheckpoint_size = 65536\n".to_owned(),
        ..Options::default()
    };
    let mut broker = Broker::start_with(&options);
    load::set_up(&load, &Addresses::of(&broker), random).expect("it works");
    let mut slowest_start = Duration::ZERO;
    let mut lives = 0;
    while lives < kills || !is_tested(&load, kills) {
        lives += 1;
        assert!(lives < kills * 10, "too little is tested in {lives} lives");
        live_and_die(&load, &mut broker, random);
        load.recorder.record(Event::Crashed);
        if random.once_in(EARLY_KILL) {
            broker = broker.restart_unready(&options);
            wait(Duration::from_micros(random.below(100_000)));
        }
        let started = Instant::now();
        broker = broker.restart(&options);
        slowest_start = slowest_start.max(started.elapsed());
    }
    load::drain(&load, &Addresses::of(&broker), random).expect("it works");
    load.recorder.with(|history| {
        let count = |wanted: fn(&Event) -> bool| history.count(wanted);
        let confirmed = count(|event| matches!(event, Event::Confirmed { .. }));
        let promised = count(|event| matches!(event, Event::Promised { .. }));
        let again = count(|event| matches!(event, Event::Delivered { redelivered: true, .. }));
        println!(
            "{lives} kills, {confirmed} confirmed, {promised} settlements promised, {again} deliveries marked as \
             repeated, slowest start {slowest_start:?}"
        );
        history.assert_good(Extent::Drained);
    });
}

/// Whether enough was done in the lives so far: a busy machine needs more of them.
fn is_tested(load: &Load, kills: u64) -> bool {
    load.recorder.with(|history| {
        let confirmed = history.count(|event| matches!(event, Event::Confirmed { .. }));
        let promised = history.count(|event| matches!(event, Event::Promised { .. }));
        confirmed as u64 > kills * 20 && promised as u64 > kills * 20
    })
}

/// All clients at once on a broker that dies at a random moment.
fn live_and_die(load: &Load, broker: &mut Broker, random: &mut Random) {
    let addresses = Addresses::of(broker);
    let life = Duration::from_millis(random.between(100, 600));
    let killed = AtomicBool::new(false);
    let (sender, failures) = channel();
    std::thread::scope(|scope| {
        for client in CLIENTS {
            let (random, sender, killed) = (random.fork(), sender.clone(), &killed);
            scope.spawn(move || {
                let result = client.run(load, &addresses, random);
                if !killed.load(Ordering::SeqCst) {
                    let _ = sender.send(format!("{client:?}: {result:?}"));
                }
            });
        }
        let early = failures.recv_timeout(life);
        killed.store(true, Ordering::SeqCst);
        let alive = broker.is_running();
        broker.kill();
        // Not before the kill: the threads end when their broker is gone.
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "{}", broker.log());
        assert!(alive, "it ended by itself:\n{}", broker.log());
    });
}

/// Until a moment of no importance.
fn wait(time: Duration) {
    let (_sender, receiver) = channel::<()>();
    let _ = receiver.recv_timeout(time);
}
