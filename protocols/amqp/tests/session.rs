//! Scripts of a connection: bytes in, frames and orders expected, what core says in, time moved by hand.

mod script;

use rocketbridge_amqp::codec::{Method, Properties, ShortStr, Table, TableWriter, Value};
use rocketbridge_core::attributes::{Attribute, Name, Value as Neutral};
use rocketbridge_core::boundary::{Fate, Notice, Reject, Settle, Shortage};
use rocketbridge_core::message::Entry;
use rocketbridge_core::request::{Acknowledge, ExchangeKind, Matcher, Refusal, Reply, Request, Source};
use rocketbridge_core::time::Millis;

use script::*;

// --- the beginning -------------------------------------------------------------------------------

#[test]
fn a_wrong_protocol_header_is_answered_with_ours_and_the_end() {
    for header in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"AMQP\x03\x01\x00\x00",
        b"AMQP\x00\x00\x08\x00",
        b"\x16\x03\x01",
    ] {
        let mut script = Script::new();
        script.bytes(header);
        assert_eq!(script.sent(), b"AMQP\x00\x00\x09\x01");
        assert!(script.out.is_closing(), "{header:?}");
    }
}

#[test]
fn a_protocol_header_may_come_octet_by_octet() {
    let mut script = Script::new();
    for octet in b"AMQP\x00\x00\x09\x01" {
        assert_eq!(script.sent(), b"");
        script.bytes(&[*octet]);
    }
    let sent = script.sent();
    let frames = frames(&sent);
    let Method::ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties,
        mechanisms,
        ..
    } = frames[0].method()
    else {
        panic!("{frames:?}")
    };
    assert_eq!(mechanisms.0, b"PLAIN AMQPLAIN");
    let text = |name: &[u8]| server_properties.get(name);
    assert_eq!(text(b"product"), Some(Value::LongStr(b"RocketBridge")));
    assert_eq!(
        text(b"version"),
        Some(Value::LongStr(env!("CARGO_PKG_VERSION").as_bytes()))
    );
    let Some(Value::Table(capabilities)) = text(b"capabilities") else {
        panic!("no capabilities")
    };
    assert_eq!(capabilities.iter().count(), 9);
    assert!(
        capabilities
            .iter()
            .all(|entry| entry.expect("well-formed").1 == Value::Bool(true))
    );
}

#[test]
fn login_is_cores_to_decide_and_a_refusal_is_403_for_clients_that_know_it() {
    for knows_it in [true, false] {
        let mut script = Script::new();
        script.bytes(b"AMQP\x00\x00\x09\x01");
        script.sent();
        let mut capabilities = TableWriter::default();
        capabilities.put(b"authentication_failure_close", Value::Bool(knows_it));
        let mut properties = TableWriter::default();
        properties.put(b"capabilities", Value::Table(capabilities.table()));
        script.method(0, &start_ok(properties.table(), b"PLAIN", b"\0guest\0wrong"));
        let (id, request) = script.request();
        assert!(matches!(request, Request::Login(_)));
        script.reply(id, Err(Refusal::AccessRefused));
        if knows_it {
            script.expect_connection_close(
                403,
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker \
                 logfile.",
            );
        } else {
            assert_eq!(script.sent(), b"");
            assert!(!script.out.is_closing(), "a client that guesses waits");
            script.pass(Millis::from_secs(3));
            assert!(script.out.is_closing());
        }
    }
}

#[test]
fn a_mechanism_that_was_not_offered_is_503() {
    let mut script = Script::new();
    script.bytes(b"AMQP\x00\x00\x09\x01");
    script.sent();
    script.method(0, &start_ok(Table::default(), b"EXTERNAL", b""));
    script.expect_connection_close(503, "COMMAND_INVALID - unknown authentication mechanism 'EXTERNAL'");
}

#[test]
fn a_handshake_that_takes_ten_seconds_is_ended() {
    let mut script = Script::new();
    script.bytes(b"AMQP\x00\x00\x09\x01");
    script.pass(Millis(9_999));
    assert!(!script.out.is_closing());
    script.pass(Millis(1));
    assert!(script.out.is_closing());
}

#[test]
fn limits_out_of_bounds_are_530() {
    let mut script = Script::new();
    script.login();
    script.method(
        0,
        &Method::ConnectionTuneOk {
            channel_max: 2047,
            frame_max: 131_073,
            heartbeat: 60,
        },
    );
    script.expect_connection_close(
        530,
        "NOT_ALLOWED - negotiated frame_max = 131073 is higher than the maximum allowed value (131072)",
    );
}

#[test]
fn only_one_virtual_host_exists() {
    for (virtual_host, exists) in [(&b"/"[..], true), (b"", true), (b"nope", false)] {
        let mut script = Script::new();
        script.login();
        script.method(0, &tune_ok(4096, 0));
        script.method(
            0,
            &Method::ConnectionOpen {
                virtual_host: ShortStr(virtual_host),
                capabilities: ShortStr(b""),
                insist: false,
            },
        );
        if exists {
            script.expect(&[(0, "connection.open-ok")]);
        } else {
            script.expect_connection_close(530, "NOT_ALLOWED - vhost nope not found");
        }
    }
}

#[test]
fn the_connection_limits_that_were_negotiated_hold() {
    let mut script = Script::new();
    script.login();
    script.method(
        0,
        &Method::ConnectionTuneOk {
            channel_max: 2,
            frame_max: 4096,
            heartbeat: 0,
        },
    );
    script.open();
    // Numbers need not follow each other.
    script.open_channel(7);
    script.open_channel(60_000);
    script.method(3, &channel_open());
    script.expect_connection_close(
        530,
        "NOT_ALLOWED - number of channels opened (2) has reached the negotiated channel_max (2)",
    );
}

