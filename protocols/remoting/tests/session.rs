//! One connection: admission, limits, name server requests, groups, the end.

mod common;

use common::{Ordered, Script, bytes};
use rocketbridge_core::boundary::{Event, Notice};
use rocketbridge_core::request::{Filter, Refusal, Reply, Request, Topic};
use rocketbridge_remoting::Config;
use rocketbridge_remoting::codec::{FLAG_ONEWAY, FLAG_RESPONSE, SerializeType};
use rocketbridge_session::Session as _;

fn topic(name: &'static str, queues: u32) -> Result<Reply, Refusal> {
    Ok(Reply::Topic(Topic {
        name: bytes(name),
        queues,
    }))
}

fn not_found(what: &'static str) -> Refusal {
    Refusal::NotFound { what, name: bytes("T") }
}

// --- admission and requests in general ----------------------------------------------------------

#[test]
fn a_peer_that_is_not_let_in_is_told_so_with_each_request() {
    let mut script = Script::before_login(Config::default());
    script.send(38, &[("consumerGroup", "g")], b"");
    let [(login, Request::Login(_)), (members, Request::Members { .. })] = &script.requests()[..] else {
        panic!("login comes first");
    };
    script.reply(*login, Err(Refusal::AccessRefused));
    script.reply(*members, Err(Refusal::AccessRefused));
    assert_eq!(script.answer().code, 16);
    script.send(105, &[("topic", "TBW102")], b"");
    let answer = script.answer();
    assert_eq!(answer.code, 16);
    assert!(answer.remark.starts_with("access refused"), "{}", answer.remark);
    assert!(script.orders().is_empty());
}

#[test]
fn an_answer_has_its_request_s_opaque_and_form() {
    let mut script = Script::new();
    for serialize_type in [SerializeType::RocketMq, SerializeType::Json] {
        let opaque = script.send_as(serialize_type, 0, 105, &[("topic", "TBW102")], b"");
        let answer = script.answer();
        assert_eq!((answer.opaque, answer.flag), (opaque, FLAG_RESPONSE));
        assert_eq!(answer.serialize_type, serialize_type);
    }
}

#[test]
fn answers_come_when_they_are_there_and_not_in_order() {
    let mut script = Script::new();
    let queue = [("topic", "T"), ("queueId", "0")];
    let first = script.send(30, &queue, b"");
    let second = script.send(31, &queue, b"");
    let requests = script.requests();
    script.reply(requests[1].0, Ok(Reply::Offsets(3..9)));
    let answer = script.answer();
    assert_eq!((answer.opaque, answer.field("offset")), (second, "3"));
    script.reply(requests[0].0, Ok(Reply::Offsets(3..9)));
    let answer = script.answer();
    assert_eq!((answer.opaque, answer.field("offset")), (first, "9"));
}

#[test]
fn an_unknown_request_is_answered_and_the_connection_stays() {
    let mut script = Script::new();
    for code in [0, 3, 12, 17, 25, 206, 224, 200_050, -1, 32767] {
        script.send(code, &[], b"x");
        let answer = script.answer();
        assert_eq!(answer.code, 3, "{code}");
        assert_eq!(answer.remark, format!(" request type {code} not supported"));
    }
    assert!(script.orders().is_empty() && !script.out.is_closing());
}

#[test]
fn a_one_way_request_is_not_answered() {
    let mut script = Script::new();
    script.send_as(SerializeType::Json, FLAG_ONEWAY, 12_345, &[], b"");
    script.send_as(SerializeType::Json, FLAG_ONEWAY, 105, &[("topic", "TBW102")], b"");
    let fields = [
        ("consumerGroup", "g"),
        ("topic", "T"),
        ("queueId", "0"),
        ("commitOffset", "5"),
    ];
    script.send_as(SerializeType::Json, FLAG_ONEWAY, 15, &fields, b"");
    let (id, request) = script.one_request();
    assert!(matches!(request, Request::CommitOffset { offset: 5, .. }));
    script.reply(id, Ok(Reply::Done));
    assert!(script.answers().is_empty());
}

#[test]
fn a_response_from_the_client_is_dropped() {
    let mut script = Script::new();
    script.send_as(SerializeType::Json, FLAG_RESPONSE, 0, &[], b"");
    script.send_as(
        SerializeType::Json,
        FLAG_RESPONSE | FLAG_ONEWAY,
        105,
        &[("topic", "T")],
        b"",
    );
    assert!(script.answers().is_empty() && script.orders().is_empty());
}

