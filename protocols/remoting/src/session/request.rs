//! Requests to core, and what is done with their replies.

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::RequestId;
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Pulled, Refusal, Reply, Request};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;

use super::send::Deferred;
use super::{ReplyTo, Session, answer, refuse};
use crate::codec::{Command, Writer};
use crate::mapping::names::{self, AUTO_CREATE_TOPIC, RETRY_PREFIX};
use crate::mapping::route::{self, PERM_INHERIT, PERM_READ, PERM_WRITE, Route};
use crate::mapping::{group, pull, queue_id, required, required_number};
use crate::response_code::{Refused, ResponseCode};

/// Message queues in the route that producers take for a topic that does not exist.
const AUTO_CREATE_QUEUES: u32 = 8;

/// A consumer group that the client is a member of.
#[derive(Debug)]
pub(super) struct Member {
    client_id: Bytes,
    pub(super) broadcasting: bool,
}

/// What waits for a reply.
#[derive(Debug)]
pub(super) enum Pending {
    Login,
    /// Nobody waits: an offset committed along with a pull.
    Unasked,
    /// Plain success, or a refusal.
    Done(ReplyTo),
    /// One of several replies that make one answer.
    Part(u64),
    /// A batch whose message queue is not chosen yet.
    Send(Box<Deferred>),
    Route {
        to: ReplyTo,
        topic: Bytes,
        quoted: bool,
    },
    Pull {
        to: ReplyTo,
        offset: i64,
        hold_until: Option<Millis>,
    },
    /// A pull from a negative offset.
    PullBounds {
        to: ReplyTo,
        offset: i64,
    },
    CommittedOffset {
        to: ReplyTo,
        topic: Bytes,
        queue_id: u32,
        zero_if_young: bool,
    },
    /// A group that never committed: does the message queue still have its first message?
    YoungQueue(ReplyTo),
    SearchedOffset {
        to: ReplyTo,
        topic: Bytes,
        queue_id: u32,
    },
    MaxOffset(ReplyTo),
    MinOffset(ReplyTo),
    Members {
        to: ReplyTo,
        group: Bytes,
    },
    Locked(ReplyTo),
    View {
        to: ReplyTo,
        offset: i64,
    },
}

/// One answer that waits for several replies.
#[derive(Debug)]
pub(super) struct Gather {
    to: ReplyTo,
    remaining: usize,
    refused: Option<Refused>,
    heartbeat: bool,
}

impl Session {
    // --- name server --------------------------------------------------------------------------

    /// GET_ROUTEINFO_BY_TOPIC
    pub(super) fn route_info(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let topic = required(command, "topic")?.to_bytes();
        let standard_only = command
            .field("acceptStandardJsonOnly")
            .is_some_and(|value| value.is_true());
        let quoted = route::is_quoted(command.version(), standard_only);
        if *topic == *AUTO_CREATE_TOPIC && self.config.topics_auto_create {
            let perm = PERM_READ | PERM_WRITE | PERM_INHERIT;
            self.answer_route(to, AUTO_CREATE_QUEUES, perm, quoted, out);
            return Ok(());
        }
        if names::check_topic(&topic).is_err() {
            return Err(no_route(&topic));
        }
        let pending = Pending::Route {
            to,
            topic: topic.clone(),
            quoted,
        };
        self.ask(Request::FindTopic { topic }, pending, out)?;
        Ok(())
    }

    fn answer_route(&self, to: ReplyTo, queues: u32, perm: u32, quoted: bool, out: &mut Outbox) {
        let address = self.config.broker_address(self.peer.local);
        let route = Route {
            address: &address,
            queues,
            perm,
            quoted,
        };
        let body = route::route_body(&self.config, route);
        answer(out, to, ResponseCode::Success, "", |_| {}, &body);
    }

    /// GET_BROKER_CLUSTER_INFO
    pub(super) fn cluster_info(&self, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let address = self.config.broker_address(self.peer.local);
        let body = route::cluster_body(&self.config, &address);
        answer(out, to, ResponseCode::Success, "", |_| {}, &body);
        Ok(())
    }

    // --- offsets ------------------------------------------------------------------------------

    /// QUERY_CONSUMER_OFFSET
    pub(super) fn query_offset(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let group = required(command, "consumerGroup")?.to_bytes();
        let (topic, queue_id) = topic_and_queue(command)?;
        let pending = Pending::CommittedOffset {
            to,
            topic: topic.clone(),
            queue_id,
            zero_if_young: !command
                .field("setZeroIfNotFound")
                .is_some_and(|value| value.is("false")),
        };
        let request = Request::CommittedOffset { group, topic, queue_id };
        self.ask(request, pending, out)?;
        Ok(())
    }

