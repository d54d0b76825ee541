//! One AMQP connection: frames in, frames and orders to core out.
//!
//! [`Session`] cuts the input into frames, keeps the connection's state and timers, and hands frames to
//! their channel. What channels do is in [`exchanges`], [`bindings`], [`queues`], [`basic`] and
//! [`content`], as methods of [`Context`]; what they remember is in [`channel`], and what they share, with
//! the requests that core has not answered, in [`shared`].
//!
//! Answers on one channel are sent in the order of what was asked: core answers requests in order, and an
//! answer that needs no request waits behind those of its channel.

mod basic;
mod bindings;
mod channel;
mod confirms;
mod content;
mod events;
mod exchanges;
mod handshake;
mod methods;
mod names;
mod publishes;
mod queues;
mod shared;
mod tx;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rocketbridge_core::boundary::{Event, Peer};
use rocketbridge_core::request::Request;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Outbox, Session as Protocol};
use tracing::{debug, info};

use channel::{Channel, Content, Life};
use handshake::{ClientCapabilities, Limits};
use publishes::ChannelKey;
use shared::{Context, Pending, Shared, What};

use crate::codec::method::MethodError;
use crate::codec::{
    FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_HEADER_SIZE, FRAME_HEARTBEAT, FRAME_METHOD, FRAME_OVERHEAD, FieldError,
    FrameHeader, LongStr, Method, MethodId, PROTOCOL_HEADER, PROTOCOL_HEADER_0_9, ShortStr, put_heartbeat,
};
use crate::config::Config;
use crate::reply_code::{ConnectionError, Failure, Snippet, VIRTUAL_HOST};

/// Requests that core has not answered beyond which nothing more is read.
const PENDING_MAX: usize = 4096;

/// Octets in backlogs beyond which nothing more is read.
const BACKLOG_MAX: usize = 256 * 1024;

/// How long a peer that failed to log in, or whose frames cannot be told apart any more, waits for the
/// end of the connection.
const SILENT_CLOSE: Millis = Millis::from_secs(3);

/// The identity of channel 0 in what waits for core.
const CONNECTION: ChannelKey = ChannelKey { number: 0, epoch: 0 };

/// Where a connection stands.
///
/// ```text
///  Header -> Starting -> LoggingIn -> Tuning -> Opening -> Running
///  any --- close from the client --> Ended
///  any --- error or shutdown --> Closing --- close-ok, or time is up --> Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The protocol header is next.
    Header,
    /// `start` was sent.
    Starting,
    /// Core is asked about the credentials.
    LoggingIn,
    /// `tune` was sent.
    Tuning,
    /// `tune-ok` came, `open` is next.
    Opening,
    /// Channels may be used.
    Running,
    /// We sent `close`; only the answer counts. Without `listens` not even that can be read.
    Closing { listens: bool },
    /// Nothing counts any more.
    Ended,
}

impl Phase {
    /// RabbitMQ's name of it.
    fn name(self) -> &'static str {
        match self {
            Self::Header => "handshake",
            Self::Starting => "starting",
            Self::LoggingIn => "securing",
            Self::Tuning => "tuning",
            Self::Opening => "opening",
            Self::Running => "running",
            Self::Closing { .. } | Self::Ended => "closed",
        }
    }
}

/// Liveness of both sides after `tune-ok`.
#[derive(Clone, Copy, Debug)]
struct Heartbeat {
    interval: Millis,
    /// When the next heartbeat is sent.
    send_at: Millis,
}

/// One frame, in the input that it is a view of.
struct Frame<'a> {
    kind: u8,
    channel: u16,
    payload: &'a [u8],
    chunk: &'a Bytes,
}

/// An error with the method it is blamed on.
struct Blamed {
    failure: Failure,
    method: MethodId,
}

impl Blamed {
    fn new(method: MethodId) -> impl FnOnce(Failure) -> Self {
        move |failure| Self { failure, method }
    }
}

impl From<ConnectionError> for Blamed {
    fn from(error: ConnectionError) -> Self {
        Self {
            failure: error.into(),
            method: MethodId::NONE,
        }
    }
}

/// One AMQP connection.
pub struct Session {
    config: Arc<Config>,
    peer: Peer,
    phase: Phase,
    /// When the handshake or the wait for `close-ok` has taken too long.
    deadline: Option<Millis>,
    heartbeat: Option<Heartbeat>,
    /// When the peer was last heard.
    heard_at: Millis,
    channel_max: u16,
    channels: BTreeMap<u16, Channel>,
    shared: Shared,
    /// The channel whose half-received content refers to the input.
    receiving: Option<u16>,
}

