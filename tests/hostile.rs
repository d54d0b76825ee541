//! What peers send that no honest client would: it costs them their connection, with the protocol's error
//! where there is one, and the broker neither its life nor memory, and others are served meanwhile.
//!
//! `ROCKETBRIDGE_CONNECTIONS` is how many connections are opened and left (default 300).

mod support;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::amqp::{self, Amqp, Bytes};
use support::broker::{Broker, Options};
use support::measure::{Memory, SetAtEnd, Spread, stretch};
use support::mqtt::{self, Connect, Mqtt};
use support::remoting::{self, Remoting};
use support::stomp::Stomp;
use support::wire::{self, PATIENCE, Wire};

/// What everything in here together may cost the broker, KiB.
const MEMORY_MAX: u64 = 64 << 10;

/// Connections that attack at a time.
const AT_ONCE: usize = 40;

/// What a round trip of others may take, one of two, meanwhile: served late is served, but held up is not.
/// Wide, for a machine that does much else; the times themselves are printed.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);

/// What a connection that was opened and left may cost, KiB.
const LEFT_MAX: u64 = 16;

/// Depth of tables: 18,000 levels were enough to overflow the stack of another broker's parser.
const TABLE_DEPTH: usize = 18_000;

/// Depth of JSON.
const JSON_DEPTH: usize = 50_000;

/// How far an attacker goes the honest way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Nothing was said.
    Connecting,
    /// AMQP: `connection.start` came.
    AmqpStart,
    /// AMQP: channel 1 is open.
    AmqpLogin,
    /// MQTT: CONNACK of that version came.
    MqttLogin(u8),
    /// Remoting: one request was answered.
    Request,
    /// STOMP: CONNECTED came.
    StompLogin,
    /// WebSocket: the handshake with that path is done, and frames are the attacker's own.
    WebSocket(&'static str),
    /// WebSocket: the handshake with that path is done, and bytes come in messages.
    Messages(&'static str),
    /// MQTT over WebSocket: CONNACK of that version came.
    MqttMessages(u8),
    /// STOMP over WebSocket: CONNECTED came.
    StompMessages,
}

/// What the broker says before it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing.
    Silence,
    /// `connection.close` with that code.
    AmqpClose(u16),
    /// The protocol header that it would have liked.
    AmqpHeader,
    /// MQTT's CONNACK with that code.
    MqttConnAck(u8),
    /// MQTT 5.0 DISCONNECT with that reason.
    MqttDisconnect(u8),
    /// STOMP's ERROR with that message.
    StompError(&'static str),
    /// A WebSocket's close frame with that code.
    WebSocketClose(u16),
}

struct Attack {
    name: String,
    listener: &'static str,
    after: After,
    bytes: Vec<u8>,
    answer: Answer,
}

fn attack(name: &str, listener: &'static str, after: After, bytes: Vec<u8>, answer: Answer) -> Attack {
    Attack {
        name: format!("{name} to {listener} after {after:?}"),
        listener,
        after,
        bytes,
        answer,
    }
}

/// A field table in a field table in a field table; `len` is what is inside of the outermost length.
fn nested_table(depth: usize) -> Vec<u8> {
    // Each level: an empty name, type `F`, and the length of what follows.
    let mut table = Vec::with_capacity(depth * 6);
    for level in (0..depth).rev() {
        table.extend([0, b'F']);
        table.extend((level as u32 * 6).to_be_bytes());
    }
    table
}

/// An array in an array in a table.
fn nested_array(depth: usize) -> Vec<u8> {
    let mut table = vec![1, b'x'];
    for level in (0..depth).rev() {
        table.push(b'A');
        table.extend((level as u32 * 5).to_be_bytes());
    }
    table
}

fn declare_with(arguments: &[u8]) -> Vec<u8> {
    let method = Bytes::method(amqp::QUEUE_DECLARE).u16(0).short("q").u8(0);
    method.long(arguments).frame(amqp::METHOD, 1)
}

fn publish_with(headers: &[u8]) -> Vec<u8> {
    let method = Bytes::method(amqp::BASIC_PUBLISH).u16(0).short("").short("q").u8(0);
    let mut bytes = method.frame(amqp::METHOD, 1);
    let header = Bytes::default().u16(60).u16(0).u64(0).u16(1 << 13).long(headers);
    bytes.extend(header.frame(amqp::HEADER, 1));
    bytes
}

fn start_ok_with(properties: &[u8]) -> Vec<u8> {
    let method = Bytes::method(amqp::CONNECTION_START_OK).long(properties).short("PLAIN");
    method.long(b"\0guest\0guest").short("en_US").frame(amqp::METHOD, 0)
}

/// The head of a frame that claims 4 GiB, and a little of it.
fn amqp_claim(kind: u8) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 1];
    bytes.extend(u32::MAX.to_be_bytes());
    bytes.extend([0; 100]);
    bytes
}

