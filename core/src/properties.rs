//! Native properties: RocketMQ's string of `name 0x01 value 0x02`, made from [`Attributes`] and read as
//! such. The one table between the two is [`Attribute::native_name`].

use std::io::Write;

use crate::attributes::{Attribute, Iter, Name, Value};

const NAME_END: u8 = 1;
const VALUE_END: u8 = 2;

/// Longest property string; its length is a signed 16-bit number in the record.
pub const PROPERTIES_MAX: usize = i16::MAX as usize;

/// Room that is kept for what the broker itself adds to a property string.
const BROKER_ROOM: usize = 512;

/// Names the properties that a native view had to leave out, separated by spaces.
pub const OMITTED: &str = "rocketbridge-omitted";

/// The native tag.
pub const TAGS: &[u8] = b"TAGS";
/// The id that the producer's client made.
pub const UNIQUE_KEY: &[u8] = b"UNIQ_KEY";

/// Set by brokers and clients for each other; other protocols' consumers do not see them.
const HIDDEN: [&[u8]; 9] = [
    TAGS,
    UNIQUE_KEY,
    b"CLUSTER",
    b"MSG_REGION",
    b"TRACE_ON",
    b"WAIT",
    b"INSTANCE_ID",
    b"MIN_OFFSET",
    b"MAX_OFFSET",
];

/// What makes a native broker or client act; a foreign user property may not be called like that.
const ACTING: [&[u8]; 17] = [
    b"DELAY",
    b"TRAN_MSG",
    b"PGROUP",
    b"REAL_TOPIC",
    b"REAL_QID",
    b"RETRY_TOPIC",
    b"ORIGIN_MESSAGE_ID",
    b"RECONSUME_TIME",
    b"MAX_RECONSUME_TIMES",
    b"POP_CK",
    b"1ST_POP_TIME",
    b"INNER_MULTI_DISPATCH",
    b"INNER_MULTI_QUEUE_OFFSET",
    b"INNER_NUM",
    b"MSG_TYPE",
    b"REPLY_TO_CLIENT",
    b"__transactionId__",
];

fn is_reserved(name: &[u8]) -> bool {
    HIDDEN.contains(&name) || ACTING.contains(&name) || name.starts_with(b"TIMER_") || name == OMITTED.as_bytes()
}

/// Walks the `(name, value)` pairs of a property string. Pairs without a name or value are skipped, as
/// RocketMQ does.
pub fn pairs(properties: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    properties.split(|b| *b == VALUE_END).filter_map(|pair| {
        let at = pair.iter().position(|b| *b == NAME_END)?;
        let (name, value) = (&pair[..at], &pair[at + 1..]);
        (!name.is_empty() && !value.is_empty()).then_some((name, value))
    })
}

/// The value of a native property.
pub fn find<'a>(properties: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    pairs(properties)
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| value)
}

/// Appends a pair to a property string.
pub fn push(properties: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if properties.last().is_some_and(|b| *b != VALUE_END) {
        properties.push(VALUE_END);
    }
    properties.extend_from_slice(name);
    properties.push(NAME_END);
    properties.extend_from_slice(value);
    properties.push(VALUE_END);
}

/// Walks a message's properties, whichever form they are stored in.
#[derive(Clone, Debug)]
pub struct AttributeIter<'a>(Form<'a>);

#[derive(Clone, Debug)]
enum Form<'a> {
    Encoded(Iter<'a>),
    Native { rest: &'a [u8], has_message_id: bool },
}

/// Kept by the broker for itself.
fn is_hidden(name: Name<'_>) -> bool {
    name == Name::Known(Attribute::History)
}

impl<'a> AttributeIter<'a> {
    pub(crate) fn encoded(iter: Iter<'a>) -> Self {
        Self(Form::Encoded(iter))
    }
}

/// Reads a native property string as attributes: the tag is the key and not among them, the unique key
/// is the message id unless there is one, and what brokers tell each other is left out.
pub fn attributes(properties: &[u8]) -> AttributeIter<'_> {
    let message_id = Attribute::MessageId.native_name().as_bytes();
    AttributeIter(Form::Native {
        rest: properties,
        has_message_id: find(properties, message_id).is_some(),
    })
}

