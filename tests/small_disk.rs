//! A file system that is really full: publishers are told so, each in its protocol's own words; consumers go on, and
//! when they have made room, so do the publishers. Nothing confirmed is lost, also if the broker dies meanwhile.
//!
//! The file systems are mounts of memory; where mounting is not allowed the tests say so and do nothing.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use support::amqp::{self, Amqp};
use support::broker::{Broker, Options};
use support::history::{Event, Extent, MessageId, Queue, Recorder};
use support::mqtt::{self, Connect, Mqtt};
use support::random::Random;
use support::remoting::{Remoting, SUCCESS, Send};
use support::stomp::{Stomp, receipt_of};
use support::wire::PATIENCE;

const MIB: u64 = 1 << 20;

/// Room for four segments of 64 MiB, and what the fifth does not get.
const DISK: u64 = 288 * MIB;

const BODY: usize = 128 << 10;

/// An MQTT session keeps at most 64 MiB; the others fill the disk.
const SESSION_MAX: usize = 150;

/// How long a publisher that has to wait is watched, to see that it does.
const WATCHED: Duration = Duration::from_millis(200);

const NEARLY_FULL: &str = "the disk is nearly full";
const ROOM_AGAIN: &str = "there is room on the disk again";

/// RocketMQ's SERVICE_NOT_AVAILABLE, MQTT 5.0's Quota exceeded.
const SERVICE_NOT_AVAILABLE: &str = "14";
const QUOTA_EXCEEDED: u8 = 0x97;

const AMQP: Queue = "amqp";
const MQTT: Queue = "mqtt";
const STOMP: Queue = "stomp";
const NATIVE: Queue = "native";
const QUEUES: [Queue; 4] = [AMQP, MQTT, STOMP, NATIVE];

/// A file system of its own; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, with words, where it is not allowed.
    fn mount(size: u64) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder").keep();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&folder)
            .output();
        let said = match output {
            Ok(output) if output.status.success() => return Some(Self(folder)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let _ = fs::remove_dir(&folder);
        println!(
            "skipped: this needs a mount, and that is not allowed here: {}",
            said.trim()
        );
        None
    }

    fn options(&self) -> Options {
        Options {
            data_dir: Some(self.0.join("data")),
            ..Options::default()
        }
    }

    /// What is used, percent.
    fn used(&self) -> u64 {
        let output = Command::new("df")
            .arg("--output=pcent")
            .arg(&self.0)
            .output()
            .expect("df");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let percent = text.lines().last().unwrap_or_default().trim().trim_end_matches('%');
        percent.parse().unwrap_or_else(|_| panic!("{text}"))
    }
}

/// Somebody else's file, which takes all the room there is.
struct Ballast(PathBuf);

impl Ballast {
    fn of(disk: &SmallDisk) -> Self {
        Self(disk.0.join("ballast"))
    }

    fn fill(&self) {
        let file = fs::OpenOptions::new().create(true).append(true).open(&self.0);
        let mut file = file.expect("a name needs no room");
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

/// How a publish was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Confirmed,
    /// With the protocol's own word.
    Refused(String),
    /// Not at all so far.
    Waits,
}

/// One publisher of each protocol, one message at a time.
struct Publishers {
    amqp: Amqp,
    amqp_waits: Option<MessageId>,
    amqp_blocked: bool,
    mqtt: Mqtt,
    mqtt_waits: HashMap<u16, MessageId>,
    stomp: Stomp,
    stomp_waits: HashMap<u64, MessageId>,
    stomp_error: Option<String>,
    native: Remoting,
}

struct World {
    recorder: Recorder,
    random: Random,
    sequences: HashMap<Queue, u64>,
    /// Confirmed and not consumed.
    kept: HashMap<Queue, BTreeSet<MessageId>>,
}

impl World {
    fn new() -> Self {
        let recorder = Recorder::default();
        for (publisher, queue) in (1..).zip(QUEUES) {
            recorder.route(publisher, &[queue]);
        }
        Self {
            recorder,
            random: Random::from_environment(),
            sequences: HashMap::new(),
            kept: QUEUES.map(|queue| (queue, BTreeSet::new())).into(),
        }
    }

