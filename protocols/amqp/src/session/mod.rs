//! One AMQP connection: frames in, frames and orders to core out.
//!
//! [`Session`] cuts the input into frames, keeps the connection's timers, and hands frames to their channel:
//! channel 0 is in [`connection`]. What the others do is in [`exchanges`], [`bindings`], [`queues`], [`basic`] and
//! [`content`], as methods of [`Context`]; what they remember is in [`channel`], and what they share, with
//! the requests that core has not answered, in [`shared`]. How channels and connections fail is in [`closing`].
//!
//! Answers on one channel are sent in the order of what was asked: core answers requests in order, and an
//! answer that needs no request waits behind those of its channel.

mod basic;
mod bindings;
mod channel;
mod closing;
mod confirms;
mod connection;
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

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{Event, Peer};
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Outbox, Session as Protocol};
use tracing::{debug, info};

use channel::{Channel, Content, Life};
use connection::{CONNECTION, Phase};
use shared::{Context, Shared};

use crate::codec::method::MethodError;
use crate::codec::{
    FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_HEADER_SIZE, FRAME_HEARTBEAT, FRAME_METHOD, FRAME_OVERHEAD, FieldError,
    FrameHeader, LongStr, Method, MethodId, put_heartbeat,
};
use crate::config::Config;
use crate::reply_code::{ConnectionError, Failure, Snippet};

/// Requests that core has not answered beyond which nothing more is read.
const PENDING_MAX: usize = 4096;

/// Octets in backlogs beyond which nothing more is read.
const BACKLOG_MAX: usize = 256 * 1024;

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
