//! Exchanges, queues and bindings: declaring, deleting, binding.

use std::sync::Arc;

use bytes::Bytes;

use crate::address::encode_name;
use crate::engine::change::Change;
use crate::engine::entries::EntryList;
use crate::engine::group::limit;
use crate::engine::links::LinkId;
use crate::engine::queue::Queue;
use crate::engine::router::QueueId;
use crate::engine::state::State;
use crate::engine::trie::LEVELS_MAX;
use crate::request::{self, Binding, Destination, Exchange, Matcher, QueueState, Refusal, Reply, Source};
use crate::store::pages::ListId;

fn no_exchange(name: &Bytes) -> Refusal {
    Refusal::NotFound {
        what: "exchange",
        name: name.clone(),
    }
}

pub(crate) fn check_pattern(matcher: &Matcher) -> Result<(), Refusal> {
    match matcher {
        Matcher::Pattern(pattern) if pattern.levels.len() > LEVELS_MAX => {
            Err(Refusal::Invalid(format!("a pattern has at most {LEVELS_MAX} levels")))
        }
        _ => Ok(()),
    }
}

impl State {
    // --- exchanges --------------------------------------------------------------------------------

    pub(crate) fn declare_exchange(&mut self, exchange: Exchange) -> Result<Reply, Refusal> {
        if let Some(existing) = self.router.exchange(&exchange.name) {
            return Ok(Reply::Exchange(Box::new(existing.clone())));
        }
        if self.router.exchange_count() >= self.config.exchanges_max {
            return Err(limit("exchanges", self.config.exchanges_max));
        }
        if exchange.durable {
            self.change(&Change::Exchange(exchange.clone()));
        }
        self.remember_keys(&exchange);
        self.router.add_exchange(exchange.clone());
        Ok(Reply::Exchange(Box::new(exchange)))
    }

    pub(crate) fn find_exchange(&self, name: &Bytes) -> Result<Reply, Refusal> {
        let exchange = self.router.exchange(name).ok_or_else(|| no_exchange(name))?;
        Ok(Reply::Exchange(Box::new(exchange.clone())))
    }

    pub(crate) fn delete_exchange(&mut self, name: &Bytes, if_unused: bool) -> Result<Reply, Refusal> {
        let exchange = self.router.exchange(name).ok_or_else(|| no_exchange(name))?;
        let durable = exchange.durable;
        if if_unused && self.router.bindings_from(name) > 0 {
            return Err(Refusal::InUse);
        }
        if durable {
            self.change(&Change::ExchangeGone(name.clone()));
        }
        self.forget_keys(name);
        let gone = self.router.remove_exchange(name);
        self.drop_unbound_exchanges(gone);
        Ok(Reply::Done)
    }

    /// Auto-delete exchanges go with their last binding, and others that only they were bound to with them.
    fn drop_unbound_exchanges(&mut self, mut gone: Vec<Arc<Binding>>) {
        while let Some(binding) = gone.pop() {
            let Source::Exchange(name) = &binding.source else {
                continue;
            };
            let Some(exchange) = self.router.exchange(name) else {
                continue;
            };
            if !exchange.auto_delete || self.router.bindings_from(name) > 0 {
                continue;
            }
            if exchange.durable {
                self.change(&Change::ExchangeGone(name.clone()));
            }
            self.forget_keys(name);
            gone.extend(self.router.remove_exchange(name));
        }
    }

    // --- queues -----------------------------------------------------------------------------------

    pub(crate) fn queue_state(&mut self, id: QueueId, created: bool) -> Reply {
        self.expire(id);
        let queue = self.queue(id).expect("the caller found it");
        Reply::Queue(Box::new(QueueState {
            queue: queue.spec.to_queue(),
            ready: queue.ready(),
            consumers: queue.consumers().len() as u32,
            created,
        }))
    }

    pub(crate) fn declare_queue(&mut self, link: LinkId, mut spec: request::Queue) -> Result<Reply, Refusal> {
        match self.queue_for(link, &spec.name) {
            Ok(id) => {
                self.used(id);
                return Ok(self.queue_state(id, false));
            }
            Err(Refusal::NotFound { .. }) => {}
            Err(refusal) => return Err(refusal),
        }
        self.check_queue_limit()?;
        if self.queues.find(&encode_name(&spec.name)).is_some() {
            return Err(Refusal::Invalid(
                "another queue's name is too much like this one".to_owned(),
            ));
        }
        let exclusive = spec.exclusive;
        spec.durable &= !exclusive;
        let id = self.new_queue_id();
        if spec.durable {
            self.change(&Change::Queue {
                id,
                queue: spec.clone(),
            });
        }
        self.put_queue(id, spec);
        if exclusive {
            self.queue(id).expect("just made").set_owner(Some(link));
            if let Some(link) = self.link(link) {
                link.exclusive.push(id);
            }
        }
        self.used(id);
        Ok(self.queue_state(id, true))
    }

