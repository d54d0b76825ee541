//! Arguments (`x-...`) of queues, exchanges and consumers: which there are, how each is checked, and what it
//! asks core for.
//!
//! [`QUEUE_ARGUMENTS`] is the one list. Checks and texts are RabbitMQ's (`rabbit_amqqueue`). Nothing is
//! accepted and ignored that RabbitMQ would act on.

use bytes::Bytes;
use rocketbridge_core::attributes::Attribute;
use rocketbridge_core::request::{DeadLetter, ExchangeKind, HashOn, Limit, Overflow, Policy, Way};
use rocketbridge_core::time::Millis;

use crate::codec::{Table, Value};
use crate::mapping::way;
use crate::reply_code::{ChannelError, Failure, Resource};

/// Longest TTL and expiry in milliseconds: ten years.
const EXPIRY_MAX: i64 = 315_360_000_000;

/// Most levels that `x-max-priority` may ask for.
const PRIORITY_MAX: i64 = 255;

/// How often a quorum queue lets a message come back unless its declarer says otherwise (RabbitMQ 4).
const DELIVERY_LIMIT: u32 = 20;

/// What a queue is to RabbitMQ. Both kinds are kept by the same log here; they differ in what they allow and
/// in defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// The default.
    Classic,
    /// Durable, keeps every message, counts deliveries.
    Quorum,
}

impl QueueType {
    /// RabbitMQ's module of that type, as it stands in texts.
    const fn module(self) -> &'static str {
        match self {
            Self::Classic => "rabbit_classic_queue",
            Self::Quorum => "rabbit_quorum_queue",
        }
    }
}

/// Which queue types know an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Types {
    /// Both that there are.
    Both,
    /// Classic queues only.
    Classic,
    /// Quorum queues only.
    Quorum,
    /// Streams, which there are none of.
    Stream,
}

impl Types {
    fn has(self, queue_type: QueueType) -> bool {
        match self {
            Self::Both => true,
            Self::Classic => queue_type == QueueType::Classic,
            Self::Quorum => queue_type == QueueType::Quorum,
            Self::Stream => false,
        }
    }
}

/// One argument.
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// What is wrong with a value, in RabbitMQ's words.
    pub check: fn(Value<'_>, Table<'_>) -> Result<(), String>,
    /// Which queues may have it.
    pub types: Types,
}

const fn argument(name: &'static str, check: fn(Value<'_>, Table<'_>) -> Result<(), String>, types: Types) -> Argument {
    Argument { name, check, types }
}

/// Every queue argument that RabbitMQ knows.
pub const QUEUE_ARGUMENTS: &[Argument] = &[
    argument("x-queue-type", queue_type, Types::Both),
    argument("x-expires", expires, Types::Both),
    argument("x-message-ttl", message_ttl, Types::Both),
    argument("x-dead-letter-exchange", text, Types::Both),
    argument("x-dead-letter-routing-key", dead_letter_key, Types::Both),
    argument("x-dead-letter-strategy", dead_letter_strategy, Types::Quorum),
    argument("x-max-length", not_negative, Types::Both),
    argument("x-max-length-bytes", not_negative, Types::Both),
    argument("x-max-priority", max_priority, Types::Classic),
    argument("x-overflow", overflow, Types::Both),
    argument("x-queue-mode", anything, Types::Classic),
    argument("x-queue-version", queue_version, Types::Classic),
    argument("x-single-active-consumer", boolean, Types::Both),
    argument("x-queue-leader-locator", leader_locator, Types::Both),
    argument("x-queue-master-locator", anything, Types::Classic),
    // RabbitMQ's classic queues ignore it; who declares one with it wants it.
    argument("x-delivery-limit", delivery_limit, Types::Both),
    argument("x-max-in-memory-length", not_negative, Types::Quorum),
    argument("x-max-in-memory-bytes", not_negative, Types::Quorum),
    argument("x-quorum-initial-group-size", anything, Types::Quorum),
    argument("x-quorum-target-group-size", anything, Types::Quorum),
    argument("x-consumer-timeout", anything, Types::Stream),
    argument("x-consumer-disconnected-timeout", anything, Types::Stream),
    argument("x-initial-cluster-size", anything, Types::Stream),
    argument("x-max-age", anything, Types::Stream),
    argument("x-stream-max-segment-size-bytes", anything, Types::Stream),
    argument("x-stream-filter-size-bytes", anything, Types::Stream),
];

