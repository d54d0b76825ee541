//! Clients that stop reading, as a process stopped by SIGSTOP does: what is published to them meanwhile costs
//! the broker a bounded amount of memory, others are served, and they find everything in order when they go on.
//!
//! `ROCKETBRIDGE_STOPPED_MIB` is how much is published (default 256).

mod support;

use std::io::{self, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::amqp::{self, Amqp};
use support::broker::{Broker, Options};
use support::measure::{Memory, SetAtEnd, Spread, stretch};
use support::mqtt::{self, Connect, Mqtt};
use support::remoting::{self, Remoting};
use support::stomp::Stomp;
use support::wire::{PATIENCE, is_timeout};

/// What a stopped client may cost, however much is published to it, KiB: the tail of the log that is kept for
/// readers (32 MiB), transient messages (64 MiB), what waits for the disk (32 MiB), one connection's buffers
/// and inbox (8 MiB), the index of what waits (24 bytes a message), and what the allocator makes of that.
const MEMORY_MAX: u64 = 192 << 10;

/// What each further stopped client may cost, KiB.
const FURTHER_MAX: u64 = 16 << 10;

/// What a round trip of others may take, 99 of 100, while a publisher uses the processor as it can.
const P99_MAX: Duration = Duration::from_millis(100);

/// Bytes of a body.
const BODY: usize = 4096;

/// Round trips of which one percentile is taken.
const ROUND_TRIPS: usize = 100;

fn published_bytes() -> usize {
    let mib = std::env::var("ROCKETBRIDGE_STOPPED_MIB").map_or(256, |text| text.parse().expect("a number"));
    mib << 20
}

fn messages() -> u64 {
    (published_bytes() / BODY) as u64
}

fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(BODY, number as u8);
    body
}

fn number_of(body: &[u8]) -> u64 {
    let number = u64::from_le_bytes(*body.first_chunk().expect("8 bytes"));
    assert!(body == self::body(number), "the body of message {number} was altered");
    number
}

/// Floods a broker while others talk, and checks memory and their times. What `flood` gives comes back, with
/// the broker.
fn flooded<T>(
    stopped_clients: usize,
    set_up: impl FnOnce(&Broker) -> T,
    flood: impl FnOnce(&Broker, &mut T),
) -> (Broker, T) {
    flooded_with(&Options::default(), stopped_clients, set_up, flood)
}

fn flooded_with<T>(
    options: &Options,
    stopped_clients: usize,
    set_up: impl FnOnce(&Broker) -> T,
    flood: impl FnOnce(&Broker, &mut T),
) -> (Broker, T) {
    let broker = Broker::start_with(options);
    let memory = Memory::watch(&broker);
    let mut stopped = set_up(&broker);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let others = scope.spawn(|| others_times(&broker, &done));
        {
            let _done = SetAtEnd(&done);
            flood(&broker, &mut stopped);
        }
        let mut p99s: Vec<_> = others
            .join()
            .expect("it does not panic")
            .iter()
            .map(|spread| spread.percentile(99))
            .collect();
        p99s.sort();
        println!(
            "others: p99 of {ROUND_TRIPS} round trips, {} times: {:?} .. {:?}",
            p99s.len(),
            p99s[0],
            p99s[p99s.len() - 1]
        );
        // The median, and more where the broker waits for a processor: other programs have theirs.
        let stretch = stretch(broker.pid());
        println!("the broker ran {stretch:.1} times longer than it had to");
        assert!(
            p99s[p99s.len() / 2] <= P99_MAX.mul_f64(stretch),
            "others were served with these p99: {p99s:?}, while the broker ran {stretch:.1} times longer than it had to"
        );
    });
    memory.assert_growth_below(MEMORY_MAX + (stopped_clients as u64 - 1) * FURTHER_MAX);
    (broker, stopped)
}

/// Round trips of another client through the broker.
fn others_times(broker: &Broker, done: &AtomicBool) -> Vec<Spread> {
    let mut client = Mqtt::connect(broker.address("mqtt"), Connect::clean("other")).expect("it works");
    client.subscribe("others/#", 0).expect("it works");
    let mut amqp = Amqp::connect(broker.address("amqp")).expect("it works");
    let mut spreads = Vec::new();
    while !done.load(Ordering::Relaxed) || spreads.is_empty() {
        let mut spread = Spread::default();
        for _ in 0..ROUND_TRIPS {
            let start = Instant::now();
            client.publish("others/one", 0, b"others").expect("it works");
            client.next_message(PATIENCE).expect("it works").expect("it comes");
            amqp.declare_queue("others", false).expect("it works");
            spread.add(start.elapsed());
        }
        spreads.push(spread);
    }
    spreads
}

