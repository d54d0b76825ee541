//! A session with everything around it under a test's hands.

#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_amqp::codec::{
    ContentHeader, FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD, FrameHeader, LongStr, Method, ShortStr, Table,
    put_frame_header,
};
use rocketbridge_amqp::{Config, Session};
use rocketbridge_core::boundary::{
    Delivery, Event, Fate, Notice, Outcome, Peer, Publish, RequestId, Settle, Settlement, Stored, SubscriptionId,
};
use rocketbridge_core::message::{Entry, Format, Message};
use rocketbridge_core::request::{Exchange, ExchangeKind, Got, HashOn, Queue, QueueState, Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Order, Outbox, Session as _};

pub const HEARTBEAT: &[u8] = b"\x08\x00\x00\x00\x00\x00\x00\xce";

pub struct Script {
    session: Session,
    pub out: Outbox,
    input: BytesMut,
    now: Now,
    requests: std::collections::VecDeque<(RequestId, Request)>,
    publishes: Vec<Publish>,
    settlements: Vec<Settlement>,
}

impl Script {
    pub fn new() -> Self {
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
        let peer = Peer {
            remote: host,
            local: host,
        };
        let now = Now::default();
        Self {
            session: Session::new(Arc::new(Config::default()), peer, 1, now),
            out: Outbox::new(),
            input: BytesMut::new(),
            now,
            requests: Default::default(),
            publishes: Vec::new(),
            settlements: Vec::new(),
        }
    }

    /// With a connection open.
    pub fn opened() -> Self {
        Self::opened_with(131_072, 0)
    }

    pub fn opened_with(frame_max: u32, heartbeat: u16) -> Self {
        let mut script = Self::new();
        script.login();
        script.method(0, &tune_ok(frame_max, heartbeat));
        script.open();
        script
    }

    pub fn login(&mut self) {
        self.login_with(Table::default());
    }

    pub fn login_with(&mut self, client_properties: Table<'_>) {
        self.bytes(b"AMQP\x00\x00\x09\x01");
        self.expect(&[(0, "connection.start")]);
        self.method(0, &start_ok(client_properties, b"PLAIN", b"\0guest\0guest"));
        let (id, request) = self.request();
        assert!(matches!(request, Request::Login(_)), "{request:?}");
        self.reply(id, Ok(Reply::Done));
        self.expect(&[(0, "connection.tune")]);
    }

    pub fn open(&mut self) {
        self.method(
            0,
            &Method::ConnectionOpen {
                virtual_host: ShortStr(b"/"),
                capabilities: ShortStr(b""),
                insist: false,
            },
        );
        self.expect(&[(0, "connection.open-ok")]);
    }

    #[track_caller]
    pub fn open_channel(&mut self, number: u16) {
        self.method(number, &channel_open());
        self.expect(&[(number, "channel.open-ok")]);
    }

    pub fn confirm_select(&mut self, number: u16) {
        self.method(number, &Method::ConfirmSelect { no_wait: false });
        self.expect(&[(number, "confirm.select-ok")]);
    }

    pub fn consume(&mut self, number: u16, queue: &[u8], tag: &[u8]) -> SubscriptionId {
        self.method(number, &consume(queue, tag, false));
        let (id, request) = self.request();
        let Request::Subscribe(subscribe) = request else {
            panic!("{request:?}")
        };
        self.reply(id, Ok(Reply::Done));
        self.expect(&[(number, "basic.consume-ok")]);
        subscribe.subscription
    }

