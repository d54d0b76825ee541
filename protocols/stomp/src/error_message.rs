//! Everything that ends a connection, with the `message` header and the body of its ERROR frame.
//!
//! Where RabbitMQ has a text for it, it is RabbitMQ's: its users' programs compare them.

use std::fmt;

use rocketbridge_core::boundary::Reject;
use rocketbridge_core::request::Refusal;

use crate::codec::Fault;

/// The versions that are spoken here, in the order of their headers.
pub const VERSIONS: &str = "1.0,1.1,1.2";

/// Bytes of a peer in a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(String);

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into_owned())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a connection ends. Its `Display` is the body of the ERROR frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}\n")]
    Malformed(#[from] Fault),
    #[error("You must log in using CONNECT first")]
    NotConnected,
    #[error("this connection is logged in\n")]
    AlreadyConnected,
    #[error("no CONNECT frame came in time\n")]
    ConnectTimeout,
    #[error("Supported versions are {VERSIONS}\n")]
    Version,
    #[error("Access refused for user '{0}'")]
    Login(Text),
    #[error("Virtual host '{0}' access denied")]
    VirtualHost(Text),
    #[error("'{0}' is not two intervals in milliseconds\n")]
    HeartBeat(Text),
    #[error("nothing was heard of the client for {0} ms\n")]
    Silent(u64),
    #[error("Could not interpret command \"{0}\"\n")]
    Command(Text),
    #[error("{command} must include a 'destination' header\n")]
    NoDestination { command: &'static str },
    #[error(
        "'{0}' is not a valid destination.\nValid destination types are: /temp-queue, /exchange, /topic, /queue, \
         /amq/queue, /reply-queue/, /rocketmq.\n"
    )]
    UnknownDestination(Text),
    #[error("'{rest}' is not a valid {kind} destination\n")]
    InvalidDestination { kind: &'static str, rest: Text },
    #[error("{command} must include a '{header}' header\n")]
    NoHeader {
        command: &'static str,
        header: &'static str,
    },
    #[error("'message-id' is not allowed on 'SEND'.\n")]
    MessageId,
    #[error("'{value}' is not a valid value of header '{header}': {expected}\n")]
    InvalidHeader {
        header: &'static str,
        value: Text,
        expected: &'static str,
    },
    #[error("header '{0}' is not UTF-8 text\n")]
    NotText(&'static str),
    #[error("Invalid subscription identifier '{0}': it may not begin with /temp-queue/\n")]
    ReservedId(Text),
    #[error("Header 'id' is required for durable subscriptions")]
    DurableWithoutId,
    #[error("A subscription identified by '{0}' already exists.")]
    DuplicateSubscription(Text),
    #[error("There is no subscription identified by '{0}'.\n")]
    NoSubscription(Text),
    #[error("UNSUBSCRIBE must refer to an existing subscription.\nSubscription to '{0}' not found.\n")]
    NotSubscribed(Text),
    #[error("unknown delivery '{0}': it was settled already or never delivered to this connection\n")]
    UnknownDelivery(Text),
    #[error("delivery '{0}' needs no settling: its subscription has ack mode auto\n")]
    AutoMode(Text),
    #[error("there is no open transaction '{0}'\n")]
    NoTransaction(Text),
    #[error("transaction '{0}' is open already\n")]
    TransactionOpen(Text),
    #[error("a connection may have {0} open transactions\n")]
    TransactionLimit(usize),
    #[error("the open transactions of a connection may hold {frames} frames each and {bytes} bytes together\n")]
    TransactionTooLarge { frames: usize, bytes: usize },
    #[error("a connection may have {0} subscriptions\n")]
    SubscriptionLimit(usize),
    #[error("user-id is '{claimed}' but the connection logged in as '{user}'\n")]
    UserId { claimed: Text, user: Text },
    #[error("no {what} '{name}' in vhost '/'\n")]
    NotFound { what: &'static str, name: Text },
    #[error("{0}\n")]
    AccessRefused(String),
    #[error("cannot obtain access to exclusive queue '{0}' in vhost '/'\n")]
    Locked(Text),
    #[error("{0}\n")]
    Precondition(String),
    #[error("{0} is not implemented\n")]
    NotSupported(String),
    #[error("{0}\n")]
    Resource(String),
    #[error("{0}\n")]
    Selector(String),
    #[error("The queue of the subscription was deleted.\n")]
    Cancelled,
    #[error("the broker is going down\n")]
    ShuttingDown,
}

impl Error {
    /// The header that names the fault.
    pub fn message(&self) -> &'static str {
        match self {
            Self::Malformed(fault) if fault.is_limit() => "frame too large",
            Self::Malformed(_) => "malformed frame",
            Self::NotConnected => "Illegal command",
            Self::AlreadyConnected => "Already connected",
            Self::ConnectTimeout => "Login timeout",
            Self::Version => "Version mismatch",
            Self::Login(_) | Self::VirtualHost(_) => "Bad CONNECT",
            Self::HeartBeat(_) | Self::InvalidHeader { .. } | Self::NotText(_) | Self::MessageId => "Invalid header",
            Self::Silent(_) => "Heart-beat timeout",
            Self::Command(_) => "Bad command",
            Self::NoDestination { .. } => "Missing destination",
            Self::UnknownDestination(_) => "Unknown destination",
            Self::InvalidDestination { .. } => "Invalid destination",
            Self::NoHeader {
                command: "UNSUBSCRIBE", ..
            } => "Missing destination or id",
            Self::NoHeader {
                header: "transaction", ..
            } => "Missing transaction",
            Self::NoHeader { .. } => "Missing header",
            Self::ReservedId(_) => "Invalid id",
            Self::DurableWithoutId => "Missing Header",
            Self::DuplicateSubscription(_) => "Duplicated subscription identifier",
            Self::NotSubscribed(_) => "No subscription found",
            Self::NoSubscription(_) => "Subscription not found",
            Self::UnknownDelivery(_) | Self::AutoMode(_) => "Message not found",
            Self::NoTransaction(_) | Self::TransactionOpen(_) => "Bad transaction",
            Self::TransactionLimit(_) => "Transaction limit exceeded",
            Self::TransactionTooLarge { .. } => "Transaction too large",
            Self::SubscriptionLimit(_) => "Subscription limit exceeded",
            Self::UserId { .. } | Self::Precondition(_) => "precondition_failed",
            Self::NotFound { .. } => "not_found",
            Self::AccessRefused(_) => "access_refused",
            Self::Locked(_) => "resource_locked",
            Self::NotSupported(_) => "not_implemented",
            Self::Resource(_) => "resource_error",
            Self::Selector(_) => "Invalid selector",
            Self::Cancelled => "Server cancelled subscription",
            Self::ShuttingDown => "connection_forced",
        }
    }

    /// What core's refusal of a request means; `name` is what the request was about.
    pub fn of_refusal(refusal: &Refusal, name: &[u8]) -> Self {
        match refusal {
            Refusal::NotFound { what, name } => Self::NotFound {
                what,
                name: Text::from(&name[..]),
            },
            Refusal::Locked => Self::Locked(name.into()),
            Refusal::InUse => {
                Self::AccessRefused(format!("queue '{}' in vhost '/' in exclusive use", Text::from(name)))
            }
            Refusal::AccessRefused => Self::AccessRefused(format!("access to '{}' refused", Text::from(name))),
            Refusal::NotSupported(what) => Self::NotSupported((*what).to_owned()),
            Refusal::Closed => Self::ShuttingDown,
            other => Self::Precondition(other.to_string()),
        }
    }

    /// What it means that core did not take a message sent to that destination.
    pub fn of_reject(reject: Reject, destination: &[u8], body_max: usize) -> Self {
        let name = Text::from(destination);
        match reject {
            Reject::NoExchange => Self::NotFound { what: "exchange", name },
            Reject::InternalExchange => Self::AccessRefused(format!("exchange '{name}' in vhost '/' is internal")),
            Reject::AccessRefused => Self::AccessRefused(format!("access to '{name}' refused")),
            Reject::NoTopic => Self::NotFound { what: "topic", name },
            Reject::NoQueue => Self::NotFound {
                what: "message queue of topic",
                name,
            },
            Reject::TooLarge => Self::Malformed(Fault::BodyTooLarge(body_max)),
            Reject::QueueFull => Self::Resource(format!("a queue that '{name}' leads to is full")),
            Reject::Closed => Self::ShuttingDown,
            Reject::TooLate => Self::Resource(format!("the time to deliver a message to '{name}' is too far away")),
            Reject::Shortage(shortage) => {
                Self::Resource(format!("no room for messages to '{name}': {shortage:?} runs short"))
            }
        }
    }
}
