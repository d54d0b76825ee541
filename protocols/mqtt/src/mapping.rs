//! MQTT's words to core's and back: topics and addresses, filters and patterns, properties and
//! attributes. Pure functions; the tables are in `MAPPING.md`.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::address::{Level, Pattern, encode_name, key_from_levels, levels_from_key, name_is_cut};
use rocketbridge_core::attributes::{Attribute, AttributesBuilder, Name, Value};
use rocketbridge_core::message::{Entry, Format, Message};
use rocketbridge_core::request::{Binding, Destination, Matcher, Source};
use rocketbridge_core::time::Millis;
use rocketbridge_session::Cursor;

use crate::codec::properties::{Properties, PropertyId, PropertyValue, put_bytes, put_number, put_user_property};
use crate::codec::text::{LEVEL, is_string, is_topic_name};
use crate::codec::{Version, put_bytes16};

/// Whose header bytes a message's origin holds: ours.
pub const FORMAT: Format = Format(2);

const LENGTH_MAX: usize = u16::MAX as usize;

// --- addresses --------------------------------------------------------------------------------

/// A topic name as core's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicAddress {
    /// Encoded topic name: the first level, literally.
    pub name: Bytes,
    /// The other levels joined by `.`, a literal `.` being `/`.
    pub key: Bytes,
    /// What the name was made of was too long for one: the message must carry it in [`Attribute::Topic`].
    pub is_cut: bool,
    /// How it enters: [`QUEUE_TOPIC`] leads straight to a queue.
    pub entry: Entry,
}

/// Begins the topic name that leads to the queue named behind it, whatever that name is: so a response topic can
/// stand for the queue that a client of another protocol waits at. No filter matches what is published there.
pub const QUEUE_TOPIC: &[u8] = b"$queue/";

/// What an address's name is made of: the first level, or the queue's name.
pub fn raw_name(topic: &[u8]) -> &[u8] {
    match topic.strip_prefix(QUEUE_TOPIC) {
        Some(queue) => queue,
        None => topic.split(|b| *b == LEVEL).next().unwrap_or_default(),
    }
}

/// The address of a topic name. The key is appended to `scratch` and split off.
pub fn address_of(topic: &Bytes, scratch: &mut BytesMut) -> TopicAddress {
    if let Some(queue) = topic.strip_prefix(QUEUE_TOPIC) {
        let name = encode_name(&topic.slice_ref(queue));
        return TopicAddress {
            is_cut: name_is_cut(&name),
            name,
            key: Bytes::new(),
            entry: Entry::Queue,
        };
    }
    let slash = topic.iter().position(|b| *b == LEVEL);
    let first = slash.map_or_else(|| topic.clone(), |at| topic.slice(..at));
    let name = encode_name(&first);
    let key = match slash {
        None => Bytes::new(),
        Some(at) => {
            scratch.put_slice(&topic[at + 1..]);
            swap_separators(scratch);
            match key_from_levels(Some(scratch)) {
                Cow::Borrowed(key) if key.len() == scratch.len() => scratch.split().freeze(),
                key => {
                    let key = Bytes::copy_from_slice(&key);
                    scratch.clear();
                    key
                }
            }
        }
    };
    TopicAddress {
        is_cut: name_is_cut(&name),
        name,
        key,
        entry: Entry::Topic,
    }
}

fn swap_separators(text: &mut [u8]) {
    for byte in text {
        *byte = match *byte {
            LEVEL => b'.',
            b'.' => LEVEL,
            other => other,
        };
    }
}

/// Appends the topic name of a message that another protocol published; `false` (with nothing
/// appended) when its address has no MQTT form.
pub fn put_topic(message: &Message, out: &mut BytesMut) -> bool {
    let start = out.len();
    let first = message.topic_name();
    if first.contains(&LEVEL) {
        return false;
    }
    out.put_slice(&first);
    if let Some(levels) = levels_from_key(message.key()) {
        out.put_u8(LEVEL);
        let at = out.len();
        out.put_slice(levels);
        swap_separators(&mut out[at..]);
    }
    let topic = &out[start..];
    if topic.len() > LENGTH_MAX || !is_topic_name(topic) {
        out.truncate(start);
        return false;
    }
    true
}