    /// UPDATE_CONSUMER_OFFSET
    pub(super) fn update_offset(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let group = required(command, "consumerGroup")?.to_bytes();
        names::check_group(&group)?;
        let (topic, queue_id) = topic_and_queue(command)?;
        let offset = required_number(command, "commitOffset")?;
        let offset = u64::try_from(offset).map_err(|_| {
            Refused::new(
                ResponseCode::InvalidParameter,
                format!("commitOffset[{offset}] is negative"),
            )
        })?;
        let request = Request::CommitOffset {
            group,
            topic,
            queue_id,
            offset,
        };
        self.ask(request, Pending::Done(to), out)?;
        Ok(())
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP
    pub(super) fn search_offset(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let (topic, queue_id) = topic_and_queue(command)?;
        let at = required_number(command, "timestamp")?;
        let pending = Pending::SearchedOffset {
            to,
            topic: topic.clone(),
            queue_id,
        };
        let at = Millis(u64::try_from(at).unwrap_or(0));
        self.ask(Request::SearchOffset { topic, queue_id, at }, pending, out)?;
        Ok(())
    }

    /// GET_MAX_OFFSET and GET_MIN_OFFSET
    pub(super) fn bounds(&mut self, command: &Command, pending: Pending, out: &mut Outbox) -> Result<(), Refused> {
        let (topic, queue_id) = topic_and_queue(command)?;
        self.ask(Request::Bounds { topic, queue_id }, pending, out)?;
        Ok(())
    }

    // --- messages -----------------------------------------------------------------------------

    /// PULL_MESSAGE and LITE_PULL_MESSAGE
    pub(super) fn pull(&mut self, now: Now, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let wanted = pull::pull_request(command, &self.config)?;
        let (pull, offset) = (wanted.pull, wanted.offset);
        if let Some(offset) = wanted.commit {
            let commit = Request::CommitOffset {
                group: pull.group.clone(),
                topic: pull.topic.clone(),
                queue_id: pull.queue_id,
                offset,
            };
            self.ask(commit, Pending::Unasked, out)?;
        }
        if offset < 0 {
            let (topic, queue_id) = (pull.topic, pull.queue_id);
            let pending = Pending::PullBounds { to, offset };
            self.ask(Request::Bounds { topic, queue_id }, pending, out)?;
            return Ok(());
        }
        let hold_until = pull.hold.then(|| now.mono + wanted.suspend);
        let pending = Pending::Pull { to, offset, hold_until };
        let id = self.ask(Request::Pull(pull), pending, out)?;
        if let Some(at) = hold_until {
            self.holds.insert((at, id));
        }
        Ok(())
    }

    /// VIEW_MESSAGE_BY_ID
    pub(super) fn view_message(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let offset = required_number(command, "offset")?;
        let position = u64::try_from(offset).map_err(|_| no_message(offset))?;
        let request = Request::View {
            position: Position(position),
        };
        self.ask(request, Pending::View { to, offset }, out)?;
        Ok(())
    }

    // --- groups -------------------------------------------------------------------------------

    /// HEART_BEAT
    pub(super) fn heart_beat(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let heartbeat = group::heartbeat(command.body())?;
        let most = heartbeat.producers.len() + 3 * heartbeat.consumers.len();
        if self.pending.len() + most > self.config.requests_max {
            return Err(super::busy("too many requests on this connection"));
        }
        let mut requests = Vec::new();
        let mut refused = None;
        for group in heartbeat.producers {
            if self.producers.contains(&group) {
                continue;
            }
            if let Err(error) = self.check_groups() {
                refused = Some(error);
                continue;
            }
            self.producers.insert(group.clone());
            let client_id = heartbeat.client_id.clone();
            requests.push(Request::JoinProducers { group, client_id });
        }
        for join in heartbeat.consumers {
            let join = match join {
                Ok(join) => join,
                Err(error) => {
                    refused = Some(error);
                    continue;
                }
            };
            match self.members.get(&join.group) {
                None => {
                    if let Err(error) = self.check_groups() {
                        refused = Some(error);
                        continue;
                    }
                    let topic = Bytes::from([RETRY_PREFIX, &join.group].concat());
                    requests.push(Request::DeclareTopic { topic, queues: 1 });
                }
                // A connection is one member of a group: its last name counts.
                Some(member) if member.client_id != join.client_id => requests.push(Request::LeaveConsumers {
                    group: join.group.clone(),
                    client_id: member.client_id.clone(),
                }),
                // What the group wants is known and stays.
                Some(_) if heartbeat.without_subscriptions => continue,
                Some(_) => {}
            }
            let member = Member {
                client_id: join.client_id.clone(),
                broadcasting: join.broadcasting,
            };
            self.members.insert(join.group.clone(), member);
            requests.push(Request::JoinConsumers(join));
        }
        let gather = Gather {
            to,
            remaining: requests.len(),
            refused,
            heartbeat: true,
        };
        self.gather(gather, requests, out)
    }

    /// UNREGISTER_CLIENT. Producers are only forgotten: nothing is ever asked of them.
    pub(super) fn unregister_client(
        &mut self,
        command: &Command,
        to: ReplyTo,
        out: &mut Outbox,
    ) -> Result<(), Refused> {
        required(command, "clientID")?;
        if let Some(group) = command.field("producerGroup") {
            self.producers.remove(&*group.bytes());
        }
        let mut requests = Vec::new();
        if let Some(group) = command.field("consumerGroup") {
            // Only who came in on this connection leaves by it.
            if let Some((group, member)) = self.members.remove_entry(&*group.bytes()) {
                let client_id = member.client_id;
                requests.push(Request::LeaveConsumers { group, client_id });
            }
        }
        let gather = Gather {
            to,
            remaining: requests.len(),
            refused: None,
            heartbeat: false,
        };
        self.gather(gather, requests, out)
    }

    fn check_groups(&self) -> Result<(), Refused> {
        if self.members.len() + self.producers.len() >= self.config.groups_max {
            return Err(Refused::new(
                ResponseCode::SystemError,
                format!("more than {} groups on one connection", self.config.groups_max),
            ));
        }
        Ok(())
    }

    fn gather(&mut self, gather: Gather, requests: Vec<Request>, out: &mut Outbox) -> Result<(), Refused> {
        if requests.is_empty() {
            gather.answer(out);
            return Ok(());
        }
        let number = self.last_request + 1;
        self.gathers.insert(number, gather);
        for request in requests {
            if let Err(refused) = self.ask(request, Pending::Part(number), out) {
                self.gather_part(number, Err(refused), out);
            }
        }
        Ok(())
    }

    /// GET_CONSUMER_LIST_BY_GROUP
    pub(super) fn consumer_list(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let group = required(command, "consumerGroup")?.to_bytes();
        let pending = Pending::Members {
            to,
            group: group.clone(),
        };
        self.ask(Request::Members { group }, pending, out)?;
        Ok(())
    }

    /// LOCK_BATCH_MQ
    pub(super) fn lock(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let locks = group::locks(command.body(), &self.config.broker_name)?;
        let request = Request::LockQueues {
            group: locks.group,
            client_id: locks.client_id,
            queues: locks.queues,
        };
        self.ask(request, Pending::Locked(to), out)?;
        Ok(())
    }

    /// UNLOCK_BATCH_MQ
    pub(super) fn unlock(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let locks = group::locks(command.body(), &self.config.broker_name)?;
        let request = Request::UnlockQueues {
            group: locks.group,
            client_id: locks.client_id,
            queues: locks.queues,
        };
        self.ask(request, Pending::Done(to), out)?;
        Ok(())
    }

    // --- replies ------------------------------------------------------------------------------

    /// Core answers a request.
    pub(super) fn handle_reply(&mut self, now: Now, id: RequestId, result: Result<Reply, Refusal>, out: &mut Outbox) {
        let Some(pending) = self.pending.remove(&id) else {
            return;
        };
        match (pending, result) {
            (Pending::Unasked, _) | (Pending::Login, Ok(_)) => {}
            (Pending::Login, Err(refusal)) => {
                let remark = format!("{refusal}: native clients cannot log in to this version");
                self.state = super::State::Refused(Refused::new(ResponseCode::NoPermission, remark));
            }
            (Pending::Part(number), result) => {
                self.gather_part(number, result.map(|_| ()).map_err(Refused::from), out);
            }
            (Pending::Send(deferred), result) => match result {
                Ok(Reply::Topic(topic)) => self.send_deferred(now, *deferred, Some(topic), out),
                Err(Refusal::NotFound { .. }) => self.send_deferred(now, *deferred, None, out),
                other => refuse(out, deferred.to(), &unexpected(other)),
            },
            (Pending::Pull { to, offset, hold_until }, result) => {
                if let Some(at) = hold_until {
                    self.holds.remove(&(at, id));
                }
                match result {
                    Ok(Reply::Pulled(pulled)) => answer_pull(to, offset, *pulled, out),
                    other => refuse(out, to, &unexpected(other)),
                }
            }
            (
                Pending::CommittedOffset {
                    to,
                    topic,
                    queue_id,
                    zero_if_young,
                },
                result,
            ) => match result {
                Ok(Reply::Offset(Some(offset))) => answer_offset(to, offset, out),
                Ok(Reply::Offset(None)) | Err(Refusal::NotFound { .. }) if zero_if_young => {
                    let request = Request::Bounds { topic, queue_id };
                    if let Err(refused) = self.ask(request, Pending::YoungQueue(to), out) {
                        refuse(out, to, &refused);
                    }
                }
                Ok(Reply::Offset(None)) | Err(Refusal::NotFound { .. }) => refuse(out, to, &no_offset()),
                other => refuse(out, to, &unexpected(other)),
            },
            (Pending::SearchedOffset { to, topic, queue_id }, result) => match result {
                Ok(Reply::Offset(Some(offset))) => answer_offset(to, offset, out),
                // Nothing is as late as that: go on with what comes next.
                Ok(Reply::Offset(None)) => {
                    let request = Request::Bounds { topic, queue_id };
                    if let Err(refused) = self.ask(request, Pending::MaxOffset(to), out) {
                        refuse(out, to, &refused);
                    }
                }
                other => refuse(out, to, &unexpected(other)),
            },
            (pending, result) => self.plain_reply(pending, result, out),
        }
    }

    /// Replies that are turned into an answer without asking on.
    fn plain_reply(&mut self, pending: Pending, result: Result<Reply, Refusal>, out: &mut Outbox) {
        match (pending, result) {
            (Pending::Done(to), Ok(Reply::Done)) => answer(out, to, ResponseCode::Success, "", |_| {}, b""),
            (Pending::Route { to, quoted, .. }, Ok(Reply::Topic(topic))) => {
                self.answer_route(to, topic.queues, PERM_READ | PERM_WRITE, quoted, out);
            }
            (Pending::Route { to, topic, .. }, Err(Refusal::NotFound { .. })) => refuse(out, to, &no_route(&topic)),
            (Pending::PullBounds { to, offset }, Ok(Reply::Offsets(bounds))) => {
                let pulled = Pulled {
                    status: rocketbridge_core::request::PullStatus::OffsetMoved,
                    messages: Vec::new(),
                    next_offset: bounds.start,
                    bounds,
                };
                answer_pull(to, offset, pulled, out);
            }
            (Pending::YoungQueue(to), Ok(Reply::Offsets(bounds))) if bounds.start == 0 => answer_offset(to, 0, out),
            (Pending::YoungQueue(to), Ok(Reply::Offsets(_)) | Err(Refusal::NotFound { .. })) => {
                refuse(out, to, &no_offset());
            }
            (Pending::MaxOffset(to), Ok(Reply::Offsets(bounds))) => answer_offset(to, bounds.end, out),
            (Pending::MinOffset(to), Ok(Reply::Offsets(bounds))) => answer_offset(to, bounds.start, out),
            (Pending::Members { to, group }, Ok(Reply::Members(members))) => {
                let body = group::members_body(&members);
                if members.is_empty() {
                    // The Go client reads the body whatever the code says.
                    let remark = format!("no consumer for this group, {}", String::from_utf8_lossy(&group));
                    answer(out, to, ResponseCode::SystemError, &remark, |_| {}, &body);
                } else {
                    answer(out, to, ResponseCode::Success, "", |_| {}, &body);
                }
            }
            (Pending::Locked(to), Ok(Reply::Locked(queues))) => {
                let body = group::locked_body(&queues, &self.config.broker_name);
                answer(out, to, ResponseCode::Success, "", |_| {}, &body);
            }
            (Pending::View { to, .. }, Ok(Reply::Message(message))) => {
                answer(out, to, ResponseCode::Success, "", |_| {}, message.native_record());
            }
            (Pending::View { to, offset }, Err(Refusal::NotFound { .. })) => refuse(out, to, &no_message(offset)),
            (pending, result) => {
                if let Some(to) = pending.to() {
                    refuse(out, to, &unexpected(result));
                }
            }
        }
    }

    fn gather_part(&mut self, number: u64, result: Result<(), Refused>, out: &mut Outbox) {
        let Some(gather) = self.gathers.get_mut(&number) else {
            return;
        };
        if let Err(refused) = result {
            gather.refused = Some(refused);
        }
        gather.remaining -= 1;
        if gather.remaining == 0
            && let Some(gather) = self.gathers.remove(&number)
        {
            gather.answer(out);
        }
    }
}

impl Pending {
    /// Whom to answer, if anybody waits.
    fn to(&self) -> Option<ReplyTo> {
        match self {
            Self::Login | Self::Unasked | Self::Part(_) => None,
            Self::Send(deferred) => Some(deferred.to()),
            Self::Done(to)
            | Self::YoungQueue(to)
            | Self::MaxOffset(to)
            | Self::MinOffset(to)
            | Self::Locked(to)
            | Self::Route { to, .. }
            | Self::Pull { to, .. }
            | Self::PullBounds { to, .. }
            | Self::CommittedOffset { to, .. }
            | Self::SearchedOffset { to, .. }
            | Self::Members { to, .. }
            | Self::View { to, .. } => Some(*to),
        }
    }
}

impl Gather {
    fn answer(self, out: &mut Outbox) {
        if let Some(refused) = &self.refused {
            return refuse(out, self.to, refused);
        }
        let fields = |writer: &mut Writer<'_>| {
            if self.heartbeat {
                // Clients then send their subscriptions in full each time.
                writer.text("IS_SUB_CHANGE", b"true");
                writer.text("IS_SUPPORT_HEART_BEAT_V2", b"false");
            }
        };
        answer(out, self.to, ResponseCode::Success, "", fields, b"");
    }
}

