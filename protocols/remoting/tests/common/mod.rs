//! A scripted client: commands in as bytes, answers out as commands, and core played by the test.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{Event, Fate, Outcome, Peer, Publish, RequestId, Stored};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_remoting::codec::{Command, Limits, SerializeType, Writer, decode};
use rocketbridge_remoting::{Config, Session};
use rocketbridge_session::{Order, Outbox, Session as _};

/// An answer, or a request of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub opaque: i32,
    pub code: i32,
    pub flag: i32,
    pub remark: String,
    pub fields: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub serialize_type: SerializeType,
}

impl Answer {
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// One order, with the runs taken apart.
#[derive(Debug)]
pub enum Ordered {
    Publish(Publish),
    Request(RequestId, Request),
    Cancel(RequestId),
}

pub struct Script {
    pub session: Session,
    pub out: Outbox,
    pub now: Now,
    input: BytesMut,
    opaque: i32,
}

pub fn peer() -> Peer {
    Peer {
        remote: "10.0.0.9:4567".parse().unwrap(),
        local: "10.0.0.1:9876".parse().unwrap(),
    }
}

pub fn store_host() -> SocketAddr {
    Config::default().store_host
}

impl Script {
    /// A connection that core let in.
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    pub fn with(config: Config) -> Self {
        let mut script = Self::before_login(config);
        script.send(46, &[], b"{}");
        let login = script.one_request();
        assert!(matches!(login.1, Request::Login(_)), "{login:?}");
        script.reply(login.0, Ok(Reply::Done));
        assert_eq!(script.answers().len(), 1);
        script
    }

    pub fn before_login(config: Config) -> Self {
        let now = Now {
            mono: Millis(1_000),
            wall: Millis(1_700_000_000_000),
        };
        Self {
            session: Session::new(Arc::new(config), peer(), now),
            out: Outbox::new(),
            now,
            input: BytesMut::new(),
            opaque: 0,
        }
    }

    /// Sends a request; gives its opaque.
    pub fn send(&mut self, code: i32, fields: &[(&str, &str)], body: &[u8]) -> i32 {
        self.send_as(SerializeType::Json, 0, code, fields, body)
    }

