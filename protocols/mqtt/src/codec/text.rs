//! The rules for strings: UTF-8 (5.0, 1.5.4), topic names and topic filters (4.7).

/// Separates levels.
pub const LEVEL: u8 = b'/';

/// Whether `text` is UTF-8 without NUL [MQTT-1.5.4-1, MQTT-1.5.4-2]: what any string must be.
pub fn is_string(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok() && !text.contains(&0)
}

/// Whether `text` may name something: a string without control characters and non-characters. The
/// standard allows a server to refuse those (1.5.4), and Mosquitto does.
pub fn is_name(text: &[u8]) -> bool {
    if text.iter().all(|b| (0x20..0x7F).contains(b)) {
        return true;
    }
    std::str::from_utf8(text).is_ok_and(|text| !text.chars().any(is_refused))
}

fn is_refused(character: char) -> bool {
    let code = u32::from(character);
    character.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

/// Whether `text` is a topic name: at least one character and no wildcard. [MQTT-3.3.2-2]
pub fn is_topic_name(text: &[u8]) -> bool {
    !text.is_empty() && is_name(text) && !has_wildcard(text)
}

/// Whether there is a `+` or `#` in it.
pub fn has_wildcard(text: &[u8]) -> bool {
    text.iter().any(|b| matches!(b, b'+' | b'#'))
}

/// Whether `text` is a topic filter: wildcards stand alone in their level and `#` comes last.
/// [MQTT-4.7.1-1, MQTT-4.7.1-2]
pub fn is_topic_filter(text: &[u8]) -> bool {
    if text.is_empty() || !is_name(text) {
        return false;
    }
    if !has_wildcard(text) {
        return true;
    }
    let mut levels = text.split(|b| *b == LEVEL).peekable();
    while let Some(level) = levels.next() {
        let fits = match level {
            b"+" => true,
            b"#" => levels.peek().is_none(),
            level => !has_wildcard(level),
        };
        if !fits {
            return false;
        }
    }
    true
}

/// What stands before the share name of a shared subscription (5.0, 4.8.2).
pub const SHARE_PREFIX: &[u8] = b"$share/";

/// Whether `filter` asks for a shared subscription.
pub fn is_shared(filter: &[u8]) -> bool {
    filter.starts_with(SHARE_PREFIX)
}

/// Splits `$share/name/filter`; `None` when name or filter is missing or the name has a wildcard.
/// [MQTT-4.8.2-1, MQTT-4.8.2-2]
pub fn split_shared(filter: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = filter.strip_prefix(SHARE_PREFIX)?;
    let slash = rest.iter().position(|b| *b == LEVEL)?;
    let (name, filter) = (&rest[..slash], &rest[slash + 1..]);
    (!name.is_empty() && !has_wildcard(name) && is_topic_filter(filter)).then_some((name, filter))
}

/// Whether a topic name or filter is below `$SYS`, the broker's own.
pub fn is_sys(text: &[u8]) -> bool {
    text.starts_with(b"$SYS/")
}

/// How many levels a topic name or filter has.
pub fn level_count(text: &[u8]) -> usize {
    1 + text.iter().filter(|b| **b == LEVEL).count()
}

/// Whether a topic name matches a filter (4.7). Wildcards in front spare names that begin with `$`.
/// [MQTT-4.7.2-1]
pub fn filter_matches(filter: &[u8], topic: &[u8]) -> bool {
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
        return false;
    }
    let mut levels = topic.split(|b| *b == LEVEL);
    for wanted in filter.split(|b| *b == LEVEL) {
        if wanted == b"#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == b"+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [MQTT-4.7.1-1, MQTT-4.7.1-2, MQTT-4.7.2-1]
    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/", false),
            ("a/b/", "a/b/", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("+", "a", true),
            ("+", "/a", false),
            ("+/+", "/a", true),
            ("/+", "/a", true),
            ("a/+", "a", false),
            ("a/+/c", "a//c", true),
            ("#", "a/b", true),
            ("#", "/", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/+", "$SYS/x", true),
            ("é/+", "é/x", true),
        ] {
            assert_eq!(
                filter_matches(filter.as_bytes(), topic.as_bytes()),
                expected,
                "{filter} {topic}"
            );
        }
    }

    #[test]
    fn wildcards_stand_alone_and_hash_comes_last() {
        for good in ["a", "/", "+", "#", "a/#", "+/b/#", "a/+", "//", "$share/x/y"] {
            assert!(is_topic_filter(good.as_bytes()), "{good}");
        }
        for bad in [
            "", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+", "##", "a\u{1}", "a\u{0}b", "\u{FFFF}",
        ] {
            assert!(!is_topic_filter(bad.as_bytes()), "{bad}");
        }
        assert!(!is_topic_name(b"a/+") && !is_topic_name(b"") && is_topic_name("/ü".as_bytes()));
        assert!(!is_name(b"\xED\xA0\x80") && !is_name("\u{9F}".as_bytes()) && is_name("\u{2A6D4}".as_bytes()));
    }

    #[test]
    fn shared_filters_need_a_name_and_a_filter() {
        assert_eq!(split_shared(b"$share/g/a/b"), Some((&b"g"[..], &b"a/b"[..])));
        for bad in [
            &b"$share/g"[..],
            b"$share/g/",
            b"$share//a",
            b"$share/+/a",
            b"$share/g/a#",
        ] {
            assert_eq!(split_shared(bad), None);
        }
    }
}
