//! The history checker, checked: a good history passes, and each kind of fault put into one is found.
//!
//! Good histories come from a model broker that crashes, forgets what it did not confirm, and delivers again.

mod support;

use std::collections::BTreeMap;

use support::history::{Event, Extent, Fault, History, MessageId, Queue, digest};
use support::random::Random;

const SEEDS: u64 = 100;
const QUEUES: [Queue; 3] = ["first", "second", "third"];

/// An item of a model queue.
#[derive(Clone)]
struct Item {
    message: MessageId,
    digest: u64,
    marked: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    Out(u32),
    Settled,
}

/// A broker as it should be: queues of items in log order; a crash cuts the log at the confirmed end or
/// somewhere behind it, and brings back what was not promised to stay settled.
struct Model {
    random: Random,
    history: History,
    queues: BTreeMap<Queue, Vec<Item>>,
    sent: BTreeMap<u32, u64>,
    unconfirmed: Vec<MessageId>,
    /// Settled since the last promise.
    unpromised: Vec<(Queue, MessageId)>,
}

impl Model {
    fn run(seed: u64) -> History {
        let mut model = Self {
            random: Random::new(seed),
            history: History::default(),
            queues: QUEUES.iter().map(|queue| (*queue, Vec::new())).collect(),
            sent: BTreeMap::new(),
            unconfirmed: Vec::new(),
            unpromised: Vec::new(),
        };
        model.history.routes.insert(1, vec!["first", "second"]);
        model.history.routes.insert(2, vec!["second", "third"]);
        for _ in 0..4 {
            for _ in 0..model.random.between(30, 80) {
                model.step();
            }
            model.crash();
        }
        model.drain();
        model.history
    }

    fn record(&mut self, event: Event) {
        self.history.events.push(event);
    }

    fn step(&mut self) {
        let queue = *self.random.pick(&QUEUES);
        match self.random.below(8) {
            0..=2 => self.send(),
            3 => self.confirm(),
            4 | 5 => self.deliver(queue),
            6 => self.settle(queue),
            _ if self.random.once_in(2) => self.give_back(queue),
            _ => self.promise(),
        }
    }

    fn send(&mut self) {
        let publisher = self.random.between(1, 3) as u32;
        let sequence = self.sent.entry(publisher).or_default();
        *sequence += 1;
        let message = MessageId {
            publisher,
            sequence: *sequence,
        };
        let digest = digest(&self.random.bytes(20));
        self.record(Event::Sent { message, digest });
        self.unconfirmed.push(message);
        for queue in self.history.routes[&publisher].clone() {
            let item = Item {
                message,
                digest,
                marked: false,
                state: State::Ready,
            };
            self.queues.get_mut(queue).unwrap().push(item);
        }
    }

    fn confirm(&mut self) {
        let count = self.random.below(self.unconfirmed.len() as u64 + 1) as usize;
        for message in self.unconfirmed.drain(..count).collect::<Vec<_>>() {
            self.record(Event::Confirmed { message });
        }
    }

    fn deliver(&mut self, queue: Queue) {
        // Two consumers compete for the second queue.
        let stream = if queue == "second" {
            self.random.below(2) as u32
        } else {
            0
        };
        let items = self.queues.get_mut(queue).unwrap();
        let Some(item) = items.iter_mut().find(|item| item.state == State::Ready) else {
            return;
        };
        let redelivered = item.marked;
        item.marked = true;
        item.state = State::Out(stream);
        let (message, digest) = (item.message, item.digest);
        self.record(Event::Delivered {
            queue,
            stream,
            message,
            digest,
            redelivered,
        });
    }

    fn settle(&mut self, queue: Queue) {
        if let Some(message) = self.change_one_out(queue, State::Settled) {
            self.record(Event::Settled { queue, message });
            self.unpromised.push((queue, message));
        }
    }

    fn give_back(&mut self, queue: Queue) {
        if let Some(message) = self.change_one_out(queue, State::Ready) {
            self.record(Event::Returned { queue, message });
        }
    }

    fn change_one_out(&mut self, queue: Queue, to: State) -> Option<MessageId> {
        let items = self.queues.get_mut(queue).unwrap();
        let item = items.iter_mut().find(|item| matches!(item.state, State::Out(_)))?;
        item.state = to;
        Some(item.message)
    }

