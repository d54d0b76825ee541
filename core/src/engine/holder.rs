//! Holders: named sessions that outlive their connection. Each has one queue, named by a NUL byte and the
//! session's name, so that no client can meet it by chance; and it may be a member of queues that sessions
//! share, named by two NUL bytes. What is published when a client is lost, its will, is kept here too, so that
//! it is published whatever became of the connection.

use bytes::Bytes;

use crate::address::is_reserved;
use crate::boundary::{Notice, Publish};
use crate::engine::change::Change;
use crate::engine::dedup::Scope;
use crate::engine::links::LinkId;
use crate::engine::republish::{Done, Revived};
use crate::engine::router::QueueId;
use crate::engine::state::{STEPS_MAX, State};
use crate::engine::topology::check_pattern;
use crate::request::{self, Attach, Binding, Destination, Refusal, Reply, Share, Will};
use crate::time::Millis;

/// A named session.
pub(crate) struct Holder {
    queue: QueueId,
    /// The connection that has it now.
    link: Option<LinkId>,
    durable: bool,
    keep: Millis,
    /// When it ends, while nobody has it.
    ends_at: Option<Millis>,
    /// The shared queues it is a member of, each with its cookie.
    shares: Vec<(QueueId, Bytes)>,
}

/// What is published for a client that is lost.
pub(crate) struct PendingWill {
    pub will: Box<Will>,
    /// When, if it is lost already.
    pub at: Option<Millis>,
}

/// The name of a session's queue.
pub(crate) fn queue_name(holder: &[u8]) -> Bytes {
    [b"\0", holder].concat().into()
}

/// Whether only sessions have queues of that name, each its own and those it shares.
pub(crate) fn is_of_sessions(name: &[u8]) -> bool {
    name.first() == Some(&0)
}

impl State {
    /// Whether a queue is of the session that the link holds: its own, or one that it is a member of.
    pub(crate) fn is_in_session(&mut self, link: LinkId, queue: QueueId) -> bool {
        let Some(name) = self.link(link).and_then(|link| link.holder.clone()) else {
            return false;
        };
        self.holders
            .get(&name)
            .is_some_and(|holder| holder.queue == queue || holder.shares.iter().any(|(shared, _)| *shared == queue))
    }

    pub(crate) fn attach(&mut self, link: LinkId, mut attach: Attach) -> Result<Reply, Refusal> {
        if attach.holder.first() == Some(&0) {
            return Err(Refusal::Invalid("a session's name begins with no zero byte".to_owned()));
        }
        if attach.will.as_ref().is_some_and(|will| is_reserved(&will.topic)) {
            return Err(Refusal::AccessRefused);
        }
        self.release_holder(link);
        self.take_from_other(&attach.holder);
        // A session whose queue is missing has nothing left to go on with: it begins anew.
        let is_whole = |holder: &Holder| holder.durable && self.queues.get(holder.queue).is_some();
        let resumed = !attach.clean && self.holders.get(&attach.holder).is_some_and(is_whole);
        if resumed {
            // Its client is back in time.
            self.forget_will(&attach.holder);
        } else {
            self.check_queue_limit()?;
            self.end_holder(&attach.holder);
            self.make_holder(&attach);
        }
        if let Some(will) = attach.will.take() {
            let holder = attach.holder.clone();
            self.change(&Change::Will {
                holder: holder.clone(),
                will: will.clone(),
            });
            self.wills.insert(holder, PendingWill { will, at: None });
        }
        let holder = self.holders.get_mut(&attach.holder).expect("resumed or just made");
        // A durable session that its client now wants to end with the connection is kept for no time.
        let changed = holder.keep != attach.keep;
        holder.link = Some(link);
        holder.keep = attach.keep;
        if let Some(at) = holder.ends_at.take() {
            self.holder_ends.remove(&(at, attach.holder.clone()));
        }
        let (queue, durable, shares) = (holder.queue, holder.durable, holder.shares.clone());
        if changed && durable {
            self.change(&Change::Holder {
                name: attach.holder.clone(),
                keep: attach.keep.0,
            });
        }
        if let Some(queue) = self.queue(queue) {
            queue.set_owner(Some(link));
        }
        if let Some(link) = self.link(link) {
            link.holder = Some(attach.holder);
        }
        let cookies = self
            .router
            .bindings_of(queue)
            .map(|(_, cookie)| cookie.clone())
            .collect();
        let shares = shares
            .into_iter()
            .filter_map(|(id, cookie)| Some((self.queue(id)?.spec.to_name(), cookie)))
            .collect();
        Ok(Reply::Attached {
            present: resumed,
            cookies,
            shares,
        })
    }

