//! Pulls: header to request, status to response.

use std::ops::Range;
use std::sync::Arc;

use rocketbridge_core::filter::Sql;
use rocketbridge_core::request::{Filter, Pull, PullStatus};
use rocketbridge_core::time::Millis;

use super::{filter, names, queue_id, required, required_number};
use crate::codec::Command;
use crate::config::Config;
use crate::response_code::{Refused, ResponseCode};

const COMMIT_OFFSET: i64 = 0x1;
const SUSPEND: i64 = 0x2;
const SUBSCRIPTION: i64 = 0x4;

/// A pull as a client asks for it.
#[derive(Debug)]
pub struct PullRequest {
    /// What core is asked. Its offset is 0 when the client's was negative.
    pub pull: Pull,
    /// The offset as it came. A negative one is out of bounds.
    pub offset: i64,
    /// How long it may be held.
    pub suspend: Millis,
    /// An offset that the client commits along with it.
    pub commit: Option<u64>,
}

/// Reads a pull.
///
/// # Errors
/// 1 for missing fields, 29 for a topic, group or message queue that cannot be, 23 for a filter that cannot be
/// compiled. `last_sql` is kept from one pull to the next.
pub fn pull_request(
    command: &Command,
    config: &Config,
    last_sql: &mut Option<Arc<Sql>>,
) -> Result<PullRequest, Refused> {
    let group = required(command, "consumerGroup")?.to_bytes();
    let topic = required(command, "topic")?.to_bytes();
    names::check_group(&group)?;
    names::check_topic(&topic)?;
    let queue_id = queue_id(command)?;
    let offset = required_number(command, "queueOffset")?;
    let messages = required_number(command, "maxMsgNums")?;
    let flags = required_number(command, "sysFlag")?;
    let commit = required_number(command, "commitOffset")?;
    let suspend = required_number(command, "suspendTimeoutMillis")?;
    let bytes = command.field("maxMsgBytes").and_then(|value| value.number());
    let filter = (flags & SUBSCRIPTION != 0)
        .then(|| given_filter(command, last_sql))
        .transpose()?;
    let suspend = if flags & SUSPEND == 0 {
        0
    } else {
        u64::try_from(suspend).unwrap_or(0).min(config.pull_suspend_max_ms)
    };
    Ok(PullRequest {
        pull: Pull {
            group,
            topic,
            queue_id,
            offset: u64::try_from(offset).unwrap_or(0),
            messages_max: messages.clamp(1, i64::from(config.pull_messages_max.max(1))) as u32,
            bytes_max: bytes.filter(|bytes| *bytes > 0).map_or(config.pull_bytes_max, |bytes| {
                bytes.min(i64::from(config.pull_bytes_max)) as u32
            }),
            filter,
            hold: suspend > 0,
        },
        offset,
        suspend: Millis(suspend),
        commit: u64::try_from(commit).ok().filter(|_| flags & COMMIT_OFFSET != 0),
    })
}

fn given_filter(command: &Command, last_sql: &mut Option<Arc<Sql>>) -> Result<Filter, Refused> {
    let text = |name| command.field(name).map_or_else(String::new, |value| value.lossy());
    filter::filter_again(&text("subscription"), &text("expressionType"), last_sql)
}

/// The response code and remark of a pull from `offset`, as RocketMQ's store calls it.
pub fn pull_status(status: PullStatus, offset: i64, bounds: &Range<u64>) -> (ResponseCode, &'static str) {
    let is_empty = bounds.start == bounds.end;
    match status {
        PullStatus::Found => (ResponseCode::Success, "FOUND"),
        PullStatus::NoneMatched => (ResponseCode::PullRetryImmediately, "NO_MATCHED_MESSAGE"),
        PullStatus::NotFound if is_empty => (ResponseCode::PullNotFound, "NO_MESSAGE_IN_QUEUE"),
        PullStatus::NotFound => (ResponseCode::PullNotFound, "OFFSET_OVERFLOW_ONE"),
        PullStatus::OffsetMoved if offset < 0 || (offset as u64) < bounds.start => {
            (ResponseCode::PullOffsetMoved, "OFFSET_TOO_SMALL")
        }
        PullStatus::OffsetMoved if is_empty => (ResponseCode::PullOffsetMoved, "NO_MESSAGE_IN_QUEUE"),
        PullStatus::OffsetMoved => (ResponseCode::PullOffsetMoved, "OFFSET_OVERFLOW_BADLY"),
        PullStatus::OffsetReset => (ResponseCode::PullOffsetMoved, "OFFSET_RESET"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_rocketmq_s_code_and_name() {
        let of = |status, offset, bounds| {
            let (code, remark) = pull_status(status, offset, &bounds);
            (code as i32, remark)
        };
        assert_eq!(of(PullStatus::Found, 0, 0..5), (0, "FOUND"));
        assert_eq!(of(PullStatus::NoneMatched, 0, 0..5), (20, "NO_MATCHED_MESSAGE"));
        assert_eq!(of(PullStatus::NotFound, 5, 0..5), (19, "OFFSET_OVERFLOW_ONE"));
        assert_eq!(of(PullStatus::NotFound, 0, 0..0), (19, "NO_MESSAGE_IN_QUEUE"));
        assert_eq!(of(PullStatus::OffsetMoved, 1, 2..5), (21, "OFFSET_TOO_SMALL"));
        assert_eq!(of(PullStatus::OffsetMoved, -1, 0..5), (21, "OFFSET_TOO_SMALL"));
        assert_eq!(of(PullStatus::OffsetMoved, 9, 0..5), (21, "OFFSET_OVERFLOW_BADLY"));
        assert_eq!(of(PullStatus::OffsetMoved, 9, 0..0), (21, "NO_MESSAGE_IN_QUEUE"));
        assert_eq!(of(PullStatus::OffsetReset, 3, 0..5), (21, "OFFSET_RESET"));
    }
}
