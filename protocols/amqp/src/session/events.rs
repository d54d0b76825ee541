//! What core says: deliveries, outcomes, replies, notices.

use std::ops::Range;

use rocketbridge_core::boundary::{
    Delivery, Event, Fate, Notice, Outcome, Reject, RequestId, Settle, Settlement, Shortage,
};
use rocketbridge_core::request::{Refusal, Reply};
use rocketbridge_core::time::Now;
use rocketbridge_session::Outbox;

use super::channel::{Life, PUBLISH};
use super::confirms::Verdict;
use super::content::deliver;
use super::publishes::ChannelKey;
use super::shared::{Context, Pending, What};
use super::{CONNECTION, Frame, Phase, Session};
use crate::codec::{Method, MethodId, ShortStr};
use crate::reply_code::{ChannelError, ConnectionError, Failure, Resource};

impl Session {
    /// One event.
    pub(super) fn event(&mut self, now: Now, event: Event, out: &mut Outbox) {
        match event {
            Event::Delivery(delivery) => self.delivery(&delivery, out),
            Event::Outcome(outcome) => self.outcome(now, outcome, out),
            Event::Reply { id, result } => self.reply(now, id, result, out),
            Event::Returned { token, message } => self.shared.returned.push_back((token, message)),
            Event::Notice(Notice::SubscriptionEnded(subscription)) => {
                let Some(ended) = self.shared.subscriptions.get(&subscription) else {
                    return;
                };
                let (key, tag) = (ended.channel, ended.tag.clone());
                let notify = self.shared.cancel_notify;
                let Some(mut context) = self.context(key, MethodId::NONE, out) else {
                    return;
                };
                // A consumer that is being cancelled gets its cancel-ok instead.
                if context.channel.consumers.get(&tag) != Some(&subscription) {
                    return;
                }
                context.channel.consumers.remove(&tag);
                context.shared.subscriptions.remove(&subscription);
                // Whoever deletes a queue hears that it is deleted before that its consumer is gone.
                if notify {
                    context.answer(&Method::BasicCancel {
                        consumer_tag: ShortStr(&tag),
                        no_wait: true,
                    });
                }
            }
            // Core says so only to those who have published meanwhile. They are not read until it goes on.
            Event::Notice(Notice::Blocked(shortage)) if self.shared.blocked_notify => {
                let reason = match shortage {
                    Shortage::Memory => "low on memory",
                    Shortage::Disk => "low on disk",
                };
                let reason = ShortStr(reason.as_bytes());
                Method::ConnectionBlocked { reason }.encode(0, out.bytes());
            }
            Event::Notice(Notice::Unblocked) if self.shared.blocked_notify => {
                Method::ConnectionUnblocked {}.encode(0, out.bytes());
            }
            Event::Notice(Notice::Blocked(_) | Notice::Unblocked) => {}
            // Native groups and named sessions do not concern this protocol; the driver publishes again
            // by itself.
            Event::Notice(Notice::GroupChanged(_) | Notice::CheckTransaction(_) | Notice::HolderTaken)
            | Event::Writable => {}
        }
    }

    /// A channel that still listens.
    fn context<'a>(&'a mut self, key: ChannelKey, method: MethodId, out: &'a mut Outbox) -> Option<Context<'a>> {
        let channel = self.channels.get_mut(&key.number)?;
        (channel.key == key && channel.is_heard()).then_some(Context {
            channel,
            shared: &mut self.shared,
            config: &self.config,
            out,
            method,
        })
    }

    fn delivery(&mut self, delivery: &Delivery, out: &mut Outbox) {
        if let Some(subscription) = self.shared.subscriptions.get(&delivery.subscription)
            && let Some(channel) = self.channels.get_mut(&subscription.channel.number)
            && channel.key == subscription.channel
            && matches!(channel.life, Life::Open | Life::Failing { .. })
        {
            let (frame_max, scratch) = (self.shared.frame_max, &mut self.shared.scratch);
            deliver(channel, &subscription.tag, delivery, frame_max, scratch, out);
        } else {
            give_up(delivery, out);
        }
    }

    /// A message that comes back is told right before its confirm, and its confirm is told alone: clients
    /// such as lapin take the next confirm after a return for that of the returned message.
    fn outcome(&mut self, now: Now, outcome: Outcome, out: &mut Outbox) {
        let mut tokens = outcome.first..outcome.first + u64::from(outcome.count);
        while let Some(at) = (self.shared.returned.iter()).position(|(token, _)| tokens.contains(token))
            && let Some((token, message)) = self.shared.returned.remove(at)
        {
            let key = self.shared.publishes.channel_of(token);
            self.settle_publishes(now, tokens.start..token, outcome.fate, out);
            if let Some(mut context) = key.and_then(|key| self.context(key, PUBLISH, out)) {
                context.confirm();
                context.give_back(&message);
            }
            self.settle_publishes(now, token..token + 1, outcome.fate, out);
            if let Some(mut context) = key.and_then(|key| self.context(key, PUBLISH, out)) {
                context.confirm();
            }
            tokens.start = token + 1;
        }
        self.settle_publishes(now, tokens, outcome.fate, out);
    }

