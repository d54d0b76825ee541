//! One address space: a message has one address, whichever protocol it came by, and each protocol has one
//! spelling for it. The rows of the table in the design, as pure functions and on a whole broker.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rocketbridge_amqp::mapping::{self as amqp_mapping, ExchangeName, outbound};
use rocketbridge_core::address::encode_name;
use rocketbridge_core::attributes::{Attribute, Attributes, AttributesBuilder};
use rocketbridge_core::boundary::Publish;
use rocketbridge_core::message::{Entry, Format, Message};
use rocketbridge_core::time::Millis;
use rocketbridge_mqtt::mapping as mqtt_mapping;
use rocketbridge_stomp::mapping::{Destination, Target, outbound as stomp_outbound};
use support::amqp::{self, Amqp};
use support::broker::Broker;
use support::mqtt::{Connect, Mqtt};
use support::random::Random;
use support::remoting::{self, Remoting, SUCCESS};
use support::wire::PATIENCE;

const ROUNDS: usize = 20_000;

// --- as pure functions ------------------------------------------------------------------------

/// A message as a third protocol publishes it, so that every reader must spell its address by itself.
fn message(entry: Entry, topic: &Bytes, key: &[u8], original: Option<&[u8]>) -> Message {
    let mut builder = AttributesBuilder::default();
    let attributes = match original {
        Some(original) => {
            builder.text(Attribute::Topic, original);
            builder.finish()
        }
        None => Attributes::EMPTY,
    };
    let publish = Publish {
        token: 0,
        entry,
        topic: topic.clone(),
        key: Bytes::copy_from_slice(key),
        body: Bytes::new(),
        attributes,
        format: Format(77),
        origin: Bytes::new(),
        persistent: true,
        ..Publish::default()
    };
    let host = SocketAddr::from(([127, 0, 0, 1], 1));
    Message::from_publish(&publish, host, host, Millis(1))
}

/// Text of few different characters, those that mean something among them.
fn text(random: &mut Random, special: &[&str], max: u64) -> String {
    let mut text = String::new();
    for _ in 0..random.below(max + 1) {
        let plain = ["a", "b", "Z", "0", "_", "%", "é", "𝄞", "|", "-", "~", "$"];
        let from = if random.once_in(3) { special } else { &plain[..] };
        text.push_str(random.pick::<&str>(from));
    }
    text
}

fn mqtt_spelling(message: &Message) -> Option<String> {
    let mut out = BytesMut::new();
    mqtt_mapping::put_topic(message, &mut out)
        .then(|| String::from_utf8(out.to_vec()).expect("MQTT's topics are UTF-8"))
}

fn stomp_spelling(message: &Message) -> String {
    let mut out = BytesMut::new();
    stomp_outbound::put_destination(message, &mut out);
    String::from_utf8(out.to_vec()).expect("they are UTF-8")
}

fn stomp_target(destination: &str) -> Target {
    let config = rocketbridge_stomp::Config::default();
    let parsed = Destination::parse(destination.as_bytes(), &config).expect("it is one");
    Target::of(&parsed, destination.as_bytes()).expect("it has an address")
}

fn amqp_spelling(message: &Message) -> (String, String) {
    let mut scratch = BytesMut::new();
    let envelope = outbound::envelope(message, 0, &mut scratch);
    let mut reader = amqp::Reader(envelope.address);
    (reader.short(), reader.short())
}

/// MQTT topic -> address -> MQTT topic, and the same through AMQP's `amq.topic`; tag -> AMQP key and MQTT topic
/// -> tag. No two addresses share a spelling.
#[test]
fn one_address_has_one_spelling_per_protocol_and_back() {
    let mut random = Random::from_environment();
    let mut spelled = BTreeMap::new();
    for _ in 0..ROUNDS {
        mqtt_topics_are_addresses(&mut random, &mut spelled);
        tags_are_keys(&mut random, &mut spelled);
        exchanges_are_topics(&mut random);
    }
    assert!(
        spelled.len() > ROUNDS / 4,
        "too few different addresses: {}",
        spelled.len()
    );
}

type Spelled = BTreeMap<(Bytes, Bytes), String>;

/// Each address is always spelled the same way.
fn check(spelled: &mut Spelled, topic: &Bytes, key: &Bytes, spelling: &str) {
    let known = spelled
        .entry((topic.clone(), key.clone()))
        .or_insert(spelling.to_owned());
    assert_eq!(known, spelling, "two spellings of {topic:?} {key:?}");
}

