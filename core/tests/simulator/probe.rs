//! What a recovered broker has, asked of it in every way there is. Everything is taken out: it is done on a
//! copy of the disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::task::Waker;

use rocketbridge_core::boundary::*;
use rocketbridge_core::engine::{Engine, EngineLink};
use rocketbridge_core::inbox::Inbox;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::*;
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::Millis;

use crate::model::{self, Catalog, Id, Name, State};
use crate::names::*;
use crate::operations::CHECK_MAX;
use crate::operations::KEEP;
use crate::world::SimClock;

/// Bodies of the probe's own messages have numbers from here on.
const PROBES: Id = 1 << 40;

/// Stands for any half message: nobody may see it.
const SECRET: Id = PROBES - 1;

/// Where a message of an address goes, and how many groups there are for it.
pub type Routes = BTreeMap<(u8, Name, Name), (BTreeSet<Name>, usize)>;

/// What is there for later, found by waiting for it.
#[derive(Debug, Default)]
pub struct Later {
    /// In their order, with both clocks when they fired.
    pub fired: Vec<(Id, u64, u64)>,
    /// Half messages in the order in which they were asked about or given up.
    pub halves: Vec<(Id, Asked)>,
}

/// What was seen of a half message.
#[derive(Debug)]
pub struct Asked {
    /// When somebody was asked about it first, or it was given up; monotonic.
    pub first: u64,
    /// How often somebody was asked.
    pub times: u32,
    /// Its position and number.
    pub record: Option<(u64, u64)>,
}

impl Later {
    /// The messages, those of transactions with how often somebody was asked.
    pub fn kinds(&self) -> BTreeMap<Id, Option<u32>> {
        let fired = self.fired.iter().map(|(id, ..)| (*id, None));
        let halves = self.halves.iter().map(|(id, asked)| (*id, Some(asked.times)));
        fired.chain(halves).collect()
    }
}

/// A broker's durable state, as far as it can be seen without changing it.
#[derive(Debug, Default)]
pub struct Observed {
    pub exchanges: BTreeMap<Name, model::Exchange>,
    /// With how many messages are counted, and those that are there.
    pub queues: BTreeMap<Name, (model::Spec, u64, Vec<Id>)>,
    pub topics: BTreeMap<Name, BTreeSet<Id>>,
    pub offsets: BTreeMap<(Name, Name, u32), u64>,
}

impl Observed {
    /// What a broker with that state must show.
    pub fn of(state: &State, catalog: &Catalog, wall: u64) -> Self {
        let alive = |id: &Id| !catalog.is_expired(*id, wall);
        let queues = state.queues.iter().map(|(name, queue)| {
            // What has expired behind a message that lives is still counted.
            let counted = queue.items.iter().skip_while(|item| !alive(&item.id)).count() as u64;
            let items = queue.items.iter().map(|item| item.id).filter(alive).collect();
            (name.clone(), (queue.spec.clone(), counted, items))
        });
        Self {
            exchanges: state.exchanges.clone(),
            queues: queues.collect(),
            topics: state
                .topics
                .iter()
                .map(|(name, topic)| (name.clone(), topic.messages.clone()))
                .collect(),
            offsets: state.offsets.clone(),
        }
    }

    /// What a broker with that state must show by and by.
    pub fn later_of(state: &State) -> BTreeMap<Id, Option<u32>> {
        let timers = state.timers.keys().map(|id| (*id, None));
        let halves = state.halves.iter();
        timers
            .chain(halves.map(|(id, half)| (*id, Some(CHECK_MAX - half.checks))))
            .collect()
    }

