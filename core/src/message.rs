//! A message as it is handed out: a view of its record, see `store/FORMAT.md`, "Message".

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::address::decode_name;
use crate::attributes::{Attribute, Iter, Name, Value};
use crate::boundary::Publish;
use crate::compression;
use crate::history::History;
use crate::properties::{self, AttributeIter};
use crate::store::chunk::{ChunkWriter, Slice};
use crate::store::record::{MessageRecord, NewMessage, Position};
use crate::time::Millis;

/// How a message entered the broker, which decides who may see it (DESIGN: "One address space").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Entry {
    /// Through the exchange of that name, which must exist: its bindings, patterns over everything.
    #[default]
    Exchange = 0,
    /// Straight to the queue that the topic is named for: that queue and native groups, no pattern.
    Queue = 1,
    /// Published to a topic by name: also the bindings of that exchange and of the root exchange.
    Topic = 2,
    /// By a native producer: as `Topic`, and the queue of that name.
    Native = 3,
}

/// Which header bytes a message's origin holds. Core only compares it: a protocol knows its own
/// number, and 0 is the native property string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Format(pub u8);

impl Format {
    /// The native property string.
    pub const NATIVE: Self = Self(0);
}

/// A stored or transient message. Cheap to clone (one reference count) and immutable.
#[derive(Clone, Debug)]
pub struct Message(Kept);

#[derive(Clone, Debug)]
enum Kept {
    /// For one.
    Single(Slice),
    /// For several: what one makes of it, the others need not make again.
    Shared(Arc<Shared>),
}

#[derive(Debug)]
struct Shared {
    record: Slice,
    forms: [OnceLock<Bytes>; FORMS],
}

/// How many encoded forms of a message are kept: see [`Message::form`].
pub const FORMS: usize = 2;

/// Messages are equal when their records are.
impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.record()[..] == other.record()[..]
    }
}

impl Eq for Message {}

impl Message {
    pub(crate) fn new(record: Slice) -> Self {
        Self(Kept::Single(record))
    }

    /// The same message, for several receivers.
    #[must_use]
    pub fn shared(self) -> Self {
        match self.0 {
            Kept::Single(record) => Self(Kept::Shared(Arc::new(Shared {
                record,
                forms: Default::default(),
            }))),
            shared @ Kept::Shared(_) => Self(shared),
        }
    }

    /// What a protocol makes of the message for all its receivers alike: `encode` is called once for each `form`, however
    /// many they are. Which form a number below [`FORMS`] means is the protocol's business; since others may use the same
    /// number, only one protocol may. `None` when the message has one receiver.
    pub fn form(&self, form: usize, encode: impl FnOnce(&Self) -> Bytes) -> Option<&Bytes> {
        match &self.0 {
            Kept::Single(_) => None,
            Kept::Shared(shared) => Some(shared.forms[form].get_or_init(|| encode(self))),
        }
    }

    fn record(&self) -> &Slice {
        match &self.0 {
            Kept::Single(record) => record,
            Kept::Shared(shared) => &shared.record,
        }
    }

    /// The message as a reader would see it, without storing it.
    pub fn from_publish(publish: &Publish, born_host: SocketAddr, store_host: SocketAddr, now: Millis) -> Self {
        let mut properties = Vec::new();
        let new = NewMessage::of(publish, born_host, store_host, now, &mut properties);
        let mut writer = ChunkWriter::new(new.len());
        Self::new(writer.append(new.len(), |record| {
            new.write(record, Position(Position::MEMORY), Position(0), now, false);
        }))
    }

