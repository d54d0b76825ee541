//! Writing commands: one builder for both forms, straight into the outbox.

use bytes::{BufMut, BytesMut};

use super::{FLAG_ONEWAY, FLAG_RESPONSE, SerializeType};

/// What we say our version is: RocketMQ 5.3.3 (its ordinal in RocketMQ's list). Clients take some
/// things for granted from a version on; it has to fit in 15 bits for the Go client.
pub const VERSION: i32 = 479;

/// JAVA, in both forms: every client knows it.
const LANGUAGE: u8 = 0;

/// Writes one command. Fields are added one by one, then [`finish`](Self::finish) completes the header;
/// the body is appended behind it by whoever called.
#[must_use]
pub struct Writer<'a> {
    out: &'a mut BytesMut,
    start: usize,
    serialize_type: SerializeType,
    opaque: i32,
    flag: i32,
    remark: &'a str,
    /// Where the fields begin (binary), or whether there are any (JSON).
    fields_at: usize,
    has_fields: bool,
}

impl<'a> Writer<'a> {
    /// A response; an empty remark is none.
    pub fn response(
        out: &'a mut BytesMut,
        serialize_type: SerializeType,
        opaque: i32,
        code: i32,
        remark: &'a str,
    ) -> Self {
        Self::new(out, serialize_type, opaque, code, FLAG_RESPONSE, remark)
    }

    /// A request of ours that wants no answer. Always JSON, which every client reads.
    pub fn oneway(out: &'a mut BytesMut, opaque: i32, code: i32) -> Self {
        Self::new(out, SerializeType::Json, opaque, code, FLAG_ONEWAY, "")
    }

    /// A command with any flag.
    pub fn new(
        out: &'a mut BytesMut,
        serialize_type: SerializeType,
        opaque: i32,
        code: i32,
        flag: i32,
        remark: &'a str,
    ) -> Self {
        let start = out.len();
        out.reserve(256);
        // Length and header length are written by `finish`.
        out.put_u64(0);
        match serialize_type {
            SerializeType::Json => {
                out.put_slice(b"{\"code\":");
                push_number(out, i64::from(code));
            }
            SerializeType::RocketMq => {
                out.put_i16(code as i16);
                out.put_u8(LANGUAGE);
                out.put_i16(VERSION as i16);
                out.put_i32(opaque);
                out.put_i32(flag);
                out.put_u32(remark.len() as u32);
                out.put_slice(remark.as_bytes());
                out.put_u32(0);
            }
        }
        let fields_at = out.len();
        Self {
            out,
            start,
            serialize_type,
            opaque,
            flag,
            remark,
            fields_at,
            has_fields: false,
        }
    }

    /// Adds a text field.
    pub fn text(&mut self, name: &str, value: &[u8]) {
        match self.serialize_type {
            SerializeType::Json => {
                self.json_name(name);
                push_string(self.out, value);
            }
            SerializeType::RocketMq => {
                self.binary_name(name);
                self.out.put_u32(value.len() as u32);
                self.out.put_slice(value);
            }
        }
    }

    /// Adds a number field, as text like all fields.
    pub fn number(&mut self, name: &str, value: i64) {
        match self.serialize_type {
            SerializeType::Json => {
                self.json_name(name);
                self.out.put_u8(b'"');
                push_number(self.out, value);
                self.out.put_u8(b'"');
            }
            SerializeType::RocketMq => {
                self.binary_name(name);
                let length_at = self.out.len();
                self.out.put_u32(0);
                push_number(self.out, value);
                let length = (self.out.len() - length_at - 4) as u32;
                self.out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
    }

    fn json_name(&mut self, name: &str) {
        let open: &[u8] = if self.has_fields { b",\"" } else { b",\"extFields\":{\"" };
        self.has_fields = true;
        self.out.put_slice(open);
        self.out.put_slice(name.as_bytes());
        self.out.put_slice(b"\":");
    }

    fn binary_name(&mut self, name: &str) {
        self.out.put_u16(name.len() as u16);
        self.out.put_slice(name.as_bytes());
    }

    /// Completes the header of a command whose body will have that many bytes.
    pub fn finish(self, body_length: usize) {
        match self.serialize_type {
            SerializeType::Json => {
                if self.has_fields {
                    self.out.put_u8(b'}');
                }
                self.out.put_slice(b",\"flag\":");
                push_number(self.out, i64::from(self.flag));
                self.out.put_slice(b",\"language\":\"JAVA\",\"opaque\":");
                push_number(self.out, i64::from(self.opaque));
                if !self.remark.is_empty() {
                    self.out.put_slice(b",\"remark\":");
                    push_string(self.out, self.remark.as_bytes());
                }
                self.out
                    .put_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
                push_number(self.out, i64::from(VERSION));
                self.out.put_u8(b'}');
            }
            SerializeType::RocketMq => {
                let length = (self.out.len() - self.fields_at) as u32;
                self.out[self.fields_at - 4..self.fields_at].copy_from_slice(&length.to_be_bytes());
            }
        }
        let header_length = self.out.len() - self.start - 8;
        let length = (4 + header_length + body_length) as u32;
        let mark = (self.serialize_type as u32) << 24 | header_length as u32;
        self.out[self.start..self.start + 4].copy_from_slice(&length.to_be_bytes());
        self.out[self.start + 4..self.start + 8].copy_from_slice(&mark.to_be_bytes());
    }
}

/// Appends a number in decimal.
pub fn push_number(out: &mut BytesMut, value: i64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.put_u8(b'-');
    }
    out.put_slice(&digits[at..]);
}

/// Appends a JSON string; what is not UTF-8 is replaced.
pub fn push_string(out: &mut BytesMut, text: &[u8]) {
    out.put_u8(b'"');
    let plain = |b: &u8| *b >= 0x20 && *b != b'"' && *b != b'\\' && *b < 0x80;
    if text.iter().all(plain) {
        out.put_slice(text);
    } else {
        for character in String::from_utf8_lossy(text).chars() {
            match character {
                '"' => out.put_slice(b"\\\""),
                '\\' => out.put_slice(b"\\\\"),
                '\n' => out.put_slice(b"\\n"),
                '\r' => out.put_slice(b"\\r"),
                '\t' => out.put_slice(b"\\t"),
                control if control < ' ' => {
                    let hex = b"0123456789abcdef";
                    let byte = control as usize;
                    out.put_slice(b"\\u00");
                    out.put_u8(hex[byte >> 4]);
                    out.put_u8(hex[byte & 15]);
                }
                other => out.put_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        let mut out = BytesMut::new();
        for number in [0, 7, -1, i64::MAX, i64::MIN] {
            out.clear();
            push_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    #[test]
    fn strings_read_back_as_they_were() {
        for text in ["", "plain", "a\u{1}b\"c\\d\n\t\r/é😀"] {
            let mut out = BytesMut::new();
            push_string(&mut out, text.as_bytes());
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
