//! How the bindings of one exchange are kept, so that finding those that match does not cost anything for
//! those that do not.

use std::collections::BTreeMap;

use crate::address::fnv1a;
use crate::attributes::{Iter, Name, Value};
use crate::engine::trie::Map;
use crate::request::Headers;

/// Targets, each with how many bindings lead to it; sorted, because thousands may share one key.
#[derive(Debug, Default)]
pub(crate) struct Targets(Vec<(u64, u32)>);

impl Targets {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|(target, _)| *target)
    }

    pub(crate) fn add(&mut self, target: u64) {
        match self.0.binary_search_by_key(&target, |(target, _)| *target) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (target, 1)),
        }
    }

    pub(crate) fn remove(&mut self, target: u64) {
        if let Ok(at) = self.0.binary_search_by_key(&target, |(target, _)| *target) {
            self.0[at].1 -= 1;
            if self.0[at].1 == 0 {
                self.0.remove(at);
            }
        }
    }
}

/// User properties of a message, by name.
pub(crate) type Found<'a> = BTreeMap<&'a [u8], Value<'a>>;

/// A binding by user properties.
#[derive(Debug)]
struct HeaderBinding {
    headers: Headers,
    target: u64,
    count: u32,
    /// Of a binding that wants all: the pair under which it is found.
    key: Box<[u8]>,
}

/// Bindings by user properties. One that wants any of its pairs is found under each of them; one that wants
/// all is found under that pair which fewest others are found under, and then checked.
#[derive(Debug, Default)]
pub(crate) struct HeadersIndex {
    bindings: Vec<Option<HeaderBinding>>,
    free: Vec<u32>,
    slots: Map<(Headers, u64), u32>,
    by_pair: Map<Box<[u8]>, Vec<u32>>,
    /// Want all of nothing.
    always: Vec<u32>,
}

impl HeadersIndex {
    pub(crate) fn add(&mut self, headers: &Headers, target: u64) {
        if let Some(slot) = self.slots.get(&(headers.clone(), target)) {
            if let Some(binding) = &mut self.bindings[*slot as usize] {
                binding.count += 1;
            }
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.bindings.push(None);
            self.bindings.len() as u32 - 1
        });
        let keys = keys_of(headers);
        let mut key = Box::default();
        if !headers.all {
            for key in keys {
                self.by_pair.entry(key).or_default().push(slot);
            }
        } else if let Some(rarest) = keys
            .into_iter()
            .min_by_key(|key| self.by_pair.get(key).map_or(0, Vec::len))
        {
            self.by_pair.entry(rarest.clone()).or_default().push(slot);
            key = rarest;
        } else {
            self.always.push(slot);
        }
        self.slots.insert((headers.clone(), target), slot);
        self.bindings[slot as usize] = Some(HeaderBinding {
            headers: headers.clone(),
            target,
            count: 1,
            key,
        });
    }

    pub(crate) fn remove(&mut self, headers: &Headers, target: u64) {
        let identity = (headers.clone(), target);
        let Some(slot) = self.slots.get(&identity).copied() else {
            return;
        };
        let Some(binding) = &mut self.bindings[slot as usize] else {
            return;
        };
        binding.count -= 1;
        if binding.count > 0 {
            return;
        }
        let key = std::mem::take(&mut binding.key);
        self.bindings[slot as usize] = None;
        self.free.push(slot);
        self.slots.remove(&identity);
        if !headers.all {
            keys_of(headers).iter().for_each(|key| self.forget(key, slot));
        } else if key.is_empty() {
            self.always.retain(|known| *known != slot);
        } else {
            self.forget(&key, slot);
        }
    }

    fn forget(&mut self, key: &[u8], slot: u32) {
        if let Some(slots) = self.by_pair.get_mut(key) {
            slots.retain(|known| *known != slot);
            if slots.is_empty() {
                self.by_pair.remove(key);
            }
        }
    }

    /// Calls `each` with every target whose binding fits, maybe more than once. Gives how many bindings were
    /// looked at.
    pub(crate) fn find(&self, found: &Found<'_>, mut each: impl FnMut(u64)) -> u64 {
        let mut steps = 0;
        let mut key = Vec::new();
        for (name, value) in found {
            for value in [Some(*value), None] {
                key.clear();
                put_pair(&mut key, name, value);
                for slot in self.by_pair.get(&key[..]).into_iter().flatten() {
                    steps += 1;
                    if let Some(binding) = &self.bindings[*slot as usize]
                        && fits(&binding.headers, found)
                    {
                        each(binding.target);
                    }
                }
            }
            steps += 1;
        }
        for slot in &self.always {
            steps += 1;
            self.bindings[*slot as usize]
                .iter()
                .for_each(|binding| each(binding.target));
        }
        steps
    }
}

