//! Scripts of what MQTT does beyond a plain message: QoS 2 in both directions and on resumption, retained
//! messages, wills, topic aliases, expiry, shared subscriptions, `$SYS`, a blocked broker.

mod script;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rocketbridge_core::address::Level;
use rocketbridge_core::boundary::{Delivery, Event, Fate, HolderKey, Publish, Reject, RequestId, SubscriptionId};
use rocketbridge_core::message::Format;
use rocketbridge_core::request::{Refusal, Reply, Request, Totals, Will};
use rocketbridge_core::time::Millis;
use rocketbridge_mqtt::Config;
use script::*;

/// Client `c` of 3.1.1 whose session is kept.
const CONNECT_4_KEPT: &[u8] = b"\x10\x0D\0\x04MQTT\x04\0\0\x0A\0\x01c";

fn kept() -> Script {
    let mut script = Script::new(Config::default());
    script.send(CONNECT_4_KEPT);
    script.accept(true);
    script.sent();
    script.subscribe(b"t", 2);
    script
}

fn noted(script: &mut Script) -> Vec<(u64, u32)> {
    let requests = script.requests();
    let [(id, Request::Note { subscription, notes })] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(*subscription, SubscriptionId(1));
    assert_eq!(script.sent(), b"", "nothing is said before it is noted");
    script.reply(*id, Ok(Reply::Done));
    notes.clone()
}

// --- QoS 2 to the client ----------------------------------------------------------------------

/// [MQTT-4.3.3-2] to [MQTT-4.3.3-7], 4.4
#[test]
fn an_exchange_is_noted_before_pubrel_and_settled_by_pubcomp() {
    let mut script = kept();
    script.deliver(1, true, &publish(b"t", 2));
    script.deliver(2, true, &publish(b"t", 2));
    assert_eq!(script.sent(), b"\x34\x06\0\x01t\0\x01x\x34\x06\0\x01t\0\x02x");
    script.send(b"\x50\x02\0\x01\x50\x02\0\x02");
    assert_eq!(noted(&mut script), [(0, 0x1_0001), (1, 0x1_0002)]);
    assert_eq!(script.sent(), b"\x62\x02\0\x01\x62\x02\0\x02");
    // Asked again, said again.
    script.send(b"\x50\x02\0\x02");
    assert_eq!(script.sent(), b"\x62\x02\0\x02");
    assert_eq!(script.settled(), []);
    script.send(b"\x70\x02\0\x02\x70\x02\0\x01\x70\x02\0\x01");
    assert_eq!(script.settled(), [2, 1]);
}

#[test]
fn a_session_that_ends_with_its_connection_notes_nothing() {
    let mut script = Script::connected(CONNECT_4);
    script.subscribe(b"t", 2);
    script.deliver(1, true, &publish(b"t", 2));
    script.sent();
    script.send(b"\x50\x02\0\x01");
    assert_eq!(script.sent(), b"\x62\x02\0\x01");
    assert!(script.requests().is_empty());
}

/// [MQTT-4.4.0-1]: the same packet identifiers, PUBREL where PUBREC had come, in order.
#[test]
fn a_resumed_session_goes_on_where_each_exchange_was() {
    let mut script = kept();
    for (sequence, note) in [(1, 0), (2, 0x1_0002), (3, 700), (4, 0x1_FFFF)] {
        let mut again = delivery(sequence, true, &publish(b"t", 2));
        again.redelivered = true;
        again.note = note;
        script.event(Event::Delivery(again));
    }
    assert_eq!(
        script.sent(),
        b"\x3C\x06\0\x01t\0\x01x\x62\x02\0\x02\x3C\x06\0\x01t\x02\xBCx\x62\x02\xFF\xFF"
    );
    script.send(b"\x70\x02\0\x02\x70\x02\xFF\xFF");
    assert_eq!(script.settled(), [2, 4]);
    script.send(b"\x50\x02\x02\xBC");
    assert_eq!(noted(&mut script), [(2, 0x1_02BC)]);
}

/// [MQTT-4.3.3-4]
#[test]
fn a_pubrec_with_a_failure_ends_the_exchange() {
    let mut script = Script::connected(CONNECT_5);
    script.subscribe(b"t", 2);
    script.deliver(1, true, &publish(b"t", 2));
    script.sent();
    script.send(b"\x50\x03\0\x01\x97");
    assert_eq!(script.settled(), [1]);
    assert_eq!(script.sent(), b"");
}

#[test]
fn an_identifier_that_is_taken_is_replaced_and_that_is_noted() {
    let mut script = kept();
    script.deliver(1, true, &publish(b"t", 1));
    script.deliver(65_536, true, &publish(b"t", 1));
    assert_eq!(script.sent(), b"\x32\x06\0\x01t\0\x01x\x32\x06\0\x01t\xFF\xFFx");
    let requests = script.requests();
    let [(_, Request::Note { notes, .. })] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(notes[..], [(65_535, 0x2_FFFF)]);
}

/// [MQTT-3.10.4-3]
#[test]
fn what_was_begun_is_completed_without_its_subscription() {
    let mut script = kept();
    let mut again = delivery(1, true, &publish(b"other", 2));
    again.redelivered = true;
    script.event(Event::Delivery(again));
    assert_eq!(script.sent(), b"\x3C\x0A\0\x05other\0\x01x");
}

