//! Bytes to commands and back.
//!
//! A frame is a length, one byte naming the header's form, a 24-bit header length, the header and a
//! body. Both header forms may be mixed on one connection; an answer takes its request's form. A frame
//! that cannot be read ends the connection: nothing after it can be trusted to begin where it seems to.
//! `json.rs` and `binary.rs` read headers without allocating, [`Writer`] writes both forms.

pub(crate) mod binary;
pub(crate) mod json;
mod write;

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

pub use write::{VERSION, Writer, push_number, push_string};

/// The form of a header, and so of the answer to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SerializeType {
    /// A JSON object.
    #[default]
    Json = 0,
    /// RocketMQ's binary form.
    RocketMq = 1,
}

/// Set in `flag` of a response.
pub const FLAG_RESPONSE: i32 = 1;
/// Set in `flag` of a request that wants no answer.
pub const FLAG_ONEWAY: i32 = 2;

/// Who wrote a command, as far as it makes a difference here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// The Go client.
    Go,
    /// Any other.
    #[default]
    Other,
}

/// Most extension fields of one command. Clients send about thirty.
pub const FIELDS_MAX: usize = 256;

/// Bytes of length and header length.
const PREFIX: usize = 8;

/// How large frames may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest frame in bytes, without its length field.
    pub frame_max: usize,
    /// Largest header in bytes.
    pub header_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_max: 16 << 20,
            header_max: 1 << 20,
        }
    }
}

/// Why a frame cannot be read. Each one ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Negative, too short for its own header length, or above the limit.
    #[error("a frame of {0} bytes")]
    Length(u32),
    /// Longer than its frame, or above the limit.
    #[error("a header of {0} bytes")]
    HeaderLength(usize),
    /// Neither JSON nor binary.
    #[error("unknown serialize type {0}")]
    SerializeType(u8),
    /// The header is not what its form says.
    #[error("malformed header: {0}")]
    Header(#[from] HeaderError),
}

/// What is wrong inside a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It ends inside a value.
    #[error("it is cut off")]
    Truncated,
    /// Not JSON, or not an object where one is due.
    #[error("unexpected byte at {0}")]
    Syntax(usize),
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// A number outside 32 bits, or none.
    #[error("no 32-bit number at {0}")]
    Number(usize),
    /// Values inside values inside values.
    #[error("nested too deep")]
    Depth,
    /// More than [`FIELDS_MAX`].
    #[error("too many fields")]
    Fields,
    /// A length that is negative or beyond the header.
    #[error("a wrong length inside")]
    Length,
}

/// A place in the header, and whether JSON escapes stand in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Text {
    pub start: u32,
    pub end: u32,
    pub escaped: bool,
}

/// The fixed part of a header.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head {
    pub code: i32,
    pub language: Language,
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    pub remark: Option<Text>,
}

/// A decoded command. Kept by a session and filled again for each frame, so that decoding does not
/// allocate.
#[derive(Debug, Default)]
pub struct Command {
    serialize_type: SerializeType,
    head: Head,
    header: Bytes,
    fields: Vec<(Text, Text)>,
    body: Bytes,
}

/// Text from a header.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    raw: &'a [u8],
    escaped: bool,
}

impl Command {
    /// The form of its header.
    pub fn serialize_type(&self) -> SerializeType {
        self.serialize_type
    }

    /// Request code, or response code.
    pub fn code(&self) -> i32 {
        self.head.code
    }

    /// Who wrote it.
    pub fn language(&self) -> Language {
        self.head.language
    }

    /// The client's version, an ordinal in RocketMQ's list of versions.
    pub fn version(&self) -> i32 {
        self.head.version
    }

    /// The client's number for the request.
    pub fn opaque(&self) -> i32 {
        self.head.opaque
    }

    /// [`FLAG_RESPONSE`] and [`FLAG_ONEWAY`].
    pub fn flag(&self) -> i32 {
        self.head.flag
    }

    /// Whether it is an answer.
    pub fn is_response(&self) -> bool {
        self.head.flag & FLAG_RESPONSE != 0
    }

    /// Whether no answer is wanted.
    pub fn is_oneway(&self) -> bool {
        self.head.flag & FLAG_ONEWAY != 0
    }

