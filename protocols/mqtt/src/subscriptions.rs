//! A session's own subscriptions: which of them a delivery is for.
//!
//! Core gives a session one copy of a message whatever matched. What the client is to be told of it (the
//! granted QoS, the subscription identifiers) is found here, once for each topic.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::SubscriptionOptions;
use crate::codec::properties::{PropertyId, put_number};
use crate::codec::text::{LEVEL, has_wildcard, is_sys};

/// Topics remembered with what they match.
const CACHED_MAX: usize = 256;
/// Bytes of topics and identifiers remembered.
const CACHED_BYTES_MAX: usize = 128 * 1024;

/// One subscription without its filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its options, with the granted QoS.
    pub options: SubscriptionOptions,
    /// The subscription identifier, 0 for none.
    pub identifier: u32,
}

impl Subscription {
    /// What a binding remembers: options, identifier, filter.
    pub fn cookie(self, filter: &[u8]) -> Bytes {
        let mut cookie = BytesMut::with_capacity(5 + filter.len());
        cookie.put_u8(self.options.0);
        cookie.put_u32(self.identifier);
        cookie.put_slice(filter);
        cookie.freeze()
    }

    /// The reverse of [`cookie`](Self::cookie).
    pub fn from_cookie(cookie: &[u8]) -> Option<(Self, &[u8])> {
        let (head, filter) = cookie.split_first_chunk::<5>()?;
        let subscription = Self {
            options: SubscriptionOptions(head[0]),
            identifier: u32::from_be_bytes([head[1], head[2], head[3], head[4]]),
        };
        Some((subscription, filter))
    }
}

/// What a topic's deliveries are like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// The highest granted QoS; `None` when no subscription matches.
    pub qos: Option<u8>,
    /// Some of them are not for what this client itself published.
    pub no_local: bool,
    /// Some of them want the publisher's retain flag.
    pub retain_as_published: bool,
    /// The subscription identifiers, as encoded properties.
    pub identifiers: Bytes,
}

impl Matched {
    /// What a single subscription makes of its deliveries.
    pub fn of(subscription: Subscription) -> Self {
        let mut matched = Self::default();
        let mut identifiers = BytesMut::new();
        matched.add(subscription, &mut identifiers);
        matched.identifiers = identifiers.freeze();
        matched
    }

    fn add(&mut self, subscription: Subscription, identifiers: &mut BytesMut) {
        self.qos = self.qos.max(Some(subscription.options.qos()));
        self.retain_as_published |= subscription.options.retain_as_published();
        if subscription.identifier != 0 {
            put_number(identifiers, PropertyId::SubscriptionIdentifier, subscription.identifier);
        }
    }
}

/// All subscriptions of a session.
#[derive(Debug, Default)]
pub struct Subscriptions {
    /// Filters without wildcards.
    exact: BTreeMap<Box<[u8]>, Subscription>,
    /// Filters with wildcards.
    wild: BTreeMap<Box<[u8]>, Subscription>,
    /// All filters together.
    bytes: u32,
    /// How many filters are below `$SYS`.
    of_sys: u32,
    /// Made with the first delivery.
    cache: Option<Box<Cache>>,
}

impl Subscriptions {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wild.len()
    }

    /// How many bytes all filters have together.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Whether there are filters below `$SYS`.
    pub fn has_sys(&self) -> bool {
        self.of_sys > 0
    }

    /// A copy of them as they are now.
    pub fn snapshot(&self) -> Self {
        Self {
            exact: self.exact.clone(),
            wild: self.wild.clone(),
            bytes: self.bytes,
            of_sys: self.of_sys,
            cache: None,
        }
    }

    /// Adds a subscription, or replaces the one of that filter, which is given back.
    pub fn insert(&mut self, filter: &[u8], subscription: Subscription) -> Option<Subscription> {
        self.cache = None;
        let previous = self.map(filter).insert(filter.into(), subscription);
        if previous.is_none() {
            self.bytes += filter.len() as u32;
            self.of_sys += u32::from(is_sys(filter));
        }
        previous
    }

    /// Removes the subscription of that filter.
    pub fn remove(&mut self, filter: &[u8]) -> Option<Subscription> {
        self.cache = None;
        let removed = self.map(filter).remove(filter);
        if removed.is_some() {
            self.bytes -= filter.len() as u32;
            self.of_sys -= u32::from(is_sys(filter));
        }
        removed
    }

    /// Whether there is one of that filter.
    pub fn contains(&mut self, filter: &[u8]) -> bool {
        self.get(filter).is_some()
    }

    /// The one of that filter.
    pub fn get(&mut self, filter: &[u8]) -> Option<Subscription> {
        self.map(filter).get(filter).copied()
    }

    fn map(&mut self, filter: &[u8]) -> &mut BTreeMap<Box<[u8]>, Subscription> {
        if has_wildcard(filter) {
            &mut self.wild
        } else {
            &mut self.exact
        }
    }

    /// What matches a topic.
    pub fn matched(&mut self, topic: &[u8]) -> &Matched {
        let at = match self.cache.as_mut().and_then(|cache| cache.find(topic)) {
            Some(at) => at,
            None => {
                let matched = self.find(topic, false);
                self.cache.get_or_insert_default().insert(topic, matched)
            }
        };
        &self.cache.get_or_insert_default().entries[at].1
    }

    /// The same for what a client of that identifier published; `id` is this client's.
    pub fn matched_from(&mut self, topic: &[u8], publisher: &[u8], id: &[u8]) -> Matched {
        let matched = self.matched(topic);
        if matched.no_local && *publisher == *id {
            self.matched_own(topic)
        } else {
            matched.clone()
        }
    }

    /// The same for what this client itself published.
    pub fn matched_own(&self, topic: &[u8]) -> Matched {
        self.find(topic, true)
    }

    fn find(&self, topic: &[u8], is_own: bool) -> Matched {
        let mut matched = Matched::default();
        let mut identifiers = BytesMut::new();
        let mut found = |subscription: &Subscription| {
            matched.no_local |= subscription.options.no_local();
            if !is_own || !subscription.options.no_local() {
                matched.add(*subscription, &mut identifiers);
            }
        };
        if let Some(subscription) = self.exact.get(topic) {
            found(subscription);
        }
        if !self.wild.is_empty() {
            Walk::new(&self.wild, topic, &mut found).run();
        }
        matched.identifiers = identifiers.freeze();
        matched
    }
}