// --- frames ----------------------------------------------------------------------------------------

#[test]
fn a_frame_that_claims_4_gib_is_refused_from_its_header_at_once() {
    let mut script = Script::opened();
    script.bytes(b"\x03\x00\x01\xff\xff\xff\xff");
    script.expect_connection_close(
        501,
        "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,4294967295,131064}",
    );
    // Nothing that follows is looked at, until the end.
    script.method(0, &Method::ConnectionCloseOk {});
    assert!(!script.out.is_closing());
    script.pass(Millis::from_secs(3));
    assert!(script.out.is_closing());
}

#[test]
fn before_tune_a_frame_has_8192_octets_and_eight_are_forgiven() {
    for (size, fits) in [(8192u32, true), (8193, false)] {
        let mut script = Script::new();
        script.bytes(b"AMQP\x00\x00\x09\x01");
        script.sent();
        let mut header = vec![1, 0, 0];
        header.extend_from_slice(&size.to_be_bytes());
        script.bytes(&header);
        assert_eq!(script.sent().is_empty(), fits, "{size}");
    }
}

#[test]
fn a_frame_that_does_not_end_with_ce_is_501() {
    let mut script = Script::opened();
    script.bytes(b"\x08\x00\x00\x00\x00\x00\x00\xcd");
    script.expect_connection_close(
        501,
        "FRAME_ERROR - type 8, all octets = <<>>: {invalid_frame_end_marker,205}",
    );
}

#[test]
fn frames_that_no_state_allows_end_the_connection() {
    for (bytes, code) in [
        (&b"\x09\x00\x00\x00\x00\x00\x00\xce"[..], 501),
        (b"\x08\x00\x01\x00\x00\x00\x00\xce", 505),
        (b"\x03\x00\x00\x00\x00\x00\x01x\xce", 505),
        // A method that nobody knows, one with fields cut short, and one that only servers send.
        (b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\xc8\xce", 503),
        (b"\x01\x00\x01\x00\x00\x00\x05\x00\x3c\x00\x50\x00\xce", 501),
        (b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x0b\xce", 503),
        // A method of class channel on channel 0.
        (b"\x01\x00\x00\x00\x00\x00\x05\x00\x14\x00\x0a\x00\xce", 504),
    ] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.bytes(bytes);
        assert_eq!(script.close_code(), code, "{bytes:?}");
    }
}

#[test]
fn a_nested_table_bomb_is_502() {
    let mut bomb = Vec::new();
    for _ in 0..18_000 {
        let mut outer = vec![0, b'F'];
        outer.extend_from_slice(&(bomb.len() as u32).to_be_bytes());
        outer.extend_from_slice(&bomb);
        bomb = outer;
    }
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &queue_declare(b"q", Table::new(&bomb)));
    assert_eq!(script.close_code(), 502);
    let mut script = Script::opened();
    script.open_channel(1);
    let properties = [&b"\x20\x00"[..], &(bomb.len() as u32).to_be_bytes(), &bomb].concat();
    script.publish(1, b"", b"q", &properties, b"");
    assert_eq!(script.close_code(), 502);
}

// --- channels ----------------------------------------------------------------------------------------

#[test]
fn a_channel_is_opened_once_and_first() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &channel_open());
    script.expect_connection_close(504, "CHANNEL_ERROR - second 'channel.open' seen");
    let mut script = Script::opened();
    script.method(1, &Method::ConfirmSelect { no_wait: false });
    script.expect_connection_close(504, "CHANNEL_ERROR - expected 'channel.open'");
}

#[test]
fn methods_that_are_not_built_end_the_connection_with_540() {
    for method in [
        Method::ChannelFlow { active: false },
        Method::BasicRecover { requeue: false },
        Method::BasicQos {
            prefetch_size: 10,
            prefetch_count: 0,
            global: false,
        },
        Method::BasicPublish {
            ticket: 0,
            exchange: ShortStr(b""),
            routing_key: ShortStr(b"q"),
            mandatory: false,
            immediate: true,
        },
    ] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.method(1, &method);
        assert_eq!(script.close_code(), 540, "{method:?}");
    }
}

#[test]
fn after_a_channel_error_everything_but_the_end_is_discarded_on_that_channel_alone() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.open_channel(2);
    script.publish(1, b"gone", b"k", b"\x00\x00", b"x");
    script.meet("gone");
    script.publish(1, b"gone", b"k", b"\x00\x00", b"x");
    assert_eq!(script.published().len(), 2);
    script.outcome(0, 2, Fate::Rejected(Reject::NoExchange));
    script.expect_channel_close(1, 404, "NOT_FOUND - no exchange 'gone' in vhost '/'", (60, 40));
    script.publish(1, b"", b"q", b"\x00\x00", b"swallowed");
    script.method(1, &Method::ConfirmSelect { no_wait: false });
    script.method(1, &ack(77, false));
    assert_eq!(script.sent(), b"");
    assert!(script.published().is_empty());
    // The other channel goes on.
    script.method(2, &Method::ConfirmSelect { no_wait: false });
    script.expect(&[(2, "confirm.select-ok")]);
    // The number is free after close-ok.
    script.method(1, &Method::ChannelCloseOk {});
    script.open_channel(1);
}

#[test]
fn what_follows_a_publish_to_a_missing_exchange_does_not_count() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.open_channel(2);
    script.publish(1, b"", b"q", b"\x00\x00", b"counts");
    script.publish(1, b"missing", b"k", b"\x00\x00", b"x");
    script.publish(1, b"", b"q", b"\x00\x00", b"does not");
    script.publish(2, b"", b"q", b"\x00\x00", b"other channel");
    let (id, request) = script.request();
    assert!(matches!(request, Request::FindExchange { name } if name == "missing"));
    script.reply(id, Err(not_found("exchange", b"missing")));
    script.expect_channel_close(1, 404, "NOT_FOUND - no exchange 'missing' in vhost '/'", (60, 40));
    let bodies: Vec<_> = script.published().into_iter().map(|publish| publish.body).collect();
    assert_eq!(bodies, ["counts", "other channel"]);
}