    fn next(&mut self, queue: Queue, size: usize) -> (MessageId, Vec<u8>) {
        let sequence = self.sequences.entry(queue).or_default();
        *sequence += 1;
        let publisher = 1 + QUEUES
            .iter()
            .position(|known| *known == queue)
            .expect("it is one of them") as u32;
        let message = MessageId {
            publisher,
            sequence: *sequence,
        };
        (message, self.recorder.send(message, size, &mut self.random))
    }

    fn confirmed(&mut self, queue: Queue, message: MessageId) {
        self.recorder.record(Event::Confirmed { message });
        self.kept.get_mut(queue).expect("it is one of them").insert(message);
    }

    /// Records a delivery and that it is about to be acknowledged.
    fn consumed(&mut self, queue: Queue, body: &[u8], redelivered: bool) {
        let message = self
            .recorder
            .deliver(queue, 0, body, redelivered)
            .expect("a test made it");
        self.recorder.record(Event::Settled { queue, message });
        self.kept.get_mut(queue).expect("it is one of them").remove(&message);
    }

    fn is_empty(&self, queue: Queue) -> bool {
        self.kept[queue].is_empty()
    }
}

/// Queues, a session and a topic.
fn set_up(broker: &Broker) -> io::Result<()> {
    let mut amqp = Amqp::connect(broker.address("amqp"))?;
    for queue in [AMQP, STOMP, NATIVE] {
        amqp.declare_queue(queue, true)?;
    }
    amqp.bind(NATIVE, "amq.topic", "native.#")?;
    amqp.close()?;
    let mut session = Mqtt::connect(broker.address("mqtt"), Connect::persistent("session"))?;
    session.subscribe("mqtt/#", 1)?;
    session.disconnect()
}

impl Publishers {
    fn connect(broker: &Broker) -> io::Result<Self> {
        let mut amqp = Amqp::connect(broker.address("amqp"))?;
        amqp.confirm_select()?;
        Ok(Self {
            amqp,
            amqp_waits: None,
            amqp_blocked: false,
            mqtt: Mqtt::connect(broker.address("mqtt"), Connect::clean("publisher"))?,
            mqtt_waits: HashMap::new(),
            stomp: Stomp::connect(broker.address("stomp"))?,
            stomp_waits: HashMap::new(),
            stomp_error: None,
            native: Remoting::connect(broker.address("remoting"))?,
        })
    }

    fn publish(&mut self, world: &mut World, queue: Queue, broker: &Broker) -> io::Result<Answer> {
        let (message, body) = world.next(queue, BODY);
        match queue {
            AMQP => {
                let waits = self.amqp_waits.replace(message);
                assert_eq!(waits, None, "one at a time");
                self.amqp.publish(amqp::Publish {
                    exchange: "",
                    key: AMQP,
                    persistent: true,
                    mandatory: true,
                    body: &body,
                })?;
            }
            MQTT => {
                let packet_id = self.mqtt.publish("mqtt/x", 1, &body)?;
                self.mqtt_waits.insert(packet_id, message);
            }
            STOMP => {
                let mut bytes = Vec::new();
                let receipt = self.stomp.put_send("/amq/queue/stomp", &[], &body, &mut bytes);
                self.stomp_waits.insert(receipt, message);
                self.stomp.wire.send(&bytes)?;
            }
            _ => return self.send_native(world, message, &body),
        }
        let start = Instant::now();
        loop {
            if self.look(world, queue)? {
                return Ok(match self.stomp_error.take() {
                    Some(error) => Answer::Refused(error),
                    None => Answer::Confirmed,
                });
            }
            // Only AMQP says that it makes a publisher wait.
            let waits = queue != AMQP || self.amqp_blocked;
            if waits && start.elapsed() > WATCHED && is_full(broker) {
                return Ok(Answer::Waits);
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{queue}: no answer, and the disk is not full"
            );
        }
    }

