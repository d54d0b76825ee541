//! Scripts: what a client sends, what it is answered, what core is asked.

mod script;

use bytes::Bytes;
use rocketbridge_core::boundary::{Deliver, Event, Fate, Notice, Publish, Reject, Settle, SubscriptionId};
use rocketbridge_core::message::{Entry, Format, Message};
use rocketbridge_core::request::{Popped, PoppedMessage, Refusal, Reply};
use rocketbridge_core::time::Millis;
use rocketbridge_stomp::Config;
use script::{SESSION, Script, stored};

const VERSIONS: [&str; 3] = ["1.0", "1.1", "1.2"];

fn message(body: &'static [u8]) -> Publish {
    Publish {
        entry: Entry::Topic,
        topic: Bytes::from_static(b"a"),
        key: Bytes::from_static(b"b"),
        body: Bytes::from_static(body),
        format: Format(1),
        ..Publish::default()
    }
}

/// A 1.2 client with subscription 1 to `/queue/a` in that mode.
fn subscribed(mode: &str) -> Script {
    let mut script = Script::connected("1.2");
    script.send(&format!("SUBSCRIBE\nid:s\ndestination:/queue/a\nack:{mode}\n\n\0"));
    script
}

fn id(number: u64) -> String {
    format!("T_s@@{SESSION}@@{number}")
}

// --- 1.1, 1.4: connecting ---------------------------------------------------------------------

#[test]
fn the_highest_common_version_is_chosen() {
    for (header, version) in [
        ("", "1.0"),
        ("accept-version:1.0\n", "1.0"),
        ("accept-version:1.2,1.0,1.1\n", "1.2"),
        ("accept-version:1.1, 1.2\n", "1.2"),
        ("accept-version:1.1,9.9\n", "1.1"),
    ] {
        for command in ["CONNECT", "STOMP"] {
            let mut script = Script::new();
            script.send(&format!("{command}\n{header}host:any.name\n\n\0"));
            let sent = script.sent();
            assert!(sent.contains(&format!("\nversion:{version}\n")), "{header}: {sent}");
            for name in ["server:RocketBridge/", &format!("session:{SESSION}"), "heart-beat:0,0"] {
                assert!(sent.contains(&format!("\n{name}")), "{name}: {sent}");
            }
        }
    }
}

#[test]
fn without_a_common_version_ours_are_told() {
    let mut script = Script::new();
    script.send("CONNECT\naccept-version:2.0\n\n\0");
    let (message, error) = script.error();
    assert_eq!(message, "Version mismatch");
    assert!(error.contains("\nversion:1.0,1.1,1.2\n") && error.contains("\ncontent-type:text/plain\n"));
    assert!(
        error.ends_with("\n\nSupported versions are 1.0,1.1,1.2\n\0\n"),
        "{error}"
    );
}

#[test]
fn nothing_but_connect_comes_first_and_only_once() {
    for (frame, expected) in [
        ("SEND\ndestination:/queue/a\n\nx\0", "Illegal command"),
        ("HELLO\n\n\0", "Bad command"),
    ] {
        let mut script = Script::new();
        script.send(frame);
        assert_eq!(script.error().0, expected);
    }
    let mut script = Script::connected("1.2");
    script.send("CONNECT\naccept-version:1.2\n\n\0");
    assert_eq!(script.error().0, "Already connected");
}

#[test]
fn a_refused_login_and_a_strange_virtual_host_are_bad_connects() {
    let mut script = Script::new();
    script.answers = false;
    script.send("CONNECT\nlogin:bob\npasscode:x\n\n\0");
    assert!(!script.wants_read(), "nothing is read before the answer");
    script.refuse(Refusal::AccessRefused);
    let (message, error) = script.error();
    assert_eq!(message, "Bad CONNECT");
    assert!(error.contains("\n\nAccess refused for user 'bob'\0"), "{error}");
    let mut script = Script::new();
    script.send("CONNECT\naccept-version:1.2\nhost://\n\n\0");
    let (message, error) = script.error();
    assert_eq!(message, "Bad CONNECT");
    assert!(error.contains("Virtual host '//' access denied\0"), "{error}");
}

#[test]
fn a_connection_that_sends_no_connect_is_closed() {
    let mut script = Script::new();
    script.send("CONN");
    script.advance(9_999);
    assert!(!script.is_closed());
    script.advance(1);
    assert_eq!(script.error().0, "Login timeout");
}

#[test]
fn frames_behind_connect_wait_for_its_answer() {
    let mut script = Script::new();
    script.answers = false;
    script.send("CONNECT\naccept-version:1.2\n\n\0SEND\ndestination:/topic/a\n\nx\0");
    assert!(script.publishes.is_empty());
    script.answer_all();
    assert_eq!(script.publishes.len(), 1);
}

// --- 1.5: heart-beats -------------------------------------------------------------------------

fn beating(header: &str) -> Script {
    let mut script = Script::new();
    script.send(&format!("CONNECT\naccept-version:1.2\nheart-beat:{header}\n\n\0"));
    script
}

