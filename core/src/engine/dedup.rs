//! Dedup keys: a publish whose key is open already is a copy of an earlier one and is not stored again.
//!
//! Keys are compared within a scope: an address (topic or exchange) that was told to remember a property of its
//! messages, within a window of number and time; or a holder, whose keys are open until they are closed. The record
//! of the message that opened a key holds it, so keys come back with the log.

use std::collections::VecDeque;

use crate::attributes::{Iter, Name, Value};
use crate::boundary::{Fate, HolderKey, Outcome, Publish, Reject, Stored};
use crate::engine::change::Change;
use crate::engine::config::Flush;
use crate::engine::links::LinkId;
use crate::engine::state::State;
use crate::engine::trie::Map;
use crate::message::Format;
use crate::properties::{self, UNIQUE_KEY};
use crate::request::{Dedup, Exchange};
use crate::store::record::{MessageRecord, Position};
use crate::time::{Millis, Now};
use bytes::Bytes;

/// Open keys of one holder; protocols' own numbers for them have 16 bits.
const HOLDER_KEYS_MAX: usize = 1 << 16;

/// Keys that go in one hold because their time is up.
const EXPIRED_STEPS: usize = 1024;

/// Keys in one record of a checkpoint.
const CHECKPOINT_KEYS: usize = 512;

/// Whose keys are compared with each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Encoded name of a topic or exchange.
    Address(Bytes),
    Holder(Bytes),
}

/// A key: its scope's number, which counts within one hold only, and a hash that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    scope: u32,
    fingerprint: u128,
}

/// What opened a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The message, or a place in memory when no record holds the key.
    pub position: Position,
    /// Monotonic; never for [`Millis::MAX`].
    closes_at: Millis,
}

/// A key as a checkpoint holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenKey {
    pub fingerprint: u128,
    pub position: Position,
    /// Unix milliseconds; all ones for never.
    pub closes_at: u64,
}

struct Keys {
    scope: Scope,
    /// Of an address.
    window: Option<Dedup>,
    open: Map<u128, Opened>,
    /// Of an address: in the order in which they were opened.
    order: VecDeque<u128>,
    /// How many went out of the order's front so far.
    gone: u64,
    /// The newest message that opened a key: an older one found in the log was judged already.
    newest: Position,
}

/// All open keys.
#[derive(Default)]
pub(crate) struct Dedups {
    numbers: Map<Scope, u32>,
    scopes: Vec<Option<Keys>>,
    free: Vec<u32>,
    /// Addresses that remember keys.
    addresses: usize,
    /// Keys open in addresses.
    count: usize,
    /// The scope whose keys expire next in turn.
    turn: usize,
}

/// FNV-1a of 128 bits: stands in records, so it stays.
fn fingerprint(key: &[u8]) -> u128 {
    key.iter()
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        })
}

/// The property of a message that its address remembers.
fn property(publish: &Publish, wanted: &[u8]) -> Option<u128> {
    let value = |value: Value<'_>| match value {
        Value::Text(bytes) | Value::Binary(bytes) | Value::Nested(bytes) => Some(fingerprint(bytes)),
        Value::Null => None,
        other => {
            let mut text = Vec::new();
            properties::write_value(other, &mut text);
            Some(fingerprint(&text))
        }
    };
    if publish.format == Format::NATIVE {
        return properties::find(&publish.origin, wanted).map(fingerprint);
    }
    // What a native client's unique key is, other protocols call the message's id.
    let wanted = if wanted == UNIQUE_KEY {
        &b"message-id"[..]
    } else {
        wanted
    };
    let named = |name: Name<'_>| match name {
        Name::Known(known) => known.native_name().as_bytes() == wanted,
        Name::User(user) => user == wanted,
    };
    let mut found = Iter::new(publish.attributes.as_bytes()).filter(|(name, _)| named(*name));
    found.next().and_then(|(_, found)| value(found))
}

impl Dedups {
    fn keys(&self, number: u32) -> &Keys {
        self.scopes[number as usize]
            .as_ref()
            .expect("numbers count while their scope is there")
    }

    fn keys_mut(&mut self, number: u32) -> &mut Keys {
        self.scopes[number as usize]
            .as_mut()
            .expect("numbers count while their scope is there")
    }

