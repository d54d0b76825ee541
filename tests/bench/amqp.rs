//! The load for AMQP 0-9-1.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crate::RunOptions;
use crate::measure::{Batch, FEW_DELIVERIES, Gate, Input, Run, Sequence, Window};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;

/// Type, channel, length before a frame's payload.
const FRAME_HEAD: usize = 7;

/// Class and method numbers.
type Method = (u16, u16);
const CONNECTION_CLOSE: Method = (10, 50);
const CHANNEL_CLOSE: Method = (20, 40);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);

pub struct Options {
    pub run: RunOptions,
    /// Confirms outstanding at most; 0: none are asked for.
    pub confirm: u64,
    pub persistent: bool,
    /// 0: automatic.
    pub ack_every: u64,
    pub prefetch: u16,
}

/// One publisher, one durable queue, one consumer.
pub fn run(options: &Options) {
    let queue = format!("load-{}", std::process::id());
    let gate = Gate::new([
        Window::delivered(options.run.window),
        Window::confirmed(options.confirm),
    ]);
    let out_of_order = AtomicU64::new(0);
    let mut consumer = Client::connect(options.run.address);
    consumer.declare(&queue);
    if options.prefetch > 0 {
        let prefetch = Arguments::default().u32(0).u16(options.prefetch).u8(0);
        consumer.call((60, 10), prefetch, (60, 11));
    }
    let no_ack = if options.ack_every == 0 { 2 } else { 0 };
    let subscription = Arguments::default()
        .u16(0)
        .short(&queue)
        .short("load")
        .u8(no_ack)
        .u32(0);
    consumer.call((60, 20), subscription, (60, 21));
    let mut publisher = Client::connect(options.run.address);
    if options.confirm > 0 {
        publisher.call((85, 10), Arguments::default().u8(0), (85, 11));
    }
    let (message, number_at) = message(&queue, options.run.size, options.persistent);
    let streams = [consumer.stream(), publisher.stream()];
    thread::scope(|scope| {
        scope.spawn(|| {
            consume(
                consumer.input.napping(1, FEW_DELIVERIES),
                options.ack_every,
                &gate,
                &out_of_order,
            )
        });
        let mut writer = publisher.stream();
        scope.spawn(|| read_confirms(publisher.input, &gate));
        let (message, gate) = (&message, &gate);
        scope.spawn(move || Batch::new(message, number_at, None).publish(&mut writer, gate));
        let mode = if options.persistent { "persistent" } else { "transient" };
        let run = Run {
            name: format!("amqp-{mode}-confirm{}-ack{}", options.confirm, options.ack_every),
            options: &options.run,
            gate,
            consumers: 0..1,
            confirms: (options.confirm > 0).then_some(1),
            out_of_order: &out_of_order,
        };
        run.measure();
        for stream in streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    let mut cleaner = Client::connect(options.run.address);
    cleaner.call((50, 40), Arguments::default().u16(0).short(&queue).u8(0), (50, 41));
}

/// Whether a broker greets there.
pub fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok() && stream.read_exact(&mut [0; FRAME_HEAD]).is_ok()
}

fn consume(mut input: Input, ack_every: u64, gate: &Gate, out_of_order: &AtomicU64) {
    let mut stream = input.stream();
    let mut sequence = Sequence::default();
    let mut acks = Vec::new();
    while input.fill() {
        while let Some(frame) = Frame::first(input.unread()) {
            match frame.kind {
                BODY => {
                    sequence.see(frame.payload);
                    if ack_every > 0 && sequence.count.is_multiple_of(ack_every) {
                        let all_until = Arguments::default().u64(sequence.count).u8(1);
                        append_method(&mut acks, 1, ACK, &all_until);
                    }
                }
                METHOD => assert_eq!(frame.method(), DELIVER, "{frame:?}"),
                _ => {}
            }
            let length = frame.length();
            input.consume(length);
        }
        gate.advance(0, sequence.count);
        out_of_order.store(sequence.out_of_order, SeqCst);
        if !acks.is_empty() {
            stream.write_all(&acks).expect("the broker reads");
            acks.clear();
        }
    }
}

fn read_confirms(mut input: Input, gate: &Gate) {
    // All up to `low`, and some beyond.
    let mut low = 0;
    let mut beyond = HashSet::new();
    while input.fill() {
        while let Some(frame) = Frame::first(input.unread()) {
            if frame.kind == METHOD {
                assert_ne!(frame.method(), NACK, "the broker does not take a message");
                assert_eq!(frame.method(), ACK, "{frame:?}");
                let tag = u64::from_be_bytes(frame.payload[4..12].try_into().expect("eight bytes"));
                assert!(tag > low && !beyond.contains(&tag), "confirmed twice: {tag}");
                if frame.payload[12] & 1 == 1 {
                    low = tag;
                    beyond.retain(|tag| *tag > low);
                } else {
                    beyond.insert(tag);
                }
                while beyond.remove(&(low + 1)) {
                    low += 1;
                }
            }
            let length = frame.length();
            input.consume(length);
        }
        gate.advance(1, low + beyond.len() as u64);
    }
}

/// Publish, header and body, and where the number is.
fn message(queue: &str, size: usize, persistent: bool) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    append_method(
        &mut bytes,
        1,
        (60, 40),
        &Arguments::default().u16(0).short("").short(queue).u8(0),
    );
    const DELIVERY_MODE: u16 = 0x1000;
    let mode = if persistent { 2 } else { 1 };
    let header = Arguments::default()
        .u16(60)
        .u16(0)
        .u64(size as u64)
        .u16(DELIVERY_MODE)
        .u8(mode);
    append_frame(&mut bytes, HEADER, 1, &header.0);
    let number_at = bytes.len() + FRAME_HEAD;
    append_frame(&mut bytes, BODY, 1, &vec![b'x'; size]);
    (bytes, number_at)
}

