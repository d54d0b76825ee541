//! A message's properties in neutral form: well-known [`Attribute`]s and typed user properties.
//!
//! A publisher's session encodes them once with an [`AttributesBuilder`]; readers walk the block with
//! [`Attributes::iter`] without allocating. The same protocol does not need them: it gets its own
//! header bytes back from the message's origin. Layout: `store/FORMAT.md`, "Attributes".

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Reader, put_bytes};

/// Properties that more than one protocol knows.
///
/// `Timestamp` and `TimeToLive` are in milliseconds ([`Value::Uint`]), `Priority` is a small
/// [`Value::Uint`], everything else is [`Value::Text`] (or [`Value::Binary`] where not UTF-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Attribute {
    ContentType = 1,
    ContentEncoding = 2,
    CorrelationId = 3,
    /// The queue that an answer goes to, by its name.
    ReplyTo = 4,
    MessageId = 5,
    Type = 6,
    AppId = 7,
    UserId = 8,
    /// When the publisher says the message was made, Unix milliseconds.
    Timestamp = 9,
    /// How long the message may wait, milliseconds.
    TimeToLive = 10,
    Priority = 11,
    /// Messages with equal ordering keys keep their order in a topic.
    OrderingKey = 12,
    /// Search keys, separated by spaces.
    Keys = 13,
    /// The topic's name before it was cut, see [`encode_name`](crate::address::encode_name).
    Topic = 14,
    /// 1 when the body is UTF-8 text, 0 when it is not said.
    PayloadFormat = 15,
    /// Queues that gave the message up before, see [`History`](crate::history::History): always the first entry,
    /// told by [`Message::history`](crate::message::Message::history) and hidden from readers of properties.
    History = 16,
    /// The topic that an answer goes to, instead of a queue: the levels of its address, the first being the topic's
    /// name, separated by `/`; a `/` in a key is `.` there.
    ReplyTopic = 17,
}

impl Attribute {
    const ALL: [Self; 17] = [
        Self::ContentType,
        Self::ContentEncoding,
        Self::CorrelationId,
        Self::ReplyTo,
        Self::MessageId,
        Self::Type,
        Self::AppId,
        Self::UserId,
        Self::Timestamp,
        Self::TimeToLive,
        Self::Priority,
        Self::OrderingKey,
        Self::Keys,
        Self::Topic,
        Self::PayloadFormat,
        Self::History,
        Self::ReplyTopic,
    ];

    /// The attribute's name among native properties, where it stands as a string.
    pub const fn native_name(self) -> &'static str {
        match self {
            Self::ContentType => "content-type",
            Self::ContentEncoding => "content-encoding",
            Self::CorrelationId => "correlation-id",
            // Native clients tell them apart by what they agree on; what they send there names a queue.
            Self::ReplyTo | Self::ReplyTopic => "reply-to",
            Self::MessageId => "message-id",
            Self::Type => "type",
            Self::AppId => "app-id",
            Self::UserId => "user-id",
            Self::Timestamp => "timestamp",
            Self::TimeToLive => "time-to-live",
            Self::Priority => "priority",
            Self::OrderingKey => "__SHARDINGKEY",
            Self::Keys => "KEYS",
            Self::Topic => "address-topic",
            Self::PayloadFormat => "payload-format",
            Self::History => "dead-letter-history",
        }
    }

    /// Whether the value is a number.
    pub const fn is_number(self) -> bool {
        matches!(
            self,
            Self::Timestamp | Self::TimeToLive | Self::Priority | Self::PayloadFormat
        )
    }

    pub(crate) fn from_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id).checked_sub(1)?).copied()
    }

    /// The attribute of that native property name.
    pub fn from_native_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.native_name().as_bytes() == name)
    }
}

/// Who a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name<'a> {
    /// A property that protocols share.
    Known(Attribute),
    /// A user property (a header, a user property, a native property).
    User(&'a [u8]),
}

/// A property's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    /// Unix milliseconds.
    Timestamp(u64),
    /// Text; nearly always UTF-8, but not every protocol promises it.
    Text(&'a [u8]),
    Binary(&'a [u8]),
    /// A list or table, as JSON text: only its own protocol sees it in full, from the origin.
    Nested(&'a [u8]),
}

mod kind {
    pub const NULL: u8 = 0;
    pub const FALSE: u8 = 1;
    pub const TRUE: u8 = 2;
    pub const INT: u8 = 3;
    pub const UINT: u8 = 4;
    pub const FLOAT: u8 = 5;
    pub const TIMESTAMP: u8 = 6;
    pub const TEXT: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const NESTED: u8 = 9;
}

/// An encoded, immutable list of properties, in the publisher's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Bytes);

impl Attributes {
    /// No properties at all.
    pub const EMPTY: Self = Self(Bytes::new());

    /// A block that was encoded before.
    pub(crate) fn encoded(block: Bytes) -> Self {
        Self(block)
    }

    /// The encoded block.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Walks all properties.
    pub fn iter(&self) -> Iter<'_> {
        Iter::new(&self.0)
    }
}

/// Walks an encoded block of attributes. Stops at the first byte that is not one of ours.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    rest: Reader<'a>,
}

impl<'a> Iter<'a> {
    /// Walks an encoded block.
    pub fn new(block: &'a [u8]) -> Self {
        Self {
            rest: Reader::new(block),
        }
    }

