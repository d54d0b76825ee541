//! One seed: several lives of one broker, each ended by a stop, a kill or a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rocketbridge_core::engine::Flush;

use crate::disk::{Disk, Fault};
use crate::model::{Binding, Catalog, Due, Flag, Lease, State};
use crate::names::TIMED_KEYS;
use crate::probe::{Later, Observed, Probe, Routes, different};
use crate::random::Random;
use crate::world::{SimClock, World, check};

/// Operations of one life, at most.
const OPERATIONS: u64 = 24;

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Kill,
    PowerCut,
}

/// Simulates a seed; gives the number of crashes.
pub fn simulate(seed: u64, trace: bool) -> u64 {
    let mut random = Random::new(seed);
    let flush = if random.once_in(3) { Flush::Async } else { Flush::Sync };
    let segment_size = [4 << 10, 8 << 10, 64 << 10][random.index(3)];
    let clock = Arc::new(SimClock::new());
    let disk = Disk::default();
    let engine = World::open(&disk, segment_size, flush, &clock).expect("a fresh disk works");
    let mut world = World {
        context: format!("seed {seed}"),
        random,
        clock,
        flush,
        segment_size,
        disk,
        engine,
        links: Vec::new(),
        live: State::default(),
        base: State::default(),
        effects: Vec::new(),
        synced: 0,
        written: 0,
        catalog: Catalog::default(),
        made: BTreeMap::new(),
        settled: Vec::new(),
        batch: None,
        next_incarnation: 0,
        positions: BTreeMap::new(),
        known_positions: BTreeMap::new(),
        started: (0, 0),
        highest_wall: 0,
        ended_notices: Vec::new(),
        asked: BTreeSet::new(),
        lives: 0,
        entered: 0,
        steps_wall: false,
        stepped: 0,
        trace: trace.then(Vec::new),
    };
    world.highest_wall = world.clock.wall();
    world.started = (world.clock.mono(), world.clock.wall());
    world.steps_wall = world.random.once_in(2);
    let lives = 2 + world.random.below(3);
    for _ in 0..lives {
        world.live();
    }
    lives
}

impl World {
    /// One life, and the next one's beginning.
    fn live(&mut self) {
        let end = [
            End::Stop,
            End::Kill,
            End::Kill,
            End::PowerCut,
            End::PowerCut,
            End::PowerCut,
        ][self.random.index(6)];
        if end != End::Stop && !self.random.once_in(4) {
            let faults = [Fault::Refused, Fault::Short, Fault::Lied, Fault::Full, Fault::Tight];
            let fault = *self.random.pick(&faults);
            let steps = self.random.below(if self.flush == Flush::Sync { 50 } else { 90 });
            self.note(|| format!("the disk fails after {steps} steps: {fault:?}"));
            self.disk.fail_after(steps, fault);
        }
        let operations = self.random.below(OPERATIONS) + 1;
        let mut works = true;
        for _ in 0..operations {
            self.operate();
            let held = self.links.iter().flatten().any(|link| link.is_held());
            if !held && !self.disk.failed() && self.random.once_in(6) {
                self.check_counts();
            }
            works = !self.disk.failed();
            let waits = |link: &crate::world::SimLink| link.is_held() && link.has_consumers();
            if works && (self.links.iter().flatten().any(waits) || self.random.once_in(4)) {
                works = self.sync();
            }
            if !works {
                break;
            }
        }
        if !works {
            self.nothing_is_confirmed_any_more();
        }
        match end {
            End::Stop => {
                self.note(|| "stop".to_owned());
                self.engine.close();
                check!(self, self.engine.sync_once().is_ok(), "it cannot stop");
                self.observe();
                self.synced = self.effects.len();
                self.written = self.synced;
            }
            End::Kill | End::PowerCut => {}
        }
        self.disk.detach();
        self.recover(end);
    }

    /// The disk failed: whatever is tried, no promise comes.
    fn nothing_is_confirmed_any_more(&mut self) {
        let (synced, written) = (self.synced, self.written);
        for _ in 0..3 {
            for at in self.living() {
                if self.link(at).is_held() {
                    continue;
                }
                self.publish(at);
                self.observe();
            }
            // It fails as soon as there is something to be written.
            let _ = self.engine.sync_once();
            self.observe();
        }
        check!(
            self,
            (synced, written) == (self.synced, self.written),
            "something was confirmed after the disk failed"
        );
        // Nothing of that was written.
    }