impl Session {
    /// A connection that was just accepted. `seed` must differ from connection to connection and from
    /// start to start: server-made names come from it.
    pub fn new(config: Arc<Config>, peer: Peer, seed: u64, now: Now) -> Self {
        let deadline = now.mono + Millis::from_secs(config.handshake_timeout.into());
        Self {
            channel_max: config.channel_max,
            config,
            peer,
            phase: Phase::Header,
            deadline: Some(deadline),
            heartbeat: None,
            heard_at: now.mono,
            channels: BTreeMap::new(),
            shared: Shared::new(seed),
            receiving: None,
        }
    }

    fn frame_max(&self) -> u32 {
        match self.shared.frame_max {
            0 => self.config.initial_frame_max,
            negotiated => negotiated,
        }
    }

    // --- input ---------------------------------------------------------------------------------

    /// The protocol header; `false` when more is needed.
    fn protocol_header(&mut self, input: &mut BytesMut, out: &mut Outbox) -> bool {
        let known = |header: [u8; 8]| input.iter().zip(header).all(|(have, want)| *have == want);
        if !known(PROTOCOL_HEADER) && !known(PROTOCOL_HEADER_0_9) {
            debug!(peer = %self.peer.remote, "no AMQP 0-9-1 protocol header");
            out.bytes().put_slice(&PROTOCOL_HEADER);
            self.end(out);
            return false;
        }
        if input.len() < PROTOCOL_HEADER.len() {
            return false;
        }
        input.advance(PROTOCOL_HEADER.len());
        handshake::start(|start| start.encode(0, out.bytes()));
        self.phase = Phase::Starting;
        true
    }

    /// Handles all whole frames at the front of `input`.
    fn frames(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        loop {
            let frame_max = self.frame_max();
            let mut whole = 0;
            let mut next = FrameHeader::peek(input);
            while let Some(header) = next {
                if !header.is_allowed(frame_max) || input.len() - whole < header.frame_size() {
                    break;
                }
                whole += header.frame_size();
                next = FrameHeader::peek(&input[whole..]);
            }
            if whole == 0 {
                if let Some(header) = next.filter(|header| !header.is_allowed(frame_max)) {
                    let error = ConnectionError::FrameTooLarge {
                        kind: header.kind,
                        size: header.size,
                        limit: frame_max.saturating_sub(FRAME_OVERHEAD as u32),
                    };
                    self.fail_connection(now, MethodId::NONE, &error.into(), out);
                    input.clear();
                }
                return;
            }
            let chunk = input.split_to(whole).freeze();
            self.chunk(now, &chunk, out);
            if matches!(self.phase, Phase::Closing { listens: false } | Phase::Ended) {
                input.clear();
                return;
            }
        }
    }

    fn chunk(&mut self, now: Now, chunk: &Bytes, out: &mut Outbox) {
        let mut rest = &chunk[..];
        while let Some(header) = FrameHeader::peek(rest) {
            let (whole, after) = rest.split_at(header.frame_size());
            rest = after;
            let payload = &whole[FRAME_HEADER_SIZE..whole.len() - 1];
            let marker = whole[whole.len() - 1];
            if marker != FRAME_END {
                let error = ConnectionError::InvalidFrameEnd {
                    kind: header.kind,
                    snippet: Snippet::of(payload),
                    marker,
                };
                return self.fail_connection(now, MethodId::NONE, &error.into(), out);
            }
            let frame = Frame {
                kind: header.kind,
                channel: header.channel,
                payload,
                chunk,
            };
            if let Err(Blamed { failure, method }) = self.frame(now, &frame, out) {
                self.fail(now, header.channel, method, failure, out);
            }
            if matches!(self.phase, Phase::Closing { listens: false } | Phase::Ended) {
                return;
            }
        }
        if let Some(number) = self.receiving.take()
            && let Some(channel) = self.channels.get_mut(&number)
        {
            channel.content.detach();
        }
    }

