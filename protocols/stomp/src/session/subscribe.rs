//! SUBSCRIBE and UNSUBSCRIBE.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::address::encode_name;
use rocketbridge_core::boundary::{Settle, SubscriptionId};
use rocketbridge_core::filter::{Names, Sql};
use rocketbridge_core::request::{self, Acknowledge, Binding, Exchange, Matcher, Refusal, Request, Source, Subscribe};
use rocketbridge_session::{Outbox, Unacked};

use super::Failure;
use super::client::{Client, put_receipt};
use super::events::Asked;
use super::groups::Grouped;
use super::queues::Wishes;
use crate::codec::{Command, Frame, Version, put_escaped, put_header};
use crate::config::Config;
use crate::error_message::{Error, Text};
use crate::mapping::inbound::{boolean, number};
use crate::mapping::{
    Destination, TEMPORARY, durable_queue, exchange_binding, is_topic_exchange, native_patterns, topic_pattern,
};

/// How a subscription's deliveries are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckMode {
    /// They are done with once sent.
    Auto,
    /// ACK and NACK are for the message and all before it.
    Client,
    /// ACK and NACK are for the message.
    Individual,
}

/// What a SUBSCRIBE asks for besides its destination.
#[derive(Debug)]
pub(super) struct Plan {
    /// Begins the ids of its deliveries.
    pub tag: Bytes,
    /// Its `subscription` header; 1.0 can do without.
    pub header: Option<Bytes>,
    pub mode: AckMode,
    pub window: Option<u32>,
    pub exclusive: bool,
    pub priority: i32,
    pub is_durable: bool,
    pub receipt: Option<Bytes>,
    pub selector: Option<Sql>,
    /// Others may consume its queue, too.
    pub shares: bool,
}

/// A SUBSCRIBE to an exchange whose type is not known yet.
#[derive(Debug)]
pub(super) struct ToExchange {
    plan: Plan,
    queue: request::Queue,
    name: Bytes,
    key: Bytes,
}

impl ToExchange {
    pub(super) fn failure(self, refusal: &Refusal) -> Failure {
        let error = match refusal {
            Refusal::NotFound { what, .. } => Error::NotFound {
                what,
                name: Text::from(&self.name[..]),
            },
            other => Error::of_refusal(other, &self.name),
        };
        Failure::of(error, Command::Subscribe, self.plan.receipt)
    }
}

/// A subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    pub tag: Bytes,
    pub header: Option<Bytes>,
    pub queue: Bytes,
    pub mode: AckMode,
    /// The beginning of each MESSAGE: command, `subscription`, `message-id` up to its number.
    pub prefix: Bytes,
    /// `ack` up to its number, where it is sent.
    pub ack_prefix: Bytes,
    /// The number of the last delivery.
    pub delivered: u64,
    pub unacked: Unacked,
    /// It has not been given up.
    pub takes: bool,
    /// Giving it up in so many words ends its queue too.
    pub is_durable: bool,
    /// What it leaves out of a queue of its own is nobody's.
    pub selector: Option<Sql>,
    /// It pops messages of a topic instead of consuming a queue.
    pub grouped: Option<Box<Grouped>>,
}

impl Subscription {
    /// Of a connection's subscriptions each has its own `number`, the first 1.
    pub(super) fn new(number: SubscriptionId, plan: Plan, queue: Bytes, version: Version, session: &str) -> Self {
        let mut prefix = BytesMut::from(&b"MESSAGE\n"[..]);
        if let Some(header) = &plan.header {
            put_header(&mut prefix, version, b"subscription", header);
        }
        let mut id = BytesMut::new();
        match version {
            Version::V10 => id.put_slice(&plan.tag),
            version => put_escaped(&mut id, version, &plan.tag),
        }
        id.put_slice(format!("@@{session}@@").as_bytes());
        prefix.put_slice(b"message-id:");
        prefix.put_slice(&id);
        let ack_prefix = if version >= Version::V12 && plan.mode != AckMode::Auto {
            Bytes::from([b"ack:", &id[..]].concat())
        } else {
            Bytes::new()
        };
        Self {
            tag: plan.tag,
            header: plan.header,
            queue,
            mode: plan.mode,
            prefix: prefix.freeze(),
            ack_prefix,
            // Another range for each: were the numbers those of an earlier subscription with the same id, a
            // late ACK would settle a delivery that it does not mean.
            delivered: u64::from(number.0 - 1) << 32,
            unacked: Unacked::default(),
            takes: true,
            is_durable: plan.is_durable,
            selector: plan.selector,
            grouped: None,
        }
    }
}