// --- AMQP -------------------------------------------------------------------------------------

fn amqp_consumer(broker: &Broker, no_ack: bool) -> Amqp {
    let mut consumer = Amqp::connect(broker.address("amqp")).expect("it works");
    consumer.declare_queue("stopped", true).expect("it works");
    consumer.consume("stopped", no_ack).expect("it works");
    consumer
}

fn to_stopped(body: &[u8], persistent: bool) -> amqp::Publish<'_> {
    amqp::Publish {
        exchange: "",
        key: "stopped",
        persistent,
        mandatory: true,
        body,
    }
}

fn amqp_flood(broker: &Broker, persistent: bool) {
    const WINDOW: u64 = 256;
    let mut publisher = Amqp::connect(broker.address("amqp")).expect("it works");
    publisher.confirm_select().expect("it works");
    let (mut sent, mut confirmed) = (0, 0);
    while confirmed < messages() {
        let mut bytes = Vec::new();
        while sent < messages() && sent < confirmed + WINDOW {
            publisher.put_publish(to_stopped(&body(sent), persistent), &mut bytes);
            sent += 1;
        }
        publisher.wire.send(&bytes).expect("it works");
        match publisher.next_event(Instant::now() + PATIENCE).expect("it works") {
            Some(amqp::Event::Confirmed {
                tag,
                multiple: true,
                ack: true,
            }) => confirmed = tag,
            Some(amqp::Event::Confirmed {
                multiple: false,
                ack: true,
                ..
            }) => confirmed += 1,
            other => panic!("{other:?}"),
        }
    }
}

fn amqp_reads_on(mut consumer: Amqp, ack: bool) {
    for expected in 0..messages() {
        let delivery = consumer.next_delivery(PATIENCE).expect("it works").expect("it comes");
        assert_eq!(number_of(&delivery.body), expected);
        if ack && expected % 1000 == 999 {
            consumer.ack(delivery.tag, true).expect("it works");
        }
    }
}

#[test]
fn an_amqp_consumer_that_stops_with_everything_unacknowledged_costs_bounded_memory() {
    let (_broker, consumer) = flooded(
        1,
        |broker| amqp_consumer(broker, false),
        |broker, _| amqp_flood(broker, true),
    );
    amqp_reads_on(consumer, true);
}

#[test]
fn an_amqp_consumer_of_transient_messages_that_stops_costs_bounded_memory() {
    let (_broker, consumer) = flooded(
        1,
        |broker| amqp_consumer(broker, true),
        |broker, _| amqp_flood(broker, false),
    );
    amqp_reads_on(consumer, false);
}

// --- MQTT -------------------------------------------------------------------------------------

fn mqtt_consumer(broker: &Broker, qos: u8) -> Mqtt {
    let mut consumer = Mqtt::connect(broker.address("mqtt"), Connect::clean("stopped")).expect("it works");
    consumer.subscribe("stopped/#", qos).expect("it works");
    consumer
}

fn mqtt_flood(broker: &Broker, qos: u8) {
    const WINDOW: u64 = 256;
    let mut publisher = Mqtt::connect(broker.address("mqtt"), Connect::clean("floods")).expect("it works");
    let (mut sent, mut confirmed) = (0, 0);
    while sent < messages() || qos > 0 && confirmed < sent {
        let mut bytes = Vec::new();
        for _ in 0..WINDOW.min(messages() - sent).min(confirmed + WINDOW - sent) {
            publisher.put_publish("stopped/topic", qos, &body(sent), &mut bytes);
            sent += 1;
        }
        publisher.wire.send(&bytes).expect("it works");
        if qos == 0 {
            confirmed = sent;
            continue;
        }
        match publisher.next_event(Instant::now() + PATIENCE).expect("it works") {
            Some(mqtt::Event::PubAck(_)) => confirmed += 1,
            other => panic!("{other:?}"),
        }
    }
    // Everything before it has been taken.
    publisher.ping().expect("it works");
}

