//! A message as AMQP consumers see it: exchange, routing key, properties.
//!
//! What an AMQP client published comes back as it was, from the message's origin, without being read. A
//! message of another protocol is translated.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::address::whole_key_of_levels;
use rocketbridge_core::attributes::{Attribute, Name, Value as Neutral};
use rocketbridge_core::history::{History, entered};
use rocketbridge_core::message::{Format, Message};
use rocketbridge_core::request::Way;

use super::inbound::ORDERING_HEADER;
use super::{FORMAT, REPLY_TOPIC, TOPIC_EXCHANGE, history};
use crate::codec::{Properties, TableWriter, Value, put_short_str};

/// The header that holds a routing key too long for AMQP.
pub const LONG_KEY_HEADER: &[u8] = b"x-routing-key";

/// The header that holds a topic to reply to which no `reply-to` of AMQP leads to.
pub const LOST_REPLY_HEADER: &[u8] = b"reply-topic";

/// Native sysFlag: the body is compressed; bits 8 to 10 say how.
const COMPRESSED: i32 = 1;

/// What stands around a body: both parts are ready to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Exchange and routing key, two short strings as they stand at the end of `basic.deliver` and
    /// `basic.return`.
    pub address: &'a [u8],
    /// Property flags and list.
    pub properties: &'a [u8],
}

/// The origin block of a message published by AMQP: exchange, routing key, properties.
pub fn origin(exchange: &[u8], routing_key: &[u8], properties: &[u8], arena: &mut BytesMut) -> Bytes {
    const BLOCK: usize = 8 * 1024;
    let size = 2 + exchange.len() + routing_key.len() + properties.len();
    if arena.capacity() - arena.len() < size {
        arena.reserve(size.max(BLOCK));
    }
    put_short_str(arena, exchange);
    put_short_str(arena, routing_key);
    arena.put_slice(properties);
    arena.split().freeze()
}

fn of_origin(origin: &[u8]) -> Option<Envelope<'_>> {
    let exchange_end = 1 + usize::from(*origin.first()?);
    let key_end = exchange_end + 1 + usize::from(*origin.get(exchange_end)?);
    let (address, properties) = origin.split_at_checked(key_end)?;
    Some(Envelope { address, properties })
}

/// The envelope of a message that came back `attempts` times. `scratch` holds it when it has to be made.
pub fn envelope<'a>(message: &'a Message, attempts: u32, scratch: &'a mut BytesMut) -> Envelope<'a> {
    let (format, origin) = message.origin();
    let history = message.history();
    if format == FORMAT
        && let Some(envelope) = of_origin(origin)
    {
        if history.is_none() && attempts == 0 {
            return envelope;
        }
        return edited(message, envelope, history.as_ref(), attempts, scratch);
    }
    scratch.clear();
    let mut headers = history::headers(None, history.as_ref(), attempts);
    put_address(message, scratch, &mut headers);
    let address_size = scratch.len();
    put_properties(message, format, scratch, &mut headers);
    let (address, properties) = scratch.split_at(address_size);
    Envelope { address, properties }
}

/// The envelope of a message that AMQP published and the broker has something to say of. One that was
/// dead-lettered has another address than it was published to, and no expiration any more.
fn edited<'a>(
    message: &Message,
    published: Envelope<'a>,
    history: Option<&History>,
    attempts: u32,
    scratch: &'a mut BytesMut,
) -> Envelope<'a> {
    let Ok(mut properties) = Properties::decode(published.properties) else {
        return published;
    };
    scratch.clear();
    let headers = history::headers(properties.headers, history, attempts);
    properties.headers = Some(headers.table());
    if history.is_some() {
        properties.expiration = None;
        let (way, key) = entered(message);
        put_entered(&way, &key, scratch);
    } else {
        scratch.extend_from_slice(published.address);
    }
    let address_size = scratch.len();
    properties.encode(scratch);
    let (address, properties) = scratch.split_at(address_size);
    Envelope { address, properties }
}