    fn send_native(&mut self, world: &mut World, message: MessageId, body: &[u8]) -> io::Result<Answer> {
        let response = self.native.send_and_wait(Send {
            topic: NATIVE,
            tag: "tag",
            queue_id: Some(0),
            body,
        })?;
        if response.code == SUCCESS {
            world.confirmed(NATIVE, message);
            return Ok(Answer::Confirmed);
        }
        assert!(response.remark.contains("disk is full"), "{response:?}");
        world.recorder.record(Event::Refused { message });
        Ok(Answer::Refused(response.code.to_string()))
    }

    /// Takes what the broker says; gives whether nothing waits for an answer any more.
    fn look(&mut self, world: &mut World, queue: Queue) -> io::Result<bool> {
        let until = Instant::now() + Duration::from_millis(20);
        match queue {
            AMQP => match self.amqp.next_event(until)? {
                Some(amqp::Event::Confirmed { ack: true, .. }) => {
                    world.confirmed(AMQP, self.amqp_waits.take().expect("it was published"));
                }
                Some(amqp::Event::Method(amqp::CONNECTION_BLOCKED, reason)) => {
                    assert!(reason.ends_with(b"low on disk"), "{}", reason.escape_ascii());
                    self.amqp_blocked = true;
                }
                Some(amqp::Event::Method(amqp::CONNECTION_UNBLOCKED, _)) => self.amqp_blocked = false,
                None => {}
                other => panic!("{other:?}"),
            },
            MQTT => match self.mqtt.next_event(until)? {
                Some(mqtt::Event::PubAck(packet_id)) => {
                    world.confirmed(MQTT, self.mqtt_waits.remove(&packet_id).expect("it was published"));
                }
                None => {}
                other => panic!("{other:?}"),
            },
            _ => match self.stomp.next_frame(until)? {
                // It ends the connection, and says which message it is about.
                Some(frame) if frame.command == "ERROR" => {
                    let said = String::from_utf8_lossy(&frame.body).into_owned();
                    assert!(said.contains("Disk runs short"), "{said}");
                    let receipt = frame.header("receipt-id").and_then(|id| id.parse().ok());
                    let message = receipt.and_then(|receipt: u64| self.stomp_waits.remove(&receipt));
                    let message = message.unwrap_or_else(|| panic!("{frame:?}"));
                    world.recorder.record(Event::Refused { message });
                    self.stomp_error = frame.header("message").map(str::to_owned);
                }
                Some(frame) => {
                    let receipt = receipt_of(&frame).unwrap_or_else(|| panic!("{frame:?}"));
                    world.confirmed(STOMP, self.stomp_waits.remove(&receipt).expect("it was sent"));
                }
                None => {}
            },
        }
        Ok(match queue {
            AMQP => self.amqp_waits.is_none() && !self.amqp_blocked,
            MQTT => self.mqtt_waits.is_empty(),
            _ => self.stomp_waits.is_empty(),
        })
    }

