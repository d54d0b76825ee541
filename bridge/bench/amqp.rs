//! The load's side of AMQP 0-9-1: raw frames.

use super::body::{Pieces, SIZE_MIN};
use super::options::{Mode, Options};
use super::protocol::{Answers, Consume, Protocol, Sink, Told};
use super::template::{FILLER, QUEUE_DIGITS, Template, queue_digits};
use super::wire::{Fault, Talk, resolve};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;

/// Type, channel, length before a frame's payload.
const FRAME_HEAD: usize = 7;

/// Class and method numbers.
type Method = (u16, u16);
const CONNECTION_START: Method = (10, 10);
const CONNECTION_CLOSE: Method = (10, 50);
const CONNECTION_BLOCKED: Method = (10, 60);
const CONNECTION_UNBLOCKED: Method = (10, 61);
const CHANNEL_CLOSE: Method = (20, 40);
const CANCEL: Method = (60, 30);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);

/// Declarations of queues that are asked at once before answers are read.
const PIPELINE: usize = 200;

pub struct Amqp {
    options: Options,
    /// How many queues there are, and the largest frame; known once prepared.
    frame_max: usize,
}

impl Amqp {
    pub fn new(options: &Options) -> Self {
        Self {
            options: options.clone(),
            frame_max: 0,
        }
    }

    /// What all queues are called, and the exchange.
    fn name(&self) -> String {
        format!("rocketbridge-bench-{}", self.options.name)
    }

    /// One for each number of queues; with fan-out one for each consumer.
    fn queue(&self, index: u32) -> String {
        format!("{}-{}", self.name(), queue_digits(index))
    }

    fn queue_count(&self) -> u32 {
        if self.options.fan_out {
            self.options.consumers
        } else {
            self.options.queues
        }
    }

    fn connect(&self) -> Result<Client, Fault> {
        Client::connect(&self.options)
    }
}

impl Protocol for Amqp {
    fn prepare(&mut self) -> Result<(), Fault> {
        let mut client = self.connect()?;
        self.frame_max = client.frame_max;
        if self.options.mode == Mode::Drain {
            return Ok(());
        }
        if self.options.fan_out {
            const AUTO_DELETE_NEVER_DURABLE_NEVER: u8 = 0;
            let exchange = Arguments::default().u16(0).short(&self.name()).short("fanout");
            client.call((40, 10), exchange.u8(AUTO_DELETE_NEVER_DURABLE_NEVER).u32(0), (40, 11))?;
        }
        const DURABLE: u8 = 2;
        let declare = |index| Arguments::default().u16(0).short(&self.queue(index)).u8(DURABLE).u32(0);
        client.call_many((50, 10), (0..self.queue_count()).map(declare), (50, 11))?;
        if self.options.fan_out {
            let bind = |index| {
                let arguments = Arguments::default()
                    .u16(0)
                    .short(&self.queue(index))
                    .short(&self.name());
                arguments.short("").u8(0).u32(0)
            };
            client.call_many((50, 20), (0..self.queue_count()).map(bind), (50, 21))?;
        }
        client.close()
    }

    fn template(&self) -> Template {
        let mut bytes = Vec::new();
        // All keys are of one length; with fan-out they do not matter.
        let (exchange, key) = if self.options.fan_out {
            (self.name(), queue_digits(0))
        } else {
            (String::new(), self.queue(0))
        };
        let publish = Arguments::default().u16(0).short(&exchange).short(&key).u8(0);
        append_method(&mut bytes, 1, (60, 40), &publish);
        // Immediate and mandatory bits, and the end of the frame.
        let queue_at = bytes.len() - 2 - QUEUE_DIGITS;
        const DELIVERY_MODE: u16 = 0x1000;
        let size = self.options.size;
        let mode = if self.options.persistent { 2 } else { 1 };
        let header = Arguments::default().u16(60).u16(0).u64(size as u64);
        append_frame(&mut bytes, HEADER, 1, &header.u16(DELIVERY_MODE).u8(mode).0);
        let body_at = bytes.len() + FRAME_HEAD;
        let body = vec![FILLER; size];
        for piece in body.chunks(self.frame_max - FRAME_HEAD - 1) {
            append_frame(&mut bytes, BODY, 1, piece);
        }
        Template {
            bytes,
            body_at,
            queue_at: Some(queue_at),
            ids: Vec::new(),
        }
    }

