//! A session's own subscriptions: which of them a delivery is for.
//!
//! Core gives a session one copy of a message whatever matched. What the client is to be told of it (the
//! granted QoS, the subscription identifiers) is found here, once for each topic.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::SubscriptionOptions;
use crate::codec::properties::{PropertyId, put_number};
use crate::codec::text::{filter_matches, has_wildcard};

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
    /// Made with the first delivery.
    cache: Option<Box<Cache>>,
}

impl Subscriptions {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wild.len()
    }

    /// Adds a subscription, or replaces the one of that filter, which is given back.
    pub fn insert(&mut self, filter: &[u8], subscription: Subscription) -> Option<Subscription> {
        self.cache = None;
        self.map(filter).insert(filter.into(), subscription)
    }

    /// Removes the subscription of that filter.
    pub fn remove(&mut self, filter: &[u8]) -> Option<Subscription> {
        self.cache = None;
        self.map(filter).remove(filter)
    }

    /// Whether there is one of that filter.
    pub fn contains(&mut self, filter: &[u8]) -> bool {
        self.map(filter).contains_key(filter)
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

    /// The same for what this client itself published.
    pub fn matched_own(&self, topic: &[u8]) -> Matched {
        self.find(topic, true)
    }

    fn find(&self, topic: &[u8], is_own: bool) -> Matched {
        let mut matched = Matched::default();
        let mut identifiers = BytesMut::new();
        let exact = self.exact.get(topic).into_iter();
        let wild = self
            .wild
            .iter()
            .filter(|(filter, _)| filter_matches(filter, topic))
            .map(|(_, subscription)| subscription);
        for subscription in exact.chain(wild) {
            matched.no_local |= subscription.options.no_local();
            if is_own && subscription.options.no_local() {
                continue;
            }
            matched.add(*subscription, &mut identifiers);
        }
        matched.identifiers = identifiers.freeze();
        matched
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
        all.remove(b"a/+");
        assert_eq!(all.matched(b"a/b").qos, Some(0));
        assert_eq!(all.len(), 3);
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
