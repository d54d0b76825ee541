//! From CONNECT to CONNECTED.

use bytes::Bytes;
use rocketbridge_core::boundary::RequestId;
use rocketbridge_core::request::{Credentials, Refusal, Reply, Request};
use rocketbridge_session::Outbox;

use super::client::Client;
use super::{Failure, Session, State, millis};
use crate::codec::{Command, END_OF_FRAME, Frame, Version, put_command, put_plain_header};
use crate::error_message::Error;
use crate::heart_beat::Agreed;

const LOGIN: RequestId = RequestId(0);

/// What `server` says in CONNECTED.
const SERVER: &str = concat!("RocketBridge/", env!("CARGO_PKG_VERSION"));

/// What CONNECT said, until core has answered.
pub(super) struct LoggingIn {
    version: Version,
    heart_beat: Agreed,
    user: Bytes,
    client_id: Option<Bytes>,
}

impl Session {
    pub(super) fn handle_connect(&mut self, frame: &Frame, out: &mut Outbox) -> Result<(), Failure> {
        if !matches!(frame.command, Command::Connect | Command::Stomp) {
            return Err(match frame.command {
                Command::Unknown => Error::Command(frame.command_text().into()),
                _ => Error::NotConnected,
            }
            .into());
        }
        let version = version_of(frame)?;
        // 1.0 pads its headers with blanks, and nobody knew the version when they were read.
        let header = |name: &[u8]| {
            let value = frame.header(name);
            if version == Version::V10 {
                value.map(<[u8]>::trim_ascii)
            } else {
                value
            }
        };
        let heart_beat = match header(b"heart-beat") {
            None => Agreed::default(),
            Some(text) => Agreed::from_header(text, millis(self.config.heart_beat_min))
                .ok_or_else(|| Error::HeartBeat(text.into()))?,
        };
        check_host(header(b"host"))?;
        let (login, passcode) = (header(b"login"), header(b"passcode"));
        let credentials = match (login, passcode) {
            (None | Some(b""), None | Some(b"")) => Credentials::Anonymous,
            (user, password) => Credentials::Password {
                user: Bytes::copy_from_slice(user.unwrap_or_default()),
                password: Bytes::copy_from_slice(password.unwrap_or_default()),
            },
        };
        self.state = State::LoggingIn(Box::new(LoggingIn {
            version,
            heart_beat,
            user: Bytes::copy_from_slice(login.unwrap_or_default()),
            client_id: header(b"client-id").map(Bytes::copy_from_slice),
        }));
        out.request(LOGIN, Request::Login(credentials));
        Ok(())
    }

    pub(super) fn handle_login_reply(
        &mut self,
        result: Result<Reply, Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let State::LoggingIn(logging_in) = &mut self.state else {
            return Ok(());
        };
        if let Err(refusal) = result {
            let error = match refusal {
                Refusal::AccessRefused => Error::Login((&logging_in.user[..]).into()),
                other => Error::of_refusal(&other, &logging_in.user),
            };
            return Err(Failure::of(error, Command::Connect, None));
        }
        let (version, heart_beat) = (logging_in.version, logging_in.heart_beat);
        let (user, client_id) = (std::mem::take(&mut logging_in.user), logging_in.client_id.take());
        self.decoder.set_version(version);
        let client = Client::new(version, heart_beat, self.seed, user, client_id);
        let out = out.bytes();
        put_command(out, Command::Connected);
        put_plain_header(out, "server", SERVER.as_bytes());
        put_plain_header(out, "session", client.session.as_bytes());
        let beats = format!("{},{}", heart_beat.send.0, heart_beat.expect.0);
        put_plain_header(out, "heart-beat", beats.as_bytes());
        put_plain_header(out, "version", version.name().as_bytes());
        out.extend_from_slice(b"\n");
        out.extend_from_slice(END_OF_FRAME);
        self.state = State::Connected(Box::new(client));
        Ok(())
    }
}

/// The highest version that both sides speak; a client that names none speaks 1.0.
fn version_of(frame: &Frame) -> Result<Version, Error> {
    let Some(accepted) = frame.header(b"accept-version") else {
        return Ok(Version::V10);
    };
    accepted
        .split(|b| *b == b',')
        .filter_map(|name| Version::from_name(name.trim_ascii()))
        .max()
        .ok_or(Error::Version)
}

/// Nearly all clients write the broker's DNS name here. What can only be meant as a virtual host must be
/// the one there is.
fn check_host(host: Option<&[u8]>) -> Result<(), Error> {
    match host {
        Some(host) if host.starts_with(b"/") && host != b"/" => Err(Error::VirtualHost(host.into())),
        _ => Ok(()),
    }
}
