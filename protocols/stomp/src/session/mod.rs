//! One STOMP connection: frames in, frames and core requests out.
//!
//! ```text
//!            CONNECT              login answered           DISCONNECT
//!   Opening ---------> LoggingIn ----------------> Client ------------> (receipts) --> Closed
//!      |                   |                         | ERROR                             ^
//!      +-------------------+-------------------------+-----------------------------------+
//! ```
//!
//! Logging in is [`connect`]'s work. What a client sends is in [`send`], [`subscribe`], [`acknowledge`]
//! and [`transaction`], what it gets in [`events`]. Every ERROR ends the connection.

mod acknowledge;
mod arguments;
mod client;
mod connect;
mod events;
mod groups;
mod queues;
mod send;
mod subscribe;
mod transaction;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::boundary::{Event, Peer};
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;
use tracing::debug;

use crate::codec::{
    Command, Decoder, END_OF_FRAME, Frame, Refused, Version, put_command, put_header, put_number_header,
    put_plain_header,
};
use crate::config::Config;
use crate::error_message::{Error, VERSIONS};
use client::Client;
use connect::LoggingIn;

/// Why a connection ends, and what the ERROR frame says besides.
#[derive(Debug)]
struct Failure {
    error: Box<Error>,
    /// The receipt that the frame at fault asked for.
    receipt: Option<Bytes>,
    /// The frame at fault.
    command: Option<Command>,
    /// The subscription that ended.
    subscription: Option<Bytes>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error: Box::new(error),
            receipt: None,
            command: None,
            subscription: None,
        }
    }
}

impl Failure {
    fn of(error: Error, command: Command, receipt: Option<Bytes>) -> Self {
        Self {
            receipt,
            command: Some(command),
            ..Self::from(error)
        }
    }
}

enum State {
    /// Nothing but CONNECT is accepted.
    Opening,
    /// CONNECT came; core has not answered.
    LoggingIn(Box<LoggingIn>),
    /// CONNECTED was sent.
    Connected(Box<Client>),
    /// The connection is as good as closed; whatever comes is dropped.
    Closed,
}

/// One STOMP connection.
pub struct Session {
    config: Arc<Config>,
    seed: u64,
    decoder: Decoder,
    state: State,
    /// When the peer was last heard of, or last could not be heard.
    heard_at: Millis,
    /// When the peer was last sent something.
    sent_at: Millis,
    /// Unsent bytes at the last look for silence.
    unsent_before: usize,
}

impl Session {
    /// For a connection just accepted. `seed` is different for every connection and hard to guess: names
    /// of temporary queues are made of it.
    pub fn new(config: Arc<Config>, _peer: Peer, seed: u64, now: Now) -> Self {
        Self {
            decoder: Decoder::new(config.limits()),
            config,
            seed,
            state: State::Opening,
            heard_at: now.mono,
            sent_at: now.mono,
            unsent_before: 0,
        }
    }

    fn version(&self) -> Version {
        match &self.state {
            State::Connected(client) => client.version,
            // CONNECT's headers were read as they are, and go back like that.
            State::Opening | State::LoggingIn(_) | State::Closed => Version::V10,
        }
    }

    fn take_frames(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        loop {
            match &self.state {
                State::Opening => {}
                State::LoggingIn(_) => return,
                State::Connected(client) if client.takes_frames() => {}
                State::Connected(client) if client.is_leaving() => {
                    // Whatever comes behind DISCONNECT is not read.
                    input.clear();
                    return;
                }
                State::Connected(_) => return,
                State::Closed => {
                    input.clear();
                    return;
                }
            }
            match self.decoder.decode(input) {
                Ok(Some(frame)) => self.handle_frame(now, &frame, out),
                Ok(None) => return,
                Err(refused) => self.refuse(refused, out),
            }
        }
    }

    fn handle_frame(&mut self, now: Now, frame: &Frame, out: &mut Outbox) {
        let result = match &mut self.state {
            State::Opening => self.handle_connect(frame, out),
            State::Connected(client) => client.handle_frame(now, frame, &self.config, out),
            State::LoggingIn(_) | State::Closed => return,
        };
        if let Err(mut failure) = result {
            failure.command = failure.command.or(Some(frame.command));
            failure.receipt = failure.receipt.or_else(|| frame.copy(b"receipt"));
            self.fail(failure, out);
        }
    }

    fn refuse(&mut self, refused: Refused, out: &mut Outbox) {
        self.fail(
            Failure {
                error: Box::new(refused.fault.into()),
                receipt: refused.receipt,
                command: refused.command,
                subscription: None,
            },
            out,
        );
    }

    /// ERROR, and the end.
    fn fail(&mut self, failure: Failure, out: &mut Outbox) {
        if matches!(self.state, State::Closed) {
            return;
        }
        debug!(message = failure.error.message(), error = %failure.error, "connection refused");
        put_error(self.version(), &failure, out);
        self.close(out);
    }

    fn close(&mut self, out: &mut Outbox) {
        if let State::Connected(client) = &mut self.state {
            client.stop_all_popping(false, out);
        }
        self.state = State::Closed;
        out.close();
    }

    fn handle_event(&mut self, event: Event, out: &mut Outbox) {
        let result = match &mut self.state {
            State::LoggingIn(_) => match event {
                Event::Reply { result, .. } => self.handle_login_reply(result, out),
                _ => Ok(()),
            },
            State::Connected(client) => client.handle_event(event, &self.config, out),
            State::Opening | State::Closed => Ok(()),
        };
        if let Err(failure) = result {
            self.fail(failure, out);
        }
    }

