//! Scripts: bytes in, outputs and orders expected, replies in, time advanced.

mod script;

use bytes::Bytes;
use rocketbridge_core::attributes::{Attribute, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::{Event, Fate, Notice, Reject, SubscriptionId};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{Acknowledge, Binding, Credentials, Destination, Refusal, Reply, Request, Source};
use rocketbridge_core::time::Millis;
use rocketbridge_mqtt::Config;
use script::*;

// --- CONNECT ----------------------------------------------------------------------------------

/// [MQTT-3.1.0-1]
#[test]
fn the_first_packet_is_connect() {
    for bytes in [
        &b"\xC0\0"[..],
        b"\x30\x05\0\x01tx",
        b"\0\0",
        b"\x82\x06\0\x01\0\x01p\0",
        b"GET / HTTP/1.1\r\n",
    ] {
        let mut script = Script::new(Config::default());
        script.send(bytes);
        script.expect_closed(b"");
    }
}

#[test]
fn connack_follows_login_attach_and_consume() {
    let mut script = Script::new(Config::default());
    script.send(b"\x10\x13\0\x04MQTT\x04\xC2\0\x0A\0\x01c\0\x01u\0\x01p");
    let [(login, Request::Login(Credentials::Password { user, password }))] = &script.requests()[..] else {
        panic!("no login");
    };
    assert_eq!((&user[..], &password[..]), (&b"u"[..], &b"p"[..]));
    assert!(!script.wants_read());
    script.reply(*login, Ok(Reply::Done));
    let requests = script.requests();
    let [
        (attach, Request::Attach(wanted)),
        (consume, Request::Subscribe(subscribe)),
    ] = &requests[..]
    else {
        panic!("{requests:?}");
    };
    assert_eq!(wanted.holder, "c");
    assert_eq!((wanted.clean, wanted.durable, wanted.keep), (true, false, Millis(0)));
    assert_eq!(
        (wanted.limit.messages, wanted.limit.bytes),
        (Some(100_000), Some(64 << 20))
    );
    assert_eq!(subscribe.queue, "\0c");
    assert_eq!(subscribe.acknowledge, Acknowledge::Persistent);
    assert_eq!(subscribe.window, Some(1024));
    assert_eq!(script.sent(), b"");
    script.reply(*attach, Ok(attached(false, &[])));
    assert_eq!(script.sent(), b"");
    script.reply(*consume, Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x20\x02\0\0");
    assert!(script.wants_read());
}

/// [MQTT-3.2.2-2, MQTT-3.2.2-3]
#[test]
fn a_durable_session_is_kept_and_reported_present() {
    let mut script = Script::new(Config::default());
    script.send(b"\x10\x0D\0\x04MQTT\x04\0\0\x0A\0\x01c");
    script.reply_next(Ok(Reply::Done));
    let requests = script.requests();
    let (attach, Request::Attach(wanted)) = &requests[0] else {
        panic!("{requests:?}")
    };
    assert_eq!(
        (wanted.clean, wanted.durable, wanted.keep),
        (false, true, Millis(7 * 86_400_000))
    );
    script.reply(*attach, Ok(attached(true, &[])));
    script.reply(requests[1].0, Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x20\x02\x01\0");
}

#[test]
fn version_5_is_told_what_this_server_does() {
    let mut script = Script::new(Config::default());
    // Session expiry for ever, receive maximum 5, no client identifier.
    script.send(b"\x10\x15\0\x04MQTT\x05\x02\0\0\x08\x11\xFF\xFF\xFF\xFF\x21\0\x05\0\0");
    script.reply_next(Ok(Reply::Done));
    let requests = script.requests();
    let (attach, Request::Attach(wanted)) = &requests[0] else {
        panic!("{requests:?}")
    };
    assert_eq!(wanted.holder, "auto-0000000000000007");
    assert_eq!((wanted.durable, wanted.keep), (true, Millis(7 * 86_400_000)));
    let (consume, Request::Subscribe(subscribe)) = &requests[1] else {
        panic!("{requests:?}")
    };
    assert_eq!(subscribe.window, Some(5));
    script.reply(*attach, Ok(attached(false, &[])));
    script.reply(*consume, Ok(Reply::Done));
    let mut expected = b"\x20\x2B\0\0\x28\x11\0\x09\x3A\x80\x21\xFF\xFF\x27\x01\0\0\0".to_vec();
    expected.extend(b"\x12\0\x15auto-0000000000000007\x22\0\x0A");
    assert_eq!(script.sent(), expected);
    assert_eq!(script.next_timeout(), None);
}

#[test]
fn refused_logins_get_their_code() {
    for (connect, refusal, answer) in [
        (
            &b"\x10\x10\0\x04MQTT\x04\x82\0\x0A\0\x01c\0\x01u"[..],
            Refusal::AccessRefused,
            &b"\x20\x02\0\x04"[..],
        ),
        (CONNECT_4, Refusal::AccessRefused, b"\x20\x02\0\x05"),
        (CONNECT_4, Refusal::Closed, b"\x20\x02\0\x03"),
        (
            b"\x10\x11\0\x04MQTT\x05\x82\0\x0A\0\0\x01c\0\x01u",
            Refusal::AccessRefused,
            b"\x20\x03\0\x86\0",
        ),
        (CONNECT_5, Refusal::AccessRefused, b"\x20\x03\0\x87\0"),
        (CONNECT_5, Refusal::Closed, b"\x20\x03\0\x88\0"),
    ] {
        let mut script = Script::new(Config::default());
        script.send(connect);
        script.reply_next(Err(refusal));
        script.expect_closed(answer);
    }
}

#[test]
fn a_refused_session_gets_its_code_once() {
    let mut script = Script::new(Config::default());
    script.send(CONNECT_5);
    script.reply_next(Ok(Reply::Done));
    let requests = script.requests();
    script.reply(requests[0].0, Err(Refusal::Invalid("too long".to_owned())));
    script.reply(requests[1].0, Err(Refusal::Invalid("no".to_owned())));
    script.expect_closed(b"\x20\x03\0\x85\0");
}

#[test]
fn credentials_may_be_ignored() {
    let mut script = Script::new(Config {
        ignore_credentials: true,
        ..Config::default()
    });
    script.send(b"\x10\x13\0\x04MQTT\x04\xC2\0\x0A\0\x01c\0\x01u\0\x01p");
    assert!(matches!(
        &script.requests()[..],
        [(_, Request::Login(Credentials::Anonymous))]
    ));
}

#[test]
fn a_connect_that_is_too_large_is_answered_when_its_version_is_known() {
    for (connect, answer) in [
        (&b"\x10\xFF\xFF\x7F\0\x04MQTT\x04"[..], &b"\x20\x02\0\x03"[..]),
        (b"\x10\xFF\xFF\x7F\0\x04MQTT\x05", b"\x20\x03\0\x95\0"),
        (b"\x10\xFF\xFF\x7F\0\x06MQIsdp\x03", b"\x20\x02\0\x03"),
        (b"\x10\xFF\xFF\x7F\0\x04MQTT\x07", b"\x20\x02\0\x01"),
        (b"\x10\xFF\xFF\x7F\0\x04MQTU\x04", b""),
        (b"\x10\xFF\xFF\x7F\0\x07", b""),
    ] {
        let mut script = Script::new(Config::default());
        for (at, byte) in connect.iter().enumerate() {
            assert!(!script.is_closed(), "{at} of {connect:?}");
            script.send(&[*byte]);
        }
        script.expect_closed(answer);
    }
}

/// All five fields may have 65,535 bytes.
#[test]
fn a_connect_with_long_fields_is_taken() {
    let long = [&[0xFF, 0xFF][..], &[b'x'; 0xFFFF]].concat();
    let body = [&b"\0\x04MQTT\x04\xC6\0\x0A"[..], &long.repeat(5)].concat();
    let length = body.len();
    let head = [
        0x10,
        length as u8 | 0x80,
        (length >> 7) as u8 | 0x80,
        (length >> 14) as u8,
    ];
    let mut script = Script::new(Config::default());
    script.send(&[&head, &body[..]].concat());
    assert!(matches!(&script.requests()[..], [(_, Request::Login(_))]));
}

/// Forms that were left empty send both fields empty.
#[test]
fn no_name_and_no_password_are_anonymous() {
    for (connect, is_anonymous) in [
        (CONNECT_4, true),
        (&b"\x10\x0F\0\x04MQTT\x04\x82\0\x0A\0\x01c\0\0"[..], true),
        (b"\x10\x11\0\x04MQTT\x04\xC2\0\x0A\0\x01c\0\0\0\0", true),
        (b"\x10\x12\0\x04MQTT\x05\xC2\0\x0A\0\0\x01c\0\0\0\0", true),
        (b"\x10\x12\0\x04MQTT\x04\xC2\0\x0A\0\x01c\0\0\0\x01p", false),
        (b"\x10\x12\0\x04MQTT\x04\xC2\0\x0A\0\x01c\0\x01u\0\0", false),
    ] {
        let mut script = Script::new(Config::default());
        script.send(connect);
        let requests = script.requests();
        let [(_, Request::Login(credentials))] = &requests[..] else {
            panic!("{requests:?}")
        };
        assert_eq!(
            matches!(credentials, Credentials::Anonymous),
            is_anonymous,
            "{connect:?}"
        );
    }
}

#[test]
fn what_is_not_supported_is_refused_in_connack() {
    for (connect, start) in [
        // An authentication method.
        (
            &b"\x10\x12\0\x04MQTT\x05\x02\0\x0A\x04\x15\0\x01m\0\x01p"[..],
            &b"\x20\x03\0\x8C\0"[..],
        ),
        // No client identifier for a session that is to be kept, or in MQTT 3.1. [MQTT-3.1.3-8]
        (b"\x10\x0C\0\x04MQTT\x04\0\0\x0A\0\0", b"\x20\x02\0\x02"),
        (b"\x10\x0E\0\x06MQIsdp\x03\x02\0\x0A\0\0", b"\x20\x02\0\x02"),
        // A version that nobody knows. [MQTT-3.1.2-2]
        (b"\x10\x0D\0\x04MQTT\x06\x02\0\x0A\0\x01p", b"\x20\x02\0\x01"),
    ] {
        let mut script = Script::new(Config::default());
        script.send(connect);
        assert!(script.requests().is_empty());
        let sent = script.sent();
        assert!(sent.starts_with(start), "{connect:02x?}: {}", sent.escape_ascii());
        assert!(script.is_closed());
    }
}

#[test]
fn packets_before_connack_wait_and_are_answered_after_it() {
    let mut script = Script::new(Config::default());
    script.send(&[CONNECT_4, b"\xC0\0\x82\x06\0\x01\0\x01p\0\x30"].concat());
    script.send(b"\x05\0\x01tx");
    script.reply_next(Ok(Reply::Done));
    let requests = script.requests();
    script.reply(requests[0].0, Ok(attached(false, &[])));
    assert_eq!(script.sent(), b"");
    script.reply(requests[1].0, Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x20\x02\0\0\xD0\0");
    assert!(matches!(&script.requests()[..], [(_, Request::Bind(_))]));
    assert_eq!(script.publishes().len(), 0);
    // The rest of the packet that was cut.
    script.send(b"y\xC0\0");
    assert_eq!(script.publishes()[0].body, "xy");
    assert_eq!(script.sent(), b"\xD0\0");
}

#[test]
fn what_waits_for_connack_is_bounded() {
    let mut script = Script::new(Config::default());
    script.send(CONNECT_4);
    for _ in 0..5 {
        script.send(&[0; 64 * 1024]);
    }
    script.expect_closed(b"");
}

#[test]
fn connect_is_limited_and_later_packets_may_be_larger() {
    let mut script = Script::new(Config::default());
    script.send(b"\x10\xFC\xFF\x17\0\x04MQTT\x04");
    assert!(!script.is_closed());
    let mut script = Script::new(Config::default());
    script.send(b"\x10\xFD\xFF\x17\0\x04MQTT\x04");
    script.expect_closed(b"\x20\x02\0\x03");
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x30\x81\x80\x04");
    assert!(!script.is_closed());
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x30\xFF\xFF\xFF\x7F");
    script.expect_closed(b"\xE0\x01\x95");
}

// --- time -------------------------------------------------------------------------------------

#[test]
fn a_silent_socket_is_closed() {
    let mut script = Script::new(Config::default());
    assert_eq!(script.next_timeout(), Some(Millis(START + 10_000)));
    script.advance(9_999);
    script.send(b"\x10");
    assert!(!script.is_closed());
    script.advance(1);
    script.expect_closed(b"");
}

/// [MQTT-3.1.2-22]
#[test]
fn a_client_unheard_for_one_and_a_half_keep_alives_is_closed() {
    for (connect, goodbye) in [(CONNECT_4, &b""[..]), (CONNECT_5, b"\xE0\x01\x8D")] {
        let mut script = Script::connected(connect);
        script.advance(14_999);
        script.send(b"\xC0\0");
        assert_eq!(script.sent(), b"\xD0\0");
        script.advance(14_999);
        assert!(!script.is_closed());
        script.advance(1);
        script.expect_closed(goodbye);
    }
}

/// [MQTT-3.1.2-22]: packets count, and on a slow link what a large one grows by.
#[test]
fn bytes_that_make_no_packet_keep_no_connection() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x30\xFF\x7F\0\x01t\0");
    for _ in 0..14 {
        script.advance(1000);
        script.send(b"x");
    }
    assert!(!script.is_closed());
    script.advance(1000);
    script.expect_closed(b"\xE0\x01\x8D");

    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x30\xFF\x7F\0\x01t\0");
    let mut left = 16_383 - 4;
    while left > 0 {
        script.advance(14_999);
        assert!(!script.is_closed());
        let part = left.min(4096);
        script.send(&vec![b'x'; part]);
        left -= part;
    }
    assert_eq!(script.publishes().len(), 1);
    script.send(b"\x30");
    script.advance(15_000);
    script.expect_closed(b"\xE0\x01\x8D");
}

#[test]
fn a_client_that_is_not_read_is_not_timed_out() {
    let mut script = Script::connected(CONNECT_4);
    script.send(b"\x32\x06\0\x01t\0\x01x");
    // Core took nothing: the order is still there when the time is over.
    script.advance_with_orders(15_000);
    assert!(!script.is_closed());
    assert_eq!(script.publishes().len(), 1);
    script.advance(15_000);
    assert!(script.is_closed());
}

// --- publishing -------------------------------------------------------------------------------

#[test]
fn a_publish_becomes_a_message_of_its_address() {
    let mut script = Script::connected(CONNECT_4);
    script.send(b"\x32\x10\0\x07a.x/b.c\0\x07hello");
    let publishes = script.publishes();
    let publish = &publishes[0];
    assert_eq!((&publish.topic[..], &publish.key[..]), (&b"a|2Ex"[..], &b"b/c"[..]));
    assert_eq!(
        (publish.entry, publish.persistent, publish.token),
        (Entry::Topic, true, 0)
    );
    assert_eq!((publish.format, &publish.body[..]), (Format(2), &b"hello"[..]));
    assert_eq!(publish.origin, &b"\x04\x01\0\x07a.x/b.c\0\x01c"[..]);
    assert_eq!(publish.attributes.iter().count(), 0);
    script.send(b"\x30\x09\0\x02//hello");
    let publishes = script.publishes();
    assert_eq!(
        (&publishes[0].topic[..], &publishes[0].key[..]),
        (&b"|-"[..], &b"."[..])
    );
    assert!(!publishes[0].persistent);
    assert_eq!(publishes[0].token, 1);
}

#[test]
fn properties_are_kept_and_become_attributes() {
    let mut script = Script::connected(CONNECT_5);
    let properties =
        b"\x01\x01\x02\0\0\0\x05\x03\0\x01j\x08\0\x03r/s\x09\0\x02\xFF\0\x26\0\x01n\0\x01v\x26\0\x0Amessage-id\0\x01m";
    let forwarded = properties.len();
    let mut packet = b"\x30\x00\0\x01t\x00\x23\0\x01\x0B\x07".to_vec();
    packet.extend(properties);
    packet[5] = forwarded as u8 + 5;
    packet.extend(b"body");
    packet[1] = packet.len() as u8 - 2;
    script.send(&packet);
    let publishes = script.publishes();
    // Topic alias and subscription identifier belong to the connection [MQTT-3.3.2-7]; the expiry interval
    // comes first.
    let kept = [&properties[2..7], &properties[..2], &properties[7..]].concat();
    assert_eq!(publishes[0].origin, [&b"\x05\0\0\x01t\0\x01c"[..], &kept].concat());
    let attributes: Vec<_> = publishes[0].attributes.iter().collect();
    assert_eq!(
        attributes,
        [
            (Name::Known(Attribute::PayloadFormat), Value::Uint(1)),
            (Name::Known(Attribute::TimeToLive), Value::Uint(5000)),
            (Name::Known(Attribute::ContentType), Value::Text(b"j")),
            (Name::Known(Attribute::ReplyTopic), Value::Text(b"r/s")),
            (Name::Known(Attribute::CorrelationId), Value::Binary(b"\xFF\0")),
            (Name::User(b"n"), Value::Text(b"v")),
            (Name::Known(Attribute::MessageId), Value::Text(b"m")),
        ]
    );
}

#[test]
fn a_topic_too_long_for_a_name_is_kept_in_an_attribute() {
    let mut script = Script::connected(CONNECT_4);
    let first = "x".repeat(200);
    let mut packet = vec![0x30, 0xCE, 0x01, 0, 203];
    packet.extend(format!("{first}/yz!").bytes());
    script.send(&packet);
    let publishes = script.publishes();
    assert!(publishes[0].topic.len() <= 127);
    assert_eq!(publishes[0].key, "yz");
    let attributes: Vec<_> = publishes[0].attributes.iter().collect();
    assert_eq!(
        attributes,
        [(Name::Known(Attribute::Topic), Value::Text(first.as_bytes()))]
    );
}

/// 5.0, 3.3.2.3.4
#[test]
fn topic_aliases_stand_for_topics() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x30\x09\0\x03a/b\x03\x23\0\x02\x30\x07\0\0\x03\x23\0\x02x");
    let publishes = script.publishes();
    assert_eq!(publishes.len(), 2);
    for publish in &publishes {
        assert_eq!((&publish.topic[..], &publish.key[..]), (&b"a"[..], &b"b"[..]));
        assert_eq!(publish.origin, &b"\x05\0\0\x03a/b\0\x01c"[..]);
    }
    for (packet, goodbye) in [
        (&b"\x30\x07\0\0\x03\x23\0\x03x"[..], &b"\xE0\x01\x82"[..]),
        (b"\x30\x07\0\x01t\x03\x23\0\0", b"\xE0\x01\x94"),
        (b"\x30\x07\0\x01t\x03\x23\0\x0B", b"\xE0\x01\x94"),
    ] {
        let mut script = Script::connected(CONNECT_5);
        script.send(packet);
        script.expect_closed(goodbye);
    }
}

/// [MQTT-4.6.0-2]
#[test]
fn pubacks_come_in_the_order_of_publishes_with_their_reason() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x32\x06\0\x01t\0\x01\0\x30\x04\0\x01t\0\x32\x06\0\x01t\0\x02\0\x32\x06\0\x01t\0\x03\0");
    assert_eq!(script.publishes().len(), 4);
    script.outcome(1, 1, stored(1));
    script.outcome(2, 1, stored(0));
    assert_eq!(script.sent(), b"");
    script.outcome(0, 1, stored(3));
    assert_eq!(script.sent(), b"\x40\x02\0\x01\x40\x03\0\x02\x10");
    script.outcome(3, 1, Fate::Rejected(Reject::AccessRefused));
    assert_eq!(script.sent(), b"\x40\x03\0\x03\x87");
    assert!(!script.is_closed());
}

#[test]
fn refusals_have_their_reason_code() {
    for (reject, code) in [
        (Reject::NoTopic, 0x90),
        (Reject::TooLarge, 0x97),
        (Reject::QueueFull, 0x97),
        (Reject::AccessRefused, 0x87),
        (Reject::NoExchange, 0x83),
    ] {
        let mut script = Script::connected(CONNECT_5);
        script.send(b"\x32\x06\0\x01t\0\x01\0");
        script.outcome(0, 1, Fate::Rejected(reject));
        assert_eq!(script.sent(), [0x40, 3, 0, 1, code]);
    }
}

/// [MQTT-3.3.5-2]
#[test]
fn an_old_client_whose_publish_is_refused_is_closed() {
    let mut script = Script::connected(CONNECT_4);
    script.send(b"\x32\x06\0\x01t\0\x01x\x30\x03\0\x01t");
    // Nobody promised anything for QoS 0.
    script.outcome(1, 1, Fate::Rejected(Reject::QueueFull));
    assert!(!script.is_closed());
    script.outcome(0, 1, Fate::Rejected(Reject::QueueFull));
    script.expect_closed(b"");
}

#[test]
fn a_publish_of_unknown_fate_is_not_acknowledged() {
    for (fate, code) in [(Fate::Unknown, 0x80), (Fate::Rejected(Reject::Closed), 0x8B)] {
        let mut script = Script::connected(CONNECT_5);
        script.send(b"\x32\x06\0\x01t\0\x01\0");
        script.outcome(0, 1, fate);
        script.expect_closed(&[0xE0, 1, code]);
    }
}

/// [MQTT-3.3.4-9]
#[test]
fn the_receive_maximum_is_enforced_or_waited_for() {
    let config = Config {
        receive_maximum: 2,
        ..Config::default()
    };
    let two = [&b"\x32\x06\0\x01t\0\x01\0\x32\x06\0\x01t\0\x02\0\x30\x04\0\x01t\0"[..]].concat();
    let mut script = Script::connected_with(config.clone(), CONNECT_5);
    script.send(&two);
    assert!(script.wants_read() && !script.is_closed());
    // What was taken before is answered first.
    script.send(b"\x32\x06\0\x01t\0\x03\0\x32\x06\0\x01t\0\x04\0");
    assert!(!script.wants_read() && !script.is_closed());
    assert_eq!(script.publishes().len(), 3);
    script.outcome(0, 1, stored(1));
    assert!(!script.is_closed());
    script.outcome(1, 1, stored(1));
    script.expect_closed(b"\x40\x02\0\x01\x40\x02\0\x02\xE0\x01\x93");

    let mut script = Script::connected_with(config, CONNECT_4);
    script.send(b"\x32\x05\0\x01t\0\x01\x32\x05\0\x01t\0\x02");
    assert!(!script.wants_read());
    script.publishes();
    script.outcome(0, 2, stored(1));
    assert_eq!(script.sent(), b"\x40\x02\0\x01\x40\x02\0\x02");
    assert!(script.wants_read());
}

/// A client may send at once all that it has packet identifiers for: what is too much at a time stays unparsed.
#[test]
fn a_burst_is_taken_in_parts_and_all_of_it_answered() {
    const COUNT: u16 = 20_000;
    for (version, qos) in [(4, 1), (4, 2), (5, 1), (5, 2)] {
        let connect = if version == 5 { CONNECT_5 } else { CONNECT_4 };
        let burst: Vec<u8> = (1..=COUNT)
            .flat_map(|id| {
                let [high, low] = id.to_be_bytes();
                let mut packet = vec![0x30 | qos << 1, 5, 0, 1, b't', high, low];
                if version == 5 {
                    packet[1] += 1;
                    packet.push(0);
                }
                packet
            })
            .collect();
        // Behind CONNECT too, where the session keeps it itself.
        for is_behind_connect in [false, true] {
            let mut script = if is_behind_connect {
                let mut script = Script::new(Config::default());
                script.send(&[connect, &burst].concat());
                script.accept(false);
                assert_eq!(script.sent().first(), Some(&0x20));
                script
            } else {
                let mut script = Script::connected(connect);
                script.send(&burst);
                script
            };
            let (mut taken, mut answers) = (0, Vec::new());
            while taken < u64::from(COUNT) {
                let count = script.publishes().len();
                assert!((1..=4096).contains(&count), "{count}");
                assert!(!script.is_closed());
                assert_eq!(script.wants_read(), count < 4096);
                script.outcome(taken, count as u32, stored(1));
                taken += count as u64;
                script.send(b"");
                answers.extend(script.sent());
            }
            let first_byte = if qos == 2 { 0x50 } else { 0x40 };
            let expected = (1..=COUNT).flat_map(|id| [first_byte, 2, (id >> 8) as u8, id as u8]);
            assert!(answers.iter().copied().eq(expected));
            assert!(script.wants_read());
        }
    }
}

/// What makes room again comes as events.
#[test]
fn a_client_that_is_not_heard_is_told_what_happens() {
    let mut script = Script::connected_with(
        Config {
            receive_maximum: 1,
            inflight_max: 1,
            ..Config::default()
        },
        CONNECT_4,
    );
    script.subscribe(b"t", 1);
    for sequence in 1..=257 {
        script.deliver(sequence, true, &publish(b"t", 1));
    }
    assert!(!script.wants_events());
    script.send(b"\x32\x05\0\x01t\0\x01");
    assert!(!script.wants_read() && script.wants_events());
    script.publishes();
    script.outcome(0, 1, stored(1));
    assert!(script.wants_read() && !script.wants_events());
}

/// [MQTT-4.7.3-1]: a topic name has at least one character, that of a response too.
#[test]
fn an_empty_response_topic_is_refused() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x30\x07\0\x01t\x03\x08\0\0");
    assert!(script.publishes().is_empty());
    script.expect_closed(b"\xE0\x01\x82");
}

