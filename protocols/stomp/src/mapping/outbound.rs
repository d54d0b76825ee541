//! A message as STOMP subscribers see it: destination and headers.
//!
//! What a STOMP client sent comes back as it was, from the message's origin. A message of another protocol
//! is translated.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};
use memchr::memchr;
use rocketbridge_core::address::levels_from_key;
use rocketbridge_core::attributes::{Attribute, Name, Value};
use rocketbridge_core::message::{Entry, Message};

use super::inbound::shown_reply;
use super::{FORMAT, put_name, topic_destination};
use crate::codec::{Version, put_header, put_stored_headers};

/// Headers of a MESSAGE that the broker writes itself: a foreign property of that name is left out.
const RESERVED: [&[u8]; 9] = [
    b"destination",
    b"message-id",
    b"subscription",
    b"ack",
    b"content-length",
    b"redelivered",
    b"persistent",
    b"receipt",
    b"transaction",
];

/// Appends the destination and the headers of a message. `scratch` is used on the way.
pub fn put_headers(message: &Message, version: Version, scratch: &mut BytesMut, out: &mut BytesMut) {
    let (format, origin) = message.origin();
    if format == FORMAT {
        put_stored_headers(out, version, origin);
        return;
    }
    scratch.clear();
    put_destination(message, scratch);
    put_header(out, version, b"destination", scratch);
    let mut text = String::new();
    for (name, value) in message.attributes() {
        match name {
            Name::Known(attribute) => put_known(attribute, value, version, &mut text, out),
            Name::User(name) if RESERVED.contains(&name) => {}
            Name::User(name) => put_value(name, value, version, &mut text, out),
        }
    }
    if message.entry() == Entry::Native && !message.key().is_empty() {
        put_value(b"tag", Value::Text(message.key()), version, &mut text, out);
    }
}

/// Appends the destination that a message of another protocol came by.
pub fn put_destination(message: &Message, out: &mut BytesMut) {
    let topic = message.topic_name();
    match message.entry() {
        Entry::Queue => {
            out.put_slice(b"/queue/");
            put_name(&topic, out);
        }
        Entry::Exchange => {
            out.put_slice(b"/exchange/");
            put_name(&topic, out);
            if !message.key().is_empty() {
                out.put_u8(b'/');
                put_name(message.key(), out);
            }
        }
        Entry::Topic | Entry::Native => {
            out.put_slice(b"/topic/");
            put_name(&topic, out);
            if let Some(levels) = levels_from_key(message.key()) {
                out.put_u8(b'.');
                put_name(levels, out);
            }
        }
    }
}

fn put_known(attribute: Attribute, value: Value<'_>, version: Version, text: &mut String, out: &mut BytesMut) {
    let name: &[u8] = match (attribute, value) {
        (Attribute::Topic, _) => return,
        (Attribute::ReplyTo, Value::Text(reply_to)) => {
            return put_value(b"reply-to", Value::Text(&shown_reply(reply_to)), version, text, out);
        }
        (Attribute::ReplyTopic, Value::Text(levels)) => match topic_destination(levels) {
            Some(destination) => return put_value(b"reply-to", Value::Text(&destination), version, text, out),
            // No destination leads there.
            None => b"reply-topic",
        },
        (Attribute::Timestamp, Value::Uint(millis)) => {
            return put_value(b"timestamp", Value::Uint(millis / 1000), version, text, out);
        }
        // The name `message-id` is the delivery's.
        (Attribute::MessageId, _) => b"amqp-message-id",
        (Attribute::TimeToLive, _) => b"expiration",
        (Attribute::OrderingKey, _) => b"x-sharding-key",
        (Attribute::Keys, _) => b"key",
        (attribute, _) => attribute.native_name().as_bytes(),
    };
    put_value(name, value, version, text, out);
}

/// A property as text. What no header can hold (text that is not UTF-8, NUL) is left out.
fn put_value(name: &[u8], value: Value<'_>, version: Version, text: &mut String, out: &mut BytesMut) {
    text.clear();
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Null => Ok(()),
        Value::Bool(value) => write!(text, "{value}"),
        Value::Int(value) => write!(text, "{value}"),
        Value::Uint(value) | Value::Timestamp(value) => write!(text, "{value}"),
        Value::Float(value) => write!(text, "{value}"),
        Value::Text(bytes) | Value::Binary(bytes) | Value::Nested(bytes) if can_stand(bytes) => {
            if can_stand(name) && !name.is_empty() {
                put_header(out, version, name, bytes);
            }
            return;
        }
        Value::Binary(bytes) => bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")),
        Value::Text(_) | Value::Nested(_) => return,
    };
    if can_stand(name) && !name.is_empty() {
        put_header(out, version, name, text.as_bytes());
    }
}

