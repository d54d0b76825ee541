//! Rust clients (lapin, rumqttc, the example) and the mosquitto tools against the real program.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use futures_lite::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use rand::Rng;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use support::broker::{Broker, Options};
use tokio::time::timeout;

/// How long anything in here may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn amqp_url(broker: &Broker) -> String {
    format!("amqp://guest:guest@{}/%2f", broker.address("amqp"))
}

fn random_name(kind: &str) -> String {
    format!("{kind}-{:016x}", rand::random::<u64>())
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

// --- the example ---------------------------------------------------------------------------------------

/// A program that is killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `examples/entity_sync.rs`, which cargo builds together with the tests.
fn example(broker: &Broker, words: &[&str]) -> (Process, Receiver<String>) {
    let test = std::env::current_exe().expect("this test is a file");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let mut command = Command::new(profile.join("examples/entity_sync"));
    command
        .args(words)
        .env("AMQP_URL", amqp_url(broker))
        .stdout(Stdio::piped());
    spawn(command)
}

fn spawn(mut command: Command) -> (Process, Receiver<String>) {
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let lines = lines_of(child.stdout.take().expect("it is piped"));
    (Process(child), lines)
}

fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn next_line(lines: &Receiver<String>) -> String {
    lines.recv_timeout(PATIENCE).expect("a line in time")
}

#[test]
fn the_entity_sync_example_synchronises_everything() {
    let broker = Broker::start();
    let (mut process, lines) = example(&broker, &[]);
    assert_eq!(next_line(&lines), "400 changes are published and confirmed");
    assert_eq!(next_line(&lines), "org_rpc has all 400 entities");
    assert_eq!(next_line(&lines), "search, which started late, has all 400 entities");
    assert!(process.0.wait().expect("it ends").success());
}

#[test]
fn the_entity_sync_example_goes_on_when_the_broker_is_killed() {
    let mut broker = Broker::start();
    let (_one, first) = example(&broker, &["consume", "org_rpc"]);
    let (_two, second) = example(&broker, &["consume", "org_rpc"]);
    let (mut publisher, published) = example(&broker, &["publish", "4000"]);
    let mut synchronised = BTreeSet::new();
    let mut killed = false;
    let deadline = Instant::now() + 3 * PATIENCE;
    while synchronised.len() < 8000 {
        assert!(
            Instant::now() < deadline,
            "{} entities, killed: {killed}",
            synchronised.len()
        );
        for lines in [&first, &second] {
            // Two receivers: neither may block the other for long.
            if let Ok(line) = lines.recv_timeout(Duration::from_millis(1)) {
                synchronised.insert(line);
                synchronised.extend(lines.try_iter());
            }
        }
        if !killed && synchronised.len() > 500 {
            broker = broker.restart(&Options::default());
            killed = true;
        }
    }
    assert!(killed);
    assert_eq!(next_line(&published), "8000 changes are published and confirmed");
    assert!(publisher.0.wait().expect("it ends").success());
}

// --- rumqttc ---------------------------------------------------------------------------------------------

fn mqtt_options(broker: &Broker, id: &str) -> MqttOptions {
    let address = broker.address("mqtt");
    let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
    options
        .set_keep_alive(Duration::from_secs(30))
        .set_max_packet_size(8 << 20, 8 << 20);
    options
}

/// Drives a client until a packet of interest comes.
async fn until<T>(events: &mut EventLoop, mut wanted: impl FnMut(Packet) -> Option<T>) -> T {
    timeout(PATIENCE, async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.expect("the connection lives")
                && let Some(found) = wanted(packet)
            {
                return found;
            }
        }
    })
    .await
    .expect("in time")
}

async fn subscribed(client: &AsyncClient, events: &mut EventLoop, filter: &str, qos: QoS) {
    client.subscribe(filter, qos).await.expect("it is queued");
    until(events, |packet| matches!(packet, Packet::SubAck(_)).then_some(())).await;
}

fn publish(packet: Packet) -> Option<rumqttc::Publish> {
    match packet {
        Packet::Publish(publish) => Some(publish),
        _ => None,
    }
}

#[tokio::test]
async fn rumqttc_sends_and_receives_with_every_qos() {
    let broker = Broker::start();
    let (client, mut events) = AsyncClient::new(mqtt_options(&broker, &random_name("id")), 100);
    let topic = random_name("topic");
    subscribed(&client, &mut events, &format!("{topic}/+/value"), QoS::ExactlyOnce).await;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for size in [0, 1, 256, 65_537, 1 << 20, 4 << 20] {
            let body = random_bytes(size);
            client
                .publish(format!("{topic}/a/value"), qos, false, body.clone())
                .await
                .expect("it is queued");
            let got = until(&mut events, publish).await;
            assert_eq!(
                (got.topic, got.qos, got.retain),
                (format!("{topic}/a/value"), qos, false)
            );
            assert!(got.payload == body, "body of {size} bytes");
        }
    }
}