fn put_entered(way: &Way, key: &[u8], out: &mut BytesMut) {
    let exchange = match way {
        Way::Queue => b"",
        Way::Topics => TOPIC_EXCHANGE,
        Way::Exchange(name) => &name[..],
    };
    put_short_str(out, exchange);
    put_short_str(out, key);
}

fn put_address(message: &Message, out: &mut BytesMut, headers: &mut TableWriter) {
    let (way, key) = entered(message);
    put_entered(&way, &key, out);
    if key.len() > usize::from(u8::MAX) {
        headers.put(LONG_KEY_HEADER, Value::LongStr(&key));
    }
}

fn put_properties(message: &Message, format: Format, out: &mut BytesMut, headers: &mut TableWriter) {
    let mut properties = Properties {
        delivery_mode: Some(if message.is_persistent() { 2 } else { 1 }),
        ..Properties::default()
    };
    let (expiration, reply_to);
    let (mut time_to_live, mut reply_topic) = (None, None);
    for (name, value) in message.attributes() {
        let attribute = match name {
            Name::Known(attribute) => attribute,
            Name::User(name) => {
                if name.len() <= usize::from(u8::MAX) {
                    put_header(headers, name, value);
                }
                continue;
            }
        };
        let is_taken = match (attribute, value) {
            (Attribute::Topic, _) => true,
            (Attribute::OrderingKey, value) => {
                put_header(headers, ORDERING_HEADER, value);
                true
            }
            (Attribute::Timestamp, Neutral::Uint(value)) => {
                properties.timestamp = Some(value / 1000);
                true
            }
            (Attribute::TimeToLive, Neutral::Uint(value)) => {
                time_to_live = Some(value);
                true
            }
            (Attribute::ReplyTopic, Neutral::Text(levels)) => {
                reply_topic = Some(levels);
                true
            }
            (Attribute::Priority, Neutral::Uint(value)) => {
                properties.priority = Some(u8::try_from(value).unwrap_or(u8::MAX));
                true
            }
            (attribute, Neutral::Text(text) | Neutral::Binary(text)) if text.len() <= usize::from(u8::MAX) => {
                match text_property(&mut properties, attribute) {
                    Some(property) => {
                        *property = Some(text);
                        true
                    }
                    None => false,
                }
            }
            _ => false,
        };
        if !is_taken {
            put_header(headers, attribute.native_name().as_bytes(), value);
        }
    }
    if let Some(milliseconds) = time_to_live {
        expiration = milliseconds.to_string();
        properties.expiration = Some(expiration.as_bytes());
    }
    if let Some(levels) = reply_topic {
        match reply_to_topic(levels) {
            Some(text) => {
                reply_to = text;
                properties.reply_to = Some(&reply_to);
            }
            None => put_header(headers, LOST_REPLY_HEADER, Neutral::Text(levels)),
        }
    }
    if format == Format::NATIVE && properties.content_encoding.is_none() {
        properties.content_encoding = compression(message.native_sys_flag());
    }
    if !headers.table().is_empty() {
        properties.headers = Some(headers.table());
    }
    properties.encode(out);
}

/// The `reply-to` that leads to a topic; `None` when there is none, or it would be too long for AMQP.
fn reply_to_topic(levels: &[u8]) -> Option<Vec<u8>> {
    let text = [REPLY_TOPIC, &whole_key_of_levels(levels)?].concat();
    (text.len() <= usize::from(u8::MAX)).then_some(text)
}

fn text_property<'p, 'a>(properties: &'p mut Properties<'a>, attribute: Attribute) -> Option<&'p mut Option<&'a [u8]>> {
    Some(match attribute {
        Attribute::ContentType => &mut properties.content_type,
        Attribute::ContentEncoding => &mut properties.content_encoding,
        Attribute::CorrelationId => &mut properties.correlation_id,
        Attribute::ReplyTo => &mut properties.reply_to,
        Attribute::MessageId => &mut properties.message_id,
        Attribute::Type => &mut properties.kind,
        Attribute::AppId => &mut properties.app_id,
        Attribute::UserId => &mut properties.user_id,
        _ => return None,
    })
}

