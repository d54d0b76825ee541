//! Sends: header, properties and batch body to publishes.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::boundary::{Native, Publish};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::properties::{PROPERTIES_MAX, TAGS, UNIQUE_KEY};
use rocketbridge_core::time::Millis;
use rocketbridge_session::{Cursor, Truncated};

use super::delay::{Given, When};
use super::names;
use super::offset_id::push_hex;
use crate::codec::{Command, Value};
use crate::request_code::SEND_MESSAGE;
use crate::response_code::{Refused, ResponseCode};

/// The region that messages are marked with, and answers too.
pub const REGION: &str = "DefaultRegion";

/// Both transaction bits: prepared, committed, or rolled back.
const TRANSACTION: i32 = 0xC;
/// Only a broker makes these: a batch stored as one record.
const INNER_BATCH: i32 = 0x40 | 0x80;

/// The header of a send, whichever way its fields are called.
#[derive(Clone, Copy, Debug)]
pub struct SendHeader<'a> {
    /// The topic.
    pub topic: Value<'a>,
    /// The topic whose settings a new topic takes.
    pub default_topic: Value<'a>,
    /// Message queues that the producer wants a new topic to have.
    pub default_topic_queues: i32,
    /// The message queue; negative lets the broker choose.
    pub queue_id: i32,
    /// Compression, transaction and the like.
    pub sys_flag: i32,
    /// When the message was made.
    pub born_at: Millis,
    /// The user's own flag.
    pub flag: i32,
    /// The property string.
    pub properties: Value<'a>,
    /// Earlier attempts at consuming it.
    pub reconsume_times: i32,
    /// How often a message sent to a retry topic is tried at most.
    pub attempts_max: Option<i32>,
    /// The body is a batch.
    pub batch: bool,
}

/// What the fields of the long header are called, in the order of the short one's letters.
const LONG_NAMES: [&str; 13] = [
    "producerGroup",
    "topic",
    "defaultTopic",
    "defaultTopicQueueNums",
    "queueId",
    "sysFlag",
    "bornTimestamp",
    "flag",
    "properties",
    "reconsumeTimes",
    "unitMode",
    "maxReconsumeTimes",
    "batch",
];

/// Reads the header of a send.
///
/// # Errors
/// 1 when a field that must be there is not, or is no number.
pub fn send_header(command: &Command) -> Result<SendHeader<'_>, Refused> {
    let long = command.code() == SEND_MESSAGE;
    let mut values: [Option<Value<'_>>; LONG_NAMES.len()] = [None; LONG_NAMES.len()];
    for (name, value) in command.fields() {
        let at = if long {
            LONG_NAMES.iter().position(|long| name.is(long))
        } else {
            name.letter().map(|letter| usize::from(letter.wrapping_sub(b'a')))
        };
        if let Some(slot) = at.and_then(|at| values.get_mut(at)) {
            *slot = Some(value);
        }
    }
    let name = |at: usize| -> &str {
        if long {
            LONG_NAMES[at]
        } else {
            &"abcdefghijklm"[at..=at]
        }
    };
    let text = |at: usize| values[at].ok_or_else(|| Refused::missing(name(at)));
    let number = |at: usize| -> Result<i64, Refused> { text(at)?.number().ok_or_else(|| Refused::no_number(name(at))) };
    let int = |at: usize| i32::try_from(number(at)?).map_err(|_| Refused::no_number(name(at)));
    text(0)?;
    Ok(SendHeader {
        topic: text(1)?,
        default_topic: text(2)?,
        default_topic_queues: int(3)?,
        queue_id: int(4)?,
        sys_flag: int(5)?,
        born_at: Millis(number(6)?.max(0) as u64),
        flag: int(7)?,
        properties: values[8].unwrap_or(Value::plain(b"")),
        reconsume_times: values[9].map_or(Ok(0), |_| int(9))?,
        attempts_max: values[11].map(|_| int(11)).transpose()?,
        batch: values[12].is_some_and(|value| value.is_true()),
    })
}

/// Refuses what the sysFlag asks for and is not built.
///
/// # Errors
/// 13.
pub fn check_sys_flag(sys_flag: i32) -> Result<(), Refused> {
    if sys_flag & INNER_BATCH == 0 {
        return Ok(());
    }
    Err(Refused::not_supported(
        ResponseCode::MessageIllegal,
        "sending a batch as one record",
    ))
}

/// Makes ids for messages that come without: 16 bytes in hex like those clients make, from the peer's
/// address, the time and a counter.
#[derive(Clone, Debug)]
pub struct UniqueKeys {
    prefix: [u8; 8],
    counter: u16,
}