fn amqp_attacks() -> Vec<Attack> {
    use After::{AmqpLogin, AmqpStart, Connecting};
    use Answer::{AmqpClose, AmqpHeader};
    let amqp = |name, after, bytes, answer| attack(name, "amqp", after, bytes, answer);
    let mut after_header = amqp::PROTOCOL_HEADER.to_vec();
    after_header.extend(amqp_claim(amqp::METHOD));
    vec![
        amqp(
            "a frame that claims 4 GiB",
            Connecting,
            amqp_claim(amqp::METHOD),
            AmqpHeader,
        ),
        amqp(
            "a frame that claims 4 GiB",
            AmqpStart,
            amqp_claim(amqp::METHOD),
            AmqpClose(501),
        ),
        amqp(
            "a frame that claims 4 GiB",
            AmqpLogin,
            amqp_claim(amqp::METHOD),
            AmqpClose(501),
        ),
        amqp(
            "a body that claims 4 GiB",
            AmqpLogin,
            amqp_claim(amqp::BODY),
            AmqpClose(501),
        ),
        amqp(
            "tables, more than a frame may hold",
            AmqpStart,
            start_ok_with(&nested_table(TABLE_DEPTH)),
            AmqpClose(501),
        ),
        amqp(
            "tables, as many as a frame may hold",
            AmqpStart,
            start_ok_with(&nested_table(1300)),
            AmqpClose(502),
        ),
        amqp(
            "arrays, as many as a frame may hold",
            AmqpStart,
            start_ok_with(&nested_array(1500)),
            AmqpClose(502),
        ),
        amqp(
            "tables in arguments",
            AmqpLogin,
            declare_with(&nested_table(TABLE_DEPTH)),
            AmqpClose(502),
        ),
        amqp(
            "arrays in arguments",
            AmqpLogin,
            declare_with(&nested_array(TABLE_DEPTH)),
            AmqpClose(502),
        ),
        amqp(
            "tables in headers",
            AmqpLogin,
            publish_with(&nested_table(TABLE_DEPTH)),
            AmqpClose(502),
        ),
        amqp(
            "arrays in headers",
            AmqpLogin,
            publish_with(&nested_array(TABLE_DEPTH)),
            AmqpClose(502),
        ),
    ]
}

