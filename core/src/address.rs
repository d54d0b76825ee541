//! The one address space: how a topic name and a key are spelled, and patterns over both.
//!
//! An [`Address`] is a topic and a key. Each protocol's `mapping` turns its own spelling into one and
//! back; this file owns what they share: the encoding of arbitrary bytes into RocketMQ's topic
//! characters, and the pattern that a subscription or binding matches addresses with.

use std::borrow::Cow;

use bytes::Bytes;

/// Longest topic name in bytes; RocketMQ writes its length as a signed byte (record layout V1).
pub const TOPIC_NAME_MAX: usize = 127;

/// A message's address: encoded topic name and key (the native tag, byte for byte).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Encoded topic name, see [`encode_name`].
    pub topic: Bytes,
    /// Levels are this split at `.`; empty means "no key".
    pub key: Bytes,
}

/// The encoded name of the empty name.
pub const EMPTY_NAME: &[u8] = b"|-";

/// Bytes kept of a name that is too long; the rest becomes `|~` and 16 hex digits of its hash.
const CUT_AT: usize = TOPIC_NAME_MAX - 18;

/// Topics that only the broker writes to.
pub const BROKER_TOPICS: [&[u8]; 6] = [
    b"SCHEDULE_TOPIC_XXXX",
    b"RMQ_SYS_TRANS_HALF_TOPIC",
    b"RMQ_SYS_TRANS_OP_HALF_TOPIC",
    b"TRANS_CHECK_MAX_TIME_TOPIC",
    b"SELF_TEST_TOPIC",
    b"OFFSET_MOVED_EVENT",
];

/// What the topics begin with that belong to a consumer group or are a queue's view.
const RESERVED_PREFIXES: [&[u8]; 3] = [b"%RETRY%", b"%DLQ%", b"%LMQ%"];

/// Whether an encoded topic name is one that only native clients, as their protocol says, and the broker write to.
pub fn is_reserved(topic: &[u8]) -> bool {
    match topic.first() {
        Some(b'%') => RESERVED_PREFIXES.iter().any(|prefix| topic.starts_with(prefix)),
        Some(b'O' | b'R' | b'S' | b'T') => BROKER_TOPICS.contains(&topic),
        _ => false,
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'%')
}

/// Encodes any bytes as a RocketMQ topic name of at most [`TOPIC_NAME_MAX`] bytes.
///
/// Allowed bytes (`[%a-zA-Z0-9_-]`) stay; every other byte is `|` and two upper-case hex digits, a
/// literal `|` too. The empty name is `|-`. A name that would be too long is cut and ends in `|~` and
/// a hash of the whole: then [`name_is_cut`] holds and the publisher keeps the original in
/// [`Attribute::Topic`](crate::attributes::Attribute::Topic).
pub fn encode_name(raw: &Bytes) -> Bytes {
    match encode_bytes(raw) {
        Cow::Borrowed(_) => raw.clone(),
        Cow::Owned(name) => name.into(),
    }
}

/// As [`encode_name`]; `raw` itself if it is spelled alike.
pub fn encode_bytes(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.is_empty() && raw.len() <= TOPIC_NAME_MAX && raw.iter().all(|b| is_plain(*b)) {
        return Cow::Borrowed(raw);
    }
    if raw.is_empty() {
        return Cow::Owned(EMPTY_NAME.to_vec());
    }
    let mut name = Vec::with_capacity(raw.len() + 16);
    for &byte in raw {
        if is_plain(byte) {
            name.push(byte);
        } else {
            name.extend_from_slice(&escape(byte));
        }
    }
    if name.len() > TOPIC_NAME_MAX {
        name.truncate(cut_point(&name));
        name.extend_from_slice(b"|~");
        for byte in fnv1a(raw).to_be_bytes() {
            name.extend_from_slice(&escape(byte)[1..]);
        }
    }
    Cow::Owned(name)
}

/// Whether an encoded name is what [`encode_name`] makes of `raw`.
pub fn is_name_of(name: &[u8], raw: &[u8]) -> bool {
    if raw.is_empty() || name_is_cut(name) {
        return encode_bytes(raw) == name;
    }
    if name.len() == raw.len() {
        return name == raw && memchr::memchr(b'|', raw).is_none();
    }
    let mut rest = Some(name);
    for &byte in raw {
        rest = match rest {
            Some(rest) if is_plain(byte) => rest.strip_prefix(&[byte]),
            Some(rest) => rest.strip_prefix(&escape(byte)),
            None => return false,
        };
    }
    rest == Some(&[])
}

