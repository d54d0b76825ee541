//! Response codes and the answer that says no.

use std::borrow::Cow;

use rocketbridge_core::boundary::{Reject, Shortage};
use rocketbridge_core::request::Refusal;

/// RocketMQ's response codes, those that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ResponseCode {
    /// Done, or found.
    Success = 0,
    /// Something is wrong that no other code says.
    SystemError = 1,
    /// Too much at the moment; clients try again.
    SystemBusy = 2,
    /// Nobody handles that request code.
    RequestCodeNotSupported = 3,
    /// The message itself is refused; clients do not try again.
    MessageIllegal = 13,
    /// The broker is going down.
    ServiceNotAvailable = 14,
    /// Not allowed.
    NoPermission = 16,
    /// No such topic.
    TopicNotExist = 17,
    /// A pull found nothing new.
    PullNotFound = 19,
    /// A pull found messages that the filter does not take; go on at once.
    PullRetryImmediately = 20,
    /// A pull's offset is out of bounds; go on where the answer says.
    PullOffsetMoved = 21,
    /// No such entry.
    QueryNotFound = 22,
    /// The subscription cannot be read.
    SubscriptionParseFailed = 23,
    /// The group has no such subscription.
    SubscriptionNotExist = 24,
    /// No such consumer group.
    SubscriptionGroupNotExist = 26,
    /// A value is out of range.
    InvalidParameter = 29,
    /// It cannot be done (any more).
    IllegalOperation = 604,
}

/// A request that is answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The response code.
    pub code: ResponseCode,
    /// Why, in words for a log.
    pub remark: Cow<'static, str>,
}

impl Refused {
    /// An answer with that code and remark.
    pub fn new(code: ResponseCode, remark: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            remark: remark.into(),
        }
    }

    /// A field that must be there is not.
    pub fn missing(field: &str) -> Self {
        Self::new(ResponseCode::SystemError, format!("the custom field <{field}> is null"))
    }

    /// A field that must be a number is none.
    pub fn no_number(field: &str) -> Self {
        Self::new(
            ResponseCode::SystemError,
            format!("the custom field <{field}> is not a number"),
        )
    }

    /// What this version does not do.
    pub fn not_supported(code: ResponseCode, what: &str) -> Self {
        Self::new(code, format!("{what} is not supported by this version"))
    }

    /// The topic that was asked for is not there.
    pub fn no_topic(topic: &[u8]) -> Self {
        Self::new(
            ResponseCode::TopicNotExist,
            format!(
                "topic[{}] not exist, apply first please!",
                String::from_utf8_lossy(topic)
            ),
        )
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Rejected { reject, .. } => return (*reject).into(),
            Refusal::NotFound { what: "topic", name } => return Self::no_topic(name),
            Refusal::NotFound { what: "group", .. } => ResponseCode::SubscriptionGroupNotExist,
            Refusal::NotFound { what: "message", .. } => ResponseCode::SystemError,
            Refusal::NotFound { .. } | Refusal::Invalid(_) => ResponseCode::InvalidParameter,
            Refusal::NoSubscription => ResponseCode::SubscriptionNotExist,
            Refusal::AccessRefused => ResponseCode::NoPermission,
            Refusal::NotSupported(_) => ResponseCode::RequestCodeNotSupported,
            Refusal::Closed => ResponseCode::ServiceNotAvailable,
            Refusal::SingleActive
            | Refusal::Locked
            | Refusal::InUse
            | Refusal::NotEmpty
            | Refusal::Ended
            | Refusal::LeaseEnded => ResponseCode::SystemError,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<Reject> for Refused {
    fn from(reject: Reject) -> Self {
        let (code, remark) = match reject {
            Reject::NoTopic => (
                ResponseCode::TopicNotExist,
                "the topic does not exist, apply first please!",
            ),
            Reject::NoQueue => (ResponseCode::InvalidParameter, "the request queueId is illegal"),
            Reject::TooLate => (
                ResponseCode::MessageIllegal,
                "timer message illegal, the delay time should not be bigger than the max delay",
            ),
            Reject::TooLarge => (ResponseCode::MessageIllegal, "the message is larger than the limit"),
            Reject::QueueFull => (ResponseCode::SystemBusy, "a queue on the way is full"),
            Reject::AccessRefused => (ResponseCode::NoPermission, "access refused"),
            Reject::Closed => (ResponseCode::ServiceNotAvailable, "the broker is going down"),
            Reject::Shortage(Shortage::Disk) => (
                ResponseCode::ServiceNotAvailable,
                "service not available now: the broker's disk is full",
            ),
            Reject::Shortage(Shortage::Memory) => (
                ResponseCode::ServiceNotAvailable,
                "service not available now: the broker's memory is full",
            ),
            Reject::NoExchange | Reject::InternalExchange => {
                (ResponseCode::SystemError, "the message cannot be routed")
            }
        };
        Self::new(code, remark)
    }
}