    fn settle_publishes(&mut self, now: Now, tokens: Range<u64>, fate: Fate, out: &mut Outbox) {
        if tokens.is_empty() {
            return;
        }
        let verdict = match fate {
            Fate::Stored(_) | Fate::Duplicate(_) => Verdict::Ack,
            Fate::Rejected(_) | Fate::Unknown => Verdict::Nack,
        };
        let mut failed = Vec::new();
        let (channels, confirming) = (&mut self.channels, &mut self.shared.confirming);
        let (user, size_max) = (&self.shared.user, self.config.message_size_max);
        self.shared.publishes.settle(tokens, |settled| {
            let Some(channel) = channels.get_mut(&settled.channel.number) else {
                return;
            };
            if channel.key != settled.channel || !channel.is_heard() {
                return;
            }
            if let Fate::Rejected(reject) = fate
                && let Some(failure) = rejection(reject, &settled.exchange.name, user, size_max)
            {
                failed.push((settled.channel, failure, settled.exchange.name.clone()));
                return;
            }
            if let Some(confirms) = &mut channel.confirms
                && !settled.tags.is_empty()
            {
                if !confirms.has_verdicts() {
                    confirming.push(settled.channel.number);
                }
                confirms.settle(settled.tags, verdict);
            }
        });
        for (key, failure, exchange) in failed {
            // Whatever was known of the exchange may be wrong by now.
            self.shared.forget(&exchange);
            self.fail_now(now, key.number, PUBLISH, &failure, out);
        }
    }

    /// Tells publishers what was noted while events were handled.
    pub(super) fn confirm_all(&mut self, out: &mut Outbox) {
        for number in std::mem::take(&mut self.shared.confirming) {
            if let Some(channel) = self.channels.get_mut(&number).filter(|channel| channel.is_heard())
                && let Some(confirms) = &mut channel.confirms
                && confirms.has_verdicts()
            {
                confirms.flush(number, out.bytes());
            }
        }
    }

    // --- replies -------------------------------------------------------------------------------

    fn reply(&mut self, now: Now, id: RequestId, result: Result<Reply, Refusal>, out: &mut Outbox) {
        // Replies come in the order of requests; between them stand answers that are ready.
        let Some(at) = self.shared.pending.iter().position(|pending| pending.id == Some(id)) else {
            return;
        };
        let Some(pending) = self.shared.pending.remove(at) else {
            return;
        };
        let (key, method) = (pending.channel, pending.method);
        if key == CONNECTION {
            self.connection_reply(now, &pending, &result, out);
        } else if let Err(failure) = self.channel_reply(pending, result, out) {
            self.fail_now(now, key.number, method, &failure, out);
        }
        self.catch_up(now, key, out);
        self.answers(now, out);
    }

    fn connection_reply(&mut self, now: Now, pending: &Pending, result: &Result<Reply, Refusal>, out: &mut Outbox) {
        let What::Login { mechanism } = pending.what else {
            return;
        };
        match result {
            Ok(_) | Err(Refusal::AccessRefused) => self.logged_in(now, mechanism, result.is_ok(), out),
            Err(Refusal::Closed) => {
                self.fail_connection(now, pending.method, &ConnectionError::Forced("shutdown").into(), out);
            }
            Err(refusal) => {
                let error = ConnectionError::Internal(refusal.to_string());
                self.fail_connection(now, pending.method, &error.into(), out);
            }
        }
    }

    fn channel_reply(
        &mut self,
        pending: Pending,
        result: Result<Reply, Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let Pending {
            channel: key,
            method,
            what,
            ..
        } = pending;
        if let Some(channel) = self.channels.get_mut(&key.number)
            && channel.key == key
        {
            channel.waiting = channel.waiting.saturating_sub(1);
        }
        let Some(mut context) = self.context(key, method, out) else {
            self.reply_too_late(&what, result, out);
            return Ok(());
        };
        match what {
            What::DeclareExchange {
                exchange,
                wanted,
                no_wait,
            } => context.exchange_declared(&exchange, Some(&wanted), no_wait, result),
            What::FindExchange {
                exchange,
                wanted,
                no_wait,
            } => context.exchange_declared(&exchange, wanted.as_ref(), no_wait, result),
            What::DeleteExchange { exchange, no_wait } => context.exchange_deleted(&exchange, no_wait, result),
            What::DeclareQueue { wanted, no_wait } => {
                context.queue_declared(&wanted.name, Some(&wanted), no_wait, result)
            }
            What::FindQueue { queue, no_wait } => context.queue_declared(&queue, None, no_wait, result),
            What::DeleteQueue { queue, no_wait } => context.queue_deleted(&queue, no_wait, result),
            What::PurgeQueue { queue, no_wait } => context.queue_purged(&queue, no_wait, result),
            What::FindKind(bind) => context.kind_found(bind, result),
            What::FindToPublish(message) => {
                let (message, body) = *message;
                context.exchange_met(message, body, result)
            }
            What::Bind(bind) => context.bound(&bind, result),
            What::Commit { tokens, exchanges } => context.committed(tokens, &exchanges, result),
            What::Consume {
                subscription,
                tag,
                queue,
                no_wait,
            } => context.consuming(subscription, &tag, &queue, no_wait, result),
            What::Cancel {
                subscription,
                tag,
                no_wait,
            } => {
                context.cancelled(subscription, &tag, no_wait);
                Ok(())
            }
            What::Get { queue, leased } => context.got(&queue, leased, result),
            What::Abandon { subscription } => {
                context.shared.subscriptions.remove(&subscription);
                Ok(())
            }
            What::DeclareReplyQueue | What::Login { .. } | What::Answer(_) | What::Fail(_) | What::ChannelCloseOk => {
                Ok(())
            }
        }
    }