    /// The keys that must be open.
    pub fn keys_of(state: &State, catalog: &Catalog) -> BTreeMap<(Name, Name), Id> {
        let scopes = state.keys.iter().filter(|(scope, _)| *scope != TIMED_KEYS);
        let keys = scopes.flat_map(|(scope, keys)| keys.iter().map(move |key| (scope, key)));
        let shown = |id: Id| {
            if catalog.messages[id].described.half {
                SECRET
            } else {
                id
            }
        };
        keys.map(|(scope, key)| ((scope.clone(), key.value.clone()), shown(key.id)))
            .collect()
    }

    /// What is different, in words.
    pub fn differences(&self, expected: &Self) -> String {
        let parts = [
            different("exchanges", &self.exchanges, &expected.exchanges),
            different("queues", &self.queues, &expected.queues),
            different("topics", &self.topics, &expected.topics),
            different("offsets", &self.offsets, &expected.offsets),
        ];
        parts.concat()
    }

    /// How that state must route.
    pub fn routes_of(state: &State) -> Routes {
        let mut routes = BTreeMap::new();
        let mut state = state.clone();
        for (name, bindings) in taps(&state) {
            state.queues.insert(name, State::new_queue(tap(), u64::MAX, false));
            state.bindings.extend(bindings);
        }
        let state = &state;
        for (entry, topic, key) in addresses(state) {
            let found = state.route(entry, &topic, &key).unwrap_or_default();
            let groups = state.groups.iter().filter(|(of, _)| *of == topic).count();
            routes.insert((entry as u8, topic, key), (found, groups));
        }
        routes
    }
}

pub fn different<K: Ord + Debug, V: PartialEq + Debug>(
    what: &str,
    is: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) -> String {
    let keys: BTreeSet<&K> = is.keys().chain(expected.keys()).collect();
    let differ = keys.into_iter().filter(|key| is.get(key) != expected.get(key));
    let lines = differ.map(|key| format!("\n{what} {key:?}: {:?}, expected {:?}", is.get(key), expected.get(key)));
    lines.collect()
}

/// A queue for every exchange that takes all that comes there: it shows exchanges that are bound, but have
/// no queue.
fn taps(state: &State) -> Vec<(Name, Vec<model::Binding>)> {
    let tap = |(name, exchange): (&Name, &model::Exchange)| {
        let matchers: Vec<Name> = match exchange.kind {
            ExchangeKind::Pattern => vec!["#".to_owned()],
            ExchangeKind::Fanout => vec![String::new()],
            _ => {
                let topics = TOPICS.into_iter().chain(EXCHANGES);
                let whole =
                    topics.flat_map(|topic| KEYS.map(|key| format!("{topic}.{key}").trim_end_matches('.').to_owned()));
                whole.chain(KEYS.map(str::to_owned)).collect()
            }
        };
        let target = tap_name(name);
        let bindings = matchers.into_iter().map(|matcher| model::Binding {
            source: model::Source::Exchange(name.clone()),
            matcher,
            target: model::Target::Queue(target.clone()),
        });
        (target.clone(), bindings.collect())
    };
    state.exchanges.iter().map(tap).collect()
}

fn tap_name(exchange: &str) -> Name {
    format!("tap {exchange}")
}

fn tap() -> model::Spec {
    model::Spec {
        durable: false,
        auto_delete: false,
        addressable: false,
        limit: None,
    }
}

/// Addresses to which a message may be published.
fn addresses(state: &State) -> Vec<(Entry, Name, Name)> {
    let exchanges = EXCHANGES
        .iter()
        .filter(|name| state.exchanges.get(**name).is_some_and(|e| !e.internal));
    let through = exchanges.map(|name| (Entry::Exchange, *name));
    let by_name = TOPICS.iter().map(|name| (Entry::Topic, *name));
    let all: Vec<_> = through.chain(by_name).collect();
    let with_keys = all
        .into_iter()
        .flat_map(|(entry, topic)| KEYS.map(|key| (entry, topic.to_owned(), key.to_owned())));
    // The same, to see the groups of every topic.
    let by_name = EXCHANGES.map(|name| (Entry::Topic, name)).into_iter();
    let native = QUEUES.map(|name| (Entry::Native, name)).into_iter();
    let others = by_name
        .chain(native)
        .map(|(entry, topic)| (entry, topic.to_owned(), String::new()));
    with_keys.chain(others).collect()
}

