//! The model: a broker so simple that it is right. It knows no bytes, no log and no indexes.
//!
//! The same [`State`] stands for what lives (with consumers, leases and transient messages) and for what a
//! disk may hold: there it is built from [`Effect`]s alone, in the order in which they happened.

use std::collections::{BTreeMap, BTreeSet};

use rocketbridge_core::boundary::{Deliver, HolderKey};
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::ExchangeKind;

use crate::names::{holder_queue, window_of};

/// A message: its place in the [`Catalog`].
pub type Id = usize;

pub type Name = String;

/// What is known of every message that was ever published.
#[derive(Default)]
pub struct Catalog {
    pub messages: Vec<Published>,
}

pub struct Published {
    pub described: Described,
    /// Once it was put into queues.
    pub expires_at: Option<u64>,
    pub persistent: bool,
    /// When it entered its topic, among all that entered one.
    pub order: usize,
    /// Of the record of a timed or half message, and its number; once somebody was told.
    pub record: Option<(u64, u64)>,
    /// So many effects of this life must be safe before anybody may be told that it is.
    pub bound: usize,
    /// It entered a topic.
    pub in_topic: bool,
    /// It is in the log, and so is what becomes of it.
    pub logged: bool,
    /// Message queue and offset in its topic, once somebody was told.
    pub place: Option<(u32, u64)>,
    /// Deliveries that clients saw: incarnations of queues.
    pub seen_in: BTreeSet<u64>,
}

/// What the model has to know of a publish.
#[derive(Clone, Debug)]
pub struct Described {
    pub entry: Entry,
    pub topic: Name,
    pub key: Name,
    pub persistent: bool,
    pub mandatory: bool,
    pub native: bool,
    pub deliver: Deliver,
    pub half: bool,
    pub time_to_live: Option<u64>,
    /// The property by which copies are known.
    pub dedup: Option<Name>,
    pub holder_key: Option<HolderKey>,
}

impl Catalog {
    pub fn is_expired(&self, id: Id, wall: u64) -> bool {
        self.messages[id].expires_at.is_some_and(|at| at <= wall)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub kind: ExchangeKind,
    pub durable: bool,
    pub auto_delete: bool,
    pub internal: bool,
    /// Copies of messages are known.
    pub dedup: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub durable: bool,
    pub auto_delete: bool,
    pub addressable: bool,
    /// Most messages that are ready.
    pub limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    Ready,
    /// The model says that it was delivered; nobody has told to whom.
    Flying,
    /// Link and subscription.
    To(usize, u32),
}

/// What a delivery's redelivered flag has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    No,
    Yes,
    /// A crash came between: it may say so without need.
    Either,
}

#[derive(Clone, Debug)]
pub struct Item {
    pub id: Id,
    /// Once a delivery told it.
    pub sequence: Option<u64>,
    pub lease: Lease,
    pub flag: Flag,
}

#[derive(Clone, Debug)]
pub struct Queue {
    pub spec: Spec,
    /// Tells apart queues of one name.
    pub incarnation: u64,
    pub items: Vec<Item>,
    /// It ever had a consumer, durably.
    pub consumed: bool,
    /// The link whose exclusive queue or whose session it is.
    pub owner: Option<usize>,
    /// Deleted with its owner.
    pub exclusive: bool,
    pub of_holder: bool,
    pub consumers: Vec<(usize, u32)>,
    pub exclusive_consumer: bool,
}

impl Queue {
    pub fn ready(&self) -> u64 {
        self.items.iter().filter(|item| item.lease == Lease::Ready).count() as u64
    }

    pub fn first_ready(&self) -> Option<usize> {
        self.items.iter().position(|item| item.lease == Lease::Ready)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Exchange(Name),
    Topics,
    Everything,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Queue(Name),
    Exchange(Name),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    pub source: Source,
    /// A key or a pattern, as the source's kind has it.
    pub matcher: Name,
    pub target: Target,
}

#[derive(Clone, Debug, Default)]
pub struct Topic {
    pub queues: u32,
    pub messages: BTreeSet<Id>,
}

#[derive(Clone, Debug)]
pub struct Holder {
    pub durable: bool,
    pub keep: u64,
    pub link: Option<usize>,
    pub ends_at: Option<u64>,
}

/// Which clock a timed message is due on, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The monotonic one.
    After(u64),
    /// The wall.
    At(u64),
}