    /// Those that had to wait get their confirms; STOMP's connection was ended.
    fn go_on(&mut self, world: &mut World, broker: &Broker) -> io::Result<()> {
        self.stomp = Stomp::connect(broker.address("stomp"))?;
        let until = Instant::now() + PATIENCE;
        for queue in [AMQP, MQTT] {
            while !self.look(world, queue)? {
                assert!(Instant::now() < until, "{queue}: it still waits\n{}", broker.log());
            }
        }
        Ok(())
    }
}

/// Publishes by all protocols in turn until each has been told to stop, and looks at how.
fn fill(world: &mut World, publishers: &mut Publishers, broker: &Broker, disk: &SmallDisk) -> io::Result<()> {
    let mut stopped: Vec<(Queue, Answer)> = Vec::new();
    let mut in_session = world.kept[MQTT].len();
    while stopped.len() < QUEUES.len() {
        for queue in QUEUES {
            if stopped.iter().any(|(known, _)| *known == queue) {
                continue;
            }
            if queue == MQTT && !is_full(broker) {
                in_session += 1;
                if in_session > SESSION_MAX {
                    continue;
                }
            }
            match publishers.publish(world, queue, broker)? {
                Answer::Confirmed => {}
                answer => stopped.push((queue, answer)),
            }
        }
    }
    println!("{} % of the disk are used; {stopped:?}", disk.used());
    let is_first = world
        .recorder
        .with(|history| history.count(|event| matches!(event, Event::Delivered { .. })) == 0);
    // Later on, room may have been made since then.
    if is_first {
        assert!(disk.used() >= 75, "{} % are used: more would fit", disk.used());
    }
    for (queue, answer) in stopped {
        let own = match queue {
            NATIVE => Answer::Refused(SERVICE_NOT_AVAILABLE.to_owned()),
            STOMP => Answer::Refused("resource_error".to_owned()),
            _ => Answer::Waits,
        };
        assert_eq!(answer, own, "{queue}");
    }
    assert!(publishers.amqp_blocked, "connection.blocked has come");
    while !mqtt5_is_refused(world, broker)? {
        // What was consumed before has made room just now.
        while publishers.publish(world, NATIVE, broker)? == Answer::Confirmed {}
    }
    Ok(())
}

fn is_full(broker: &Broker) -> bool {
    let log = broker.log();
    log.rfind(NEARLY_FULL) > log.rfind(ROOM_AGAIN)
}

/// Whether an MQTT 5.0 PUBACK has its reason code for it.
fn mqtt5_is_refused(world: &mut World, broker: &Broker) -> io::Result<bool> {
    let (message, body) = world.next(MQTT, 100);
    let connect = Connect {
        version: mqtt::V5,
        ..Connect::clean("five")
    };
    let mut client = Mqtt::connect(broker.address("mqtt"), connect)?;
    client.publish("mqtt/x", 1, &body)?;
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some((first, rest)) = client.next_packet() {
            assert_eq!(first >> 4, mqtt::PUBACK);
            let reason = rest.get(2).copied().unwrap_or(0);
            if reason == 0 {
                world.confirmed(MQTT, message);
                return Ok(false);
            }
            assert_eq!(reason, QUOTA_EXCEEDED);
            world.recorder.record(Event::Refused { message });
            return Ok(true);
        }
        assert!(client.wire.fill(until)?, "no PUBACK\n{}", broker.log());
    }
}

/// Consumes with each protocol until everything confirmed was seen.
fn drain(world: &mut World, broker: &Broker) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    for queue in [AMQP, NATIVE] {
        let mut client = Amqp::connect(broker.address("amqp"))?;
        client.qos(20)?;
        client.consume(queue, false)?;
        while !world.is_empty(queue) {
            assert!(Instant::now() < until, "{queue}: {} left", world.kept[queue].len());
            match client.next_event(until)? {
                Some(amqp::Event::Delivery(delivery)) => {
                    world.consumed(queue, &delivery.body, delivery.redelivered);
                    client.ack(delivery.tag, false)?;
                }
                other => panic!("{other:?}"),
            }
        }
        client.close()?;
    }
    let mut client = Stomp::connect(broker.address("stomp"))?;
    let subscription = [
        ("id", "1"),
        ("destination", "/amq/queue/stomp"),
        ("ack", "client-individual"),
        ("prefetch-count", "20"),
    ];
    client.call("SUBSCRIBE", &subscription, b"")?;
    while !world.is_empty(STOMP) {
        let frame = client.next_frame(until)?.expect("there are more");
        world.consumed(STOMP, &frame.body, frame.header("redelivered") == Some("true"));
        client.send("ACK", &[("id", frame.header("ack").expect("it is to be settled"))], b"")?;
    }
    client.call("DISCONNECT", &[], b"")?;
    let mut client = Mqtt::connect(broker.address("mqtt"), Connect::persistent("session"))?;
    while !world.is_empty(MQTT) {
        let message = client.next_message(PATIENCE)?.expect("there are more");
        world.consumed(MQTT, &message.body, message.dup);
        client.puback(message.packet_id)?;
    }
    client.ping()?;
    client.disconnect()
}

