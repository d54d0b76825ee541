//! Field tables and arrays (4.2.5.5), with the value types that RabbitMQ and its clients agreed on:
//! `t b B s u I i l L f d D S A T F V x`.
//!
//! A [`Table`] is a view of its octets. Walking one never recurses and never allocates; whoever goes
//! into nested tables does it through [`Table::check`] first, which stops at [`DEPTH_MAX`], so nesting
//! costs neither stack nor time.

use bytes::{BufMut, BytesMut};
use rocketbridge_session::{Cursor, Truncated};

/// How deep tables and arrays may be nested; the outermost table is 1. RabbitMQ has no such limit,
/// but no client was seen to need more than 3 (x-death in a dead-lettered header).
pub const DEPTH_MAX: usize = 16;

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It ends inside an entry.
    #[error("field table is cut short")]
    Truncated,
    /// A value of a type that nobody knows.
    #[error("unknown field type {0:#04x}")]
    UnknownType(u8),
    /// Nested too deep.
    #[error("field table is nested more than 16 deep")]
    TooDeep,
}

impl From<Truncated> for TableError {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// A value in a table or an array.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `t`
    Bool(bool),
    /// `b`
    Byte(i8),
    /// `B`
    UnsignedByte(u8),
    /// `s`
    Short(i16),
    /// `u`
    UnsignedShort(u16),
    /// `I`
    Int(i32),
    /// `i`
    UnsignedInt(u32),
    /// `l`
    Long(i64),
    /// `L`, which the specification calls unsigned and RabbitMQ reads as `l`.
    LongLong(i64),
    /// `f`
    Float(f32),
    /// `d`
    Double(f64),
    /// `D`: `value` with `scale` decimal digits behind the point.
    Decimal { scale: u8, value: u32 },
    /// `S`
    LongStr(&'a [u8]),
    /// `A`
    Array(Array<'a>),
    /// `T`, Unix seconds
    Timestamp(u64),
    /// `F`
    Table(Table<'a>),
    /// `V`
    Void,
    /// `x`
    Binary(&'a [u8]),
}

impl Value<'_> {
    /// The type's name in RabbitMQ's messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::Byte(_) => "byte",
            Self::UnsignedByte(_) => "unsignedbyte",
            Self::Short(_) => "short",
            Self::UnsignedShort(_) => "unsignedshort",
            Self::Int(_) => "signedint",
            Self::UnsignedInt(_) => "unsignedint",
            Self::Long(_) | Self::LongLong(_) => "long",
            Self::Float(_) => "float",
            Self::Double(_) => "double",
            Self::Decimal { .. } => "decimal",
            Self::LongStr(_) => "longstr",
            Self::Array(_) => "array",
            Self::Timestamp(_) => "timestamp",
            Self::Table(_) => "table",
            Self::Void => "void",
            Self::Binary(_) => "binary",
        }
    }

    /// The value of any of the integer types.
    pub fn as_integer(&self) -> Option<i64> {
        Some(match *self {
            Self::Byte(value) => value.into(),
            Self::UnsignedByte(value) => value.into(),
            Self::Short(value) => value.into(),
            Self::UnsignedShort(value) => value.into(),
            Self::Int(value) => value.into(),
            Self::UnsignedInt(value) => value.into(),
            Self::Long(value) | Self::LongLong(value) => value,
            _ => return None,
        })
    }
}

/// The entries of a table, as they stand behind its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table<'a>(&'a [u8]);

/// The values of an array, as they stand behind its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Array<'a>(&'a [u8]);

impl<'a> Table<'a> {
    /// A view of a table's octets, unchecked.
    pub fn new(entries: &'a [u8]) -> Self {
        Self(entries)
    }

    /// The octets behind the table's length.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Walks the entries. Ends at the first error.
    pub fn iter(&self) -> Entries<'a> {
        Entries {
            cursor: Cursor::new(self.0),
        }
    }

    /// The first value of that name.
    pub fn get(&self, wanted: &[u8]) -> Option<Value<'a>> {
        self.iter()
            .filter_map(Result::ok)
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value)
    }

    /// Reads the whole table, also what is nested in it.
    ///
    /// # Errors
    /// The first fault, also nesting beyond [`DEPTH_MAX`].
    pub fn check(&self) -> Result<(), TableError> {
        check(Nested::Table(*self))
    }
}

impl<'a> Array<'a> {
    /// A view of an array's octets, unchecked.
    pub fn new(values: &'a [u8]) -> Self {
        Self(values)
    }

    /// The octets behind the array's length.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Walks the values. Ends at the first error.
    pub fn iter(&self) -> Values<'a> {
        Values {
            cursor: Cursor::new(self.0),
        }
    }

    /// Reads the whole array, also what is nested in it.
    ///
    /// # Errors
    /// As [`Table::check`].
    pub fn check(&self) -> Result<(), TableError> {
        check(Nested::Array(*self))
    }
}

