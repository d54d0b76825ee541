//! The one routing table: which queues get a message. Evaluated once, at publish, and cached by address.
//!
//! It is monotone: creating an exchange, queue or topic never takes a delivery away. A queue gets one
//! copy whatever matched.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::address::{key_words, levels_from_key};
use crate::attributes::{Iter, Name, Value};
use crate::boundary::{Publish, Reject};
use crate::engine::trie::{Map, Trie};
use crate::message::{Entry, Format};
use crate::properties::{self, AttributeIter};
use crate::request::{Binding, Destination, Exchange, ExchangeKind, Headers, Matcher, Source};

/// A queue's number, stable for its life and in the log.
pub(crate) type QueueId = u32;

/// Where a message goes: found once, kept until the topology changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// The queues, each once.
    pub queues: Vec<QueueId>,
    /// The queue that the topic is named for exists and may be seen as a topic.
    pub addressed: bool,
    /// An exchange has the topic's name.
    pub exchange: bool,
}

struct ExchangeState {
    exchange: Exchange,
    /// Direct: by key. Fanout: all under the empty key. Values are targets with their count.
    by_key: Map<Bytes, Vec<(u64, u32)>>,
    patterns: Trie,
    headers: Vec<(Headers, u64)>,
    bindings: usize,
}

/// Marks a target that is an exchange's number instead of a queue's.
const TO_EXCHANGE: u64 = 1 << 32;

/// In the root trie: this binding does not see what enters through another exchange.
const TOPICS_ONLY: u64 = 1 << 33;

/// Routes in the cache before it is emptied: bounds its memory against ever new keys.
const CACHE_MAX: usize = 100_000;