#[test]
fn closing_a_channel_ends_its_consumers_and_gives_back_what_it_had() {
    let mut script = Script::opened();
    script.open_channel(1);
    let subscription = script.consume(1, b"q", b"ct");
    script.deliver(subscription, 5, true);
    script.expect(&[(1, "basic.deliver"), (1, "header"), (1, "body")]);
    script.method(1, &channel_close());
    let (id, request) = script.request();
    assert!(matches!(request, Request::Unsubscribe { subscription: s } if s == subscription));
    assert_eq!(script.settled(), [settled(subscription, 5, 1, Settle::Release)]);
    // What was on its way goes back too, and close-ok comes last.
    script.deliver(subscription, 6, true);
    assert_eq!(script.settled(), [settled(subscription, 6, 1, Settle::Release)]);
    assert_eq!(script.sent(), b"");
    script.reply(id, Ok(Reply::Done));
    script.expect(&[(1, "channel.close-ok")]);
}

#[test]
fn an_answer_that_needs_no_request_does_not_overtake_one_that_does() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.open_channel(2);
    script.method(1, &queue_declare(b"q", Table::default()));
    script.method(1, &qos(10));
    script.method(1, &ack(99, false));
    // Other channels do not wait.
    script.method(2, &qos(10));
    script.expect(&[(2, "basic.qos-ok")]);
    let (id, request) = script.request();
    script.reply(id, Ok(declared(&request)));
    let sent = script.sent();
    let frames = frames(&sent);
    let names: Vec<_> = frames.iter().map(Frame::name).collect();
    assert_eq!(names, ["queue.declare-ok", "basic.qos-ok", "channel.close"]);
}

#[test]
fn shutdown_is_told_as_320_and_waits_for_close_ok() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.shutdown();
    script.expect_connection_close(
        320,
        "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
    );
    script.method(1, &qos(1));
    assert_eq!(script.sent(), b"");
    assert!(!script.out.is_closing());
    script.method(0, &Method::ConnectionCloseOk {});
    assert!(script.out.is_closing());
}

#[test]
fn a_peer_that_never_answers_close_is_dropped() {
    let mut script = Script::opened();
    script.shutdown();
    script.sent();
    script.pass(Millis::from_secs(4));
    assert!(!script.out.is_closing());
    script.pass(Millis::from_secs(1));
    assert!(script.out.is_closing());
}

#[test]
fn the_client_may_close_at_any_time() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(
        0,
        &Method::ConnectionClose {
            reply_code: 200,
            reply_text: ShortStr(b"bye"),
            class_id: 0,
            method_id: 0,
        },
    );
    script.expect(&[(0, "connection.close-ok")]);
    assert!(script.out.is_closing());
}

// --- heartbeats -----------------------------------------------------------------------------------

#[test]
fn a_heartbeat_goes_out_every_half_interval() {
    let mut script = Script::opened_with(4096, 10);
    for _ in 0..3 {
        script.bytes(HEARTBEAT);
        script.pass(Millis(4_999));
        assert_eq!(script.sent(), b"");
        script.pass(Millis(1));
        assert_eq!(script.sent(), HEARTBEAT);
    }
}

#[test]
fn a_peer_that_is_silent_for_two_intervals_is_dropped() {
    let mut script = Script::opened_with(4096, 10);
    script.pass(Millis(15_000));
    script.bytes(HEARTBEAT);
    script.pass(Millis(19_999));
    assert!(!script.out.is_closing());
    script.pass(Millis(1));
    assert!(script.out.is_closing());
}

#[test]
fn a_peer_that_nobody_reads_is_not_called_silent() {
    let mut script = Script::opened_with(4096, 10);
    script.open_channel(1);
    script.publish(1, b"", b"q", b"\x00\x00", b"held back");
    // The order is not carried out: core takes no more.
    for _ in 0..10 {
        script.pass(Millis(5_000));
    }
    assert!(!script.out.is_closing());
    script.published();
    script.pass(Millis(20_000));
    assert!(script.out.is_closing());
}

#[test]
fn without_a_heartbeat_nothing_is_due() {
    let script = Script::opened_with(4096, 0);
    assert_eq!(script.session_timeout(), None);
}

// --- publishing -------------------------------------------------------------------------------------

#[test]
fn a_publish_keeps_its_address_and_its_octets() {
    let mut script = Script::opened();
    script.open_channel(1);
    let properties = b"\x90\x00\x03a/b\x02";
    script.publish(1, b"events", b"a.b", properties, b"hello");
    script.meet("events");
    script.publish(1, b"", b"jobs.eu", b"\x00\x00", b"");
    script.publish(1, b"amq.topic", b"a.b.c", b"\x00\x00", b"x");
    let published = script.published();
    let [event, job, topic] = &published[..] else {
        panic!("{published:?}")
    };
    assert_eq!(
        (event.entry, &event.topic[..], &event.key[..]),
        (Entry::Exchange, &b"events"[..], &b"a.b"[..])
    );
    assert!(event.persistent && !job.persistent);
    assert_eq!(event.body, "hello");
    assert_eq!(event.origin[..], [&b"\x06events\x03a.b"[..], properties].concat());
    assert_eq!(
        (job.entry, &job.topic[..], &job.key[..]),
        (Entry::Queue, &b"jobs|2Eeu"[..], &b""[..])
    );
    assert_eq!(
        (topic.entry, &topic.topic[..], &topic.key[..]),
        (Entry::Topic, &b"a"[..], &b"b.c"[..])
    );
    assert_eq!([event.token, job.token, topic.token], [0, 1, 2]);
}

