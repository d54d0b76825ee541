//! Headers as JSON: read in one pass, without recursion and without allocating.
//!
//! Only the keys that matter are looked at, everything else is skipped, however it is nested (to a
//! depth of [`DEPTH_MAX`]). A number where text is due is taken as its own spelling, as fastjson does.

use super::{FIELDS_MAX, Head, HeaderError, Language, Text};

/// Deepest nesting of values that are skipped.
const DEPTH_MAX: u32 = 64;

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Reads a header.
///
/// # Errors
/// [`HeaderError`] when it is no JSON object or a number is out of range.
pub(crate) fn parse(header: &[u8], head: &mut Head, fields: &mut Vec<(Text, Text)>) -> Result<(), HeaderError> {
    if std::str::from_utf8(header).is_err() {
        return Err(HeaderError::Utf8);
    }
    let mut scanner = Scanner { bytes: header, at: 0 };
    scanner.object(|scanner, key| {
        match &scanner.bytes[key.start as usize..key.end as usize] {
            b"code" => head.code = scanner.int()?,
            b"language" => {
                if let Some(Text { start, end, .. }) = scanner.scalar()?
                    && &scanner.bytes[start as usize..end as usize] == b"GO"
                {
                    head.language = Language::Go;
                }
            }
            b"version" => head.version = scanner.int()?,
            b"opaque" => head.opaque = scanner.int()?,
            b"flag" => head.flag = scanner.int()?,
            b"remark" => head.remark = scanner.scalar()?,
            b"extFields" => {
                if scanner.peek()? == b'{' {
                    scanner.object(|scanner, key| {
                        if let Some(value) = scanner.scalar()? {
                            if fields.len() == FIELDS_MAX {
                                return Err(HeaderError::Fields);
                            }
                            fields.push((key, value));
                        }
                        Ok(())
                    })?;
                } else {
                    scanner.skip()?;
                }
            }
            _ => scanner.skip()?,
        }
        Ok(())
    })?;
    scanner.space();
    if scanner.at < header.len() {
        return Err(HeaderError::Syntax(scanner.at));
    }
    Ok(())
}

/// Where the first quote or backslash is. Most texts are a few bytes long, which a search made for long ones does not
/// pay for; properties are not.
#[inline]
fn special(bytes: &[u8]) -> Option<usize> {
    const FEW: usize = 16;
    let few = &bytes[..bytes.len().min(FEW)];
    if let Some(at) = few.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        return Some(at);
    }
    Some(few.len() + memchr::memchr2(b'"', b'\\', &bytes[few.len()..])?)
}

impl Scanner<'_> {
    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte that is not white space.
    #[inline]
    fn peek(&mut self) -> Result<u8, HeaderError> {
        self.space();
        self.bytes.get(self.at).copied().ok_or(HeaderError::Truncated)
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), HeaderError> {
        if self.peek()? != byte {
            return Err(HeaderError::Syntax(self.at));
        }
        self.at += 1;
        Ok(())
    }

    fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Text) -> Result<(), HeaderError>,
    ) -> Result<(), HeaderError> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let key = self.string()?;
            self.expect(b':')?;
            member(self, key)?;
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(HeaderError::Syntax(self.at)),
            }
        }
    }

    fn string(&mut self) -> Result<Text, HeaderError> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += special(rest).ok_or(HeaderError::Truncated)? + 1;
            if self.bytes[self.at - 1] == b'"' {
                return Ok(Text {
                    start: start as u32,
                    end: self.at as u32 - 1,
                    escaped,
                });
            }
            escaped = true;
            self.escape()?;
        }
    }

    /// Behind a backslash.
    fn escape(&mut self) -> Result<(), HeaderError> {
        match self.bytes.get(self.at).ok_or(HeaderError::Truncated)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
            b'u' => {
                let digits = self.bytes.get(self.at + 1..self.at + 5).ok_or(HeaderError::Truncated)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(HeaderError::Syntax(self.at));
                }
                self.at += 5;
            }
            _ => return Err(HeaderError::Syntax(self.at)),
        }
        Ok(())
    }

    /// A string, or the spelling of any other value; `None` for null.
    fn scalar(&mut self) -> Result<Option<Text>, HeaderError> {
        if self.peek()? == b'"' {
            return self.string().map(Some);
        }
        let start = self.at;
        self.skip()?;
        if &self.bytes[start..self.at] == b"null" {
            return Ok(None);
        }
        Ok(Some(Text {
            start: start as u32,
            end: self.at as u32,
            escaped: false,
        }))
    }

    fn int(&mut self) -> Result<i32, HeaderError> {
        let at = self.at;
        let Some(text) = self.scalar()? else { return Ok(0) };
        std::str::from_utf8(&self.bytes[text.start as usize..text.end as usize])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or(HeaderError::Number(at))
    }

    /// Passes over one value.
    fn skip(&mut self) -> Result<(), HeaderError> {
        // One bit for each open bracket: whether it is a square one.
        let mut open: u64 = 0;
        let mut depth = 0;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                bracket @ (b'{' | b'[') => {
                    if depth == DEPTH_MAX {
                        return Err(HeaderError::Depth);
                    }
                    open = open << 1 | u64::from(bracket == b'[');
                    depth += 1;
                    self.at += 1;
                }
                bracket @ (b'}' | b']') => {
                    if depth == 0 || open & 1 != u64::from(bracket == b']') {
                        return Err(HeaderError::Syntax(self.at));
                    }
                    open >>= 1;
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                _ => self.word()?,
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) -> Result<(), HeaderError> {
        let start = self.at;
        while let Some(b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'+' | b'.') = self.bytes.get(self.at) {
            self.at += 1;
        }
        let word = &self.bytes[start..self.at];
        let known = matches!(word, b"true" | b"false" | b"null");
        let number = word.first().is_some_and(|b| b.is_ascii_digit() || *b == b'-')
            && word[1..]
                .iter()
                .all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E'));
        if known || number {
            Ok(())
        } else {
            Err(HeaderError::Syntax(start))
        }
    }
}

