//! The boundary between front-ends and core: a [`Broker`] opens [`Link`]s, a link takes batches and
//! requests, and everything core says comes back through one [`Inbox`](crate::inbox::Inbox).
//!
//! Three properties matter more than the signatures. Nothing here waits. The data plane works in
//! batches and costs no future, task or wake-up per message. One connection is one ordered
//! conversation: what a session asks takes effect before the call returns, and everything core tells
//! it comes back through one FIFO; so a subscribe reply precedes the first delivery, an unsubscribe
//! reply follows the last, a return precedes its outcome, and replies come in the order of requests.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;

use crate::attributes::Attributes;
use crate::inbox::Inbox;
use crate::message::{Entry, Format, Message};
use crate::request::{Refusal, Reply, Request};
use crate::store::record::Position;
use crate::time::Millis;

/// Opens links. Cheap to clone. Implemented by [`Engine`](crate::engine::Engine), later by a cluster
/// engine too.
pub trait Broker: Clone + Send + Sync + 'static {
    /// One connection's side of this broker.
    type Link: Link;

    /// At accept, before login. Everything core tells this connection arrives in `inbox`, in one order.
    fn open(&self, peer: Peer, inbox: Inbox) -> Self::Link;
}

/// One connection's side of the broker. Dropping it ends the connection: leases return, exclusive
/// queues go, groups lose a member. No method waits.
pub trait Link: Send + 'static {
    /// Takes from the front of the batch. One [`Event::Outcome`] covers each message taken, exactly once,
    /// however it goes. With [`Admission::Partial`] the rest stays in the batch and [`Event::Writable`]
    /// comes when it is worth trying again.
    fn publish(&mut self, batch: &mut VecDeque<Publish>) -> Admission;

    /// Settles leased messages. Takes the whole batch; a settlement of what is not leased is ignored.
    fn settle(&mut self, batch: &mut VecDeque<Settlement>);

    /// Everything that is not publishing or settling. Exactly one [`Event::Reply`] answers it; a pull
    /// that may be held is answered when there is something or when it is cancelled.
    fn request(&mut self, id: RequestId, request: Request);

    /// Whether too much waits for the disk to take a [`Request::Commit`] now: [`Event::Writable`] comes when
    /// it is worth trying again.
    fn is_busy(&mut self) -> bool {
        false
    }

    /// Ends the wait of a held request: it is answered now with what there is, maybe nothing. Does
    /// nothing when the request was answered already.
    fn cancel(&mut self, id: RequestId);

    /// The driver has emptied the inbox: deliveries that found it full go on.
    fn resume(&mut self);
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The peer's address.
    pub remote: SocketAddr,
    /// Our address on that very connection.
    pub local: SocketAddr,
}

/// Whether a batch was taken whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// All taken.
    All,
    /// The rest is still in the batch: too much is waiting for the disk or memory is short.
    Partial,
}

/// A session's number for a request; the reply carries it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A session's number for one of its subscriptions. Never used twice on one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(pub u32);

/// A message to be routed and stored.
#[derive(Debug, Default)]
pub struct Publish {
    /// The session's number for it, rising by one from publish to publish so that outcomes of
    /// neighbours can be told in one event.
    pub token: u64,
    /// How it enters, which decides who sees it.
    pub entry: Entry,
    /// Encoded topic name, see [`encode_name`](crate::address::encode_name).
    pub topic: Bytes,
    /// The key; native tag, routing key, the levels after the first.
    pub key: Bytes,
    /// The payload; may be a slice of the socket's buffer, core copies it once.
    pub body: Bytes,
    /// Neutral properties. Empty for a native message: core reads them from its property string.
    pub attributes: Attributes,
    /// Whose header bytes `origin` is.
    pub format: Format,
    /// The publisher's own header bytes, given back unchanged to readers of the same protocol; for
    /// [`Format::NATIVE`] the property string as it came.
    pub origin: Bytes,
    /// Kept over a restart wherever a durable queue or a topic takes it.
    pub persistent: bool,
    /// When the disk is nearly full, it waits in the session's batch; without, it is rejected with
    /// [`Reject::Shortage`].
    pub waits: bool,
    /// It becomes the last value of its address, whatever else happens to it; with an empty body the address
    /// has no last value any more.
    pub retain: bool,
    /// Give it back with [`Event::Returned`] when no queue, live subscription or group is there for it.
    pub mandatory: bool,
    /// The outcome must tell position, queue and offset; others are merged with their neighbours.
    pub detailed: bool,
    /// When it is delivered, if not now. Nobody sees it before; it is routed then.
    pub deliver: Deliver,
    /// What only native messages have.
    pub native: Option<Box<Native>>,
    /// A key of the link's holder: a second publish with it is [`Fate::Duplicate`] until it is closed.
    pub holder_key: Option<HolderKey>,
}

/// A number by which a named session's client tells a message it sends again from a new one. Kept over a restart
/// with the message; a link without a holder has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderKey {
    /// This message has that number.
    Open(u64),
    /// No message at all, nothing but the number counts: the next publish with it is a new one. The outcome comes
    /// when that is as safe as a confirmed message; its `routes` are 0 when the number was not open.
    Close(u64),
}

/// When a message is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deliver {
    /// At once.
    #[default]
    Now,
    /// After that time, whatever happens to the wall clock meanwhile.
    After(Millis),
    /// When the wall clock shows that, Unix milliseconds.
    At(Millis),
}

