//! A connected client.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::attributes::AttributesBuilder;
use rocketbridge_core::boundary::{RequestId, SubscriptionId};
use rocketbridge_core::request::Request;
use rocketbridge_core::time::Now;
use rocketbridge_session::Outbox;

use super::Failure;
use super::events::Asked;
use super::send::{LastTarget, Pending};
use super::subscribe::Subscription;
use super::transaction::Transactions;
use crate::codec::{Command, END_OF_FRAME, Frame, Version, put_command, put_header};
use crate::config::Config;
use crate::error_message::Error;
use crate::heart_beat::Agreed;

/// A map whose hashes nobody outside can choose.
pub(super) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Unanswered requests at which frames are not taken any more.
const ASKED_MAX: usize = 1024;

/// Messages without an outcome at which frames are not taken any more.
const PENDING_MAX: usize = 64 * 1024;

/// Queues that are remembered as declared; beyond it they are declared again.
const DECLARED_MAX: usize = 10_000;

/// The state of a connected client.
pub(super) struct Client {
    pub(super) version: Version,
    pub(super) heart_beat: Agreed,
    /// The session's name.
    pub(super) session: String,
    pub(super) seed: u64,
    pub(super) user: Bytes,
    /// ActiveMQ's name for who owns durable subscriptions.
    pub(super) client_id: Option<Bytes>,
    pub(super) attributes: AttributesBuilder,
    /// What becomes part of publishes is written here and split off.
    pub(super) arena: BytesMut,
    /// A delivery from another protocol is put together here.
    pub(super) foreign: BytesMut,
    pub(super) last_target: Option<LastTarget>,
    pub(super) next_token: u64,
    /// Messages without an outcome, by token.
    pub(super) pending: VecDeque<Pending>,
    next_request: u64,
    /// What core has not answered, in order.
    pub(super) asked: VecDeque<Asked>,
    /// A request's answer decides how to go on: no frame is taken meanwhile.
    pub(super) waits: bool,
    /// Pops that wait, which are not among what is asked.
    pub(super) pops: Map<RequestId, SubscriptionId>,
    pub(super) next_pop: u64,
    next_subscription: u32,
    pub(super) subscriptions: Map<SubscriptionId, Subscription>,
    /// Those that take messages, by what their deliveries' ids begin with.
    pub(super) by_tag: Map<Bytes, SubscriptionId>,
    /// Queues that this connection declared.
    declared: HashSet<Bytes, foldhash::fast::RandomState>,
    /// Temporary queues by the client's word for them.
    pub(super) temporary: Map<Bytes, Bytes>,
    pub(super) transactions: Transactions,
    /// DISCONNECT came, maybe with a receipt.
    leaving: Option<Option<Bytes>>,
}

impl Client {
    pub(super) fn new(version: Version, heart_beat: Agreed, seed: u64, user: Bytes, client_id: Option<Bytes>) -> Self {
        Self {
            version,
            heart_beat,
            session: format!("session-{seed:016x}"),
            seed,
            user,
            client_id,
            attributes: AttributesBuilder::default(),
            arena: BytesMut::new(),
            foreign: BytesMut::new(),
            last_target: None,
            next_token: 0,
            pending: VecDeque::new(),
            next_request: 1,
            asked: VecDeque::new(),
            waits: false,
            pops: Map::default(),
            next_pop: 0,
            next_subscription: 1,
            subscriptions: Map::default(),
            by_tag: Map::default(),
            declared: HashSet::default(),
            temporary: Map::default(),
            transactions: Transactions::default(),
            leaving: None,
        }
    }

    /// Whether the next frame may be handled now.
    pub(super) fn takes_frames(&self) -> bool {
        self.leaving.is_none() && !self.waits && self.asked.len() < ASKED_MAX && self.pending.len() < PENDING_MAX
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// All that the client asked for is answered.
    pub(super) fn is_done(&self) -> bool {
        self.asked.is_empty() && self.pending.is_empty() && self.pops.is_empty()
    }

    /// The receipt of DISCONNECT: everything before it was done.
    pub(super) fn say_goodbye(&mut self, out: &mut Outbox) {
        if let Some(Some(receipt)) = self.leaving.take() {
            put_receipt(self.version, &receipt, out.bytes());
        }
        self.leaving = Some(None);
    }

    /// Everything that came is handled: gives memory back that an idle client does not need.
    pub(super) fn rest(&mut self) {
        const KEPT_MAX: usize = 4096;
        if self.foreign.capacity() > KEPT_MAX {
            self.foreign = BytesMut::new();
        }
        if self.pending.is_empty() && self.pending.capacity() > KEPT_MAX {
            self.pending = VecDeque::new();
        }
    }

    pub(super) fn handle_frame(
        &mut self,
        now: Now,
        frame: &Frame,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        match frame.command {
            Command::Send => return self.handle_send(now, frame, config, out),
            Command::Subscribe => return self.handle_subscribe(frame, config, out),
            Command::Unsubscribe => return self.handle_unsubscribe(frame, out),
            Command::Commit => return self.handle_commit(frame, out),
            Command::Disconnect => {
                self.leaving = Some(frame.copy(b"receipt"));
                self.stop_all_popping(true, out);
                return Ok(());
            }
            Command::Ack => self.handle_ack(frame, config, out)?,
            Command::Nack => self.handle_nack(frame, config, out)?,
            Command::Begin => self.handle_begin(frame, config)?,
            Command::Abort => self.handle_abort(frame)?,
            Command::Connect | Command::Stomp => return Err(Error::AlreadyConnected.into()),
            Command::Connected | Command::Message | Command::Receipt | Command::Error | Command::Unknown => {
                return Err(Error::Command(frame.command_text().into()).into());
            }
        }
        if let Some(receipt) = frame.header(b"receipt") {
            put_receipt(self.version, receipt, out.bytes());
        }
        Ok(())
    }

    pub(super) fn ask(&mut self, asked: Asked, request: Request, out: &mut Outbox) {
        self.asked.push_back(asked);
        out.request(RequestId(self.next_request), request);
        self.next_request += 1;
    }

    /// Subscriptions that were ever made.
    pub(super) fn subscription_count(&self) -> u32 {
        self.next_subscription
    }

    pub(super) fn next_subscription(&mut self) -> SubscriptionId {
        self.next_subscription += 1;
        SubscriptionId(self.next_subscription - 1)
    }

    /// Whether a queue is not known to be declared by this connection; from now on it is.
    pub(super) fn must_declare(&mut self, queue: &Bytes) -> bool {
        if self.declared.contains(queue) {
            return false;
        }
        if self.declared.len() >= DECLARED_MAX {
            self.declared.clear();
        }
        self.declared.insert(queue.clone());
        true
    }

    /// Keeps a few bytes for as long as a message has no outcome; many are cut from one block.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Bytes {
        const BLOCK: usize = 4096;
        if self.arena.capacity() - self.arena.len() < bytes.len() {
            self.arena.reserve(bytes.len().max(BLOCK));
        }
        self.arena.put_slice(bytes);
        self.arena.split().freeze()
    }
}

/// RECEIPT.
pub(super) fn put_receipt(version: Version, receipt: &[u8], out: &mut BytesMut) {
    put_command(out, Command::Receipt);
    put_header(out, version, b"receipt-id", receipt);
    out.put_u8(b'\n');
    out.put_slice(END_OF_FRAME);
}
