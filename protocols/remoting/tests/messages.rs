//! Sends, pulls and offsets.

mod common;

use std::ops::Range;

use common::{Ordered, Script, batch_message, bytes, long_header, message_of, short_header, store_host, stored, with};
use rocketbridge_core::boundary::{Event, Fate, Outcome, Reject};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{Filter, PullStatus, Pulled, Refusal, Reply, Request, ResetTo, Topic};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::Millis;
use rocketbridge_remoting::Config;
use rocketbridge_remoting::codec::{FLAG_ONEWAY, SerializeType};
use rocketbridge_remoting::mapping::{offset_id, record_lengths};
use rocketbridge_session::{Order, Session as _};

fn message_id(position: u64) -> String {
    let mut id = Vec::new();
    offset_id::push(&mut id, store_host(), Position(position));
    String::from_utf8(id).unwrap()
}

// --- sends ------------------------------------------------------------------------------------------

#[test]
fn a_send_is_published_as_it_came_whatever_its_fields_are_called() {
    for (code, fields) in [(10, long_header("T")), (310, short_header("T"))] {
        for serialize_type in [SerializeType::Json, SerializeType::RocketMq] {
            let mut script = Script::new();
            let opaque = script.send_as(serialize_type, 0, code, &fields, b"payload");
            let publish = script.one_publish();
            assert_eq!((publish.entry, publish.format), (Entry::Native, Format::NATIVE));
            assert_eq!((&publish.topic[..], &publish.key[..]), (&b"T"[..], &b"t"[..]));
            assert_eq!(publish.body, "payload");
            assert_eq!(
                publish.origin,
                "KEYS\u{1}k\u{2}TAGS\u{1}t\u{2}UNIQ_KEY\u{1}ABC\u{2}MSG_REGION\u{1}DefaultRegion\u{2}TRACE_ON\u{1}true\u{2}CLUSTER\u{1}DefaultCluster\u{2}"
            );
            assert!(publish.persistent && publish.detailed && !publish.mandatory);
            let native = publish.native.as_ref().unwrap();
            assert_eq!((native.queue_id, native.flag, native.sys_flag), (Some(1), 7, 0));
            assert_eq!(native.born_at, Millis(1_700_000_000_000));
            assert_eq!((native.reconsume_times, native.topic_queues), (0, 4));

            script.outcome(publish.token, stored(4711, 1, 12));
            let answer = script.answer();
            assert_eq!((answer.code, answer.opaque), (0, opaque));
            assert_eq!(answer.field("msgId"), message_id(4711));
            assert_eq!(answer.field("msgId").len(), 32);
            assert_eq!((answer.field("queueId"), answer.field("queueOffset")), ("1", "12"));
            assert_eq!(answer.field("transactionId"), "ABC");
            assert_eq!(
                (answer.field("MSG_REGION"), answer.field("TRACE_ON")),
                ("DefaultRegion", "true")
            );
        }
    }
}