/// A session keeps a limited number and drops the oldest: what comes is in order and goes to the end.
fn mqtt_reads_on(broker: &Broker, mut consumer: Mqtt) {
    let mut publisher = Mqtt::connect(broker.address("mqtt"), Connect::clean("goes-on")).expect("it works");
    let last = messages();
    publisher
        .publish_confirmed("stopped/topic", &body(last))
        .expect("it works");
    let mut before = None;
    while before != Some(last) {
        let message = consumer.next_message(PATIENCE).expect("it works").expect("it comes");
        let number = number_of(&message.body);
        assert!(before < Some(number), "{number} after {before:?}");
        before = Some(number);
        if message.qos > 0 {
            consumer.puback(message.packet_id).expect("it works");
        }
    }
}

#[test]
fn an_mqtt_subscriber_of_qos_0_that_stops_costs_bounded_memory() {
    let (broker, consumer) = flooded(1, |broker| mqtt_consumer(broker, 0), |broker, _| mqtt_flood(broker, 0));
    mqtt_reads_on(&broker, consumer);
}

#[test]
fn an_mqtt_subscriber_of_qos_1_that_stops_costs_bounded_memory() {
    let (broker, consumer) = flooded(1, |broker| mqtt_consumer(broker, 1), |broker, _| mqtt_flood(broker, 1));
    mqtt_reads_on(&broker, consumer);
}

// --- STOMP, and WebSocket ---------------------------------------------------------------------

fn stomp_consumer(client: io::Result<Stomp>, ack: &str) -> Stomp {
    let mut consumer = client.expect("it works");
    let headers = [("id", "1"), ("destination", "/topic/stopped.#"), ("ack", ack)];
    consumer.call("SUBSCRIBE", &headers, b"").expect("it works");
    consumer
}

/// Reads the first so many.
fn stomp_reads_on(mut consumer: Stomp, ack: bool, count: u64) {
    for expected in 0..count {
        let until = Instant::now() + PATIENCE;
        let frame = consumer.next_frame(until).expect("it works").expect("it comes");
        assert_eq!(frame.command, "MESSAGE", "{frame:?}");
        assert_eq!(number_of(&frame.body), expected);
        if ack && expected % 1000 == 999 {
            let id = frame.header("ack").expect("it is to be acknowledged");
            consumer.send("ACK", &[("id", id)], b"").expect("it works");
        }
    }
}

/// All at once: each gets everything, and nobody's memory is another's. The MQTT session has no limit here: what it
/// does not read costs disk.
#[test]
fn stomp_subscribers_of_every_ack_mode_and_websockets_that_stop_cost_disk_and_bounded_memory() {
    let options = Options {
        mqtt: "session_messages_max = 0\nsession_bytes_max = 0".into(),
        ..Options::default()
    };
    let (broker, (auto, client, auto_socket, client_socket, mut mqtt)) = flooded_with(
        &options,
        5,
        |broker| {
            let (plain, socket) = (broker.address("stomp"), broker.address("stomp_websocket"));
            let auto = stomp_consumer(Stomp::connect(plain), "auto");
            let client = stomp_consumer(Stomp::connect(plain), "client");
            let auto_socket = stomp_consumer(Stomp::connect_websocket(socket), "auto");
            let client_socket = stomp_consumer(Stomp::connect_websocket(socket), "client-individual");
            let mqtt = Mqtt::connect_websocket(broker.address("mqtt_websocket"), Connect::clean("stopped"));
            let mut mqtt = mqtt.expect("it works");
            mqtt.subscribe("stopped/#", 1).expect("it works");
            (auto, client, auto_socket, client_socket, mqtt)
        },
        |broker, _| mqtt_flood(broker, 1),
    );
    stomp_reads_on(client, true, messages());
    // More than sockets and inboxes hold: some of it comes back from the disk.
    let some = messages().min(8192);
    stomp_reads_on(auto, false, some);
    stomp_reads_on(auto_socket, false, some);
    stomp_reads_on(client_socket, false, some);
    let mut acks = Vec::new();
    for expected in 0..messages() {
        let message = mqtt.next_message(PATIENCE).expect("it works").expect("it comes");
        assert_eq!(number_of(&message.body), expected);
        let [high, low] = message.packet_id.to_be_bytes();
        acks.extend([mqtt::PUBACK << 4, 2, high, low]);
        if expected % 256 == 255 {
            mqtt.wire.send(&std::mem::take(&mut acks)).expect("it works");
        }
    }
    drop(broker);
}

// --- remoting ---------------------------------------------------------------------------------

