//! What the headers of a SEND mean to core.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::attributes::{Attribute, Attributes, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::Deliver;
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::DELAY_LEVELS;
use rocketbridge_core::time::Millis;

use super::Target;
use crate::codec::{Frame, put_stored_escaped};
use crate::error_message::{Error, Text};

/// What a message brings besides its address and body.
#[derive(Debug)]
pub struct Meaning {
    /// The properties in neutral form.
    pub attributes: Attributes,
    /// The headers as a STOMP subscriber reads them, the destination first, escaped as in 1.2.
    pub origin: Bytes,
    /// `persistent:true`; to a RocketMQ topic everything but `persistent:false`.
    pub persistent: bool,
    /// The tag of a message to a RocketMQ topic.
    pub tag: Option<Bytes>,
    /// When a message to a RocketMQ topic is to be delivered.
    pub deliver: Deliver,
}

/// What is known besides the frame.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Where it goes.
    pub target: &'a Target,
    /// Who is logged in.
    pub user: &'a [u8],
    /// Unix time.
    pub now: Millis,
    /// The `reply-to` that STOMP subscribers and others read, instead of the frame's.
    pub reply_to: Option<(&'a [u8], &'a [u8])>,
}

/// Room that is taken at once for the origins of many messages.
const BLOCK: usize = 8 * 1024;

/// Reads the headers of a SEND. `arena` holds what becomes the origin.
///
/// # Errors
/// For values that mean nothing, and for a `message-id`, which only the broker gives.
pub fn meaning(
    frame: &Frame,
    context: Context<'_>,
    builder: &mut AttributesBuilder,
    arena: &mut BytesMut,
) -> Result<Meaning, Error> {
    if arena.capacity() - arena.len() < BLOCK / 8 {
        arena.reserve(BLOCK);
    }
    let mut reading = Reading {
        context,
        builder,
        arena,
        persistent: None,
        tag: None,
        deliver: Deliver::Now,
    };
    put_stored_escaped(reading.arena, b"destination", &context.target.shown);
    let result = frame
        .headers()
        .try_for_each(|(name, value)| reading.header(name, value));
    if let Some(topic) = &context.target.cut_from {
        reading.builder.text(Attribute::Topic, topic);
    }
    let is_native = context.target.entry == Entry::Native;
    let (persistent, tag, deliver) = (reading.persistent.unwrap_or(is_native), reading.tag, reading.deliver);
    // Also after an error: what was put must not show up in the next message.
    let (attributes, origin) = (builder.finish(), arena.split().freeze());
    result.map(|()| Meaning {
        attributes,
        origin,
        persistent,
        tag,
        deliver,
    })
}

struct Reading<'a, 'b> {
    context: Context<'a>,
    builder: &'b mut AttributesBuilder,
    arena: &'b mut BytesMut,
    persistent: Option<bool>,
    tag: Option<Bytes>,
    deliver: Deliver,
}

impl Reading<'_, '_> {
    fn header(&mut self, name: &[u8], value: &[u8]) -> Result<(), Error> {
        match name {
            // Said of this frame or by the broker, not of the message.
            b"destination" | b"content-length" | b"receipt" | b"transaction" | b"subscription" | b"ack"
            | b"redelivered" => return Ok(()),
            b"message-id" => return Err(Error::MessageId),
            b"persistent" => {
                self.persistent = Some(boolean(value) == Some(true));
                return Ok(());
            }
            b"reply-to" => return self.reply_to(value),
            _ => {}
        }
        match name {
            b"content-type" => self.text("content-type", Attribute::ContentType, value)?,
            b"content-encoding" => self.text("content-encoding", Attribute::ContentEncoding, value)?,
            b"correlation-id" => self.text("correlation-id", Attribute::CorrelationId, value)?,
            b"amqp-message-id" => self.text("amqp-message-id", Attribute::MessageId, value)?,
            b"type" => self.text("type", Attribute::Type, value)?,
            b"app-id" => self.text("app-id", Attribute::AppId, value)?,
            b"user-id" => self.user_id(value)?,
            b"priority" => {
                let priority = number("priority", value, "a number from 0 to 255")?;
                if priority > 255 {
                    return Err(invalid("priority", value, "a number from 0 to 255"));
                }
                self.number(Attribute::Priority, priority);
            }
            b"timestamp" => {
                let seconds = number("timestamp", value, "a number of seconds")?;
                self.number(Attribute::Timestamp, seconds.saturating_mul(1000));
            }
            b"expiration" => {
                let millis = number("expiration", value, "a number of milliseconds")?;
                self.number(Attribute::TimeToLive, millis);
            }
            b"expires" => {
                // ActiveMQ's: a point in time, zero being never.
                let at = number("expires", value, "Unix milliseconds")?;
                if at > 0 {
                    self.number(Attribute::TimeToLive, at.saturating_sub(self.context.now.0));
                }
            }
            b"x-sharding-key" | b"sharding-key" | b"JMSXGroupID" => {
                self.text("x-sharding-key", Attribute::OrderingKey, value)?;
            }
            _ if self.context.target.entry == Entry::Native && self.native(name, value)? => {}
            name => self.user(name, value),
        }
        put_stored_escaped(self.arena, name, value);
        Ok(())
    }

