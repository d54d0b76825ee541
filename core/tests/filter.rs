//! Filters by expression: RocketMQ's SQL92, and pulls that use it.

mod support;

use std::sync::Arc;

use rocketbridge_core::attributes::{Attribute, AttributesBuilder, Name, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::filter::{DEPTH_MAX, Names, Sql, TEXT_MAX};
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::properties;
use rocketbridge_core::request::*;
use support::*;

fn sql(text: &str) -> Sql {
    Sql::compile(text, Names::Native).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Whether a message with the properties `name=value;name=value` is wanted.
fn matches(text: &str, properties: &str) -> bool {
    let pairs = properties.split(';').filter_map(|pair| pair.split_once('='));
    sql(text).matches(pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes())))
}

/// Each answer is what Apache RocketMQ 5.3.3 gives.
#[test]
fn an_expression_means_what_it_means_to_rocketmq() {
    let cases = [
        // Comparisons: the property is read as the constant's kind of number.
        ("a = 3", "a=3", true),
        ("a = 3", "a=+3", true),
        ("a = 3", "a=03", true),
        ("a = 3", "a=3.0", false),
        ("a > 3", "a=3.5", false),
        ("a > 3.0", "a=3.5", true),
        ("a > 3", "a=3000000000", false),
        ("a > 3000000000", "a=3000000001", true),
        ("a > 3.0", "a=3000000000", true),
        ("a < 5L", "a=4", true),
        ("a >= -3", "a=-3", true),
        ("a > 3.1E10", "a=31415000000.0", true),
        ("a > 1e-2", "a= .5f ", true),
        ("a > .5", "a=NaN", true),
        ("a < 5.", "a=-Infinity", true),
        ("5 > a", "a=4", true),
        ("a > b", "a=10;b=9", true),
        ("a > b", "a=10;b=x", false),
        ("a = b", "a=10;b=10.0", false),
        ("3 > 2", "", true),
        ("2 = 2.0", "", true),
        // Texts.
        ("a = 'x'", "a=x", true),
        ("a <> 'x'", "a=y", true),
        ("a = 'it''s'", "a=it's", true),
        ("a = 'x'", "a=X", false),
        ("TAGS='''''tag'''''", "TAGS=''tag''", true),
        ("a in ('3', '4', '5')", "a=4", true),
        ("a not in ('3', '4', '5')", "a=4", false),
        ("a not in ('3', '4', '5')", "a=6", true),
        ("a contains 'x'", "a=axb", true),
        ("a not contains 'x'", "a=abb", true),
        ("a startswith 'ax'", "a=axb", true),
        ("a endswith 'xb'", "a=axb", true),
        ("a not endswith 'xb'", "a=axb", false),
        ("a contains ''", "a=axb", false),
        ("a not contains ''", "a=axb", false),
        ("'axb' contains 'x'", "", true),
        // Booleans.
        ("a = TRUE", "a=true", true),
        ("a = TRUE", "a=yes", false),
        ("a = false", "a=yes", true),
        ("TRUE = a", "a=true", false),
        ("a", "a=true", false),
        ("NOT a", "a=true", true),
        ("TRUE", "", true),
        ("1 = TRUE", "", false),
        ("1 <> TRUE", "", true),
        // BETWEEN.
        ("a between 2 and 10", "a=2", true),
        ("a between 2 and 10", "a=11", false),
        ("a not between 2 and 10", "a=11", true),
        ("a not between 10 and 2", "a=5", true),
        ("a between b and c", "a=5;b=1;c=9", true),
        // Precedence.
        ("a = 1 or b = 1 and c = 1", "a=1", true),
        ("(a = 1 or b = 1) and c = 1", "a=1", false),
        ("NOT a = 1", "a=2", false),
        ("NOT (a = 1)", "a=2", true),
        ("a = 1 = TRUE", "a=1", true),
        ("- -5 = 5", "", true),
        ("-a > 0", "a=-1", false),
        // White space and comments.
        ("a=3  and    b<>4 And c>5 AND d<=4", "a=3;b=5;c=6;d=1", true),
        ("a /* is */ = -- so\n 1", "a=1", true),
        ("a = 1 -- so it is", "a=1", true),
        ("$a = 1 AND _b = 2", "$a=1;_b=2", true),
        ("a > now", "a=1", false),
    ];
    for (text, properties, expected) in cases {
        assert_eq!(matches(text, properties), expected, "{text} with {properties}");
    }
}

