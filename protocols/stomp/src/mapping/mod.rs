//! STOMP to core and back, as pure functions. `MAPPING.md` is the same in words.
//!
//! This file turns destinations into addresses, queues and patterns. [`inbound`] reads the headers of a SEND,
//! [`outbound`] writes those of a MESSAGE.

pub mod inbound;
pub mod outbound;

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memchr;
use rocketbridge_core::address::{
    Level, Pattern, encode_name, fnv1a, key_from_levels, levels_of_whole_key, name_is_cut, whole_key_of_levels,
};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{ExchangeKind, Headers, Matcher, Source};

use crate::config::Config;
use crate::error_message::{Error, Text};

/// This protocol's number in [`Message::origin`](rocketbridge_core::message::Message::origin).
pub const FORMAT: Format = Format(3);

/// The exchange that stands for all topics.
const TOPIC_EXCHANGE: &[u8] = b"amq.topic";

/// Begins the destination of a temporary queue, and the subscription that consumes it.
pub const TEMPORARY: &[u8] = b"/temp-queue/";

/// Begins the destination that a reply to a queue is sent to.
pub const REPLY: &[u8] = b"/reply-queue/";

/// Begin the destinations of topics.
const TOPIC_DESTINATIONS: [&[u8]; 2] = [b"/topic/", b"/exchange/amq.topic/"];

/// What a destination names. Slashes in names are not escaped any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A queue that is made when it is missing.
    Queue(Bytes),
    /// A queue that must be there: `/amq/queue`, `/reply-queue`.
    ExistingQueue(Bytes),
    /// Words, separated by dots; to subscribers a pattern.
    Topic(Bytes),
    /// An exchange and a routing key; to subscribers a pattern.
    Exchange { name: Bytes, key: Bytes },
    /// This connection's own queue, by the client's word for it.
    Temporary(Bytes),
    /// A RocketMQ topic; the rest is what stood behind a question mark.
    Native { topic: Bytes, query: Bytes },
}

impl Destination {
    /// Reads a destination. Copies what it names: it is kept longer than the frame.
    ///
    /// # Errors
    /// [`Error::UnknownDestination`], [`Error::InvalidDestination`]; [`Error::NotText`] when it is not UTF-8.
    pub fn parse(text: &[u8], config: &Config) -> Result<Self, Error> {
        if std::str::from_utf8(text).is_err() {
            return Err(Error::NotText("destination"));
        }
        if let Some(rest) = text.strip_prefix(b"/queue") {
            return Ok(Self::Queue(name("queue", rest, config.slashes_in_names)?));
        }
        if let Some(rest) = text.strip_prefix(b"/topic") {
            return Ok(Self::Topic(name("topic", rest, config.slashes_in_names)?));
        }
        if let Some(rest) = text.strip_prefix(b"/exchange") {
            return exchange(rest);
        }
        if let Some(rest) = text.strip_prefix(b"/amq/queue") {
            return Ok(Self::ExistingQueue(name("amq/queue", rest, config.slashes_in_names)?));
        }
        if let Some(rest) = text.strip_prefix(REPLY) {
            return match rest {
                b"" => Err(invalid("reply-queue", b"/")),
                rest => Ok(Self::ExistingQueue(Bytes::copy_from_slice(rest))),
            };
        }
        if let Some(rest) = text.strip_prefix(b"/temp-queue") {
            return Ok(Self::Temporary(name("temp-queue", rest, config.slashes_in_names)?));
        }
        if let Some(rest) = text.strip_prefix(b"/rocketmq") {
            let (path, query) = match memchr(b'?', rest) {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &b""[..]),
            };
            return Ok(Self::Native {
                topic: name("rocketmq", path, false)?,
                query: Bytes::copy_from_slice(query),
            });
        }
        match text {
            b"" => Err(Error::UnknownDestination(text.into())),
            // RabbitMQ and ActiveMQ take a name alone for a queue.
            name if !name.contains(&b'/') => Ok(Self::Queue(unescaped(name))),
            other => Err(Error::UnknownDestination(other.into())),
        }
    }
}

fn invalid(kind: &'static str, rest: &[u8]) -> Error {
    Error::InvalidDestination {
        kind,
        rest: Text::from(rest),
    }
}

/// The one name behind a destination's type.
fn name(kind: &'static str, rest: &[u8], has_slashes: bool) -> Result<Bytes, Error> {
    match rest.split_first() {
        Some((b'/', name)) if !name.is_empty() && (has_slashes || memchr(b'/', name).is_none()) => Ok(unescaped(name)),
        _ => Err(invalid(kind, rest)),
    }
}

