//! Whether bytes that come or go in pieces are text.

use std::io::IoSlice;
use std::str;

use tungstenite::protocol::frame::coding::CloseCode;

/// Longest encoding of one character.
const CHARACTER_MAX: usize = 4;

/// Checks a text message in pieces (RFC 6455, 8.1).
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose rest has not come.
    part: [u8; CHARACTER_MAX],
    len: u8,
}

impl Utf8 {
    /// The next piece; `is_last` when the message ends with it.
    pub fn take(&mut self, piece: &[u8], is_last: bool) -> Result<(), CloseCode> {
        let mut rest = piece;
        while self.len > 0 {
            let Some((next, after)) = rest.split_first() else { break };
            self.part[usize::from(self.len)] = *next;
            self.len += 1;
            rest = after;
            match str::from_utf8(&self.part[..usize::from(self.len)]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return Err(CloseCode::Invalid),
                Err(_) => {}
            }
        }
        if let Err(error) = str::from_utf8(rest) {
            if error.error_len().is_some() {
                return Err(CloseCode::Invalid);
            }
            let part = &rest[error.valid_up_to()..];
            self.part[..part.len()].copy_from_slice(part);
            self.len = part.len() as u8;
        }
        if is_last && std::mem::take(&mut self.len) > 0 {
            return Err(CloseCode::Invalid);
        }
        Ok(())
    }
}

/// How many bytes of the pieces are text, up to the last whole character; `None` when they are none.
pub(super) fn prefix(pieces: &[IoSlice<'_>]) -> Option<usize> {
    let mut utf8 = Utf8::default();
    let mut len = 0;
    for piece in pieces {
        utf8.take(piece, false).ok()?;
        len += piece.len();
    }
    let whole = len - usize::from(utf8.len);
    (whole > 0).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_may_be_cut_anywhere_but_must_end() {
        let text = "a\u{e9}\u{20ac}\u{1d11e}z".as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut utf8 = Utf8::default();
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert!(pieces.iter().all(|piece| utf8.take(piece, false).is_ok()));
                assert_eq!(utf8.take(&[], true), Ok(()));
            }
        }
        for wrong in [&b"\xff"[..], b"\xc3(", b"\xed\xa0\x80", b"\xc0\x80"] {
            let mut utf8 = Utf8::default();
            let result = wrong.iter().try_for_each(|byte| utf8.take(&[*byte], false));
            assert_eq!(result, Err(CloseCode::Invalid), "{wrong:?}");
        }
        assert_eq!(Utf8::default().take(b"a\xc3", true), Err(CloseCode::Invalid));
    }

    #[test]
    fn text_is_sent_up_to_the_last_whole_character() {
        let of = |pieces: &[&[u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            prefix(&pieces)
        };
        assert_eq!(of(&[b"ab", "\u{e9}".as_bytes()]), Some(4));
        assert_eq!(of(&[b"ab\xc3", b"\xa9c"]), Some(5));
        assert_eq!(of(&[b"ab\xc3"]), Some(2));
        assert_eq!(of(&[b"\xc3"]), None);
        assert_eq!(of(&[b"a\xffb"]), None);
    }
}
