//! Bytes to frames and back: AMQP 0-9-1, chapters 2.3 and 4.2.
//!
//! A frame is type, channel and size (7 octets), the payload, and the octet 0xCE. [`FrameHeader`] is
//! read and judged before the payload is there, so that a peer's claim never costs memory. Payloads of
//! method frames are [`method`]s, of header frames [`content`], and the field tables in both [`table`]s.
//! Names are octets everywhere: AMQP says UTF-8, clients do not always.

pub mod content;
pub mod method;
pub mod table;

use bytes::{BufMut, BytesMut};
use rocketbridge_session::{Cursor, Truncated};

pub use content::{ContentHeader, Properties};
pub use method::{Method, MethodId};
pub use table::{Table, TableError, TableWriter, Value};

/// Frame type of a method frame.
pub const FRAME_METHOD: u8 = 1;
/// Frame type of a content header frame.
pub const FRAME_HEADER: u8 = 2;
/// Frame type of a content body frame.
pub const FRAME_BODY: u8 = 3;
/// Frame type of a heartbeat frame.
pub const FRAME_HEARTBEAT: u8 = 8;
/// The octet that ends every frame (4.2.3).
pub const FRAME_END: u8 = 0xCE;
/// Octets in front of a payload.
pub const FRAME_HEADER_SIZE: usize = 7;
/// Octets of a frame without payload: what `frame_max` counts besides the payload.
pub const FRAME_OVERHEAD: usize = FRAME_HEADER_SIZE + 1;
/// Clients get the frame size wrong by up to the size of an empty frame; RabbitMQ forgives that much.
pub const FRAME_SIZE_TOLERANCE: usize = FRAME_OVERHEAD;
/// What a client says first (4.2.2), and what a server answers to anything else.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
/// The header of AMQP 0-9, which is spoken alike.
pub const PROTOCOL_HEADER_0_9: [u8; 8] = *b"AMQP\x01\x01\x00\x09";

/// The first seven octets of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// One of the `FRAME_` types, or anything else a peer sends.
    pub kind: u8,
    /// The channel; 0 is the connection itself.
    pub channel: u16,
    /// Claimed payload size in octets.
    pub size: u32,
}

impl FrameHeader {
    /// The header at the front of `input`; `None` until all of it is there.
    pub fn peek(input: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(input);
        Some(Self {
            kind: cursor.u8().ok()?,
            channel: cursor.u16().ok()?,
            size: cursor.u32().ok()?,
        })
    }

    /// Size of the whole frame in octets.
    pub fn frame_size(&self) -> usize {
        self.size as usize + FRAME_OVERHEAD
    }

    /// Whether a peer that may send frames of `frame_max` octets may send this one.
    pub fn is_allowed(&self, frame_max: u32) -> bool {
        self.size as usize <= (frame_max as usize).saturating_sub(FRAME_OVERHEAD) + FRAME_SIZE_TOLERANCE
    }
}

/// Appends a frame's first seven octets.
pub fn put_frame_header(out: &mut BytesMut, kind: u8, channel: u16, size: usize) {
    out.put_u8(kind);
    out.put_u16(channel);
    out.put_u32(size as u32);
}

/// Appends a heartbeat frame.
pub fn put_heartbeat(out: &mut BytesMut) {
    put_frame_header(out, FRAME_HEARTBEAT, 0, 0);
    out.put_u8(FRAME_END);
}

/// An octet string of at most 255 octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShortStr<'a>(pub &'a [u8]);

/// An octet string of any length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LongStr<'a>(pub &'a [u8]);

/// Why a method's fields could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The payload ends inside a field.
    #[error("a field is cut short")]
    Truncated,
    /// The payload goes on behind the last field.
    #[error("{0} octets behind the last field")]
    Trailing(usize),
    /// A field table is malformed.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl From<Truncated> for FieldError {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// Reads fields one after the other. Bits that follow each other share octets, lowest bit first
/// (4.2.5.2).
pub struct FieldReader<'a> {
    cursor: Cursor<'a>,
    bits: u8,
    bits_left: u8,
}

impl<'a> FieldReader<'a> {
    /// At the first field.
    pub fn new(fields: &'a [u8]) -> Self {
        Self {
            cursor: Cursor::new(fields),
            bits: 0,
            bits_left: 0,
        }
    }