    /// The scope, made if need be.
    fn number(&mut self, scope: Scope, window: Option<&Dedup>) -> u32 {
        if let Some(number) = self.numbers.get(&scope) {
            return *number;
        }
        let keys = Keys {
            scope: scope.clone(),
            window: window.cloned(),
            open: Map::default(),
            order: VecDeque::new(),
            gone: 0,
            newest: Position(0),
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.scopes[number as usize] = Some(keys);
                number
            }
            None => {
                self.scopes.push(Some(keys));
                self.scopes.len() as u32 - 1
            }
        };
        self.addresses += usize::from(window.is_some());
        self.numbers.insert(scope, number);
        number
    }

    /// From now on messages at this address are told from copies.
    pub(crate) fn remember(&mut self, address: &Bytes, window: &Dedup) {
        let number = self.number(Scope::Address(address.clone()), Some(window));
        self.keys_mut(number).window = Some(window.clone());
    }

    /// The scope is gone with its keys.
    pub(crate) fn forget(&mut self, scope: &Scope) {
        let Some(number) = self.numbers.remove(scope) else {
            return;
        };
        if let Some(keys) = self.scopes[number as usize].take()
            && keys.window.is_some()
        {
            self.addresses -= 1;
            self.count -= keys.open.len();
        }
        self.free.push(number);
    }

    /// The message that opened the key, if it is open.
    pub(crate) fn find(&self, key: Key, now: Now) -> Option<Opened> {
        let opened = self.keys(key.scope).open.get(&key.fingerprint)?;
        (opened.closes_at > now.mono).then_some(*opened)
    }

    /// Opens a key, unless it is open.
    fn open(&mut self, key: Key, position: Position, now: Now, closes_at: Millis, keys_max: usize) {
        let keys = self.scopes[key.scope as usize]
            .as_mut()
            .expect("numbers count while their scope is there");
        if !position.is_memory() {
            keys.newest = keys.newest.max(position);
        }
        let opened = Opened { position, closes_at };
        let Some(window) = &keys.window else {
            keys.open.entry(key.fingerprint).or_insert(opened);
            return;
        };
        let window_max = window.keys_max.max(1) as usize;
        self.count -= keys.expire(now, usize::MAX);
        if keys.open.contains_key(&key.fingerprint) {
            return;
        }
        keys.open.insert(key.fingerprint, opened);
        keys.order.push_back(key.fingerprint);
        self.count += 1;
        while keys.open.len() > window_max || (self.count > keys_max && keys.open.len() > 1) {
            let Some(oldest) = keys.order.pop_front() else { break };
            keys.gone += 1;
            keys.open.remove(&oldest);
            self.count -= 1;
        }
    }

    fn close(&mut self, key: Key) -> Option<Opened> {
        self.keys_mut(key.scope).open.remove(&key.fingerprint)
    }

    /// Keys whose time is up go, some at a time.
    pub(crate) fn expire(&mut self, now: Now) {
        let mut steps = EXPIRED_STEPS;
        for _ in 0..self.scopes.len().min(EXPIRED_STEPS) {
            self.turn = (self.turn + 1) % self.scopes.len();
            let Some(keys) = &mut self.scopes[self.turn] else {
                continue;
            };
            let gone = keys.expire(now, steps);
            steps -= gone;
            self.count -= gone;
            if keys.open.is_empty() {
                keys.open = Map::default();
                keys.order = VecDeque::new();
            }
        }
    }

    /// What a record holds of a key: the scope's kind, its name and the key's hash.
    pub(crate) fn for_record(&self, key: Key) -> (u8, &[u8], u128) {
        match &self.keys(key.scope).scope {
            Scope::Address(name) => (1, name, key.fingerprint),
            Scope::Holder(name) => (2, name, key.fingerprint),
        }
    }
}

impl Keys {
    /// Keys whose time is up go, at most so many. Gives how many went.
    fn expire(&mut self, now: Now, most: usize) -> usize {
        let mut gone = 0;
        while gone < most
            && let Some(oldest) = self.order.front()
            && self.open.get(oldest).is_none_or(|opened| opened.closes_at <= now.mono)
        {
            self.open.remove(oldest);
            self.order.pop_front();
            self.gone += 1;
            gone += 1;
        }
        gone
    }
}

impl Scope {
    /// From what a record or change holds.
    pub(crate) fn of(kind: u8, name: Bytes) -> Option<Self> {
        match kind {
            1 => Some(Self::Address(name)),
            2 => Some(Self::Holder(name)),
            _ => None,
        }
    }

    pub(crate) fn parts(&self) -> (u8, &Bytes) {
        match self {
            Self::Address(name) => (1, name),
            Self::Holder(name) => (2, name),
        }
    }
}