pub struct Probe<'a> {
    engine: &'a Engine,
    link: EngineLink,
    inbox: Inbox,
    request: u64,
    subscriptions: u32,
    /// Messages that came without the redelivered flag, by queue.
    pub unflagged: Vec<(Name, Id)>,
    pub stored_at: BTreeMap<u64, (Id, u64)>,
    pub faults: Vec<String>,
}

impl<'a> Probe<'a> {
    pub fn of(engine: &'a Engine) -> Self {
        let peer = Peer {
            remote: "127.0.0.1:4712".parse().expect("an address"),
            local: "127.0.0.1:1".parse().expect("an address"),
        };
        let inbox = Inbox::new();
        let link = engine.open(peer, inbox.clone());
        let mut probe = Self {
            engine,
            link,
            inbox,
            request: 0,
            subscriptions: 0,
            unflagged: Vec::new(),
            stored_at: BTreeMap::new(),
            faults: Vec::new(),
        };
        probe.ask(Request::Login(Credentials::Anonymous)).expect("anybody may");
        probe
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while !self.inbox.take(256, &mut events, Waker::noop()).empty {}
        events
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.request += 1;
        let wanted = RequestId(self.request);
        self.link.request(wanted, request);
        let answer = |events: Vec<Event>| {
            events.into_iter().find_map(|event| match event {
                Event::Reply { id, result } if id == wanted => Some(result),
                _ => None,
            })
        };
        let events = self.events();
        if let Some(result) = answer(events) {
            return result;
        }
        self.engine.sync_once().expect("this disk works");
        let events = self.events();
        answer(events).expect("an answer after a sync")
    }

    pub fn observe(&mut self, catalog: &Catalog) -> Observed {
        let mut observed = Observed::default();
        for name in EXCHANGES {
            if let Ok(Reply::Exchange(exchange)) = self.ask(Request::FindExchange { name: bytes(name) }) {
                observed.exchanges.insert(name.to_owned(), exchange_of(&exchange));
            }
        }
        for topic in all_topics().chain([GIVEN_UP]) {
            if let Some(messages) = self.topic(topic, catalog) {
                observed.topics.insert(topic.to_owned(), messages);
            }
            for group in GROUPS.into_iter().filter(|_| topic != GIVEN_UP) {
                for queue in 0..TOPIC_QUEUES {
                    let asked = self.ask(Request::CommittedOffset {
                        group: bytes(group),
                        topic: bytes(topic),
                        queue_id: queue,
                    });
                    if let Ok(Reply::Offset(Some(offset))) = asked {
                        observed
                            .offsets
                            .insert((group.to_owned(), topic.to_owned(), queue), offset);
                    }
                }
            }
        }
        for name in all_queues() {
            if !self.reach(&name) {
                continue;
            }
            let Ok(Reply::Queue(queue)) = self.ask(Request::FindQueue { name: bytes(&name) }) else {
                continue;
            };
            let items = self.content(&name);
            observed
                .queues
                .insert(name, (spec_of(&queue.queue), queue.ready, items));
        }
        observed
    }

    /// A session's queue is reached by who has the session: takes it, if there is such a session.
    fn reach(&mut self, queue: &str) -> bool {
        let Some(holder) = queue.strip_prefix('\0') else {
            return true;
        };
        let attached = self.ask(Request::Attach(Attach {
            holder: bytes(holder),
            clean: false,
            durable: true,
            keep: Millis(KEEP),
            limit: Limit::default(),
            will: None,
        }));
        if matches!(attached, Ok(Reply::Attached { present: true, .. })) {
            return true;
        }
        let _ = self.ask(Request::Detach {
            keep: Millis(0),
            keep_will: false,
        });
        false
    }

