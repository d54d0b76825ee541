//! SEND.

use bytes::Bytes;
use rocketbridge_core::boundary::{Fate, Outcome, Publish, Reject};
use rocketbridge_core::time::Now;
use rocketbridge_session::Outbox;

use super::Failure;
use super::client::{Client, put_receipt};
use super::queues::Wishes;
use crate::codec::{Command, Frame};
use crate::config::Config;
use crate::error_message::Error;
use crate::mapping::inbound::{self, Context};
use crate::mapping::{Destination, TEMPORARY, Target, reply_attribute};

/// Where the last SEND went: the next one often goes there too.
pub(super) struct LastTarget {
    /// As the client wrote it.
    written: Bytes,
    /// `None` for what is told anew for each SEND: a queue's arguments, a temporary queue.
    target: Target,
}

/// A message without an outcome.
#[derive(Debug)]
pub(super) struct Pending {
    token: u64,
    receipt: Option<Bytes>,
    /// Where it went, for who asks why it was refused.
    shown: Bytes,
    is_done: bool,
}

impl Client {
    pub(super) fn handle_send(
        &mut self,
        now: Now,
        frame: &Frame,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let publish = self.publish_of(now, frame, config, out)?;
        let shown = self
            .last_target
            .as_ref()
            .map(|last| last.target.shown.clone())
            .unwrap_or_default();
        let receipt = frame.header(b"receipt").map(|receipt| self.keep(receipt));
        if let Some(transaction) = frame.header(b"transaction") {
            self.transactions.hold_publish(transaction, publish, receipt, config)?;
            return Ok(());
        }
        self.pending.push_back(Pending {
            token: publish.token,
            receipt,
            shown,
            is_done: false,
        });
        self.next_token += 1;
        out.publish(publish);
        Ok(())
    }

    fn publish_of(&mut self, now: Now, frame: &Frame, config: &Config, out: &mut Outbox) -> Result<Publish, Failure> {
        let written = frame
            .header(b"destination")
            .ok_or(Error::NoDestination { command: "SEND" })?;
        if self.last_target.as_ref().is_none_or(|last| last.written != written) {
            let target = self.find_target(written, frame, config, out)?;
            self.last_target = Some(LastTarget {
                written: Bytes::copy_from_slice(written),
                target,
            });
        }
        let reply_to = self.find_reply_queue(frame, config, out)?;
        let Self {
            last_target,
            attributes,
            arena,
            user,
            ..
        } = self;
        let target = &last_target.as_ref().expect("set above").target;
        let context = Context {
            target,
            user,
            now: now.wall,
            reply_to: reply_to.as_ref().map(|(shown, attribute)| (&shown[..], &attribute[..])),
        };
        let meaning = inbound::meaning(frame, context, attributes, arena)?;
        Ok(Publish {
            token: self.next_token,
            entry: target.entry,
            topic: target.topic.clone(),
            key: meaning.tag.unwrap_or_else(|| target.key.clone()),
            body: frame.body.clone(),
            attributes: meaning.attributes,
            format: crate::mapping::FORMAT,
            origin: meaning.origin,
            persistent: meaning.persistent,
            deliver: meaning.deliver,
            ..Publish::default()
        })
    }

    /// The address of a destination. A queue is declared once for each connection.
    fn find_target(
        &mut self,
        written: &[u8],
        frame: &Frame,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<Target, Failure> {
        let destination = Destination::parse(written, config)?;
        match &destination {
            Destination::Queue(name) => {
                let wishes = Wishes::of_frame(frame)?;
                if self.must_declare(name) {
                    self.declare(name, &wishes, Command::Send, frame.copy(b"receipt"), out)?;
                }
            }
            Destination::Temporary(name) => {
                let queue = self.temporary_queue(name, config, out)?;
                return Ok(Target::of_queue(&queue));
            }
            _ => {}
        }
        Ok(Target::of(&destination, written).expect("temporary queues are looked up above"))
    }

    /// A `reply-to` that stands for something else: what STOMP subscribers and others read instead.
    fn find_reply_queue(
        &mut self,
        frame: &Frame,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<Option<(Bytes, Bytes)>, Failure> {
        let Some(reply_to) = frame.header(b"reply-to") else {
            return Ok(None);
        };
        if let Some(name) = reply_to.strip_prefix(TEMPORARY) {
            let queue = self.reply_queue(name, config, out)?;
            let shown = Bytes::from([crate::mapping::REPLY, &queue[..]].concat());
            return Ok(Some((shown, queue)));
        }
        let attribute = reply_attribute(reply_to, config);
        Ok((attribute != reply_to).then(|| (Bytes::copy_from_slice(reply_to), Bytes::copy_from_slice(&attribute))))
    }

    /// Sends the receipts that an outcome is for. Outcomes may come out of order.
    pub(super) fn handle_outcome(
        &mut self,
        outcome: Outcome,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let Some(front) = self.pending.front().map(|pending| pending.token) else {
            return Ok(());
        };
        // Tokens rise by one, so a place is a difference.
        let start = outcome.first.saturating_sub(front) as usize;
        let end = (outcome.first + u64::from(outcome.count)).saturating_sub(front) as usize;
        let end = end.min(self.pending.len());
        for pending in self.pending.range_mut(start.min(end)..end) {
            if std::mem::replace(&mut pending.is_done, true) {
                continue;
            }
            match outcome.fate {
                Fate::Stored(_) | Fate::Duplicate(_) => {
                    if let Some(receipt) = pending.receipt.take() {
                        put_receipt(self.version, &receipt, out.bytes());
                    }
                }
                Fate::Rejected(reject) => {
                    let error = rejection(reject, &pending.shown, config);
                    return Err(Failure::of(error, Command::Send, pending.receipt.take()));
                }
                Fate::Unknown => {
                    let error = Error::Resource("nobody knows whether the message was stored".to_owned());
                    return Err(Failure::of(error, Command::Send, pending.receipt.take()));
                }
            }
        }
        while self.pending.front().is_some_and(|pending| pending.is_done) {
            self.pending.pop_front();
        }
        Ok(())
    }
}

/// What it means that a message was not taken.
pub(super) fn rejection(reject: Reject, shown: &[u8], config: &Config) -> Error {
    let name = match Destination::parse(shown, config) {
        Ok(Destination::Exchange { name, .. }) => name,
        Ok(Destination::Native { topic, .. }) => topic,
        _ => Bytes::copy_from_slice(shown),
    };
    Error::of_reject(reject, &name, config.body_size_max)
}