    fn recover(&mut self, end: End) {
        self.note(|| format!("{end:?}"));
        let mut disk = match end {
            End::Stop => self.disk.snapshot(),
            End::Kill => self.disk.after_kill(),
            End::PowerCut => self.disk.after_power_cut(&mut self.random),
        };
        // What the links saw is gone with them.
        self.links.clear();
        self.ended_notices.clear();
        self.asked.clear();
        self.settled.clear();
        if self.steps_wall && self.random.once_in(2) {
            // The wall may be anywhere after a restart.
            let millis = self.random.below(20_000) as i64 - 10_000;
            self.clock.step_wall(millis);
            self.stepped += millis.unsigned_abs();
            self.highest_wall = self.highest_wall.max(self.clock.wall());
        }
        let mut safe = match end {
            End::Stop => self.effects.len(),
            End::Kill => self.written,
            End::PowerCut => self.synced,
        };
        while self.random.once_in(3) {
            safe = self.synced;
            // The power goes again while the broker starts.
            let steps = self.random.below(6);
            disk.fail_after(steps, Fault::Refused);
            let started = Self::open(&disk, self.segment_size, self.flush, &self.clock);
            self.note(|| {
                format!(
                    "a start that fails after {steps} steps: {:?}",
                    started.as_ref().map(|_| ())
                )
            });
            drop(started);
            disk.detach();
            disk = disk.after_power_cut(&mut self.random);
        }
        // Without waiting for the disk, a power cut may even lose that somebody consumed.
        let flagged = self.flush == Flush::Sync || safe == self.written;
        let (state, unsure) = self.find_prefix(&disk.snapshot(), safe, flagged);
        self.engine = match Self::open(&disk, self.segment_size, self.flush, &self.clock) {
            Ok(engine) => engine,
            Err(error) => self.fail(&format!("it does not start: {error}")),
        };
        self.disk = disk;
        self.started = (self.clock.mono(), self.clock.wall());
        if let Some(others) = unsure {
            Probe::of(&self.engine).make_sure(&state, &others);
        }
        self.begin_again(state, end, flagged);
    }

    /// The prefix of the history that a disk has, as a state.
    fn find_prefix(&mut self, disk: &Disk, safe: usize, flagged: bool) -> (State, Option<BTreeSet<Binding>>) {
        // Timed messages are waited for on this one.
        let clock = Arc::new(self.clock.copy());
        let engine = match Self::open(disk, self.segment_size, self.flush, &clock) {
            Ok(engine) => engine,
            Err(error) => self.fail(&format!("it does not start: {error}")),
        };
        let mut probe = Probe::of(&engine);
        let observed = probe.observe(&self.catalog);
        let unflagged = std::mem::take(&mut probe.unflagged);
        let stored_at = std::mem::take(&mut probe.stored_at);
        let mut state = self.base.clone();
        let wall = self.clock.wall();
        let mut wrong = String::new();
        let mut asked = None;
        let mut found = None;
        // Of two bindings that match alike nobody sees one: those of all prefixes that look alike.
        let mut candidates = Vec::new();
        for count in 0..=self.effects.len() {
            if count > 0 {
                state.apply(&self.effects[count - 1]);
            }
            if count < safe {
                continue;
            }
            let expected = Observed::of(&state, &self.catalog, wall);
            let mut differences = observed.differences(&expected);
            if differences.is_empty() {
                // What can be seen only by changing it is asked once: prefixes that look alike so far route
                // the same addresses.
                let (routes, holders, keys, later) = asked.get_or_insert_with(|| {
                    let routes = probe.routes(&state);
                    let (holders, mut keys) = probe.holders();
                    keys.extend(probe.keys());
                    (routes, holders, keys, probe.later(&clock))
                });
                differences = different(
                    "routes",
                    &routes_within_limits(&state, routes),
                    &Observed::routes_of(&state),
                );
                differences += &different("keys", keys, &Observed::keys_of(&state, &self.catalog));
                differences += &different("timed and half messages", &later.kinds(), &Observed::later_of(&state));
                if !state.holders.keys().eq(holders.iter()) {
                    differences += &format!("\nsessions: {holders:?}, expected {:?}", state.holders.keys());
                }
                if differences.is_empty() {
                    // Several may look alike. The last one has had all the consumers that there may have been.
                    found = Some((count, state.clone()));
                    candidates.push(state.bindings.clone());
                    continue;
                }
            }
            wrong += &format!("\nnot {count}:{differences}");
        }
        let Some((count, mut state)) = found else {
            let all = self.effects.len();
            self.fail(&format!(
                "no prefix of {safe} to {all} effects is what was recovered{wrong}"
            ));
        };
        let faults = std::mem::take(&mut probe.faults);
        check!(self, faults.is_empty(), "{faults:?}");
        for (name, id) in unflagged {
            let Some(message) = self.catalog.messages.get(id) else {
                continue;
            };
            let incarnation = state.queues[&name].incarnation;
            check!(
                self,
                !flagged || !message.seen_in.contains(&incarnation),
                "message {id} in {name:?} was delivered before, and is not flagged"
            );
        }
        self.check_stored_times(&stored_at);
        if let Some((.., later)) = asked {
            self.learn_times(&mut state, &later);
        }
        self.note(|| format!("recovered {count} effects, {safe} were safe"));
        let differ = candidates.iter().any(|bindings| *bindings != state.bindings);
        let all: BTreeSet<Binding> = candidates.into_iter().flatten().collect();
        let unsure = differ.then(|| all.difference(&state.bindings).cloned().collect());
        (state, unsure)
    }