/// The pattern over addresses that a topic filter means. Copies the filter: bindings live long.
pub fn pattern_of(filter: &[u8]) -> Pattern {
    let first_len = filter.iter().position(|b| *b == LEVEL).unwrap_or(filter.len());
    let mut text = filter.to_vec();
    for byte in &mut text[first_len..] {
        if *byte == b'.' {
            *byte = LEVEL;
        }
    }
    let text = Bytes::from(text);
    let mut at = 0;
    let levels = filter
        .split(|b| *b == LEVEL)
        .enumerate()
        .map(|(index, level)| {
            let own = text.slice(at..at + level.len());
            at += level.len() + 1;
            match level {
                b"+" => Level::One,
                b"#" => Level::Many,
                _ if index == 0 => Level::Literal(encode_name(&own)),
                _ => Level::Literal(own),
            }
        })
        .collect();
    Pattern {
        levels,
        spare_dollar: true,
    }
}

/// The queue of a client's session.
pub fn queue_of(client_id: &[u8]) -> Bytes {
    Bytes::from([b"\0", client_id].concat())
}

/// The queue that the members of a shared subscription compete for.
pub fn shared_queue_of(group: &[u8], filter: &[u8]) -> Bytes {
    Bytes::from([b"\0\0", group, b"/", filter].concat())
}

/// The binding of a subscription. `cookie` does not matter for its identity.
pub fn binding_of(filter: &[u8], queue: Bytes, cookie: Bytes) -> Binding {
    Binding {
        source: Source::Everything,
        matcher: Matcher::Pattern(pattern_of(filter)),
        destination: Destination::Queue(queue),
        arguments: Bytes::new(),
        cookie,
    }
}

// --- origin -----------------------------------------------------------------------------------

/// What a message keeps of the PUBLISH it came in.
///
/// ```text
/// u8 version (4 or 5) | u8 QoS | u16 n, topic | u16 n, client identifier | properties of 5.0
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// 4 (also for MQTT 3.1) or 5.
    pub version: u8,
    /// The QoS it was published with.
    pub qos: u8,
    /// Its topic name.
    pub topic: &'a [u8],
    /// Who published it.
    pub client_id: &'a [u8],
    /// Encoded, without what belongs to the publisher's connection.
    pub properties: &'a [u8],
}

impl<'a> Origin<'a> {
    /// Reads the bytes that [`put_origin`] and [`put_forwarded`] wrote.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        Some(Self {
            version: cursor.u8().ok()?,
            qos: cursor.u8().ok()?,
            topic: cursor.bytes16().ok()?,
            client_id: cursor.bytes16().ok()?,
            properties: cursor.rest(),
        })
    }
}

/// Appends an origin without properties.
pub fn put_origin(out: &mut BytesMut, version: Version, qos: u8, topic: &[u8], client_id: &[u8]) {
    out.put_u8((version as u8).max(Version::V311 as u8));
    out.put_u8(qos);
    put_bytes16(out, topic);
    put_bytes16(out, client_id);
}

/// Appends the properties of a PUBLISH or of a will that are forwarded: all but those of the connection it
/// came over. [MQTT-3.3.2-7, MQTT-3.3.4-6] The message expiry interval comes first, so that it is found
/// quickly when it has to be counted down.
pub fn put_forwarded(out: &mut BytesMut, properties: &Properties) {
    let mut is_plain = true;
    for property in properties.iter() {
        match property.id {
            PropertyId::MessageExpiry => {
                out.put_slice(property.encoded);
                is_plain = false;
            }
            PropertyId::TopicAlias | PropertyId::SubscriptionIdentifier | PropertyId::WillDelay => is_plain = false,
            _ => {}
        }
    }
    if is_plain {
        out.put_slice(properties.as_bytes());
        return;
    }
    for property in properties.iter() {
        match property.id {
            PropertyId::MessageExpiry
            | PropertyId::TopicAlias
            | PropertyId::SubscriptionIdentifier
            | PropertyId::WillDelay => {}
            _ => out.put_slice(property.encoded),
        }
    }
}