    pub(crate) fn detach(&mut self, link: LinkId, keep: Millis, keep_will: bool) -> Reply {
        let Some(name) = self.link(link).and_then(|link| link.holder.clone()) else {
            return Reply::Done;
        };
        if !keep_will {
            self.forget_will(&name);
        }
        if let Some(holder) = self.holders.get_mut(&name) {
            let changed = std::mem::replace(&mut holder.keep, keep) != keep;
            if holder.durable && keep.0 > 0 && changed {
                self.change(&Change::Holder { name, keep: keep.0 });
            }
        }
        self.release_holder(link);
        Reply::Done
    }

    fn make_holder(&mut self, attach: &Attach) {
        let spec = request::Queue {
            name: queue_name(&attach.holder),
            durable: attach.durable,
            exclusive: false,
            auto_delete: false,
            addressable: false,
            limit: attach.limit,
            policy: None,
            arguments: Bytes::new(),
        };
        let queue = self.new_queue_id();
        if attach.durable {
            self.change(&Change::Queue {
                id: queue,
                queue: spec.clone(),
            });
            self.change(&Change::Holder {
                name: attach.holder.clone(),
                keep: attach.keep.0,
            });
        }
        self.put_queue(queue, spec);
        self.queue(queue).expect("just made").of_holder = true;
        self.put_holder(attach.holder.clone(), queue, attach.durable, attach.keep);
    }

    fn put_holder(&mut self, name: Bytes, queue: QueueId, durable: bool, keep: Millis) {
        let holder = Holder {
            queue,
            link: None,
            durable,
            keep,
            ends_at: None,
            shares: Vec::new(),
        };
        self.holders.insert(name, holder);
    }

    /// Another connection has it: that one is told and loses it.
    fn take_from_other(&mut self, name: &Bytes) {
        let Some(other) = self.holders.get(name).and_then(|holder| holder.link) else {
            return;
        };
        self.release_holder(other);
        self.notify(other, Notice::HolderTaken);
    }

    /// The link has no session any more: what it had leased returns, and the session ends now or waits.
    pub(crate) fn release_holder(&mut self, link: LinkId) {
        let Some(name) = self.link(link).and_then(|link| link.holder.take()) else {
            return;
        };
        let now = self.now.mono;
        let Some(holder) = self.holders.get_mut(&name).filter(|holder| holder.link == Some(link)) else {
            return;
        };
        holder.link = None;
        let (queue, keep) = (holder.queue, holder.keep);
        let lives_on = holder.durable && keep.0 > 0;
        let ends_at = now + keep;
        holder.ends_at = Some(ends_at);
        let shares = holder.shares.clone();
        for (queue, _) in [(queue, Bytes::new())].into_iter().chain(shares) {
            self.end_subscriptions_to(link, queue);
        }
        if let Some(queue) = self.queue(queue) {
            queue.set_owner(None);
        }
        if !lives_on {
            self.end_holder(&name);
            return;
        }
        self.holder_ends.insert((ends_at, name.clone()));
        self.fire_will_in_time(&name);
    }