/// [MQTT-4.4.0-1]: with the QoS that it was sent with, whatever is subscribed to then.
#[test]
fn the_qos_of_what_is_in_flight_is_noted_before_subscriptions_change() {
    const CHANGES: [&[u8]; 3] = [
        b"\x82\x06\0\x09\0\x01t\0",
        b"\x82\x06\0\x09\0\x01#\x02",
        b"\xA2\x05\0\x09\0\x01t",
    ];
    for change in CHANGES {
        let mut script = kept();
        script.send(change);
        let requests = script.requests();
        assert!(matches!(requests[..], [(_, Request::Bind(_) | Request::Unbind(_))]));
        let mut script = kept();
        for (sequence, qos) in [(1, 2), (2, 1), (3, 2)] {
            script.deliver(sequence, true, &publish(b"t", qos));
        }
        script.sent();
        script.send(b"\x50\x02\0\x03");
        noted(&mut script);
        script.send(change);
        let mut requests = script.requests();
        let (_, Request::Note { notes, .. }) = &mut requests[0] else {
            panic!("{requests:?}")
        };
        notes.sort_unstable();
        assert_eq!(notes[..], [(0, 0x4_0001), (1, 0x2_0002)]);
        assert!(matches!(requests[1].1, Request::Bind(_) | Request::Unbind(_)));
        // Once is enough.
        script.send(change);
        let requests = script.requests();
        assert!(
            requests
                .iter()
                .all(|(_, request)| !matches!(request, Request::Note { .. }))
        );
    }
    // A session that ends with its connection has no use for it.
    let mut script = Script::connected(CONNECT_4);
    script.subscribe(b"t", 1);
    script.deliver(1, true, &publish(b"t", 1));
    script.sent();
    script.subscribe(b"t", 0);
}

#[test]
fn what_is_sent_again_has_the_qos_that_it_had() {
    for granted in [None, Some(0), Some(1), Some(2)] {
        for (note, expected) in [
            (0x2_0001, &b"\x3A\x06\0\x01u\0\x01x"[..]),
            (0x4_0001, b"\x3C\x06\0\x01u\0\x01x"),
            (0x4_0007, b"\x3C\x06\0\x01u\0\x07x"),
        ] {
            let mut script = kept();
            if let Some(granted) = granted {
                script.subscribe(b"u", granted);
            }
            let mut again = delivery(1, true, &publish(b"u", 2));
            (again.redelivered, again.note) = (true, note);
            script.event(Event::Delivery(again));
            assert_eq!(script.sent(), expected, "{granted:?}");
            assert!(script.settled().is_empty());
            // It is noted already.
            script.send(b"\x82\x06\0\x09\0\x01u\0");
            assert_eq!(script.requests().len(), 1);
        }
    }
}

/// The client subscribes anew before all that was in flight has come again: that is sent as it was, and noted.
#[test]
fn a_subscribe_right_behind_connect_does_not_change_what_is_sent_again() {
    let again = |sequence, qos| {
        let mut again = delivery(sequence, true, &publish(b"t", qos));
        again.redelivered = true;
        again
    };
    for (options, changes) in [(0, true), (1, false), (2, true)] {
        let mut script = Script::new(Config::default());
        script.send(CONNECT_4_KEPT);
        script.reply_next(Ok(Reply::Done));
        let requests = script.requests();
        script.reply(requests[0].0, Ok(attached(true, &[b"\x01\0\0\0\0t"])));
        script.reply(requests[1].0, Ok(Reply::Done));
        script.event(Event::Delivery(again(1, 2)));
        script.sent();
        script.send(&[b"\x82\x06\0\x09\0\x01t", &[options][..]].concat());
        let requests = script.requests();
        if let (true, (_, Request::Note { notes, .. })) = (changes, &requests[0]) {
            assert_eq!(notes[..], [(0, 0x2_0001)]);
        }
        assert_eq!(requests.len(), 1 + usize::from(changes));
        script.event(Event::Delivery(again(2, 2)));
        assert_eq!(script.sent(), b"\x3A\x06\0\x01t\0\x02x", "{options}");
        let requests = script.requests();
        if let (true, [(_, Request::Note { notes, .. })]) = (changes, &requests[..]) {
            assert_eq!(notes[..], [(1, 0x2_0002)]);
        }
        assert_eq!(requests.len(), usize::from(changes));
        // What is new is sent as is wanted now.
        script.deliver(3, true, &publish(b"t", 2));
        let sent = script.sent();
        assert_eq!(sent[0], 0x30 | options << 1);
        assert!(script.requests().is_empty());
    }
}

// --- QoS 2 from the client --------------------------------------------------------------------

/// [MQTT-4.3.3-8] to [MQTT-4.3.3-13]
#[test]
fn a_message_sent_twice_is_published_once_until_it_is_released() {
    let mut script = Script::connected(CONNECT_4);
    script.send(b"\x34\x05\0\x01t\0\x07\x3C\x05\0\x01t\0\x07");
    assert_eq!(script.publishes().len(), 1);
    assert_eq!(script.sent(), b"");
    script.outcome(0, 1, stored(1));
    assert_eq!(script.sent(), b"\x50\x02\0\x07");
    script.send(b"\x3C\x05\0\x01t\0\x07");
    assert_eq!(script.sent(), b"\x50\x02\0\x07");
    assert!(script.publishes().is_empty());
    script.send(b"\x62\x02\0\x07\x62\x02\0\x07");
    assert_eq!(script.sent(), b"\x70\x02\0\x07\x70\x02\0\x07");
    // The identifier stands for another message now.
    script.send(b"\x34\x05\0\x01t\0\x07");
    assert_eq!(script.publishes().len(), 1);
}

