//! A small AMQP 0-9-1 client that hides nothing: one connection, one channel, no threads.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::wire::{PATIENCE, Wire, timed_out, unexpected};

pub const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";

/// Frame types.
pub const METHOD: u8 = 1;
pub const HEADER: u8 = 2;
pub const BODY: u8 = 3;
pub const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;

/// A field table: `capabilities: {connection.blocked: true}`.
const BLOCKED_IS_KNOWN: &[u8] = b"\x0ccapabilitiesF\0\0\0\x15\x12connection.blockedt\x01";

/// Class and method in one number.
pub const fn id(class: u16, method: u16) -> u32 {
    (class as u32) << 16 | method as u32
}

pub const CONNECTION_START: u32 = id(10, 10);
pub const CONNECTION_START_OK: u32 = id(10, 11);
pub const CONNECTION_TUNE: u32 = id(10, 30);
pub const CONNECTION_TUNE_OK: u32 = id(10, 31);
pub const CONNECTION_OPEN: u32 = id(10, 40);
pub const CONNECTION_OPEN_OK: u32 = id(10, 41);
pub const CONNECTION_BLOCKED: u32 = id(10, 60);
pub const CONNECTION_UNBLOCKED: u32 = id(10, 61);
pub const CONNECTION_CLOSE: u32 = id(10, 50);
pub const CONNECTION_CLOSE_OK: u32 = id(10, 51);
pub const CHANNEL_OPEN: u32 = id(20, 10);
pub const CHANNEL_OPEN_OK: u32 = id(20, 11);
pub const CHANNEL_CLOSE: u32 = id(20, 40);
pub const EXCHANGE_DECLARE: u32 = id(40, 10);
pub const EXCHANGE_DECLARE_OK: u32 = id(40, 11);
pub const QUEUE_DECLARE: u32 = id(50, 10);
pub const QUEUE_DECLARE_OK: u32 = id(50, 11);
pub const QUEUE_BIND: u32 = id(50, 20);
pub const QUEUE_BIND_OK: u32 = id(50, 21);
pub const BASIC_QOS: u32 = id(60, 10);
pub const BASIC_QOS_OK: u32 = id(60, 11);
pub const BASIC_CONSUME: u32 = id(60, 20);
pub const BASIC_CONSUME_OK: u32 = id(60, 21);
pub const BASIC_PUBLISH: u32 = id(60, 40);
pub const BASIC_RETURN: u32 = id(60, 50);
pub const BASIC_DELIVER: u32 = id(60, 60);
pub const BASIC_GET: u32 = id(60, 70);
pub const BASIC_GET_OK: u32 = id(60, 71);
pub const BASIC_GET_EMPTY: u32 = id(60, 72);
pub const BASIC_ACK: u32 = id(60, 80);
pub const BASIC_NACK: u32 = id(60, 120);
pub const CONFIRM_SELECT: u32 = id(85, 10);
pub const CONFIRM_SELECT_OK: u32 = id(85, 11);

/// Writes method arguments, frames and field tables.
#[derive(Clone, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn method(id: u32) -> Self {
        Self(id.to_be_bytes().to_vec())
    }

    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn short(mut self, text: &str) -> Self {
        self.0.push(u8::try_from(text.len()).expect("a short string"));
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    pub fn long(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn frame(self, kind: u8, channel: u16) -> Vec<u8> {
        frame(kind, channel, &self.0)
    }
}

pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    bytes.push(kind);
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.push(FRAME_END);
    bytes
}

/// Reads what [`Bytes`] writes.
pub struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    pub fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().expect("2 bytes"))
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().expect("4 bytes"))
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().expect("8 bytes"))
    }

    pub fn short(&mut self) -> String {
        let len = usize::from(self.u8());
        String::from_utf8_lossy(self.take(len)).into_owned()
    }
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub channel: u16,
    pub payload: Vec<u8>,
}