    /// The channel that asked is gone or going.
    fn reply_too_late(&mut self, what: &What, result: Result<Reply, Refusal>, out: &mut Outbox) {
        match (what, result) {
            (What::Get { .. }, Ok(Reply::Got(Some(got)))) => give_up(&got.delivery, out),
            (What::Commit { tokens, .. }, _) => {
                self.shared.publishes.settle(tokens.clone(), |_| {});
                self.shared.returned.retain(|(token, _)| !tokens.contains(token));
            }
            (What::Cancel { subscription, .. } | What::Abandon { subscription }, _)
            | (What::Consume { subscription, .. }, Err(_)) => {
                self.shared.subscriptions.remove(subscription);
            }
            _ => {}
        }
    }

    /// Handles what came for a channel while it waited.
    fn catch_up(&mut self, now: Now, key: ChannelKey, out: &mut Outbox) {
        let Some(channel) = self.channels.get_mut(&key.number).filter(|channel| channel.key == key) else {
            return;
        };
        let is_waiting = |pending: &Pending| {
            pending.channel == key && matches!(pending.what, What::FindKind(_) | What::FindToPublish(_))
        };
        if channel.backlog.is_none() || self.shared.pending.iter().any(is_waiting) {
            return;
        }
        let frames = channel.backlog.take().map(|backlog| backlog.frames).unwrap_or_default();
        self.shared.backlog_bytes -= frames.iter().map(|(_, payload)| payload.len()).sum::<usize>();
        for (kind, payload) in frames {
            if self.phase != Phase::Running {
                return;
            }
            let frame = Frame {
                kind,
                channel: key.number,
                payload: &payload,
                chunk: &payload,
            };
            // A frame that makes the channel wait again finds those behind it put back by this very call.
            if let Err(blamed) = self.frame(now, &frame, out) {
                self.fail(now, key.number, blamed.method, blamed.failure, out);
            }
        }
        self.receiving = None;
    }

    /// Sends answers whose turn has come.
    pub(super) fn answers(&mut self, now: Now, out: &mut Outbox) {
        while let Some(front) = self.shared.pending.front() {
            if front.id.is_some() {
                return;
            }
            let Some(Pending {
                channel: key,
                method,
                what,
                ..
            }) = self.shared.pending.pop_front()
            else {
                return;
            };
            let Some(mut context) = self.context(key, method, out) else {
                continue;
            };
            context.channel.waiting = context.channel.waiting.saturating_sub(1);
            match what {
                What::Answer(frame) => context.out.bytes().extend_from_slice(&frame),
                What::Fail(failure) => self.fail_now(now, key.number, method, &failure, out),
                What::ChannelCloseOk => {
                    context.send(&Method::ChannelCloseOk {});
                    self.channels.remove(&key.number);
                }
                _ => {}
            }
        }
    }
}

impl Context<'_> {
    /// Tells this channel's publisher what was noted.
    pub fn confirm(&mut self) {
        if let Some(confirms) = &mut self.channel.confirms
            && confirms.has_verdicts()
        {
            confirms.flush(self.channel.key.number, self.out.bytes());
        }
    }
}

/// A delivery that came too late goes back to its place.
fn give_up(delivery: &Delivery, out: &mut Outbox) {
    if delivery.leased {
        out.settle(Settlement {
            subscription: delivery.subscription,
            first: delivery.sequence,
            count: 1,
            action: Settle::Release,
        });
    }
}

/// What a rejection ends; a queue that is full or a broker that goes down ends nothing and is a nack.
pub fn rejection(reject: Reject, exchange: &[u8], user: &[u8], size_max: u64) -> Option<Failure> {
    let resource = Resource::exchange(exchange);
    Some(Failure::from(match reject {
        Reject::NoExchange => ChannelError::NotFound(resource),
        Reject::InternalExchange => ChannelError::InternalExchange(resource),
        Reject::AccessRefused => ChannelError::AccessRefused {
            what: resource.to_string(),
            user: String::from_utf8_lossy(user).into_owned(),
        },
        Reject::TooLate => ChannelError::Invalid("the message is to be delivered later than is allowed".to_owned()),
        Reject::TooLarge => {
            ChannelError::Invalid(format!("message size is larger than configured max size {size_max}"))
        }
        Reject::NoTopic | Reject::NoQueue | Reject::QueueFull | Reject::Shortage(_) | Reject::Closed => return None,
    }))
}
