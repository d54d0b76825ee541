//! Arguments by which an exchange tells copies of messages: those of RabbitMQ's message deduplication plug-in, as an
//! exchange type of its own or, as LavinMQ has it, as an argument of any type.

use bytes::Bytes;
use rocketbridge_core::request::Dedup;
use rocketbridge_core::time::Millis;

use crate::codec::{Table, Value};
use crate::reply_code::{ChannelError, Resource};

/// The type: routes as a fanout exchange does.
pub const DEDUP_TYPE: &[u8] = b"x-message-deduplication";

const ARGUMENT: &str = "x-message-deduplication";
const SIZE: &str = "x-cache-size";
const TTL: &str = "x-cache-ttl";
/// The header whose values are remembered, and the argument that names another one.
const HEADER: &str = "x-deduplication-header";

/// Values remembered when the argument does not say how many.
const SIZE_DEFAULT: u32 = 100_000;

/// How an exchange of that type and with these arguments tells copies, if it does.
///
/// # Errors
/// 406 for a bad value, and when the type's mandatory size is missing.
pub fn dedup(exchange: &[u8], type_name: &[u8], arguments: Table<'_>) -> Result<Option<Dedup>, ChannelError> {
    let get = |name: &str| arguments.get(name.as_bytes());
    let invalid = |argument: &'static str, fault: &str| ChannelError::InvalidArgument {
        argument,
        resource: Resource::exchange(exchange),
        fault: fault.to_owned(),
    };
    let is_of_type = type_name == DEDUP_TYPE;
    let is_asked = match get(ARGUMENT) {
        None => false,
        Some(Value::Bool(asked)) => asked,
        Some(_) => return Err(invalid(ARGUMENT, "not a boolean")),
    };
    if !is_of_type && !is_asked {
        return Ok(None);
    }
    let number = |argument: &'static str| match get(argument).map(positive) {
        None => Ok(None),
        Some(Some(number)) => Ok(Some(number)),
        Some(None) => Err(invalid(argument, "not a positive number")),
    };
    let keys_max = match number(SIZE)? {
        Some(size) => u32::try_from(size).unwrap_or(u32::MAX),
        None if is_of_type => return Err(invalid(SIZE, "missing")),
        None => SIZE_DEFAULT,
    };
    let property = match get(HEADER) {
        None => Bytes::from_static(HEADER.as_bytes()),
        Some(Value::LongStr(header)) if !header.is_empty() => Bytes::copy_from_slice(header),
        Some(_) => return Err(invalid(HEADER, "not the name of a header")),
    };
    Ok(Some(Dedup {
        property,
        keys_max,
        time: number(TTL)?.map(Millis),
    }))
}

/// Numbers may come as text: RabbitMQ's plug-in takes both.
fn positive(value: Value<'_>) -> Option<u64> {
    let number = match value {
        Value::LongStr(text) => std::str::from_utf8(text).ok()?.parse().ok()?,
        value => value.as_integer()?,
    };
    u64::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TableWriter;

    fn of(type_name: &str, entries: &[(&str, Value<'_>)]) -> Result<Option<Dedup>, ChannelError> {
        let mut table = TableWriter::default();
        for (name, value) in entries {
            table.put(name.as_bytes(), *value);
        }
        dedup(b"e", type_name.as_bytes(), table.table())
    }

    #[test]
    fn the_type_and_the_argument_make_an_exchange_know_copies() {
        let known = |keys_max, time, property: &'static str| {
            Some(Dedup {
                property: Bytes::from_static(property.as_bytes()),
                keys_max,
                time,
            })
        };
        let size = (SIZE, Value::LongStr(b"5"));
        assert_eq!(of("x-message-deduplication", &[size]), Ok(known(5, None, HEADER)));
        let asked = (ARGUMENT, Value::Bool(true));
        let ttl = (TTL, Value::Int(1000));
        let header = (HEADER, Value::LongStr(b"id"));
        let expected = known(SIZE_DEFAULT, Some(Millis(1000)), "id");
        assert_eq!(of("topic", &[asked, ttl, header]), Ok(expected));
        assert_eq!(of("topic", &[(ARGUMENT, Value::Bool(false)), size]), Ok(None));
        assert_eq!(of("direct", &[]), Ok(None));
    }

    #[test]
    fn bad_values_are_refused() {
        assert!(of("x-message-deduplication", &[]).is_err());
        let asked = (ARGUMENT, Value::Bool(true));
        for bad in [
            (SIZE, Value::Int(0)),
            (SIZE, Value::LongStr(b"many")),
            (TTL, Value::Int(-1)),
            (HEADER, Value::LongStr(b"")),
        ] {
            assert!(of("fanout", &[asked, bad]).is_err(), "{bad:?}");
        }
        assert!(of("fanout", &[(ARGUMENT, Value::Int(1))]).is_err());
    }
}
