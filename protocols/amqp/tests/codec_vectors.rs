//! Frames as bytes and as values: each row is decoded, encoded, and cut short at every length.

use bytes::BytesMut;
use rocketbridge_amqp::codec::content::PropertiesError;
use rocketbridge_amqp::codec::method::MethodError;
use rocketbridge_amqp::codec::table::{Array, DEPTH_MAX, put_value};
use rocketbridge_amqp::codec::{
    ContentHeader, FieldError, FrameHeader, LongStr, Method, MethodId, Properties, ShortStr, Table, TableError,
    TableWriter, Value, put_heartbeat,
};

fn encoded(method: &Method<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    method.encode_payload(&mut out);
    out.to_vec()
}

#[track_caller]
fn method_row(bytes: &[u8], method: Method<'_>) {
    assert_eq!(Method::decode(bytes), Ok(method), "decode");
    assert_eq!(encoded(&method), bytes, "encode");
    for length in 0..bytes.len() {
        let cut = Method::decode(&bytes[..length]);
        let is_short = matches!(
            cut,
            Err(MethodError::NoId
                | MethodError::Fields {
                    error: FieldError::Truncated,
                    ..
                })
        );
        assert!(is_short, "cut at {length}: {cut:?}");
    }
    let longer = [bytes, &[0]].concat();
    assert_eq!(
        Method::decode(&longer),
        Err(MethodError::Fields {
            id: method.id(),
            error: FieldError::Trailing(1)
        })
    );
}

#[test]
fn methods_are_read_and_written_octet_for_octet() {
    method_row(
        b"\x00\x0a\x00\x1e\x07\xff\x00\x02\x00\x00\x00\x3c",
        Method::ConnectionTune {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 60,
        },
    );
    method_row(
        b"\x00\x0a\x00\x28\x01/\x00\x01",
        Method::ConnectionOpen {
            virtual_host: ShortStr(b"/"),
            capabilities: ShortStr(b""),
            insist: true,
        },
    );
    method_row(
        b"\x00\x0a\x00\x32\x02\x1c\x03abc\x00\x3c\x00\x28",
        Method::ConnectionClose {
            reply_code: 540,
            reply_text: ShortStr(b"abc"),
            class_id: 60,
            method_id: 40,
        },
    );
    method_row(b"\x00\x0a\x00\x33", Method::ConnectionCloseOk {});
    method_row(
        b"\x00\x14\x00\x0a\x00",
        Method::ChannelOpen {
            out_of_band: ShortStr(b""),
        },
    );
    method_row(
        b"\x00\x14\x00\x0b\x00\x00\x00\x00",
        Method::ChannelOpenOk {
            channel_id: LongStr(b""),
        },
    );
    method_row(
        b"\x00\x28\x00\x0a\x00\x00\x01e\x06direct\x12\x00\x00\x00\x04\x01kt\x01",
        Method::ExchangeDeclare {
            ticket: 0,
            exchange: ShortStr(b"e"),
            kind: ShortStr(b"direct"),
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            no_wait: true,
            arguments: Table::new(b"\x01kt\x01"),
        },
    );
}

/// Bits are packed from the lowest one up and end at the next field that is no bit (4.2.5.2).
#[test]
fn bits_share_an_octet_until_another_field_comes() {
    let declare = |passive, durable, exclusive, auto_delete, no_wait| Method::QueueDeclare {
        ticket: 0,
        queue: ShortStr(b"q"),
        passive,
        durable,
        exclusive,
        auto_delete,
        no_wait,
        arguments: Table::default(),
    };
    for (bits, method) in [
        (0b00001, declare(true, false, false, false, false)),
        (0b00010, declare(false, true, false, false, false)),
        (0b00100, declare(false, false, true, false, false)),
        (0b01000, declare(false, false, false, true, false)),
        (0b10000, declare(false, false, false, false, true)),
        (0b11111, declare(true, true, true, true, true)),
    ] {
        method_row(&[0, 50, 0, 10, 0, 0, 1, b'q', bits, 0, 0, 0, 0], method);
    }
}

