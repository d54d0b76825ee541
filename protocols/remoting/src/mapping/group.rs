//! Heartbeats, locks and member lists: JSON bodies to core's words and back.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::request::{Filter, GroupSubscription, Join, Retry, RetryPolicy};
use rocketbridge_core::time::Millis;
use serde::Deserialize;

use super::filter;
use super::names;
use crate::codec::{push_number, push_string};
use crate::response_code::{Refused, ResponseCode};

/// Who a client is and what it produces and consumes.
#[derive(Debug, Default)]
pub struct Heartbeat {
    /// The client.
    pub client_id: Bytes,
    /// Its producer groups.
    pub producers: Vec<Bytes>,
    /// Its consumer groups.
    pub consumers: Vec<Result<Join, Refused>>,
    /// The subscriptions were left out because the server knows them (heartbeat V2).
    pub without_subscriptions: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeartbeatBody {
    #[serde(rename = "clientID")]
    client_id: Option<String>,
    producer_data_set: Option<Vec<ProducerData>>,
    consumer_data_set: Option<Vec<ConsumerData>>,
    without_sub: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ProducerData {
    group_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConsumerData {
    group_name: Option<String>,
    message_model: Option<String>,
    subscription_data_set: Option<Vec<SubscriptionData>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SubscriptionData {
    class_filter_mode: Option<bool>,
    topic: Option<String>,
    sub_string: Option<String>,
    code_set: Option<Vec<Code>>,
    sub_version: Option<i64>,
    expression_type: Option<String>,
}

/// Java writes numbers, the Go client strings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Code {
    Number(i64),
    Text(String),
}

/// Reads the body of a heartbeat.
///
/// # Errors
/// 1 when it is no heartbeat or names no client. A group that cannot be joined has its own error in
/// [`Heartbeat::consumers`].
pub fn heartbeat(body: &[u8]) -> Result<Heartbeat, Refused> {
    let body: HeartbeatBody = read(body)?;
    let client_id = client_id(body.client_id)?;
    let producers = body.producer_data_set.unwrap_or_default();
    let consumers = body.consumer_data_set.unwrap_or_default();
    Ok(Heartbeat {
        producers: producers
            .into_iter()
            .filter_map(|producer| producer.group_name)
            .filter(|name| name.len() <= names::CLIENT_ID_MAX)
            .map(Bytes::from)
            .collect(),
        consumers: consumers.into_iter().map(|data| join(data, &client_id)).collect(),
        without_subscriptions: body.without_sub.unwrap_or(false),
        client_id,
    })
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GroupBody {
    group_name: Option<String>,
    consume_enable: Option<bool>,
    consume_broadcast_enable: Option<bool>,
    retry_queue_nums: Option<i32>,
    retry_max_times: Option<i32>,
    group_retry_policy: Option<PolicyBody>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PolicyBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    exponential_retry_policy: Option<ExponentialBody>,
    customized_retry_policy: Option<CustomizedBody>,
}

/// RocketMQ's defaults: 5 s, 2 h, twice as long each time.
#[derive(Deserialize)]
#[serde(default)]
struct ExponentialBody {
    initial: u64,
    max: u64,
    multiplier: u32,
}

impl Default for ExponentialBody {
    fn default() -> Self {
        Self {
            initial: 5000,
            max: 7_200_000,
            multiplier: 2,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CustomizedBody {
    next: Option<Vec<u64>>,
}

/// Most times of one policy.
const RETRY_TIMES_MAX: usize = 256;

/// Reads a group's settings: its name and how its messages are tried again.
///
/// # Errors
/// 29 for a name that cannot be one and for numbers that make no sense, 1 for what is no JSON and for what
/// this version does not do: groups that may not consume.
pub fn settings(body: &[u8]) -> Result<(Bytes, Retry), Refused> {
    let body: GroupBody = read(body)?;
    let group = body.group_name.unwrap_or_default();
    names::check_group(group.as_bytes())?;
    if body.consume_enable == Some(false) || body.consume_broadcast_enable == Some(false) {
        let what = "a group that may not consume";
        return Err(Refused::not_supported(ResponseCode::SystemError, what));
    }
    let usual = Retry::default();
    let invalid = |what: &'static str| Refused::new(ResponseCode::InvalidParameter, what);
    let queues = body.retry_queue_nums.unwrap_or(1);
    let queues = u32::try_from(queues).map_err(|_| invalid("retryQueueNums is less than zero"))?;
    if queues > 64 {
        return Err(invalid("retryQueueNums is more than 64"));
    }
    let policy = body.group_retry_policy.unwrap_or_default();
    let policy = match policy.kind.as_deref() {
        Some("EXPONENTIAL") => {
            let policy = policy.exponential_retry_policy.unwrap_or_default();
            RetryPolicy::Exponential {
                initial: Millis(policy.initial),
                max: Millis(policy.max),
                multiplier: policy.multiplier.max(1),
            }
        }
        Some("CUSTOMIZED") | None => match policy.customized_retry_policy.and_then(|policy| policy.next) {
            Some(next) if next.is_empty() || next.len() > RETRY_TIMES_MAX => {
                return Err(invalid("customizedRetryPolicy has no time, or too many"));
            }
            Some(next) => RetryPolicy::Levels(next.into_iter().map(Millis).collect()),
            None => usual.policy,
        },
        Some(_) => return Err(invalid("the type of groupRetryPolicy is unknown")),
    };
    let retry = Retry {
        attempts_max: body.retry_max_times.unwrap_or(usual.attempts_max),
        queues,
        policy,
    };
    Ok((Bytes::from(group), retry))
}

fn join(data: ConsumerData, client_id: &Bytes) -> Result<Join, Refused> {
    let group = data.group_name.unwrap_or_default();
    names::check_group(group.as_bytes())?;
    let mut subscriptions = Vec::new();
    for data in data.subscription_data_set.unwrap_or_default() {
        let topic = data.topic.as_deref().unwrap_or_default();
        // No message can ever be in such a topic: nothing is lost by leaving it out.
        if names::check_topic(topic.as_bytes()).is_err() {
            continue;
        }
        subscriptions.push(GroupSubscription {
            filter: subscription_filter(&data)?,
            version: data.sub_version.map_or(0, |version| version.max(0) as u64),
            topic: Bytes::from(data.topic.unwrap_or_default()),
        });
    }
    Ok(Join {
        group: Bytes::from(group),
        client_id: client_id.clone(),
        broadcasting: data.message_model.as_deref() == Some("BROADCASTING"),
        subscriptions,
    })
}

fn subscription_filter(data: &SubscriptionData) -> Result<Filter, Refused> {
    let kind = data.expression_type.as_deref().unwrap_or_default();
    let expression = data.sub_string.as_deref().unwrap_or_default();
    if !filter::is_tag_type(kind) {
        return filter::filter(expression, kind);
    }
    if data.class_filter_mode == Some(true) {
        return Ok(Filter::All);
    }
    let codes = data.code_set.as_deref().unwrap_or_default();
    if expression.is_empty() && !codes.is_empty() {
        let hashes = codes.iter().filter_map(|code| match code {
            Code::Number(code) => i32::try_from(*code).ok(),
            Code::Text(code) => code.parse().ok(),
        });
        return Ok(filter::of_hashes(hashes.collect()));
    }
    // From the expression rather than from the client's hashes: the Go client hashes UTF-8 bytes.
    filter::filter(expression, kind)
}

/// What a client wants to lock or unlock.
#[derive(Debug)]
pub struct Locks {
    /// The group it consumes in.
    pub group: Bytes,
    /// The client.
    pub client_id: Bytes,
    /// The message queues of this broker among those it names.
    pub queues: Vec<(Bytes, u32)>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LockBody {
    consumer_group: Option<String>,
    client_id: Option<String>,
    mq_set: Option<Vec<MessageQueue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MessageQueue {
    topic: Option<String>,
    broker_name: Option<String>,
    queue_id: i64,
}

/// Reads the body of a lock or unlock.
///
/// # Errors
/// 1 when it is none, 29 for names that cannot be.
pub fn locks(body: &[u8], broker_name: &str) -> Result<Locks, Refused> {
    let body: LockBody = read(body)?;
    let group = body.consumer_group.unwrap_or_default();
    names::check_group(group.as_bytes())?;
    let ours = |queue: MessageQueue| {
        let topic = queue
            .topic
            .filter(|topic| names::check_topic(topic.as_bytes()).is_ok())?;
        let id = u32::try_from(queue.queue_id).ok()?;
        (queue.broker_name.as_deref() == Some(broker_name)).then(|| (Bytes::from(topic), id))
    };
    Ok(Locks {
        group: Bytes::from(group),
        client_id: client_id(body.client_id)?,
        queues: body.mq_set.unwrap_or_default().into_iter().filter_map(ours).collect(),
    })
}

fn push_message_queue(out: &mut BytesMut, broker_name: &str, queue_id: u32, topic: &[u8]) {
    out.put_slice(b"{\"brokerName\":");
    push_string(out, broker_name.as_bytes());
    out.put_slice(b",\"queueId\":");
    push_number(out, i64::from(queue_id));
    out.put_slice(b",\"topic\":");
    push_string(out, topic);
    out.put_u8(b'}');
}

/// The body that tells which message queues are locked.
pub fn locked_body(queues: &[(Bytes, u32)], broker_name: &str) -> BytesMut {
    let mut out = BytesMut::with_capacity(32 + queues.len() * 64);
    out.put_slice(b"{\"lockOKMQSet\":[");
    for (at, (topic, queue_id)) in queues.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        push_message_queue(&mut out, broker_name, *queue_id, topic);
    }
    out.put_slice(b"]}");
    out
}

/// The body that tells a topic's offsets, in the dialect of Java's fastjson: objects are keys.
pub fn offsets_body(topic: &[u8], places: &[(u32, u64)], broker_name: &str) -> BytesMut {
    let mut out = BytesMut::with_capacity(32 + places.len() * 96);
    out.put_slice(b"{\"offsetTable\":{");
    for (at, (queue_id, offset)) in places.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        push_message_queue(&mut out, broker_name, *queue_id, topic);
        out.put_u8(b':');
        push_number(&mut out, *offset as i64);
    }
    out.put_slice(b"}}");
    out
}

/// The body that lists a group's members.
pub fn members_body(members: &[Bytes]) -> BytesMut {
    let mut out = BytesMut::with_capacity(32 + members.len() * 48);
    out.put_slice(b"{\"consumerIdList\":[");
    for (at, member) in members.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        push_string(&mut out, member);
    }
    out.put_slice(b"]}");
    out
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CheckBody {
    subscription_data: Option<SubscriptionData>,
}

/// Whether the broker can filter as the body of a client's check says.
///
/// # Errors
/// 23 when it cannot: the client's start fails with the remark.
pub fn check_client_config(body: &[u8]) -> Result<(), Refused> {
    let body: CheckBody = read(body)?;
    match body.subscription_data {
        Some(data) if !filter::is_tag_type(data.expression_type.as_deref().unwrap_or_default()) => {
            subscription_filter(&data).map(|_| ())
        }
        _ => Ok(()),
    }
}

fn client_id(client_id: Option<String>) -> Result<Bytes, Refused> {
    match client_id {
        Some(id) if !id.is_empty() && id.len() <= names::CLIENT_ID_MAX => Ok(Bytes::from(id)),
        Some(id) if !id.is_empty() => Err(Refused::new(ResponseCode::SystemError, "the client id is too long")),
        _ => Err(Refused::new(ResponseCode::SystemError, "the client id is missing")),
    }
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| Refused::new(ResponseCode::SystemError, format!("the body cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the Go client writes it: sets of strings, no type for an empty selector.
    const GO: &[u8] = br#"{"clientID":"10.0.0.1@7#9","producerDataSet":[{"groupName":"DEFAULT_PRODUCER"}],"consumerDataSet":[{"groupName":"testGroup","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","subscriptionDataSet":[{"classFilterMode":false,"topic":"hellomq","subString":"*","tagsSet":[],"codeSet":[],"subVersion":1700000000000000000,"expressionType":"TAG"},{"classFilterMode":false,"topic":"T","subString":"a || b","tagsSet":["a","b"],"codeSet":["97","98"],"subVersion":2,"expressionType":""}],"unitMode":false}]}"#;

    #[test]
    fn a_heartbeat_of_the_go_client_is_read() {
        let heartbeat = heartbeat(GO).unwrap();
        assert_eq!(heartbeat.client_id, "10.0.0.1@7#9");
        assert_eq!(heartbeat.producers, ["DEFAULT_PRODUCER"]);
        let join = heartbeat.consumers[0].as_ref().unwrap();
        assert_eq!((&join.group[..], join.broadcasting), (&b"testGroup"[..], false));
        let subscription = |topic: &'static str, filter, version| GroupSubscription {
            topic: Bytes::from(topic),
            filter,
            version,
        };
        assert_eq!(
            join.subscriptions,
            [
                subscription("hellomq", Filter::All, 1_700_000_000_000_000_000),
                subscription("T", Filter::Tags(vec![97, 98]), 2),
            ]
        );
    }

    #[test]
    fn a_heartbeat_of_the_java_client_is_read() {
        let body = br#"{"clientID":"c","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","groupName":"g","messageModel":"BROADCASTING","subscriptionDataSet":[{"classFilterMode":false,"codeSet":[97],"expressionType":"TAG","subString":"a","subVersion":5,"tagsSet":["a"],"topic":"T"}],"unitMode":false}],"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"CLIENT_INNER_PRODUCER"}],"withoutSub":false}"#;
        let heartbeat = heartbeat(body).unwrap();
        let join = heartbeat.consumers[0].as_ref().unwrap();
        assert!(join.broadcasting);
        assert_eq!(join.subscriptions[0].filter, Filter::Tags(vec![97]));
    }

    #[test]
    fn a_group_whose_expression_is_wrong_is_refused_and_others_are_not() {
        let body = br#"{"clientID":"c","consumerDataSet":[{"groupName":"g","subscriptionDataSet":[{"topic":"T","subString":"a >","expressionType":"SQL92"}]},{"groupName":"h","subscriptionDataSet":[{"topic":"T","subString":"a > 1","expressionType":"SQL92"}]}]}"#;
        let heartbeat = heartbeat(body).unwrap();
        let refused = heartbeat.consumers[0].as_ref().unwrap_err();
        assert_eq!(refused.code, ResponseCode::SubscriptionParseFailed);
        let join = heartbeat.consumers[1].as_ref().unwrap();
        assert_eq!(join.subscriptions[0].filter, filter::filter("a > 1", "SQL92").unwrap());
    }

    #[test]
    fn a_body_that_is_no_heartbeat_is_refused() {
        let deep = [b"[".repeat(50_000), b"]".repeat(50_000)].concat();
        let bodies: [&[u8]; 6] = [b"", b"null", b"[1", b"{}", b"{\"clientID\":\"\"}", &deep];
        for body in bodies {
            assert_eq!(heartbeat(body).unwrap_err().code, ResponseCode::SystemError);
        }
    }

    #[test]
    fn locks_are_for_this_broker_s_queues_only() {
        let body = br#"{"consumerGroup":"g","clientId":"c","mqSet":[{"topic":"T","brokerName":"broker-a","queueId":3},{"topic":"T","brokerName":"broker-b","queueId":4},{"topic":"T","brokerName":"broker-a","queueId":-1}]}"#;
        let locks = locks(body, "broker-a").unwrap();
        assert_eq!(locks.queues, [(Bytes::from("T"), 3)]);
        assert_eq!(
            locked_body(&locks.queues, "broker-a"),
            r#"{"lockOKMQSet":[{"brokerName":"broker-a","queueId":3,"topic":"T"}]}"#
        );
        assert_eq!(locked_body(&[], "broker-a"), r#"{"lockOKMQSet":[]}"#);
    }

    #[test]
    fn members_are_listed_as_strings() {
        assert_eq!(members_body(&[]), r#"{"consumerIdList":[]}"#);
        assert_eq!(
            members_body(&[Bytes::from("a@1"), Bytes::from("b\"")]),
            r#"{"consumerIdList":["a@1","b\""]}"#
        );
    }

    #[test]
    fn offsets_are_told_as_java_reads_them() {
        assert_eq!(
            offsets_body(b"T", &[(0, 5), (1, 7)], "b"),
            r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:5,{"brokerName":"b","queueId":1,"topic":"T"}:7}}"#
        );
    }

    #[test]
    fn a_check_compiles_the_expression() {
        let check = |kind: &str, text: &str| {
            let body = format!(r#"{{"subscriptionData":{{"expressionType":"{kind}","subString":"{text}"}}}}"#);
            check_client_config(body.as_bytes()).map_err(|refused| refused.code)
        };
        assert_eq!(check("TAG", "||"), Ok(()));
        assert_eq!(check("SQL92", "a = 'x'"), Ok(()));
        assert_eq!(check("SQL92", ""), Err(ResponseCode::SubscriptionParseFailed));
        assert_eq!(check("OTHER", "a"), Err(ResponseCode::SubscriptionParseFailed));
    }
}
