//! Reply codes, and every error this front-end answers with: what it ends, its code and its text.
//!
//! Codes and texts are RabbitMQ's, since clients and their suites read both. A [`ChannelError`] ends a
//! channel, a [`ConnectionError`] the connection; texts are cut at 255 octets on the wire.

use std::fmt::{self, Write};

/// The virtual host that everything lives in, as it stands in texts.
pub const VIRTUAL_HOST: &str = "/";

/// A reply code: the number in `connection.close`, `channel.close` and `basic.return`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ReplyCode {
    NoRoute = 312,
    ConnectionForced = 320,
    AccessRefused = 403,
    NotFound = 404,
    ResourceLocked = 405,
    PreconditionFailed = 406,
    FrameError = 501,
    SyntaxError = 502,
    CommandInvalid = 503,
    ChannelError = 504,
    UnexpectedFrame = 505,
    NotAllowed = 530,
    NotImplemented = 540,
    InternalError = 541,
}

impl ReplyCode {
    /// The name in front of a reply text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRoute => "NO_ROUTE",
            Self::ConnectionForced => "CONNECTION_FORCED",
            Self::AccessRefused => "ACCESS_REFUSED",
            Self::NotFound => "NOT_FOUND",
            Self::ResourceLocked => "RESOURCE_LOCKED",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::FrameError => "FRAME_ERROR",
            Self::SyntaxError => "SYNTAX_ERROR",
            Self::CommandInvalid => "COMMAND_INVALID",
            Self::ChannelError => "CHANNEL_ERROR",
            Self::UnexpectedFrame => "UNEXPECTED_FRAME",
            Self::NotAllowed => "NOT_ALLOWED",
            Self::NotImplemented => "NOT_IMPLEMENTED",
            Self::InternalError => "INTERNAL_ERROR",
        }
    }
}

/// An exchange or queue as RabbitMQ's texts call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `exchange` or `queue`.
    pub kind: &'static str,
    /// Its name; octets that are no UTF-8 are replaced in texts.
    pub name: String,
}

impl Resource {
    /// An exchange.
    pub fn exchange(name: &[u8]) -> Self {
        Self {
            kind: "exchange",
            name: String::from_utf8_lossy(name).into_owned(),
        }
    }

    /// A queue.
    pub fn queue(name: &[u8]) -> Self {
        Self {
            kind: "queue",
            name: String::from_utf8_lossy(name).into_owned(),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} '{}' in vhost '{VIRTUAL_HOST}'", self.kind, self.name)
    }
}

/// Ends one channel; the connection lives on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    #[error("operation not permitted on the default exchange")]
    DefaultExchange,
    #[error("{} name '{}' contains reserved prefix 'amq.*'", .0.kind, .0.name)]
    ReservedName(Resource),
    #[error("deletion of system {0} not allowed")]
    SystemExchange(Resource),
    #[error("cannot publish to internal {0}")]
    InternalExchange(Resource),
    #[error("{0} in exclusive use")]
    ExclusiveUse(Resource),
    #[error("access to {what} refused for user '{user}'")]
    AccessRefused { what: String, user: String },
    #[error("no {0}")]
    NotFound(Resource),
    #[error("no previously declared queue")]
    NoPreviousQueue,
    #[error(
        "cannot obtain exclusive access to locked {0}. It could be originally declared on another connection or the \
         exclusive property value does not match that of the original declaration."
    )]
    Locked(Resource),
    #[error("unknown exchange type '{0}'")]
    UnknownExchangeType(String),
    #[error("inequivalent arg '{argument}' for {resource}: received {received} but current is {current}")]
    Inequivalent {
        argument: String,
        resource: Resource,
        received: String,
        current: String,
    },
    #[error("invalid arg '{argument}' for {resource}: {fault}")]
    InvalidArgument {
        argument: &'static str,
        resource: Resource,
        fault: String,
    },
    #[error("invalid arg '{argument}' for {resource} of queue type {module}")]
    OtherQueueType {
        argument: String,
        resource: Resource,
        module: &'static str,
    },
    #[error("invalid property '{property}' for {resource}")]
    InvalidProperty { property: &'static str, resource: Resource },
    #[error("Cannot declare a server-named queue for type rabbit_quorum_queue")]
    ServerNamedQuorum,
    #[error(
        "cannot obtain access to locked {0}. basic.get operations are not supported by queues with single active \
         consumer"
    )]
    SingleActive(Resource),
    #[error("invalid type '{kind}' for arg '{argument}' in {resource}")]
    InvalidArgumentType {
        kind: &'static str,
        argument: &'static str,
        resource: Resource,
    },
    #[error("Invalid x-match field value {0}; expected all, any, all-with-x, or any-with-x")]
    InvalidMatch(String),
    #[error("Invalid x-match field type {kind} (value {value}); expected longstr")]
    InvalidMatchType { kind: &'static str, value: String },
    #[error("{0} in use")]
    InUse(Resource),
    #[error("{0} not empty")]
    NotEmpty(Resource),
    #[error("unknown delivery tag {0}")]
    UnknownDeliveryTag(u64),
    #[error("message size {size} is larger than configured max size {max}")]
    MessageTooLarge { size: u64, max: u64 },
    #[error("invalid expiration '{expiration}': {fault}")]
    InvalidExpiration { expiration: String, fault: String },
    #[error("user_id property set to '{claimed}' but authenticated user was '{user}'")]
    UserId { claimed: String, user: String },
    #[error("fast reply consumer does not exist")]
    NoReplyConsumer,
    #[error("reply consumer already set")]
    ReplyConsumerSet,
    #[error("reply consumer cannot acknowledge")]
    ReplyConsumerAcknowledges,
    #[error("{0}")]
    Invalid(String),
}