#[test]
fn content_may_come_in_any_pieces_and_between_other_channels_frames() {
    let mut all = Vec::new();
    all.extend(method_frame(1, &publish_method(b"amq.direct", b"one")));
    all.extend(method_frame(2, &publish_method(b"amq.direct", b"two")));
    all.extend(header_frame(2, 60, 6, b"\x00\x00"));
    all.extend(header_frame(1, 60, 5, b"\x00\x00"));
    all.extend(body_frame(1, b"he"));
    all.extend(body_frame(2, b"wor"));
    all.extend(body_frame(1, b"llo"));
    all.extend(body_frame(2, b"ld!"));
    for step in [1, 2, 3, 7, 20, all.len()] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.open_channel(2);
        all.chunks(step).for_each(|piece| script.bytes(piece));
        let published = script.published();
        let bodies: Vec<_> = published.iter().map(|p| (&p.key[..], &p.body[..])).collect();
        assert_eq!(
            bodies,
            [(&b"one"[..], &b"hello"[..]), (b"two", b"world!")],
            "{step} octets at a time"
        );
        assert_eq!(published[0].origin[..], b"\x0aamq.direct\x03one\x00\x00"[..]);
    }
}

#[test]
fn content_frames_out_of_order_are_505() {
    let publish = || method_frame(1, &publish_method(b"", b"q"));
    let header = |size| header_frame(1, 60, size, b"\x00\x00");
    for (frames, code, text) in [
        (
            vec![header(1)],
            505,
            "UNEXPECTED_FRAME - expected method frame, got non method frame instead",
        ),
        (
            vec![body_frame(1, b"x")],
            505,
            "UNEXPECTED_FRAME - expected method frame, got non method frame instead",
        ),
        (
            vec![publish(), body_frame(1, b"x")],
            505,
            "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead",
        ),
        (
            vec![publish(), publish()],
            505,
            "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead",
        ),
        (
            vec![publish(), header_frame(1, 50, 1, b"\x00\x00")],
            505,
            "UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead",
        ),
        (
            vec![publish(), header(1), header(1)],
            505,
            "UNEXPECTED_FRAME - expected content body, got non content body frame instead",
        ),
        (
            vec![publish(), header(1), method_frame(1, &qos(1))],
            505,
            "UNEXPECTED_FRAME - expected content body, got non content body frame instead",
        ),
        (
            vec![publish(), header(1), body_frame(1, b"xy")],
            501,
            "FRAME_ERROR - content body frame exceeds remaining content size",
        ),
    ] {
        let mut script = Script::opened();
        script.open_channel(1);
        frames.iter().for_each(|frame| script.bytes(frame));
        script.expect_connection_close(code, text);
        assert!(script.published().is_empty());
    }
}

#[test]
fn a_message_over_16_mib_ends_the_channel_and_its_body_is_swallowed() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.bytes(&method_frame(1, &publish_method(b"", b"q")));
    script.bytes(&header_frame(1, 60, (16 << 20) + 1, b"\x00\x00"));
    script.expect_channel_close(
        1,
        406,
        "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216",
        (60, 40),
    );
    script.bytes(&body_frame(1, b"x"));
    assert_eq!(script.sent(), b"");
}

#[test]
fn a_copy_is_confirmed_like_the_message_it_is_a_copy_of() {
    let mut script = Script::opened();
    script.open_channel(1);
    let mut arguments = TableWriter::default();
    arguments.put(b"x-cache-size", Value::Int(9));
    script.method(
        1,
        &Method::ExchangeDeclare {
            ticket: 0,
            exchange: ShortStr(b"e"),
            kind: ShortStr(b"x-message-deduplication"),
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            no_wait: false,
            arguments: arguments.table(),
        },
    );
    let (_, request) = script.request();
    let Request::DeclareExchange(exchange) = request else {
        panic!("{request:?}")
    };
    let dedup = exchange.dedup.as_ref().unwrap();
    assert_eq!((exchange.kind, dedup.keys_max), (ExchangeKind::Fanout, 9));
    assert_eq!(dedup.property, "x-deduplication-header");

    let mut script = Script::opened();
    script.open_channel(1);
    script.confirm_select(1);
    script.publish(1, b"e", b"k", b"\x00\x00", b"body");
    script.meet("e");
    let Fate::Stored(first) = stored(1) else { unreachable!() };
    script.events(vec![outcome(0, 1, Fate::Duplicate(first))]);
    let sent = script.sent();
    assert_eq!(frames(&sent).iter().map(Frame::name).collect::<Vec<_>>(), ["basic.ack"]);
}

#[test]
fn a_returned_message_precedes_its_confirm() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.confirm_select(1);
    script.publish(1, b"e", b"k", b"\x80\x00\x03a/b", b"body");
    script.meet("e");
    let published = script.published();
    script.events(vec![returned(&published[0]), outcome(0, 1, stored(0))]);
    let sent = script.sent();
    let frames = frames(&sent);
    let names: Vec<_> = frames.iter().map(Frame::name).collect();
    assert_eq!(names, ["basic.return", "header", "body", "basic.ack"]);
    let Method::BasicReturn {
        reply_code: 312,
        reply_text: ShortStr(b"NO_ROUTE"),
        exchange: ShortStr(b"e"),
        routing_key: ShortStr(b"k"),
    } = frames[0].method()
    else {
        panic!("{frames:?}")
    };
    assert!(frames[1].payload.ends_with(b"\x80\x00\x03a/b"));
    assert_eq!(frames[2].payload, b"body");
}