/// Never inside an escape, so that what is kept still decodes.
fn cut_point(name: &[u8]) -> usize {
    (CUT_AT - 2..=CUT_AT).find(|at| name[*at] == b'|').unwrap_or(CUT_AT)
}

/// Whether [`encode_name`] had to cut this name, so that [`decode_name`] cannot give the original.
pub fn name_is_cut(name: &[u8]) -> bool {
    name.len() >= 18 && name[name.len() - 18..].starts_with(b"|~")
}

/// The bytes that [`encode_name`] encoded. A name that no encoder made decodes as far as it can:
/// what is not an escape stays as it is. A cut name stays as it is.
pub fn decode_name(name: &[u8]) -> Cow<'_, [u8]> {
    if name == EMPTY_NAME {
        return Cow::Borrowed(b"");
    }
    if !name.contains(&b'|') || name_is_cut(name) {
        return Cow::Borrowed(name);
    }
    let mut raw = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        let escape = (name[at] == b'|')
            .then(|| name.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| Some(hex_value(digits[0])? << 4 | hex_value(digits[1])?));
        match escape {
            Some(byte) => {
                raw.push(byte);
                at += 3;
            }
            None => {
                raw.push(name[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(raw)
}

/// A byte that no name may have, as it is spelled in one.
fn escape(byte: u8) -> [u8; 3] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    [b'|', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// FNV-1a, 64 bit: stable for ever, since it stands in names and picks message queues.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The key of an address whose only level after the topic is empty.
pub const EMPTY_LEVEL_KEY: &[u8] = b"|-";

/// Turns the levels after the topic, joined by `.`, into a key. `None` is "no level at all".
///
/// Exists because an empty key already means no level: one empty level is `|-`, and a key that
/// looks like that (`|-`, `||-`, ...) gets one more `|`.
pub fn key_from_levels(levels: Option<&[u8]>) -> Cow<'_, [u8]> {
    match levels {
        None => Cow::Borrowed(b""),
        Some(b"") => Cow::Borrowed(EMPTY_LEVEL_KEY),
        Some(text) if is_marked(text) => Cow::Owned([b"|", text].concat()),
        Some(text) => Cow::Borrowed(text),
    }
}

/// The words of a key, as a [`Pattern`] sees them: none for the empty key.
pub fn key_words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.split(|b| *b == b'.').filter(move |_| !key.is_empty())
}

/// The reverse of [`key_from_levels`].
pub fn levels_from_key(key: &[u8]) -> Option<&[u8]> {
    match key {
        b"" => None,
        EMPTY_LEVEL_KEY => Some(b""),
        key if is_marked(key) => Some(&key[1..]),
        key => Some(key),
    }
}

/// Topic and key as one key whose first word is the topic's name, as those see it who bind to all topics.
pub fn whole_key(topic: &[u8], key: &[u8]) -> Bytes {
    let mut whole = decode_name(topic).into_owned();
    if let Some(levels) = levels_from_key(key) {
        whole.push(b'.');
        whole.extend_from_slice(levels);
    }
    whole.into()
}

/// The reverse of [`whole_key`]: encoded topic and key.
pub fn split_whole_key(whole: &Bytes) -> (Bytes, Bytes) {
    let dot = whole.iter().position(|b| *b == b'.');
    let levels = dot.map(|dot| whole.slice(dot + 1..));
    let key = match key_from_levels(levels.as_deref()) {
        Cow::Borrowed(key) if levels.as_deref() == Some(key) => levels.unwrap_or_default(),
        key => Bytes::copy_from_slice(&key),
    };
    (encode_name(&whole.slice(..dot.unwrap_or(whole.len()))), key)
}

/// A [`whole_key`] of the levels of an address that `/` separates, see
/// [`Attribute::ReplyTopic`](crate::attributes::Attribute::ReplyTopic). `None` when there is none: a full stop in the
/// topic's name would separate words.
pub fn whole_key_of_levels(levels: &[u8]) -> Option<Vec<u8>> {
    swap_separators(levels, b'/', b'.')
}

/// The reverse of [`whole_key_of_levels`].
pub fn levels_of_whole_key(whole: &[u8]) -> Option<Vec<u8>> {
    swap_separators(whole, b'.', b'/')
}

fn swap_separators(text: &[u8], separator: u8, other: u8) -> Option<Vec<u8>> {
    let first = text.split(|b| *b == separator).next()?;
    if first.contains(&other) {
        return None;
    }
    let swapped = |byte: &u8| match *byte {
        byte if byte == separator => other,
        byte if byte == other => separator,
        byte => byte,
    };
    Some(text.iter().map(swapped).collect())
}

fn is_marked(text: &[u8]) -> bool {
    text.len() >= 2 && text.ends_with(b"-") && text[..text.len() - 1].iter().all(|b| *b == b'|')
}

/// One level of a [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Exactly this level.
    Literal(Bytes),
    /// Any one level.
    One,
    /// Any number of levels, also none (`#`).
    Many,
}

/// A pattern over the levels of an address or of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    /// Level by level. For a pattern over whole addresses the first level is the encoded topic name.
    pub levels: Vec<Level>,
    /// Leading wildcards do not match a first level that begins with `$`.
    pub spare_dollar: bool,
}