fn wait_until(what: &str, broker: &Broker, mut is_so: impl FnMut() -> bool) {
    let (_sender, receiver) = channel::<()>();
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}\n{}", broker.log());
        let _ = receiver.recv_timeout(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_stops_publishers_only_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount(DISK) else { return };
    let mut world = World::new();
    let mut broker = Broker::start_with(&disk.options());
    set_up(&broker).expect("it works");

    // Full; consumers make room; the same connections go on.
    let mut publishers = Publishers::connect(&broker).expect("it works");
    fill(&mut world, &mut publishers, &broker, &disk).expect("it works");
    drain(&mut world, &broker).expect("consumers need no room");
    wait_until("there is no room again", &broker, || !is_full(&broker));
    publishers.go_on(&mut world, &broker).expect("it works");

    // Full again, which needs the space that was given back; killed, and started on a full disk.
    fill(&mut world, &mut publishers, &broker, &disk).expect("it works");
    broker.kill();
    world.recorder.record(Event::Crashed);
    let mut broker = broker.restart(&disk.options());
    drain(&mut world, &broker).expect("consumers need no room");
    wait_until("there is no room again", &broker, || !is_full(&broker));
    let mut publishers = Publishers::connect(&broker).expect("it works");
    for queue in QUEUES {
        let answer = publishers.publish(&mut world, queue, &broker).expect("it works");
        assert_eq!(answer, Answer::Confirmed, "{queue}");
    }
    drain(&mut world, &broker).expect("it works");
    assert!(broker.is_running(), "{}", broker.log());
    world.recorder.with(|history| {
        let confirmed = history.count(|event| matches!(event, Event::Confirmed { .. }));
        println!("{confirmed} messages of {} KiB confirmed, none lost", BODY >> 10);
        history.assert_good(Extent::Drained);
    });
}

/// Not a byte is left for checkpoints and index pages: the log has room of its own and stays the truth.
#[test]
fn not_a_byte_left_costs_nothing_confirmed() {
    let Some(disk) = SmallDisk::mount(DISK) else { return };
    // A checkpoint is due whenever something was written.
    let options = Options {
        config: "[store]\ncheckpoint_size = 1\n".to_owned(),
        ..disk.options()
    };
    let mut world = World::new();
    let mut broker = Broker::start_with(&options);
    set_up(&broker).expect("it works");
    let mut publishers = Publishers::connect(&broker).expect("it works");
    for queue in QUEUES.repeat(150) {
        let answer = publishers.publish(&mut world, queue, &broker).expect("it works");
        assert_eq!(answer, Answer::Confirmed, "{queue}");
    }
    let ballast = Ballast::of(&disk);
    ballast.fill();
    wait_until("the full disk is not noticed", &broker, || is_full(&broker));
    assert!(mqtt5_is_refused(&mut world, &broker).expect("it answers"));
    // Acknowledgements are in the log, and checkpoints fail meanwhile; what those let go is filled, too.
    wait_until("no checkpoint has failed", &broker, || {
        drain_some(&mut world, &broker, 2).expect("consumers need no room");
        ballast.fill();
        broker.log().contains("cannot be kept small")
    });
    drain_some(&mut world, &broker, 20).expect("consumers need no room");
    assert!(broker.is_running(), "{}", broker.log());
    broker.kill();
    world.recorder.record(Event::Crashed);
    ballast.fill();
    // A new life begins in a segment of its own: without room for that it says so, and changes nothing.
    let mut refused = broker.restart_unready(&options);
    assert!(!refused.wait(PATIENCE).success());
    let said = refused.whole_log();
    assert!(said.contains("No space left on device"), "{said}");
    fs::remove_file(&ballast.0).expect("it is there");
    let mut broker = refused.restart(&options);
    wait_until("there is no room again", &broker, || !is_full(&broker));
    let mut publishers = Publishers::connect(&broker).expect("it works");
    for queue in QUEUES {
        let answer = publishers.publish(&mut world, queue, &broker).expect("it works");
        assert_eq!(answer, Answer::Confirmed, "{queue}");
    }
    drain(&mut world, &broker).expect("it works");
    assert!(broker.is_running(), "{}", broker.log());
    world.recorder.with(|history| history.assert_good(Extent::Drained));
}

/// Consumes that many messages over AMQP.
fn drain_some(world: &mut World, broker: &Broker, count: usize) -> io::Result<()> {
    let mut client = Amqp::connect(broker.address("amqp"))?;
    for queue in [AMQP, NATIVE].repeat(count / 2) {
        let delivery = client.get(queue)?.expect("there are more");
        world.consumed(queue, &delivery.body, delivery.redelivered);
    }
    client.close()
}
