//! The one routing table: which queues get a message. Evaluated once, at publish, and cached by address.
//!
//! It is monotone: creating an exchange, queue or topic never takes a delivery away. A queue gets one
//! copy whatever matched.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::address::{encode_name, key_words, levels_from_key, split_whole_key, whole_key};
use crate::attributes::Name;
use crate::boundary::{Publish, Reject};
use crate::engine::queues::Queues;
use crate::engine::targets::{Found, HeadersIndex, Ring, Targets};
use crate::engine::trie::{Map, Trie};
use crate::message::{Entry, Format};
use crate::policy::{HashOn, Way};
use crate::properties::{self, AttributeIter};
use crate::request::{Binding, Destination, Exchange, ExchangeKind, Matcher, Source};

/// A queue's number, stable for its life and in the log.
pub(crate) type QueueId = u32;

/// Where a message goes: found once, kept until the topology changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The queues, each once.
    pub queues: QueueIds,
    /// The queue that the topic is named for exists and may be seen as a topic.
    pub addressed: bool,
    /// An exchange has the topic's name.
    pub exchange: bool,
}

/// Queues of a route. Most routes lead to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueueIds {
    One(QueueId),
    Many(Arc<[QueueId]>),
}

impl Deref for QueueIds {
    type Target = [QueueId];

    fn deref(&self) -> &[QueueId] {
        match self {
            Self::One(queue) => std::slice::from_ref(queue),
            Self::Many(queues) => queues,
        }
    }
}

impl From<Vec<QueueId>> for QueueIds {
    fn from(queues: Vec<QueueId>) -> Self {
        match queues[..] {
            [queue] => Self::One(queue),
            _ => Self::Many(queues.into()),
        }
    }
}

struct ExchangeState {
    exchange: Exchange,
    table: Table,
    /// Bindings from it and to it.
    from: Vec<Arc<Binding>>,
    to: Vec<Arc<Binding>>,
}

/// How an exchange finds its targets.
enum Table {
    /// Direct: by key. Fanout: all under the empty key.
    Keys(Map<Bytes, Targets>),
    Patterns(Trie),
    Headers(HeadersIndex),
    Ring(Ring),
}

impl Table {
    fn of(kind: ExchangeKind) -> Self {
        match kind {
            ExchangeKind::Fanout | ExchangeKind::Direct => Self::Keys(Map::default()),
            ExchangeKind::Pattern => Self::Patterns(Trie::default()),
            ExchangeKind::Headers => Self::Headers(HeadersIndex::default()),
            ExchangeKind::Hash => Self::Ring(Ring::default()),
        }
    }

    fn change(&mut self, kind: ExchangeKind, matcher: &Matcher, target: u64, add: bool) {
        match (self, matcher) {
            (Self::Keys(by_key), matcher) => {
                let key = match (kind, matcher) {
                    (ExchangeKind::Direct, Matcher::Key(key)) => key.clone(),
                    (ExchangeKind::Direct, _) => return,
                    _ => Bytes::new(),
                };
                if add {
                    by_key.entry(key).or_default().add(target);
                } else if let Some(targets) = by_key.get_mut(&key) {
                    targets.remove(target);
                    if targets.is_empty() {
                        by_key.remove(&key);
                    }
                }
            }
            (Self::Patterns(trie), Matcher::Pattern(pattern)) if add => trie.insert(pattern, target),
            (Self::Patterns(trie), Matcher::Pattern(pattern)) => trie.remove(pattern, target),
            (Self::Headers(index), Matcher::Headers(headers)) if add => index.add(headers, target),
            (Self::Headers(index), Matcher::Headers(headers)) => index.remove(headers, target),
            (Self::Ring(ring), Matcher::Key(weight)) if add => ring.add(target, weight),
            (Self::Ring(ring), Matcher::Key(weight)) => ring.remove(target, weight),
            _ => {}
        }
    }
}

/// Marks a target that is an exchange's number instead of a queue's.
const TO_EXCHANGE: u64 = 1 << 32;

