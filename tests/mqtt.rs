//! MQTT against the real program, byte by byte: what survives a kill, what remote clients cannot break, what
//! another broker loses in silence.

mod support;

use std::io;
use std::time::{Duration, Instant};

use support::broker::{Broker, Options};
use support::mqtt::{Connect, Mqtt, V5, packet, text};
use support::random::Random;
use support::wire::PATIENCE;

/// How long nothing may come where nothing must.
const SILENCE: Duration = Duration::from_millis(500);

/// A client that sees every packet.
struct Client(Mqtt);

impl Client {
    fn connect(broker: &Broker, connect: Connect<'_>) -> Self {
        Self(Mqtt::connect(broker.address("mqtt"), connect).expect("connected"))
    }

    fn raw(broker: &Broker, version: u8) -> Self {
        Self(Mqtt::raw(broker.address("mqtt"), version).expect("connected"))
    }

    fn send(&mut self, first: u8, rest: &[u8]) {
        self.0.wire.send(&packet(first, rest)).expect("sent");
    }

    fn read(&mut self, within: Duration) -> io::Result<Option<(u8, Vec<u8>)>> {
        let until = Instant::now() + within;
        loop {
            if let Some(packet) = self.0.next_packet() {
                return Ok(Some(packet));
            }
            if !self.0.wire.fill(until)? {
                return Ok(None);
            }
        }
    }

    #[track_caller]
    fn next(&mut self) -> (u8, Vec<u8>) {
        self.read(PATIENCE).expect("the connection lives").expect("in time")
    }

    #[track_caller]
    fn expect(&mut self, first: u8, rest: &[u8]) {
        assert_eq!(self.next(), (first, rest.to_vec()));
    }

    #[track_caller]
    fn expect_nothing(&mut self) {
        assert_eq!(self.read(SILENCE).expect("the connection lives"), None);
    }

    /// Says goodbye and waits until the broker has let go of the connection.
    fn leave(mut self) {
        self.send(0xE0, b"");
        assert_eq!(self.0.wire.read_to_end(), b"");
    }

    #[track_caller]
    fn ping(&mut self) {
        self.send(0xC0, b"");
        self.expect(0xD0, b"");
    }
}

/// PUBLISH without properties.
fn publish(topic: &str, packet_id: Option<u16>, body: &str) -> Vec<u8> {
    let mut rest = text(topic);
    rest.extend(packet_id.into_iter().flat_map(u16::to_be_bytes));
    rest.extend(body.as_bytes());
    rest
}

fn subscribed(client: &mut Client, filter: &str, qos: u8) {
    client.0.subscribe(filter, qos).expect("subscribed");
}

// --- what remote clients cannot break -----------------------------------------------------------------

/// rumqttd's router dies of a topic whose first character is not ASCII.
#[test]
fn a_topic_that_begins_with_a_non_ascii_character_harms_nobody() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker, Connect::clean("a"));
    subscribed(&mut client, "#", 0);
    subscribed(&mut client, "é/+", 1);
    client.send(0x30, &publish("é/x", None, "m"));
    client.expect(0x30, &publish("é/x", None, "m"));
    Client::connect(&broker, Connect::clean("b")).ping();
    client.ping();
}

/// Two CONNECTs with a client identifier that holds a slash close rumqttd's listener for good.
#[test]
fn client_identifiers_with_slashes_and_wildcards_harm_nobody() {
    let broker = Broker::start();
    for id in ["a/b", "+", "#", "$share/g/x", "a/b", "ünï", "\u{7f}x"] {
        // The standard allows to refuse some (3.1.3.1); either way it is answered, twice.
        for _ in 0..2 {
            let mut client = Client::raw(&broker, 4);
            client.0.wire.send(&Connect::clean(id).packet()).expect("sent");
            let answer = client.read(PATIENCE);
            assert!(
                matches!(&answer, Ok(Some((0x20, _)))) || id.contains('\u{7f}'),
                "{id}: {answer:?}"
            );
        }
        Client::connect(&broker, Connect::clean("after")).ping();
    }
}

/// A PUBLISH of 5.0 with a property kills the task of rumqttd's 3.1.1 subscriber, and then its listener.
#[test]
fn properties_do_not_reach_an_old_subscriber_and_harm_nobody() {
    let broker = Broker::start();
    let mut old = Client::connect(&broker, Connect::clean("old"));
    subscribed(&mut old, "t", 1);
    let mut new = Client::connect(
        &broker,
        Connect {
            version: V5,
            ..Connect::clean("new")
        },
    );
    let mut rest = text("t");
    rest.extend(b"\x07\x26\0\x01k\0\x01vm");
    new.send(0x30, &rest);
    old.expect(0x30, &publish("t", None, "m"));
    drop(old);
    Client::connect(&broker, Connect::clean("old")).ping();
    new.ping();
}