#[test]
fn what_the_client_asks_for_is_what_it_gets() {
    for (asked, told) in [("1000,2000", "2000,1000"), ("0,5000", "5000,0"), ("1,0", "0,250")] {
        let mut script = beating(asked);
        let sent = script.sent();
        assert!(sent.contains(&format!("\nheart-beat:{told}\n")), "{asked}: {sent}");
    }
    for wrong in ["", "1", "a,b", "-1,0", "1,2,3"] {
        assert_eq!(beating(wrong).error().0, "Invalid header", "{wrong}");
    }
}

#[test]
fn we_beat_before_it_is_missed_and_not_when_we_speak() {
    let mut script = beating("0,1000");
    script.sent();
    script.advance(749);
    assert_eq!(script.sent(), "");
    script.advance(1);
    assert_eq!(script.sent(), "\n");
    script.advance(500);
    script.send("SEND\ndestination:/topic/a\nreceipt:1\n\n\0");
    script.outcome(0, 1, stored());
    assert_ne!(script.sent(), "");
    script.advance(500);
    assert_eq!(script.sent(), "", "the receipt was a beat");
    script.advance(250);
    assert_eq!(script.sent(), "\n");
}

#[test]
fn a_silent_client_is_closed_after_two_intervals() {
    let mut script = beating("2000,0");
    script.sent();
    script.advance(3999);
    assert!(!script.is_closed());
    script.send("\n");
    script.advance(3999);
    assert!(!script.is_closed(), "a line end is a beat");
    script.advance(1);
    assert_eq!(script.error().0, "Heart-beat timeout");
}

#[test]
fn who_agreed_to_no_heart_beats_may_be_silent_for_ever() {
    let mut script = Script::connected("1.2");
    script.advance(u64::from(u32::MAX));
    assert!(!script.is_closed() && script.sent().is_empty());
}

// --- 1.1, 1.6: SEND and receipts --------------------------------------------------------------

#[test]
fn a_receipt_is_sent_when_the_message_is_stored() {
    for version in VERSIONS {
        let mut script = Script::connected(version);
        script.send("SEND\ndestination:/topic/a.b\nreceipt:r1\npersistent:true\n\nhello\0");
        assert_eq!(script.sent(), "");
        let publish = &script.publishes[0];
        assert_eq!(
            (publish.entry, &publish.topic[..], &publish.key[..]),
            (Entry::Topic, &b"a"[..], &b"b"[..])
        );
        assert!(publish.persistent && publish.body == "hello");
        script.outcome(0, 1, stored());
        assert_eq!(script.sent(), "RECEIPT\nreceipt-id:r1\n\n\0\n");
    }
}

#[test]
fn outcomes_in_any_order_are_each_ones_receipt() {
    let mut script = Script::connected("1.2");
    for number in 0..6 {
        let receipt = if number == 3 {
            String::new()
        } else {
            format!("receipt:{number}\n")
        };
        script.send(&format!("SEND\ndestination:/topic/a\n{receipt}\n\0"));
    }
    script.outcome(4, 2, stored());
    assert_eq!(
        script.sent(),
        "RECEIPT\nreceipt-id:4\n\n\0\nRECEIPT\nreceipt-id:5\n\n\0\n"
    );
    script.outcome(0, 2, stored());
    script.outcome(2, 2, stored());
    let sent = script.sent();
    let receipts: Vec<_> = sent
        .lines()
        .filter_map(|line| line.strip_prefix("receipt-id:"))
        .collect();
    assert_eq!(receipts, ["0", "1", "2"]);
}

#[test]
fn receipts_are_escaped_like_everything_else() {
    let mut script = Script::connected("1.2");
    script.send("SEND\ndestination:/topic/a\nreceipt:a\\cb\\\\\\n\n\n\0");
    script.outcome(0, 1, stored());
    assert_eq!(script.sent(), "RECEIPT\nreceipt-id:a\\cb\\\\\\n\n\n\0\n");
}

#[test]
fn a_message_that_is_not_taken_is_an_error_with_its_receipt() {
    for (reject, message, body) in [
        (Reject::NoExchange, "not_found", "no exchange 'nix' in vhost '/'"),
        (
            Reject::InternalExchange,
            "access_refused",
            "exchange 'nix' in vhost '/' is internal",
        ),
        (Reject::QueueFull, "resource_error", "is full"),
        (Reject::Closed, "connection_forced", "going down"),
    ] {
        let mut script = Script::connected("1.2");
        script.send("SEND\ndestination:/exchange/nix/k\nreceipt:r\n\nx\0");
        script.outcome(0, 1, Fate::Rejected(reject));
        let (told, error) = script.error();
        assert_eq!(told, message);
        assert!(
            error.contains("\nreceipt-id:r\n") && error.contains("\nx-frame:SEND\n"),
            "{error}"
        );
        assert!(error.contains(body), "{error}");
    }
}

#[test]
fn a_queue_is_declared_with_the_first_message_to_it() {
    let mut script = Script::connected("1.2");
    for _ in 0..3 {
        script.send("SEND\ndestination:/queue/q\n\nx\0SEND\ndestination:/topic/t\n\nx\0");
    }
    script.send("SEND\ndestination:/amq/queue/other\n\nx\0");
    assert_eq!(script.requests, ["declare q durable addressable"]);
    let entries: Vec<_> = script.publishes.iter().map(|p| p.entry).collect();
    assert_eq!(entries[..2], [Entry::Queue, Entry::Topic]);
    assert_eq!(script.publishes.len(), 7);
}