/// A target that is whatever the whole key leads to, as a queue's name or as an address.
const TO_NAMED_QUEUE: u64 = 1 << 34;
const TO_TOPICS: u64 = 1 << 35;

/// In the root trie: this binding does not see what enters through another exchange.
const TOPICS_ONLY: u64 = 1 << 33;

/// Routes in the cache before it is emptied: bounds its memory against ever new keys.
const CACHE_MAX: usize = 100_000;

/// Exchanges and bindings.
#[derive(Default)]
pub(crate) struct Router {
    exchanges: Vec<Option<ExchangeState>>,
    exchange_ids: Map<Bytes, u32>,
    /// Patterns over whole addresses.
    root: Trie,
    /// Every binding once, with its cookie and target.
    bindings: Map<Arc<Binding>, (Bytes, u64)>,
    by_queue: Map<QueueId, Vec<Arc<Binding>>>,
    /// Routes of everything that does not go straight to a queue.
    cache: Map<Box<[u8]>, Route>,
    cache_key: Vec<u8>,
    /// What all routing so far has looked at: bindings, exchanges, nodes of tries.
    steps: u64,
}

fn identity(binding: &Binding) -> Binding {
    Binding {
        cookie: Bytes::new(),
        ..binding.clone()
    }
}

impl Router {
    // --- exchanges --------------------------------------------------------------------------------

    pub(crate) fn exchange(&self, name: &[u8]) -> Option<&Exchange> {
        Some(&self.exchange_state(name)?.exchange)
    }

