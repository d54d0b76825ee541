//! Requests and replies: the control plane of a [`Link`](crate::boundary::Link).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::address::Pattern;
use crate::attributes::Attributes;
use crate::boundary::{Delivery, Publish, Reject, Settle, Settlement, SubscriptionId};
use crate::filter::Sql;
use crate::message::{Entry, Format, Message};
pub use crate::policy::{DeadLetter, HashOn, Limit, Overflow, Policy, Way};
use crate::store::record::Position;
use crate::time::Millis;

/// What a session may ask besides publishing and settling. The doc of each variant names its reply;
/// each may also be refused.
#[derive(Debug)]
pub enum Request {
    /// Proves who the peer is. Until then only this is answered. [`Reply::Done`], or
    /// [`Refusal::AccessRefused`].
    Login(Credentials),

    // --- exchanges, queues, bindings ---------------------------------------------------------
    /// Makes an exchange unless it exists. [`Reply::Exchange`] with what there is now: the session
    /// compares it with what its client wanted.
    DeclareExchange(Exchange),
    /// [`Reply::Exchange`], or [`Refusal::NotFound`].
    FindExchange { name: Bytes },
    /// [`Reply::Done`]; [`Refusal::NotFound`], [`Refusal::InUse`] when it has bindings and `if_unused`.
    DeleteExchange { name: Bytes, if_unused: bool },
    /// Makes a queue unless it exists. [`Reply::Queue`] with what there is now;
    /// [`Refusal::Locked`] when it is another connection's exclusive queue.
    DeclareQueue(Queue),
    /// [`Reply::Queue`]; [`Refusal::NotFound`], [`Refusal::Locked`].
    FindQueue { name: Bytes },
    /// [`Reply::Count`] of the messages that went with it; [`Refusal::NotFound`], [`Refusal::Locked`],
    /// [`Refusal::InUse`] (it has consumers), [`Refusal::NotEmpty`].
    DeleteQueue {
        name: Bytes,
        if_unused: bool,
        if_empty: bool,
    },
    /// Gives a queue another limit and policy, which count for what it holds as well. Whether the queue keeps
    /// all messages and how many priorities it has stays as it was declared. [`Reply::Done`].
    AlterQueue {
        name: Bytes,
        limit: Limit,
        policy: Option<Box<Policy>>,
    },
    /// Removes what is ready, not what is leased. [`Reply::Count`].
    PurgeQueue { name: Bytes },
    /// Idempotent. [`Reply::Done`]; [`Refusal::NotFound`] says which end is missing.
    Bind(Binding),
    /// Idempotent. [`Reply::Done`].
    Unbind(Binding),

    // --- consuming from queues ---------------------------------------------------------------
    /// Deliveries begin after the reply. [`Reply::Done`]; [`Refusal::NotFound`], [`Refusal::Locked`],
    /// [`Refusal::InUse`] when somebody consumes exclusively or `exclusive` finds a consumer.
    Subscribe(Subscribe),
    /// No delivery comes after the reply; what is leased stays leased until settled. [`Reply::Done`].
    Unsubscribe { subscription: SubscriptionId },
    /// Takes one message. Its lease, if any, is settled under `subscription`, which must be this
    /// link's alone for gets from that queue. [`Reply::Got`].
    Get {
        subscription: SubscriptionId,
        queue: Bytes,
        leased: bool,
    },

    // --- atomic batches ---------------------------------------------------------------------------
    /// Publishes and settles all of it or nothing. Publishes have no outcomes of their own; mandatory ones
    /// that nobody is there for come back before the reply. [`Reply::Done`], when all is as safe as a
    /// confirmed message; [`Refusal::Rejected`] names the first publish that cannot be taken,
    /// [`Refusal::Invalid`] a batch beyond [`Commit::ITEMS_MAX`] or [`Commit::BYTES_MAX`]. After a refusal
    /// nothing was done.
    Commit(Commit),