#[test]
fn what_a_frame_lacks_or_has_wrong_is_told_in_rabbitmqs_words() {
    for (frame, message) in [
        ("SEND\n\nx\0", "Missing destination"),
        ("SUBSCRIBE\nid:1\n\n\0", "Missing destination"),
        ("SEND\ndestination:/nowhere/x\n\n\0", "Unknown destination"),
        ("SEND\ndestination:/queue/\n\n\0", "Invalid destination"),
        ("SEND\ndestination:/queue/a/b\n\n\0", "Invalid destination"),
        ("SEND\ndestination:/topic/a\nmessage-id:1\n\n\0", "Invalid header"),
        ("SEND\ndestination:/topic/a\npriority:x\n\n\0", "Invalid header"),
        ("SEND\ndestination:/topic/a\nexpiration:-5\n\n\0", "Invalid header"),
        ("SEND\ndestination:/topic/a\nuser-id:bob\n\n\0", "precondition_failed"),
        ("SEND\ndestination:/topic/a\ntransaction:t\n\n\0", "Bad transaction"),
        ("SUBSCRIBE\ndestination:/queue/a\n\n\0", "Missing header"),
        (
            "SUBSCRIBE\nid:1\ndestination:/queue/a\nack:maybe\n\n\0",
            "Invalid header",
        ),
        ("SUBSCRIBE\nid:/temp-queue/x\ndestination:/queue/a\n\n\0", "Invalid id"),
        (
            "SUBSCRIBE\nid:1\ndestination:/topic/a\nselector:a =\n\n\0",
            "Invalid selector",
        ),
        ("UNSUBSCRIBE\nid:1\n\n\0", "No subscription found"),
        ("UNSUBSCRIBE\n\n\0", "Missing destination or id"),
        ("ACK\n\n\0", "Missing header"),
        ("ACK\nmessage-id:x\n\n\0", "Missing header"),
        ("ACK\nid:x\n\n\0", "Message not found"),
        ("BEGIN\n\n\0", "Missing transaction"),
        ("COMMIT\ntransaction:t\n\n\0", "Bad transaction"),
        ("ABORT\ntransaction:t\n\n\0", "Bad transaction"),
        ("BOGUS\n\n\0", "Bad command"),
        ("MESSAGE\n\n\0", "Bad command"),
        ("send\n\n\0", "Bad command"),
        ("SEND\nno colon\n\n\0", "malformed frame"),
        ("SEND\ncontent-length:x\n\n\0", "malformed frame"),
        ("SEND\na:\\q\n\n\0", "malformed frame"),
        ("SEND\ncontent-length:99999999999999999999\n\n", "frame too large"),
    ] {
        let mut script = Script::connected("1.2");
        script.send(frame);
        let (told, error) = script.error();
        assert_eq!(told, message, "{frame}");
        assert!(
            error.ends_with("\0\n") && error.contains("\ncontent-type:text/plain\n"),
            "{error}"
        );
        let length: usize = error
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|digits| digits.parse().ok())
            .expect("a length");
        let body = error.split_once("\n\n").expect("a blank line").1;
        assert_eq!(body.len(), length + 2, "{error}");
    }
}

#[test]
fn errors_name_the_receipt_and_the_frame() {
    let mut script = Script::connected("1.2");
    script.send("SEND\nreceipt:r9\n\n\0SEND\ndestination:/topic/a\n\nbehind\0");
    let (_, error) = script.error();
    assert!(
        error.contains("\nreceipt-id:r9\n") && error.contains("\nx-frame:SEND\n"),
        "{error}"
    );
    assert!(script.publishes.is_empty(), "nothing behind an error is handled");
}

#[test]
fn headers_that_mean_something_are_attributes_and_the_rest_comes_back_as_it_was() {
    let mut script = Script::connected("1.2");
    script.send(
        "SEND\ndestination:/topic/a.b\nreceipt:r\ncontent-type:a/b\nfoo:b:ar\nfoo:second\ncontent-length:1\nack:x\n\
         expiration:50\npersistent:true\n\nx\0",
    );
    let publish = &script.publishes[0];
    assert_eq!(
        publish.origin,
        "destination:/topic/a.b\ncontent-type:a/b\nfoo:b\\car\nexpiration:50\n"
    );
    let attributes: Vec<_> = publish.attributes.iter().map(|entry| format!("{entry:?}")).collect();
    assert_eq!(attributes.len(), 3, "{attributes:?}");
}

#[test]
fn messages_to_a_rocketmq_topic_have_tag_key_and_time() {
    let mut script = Script::connected("1.2");
    script.send("SEND\ndestination:/rocketmq/T\ntag:g\nkey:k1\n\nx\0");
    script.send("SEND\ndestination:/rocketmq/T\ndelay-level:3\npersistent:false\n\nx\0");
    script.send("SEND\ndestination:/rocketmq/T\ndeliver-at:1800000000000\n\nx\0");
    let [first, second, third] = &script.publishes[..] else {
        panic!("three messages")
    };
    assert_eq!(
        (first.entry, &first.topic[..], &first.key[..]),
        (Entry::Native, &b"T"[..], &b"g"[..])
    );
    assert!(first.persistent && !second.persistent);
    assert_eq!(first.deliver, Deliver::Now);
    assert_eq!(second.deliver, Deliver::After(Millis(10_000)));
    assert_eq!(third.deliver, Deliver::At(Millis(1_800_000_000_000)));
}

