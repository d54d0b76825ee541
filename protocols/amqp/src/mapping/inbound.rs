//! What a published message's content header means to core.

use bytes::{Bytes, BytesMut};
use rocketbridge_core::address::levels_of_whole_key;
use rocketbridge_core::attributes::{Attribute, Attributes, AttributesBuilder, Name, Value as Neutral};

use super::REPLY_TOPIC;
use crate::arguments::check_expiration;
use crate::codec::table::Array;
use crate::codec::{Properties, Table, Value};
use crate::reply_code::{ChannelError, ConnectionError, Failure};

/// The header that says which messages keep their order in a topic.
pub const ORDERING_HEADER: &[u8] = b"x-sharding-key";

/// The pseudo-queue of direct reply-to.
pub const REPLY_TO_QUEUE: &[u8] = b"amq.rabbitmq.reply-to";

/// Whether that is the queue of somebody's direct reply-to.
pub fn is_reply_queue(name: &[u8]) -> bool {
    name.strip_prefix(REPLY_TO_QUEUE)
        .is_some_and(|rest| rest.starts_with(b"."))
}

/// The properties with the queue of the channel's direct reply-to in place of the pseudo-queue, if they name it.
pub fn with_reply_queue(properties: &[u8], queue: &[u8]) -> Option<BytesMut> {
    let decoded = Properties::decode(properties).ok()?;
    if decoded.reply_to != Some(REPLY_TO_QUEUE) {
        return None;
    }
    let mut encoded = BytesMut::with_capacity(properties.len() + queue.len());
    let properties = Properties {
        reply_to: Some(queue),
        ..decoded
    };
    properties.encode(&mut encoded);
    Some(encoded)
}

/// What core is told about a message besides its address and body.
#[derive(Debug)]
pub struct Meaning {
    /// The properties in neutral form.
    pub attributes: Attributes,
    /// Delivery mode 2.
    pub persistent: bool,
}

/// Reads the properties of a message.
///
/// # Errors
/// 502 for malformed properties, 406 for values that RabbitMQ refuses, 540 for what is not built.
pub fn meaning(
    properties: &[u8],
    user: &[u8],
    cut_from: Option<&Bytes>,
    attributes: &mut AttributesBuilder,
) -> Result<Meaning, Failure> {
    let properties = Properties::decode(properties).map_err(syntax)?;
    let result = read(&properties, user, attributes);
    if let Some(name) = cut_from {
        attributes.text(Attribute::Topic, name);
    }
    // Also after an error: what was put must not show up in the next message.
    let attributes = attributes.finish();
    result.map(|()| Meaning {
        attributes,
        persistent: properties.delivery_mode == Some(2),
    })
}

/// The topic that a `reply-to` leads to, if it does not name a queue.
fn reply_topic(reply_to: &[u8]) -> Option<Vec<u8>> {
    levels_of_whole_key(reply_to.strip_prefix(REPLY_TOPIC)?)
}

fn syntax(error: impl std::fmt::Display) -> Failure {
    Failure::Connection(ConnectionError::Syntax(error.to_string()))
}

fn read(properties: &Properties<'_>, user: &[u8], attributes: &mut AttributesBuilder) -> Result<(), Failure> {
    if let Some(expiration) = properties.expiration {
        let millis = check_expiration(expiration).map_err(|fault| ChannelError::InvalidExpiration {
            expiration: String::from_utf8_lossy(expiration).into_owned(),
            fault,
        })?;
        attributes.put(Name::Known(Attribute::TimeToLive), Neutral::Uint(millis));
    }
    if let Some(claimed) = properties.user_id
        && claimed != user
    {
        return Err(Failure::from(ChannelError::UserId {
            claimed: String::from_utf8_lossy(claimed).into_owned(),
            user: String::from_utf8_lossy(user).into_owned(),
        }));
    }
    if properties.reply_to == Some(REPLY_TO_QUEUE) {
        return Err(Failure::from(ChannelError::NoReplyConsumer));
    }
    let mut text = |attribute, value: Option<&[u8]>| {
        if let Some(value) = value {
            attributes.text(attribute, value);
        }
    };
    text(Attribute::ContentType, properties.content_type);
    text(Attribute::ContentEncoding, properties.content_encoding);
    text(Attribute::CorrelationId, properties.correlation_id);
    match properties.reply_to.and_then(reply_topic) {
        Some(levels) => text(Attribute::ReplyTopic, Some(&levels)),
        None => text(Attribute::ReplyTo, properties.reply_to),
    }
    text(Attribute::MessageId, properties.message_id);
    text(Attribute::Type, properties.kind);
    text(Attribute::UserId, properties.user_id);
    text(Attribute::AppId, properties.app_id);
    if let Some(priority) = properties.priority {
        attributes.put(Name::Known(Attribute::Priority), Neutral::Uint(priority.into()));
    }
    if let Some(seconds) = properties.timestamp {
        attributes.put(Name::Known(Attribute::Timestamp), Neutral::Uint(milliseconds(seconds)));
    }
    properties
        .headers
        .map_or(Ok(()), |headers| read_headers(headers, attributes))
}