#[test]
fn a_message_without_a_unique_key_gets_one_of_its_own() {
    let mut script = Script::new();
    let mut keys = Vec::new();
    for _ in 0..2 {
        script.send(310, &with(short_header("T"), "i", ""), b"x");
        let token = script.one_publish().token;
        script.outcome(token, stored(1, 0, 0));
        keys.push(script.answer().field("transactionId").to_owned());
    }
    assert_eq!(keys[0].len(), 32);
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn tokens_rise_by_one_and_outcomes_may_come_in_any_order() {
    let mut script = Script::new();
    let opaques: Vec<_> = (0..4).map(|_| script.send(10, &long_header("T"), b"x")).collect();
    let tokens: Vec<_> = script.publishes().iter().map(|publish| publish.token).collect();
    assert_eq!(tokens, [0, 1, 2, 3]);
    script.outcome(2, stored(30, 0, 0));
    assert_eq!(script.answer().opaque, opaques[2]);
    let run = Outcome {
        first: 0,
        count: 2,
        fate: Fate::Rejected(Reject::Closed),
    };
    script.events(vec![Event::Outcome(run)]);
    let answers = script.answers();
    assert_eq!(
        answers
            .iter()
            .map(|answer| (answer.opaque, answer.code))
            .collect::<Vec<_>>(),
        [(opaques[0], 14), (opaques[1], 14)]
    );
    script.outcome(3, stored(40, 0, 0));
    assert_eq!(script.answer().opaque, opaques[3]);
    // Told twice, or never published: nothing.
    script.outcome(3, stored(40, 0, 0));
    script.outcome(99, stored(40, 0, 0));
    assert!(script.answers().is_empty());
    script.send(10, &long_header("T"), b"x");
    assert_eq!(script.one_publish().token, 4);
}

#[test]
fn each_fate_has_its_code() {
    let fates = [
        (Reject::NoTopic, 17),
        (Reject::NoQueue, 29),
        (Reject::TooLarge, 13),
        (Reject::AccessRefused, 16),
        (Reject::Closed, 14),
        (Reject::QueueFull, 2),
        (Reject::NoExchange, 1),
        (Reject::InternalExchange, 1),
    ];
    let mut script = Script::new();
    for (reject, code) in fates {
        script.send(310, &short_header("T"), b"x");
        let token = script.one_publish().token;
        script.outcome(token, Fate::Rejected(reject));
        let answer = script.answer();
        assert_eq!(answer.code, code, "{reject:?}");
        assert!(!answer.remark.is_empty());
    }
    script.send(310, &short_header("T"), b"x");
    let token = script.one_publish().token;
    script.outcome(token, Fate::Unknown);
    assert_eq!(script.answer().code, 1);
}

#[test]
fn a_one_way_send_is_stored_and_not_answered() {
    let mut script = Script::new();
    script.send_as(SerializeType::Json, FLAG_ONEWAY, 310, &short_header("T"), b"x");
    let publish = script.one_publish();
    assert!(!publish.detailed);
    script.outcome(publish.token, stored(1, 0, 0));
    script.send_as(SerializeType::Json, FLAG_ONEWAY, 310, &short_header("no.topic"), b"x");
    assert!(script.answers().is_empty() && script.orders().is_empty());
}

#[test]
fn a_topic_is_made_with_the_queues_its_producer_wants_and_only_for_tbw102() {
    let queues = |config: Config, fields: Vec<(&str, &str)>| {
        let mut script = Script::with(config);
        script.send(310, &fields, b"x");
        script.one_publish().native.unwrap().topic_queues
    };
    let header = || short_header("T");
    assert_eq!(queues(Config::default(), with(header(), "d", "4")), 4);
    assert_eq!(queues(Config::default(), with(header(), "d", "100")), 8);
    assert_eq!(queues(Config::default(), with(header(), "d", "-1")), 1);
    assert_eq!(queues(Config::default(), with(header(), "c", "other")), 0);
    let config = Config {
        topics_auto_create: false,
        ..Config::default()
    };
    assert_eq!(queues(config, header()), 0);
}

#[test]
fn the_broker_chooses_the_message_queue_for_a_negative_number() {
    let mut script = Script::new();
    script.send(310, &with(short_header("T"), "e", "-1"), b"x");
    assert_eq!(script.one_publish().native.unwrap().queue_id, None);
}

#[test]
fn what_cannot_be_stored_is_refused_before_core_sees_it() {
    let mut script = Script::with(Config {
        body_max: 100,
        ..Config::default()
    });
    let header = || short_header("T");
    let long_value = format!("k\u{1}{}\u{2}", "v".repeat(32_768));
    let long_topic = "x".repeat(128);
    let cases = vec![
        (header(), &[0; 101][..], 13),
        (header(), b"", 13),
        (with(header(), "i", &long_value), b"x", 13),
        (with(header(), "b", "no.topic"), b"x", 29),
        (with(header(), "b", ""), b"x", 29),
        (with(header(), "b", &long_topic), b"x", 29),
        (with(header(), "b", "SCHEDULE_TOPIC_XXXX"), b"x", 16),
        (with(header(), "b", "RMQ_SYS_TRANS_HALF_TOPIC"), b"x", 16),
        (with(header(), "i", "DELAY\u{1}x\u{2}"), b"x", 13),
        (with(header(), "i", "TIMER_DELIVER_MS\u{1}soon\u{2}"), b"x", 13),
        (with(header(), "f", "64"), b"x", 13),
        (with(header(), "f", "x"), b"x", 1),
        (with(header(), "e", "2147483648"), b"x", 1),
    ];
    for (fields, body, code) in cases {
        script.send(310, &fields, body);
        let answer = script.answer();
        assert_eq!(answer.code, code, "{fields:?}");
        assert!(!answer.remark.is_empty());
    }
    for field in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let mut fields = header();
        fields.retain(|(name, _)| *name != field);
        script.send(310, &fields, b"x");
        let answer = script.answer();
        assert_eq!(answer.code, 1);
        assert_eq!(answer.remark, format!("the custom field <{field}> is null"));
    }
    assert!(script.orders().is_empty());
    // And right after all that one that can be.
    script.send(310, &header(), &[0; 100]);
    assert_eq!(script.one_publish().body.len(), 100);
}

