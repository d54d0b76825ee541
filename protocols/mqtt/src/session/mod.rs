//! One MQTT connection: packets in, packets and core requests out.
//!
//! ```text
//!            CONNECT               login, attach, consume answered
//!   Opening ---------> Connecting ---------------------------------> Connected
//!      |                   |  (CONNACK with a refusal)                   | (DISCONNECT, error, takeover)
//!      +-------------------+-----------------> Closed <-----------------+
//! ```
//!
//! Logging in and taking the session is [`connect`]'s work, what a connected client sends and gets is in
//! [`client`], [`publish`], [`subscribe`] and [`deliver`].

mod client;
mod connect;
mod deliver;
mod note;
mod publish;
mod shared;
mod subscribe;
mod sys;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use rocketbridge_core::boundary::{Event, Notice};
use rocketbridge_core::request::{Reply, Request};
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::{Outbox, Session};
use tracing::debug;

use crate::codec::{self, DecodeError, Decoder, Packet, PacketType, Side, Version, put_fixed_header};
use crate::config::Config;
use crate::reason_code::ReasonCode;
use crate::stats::Stats;
use client::Client;
use connect::Connecting;
use subscribe::Asked;

/// Most bytes that wait for the CONNACK: some reads of the driver, which stops reading meanwhile.
const PENDING_MAX: usize = 256 * 1024;

/// By how much an unfinished packet has to grow within the keep alive, bytes.
const UNFINISHED_STEP: usize = 4 * 1024;

/// Deliveries that wait for the client's acknowledgements; with more no events are taken.
const WAITING_MAX: usize = 256;

/// Why a connected client's connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// Nothing more is said: the client said goodbye, or its version has no words for it.
    Silently,
    /// An MQTT 5.0 client gets DISCONNECT with this.
    With(ReasonCode),
}

impl From<ReasonCode> for Close {
    fn from(reason: ReasonCode) -> Self {
        Self::With(reason)
    }
}

enum State {
    /// Nothing but CONNECT is accepted.
    Opening,
    /// CONNECT came; core has not answered all that follows from it.
    Connecting(Box<Connecting>),
    /// CONNACK was sent.
    Connected(Box<Client>),
    /// The connection is as good as closed; whatever comes is dropped.
    Closed,
}

/// One MQTT connection.
pub struct MqttSession {
    config: Arc<Config>,
    stats: Arc<Stats>,
    seed: u64,
    decoder: Decoder,
    state: State,
    /// What came behind CONNECT before the CONNACK.
    pending: BytesMut,
    /// When the peer last sent a packet or much of a large one, or last could not be heard.
    heard_at: Millis,
    /// How much of an unfinished packet was there then, bytes.
    heard_of: usize,
    /// Unsent bytes at the last keep alive check.
    unsent_before: usize,
    /// When a 5.0 client last published, until it is known that core took it.
    published_at: Option<Millis>,
    /// When the client gets the values of the `$SYS` topics that it watches again.
    sys_due: Option<Millis>,
}

impl MqttSession {
    /// For a connection just accepted. `seed` is different for every connection and hard to guess: the
    /// client identifier of a client that brings none is made of it.
    pub fn new(config: Arc<Config>, seed: u64, now: Now) -> Self {
        Self {
            stats: Arc::clone(&config.stats),
            decoder: Decoder::new(Side::Server, config.connect_size_max),
            config,
            seed,
            state: State::Opening,
            pending: BytesMut::new(),
            heard_at: now.mono,
            heard_of: 0,
            unsent_before: 0,
            published_at: None,
            sys_due: None,
        }
    }

    /// The client identifier, once it is connected.
    pub fn client_id(&self) -> Option<&[u8]> {
        match &self.state {
            State::Connected(client) => Some(client.id()),
            _ => None,
        }
    }