    /// The same for the queue that a binding leads to.
    fn reach_end(&mut self, binding: &model::Binding) -> bool {
        match &binding.target {
            model::Target::Queue(name) => self.reach(name),
            _ => true,
        }
    }

    /// Everything in a queue, in order.
    pub fn content(&mut self, name: &str) -> Vec<Id> {
        self.subscriptions += 1;
        let subscription = SubscriptionId(self.subscriptions);
        let mut ids = Vec::new();
        while let Ok(Reply::Got(Some(got))) = self.ask(Request::Get {
            subscription,
            queue: bytes(name),
            leased: false,
        }) {
            let message = &got.delivery.message;
            let id = id_of(message.body());
            if !got.delivery.redelivered {
                self.unflagged.push((name.to_owned(), id));
            }
            self.stored_at.insert(message.position().0, (id, message.stored_at().0));
            ids.push(id);
        }
        ids
    }

    fn topic(&mut self, name: &str, catalog: &Catalog) -> Option<BTreeSet<Id>> {
        let Ok(Reply::Topic(topic)) = self.ask(Request::FindTopic { topic: bytes(name) }) else {
            return None;
        };
        let mut all = BTreeSet::new();
        for queue in 0..topic.queues {
            let mut offset = 0;
            loop {
                let pulled = self.ask(Request::Pull(Pull {
                    group: bytes("probe"),
                    topic: bytes(name),
                    queue_id: queue,
                    offset,
                    messages_max: 1000,
                    bytes_max: u32::MAX,
                    filter: Some(Filter::All),
                    hold: false,
                }));
                let Ok(Reply::Pulled(pulled)) = pulled else {
                    self.faults.push(format!("{name}/{queue} cannot be pulled: {pulled:?}"));
                    break;
                };
                if pulled.messages.is_empty() {
                    if pulled.status != PullStatus::NotFound {
                        self.faults.push(format!("{name}/{queue} from {offset}: {pulled:?}"));
                    }
                    break;
                }
                let mut before = None;
                for message in &pulled.messages {
                    let id = id_of(message.body());
                    self.stored_at.insert(message.position().0, (id, message.stored_at().0));
                    let order = catalog.messages.get(id).map(|message| message.order);
                    if before.is_some() && before >= order {
                        self.faults.push(format!("{name}/{queue} has {id} behind {before:?}"));
                    }
                    before = order;
                    let place = catalog.messages.get(id).and_then(|message| message.place);
                    if place.is_some_and(|place| place != (queue, offset)) {
                        self.faults
                            .push(format!("{name}/{queue}: {id} at {offset}, was at {place:?}"));
                    }
                    if !all.insert(id) {
                        self.faults.push(format!("{name} has {id} twice"));
                    }
                    offset += 1;
                }
            }
        }
        Some(all)
    }

    /// How the broker routes; its queues are empty now.
    pub fn routes(&mut self, state: &State) -> Routes {
        let mut routes = BTreeMap::new();
        for (name, bindings) in taps(state) {
            let _ = self.ask(Request::DeclareQueue(queue(&name, &tap(), false)));
            for wanted in bindings {
                let _ = self.ask(Request::Bind(binding(state, &wanted)));
            }
        }
        let asked = addresses(state);
        let mut batch = VecDeque::new();
        for (number, (entry, topic, key)) in asked.iter().enumerate() {
            let mut publish = publish(*entry, topic, key, body(PROBES + number, 0));
            publish.token = number as u64;
            if *entry == Entry::Native {
                publish.format = Format::NATIVE;
                publish.native = Some(Box::new(Native {
                    topic_queues: TOPIC_QUEUES,
                    ..Native::default()
                }));
            }
            batch.push_back(publish);
        }
        while self.link.publish(&mut batch) == Admission::Partial {
            self.engine.sync_once().expect("this disk works");
        }
        self.engine.sync_once().expect("this disk works");
        let mut groups = BTreeMap::new();
        for event in self.events() {
            if let Event::Outcome(Outcome {
                first,
                fate: Fate::Stored(stored),
                ..
            }) = event
            {
                groups.insert(first as usize, stored.routes as usize);
            }
        }
        let mut found: BTreeMap<usize, BTreeSet<Name>> = BTreeMap::new();
        for name in all_queues().chain(EXCHANGES.map(tap_name)) {
            if !self.reach(&name) {
                continue;
            }
            for id in self.content(&name) {
                found.entry(id - PROBES).or_default().insert(name.clone());
            }
        }
        for (number, (entry, topic, key)) in asked.into_iter().enumerate() {
            let found = found.remove(&number).unwrap_or_default();
            let all = groups.get(&number).copied().unwrap_or(0);
            let groups = all.wrapping_sub(found.len());
            routes.insert((entry as u8, topic, key), (found, groups));
        }
        routes
    }