#[test]
fn a_batch_is_one_answer_for_messages_of_their_own() {
    let mut script = Script::new();
    let body = [
        batch_message(1, b"one", b"TAGS\x01a\x02UNIQ_KEY\x01A\x02"),
        batch_message(2, b"two", b"TAGS\x01b\x02"),
    ]
    .concat();
    let fields = with(short_header("T"), "m", "true");
    let opaque = script.send(320, &fields, &body);
    let publishes = script.publishes();
    assert_eq!(publishes.len(), 2);
    assert_eq!(
        (&publishes[0].body[..], &publishes[1].body[..]),
        (&b"one"[..], &b"two"[..])
    );
    assert_eq!((&publishes[0].key[..], &publishes[1].key[..]), (&b"a"[..], &b"b"[..]));
    assert_eq!(publishes[1].native.as_ref().unwrap().flag, 2);
    script.outcome(publishes[1].token, stored(200, 1, 8));
    assert!(script.answers().is_empty());
    script.outcome(publishes[0].token, stored(100, 1, 7));
    let answer = script.answer();
    assert_eq!((answer.code, answer.opaque), (0, opaque));
    assert_eq!(
        answer.field("msgId"),
        format!("{},{}", message_id(100), message_id(200))
    );
    assert_eq!((answer.field("queueId"), answer.field("queueOffset")), ("1", "7"));
    assert!(!answer.fields.contains_key("transactionId"));
}

#[test]
fn a_batch_that_is_wrong_anywhere_stores_nothing() {
    let mut script = Script::with(Config {
        batch_messages_max: 2,
        ..Config::default()
    });
    let good = batch_message(0, b"x", b"");
    let delayed = batch_message(0, b"x", b"DELAY\x011\x02");
    let fields = with(short_header("T"), "m", "true");
    for body in [
        [&good[..], &delayed].concat(),
        [&good[..], &good[..5]].concat(),
        [&good[..], b"\0"].concat(),
        good.repeat(3),
    ] {
        script.send(320, &fields, &body);
        assert_eq!(script.answer().code, 13);
    }
    script.send(320, &with(fields, "i", "DELAY\u{1}1\u{2}"), &good);
    assert_eq!(script.answer().code, 13);
    assert!(script.orders().is_empty());
}

#[test]
fn a_batch_of_which_one_message_is_rejected_is_refused() {
    let mut script = Script::new();
    let body = batch_message(0, b"x", b"").repeat(2);
    script.send(320, &with(short_header("T"), "m", "true"), &body);
    let publishes = script.publishes();
    script.outcome(publishes[0].token, stored(100, 1, 7));
    script.outcome(publishes[1].token, Fate::Rejected(Reject::NoQueue));
    assert_eq!(script.answer().code, 29);
}

#[test]
fn a_batch_without_a_message_queue_goes_to_one_of_its_topic() {
    let mut script = Script::new();
    let body = batch_message(0, b"x", b"").repeat(3);
    let fields = with(with(short_header("T"), "m", "true"), "e", "-1");
    for (reply, queues) in [
        (
            Ok(Reply::Topic(Topic {
                name: bytes("T"),
                queues: 2,
            })),
            2,
        ),
        (
            Err(Refusal::NotFound {
                what: "topic",
                name: bytes("T"),
            }),
            4,
        ),
    ] {
        script.send(320, &fields, &body);
        let (id, request) = script.one_request();
        assert!(matches!(request, Request::FindTopic { .. }));
        script.reply(id, reply);
        let chosen: Vec<_> = script
            .publishes()
            .iter()
            .map(|publish| publish.native.as_ref().unwrap().queue_id.unwrap())
            .collect();
        assert!(chosen.len() == 3 && chosen.iter().all(|queue| *queue == chosen[0] && *queue < queues));
    }
}

/// The driver puts back what core does not take.
fn put_back(script: &mut Script) {
    let Some(Order::Publish(run)) = script.out.next_order() else {
        panic!("no publishes");
    };
    script.out.put_back(run);
}

