//! Content headers (4.2.6.1): class, weight, body size, and the properties of a basic message.

use bytes::{BufMut, BytesMut};
use rocketbridge_session::{Cursor, Truncated};

use super::table::{Table, TableError};

/// The class whose methods carry content.
pub const CLASS_BASIC: u16 = 60;

/// Octets of a content header in front of the properties.
pub const CONTENT_HEADER_SIZE: usize = 12;

/// A content header frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentHeader<'a> {
    /// Class of the method that this content belongs to.
    pub class: u16,
    /// Always 0.
    pub weight: u16,
    /// Octets of the body that follows in body frames.
    pub body_size: u64,
    /// Property flags and property list, undecoded: kept and given back as they are.
    pub properties: &'a [u8],
}

impl<'a> ContentHeader<'a> {
    /// Reads a header frame's payload.
    ///
    /// # Errors
    /// [`Truncated`] when it is shorter than its fixed part.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Truncated> {
        let mut cursor = Cursor::new(payload);
        Ok(Self {
            class: cursor.u16()?,
            weight: cursor.u16()?,
            body_size: cursor.u64()?,
            properties: cursor.rest(),
        })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u16(self.class);
        out.put_u16(self.weight);
        out.put_u64(self.body_size);
        out.put_slice(self.properties);
    }
}

/// What is wrong with a property list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertiesError {
    /// It ends inside a property.
    #[error("content properties are cut short")]
    Truncated,
    /// It goes on behind the last property.
    #[error("octets behind the last content property")]
    Trailing,
    /// Flags that name no property of class basic.
    #[error("unknown content property flags {0:#06x}")]
    UnknownFlags(u16),
    /// The headers are malformed.
    #[error(transparent)]
    Headers(#[from] TableError),
}

impl From<Truncated> for PropertiesError {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// The properties of a basic message, in wire order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    pub content_type: Option<&'a [u8]>,
    pub content_encoding: Option<&'a [u8]>,
    /// Unchecked: whoever walks it meets its faults.
    pub headers: Option<Table<'a>>,
    /// 2 is persistent, everything else transient.
    pub delivery_mode: Option<u8>,
    pub priority: Option<u8>,
    pub correlation_id: Option<&'a [u8]>,
    pub reply_to: Option<&'a [u8]>,
    /// Milliseconds, as decimal text.
    pub expiration: Option<&'a [u8]>,
    pub message_id: Option<&'a [u8]>,
    /// Unix seconds.
    pub timestamp: Option<u64>,
    pub kind: Option<&'a [u8]>,
    pub user_id: Option<&'a [u8]>,
    pub app_id: Option<&'a [u8]>,
    pub cluster_id: Option<&'a [u8]>,
}

const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const TYPE: u16 = 1 << 5;
const USER_ID: u16 = 1 << 4;
const APP_ID: u16 = 1 << 3;
const CLUSTER_ID: u16 = 1 << 2;
/// Bit 1 names no property; bit 0 says that more flags follow, which class basic never needs.
const UNKNOWN: u16 = 0b11;

impl<'a> Properties<'a> {
    /// Reads flags and list.
    ///
    /// # Errors
    /// When the list is not what the flags say. The headers' entries are not read.
    pub fn decode(properties: &'a [u8]) -> Result<Self, PropertiesError> {
        let mut cursor = Cursor::new(properties);
        let flags = cursor.u16()?;
        if flags & UNKNOWN != 0 {
            return Err(PropertiesError::UnknownFlags(flags));
        }
        let mut decoded = Self::default();
        if flags != 0 {
            decoded.read(flags, &mut cursor)?;
        }
        match cursor.remaining() {
            0 => Ok(decoded),
            _ => Err(PropertiesError::Trailing),
        }
    }

    fn read(&mut self, flags: u16, cursor: &mut Cursor<'a>) -> Result<(), Truncated> {
        let is_set = |flag| flags & flag != 0;
        if is_set(CONTENT_TYPE) {
            self.content_type = Some(short_str(cursor)?);
        }
        if is_set(CONTENT_ENCODING) {
            self.content_encoding = Some(short_str(cursor)?);
        }
        if is_set(HEADERS) {
            self.headers = Some(Table::new(cursor.bytes32()?));
        }
        if is_set(DELIVERY_MODE) {
            self.delivery_mode = Some(cursor.u8()?);
        }
        if is_set(PRIORITY) {
            self.priority = Some(cursor.u8()?);
        }
        if is_set(CORRELATION_ID) {
            self.correlation_id = Some(short_str(cursor)?);
        }
        if is_set(REPLY_TO) {
            self.reply_to = Some(short_str(cursor)?);
        }
        if is_set(EXPIRATION) {
            self.expiration = Some(short_str(cursor)?);
        }
        if is_set(MESSAGE_ID) {
            self.message_id = Some(short_str(cursor)?);
        }
        if is_set(TIMESTAMP) {
            self.timestamp = Some(cursor.u64()?);
        }
        if is_set(TYPE) {
            self.kind = Some(short_str(cursor)?);
        }
        if is_set(USER_ID) {
            self.user_id = Some(short_str(cursor)?);
        }
        if is_set(APP_ID) {
            self.app_id = Some(short_str(cursor)?);
        }
        if is_set(CLUSTER_ID) {
            self.cluster_id = Some(short_str(cursor)?);
        }
        Ok(())
    }

    /// Appends flags and list.
    pub fn encode(&self, out: &mut BytesMut) {
        let at = out.len();
        out.put_u16(0);
        let mut flags = 0;
        let mut text = |out: &mut BytesMut, flag, value: Option<&[u8]>| {
            if let Some(value) = value {
                flags |= flag;
                super::put_short_str(out, value);
            }
        };
        text(out, CONTENT_TYPE, self.content_type);
        text(out, CONTENT_ENCODING, self.content_encoding);
        if let Some(headers) = self.headers {
            out.put_u32(headers.as_bytes().len() as u32);
            out.put_slice(headers.as_bytes());
        }
        if let Some(delivery_mode) = self.delivery_mode {
            out.put_u8(delivery_mode);
        }
        if let Some(priority) = self.priority {
            out.put_u8(priority);
        }
        text(out, CORRELATION_ID, self.correlation_id);
        text(out, REPLY_TO, self.reply_to);
        text(out, EXPIRATION, self.expiration);
        text(out, MESSAGE_ID, self.message_id);
        if let Some(timestamp) = self.timestamp {
            out.put_u64(timestamp);
        }
        text(out, TYPE, self.kind);
        text(out, USER_ID, self.user_id);
        text(out, APP_ID, self.app_id);
        text(out, CLUSTER_ID, self.cluster_id);
        for (flag, is_set) in [
            (HEADERS, self.headers.is_some()),
            (DELIVERY_MODE, self.delivery_mode.is_some()),
            (PRIORITY, self.priority.is_some()),
            (TIMESTAMP, self.timestamp.is_some()),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        out[at..at + 2].copy_from_slice(&flags.to_be_bytes());
    }
}

fn short_str<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], Truncated> {
    let length = cursor.u8()?;
    cursor.take(usize::from(length))
}
