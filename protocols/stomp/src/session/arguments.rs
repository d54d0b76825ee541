//! The `x-` headers that are arguments of queues: RabbitMQ's, with the types that they have there.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::address::encode_name;
use rocketbridge_core::request::{DeadLetter, Limit, Overflow, Policy, Queue, Way};
use rocketbridge_core::time::Millis;

use crate::codec::Frame;
use crate::error_message::{Error, Text};
use crate::mapping::inbound::{boolean, number};
use crate::mapping::is_topic_exchange;

/// Longest time that may be asked for, milliseconds: ten years.
const TIME_MAX: u64 = 315_360_000_000;

/// How often a quorum queue lets a message come back unless its declarer says otherwise.
const DELIVERY_LIMIT: u32 = 20;

/// What the arguments of a queue ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub limit: Limit,
    policy: Policy,
    /// As a table of names, types and values, which is how other protocols' clients declare and compare
    /// them: a short string, the type, the value.
    pub encoded: Bytes,
}

impl Arguments {
    pub(super) fn of_frame(frame: &Frame) -> Result<Self, Error> {
        let mut arguments = Self::default();
        let mut encoded = BytesMut::new();
        for (name, value) in frame.headers().filter(|(name, _)| name.starts_with(b"x-")) {
            arguments.take(name, value, &mut encoded)?;
        }
        if let Some(key) = frame.header(b"x-dead-letter-routing-key") {
            let Some(target) = &mut arguments.policy.dead_letter else {
                return Err(invalid(
                    "x-dead-letter-routing-key",
                    key,
                    "x-dead-letter-exchange is missing",
                ));
            };
            target.key = Some(Bytes::copy_from_slice(key));
            put_text(&mut encoded, b"x-dead-letter-routing-key", key);
        }
        arguments.encoded = encoded.freeze();
        Ok(arguments)
    }

    pub(super) fn policy(&self) -> Option<Box<Policy>> {
        (self.policy != Policy::default()).then(|| Box::new(self.policy.clone()))
    }

    fn take(&mut self, name: &[u8], value: &[u8], encoded: &mut BytesMut) -> Result<(), Error> {
        let policy = &mut self.policy;
        match name {
            b"x-message-ttl" => policy.message_ttl = Some(Millis(self::time("x-message-ttl", value, 0, encoded)?)),
            b"x-expires" => policy.expires = Some(Millis(self::time("x-expires", value, 1, encoded)?)),
            b"x-max-length" => self.limit.messages = Some(count("x-max-length", value, encoded)?),
            b"x-max-length-bytes" => self.limit.bytes = Some(count("x-max-length-bytes", value, encoded)?),
            b"x-max-priority" => {
                let highest = count("x-max-priority", value, encoded)?;
                let highest = u8::try_from(highest);
                policy.priorities = highest.map_err(|_| invalid("x-max-priority", value, "a number up to 255"))?;
            }
            b"x-delivery-limit" => {
                let limit = count("x-delivery-limit", value, encoded)?;
                policy.counts_attempts = true;
                policy.delivery_limit = Some(u32::try_from(limit).unwrap_or(u32::MAX));
            }
            b"x-overflow" => {
                policy.overflow = match value {
                    b"drop-head" => Overflow::DropHead,
                    b"reject-publish" => Overflow::Reject,
                    b"reject-publish-dlx" => Overflow::RejectAndDeadLetter,
                    _ => {
                        let expected = "drop-head, reject-publish or reject-publish-dlx";
                        return Err(invalid("x-overflow", value, expected));
                    }
                };
                put_text(encoded, name, value);
            }
            b"x-dead-letter-exchange" => {
                let way = match value {
                    b"" => Way::Queue,
                    name if is_topic_exchange(name) => Way::Topics,
                    name => Way::Exchange(encode_name(&Bytes::copy_from_slice(name))),
                };
                policy.dead_letter = Some(DeadLetter { way, key: None });
                put_text(encoded, name, value);
            }
            b"x-single-active-consumer" => {
                policy.single_active =
                    boolean(value).ok_or_else(|| invalid("x-single-active-consumer", value, "true or false"))?;
                put_name(encoded, name, b't');
                encoded.put_u8(u8::from(policy.single_active));
            }
            b"x-queue-type" => {
                match value {
                    b"classic" => {}
                    b"quorum" => {
                        policy.keeps_all = true;
                        policy.counts_attempts = true;
                        policy.delivery_limit = policy.delivery_limit.or(Some(DELIVERY_LIMIT));
                    }
                    b"stream" => return Err(Error::NotSupported("queue type 'stream'".to_owned())),
                    _ => return Err(invalid("x-queue-type", value, "classic or quorum")),
                }
                put_text(encoded, name, value);
            }
            b"x-max-age"
            | b"x-stream-max-segment-size-bytes"
            | b"x-stream-filter-size-bytes"
            | b"x-stream-offset"
            | b"x-stream-filter"
            | b"x-stream-match-unfiltered" => {
                return Err(Error::NotSupported(format!("header '{}' of streams", Text::from(name))));
            }
            _ => {}
        }
        Ok(())
    }