#[test]
fn basic_methods_are_read_and_written_octet_for_octet() {
    method_row(
        b"\x00\x3c\x00\x28\x00\x00\x01e\x03a.b\x01",
        Method::BasicPublish {
            ticket: 0,
            exchange: ShortStr(b"e"),
            routing_key: ShortStr(b"a.b"),
            mandatory: true,
            immediate: false,
        },
    );
    method_row(
        b"\x00\x3c\x00\x3c\x02ct\x00\x00\x00\x00\x00\x00\x01\x02\x01\x00\x01q",
        Method::BasicDeliver {
            consumer_tag: ShortStr(b"ct"),
            delivery_tag: 258,
            redelivered: true,
            exchange: ShortStr(b""),
            routing_key: ShortStr(b"q"),
        },
    );
    method_row(
        b"\x00\x3c\x00\x47\x00\x00\x00\x00\x00\x00\x00\x07\x00\x01e\x01k\x00\x00\x00\x09",
        Method::BasicGetOk {
            delivery_tag: 7,
            redelivered: false,
            exchange: ShortStr(b"e"),
            routing_key: ShortStr(b"k"),
            message_count: 9,
        },
    );
    method_row(
        b"\x00\x3c\x00\x78\x00\x00\x00\x00\x00\x00\x00\x07\x03",
        Method::BasicNack {
            delivery_tag: 7,
            multiple: true,
            requeue: true,
        },
    );
    method_row(
        b"\x00\x3c\x00\x0a\x00\x00\x00\x00\x00\x64\x00",
        Method::BasicQos {
            prefetch_size: 0,
            prefetch_count: 100,
            global: false,
        },
    );
    // Names are octets: what is not UTF-8 is a name too.
    method_row(
        b"\x00\x3c\x00\x1e\x02\xff\xfe\x00",
        Method::BasicCancel {
            consumer_tag: ShortStr(b"\xff\xfe"),
            no_wait: false,
        },
    );
}

#[test]
fn there_are_no_two_methods_with_one_number() {
    let mut seen = std::collections::HashSet::new();
    for (id, name) in Method::ALL {
        assert!(seen.insert((id.class, id.method)), "{name}");
    }
    assert_eq!(Method::ALL.len(), 66);
}

#[test]
fn every_method_is_known_by_its_number() {
    for (id, name) in Method::ALL {
        let mut payload = [id.class.to_be_bytes(), id.method.to_be_bytes()].concat();
        // All fields zero: empty strings and tables, no bits.
        payload.extend_from_slice(&[0; 32]);
        let decoded = (4..payload.len()).find_map(|length| Method::decode(&payload[..length]).ok());
        assert_eq!(decoded.map(|method| (method.id(), method.name())), Some((*id, *name)));
    }
    for (class, method) in [(0, 0), (60, 200), (40, 41), (10, 99), (0xFFFF, 0xFFFF)] {
        let id = MethodId { class, method };
        let payload = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert_eq!(Method::decode(&payload), Err(MethodError::Unknown(id)));
    }
}

