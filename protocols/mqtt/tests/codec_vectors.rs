//! Every row of the table is decoded, encoded, and cut short at every length.

mod vectors;

use bytes::BytesMut;
use rocketbridge_mqtt::codec::properties::{PropertyId, PropertyValue};
use rocketbridge_mqtt::codec::{DecodeError, Decoder, Packet, Side, Version};
use vectors::*;

fn kind(result: &Result<Option<Packet>, DecodeError>) -> String {
    match result {
        Ok(Some(packet)) => format!("{:?}", packet.packet_type()),
        Ok(None) => "needs more".to_owned(),
        Err(DecodeError::Malformed(_)) => "Malformed".to_owned(),
        Err(DecodeError::Protocol(_)) => "Protocol".to_owned(),
        Err(DecodeError::FixedHeader(_)) => "FixedHeader".to_owned(),
        Err(DecodeError::UnsupportedVersion(_)) => "UnsupportedVersion".to_owned(),
        Err(DecodeError::TooLarge { .. }) => "TooLarge".to_owned(),
    }
}

#[test]
fn packets_are_read_or_refused_as_the_table_says() {
    let mut wrong = Vec::new();
    for (side, version, bytes, expected) in ROWS {
        let result = decode(*side, *version, bytes);
        let wanted = match expected {
            Reads(packet_type) | ReadsLonger(packet_type) => format!("{packet_type:?}"),
            other => format!("{other:?}"),
        };
        if kind(&result) != wanted {
            wrong.push(format!("{side:?} {version:?} {bytes:02x?}: {result:?}, not {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_read_encodes_to_the_same_bytes() {
    for (side, version, bytes, expected) in ROWS {
        let Ok(Some(packet)) = decode(*side, *version, bytes) else {
            continue;
        };
        let spoken = match &packet {
            Packet::Connect(connect) => connect.version,
            _ => version.expect("only CONNECT comes before"),
        };
        let mut encoded = BytesMut::new();
        packet.encode(spoken, &mut encoded);
        if matches!(expected, Reads(_)) {
            assert_eq!(encoded, bytes, "{packet:?}");
        }
        assert_eq!(decode(*side, *version, &encoded), Ok(Some(packet)));
    }
}

#[test]
fn packets_cut_short_wait_for_more_or_are_refused_and_never_read() {
    for (side, version, bytes, _) in ROWS {
        let whole = decode(*side, *version, bytes);
        for cut in 0..bytes.len() {
            let result = decode(*side, *version, &bytes[..cut]);
            match result {
                Ok(None) => {}
                Ok(Some(packet)) => panic!("{packet:?} of {:02x?}", &bytes[..cut]),
                // Only what is wrong with the whole packet is known early.
                Err(_) => assert_eq!(result, whole, "{bytes:02x?} at {cut}"),
            }
        }
    }
}

#[test]
fn packets_arrive_in_pieces_and_in_runs() {
    let stream: Vec<u8> = ROWS
        .iter()
        .filter(|row| row.0 == Side::Server && row.1 == Some(V5) && matches!(row.3, Reads(_) | ReadsLonger(_)))
        .flat_map(|row| row.2.iter().copied())
        .collect();
    let mut whole = Vec::new();
    let mut decoder = Decoder::with_version(Side::Server, V5, 1000);
    let mut input = BytesMut::from(&stream[..]);
    while let Some(packet) = decoder.decode(&mut input).expect("all are good") {
        whole.push(packet);
    }
    assert!(input.is_empty() && whole.len() > 15);
    for size in 1..=7 {
        let mut packets = Vec::new();
        let mut input = BytesMut::new();
        for piece in stream.chunks(size) {
            input.extend_from_slice(piece);
            while let Some(packet) = decoder.decode(&mut input).expect("all are good") {
                packets.push(packet);
            }
        }
        assert_eq!(packets, whole);
    }
}

/// [MQTT-3.1.2-24]
#[test]
fn packets_above_the_limit_are_refused_from_the_fixed_header() {
    let mut decoder = Decoder::with_version(Side::Server, V311, 100);
    for (header, size) in [
        (&b"\x30\xFF\xFF\xFF\x7F"[..], 268_435_460),
        (b"\x30\x63", 101),
        (b"\x82\x63", 101),
    ] {
        let result = decoder.decode(&mut BytesMut::from(header));
        assert_eq!(result, Err(DecodeError::TooLarge { size, size_max: 100 }));
    }
    let mut fits = BytesMut::from(&b"\x30\x62\0\x01t"[..]);
    assert_eq!(decoder.decode(&mut fits), Ok(None));
    fits.resize(100, b'x');
    assert!(matches!(decoder.decode(&mut fits), Ok(Some(Packet::Publish(_)))));
}

#[test]
fn fields_are_what_was_sent() {
    let bytes =
        b"\x10\x23\0\x04MQTT\x05\xEE\0\x0A\x03\x21\0\x05\0\x01p\x05\x18\0\0\0\x01\0\x01t\0\x01\xFF\0\x01u\0\x01\0";
    let Ok(Some(Packet::Connect(connect))) = decode(Side::Server, None, bytes) else {
        panic!("not a CONNECT");
    };
    assert_eq!(connect.version, Version::V5);
    assert_eq!((connect.keep_alive, connect.clean_start), (10, true));
    assert_eq!(connect.properties.number(PropertyId::ReceiveMaximum), Some(5));
    let will = connect.will.as_ref().expect("there is a will");
    assert_eq!((will.qos, will.retain, &will.payload[..]), (1, true, &b"\xFF"[..]));
    assert_eq!(will.properties.number(PropertyId::WillDelay), Some(1));
    assert_eq!(connect.user.as_deref(), Some(&b"u"[..]));
    assert_eq!(connect.password.as_deref(), Some(&b"\0"[..]));

    let bytes = b"\x3B\x17\0\x01t\x12\x34\x10\x26\0\x01n\0\x01v\x09\0\x01\xFF\x02\0\0\0\x07x";
    let Ok(Some(Packet::Publish(publish))) = decode(Side::Server, Some(V5), bytes) else {
        panic!("not a PUBLISH: {:?}", decode(Side::Server, Some(V5), bytes));
    };
    assert_eq!((publish.dup, publish.qos, publish.retain), (true, 1, true));
    assert_eq!((publish.packet_id, &publish.payload[..]), (0x1234, &b"x"[..]));
    let values: Vec<_> = publish.properties.iter().map(|property| property.value).collect();
    assert_eq!(
        values,
        [
            PropertyValue::Pair(b"n", b"v"),
            PropertyValue::Binary(b"\xFF"),
            PropertyValue::Number(7)
        ]
    );
}
