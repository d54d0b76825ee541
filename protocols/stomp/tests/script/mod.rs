//! Plays the driver and core for one session, step by step.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{
    Delivery, Event, Fate, Outcome, Peer, Publish, RequestId, Settle, Stored, SubscriptionId,
};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Exchange, ExchangeKind, HashOn, Queue, QueueState, Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Order, Outbox, Session as _};
use rocketbridge_stomp::{Config, Session};

/// When the connection begins, milliseconds.
pub const START: u64 = 50_000;

/// The session's name, which its seed makes.
pub const SESSION: &str = "session-0000000000000007";

pub struct Script {
    session: Session,
    out: Outbox,
    now: Now,
    /// What the session left in the input.
    input: BytesMut,
    /// Requests that wait for an answer.
    asked: Vec<(RequestId, Request)>,
    /// What each request was, in words.
    pub requests: Vec<String>,
    pub publishes: Vec<Publish>,
    pub settled: Vec<(u32, u64, u32, Settle)>,
    /// Requests are answered well at once.
    pub answers: bool,
}

impl Script {
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    pub fn with(config: Config) -> Self {
        let now = Now {
            mono: Millis(START),
            wall: Millis(1_700_000_000_000),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let peer = Peer {
            remote: address,
            local: address,
        };
        Self {
            session: Session::new(Arc::new(config), peer, 7, now),
            out: Outbox::new(),
            now,
            input: BytesMut::new(),
            asked: Vec::new(),
            requests: Vec::new(),
            publishes: Vec::new(),
            settled: Vec::new(),
            answers: true,
        }
    }

    /// A client of that version that has logged in.
    pub fn connected(version: &str) -> Self {
        Self::connected_with(Config::default(), version)
    }

    pub fn connected_with(config: Config, version: &str) -> Self {
        let mut script = Self::with(config);
        script.send(&format!(
            "CONNECT\naccept-version:{version}\nlogin:guest\npasscode:guest\n\n\0"
        ));
        let sent = script.sent();
        assert!(sent.starts_with("CONNECTED\n"), "{sent}");
        script.requests.clear();
        script
    }

    pub fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.session.handle_bytes(self.now, &mut self.input, &mut self.out);
        self.carry_out();
    }

    pub fn event(&mut self, event: Event) {
        self.session.handle_events(self.now, &mut vec![event], &mut self.out);
        self.carry_out();
    }

    /// Answers the oldest request.
    pub fn reply(&mut self, result: Result<Reply, Refusal>) {
        let (id, _) = self.asked.remove(0);
        self.event(Event::Reply { id, result });
    }