    fn publisher(&self, _index: u32) -> Result<(Talk, Box<dyn Answers>), Fault> {
        let mut client = self.connect()?;
        if self.options.confirm > 0 {
            client.call((85, 10), Arguments::default().u8(0), (85, 11))?;
        }
        Ok((client.talk, Box::new(Confirms)))
    }

    fn consumer(&self, index: u32) -> Result<(Talk, Box<dyn Consume>), Fault> {
        let options = &self.options;
        let mut client = self.connect()?;
        if options.prefetch > 0 {
            let prefetch = Arguments::default().u32(0).u16(options.prefetch as u16).u8(0);
            client.call((60, 10), prefetch, (60, 11))?;
        }
        let stride = if options.fan_out {
            options.consumers
        } else {
            options.queues.min(options.consumers)
        };
        let queues = (index % stride..self.queue_count()).step_by(stride as usize);
        let mut begin = Vec::new();
        for queue in queues {
            const NO_ACK: u8 = 2;
            const NO_WAIT: u8 = 8;
            let bits = NO_WAIT | if options.auto_ack { NO_ACK } else { 0 };
            let consume = Arguments::default().u16(0).short(&self.queue(queue));
            append_method(
                &mut begin,
                1,
                (60, 20),
                &consume.short(&queue.to_string()).u8(bits).u32(0),
            );
        }
        let ack_every = if options.auto_ack {
            0
        } else {
            u64::from(options.ack_batch)
        };
        Ok((
            client.talk,
            Box::new(Deliveries {
                begin,
                ack_every,
                delivered: 0,
                acknowledged: 0,
                expected: 0,
                pieces: None,
            }),
        ))
    }

    fn idler(&self, _index: u32) -> Result<Talk, Fault> {
        Ok(self.connect()?.talk)
    }

    fn goodbye(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        append_method(&mut bytes, 0, CONNECTION_CLOSE, &closing());
        bytes
    }

    fn clean_up(&self) -> Result<Option<String>, Fault> {
        let mut client = self.connect()?;
        let delete = |index| Arguments::default().u16(0).short(&self.queue(index)).u8(0);
        client.call_many((50, 40), (0..self.queue_count()).map(delete), (50, 41))?;
        if self.options.fan_out {
            client.call(
                (40, 20),
                Arguments::default().u16(0).short(&self.name()).u8(0),
                (40, 21),
            )?;
        }
        client.close()?;
        Ok(None)
    }
}

fn closing() -> Arguments {
    Arguments::default().u16(200).short("done").u16(0).u16(0)
}

/// What a publisher is told.
struct Confirms;

impl Answers for Confirms {
    fn read(&mut self, input: &[u8], told: &mut dyn Told, _out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(frame) = Frame::first(&input[at..])? {
            at += frame.length();
            if frame.kind != METHOD {
                continue;
            }
            match frame.method() {
                method @ (ACK | NACK) => {
                    let (Some(tag), Some(bits)) = (frame.number(4, 8), frame.number(12, 1)) else {
                        return Err(unexpected("an acknowledgement without a tag"));
                    };
                    let last = tag.wrapping_sub(1);
                    let first = if bits & 1 == 1 { told.first_open() } else { last };
                    for number in first..=last {
                        match method {
                            ACK => told.confirm(number),
                            _ => told.reject(number, "basic.nack"),
                        }
                    }
                }
                CONNECTION_BLOCKED => {
                    let reason = String::from_utf8_lossy(frame.payload.get(5..).unwrap_or_default());
                    told.notice(&format!("the broker blocks publishers: {reason}"));
                }
                CONNECTION_UNBLOCKED => told.notice("the broker takes messages again"),
                _ => frame.refused()?,
            }
        }
        Ok(at)
    }
}

/// What a consumer is sent.
struct Deliveries {
    begin: Vec<u8>,
    /// 0: never.
    ack_every: u64,
    delivered: u64,
    acknowledged: u64,
    /// Bytes of the body whose header came last.
    expected: u64,
    pieces: Option<Pieces>,
}

