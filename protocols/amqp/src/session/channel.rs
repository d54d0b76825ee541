//! One channel: what it remembers, and how the frames of a `basic.publish` come together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::attributes::Attributes;
use rocketbridge_core::boundary::SubscriptionId;
use rocketbridge_session::Unacked;

use super::confirms::Confirms;
use super::publishes::ChannelKey;
use super::tx::Tx;
use crate::codec::{FRAME_BODY, FRAME_HEADER, MethodId};
use crate::mapping::{ExchangeName, Target};
use crate::reply_code::ConnectionError;

/// `basic.publish`, which errors of its content are blamed on.
pub const PUBLISH: MethodId = MethodId { class: 60, method: 40 };

/// Memory set aside for a body that comes in several frames before any of it is there, at most.
const BODY_RESERVE_MAX: u64 = 128 * 1024;

/// Whether a channel still listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// As ever.
    Open,
    /// It failed, but earlier requests are answered first. Nothing the client sends counts any more.
    Failing {
        /// The client closed it meanwhile.
        peer_closed: bool,
    },
    /// We sent `channel.close`: everything but `close` and `close-ok` is discarded.
    Closing {
        /// The client had closed it too, so it may take our `close` for the answer and open it again.
        peer_closed: bool,
    },
    /// The client sent `channel.close`; the answer waits for earlier requests.
    Closed,
}

/// A `basic.publish` whose content is not there yet.
#[derive(Debug)]
pub struct Publishing {
    /// Where to.
    pub exchange: Arc<ExchangeName>,
    /// With which routing key.
    pub routing_key: Bytes,
    /// Give it back when nobody is there for it.
    pub mandatory: bool,
}

/// A message that lacks nothing but its body.
#[derive(Debug)]
pub struct Headed {
    /// The exchange it was published to.
    pub exchange: Arc<ExchangeName>,
    /// Its address.
    pub target: Target,
    /// Its properties in neutral form.
    pub attributes: Attributes,
    /// Its origin block.
    pub origin: Bytes,
    /// Delivery mode 2.
    pub persistent: bool,
    /// Give it back when nobody is there for it.
    pub mandatory: bool,
}

/// Where a channel stands in receiving the content of one `basic.publish`.
///
/// ```text
///          basic.publish            header (size > 0)          body, complete
///   Idle ---------------> Header ---------------------> Body ----------------> Idle
///                            \--- header (size = 0) ---> Idle
/// ```
#[derive(Debug, Default)]
pub enum Content {
    /// A method is next.
    #[default]
    Idle,
    /// The content header is next.
    Header(Publishing),
    /// Body frames are next.
    Body {
        /// The message so far.
        message: Headed,
        /// Octets announced.
        body_size: u64,
        /// Octets received.
        body: BytesMut,
    },
}

impl Content {
    /// A frame of that kind came that is not next.
    pub fn unexpected(&self) -> ConnectionError {
        match self {
            Self::Idle => ConnectionError::ExpectedMethod,
            Self::Header(_) => ConnectionError::ExpectedHeader,
            Self::Body { .. } => ConnectionError::ExpectedBody,
        }
    }

    /// Whether a frame of that kind is next; methods are next in no content.
    pub fn expects(&self, kind: u8) -> bool {
        match self {
            Self::Idle => false,
            Self::Header(_) => kind == FRAME_HEADER,
            Self::Body { .. } => kind == FRAME_BODY,
        }
    }

    /// Copies what is a slice of the socket's buffer, so that a half-received message does not keep it.
    pub fn detach(&mut self) {
        let copy = |bytes: &mut Bytes| *bytes = Bytes::copy_from_slice(bytes);
        match self {
            Self::Idle => {}
            Self::Header(publishing) => copy(&mut publishing.routing_key),
            Self::Body { message, .. } => {
                copy(&mut message.target.topic);
                copy(&mut message.target.key);
                copy(&mut message.origin);
            }
        }
    }

    /// The beginning of a body that needs more than one frame.
    pub fn body(message: Headed, body_size: u64) -> Self {
        Self::Body {
            message,
            body_size,
            body: BytesMut::with_capacity(body_size.min(BODY_RESERVE_MAX) as usize),
        }
    }
}

/// Frames that wait until a request is answered whose answer they need.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Frame type and payload.
    pub frames: VecDeque<(u8, Bytes)>,
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    /// Number and epoch.
    pub key: ChannelKey,
    /// Whether it still listens.
    pub life: Life,
    /// The message that is being received.
    pub content: Content,
    /// `prefetch_count` for consumers from now on; 0 is no limit.
    pub prefetch: u16,
    /// The queue that an empty queue name stands for.
    pub last_queue: Option<Bytes>,
    /// Consumers by tag.
    pub consumers: BTreeMap<Bytes, SubscriptionId>,
    /// The consumer of direct reply-to, and its queue.
    pub reply: Option<(SubscriptionId, Bytes)>,
    /// Delivery tag of the next delivery.
    pub next_delivery_tag: u64,
    /// What was delivered and not settled.
    pub unacked: Unacked,
    /// In confirm mode.
    pub confirms: Option<Confirms>,
    /// In transaction mode.
    pub tx: Option<Tx>,
    /// Answers that wait for core, also those that only wait for their turn.
    pub waiting: u32,
    /// Set while nothing of this channel may be handled.
    pub backlog: Option<Backlog>,
}

impl Channel {
    /// A channel as it is after `channel.open`.
    pub fn new(key: ChannelKey) -> Self {
        Self {
            key,
            life: Life::Open,
            content: Content::Idle,
            prefetch: 0,
            last_queue: None,
            consumers: BTreeMap::new(),
            reply: None,
            next_delivery_tag: 1,
            unacked: Unacked::default(),
            confirms: None,
            tx: None,
            waiting: 0,
            backlog: None,
        }
    }

    /// The tag of a new delivery.
    pub fn next_tag(&mut self) -> u64 {
        let tag = self.next_delivery_tag;
        self.next_delivery_tag += 1;
        tag
    }

    /// Whether deliveries and answers may still be sent on it.
    pub fn is_heard(&self) -> bool {
        matches!(self.life, Life::Open | Life::Failing { .. } | Life::Closed)
    }
}