impl Pattern {
    /// Reads a pattern over a key: words split at `.`, `*` is one word, `#` any number.
    /// The empty text has no words.
    pub fn from_key_pattern(text: &[u8]) -> Self {
        if text.is_empty() {
            return Self::default();
        }
        let levels = text
            .split(|b| *b == b'.')
            .map(|word| match word {
                b"*" => Level::One,
                b"#" => Level::Many,
                word => Level::Literal(Bytes::copy_from_slice(word)),
            })
            .collect();
        Self {
            levels,
            spare_dollar: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(raw: &[u8]) -> Vec<u8> {
        let name = encode_name(&Bytes::copy_from_slice(raw));
        assert!(name.len() <= TOPIC_NAME_MAX);
        assert!(is_name_of(&name, raw) && !is_name_of(&name, &[raw, b"."].concat()));
        assert!(name.iter().all(|b| is_plain(*b) || *b == b'|'), "{name:?}");
        decode_name(&name).into_owned()
    }

    #[test]
    fn every_byte_survives_the_encoding_of_names() {
        for byte in 0..=255u8 {
            assert_eq!(round_trip(&[b'a', byte, b'z']), [b'a', byte, b'z']);
            assert_eq!(round_trip(&[byte]), [byte]);
        }
        assert_eq!(round_trip(b""), b"");
        assert_eq!(encode_name(&Bytes::from_static(b"user.events")), "user|2Eevents");
        assert_eq!(encode_name(&Bytes::from_static(b"a|b")), "a|7Cb");
        assert_eq!(encode_name(&Bytes::from_static(b"%RETRY%g")), "%RETRY%g");
        assert!(!is_name_of(b"a|7Cb", b"a|7Cb") && !is_name_of(b"a|", b"a|"));
    }

    #[test]
    fn levels_and_whole_keys_are_one_to_one() {
        for (levels, whole) in [("a", "a"), ("a/b", "a.b"), ("a/b.c/", "a.b/c."), ("/a", ".a"), ("", "")] {
            assert_eq!(
                whole_key_of_levels(levels.as_bytes()).as_deref(),
                Some(whole.as_bytes())
            );
            assert_eq!(
                levels_of_whole_key(whole.as_bytes()).as_deref(),
                Some(levels.as_bytes())
            );
        }
        assert_eq!(
            (whole_key_of_levels(b"a.b/c"), levels_of_whole_key(b"a/b.c")),
            (None, None)
        );
    }

    #[test]
    fn topics_of_groups_and_of_the_broker_are_reserved() {
        for name in BROKER_TOPICS
            .into_iter()
            .chain([&b"%RETRY%g"[..], b"%DLQ%g", b"%LMQ%q"])
        {
            assert!(is_reserved(name), "{}", name.escape_ascii());
            assert!(!is_reserved(&name[1..]) && !is_reserved(&[b"x", name].concat()));
        }
        for name in [&b""[..], b"%", b"T", b"RETRY", b"%RETRY", b"SELF_TEST_TOPIC2"] {
            assert!(!is_reserved(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let one = encode_name(&Bytes::from(vec![b'.'; 300]));
        let two = encode_name(&Bytes::from(vec![b'.'; 301]));
        assert!(name_is_cut(&one) && one.len() <= TOPIC_NAME_MAX);
        assert_ne!(one, two);
        assert!(is_name_of(&one, &[b'.'; 300]) && !is_name_of(&one, &[b'.'; 301]));
        assert!(!name_is_cut(b"exchange_user"));
    }

    #[test]
    fn levels_and_keys_are_one_to_one() {
        for levels in [
            None,
            Some(&b""[..]),
            Some(b"|-"),
            Some(b"||-"),
            Some(b"a.b"),
            Some(b"."),
            Some(b"-"),
        ] {
            let key = key_from_levels(levels);
            assert_eq!(levels_from_key(&key), levels, "{key:?}");
        }
    }
}