/// Exchanges, bindings and queue names.
#[derive(Default)]
pub(crate) struct Router {
    exchanges: Vec<Option<ExchangeState>>,
    exchange_ids: Map<Bytes, u32>,
    /// Patterns over whole addresses.
    root: Trie,
    /// Queues by encoded name, and whether the topic of that name reaches them and is made for them. What
    /// goes straight to a queue reaches it either way.
    queues: Map<Bytes, (QueueId, bool)>,
    /// Every binding once, with its cookie and target.
    bindings: Map<Binding, (Bytes, u64)>,
    by_queue: Map<QueueId, Vec<Binding>>,
    cache: Map<Box<[u8]>, Arc<Route>>,
    cache_key: Vec<u8>,
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
            exchange,
            by_key: Map::default(),
            patterns: Trie::default(),
            headers: Vec::new(),
            bindings: 0,
        }));
        self.cache.clear();
    }

    /// Bindings from an exchange.
    pub(crate) fn bindings_from(&self, name: &[u8]) -> usize {
        self.exchange_state(name).map_or(0, |state| state.bindings)
    }

    /// Removes an exchange and all bindings from and to it; gives those, with their cookies.
    pub(crate) fn remove_exchange(&mut self, name: &Bytes) -> Vec<Binding> {
        let gone: Vec<Binding> = self
            .bindings
            .keys()
            .filter(|b| {
                b.source == Source::Exchange(name.clone()) || b.destination == Destination::Exchange(name.clone())
            })
            .cloned()
            .collect();
        for binding in &gone {
            self.unbind(binding);
        }
        if let Some(id) = self.exchange_ids.remove(name) {
            self.exchanges[id as usize] = None;
        }
        self.cache.clear();
        gone
    }

    // --- queues -----------------------------------------------------------------------------------

    /// Adds a queue under its encoded name.
    pub(crate) fn add_queue(&mut self, name: Bytes, queue: QueueId, addressable: bool) {
        self.queues.insert(name, (queue, addressable));
        self.cache.clear();
    }

    /// Removes a queue and its bindings; gives those.
    pub(crate) fn remove_queue(&mut self, encoded_name: &[u8], queue: QueueId) -> Vec<Binding> {
        if self.queues.get(encoded_name).is_some_and(|(known, _)| *known == queue) {
            self.queues.remove(encoded_name);
        }
        let gone = self.by_queue.get(&queue).cloned().unwrap_or_default();
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
            .map(|b| (b, &self.bindings[b].0))
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
        self.bindings.insert(key.clone(), (binding.cookie.clone(), target));
        if let Some(queue) = queue {
            self.by_queue.entry(queue).or_default().push(key);
        }
        self.index(binding, target, true);
        self.cache.clear();
        true
    }

    /// Removes a binding. Gives whether there was one.
    pub(crate) fn unbind(&mut self, binding: &Binding) -> bool {
        let key = identity(binding);
        let Some((_, target)) = self.bindings.remove(&key) else {
            return false;
        };
        if target & TO_EXCHANGE == 0
            && let Some(of_queue) = self.by_queue.get_mut(&(target as QueueId))
        {
            of_queue.retain(|b| *b != key);
            if of_queue.is_empty() {
                self.by_queue.remove(&(target as QueueId));
            }
        }
        self.index(binding, target, false);
        self.cache.clear();
        true
    }

    fn target(&self, destination: &Destination, queue: Option<QueueId>) -> Option<u64> {
        match destination {
            Destination::Queue(_) => queue.map(u64::from),
            Destination::Exchange(name) => self.exchange_ids.get(name).map(|id| TO_EXCHANGE | u64::from(*id)),
        }
    }

    fn index(&mut self, binding: &Binding, target: u64, add: bool) {
        let name = match (&binding.source, &binding.matcher) {
            (Source::Exchange(name), _) => name,
            (source, Matcher::Pattern(pattern)) => {
                let value = if *source == Source::Topics {
                    target | TOPICS_ONLY
                } else {
                    target
                };
                if add {
                    self.root.insert(pattern, value)
                } else {
                    self.root.remove(pattern, value)
                }
                return;
            }
            _ => return,
        };
        let Some(id) = self.exchange_ids.get(name) else { return };
        let Some(state) = &mut self.exchanges[*id as usize] else {
            return;
        };
        if add {
            state.bindings += 1;
        } else {
            state.bindings -= 1;
        }
        match (state.exchange.kind, &binding.matcher) {
            (ExchangeKind::Fanout, _) => count_target(&mut state.by_key, Bytes::new(), target, add),
            (ExchangeKind::Direct, Matcher::Key(key)) => count_target(&mut state.by_key, key.clone(), target, add),
            (ExchangeKind::Pattern, Matcher::Pattern(pattern)) => {
                if add {
                    state.patterns.insert(pattern, target)
                } else {
                    state.patterns.remove(pattern, target)
                }
            }
            (ExchangeKind::Headers, Matcher::Headers(headers)) => {
                if add {
                    state.headers.push((headers.clone(), target));
                } else if let Some(at) = state.headers.iter().position(|(h, t)| h == headers && *t == target) {
                    state.headers.swap_remove(at);
                }
            }
            _ => {}
        }
    }

    // --- routing ----------------------------------------------------------------------------------

    /// Where a message goes.
    pub(crate) fn route(&mut self, publish: &Publish) -> Result<Arc<Route>, Reject> {
        let (topic, key) = (&publish.topic, &publish.key);
        self.cache_key.clear();
        self.cache_key.push(publish.entry as u8);
        self.cache_key.extend_from_slice(&(topic.len() as u32).to_le_bytes());
        self.cache_key.extend_from_slice(topic);
        self.cache_key.extend_from_slice(key);
        if let Some(route) = self.cache.get(&self.cache_key[..]) {
            return Ok(Arc::clone(route));
        }
        if publish.entry == Entry::Exchange {
            let state = self.exchange_state(topic).ok_or(Reject::NoExchange)?;
            if state.exchange.internal {
                return Err(Reject::InternalExchange);
            }
        }
        let mut walk = Walk {
            router: self,
            publish,
            exchanges: Vec::new(),
            queues: Vec::new(),
            cacheable: true,
        };
        walk.run();
        let (mut queues, cacheable) = (walk.queues, walk.cacheable);
        queues.sort_unstable();
        queues.dedup();
        let route = Arc::new(Route {
            queues,
            addressed: self.queues.get(topic).is_some_and(|(_, addressable)| *addressable),
            exchange: self.exchange_ids.contains_key(topic),
        });
        if cacheable {
            if self.cache.len() >= CACHE_MAX {
                self.cache.clear();
            }
            self.cache.insert(self.cache_key[..].into(), Arc::clone(&route));
        }
        Ok(route)
    }
}

fn count_target(by_key: &mut Map<Bytes, Vec<(u64, u32)>>, key: Bytes, target: u64, add: bool) {
    let targets = by_key.entry(key.clone()).or_default();
    match targets.iter().position(|(t, _)| *t == target) {
        Some(at) if add => targets[at].1 += 1,
        None if add => targets.push((target, 1)),
        Some(at) => {
            targets[at].1 -= 1;
            if targets[at].1 == 0 {
                targets.swap_remove(at);
            }
        }
        None => {}
    }
    if targets.is_empty() {
        by_key.remove(&key);
    }
}