// --- 1.2, 1.8: SUBSCRIBE, MESSAGE, ACK --------------------------------------------------------

#[test]
fn a_subscription_to_a_queue_declares_and_consumes_it() {
    let mut script = Script::connected("1.2");
    script.answers = false;
    script.send("SUBSCRIBE\nid:s\ndestination:/queue/a\nreceipt:r\nprefetch-count:5\nack:client\n\n\0");
    assert_eq!(
        script.requests,
        ["declare a durable addressable", "subscribe a Always Some(5)"]
    );
    assert_eq!(script.sent(), "");
    script.answer_all();
    assert_eq!(script.sent(), "RECEIPT\nreceipt-id:r\n\n\0\n");
    script.send("SUBSCRIBE\nid:s\ndestination:/queue/b\n\n\0");
    let (message, error) = script.error();
    assert_eq!(message, "Duplicated subscription identifier");
    assert!(
        error.contains("A subscription identified by 'T_s' already exists."),
        "{error}"
    );
}

#[test]
fn a_message_has_the_headers_of_its_version() {
    for (version, ack, expected) in [
        (
            "1.0",
            "auto",
            "MESSAGE\nmessage-id:Q_/queue/a@@{s}@@1\nredelivered:false\ncontent-length:2\ndestination:/topic/a.b\n\nhi\0\n",
        ),
        (
            "1.1",
            "client",
            "MESSAGE\nsubscription:s\nmessage-id:T_s@@{s}@@1\nredelivered:false\ncontent-length:2\ndestination:/topic/a.b\n\nhi\0\n",
        ),
        (
            "1.2",
            "auto",
            "MESSAGE\nsubscription:s\nmessage-id:T_s@@{s}@@1\nredelivered:false\ncontent-length:2\ndestination:/topic/a.b\n\nhi\0\n",
        ),
        (
            "1.2",
            "client",
            "MESSAGE\nsubscription:s\nmessage-id:T_s@@{s}@@1\nack:T_s@@{s}@@1\nredelivered:false\ncontent-length:2\ndestination:/topic/a.b\n\nhi\0\n",
        ),
    ] {
        let mut script = Script::connected(version);
        let id = if version == "1.0" { "" } else { "id:s\n" };
        script.send(&format!("SUBSCRIBE\n{id}destination:/queue/a\nack:{ack}\n\n\0"));
        script.sent();
        script.deliver(1, 9, ack != "auto", &message(b"hi"));
        assert_eq!(script.sent(), expected.replace("{s}", SESSION), "{version} {ack}");
    }
}

#[test]
fn redelivered_persistent_and_empty_messages_say_so() {
    let mut script = subscribed("client");
    let mut publish = message(b"");
    publish.persistent = true;
    script.deliver_again(1, 1, true, true, &publish);
    let sent = script.sent();
    assert!(sent.contains("\nredelivered:true\npersistent:true\n"), "{sent}");
    assert!(!sent.contains("content-length") && sent.ends_with("\n\n\0\n"), "{sent}");
}

#[test]
fn client_mode_settles_all_before_and_individual_only_one() {
    for (mode, frame, expected) in [
        ("client", "ACK", vec![(1, 10, 3, Settle::Ack)]),
        ("client", "NACK", vec![(1, 10, 3, Settle::Release)]),
        ("client-individual", "ACK", vec![(1, 12, 1, Settle::Ack)]),
        ("client-individual", "NACK", vec![(1, 12, 1, Settle::Release)]),
    ] {
        let mut script = subscribed(mode);
        (0..5).for_each(|number| script.deliver(1, 10 + number, true, &message(b"x")));
        script.send(&format!("{frame}\nid:{}\nreceipt:a\n\n\0", id(3)));
        assert_eq!(script.settled, expected, "{mode} {frame}");
        assert!(script.sent().ends_with("RECEIPT\nreceipt-id:a\n\n\0\n"));
        script.send(&format!("{frame}\nid:{}\n\n\0", id(3)));
        assert_eq!(script.error().0, "Message not found", "it is settled once");
    }
}

#[test]
fn cumulative_acks_stay_within_their_subscription() {
    let mut script = subscribed("client");
    script.send("SUBSCRIBE\nid:t\ndestination:/queue/b\nack:client\n\n\0");
    script.deliver(1, 1, true, &message(b"x"));
    script.deliver(2, 7, true, &message(b"x"));
    script.deliver(1, 2, true, &message(b"x"));
    script.send(&format!("ACK\nid:{}\n\n\0", id(2)));
    assert_eq!(script.settled, [(1, 1, 2, Settle::Ack)]);
}