fn mqtt_attacks() -> Vec<Attack> {
    use After::{Connecting, MqttLogin};
    use Answer::{MqttConnAck, MqttDisconnect, Silence};
    let mqtt = |name, after, bytes, answer| attack(name, "mqtt", after, bytes, answer);
    // 268,435,455 bytes, the most that four bytes of length can say.
    let claim = |packet_type: u8| vec![packet_type << 4, 0xff, 0xff, 0xff, 0x7f, 0, 4, b'M', b'Q'];
    let claim_of = |version: u8| [&claim(mqtt::CONNECT)[..], &[b'T', b'T', version]].concat();
    // A fifth byte of length does not exist.
    let too_long = |packet_type: u8| vec![packet_type << 4, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
    vec![
        mqtt("a CONNECT of 268 MB", Connecting, claim_of(mqtt::V311), MqttConnAck(3)),
        mqtt("a CONNECT of 268 MB", Connecting, claim_of(mqtt::V5), MqttConnAck(0x95)),
        mqtt("a length of five bytes", Connecting, too_long(mqtt::CONNECT), Silence),
        mqtt(
            "a PUBLISH of 268 MB",
            MqttLogin(mqtt::V311),
            claim(mqtt::PUBLISH),
            Silence,
        ),
        mqtt(
            "a PUBLISH of 268 MB",
            MqttLogin(mqtt::V5),
            claim(mqtt::PUBLISH),
            MqttDisconnect(0x95),
        ),
        mqtt(
            "a length of five bytes",
            MqttLogin(mqtt::V311),
            too_long(mqtt::PUBLISH),
            Silence,
        ),
        mqtt(
            "a length of five bytes",
            MqttLogin(mqtt::V5),
            too_long(mqtt::PUBLISH),
            MqttDisconnect(0x81),
        ),
    ]
}

fn remoting_attacks() -> Vec<Attack> {
    let head = |length: u32, header: u32| {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(header.to_be_bytes());
        bytes.extend([b'{'; 64]);
        bytes
    };
    let nested = |open: &str| {
        let inside = open.repeat(JSON_DEPTH);
        remoting::frame(
            format!("{{\"code\":34,\"opaque\":1,\"extFields\":{inside}").as_bytes(),
            b"",
        )
    };
    let frames = [
        ("a frame of 2^31 bytes", head(1 << 31, 100)),
        ("a frame of 2^32 - 1 bytes", head(u32::MAX, 100)),
        ("a frame of 0 bytes", head(0, 100)),
        ("a frame without room for its head", head(3, 0)),
        ("a frame shorter than its header", head(100, 97)),
        ("a header of 2^24 - 1 bytes", head(1 << 20, 0x00ff_ffff)),
        ("objects 50,000 deep in the header", nested("{\"a\":")),
        ("arrays 50,000 deep in the header", nested("[")),
    ];
    let mut attacks = Vec::new();
    for listener in ["remoting", "name_server"] {
        for after in [After::Connecting, After::Request] {
            let with = |(name, bytes): &(&str, Vec<u8>)| attack(name, listener, after, bytes.clone(), Answer::Silence);
            attacks.extend(frames.iter().map(with));
        }
    }
    attacks
}

fn stomp_attacks() -> Vec<Attack> {
    use Answer::StompError;
    let malformed = StompError("malformed frame");
    let too_large = StompError("frame too large");
    let many_headers = [&b"SEND\n"[..], &b"a:b\n".repeat(200_000)].concat();
    let long_header = [&b"SEND\na:"[..], &vec![b'x'; 3 << 20]].concat();
    let frames: [(&str, Vec<u8>, Answer); 10] = [
        (
            "a content-length of 10^19",
            b"SEND\ndestination:/queue/a\ncontent-length:10000000000000000000\n\nx".to_vec(),
            too_large,
        ),
        (
            "a content-length below zero",
            b"SEND\ndestination:/queue/a\ncontent-length:-1\n\nx\0".to_vec(),
            malformed,
        ),
        ("200,000 headers", many_headers, too_large),
        ("a header of 3 MB", long_header, too_large),
        ("a command without an end", vec![b'A'; 100_000], too_large),
        (
            "a TLS handshake",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\0".to_vec(),
            malformed,
        ),
        ("a header without a colon", b"SEND\nnothing\n\n\0".to_vec(), malformed),
        ("an undefined escape", b"SEND\na:\\q\n\n\0".to_vec(), malformed),
        ("a carriage return alone", b"SEND\na:b\rc\n\n\0".to_vec(), malformed),
        ("no blank line", b"SEND\na:b\n\0".to_vec(), malformed),
    ];
    let mut attacks = Vec::new();
    for (name, bytes, answer) in frames {
        attacks.push(attack(name, "stomp", After::StompLogin, bytes.clone(), answer));
        let is_escape = name == "an undefined escape";
        if !is_escape {
            attacks.push(attack(name, "stomp", After::Connecting, bytes, answer));
        }
    }
    let connect = [&b"CONNECT\na:"[..], &[b'x'; 20_000]].concat();
    attacks.push(attack(
        "a CONNECT of 20 kB",
        "stomp",
        After::Connecting,
        connect,
        too_large,
    ));
    attacks
}

fn websocket_attacks() -> Vec<Attack> {
    use Answer::WebSocketClose;
    let frames: [(&str, &[u8], u16); 6] = [
        ("an unmasked frame", b"\x82\x01x", 1002),
        (
            "a frame of 2^63 bytes",
            b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
            1002,
        ),
        ("a reserved bit", b"\xc2\x80\0\0\0\0", 1002),
        ("an unknown opcode", b"\x83\x80\0\0\0\0", 1002),
        ("a ping in parts", b"\x09\x80\0\0\0\0", 1002),
        ("a continuation of nothing", b"\x80\x80\0\0\0\0", 1002),
    ];
    let mut attacks = Vec::new();
    for (listener, path) in [("stomp_websocket", "/ws"), ("mqtt_websocket", "/mqtt")] {
        for (name, bytes, code) in frames {
            let after = After::WebSocket(path);
            attacks.push(attack(name, listener, after, bytes.to_vec(), WebSocketClose(code)));
        }
    }
    let not_text = b"\x81\x81\0\0\0\0\xff".to_vec();
    let after = After::WebSocket("/ws");
    // What is wrong in the protocol itself is wrong over WebSocket, too.
    for mut one in mqtt_attacks().into_iter().chain(stomp_attacks()) {
        let (listener, after) = match one.after {
            After::MqttLogin(version) => ("mqtt_websocket", After::MqttMessages(version)),
            After::StompLogin => ("stomp_websocket", After::StompMessages),
            _ if one.listener == "mqtt" => ("mqtt_websocket", After::Messages("/mqtt")),
            _ => ("stomp_websocket", After::Messages("/ws")),
        };
        one.name = format!("{} over {listener}", one.name);
        (one.listener, one.after) = (listener, after);
        attacks.push(one);
    }
    attacks.push(attack(
        "text that is none",
        "stomp_websocket",
        after,
        not_text,
        WebSocketClose(1007),
    ));
    let text = b"\x81\x81\0\0\0\0x".to_vec();
    let after = After::WebSocket("/mqtt");
    attacks.push(attack(
        "a text message",
        "mqtt_websocket",
        after,
        text,
        WebSocketClose(1003),
    ));
    attacks
}

/// A WebSocket whose frames are the attacker's own.
fn upgrade(address: SocketAddr, path: &str) -> std::io::Result<Wire> {
    let mut wire = Wire::connect(address)?;
    wire.send(wire::upgrade_request(path).as_bytes())?;
    let patience = Instant::now() + PATIENCE;
    loop {
        if let Some(at) = wire.buffered().windows(4).position(|window| window == b"\r\n\r\n") {
            let head = wire.take(at + 4);
            assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
            return Ok(wire);
        }
        if !wire.fill(patience)? {
            return wire::unexpected("silence");
        }
    }
}

fn all_attacks() -> Vec<Attack> {
    let mut attacks = amqp_attacks();
    attacks.extend(mqtt_attacks());
    attacks.extend(remoting_attacks());
    attacks.extend(stomp_attacks());
    attacks.extend(websocket_attacks());
    attacks
}

/// An attacker that has gone the honest way so far.
enum Attacker {
    Plain(Wire),
    Amqp(Box<Amqp>),
    Mqtt(Box<Mqtt>),
    Remoting(Box<Remoting>),
}

impl Attacker {
    fn open(address: SocketAddr, after: After) -> Self {
        let result = match after {
            After::Connecting => Wire::connect(address).map(Self::Plain),
            After::AmqpStart => Amqp::raw(address).and_then(|mut client| {
                client.wire.send(amqp::PROTOCOL_HEADER)?;
                client.wait_for(amqp::CONNECTION_START)?;
                Ok(Self::Amqp(Box::new(client)))
            }),
            After::AmqpLogin => Amqp::connect(address).map(|client| Self::Amqp(Box::new(client))),
            After::MqttLogin(version) => {
                let client_id = format!("attacker-{:?}", thread::current().id());
                let connect = Connect {
                    version,
                    ..Connect::clean(&client_id)
                };
                Mqtt::connect(address, connect).map(|client| Self::Mqtt(Box::new(client)))
            }
            After::StompLogin => Stomp::connect(address).map(|client| Self::Plain(client.wire)),
            After::WebSocket(path) => upgrade(address, path).map(Self::Plain),
            After::Messages(path) => Wire::upgraded(address, path).map(Self::Plain),
            After::MqttMessages(version) => {
                let client_id = format!("attacker-{:?}", thread::current().id());
                let connect = Connect {
                    version,
                    ..Connect::clean(&client_id)
                };
                Mqtt::connect_websocket(address, connect).map(|client| Self::Mqtt(Box::new(client)))
            }
            After::StompMessages => Stomp::connect_websocket(address).map(|client| Self::Plain(client.wire)),
            After::Request => Remoting::connect(address).and_then(|mut client| {
                client.call(remoting::HEART_BEAT, json!({}), EMPTY_HEARTBEAT)?;
                Ok(Self::Remoting(Box::new(client)))
            }),
        };
        result.unwrap_or_else(|error| panic!("after {after:?}: {error}"))
    }

    fn wire(&mut self) -> &mut Wire {
        match self {
            Self::Plain(wire) => wire,
            Self::Amqp(client) => &mut client.wire,
            Self::Mqtt(client) => &mut client.wire,
            Self::Remoting(client) => &mut client.wire,
        }
    }

    /// The broker may close before everything is sent.
    fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.wire().send(bytes) {
            assert!(
                matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
                "{error}"
            );
        }
    }

    /// What the broker says until it ends the connection.
    fn answer(&mut self) -> Answer {
        if let Self::Amqp(client) = self {
            return match client.next_event(Instant::now() + PATIENCE) {
                Ok(Some(amqp::Event::Closed {
                    code, connection: true, ..
                })) => {
                    // The last word is ours; it may come too late.
                    let _ = client.send_method(0, Bytes::method(amqp::CONNECTION_CLOSE_OK));
                    assert_eq!(client.wire.read_to_end(), b"");
                    Answer::AmqpClose(code)
                }
                Err(_) => Answer::Silence,
                Ok(other) => panic!("{other:?}"),
            };
        }
        // STOMP ends frames with a line of their own.
        let said = self.wire().read_to_end();
        let lines = said.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        match &said[lines..] {
            b"" => Answer::Silence,
            [0x20, _, 0, code, ..] => Answer::MqttConnAck(*code),
            [0xe0, _, reason, ..] => Answer::MqttDisconnect(*reason),
            amqp::PROTOCOL_HEADER => Answer::AmqpHeader,
            [0x88, 2, high, low] => Answer::WebSocketClose(u16::from_be_bytes([*high, *low])),
            error if error.starts_with(b"ERROR\n") => {
                let text = String::from_utf8_lossy(error);
                let message = text.lines().find_map(|line| line.strip_prefix("message:"));
                Answer::StompError(message.expect("ERROR has a message").to_owned().leak())
            }
            other => panic!("{}", other.escape_ascii()),
        }
    }
}