    fn frame(&mut self, now: Now, frame: &Frame<'_>, out: &mut Outbox) -> Result<(), Blamed> {
        match self.phase {
            Phase::Running if frame.channel != 0 => return self.channel_frame(now, frame, out),
            Phase::Closing { .. } | Phase::Ended => {
                if frame.channel == 0 && frame.kind == FRAME_METHOD {
                    self.last_words(frame, out);
                }
                return Ok(());
            }
            _ => {}
        }
        let unexpected = || ConnectionError::UnexpectedFrame {
            kind: frame.kind,
            snippet: Snippet::of(frame.payload),
        };
        match (frame.kind, frame.channel) {
            (FRAME_HEARTBEAT, 0) if frame.payload.is_empty() => Ok(()),
            (FRAME_METHOD, 0) => {
                let method = decode(frame.payload)?;
                let id = method.id();
                self.connection_method(now, &method, out).map_err(Blamed::new(id))
            }
            (FRAME_METHOD | FRAME_HEADER | FRAME_BODY | FRAME_HEARTBEAT, _) => Err(unexpected().into()),
            _ => Err(unknown_frame(frame).into()),
        }
    }

    /// A method on channel 0 while the connection ends.
    fn last_words(&mut self, frame: &Frame<'_>, out: &mut Outbox) {
        match Method::decode(frame.payload) {
            Ok(Method::ConnectionClose { .. }) => Method::ConnectionCloseOk {}.encode(0, out.bytes()),
            Ok(Method::ConnectionCloseOk {}) if matches!(self.phase, Phase::Closing { .. }) => self.end(out),
            _ => {}
        }
    }

    // --- channel 0 -----------------------------------------------------------------------------

    fn connection_method(&mut self, now: Now, method: &Method<'_>, out: &mut Outbox) -> Result<(), Failure> {
        match (self.phase, *method) {
            (
                Phase::Starting,
                Method::ConnectionStartOk {
                    client_properties,
                    mechanism,
                    response,
                    ..
                },
            ) => {
                let client = ClientCapabilities::of(client_properties);
                self.shared.cancel_notify = client.consumer_cancel_notify;
                self.shared.authentication_failure_close = client.authentication_failure_close;
                self.shared.blocked_notify = client.connection_blocked;
                let (mechanism, credentials) = handshake::credentials(mechanism.0, response.0)?;
                if let rocketbridge_core::request::Credentials::Password { user, .. } = &credentials {
                    self.shared.user = user.clone();
                }
                self.phase = Phase::LoggingIn;
                let what = What::Login { mechanism };
                self.shared
                    .request(CONNECTION, method.id(), what, Request::Login(credentials), out);
                Ok(())
            }
            (
                Phase::Tuning,
                Method::ConnectionTuneOk {
                    channel_max,
                    frame_max,
                    heartbeat,
                },
            ) => {
                let chosen = Limits {
                    channel_max,
                    frame_max,
                    heartbeat,
                };
                let limits = handshake::negotiate(&self.config, chosen)?;
                self.channel_max = limits.channel_max;
                self.shared.frame_max = limits.frame_max;
                let interval = Millis::from_secs(limits.heartbeat.into());
                self.heartbeat = (limits.heartbeat > 0).then(|| Heartbeat {
                    interval,
                    send_at: now.mono + Millis(interval.0 / 2),
                });
                self.phase = Phase::Opening;
                Ok(())
            }
            (Phase::Opening, Method::ConnectionOpen { virtual_host, .. }) => {
                if !virtual_host.0.is_empty() && virtual_host.0 != VIRTUAL_HOST.as_bytes() {
                    let name = String::from_utf8_lossy(virtual_host.0).into_owned();
                    return Err(ConnectionError::NoVirtualHost(name).into());
                }
                let known_hosts = ShortStr(b"");
                Method::ConnectionOpenOk { known_hosts }.encode(0, out.bytes());
                self.phase = Phase::Running;
                self.deadline = None;
                debug!(peer = %self.peer.remote, user = %String::from_utf8_lossy(&self.shared.user), "connection open");
                Ok(())
            }
            // The link ends before the answer goes out, so whoever connects next finds exclusive queues
            // gone and messages returned.
            (_, Method::ConnectionClose { .. }) => {
                Method::ConnectionCloseOk {}.encode(0, out.bytes());
                self.end(out);
                Ok(())
            }
            // Passwords do not expire while a connection lives, so there is nothing to renew: RabbitMQ's own
            // users are answered alike.
            (Phase::Running, Method::ConnectionUpdateSecret { .. }) => {
                Method::ConnectionUpdateSecretOk {}.encode(0, out.bytes());
                Ok(())
            }
            _ => Err(ConnectionError::UnexpectedMethod(self.phase.name()).into()),
        }
    }

