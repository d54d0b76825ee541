//! Frames as bytes: what each says, what it is written as, and what is no frame.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_remoting::codec::{Command, FrameError, HeaderError, Language, Limits, SerializeType, Writer, decode};

/// A frame around a header.
fn frame(serialize_type: u8, header: &[u8], body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.put_u32((4 + header.len() + body.len()) as u32);
    frame.put_u32(u32::from(serialize_type) << 24 | header.len() as u32);
    frame.put_slice(header);
    frame.put_slice(body);
    frame
}

/// A binary header.
fn binary(code: i16, version: i16, opaque: i32, flag: i32, remark: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut header = Vec::new();
    header.put_i16(code);
    header.put_u8(9);
    header.put_i16(version);
    header.put_i32(opaque);
    header.put_i32(flag);
    header.put_u32(remark.len() as u32);
    header.put_slice(remark.as_bytes());
    let mut block = Vec::new();
    for (name, value) in fields {
        block.put_u16(name.len() as u16);
        block.put_slice(name.as_bytes());
        block.put_u32(value.len() as u32);
        block.put_slice(value.as_bytes());
    }
    header.put_u32(block.len() as u32);
    header.put_slice(&block);
    header
}

fn decode_all(bytes: &[u8]) -> Result<Option<Command>, FrameError> {
    let mut input = BytesMut::from(bytes);
    let mut command = Command::default();
    let whole = decode(&mut input, Limits::default(), &mut command)?;
    if whole {
        assert!(input.is_empty(), "bytes left");
    } else {
        assert_eq!(input, bytes, "bytes taken");
    }
    Ok(whole.then_some(command))
}

struct Expected {
    name: &'static str,
    bytes: Vec<u8>,
    code: i32,
    version: i32,
    opaque: i32,
    flag: i32,
    remark: Option<&'static str>,
    fields: Vec<(&'static str, &'static str)>,
    body: &'static [u8],
}