const EMPTY_HEARTBEAT: &[u8] = br#"{"clientID":"a","producerDataSet":[],"consumerDataSet":[]}"#;

#[test]
fn what_cannot_be_costs_its_sender_the_connection_and_the_broker_little() {
    let broker = Broker::start();
    let attacks = all_attacks();
    let memory = Memory::watch(&broker);
    others_are_served(&broker, || {
        for attack in &attacks {
            let address = broker.address(attack.listener);
            let mut one = Attacker::open(address, attack.after);
            one.send(&attack.bytes);
            assert_eq!(one.answer(), attack.answer, "{}", attack.name);

            let mut many: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..AT_ONCE)
                    .map(|_| {
                        scope.spawn(|| {
                            let mut attacker = Attacker::open(address, attack.after);
                            attacker.send(&attack.bytes);
                            attacker
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("it can connect"))
                    .collect()
            });
            for attacker in &mut many {
                assert_eq!(attacker.answer(), attack.answer, "many at once: {}", attack.name);
            }
        }
    });
    memory.assert_growth_below(MEMORY_MAX);
    assert!(!broker.log().contains("panic"), "{}", broker.log());
}

/// Clients of all protocols talk before and while something happens, and are not held up.
fn others_are_served<T>(broker: &Broker, meanwhile: impl FnOnce() -> T) -> T {
    let mut others = Others::connect(broker);
    let mut usual = Spread::default();
    for _ in 0..20 {
        others.talk(&mut usual);
    }
    let done = AtomicBool::new(false);
    let (result, times) = thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let mut times = Spread::default();
            while times.len() == 0 || !done.load(Ordering::Relaxed) {
                others.talk(&mut times);
            }
            times
        });
        let end = SetAtEnd(&done);
        let result = meanwhile();
        drop(end);
        (result, talking.join().expect("it does not panic"))
    });
    let [before, median, p99] = [usual.percentile(50), times.percentile(50), times.percentile(99)];
    println!(
        "others: median {before:?} before; median {median:?}, p99 {p99:?} of {} meanwhile",
        times.len()
    );
    // Where the broker has to wait for a processor, it cannot be as fast.
    let stretch = stretch(broker.pid());
    assert!(
        median <= ROUND_TRIP_MAX.mul_f64(stretch),
        "others took {median:?}, and {before:?} before, while the broker ran {stretch:.1} times longer than it had to"
    );
    result
}