// --- what another broker loses in silence -------------------------------------------------------------

/// Mosquitto loses confirmed QoS 1 messages to a connected subscriber that is slower than its publisher: its
/// queue of 1,000 overflows. Here they wait.
#[test]
fn a_slow_subscriber_gets_every_confirmed_message_in_order() {
    const MESSAGES: u32 = 20_000;
    let broker = Broker::start();
    let mut subscriber = Client::connect(&broker, Connect::clean("slow"));
    subscribed(&mut subscriber, "t", 1);
    let mut publisher = Client::connect(&broker, Connect::clean("fast"));
    let (mut sent, mut confirmed) = (0, 0);
    while confirmed < MESSAGES {
        let mut batch = Vec::new();
        while sent < MESSAGES && sent < confirmed + 1000 {
            let body = sent.to_be_bytes();
            publisher
                .0
                .put_publish("t", 1, &[&body[..], &[0; 252]].concat(), &mut batch);
            sent += 1;
        }
        publisher.0.wire.send(&batch).expect("sent");
        assert_eq!(publisher.next().0, 0x40);
        confirmed += 1;
    }
    // Only now does it begin to read.
    for number in 0..MESSAGES {
        let (first, rest) = subscriber.next();
        assert_eq!(first & 0xF6, 0x32);
        assert_eq!(rest[5..9], number.to_be_bytes(), "message {number}");
        subscriber.send(0x40, &rest[3..5]);
    }
    subscriber.ping();
}

// --- over a kill --------------------------------------------------------------------------------------

#[test]
fn a_qos_2_message_sent_again_after_a_kill_is_not_stored_again() {
    let mut broker = Broker::start();
    let mut reader = Client::connect(&broker, Connect::persistent("reader"));
    subscribed(&mut reader, "t", 2);
    let mut writer = Client::connect(&broker, Connect::persistent("writer"));
    writer.send(0x34, &publish("t", Some(7), "once"));
    writer.expect(0x50, b"\0\x07");
    drop((reader, writer));
    broker = broker.restart(&Options::default());
    let mut writer = Client::connect(&broker, Connect::persistent("writer"));
    assert!(writer.0.session_present);
    writer.send(0x3C, &publish("t", Some(7), "once"));
    writer.expect(0x50, b"\0\x07");
    writer.send(0x62, b"\0\x07");
    writer.expect(0x70, b"\0\x07");
    drop(writer);
    broker = broker.restart(&Options::default());
    // The identifier is free for another message, also over a kill.
    let mut writer = Client::connect(&broker, Connect::persistent("writer"));
    writer.send(0x34, &publish("t", Some(7), "twice"));
    writer.expect(0x50, b"\0\x07");
    let mut reader = Client::connect(&broker, Connect::persistent("reader"));
    for (id, body) in [(1, "once"), (2, "twice")] {
        let (first, rest) = reader.next();
        assert_eq!((first & 0xF6, rest), (0x34, publish("t", Some(id), body)));
    }
    reader.expect_nothing();
}

#[test]
fn a_session_goes_on_after_a_kill_with_the_same_identifiers_and_pubrel_where_pubrec_had_come() {
    let broker = Broker::start();
    let mut reader = Client::connect(&broker, Connect::persistent("reader"));
    subscribed(&mut reader, "t", 2);
    let mut writer = Client::connect(&broker, Connect::clean("writer"));
    for (id, body) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        writer.send(0x34, &publish("t", Some(id), body));
        writer.expect(0x50, &id.to_be_bytes());
    }
    for (id, body) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        reader.expect(0x34, &publish("t", Some(id), body));
    }
    // b is finished, a and d are received.
    reader.send(0x50, b"\0\x02");
    reader.expect(0x62, b"\0\x02");
    reader.send(0x70, b"\0\x02");
    reader.send(0x50, b"\0\x01");
    reader.expect(0x62, b"\0\x01");
    reader.send(0x50, b"\0\x04");
    reader.expect(0x62, b"\0\x04");
    drop((reader, writer));
    let mut broker = broker;
    for _ in 0..2 {
        broker = broker.restart(&Options::default());
        let mut reader = Client::connect(&broker, Connect::persistent("reader"));
        assert!(reader.0.session_present);
        reader.expect(0x62, b"\0\x01");
        let (first, mut rest) = reader.next();
        if rest == publish("t", Some(2), "b") {
            // Its end was not written before the kill: it is completed once more. [MQTT-4.3.3-2]
            reader.send(0x50, b"\0\x02");
            rest = reader.next().1;
        } else if first == 0x62 && rest == b"\0\x02" {
            reader.send(0x70, b"\0\x02");
            rest = reader.next().1;
        }
        assert_eq!(rest, publish("t", Some(3), "c"));
        reader.expect(0x62, b"\0\x04");
    }
}

