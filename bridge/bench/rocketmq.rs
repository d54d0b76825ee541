//! The load's side of RocketMQ's remoting protocol: raw commands with JSON headers, as the Java client's are.

use std::io::Write;

use memchr::memmem;

use super::body::Stamp;
use super::options::{Mode, Options, Sending};
use super::protocol::{Answers, Consume, Protocol, Sink, Told};
use super::template::{FILLER, Id, Template, number_at, queue_digits};
use super::wire::{Fault, Talk, resolve};

const PULL_MESSAGE: i32 = 11;
const UPDATE_AND_CREATE_TOPIC: i32 = 17;
const GET_BROKER_CLUSTER_INFO: i32 = 106;
const DELETE_SUBSCRIPTION_GROUP: i32 = 207;
const DELETE_TOPIC_IN_BROKER: i32 = 215;
const DELETE_TOPIC_IN_NAME_SERVER: i32 = 216;
const SEND_MESSAGE_V2: i32 = 310;

const SUCCESS: i64 = 0;
const FLUSH_DISK_TIMEOUT: i64 = 10;
const SLAVE_NOT_AVAILABLE: i64 = 11;
const FLUSH_SLAVE_TIMEOUT: i64 = 12;
const PULL_NOT_FOUND: i64 = 19;
const PULL_RETRY_IMMEDIATELY: i64 = 20;
const PULL_OFFSET_MOVED: i64 = 21;

const ONE_WAY: i32 = 2;

/// The topic whose settings a topic takes that a send makes.
const DEFAULT_TOPIC: &str = "TBW102";

/// RocketMQ 5.3.3, in its list of versions.
const VERSION: i32 = 479;

/// Numbers of sends are ten digits from here on.
const FIRST_OPAQUE: u64 = 1_000_000_000;
const OPAQUES: u64 = 1_000_000_000;

/// How long a pull may be held, as Java's push consumers ask for it.
const SUSPEND_MS: u32 = 15_000;

pub struct RocketMq {
    options: Options,
    /// The broker's address, once the name server has told it.
    broker: String,
}

impl RocketMq {
    pub fn new(options: &Options) -> Self {
        Self {
            options: options.clone(),
            broker: String::new(),
        }
    }

    fn topic(&self) -> String {
        format!("rocketbridge-bench-{}", self.options.name)
    }

    /// With fan-out every consumer is a group.
    fn group(&self, index: u32) -> String {
        let index = if self.options.fan_out { index } else { 0 };
        format!("rocketbridge-bench-{}-c{index}", self.options.name)
    }

    fn name_server(&self) -> Result<Talk, Fault> {
        Talk::connect(resolve(&self.options.target.address)?)
    }

    fn broker(&self) -> Result<Talk, Fault> {
        Talk::connect(resolve(&self.broker)?)
    }

    /// A send to message queue 0, up to its body.
    fn send(&self, ids: &mut Vec<Id>, size: usize) -> (Vec<u8>, usize) {
        let options = &self.options;
        let born = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
        let unique = "0".repeat(16);
        let group = format!("rocketbridge-bench-{}-p", options.name);
        // As fastjson writes control characters.
        let properties = format!("UNIQ_KEY\\u0001{:016X}{unique}\\u0002WAIT\\u0001true", born as u64);
        let header = format!(
            "{{\"code\":{SEND_MESSAGE_V2},\"extFields\":{{\"a\":\"{group}\",\"b\":\"{}\",\"c\":\"{DEFAULT_TOPIC}\",\
             \"d\":\"{}\",\"e\":\"{}\",\"f\":\"0\",\"g\":\"{born}\",\"h\":\"0\",\"i\":\"{properties}\",\"j\":\"0\",\
             \"k\":\"false\",\"m\":\"false\"}},\"flag\":{},\"language\":\"JAVA\",\"opaque\":{FIRST_OPAQUE},\
             \"serializeTypeCurrentRPC\":\"JSON\",\"version\":{VERSION}}}",
            self.topic(),
            options.queues,
            queue_digits(0),
            if options.sending == Sending::OneWay { ONE_WAY } else { 0 },
        );
        let mut bytes = frame_head(header.len(), size);
        let at = |text: &str| bytes.len() + header.find(text).expect("it was just written") + text.len();
        let queue_at = at("\"e\":\"");
        ids.push(Id::Decimal {
            at: at("\"opaque\":"),
            width: 10,
            first: FIRST_OPAQUE,
            modulo: OPAQUES,
        });
        ids.push(Id::Unique {
            at: at("UNIQ_KEY\\u0001") + 16,
        });
        bytes.extend_from_slice(header.as_bytes());
        (bytes, queue_at)
    }