/// Each answer is what Apache RocketMQ 5.3.3 gives.
#[test]
fn a_missing_property_is_unknown_and_unknown_is_not_wanted() {
    let cases = [
        ("a is null", true),
        ("a is not null", false),
        ("NULL is null", true),
        ("a = 1", false),
        ("a <> 1", false),
        ("NOT (a = 1)", false),
        ("1 <> a", true),
        ("a = b", true),
        ("a in ('x')", false),
        ("a not in ('x')", false),
        ("a not contains 'x'", false),
        ("NOT (a contains 'x')", true),
        ("a between 1 and 2", false),
        ("a not between 1 and 2", false),
        ("NOT a", false),
        ("a = 1 or TRUE", true),
        ("a = 1 or FALSE", false),
        ("NOT (a = 1 and FALSE)", true),
        ("NOT (a = 1 and TRUE)", false),
        ("(a = 1) is null", true),
    ];
    for (text, expected) in cases {
        assert_eq!(matches(text, ""), expected, "{text}");
    }
}

#[test]
fn what_cannot_be_compared_is_a_fault_wherever_evaluation_comes_to_it() {
    for (text, expected) in [
        ("a > 5 or TRUE", false),
        ("TRUE or a > 5", true),
        ("NOT (a > 5)", false),
        ("b = 1 or a > 5", false),
        ("FALSE and a > 5", false),
        ("NOT (FALSE and a > 5)", true),
        ("(a > 5) is null", false),
        ("a > 5 and b > 5", false),
    ] {
        assert_eq!(matches(text, "a=abc"), expected, "{text}");
    }
}

#[test]
fn a_wrong_expression_is_refused_at_its_position() {
    let cases = [
        ("", 1),
        ("a and between 2 and 10", 7),
        (" a between 10 and 0", 12),
        ("a > 100000000000000000000000", 5),
        ("a > 9223372036854775808", 5),
        ("a > 1e400", 5),
        ("a > 'x'", 5),
        ("a between 'a' and 'b'", 11),
        ("a between NULL and 2", 11),
        ("a > TRUE", 5),
        ("(a = 1) > 2", 2),
        ("a = NULL", 5),
        ("TRUE = 1", 8),
        ("a = 1 and 5", 11),
        ("'x'", 1),
        ("1 in ('x')", 1),
        ("a in ()", 7),
        ("a in ('x'", 10),
        ("a in (5)", 7),
        ("a contains x", 12),
        ("a like 'x%'", 3),
        ("a + 1 > 2", 3),
        ("a > 1 b < 2", 7),
        ("(a = 1", 7),
        ("a = 1)", 6),
        ("é = 'x'", 1),
        ("a = 'é' 'x", 9),
        ("a = 'x' # b", 9),
        ("a is 5", 6),
        ("a not null", 3),
        ("/* a = 1", 1),
        ("a = 007", 6),
    ];
    for (text, position) in cases {
        let error = Sql::compile(text, Names::Native).expect_err(text);
        assert_eq!(error.position, position, "{text}: {error}");
    }
}