#[test]
fn a_message_that_core_does_not_take_is_answered_busy_after_200_ms() {
    let mut script = Script::new();
    let opaque = script.send(310, &short_header("T"), b"x");
    put_back(&mut script);
    script.pass(199);
    assert!(script.answers().is_empty());
    let later = script.send(310, &short_header("T"), b"y");
    // Other requests go on behind it.
    script.send(12_345, &[], b"");
    assert_eq!(script.answer().code, 3);
    script.pass(1);
    let answer = script.answer();
    assert_eq!((answer.opaque, answer.code), (opaque, 2));
    assert!(answer.remark.contains("system busy"));
    // The younger one waits for its own time.
    let publishes = script.publishes();
    assert_eq!(publishes.len(), 1);
    assert_eq!(publishes[0].body, "y");
    script.outcome(publishes[0].token, stored(1, 0, 0));
    assert_eq!(script.answer().opaque, later);
    script.pass(1_000);
    assert!(script.answers().is_empty());
}

#[test]
fn a_message_that_core_took_may_wait_for_the_disk_as_long_as_it_needs() {
    let mut script = Script::new();
    script.send(310, &short_header("T"), b"x");
    let token = script.one_publish().token;
    script.pass(60_000);
    assert!(script.answers().is_empty());
    script.outcome(token, stored(1, 0, 0));
    assert_eq!(script.answer().code, 0);
}

#[test]
fn messages_without_an_answer_are_limited_in_number_and_bytes() {
    let mut script = Script::with(Config {
        sends_max: 2,
        ..Config::default()
    });
    for _ in 0..3 {
        script.send(310, &short_header("T"), b"x");
    }
    assert_eq!(script.answer().code, 2);
    let publishes = script.publishes();
    assert_eq!(publishes.len(), 2);
    script.outcome(publishes[0].token, stored(1, 0, 0));
    assert_eq!(script.answer().code, 0);
    script.send(310, &short_header("T"), b"x");
    assert_eq!(script.publishes().len(), 1);

    let mut script = Script::with(Config {
        body_max: 10,
        sends_bytes_max: 15,
        ..Config::default()
    });
    for _ in 0..3 {
        script.send(310, &short_header("T"), &[0; 7]);
    }
    assert_eq!(script.answer().code, 2);
    assert_eq!(script.publishes().len(), 2);
}

#[test]
fn at_the_broker_s_end_sends_are_answered_first() {
    let mut script = Script::new();
    script.send(310, &short_header("T"), b"x");
    let token = script.one_publish().token;
    script.session.handle_shutdown(script.now, &mut script.out);
    assert!(!script.out.is_closing());
    script.outcome(token, stored(1, 0, 0));
    assert_eq!(script.answer().code, 0);
    assert!(script.out.is_closing());
}

// --- pulls ------------------------------------------------------------------------------------------

fn pull_header(flags: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![
        ("consumerGroup", "g"),
        ("topic", "T"),
        ("queueId", "2"),
        ("queueOffset", "5"),
        ("maxMsgNums", "32"),
        ("sysFlag", flags),
        ("commitOffset", "4"),
        ("suspendTimeoutMillis", "20000"),
        ("subscription", "a || b"),
        ("subVersion", "0"),
        ("expressionType", "TAG"),
        ("bname", "rocketbridge"),
    ]
}

fn nothing(status: PullStatus) -> Result<Reply, Refusal> {
    Ok(Reply::Pulled(Box::new(Pulled {
        status,
        messages: Vec::new(),
        next_offset: 5,
        bounds: 1..5,
    })))
}