    /// How many messages a queue counts, unless it is another's or a session's.
    pub fn count(&mut self, name: &str) -> Option<u64> {
        match self.ask(Request::FindQueue { name: bytes(name) }) {
            Ok(Reply::Queue(queue)) => Some(queue.ready),
            _ => None,
        }
    }

    /// Makes the broker have those bindings that the state has, and not the others.
    pub fn make_sure(&mut self, state: &State, others: &BTreeSet<model::Binding>) {
        for wanted in &state.bindings {
            if self.reach_end(wanted) {
                let _ = self.ask(Request::Bind(binding(state, wanted)));
            }
        }
        for other in others {
            if self.reach_end(other) {
                let _ = self.ask(Request::Unbind(binding(state, other)));
            }
        }
    }

    /// The sessions that are there, with their open keys. Those that are not are made thereby.
    pub fn holders(&mut self) -> (BTreeSet<Name>, BTreeMap<(Name, Name), Id>) {
        let (mut present, mut keys) = (BTreeSet::new(), BTreeMap::new());
        for name in HOLDERS {
            let attached = self.ask(Request::Attach(Attach {
                holder: bytes(name),
                clean: false,
                durable: true,
                keep: Millis(1000),
                limit: Limit::default(),
                will: None,
            }));
            if matches!(attached, Ok(Reply::Attached { present: true, .. })) {
                present.insert(name.to_owned());
            }
            for number in 0..3 {
                let publish = |publish: &mut Publish| publish.holder_key = Some(HolderKey::Open(number));
                if let Some(id) = self.original("t0", publish) {
                    keys.insert((holder_queue(name), number.to_string()), id);
                }
            }
        }
        (present, keys)
    }

    /// The open keys of topics and exchanges that remember some number of them.
    pub fn keys(&mut self) -> BTreeMap<(Name, Name), Id> {
        let mut keys = BTreeMap::new();
        for scope in EXCHANGES.into_iter().chain(TOPICS).filter(|scope| *scope != TIMED_KEYS) {
            for value in KEY_VALUES {
                let origin = bytes(&format!("{DEDUP}\x01{value}\x02"));
                if let Some(id) = self.original(scope, |publish| publish.origin = origin) {
                    keys.insert((scope.to_owned(), value.to_owned()), id);
                }
            }
        }
        keys
    }

    /// The message of which one would be a copy. It is published to a message queue that there is not: if it is
    /// no copy, nothing comes of it.
    fn original(&mut self, topic: &str, edit: impl FnOnce(&mut Publish)) -> Option<Id> {
        let mut publish = publish(Entry::Native, topic, "", body(PROBES, 0));
        publish.format = Format::NATIVE;
        publish.native = Some(Box::new(Native {
            queue_id: Some(77),
            topic_queues: TOPIC_QUEUES,
            ..Native::default()
        }));
        edit(&mut publish);
        let admission = self.link.publish(&mut VecDeque::from([publish]));
        if admission == Admission::Partial {
            self.faults.push("a key cannot be asked for".to_owned());
        }
        let mut fates = self.events().into_iter().filter_map(|event| match event {
            Event::Outcome(outcome) => Some(outcome.fate),
            _ => None,
        });
        match fates.next() {
            Some(Fate::Duplicate(stored)) => Some(self.id_at(stored.position)),
            Some(Fate::Rejected(Reject::NoQueue)) => None,
            other => {
                self.faults.push(format!("a key at {topic}: {other:?}"));
                None
            }
        }
    }