/// lapin takes the next confirm after a return for the returned message's.
#[test]
fn a_return_and_its_confirm_are_neighbours_whatever_else_is_confirmed() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.confirm_select(1);
    for _ in 0..4 {
        script.publish(1, b"", b"q", b"\x00\x00", b"x");
    }
    let published = script.published();
    // 2 and 3 come back; the disk is done with all four at once.
    script.events(vec![returned(&published[1]), returned(&published[2])]);
    script.events(vec![outcome(0, 4, stored(0))]);
    let sent = script.sent();
    let told: Vec<_> = frames(&sent)
        .iter()
        .filter(|frame| frame.name().starts_with("basic."))
        .map(|frame| match frame.method() {
            Method::BasicAck { delivery_tag, multiple } => format!("ack {delivery_tag} {multiple}"),
            _ => frame.name().to_owned(),
        })
        .collect();
    assert_eq!(
        told,
        [
            "ack 1 false",
            "basic.return",
            "ack 2 false",
            "basic.return",
            "ack 3 false",
            "ack 4 false"
        ]
    );
}

#[test]
fn confirms_are_merged_only_where_every_lower_tag_is_settled() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.open_channel(2);
    script.confirm_select(1);
    script.publish(1, b"", b"q", b"\x00\x00", b"1");
    script.publish(2, b"", b"q", b"\x00\x00", b"unconfirmed");
    for _ in 0..3 {
        script.publish(1, b"", b"q", b"\x00\x00", b"x");
    }
    let tokens: Vec<_> = script.published().iter().map(|p| p.token).collect();
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
    script.events(vec![outcome(3, 1, stored(1)), outcome(0, 1, stored(1))]);
    assert_eq!(script.confirms(), ["1 ack 1", "1 ack 3"]);
    script.events(vec![outcome(1, 2, stored(1)), outcome(4, 1, stored(1))]);
    assert_eq!(script.confirms(), ["1 ack 4*"]);
}

#[test]
fn a_rejected_message_is_nacked() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.confirm_select(1);
    for _ in 0..3 {
        script.publish(1, b"", b"q", b"\x00\x00", b"x");
    }
    script.published();
    let full = Fate::Rejected(Reject::QueueFull);
    script.events(vec![
        outcome(0, 1, stored(1)),
        outcome(1, 1, full),
        outcome(2, 1, stored(1)),
    ]);
    assert_eq!(script.confirms(), ["1 ack 1", "1 nack 2", "1 ack 3"]);
}

#[test]
fn publishing_to_an_internal_exchange_is_403() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.publish(1, b"inner", b"", b"\x00\x00", b"");
    script.meet("inner");
    script.published();
    script.outcome(0, 1, Fate::Rejected(Reject::InternalExchange));
    script.expect_channel_close(
        1,
        403,
        "ACCESS_REFUSED - cannot publish to internal exchange 'inner' in vhost '/'",
        (60, 40),
    );
}

#[test]
fn outcomes_of_a_channel_that_was_opened_again_are_not_the_new_ones() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.confirm_select(1);
    script.publish(1, b"", b"q", b"\x00\x00", b"old");
    script.method(1, &channel_close());
    script.expect(&[(1, "channel.close-ok")]);
    script.open_channel(1);
    script.confirm_select(1);
    script.publish(1, b"", b"q", b"\x00\x00", b"new");
    script.published();
    script.events(vec![outcome(0, 1, Fate::Rejected(Reject::NoExchange))]);
    assert_eq!(script.sent(), b"");
    script.events(vec![outcome(1, 1, stored(1))]);
    assert_eq!(script.confirms(), ["1 ack 1"]);
}

// --- consuming --------------------------------------------------------------------------------------

#[test]
fn consume_ok_precedes_the_first_delivery_and_cancel_ok_follows_the_last() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &consume(b"q", b"ct", false));
    let (id, request) = script.request();
    let Request::Subscribe(subscribe) = request else {
        panic!("{request:?}")
    };
    assert_eq!((subscribe.acknowledge, subscribe.window), (Acknowledge::Always, None));
    script.events(vec![
        reply(id, Ok(Reply::Done)),
        delivery(subscribe.subscription, 1, true),
    ]);
    script.expect(&[
        (1, "basic.consume-ok"),
        (1, "basic.deliver"),
        (1, "header"),
        (1, "body"),
    ]);
    script.method(
        1,
        &Method::BasicCancel {
            consumer_tag: ShortStr(b"ct"),
            no_wait: false,
        },
    );
    let (id, _) = script.request();
    script.events(vec![
        delivery(subscribe.subscription, 2, true),
        reply(id, Ok(Reply::Done)),
    ]);
    script.expect(&[(1, "basic.deliver"), (1, "header"), (1, "body"), (1, "basic.cancel-ok")]);
    // What was delivered may still be settled.
    script.method(1, &ack(2, true));
    assert_eq!(script.settled(), [settled(subscribe.subscription, 1, 2, Settle::Ack)]);
}

#[test]
fn an_unknown_consumer_is_cancelled_already() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(
        1,
        &Method::BasicCancel {
            consumer_tag: ShortStr(b"nobody"),
            no_wait: false,
        },
    );
    script.expect(&[(1, "basic.cancel-ok")]);
}

#[test]
fn a_consumer_tag_names_one_consumer() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.consume(1, b"q", b"ct");
    script.method(1, &consume(b"q", b"ct", false));
    script.expect_connection_close(530, "NOT_ALLOWED - attempt to reuse consumer tag 'ct'");
}