/// What the broker says.
#[derive(Clone, Debug)]
pub enum Event {
    /// By `basic.deliver` or `basic.get-ok`.
    Delivery(Delivery),
    /// `basic.ack` or `basic.nack`.
    Confirmed {
        tag: u64,
        multiple: bool,
        ack: bool,
    },
    /// `basic.return`.
    Returned {
        code: u16,
        body: Vec<u8>,
    },
    Heartbeat,
    /// `connection.close` or `channel.close`.
    Closed {
        code: u16,
        text: String,
        connection: bool,
    },
    /// Any other method: its number and arguments.
    Method(u32, Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct Delivery {
    pub tag: u64,
    pub redelivered: bool,
    pub exchange: String,
    pub key: String,
    pub body: Vec<u8>,
}

enum Content {
    Delivery(Delivery),
    Returned { code: u16 },
}

/// How a message is published.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    pub exchange: &'a str,
    pub key: &'a str,
    pub persistent: bool,
    pub mandatory: bool,
    pub body: &'a [u8],
}

pub struct Amqp {
    pub wire: Wire,
    frame_max: usize,
    content: Option<(Content, Option<u64>, Vec<u8>)>,
    events: VecDeque<Event>,
    published: u64,
}

impl Amqp {
    /// Connected as `guest`, with channel 1 open and without heartbeats.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_with(address, 0)
    }

    /// With a heartbeat interval in seconds.
    pub fn connect_with(address: SocketAddr, heartbeat: u16) -> io::Result<Self> {
        let mut client = Self::raw(address)?;
        client.log_in(heartbeat)?;
        Ok(client)
    }

    /// From the protocol header to an open channel.
    pub fn log_in(&mut self, heartbeat: u16) -> io::Result<()> {
        self.wire.send(PROTOCOL_HEADER)?;
        self.wait_for(CONNECTION_START)?;
        // `capabilities: {connection.blocked: true}`: it is told when it has to wait.
        let start_ok = Bytes::method(CONNECTION_START_OK).long(BLOCKED_IS_KNOWN).short("PLAIN");
        self.send_method(0, start_ok.long(b"\0guest\0guest").short("en_US"))?;
        let tune = self.wait_for(CONNECTION_TUNE)?;
        let mut tune = Reader(&tune);
        let (channel_max, frame_max) = (tune.u16(), tune.u32());
        self.frame_max = frame_max as usize;
        let tune_ok = Bytes::method(CONNECTION_TUNE_OK)
            .u16(channel_max)
            .u32(frame_max)
            .u16(heartbeat);
        self.send_method(0, tune_ok)?;
        self.send_method(0, Bytes::method(CONNECTION_OPEN).short("/").short("").u8(0))?;
        self.wait_for(CONNECTION_OPEN_OK)?;
        self.send_method(1, Bytes::method(CHANNEL_OPEN).short(""))?;
        self.wait_for(CHANNEL_OPEN_OK).map(drop)
    }