#[test]
fn retained_messages_and_their_clearing_survive_a_kill() {
    let broker = Broker::start();
    let root = Random::from_environment().word(12);
    let mut writer = Client::connect(&broker, Connect::clean("writer"));
    for (qos, name) in [(0, "zero"), (1, "one"), (2, "two")] {
        for (level, body) in [("kept", "old"), ("kept", "new"), ("gone", "old"), ("gone", "")] {
            let topic = format!("{root}/{name}/{level}");
            let id = (qos > 0).then_some(9);
            writer.send(0x31 | qos << 1, &publish(&topic, id, body));
            match qos {
                0 => writer.ping(),
                1 => writer.expect(0x40, b"\0\x09"),
                _ => {
                    writer.expect(0x50, b"\0\x09");
                    writer.send(0x62, b"\0\x09");
                    writer.expect(0x70, b"\0\x09");
                }
            }
        }
    }
    // What was not confirmed is written soon, but not at once: a confirmed message is behind it in the log.
    writer.send(0x32, &publish("fence", Some(1), ""));
    writer.expect(0x40, b"\0\x01");
    drop(writer);
    let broker = broker.restart(&Options::default());
    let mut reader = Client::connect(&broker, Connect::clean("reader"));
    subscribed(&mut reader, &format!("{root}/#"), 2);
    reader.expect(0x33, &publish(&format!("{root}/one/kept"), Some(1), "new"));
    reader.expect(0x35, &publish(&format!("{root}/two/kept"), Some(2), "new"));
    reader.expect(0x31, &publish(&format!("{root}/zero/kept"), None, "new"));
    reader.expect_nothing();
}

/// 3.1.2.5: a server that failed publishes wills after its restart.
#[test]
fn a_will_is_published_after_a_kill() {
    let broker = Broker::start();
    let mut watcher = Client::connect(&broker, Connect::persistent("watcher"));
    subscribed(&mut watcher, "will", 1);
    let mut client = Client::raw(&broker, 4);
    let mut rest = text("MQTT");
    rest.extend([4, 0x0E, 0, 0]);
    for field in ["mortal", "will", "gone"] {
        rest.extend(text(field));
    }
    client.send(0x10, &rest);
    client.expect(0x20, b"\0\0");
    let broker = broker.restart(&Options::default());
    let mut watcher = Client::connect(&broker, Connect::persistent("watcher"));
    watcher.expect(0x32, &publish("will", Some(1), "gone"));
}

// --- shared subscriptions -----------------------------------------------------------------------------

/// 5.0, 4.8.2: what a member that is lost has not acknowledged goes to another at once, whatever its session.
#[test]
fn what_a_lost_member_of_a_shared_subscription_had_goes_to_another_at_once() {
    const MESSAGES: u16 = 20;
    for connect in [Connect::clean("lost"), Connect::persistent("lost")] {
        let broker = Broker::start();
        let mut lost = Client::connect(&broker, connect);
        subscribed(&mut lost, "$share/g/t/#", 1);
        let mut stays = Client::connect(&broker, Connect::clean("stays"));
        subscribed(&mut stays, "$share/g/t/#", 1);
        let mut writer = Client::connect(&broker, Connect::clean("writer"));
        for id in 1..=MESSAGES {
            writer.send(0x32, &publish("t/x", Some(id), &format!("{id:02}")));
            writer.expect(0x40, &id.to_be_bytes());
        }
        let body_of = |rest: &[u8]| String::from_utf8(rest[7..].to_vec()).expect("digits");
        let mut got: Vec<String> = Vec::new();
        let take = |got: &mut Vec<String>, stays: &mut Client| {
            let (first, rest) = stays.next();
            assert_eq!(first & 0xF6, 0x32);
            stays.send(0x40, &rest[5..7]);
            got.push(body_of(&rest));
        };
        // It has some that it does not acknowledge, and the other one has the rest.
        let (_, rest) = lost.next();
        let first_of_lost = body_of(&rest);
        while lost.read(Duration::ZERO).expect("the connection lives").is_some() {}
        drop(lost);
        while got.len() < usize::from(MESSAGES) {
            take(&mut got, &mut stays);
        }
        stays.expect_nothing();
        assert!(got.contains(&first_of_lost));
        got.sort();
        let expected: Vec<_> = (1..=MESSAGES).map(|id| format!("{id:02}")).collect();
        assert_eq!(got, expected);
    }
}