/// A transaction that was not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// When its producers are asked next, or it is given up; monotonic.
    pub next: u64,
    /// How often they were.
    pub checks: u32,
}

/// An open key: its value, the message that opened it, and when it closes, monotonic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenKey {
    pub value: Name,
    pub id: Id,
    pub closes_at: u64,
}

/// A change that a disk keeps.
#[derive(Clone, Debug)]
pub enum Effect {
    Exchange(Name, Exchange),
    ExchangeGone(Name),
    Queue {
        name: Name,
        spec: Spec,
        incarnation: u64,
        of_holder: bool,
    },
    QueueGone(u64),
    Bound(Binding),
    Unbound(Binding),
    Topic(Name, u32),
    Message {
        id: Id,
        queues: Vec<u64>,
        topic: Option<Name>,
    },
    Settled(Vec<(u64, Id)>),
    Consumed(u64),
    Group(Name, Name),
    Offset(Name, Name, u32, u64),
    Holder(Name, u64),
    HolderGone(Name),
    Timer(Id, Due),
    /// They fired, or were taken back.
    TimersGone(Vec<Id>),
    /// There is one, or its producers were asked.
    Half(Id, Half),
    HalfGone(Id),
    /// In a scope: an exchange's, a topic's or a session's.
    Key(Name, Name, Id),
    KeyClosed(Name, Name),
    /// All of it or nothing.
    Batch(Vec<Effect>),
}

#[derive(Clone, Debug, Default)]
pub struct State {
    pub exchanges: BTreeMap<Name, Exchange>,
    pub queues: BTreeMap<Name, Queue>,
    pub bindings: BTreeSet<Binding>,
    pub topics: BTreeMap<Name, Topic>,
    /// Topic and group.
    pub groups: BTreeSet<(Name, Name)>,
    /// By group, topic and message queue.
    pub offsets: BTreeMap<(Name, Name, u32), u64>,
    pub holders: BTreeMap<Name, Holder>,
    pub timers: BTreeMap<Id, Due>,
    pub halves: BTreeMap<Id, Half>,
    /// By scope, the oldest first.
    pub keys: BTreeMap<Name, Vec<OpenKey>>,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NoExchange,
    Internal,
}

impl State {
    pub fn queue_of(&mut self, incarnation: u64) -> Option<&mut Queue> {
        self.queues.values_mut().find(|queue| queue.incarnation == incarnation)
    }

    pub fn new_queue(spec: Spec, incarnation: u64, of_holder: bool) -> Queue {
        Queue {
            spec,
            incarnation,
            items: Vec::new(),
            consumed: false,
            owner: None,
            exclusive: false,
            of_holder,
            consumers: Vec::new(),
            exclusive_consumer: false,
        }
    }

    // --- routing ----------------------------------------------------------------------------------

    /// The queues that get a message.
    pub fn route(&self, entry: Entry, topic: &str, key: &str) -> Result<BTreeSet<Name>, Refused> {
        let exchange = self.exchanges.get(topic);
        if entry == Entry::Exchange && exchange.is_some_and(|exchange| exchange.internal) {
            return Err(Refused::Internal);
        }
        self.route_inside(entry, topic, key)
    }