fn can_stand(text: &[u8]) -> bool {
    memchr(0, text).is_none() && std::str::from_utf8(text).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use bytes::Bytes;
    use rocketbridge_core::attributes::AttributesBuilder;
    use rocketbridge_core::boundary::Publish;
    use rocketbridge_core::message::Format;
    use rocketbridge_core::time::Millis;

    use super::*;

    fn publish(entry: Entry, topic: &'static str, key: &'static str) -> Publish {
        Publish {
            entry,
            topic: Bytes::from_static(topic.as_bytes()),
            key: Bytes::from_static(key.as_bytes()),
            format: Format(9),
            ..Publish::default()
        }
    }

    fn headers(publish: Publish, version: Version) -> String {
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let message = Message::from_publish(&publish, host, host, Millis(1));
        let mut out = BytesMut::new();
        put_headers(&message, version, &mut BytesMut::new(), &mut out);
        String::from_utf8(out.to_vec()).expect("headers are UTF-8")
    }

    #[test]
    fn a_foreign_address_is_a_destination() {
        for (entry, topic, key, expected) in [
            (Entry::Queue, "jobs|2Eeu", "", "/queue/jobs.eu"),
            (Entry::Queue, "a|2Fb", "", "/queue/a%2Fb"),
            (Entry::Exchange, "events", "a.b", "/exchange/events/a.b"),
            (Entry::Exchange, "events", "", "/exchange/events"),
            (Entry::Topic, "a", "b.c", "/topic/a.b.c"),
            (Entry::Topic, "a", "|-", "/topic/a."),
            (Entry::Native, "orders", "x", "/topic/orders.x"),
        ] {
            let headers = headers(publish(entry, topic, key), Version::V12);
            let first = headers.lines().next().expect("a destination");
            assert_eq!(first, format!("destination:{expected}"), "{entry:?} {topic} {key}");
        }
    }

    #[test]
    fn what_stomp_sent_comes_back_unchanged_in_every_version() {
        let mut publish = publish(Entry::Topic, "a", "b");
        publish.format = FORMAT;
        publish.origin = Bytes::from_static(b"destination:/topic/a.b\nn:1\\c2\\r\\n\\\\\nplain:x\n");
        assert_eq!(
            headers(publish, Version::V12),
            "destination:/topic/a.b\nn:1\\c2\\r\\n\\\\\nplain:x\n"
        );
    }

    #[test]
    fn older_versions_get_their_own_escapes() {
        let block = b"destination:/topic/a.b\na\\cb:1\\c2\\r\\\\\nplain:x\n";
        let of = |version| {
            let mut out = BytesMut::new();
            put_stored_headers(&mut out, version, block);
            String::from_utf8(out.to_vec()).expect("headers are UTF-8")
        };
        assert_eq!(of(Version::V11), "destination:/topic/a.b\na\\cb:1\\c2\r\\\\\nplain:x\n");
        assert_eq!(of(Version::V10), "destination:/topic/a.b\nplain:x\n");
    }

    #[test]
    fn a_topic_to_reply_to_is_a_destination() {
        for (levels, expected) in [
            ("resp/me", "reply-to:/topic/resp.me"),
            ("resp/a.b", "reply-to:/topic/resp.a%2Fb"),
            ("a.b/c", "reply-topic:a.b/c"),
        ] {
            let mut builder = AttributesBuilder::default();
            builder.text(Attribute::ReplyTopic, levels.as_bytes());
            let mut publish = publish(Entry::Topic, "t", "");
            publish.attributes = builder.finish();
            assert_eq!(
                headers(publish, Version::V12),
                format!("destination:/topic/t\n{expected}\n")
            );
        }
    }

    #[test]
    fn foreign_properties_become_headers() {
        let mut builder = AttributesBuilder::default();
        builder.text(Attribute::ContentType, b"a/b");
        builder.text(Attribute::ReplyTo, b"replies");
        builder.text(Attribute::MessageId, b"m:1");
        builder.put(Name::Known(Attribute::Timestamp), Value::Uint(5999));
        builder.put(Name::Known(Attribute::TimeToLive), Value::Uint(60));
        builder.put(Name::Known(Attribute::Priority), Value::Uint(4));
        builder.text(Attribute::OrderingKey, b"shard");
        builder.put(Name::Known(Attribute::CorrelationId), Value::Binary(&[0xff, 1]));
        builder.put(Name::User(b"n"), Value::Int(-1));
        builder.put(Name::User(b"f"), Value::Float(0.5));
        builder.put(Name::User(b"t"), Value::Bool(true));
        builder.put(Name::User(b"not text"), Value::Text(&[0xff]));
        builder.put(Name::User(b"destination"), Value::Text(b"/queue/forged"));
        let mut publish = publish(Entry::Native, "T", "g");
        publish.attributes = builder.finish();
        assert_eq!(
            headers(publish, Version::V12),
            "destination:/topic/T.g\ncontent-type:a/b\nreply-to:/reply-queue/replies\namqp-message-id:m\\c1\n\
             timestamp:5\nexpiration:60\npriority:4\nx-sharding-key:shard\ncorrelation-id:ff01\nn:-1\nf:0.5\nt:true\n\
             tag:g\n"
        );
    }
}