impl UniqueKeys {
    /// For one connection; `prefix` tells it apart from others of the same time.
    pub fn new(prefix: u64) -> Self {
        Self {
            prefix: prefix.to_be_bytes(),
            counter: 0,
        }
    }

    fn push(&mut self, now: Millis, out: &mut BytesMut) {
        // 48 bits of milliseconds last until the year 10889.
        let time = now.0.to_be_bytes();
        push_hex(out, &self.prefix);
        push_hex(out, &time[2..]);
        push_hex(out, &self.counter.to_be_bytes());
        self.counter = self.counter.wrapping_add(1);
    }
}

/// A message's properties as they are stored.
#[derive(Clone, Debug)]
pub struct Properties {
    /// The property string with what the broker adds.
    pub origin: Bytes,
    /// The tag, a slice of it.
    pub tag: Bytes,
    /// The unique key, a slice of it.
    pub unique_key: Bytes,
    /// When it is delivered.
    pub when: When,
    /// It is the half of a transaction.
    pub half: bool,
}

/// Writes the properties of one message as the broker stores them. `out` is empty memory to write to,
/// used for one message after the other.
///
/// Left out are pairs without a name or value, and the receipt handle (`POP_CK`) of an earlier delivery.
/// `MSG_REGION`, `TRACE_ON` and `CLUSTER` are set, `UNIQ_KEY` is added if there is none, and so is `TIMER_OUT_MS`
/// where a timer is asked for. What is tried again (`attempts`) begins no transaction any more.
///
/// # Errors
/// 13 for more than [`PROPERTIES_MAX`] bytes and for a time that is no number.
pub fn properties(
    given: &[u8],
    attempts: i32,
    cluster: &[u8],
    now: Millis,
    keys: &mut UniqueKeys,
    out: &mut BytesMut,
) -> Result<Properties, Refused> {
    if given.len() > PROPERTIES_MAX {
        return Err(too_long());
    }
    let room = given.len() + cluster.len() + 128;
    out.clear();
    if out.capacity() < room {
        // One allocation serves many messages.
        out.reserve(room.max(8192));
    }
    let Written {
        tag,
        unique_key,
        when,
        half,
    } = write(given, attempts, cluster, now, keys, out)?;
    if out.len() > PROPERTIES_MAX {
        return Err(too_long());
    }
    let origin = out.split().freeze();
    Ok(Properties {
        tag: origin.slice(tag),
        unique_key: origin.slice(unique_key),
        origin,
        when,
        half,
    })
}

struct Written {
    tag: Range<usize>,
    unique_key: Range<usize>,
    when: When,
    half: bool,
}

fn write(
    given: &[u8],
    attempts: i32,
    cluster: &[u8],
    now: Millis,
    keys: &mut UniqueKeys,
    out: &mut BytesMut,
) -> Result<Written, Refused> {
    let (mut tag, mut unique_key) = (0..0, 0..0);
    let mut asked = Given::default();
    let mut is_transaction = false;
    for (name, value) in rocketbridge_core::properties::pairs(given) {
        match name {
            b"DELAY" => asked.level = Some(value),
            b"TIMER_DELAY_SEC" => asked.seconds = Some(value),
            b"TIMER_DELAY_MS" => asked.millis = Some(value),
            b"TIMER_DELIVER_MS" => asked.at = Some(value),
            b"TIMER_OUT_MS" => asked.out = Some(value),
            b"TRAN_MSG" => is_transaction = value.eq_ignore_ascii_case(b"true"),
            _ => {}
        }
    }
    // A half message is not delivered at all before it is committed, and then at once.
    let when = asked.when(now)?;
    let half = is_transaction && !(attempts > 0 && when.by_level);
    let when = if half { When::default() } else { when };
    for (name, value) in rocketbridge_core::properties::pairs(given) {
        match name {
            b"POP_CK" | b"MSG_REGION" | b"TRACE_ON" | b"CLUSTER" => continue,
            b"TIMER_DELAY_SEC" | b"TIMER_DELAY_MS" | b"TIMER_DELIVER_MS" if when.by_level => continue,
            _ => {}
        }
        out.put_slice(name);
        out.put_u8(1);
        let at = out.len();
        let range = at..at + value.len();
        out.put_slice(value);
        out.put_u8(2);
        match name {
            TAGS => tag = range,
            UNIQUE_KEY => unique_key = range,
            _ => {}
        }
    }
    if unique_key.is_empty() {
        out.put_slice(UNIQUE_KEY);
        out.put_u8(1);
        let at = out.len();
        keys.push(now, out);
        unique_key = at..out.len();
        out.put_u8(2);
    }
    if let Some(due) = when.due.filter(|_| !when.by_level) {
        out.put_slice(b"TIMER_OUT_MS\x01");
        out.put_slice(due.0.to_string().as_bytes());
        out.put_u8(2);
    }
    out.put_slice(b"MSG_REGION\x01");
    out.put_slice(REGION.as_bytes());
    out.put_slice(b"\x02TRACE_ON\x01true\x02CLUSTER\x01");
    out.put_slice(cluster);
    out.put_u8(2);
    Ok(Written {
        tag,
        unique_key,
        when,
        half,
    })
}