/// One evaluation of the table.
struct Walk<'a> {
    router: &'a Router,
    publish: &'a Publish,
    /// Exchanges visited: makes cycles of bindings harmless.
    exchanges: Vec<u32>,
    queues: Vec<QueueId>,
    cacheable: bool,
}

impl Walk<'_> {
    fn run(&mut self) {
        let (entry, topic) = (self.publish.entry, &self.publish.topic);
        if let Some((queue, addressable)) = self.router.queues.get(topic)
            && (entry == Entry::Queue || (entry == Entry::Native && *addressable))
        {
            self.queues.push(*queue);
        }
        if entry == Entry::Queue {
            return;
        }
        let mut next: Vec<u64> = Vec::new();
        if let Some(id) = self.router.exchange_ids.get(topic) {
            next.push(TO_EXCHANGE | u64::from(*id));
        }
        let mut levels: Vec<&[u8]> = vec![topic];
        levels.extend(
            levels_from_key(&self.publish.key)
                .into_iter()
                .flat_map(|text| text.split(|b| *b == b'.')),
        );
        self.router.root.find(&levels, &mut |value| {
            if value & TOPICS_ONLY == 0 || entry != Entry::Exchange {
                next.push(value & !TOPICS_ONLY);
            }
        });
        while let Some(target) = next.pop() {
            if target & TO_EXCHANGE == 0 {
                self.queues.push(target as u32);
            } else {
                self.visit_exchange(target as u32, &mut next);
            }
        }
    }

    fn visit_exchange(&mut self, id: u32, next: &mut Vec<u64>) {
        if self.exchanges.contains(&id) {
            return;
        }
        self.exchanges.push(id);
        let Some(state) = &self.router.exchanges[id as usize] else {
            return;
        };
        let key = &self.publish.key;
        match state.exchange.kind {
            ExchangeKind::Fanout => next.extend(state.by_key.get(&b""[..]).into_iter().flatten().map(|(t, _)| t)),
            ExchangeKind::Direct => next.extend(state.by_key.get(&key[..]).into_iter().flatten().map(|(t, _)| t)),
            ExchangeKind::Pattern => {
                let words: Vec<&[u8]> = key_words(key).collect();
                state.patterns.find(&words, &mut |target| next.push(target));
            }
            ExchangeKind::Hash => {}
            ExchangeKind::Headers => {
                self.cacheable = false;
                let found = collect_user(self.publish);
                next.extend(
                    state
                        .headers
                        .iter()
                        .filter(|(h, _)| headers_match(h, &found))
                        .map(|(_, t)| t),
                );
            }
        }
    }
}

fn collect_user(publish: &Publish) -> BTreeMap<&[u8], Value<'_>> {
    let all = match publish.format {
        Format::NATIVE => properties::attributes(&publish.origin),
        _ => AttributeIter::encoded(publish.attributes.iter()),
    };
    all.filter_map(|(name, value)| match name {
        Name::User(name) => Some((name, value)),
        Name::Known(_) => None,
    })
    .collect()
}

fn headers_match(headers: &Headers, found: &BTreeMap<&[u8], Value<'_>>) -> bool {
    let mut wanted = Iter::new(&headers.wanted).filter_map(|(name, value)| match name {
        Name::User(name) => Some((name, value)),
        Name::Known(_) => None,
    });
    let fits = |(name, value): (&[u8], Value<'_>)| match (found.get(name), value) {
        (None, _) => false,
        (Some(_), Value::Null) => true,
        (Some(have), want) => same_value(*have, want),
    };
    if headers.all {
        wanted.all(fits)
    } else {
        wanted.any(fits)
    }
}

/// Integers are equal whatever their width; an integer never equals a float.
fn same_value(have: Value<'_>, want: Value<'_>) -> bool {
    match (have, want) {
        (Value::Int(a), Value::Uint(b)) | (Value::Uint(b), Value::Int(a)) => u64::try_from(a) == Ok(b),
        (Value::Text(a) | Value::Binary(a), Value::Text(b) | Value::Binary(b)) => a == b,
        (a, b) => a == b,
    }
}