/// A client of each protocol.
struct Others {
    amqp: Amqp,
    mqtt: Mqtt,
    mqtt_websocket: Mqtt,
    stomp: Stomp,
    native: Remoting,
}

impl Others {
    fn connect(broker: &Broker) -> Self {
        let socket = broker.address("mqtt_websocket");
        Self {
            amqp: Amqp::connect(broker.address("amqp")).expect("it works"),
            mqtt: Mqtt::connect(broker.address("mqtt"), Connect::clean("honest")).expect("it works"),
            mqtt_websocket: Mqtt::connect_websocket(socket, Connect::clean("honest-websocket")).expect("it works"),
            stomp: Stomp::connect(broker.address("stomp")).expect("it works"),
            native: Remoting::connect(broker.address("remoting")).expect("it works"),
        }
    }

    /// A round trip of each.
    fn talk(&mut self, times: &mut Spread) {
        let mut timed = |act: &mut dyn FnMut()| {
            let start = Instant::now();
            act();
            times.add(start.elapsed());
        };
        timed(&mut || drop(self.amqp.declare_queue("honest", false).expect("it works")));
        timed(&mut || self.mqtt.ping().expect("it works"));
        timed(&mut || self.mqtt_websocket.ping().expect("it works"));
        timed(&mut || {
            let headers = [("destination", "/topic/honest.stomp")];
            self.stomp.call("SEND", &headers, b"honest").expect("it works");
        });
        timed(&mut || {
            let beat = self.native.call(remoting::HEART_BEAT, json!({}), EMPTY_HEARTBEAT);
            beat.expect("it works");
        });
    }
}

