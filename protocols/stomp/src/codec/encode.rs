//! Frames to bytes: the pieces that sessions put frames together from.

use bytes::{BufMut, BytesMut};
use memchr::{memchr, memchr3};

use super::{Command, Version};

/// The end of every frame we send: the NUL, and a line feed that makes it readable.
pub const END_OF_FRAME: &[u8] = b"\0\n";

/// Begins a frame.
pub fn put_command(out: &mut BytesMut, command: Command) {
    out.put_slice(command.name().as_bytes());
    out.put_u8(b'\n');
}

/// A header of a frame that is never escaped, or whose text needs no escape.
pub fn put_plain_header(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_u8(b':');
    out.put_slice(value);
    out.put_u8(b'\n');
}

/// A header whose value is a number.
pub fn put_number_header(out: &mut BytesMut, name: &str, value: u64) {
    put_plain_header(out, name, itoa::Buffer::new().format(value).as_bytes());
}

/// A header. 1.0 has no escapes: one that cannot stand there as it is is left out.
pub fn put_header(out: &mut BytesMut, version: Version, name: &[u8], value: &[u8]) {
    if version == Version::V10 {
        let cannot_stand = memchr3(b'\n', b':', b'\r', name).is_some() || memchr(b'\n', value).is_some();
        if !cannot_stand {
            out.put_slice(name);
            out.put_u8(b':');
            out.put_slice(value);
            out.put_u8(b'\n');
        }
        return;
    }
    put_escaped(out, version, name);
    out.put_u8(b':');
    put_escaped(out, version, value);
    out.put_u8(b'\n');
}

/// A name or value with escape sequences where it needs them. 1.1 knows none for CR, which may stand there.
pub fn put_escaped(out: &mut BytesMut, version: Version, text: &[u8]) {
    let has_return = version >= Version::V12 && memchr(b'\r', text).is_some();
    if memchr3(b'\n', b':', b'\\', text).is_none() && !has_return {
        out.put_slice(text);
        return;
    }
    for &byte in text {
        match byte {
            b'\n' => out.put_slice(b"\\n"),
            b':' => out.put_slice(b"\\c"),
            b'\\' => out.put_slice(b"\\\\"),
            b'\r' if version >= Version::V12 => out.put_slice(b"\\r"),
            byte => out.put_u8(byte),
        }
    }
}

/// Headers that are kept in a message, as 1.2 writes them, for a reader of any version.
pub fn put_stored_headers(out: &mut BytesMut, version: Version, block: &[u8]) {
    if version >= Version::V12 || memchr(b'\\', block).is_none() {
        out.put_slice(block);
        return;
    }
    let mut plain = BytesMut::new();
    for line in block.split(|b| *b == b'\n') {
        let Some(colon) = memchr(b':', line) else { continue };
        plain.clear();
        put_stored_unescaped(&mut plain, &line[..colon]);
        let name_len = plain.len();
        put_stored_unescaped(&mut plain, &line[colon + 1..]);
        put_header(out, version, &plain[..name_len], &plain[name_len..]);
    }
}

fn put_stored_unescaped(out: &mut BytesMut, text: &[u8]) {
    let mut escaped = false;
    for &byte in text {
        match (escaped, byte) {
            (false, b'\\') => escaped = true,
            (false, byte) => out.put_u8(byte),
            (true, byte) => {
                out.put_u8(match byte {
                    b'n' => b'\n',
                    b'c' => b':',
                    b'r' => b'\r',
                    other => other,
                });
                escaped = false;
            }
        }
    }
}

/// A header as it is kept in a message: as 1.2 writes it.
pub fn put_stored_escaped(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put_header(out, Version::V12, name, value);
}