    /// Takes back a message that is to be delivered later. [`Reply::Done`]; [`Refusal::NotFound`] when there is
    /// none with that native unique key at that position, or it is due.
    TakeBack { position: Position, unique_key: Bytes },

    /// Ends a transaction. [`Reply::Transaction`]; [`Refusal::Rejected`] when the message cannot be published
    /// now: then the transaction goes on.
    EndTransaction(EndTransaction),
    /// A consumer of a group could not handle a message: it comes again later, or goes to the group's
    /// dead-letter topic. [`Reply::Done`]; [`Refusal::NotFound`].
    GiveBack(Box<GiveBack>),
    /// How a group's messages are tried again. [`Reply::Done`].
    SetRetry { group: Bytes, retry: Retry },

    // --- holders: named sessions that outlive a connection --------------------------------------
    /// Takes the named session, ending another connection's hold on it. Its queue has the holder's
    /// name behind a NUL byte and is bound and consumed like any other, but by nobody else: whatever names it
    /// is refused to other links with [`Refusal::AccessRefused`]. [`Reply::Attached`].
    Attach(Attach),
    /// Gives the session up in good order: it lives on for `keep`, or ends now when that is zero. With
    /// `keep_will` its will is published as if the connection were lost, else never. [`Reply::Done`].
    Detach { keep: Millis, keep_will: bool },
    /// Writes a number on each of these leases of a named session's queue (sequence, note): when the session
    /// is taken again, they come back with it. 0 takes a note away. [`Reply::Done`].
    Note {
        subscription: SubscriptionId,
        notes: Vec<(u64, u32)>,
    },
    /// Makes this link's session a member of a queue that sessions share. [`Reply::Done`].
    Share(Share),
    /// Ends that; a shared queue goes with its last member. [`Reply::Done`].
    Unshare { queue: Bytes },
    /// Puts the last values whose address the pattern matches into a queue, in the order of their addresses.
    /// [`Reply::Done`], at once; what is published meanwhile may come between them.
    Recall { queue: Bytes, pattern: Pattern },

    // --- topics and native groups -------------------------------------------------------------
    /// [`Reply::Topic`], or [`Refusal::NotFound`].
    FindTopic { topic: Bytes },
    /// Makes a topic unless it exists. [`Reply::Topic`].
    DeclareTopic { topic: Bytes, queues: u32 },
    /// This link is a producer of that group until it leaves or ends: it may be asked about the group's
    /// transactions. [`Reply::Done`].
    JoinProducers { group: Bytes, client_id: Bytes },
    /// [`Reply::Done`].
    LeaveProducers { group: Bytes },
    /// This link's client is a member of that consumer group, with these subscriptions, until it
    /// leaves or the link ends. Members are told of changes. [`Reply::Done`].
    JoinConsumers(Join),
    /// [`Reply::Done`].
    LeaveConsumers { group: Bytes, client_id: Bytes },
    /// [`Reply::Members`]: client ids, sorted; empty for an unknown group.
    Members { group: Bytes },
    /// Messages from one message queue, from an offset on. [`Reply::Pulled`].
    Pull(Pull),
    /// Messages from a topic under a lease that ends by itself. [`Reply::Popped`].
    Pop(Pop),
    /// Popped messages are done with. [`Reply::Settled`], at once: as durable as a committed offset.
    AckPopped(AckPopped),
    /// A popped message stays invisible for another time from now on. [`Reply::Lease`]: the lease's new number;
    /// [`Refusal::LeaseEnded`].
    ChangeInvisible(ChangeInvisible),
    /// A group goes on from another place. Who pulls learns it by its next pull, and until then what it commits is
    /// ignored; leases of who pops end. [`Reply::Places`]: message queues and their new offsets;
    /// [`Refusal::NotFound`], and [`Refusal::Invalid`] for a broadcasting group.
    ResetOffset {
        group: Bytes,
        topic: Bytes,
        /// One message queue, or all.
        queue_id: Option<u32>,
        to: ResetTo,
    },
    /// How far a group has come with a topic. [`Reply::Lag`], one for each message queue.
    Lag { group: Bytes, topic: Bytes },
    /// [`Reply::Offset`]: the group's committed offset, `None` when it never committed one.
    CommittedOffset { group: Bytes, topic: Bytes, queue_id: u32 },
    /// [`Reply::Done`], at once: it is as durable as a message that is confirmed later. May go backwards, as
    /// RocketMQ's may.
    CommitOffset {
        group: Bytes,
        topic: Bytes,
        queue_id: u32,
        offset: u64,
    },
    /// [`Reply::Offsets`]: the first and the next offset of a message queue.
    Bounds { topic: Bytes, queue_id: u32 },
    /// [`Reply::Offset`]: of the first message stored at or after `at` (Unix milliseconds).
    SearchOffset { topic: Bytes, queue_id: u32, at: Millis },
    /// Locks message queues for a client for 60 s. [`Reply::Locked`]: those it has now.
    LockQueues {
        group: Bytes,
        client_id: Bytes,
        queues: Vec<(Bytes, u32)>,
    },
    /// [`Reply::Done`].
    UnlockQueues {
        group: Bytes,
        client_id: Bytes,
        queues: Vec<(Bytes, u32)>,
    },
    /// The message at a position. [`Reply::Message`], or [`Refusal::NotFound`].
    View { position: Position },
    /// How much there is. [`Reply::Totals`].
    Totals,
}