    // --- in ------------------------------------------------------------------------------------

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.session.handle_bytes(self.now, &mut self.input, &mut self.out);
    }

    pub fn method(&mut self, channel: u16, method: &Method<'_>) {
        self.bytes(&method_frame(channel, method));
    }

    pub fn publish(&mut self, channel: u16, exchange: &[u8], routing_key: &[u8], properties: &[u8], body: &[u8]) {
        let mut all = method_frame(channel, &publish_method(exchange, routing_key));
        all.extend(header_frame(channel, 60, body.len() as u64, properties));
        if !body.is_empty() {
            all.extend(body_frame(channel, body));
        }
        self.bytes(&all);
    }

    /// Core knows the exchange that is published to.
    pub fn meet(&mut self, name: &'static str) {
        let (id, request) = self.request();
        assert!(
            matches!(&request, Request::FindExchange { name: asked } if asked == name),
            "{request:?}"
        );
        self.reply(id, Ok(exchange(name, ExchangeKind::Fanout)));
    }

    pub fn events(&mut self, mut events: Vec<Event>) {
        self.session.handle_events(self.now, &mut events, &mut self.out);
        assert!(events.is_empty());
    }

    pub fn reply(&mut self, id: RequestId, result: Result<Reply, Refusal>) {
        self.events(vec![reply(id, result)]);
    }

    pub fn outcome(&mut self, first: u64, count: u32, fate: Fate) {
        self.events(vec![outcome(first, count, fate)]);
    }

    pub fn deliver(&mut self, subscription: SubscriptionId, sequence: u64, leased: bool) {
        self.events(vec![delivery(subscription, sequence, leased)]);
    }

    /// Lets time pass, with every timeout at its time.
    pub fn pass(&mut self, span: Millis) {
        let end = self.now.mono + span;
        while let Some(due) = self.session.next_timeout().filter(|due| *due <= end) {
            self.now.mono = due.max(self.now.mono);
            self.session.handle_timeout(self.now, &mut self.out);
            assert!(
                self.out.is_closing() || self.session.next_timeout().is_none_or(|next| next > self.now.mono),
                "a timeout that was handled is due again at once"
            );
        }
        self.now.mono = end;
    }

    pub fn shutdown(&mut self) {
        self.session.handle_shutdown(self.now, &mut self.out);
    }

    pub fn session_timeout(&self) -> Option<Millis> {
        self.session.next_timeout()
    }

    // --- out -----------------------------------------------------------------------------------

    fn sort_orders(&mut self) {
        while let Some(order) = self.out.next_order() {
            match order {
                Order::Publish(run) => self.publishes.extend(run),
                Order::Settle(run) => self.settlements.extend(run),
                Order::Request(id, request) => self.requests.push_back((id, *request)),
                Order::Cancel(id) => panic!("nothing is ever held: {id:?}"),
            }
        }
    }

    #[track_caller]
    pub fn request(&mut self) -> (RequestId, Request) {
        self.sort_orders();
        self.requests.pop_front().expect("a request")
    }

    pub fn published(&mut self) -> Vec<Publish> {
        self.sort_orders();
        std::mem::take(&mut self.publishes)
    }

    pub fn settled(&mut self) -> Vec<Settlement> {
        self.sort_orders();
        std::mem::take(&mut self.settlements)
    }

    /// Takes what was sent.
    pub fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        self.out.pieces(|piece| {
            sent.extend_from_slice(piece);
            true
        });
        self.out.advance(sent.len());
        sent
    }

    #[track_caller]
    pub fn expect(&mut self, expected: &[(u16, &str)]) {
        let sent = self.sent();
        let frames = frames(&sent);
        let names: Vec<_> = frames.iter().map(|frame| (frame.channel, frame.name())).collect();
        assert_eq!(names, expected);
    }

    #[track_caller]
    pub fn expect_connection_close(&mut self, code: u16, text: &str) {
        let sent = self.sent();
        let frames = frames(&sent);
        let Some(Method::ConnectionClose {
            reply_code, reply_text, ..
        }) = frames.last().map(Frame::method)
        else {
            panic!("{frames:?}")
        };
        assert_eq!((reply_code, &*String::from_utf8_lossy(reply_text.0)), (code, text));
    }

    #[track_caller]
    pub fn expect_channel_close(&mut self, channel: u16, code: u16, text: &str, blamed: (u16, u16)) {
        let sent = self.sent();
        let frames = frames(&sent);
        let [frame] = &frames[..] else { panic!("{frames:?}") };
        let Method::ChannelClose {
            reply_code,
            reply_text,
            class_id,
            method_id,
        } = frame.method()
        else {
            panic!("{frames:?}")
        };
        assert_eq!(
            (
                frame.channel,
                reply_code,
                &*String::from_utf8_lossy(reply_text.0),
                (class_id, method_id)
            ),
            (channel, code, text, blamed)
        );
    }

    /// The text of a channel.close, if that is what was sent.
    pub fn sent_close_text(&mut self) -> Option<String> {
        let sent = self.sent();
        match frames(&sent)[0].method() {
            Method::ChannelClose { reply_text, .. } => Some(String::from_utf8_lossy(reply_text.0).into_owned()),
            _ => None,
        }
    }

    /// The code of the connection.close that was sent.
    #[track_caller]
    pub fn close_code(&mut self) -> u16 {
        let sent = self.sent();
        let frames = frames(&sent);
        match frames.last().map(Frame::method) {
            Some(Method::ConnectionClose { reply_code, .. }) => reply_code,
            _ => panic!("{frames:?}"),
        }
    }

    /// Confirms that were sent: `1 ack 3*` on channel 1, up to tag 3.
    pub fn confirms(&mut self) -> Vec<String> {
        let sent = self.sent();
        let of = |frame: &Frame<'_>| {
            let star = |multiple| if multiple { "*" } else { "" };
            match frame.method() {
                Method::BasicAck { delivery_tag, multiple } => {
                    format!("{} ack {delivery_tag}{}", frame.channel, star(multiple))
                }
                Method::BasicNack {
                    delivery_tag, multiple, ..
                } => format!("{} nack {delivery_tag}{}", frame.channel, star(multiple)),
                other => panic!("{other:?}"),
            }
        };
        frames(&sent).iter().map(of).collect()
    }
}

