//! Frames as bytes: each row is decoded whole and in pieces, encoded, and cut short at every length.

mod vectors;

use bytes::BytesMut;
use rocketbridge_stomp::Config;
use rocketbridge_stomp::codec::{Command, Decoder, Fault, Frame, Limits, Version};
use vectors::ROWS;

fn decoder(version: Option<Version>, limits: Limits) -> Decoder {
    let mut decoder = Decoder::new(limits);
    if let Some(version) = version {
        decoder.set_version(version);
    }
    decoder
}

fn limits() -> Limits {
    Config::default().limits()
}

fn decode(version: Option<Version>, bytes: &[u8], piece: usize) -> Result<Vec<Frame>, Fault> {
    let mut decoder = decoder(version, limits());
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        input.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut input).map_err(|refused| refused.fault)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

type Plain = (String, Vec<(String, String)>, Vec<u8>);

fn plain(frame: &Frame) -> Plain {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("the rows are UTF-8");
    let headers = frame.all_headers().map(|(name, value)| (text(name), text(value)));
    (text(frame.command_text()), headers.collect(), frame.body.to_vec())
}

#[test]
fn every_row_is_what_it_says_in_pieces_of_any_size() {
    for (name, version, bytes, expected) in ROWS {
        for piece in [bytes.len(), 1, 2, 3, 7] {
            let decoded = decode(*version, bytes, piece).map(|frames| frames.iter().map(plain).collect::<Vec<_>>());
            let expected = expected.map(|(command, headers, body)| {
                let headers = headers
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                vec![(command.to_owned(), headers.collect(), body.to_vec())]
            });
            assert_eq!(decoded, expected, "{name}, {piece} octets at a time");
        }
    }
}

#[test]
fn every_frame_is_encoded_as_it_is_decoded() {
    for (name, version, bytes, expected) in ROWS {
        if expected.is_err() {
            continue;
        }
        let frame = &decode(*version, bytes, bytes.len()).expect(name)[0];
        let mut encoded = BytesMut::new();
        frame.encode(version.unwrap_or(Version::V12), &mut encoded);
        let again = decode(*version, &encoded, encoded.len()).expect(name);
        assert_eq!(again.iter().map(plain).collect::<Vec<_>>(), [plain(frame)], "{name}");
    }
}

#[test]
fn a_frame_cut_short_anywhere_is_waited_for() {
    for (name, version, bytes, expected) in ROWS {
        if expected.is_err() {
            continue;
        }
        for cut in 0..bytes.len() {
            let decoded = decode(*version, &bytes[..cut], bytes.len()).map(|frames| frames.len());
            assert_eq!(decoded, Ok(0), "{name}, cut at {cut}");
        }
    }
}

#[test]
fn a_frame_is_there_with_its_nul() {
    // The line end behind it would be waited for by a client that waits for the receipt.
    let frames = decode(Some(Version::V12), b"SEND\ndestination:/queue/a\nreceipt:1\n\nx\0", 1).expect("valid");
    assert_eq!(frames.len(), 1);
}

#[test]
fn frames_follow_each_other_without_anything_between() {
    let bytes = b"SEND\na:1\n\nx\0SEND\na:2\ncontent-length:1\n\n\0\0ACK\nid:1\n\n\0\r\nDISCONNECT\n\n\0";
    for piece in 1..bytes.len() {
        let frames = decode(Some(Version::V12), bytes, piece).expect("valid");
        let commands: Vec<_> = frames.iter().map(|frame| frame.command).collect();
        assert_eq!(
            commands,
            [Command::Send, Command::Send, Command::Ack, Command::Disconnect]
        );
        assert_eq!((&frames[0].body[..], &frames[1].body[..]), (&b"x"[..], &b"\0"[..]));
    }
}

#[test]
fn only_the_first_of_repeated_headers_counts() {
    let frame = &decode(Some(Version::V12), b"SEND\na:1\nb:x\na:2\n\n\0", 100).expect("valid")[0];
    assert_eq!(frame.header(b"a"), Some(&b"1"[..]));
    let headers: Vec<_> = frame.headers().collect();
    assert_eq!(headers, [(&b"a"[..], &b"1"[..]), (b"b", b"x")]);
}

