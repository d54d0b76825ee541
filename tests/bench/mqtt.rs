//! The load for MQTT 3.1.1, and connections that do nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::RunOptions;
use crate::measure::{Batch, FEW_DELIVERIES, Gate, Input, Process, Run, Sequence, Window, load_average};

const CONNECT: u8 = 0x10;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// Long enough to send no PINGREQ in a run, and no broker refuses it as it may refuse 0.
const KEEP_ALIVE: u16 = 3600;

/// After this, brokers have freed what they free when connections are quiet.
const SETTLE_TIME: Duration = Duration::from_secs(3);

pub struct Options {
    pub run: RunOptions,
    pub qos: u8,
    /// QoS 1: publishes without PUBACK at most.
    pub confirm: u64,
    pub subscribers: usize,
}

/// One publisher, one topic, some subscribers, clean sessions.
pub fn run(options: &Options) {
    let topic = format!("load/{}", std::process::id());
    let count = options.subscribers;
    let confirm = if options.qos == 0 { 0 } else { options.confirm };
    let mut windows = vec![Window::delivered(options.run.window); count];
    windows.push(Window::confirmed(confirm));
    let gate = Gate::new(windows);
    let out_of_order = AtomicU64::new(0);
    let subscribe = |index| subscribe(connect(options.run.address, &format!("s{index}")), &topic, options.qos);
    let subscribers: Vec<TcpStream> = (0..count).map(subscribe).collect();
    let publisher = connect(options.run.address, "p");
    let mut streams: Vec<TcpStream> = subscribers.iter().map(clone).collect();
    streams.push(clone(&publisher));
    let (message, number_at) = message(&topic, options.run.size, options.qos);
    thread::scope(|scope| {
        let (gate, out_of_order) = (&gate, &out_of_order);
        for (index, stream) in subscribers.into_iter().enumerate() {
            scope.spawn(move || consume(stream, index, count, gate, out_of_order));
        }
        let mut writer = clone(&publisher);
        scope.spawn(move || read_confirms(publisher, count, gate));
        let id_at = (options.qos > 0).then_some(number_at - 2);
        scope.spawn(move || Batch::new(&message, number_at, id_at).publish(&mut writer, gate));
        let run = Run {
            name: format!("mqtt-qos{}-1to{count}", options.qos),
            options: &options.run,
            gate,
            consumers: 0..count,
            confirms: (confirm > 0).then_some(count),
            out_of_order,
        };
        run.measure();
        for stream in streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Opens connections that then do nothing and prints what each costs.
pub fn idle(address: SocketAddr, broker: Process, count: u64) {
    let (resident, cpu, begin) = (broker.resident(), broker.cpu(), Instant::now());
    let connections: Vec<TcpStream> = (0..count)
        .map(|index| connect(address, &format!("idle-{index}")))
        .collect();
    let seconds = begin.elapsed().as_secs_f64();
    thread::sleep(SETTLE_TIME);
    let each = 1.0 / connections.len() as f64;
    println!(
        "name=mqtt-idle connections={count} rate={:.0} cpu_us={:.1} kib_each={:.2} rss_before_mib={:.1} rss_mib={:.1} \
         load_average={}",
        count as f64 / seconds,
        (broker.cpu() - cpu) * 1e6 * each,
        (broker.resident() - resident) * each,
        resident / 1024.0,
        broker.resident() / 1024.0,
        load_average(),
    );
}

/// Whether a broker lets a client in there.
pub fn answers(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok_and(|stream| try_connect(stream, "wait").is_ok())
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a descriptor")
}

fn connect(address: SocketAddr, name: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the broker listens");
    try_connect(stream, &format!("load-{}-{name}", std::process::id())).expect("the broker lets us in")
}

fn try_connect(mut stream: TcpStream, client_id: &str) -> std::io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut body = b"\x00\x04MQTT\x04\x02".to_vec();
    body.extend_from_slice(&KEEP_ALIVE.to_be_bytes());
    append_text(&mut body, client_id);
    stream.write_all(&packet(CONNECT, &body))?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    if answer != [0x20, 2, 0, 0] {
        return Err(std::io::Error::other(format!("{answer:?}")));
    }
    Ok(stream)
}

fn subscribe(mut stream: TcpStream, topic: &str, qos: u8) -> TcpStream {
    let mut body = vec![0, 1];
    append_text(&mut body, topic);
    body.push(qos);
    stream.write_all(&packet(SUBSCRIBE, &body)).expect("the broker reads");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("a SUBACK");
    assert_eq!(answer, [SUBACK, 3, 0, 1, qos]);
    stream
}

fn consume(stream: TcpStream, index: usize, readers: usize, gate: &Gate, out_of_order: &AtomicU64) {
    let mut writer = clone(&stream);
    let mut input = Input::new(stream).napping(readers, FEW_DELIVERIES);
    let mut sequence = Sequence::default();
    let mut acks = Vec::new();
    while input.fill() {
        let wrong = sequence.out_of_order;
        while let Some((first, body, length)) = first_packet(input.unread()) {
            if first & 0xF0 == PUBLISH {
                let topic_end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
                if first & 0x06 == 0 {
                    sequence.see(&body[topic_end..]);
                } else {
                    let id = [body[topic_end], body[topic_end + 1]];
                    sequence.see(&body[topic_end + 2..]);
                    acks.extend_from_slice(&[PUBACK, 2, id[0], id[1]]);
                }
            }
            input.consume(length);
        }
        gate.advance(index, sequence.count);
        if wrong < sequence.out_of_order {
            out_of_order.fetch_add(sequence.out_of_order - wrong, SeqCst);
        }
        if !acks.is_empty() {
            writer.write_all(&acks).expect("the broker reads");
            acks.clear();
        }
    }
}

fn read_confirms(stream: TcpStream, mark: usize, gate: &Gate) {
    const FEW_PUBACKS: usize = 16 * 4;
    let mut input = Input::new(stream).napping(1, FEW_PUBACKS);
    let mut count = 0;
    while input.fill() {
        while let Some((first, body, length)) = first_packet(input.unread()) {
            assert_eq!((first, body.len()), (PUBACK, 2));
            count += 1;
            input.consume(length);
        }
        gate.advance(mark, count);
    }
}

/// First octet, what follows the length, octets in all.
fn first_packet(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let mut size = 0;
    for (index, octet) in bytes.get(1..)?.iter().take(4).enumerate() {
        size |= usize::from(octet & 0x7F) << (7 * index);
        if octet & 0x80 == 0 {
            let head = index + 2;
            return Some((bytes[0], bytes.get(head..head + size)?, head + size));
        }
    }
    assert!(bytes.len() < 5, "a length of more than four octets");
    None
}

/// A PUBLISH, and where the number is; a packet identifier is before it.
fn message(topic: &str, size: usize, qos: u8) -> (Vec<u8>, usize) {
    let mut body = Vec::new();
    append_text(&mut body, topic);
    if qos > 0 {
        body.extend_from_slice(&[0, 0]);
    }
    let before_payload = body.len();
    body.resize(before_payload + size, b'x');
    let packet = packet(PUBLISH | qos << 1, &body);
    let number_at = packet.len() - body.len() + before_payload;
    (packet, number_at)
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
    bytes.extend_from_slice(&u16::try_from(text.len()).expect("a short text").to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}
