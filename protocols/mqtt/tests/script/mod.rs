//! Plays the driver and core for one session, step by step.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::address::Pattern;
use rocketbridge_core::attributes::Attributes;
use rocketbridge_core::boundary::{Delivery, Event, Fate, Outcome, Publish, RequestId, Settle, Stored, SubscriptionId};
use rocketbridge_core::message::{Entry, Format, Message};
use rocketbridge_core::request::{Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_mqtt::{Config, MqttSession};
use rocketbridge_session::{Order, Outbox, Session};

/// Client `c`, clean, keep alive 10 s.
pub const CONNECT_4: &[u8] = b"\x10\x0D\0\x04MQTT\x04\x02\0\x0A\0\x01c";
/// The same in 5.0.
pub const CONNECT_5: &[u8] = b"\x10\x0E\0\x04MQTT\x05\x02\0\x0A\0\0\x01c";

/// When the connection begins, milliseconds.
pub const START: u64 = 50_000;

pub struct Script {
    session: MqttSession,
    out: Outbox,
    now: Now,
    /// What the session left in the input.
    input: BytesMut,
    requests: Vec<(RequestId, Request)>,
    recalls: Vec<(RequestId, Pattern)>,
    publishes: Vec<Publish>,
    settled: Vec<u64>,
    pub is_v5: bool,
}

impl Script {
    pub fn new(config: Config) -> Self {
        let now = Now {
            mono: Millis(START),
            wall: Millis(1_700_000_000_000),
        };
        Self {
            session: MqttSession::new(Arc::new(config), 7, now),
            out: Outbox::new(),
            now,
            input: BytesMut::new(),
            requests: Vec::new(),
            recalls: Vec::new(),
            publishes: Vec::new(),
            settled: Vec::new(),
            is_v5: false,
        }
    }

    pub fn connected(connect: &[u8]) -> Self {
        Self::connected_with(Config::default(), connect)
    }

    pub fn connected_with(config: Config, connect: &[u8]) -> Self {
        let mut script = Self::new(config);
        script.is_v5 = connect.starts_with(&[0x10, connect[1], 0, 4, b'M', b'Q', b'T', b'T', 5]);
        script.send(connect);
        script.accept(false);
        assert_eq!(script.sent().first(), Some(&0x20));
        script
    }

    /// Answers all that follows from CONNECT.
    pub fn accept(&mut self, present: bool) {
        self.reply_next(Ok(Reply::Done));
        let requests = self.requests();
        self.reply(requests[0].0, Ok(attached(present, &[])));
        self.reply(requests[1].0, Ok(Reply::Done));
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.session.handle_bytes(self.now, &mut self.input, &mut self.out);
    }

    pub fn event(&mut self, event: Event) {
        self.session.handle_events(self.now, &mut vec![event], &mut self.out);
    }

    pub fn reply(&mut self, id: RequestId, result: Result<Reply, Refusal>) {
        self.event(Event::Reply { id, result });
        let mut next = id.0 + 1;
        while self.recalls.iter().any(|(id, _)| id.0 == next) {
            let (id, result) = (RequestId(next), Ok(Reply::Done));
            self.event(Event::Reply { id, result });
            next += 1;
        }
    }

    /// Queues and patterns that retained messages were asked for; those requests are answered after the one
    /// before them.
    pub fn recalls(&mut self) -> Vec<Pattern> {
        self.take_orders();
        self.recalls.drain(..).map(|(_, pattern)| pattern).collect()
    }

    /// Answers the only request there is.
    pub fn reply_next(&mut self, result: Result<Reply, Refusal>) {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        self.reply(requests[0].0, result);
    }

    pub fn outcome(&mut self, first: u64, count: u32, fate: Fate) {
        self.event(Event::Outcome(Outcome { first, count, fate }));
    }

    pub fn deliver(&mut self, sequence: u64, leased: bool, publish: &Publish) {
        self.event(Event::Delivery(delivery(sequence, leased, publish)));
    }

    /// Subscribes and gets the SUBACK.
    pub fn subscribe(&mut self, filter: &[u8], options: u8) {
        self.subscribe_with(filter, options, 0);
    }

    pub fn subscribe_with(&mut self, filter: &[u8], options: u8, identifier: u8) {
        let mut body = b"\0\x01".to_vec();
        match (self.is_v5, identifier) {
            (false, _) => {}
            (true, 0) => body.push(0),
            (true, identifier) => body.extend([2, 0x0B, identifier]),
        }
        body.extend((filter.len() as u16).to_be_bytes());
        body.extend(filter);
        body.push(options);
        let head = [0x82, body.len() as u8];
        self.send(&[&head, &body[..]].concat());
        self.reply_next(Ok(Reply::Done));
        let sent = self.sent();
        assert_eq!(sent.first(), Some(&0x90));
        assert_eq!(sent.last(), Some(&(options & 3)));
    }

    pub fn advance(&mut self, millis: u64) {
        self.take_orders();
        self.advance_with_orders(millis);
    }

    /// Time passes in which nothing happens.
    pub fn wait(&mut self, millis: u64) {
        self.now.mono = self.now.mono + Millis(millis);
        self.now.wall = self.now.wall + Millis(millis);
    }

    /// Core has not taken the orders when the time comes.
    pub fn advance_with_orders(&mut self, millis: u64) {
        self.now.mono = self.now.mono + Millis(millis);
        if self.session.next_timeout().is_some_and(|at| at <= self.now.mono) {
            self.session.handle_timeout(self.now, &mut self.out);
        }
    }

    pub fn shut_down(&mut self) {
        self.session.handle_shutdown(self.now, &mut self.out);
    }

    pub fn end_of_input(&mut self) {
        self.session.handle_eof(self.now, &mut self.out);
    }

    pub fn next_timeout(&self) -> Option<Millis> {
        self.session.next_timeout()
    }

    pub fn wants_read(&self) -> bool {
        self.session.wants_read()
    }

    pub fn wants_events(&self) -> bool {
        self.session.wants_events()
    }

    pub fn is_closed(&self) -> bool {
        self.out.is_closing()
    }

    /// What was sent since the last call.
    pub fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        self.out.pieces(|piece| {
            sent.extend_from_slice(piece);
            true
        });
        self.out.advance(sent.len());
        sent
    }

    /// Where what is to be sent lies.
    pub fn lies_at(&self) -> Vec<*const u8> {
        let mut places = Vec::new();
        self.out.pieces(|piece| {
            places.push(piece.as_ptr());
            true
        });
        places
    }

    #[track_caller]
    pub fn expect_closed(&mut self, goodbye: &[u8]) {
        assert_eq!(self.sent(), goodbye);
        assert!(self.is_closed());
    }

    pub fn requests(&mut self) -> Vec<(RequestId, Request)> {
        self.take_orders();
        std::mem::take(&mut self.requests)
    }

    /// Requests that were looked at and are still to be answered.
    pub fn put_back(&mut self, requests: Vec<(RequestId, Request)>) {
        self.requests.splice(0..0, requests);
    }

    pub fn publishes(&mut self) -> Vec<Publish> {
        self.take_orders();
        std::mem::take(&mut self.publishes)
    }

    /// Sequences acknowledged since the last call.
    pub fn settled(&mut self) -> Vec<u64> {
        self.take_orders();
        std::mem::take(&mut self.settled)
    }

    fn take_orders(&mut self) {
        while let Some(order) = self.out.next_order() {
            match order {
                Order::Publish(run) => self.publishes.extend(run),
                Order::Settle(run) => {
                    for settlement in run {
                        assert_eq!(settlement.action, Settle::Ack);
                        assert_eq!(settlement.subscription, SubscriptionId(1));
                        let first = settlement.first + 1;
                        self.settled.extend(first..first + u64::from(settlement.count));
                    }
                }
                Order::Request(id, request) => match *request {
                    Request::Recall { queue, pattern } => {
                        assert!(queue.starts_with(b"\0"));
                        self.recalls.push((id, pattern));
                    }
                    request => self.requests.push((id, request)),
                },
                Order::Cancel(id) => panic!("nothing is held, {id:?} neither"),
            }
        }
    }
}