#[test]
fn a_frame_that_will_not_be_read_closes_the_connection_at_once() {
    for bytes in [
        &[0x16, 3, 1, 0][..],
        b"GET / HTTP/1.1\r\n",
        &[0, 0, 0, 0],
        &[0xFF; 4],
        &[0, 0, 0, 9, 0, 0, 0, 6],
        &[0, 0, 0, 6, 0, 0, 0, 2, b'{', b'x'],
    ] {
        let mut script = Script::new();
        script.send(105, &[("topic", "TBW102")], b"");
        script.bytes(bytes);
        assert!(script.out.is_closing(), "{bytes:?}");
        // What was asked before is still answered.
        assert_eq!(script.answer().code, 0);
        script.bytes(&[0; 100]);
        assert_eq!(script.session.next_timeout(), None);
    }
}

#[test]
fn requests_that_come_in_pieces_or_together_are_all_answered() {
    let mut whole = Script::new();
    let mut frames = bytes::BytesMut::new();
    for opaque in 0..3 {
        let mut writer =
            rocketbridge_remoting::codec::Writer::new(&mut frames, SerializeType::Json, opaque, 105, 0, "");
        writer.text("topic", b"TBW102");
        writer.finish(0);
    }
    whole.bytes(&frames);
    let answers = whole.answers();
    assert_eq!(answers.len(), 3);
    let mut pieces = Script::new();
    for byte in &frames {
        pieces.bytes(&[*byte]);
    }
    assert_eq!(pieces.answers(), answers);
}

#[test]
fn requests_without_an_answer_are_limited() {
    let mut script = Script::with(Config {
        requests_max: 2,
        ..Config::default()
    });
    for _ in 0..3 {
        script.send(30, &[("topic", "T"), ("queueId", "0")], b"");
    }
    assert_eq!(script.answer().code, 2);
    assert_eq!(script.requests().len(), 2);
}

// --- silence and the end --------------------------------------------------------------------------

#[test]
fn a_silent_connection_is_closed_after_two_minutes() {
    let mut script = Script::new();
    script.pass(119_999);
    assert!(!script.out.is_closing());
    script.send(12_345, &[], b"");
    script.pass(119_999);
    assert!(!script.out.is_closing());
    script.pass(1);
    assert!(script.out.is_closing());
}

#[test]
fn at_the_broker_s_end_what_was_taken_is_answered_and_nothing_else_is() {
    let mut script = Script::new();
    script.send(30, &[("topic", "T"), ("queueId", "0")], b"");
    let (id, _) = script.one_request();
    script.session.handle_shutdown(script.now, &mut script.out);
    assert!(!script.out.is_closing());
    script.send(30, &[("topic", "T"), ("queueId", "0")], b"");
    assert_eq!(script.answer().code, 14);
    script.reply(id, Ok(Reply::Offsets(0..1)));
    assert_eq!(script.answer().code, 0);
    assert!(script.out.is_closing());
}

#[test]
fn an_idle_connection_closes_at_once_at_the_broker_s_end_and_at_its_own() {
    let mut script = Script::new();
    script.session.handle_shutdown(script.now, &mut script.out);
    assert!(script.out.is_closing());
    let mut script = Script::new();
    script.session.handle_eof(script.now, &mut script.out);
    assert!(script.out.is_closing());
}

// --- name server ----------------------------------------------------------------------------------

#[test]
fn a_topic_s_route_leads_to_the_address_that_the_client_came_in_on() {
    let mut script = Script::new();
    script.send(105, &[("topic", "T"), ("acceptStandardJsonOnly", "true")], b"");
    let (id, request) = script.one_request();
    assert!(matches!(request, Request::FindTopic { topic } if topic == "T"));
    script.reply(id, topic("T", 4));
    let answer = script.answer();
    assert_eq!(answer.code, 0);
    assert_eq!(
        String::from_utf8(answer.body).unwrap(),
        r#"{"brokerDatas":[{"brokerAddrs":{"0":"10.0.0.1:10911"},"brokerName":"rocketbridge","cluster":"DefaultCluster","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"rocketbridge","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#
    );
}

