//! A small native client (RocketMQ remoting, JSON headers) that hides nothing: one connection, no threads.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::wire::{PATIENCE, Wire, timed_out, unexpected};

pub const SEND_MESSAGE_V2: i32 = 310;
pub const PULL_MESSAGE: i32 = 11;
pub const QUERY_CONSUMER_OFFSET: i32 = 14;
pub const UPDATE_CONSUMER_OFFSET: i32 = 15;
pub const GET_MAX_OFFSET: i32 = 30;
pub const HEART_BEAT: i32 = 34;

/// Response codes.
pub const SUCCESS: i32 = 0;
pub const PULL_NOT_FOUND: i32 = 19;
pub const PULL_RETRY_IMMEDIATELY: i32 = 20;
pub const PULL_OFFSET_MOVED: i32 = 21;
pub const QUERY_NOT_FOUND: i32 = 22;

const VERSION: i32 = 409;

/// An answer of the broker, or a request of it.
#[derive(Clone, Debug)]
pub struct Response {
    pub opaque: i64,
    pub code: i32,
    pub remark: String,
    pub fields: Map<String, Value>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn number(&self, name: &str) -> i64 {
        let text = self.fields.get(name).and_then(Value::as_str);
        text.and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no number {name} in {self:?}"))
    }

    /// The records of a pull's answer.
    pub fn records(&self) -> Vec<Record> {
        let mut rest = &self.body[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (record, len) = Record::parse(rest);
            records.push(record);
            rest = &rest[len..];
        }
        records
    }
}

/// A stored message as a pull returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub queue_id: u32,
    pub queue_offset: u64,
    pub position: u64,
    pub topic: String,
    pub body: Vec<u8>,
    /// Names and values as they stand in the property string.
    pub properties: Vec<(String, String)>,
}

impl Record {
    fn parse(bytes: &[u8]) -> (Self, usize) {
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let len = u32_at(0) as usize;
        assert_eq!(u32_at(4), 0xdaa3_20a7, "the magic number of a record");
        let host_flags = u32_at(36);
        assert_eq!(host_flags & 0x30, 0, "IPv4 hosts");
        let body_len = u32_at(84) as usize;
        let body = bytes[88..88 + body_len].to_vec();
        assert_eq!(u32_at(8), crc32(&body) & 0x7fff_ffff, "the body's checksum");
        let mut at = 88 + body_len;
        let topic_len = usize::from(bytes[at]);
        let topic = String::from_utf8_lossy(&bytes[at + 1..at + 1 + topic_len]).into_owned();
        at += 1 + topic_len;
        let properties_len = usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let properties = String::from_utf8_lossy(&bytes[at + 2..at + 2 + properties_len]).into_owned();
        assert_eq!(at + 2 + properties_len, len, "a record's length");
        let pairs = properties.split('\u{2}').filter_map(|pair| pair.split_once('\u{1}'));
        let record = Self {
            queue_id: u32_at(12),
            queue_offset: u64_at(20),
            position: u64_at(28),
            topic,
            body,
            properties: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        };
        (record, len)
    }

    pub fn property(&self, name: &str) -> Option<&str> {
        let found = self.properties.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| &value[..])
    }
}

/// CRC-32 (IEEE), bit by bit: an implementation of its own to check the broker's with.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// A message to send.
#[derive(Clone, Copy, Debug)]
pub struct Send<'a> {
    pub topic: &'a str,
    pub tag: &'a str,
    /// `None` lets the broker choose.
    pub queue_id: Option<u32>,
    pub body: &'a [u8],
}

/// A pull.
#[derive(Clone, Copy, Debug)]
pub struct Pull<'a> {
    pub group: &'a str,
    pub topic: &'a str,
    pub queue_id: u32,
    pub offset: u64,
    pub messages_max: u32,
    /// How long to wait when there is nothing, milliseconds.
    pub suspend: u64,
}

pub struct Remoting {
    pub wire: Wire,
    opaque: i64,
    kept: VecDeque<Response>,
}