/// Appends the text that a scanned string stands for. Half of a surrogate pair becomes U+FFFD.
pub(crate) fn unescape(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|b| *b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let (byte, after) = match &rest[at + 1..] {
            [b'u', digits @ ..] => {
                rest = unescape_unicode(digits, out);
                continue;
            }
            [b'b', after @ ..] => (8, after),
            [b'f', after @ ..] => (12, after),
            [b'n', after @ ..] => (b'\n', after),
            [b'r', after @ ..] => (b'\r', after),
            [b't', after @ ..] => (b'\t', after),
            [byte, after @ ..] => (*byte, after),
            [] => return,
        };
        out.push(byte);
        rest = after;
    }
    out.extend_from_slice(rest);
}

/// Behind `\u`; gives what follows.
fn unescape_unicode<'a>(digits: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let Some((unit, mut rest)) = hex_unit(digits) else {
        return &[];
    };
    if unit < 0x80 {
        out.push(unit as u8);
        return rest;
    }
    let mut point = u32::from(unit);
    if (0xD800..0xDC00).contains(&unit)
        && let Some(low) = rest.strip_prefix(b"\\u")
        && let Some((low, after)) = hex_unit(low)
        && (0xDC00..0xE000).contains(&low)
    {
        point = 0x10000 + ((point - 0xD800) << 10) + (u32::from(low) - 0xDC00);
        rest = after;
    }
    let character = char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    rest
}

fn hex_unit(digits: &[u8]) -> Option<(u16, &[u8])> {
    let (digits, rest) = digits.split_first_chunk::<4>()?;
    let mut unit = 0;
    for digit in digits {
        unit = unit << 4 | char::from(*digit).to_digit(16)? as u16;
    }
    Some((unit, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unescaped(raw: &str) -> String {
        let mut out = Vec::new();
        unescape(raw.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_become_the_text_they_stand_for() {
        assert_eq!(unescaped(r#"a\u0001b\u0002"#), "a\u{1}b\u{2}");
        assert_eq!(unescaped(r#"\"\\\/\b\f\n\r\t"#), "\"\\/\u{8}\u{c}\n\r\t");
        assert_eq!(unescaped(r"\u00e9\ud83d\ude00\ud83dx\ude00"), "é😀\u{fffd}x\u{fffd}");
    }

    #[test]
    fn nesting_is_skipped_up_to_a_depth_and_refused_beyond_it() {
        let parsed = |depth: usize| {
            let header = format!(r#"{{"x":{}{},"code":7}}"#, "[".repeat(depth), "]".repeat(depth));
            let mut head = Head::default();
            parse(header.as_bytes(), &mut head, &mut Vec::new()).map(|()| head.code)
        };
        assert_eq!(parsed(64), Ok(7));
        assert_eq!(parsed(65), Err(HeaderError::Depth));
        assert_eq!(parsed(50_000), Err(HeaderError::Depth));
    }
}