/// The parts of a native message's header that its record keeps.
#[derive(Clone, Debug, Default)]
pub struct Native {
    /// The message queue the producer chose; `None` lets the broker choose.
    pub queue_id: Option<u32>,
    /// The user's flag, kept as it is.
    pub flag: i32,
    /// RocketMQ's sysFlag (compression bits; host bits are set by core).
    pub sys_flag: i32,
    /// When the producer made it, Unix milliseconds.
    pub born_at: Millis,
    /// Earlier attempts at consuming it.
    pub reconsume_times: i32,
    /// Message queues that a topic made by this publish gets.
    pub topic_queues: u32,
    /// It is the half of a transaction: nobody sees it before it is committed.
    pub half: bool,
    /// Of a message that is sent to a retry topic: how often it is tried at most.
    pub attempts_max: Option<i32>,
}

/// What a session does with leased messages: neighbours in one queue are one settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The subscription they were delivered to.
    pub subscription: SubscriptionId,
    /// Queue sequence of the first.
    pub first: u64,
    /// How many, at least one.
    pub count: u32,
    /// What happens to them.
    pub action: Settle,
}

/// What happens to leased messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Done with.
    Ack,
    /// Back to their place in the queue, to be delivered again with the redelivered flag.
    Release,
    /// Refused for good.
    Reject,
}

/// What core tells a connection.
#[derive(Debug)]
pub enum Event {
    /// What became of messages that were published.
    Outcome(Outcome),
    /// A mandatory message that nobody is there for; its outcome follows.
    Returned {
        /// The publish's token.
        token: u64,
        /// The message as it would have been delivered.
        message: Message,
    },
    /// A message for a subscription.
    Delivery(Delivery),
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: RequestId,
        /// What it asked for, or why not.
        result: Result<Reply, Refusal>,
    },
    /// What core says unasked.
    Notice(Notice),
    /// After [`Admission::Partial`]: there is room again.
    Writable,
}

/// The same fate of `count` messages whose tokens follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The first message's token.
    pub first: u64,
    /// How many, at least one.
    pub count: u32,
    /// What became of them.
    pub fate: Fate,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Taken: stored as the flush mode promises, or handed to everybody who was there for it.
    Stored(Stored),
    /// A copy of a message that was taken before: not stored again. What is told is that message's.
    Duplicate(Stored),
    /// Certainly not stored.
    Rejected(Reject),
    /// Maybe stored; nobody knows (cluster).
    Unknown,
}

/// Where a message was stored. Of merged outcomes only `routes` and `weak` mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the log.
    pub position: Position,
    /// Its message queue in its topic.
    pub queue_id: u32,
    /// Its offset in that message queue.
    pub queue_offset: u64,
    /// Queues, live subscriptions and groups that get it; zero is one more way to say "returned".
    pub routes: u32,
    /// Flushed late or not at all.
    pub weak: bool,
}

/// Why a message was certainly not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// No exchange of that name.
    NoExchange,
    /// The exchange only takes messages from other exchanges.
    InternalExchange,
    /// The topic may not be written or made.
    NoTopic,
    /// No such message queue in the topic.
    NoQueue,
    /// Larger than the limit.
    TooLarge,
    /// To be delivered later than is allowed.
    TooLate,
    /// A queue on the way is full and refuses, or there are as many last values as the limit allows.
    QueueFull,
    /// There is no room for it just now.
    Shortage(Shortage),
    /// Not logged in, or no permission: to publish straight to a session's queue, say, or as a foreign client to a
    /// [reserved](crate::address::is_reserved) topic.
    AccessRefused,
    /// The link was closed, or the broker is going down.
    Closed,
}

/// A message handed to a subscription.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Whose it is.
    pub subscription: SubscriptionId,
    /// Its sequence in the queue: what settles it.
    pub sequence: u64,
    /// It may have been delivered before.
    pub redelivered: bool,
    /// How often it came back before, where the queue counts that; else 0.
    pub attempts: u32,
    /// It is leased and must be settled.
    pub leased: bool,
    /// It was there already: a last value that [`Request::Recall`] asked for.
    pub recalled: bool,
    /// What the holder noted on this lease earlier, 0 for nothing.
    pub note: u32,
    /// The message.
    pub message: Message,
}

/// What core says unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A subscription ended because its queue is gone. Nothing is delivered to it any more.
    SubscriptionEnded(SubscriptionId),
    /// Members or subscriptions of a consumer group changed.
    GroupChanged(Bytes),
    /// A producer of the group is asked about a transaction; it answers with
    /// [`Request::EndTransaction`](crate::request::Request::EndTransaction), on whatever link.
    CheckTransaction(Box<CheckTransaction>),
    /// Another connection took this link's holder over; this one is to close.
    HolderTaken,
    /// Publishers are held back until [`Notice::Unblocked`].
    Blocked(Shortage),
    /// Publishing goes on.
    Unblocked,
}

/// A transaction that was not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckTransaction {
    /// The producer group that is asked.
    pub group: Bytes,
    /// Where the half message lies.
    pub position: Position,
    /// Its number.
    pub offset: u64,
    /// The half message.
    pub message: Message,
}

/// What publishers have to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Memory runs short.
    Memory,
    /// The disk is nearly full.
    Disk,
}
