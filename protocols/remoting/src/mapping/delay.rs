//! When a message is to be delivered, and the handle by which its producer takes it back.

use bytes::Bytes;
use rocketbridge_core::boundary::Deliver;
use rocketbridge_core::request::DELAY_LEVELS;
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::Millis;

use crate::response_code::{Refused, ResponseCode};

/// The properties that say when, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// `DELAY`: a level.
    pub level: Option<&'a [u8]>,
    /// `TIMER_DELAY_SEC`.
    pub seconds: Option<&'a [u8]>,
    /// `TIMER_DELAY_MS`.
    pub millis: Option<&'a [u8]>,
    /// `TIMER_DELIVER_MS`: a time.
    pub at: Option<&'a [u8]>,
    /// `TIMER_OUT_MS`: a broker has dealt with it before.
    pub out: Option<&'a [u8]>,
}

/// When a message is to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// In core's words.
    pub deliver: Deliver,
    /// The time on the wall, as far as it is known now.
    pub due: Option<Millis>,
    /// A level says so: the other properties do not count and are dropped.
    pub by_level: bool,
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn illegal() -> Refused {
    Refused::new(
        ResponseCode::MessageIllegal,
        "timer message illegal, the delay time is no number",
    )
}

impl Given<'_> {
    /// A level counts before seconds, those before milliseconds, those before a time. What lies in the past
    /// is delivered now.
    ///
    /// # Errors
    /// 13 for what is no number.
    pub fn when(&self, now: Millis) -> Result<When, Refused> {
        if let Some(level) = self.level {
            let level = number(level).ok_or_else(illegal)?;
            if level > 0 {
                let delay = DELAY_LEVELS[(level as usize).min(DELAY_LEVELS.len()) - 1];
                return Ok(When {
                    deliver: Deliver::After(delay),
                    due: Some(now + delay),
                    by_level: true,
                });
            }
        }
        if self.out.is_some() {
            return Ok(When::default());
        }
        let span = |text: &[u8], unit: u64| -> Result<(Deliver, Millis), Refused> {
            let number = number(text).ok_or_else(illegal)?;
            let delay = Millis(u64::try_from(number).unwrap_or(0).saturating_mul(unit));
            Ok((Deliver::After(delay), now + delay))
        };
        let (deliver, due) = match (self.seconds, self.millis, self.at) {
            (Some(text), ..) => span(text, 1000)?,
            (None, Some(text), _) => span(text, 1)?,
            (None, None, Some(text)) => {
                let at = Millis(u64::try_from(number(text).ok_or_else(illegal)?).unwrap_or(0));
                (Deliver::At(at), at)
            }
            (None, None, None) => return Ok(When::default()),
        };
        if due <= now {
            return Ok(When::default());
        }
        Ok(When {
            deliver,
            due: Some(due),
            by_level: false,
        })
    }
}

/// What a recall handle names: RocketMQ's five words, and where the message lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The topic.
    pub topic: Bytes,
    /// The broker that has the message.
    pub broker: Bytes,
    /// When it is due, Unix milliseconds.
    pub due: Millis,
    /// The message's unique key.
    pub unique_key: Bytes,
    /// Its position; `None` in a handle that another broker made.
    pub position: Option<Position>,
}

impl Handle {
    /// The handle as text.
    pub fn encode(&self) -> String {
        let mut raw = Vec::new();
        raw.extend_from_slice(b"v1 ");
        for word in [&self.topic[..], &self.broker, self.due.0.to_string().as_bytes()] {
            raw.extend_from_slice(word);
            raw.push(b' ');
        }
        raw.extend_from_slice(&self.unique_key);
        if let Some(position) = self.position {
            raw.extend_from_slice(format!(" {position}").as_bytes());
        }
        encode_base64(&raw)
    }