    fn entry(&mut self) -> Option<(Name<'a>, Value<'a>)> {
        let at = &mut self.rest;
        let name = match at.u8()? {
            0 => {
                let length = at.u16()?;
                Name::User(at.take(usize::from(length))?)
            }
            id => Name::Known(Attribute::from_id(id)?),
        };
        let value = match at.u8()? {
            kind::NULL => Value::Null,
            kind::FALSE => Value::Bool(false),
            kind::TRUE => Value::Bool(true),
            kind::INT => Value::Int(at.u64()? as i64),
            kind::UINT => Value::Uint(at.u64()?),
            kind::FLOAT => Value::Float(f64::from_bits(at.u64()?)),
            kind::TIMESTAMP => Value::Timestamp(at.u64()?),
            kind::TEXT => Value::Text(at.slice()?),
            kind::BINARY => Value::Binary(at.slice()?),
            kind::NESTED => Value::Nested(at.slice()?),
            _ => return None,
        };
        Some((name, value))
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (Name<'a>, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entry();
        if entry.is_none() {
            self.rest = Reader::new(&[]);
        }
        entry
    }
}

/// Memory taken at once for the attributes of many messages.
const BLOCK: usize = 4096;

/// With less room than this, memory is taken before a property is put.
const ROOM: usize = 64;

/// Encodes properties. Kept by a session and used for one message after the other: [`finish`] hands
/// out what was put since the last call, and one allocation serves many messages.
///
/// [`finish`]: AttributesBuilder::finish
#[derive(Debug, Default)]
pub struct AttributesBuilder {
    block: BytesMut,
}

impl AttributesBuilder {
    /// Adds a property. A user property name is cut at 65,535 bytes.
    pub fn put(&mut self, name: Name<'_>, value: Value<'_>) {
        if self.block.capacity() - self.block.len() < ROOM {
            self.block.reserve(BLOCK);
        }
        match name {
            Name::Known(attribute) => self.block.put_u8(attribute as u8),
            Name::User(name) => {
                let name = &name[..name.len().min(usize::from(u16::MAX))];
                self.block.put_u8(0);
                self.block.put_u16_le(name.len() as u16);
                self.block.put_slice(name);
            }
        }
        match value {
            Value::Null => self.block.put_u8(kind::NULL),
            Value::Bool(value) => self.block.put_u8(if value { kind::TRUE } else { kind::FALSE }),
            Value::Int(value) => self.number(kind::INT, value as u64),
            Value::Uint(value) => self.number(kind::UINT, value),
            Value::Float(value) => self.number(kind::FLOAT, value.to_bits()),
            Value::Timestamp(value) => self.number(kind::TIMESTAMP, value),
            Value::Text(bytes) => self.bytes(kind::TEXT, bytes),
            Value::Binary(bytes) => self.bytes(kind::BINARY, bytes),
            Value::Nested(bytes) => self.bytes(kind::NESTED, bytes),
        }
    }

    /// Adds a well-known text attribute.
    pub fn text(&mut self, attribute: Attribute, text: &[u8]) {
        self.put(Name::Known(attribute), Value::Text(text));
    }

    /// What was put since the last call.
    pub fn finish(&mut self) -> Attributes {
        if self.block.is_empty() {
            return Attributes::EMPTY;
        }
        Attributes(self.block.split().freeze())
    }

    fn number(&mut self, kind: u8, value: u64) {
        self.block.put_u8(kind);
        self.block.put_u64_le(value);
    }

    fn bytes(&mut self, kind: u8, bytes: &[u8]) {
        self.block.put_u8(kind);
        put_bytes(&mut self.block, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_comes_back_in_order() {
        let entries = [
            (Name::Known(Attribute::ContentType), Value::Text(b"text/plain")),
            (Name::User(b"n"), Value::Null),
            (Name::User(b"b"), Value::Bool(true)),
            (Name::User(b""), Value::Int(-5)),
            (Name::Known(Attribute::Priority), Value::Uint(9)),
            (Name::User(b"f"), Value::Float(0.5)),
            (Name::User(b"t"), Value::Timestamp(7)),
            (Name::User(b"x"), Value::Binary(&[0, 255])),
            (Name::User(b"l"), Value::Nested(b"[1]")),
        ];
        let mut builder = AttributesBuilder::default();
        for (name, value) in entries {
            builder.put(name, value);
        }
        let attributes = builder.finish();
        assert_eq!(attributes.iter().collect::<Vec<_>>(), entries);
        assert_eq!(builder.finish(), Attributes::EMPTY);
        // Messages of earlier brokers hold them like this.
        let block = [
            &b"\x01\x07\x0a\0\0\0text/plain"[..],
            b"\0\x01\0n\0",
            b"\0\x01\0b\x02",
            b"\0\0\0\x03\xfb\xff\xff\xff\xff\xff\xff\xff",
            b"\x0b\x04\x09\0\0\0\0\0\0\0",
            b"\0\x01\0f\x05\0\0\0\0\0\0\xe0\x3f",
            b"\0\x01\0t\x06\x07\0\0\0\0\0\0\0",
            b"\0\x01\0x\x08\x02\0\0\0\0\xff",
            b"\0\x01\0l\x09\x03\0\0\0[1]",
        ];
        assert_eq!(attributes.as_bytes(), block.concat());
        for cut in 0..attributes.as_bytes().len() {
            assert!(Iter::new(&attributes.as_bytes()[..cut]).count() <= entries.len());
        }
    }
}
