//! The fuzz target's body: any bytes, in any pieces, through the decoder, the encoder and a session.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{
    Delivery, Event, Fate, Notice, Outcome, Peer, Publish, Reject, Stored, SubscriptionId,
};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Exchange, ExchangeKind, HashOn, QueueState, Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Order, Outbox, Session as _};

use crate::codec::{Decoder, Frame, Limits, Refused, Version};
use crate::{Config, Session};

/// Decodes `data` in every version and in different pieces, encodes what came out and decodes that again;
/// then gives it to a session.
///
/// # Panics
/// When something is wrong with this crate.
pub fn fuzz(data: &[u8]) {
    let Some((&control, data)) = data.split_first() else {
        return;
    };
    for version in [None, Some(Version::V10), Some(Version::V11), Some(Version::V12)] {
        fuzz_codec(data, version, 1 + usize::from(control & 7));
    }
    for version in Version::ALL {
        fuzz_session(data, control, version);
    }
}

/// A frame as it can be compared: command, headers, body.
type Plain = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>);

fn plain(frame: &Frame) -> Plain {
    let headers = frame.all_headers().map(|(name, value)| (name.to_vec(), value.to_vec()));
    (frame.command_text().to_vec(), headers.collect(), frame.body.to_vec())
}

/// All frames of `data` handed over in pieces, and how it ended.
fn decode(data: &[u8], version: Option<Version>, piece: usize) -> (Vec<Frame>, Option<Refused>) {
    let limits = Limits {
        head: 4096,
        header_line: 1024,
        body: 8192,
        ..Config::default().limits()
    };
    let mut decoder = Decoder::new(limits);
    if let Some(version) = version {
        decoder.set_version(version);
    }
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in data.chunks(piece.max(1)) {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(refused) => return (frames, Some(refused)),
            }
        }
    }
    (frames, None)
}

fn fuzz_codec(data: &[u8], version: Option<Version>, piece: usize) {
    let (whole, end) = decode(data, version, data.len());
    let (pieces, other_end) = decode(data, version, piece);
    assert_eq!(
        whole.iter().map(plain).collect::<Vec<_>>(),
        pieces.iter().map(plain).collect::<Vec<_>>()
    );
    assert_eq!(end.map(|refused| refused.fault), other_end.map(|refused| refused.fault));
    for frame in &whole {
        let mut encoded = BytesMut::new();
        frame.encode(version.unwrap_or(Version::V12), &mut encoded);
        if version.is_some() {
            let (again, refused) = decode(&encoded, version, encoded.len());
            assert_eq!(refused.map(|refused| refused.fault), None, "{}", encoded.escape_ascii());
            assert_eq!(again.iter().map(plain).collect::<Vec<_>>(), [plain(frame)]);
        }
    }
}