fn exchange(rest: &[u8]) -> Result<Destination, Error> {
    let fault = || invalid("exchange", rest);
    let parts = rest.strip_prefix(b"/").ok_or_else(fault)?;
    let (name, key) = match memchr(b'/', parts) {
        Some(at) => (&parts[..at], &parts[at + 1..]),
        None => (parts, &b""[..]),
    };
    if name.is_empty() || memchr(b'/', key).is_some() {
        return Err(fault());
    }
    Ok(Destination::Exchange {
        name: unescaped(name),
        key: unescaped(key),
    })
}

/// `%2F` is a slash, and nothing else is escaped.
fn unescaped(name: &[u8]) -> Bytes {
    if memchr(b'%', name).is_none() {
        return Bytes::copy_from_slice(name);
    }
    let mut out = BytesMut::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.first() {
        if rest.len() >= 3 && rest[..3].eq_ignore_ascii_case(b"%2F") {
            out.put_u8(b'/');
            rest = &rest[3..];
        } else {
            out.put_u8(*first);
            rest = &rest[1..];
        }
    }
    out.freeze()
}

/// Appends a name with its slashes escaped.
pub(crate) fn put_name(name: &[u8], out: &mut BytesMut) {
    for &byte in name {
        match byte {
            b'/' => out.put_slice(b"%2F"),
            byte => out.put_u8(byte),
        }
    }
}

/// Where a SEND goes. Kept for the next one, so cheap to clone.
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
    /// The destination that subscribers read.
    pub shown: Bytes,
}

impl Target {
    fn new(entry: Entry, topic: Bytes, key: Bytes, shown: Bytes) -> Self {
        let encoded = encode_name(&topic);
        Self {
            entry,
            key,
            cut_from: name_is_cut(&encoded).then_some(topic),
            topic: encoded,
            shown,
        }
    }

    /// The address of what is sent straight to a queue.
    pub fn of_queue(queue: &Bytes) -> Self {
        let mut shown = BytesMut::from(&b"/queue/"[..]);
        put_name(queue, &mut shown);
        Self::new(Entry::Queue, queue.clone(), Bytes::new(), shown.freeze())
    }

    /// The address of a destination; `None` for a temporary queue, whose name only its connection knows.
    /// `written` is the destination as the client wrote it.
    pub fn of(destination: &Destination, written: &[u8]) -> Option<Self> {
        Some(match destination {
            Destination::Temporary(_) => return None,
            Destination::Queue(name) | Destination::ExistingQueue(name) => Self::of_queue(name),
            Destination::Topic(words) => Self::of_words(words),
            Destination::Exchange { name, key } if name == TOPIC_EXCHANGE => Self::of_words(key),
            Destination::Exchange { name, key } => Self::new(
                Entry::Exchange,
                name.clone(),
                key.clone(),
                Bytes::copy_from_slice(written),
            ),
            Destination::Native { topic, .. } => {
                let mut shown = BytesMut::from(&b"/rocketmq/"[..]);
                put_name(topic, &mut shown);
                Self::new(Entry::Native, topic.clone(), Bytes::new(), shown.freeze())
            }
        })
    }

    fn of_words(words: &Bytes) -> Self {
        let mut shown = BytesMut::from(&b"/topic/"[..]);
        put_name(words, &mut shown);
        let dot = memchr(b'.', words);
        let levels = dot.map(|dot| &words[dot + 1..]);
        let key = Bytes::copy_from_slice(&key_from_levels(levels));
        let topic = words.slice(..dot.unwrap_or(words.len()));
        Self::new(Entry::Topic, topic, key, shown.freeze())
    }
}

/// Which addresses a subscription to `/topic` takes: dots separate words, `*` is one of them, `#` any
/// number. With `activemq` a last word `>` is any number too.
pub fn topic_pattern(words: &[u8], activemq: bool) -> Pattern {
    let mut pattern = Pattern::from_key_pattern(words);
    if activemq
        && let Some(last) = pattern.levels.last_mut()
        && *last == Level::Literal(Bytes::from_static(b">"))
    {
        *last = Level::Many;
    }
    if let Some(Level::Literal(topic)) = pattern.levels.first_mut() {
        *topic = encode_name(topic);
    }
    // As MQTT's: what the broker tells about itself is not asked for by a wildcard.
    pattern.spare_dollar = true;
    pattern
}

/// Which addresses a subscription to a RocketMQ topic takes: with one of the tags, or all of them.
pub fn native_patterns(topic: &Bytes, tags: Option<&[u8]>) -> Vec<Pattern> {
    let first = Level::Literal(encode_name(topic));
    let pattern = |rest: Vec<Level>| Pattern {
        levels: std::iter::once(first.clone()).chain(rest).collect(),
        spare_dollar: false,
    };
    match tags.map(<[u8]>::trim_ascii) {
        None | Some(b"" | b"*") => vec![pattern(vec![Level::Many])],
        Some(tags) => split_tags(tags)
            .map(|tag| {
                let words = rocketbridge_core::address::levels_from_key(tag);
                let words = words.into_iter().flat_map(|words| words.split(|b| *b == b'.'));
                pattern(words.map(|word| Level::Literal(Bytes::copy_from_slice(word))).collect())
            })
            .collect(),
    }
}

