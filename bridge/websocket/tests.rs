//! Frames of all kinds, in pieces of all sizes, against a stream in memory.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// What is written together is a message.
const BINARY: Messages = Messages::Binary { packet_len: |_| None };

/// A frame as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(MASKED | len as u8),
        len @ 126..=0xFFFF => {
            frame.push(MASKED | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(MASKED | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at & 3]));
    frame
}

fn pair(messages: Messages) -> (DuplexStream, WebSocket<DuplexStream>) {
    let (client, server) = duplex(1 << 20);
    (client, WebSocket::new(server, messages))
}

/// What the server reads of `bytes`, handed over in pieces of that size, and what it answers.
async fn exchange(messages: Messages, bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut client, mut server) = pair(messages);
    let mut read = Vec::new();
    for piece in bytes.chunks(piece) {
        client.write_all(piece).await.expect("it is read");
        let mut buffer = [0; 64 * 1024];
        // What is there is read at once, or nothing comes of it.
        while let Some(Ok(count)) = futures_lite::future::poll_once(server.read(&mut buffer)).await {
            if count == 0 {
                break;
            }
            read.extend_from_slice(&buffer[..count]);
        }
    }
    server.shutdown().await.expect("it goes on");
    let mut answered = Vec::new();
    client.read_to_end(&mut answered).await.expect("it is shut");
    (read, answered)
}

const NORMAL: &[u8] = b"\x88\x02\x03\xe8";

#[tokio::test]
async fn messages_are_one_stream_however_they_are_cut() {
    let long = vec![7; 70_000];
    let mut bytes = frame(FINAL | opcode::BINARY, b"first");
    bytes.extend(frame(opcode::BINARY, b"sec"));
    bytes.extend(frame(FINAL | opcode::PING, b"are you there"));
    bytes.extend(frame(opcode::CONTINUATION, b""));
    bytes.extend(frame(FINAL, b"ond"));
    bytes.extend(frame(FINAL | opcode::BINARY, &[b'x'; 200]));
    bytes.extend(frame(FINAL | opcode::BINARY, b""));
    bytes.extend(frame(FINAL | opcode::PONG, b"unasked"));
    bytes.extend(frame(FINAL | opcode::BINARY, &long));
    let expected = [b"firstsecond", &[b'x'; 200][..], &long].concat();
    let pong = [&b"\x8a\x0dare you there"[..], NORMAL].concat();
    for piece in [1, 2, 3, 5, 7, 100, 4096, bytes.len()] {
        let (read, answered) = exchange(BINARY, &bytes, piece).await;
        assert_eq!(read, expected, "{piece} at a time");
        assert_eq!(answered, pong, "{piece} at a time");
    }
}

#[tokio::test]
async fn whoever_breaks_the_rules_is_told_the_code() {
    let protocol = |bytes: Vec<u8>| (Messages::Any, bytes, 1002u16);
    let mut unmasked = vec![FINAL | opcode::BINARY, 1, b'x'];
    unmasked.extend([0; 12]);
    let mut huge = vec![FINAL | opcode::BINARY, MASKED | 127];
    huge.extend([0xff; 12]);
    for (messages, bytes, code) in [
        protocol(unmasked),
        protocol(huge),
        protocol(frame(FINAL | 0x40 | opcode::BINARY, b"x")),
        protocol(frame(FINAL | 3, b"x")),
        protocol(frame(FINAL | 11, b"x")),
        protocol(frame(FINAL, b"continues nothing")),
        protocol([frame(opcode::TEXT, b"a"), frame(FINAL | opcode::TEXT, b"b")].concat()),
        protocol(frame(opcode::PING, b"in parts")),
        protocol(frame(FINAL | opcode::PING, &[0; 126])),
        protocol(frame(FINAL | opcode::CLOSE, b"x")),
        protocol(frame(FINAL | opcode::CLOSE, &1005u16.to_be_bytes())),
        protocol(frame(FINAL | opcode::CLOSE, &999u16.to_be_bytes())),
        (Messages::Any, frame(FINAL | opcode::CLOSE, b"\x03\xe8\xff"), 1007),
        (Messages::Any, frame(FINAL | opcode::TEXT, b"\xff"), 1007),
        (Messages::Any, frame(FINAL | opcode::TEXT, b"\xc3"), 1007),
        (BINARY, frame(FINAL | opcode::TEXT, b"x"), 1003),
        (
            Messages::Any,
            frame(FINAL | opcode::CLOSE, &1001u16.to_be_bytes()),
            1001,
        ),
        (
            Messages::Any,
            frame(FINAL | opcode::CLOSE, &4000u16.to_be_bytes()),
            4000,
        ),
    ] {
        for piece in [1, bytes.len()] {
            let (_, answered) = exchange(messages, &bytes, piece).await;
            let expected = [&[0x88, 2][..], &code.to_be_bytes()].concat();
            assert_eq!(answered, expected, "{bytes:?}");
        }
    }
    let (_, answered) = exchange(Messages::Any, &frame(FINAL | opcode::CLOSE, b""), 1).await;
    assert_eq!(answered, b"\x88\x00");
}

#[tokio::test]
async fn nothing_is_read_behind_a_goodbye() {
    let bytes = [
        frame(FINAL | opcode::BINARY, b"before"),
        frame(FINAL | opcode::CLOSE, b"\x03\xe8"),
        frame(FINAL | opcode::BINARY, b"behind"),
    ];
    let (read, answered) = exchange(BINARY, &bytes.concat(), 1000).await;
    assert_eq!((&read[..], &answered[..]), (&b"before"[..], NORMAL));
}