fn mqtt_topics_are_addresses(random: &mut Random, spelled: &mut Spelled) {
    let max = if random.once_in(10) { 300 } else { 8 };
    let topic = text(random, &["/", ".", "/", "//"], max);
    if topic.is_empty() {
        // MQTT has no empty topic name. [MQTT-4.7.3-1]
        return;
    }
    let mut scratch = BytesMut::new();
    let address = mqtt_mapping::address_of(&Bytes::from(topic.clone()), &mut scratch);
    let first = topic.split('/').next().expect("there is a first level");
    let original = address.is_cut.then_some(first.as_bytes());
    let message = message(Entry::Topic, &address.name, &address.key, original);
    assert_eq!(
        mqtt_spelling(&message).as_deref(),
        Some(&topic[..]),
        "{:?}",
        address.key
    );
    check(spelled, &address.name, &address.key, &topic);

    // What AMQP calls the same address; a first level with a dot is one level for MQTT only.
    if first.contains('.') {
        return;
    }
    let swapped: String = topic.chars().map(swap).collect();
    let exchange = ExchangeName::new(amqp_mapping::TOPIC_EXCHANGE);
    let target = amqp_mapping::target(&exchange, &Bytes::from(swapped.clone()));
    assert_eq!(
        (&target.topic, &target.key),
        (&address.name, &address.key),
        "{topic} as {swapped}"
    );
    // And STOMP, which writes `%2F` for a slash.
    let destination = format!("/topic/{}", swapped.replace('/', "%2F"));
    assert_eq!(stomp_spelling(&message), destination);
    // The empty name is none for STOMP.
    if !swapped.is_empty() {
        let stomp = stomp_target(&destination);
        assert_eq!(
            (&stomp.topic, &stomp.key),
            (&address.name, &address.key),
            "{topic} as {destination}"
        );
        assert_eq!(&stomp.shown[..], destination.as_bytes());
    }
    if swapped.len() <= 255 {
        assert_eq!(amqp_spelling(&message), ("amq.topic".to_owned(), swapped));
    }
}

fn swap(letter: char) -> char {
    match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    }
}

/// The key is the native tag, byte for byte, and AMQP's routing key on the exchange of the topic's name.
fn tags_are_keys(random: &mut Random, spelled: &mut Spelled) {
    let topic = Bytes::from(random.word(1 + random.clone().below(6) as usize));
    let tag = text(random, &[".", "..", "/", "+", "#", "\0"], 8);
    let native = message(Entry::Native, &topic, tag.as_bytes(), None);
    let exchange = ExchangeName::new(&topic);
    let target = amqp_mapping::target(&exchange, &Bytes::from(tag.clone()));
    assert_eq!((&target.topic[..], &target.key[..]), (&topic[..], tag.as_bytes()));
    assert_eq!(
        amqp_spelling(&native),
        (String::from_utf8_lossy(&topic).into_owned(), tag.clone())
    );
    let in_mqtt = mqtt_spelling(&native);
    // Wildcards and NUL cannot stand in an MQTT topic name.
    assert_eq!(
        in_mqtt.is_none(),
        tag.contains(['+', '#', '\0']),
        "{tag:?} is {in_mqtt:?}"
    );
    if let Some(in_mqtt) = in_mqtt {
        let mut scratch = BytesMut::new();
        let back = mqtt_mapping::address_of(&Bytes::from(in_mqtt.clone()), &mut scratch);
        assert_eq!(
            (&back.name[..], &back.key[..]),
            (&topic[..], tag.as_bytes()),
            "{in_mqtt}"
        );
        check(spelled, &back.name, &back.key, &in_mqtt);
    }
}

/// An exchange of any name is a topic of that name, encoded.
fn exchanges_are_topics(random: &mut Random) {
    let name = text(random, &[".", "/", " ", "#"], 20);
    let key = text(random, &[".", "/"], 8);
    let exchange = ExchangeName::new(name.as_bytes());
    let target = amqp_mapping::target(&exchange, &Bytes::from(key.clone()));
    if name.is_empty() {
        assert_eq!(
            (target.entry, &target.topic, &target.key[..]),
            (Entry::Queue, &encode_name(&Bytes::from(key)), &b""[..])
        );
        return;
    }
    assert_eq!(
        (target.entry, &target.topic),
        (Entry::Exchange, &encode_name(&Bytes::from(name.clone())))
    );
    let back = message(Entry::Exchange, &target.topic, &target.key, target.cut_from.as_deref());
    assert_eq!(amqp_spelling(&back), (name.clone(), key.clone()));
    let (name, key) = (name.replace('/', "%2F"), key.replace('/', "%2F"));
    let destination = match &key[..] {
        "" => format!("/exchange/{name}"),
        key => format!("/exchange/{name}/{key}"),
    };
    assert_eq!(stomp_spelling(&back), destination);
    let stomp = stomp_target(&destination);
    assert_eq!(
        (stomp.entry, &stomp.topic, &stomp.key),
        (Entry::Exchange, &target.topic, &target.key)
    );
}