fn put_header(headers: &mut TableWriter, name: &[u8], value: Neutral<'_>) {
    let number;
    let value = match value {
        Neutral::Null => Value::Void,
        Neutral::Bool(value) => Value::Bool(value),
        Neutral::Int(value) => Value::Long(value),
        Neutral::Uint(value) => match i64::try_from(value) {
            Ok(value) => Value::Long(value),
            Err(_) => {
                number = value.to_string();
                Value::LongStr(number.as_bytes())
            }
        },
        Neutral::Float(value) => Value::Double(value),
        Neutral::Timestamp(milliseconds) => Value::Timestamp(milliseconds / 1000),
        Neutral::Text(text) | Neutral::Nested(text) => Value::LongStr(text),
        Neutral::Binary(bytes) => Value::Binary(bytes),
    };
    headers.put(name, value);
}

/// How a native producer compressed the body, as a content encoding.
fn compression(sys_flag: i32) -> Option<&'static [u8]> {
    if sys_flag & COMPRESSED == 0 {
        return None;
    }
    Some(match sys_flag >> 8 & 7 {
        1 => b"lz4",
        2 => b"zstd",
        // Zero is what clients before 5.0 write: zlib, which HTTP calls deflate.
        _ => b"deflate",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocketbridge_core::attributes::AttributesBuilder;
    use rocketbridge_core::boundary::Publish;
    use rocketbridge_core::message::Entry;
    use rocketbridge_core::time::Millis;
    use std::net::{Ipv4Addr, SocketAddr};

    fn message(publish: Publish) -> Message {
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        Message::from_publish(&publish, host, host, Millis(1))
    }

    fn publish(entry: Entry, topic: &'static str, key: &'static str) -> Publish {
        Publish {
            token: 0,
            entry,
            topic: Bytes::from_static(topic.as_bytes()),
            key: Bytes::from_static(key.as_bytes()),
            body: Bytes::new(),
            attributes: Default::default(),
            format: Format(9),
            origin: Bytes::new(),
            persistent: false,
            ..Publish::default()
        }
    }

    fn address_of(publish: Publish) -> Vec<u8> {
        envelope(&message(publish), 0, &mut BytesMut::new()).address.to_vec()
    }

    #[test]
    fn what_amqp_published_comes_back_unchanged() {
        let mut arena = BytesMut::new();
        let properties = b"\x80\x00\x01x";
        let mut publish = publish(Entry::Exchange, "e", "k");
        publish.format = FORMAT;
        publish.origin = origin(b"e", b"k", properties, &mut arena);
        let message = message(publish);
        let mut scratch = BytesMut::new();
        let envelope = envelope(&message, 0, &mut scratch);
        assert_eq!(
            (envelope.address, envelope.properties),
            (&b"\x01e\x01k"[..], &properties[..])
        );
    }

    #[test]
    fn a_foreign_address_becomes_an_exchange_and_a_routing_key() {
        for (entry, topic, key, expected) in [
            (Entry::Queue, "jobs|2Eeu", "", &b"\x00\x07jobs.eu"[..]),
            (Entry::Native, "orders", "tag", b"\x06orders\x03tag"),
            (Entry::Exchange, "events", "a.b", b"\x06events\x03a.b"),
            (Entry::Topic, "a", "b.c", b"\x09amq.topic\x05a.b.c"),
            (Entry::Topic, "a", "", b"\x09amq.topic\x01a"),
            (Entry::Topic, "a", "|-", b"\x09amq.topic\x02a."),
        ] {
            assert_eq!(
                address_of(publish(entry, topic, key)),
                expected,
                "{entry:?} {topic} {key}"
            );
        }
    }

    #[test]
    fn foreign_properties_become_amqp_properties_or_headers() {
        let long = [b'x'; 300];
        let mut builder = AttributesBuilder::default();
        builder.text(Attribute::ContentType, b"a/b");
        builder.text(Attribute::CorrelationId, &long);
        builder.put(Name::Known(Attribute::Timestamp), Neutral::Uint(5999));
        builder.put(Name::Known(Attribute::TimeToLive), Neutral::Uint(60));
        builder.put(Name::Known(Attribute::Priority), Neutral::Uint(999));
        builder.text(Attribute::OrderingKey, b"shard");
        builder.put(Name::User(&long), Neutral::Null);
        builder.put(Name::User(b"n"), Neutral::Int(-1));
        let mut publish = publish(Entry::Topic, "a", "b");
        publish.attributes = builder.finish();
        publish.persistent = true;
        let message = message(publish);
        let mut scratch = BytesMut::new();
        let envelope = envelope(&message, 0, &mut scratch);
        let properties = Properties::decode(envelope.properties).expect("well-formed");
        let mut headers = TableWriter::default();
        headers
            .put(b"correlation-id", Value::LongStr(&long))
            .put(ORDERING_HEADER, Value::LongStr(b"shard"))
            .put(b"n", Value::Long(-1));
        let expected = Properties {
            content_type: Some(b"a/b"),
            delivery_mode: Some(2),
            timestamp: Some(5),
            expiration: Some(b"60"),
            priority: Some(255),
            headers: Some(headers.table()),
            ..Properties::default()
        };
        assert_eq!(properties, expected);
    }

    #[test]
    fn a_topic_to_reply_to_is_a_key_of_the_default_exchange() {
        let long = format!("t/{}", "x".repeat(300));
        for (levels, expected) in [
            ("resp/me", Some("amq.topic/resp.me")),
            ("resp/me.x", Some("amq.topic/resp.me/x")),
            ("resp", Some("amq.topic/resp")),
            ("a.b/c", None),
            (&long, None),
        ] {
            let mut builder = AttributesBuilder::default();
            builder.text(Attribute::ReplyTopic, levels.as_bytes());
            let mut publish = publish(Entry::Topic, "a", "b");
            publish.attributes = builder.finish();
            let message = message(publish);
            let mut scratch = BytesMut::new();
            let envelope = envelope(&message, 0, &mut scratch);
            let properties = Properties::decode(envelope.properties).expect("well-formed");
            assert_eq!(properties.reply_to, expected.map(str::as_bytes), "{levels}");
            let header = properties.headers.and_then(|headers| headers.get(LOST_REPLY_HEADER));
            let lost = expected.is_none().then_some(Value::LongStr(levels.as_bytes()));
            assert_eq!(header, lost, "{levels}");
        }
    }

    #[test]
    fn a_key_too_long_for_amqp_is_cut_and_kept_in_a_header() {
        let key: &'static str = Box::leak("k".repeat(300).into_boxed_str());
        let message = message(publish(Entry::Native, "t", key));
        let mut scratch = BytesMut::new();
        let envelope = envelope(&message, 0, &mut scratch);
        assert_eq!(envelope.address.len(), 2 + 1 + 255);
        let properties = Properties::decode(envelope.properties).expect("well-formed");
        let headers = properties.headers.expect("headers");
        assert_eq!(headers.get(LONG_KEY_HEADER), Some(Value::LongStr(key.as_bytes())));
    }

    #[test]
    fn a_compressed_native_body_says_so() {
        assert_eq!(compression(0), None);
        assert_eq!(compression(1), Some(&b"deflate"[..]));
        assert_eq!(compression(1 | 1 << 8), Some(&b"lz4"[..]));
        assert_eq!(compression(1 | 2 << 8), Some(&b"zstd"[..]));
        assert_eq!(compression(1 | 3 << 8), Some(&b"deflate"[..]));
    }
}
