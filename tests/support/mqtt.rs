//! A small MQTT client (3.1.1 and 5.0) that hides nothing: one connection, no threads.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::wire::{PATIENCE, Wire, timed_out, unexpected};

pub const V311: u8 = 4;
pub const V5: u8 = 5;

/// Packet types, in the upper half of the first byte.
pub const CONNECT: u8 = 1;
pub const CONNACK: u8 = 2;
pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;
pub const SUBSCRIBE: u8 = 8;
pub const SUBACK: u8 = 9;
pub const PINGREQ: u8 = 12;
pub const PINGRESP: u8 = 13;
pub const DISCONNECT: u8 = 14;

/// What the broker says.
#[derive(Clone, Debug)]
pub enum Event {
    Message(Message),
    PubAck(u16),
    /// Any other packet: its first byte and the rest.
    Packet(u8, Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct Message {
    pub topic: String,
    pub qos: u8,
    pub dup: bool,
    /// Zero for QoS 0.
    pub packet_id: u16,
    pub body: Vec<u8>,
}

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    pub version: u8,
    pub client_id: &'a str,
    pub clean: bool,
    /// Of 5.0, seconds. 3.1.1 means "for ever" by a connection that is not clean.
    pub session_expiry: u32,
}

impl<'a> Connect<'a> {
    /// Nothing stays when the connection ends.
    pub fn clean(client_id: &'a str) -> Self {
        Self {
            version: V311,
            client_id,
            clean: true,
            session_expiry: 0,
        }
    }

    /// The session stays.
    pub fn persistent(client_id: &'a str) -> Self {
        Self {
            clean: false,
            ..Self::clean(client_id)
        }
    }

    pub fn packet(self) -> Vec<u8> {
        let mut rest = text("MQTT");
        rest.extend([self.version, u8::from(self.clean) << 1, 0, 0]);
        if self.version == V5 {
            rest.extend([5, 0x11]);
            rest.extend(self.session_expiry.to_be_bytes());
        }
        rest.extend(text(self.client_id));
        packet(CONNECT << 4, &rest)
    }
}

pub struct Mqtt {
    pub wire: Wire,
    version: u8,
    packet_id: u16,
    /// The broker had a session for the client.
    pub session_present: bool,
    kept: VecDeque<Event>,
}

impl Mqtt {
    pub fn connect(address: SocketAddr, connect: Connect<'_>) -> io::Result<Self> {
        let mut client = Self::raw(address, connect.version)?;
        client.log_in(connect)?;
        Ok(client)
    }

    /// A connection that has said nothing yet.
    pub fn raw(address: SocketAddr, version: u8) -> io::Result<Self> {
        Wire::connect(address).map(|wire| Self::over(wire, version))
    }

    /// Over WebSocket.
    pub fn connect_websocket(address: SocketAddr, connect: Connect<'_>) -> io::Result<Self> {
        let mut client = Self::over(Wire::upgraded(address, "/mqtt")?, connect.version);
        client.log_in(connect)?;
        Ok(client)
    }

    fn over(wire: Wire, version: u8) -> Self {
        Self {
            wire,
            version,
            packet_id: 0,
            session_present: false,
            kept: VecDeque::new(),
        }
    }

    /// CONNECT and CONNACK.
    pub fn log_in(&mut self, connect: Connect<'_>) -> io::Result<()> {
        self.wire.send(&connect.packet())?;
        let connack = self.wait_for(CONNACK)?;
        if connack.get(1) != Some(&0) {
            return unexpected(connack);
        }
        self.session_present = connack[0] & 1 != 0;
        Ok(())
    }

    pub fn subscribe(&mut self, filter: &str, qos: u8) -> io::Result<()> {
        let mut rest = self.next_packet_id().to_be_bytes().to_vec();
        rest.extend(self.no_properties());
        rest.extend(text(filter));
        rest.push(qos);
        self.wire.send(&packet(SUBSCRIBE << 4 | 2, &rest))?;
        let suback = self.wait_for(SUBACK)?;
        match suback.last() {
            Some(granted) if *granted == qos => Ok(()),
            _ => unexpected(suback),
        }
    }

    /// Gives the packet id that its PUBACK will carry, 0 for QoS 0.
    pub fn publish(&mut self, topic: &str, qos: u8, body: &[u8]) -> io::Result<u16> {
        let mut bytes = Vec::with_capacity(body.len() + topic.len() + 16);
        let packet_id = self.put_publish(topic, qos, body, &mut bytes);
        self.wire.send(&bytes)?;
        Ok(packet_id)
    }

