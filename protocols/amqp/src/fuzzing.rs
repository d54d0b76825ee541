//! Bodies of fuzz targets. They also run under `cargo test`, over seeded mutations of valid frames.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{
    Delivery, Event, Fate, Notice, Outcome, Peer, Publish, Reject, RequestId, Stored, SubscriptionId,
};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Exchange, ExchangeKind, Got, HashOn, QueueState, Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Order, Outbox, Session as _};

use crate::codec::content::Properties;
use crate::codec::{ContentHeader, FRAME_METHOD, FrameHeader, LongStr, Method, PROTOCOL_HEADER, ShortStr, Table};
use crate::mapping::inbound::meaning;
use crate::{Config, Session};

/// Any octets, as a frame's payload and as a peer's input.
///
/// # Panics
/// When a decoder and its encoder disagree, or a session breaks one of its promises.
pub fn fuzz(data: &[u8]) {
    codec(data);
    drive(&opened(), data);
    drive(&[], data);
}

fn codec(data: &[u8]) {
    if let Ok(method) = Method::decode(data) {
        let mut again = BytesMut::new();
        method.encode_payload(&mut again);
        // Unused bits and the value of a true octet are not kept.
        let decoded = Method::decode(&again).expect("what was encoded decodes");
        assert_eq!(format!("{decoded:?}"), format!("{method:?}"));
    }
    if let Ok(properties) = Properties::decode(data) {
        let mut again = BytesMut::new();
        properties.encode(&mut again);
        assert_eq!(again[..], *data);
    }
    if let Ok(header) = ContentHeader::decode(data) {
        let mut again = BytesMut::new();
        header.encode(&mut again);
        assert_eq!(again[..], *data);
    }
    let _ = Table::new(data).check();
    let _ = meaning(data, b"guest", None, &mut Default::default());
}

/// What a client says, turn by turn, until it has a channel with a consumer.
pub fn opened() -> Vec<Vec<u8>> {
    let mut turns = vec![PROTOCOL_HEADER.to_vec()];
    let mut turn = |channel, method: &Method<'_>| {
        let mut out = BytesMut::new();
        method.encode(channel, &mut out);
        turns.push(out.to_vec());
    };
    let login = [
        Method::ConnectionStartOk {
            client_properties: Table::default(),
            mechanism: ShortStr(b"PLAIN"),
            response: LongStr(b"\0guest\0guest"),
            locale: ShortStr(b"en_US"),
        },
        Method::ConnectionTuneOk {
            channel_max: 10,
            frame_max: 4096,
            heartbeat: 1,
        },
        Method::ConnectionOpen {
            virtual_host: ShortStr(b"/"),
            capabilities: ShortStr(b""),
            insist: false,
        },
    ];
    login.iter().for_each(|method| turn(0, method));
    let channel = [
        Method::ChannelOpen {
            out_of_band: ShortStr(b""),
        },
        Method::ConfirmSelect { no_wait: false },
        Method::BasicConsume {
            ticket: 0,
            queue: ShortStr(b"q"),
            consumer_tag: ShortStr(b""),
            no_local: false,
            no_ack: false,
            exclusive: false,
            no_wait: false,
            arguments: Table::default(),
        },
    ];
    channel.iter().for_each(|method| turn(1, method));
    turns
}

/// Feeds a session in pieces, plays a core that answers everything, and checks what it says.
fn drive(turns: &[Vec<u8>], input: &[u8]) {
    let salt = input.len();
    let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
    let peer = Peer {
        remote: host,
        local: host,
    };
    let mut now = Now::default();
    let mut session = Session::new(Arc::new(Config::default()), peer, salt as u64, now);
    let mut out = Outbox::new();
    let mut core = Core::default();
    let mut buffer = BytesMut::new();
    let mut turns = turns.iter();
    let mut rest = input;
    let mut step = 1 + salt % 97;
    while !out.is_closing() {
        if let Some(turn) = turns.next() {
            buffer.extend_from_slice(turn);
        } else {
            let (piece, after) = rest.split_at(step.min(rest.len()));
            rest = after;
            step = 1 + (step * 31 + salt) % 251;
            buffer.extend_from_slice(piece);
        }
        session.handle_bytes(now, &mut buffer, &mut out);
        let mut events = core.carry_out(&mut out);
        if rest.is_empty() && events.is_empty() && turns.len() == 0 {
            break;
        }
        session.handle_events(now, &mut events, &mut out);
        now.mono = now.mono + Millis(7);
        if session.next_timeout().is_some_and(|due| due <= now.mono) {
            session.handle_timeout(now, &mut out);
        }
        check_output(&mut out);
    }
    session.handle_shutdown(now, &mut out);
    session.handle_eof(now, &mut out);
    check_output(&mut out);
    assert!(out.is_closing(), "a session ends with its peer");
}