    /// As [`route`](Self::route), for what the broker publishes again.
    pub fn route_inside(&self, entry: Entry, topic: &str, key: &str) -> Result<BTreeSet<Name>, Refused> {
        let mut found = BTreeSet::new();
        if entry == Entry::Exchange && !self.exchanges.contains_key(topic) {
            return Err(Refused::NoExchange);
        }
        if let Some(queue) = self.queues.get(topic)
            && (entry == Entry::Queue || (entry == Entry::Native && queue.spec.addressable))
        {
            found.insert(topic.to_owned());
        }
        if entry == Entry::Queue {
            return Ok(found);
        }
        let mut visited = BTreeSet::new();
        let mut exchanges = vec![];
        if self.exchanges.contains_key(topic) {
            exchanges.push((topic.to_owned(), false));
        }
        let address = if key.is_empty() {
            topic.to_owned()
        } else {
            format!("{topic}.{key}")
        };
        for binding in &self.bindings {
            let sees = match binding.source {
                Source::Topics => entry != Entry::Exchange,
                Source::Everything => true,
                Source::Exchange(_) => false,
            };
            if sees && matches(&words(&binding.matcher), &words(&address)) {
                reach(&binding.target, true, &mut found, &mut exchanges);
            }
        }
        // What comes by a pattern over addresses comes with the whole address, if it was published to a topic.
        let whole_key = if entry == Entry::Topic { address.as_str() } else { key };
        while let Some((name, whole)) = exchanges.pop() {
            let Some(exchange) = self.exchanges.get(&name) else {
                continue;
            };
            let key = if whole { whole_key } else { key };
            if !visited.insert((name.clone(), whole)) {
                continue;
            }
            for binding in &self.bindings {
                let takes = match exchange.kind {
                    ExchangeKind::Fanout => true,
                    ExchangeKind::Pattern => matches(&words(&binding.matcher), &words(key)),
                    _ => binding.matcher == key,
                };
                if binding.source == Source::Exchange(name.clone()) && takes {
                    reach(&binding.target, whole, &mut found, &mut exchanges);
                }
            }
        }
        Ok(found)
    }

    pub fn is_durable(&self, binding: &Binding) -> bool {
        let exchange = |name| {
            self.exchanges
                .get(name)
                .is_some_and(|exchange: &Exchange| exchange.durable)
        };
        let source = match &binding.source {
            Source::Exchange(name) => exchange(name),
            _ => true,
        };
        source
            && match &binding.target {
                Target::Queue(name) => self.queues.get(name).is_some_and(|queue| queue.spec.durable),
                Target::Exchange(name) => exchange(name),
            }
    }

    /// Removes bindings; gives those.
    pub fn unbind_all(&mut self, mut which: impl FnMut(&Binding) -> bool) -> Vec<Binding> {
        let gone: Vec<Binding> = self.bindings.iter().filter(|binding| which(binding)).cloned().collect();
        self.bindings.retain(|binding| !gone.contains(binding));
        gone
    }

    /// The message that opened a key.
    pub fn opened(&self, scope: &str, value: &str, mono: u64) -> Option<Id> {
        let mut open = self.keys.get(scope)?.iter();
        let found = open.find(|key| key.value == value && key.closes_at > mono);
        found.map(|key| key.id)
    }

    pub fn open_key(&mut self, scope: &str, key: OpenKey) {
        let keys = self.keys.entry(scope.to_owned()).or_default();
        keys.retain(|known| known.value != key.value);
        keys.push(key);
        if window_of(scope).is_some_and(|most| keys.len() > most) {
            keys.remove(0);
        }
    }

    pub fn close_key(&mut self, scope: &str, value: &str) -> Option<Id> {
        let keys = self.keys.get_mut(scope)?;
        let at = keys.iter().position(|key| key.value == value)?;
        Some(keys.remove(at).id)
    }

    pub fn remove_exchange(&mut self, name: &str) -> Vec<Binding> {
        self.exchanges.remove(name);
        self.keys.remove(name);
        self.unbind_all(|binding| {
            binding.source == Source::Exchange(name.to_owned()) || binding.target == Target::Exchange(name.to_owned())
        })
    }

    pub fn remove_queue(&mut self, name: &str) -> Vec<Binding> {
        self.queues.remove(name);
        self.unbind_all(|binding| binding.target == Target::Queue(name.to_owned()))
    }

    // --- the disk's side --------------------------------------------------------------------------

