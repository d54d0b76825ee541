//! One life of a broker: links that talk to it, the model beside it, and what the model says to every event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Config, Engine, EngineLink, Flush, OpenError};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::Message;
use rocketbridge_core::request::*;
use rocketbridge_core::time::{Clock, Millis, Now};

use crate::disk::Disk;
use crate::model::{self, Catalog, Effect, Flag, Id, Lease, Name, State};
use crate::names;
use crate::operations::{CHECK_AFTER, CHECK_INTERVAL, CHECK_MAX};
use crate::probe::Probe;
use crate::random::Random;

/// Both clocks; the wall may be stepped.
pub struct SimClock {
    mono: AtomicU64,
    wall: AtomicU64,
}

impl SimClock {
    pub fn new() -> Self {
        Self {
            mono: AtomicU64::new(1000),
            wall: AtomicU64::new(1_700_000_000_000),
        }
    }

    pub fn advance(&self, millis: u64) {
        self.mono.fetch_add(millis, Ordering::Relaxed);
        self.wall.fetch_add(millis, Ordering::Relaxed);
    }

    /// Another clock that shows the same time.
    pub fn copy(&self) -> Self {
        Self {
            mono: AtomicU64::new(self.mono()),
            wall: AtomicU64::new(self.wall()),
        }
    }

    pub fn step_wall(&self, millis: i64) {
        self.wall.fetch_add(millis as u64, Ordering::Relaxed);
    }

    pub fn mono(&self) -> u64 {
        self.mono.load(Ordering::Relaxed)
    }

    pub fn wall(&self) -> u64 {
        self.wall.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Now {
        Now {
            mono: Millis(self.mono()),
            wall: Millis(self.wall()),
        }
    }
}

/// What a request must be answered.
#[derive(Debug)]
pub enum Expect {
    Done,
    Refused(Why),
    Exchange(model::Exchange),
    Queue {
        spec: model::Spec,
        ready: u64,
        consumers: u32,
        created: bool,
    },
    Count(u64),
    Rejected(usize, Reject),
    /// Incarnation of the queue, subscription, message, whether it is leased; and what is left.
    Got(Option<Got>),
    Attached {
        present: bool,
    },
    Topic(u32),
    Offset(Option<u64>),
    Transaction(TransactionEnd),
    /// Topic, message queue; what a pull found from an offset on.
    Pulled {
        topic: Name,
        queue: u32,
        offset: u64,
        held: bool,
    },
}

#[derive(Debug)]
pub struct Got {
    pub incarnation: u64,
    pub subscription: u32,
    pub id: Id,
    pub flag: Flag,
    pub leased: bool,
    pub remaining: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    NotFound,
    Locked,
    AccessRefused,
    InUse,
    NotEmpty,
    Invalid,
}

struct Awaiting {
    id: u64,
    expect: Expect,
    /// Effects that the disk must hold once this was answered.
    bound: Option<usize>,
}

/// What a publish must come to.
pub struct Awaited {
    pub id: Id,
    pub bound: usize,
    pub fate: Expected,
    pub returned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Rejected(Reject),
    /// Of a timed or half message its place is not the one that it will have.
    Stored {
        durable: bool,
        routes: usize,
        later: bool,
    },
    /// A copy of that message.
    Duplicate(Id),
    /// The session's key is closed; whether it was open.
    Closed(bool),
}

#[derive(Debug)]
pub struct Sub {
    pub incarnation: u64,
    pub acknowledge: Acknowledge,
    pub window: Option<u32>,
    /// A consumer, not one for gets or one that was ended.
    pub active: bool,
    pub leases: BTreeMap<u64, Id>,
}

pub struct SimLink {
    pub link: EngineLink,
    inbox: Inbox,
    request: u64,
    pub token: u64,
    pub subscription: u32,
    awaiting: VecDeque<Awaiting>,
    pub pulls: BTreeMap<u64, (Name, u32, u64)>,
    pub outcomes: BTreeMap<u64, Awaited>,
    returned: BTreeSet<u64>,
    pub subs: BTreeMap<u32, Sub>,
    /// By incarnation of the queue.
    pub gets: BTreeMap<u64, u32>,
    pub holder: Option<Name>,
    /// It may be asked about transactions.
    pub produces: bool,
    pub blocked: bool,
}

impl SimLink {
    /// An answer waits for the disk, and everything behind it.
    pub fn is_held(&self) -> bool {
        !self.awaiting.is_empty()
    }