/// What the arguments of a queue ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueArguments {
    /// Its type.
    pub queue_type: QueueType,
    /// How much it may hold.
    pub limit: Limit,
    /// What else it does; `None` for nothing.
    pub policy: Option<Box<Policy>>,
}

/// Checks the arguments of a queue that is to be made.
///
/// # Errors
/// 406 for a bad value or one that the queue's type does not know, 540 for a stream.
pub fn check_queue(name: &[u8], arguments: Table<'_>) -> Result<QueueArguments, Failure> {
    let wanted = |name: &str| arguments.get(name.as_bytes());
    let queue_type = match wanted("x-queue-type") {
        Some(Value::LongStr(b"stream")) => {
            return Err(Failure::not_implemented("queue type 'stream' is not implemented"));
        }
        Some(Value::LongStr(b"quorum")) => QueueType::Quorum,
        _ => QueueType::Classic,
    };
    for argument in QUEUE_ARGUMENTS {
        let Some(value) = wanted(argument.name) else {
            continue;
        };
        if !argument.types.has(queue_type) {
            return Err(Failure::from(ChannelError::OtherQueueType {
                argument: argument.name.to_owned(),
                resource: Resource::queue(name),
                module: queue_type.module(),
            }));
        }
        (argument.check)(value, arguments).map_err(|fault| ChannelError::InvalidArgument {
            argument: argument.name,
            resource: Resource::queue(name),
            fault,
        })?;
    }
    let number = |name| wanted(name).and_then(|value| value.as_integer()).map(i64::unsigned_abs);
    let is = |name, text: &[u8]| wanted(name) == Some(Value::LongStr(text));
    let text = |name| match wanted(name) {
        Some(Value::LongStr(text)) => Some(text),
        _ => None,
    };
    let is_quorum = queue_type == QueueType::Quorum;
    let limit_given = wanted("x-delivery-limit").and_then(|value| value.as_integer());
    let policy = Policy {
        message_ttl: number("x-message-ttl").map(Millis),
        expires: number("x-expires").map(Millis),
        overflow: if is("x-overflow", b"reject-publish") {
            Overflow::Reject
        } else if is("x-overflow", b"reject-publish-dlx") {
            Overflow::RejectAndDeadLetter
        } else {
            Overflow::DropHead
        },
        priorities: number("x-max-priority").map_or(0, |highest| u8::try_from(highest).unwrap_or(u8::MAX)),
        single_active: wanted("x-single-active-consumer") == Some(Value::Bool(true)),
        counts_attempts: is_quorum || limit_given.is_some(),
        delivery_limit: match limit_given {
            Some(limit) => u32::try_from(limit).ok(),
            None => is_quorum.then_some(DELIVERY_LIMIT),
        },
        dead_letter: text("x-dead-letter-exchange").map(|exchange| DeadLetter {
            way: way(exchange),
            key: text("x-dead-letter-routing-key").map(Bytes::copy_from_slice),
        }),
        keeps_all: is_quorum,
    };
    Ok(QueueArguments {
        queue_type,
        limit: Limit {
            messages: number("x-max-length"),
            bytes: number("x-max-length-bytes"),
        },
        policy: (policy != Policy::default()).then(|| Box::new(policy)),
    })
}

