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
use rocketbridge_core::time::Millis;

use crate::model::{self, Catalog, Id, Name, State};
use crate::names::*;

/// Bodies of the probe's own messages have numbers from here on.
const PROBES: Id = 1 << 40;

/// Where a message of an address goes, and how many groups there are for it.
pub type Routes = BTreeMap<(u8, Name, Name), (BTreeSet<Name>, usize)>;

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
        for topic in all_topics() {
            if let Some(messages) = self.topic(topic, catalog) {
                observed.topics.insert(topic.to_owned(), messages);
            }
            for group in GROUPS {
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
                    if before.is_some_and(|before| before >= id) {
                        self.faults.push(format!("{name}/{queue} has {id} behind {before:?}"));
                    }
                    before = Some(id);
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

    /// How many messages a queue counts, unless it is another's.
    pub fn count(&mut self, name: &str) -> Option<u64> {
        match self.ask(Request::FindQueue { name: bytes(name) }) {
            Ok(Reply::Queue(queue)) => Some(queue.ready),
            _ => None,
        }
    }

    /// Makes the broker have those bindings that the state has, and not the others.
    pub fn make_sure(&mut self, state: &State, others: &BTreeSet<model::Binding>) {
        for wanted in &state.bindings {
            let _ = self.ask(Request::Bind(binding(state, wanted)));
        }
        for other in others {
            let _ = self.ask(Request::Unbind(binding(state, other)));
        }
    }

    /// The sessions that are there. Those that are not are made thereby.
    pub fn holders(&mut self) -> BTreeSet<Name> {
        let mut present = BTreeSet::new();
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
        }
        present
    }
}

fn all_queues() -> impl Iterator<Item = Name> {
    QUEUES.into_iter().map(str::to_owned).chain(HOLDERS.map(holder_queue))
}