/// Everything a session sends is whole frames, behind at most one protocol header.
fn check_output(out: &mut Outbox) {
    let mut sent = Vec::new();
    out.pieces(|piece| {
        sent.extend_from_slice(piece);
        true
    });
    out.advance(sent.len());
    let mut rest = sent.strip_prefix(&PROTOCOL_HEADER[..]).unwrap_or(&sent);
    while !rest.is_empty() {
        let header = FrameHeader::peek(rest).expect("a whole frame header");
        let (frame, after) = rest.split_at(header.frame_size());
        assert_eq!(frame.last(), Some(&crate::codec::FRAME_END));
        if header.kind == FRAME_METHOD {
            Method::decode(&frame[7..frame.len() - 1]).expect("our own methods are well-formed");
        }
        rest = after;
    }
}

/// A core that says yes or no by turns, delivers to every subscription, and forgets everything.
#[derive(Default)]
struct Core {
    turn: u64,
    sequence: u64,
}

impl Core {
    fn carry_out(&mut self, out: &mut Outbox) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(order) = out.next_order() {
            match order {
                Order::Publish(run) => run.iter().for_each(|publish| self.publish(publish, &mut events)),
                Order::Settle(run) => assert!(run.iter().all(|settlement| settlement.count > 0)),
                Order::Request(id, request) => self.request(id, *request, &mut events),
                Order::Cancel(_) => {}
            }
        }
        events
    }

    fn next(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn publish(&mut self, publish: &Publish, events: &mut Vec<Event>) {
        let fate = match self.next() % 7 {
            0 => Fate::Rejected(Reject::QueueFull),
            1 if publish.topic.len().is_multiple_of(5) => Fate::Rejected(Reject::NoExchange),
            _ => Fate::Stored(Stored {
                position: Position(0),
                queue_id: 0,
                queue_offset: 0,
                routes: 1,
                weak: false,
            }),
        };
        if publish.mandatory {
            events.push(Event::Returned {
                token: publish.token,
                message: message(publish),
            });
        }
        events.push(Event::Outcome(Outcome {
            first: publish.token,
            count: 1,
            fate,
        }));
    }

    fn request(&mut self, id: RequestId, request: Request, events: &mut Vec<Event>) {
        let turn = self.next();
        let subscribed = match &request {
            Request::Subscribe(subscribe) => Some(subscribe.subscription),
            _ => None,
        };
        let result = match request {
            Request::Login(_) => Ok(Reply::Done),
            _ if turn.is_multiple_of(13) => Err(Refusal::NotFound {
                what: "queue",
                name: Bytes::from_static(b"q"),
            }),
            Request::DeclareExchange(exchange) => Ok(Reply::Exchange(Box::new(exchange))),
            Request::FindExchange { name } => Ok(Reply::Exchange(Box::new(Exchange {
                name,
                kind: ExchangeKind::Headers,
                durable: true,
                auto_delete: false,
                internal: false,
                alternate: None,
                hash_on: HashOn::Key,
                dedup: None,
                arguments: Bytes::new(),
            }))),
            Request::DeclareQueue(queue) => Ok(Reply::Queue(Box::new(QueueState {
                queue,
                ready: turn,
                consumers: 0,
                created: turn.is_multiple_of(2),
            }))),
            Request::DeleteQueue { .. } | Request::PurgeQueue { .. } => Ok(Reply::Count(turn)),
            Request::Get { subscription, .. } => Ok(Reply::Got(Some(Box::new(Got {
                delivery: self.delivery(subscription),
                remaining: turn,
            })))),
            _ => Ok(Reply::Done),
        };
        events.push(Event::Reply { id, result });
        if let Some(subscription) = subscribed {
            events.push(Event::Delivery(self.delivery(subscription)));
            events.push(Event::Delivery(self.delivery(subscription)));
            if turn.is_multiple_of(3) {
                events.push(Event::Notice(Notice::SubscriptionEnded(subscription)));
            }
        }
    }

    fn delivery(&mut self, subscription: SubscriptionId) -> Delivery {
        self.sequence += 1;
        let publish = Publish {
            token: 0,
            entry: rocketbridge_core::message::Entry::Topic,
            topic: Bytes::from_static(b"t"),
            key: Bytes::from_static(b"k"),
            body: Bytes::from(vec![b'x'; (self.sequence as usize * 977) % 10_000]),
            attributes: Default::default(),
            format: rocketbridge_core::message::Format(9),
            origin: Bytes::new(),
            persistent: true,
            ..Publish::default()
        };
        Delivery {
            subscription,
            sequence: self.sequence,
            redelivered: false,
            attempts: 0,
            leased: true,
            recalled: false,
            note: 0,
            message: message(&publish),
        }
    }
}

