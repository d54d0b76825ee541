//! Headers in RocketMQ's binary form: code 16, language 8, version 16, opaque 32, flag 32, remark behind
//! a 32-bit length, fields behind a 32-bit length, each a name behind 16 and a value behind 32 bits.

use rocketbridge_session::{Cursor, Truncated};

use super::{FIELDS_MAX, Head, HeaderError, Language, Text};

/// The Go client's number among languages.
const GO: u8 = 9;

impl From<Truncated> for HeaderError {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// Reads a header. Empty names and values are null, as in Java. What follows the fields is ignored.
///
/// # Errors
/// [`HeaderError`] when a length leads beyond the header.
pub(crate) fn parse(header: &[u8], head: &mut Head, fields: &mut Vec<(Text, Text)>) -> Result<(), HeaderError> {
    let mut cursor = Cursor::new(header);
    head.code = i32::from(cursor.u16()? as i16);
    if cursor.u8()? == GO {
        head.language = Language::Go;
    }
    head.version = i32::from(cursor.u16()? as i16);
    head.opaque = cursor.u32()? as i32;
    head.flag = cursor.u32()? as i32;
    let remark_length = cursor.u32()?;
    head.remark = text(header, &mut cursor, remark_length)?;
    let fields_length = cursor.u32()? as usize;
    if fields_length > cursor.remaining() {
        return Err(HeaderError::Length);
    }
    let behind = cursor.remaining() - fields_length;
    while cursor.remaining() > behind {
        let name_length = cursor.u16()?;
        if name_length > i16::MAX as u16 {
            return Err(HeaderError::Length);
        }
        let name = text(header, &mut cursor, u32::from(name_length))?;
        let value_length = cursor.u32()?;
        let value = text(header, &mut cursor, value_length)?;
        if cursor.remaining() < behind {
            return Err(HeaderError::Length);
        }
        if let (Some(name), Some(value)) = (name, value) {
            if fields.len() == FIELDS_MAX {
                return Err(HeaderError::Fields);
            }
            fields.push((name, value));
        }
    }
    Ok(())
}

fn text(header: &[u8], cursor: &mut Cursor<'_>, length: u32) -> Result<Option<Text>, HeaderError> {
    if length as usize > cursor.remaining() {
        return Err(HeaderError::Length);
    }
    let start = header.len() - cursor.remaining();
    cursor.take(length as usize)?;
    Ok((length > 0).then_some(Text {
        start: start as u32,
        end: start as u32 + length,
        escaped: false,
    }))
}