#[test]
fn the_route_of_a_topic_that_does_not_exist_is_17() {
    let mut script = Script::new();
    script.send(105, &[("topic", "T")], b"");
    let (id, _) = script.one_request();
    script.reply(id, Err(not_found("topic")));
    let answer = script.answer();
    assert_eq!(answer.code, 17);
    assert_eq!(answer.remark, "No topic route info in name server for the topic: T");
    // Nor can there be one of that name.
    script.send(105, &[("topic", "no.such name")], b"");
    assert_eq!(script.answer().code, 17);
    script.send(105, &[], b"");
    let answer = script.answer();
    assert_eq!(
        (answer.code, answer.remark.as_str()),
        (1, "the custom field <topic> is null")
    );
    assert!(script.orders().is_empty());
}

#[test]
fn new_topics_take_the_route_of_tbw102() {
    let mut script = Script::new();
    script.send(105, &[("topic", "TBW102"), ("acceptStandardJsonOnly", "true")], b"");
    let body: serde_json::Value = serde_json::from_slice(&script.answer().body).unwrap();
    let queues = &body["queueDatas"][0];
    assert_eq!((&queues["perm"], &queues["readQueueNums"]), (&7.into(), &8.into()));

    let mut script = Script::with(Config {
        topics_auto_create: false,
        ..Config::default()
    });
    script.send(105, &[("topic", "TBW102")], b"");
    let (id, _) = script.one_request();
    script.reply(id, Err(not_found("topic")));
    assert_eq!(script.answer().code, 17);
}

#[test]
fn there_are_one_cluster_and_no_keys_and_values() {
    let mut script = Script::new();
    script.send(106, &[], b"");
    let body: serde_json::Value = serde_json::from_slice(&script.answer().body).unwrap();
    assert_eq!(
        body["brokerAddrTable"]["rocketbridge"]["brokerAddrs"]["0"],
        "10.0.0.1:10911"
    );
    script.send(101, &[("namespace", "ORDER_TOPIC_CONFIG"), ("key", "T")], b"");
    let answer = script.answer();
    assert_eq!(answer.code, 22);
    assert_eq!(answer.remark, "No config item, Namespace: ORDER_TOPIC_CONFIG Key: T");
}

// --- groups -----------------------------------------------------------------------------------------

const HEARTBEAT: &[u8] = br#"{"clientID":"c","producerDataSet":[{"groupName":"p"}],"consumerDataSet":[{"groupName":"g","messageModel":"CLUSTERING","subscriptionDataSet":[{"topic":"T","subString":"a","subVersion":3,"expressionType":"TAG"}]}]}"#;

/// Sends a heartbeat and lets core agree to everything.
fn beat(script: &mut Script, body: &[u8]) -> Vec<Request> {
    script.send(34, &[], body);
    let requests = script.requests();
    for (id, _) in &requests {
        assert!(script.answers().is_empty(), "answered before the last reply");
        script.reply(*id, Ok(Reply::Done));
    }
    requests.into_iter().map(|(_, request)| request).collect()
}

#[test]
fn a_heartbeat_makes_members_and_the_retry_topic() {
    let mut script = Script::new();
    let requests = beat(&mut script, HEARTBEAT);
    let [
        Request::JoinProducers { group, client_id },
        Request::DeclareTopic { topic, queues: 1 },
        Request::JoinConsumers(join),
    ] = &requests[..]
    else {
        panic!("{requests:?}");
    };
    assert_eq!((&group[..], &client_id[..]), (&b"p"[..], &b"c"[..]));
    assert_eq!(topic, "%RETRY%g");
    assert_eq!((&join.group[..], &join.client_id[..]), (&b"g"[..], &b"c"[..]));
    assert!(!join.broadcasting);
    assert_eq!(join.subscriptions[0].filter, Filter::Tags(vec![97]));
    assert_eq!(join.subscriptions[0].version, 3);
    let answer = script.answer();
    assert_eq!(answer.code, 0);
    assert_eq!(answer.field("IS_SUPPORT_HEART_BEAT_V2"), "false");
    assert_eq!(answer.field("IS_SUB_CHANGE"), "true");

    // The next one renews the membership and nothing else.
    let requests = beat(&mut script, HEARTBEAT);
    assert!(matches!(&requests[..], [Request::JoinConsumers(_)]), "{requests:?}");
    // One without subscriptions leaves them as they are.
    let body = br#"{"clientID":"c","consumerDataSet":[{"groupName":"g"}],"heartbeatFingerprint":7,"withoutSub":true}"#;
    script.answers();
    assert!(beat(&mut script, body).is_empty());
    assert_eq!(script.answer().code, 0);
}

