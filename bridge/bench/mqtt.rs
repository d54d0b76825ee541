//! The load's side of MQTT 3.1.1: raw packets.

use super::options::{Mode, Options};
use super::protocol::{Answers, Consume, Protocol, Sink, Told};
use super::template::{FILLER, Id, PACKET_IDS, QUEUE_DIGITS, Template, number_at, queue_digits};
use super::wire::{Fault, Talk, resolve};

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const DISCONNECT: u8 = 0xE0;

/// Long enough to send no PINGREQ in a run, and no broker refuses it as it may refuse 0.
const KEEP_ALIVE: u16 = 18 * 3600;

pub struct Mqtt {
    options: Options,
}

impl Mqtt {
    pub fn new(options: &Options) -> Self {
        Self {
            options: options.clone(),
        }
    }

    fn topic(&self, digits: &str) -> String {
        format!("rocketbridge-bench/{}/{digits}", self.options.name)
    }

    /// Whether consumers have sessions that wait for them.
    fn keeps_sessions(&self) -> bool {
        self.options.mode != Mode::Together
    }

    fn consumer_id(&self, index: u32) -> String {
        format!("rocketbridge-bench-{}-c{index}", self.options.name)
    }

    fn connect(&self, client_id: &str, clean: bool) -> Result<Talk, Fault> {
        let target = &self.options.target;
        let mut talk = Talk::connect(resolve(&target.address)?)?;
        let (user, password) = (!target.user.is_empty(), !target.password.is_empty());
        let flags = u8::from(user) << 7 | u8::from(password) << 6 | u8::from(clean) << 1;
        let mut body = b"\x00\x04MQTT\x04".to_vec();
        body.push(flags);
        body.extend_from_slice(&KEEP_ALIVE.to_be_bytes());
        append_text(&mut body, client_id);
        if user {
            append_text(&mut body, &target.user);
        }
        if password {
            append_text(&mut body, &target.password);
        }
        talk.write(&packet(CONNECT, &body))?;
        let answer = next_packet(&mut talk)?;
        match answer[..] {
            [CONNACK, 2, _, 0] => Ok(talk),
            [CONNACK, 2, _, code] => Err(Fault::Refused {
                what: "the connection".into(),
                why: match code {
                    1 => "it does not speak MQTT 3.1.1".into(),
                    2 => "the client identifier".into(),
                    3 => "it is not available".into(),
                    4 => "bad user name or password".into(),
                    5 => "not authorized (a user goes into the URL: mqtt://user:password@...)".into(),
                    other => format!("return code {other}"),
                },
            }),
            _ => Err(unexpected("something else than a CONNACK")),
        }
    }

    fn subscribe(&self, talk: &mut Talk) -> Result<(), Fault> {
        let mut body = vec![0, 1];
        let digits = if self.options.queues > 1 {
            "+".to_owned()
        } else {
            queue_digits(0)
        };
        append_text(&mut body, &self.topic(&digits));
        body.push(self.options.qos);
        talk.write(&packet(SUBSCRIBE, &body))?;
        loop {
            // A kept session's messages may come before.
            let answer = next_packet(talk)?;
            if answer[0] != SUBACK {
                continue;
            }
            return match answer.last() {
                Some(granted) if *granted == self.options.qos => Ok(()),
                Some(0x80) | None => Err(Fault::Refused {
                    what: "the subscription".into(),
                    why: "SUBACK with 0x80".into(),
                }),
                Some(granted) => Err(Fault::Refused {
                    what: format!("QoS {}", self.options.qos),
                    why: format!("it grants {granted}"),
                }),
            };
        }
    }
}

impl Protocol for Mqtt {
    fn prepare(&mut self) -> Result<(), Fault> {
        if !self.keeps_sessions() || self.options.mode == Mode::Drain {
            return Ok(());
        }
        for index in 0..self.options.consumers {
            let mut talk = self.connect(&self.consumer_id(index), false)?;
            self.subscribe(&mut talk)?;
            talk.write(&[DISCONNECT, 0])?;
        }
        Ok(())
    }

    fn template(&self) -> Template {
        let (qos, size) = (self.options.qos, self.options.size);
        let mut body = Vec::new();
        append_text(&mut body, &self.topic(&queue_digits(0)));
        let queue_end = body.len();
        if qos > 0 {
            body.extend_from_slice(&[0, 0]);
        }
        let payload_at = body.len();
        body.resize(payload_at + size, FILLER);
        let bytes = packet(PUBLISH | qos << 1, &body);
        let head = bytes.len() - body.len();
        let packet_id = Id::Packet { at: head + queue_end };
        Template {
            bytes,
            body_at: head + payload_at,
            queue_at: Some(head + queue_end - QUEUE_DIGITS),
            ids: if qos > 0 { vec![packet_id] } else { Vec::new() },
        }
    }