// --- what a client and the broker agree on in CONNECT and CONNACK ---------------------------------------

/// Connects with 5.0 and these properties; gives those of CONNACK.
fn connect_5(broker: &Broker, id: &str, properties: &[u8]) -> (Client, Vec<u8>) {
    let mut client = Client::raw(broker, 5);
    let mut rest = text("MQTT");
    rest.extend([5, 2, 0, 0, properties.len() as u8]);
    rest.extend(properties);
    rest.extend(text(id));
    client.send(0x10, &rest);
    let (first, connack) = client.next();
    assert_eq!((first, &connack[..2]), (0x20, &b"\0\0"[..]));
    (client, connack[3..].to_vec())
}

fn tells(properties: &[u8], property: &[u8]) -> bool {
    properties.windows(property.len()).any(|part| part == property)
}

/// PUBLISH of 5.0.
fn publish_5(topic: &str, packet_id: Option<u16>, properties: &[u8], body: &[u8]) -> Vec<u8> {
    let mut rest = publish(topic, packet_id, "");
    rest.push(properties.len() as u8);
    rest.extend(properties);
    rest.extend(body);
    rest
}

/// 5.0, 3.3.2.3.4
#[test]
fn topic_aliases_are_used_both_ways() {
    let broker = Broker::start();
    let (mut client, told) = connect_5(&broker, "c", b"\x22\0\x01");
    assert!(tells(&told, b"\x22\0\x0A"), "{}", told.escape_ascii());
    subscribed(&mut client, "t/#", 0);
    client.send(0x30, &publish_5("t/a", None, b"\x23\0\x0A", b"1"));
    client.send(0x30, &publish_5("", None, b"\x23\0\x0A", b"2"));
    client.send(0x30, &publish_5("t/b", None, b"", b"3"));
    client.send(0x30, &publish_5("", None, b"\x23\0\x0A", b"4"));
    client.expect(0x30, &publish_5("t/a", None, b"\x23\0\x01", b"1"));
    client.expect(0x30, &publish_5("", None, b"\x23\0\x01", b"2"));
    // It takes one alias only.
    client.expect(0x30, &publish_5("t/b", None, b"", b"3"));
    client.expect(0x30, &publish_5("", None, b"\x23\0\x01", b"4"));
    client.send(0x30, &publish_5("t/c", None, b"\x23\0\x0B", b"5"));
    client.expect(0xE0, b"\x94");
}