// --- frames ------------------------------------------------------------------------------------------

#[derive(Debug)]
pub struct Frame<'a> {
    pub kind: u8,
    pub channel: u16,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    #[track_caller]
    pub fn method(&self) -> Method<'a> {
        assert_eq!(self.kind, FRAME_METHOD);
        Method::decode(self.payload).expect("our methods are well-formed")
    }

    pub fn name(&self) -> &'static str {
        match self.kind {
            FRAME_METHOD => self.method().name(),
            FRAME_HEADER => "header",
            FRAME_BODY => "body",
            _ => "heartbeat",
        }
    }
}

pub fn frames(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = FrameHeader::peek(bytes).expect("a whole header");
        let (frame, rest) = bytes.split_at(header.frame_size());
        assert_eq!(frame.last(), Some(&FRAME_END));
        frames.push(Frame {
            kind: header.kind,
            channel: header.channel,
            payload: &frame[7..frame.len() - 1],
        });
        bytes = rest;
    }
    frames
}

pub fn method_frame(channel: u16, method: &Method<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    method.encode(channel, &mut out);
    out.to_vec()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_frame_header(&mut out, kind, channel, payload.len());
    out.put_slice(payload);
    out.put_u8(FRAME_END);
    out.to_vec()
}

pub fn header_frame(channel: u16, class: u16, body_size: u64, properties: &[u8]) -> Vec<u8> {
    let mut payload = BytesMut::new();
    ContentHeader {
        class,
        weight: 0,
        body_size,
        properties,
    }
    .encode(&mut payload);
    frame(FRAME_HEADER, channel, &payload)
}

pub fn body_frame(channel: u16, body: &[u8]) -> Vec<u8> {
    frame(FRAME_BODY, channel, body)
}

// --- methods -----------------------------------------------------------------------------------------

pub fn start_ok<'a>(client_properties: Table<'a>, mechanism: &'a [u8], response: &'a [u8]) -> Method<'a> {
    Method::ConnectionStartOk {
        client_properties,
        mechanism: ShortStr(mechanism),
        response: LongStr(response),
        locale: ShortStr(b"en_US"),
    }
}

pub fn tune_ok(frame_max: u32, heartbeat: u16) -> Method<'static> {
    Method::ConnectionTuneOk {
        channel_max: 2047,
        frame_max,
        heartbeat,
    }
}

pub fn channel_open() -> Method<'static> {
    Method::ChannelOpen {
        out_of_band: ShortStr(b""),
    }
}

pub fn channel_close() -> Method<'static> {
    Method::ChannelClose {
        reply_code: 200,
        reply_text: ShortStr(b""),
        class_id: 0,
        method_id: 0,
    }
}

pub fn qos(prefetch_count: u16) -> Method<'static> {
    Method::BasicQos {
        prefetch_size: 0,
        prefetch_count,
        global: false,
    }
}

pub fn ack(delivery_tag: u64, multiple: bool) -> Method<'static> {
    Method::BasicAck { delivery_tag, multiple }
}

pub fn consume<'a>(queue: &'a [u8], tag: &'a [u8], no_ack: bool) -> Method<'a> {
    Method::BasicConsume {
        ticket: 0,
        queue: ShortStr(queue),
        consumer_tag: ShortStr(tag),
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: Table::default(),
    }
}

pub fn publish_method<'a>(exchange: &'a [u8], routing_key: &'a [u8]) -> Method<'a> {
    Method::BasicPublish {
        ticket: 0,
        exchange: ShortStr(exchange),
        routing_key: ShortStr(routing_key),
        mandatory: true,
        immediate: false,
    }
}