#[test]
fn nack_without_requeue_refuses_for_good() {
    let mut script = subscribed("client-individual");
    script.deliver(1, 1, true, &message(b"x"));
    script.deliver(1, 2, true, &message(b"x"));
    script.send(&format!("NACK\nid:{}\nrequeue:false\n\n\0", id(1)));
    assert_eq!(script.settled, [(1, 1, 1, Settle::Reject)]);
    // Python writes it like that.
    script.send(&format!("NACK\nid:{}\nrequeue:False\n\n\0", id(2)));
    assert_eq!(script.settled, [(1, 1, 1, Settle::Reject), (1, 2, 1, Settle::Reject)]);
    let config = Config {
        nack_requeue: false,
        ..Config::default()
    };
    let mut script = Script::connected_with(config, "1.2");
    script.send("SUBSCRIBE\nid:s\ndestination:/queue/a\nack:client\n\n\0");
    script.deliver(1, 1, true, &message(b"x"));
    script.send(&format!("NACK\nid:{}\n\n\0", id(1)));
    assert_eq!(script.settled, [(1, 1, 1, Settle::Reject)]);
}

#[test]
fn older_versions_name_deliveries_by_message_id() {
    let mut script = Script::connected("1.1");
    script.send("SUBSCRIBE\nid:s\ndestination:/queue/a\nack:client\n\n\0");
    script.deliver(1, 1, true, &message(b"x"));
    script.deliver(1, 2, true, &message(b"x"));
    script.send(&format!("ACK\nmessage-id:{}\nsubscription:s\n\n\0", id(1)));
    assert_eq!(script.settled, [(1, 1, 1, Settle::Ack)]);
    // As in RabbitMQ: the id says of which subscription it is.
    script.send(&format!("NACK\nmessage-id:{}\nsubscription:other\n\n\0", id(2)));
    assert_eq!(script.settled, [(1, 1, 1, Settle::Ack), (1, 2, 1, Settle::Release)]);

    // RabbitMQ lets 1.0 say NACK too.
    let mut script = Script::connected("1.0");
    script.send("SUBSCRIBE\ndestination:/queue/a\nack:client\n\n\0");
    script.deliver(1, 1, true, &message(b"x"));
    script.send(&format!("NACK\nmessage-id:Q_/queue/a@@{SESSION}@@1\n\n\0"));
    assert_eq!(script.settled, [(1, 1, 1, Settle::Release)]);
}

#[test]
fn deliveries_of_auto_mode_need_no_ack() {
    let mut script = subscribed("auto");
    script.deliver(1, 1, false, &message(b"x"));
    script.send(&format!("ACK\nid:{}\n\n\0", id(1)));
    assert_eq!(script.error().0, "Message not found");
}

#[test]
fn unsubscribing_gives_back_what_is_not_settled() {
    let mut script = subscribed("client");
    script.deliver(1, 1, true, &message(b"x"));
    script.sent();
    script.answers = false;
    script.send("UNSUBSCRIBE\nid:s\nreceipt:u\n\n\0");
    assert_eq!(script.settled, [(1, 1, 1, Settle::Release)]);
    script.deliver(1, 2, true, &message(b"late"));
    assert_eq!(script.settled.last(), Some(&(1, 2, 1, Settle::Release)));
    assert_eq!(script.sent(), "");
    script.answer_all();
    assert_eq!(script.sent(), "RECEIPT\nreceipt-id:u\n\n\0\n");
    script.answers = true;
    script.send("SUBSCRIBE\nid:s\ndestination:/queue/a\nreceipt:again\n\n\0");
    assert_eq!(
        script.sent(),
        "RECEIPT\nreceipt-id:again\n\n\0\n",
        "the id is free again"
    );
}

#[test]
fn version_1_0_unsubscribes_by_destination() {
    let mut script = Script::connected("1.0");
    script.send("SUBSCRIBE\ndestination:/queue/a\n\n\0UNSUBSCRIBE\ndestination:/queue/a\nreceipt:u\n\n\0");
    assert_eq!(script.sent(), "RECEIPT\nreceipt-id:u\n\n\0\n");
}

#[test]
fn a_topic_has_a_queue_of_its_own_that_goes_with_the_subscription() {
    let mut script = Script::connected("1.2");
    script.send("SUBSCRIBE\nid:s\ndestination:/topic/a.*\n\n\0");
    assert!(
        script.requests[0].starts_with("declare stomp-subscription-"),
        "{:?}",
        script.requests
    );
    assert!(
        script.requests[0].ends_with(" exclusive auto-delete"),
        "{:?}",
        script.requests
    );
    assert_eq!(script.requests[1], "bind Everything");
}