fn fuzz_session(data: &[u8], control: u8, version: Version) {
    let now = Now {
        mono: Millis(1),
        wall: Millis(1_700_000_000_000),
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let peer = Peer {
        remote: address,
        local: address,
    };
    let mut core = Core {
        control,
        out: Outbox::new(),
        input: BytesMut::new(),
        events: Vec::new(),
        subscriptions: Vec::new(),
        sequence: 0,
    };
    let mut session = Session::new(Arc::new(Config::default()), peer, 1, now);
    // Half of the time the data is all there is, else a client that is connected and has subscribed.
    if control & 8 == 0 {
        let connect = format!("CONNECT\naccept-version:{}\nheart-beat:1,1\n\n\0", version.name());
        core.feed(&mut session, now, connect.as_bytes());
        core.feed(
            &mut session,
            now,
            b"SUBSCRIBE\nid:1\ndestination:/queue/a\nack:client\n\n\0",
        );
        core.feed(
            &mut session,
            now,
            b"SUBSCRIBE\nid:2\ndestination:/exchange/e/#\n\n\0BEGIN\ntransaction:t\n\n\0",
        );
    }
    let step = match control >> 5 {
        0 => data.len().max(1),
        step => usize::from(step) * 7,
    };
    for piece in data.chunks(step) {
        core.feed(&mut session, now, piece);
    }
    let later = Now {
        mono: Millis(100_000),
        wall: now.wall,
    };
    session.handle_timeout(later, &mut core.out);
    core.carry_out(&mut session, later);
    match control & 3 {
        0 => session.handle_shutdown(later, &mut core.out),
        _ => session.handle_eof(later, &mut core.out),
    }
    core.carry_out(&mut session, later);
}

/// Answers like core, well or badly as `control` says.
struct Core {
    control: u8,
    out: Outbox,
    /// What the session left.
    input: BytesMut,
    events: Vec<Event>,
    subscriptions: Vec<SubscriptionId>,
    sequence: u64,
}

impl Core {
    fn feed(&mut self, session: &mut Session, now: Now, bytes: &[u8]) {
        // As the driver does: what a session leaves comes again with more behind it.
        self.input.extend_from_slice(bytes);
        loop {
            let before = self.input.len();
            session.handle_bytes(now, &mut self.input, &mut self.out);
            self.carry_out(session, now);
            if self.input.is_empty() || self.input.len() == before {
                return;
            }
        }
    }

    fn carry_out(&mut self, session: &mut Session, now: Now) {
        for _ in 0..16 {
            while let Some(order) = self.out.next_order() {
                self.answer(order);
            }
            if self.events.is_empty() {
                break;
            }
            session.handle_events(now, &mut self.events, &mut self.out);
        }
        let queued = self.out.queued_bytes();
        self.out.advance(queued);
    }

    fn answer(&mut self, order: Order) {
        match order {
            Order::Publish(run) => {
                for publish in run {
                    self.deliver(&publish);
                    let fate = if self.control & 0x30 == 0x30 {
                        Fate::Rejected(Reject::QueueFull)
                    } else {
                        stored()
                    };
                    self.events.push(Event::Outcome(Outcome {
                        first: publish.token,
                        count: 1,
                        fate,
                    }));
                }
            }
            Order::Request(id, request) => {
                let result = self.reply(*request);
                self.events.push(Event::Reply { id, result });
            }
            Order::Settle(_) | Order::Cancel(_) => {}
        }
    }

    fn deliver(&mut self, publish: &Publish) {
        let host = SocketAddr::from(([127, 0, 0, 1], 1));
        let message = Message::from_publish(publish, host, host, Millis(1));
        for subscription in self.subscriptions.clone() {
            self.sequence += 1;
            self.events.push(Event::Delivery(Delivery {
                subscription,
                sequence: self.sequence,
                redelivered: self.control & 1 == 0,
                attempts: 0,
                note: 0,
                recalled: false,
                leased: self.control & 2 == 0,
                message: message.clone(),
            }));
        }
        if self.sequence > 40
            && let Some(ended) = self.subscriptions.pop()
        {
            self.events.push(Event::Notice(Notice::SubscriptionEnded(ended)));
        }
    }

    fn reply(&mut self, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::DeclareQueue(queue) => Ok(Reply::Queue(Box::new(QueueState {
                queue,
                ready: 0,
                consumers: 0,
                created: self.control & 4 == 0,
            }))),
            Request::FindExchange { name } if name.len() < 3 => Ok(Reply::Exchange(Box::new(Exchange {
                name,
                kind: ExchangeKind::Pattern,
                durable: true,
                auto_delete: false,
                internal: false,
                alternate: None,
                hash_on: HashOn::Key,
                dedup: None,
                arguments: Bytes::new(),
            }))),
            Request::FindExchange { name } => Err(Refusal::NotFound { what: "exchange", name }),
            Request::Subscribe(subscribe) => {
                self.subscriptions.push(subscribe.subscription);
                Ok(Reply::Done)
            }
            Request::DeleteQueue { .. } => Ok(Reply::Count(1)),
            Request::Commit(_) if self.control & 0x10 != 0 => Err(Refusal::Invalid("too much".to_owned())),
            _ => Ok(Reply::Done),
        }
    }
}

fn stored() -> Fate {
    Fate::Stored(Stored {
        position: Position(1),
        queue_id: 0,
        queue_offset: 0,
        routes: 1,
        weak: false,
    })
}