fn too_long() -> Refused {
    Refused::new(
        ResponseCode::MessageIllegal,
        format!("the message is illegal, msg properties length limit {PROPERTIES_MAX}B"),
    )
}

/// A body that is larger than the limit.
pub(crate) fn too_large(limit: usize) -> Refused {
    Refused::new(
        ResponseCode::MessageIllegal,
        format!("the message is illegal, msg body length limit {limit}B"),
    )
}

/// One message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMessage<'a> {
    /// The user's own flag.
    pub flag: i32,
    /// The payload.
    pub body: &'a [u8],
    /// The property string.
    pub properties: &'a [u8],
}

/// Walks the body of a batch: total size, magic, CRC, flag, body behind a 32-bit length, properties
/// behind a 16-bit length, and the next message. The last item is an error when it is cut off or its
/// total size is wrong.
pub fn batch(body: &[u8]) -> impl Iterator<Item = Result<BatchMessage<'_>, Truncated>> {
    let mut cursor = Cursor::new(body);
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed || cursor.remaining() == 0 {
            return None;
        }
        let message = batch_message(&mut cursor);
        failed = message.is_err();
        Some(message)
    })
}

fn batch_message<'a>(cursor: &mut Cursor<'a>) -> Result<BatchMessage<'a>, Truncated> {
    let before = cursor.remaining();
    let total = cursor.u32()? as usize;
    cursor.take(8)?;
    let flag = cursor.u32()? as i32;
    let body = cursor.bytes32()?;
    let properties = cursor.bytes16()?;
    if before - cursor.remaining() != total {
        return Err(Truncated);
    }
    Ok(BatchMessage { flag, body, properties })
}

/// What the messages of one send share.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The topic.
    pub topic: Bytes,
    /// The message queue, if the producer chose it.
    pub queue_id: Option<u32>,
    /// Compression.
    pub sys_flag: i32,
    /// When the messages were made.
    pub born_at: Millis,
    /// Earlier attempts at consuming them.
    pub reconsume_times: i32,
    /// Message queues if they make the topic.
    pub topic_queues: u32,
    /// How often a message sent to a retry topic is tried at most.
    pub attempts_max: Option<i32>,
}

