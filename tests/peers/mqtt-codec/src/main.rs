//! The MQTT decoder beside rmqtt-codec, on mutations of valid packets.
//!
//! Both must read the same packet, or agree that it is none. Where they differ, this one must be the stricter
//! one by a rule that is named here, or the other one by a defect that is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rmqtt_codec::{v3, v5};
use rocketbridge_mqtt::codec::properties::PropertyId;
use rocketbridge_mqtt::codec::{DecodeError, Decoder, Packet, Side, Version};
use tokio_util::codec::Decoder as _;

#[allow(dead_code)]
#[path = "../../../../protocols/mqtt/tests/vectors/mod.rs"]
mod vectors;

const SIZE_MAX: u32 = 1 << 20;

/// What only this decoder refuses. Each is a rule of the standard that the other one leaves to its user, or a
/// choice that the standard gives to a server.
const STRICTER: &[&str] = &[
    // [MQTT-3.3.2-2], [MQTT-4.7.1-1], 1.5.4: topics and strings.
    "topic",
    "string",
    "UTF-8",
    "name",
    "wildcard",
    "identifier",
    "filter",
    "shared",
    // Fixed header flags, reserved bits, packet identifier 0, DUP with QoS 0.
    "flags",
    "reserved",
    "DUP",
    "dup",
    // Properties: where they may stand, twice, out of range.
    "property",
    "properties",
    "twice",
    "value",
    "impossible length",
    // Lengths: bytes behind the end, a variable byte integer that is too long.
    "behind",
    "longer",
    "ends",
    "trailing",
    // Which packets a server gets at all, and when.
    "server",
    "client",
    "CONNECT",
    "authentication",
    "reason",
    // [MQTT-3.1.2-2]: 3 is the level of MQIsdp alone, 4 and 5 are those of MQTT.
    "protocol level",
];

fn ours(frame: &[u8], version: Version) -> Result<Option<Packet>, DecodeError> {
    let is_connect = frame.first().is_some_and(|first| first >> 4 == 1);
    let mut decoder = if is_connect {
        Decoder::new(Side::Server, SIZE_MAX)
    } else {
        Decoder::with_version(Side::Server, version, SIZE_MAX)
    };
    decoder.decode(&mut BytesMut::from(frame))
}

/// A packet of the other decoder, as text to be compared.
fn theirs(frame: &[u8], version: Version) -> Result<Option<String>, String> {
    let mut input = BytesMut::from(frame);
    match version {
        Version::V5 => v5::Codec::new(SIZE_MAX, SIZE_MAX)
            .decode(&mut input)
            .map(|found| found.map(|(packet, _)| format!("{packet:?}")))
            .map_err(|error| format!("{error:?}")),
        _ => v3::Codec::new(SIZE_MAX)
            .decode(&mut input)
            .map(|found| found.map(|(packet, _)| format!("{packet:?}")))
            .map_err(|error| format!("{error:?}")),
    }
}

/// What became of one frame.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    BothRefuse,
    BothWait,
    Same,
    /// By which rule this one is stricter.
    Stricter(String),
    /// By which error the other one is.
    Laxer(String),
    Wrong(String),
}

/// Errors of the other decoder that are its own: what it refuses is right.
fn is_their_defect(frame: &[u8], version: Version, packet: &Packet, error: &str) -> bool {
    // Before 3.1.1 the flags of the fixed header were not fixed: it judges 3.1 by the later rule.
    let is_old = version == Version::V31;
    if is_old && frame[0] & 0x0F != packet.packet_type().flags() && error == "UnsupportedPacketType" {
        return true;
    }
    // Nor was the lowest bit of the flags of CONNECT.
    if is_old && error == "ConnectReservedFlagSet" {
        return true;
    }
    // It takes a message expiry interval of 0 for a protocol error; the standard allows it.
    let has_zero_expiry = frame.windows(5).any(|part| part == [2, 0, 0, 0, 0]);
    // So is a topic alias of 0: it is answered with 0x94.
    if matches!(packet, Packet::Publish(publish) if publish.properties.number(PropertyId::TopicAlias) == Some(0)) {
        return true;
    }
    // It does not know the protocol levels that Mosquitto's bridges ask for first: 3 and 4 with the highest bit.
    if matches!(packet, Packet::Connect(connect) if connect.is_bridge) {
        return error == "UnsupportedProtocolLevel";
    }
    // An empty identifier is the session's business: 5.0 gives one, the others are told.
    if error == "InvalidClientId" {
        return true;
    }
    // It wants a reason code that a client may send to be one of its own list.
    has_zero_expiry || matches!(packet, Packet::Disconnect(_))
}