    fn octets(&mut self) -> &mut Cursor<'a> {
        self.bits_left = 0;
        &mut self.cursor
    }

    fn bit(&mut self) -> Result<bool, FieldError> {
        if self.bits_left == 0 {
            self.bits = self.cursor.u8()?;
            self.bits_left = 8;
        }
        let bit = self.bits & 1 != 0;
        self.bits >>= 1;
        self.bits_left -= 1;
        Ok(bit)
    }

    /// Nothing may follow the last field.
    ///
    /// # Errors
    /// [`FieldError::Trailing`].
    pub fn finish(self) -> Result<(), FieldError> {
        match self.cursor.remaining() {
            0 => Ok(()),
            count => Err(FieldError::Trailing(count)),
        }
    }
}

/// Writes fields one after the other.
pub struct FieldWriter<'b> {
    out: &'b mut BytesMut,
    bits_used: u8,
}

impl<'b> FieldWriter<'b> {
    /// Behind what `out` holds already.
    pub fn new(out: &'b mut BytesMut) -> Self {
        Self { out, bits_used: 0 }
    }

    fn octets(&mut self) -> &mut BytesMut {
        self.bits_used = 0;
        self.out
    }

    fn bit(&mut self, bit: bool) {
        if self.bits_used == 0 || self.bits_used == 8 {
            self.out.put_u8(0);
            self.bits_used = 0;
        }
        let last = self.out.len() - 1;
        self.out[last] |= u8::from(bit) << self.bits_used;
        self.bits_used += 1;
    }
}

/// A field of a method.
pub trait Field<'a>: Sized {
    /// Reads the field.
    ///
    /// # Errors
    /// When it is not there or malformed.
    fn read(reader: &mut FieldReader<'a>) -> Result<Self, FieldError>;
    /// Writes the field.
    fn write(&self, writer: &mut FieldWriter<'_>);
}

impl Field<'_> for bool {
    fn read(reader: &mut FieldReader<'_>) -> Result<Self, FieldError> {
        reader.bit()
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        writer.bit(*self);
    }
}

impl Field<'_> for u8 {
    fn read(reader: &mut FieldReader<'_>) -> Result<Self, FieldError> {
        Ok(reader.octets().u8()?)
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        writer.octets().put_u8(*self);
    }
}

impl Field<'_> for u16 {
    fn read(reader: &mut FieldReader<'_>) -> Result<Self, FieldError> {
        Ok(reader.octets().u16()?)
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        writer.octets().put_u16(*self);
    }
}

impl Field<'_> for u32 {
    fn read(reader: &mut FieldReader<'_>) -> Result<Self, FieldError> {
        Ok(reader.octets().u32()?)
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        writer.octets().put_u32(*self);
    }
}

impl Field<'_> for u64 {
    fn read(reader: &mut FieldReader<'_>) -> Result<Self, FieldError> {
        Ok(reader.octets().u64()?)
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        writer.octets().put_u64(*self);
    }
}

impl<'a> Field<'a> for ShortStr<'a> {
    fn read(reader: &mut FieldReader<'a>) -> Result<Self, FieldError> {
        let cursor = reader.octets();
        let length = cursor.u8()?;
        Ok(Self(cursor.take(usize::from(length))?))
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        put_short_str(writer.octets(), self.0);
    }
}

impl<'a> Field<'a> for LongStr<'a> {
    fn read(reader: &mut FieldReader<'a>) -> Result<Self, FieldError> {
        Ok(Self(reader.octets().bytes32()?))
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        let out = writer.octets();
        out.put_u32(self.0.len() as u32);
        out.put_slice(self.0);
    }
}

impl<'a> Field<'a> for Table<'a> {
    fn read(reader: &mut FieldReader<'a>) -> Result<Self, FieldError> {
        let table = Table::new(reader.octets().bytes32()?);
        table.check()?;
        Ok(table)
    }
    fn write(&self, writer: &mut FieldWriter<'_>) {
        let out = writer.octets();
        out.put_u32(self.as_bytes().len() as u32);
        out.put_slice(self.as_bytes());
    }
}

/// Appends a short string; what is longer than 255 octets is cut.
pub fn put_short_str(out: &mut BytesMut, text: &[u8]) {
    let text = &text[..text.len().min(usize::from(u8::MAX))];
    out.put_u8(text.len() as u8);
    out.put_slice(text);
}