#[test]
fn a_durable_subscription_keeps_its_queue_until_it_is_ended_as_one() {
    let declare = |frame: &str| {
        let mut script = Script::connected("1.2");
        script.send(frame);
        script.requests[0].clone()
    };
    let durable = "SUBSCRIBE\nid:s\ndestination:/topic/a\ndurable:true\n\n\0";
    let first = declare(durable);
    assert!(first.ends_with(" durable"), "{first}");
    assert_eq!(first, declare(durable), "another connection with the same id shares it");
    assert_eq!(
        first,
        declare("SUBSCRIBE\nid:s\ndestination:/topic/a\npersistent:true\n\n\0")
    );
    assert_ne!(
        first,
        declare("SUBSCRIBE\nid:other\ndestination:/topic/a\ndurable:true\n\n\0")
    );
    let named = declare("SUBSCRIBE\nid:s\ndestination:/topic/a\nactivemq.subscriptionName:n\n\n\0");
    assert!(named.contains("durable"), "{named}");

    let mut script = Script::connected("1.2");
    script.send(durable);
    script.send("UNSUBSCRIBE\nid:s\n\n\0");
    assert_eq!(
        script.requests.last().map(String::as_str),
        Some("unsubscribe 1"),
        "it is only detached"
    );
    script.send(durable);
    script.send("UNSUBSCRIBE\nid:s\ndurable:true\nreceipt:u\n\n\0");
    assert!(
        script
            .requests
            .last()
            .expect("asked")
            .starts_with("delete stomp-subscription-")
    );
    assert!(script.sent().ends_with("receipt-id:u\n\n\0\n"));

    let mut script = Script::connected("1.0");
    script.send("SUBSCRIBE\ndestination:/topic/a\ndurable:true\n\n\0");
    assert_eq!(script.error().0, "Missing Header");
}

#[test]
fn an_exchange_is_looked_up_before_it_is_bound_to() {
    let mut script = Script::connected("1.2");
    script.answers = false;
    script.send("SUBSCRIBE\nid:s\ndestination:/exchange/E/k\nreceipt:r\n\n\0SEND\ndestination:/exchange/E/k\n\nx\0");
    assert_eq!(script.requests, ["find E"]);
    assert!(
        script.publishes.is_empty(),
        "what comes behind finds the subscription made"
    );
    script.answer_all();
    assert_eq!(script.requests.len(), 4, "{:?}", script.requests);
    assert_eq!(script.publishes.len(), 1);

    let mut script = Script::connected("1.2");
    script.answers = false;
    script.send("SUBSCRIBE\nid:s\ndestination:/exchange/nix\nreceipt:r\n\n\0");
    script.refuse(Refusal::NotFound {
        what: "exchange",
        name: Bytes::from_static(b"nix"),
    });
    let (message, error) = script.error();
    assert_eq!(message, "not_found");
    assert!(
        error.contains("\n\nno exchange 'nix'") && error.contains("\nreceipt-id:r\n"),
        "{error}"
    );
}

#[test]
fn refusals_of_core_are_errors() {
    for (refusal, message) in [
        (Refusal::Locked, "resource_locked"),
        (Refusal::AccessRefused, "access_refused"),
        (Refusal::Invalid("no".to_owned()), "precondition_failed"),
        (Refusal::NotSupported("that"), "not_implemented"),
    ] {
        let mut script = Script::connected("1.2");
        script.answers = false;
        script.send("SUBSCRIBE\nid:s\ndestination:/queue/a\nreceipt:r\n\n\0");
        script.refuse(refusal);
        let (told, error) = script.error();
        assert_eq!(told, message);
        assert!(error.contains("\nreceipt-id:r\n"), "{error}");
    }
}

#[test]
fn a_reply_to_a_temporary_queue_makes_it_and_consumes_it() {
    let mut script = Script::connected("1.2");
    script.send("SEND\ndestination:/queue/service\nreply-to:/temp-queue/foo\n\nask\0");
    let queue = "stomp-temp-0000000000000007-1";
    assert_eq!(
        script.requests[1..],
        [
            format!("declare {queue} exclusive"),
            format!("subscribe {queue} Never None")
        ]
    );
    let origin = String::from_utf8(script.publishes[0].origin.to_vec()).expect("text");
    assert!(origin.contains(&format!("reply-to:/reply-queue/{queue}\n")), "{origin}");
    script.deliver(1, 1, false, &message(b"answer"));
    assert!(script.sent().starts_with("MESSAGE\nsubscription:/temp-queue/foo\n"));
    script.send("SEND\ndestination:/queue/service\nreply-to:/temp-queue/foo\n\nask\0");
    assert_eq!(script.requests.len(), 3, "once is enough");
}

#[test]
fn queue_arguments_are_asked_for_with_their_types() {
    let mut script = Script::connected("1.2");
    for (headers, message) in [
        ("x-max-length:many\n", "Invalid header"),
        ("x-queue-type:stream\n", "not_implemented"),
        ("x-overflow:nix\n", "Invalid header"),
        ("x-dead-letter-routing-key:k\n", "Invalid header"),
        ("durable:maybe\n", "Invalid header"),
    ] {
        let mut script = Script::connected("1.2");
        script.send(&format!("SUBSCRIBE\nid:s\ndestination:/queue/a\n{headers}\n\0"));
        assert_eq!(script.error().0, message, "{headers}");
    }
    script.send(
        "SUBSCRIBE\nid:s\ndestination:/queue/a\nx-message-ttl:5\nx-max-length:3\nx-dead-letter-exchange:e\n\
         x-dead-letter-routing-key:k\nx-max-priority:9\ndurable:false\n\n\0",
    );
    assert_eq!(script.requests[0], "declare a addressable");
}

#[test]
fn a_deleted_queue_ends_the_connection_of_its_subscribers() {
    let mut script = subscribed("client");
    script.event(Event::Notice(Notice::SubscriptionEnded(SubscriptionId(1))));
    let (message, error) = script.error();
    assert_eq!(message, "Server cancelled subscription");
    assert!(error.contains("\nsubscription:s\n"), "{error}");
}