// --- on a whole broker ------------------------------------------------------------------------

/// Everybody who may get a message of topic `T`.
struct Receivers {
    topic: String,
    amqp: Amqp,
    mqtt: Mqtt,
    native: Remoting,
}

/// A message as a receiver sees it: body and address in the receiver's spelling.
type Seen = BTreeSet<(String, String)>;

impl Receivers {
    fn new(broker: &Broker, topic: &str) -> Self {
        let mut amqp = Amqp::connect(broker.address("amqp")).expect("it works");
        amqp.confirm_select().expect("it works");
        amqp.declare_exchange(topic, "topic", true).expect("it works");
        for queue in [topic, "of-exchange", "of-amq-topic"] {
            amqp.declare_queue(queue, true).expect("it works");
        }
        amqp.bind("of-exchange", topic, "#").expect("it works");
        amqp.bind("of-amq-topic", "amq.topic", &format!("{topic}.#"))
            .expect("it works");
        let mut mqtt = Mqtt::connect(broker.address("mqtt"), Connect::clean("receiver")).expect("it works");
        mqtt.subscribe(&format!("{topic}/#"), 1).expect("it works");
        let mut native = Remoting::connect(broker.address("remoting")).expect("it works");
        native.join("receivers", "receiver", &[topic]).expect("it works");
        Self {
            topic: topic.to_owned(),
            amqp,
            mqtt,
            native,
        }
    }

    fn send_natively(&mut self, tag: &str, body: &str) {
        let send = remoting::Send {
            topic: &self.topic,
            tag,
            queue_id: None,
            body: body.as_bytes(),
        };
        assert_eq!(self.native.send_and_wait(send).expect("it works").code, SUCCESS);
    }

    fn publish_by_amqp(&mut self, exchange: &str, key: &str, body: &str) {
        let publish = amqp::Publish {
            exchange,
            key,
            persistent: true,
            mandatory: true,
            body: body.as_bytes(),
        };
        self.amqp.publish_confirmed(publish).expect("it works");
    }

    /// All that is in a queue, by exchange and routing key.
    fn queue(&mut self, queue: &str) -> Seen {
        let mut seen = Seen::new();
        while let Some(delivery) = self.amqp.get(queue).expect("it works") {
            let body = String::from_utf8(delivery.body).expect("text");
            let address = format!("{} {}", delivery.exchange, delivery.key);
            assert!(seen.insert((body.clone(), address)), "{queue}: a second copy of {body}");
        }
        seen
    }

    /// All that the subscriber gets up to the message `last`.
    fn subscriber(&mut self, last: &str) -> Seen {
        let mut seen = Seen::new();
        loop {
            let message = self.mqtt.next_message(PATIENCE).expect("it works").expect("it comes");
            let body = String::from_utf8(message.body).expect("text");
            self.mqtt.puback(message.packet_id).expect("it works");
            assert!(seen.insert((body.clone(), message.topic)), "a second copy of {body}");
            if body == last {
                return seen;
            }
        }
    }

    /// All that is in the topic, by tag.
    fn group(&mut self) -> Seen {
        let mut seen = Seen::new();
        let topic = self.topic.clone();
        for queue_id in 0..4 {
            let end = self.native.max_offset(&topic, queue_id).expect("it works");
            let mut offset = 0;
            let until = Instant::now() + PATIENCE;
            while offset < end {
                assert!(Instant::now() < until, "{offset} of {end}");
                let pull = remoting::Pull {
                    group: "receivers",
                    topic: &topic,
                    queue_id,
                    offset,
                    messages_max: 32,
                    suspend: 0,
                };
                let response = self.native.pull_and_wait(pull).expect("it works");
                for record in response.records() {
                    let body = String::from_utf8(record.body.clone()).expect("text");
                    let tag = record.property("TAGS").unwrap_or("").to_owned();
                    assert!(seen.insert((body.clone(), tag)), "a second copy of {body}");
                    offset = record.queue_offset + 1;
                }
            }
        }
        seen
    }
}

