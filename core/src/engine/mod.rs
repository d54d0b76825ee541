//! The embedded engine: a [`Broker`] over one log.
//!
//! All of its state is one struct behind one lock ([`state`]), taken once per batch. Each hold ends by
//! handing events to inboxes; wake-ups and writing happen after the lock is released ([`writer`]). What a
//! message passes: [`publish`] (routed by [`router`], encoded into the log), [`consume`] or [`group`].

mod attempts;
mod batch;
mod change;
mod checkpoint;
mod config;
mod consume;
mod dedup;
mod entries;
mod group;
mod holder;
mod links;
mod maintenance;
mod moving;
mod offsets;
mod policy;
mod pop;
mod progress;
mod publish;
mod queue;
mod queues;
mod ranges;
mod replay;
mod republish;
mod retained;
mod retry;
mod router;
mod select;
mod state;
mod targets;
mod timers;
mod topology;
mod transactions;
mod trie;
mod wheel;
mod writer;

pub(crate) use change::Change;
pub use config::{Config, Flush, User};
pub use group::tag_hash;
pub use moving::Pinned;
pub use writer::StoreFailed;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::boundary::{Admission, Broker, Link, Peer, Publish, Reject, RequestId, Settlement};
use crate::engine::links::LinkId;
use crate::engine::maintenance::Maintenance;
use crate::engine::replay::Replay;
use crate::engine::state::{After, State, Work};
use crate::engine::writer::Writer;
use crate::inbox::Inbox;
use crate::request::{Commit, Credentials, Refusal, Reply, Request, Totals};
use crate::store::log::Log;
use crate::store::pages::{PAGE_LEN, Pages};
use crate::store::record::Position;
use crate::store::recovery::{self, RecoveryError};
use crate::store::storage::{FileStorage, Storage};
use crate::time::{Clock, Millis};

/// Decodes and encodes back a change: for the fuzzer.
pub(crate) fn decode_change(bytes: &[u8]) {
    if let Some(change) = Change::decode(bytes) {
        let mut encoded = Vec::new();
        change.encode(&mut encoded);
        assert_eq!(Change::decode(&encoded), Some(change));
    }
}

/// Holds of one tick, so that whoever calls it may do something else in between.
const TURNS_MAX: usize = 16;

/// Why a data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data directory is in use by another process")]
    Locked,
    /// The folder cannot be made or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its log cannot be read back.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

/// The embedded engine. Clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    storage: Arc<dyn Storage>,
    segment_size: u64,
    /// Where this life of the broker began to write.
    log_begin: Position,
    maintenance: Mutex<Maintenance>,
    closing: Mutex<bool>,
    closed: Condvar,
    /// There is a maintenance thread; without one whoever comes by does its work.
    has_maintenance: AtomicBool,
    /// It was woken because there is something to do.
    maintenance_called: AtomicBool,
    clock: Arc<dyn Clock>,
    writer: Writer,
    /// Woken when something is due earlier than was known.
    alarm: Mutex<Option<Waker>>,
}