// --- 1.9: transactions ------------------------------------------------------------------------

#[test]
fn frames_of_a_transaction_take_effect_together() {
    let mut script = subscribed("client-individual");
    script.deliver(1, 1, true, &message(b"x"));
    script.deliver(1, 2, true, &message(b"x"));
    script.sent();
    script.send("BEGIN\ntransaction:t\nreceipt:b\n\n\0");
    script.send("SEND\ndestination:/topic/a\ntransaction:t\nreceipt:s1\n\none\0");
    script.send(&format!("ACK\nid:{}\ntransaction:t\nreceipt:a\n\n\0", id(1)));
    script.send(&format!("NACK\nid:{}\ntransaction:t\n\n\0", id(2)));
    assert!(script.publishes.is_empty() && script.settled.is_empty());
    assert_eq!(
        script.sent(),
        "RECEIPT\nreceipt-id:b\n\n\0\nRECEIPT\nreceipt-id:a\n\n\0\n"
    );
    script.answers = false;
    script.send("COMMIT\ntransaction:t\nreceipt:c\n\n\0");
    assert_eq!(script.requests.last().map(String::as_str), Some("commit 1 2"));
    assert_eq!(script.sent(), "");
    script.answer_all();
    assert_eq!(
        script.sent(),
        "RECEIPT\nreceipt-id:s1\n\n\0\nRECEIPT\nreceipt-id:c\n\n\0\n"
    );
}

#[test]
fn an_aborted_transaction_never_was() {
    let mut script = subscribed("client-individual");
    script.deliver(1, 1, true, &message(b"x"));
    script.send("BEGIN\ntransaction:t\n\n\0SEND\ndestination:/topic/a\ntransaction:t\n\none\0");
    script.send(&format!("ACK\nid:{}\ntransaction:t\n\n\0", id(1)));
    script.send("ABORT\ntransaction:t\n\n\0");
    assert!(script.publishes.is_empty() && script.settled.is_empty());
    script.send(&format!("ACK\nid:{}\n\n\0", id(1)));
    assert_eq!(
        script.settled,
        [(1, 1, 1, Settle::Ack)],
        "the delivery is still ours to settle"
    );
    script.send("BEGIN\ntransaction:t\n\n\0");
    assert!(!script.is_closed(), "the name is free again");
}

#[test]
fn a_delivery_settled_twice_in_a_transaction_fails_all_of_it() {
    let mut script = subscribed("client-individual");
    script.deliver(1, 1, true, &message(b"x"));
    script.send("BEGIN\ntransaction:t\n\n\0SEND\ndestination:/topic/a\ntransaction:t\n\none\0");
    for _ in 0..2 {
        script.send(&format!("ACK\nid:{}\ntransaction:t\n\n\0", id(1)));
    }
    script.send("COMMIT\ntransaction:t\n\n\0");
    assert_eq!(script.error().0, "Message not found");
    assert!(script.requests.iter().all(|request| !request.starts_with("commit")));
}

#[test]
fn transactions_have_limits() {
    let config = Config {
        transactions_max: 2,
        transaction_frames_max: 3,
        transactions_size_max: 1000,
        ..Config::default()
    };
    let begun = || {
        let mut script = Script::connected_with(config.clone(), "1.2");
        script.send("BEGIN\ntransaction:t\n\n\0");
        script
    };
    let mut script = begun();
    script.send("BEGIN\ntransaction:t\n\n\0");
    assert_eq!(script.error().0, "Bad transaction", "open already");
    let mut script = begun();
    script.send("BEGIN\ntransaction:u\n\n\0BEGIN\ntransaction:v\n\n\0");
    assert_eq!(script.error().0, "Transaction limit exceeded");
    let send = "SEND\ndestination:/topic/a\ntransaction:t\n\nx\0";
    let mut script = begun();
    script.send(&send.repeat(3));
    assert!(!script.is_closed());
    script.send(send);
    assert_eq!(script.error().0, "Transaction too large");
    let mut script = begun();
    script.send(&format!(
        "SEND\ndestination:/topic/a\ntransaction:t\n\n{}\0",
        "x".repeat(2000)
    ));
    assert_eq!(script.error().0, "Transaction too large");
}

#[test]
fn a_batch_that_core_refuses_is_an_error() {
    let mut script = Script::connected("1.2");
    script.send("BEGIN\ntransaction:t\n\n\0SEND\ndestination:/exchange/nix\ntransaction:t\n\nx\0");
    script.answers = false;
    script.send("COMMIT\ntransaction:t\nreceipt:c\n\n\0");
    script.refuse(Refusal::Rejected {
        index: 0,
        reject: Reject::NoExchange,
    });
    let (message, error) = script.error();
    assert_eq!(message, "not_found");
    assert!(error.contains("\nreceipt-id:c\n"), "{error}");
}

/// A member of group `g` with two messages of topic `t`.
fn popping() -> Script {
    popping_with("client-individual")
}

