//! The fuzz target's body: any bytes, through the decoder, the encoder and a session.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::attributes::Attributes;
use rocketbridge_core::boundary::{Delivery, Event, Fate, Notice, Outcome, Publish, Reject, Stored, SubscriptionId};
use rocketbridge_core::message::{Entry, Format, Message};
use rocketbridge_core::request::{Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Order, Outbox, Session};

use crate::codec::{Decoder, Packet, Side, Version};
use crate::{Config, MqttSession};

const PACKET_MAX: u32 = 64 * 1024;

/// Decodes `data` in every version and direction, encodes what came out and decodes that again; then
/// gives it to a session.
///
/// # Panics
/// When something is wrong with this crate.
pub fn fuzz(data: &[u8]) {
    for version in [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)] {
        for side in [Side::Server, Side::Client] {
            fuzz_codec(data, side, version);
        }
    }
    for version in [Version::V31, Version::V311, Version::V5] {
        fuzz_session(data, version);
    }
}

fn decoder(side: Side, version: Option<Version>) -> Decoder {
    match version {
        None => Decoder::new(side, PACKET_MAX),
        Some(version) => Decoder::with_version(side, version, PACKET_MAX),
    }
}

fn fuzz_codec(data: &[u8], side: Side, version: Option<Version>) {
    let mut decode = decoder(side, version);
    let mut input = BytesMut::from(data);
    while let Ok(Some(packet)) = decode.decode(&mut input) {
        let before = version;
        let version = decode.version().or(version).unwrap_or(Version::V311);
        let mut encoded = BytesMut::new();
        packet.encode(version, &mut encoded);
        let is_connect = matches!(packet, Packet::Connect(_));
        let mut again = decoder(side, if is_connect { before } else { Some(version) });
        assert_eq!(again.decode(&mut encoded), Ok(Some(packet)));
        assert!(encoded.is_empty());
    }
}

fn fuzz_session(data: &[u8], version: Version) {
    let Some((&control, data)) = data.split_first() else {
        return;
    };
    let now = Now {
        mono: Millis(1),
        wall: Millis(1_700_000_000_000),
    };
    let mut core = Core {
        control,
        out: Outbox::new(),
        events: Vec::new(),
        sequence: 0,
    };
    let mut session = MqttSession::new(Arc::new(Config::default()), 1, now);
    // Half of the time the data is all there is, else a client that is connected and has subscribed.
    if control & 1 == 0 {
        core.feed(&mut session, now, &opening(version));
    }
    let step = match control >> 5 {
        0 => data.len().max(1),
        step => usize::from(step),
    };
    for chunk in data.chunks(step) {
        core.feed(&mut session, now, chunk);
    }
    let foreign = core.foreign_delivery(data);
    core.events.push(foreign);
    core.events.push(Event::Notice(Notice::GroupChanged(Bytes::new())));
    core.turn(&mut session, now);
    if let Some(deadline) = session.next_timeout() {
        let late = Now {
            mono: deadline,
            wall: now.wall,
        };
        session.handle_timeout(late, &mut core.out);
    }
    session.handle_eof(now, &mut core.out);
}

fn opening(version: Version) -> Vec<u8> {
    let mut bytes = match version {
        Version::V31 => b"\x10\x0F\0\x06MQIsdp\x03\x02\0\x0A\0\x01c".to_vec(),
        Version::V311 => b"\x10\x0D\0\x04MQTT\x04\x02\0\x0A\0\x01c".to_vec(),
        Version::V5 => b"\x10\x0E\0\x04MQTT\x05\x02\0\x0A\0\0\x01c".to_vec(),
    };
    bytes.extend(match version {
        Version::V5 => &b"\x82\x09\0\x01\x02\x0B\x07\0\x01#\x01"[..],
        Version::V31 | Version::V311 => b"\x82\x06\0\x01\0\x01#\x01",
    });
    bytes
}

/// What core could answer. One control byte says how well things go.
struct Core {
    control: u8,
    out: Outbox,
    events: Vec<Event>,
    sequence: u64,
}

impl Core {
    fn feed(&mut self, session: &mut MqttSession, now: Now, bytes: &[u8]) {
        let mut input = BytesMut::from(bytes);
        session.handle_bytes(now, &mut input, &mut self.out);
        if !input.is_empty() {
            // What stays comes again with more behind it; here there is none.
            let before = input.len();
            session.handle_bytes(now, &mut input, &mut self.out);
            assert!(input.len() <= before);
        }
        self.turn(session, now);
    }

    fn turn(&mut self, session: &mut MqttSession, now: Now) {
        for _ in 0..64 {
            while let Some(order) = self.out.next_order() {
                self.carry_out(order);
            }
            if self.events.is_empty() {
                break;
            }
            let mut events = std::mem::take(&mut self.events);
            session.handle_events(now, &mut events, &mut self.out);
            let sent = self.out.queued_bytes();
            self.out.advance(sent);
        }
        self.events.clear();
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Publish(publishes) => {
                for publish in publishes {
                    self.publish(&publish);
                }
            }
            Order::Request(id, request) => {
                let result = match *request {
                    Request::Attach(attach) => Ok(Reply::Attached {
                        present: !attach.clean,
                        cookies: vec![Bytes::from_static(b"\x01\0\0\0\x05+/+"), attach.holder],
                        shares: Vec::new(),
                    }),
                    Request::Bind(_) if self.control & 2 != 0 => Err(Refusal::AccessRefused),
                    _ => Ok(Reply::Done),
                };
                self.events.push(Event::Reply { id, result });
            }
            Order::Settle(_) | Order::Cancel(_) => {}
        }
    }

    fn publish(&mut self, publish: &Publish) {
        let fate = match self.control >> 2 & 3 {
            0 => Fate::Rejected(Reject::QueueFull),
            routes => Fate::Stored(Stored {
                position: Position(0),
                queue_id: 0,
                queue_offset: 0,
                routes: u32::from(routes - 1),
                weak: false,
            }),
        };
        self.events.push(Event::Outcome(Outcome {
            first: publish.token,
            count: 1,
            fate,
        }));
        let delivery = self.delivery(publish);
        self.events.push(delivery);
    }

    fn delivery(&mut self, publish: &Publish) -> Event {
        let host = SocketAddr::from(([127, 0, 0, 1], 1883));
        self.sequence += 1;
        Event::Delivery(Delivery {
            subscription: SubscriptionId(1),
            sequence: self.sequence,
            redelivered: self.control & 16 != 0,
            attempts: 0,
            leased: publish.persistent,
            recalled: false,
            note: 0,
            message: Message::from_publish(publish, host, host, Millis(1)),
        })
    }

    /// A native message whose key and properties are the fuzzer's.
    fn foreign_delivery(&mut self, data: &[u8]) -> Event {
        let data = &data[..data.len().min(1000)];
        let (key, properties) = data.split_at(data.len() / 4);
        self.delivery(&Publish {
            token: 0,
            entry: Entry::Native,
            topic: Bytes::from_static(b"T|2Ex"),
            key: Bytes::copy_from_slice(key),
            body: Bytes::from_static(b"body"),
            attributes: Attributes::EMPTY,
            format: Format::NATIVE,
            origin: Bytes::copy_from_slice(properties),
            persistent: true,
            ..Publish::default()
        })
    }
}