    fn publisher(&self, index: u32) -> Result<(Talk, Box<dyn Answers>), Fault> {
        let talk = self.connect(&format!("rocketbridge-bench-{}-p{index}", self.options.name), true)?;
        Ok((talk, Box::new(Handshakes)))
    }

    fn consumer(&self, index: u32) -> Result<(Talk, Box<dyn Consume>), Fault> {
        let kept = self.keeps_sessions();
        let mut talk = self.connect(&self.consumer_id(index), !kept)?;
        if !kept {
            self.subscribe(&mut talk)?;
        }
        Ok((talk, Box::new(Publishes)))
    }

    fn idler(&self, index: u32) -> Result<Talk, Fault> {
        self.connect(&format!("rocketbridge-bench-{}-i{index}", self.options.name), true)
    }

    fn goodbye(&self) -> Vec<u8> {
        vec![DISCONNECT, 0]
    }

    fn clean_up(&self) -> Result<Option<String>, Fault> {
        if self.keeps_sessions() {
            for index in 0..self.options.consumers {
                // A clean session takes the place of the kept one, and goes with its connection.
                let mut talk = self.connect(&self.consumer_id(index), true)?;
                talk.write(&[DISCONNECT, 0])?;
            }
        }
        Ok(None)
    }
}

fn unexpected(what: &str) -> Fault {
    Fault::Unexpected {
        protocol: "MQTT 3.1.1",
        what: what.to_owned(),
    }
}

/// What a publisher is told.
struct Handshakes;

impl Answers for Handshakes {
    fn read(&mut self, input: &[u8], told: &mut dyn Told, out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(packet) = Packet::first(&input[at..])? {
            at += packet.length;
            let id = match packet.body {
                [high, low, ..] => u16::from_be_bytes([*high, *low]),
                _ => continue,
            };
            match packet.first & 0xF0 {
                PUBACK | PUBCOMP => {
                    let place = u64::from(id.saturating_sub(1));
                    told.confirm(number_at(place, told.first_open(), PACKET_IDS));
                }
                PUBREC => {
                    out.extend_from_slice(&[PUBREL, 2]);
                    out.extend_from_slice(&id.to_be_bytes());
                }
                _ => {}
            }
        }
        Ok(at)
    }
}

/// What a consumer is sent.
struct Publishes;

impl Consume for Publishes {
    fn read(&mut self, input: &[u8], sink: &mut Sink<'_>, out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(packet) = Packet::first(&input[at..])? {
            at += packet.length;
            match packet.first & 0xF0 {
                PUBLISH => {
                    let Some((topic_length, rest)) = packet.body.split_first_chunk::<2>() else {
                        return Err(unexpected("a PUBLISH without topic"));
                    };
                    let rest = rest.get(usize::from(u16::from_be_bytes(*topic_length))..);
                    let rest = rest.ok_or_else(|| unexpected("a PUBLISH without its whole topic"))?;
                    match (packet.first >> 1 & 3, rest) {
                        (0, body) => sink.message(body),
                        (qos, [high, low, body @ ..]) => {
                            let answer = if qos == 1 { PUBACK } else { PUBREC };
                            out.extend_from_slice(&[answer, 2, *high, *low]);
                            sink.message(body);
                        }
                        _ => return Err(unexpected("a PUBLISH without packet identifier")),
                    }
                }
                first if first == PUBREL & 0xF0 => {
                    if let [high, low, ..] = packet.body {
                        out.extend_from_slice(&[PUBCOMP, 2, *high, *low]);
                    }
                }
                _ => {}
            }
        }
        Ok(at)
    }
}

/// A packet as it lies in the input.
struct Packet<'a> {
    first: u8,
    /// What follows the length.
    body: &'a [u8],
    /// Of all of it.
    length: usize,
}

impl<'a> Packet<'a> {
    fn first(bytes: &'a [u8]) -> Result<Option<Self>, Fault> {
        let Some((first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let mut size = 0;
        for (index, octet) in rest.iter().take(4).enumerate() {
            size |= usize::from(octet & 0x7F) << (7 * index);
            if octet & 0x80 == 0 {
                let head = index + 2;
                let body = bytes.get(head..head + size);
                return Ok(body.map(|body| Self {
                    first: *first,
                    body,
                    length: head + size,
                }));
            }
        }
        if rest.len() >= 4 {
            return Err(unexpected("a length of more than four octets"));
        }
        Ok(None)
    }
}

fn next_packet(talk: &mut Talk) -> Result<Vec<u8>, Fault> {
    talk.frame(|input| Ok(Packet::first(input)?.map(|packet| packet.length)))
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut rest = body.len();
    loop {
        let octet = (rest & 0x7F) as u8;
        rest >>= 7;
        if rest == 0 {
            packet.push(octet);
            break;
        }
        packet.push(octet | 0x80);
    }
    packet.extend_from_slice(body);
    packet
}

fn append_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}
