//! Arguments (`x-...`) of queues, exchanges and consumers: which there are, how each is checked, and
//! whether what it asks for is built.
//!
//! [`QUEUE_ARGUMENTS`] is the one list. Checks and texts are RabbitMQ's (`rabbit_amqqueue`). What an
//! argument asks for and this release cannot do is refused by name; nothing is accepted and ignored that
//! RabbitMQ would act on.

use bytes::Bytes;
use rocketbridge_core::attributes::Attribute;
use rocketbridge_core::request::{ExchangeKind, HashOn, Limit, Way};

use crate::codec::{Table, Value};
use crate::mapping::way;
use crate::reply_code::{ChannelError, Failure, Resource};

/// Longest TTL and expiry in milliseconds: ten years.
const EXPIRY_MAX: i64 = 315_360_000_000;

/// Most levels that `x-max-priority` may ask for.
const PRIORITY_MAX: i64 = 255;

/// What becomes of an argument whose value is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Done, or without effect in RabbitMQ too.
    Built,
    /// Not built: refused with 540, unless the value asks for nothing.
    Refused,
    /// Belongs to a queue type that this broker does not have; RabbitMQ refuses it for classic queues.
    OtherType,
}

/// One argument.
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// What is wrong with a value, in RabbitMQ's words.
    pub check: fn(Value<'_>, Table<'_>) -> Result<(), String>,
    /// Whether the value asks for something at all.
    pub asks: fn(Value<'_>) -> bool,
    /// What becomes of it then.
    pub support: Support,
}

