//! Commands to core's words and back: pure functions, see `MAPPING.md`.

pub mod delay;
pub mod filter;
pub mod group;
pub mod names;
pub mod offset_id;
pub mod pull;
pub mod route;
pub mod send;

use rocketbridge_session::{Cursor, Truncated};

use crate::codec::{Command, Value};
use crate::response_code::Refused;

/// A field that must be there.
pub(crate) fn required<'a>(command: &'a Command, name: &str) -> Result<Value<'a>, Refused> {
    command.field(name).ok_or_else(|| Refused::missing(name))
}

/// A field that must be there and a number.
pub(crate) fn required_number(command: &Command, name: &str) -> Result<i64, Refused> {
    required(command, name)?
        .number()
        .ok_or_else(|| Refused::no_number(name))
}

/// A message queue's number.
pub(crate) fn queue_id(command: &Command) -> Result<u32, Refused> {
    let number = required_number(command, "queueId")?;
    u32::try_from(number)
        .ok()
        .filter(|id| *id <= i32::MAX as u32)
        .ok_or_else(|| names::illegal_queue(number))
}

/// The lengths of the records in the body of a pull's answer, which stand one behind the other.
///
/// # Errors
/// [`Truncated`] when a record's length is less than its own field or leads beyond the end.
pub fn record_lengths(body: &[u8]) -> Result<Vec<usize>, Truncated> {
    let mut cursor = Cursor::new(body);
    let mut lengths = Vec::new();
    while cursor.remaining() > 0 {
        let length = cursor.u32()? as usize;
        cursor.take(length.checked_sub(4).ok_or(Truncated)?)?;
        lengths.push(length);
    }
    Ok(lengths)
}
