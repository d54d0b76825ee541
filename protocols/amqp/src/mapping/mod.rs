//! AMQP to core and back, as pure functions. `MAPPING.md` is the same in words.
//!
//! This file turns names into addresses and bindings. [`inbound`] reads a published message's properties,
//! [`outbound`] writes those of a message that is delivered.

pub mod dedup;
pub mod history;
pub mod inbound;
pub mod outbound;
mod predeclared;

pub use predeclared::predeclared_exchanges;

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::address::{EMPTY_NAME, Level, Pattern, encode_name, name_is_cut, split_whole_key};
use rocketbridge_core::attributes::{AttributesBuilder, Name};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{ExchangeKind, Headers, Matcher, Source, Way};

use crate::codec::{Table, Value, put_short_str};
use crate::reply_code::{ChannelError, erlang_binary};

/// This protocol's number in [`Message::origin`](rocketbridge_core::message::Message::origin).
pub const FORMAT: Format = Format(1);

/// The exchange that stands for all topics: what is published to it is a topic's message, and its
/// bindings see what is published to topics from any protocol.
pub const TOPIC_EXCHANGE: &[u8] = b"amq.topic";

/// Begins a routing key of the default exchange that means [`TOPIC_EXCHANGE`] and the key behind it. So a `reply-to`
/// can lead to a topic, by the way that all clients answer: to the default exchange with it as routing key. Queues'
/// names do not begin like this.
pub const REPLY_TOPIC: &[u8] = b"amq.topic/";

/// Exchanges that are always there, besides the default one.
pub const PREDECLARED: [(&[u8], ExchangeKind); 5] = [
    (b"amq.direct", ExchangeKind::Direct),
    (b"amq.fanout", ExchangeKind::Fanout),
    (TOPIC_EXCHANGE, ExchangeKind::Pattern),
    (b"amq.headers", ExchangeKind::Headers),
    (b"amq.match", ExchangeKind::Headers),
];

/// Where an exchange leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The default exchange: straight to the queue that the routing key names.
    Default,
    /// [`TOPIC_EXCHANGE`].
    Topics,
    /// Any other exchange, by its encoded name.
    Exchange(Bytes),
}

/// An exchange's name with what it means. Kept while it is published to, so cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeName {
    /// As clients spell it.
    pub name: Bytes,
    /// Where it leads.
    pub route: Route,
}

impl ExchangeName {
    /// Looks a name up; copies it.
    pub fn new(name: &[u8]) -> Self {
        let name = Bytes::copy_from_slice(name);
        let route = match &name[..] {
            b"" => Route::Default,
            TOPIC_EXCHANGE => Route::Topics,
            _ => Route::Exchange(encode_name(&name)),
        };
        Self { name, route }
    }
}

/// Where messages go on that name an exchange in an argument.
pub fn way(exchange: &[u8]) -> Way {
    match ExchangeName::new(exchange).route {
        Route::Default => Way::Queue,
        Route::Topics => Way::Topics,
        Route::Exchange(name) => Way::Exchange(name),
    }
}

/// Where a publish goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How it enters.
    pub entry: Entry,
    /// Encoded topic name.
    pub topic: Bytes,
    /// Core's key.
    pub key: Bytes,
    /// The topic's name, where encoding had to cut it.
    pub cut_from: Option<Bytes>,
}

/// The address of a message published to an exchange with a routing key.
pub fn target(exchange: &ExchangeName, routing_key: &Bytes) -> Target {
    let (entry, raw, topic, key) = match &exchange.route {
        Route::Exchange(topic) => (
            Entry::Exchange,
            exchange.name.clone(),
            topic.clone(),
            routing_key.clone(),
        ),
        Route::Default => (
            Entry::Queue,
            routing_key.clone(),
            encode_name(routing_key),
            Bytes::new(),
        ),
        Route::Topics => {
            let dot = routing_key.iter().position(|b| *b == b'.');
            let raw = routing_key.slice(..dot.unwrap_or(routing_key.len()));
            let (topic, key) = split_whole_key(routing_key);
            (Entry::Topic, raw, topic, key)
        }
    };
    Target {
        entry,
        cut_from: name_is_cut(&topic).then_some(raw),
        topic,
        key,
    }
}

/// One end of a binding that messages come from.
pub fn source(exchange: &ExchangeName) -> Option<Source> {
    match &exchange.route {
        Route::Default => None,
        Route::Topics => Some(Source::Topics),
        Route::Exchange(name) => Some(Source::Exchange(name.clone())),
    }
}

