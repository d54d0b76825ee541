//! What a queue does with its messages and with itself, and how an exchange finds its targets: the words
//! in which protocols ask for it.

use bytes::Bytes;

use crate::attributes::Attribute;
use crate::time::Millis;

/// Where a message enters, or goes on, by a routing key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Straight to the queue that the key names.
    Queue,
    /// To the topic that the key's first level names; the other levels are the key.
    Topics,
    /// Through the exchange of that (encoded) name, if there is one then.
    Exchange(Bytes),
}

/// What a queue does with its messages and with itself. The default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How long a message may wait at most; it goes when it gets to the head. The message's own time
    /// counts when it is shorter.
    pub message_ttl: Option<Millis>,
    /// The queue goes when for so long nobody consumed from it, got from it or declared it.
    pub expires: Option<Millis>,
    /// What becomes of messages beyond the queue's limit.
    pub overflow: Overflow,
    /// The highest priority: higher ones are delivered first, a message's own is cut to this. 0 is none.
    pub priorities: u8,
    /// One consumer gets everything until it goes.
    pub single_active: bool,
    /// Deliveries that came back are counted for each message and told with the next one.
    pub counts_attempts: bool,
    /// How often a message may come back; beyond it, it is dead-lettered.
    pub delivery_limit: Option<u32>,
    /// Where messages go that the queue gives up. `None` drops them.
    pub dead_letter: Option<DeadLetter>,
    /// Every message is kept over a restart, whatever its publisher asked for.
    pub keeps_all: bool,
}

/// What becomes of messages beyond a queue's limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Overflow {
    /// The message that would be delivered next is given up.
    #[default]
    DropHead = 0,
    /// The new message is refused.
    Reject = 1,
    /// The new message is refused and dead-lettered.
    RejectAndDeadLetter = 2,
}

/// Where a queue's given up messages go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeadLetter {
    /// The way in.
    pub way: Way,
    /// With this key; `None` keeps the message's own.
    pub key: Option<Bytes>,
}

/// How much a queue may hold ready to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Messages.
    pub messages: Option<u64>,
    /// Bytes of bodies.
    pub bytes: Option<u64>,
}

impl Limit {
    /// No limit.
    pub const NONE: Self = Self {
        messages: None,
        bytes: None,
    };
}

/// What a hashing exchange spreads messages by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum HashOn {
    /// The key.
    #[default]
    Key,
    /// The user property of that name.
    Property(Bytes),
    /// A well-known property.
    Attribute(Attribute),
}