#[test]
fn length_and_depth_are_limited_before_they_cost_anything() {
    let deep = |open: &str, close: &str, levels: usize| open.repeat(levels) + "a = 1" + &close.repeat(levels);
    assert!(matches(&deep("(", ")", DEPTH_MAX), "a=1"));
    for (open, close) in [("(", ")"), ("NOT (", ")"), ("- ", ""), ("+", ""), ("NOT ", "")] {
        for levels in [DEPTH_MAX + 1, 500] {
            let error = Sql::compile(&deep(open, close, levels), Names::Native).unwrap_err();
            assert!(error.message.contains("deeper"), "{open}: {error}");
        }
    }
    for chain in [" = 1", " is null", " contains 'x'"] {
        let text = format!("a{}", chain.repeat(300));
        let error = Sql::compile(&text, Names::Native).unwrap_err();
        assert!(error.message.contains("deeper"), "{error}");
    }
    // A long row of operands is not deep.
    assert!(matches(&["a = 1"; 400].join(" or "), "a=1"));
    let long = format!("a = '{}'", "x".repeat(TEXT_MAX));
    assert!(
        Sql::compile(&long, Names::Native)
            .unwrap_err()
            .message
            .contains("longer")
    );
    for text in [
        "--".repeat(2000),
        "/*".repeat(2000),
        "'".repeat(4001),
        "a ".repeat(2000),
    ] {
        assert!(Sql::compile(&text, Names::Native).is_err());
    }
    let many: Vec<String> = (0..200).map(|n| format!("p{n} = {n}")).collect();
    let pairs: Vec<String> = (0..200).map(|n| format!("p{n}={n}")).collect();
    assert!(matches(&many.join(" and "), &pairs.join(";")));
}

#[test]
fn of_properties_of_one_name_the_last_counts() {
    assert!(matches("a = 2", "a=1;a=2"));
}

#[test]
fn jms_names_stand_for_attributes_if_asked_for() {
    let properties = [(&b"type"[..], &b"order"[..]), (b"priority", b"7"), (b"JMSType", b"x")];
    let text = "JMSType = 'order' AND JMSPriority > 4";
    assert!(Sql::compile(text, Names::Jms).unwrap().matches(properties.into_iter()));
    assert!(!sql(text).matches(properties.into_iter()));
}

fn native(topic: &str, properties: &str, body: &str) -> Publish {
    let mut origin = Vec::new();
    for pair in properties.split(';').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap();
        properties::push(&mut origin, name.as_bytes(), value.as_bytes());
    }
    Publish {
        format: Format::NATIVE,
        origin: origin.into(),
        native: Some(Box::new(Native {
            queue_id: Some(0),
            topic_queues: 1,
            ..Native::default()
        })),
        ..message(Entry::Native, topic, "", body)
    }
}

fn pull(filter: Option<&str>, offset: u64, hold: bool) -> Request {
    Request::Pull(Pull {
        group: bytes("g"),
        topic: bytes("t"),
        queue_id: 0,
        offset,
        messages_max: 32,
        bytes_max: 1 << 20,
        filter: filter.map(|text| Filter::Sql(Arc::new(sql(text)))),
        hold,
    })
}

fn pulled(result: Result<Reply, Refusal>) -> (PullStatus, Vec<String>, u64) {
    match result {
        Ok(Reply::Pulled(pulled)) => {
            let text = |message: &rocketbridge_core::message::Message| String::from_utf8_lossy(message.body()).into();
            (
                pulled.status,
                pulled.messages.iter().map(text).collect(),
                pulled.next_offset,
            )
        }
        other => panic!("{other:?}"),
    }
}

fn answered(client: &mut Client) -> Vec<(PullStatus, Vec<String>, u64)> {
    let reply = |event| match event {
        Event::Reply { result, .. } => Some(pulled(result)),
        _ => None,
    };
    client.events().into_iter().filter_map(reply).collect()
}

