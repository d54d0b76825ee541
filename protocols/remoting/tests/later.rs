//! Delays, transactions, and messages that come back: what core is asked and what clients hear.

mod common;

use common::*;
use rocketbridge_core::boundary::{CheckTransaction, Deliver, Event, Fate, Notice, Reject};
use rocketbridge_core::message::Entry;
use rocketbridge_core::properties::find;
use rocketbridge_core::request::{Refusal, Reply, Request, Retry, TransactionEnd, Verdict};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::Millis;
use rocketbridge_remoting::mapping::delay::Handle;
use rocketbridge_remoting::mapping::offset_id;

fn message_id(position: u64) -> String {
    let mut id = Vec::new();
    offset_id::push(&mut id, store_host(), Position(position));
    String::from_utf8(id).unwrap()
}

fn properties(pairs: &[(&str, &str)]) -> String {
    pairs
        .iter()
        .map(|(name, value)| format!("{name}\u{1}{value}\u{2}"))
        .collect()
}

fn send_with(script: &mut Script, topic: &str, pairs: &[(&str, &str)]) {
    let text = properties(pairs);
    script.send(310, &with(short_header(topic), "i", &text), b"x");
}

#[test]
fn levels_and_times_become_core_s_delays() {
    let mut script = Script::new();
    for (pairs, deliver) in [
        (vec![("DELAY", "2")], Deliver::After(Millis(5000))),
        (vec![("DELAY", "30")], Deliver::After(Millis(7_200_000))),
        (vec![("TIMER_DELAY_SEC", "3")], Deliver::After(Millis(3000))),
        (vec![("TIMER_DELAY_MS", "1500")], Deliver::After(Millis(1500))),
        (
            vec![("TIMER_DELIVER_MS", "1700000009999")],
            Deliver::At(Millis(1_700_000_009_999)),
        ),
        (vec![("TIMER_DELIVER_MS", "1600000000000")], Deliver::Now),
        (vec![("DELAY", "0")], Deliver::Now),
    ] {
        send_with(&mut script, "T", &pairs);
        assert_eq!(script.one_publish().deliver, deliver, "{pairs:?}");
    }
}

#[test]
fn a_delayed_message_can_be_taken_back_by_its_handle() {
    let mut script = Script::new();
    send_with(&mut script, "T", &[("TIMER_DELAY_SEC", "60"), ("UNIQ_KEY", "KEY")]);
    let publish = script.one_publish();
    assert_eq!(find(&publish.origin, b"TIMER_OUT_MS"), Some(&b"1700000060000"[..]));
    script.outcome(publish.token, stored(800, 0, 0));
    let answer = script.answer();
    let text = answer.field("recallHandle").to_owned();
    let handle = Handle::decode(text.as_bytes()).unwrap();
    assert_eq!((&handle.topic[..], &handle.unique_key[..]), (&b"T"[..], &b"KEY"[..]));
    let fields = [("producerGroup", "p"), ("topic", "T"), ("recallHandle", &text[..])];
    script.send(370, &fields, b"");
    let (id, request) = script.one_request();
    let Request::TakeBack { position, unique_key } = request else {
        panic!("{request:?}");
    };
    assert_eq!((position, &unique_key[..]), (Position(800), &b"KEY"[..]));
    script.reply(id, Ok(Reply::Done));
    let answer = script.answer();
    assert_eq!((answer.code, answer.field("msgId")), (0, "KEY"));
    script.send(370, &fields, b"");
    let (id, _) = script.one_request();
    let name = bytes("800");
    script.reply(id, Err(Refusal::NotFound { what: "message", name }));
    assert_eq!(script.answer().code, 604);
    // Of another topic, too late, nonsense.
    for (topic, handle) in [("U", &text[..]), ("T", "x")] {
        script.send(370, &[("topic", topic), ("recallHandle", handle)], b"");
        assert_eq!(script.answer().code, 604);
    }
    script.pass(60_000);
    script.send(370, &fields, b"");
    assert_eq!(script.answer().remark, "recall failed, timestamp invalid");
}