    /// The remark, if there is one.
    pub fn remark(&self) -> Option<Value<'_>> {
        self.head.remark.map(|text| self.value(text))
    }

    /// The body, a slice of what was read.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// All extension fields in the order they came, without those that are null.
    pub fn fields(&self) -> impl Iterator<Item = (Value<'_>, Value<'_>)> {
        self.fields
            .iter()
            .map(|(name, value)| (self.value(*name), self.value(*value)))
    }

    /// The extension field of that name; the last one if it came twice.
    pub fn field(&self, name: &str) -> Option<Value<'_>> {
        let of = |text: Text| self.value(text);
        self.fields
            .iter()
            .rev()
            .find(|(key, _)| of(*key).is(name))
            .map(|(_, value)| of(*value))
    }

    fn value(&self, text: Text) -> Value<'_> {
        Value {
            raw: &self.header[text.start as usize..text.end as usize],
            escaped: text.escaped,
        }
    }

    /// Drops the bytes that it refers to, so that an idle session keeps no buffer alive.
    pub fn clear(&mut self) {
        self.header = Bytes::new();
        self.body = Bytes::new();
        self.fields.clear();
        self.head = Head::default();
    }
}

impl<'a> Value<'a> {
    /// Text without escapes.
    pub fn plain(raw: &'a [u8]) -> Self {
        Self { raw, escaped: false }
    }

    /// Whether it is this text.
    pub fn is(&self, text: &str) -> bool {
        if self.escaped {
            *self.bytes() == *text.as_bytes()
        } else {
            self.raw == text.as_bytes()
        }
    }

    /// The only byte of a one-byte text: how fields of the short send header are called.
    pub fn letter(&self) -> Option<u8> {
        match self.raw {
            [letter] => Some(*letter),
            _ if self.escaped => match *self.bytes() {
                [letter] => Some(letter),
                _ => None,
            },
            _ => None,
        }
    }

    /// The text.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        let mut out = Vec::with_capacity(self.raw.len());
        json::unescape(self.raw, &mut out);
        Cow::Owned(out)
    }

    /// The text, in `scratch` if it has to be unescaped.
    pub fn bytes_in<'s>(&self, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        if !self.escaped {
            return self.raw;
        }
        scratch.clear();
        json::unescape(self.raw, scratch);
        scratch
    }

    /// The text in memory of its own.
    pub fn to_bytes(&self) -> Bytes {
        match self.bytes() {
            Cow::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Cow::Owned(bytes) => Bytes::from(bytes),
        }
    }

    /// The text for a remark; what is not UTF-8 is replaced.
    pub fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// A decimal number, as Java's `Long.parseLong` reads it.
    pub fn number(&self) -> Option<i64> {
        std::str::from_utf8(self.raw).ok()?.parse().ok()
    }

    /// `true` in any case is true, everything else is not, as in Java.
    pub fn is_true(&self) -> bool {
        self.raw.eq_ignore_ascii_case(b"true")
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}

/// Takes one frame from the front of `input` and reads it into `command`. `Ok(false)` is "more bytes
/// are needed"; nothing is taken then.
///
/// # Errors
/// [`FrameError`], from the first four bytes for a wrong length and from the first eight for a wrong
/// header length: nothing is waited for that will not be read.
pub fn decode(input: &mut BytesMut, limits: Limits, command: &mut Command) -> Result<bool, FrameError> {
    let Some(length) = number_at(input, 0) else {
        return Ok(false);
    };
    if length < 4 || length as usize > limits.frame_max {
        return Err(FrameError::Length(length));
    }
    let Some(mark) = number_at(input, 4) else {
        return Ok(false);
    };
    let header_length = (mark & 0x00FF_FFFF) as usize;
    let serialize_type = match mark >> 24 {
        0 => SerializeType::Json,
        1 => SerializeType::RocketMq,
        other => return Err(FrameError::SerializeType(other as u8)),
    };
    if header_length > length as usize - 4 || header_length > limits.header_max {
        return Err(FrameError::HeaderLength(header_length));
    }
    if input.len() < 4 + length as usize {
        return Ok(false);
    }
    let frame = input.split_to(4 + length as usize).freeze();
    command.clear();
    command.serialize_type = serialize_type;
    command.header = frame.slice(PREFIX..PREFIX + header_length);
    command.body = frame.slice(PREFIX + header_length..);
    let parse = match serialize_type {
        SerializeType::Json => json::parse,
        SerializeType::RocketMq => binary::parse,
    };
    parse(&command.header, &mut command.head, &mut command.fields)?;
    Ok(true)
}

fn number_at(input: &BytesMut, at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(input.get(at..at + 4)?.try_into().ok()?))
}