#[test]
fn a_pull_with_an_expression_gives_what_matches_and_passes_the_rest() {
    let harness = Harness::new();
    let mut client = harness.client();
    for n in 0..10 {
        client.publish(native("t", &format!("n={n}"), &format!("m{n}")));
    }
    let result = client.ask(&harness.engine, pull(Some("n between 3 and 5"), 0, false));
    let expected = vec!["m3".to_owned(), "m4".into(), "m5".into()];
    assert_eq!(pulled(result), (PullStatus::Found, expected, 10));
    let result = client.ask(&harness.engine, pull(Some("n > 50"), 0, false));
    assert_eq!(pulled(result), (PullStatus::NoneMatched, vec![], 10));
    // A full answer goes on right behind its last message.
    let Request::Pull(few) = pull(Some("n >= 2"), 0, false) else {
        unreachable!()
    };
    let few = Request::Pull(Pull { messages_max: 2, ..few });
    let result = client.ask(&harness.engine, few);
    assert_eq!(
        pulled(result),
        (PullStatus::Found, vec!["m2".to_owned(), "m3".into()], 4)
    );
}

#[test]
fn a_group_s_expression_filters_its_pulls() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.publish(native("t", "n=1", "one"));
    client.publish(native("t", "n=2", "two"));
    let subscription = GroupSubscription {
        topic: bytes("t"),
        filter: Filter::Sql(Arc::new(sql("n = 2"))),
        version: 1,
    };
    let join = Request::JoinConsumers(Join {
        group: bytes("g"),
        client_id: bytes("c"),
        broadcasting: false,
        subscriptions: vec![subscription],
    });
    client.ask(&harness.engine, join).unwrap();
    let result = client.ask(&harness.engine, pull(None, 0, false));
    assert_eq!(pulled(result), (PullStatus::Found, vec!["two".to_owned()], 2));
}

#[test]
fn foreign_messages_are_filtered_by_their_native_view() {
    let harness = Harness::new();
    let mut client = harness.client();
    let topic = Request::DeclareTopic {
        topic: bytes("t"),
        queues: 1,
    };
    client.ask(&harness.engine, topic).unwrap();
    let mut builder = AttributesBuilder::default();
    builder.put(Name::User(b"price"), Value::Float(9.5));
    builder.put(Name::Known(Attribute::Priority), Value::Uint(7));
    let attributes = builder.finish();
    client.publish(Publish {
        attributes,
        ..message(Entry::Topic, "t", "red", "foreign")
    });
    for (text, status) in [
        ("price > 9.0 AND priority = 7 AND TAGS = 'red'", PullStatus::Found),
        ("price > 10.0", PullStatus::NoneMatched),
    ] {
        let result = client.ask(&harness.engine, pull(Some(text), 0, false));
        assert_eq!(pulled(result).0, status, "{text}");
    }
}

#[test]
fn a_held_pull_is_woken_only_by_a_message_that_matches() {
    let harness = Harness::new();
    let (mut consumer, mut producer) = (harness.client(), harness.client());
    producer.publish(native("t", "n=0", "first"));
    consumer.request(pull(Some("n = 7"), 1, true));
    for n in 1..5 {
        producer.publish(native("t", &format!("n={n}"), "other"));
        assert_eq!(answered(&mut consumer), []);
    }
    producer.publish(native("t", "n=7", "wanted"));
    assert_eq!(
        answered(&mut consumer),
        [(PullStatus::Found, vec!["wanted".to_owned()], 6)]
    );
}

/// The record is handed out where it lies: what was looked at and what is delivered are one piece of memory.
#[test]
fn a_filtered_pull_copies_no_record() {
    let harness = Harness::new();
    let mut client = harness.client();
    client.publish(native("t", "n=1", "body"));
    let records = |client: &mut Client| match client.ask(&harness.engine, pull(Some("n = 1"), 0, false)) {
        Ok(Reply::Pulled(pulled)) => pulled.messages,
        other => panic!("{other:?}"),
    };
    let (first, second) = (records(&mut client), records(&mut client));
    assert_eq!(first[0].native_record().as_ptr(), second[0].native_record().as_ptr());
}