#[test]
fn a_key_of_the_default_exchange_can_mean_a_topic() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.confirm_select(1);
    for (exchange, key, entered) in [
        (&b""[..], &b"amq.topic/resp.me"[..], (Entry::Topic, "resp", "me")),
        (b"", b"amq.topic/resp.me/x", (Entry::Topic, "resp", "me/x")),
        (b"", b"amq.topic/", (Entry::Topic, "|-", "")),
        (b"", b"amq.topic", (Entry::Queue, "amq|2Etopic", "")),
        (
            b"amq.fanout",
            b"amq.topic/a",
            (Entry::Exchange, "amq|2Efanout", "amq.topic/a"),
        ),
    ] {
        script.publish(1, exchange, key, b"\x00\x00", b"x");
        let published = script.published();
        let [publish] = &published[..] else {
            panic!("{published:?}")
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let is = (publish.entry, text(&publish.topic), text(&publish.key));
        assert_eq!(is, (entered.0, entered.1.to_owned(), entered.2.to_owned()));
        assert!(publish.mandatory);
    }
    script.outcome(0, 5, stored(1));
    assert_eq!(script.confirms(), ["1 ack 5*"]);
}

#[test]
fn a_reply_to_that_is_a_topic_is_told_as_one() {
    let mut script = Script::opened();
    script.open_channel(1);
    for (reply_to, expected) in [
        (&b"amq.topic/resp.me"[..], (Attribute::ReplyTopic, &b"resp/me"[..])),
        (b"replies", (Attribute::ReplyTo, b"replies")),
        (b"amq.topic/a/b.c", (Attribute::ReplyTo, b"amq.topic/a/b.c")),
    ] {
        let mut properties = bytes::BytesMut::new();
        Properties {
            reply_to: Some(reply_to),
            ..Properties::default()
        }
        .encode(&mut properties);
        script.publish(1, b"", b"q", &properties, b"x");
        let published = script.published();
        let found: Vec<_> = published[0].attributes.iter().collect();
        assert_eq!(found, [(Name::Known(expected.0), Neutral::Text(expected.1))]);
    }
}

#[test]
fn a_queue_of_a_session_is_refused_to_every_method() {
    let q = b"\0victim";
    let table = Table::default;
    let passive = |name| match queue_declare(name, table()) {
        Method::QueueDeclare { queue, arguments, .. } => Method::QueueDeclare {
            ticket: 0,
            queue,
            passive: true,
            durable: false,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments,
        },
        other => other,
    };
    let queue = ShortStr(q);
    for (method, blamed) in [
        (passive(q), (50, 10)),
        (queue_declare(q, table()), (50, 10)),
        (queue_bind(q, b"amq.fanout", b"", table()), (50, 20)),
        (
            Method::QueueUnbind {
                ticket: 0,
                queue,
                exchange: ShortStr(b"amq.fanout"),
                routing_key: ShortStr(b""),
                arguments: table(),
            },
            (50, 50),
        ),
        (
            Method::QueuePurge {
                ticket: 0,
                queue,
                no_wait: false,
            },
            (50, 30),
        ),
        (
            Method::QueueDelete {
                ticket: 0,
                queue,
                if_unused: false,
                if_empty: false,
                no_wait: false,
            },
            (50, 40),
        ),
        (consume(q, b"", false), (60, 20)),
        (
            Method::BasicGet {
                ticket: 0,
                queue,
                no_ack: true,
            },
            (60, 70),
        ),
    ] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.method(1, &method);
        let (id, _) = script.request();
        script.reply(id, Err(Refusal::AccessRefused));
        let text = "ACCESS_REFUSED - access to queue '\0victim' in vhost '/' refused for user 'guest'";
        script.expect_channel_close(1, 403, text, blamed);
    }
}

#[test]
fn consuming_in_vain_ends_the_channel() {
    for (refusal, code, text) in [
        (not_found("queue", b"q"), 404, "NOT_FOUND - no queue 'q' in vhost '/'"),
        (
            Refusal::InUse,
            403,
            "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use",
        ),
        (
            Refusal::Locked,
            405,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'. It could be originally \
             declared on another connection or the exclusive property value does not match that of the original declara",
        ),
    ] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.method(1, &consume(b"q", b"", false));
        let (id, _) = script.request();
        script.reply(id, Err(refusal));
        let sent = script.sent();
        let frames = frames(&sent);
        let Method::ChannelClose {
            reply_code, reply_text, ..
        } = frames[0].method()
        else {
            panic!("{frames:?}")
        };
        assert_eq!(reply_code, code);
        let cut = &text.as_bytes()[..text.len().min(255)];
        assert!(
            reply_text.0.starts_with(cut),
            "{:?}",
            String::from_utf8_lossy(reply_text.0)
        );
    }
}

