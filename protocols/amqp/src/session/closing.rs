//! How channels and connections end when something is wrong: what is told, what still counts, and what goes.

use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;
use tracing::{debug, info};

use super::Session;
use super::channel::{Content, Life};
use super::connection::Phase;
use super::shared::{Context, Pending, What};
use crate::codec::{Method, MethodId, ShortStr};
use crate::reply_code::Failure;

/// How long a peer that failed to log in, or whose frames cannot be told apart any more, waits for the
/// end of the connection.
pub(super) const SILENT_CLOSE: Millis = Millis::from_secs(3);

impl Session {
    /// An error on a channel; its answer waits for those of earlier requests.
    pub(super) fn fail(&mut self, now: Now, number: u16, method: MethodId, failure: Failure, out: &mut Outbox) {
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

    pub(super) fn fail_now(&mut self, now: Now, number: u16, method: MethodId, failure: &Failure, out: &mut Outbox) {
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

    pub(super) fn fail_connection(&mut self, now: Now, method: MethodId, failure: &Failure, out: &mut Outbox) {
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

    pub(super) fn end(&mut self, out: &mut Outbox) {
        self.phase = Phase::Ended;
        self.deadline = None;
        self.heartbeat = None;
        self.channels.clear();
        out.close();
    }
}

fn loses_sync(failure: &Failure) -> bool {
    matches!(failure, Failure::Connection(error) if error.loses_sync())
}