    /// A connection that has said nothing yet.
    pub fn raw(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            wire: Wire::connect(address)?,
            frame_max: 4096,
            content: None,
            events: VecDeque::new(),
            published: 0,
        })
    }

    // --- requests -----------------------------------------------------------------------------

    pub fn send_method(&mut self, channel: u16, method: Bytes) -> io::Result<()> {
        self.wire.send(&method.frame(METHOD, channel))
    }

    fn call(&mut self, method: Bytes, answer: u32) -> io::Result<Vec<u8>> {
        self.send_method(1, method)?;
        self.wait_for(answer)
    }

    pub fn confirm_select(&mut self) -> io::Result<()> {
        self.call(Bytes::method(CONFIRM_SELECT).u8(0), CONFIRM_SELECT_OK)
            .map(drop)
    }

    pub fn qos(&mut self, prefetch: u16) -> io::Result<()> {
        self.call(Bytes::method(BASIC_QOS).u32(0).u16(prefetch).u8(0), BASIC_QOS_OK)
            .map(drop)
    }

    pub fn declare_exchange(&mut self, name: &str, kind: &str, durable: bool) -> io::Result<()> {
        let method = Bytes::method(EXCHANGE_DECLARE).u16(0).short(name).short(kind);
        self.call(method.u8(u8::from(durable) << 1).u32(0), EXCHANGE_DECLARE_OK)
            .map(drop)
    }

    /// Gives its name and the number of messages in it.
    pub fn declare_queue(&mut self, name: &str, durable: bool) -> io::Result<(String, u32)> {
        self.declare_queue_with(name, u8::from(durable) << 1)
    }

    /// `bits`: passive 1, durable 2, exclusive 4, auto-delete 8.
    pub fn declare_queue_with(&mut self, name: &str, bits: u8) -> io::Result<(String, u32)> {
        let method = Bytes::method(QUEUE_DECLARE).u16(0).short(name).u8(bits).u32(0);
        let arguments = self.call(method, QUEUE_DECLARE_OK)?;
        let mut reader = Reader(&arguments);
        Ok((reader.short(), reader.u32()))
    }

    pub fn bind(&mut self, queue: &str, exchange: &str, key: &str) -> io::Result<()> {
        let method = Bytes::method(QUEUE_BIND).u16(0).short(queue).short(exchange).short(key);
        self.call(method.u8(0).u32(0), QUEUE_BIND_OK).map(drop)
    }

    /// With acknowledgements, or without.
    pub fn consume(&mut self, queue: &str, no_ack: bool) -> io::Result<()> {
        let method = Bytes::method(BASIC_CONSUME).u16(0).short(queue).short("");
        self.call(method.u8(u8::from(no_ack) << 1).u32(0), BASIC_CONSUME_OK)
            .map(drop)
    }

    /// Takes one message without acknowledgement.
    pub fn get(&mut self, queue: &str) -> io::Result<Option<Delivery>> {
        self.send_method(1, Bytes::method(BASIC_GET).u16(0).short(queue).u8(1))?;
        match self.next_event(Instant::now() + PATIENCE)? {
            Some(Event::Delivery(delivery)) => Ok(Some(delivery)),
            Some(Event::Method(BASIC_GET_EMPTY, _)) => Ok(None),
            other => unexpected(other),
        }
    }

    /// Gives the number that its confirm will carry.
    pub fn publish(&mut self, publish: Publish<'_>) -> io::Result<u64> {
        let mut bytes = Vec::new();
        self.put_publish(publish, &mut bytes);
        self.wire.send(&bytes)?;
        Ok(self.published)
    }

    /// Appends the frames of a publish, to be sent with others.
    pub fn put_publish(&mut self, publish: Publish<'_>, bytes: &mut Vec<u8>) {
        let method = Bytes::method(BASIC_PUBLISH)
            .u16(0)
            .short(publish.exchange)
            .short(publish.key);
        bytes.extend(method.u8(u8::from(publish.mandatory)).frame(METHOD, 1));
        let header = Bytes::default().u16(60).u16(0).u64(publish.body.len() as u64);
        // Only the delivery mode.
        let header = header.u16(1 << 12).u8(if publish.persistent { 2 } else { 1 });
        bytes.extend(header.frame(HEADER, 1));
        for piece in publish.body.chunks(self.frame_max - 8) {
            bytes.extend(frame(BODY, 1, piece));
        }
        self.published += 1;
    }

    pub fn ack(&mut self, tag: u64, multiple: bool) -> io::Result<()> {
        self.send_method(1, Bytes::method(BASIC_ACK).u64(tag).u8(u8::from(multiple)))
    }

    pub fn nack(&mut self, tag: u64, requeue: bool) -> io::Result<()> {
        self.send_method(1, Bytes::method(BASIC_NACK).u64(tag).u8(u8::from(requeue) << 1))
    }

    pub fn heartbeat(&mut self) -> io::Result<()> {
        self.wire.send(&frame(HEARTBEAT, 0, b""))
    }

    /// Publishes one message and waits for its confirm; what comes meanwhile is kept for [`next_event`](Self::next_event).
    pub fn publish_confirmed(&mut self, publish: Publish<'_>) -> io::Result<()> {
        let wanted = self.publish(publish)?;
        let until = Instant::now() + PATIENCE;
        let mut kept = VecDeque::new();
        let result = loop {
            match self.next_event(until) {
                Ok(Some(Event::Confirmed {
                    tag,
                    multiple,
                    ack: true,
                })) if tag == wanted || multiple && tag > wanted => {
                    break Ok(());
                }
                Ok(Some(event @ (Event::Confirmed { .. } | Event::Closed { .. }))) => break unexpected(event),
                Ok(Some(event)) => kept.push_back(event),
                Ok(None) => break timed_out("confirm"),
                Err(error) => break Err(error),
            }
        };
        kept.append(&mut self.events);
        self.events = kept;
        result
    }

    /// In good order.
    pub fn close(mut self) -> io::Result<()> {
        self.send_method(0, Bytes::method(CONNECTION_CLOSE).u16(200).short("bye").u32(0))?;
        self.wait_for(CONNECTION_CLOSE_OK).map(drop)
    }

    // --- answers ------------------------------------------------------------------------------

    /// Waits for a method and gives its arguments; what comes before it is kept.
    pub fn wait_for(&mut self, wanted: u32) -> io::Result<Vec<u8>> {
        let until = Instant::now() + PATIENCE;
        let mut kept = VecDeque::new();
        let result = loop {
            match self.next_event(until) {
                Ok(Some(Event::Method(id, arguments))) if id == wanted => break Ok(arguments),
                Ok(Some(event @ Event::Closed { .. })) => break unexpected(event),
                Ok(Some(event)) => kept.push_back(event),
                Ok(None) => break timed_out("answer"),
                Err(error) => break Err(error),
            }
        };
        kept.append(&mut self.events);
        self.events = kept;
        result
    }

    /// The next delivery; panics on a close, `None` when none comes in that time.
    pub fn next_delivery(&mut self, within: Duration) -> io::Result<Option<Delivery>> {
        let until = Instant::now() + within;
        loop {
            match self.next_event(until)? {
                Some(Event::Delivery(delivery)) => return Ok(Some(delivery)),
                Some(event @ Event::Closed { .. }) => return unexpected(event),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next thing the broker says; `None` when it says nothing until then.
    pub fn next_event(&mut self, until: Instant) -> io::Result<Option<Event>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        loop {
            while let Some(frame) = self.next_frame() {
                if let Some(event) = self.handle(frame)? {
                    return Ok(Some(event));
                }
            }
            if !self.wire.fill(until)? {
                return Ok(None);
            }
        }
    }

    /// A whole frame that was read already.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let bytes = self.wire.buffered();
        let head: &[u8; 7] = bytes.first_chunk()?;
        let len = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if bytes.len() < len + 8 {
            return None;
        }
        let bytes = self.wire.take(len + 8);
        assert_eq!(bytes[len + 7], FRAME_END, "a frame has its end");
        Some(Frame {
            kind: bytes[0],
            channel: u16::from_be_bytes([bytes[1], bytes[2]]),
            payload: bytes[7..len + 7].to_vec(),
        })
    }

    fn handle(&mut self, frame: Frame) -> io::Result<Option<Event>> {
        match frame.kind {
            METHOD => Ok(self.handle_method(&frame.payload)),
            HEADER => {
                let size = Reader(&frame.payload[4..]).u64();
                let Some((_, expected, _)) = &mut self.content else {
                    return unexpected("header");
                };
                *expected = Some(size);
                Ok(self.finish_content())
            }
            BODY => {
                let Some((_, _, body)) = &mut self.content else {
                    return unexpected("body");
                };
                body.extend_from_slice(&frame.payload);
                Ok(self.finish_content())
            }
            HEARTBEAT => Ok(Some(Event::Heartbeat)),
            other => unexpected(other),
        }
    }

    fn handle_method(&mut self, payload: &[u8]) -> Option<Event> {
        let mut reader = Reader(payload);
        let method = reader.u32();
        match method {
            BASIC_DELIVER | BASIC_GET_OK => {
                if method == BASIC_DELIVER {
                    reader.short();
                }
                let delivery = Delivery {
                    tag: reader.u64(),
                    redelivered: reader.u8() != 0,
                    exchange: reader.short(),
                    key: reader.short(),
                    body: Vec::new(),
                };
                self.content = Some((Content::Delivery(delivery), None, Vec::new()));
                None
            }
            BASIC_RETURN => {
                self.content = Some((Content::Returned { code: reader.u16() }, None, Vec::new()));
                None
            }
            BASIC_ACK | BASIC_NACK => Some(Event::Confirmed {
                tag: reader.u64(),
                multiple: reader.u8() & 1 != 0,
                ack: method == BASIC_ACK,
            }),
            CONNECTION_CLOSE | CHANNEL_CLOSE => Some(Event::Closed {
                code: reader.u16(),
                text: reader.short(),
                connection: method == CONNECTION_CLOSE,
            }),
            other => Some(Event::Method(other, reader.0.to_vec())),
        }
    }

    fn finish_content(&mut self) -> Option<Event> {
        let whole = matches!(&self.content, Some((_, Some(size), body)) if *size == body.len() as u64);
        if !whole {
            return None;
        }
        let (content, _, body) = self.content.take()?;
        Some(match content {
            Content::Delivery(delivery) => Event::Delivery(Delivery { body, ..delivery }),
            Content::Returned { code } => Event::Returned { code, body },
        })
    }
}