/// 5.0, 3.1.2.11.3 and 3.2.2.3.3
#[test]
fn the_receive_maximum_holds_both_ways() {
    let options = Options {
        mqtt: "receive_maximum = 2".into(),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let (mut reader, told) = connect_5(&broker, "reader", b"\x21\0\x02");
    assert!(tells(&told, b"\x21\0\x02"), "{}", told.escape_ascii());
    subscribed(&mut reader, "t", 1);
    let (mut writer, _) = connect_5(&broker, "writer", b"");
    for id in 1..=4u16 {
        writer.send(0x32, &publish_5("t", Some(id), b"", b"m"));
        assert_eq!(writer.next().0, 0x40);
    }
    reader.expect(0x32, &publish_5("t", Some(1), b"", b"m"));
    reader.expect(0x32, &publish_5("t", Some(2), b"", b"m"));
    reader.expect_nothing();
    reader.send(0x40, b"\0\x01");
    reader.expect(0x32, &publish_5("t", Some(3), b"", b"m"));
    reader.expect_nothing();
    // Two exchanges may be open towards the broker, and not three.
    for id in 11..=12u16 {
        writer.send(0x34, &publish_5("t", Some(id), b"", b"m"));
        assert_eq!(writer.next().0, 0x50);
    }
    writer.send(0x34, &publish_5("t", Some(13), b"", b"m"));
    writer.expect(0xE0, b"\x93");
}

/// 5.0, 3.1.2.11.4 and 3.2.2.3.6
#[test]
fn the_maximum_packet_size_holds_both_ways() {
    let options = Options {
        mqtt: "packet_size_max = 1000".into(),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let (mut reader, told) = connect_5(&broker, "reader", b"\x27\0\0\0\x64");
    assert!(tells(&told, b"\x27\0\0\x03\xE8"), "{}", told.escape_ascii());
    subscribed(&mut reader, "t", 1);
    let (mut writer, _) = connect_5(&broker, "writer", b"");
    for (id, len) in [(1u16, 200), (2, 5)] {
        writer.send(0x32, &publish_5("t", Some(id), b"", &vec![b'x'; len]));
        assert_eq!(writer.next().0, 0x40);
    }
    // What is too large is done with, and the next one comes.
    let (first, rest) = reader.next();
    assert_eq!((first, rest.len()), (0x32, 3 + 2 + 1 + 5));
    writer.send(0x30, &publish_5("t", None, b"", &[b'x'; 1000]));
    writer.expect(0xE0, b"\x95");
}

// --- what an operator watches ---------------------------------------------------------------------------

#[test]
fn sys_topics_tell_of_sessions_retained_stored_and_dropped_messages() {
    let options = Options {
        mqtt: "session_messages_max = 10\nsys_interval = \"200ms\"".into(),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let mut away = Client::connect(&broker, Connect::persistent("away"));
    subscribed(&mut away, "t", 1);
    drop(away);
    let mut writer = Client::connect(&broker, Connect::clean("writer"));
    for id in 1..=30u16 {
        writer.send(0x32, &publish("t", Some(id), "kept or dropped"));
        writer.expect(0x40, &id.to_be_bytes());
    }
    writer.send(0x33, &publish("last/value", Some(31), "retained"));
    writer.expect(0x40, &31u16.to_be_bytes());
    let mut watcher = Client::connect(&broker, Connect::clean("watcher"));
    subscribed(&mut watcher, "$SYS/#", 0);
    let mut values = std::collections::BTreeMap::new();
    let until = Instant::now() + PATIENCE;
    loop {
        let expected = [
            ("clients/connected", "2"),
            ("clients/disconnected", "1"),
            ("clients/inactive", "1"),
            ("clients/total", "3"),
            ("clients/maximum", "2"),
            ("retained messages/count", "1"),
            // Ten wait.
            ("store/messages/count", "11"),
            ("messages/stored", "11"),
            ("publish/messages/dropped", "20"),
            ("publish/messages/received", "31"),
            (
                "publish/bytes/received",
                &(30 * "kept or dropped".len() + "retained".len()).to_string(),
            ),
            ("subscriptions/count", "1"),
        ];
        let value = |name| values.get(&format!("$SYS/broker/{name}")).map(String::as_str);
        if expected.iter().all(|(name, expected)| value(name) == Some(expected)) {
            break;
        }
        assert!(Instant::now() < until, "{values:#?}");
        let (first, rest) = watcher.next();
        assert_eq!(first & 0xF6, 0x30);
        let topic_len = usize::from(rest[1]);
        let (topic, value) = (&rest[2..2 + topic_len], &rest[2 + topic_len..]);
        let as_text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        values.insert(as_text(topic), as_text(value));
    }
    for name in [
        "version",
        "uptime",
        "bytes/received",
        "bytes/sent",
        "messages/received",
        "messages/sent",
    ] {
        assert!(values.contains_key(&format!("$SYS/broker/{name}")), "{name}");
    }
}

// --- limits -------------------------------------------------------------------------------------------

#[test]
fn what_a_session_cannot_hold_is_dropped_counted_and_logged() {
    let options = Options {
        mqtt: "session_messages_max = 10".into(),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let mut reader = Client::connect(&broker, Connect::persistent("reader"));
    subscribed(&mut reader, "t", 1);
    reader.leave();
    let mut writer = Client::connect(&broker, Connect::clean("writer"));
    for id in 1..=30u16 {
        writer.send(0x32, &publish("t", Some(id), &id.to_string()));
        writer.expect(0x40, &id.to_be_bytes());
    }
    let mut reader = Client::connect(&broker, Connect::persistent("reader"));
    for id in 21..=30u16 {
        let (_, rest) = reader.next();
        assert_eq!(rest[5..], *id.to_string().as_bytes());
    }
    reader.expect_nothing();
    let until = Instant::now() + PATIENCE;
    while !broker.log().contains("dropped") {
        assert!(Instant::now() < until, "nothing is logged");
        writer.ping();
    }
}

#[test]
fn a_full_retained_index_refuses_and_says_so() {
    let options = Options {
        config: "[limits]\nretained_max = 2\n".into(),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let connect = Connect {
        version: V5,
        ..Connect::clean("writer")
    };
    let mut writer = Client::connect(&broker, connect);
    let mut answers = Vec::new();
    for (id, topic) in [(1u16, "a"), (2, "b"), (3, "c"), (4, "a")] {
        let mut rest = text(topic);
        rest.extend(id.to_be_bytes());
        rest.extend(b"\0m");
        writer.send(0x33, &rest);
        answers.push(writer.next().1.get(2).copied().unwrap_or(0));
    }
    assert_eq!(answers, [0x10, 0x10, 0x97, 0x10]);
}
