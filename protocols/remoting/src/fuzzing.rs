//! Bodies of fuzz targets: they must not panic. They also run under `cargo test`, on seeded mutations of
//! valid frames.

use std::sync::Arc;

use bytes::BytesMut;
use rocketbridge_core::boundary::{Event, Fate, Notice, Outcome, Peer, Reject, Stored};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{PullStatus, Pulled, Refusal, Reply, Request, Topic};
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Order, Outbox, Session as _};

use crate::codec::{Command, Limits, Writer, decode};
use crate::{Config, Session};

/// Decodes what there is, writes it back and reads that again, and lets a session handle it with a core
/// that answers one way or another.
pub fn fuzz(data: &[u8]) {
    codec(data);
    session(data);
}

fn codec(data: &[u8]) {
    let mut input = BytesMut::from(data);
    let mut command = Command::default();
    while let Ok(true) = decode(&mut input, Limits::default(), &mut command) {
        let remark = command.remark().map_or_else(String::new, |remark| remark.lossy());
        let mut out = BytesMut::new();
        let mut writer = Writer::new(
            &mut out,
            command.serialize_type(),
            command.opaque(),
            command.code(),
            command.flag(),
            &remark,
        );
        for (name, value) in command.fields() {
            writer.text(&name.lossy(), value.lossy().as_bytes());
        }
        writer.finish(command.body().len());
        out.extend_from_slice(command.body());
        let mut again = Command::default();
        if decode(&mut out, Limits::default(), &mut again) == Ok(true) {
            assert_eq!(again.opaque(), command.opaque());
            assert_eq!(again.flag(), command.flag());
            assert_eq!(again.body(), command.body());
        }
    }
}

fn session(data: &[u8]) {
    let peer = Peer {
        remote: ([127, 0, 0, 1], 9).into(),
        local: ([127, 0, 0, 1], 10911).into(),
    };
    let mut now = Now {
        mono: Millis(1),
        wall: Millis(1_700_000_000_000),
    };
    let config = Config {
        requests_max: 64,
        sends_max: 64,
        ..Config::default()
    };
    let mut session = Session::new(Arc::new(config), peer, now);
    let mut out = Outbox::new();
    let mut input = BytesMut::new();
    let mut chance = data
        .iter()
        .fold(7_u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    // In two pieces, so that frames are cut.
    let (first, rest) = data.split_at(data.len() / 2);
    for piece in [first, rest] {
        input.extend_from_slice(piece);
        session.handle_bytes(now, &mut input, &mut out);
        let mut events = Vec::new();
        core(&mut out, &mut chance, &mut events);
        session.handle_events(now, &mut events, &mut out);
        core(&mut out, &mut chance, &mut events);
        session.handle_events(now, &mut events, &mut out);
        if let Some(at) = session.next_timeout() {
            now.mono = at;
            session.handle_timeout(now, &mut out);
        }
        out.advance(out.queued_bytes());
    }
    session.handle_shutdown(now, &mut out);
    session.handle_eof(now, &mut out);
}

/// Plays core: answers some orders well, some badly, and leaves some alone.
fn core(out: &mut Outbox, chance: &mut u32, events: &mut Vec<Event>) {
    let mut roll = |sides: u32| {
        *chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*chance >> 16) % sides
    };
    let mut messages = Vec::new();
    while let Some(order) = out.next_order() {
        match order {
            Order::Publish(run) if roll(4) == 0 => return out.put_back(run),
            Order::Publish(run) => {
                for publish in run {
                    let host = ([127, 0, 0, 1], 10911).into();
                    messages.push(Message::from_publish(&publish, host, host, Millis(5)));
                    let fate = match roll(3) {
                        0 => Fate::Rejected(Reject::NoTopic),
                        1 => Fate::Unknown,
                        _ => Fate::Stored(Stored {
                            position: Default::default(),
                            queue_id: 1,
                            queue_offset: 2,
                            routes: 0,
                            weak: false,
                        }),
                    };
                    events.push(Event::Outcome(Outcome {
                        first: publish.token,
                        count: 1,
                        fate,
                    }));
                }
            }
            Order::Request(id, request) => {
                if let Request::JoinConsumers(join) = &*request {
                    events.push(Event::Notice(Notice::GroupChanged(join.group.clone())));
                }
                let result = match roll(8) {
                    0 => Err(Refusal::AccessRefused),
                    1 => Ok(Reply::Count(1)),
                    2 => Err(Refusal::Invalid("no".into())),
                    3 => continue,
                    _ => Ok(reply(*request, &mut messages)),
                };
                events.push(Event::Reply { id, result });
            }
            Order::Settle(_) | Order::Cancel(_) => {}
        }
    }
}