/// The way through sorted filters to those that match a topic: level by level, only where filters begin so. What
/// does not match costs nothing, however many filters that is.
struct Walk<'a, F> {
    filters: &'a BTreeMap<Box<[u8]>, Subscription>,
    levels: Vec<&'a [u8]>,
    /// What the filters looked at now begin with: levels, each with a separator behind it.
    prefix: Vec<u8>,
    found: F,
    /// How often the filters were looked into.
    steps: u64,
}

impl<'a, F: FnMut(&Subscription)> Walk<'a, F> {
    fn new(filters: &'a BTreeMap<Box<[u8]>, Subscription>, topic: &'a [u8], found: F) -> Self {
        Self {
            filters,
            levels: topic.split(|b| *b == LEVEL).collect(),
            prefix: Vec::with_capacity(topic.len() + 2),
            found,
            steps: 0,
        }
    }

    /// Wildcards in front spare names that begin with `$`. [MQTT-4.7.2-1]
    fn run(&mut self) {
        let spare = self.levels[0].starts_with(b"$");
        if !spare {
            self.visit(0);
        } else {
            self.take(0, self.levels[0]);
        }
    }

    /// What follows the first `depth` levels.
    fn visit(&mut self, depth: usize) {
        self.report(b"#");
        if let Some(level) = self.levels.get(depth).copied() {
            self.take(depth, b"+");
            self.take(depth, level);
        }
    }

    /// Goes on behind one level more, if there are filters.
    fn take(&mut self, depth: usize, level: &[u8]) {
        if depth + 1 == self.levels.len() {
            self.report(level);
        }
        let length = self.prefix.len();
        self.prefix.extend_from_slice(level);
        self.prefix.push(LEVEL);
        self.steps += 1;
        let from = (Bound::Included(&self.prefix[..]), Bound::Unbounded);
        let next = self.filters.range::<[u8], _>(from).next();
        if next.is_some_and(|(filter, _)| filter.starts_with(&self.prefix)) {
            self.visit(depth + 1);
        }
        self.prefix.truncate(length);
    }

    /// The filter that ends with this level.
    fn report(&mut self, last: &[u8]) {
        let length = self.prefix.len();
        self.prefix.extend_from_slice(last);
        self.steps += 1;
        if let Some(subscription) = self.filters.get(&self.prefix[..]) {
            (self.found)(subscription);
        }
        self.prefix.truncate(length);
    }
}

/// What recent topics match. The last one is tried first: a fan-out is of one topic.
#[derive(Debug, Default)]
struct Cache {
    entries: Vec<(Arc<[u8]>, Matched)>,
    index: foldhash::HashMap<Arc<[u8]>, usize>,
    bytes: usize,
    last: usize,
}

impl Cache {
    fn find(&mut self, topic: &[u8]) -> Option<usize> {
        if self.entries.get(self.last).is_some_and(|(last, _)| **last == *topic) {
            return Some(self.last);
        }
        self.last = *self.index.get(topic)?;
        Some(self.last)
    }