fn read_headers(headers: Table<'_>, attributes: &mut AttributesBuilder) -> Result<(), Failure> {
    for entry in headers.iter() {
        let (name, value) = entry.map_err(syntax)?;
        match (name, value) {
            (b"CC" | b"BCC", _) => {
                let name = String::from_utf8_lossy(name);
                return Err(Failure::not_implemented(format!(
                    "message header '{name}' is not implemented"
                )));
            }
            (ORDERING_HEADER, Value::LongStr(key)) => attributes.text(Attribute::OrderingKey, key),
            (_, Value::Table(table)) => {
                table.check().map_err(syntax)?;
                put_header(attributes, Name::User(name), value);
            }
            (_, Value::Array(array)) => {
                array.check().map_err(syntax)?;
                put_header(attributes, Name::User(name), value);
            }
            (name, value) => put_header(attributes, Name::User(name), value),
        }
    }
    Ok(())
}

fn milliseconds(seconds: u64) -> u64 {
    seconds.saturating_mul(1000)
}

/// Adds a value of a table that was checked.
pub fn put_header(attributes: &mut AttributesBuilder, name: Name<'_>, value: Value<'_>) {
    let json;
    let neutral = match value {
        Value::Bool(value) => Neutral::Bool(value),
        Value::Float(value) => Neutral::Float(value.into()),
        Value::Double(value) => Neutral::Float(value),
        Value::Decimal { scale, value } => Neutral::Float(f64::from(value) / 10f64.powi(scale.into())),
        Value::LongStr(text) => Neutral::Text(text),
        Value::Binary(bytes) => Neutral::Binary(bytes),
        Value::Timestamp(seconds) => Neutral::Timestamp(milliseconds(seconds)),
        Value::Void => Neutral::Null,
        Value::Table(_) | Value::Array(_) => {
            json = json_text(value);
            Neutral::Nested(json.as_bytes())
        }
        Value::Byte(_)
        | Value::UnsignedByte(_)
        | Value::Short(_)
        | Value::UnsignedShort(_)
        | Value::Int(_)
        | Value::UnsignedInt(_)
        | Value::Long(_)
        | Value::LongLong(_) => Neutral::Int(value.as_integer().unwrap_or_default()),
    };
    attributes.put(name, neutral);
}

/// A table or array as JSON, for readers of other protocols. Recursion ends with the depth that the
/// check of the table allows.
fn json_text(value: Value<'_>) -> String {
    let mut text = String::new();
    write_json(value, &mut text);
    text
}

fn write_json(value: Value<'_>, out: &mut String) {
    use std::fmt::Write;
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Table(table) => {
            write_table(table, out);
            Ok(())
        }
        Value::Array(array) => {
            write_array(array, out);
            Ok(())
        }
        Value::Bool(value) => write!(out, "{value}"),
        Value::Void => write!(out, "null"),
        Value::Float(value) if value.is_finite() => write!(out, "{value}"),
        Value::Double(value) if value.is_finite() => write!(out, "{value}"),
        Value::Float(_) | Value::Double(_) => write!(out, "null"),
        Value::Decimal { scale, value } => write!(out, "{}", f64::from(value) / 10f64.powi(scale.into())),
        Value::Timestamp(seconds) => write!(out, "{seconds}"),
        Value::LongStr(text) | Value::Binary(text) => {
            write_string(text, out);
            Ok(())
        }
        integer => write!(out, "{}", integer.as_integer().unwrap_or_default()),
    };
}

fn write_table(table: Table<'_>, out: &mut String) {
    out.push('{');
    for (at, (name, value)) in table.iter().filter_map(Result::ok).enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_string(name, out);
        out.push(':');
        write_json(value, out);
    }
    out.push('}');
}

fn write_array(array: Array<'_>, out: &mut String) {
    out.push('[');
    for (at, value) in array.iter().filter_map(Result::ok).enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_json(value, out);
    }
    out.push(']');
}