/// The message expiry interval at the front of forwarded properties, seconds, and what is behind it.
pub fn split_expiry(properties: &[u8]) -> (Option<u32>, &[u8]) {
    match properties.split_first_chunk::<5>() {
        Some(([id, seconds @ ..], rest)) if *id == PropertyId::MessageExpiry as u8 => {
            (Some(u32::from_be_bytes(*seconds)), rest)
        }
        _ => (None, properties),
    }
}

/// What is left of a message's life after it has waited, seconds, rounded up; `None` when it is over.
/// [MQTT-3.3.2-6]
///
/// A life of 0 is over when its first second is, since seconds are what is counted: until then it reaches
/// whoever is there for it, as only what could not be passed on at once is to be deleted. (3.3.2.3.3)
pub fn seconds_left(lifetime: Millis, waited: Millis) -> Option<u32> {
    let left = lifetime.0.saturating_sub(waited.0);
    let is_over = waited.0 >= lifetime.0.max(1000);
    (!is_over).then(|| u32::try_from(left.div_ceil(1000)).unwrap_or(u32::MAX))
}

// --- properties -------------------------------------------------------------------------------

/// Adds a PUBLISH packet's properties as attributes, so that other protocols' readers see them.
pub fn put_attributes(properties: &Properties, builder: &mut AttributesBuilder) {
    for property in properties.iter() {
        match (property.id, property.value) {
            (PropertyId::PayloadFormat, PropertyValue::Number(format)) => {
                builder.put(Name::Known(Attribute::PayloadFormat), Value::Uint(u64::from(format)));
            }
            (PropertyId::MessageExpiry, PropertyValue::Number(seconds)) => {
                let millis = u64::from(seconds) * 1000;
                builder.put(Name::Known(Attribute::TimeToLive), Value::Uint(millis));
            }
            (PropertyId::ContentType, PropertyValue::Text(text)) => builder.text(Attribute::ContentType, text),
            (PropertyId::ResponseTopic, PropertyValue::Text(topic)) => match topic.strip_prefix(QUEUE_TOPIC) {
                Some(queue) => builder.text(Attribute::ReplyTo, queue),
                None => builder.text(Attribute::ReplyTopic, topic),
            },
            (PropertyId::CorrelationData, PropertyValue::Binary(data)) => {
                builder.put(Name::Known(Attribute::CorrelationId), Value::Binary(data));
            }
            (PropertyId::UserProperty, PropertyValue::Pair(name, value)) => put_user(name, value, builder),
            _ => {}
        }
    }
}

fn put_user(name: &[u8], text: &[u8], builder: &mut AttributesBuilder) {
    let (name, value) = match Attribute::from_native_name(name) {
        // Says which topic a message is on: only the broker may.
        None | Some(Attribute::Topic) => (Name::User(name), Value::Text(text)),
        Some(known) if known.is_number() => match std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
            Some(number) => (Name::Known(known), Value::Uint(number)),
            None => (Name::User(name), Value::Text(text)),
        },
        Some(known) => (Name::Known(known), Value::Text(text)),
    };
    builder.put(name, value);
}

/// Appends the properties of 5.0 that a message of another protocol gets after it has `waited`. What no
/// string can hold (text that is not UTF-8, more than 65,535 bytes) is left out.
pub fn put_foreign_properties(message: &Message, waited: Millis, out: &mut BytesMut) {
    let mut text = String::new();
    let is_native = message.origin().0 == Format::NATIVE;
    for (name, value) in message.attributes() {
        match name {
            // A native producer's is a word that both ends agreed on, as it stands.
            Name::Known(Attribute::ReplyTo) if is_native => {
                put_known(Attribute::ReplyTopic, value, waited, &mut text, out)
            }
            Name::Known(attribute) => put_known(attribute, value, waited, &mut text, out),
            Name::User(name) => put_text_property(name, value, &mut text, out),
        }
    }
}