    /// Core said whether the login is good.
    fn logged_in(&mut self, now: Now, mechanism: &'static str, is_good: bool, out: &mut Outbox) {
        if self.phase != Phase::LoggingIn {
            return;
        }
        if is_good {
            self.phase = Phase::Tuning;
            let tune = Method::ConnectionTune {
                channel_max: self.config.channel_max,
                frame_max: self.config.frame_max,
                heartbeat: self.config.heartbeat,
            };
            return tune.encode(0, out.bytes());
        }
        info!(peer = %self.peer.remote, user = %String::from_utf8_lossy(&self.shared.user), "login refused");
        if self.shared.authentication_failure_close {
            let error = ConnectionError::LoginRefused(mechanism);
            self.fail_connection(now, MethodId::NONE, &error.into(), out);
        } else {
            self.phase = Phase::Closing { listens: false };
            self.deadline = Some(now.mono + SILENT_CLOSE);
        }
    }

    // --- channels ------------------------------------------------------------------------------

    fn channel_frame(&mut self, now: Now, frame: &Frame<'_>, out: &mut Outbox) -> Result<(), Blamed> {
        let Some(channel) = self.channels.get_mut(&frame.channel) else {
            return self.open_channel(frame, out);
        };
        if let Some(backlog) = &mut channel.backlog {
            self.shared.backlog_bytes += frame.payload.len();
            backlog
                .frames
                .push_back((frame.kind, Bytes::copy_from_slice(frame.payload)));
            return Ok(());
        }
        if channel.life != Life::Open {
            return self.ending_channel_frame(frame, out);
        }
        let mut context = Context {
            channel,
            shared: &mut self.shared,
            config: &self.config,
            out,
            method: channel::PUBLISH,
        };
        match frame.kind {
            FRAME_METHOD => {
                let method = decode(frame.payload)?;
                let id = method.id();
                if !matches!(context.channel.content, Content::Idle) {
                    let failure = context.channel.content.unexpected().into();
                    return Err(Blamed {
                        failure,
                        method: channel::PUBLISH,
                    });
                }
                context.method = id;
                context.handle(&method, frame.chunk).map_err(Blamed::new(id))?;
                if matches!(context.channel.content, Content::Header(_)) {
                    self.receive(frame.channel);
                }
                self.answers(now, out);
                Ok(())
            }
            FRAME_HEADER | FRAME_BODY if !context.channel.content.expects(frame.kind) => {
                let method = match context.channel.content {
                    Content::Idle => MethodId::NONE,
                    _ => channel::PUBLISH,
                };
                let failure = context.channel.content.unexpected().into();
                Err(Blamed { failure, method })
            }
            FRAME_HEADER => context
                .content_header(frame.payload)
                .map_err(Blamed::new(channel::PUBLISH)),
            FRAME_BODY => context
                .content_body(frame.payload, || frame.chunk.slice_ref(frame.payload))
                .map_err(Blamed::new(channel::PUBLISH)),
            FRAME_HEARTBEAT => Err(ConnectionError::UnexpectedFrame {
                kind: frame.kind,
                snippet: Snippet::of(frame.payload),
            }
            .into()),
            _ => Err(unknown_frame(frame).into()),
        }
    }

    /// Content begins on a channel; what another channel has half received no longer stays in the input.
    fn receive(&mut self, number: u16) {
        if let Some(other) = self.receiving.replace(number)
            && other != number
            && let Some(channel) = self.channels.get_mut(&other)
        {
            channel.content.detach();
        }
    }

    fn open_channel(&mut self, frame: &Frame<'_>, out: &mut Outbox) -> Result<(), Blamed> {
        match frame.kind {
            FRAME_METHOD => {}
            FRAME_HEADER | FRAME_BODY => return Err(ConnectionError::ExpectedMethod.into()),
            FRAME_HEARTBEAT => {
                return Err(ConnectionError::UnexpectedFrame {
                    kind: frame.kind,
                    snippet: Snippet::of(frame.payload),
                }
                .into());
            }
            _ => return Err(unknown_frame(frame).into()),
        }
        let method = decode(frame.payload)?;
        let id = method.id();
        if !matches!(method, Method::ChannelOpen { .. }) {
            return Err(Blamed::new(id)(ConnectionError::ExpectedChannelOpen.into()));
        }
        let open = self.channels.len();
        if open >= usize::from(self.channel_max) {
            let channel_max = self.channel_max;
            return Err(ConnectionError::ChannelMax { open, channel_max }.into());
        }
        let key = self.shared.open_channel(frame.channel);
        self.channels.insert(frame.channel, Channel::new(key));
        let channel_id = LongStr(b"");
        Method::ChannelOpenOk { channel_id }.encode(frame.channel, out.bytes());
        Ok(())
    }