/// RocketMQ's delay levels, from the first on.
pub const DELAY_LEVELS: [Millis; 18] = [
    Millis::from_secs(1),
    Millis::from_secs(5),
    Millis::from_secs(10),
    Millis::from_secs(30),
    Millis::from_secs(60),
    Millis::from_secs(2 * 60),
    Millis::from_secs(3 * 60),
    Millis::from_secs(4 * 60),
    Millis::from_secs(5 * 60),
    Millis::from_secs(6 * 60),
    Millis::from_secs(7 * 60),
    Millis::from_secs(8 * 60),
    Millis::from_secs(9 * 60),
    Millis::from_secs(10 * 60),
    Millis::from_secs(20 * 60),
    Millis::from_secs(30 * 60),
    Millis::from_secs(3600),
    Millis::from_secs(2 * 3600),
];

/// A message that a consumer of a group could not handle.
#[derive(Clone, Debug)]
pub struct GiveBack {
    /// The group.
    pub group: Bytes,
    /// The message's position.
    pub position: Position,
    /// 0: as the group's policy says, above: that delay level, below: not again.
    pub level: i32,
    /// How often it is tried again at most; `None` or less than zero: as the group has it.
    pub attempts_max: Option<i32>,
    /// The message's id, unless it was given back before.
    pub id: Bytes,
}

/// How a group's messages are tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often at most; then they go to the group's dead-letter topic.
    pub attempts_max: i32,
    /// Message queues of the retry topic. With none, what is given back is dropped.
    pub queues: u32,
    /// How long to wait before each time.
    pub policy: RetryPolicy,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts_max: 16,
            queues: 1,
            policy: RetryPolicy::Levels(DELAY_LEVELS.to_vec()),
        }
    }
}

/// How long to wait before a message is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetryPolicy {
    /// These times; the first attempt waits for the third of them, as in RocketMQ.
    Levels(Vec<Millis>),
    /// Longer by that factor each time.
    Exponential {
        /// The first time.
        initial: Millis,
        /// The longest time.
        max: Millis,
        /// The factor.
        multiplier: u32,
    },
}