#[test]
fn prefetch_counts_for_consumers_made_afterwards() {
    let mut script = Script::opened();
    script.open_channel(1);
    let window = |script: &mut Script, no_ack| {
        script.method(1, &consume(b"q", b"", no_ack));
        match script.request() {
            (_, Request::Subscribe(subscribe)) => (subscribe.acknowledge, subscribe.window),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(window(&mut script, false), (Acknowledge::Always, None));
    script.method(1, &qos(7));
    assert_eq!(window(&mut script, false), (Acknowledge::Always, Some(7)));
    assert_eq!(window(&mut script, true), (Acknowledge::Never, None));
}

#[test]
fn a_client_that_asked_for_it_hears_that_its_queue_is_gone() {
    for asked in [true, false] {
        let mut script = Script::new();
        let mut capabilities = TableWriter::default();
        capabilities.put(b"consumer_cancel_notify", Value::Bool(asked));
        let mut properties = TableWriter::default();
        properties.put(b"capabilities", Value::Table(capabilities.table()));
        script.login_with(properties.table());
        script.method(0, &tune_ok(4096, 0));
        script.open();
        script.open_channel(1);
        let subscription = script.consume(1, b"q", b"ct");
        script.events(vec![notice(Notice::SubscriptionEnded(subscription))]);
        let expected: &[(u16, &str)] = if asked { &[(1, "basic.cancel")] } else { &[] };
        script.expect(expected);
        // The tag is free again.
        script.consume(1, b"q", b"ct");
    }
}

#[test]
fn a_client_that_asked_for_it_hears_that_its_publishes_wait() {
    for asked in [true, false] {
        let mut script = Script::new();
        let mut capabilities = TableWriter::default();
        capabilities.put(b"connection.blocked", Value::Bool(asked));
        let mut properties = TableWriter::default();
        properties.put(b"capabilities", Value::Table(capabilities.table()));
        script.login_with(properties.table());
        script.method(0, &tune_ok(4096, 0));
        script.open();
        script.events(vec![notice(Notice::Blocked(Shortage::Disk))]);
        let expected: &[(u16, &str)] = if asked { &[(0, "connection.blocked")] } else { &[] };
        script.expect(expected);
        script.events(vec![notice(Notice::Unblocked)]);
        let expected: &[(u16, &str)] = if asked { &[(0, "connection.unblocked")] } else { &[] };
        script.expect(expected);
    }
}

#[test]
fn settling_costs_one_settlement_for_a_run_and_each_tag_settles_once() {
    let mut script = Script::opened();
    script.open_channel(1);
    let subscription = script.consume(1, b"q", b"ct");
    for sequence in 10..20 {
        script.deliver(subscription, sequence, true);
    }
    script.sent();
    script.method(1, &ack(4, true));
    assert_eq!(script.settled(), [settled(subscription, 10, 4, Settle::Ack)]);
    script.method(
        1,
        &Method::BasicNack {
            delivery_tag: 6,
            multiple: true,
            requeue: true,
        },
    );
    assert_eq!(script.settled(), [settled(subscription, 14, 2, Settle::Release)]);
    script.method(
        1,
        &Method::BasicReject {
            delivery_tag: 8,
            requeue: false,
        },
    );
    assert_eq!(script.settled(), [settled(subscription, 17, 1, Settle::Reject)]);
    script.method(1, &ack(0, true));
    let rest = [
        settled(subscription, 16, 1, Settle::Ack),
        settled(subscription, 18, 2, Settle::Ack),
    ];
    assert_eq!(script.settled(), rest);
    // Everything is settled, so all of nothing is fine, and one is not.
    script.method(1, &ack(0, true));
    assert_eq!(script.sent(), b"");
    script.method(1, &ack(4, false));
    script.expect_channel_close(1, 406, "PRECONDITION_FAILED - unknown delivery tag 4", (60, 80));
}

#[test]
fn recover_gives_back_everything_and_answers() {
    let mut script = Script::opened();
    script.open_channel(1);
    let subscription = script.consume(1, b"q", b"ct");
    script.deliver(subscription, 1, true);
    script.sent();
    script.method(1, &Method::BasicRecover { requeue: true });
    assert_eq!(script.settled(), [settled(subscription, 1, 1, Settle::Release)]);
    script.expect(&[(1, "basic.recover-ok")]);
}

#[test]
fn get_tells_how_many_are_left() {
    let mut script = Script::opened();
    script.open_channel(1);
    let get = Method::BasicGet {
        ticket: 0,
        queue: ShortStr(b"q"),
        no_ack: false,
    };
    script.method(1, &get);
    let (id, request) = script.request();
    let Request::Get { subscription, .. } = request else {
        panic!("{request:?}")
    };
    script.reply(id, Ok(got(subscription, 3, 4)));
    let sent = script.sent();
    let frames = frames(&sent);
    assert!(matches!(
        frames[0].method(),
        Method::BasicGetOk {
            delivery_tag: 1,
            message_count: 4,
            ..
        }
    ));
    script.method(1, &ack(1, false));
    assert_eq!(script.settled(), [settled(subscription, 3, 1, Settle::Ack)]);
    script.method(1, &get);
    let (id, request) = script.request();
    assert!(matches!(request, Request::Get { subscription: s, .. } if s == subscription));
    script.reply(id, Ok(Reply::Got(None)));
    script.expect(&[(1, "basic.get-empty")]);
}

#[test]
fn a_large_body_is_split_at_the_negotiated_frame_size() {
    let mut script = Script::opened_with(4096, 0);
    script.open_channel(1);
    let subscription = script.consume(1, b"q", b"ct");
    let body: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
    script.events(vec![delivery_of(subscription, 1, false, &body)]);
    let sent = script.sent();
    let frames = frames(&sent);
    let sizes: Vec<_> = frames[2..].iter().map(|frame| frame.payload.len()).collect();
    assert_eq!(sizes, [4088, 4088, 1824]);
    assert_eq!(
        frames[2..]
            .iter()
            .flat_map(|frame| frame.payload)
            .copied()
            .collect::<Vec<_>>(),
        body
    );
}

// --- topology ---------------------------------------------------------------------------------------

#[test]
fn a_queue_without_a_name_gets_one_and_is_the_last_declared() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &queue_declare(b"", Table::default()));
    let (id, request) = script.request();
    let Request::DeclareQueue(queue) = &request else {
        panic!("{request:?}")
    };
    let name = queue.name.clone();
    assert!(name.starts_with(b"amq.gen-") && name.len() == 30);
    script.reply(id, Ok(declared(&request)));
    script.expect(&[(1, "queue.declare-ok")]);
    script.method(1, &consume(b"", b"", false));
    let (_, request) = script.request();
    assert!(matches!(request, Request::Subscribe(subscribe) if subscribe.queue == name));
}

#[test]
fn an_empty_queue_name_without_a_declaration_is_404() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &consume(b"", b"", false));
    script.expect_channel_close(1, 404, "NOT_FOUND - no previously declared queue", (60, 20));
}