    fn insert(&mut self, topic: &[u8], matched: Matched) -> usize {
        let bytes = topic.len() + matched.identifiers.len();
        if self.entries.len() == CACHED_MAX || self.bytes + bytes > CACHED_BYTES_MAX {
            *self = Self::default();
        }
        let topic: Arc<[u8]> = topic.into();
        self.last = self.entries.len();
        self.bytes += bytes;
        self.entries.push((topic.clone(), matched));
        self.index.insert(topic, self.last);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::text::filter_matches;

    fn subscription(options: u8, identifier: u32) -> Subscription {
        Subscription {
            options: SubscriptionOptions(options),
            identifier,
        }
    }

    #[test]
    fn the_highest_qos_and_all_identifiers_count() {
        let mut all = Subscriptions::default();
        all.insert(b"a/b", subscription(0, 7));
        all.insert(b"a/+", subscription(1, 0));
        all.insert(b"#", subscription(4, 300));
        all.insert(b"c", subscription(1, 9));
        for _ in 0..2 {
            let matched = all.matched(b"a/b").clone();
            assert_eq!((matched.qos, matched.no_local), (Some(1), true));
            assert_eq!(*matched.identifiers, [0x0B, 7, 0x0B, 0xAC, 2]);
        }
        let own = all.matched_own(b"a/b");
        assert_eq!((own.qos, &*own.identifiers), (Some(1), &[0x0B, 7][..]));
        assert_eq!(all.matched_own(b"z").qos, None);
        assert_eq!((all.len(), all.bytes()), (4, 8));
        all.insert(b"a/+", subscription(2, 0));
        all.remove(b"a/+");
        all.remove(b"a/+");
        assert_eq!(all.bytes(), 5);
        assert_eq!(all.matched(b"a/b").qos, Some(0));
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn exactly_the_filters_that_match_are_found() {
        let mut seed = 7u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        let levels = ["a", "b", "", "$a", "a!", "a0"];
        for _ in 0..300 {
            let mut all = Subscriptions::default();
            let mut filters = std::collections::BTreeSet::new();
            for _ in 0..=random(40) {
                let mut filter: Vec<&str> = (0..=random(4))
                    .map(|_| if random(3) == 0 { "+" } else { levels[random(6)] })
                    .collect();
                if random(3) == 0 {
                    filter.push("#");
                }
                filters.insert(filter.join("/"));
            }
            for (filter, identifier) in filters.iter().zip(1..) {
                all.insert(filter.as_bytes(), subscription(1, identifier));
            }
            for _ in 0..20 {
                let topic: Vec<&str> = (0..=random(4)).map(|_| levels[random(6)]).collect();
                let topic = topic.join("/");
                let matches = filters
                    .iter()
                    .zip(1u8..)
                    .filter(|(filter, _)| filter_matches(filter.as_bytes(), topic.as_bytes()));
                let expected: Vec<u8> = matches.map(|(_, identifier)| identifier).collect();
                let matched = all.matched(topic.as_bytes());
                let mut found: Vec<u8> = matched.identifiers.chunks(2).map(|property| property[1]).collect();
                found.sort_unstable();
                assert_eq!(found, expected, "{topic} in {filters:?}");
            }
        }
    }

    #[test]
    fn filters_that_do_not_match_cost_nothing() {
        let steps = |others: u32| {
            let mut all = Subscriptions::default();
            for number in 0..others {
                for filter in [
                    format!("t/{number}/+"),
                    format!("u/{number}/#"),
                    format!("+/n{number}"),
                    format!("t/x/y{number}/+"),
                ] {
                    all.insert(filter.as_bytes(), subscription(1, 0));
                }
            }
            all.insert(b"t/+/y", subscription(1, 7));
            let mut found = 0;
            let mut walk = Walk::new(&all.wild, b"t/x/y", |_: &Subscription| found += 1);
            walk.run();
            let steps = walk.steps;
            assert_eq!(found, 1);
            steps
        };
        assert_eq!(steps(10), steps(2500));
    }

    #[test]
    fn many_topics_do_not_grow_the_cache_without_bound() {
        let mut all = Subscriptions::default();
        all.insert(b"+", subscription(1, 1));
        for round in 0..2000u32 {
            assert_eq!(all.matched(round.to_string().as_bytes()).qos, Some(1));
            assert_eq!(all.matched(b"x/y").qos, None);
        }
        assert!(all.cache.as_ref().unwrap().entries.len() <= CACHED_MAX);
        let long = vec![b'x'; 65_535];
        for _ in 0..4 {
            assert_eq!(all.matched(&long).qos, Some(1));
        }
        assert!(all.cache.as_ref().unwrap().bytes <= CACHED_BYTES_MAX);
    }

    #[test]
    fn cookies_give_the_subscription_back() {
        let one = subscription(0x2D, 268_435_455);
        let cookie = one.cookie(b"a/#");
        assert_eq!(Subscription::from_cookie(&cookie), Some((one, &b"a/#"[..])));
        assert_eq!(Subscription::from_cookie(&cookie[..4]), None);
    }
}