fn put_known(attribute: Attribute, value: Value<'_>, waited: Millis, text: &mut String, out: &mut BytesMut) {
    match (attribute, value) {
        (Attribute::Topic, _) => {}
        (Attribute::ContentType, Value::Text(text)) if fits_string(text) => {
            put_bytes(out, PropertyId::ContentType, text);
        }
        (Attribute::ReplyTopic, Value::Text(topic)) if topic.len() <= LENGTH_MAX && is_topic_name(topic) => {
            put_bytes(out, PropertyId::ResponseTopic, topic);
        }
        (Attribute::ReplyTo, Value::Text(queue)) if is_queue_name(queue) => {
            put_bytes(out, PropertyId::ResponseTopic, &[QUEUE_TOPIC, queue].concat());
        }
        (Attribute::CorrelationId, Value::Text(data) | Value::Binary(data)) if data.len() <= LENGTH_MAX => {
            put_bytes(out, PropertyId::CorrelationData, data);
        }
        (Attribute::PayloadFormat, Value::Uint(format @ 0..=1)) => {
            put_number(out, PropertyId::PayloadFormat, format as u32);
        }
        (Attribute::TimeToLive, Value::Uint(millis)) => {
            if let Some(seconds) = seconds_left(Millis(millis), waited) {
                put_number(out, PropertyId::MessageExpiry, seconds);
            }
        }
        (attribute, value) => put_text_property(attribute.native_name().as_bytes(), value, text, out),
    }
}

fn put_text_property(name: &[u8], value: Value<'_>, text: &mut String, out: &mut BytesMut) {
    text.clear();
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Null => Ok(()),
        Value::Bool(value) => write!(text, "{value}"),
        Value::Int(value) => write!(text, "{value}"),
        Value::Uint(value) | Value::Timestamp(value) => write!(text, "{value}"),
        Value::Float(value) => write!(text, "{value}"),
        Value::Text(bytes) | Value::Binary(bytes) | Value::Nested(bytes) if is_string(bytes) => {
            if fits_string(name) && bytes.len() <= LENGTH_MAX {
                put_user_property(out, name, bytes);
            }
            return;
        }
        Value::Binary(bytes) => bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")),
        Value::Text(_) | Value::Nested(_) => return,
    };
    if fits_string(name) && text.len() <= LENGTH_MAX {
        put_user_property(out, name, text.as_bytes());
    }
}

/// Whether a topic name can lead to a queue of that name. One with a slash in front is no queue's, but another
/// protocol's destination.
fn is_queue_name(name: &[u8]) -> bool {
    !name.starts_with(b"/") && name.len() <= LENGTH_MAX - QUEUE_TOPIC.len() && is_topic_name(name)
}