    pub fn has_consumers(&self) -> bool {
        self.subs.values().any(|sub| sub.active)
    }
}

pub struct World {
    pub context: String,
    pub random: Random,
    pub clock: Arc<SimClock>,
    pub flush: Flush,
    pub segment_size: u64,
    pub disk: Disk,
    pub engine: Engine,
    pub links: Vec<Option<SimLink>>,
    /// What lives.
    pub live: State,
    /// What the disk had when this life began, and what happened since.
    pub base: State,
    pub effects: Vec<Effect>,
    /// So many effects are safe from a power cut, or from the death of the process alone.
    pub synced: usize,
    pub written: usize,
    pub catalog: Catalog,
    /// Where the thing of a name was made, in `effects`.
    pub made: BTreeMap<String, usize>,
    /// What is done with in this hold.
    pub settled: Vec<(u64, Id)>,
    /// The atomic batch that is made just now.
    pub batch: Option<Vec<Effect>>,
    pub next_incarnation: u64,
    /// Messages that were seen, by position, with the stored time.
    pub positions: BTreeMap<u64, (Id, u64)>,
    /// Messages of all positions that anybody ever saw.
    pub known_positions: BTreeMap<u64, Id>,
    /// Both clocks when this life began.
    pub started: (u64, u64),
    /// The highest wall time that any life of the broker has seen.
    pub highest_wall: u64,
    pub ended_notices: Vec<(usize, u32)>,
    /// Half messages that somebody must be asked about just now.
    pub asked: BTreeSet<Id>,
    /// Of the broker so far.
    pub lives: usize,
    /// So many messages entered a topic.
    pub entered: usize,
    /// Whether the wall is stepped at all. When it is, nobody knows when a message expires that was recovered.
    pub steps_wall: bool,
    /// By how much the wall was stepped so far.
    pub stepped: u64,
    pub trace: Option<Vec<String>>,
}

pub fn config(flush: Flush) -> Config {
    Config {
        flush,
        topic_queues: names::TOPIC_QUEUES,
        unsynced_max: 16 << 10,
        body_max: 4 << 10,
        checkpoint_bytes: 3 << 10,
        index_cache: 1 << 10,
        check_after: Millis(CHECK_AFTER),
        check_interval: Millis(CHECK_INTERVAL),
        check_max: CHECK_MAX,
        dedup_topics: names::TOPICS
            .iter()
            .map(|topic| (names::bytes(topic), names::dedup(topic)))
            .collect(),
        ..Config::default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for line in self.trace.iter().flatten() {
            println!("{line}");
        }
    }
}

macro_rules! check {
    ($world:expr, $ok:expr, $($words:tt)*) => {
        if !$ok {
            $world.fail(&format!($($words)*));
        }
    };
}
pub(crate) use check;

impl World {
    pub fn open(disk: &Disk, segment_size: u64, flush: Flush, clock: &Arc<SimClock>) -> Result<Engine, OpenError> {
        Engine::open_storage(Arc::new(disk.clone()), segment_size, config(flush), clock.clone())
    }

    pub fn fail(&self, words: &str) -> ! {
        panic!("{}: {words}", self.context);
    }

    pub fn note(&mut self, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(words());
        }
    }

    // --- links ------------------------------------------------------------------------------------