    pub(crate) fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.exchanges.iter().flatten().map(|state| &state.exchange)
    }

    /// Bindings that lead to exchanges, with their cookies.
    pub(crate) fn bindings_to_exchanges(&self) -> impl Iterator<Item = (&Binding, &Bytes)> {
        let to_exchange = |target: u64| target & TO_EXCHANGE != 0;
        self.bindings
            .iter()
            .filter(move |(_, (_, target))| to_exchange(*target))
            .map(|(binding, (cookie, _))| (&**binding, cookie))
    }

    pub(crate) fn exchange_count(&self) -> usize {
        self.exchange_ids.len()
    }

    pub(crate) fn binding_count(&self) -> usize {
        self.bindings.len()
    }

    fn exchange_state(&self, name: &[u8]) -> Option<&ExchangeState> {
        let id = self.exchange_ids.get(name)?;
        self.exchanges[*id as usize].as_ref()
    }

    /// Adds an exchange that does not exist.
    pub(crate) fn add_exchange(&mut self, exchange: Exchange) {
        let id = self.exchanges.len() as u32;
        self.exchange_ids.insert(exchange.name.clone(), id);
        self.exchanges.push(Some(ExchangeState {
            table: Table::of(exchange.kind),
            exchange,
            from: Vec::new(),
            to: Vec::new(),
        }));
        self.cache.clear();
    }

    /// Bindings from an exchange.
    pub(crate) fn bindings_from(&self, name: &[u8]) -> usize {
        self.exchange_state(name).map_or(0, |state| state.from.len())
    }

    /// Removes an exchange and all bindings from and to it; gives those.
    pub(crate) fn remove_exchange(&mut self, name: &Bytes) -> Vec<Arc<Binding>> {
        let Some(id) = self.exchange_ids.remove(name) else {
            return Vec::new();
        };
        let Some(mut state) = self.exchanges[id as usize].take() else {
            return Vec::new();
        };
        self.cache.clear();
        let mut gone = std::mem::take(&mut state.from);
        // One from the exchange to itself stands in both lists.
        gone.extend(
            state
                .to
                .drain(..)
                .filter(|binding| !matches!(&binding.source, Source::Exchange(source) if source == name)),
        );
        for binding in &gone {
            self.unbind(binding);
        }
        gone
    }

    // --- queues -----------------------------------------------------------------------------------

    /// A queue has come, or has another name than before.
    pub(crate) fn queue_added(&mut self) {
        self.cache.clear();
    }

    /// A queue has gone: removes its bindings and gives them.
    pub(crate) fn remove_queue(&mut self, queue: QueueId) -> Vec<Arc<Binding>> {
        let gone = self.by_queue.remove(&queue).unwrap_or_default();
        for binding in &gone {
            self.unbind(binding);
        }
        self.cache.clear();
        gone
    }

    /// A queue's bindings, with their cookies.
    pub(crate) fn bindings_of(&self, queue: QueueId) -> impl Iterator<Item = (&Binding, &Bytes)> {
        self.by_queue
            .get(&queue)
            .into_iter()
            .flatten()
            .map(|b| (&**b, &self.bindings[b].0))
    }

    // --- bindings ---------------------------------------------------------------------------------

    /// Adds a binding, or replaces its cookie. `queue` is the destination's number, if it is a queue. Both
    /// ends exist. Gives whether anything changed.
    pub(crate) fn bind(&mut self, binding: &Binding, queue: Option<QueueId>) -> bool {
        let key = identity(binding);
        if let Some((cookie, _)) = self.bindings.get_mut(&key) {
            let changed = *cookie != binding.cookie;
            *cookie = binding.cookie.clone();
            return changed;
        }
        let Some(target) = self.target(&binding.destination, queue) else {
            return false;
        };
        let key = Arc::new(key);
        self.bindings.insert(Arc::clone(&key), (binding.cookie.clone(), target));
        if let Some(queue) = queue {
            self.by_queue.entry(queue).or_default().push(Arc::clone(&key));
        }
        self.index(&key, target, true);
        self.cache.clear();
        true
    }

    /// Removes a binding. Gives whether there was one.
    pub(crate) fn unbind(&mut self, binding: &Binding) -> bool {
        let Some((key, (_, target))) = self.bindings.remove_entry(&identity(binding)) else {
            return false;
        };
        if target < TO_EXCHANGE
            && let Some(of_queue) = self.by_queue.get_mut(&(target as QueueId))
        {
            forget(of_queue, &key);
            if of_queue.is_empty() {
                self.by_queue.remove(&(target as QueueId));
            }
        }
        self.index(&key, target, false);
        self.cache.clear();
        true
    }

    fn target(&self, destination: &Destination, queue: Option<QueueId>) -> Option<u64> {
        match destination {
            Destination::Queue(_) => queue.map(u64::from),
            Destination::Exchange(name) => self.exchange_ids.get(name).map(|id| TO_EXCHANGE | u64::from(*id)),
            Destination::Topics => Some(TO_TOPICS),
        }
    }

    fn state_mut(&mut self, name: &Bytes) -> Option<&mut ExchangeState> {
        let id = self.exchange_ids.get(name)?;
        self.exchanges[*id as usize].as_mut()
    }

    fn index(&mut self, binding: &Arc<Binding>, target: u64, add: bool) {
        if let Destination::Exchange(name) = &binding.destination
            && let Some(state) = self.state_mut(name)
        {
            if add {
                state.to.push(Arc::clone(binding));
            } else {
                forget(&mut state.to, binding);
            }
        }
        match (&binding.source, &binding.matcher) {
            (Source::Exchange(name), matcher) => {
                let Some(state) = self.state_mut(name) else { return };
                if add {
                    state.from.push(Arc::clone(binding));
                } else {
                    forget(&mut state.from, binding);
                }
                state.table.change(state.exchange.kind, matcher, target, add);
            }
            (source, Matcher::Pattern(pattern)) => {
                let value = match source {
                    Source::Topics => target | TOPICS_ONLY,
                    _ => target,
                };
                if add {
                    self.root.insert(pattern, value)
                } else {
                    self.root.remove(pattern, value)
                }
            }
            _ => {}
        }
    }

    // --- routing ----------------------------------------------------------------------------------

    /// Where a message goes.
    pub(crate) fn route(&mut self, publish: &Publish, queues: &Queues) -> Result<Route, Reject> {
        self.route_from(publish, queues, false)
    }

    /// As [`route`](Self::route), for what the broker itself publishes: internal exchanges are open to it.
    pub(crate) fn route_inside(&mut self, publish: &Publish, queues: &Queues) -> Result<Route, Reject> {
        self.route_from(publish, queues, true)
    }

    fn route_from(&mut self, publish: &Publish, queues: &Queues, inside: bool) -> Result<Route, Reject> {
        let (topic, key) = (&publish.topic, &publish.key);
        if publish.entry == Entry::Queue {
            self.steps += 1;
            let found = queues.find(topic);
            if found.is_some_and(|(_, queue)| queue.of_holder) {
                return Err(Reject::AccessRefused);
            }
            return Ok(Route {
                queues: found.map_or_else(|| QueueIds::Many(Arc::default()), |(queue, _)| QueueIds::One(queue)),
                addressed: found.is_some_and(|(_, queue)| queue.spec.addressable),
                exchange: self.exchange_ids.contains_key(topic),
            });
        }
        self.cache_key.clear();
        self.cache_key.push(publish.entry as u8);
        self.cache_key.extend_from_slice(&(topic.len() as u32).to_le_bytes());
        self.cache_key.extend_from_slice(topic);
        self.cache_key.extend_from_slice(key);
        if let Some(route) = self.cache.get(&self.cache_key[..]) {
            return Ok(route.clone());
        }
        let mut internal = false;
        if publish.entry == Entry::Exchange {
            let state = self.exchange_state(topic).ok_or(Reject::NoExchange)?;
            internal = state.exchange.internal;
            if internal && !inside {
                return Err(Reject::InternalExchange);
            }
        }
        let mut walk = Walk {
            router: self,
            named: queues,
            publish,
            exchanges: BTreeSet::new(),
            queues: Vec::new(),
            cacheable: true,
            found: None,
            steps: 0,
        };
        walk.run();
        let (mut found, cacheable, steps) = (walk.queues, walk.cacheable, walk.steps);
        self.steps += steps;
        found.sort_unstable();
        found.dedup();
        let route = Route {
            queues: found.into(),
            addressed: queues.find(topic).is_some_and(|(_, queue)| queue.spec.addressable),
            exchange: self.exchange_ids.contains_key(topic),
        };
        if cacheable && !internal {
            if self.cache.len() >= CACHE_MAX {
                self.cache.clear();
            }
            self.cache.insert(self.cache_key[..].into(), route.clone());
        }
        Ok(route)
    }
}

