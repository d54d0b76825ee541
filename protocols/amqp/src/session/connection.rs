//! Channel 0: from the protocol header to the end of the connection.
//!
//! What the handshake's frames say is in [`handshake`]; how a connection fails is in [`closing`](super::closing).

use bytes::{Buf, BufMut, BytesMut};
use rocketbridge_core::request::{Credentials, Request};
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;
use tracing::{debug, info};

use super::closing::SILENT_CLOSE;
use super::handshake::{self, ClientCapabilities, Limits};
use super::publishes::ChannelKey;
use super::shared::What;
use super::{Frame, Heartbeat, Session};
use crate::codec::{Method, MethodId, PROTOCOL_HEADER, PROTOCOL_HEADER_0_9, ShortStr};
use crate::reply_code::{ConnectionError, Failure, VIRTUAL_HOST};

/// The identity of channel 0 in what waits for core.
pub(super) const CONNECTION: ChannelKey = ChannelKey { number: 0, epoch: 0 };

/// Where a connection stands.
///
/// ```text
///  Header -> Starting -> LoggingIn -> Tuning -> Opening -> Running
///  any --- close from the client --> Ended
///  any --- error or shutdown --> Closing --- close-ok, or time is up --> Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
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
    pub(super) fn name(self) -> &'static str {
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

impl Session {
    /// The protocol header; `false` when more is needed.
    pub(super) fn protocol_header(&mut self, input: &mut BytesMut, out: &mut Outbox) -> bool {
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

    pub(super) fn connection_method(&mut self, now: Now, method: &Method<'_>, out: &mut Outbox) -> Result<(), Failure> {
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
                if let Credentials::Password { user, .. } = &credentials {
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
    pub(super) fn logged_in(&mut self, now: Now, mechanism: &'static str, is_good: bool, out: &mut Outbox) {
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

    /// A method on channel 0 while the connection ends.
    pub(super) fn last_words(&mut self, frame: &Frame<'_>, out: &mut Outbox) {
        match Method::decode(frame.payload) {
            Ok(Method::ConnectionClose { .. }) => Method::ConnectionCloseOk {}.encode(0, out.bytes()),
            Ok(Method::ConnectionCloseOk {}) if matches!(self.phase, Phase::Closing { .. }) => self.end(out),
            _ => {}
        }
    }
}