    pub fn add_link(&mut self) {
        let peer = Peer {
            remote: "127.0.0.1:4711".parse().expect("an address"),
            local: "127.0.0.1:1".parse().expect("an address"),
        };
        let inbox = Inbox::new();
        let link = self.engine.open(peer, inbox.clone());
        let link = SimLink {
            link,
            inbox,
            request: 0,
            token: 0,
            subscription: 0,
            awaiting: VecDeque::new(),
            pulls: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            returned: BTreeSet::new(),
            subs: BTreeMap::new(),
            gets: BTreeMap::new(),
            holder: None,
            produces: false,
            blocked: false,
        };
        let free = self.links.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.links.push(None);
            self.links.len() - 1
        });
        self.links[at] = Some(link);
        self.ask(at, Request::Login(Credentials::Anonymous), Expect::Done, None);
        self.observe();
    }

    pub fn link(&mut self, at: usize) -> &mut SimLink {
        self.links[at].as_mut().expect("the link lives")
    }

    pub fn living(&self) -> Vec<usize> {
        (0..self.links.len()).filter(|at| self.links[*at].is_some()).collect()
    }

    /// Makes a request of which the model knows the answer.
    pub fn ask(&mut self, at: usize, request: Request, expect: Expect, bound: Option<usize>) {
        self.note(|| format!("link {at}: {request:?} -> {expect:?}"));
        let link = self.link(at);
        link.request += 1;
        let id = link.request;
        if let Expect::Pulled {
            topic,
            queue,
            offset,
            held: true,
        } = expect
        {
            link.pulls.insert(id, (topic, queue, offset));
        } else {
            link.awaiting.push_back(Awaiting { id, expect, bound });
        }
        link.link.request(RequestId(id), request);
    }

    // --- the model's deliveries --------------------------------------------------------------------

    /// How many more messages consumers of a queue may get now.
    pub fn credit(&self, queue: &model::Queue) -> u64 {
        // What is not leased takes no credit.
        let leased = |id: Id| self.catalog.messages[id].persistent || self.acknowledges(queue) != BTreeSet::from([2]);
        let flying = queue
            .items
            .iter()
            .filter(|item| item.lease == Lease::Flying && leased(item.id))
            .count() as u64;
        let credit = queue.consumers.iter().map(|(link, sub)| {
            let sub = &self.links[*link].as_ref().expect("a consumer's link lives").subs[sub];
            match (sub.acknowledge, sub.window) {
                (Acknowledge::Never, _) | (_, None) => u64::MAX / 8,
                (_, Some(window)) => u64::from(window).saturating_sub(sub.leases.len() as u64),
            }
        });
        credit.sum::<u64>().saturating_sub(flying)
    }

    fn acknowledges(&self, queue: &model::Queue) -> BTreeSet<u8> {
        let of = |(link, sub): &(usize, u32)| {
            let sub = &self.links[*link].as_ref().expect("a consumer's link lives").subs[sub];
            match sub.acknowledge {
                Acknowledge::Never => 0,
                Acknowledge::Always => 1,
                Acknowledge::Persistent => 2,
            }
        };
        queue.consumers.iter().map(of).collect()
    }

    /// An item is done with: it goes, and the disk is told if it knows it.
    pub fn done(&mut self, name: &str, index: usize) {
        let queue = self.live.queues.get_mut(name).expect("the caller has it");
        let item = queue.items.remove(index);
        if queue.spec.durable && self.catalog.messages[item.id].logged {
            let incarnation = queue.incarnation;
            if !self.settled.contains(&(incarnation, item.id)) {
                self.settled.push((incarnation, item.id));
            }
        }
    }

    /// The broker's clock: the wall when it started, and what has passed since.
    pub fn now(&self) -> u64 {
        self.started.1 + self.clock.mono() - self.started.0
    }

    /// Takes expired messages off a queue's head.
    pub fn expire(&mut self, name: &str) {
        while let Some(index) = self.live.queues[name].first_ready()
            && self
                .catalog
                .is_expired(self.live.queues[name].items[index].id, self.now())
        {
            self.done(name, index);
        }
    }

    /// Delivers what consumers of a queue can take, as the model sees it.
    pub fn deliver(&mut self, name: &str) {
        loop {
            let Some(queue) = self.live.queues.get(name) else {
                return;
            };
            if queue.consumers.is_empty() || self.credit(queue) == 0 {
                return;
            }
            let Some(index) = queue.first_ready() else { return };
            let id = queue.items[index].id;
            if self.catalog.is_expired(id, self.now()) {
                self.done(name, index);
                continue;
            }
            self.fly(name, index);
        }
    }

    /// An item is on its way to one of the queue's consumers.
    pub fn fly(&mut self, name: &str, index: usize) {
        let queue = &self.live.queues[name];
        let id = queue.items[index].id;
        let persistent = self.catalog.messages[id].persistent;
        let never = self
            .acknowledges(queue)
            .iter()
            .all(|kind| *kind == 0 || (*kind == 2 && !persistent));
        let queue = self.live.queues.get_mut(name).expect("just found");
        queue.items[index].lease = Lease::Flying;
        if never && queue.spec.durable && self.catalog.messages[id].logged {
            self.settled.push((queue.incarnation, id));
        }
    }

    /// Every queue gives up what has expired at its head, and delivers what it can.
    pub fn deliver_all(&mut self) {
        for name in self.live.queues.keys().cloned().collect::<Vec<_>>() {
            self.expire(&name);
            self.deliver(&name);
        }
    }

    pub fn enforce_limit(&mut self, name: &str) {
        while let Some(queue) = self.live.queues.get(name)
            && queue.spec.limit.is_some_and(|limit| queue.ready() > limit)
        {
            let index = queue.first_ready().expect("more than the limit");
            self.done(name, index);
        }
    }

    // --- effects -----------------------------------------------------------------------------------

    pub fn effect(&mut self, effect: Effect) {
        let number = self.effects.len();
        self.note(|| format!("    effect {number}: {effect:?}"));
        match &mut self.batch {
            Some(batch) => batch.push(effect),
            None => self.effects.push(effect),
        }
    }

    /// Notes that a thing was made just now; gives after how many effects, if it is durable.
    pub fn made_now(&mut self, thing: String, durable: bool) -> Option<usize> {
        let at = if durable { self.effects.len() } else { 0 };
        self.made.insert(thing, at);
        durable.then_some(at)
    }

    /// What must be safe before anybody is told that the thing is there.
    pub fn made_at(&self, thing: &str) -> usize {
        self.made.get(thing).copied().unwrap_or(0)
    }

    pub fn end_of_hold(&mut self) {
        if !self.settled.is_empty() {
            let settled = std::mem::take(&mut self.settled);
            self.effect(Effect::Settled(settled));
        }
    }

    fn safe(&mut self, bound: usize) {
        self.written = self.written.max(bound);
        if self.flush == Flush::Sync {
            self.synced = self.synced.max(bound);
        }
    }

    // --- events ------------------------------------------------------------------------------------

    /// Everything the links were told in a hold, against what the model says of it.
    pub fn observe(&mut self) {
        self.deliver_all();
        let mut last = BTreeMap::new();
        for at in self.living() {
            for event in self.events(at) {
                self.note(|| format!("    link {at} is told {event:?}"));
                self.on_event(at, event, &mut last);
            }
        }
        let unasked = self.asked.first().copied();
        check!(self, unasked.is_none(), "nobody was asked about message {unasked:?}");
        self.end_of_hold();
        for at in self.living() {
            let link = self.link(at);
            if link.is_held() && !link.has_consumers() {
                continue;
            }
            if link.is_held() {
                return;
            }
        }
        for (name, queue) in &self.live.queues {
            if let Some(item) = queue.items.iter().find(|item| item.lease == Lease::Flying) {
                self.fail(&format!("{name:?} did not deliver message {}", item.id));
            }
        }
    }

    /// Every queue counts what the model counts.
    pub fn check_counts(&mut self) {
        let mut probe = Probe::of(&self.engine);
        for (name, queue) in &self.live.queues {
            let Some(ready) = probe.count(name) else { continue };
            if ready != queue.ready() {
                let content = probe.content(name);
                self.fail(&format!(
                    "{name:?} counts {ready} and has {content:?}, expected {:?}",
                    queue.items
                ));
            }
        }
    }

    fn events(&mut self, at: usize) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let link = self.link(at);
            let taken = link.inbox.take(256, &mut events, Waker::noop());
            if taken.resume {
                link.link.resume();
            } else if taken.empty {
                return events;
            }
        }
    }

    fn on_event(&mut self, at: usize, event: Event, last: &mut BTreeMap<(usize, u32, bool), usize>) {
        match event {
            Event::Outcome(outcome) => self.on_outcome(at, outcome),
            Event::Returned { token, message } => {
                let id = names::id_of(message.body());
                let awaited = self
                    .link(at)
                    .outcomes
                    .get(&token)
                    .map(|awaited| (awaited.id, awaited.returned));
                check!(
                    self,
                    awaited == Some((id, true)),
                    "message {id} returned, expected {awaited:?}"
                );
                let first = self.link(at).returned.insert(token);
                check!(self, first, "message {id} returned twice");
            }
            Event::Delivery(delivery) => self.on_delivery(at, &delivery, last),
            Event::Reply { id, result } => self.on_reply(at, id.0, result),
            Event::Notice(Notice::SubscriptionEnded(subscription)) => {
                let expected = self
                    .ended_notices
                    .iter()
                    .position(|ended| *ended == (at, subscription.0));
                check!(self, expected.is_some(), "subscription {subscription:?} ended");
                self.ended_notices.swap_remove(expected.expect("checked"));
            }
            Event::Notice(Notice::CheckTransaction(check)) => {
                let id = names::id_of(check.message.body());
                let right = self.asked.remove(&id) && self.link(at).produces && check.group == names::PRODUCERS;
                check!(self, right, "asked about message {id}: {check:?}");
                self.learn_record(id, check.position.0, check.offset);
            }
            Event::Notice(_) => {}
            Event::Writable => {
                let was = std::mem::replace(&mut self.link(at).blocked, false);
                check!(self, was, "a link that is not blocked is writable");
            }
        }
    }

    fn on_outcome(&mut self, at: usize, outcome: Outcome) {
        for token in outcome.first..outcome.first + u64::from(outcome.count) {
            let Some(awaited) = self.link(at).outcomes.remove(&token) else {
                self.fail(&format!("an outcome for token {token}, which awaits none"));
            };
            let id = awaited.id;
            match (outcome.fate, awaited.fate) {
                (Fate::Rejected(why), Expected::Rejected(expected)) => {
                    check!(
                        self,
                        why == expected,
                        "message {id} rejected: {why:?}, not {expected:?}"
                    );
                }
                (Fate::Duplicate(stored), Expected::Duplicate(original)) => {
                    let position = stored.position.0;
                    let known = self.known_positions.get(&position).copied();
                    // Of merged outcomes the position means nothing.
                    check!(
                        self,
                        outcome.count > 1 || known.is_none_or(|known| known == original),
                        "message {id} is a copy of the one at {position}, {known:?}, expected {original}"
                    );
                    check!(
                        self,
                        stored.weak == (self.flush == Flush::Async),
                        "message {id}: {stored:?}"
                    );
                    self.safe(awaited.bound);
                }
                (Fate::Stored(stored), Expected::Closed(was_open)) => {
                    check!(
                        self,
                        stored.routes == u32::from(was_open),
                        "{stored:?}, expected {was_open}"
                    );
                    if was_open {
                        self.safe(awaited.bound);
                    }
                }
                (Fate::Stored(stored), Expected::Stored { durable, routes, later }) => {
                    let weak = !durable || self.flush == Flush::Async;
                    check!(self, stored.weak == weak, "message {id}: {stored:?}");
                    check!(
                        self,
                        stored.routes as usize == routes
                            || (outcome.count > 1 && (stored.routes == 0) == (routes == 0)),
                        "message {id}: {stored:?}, expected {routes} routes"
                    );
                    check!(
                        self,
                        self.link(at).returned.remove(&token) == awaited.returned,
                        "message {id} was confirmed, but not returned before"
                    );
                    if later {
                        self.learn_record(id, stored.position.0, stored.queue_offset);
                    } else if outcome.count == 1 && self.catalog.messages[id].in_topic {
                        self.learn_place(id, stored.queue_id, stored.queue_offset);
                    }
                    if durable {
                        self.safe(awaited.bound);
                    }
                }
                (fate, expected) => self.fail(&format!("message {id}: {fate:?}, expected {expected:?}")),
            }
        }
    }

    /// Where a timed or half message lies.
    pub fn learn_record(&mut self, id: Id, position: u64, number: u64) {
        let known = *self.catalog.messages[id].record.get_or_insert((position, number));
        check!(
            self,
            known == (position, number),
            "message {id} lies at {position}, {number}, before at {known:?}"
        );
    }

    fn learn_place(&mut self, id: Id, queue: u32, offset: u64) {
        let known = *self.catalog.messages[id].place.get_or_insert((queue, offset));
        check!(
            self,
            known == (queue, offset),
            "message {id} was at {known:?}, is at {:?}",
            (queue, offset)
        );
    }

    /// A message as somebody sees it.
    pub fn see(&mut self, message: &Message) -> Id {
        let id = names::id_of(message.body());
        let known = self.catalog.messages.len();
        check!(self, id < known, "message {id} was never published");
        let position = message.position();
        if !position.is_memory() {
            let stored_at = message.stored_at().0;
            let ever = self.known_positions.get(&position.0).copied();
            check!(
                self,
                ever.is_none_or(|ever| ever == id),
                "position {position} was message {ever:?}, is {id}"
            );
            let before = self.positions.insert(position.0, (id, stored_at));
            check!(
                self,
                before.is_none_or(|before| before == (id, stored_at)),
                "position {position} has message {id}, and had {before:?}"
            );
            let earlier = self.positions.range(..position.0).next_back().map(|(_, (_, at))| *at);
            let later = self.positions.range(position.0 + 1..).next().map(|(_, (_, at))| *at);
            check!(
                self,
                earlier.is_none_or(|at| at <= stored_at) && later.is_none_or(|at| stored_at <= at),
                "stored time decreases at {position}: {earlier:?}, {stored_at}, {later:?}"
            );
        }
        id
    }

    fn check_flag(&mut self, id: Id, flag: Flag, redelivered: bool) {
        let right = match flag {
            Flag::No => !redelivered,
            Flag::Yes => redelivered,
            Flag::Either => true,
        };
        check!(
            self,
            right,
            "message {id} has redelivered={redelivered}, expected {flag:?}"
        );
    }

    fn on_delivery(&mut self, at: usize, delivery: &Delivery, last: &mut BTreeMap<(usize, u32, bool), usize>) {
        let id = self.see(&delivery.message);
        let subscription = delivery.subscription.0;
        let Some(sub) = self.link(at).subs.get(&subscription) else {
            self.fail(&format!(
                "message {id} for subscription {subscription}, which there is not"
            ));
        };
        let (incarnation, acknowledge) = (sub.incarnation, sub.acknowledge);
        check!(
            self,
            sub.active,
            "message {id} for subscription {subscription}, which has ended"
        );
        let persistent = self.catalog.messages[id].persistent;
        let leased = match acknowledge {
            Acknowledge::Never => false,
            Acknowledge::Always => true,
            Acknowledge::Persistent => persistent,
        };
        check!(
            self,
            delivery.leased == leased,
            "message {id} has leased={}",
            delivery.leased
        );
        let queue = self.live.queue_of(incarnation).expect("a consumer's queue lives");
        let Some(index) = queue.items.iter().position(|item| item.id == id) else {
            self.fail(&format!("message {id} delivered, which the queue does not have"));
        };
        let item = queue.items[index].clone();
        check!(
            self,
            item.lease == Lease::Flying,
            "message {id} delivered out of order, or twice: {item:?}"
        );
        self.check_flag(id, item.flag, delivery.redelivered);
        self.learn_sequence(incarnation, index, delivery.sequence);
        // One consumer gets them in the queue's order; what a batch gives back may come behind what it brings.
        let sequence = delivery.sequence as usize;
        let before = last.insert((at, subscription, delivery.redelivered), sequence);
        check!(
            self,
            before.is_none_or(|before| before < sequence),
            "message {id} at {sequence} after {before:?}"
        );
        self.catalog.messages[id].seen_in.insert(incarnation);
        let queue = self.live.queue_of(incarnation).expect("just found");
        if leased {
            queue.items[index].lease = Lease::To(at, subscription);
            let sub = self.link(at).subs.get_mut(&subscription).expect("just found");
            sub.leases.insert(delivery.sequence, id);
            let full = sub.window.is_some_and(|window| sub.leases.len() > window as usize);
            check!(self, !full, "message {id} is beyond the window");
        } else {
            let name = self.name_of(incarnation);
            self.done(&name, index);
        }
    }

    pub fn name_of(&self, incarnation: u64) -> Name {
        let found = self
            .live
            .queues
            .iter()
            .find(|(_, queue)| queue.incarnation == incarnation);
        found.expect("the queue lives").0.clone()
    }

    fn learn_sequence(&mut self, incarnation: u64, index: usize, sequence: u64) {
        let queue = self.live.queue_of(incarnation).expect("the queue lives");
        let known = *queue.items[index].sequence.get_or_insert(sequence);
        let mut sequences = queue.items.iter().filter_map(|item| item.sequence);
        let id = queue.items[index].id;
        let rising = sequences.next().is_none_or(|first| {
            sequences
                .try_fold(first, |before, next| (before < next).then_some(next))
                .is_some()
        });
        check!(
            self,
            known == sequence && rising,
            "message {id} at sequence {sequence}, was {known}, or another has it"
        );
    }

    fn on_reply(&mut self, at: usize, id: u64, result: Result<Reply, Refusal>) {
        if let Some((topic, queue, offset)) = self.link(at).pulls.remove(&id) {
            return self.on_pulled(&topic, queue, offset, result);
        }
        let Some(awaiting) = self.link(at).awaiting.pop_front() else {
            self.fail(&format!("an answer to request {id}, which awaits none"));
        };
        check!(self, awaiting.id == id, "request {id} answered before {}", awaiting.id);
        let expect = awaiting.expect;
        if let Some(bound) = awaiting.bound {
            self.safe(bound);
        }
        match (result, expect) {
            (Ok(Reply::Done), Expect::Done) => {}
            (Err(refusal), Expect::Refused(why)) => {
                let is = match &refusal {
                    Refusal::NotFound { .. } => Some(Why::NotFound),
                    Refusal::Locked => Some(Why::Locked),
                    Refusal::AccessRefused => Some(Why::AccessRefused),
                    Refusal::InUse => Some(Why::InUse),
                    Refusal::NotEmpty => Some(Why::NotEmpty),
                    Refusal::Invalid(_) => Some(Why::Invalid),
                    _ => None,
                };
                check!(self, is == Some(why), "refused with {refusal:?}, expected {why:?}");
            }
            (Err(Refusal::Rejected { index, reject }), Expect::Rejected(at, why)) => {
                check!(
                    self,
                    (index, reject) == (at, why),
                    "publish {index} of a batch: {reject:?}"
                );
            }
            (Ok(Reply::Exchange(is)), Expect::Exchange(expected)) => {
                let is = names::exchange_of(&is);
                check!(self, is == expected, "{is:?}, expected {expected:?}");
            }
            (
                Ok(Reply::Queue(is)),
                Expect::Queue {
                    spec,
                    ready,
                    consumers,
                    created,
                },
            ) => {
                let same = names::spec_of(&is.queue) == spec
                    && is.ready == ready
                    && is.consumers == consumers
                    && is.created == created;
                check!(
                    self,
                    same,
                    "{is:?}, expected {spec:?} {ready} ready, {consumers} consumers, {created}"
                );
            }
            (Ok(Reply::Count(is)), Expect::Count(expected)) => {
                check!(self, is == expected, "{is} messages, expected {expected}");
            }
            (Ok(Reply::Got(is)), Expect::Got(expected)) => self.on_got(at, is.map(|got| *got), expected),
            (Ok(Reply::Attached { present: is, .. }), Expect::Attached { present }) => {
                check!(self, is == present, "the session is present: {is}");
            }
            (Ok(Reply::Topic(is)), Expect::Topic(queues)) => {
                check!(self, is.queues == queues, "{is:?}, expected {queues} queues");
            }
            (Ok(Reply::Transaction(is)), Expect::Transaction(expected)) => {
                check!(self, is == expected, "the transaction is {is:?}, expected {expected:?}");
            }
            (Ok(Reply::Offset(is)), Expect::Offset(expected)) => {
                check!(self, is == expected, "offset {is:?}, expected {expected:?}");
            }
            (
                result,
                Expect::Pulled {
                    topic, queue, offset, ..
                },
            ) => self.on_pulled(&topic, queue, offset, result),
            (result, expected) => self.fail(&format!("{result:?}, expected {expected:?}")),
        }
    }

    fn on_got(&mut self, at: usize, is: Option<rocketbridge_core::request::Got>, expected: Option<Got>) {
        let (Some(is), Some(expected)) = (&is, &expected) else {
            check!(
                self,
                is.is_none() && expected.is_none(),
                "got {is:?}, expected {expected:?}"
            );
            return;
        };
        let id = self.see(&is.delivery.message);
        check!(
            self,
            id == expected.id && is.remaining == expected.remaining && is.delivery.leased == expected.leased,
            "got message {id} {is:?}, expected {expected:?}"
        );
        self.check_flag(id, expected.flag, is.delivery.redelivered);
        self.catalog.messages[id].seen_in.insert(expected.incarnation);
        // It may be gone again, with its queue.
        let queue = self.live.queue_of(expected.incarnation);
        let index = queue.and_then(|queue| queue.items.iter().position(|item| item.id == id));
        if expected.leased
            && let Some(index) = index
        {
            self.learn_sequence(expected.incarnation, index, is.delivery.sequence);
            let queue = self.live.queue_of(expected.incarnation).expect("just found");
            queue.items[index].lease = Lease::To(at, expected.subscription);
            let sub = self.link(at).subs.get_mut(&expected.subscription).expect("made for it");
            sub.leases.insert(is.delivery.sequence, id);
        }
    }

    fn on_pulled(&mut self, topic: &str, queue: u32, offset: u64, result: Result<Reply, Refusal>) {
        let Ok(Reply::Pulled(pulled)) = result else {
            self.fail(&format!("{result:?}, not the result of a pull"));
        };
        let mut at = offset;
        for message in &pulled.messages {
            let id = self.see(message);
            check!(
                self,
                self.live.topics[topic].messages.contains(&id),
                "message {id} is not in {topic}"
            );
            self.learn_place(id, queue, at);
            at += 1;
        }
        let end = pulled.bounds.end;
        let right = match pulled.status {
            PullStatus::Found => !pulled.messages.is_empty() && pulled.next_offset == at && at <= end,
            PullStatus::NotFound => offset == end,
            PullStatus::OffsetMoved => !pulled.bounds.contains(&offset) && offset != end,
            PullStatus::NoneMatched | PullStatus::OffsetReset => false,
        };
        check!(self, right, "a pull of {topic}/{queue} from {offset}: {pulled:?}");
    }

    // --- the disk ----------------------------------------------------------------------------------

    /// The sync thread's step. Gives whether the disk works.
    pub fn sync(&mut self) -> bool {
        self.note(|| "sync".to_owned());
        let result = self.engine.sync_once();
        let failed = self.disk.failed();
        self.note(|| format!("    {result:?}"));
        check!(self, result.is_ok() || failed, "the disk works, {result:?}");
        self.observe();
        if failed {
            return false;
        }
        self.synced = self.effects.len();
        self.written = self.synced;
        for at in self.living() {
            let link = self.link(at);
            let waiting = link.awaiting.front().map(|awaiting| format!("{:?}", awaiting.expect));
            let token = link.outcomes.keys().next().copied();
            let blocked = link.blocked;
            check!(self, waiting.is_none(), "link {at} still waits for {waiting:?}");
            check!(
                self,
                token.is_none(),
                "link {at} still waits for the outcome of {token:?}"
            );
            let short = self.disk.has_refused();
            check!(self, !blocked || short, "link {at} is still blocked");
        }
        true
    }
}