    fn take_packets(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        loop {
            match &mut self.state {
                State::Opening => match self.decoder.decode(input) {
                    Ok(Some(Packet::Connect(connect))) => self.handle_connect(*connect, out),
                    // The decoder lets nothing else through.
                    Ok(Some(_)) => self.close(out),
                    Ok(None) => return,
                    Err(DecodeError::TooLarge { size, .. }) => match codec::version_asked_for(input) {
                        Ok(Some(version)) => {
                            debug!(size, "CONNECT is too large");
                            self.refuse(version, u32::MAX, ReasonCode::PacketTooLarge, out);
                        }
                        // It tells within the next bytes.
                        Ok(None) => return,
                        Err(error) => self.refuse_opening(error, out),
                    },
                    Err(error) => self.refuse_opening(error, out),
                },
                // The rest of the input stays until there is room for it.
                State::Connected(client) if !client.wants_read(&self.config) => return,
                State::Connected(client) => match self.decoder.decode(input) {
                    Ok(Some(packet)) => {
                        (self.heard_at, self.heard_of) = (now.mono, 0);
                        if let Err(close) = client.handle_packet(packet, &self.config, out) {
                            self.close_with(close, out);
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        debug!(client_id = %client.id().escape_ascii(), %error, "packet refused");
                        let close = error.reason_code().map_or(Close::Silently, Close::With);
                        self.close_with(close, out);
                    }
                },
                State::Connecting(_) => return,
                State::Closed => {
                    input.clear();
                    return;
                }
            }
        }
    }

    /// Something other than CONNECT, or a CONNECT that cannot be answered: closed without a word,
    /// except that an unknown version gets the one CONNACK that every version understands.
    fn refuse_opening(&mut self, error: DecodeError, out: &mut Outbox) {
        debug!(%error, "connection refused");
        if let DecodeError::UnsupportedVersion(_) = error {
            let code = ReasonCode::UnsupportedProtocolVersion.connect_return_code();
            connect::put_connack(out, Version::V311, false, code, b"");
            self.stats.packets_out.fetch_add(1, Relaxed);
        }
        self.close(out);
    }

    fn close(&mut self, out: &mut Outbox) {
        if let State::Connected(client) = &mut self.state {
            self.stats.add(&mut client.counted);
            self.stats.disconnected(client.counted_subscriptions);
        }
        self.state = State::Closed;
        self.sys_due = None;
        self.pending = BytesMut::new();
        out.close();
    }

    fn close_with(&mut self, close: Close, out: &mut Outbox) {
        if let (State::Connected(client), Close::With(reason)) = (&self.state, close) {
            debug!(client_id = %client.id().escape_ascii(), ?reason, "client disconnected");
            if client.version() == Version::V5 {
                put_fixed_header(out.bytes(), PacketType::Disconnect.first_byte(), 1);
                out.bytes().put_u8(reason as u8);
                self.stats.packets_out.fetch_add(1, Relaxed);
            }
        }
        self.close(out);
    }

    /// Goes on with what came before the CONNACK.
    fn take_pending(&mut self, now: Now, out: &mut Outbox) {
        let mut pending = std::mem::take(&mut self.pending);
        self.take_packets(now, &mut pending, out);
        if !pending.is_empty() {
            self.pending = pending;
        }
    }

    fn handle_event(&mut self, now: Now, event: Event, out: &mut Outbox) {
        let result = match (&mut self.state, event) {
            (State::Connected(client), Event::Delivery(delivery)) => client.deliver(now, delivery, out),
            (State::Connected(client), Event::Outcome(outcome)) => client.handle_outcome(outcome, out),
            (State::Connected(client), Event::Reply { id, result }) => {
                if let Ok(Reply::Totals(totals)) = &result {
                    client.send_values(&self.stats, now.mono, totals, out);
                }
                client.handle_reply(id, result, out)
            }
            (State::Connecting(_), Event::Reply { id, result }) => {
                self.handle_connect_reply(id, result, out);
                Ok(())
            }
            (State::Connected(_), Event::Notice(Notice::HolderTaken)) => Err(ReasonCode::SessionTakenOver.into()),
            // A shared one ends with the client's own unsubscribing only.
            (State::Connected(_), Event::Notice(Notice::SubscriptionEnded(connect::SUBSCRIPTION))) => {
                Err(ReasonCode::AdministrativeAction.into())
            }
            (State::Connected(_), Event::Notice(Notice::SubscriptionEnded(_))) => Ok(()),
            (State::Connecting(_), Event::Notice(Notice::HolderTaken | Notice::SubscriptionEnded(_))) => {
                Err(Close::Silently)
            }
            // Nothing is published as mandatory, and the driver itself goes on when there is room again.
            (
                _,
                Event::Notice(
                    Notice::GroupChanged(_) | Notice::CheckTransaction(_) | Notice::Blocked(_) | Notice::Unblocked,
                )
                | Event::Returned { .. }
                | Event::Writable,
            ) => Ok(()),
            (State::Opening | State::Connecting(_) | State::Closed, _) => Ok(()),
        };
        if let Err(close) = result {
            self.close_with(close, out);
        }
    }

    /// When the peer was silent for too long.
    fn silence_deadline(&self) -> Option<Millis> {
        match &self.state {
            State::Opening => Some(self.heard_at + millis(self.config.connect_timeout)),
            State::Connected(client) => client.keep_alive().map(|span| self.heard_at + span),
            State::Connecting(_) | State::Closed => None,
        }
    }

    /// When it is known that core takes no publishes.
    fn blocked_deadline(&self) -> Option<Millis> {
        Some(self.published_at? + millis(self.config.blocked_max))
    }

    fn check_blocked(&mut self, now: Now, out: &mut Outbox) {
        if self.blocked_deadline().is_none_or(|deadline| now.mono < deadline) {
            return;
        }
        self.published_at = None;
        if let State::Connected(client) = &mut self.state
            && out.has_orders()
        {
            debug!(client_id = %client.id().escape_ascii(), "publishing is blocked");
            client.withdraw_publishes(out);
        }
    }

    fn watch_sys(&mut self, now: Now, out: &mut Outbox) {
        if self.sys_due.is_none_or(|deadline| now.mono < deadline) {
            return;
        }
        if let State::Connected(client) = &mut self.state {
            self.sys_due = Some(now.mono + millis(self.config.sys_interval));
            // Who does not take what there is gets no more. The values are sent when core has told its part of them.
            if out.queued_bytes() <= Outbox::HIGH_MARK && !out.has_orders() {
                client.ask(Asked::Values { filters: None }, Request::Totals, out);
            }
        }
    }

    /// Packets keep the connection alive, bytes do not [MQTT-3.1.2-22]: but the peer is heard of as long as a large
    /// packet grows on a slow link.
    fn hear_unfinished(&mut self, now: Now, length: usize) {
        if length >= self.heard_of + UNFINISHED_STEP && matches!(self.state, State::Connected(_)) {
            (self.heard_at, self.heard_of) = (now.mono, length);
        }
    }

    /// After each call: what came is counted, and what it made known is followed up.
    fn follow_up(&mut self, now: Now, out: &mut Outbox) {
        if !self.pending.is_empty() && matches!(self.state, State::Connected(_)) {
            // The driver knows nothing of these bytes: with room again they go on here.
            self.take_pending(now, out);
        }
        let State::Connected(client) = &mut self.state else {
            return;
        };
        client.note_received(out);
        let result = client.deliver_waiting(now, out);
        if client.counted.publishes_in > 0 && client.version() == Version::V5 && self.published_at.is_none() {
            self.published_at = Some(now.mono);
        }
        let watches_sys = client.subscriptions.has_sys() && self.config.sys_interval > Duration::ZERO;
        let next = now.mono + millis(self.config.sys_interval);
        self.sys_due = watches_sys.then(|| self.sys_due.unwrap_or(next));
        self.stats.add(&mut client.counted);
        let subscribed = client.subscribed();
        self.stats.recount(client.counted_subscriptions, subscribed);
        client.counted_subscriptions = subscribed;
        let result = match result {
            Ok(()) if client.is_to_end() => Err(ReasonCode::ReceiveMaximumExceeded.into()),
            result => result,
        };
        if let Err(close) = result {
            self.close_with(close, out);
        }
    }
}

impl Drop for MqttSession {
    fn drop(&mut self) {
        if let State::Connected(client) = &self.state {
            self.stats.disconnected(client.counted_subscriptions);
        }
    }
}

impl Session for MqttSession {
    fn handle_bytes(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        let (length, unsent) = (input.len(), out.queued_bytes());
        if self.pending.is_empty() {
            self.take_packets(now, input, out);
        }
        if !self.pending.is_empty() || matches!(self.state, State::Connecting(_)) {
            self.pending.extend_from_slice(input);
            input.clear();
            if matches!(self.state, State::Connected(_)) {
                self.take_pending(now, out);
            } else if self.pending.len() > PENDING_MAX {
                self.close(out);
            }
        }
        let taken = length - input.len();
        let sent = out.queued_bytes().saturating_sub(unsent);
        if let State::Connected(client) = &mut self.state {
            client.rest();
            client.counted.bytes_in += taken as u64;
            client.counted.bytes_out += sent as u64;
        } else {
            self.stats.add_bytes(taken, sent);
        }
        self.follow_up(now, out);
        self.hear_unfinished(now, self.pending.len() + input.len());
    }