const fn argument(
    name: &'static str,
    check: fn(Value<'_>, Table<'_>) -> Result<(), String>,
    asks: fn(Value<'_>) -> bool,
    support: Support,
) -> Argument {
    Argument {
        name,
        check,
        asks,
        support,
    }
}

/// Every queue argument that RabbitMQ knows. To build one, make its row `Built`.
pub const QUEUE_ARGUMENTS: &[Argument] = &[
    argument("x-queue-type", queue_type, is_other_type, Support::Refused),
    argument("x-expires", expires, always, Support::Refused),
    argument("x-message-ttl", message_ttl, always, Support::Refused),
    argument("x-dead-letter-exchange", text, always, Support::Refused),
    argument("x-dead-letter-routing-key", dead_letter_key, always, Support::Refused),
    argument("x-max-length", not_negative, always, Support::Built),
    argument("x-max-length-bytes", not_negative, always, Support::Built),
    argument("x-max-priority", max_priority, is_not_zero, Support::Refused),
    argument("x-overflow", overflow, is_rejecting, Support::Refused),
    argument("x-queue-mode", anything, always, Support::Built),
    argument("x-queue-version", queue_version, always, Support::Built),
    argument("x-single-active-consumer", boolean, is_true, Support::Refused),
    argument("x-queue-leader-locator", leader_locator, always, Support::Built),
    argument("x-queue-master-locator", anything, always, Support::Built),
    argument("x-delivery-limit", anything, always, Support::Refused),
    argument("x-dead-letter-strategy", anything, always, Support::OtherType),
    argument("x-max-in-memory-length", anything, always, Support::OtherType),
    argument("x-max-in-memory-bytes", anything, always, Support::OtherType),
    argument("x-consumer-timeout", anything, always, Support::OtherType),
    argument("x-consumer-disconnected-timeout", anything, always, Support::OtherType),
    argument("x-quorum-initial-group-size", anything, always, Support::OtherType),
    argument("x-quorum-target-group-size", anything, always, Support::OtherType),
    argument("x-initial-cluster-size", anything, always, Support::OtherType),
    argument("x-max-age", anything, always, Support::OtherType),
    argument("x-stream-max-segment-size-bytes", anything, always, Support::OtherType),
    argument("x-stream-filter-size-bytes", anything, always, Support::OtherType),
];

/// Checks the arguments of a queue that is to be made.
///
/// # Errors
/// 406 for a bad value, 540 for what is not built.
pub fn check_queue(name: &[u8], arguments: Table<'_>) -> Result<Limit, Failure> {
    for argument in QUEUE_ARGUMENTS {
        let Some(value) = arguments.get(argument.name.as_bytes()) else {
            continue;
        };
        if argument.support == Support::OtherType {
            return Err(Failure::from(ChannelError::OtherQueueType {
                argument: argument.name.to_owned(),
                resource: Resource::queue(name),
            }));
        }
        (argument.check)(value, arguments).map_err(|fault| ChannelError::InvalidArgument {
            argument: argument.name,
            resource: Resource::queue(name),
            fault,
        })?;
        if argument.support == Support::Refused && (argument.asks)(value) {
            return Err(Failure::not_implemented(format!(
                "queue argument '{}' is not implemented",
                argument.name
            )));
        }
    }
    Ok(Limit {
        messages: limit(arguments, "x-max-length")?,
        bytes: limit(arguments, "x-max-length-bytes")?,
    })
}

/// Core's zero is "no limit"; AMQP's is a queue that only serves consumers who are waiting.
fn limit(arguments: Table<'_>, name: &str) -> Result<Option<u64>, Failure> {
    match arguments.get(name.as_bytes()).and_then(|value| value.as_integer()) {
        None => Ok(None),
        Some(0) => Err(Failure::not_implemented(format!(
            "queue argument '{name}' of 0 is not implemented"
        ))),
        Some(limit) => Ok(Some(limit.unsigned_abs())),
    }
}

/// Checks the arguments of a queue that is there already against those it was made with.
///
/// # Errors
/// 406 naming the first argument that differs.
pub fn check_queue_equivalence(name: &[u8], current: Table<'_>, received: Table<'_>) -> Result<(), ChannelError> {
    QUEUE_ARGUMENTS
        .iter()
        .filter(|argument| argument.support != Support::OtherType)
        .try_for_each(|argument| equivalent(Resource::queue(name), argument.name, current, received))
}

fn equivalent(
    resource: Resource,
    argument: &'static str,
    current: Table<'_>,
    received: Table<'_>,
) -> Result<(), ChannelError> {
    let wanted = received.get(argument.as_bytes());
    let existing = current.get(argument.as_bytes());
    let (received, current) = match (wanted, existing) {
        (None, None) => return Ok(()),
        (Some(value), None) | (None, Some(value))
            if argument == "x-queue-type" && matches!(value, Value::LongStr(b"classic" | b"" | b"undefined")) =>
        {
            return Ok(());
        }
        (Some(wanted), Some(existing)) if same(wanted, existing) => return Ok(()),
        (Some(wanted), Some(existing)) => (quoted(wanted), quoted(existing)),
        (wanted, existing) => (described(wanted), described(existing)),
    };
    Err(ChannelError::Inequivalent {
        argument: argument.to_owned(),
        resource,
        received,
        current,
    })
}

/// Integers of all widths are one type to RabbitMQ.
fn same(one: Value<'_>, other: Value<'_>) -> bool {
    match (one.as_integer(), other.as_integer()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

fn plain(value: Value<'_>) -> String {
    match value {
        Value::LongStr(text) | Value::Binary(text) => String::from_utf8_lossy(text).into_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Timestamp(seconds) => seconds.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Double(value) => value.to_string(),
        Value::Decimal { scale, value } => format!("{{{scale},{value}}}"),
        Value::Void => "undefined".to_owned(),
        Value::Table(_) | Value::Array(_) => "[...]".to_owned(),
        value => value.as_integer().unwrap_or_default().to_string(),
    }
}

fn quoted(value: Value<'_>) -> String {
    format!("'{}'", plain(value))
}

fn described(value: Option<Value<'_>>) -> String {
    match value {
        None => "none".to_owned(),
        Some(value) => format!("the value '{}' of type '{}'", plain(value), value.type_name()),
    }
}

/// The exchange argument that names where unrouted messages go.
pub const ALTERNATE: &str = "alternate-exchange";

/// What the arguments of an exchange ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExchangeArguments {
    /// Where messages go that no binding takes.
    pub alternate: Option<Way>,
    /// What an exchange of type `x-consistent-hash` hashes.
    pub hash_on: HashOn,
}

/// Checks the arguments of an exchange.
///
/// # Errors
/// 406 for a bad value.
pub fn check_exchange(
    name: &[u8],
    kind: ExchangeKind,
    arguments: Table<'_>,
) -> Result<ExchangeArguments, ChannelError> {
    let alternate = match arguments.get(ALTERNATE.as_bytes()) {
        None => None,
        Some(Value::LongStr(exchange)) => Some(way(exchange)),
        Some(value) => {
            return Err(ChannelError::InvalidArgumentType {
                kind: value.type_name(),
                argument: ALTERNATE,
                resource: Resource::exchange(name),
            });
        }
    };
    let hash_on = match kind {
        ExchangeKind::Hash => hash_on(arguments)?,
        _ => HashOn::Key,
    };
    Ok(ExchangeArguments { alternate, hash_on })
}

/// The arguments of RabbitMQ's plug-in, and LavinMQ's name for the first.
fn hash_on(arguments: Table<'_>) -> Result<HashOn, ChannelError> {
    let get = |name: &str| arguments.get(name.as_bytes());
    let header = get("hash-header").or_else(|| get("x-hash-on"));
    match (header, get("hash-property")) {
        (None, None) => Ok(HashOn::Key),
        (Some(Value::LongStr(header)), None) => Ok(HashOn::Property(Bytes::copy_from_slice(header))),
        (None, Some(Value::LongStr(b"message_id"))) => Ok(HashOn::Attribute(Attribute::MessageId)),
        (None, Some(Value::LongStr(b"correlation_id"))) => Ok(HashOn::Attribute(Attribute::CorrelationId)),
        (None, Some(Value::LongStr(b"timestamp"))) => Ok(HashOn::Attribute(Attribute::Timestamp)),
        (None, Some(value)) => Err(ChannelError::Invalid(format!("Unsupported property: {}", plain(value)))),
        (Some(value), None) => Err(ChannelError::Invalid(format!("Unsupported header: {}", plain(value)))),
        (Some(_), Some(_)) => Err(ChannelError::Invalid(
            "hash-header and hash-property are mutually exclusive".to_owned(),
        )),
    }
}

/// Checks an exchange's arguments against those it was made with.
///
/// # Errors
/// 406 when the alternate exchange differs: the only argument that RabbitMQ compares.
pub fn check_exchange_equivalence(name: &[u8], current: Table<'_>, received: Table<'_>) -> Result<(), ChannelError> {
    equivalent(Resource::exchange(name), ALTERNATE, current, received)
}

/// Checks the arguments of a consumer of a classic queue.
///
/// # Errors
/// 406 for a bad value or another queue type's argument, 540 for what is not built.
pub fn check_consumer(queue: &[u8], arguments: Table<'_>) -> Result<(), Failure> {
    const PRIORITY: &str = "x-priority";
    for other in [
        "x-consumer-timeout",
        "x-stream-offset",
        "x-stream-filter",
        "x-stream-match-unfiltered",
    ] {
        if arguments.get(other.as_bytes()).is_some() {
            return Err(Failure::from(ChannelError::OtherQueueType {
                argument: other.to_owned(),
                resource: Resource::queue(queue),
            }));
        }
    }
    let Some(value) = arguments.get(PRIORITY.as_bytes()) else {
        return Ok(());
    };
    integer(value, arguments).map_err(|fault| ChannelError::InvalidArgument {
        argument: PRIORITY,
        resource: Resource::queue(queue),
        fault,
    })?;
    if is_not_zero(value) {
        return Err(Failure::not_implemented(format!(
            "consumer argument '{PRIORITY}' is not implemented"
        )));
    }
    Ok(())
}

/// Checks the text of an `expiration` property and gives its milliseconds.
///
/// # Errors
/// What is wrong with it, in RabbitMQ's words.
pub fn check_expiration(expiration: &[u8]) -> Result<u64, String> {
    let digits_from = usize::from(matches!(expiration.first(), Some(b'-' | b'+')));
    let digits = expiration[digits_from..]
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count();
    if digits == 0 {
        return Err("no_integer".to_owned());
    }
    let (number, rest) = expiration.split_at(digits_from + digits);
    if !rest.is_empty() {
        return Err(format!("{{leftover_string,{:?}}}", String::from_utf8_lossy(rest)));
    }
    let number = String::from_utf8_lossy(number);
    match number.parse::<i64>() {
        Ok(value) if value < 0 => Err(format!("{{value_negative,{value}}}")),
        Ok(value) if value <= EXPIRY_MAX => Ok(value as u64),
        _ if number.starts_with('-') => Err(format!("{{value_negative,{number}}}")),
        _ => Err(format!("{{value_too_large,{number}}}")),
    }
}

// --- whether a value asks for something -----------------------------------------------------------

fn always(_: Value<'_>) -> bool {
    true
}

fn is_not_zero(value: Value<'_>) -> bool {
    value.as_integer() != Some(0)
}

fn is_true(value: Value<'_>) -> bool {
    value == Value::Bool(true)
}

fn is_rejecting(value: Value<'_>) -> bool {
    value != Value::LongStr(b"drop-head")
}

fn is_other_type(value: Value<'_>) -> bool {
    matches!(value, Value::LongStr(b"quorum" | b"stream"))
}

// --- checks ----------------------------------------------------------------------------------------

fn anything(_: Value<'_>, _: Table<'_>) -> Result<(), String> {
    Ok(())
}

fn unacceptable(value: Value<'_>) -> String {
    format!("{{unacceptable_type,{}}}", value.type_name())
}

fn number(value: Value<'_>) -> Result<i64, String> {
    value
        .as_integer()
        .ok_or_else(|| format!("\"expected integer, got {}\"", value.type_name()))
}

fn integer(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    number(value).map(|_| ())
}

fn not_negative(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match number(value)? {
        value if value < 0 => Err(format!("{{value_negative,{value}}}")),
        _ => Ok(()),
    }
}

fn message_ttl(value: Value<'_>, arguments: Table<'_>) -> Result<(), String> {
    not_negative(value, arguments)?;
    match number(value)? {
        value if value > EXPIRY_MAX => Err(format!("{{value_too_large,{value}}}")),
        _ => Ok(()),
    }
}

fn expires(value: Value<'_>, arguments: Table<'_>) -> Result<(), String> {
    match number(value)? {
        0 => Err("{value_zero,0}".to_owned()),
        _ => message_ttl(value, arguments),
    }
}

fn max_priority(value: Value<'_>, arguments: Table<'_>) -> Result<(), String> {
    not_negative(value, arguments)?;
    match number(value)? {
        value if value > PRIORITY_MAX => Err(format!("{{max_value_exceeded,{value}}}")),
        _ => Ok(()),
    }
}

fn queue_version(value: Value<'_>, arguments: Table<'_>) -> Result<(), String> {
    not_negative(value, arguments)?;
    match number(value)? {
        2 => Ok(()),
        value => Err(format!("\"unsupported queue version '{value}'\"")),
    }
}

fn text(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match value {
        Value::LongStr(_) => Ok(()),
        value => Err(unacceptable(value)),
    }
}

fn dead_letter_key(value: Value<'_>, arguments: Table<'_>) -> Result<(), String> {
    text(value, arguments)?;
    match arguments.get(b"x-dead-letter-exchange") {
        Some(_) => Ok(()),
        None => Err("routing_key_but_no_dlx_defined".to_owned()),
    }
}

fn boolean(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match value {
        Value::Bool(_) => Ok(()),
        value => Err(unacceptable(value)),
    }
}

fn overflow(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match value {
        Value::LongStr(b"drop-head" | b"reject-publish" | b"reject-publish-dlx") => Ok(()),
        Value::LongStr(_) => Err("invalid_overflow".to_owned()),
        value => Err(unacceptable(value)),
    }
}

fn leader_locator(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match value {
        Value::LongStr(b"client-local" | b"balanced" | b"random" | b"least-leaders" | b"min-masters") => Ok(()),
        Value::LongStr(_) => Err("invalid_queue_locator_arg".to_owned()),
        value => Err(unacceptable(value)),
    }
}

fn queue_type(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match value {
        Value::LongStr(b"classic" | b"quorum" | b"stream" | b"" | b"undefined") => Ok(()),
        Value::LongStr(name) => Err(format!(
            "\"unsupported queue type '{}'\"",
            String::from_utf8_lossy(name)
        )),
        value => Err(unacceptable(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TableWriter;

    fn check(name: &str, value: Value<'_>) -> Result<Limit, String> {
        let mut table = TableWriter::default();
        table.put(name.as_bytes(), value);
        check_queue(b"q", table.table()).map_err(|failure| failure.reply_text())
    }

    #[test]
    fn bad_values_are_refused_in_rabbitmqs_words() {
        for (name, value, fault) in [
            ("x-message-ttl", Value::Int(-1), "{value_negative,-1}"),
            (
                "x-message-ttl",
                Value::LongStr(b"1"),
                "\"expected integer, got longstr\"",
            ),
            ("x-expires", Value::Int(0), "{value_zero,0}"),
            (
                "x-expires",
                Value::Long(315_360_000_001),
                "{value_too_large,315360000001}",
            ),
            ("x-max-priority", Value::Int(256), "{max_value_exceeded,256}"),
            ("x-max-length", Value::Byte(-2), "{value_negative,-2}"),
            ("x-overflow", Value::LongStr(b"x"), "invalid_overflow"),
            ("x-overflow", Value::Int(1), "{unacceptable_type,signedint}"),
            (
                "x-dead-letter-routing-key",
                Value::LongStr(b"k"),
                "routing_key_but_no_dlx_defined",
            ),
            (
                "x-queue-type",
                Value::LongStr(b"foo"),
                "\"unsupported queue type 'foo'\"",
            ),
            ("x-queue-version", Value::Int(1), "\"unsupported queue version '1'\""),
            (
                "x-single-active-consumer",
                Value::Int(1),
                "{unacceptable_type,signedint}",
            ),
        ] {
            let text = format!("PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/': {fault}");
            assert_eq!(check(name, value), Err(text));
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (name, value) in [
            ("x-message-ttl", Value::Int(1000)),
            ("x-expires", Value::Int(1000)),
            ("x-dead-letter-exchange", Value::LongStr(b"")),
            ("x-overflow", Value::LongStr(b"reject-publish")),
            ("x-max-priority", Value::UnsignedByte(9)),
            ("x-single-active-consumer", Value::Bool(true)),
            ("x-delivery-limit", Value::Int(3)),
            ("x-queue-type", Value::LongStr(b"quorum")),
        ] {
            let text = format!("NOT_IMPLEMENTED - queue argument '{name}' is not implemented");
            assert_eq!(check(name, value), Err(text));
        }
        let text = "PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'q' in vhost '/' of queue type \
                    rabbit_classic_queue";
        assert_eq!(check("x-max-age", Value::LongStr(b"1h")), Err(text.to_owned()));
    }

    #[test]
    fn what_has_no_effect_in_rabbitmq_either_is_accepted() {
        for (name, value) in [
            ("x-queue-type", Value::LongStr(b"classic")),
            ("x-queue-mode", Value::LongStr(b"lazy")),
            ("x-queue-version", Value::Int(2)),
            ("x-overflow", Value::LongStr(b"drop-head")),
            ("x-single-active-consumer", Value::Bool(false)),
            ("x-unheard-of", Value::Void),
        ] {
            assert_eq!(check(name, value), Ok(Limit::default()), "{name}");
        }
        let limit = check("x-max-length", Value::UnsignedShort(7)).expect("valid");
        assert_eq!((limit.messages, limit.bytes), (Some(7), None));
    }

    #[test]
    fn integer_width_does_not_matter_for_equivalence_but_type_and_value_do() {
        fn table(value: Option<Value<'_>>) -> TableWriter {
            let mut table = TableWriter::default();
            if let Some(value) = value {
                table.put(b"x-max-length", value);
            }
            table
        }
        let compare = |current: Option<Value<'_>>, received: Option<Value<'_>>| {
            check_queue_equivalence(b"q", table(current).table(), table(received).table()).map_err(|e| e.to_string())
        };
        assert_eq!(compare(Some(Value::Int(5)), Some(Value::Long(5))), Ok(()));
        let head = "inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received";
        assert_eq!(
            compare(Some(Value::Int(1000)), Some(Value::Int(2000))),
            Err(format!("{head} '2000' but current is '1000'"))
        );
        assert_eq!(
            compare(None, Some(Value::Int(1000))),
            Err(format!(
                "{head} the value '1000' of type 'signedint' but current is none"
            ))
        );
        assert!(compare(Some(Value::LongStr(b"5")), Some(Value::Int(5))).is_err());
    }

    #[test]
    fn expirations_are_decimal_milliseconds() {
        assert_eq!(check_expiration(b"1000"), Ok(1000));
        assert_eq!(check_expiration(b"abc"), Err("no_integer".into()));
        assert_eq!(check_expiration(b""), Err("no_integer".into()));
        assert_eq!(check_expiration(b"10s"), Err("{leftover_string,\"s\"}".into()));
        assert_eq!(check_expiration(b"-1"), Err("{value_negative,-1}".into()));
        assert_eq!(
            check_expiration(b"99999999999999999999"),
            Err("{value_too_large,99999999999999999999}".into())
        );
    }
}