/// Bodies are not part of the frame: what is wrong in one is answered, and the connection goes on.
#[test]
fn a_body_that_is_nested_too_deep_is_refused() {
    let broker = Broker::start();
    let mut native = Remoting::connect(broker.address("remoting")).expect("it works");
    // Heartbeat, lock, unlock, check of a filter.
    for code in [remoting::HEART_BEAT, 41, 42, 46] {
        for open in [
            "[",
            "{\"a\":",
            "{\"consumerDataSet\":[",
            "{\"subscriptionData\":{\"a\":",
        ] {
            let response = native
                .call(code, json!({}), open.repeat(JSON_DEPTH).as_bytes())
                .expect("it works");
            assert_ne!(response.code, remoting::SUCCESS, "{code} with {open}");
        }
    }
    native
        .call(remoting::HEART_BEAT, json!({}), EMPTY_HEARTBEAT)
        .expect("it works");
}

/// Who asks for something else at a WebSocket's address is told what is there, as load balancers expect.
#[test]
fn a_request_that_opens_no_websocket_is_answered_in_http() {
    let broker = Broker::start();
    let listeners = [
        (
            "mqtt_websocket",
            "MQTT over WebSocket",
            ["/mqtt", "/mqtt/", "/ws", "/ws/", "/"],
        ),
        (
            "stomp_websocket",
            "STOMP over WebSocket",
            ["/ws", "/ws/", "/stomp", "/stomp/", "/"],
        ),
    ];
    for (listener, title, paths) in listeners {
        let address = broker.address(listener);
        for path in paths {
            upgrade(address, path).expect("it works");
            let handshake = wire::upgrade_request(path);
            let long = format!("POST {path} HTTP/1.1\r\n\r\n{}", "x".repeat(1 << 20));
            for (request, status) in [
                (format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n"), "426 "),
                (format!("GET {path} HTTP/1.0\r\n\r\n"), "426 "),
                (handshake.replace("Version: 13", "Version: 8"), "426 "),
                (handshake.replace("dGhlIHNhbXBsZSBub25jZQ==", "x"), "400 "),
                (wire::upgrade_request("/nowhere"), "404 "),
                // Its rest is still on its way when it is answered.
                (long, "405 "),
            ] {
                let mut wire = Wire::connect(address).expect("it works");
                wire.send(request.as_bytes()).expect("it works");
                let answer = String::from_utf8(wire.read_to_end()).expect("text");
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status}")),
                    "{request:.100}: {answer}"
                );
                assert!(answer.contains(&format!("Here listens {title}; paths: ")), "{answer}");
            }
        }
    }
}

/// What a peer says that it is going to send costs nothing until it comes.
#[test]
fn a_claim_within_the_limits_costs_no_memory() {
    const CONNECTIONS: usize = 100;
    const CHANNELS: u16 = 20;
    let broker = Broker::start();
    let memory = Memory::watch(&broker);
    let mut open = Vec::new();
    for number in 0..CONNECTIONS {
        let mut amqp = Amqp::connect(broker.address("amqp")).expect("it works");
        for channel in 1..=CHANNELS {
            if channel > 1 {
                amqp.send_method(channel, Bytes::method(amqp::CHANNEL_OPEN).short(""))
                    .expect("it works");
                amqp.wait_for(amqp::CHANNEL_OPEN_OK).expect("it works");
            }
            // A message of 16 MiB, of which nothing follows.
            let method = Bytes::method(amqp::BASIC_PUBLISH).u16(0).short("").short("q").u8(0);
            let header = Bytes::default().u16(60).u16(0).u64(16 << 20).u16(0);
            amqp.send_method(channel, method).expect("it works");
            amqp.wire.send(&header.frame(amqp::HEADER, channel)).expect("it works");
        }
        open.push(Attacker::Amqp(Box::new(amqp)));

        let client_id = format!("claims-{number}");
        let mut mqtt = Mqtt::connect(broker.address("mqtt"), Connect::clean(&client_id)).expect("it works");
        // A PUBLISH of 16,777,088 bytes.
        mqtt.wire
            .send(&[0x30, 0x80, 0xff, 0xff, 0x07, 0, 1, b't'])
            .expect("it works");
        open.push(Attacker::Mqtt(Box::new(mqtt)));

        let mut native = Attacker::open(broker.address("remoting"), After::Request);
        let mut head = (15_u32 << 20).to_be_bytes().to_vec();
        head.extend(1000_u32.to_be_bytes());
        native.send(&head);
        open.push(native);

        let stomp = Stomp::connect(broker.address("stomp")).expect("it works");
        let mut stomp = Attacker::Plain(stomp.wire);
        stomp.send(b"SEND\ndestination:/queue/q\ncontent-length:16777216\n\nx");
        open.push(stomp);

        // A message of 2^62 bytes, and in it the same PUBLISH.
        let mut socket = Attacker::open(broker.address("mqtt_websocket"), After::WebSocket("/mqtt"));
        let mut bytes = wire::message(&Connect::clean(&format!("{client_id}-socket")).packet());
        bytes.extend(b"\x82\xff\x40\0\0\0\0\0\0\0\0\0\0\0");
        bytes.extend([0x30, 0x80, 0xff, 0xff, 0x07, 0, 1, b't']);
        socket.send(&bytes);
        open.push(socket);
    }
    // All of it was read when a connection opened later is served.
    Amqp::connect(broker.address("amqp")).expect("it works");
    memory.assert_growth_below(MEMORY_MAX);
}