impl State {
    /// The key that a publish carries, if it carries one that is looked at here.
    pub(crate) fn dedup_key(&mut self, link: LinkId, publish: &Publish) -> Result<Option<Key>, Reject> {
        if let Some(HolderKey::Open(number)) = publish.holder_key {
            return self.holder_key(link, number, true);
        }
        if self.dedups.addresses == 0 {
            return Ok(None);
        }
        let Some(number) = self.dedups.numbers.get(&Scope::Address(publish.topic.clone())).copied() else {
            return Ok(None);
        };
        let window = self.dedups.keys(number).window.as_ref();
        let fingerprint = window.and_then(|window| property(publish, &window.property));
        Ok(fingerprint.map(|fingerprint| Key {
            scope: number,
            fingerprint,
        }))
    }

    fn holder_key(&mut self, link: LinkId, number: u64, make: bool) -> Result<Option<Key>, Reject> {
        let Some(holder) = self.link(link).and_then(|link| link.holder.clone()) else {
            return Ok(None);
        };
        let scope = Scope::Holder(holder);
        if !make && !self.dedups.numbers.contains_key(&scope) {
            return Ok(None);
        }
        let scope = self.dedups.number(scope, None);
        let key = Key {
            scope,
            fingerprint: u128::from(number),
        };
        let open = &self.dedups.keys(scope).open;
        if make && open.len() >= HOLDER_KEYS_MAX && !open.contains_key(&key.fingerprint) {
            return Err(Reject::QueueFull);
        }
        Ok(Some(key))
    }

    /// The message with that key was taken and lies there.
    pub(crate) fn open_key(&mut self, key: Key, position: Position) {
        let time = self
            .dedups
            .keys(key.scope)
            .window
            .as_ref()
            .and_then(|window| window.time);
        let closes_at = time.map_or(Millis::MAX, |time| self.now.mono + time);
        let keys_max = self.config.dedup_keys_max;
        self.dedups.open(key, position, self.now, closes_at, keys_max);
    }

    /// A copy of a message that was taken: its outcome is that message's, as safe as that one is.
    pub(crate) fn tell_duplicate(&mut self, link: LinkId, publish: &Publish, opened: Opened) {
        let Opened { position, .. } = opened;
        let mut stored = Stored {
            position,
            queue_id: 0,
            queue_offset: 0,
            routes: 1,
            weak: position.is_memory() || self.config.flush == Flush::Async,
        };
        if publish.detailed
            && !position.is_memory()
            && let Some(record) = self.log.find(position)
            && let Some((queue, offset)) = MessageRecord::of(&record).topic_queue()
        {
            (stored.queue_id, stored.queue_offset) = (queue, offset);
        }
        let outcome = Outcome {
            first: publish.token,
            count: 1,
            fate: Fate::Duplicate(stored),
        };
        if position.is_memory() || self.is_safe(position) {
            self.outcome_now(link, outcome, !publish.detailed);
        } else {
            self.outcome_later(link, outcome, !publish.detailed);
        }
    }

    /// Closes a key of the link's holder: the same number opens it anew. Told when it is as safe as a message.
    pub(crate) fn close_key(&mut self, link: LinkId, publish: &Publish, number: u64) {
        let closed = self.close_quietly(link, number);
        let stored = Stored {
            position: closed.map_or(Position(Position::MEMORY), |opened| opened.position),
            queue_id: 0,
            queue_offset: 0,
            routes: u32::from(closed.is_some()),
            weak: closed.is_none() || self.config.flush == Flush::Async,
        };
        let outcome = Outcome {
            first: publish.token,
            count: 1,
            fate: Fate::Stored(stored),
        };
        if stored.position.is_memory() {
            return self.outcome_now(link, outcome, !publish.detailed);
        }
        self.outcome_later(link, outcome, !publish.detailed);
    }

    pub(crate) fn close_quietly(&mut self, link: LinkId, number: u64) -> Option<Opened> {
        let key = self.holder_key(link, number, false).ok().flatten()?;
        let closed = self.dedups.close(key)?;
        if !closed.position.is_memory()
            && let Some(holder) = self.link(link).and_then(|link| link.holder.clone())
        {
            self.change_quietly(&Change::KeyClosed { holder, number });
        }
        Some(closed)
    }

    /// An exchange was made: what is published there is told from copies if it says so.
    pub(crate) fn remember_keys(&mut self, exchange: &Exchange) {
        if let Some(window) = &exchange.dedup {
            self.dedups.remember(&exchange.name, window);
        }
    }