    /// A frame on a channel that has ended, or is about to: only the end of the end counts.
    fn ending_channel_frame(&mut self, frame: &Frame<'_>, out: &mut Outbox) -> Result<(), Blamed> {
        let Some(channel) = self.channels.get_mut(&frame.channel) else {
            return Ok(());
        };
        if frame.kind != FRAME_METHOD {
            return Ok(());
        }
        let peer_closed = match &mut channel.life {
            Life::Closing { peer_closed } => peer_closed,
            Life::Failing { peer_closed } => {
                *peer_closed |= matches!(Method::decode(frame.payload), Ok(Method::ChannelClose { .. }));
                return Ok(());
            }
            Life::Open | Life::Closed => return Ok(()),
        };
        match Method::decode(frame.payload) {
            Ok(Method::ChannelClose { .. }) => {
                *peer_closed = true;
                Method::ChannelCloseOk {}.encode(frame.channel, out.bytes());
            }
            Ok(Method::ChannelCloseOk {}) => {
                self.channels.remove(&frame.channel);
            }
            Ok(Method::ChannelOpen { .. }) if *peer_closed => {
                self.channels.remove(&frame.channel);
                return self.open_channel(frame, out);
            }
            _ => {}
        }
        Ok(())
    }

    // --- ends ----------------------------------------------------------------------------------

    /// An error on a channel; its answer waits for those of earlier requests.
    fn fail(&mut self, now: Now, number: u16, method: MethodId, failure: Failure, out: &mut Outbox) {
        let channel = self.channels.get_mut(&number);
        match channel.filter(|channel| channel.waiting > 0 && channel.life == Life::Open) {
            Some(channel) if self.phase == Phase::Running && !loses_sync(&failure) => {
                channel.life = Life::Failing { peer_closed: false };
                channel.content = Content::Idle;
                channel.waiting += 1;
                self.shared.pending.push_back(Pending {
                    id: None,
                    channel: channel.key,
                    method,
                    what: What::Fail(failure),
                });
            }
            _ => self.fail_now(now, number, method, &failure, out),
        }
    }

    fn fail_now(&mut self, now: Now, number: u16, method: MethodId, failure: &Failure, out: &mut Outbox) {
        match failure {
            Failure::Channel(_) => self.fail_channel(number, method, failure, out),
            Failure::Connection(_) => self.fail_connection(now, method, failure, out),
        }
    }

    fn fail_channel(&mut self, number: u16, method: MethodId, failure: &Failure, out: &mut Outbox) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let peer_closed = match channel.life {
            Life::Open => false,
            Life::Failing { peer_closed } => peer_closed,
            // Its client is done with it.
            Life::Closing { .. } | Life::Closed => return,
        };
        debug!(
            peer = %self.peer.remote, channel = number, reply_code = failure.reply_code() as u16, error = %failure,
            "channel closed"
        );
        let mut context = Context {
            channel,
            shared: &mut self.shared,
            config: &self.config,
            out,
            method,
        };
        context.confirm();
        context.release();
        let text = failure.reply_text();
        context.send(&Method::ChannelClose {
            reply_code: failure.reply_code() as u16,
            reply_text: ShortStr(text.as_bytes()),
            class_id: method.class,
            method_id: method.method,
        });
        if peer_closed {
            context.send(&Method::ChannelCloseOk {});
        }
        channel.life = Life::Closing { peer_closed };
    }

    fn fail_connection(&mut self, now: Now, method: MethodId, failure: &Failure, out: &mut Outbox) {
        if matches!(self.phase, Phase::Closing { .. } | Phase::Ended) {
            return;
        }
        info!(
            peer = %self.peer.remote, reply_code = failure.reply_code() as u16, error = %failure, "connection closed"
        );
        self.confirm_all(out);
        let text = failure.reply_text();
        let close = Method::ConnectionClose {
            reply_code: failure.reply_code() as u16,
            reply_text: ShortStr(text.as_bytes()),
            class_id: method.class,
            method_id: method.method,
        };
        close.encode(0, out.bytes());
        let listens = !loses_sync(failure);
        self.phase = Phase::Closing { listens };
        let patience = if listens {
            Millis::from_secs(self.config.close_timeout.into())
        } else {
            SILENT_CLOSE
        };
        self.deadline = Some(now.mono + patience);
        self.heartbeat = None;
        self.channels.clear();
    }

    fn end(&mut self, out: &mut Outbox) {
        self.phase = Phase::Ended;
        self.deadline = None;
        self.heartbeat = None;
        self.channels.clear();
        out.close();
    }

    fn is_deaf(&self) -> bool {
        matches!(self.phase, Phase::Closing { listens: false } | Phase::Ended)
    }
}