    fn handle_events(&mut self, now: Now, events: &mut Vec<Event>, out: &mut Outbox) {
        let was_connecting = matches!(self.state, State::Connecting(_));
        let unsent = out.queued_bytes();
        for event in events.drain(..) {
            self.handle_event(now, event, out);
        }
        if was_connecting && matches!(self.state, State::Connected(_)) {
            self.heard_at = now.mono;
            self.take_pending(now, out);
        }
        let sent = out.queued_bytes().saturating_sub(unsent);
        if let State::Connected(client) = &mut self.state {
            client.counted.bytes_out += sent as u64;
        } else {
            self.stats.add_bytes(0, sent);
        }
        self.follow_up(now, out);
    }

    fn handle_timeout(&mut self, now: Now, out: &mut Outbox) {
        self.check_blocked(now, out);
        self.follow_up(now, out);
        self.watch_sys(now, out);
        if self.silence_deadline().is_none_or(|deadline| now.mono < deadline) {
            return;
        }
        let unsent = out.queued_bytes();
        // A peer that is not read cannot be heard: core takes no more, or the peer itself takes its
        // time, which is fine while it goes on taking.
        let is_unheard =
            !self.wants_read() || out.has_orders() || unsent > Outbox::HIGH_MARK && unsent != self.unsent_before;
        self.unsent_before = unsent;
        if matches!(self.state, State::Connected(_)) && is_unheard {
            self.heard_at = now.mono;
            return;
        }
        self.close_with(ReasonCode::KeepAliveTimeout.into(), out);
    }

    fn handle_eof(&mut self, _now: Now, out: &mut Outbox) {
        self.close(out);
    }

    fn handle_shutdown(&mut self, _now: Now, out: &mut Outbox) {
        self.close_with(ReasonCode::ServerShuttingDown.into(), out);
    }

    fn next_timeout(&self) -> Option<Millis> {
        let deadlines = [self.silence_deadline(), self.blocked_deadline(), self.sys_due];
        deadlines.into_iter().flatten().min()
    }

    fn wants_events(&self) -> bool {
        // While the client is not heard, only events can make room; how many deliveries come then, the windows limit.
        !matches!(
            &self.state,
            State::Connected(client) if client.waiting.len() >= WAITING_MAX && client.wants_read(&self.config)
        )
    }

    fn wants_read(&self) -> bool {
        match &self.state {
            State::Opening | State::Closed => true,
            State::Connecting(_) => false,
            State::Connected(client) => client.wants_read(&self.config),
        }
    }
}

fn millis(span: std::time::Duration) -> Millis {
    Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}