    /// When timed messages are due and transactions are asked about: that goes by what the wall says has passed.
    fn learn_times(&mut self, state: &mut State, later: &Later) {
        let now = self.clock.mono();
        // What the log knows of the wall's steps may be lost with it.
        let most = if self.stepped > 0 { self.stepped + 1000 } else { 0 };
        let close = |known: u64, is: u64| is.abs_diff(known.max(now)) <= most;
        for (at, (id, mono, wall)) in later.fired.iter().enumerate() {
            // What is due already keeps its order.
            let learnt = if *mono > now {
                *mono
            } else {
                now - later.fired.len() as u64 + at as u64
            };
            match state.timers[id] {
                Due::After(known) => {
                    check!(
                        self,
                        close(known, *mono),
                        "message {id} is due at {mono}, was at {known}"
                    );
                    state.timers.insert(*id, Due::After(learnt));
                }
                Due::At(known) => {
                    let due = known.max(self.clock.wall());
                    check!(self, *wall == due, "message {id} fires at {wall}, is due at {due}");
                }
            }
        }
        for (at, (id, asked)) in later.halves.iter().enumerate() {
            let half = state.halves.get_mut(id).expect("it was compared");
            let known = half.next;
            half.next = if asked.first > now {
                asked.first
            } else {
                now - later.halves.len() as u64 + at as u64
            };
            check!(
                self,
                close(known, asked.first),
                "message {id} is asked about at {}, was at {known}",
                asked.first
            );
            if let Some((position, number)) = asked.record {
                self.learn_record(*id, position, number);
            }
        }
    }

    fn check_stored_times(&mut self, stored_at: &BTreeMap<u64, (usize, u64)>) {
        // What was seen of messages that are lost binds nobody.
        let real = |position: &u64| *position & (1 << 62) == 0;
        let kept: BTreeMap<u64, (usize, u64)> = stored_at
            .iter()
            .filter(|(position, (id, _))| real(position) && *id < 1 << 40)
            .map(|(p, v)| (*p, *v))
            .collect();
        let mut before = 0;
        for (position, (id, at)) in &kept {
            check!(
                self,
                before <= *at,
                "stored time decreases at {position}: {before}, {at}"
            );
            before = *at;
            let known = self.positions.get(position).map(|(id, _)| *id);
            check!(
                self,
                known.is_none_or(|known| known == *id),
                "position {position}: {known:?} is {id}"
            );
        }
        self.known_positions
            .extend(self.positions.iter().map(|(position, (id, _))| (*position, *id)));
        self.positions = kept;
    }

    fn begin_again(&mut self, state: State, end: End, flagged: bool) {
        let before = std::mem::replace(&mut self.live, state.clone());
        self.base = state;
        self.effects.clear();
        (self.synced, self.written) = (0, 0);
        self.made.clear();
        self.lives += 1;
        // See where they are made.
        self.live.keys.remove(TIMED_KEYS);
        self.base.keys.remove(TIMED_KEYS);
        for (id, message) in self.catalog.messages.iter_mut().enumerate() {
            message.bound = 0;
            // What fired and was lost fires again.
            message.in_topic = self.live.topics.values().any(|topic| topic.messages.contains(&id));
            if !message.in_topic {
                message.place = None;
            }
            let queues = &self.live.queues;
            let is_in = |incarnation: &u64| {
                let mut all = queues.values().filter(|queue| queue.incarnation == *incarnation);
                all.any(|queue| queue.items.iter().any(|item| item.id == id))
            };
            message.seen_in.retain(is_in);
        }
        let mono = self.clock.mono();
        for holder in self.live.holders.values_mut() {
            holder.ends_at = Some(mono + holder.keep);
        }
        for queue in self.live.queues.values_mut() {
            let old = before.queues.values().find(|old| old.incarnation == queue.incarnation);
            for item in &mut queue.items {
                let seen = self.catalog.messages[item.id].seen_in.contains(&queue.incarnation);
                let old = old.and_then(|old| old.items.iter().find(|old| old.id == item.id));
                item.lease = Lease::Ready;
                item.flag = match end {
                    _ if seen && flagged => Flag::Yes,
                    // Nobody can have seen it.
                    End::Stop => old.map_or(Flag::No, |old| old.flag),
                    _ if queue.consumed || seen => Flag::Either,
                    _ => Flag::No,
                };
            }
        }
        self.base.queues = self.live.queues.clone();
        if !flagged {
            self.catalog
                .messages
                .iter_mut()
                .for_each(|message| message.seen_in.clear());
        }
    }
}

/// A queue with a limit kept only the last messages: for those the model is believed.
fn routes_within_limits(state: &State, routes: &Routes) -> Routes {
    let expected = Observed::routes_of(state);
    let mut routes = routes.clone();
    for (address, (found, groups)) in &mut routes {
        let Some((wanted, _)) = expected.get(address) else {
            continue;
        };
        for name in wanted {
            let limited = state.queues.get(name).is_some_and(|queue| queue.spec.limit.is_some());
            if limited && found.insert(name.clone()) {
                *groups = groups.wrapping_sub(1);
            }
        }
    }
    routes
}