impl ChannelError {
    /// The reply code of `channel.close`.
    pub fn reply_code(&self) -> ReplyCode {
        match self {
            Self::DefaultExchange
            | Self::ReservedName(_)
            | Self::SystemExchange(_)
            | Self::InternalExchange(_)
            | Self::ExclusiveUse(_)
            | Self::AccessRefused { .. } => ReplyCode::AccessRefused,
            Self::NotFound(_) | Self::NoPreviousQueue => ReplyCode::NotFound,
            Self::Locked(_) | Self::SingleActive(_) => ReplyCode::ResourceLocked,
            Self::UnknownExchangeType(_)
            | Self::Inequivalent { .. }
            | Self::InvalidArgument { .. }
            | Self::OtherQueueType { .. }
            | Self::InvalidProperty { .. }
            | Self::ServerNamedQuorum
            | Self::InvalidArgumentType { .. }
            | Self::InvalidMatch(_)
            | Self::InvalidMatchType { .. }
            | Self::InUse(_)
            | Self::NotEmpty(_)
            | Self::UnknownDeliveryTag(_)
            | Self::MessageTooLarge { .. }
            | Self::InvalidExpiration { .. }
            | Self::UserId { .. }
            | Self::NoReplyConsumer
            | Self::ReplyConsumerSet
            | Self::ReplyConsumerAcknowledges
            | Self::Invalid(_) => ReplyCode::PreconditionFailed,
        }
    }
}

/// Ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    #[error("broker forced connection closure with reason '{0}'")]
    Forced(&'static str),
    #[error("Login was refused using authentication mechanism {0}. For details see the broker logfile.")]
    LoginRefused(&'static str),
    #[error("type {kind}, all octets = <<>>: {{frame_too_large,{size},{limit}}}")]
    FrameTooLarge { kind: u8, size: u32, limit: u32 },
    #[error("type {kind}, {snippet}: {{invalid_frame_end_marker,{marker}}}")]
    InvalidFrameEnd { kind: u8, snippet: Snippet, marker: u8 },
    #[error("type {kind}, {snippet}: unknown_frame")]
    UnknownFrame { kind: u8, snippet: Snippet },
    #[error("cannot decode {0}")]
    CannotDecode(Snippet),
    #[error("content body size {size} exceeds maximum allowed size {max}")]
    BodyTooLarge { size: u64, max: u64 },
    #[error("content body frame exceeds remaining content size")]
    BodyOverrun,
    #[error("{0}")]
    Syntax(String),
    #[error("unknown authentication mechanism '{0}'")]
    UnknownMechanism(String),
    #[error("unimplemented method")]
    UnimplementedMethod,
    #[error("expected 'channel.open'")]
    ExpectedChannelOpen,
    #[error("second 'channel.open' seen")]
    SecondChannelOpen,
    #[error("unexpected method in connection state {0}")]
    UnexpectedMethod(&'static str),
    #[error("type {kind}, {snippet}")]
    UnexpectedFrame { kind: u8, snippet: Snippet },
    #[error("expected method frame, got non method frame instead")]
    ExpectedMethod,
    #[error("expected content header for class 60, got non content header frame instead")]
    ExpectedHeader,
    #[error("expected content header for class 60, got one for class {0} instead")]
    OtherHeaderClass(u16),
    #[error("expected content body, got non content body frame instead")]
    ExpectedBody,
    #[error("vhost {0} not found")]
    NoVirtualHost(String),
    #[error("negotiated {field} = {value}{detail} is {than} allowed value ({bound})")]
    Negotiation {
        field: &'static str,
        value: u32,
        detail: &'static str,
        than: &'static str,
        bound: u32,
    },
    #[error("number of channels opened ({open}) has reached the negotiated channel_max ({channel_max})")]
    ChannelMax { open: usize, channel_max: u16 },
    #[error("attempt to reuse consumer tag '{0}'")]
    ConsumerTagReused(String),
    #[error("reached maximum ({0}) of consumers per channel")]
    ConsumersMax(u32),
    #[error("{0}")]
    NotImplemented(String),
    #[error("{0}")]
    Internal(String),
}

impl ConnectionError {
    /// The reply code of `connection.close`.
    pub fn reply_code(&self) -> ReplyCode {
        match self {
            Self::Forced(_) => ReplyCode::ConnectionForced,
            Self::LoginRefused(_) => ReplyCode::AccessRefused,
            Self::FrameTooLarge { .. }
            | Self::InvalidFrameEnd { .. }
            | Self::UnknownFrame { .. }
            | Self::CannotDecode(_)
            | Self::BodyTooLarge { .. }
            | Self::BodyOverrun => ReplyCode::FrameError,
            Self::Syntax(_) => ReplyCode::SyntaxError,
            Self::UnknownMechanism(_) | Self::UnimplementedMethod => ReplyCode::CommandInvalid,
            Self::ExpectedChannelOpen | Self::SecondChannelOpen | Self::UnexpectedMethod(_) => ReplyCode::ChannelError,
            Self::UnexpectedFrame { .. }
            | Self::ExpectedMethod
            | Self::ExpectedHeader
            | Self::OtherHeaderClass(_)
            | Self::ExpectedBody => ReplyCode::UnexpectedFrame,
            Self::NoVirtualHost(_)
            | Self::Negotiation { .. }
            | Self::ChannelMax { .. }
            | Self::ConsumerTagReused(_)
            | Self::ConsumersMax(_) => ReplyCode::NotAllowed,
            Self::NotImplemented(_) => ReplyCode::NotImplemented,
            Self::Internal(_) => ReplyCode::InternalError,
        }
    }

    /// Where the peer's next frame begins is unknown: nothing more is read from it.
    pub fn loses_sync(&self) -> bool {
        matches!(self, Self::FrameTooLarge { .. } | Self::InvalidFrameEnd { .. })
    }
}

/// What went wrong, and so what ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl Failure {
    /// The reply code.
    pub fn reply_code(&self) -> ReplyCode {
        match self {
            Self::Channel(error) => error.reply_code(),
            Self::Connection(error) => error.reply_code(),
        }
    }

    /// The reply text: the code's name, then the explanation, at most 255 octets.
    pub fn reply_text(&self) -> String {
        let mut text = format!("{} - {self}", self.reply_code().name());
        let mut end = text.len().min(usize::from(u8::MAX));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }

    /// What is not built in this release: the connection ends with 540, as it always does for that code.
    pub fn not_implemented(what: impl Into<String>) -> Self {
        Self::Connection(ConnectionError::NotImplemented(what.into()))
    }
}

/// The first octets of a payload, in RabbitMQ's (Erlang's) notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet(String);

impl Snippet {
    /// Of a payload, at most its first 16 octets.
    pub fn of(payload: &[u8]) -> Self {
        let (which, shown) = match payload.get(..16) {
            Some(first) if payload.len() > 16 => ("first 16", first),
            _ => ("all", payload),
        };
        Self(format!("{which} octets = {}", erlang_binary(shown)))
    }
}

impl fmt::Display for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Octets as Erlang prints a binary: as text when all of it is printable, else as numbers.
pub fn erlang_binary(bytes: &[u8]) -> String {
    let is_text = !bytes.is_empty() && bytes.iter().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\r' | b'\t'));
    if is_text {
        return format!("<<{:?}>>", String::from_utf8_lossy(bytes));
    }
    let mut text = String::from("<<");
    for (at, byte) in bytes.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{byte}");
    }
    text.push_str(">>");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_code_name_and_the_explanation() {
        let failure = Failure::from(ChannelError::NotFound(Resource::queue(b"q")));
        assert_eq!(failure.reply_text(), "NOT_FOUND - no queue 'q' in vhost '/'");
        let failure = Failure::from(ConnectionError::FrameTooLarge {
            kind: 3,
            size: 9,
            limit: 8,
        });
        assert_eq!(
            failure.reply_text(),
            "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,9,8}"
        );
    }

    #[test]
    fn a_text_is_cut_at_255_octets_between_characters() {
        let name = "é".repeat(200);
        let text = Failure::from(ChannelError::NotFound(Resource::queue(name.as_bytes()))).reply_text();
        assert!(text.len() <= 255 && text.len() >= 254, "{}", text.len());
    }

    #[test]
    fn octets_are_shown_as_erlang_shows_them() {
        assert_eq!(erlang_binary(b"zz"), "<<\"zz\">>");
        assert_eq!(erlang_binary(&[1, 2]), "<<1,2>>");
        assert_eq!(Snippet::of(b"").to_string(), "all octets = <<>>");
        assert_eq!(
            Snippet::of(&[0; 17]).to_string(),
            "first 16 octets = <<0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0>>"
        );
    }
}