impl RetryPolicy {
    /// How long to wait before a message is tried again that was tried again so often already.
    pub fn delay(&self, attempts: i32) -> Millis {
        let attempts = u32::try_from(attempts).unwrap_or(0);
        match self {
            Self::Levels(levels) => {
                let last = levels.len().saturating_sub(1);
                levels
                    .get((attempts as usize + 2).min(last))
                    .copied()
                    .unwrap_or_default()
            }
            Self::Exponential {
                initial,
                max,
                multiplier,
            } => {
                let factor = u64::from(*multiplier).saturating_pow(attempts.min(64));
                Millis(initial.0.saturating_mul(factor).min(max.0))
            }
        }
    }
}

/// What becomes of a half message.
#[derive(Clone, Debug)]
pub struct EndTransaction {
    /// Its position.
    pub position: Position,
    /// Its number, which its outcome told as the queue offset.
    pub offset: u64,
    /// The group that it was sent by.
    pub group: Bytes,
    /// What becomes of it.
    pub verdict: Verdict,
    /// It answers a [`Notice::CheckTransaction`](crate::boundary::Notice::CheckTransaction).
    pub from_check: bool,
}

/// What a producer says about its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The message is published.
    Commit,
    /// There never was a message.
    Rollback,
    /// Not known yet: ask again.
    Unknown,
}

/// How ending a transaction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// It is done.
    Done,
    /// There is no such half message (any more).
    NotFound,
    /// It was sent by another group.
    OtherGroup,
    /// Its number is another one.
    OtherOffset,
    /// The time is up within which it had to be ended unasked.
    TooLate,
}

/// Publishes and settlements that take effect together.
#[derive(Debug, Default)]
pub struct Commit {
    /// In their order.
    pub publishes: Vec<Publish>,
    /// In their order, behind the publishes.
    pub settlements: Vec<Settlement>,
    /// Popped messages. One that is not this lease's to settle any more refuses the batch:
    /// [`Refusal::LeaseEnded`].
    pub popped: Vec<SettlePopped>,
}

impl Commit {
    /// Most publishes, settlements and popped messages together.
    pub const ITEMS_MAX: usize = 10_000;
    /// Most bytes of bodies and headers together.
    pub const BYTES_MAX: usize = 16 << 20;

    /// What a publish counts towards [`BYTES_MAX`](Self::BYTES_MAX).
    pub fn size_of(publish: &Publish) -> usize {
        publish.key.len() + publish.attributes.as_bytes().len() + publish.origin.len() + publish.body.len()
    }
}

/// What a peer shows at login.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Name and password.
    Password { user: Bytes, password: Bytes },
    /// Nothing: allowed from loopback only.
    Anonymous,
}

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExchangeKind {
    /// To every binding.
    Fanout = 0,
    /// To bindings whose key is the message's key.
    Direct = 1,
    /// To bindings whose pattern matches the message's key.
    Pattern = 2,
    /// To bindings whose matcher fits the message's user properties.
    Headers = 3,
    /// To one binding, the same for the same hash of what the exchange hashes on. A binding's key is its
    /// weight.
    Hash = 4,
}

/// An exchange: a topic seen as a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Encoded topic name.
    pub name: Bytes,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Kept over a restart.
    pub durable: bool,
    /// Goes when its last binding goes.
    pub auto_delete: bool,
    /// Only other exchanges publish to it.
    pub internal: bool,
    /// Where messages go that none of its bindings takes.
    pub alternate: Option<Way>,
    /// What [`ExchangeKind::Hash`] hashes.
    pub hash_on: HashOn,
    /// How copies of messages published to it, or to the topic of its name, are known.
    pub dedup: Option<Dedup>,
    /// The declarer's own words, kept and given back unread.
    pub arguments: Bytes,
}

