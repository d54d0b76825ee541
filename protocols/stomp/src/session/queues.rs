//! Queues that destinations stand for: declared with what the frame's headers ask for.

use bytes::Bytes;
use rocketbridge_core::boundary::SubscriptionId;
use rocketbridge_core::request::{self, Limit, QueueState, Request};
use rocketbridge_session::Outbox;

use super::Failure;
use super::arguments::Arguments;
use super::client::Client;
use super::events::Asked;
use super::subscribe::{AckMode, Plan};
use crate::codec::{Command, Frame};
use crate::config::Config;
use crate::error_message::{Error, Text};
use crate::mapping::inbound::boolean;
use crate::mapping::{Destination, TEMPORARY};

/// What the headers of a frame say about its queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub durable: Option<bool>,
    pub auto_delete: Option<bool>,
    pub exclusive: Option<bool>,
    pub arguments: Arguments,
}

impl Wishes {
    pub(super) fn of_frame(frame: &Frame) -> Result<Self, Error> {
        let flag = |name: &'static str| match frame.header(name.as_bytes()) {
            None => Ok(None),
            Some(value) => boolean(value).map(Some).ok_or_else(|| Error::InvalidHeader {
                header: name,
                value: Text::from(value),
                expected: "true or false",
            }),
        };
        Ok(Self {
            durable: flag("durable")?,
            auto_delete: flag("auto-delete")?,
            exclusive: flag("exclusive")?,
            arguments: Arguments::of_frame(frame)?,
        })
    }

    /// The queue of `/queue/name`.
    fn named(&self, name: &Bytes) -> request::Queue {
        let exclusive = self.exclusive.unwrap_or(false);
        request::Queue {
            name: name.clone(),
            durable: self.durable.unwrap_or(true) && !exclusive,
            exclusive,
            auto_delete: self.auto_delete.unwrap_or(false),
            addressable: !exclusive,
            limit: self.arguments.limit,
            policy: self.arguments.policy(),
            arguments: self.arguments.encoded.clone(),
        }
    }

    /// The queue of a subscription to a topic or exchange: it goes with it, unless it is durable.
    pub(super) fn of_subscription(&self, name: &Bytes, is_durable: bool) -> request::Queue {
        request::Queue {
            name: name.clone(),
            durable: is_durable,
            exclusive: !is_durable,
            auto_delete: if is_durable {
                self.auto_delete.unwrap_or(false)
            } else {
                true
            },
            addressable: false,
            limit: self.arguments.limit,
            policy: self.arguments.policy(),
            arguments: self.arguments.encoded.clone(),
        }
    }

    /// Compares with a queue that was there already what the frame named.
    pub(super) fn check(&self, state: &QueueState) -> Result<(), Error> {
        if state.created {
            return Ok(());
        }
        let queue = &state.queue;
        for (what, wanted, current) in [
            ("durable", self.durable, queue.durable),
            ("auto_delete", self.auto_delete, queue.auto_delete),
            ("exclusive", self.exclusive, queue.exclusive),
        ] {
            if let Some(wanted) = wanted
                && wanted != current
            {
                return Err(Error::Precondition(format!(
                    "inequivalent arg '{what}' for queue '{}' in vhost '/': received '{wanted}' but current is \
                     '{current}'",
                    Text::from(&queue.name[..])
                )));
            }
        }
        if !self.arguments.encoded.is_empty() && self.arguments.encoded != queue.arguments {
            return self.arguments.check(queue);
        }
        Ok(())
    }
}

impl Client {
    /// Declares the queue of `/queue/name` for a frame.
    pub(super) fn declare(
        &mut self,
        name: &Bytes,
        wishes: &Wishes,
        command: Command,
        receipt: Option<Bytes>,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let asked = Asked::Declare {
            name: name.clone(),
            wishes: wishes.clone(),
            command,
            receipt,
        };
        self.ask(asked, Request::DeclareQueue(wishes.named(name)), out);
        Ok(())
    }

    /// This connection's queue of that word, made when it is needed. It goes with the connection.
    pub(super) fn temporary_queue(&mut self, name: &[u8], config: &Config, out: &mut Outbox) -> Result<Bytes, Failure> {
        if let Some(queue) = self.temporary.get(name) {
            return Ok(queue.clone());
        }
        if self.temporary.len() >= config.subscriptions_max {
            return Err(Error::SubscriptionLimit(config.subscriptions_max).into());
        }
        let queue = Bytes::from(format!("stomp-temp-{:016x}-{}", self.seed, self.temporary.len() + 1));
        self.temporary.insert(Bytes::copy_from_slice(name), queue.clone());
        let declared = request::Queue {
            name: queue.clone(),
            durable: false,
            exclusive: true,
            auto_delete: false,
            addressable: false,
            limit: Limit::NONE,
            policy: None,
            arguments: Bytes::new(),
        };
        let asked = Asked::Declare {
            name: queue.clone(),
            wishes: Wishes::default(),
            command: Command::Send,
            receipt: None,
        };
        self.ask(asked, Request::DeclareQueue(declared), out);
        Ok(queue)
    }

    /// The temporary queue of a `reply-to`. What comes there is delivered without having been subscribed
    /// to, under the destination's own name.
    pub(super) fn reply_queue(&mut self, name: &[u8], config: &Config, out: &mut Outbox) -> Result<Bytes, Failure> {
        Destination::parse(&[TEMPORARY, name].concat(), config)?;
        let queue = self.temporary_queue(name, config, out)?;
        let is_consumed = self.subscriptions.values().any(|s| s.queue == queue && s.takes);
        if !is_consumed {
            let tag = Bytes::from([TEMPORARY, name].concat());
            let plan = Plan {
                header: Some(tag.clone()),
                tag,
                mode: AckMode::Auto,
                window: None,
                exclusive: false,
                priority: 0,
                is_durable: false,
                receipt: None,
                selector: None,
                shares: false,
            };
            let id: SubscriptionId = self.next_subscription();
            self.consume(id, plan, queue.clone(), out);
        }
        Ok(queue)
    }
}