/// Checks the arguments of a queue that is there already against those it was made with.
///
/// # Errors
/// 406 naming the first argument that differs.
pub fn check_queue_equivalence(name: &[u8], current: Table<'_>, received: Table<'_>) -> Result<(), ChannelError> {
    QUEUE_ARGUMENTS
        .iter()
        .filter(|argument| argument.types != Types::Stream)
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

/// Checks the arguments of a consumer and gives its priority.
///
/// # Errors
/// 406 for a bad value or another queue type's argument.
pub fn check_consumer(queue: &[u8], arguments: Table<'_>) -> Result<i32, Failure> {
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
                module: QueueType::Classic.module(),
            }));
        }
    }
    let Some(value) = arguments.get(PRIORITY.as_bytes()) else {
        return Ok(0);
    };
    let priority = number(value).map_err(|fault| ChannelError::InvalidArgument {
        argument: PRIORITY,
        resource: Resource::queue(queue),
        fault,
    })?;
    Ok(priority.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
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

fn delivery_limit(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match number(value)? {
        limit if limit < -1 => Err(format!("{{value_negative,{limit}}}")),
        _ => Ok(()),
    }
}

fn dead_letter_strategy(value: Value<'_>, _: Table<'_>) -> Result<(), String> {
    match value {
        Value::LongStr(b"at-most-once" | b"at-least-once") => Ok(()),
        Value::LongStr(_) => Err("invalid_dlx_strategy".to_owned()),
        value => Err(unacceptable(value)),
    }
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

    fn check(name: &str, value: Value<'_>) -> Result<QueueArguments, String> {
        check_all(&[(name, value)])
    }

    fn check_all(arguments: &[(&str, Value<'_>)]) -> Result<QueueArguments, String> {
        let mut table = TableWriter::default();
        for (name, value) in arguments {
            table.put(name.as_bytes(), *value);
        }
        check_queue(b"q", table.table()).map_err(|failure| failure.reply_text())
    }

    fn policy(arguments: &[(&str, Value<'_>)]) -> Policy {
        *check_all(arguments)
            .expect("valid")
            .policy
            .expect("it asks for something")
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
    fn arguments_become_limits_and_a_policy() {
        let all = [
            ("x-message-ttl", Value::Int(1000)),
            ("x-expires", Value::UnsignedInt(2000)),
            ("x-dead-letter-exchange", Value::LongStr(b"")),
            ("x-dead-letter-routing-key", Value::LongStr(b"k")),
            ("x-overflow", Value::LongStr(b"reject-publish-dlx")),
            ("x-max-priority", Value::UnsignedByte(9)),
            ("x-single-active-consumer", Value::Bool(true)),
            ("x-max-length", Value::UnsignedShort(0)),
            ("x-max-length-bytes", Value::Long(7)),
        ];
        let expected = Policy {
            message_ttl: Some(Millis(1000)),
            expires: Some(Millis(2000)),
            overflow: Overflow::RejectAndDeadLetter,
            priorities: 9,
            single_active: true,
            dead_letter: Some(DeadLetter {
                way: Way::Queue,
                key: Some(Bytes::from_static(b"k")),
            }),
            ..Policy::default()
        };
        assert_eq!(policy(&all), expected);
        let limit = check_all(&all).expect("valid").limit;
        assert_eq!((limit.messages, limit.bytes), (Some(0), Some(7)));
    }

    #[test]
    fn a_quorum_queue_keeps_all_and_lets_a_message_come_back_twenty_times() {
        let quorum = ("x-queue-type", Value::LongStr(b"quorum"));
        let of = |arguments: &[(&str, Value<'_>)]| {
            let policy = policy(arguments);
            (policy.keeps_all, policy.counts_attempts, policy.delivery_limit)
        };
        assert_eq!(of(&[quorum]), (true, true, Some(20)));
        assert_eq!(
            of(&[quorum, ("x-delivery-limit", Value::Int(3))]),
            (true, true, Some(3))
        );
        assert_eq!(of(&[quorum, ("x-delivery-limit", Value::Int(-1))]), (true, true, None));
        assert_eq!(of(&[("x-delivery-limit", Value::Int(0))]), (false, true, Some(0)));
    }

    #[test]
    fn what_a_queue_type_does_not_know_is_refused() {
        for (queue_type, name, value, module) in [
            ("classic", "x-max-age", Value::LongStr(b"1h"), "rabbit_classic_queue"),
            (
                "classic",
                "x-max-in-memory-length",
                Value::Int(1),
                "rabbit_classic_queue",
            ),
            ("quorum", "x-max-priority", Value::Int(5), "rabbit_quorum_queue"),
            ("quorum", "x-queue-mode", Value::LongStr(b"lazy"), "rabbit_quorum_queue"),
        ] {
            let arguments = [("x-queue-type", Value::LongStr(queue_type.as_bytes())), (name, value)];
            let text =
                format!("PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/' of queue type {module}");
            assert_eq!(check_all(&arguments), Err(text));
        }
        let text = "NOT_IMPLEMENTED - queue type 'stream' is not implemented";
        assert_eq!(check("x-queue-type", Value::LongStr(b"stream")), Err(text.to_owned()));
    }

    #[test]
    fn what_asks_for_nothing_makes_no_policy() {
        for (name, value) in [
            ("x-queue-type", Value::LongStr(b"classic")),
            ("x-queue-mode", Value::LongStr(b"lazy")),
            ("x-queue-version", Value::Int(2)),
            ("x-overflow", Value::LongStr(b"drop-head")),
            ("x-max-priority", Value::Int(0)),
            ("x-single-active-consumer", Value::Bool(false)),
            ("x-unheard-of", Value::Void),
        ] {
            let arguments = check(name, value).expect("valid");
            assert_eq!((arguments.limit, arguments.policy), (Limit::NONE, None), "{name}");
        }
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