enum Nested<'a> {
    Table(Table<'a>),
    Array(Array<'a>),
}

enum Walk<'a> {
    Entries(Entries<'a>),
    Values(Values<'a>),
}

impl<'a> Walk<'a> {
    fn new(nested: Nested<'a>) -> Self {
        match nested {
            Nested::Table(table) => Self::Entries(table.iter()),
            Nested::Array(array) => Self::Values(array.iter()),
        }
    }

    fn next(&mut self) -> Option<Result<Value<'a>, TableError>> {
        match self {
            Self::Entries(entries) => entries.next().map(|entry| entry.map(|(_, value)| value)),
            Self::Values(values) => values.next(),
        }
    }
}

fn check(outermost: Nested<'_>) -> Result<(), TableError> {
    let mut walks: [Option<Walk<'_>>; DEPTH_MAX] = [const { None }; DEPTH_MAX];
    walks[0] = Some(Walk::new(outermost));
    let mut depth = 0;
    loop {
        let nested = match walks[depth].as_mut().and_then(Walk::next) {
            Some(value) => match value? {
                Value::Table(table) => Nested::Table(table),
                Value::Array(array) => Nested::Array(array),
                _ => continue,
            },
            None if depth == 0 => return Ok(()),
            None => {
                depth -= 1;
                continue;
            }
        };
        depth += 1;
        *walks.get_mut(depth).ok_or(TableError::TooDeep)? = Some(Walk::new(nested));
    }
}

/// Walks a table's entries.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Entries<'a> {
    fn entry(&mut self) -> Result<(&'a [u8], Value<'a>), TableError> {
        let length = self.cursor.u8()?;
        let name = self.cursor.take(usize::from(length))?;
        Ok((name, read_value(&mut self.cursor)?))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(&'a [u8], Value<'a>), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cursor.remaining() == 0 {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.cursor = Cursor::new(&[]);
        }
        Some(entry)
    }
}

/// Walks an array's values.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Result<Value<'a>, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cursor.remaining() == 0 {
            return None;
        }
        let value = read_value(&mut self.cursor);
        if value.is_err() {
            self.cursor = Cursor::new(&[]);
        }
        Some(value)
    }
}

fn read_value<'a>(cursor: &mut Cursor<'a>) -> Result<Value<'a>, TableError> {
    Ok(match cursor.u8()? {
        b't' => Value::Bool(cursor.u8()? != 0),
        b'b' => Value::Byte(cursor.u8()? as i8),
        b'B' => Value::UnsignedByte(cursor.u8()?),
        b's' => Value::Short(cursor.u16()? as i16),
        b'u' => Value::UnsignedShort(cursor.u16()?),
        b'I' => Value::Int(cursor.u32()? as i32),
        b'i' => Value::UnsignedInt(cursor.u32()?),
        b'l' => Value::Long(cursor.u64()? as i64),
        b'L' => Value::LongLong(cursor.u64()? as i64),
        b'f' => Value::Float(f32::from_bits(cursor.u32()?)),
        b'd' => Value::Double(f64::from_bits(cursor.u64()?)),
        b'D' => Value::Decimal {
            scale: cursor.u8()?,
            value: cursor.u32()?,
        },
        b'S' => Value::LongStr(cursor.bytes32()?),
        b'A' => Value::Array(Array(cursor.bytes32()?)),
        b'T' => Value::Timestamp(cursor.u64()?),
        b'F' => Value::Table(Table(cursor.bytes32()?)),
        b'V' => Value::Void,
        b'x' => Value::Binary(cursor.bytes32()?),
        unknown => return Err(TableError::UnknownType(unknown)),
    })
}

/// Appends a value with its type octet.
pub fn put_value(out: &mut BytesMut, value: Value<'_>) {
    fn long(out: &mut BytesMut, kind: u8, bytes: &[u8]) {
        out.put_u8(kind);
        out.put_u32(bytes.len() as u32);
        out.put_slice(bytes);
    }
    match value {
        Value::Bool(value) => out.put_slice(&[b't', u8::from(value)]),
        Value::Byte(value) => out.put_slice(&[b'b', value as u8]),
        Value::UnsignedByte(value) => out.put_slice(&[b'B', value]),
        Value::Short(value) => {
            out.put_u8(b's');
            out.put_i16(value);
        }
        Value::UnsignedShort(value) => {
            out.put_u8(b'u');
            out.put_u16(value);
        }
        Value::Int(value) => {
            out.put_u8(b'I');
            out.put_i32(value);
        }
        Value::UnsignedInt(value) => {
            out.put_u8(b'i');
            out.put_u32(value);
        }
        Value::Long(value) => {
            out.put_u8(b'l');
            out.put_i64(value);
        }
        Value::LongLong(value) => {
            out.put_u8(b'L');
            out.put_i64(value);
        }
        Value::Float(value) => {
            out.put_u8(b'f');
            out.put_u32(value.to_bits());
        }
        Value::Double(value) => {
            out.put_u8(b'd');
            out.put_u64(value.to_bits());
        }
        Value::Decimal { scale, value } => {
            out.put_slice(&[b'D', scale]);
            out.put_u32(value);
        }
        Value::LongStr(bytes) => long(out, b'S', bytes),
        Value::Array(array) => long(out, b'A', array.0),
        Value::Timestamp(value) => {
            out.put_u8(b'T');
            out.put_u64(value);
        }
        Value::Table(table) => long(out, b'F', table.0),
        Value::Void => out.put_u8(b'V'),
        Value::Binary(bytes) => long(out, b'x', bytes),
    }
}

/// Writes a table's entries.
#[derive(Debug, Default)]
pub struct TableWriter {
    entries: BytesMut,
}

impl TableWriter {
    /// Adds an entry; a name longer than 255 octets is cut.
    pub fn put(&mut self, name: &[u8], value: Value<'_>) -> &mut Self {
        super::put_short_str(&mut self.entries, name);
        put_value(&mut self.entries, value);
        self
    }

    /// The table so far.
    pub fn table(&self) -> Table<'_> {
        Table(&self.entries)
    }
}