    /// A topic that the broker does not let us make is made by a message to it, of no run.
    fn make_topic_by_sending(&self, talk: &mut Talk) -> Result<(), Fault> {
        let filler = [FILLER; 8];
        let stamp = Stamp {
            run: !run_number(&self.options.name),
            ..Stamp::default()
        };
        let head = stamp.write(&filler);
        let (mut bytes, _) = self.send(&mut Vec::new(), head.len() + filler.len());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&filler);
        if self.options.sending == Sending::OneWay {
            return talk.write(&bytes);
        }
        talk.write(&bytes)?;
        let answer = answer(talk, FIRST_OPAQUE as i64)?;
        let answer = Frame::first(&answer)?.expect("it is whole");
        match answer.code() {
            SUCCESS | FLUSH_DISK_TIMEOUT..=FLUSH_SLAVE_TIMEOUT => Ok(()),
            code => Err(answer.refused(&format!("topic {} ({code})", self.topic()))),
        }
    }
}

/// A run by its name, for bodies.
pub fn run_number(name: &str) -> u16 {
    crc32fast::hash(name.as_bytes()) as u16
}

impl Protocol for RocketMq {
    fn prepare(&mut self) -> Result<(), Fault> {
        let mut name_server = self.name_server()?;
        let bytes = ask(&mut name_server, GET_BROKER_CLUSTER_INFO, &[])?;
        let frame = Frame::first(&bytes)?.expect("it is whole");
        self.broker = match (frame.code(), master(frame.body)) {
            (SUCCESS, Some(address)) => address,
            (SUCCESS, None) => {
                return Err(Fault::Refused {
                    what: "a route".into(),
                    why: "the name server knows no broker".into(),
                });
            }
            _ => return Err(frame.refused("to tell its brokers")),
        };
        let mut talk = self.broker()?;
        if self.options.mode == Mode::Drain {
            return Ok(());
        }
        let queues = self.options.queues.to_string();
        let fields = [
            ("topic", &*self.topic()),
            ("defaultTopic", DEFAULT_TOPIC),
            ("readQueueNums", &queues),
            ("writeQueueNums", &queues),
            ("perm", "6"),
            ("topicFilterType", "SINGLE_TAG"),
            ("topicSysFlag", "0"),
            ("order", "false"),
        ];
        let bytes = ask(&mut talk, UPDATE_AND_CREATE_TOPIC, &fields)?;
        if Frame::first(&bytes)?.expect("it is whole").code() == SUCCESS {
            return Ok(());
        }
        self.make_topic_by_sending(&mut talk)
    }

    fn template(&self) -> Template {
        let mut ids = Vec::new();
        let (mut bytes, queue_at) = self.send(&mut ids, self.options.size);
        let body_at = bytes.len();
        bytes.resize(body_at + self.options.size, FILLER);
        Template {
            bytes,
            body_at,
            queue_at: Some(queue_at),
            ids,
        }
    }

    fn publisher(&self, _index: u32) -> Result<(Talk, Box<dyn Answers>), Fault> {
        Ok((self.broker()?, Box::new(Results)))
    }

    fn consumer(&self, index: u32) -> Result<(Talk, Box<dyn Consume>), Fault> {
        let options = &self.options;
        let stride = if options.fan_out {
            1
        } else {
            options.queues.min(options.consumers)
        };
        let queues: Vec<u32> = (index % stride..options.queues).step_by(stride as usize).collect();
        Ok((
            self.broker()?,
            Box::new(Pulls {
                group: self.group(index),
                topic: self.topic(),
                batch: options.prefetch,
                // Several consumers of one message queue would each get everything.
                queues: if index < stride || options.fan_out {
                    queues
                } else {
                    Vec::new()
                },
            }),
        ))
    }

    fn idler(&self, _index: u32) -> Result<Talk, Fault> {
        self.broker()
    }

    fn goodbye(&self) -> Vec<u8> {
        Vec::new()
    }

    fn clean_up(&self) -> Result<Option<String>, Fault> {
        let topic = self.topic();
        let mut talk = self.broker()?;
        for index in 0..if self.options.fan_out {
            self.options.consumers
        } else {
            1
        } {
            let group = self.group(index);
            // A group that was never used cannot be deleted.
            ask(
                &mut talk,
                DELETE_SUBSCRIPTION_GROUP,
                &[("groupName", &group), ("cleanOffset", "true")],
            )?;
        }
        let bytes = ask(&mut talk, DELETE_TOPIC_IN_BROKER, &[("topic", &topic)])?;
        let frame = Frame::first(&bytes)?.expect("it is whole");
        if frame.code() != SUCCESS {
            let why = frame.remark();
            return Ok(Some(format!(
                "topic {topic} stays: the broker does not delete it ({why})"
            )));
        }
        ask(
            &mut self.name_server()?,
            DELETE_TOPIC_IN_NAME_SERVER,
            &[("topic", &topic)],
        )?;
        Ok(None)
    }
}