    /// The message whose record lies there.
    fn id_at(&mut self, position: Position) -> Id {
        match self.ask(Request::View { position }) {
            Ok(Reply::Message(message)) => id_of(message.body()),
            // Nobody may see a half message.
            _ => SECRET,
        }
    }

    /// Waits until nothing is left for later.
    pub fn later(&mut self, clock: &SimClock) -> Later {
        let mut later = Later::default();
        if self.engine.timers().0 == 0 && self.engine.half_count() == 0 {
            return later;
        }
        let tap_name = "tap later";
        let _ = self.ask(Request::DeclareQueue(queue(tap_name, &tap(), false)));
        for name in EXCHANGES {
            let wanted = model::Exchange {
                kind: ExchangeKind::Fanout,
                durable: false,
                auto_delete: false,
                internal: false,
                dedup: false,
            };
            let _ = self.ask(Request::DeclareExchange(exchange(name, &wanted)));
        }
        let everything = model::Binding {
            source: model::Source::Everything,
            matcher: "#".to_owned(),
            target: model::Target::Queue(tap_name.to_owned()),
        };
        let _ = self.ask(Request::Bind(binding(&State::default(), &everything)));
        let (group, client_id) = (bytes(PRODUCERS), bytes("probe"));
        let _ = self.ask(Request::JoinProducers { group, client_id });
        let mut given_up = self.given_up();
        for _ in 0..10_000 {
            self.engine.fire();
            let (mono, wall) = (clock.mono(), clock.wall());
            for event in self.events() {
                if let Event::Notice(Notice::CheckTransaction(check)) = event {
                    let record = Some((check.position.0, check.offset));
                    later.asked(id_of(check.message.body()), mono, 1, record);
                }
            }
            let before = later.fired.len();
            let now_given_up = self.given_up();
            for id in now_given_up.iter().filter(|id| !given_up.contains(id)) {
                later.asked(*id, mono, 0, None);
            }
            given_up = now_given_up;
            let fired = self.content(tap_name);
            later.fired.extend(fired.into_iter().map(|id| (id, mono, wall)));
            if later.fired.len() > before {
                // A log that is full makes timers wait.
                self.engine.sync_once().expect("this disk works");
            }
            if self.engine.timers().0 == 0 && self.engine.half_count() == 0 {
                return later;
            }
            let next = self.engine.next_deadline().map_or(0, |at| at.0);
            clock.advance(next.saturating_sub(mono).max(1));
        }
        self.faults.push("timed messages do not come to an end".to_owned());
        later
    }

    /// Messages whose transaction nobody ended.
    fn given_up(&mut self) -> BTreeSet<Id> {
        self.topic(GIVEN_UP, &Catalog::default()).unwrap_or_default()
    }
}

impl Later {
    fn asked(&mut self, id: Id, mono: u64, times: u32, record: Option<(u64, u64)>) {
        match self.halves.iter_mut().find(|(known, _)| *known == id) {
            Some((_, asked)) => asked.times += times,
            None => {
                let asked = Asked {
                    first: mono,
                    times,
                    record,
                };
                self.halves.push((id, asked));
            }
        }
    }
}

fn all_queues() -> impl Iterator<Item = Name> {
    QUEUES.into_iter().map(str::to_owned).chain(HOLDERS.map(holder_queue))
}