/// Many large packets that never end cost no more than they may in total; those who send them are closed, and who sends
/// a whole one meanwhile is served.
#[test]
fn packets_that_never_end_have_a_limit_in_total() {
    const ATTACKERS: usize = 24;
    const EACH: usize = 15 << 20;
    const IN_TOTAL: usize = 16 << 20;
    /// KiB; a third of what all send. Buffers that grow leave holes behind.
    const GROWTH_MAX: u64 = (ATTACKERS * EACH / 3 / 1024) as u64;
    let options = Options {
        config: format!("[limits]\nunfinished_max = {IN_TOTAL}\n"),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let mut publish = vec![0x30, 0x80, 0xff, 0xff, 0x07, 0, 1, b't'];
    publish.resize(EACH, b'x');
    let mut send = b"SEND\ndestination:/queue/q\ncontent-length:16000000\n\n".to_vec();
    send.resize(EACH, b'x');
    let kinds = [
        ("mqtt", After::MqttLogin(mqtt::V5), &publish),
        ("mqtt_websocket", After::MqttMessages(mqtt::V5), &publish),
        ("stomp", After::StompLogin, &send),
    ];
    let memory = Memory::watch(&broker);
    let mut honest = Mqtt::connect(broker.address("mqtt"), Connect::clean("whole")).expect("it works");
    honest.subscribe("large/#", 0).expect("it works");
    let attackers: Vec<_> = others_are_served(&broker, || {
        thread::scope(|scope| {
            let sending: Vec<_> = (0..ATTACKERS)
                .map(|number| {
                    let (listener, after, bytes) = kinds[number % kinds.len()];
                    let address = broker.address(listener);
                    scope.spawn(move || {
                        let mut attacker = Attacker::open(address, after);
                        attacker.send(bytes);
                        attacker
                    })
                })
                .collect();
            for _ in 0..20 {
                let body = [b'h'; 300_000];
                honest.publish_confirmed("large/whole", &body).expect("it works");
                let message = honest.next_message(PATIENCE).expect("it works").expect("it comes");
                assert!(message.body == body);
            }
            sending
                .into_iter()
                .map(|thread| thread.join().expect("it works"))
                .collect()
        })
    });
    memory.assert_growth_below(GROWTH_MAX);
    assert!(
        broker.log().contains("limits.unfinished_max is reached"),
        "{}",
        broker.log()
    );
    drop(attackers);
}

/// A conversation does not depend on how its bytes come in.
#[test]
fn a_client_that_sends_a_byte_a_time_is_served_like_any_other() {
    let broker = Broker::start();

    let mut amqp = Amqp::raw(broker.address("amqp")).expect("it works");
    amqp.wire.send_byte_by_byte();
    amqp.log_in(0).expect("it works");
    amqp.confirm_select().expect("it works");
    amqp.declare_queue("slow", true).expect("it works");
    let publish = amqp::Publish {
        exchange: "",
        key: "slow",
        persistent: true,
        mandatory: true,
        body: b"a byte a time",
    };
    amqp.publish_confirmed(publish).expect("it works");
    assert_eq!(
        amqp.get("slow").expect("it works").expect("it is there").body,
        b"a byte a time"
    );

    let mut mqtt = Mqtt::raw(broker.address("mqtt"), mqtt::V5).expect("it works");
    mqtt.wire.send_byte_by_byte();
    let connect = Connect {
        version: mqtt::V5,
        ..Connect::clean("slow")
    };
    mqtt.log_in(connect).expect("it works");
    mqtt.subscribe("slow/#", 1).expect("it works");
    mqtt.publish_confirmed("slow/topic", b"a byte a time")
        .expect("it works");
    assert_eq!(
        mqtt.next_message(PATIENCE).expect("it works").expect("it comes").body,
        b"a byte a time"
    );

    let mut native = Remoting::connect(broker.address("remoting")).expect("it works");
    native.wire.send_byte_by_byte();
    let send = remoting::Send {
        topic: "SlowTopic",
        tag: "slow",
        queue_id: Some(0),
        body: b"a byte a time",
    };
    assert_eq!(native.send_and_wait(send).expect("it works").code, remoting::SUCCESS);
    let pull = remoting::Pull {
        group: "slow",
        topic: "SlowTopic",
        queue_id: 0,
        offset: 0,
        messages_max: 1,
        suspend: 0,
    };
    assert_eq!(
        native.pull_and_wait(pull).expect("it works").records()[0].body,
        b"a byte a time"
    );
}

/// Who never gets as far as a login does not keep the connection, however busy it looks, and holds nobody up.
#[test]
fn a_login_that_never_ends_is_ended() {
    /// The front-ends allow 10 s; the scripts are longer than this.
    const LOGIN_MAX: Duration = Duration::from_secs(40);
    let broker = Broker::start();
    let client_properties = [&b"\x04nameS\0\0\0\x40"[..], &[b'x'; 0x40]].concat();
    let amqp = [amqp::PROTOCOL_HEADER, &start_ok_with(&client_properties)].concat();
    let mqtt = Connect::clean("a-client-that-never-gets-as-far-as-that-as-its-name-is-long").packet();
    let stomp = b"CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\n\n\0".to_vec();
    // A listener, what is done before as it should be, the bytes, and how many come at once.
    let scripts = [
        ("amqp", None, amqp, amqp::PROTOCOL_HEADER.len() + 20),
        ("mqtt", None, mqtt.clone(), 10),
        ("stomp", None, stomp.clone(), 10),
        ("mqtt_websocket", None, wire::upgrade_request("/mqtt").into_bytes(), 20),
        ("stomp_websocket", None, wire::upgrade_request("/ws").into_bytes(), 20),
        ("mqtt_websocket", Some("/mqtt"), wire::message(&mqtt), 10),
        ("stomp_websocket", Some("/ws"), wire::message(&stomp), 10),
    ];
    others_are_served(&broker, || {
        thread::scope(|scope| {
            for (listener, path, script, at_once) in scripts {
                let address = broker.address(listener);
                let wire = match path {
                    None => Wire::connect(address),
                    Some(path) => Wire::upgraded(address, path),
                };
                let mut wire = wire.expect("it works");
                scope.spawn(move || {
                    let start = Instant::now();
                    wire.send_raw(&script[..at_once]).expect("it works");
                    for byte in &script[at_once..] {
                        let next = Instant::now() + Duration::from_secs(1);
                        // Reading is the clock: an answer does not end the wait, an end does.
                        loop {
                            match wire.fill(next) {
                                Ok(true) => {}
                                Ok(false) => break,
                                Err(_) => return,
                            }
                        }
                        let _ = wire.send_raw(&[*byte]);
                        assert!(start.elapsed() < LOGIN_MAX, "{listener}, {path:?}: still open");
                    }
                    panic!("{listener}, {path:?}: the script was too short");
                });
            }
        });
    });
}

/// Opened and left: before anything was said, in the middle of a WebSocket's handshake, after it, and after the login.
#[test]
fn connections_opened_and_left_cost_little_and_those_without_a_login_are_closed() {
    let count = std::env::var("ROCKETBRIDGE_CONNECTIONS").map_or(300, |text| text.parse().expect("a number"));
    raise_open_files_limit();
    let options = Options {
        config: format!("[limits]\nconnections_max = {}\n", count + 100),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let kinds = [
        ("amqp", After::Connecting),
        ("mqtt", After::Connecting),
        ("stomp", After::Connecting),
        ("mqtt_websocket", After::Connecting),
        ("stomp_websocket", After::WebSocket("/ws")),
        ("mqtt_websocket", After::WebSocket("/mqtt")),
        ("mqtt", After::MqttLogin(mqtt::V5)),
        ("stomp", After::StompLogin),
    ];
    let memory = Memory::watch(&broker);
    let mut left = others_are_served(&broker, || {
        let mut left = Vec::new();
        for number in 0..count {
            let (listener, after) = kinds[number % kinds.len()];
            let address = broker.address(listener);
            left.push(match after {
                After::MqttLogin(_) => {
                    let client = Mqtt::connect(address, Connect::clean(&format!("left-{number}")));
                    Attacker::Mqtt(Box::new(client.expect("it works")))
                }
                _ => Attacker::open(address, after),
            });
        }
        left
    });
    memory.assert_growth_below(count as u64 * LEFT_MAX + (8 << 10));
    for (number, attacker) in left.iter_mut().enumerate() {
        match kinds[number % kinds.len()].1 {
            After::MqttLogin(_) | After::StompLogin => {}
            _ => drop(attacker.wire().read_to_end()),
        }
    }
    // Who logged in stays.
    for attacker in &mut left {
        if let Attacker::Mqtt(client) = attacker {
            client.ping().expect("it works");
        }
    }
}

/// This process has the other ends of all connections.
fn raise_open_files_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
