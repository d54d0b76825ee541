//! The history checker: what was sent, confirmed, delivered and settled, and whether that can be.
//!
//! A test records [`Event`]s while clients talk to a broker; [`History::judge`] looks for what an honest
//! broker never does: it loses no confirmed message, alters none, invents none, puts none into a queue that
//! it was not routed to, keeps the order of each publisher in each queue, marks what it delivers again, and
//! undoes no settlement that it has promised to keep. The checker itself is tested in `tests/history.rs`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::random::Random;

/// The name of a place that messages are delivered from: a queue, a session, a consumer group of a topic.
pub type Queue = &'static str;

/// A message's number: of its publisher, and among that publisher's messages, rising.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    pub publisher: u32,
    pub sequence: u64,
}

/// One thing that a client did or saw. Threads record what they did before they do it and what they saw
/// after, so that the order of the record never lies about causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// About to be published.
    Sent { message: MessageId, digest: u64 },
    /// The broker has confirmed it.
    Confirmed { message: MessageId },
    /// The broker has said that it did not take it.
    Refused { message: MessageId },
    /// Handed to a consumer. `stream` is a part of the queue in which order is promised: a native message
    /// queue, or one of several competing consumers.
    Delivered {
        queue: Queue,
        stream: u32,
        message: MessageId,
        digest: u64,
        redelivered: bool,
    },
    /// Handed to a consumer, but no test has made such a body.
    Alien { queue: Queue, body: String },
    /// The consumer is about to acknowledge it.
    Settled { queue: Queue, message: MessageId },
    /// The broker has promised to keep that acknowledgement.
    Promised { queue: Queue, message: MessageId },
    /// Given back, by the consumer or by the end of its connection: it will come again.
    Returned { queue: Queue, message: MessageId },
    /// The broker was killed: what was not promised may be undone.
    Crashed,
}

/// What cannot be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Confirmed, but never delivered from a queue that it was routed to.
    Lost { queue: Queue, message: MessageId },
    /// Delivered with another body.
    Altered { queue: Queue, message: MessageId },
    /// First delivered after a later message of its publisher.
    Reordered {
        queue: Queue,
        stream: u32,
        message: MessageId,
        after: u64,
    },
    /// Delivered, but never sent, or certainly not taken.
    Phantom { queue: Queue, what: String },
    /// Delivered from a queue that it was not routed to.
    WrongQueue { queue: Queue, message: MessageId },
    /// Delivered again without being marked.
    Unmarked { queue: Queue, message: MessageId },
    /// Delivered again while a consumer still had it.
    Shared { queue: Queue, message: MessageId },
    /// Delivered again after an acknowledgement that holds.
    Undone { queue: Queue, message: MessageId },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What was recorded, and which queues each publisher's messages belong in.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub routes: HashMap<u32, Vec<Queue>>,
    pub events: Vec<Event>,
}

/// Whether the queues were emptied at the end, so that what was not seen is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// To the end: what is missing is lost.
    Drained,
    /// Messages may still wait in queues.
    Cut,
}

#[derive(Default)]
struct Sent {
    digest: u64,
    confirmed: bool,
    refused: bool,
}

/// One queue's copy of a message. Lives are counted by crashes.
#[derive(Default)]
struct Copy {
    deliveries: u32,
    /// A consumer has it since that life.
    out_in: Option<u32>,
    /// Acknowledged in that life.
    settled_in: Option<u32>,
    promised: bool,
}

impl History {
    /// Everything that cannot be, in the order in which it shows.
    pub fn judge(&self, extent: Extent) -> Vec<Fault> {
        let mut judge = Judge {
            history: self,
            life: 0,
            sent: HashMap::new(),
            copies: HashMap::new(),
            last_first: HashMap::new(),
            faults: Vec::new(),
        };
        for event in &self.events {
            judge.see(event);
        }
        if extent == Extent::Drained {
            judge.look_for_lost();
        }
        judge.faults
    }