    /// Appends a PUBLISH, to be sent with others.
    pub fn put_publish(&mut self, topic: &str, qos: u8, body: &[u8], bytes: &mut Vec<u8>) -> u16 {
        let mut rest = text(topic);
        let packet_id = if qos > 0 { self.next_packet_id() } else { 0 };
        if qos > 0 {
            rest.extend(packet_id.to_be_bytes());
        }
        rest.extend(self.no_properties());
        rest.extend_from_slice(body);
        bytes.extend(packet(PUBLISH << 4 | qos << 1, &rest));
        packet_id
    }

    /// Publishes with QoS 1 and waits for the PUBACK; what comes meanwhile is kept.
    pub fn publish_confirmed(&mut self, topic: &str, body: &[u8]) -> io::Result<()> {
        let packet_id = self.publish(topic, 1, body)?;
        self.wait_for_event("PUBACK", |event| matches!(event, Event::PubAck(id) if *id == packet_id))
            .map(drop)
    }

    pub fn puback(&mut self, packet_id: u16) -> io::Result<()> {
        self.wire.send(&packet(PUBACK << 4, &packet_id.to_be_bytes()))
    }

    /// Sends a PINGREQ and waits for its answer; what comes meanwhile is kept.
    pub fn ping(&mut self) -> io::Result<()> {
        self.wire.send(&packet(PINGREQ << 4, b""))?;
        self.wait_for(PINGRESP).map(drop)
    }

    pub fn disconnect(mut self) -> io::Result<()> {
        self.wire.send(&packet(DISCONNECT << 4, b""))
    }

    /// The next message; `None` when none comes in that time.
    pub fn next_message(&mut self, within: Duration) -> io::Result<Option<Message>> {
        let until = Instant::now() + within;
        loop {
            match self.next_event(until)? {
                Some(Event::Message(message)) => return Ok(Some(message)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next thing the broker says; `None` when it says nothing until then.
    pub fn next_event(&mut self, until: Instant) -> io::Result<Option<Event>> {
        if let Some(event) = self.kept.pop_front() {
            return Ok(Some(event));
        }
        self.read_event(until)
    }

    fn read_event(&mut self, until: Instant) -> io::Result<Option<Event>> {
        loop {
            if let Some((first, rest)) = self.next_packet() {
                return Ok(Some(self.event(first, rest)));
            }
            if !self.wire.fill(until)? {
                return Ok(None);
            }
        }
    }

    fn wait_for(&mut self, packet_type: u8) -> io::Result<Vec<u8>> {
        let wanted = |event: &Event| matches!(event, Event::Packet(first, _) if *first >> 4 == packet_type);
        match self.wait_for_event("answer", wanted)? {
            Event::Packet(_, rest) => Ok(rest),
            other => unexpected(other),
        }
    }

    fn wait_for_event(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> io::Result<Event> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.read_event(until)? {
                Some(event) if wanted(&event) => return Ok(event),
                Some(event) => self.kept.push_back(event),
                None => return timed_out(what),
            }
        }
    }

    /// A whole packet that was read already: first byte and what follows the length.
    pub fn next_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let bytes = self.wire.buffered();
        let (mut len, mut at) = (0, 1);
        loop {
            let byte = *bytes.get(at)?;
            len |= usize::from(byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte < 0x80 {
                break;
            }
        }
        if bytes.len() < at + len {
            return None;
        }
        let bytes = self.wire.take(at + len);
        Some((bytes[0], bytes[at..].to_vec()))
    }

    fn event(&self, first: u8, rest: Vec<u8>) -> Event {
        match first >> 4 {
            PUBLISH => {
                let topic_len = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
                let topic = String::from_utf8_lossy(&rest[2..2 + topic_len]).into_owned();
                let mut at = 2 + topic_len;
                let qos = first >> 1 & 3;
                let mut packet_id = 0;
                if qos > 0 {
                    packet_id = u16::from_be_bytes([rest[at], rest[at + 1]]);
                    at += 2;
                }
                if self.version == V5 {
                    // Properties are short here.
                    at += 1 + usize::from(rest[at]);
                }
                Event::Message(Message {
                    topic,
                    qos,
                    dup: first & 8 != 0,
                    packet_id,
                    body: rest[at..].to_vec(),
                })
            }
            PUBACK => Event::PubAck(u16::from_be_bytes([rest[0], rest[1]])),
            _ => Event::Packet(first, rest),
        }
    }

    fn next_packet_id(&mut self) -> u16 {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        self.packet_id
    }

    fn no_properties(&self) -> &'static [u8] {
        if self.version == V5 { &[0] } else { &[] }
    }
}

pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

pub fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut len = rest.len();
    loop {
        let more = len > 0x7f;
        bytes.push((len & 0x7f) as u8 | u8::from(more) << 7);
        len >>= 7;
        if !more {
            break;
        }
    }
    bytes.extend_from_slice(rest);
    bytes
}