#[tokio::test]
async fn rumqttc_session_gets_what_was_published_while_away() {
    let broker = Broker::start();
    let (id, topic) = (random_name("id"), random_name("topic"));
    let persistent = || {
        let mut options = mqtt_options(&broker, &id);
        options.set_clean_session(false);
        AsyncClient::new(options, 100)
    };
    let (client, mut events) = persistent();
    subscribed(&client, &mut events, &topic, QoS::AtLeastOnce).await;
    client.disconnect().await.expect("it is queued");
    while events.poll().await.is_ok() {}

    let (publisher, mut publishing) = AsyncClient::new(mqtt_options(&broker, &random_name("id")), 100);
    for number in 0..20 {
        publisher
            .publish(&topic, QoS::AtLeastOnce, false, number.to_string())
            .await
            .expect("it is queued");
        until(&mut publishing, |packet| {
            matches!(packet, Packet::PubAck(_)).then_some(())
        })
        .await;
    }

    let (_client, mut events) = persistent();
    let present = until(&mut events, |packet| match packet {
        Packet::ConnAck(connack) => Some(connack.session_present),
        _ => None,
    });
    assert!(present.await, "session present");
    for number in 0..20 {
        assert_eq!(until(&mut events, publish).await.payload, number.to_string());
    }
}

/// A client that has published `count` messages of alternating QoS to itself; gives them as they came.
async fn own_messages(
    client: &AsyncClient,
    events: &mut EventLoop,
    topic: &str,
    count: usize,
) -> Vec<rumqttc::Publish> {
    let (mut came, mut confirmed) = (Vec::new(), 0);
    for number in 0..count {
        let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][number % 2];
        let body = number.to_string();
        client.publish(topic, qos, false, body).await.expect("it is queued");
    }
    while came.len() < count || confirmed < count {
        match until(events, Some).await {
            Packet::Publish(publish) => came.push(publish),
            Packet::PubAck(_) | Packet::PubComp(_) => confirmed += 1,
            _ => {}
        }
    }
    came
}

#[tokio::test]
async fn rumqttc_session_goes_on_after_a_kill_with_the_same_packet_identifiers() {
    let mut broker = Broker::start();
    let topic = random_name("topic");
    let mut options = mqtt_options(&broker, &random_name("id"));
    options.set_clean_session(false).set_manual_acks(true);
    let (client, mut events) = AsyncClient::new(options, 100);
    subscribed(&client, &mut events, &topic, QoS::ExactlyOnce).await;
    let came = own_messages(&client, &mut events, &topic, 20).await;
    let (acked, open): (Vec<_>, Vec<_>) = (0..).zip(&came).partition(|(at, _)| [0, 2, 4].contains(at));
    for (_, message) in acked {
        client.ack(message).await.expect("it is queued");
    }
    // Behind the acknowledgements on the same connection: the broker has read them.
    client
        .publish("elsewhere", QoS::AtLeastOnce, false, "fence")
        .await
        .expect("it is queued");
    until(&mut events, |packet| matches!(packet, Packet::PubAck(_)).then_some(())).await;

    broker = broker.restart(&Options::default());
    let present = timeout(PATIENCE, async {
        loop {
            // What ended the old connection is an error; the next poll connects again.
            if let Ok(Event::Incoming(Packet::ConnAck(connack))) = events.poll().await {
                return connack.session_present;
            }
        }
    });
    assert!(present.await.expect("in time"), "session present");
    for (_, message) in open {
        let again = until(&mut events, publish).await;
        assert_eq!(
            (again.pkid, again.qos, &again.payload, again.dup),
            (message.pkid, message.qos, &message.payload, true)
        );
        client.ack(&again).await.expect("it is queued");
    }
    // Those are settled now: what comes next is new.
    let next = own_messages(&client, &mut events, &topic, 2).await;
    assert_eq!([&next[0].payload[..], &next[1].payload[..]], [b"0", b"1"]);
    assert!(next.iter().all(|message| !message.dup));
    drop(broker);
}