impl<'a> Iterator for AttributeIter<'a> {
    type Item = (Name<'a>, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (rest, has_message_id) = match &mut self.0 {
            Form::Encoded(iter) => return iter.find(|(name, _)| !is_hidden(*name)),
            Form::Native { rest, has_message_id } => (rest, *has_message_id),
        };
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == VALUE_END).unwrap_or(rest.len());
            let pair = &rest[..end];
            *rest = rest.get(end + 1..).unwrap_or_default();
            let Some((name, value)) = pairs(pair).next() else {
                continue;
            };
            if name == UNIQUE_KEY && !has_message_id {
                return Some((Name::Known(Attribute::MessageId), Value::Text(value)));
            }
            if HIDDEN.contains(&name) {
                continue;
            }
            return Some(match Attribute::from_native_name(name) {
                Some(known) => (Name::Known(known), known_value(known, value)),
                None => (Name::User(name), Value::Text(value)),
            });
        }
        None
    }
}

fn known_value(attribute: Attribute, text: &[u8]) -> Value<'_> {
    let number = || std::str::from_utf8(text).ok()?.parse().ok();
    match attribute.is_number().then(number).flatten() {
        Some(number) => Value::Uint(number),
        None => Value::Text(text),
    }
}

/// Writes the native view of a foreign message's key and attributes.
///
/// Values become strings. What cannot stand in a property string (control bytes 1 and 2, reserved names,
/// more than [`PROPERTIES_MAX`] in all, the longest first) is left out and named in [`OMITTED`].
pub fn write_native(key: &[u8], attributes: Iter<'_>, properties: &mut Vec<u8>) {
    properties.clear();
    let mut omitted: Vec<&[u8]> = Vec::new();
    if !key.is_empty() {
        if is_writable(key) {
            push(properties, TAGS, key);
        } else {
            omitted.push(TAGS);
        }
    }
    let mut fields: Vec<(&[u8], usize, usize)> = Vec::new();
    for (name, value) in attributes.filter(|(name, _)| !is_hidden(*name)) {
        let name = match name {
            Name::Known(attribute) => attribute.native_name().as_bytes(),
            Name::User(b"") => continue,
            Name::User(name) => name,
        };
        let start = properties.len();
        properties.extend_from_slice(name);
        properties.push(NAME_END);
        let value_start = properties.len();
        write_value(value, properties);
        let fits = !is_reserved(name) && is_writable(name) && is_writable(&properties[value_start..]);
        if !fits {
            omitted.push(name);
        }
        if !fits || properties.len() == value_start {
            properties.truncate(start);
            continue;
        }
        properties.push(VALUE_END);
        fields.push((name, start, properties.len()));
    }
    if properties.len() > PROPERTIES_MAX - BROKER_ROOM {
        let excess = properties.len() - (PROPERTIES_MAX - BROKER_ROOM);
        drop_longest(fields, excess, &mut omitted, properties);
    }
    if !omitted.is_empty() {
        let mut names = omitted.join(&b' ');
        names.retain(|b| *b != NAME_END && *b != VALUE_END);
        names.truncate(1024.min(PROPERTIES_MAX - BROKER_ROOM - properties.len().min(PROPERTIES_MAX - BROKER_ROOM)));
        if !names.is_empty() {
            push(properties, OMITTED.as_bytes(), &names);
        }
    }
}