impl Envelope {
    /// One message to publish. Without `detailed` nobody asks where it was stored.
    pub fn publish(&self, token: u64, flag: i32, body: Bytes, properties: &Properties, detailed: bool) -> Publish {
        Publish {
            token,
            // No pattern over addresses sees what is tried again or was given up.
            entry: if names::is_of_group(&self.topic) {
                Entry::Queue
            } else {
                Entry::Native
            },
            deliver: properties.when.deliver,
            topic: self.topic.clone(),
            key: properties.tag.clone(),
            body,
            format: Format::NATIVE,
            origin: properties.origin.clone(),
            persistent: true,
            detailed,
            native: Some(Box::new(Native {
                queue_id: self.queue_id,
                flag,
                // Only a broker says what became of a transaction.
                sys_flag: self.sys_flag & !TRANSACTION,
                born_at: self.born_at,
                reconsume_times: self.reconsume_times,
                topic_queues: self.topic_queues,
                half: properties.half,
                attempts_max: self.attempts_max,
            })),
            ..Publish::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use rocketbridge_core::boundary::Deliver;

    use super::*;

    fn stored(given: &[u8]) -> Result<Properties, Refused> {
        let mut out = BytesMut::new();
        properties(
            given,
            0,
            b"DefaultCluster",
            Millis(1),
            &mut UniqueKeys::new(7),
            &mut out,
        )
    }

    #[test]
    fn the_broker_adds_and_drops_properties_as_rocketmq_does() {
        let given =
            b"a\x01b\x02POP_CK\x01x\x02TAGS\x01t\x02UNIQ_KEY\x01u\x02CLUSTER\x01other\x02no\x02\x01x\x02WAIT\x01true";
        let stored = stored(given).unwrap();
        let expected = "a\x01b\x02TAGS\x01t\x02UNIQ_KEY\x01u\x02WAIT\x01true\x02MSG_REGION\x01DefaultRegion\x02TRACE_ON\x01true\x02CLUSTER\x01DefaultCluster\x02";
        assert_eq!(stored.origin, expected);
        assert_eq!((&stored.tag[..], &stored.unique_key[..]), (&b"t"[..], &b"u"[..]));
    }

    #[test]
    fn a_message_without_a_unique_key_gets_one() {
        let mut out = BytesMut::new();
        let mut keys = UniqueKeys::new(0x0102_0304_0506_0708);
        let mut next = || {
            properties(b"", 0, b"C", Millis(0xABCD), &mut keys, &mut out)
                .unwrap()
                .unique_key
        };
        assert_eq!(next(), "010203040506070800000000ABCD0000");
        assert_eq!(next(), "010203040506070800000000ABCD0001");
    }

    #[test]
    fn delays_and_transactions_are_read_from_the_properties() {
        let now = Millis(1);
        let level = stored(b"DELAY\x013\x02TIMER_DELAY_SEC\x011\x02").unwrap();
        assert_eq!(level.when.deliver, Deliver::After(Millis(10_000)));
        let find = |properties: &Properties, name: &[u8]| {
            rocketbridge_core::properties::find(&properties.origin, name).map(<[u8]>::to_vec)
        };
        assert_eq!(find(&level, b"DELAY"), Some(b"3".to_vec()));
        assert_eq!(find(&level, b"TIMER_DELAY_SEC"), None);
        assert_eq!(find(&level, b"TIMER_OUT_MS"), None);
        let timer = stored(b"TIMER_DELAY_SEC\x011\x02").unwrap();
        assert_eq!(timer.when.deliver, Deliver::After(Millis(1000)));
        assert_eq!(
            find(&timer, b"TIMER_OUT_MS"),
            Some((now.0 + 1000).to_string().into_bytes())
        );
        assert_eq!(
            stored(b"DELAY\x01x\x02").unwrap_err().code,
            ResponseCode::MessageIllegal
        );
        let half = stored(b"TRAN_MSG\x01TRUE\x02DELAY\x013\x02").unwrap();
        assert!(half.half && half.when == When::default());
        assert!(!stored(b"TRAN_MSG\x01false\x02").unwrap().half);
        for given in ["DELAY\x010\x02", "DELAY\x01-1\x02"] {
            assert_eq!(stored(given.as_bytes()).unwrap().when, When::default());
        }
        // What is tried again is no half any more.
        let mut out = BytesMut::new();
        let given = b"TRAN_MSG\x01true\x02DELAY\x013\x02";
        let again = properties(given, 1, b"C", now, &mut UniqueKeys::new(7), &mut out).unwrap();
        assert!(!again.half && again.when.by_level);
        for (sys_flag, built) in [(0, true), (0x101, true), (0x4, true), (0x40, false), (0x80, false)] {
            assert_eq!(check_sys_flag(sys_flag).is_ok(), built);
        }
    }

    #[test]
    fn properties_are_limited_with_what_the_broker_adds() {
        let with_value = |length: usize| stored(&[b"k\x01", &vec![b'v'; length][..], b"\x02"].concat());
        let added = with_value(1).unwrap().origin.len() - 4;
        let fits = PROPERTIES_MAX - added - 3;
        assert_eq!(with_value(fits).unwrap().origin.len(), PROPERTIES_MAX);
        assert_eq!(with_value(fits + 1).unwrap_err().code, ResponseCode::MessageIllegal);
        assert_eq!(with_value(100_000).unwrap_err().code, ResponseCode::MessageIllegal);
    }

    fn batch_of(messages: &[BatchMessage<'_>]) -> Vec<u8> {
        let mut body = Vec::new();
        for message in messages {
            body.put_u32((22 + message.body.len() + message.properties.len()) as u32);
            body.put_u64(0);
            body.put_i32(message.flag);
            body.put_u32(message.body.len() as u32);
            body.put_slice(message.body);
            body.put_u16(message.properties.len() as u16);
            body.put_slice(message.properties);
        }
        body
    }

    #[test]
    fn a_batch_is_taken_apart_and_no_cut_is_taken_for_whole() {
        let messages = [
            BatchMessage {
                flag: -1,
                body: b"one",
                properties: b"a\x01b\x02",
            },
            BatchMessage {
                flag: 0,
                body: b"",
                properties: b"",
            },
        ];
        let body = batch_of(&messages);
        assert_eq!(batch(&body).collect::<Result<Vec<_>, _>>().unwrap(), messages);
        let first = batch_of(&messages[..1]).len();
        for cut in 1..body.len() {
            assert_eq!(batch(&body[..cut]).any(|message| message.is_err()), cut != first);
        }
        let mut wrong_total = body;
        wrong_total[3] ^= 1;
        assert!(batch(&wrong_total).any(|message| message.is_err()));
    }
}