#[test]
fn a_delay_beyond_the_limit_is_illegal_and_so_is_one_in_a_batch() {
    let mut script = Script::new();
    send_with(&mut script, "T", &[("TIMER_DELAY_SEC", "9999999")]);
    let token = script.one_publish().token;
    script.outcome(token, Fate::Rejected(Reject::TooLate));
    assert_eq!(script.answer().code, 13);
    for pairs in [[("DELAY", "3")], [("TRAN_MSG", "true")], [("TIMER_DELAY_MS", "3")]] {
        let body = batch_message(0, b"one", properties(&pairs).as_bytes());
        script.send(320, &with(short_header("T"), "m", "true"), &body);
        assert_eq!(script.answer().code, 13);
        assert!(script.orders().is_empty());
    }
}

fn half(script: &mut Script) -> rocketbridge_core::boundary::Publish {
    send_with(
        script,
        "T",
        &[
            ("TRAN_MSG", "true"),
            ("PGROUP", "p"),
            ("UNIQ_KEY", "KEY"),
            ("DELAY", "3"),
        ],
    );
    script.one_publish()
}

#[test]
fn a_half_message_is_one_and_its_answer_names_it() {
    let mut script = Script::new();
    let publish = half(&mut script);
    let native = publish.native.as_ref().unwrap();
    assert!(native.half && native.sys_flag & 0xC == 0);
    assert_eq!(publish.deliver, Deliver::Now);
    script.outcome(publish.token, stored(800, 0, 17));
    let answer = script.answer();
    assert_eq!((answer.code, answer.field("queueOffset")), (0, "17"));
    assert_eq!(answer.field("msgId"), message_id(800));
    assert_eq!(answer.field("transactionId"), "KEY");
}

#[test]
fn transactions_end_as_their_producers_say() {
    let mut script = Script::new();
    for (said, verdict, end, code) in [
        ("8", Verdict::Commit, TransactionEnd::Done, 0),
        ("12", Verdict::Rollback, TransactionEnd::NotFound, 1),
        ("0", Verdict::Unknown, TransactionEnd::OtherGroup, 1),
        ("8", Verdict::Commit, TransactionEnd::TooLate, 604),
    ] {
        let fields = [
            ("producerGroup", "p"),
            ("tranStateTableOffset", "17"),
            ("commitLogOffset", "800"),
            ("commitOrRollback", said),
            ("fromTransactionCheck", "true"),
            ("msgId", "KEY"),
        ];
        script.send(37, &fields, b"");
        let (id, request) = script.one_request();
        let Request::EndTransaction(asked) = request else {
            panic!("{request:?}");
        };
        assert_eq!(
            (asked.position, asked.offset, asked.verdict),
            (Position(800), 17, verdict)
        );
        assert!(asked.from_check && asked.group == "p");
        script.reply(id, Ok(Reply::Transaction(end)));
        assert_eq!(script.answer().code, code);
    }
    script.send(37, &[("producerGroup", "p")], b"");
    assert_eq!(script.answer().code, 1);
}

#[test]
fn a_producer_is_asked_about_its_transaction_with_the_half_message() {
    let mut script = Script::new();
    let publish = half(&mut script);
    let check = CheckTransaction {
        group: bytes("p"),
        position: Position(800),
        offset: 17,
        message: message_of(&publish),
    };
    let record = check.message.native_record().to_vec();
    script.events(vec![Event::Notice(Notice::CheckTransaction(Box::new(check)))]);
    let asked = script.answer();
    assert_eq!((asked.code, asked.flag), (39, 2));
    assert_eq!(asked.field("commitLogOffset"), "800");
    assert_eq!(asked.field("tranStateTableOffset"), "17");
    assert_eq!((asked.field("msgId"), asked.field("transactionId")), ("KEY", "KEY"));
    assert_eq!(asked.field("offsetMsgId"), message_id(800));
    assert_eq!(asked.body, record);
}

#[test]
fn a_producer_group_is_joined_by_a_heartbeat_and_left() {
    let mut script = Script::new();
    let body = br#"{"clientID":"c","producerDataSet":[{"groupName":"p"}],"consumerDataSet":[]}"#;
    script.send(34, &[], body);
    let (id, request) = script.one_request();
    assert!(matches!(request, Request::JoinProducers { group, .. } if group == "p"));
    script.reply(id, Ok(Reply::Done));
    assert_eq!(script.answer().code, 0);
    script.send(35, &[("clientID", "c"), ("producerGroup", "p")], b"");
    let (id, request) = script.one_request();
    assert!(matches!(request, Request::LeaveProducers { group } if group == "p"));
    script.reply(id, Ok(Reply::Done));
    assert_eq!(script.answer().code, 0);
}