fn popping_with(ack: &str) -> Script {
    let mut script = Script::connected("1.2");
    script.answers = false;
    script.send(&format!(
        "SUBSCRIBE\nid:s\ndestination:/rocketmq/t\ngroup:g\nack:{ack}\n\n\0"
    ));
    script.reply(Ok(Reply::Done));
    let host = "127.0.0.1:1".parse().expect("an address");
    let popped = |offset| PoppedMessage {
        queue_id: 0,
        offset,
        lease: 7,
        attempts: 0,
        redelivered: false,
        message: Message::from_publish(&message(b"x"), host, host, Millis(1)),
    };
    let popped = Popped {
        messages: vec![popped(0), popped(1)],
        popped_at: Millis(1),
        remaining: 0,
    };
    script.reply(Ok(Reply::Popped(Box::new(popped))));
    script.requests.clear();
    script
}

#[test]
fn a_groups_messages_are_part_of_a_transaction() {
    let mut script = popping();
    script.send("BEGIN\ntransaction:t\n\n\0SEND\ndestination:/topic/a\ntransaction:t\n\none\0");
    script.send(&format!("ACK\nid:{}\ntransaction:t\n\n\0", id(1)));
    script.send(&format!("NACK\nid:{}\ntransaction:t\nrequeue:false\n\n\0", id(2)));
    assert!(script.requests.iter().all(|request| !request.starts_with("commit")));
    script.send("COMMIT\ntransaction:t\nreceipt:c\n\n\0");
    assert_eq!(
        script.requests.last().map(String::as_str),
        Some("commit 1 0 Ack of 1, Reject of 1")
    );
    script.send(&format!("ACK\nid:{}\n\n\0", id(1)));
    assert_eq!(script.error().0, "Message not found", "it is settled");
}

#[test]
fn what_a_refused_transaction_would_have_settled_of_a_group_goes_back_at_once() {
    let mut script = popping();
    script.send("BEGIN\ntransaction:t\n\n\0");
    for number in [1, 2] {
        script.send(&format!("ACK\nid:{}\ntransaction:t\n\n\0", id(number)));
    }
    script.send("COMMIT\ntransaction:t\nreceipt:c\n\n\0");
    script.requests.clear();
    script.refuse_last(Refusal::LeaseEnded);
    let (message, error) = script.error();
    assert_eq!(message, "precondition_failed");
    assert!(error.contains("\nreceipt-id:c\n"), "{error}");
    let back = script
        .requests
        .iter()
        .filter(|request| request.starts_with("ChangeInvisible"));
    assert_eq!(back.count(), 2, "{:?}", script.requests);
}

#[test]
fn a_groups_message_refused_for_good_is_rejected() {
    let mut script = popping();
    script.send(&format!("NACK\nid:{}\nrequeue:false\n\n\0", id(1)));
    assert!(
        script.requests.contains(&"commit 0 0 Reject of 1".to_owned()),
        "{:?}",
        script.requests
    );
}

/// A batch is refused as a whole when one lease in it has ended.
#[test]
fn a_groups_messages_refused_for_good_together_are_rejected_each_by_itself() {
    let mut script = popping_with("client");
    script.send(&format!("NACK\nid:{}\nrequeue:false\n\n\0", id(2)));
    let commits = script.requests.iter().filter(|request| request.starts_with("commit"));
    assert_eq!(commits.collect::<Vec<_>>(), ["commit 0 0 Reject of 1"; 2]);
}

// --- 1.10: DISCONNECT -------------------------------------------------------------------------

#[test]
fn disconnect_is_answered_last() {
    let mut script = Script::connected("1.2");
    script.send(
        "SEND\ndestination:/topic/a\nreceipt:s\n\nx\0DISCONNECT\nreceipt:bye\n\n\0SEND\ndestination:/topic/b\n\n\0",
    );
    assert_eq!(script.publishes.len(), 1, "nothing behind it is read");
    assert!(!script.is_closed());
    script.outcome(0, 1, stored());
    assert_eq!(
        script.sent(),
        "RECEIPT\nreceipt-id:s\n\n\0\nRECEIPT\nreceipt-id:bye\n\n\0\n"
    );
    assert!(script.is_closed());
    let mut script = Script::connected("1.2");
    script.send("DISCONNECT\n\n\0");
    assert!(script.is_closed() && script.sent().is_empty());
}

#[test]
fn a_broker_that_goes_down_says_so() {
    let mut script = Script::connected("1.2");
    script.shut_down();
    assert_eq!(script.error().0, "connection_forced");
}

#[test]
fn many_subscriptions_and_receipts_stop_the_reading() {
    let config = Config {
        subscriptions_max: 2,
        ..Config::default()
    };
    let mut script = Script::connected_with(config, "1.2");
    for id in 0..2 {
        script.send(&format!("SUBSCRIBE\nid:{id}\ndestination:/queue/a\n\n\0"));
    }
    script.send("SUBSCRIBE\nid:2\ndestination:/queue/a\n\n\0");
    assert_eq!(script.error().0, "Subscription limit exceeded");
    let mut script = Script::connected("1.2");
    script.send(&"SEND\ndestination:/topic/a\n\n\0".repeat(70_000));
    assert!(!script.wants_read());
    let taken = script.publishes.len();
    assert!(taken < 70_000);
    script.outcome(0, taken as u32, stored());
    assert_eq!(script.publishes.len(), 70_000);
}