/// The first broker's address as master in a name server's answer. Keys may be in quotes or not.
fn master(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, addresses) = text.split_once("\"brokerAddrs\":{")?;
    let (addresses, _) = addresses.split_once('}')?;
    let mut found = addresses.split(',').filter_map(|pair| pair.split_once(':'));
    let (_, address) = found.find(|(key, _)| matches!(*key, "0" | "\"0\""))?;
    Some(address.trim_matches('"').to_owned())
}

fn unexpected(what: &str) -> Fault {
    Fault::Unexpected {
        protocol: "RocketMQ",
        what: what.to_owned(),
    }
}

/// What a producer is told.
struct Results;

impl Answers for Results {
    fn read(&mut self, input: &[u8], told: &mut dyn Told, _out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(frame) = Frame::first(&input[at..])? {
            at += frame.length;
            let Some(opaque) = frame.opaque().filter(|_| frame.is_response()) else {
                continue;
            };
            let place = (opaque as u64).wrapping_sub(FIRST_OPAQUE);
            let number = number_at(place, told.first_open(), OPAQUES);
            match frame.code() {
                SUCCESS => told.confirm(number),
                FLUSH_DISK_TIMEOUT | SLAVE_NOT_AVAILABLE | FLUSH_SLAVE_TIMEOUT => {
                    told.notice(&format!("the broker has a message, but: {}", frame.remark()));
                    told.confirm(number);
                }
                code => told.reject(number, &format!("{code} {}", frame.remark())),
            }
        }
        Ok(at)
    }
}

/// A consumer's long polls, one for each of its message queues.
struct Pulls {
    group: String,
    topic: String,
    batch: u32,
    queues: Vec<u32>,
}

impl Pulls {
    fn pull(&self, place: usize, offset: i64, out: &mut Vec<u8>) {
        const COMMIT_OFFSET: u32 = 1;
        const SUSPEND: u32 = 2;
        const SUBSCRIPTION: u32 = 4;
        let commit = if offset > 0 { COMMIT_OFFSET } else { 0 };
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        // Writing to memory does not fail.
        let _ = write!(
            out,
            "{{\"code\":{PULL_MESSAGE},\"extFields\":{{\"queueId\":\"{}\",\"maxMsgNums\":\"{}\",\"sysFlag\":\"{}\",\
             \"suspendTimeoutMillis\":\"{SUSPEND_MS}\",\"commitOffset\":\"{offset}\",\"topic\":\"{}\",\
             \"queueOffset\":\"{offset}\",\"expressionType\":\"TAG\",\"subscription\":\"*\",\"subVersion\":\"0\",\
             \"consumerGroup\":\"{}\"}},\"flag\":0,\"language\":\"JAVA\",\"opaque\":{place},\
             \"serializeTypeCurrentRPC\":\"JSON\",\"version\":{VERSION}}}",
            self.queues[place],
            self.batch,
            commit | SUSPEND | SUBSCRIPTION,
            self.topic,
            self.group,
        );
        let header = out.len() - start - 8;
        let head = frame_head(header, 0);
        out[start..start + 8].copy_from_slice(&head);
    }
}

impl Consume for Pulls {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for place in 0..self.queues.len() {
            self.pull(place, 0, out);
        }
    }

    fn read(&mut self, input: &[u8], sink: &mut Sink<'_>, out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(frame) = Frame::first(&input[at..])? {
            at += frame.length;
            let Some(opaque) = frame.opaque().filter(|_| frame.is_response()) else {
                continue;
            };
            let place = opaque as usize;
            if place >= self.queues.len() {
                return Err(unexpected("an answer to nothing"));
            }
            match frame.code() {
                SUCCESS => {
                    let mut records = frame.body;
                    while !records.is_empty() {
                        let (body, length) = record(records).ok_or_else(|| unexpected("a record that ends early"))?;
                        sink.message(body);
                        records = &records[length..];
                    }
                }
                PULL_NOT_FOUND | PULL_RETRY_IMMEDIATELY | PULL_OFFSET_MOVED => {}
                _ => return Err(frame.refused("a pull")),
            }
            let next = frame.number(b"\"nextBeginOffset\":");
            self.pull(
                place,
                next.ok_or_else(|| unexpected("a pull's answer without nextBeginOffset"))?,
                out,
            );
        }
        Ok(at)
    }
}