/// How a topic or exchange knows a copy of an earlier message: by a property that both have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dedup {
    /// The property's name: a user property, or an attribute's native name. A message without it is no copy.
    pub property: Bytes,
    /// Values remembered; the oldest are forgotten first.
    pub keys_max: u32,
    /// How long each is remembered; `None` is as long as there is room.
    pub time: Option<Millis>,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name; any bytes, not encoded.
    pub name: Bytes,
    /// Kept over a restart. An exclusive queue never is.
    pub durable: bool,
    /// Only the declaring connection may use it, and it goes with it.
    pub exclusive: bool,
    /// Goes when its last consumer goes, after it had one.
    pub auto_delete: bool,
    /// What native producers send to the topic of its name reaches it, and what is published straight to it
    /// enters that topic. Not for server-named, exclusive and temporary queues.
    pub addressable: bool,
    /// Most messages and bytes ready; what happens beyond it is the policy's `overflow`.
    pub limit: Limit,
    /// What it does beyond queueing; `None` is the default policy.
    pub policy: Option<Box<Policy>>,
    /// The declarer's own words, kept and given back unread.
    pub arguments: Bytes,
}

/// Where a binding's messages come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The exchange of that (encoded) name.
    Exchange(Bytes),
    /// The root exchange: a pattern over whole addresses that sees what is published to topics by
    /// name, but not what enters through another exchange.
    Topics,
    /// A pattern over whole addresses that sees everything but what goes straight to a queue.
    Everything,
}

/// Which of a source's messages a binding takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Matcher {
    /// For fanout (where it does not matter) and direct exchanges: the key, byte for byte.
    Key(Bytes),
    /// For pattern exchanges and the two pattern sources.
    Pattern(Pattern),
    /// For headers exchanges.
    Headers(Headers),
}

/// A match over user properties.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Headers {
    /// All of them must fit, or any one.
    pub all: bool,
    /// Encoded [`Attributes`](crate::attributes::Attributes) entries with user names; a
    /// [`Value::Null`](crate::attributes::Value::Null) only asks for presence.
    pub wanted: Bytes,
}

/// Where a binding's messages go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// The queue of that name.
    Queue(Bytes),
    /// The exchange of that (encoded) name.
    Exchange(Bytes),
    /// The root exchange: by what the key says as a whole address.
    Topics,
}

/// A binding. Its identity is all of it but `cookie`: binding again replaces the cookie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Where from.
    pub source: Source,
    /// Which.
    pub matcher: Matcher,
    /// Where to.
    pub destination: Destination,
    /// Tells apart bindings that match alike; part of the identity.
    pub arguments: Bytes,
    /// The session's own words, given back by [`Reply::Attached`].
    pub cookie: Bytes,
}

/// When a delivery is leased, that is, must be settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// Never: it is done with once delivered.
    Never,
    /// Always.
    Always,
    /// Only persistent messages.
    Persistent,
}

/// A consumer of a queue.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// The session's number for it.
    pub subscription: SubscriptionId,
    /// The queue's name.
    pub queue: Bytes,
    /// What is leased.
    pub acknowledge: Acknowledge,
    /// Most leased messages at a time; `None` is no limit. Deliveries that need no settling are
    /// limited by the inbox only.
    pub window: Option<u32>,
    /// No other consumer beside it.
    pub exclusive: bool,
    /// Consumers of a higher priority are served first, as long as they can take something.
    pub priority: i32,
    /// It gets only what this takes; the rest stays in its place for others.
    pub selector: Option<Box<Sql>>,
}

/// Taking a named session.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The session's name.
    pub holder: Bytes,
    /// Throw away what there is and begin anew.
    pub clean: bool,
    /// It may outlive this connection and a restart: its queue is durable. Without, it goes when the
    /// connection goes, as [`Request::Detach`] with zero would do.
    pub durable: bool,
    /// How long it lives on when the connection is lost.
    pub keep: Millis,
    /// How much its queue may hold.
    pub limit: Limit,
    /// What is published when the connection is lost; it replaces an earlier one.
    pub will: Option<Box<Will>>,
}