impl Consume for Deliveries {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.begin);
    }

    fn read(&mut self, input: &[u8], sink: &mut Sink<'_>, out: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(frame) = Frame::first(&input[at..])? {
            at += frame.length();
            match frame.kind {
                METHOD if frame.method() == DELIVER => {}
                HEADER => {
                    self.expected = frame.number(4, 8).ok_or_else(|| unexpected("a short content header"))?;
                    if self.expected == 0 {
                        self.arrived(out);
                        sink.message(b"");
                    }
                }
                BODY if self.pieces.is_none() && frame.payload.len() as u64 == self.expected => {
                    self.arrived(out);
                    sink.message(frame.payload);
                }
                BODY => {
                    let expected = self.expected;
                    let pieces = self.pieces.get_or_insert_with(|| Pieces::of(expected));
                    if pieces.feed(frame.payload) {
                        let pieces = self.pieces.take().expect("it is there");
                        self.arrived(out);
                        sink.stamp(pieces.stamp());
                    }
                }
                METHOD => frame.refused()?,
                _ => {}
            }
        }
        Ok(at)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.ack_every > 0 && self.acknowledged < self.delivered {
            self.acknowledge(out);
        }
    }
}

impl Deliveries {
    fn arrived(&mut self, out: &mut Vec<u8>) {
        self.delivered += 1;
        if self.ack_every > 0 && self.delivered - self.acknowledged == self.ack_every {
            self.acknowledge(out);
        }
    }

    fn acknowledge(&mut self, out: &mut Vec<u8>) {
        self.acknowledged = self.delivered;
        // basic.ack of channel 1, multiple.
        out.extend_from_slice(&[METHOD, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80]);
        out.extend_from_slice(&self.delivered.to_be_bytes());
        out.extend_from_slice(&[1, FRAME_END]);
    }
}

fn unexpected(what: &str) -> Fault {
    Fault::Unexpected {
        protocol: "AMQP 0-9-1",
        what: what.to_owned(),
    }
}

/// A frame as it lies in the input.
#[derive(Debug)]
struct Frame<'a> {
    kind: u8,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn first(bytes: &'a [u8]) -> Result<Option<Self>, Fault> {
        let Some(head) = bytes.first_chunk::<FRAME_HEAD>() else {
            return Ok(None);
        };
        if head.starts_with(b"AMQP") {
            return Err(unexpected("it wants another version of the protocol"));
        }
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if size > 1 << 30 {
            return Err(unexpected("a frame of more than 1 GiB"));
        }
        let Some(end) = bytes.get(FRAME_HEAD + size) else {
            return Ok(None);
        };
        if *end != FRAME_END {
            return Err(unexpected("a frame without its end"));
        }
        Ok(Some(Self {
            kind: head[0],
            payload: &bytes[FRAME_HEAD..FRAME_HEAD + size],
        }))
    }

    fn length(&self) -> usize {
        FRAME_HEAD + self.payload.len() + 1
    }

    fn number(&self, at: usize, length: usize) -> Option<u64> {
        let bytes = self.payload.get(at..at + length)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn method(&self) -> Method {
        let number = |at| self.number(at, 2).unwrap_or(0) as u16;
        (number(0), number(2))
    }

    /// A method that ends the run.
    fn refused(&self) -> Result<(), Fault> {
        match self.method() {
            CONNECTION_CLOSE | CHANNEL_CLOSE => {
                let code = self.number(4, 2).unwrap_or(0);
                let length = self.number(6, 1).unwrap_or(0) as usize;
                let text = self.payload.get(7..7 + length).unwrap_or_default();
                Err(Fault::Ended(format!("{code} {}", String::from_utf8_lossy(text))))
            }
            CANCEL => Err(Fault::Ended("it has cancelled a consumer, whose queue is gone".into())),
            _ => Ok(()),
        }
    }
}

/// Arguments of a method, in its order.
#[derive(Default)]
struct Arguments(Vec<u8>);