impl Client {
    pub(super) fn handle_subscribe(&mut self, frame: &Frame, config: &Config, out: &mut Outbox) -> Result<(), Failure> {
        let written = frame
            .header(b"destination")
            .ok_or(Error::NoDestination { command: "SUBSCRIBE" })?;
        let destination = Destination::parse(written, config)?;
        let plan = self.plan(frame, written, &destination, config)?;
        // As in RabbitMQ, what comes behind finds the subscription made.
        self.waits = true;
        let wishes = Wishes::of_frame(frame)?;
        let private = |client: &mut Self, plan: &Plan| -> Result<request::Queue, Error> {
            let name = client.private_queue(frame, written, plan)?;
            Ok(wishes.of_subscription(&name, plan.is_durable))
        };
        match destination {
            Destination::Queue(name) => {
                let has_wishes = wishes != Wishes::default();
                if self.must_declare(&name) || has_wishes {
                    self.declare(&name, &wishes, Command::Subscribe, plan.receipt.clone(), out)?;
                }
                let id = self.next_subscription();
                self.consume(id, plan, name, out);
            }
            Destination::ExistingQueue(name) => {
                let id = self.next_subscription();
                self.consume(id, plan, name, out);
            }
            Destination::Temporary(name) => {
                let queue = self.temporary_queue(&name, config, out)?;
                let synthetic = self.by_tag.get(&[TEMPORARY, &name[..]].concat()[..]).copied();
                let id = self.next_subscription();
                self.consume(id, plan, queue, out);
                if let Some(synthetic) = synthetic {
                    self.give_up(synthetic, None, false, out);
                }
            }
            Destination::Topic(words) => {
                let queue = private(self, &plan)?;
                let matcher = Matcher::Pattern(topic_pattern(&words, config.activemq_wildcards));
                self.consume_bound(plan, queue, vec![(Source::Everything, matcher)], out);
            }
            Destination::Exchange { name, key } if is_topic_exchange(&name) => {
                let queue = private(self, &plan)?;
                let matcher = Matcher::Pattern(topic_pattern(&key, false));
                self.consume_bound(plan, queue, vec![(Source::Topics, matcher)], out);
            }
            Destination::Exchange { name, key } => {
                let queue = private(self, &plan)?;
                // What a binding matches by depends on the exchange's type.
                let request = Request::FindExchange {
                    name: encode_name(&name),
                };
                let asked = Asked::Exchange(Box::new(ToExchange { plan, queue, name, key }));
                self.ask(asked, request, out);
            }
            Destination::Native { topic, query } => {
                let group = parameter(frame, &query, "group");
                let tags = parameter(frame, &query, "tag");
                if let Some(group) = group {
                    return Ok(self.consume_as_group(plan, &group, &topic, tags.as_deref(), out)?);
                }
                let queue = private(self, &plan)?;
                let bindings = native_patterns(&topic, tags.as_deref());
                let bindings = bindings
                    .into_iter()
                    .map(|p| (Source::Everything, Matcher::Pattern(p)))
                    .collect();
                self.consume_bound(plan, queue, bindings, out);
            }
        }
        Ok(())
    }

    fn plan(&self, frame: &Frame, written: &[u8], destination: &Destination, config: &Config) -> Result<Plan, Error> {
        let id = frame.header(b"id");
        if id.is_none() && self.version > Version::V10 {
            return Err(Error::NoHeader {
                command: "SUBSCRIBE",
                header: "id",
            });
        }
        if let Some(id) = id.filter(|id| id.starts_with(TEMPORARY)) {
            return Err(Error::ReservedId(id.into()));
        }
        let tag = tag_of(id, written);
        if self.by_tag.contains_key(&tag) {
            return Err(Error::DuplicateSubscription((&tag[..]).into()));
        }
        if self.subscriptions.len() >= config.subscriptions_max {
            return Err(Error::SubscriptionLimit(config.subscriptions_max));
        }
        let mode = match frame.header(b"ack") {
            None | Some(b"auto") => AckMode::Auto,
            Some(b"client") => AckMode::Client,
            Some(b"client-individual") => AckMode::Individual,
            Some(value) => {
                return Err(Error::InvalidHeader {
                    header: "ack",
                    value: value.into(),
                    expected: "auto, client or client-individual",
                });
            }
        };
        let is_private = matches!(
            destination,
            Destination::Topic(_) | Destination::Exchange { .. } | Destination::Native { .. }
        );
        let is_true = |name: &[u8]| frame.header(name).and_then(boolean) == Some(true);
        let is_named = durable_name(frame).is_some();
        let is_durable = is_private && (is_true(b"durable") || is_true(b"persistent") || is_named);
        if is_durable && id.is_none() && !is_named {
            return Err(Error::DurableWithoutId);
        }
        let selector = frame.header(b"selector").filter(|text| !text.trim_ascii().is_empty());
        let selector = selector.map(compile).transpose()?;
        Ok(Plan {
            header: id.map(Bytes::copy_from_slice),
            tag,
            mode,
            window: self.window(frame, config)?,
            exclusive: is_true(b"activemq.exclusive"),
            priority: priority(frame)?,
            is_durable,
            receipt: frame.copy(b"receipt"),
            selector,
            shares: !is_private,
        })
    }

