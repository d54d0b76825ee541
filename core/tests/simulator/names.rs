//! The few names that everything has, and their forms at the boundary.

use bytes::Bytes;
use rocketbridge_core::address::Pattern;
use rocketbridge_core::boundary::Publish;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{self, Dedup, ExchangeKind, HashOn, Limit, Matcher};

use rocketbridge_core::time::Millis;

use crate::model::{self, Id, Source, State, Target};

pub const QUEUES: [&str; 5] = ["q0", "q1", "q2", "q3", "q4"];
pub const EXCHANGES: [&str; 4] = ["e0", "e1", "e2", "e3"];
pub const TOPICS: [&str; 2] = ["t0", "t1"];
pub const HOLDERS: [&str; 2] = ["h0", "h1"];
pub const GROUPS: [&str; 2] = ["g0", "g1"];
pub const KEYS: [&str; 4] = ["", "a", "a.b", "b"];
pub const PATTERNS: [&str; 6] = ["#", "a", "a.#", "*", "*.b", "b"];
/// Patterns over whole addresses.
pub const FILTERS: [&str; 6] = ["#", "t0", "t0.#", "*.a", "e0.#", "t1.*"];

/// The topic of messages whose transaction nobody ended.
pub const GIVEN_UP: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
/// The group of all producers of transactions.
pub const PRODUCERS: &str = "p0";

/// The property by which topics and exchanges know copies.
pub const DEDUP: &str = "k";
/// Keys that a topic or exchange remembers.
pub const WINDOW: usize = 2;
/// A topic that remembers keys by time.
pub const TIMED_KEYS: &str = "t1";
/// For how long.
pub const KEY_TIME: u64 = 3000;
/// Values of keys.
pub const KEY_VALUES: [&str; 4] = ["0", "1", "2", "3"];

/// How many keys are remembered in a scope.
pub fn window_of(scope: &str) -> Option<usize> {
    (scope != TIMED_KEYS && !scope.starts_with('\0')).then_some(WINDOW)
}

/// How copies are known at a topic or exchange.
pub fn dedup(scope: &str) -> Dedup {
    Dedup {
        property: bytes(DEDUP),
        keys_max: window_of(scope).unwrap_or(1000) as u32,
        time: (scope == TIMED_KEYS).then_some(Millis(KEY_TIME)),
    }
}

/// Message queues of a topic that a foreign publish makes.
pub const TOPIC_QUEUES: u32 = 2;

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The queue of a named session.
pub fn holder_queue(name: &str) -> String {
    format!("\0{name}")
}

/// All topics that can come to be.
pub fn all_topics() -> impl Iterator<Item = &'static str> {
    TOPICS.into_iter().chain(QUEUES).chain(EXCHANGES)
}

pub fn body(id: Id, padding: usize) -> Bytes {
    Bytes::from(format!("{id} {}", "x".repeat(padding)))
}

pub fn id_of(body: &[u8]) -> Id {
    let text = std::str::from_utf8(body).expect("a body is text");
    let (id, _) = text.split_once(' ').expect("a body begins with a number");
    id.parse().expect("a body begins with a number")
}

pub fn publish(entry: Entry, topic: &str, key: &str, body: Bytes) -> Publish {
    Publish {
        entry,
        topic: bytes(topic),
        key: bytes(key),
        body,
        format: Format(9),
        persistent: true,
        detailed: true,
        waits: true,
        ..Publish::default()
    }
}

pub fn exchange(name: &str, exchange: &model::Exchange) -> request::Exchange {
    request::Exchange {
        name: bytes(name),
        kind: exchange.kind,
        durable: exchange.durable,
        auto_delete: exchange.auto_delete,
        internal: exchange.internal,
        alternate: None,
        hash_on: HashOn::Key,
        dedup: exchange.dedup.then(|| dedup(name)),
        arguments: Bytes::new(),
    }
}

pub fn exchange_of(exchange: &request::Exchange) -> model::Exchange {
    model::Exchange {
        kind: exchange.kind,
        durable: exchange.durable,
        auto_delete: exchange.auto_delete,
        internal: exchange.internal,
        dedup: exchange.dedup.is_some(),
    }
}

pub fn queue(name: &str, spec: &model::Spec, exclusive: bool) -> request::Queue {
    request::Queue {
        name: bytes(name),
        durable: spec.durable,
        exclusive,
        auto_delete: spec.auto_delete,
        addressable: spec.addressable,
        limit: Limit {
            messages: spec.limit,
            bytes: None,
        },
        policy: None,
        arguments: Bytes::new(),
    }
}

pub fn spec_of(queue: &request::Queue) -> model::Spec {
    model::Spec {
        durable: queue.durable,
        auto_delete: queue.auto_delete,
        addressable: queue.addressable,
        limit: queue.limit.messages,
    }
}

pub fn binding(state: &State, binding: &model::Binding) -> request::Binding {
    let pattern = || Matcher::Pattern(Pattern::from_key_pattern(binding.matcher.as_bytes()));
    let (source, matcher) = match &binding.source {
        Source::Exchange(name) => {
            let kind = state.exchanges.get(name).map(|exchange| exchange.kind);
            let matcher = match kind {
                Some(ExchangeKind::Pattern) => pattern(),
                _ => Matcher::Key(bytes(&binding.matcher)),
            };
            (request::Source::Exchange(bytes(name)), matcher)
        }
        Source::Topics => (request::Source::Topics, pattern()),
        Source::Everything => (request::Source::Everything, pattern()),
    };
    request::Binding {
        source,
        matcher,
        destination: match &binding.target {
            Target::Queue(name) => request::Destination::Queue(bytes(name)),
            Target::Exchange(name) => request::Destination::Exchange(bytes(name)),
        },
        arguments: Bytes::new(),
        cookie: Bytes::new(),
    }
}