#[test]
fn too_many_levels_are_refused() {
    let deep = vec![b'/'; 200];
    let publish = [&b"\x30\xCB\x01\0\xC8"[..], &deep, b"\0"].concat();
    let mut script = Script::connected(CONNECT_5);
    script.send(&publish);
    script.expect_closed(b"\xE0\x01\x90");
    let subscribe = [&b"\x82\xCE\x01\0\x01\0\0\xC8"[..], &deep, b"\0"].concat();
    let mut script = Script::connected(CONNECT_5);
    script.send(&subscribe);
    assert_eq!(script.sent(), b"\x90\x04\0\x01\0\x8F");
}

// --- subscribing ------------------------------------------------------------------------------

fn binding(request: &Request) -> &Binding {
    match request {
        Request::Bind(binding) | Request::Unbind(binding) => binding,
        other => panic!("{other:?}"),
    }
}

/// [MQTT-3.8.4-5]
#[test]
fn suback_follows_all_bindings() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x82\x1B\0\x09\x02\x0B\x07\0\x05a.b/+\x02\0\x0B$share/g/x/\x02\xC0\0");
    let requests = script.requests();
    assert_eq!(requests.len(), 3, "{requests:?}");
    let bound = binding(&requests[0].1);
    assert_eq!(bound.source, Source::Everything);
    assert_eq!(bound.destination, Destination::Queue(Bytes::from_static(b"\0c")));
    assert_eq!(bound.cookie, &b"\x02\0\0\0\x07a.b/+"[..]);
    let Request::Share(share) = &requests[1].1 else {
        panic!("{requests:?}")
    };
    assert_eq!(share.queue, "\0\0g/x/");
    assert_eq!(share.cookie, &b"\x01\0\0\0\x07$share/g/x/"[..]);
    let Request::Subscribe(subscribe) = &requests[2].1 else {
        panic!("{requests:?}")
    };
    assert_eq!(
        (&subscribe.queue, subscribe.subscription),
        (&share.queue, SubscriptionId(2))
    );
    // PINGRESP need not wait.
    assert_eq!(script.sent(), b"\xD0\0");
    script.reply(requests[0].0, Ok(Reply::Done));
    assert_eq!(script.sent(), b"");
    script.reply(requests[1].0, Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x90\x05\0\x09\0\x02\x01");
}

