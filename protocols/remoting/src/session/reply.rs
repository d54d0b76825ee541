//! What waits for core's replies, and what is done with them.

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::RequestId;
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{PullStatus, Pulled, Refusal, Reply, Request};
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;

use super::send::Deferred;
use super::{ReplyTo, Session, answer, refuse, transaction};
use crate::codec::Writer;
use crate::mapping::names::RETRY_PREFIX;
use crate::mapping::route::{PERM_READ, PERM_WRITE};
use crate::mapping::send::REGION;
use crate::mapping::{group, pull};
use crate::response_code::{Refused, ResponseCode};

/// A consumer group that the client is a member of.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) client_id: Bytes,
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
    Reset {
        to: ReplyTo,
        topic: Bytes,
    },
    Members {
        to: ReplyTo,
        group: Bytes,
    },
    Locked(ReplyTo),
    /// Of a transaction.
    Ended(ReplyTo),
    /// A message that was taken back, with its unique key.
    Recalled {
        to: ReplyTo,
        unique_key: Bytes,
    },
    /// A message that a consumer gave back.
    GivenBack {
        to: ReplyTo,
        offset: i64,
    },
    View {
        to: ReplyTo,
        offset: i64,
    },
}

/// One answer that waits for several replies.
#[derive(Debug)]
pub(super) struct Gather {
    pub(super) to: ReplyTo,
    pub(super) remaining: usize,
    pub(super) refused: Option<Refused>,
    pub(super) heartbeat: bool,
}

impl Session {
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
            // A consumer asks for it before its first heartbeat makes it, and looks again 20 s later.
            (Pending::Route { to, quoted, topic }, Err(Refusal::NotFound { .. }))
                if topic.starts_with(RETRY_PREFIX) && topic.len() > RETRY_PREFIX.len() =>
            {
                self.answer_route(to, 1, PERM_READ | PERM_WRITE, quoted, out);
            }
            (Pending::Route { to, topic, .. }, Err(Refusal::NotFound { .. })) => refuse(out, to, &no_route(&topic)),
            (Pending::PullBounds { to, offset }, Ok(Reply::Offsets(bounds))) => {
                let pulled = Pulled {
                    status: PullStatus::OffsetMoved,
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
            (Pending::Reset { to, topic }, Ok(Reply::Places(places))) => {
                let body = group::offsets_body(&topic, &places, &self.config.broker_name);
                answer(out, to, ResponseCode::Success, "", |_| {}, &body);
            }
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
            (Pending::Ended(to), Ok(Reply::Transaction(end))) => transaction::answer_end(to, end, out),
            (Pending::Recalled { to, unique_key }, Ok(Reply::Done)) => {
                let fields = |writer: &mut Writer<'_>| {
                    writer.text("MSG_REGION", REGION.as_bytes());
                    writer.text("msgId", &unique_key);
                };
                answer(out, to, ResponseCode::Success, "", fields, b"");
            }
            (Pending::Recalled { to, .. }, Err(Refusal::NotFound { .. })) => {
                let remark = "recall failed, the message was delivered or recalled";
                refuse(out, to, &Refused::new(ResponseCode::IllegalOperation, remark));
            }
            (Pending::GivenBack { to, .. }, Ok(Reply::Done)) => {
                answer(out, to, ResponseCode::Success, "", |_| {}, b"");
            }
            (Pending::GivenBack { to, offset }, Err(Refusal::NotFound { .. })) => {
                let remark = format!("look message by offset failed, {offset}");
                refuse(out, to, &Refused::new(ResponseCode::SystemError, remark));
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

    pub(super) fn gather_part(&mut self, number: u64, result: Result<(), Refused>, out: &mut Outbox) {
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
            | Self::Ended(to)
            | Self::Recalled { to, .. }
            | Self::GivenBack { to, .. }
            | Self::Route { to, .. }
            | Self::Pull { to, .. }
            | Self::PullBounds { to, .. }
            | Self::CommittedOffset { to, .. }
            | Self::SearchedOffset { to, .. }
            | Self::Reset { to, .. }
            | Self::Members { to, .. }
            | Self::View { to, .. } => Some(*to),
        }
    }
}

impl Gather {
    pub(super) fn answer(self, out: &mut Outbox) {
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

pub(super) fn no_route(topic: &[u8]) -> Refused {
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

pub(super) fn no_message(offset: i64) -> Refused {
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