/// Which messages a binding to an exchange of that kind takes.
///
/// # Errors
/// 406 for an `x-match` that nobody knows.
pub fn matcher(
    exchange: &ExchangeName,
    kind: ExchangeKind,
    routing_key: &[u8],
    arguments: Table<'_>,
) -> Result<Matcher, ChannelError> {
    Ok(match kind {
        ExchangeKind::Fanout | ExchangeKind::Direct => Matcher::Key(Bytes::copy_from_slice(routing_key)),
        ExchangeKind::Hash => {
            check_weight(routing_key)?;
            Matcher::Key(Bytes::copy_from_slice(routing_key))
        }
        ExchangeKind::Pattern if exchange.route == Route::Topics => Matcher::Pattern(topics_pattern(routing_key)),
        ExchangeKind::Pattern => Matcher::Pattern(Pattern::from_key_pattern(routing_key)),
        ExchangeKind::Headers => Matcher::Headers(headers(arguments)?),
    })
}

/// The routing key of a binding to a hashing exchange is its weight.
fn check_weight(routing_key: &[u8]) -> Result<(), ChannelError> {
    let text = String::from_utf8_lossy(routing_key);
    match text.parse::<i64>() {
        Ok(weight) if weight < 1 => Err("The binding key must be greater than 0".to_owned()),
        Ok(weight) if weight <= i64::from(u32::MAX) => Ok(()),
        _ => Err(format!("The binding key must be an integer: {text}")),
    }
    .map_err(ChannelError::Invalid)
}

/// A pattern over whole addresses: the first word stands for the topic, by its encoded name.
fn topics_pattern(routing_key: &[u8]) -> Pattern {
    let mut pattern = Pattern::from_key_pattern(routing_key);
    match pattern.levels.first_mut() {
        Some(Level::Literal(topic)) => *topic = encode_name(topic),
        Some(_) => {}
        None => pattern.levels.push(Level::Literal(Bytes::from_static(EMPTY_NAME))),
    }
    pattern
}

fn headers(arguments: Table<'_>) -> Result<Headers, ChannelError> {
    let (all, with_x) = match arguments.get(b"x-match") {
        None | Some(Value::LongStr(b"all")) => (true, false),
        Some(Value::LongStr(b"any")) => (false, false),
        Some(Value::LongStr(b"all-with-x")) => (true, true),
        Some(Value::LongStr(b"any-with-x")) => (false, true),
        Some(Value::LongStr(other)) => return Err(ChannelError::InvalidMatch(erlang_binary(other))),
        Some(other) => {
            return Err(ChannelError::InvalidMatchType {
                kind: other.type_name(),
                value: other
                    .as_integer()
                    .map_or_else(|| "undefined".to_owned(), |value| value.to_string()),
            });
        }
    };
    let mut wanted = AttributesBuilder::default();
    for (name, value) in arguments.iter().filter_map(Result::ok) {
        let is_skipped = if with_x {
            name == b"x-match"
        } else {
            name.starts_with(b"x-")
        };
        if !is_skipped {
            inbound::put_header(&mut wanted, Name::User(name), value);
        }
    }
    Ok(Headers {
        all,
        wanted: Bytes::copy_from_slice(wanted.finish().as_bytes()),
    })
}

/// What tells bindings apart besides source, matcher and destination: the routing key where the matcher
/// does not hold it, then the arguments. Empty for a plain binding.
pub fn binding_arguments(kind: ExchangeKind, routing_key: &[u8], arguments: Table<'_>) -> Bytes {
    let key = if kind == ExchangeKind::Headers {
        routing_key
    } else {
        b""
    };
    if key.is_empty() && arguments.is_empty() {
        return Bytes::new();
    }
    let mut identity = BytesMut::with_capacity(1 + key.len() + arguments.as_bytes().len());
    put_short_str(&mut identity, key);
    identity.put_slice(arguments.as_bytes());
    identity.freeze()
}

/// The exchange type's name.
pub fn exchange_type(kind: ExchangeKind) -> &'static str {
    match kind {
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Direct => "direct",
        ExchangeKind::Pattern => "topic",
        ExchangeKind::Headers => "headers",
        ExchangeKind::Hash => "x-consistent-hash",
    }
}

/// The exchange type of that name.
pub fn exchange_kind(name: &[u8]) -> Option<ExchangeKind> {
    [
        ExchangeKind::Fanout,
        ExchangeKind::Direct,
        ExchangeKind::Pattern,
        ExchangeKind::Headers,
        ExchangeKind::Hash,
    ]
    .into_iter()
    .find(|kind| exchange_type(*kind).as_bytes() == name)
    .or_else(|| (name == dedup::DEDUP_TYPE).then_some(ExchangeKind::Fanout))
}

