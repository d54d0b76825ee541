//! Methods of class basic besides publishing and delivering, and their replies.

use std::collections::btree_map::Entry;

use bytes::Bytes;
use rocketbridge_core::boundary::{Settle, Settlement, SubscriptionId};
use rocketbridge_core::request::{Acknowledge, Limit, Queue, Refusal, Reply, Request, Subscribe};

use super::shared::{Context, Subscription, What};
use crate::arguments::check_consumer;
use crate::codec::{Method, ShortStr, Table};
use crate::mapping::inbound::REPLY_TO_QUEUE;
use crate::reply_code::{ChannelError, ConnectionError, Failure, Resource};

/// The fields of `basic.consume`.
pub struct Consume<'a> {
    pub queue: &'a [u8],
    pub consumer_tag: &'a [u8],
    pub no_ack: bool,
    pub exclusive: bool,
    pub no_wait: bool,
    pub arguments: Table<'a>,
}

/// Which deliveries a client settles, and how.
#[derive(Clone, Copy, Debug)]
pub struct Settling {
    pub delivery_tag: u64,
    pub multiple: bool,
    pub action: Settle,
}

impl Context<'_> {
    /// `basic.qos`: counts for consumers that are made from now on; `global` means the same, as in
    /// RabbitMQ since 4.3.
    pub fn basic_qos(&mut self, prefetch_size: u32, prefetch_count: u16) -> Result<(), Failure> {
        if prefetch_size != 0 {
            return Err(Failure::not_implemented(format!("prefetch_size!=0 ({prefetch_size})")));
        }
        self.channel.prefetch = prefetch_count;
        self.answer(&Method::BasicQosOk {});
        Ok(())
    }

    /// `basic.consume`
    pub fn basic_consume(&mut self, consume: &Consume<'_>) -> Result<(), Failure> {
        let mut queue = self.queue_name(consume.queue)?;
        let is_reply = queue == REPLY_TO_QUEUE;
        if is_reply && !consume.no_ack {
            return Err(ChannelError::ReplyConsumerAcknowledges.into());
        }
        if is_reply && self.channel.reply.is_some() {
            return Err(ChannelError::ReplyConsumerSet.into());
        }
        let tag = if consume.consumer_tag.is_empty() {
            self.shared.names.consumer_tag()
        } else {
            Bytes::copy_from_slice(consume.consumer_tag)
        };
        let consumers = self.channel.consumers.len();
        let Entry::Vacant(place) = self.channel.consumers.entry(tag.clone()) else {
            let tag = String::from_utf8_lossy(&tag).into_owned();
            return Err(ConnectionError::ConsumerTagReused(tag).into());
        };
        if consumers >= self.config.consumers_max as usize {
            return Err(ConnectionError::ConsumersMax(self.config.consumers_max).into());
        }
        let priority = check_consumer(&queue, consume.arguments)?;
        let subscription = self.shared.subscription();
        place.insert(subscription);
        if is_reply {
            queue = self.shared.names.reply_queue();
            self.channel.reply = Some((subscription, queue.clone()));
            self.request(What::DeclareReplyQueue, Request::DeclareQueue(reply_queue(&queue)));
        }
        let consumer = Subscription {
            channel: self.channel.key,
            tag: tag.clone(),
        };
        self.shared.subscriptions.insert(subscription, consumer);
        let prefetch = u32::from(self.channel.prefetch);
        let request = Request::Subscribe(Subscribe {
            subscription,
            queue: queue.clone(),
            acknowledge: if consume.no_ack {
                Acknowledge::Never
            } else {
                Acknowledge::Always
            },
            window: (prefetch > 0 && !consume.no_ack).then_some(prefetch),
            exclusive: consume.exclusive,
            priority,
            selector: None,
        });
        let what = What::Consume {
            subscription,
            tag,
            queue,
            no_wait: consume.no_wait,
        };
        self.request(what, request);
        Ok(())
    }

    /// The reply to a subscription.
    pub fn consuming(
        &mut self,
        subscription: SubscriptionId,
        tag: &Bytes,
        queue: &Bytes,
        no_wait: bool,
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        if let Ok(Reply::Done) = result {
            let consumer_tag = ShortStr(tag);
            self.send_unless(no_wait, &Method::BasicConsumeOk { consumer_tag });
            return Ok(());
        }
        self.shared.subscriptions.remove(&subscription);
        self.channel.consumers.remove(tag);
        let queue = Resource::queue(queue);
        Err(match result {
            Err(Refusal::InUse) => ChannelError::ExclusiveUse(queue).into(),
            other => self.refused(&queue, other),
        })
    }

    /// `basic.cancel`: an unknown tag is cancelled already.
    pub fn basic_cancel(&mut self, consumer_tag: &[u8], no_wait: bool) {
        let Some((tag, subscription)) = self.channel.consumers.remove_entry(consumer_tag) else {
            if !no_wait {
                let consumer_tag = ShortStr(consumer_tag);
                self.answer(&Method::BasicCancelOk { consumer_tag });
            }
            return;
        };
        if self
            .channel
            .reply
            .as_ref()
            .is_some_and(|(reply, _)| *reply == subscription)
        {
            self.channel.reply = None;
        }
        let what = What::Cancel {
            subscription,
            tag,
            no_wait,
        };
        self.request(what, Request::Unsubscribe { subscription });
    }

    /// The last delivery is behind us. A subscription that core ended meanwhile is cancelled as well.
    pub fn cancelled(&mut self, subscription: SubscriptionId, tag: &Bytes, no_wait: bool) {
        self.shared.subscriptions.remove(&subscription);
        let consumer_tag = ShortStr(tag);
        self.send_unless(no_wait, &Method::BasicCancelOk { consumer_tag });
    }

    /// `basic.get`
    pub fn basic_get(&mut self, queue: &[u8], no_ack: bool) -> Result<(), Failure> {
        let queue = self.queue_name(queue)?;
        self.get(queue, !no_ack);
        Ok(())
    }

    fn get(&mut self, queue: Bytes, leased: bool) {
        let subscription = match self.shared.gets.get(&queue) {
            Some(subscription) => *subscription,
            None => {
                let subscription = self.shared.subscription();
                self.shared.gets.insert(queue.clone(), subscription);
                subscription
            }
        };
        let request = Request::Get {
            subscription,
            queue: queue.clone(),
            leased,
        };
        self.request(What::Get { queue, leased }, request);
    }

    /// The reply to a get.
    pub fn got(&mut self, queue: &Bytes, leased: bool, result: Result<Reply, Refusal>) -> Result<(), Failure> {
        match result {
            Ok(Reply::Got(Some(got))) => {
                let remaining = u32::try_from(got.remaining).unwrap_or(u32::MAX);
                self.deliver_got(&got.delivery, remaining);
                Ok(())
            }
            Ok(Reply::Got(None)) => {
                self.send(&Method::BasicGetEmpty {
                    cluster_id: ShortStr(b""),
                });
                Ok(())
            }
            // The queue was deleted and made again: what was got from the old one is settled apart.
            Err(Refusal::Ended) => {
                self.shared.gets.remove(queue);
                self.get(queue.clone(), leased);
                Ok(())
            }
            other => {
                self.shared.gets.remove(queue);
                let queue = Resource::queue(queue);
                Err(match other {
                    Err(Refusal::InUse) => ChannelError::ExclusiveUse(queue).into(),
                    other => self.refused(&queue, other),
                })
            }
        }
    }

    /// `basic.ack`, `basic.nack`, `basic.reject`
    pub fn basic_settle(&mut self, settling: Settling) -> Result<(), Failure> {
        let Settling {
            delivery_tag,
            multiple,
            action,
        } = settling;
        let (out, tx) = (&mut *self.out, &mut self.channel.tx);
        let each = |tag: u64, settlement: Settlement| match tx {
            Some(tx) => tx.settle(tag, settlement),
            None => out.settle(settlement),
        };
        let unacked = &mut self.channel.unacked;
        let is_known = match (delivery_tag, multiple) {
            (0, true) => {
                unacked.settle_all(action, each);
                true
            }
            (tag, true) => unacked.settle_up_to(tag, action, each),
            (tag, false) => unacked.settle_one(tag, action, each),
        };
        if is_known {
            Ok(())
        } else {
            Err(ChannelError::UnknownDeliveryTag(delivery_tag).into())
        }
    }

    /// `basic.recover`, `basic.recover-async`
    pub fn basic_recover(&mut self, requeue: bool, answers: bool) -> Result<(), Failure> {
        if !requeue {
            return Err(Failure::not_implemented("requeue=false"));
        }
        let out = &mut *self.out;
        self.channel
            .unacked
            .settle_all(Settle::Release, |_, settlement| out.settle(settlement));
        if answers {
            self.answer(&Method::BasicRecoverOk {});
        }
        Ok(())
    }
}

/// The queue of a channel's direct reply-to: it goes with its consumer.
fn reply_queue(name: &Bytes) -> Queue {
    Queue {
        name: name.clone(),
        durable: false,
        exclusive: true,
        auto_delete: true,
        addressable: false,
        limit: Limit::default(),
        policy: None,
        arguments: Bytes::new(),
    }
}