fn wanted(headers: &Headers) -> impl Iterator<Item = (&[u8], Value<'_>)> {
    Iter::new(&headers.wanted).filter_map(|(name, value)| match name {
        Name::User(name) => Some((name, value)),
        Name::Known(_) => None,
    })
}

fn keys_of(headers: &Headers) -> Vec<Box<[u8]>> {
    let key = |(name, value): (&[u8], Value<'_>)| {
        let mut key = Vec::new();
        put_pair(&mut key, name, (value != Value::Null).then_some(value));
        key.into()
    };
    wanted(headers).map(key).collect()
}

/// Equal bytes for what [`same_value`] takes for equal; without a value the key asks for presence.
fn put_pair(key: &mut Vec<u8>, name: &[u8], value: Option<Value<'_>>) {
    key.extend_from_slice(&(name.len() as u32).to_le_bytes());
    key.extend_from_slice(name);
    let Some(value) = value else { return };
    let mut put = |tag: u8, bytes: &[u8]| {
        key.push(tag);
        key.extend_from_slice(bytes);
    };
    match value {
        Value::Null => put(1, &[]),
        Value::Bool(value) => put(2, &[value.into()]),
        Value::Int(value) => put(3, &i128::from(value).to_le_bytes()),
        Value::Uint(value) => put(3, &i128::from(value).to_le_bytes()),
        // Both zeros are equal.
        Value::Float(value) => put(4, &(value + 0.0).to_bits().to_le_bytes()),
        Value::Timestamp(value) => put(5, &value.to_le_bytes()),
        Value::Text(bytes) | Value::Binary(bytes) => put(6, bytes),
        Value::Nested(bytes) => put(7, bytes),
    }
}

fn fits(headers: &Headers, found: &Found<'_>) -> bool {
    let fits = |(name, value): (&[u8], Value<'_>)| match (found.get(name), value) {
        (None, _) => false,
        (Some(_), Value::Null) => true,
        (Some(have), want) => same_value(*have, want),
    };
    if headers.all {
        wanted(headers).all(fits)
    } else {
        wanted(headers).any(fits)
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

/// Bindings of a hashing exchange: each has as many of the buckets as its weight says, in the order in which
/// they were bound.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// Target, weight, and the number of buckets up to and with this one.
    bindings: Vec<(u64, u32, u64)>,
}

impl Ring {
    pub(crate) fn add(&mut self, target: u64, weight: &[u8]) {
        let weight = weight_of(weight);
        let before = self.bindings.last().map_or(0, |(_, _, upto)| *upto);
        self.bindings.push((target, weight, before + u64::from(weight)));
    }

    pub(crate) fn remove(&mut self, target: u64, weight: &[u8]) {
        let weight = weight_of(weight);
        if let Some(at) = self.bindings.iter().position(|(t, w, _)| (*t, *w) == (target, weight)) {
            self.bindings.remove(at);
            for (_, _, upto) in &mut self.bindings[at..] {
                *upto -= u64::from(weight);
            }
        }
    }

    /// The one target for a hash, and how many bindings were looked at.
    pub(crate) fn find(&self, value: &[u8]) -> (Option<u64>, u64) {
        let buckets = self.bindings.last().map_or(0, |(_, _, upto)| *upto);
        if buckets == 0 {
            return (None, 1);
        }
        let bucket = jump(mix(fnv1a(value)), buckets);
        let at = self.bindings.partition_point(|(_, _, upto)| *upto <= bucket);
        let steps = u64::from(usize::BITS - self.bindings.len().leading_zeros());
        (self.bindings.get(at).map(|(target, ..)| *target), steps)
    }
}

/// A binding whose key is no number gets nothing.
fn weight_of(text: &[u8]) -> u32 {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.unwrap_or(0)
}

/// Spreads the bits of a hash.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash ^ (hash >> 33)
}