    fn promise(&mut self) {
        for (queue, message) in std::mem::take(&mut self.unpromised) {
            self.record(Event::Promised { queue, message });
        }
    }

    fn crash(&mut self) {
        self.record(Event::Crashed);
        let kept = self.random.below(self.unconfirmed.len() as u64 + 1) as usize;
        let lost = self.unconfirmed.split_off(kept);
        self.unconfirmed.clear();
        let undone = std::mem::take(&mut self.unpromised);
        for (queue, items) in &mut self.queues {
            items.retain(|item| !lost.contains(&item.message));
            for item in items {
                let is_undone = undone.contains(&(*queue, item.message)) && self.random.once_in(2);
                if is_undone || matches!(item.state, State::Out(_)) {
                    item.state = State::Ready;
                }
                item.marked = true;
            }
        }
    }

    fn drain(&mut self) {
        for queue in QUEUES {
            while self.queues[queue].iter().any(|item| item.state == State::Ready) {
                self.deliver(queue);
                self.settle(queue);
            }
        }
    }
}

/// Puts a fault into a good history, at a place of the seed's choice, and says what must be found.
type Injection = fn(&mut History, &mut Random) -> fn(&Fault) -> bool;

fn places(history: &History, wanted: impl Fn(&Event) -> bool) -> Vec<usize> {
    let all = history.events.iter().enumerate();
    all.filter(|(_, event)| wanted(event)).map(|(index, _)| index).collect()
}

fn deliveries(history: &History) -> Vec<usize> {
    places(history, |event| matches!(event, Event::Delivered { .. }))
}

fn lose(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let confirmed = places(history, |event| matches!(event, Event::Confirmed { .. }));
    let message = history.events[*random.pick(&confirmed)].message().unwrap();
    let queue = *random.pick(&history.routes[&message.publisher]);
    history.events.retain(
        |event| !matches!(event, Event::Delivered { queue: q, message: m, .. } if *q == queue && *m == message),
    );
    |fault| matches!(fault, Fault::Lost { .. })
}

fn alter(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let at = *random.pick(&deliveries(history));
    if let Event::Delivered { digest, .. } = &mut history.events[at] {
        *digest ^= 1 << random.below(64);
    }
    |fault| matches!(fault, Fault::Altered { .. })
}

fn reorder(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    // Two neighbouring first deliveries of one publisher in one stream change places; both were sent before.
    let mut seen = Vec::new();
    let mut last = BTreeMap::new();
    let mut pairs = Vec::new();
    for at in deliveries(history) {
        let Event::Delivered {
            queue, stream, message, ..
        } = history.events[at]
        else {
            continue;
        };
        if seen.contains(&(queue, message)) {
            continue;
        }
        seen.push((queue, message));
        let sent = |event: &Event| matches!(event, Event::Sent { message: m, .. } if *m == message);
        let sent = history.events.iter().position(sent).unwrap();
        if let Some(before) = last.insert((queue, stream, message.publisher), at)
            && sent < before
            && !again_between(history, before, at)
        {
            pairs.push((before, at));
        }
    }
    let (a, b) = *random.pick(&pairs);
    let (one, other) = (history.events[a].clone(), history.events[b].clone());
    (history.events[a], history.events[b]) = (other, one);
    |fault| matches!(fault, Fault::Reordered { .. })
}

/// The message delivered at `from` is delivered again before `to`, which may be to another consumer.
fn again_between(history: &History, from: usize, to: usize) -> bool {
    let first = history.events[from].message();
    let mut between = history.events[from + 1..to].iter();
    between.any(|event| matches!(event, Event::Delivered { .. }) && event.message() == first)
}

fn invent(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let at = *random.pick(&deliveries(history));
    let mut event = history.events[at].clone();
    if let Event::Delivered { message, .. } = &mut event {
        message.sequence += 1_000_000;
    }
    history.events.insert(at, event);
    |fault| matches!(fault, Fault::Phantom { .. })
}

fn deliver_an_alien(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let at = *random.pick(&deliveries(history));
    let body = "nobody's".to_owned();
    history.events.insert(at, Event::Alien { queue: "first", body });
    |fault| matches!(fault, Fault::Phantom { .. })
}