    /// The client said goodbye and all that it asked for is answered.
    fn leave_when_done(&mut self, out: &mut Outbox) {
        if let State::Connected(client) = &mut self.state
            && client.is_leaving()
            && client.is_done()
        {
            client.say_goodbye(out);
            self.close(out);
        }
    }

    /// When the peer has been silent for too long.
    fn silent_at(&self) -> Option<Millis> {
        match &self.state {
            State::Opening => Some(self.heard_at + millis(self.config.connect_timeout)),
            State::Connected(client) if !client.is_leaving() => {
                client.heart_beat.silence_max().map(|span| self.heard_at + span)
            }
            State::LoggingIn(_) | State::Connected(_) | State::Closed => None,
        }
    }

    /// When a heart-beat is due.
    fn beat_at(&self) -> Option<Millis> {
        match &self.state {
            State::Connected(client) => client.heart_beat.send_at(self.sent_at),
            State::Opening | State::LoggingIn(_) | State::Closed => None,
        }
    }

    fn check_silence(&mut self, now: Now, out: &mut Outbox) {
        let unsent = out.queued_bytes();
        // A peer that is not read cannot be heard: core takes no more, or the peer itself takes its
        // time, which is fine while it goes on taking.
        let is_unheard = !rocketbridge_session::Session::wants_read(self)
            || out.has_orders()
            || unsent > Outbox::HIGH_MARK && unsent != self.unsent_before;
        self.unsent_before = unsent;
        match &self.state {
            State::Opening => self.fail(Error::ConnectTimeout.into(), out),
            State::Connected(_) if is_unheard => self.heard_at = now.mono,
            State::Connected(_) => {
                let span = now.mono.since(self.heard_at);
                self.fail(Error::Silent(span.0).into(), out);
            }
            State::LoggingIn(_) | State::Closed => {}
        }
    }

    /// Runs something that may append to the outbox, and notes when it did.
    fn noting_what_is_sent(&mut self, now: Now, out: &mut Outbox, run: impl FnOnce(&mut Self, &mut Outbox)) {
        let before = out.queued_bytes();
        run(self, out);
        if out.queued_bytes() > before {
            self.sent_at = now.mono;
        }
    }
}

impl rocketbridge_session::Session for Session {
    fn handle_bytes(&mut self, now: Now, input: &mut BytesMut, out: &mut Outbox) {
        if !matches!(self.state, State::Opening) {
            self.heard_at = now.mono;
        }
        self.noting_what_is_sent(now, out, |session, out| {
            session.take_frames(now, input, out);
            session.leave_when_done(out);
            if let State::Connected(client) = &mut session.state {
                client.rest();
            }
        });
    }

    fn handle_events(&mut self, now: Now, events: &mut Vec<Event>, out: &mut Outbox) {
        self.noting_what_is_sent(now, out, |session, out| {
            let was_logging_in = matches!(session.state, State::LoggingIn(_));
            for event in events.drain(..) {
                session.handle_event(event, out);
            }
            session.leave_when_done(out);
            if was_logging_in {
                session.heard_at = now.mono;
            }
        });
    }

    fn handle_timeout(&mut self, now: Now, out: &mut Outbox) {
        self.noting_what_is_sent(now, out, |session, out| {
            if session.silent_at().is_some_and(|at| at <= now.mono) {
                session.check_silence(now, out);
            }
            if session.beat_at().is_some_and(|at| at <= now.mono) {
                // What waits to be sent says as much as a line end does.
                if out.queued_bytes() == 0 {
                    out.bytes().extend_from_slice(b"\n");
                }
                session.sent_at = now.mono;
            }
        });
    }

    fn handle_eof(&mut self, _now: Now, out: &mut Outbox) {
        self.close(out);
    }

    fn handle_shutdown(&mut self, _now: Now, out: &mut Outbox) {
        self.fail(Error::ShuttingDown.into(), out);
    }

    fn next_timeout(&self) -> Option<Millis> {
        [self.silent_at(), self.beat_at()].into_iter().flatten().min()
    }

    fn wants_read(&self) -> bool {
        match &self.state {
            State::Opening | State::Closed => true,
            State::LoggingIn(_) => false,
            State::Connected(client) => client.takes_frames() || client.is_leaving(),
        }
    }
}

fn put_error(version: Version, failure: &Failure, out: &mut Outbox) {
    let error = &failure.error;
    let body = error.to_string();
    let out = out.bytes();
    put_command(out, Command::Error);
    put_plain_header(out, "message", error.message().as_bytes());
    put_plain_header(out, "version", VERSIONS.as_bytes());
    put_plain_header(out, "content-type", b"text/plain");
    put_number_header(out, "content-length", body.len() as u64);
    if let Some(receipt) = &failure.receipt {
        put_header(out, version, b"receipt-id", receipt);
    }
    if let Some(subscription) = &failure.subscription {
        put_header(out, version, b"subscription", subscription);
    }
    if let Some(command) = failure.command.filter(|command| *command != Command::Unknown) {
        put_plain_header(out, "x-frame", command.name().as_bytes());
    }
    out.extend_from_slice(b"\n");
    out.extend_from_slice(body.as_bytes());
    out.extend_from_slice(END_OF_FRAME);
}

fn millis(span: std::time::Duration) -> Millis {
    Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}