/// Lets a record be sent from where it lies.
struct Record(Message);

impl AsRef<[u8]> for Record {
    fn as_ref(&self) -> &[u8] {
        self.0.native_record()
    }
}

fn answer_pull(to: ReplyTo, offset: i64, pulled: Pulled, out: &mut Outbox) {
    if to.oneway {
        return;
    }
    let (code, remark) = pull::pull_status(pulled.status, offset, &pulled.bounds);
    let body: usize = pulled
        .messages
        .iter()
        .map(|message| message.native_record().len())
        .sum();
    let memory: &mut BytesMut = out.bytes();
    let mut writer = Writer::response(memory, to.serialize_type, to.opaque, code as i32, remark);
    writer.number("groupSysFlag", 0);
    writer.number("maxOffset", pulled.bounds.end as i64);
    writer.number("minOffset", pulled.bounds.start as i64);
    writer.number("nextBeginOffset", pulled.next_offset as i64);
    writer.number("suggestWhichBrokerId", 0);
    writer.number("topicSysFlag", 0);
    writer.finish(body);
    for message in pulled.messages {
        out.body(message.native_record(), || Bytes::from_owner(Record(message.clone())));
    }
}

fn answer_offset(to: ReplyTo, offset: u64, out: &mut Outbox) {
    let fields = |writer: &mut Writer<'_>| writer.number("offset", offset as i64);
    answer(out, to, ResponseCode::Success, "", fields, b"");
}

fn topic_and_queue(command: &Command) -> Result<(Bytes, u32), Refused> {
    let topic = required(command, "topic")?.to_bytes();
    names::check_topic(&topic)?;
    Ok((topic, queue_id(command)?))
}

fn no_route(topic: &[u8]) -> Refused {
    Refused::new(
        ResponseCode::TopicNotExist,
        format!(
            "No topic route info in name server for the topic: {}",
            String::from_utf8_lossy(&topic[..topic.len().min(256)])
        ),
    )
}

fn no_offset() -> Refused {
    Refused::new(
        ResponseCode::QueryNotFound,
        "Not found, maybe this group consumer boot first",
    )
}

fn no_message(offset: i64) -> Refused {
    Refused::new(
        ResponseCode::SystemError,
        format!("can not find message by the offset, {offset}"),
    )
}

/// A refusal, or a reply of another kind than core promises.
fn unexpected(result: Result<Reply, Refusal>) -> Refused {
    match result {
        Err(refusal) => refusal.into(),
        Ok(_) => Refused::new(ResponseCode::SystemError, "the broker gave no sensible answer"),
    }
}