    /// Reads a handle. `None` when it is none.
    pub fn decode(text: &[u8]) -> Option<Self> {
        let raw = decode_base64(text)?;
        let words: Vec<&[u8]> = raw.split(|byte| *byte == b' ').collect();
        let [b"v1", topic, broker, due, unique_key, rest @ ..] = &words[..] else {
            return None;
        };
        let word = |word: &[u8]| Bytes::copy_from_slice(word);
        let unsigned = |word: &[u8]| u64::try_from(number(word)?).ok();
        Some(Self {
            topic: word(topic),
            broker: word(broker),
            due: Millis(unsigned(due)?),
            unique_key: word(unique_key),
            position: rest.first().and_then(|word| unsigned(word)).map(Position),
        })
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64 for URLs, with padding, as Java's encoder writes it.
fn encode_base64(raw: &[u8]) -> String {
    let mut text = String::with_capacity(raw.len().div_ceil(3) * 4);
    for piece in raw.chunks(3) {
        let mut bytes = [0; 3];
        bytes[..piece.len()].copy_from_slice(piece);
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for at in 0..4 {
            if at <= piece.len() {
                text.push(char::from(ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().position(|byte| *byte == b'=').unwrap_or(text.len());
    let (digits, padding) = text.split_at(end);
    if padding.len() > 2 || padding.iter().any(|byte| *byte != b'=') || digits.len() % 4 == 1 {
        return None;
    }
    let mut raw = Vec::with_capacity(digits.len() * 3 / 4);
    for piece in digits.chunks(4) {
        let mut bits = 0u32;
        for at in 0..4 {
            let value = match piece.get(at) {
                Some(digit) => ALPHABET.iter().position(|known| known == digit)? as u32,
                None => 0,
            };
            bits = bits << 6 | value;
        }
        raw.extend_from_slice(&bits.to_be_bytes()[1..piece.len()]);
    }
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_700_000_000_000);

    fn when(given: Given<'_>) -> Option<Deliver> {
        given.when(NOW).ok().map(|when| when.deliver)
    }

    #[test]
    fn a_level_counts_before_seconds_before_milliseconds_before_a_time() {
        let all = Given {
            level: Some(b"2"),
            seconds: Some(b"7"),
            millis: Some(b"8"),
            at: Some(b"1700000009000"),
            out: None,
        };
        assert_eq!(when(all), Some(Deliver::After(Millis(5000))));
        let all = Given {
            level: Some(b"0"),
            ..all
        };
        assert_eq!(when(all), Some(Deliver::After(Millis(7000))));
        let all = Given { seconds: None, ..all };
        assert_eq!(when(all), Some(Deliver::After(Millis(8))));
        let all = Given { millis: None, ..all };
        assert_eq!(when(all), Some(Deliver::At(Millis(1_700_000_009_000))));
        let dealt_with = Given { out: Some(b"1"), ..all };
        assert_eq!(when(dealt_with), Some(Deliver::Now));
    }

    #[test]
    fn levels_end_at_18_and_the_past_is_now() {
        let level = |level| {
            when(Given {
                level: Some(level),
                ..Given::default()
            })
        };
        assert_eq!(level(b"18"), Some(Deliver::After(Millis(7_200_000))));
        assert_eq!(level(b"99"), Some(Deliver::After(Millis(7_200_000))));
        assert_eq!(level(b"-1"), Some(Deliver::Now));
        assert_eq!(level(b"x"), None);
        let at = |at| {
            when(Given {
                at: Some(at),
                ..Given::default()
            })
        };
        for past in [&b"0"[..], b"-5", b"1700000000000"] {
            assert_eq!(at(past), Some(Deliver::Now));
        }
        assert_eq!(at(b"soon"), None);
        let seconds = |seconds| {
            when(Given {
                seconds: Some(seconds),
                ..Given::default()
            })
        };
        assert_eq!(seconds(b"-3"), Some(Deliver::Now));
        assert_eq!(
            seconds(b"9223372036854775807"),
            Some(Deliver::After(Millis(u64::MAX / 1000 * 1000 + 615)))
        );
    }

    #[test]
    fn a_handle_is_what_java_makes_of_its_words() {
        let handle = Handle {
            topic: Bytes::from_static(b"T"),
            broker: Bytes::from_static(b"broker-a"),
            due: Millis(1_700_000_000_001),
            unique_key: Bytes::from_static(b"KEY"),
            position: None,
        };
        // Base64.getUrlEncoder().encodeToString("v1 T broker-a 1700000000001 KEY".getBytes(UTF_8))
        assert_eq!(handle.encode(), "djEgVCBicm9rZXItYSAxNzAwMDAwMDAwMDAxIEtFWQ==");
        assert_eq!(Handle::decode(handle.encode().as_bytes()), Some(handle.clone()));
        for position in [0, 8, 1 << 40] {
            let handle = Handle {
                position: Some(Position(position)),
                ..handle.clone()
            };
            assert_eq!(Handle::decode(handle.encode().as_bytes()), Some(handle));
        }
        for bad in [&b""[..], b"====", b"djEg", b"a", b"\xff\xff", b"djIgVCBiIDEgSw=="] {
            assert_eq!(Handle::decode(bad), None, "{bad:?}");
        }
    }
}