pub fn queue_declare<'a>(queue: &'a [u8], arguments: Table<'a>) -> Method<'a> {
    Method::QueueDeclare {
        ticket: 0,
        queue: ShortStr(queue),
        passive: false,
        durable: false,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments,
    }
}

pub fn queue_bind<'a>(queue: &'a [u8], exchange: &'a [u8], routing_key: &'a [u8], arguments: Table<'a>) -> Method<'a> {
    Method::QueueBind {
        ticket: 0,
        queue: ShortStr(queue),
        exchange: ShortStr(exchange),
        routing_key: ShortStr(routing_key),
        no_wait: false,
        arguments,
    }
}

pub fn exchange_declare<'a>(exchange: &'a [u8], kind: &'a [u8], passive: bool) -> Method<'a> {
    Method::ExchangeDeclare {
        ticket: 0,
        exchange: ShortStr(exchange),
        kind: ShortStr(kind),
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        no_wait: false,
        arguments: Table::default(),
    }
}

// --- what core says ------------------------------------------------------------------------------------

pub fn reply(id: RequestId, result: Result<Reply, Refusal>) -> Event {
    Event::Reply { id, result }
}

pub fn notice(notice: Notice) -> Event {
    Event::Notice(notice)
}

pub fn not_found(what: &'static str, name: &'static [u8]) -> Refusal {
    Refusal::NotFound {
        what,
        name: Bytes::from_static(name),
    }
}

pub fn stored(routes: u32) -> Fate {
    Fate::Stored(Stored {
        position: Position(0),
        queue_id: 0,
        queue_offset: 0,
        routes,
        weak: false,
    })
}

pub fn outcome(first: u64, count: u32, fate: Fate) -> Event {
    Event::Outcome(Outcome { first, count, fate })
}

pub fn settled(subscription: SubscriptionId, first: u64, count: u32, action: Settle) -> Settlement {
    Settlement {
        subscription,
        first,
        count,
        action,
    }
}

fn message(publish: &Publish) -> Message {
    let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    Message::from_publish(publish, host, host, Millis(1))
}

pub fn returned(publish: &Publish) -> Event {
    Event::Returned {
        token: publish.token,
        message: message(publish),
    }
}

pub fn delivery(subscription: SubscriptionId, sequence: u64, leased: bool) -> Event {
    delivery_of(subscription, sequence, leased, b"body")
}

pub fn delivery_of(subscription: SubscriptionId, sequence: u64, leased: bool, body: &[u8]) -> Event {
    Event::Delivery(handed_out(subscription, sequence, leased, body))
}

fn handed_out(subscription: SubscriptionId, sequence: u64, leased: bool, body: &[u8]) -> Delivery {
    let publish = Publish {
        token: 0,
        entry: Entry::Queue,
        topic: Bytes::from_static(b"q"),
        key: Bytes::new(),
        body: Bytes::copy_from_slice(body),
        attributes: Default::default(),
        format: Format(9),
        origin: Bytes::new(),
        persistent: false,
        ..Publish::default()
    };
    Delivery {
        subscription,
        sequence,
        redelivered: false,
        attempts: 0,
        leased,
        recalled: false,
        note: 0,
        message: message(&publish),
    }
}

pub fn got(subscription: SubscriptionId, sequence: u64, remaining: u64) -> Reply {
    Reply::Got(Some(Box::new(Got {
        delivery: handed_out(subscription, sequence, true, b"body"),
        remaining,
    })))
}

/// The reply to a declaration that makes the queue.
pub fn declared(request: &Request) -> Reply {
    state(request, true, |_| {})
}

/// The reply to a declaration of a queue that exists, a little different.
pub fn existing(request: &Request, change: fn(&mut Queue)) -> Reply {
    state(request, false, change)
}

fn state(request: &Request, created: bool, change: fn(&mut Queue)) -> Reply {
    let Request::DeclareQueue(queue) = request else {
        panic!("{request:?}")
    };
    let mut queue = queue.clone();
    change(&mut queue);
    Reply::Queue(Box::new(QueueState {
        queue,
        ready: 0,
        consumers: 0,
        created,
    }))
}

pub fn exchange(name: &'static str, kind: ExchangeKind) -> Reply {
    Reply::Exchange(Box::new(Exchange {
        name: Bytes::from_static(name.as_bytes()),
        kind,
        durable: true,
        auto_delete: false,
        internal: false,
        alternate: None,
        hash_on: HashOn::Key,
        dedup: None,
        arguments: Bytes::new(),
    }))
}
