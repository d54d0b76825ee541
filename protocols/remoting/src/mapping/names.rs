//! Which names are allowed.

use rocketbridge_core::address::BROKER_TOPICS;

use crate::response_code::{Refused, ResponseCode};

/// Longest topic name in bytes: the record has a signed byte for its length.
pub const TOPIC_MAX: usize = 127;
/// Longest group name in bytes, so that a retry topic can be made of it.
pub const GROUP_MAX: usize = 120;
/// Longest client id in bytes.
pub const CLIENT_ID_MAX: usize = 512;

/// What a consumer group's retry topic begins with.
pub const RETRY_PREFIX: &[u8] = b"%RETRY%";
/// What a consumer group's dead-letter topic begins with.
pub const DEAD_LETTER_PREFIX: &[u8] = b"%DLQ%";
/// The topic whose route a producer takes for a topic that does not exist yet.
pub const AUTO_CREATE_TOPIC: &[u8] = b"TBW102";

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'-' | b'_')
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(256)]).into_owned()
}

/// Whether it can be a topic's name: `[%|a-zA-Z0-9_-]`, not empty, at most [`TOPIC_MAX`] bytes.
///
/// # Errors
/// 29 with RocketMQ's words.
pub fn check_topic(topic: &[u8]) -> Result<(), Refused> {
    let remark = if topic.iter().all(u8::is_ascii_whitespace) {
        "The specified topic is blank.".into()
    } else if !topic.iter().all(|b| is_allowed(*b)) {
        let topic = lossy(topic);
        format!("The specified topic: {topic}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$")
    } else if topic.len() > TOPIC_MAX {
        let topic = lossy(topic);
        format!("The specified topic: {topic}, is longer than topic max length: {TOPIC_MAX}")
    } else {
        return Ok(());
    };
    Err(Refused::new(ResponseCode::InvalidParameter, remark))
}

/// Whether a client may send to that topic.
///
/// # Errors
/// 29 for a name that cannot be one, 16 for a broker's own topic.
pub fn check_send_topic(topic: &[u8]) -> Result<(), Refused> {
    check_topic(topic)?;
    if BROKER_TOPICS.contains(&topic) {
        let remark = format!("Sending message to topic[{}] is forbidden.", lossy(topic));
        return Err(Refused::new(ResponseCode::NoPermission, remark));
    }
    Ok(())
}

/// Whether it is a consumer group's retry or dead-letter topic.
pub fn is_of_group(topic: &[u8]) -> bool {
    topic.starts_with(RETRY_PREFIX) || topic.starts_with(DEAD_LETTER_PREFIX)
}

/// Whether it can be a consumer group's name.
///
/// # Errors
/// 29 with RocketMQ's words.
pub fn check_group(group: &[u8]) -> Result<(), Refused> {
    let remark = if group.iter().all(u8::is_ascii_whitespace) {
        "The specified group is blank.".into()
    } else if !group.iter().all(|b| is_allowed(*b)) {
        let group = lossy(group);
        format!("The specified group: {group}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$")
    } else if group.len() > GROUP_MAX {
        let group = lossy(group);
        format!("The specified group: {group}, is longer than group max length: {GROUP_MAX}")
    } else {
        return Ok(());
    };
    Err(Refused::new(ResponseCode::InvalidParameter, remark))
}

/// The answer to a message queue's number that cannot be one.
pub(crate) fn illegal_queue(number: i64) -> Refused {
    Refused::new(
        ResponseCode::InvalidParameter,
        format!("request queueId[{number}] is illegal"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<(), Refused>) -> Option<ResponseCode> {
        result.err().map(|refused| refused.code)
    }

    #[test]
    fn topics_have_rocketmq_s_characters_and_length() {
        let longest = "x".repeat(TOPIC_MAX);
        for name in ["a", "Topic_1-x%|", &longest] {
            assert_eq!(code(check_topic(name.as_bytes())), None);
        }
        let too_long = "x".repeat(TOPIC_MAX + 1);
        for name in ["", " ", "a.b", "a b", "é", "a/b", &too_long] {
            assert_eq!(
                code(check_topic(name.as_bytes())),
                Some(ResponseCode::InvalidParameter),
                "{name}"
            );
        }
    }

    #[test]
    fn a_broker_s_own_topics_cannot_be_sent_to() {
        let sent_to = |topic: &[u8]| code(check_send_topic(topic));
        assert_eq!(sent_to(b"T"), None);
        assert_eq!(sent_to(b"SCHEDULE_TOPIC_XXXX"), Some(ResponseCode::NoPermission));
        assert_eq!(sent_to(b"%RETRY%g"), None);
        assert_eq!(sent_to(b"%DLQ%g"), None);
    }

    #[test]
    fn groups_leave_room_for_their_retry_topic() {
        assert_eq!(code(check_group(&[b'g'; GROUP_MAX])), None);
        assert_eq!(
            code(check_group(&[b'g'; GROUP_MAX + 1])),
            Some(ResponseCode::InvalidParameter)
        );
        assert_eq!(code(check_group(b"")), Some(ResponseCode::InvalidParameter));
        const { assert!(RETRY_PREFIX.len() + GROUP_MAX <= TOPIC_MAX) }
    }
}