#[test]
fn each_limit_holds_below_at_and_above() {
    let limits = Limits {
        command: 10,
        headers: 3,
        header_line: 8,
        head: 30,
        body: 5,
        before_login: 40,
    };
    let fault = |version, bytes: &[u8]| {
        let mut input = BytesMut::from(bytes);
        decoder(version, limits)
            .decode(&mut input)
            .map(|frame| frame.is_some())
            .map_err(|r| r.fault)
    };
    let v12 = Some(Version::V12);
    assert_eq!(fault(v12, b"DISCONNECT\n\n\0"), Ok(true));
    assert_eq!(fault(v12, b"DISCONNECTED\n"), Err(Fault::CommandTooLong(10)));
    assert_eq!(
        fault(v12, b"DISCONNECTED"),
        Err(Fault::CommandTooLong(10)),
        "without waiting for the line's end"
    );
    assert_eq!(fault(v12, b"SEND\na:\na:\na:\n\n\0"), Ok(true));
    assert_eq!(fault(v12, b"SEND\na:\na:\na:\na:\n"), Err(Fault::TooManyHeaders(3)));
    assert_eq!(fault(v12, b"SEND\na:345678\n\n\0"), Ok(true));
    assert_eq!(fault(v12, b"SEND\na:34567890"), Err(Fault::HeaderTooLong(8)));
    assert_eq!(
        fault(v12, b"SEND\na:345678\nb:345678\nc:345678\n\n\0"),
        Err(Fault::HeadersTooLong(30))
    );
    assert_eq!(fault(v12, b"SEND\n\n12345\0"), Ok(true));
    assert_eq!(fault(v12, b"SEND\n\n123456"), Err(Fault::BodyTooLarge(5)));
    assert_eq!(fault(v12, b"SEND\ncontent-length:6\n\n"), Err(Fault::HeaderTooLong(8)));
    let large = Limits {
        header_line: 20,
        ..limits
    };
    let mut input = BytesMut::from(&b"SEND\ncontent-length:6\n\n"[..]);
    let refused = decoder(v12, large)
        .decode(&mut input)
        .expect_err("too large, before any of it is there");
    assert_eq!(
        (refused.fault, refused.command),
        (Fault::BodyTooLarge(5), Some(Command::Send))
    );
    assert_eq!(fault(None, b"CONNECT\na:\n\n\0"), Ok(true));
    let waits = [&b"CONNECT\n\n"[..], &[b'x'; 40]].concat();
    assert_eq!(fault(None, &waits), Err(Fault::BodyTooLarge(30)));
    let tight = Limits {
        before_login: 12,
        ..limits
    };
    let mut input = BytesMut::from(&b"CONNECT\na:12\nb"[..]);
    let refused = decoder(None, tight)
        .decode(&mut input)
        .expect_err("too much before login");
    assert_eq!(refused.fault, Fault::FrameTooLarge(12));
}

#[test]
fn a_refused_frame_says_what_it_was_and_its_receipt() {
    for bytes in [
        &b"SEND\nreceipt:r1\ncontent-length:x\n\n"[..],
        b"SEND\nreceipt:r1\na:\\q\n\n\0",
    ] {
        let mut input = BytesMut::from(bytes);
        let refused = decoder(Some(Version::V12), limits())
            .decode(&mut input)
            .expect_err("malformed");
        assert_eq!(refused.command, Some(Command::Send));
        assert_eq!(refused.receipt.as_deref(), Some(&b"r1"[..]));
    }
}

/// Each octet is looked at a fixed number of times: a million octets one by one would never end otherwise.
#[test]
fn a_body_in_single_octets_costs_linear_time() {
    for head in [&b"SEND\na:b\n\n"[..], b"SEND\ncontent-length:1000000\n\n"] {
        let mut decoder = decoder(Some(Version::V12), limits());
        let mut input = BytesMut::with_capacity(1_100_000);
        input.extend_from_slice(head);
        for _ in 0..1_000_000 {
            input.extend_from_slice(b"x");
            assert!(decoder.decode(&mut input).expect("valid so far").is_none());
        }
        input.extend_from_slice(b"\0");
        let frame = decoder.decode(&mut input).expect("valid").expect("whole");
        assert_eq!(frame.body.len(), 1_000_000);
    }
}
