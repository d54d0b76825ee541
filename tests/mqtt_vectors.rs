//! Byte sequences of another project (Eclipse Mosquitto's broker tests): "send these bytes, expect these bytes,
//! then closed or still alive", for MQTT 3.1, 3.1.1 and 5.0 and every packet type. They stay where they are:
//! the environment variable `MQTT_VECTORS` names their folder, and without it there is nothing to play.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use support::broker::{Broker, Options};

/// How long an answer may take. Nothing waits this long unless the test fails.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

type Played = Result<(), String>;

/// Sequences in the folder; none is excused.
const SEQUENCES: usize = 1483;

#[test]
fn every_byte_sequence_is_answered_as_the_standard_says() {
    let Some(folder) = std::env::var_os("MQTT_VECTORS").map(PathBuf::from) else {
        eprintln!("MQTT_VECTORS is not set: nothing is played");
        return;
    };
    // They come with user names that no broker here knows.
    let options = Options {
        mqtt: "ignore_credentials = true".into(),
        ..Options::default()
    };
    let broker = Broker::start_with(&options);
    let address = broker.addresses["mqtt"];
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    let (mut played, mut failed) = (0, Vec::new());
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        let groups: Value = serde_json::from_str(&text).expect("JSON");
        for group in groups.as_array().expect("a list of groups") {
            for test in group["tests"].as_array().expect("a list of sequences") {
                let name = format!("{} {}", text_of(&group["group"]), text_of(&test["name"]));
                played += 1;
                if let Err(why) = play(address, &name, test) {
                    failed.push(format!("{name}: {why}"));
                }
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {played}:\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert_eq!(played, SEQUENCES);
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn bytes_of(value: &Value) -> Vec<u8> {
    let digits: Vec<u8> = text_of(value).bytes().filter(|byte| *byte != b' ').collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex");
    digits.chunks(2).map(pair).collect()
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let socket = TcpStream::connect(address).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(ANSWER_WITHIN)).expect("it can be set");
    socket.set_nodelay(true).expect("it can be set");
    Ok(socket)
}

fn play(address: SocketAddr, name: &str, test: &Value) -> Played {
    let mut socket = connect(address)?;
    if test["connect"].as_bool().unwrap_or(true) {
        let version = test["ver"].as_u64().unwrap_or(4) as u8;
        send(&mut socket, &connect_packet(name, version))?;
        expect(&mut socket, b"\x20\x02\0\0")?;
    }
    for message in test["msgs"].as_array().into_iter().flatten() {
        match text_of(&message["type"]) {
            "send" => send(&mut socket, &bytes_of(&message["payload"]))?,
            "recv" => expect(&mut socket, &bytes_of(&message["payload"]))?,
            "publish" => publish_elsewhere(address, message)?,
            other => return Err(format!("unknown step {other}")),
        }
    }
    if test["expect_disconnect"].as_bool().unwrap_or(true) {
        expect_closed(&mut socket)
    } else {
        send(&mut socket, b"\xC0\0")?;
        expect(&mut socket, b"\xD0\0")
    }
}

/// A plain CONNECT, clean, keep alive 60 s; version 5 announces receive maximum 20.
fn connect_packet(client_id: &str, version: u8) -> Vec<u8> {
    let name: &[u8] = if version == 3 { b"MQIsdp" } else { b"MQTT" };
    let mut body = field(name);
    body.extend([version, 2, 0, 60]);
    if version == 5 {
        body.extend([3, 0x21, 0, 20]);
    }
    body.extend(field(client_id.as_bytes()));
    packet(0x10, &body)
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    while length >= 0x80 {
        packet.push(length as u8 | 0x80);
        length >>= 7;
    }
    packet.push(length as u8);
    packet.extend(body);
    packet
}

/// Publishes over a connection of its own, through the whole exchange.
fn publish_elsewhere(address: SocketAddr, message: &Value) -> Played {
    let mut socket = connect(address)?;
    send(&mut socket, &connect_packet("elsewhere", 4))?;
    expect(&mut socket, b"\x20\x02\0\0")?;
    let qos = message["qos"].as_u64().unwrap_or(0) as u8;
    let mut body = field(text_of(&message["topic"]).as_bytes());
    if qos > 0 {
        body.extend([0, 1]);
    }
    body.extend(text_of(&message["payload"]).as_bytes());
    send(&mut socket, &packet(0x30 | qos << 1, &body))?;
    match qos {
        1 => expect(&mut socket, b"\x40\x02\0\x01"),
        2 => {
            expect(&mut socket, b"\x50\x02\0\x01")?;
            send(&mut socket, b"\x62\x02\0\x01")?;
            expect(&mut socket, b"\x70\x02\0\x01")
        }
        _ => Ok(()),
    }
}

fn send(socket: &mut TcpStream, bytes: &[u8]) -> Played {
    // A broker that has closed the connection answers by that.
    match socket.write_all(bytes) {
        Err(error) if !is_closed(&error) => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn is_closed(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn read(socket: &mut TcpStream, size: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; size];
    match socket.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(format!("wanted {size} bytes: {error}")),
    }
}

fn expect(socket: &mut TcpStream, wanted: &[u8]) -> Played {
    if wanted.first() == Some(&0x20) {
        return expect_connack(socket, wanted);
    }
    let got = read(socket, wanted.len()).map_err(|why| format!("{wanted:02x?}: {why}"))?;
    if got == wanted {
        Ok(())
    } else {
        Err(format!("got {got:02x?}, wanted {wanted:02x?}"))
    }
}

/// Session present and the return code; the properties are each server's own.
fn expect_connack(socket: &mut TcpStream, wanted: &[u8]) -> Played {
    let first = read(socket, 1)?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = read(socket, 1)?[0];
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if first != [0x20] || length < 2 {
        return Err(format!("got {first:02x?} and {length} bytes, wanted CONNACK"));
    }
    let got = read(socket, length)?;
    let wanted = &wanted[2..4];
    if got[..2] == *wanted {
        Ok(())
    } else {
        Err(format!("CONNACK {got:02x?}, wanted {wanted:02x?}"))
    }
}

fn expect_closed(socket: &mut TcpStream) -> Played {
    let mut byte = [0];
    match socket.read(&mut byte) {
        Ok(0) => Ok(()),
        Ok(_) => Err(format!("still connected: {byte:02x?} came")),
        Err(error) if is_closed(&error) => Ok(()),
        Err(error) => Err(format!("still connected: {error}")),
    }
}