impl Remoting {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            wire: Wire::connect(address)?,
            opaque: 0,
            kept: VecDeque::new(),
        })
    }

    /// Sends a request; gives its number, which the answer carries.
    pub fn request(&mut self, code: i32, fields: Value, body: &[u8]) -> io::Result<i64> {
        let mut bytes = Vec::new();
        let opaque = self.put_request(code, fields, body, &mut bytes);
        self.wire.send(&bytes)?;
        Ok(opaque)
    }

    /// Appends a request, to be sent with others.
    pub fn put_request(&mut self, code: i32, fields: Value, body: &[u8], bytes: &mut Vec<u8>) -> i64 {
        self.opaque += 1;
        let header = json!({
            "code": code, "language": "OTHER", "version": VERSION, "opaque": self.opaque, "flag": 0,
            "extFields": fields, "serializeTypeCurrentRPC": "JSON",
        });
        bytes.extend(frame(header.to_string().as_bytes(), body));
        self.opaque
    }

    /// Sends a request and waits for its answer; what comes meanwhile is kept.
    pub fn call(&mut self, code: i32, fields: Value, body: &[u8]) -> io::Result<Response> {
        let opaque = self.request(code, fields, body)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.read_response(until)? {
                Some(response) if response.opaque == opaque => return Ok(response),
                Some(response) => self.kept.push_back(response),
                None => return timed_out("answer"),
            }
        }
    }

    /// Gives the request's number.
    pub fn send(&mut self, send: Send<'_>) -> io::Result<i64> {
        let mut properties = String::from("UNIQ_KEY\u{1}");
        properties.push_str(&format!("0A0B0C0D0E0F{:020}", self.opaque));
        if !send.tag.is_empty() {
            properties.push_str("\u{2}TAGS\u{1}");
            properties.push_str(send.tag);
        }
        let fields = json!({
            "a": "load", "b": send.topic, "c": "TBW102", "d": "4",
            "e": send.queue_id.map_or("-1".to_owned(), |id| id.to_string()),
            "f": "0", "g": "1700000000000", "h": "0", "i": properties, "j": "0", "k": "false", "m": "false",
        });
        self.request(SEND_MESSAGE_V2, fields, send.body)
    }

    pub fn send_and_wait(&mut self, send: Send<'_>) -> io::Result<Response> {
        let opaque = self.send(send)?;
        self.wait_for(opaque)
    }

    /// Gives the request's number.
    pub fn pull(&mut self, pull: Pull<'_>) -> io::Result<i64> {
        let mut bytes = Vec::new();
        let opaque = self.put_pull(pull, &mut bytes);
        self.wire.send(&bytes)?;
        Ok(opaque)
    }

    /// Appends a pull, to be sent with others.
    pub fn put_pull(&mut self, pull: Pull<'_>, bytes: &mut Vec<u8>) -> i64 {
        let fields = json!({
            "consumerGroup": pull.group, "topic": pull.topic, "queueId": pull.queue_id.to_string(),
            "queueOffset": pull.offset.to_string(), "maxMsgNums": pull.messages_max.to_string(),
            // Suspend, subscription included.
            "sysFlag": "6", "commitOffset": "0", "suspendTimeoutMillis": pull.suspend.to_string(),
            "subscription": "*", "subVersion": "0", "expressionType": "TAG",
        });
        self.put_request(PULL_MESSAGE, fields, b"", bytes)
    }

    pub fn pull_and_wait(&mut self, pull: Pull<'_>) -> io::Result<Response> {
        let opaque = self.pull(pull)?;
        self.wait_for(opaque)
    }

    /// The group's committed offset.
    pub fn committed_offset(&mut self, group: &str, topic: &str, queue_id: u32) -> io::Result<Option<u64>> {
        let fields = json!({
            "consumerGroup": group, "topic": topic, "queueId": queue_id.to_string(), "setZeroIfNotFound": "false",
        });
        let response = self.call(QUERY_CONSUMER_OFFSET, fields, b"")?;
        match response.code {
            SUCCESS => Ok(Some(response.number("offset") as u64)),
            QUERY_NOT_FOUND => Ok(None),
            _ => unexpected(response),
        }
    }

    /// Commits an offset and waits until that is durable.
    pub fn commit_offset(&mut self, group: &str, topic: &str, queue_id: u32, offset: u64) -> io::Result<()> {
        let fields = json!({
            "consumerGroup": group, "topic": topic, "queueId": queue_id.to_string(), "commitOffset": offset.to_string(),
        });
        let response = self.call(UPDATE_CONSUMER_OFFSET, fields, b"")?;
        if response.code == SUCCESS {
            Ok(())
        } else {
            unexpected(response)
        }
    }

    /// The offset that the next message of that message queue gets.
    pub fn max_offset(&mut self, topic: &str, queue_id: u32) -> io::Result<u64> {
        let response = self.call(
            GET_MAX_OFFSET,
            json!({"topic": topic, "queueId": queue_id.to_string()}),
            b"",
        )?;
        if response.code == SUCCESS {
            Ok(response.number("offset") as u64)
        } else {
            unexpected(response)
        }
    }

    /// Becomes a member of a consumer group that wants everything of these topics.
    pub fn join(&mut self, group: &str, client_id: &str, topics: &[&str]) -> io::Result<()> {
        let subscriptions: Vec<_> = topics
            .iter()
            .map(|topic| {
                json!({
                    "classFilterMode": false, "topic": topic, "subString": "*", "tagsSet": [], "codeSet": [],
                    "subVersion": 1, "expressionType": "TAG",
                })
            })
            .collect();
        let body = json!({
            "clientID": client_id, "producerDataSet": [],
            "consumerDataSet": [{
                "groupName": group, "consumeType": "CONSUME_PASSIVELY", "messageModel": "CLUSTERING",
                "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "unitMode": false,
                "subscriptionDataSet": subscriptions,
            }],
        });
        let response = self.call(HEART_BEAT, json!({}), body.to_string().as_bytes())?;
        if response.code == SUCCESS {
            Ok(())
        } else {
            unexpected(response)
        }
    }

    pub fn wait_for(&mut self, opaque: i64) -> io::Result<Response> {
        if let Some(at) = self.kept.iter().position(|response| response.opaque == opaque) {
            return Ok(self.kept.remove(at).expect("it was just found"));
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match self.read_response(until)? {
                Some(response) if response.opaque == opaque => return Ok(response),
                Some(response) => self.kept.push_back(response),
                None => return timed_out("answer"),
            }
        }
    }

    /// The next answer; `None` when there is none until then.
    pub fn next_response(&mut self, until: Instant) -> io::Result<Option<Response>> {
        match self.kept.pop_front() {
            Some(response) => Ok(Some(response)),
            None => self.read_response(until),
        }
    }

    /// Requests of the broker are left out.
    fn read_response(&mut self, until: Instant) -> io::Result<Option<Response>> {
        loop {
            while let Some((response, is_answer)) = self.next_frame() {
                if is_answer {
                    return Ok(Some(response));
                }
            }
            if !self.wire.fill(until)? {
                return Ok(None);
            }
        }
    }

    fn next_frame(&mut self) -> Option<(Response, bool)> {
        let bytes = self.wire.buffered();
        let head: &[u8; 4] = bytes.first_chunk()?;
        let len = u32::from_be_bytes(*head) as usize;
        if bytes.len() < 4 + len {
            return None;
        }
        let bytes = self.wire.take(4 + len);
        assert_eq!(bytes[4], 0, "an answer takes its request's form, JSON");
        let header_len = usize::from(bytes[5]) << 16 | usize::from(bytes[6]) << 8 | usize::from(bytes[7]);
        let (header, body) = bytes[8..].split_at(header_len);
        let header: Value = serde_json::from_slice(header).expect("a JSON header");
        let number = |name: &str| header.get(name).and_then(Value::as_i64).unwrap_or(0);
        let response = Response {
            opaque: number("opaque"),
            code: number("code") as i32,
            remark: header.get("remark").and_then(Value::as_str).unwrap_or("").to_owned(),
            fields: header
                .get("extFields")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default(),
            body: body.to_vec(),
        };
        Some((response, number("flag") & 1 != 0))
    }
}

/// A frame with a JSON header.
pub fn frame(header: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + header.len() + body.len()) as u32).to_be_bytes().to_vec();
    bytes.extend((header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(body);
    bytes
}