/// What is published for a client that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// How long to wait for the client before: at most until its session ends.
    pub delay: Millis,
    /// How it enters.
    pub entry: Entry,
    /// Encoded topic name.
    pub topic: Bytes,
    /// The key.
    pub key: Bytes,
    /// The payload.
    pub body: Bytes,
    /// Neutral properties.
    pub attributes: Attributes,
    /// Whose header bytes `origin` is.
    pub format: Format,
    /// The publisher's own header bytes.
    pub origin: Bytes,
    /// See [`Publish::persistent`](crate::boundary::Publish::persistent).
    pub persistent: bool,
    /// See [`Publish::retain`](crate::boundary::Publish::retain).
    pub retain: bool,
}

/// Membership of a named session in a queue that sessions share. It lasts as long as the session: whoever of
/// them is connected and consumes from the queue gets a part of its messages.
#[derive(Clone, Debug)]
pub struct Share {
    /// The queue's name, behind two NUL bytes. It is made with its first member.
    pub queue: Bytes,
    /// How much the queue may hold.
    pub limit: Limit,
    /// Which messages it gets.
    pub source: Source,
    /// Which of them.
    pub matcher: Matcher,
    /// The session's own words, given back by [`Reply::Attached`]. A new one replaces the old one.
    pub cookie: Bytes,
}

/// A member of a consumer group.
#[derive(Clone, Debug)]
pub struct Join {
    /// The group.
    pub group: Bytes,
    /// The member.
    pub client_id: Bytes,
    /// Every member gets every message, and no offsets are kept here.
    pub broadcasting: bool,
    /// What the group wants.
    pub subscriptions: Vec<GroupSubscription>,
}

/// What a consumer group wants of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSubscription {
    /// Encoded topic name.
    pub topic: Bytes,
    /// Which of its messages.
    pub filter: Filter,
    /// A newer version replaces an older one.
    pub version: u64,
}

/// Which messages of a topic a native consumer wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// All of them.
    #[default]
    All,
    /// Those whose tag has one of these hashes (Java's `String.hashCode`), as RocketMQ filters: the
    /// client compares the tags themselves.
    Tags(Vec<i32>),
    /// Those whose properties fit the expression.
    Sql(Arc<Sql>),
}

/// A native pull.
#[derive(Clone, Debug)]
pub struct Pull {
    /// The consumer group.
    pub group: Bytes,
    /// The topic.
    pub topic: Bytes,
    /// The message queue.
    pub queue_id: u32,
    /// The first offset wanted.
    pub offset: u64,
    /// Most messages wanted.
    pub messages_max: u32,
    /// Most bytes wanted; at least one message comes whatever its size.
    pub bytes_max: u32,
    /// Which messages; `None` takes the filter that the group joined with.
    pub filter: Option<Filter>,
    /// Wait when there is nothing, until [`cancel`](crate::boundary::Link::cancel).
    pub hold: bool,
}

/// A pop: messages are leased to the group, not to the connection.
#[derive(Clone, Debug)]
pub struct Pop {
    /// The consumer group.
    pub group: Bytes,
    /// The topic.
    pub topic: Bytes,
    /// One message queue, or all in turn.
    pub queue_id: Option<u32>,
    /// Most messages wanted, at most 1,024.
    pub messages_max: u32,
    /// Most bytes wanted; at least one message comes whatever its size.
    pub bytes_max: u32,
    /// How long nobody else gets them. Then they come again, and after 16 times they go to the group's dead-letter
    /// topic.
    pub invisible: Millis,
    /// Which messages; `None` takes the filter that the group joined with, else all. Others are passed for good.
    pub filter: Option<Filter>,
    /// Where a group begins that has neither popped nor committed an offset.
    pub from: PopFrom,
    /// Of messages with one ordering key none comes while an earlier one is leased.
    pub in_order: bool,
    /// In order: the same attempt again gets what it got before. Empty is none.
    pub attempt: Bytes,
    /// Wait when there is nothing, until [`cancel`](crate::boundary::Link::cancel).
    pub hold: bool,
}