/// The tags of an expression `a || b`.
pub fn split_tags(expression: &[u8]) -> impl Iterator<Item = &[u8]> {
    expression
        .split(|b| *b == b'|')
        .map(<[u8]>::trim_ascii)
        .filter(|tag| !tag.is_empty())
}

/// Where the bindings of a subscription to an exchange come from, and what they match there.
pub fn exchange_binding(name: &Bytes, kind: ExchangeKind, key: &Bytes) -> (Source, Matcher) {
    let source = Source::Exchange(encode_name(name));
    let matcher = match kind {
        ExchangeKind::Fanout | ExchangeKind::Direct => Matcher::Key(key.clone()),
        // There the key is the weight of a binding.
        ExchangeKind::Hash if key.is_empty() => Matcher::Key(Bytes::from_static(b"1")),
        ExchangeKind::Hash => Matcher::Key(key.clone()),
        ExchangeKind::Pattern => Matcher::Pattern(Pattern::from_key_pattern(key)),
        // A subscription brings no headers to compare: it takes everything.
        ExchangeKind::Headers => Matcher::Headers(Headers {
            all: true,
            wanted: Bytes::new(),
        }),
    };
    (source, matcher)
}

/// Whether the exchange of that name is the one that stands for all topics.
pub fn is_topic_exchange(name: &[u8]) -> bool {
    name == TOPIC_EXCHANGE
}

/// The queue of a durable subscription: the same for everybody who brings the same destination and id.
pub fn durable_queue(destination: &[u8], id: &[u8]) -> Bytes {
    let one = [destination, b"\0", id].concat();
    let other = [id, b"\0", destination].concat();
    Bytes::from(format!("stomp-subscription-{:016x}{:016x}", fnv1a(&one), fnv1a(&other)))
}

/// What other protocols' clients read as the address to reply to.
pub fn reply_attribute<'a>(reply_to: &'a [u8], config: &Config) -> Cow<'a, [u8]> {
    match Destination::parse(reply_to, config) {
        Ok(Destination::Queue(name) | Destination::ExistingQueue(name)) if name != reply_to => {
            Cow::Owned(name.to_vec())
        }
        _ => Cow::Borrowed(reply_to),
    }
}

/// The topic that a destination to reply to is, as its levels; `None` when it is none or has no such form.
fn reply_topic(reply_to: &[u8]) -> Option<Vec<u8>> {
    let words = TOPIC_DESTINATIONS
        .iter()
        .find_map(|kind| reply_to.strip_prefix(*kind))?;
    levels_of_whole_key(&unescaped(words)).filter(|levels| !levels.is_empty())
}