#[tokio::test]
async fn rumqttc_5_keeps_properties() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};

    let broker = Broker::start();
    let address = broker.address("mqtt");
    let options = MqttOptions::new(random_name("id"), address.ip().to_string(), address.port());
    let (client, mut events) = AsyncClient::new(options, 100);
    let topic = random_name("topic");
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        content_type: Some("application/json".to_owned()),
        response_topic: Some("replies".to_owned()),
        correlation_data: Some(vec![0, 1, 255].into()),
        user_properties: vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())],
        ..PublishProperties::default()
    };
    client.subscribe(&topic, QoS::AtLeastOnce).await.expect("it is queued");
    let mut sent = false;
    let got = timeout(PATIENCE, async {
        loop {
            match events.poll().await.expect("the connection lives") {
                Event::Incoming(Packet::SubAck(_)) if !sent => {
                    let sending =
                        client.publish_with_properties(&topic, QoS::AtLeastOnce, false, "{}", properties.clone());
                    sending.await.expect("it is queued");
                    sent = true;
                }
                Event::Incoming(Packet::Publish(publish)) => return publish,
                _ => {}
            }
        }
    });
    let got = got.await.expect("in time");
    assert_eq!((&got.topic[..], &got.payload[..]), (topic.as_bytes(), &b"{}"[..]));
    assert_eq!(got.properties, Some(properties));
}

// --- lapin -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn lapin_and_rumqttc_see_each_others_messages() {
    let broker = Broker::start();
    let connection = Connection::connect(&amqp_url(&broker), ConnectionProperties::default())
        .await
        .expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirm mode");
    let topic = random_name("devices");
    let exclusive = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare("".into(), exclusive, FieldTable::default())
        .await
        .expect("a queue");
    let pattern = format!("{topic}.#");
    channel
        .queue_bind(
            queue.name().clone(),
            "amq.topic".into(),
            pattern.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("bound");
    let mut consumer = channel
        .basic_consume(
            queue.name().clone(),
            "".into(),
            BasicConsumeOptions {
                no_ack: true,
                ..BasicConsumeOptions::default()
            },
            FieldTable::default(),
        )
        .await
        .expect("a consumer");

    let (client, mut events) = AsyncClient::new(mqtt_options(&broker, &random_name("id")), 100);
    subscribed(&client, &mut events, &format!("{topic}/#"), QoS::AtLeastOnce).await;
    for size in [0, 1, 256, 65_537, 1 << 20] {
        let body = random_bytes(size);
        client
            .publish(format!("{topic}/42/state"), QoS::AtLeastOnce, false, body.clone())
            .await
            .expect("it is queued");
        let own = until(&mut events, publish).await;
        assert!(own.payload == body, "MQTT to MQTT, {size} bytes");
        let delivery = timeout(PATIENCE, consumer.next())
            .await
            .expect("in time")
            .expect("it goes on")
            .expect("a delivery");
        assert_eq!(delivery.routing_key.as_str(), format!("{topic}.42.state"));
        assert!(delivery.data == body, "MQTT to AMQP, {size} bytes");

        let key = format!("{topic}.42.cmd");
        let confirm = channel
            .basic_publish(
                "amq.topic".into(),
                key.as_str().into(),
                BasicPublishOptions::default(),
                &body,
                BasicProperties::default().with_delivery_mode(2),
            )
            .await
            .expect("published");
        let got = until(&mut events, publish).await;
        assert_eq!(got.topic, format!("{topic}/42/cmd"));
        assert!(got.payload == body, "AMQP to MQTT, {size} bytes");
        assert_eq!(confirm.await.expect("an answer"), Confirmation::Ack(None));
        timeout(PATIENCE, consumer.next())
            .await
            .expect("in time")
            .expect("it goes on")
            .expect("AMQP to AMQP");
    }
}

// --- mosquitto_pub and mosquitto_sub ------------------------------------------------------------------

/// One of the two tools; both come with Debian's package `mosquitto-clients`.
fn mosquitto(tool: &str, broker: &Broker, words: &[&str]) -> Command {
    let program = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]
        .map(|folder| PathBuf::from(folder).join(tool))
        .into_iter()
        .find(|program| program.exists())
        .unwrap_or_else(|| panic!("{tool} is missing: install mosquitto-clients"));
    // A line at a time, although nobody looks at a terminal.
    let mut command = Command::new("stdbuf");
    command.arg("-oL").arg(program);
    let address = broker.address("mqtt");
    command
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(words);
    command
}

fn mosquitto_pub(broker: &Broker, words: &[&str]) {
    let output = mosquitto("mosquitto_pub", broker, words).output().expect("it runs");
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A subscriber that has its SUBACK. Its messages are the lines that begin with `got`.
fn mosquitto_sub(broker: &Broker, words: &[&str]) -> (Process, Receiver<String>) {
    let mut command = mosquitto("mosquitto_sub", broker, words);
    command.arg("-d").stdout(Stdio::piped()).stderr(Stdio::null());
    let (process, lines) = spawn(command);
    while !next_line(&lines).starts_with("Subscribed") {}
    (process, lines)
}

fn next_message(lines: &Receiver<String>) -> String {
    loop {
        if let Some(message) = next_line(lines).strip_prefix("got ") {
            return message.to_owned();
        }
    }
}

#[test]
fn mosquitto_tools_exchange_messages_of_every_version() {
    let broker = Broker::start();
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let topic = random_name("topic");
            let filter = format!("{topic}/+/#");
            let (_sub, lines) = mosquitto_sub(
                &broker,
                &["-V", version, "-q", qos, "-t", &filter, "-F", "got %t %q %r %p"],
            );
            for (level, text) in [("a", "hello"), ("b/c", "grüße"), ("d/", "x y z")] {
                let topic = format!("{topic}/{level}");
                mosquitto_pub(&broker, &["-V", version, "-q", qos, "-t", &topic, "-m", text]);
                assert_eq!(next_message(&lines), format!("{topic} {qos} 0 {text}"), "{version}");
            }
        }
    }
}