    pub fn send_as(
        &mut self,
        serialize_type: SerializeType,
        flag: i32,
        code: i32,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> i32 {
        self.opaque += 1;
        let mut frame = BytesMut::new();
        let mut writer = Writer::new(&mut frame, serialize_type, self.opaque, code, flag, "");
        for (name, value) in fields {
            writer.text(name, value.as_bytes());
        }
        writer.finish(body.len());
        frame.extend_from_slice(body);
        self.bytes(&frame);
        self.opaque
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.session.handle_bytes(self.now, &mut self.input, &mut self.out);
    }

    pub fn events(&mut self, mut events: Vec<Event>) {
        self.session.handle_events(self.now, &mut events, &mut self.out);
        assert!(events.is_empty(), "events left");
    }

    pub fn reply(&mut self, id: RequestId, result: Result<Reply, Refusal>) {
        self.events(vec![Event::Reply { id, result }]);
    }

    /// Time passes; timeouts that come due are handled at their time.
    pub fn pass(&mut self, span: u64) {
        let until = self.now.mono.0 + span;
        while let Some(at) = self.session.next_timeout().filter(|at| at.0 <= until) {
            let step = at.0.saturating_sub(self.now.mono.0);
            self.now.mono.0 += step;
            self.now.wall.0 += step;
            self.session.handle_timeout(self.now, &mut self.out);
            assert_ne!(self.session.next_timeout(), Some(at), "the timeout stays due");
        }
        self.now.wall.0 += until - self.now.mono.0;
        self.now.mono.0 = until;
    }

    /// What was written since the last call.
    pub fn answers(&mut self) -> Vec<Answer> {
        let mut bytes = BytesMut::new();
        self.out.pieces(|piece| {
            bytes.extend_from_slice(piece);
            true
        });
        self.out.advance(bytes.len());
        let mut command = Command::default();
        let mut answers = Vec::new();
        while decode(&mut bytes, Limits::default(), &mut command).unwrap() {
            answers.push(Answer {
                opaque: command.opaque(),
                code: command.code(),
                flag: command.flag(),
                remark: command.remark().map_or_else(String::new, |remark| remark.lossy()),
                fields: command
                    .fields()
                    .map(|(name, value)| (name.lossy(), value.lossy()))
                    .collect(),
                body: command.body().to_vec(),
                serialize_type: command.serialize_type(),
            });
            assert_eq!(command.version(), 479);
        }
        assert!(bytes.is_empty(), "half a frame");
        answers
    }

    pub fn answer(&mut self) -> Answer {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// What was ordered since the last call.
    pub fn orders(&mut self) -> Vec<Ordered> {
        let mut orders = Vec::new();
        while let Some(order) = self.out.next_order() {
            match order {
                Order::Publish(run) => orders.extend(run.into_iter().map(Ordered::Publish)),
                Order::Request(id, request) => orders.push(Ordered::Request(id, *request)),
                Order::Cancel(id) => orders.push(Ordered::Cancel(id)),
                Order::Settle(_) => panic!("native clients do not settle"),
            }
        }
        orders
    }

    pub fn requests(&mut self) -> Vec<(RequestId, Request)> {
        let requests = self.orders().into_iter().map(|order| match order {
            Ordered::Request(id, request) => (id, request),
            other => panic!("{other:?}"),
        });
        requests.collect()
    }

    pub fn one_request(&mut self) -> (RequestId, Request) {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    pub fn publishes(&mut self) -> Vec<Publish> {
        let publishes = self.orders().into_iter().map(|order| match order {
            Ordered::Publish(publish) => publish,
            other => panic!("{other:?}"),
        });
        publishes.collect()
    }

    pub fn one_publish(&mut self) -> Publish {
        let mut publishes = self.publishes();
        assert_eq!(publishes.len(), 1, "{publishes:?}");
        publishes.remove(0)
    }

    pub fn outcome(&mut self, token: u64, fate: Fate) {
        let outcome = Outcome {
            first: token,
            count: 1,
            fate,
        };
        self.events(vec![Event::Outcome(outcome)]);
    }
}

pub fn stored(position: u64, queue_id: u32, queue_offset: u64) -> Fate {
    Fate::Stored(Stored {
        position: Position(position),
        queue_id,
        queue_offset,
        routes: 1,
        weak: false,
    })
}

/// The message that a publish becomes.
pub fn message_of(publish: &Publish) -> Message {
    Message::from_publish(publish, peer().remote, store_host(), Millis(7))
}

/// The fields of a send with long names.
pub fn long_header(topic: &str) -> Vec<(&str, &str)> {
    vec![
        ("producerGroup", "DEFAULT_PRODUCER"),
        ("topic", topic),
        ("queueId", "1"),
        ("sysFlag", "0"),
        ("bornTimestamp", "1700000000000"),
        ("flag", "7"),
        ("reconsumeTimes", "0"),
        ("unitMode", "false"),
        ("maxReconsumeTimes", "0"),
        ("defaultTopic", "TBW102"),
        ("defaultTopicQueueNums", "4"),
        ("batch", "false"),
        ("properties", "KEYS\u{1}k\u{2}TAGS\u{1}t\u{2}UNIQ_KEY\u{1}ABC\u{2}"),
        ("bname", "rocketbridge"),
    ]
}

/// The fields of a send with one-letter names.
pub fn short_header(topic: &str) -> Vec<(&str, &str)> {
    vec![
        ("a", "g"),
        ("b", topic),
        ("c", "TBW102"),
        ("d", "4"),
        ("e", "1"),
        ("f", "0"),
        ("g", "1700000000000"),
        ("h", "7"),
        ("i", "KEYS\u{1}k\u{2}TAGS\u{1}t\u{2}UNIQ_KEY\u{1}ABC\u{2}"),
        ("j", "0"),
        ("k", "false"),
        ("m", "false"),
        ("n", "rocketbridge"),
    ]
}

/// The fields with one of them changed, or added.
pub fn with<'a>(mut fields: Vec<(&'a str, &'a str)>, name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    fields.retain(|(field, _)| *field != name);
    fields.push((name, value));
    fields
}

/// One message of a batch body.
pub fn batch_message(flag: i32, body: &[u8], properties: &[u8]) -> Vec<u8> {
    let total = 22 + body.len() + properties.len();
    [
        &(total as u32).to_be_bytes()[..],
        &[0; 8],
        &flag.to_be_bytes(),
        &(body.len() as u32).to_be_bytes(),
        body,
        &(properties.len() as u16).to_be_bytes(),
        properties,
    ]
    .concat()
}

pub fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}