    pub(crate) fn check_queue_limit(&self) -> Result<(), Refusal> {
        if self.queues.len() >= self.config.queues_max {
            return Err(limit("queues", self.config.queues_max));
        }
        Ok(())
    }

    pub(crate) fn new_queue_id(&mut self) -> QueueId {
        let id = self.queues.next_id();
        self.queues.use_up_to(id + 1);
        id
    }

    /// Puts a queue that was declared, now or before a restart.
    pub(crate) fn put_queue(&mut self, id: QueueId, spec: request::Queue) {
        self.router.queue_added();
        self.count_policy(spec.policy.as_deref(), true);
        if let Some(queue) = self.queue(id) {
            // A checkpoint knew it already.
            let before = std::mem::replace(&mut queue.spec, spec.into());
            self.count_policy(before.policy(), false);
            self.queues.name(id);
            return;
        }
        let entries = EntryList::new(ListId::queue(id, 0), &self.pages);
        self.queues.insert(id, Queue::new(spec, entries));
    }

    pub(crate) fn find_queue(&mut self, link: LinkId, name: &Bytes) -> Result<Reply, Refusal> {
        let id = self.queue_for(link, name)?;
        Ok(self.queue_state(id, false))
    }

    pub(crate) fn delete_queue_of(
        &mut self,
        link: LinkId,
        name: &Bytes,
        if_unused: bool,
        if_empty: bool,
    ) -> Result<Reply, Refusal> {
        let id = self.queue_for(link, name)?;
        self.expire(id);
        let queue = self.queue(id).expect("just found");
        if if_unused && !queue.consumers().is_empty() {
            return Err(Refusal::InUse);
        }
        if if_empty && queue.ready() > 0 {
            return Err(Refusal::NotEmpty);
        }
        let count = queue.ready();
        self.delete_queue(id);
        Ok(Reply::Count(count))
    }

    /// Removes a queue with its bindings, messages and consumers.
    pub(crate) fn delete_queue(&mut self, id: QueueId) {
        self.end_consumers(id);
        self.forget_deadlines(id);
        let Some(mut queue) = self.queues.remove(id) else {
            return;
        };
        self.count_policy(queue.policy(), false);
        if queue.spec.durable {
            self.change(&Change::QueueGone { id });
        }
        self.settled.retain(|(queue, ..)| *queue != id);
        let nothing = EntryList::new(ListId::queue(id, 0), &self.pages);
        self.dispose(queue.take_levels(nothing));
        let gone = self.router.remove_queue(id);
        self.drop_unbound_exchanges(gone);
        if let Some(owner) = queue.owner().and_then(|owner| self.link(owner)) {
            owner.exclusive.retain(|exclusive| *exclusive != id);
        }
    }

    // --- bindings ---------------------------------------------------------------------------------

    pub(crate) fn bind(&mut self, link: LinkId, binding: Binding) -> Result<Reply, Refusal> {
        let (queue, durable) = self.check_ends(link, &binding)?;
        check_pattern(&binding.matcher)?;
        self.check_binding_limit()?;
        if self.router.bind(&binding, queue) && durable {
            self.change(&Change::Bound { queue, binding });
        }
        Ok(Reply::Done)
    }

    pub(crate) fn check_binding_limit(&self) -> Result<(), Refusal> {
        if self.router.binding_count() >= self.config.bindings_max {
            return Err(limit("bindings", self.config.bindings_max));
        }
        Ok(())
    }

    pub(crate) fn unbind(&mut self, link: LinkId, binding: Binding) -> Result<Reply, Refusal> {
        let (queue, durable) = self.check_ends(link, &binding)?;
        if self.router.unbind(&binding) {
            if durable {
                let binding = binding.clone();
                self.change(&Change::Unbound { queue, binding });
            }
            self.drop_unbound_exchanges(vec![Arc::new(binding)]);
        }
        Ok(Reply::Done)
    }

    /// Both ends must exist; the binding is durable when both are.
    fn check_ends(&mut self, link: LinkId, binding: &Binding) -> Result<(Option<QueueId>, bool), Refusal> {
        let source_durable = match &binding.source {
            Source::Exchange(name) => self.router.exchange(name).ok_or_else(|| no_exchange(name))?.durable,
            Source::Topics | Source::Everything => true,
        };
        match &binding.destination {
            Destination::Queue(name) => {
                let id = self.queue_for(link, name)?;
                let durable = self.queue(id).is_some_and(|queue| queue.spec.durable);
                Ok((Some(id), durable && source_durable))
            }
            Destination::Exchange(name) => {
                let exchange = self.router.exchange(name).ok_or_else(|| no_exchange(name))?;
                Ok((None, exchange.durable && source_durable))
            }
            Destination::Topics => Ok((None, source_durable)),
        }
    }
}