#[test]
fn mosquitto_tools_see_retained_messages_wills_and_shared_subscriptions_through_a_kill() {
    let broker = Broker::start();
    let topic = random_name("topic");
    for version in ["mqttv311", "mqttv5"] {
        let topic = format!("{topic}/{version}");
        mosquitto_pub(&broker, &["-V", version, "-r", "-q", "1", "-t", &topic, "-m", "kept"]);
    }
    let broker = broker.restart(&Options::default());
    for version in ["mqttv311", "mqttv5"] {
        let topic = format!("{topic}/{version}");
        let (_sub, lines) = mosquitto_sub(&broker, &["-V", version, "-q", "2", "-t", &topic, "-F", "got %q %r %p"]);
        assert_eq!(next_message(&lines), "1 1 kept");
        let will = format!("{topic}/will");
        let (_watcher, wills) = mosquitto_sub(&broker, &["-q", "1", "-t", &will, "-F", "got %p"]);
        let words = [
            "-V",
            version,
            "--will-topic",
            &will,
            "--will-payload",
            "gone",
            "--will-qos",
            "1",
            "-t",
            "x",
        ];
        let (mut mortal, _) = mosquitto_sub(&broker, &words);
        mortal.0.kill().expect("it is killed");
        assert_eq!(next_message(&wills), "gone");
    }
    let shared = format!("$share/g/{topic}/+");
    let members: Vec<_> = (0..2)
        .map(|_| mosquitto_sub(&broker, &["-V", "5", "-q", "1", "-t", &shared, "-F", "got %p"]))
        .collect();
    for number in 0..4 {
        let topic = format!("{topic}/{number}");
        mosquitto_pub(&broker, &["-q", "1", "-t", &topic, "-m", &number.to_string()]);
    }
    // Who of them gets which is the broker's choice.
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while got.len() < 4 {
        assert!(Instant::now() < deadline, "only {got:?} came");
        for (_, lines) in &members {
            let line = lines.recv_timeout(Duration::from_millis(1)).unwrap_or_default();
            got.extend(line.strip_prefix("got ").map(str::to_owned));
        }
    }
    got.sort();
    assert_eq!(got, ["0", "1", "2", "3"]);
}

#[test]
fn mosquitto_tools_exchange_properties() {
    let broker = Broker::start();
    let topic = random_name("topic");
    let (_sub, lines) = mosquitto_sub(
        &broker,
        &["-V", "5", "-q", "1", "-t", &topic, "-F", "got %C|%R|%D|%P|%p"],
    );
    let properties: Vec<_> = [
        &["-D", "publish", "content-type", "text/plain"][..],
        &["-D", "publish", "response-topic", "replies/here"],
        &["-D", "publish", "correlation-data", "42"],
        &["-D", "publish", "user-property", "key", "value"],
    ]
    .concat();
    let words: Vec<_> = ["-V", "5", "-q", "1", "-t", &topic, "-m", "hello"]
        .into_iter()
        .chain(properties)
        .collect();
    mosquitto_pub(&broker, &words);
    assert_eq!(next_message(&lines), "text/plain|replies/here|42|key:value|hello");
}

#[test]
fn mosquitto_session_gets_what_was_published_while_away_and_through_a_kill() {
    let mut broker = Broker::start();
    let (id, topic) = (random_name("id"), random_name("topic"));
    let words = ["-c", "-i", &id, "-q", "1", "-t", &topic, "-F", "got %p"];
    drop(mosquitto_sub(&broker, &words));
    for number in 0..5 {
        mosquitto_pub(&broker, &["-q", "1", "-t", &topic, "-m", &number.to_string()]);
    }
    broker = broker.restart(&Options::default());
    for number in 5..10 {
        mosquitto_pub(&broker, &["-q", "1", "-t", &topic, "-m", &number.to_string()]);
    }
    let mut command = mosquitto("mosquitto_sub", &broker, &words);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let (_sub, lines) = spawn(command);
    for number in 0..10 {
        assert_eq!(next_message(&lines), number.to_string());
    }
}