const VALUES: &[(&[u8], Value<'static>)] = &[
    (b"t\x01", Value::Bool(true)),
    (b"t\x00", Value::Bool(false)),
    (b"b\xff", Value::Byte(-1)),
    (b"B\xff", Value::UnsignedByte(255)),
    (b"s\xff\xfe", Value::Short(-2)),
    (b"u\xff\xfe", Value::UnsignedShort(65_534)),
    (b"I\xff\xff\xff\xff", Value::Int(-1)),
    (b"i\xff\xff\xff\xff", Value::UnsignedInt(u32::MAX)),
    (b"l\xff\xff\xff\xff\xff\xff\xff\xff", Value::Long(-1)),
    (b"L\x00\x00\x00\x00\x00\x00\x00\x01", Value::LongLong(1)),
    (b"f\x3f\x80\x00\x00", Value::Float(1.0)),
    (b"d\xc0\x00\x00\x00\x00\x00\x00\x00", Value::Double(-2.0)),
    (b"D\x02\x00\x00\x01\x3a", Value::Decimal { scale: 2, value: 314 }),
    (b"S\x00\x00\x00\x03a\xffb", Value::LongStr(b"a\xffb")),
    (b"T\x00\x00\x00\x00\x00\x00\x00\x05", Value::Timestamp(5)),
    (b"x\x00\x00\x00\x01\x00", Value::Binary(&[0])),
    (b"V", Value::Void),
];

#[test]
fn every_field_type_is_read_and_written_octet_for_octet() {
    let array = Array::new(b"t\x01V");
    let nested = Table::new(b"\x01aV");
    let more = [
        (&b"A\x00\x00\x00\x03t\x01V"[..], Value::Array(array)),
        (b"F\x00\x00\x00\x03\x01aV", Value::Table(nested)),
    ];
    for (bytes, value) in VALUES.iter().copied().chain(more) {
        let mut out = BytesMut::new();
        put_value(&mut out, value);
        assert_eq!(out[..], *bytes, "encode {value:?}");
        let table = [b"\x01k", bytes].concat();
        assert_eq!(Table::new(&table).get(b"k"), Some(value), "decode {value:?}");
        assert_eq!(Table::new(&table).check(), Ok(()));
        for length in 1..table.len() {
            assert_eq!(
                Table::new(&table[..length]).check(),
                Err(TableError::Truncated),
                "{value:?} cut at {length}"
            );
        }
        let in_array = Array::new(bytes);
        assert_eq!(in_array.iter().collect::<Vec<_>>(), [Ok(value)]);
        for length in 1..bytes.len() {
            assert_eq!(Array::new(&bytes[..length]).check(), Err(TableError::Truncated));
        }
    }
}

#[test]
fn a_field_type_that_nobody_knows_is_an_error() {
    assert_eq!(Table::new(b"\x01kZ").check(), Err(TableError::UnknownType(b'Z')));
    assert_eq!(Array::new(b"Z").check(), Err(TableError::UnknownType(b'Z')));
}

fn nested_tables(depth: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 1..depth {
        let mut outer = vec![0, b'F'];
        outer.extend_from_slice(&(table.len() as u32).to_be_bytes());
        outer.extend_from_slice(&table);
        table = outer;
    }
    table
}

#[test]
fn tables_may_be_nested_to_the_limit_and_no_deeper() {
    assert_eq!(Table::new(&nested_tables(DEPTH_MAX)).check(), Ok(()));
    assert_eq!(
        Table::new(&nested_tables(DEPTH_MAX + 1)).check(),
        Err(TableError::TooDeep)
    );
}

/// 18,000 levels fit into one frame; a reader that recurses dies of them.
#[test]
fn a_nested_table_bomb_costs_no_stack() {
    let bomb = nested_tables(18_000);
    assert!(bomb.len() < 131_072);
    let check = move || Table::new(&bomb).check();
    let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn(check);
    let result = thread.expect("a thread").join().expect("no overflow");
    assert_eq!(result, Err(TableError::TooDeep));
}

#[test]
fn properties_are_read_and_written_octet_for_octet() {
    let mut headers = TableWriter::default();
    headers.put(b"h", Value::LongStr(b"v"));
    let all = Properties {
        content_type: Some(b"text/plain"),
        content_encoding: Some(b"gzip"),
        headers: Some(headers.table()),
        delivery_mode: Some(2),
        priority: Some(5),
        correlation_id: Some(b"c"),
        reply_to: Some(b"r"),
        expiration: Some(b"60000"),
        message_id: Some(b"m"),
        timestamp: Some(1_700_000_000),
        kind: Some(b"t"),
        user_id: Some(b"guest"),
        app_id: Some(b"a"),
        cluster_id: Some(b"x"),
    };
    let bytes =
        b"\xff\xfc\x0atext/plain\x04gzip\x00\x00\x00\x08\x01hS\x00\x00\x00\x01v\x02\x05\x01c\x01r\x0560000\x01m\
                  \x00\x00\x00\x00\x65\x53\xf1\x00\x01t\x05guest\x01a\x01x";
    for (bytes, properties) in [
        (&bytes[..], all),
        (b"\x00\x00", Properties::default()),
        (
            b"\x10\x00\x02",
            Properties {
                delivery_mode: Some(2),
                ..Properties::default()
            },
        ),
    ] {
        assert_eq!(Properties::decode(bytes), Ok(properties));
        let mut out = BytesMut::new();
        properties.encode(&mut out);
        assert_eq!(out[..], *bytes);
        for length in 0..bytes.len() {
            assert_eq!(
                Properties::decode(&bytes[..length]),
                Err(PropertiesError::Truncated),
                "cut at {length}"
            );
        }
        let longer = [bytes, &[0]].concat();
        assert_eq!(Properties::decode(&longer), Err(PropertiesError::Trailing));
    }
    assert_eq!(
        Properties::decode(b"\x00\x01\x00\x00"),
        Err(PropertiesError::UnknownFlags(1))
    );
}

#[test]
fn a_content_header_keeps_its_properties_undecoded() {
    let bytes = b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x80\x00\x01x";
    let header = ContentHeader {
        class: 60,
        weight: 0,
        body_size: 4096,
        properties: b"\x80\x00\x01x",
    };
    assert_eq!(ContentHeader::decode(bytes), Ok(header));
    let mut out = BytesMut::new();
    header.encode(&mut out);
    assert_eq!(out[..], bytes[..]);
    for length in 0..12 {
        assert!(ContentHeader::decode(&bytes[..length]).is_err());
    }
}

#[test]
fn a_frame_is_judged_by_its_first_seven_octets() {
    let claim = b"\x03\x00\x01\xff\xff\xff\xff";
    for length in 0..claim.len() {
        assert_eq!(FrameHeader::peek(&claim[..length]), None);
    }
    let header = FrameHeader::peek(claim).expect("seven octets");
    assert_eq!((header.kind, header.channel, header.size), (3, 1, u32::MAX));
    assert!(!header.is_allowed(131_072));
    // The size of an empty frame is forgiven, one octet more is not.
    let of = |size| FrameHeader { size, ..header };
    assert!(of(131_072).is_allowed(131_072));
    assert!(!of(131_073).is_allowed(131_072));
}

#[test]
fn a_heartbeat_is_eight_octets_on_channel_0() {
    let mut out = BytesMut::new();
    put_heartbeat(&mut out);
    assert_eq!(out[..], *b"\x08\x00\x00\x00\x00\x00\x00\xce");
}