    /// A header that only means something to a RocketMQ topic. Says whether it was one.
    fn native(&mut self, name: &[u8], value: &[u8]) -> Result<bool, Error> {
        match name {
            b"tag" => {
                is_text("tag", value)?;
                self.tag = Some(Bytes::copy_from_slice(value));
            }
            b"key" | b"keys" => self.text("key", Attribute::Keys, value)?,
            b"delay-level" => {
                let expected = "a number; levels begin with 1";
                let level = number("delay-level", value, expected)?;
                if level > 0 {
                    let index = usize::try_from(level).unwrap_or(usize::MAX).min(DELAY_LEVELS.len()) - 1;
                    self.deliver = Deliver::After(DELAY_LEVELS[index]);
                }
            }
            b"delay" => self.deliver = Deliver::After(Millis(number("delay", value, "a number of milliseconds")?)),
            b"deliver-at" => self.deliver = Deliver::At(Millis(number("deliver-at", value, "Unix milliseconds")?)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn reply_to(&mut self, value: &[u8]) -> Result<(), Error> {
        is_text("reply-to", value)?;
        let (shown, attribute) = self.context.reply_to.unwrap_or((value, value));
        match super::reply_topic(attribute) {
            Some(levels) => self.builder.text(Attribute::ReplyTopic, &levels),
            None => self.builder.text(Attribute::ReplyTo, attribute),
        }
        put_stored_escaped(self.arena, b"reply-to", shown);
        Ok(())
    }

    fn text(&mut self, header: &'static str, attribute: Attribute, value: &[u8]) -> Result<(), Error> {
        is_text(header, value)?;
        self.builder.text(attribute, value);
        Ok(())
    }

    fn number(&mut self, attribute: Attribute, value: u64) {
        self.builder.put(Name::Known(attribute), Value::Uint(value));
    }

    fn user_id(&mut self, claimed: &[u8]) -> Result<(), Error> {
        if claimed != self.context.user {
            return Err(Error::UserId {
                claimed: claimed.into(),
                user: self.context.user.into(),
            });
        }
        self.text("user-id", Attribute::UserId, claimed)
    }

    fn user(&mut self, name: &[u8], value: &[u8]) {
        let value = match std::str::from_utf8(value) {
            Ok(_) => Value::Text(value),
            Err(_) => Value::Binary(value),
        };
        self.builder.put(Name::User(name), value);
    }
}

fn is_text(header: &'static str, value: &[u8]) -> Result<(), Error> {
    std::str::from_utf8(value)
        .map(|_| ())
        .map_err(|_| Error::NotText(header))
}

fn invalid(header: &'static str, value: &[u8], expected: &'static str) -> Error {
    Error::InvalidHeader {
        header,
        value: Text::from(value),
        expected,
    }
}

/// A truth value. Its case does not count: Python's clients write `True` and `False`.
pub(crate) fn boolean(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"true") {
        Some(true)
    } else if value.eq_ignore_ascii_case(b"false") {
        Some(false)
    } else {
        None
    }
}

/// A number in decimal digits.
pub(crate) fn number(header: &'static str, value: &[u8], expected: &'static str) -> Result<u64, Error> {
    let value = value.trim_ascii();
    let digits = std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(header, value, expected))
}

/// The destination that a STOMP subscriber replies to when the message says this.
pub fn shown_reply(reply_to: &[u8]) -> Cow<'_, [u8]> {
    if reply_to.starts_with(b"/") {
        return Cow::Borrowed(reply_to);
    }
    Cow::Owned([super::REPLY, reply_to].concat())
}