    /// An exchange is gone; what the configuration says of the topic of its name stays.
    pub(crate) fn forget_keys(&mut self, exchange: &Bytes) {
        let config = std::sync::Arc::clone(&self.config);
        match config.dedup_topics.iter().find(|(topic, _)| topic == exchange) {
            Some((topic, window)) => self.dedups.remember(topic, window),
            None => self.dedups.forget(&Scope::Address(exchange.clone())),
        }
    }

    // --- replay and checkpoint --------------------------------------------------------------------

    /// A message in the log opened a key.
    pub(crate) fn replay_key(&mut self, scope: Scope, fingerprint: u128, position: Position, stored_at: Millis) {
        let (known, window) = match &scope {
            Scope::Address(_) => (self.dedups.numbers.contains_key(&scope), true),
            Scope::Holder(name) => (self.holders.contains_key(name), false),
        };
        if !known {
            return;
        }
        let number = self.dedups.number(scope, None);
        let keys = self.dedups.keys(number);
        if window && position <= keys.newest {
            return;
        }
        let time = keys.window.as_ref().and_then(|window| window.time);
        let closes_at = time.map_or(u64::MAX, |time| (stored_at + time).0);
        let key = OpenKey {
            fingerprint,
            position,
            closes_at,
        };
        self.replay_open(number, key);
    }

    pub(crate) fn replay_keys(&mut self, scope: Scope, keys: Vec<OpenKey>) {
        let known = match &scope {
            Scope::Address(_) => self.dedups.numbers.contains_key(&scope),
            Scope::Holder(name) => self.holders.contains_key(name),
        };
        if !known {
            return;
        }
        let number = self.dedups.number(scope, None);
        for key in keys {
            self.replay_open(number, key);
        }
    }

    fn replay_open(&mut self, scope: u32, key: OpenKey) {
        let key_of = Key {
            scope,
            fingerprint: key.fingerprint,
        };
        let time = self.dedups.keys(scope).window.as_ref().and_then(|window| window.time);
        let closes_at = match (key.closes_at, time) {
            (u64::MAX, _) => Millis::MAX,
            // The wall clock may have gone back meanwhile: never longer than the window.
            (wall, time) => {
                let left = Millis(wall.saturating_sub(self.now.wall.0));
                self.now.mono + time.map_or(left, |time| left.min(time))
            }
        };
        let keys_max = self.config.dedup_keys_max;
        self.dedups.open(key_of, key.position, self.now, closes_at, keys_max);
    }

    pub(crate) fn replay_key_closed(&mut self, holder: Bytes, number: u64) {
        if let Some(scope) = self.dedups.numbers.get(&Scope::Holder(holder)).copied() {
            let fingerprint = u128::from(number);
            self.dedups.close(Key { scope, fingerprint });
        }
    }

    /// Puts the next of the open keys that records hold: of the scope numbered `at`, of an address from the
    /// `sequence`-th key on. Gives whether there are no more.
    pub(crate) fn checkpoint_dedup(
        &self,
        at: &mut usize,
        sequence: &mut Option<u64>,
        put: &mut dyn FnMut(&Change),
    ) -> bool {
        let Some(slot) = self.dedups.scopes.get(*at) else {
            return true;
        };
        let Some(keys) = slot else {
            *at += 1;
            return false;
        };
        let mut open = Vec::new();
        if keys.window.is_some() {
            let from = sequence.unwrap_or(0).max(keys.gone);
            let some = keys.order.iter().skip((from - keys.gone) as usize);
            let some = some
                .take(CHECKPOINT_KEYS)
                .filter_map(|fingerprint| keys.open.get_key_value(fingerprint));
            open.extend(some.filter_map(|(fingerprint, opened)| self.open_key_of(*fingerprint, opened)));
            let next = from + CHECKPOINT_KEYS as u64;
            *sequence = (next < keys.gone + keys.order.len() as u64).then_some(next);
        } else {
            let all = keys.open.iter();
            open.extend(all.filter_map(|(fingerprint, opened)| self.open_key_of(*fingerprint, opened)));
        }
        if sequence.is_none() {
            *at += 1;
        }
        if !open.is_empty() {
            let scope = keys.scope.clone();
            put(&Change::KeysOpen { scope, keys: open });
        }
        false
    }

    fn open_key_of(&self, fingerprint: u128, opened: &Opened) -> Option<OpenKey> {
        if opened.position.is_memory() || opened.closes_at <= self.now.mono {
            return None;
        }
        let closes_at = match opened.closes_at {
            Millis::MAX => u64::MAX,
            at => (self.now.wall + (at - self.now.mono)).0,
        };
        Some(OpenKey {
            fingerprint,
            position: opened.position,
            closes_at,
        })
    }
}