/// A frame as it lies in the input.
#[derive(Debug)]
struct Frame<'a> {
    kind: u8,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..FRAME_HEAD)?;
        let size = u32::from_be_bytes(head[3..7].try_into().expect("four bytes")) as usize;
        let payload = bytes.get(FRAME_HEAD..FRAME_HEAD + size)?;
        assert_eq!(*bytes.get(FRAME_HEAD + size)?, FRAME_END);
        Some(Self { kind: head[0], payload })
    }

    fn length(&self) -> usize {
        FRAME_HEAD + self.payload.len() + 1
    }

    fn method(&self) -> Method {
        let number = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        (number(0), number(2))
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

    fn short(self, text: &str) -> Self {
        self.u8(text.len().try_into().expect("a short string"))
            .with(text.as_bytes())
    }

    fn long(self, bytes: &[u8]) -> Self {
        self.u32(bytes.len().try_into().expect("a long string")).with(bytes)
    }
}

fn append_method(bytes: &mut Vec<u8>, channel: u16, method: Method, arguments: &Arguments) {
    let payload = Arguments::default().u16(method.0).u16(method.1).with(&arguments.0);
    append_frame(bytes, METHOD, channel, &payload.0);
}

fn append_frame(bytes: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    let head = Arguments::default().u8(kind).u16(channel).long(payload).u8(FRAME_END);
    bytes.extend_from_slice(&head.0);
}

/// A connection with channel 1 open.
struct Client {
    input: Input,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_write_timeout(Some(Duration::from_secs(60)))
            .expect("a socket option");
        stream.write_all(b"AMQP\x00\x00\x09\x01").expect("the broker reads");
        let mut client = Self {
            input: Input::new(stream),
        };
        client.expect((10, 10));
        let answer = Arguments::default()
            .u32(0)
            .short("PLAIN")
            .long(b"\0guest\0guest")
            .short("en_US");
        client.send(0, (10, 11), &answer);
        let tune = client.expect((10, 30));
        let channel_and_frame_max = &tune[..6];
        client.send(0, (10, 31), &Arguments::default().with(channel_and_frame_max).u16(0));
        client.send(0, (10, 40), &Arguments::default().short("/").short("").u8(0));
        client.expect((10, 41));
        client.call((20, 10), Arguments::default().short(""), (20, 11));
        client
    }

    fn declare(&mut self, queue: &str) {
        const DURABLE: u8 = 2;
        self.call(
            (50, 10),
            Arguments::default().u16(0).short(queue).u8(DURABLE).u32(0),
            (50, 11),
        );
    }

    fn call(&mut self, method: Method, arguments: Arguments, answer: Method) {
        self.send(1, method, &arguments);
        self.expect(answer);
    }

    fn send(&mut self, channel: u16, method: Method, arguments: &Arguments) {
        let mut bytes = Vec::new();
        append_method(&mut bytes, channel, method, arguments);
        self.stream().write_all(&bytes).expect("the broker reads");
    }

    /// The arguments of the next method, which must be this one.
    fn expect(&mut self, method: Method) -> Vec<u8> {
        loop {
            if let Some(frame) = Frame::first(self.input.unread()) {
                let payload = frame.payload.to_vec();
                let (found, length) = (frame.method(), frame.length());
                self.input.consume(length);
                if found == CONNECTION_CLOSE || found == CHANNEL_CLOSE {
                    panic!("refused: {}", String::from_utf8_lossy(&payload[4..]));
                }
                assert_eq!(found, method);
                return payload[4..].to_vec();
            }
            assert!(
                self.input.fill(),
                "the broker closed the connection instead of {method:?}"
            );
        }
    }

    fn stream(&self) -> TcpStream {
        self.input.stream()
    }
}