impl Arguments {
    fn with(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(self, value: u8) -> Self {
        self.with(&[value])
    }

    fn u16(self, value: u16) -> Self {
        self.with(&value.to_be_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.with(&value.to_be_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.with(&value.to_be_bytes())
    }

    /// At most 255 bytes.
    fn short(self, text: &str) -> Self {
        let text = &text.as_bytes()[..text.len().min(255)];
        self.u8(text.len() as u8).with(text)
    }

    fn long(self, bytes: &[u8]) -> Self {
        self.u32(bytes.len() as u32).with(bytes)
    }
}

fn append_method(bytes: &mut Vec<u8>, channel: u16, method: Method, arguments: &Arguments) {
    let payload = Arguments::default().u16(method.0).u16(method.1).with(&arguments.0);
    append_frame(bytes, METHOD, channel, &payload.0);
}

fn append_frame(bytes: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    let frame = Arguments::default().u8(kind).u16(channel).long(payload).u8(FRAME_END);
    bytes.extend_from_slice(&frame.0);
}

/// A connection with channel 1 open.
struct Client {
    talk: Talk,
    frame_max: usize,
}

impl Client {
    fn connect(options: &Options) -> Result<Self, Fault> {
        const FRAME_MAX: u32 = 128 * 1024;
        let target = &options.target;
        let mut client = Self {
            talk: Talk::connect(resolve(&target.address)?)?,
            frame_max: 0,
        };
        client.talk.write(b"AMQP\x00\x00\x09\x01")?;
        client.expect(CONNECTION_START)?;
        // So that the broker tells us when it blocks publishers, and when a queue goes.
        let flag = |table: Arguments, name: &str| table.short(name).u8(b't').u8(1);
        let capabilities = flag(Arguments::default(), "connection.blocked");
        let capabilities = flag(capabilities, "consumer_cancel_notify");
        let properties = Arguments::default()
            .short("product")
            .u8(b'S')
            .long(b"rocketbridge bench");
        let properties = properties.short("capabilities").u8(b'F').long(&capabilities.0);
        let (user, password) = match &*target.user {
            "" => ("guest", "guest"),
            user => (user, &*target.password),
        };
        let answer = Arguments::default()
            .long(&properties.0)
            .short("PLAIN")
            .long(format!("\0{user}\0{password}").as_bytes())
            .short("en_US");
        client.send(0, (10, 11), &answer)?;
        let refused = |fault| match fault {
            Fault::Closed | Fault::Lost(_) => Fault::Refused {
                what: format!("the login of {user:?}"),
                why: "it closed the connection".into(),
            },
            other => other,
        };
        let tune = client.expect((10, 30)).map_err(refused)?;
        let frame_max = tune
            .get(2..6)
            .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let frame_max = if frame_max == 0 {
            FRAME_MAX
        } else {
            frame_max.min(FRAME_MAX)
        };
        client.frame_max = frame_max as usize;
        let tuned = Arguments::default().with(tune.get(..2).unwrap_or(&[0, 0]));
        client.send(0, (10, 31), &tuned.u32(frame_max).u16(0))?;
        let host = if target.path.is_empty() { "/" } else { &target.path };
        client.send(0, (10, 40), &Arguments::default().short(host).short("").u8(0))?;
        client.expect((10, 41)).map_err(|fault| match fault {
            Fault::Closed | Fault::Lost(_) => Fault::Refused {
                what: format!("virtual host {host:?}"),
                why: "it closed the connection".into(),
            },
            other => other,
        })?;
        client.call((20, 10), Arguments::default().short(""), (20, 11))?;
        Ok(client)
    }

    fn close(mut self) -> Result<(), Fault> {
        self.send(0, CONNECTION_CLOSE, &closing())?;
        self.expect((10, 51)).map(drop)
    }

    fn call(&mut self, method: Method, arguments: Arguments, answer: Method) -> Result<(), Fault> {
        self.send(1, method, &arguments)?;
        self.expect(answer).map(drop)
    }

    /// Asks many things of one kind.
    fn call_many(&mut self, method: Method, all: impl Iterator<Item = Arguments>, answer: Method) -> Result<(), Fault> {
        let mut all = all.peekable();
        while all.peek().is_some() {
            let mut bytes = Vec::new();
            let mut count = 0;
            for arguments in all.by_ref().take(PIPELINE) {
                append_method(&mut bytes, 1, method, &arguments);
                count += 1;
            }
            self.talk.write(&bytes)?;
            for _ in 0..count {
                self.expect(answer)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, channel: u16, method: Method, arguments: &Arguments) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        append_method(&mut bytes, channel, method, arguments);
        self.talk.write(&bytes)
    }

    /// The arguments of the next method, which must be this one.
    fn expect(&mut self, method: Method) -> Result<Vec<u8>, Fault> {
        loop {
            let bytes = self
                .talk
                .frame(|input| Ok(Frame::first(input)?.map(|frame| frame.length())))?;
            let frame = Frame::first(&bytes)?.expect("it is whole");
            if frame.kind != METHOD || frame.method() == CONNECTION_BLOCKED {
                continue;
            }
            if frame.method() == method {
                return Ok(frame.payload[4..].to_vec());
            }
            frame.refused()?;
            let (found, wanted) = (frame.method(), method);
            return Err(unexpected(&format!("method {found:?} instead of {wanted:?}")));
        }
    }
}

const _: () = assert!(SIZE_MIN < 4096 - FRAME_HEAD, "the smallest frame holds a stamp");
