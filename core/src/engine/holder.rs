//! Holders: named sessions that outlive their connection. Each has one queue, named by a NUL byte and the
//! session's name, so that no client can meet it by chance.

use bytes::Bytes;

use crate::boundary::Notice;
use crate::engine::change::Change;
use crate::engine::router::QueueId;
use crate::engine::state::{LinkId, State};
use crate::request::{self, Attach, Refusal, Reply};
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
}

/// The name of a session's queue.
pub(crate) fn queue_name(holder: &[u8]) -> Bytes {
    [b"\0", holder].concat().into()
}

impl State {
    pub(crate) fn attach(&mut self, link: LinkId, attach: Attach) -> Result<Reply, Refusal> {
        self.release_holder(link);
        self.take_from_other(&attach.holder);
        let resumed = self.holders.get(&attach.holder).is_some_and(|holder| holder.durable) && !attach.clean;
        if !resumed {
            self.check_queue_limit()?;
            self.end_holder(&attach.holder);
            self.make_holder(&attach);
        }
        let holder = self.holders.get_mut(&attach.holder).expect("resumed or just made");
        // A durable session that its client now wants to end with the connection is kept for no time.
        let changed = holder.keep != attach.keep;
        holder.link = Some(link);
        holder.keep = attach.keep;
        holder.ends_at = None;
        let queue = holder.queue;
        if changed && holder.durable {
            self.change(&Change::Holder {
                name: attach.holder.clone(),
                keep: attach.keep.0,
            });
        }
        if let Some(queue) = self.queue(queue) {
            queue.owner = Some(link);
        }
        if let Some(link) = self.link(link) {
            link.holder = Some(attach.holder);
        }
        let cookies = self
            .router
            .bindings_of(queue)
            .map(|(_, cookie)| cookie.clone())
            .collect();
        Ok(Reply::Attached {
            present: resumed,
            cookies,
        })
    }

    pub(crate) fn detach(&mut self, link: LinkId, keep: Millis) -> Reply {
        let Some(name) = self.link(link).and_then(|link| link.holder.clone()) else {
            return Reply::Done;
        };
        if let Some(holder) = self.holders.get_mut(&name) {
            holder.keep = keep;
            if holder.durable && keep.0 > 0 {
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
        let holder = Holder {
            queue,
            link: None,
            durable: attach.durable,
            keep: attach.keep,
            ends_at: None,
        };
        self.holders.insert(attach.holder.clone(), holder);
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
        let queue = holder.queue;
        let lives_on = holder.durable && holder.keep.0 > 0;
        holder.ends_at = Some(now + holder.keep);
        self.end_subscriptions_to(link, queue);
        if let Some(queue) = self.queue(queue) {
            queue.owner = None;
        }
        if !lives_on {
            self.end_holder(&name);
        }
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
        if holder.durable {
            self.change(&Change::HolderGone(name.clone()));
        }
        self.delete_queue(holder.queue);
    }

    /// Sessions that nobody came back for end. Called about once a second.
    pub(crate) fn end_expired_holders(&mut self) {
        let now = self.now.mono;
        let expired: Vec<Bytes> = self
            .holders
            .iter()
            .filter(|(_, holder)| holder.link.is_none() && holder.ends_at.is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in expired {
            self.end_holder(&name);
        }
        self.changed = false;
    }

    // --- replay -----------------------------------------------------------------------------------

    pub(crate) fn replay_holder(&mut self, name: Bytes, keep: Millis) {
        if let Some(holder) = self.holders.get_mut(&name) {
            holder.keep = keep;
            return;
        }
        if let Some(queue) = self.queue_ids.get(&queue_name(&name)).copied() {
            self.queue(queue).expect("it has a name").of_holder = true;
            let holder = Holder {
                queue,
                link: None,
                durable: true,
                keep,
                ends_at: None,
            };
            self.holders.insert(name, holder);
        }
    }

    /// After a replay every session waits for its client, as long as it may.
    pub(crate) fn replay_holders_done(&mut self) {
        let now = self.now.mono;
        for holder in self.holders.values_mut() {
            holder.ends_at = Some(now + holder.keep);
        }
    }
}