pub fn attached(present: bool, cookies: &[&'static [u8]]) -> Reply {
    Reply::Attached {
        present,
        cookies: cookies.iter().copied().map(Bytes::from_static).collect(),
        shares: Vec::new(),
    }
}

pub fn stored(routes: u32) -> Fate {
    Fate::Stored(placed(routes))
}

pub fn placed(routes: u32) -> Stored {
    Stored {
        position: Position(0),
        queue_id: 0,
        queue_offset: 0,
        routes,
        weak: false,
    }
}

/// A message `x` of another MQTT client.
pub fn publish(topic: &[u8], qos: u8) -> Publish {
    let mut origin = vec![4, qos];
    origin.extend((topic.len() as u16).to_be_bytes());
    origin.extend(topic);
    origin.extend(b"\0\x05other");
    Publish {
        token: 0,
        entry: Entry::Topic,
        topic: Bytes::from_static(b"unused"),
        key: Bytes::new(),
        body: Bytes::from_static(b"x"),
        attributes: Attributes::EMPTY,
        format: Format(2),
        origin: Bytes::from(origin),
        persistent: qos > 0,
        ..Publish::default()
    }
}

pub fn delivery(sequence: u64, leased: bool, publish: &Publish) -> Delivery {
    let host = SocketAddr::from(([127, 0, 0, 1], 1883));
    Delivery {
        subscription: SubscriptionId(1),
        // So that its packet identifier is the number that the test says.
        sequence: sequence - 1,
        redelivered: false,
        attempts: 0,
        leased,
        recalled: false,
        note: 0,
        message: Message::from_publish(publish, host, host, Millis(1_700_000_000_000)),
    }
}