#[test]
fn a_heartbeat_that_is_refused_in_part_says_so() {
    let mut script = Script::new();
    let body = br#"{"clientID":"c","consumerDataSet":[{"groupName":"g","subscriptionDataSet":[{"topic":"T","subString":"a = ","expressionType":"SQL92"}]},{"groupName":"h"}]}"#;
    let requests = beat(&mut script, body);
    assert!(matches!(&requests[1], Request::JoinConsumers(join) if join.group == "h"));
    let answer = script.answer();
    assert_eq!(answer.code, 23);
    assert!(
        answer.remark.starts_with("Invalid MessageSelector. character 5"),
        "{}",
        answer.remark
    );

    script.send(34, &[], HEARTBEAT);
    for (id, _) in script.requests() {
        script.reply(id, Err(Refusal::Closed));
    }
    assert_eq!(script.answer().code, 14);
    for body in [&b""[..], b"{}", b"[]", b"\xFF"] {
        script.send(34, &[], body);
        assert_eq!(script.answer().code, 1);
    }
}

#[test]
fn groups_of_one_connection_are_limited() {
    let mut script = Script::with(Config {
        groups_max: 2,
        ..Config::default()
    });
    assert_eq!(beat(&mut script, HEARTBEAT).len(), 3);
    assert_eq!(script.answer().code, 0);
    let body = br#"{"clientID":"c","producerDataSet":[{"groupName":"q"}],"consumerDataSet":[{"groupName":"h"}]}"#;
    assert!(beat(&mut script, body).is_empty());
    assert_eq!(script.answer().code, 1);
}

#[test]
fn members_are_told_that_their_group_changed() {
    let mut script = Script::new();
    beat(&mut script, HEARTBEAT);
    script.answers();
    let changed = |group: &'static str| Event::Notice(Notice::GroupChanged(bytes(group)));
    script.events(vec![changed("g"), changed("other")]);
    let notice = script.answer();
    assert_eq!((notice.code, notice.flag), (40, FLAG_ONEWAY));
    assert_eq!(notice.field("consumerGroup"), "g");
    assert_eq!(notice.serialize_type, SerializeType::Json);

    beat(
        &mut script,
        br#"{"clientID":"c","consumerDataSet":[{"groupName":"b","messageModel":"BROADCASTING"}]}"#,
    );
    script.answers();
    script.events(vec![changed("b")]);
    assert!(script.answers().is_empty());
}

#[test]
fn a_client_that_unregisters_leaves_the_groups_it_came_to_on_this_connection() {
    let mut script = Script::new();
    beat(&mut script, HEARTBEAT);
    script.answers();
    script.send(35, &[("clientID", "c"), ("consumerGroup", "stranger")], b"");
    assert_eq!(script.answer().code, 0);
    assert!(script.orders().is_empty());
    script.send(
        35,
        &[("clientID", "c"), ("producerGroup", "p"), ("consumerGroup", "g")],
        b"",
    );
    let [(producer, left), (consumer, request)] = script.requests().try_into().unwrap();
    assert!(matches!(left, Request::LeaveProducers { group } if group == "p"));
    assert!(matches!(request, Request::LeaveConsumers { group, client_id } if group == "g" && client_id == "c"));
    script.reply(producer, Ok(Reply::Done));
    assert!(script.answers().is_empty());
    script.reply(consumer, Ok(Reply::Done));
    assert_eq!(script.answer().code, 0);
    script.events(vec![Event::Notice(Notice::GroupChanged(bytes("g")))]);
    assert!(script.answers().is_empty());
    // It may come back.
    assert_eq!(beat(&mut script, HEARTBEAT).len(), 3);
}

#[test]
fn a_connection_s_new_client_id_takes_its_old_one_s_place_in_the_group() {
    let mut script = Script::new();
    beat(&mut script, HEARTBEAT);
    script.answers();
    let body = br#"{"clientID":"d","consumerDataSet":[{"groupName":"g"}]}"#;
    let requests = beat(&mut script, body);
    let [Request::LeaveConsumers { client_id, .. }, Request::JoinConsumers(join)] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!((&client_id[..], &join.client_id[..]), (&b"c"[..], &b"d"[..]));
}