    /// Compares with a queue that was there already what the frame named.
    pub(super) fn check(&self, queue: &Queue) -> Result<(), Error> {
        let limits = [
            ("x-max-length", self.limit.messages, queue.limit.messages),
            ("x-max-length-bytes", self.limit.bytes, queue.limit.bytes),
        ];
        let none = Policy::default();
        let current = queue.policy.as_deref().unwrap_or(&none);
        let millis = |time: Option<Millis>| time.map(|time| time.0);
        let times = [
            (
                "x-message-ttl",
                millis(self.policy.message_ttl),
                millis(current.message_ttl),
            ),
            ("x-expires", millis(self.policy.expires), millis(current.expires)),
        ];
        for (what, wanted, current) in limits.into_iter().chain(times) {
            if wanted.is_some() && wanted != current {
                let current = current.map_or_else(|| "none".to_owned(), |current| format!("'{current}'"));
                return Err(Error::Precondition(format!(
                    "inequivalent arg '{what}' for queue '{}' in vhost '/': received '{}' but current is {current}",
                    Text::from(&queue.name[..]),
                    wanted.unwrap_or_default(),
                )));
            }
        }
        let wanted = (&self.policy.overflow, self.policy.priorities, &self.policy.dead_letter);
        if (self.policy.single_active, wanted)
            != (
                current.single_active,
                (&current.overflow, current.priorities, &current.dead_letter),
            )
        {
            return Err(Error::Precondition(format!(
                "inequivalent arguments for queue '{}' in vhost '/'",
                Text::from(&queue.name[..])
            )));
        }
        Ok(())
    }
}

fn invalid(header: &'static str, value: &[u8], expected: &'static str) -> Error {
    Error::InvalidHeader {
        header,
        value: value.into(),
        expected,
    }
}

fn count(name: &'static str, value: &[u8], encoded: &mut BytesMut) -> Result<u64, Error> {
    let count = number(name, value, "a number")?;
    let signed = i64::try_from(count).map_err(|_| invalid(name, value, "a number"))?;
    put_name(encoded, name.as_bytes(), b'l');
    encoded.put_i64(signed);
    Ok(count)
}

fn time(name: &'static str, value: &[u8], min: u64, encoded: &mut BytesMut) -> Result<u64, Error> {
    let time = count(name, value, encoded)?;
    if (min..=TIME_MAX).contains(&time) {
        Ok(time)
    } else {
        Err(invalid(name, value, "milliseconds, ten years at most"))
    }
}

fn put_name(out: &mut BytesMut, name: &[u8], kind: u8) {
    out.put_u8(name.len() as u8);
    out.put_slice(name);
    out.put_u8(kind);
}

fn put_text(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put_name(out, name, b'S');
    out.put_u32(value.len() as u32);
    out.put_slice(value);
}
