//! Where a message was given up before: the history of a dead-lettered message. It stands in the message's
//! attributes as the first of them ([`Attribute::History`](crate::attributes::Attribute::History));
//! `store/FORMAT.md`, "History".

use bytes::{BufMut, Bytes};

use crate::address::{decode_name, whole_key};
use crate::codec::{Reader, put_bytes, put_way};
use crate::message::{Entry, Message};
use crate::policy::Way;
use crate::time::Millis;

/// Most entries of a history; the oldest but one goes when there are more.
const DEATHS_MAX: usize = 64;

/// Why a queue gave a message up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// A consumer refused it for good.
    Rejected = 0,
    /// It waited too long.
    Expired = 1,
    /// The queue was full.
    Limit = 2,
    /// It came back too often.
    DeliveryLimit = 3,
}

impl Reason {
    fn of(byte: u8) -> Option<Self> {
        [Self::Rejected, Self::Expired, Self::Limit, Self::DeliveryLimit]
            .into_iter()
            .find(|reason| *reason as u8 == byte)
    }
}

/// What happened to a message in one queue for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// The queue's name.
    pub queue: Bytes,
    /// Why it gave the message up.
    pub reason: Reason,
    /// How often.
    pub count: u64,
    /// When first, Unix milliseconds.
    pub first_at: Millis,
    /// By which way the message had entered when that happened first. An exchange is named as its users
    /// spell it.
    pub way: Way,
    /// By which key.
    pub key: Bytes,
    /// The message's own time to live then, milliseconds; it has none any more.
    pub time_to_live: Option<u64>,
}

/// Of the first or the last death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The queue's name.
    pub queue: Bytes,
    /// Why.
    pub reason: Reason,
    /// By which way the message had entered.
    pub way: Way,
}

/// Every queue that gave a message up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The first of all.
    pub first: Mark,
    /// The last one.
    pub last: Mark,
    /// One for each queue and reason, the last first.
    pub deaths: Vec<Death>,
}

impl History {
    /// The history of a message that is given up now.
    pub fn after(message: &Message, queue: &Bytes, reason: Reason, now: Millis, time_to_live: Option<u64>) -> Self {
        let (way, key) = entered(message);
        let mark = Mark {
            queue: queue.clone(),
            reason,
            way: way.clone(),
        };
        let mut history = message.history().unwrap_or_else(|| Self {
            first: mark.clone(),
            last: mark.clone(),
            deaths: Vec::new(),
        });
        history.last = mark;
        let known = (history.deaths.iter()).position(|death| death.queue == *queue && death.reason == reason);
        let death = match known {
            Some(at) => {
                let mut death = history.deaths.remove(at);
                death.count += 1;
                death
            }
            None => Death {
                queue: queue.clone(),
                reason,
                count: 1,
                first_at: now,
                way,
                key,
                time_to_live,
            },
        };
        history.deaths.insert(0, death);
        history.deaths.truncate(DEATHS_MAX);
        history
    }

    /// Whether a message with this history goes round in a circle when it gets to that queue again: it was
    /// there before, and nobody has refused it since. A refusal is somebody's will, which may be meant so.
    pub fn is_cycle(&self, queue: &[u8]) -> bool {
        if self.last.reason == Reason::Rejected {
            return false;
        }
        for death in &self.deaths {
            if death.reason == Reason::Rejected {
                return false;
            }
            if death.queue == queue {
                return true;
            }
        }
        false
    }

    /// Encodes it as the value of an attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        for mark in [&self.first, &self.last] {
            put_bytes(&mut out, &mark.queue);
            out.put_u8(mark.reason as u8);
            put_way(&mut out, &mark.way);
        }
        for death in &self.deaths {
            put_bytes(&mut out, &death.queue);
            out.put_u8(death.reason as u8);
            out.put_u64_le(death.count);
            out.put_u64_le(death.first_at.0);
            put_way(&mut out, &death.way);
            put_bytes(&mut out, &death.key);
            out.put_u64_le(death.time_to_live.unwrap_or(u64::MAX));
        }
        out
    }

    /// Reads one back. `None` when the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = Reader::new(bytes);
        let (first, last) = (at.mark()?, at.mark()?);
        let mut deaths = Vec::new();
        while !at.is_empty() {
            deaths.push(at.death()?);
        }
        Some(Self { first, last, deaths })
    }
}