fn fits_string(text: &[u8]) -> bool {
    text.len() <= LENGTH_MAX && is_string(text)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::codec::text::filter_matches;
    use crate::codec::{PacketType, Side, properties::Place};
    use rocketbridge_core::attributes::Attributes;
    use rocketbridge_core::boundary::Publish;

    fn address(topic: &str) -> TopicAddress {
        address_of(&Bytes::copy_from_slice(topic.as_bytes()), &mut BytesMut::new())
    }

    fn message(address: &TopicAddress, attributes: Attributes) -> Message {
        let host = SocketAddr::from(([127, 0, 0, 1], 1));
        let publish = Publish {
            token: 0,
            entry: Entry::Topic,
            topic: address.name.clone(),
            key: address.key.clone(),
            body: Bytes::new(),
            attributes,
            format: Format(1),
            origin: Bytes::new(),
            persistent: false,
            ..Publish::default()
        };
        Message::from_publish(&publish, host, host, Millis(0))
    }

    const TOPICS: [(&str, &str, &str); 12] = [
        ("devices/42/cmd", "devices", "42.cmd"),
        ("a", "a", ""),
        ("a/", "a", "|-"),
        ("a//", "a", "."),
        ("/a", "|-", "a"),
        ("/", "|-", "|-"),
        ("a.b/c.d/e", "a|2Eb", "c/d.e"),
        ("a/|-", "a", "||-"),
        ("$SYS/x", "|24SYS", "x"),
        ("é/ü", "|C3|A9", "ü"),
        ("a|b/c|d", "a|7Cb", "c|d"),
        ("%RETRY%g/x", "%RETRY%g", "x"),
    ];

    #[test]
    fn topics_and_addresses_are_one_to_one() {
        for (topic, name, key) in TOPICS {
            let address = address(topic);
            assert_eq!(
                (&address.name[..], &address.key[..]),
                (name.as_bytes(), key.as_bytes()),
                "{topic}"
            );
            assert!(!address.is_cut);
            let mut back = BytesMut::from(&b"before"[..]);
            assert!(put_topic(&message(&address, Attributes::EMPTY), &mut back));
            assert_eq!(back, format!("before{topic}"));
        }
    }

    #[test]
    fn a_topic_name_leads_to_a_queue() {
        let long = format!("$queue/{}", "q".repeat(300));
        for (topic, name) in [
            ("$queue/amq.gen-1", "amq|2Egen-1"),
            ("$queue/a/b", "a|2Fb"),
            ("$queue/", "|-"),
        ] {
            let address = address(topic);
            assert_eq!(
                (&address.name[..], &address.key[..]),
                (name.as_bytes(), &b""[..]),
                "{topic}"
            );
            assert_eq!((address.entry, address.is_cut), (Entry::Queue, false));
            assert_eq!(raw_name(topic.as_bytes()), &topic.as_bytes()["$queue/".len()..]);
        }
        assert!(address(&long).is_cut && address("$queue").entry == Entry::Topic);
        assert_eq!(
            (raw_name(b"a.b/c"), raw_name(b"$queue"), raw_name(b"")),
            (&b"a.b"[..], &b"$queue"[..], &b""[..])
        );
    }

    #[test]
    fn where_an_answer_goes_is_a_response_topic() {
        for (format, attribute, value, expected) in [
            (Format(1), Attribute::ReplyTo, "replies", Some("$queue/replies")),
            (Format(1), Attribute::ReplyTo, "a/b.c", Some("$queue/a/b.c")),
            (Format(1), Attribute::ReplyTo, "/exchange/e/k", None),
            (Format(1), Attribute::ReplyTo, "a+", None),
            (Format(1), Attribute::ReplyTopic, "resp/me", Some("resp/me")),
            (Format::NATIVE, Attribute::ReplyTo, "resp/me", Some("resp/me")),
        ] {
            let mut builder = AttributesBuilder::default();
            builder.text(attribute, value.as_bytes());
            let host = SocketAddr::from(([127, 0, 0, 1], 1));
            let mut origin = bytes::BytesMut::new();
            if format == Format::NATIVE {
                origin.extend_from_slice(format!("reply-to\u{1}{value}\u{2}").as_bytes());
            }
            let publish = Publish {
                topic: Bytes::from_static(b"t"),
                attributes: builder.finish(),
                format,
                origin: origin.freeze(),
                ..Publish::default()
            };
            let message = Message::from_publish(&publish, host, host, Millis(0));
            let mut encoded = BytesMut::new();
            put_foreign_properties(&message, Millis(0), &mut encoded);
            let properties = Properties::check(encoded.freeze(), Place::Packet(PacketType::Publish), Side::Client);
            let properties = properties.expect("valid");
            let found = properties
                .iter()
                .find_map(|property| match (property.id, property.value) {
                    (PropertyId::ResponseTopic, PropertyValue::Text(topic)) => Some(topic.to_vec()),
                    _ => None,
                });
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{attribute:?} {value}");
        }
    }

    #[test]
    fn a_cut_name_comes_back_from_its_attribute() {
        let topic = format!("{}/x", "n".repeat(300));
        let address = address(&topic);
        assert!(address.is_cut);
        let mut builder = AttributesBuilder::default();
        builder.text(Attribute::Topic, &topic.as_bytes()[..300]);
        let mut back = BytesMut::new();
        assert!(put_topic(&message(&address, builder.finish()), &mut back));
        assert_eq!(back, topic);
    }

    /// What core's matcher does with a pattern over whole addresses.
    fn pattern_matches(levels: &[Level], address: &[&[u8]]) -> bool {
        match levels.split_first() {
            None => address.is_empty(),
            Some((Level::Many, rest)) => (0..=address.len()).any(|skip| pattern_matches(rest, &address[skip..])),
            Some((level, rest)) => address.split_first().is_some_and(|(first, address)| {
                let fits = match level {
                    Level::Literal(literal) => literal == first,
                    _ => true,
                };
                fits && pattern_matches(rest, address)
            }),
        }
    }

    #[test]
    fn patterns_match_the_addresses_of_what_filters_match() {
        let filters = [
            "#",
            "+",
            "+/+",
            "a/#",
            "a/+",
            "a",
            "a/",
            "/#",
            "/+",
            "+/a",
            "a.b/#",
            "a.b/c.d/e",
            "+/c.d/+",
            "devices/+/cmd",
            "$SYS/#",
            "a/|-",
            "é/+",
        ];
        for filter in filters {
            let pattern = pattern_of(filter.as_bytes());
            assert!(pattern.spare_dollar);
            for (topic, ..) in TOPICS.into_iter().filter(|(topic, ..)| !topic.starts_with('$')) {
                let address = address(topic);
                let mut levels = vec![&address.name[..]];
                if let Some(key) = levels_from_key(&address.key) {
                    levels.extend(key.split(|b| *b == b'.'));
                }
                let expected = filter_matches(filter.as_bytes(), topic.as_bytes());
                assert_eq!(pattern_matches(&pattern.levels, &levels), expected, "{filter} {topic}");
            }
        }
        assert_eq!(
            pattern_of(b"a.b/+/c.d/#").levels,
            [
                Level::Literal(Bytes::from_static(b"a|2Eb")),
                Level::One,
                Level::Literal(Bytes::from_static(b"c/d")),
                Level::Many
            ]
        );
    }

    #[test]
    fn origins_give_back_what_was_published() {
        let mut bytes = BytesMut::new();
        put_origin(&mut bytes, Version::V5, 1, b"a/b", b"client");
        let properties = Properties::check(
            Bytes::from_static(b"\x23\0\x01\x01\x01\x0B\x05\x02\0\0\0\x09"),
            Place::Packet(PacketType::Publish),
            Side::Server,
        )
        .expect("valid");
        put_forwarded(&mut bytes, &properties);
        let origin = Origin {
            version: 5,
            qos: 1,
            topic: b"a/b",
            client_id: b"client",
            properties: b"\x02\0\0\0\x09\x01\x01",
        };
        assert_eq!(Origin::parse(&bytes), Some(origin));
        assert_eq!(Origin::parse(&bytes[..10]), None);
        bytes.clear();
        put_origin(&mut bytes, Version::V31, 0, b"t", b"");
        assert_eq!(Origin::parse(&bytes).map(|origin| origin.version), Some(4));
    }

    #[test]
    fn attributes_survive_a_way_through_mqtt() {
        let mut builder = AttributesBuilder::default();
        let entries = [
            (Name::Known(Attribute::ContentType), Value::Text(b"a/b")),
            (Name::Known(Attribute::CorrelationId), Value::Binary(b"\0\xFF")),
            (Name::Known(Attribute::ReplyTo), Value::Text(b"r")),
            (Name::Known(Attribute::MessageId), Value::Text(b"m")),
            (Name::Known(Attribute::Type), Value::Text(b"t")),
            (Name::Known(Attribute::Priority), Value::Uint(7)),
            (Name::Known(Attribute::Timestamp), Value::Uint(1_700_000_000_000)),
            (Name::Known(Attribute::TimeToLive), Value::Uint(3000)),
            (Name::Known(Attribute::Keys), Value::Text(b"k1 k2")),
            (Name::Known(Attribute::PayloadFormat), Value::Uint(1)),
            (Name::User(b"u"), Value::Text(b"v")),
        ];
        for (name, value) in entries {
            builder.put(name, value);
        }
        let mut encoded = BytesMut::new();
        put_foreign_properties(&message(&address("t"), builder.finish()), Millis(0), &mut encoded);
        let properties = Properties::check(encoded.freeze(), Place::Packet(PacketType::Publish), Side::Client);
        put_attributes(&properties.expect("valid"), &mut builder);
        assert_eq!(builder.finish().iter().collect::<Vec<_>>(), entries);
    }

    #[test]
    fn a_user_property_cannot_say_which_topic_a_message_is_on() {
        let mut builder = AttributesBuilder::default();
        put_user(b"address-topic", b"other", &mut builder);
        put_user(b"priority", b"high", &mut builder);
        assert_eq!(
            builder.finish().iter().collect::<Vec<_>>(),
            [
                (Name::User(b"address-topic"), Value::Text(b"other")),
                (Name::User(b"priority"), Value::Text(b"high"))
            ]
        );
    }
}
