//! What the channels of a connection share, and [`Context`]: one channel, what it shares, and the outbox,
//! which is what the handlers of methods and replies work on.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rocketbridge_core::attributes::AttributesBuilder;
use rocketbridge_core::boundary::{RequestId, Settle, SubscriptionId};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Exchange, ExchangeKind, Queue, Request};
use rocketbridge_session::Outbox;

use super::bindings::Bind;
use super::channel::{Channel, Headed};
use super::exchanges::predeclared_kind;
use super::names::Names;
use super::publishes::{ChannelKey, Publishes};
use crate::codec::{Method, MethodId};
use crate::config::Config;
use crate::mapping::ExchangeName;
use crate::reply_code::Failure;

/// Exchanges that were published to lately and whose names need not be looked up again.
const EXCHANGES_MAX: usize = 8;

/// Exchanges whose kind is remembered, so that binding to them needs no question.
const KINDS_MAX: usize = 1024;

/// A request, or an answer that waits for its turn behind requests of its channel.
#[derive(Debug)]
pub struct Pending {
    /// The request's number; `None` for an answer that is ready.
    pub id: Option<RequestId>,
    /// Whose it is.
    pub channel: ChannelKey,
    /// The method that asked.
    pub method: MethodId,
    /// What to do with the reply.
    pub what: What,
}

/// What a pending request is for.
#[derive(Debug)]
pub enum What {
    Login {
        mechanism: &'static str,
    },
    DeclareExchange {
        exchange: ExchangeName,
        wanted: Exchange,
        no_wait: bool,
    },
    /// A passive declaration, or one of a reserved name that must exist already.
    FindExchange {
        exchange: ExchangeName,
        wanted: Option<Exchange>,
        no_wait: bool,
    },
    DeleteExchange {
        exchange: ExchangeName,
        no_wait: bool,
    },
    DeclareQueue {
        wanted: Queue,
        no_wait: bool,
    },
    /// The queue of a channel's direct reply-to, right before it is consumed.
    DeclareReplyQueue,
    FindQueue {
        queue: Bytes,
        no_wait: bool,
    },
    DeleteQueue {
        queue: Bytes,
        no_wait: bool,
    },
    PurgeQueue {
        queue: Bytes,
        no_wait: bool,
    },
    /// The kind of the exchange decides how a binding matches; the channel waits for it.
    FindKind(Box<Bind>),
    /// A message to an exchange that was not met before; the channel waits for it.
    FindToPublish(Box<(Headed, Bytes)>),
    Bind(Box<Bind>),
    /// A transaction: the tokens of its publishes, and where to.
    Commit {
        tokens: Range<u64>,
        exchanges: Vec<Arc<ExchangeName>>,
    },
    Consume {
        subscription: SubscriptionId,
        tag: Bytes,
        queue: Bytes,
        no_wait: bool,
    },
    Cancel {
        subscription: SubscriptionId,
        tag: Bytes,
        no_wait: bool,
    },
    Get {
        queue: Bytes,
        leased: bool,
    },
    /// A consumer of a channel that ended.
    Abandon {
        subscription: SubscriptionId,
    },
    /// A method frame whose turn comes behind earlier requests.
    Answer(Bytes),
    /// An error whose turn comes behind earlier requests.
    Fail(Failure),
    ChannelCloseOk,
}

/// A consumer.
#[derive(Debug)]
pub struct Subscription {
    /// Its channel.
    pub channel: ChannelKey,
    /// Its tag.
    pub tag: Bytes,
}

/// Consumers by number. The number is ours and rises, so spreading its bits is hash enough: this is
/// looked up for every delivery.
pub type Subscriptions = HashMap<SubscriptionId, Subscription, BuildHasherDefault<Spread>>;

/// Spreads the bits of one number.
#[derive(Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(32);
    }
}

/// What the channels of a connection share.
#[derive(Debug)]
pub struct Shared {
    /// Server-made names.
    pub names: Names,
    /// Who logged in.
    pub user: Bytes,
    /// Negotiated frame size.
    pub frame_max: u32,
    /// The client wants to be told when a consumer's queue is gone.
    pub cancel_notify: bool,
    /// The client wants to be told when its publishes have to wait.
    pub blocked_notify: bool,
    /// The client understands `connection.close` before it is open.
    pub authentication_failure_close: bool,
    /// Requests in the order of their replies, and answers between them.
    pub pending: VecDeque<Pending>,
    /// Consumers by subscription.
    pub subscriptions: Subscriptions,
    /// What gets from each queue are settled under.
    pub gets: HashMap<Bytes, SubscriptionId>,
    /// Publishes without an outcome.
    pub publishes: Publishes,
    /// Messages to be given back right before their confirms, by token.
    pub returned: VecDeque<(u64, Message)>,
    /// Kinds of exchanges that were declared here.
    pub kinds: HashMap<Bytes, ExchangeKind>,
    /// Where origin blocks are made.
    pub arena: BytesMut,
    /// Where attributes are made.
    pub attributes: AttributesBuilder,
    /// Where foreign messages' envelopes are made.
    pub scratch: BytesMut,
    /// Octets in backlogs.
    pub backlog_bytes: usize,
    /// Octets that transactions hold.
    pub tx_bytes: usize,
    /// Channels with confirms to be told.
    pub confirming: Vec<u16>,
    /// Exchanges that are published to, and whether they are known to be there.
    exchanges: Vec<(Arc<ExchangeName>, bool)>,
    next_request: u64,
    next_subscription: u32,
    next_epoch: u64,
}

