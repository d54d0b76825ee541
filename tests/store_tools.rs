//! `rocketbridge store check` and `store dump` on the data of a real broker, whole and damaged.

mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::amqp::{self, Amqp};
use support::broker::{Broker, Options};
use support::wire::PATIENCE;

/// Exit codes, as `rocketbridge store check --help` tells them.
const LOCKED: i32 = 5;
const DAMAGED: i32 = 6;

fn store(words: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rocketbridge"));
    command.arg("store").arg(words[0]).arg(folder).args(&words[1..]);
    command.output().expect("the program starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A broker that had some messages and was stopped in good order.
fn stopped() -> Broker {
    let mut broker = Broker::start();
    let mut client = Amqp::connect(broker.address("amqp")).expect("it listens");
    client.confirm_select().expect("it works");
    client.declare_queue("orders", true).expect("it works");
    for number in 0..50 {
        let body = format!("order number {number}");
        let publish = amqp::Publish {
            exchange: "",
            key: "orders",
            persistent: true,
            mandatory: true,
            body: body.as_bytes(),
        };
        client.publish_confirmed(publish).expect("it works");
    }
    let running = store(&["check"], &broker.data_dir());
    assert_eq!(running.status.code(), Some(LOCKED), "{}", text(&running));
    assert!(text(&running).contains("running broker"), "{}", text(&running));
    let running = store(&["dump"], &broker.data_dir());
    assert_eq!(running.status.code(), Some(LOCKED), "{}", text(&running));
    drop(client);
    broker.signal("TERM");
    assert!(broker.wait(PATIENCE).success());
    broker
}

fn first_segment(broker: &Broker) -> PathBuf {
    broker.data_dir().join("commitlog").join("0".repeat(20))
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes
        .windows(what.len())
        .position(|window| window == what)
        .expect("it is there")
}

#[test]
fn whole_data_is_said_to_be_whole_and_printed() {
    let broker = stopped();
    let checked = store(&["check"], &broker.data_dir());
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    assert!(
        text(&checked).contains("50 messages") && text(&checked).ends_with("whole\n"),
        "{}",
        text(&checked)
    );
    let dumped = text(&store(&["dump"], &broker.data_dir()));
    assert!(dumped.contains("declared: orders"), "{dumped}");
    let messages = text(&store(
        &["dump", "--kind", "message", "--topic", "orders"],
        &broker.data_dir(),
    ));
    assert_eq!(messages.lines().count(), 50, "{messages}");
    assert!(
        messages
            .lines()
            .all(|line| line.contains("topic=orders") && line.contains("persistent"))
    );
    assert!(messages.contains("\"order number 49\""), "{messages}");
    let position = messages
        .lines()
        .nth(10)
        .and_then(|line| line.split(' ').next())
        .expect("a position");
    let rest = text(&store(
        &["dump", "--kind", "message", "--from", position],
        &broker.data_dir(),
    ));
    assert_eq!(rest.lines().count(), 40, "{rest}");
    // Whoever reads may stop reading.
    let mut child = Command::new(env!("CARGO_BIN_EXE_rocketbridge"))
        .args(["store", "dump"])
        .arg(broker.data_dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("it ends").success());
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("text");
    assert_eq!(said, "");
}

#[test]
fn damage_is_named_with_file_and_place_and_the_rest_is_printed() {
    let broker = stopped();
    let segment = first_segment(&broker);
    let mut bytes = fs::read(&segment).expect("it is there");
    let at = find(&bytes, b"order number 20");
    bytes[at] ^= 1;
    fs::write(&segment, bytes).expect("it is ours");
    let checked = store(&["check"], &broker.data_dir());
    assert_eq!(checked.status.code(), Some(DAMAGED), "{}", text(&checked));
    let said = text(&checked);
    let line = said
        .lines()
        .find(|line| line.starts_with("DAMAGED"))
        .expect("it is told");
    assert!(line.contains("commitlog/00000000000000000000 at byte"), "{line}");
    let offset: usize = line
        .split("at byte ")
        .nth(1)
        .and_then(|text| text.split(':').next())
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(offset < at && at - offset < 1000, "{line}");
    let messages = text(&store(&["dump", "--kind", "message"], &broker.data_dir()));
    assert_eq!(
        messages.lines().filter(|line| line.contains("topic=orders")).count(),
        49,
        "{messages}"
    );
    assert!(messages.contains("UNREADABLE"), "{messages}");
}

#[test]
fn a_newer_version_and_a_folder_that_is_none_are_refused_in_words() {
    let broker = stopped();
    let nothing = store(&["check"], &broker.folder().join("nothing"));
    assert_eq!(nothing.status.code(), Some(1), "{}", text(&nothing));
    assert!(text(&nothing).contains("not the data directory"), "{}", text(&nothing));
    let commitlog = broker.data_dir().join("commitlog");
    for entry in fs::read_dir(&commitlog).expect("it is there") {
        make_newer(&entry.expect("it can be read").path());
    }
    for words in [&["check"][..], &["dump"]] {
        let refused = store(words, &broker.data_dir());
        assert_eq!(refused.status.code(), Some(DAMAGED), "{}", text(&refused));
        assert!(text(&refused).contains("format version 999"), "{}", text(&refused));
    }
    let mut broker = broker.restart_unready(&Options::default());
    assert_eq!(broker.wait(PATIENCE).code(), Some(DAMAGED));
    let log = broker.whole_log();
    assert!(log.contains("format version 999"), "{log}");
}

/// Gives a segment's head another version, with the right checksum.
fn make_newer(segment: &Path) {
    let mut bytes = fs::read(segment).expect("it is there");
    let length = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
    if length == 0 {
        return;
    }
    bytes[40..44].copy_from_slice(&999u32.to_le_bytes());
    let crc = crc32(&bytes[8..length as usize]) ^ length;
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    fs::write(segment, bytes).expect("it is ours");
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    };
    !bytes.iter().fold(!0, step)
}