    /// Most unacknowledged messages; `None` is no limit.
    fn window(&self, frame: &Frame, config: &Config) -> Result<Option<u32>, Error> {
        let mut window = config.prefetch_count;
        for header in ["prefetch-count", "activemq.prefetchSize"] {
            if let Some(text) = frame.header(header.as_bytes()) {
                let count = number(header, text, "a number of messages")?;
                window = u32::try_from(count).unwrap_or(u32::MAX);
                break;
            }
        }
        Ok((window > 0).then_some(window))
    }

    /// The name of the queue of a subscription to a topic or exchange.
    fn private_queue(&self, frame: &Frame, written: &[u8], plan: &Plan) -> Result<Bytes, Error> {
        if let Some(name) = frame.header(b"x-queue-name") {
            return Ok(Bytes::copy_from_slice(name));
        }
        if !plan.is_durable {
            let (seed, number) = (self.seed, self.subscription_count());
            return Ok(Bytes::from(format!("stomp-subscription-{seed:016x}-{number}")));
        }
        Ok(match durable_name(frame) {
            Some(name) => {
                let owner = self.client_id.as_deref().unwrap_or_default();
                durable_queue(written, &[owner, b".", name].concat())
            }
            None => durable_queue(written, plan.header.as_deref().unwrap_or_default()),
        })
    }

    /// Declares a private queue, binds it and consumes it.
    fn consume_bound(&mut self, plan: Plan, queue: request::Queue, bindings: Vec<(Source, Matcher)>, out: &mut Outbox) {
        let (name, receipt) = (queue.name.clone(), plan.receipt.clone());
        let asked = Asked::Declare {
            name: name.clone(),
            wishes: Wishes::default(),
            command: Command::Subscribe,
            receipt: receipt.clone(),
        };
        self.ask(asked, Request::DeclareQueue(queue), out);
        for (source, matcher) in bindings {
            let binding = Binding {
                source,
                matcher,
                destination: request::Destination::Queue(name.clone()),
                arguments: Bytes::new(),
                cookie: Bytes::new(),
            };
            let asked = Asked::Bind {
                name: name.clone(),
                receipt: receipt.clone(),
            };
            self.ask(asked, Request::Bind(binding), out);
        }
        let id = self.next_subscription();
        self.consume(id, plan, name, out);
    }

    /// The exchange that a SUBSCRIBE waits for was found.
    pub(super) fn subscribe_to_exchange(&mut self, waiting: ToExchange, exchange: &Exchange, out: &mut Outbox) {
        let ToExchange { plan, queue, name, key } = waiting;
        let binding = exchange_binding(&name, exchange.kind, &key);
        self.consume_bound(plan, queue, vec![binding], out);
    }

    /// Consumes a queue.
    pub(super) fn consume(&mut self, id: SubscriptionId, mut plan: Plan, queue: Bytes, out: &mut Outbox) {
        let request = Subscribe {
            subscription: id,
            queue: queue.clone(),
            acknowledge: match plan.mode {
                AckMode::Auto => Acknowledge::Never,
                AckMode::Client | AckMode::Individual => Acknowledge::Always,
            },
            window: plan.window,
            exclusive: plan.exclusive,
            priority: plan.priority,
            selector: plan.selector.take_if(|_| plan.shares).map(Box::new),
        };
        let asked = Asked::Subscribe {
            queue: queue.clone(),
            receipt: plan.receipt.clone(),
            is_awaited: self.waits,
        };
        let subscription = Subscription::new(id, plan, queue, self.version, &self.session);
        // At once, since deliveries may come right behind the reply.
        self.by_tag.insert(subscription.tag.clone(), id);
        self.subscriptions.insert(id, subscription);
        self.ask(asked, Request::Subscribe(request), out);
    }