fn vectors() -> Vec<Expected> {
    vec![
        Expected {
            name: "as the Go client writes a route request",
            bytes: frame(
                0,
                br#"{"code":105,"language":"GO","version":317,"opaque":1,"flag":0,"remark":"","extFields":{"topic":"hellomq"}}"#,
                b"",
            ),
            code: 105,
            version: 317,
            opaque: 1,
            flag: 0,
            remark: Some(""),
            fields: vec![("topic", "hellomq")],
            body: b"",
        },
        Expected {
            name: "as a Java client writes a send, with escapes",
            bytes: frame(
                0,
                br#"{"code":310,"extFields":{"a":"g","i":"KEYS\u0001k\u0002TAGS\u0001\u00e9\"\u0002","m":"false"},"flag":2,"language":"JAVA","opaque":-7,"serializeTypeCurrentRPC":"JSON","version":479}"#,
                b"payload",
            ),
            code: 310,
            version: 479,
            opaque: -7,
            flag: 2,
            remark: None,
            fields: vec![("a", "g"), ("i", "KEYS\u{1}k\u{2}TAGS\u{1}é\"\u{2}"), ("m", "false")],
            body: b"payload",
        },
        Expected {
            name: "white space, unknown keys, numbers and nulls as values",
            bytes: frame(
                0,
                b" {\n\t\"code\" : \"34\" , \"x\": [1, {\"y\": [true, null]}, \"]\"], \"extFields\": {\"q\": 3, \"b\": true, \"n\": null, \"\\u0061\": \"esc\"} , \"remark\": null }\r\n",
                b"{}",
            ),
            code: 34,
            version: 0,
            opaque: 0,
            flag: 0,
            remark: None,
            fields: vec![("q", "3"), ("b", "true"), ("a", "esc")],
            body: b"{}",
        },
        Expected {
            name: "an empty object",
            bytes: frame(0, b"{}", b""),
            code: 0,
            version: 0,
            opaque: 0,
            flag: 0,
            remark: None,
            fields: vec![],
            body: b"",
        },
        Expected {
            name: "extFields that are null",
            bytes: frame(0, br#"{"code":34,"extFields":null}"#, b"{}"),
            code: 34,
            version: 0,
            opaque: 0,
            flag: 0,
            remark: None,
            fields: vec![],
            body: b"{}",
        },
        Expected {
            name: "binary, with an empty value, which is null",
            bytes: frame(
                1,
                &binary(105, 401, 99, 0, "why", &[("topic", "T"), ("none", ""), ("x", "é")]),
                b"\0body",
            ),
            code: 105,
            version: 401,
            opaque: 99,
            flag: 0,
            remark: Some("why"),
            fields: vec![("topic", "T"), ("x", "é")],
            body: b"\0body",
        },
        Expected {
            name: "binary, without anything",
            bytes: frame(1, &binary(-1, 0, -1, 1, "", &[]), b""),
            code: -1,
            version: 0,
            opaque: -1,
            flag: 1,
            remark: None,
            fields: vec![],
            body: b"",
        },
    ]
}

#[test]
fn the_go_client_says_so_in_both_forms() {
    let language = |bytes: &[u8]| decode_all(bytes).unwrap().unwrap().language();
    assert_eq!(language(&frame(0, br#"{"language":"GO"}"#, b"")), Language::Go);
    assert_eq!(language(&frame(0, br#"{"language":"JAVA"}"#, b"")), Language::Other);
    assert_eq!(language(&frame(0, b"{}", b"")), Language::Other);
    let mut header = binary(1, 0, 1, 0, "", &[]);
    assert_eq!(language(&frame(1, &header, b"")), Language::Go);
    header[2] = 0;
    assert_eq!(language(&frame(1, &header, b"")), Language::Other);
}

fn check(command: &Command, expected: &Expected) {
    let name = expected.name;
    assert_eq!(command.code(), expected.code, "{name}");
    assert_eq!(command.version(), expected.version, "{name}");
    assert_eq!(command.opaque(), expected.opaque, "{name}");
    assert_eq!(command.flag(), expected.flag, "{name}");
    assert_eq!(
        command.remark().map(|remark| remark.lossy()).as_deref(),
        expected.remark,
        "{name}"
    );
    let fields: Vec<_> = command
        .fields()
        .map(|(name, value)| (name.lossy(), value.lossy()))
        .collect();
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(fields, expected.fields, "{name}");
    for (field, value) in &expected.fields {
        assert_eq!(command.field(field).unwrap().lossy(), *value, "{name}");
    }
    assert_eq!(command.body(), expected.body, "{name}");
}

#[test]
fn frames_say_what_they_say() {
    for expected in vectors() {
        check(&decode_all(&expected.bytes).unwrap().unwrap(), &expected);
    }
}

#[test]
fn a_frame_cut_short_anywhere_waits_for_more_and_takes_nothing() {
    for expected in vectors() {
        for cut in 0..expected.bytes.len() {
            assert!(
                decode_all(&expected.bytes[..cut]).unwrap().is_none(),
                "{} at {cut}",
                expected.name
            );
        }
    }
}

#[test]
fn what_is_written_reads_back_in_both_forms() {
    for serialize_type in [SerializeType::Json, SerializeType::RocketMq] {
        for expected in vectors() {
            let mut out = BytesMut::from(&b"before"[..]);
            let remark = expected.remark.unwrap_or_default();
            let (opaque, code, flag) = (expected.opaque, expected.code, expected.flag);
            let mut writer = Writer::new(&mut out, serialize_type, opaque, code, flag, remark);
            for (name, value) in &expected.fields {
                match value.parse() {
                    Ok(number) => writer.number(name, number),
                    Err(_) => writer.text(name, value.as_bytes()),
                }
            }
            writer.finish(expected.body.len());
            out.extend_from_slice(expected.body);
            let command = decode_all(&out[6..]).unwrap().unwrap();
            assert_eq!(command.serialize_type(), serialize_type);
            let written = Expected {
                version: 479,
                remark: expected.remark.filter(|remark| !remark.is_empty()),
                ..expected
            };
            check(&command, &written);
        }
    }
}

/// No white space, keys in alphabetical order, values as text: byte for byte what fastjson makes.
#[test]
fn json_is_written_as_rocketmq_writes_it() {
    let mut out = BytesMut::new();
    let mut writer = Writer::response(&mut out, SerializeType::Json, 7, 0, "");
    writer.text("msgId", b"7F00000100002A9F0000000000000000");
    writer.number("queueId", 3);
    writer.finish(0);
    let header: &[u8] = br#"{"code":0,"extFields":{"msgId":"7F00000100002A9F0000000000000000","queueId":"3"},"flag":1,"language":"JAVA","opaque":7,"serializeTypeCurrentRPC":"JSON","version":479}"#;
    assert_eq!(out, frame(0, header, b""));

    out.clear();
    Writer::response(&mut out, SerializeType::Json, -1, 17, "no \"T\"").finish(2);
    let header: &[u8] = br#"{"code":17,"flag":1,"language":"JAVA","opaque":-1,"remark":"no \"T\"","serializeTypeCurrentRPC":"JSON","version":479}"#;
    assert_eq!(out, frame(0, header, b"ab")[..8 + header.len()]);
}

#[test]
fn binary_is_written_as_rocketmq_writes_it() {
    let mut out = BytesMut::new();
    let mut writer = Writer::response(&mut out, SerializeType::RocketMq, 7, 19, "r");
    writer.number("offset", 12);
    writer.finish(0);
    let mut header = binary(19, 479, 7, 1, "r", &[("offset", "12")]);
    header[2] = 0; // JAVA
    assert_eq!(out, frame(1, &header, b""));
}

/// The length and what is wrong with it are known before the frame is there.
#[test]
fn a_frame_that_will_not_be_read_is_refused_from_its_first_bytes() {
    let first_four: [(&[u8], u32); 6] = [
        (&[0, 0, 0, 0], 0),
        (&[0, 0, 0, 3], 3),
        (&[1, 0, 0, 1], (16 << 20) + 1),
        (&[0xFF, 0xFF, 0xFF, 0xFF], u32::MAX),
        (&[0x16, 3, 1, 2], 0x1603_0102),
        (b"GET ", 0x4745_5420),
    ];
    for (bytes, length) in first_four {
        assert_eq!(decode_all(bytes).unwrap_err(), FrameError::Length(length));
    }
    let first_eight: [(&[u8], FrameError); 4] = [
        (&[0, 0, 0, 10, 0, 0, 0, 7], FrameError::HeaderLength(7)),
        (&[0, 0, 0, 4, 0, 0, 0, 1], FrameError::HeaderLength(1)),
        (&[0, 0, 0, 10, 2, 0, 0, 1], FrameError::SerializeType(2)),
        (&[0, 0x20, 0, 0, 0, 0x10, 0, 1], FrameError::HeaderLength(0x10_0001)),
    ];
    for (bytes, error) in first_eight {
        assert_eq!(decode_all(bytes).unwrap_err(), error);
    }
    // The largest allowed ones only wait.
    assert!(decode_all(&[1, 0, 0, 0, 0, 0x10, 0, 0]).unwrap().is_none());
}

#[test]
fn a_header_that_is_not_what_its_form_says_is_refused() {
    let json = |header: &str| decode_all(&frame(0, header.as_bytes(), b"")).unwrap_err();
    for header in [
        "",
        " ",
        "null",
        "[]",
        "7",
        "{",
        "{}x",
        r#"{"code"}"#,
        r#"{"code":1,}"#,
        r#"{"code":1 "flag":2}"#,
        r#"{"code":"#,
        r#"{"code":x}"#,
        r#"{"code":[1}"#,
        r#"{"x":"\x"}"#,
        r#"{"x":"\u12"}"#,
        r#"{"x":"\u12g4"}"#,
        r#"{"x":"open}"#,
        r#"{"x":tru}"#,
        r#"{x:1}"#,
        r#"{"extFields":{"a"}}"#,
    ] {
        assert!(matches!(json(header), FrameError::Header(_)), "{header}");
    }
    for header in [
        r#"{"code":2147483648}"#,
        r#"{"opaque":1.5}"#,
        r#"{"flag":"x"}"#,
        r#"{"flag":true}"#,
    ] {
        assert!(
            matches!(json(header), FrameError::Header(HeaderError::Number(_))),
            "{header}"
        );
    }
    let deep = format!(r#"{{"x":{}{}}}"#, "{\"a\":".repeat(50_000), "}".repeat(50_000));
    assert_eq!(json(&deep), FrameError::Header(HeaderError::Depth));
    let field = |value: &str| format!(r#"{{"extFields":{{"a":{value}}}}}"#);
    let deep = field(&("[".repeat(50_000) + &"]".repeat(50_000)));
    assert_eq!(json(&deep), FrameError::Header(HeaderError::Depth));
    let not_text = frame(0, b"{\"x\":\"\xFF\"}", b"");
    assert_eq!(
        decode_all(&not_text).unwrap_err(),
        FrameError::Header(HeaderError::Utf8)
    );

    let fields = |count: usize| {
        let fields: Vec<_> = (0..count).map(|at| format!(r#""{at}":"""#)).collect();
        decode_all(&frame(
            0,
            format!(r#"{{"extFields":{{{}}}}}"#, fields.join(",")).as_bytes(),
            b"",
        ))
    };
    assert!(fields(256).unwrap().is_some());
    assert_eq!(fields(257).unwrap_err(), FrameError::Header(HeaderError::Fields));
}

/// A binary header cut anywhere, and each of its lengths made to lead beyond it.
#[test]
fn a_binary_header_with_wrong_lengths_is_refused() {
    let header = binary(10, 0, 1, 0, "remark", &[("a", "b"), ("c", "d")]);
    for cut in 0..header.len() {
        assert!(decode_all(&frame(1, &header[..cut], b"")).is_err(), "cut at {cut}");
    }
    let (remark, block, name, value) = (13, 23, 27, 30);
    for (at, bytes) in [
        (remark, [0x7F, 0xFF, 0xFF, 0xFF]),
        (remark, [0xFF, 0xFF, 0xFF, 0xFF]),
        (block, [0, 0, 0, 200]),
        (block, [0xFF, 0xFF, 0xFF, 0xFF]),
        (block, [0, 0, 0, 9]),
        (name, [0xFF, 0xFF, b'a', 0]),
        (name, [0, 200, b'a', 0]),
        (value, [0, 0, 0, 200]),
        (value, [0xFF, 0xFF, 0xFF, 0xFF]),
    ] {
        let mut wrong = header.clone();
        wrong[at..at + 4].copy_from_slice(&bytes);
        assert!(decode_all(&frame(1, &wrong, b"")).is_err(), "{bytes:?} at {at}");
    }
}

/// What the scanner takes for a header is what a JSON library reads.
#[test]
fn the_scanner_agrees_with_a_json_library() {
    for expected in vectors() {
        if expected.bytes[4] != 0 {
            continue;
        }
        let header = &expected.bytes[8..expected.bytes.len() - expected.body.len()];
        let value: serde_json::Value = serde_json::from_slice(header).unwrap();
        let fields = value["extFields"].as_object().cloned().unwrap_or_default();
        for (name, text) in &expected.fields {
            let read = match &fields[*name] {
                serde_json::Value::String(read) => read.clone(),
                other => other.to_string(),
            };
            assert_eq!(read, *text);
        }
    }
}

#[test]
fn a_body_is_a_slice_of_what_was_read() {
    let mut input = BytesMut::from(&frame(0, b"{}", b"payload")[..]);
    let memory = input.as_ptr() as usize..input.as_ptr() as usize + input.len();
    let mut command = Command::default();
    assert!(decode(&mut input, Limits::default(), &mut command).unwrap());
    let body: Bytes = command.body().clone();
    assert!(memory.contains(&(body.as_ptr() as usize)));
}
