//! A frame's command and headers, parsed with nom from a slice that is known to hold all of them.

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memchr;
use nom::error::{ErrorKind, ParseError};
use nom::multi::fold_many0;
use nom::{Err, IResult, Offset, Parser};
use smallvec::SmallVec;

use super::{Command, Fault, Version};

/// Where a header's name and value lie in the head.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    name: (u32, u32),
    value: (u32, u32),
}

impl Header {
    /// Its name in that head.
    pub fn name<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[self.name.0 as usize..self.name.1 as usize]
    }

    /// Its value in that head.
    pub fn value<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[self.value.0 as usize..self.value.1 as usize]
    }
}

/// The headers of a frame, in their order.
pub type Headers = SmallVec<[Header; 12]>;

/// A parsed head: places in the slice it was parsed from.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub command: Command,
    pub command_len: u32,
    pub headers: Headers,
}

impl ParseError<&[u8]> for Fault {
    /// Only "not one more header" is ever made by nom itself, and that ends the list.
    fn from_error_kind(_: &[u8], _: ErrorKind) -> Self {
        Self::NoBlankLine
    }

    fn append(_: &[u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// A line without its end, which is LF or CR LF.
fn line(input: &[u8]) -> IResult<&[u8], &[u8], Fault> {
    let end = memchr(b'\n', input).ok_or(Err::Error(Fault::NoBlankLine))?;
    let text = &input[..end];
    Ok((&input[end + 1..], text.strip_suffix(b"\r").unwrap_or(text)))
}

/// A name and a value, split at the first colon: many clients do not escape those in values.
fn header(input: &[u8]) -> IResult<&[u8], (&[u8], &[u8]), Fault> {
    let (rest, text) = line(input)?;
    let colon = memchr(b':', text).ok_or(Err::Failure(Fault::NoColon))?;
    if colon == 0 {
        return Err(Err::Failure(Fault::NoName));
    }
    Ok((rest, (&text[..colon], &text[colon + 1..])))
}

fn place(head: &[u8], part: &[u8]) -> (u32, u32) {
    let start = head.offset(part);
    (start as u32, (start + part.len()) as u32)
}

/// Parses command and headers; `head` ends with the last header's line end.
pub(super) fn parse(head: &[u8]) -> Result<Head, Fault> {
    let headers = fold_many0(header, Headers::new, |mut headers, (name, value)| {
        headers.push(Header {
            name: place(head, name),
            value: place(head, value),
        });
        headers
    });
    match (line, headers).parse(head) {
        Ok((_, (command, headers))) => Ok(Head {
            command: Command::from_name(command),
            command_len: command.len() as u32,
            headers,
        }),
        Err(Err::Error(fault) | Err::Failure(fault)) => Err(fault),
        Err(Err::Incomplete(_)) => Err(Fault::NoBlankLine),
    }
}

impl Head {
    /// The first header of that name.
    pub fn find<'a>(&self, head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        self.headers
            .iter()
            .find(|h| h.name(head) == name)
            .map(|h| h.value(head))
    }

    /// What 1.0 does: blanks around a value do not count.
    pub fn trim(&mut self, head: &[u8]) {
        for header in &mut self.headers {
            let value = header.value(head);
            header.value = place(head, value.trim_ascii());
        }
    }

    /// Replaces escape sequences in names and values; the result is another head.
    pub fn unescape(&mut self, head: &[u8], version: Version) -> Result<Bytes, Fault> {
        let mut out = BytesMut::with_capacity(head.len());
        out.put_slice(&head[..self.command_len as usize]);
        for header in &mut self.headers {
            let mut copy = |part: &[u8]| {
                let start = out.len() as u32;
                put_unescaped(part, version, &mut out)?;
                Ok((start, out.len() as u32))
            };
            header.name = copy(&head[header.name.0 as usize..header.name.1 as usize])?;
            header.value = copy(&head[header.value.0 as usize..header.value.1 as usize])?;
        }
        Ok(out.freeze())
    }
}

fn put_unescaped(text: &[u8], version: Version, out: &mut BytesMut) -> Result<(), Fault> {
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest) {
        out.put_slice(&rest[..at]);
        out.put_u8(match rest.get(at + 1) {
            Some(b'n') => b'\n',
            Some(b'c') => b':',
            Some(b'\\') => b'\\',
            Some(b'r') if version >= Version::V12 => b'\r',
            _ => return Err(Fault::Escape),
        });
        rest = &rest[at + 2..];
    }
    out.put_slice(rest);
    Ok(())
}