#[test]
fn a_message_given_back_is_answered_when_core_has_it() {
    let mut script = Script::new();
    let fields = [
        ("group", "g"),
        ("offset", "800"),
        ("delayLevel", "0"),
        ("originMsgId", "ignored"),
        ("originTopic", "T"),
        ("maxReconsumeTimes", "5"),
    ];
    script.send(36, &fields, b"");
    let (id, request) = script.one_request();
    let Request::GiveBack(back) = request else {
        panic!("{request:?}");
    };
    assert_eq!(
        (&back.group[..], back.position, back.level),
        (&b"g"[..], Position(800), 0)
    );
    assert_eq!((back.attempts_max, &back.id[..]), (Some(5), message_id(800).as_bytes()));
    script.reply(id, Ok(Reply::Done));
    assert_eq!(script.answer().code, 0);
    script.send(36, &fields, b"");
    let (id, _) = script.one_request();
    let name = bytes("800");
    script.reply(id, Err(Refusal::NotFound { what: "message", name }));
    let answer = script.answer();
    assert_eq!(
        (answer.code, &answer.remark[..]),
        (1, "look message by offset failed, 800")
    );
    script.send(36, &[("offset", "1"), ("delayLevel", "0"), ("group", "bad group")], b"");
    assert_eq!(script.answer().code, 29);
}

#[test]
fn retry_topics_are_sent_to_with_their_counts_and_no_pattern_sees_them() {
    let mut script = Script::new();
    let text = properties(&[("DELAY", "4"), ("RETRY_TOPIC", "T"), ("TRAN_MSG", "true")]);
    let mut fields = with(short_header("%RETRY%g"), "i", &text);
    fields = with(fields, "j", "3");
    fields = with(fields, "l", "2");
    script.send(310, &fields, b"x");
    let publish = script.one_publish();
    let native = publish.native.as_ref().unwrap();
    assert_eq!(
        (publish.entry, publish.deliver),
        (Entry::Queue, Deliver::After(Millis(30_000)))
    );
    assert_eq!((native.reconsume_times, native.attempts_max), (3, Some(2)));
    assert!(!native.half, "what is tried again begins no transaction");
    script.outcome(publish.token, stored(8, 0, 0));
    assert!(!script.answer().fields.contains_key("recallHandle"));
}

#[test]
fn a_group_s_retry_policy_is_read_from_its_settings() {
    let mut script = Script::new();
    let mut set = |body: &str| {
        script.send(200, &[], body.as_bytes());
        let mut requests = script.requests();
        match requests.pop() {
            Some((id, Request::SetRetry { group, retry })) => {
                script.reply(id, Ok(Reply::Done));
                assert_eq!(script.answer().code, 0);
                assert_eq!(group, "g");
                Ok(retry)
            }
            Some(other) => panic!("{other:?}"),
            None => Err(script.answer().code),
        }
    };
    assert_eq!(set(r#"{"groupName":"g"}"#), Ok(Retry::default()));
    let exponential = r#"{"groupName":"g","retryMaxTimes":3,"retryQueueNums":2,"groupRetryPolicy":{"type":"EXPONENTIAL","exponentialRetryPolicy":{"initial":1000,"max":5000,"multiplier":3}}}"#;
    let retry = set(exponential).unwrap();
    assert_eq!((retry.attempts_max, retry.queues), (3, 2));
    let delays: Vec<_> = (0..4).map(|attempts| retry.policy.delay(attempts).0).collect();
    assert_eq!(delays, [1000, 3000, 5000, 5000]);
    let customized =
        r#"{"groupName":"g","groupRetryPolicy":{"type":"CUSTOMIZED","customizedRetryPolicy":{"next":[1,2,3,4]}}}"#;
    let retry = set(customized).unwrap();
    let delays: Vec<_> = (0..4).map(|attempts| retry.policy.delay(attempts).0).collect();
    assert_eq!(delays, [3, 4, 4, 4], "the first attempt waits for the third time");
    for (body, code) in [
        (r#"{"groupName":"bad group"}"#, 29),
        (r#"{"groupName":"g","retryQueueNums":-1}"#, 29),
        (r#"{"groupName":"g","groupRetryPolicy":{"type":"OTHER"}}"#, 29),
        (r#"{"groupName":"g","consumeEnable":false}"#, 1),
        ("no json", 1),
    ] {
        assert_eq!(set(body), Err(code), "{body}");
    }
}