/// Where a new group begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PopFrom {
    /// With the first message there is.
    #[default]
    Begin,
    /// With what comes next.
    End,
}

/// What a pop found.
#[derive(Debug)]
pub struct Popped {
    /// The messages, of each message queue in its order.
    pub messages: Vec<PoppedMessage>,
    /// When, Unix milliseconds.
    pub popped_at: Millis,
    /// Messages left that nobody has.
    pub remaining: u64,
}

/// A popped message.
#[derive(Clone, Debug)]
pub struct PoppedMessage {
    /// Its message queue.
    pub queue_id: u32,
    /// Its offset there.
    pub offset: u64,
    /// The lease's number: with the two above it settles the message.
    pub lease: u64,
    /// How often it came back before.
    pub attempts: u32,
    /// It may have been handed out before.
    pub redelivered: bool,
    /// The message.
    pub message: Message,
}

/// Which popped message is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its message queue.
    pub queue_id: u32,
    /// Its offset there.
    pub offset: u64,
    /// The lease's number.
    pub lease: u64,
}

/// Popped messages that are done with.
#[derive(Clone, Debug)]
pub struct AckPopped {
    /// The consumer group.
    pub group: Bytes,
    /// The topic.
    pub topic: Bytes,
    /// At most 1,024.
    pub messages: Vec<Held>,
}

/// What becomes of popped messages in a [`Commit`].
#[derive(Clone, Debug)]
pub struct SettlePopped {
    /// The consumer group.
    pub group: Bytes,
    /// The topic.
    pub topic: Bytes,
    /// Each once.
    pub messages: Vec<Held>,
    /// Released, they are given back at once; rejected, they go to the group's dead-letter topic.
    pub action: Settle,
}

/// Another invisible time for a popped message.
#[derive(Clone, Debug)]
pub struct ChangeInvisible {
    /// The consumer group.
    pub group: Bytes,
    /// The topic.
    pub topic: Bytes,
    /// Which.
    pub message: Held,
    /// From now on; zero gives it back at once, and the lease is over.
    pub invisible: Millis,
}

/// Where a reset goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// The first message stored at or after that time, Unix milliseconds.
    Time(Millis),
    /// What comes next.
    End,
    /// That offset, as far as the message queue has it.
    Offset(u64),
}

/// How far a group has come with a message queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLag {
    /// The message queue.
    pub queue_id: u32,
    /// The offset that the next message gets.
    pub end: u64,
    /// The first message that the group is not done with; `None` when it never began.
    pub committed: Option<u64>,
    /// Messages leased by pops.
    pub leased: u64,
    /// When the last message was stored that it is done with.
    pub stored_at: Option<Millis>,
}

/// What a pull found.
#[derive(Debug)]
pub struct Pulled {
    /// How it went.
    pub status: PullStatus,
    /// The messages, each a native record.
    pub messages: Vec<Message>,
    /// Where to go on.
    pub next_offset: u64,
    /// First and next offset of the message queue.
    pub bounds: Range<u64>,
}

/// How a pull went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullStatus {
    /// There are messages.
    Found,
    /// There were messages, none that the filter takes; go on at `next_offset` at once.
    NoneMatched,
    /// Nothing yet at that offset.
    NotFound,
    /// The offset is out of bounds; go on at `next_offset`.
    OffsetMoved,
    /// The group was reset; go on at `next_offset`.
    OffsetReset,
}

