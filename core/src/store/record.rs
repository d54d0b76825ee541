//! Records: the frame that everything in the log stands in, and the message record. `FORMAT.md` tells the
//! layout; this file is its one reader and writer.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use bytes::BufMut;

use crate::boundary::Publish;
use crate::message::{Entry, Format};
use crate::properties;
use crate::time::Millis;

/// A record's place: its byte offset in the endless log, or, with bit 62, a place in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// Set in positions of messages that are only in memory. Bit 63 stays clear because the value is a
    /// signed number on RocketMQ's wire.
    pub const MEMORY: u64 = 1 << 62;

    /// Whether the message is only in memory.
    pub const fn is_memory(self) -> bool {
        self.0 & Self::MEMORY != 0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// First record of a segment.
    SegmentHead = 1,
    /// Last record of a segment: the log goes on in another.
    SegmentEnd = 2,
    Message = 3,
    /// Changes to progress: acks.
    Settle = 4,
    /// A change to topology or offsets, see `engine/change.rs`.
    Change = 5,
    /// Last record of a checkpoint; not in the log.
    CheckpointEnd = 6,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::SegmentHead,
            2 => Self::SegmentEnd,
            3 => Self::Message,
            4 => Self::Settle,
            5 => Self::Change,
            6 => Self::CheckpointEnd,
            _ => return None,
        })
    }
}

/// Flag of every record of a batch but the last: recovery takes all of them or none.
pub(crate) const FLAG_MORE: u8 = 0x80;

/// Bytes in front of every record's payload.
pub(crate) const HEADER: usize = 40;
/// Records begin at multiples of this.
pub(crate) const ALIGN: usize = 8;
/// Longest record: a body of 16 MiB with properties, far below a segment.
pub(crate) const RECORD_MAX: usize = 32 << 20;

/// Length of a record with that payload.
pub(crate) const fn framed_len(payload: usize) -> usize {
    (HEADER + payload).next_multiple_of(ALIGN)
}

/// A record's header without length and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    pub flags: u8,
    pub position: Position,
    /// Everything before this was synced when the record was made.
    pub synced: Position,
    pub stored_at: Millis,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// All zero: nothing was ever written here.
    #[error("nothing was written here")]
    Blank,
    #[error("the record is cut off or its length is impossible")]
    Length,
    #[error("the checksum is wrong")]
    Checksum,
    #[error("unknown kind or wrong position")]
    Header,
}

