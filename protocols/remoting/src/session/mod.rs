//! One client's connection: commands in, commands and orders to core out.
//!
//! Name server and broker in one: any listener takes every request code. Requests are independent of each
//! other and are answered when their answer is there, in any order; `opaque` tells which is which. What
//! a command means in core's words is [`mapping`](crate::mapping)'s work. Sends are in `send.rs`, what
//! others ask of core in `request.rs`, its replies in `reply.rs`.
//!
//! The time limits are those of RocketMQ: a connection is closed after 120 s of silence, a send that
//! core does not take within 200 ms is answered with "busy", a pull is held as long as it asks for.

mod reply;
mod request;
mod send;
mod transaction;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::address::fnv1a;
use rocketbridge_core::boundary::{Event, Notice, Peer, RequestId};
use rocketbridge_core::filter::Sql;
use rocketbridge_core::request::{Credentials, Request};
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;
use tracing::debug;

use crate::codec::{self, Command, SerializeType, Writer};
use crate::config::Config;
use crate::request_code as code;
use crate::response_code::{Refused, ResponseCode};
use reply::{Gather, Member, Pending};
use send::Sends;

/// One connection's state.
pub struct Session {
    config: Arc<Config>,
    peer: Peer,
    state: State,
    /// Decoded into, frame after frame.
    command: Command,
    /// Requests that core has not answered.
    pending: HashMap<RequestId, Pending>,
    /// Held pulls by the end of their wait.
    holds: BTreeSet<(Millis, RequestId)>,
    /// Answers that wait for several replies.
    gathers: HashMap<u64, Gather>,
    last_request: u64,
    sends: Sends,
    /// Consumer groups that this client is a member of.
    members: HashMap<Bytes, Member>,
    producers: HashSet<Bytes>,
    /// The expression that pulls last came with.
    last_sql: Option<Arc<Sql>>,
    /// Our number for the last request to the client.
    last_opaque: i32,
    /// When there was traffic last.
    active_at: Millis,
}

/// ```text
///   New --first bytes--> Open --shutdown--> Draining --all answered--> Closed
///                          |                                              ^
///                          '------ end of file, bad frame, silence -------'
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing came yet: core was not asked for admission.
    New,
    /// At work.
    Open,
    /// The peer may not come in: everything is answered with that.
    Refused(Refused),
    /// Going down: what was taken is still answered, nothing new is taken.
    Draining,
    /// Over. What comes is thrown away.
    Closed,
}

/// Whom to answer, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyTo {
    opaque: i32,
    serialize_type: SerializeType,
    oneway: bool,
}

impl Session {
    /// A connection that was just accepted.
    pub fn new(config: Arc<Config>, peer: Peer, now: Now) -> Self {
        let address = fnv1a(peer.remote.to_string().as_bytes());
        Self {
            sends: Sends::new(address ^ now.wall.0.rotate_left(32)),
            config,
            peer,
            state: State::New,
            command: Command::default(),
            pending: HashMap::new(),
            holds: BTreeSet::new(),
            gathers: HashMap::new(),
            last_request: 0,
            members: HashMap::new(),
            producers: HashSet::new(),
            last_sql: None,
            last_opaque: 0,
            active_at: now.mono,
        }
    }

    /// Asks core something; `pending` knows what to do with the reply.
    fn ask(&mut self, request: Request, pending: Pending, out: &mut Outbox) -> Result<RequestId, Refused> {
        if self.pending.len() >= self.config.requests_max {
            return Err(busy("too many requests on this connection"));
        }
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.pending.insert(id, pending);
        out.request(id, request);
        Ok(id)
    }

    fn handle_command(&mut self, now: Now, command: &Command, out: &mut Outbox) {
        // Clients answer our notices although they are one-way, some of them.
        if command.is_response() {
            return;
        }
        let to = ReplyTo {
            opaque: command.opaque(),
            serialize_type: command.serialize_type(),
            oneway: command.is_oneway(),
        };
        let result = match &self.state {
            State::Refused(refused) => Err(refused.clone()),
            State::Draining => Err(Refused::new(
                ResponseCode::ServiceNotAvailable,
                "the broker is going down",
            )),
            _ => self.dispatch(now, command, to, out),
        };
        if let Err(refused) = result {
            debug!(
                peer = %self.peer.remote,
                request_code = command.code(),
                response_code = refused.code as i32,
                remark = %refused.remark,
                "request refused"
            );
            refuse(out, to, &refused);
        }
    }