#[tokio::test]
async fn nothing_is_sent_behind_a_goodbye() {
    let not_text = frame(FINAL | opcode::TEXT, b"\xff\xfe\0");
    for (bytes, goodbye) in [
        (frame(FINAL | opcode::CLOSE, b"\x03\xe8"), NORMAL),
        (not_text, b"\x88\x02\x03\xef"),
    ] {
        let (mut client, mut server) = pair(Messages::Any);
        let bytes = [frame(FINAL | opcode::BINARY, b"before"), bytes].concat();
        client.write_all(&bytes).await.expect("there is room");
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.expect("it ends");
        assert_eq!(read, b"before");
        server.write_all(b"an answer").await.expect("it goes nowhere");
        server.flush().await.expect("there is room");
        server.shutdown().await.expect("there is room");
        let mut sent = Vec::new();
        client.read_to_end(&mut sent).await.expect("it is shut");
        assert_eq!(sent, goodbye);
    }
}

#[tokio::test]
async fn a_frame_that_was_begun_is_ended_before_the_goodbye() {
    let (mut client, server) = duplex(4);
    let mut server = WebSocket::new(server, BINARY);
    // Its header and two bytes.
    let begun = server.write(b"an answer").await.expect("there is room");
    assert_eq!(begun, 2);
    WebSocket::take(&mut server, &mut frame(FINAL | opcode::CLOSE, b"\x03\xe8"));
    let writing = tokio::spawn(async move {
        server.write_all(&b"an answer"[begun..]).await.expect("it is read");
        server.write_all(b"another").await.expect("it goes nowhere");
        server.shutdown().await.expect("it is read");
    });
    let mut sent = Vec::new();
    client.read_to_end(&mut sent).await.expect("it is shut");
    writing.await.expect("it does not panic");
    assert_eq!(sent, [&b"\x82\x09an answer"[..], NORMAL].concat());
}

/// All payload of the frames that a server sent, and their opcodes.
fn unframed(mut bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut payload, mut opcodes) = (Vec::new(), Vec::new());
    while let [first, short, rest @ ..] = bytes {
        opcodes.push(first & 0x0F);
        let (len, rest) = match short {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (
                u64::from_be_bytes(rest[..8].try_into().expect("eight")) as usize,
                &rest[8..],
            ),
            len => (usize::from(*len), rest),
        };
        payload.extend_from_slice(&rest[..len]);
        bytes = &rest[len..];
    }
    (payload, opcodes)
}

#[tokio::test]
async fn what_is_written_arrives_whole_through_a_narrow_stream() {
    let text = "h\u{e9}llo \u{1d11e} ".repeat(20_000);
    for narrow in [1, 3, 1000, 1 << 20] {
        let (mut client, server) = duplex(narrow);
        let mut server = WebSocket::new(server, Messages::Any);
        let size = if narrow < 10 { 3000 } else { text.len() };
        let text = text.as_bytes()[..size].to_vec();
        let expected = text.clone();
        let writing = tokio::spawn(async move {
            // Cut inside characters.
            for piece in text.chunks(1001) {
                server.write_all(piece).await.expect("it is read");
            }
            server.shutdown().await.expect("it is read");
        });
        let mut sent = Vec::new();
        client.read_to_end(&mut sent).await.expect("it is shut");
        writing.await.expect("it does not panic");
        let (payload, opcodes) = unframed(&sent);
        assert_eq!(payload[..expected.len()], expected);
        assert_eq!(opcodes.last(), Some(&opcode::CLOSE));
        assert!(opcodes.contains(&opcode::TEXT));
    }
}

#[tokio::test]
async fn binary_is_sent_to_who_sends_binary_and_where_it_is_no_text() {
    let (mut client, mut server) = pair(Messages::Any);
    server.write_all(b"text").await.expect("there is room");
    server.write_all(b"no text \xff").await.expect("there is room");
    client
        .write_all(&frame(FINAL | opcode::BINARY, b"x"))
        .await
        .expect("there is room");
    server.read_exact(&mut [0]).await.expect("it was sent");
    server.write_all(b"text").await.expect("there is room");
    server.shutdown().await.expect("there is room");
    let mut sent = Vec::new();
    client.read_to_end(&mut sent).await.expect("it is shut");
    let (_, opcodes) = unframed(&sent);
    assert_eq!(opcodes, [opcode::TEXT, opcode::BINARY, opcode::BINARY, opcode::CLOSE]);
}

#[tokio::test]
async fn each_packet_is_a_message_of_its_own() {
    // As long as their second byte says.
    let packet_len = |head: &[u8]| head.get(1).map(|len| usize::from(*len));
    let (mut client, mut server) = pair(Messages::Binary { packet_len });
    let bytes = b"a\x03.b\x02c\x06....d\x05..";
    // However they are written: the last one is not yet whole.
    let pieces = [IoSlice::new(&bytes[..4]), IoSlice::new(&bytes[4..])];
    let mut sent = 0;
    while sent < bytes.len() {
        sent += match sent {
            0 => server.write_vectored(&pieces).await,
            sent => server.write(&bytes[sent..]).await,
        }
        .expect("there is room");
    }
    server.write_all(b"!e\x02").await.expect("there is room");
    drop(server);
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.expect("it is gone");
    let frames: [&[u8]; 5] = [b"a\x03.", b"b\x02", b"c\x06....", b"d\x05..!", b"e\x02"];
    let expected: Vec<u8> = frames
        .iter()
        .flat_map(|payload| [&[FINAL | opcode::BINARY, payload.len() as u8][..], payload].concat())
        .collect();
    assert_eq!(received, expected);
}