/// The way and the key by which a message entered, as its publisher's protocol would name them.
pub fn entered(message: &Message) -> (Way, Bytes) {
    let topic = || Bytes::from(message.topic_name().into_owned());
    let key = || Bytes::copy_from_slice(message.key());
    match message.entry() {
        Entry::Queue => (Way::Queue, topic()),
        Entry::Native | Entry::Exchange => (Way::Exchange(topic()), key()),
        // Who bound to the exchange that the topic is knows its keys, not the topic's.
        Entry::Topic if message.has_exchange() => (Way::Exchange(topic()), key()),
        Entry::Topic => {
            let decoded = decode_name(message.topic());
            let whole = whole_key(message.topic(), message.key());
            // A name that was cut is spelled out in an attribute.
            let whole = match message.topic_name() {
                name if name == decoded => whole,
                name => [&name[..], &whole[decoded.len()..]].concat().into(),
            };
            (Way::Topics, whole)
        }
    }
}

impl Reader<'_> {
    fn mark(&mut self) -> Option<Mark> {
        Some(Mark {
            queue: self.bytes()?,
            reason: Reason::of(self.u8()?)?,
            way: self.way()?,
        })
    }

    fn death(&mut self) -> Option<Death> {
        Some(Death {
            queue: self.bytes()?,
            reason: Reason::of(self.u8()?)?,
            count: self.u64()?,
            first_at: Millis(self.u64()?),
            way: self.way()?,
            key: self.bytes()?,
            time_to_live: Some(self.u64()?).filter(|millis| *millis != u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(queue: &'static str, reason: Reason) -> Death {
        Death {
            queue: Bytes::from_static(queue.as_bytes()),
            reason,
            count: 3,
            first_at: Millis(5),
            way: Way::Exchange(Bytes::from_static(b"e")),
            key: Bytes::from_static(b"k"),
            time_to_live: Some(7),
        }
    }

    fn history(deaths: Vec<Death>) -> History {
        let mark = |death: &Death| Mark {
            queue: death.queue.clone(),
            reason: death.reason,
            way: Way::Queue,
        };
        History {
            first: mark(deaths.last().expect("one at least")),
            last: mark(&deaths[0]),
            deaths,
        }
    }

    #[test]
    fn a_history_reads_back_and_no_truncation_panics() {
        let history = history(vec![death("a", Reason::Expired), death("b", Reason::DeliveryLimit)]);
        let bytes = history.encode();
        assert_eq!(History::decode(&bytes).as_ref(), Some(&history));
        for cut in 0..bytes.len() {
            assert_ne!(History::decode(&bytes[..cut]).as_ref(), Some(&history));
        }
    }

    /// Messages of earlier brokers carry it too.
    #[test]
    fn a_history_stands_on_the_disk_byte_for_byte_as_before() {
        let mut history = history(vec![death("a", Reason::Expired), death("b", Reason::DeliveryLimit)]);
        history.first.way = Way::Topics;
        history.deaths[1].time_to_live = None;
        let first = b"\x01\0\0\0b\x03\x01";
        let last = b"\x01\0\0\0a\x01\0";
        let of_a = b"\x01\0\0\0a\x01\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x02\x01\0\0\0e\x01\0\0\0k\x07\0\0\0\0\0\0\0";
        let of_b = b"\x01\0\0\0b\x03\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x02\x01\0\0\0e\x01\0\0\0k\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(history.encode(), [&first[..], last, of_a, of_b].concat());
    }

    #[test]
    fn a_circle_is_one_only_if_nobody_refused_the_message_on_the_way() {
        use Reason::{Expired, Limit, Rejected};
        let of = |deaths: &[(&'static str, Reason)]| {
            history(deaths.iter().map(|(queue, reason)| death(queue, *reason)).collect())
        };
        assert!(of(&[("a", Expired)]).is_cycle(b"a"));
        assert!(!of(&[("a", Expired)]).is_cycle(b"b"));
        assert!(!of(&[("a", Rejected)]).is_cycle(b"a"));
        assert!(of(&[("b", Limit), ("a", Expired)]).is_cycle(b"a"));
        assert!(!of(&[("retry", Expired), ("work", Rejected)]).is_cycle(b"work"));
        assert!(of(&[("retry", Expired), ("work", Rejected)]).is_cycle(b"retry"));
        assert!(!of(&[("c", Expired), ("b", Rejected), ("a", Expired)]).is_cycle(b"a"));
    }
}