    /// Panics with what was found.
    pub fn assert_good(&self, extent: Extent) {
        let faults = self.judge(extent);
        let shown: Vec<_> = faults.iter().take(20).map(ToString::to_string).collect();
        assert!(
            faults.is_empty(),
            "{} faults, first ones:\n{}\n\nabout the first:\n{}",
            faults.len(),
            shown.join("\n"),
            self.about(&faults[0]).join("\n")
        );
    }

    /// How often each kind of thing happened, for a test to assert that it has tested something.
    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| wanted(event)).count()
    }

    /// What was recorded of the message of a fault, with the number of the life it was in.
    fn about(&self, fault: &Fault) -> Vec<String> {
        let (Fault::Lost { message, .. }
        | Fault::Altered { message, .. }
        | Fault::Reordered { message, .. }
        | Fault::WrongQueue { message, .. }
        | Fault::Unmarked { message, .. }
        | Fault::Shared { message, .. }
        | Fault::Undone { message, .. }) = fault
        else {
            return Vec::new();
        };
        let mut life = 0;
        let mut lines = Vec::new();
        for (index, event) in self.events.iter().enumerate() {
            life += u32::from(*event == Event::Crashed);
            if event.message() == Some(*message) {
                lines.push(format!("life {life}, event {index}: {event:?}"));
            }
        }
        lines
    }
}

impl Event {
    pub fn message(&self) -> Option<MessageId> {
        match self {
            Self::Sent { message, .. }
            | Self::Confirmed { message }
            | Self::Refused { message }
            | Self::Delivered { message, .. }
            | Self::Settled { message, .. }
            | Self::Promised { message, .. }
            | Self::Returned { message, .. } => Some(*message),
            Self::Alien { .. } | Self::Crashed => None,
        }
    }
}

struct Judge<'a> {
    history: &'a History,
    life: u32,
    sent: HashMap<MessageId, Sent>,
    copies: HashMap<(Queue, MessageId), Copy>,
    /// Sequence of the last message that was delivered for the first time, by queue, stream and publisher.
    last_first: HashMap<(Queue, u32, u32), u64>,
    faults: Vec<Fault>,
}

impl Judge<'_> {
    fn see(&mut self, event: &Event) {
        match event {
            Event::Sent { message, digest } => {
                self.sent.entry(*message).or_default().digest = *digest;
            }
            Event::Confirmed { message } => self.sent.entry(*message).or_default().confirmed = true,
            Event::Refused { message } => self.sent.entry(*message).or_default().refused = true,
            Event::Delivered {
                queue,
                stream,
                message,
                digest,
                redelivered,
            } => self.see_delivery(queue, *stream, *message, *digest, *redelivered),
            Event::Alien { queue, body } => {
                let what = format!("a body that nobody made: {body}");
                self.faults.push(Fault::Phantom { queue, what });
            }
            Event::Settled { queue, message } => {
                let copy = self.copies.entry((queue, *message)).or_default();
                copy.settled_in = Some(self.life);
                copy.out_in = None;
            }
            Event::Promised { queue, message } => {
                self.copies.entry((queue, *message)).or_default().promised = true;
            }
            Event::Returned { queue, message } => {
                self.copies.entry((queue, *message)).or_default().out_in = None;
            }
            Event::Crashed => self.life += 1,
        }
    }

    fn see_delivery(&mut self, queue: Queue, stream: u32, message: MessageId, digest: u64, redelivered: bool) {
        let phantom = |why: &str| Fault::Phantom {
            queue,
            what: format!("{message:?} {why}"),
        };
        match self.sent.get(&message) {
            None => return self.faults.push(phantom("was never sent")),
            Some(sent) if sent.refused => self.faults.push(phantom("was refused")),
            Some(sent) if sent.digest != digest => self.faults.push(Fault::Altered { queue, message }),
            Some(_) => {}
        }
        let routed = self.history.routes.get(&message.publisher);
        if !routed.is_some_and(|queues| queues.contains(&queue)) {
            self.faults.push(Fault::WrongQueue { queue, message });
        }
        let life = self.life;
        let copy = self.copies.entry((queue, message)).or_default();
        copy.deliveries += 1;
        if copy.deliveries > 1 && !redelivered {
            self.faults.push(Fault::Unmarked { queue, message });
        }
        if copy.promised || copy.settled_in == Some(life) {
            self.faults.push(Fault::Undone { queue, message });
        } else if copy.out_in == Some(life) {
            self.faults.push(Fault::Shared { queue, message });
        }
        copy.out_in = Some(life);
        if copy.deliveries == 1 {
            let key = (queue, stream, message.publisher);
            let last = self.last_first.entry(key).or_insert(message.sequence);
            if *last > message.sequence {
                let after = *last;
                self.faults.push(Fault::Reordered {
                    queue,
                    stream,
                    message,
                    after,
                });
            }
            *last = message.sequence.max(*last);
        }
    }

    fn look_for_lost(&mut self) {
        let mut lost = Vec::new();
        for (message, _) in self.sent.iter().filter(|(_, sent)| sent.confirmed) {
            for queue in self.history.routes.get(&message.publisher).into_iter().flatten() {
                let delivered = self
                    .copies
                    .get(&(*queue, *message))
                    .is_some_and(|copy| copy.deliveries > 0);
                if !delivered {
                    lost.push(Fault::Lost {
                        queue,
                        message: *message,
                    });
                }
            }
        }
        lost.sort();
        self.faults.extend(lost);
    }
}