    /// Refuses the oldest request.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.reply(Err(refusal));
    }

    /// Refuses the newest request.
    pub fn refuse_last(&mut self, refusal: Refusal) {
        let (id, _) = self.asked.pop().expect("something was asked");
        self.event(Event::Reply {
            id,
            result: Err(refusal),
        });
    }

    /// Answers everything well that was asked.
    pub fn answer_all(&mut self) {
        while !self.asked.is_empty() {
            let reply = well(&self.asked[0].1);
            self.reply(Ok(reply));
        }
    }

    pub fn outcome(&mut self, first: u64, count: u32, fate: Fate) {
        self.event(Event::Outcome(Outcome { first, count, fate }));
    }

    pub fn deliver(&mut self, subscription: u32, sequence: u64, leased: bool, publish: &Publish) {
        self.deliver_again(subscription, sequence, leased, false, publish);
    }

    pub fn deliver_again(
        &mut self,
        subscription: u32,
        sequence: u64,
        leased: bool,
        redelivered: bool,
        publish: &Publish,
    ) {
        let host = SocketAddr::from(([127, 0, 0, 1], 1));
        self.event(Event::Delivery(Delivery {
            subscription: SubscriptionId(subscription),
            sequence,
            redelivered,
            attempts: 0,
            note: 0,
            recalled: false,
            leased,
            message: Message::from_publish(publish, host, host, Millis(1)),
        }));
    }

    pub fn advance(&mut self, millis: u64) {
        self.now.mono = self.now.mono + Millis(millis);
        if self.session.next_timeout().is_some_and(|at| at <= self.now.mono) {
            self.session.handle_timeout(self.now, &mut self.out);
            self.carry_out();
        }
    }

    pub fn shut_down(&mut self) {
        self.session.handle_shutdown(self.now, &mut self.out);
        self.carry_out();
    }

    pub fn wants_read(&self) -> bool {
        self.session.wants_read()
    }

    pub fn is_closed(&self) -> bool {
        self.out.is_closing()
    }

    /// What was sent since the last call.
    pub fn sent(&mut self) -> String {
        let mut all = Vec::new();
        self.out.pieces(|piece| {
            all.extend_from_slice(piece);
            true
        });
        self.out.advance(all.len());
        String::from_utf8(all).expect("it is text")
    }

    /// The connection was closed with one ERROR frame; gives its `message` and the whole.
    pub fn error(&mut self) -> (String, String) {
        let sent = self.sent();
        assert!(self.is_closed(), "still open: {sent}");
        let at = sent.find("ERROR\n").unwrap_or_else(|| panic!("no ERROR: {sent}"));
        let error = &sent[at..];
        let message = error
            .lines()
            .find_map(|line| line.strip_prefix("message:"))
            .expect("a message");
        (message.to_owned(), error.to_owned())
    }

    fn carry_out(&mut self) {
        while let Some(order) = self.out.next_order() {
            match order {
                Order::Publish(run) => self.publishes.extend(run),
                Order::Settle(run) => self
                    .settled
                    .extend(run.iter().map(|s| (s.subscription.0, s.first, s.count, s.action))),
                Order::Request(id, request) => {
                    self.requests.push(words(&request));
                    self.asked.push((id, *request));
                }
                Order::Cancel(_) => {}
            }
        }
        if self.answers {
            self.answer_all();
        }
        // As the driver: what was left comes again once it may.
        if !self.input.is_empty() && self.session.wants_read() {
            let before = self.input.len();
            self.session.handle_bytes(self.now, &mut self.input, &mut self.out);
            if self.input.len() < before {
                self.carry_out();
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn words(request: &Request) -> String {
    match request {
        Request::DeclareQueue(queue) => {
            let flags = [
                (queue.durable, "durable"),
                (queue.exclusive, "exclusive"),
                (queue.auto_delete, "auto-delete"),
                (queue.addressable, "addressable"),
            ];
            let flags: Vec<_> = flags.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
            format!("declare {} {}", text(&queue.name), flags.join(" "))
        }
        Request::Subscribe(subscribe) => format!(
            "subscribe {} {:?} {:?}",
            text(&subscribe.queue),
            subscribe.acknowledge,
            subscribe.window
        ),
        Request::Bind(binding) => format!("bind {:?}", binding.source),
        Request::Unsubscribe { subscription } => format!("unsubscribe {}", subscription.0),
        Request::DeleteQueue { name, .. } => format!("delete {}", text(name)),
        Request::FindExchange { name } => format!("find {}", text(name)),
        Request::Commit(commit) => {
            let popped = commit.popped.iter();
            let popped: Vec<_> = popped
                .map(|part| format!("{:?} of {}", part.action, part.messages.len()))
                .collect();
            let counts = format!("commit {} {}", commit.publishes.len(), commit.settlements.len());
            format!("{counts} {}", popped.join(", ")).trim_end().to_owned()
        }
        Request::Login(_) => "login".to_owned(),
        other => format!("{other:?}"),
    }
}

fn well(request: &Request) -> Reply {
    match request {
        Request::DeclareQueue(queue) => declared(queue.clone(), true),
        Request::FindExchange { name } => Reply::Exchange(Box::new(Exchange {
            name: name.clone(),
            kind: ExchangeKind::Pattern,
            durable: true,
            auto_delete: false,
            internal: false,
            alternate: None,
            hash_on: HashOn::Key,
            dedup: None,
            arguments: Bytes::new(),
        })),
        Request::DeleteQueue { .. } => Reply::Count(0),
        _ => Reply::Done,
    }
}

pub fn declared(queue: Queue, created: bool) -> Reply {
    Reply::Queue(Box::new(QueueState {
        queue,
        ready: 0,
        consumers: 0,
        created,
    }))
}

pub fn stored() -> Fate {
    Fate::Stored(Stored {
        position: Position(1),
        queue_id: 0,
        queue_offset: 0,
        routes: 1,
        weak: false,
    })
}