/// The body of the first stored record, and the record's length.
fn record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    const BORN_HOST_V6: u32 = 0x10;
    const STORE_HOST_V6: u32 = 0x20;
    let number = |at: usize| bytes.get(at..at + 4)?.first_chunk().map(|b| u32::from_be_bytes(*b));
    let length = number(0)? as usize;
    let sys_flag = number(36)?;
    let host = |flag| if sys_flag & flag == 0 { 8 } else { 20 };
    // Born at 40, its host, stored at, its host, attempts, offset of the half message.
    let body_length_at = 48 + host(BORN_HOST_V6) + 8 + host(STORE_HOST_V6) + 4 + 8;
    let body_length = number(body_length_at)? as usize;
    let body = bytes.get(body_length_at + 4..)?.get(..body_length)?;
    (length > body_length_at && length <= bytes.len()).then_some((body, length))
}

/// A command as it lies in the input.
struct Frame<'a> {
    header: &'a [u8],
    body: &'a [u8],
    /// Of all of it.
    length: usize,
}

impl<'a> Frame<'a> {
    fn first(bytes: &'a [u8]) -> Result<Option<Self>, Fault> {
        let Some(head) = bytes.first_chunk::<8>() else {
            return Ok(None);
        };
        let length = 4 + u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let header = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > 1 << 30 || length < 8 + header {
            return Err(unexpected("a wrong length"));
        }
        if head[4] != 0 {
            return Err(unexpected("an answer that is not JSON"));
        }
        Ok(bytes.get(..length).map(|frame| Self {
            header: &frame[8..8 + header],
            body: &frame[8 + header..],
            length,
        }))
    }

    /// The number behind a key with its colon, in quotes or not.
    fn number(&self, key: &[u8]) -> Option<i64> {
        let at = memmem::find(self.header, key)? + key.len();
        let digits = &self.header[at..];
        let digits = digits.strip_prefix(b"\"").unwrap_or(digits);
        let end = digits.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-'))?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    }

    fn code(&self) -> i64 {
        self.number(b"\"code\":").unwrap_or(-1)
    }

    fn opaque(&self) -> Option<i64> {
        self.number(b"\"opaque\":").filter(|opaque| *opaque >= 0)
    }

    fn is_response(&self) -> bool {
        self.number(b"\"flag\":").is_some_and(|flag| flag & 1 == 1)
    }

    fn remark(&self) -> String {
        let text = || {
            let header: serde_json::Value = serde_json::from_slice(self.header).ok()?;
            Some(header.get("remark")?.as_str()?.to_owned())
        };
        text().unwrap_or_default()
    }

    fn refused(&self, what: &str) -> Fault {
        Fault::Refused {
            what: what.to_owned(),
            why: format!("{} {}", self.code(), self.remark()),
        }
    }
}

/// Length, form and header length, for a header and a body of those lengths.
fn frame_head(header: usize, body: usize) -> Vec<u8> {
    let mut head = ((4 + header + body) as u32).to_be_bytes().to_vec();
    head.extend_from_slice(&(header as u32).to_be_bytes());
    head
}

/// One question, one answer.
fn ask(talk: &mut Talk, code: i32, fields: &[(&str, &str)]) -> Result<Vec<u8>, Fault> {
    let fields: serde_json::Map<_, _> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect();
    let header = serde_json::json!({
        "code": code, "extFields": fields, "flag": 0, "language": "JAVA", "opaque": code,
        "serializeTypeCurrentRPC": "JSON", "version": VERSION,
    });
    let header = header.to_string();
    let mut bytes = frame_head(header.len(), 0);
    bytes.extend_from_slice(header.as_bytes());
    talk.write(&bytes)?;
    answer(talk, i64::from(code))
}

fn answer(talk: &mut Talk, opaque: i64) -> Result<Vec<u8>, Fault> {
    loop {
        let bytes = talk.frame(|input| Ok(Frame::first(input)?.map(|frame| frame.length)))?;
        let frame = Frame::first(&bytes)?.expect("it is whole");
        if frame.is_response() && frame.opaque() == Some(opaque) {
            return Ok(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_is_found_with_and_without_quotes() {
        for body in [
            r#"{"brokerAddrTable":{"a":{"brokerAddrs":{0:"10.0.0.1:7",1:"10.0.0.2:7"},"brokerName":"a"}}}"#,
            r#"{"brokerAddrTable":{"a":{"brokerAddrs":{"1":"10.0.0.2:7","0":"10.0.0.1:7"},"brokerName":"a"}}}"#,
        ] {
            assert_eq!(master(body.as_bytes()).as_deref(), Some("10.0.0.1:7"));
        }
        assert_eq!(master(b"{}"), None);
    }
}