/// The destination of a topic to reply to, by its levels; `None` when none leads there.
fn topic_destination(levels: &[u8]) -> Option<Vec<u8>> {
    let mut destination = BytesMut::from(TOPIC_DESTINATIONS[0]);
    put_name(&whole_key_of_levels(levels)?, &mut destination);
    Some(destination.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Destination, String> {
        Destination::parse(text.as_bytes(), &Config::default()).map_err(|error| error.to_string())
    }

    fn target(text: &str) -> (Entry, String, String, String) {
        let target = Target::of(&parsed(text).expect("valid"), text.as_bytes()).expect("it has an address");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            target.entry,
            text(&target.topic),
            text(&target.key),
            text(&target.shown),
        )
    }

    #[test]
    fn every_type_of_destination_has_its_address() {
        for (written, entry, topic, key, shown) in [
            ("/queue/jobs", Entry::Queue, "jobs", "", "/queue/jobs"),
            ("/queue/a.b", Entry::Queue, "a|2Eb", "", "/queue/a.b"),
            ("/queue/a%2Fb", Entry::Queue, "a|2Fb", "", "/queue/a%2Fb"),
            ("jobs", Entry::Queue, "jobs", "", "/queue/jobs"),
            ("/amq/queue/jobs", Entry::Queue, "jobs", "", "/queue/jobs"),
            (
                "/reply-queue/amq.gen-1/2",
                Entry::Queue,
                "amq|2Egen-1|2F2",
                "",
                "/queue/amq.gen-1%2F2",
            ),
            ("/topic/a", Entry::Topic, "a", "", "/topic/a"),
            ("/topic/a.b.c", Entry::Topic, "a", "b.c", "/topic/a.b.c"),
            ("/topic/a.", Entry::Topic, "a", "|-", "/topic/a."),
            ("/topic/a.b%2fc", Entry::Topic, "a", "b/c", "/topic/a.b%2Fc"),
            ("/exchange/E", Entry::Exchange, "E", "", "/exchange/E"),
            ("/exchange/E/k.l", Entry::Exchange, "E", "k.l", "/exchange/E/k.l"),
            ("/exchange/amq.topic/a.b", Entry::Topic, "a", "b", "/topic/a.b"),
            ("/rocketmq/T?tag=x", Entry::Native, "T", "", "/rocketmq/T"),
        ] {
            let expected = (entry, topic.to_owned(), key.to_owned(), shown.to_owned());
            assert_eq!(target(written), expected, "{written}");
        }
        assert_eq!(parsed("/temp-queue/x"), Ok(Destination::Temporary("x".into())));
    }

    #[test]
    fn faults_are_told_in_rabbitmqs_words() {
        for (written, kind, rest) in [
            ("/queue", "queue", ""),
            ("/queue/", "queue", "/"),
            ("/queue/a/b", "queue", "/a/b"),
            ("/topic/", "topic", "/"),
            ("/topic/a/b", "topic", "/a/b"),
            ("/exchange", "exchange", ""),
            ("/exchange//k", "exchange", "//k"),
            ("/exchange/e/k/x", "exchange", "/e/k/x"),
        ] {
            let text = format!("'{rest}' is not a valid {kind} destination\n");
            assert_eq!(parsed(written), Err(text), "{written}");
        }
        for written in ["", "/", "/unknown/x", "a/b"] {
            let error = Destination::parse(written.as_bytes(), &Config::default()).expect_err("unknown");
            assert_eq!(error.message(), "Unknown destination");
        }
    }

    #[test]
    fn slashes_are_part_of_names_by_option() {
        let config = Config {
            slashes_in_names: true,
            ..Config::default()
        };
        let parsed = Destination::parse(b"/queue/a/b", &config);
        assert_eq!(parsed, Ok(Destination::Queue("a/b".into())));
    }

    #[test]
    fn patterns_are_over_whole_addresses() {
        let literal = |text: &'static str| Level::Literal(Bytes::from_static(text.as_bytes()));
        assert_eq!(
            topic_pattern(b"x y.*.#", false).levels,
            [literal("x|20y"), Level::One, Level::Many]
        );
        assert_eq!(topic_pattern(b"a.>", false).levels, [literal("a"), literal(">")]);
        assert_eq!(topic_pattern(b"a.>", true).levels, [literal("a"), Level::Many]);
        assert!(topic_pattern(b"#", false).spare_dollar);
    }

    #[test]
    fn a_topic_is_taken_whole_or_by_tags() {
        let topic = Bytes::from_static(b"T");
        let levels = |tags: Option<&[u8]>| -> Vec<usize> {
            native_patterns(&topic, tags)
                .iter()
                .map(|pattern| pattern.levels.len())
                .collect()
        };
        assert_eq!(levels(None), [2]);
        assert_eq!(levels(Some(b"*")), [2]);
        assert_eq!(levels(Some(b"a || b.c")), [2, 3]);
    }

    #[test]
    fn durable_subscriptions_share_a_queue_by_destination_and_id() {
        let queue = durable_queue(b"/topic/a", b"1");
        assert_eq!(queue, durable_queue(b"/topic/a", b"1"));
        assert_ne!(queue, durable_queue(b"/topic/a", b"2"));
        assert_ne!(queue, durable_queue(b"/topic/b", b"1"));
    }

    #[test]
    fn replies_to_queues_are_read_as_queue_names() {
        let attribute = |text: &'static str| {
            String::from_utf8_lossy(&reply_attribute(text.as_bytes(), &Config::default())).into_owned()
        };
        assert_eq!(attribute("/queue/replies"), "replies");
        assert_eq!(attribute("/reply-queue/amq.gen-1"), "amq.gen-1");
        assert_eq!(attribute("/topic/a.b"), "/topic/a.b");
        assert_eq!(attribute("plain"), "plain");
    }

    #[test]
    fn replies_to_topics_are_read_as_their_levels() {
        for (destination, levels) in [
            ("/topic/resp.me", "resp/me"),
            ("/topic/a.b%2Fc", "a/b.c"),
            ("/topic/a", "a"),
        ] {
            assert_eq!(reply_topic(destination.as_bytes()).as_deref(), Some(levels.as_bytes()));
            assert_eq!(
                topic_destination(levels.as_bytes()).as_deref(),
                Some(destination.as_bytes())
            );
        }
        assert_eq!(reply_topic(b"/exchange/amq.topic/a.b").as_deref(), Some(&b"a/b"[..]));
        for other in ["/topic/", "/topic/a%2Fb.c", "/queue/a", "/exchange/e/a.b", "a"] {
            assert_eq!(reply_topic(other.as_bytes()), None, "{other}");
        }
        assert_eq!(topic_destination(b"a.b/c"), None);
    }
}