/// Where threads record what they do and see.
#[derive(Default)]
pub struct Recorder(Mutex<History>);

impl Recorder {
    /// A publisher's messages belong in these queues.
    pub fn route(&self, publisher: u32, queues: &[Queue]) {
        self.with(|history| history.routes.insert(publisher, queues.to_vec()));
    }

    pub fn record(&self, event: Event) {
        self.with(|history| history.events.push(event));
    }

    /// Makes a message's body, and records that it is about to be sent.
    pub fn send(&self, message: MessageId, size: usize, random: &mut Random) -> Vec<u8> {
        let body = body(message, size, random);
        self.record(Event::Sent {
            message,
            digest: digest(&body),
        });
        body
    }

    /// Records a delivery; gives what was delivered, if a test made it.
    pub fn deliver(&self, queue: Queue, stream: u32, body: &[u8], redelivered: bool) -> Option<MessageId> {
        let message = message_of(body);
        self.record(match message {
            Some(message) => Event::Delivered {
                queue,
                stream,
                message,
                digest: digest(body),
                redelivered,
            },
            None => Event::Alien {
                queue,
                body: format!("{} bytes: {}", body.len(), body[..body.len().min(40)].escape_ascii()),
            },
        });
        message
    }

    /// A look at what was recorded so far.
    pub fn with<R>(&self, look: impl FnOnce(&mut History) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What bodies begin with.
const MARK: &[u8; 4] = b"\xffRB\0";
/// Mark, publisher and sequence.
const HEAD: usize = 16;

/// A body that says which message it is; the rest is random. At least 16 bytes.
pub fn body(message: MessageId, size: usize, random: &mut Random) -> Vec<u8> {
    let mut body = MARK.to_vec();
    body.extend(message.publisher.to_le_bytes());
    body.extend(message.sequence.to_le_bytes());
    body.extend(random.bytes(size.saturating_sub(HEAD)));
    body
}

/// The message whose body this is.
pub fn message_of(body: &[u8]) -> Option<MessageId> {
    let (mark, rest) = body.split_first_chunk::<4>()?;
    let (publisher, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, _) = rest.split_first_chunk::<8>()?;
    (mark == MARK).then_some(MessageId {
        publisher: u32::from_le_bytes(*publisher),
        sequence: u64::from_le_bytes(*sequence),
    })
}

/// FNV-1a, eight bytes at a time.
pub fn digest(body: &[u8]) -> u64 {
    let (words, rest) = body.as_chunks::<8>();
    let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    let hash = words
        .iter()
        .fold(body.len() as u64 ^ 0xcbf2_9ce4_8422_2325, |hash, word| {
            mix(hash, u64::from_le_bytes(*word))
        });
    rest.iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}