fn message(publish: &Publish) -> Message {
    let host = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    Message::from_publish(publish, host, host, Millis(1))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;
    use crate::codec::table::put_value;
    use crate::codec::{FRAME_BODY, FRAME_END, FRAME_HEADER, TableWriter, Value, put_frame_header};

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_frame_header(&mut out, kind, 1, payload.len());
        out.put_slice(payload);
        out.put_u8(FRAME_END);
        out.to_vec()
    }

    /// Valid frames of every kind, for mutations to begin with.
    fn corpus() -> Vec<Vec<u8>> {
        let mut corpus = vec![opened().concat(), b"\x08\x00\x00\x00\x00\x00\x00\xce".to_vec()];
        let mut inner = BytesMut::new();
        put_value(&mut inner, Value::Int(1));
        let mut headers = TableWriter::default();
        headers
            .put(b"a", Value::LongStr(b"b"))
            .put(b"n", Value::Array(crate::codec::table::Array::new(&inner)));
        for (id, _) in Method::ALL {
            let mut payload = [id.class.to_be_bytes(), id.method.to_be_bytes()].concat();
            payload.extend_from_slice(&[0; 32]);
            let length = (4..payload.len()).find(|length| Method::decode(&payload[..*length]).is_ok());
            corpus.push(frame(
                FRAME_METHOD,
                &payload[..length.expect("every method has a form")],
            ));
        }
        let mut properties = BytesMut::new();
        Properties {
            content_type: Some(b"a/b"),
            headers: Some(headers.table()),
            delivery_mode: Some(2),
            ..Properties::default()
        }
        .encode(&mut properties);
        for body in [&b""[..], b"hello"] {
            let mut publish = BytesMut::new();
            Method::BasicPublish {
                ticket: 0,
                exchange: ShortStr(b"amq.topic"),
                routing_key: ShortStr(b"a.b"),
                mandatory: true,
                immediate: false,
            }
            .encode(1, &mut publish);
            let mut header = BytesMut::new();
            ContentHeader {
                class: 60,
                weight: 0,
                body_size: body.len() as u64,
                properties: &properties,
            }
            .encode(&mut header);
            let mut all = publish.to_vec();
            all.extend_from_slice(&frame(FRAME_HEADER, &header));
            all.extend_from_slice(&frame(FRAME_BODY, body));
            corpus.push(all);
            corpus.push(header.to_vec());
        }
        corpus.push(properties.to_vec());
        corpus
    }

    #[test]
    fn mutations_of_valid_frames_break_nothing() {
        let corpus = corpus();
        let mut seed = 0x5eed_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        for _ in 0..6000 {
            let mut data = corpus[random(corpus.len())].clone();
            for _ in 0..random(3) {
                data.extend_from_slice(&corpus[random(corpus.len())]);
            }
            for _ in 0..random(6) {
                let at = random(data.len().max(1));
                match random(4) {
                    0 => data[at] = random(256) as u8,
                    1 => data[at] ^= 1 << random(8),
                    2 => data.truncate(at),
                    _ => data.insert(at, [0, 1, 0xCE, 0xFF][random(4)]),
                }
                if data.is_empty() {
                    data.push(0);
                }
            }
            fuzz(&data);
        }
    }
}