    fn dispatch(&mut self, now: Now, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let not_supported = |code, what| Err(Refused::not_supported(code, what));
        match command.code() {
            code::SEND_MESSAGE | code::SEND_MESSAGE_V2 | code::SEND_BATCH_MESSAGE => self.send(now, command, to, out),
            code::PULL_MESSAGE | code::LITE_PULL_MESSAGE => self.pull(now, command, to, out),
            code::QUERY_CONSUMER_OFFSET => self.query_offset(command, to, out),
            code::UPDATE_CONSUMER_OFFSET => self.update_offset(command, to, out),
            code::SEARCH_OFFSET_BY_TIMESTAMP => self.search_offset(command, to, out),
            code::GET_MAX_OFFSET => self.bounds(command, Pending::MaxOffset(to), out),
            code::GET_MIN_OFFSET => self.bounds(command, Pending::MinOffset(to), out),
            code::INVOKE_BROKER_TO_RESET_OFFSET => self.reset_offset(command, to, out),
            code::VIEW_MESSAGE_BY_ID => self.view_message(command, to, out),
            code::HEART_BEAT => self.heart_beat(command, to, out),
            code::UNREGISTER_CLIENT => self.unregister_client(command, to, out),
            code::GET_CONSUMER_LIST_BY_GROUP => self.consumer_list(command, to, out),
            code::LOCK_BATCH_MQ => self.lock(command, to, out),
            code::UNLOCK_BATCH_MQ => self.unlock(command, to, out),
            code::CHECK_CLIENT_CONFIG => check_client_config(command, to, out),
            code::GET_KV_CONFIG => get_kv_config(command),
            code::GET_ROUTEINFO_BY_TOPIC => self.route_info(command, to, out),
            code::GET_BROKER_CLUSTER_INFO => self.cluster_info(to, out),
            code::CONSUMER_SEND_MSG_BACK => self.give_back(command, to, out),
            code::END_TRANSACTION => self.end_transaction(command, to, out),
            code::UPDATE_AND_CREATE_SUBSCRIPTION_GROUP => self.update_group(command, to, out),
            code::RECALL_MESSAGE => self.recall(now, command, to, out),
            code::SEND_REPLY_MESSAGE | code::SEND_REPLY_MESSAGE_V2 => {
                not_supported(ResponseCode::MessageIllegal, "answering requests of producers")
            }
            other => Err(Refused::new(
                ResponseCode::RequestCodeNotSupported,
                format!(" request type {other} not supported"),
            )),
        }
    }

    /// Tells the client that a group it is a member of has changed, so that it shares out the message
    /// queues anew. In a broadcasting group there is nothing to share.
    fn notify_consumer_ids_changed(&mut self, group: &[u8], out: &mut Outbox) {
        let shares = self.members.get(group).is_some_and(|member| !member.broadcasting);
        if !shares {
            return;
        }
        self.last_opaque = self.last_opaque.wrapping_add(1) & i32::MAX;
        let mut writer = Writer::oneway(out.bytes(), self.last_opaque, code::NOTIFY_CONSUMER_IDS_CHANGED);
        writer.text("consumerGroup", group);
        writer.finish(0);
    }

    fn close(&mut self, out: &mut Outbox) {
        self.state = State::Closed;
        self.pending.clear();
        self.holds.clear();
        self.gathers.clear();
        out.close();
    }

    fn close_if_drained(&mut self, out: &mut Outbox) {
        if self.state == State::Draining && self.pending.is_empty() && self.sends.is_empty() {
            self.close(out);
        }
    }
}

impl rocketbridge_session::Session for Session {
    fn handle_bytes(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        if self.state == State::Closed {
            input.clear();
            return;
        }
        self.active_at = now.mono;
        if self.state == State::New {
            self.state = State::Open;
            // Nothing is pending yet, so it cannot be refused.
            let _ = self.ask(Request::Login(Credentials::Anonymous), Pending::Login, out);
        }
        let mut command = std::mem::take(&mut self.command);
        loop {
            match codec::decode(input, self.config.limits(), &mut command) {
                Ok(true) => self.handle_command(now, &command, out),
                Ok(false) => break,
                Err(error) => {
                    debug!(peer = %self.peer.remote, %error, "connection closed");
                    self.close(out);
                    input.clear();
                    break;
                }
            }
        }
        command.clear();
        self.command = command;
    }