impl Shared {
    /// Before login.
    pub fn new(seed: u64) -> Self {
        Self {
            names: Names::new(seed),
            user: Bytes::new(),
            frame_max: 0,
            cancel_notify: false,
            blocked_notify: false,
            authentication_failure_close: false,
            pending: VecDeque::new(),
            subscriptions: Subscriptions::default(),
            gets: HashMap::new(),
            publishes: Publishes::default(),
            returned: VecDeque::new(),
            kinds: HashMap::new(),
            arena: BytesMut::new(),
            attributes: AttributesBuilder::default(),
            scratch: BytesMut::new(),
            backlog_bytes: 0,
            tx_bytes: 0,
            confirming: Vec::new(),
            exchanges: Vec::new(),
            next_request: 0,
            next_subscription: 0,
            next_epoch: 0,
        }
    }

    /// Orders a request and remembers what it is for.
    pub fn request(&mut self, channel: ChannelKey, method: MethodId, what: What, request: Request, out: &mut Outbox) {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.pending.push_back(Pending {
            id: Some(id),
            channel,
            method,
            what,
        });
        out.request(id, request);
    }

    /// The identity of a channel that is being opened.
    pub fn open_channel(&mut self, number: u16) -> ChannelKey {
        self.next_epoch += 1;
        ChannelKey {
            number,
            epoch: self.next_epoch,
        }
    }

    /// The number of a new subscription.
    pub fn subscription(&mut self) -> SubscriptionId {
        let id = SubscriptionId(self.next_subscription);
        self.next_subscription += 1;
        id
    }

    /// An exchange that is published to.
    pub fn exchange(&mut self, name: &[u8]) -> Arc<ExchangeName> {
        if let Some((known, _)) = self.exchanges.iter().find(|(known, _)| known.name == name) {
            return known.clone();
        }
        if self.exchanges.len() == EXCHANGES_MAX {
            self.exchanges.remove(0);
        }
        let exchange = Arc::new(ExchangeName::new(name));
        let is_met = self.kinds.contains_key(name) || predeclared_kind(name).is_some();
        self.exchanges.push((exchange.clone(), is_met));
        exchange
    }

    /// Whether an exchange that is published to was there when this connection last heard of it.
    pub fn is_met(&self, exchange: &Arc<ExchangeName>) -> bool {
        self.exchanges
            .iter()
            .any(|(known, is_met)| *is_met && Arc::ptr_eq(known, exchange))
    }

    /// The exchange is there.
    pub fn meet(&mut self, exchange: &Arc<ExchangeName>) {
        for (known, is_met) in &mut self.exchanges {
            *is_met |= Arc::ptr_eq(known, exchange);
        }
    }

    /// The exchange is not there, or may not be.
    pub fn forget(&mut self, name: &[u8]) {
        self.kinds.remove(name);
        self.exchanges.retain(|(known, _)| known.name != name);
    }

    /// Remembers an exchange's kind.
    pub fn remember_kind(&mut self, exchange: &ExchangeName, kind: ExchangeKind) {
        if self.kinds.len() >= KINDS_MAX {
            self.kinds.clear();
        }
        self.kinds.insert(exchange.name.clone(), kind);
    }

    /// Gives memory back when nothing is on its way.
    pub fn rest(&mut self) {
        if self.publishes.is_empty() && self.arena.capacity() > 0 {
            self.arena = BytesMut::new();
        }
        if self.scratch.capacity() > 4096 {
            self.scratch = BytesMut::new();
        }
    }
}

/// What a handler works on.
pub struct Context<'a> {
    /// The channel.
    pub channel: &'a mut Channel,
    /// What it shares with others.
    pub shared: &'a mut Shared,
    /// Limits.
    pub config: &'a Config,
    /// Bytes and orders.
    pub out: &'a mut Outbox,
    /// The method that is handled, or that the reply answers.
    pub method: MethodId,
}

impl Context<'_> {
    /// Asks core; the reply has its turn on this channel.
    pub fn request(&mut self, what: What, request: Request) {
        self.channel.waiting += 1;
        self.shared
            .request(self.channel.key, self.method, what, request, self.out);
    }

    /// Sends a method behind everything that was asked before on this channel.
    pub fn answer(&mut self, method: &Method<'_>) {
        if self.channel.waiting == 0 {
            return self.send(method);
        }
        let mut frame = BytesMut::new();
        method.encode(self.channel.key.number, &mut frame);
        self.wait_for_turn(What::Answer(frame.freeze()));
    }

    /// Puts something behind everything that was asked before on this channel.
    pub fn wait_for_turn(&mut self, what: What) {
        self.channel.waiting += 1;
        self.shared.pending.push_back(Pending {
            id: None,
            channel: self.channel.key,
            method: self.method,
            what,
        });
    }

    /// Sends a method now: for replies, whose turn it is.
    pub fn send(&mut self, method: &Method<'_>) {
        method.encode(self.channel.key.number, self.out.bytes());
    }

    /// [`send`](Self::send), unless the client did not want it.
    pub fn send_unless(&mut self, no_wait: bool, method: &Method<'_>) {
        if !no_wait {
            self.send(method);
        }
    }

    /// Ends the channel's consumers and gives back what it had.
    pub fn release(&mut self) {
        for (_, subscription) in std::mem::take(&mut self.channel.consumers) {
            self.shared.request(
                self.channel.key,
                self.method,
                What::Abandon { subscription },
                Request::Unsubscribe { subscription },
                self.out,
            );
            self.channel.waiting += 1;
        }
        self.abandon_tx();
        let out = &mut *self.out;
        self.channel
            .unacked
            .settle_all(Settle::Release, |_, settlement| out.settle(settlement));
        self.channel.content = super::channel::Content::Idle;
    }
}