    pub(crate) fn view(&self) -> MessageRecord<'_> {
        MessageRecord::of(self.record())
    }

    /// The whole record as shared bytes.
    pub(crate) fn share_record(&self) -> Bytes {
        Bytes::from_owner(self.record().clone())
    }

    /// Encoded topic name.
    pub fn topic(&self) -> &[u8] {
        self.view().topic()
    }

    /// The topic's name as its publisher spelled it, before the encoding.
    pub fn topic_name(&self) -> Cow<'_, [u8]> {
        let original = self.attributes().find_map(|(name, value)| match (name, value) {
            (Name::Known(Attribute::Topic), Value::Text(text)) => Some(text),
            _ => None,
        });
        match original {
            Some(text) if self.origin().0 != Format::NATIVE => Cow::Owned(text.to_vec()),
            _ => decode_name(self.topic()),
        }
    }

    /// The key: the native tag.
    pub fn key(&self) -> &[u8] {
        self.view().key()
    }

    /// How it entered.
    pub fn entry(&self) -> Entry {
        self.view().entry()
    }

    /// Whether its publisher asked for it to be kept.
    pub fn is_persistent(&self) -> bool {
        self.view().is_persistent()
    }

    /// Whether its publisher made it the last value of its address.
    pub fn is_retained(&self) -> bool {
        self.view().is_retained()
    }

    /// Whether an exchange had the topic's name when the message was routed.
    pub fn has_exchange(&self) -> bool {
        self.view().has_exchange()
    }

    /// The payload as its publisher sent it: a native one may be compressed.
    pub fn body(&self) -> &[u8] {
        &self.record()[self.view().body()]
    }

    /// The payload as the publisher's application gave it, for consumers whose protocol knows no
    /// compression.
    pub fn payload(&self) -> Payload<'_> {
        Payload {
            inflated: compression::inflate(self.native_sys_flag(), self.body(), INFLATED_MAX),
            message: self,
        }
    }

    /// The publisher's own header bytes and whose they are.
    pub fn origin(&self) -> (Format, &[u8]) {
        self.view().origin()
    }

    /// Well-known and user properties, whichever protocol they came from.
    pub fn attributes(&self) -> AttributeIter<'_> {
        let view = self.view();
        match view.origin() {
            (Format::NATIVE, header) => properties::attributes(header),
            _ => AttributeIter::encoded(Iter::new(view.attributes())),
        }
    }

    /// Which queues gave it up before, if any did.
    pub fn history(&self) -> Option<History> {
        let block = self.view().attributes();
        if block.first() != Some(&(Attribute::History as u8)) {
            return None;
        }
        match Iter::new(block).next() {
            Some((Name::Known(Attribute::History), Value::Binary(bytes))) => History::decode(bytes),
            _ => None,
        }
    }

    /// When it was stored, Unix milliseconds.
    pub fn stored_at(&self) -> Millis {
        self.view().stored_at()
    }

    /// When its publisher made it, Unix milliseconds.
    pub fn born_at(&self) -> Millis {
        self.view().born_at()
    }

    /// Where it lies in the log, or in memory.
    pub fn position(&self) -> Position {
        self.view().position()
    }

    /// Bytes of the whole record: what keeping this message costs.
    pub fn record_len(&self) -> usize {
        self.record().len()
    }

    /// The RocketMQ V1 record, byte for byte what a native pull returns.
    pub fn native_record(&self) -> &[u8] {
        &self.record()[self.view().native()]
    }

    /// The property string as native consumers see it: of a foreign message the mapped view.
    pub fn native_properties(&self) -> &[u8] {
        self.view().properties()
    }

    /// RocketMQ's sysFlag of the record (compression, IPv6 hosts).
    pub fn native_sys_flag(&self) -> i32 {
        self.view().sys_flag()
    }
}

/// A compressed body that holds more than this is handed out as it is.
const INFLATED_MAX: usize = 64 << 20;

/// A message's payload.
#[derive(Clone, Debug)]
pub struct Payload<'a> {
    message: &'a Message,
    inflated: Option<Bytes>,
}

impl Payload<'_> {
    /// The payload as shared bytes, for those too large to be worth copying.
    pub fn share(&self) -> Bytes {
        if let Some(inflated) = &self.inflated {
            return inflated.clone();
        }
        let range = self.message.view().body();
        if range.is_empty() {
            return Bytes::new();
        }
        Bytes::from_owner(self.message.record().part(range.start, range.len()))
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.inflated {
            Some(inflated) => inflated,
            None => self.message.body(),
        }
    }
}