fn seen(expected: &[(&str, &str)]) -> Seen {
    expected
        .iter()
        .map(|(body, address)| ((*body).to_owned(), (*address).to_owned()))
        .collect()
}

/// Who receives what, for each way of publishing: the rows of the table.
#[test]
fn each_way_of_publishing_reaches_whom_the_table_names_and_nobody_else() {
    let mut random = Random::from_environment();
    let broker = Broker::start();
    let topic = format!("devices-{}", random.word(6));
    let t = &topic[..];
    let mut receivers = Receivers::new(&broker, t);

    receivers.send_natively("42.cmd", "native with a tag");
    receivers.send_natively("", "native without");
    receivers.publish_by_amqp(t, "42.cmd", "exchange");
    receivers.publish_by_amqp("", t, "default exchange");
    receivers.publish_by_amqp("amq.topic", &format!("{t}.42.cmd"), "amq.topic");
    receivers
        .mqtt
        .publish_confirmed(&format!("{t}/42/cmd"), b"mqtt")
        .expect("it works");
    receivers
        .mqtt
        .publish_confirmed(&format!("{t}/4.2/cmd"), b"mqtt with a dot")
        .expect("it works");
    receivers.publish_by_amqp(t, "last", "last");

    let at = |key: &str| format!("{t} {key}");
    let of_mqtt = |levels: &str| format!("{t}/{levels}");
    let amq_topic = format!("amq.topic {t}.42.cmd");

    assert_eq!(
        receivers.queue("of-exchange"),
        seen(&[
            ("native with a tag", &at("42.cmd")),
            ("native without", &at("")),
            ("exchange", &at("42.cmd")),
            // What AMQP published comes back as it was.
            ("amq.topic", &amq_topic),
            ("mqtt", &at("42.cmd")),
            ("mqtt with a dot", &at("4/2.cmd")),
            ("last", &at("last")),
        ]),
        "bindings of the exchange"
    );
    assert_eq!(
        receivers.queue(t),
        seen(&[
            ("native with a tag", &at("42.cmd")),
            ("native without", &at("")),
            ("default exchange", &format!(" {t}")),
        ]),
        "the queue of the topic's name"
    );
    let of_amq_topic = receivers.queue("of-amq-topic");
    let bodies: BTreeSet<_> = of_amq_topic.iter().map(|(body, _)| &body[..]).collect();
    assert_eq!(
        bodies,
        BTreeSet::from([
            "native with a tag",
            "native without",
            "amq.topic",
            "mqtt",
            "mqtt with a dot"
        ]),
        "bindings of amq.topic"
    );
    assert_eq!(
        receivers.subscriber("last"),
        seen(&[
            ("native with a tag", &of_mqtt("42/cmd")),
            ("native without", t),
            ("exchange", &of_mqtt("42/cmd")),
            ("amq.topic", &of_mqtt("42/cmd")),
            ("mqtt", &of_mqtt("42/cmd")),
            ("mqtt with a dot", &of_mqtt("4.2/cmd")),
            ("last", &of_mqtt("last")),
        ]),
        "an MQTT subscriber"
    );
    assert_eq!(
        receivers.group(),
        seen(&[
            ("native with a tag", "42.cmd"),
            ("native without", ""),
            ("exchange", "42.cmd"),
            ("default exchange", ""),
            ("amq.topic", "42.cmd"),
            ("mqtt", "42.cmd"),
            ("mqtt with a dot", "4/2.cmd"),
            ("last", "last"),
        ]),
        "a native group"
    );
}

/// A transient message enters a topic only when a group is there for it.
#[test]
fn a_transient_message_enters_a_topic_only_for_a_group() {
    let broker = Broker::start();
    let mut mqtt = Mqtt::connect(broker.address("mqtt"), Connect::clean("transient")).expect("it works");
    let mut native = Remoting::connect(broker.address("remoting")).expect("it works");
    for (topic, has_group) in [("with-group", true), ("without-group", false)] {
        // A persistent one makes the topic.
        mqtt.publish_confirmed(&format!("{topic}/1"), b"persistent")
            .expect("it works");
        if has_group {
            native.join("group", "member", &[topic]).expect("it works");
        }
        mqtt.publish(&format!("{topic}/1"), 0, b"transient").expect("it works");
        mqtt.publish_confirmed(&format!("{topic}/1"), b"persistent")
            .expect("it works");
        let ends: u64 = (0..4).map(|id| native.max_offset(topic, id).expect("it works")).sum();
        assert_eq!(ends, if has_group { 3 } else { 2 }, "{topic}");
    }
}