/// Core tells a message that is sent again over another connection, and the identifier is free only when core
/// has safely forgotten it.
#[test]
fn a_kept_session_opens_and_closes_keys_with_core() {
    let mut script = kept();
    script.send(b"\x34\x05\0\x01t\0\x07");
    assert_eq!(script.publishes()[0].holder_key, Some(HolderKey::Open(7)));
    script.outcome(0, 1, Fate::Duplicate(placed(0)));
    assert_eq!(script.sent(), b"\x50\x02\0\x07");
    script.send(b"\x62\x02\0\x07");
    assert_eq!(script.publishes()[0].holder_key, Some(HolderKey::Close(7)));
    assert_eq!(script.sent(), b"");
    script.outcome(1, 1, stored(0));
    assert_eq!(script.sent(), b"\x70\x02\0\x07");
    // QoS 1 has no such key.
    script.send(b"\x32\x05\0\x01t\0\x07");
    assert_eq!(script.publishes()[0].holder_key, None);
}

/// A session that is to end with this connection may have outlived earlier ones: what came over those comes again.
#[test]
fn a_session_that_was_kept_opens_keys_although_it_is_to_end() {
    for (present, key) in [(true, Some(HolderKey::Open(7))), (false, None)] {
        let mut script = Script::new(Config::default());
        // Clean start 0, and no session expiry.
        script.send(b"\x10\x0E\0\x04MQTT\x05\0\0\x0A\0\0\x01c");
        script.accept(present);
        script.sent();
        script.send(b"\x3C\x06\0\x01t\0\x07\0");
        assert_eq!(script.publishes()[0].holder_key, key);
    }
}

#[test]
fn a_refused_message_ends_its_exchange() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x34\x06\0\x01t\0\x07\0");
    assert_eq!(script.publishes().len(), 1);
    script.outcome(0, 1, Fate::Rejected(Reject::QueueFull));
    assert_eq!(script.sent(), b"\x50\x03\0\x07\x97");
    script.send(b"\x34\x06\0\x01t\0\x07\0");
    assert_eq!(script.publishes().len(), 1);
}

/// [MQTT-4.6.0-2, MQTT-4.6.0-3]
#[test]
fn answers_come_in_the_order_of_the_publishes_whatever_their_qos() {
    let mut script = Script::connected(CONNECT_4);
    script.send(b"\x34\x05\0\x01t\0\x01\x32\x05\0\x01t\0\x02\x34\x05\0\x01t\0\x03");
    script.publishes();
    script.outcome(1, 2, stored(1));
    assert_eq!(script.sent(), b"");
    script.outcome(0, 1, stored(1));
    assert_eq!(script.sent(), b"\x50\x02\0\x01\x40\x02\0\x02\x50\x02\0\x03");
}

/// [MQTT-3.3.4-9]: an exchange counts until PUBCOMP.
#[test]
fn exchanges_that_are_not_released_count_for_the_receive_maximum() {
    let config = Config {
        receive_maximum: 1,
        ..Config::default()
    };
    let mut script = Script::connected_with(config, CONNECT_5);
    script.send(b"\x34\x06\0\x01t\0\x01\0");
    script.publishes();
    script.outcome(0, 1, stored(1));
    script.send(b"\x62\x02\0\x01\x34\x06\0\x01t\0\x02\0");
    script.publishes();
    script.outcome(1, 1, stored(1));
    script.sent();
    script.send(b"\x32\x06\0\x01t\0\x03\0");
    script.expect_closed(b"\xE0\x01\x93");
}

// --- retained messages ------------------------------------------------------------------------

#[test]
fn the_retain_flag_goes_to_core_and_comes_back_as_each_subscription_wants() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x31\x05\0\x01t\0x\x30\x05\0\x01t\0x");
    let retained: Vec<bool> = script.publishes().iter().map(|publish| publish.retain).collect();
    assert_eq!(retained, [true, false]);
    let mut message = publish(b"t", 0);
    message.retain = true;
    // A live message: retain as published or not. [MQTT-3.3.1-12, MQTT-3.3.1-13]
    script.subscribe(b"t", 0);
    script.deliver(1, false, &message);
    assert_eq!(script.sent(), b"\x30\x05\0\x01t\0x");
    script.subscribe(b"t", 8);
    script.deliver(2, false, &message);
    assert_eq!(script.sent(), b"\x31\x05\0\x01t\0x");
    // One that was there before. [MQTT-3.3.1-8]
    script.subscribe(b"t", 0);
    let mut recalled = delivery(3, false, &message);
    recalled.recalled = true;
    script.event(Event::Delivery(recalled));
    assert_eq!(script.sent(), b"\x31\x05\0\x01t\0x");
}