fn deliver_what_was_refused(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let at = *random.pick(&deliveries(history));
    let message = history.events[at].message().unwrap();
    history.events.insert(at, Event::Refused { message });
    |fault| matches!(fault, Fault::Phantom { .. })
}

fn misroute(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let at = *random.pick(&deliveries(history));
    let mut event = history.events[at].clone();
    if let Event::Delivered { queue, message, .. } = &mut event {
        *queue = if message.publisher == 1 { "third" } else { "first" };
    }
    history.events.insert(at, event);
    |fault| matches!(fault, Fault::WrongQueue { .. })
}

fn unmark(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let mut seen = Vec::new();
    let mut again = Vec::new();
    for at in deliveries(history) {
        let Event::Delivered { queue, message, .. } = history.events[at] else {
            continue;
        };
        if seen.contains(&(queue, message)) {
            again.push(at);
        }
        seen.push((queue, message));
    }
    let at = *random.pick(&again);
    if let Event::Delivered { redelivered, .. } = &mut history.events[at] {
        *redelivered = false;
    }
    |fault| matches!(fault, Fault::Unmarked { .. })
}

fn share(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    let at = *random.pick(&deliveries(history));
    let mut event = history.events[at].clone();
    if let Event::Delivered { redelivered, .. } = &mut event {
        *redelivered = true;
    }
    history.events.insert(at + 1, event);
    |fault| matches!(fault, Fault::Shared { .. })
}

fn undo(history: &mut History, random: &mut Random, from: impl Fn(&Event) -> bool, after_crash: bool) {
    let at = *random.pick(&places(history, from));
    let (Event::Promised { queue, message } | Event::Settled { queue, message }) = history.events[at] else {
        unreachable!("that was looked for")
    };
    let again = history.events[..at]
        .iter()
        .rev()
        .find(|event| matches!(event, Event::Delivered { queue: q, message: m, .. } if *q == queue && *m == message));
    let mut again = again.expect("it was delivered before").clone();
    if let Event::Delivered { redelivered, .. } = &mut again {
        *redelivered = true;
    }
    let later = history.events[at..].iter().position(|event| *event == Event::Crashed);
    let place = if after_crash {
        at + later.map_or(1, |crash| crash + 1)
    } else {
        at + 1
    };
    history.events.insert(place, again);
}

fn undo_a_promise(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    undo(history, random, |event| matches!(event, Event::Promised { .. }), true);
    |fault| matches!(fault, Fault::Undone { .. })
}

fn undo_a_settlement_without_a_crash(history: &mut History, random: &mut Random) -> fn(&Fault) -> bool {
    undo(history, random, |event| matches!(event, Event::Settled { .. }), false);
    |fault| matches!(fault, Fault::Undone { .. })
}

const INJECTIONS: [(&str, Injection); 11] = [
    ("lose", lose),
    ("alter", alter),
    ("reorder", reorder),
    ("invent", invent),
    ("deliver_an_alien", deliver_an_alien),
    ("deliver_what_was_refused", deliver_what_was_refused),
    ("misroute", misroute),
    ("unmark", unmark),
    ("share", share),
    ("undo_a_promise", undo_a_promise),
    ("undo_a_settlement_without_a_crash", undo_a_settlement_without_a_crash),
];

#[test]
fn a_good_history_passes() {
    for seed in 0..SEEDS {
        let history = Model::run(seed);
        history.assert_good(Extent::Drained);
        assert!(history.count(|event| matches!(event, Event::Confirmed { .. })) > 10);
        assert!(history.count(|event| matches!(event, Event::Promised { .. })) > 0);
    }
}

#[test]
fn each_kind_of_fault_is_found_in_a_history_that_is_good_otherwise() {
    for seed in 0..SEEDS {
        let good = Model::run(seed);
        for (name, inject) in INJECTIONS {
            let mut history = good.clone();
            let wanted = inject(&mut history, &mut Random::new(seed ^ 0x5eed));
            let found = history.judge(Extent::Drained);
            assert!(found.iter().any(wanted), "{name} with seed {seed} gave {found:?}");
        }
    }
}

#[test]
fn what_still_waits_in_a_queue_is_not_lost() {
    let mut history = Model::run(1);
    let at = *deliveries(&history).last().unwrap();
    history.events.truncate(at);
    let faults = history.judge(Extent::Cut);
    assert_eq!(faults, []);
}