/// Jump consistent hash (Lamping and Veach, 2014): with one bucket more, only what goes there moves.
fn jump(mut key: u64, buckets: u64) -> u64 {
    let (mut bucket, mut next) = (0u64, 0u64);
    while next < buckets {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let step = (bucket + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64);
        next = step as u64;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::AttributesBuilder;

    fn headers(all: bool, entries: &[(&[u8], Value<'_>)]) -> Headers {
        let mut builder = AttributesBuilder::default();
        for (name, value) in entries {
            builder.put(Name::User(name), *value);
        }
        Headers {
            all,
            wanted: bytes::Bytes::copy_from_slice(builder.finish().as_bytes()),
        }
    }

    #[test]
    fn the_headers_index_finds_what_a_look_at_every_binding_finds() {
        let mut seed = 5u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let names: [&[u8]; 3] = [b"a", b"b", b"c"];
        let values = [
            Value::Null,
            Value::Int(1),
            Value::Uint(1),
            Value::Text(b"x"),
            Value::Binary(b"x"),
            Value::Float(1.0),
        ];
        let mut index = HeadersIndex::default();
        let mut all: Vec<(Headers, u64)> = Vec::new();
        for round in 0..4000 {
            let mut entries = Vec::new();
            for name in names {
                if random(2) == 0 {
                    entries.push((name, values[random(6) as usize]));
                }
            }
            if random(3) > 0 && all.len() < 50 {
                let binding = (headers(random(2) == 0, &entries), random(20));
                index.add(&binding.0, binding.1);
                all.push(binding);
            } else if !all.is_empty() {
                let binding = all.swap_remove(random(all.len() as u64) as usize);
                index.remove(&binding.0, binding.1);
            }
            let found: Found<'_> = entries.into_iter().collect();
            let mut expected: Vec<u64> = all.iter().filter(|(h, _)| fits(h, &found)).map(|(_, t)| *t).collect();
            let mut actual = Vec::new();
            index.find(&found, |target| actual.push(target));
            for list in [&mut expected, &mut actual] {
                list.sort_unstable();
                list.dedup();
            }
            assert_eq!(actual, expected, "round {round}");
        }
        for (headers, target) in all {
            index.remove(&headers, target);
        }
        assert!(index.by_pair.is_empty() && index.slots.is_empty() && index.always.is_empty());
    }

    #[test]
    fn weights_share_the_messages_and_a_new_binding_moves_only_its_own_share() {
        let mut ring = Ring::default();
        ring.add(1, b"10");
        ring.add(2, b"20");
        ring.add(9, b"none");
        let place =
            |ring: &Ring| -> Vec<u64> { (0..30_000u32).filter_map(|n| ring.find(&n.to_le_bytes()).0).collect() };
        let before = place(&ring);
        let share = |places: &[u64], target| places.iter().filter(|t| **t == target).count();
        assert_eq!(before.len(), 30_000);
        assert!((9_000..11_000).contains(&share(&before, 1)), "{}", share(&before, 1));
        ring.add(3, b"10");
        let after = place(&ring);
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert_eq!(moved, share(&after, 3));
        ring.remove(3, b"10");
        assert_eq!(place(&ring), before);
    }
}