/// RabbitMQ takes line ends out of the names it is given.
pub fn strip_line_ends(name: &[u8]) -> Cow<'_, [u8]> {
    if name.iter().any(|b| matches!(b, b'\r' | b'\n')) {
        Cow::Owned(name.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TableWriter;

    fn routed(exchange: &[u8], key: &'static str) -> (Entry, String, String) {
        let target = target(&ExchangeName::new(exchange), &Bytes::from_static(key.as_bytes()));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (target.entry, text(&target.topic), text(&target.key))
    }

    #[test]
    fn the_default_exchange_leads_straight_to_the_queue() {
        assert_eq!(routed(b"", "jobs"), (Entry::Queue, "jobs".into(), "".into()));
        assert_eq!(routed(b"", "jobs.eu"), (Entry::Queue, "jobs|2Eeu".into(), "".into()));
    }

    #[test]
    fn an_exchange_is_the_topic_of_its_name_and_the_routing_key_is_the_key() {
        assert_eq!(
            routed(b"events", "a.b"),
            (Entry::Exchange, "events".into(), "a.b".into())
        );
        assert_eq!(
            routed(b"amq.direct", ""),
            (Entry::Exchange, "amq|2Edirect".into(), "".into())
        );
    }

    #[test]
    fn the_topic_exchange_takes_the_first_word_as_the_topic() {
        assert_eq!(routed(b"amq.topic", "a.b.c"), (Entry::Topic, "a".into(), "b.c".into()));
        assert_eq!(routed(b"amq.topic", "a"), (Entry::Topic, "a".into(), "".into()));
        assert_eq!(routed(b"amq.topic", "a."), (Entry::Topic, "a".into(), "|-".into()));
        assert_eq!(routed(b"amq.topic", ""), (Entry::Topic, "|-".into(), "".into()));
        assert_eq!(
            routed(b"amq.topic", "x y.z"),
            (Entry::Topic, "x|20y".into(), "z".into())
        );
    }

    #[test]
    fn a_name_that_was_cut_is_kept_beside() {
        let long = Bytes::from(vec![b'.'; 200]);
        let target = target(&ExchangeName::new(b""), &long);
        assert_eq!(target.cut_from, Some(long));
    }

    #[test]
    fn a_binding_to_the_topic_exchange_is_a_pattern_over_whole_addresses() {
        let exchange = ExchangeName::new(TOPIC_EXCHANGE);
        let of = |key: &[u8]| match matcher(&exchange, ExchangeKind::Pattern, key, Table::default()) {
            Ok(Matcher::Pattern(pattern)) => pattern.levels,
            other => panic!("{other:?}"),
        };
        let literal = |text: &'static str| Level::Literal(Bytes::from_static(text.as_bytes()));
        assert_eq!(of(b"a b.*.#"), [literal("a|20b"), Level::One, Level::Many]);
        assert_eq!(of(b"#"), [Level::Many]);
        assert_eq!(of(b"*.x"), [Level::One, literal("x")]);
        assert_eq!(of(b""), [literal("|-")]);
    }

    #[test]
    fn headers_bindings_skip_x_arguments_unless_asked_for() {
        let wanted = |mode: &str| {
            let mut table = TableWriter::default();
            table
                .put(b"x-match", Value::LongStr(mode.as_bytes()))
                .put(b"x-flag", Value::Bool(true))
                .put(b"kind", Value::LongStr(b"report"))
                .put(b"any", Value::Void);
            let headers = headers(table.table()).expect("valid");
            let names: Vec<_> = rocketbridge_core::attributes::Iter::new(&headers.wanted)
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            (headers.all, names.len())
        };
        assert_eq!(wanted("all"), (true, 2));
        assert_eq!(wanted("any"), (false, 2));
        assert_eq!(wanted("all-with-x"), (true, 3));
        assert_eq!(wanted("any-with-x"), (false, 3));
    }

    #[test]
    fn an_unknown_x_match_is_refused_in_rabbitmqs_words() {
        let mut table = TableWriter::default();
        table.put(b"x-match", Value::LongStr(b"zz"));
        let error = headers(table.table()).expect_err("invalid");
        assert_eq!(
            error.to_string(),
            "Invalid x-match field value <<\"zz\">>; expected all, any, all-with-x, or any-with-x"
        );
    }

    #[test]
    fn plain_bindings_have_no_arguments_and_headers_bindings_keep_the_key() {
        assert_eq!(binding_arguments(ExchangeKind::Direct, b"k", Table::default()), "");
        assert_eq!(
            binding_arguments(ExchangeKind::Headers, b"k", Table::default()),
            "\x01k"
        );
    }
}