fn write_string(text: &[u8], out: &mut String) {
    use std::fmt::Write;
    out.push('"');
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            '\n' => out.push_str("\\n"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            character => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TableWriter;
    use bytes::BytesMut;

    fn of(properties: Properties<'_>) -> Result<Meaning, Failure> {
        let mut encoded = BytesMut::new();
        properties.encode(&mut encoded);
        meaning(&encoded, b"guest", None, &mut AttributesBuilder::default())
    }

    fn entries(properties: Properties<'_>) -> Vec<String> {
        let meaning = of(properties).expect("valid");
        meaning.attributes.iter().map(|entry| format!("{entry:?}")).collect()
    }

    #[test]
    fn properties_become_attributes() {
        let properties = Properties {
            content_type: Some(b"text/plain"),
            priority: Some(3),
            timestamp: Some(7),
            kind: Some(b"order"),
            user_id: Some(b"guest"),
            cluster_id: Some(b"kept in the origin only"),
            ..Properties::default()
        };
        let known = |attribute, value| format!("{:?}", (Name::Known(attribute), value));
        assert_eq!(
            entries(properties),
            [
                known(Attribute::ContentType, Neutral::Text(b"text/plain")),
                known(Attribute::Type, Neutral::Text(b"order")),
                known(Attribute::UserId, Neutral::Text(b"guest")),
                known(Attribute::Priority, Neutral::Uint(3)),
                known(Attribute::Timestamp, Neutral::Uint(7000)),
            ]
        );
    }

    #[test]
    fn delivery_mode_2_and_only_2_is_persistent() {
        for (delivery_mode, persistent) in [(None, false), (Some(1), false), (Some(2), true), (Some(3), false)] {
            let properties = Properties {
                delivery_mode,
                ..Properties::default()
            };
            assert_eq!(of(properties).expect("valid").persistent, persistent);
        }
    }

    #[test]
    fn headers_keep_their_types_and_nested_ones_become_json() {
        let mut inner = TableWriter::default();
        inner.put(b"a\"", Value::LongStr(b"\x01\n")).put(b"v", Value::Void);
        let mut headers = TableWriter::default();
        headers
            .put(b"b", Value::Bool(true))
            .put(b"i", Value::UnsignedByte(9))
            .put(b"x", Value::Binary(&[0]))
            .put(b"t", Value::Timestamp(2))
            .put(b"n", Value::Table(inner.table()))
            .put(ORDERING_HEADER, Value::LongStr(b"shard"));
        let properties = Properties {
            headers: Some(headers.table()),
            ..Properties::default()
        };
        let user = |name: &'static str, value| format!("{:?}", (Name::User(name.as_bytes()), value));
        assert_eq!(
            entries(properties),
            [
                user("b", Neutral::Bool(true)),
                user("i", Neutral::Int(9)),
                user("x", Neutral::Binary(&[0])),
                user("t", Neutral::Timestamp(2000)),
                user("n", Neutral::Nested(br#"{"a\"":"\u0001\n","v":null}"#)),
                format!("{:?}", (Name::Known(Attribute::OrderingKey), Neutral::Text(b"shard"))),
            ]
        );
    }

    #[test]
    fn what_rabbitmq_refuses_is_refused_in_its_words() {
        let text = |properties| of(properties).expect_err("refused").reply_text();
        let expiring = |expiration| Properties {
            expiration: Some(expiration),
            ..Properties::default()
        };
        assert_eq!(
            text(expiring(b"abc")),
            "PRECONDITION_FAILED - invalid expiration 'abc': no_integer"
        );
        let properties = Properties {
            user_id: Some(b"bob"),
            ..Properties::default()
        };
        assert_eq!(
            text(properties),
            "PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'guest'"
        );
        let mut headers = TableWriter::default();
        headers.put(b"CC", Value::LongStr(b"x"));
        let properties = Properties {
            headers: Some(headers.table()),
            ..Properties::default()
        };
        assert_eq!(
            text(properties),
            "NOT_IMPLEMENTED - message header 'CC' is not implemented"
        );
    }

    #[test]
    fn a_refused_message_leaves_nothing_for_the_next() {
        let mut builder = AttributesBuilder::default();
        let mut headers = TableWriter::default();
        headers.put(b"a", Value::Void).put(b"CC", Value::Void);
        let mut encoded = BytesMut::new();
        let properties = Properties {
            headers: Some(headers.table()),
            ..Properties::default()
        };
        properties.encode(&mut encoded);
        meaning(&encoded, b"guest", None, &mut builder).expect_err("CC");
        let next = meaning(&[0, 0], b"guest", None, &mut builder).expect("valid");
        assert_eq!(next.attributes, Attributes::EMPTY);
    }
}