fn judge(frame: &[u8], version: Version) -> Verdict {
    let version = match ours(frame, version) {
        Ok(Some(Packet::Connect(connect))) => connect.version,
        _ => version,
    };
    match (ours(frame, version), theirs(frame, version)) {
        (Err(_), Err(_)) => Verdict::BothRefuse,
        (Ok(None), Ok(None)) => Verdict::BothWait,
        (Ok(Some(packet)), Ok(Some(wanted))) => {
            let mut encoded = BytesMut::new();
            packet.encode(version, &mut encoded);
            match theirs(&encoded, version) {
                Ok(Some(got)) if got == wanted => Verdict::Same,
                other => Verdict::Wrong(format!("read as {other:?} instead of {wanted}")),
            }
        }
        (Err(error), Ok(Some(_))) => {
            let text = error.to_string();
            match STRICTER.iter().find(|rule| text.contains(**rule)) {
                Some(_) => Verdict::Stricter(text),
                None => Verdict::Wrong(format!("refused for no known rule: {text}")),
            }
        }
        (Ok(Some(packet)), Err(error)) if is_their_defect(frame, version, &packet, &error) => Verdict::Laxer(error),
        (Ok(Some(packet)), Err(error)) => Verdict::Wrong(format!("taken as {packet:?}, refused as {error}")),
        (Ok(None), Err(error)) => Verdict::Laxer(format!("waits for the rest: {error}")),
        (Err(error), Ok(None)) => Verdict::Stricter(format!("does not wait for the rest: {error}")),
        (Ok(None), Ok(Some(found))) => Verdict::Wrong(format!("waits although there is {found}")),
        (Ok(Some(packet)), Ok(None)) => Verdict::Wrong(format!("does not wait: {packet:?}")),
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// One frame: a valid packet with some bytes changed and its length repaired, mostly.
fn mutate(random: &mut Random) -> Vec<u8> {
    let mut frame = vectors::ROWS[random.below(vectors::ROWS.len())].2.to_vec();
    for _ in 0..random.below(4) {
        if frame.len() < 3 {
            break;
        }
        let at = 2 + random.below(frame.len() - 2);
        match random.below(5) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = random.below(256) as u8,
            2 => frame.insert(at, random.below(256) as u8),
            3 => drop(frame.remove(at)),
            _ => frame[0] ^= 1 << random.below(8),
        }
    }
    if frame.len() >= 2 && frame.len() < 130 && random.below(20) > 0 {
        frame[1] = (frame.len() - 2) as u8;
    }
    frame
}

/// Judges frames until `done`; panics at the first that is wrong.
fn compare(seed: u64, mut done: impl FnMut(u64) -> bool) -> BTreeMap<Verdict, u64> {
    let mut random = Random(seed | 1);
    let (mut verdicts, mut count) = (BTreeMap::new(), 0);
    while !done(count) {
        let version = [Version::V31, Version::V311, Version::V5][random.below(3)];
        let frame = mutate(&mut random);
        let verdict = judge(&frame, version);
        if let Verdict::Wrong(why) = &verdict {
            panic!("{version:?} {frame:02x?}: {why}");
        }
        *verdicts.entry(verdict).or_insert(0) += 1;
        count += 1;
    }
    verdicts
}

fn main() {
    let number = |nth| std::env::args().nth(nth).and_then(|word| word.parse().ok());
    let (seconds, seed) = (number(1).unwrap_or(10), number(2).unwrap_or(0x5EED));
    let until = Instant::now() + Duration::from_secs(seconds);
    let verdicts = compare(seed, |count| count % 1024 == 0 && Instant::now() >= until);
    for (verdict, count) in &verdicts {
        println!("{count:>10} {verdict:?}");
    }
    println!("{:>10} frames", verdicts.values().sum::<u64>());
}

#[test]
fn both_decoders_read_the_same_packets() {
    let verdicts = compare(0x5EED_CAFE, |count| count == 200_000);
    assert!(verdicts[&Verdict::Same] > 10_000, "{verdicts:?}");
}