impl Protocol for Session {
    fn handle_bytes(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        if !input.is_empty() {
            self.heard_at = now.mono;
        }
        if self.phase == Phase::Header && !self.protocol_header(input, out) {
            if self.phase == Phase::Ended {
                input.clear();
            }
            return;
        }
        if self.is_deaf() {
            return input.clear();
        }
        self.frames(now, input, out);
    }

    fn handle_events(&mut self, now: Now, events: &mut Vec<Event>, out: &mut Outbox) {
        for event in events.drain(..) {
            if !matches!(self.phase, Phase::Closing { .. } | Phase::Ended) {
                self.event(now, event, out);
            }
        }
        self.confirm_all(out);
        self.shared.rest();
    }

    fn handle_timeout(&mut self, now: Now, out: &mut Outbox) {
        if self.deadline.is_some_and(|deadline| deadline <= now.mono) {
            debug!(peer = %self.peer.remote, phase = self.phase.name(), "time is up");
            return self.end(out);
        }
        let is_held_back = out.has_orders() || out.queued_bytes() > Outbox::HIGH_MARK || !self.wants_read();
        if is_held_back {
            // The peer may be talking, but nobody listens.
            self.heard_at = now.mono;
        }
        let Some(heartbeat) = &mut self.heartbeat else {
            return;
        };
        if now.mono.since(self.heard_at) >= heartbeat.interval + heartbeat.interval {
            info!(peer = %self.peer.remote, "missed heartbeats from client");
            return self.end(out);
        }
        if heartbeat.send_at <= now.mono {
            heartbeat.send_at = now.mono + Millis((heartbeat.interval.0 / 2).max(1));
            if out.queued_bytes() < Outbox::HIGH_MARK {
                put_heartbeat(out.bytes());
            }
        }
    }

    fn handle_eof(&mut self, _now: Now, out: &mut Outbox) {
        self.end(out);
    }

    fn handle_shutdown(&mut self, now: Now, out: &mut Outbox) {
        match self.phase {
            Phase::Running => {
                self.fail_connection(now, MethodId::NONE, &ConnectionError::Forced("shutdown").into(), out);
            }
            Phase::Closing { .. } | Phase::Ended => {}
            _ => self.end(out),
        }
    }

    fn next_timeout(&self) -> Option<Millis> {
        let heartbeat = self.heartbeat.map(|heartbeat| {
            heartbeat
                .send_at
                .min(self.heard_at + heartbeat.interval + heartbeat.interval)
        });
        [self.deadline, heartbeat].into_iter().flatten().min()
    }

    fn wants_read(&self) -> bool {
        self.shared.pending.len() < PENDING_MAX && self.shared.backlog_bytes < BACKLOG_MAX
    }
}

fn loses_sync(failure: &Failure) -> bool {
    matches!(failure, Failure::Connection(error) if error.loses_sync())
}

fn unknown_frame(frame: &Frame<'_>) -> ConnectionError {
    ConnectionError::UnknownFrame {
        kind: frame.kind,
        snippet: Snippet::of(frame.payload),
    }
}

fn decode(payload: &[u8]) -> Result<Method<'_>, Blamed> {
    Method::decode(payload).map_err(|error| {
        let (error, method) = match error {
            MethodError::NoId => (
                ConnectionError::UnknownFrame {
                    kind: FRAME_METHOD,
                    snippet: Snippet::of(payload),
                },
                MethodId::NONE,
            ),
            MethodError::Unknown(id) => (ConnectionError::UnimplementedMethod, id),
            MethodError::Fields {
                id,
                error: FieldError::Table(error),
            } => (ConnectionError::Syntax(error.to_string()), id),
            MethodError::Fields { id, .. } => (ConnectionError::CannotDecode(Snippet::of(&payload[4..])), id),
        };
        Blamed {
            failure: error.into(),
            method,
        }
    })
}