    fn handle_events(&mut self, now: Now, events: &mut Vec<Event>, out: &mut Outbox) {
        let queued = out.queued_bytes();
        for event in events.drain(..) {
            match event {
                _ if self.state == State::Closed => {}
                Event::Outcome(outcome) => self.handle_outcome(outcome, out),
                Event::Reply { id, result } => self.handle_reply(now, id, result, out),
                Event::Notice(Notice::CheckTransaction(check)) => self.check_transaction(&check, out),
                Event::Notice(Notice::GroupChanged(group)) => self.notify_consumer_ids_changed(&group, out),
                // Native clients neither publish mandatory messages nor consume from queues, and the
                // driver tries again by itself what core did not take.
                Event::Notice(_) | Event::Returned { .. } | Event::Delivery(_) | Event::Writable => {}
            }
        }
        if out.queued_bytes() > queued {
            self.active_at = now.mono;
        }
        self.close_if_drained(out);
    }

    fn handle_timeout(&mut self, now: Now, out: &mut Outbox) {
        if self.state == State::Closed {
            return;
        }
        if now.mono >= self.active_at + self.config.idle_timeout() {
            debug!(peer = %self.peer.remote, "connection closed: it was silent for too long");
            self.close(out);
            return;
        }
        while let Some((at, id)) = self.holds.first().copied()
            && at <= now.mono
        {
            self.holds.pop_first();
            out.cancel(id);
        }
        self.withdraw_stuck_sends(now, out);
        self.close_if_drained(out);
    }

    fn handle_eof(&mut self, _now: Now, out: &mut Outbox) {
        self.close(out);
    }

    /// Takes nothing new, ends the wait of held pulls and closes when everything taken is answered:
    /// a message that was stored without its producer knowing would be sent again.
    fn handle_shutdown(&mut self, _now: Now, out: &mut Outbox) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Draining;
        for (_, id) in std::mem::take(&mut self.holds) {
            out.cancel(id);
        }
        self.close_if_drained(out);
    }

    fn next_timeout(&self) -> Option<Millis> {
        if self.state == State::Closed {
            return None;
        }
        let idle = self.active_at + self.config.idle_timeout();
        let hold = self.holds.first().map(|(at, _)| *at);
        [Some(idle), hold, self.sends.check_at()].into_iter().flatten().min()
    }

    /// Pulls and heartbeats share the connection with sends: it is never stopped for those.
    fn reads_while_blocked(&self) -> bool {
        true
    }
}

fn check_client_config(command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
    crate::mapping::group::check_client_config(command.body())?;
    answer(out, to, ResponseCode::Success, "", |_| {}, b"");
    Ok(())
}

/// There are no keys and values here.
fn get_kv_config(command: &Command) -> Result<(), Refused> {
    let text = |name| crate::mapping::required(command, name).map(|value| value.lossy());
    let (namespace, key) = (text("namespace")?, text("key")?);
    Err(Refused::new(
        ResponseCode::QueryNotFound,
        format!("No config item, Namespace: {namespace} Key: {key}"),
    ))
}

/// Writes an answer, unless none is wanted.
fn answer(
    out: &mut Outbox,
    to: ReplyTo,
    code: ResponseCode,
    remark: &str,
    fields: impl FnOnce(&mut Writer<'_>),
    body: &[u8],
) {
    if to.oneway {
        return;
    }
    let mut writer = Writer::response(out.bytes(), to.serialize_type, to.opaque, code as i32, remark);
    fields(&mut writer);
    writer.finish(body.len());
    out.bytes().extend_from_slice(body);
}

/// Writes an answer that says no.
fn refuse(out: &mut Outbox, to: ReplyTo, refused: &Refused) {
    answer(out, to, refused.code, &refused.remark, |_| {}, b"");
}

/// Too much at the moment.
fn busy(why: &str) -> Refused {
    Refused::new(ResponseCode::SystemBusy, format!("[REJECTREQUEST]system busy, {why}"))
}