fn reply(request: Request, messages: &mut Vec<Message>) -> Reply {
    match request {
        Request::FindTopic { topic } | Request::DeclareTopic { topic, .. } => {
            Reply::Topic(Topic { name: topic, queues: 4 })
        }
        Request::Members { group } => Reply::Members(vec![group]),
        Request::CommittedOffset { .. } => Reply::Offset(None),
        Request::SearchOffset { .. } => Reply::Offset(Some(3)),
        Request::Bounds { .. } => Reply::Offsets(0..7),
        Request::LockQueues { queues, .. } => Reply::Locked(queues),
        Request::Pull(pull) => Reply::Pulled(Box::new(Pulled {
            status: PullStatus::Found,
            messages: std::mem::take(messages),
            next_offset: pull.offset,
            bounds: 0..7,
        })),
        Request::View { .. } if !messages.is_empty() => Reply::Message(messages.remove(0)),
        _ => Reply::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::SerializeType;

    /// Valid frames of all kinds of requests, in both forms.
    fn seeds() -> Vec<Vec<u8>> {
        let send = |flag| {
            let properties = "KEYS\u{1}k\u{2}TAGS\u{1}t\u{2}";
            vec![
                ("a", "g"),
                ("b", "T"),
                ("c", "TBW102"),
                ("d", "4"),
                ("e", flag),
                ("f", "0"),
                ("g", "1"),
                ("h", "0"),
                ("i", properties),
            ]
        };
        let pull = vec![
            ("consumerGroup", "g"),
            ("topic", "T"),
            ("queueId", "0"),
            ("queueOffset", "0"),
            ("maxMsgNums", "32"),
            ("sysFlag", "7"),
            ("commitOffset", "1"),
            ("suspendTimeoutMillis", "20"),
            ("subscription", "a||b"),
            ("subVersion", "0"),
        ];
        let queue = || pull[..3].to_vec();
        let mut batch = 27_u32.to_be_bytes().to_vec();
        batch.extend([0; 12]);
        batch.extend([0, 0, 0, 5]);
        batch.extend(b"12345\0\0");
        let heartbeat = br#"{"clientID":"c","producerDataSet":[{"groupName":"p"}],"consumerDataSet":[{"groupName":"g","subscriptionDataSet":[{"topic":"T","subString":"a"}]}]}"#;
        let locks =
            br#"{"consumerGroup":"g","clientId":"c","mqSet":[{"topic":"T","brokerName":"broker-a","queueId":0}]}"#;
        let requests = vec![
            (310, send("1"), &b"body"[..]),
            (320, send("1"), &batch),
            (320, send("-1"), &batch),
            (11, pull.clone(), b""),
            (14, queue(), b""),
            (15, pull.clone(), b""),
            (29, vec![("topic", "T"), ("queueId", "0"), ("timestamp", "5")], b""),
            (30, queue(), b""),
            (33, vec![("offset", "5")], b""),
            (34, vec![], heartbeat),
            (35, vec![("clientID", "c"), ("consumerGroup", "g")], b""),
            (38, vec![("consumerGroup", "g")], b""),
            (41, vec![], locks),
            (42, vec![], locks),
            (105, vec![("topic", "T")], b""),
            (106, vec![], b""),
        ];
        let mut frames = Vec::new();
        for (code, fields, body) in requests {
            for serialize_type in [SerializeType::Json, SerializeType::RocketMq] {
                let mut out = BytesMut::new();
                let mut writer = Writer::new(&mut out, serialize_type, 1, code, 0, "");
                for (name, value) in &fields {
                    writer.text(name, value.as_bytes());
                }
                writer.finish(body.len());
                out.extend_from_slice(body);
                frames.push(out.to_vec());
            }
        }
        frames
    }

    #[test]
    fn mutations_of_valid_frames_do_not_panic() {
        let seeds = seeds();
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut roll = |sides: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % sides
        };
        for _ in 0..6_000 {
            let mut data = Vec::new();
            for _ in 0..=roll(3) {
                data.extend_from_slice(&seeds[roll(seeds.len())]);
            }
            for _ in 0..roll(5) {
                let at = roll(data.len());
                match roll(4) {
                    0 => data[at] = roll(256) as u8,
                    1 => data[at] ^= 1 << roll(8),
                    2 => {
                        data.remove(at);
                    }
                    _ => data.insert(at, roll(256) as u8),
                }
            }
            fuzz(&data);
        }
    }
}