    /// The state after one more effect.
    pub fn apply(&mut self, effect: &Effect) {
        match effect.clone() {
            Effect::Exchange(name, exchange) => {
                self.exchanges.insert(name, exchange);
            }
            Effect::ExchangeGone(name) => {
                self.remove_exchange(&name);
            }
            Effect::Queue {
                name,
                spec,
                incarnation,
                of_holder,
            } => {
                self.queues.insert(name, Self::new_queue(spec, incarnation, of_holder));
            }
            Effect::QueueGone(incarnation) => {
                let found = self.queues.iter().find(|(_, queue)| queue.incarnation == incarnation);
                if let Some(name) = found.map(|(name, _)| name.clone()) {
                    self.remove_queue(&name);
                }
            }
            Effect::Bound(binding) => {
                self.bindings.insert(binding);
            }
            Effect::Unbound(binding) => {
                self.bindings.remove(&binding);
            }
            Effect::Topic(name, queues) => {
                self.topics.entry(name).or_default().queues = queues;
            }
            Effect::Message { id, queues, topic } => {
                for incarnation in queues {
                    if let Some(queue) = self.queue_of(incarnation) {
                        queue.items.push(Item {
                            id,
                            sequence: None,
                            lease: Lease::Ready,
                            flag: Flag::No,
                        });
                    }
                }
                if let Some(topic) = topic.and_then(|name| self.topics.get_mut(&name)) {
                    topic.messages.insert(id);
                }
            }
            Effect::Settled(items) => {
                for (incarnation, id) in items {
                    if let Some(queue) = self.queue_of(incarnation) {
                        queue.items.retain(|item| item.id != id);
                    }
                }
            }
            Effect::Consumed(incarnation) => {
                if let Some(queue) = self.queue_of(incarnation) {
                    queue.consumed = true;
                }
            }
            Effect::Group(topic, group) => {
                self.groups.insert((topic, group));
            }
            Effect::Offset(group, topic, queue, offset) => {
                self.offsets.insert((group, topic, queue), offset);
            }
            Effect::Holder(name, keep) => {
                let holder = Holder {
                    durable: true,
                    keep,
                    link: None,
                    ends_at: None,
                };
                self.holders.insert(name, holder);
            }
            Effect::HolderGone(name) => {
                self.holders.remove(&name);
                self.keys.remove(&holder_queue(&name));
            }
            Effect::Timer(id, due) => {
                self.timers.insert(id, due);
            }
            Effect::TimersGone(ids) => self.timers.retain(|id, _| !ids.contains(id)),
            Effect::Half(id, half) => {
                self.halves.insert(id, half);
            }
            Effect::HalfGone(id) => {
                self.halves.remove(&id);
            }
            Effect::Key(scope, value, id) => {
                let closes_at = u64::MAX;
                self.open_key(&scope, OpenKey { value, id, closes_at });
            }
            Effect::KeyClosed(scope, value) => {
                self.close_key(&scope, &value);
            }
            Effect::Batch(effects) => effects.iter().for_each(|effect| self.apply(effect)),
        }
    }
}

fn reach(target: &Target, whole: bool, queues: &mut BTreeSet<Name>, exchanges: &mut Vec<(Name, bool)>) {
    match target {
        Target::Queue(name) => {
            queues.insert(name.clone());
        }
        Target::Exchange(name) => exchanges.push((name.clone(), whole)),
    }
}

pub fn words(text: &str) -> Vec<&str> {
    if text.is_empty() {
        return Vec::new();
    }
    text.split('.').collect()
}

/// `*` is one word, `#` any number.
fn matches(pattern: &[&str], words: &[&str]) -> bool {
    match pattern.first() {
        None => words.is_empty(),
        Some(&"#") => (0..=words.len()).any(|skip| matches(&pattern[1..], &words[skip..])),
        Some(word) => {
            let fits = words.first().is_some_and(|found| *word == "*" || word == found);
            fits && matches(&pattern[1..], &words[1..])
        }
    }
}