/// The answer to a request.
#[derive(Debug)]
pub enum Reply {
    /// It is done, and as durable as a confirmed message; of a committed offset only done.
    Done,
    /// An exchange as it is.
    Exchange(Box<Exchange>),
    /// A queue as it is.
    Queue(Box<QueueState>),
    /// How ending a transaction went.
    Transaction(TransactionEnd),
    /// A number of messages.
    Count(u64),
    /// What a get took, if there was anything.
    Got(Option<Box<Got>>),
    /// A named session was taken.
    Attached {
        /// It was there already.
        present: bool,
        /// The cookies of its queue's bindings.
        cookies: Vec<Bytes>,
        /// The shared queues it is a member of, each with its cookie.
        shares: Vec<(Bytes, Bytes)>,
    },
    /// A topic as it is.
    Topic(Topic),
    /// A group's members.
    Members(Vec<Bytes>),
    /// What a pull found.
    Pulled(Box<Pulled>),
    /// What a pop found.
    Popped(Box<Popped>),
    /// Of each message, whether it was this lease's to settle.
    Settled(Vec<bool>),
    /// A lease's number; 0 when it is over.
    Lease(u64),
    /// Message queues and offsets.
    Places(Vec<(u32, u64)>),
    /// How far a group has come.
    Lag(Vec<QueueLag>),
    /// An offset.
    Offset(Option<u64>),
    /// First and next offset.
    Offsets(Range<u64>),
    /// The message queues that the client has locked.
    Locked(Vec<(Bytes, u32)>),
    /// One message.
    Message(Message),
    /// How much there is.
    Totals(Totals),
}

/// How much of some things the broker has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Named sessions that wait for their clients.
    pub waiting_sessions: u64,
    /// Addresses with a last value.
    pub last_values: u64,
    /// Messages that queues and last values keep; one that several keep counts for each.
    pub kept_messages: u64,
    /// Messages that full queues have dropped since the start.
    pub dropped_messages: u64,
}

/// What a get took.
#[derive(Debug)]
pub struct Got {
    /// The message.
    pub delivery: Delivery,
    /// Ready messages left.
    pub remaining: u64,
}

/// A queue and how full it is.
#[derive(Clone, Debug)]
pub struct QueueState {
    /// As it was declared.
    pub queue: Queue,
    /// Messages ready to be delivered.
    pub ready: u64,
    /// Its consumers.
    pub consumers: u32,
    /// This very request made it.
    pub created: bool,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Encoded name.
    pub name: Bytes,
    /// Its message queues.
    pub queues: u32,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none of that name.
    #[error("no {what} {}", String::from_utf8_lossy(name))]
    NotFound {
        /// What kind of thing: `exchange`, `queue`, `topic`, `group`, `message`.
        what: &'static str,
        /// Its name.
        name: Bytes,
    },
    /// Another connection's exclusive queue.
    #[error("it is exclusive to another connection")]
    Locked,
    /// It has consumers or bindings, or is consumed exclusively.
    #[error("it is in use")]
    InUse,
    /// Only its one active consumer gets its messages.
    #[error("it has a single active consumer")]
    SingleActive,
    /// It still has messages.
    #[error("it is not empty")]
    NotEmpty,
    /// Wrong user or password, or not allowed: a queue of a session that the link does not hold, a will on a
    /// reserved topic.
    #[error("access refused")]
    AccessRefused,
    /// A limit was reached or a value is out of range.
    #[error("{0}")]
    Invalid(String),
    /// A publish of a batch cannot be taken.
    #[error("publish {index} of the batch was rejected: {reject:?}")]
    Rejected {
        /// Its place among the batch's publishes.
        index: usize,
        /// Why.
        reject: Reject,
    },
    /// The queue that the subscription was from is gone: a get needs a new one.
    #[error("the subscription's queue is gone")]
    Ended,
    /// The popped message is somebody else's by now, or done with.
    #[error("the lease has ended")]
    LeaseEnded,
    /// The group has not joined with a subscription of that topic.
    #[error("the group has no subscription of that topic")]
    NoSubscription,
    /// This broker does not do that.
    #[error("{0} is not supported")]
    NotSupported(&'static str),
    /// The broker is going down.
    #[error("the broker is going down")]
    Closed,
}