fn forget(list: &mut Vec<Arc<Binding>>, binding: &Arc<Binding>) {
    if let Some(at) = list.iter().rposition(|known| Arc::ptr_eq(known, binding)) {
        list.remove(at);
    }
}

/// One evaluation of the table.
struct Walk<'a> {
    router: &'a Router,
    /// All queues.
    named: &'a Queues,
    publish: &'a Publish,
    /// Exchanges visited, with which key: makes cycles of bindings harmless. An exchange that is reached by both
    /// keys looks for both: one way to it takes nothing from the other. The root is among them as [`TO_TOPICS`].
    exchanges: BTreeSet<(u64, bool)>,
    queues: Vec<QueueId>,
    cacheable: bool,
    found: Option<Found<'a>>,
    steps: u64,
}

/// Where a walk goes on, and by which key: that of the topic, or the whole address's.
#[derive(Clone, Copy)]
struct Step {
    target: u64,
    whole: bool,
}

impl Walk<'_> {
    fn run(&mut self) {
        let (entry, topic) = (self.publish.entry, &self.publish.topic);
        if entry == Entry::Native
            && let Some((id, queue)) = self.named.find(topic)
            && queue.spec.addressable
        {
            self.queues.push(id);
        }
        self.steps += 1;
        let mut next = Vec::new();
        if let Some(id) = self.router.exchange_ids.get(topic) {
            next.push(Step {
                target: TO_EXCHANGE | u64::from(*id),
                whole: false,
            });
        }
        if entry != Entry::Exchange {
            self.exchanges.insert((TO_TOPICS, false));
        }
        let mut levels: Vec<&[u8]> = vec![topic];
        levels.extend(
            levels_from_key(&self.publish.key)
                .into_iter()
                .flat_map(|text| text.split(|b| *b == b'.')),
        );
        self.steps += self.router.root.find(&levels, &mut |value| {
            if value & TOPICS_ONLY == 0 || entry != Entry::Exchange {
                next.push(Step {
                    target: value & !TOPICS_ONLY,
                    whole: true,
                });
            }
        });
        while let Some(step) = next.pop() {
            match step.target {
                queue if queue < TO_EXCHANGE => self.queues.push(queue as QueueId),
                TO_NAMED_QUEUE => {
                    let name = encode_name(&self.key(step.whole));
                    self.queues.extend(self.named.find(&name).map(|(queue, _)| queue));
                    self.steps += 1;
                }
                target if !self.exchanges.insert((target, step.whole && target != TO_TOPICS)) => {}
                TO_TOPICS => self.visit_topics(step.whole, &mut next),
                target => self.visit_exchange(target as u32, step.whole, &mut next),
            }
        }
    }

    /// The key that bindings match: of a message that came through the root, the whole address.
    fn key(&self, whole: bool) -> Bytes {
        if whole && self.publish.entry == Entry::Topic {
            whole_key(&self.publish.topic, &self.publish.key)
        } else {
            self.publish.key.clone()
        }
    }

    /// Patterns over whole addresses, for a message that gets to them by an exchange.
    fn visit_topics(&mut self, whole: bool, next: &mut Vec<Step>) {
        let key = self.key(whole);
        let (topic, key) = split_whole_key(&key);
        let mut levels: Vec<&[u8]> = vec![&topic];
        levels.extend(
            levels_from_key(&key)
                .into_iter()
                .flat_map(|text| text.split(|b| *b == b'.')),
        );
        self.steps += self.router.root.find(&levels, &mut |value| {
            next.push(Step {
                target: value & !TOPICS_ONLY,
                whole,
            });
        });
    }

    fn visit_exchange(&mut self, id: u32, whole: bool, next: &mut Vec<Step>) {
        self.steps += 1;
        let Some(state) = &self.router.exchanges[id as usize] else {
            return;
        };
        let before = next.len();
        let key = self.key(whole);
        let mut push = |target| next.push(Step { target, whole });
        match &state.table {
            Table::Keys(by_key) => {
                let key = match state.exchange.kind {
                    ExchangeKind::Direct => &key[..],
                    _ => &[],
                };
                by_key.get(key).into_iter().flat_map(Targets::iter).for_each(push);
            }
            Table::Patterns(trie) => {
                let words: Vec<&[u8]> = key_words(&key).collect();
                self.steps += trie.find(&words, &mut push);
            }
            Table::Headers(index) => {
                self.cacheable = false;
                let found = self.found.get_or_insert_with(|| collect_user(self.publish));
                self.steps += index.find(found, push);
            }
            Table::Ring(ring) => {
                let (target, steps) = match &state.exchange.hash_on {
                    HashOn::Key => ring.find(&key),
                    hash_on => {
                        self.cacheable = false;
                        ring.find(&hashed(self.publish, hash_on))
                    }
                };
                self.steps += steps;
                target.into_iter().for_each(push);
            }
        }
        if next.len() > before {
            return;
        }
        let alternate = match &state.exchange.alternate {
            None => return,
            Some(Way::Queue) => Some(TO_NAMED_QUEUE),
            Some(Way::Topics) => Some(TO_TOPICS),
            Some(Way::Exchange(name)) => self
                .router
                .exchange_ids
                .get(name)
                .map(|id| TO_EXCHANGE | u64::from(*id)),
        };
        next.extend(alternate.map(|target| Step { target, whole }));
    }
}