    fn end_subscriptions_to(&mut self, link: LinkId, queue: QueueId) {
        let Some(state) = self.link(link) else { return };
        let ended: Vec<_> = state
            .subscriptions
            .iter()
            .filter(|(_, s)| s.queue == queue)
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            if let Some(subscription) = self.link(link).and_then(|link| link.subscriptions.remove(&id)) {
                self.end_subscription(link, id, &subscription);
            }
        }
    }

    fn end_holder(&mut self, name: &Bytes) {
        let Some(holder) = self.holders.remove(name) else {
            return;
        };
        self.dedups.forget(&Scope::Holder(name.clone()));
        if let Some(at) = holder.ends_at {
            self.holder_ends.remove(&(at, name.clone()));
        }
        if holder.durable {
            self.change(&Change::HolderGone(name.clone()));
        }
        for (queue, _) in holder.shares {
            self.lose_member(queue);
        }
        self.delete_queue(holder.queue);
        self.fire_will(name);
    }

    /// Sessions that nobody came back for end, and wills whose time has come are published. Gives whether
    /// there is more to do. Called about once a second.
    pub(crate) fn end_expired_holders(&mut self) -> bool {
        let now = self.now.mono;
        for _ in 0..STEPS_MAX / 8 {
            let due = [self.will_times.first(), self.holder_ends.first()];
            let [will, end] = due.map(|first| first.filter(|(at, _)| *at <= now).cloned());
            match (will, end) {
                (Some((_, name)), _) => self.fire_will(&name),
                (None, Some((_, name))) => self.end_holder(&name),
                (None, None) => {
                    self.changed = false;
                    return false;
                }
            }
        }
        self.changed = false;
        true
    }

    // --- wills ------------------------------------------------------------------------------------

    fn fire_will_in_time(&mut self, name: &Bytes) {
        let now = self.now.mono;
        let Some(pending) = self.wills.get_mut(name) else {
            return;
        };
        if pending.will.delay == Millis(0) {
            return self.fire_will(name);
        }
        let at = now + pending.will.delay;
        pending.at = Some(at);
        self.will_times.insert((at, name.clone()));
    }

    fn forget_will(&mut self, name: &Bytes) {
        if self.take_will(name).is_some() {
            self.change(&Change::WillGone(name.clone()));
        }
    }

    fn take_will(&mut self, name: &Bytes) -> Option<PendingWill> {
        let pending = self.wills.remove(name)?;
        if let Some(at) = pending.at {
            self.will_times.remove(&(at, name.clone()));
        }
        Some(pending)
    }

    /// Publishes the will of a client that is lost. While the broker goes down it stays in the log and is
    /// published after the next start.
    fn fire_will(&mut self, name: &Bytes) {
        if self.closing {
            return;
        }
        let Some(pending) = self.take_will(name) else { return };
        let gone = Change::WillGone(name.clone());
        let revived = Revived::new(publish_of(*pending.will), self.config.store_host);
        if let Err(reject) = self.republish(revived, Done::Change(gone.clone())) {
            tracing::warn!(session = %name.escape_ascii(), ?reject, "a will cannot be published");
            self.change_quietly(&gone);
        }
    }

    // --- shared queues ----------------------------------------------------------------------------

    /// Makes the link's session a member of a shared queue, and the queue if it is the first.
    pub(crate) fn share(&mut self, link: LinkId, share: Share) -> Result<Reply, Refusal> {
        let name = self.link(link).and_then(|link| link.holder.clone());
        let Some(name) = name.filter(|name| self.holders.contains_key(name)) else {
            return Err(Refusal::Invalid("only a named session shares queues".to_owned()));
        };
        if !share.queue.starts_with(b"\0\0") {
            return Err(Refusal::Invalid(
                "a shared queue's name begins with two zero bytes".to_owned(),
            ));
        }
        check_pattern(&share.matcher)?;
        let id = match self.queue_id(&share.queue) {
            Some(id) => id,
            None => self.make_shared(&share)?,
        };
        let holder = self.holders.get_mut(&name).expect("just seen");
        let durable = holder.durable;
        match holder.shares.iter_mut().find(|(known, _)| *known == id) {
            Some((_, cookie)) => *cookie = share.cookie.clone(),
            None => {
                holder.shares.push((id, share.cookie.clone()));
                if let Some(queue) = self.queue(id) {
                    queue.extra_mut().members += 1;
                }
            }
        }
        if durable {
            self.change(&Change::Member {
                holder: name,
                id,
                cookie: share.cookie,
            });
        }
        Ok(Reply::Done)
    }

    fn make_shared(&mut self, share: &Share) -> Result<QueueId, Refusal> {
        self.check_queue_limit()?;
        self.check_binding_limit()?;
        let spec = request::Queue {
            name: share.queue.clone(),
            durable: true,
            exclusive: false,
            auto_delete: false,
            addressable: false,
            limit: share.limit,
            policy: None,
            arguments: Bytes::new(),
        };
        let id = self.new_queue_id();
        self.change(&Change::Queue {
            id,
            queue: spec.clone(),
        });
        self.put_queue(id, spec);
        self.queue(id).expect("just made").of_holder = true;
        let binding = Binding {
            source: share.source.clone(),
            matcher: share.matcher.clone(),
            destination: Destination::Queue(share.queue.clone()),
            arguments: Bytes::new(),
            cookie: Bytes::new(),
        };
        self.router.bind(&binding, Some(id));
        self.change(&Change::Bound {
            queue: Some(id),
            binding,
        });
        Ok(id)
    }

    pub(crate) fn unshare(&mut self, link: LinkId, name: &Bytes) -> Result<Reply, Refusal> {
        let holder = self.link(link).and_then(|link| link.holder.clone());
        let (Some(holder), Some(id)) = (holder, self.queue_id(name)) else {
            return Ok(Reply::Done);
        };
        self.end_subscriptions_to(link, id);
        if self.holders.get(&holder).is_some_and(|holder| holder.durable) {
            self.change(&Change::MemberGone {
                holder: holder.clone(),
                id,
            });
        }
        self.leave_shared(&holder, id);
        Ok(Reply::Done)
    }

    /// The session is no member of the queue any more.
    pub(crate) fn leave_shared(&mut self, name: &Bytes, id: QueueId) {
        let Some(holder) = self.holders.get_mut(name) else {
            return;
        };
        let before = holder.shares.len();
        holder.shares.retain(|(queue, _)| *queue != id);
        if holder.shares.len() < before {
            self.lose_member(id);
        }
    }

    fn lose_member(&mut self, id: QueueId) {
        let Some(queue) = self.queue(id) else { return };
        let members = &mut queue.extra_mut().members;
        *members = members.saturating_sub(1);
        if *members == 0 && !self.replaying {
            self.delete_queue(id);
        }
    }

    // --- replay -----------------------------------------------------------------------------------

    pub(crate) fn replay_holder(&mut self, name: Bytes, keep: Millis) {
        if let Some(holder) = self.holders.get_mut(&name) {
            holder.keep = keep;
            return;
        }
        if let Some(queue) = self.queue_id(&queue_name(&name)) {
            self.queue(queue).expect("it has a name").of_holder = true;
            self.put_holder(name, queue, true, keep);
        }
    }

    pub(crate) fn replay_holder_gone(&mut self, name: &Bytes) {
        if let Some(holder) = self.holders.remove(name) {
            self.dedups.forget(&Scope::Holder(name.clone()));
            for (queue, _) in holder.shares {
                self.lose_member(queue);
            }
        }
    }

    pub(crate) fn replay_member(&mut self, name: &Bytes, id: QueueId, cookie: Bytes) {
        let Some(holder) = self.holders.get_mut(name) else {
            return;
        };
        match holder.shares.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) => *known = cookie,
            None => {
                holder.shares.push((id, cookie));
                if let Some(queue) = self.queue(id) {
                    queue.extra_mut().members += 1;
                }
            }
        }
    }

    /// After a replay every session waits for its client, as long as it may. Sessions that were not to
    /// outlive their connections are gone: so are shared queues that had no other members, and their wills
    /// are published.
    pub(crate) fn replay_holders_done(&mut self) {
        let now = self.now.mono;
        for (name, holder) in &mut self.holders {
            let ends_at = now + holder.keep;
            holder.ends_at = Some(ends_at);
            self.holder_ends.insert((ends_at, name.clone()));
        }
        for (name, pending) in &mut self.wills {
            let is_kept = self.holders.contains_key(name);
            let at = now + if is_kept { pending.will.delay } else { Millis(0) };
            pending.at = Some(at);
            self.will_times.insert((at, name.clone()));
        }
        for (_, queue) in self.queues.iter_mut() {
            queue.of_holder |= queue.spec.name.starts_with(b"\0\0");
        }
    }

    /// Shared queues whose members were all gone with the last life of the broker go.
    pub(crate) fn drop_deserted(&mut self) {
        let deserted: Vec<QueueId> = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.spec.name.starts_with(b"\0\0") && queue.members() == 0)
            .map(|(id, _)| id)
            .collect();
        for id in deserted {
            self.delete_queue(id);
        }
    }

    // --- checkpoint -------------------------------------------------------------------------------

    /// Whoever has a session or a will.
    pub(crate) fn holder_names(&self) -> Vec<Bytes> {
        let gone = self.wills.keys().filter(|name| !self.holders.contains_key(*name));
        self.holders.keys().chain(gone).cloned().collect()
    }

    /// Puts a session with its memberships, will and notes into a checkpoint; gives whether all are put.
    pub(crate) fn checkpoint_holder(&self, name: Option<Bytes>, put: &mut dyn FnMut(&Change)) -> bool {
        let Some(name) = name else { return true };
        if let Some(holder) = self.holders.get(&name).filter(|holder| holder.durable) {
            put(&Change::Holder {
                name: name.clone(),
                keep: holder.keep.0,
            });
            for (id, cookie) in &holder.shares {
                put(&Change::Member {
                    holder: name.clone(),
                    id: *id,
                    cookie: cookie.clone(),
                });
            }
            let queue = self.queues.get(holder.queue);
            for (sequence, note) in queue.iter().flat_map(|queue| queue.notes()) {
                put(&Change::Note {
                    id: holder.queue,
                    sequence: *sequence,
                    note: *note,
                });
            }
        }
        if let Some(pending) = self.wills.get(&name) {
            put(&Change::Will {
                holder: name,
                will: pending.will.clone(),
            });
        }
        false
    }
}

fn publish_of(will: Will) -> Publish {
    Publish {
        token: 0,
        entry: will.entry,
        topic: will.topic,
        key: will.key,
        body: will.body,
        attributes: will.attributes,
        format: will.format,
        origin: will.origin,
        persistent: will.persistent,
        retain: will.retain,
        ..Publish::default()
    }
}

#[cfg(test)]
mod tests;