#[test]
fn refused_bindings_have_their_code_and_leave_what_was() {
    let mut script = Script::connected(CONNECT_5);
    script.subscribe(b"t", 1);
    script.send(b"\x82\x0B\0\x01\0\0\x01t\0\0\x01u\0");
    let requests = script.requests();
    for (id, _) in &requests {
        script.reply(*id, Err(Refusal::AccessRefused));
    }
    assert_eq!(script.sent(), b"\x90\x05\0\x01\0\x87\x87");
    script.deliver(1, true, &publish(b"t", 1));
    assert_eq!(script.sent(), b"\x32\x07\0\x01t\0\x01\0x");
    script.deliver(2, true, &publish(b"u", 1));
    assert_eq!(script.sent(), b"");

    let mut script = Script::connected(CONNECT_4);
    script.send(b"\x82\x06\0\x01\0\x01t\0");
    script.reply_next(Err(Refusal::AccessRefused));
    assert_eq!(script.sent(), b"\x90\x03\0\x01\x80");
}

#[test]
fn the_number_of_subscriptions_is_limited() {
    let config = Config {
        subscriptions_max: 2,
        ..Config::default()
    };
    let mut script = Script::connected_with(config, CONNECT_5);
    script.send(b"\x82\x0F\0\x01\0\0\x01a\0\0\x01b\0\0\x01c\0");
    let requests = script.requests();
    assert_eq!(requests.len(), 2);
    requests.iter().for_each(|(id, _)| script.reply(*id, Ok(Reply::Done)));
    assert_eq!(script.sent(), b"\x90\x06\0\x01\0\0\0\x97");
    // Replacing one is not one more.
    script.send(b"\x82\x07\0\x02\0\0\x01b\x01");
    script.reply_next(Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x90\x04\0\x02\0\x01");
}

#[test]
fn the_bytes_of_all_filters_are_limited() {
    let config = Config {
        subscriptions_bytes_max: 4,
        ..Config::default()
    };
    let mut script = Script::connected_with(config, CONNECT_5);
    script.send(b"\x82\x11\0\x01\0\0\x01a\0\0\x02bb\0\0\x02cc\0");
    let requests = script.requests();
    assert_eq!(requests.len(), 2);
    requests.iter().for_each(|(id, _)| script.reply(*id, Ok(Reply::Done)));
    assert_eq!(script.sent(), b"\x90\x06\0\x01\0\0\0\x97");
    // Replacing one is not one more, and what is given up makes room.
    script.send(b"\x82\x08\0\x02\0\0\x02bb\x01");
    script.reply_next(Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x90\x04\0\x02\0\x01");
    script.send(b"\xA2\x06\0\x03\0\0\x01a");
    script.reply_next(Ok(Reply::Done));
    script.sent();
    script.send(b"\x82\x08\0\x04\0\0\x02cc\x01");
    script.reply_next(Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x90\x04\0\x04\0\x01");
}

#[test]
fn one_huge_subscribe_makes_a_bounded_number_of_requests() {
    let mut script = Script::connected(CONNECT_5);
    let count = 30_000;
    let mut packet = vec![0x82, 0xC3, 0xA9, 0x07, 0, 1, 0];
    packet.extend(b"\0\x01a\0".repeat(count));
    let length = packet.len() as u32 - 4;
    packet[1] = length as u8 & 0x7F | 0x80;
    packet[2] = (length >> 7) as u8 & 0x7F | 0x80;
    packet[3] = (length >> 14) as u8;
    script.send(&packet);
    assert!(!script.is_closed() && !script.wants_read());
    let requests = script.requests();
    assert!(requests.len() < 20_000);
    requests.iter().for_each(|(id, _)| script.reply(*id, Ok(Reply::Done)));
    let sent = script.sent();
    assert_eq!(sent.len(), 4 + 3 + count);
    assert_eq!(sent.last(), Some(&0x97));
    assert!(script.wants_read());
}

/// [MQTT-3.10.4-4, MQTT-3.11.3-2]
#[test]
fn unsuback_says_what_there_was() {
    for (connect, subscribe, unsubscribe, answer) in [
        (
            CONNECT_5,
            &b"\x82\x07\0\x01\0\0\x01p\0"[..],
            &b"\xA2\x09\0\x02\0\0\x01q\0\x01p"[..],
            &b"\xB0\x05\0\x02\0\x11\0"[..],
        ),
        (
            CONNECT_4,
            b"\x82\x06\0\x01\0\x01p\0",
            b"\xA2\x08\0\x02\0\x01q\0\x01p",
            b"\xB0\x02\0\x02",
        ),
    ] {
        let mut script = Script::connected(connect);
        script.send(subscribe);
        let bind = script.requests();
        script.reply(bind[0].0, Ok(Reply::Done));
        script.sent();
        script.send(unsubscribe);
        let unbind = script.requests();
        assert_eq!(unbind.len(), 1);
        let (before, after) = (binding(&bind[0].1), binding(&unbind[0].1));
        assert_eq!((&before.source, &before.matcher), (&after.source, &after.matcher));
        assert_eq!(
            (&before.destination, &before.arguments),
            (&after.destination, &after.arguments)
        );
        assert_eq!(script.sent(), b"");
        script.reply(unbind[0].0, Ok(Reply::Done));
        assert_eq!(script.sent(), answer);
    }
}

/// [MQTT-3.1.2-4]
#[test]
fn a_resumed_session_knows_its_subscriptions() {
    let mut script = Script::new(Config::default());
    script.send(CONNECT_5);
    script.reply_next(Ok(Reply::Done));
    let requests = script.requests();
    script.reply(requests[0].0, Ok(attached(true, &[b"\x01\0\0\0\x05a/#", b"bad"])));
    script.reply(requests[1].0, Ok(Reply::Done));
    script.sent();
    let mut redelivered = delivery(9, true, &publish(b"a/b", 1));
    redelivered.redelivered = true;
    script.event(Event::Delivery(redelivered));
    assert_eq!(script.sent(), b"\x3A\x0B\0\x03a/b\0\x09\x02\x0B\x05x");
    script.send(b"\xA2\x08\0\x02\0\0\x03a/#");
    assert_eq!(script.requests().len(), 1);
}

// --- delivering -------------------------------------------------------------------------------

/// [MQTT-3.8.4-8]
#[test]
fn deliveries_have_the_lower_of_both_qos() {
    let mut script = Script::connected(CONNECT_4);
    script.subscribe(b"zero", 0);
    script.subscribe(b"one", 1);
    script.deliver(1, false, &publish(b"zero", 0));
    assert_eq!(script.sent(), b"\x30\x07\0\x04zerox");
    // Leased but not acknowledged by anybody: done with at once.
    script.deliver(2, true, &publish(b"zero", 1));
    assert_eq!(script.sent(), b"\x30\x07\0\x04zerox");
    assert_eq!(script.settled(), [2]);
    script.deliver(3, false, &publish(b"one", 0));
    assert_eq!(script.sent(), b"\x30\x06\0\x03onex");
    script.deliver(4, true, &publish(b"one", 1));
    script.deliver(5, true, &publish(b"one", 1));
    assert_eq!(script.sent(), b"\x32\x08\0\x03one\0\x04x\x32\x08\0\x03one\0\x05x");
    assert_eq!(script.settled(), []);
    script.send(b"\x40\x02\0\x05\x40\x02\0\x05\x40\x02\0\x09\x40\x02\0\x04");
    assert_eq!(script.settled(), [5, 4]);
    assert!(!script.is_closed());
}

/// [MQTT-4.3.2-3]
#[test]
fn only_puback_acknowledges_qos_1() {
    for packet in [&b"\x50\x02\0\x01"[..], b"\x70\x02\0\x01"] {
        let mut script = Script::connected(CONNECT_5);
        script.subscribe(b"t", 1);
        script.deliver(1, true, &publish(b"t", 1));
        script.sent();
        script.send(packet);
        script.expect_closed(b"\xE0\x01\x82");
    }
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x50\x02\0\x01\x62\x02\0\x02\x70\x02\0\x03\x50\x03\0\x04\x80");
    assert_eq!(script.sent(), b"\x62\x02\0\x01\x70\x02\0\x02");
}

/// [MQTT-3.3.4-3, MQTT-3.8.3-3]
#[test]
fn overlapping_subscriptions_give_one_message_with_all_identifiers() {
    let mut script = Script::connected(CONNECT_5);
    script.subscribe_with(b"a/b", 0, 1);
    script.subscribe_with(b"a/#", 1, 2);
    // No local.
    script.subscribe_with(b"+/b", 5, 3);
    let mut other = publish(b"a/b", 1);
    script.deliver(1, true, &other);
    assert_eq!(script.sent(), b"\x32\x0F\0\x03a/b\0\x01\x06\x0B\x01\x0B\x03\x0B\x02x");
    other.origin = Bytes::from_static(b"\x05\x01\0\x03a/b\0\x01c\x01\x01");
    script.deliver(2, true, &other);
    assert_eq!(script.sent(), b"\x32\x0F\0\x03a/b\0\x02\x06\x0B\x01\x0B\x02\x01\x01x");
    script.send(b"\xA2\x0D\0\x02\0\0\x03a/b\0\x03a/#");
    script.requests();
    // The only one that is left is not for what the client itself published.
    script.deliver(3, true, &other);
    assert_eq!(script.sent(), b"");
    assert_eq!(script.settled(), [3]);
}

/// [MQTT-3.1.2-24, MQTT-3.1.2-25]
#[test]
fn what_is_larger_than_the_client_accepts_is_done_with() {
    let mut script = Script::connected(b"\x10\x13\0\x04MQTT\x05\x02\0\x0A\x05\x27\0\0\0\x16\0\x01c");
    script.subscribe(b"t", 1);
    let mut large = publish(b"t", 1);
    large.body = Bytes::from(vec![b'x'; 15]);
    script.deliver(1, true, &large);
    assert_eq!(script.sent(), b"");
    assert_eq!(script.settled(), [1]);
    large.body = Bytes::from(vec![b'x'; 14]);
    script.deliver(2, true, &large);
    assert_eq!(script.sent().len(), 22);
    let mut tiny = Script::new(Config::default());
    tiny.send(b"\x10\x13\0\x04MQTT\x05\x02\0\x0A\x05\x27\0\0\0\x02\0\x01c");
    tiny.accept(false);
    tiny.expect_closed(b"");
}

#[test]
fn messages_of_other_protocols_get_a_topic_and_properties() {
    let mut builder = AttributesBuilder::default();
    for (name, value) in [
        (Name::Known(Attribute::ContentType), Value::Text(&b"j"[..])),
        (Name::Known(Attribute::CorrelationId), Value::Text(b"c")),
        (Name::Known(Attribute::ReplyTo), Value::Text(b"r")),
        (Name::Known(Attribute::MessageId), Value::Text(b"m")),
        (Name::Known(Attribute::TimeToLive), Value::Uint(1500)),
        (Name::User(b"n"), Value::Int(-5)),
        (Name::User(b"b"), Value::Binary(b"\xFF")),
        (Name::User(b"bad"), Value::Text(b"\xFF")),
    ] {
        builder.put(name, value);
    }
    let mut foreign = publish(b"", 0);
    foreign.topic = Bytes::from_static(b"T|2Ex");
    foreign.key = Bytes::from_static(b"b.c/d");
    foreign.format = Format(1);
    foreign.attributes = builder.finish();
    let mut script = Script::connected(CONNECT_5);
    script.subscribe(b"#", 1);
    script.deliver(1, true, &foreign);
    let properties = [
        &b"\x03\0\x01j\x09\0\x01c\x08\0\x08$queue/r\x26\0\x0Amessage-id\0\x01m\x02\0\0\0\x02"[..],
        b"\x26\0\x01n\0\x02-5\x26\0\x01b\0\x02ff",
    ]
    .concat();
    let mut expected = vec![0x32, 0, 0, 9];
    expected.extend(b"T.x/b/c.d\0\x01");
    expected.push(properties.len() as u8);
    expected.extend(&properties);
    expected.push(b'x');
    expected[1] = expected.len() as u8 - 2;
    assert_eq!(script.sent(), expected);
    // An old client gets no properties.
    let mut script = Script::connected(CONNECT_4);
    script.subscribe(b"#", 0);
    script.deliver(1, false, &foreign);
    assert_eq!(script.sent(), b"\x30\x0C\0\x09T.x/b/c.dx");
    // Reply-to that is no topic name stays a user property.
    let mut builder = AttributesBuilder::default();
    builder.text(Attribute::ReplyTo, b"#");
    foreign.attributes = builder.finish();
    let mut script = Script::connected(CONNECT_5);
    script.subscribe(b"#", 0);
    script.deliver(1, false, &foreign);
    assert!(script.sent().ends_with(b"\x26\0\x08reply-to\0\x01#x"));
}

#[test]
fn what_is_published_below_queue_goes_straight_to_a_queue() {
    let mut script = Script::connected(CONNECT_5);
    // Retained, QoS 1, with a response topic that is a queue.
    script.send(b"\x33\x1F\0\x08$queue/a\0\x07\x11\x08\0\x0E$queue/repliesx");
    let published = script.publishes();
    let [publish] = &published[..] else {
        panic!("{published:?}")
    };
    let entered = (publish.entry, &publish.topic[..], &publish.key[..], publish.retain);
    assert_eq!(entered, (Entry::Queue, &b"a"[..], &b""[..], false));
    let attributes: Vec<_> = publish.attributes.iter().collect();
    assert_eq!(attributes, [(Name::Known(Attribute::ReplyTo), Value::Text(b"replies"))]);
}

#[test]
fn addresses_without_mqtt_form_are_done_with() {
    let mut script = Script::connected(CONNECT_4);
    script.subscribe(b"#", 1);
    for (topic, key) in [
        (&b"T"[..], &b"a.+"[..]),
        (b"T", b"#"),
        (b"T", b"\0"),
        (b"T", b"\xFF"),
        (b"T", b"a\x01"),
        (b"a|2Fb", b""),
        (b"|2B", b""),
    ] {
        let mut foreign = publish(b"", 0);
        foreign.topic = Bytes::copy_from_slice(topic);
        foreign.key = Bytes::copy_from_slice(key);
        foreign.format = Format(1);
        script.deliver(7, true, &foreign);
        assert_eq!(script.sent(), b"", "{}", key.escape_ascii());
        assert_eq!(script.settled(), [7]);
    }
    let mut long = publish(b"", 0);
    long.topic = Bytes::from_static(b"T");
    long.key = Bytes::from(vec![b'k'; 65_534]);
    long.format = Format(1);
    script.deliver(8, false, &long);
    assert_eq!(script.sent(), b"");
}

#[test]
fn a_large_payload_is_sent_whole() {
    let mut script = Script::connected(CONNECT_4);
    script.subscribe(b"t", 0);
    let mut large = publish(b"t", 0);
    large.body = Bytes::from(vec![7; 100_000]);
    script.deliver(1, false, &large);
    script.deliver(2, false, &publish(b"t", 0));
    let mut expected = b"\x30\xA3\x8D\x06\0\x01t".to_vec();
    expected.extend(vec![7; 100_000]);
    expected.extend(b"\x30\x04\0\x01tx");
    assert_eq!(script.sent(), expected);
}

// --- the end ----------------------------------------------------------------------------------

#[test]
fn the_server_says_goodbye_in_version_5() {
    for (connect, event, goodbye) in [
        (CONNECT_5, Notice::HolderTaken, &b"\xE0\x01\x8E"[..]),
        (CONNECT_4, Notice::HolderTaken, b""),
        (CONNECT_5, Notice::SubscriptionEnded(SubscriptionId(1)), b"\xE0\x01\x98"),
    ] {
        let mut script = Script::connected(connect);
        script.event(Event::Notice(event));
        script.expect_closed(goodbye);
    }
    let mut script = Script::connected(CONNECT_5);
    script.shut_down();
    script.expect_closed(b"\xE0\x01\x8B");
    let mut script = Script::connected(CONNECT_5);
    script.end_of_input();
    script.expect_closed(b"");
}

/// [MQTT-3.14.4-1]
#[test]
fn nothing_is_heard_after_disconnect() {
    let mut script = Script::connected(CONNECT_4);
    script.subscribe(b"t", 0);
    script.send(b"\xE0\0\xC0\0\x30\x03\0\x01t");
    script.expect_closed(b"");
    assert!(script.publishes().is_empty());
    script.event(Event::Delivery(delivery(1, false, &publish(b"t", 0))));
    assert_eq!(script.sent(), b"");
}

/// 5.0, 3.14.2.2.2
#[test]
fn disconnect_may_change_the_session_expiry() {
    let mut script = Script::connected(b"\x10\x13\0\x04MQTT\x05\x02\0\x0A\x05\x11\0\0\0\x3C\0\x01c");
    script.send(b"\xE0\x07\0\x05\x11\0\0\0\x05");
    assert!(matches!(
        &script.requests()[..],
        [(_, Request::Detach { keep: Millis(5000), .. })]
    ));
    script.expect_closed(b"");
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\xE0\x07\0\x05\x11\0\0\0\x05");
    assert!(script.requests().is_empty());
    script.expect_closed(b"\xE0\x01\x82");
}

#[test]
fn protocol_errors_end_the_connection_with_their_code() {
    for (packet, code) in [
        (&b"\x30\x03\0\0\0"[..], 0x81),
        (b"\x36\x05\0\x01t\0\x01", 0x81),
        (CONNECT_5, 0x82),
        (b"\x32\x06\0\x01t\0\0\0", 0x82),
        (b"\x40\x03\0\x01\xFF", 0x82),
    ] {
        let mut script = Script::connected(CONNECT_5);
        script.send(packet);
        script.expect_closed(&[0xE0, 1, code]);
        let mut old = Script::connected(CONNECT_4);
        old.send(packet);
        old.expect_closed(b"");
    }
}