fn properties_of(publish: &Publish) -> AttributeIter<'_> {
    match publish.format {
        Format::NATIVE => properties::attributes(&publish.origin),
        _ => AttributeIter::encoded(publish.attributes.iter()),
    }
}

fn collect_user(publish: &Publish) -> Found<'_> {
    let user = properties_of(publish).filter_map(|(name, value)| match name {
        Name::User(name) => Some((name, value)),
        Name::Known(_) => None,
    });
    user.collect()
}

/// What a hashing exchange hashes of a message; nothing when it has no such property.
fn hashed(publish: &Publish, hash_on: &HashOn) -> Vec<u8> {
    let wanted = match hash_on {
        HashOn::Key => return publish.key.to_vec(),
        HashOn::Property(name) => Name::User(name),
        HashOn::Attribute(attribute) => Name::Known(*attribute),
    };
    let mut text = Vec::new();
    if let Some((_, value)) = properties_of(publish).find(|(name, _)| *name == wanted) {
        properties::write_value(value, &mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pattern;
    use crate::attributes::{Attributes, AttributesBuilder, Value};
    use crate::request::Headers;

    const NAME: Bytes = Bytes::from_static(b"e");

    fn exchange(kind: ExchangeKind) -> Exchange {
        Exchange {
            name: NAME,
            kind,
            durable: false,
            auto_delete: false,
            internal: false,
            alternate: None,
            hash_on: HashOn::Key,
            dedup: None,
            arguments: Bytes::new(),
        }
    }

    fn headers(id: u32) -> Attributes {
        let mut builder = AttributesBuilder::default();
        builder.put(Name::User(b"type"), Value::Text(b"report"));
        builder.put(Name::User(b"id"), Value::Uint(id.into()));
        builder.finish()
    }

    fn matcher(kind: ExchangeKind, n: u32) -> Matcher {
        match kind {
            ExchangeKind::Pattern => Matcher::Pattern(Pattern::from_key_pattern(format!("a.{n}.*.#").as_bytes())),
            ExchangeKind::Headers => Matcher::Headers(Headers {
                all: true,
                wanted: Bytes::copy_from_slice(headers(n).as_bytes()),
            }),
            ExchangeKind::Hash => Matcher::Key(Bytes::from_static(b"1")),
            _ => Matcher::Key(format!("a.{n}.b").into()),
        }
    }

    /// What routing one message looks at, among so many bindings of which one matches.
    fn steps(kind: ExchangeKind, bindings: u32) -> u64 {
        let mut router = Router::default();
        router.add_exchange(exchange(kind));
        for n in 0..bindings {
            let binding = Binding {
                source: Source::Exchange(NAME),
                matcher: matcher(kind, n),
                destination: Destination::Queue(format!("q{n}").into()),
                arguments: Bytes::new(),
                cookie: Bytes::new(),
            };
            assert!(router.bind(&binding, Some(n)));
        }
        let publish = Publish {
            topic: NAME,
            key: Bytes::from_static(b"a.7.b"),
            attributes: headers(7),
            format: Format(9),
            ..Publish::default()
        };
        let before = router.steps;
        let route = router.route(&publish, &Queues::default()).expect("the exchange exists");
        assert_eq!(route.queues.len(), 1);
        assert!(kind == ExchangeKind::Hash || route.queues == QueueIds::One(7));
        router.steps - before
    }

    #[test]
    fn routing_among_100_000_bindings_costs_nothing_for_those_that_do_not_match() {
        for kind in [ExchangeKind::Direct, ExchangeKind::Pattern, ExchangeKind::Headers] {
            let (few, many) = (steps(kind, 100), steps(kind, 100_000));
            assert!(many <= few + 1, "{kind:?}: {many} steps instead of {few}");
        }
        // One search by halves.
        assert!(steps(ExchangeKind::Hash, 100_000) <= 17 + 3);
    }
}