#[test]
fn a_queue_may_be_declared_again_as_what_it_is() {
    let other = |change: fn(&mut rocketbridge_core::request::Queue)| {
        let mut script = Script::opened();
        script.open_channel(1);
        script.method(1, &queue_declare(b"q", Table::default()));
        let (id, request) = script.request();
        script.reply(id, Ok(existing(&request, change)));
        script.sent_close_text()
    };
    assert_eq!(other(|_| {}), None);
    assert_eq!(
        other(|queue| queue.durable = true).as_deref(),
        Some(
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current \
             is 'true'"
        )
    );
    assert!(other(|queue| queue.auto_delete = true).is_some_and(|text| text.contains("'auto_delete'")));
    assert!(other(|queue| queue.exclusive = true).is_some_and(|text| text.starts_with("RESOURCE_LOCKED - ")));
}

#[test]
fn reserved_names_may_not_be_made() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &queue_declare(b"amq.mine", Table::default()));
    let text = "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'";
    script.expect_channel_close(1, 403, text, (50, 10));
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &exchange_declare(b"amq.mine", b"direct", false));
    let (id, request) = script.request();
    assert!(matches!(request, Request::FindExchange { .. }));
    script.reply(id, Err(not_found("exchange", b"amq|2Emine")));
    let text = "ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'";
    script.expect_channel_close(1, 403, text, (40, 10));
}

#[test]
fn exchanges_are_declared_found_and_refused_as_rabbitmq_does() {
    for (name, kind, passive, code, text) in [
        (
            &b""[..],
            &b"direct"[..],
            false,
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
        (
            b"e",
            b"odd",
            false,
            406,
            "PRECONDITION_FAILED - unknown exchange type 'odd'",
        ),
        (
            b"amq.topic",
            b"direct",
            false,
            406,
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'amq.topic' in vhost '/': received 'direct' but \
             current is 'topic'",
        ),
    ] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.method(1, &exchange_declare(name, kind, passive));
        script.expect_channel_close(1, code, text, (40, 10));
    }
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &exchange_declare(b"amq.topic", b"", true));
    script.expect(&[(1, "exchange.declare-ok")]);
    script.method(1, &exchange_declare(b"none", b"", true));
    let (id, _) = script.request();
    script.reply(id, Err(not_found("exchange", b"none")));
    script.expect_channel_close(1, 404, "NOT_FOUND - no exchange 'none' in vhost '/'", (40, 10));
}

#[test]
fn what_is_missing_is_deleted_and_what_is_the_systems_stays() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(
        1,
        &Method::QueueDelete {
            ticket: 0,
            queue: ShortStr(b"none"),
            if_unused: false,
            if_empty: false,
            no_wait: false,
        },
    );
    let (id, _) = script.request();
    script.reply(id, Err(not_found("queue", b"none")));
    script.expect(&[(1, "queue.delete-ok")]);
    script.method(
        1,
        &Method::ExchangeDelete {
            ticket: 0,
            exchange: ShortStr(b"amq.direct"),
            if_unused: false,
            no_wait: false,
        },
    );
    let text = "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed";
    script.expect_channel_close(1, 403, text, (40, 20));
}

#[test]
fn a_binding_to_an_exchange_of_unknown_kind_asks_first_and_the_channel_waits() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.open_channel(2);
    script.method(1, &queue_bind(b"q", b"events", b"a.*", Table::default()));
    let (id, request) = script.request();
    assert!(matches!(request, Request::FindExchange { .. }));
    // What follows may rely on the binding; other channels do not wait.
    script.publish(1, b"events", b"a.b", b"\x00\x00", b"x");
    script.method(1, &qos(1));
    script.method(2, &qos(1));
    script.expect(&[(2, "basic.qos-ok")]);
    assert!(script.published().is_empty());
    script.reply(id, Ok(exchange("events", ExchangeKind::Pattern)));
    let (id, request) = script.request();
    let Request::Bind(binding) = request else {
        panic!("{request:?}")
    };
    assert!(matches!(&binding.source, Source::Exchange(name) if name == "events"));
    assert!(matches!(&binding.matcher, Matcher::Pattern(pattern) if pattern.levels.len() == 2));
    assert_eq!(script.published().len(), 1);
    assert_eq!(script.sent(), b"");
    script.reply(id, Ok(Reply::Done));
    script.expect(&[(1, "queue.bind-ok"), (1, "basic.qos-ok")]);
    // The kind is known now.
    script.method(1, &queue_bind(b"q", b"events", b"b", Table::default()));
    assert!(matches!(script.request().1, Request::Bind(_)));
}

#[test]
fn bindings_to_amq_topic_see_all_topics() {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &queue_bind(b"q", b"amq.topic", b"a.#", Table::default()));
    let (_, request) = script.request();
    let Request::Bind(binding) = request else {
        panic!("{request:?}")
    };
    assert_eq!(binding.source, Source::Topics);
}

#[test]
fn a_bind_in_vain_says_which_end_is_missing() {
    for (what, text) in [
        ("queue", "NOT_FOUND - no queue 'q' in vhost '/'"),
        ("exchange", "NOT_FOUND - no exchange 'amq.direct' in vhost '/'"),
    ] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.method(1, &queue_bind(b"q", b"amq.direct", b"k", Table::default()));
        let (id, _) = script.request();
        script.reply(id, Err(not_found(what, b"whatever")));
        script.expect_channel_close(1, 404, text, (50, 20));
    }
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &queue_bind(b"q", b"", b"k", Table::default()));
    let text = "ACCESS_REFUSED - operation not permitted on the default exchange";
    script.expect_channel_close(1, 403, text, (50, 20));
}

#[test]
fn arguments_that_are_not_built_are_refused_by_name() {
    let mut arguments = TableWriter::default();
    arguments.put(b"x-queue-type", Value::LongStr(b"stream"));
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &queue_declare(b"q", arguments.table()));
    script.expect_connection_close(540, "NOT_IMPLEMENTED - queue type 'stream' is not implemented");
}