/// [MQTT-3.3.1-9] to [MQTT-3.3.1-11]
#[test]
fn retained_messages_are_asked_for_as_retain_handling_says() {
    let mut script = Script::connected(CONNECT_5);
    for (options, expected) in [(0x10, 1), (0x10, 0), (0x20, 0), (0x00, 1), (0x00, 1)] {
        script.send(&[&b"\x82\x07\0\x01\0\0\x01t"[..], &[options]].concat());
        let recalls = script.recalls();
        assert_eq!(recalls.len(), expected, "{options:x}");
        if let Some(pattern) = recalls.first() {
            assert_eq!(pattern.levels, [Level::Literal(Bytes::from_static(b"t"))]);
        }
    }
    // Never for a shared subscription. [MQTT-3.8.4-4 and 4.8.2]
    script.send(b"\x82\x10\0\x01\0\0\x0A$share/g/t\0");
    assert!(script.recalls().is_empty());
}

// --- wills ------------------------------------------------------------------------------------

fn will_of(connect: &[u8]) -> Will {
    let mut script = Script::new(Config::default());
    script.send(connect);
    script.reply_next(Ok(Reply::Done));
    match script.requests().remove(0) {
        (_, Request::Attach(attach)) => *attach.will.expect("a will"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_will_is_kept_by_core_with_all_its_properties() {
    let will = will_of(b"\x10\x17\0\x04MQTT\x04\x36\0\x0A\0\x01p\0\x05a/b.c\0\x01m");
    assert_eq!((&will.topic[..], &will.key[..]), (&b"a"[..], &b"b/c"[..]));
    assert_eq!((will.delay, will.persistent, will.retain), (Millis(0), true, true));
    assert_eq!(
        (&will.body[..], &will.origin[..]),
        (&b"m"[..], &b"\x04\x02\0\x05a/b.c\0\x01p"[..])
    );
    // Delay 5 s, expiry 9 s, a user property.
    let properties = b"\x18\0\0\0\x05\x26\0\x01k\0\x01v\x02\0\0\0\x09";
    let mut connect = b"\x10\0\0\x04MQTT\x05\x06\0\x0A\0\0\x01p\x11".to_vec();
    connect.extend(properties);
    connect.extend(b"\0\x01t\0\0");
    connect[1] = connect.len() as u8 - 2;
    let will = will_of(&connect);
    assert_eq!((will.delay, will.persistent, will.retain), (Millis(5000), false, false));
    assert_eq!(
        will.origin,
        &b"\x05\0\0\x01t\0\x01p\x02\0\0\0\x09\x26\0\x01k\0\x01v"[..]
    );
    assert_eq!(will.attributes.iter().count(), 2);
}

/// Mosquitto's bridges come with such a one: dropped, as what they publish there.
#[test]
fn a_will_below_sys_is_dropped() {
    for connect in [
        &b"\x10\x17\0\x04MQTT\x04\x36\0\x0A\0\x01p\0\x06$SYS/x\0\0"[..],
        b"\x10\x19\0\x04MQTT\x05\x36\0\x0A\0\0\x01p\0\0\x06$SYS/x\0\0",
    ] {
        let mut script = Script::new(Config::default());
        script.send(connect);
        script.reply_next(Ok(Reply::Done));
        let requests = script.requests();
        let (attach, Request::Attach(wanted)) = &requests[0] else {
            panic!("{requests:?}")
        };
        assert!(wanted.will.is_none());
        script.reply(*attach, Ok(attached(false, &[])));
        script.reply(requests[1].0, Ok(Reply::Done));
        let connack = script.sent();
        assert_eq!((connack[0], connack[3]), (0x20, 0));
    }
}

/// [MQTT-3.14.4-3]
#[test]
fn only_a_plain_goodbye_takes_the_will_back() {
    for (goodbye, expected) in [
        (&b"\xE0\0"[..], false),
        (b"\xE0\x01\0", false),
        (b"\xE0\x01\x04", true),
        (b"\xE0\x01\x80", true),
    ] {
        let mut script = Script::connected(CONNECT_5);
        script.send(goodbye);
        let requests = script.requests();
        let [(_, Request::Detach { keep_will, .. })] = &requests[..] else {
            panic!("{requests:?}")
        };
        assert_eq!(*keep_will, expected);
        script.expect_closed(b"");
    }
}

// --- towards the client -----------------------------------------------------------------------

/// 5.0, 3.3.2.3.4
#[test]
fn topic_aliases_are_used_as_far_as_the_client_allows() {
    let mut script = Script::connected(b"\x10\x11\0\x04MQTT\x05\x02\0\x0A\x03\x22\0\x01\0\x01c");
    script.subscribe(b"#", 0);
    for (topic, expected) in [
        (&b"a"[..], &b"\x30\x08\0\x01a\x03\x23\0\x01x"[..]),
        (b"a", b"\x30\x07\0\0\x03\x23\0\x01x"),
        (b"b", b"\x30\x05\0\x01b\0x"),
        (b"a", b"\x30\x07\0\0\x03\x23\0\x01x"),
    ] {
        script.deliver(1, false, &publish(topic, 0));
        assert_eq!(script.sent(), expected);
    }
}

/// [MQTT-3.1.2-25]: an alias is given up where it is what makes a packet too large.
#[test]
fn a_message_that_fits_without_its_alias_is_sent_without() {
    // Maximum Packet Size 16, Topic Alias Maximum 1.
    let mut script = Script::connected(b"\x10\x16\0\x04MQTT\x05\x02\0\x0A\x08\x27\0\0\0\x10\x22\0\x01\0\x01c");
    script.subscribe(b"#", 0);
    let body = |length: usize| Publish {
        body: Bytes::from(vec![b'x'; length]),
        ..publish(b"a", 0)
    };
    for (length, expected) in [
        (10, &b"\x30\x0E\0\x01a\0xxxxxxxxxx"[..]),
        (8, b"\x30\x0C\0\x01a\0xxxxxxxx"),
        (7, b"\x30\x0E\0\x01a\x03\x23\0\x01xxxxxxx"),
        (8, b"\x30\x0E\0\0\x03\x23\0\x01xxxxxxxx"),
        // The alias is longer than the topic.
        (9, b"\x30\x0D\0\x01a\0xxxxxxxxx"),
        (11, b""),
    ] {
        script.deliver(1, false, &body(length));
        assert_eq!(script.sent(), expected, "{length}");
    }
}

/// 5.0, 3.3.2.3.3: what can be passed on at once is.
#[test]
fn a_message_that_expires_at_once_reaches_who_is_there() {
    let mut script = Script::connected(CONNECT_5);
    script.subscribe(b"t", 1);
    let mut message = publish(b"t", 1);
    message.origin = Bytes::from_static(b"\x05\x01\0\x01t\0\x01o\x02\0\0\0\0");
    script.deliver(1, true, &message);
    assert_eq!(script.sent(), b"\x32\x0C\0\x01t\0\x01\x05\x02\0\0\0\0x");
    // Kept safe first, which takes a moment.
    script.wait(999);
    script.deliver(2, true, &message);
    assert_eq!(script.sent(), b"\x32\x0C\0\x01t\0\x02\x05\x02\0\0\0\0x");
    script.wait(1);
    script.deliver(3, true, &message);
    assert_eq!(script.sent(), b"");
    assert_eq!(script.settled(), [3]);
}

/// [MQTT-3.3.2-5, MQTT-3.3.2-6]
#[test]
fn the_message_expiry_interval_counts_down_and_ends() {
    let mut script = Script::connected(CONNECT_5);
    script.subscribe(b"t", 1);
    let mut message = publish(b"t", 1);
    message.origin = Bytes::from_static(b"\x05\x01\0\x01t\0\x01o\x02\0\0\0\x05\x01\x01");
    script.deliver(1, true, &message);
    assert_eq!(script.sent(), b"\x32\x0E\0\x01t\0\x01\x07\x02\0\0\0\x05\x01\x01x");
    script.wait(3500);
    script.deliver(2, true, &message);
    assert_eq!(script.sent(), b"\x32\x0E\0\x01t\0\x02\x07\x02\0\0\0\x02\x01\x01x");
    script.wait(1500);
    script.deliver(3, true, &message);
    assert_eq!(script.sent(), b"");
    assert_eq!(script.settled(), [3]);
}

/// [MQTT-3.3.4-7]
#[test]
fn no_more_messages_are_in_flight_than_the_client_accepts() {
    let mut script = Script::connected(b"\x10\x11\0\x04MQTT\x05\x02\0\x0A\x03\x21\0\x01\0\x01c");
    script.send(b"\x82\x10\0\x01\0\0\x0A$share/g/t\x01");
    let requests = script.requests();
    for (id, _) in &requests {
        script.reply(*id, Ok(Reply::Done));
    }
    script.subscribe(b"u", 1);
    script.sent();
    script.deliver(1, true, &publish(b"u", 1));
    let mut shared = delivery(1, true, &publish(b"t", 1));
    shared.subscription = SubscriptionId(2);
    script.event(Event::Delivery(shared));
    assert_eq!(script.sent(), b"\x32\x07\0\x01u\0\x01\0x");
    // What needs no acknowledgement does not wait.
    script.deliver(2, false, &publish(b"u", 0));
    assert_eq!(script.sent(), b"\x30\x05\0\x01u\0x");
    script.send(b"\x40\x02\0\x01");
    assert_eq!(script.sent(), b"\x32\x07\0\x01t\xFF\xFF\0x");
}

#[test]
fn shared_subscriptions_have_their_own_qos_and_identifiers() {
    let mut script = Script::connected(CONNECT_5);
    script.subscribe_with(b"t", 2, 5);
    script.send(b"\x82\x12\0\x01\x02\x0B\x09\0\x0A$share/g/t\x02");
    for (id, _) in &script.requests() {
        script.reply(*id, Ok(Reply::Done));
    }
    assert_eq!(script.sent(), b"\x90\x04\0\x01\0\x01");
    let mut shared = delivery(1, true, &publish(b"t", 2));
    shared.subscription = SubscriptionId(2);
    script.event(Event::Delivery(shared));
    assert_eq!(script.sent(), b"\x32\x09\0\x01t\xFF\xFF\x02\x0B\x09x");
    // What another member left was never sent to this one. (3.3.1.1)
    let mut shared = delivery(2, true, &publish(b"t", 2));
    (shared.subscription, shared.redelivered) = (SubscriptionId(2), true);
    script.event(Event::Delivery(shared));
    assert_eq!(script.sent(), b"\x32\x09\0\x01t\xFF\xFE\x02\x0B\x09x");
    script.send(b"\xA2\x0F\0\x02\0\0\x0A$share/g/t");
    let requests = script.requests();
    let [(id, Request::Unshare { queue })] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(queue, "\0\0g/t");
    script.reply(*id, Ok(Reply::Done));
    assert_eq!(script.sent(), b"\xB0\x04\0\x02\0\0");
}

// --- the connection ---------------------------------------------------------------------------

/// [MQTT-3.1.2-21]
#[test]
fn the_server_keep_alive_replaces_the_clients() {
    let config = Config {
        keep_alive_max: 5,
        ..Config::default()
    };
    for (asked, told) in [(10, true), (0, true), (5, false), (3, false)] {
        let mut script = Script::new(config.clone());
        script.send(&[&b"\x10\x0E\0\x04MQTT\x05\x02\0"[..], &[asked], b"\0\0\x01c"].concat());
        script.accept(false);
        let connack = script.sent();
        let is_told = connack.windows(3).any(|property| property == b"\x13\0\x05");
        assert_eq!(is_told, told, "{asked}");
        let seconds = if told { 5 } else { u64::from(asked) };
        assert_eq!(script.next_timeout(), Some(Millis(START + seconds * 1500)));
    }
}

/// 5.0, 3.2.2.3.15
#[test]
fn response_information_is_given_to_those_who_ask() {
    for (asks, expected) in [(1, true), (0, false)] {
        let mut script = Script::new(Config::default());
        script.send(&[&b"\x10\x10\0\x04MQTT\x05\x02\0\x0A\x02\x19"[..], &[asks], b"\0\x01c"].concat());
        script.accept(false);
        let connack = script.sent();
        let information = b"\x1A\0\x0Aresponse/c";
        let is_given = connack.windows(information.len()).any(|part| part == information);
        assert_eq!(is_given, expected);
    }
}

/// [MQTT-3.1.2-24]: what the client can do without is left out first.
#[test]
fn response_information_that_does_not_fit_is_left_out() {
    let information = b"\x1A\0\x1Eresponse/auto-0000000000000007";
    let assigned = b"\x12\0\x15auto-0000000000000007";
    let has = |connack: &[u8], part: &[u8]| connack.windows(part.len()).any(|window| window == part);
    for (size_max, has_information, has_aliases) in [(73, true, true), (72, false, true), (39, false, false)] {
        let connect = [
            &b"\x10\x14\0\x04MQTT\x05\x02\0\x0A\x07\x19\x01\x27\0\0\0"[..],
            &[size_max],
            b"\0\0",
        ];
        let mut script = Script::new(Config::default());
        script.send(&connect.concat());
        script.accept(false);
        let connack = script.sent();
        assert!(
            connack.len() <= usize::from(size_max) && has(&connack, assigned),
            "{connack:?}"
        );
        assert_eq!(has(&connack, information), has_information, "{size_max}");
        assert_eq!(has(&connack, b"\x22\0\x0A"), has_aliases, "{size_max}");
    }
}

/// What Mosquitto's `try_private` asks for.
#[test]
fn a_bridge_gets_nothing_back_that_came_from_it_and_the_retain_flag_of_the_rest() {
    for (connect, subscribe) in [
        (
            &b"\x10\x0D\0\x04MQTT\x84\x02\0\x0A\0\x01c"[..],
            b"\x82\x06\0\x01\0\x01t\0",
        ),
        (b"\x10\x0F\0\x06MQIsdp\x83\x02\0\x0A\0\x01c", b"\x82\x06\0\x01\0\x01t\0"),
    ] {
        let mut script = Script::connected(connect);
        script.send(subscribe);
        let requests = script.requests();
        let [(bind, Request::Bind(binding))] = &requests[..] else {
            panic!("{requests:?}")
        };
        // A resumed session knows it, too.
        assert_eq!(binding.cookie[0], 0x0C);
        script.reply(*bind, Ok(Reply::Done));
        assert_eq!(script.sent(), b"\x90\x03\0\x01\0");
        let own = Publish {
            origin: Bytes::from_static(b"\x04\0\0\x01t\0\x01c"),
            ..publish(b"t", 0)
        };
        script.deliver(1, false, &own);
        assert_eq!(script.sent(), b"");
        let others = Publish {
            retain: true,
            ..publish(b"t", 0)
        };
        script.deliver(2, false, &others);
        assert_eq!(script.sent(), b"\x31\x04\0\x01tx");
    }
}

#[test]
fn filters_may_be_refused_to_everybody() {
    let config = Config {
        refused_filters: vec!["a/#".to_owned()],
        ..Config::default()
    };
    let mut script = Script::connected_with(config, CONNECT_5);
    script.send(b"\x82\x09\0\x01\0\0\x03a/#\0");
    assert_eq!(script.sent(), b"\x90\x04\0\x01\0\x80");
}

/// DESIGN: MQTT 5.0 answers QoS 1 and 2 with 0x97 while the broker takes nothing.
#[test]
fn a_blocked_broker_is_waited_for_and_then_reported() {
    let mut script = Script::connected(CONNECT_5);
    script.send(b"\x30\x04\0\x01t\0\x32\x06\0\x01t\0\x01\0\x34\x06\0\x01t\0\x02\0");
    script.advance_with_orders(999);
    assert_eq!(script.sent(), b"");
    script.advance_with_orders(1);
    assert_eq!(script.sent(), b"\x40\x03\0\x01\x97\x50\x03\0\x02\x97");
    assert!(script.publishes().is_empty());
    // A broker that takes messages is not asked again.
    script.send(b"\x32\x06\0\x01t\0\x03\0");
    assert_eq!(script.publishes().len(), 1);
    script.advance(5000);
    assert_eq!(script.sent(), b"");
}

/// Core is asked and answers, and the values come: first bytes, what is between topic and value, values.
fn sys_values(script: &mut Script) -> BTreeMap<String, (u8, Vec<u8>, String)> {
    script.reply_next(Ok(Reply::Totals(Totals {
        waiting_sessions: 3,
        last_values: 5,
        kept_messages: 7,
        dropped_messages: 11,
    })));
    assert!(script.publishes().is_empty(), "nobody else gets them");
    let sent = script.sent();
    let (mut sent, mut values) = (&sent[..], BTreeMap::new());
    while let [first, length, 0, topic, rest @ ..] = sent {
        let (topic, rest) = rest.split_at(usize::from(*topic));
        let (rest, next) = rest.split_at(usize::from(*length) - 2 - topic.len());
        let at = if script.is_v5 { 1 + usize::from(rest[0]) } else { 0 };
        let (properties, value) = rest.split_at(at);
        let as_text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let topic = as_text(topic);
        let topic = topic.strip_prefix("$SYS/broker/").expect("a topic of the broker's own");
        values.insert(topic.to_owned(), (*first, properties.to_vec(), as_text(value)));
        sent = next;
    }
    assert_eq!(sent, b"");
    values
}

/// Subscribes below `$SYS`; gives what comes behind the SUBACK.
fn sys_subscribe(script: &mut Script, filter: &[u8], options: u8) -> Vec<(RequestId, Request)> {
    let properties = if script.is_v5 { &b"\x02\x0B\x07"[..] } else { b"" };
    let length = [0, filter.len() as u8];
    let body = [b"\0\x01", properties, &length, filter, &[options]].concat();
    script.send(&[&[0x82, body.len() as u8], &body[..]].concat());
    let mut requests = script.requests();
    let (bind, Request::Bind(_)) = requests.remove(0) else {
        panic!("{requests:?}")
    };
    script.put_back(requests);
    script.reply(bind, Ok(Reply::Done));
    assert_eq!(script.sent().first(), Some(&0x90));
    script.requests()
}

#[test]
fn who_watches_sys_topics_gets_their_values_and_nobody_else() {
    let mut script = Script::connected(b"\x10\x0D\0\x04MQTT\x04\x02\0\0\0\x01c");
    assert_eq!(script.next_timeout(), None);
    let requests = sys_subscribe(&mut script, b"$SYS/#", 0);
    assert!(script.recalls().is_empty(), "nothing of it is stored");
    script.put_back(requests);
    let values = sys_values(&mut script);
    for (name, value) in [
        ("uptime", "50 seconds"),
        ("clients/connected", "1"),
        ("clients/disconnected", "3"),
        ("clients/total", "4"),
        ("retained messages/count", "5"),
        ("store/messages/count", "7"),
        ("publish/messages/dropped", "11"),
        // CONNECT and SUBSCRIBE, CONNACK and SUBACK.
        ("messages/received", "2"),
        ("messages/sent", "2"),
        ("publish/messages/sent", "0"),
        ("publish/bytes/sent", "0"),
        ("bytes/received", "28"),
        ("bytes/sent", "9"),
        ("subscriptions/count", "1"),
        ("shared_subscriptions/count", "0"),
    ] {
        assert_eq!(values[name], (0x31, vec![], value.to_owned()), "{name}");
    }
    assert!(values.contains_key("version"));
    script.advance(9999);
    assert!(script.requests().is_empty());
    script.send(b"\x30\x06\0\x01tabc");
    assert_eq!(script.publishes().len(), 1);
    script.advance(1);
    let again = sys_values(&mut script);
    assert_eq!(again.len(), values.len());
    let told: usize = values.values().map(|(_, _, value)| value.len()).sum();
    for (name, value) in [
        ("uptime", "60 seconds"),
        ("messages/received", "3"),
        ("messages/sent", &(2 + values.len()).to_string()),
        ("publish/messages/received", "1"),
        ("publish/messages/sent", &values.len().to_string()),
        ("publish/bytes/received", "3"),
        ("publish/bytes/sent", &told.to_string()),
    ] {
        assert_eq!(again[name], (0x30, vec![], value.to_owned()), "{name}");
    }
    script.send(b"\xA2\x0A\0\x02\0\x06$SYS/#");
    assert_eq!(script.next_timeout(), None);
}

/// No local, retain as published, retain handling, identifiers.
#[test]
fn options_count_for_sys_topics() {
    for (options, at_once, again) in [
        (0x00, Some(0x31), 0x30),
        (0x04, Some(0x31), 0x30),
        (0x09, Some(0x31), 0x31),
        (0x10, Some(0x31), 0x30),
        (0x20, None, 0x30),
    ] {
        let mut script = Script::connected(CONNECT_5);
        let expected = |first| Some((first, b"\x02\x0B\x07".to_vec(), "0".to_owned()));
        let requests = sys_subscribe(&mut script, b"$SYS/broker/publish/bytes/sent", options);
        assert_eq!(requests.len(), usize::from(at_once.is_some()), "{options:x}");
        if let Some(first) = at_once {
            script.put_back(requests);
            let mut values = sys_values(&mut script);
            assert_eq!(values.remove("publish/bytes/sent"), expected(first), "{options:x}");
            assert!(values.is_empty());
        }
        script.send(b"\xC0\0");
        script.sent();
        script.advance(10_000);
        let value = sys_values(&mut script).remove("publish/bytes/sent").expect("a value");
        assert_eq!(value.0, again, "{options:x}");
        // Retain handling 1: only when the subscription is new.
        let requests = sys_subscribe(&mut script, b"$SYS/broker/publish/bytes/sent", options);
        assert_eq!(requests.len(), usize::from(options & 0x30 == 0), "{options:x}");
    }
}

#[test]
fn refused_filters_get_no_sys_values() {
    let mut script = Script::connected(CONNECT_4);
    script.send(b"\x82\x0B\0\x01\0\x06$SYS/#\0");
    let requests = script.requests();
    script.reply(requests[0].0, Err(Refusal::AccessRefused));
    assert_eq!(script.sent(), b"\x90\x03\0\x01\x80");
    script.put_back(requests.into_iter().skip(1).collect());
    assert!(sys_values(&mut script).is_empty());
}

/// A session that is there again watches what it watched.
#[test]
fn a_resumed_session_gets_sys_values_when_they_are_due() {
    let mut script = Script::new(Config::default());
    script.send(b"\x10\x0D\0\x04MQTT\x04\0\0\0\0\x01c");
    script.reply_next(Ok(Reply::Done));
    let requests = script.requests();
    script.reply(requests[0].0, Ok(attached(true, &[b"\0\0\0\0\0$SYS/broker/uptime"])));
    script.reply(requests[1].0, Ok(Reply::Done));
    assert_eq!(script.sent(), b"\x20\x02\x01\0");
    script.advance(10_000);
    let values = sys_values(&mut script);
    assert_eq!(values["uptime"], (0x30, vec![], "60 seconds".to_owned()));
    assert_eq!(values.len(), 1);
}

/// 4.7.2: `$SYS` is the broker's own.
#[test]
fn nobody_else_publishes_sys_topics() {
    let mut script = Script::connected_with(
        Config {
            sys_interval: Duration::ZERO,
            ..Config::default()
        },
        CONNECT_5,
    );
    script.send(b"\x32\x0B\0\x06$SYS/x\0\x01\0");
    assert!(script.publishes().is_empty());
    assert_eq!(script.sent(), b"\x40\x03\0\x01\x87");
}

// --- one message for many -------------------------------------------------------------------------

/// Large enough to be sent from where it lies.
fn large() -> Delivery {
    let body = Bytes::from(vec![b'x'; 100_000]);
    let mut one = delivery(
        1,
        false,
        &Publish {
            body,
            ..publish(b"t", 0)
        },
    );
    one.message = one.message.shared();
    one
}

#[test]
fn a_qos_0_fan_out_encodes_once() {
    let message = large();
    let mut places = Vec::new();
    for n in 0..50 {
        let mut script = Script::connected([CONNECT_4, CONNECT_5][n % 2]);
        script.subscribe(b"t", 0);
        script.event(Event::Delivery(message.clone()));
        places.push(script.lies_at());
        assert!(script.sent().len() > 100_000);
    }
    for (n, places_of_one) in places.iter().enumerate() {
        assert_eq!((places_of_one.len(), places_of_one), (1, &places[n % 2]));
    }
    assert_ne!(places[0], places[1], "each version has its own encoding");
    for form in 0..2 {
        message.message.form(form, |_| panic!("encoded again"));
    }
}

#[test]
fn what_is_encoded_for_all_is_what_each_would_get() {
    let with = |properties: &[u8]| {
        let plain = publish(b"a/t", 0);
        Publish {
            origin: Bytes::from([&plain.origin[..], properties].concat()),
            ..plain
        }
    };
    let messages = [
        with(b""),
        with(b"\x03\0\x04text"),
        with(b"\x02\0\0\0\x3C\x03\0\x04text"),
        Publish {
            retain: true,
            ..with(b"")
        },
        Publish {
            // Of this client itself.
            origin: Bytes::from_static(b"\x04\0\0\x03a/t\0\x01c"),
            ..with(b"")
        },
        Publish {
            // Of another protocol.
            topic: Bytes::from_static(b"a"),
            key: Bytes::from_static(b"t"),
            format: Format(9),
            ..with(b"")
        },
        Publish {
            body: Bytes::from(vec![b'y'; 20_000]),
            ..with(b"")
        },
    ];
    let small = b"\x10\x13\0\x04MQTT\x05\x02\0\x0A\x05\x27\0\0\0\x40\0\x01c";
    let aliases = b"\x10\x11\0\x04MQTT\x05\x02\0\x0A\x03\x22\0\x05\0\x01c";
    for connect in [CONNECT_4, CONNECT_5, small, aliases] {
        for (options, identifier) in [(0, 0), (4, 0), (8, 0), (0, 7), (1, 0)] {
            if connect == CONNECT_4 && (options > 1 || identifier > 0) {
                continue;
            }
            for message in &messages {
                for (filter, recalled) in [(&b"a/t"[..], false), (b"a/t", true), (b"+/t", false), (b"z", false)] {
                    let sent = |is_shared: bool| {
                        let mut script = Script::connected(connect);
                        script.subscribe_with(filter, options, identifier);
                        for _ in 0..2 {
                            let mut one = delivery(1, false, message);
                            one.recalled = recalled;
                            if is_shared {
                                one.message = one.message.shared();
                            }
                            script.event(Event::Delivery(one));
                        }
                        script.sent()
                    };
                    assert_eq!(
                        sent(true),
                        sent(false),
                        "{connect:?} {options} {identifier} {message:?}"
                    );
                }
            }
        }
    }
}