/// Writes the header, with length and checksum, over the front of a record whose payload is in place.
pub(crate) fn seal(record: &mut [u8], header: Header) {
    put_header(record, header);
    let crc = crc32fast::hash(&record[8..]) ^ record.len() as u32;
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Says in a sealed record that the next one belongs to the same batch.
pub(crate) fn mark_more(record: &mut [u8]) {
    record[9] |= FLAG_MORE;
    let crc = crc32fast::hash(&record[8..]) ^ record.len() as u32;
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn put_header(record: &mut [u8], header: Header) {
    let length = record.len() as u32;
    let mut at = &mut record[..];
    at.put_u32_le(length);
    at.put_u32_le(0);
    at.put_u8(header.kind as u8);
    at.put_u8(header.flags);
    // Zero, or what the kind of record keeps there.
    at = &mut at[6..];
    at.put_u64_le(header.position.0);
    at.put_u64_le(header.synced.0);
    at.put_u64_le(header.stored_at.0);
}

/// Reads and checks the record at the front of `bytes`, which lies at `position`. Gives its header and
/// length.
pub(crate) fn check(bytes: &[u8], position: Position) -> Result<(Header, usize), RecordError> {
    let length = u32_at(bytes, 0).ok_or(RecordError::Length)? as usize;
    if length == 0 {
        return Err(RecordError::Blank);
    }
    if !(HEADER..=RECORD_MAX).contains(&length) || !length.is_multiple_of(ALIGN) || length > bytes.len() {
        return Err(RecordError::Length);
    }
    let crc = u32_at(bytes, 4).ok_or(RecordError::Length)?;
    if crc != crc32fast::hash(&bytes[8..length]) ^ length as u32 {
        return Err(RecordError::Checksum);
    }
    let header = Header {
        kind: Kind::of(bytes[8]).ok_or(RecordError::Header)?,
        flags: bytes[9],
        position: Position(u64_at(bytes, 16)),
        synced: Position(u64_at(bytes, 24)),
        stored_at: Millis(u64_at(bytes, 32)),
    };
    if header.position != position {
        return Err(RecordError::Header);
    }
    Ok((header, length))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

// --- messages ---------------------------------------------------------------------------------

/// Fixed part of a message record's payload.
const MESSAGE_FIXED: usize = 32;
const DESTINATION: usize = 12;
/// A dedup key without the name of its scope.
const DEDUP_FIXED: usize = 17;
const FLAG_PERSISTENT: u8 = 1;
const FLAG_EXCHANGE: u8 = 2;
const FLAG_RETAIN: u8 = 4;
/// A copy of an older record: those who need that point to this one.
pub(crate) const FLAG_MOVED: u8 = 8;
/// Two bits: why the message is not delivered now.
const FLAG_LATER: u8 = 0x30;
const LATER_AFTER: u8 = 0x10;
const LATER_AT: u8 = 0x20;
const LATER_HALF: u8 = 0x30;
/// Where a message that is not delivered now says until when.
const DUE: Range<usize> = 10..16;
const NO_QUEUE: u32 = u32::MAX;

/// Fixed part of a native V1 record with IPv4 hosts, without body, topic and properties.
const V1_FIXED: usize = 4 + 4 + 4 + 4 + 4 + 8 + 8 + 4 + 8 + 8 + 8 + 8 + 4 + 8 + 4 + 1 + 2;
const V1_MAGIC: u32 = 0xDAA3_20A7;
const SYS_FLAG_BORN_V6: i32 = 0x10;
const SYS_FLAG_STORE_V6: i32 = 0x20;

/// A message that is not delivered when it is stored: nothing points to it but a timer, or whoever knows of
/// its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Later {
    /// Due then on the clock of relative timers.
    After(Millis),
    /// Due then on the wall.
    At(Millis),
    /// The half of a transaction, first asked about then on the clock of relative timers.
    Half(Millis),
}

/// A message record about to be written.
pub(crate) struct NewMessage<'a> {
    pub persistent: bool,
    /// It is the last value of its address.
    pub retain: bool,
    /// An exchange has the topic's name.
    pub exchange: bool,
    pub entry: Entry,
    /// Durable queues that get it, each with the sequence it has there.
    pub destinations: &'a [(u32, u64)],
    pub topic: &'a [u8],
    /// Message queue and offset in the topic, when it enters the topic.
    pub topic_queue: Option<(u32, u64)>,
    pub key: &'a [u8],
    pub attributes: &'a [u8],
    pub format: Format,
    /// Empty for [`Format::NATIVE`]: there the properties are the origin.
    pub origin: &'a [u8],
    pub flag: i32,
    pub sys_flag: i32,
    pub born_at: Millis,
    pub born_host: SocketAddr,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    /// RocketMQ's prepared transaction offset: the position of the half message it was.
    pub prepared: u64,
    /// It is not delivered now, and enters no topic; then message queue and offset are what its native
    /// record shows.
    pub later: Option<Later>,
    /// The dedup key it opens: kind and name of its scope, and a hash.
    pub dedup: Option<(u8, &'a [u8], u128)>,
    pub properties: &'a [u8],
    pub body: &'a [u8],
}

impl<'a> NewMessage<'a> {
    /// The record of a publish, without destinations. Its native properties are written to `properties`
    /// unless it brings its own.
    pub(crate) fn of(
        publish: &'a Publish,
        born_host: SocketAddr,
        store_host: SocketAddr,
        now: Millis,
        properties: &'a mut Vec<u8>,
    ) -> Self {
        let native = publish.native.as_deref();
        let is_native = publish.format == Format::NATIVE;
        if !is_native {
            properties::write_native(&publish.key, publish.attributes.iter(), properties);
        }
        Self {
            persistent: publish.persistent,
            retain: publish.retain,
            exchange: publish.entry == Entry::Exchange,
            entry: publish.entry,
            destinations: &[],
            topic: &publish.topic,
            topic_queue: None,
            key: &publish.key,
            attributes: publish.attributes.as_bytes(),
            format: publish.format,
            origin: if is_native { b"" } else { &publish.origin },
            flag: native.map_or(0, |n| n.flag),
            sys_flag: native.map_or(0, |n| n.sys_flag),
            born_at: native.map_or(now, |n| n.born_at),
            born_host,
            store_host,
            reconsume_times: native.map_or(0, |n| n.reconsume_times),
            prepared: 0,
            later: None,
            dedup: None,
            properties: if is_native { &publish.origin } else { properties },
            body: &publish.body,
        }
    }

    /// Bytes of the whole record.
    pub(crate) fn len(&self) -> usize {
        framed_len(
            MESSAGE_FIXED
                + DESTINATION * self.destinations.len()
                + self.key.len()
                + self.attributes.len()
                + self.origin.len()
                + self.dedup_len()
                + self.native_len(),
        )
    }

    fn dedup_len(&self) -> usize {
        self.dedup.map_or(0, |(_, name, _)| DEDUP_FIXED + name.len())
    }

    fn native_len(&self) -> usize {
        let v6 = |host: &SocketAddr| if is_v6(host) { 12 } else { 0 };
        V1_FIXED
            + v6(&self.born_host)
            + v6(&self.store_host)
            + self.body.len()
            + self.topic.len()
            + self.properties.len()
    }

    /// Writes the whole record over `record`, which is [`len`](Self::len) zero bytes. `checked` adds the
    /// checksum: not needed for what never reaches the disk.
    pub(crate) fn write(
        &self,
        record: &mut [u8],
        position: Position,
        synced: Position,
        stored_at: Millis,
        checked: bool,
    ) {
        debug_assert_eq!(record.len(), self.len());
        let native_len = self.native_len();
        let mut at = &mut record[HEADER..];
        at.put_u32_le(self.destinations.len() as u32);
        at.put_u32_le(self.key.len() as u32);
        at.put_u32_le(self.attributes.len() as u32);
        at.put_u32_le(self.origin.len() as u32);
        at.put_u32_le(native_len as u32);
        let (later, due) = match self.later {
            None => (0, 0),
            Some(Later::After(due)) => (LATER_AFTER, due.0),
            Some(Later::At(due)) => (LATER_AT, due.0),
            Some(Later::Half(due)) => (LATER_HALF, due.0),
        };
        let topic_queue = self.topic_queue.filter(|_| later == 0);
        at.put_u32_le(topic_queue.map_or(NO_QUEUE, |(queue, _)| queue));
        at.put_u8(self.format.0);
        at.put_u8(self.entry as u8);
        at.put_u16_le(0);
        at.put_u32_le(self.dedup_len() as u32);
        for (queue, sequence) in self.destinations {
            at.put_u32_le(*queue);
            at.put_u64_le(*sequence);
        }
        at.put_slice(self.key);
        at.put_slice(self.attributes);
        at.put_slice(self.origin);
        if let Some((kind, name, fingerprint)) = self.dedup {
            at.put_u8(kind);
            at.put_u128_le(fingerprint);
            at.put_slice(name);
        }
        self.write_native(&mut at, native_len, position, stored_at);
        if later != 0 {
            record[DUE].copy_from_slice(&due.to_le_bytes()[..DUE.len()]);
        }
        let header = Header {
            kind: Kind::Message,
            flags: (if self.persistent { FLAG_PERSISTENT } else { 0 })
                | (if self.exchange { FLAG_EXCHANGE } else { 0 })
                | (if self.retain { FLAG_RETAIN } else { 0 })
                | later,
            position,
            synced,
            stored_at,
        };
        if checked {
            seal(record, header)
        } else {
            put_header(record, header)
        }
    }

    fn write_native(&self, at: &mut &mut [u8], native_len: usize, position: Position, stored_at: Millis) {
        let mut sys_flag = self.sys_flag & !(SYS_FLAG_BORN_V6 | SYS_FLAG_STORE_V6);
        if is_v6(&self.born_host) {
            sys_flag |= SYS_FLAG_BORN_V6;
        }
        if is_v6(&self.store_host) {
            sys_flag |= SYS_FLAG_STORE_V6;
        }
        let (queue_id, queue_offset) = self.topic_queue.unwrap_or((0, 0));
        at.put_u32(native_len as u32);
        at.put_u32(V1_MAGIC);
        at.put_u32(crc32fast::hash(self.body) & 0x7FFF_FFFF);
        at.put_u32(queue_id);
        at.put_i32(self.flag);
        at.put_u64(queue_offset);
        at.put_u64(position.0);
        at.put_i32(sys_flag);
        at.put_u64(self.born_at.0);
        put_host(at, self.born_host);
        at.put_u64(stored_at.0);
        put_host(at, self.store_host);
        at.put_i32(self.reconsume_times);
        at.put_u64(self.prepared);
        at.put_u32(self.body.len() as u32);
        at.put_slice(self.body);
        at.put_u8(self.topic.len() as u8);
        at.put_slice(self.topic);
        at.put_u16(self.properties.len() as u16);
        at.put_slice(self.properties);
    }
}

fn is_v6(host: &SocketAddr) -> bool {
    host.ip().to_canonical().is_ipv6()
}

fn host_len(sys_flag: i32, bit: i32) -> usize {
    if sys_flag & bit != 0 { 20 } else { 8 }
}

fn host(at: &[u8]) -> SocketAddr {
    let (ip, port) = at.split_at(at.len() - 4);
    let port = u32::from_be_bytes(port.try_into().expect("4 bytes")) as u16;
    match <[u8; 4]>::try_from(ip) {
        Ok(ip) => (ip, port).into(),
        Err(_) => (<[u8; 16]>::try_from(ip).expect("4 or 16 bytes"), port).into(),
    }
}

fn put_host(at: &mut &mut [u8], host: SocketAddr) {
    match host.ip().to_canonical() {
        IpAddr::V4(ip) => at.put_slice(&ip.octets()),
        IpAddr::V6(ip) => at.put_slice(&ip.octets()),
    }
    at.put_u32(u32::from(host.port()));
}

/// Reads a message record that was checked before (or never left memory).
#[derive(Clone, Copy)]
pub(crate) struct MessageRecord<'a> {
    record: &'a [u8],
}

impl<'a> MessageRecord<'a> {
    pub(crate) fn of(record: &'a [u8]) -> Self {
        Self { record }
    }

    /// Whether all inner lengths fit: for records read back from disk, whose checksum only says that
    /// they are what was written. Nothing else may be asked of a record that is not whole.
    pub(crate) fn is_whole(self) -> bool {
        if self.record.len() < HEADER + MESSAGE_FIXED {
            return false;
        }
        let lengths = [
            12 * u64::from(self.number(0)),
            self.number(1).into(),
            self.number(2).into(),
            self.number(3).into(),
            self.number(7).into(),
        ];
        let native_start = (HEADER + MESSAGE_FIXED) as u64 + lengths.iter().sum::<u64>();
        let native_end = native_start + u64::from(self.number(4));
        if native_end > self.record.len() as u64 || (self.number(4) as usize) < V1_FIXED {
            return false;
        }
        let native = &self.record[..native_end as usize];
        let topic_at = |body_at: usize| {
            let body = u32::from_be_bytes(native.get(body_at..body_at + 4)?.try_into().ok()?);
            (body_at + 4).checked_add(body as usize)
        };
        let properties_at = |at: usize| Some(at + 1 + usize::from(*native.get(at)?));
        let end = |at: usize| {
            let length = u16::from_be_bytes(native.get(at..at + 2)?.try_into().ok()?);
            Some(at + 2 + usize::from(length))
        };
        topic_at(self.body_length_at()).and_then(properties_at).and_then(end) == Some(native.len())
    }

    fn number(self, index: usize) -> u32 {
        u32_at(self.record, HEADER + index * 4).unwrap_or(0)
    }

    fn destination_count(self) -> usize {
        self.number(0) as usize
    }

    fn key_start(self) -> usize {
        HEADER + MESSAGE_FIXED + self.destination_count() * DESTINATION
    }

    fn attributes_start(self) -> usize {
        self.key_start() + self.number(1) as usize
    }

    fn origin_start(self) -> usize {
        self.attributes_start() + self.number(2) as usize
    }

    fn dedup_start(self) -> usize {
        self.origin_start() + self.number(3) as usize
    }

    fn native_start(self) -> usize {
        self.dedup_start() + self.number(7) as usize
    }

    /// The dedup key that it opens: kind and name of its scope, and a hash.
    pub(crate) fn dedup(self) -> Option<(u8, &'a [u8], u128)> {
        let block = &self.record[self.dedup_start()..self.native_start()];
        let (fixed, name) = block.split_at_checked(DEDUP_FIXED)?;
        let fingerprint = u128::from_le_bytes(fixed[1..].try_into().expect("16 bytes"));
        Some((fixed[0], name, fingerprint))
    }

    pub(crate) fn native(self) -> Range<usize> {
        let start = self.native_start();
        start..start + self.number(4) as usize
    }

    fn big_u32(self, at: usize) -> u32 {
        u32::from_be_bytes(self.record[at..at + 4].try_into().expect("4 bytes"))
    }

    pub(crate) fn sys_flag(self) -> i32 {
        self.big_u32(self.native_start() + 36) as i32
    }

    /// The user's flag.
    pub(crate) fn flag(self) -> i32 {
        self.big_u32(self.native_start() + 16) as i32
    }

    pub(crate) fn born_host(self) -> SocketAddr {
        let start = self.native_start() + 48;
        host(&self.record[start..start + host_len(self.sys_flag(), SYS_FLAG_BORN_V6)])
    }

    /// Earlier attempts at consuming it.
    pub(crate) fn reconsume_times(self) -> i32 {
        self.big_u32(self.body_length_at() - 12) as i32
    }

    fn body_length_at(self) -> usize {
        let flag = self.sys_flag();
        self.native_start() + 68 + host_len(flag, SYS_FLAG_BORN_V6) + host_len(flag, SYS_FLAG_STORE_V6)
    }

    pub(crate) fn body(self) -> Range<usize> {
        let at = self.body_length_at();
        at + 4..at + 4 + self.big_u32(at) as usize
    }

    pub(crate) fn topic(self) -> &'a [u8] {
        let at = self.body().end;
        &self.record[at + 1..at + 1 + usize::from(self.record[at])]
    }

    /// The native property string.
    pub(crate) fn properties(self) -> &'a [u8] {
        let at = self.body().end + 1 + self.topic().len();
        let length = u16::from_be_bytes([self.record[at], self.record[at + 1]]);
        &self.record[at + 2..at + 2 + usize::from(length)]
    }

    pub(crate) fn key(self) -> &'a [u8] {
        &self.record[self.key_start()..self.attributes_start()]
    }

    pub(crate) fn attributes(self) -> &'a [u8] {
        &self.record[self.attributes_start()..self.origin_start()]
    }

    pub(crate) fn origin(self) -> (Format, &'a [u8]) {
        match Format(self.record[HEADER + 24]) {
            Format::NATIVE => (Format::NATIVE, self.properties()),
            format => (format, &self.record[self.origin_start()..self.dedup_start()]),
        }
    }

    pub(crate) fn entry(self) -> Entry {
        match self.record[HEADER + 25] {
            0 => Entry::Exchange,
            1 => Entry::Queue,
            2 => Entry::Topic,
            _ => Entry::Native,
        }
    }

    pub(crate) fn is_persistent(self) -> bool {
        self.record[9] & FLAG_PERSISTENT != 0
    }

    pub(crate) fn is_retained(self) -> bool {
        self.record[9] & FLAG_RETAIN != 0
    }

    pub(crate) fn has_exchange(self) -> bool {
        self.record[9] & FLAG_EXCHANGE != 0
    }

    pub(crate) fn position(self) -> Position {
        Position(u64_at(self.record, 16))
    }

    pub(crate) fn stored_at(self) -> Millis {
        Millis(u64_at(self.record, 32))
    }

    pub(crate) fn born_at(self) -> Millis {
        let at = self.native_start() + 40;
        Millis(u64::from_be_bytes(self.record[at..at + 8].try_into().expect("8 bytes")))
    }

    /// Why it is not delivered now, and until when.
    pub(crate) fn later(self) -> Option<Later> {
        let mut due = [0; 8];
        due[..6].copy_from_slice(&self.record[DUE]);
        let due = Millis(u64::from_le_bytes(due));
        match self.record[9] & FLAG_LATER {
            LATER_AFTER => Some(Later::After(due)),
            LATER_AT => Some(Later::At(due)),
            LATER_HALF => Some(Later::Half(due)),
            _ => None,
        }
    }

    /// Where the native record says that it lies: where it was stored at first, when it is a timed message that
    /// was copied.
    pub(crate) fn native_position(self) -> Position {
        let at = self.native_start() + 28;
        Position(u64::from_be_bytes(self.record[at..at + 8].try_into().expect("8 bytes")))
    }

    /// Message queue and offset as the native record has them.
    pub(crate) fn native_queue(self) -> (u32, u64) {
        let start = self.native_start();
        let offset = self.record[start + 20..start + 28].try_into().expect("8 bytes");
        (self.big_u32(start + 12), u64::from_be_bytes(offset))
    }

    /// Message queue and offset in the topic, when it entered the topic.
    pub(crate) fn topic_queue(self) -> Option<(u32, u64)> {
        let queue = self.number(5);
        let at = self.native_start() + 20;
        let offset = u64::from_be_bytes(self.record[at..at + 8].try_into().expect("8 bytes"));
        (queue != NO_QUEUE).then_some((queue, offset))
    }

    /// Durable queues that got it, each with the sequence it has there.
    pub(crate) fn destinations(self) -> impl Iterator<Item = (u32, u64)> + 'a {
        let start = HEADER + MESSAGE_FIXED;
        self.record[start..start + self.destination_count() * DESTINATION]
            .chunks_exact(DESTINATION)
            .map(|d| (u32_at(d, 0).expect("12 bytes"), u64_at(d, 4)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8], born_host: &str) -> Vec<u8> {
        let new = NewMessage {
            persistent: true,
            retain: false,
            exchange: false,
            entry: Entry::Topic,
            destinations: &[(7, 1), (9, u64::MAX - 1)],
            topic: b"devices",
            topic_queue: Some((3, 12)),
            key: b"42.cmd",
            attributes: b"",
            format: Format(2),
            origin: b"origin",
            flag: -1,
            sys_flag: 0x101,
            born_at: Millis(5),
            born_host: born_host.parse().unwrap(),
            store_host: "127.0.0.1:10911".parse().unwrap(),
            reconsume_times: 0,
            prepared: 0,
            later: None,
            dedup: Some((2, b"holder", 77 << 64)),
            properties: b"TAGS\x0142.cmd\x02",
            body,
        };
        let mut record = vec![0; new.len()];
        new.write(&mut record, Position(800), Position(8), Millis(77), true);
        record
    }

    #[test]
    fn a_message_record_reads_back_as_it_was_written() {
        for host in ["10.0.0.1:5", "[::1]:5", "[::ffff:10.0.0.1]:5"] {
            for body in [&b""[..], b"payload"] {
                let record = message(body, host);
                let (header, length) = check(&record, Position(800)).unwrap();
                assert_eq!((header.kind, length), (Kind::Message, record.len()));
                assert_eq!((header.synced, header.stored_at), (Position(8), Millis(77)));
                let view = MessageRecord::of(&record);
                assert!(view.is_whole() && view.is_persistent());
                assert_eq!(&record[view.body()], body);
                assert_eq!((view.topic(), view.key()), (&b"devices"[..], &b"42.cmd"[..]));
                assert_eq!(view.origin(), (Format(2), &b"origin"[..]));
                assert_eq!(view.dedup(), Some((2, &b"holder"[..], 77 << 64)));
                assert_eq!(view.topic_queue(), Some((3, 12)));
                assert_eq!(view.properties(), b"TAGS\x0142.cmd\x02");
                assert_eq!(view.born_at(), Millis(5));
                assert!(view.destinations().eq([(7, 1), (9, u64::MAX - 1)]));
                let native = &record[view.native()];
                assert_eq!(
                    native.len(),
                    u32::from_be_bytes(native[..4].try_into().unwrap()) as usize
                );
            }
        }
    }

    #[test]
    fn a_record_cut_or_changed_anywhere_is_refused() {
        let record = message(b"payload", "10.0.0.1:5");
        for cut in 0..record.len() {
            assert!(check(&record[..cut], Position(800)).is_err());
        }
        for at in 0..record.len() {
            for bit in [1, 0x80] {
                let mut changed = record.clone();
                changed[at] ^= bit;
                assert!(check(&changed, Position(800)).is_err(), "byte {at}");
            }
        }
        assert_eq!(check(&record, Position(808)), Err(RecordError::Header));
        assert_eq!(check(&[0; 64], Position(0)), Err(RecordError::Blank));
    }
}