#[test]
fn members_are_listed_and_an_empty_list_is_an_error_with_a_body() {
    let mut script = Script::new();
    script.send(38, &[("consumerGroup", "g")], b"");
    let (id, _) = script.one_request();
    script.reply(id, Ok(Reply::Members(vec![bytes("a@1"), bytes("b@2")])));
    let answer = script.answer();
    assert_eq!(
        (answer.code, &answer.body[..]),
        (0, &br#"{"consumerIdList":["a@1","b@2"]}"#[..])
    );
    script.send(38, &[("consumerGroup", "g")], b"");
    let (id, _) = script.one_request();
    script.reply(id, Ok(Reply::Members(vec![])));
    let answer = script.answer();
    assert_eq!((answer.code, &answer.body[..]), (1, &br#"{"consumerIdList":[]}"#[..]));
    assert_eq!(answer.remark, "no consumer for this group, g");
}

#[test]
fn message_queues_are_locked_and_unlocked() {
    let mut script = Script::new();
    let body =
        br#"{"consumerGroup":"g","clientId":"c","mqSet":[{"topic":"T","brokerName":"rocketbridge","queueId":0},{"topic":"T","brokerName":"rocketbridge","queueId":1}]}"#;
    script.send(41, &[], body);
    let (id, request) = script.one_request();
    let Request::LockQueues {
        group,
        client_id,
        queues,
    } = request
    else {
        panic!("{request:?}");
    };
    assert_eq!((&group[..], &client_id[..]), (&b"g"[..], &b"c"[..]));
    assert_eq!(queues, [(bytes("T"), 0), (bytes("T"), 1)]);
    script.reply(id, Ok(Reply::Locked(vec![(bytes("T"), 1)])));
    assert_eq!(
        String::from_utf8(script.answer().body).unwrap(),
        r#"{"lockOKMQSet":[{"brokerName":"rocketbridge","queueId":1,"topic":"T"}]}"#
    );
    script.send(42, &[], body);
    let (id, request) = script.one_request();
    assert!(matches!(request, Request::UnlockQueues { queues, .. } if queues.len() == 2));
    script.reply(id, Ok(Reply::Done));
    assert_eq!(script.answer().code, 0);
}

#[test]
fn a_client_s_check_compiles_its_expression() {
    let mut script = Script::new();
    script.send(
        46,
        &[],
        br#"{"subscriptionData":{"expressionType":"TAG","subString":"*"}}"#,
    );
    assert_eq!(script.answer().code, 0);
    script.send(
        46,
        &[],
        br#"{"subscriptionData":{"expressionType":"SQL92","subString":"a > 1"}}"#,
    );
    assert_eq!(script.answer().code, 0);
    for (body, remark) in [
        (
            r#"{"subscriptionData":{"expressionType":"SQL92","subString":"a > 1 AND"}}"#,
            "Invalid MessageSelector. character 10: ",
        ),
        (
            r#"{"subscriptionData":{"expressionType":"OTHER","subString":"a > 1"}}"#,
            "filtering messages by OTHER is not supported",
        ),
    ] {
        script.send(46, &[], body.as_bytes());
        let answer = script.answer();
        assert_eq!(answer.code, 23);
        assert!(answer.remark.starts_with(remark), "{}", answer.remark);
    }
}

// --- what is not built ------------------------------------------------------------------------------

#[test]
fn what_is_not_built_is_refused_and_asks_nothing_of_core() {
    let mut script = Script::new();
    for (code, answered) in [(324, 13), (325, 13)] {
        script.send(code, &[("topic", "T"), ("offset", "1"), ("group", "g")], b"x");
        let answer = script.answer();
        assert_eq!(answer.code, answered, "{code}");
        assert!(
            answer.remark.ends_with("is not supported by this version"),
            "{}",
            answer.remark
        );
    }
    assert!(script.orders().is_empty());
}

#[test]
fn a_late_reply_to_a_closed_connection_is_dropped() {
    let mut script = Script::new();
    script.send(30, &[("topic", "T"), ("queueId", "0")], b"");
    let id = match script.orders().remove(0) {
        Ordered::Request(id, _) => id,
        other => panic!("{other:?}"),
    };
    script.session.handle_eof(script.now, &mut script.out);
    script.reply(id, Ok(Reply::Offsets(0..1)));
    assert!(script.answers().is_empty());
}