fn drop_longest<'a>(
    mut fields: Vec<(&'a [u8], usize, usize)>,
    excess: usize,
    omitted: &mut Vec<&'a [u8]>,
    properties: &mut Vec<u8>,
) {
    fields.sort_by_key(|(_, start, end)| std::cmp::Reverse(end - start));
    // The marker itself needs room too.
    let mut to_free = excess + 1024 + OMITTED.len() + 2;
    let mut dropped = Vec::new();
    for (name, start, end) in fields {
        if to_free == 0 {
            break;
        }
        to_free = to_free.saturating_sub(end - start);
        omitted.push(name);
        dropped.push((start, end));
    }
    dropped.sort_unstable();
    for (start, end) in dropped.into_iter().rev() {
        properties.drain(start..end);
    }
}

fn is_writable(bytes: &[u8]) -> bool {
    !bytes.iter().any(|b| *b == NAME_END || *b == VALUE_END)
}

pub(crate) fn write_value(value: Value<'_>, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = match value {
        Value::Null => Ok(()),
        Value::Bool(value) => write!(out, "{value}"),
        Value::Int(value) => write!(out, "{value}"),
        Value::Uint(value) | Value::Timestamp(value) => write!(out, "{value}"),
        Value::Float(value) => write!(out, "{value}"),
        Value::Text(bytes) | Value::Nested(bytes) => {
            out.extend_from_slice(bytes);
            Ok(())
        }
        Value::Binary(bytes) if std::str::from_utf8(bytes).is_ok() => {
            out.extend_from_slice(bytes);
            Ok(())
        }
        Value::Binary(bytes) => bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}")),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::AttributesBuilder;

    fn native(key: &[u8], entries: &[(Name<'_>, Value<'_>)]) -> Vec<u8> {
        let mut builder = AttributesBuilder::default();
        for (name, value) in entries {
            builder.put(*name, *value);
        }
        let mut properties = Vec::new();
        write_native(key, builder.finish().iter(), &mut properties);
        properties
    }

    #[test]
    fn attributes_survive_the_native_form_as_strings() {
        let entries = [
            (Name::Known(Attribute::ContentType), Value::Text(b"a/b")),
            (Name::Known(Attribute::Priority), Value::Uint(7)),
            (Name::User(b"x"), Value::Text(b"y")),
            (Name::User(b"n"), Value::Int(-1)),
        ];
        let properties = native(b"42.cmd", &entries);
        assert_eq!(find(&properties, TAGS), Some(&b"42.cmd"[..]));
        let back: Vec<_> = attributes(&properties).collect();
        assert_eq!(back[..3], entries[..3]);
        assert_eq!(back[3], (Name::User(b"n"), Value::Text(b"-1")));
    }

    #[test]
    fn what_does_not_fit_is_left_out_longest_first_and_named() {
        let long = vec![b'x'; 30_000];
        let entries = [
            (Name::User(b"long"), Value::Text(&long)),
            (Name::User(b"short"), Value::Text(b"s")),
            (Name::User(b"medium"), Value::Text(&long[..10_000])),
            (Name::User(b"ctl"), Value::Text(b"a\x02b")),
            (Name::User(b"DELAY"), Value::Text(b"3")),
        ];
        let properties = native(b"", &entries);
        assert!(properties.len() <= PROPERTIES_MAX - 200);
        assert_eq!(find(&properties, b"short"), Some(&b"s"[..]));
        assert!(find(&properties, b"medium").is_some());
        assert_eq!(find(&properties, OMITTED.as_bytes()), Some(&b"ctl DELAY long"[..]));
    }

    #[test]
    fn the_unique_key_is_the_message_id_unless_there_is_one() {
        let mut properties = Vec::new();
        push(&mut properties, UNIQUE_KEY, b"u");
        let id = Name::Known(Attribute::MessageId);
        assert_eq!(attributes(&properties).collect::<Vec<_>>(), [(id, Value::Text(b"u"))]);
        push(&mut properties, b"message-id", b"m");
        assert_eq!(attributes(&properties).collect::<Vec<_>>(), [(id, Value::Text(b"m"))]);
    }
}