/// Sends, and reads no answer; gives how many went out before the broker took no more.
fn sends_without_reading(client: &mut Remoting) -> u64 {
    client.wire.set_write_timeout(Duration::from_secs(10));
    for number in 0..messages() {
        let send = remoting::Send {
            topic: "Stopped",
            tag: "",
            queue_id: Some(0),
            body: &body(number),
        };
        match client.send(send) {
            Ok(_) => {}
            Err(error) if is_timeout(&error) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    messages()
}

#[test]
fn a_native_producer_that_reads_no_answers_costs_bounded_memory() {
    flooded(
        1,
        |broker| Remoting::connect(broker.address("remoting")).expect("it works"),
        |_, client| {
            let sent = sends_without_reading(client);
            println!("{sent} of {} sends went out", messages());
            assert!(sent > 1000, "the broker took only {sent} messages");
        },
    );
}

#[test]
fn native_consumers_that_pull_and_read_nothing_cost_bounded_memory() {
    const CONSUMERS: usize = 16;
    const PULLS: u64 = 2000;
    flooded(
        CONSUMERS,
        |broker| {
            let mut producer = Remoting::connect(broker.address("remoting")).expect("it works");
            let mut asked = Vec::new();
            for number in 0..messages() {
                let send = remoting::Send {
                    topic: "Stopped",
                    tag: "",
                    queue_id: Some(0),
                    body: &body(number),
                };
                asked.push(producer.send(send).expect("it works"));
                if asked.len() == 256 {
                    for opaque in asked.drain(..) {
                        assert_eq!(producer.wait_for(opaque).expect("it works").code, remoting::SUCCESS);
                    }
                }
            }
            let address = broker.address("remoting");
            let consumers = (0..CONSUMERS).map(|_| Remoting::connect(address).expect("it works"));
            consumers.collect::<Vec<_>>()
        },
        |_, consumers| {
            for (consumer, start) in consumers.iter_mut().zip(0..) {
                consumer.wire.set_write_timeout(Duration::from_secs(1));
                pulls_without_reading(consumer, start * PULLS..(start + 1) * PULLS);
            }
        },
    );
}

/// Pulls from all over the log, so that each answer is somewhere else, all of them in one piece.
fn pulls_without_reading(consumer: &mut Remoting, numbers: std::ops::Range<u64>) {
    let mut bytes = Vec::new();
    for number in numbers {
        let pull = remoting::Pull {
            group: "stopped",
            topic: "Stopped",
            queue_id: 0,
            offset: number * 977 % messages(),
            messages_max: 64,
            suspend: 0,
        };
        consumer.put_pull(pull, &mut bytes);
    }
    match consumer.wire.send(&bytes) {
        Ok(()) => {}
        Err(error) if is_timeout(&error) => {}
        Err(error) => panic!("{error}"),
    }
}

// --- what passes by ---------------------------------------------------------------------------

/// Bytes that two sockets take when nobody reads.
fn socket_capacity() -> io::Result<usize> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut writer = TcpStream::connect(listener.local_addr()?)?;
    let _reader = listener.accept()?;
    writer.set_write_timeout(Some(Duration::from_millis(200)))?;
    let mut written = 0;
    loop {
        match writer.write(&[0; 16 << 10]) {
            Ok(count) => written += count,
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::WouldBlock => return Ok(written),
            Err(error) => return Err(error),
        }
    }
}

/// A few small messages for a stopped consumer, far apart in the log: they must not hold all that lies
/// between them in memory.
#[test]
fn a_stopped_consumer_does_not_hold_the_messages_of_others() {
    const STEP: usize = 1 << 20;
    let capacity = socket_capacity().expect("it works");
    println!("two sockets take {capacity} bytes");
    flooded(
        1,
        |broker| {
            let mut publisher = Amqp::connect(broker.address("amqp")).expect("it works");
            publisher.confirm_select().expect("it works");
            publisher.declare_queue("passing", true).expect("it works");
            let consumer = amqp_consumer(broker, false);
            // Sockets and buffers are full, and the inbox takes what comes.
            for _ in 0..(capacity + (512 << 10)) / BODY {
                publisher
                    .publish_confirmed(to_stopped(&[0; BODY], true))
                    .expect("it works");
            }
            (publisher, consumer)
        },
        |_, (publisher, _)| {
            let large = vec![0; STEP];
            for _ in 0..published_bytes() / STEP {
                let passing = amqp::Publish {
                    key: "passing",
                    ..to_stopped(&large, true)
                };
                publisher.publish_confirmed(passing).expect("it works");
                publisher
                    .publish_confirmed(to_stopped(b"small", true))
                    .expect("it works");
            }
        },
    );
}