impl Engine {
    /// Opens the data folder, making it when there is none, and reads its log back.
    ///
    /// # Errors
    /// [`OpenError`] says whether somebody else has it, or what is wrong with it.
    pub fn open(folder: &Path, config: Config, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let storage = FileStorage::open(folder).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked,
            _ => OpenError::Io(error),
        })?;
        let segment_size = storage.segment_size();
        Self::open_storage(Arc::new(storage), segment_size, config, clock)
    }

    /// As [`open`](Self::open), on any storage.
    pub fn open_storage(
        storage: Arc<dyn Storage>,
        segment_size: u64,
        config: Config,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let now = clock.now();
        let config = Arc::new(config);
        // Records are applied to a state whose log is not the real one yet: where that goes on is known
        // only when everything was read.
        let placeholder = Log::new(Arc::clone(&storage), 0, segment_size, config.tail_cache, now.wall);
        let pages = Arc::new(Pages::new(
            Arc::clone(&storage),
            segment_size,
            config.index_cache / PAGE_LEN,
        ));
        let mut state = State::new(Arc::clone(&config), placeholder, pages, now);
        state.replaying = true;
        for (topic, window) in &config.dedup_topics {
            state.dedups.remember(topic, window);
        }
        let checkpoint = checkpoint::find(&*storage)?;
        let mut maintenance = Maintenance::default();
        if let Some((number, trailer)) = checkpoint {
            maintenance = Maintenance::recovered(number, trailer.start);
            state.read_checkpoint(&*storage, number, &trailer)?;
        }
        let mut replay = Replay::default();
        // Batches are taken as long as there is room for some; several may find that at once.
        let unwritten_max = (config.unsynced_max + config.body_max + 16 * Commit::BYTES_MAX) as u64;
        let from = checkpoint.map(|(_, trailer)| trailer);
        let recovered = recovery::replay(&*storage, segment_size, unwritten_max, from, |header, record| {
            replay.apply(&mut state, header, &record);
        })?;
        replay.finish(&mut state);
        state.replaying = false;
        let stored_at = now.wall.max(recovered.last_stored_at);
        state.stored_at = stored_at;
        let log = Log::new(
            Arc::clone(&storage),
            recovered.next_segment,
            segment_size,
            config.tail_cache,
            stored_at,
        );
        state.log = log.going_on(&mut state.log);
        state.pops.begin(state.log.end().0);
        state.drop_deserted();
        for exchange in config.exchanges.clone() {
            let _ = state.declare_exchange(exchange);
        }
        state.recovered();
        state.changed = false;
        let writer = Writer::new(Arc::clone(&storage), segment_size, config.flush, state.log.synced());
        Ok(Self(Arc::new(Shared {
            log_begin: state.log.end(),
            state: Mutex::new(state),
            storage,
            segment_size,
            maintenance: Mutex::new(maintenance),
            closing: Mutex::new(false),
            closed: Condvar::new(),
            has_maintenance: AtomicBool::new(false),
            maintenance_called: AtomicBool::new(false),
            clock,
            writer,
            alarm: Mutex::new(None),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn maintenance(&self) -> MutexGuard<'_, Maintenance> {
        self.0.maintenance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One hold of the engine's lock, and what follows from it.
    fn hold<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        state.begin(self.0.clock.now());
        let result = act(&mut state);
        let mut after = state.finish();
        drop(state);
        loop {
            let is_called = after.long_work && self.call_maintenance();
            let work = after.work || (after.long_work && !is_called);
            self.follow_up(after);
            if !work {
                return result;
            }
            let mut state = self.lock();
            state.begin(self.0.clock.now());
            let mut work = state.work.pop_front();
            if !is_called {
                work = work.or_else(|| state.long_work.pop_front());
            }
            if let Some(work) = work {
                state.go_on(work);
            }
            after = state.finish();
        }
    }

    /// Leaves the long work to the maintenance thread; `false` if there is none.
    fn call_maintenance(&self) -> bool {
        let has_maintenance = self.0.has_maintenance.load(Ordering::Acquire);
        if has_maintenance && !self.0.maintenance_called.swap(true, Ordering::AcqRel) {
            self.0.closed.notify_one();
        }
        has_maintenance
    }

    fn follow_up(&self, after: After) {
        for waker in after.wakers {
            waker.wake();
        }
        if after.deadline_moved
            && let Some(alarm) = &*self.0.alarm.lock().unwrap_or_else(PoisonError::into_inner)
        {
            alarm.wake_by_ref();
        }
        if after.unwritten {
            self.wrote_to_log(after.awaited, after.unsynced);
        }
        if after.held_back {
            self.0.writer.request_sync();
        }
    }

    /// Sessions whose time is up end, and wills are published. To be called about once a second.
    pub fn tick(&self) {
        self.fire();
        while self.hold(State::end_expired_holders) {}
        self.hold(State::sweep_retained);
        self.hold(|state| state.dedups.expire(state.now));
    }

    /// Delivers what is due, as far as that takes no longer than a few milliseconds. To be called when
    /// [`next_deadline`](Self::next_deadline) has come.
    pub fn fire(&self) {
        for _ in 0..TURNS_MAX {
            if !self.hold(|state| state.check_halves() | state.turn_timers()) {
                break;
            }
        }
        for _ in 0..TURNS_MAX {
            if !self.hold(State::end_leases) {
                break;
            }
        }
    }

    /// When [`fire`](Self::fire) has something to do next, on the monotonic clock.
    pub fn next_deadline(&self) -> Option<Millis> {
        let state = self.lock();
        let now = self.0.clock.now();
        let elapsed = state.timers.elapsed(now);
        let check = state.halves.next().map(|at| now.mono + at.since(elapsed));
        let leases = state.pops.next();
        let own = [state.timers.next(now), check, state.next_queue_deadline(), leases];
        own.into_iter().flatten().min()
    }

    /// Who is to be woken when the next deadline has become an earlier one.
    pub fn set_alarm(&self, alarm: Waker) {
        *self.0.alarm.lock().unwrap_or_else(PoisonError::into_inner) = Some(alarm);
    }

    /// Timed messages that wait, and the memory that it takes to know of them, bytes.
    pub fn timers(&self) -> (u64, usize) {
        let state = self.lock();
        (state.timers.len(), state.timers.memory())
    }

    /// How many half messages wait for the end of their transactions.
    pub fn half_count(&self) -> usize {
        self.lock().halves.len()
    }

    /// How much there is.
    pub fn totals(&self) -> Totals {
        self.lock().totals()
    }

    /// Stops taking messages and notes what was delivered; [`run_sync`](Self::run_sync) makes everything
    /// durable and returns.
    pub fn close(&self) {
        // What is read back at the next start is short then.
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "no checkpoint was taken");
        }
        self.hold(|state| {
            if std::mem::replace(&mut state.closing, true) {
                return;
            }
            state.write_settled();
            let delivered = state
                .queues
                .iter()
                .filter(|(_, queue)| queue.spec.durable)
                .flat_map(|(id, queue)| queue.levels().map(move |list| (id, list.maybe_delivered_below())))
                .collect();
            state.change_quietly(&Change::Stopped { delivered });
        });
        self.finish_writing();
    }
}

impl Broker for Engine {
    type Link = EngineLink;

    fn open(&self, peer: Peer, inbox: Inbox) -> EngineLink {
        let id = self.lock().add_link(peer, inbox);
        EngineLink {
            engine: self.clone(),
            id,
            destinations: Vec::new(),
        }
    }
}

/// One connection's side of the engine.
pub struct EngineLink {
    engine: Engine,
    id: LinkId,
    /// Scratch of [`State::publish_one`].
    destinations: Vec<(u32, u64)>,
}

impl Link for EngineLink {
    fn publish(&mut self, batch: &mut VecDeque<Publish>) -> Admission {
        let (id, destinations) = (self.id, &mut self.destinations);
        self.engine.hold(|state| {
            while let Some(publish) = batch.front() {
                if state.log.unsynced() + publish.body.len() > state.config.unsynced_max
                    && state.log.unsynced() > 0
                    && !state.closing
                {
                    state.block(id);
                    return Admission::Partial;
                }
                if let Some(shortage) = state.shortage.filter(|_| !state.closing) {
                    if publish.waits {
                        state.block(id);
                        return Admission::Partial;
                    }
                    state.reject(id, publish.token, Reject::Shortage(shortage));
                    batch.pop_front();
                    continue;
                }
                state.publish_one(id, publish, destinations);
                batch.pop_front();
            }
            Admission::All
        })
    }

    fn settle(&mut self, batch: &mut VecDeque<Settlement>) {
        let id = self.id;
        self.engine.hold(|state| {
            for settlement in batch.drain(..) {
                state.settle_one(id, settlement);
            }
        });
    }

    fn request(&mut self, id: RequestId, request: Request) {
        let link = self.id;
        self.engine.hold(|state| state.request(link, id, request));
    }

    fn is_busy(&mut self) -> bool {
        let link = self.id;
        self.engine.hold(|state| {
            let busy = state.log.unsynced() > state.config.unsynced_max && !state.closing;
            if busy {
                state.block(link);
            }
            busy
        })
    }

    fn cancel(&mut self, id: RequestId) {
        let link = self.id;
        self.engine.hold(|state| {
            state.cancel_pull(link, id);
            state.cancel_pop(link, id);
        });
    }

    fn resume(&mut self) {
        let link = self.id;
        self.engine.hold(|state| state.resume(link));
    }
}

impl Drop for EngineLink {
    fn drop(&mut self) {
        let link = self.id;
        self.engine.hold(|state| state.end_link(link));
    }
}

/// Whether a request is a promise, even when nothing had to be done for it: who declares what is there already is
/// told that it is there.
fn makes_something(request: &Request) -> bool {
    matches!(
        request,
        Request::DeclareExchange(_)
            | Request::DeclareQueue(_)
            | Request::DeclareTopic { .. }
            | Request::Bind(_)
            | Request::Unbind(_)
            | Request::Attach(_)
    )
}

fn is_of_something_durable(reply: &Reply) -> bool {
    match reply {
        Reply::Exchange(exchange) => exchange.durable,
        Reply::Queue(state) => state.queue.durable,
        Reply::Attached { present, .. } => *present,
        _ => true,
    }
}

impl State {
    /// Goes on with what an earlier hold left.
    fn go_on(&mut self, work: Work) {
        match work {
            Work::Deliver(queue) => self.deliver(queue),
            Work::Resume(link) => self.resume(link),
            Work::Recall => self.go_on_recalling(),
            Work::Finish(queue) => self.finish_slice(queue),
            Work::Return(queue) => self.return_slice(queue),
            Work::Bury(queue) => self.bury_slice(queue),
            Work::Limit(queue) => self.enforce_limit(queue),
            Work::Dispose => self.dispose_slice(),
            // Every hold looks at deadlines when it ends.
            Work::Deadlines => {}
        }
    }

    /// Carries out one request; exactly one reply answers it, now or later.
    fn request(&mut self, link: LinkId, id: RequestId, request: Request) {
        self.changed = false;
        let logged_in = self.link(link).is_some_and(|link| link.logged_in);
        let makes = makes_something(&request);
        let result = match request {
            Request::Login(credentials) => self.login(link, &credentials),
            _ if !logged_in => Err(Refusal::AccessRefused),
            _ if self.closing => Err(Refusal::Closed),
            Request::DeclareExchange(exchange) => self.declare_exchange(exchange),
            Request::FindExchange { name } => self.find_exchange(&name),
            Request::DeleteExchange { name, if_unused } => self.delete_exchange(&name, if_unused),
            Request::DeclareQueue(queue) => self.declare_queue(link, queue),
            Request::FindQueue { name } => self.find_queue(link, &name),
            Request::DeleteQueue {
                name,
                if_unused,
                if_empty,
            } => self.delete_queue_of(link, &name, if_unused, if_empty),
            Request::AlterQueue { name, limit, policy } => self.alter_queue(link, &name, limit, policy),
            Request::PurgeQueue { name } => self.purge(link, &name),
            Request::Bind(binding) => self.bind(link, binding),
            Request::Unbind(binding) => self.unbind(link, binding),
            Request::Subscribe(subscribe) => self.subscribe(link, subscribe),
            Request::Unsubscribe { subscription } => self.unsubscribe(link, subscription),
            Request::Get {
                subscription,
                queue,
                leased,
            } => self.get(link, subscription, &queue, leased),
            Request::Commit(commit) => self.commit(link, commit),
            Request::TakeBack { position, unique_key } => self.take_back(position, &unique_key),
            Request::Attach(attach) => self.attach(link, attach),
            Request::Detach { keep, keep_will } => Ok(self.detach(link, keep, keep_will)),
            Request::Note { subscription, notes } => self.note(link, subscription, &notes),
            Request::Share(share) => self.share(link, share),
            Request::Unshare { queue } => self.unshare(link, &queue),
            Request::Recall { queue, pattern } => self.recall(link, &queue, pattern),
            Request::FindTopic { topic } => self.find_topic(&topic),
            Request::DeclareTopic { topic, queues } => self.declare_topic(&topic, queues),
            Request::JoinProducers { group, .. } => self.join_producers(link, group),
            Request::LeaveProducers { group } => {
                self.leave_producers(link, &group);
                Ok(Reply::Done)
            }
            Request::EndTransaction(end) => self.end_transaction(&end),
            Request::GiveBack(back) => self.give_back_message(&back),
            Request::SetRetry { group, retry } => self.set_retry(group, retry),
            Request::JoinConsumers(join) => self.join(link, join),
            Request::LeaveConsumers { group, client_id } => {
                self.leave(link, &group, &client_id);
                // It said goodbye: others need not wait until its locks expire.
                self.unlock_all(&group, &client_id);
                Ok(Reply::Done)
            }
            Request::Members { group } => Ok(self.members(&group)),
            Request::Pull(pull) => return self.pull(link, id, pull),
            Request::Pop(pop) => return self.pop(link, id, pop),
            Request::AckPopped(ack) => self.ack_popped(&ack),
            Request::ChangeInvisible(change) => self.change_invisible(&change),
            Request::ResetOffset {
                group,
                topic,
                queue_id,
                to,
            } => self.reset_offset(&group, &topic, queue_id, to),
            Request::Lag { group, topic } => self.lag(&group, &topic),
            Request::CommittedOffset { group, topic, queue_id } => Ok(self.committed_offset(&group, &topic, queue_id)),
            Request::CommitOffset {
                group,
                topic,
                queue_id,
                offset,
            } => self.commit_offset(&group, &topic, queue_id, offset),
            Request::Bounds { topic, queue_id } => self.bounds(&topic, queue_id),
            Request::SearchOffset { topic, queue_id, at } => self.search_offset(&topic, queue_id, at),
            Request::LockQueues {
                group,
                client_id,
                queues,
            } => self.lock_queues(&group, &client_id, queues),
            Request::UnlockQueues {
                group,
                client_id,
                queues,
            } => {
                self.unlock_queues(&group, &client_id, &queues);
                Ok(Reply::Done)
            }
            Request::View { position } => self.view(position),
            Request::Totals => Ok(Reply::Totals(self.totals())),
        };
        if makes && result.as_ref().is_ok_and(is_of_something_durable) {
            self.rests_on_changes();
        }
        self.reply(link, id, result);
    }

    fn totals(&self) -> Totals {
        Totals {
            waiting_sessions: self.holder_ends.len() as u64,
            last_values: self.retained.len() as u64,
            kept_messages: self.log.pins() + self.memory.entries(),
            dropped_messages: self.dropped,
        }
    }

    fn login(&mut self, link: LinkId, credentials: &Credentials) -> Result<Reply, Refusal> {
        let config = Arc::clone(&self.config);
        let Some(link) = self.link(link) else {
            return Err(Refusal::Closed);
        };
        let local = link.peer.remote.ip().to_canonical().is_loopback();
        let known = match credentials {
            Credentials::Anonymous => config.anonymous_remote || (local && config.anonymous_loopback),
            Credentials::Password { user, password } => config
                .users
                .iter()
                .any(|known| known.name == *user && known.password == *password && (local || !known.loopback_only)),
        };
        link.logged_in = known;
        if known {
            Ok(Reply::Done)
        } else {
            Err(Refusal::AccessRefused)
        }
    }

    /// A connection is gone: leases return, exclusive queues go, groups lose a member.
    fn end_link(&mut self, id: LinkId) {
        self.release_holder(id);
        let Some(state) = self.link(id) else { return };
        let subscriptions = std::mem::take(&mut state.subscriptions);
        let exclusive = std::mem::take(&mut state.exclusive);
        let native = state.has_native().map(std::mem::take).unwrap_or_default();
        for (subscription_id, subscription) in subscriptions {
            self.end_subscription(id, subscription_id, &subscription);
        }
        for queue in exclusive {
            self.delete_queue(queue);
        }
        for (group, client) in native.memberships {
            self.leave(id, &group, &client);
        }
        for group in native.producing {
            self.leave_producers(id, &group);
        }
        for (request, pulling) in native.pulls {
            self.stop_waiting(id, request, &pulling);
        }
        for (request, pop) in native.pops {
            self.stop_popping(id, request, &pop);
        }
        self.changed = false;
        self.remove_link(id);
    }
}