    pub(super) fn handle_unsubscribe(&mut self, frame: &Frame, out: &mut Outbox) -> Result<(), Failure> {
        let (id, destination) = (frame.header(b"id"), frame.header(b"destination"));
        if id.is_none() && (self.version > Version::V10 || destination.is_none()) {
            return Err(Error::NoHeader {
                command: "UNSUBSCRIBE",
                header: "id",
            }
            .into());
        }
        let tag = tag_of(id, destination.unwrap_or_default());
        let found = self.by_tag.get(&tag).copied();
        let Some(subscription) = found else {
            return Err(Error::NotSubscribed(Text::from(id.or(destination).unwrap_or_default())).into());
        };
        let is_true = |name: &[u8]| frame.header(name).and_then(boolean) == Some(true);
        let deletes = is_true(b"durable") || is_true(b"persistent") || durable_name(frame).is_some();
        self.give_up(subscription, frame.copy(b"receipt"), deletes, out);
        Ok(())
    }

    /// Ends a subscription: what its client has not settled goes back at once, what is on its way to a
    /// client that settles nothing is still sent.
    fn give_up(&mut self, id: SubscriptionId, receipt: Option<Bytes>, deletes: bool, out: &mut Outbox) {
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            return;
        };
        subscription.takes = false;
        let deletes = (deletes && subscription.is_durable).then(|| subscription.queue.clone());
        let mut unacked = std::mem::take(&mut subscription.unacked);
        self.by_tag.remove(&subscription.tag.clone());
        if subscription.grouped.is_some() {
            if self.stop_popping(id, true, out) {
                self.subscriptions.remove(&id);
            }
            if let Some(receipt) = receipt {
                put_receipt(self.version, &receipt, out.bytes());
            }
            return;
        }
        let last = deletes.is_none();
        let asked = Asked::Unsubscribe {
            id,
            receipt: if last { receipt.clone() } else { None },
        };
        self.ask(asked, Request::Unsubscribe { subscription: id }, out);
        unacked.settle_all(Settle::Release, |_, settlement| out.settle(settlement));
        if let Some(name) = deletes {
            let request = Request::DeleteQueue {
                name,
                if_unused: false,
                if_empty: false,
            };
            self.ask(Asked::Delete { receipt }, request, out);
        }
    }
}

/// What the ids of a subscription's deliveries begin with; 1.0 may tell subscriptions by destination.
fn tag_of(id: Option<&[u8]>, destination: &[u8]) -> Bytes {
    match id {
        Some(id) => Bytes::from([b"T_", id].concat()),
        None => Bytes::from([b"Q_", destination].concat()),
    }
}

/// ActiveMQ's and Artemis' names for a durable subscription.
fn durable_name(frame: &Frame) -> Option<&[u8]> {
    let names: [&[u8]; 3] = [
        b"activemq.subscriptionName",
        b"activemq.subcriptionName",
        b"durable-subscription-name",
    ];
    names
        .into_iter()
        .find_map(|name| frame.header(name))
        .filter(|name| !name.is_empty())
}

fn compile(text: &[u8]) -> Result<Sql, Error> {
    let text = std::str::from_utf8(text).map_err(|_| Error::NotText("selector"))?;
    Sql::compile(text, Names::Jms).map_err(|error| Error::Selector(error.to_string()))
}

fn priority(frame: &Frame) -> Result<i32, Error> {
    let Some(text) = frame.header(b"x-priority") else {
        return Ok(0);
    };
    let number = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| Error::InvalidHeader {
        header: "x-priority",
        value: text.into(),
        expected: "a number",
    })
}

/// A parameter of a RocketMQ topic: a header, or behind the question mark.
fn parameter(frame: &Frame, query: &[u8], name: &str) -> Option<Bytes> {
    if let Some(value) = frame.header(name.as_bytes()) {
        return Some(Bytes::copy_from_slice(value));
    }
    query.split(|b| *b == b'&').find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(Bytes::copy_from_slice(value))
    })
}