#[test]
fn a_pull_asks_as_its_flags_say() {
    let mut script = Script::new();
    for (flags, commits, holds, filters) in [
        ("0", false, false, false),
        ("1", true, false, false),
        ("2", false, true, false),
        ("4", false, false, true),
        ("7", true, true, true),
    ] {
        script.send(11, &pull_header(flags), b"");
        let mut requests = script.requests();
        let (_, request) = requests.pop().unwrap();
        let Request::Pull(pull) = request else {
            panic!("{request:?}");
        };
        assert_eq!((&pull.group[..], &pull.topic[..]), (&b"g"[..], &b"T"[..]));
        assert_eq!((pull.queue_id, pull.offset, pull.messages_max), (2, 5, 32));
        assert_eq!(pull.hold, holds);
        assert_eq!(pull.filter, filters.then(|| Filter::Tags(vec![97, 98])));
        match &requests[..] {
            [] => assert!(!commits),
            [
                (
                    _,
                    Request::CommitOffset {
                        offset: 4, queue_id: 2, ..
                    },
                ),
            ] => assert!(commits),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_a_pull_finds_is_records_one_behind_the_other() {
    let mut script = Script::new();
    let small = vec![b's'; 10];
    let large = vec![b'l'; 40_000];
    for body in [&small, &large] {
        script.send(310, &short_header("T"), body);
    }
    let messages: Vec<_> = script.publishes().iter().map(message_of).collect();
    script.send(11, &pull_header("0"), b"");
    let (id, _) = script.one_request();
    let records: Vec<_> = messages
        .iter()
        .map(|message| message.native_record().to_vec())
        .collect();
    script.reply(
        id,
        Ok(Reply::Pulled(Box::new(Pulled {
            status: PullStatus::Found,
            messages,
            next_offset: 7,
            bounds: 1..9,
        }))),
    );
    let answer = script.answer();
    assert_eq!((answer.code, answer.remark.as_str()), (0, "FOUND"));
    assert_eq!(answer.field("nextBeginOffset"), "7");
    assert_eq!((answer.field("minOffset"), answer.field("maxOffset")), ("1", "9"));
    assert_eq!(answer.field("suggestWhichBrokerId"), "0");
    assert_eq!(answer.body, records.concat());
    assert_eq!(
        record_lengths(&answer.body).unwrap(),
        [records[0].len(), records[1].len()]
    );
    assert!(record_lengths(&answer.body[1..]).is_err());
}

#[test]
fn a_pull_that_finds_nothing_carries_the_offsets_too() {
    let mut script = Script::new();
    for (status, code, remark) in [
        (PullStatus::NoneMatched, 20, "NO_MATCHED_MESSAGE"),
        (PullStatus::NotFound, 19, "OFFSET_OVERFLOW_ONE"),
        (PullStatus::OffsetMoved, 21, "OFFSET_OVERFLOW_BADLY"),
    ] {
        script.send(11, &pull_header("0"), b"");
        let (id, _) = script.one_request();
        script.reply(id, nothing(status));
        let answer = script.answer();
        assert_eq!((answer.code, answer.remark.as_str()), (code, remark));
        for field in ["nextBeginOffset", "minOffset", "maxOffset", "suggestWhichBrokerId"] {
            assert!(answer.fields.contains_key(field), "{field}");
        }
        assert!(answer.body.is_empty());
    }
}

#[test]
fn a_held_pull_is_cancelled_when_its_time_is_up() {
    let mut script = Script::new();
    script.send(11, &pull_header("2"), b"");
    let (id, _) = script.one_request();
    script.pass(19_999);
    assert!(script.orders().is_empty());
    script.pass(1);
    assert!(matches!(script.orders()[..], [Ordered::Cancel(cancelled)] if cancelled == id));
    script.reply(id, nothing(PullStatus::NotFound));
    assert_eq!(script.answer().code, 19);
    // One that was answered in time is not cancelled.
    script.send(11, &pull_header("2"), b"");
    let (id, _) = script.one_request();
    script.reply(id, nothing(PullStatus::Found));
    script.pass(60_000);
    assert!(script.orders().is_empty());
}

#[test]
fn held_pulls_are_cancelled_at_the_broker_s_end() {
    let mut script = Script::new();
    script.send(11, &pull_header("2"), b"");
    let (id, _) = script.one_request();
    script.session.handle_shutdown(script.now, &mut script.out);
    assert!(matches!(script.orders()[..], [Ordered::Cancel(_)]));
    script.reply(id, nothing(PullStatus::NotFound));
    assert_eq!(script.answer().code, 19);
    assert!(script.out.is_closing());
}

#[test]
fn each_refusal_of_a_pull_has_its_code() {
    let mut script = Script::new();
    let not_found = |what| Refusal::NotFound { what, name: bytes("T") };
    for (refusal, code) in [
        (Refusal::NoSubscription, 24),
        (not_found("topic"), 17),
        (not_found("queue"), 29),
        (not_found("group"), 26),
        (Refusal::Invalid("no".into()), 29),
        (Refusal::AccessRefused, 16),
        (Refusal::Closed, 14),
    ] {
        script.send(361, &pull_header("0"), b"");
        let (id, _) = script.one_request();
        script.reply(id, Err(refusal));
        assert_eq!(script.answer().code, code);
    }
}

#[test]
fn a_pull_that_makes_no_sense_is_refused() {
    let mut script = Script::new();
    for (name, value, code) in [
        ("queueId", "-1", 29),
        ("queueId", "x", 1),
        ("topic", "a.b", 29),
        ("consumerGroup", "", 29),
        ("expressionType", "SQL", 23),
        ("subscription", "||", 23),
    ] {
        script.send(11, &with(pull_header("4"), name, value), b"");
        assert_eq!(script.answer().code, code, "{name}={value}");
    }
    assert!(script.orders().is_empty());
}

#[test]
fn a_pull_may_bring_an_expression() {
    let mut script = Script::new();
    let expression = |text| {
        let header = with(pull_header("4"), "expressionType", "SQL92");
        with(header, "subscription", text)
    };
    script.send(11, &expression("price > 5 AND TAGS = 'a'"), b"");
    let (_, request) = script.one_request();
    let Request::Pull(pull) = request else {
        panic!("{request:?}")
    };
    assert!(matches!(pull.filter, Some(Filter::Sql(sql)) if sql.text() == "price > 5 AND TAGS = 'a'"));
    script.send(11, &expression("price > "), b"");
    let answer = script.answer();
    assert_eq!(answer.code, 23);
    assert!(
        answer.remark.starts_with("Invalid MessageSelector. character 9"),
        "{}",
        answer.remark
    );
}

#[test]
fn a_group_is_reset_by_time_or_offset_or_to_the_end() {
    let mut script = Script::new();
    for (fields, expected) in [
        (
            &[("timestamp", "1700000000000")][..],
            (None, ResetTo::Time(Millis(1_700_000_000_000))),
        ),
        (&[("timestamp", "-1"), ("queueId", "-1")], (None, ResetTo::End)),
        (
            &[("timestamp", "-1"), ("queueId", "2"), ("offset", "7")],
            (Some(2), ResetTo::Offset(7)),
        ),
        (
            &[("timestamp", "5"), ("queueId", "2"), ("offset", "-1")],
            (Some(2), ResetTo::Time(Millis(5))),
        ),
    ] {
        let header = [&[("group", "g"), ("topic", "T"), ("isForce", "true")][..], fields].concat();
        script.send(222, &header, b"");
        let (id, request) = script.one_request();
        let Request::ResetOffset { queue_id, to, .. } = request else {
            panic!("{request:?}")
        };
        assert_eq!((queue_id, to), expected);
        script.reply(id, Ok(Reply::Places(vec![(2, 7)])));
        let answer = script.answer();
        assert_eq!(answer.code, 0);
        assert!(answer.body.starts_with(b"{\"offsetTable\":{{"), "{answer:?}");
    }
    script.send(222, &[("group", "g"), ("topic", "T")], b"");
    assert_eq!(script.answer().code, 1);
}

#[test]
fn a_negative_offset_is_out_of_bounds() {
    let mut script = Script::new();
    script.send(11, &with(pull_header("2"), "queueOffset", "-1"), b"");
    let (id, request) = script.one_request();
    assert!(matches!(request, Request::Bounds { queue_id: 2, .. }));
    script.reply(id, Ok(Reply::Offsets(3..9)));
    let answer = script.answer();
    assert_eq!((answer.code, answer.remark.as_str()), (21, "OFFSET_TOO_SMALL"));
    assert_eq!(answer.field("nextBeginOffset"), "3");
}

#[test]
fn the_answer_to_a_pull_is_limited() {
    let mut script = Script::new();
    for (messages, bytes, expected) in [
        ("0", "0", (1, 262_144)),
        ("-5", "-1", (1, 262_144)),
        ("100000", "1000", (1024, 1000)),
        ("32", "99999999", (32, 262_144)),
    ] {
        let fields = with(with(pull_header("0"), "maxMsgNums", messages), "maxMsgBytes", bytes);
        script.send(11, &fields, b"");
        let (_, request) = script.one_request();
        let Request::Pull(pull) = request else {
            panic!("{request:?}");
        };
        assert_eq!((pull.messages_max, pull.bytes_max), expected);
    }
}

// --- offsets ----------------------------------------------------------------------------------------

const QUEUE: [(&str, &str); 3] = [("consumerGroup", "g"), ("topic", "T"), ("queueId", "1")];

#[test]
fn a_committed_offset_is_what_was_committed() {
    let mut script = Script::new();
    script.send(15, &with(QUEUE.to_vec(), "commitOffset", "42"), b"");
    let (id, request) = script.one_request();
    assert!(matches!(
        request,
        Request::CommitOffset {
            offset: 42,
            queue_id: 1,
            ..
        }
    ));
    script.reply(id, Ok(Reply::Done));
    assert_eq!(script.answer().code, 0);
    script.send(15, &with(QUEUE.to_vec(), "commitOffset", "-1"), b"");
    assert_eq!(script.answer().code, 29);
    script.send(14, &QUEUE, b"");
    let (id, _) = script.one_request();
    script.reply(id, Ok(Reply::Offset(Some(42))));
    assert_eq!(script.answer().field("offset"), "42");
}

/// What the client of a group that never committed an offset is told: `zero` is its wish, `bounds` those
/// of the message queue, if there is one.
fn told(zero: Option<&'static str>, bounds: Option<Range<u64>>) -> (i32, String) {
    let mut script = Script::new();
    let fields = match zero {
        Some(zero) => with(QUEUE.to_vec(), "setZeroIfNotFound", zero),
        None => QUEUE.to_vec(),
    };
    script.send(14, &fields, b"");
    let (id, _) = script.one_request();
    script.reply(id, Ok(Reply::Offset(None)));
    for (id, request) in script.requests() {
        assert!(matches!(request, Request::Bounds { queue_id: 1, .. }));
        let no_topic = Refusal::NotFound {
            what: "topic",
            name: bytes("T"),
        };
        script.reply(id, bounds.clone().map(Reply::Offsets).ok_or(no_topic));
    }
    let answer = script.answer();
    (answer.code, answer.field("offset").to_owned())
}

#[test]
fn a_new_group_begins_at_0_while_the_message_queue_has_its_first_message() {
    let zero = (0, "0".to_owned());
    let none = (22, String::new());
    assert_eq!(told(None, Some(0..9)), zero);
    assert_eq!(told(Some("true"), Some(0..9)), zero);
    assert_eq!(told(None, Some(0..0)), zero);
    assert_eq!(told(None, Some(1..9)), none);
    assert_eq!(told(Some("false"), Some(0..9)), none);
    assert_eq!(told(None, None), none);
}

#[test]
fn offsets_are_found_by_time_and_at_the_ends() {
    let mut script = Script::new();
    let fields = with(QUEUE.to_vec(), "timestamp", "1700000000000");
    script.send(29, &fields, b"");
    let (id, request) = script.one_request();
    assert!(matches!(
        request,
        Request::SearchOffset {
            at: Millis(1_700_000_000_000),
            ..
        }
    ));
    script.reply(id, Ok(Reply::Offset(Some(3))));
    assert_eq!(script.answer().field("offset"), "3");
    script.send(29, &fields, b"");
    let (id, _) = script.one_request();
    script.reply(id, Ok(Reply::Offset(None)));
    let (id, _) = script.one_request();
    script.reply(id, Ok(Reply::Offsets(1..8)));
    assert_eq!(script.answer().field("offset"), "8");
    for (code, offset) in [(30, "8"), (31, "1")] {
        script.send(code, &QUEUE, b"");
        let (id, _) = script.one_request();
        script.reply(id, Ok(Reply::Offsets(1..8)));
        assert_eq!(script.answer().field("offset"), offset);
    }
}

#[test]
fn a_message_is_found_by_its_position() {
    let mut script = Script::new();
    script.send(310, &short_header("T"), b"x");
    let message = message_of(&script.one_publish());
    script.send(33, &[("offset", "4711")], b"");
    let (id, request) = script.one_request();
    assert!(matches!(
        request,
        Request::View {
            position: Position(4711)
        }
    ));
    let record = message.native_record().to_vec();
    script.reply(id, Ok(Reply::Message(message)));
    let answer = script.answer();
    assert_eq!((answer.code, answer.body), (0, record));
    script.send(33, &[("offset", "4711")], b"");
    let (id, _) = script.one_request();
    script.reply(
        id,
        Err(Refusal::NotFound {
            what: "message",
            name: bytes("4711"),
        }),
    );
    let answer = script.answer();
    assert_eq!(
        (answer.code, answer.remark.as_str()),
        (1, "can not find message by the offset, 4711")
    );
    script.send(33, &[("offset", "-1")], b"");
    assert_eq!(script.answer().code, 1);
}
