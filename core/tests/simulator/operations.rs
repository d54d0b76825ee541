//! Random operations of every kind, each with what the model makes of it.

use std::collections::{BTreeSet, VecDeque};

use rocketbridge_core::boundary::*;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{self, *};
use rocketbridge_core::time::Millis;

use crate::model::{self, Effect, Flag, Holder, Item, Lease, Name, Published, Refused, Spec, State};
use crate::names::*;
use crate::world::{Awaited, Expect, Expected, Got, Sub, Why, World, check};

const LINKS_MAX: usize = 4;

/// How long sessions are kept.
const KEEP: u64 = 9000;

impl World {
    /// One random operation.
    pub fn operate(&mut self) {
        let links = self.living();
        if links.is_empty() || (links.len() < LINKS_MAX && self.random.once_in(12)) {
            return self.add_link();
        }
        let at = *self.random.pick(&links);
        match self.random.below(100) {
            0..27 => self.publish(at),
            27..30 => self.commit(at),
            30..46 => self.settle(at),
            46..52 => self.subscribe(at),
            52..54 => self.unsubscribe(at),
            54..59 => self.get(at),
            59..64 => self.declare_queue(at),
            64..66 => self.delete_queue(at),
            66..68 => self.find_queue(at),
            68..70 => self.purge(at),
            70..73 => self.declare_exchange(at),
            73..74 => self.delete_exchange(at),
            74..79 => self.bind(at),
            79..81 => self.unbind(at),
            81..84 => self.attach(at),
            84..85 => self.detach(at),
            85..88 => self.pull(at),
            88..91 => self.offsets(at),
            91..92 => self.join(at),
            92..93 => self.declare_topic(at),
            93..95 => self.drop_link(at),
            95..97 => self.pass_time(),
            97..99 => self.maintain(),
            _ => self.cancel_pulls(at),
        }
        self.observe();
    }

    // --- publishing -------------------------------------------------------------------------------

    pub fn publish(&mut self, at: usize) {
        if self.link(at).blocked {
            return;
        }
        let count = [1, 1, 1, 2, 3, 8][self.random.index(6)];
        let mut batch = VecDeque::new();
        let mut ids = Vec::new();
        for _ in 0..count {
            let id = self.catalog.messages.len();
            let publish = self.new_publish(at, id);
            ids.push((id, publish.token));
            batch.push_back(publish);
        }
        let described: Vec<Described> = batch.iter().map(Described::of).collect();
        self.note(|| format!("link {at} publishes {ids:?}: {described:?}"));
        let admission = self.link(at).link.publish(&mut batch);
        let taken = count - batch.len();
        check!(
            self,
            (admission == Admission::All) == batch.is_empty(),
            "{admission:?} of {count}"
        );
        if admission == Admission::Partial {
            self.link(at).blocked = true;
        }
        for ((id, token), described) in ids.into_iter().zip(described).take(taken) {
            let (fate, returned) = self.published(id, &described);
            let bound = self.effects.len();
            let awaited = Awaited {
                id,
                bound,
                fate,
                returned,
            };
            self.link(at).outcomes.insert(token, awaited);
        }
        // What was not taken keeps its number, and nobody may ever see it.
        self.link(at).token -= batch.len() as u64;
    }

    fn new_publish(&mut self, at: usize, id: usize) -> Publish {
        let padding = match self.random.below(20) {
            0 => 1500,
            1..4 => self.random.below(700) as usize,
            _ => self.random.below(60) as usize,
        };
        let entry = [
            Entry::Queue,
            Entry::Queue,
            Entry::Exchange,
            Entry::Exchange,
            Entry::Topic,
            Entry::Native,
        ][self.random.index(6)];
        let topic = match entry {
            Entry::Queue => *self.random.pick(&QUEUES),
            Entry::Exchange => *self.random.pick(&EXCHANGES),
            Entry::Topic if self.random.once_in(2) => *self.random.pick(&EXCHANGES),
            Entry::Native if self.random.once_in(2) => *self.random.pick(&QUEUES),
            _ => *self.random.pick(&TOPICS),
        };
        let key = *self.random.pick(&KEYS);
        let token = self.link(at).token;
        self.link(at).token += 1;
        let mut publish = Publish {
            token,
            persistent: entry == Entry::Native || !self.random.once_in(3),
            mandatory: self.random.once_in(5),
            detailed: self.random.once_in(2),
            ..publish(entry, topic, key, body(id, padding))
        };
        if entry == Entry::Native {
            publish.format = Format::NATIVE;
            if !key.is_empty() {
                publish.origin = bytes(&format!("TAGS\x01{key}\x02"));
            }
            publish.native = Some(Box::new(Native {
                queue_id: self.random.once_in(2).then_some(0),
                topic_queues: TOPIC_QUEUES,
                ..Native::default()
            }));
        }
        self.catalog.messages.push(Published {
            expires_at: None,
            persistent: publish.persistent,
            in_topic: false,
            logged: false,
            place: None,
            seen_in: BTreeSet::new(),
        });
        publish
    }

    /// What becomes of a message, and whether it comes back.
    fn published(&mut self, id: usize, publish: &Described) -> (Expected, bool) {
        let Described {
            entry,
            topic,
            key,
            persistent,
            mandatory,
            native,
        } = publish;
        let queues = match self.live.route(*entry, topic, key) {
            Ok(queues) => queues,
            Err(refused) => return (Expected::Rejected(reject(refused)), false),
        };
        let groups = self.live.groups.iter().filter(|(of, _)| of == topic).count();
        let known = self.live.topics.contains_key(topic);
        let addressed = self.live.queues.get(topic).is_some_and(|queue| queue.spec.addressable);
        let enters = (*native || *persistent || groups > 0) && (known || *entry != Entry::Queue || addressed);
        let routes = queues.len() + if enters { groups } else { 0 };
        let returned = routes == 0 && *mandatory;
        if enters && !known {
            self.live.topics.entry(topic.clone()).or_default().queues = TOPIC_QUEUES;
            self.effect(Effect::Topic(topic.clone(), TOPIC_QUEUES));
        }
        if enters {
            self.catalog.messages[id].in_topic = true;
            self.live.topics.get_mut(topic).expect("just made").messages.insert(id);
        }
        let durable_queues: Vec<u64> = queues
            .iter()
            .map(|name| &self.live.queues[name])
            .filter(|queue| {
                let left_out = !*persistent && queue.of_holder && queue.consumers.is_empty();
                (*persistent || enters) && queue.spec.durable && !left_out
            })
            .map(|queue| queue.incarnation)
            .collect();
        let logged = enters || !durable_queues.is_empty();
        self.catalog.messages[id].logged = logged;
        if logged {
            self.effect(Effect::Message {
                id,
                queues: durable_queues,
                topic: enters.then(|| topic.clone()),
            });
        }
        for name in &queues {
            self.offer(name, id, *persistent);
        }
        let durable = logged && (*persistent || *native);
        (Expected::Stored { durable, routes }, returned)
    }

    /// Publishes and settles in one atomic batch.
    fn commit(&mut self, at: usize) {
        // On a full disk it may be refused.
        if self.link(at).is_held() || self.disk.has_refused() {
            return;
        }
        let mut publishes = Vec::new();
        let first = self.catalog.messages.len();
        for _ in 0..self.random.below(4) {
            let id = self.catalog.messages.len();
            publishes.push(Publish {
                mandatory: false,
                ..self.new_publish(at, id)
            });
        }
        let described: Vec<Described> = publishes.iter().map(Described::of).collect();
        let settlements = self.some_settlements(at);
        let nothing = publishes.is_empty() && settlements.is_empty();
        self.note(|| format!("link {at} commits {first}: {described:?}, {settlements:?}"));
        let request = Request::Commit(Commit {
            publishes,
            settlements: settlements.clone(),
            ..Commit::default()
        });
        let refused = described.iter().enumerate().find_map(|(index, publish)| {
            let refused = self.live.route(publish.entry, &publish.topic, &publish.key).err()?;
            Some(Expect::Rejected(index, reject(refused)))
        });
        if let Some(expect) = refused {
            return self.ask(at, request, expect, None);
        }
        if nothing {
            return self.ask(at, request, Expect::Done, None);
        }
        self.batch = Some(Vec::new());
        for (index, publish) in described.iter().enumerate() {
            self.published(first + index, publish);
        }
        for settlement in settlements {
            self.settled_by(at, settlement);
        }
        let settled = std::mem::take(&mut self.settled);
        self.effect(Effect::Settled(settled));
        let batch = self.batch.take().expect("just begun");
        self.effect(Effect::Batch(batch));
        let bound = self.effects.len();
        self.ask(at, request, Expect::Done, Some(bound));
    }

    fn offer(&mut self, name: &Name, id: usize, persistent: bool) {
        let queue = &self.live.queues[name];
        let at_once = queue.ready() == 0 && !queue.consumers.is_empty() && self.credit(queue) > 0;
        if !at_once && queue.consumers.is_empty() && queue.of_holder && !persistent {
            return;
        }
        let item = Item {
            id,
            sequence: None,
            lease: Lease::Ready,
            flag: Flag::No,
        };
        self.live.queues.get_mut(name).expect("just found").items.push(item);
        if at_once {
            self.deliver(name);
        } else {
            self.enforce_limit(name);
        }
    }

    // --- settling ---------------------------------------------------------------------------------

    fn settle(&mut self, at: usize) {
        let settlements = self.some_settlements(at);
        self.note(|| format!("link {at} settles {settlements:?}"));
        for settlement in &settlements {
            self.settled_by(at, *settlement);
        }
        self.link(at).link.settle(&mut settlements.into());
    }

    /// Any subset of what a link has open, in any order, and some that it has not.
    fn some_settlements(&mut self, at: usize) -> Vec<Settlement> {
        let mut settlements = Vec::new();
        let open: Vec<(u32, Vec<u64>)> = self
            .link(at)
            .subs
            .iter()
            .filter(|(_, sub)| !sub.leases.is_empty())
            .map(|(id, sub)| (*id, sub.leases.keys().copied().collect()))
            .collect();
        if open.is_empty() {
            return settlements;
        }
        for _ in 0..1 + self.random.below(3) {
            let (subscription, leases) = self.random.pick(&open).clone();
            let (first, count) = if self.random.once_in(3) {
                // Everything up to one.
                let last = *self.random.pick(&leases);
                (leases[0], (last - leases[0] + 1) as u32)
            } else {
                (*self.random.pick(&leases), 1 + self.random.below(2) as u32)
            };
            settlements.push(Settlement {
                subscription: SubscriptionId(subscription),
                first,
                count,
                action: [Settle::Ack, Settle::Ack, Settle::Ack, Settle::Release, Settle::Reject][self.random.index(5)],
            });
        }
        settlements
    }

    fn settled_by(&mut self, at: usize, settlement: Settlement) {
        let id = settlement.subscription.0;
        let Some(sub) = self.link(at).subs.get_mut(&id) else {
            return;
        };
        let incarnation = sub.incarnation;
        let end = settlement.first + u64::from(settlement.count);
        let sequences: Vec<u64> = sub
            .leases
            .range(settlement.first..end)
            .map(|(sequence, _)| *sequence)
            .collect();
        let ids: Vec<usize> = sequences
            .iter()
            .filter_map(|sequence| sub.leases.remove(sequence))
            .collect();
        if sub.leases.is_empty() && !sub.active && !self.is_get(at, id) {
            self.link(at).subs.remove(&id);
        }
        if self.live.queue_of(incarnation).is_none() {
            return;
        }
        let name = self.name_of(incarnation);
        for id in ids {
            let queue = self.live.queues.get_mut(&name).expect("just found");
            let index = queue
                .items
                .iter()
                .position(|item| item.id == id)
                .expect("it was leased");
            if settlement.action == Settle::Release {
                queue.items[index].lease = Lease::Ready;
                queue.items[index].flag = Flag::Yes;
            } else {
                self.done(&name, index);
            }
        }
        self.enforce_limit(&name);
    }

    fn is_get(&mut self, at: usize, subscription: u32) -> bool {
        self.link(at).gets.values().any(|get| *get == subscription)
    }

    // --- consuming --------------------------------------------------------------------------------

    /// A queue's name: one of those that all share, or the session's own.
    fn some_queue(&mut self, at: usize) -> Name {
        if let Some(holder) = self.link(at).holder.clone()
            && self.random.once_in(2)
        {
            return holder_queue(&holder);
        }
        (*self.random.pick(&QUEUES)).to_owned()
    }

    /// Whether a link may use a queue.
    fn find(&self, at: usize, name: &str) -> Result<&model::Queue, Why> {
        match self.live.queues.get(name) {
            None => Err(Why::NotFound),
            Some(queue) if queue.owner.is_some_and(|owner| owner != at) => Err(Why::Locked),
            Some(queue) => Ok(queue),
        }
    }

    fn subscribe(&mut self, at: usize) {
        if self.link(at).is_held() {
            return;
        }
        let name = self.some_queue(at);
        let exclusive = self.random.once_in(6);
        let window = [Some(1), Some(2), Some(5), Some(5), None][self.random.index(5)];
        self.link(at).subscription += 1;
        let subscription = self.link(at).subscription;
        // Of one queue: who gets what does not matter then.
        let incarnation = self.find(at, &name).map_or(0, |queue| queue.incarnation);
        let acknowledge = match incarnation % 4 {
            0 | 1 => Acknowledge::Always,
            2 => Acknowledge::Never,
            _ => Acknowledge::Persistent,
        };
        let window = if incarnation % 4 == 2 { None } else { window };
        let request = Request::Subscribe(Subscribe {
            subscription: SubscriptionId(subscription),
            queue: bytes(&name),
            acknowledge,
            window,
            exclusive,
            priority: 0,
        });
        let refused = match self.find(at, &name) {
            Err(why) => Some(why),
            Ok(queue) if queue.exclusive_consumer || (exclusive && !queue.consumers.is_empty()) => Some(Why::InUse),
            Ok(_) => None,
        };
        if let Some(why) = refused {
            return self.ask(at, request, Expect::Refused(why), None);
        }
        let queue = self.live.queues.get_mut(&name).expect("just found");
        queue.exclusive_consumer = exclusive;
        queue.consumers.push((at, subscription));
        let sub = Sub {
            incarnation,
            acknowledge,
            window,
            active: true,
            leases: Default::default(),
        };
        self.link(at).subs.insert(subscription, sub);
        let bound = self.consumed(&name);
        self.ask(at, request, Expect::Done, bound);
    }

    /// A queue has a consumer; gives what the answer waits for.
    fn consumed(&mut self, name: &str) -> Option<usize> {
        let queue = self.live.queues.get_mut(name).expect("the caller has it");
        if std::mem::replace(&mut queue.consumed, true) || !queue.spec.durable {
            return None;
        }
        let incarnation = queue.incarnation;
        self.effect(Effect::Consumed(incarnation));
        Some(self.effects.len())
    }

    fn unsubscribe(&mut self, at: usize) {
        let active: Vec<u32> = self
            .link(at)
            .subs
            .iter()
            .filter(|(_, sub)| sub.active)
            .map(|(id, _)| *id)
            .collect();
        if active.is_empty() {
            return;
        }
        let id = *self.random.pick(&active);
        let sub = self.link(at).subs.get_mut(&id).expect("just found");
        sub.active = false;
        let incarnation = sub.incarnation;
        if sub.leases.is_empty() {
            self.link(at).subs.remove(&id);
        }
        let before = self.effects.len();
        self.remove_consumer(at, id, incarnation);
        let bound = (self.effects.len() > before).then_some(self.effects.len());
        let subscription = SubscriptionId(id);
        self.ask(at, Request::Unsubscribe { subscription }, Expect::Done, bound);
    }

    fn remove_consumer(&mut self, at: usize, id: u32, incarnation: u64) {
        let Some(queue) = self.live.queue_of(incarnation) else {
            return;
        };
        let before = queue.consumers.len();
        queue.consumers.retain(|consumer| *consumer != (at, id));
        if queue.consumers.len() == before {
            return;
        }
        queue.exclusive_consumer = false;
        if queue.consumers.is_empty() && queue.spec.auto_delete {
            let name = self.name_of(incarnation);
            self.remove_queue(&name);
        }
    }

    fn get(&mut self, at: usize) {
        if self.link(at).is_held() {
            return;
        }
        let name = self.some_queue(at);
        let leased = !self.random.once_in(3);
        let found = self
            .find(at, &name)
            .map(|queue| (queue.incarnation, queue.exclusive_consumer));
        let incarnation = found.map_or(0, |(incarnation, _)| incarnation);
        let subscription = match self.link(at).gets.get(&incarnation) {
            Some(id) => *id,
            None => {
                self.link(at).subscription += 1;
                self.link(at).subscription
            }
        };
        let request = Request::Get {
            subscription: SubscriptionId(subscription),
            queue: bytes(&name),
            leased,
        };
        match found {
            Err(why) => return self.ask(at, request, Expect::Refused(why), None),
            Ok((_, true)) => return self.ask(at, request, Expect::Refused(Why::InUse), None),
            Ok(_) => {}
        }
        self.link(at).gets.insert(incarnation, subscription);
        self.link(at).subs.entry(subscription).or_insert(Sub {
            incarnation,
            acknowledge: Acknowledge::Always,
            window: None,
            active: false,
            leases: Default::default(),
        });
        // What has expired is not worth a get, nor is it counted.
        self.expire(&name);
        let Some(index) = self.live.queues[&name].first_ready() else {
            return self.ask(at, request, Expect::Got(None), None);
        };
        let item = self.live.queues[&name].items[index].clone();
        let bound = self.consumed(&name);
        if leased {
            // Its sequence is told by the answer.
            self.live.queues.get_mut(&name).expect("found").items[index].lease = Lease::To(at, subscription);
        } else {
            self.done(&name, index);
        }
        self.expire(&name);
        let got = Got {
            incarnation,
            subscription,
            id: item.id,
            flag: item.flag,
            leased,
            remaining: self.live.queues[&name].ready(),
        };
        self.ask(at, request, Expect::Got(Some(got)), bound);
    }

    // --- queues -----------------------------------------------------------------------------------

    fn queue_state(&mut self, name: &str, created: bool) -> Expect {
        self.expire(name);
        let queue = &self.live.queues[name];
        Expect::Queue {
            spec: queue.spec.clone(),
            ready: queue.ready(),
            consumers: queue.consumers.len() as u32,
            created,
        }
    }

    fn declare_queue(&mut self, at: usize) {
        let name = (*self.random.pick(&QUEUES)).to_owned();
        let exclusive = self.random.once_in(8);
        let spec = Spec {
            durable: !exclusive && !self.random.once_in(4),
            auto_delete: self.random.once_in(5),
            addressable: !self.random.once_in(4),
            limit: self.random.once_in(4).then(|| 1 + self.random.below(4)),
        };
        let request = Request::DeclareQueue(queue(&name, &spec, exclusive));
        let thing = format!("queue {name}");
        match self.find(at, &name) {
            Err(Why::NotFound) => {
                let incarnation = self.new_queue(&name, spec, false);
                if exclusive {
                    let queue = self.live.queue_of(incarnation).expect("just made");
                    (queue.owner, queue.exclusive) = (Some(at), true);
                }
                let durable = self.live.queues[&name].spec.durable;
                let bound = self.made_now(thing, durable);
                let expect = self.queue_state(&name, true);
                self.ask(at, request, expect, bound);
            }
            Err(why) => self.ask(at, request, Expect::Refused(why), None),
            Ok(_) => {
                let expect = self.queue_state(&name, false);
                let bound = self.made_at(&thing);
                self.ask(at, request, expect, Some(bound));
            }
        }
    }

    fn new_queue(&mut self, name: &str, spec: Spec, of_holder: bool) -> u64 {
        self.next_incarnation += 1;
        let incarnation = self.next_incarnation;
        if spec.durable {
            self.effect(Effect::Queue {
                name: name.to_owned(),
                spec: spec.clone(),
                incarnation,
                of_holder,
            });
        }
        let queue = State::new_queue(spec, incarnation, of_holder);
        self.live.queues.insert(name.to_owned(), queue);
        incarnation
    }

    fn find_queue(&mut self, at: usize) {
        let name = self.some_queue(at);
        let request = Request::FindQueue { name: bytes(&name) };
        let expect = match self.find(at, &name) {
            Err(why) => Expect::Refused(why),
            Ok(_) => self.queue_state(&name, false),
        };
        self.ask(at, request, expect, None);
    }

    fn delete_queue(&mut self, at: usize) {
        let name = (*self.random.pick(&QUEUES)).to_owned();
        let (if_unused, if_empty) = (self.random.once_in(4), self.random.once_in(4));
        let request = Request::DeleteQueue {
            name: bytes(&name),
            if_unused,
            if_empty,
        };
        if let Err(why) = self.find(at, &name) {
            return self.ask(at, request, Expect::Refused(why), None);
        }
        self.expire(&name);
        let queue = &self.live.queues[&name];
        let ready = queue.ready();
        if if_unused && !queue.consumers.is_empty() {
            return self.ask(at, request, Expect::Refused(Why::InUse), None);
        }
        if if_empty && ready > 0 {
            return self.ask(at, request, Expect::Refused(Why::NotEmpty), None);
        }
        let before = self.effects.len();
        self.remove_queue(&name);
        let bound = (self.effects.len() > before).then_some(self.effects.len());
        self.ask(at, request, Expect::Count(ready), bound);
    }

    /// A queue goes with its bindings, messages and consumers.
    fn remove_queue(&mut self, name: &str) {
        let queue = self.live.queues[name].clone();
        for (link, subscription) in queue.consumers {
            // A link that is on its way out is told nothing.
            if let Some(link) = &mut self.links[link] {
                link.subs.remove(&subscription);
            }
            if self.links[link].is_some() {
                self.ended_notices.push((link, subscription));
            }
        }
        if queue.spec.durable {
            self.effect(Effect::QueueGone(queue.incarnation));
        }
        self.settled
            .retain(|(incarnation, _)| *incarnation != queue.incarnation);
        let gone = self.live.remove_queue(name);
        self.drop_unbound(&gone);
    }

    /// Auto-delete exchanges go with their last binding.
    fn drop_unbound(&mut self, gone: &[model::Binding]) {
        for binding in gone {
            let model::Source::Exchange(name) = &binding.source else {
                continue;
            };
            let Some(exchange) = self.live.exchanges.get(name).cloned() else {
                continue;
            };
            let is_bound = self.live.bindings.iter().any(|other| other.source == binding.source);
            if !exchange.auto_delete || is_bound {
                continue;
            }
            if exchange.durable {
                self.effect(Effect::ExchangeGone(name.clone()));
            }
            let gone = self.live.remove_exchange(name);
            self.drop_unbound(&gone);
        }
    }

    fn purge(&mut self, at: usize) {
        let name = self.some_queue(at);
        let request = Request::PurgeQueue { name: bytes(&name) };
        if let Err(why) = self.find(at, &name) {
            return self.ask(at, request, Expect::Refused(why), None);
        }
        self.expire(&name);
        let count = self.live.queues[&name].ready();
        while let Some(index) = self.live.queues[&name].first_ready() {
            self.done(&name, index);
        }
        let bound = self.settled.len();
        let settled = std::mem::take(&mut self.settled);
        if bound > 0 {
            self.effect(Effect::Settled(settled));
        }
        let bound = (bound > 0).then_some(self.effects.len());
        self.ask(at, request, Expect::Count(count), bound);
    }

    // --- exchanges and bindings -------------------------------------------------------------------

    fn declare_exchange(&mut self, at: usize) {
        let name = (*self.random.pick(&EXCHANGES)).to_owned();
        let wanted = model::Exchange {
            kind: [ExchangeKind::Fanout, ExchangeKind::Direct, ExchangeKind::Pattern][self.random.index(3)],
            durable: !self.random.once_in(4),
            auto_delete: self.random.once_in(4),
            internal: self.random.once_in(8),
        };
        let thing = format!("exchange {name}");
        let request = Request::DeclareExchange(exchange(&name, &wanted));
        if let Some(existing) = self.live.exchanges.get(&name).cloned() {
            let bound = self.made_at(&thing);
            return self.ask(at, request, Expect::Exchange(existing), Some(bound));
        }
        if wanted.durable {
            self.effect(Effect::Exchange(name.clone(), wanted.clone()));
        }
        let bound = self.made_now(thing, wanted.durable);
        self.live.exchanges.insert(name, wanted.clone());
        self.ask(at, request, Expect::Exchange(wanted), bound);
    }

    fn delete_exchange(&mut self, at: usize) {
        let name = (*self.random.pick(&EXCHANGES)).to_owned();
        let if_unused = self.random.once_in(2);
        let request = Request::DeleteExchange {
            name: bytes(&name),
            if_unused,
        };
        let Some(exchange) = self.live.exchanges.get(&name).cloned() else {
            return self.ask(at, request, Expect::Refused(Why::NotFound), None);
        };
        let source = model::Source::Exchange(name.clone());
        if if_unused && self.live.bindings.iter().any(|binding| binding.source == source) {
            return self.ask(at, request, Expect::Refused(Why::InUse), None);
        }
        let before = self.effects.len();
        if exchange.durable {
            self.effect(Effect::ExchangeGone(name.clone()));
        }
        let gone = self.live.remove_exchange(&name);
        self.drop_unbound(&gone);
        let bound = (self.effects.len() > before).then_some(self.effects.len());
        self.ask(at, request, Expect::Done, bound);
    }

    fn some_binding(&mut self, at: usize) -> model::Binding {
        let source = match self.random.below(6) {
            0 => model::Source::Topics,
            1 => model::Source::Everything,
            _ => model::Source::Exchange((*self.random.pick(&EXCHANGES)).to_owned()),
        };
        let kind = match &source {
            model::Source::Exchange(name) => Some(self.live.exchanges.get(name).map(|exchange| exchange.kind)),
            _ => None,
        };
        let matcher = match kind {
            None => *self.random.pick(&FILTERS),
            Some(Some(ExchangeKind::Pattern)) => *self.random.pick(&PATTERNS),
            Some(_) => *self.random.pick(&KEYS),
        };
        let target = if self.random.once_in(5) {
            model::Target::Exchange((*self.random.pick(&EXCHANGES)).to_owned())
        } else {
            model::Target::Queue(self.some_queue(at))
        };
        model::Binding {
            source,
            matcher: matcher.to_owned(),
            target,
        }
    }

    fn check_ends(&self, at: usize, binding: &model::Binding) -> Result<(), Why> {
        let exchange = |name| self.live.exchanges.get(name).map(|_| ()).ok_or(Why::NotFound);
        if let model::Source::Exchange(name) = &binding.source {
            exchange(name)?;
        }
        match &binding.target {
            model::Target::Queue(name) => self.find(at, name).map(|_| ()),
            model::Target::Exchange(name) => exchange(name),
        }
    }

    fn bind(&mut self, at: usize) {
        let wanted = self.some_binding(at);
        let request = Request::Bind(binding(&self.live, &wanted));
        if let Err(why) = self.check_ends(at, &wanted) {
            return self.ask(at, request, Expect::Refused(why), None);
        }
        let thing = format!("binding {wanted:?}");
        if !self.live.bindings.insert(wanted.clone()) {
            let bound = self.made_at(&thing);
            return self.ask(at, request, Expect::Done, Some(bound));
        }
        let durable = self.live.is_durable(&wanted);
        if durable {
            self.effect(Effect::Bound(wanted));
        }
        let bound = self.made_now(thing, durable);
        self.ask(at, request, Expect::Done, bound);
    }

    fn unbind(&mut self, at: usize) {
        let known: Vec<model::Binding> = self.live.bindings.iter().cloned().collect();
        let wanted = match known.is_empty() {
            true => self.some_binding(at),
            false => self.random.pick(&known).clone(),
        };
        let request = Request::Unbind(binding(&self.live, &wanted));
        if let Err(why) = self.check_ends(at, &wanted) {
            return self.ask(at, request, Expect::Refused(why), None);
        }
        let before = self.effects.len();
        let durable = self.live.is_durable(&wanted);
        if self.live.bindings.remove(&wanted) {
            if durable {
                self.effect(Effect::Unbound(wanted.clone()));
            }
            self.drop_unbound(&[wanted]);
        }
        let bound = (self.effects.len() > before).then_some(self.effects.len());
        self.ask(at, request, Expect::Done, bound);
    }

    // --- sessions ---------------------------------------------------------------------------------

    fn attach(&mut self, at: usize) {
        if self.link(at).is_held() {
            return;
        }
        let name = (*self.random.pick(&HOLDERS)).to_owned();
        let clean = self.random.once_in(3);
        let durable = !self.random.once_in(3);
        // Nobody can be asked how long a session is kept: it is always the same.
        let keep = KEEP;
        let request = Request::Attach(request::Attach {
            holder: bytes(&name),
            clean,
            durable,
            keep: Millis(keep),
            limit: Limit::default(),
            will: None,
        });
        let before = self.effects.len();
        self.release_holder(at);
        if let Some(other) = self.live.holders.get(&name).and_then(|holder| holder.link) {
            self.release_holder(other);
        }
        let resumed = self.live.holders.get(&name).is_some_and(|holder| holder.durable) && !clean;
        let thing = format!("holder {name}");
        if !resumed {
            self.end_holder(&name);
            let spec = Spec {
                durable,
                auto_delete: false,
                addressable: false,
                limit: None,
            };
            self.new_queue(&holder_queue(&name), spec, true);
            if durable {
                self.effect(Effect::Holder(name.clone(), keep));
            }
            self.made_now(thing.clone(), durable);
        }
        let kept = self.live.holders.get(&name).map(|holder| (holder.durable, holder.keep));
        if let Some((true, old)) = kept
            && resumed
            && old != keep
        {
            self.effect(Effect::Holder(name.clone(), keep));
        }
        let holder = Holder {
            durable: kept.map_or(durable, |(durable, _)| durable),
            keep,
            link: Some(at),
            ends_at: None,
        };
        self.live.holders.insert(name.clone(), holder);
        self.live
            .queues
            .get_mut(&holder_queue(&name))
            .expect("it has one")
            .owner = Some(at);
        self.link(at).holder = Some(name);
        let bound = if self.effects.len() > before {
            self.effects.len()
        } else {
            self.made_at(&thing)
        };
        self.ask(at, request, Expect::Attached { present: resumed }, Some(bound));
    }

    fn detach(&mut self, at: usize) {
        let keep = if self.random.once_in(2) { 0 } else { KEEP };
        let before = self.effects.len();
        if let Some(name) = self.link(at).holder.clone() {
            let holder = self.live.holders.get_mut(&name).expect("a link has it");
            let changed = std::mem::replace(&mut holder.keep, keep) != keep;
            if holder.durable && keep > 0 && changed {
                self.effect(Effect::Holder(name, keep));
            }
            self.release_holder(at);
        }
        let bound = (self.effects.len() > before).then_some(self.effects.len());
        let keep = Millis(keep);
        self.ask(at, Request::Detach { keep, keep_will: false }, Expect::Done, bound);
    }

    fn release_holder(&mut self, at: usize) {
        let Some(name) = self.link(at).holder.take() else {
            return;
        };
        let now = self.clock.mono();
        let queue_name = holder_queue(&name);
        let holder = self.live.holders.get_mut(&name).expect("a link has it");
        holder.link = None;
        holder.ends_at = Some(now + holder.keep);
        let lives_on = holder.durable && holder.keep > 0;
        let incarnation = self.live.queues[&queue_name].incarnation;
        let subs: Vec<u32> = self
            .link(at)
            .subs
            .iter()
            .filter(|(_, sub)| sub.incarnation == incarnation)
            .map(|(id, _)| *id)
            .collect();
        for id in subs {
            self.end_sub(at, id);
        }
        self.link(at).gets.remove(&incarnation);
        if let Some(queue) = self.live.queues.get_mut(&queue_name) {
            queue.owner = None;
        }
        if !lives_on {
            self.end_holder(&name);
        }
    }

    /// What was leased to a subscription goes back to its place.
    fn end_sub(&mut self, at: usize, id: u32) {
        let Some(sub) = self.link(at).subs.remove(&id) else {
            return;
        };
        if let Some(queue) = self.live.queue_of(sub.incarnation) {
            for item in &mut queue.items {
                if item.lease == Lease::To(at, id) {
                    item.lease = Lease::Ready;
                    item.flag = Flag::Yes;
                }
            }
        }
        if self.live.queue_of(sub.incarnation).is_some() {
            let name = self.name_of(sub.incarnation);
            self.enforce_limit(&name);
        }
        self.remove_consumer(at, id, sub.incarnation);
    }

    fn end_holder(&mut self, name: &str) {
        let Some(holder) = self.live.holders.remove(name) else {
            return;
        };
        if holder.durable {
            self.effect(Effect::HolderGone(name.to_owned()));
        }
        self.remove_queue(&holder_queue(name));
    }

    // --- topics and groups ------------------------------------------------------------------------

    fn some_topic(&mut self) -> Name {
        let topics: Vec<&str> = all_topics().collect();
        (*self.random.pick(&topics)).to_owned()
    }

    fn pull(&mut self, at: usize) {
        let topic = self.some_topic();
        let queue = self.random.below(u64::from(TOPIC_QUEUES)) as u32;
        let held = self.random.once_in(3);
        let offset = self.random.below(6);
        if !self.live.topics.contains_key(&topic) {
            return;
        }
        let request = Request::Pull(request::Pull {
            group: bytes("g0"),
            topic: bytes(&topic),
            queue_id: queue,
            offset,
            messages_max: 1 + self.random.below(10) as u32,
            bytes_max: if self.random.once_in(3) { 500 } else { u32::MAX },
            filter: Some(Filter::All),
            hold: held,
        });
        let expect = Expect::Pulled {
            topic,
            queue,
            offset,
            held,
        };
        self.ask(at, request, expect, None);
    }

    fn cancel_pulls(&mut self, at: usize) {
        for id in self.link(at).pulls.keys().copied().collect::<Vec<_>>() {
            self.link(at).link.cancel(RequestId(id));
        }
        if !self.link(at).is_held() {
            self.observe();
            let open = self.link(at).pulls.len();
            check!(self, open == 0, "{open} pulls were cancelled and not answered");
        }
    }

    fn offsets(&mut self, at: usize) {
        let (topic, group) = (self.some_topic(), (*self.random.pick(&GROUPS)).to_owned());
        let queue = self.random.below(u64::from(TOPIC_QUEUES)) as u32;
        let key = (group.clone(), topic.clone(), queue);
        if self.random.once_in(2) {
            let request = Request::CommittedOffset {
                group: bytes(&group),
                topic: bytes(&topic),
                queue_id: queue,
            };
            let expect = Expect::Offset(self.live.offsets.get(&key).copied());
            return self.ask(at, request, expect, None);
        }
        // Only below what is known to be there: nothing needs to be cut.
        let places = self
            .live
            .topics
            .get(&topic)
            .into_iter()
            .flat_map(|topic| &topic.messages);
        let known = places
            .filter_map(|id| self.catalog.messages[*id].place)
            .filter(|(of, _)| *of == queue)
            .map(|(_, offset)| offset + 1)
            .max();
        let Some(end) = known else { return };
        let offset = self.random.below(end + 1);
        if self.live.groups.insert((topic.clone(), group.clone())) {
            self.effect(Effect::Group(topic.clone(), group.clone()));
        }
        let request = Request::CommitOffset {
            group: bytes(&group),
            topic: bytes(&topic),
            queue_id: queue,
            offset,
        };
        if self.live.offsets.insert(key, offset) != Some(offset) {
            self.effect(Effect::Offset(group, topic, queue, offset));
        }
        self.ask(at, request, Expect::Done, None);
    }

    fn join(&mut self, at: usize) {
        let (topic, group) = (self.some_topic(), (*self.random.pick(&GROUPS)).to_owned());
        if self.live.groups.insert((topic.clone(), group.clone())) {
            self.effect(Effect::Group(topic.clone(), group.clone()));
        }
        let request = Request::JoinConsumers(Join {
            group: bytes(&group),
            client_id: bytes(&format!("client {at}")),
            broadcasting: false,
            subscriptions: vec![GroupSubscription {
                topic: bytes(&topic),
                filter: Filter::All,
                version: 1,
            }],
        });
        self.ask(at, request, Expect::Done, None);
    }

    fn declare_topic(&mut self, at: usize) {
        let name = (*self.random.pick(&TOPICS)).to_owned();
        let thing = format!("topic {name}");
        let request = Request::DeclareTopic {
            topic: bytes(&name),
            queues: TOPIC_QUEUES,
        };
        let bound = if self.live.topics.contains_key(&name) {
            self.made_at(&thing)
        } else {
            self.effect(Effect::Topic(name.clone(), TOPIC_QUEUES));
            self.live.topics.entry(name).or_default().queues = TOPIC_QUEUES;
            self.made_now(thing, true).expect("it is durable")
        };
        self.ask(at, request, Expect::Topic(TOPIC_QUEUES), Some(bound));
    }

    // --- links and time ---------------------------------------------------------------------------

    fn drop_link(&mut self, at: usize) {
        self.note(|| format!("link {at} ends"));
        self.release_holder(at);
        let ids: Vec<u32> = self.link(at).subs.keys().copied().collect();
        for id in ids {
            self.end_sub(at, id);
        }
        let exclusive: Vec<Name> = self
            .live
            .queues
            .iter()
            .filter(|(_, queue)| queue.exclusive && queue.owner == Some(at))
            .map(|(name, _)| name.clone())
            .collect();
        for name in exclusive {
            self.remove_queue(&name);
        }
        self.ended_notices.retain(|(link, _)| *link != at);
        // The engine's side of it.
        self.links[at] = None;
    }

    /// The maintenance thread's step.
    fn maintain(&mut self) {
        let result = match self.random.below(3) {
            0 => self.engine.checkpoint(),
            _ => self.engine.maintain(),
        };
        self.note(|| format!("maintenance: {result:?}"));
        check!(
            self,
            result.is_ok() || self.disk.has_refused(),
            "the store cannot be kept small: {result:?}"
        );
    }

    fn pass_time(&mut self) {
        match self.random.below(4) {
            0 => {
                let millis = self.random.below(20_000) as i64 - 10_000;
                self.clock.step_wall(millis);
            }
            _ => self.clock.advance(1 + self.random.below(4000)),
        }
        self.highest_wall = self.highest_wall.max(self.clock.wall());
        let (mono, wall) = (self.clock.mono(), self.clock.wall());
        self.note(|| format!("it is {mono}, {wall}"));
        let ended: Vec<Name> = self
            .live
            .holders
            .iter()
            .filter(|(_, holder)| holder.link.is_none() && holder.ends_at.is_some_and(|at| at <= mono))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            self.end_holder(&name);
        }
        self.engine.tick();
    }
}

fn reject(refused: Refused) -> Reject {
    match refused {
        Refused::NoExchange => Reject::NoExchange,
        Refused::Internal => Reject::InternalExchange,
    }
}

/// What the model has to know of a publish.
#[derive(Debug)]
struct Described {
    entry: Entry,
    topic: Name,
    key: Name,
    persistent: bool,
    mandatory: bool,
    native: bool,
}

impl Described {
    fn of(publish: &Publish) -> Self {
        Self {
            entry: publish.entry,
            topic: text(&publish.topic),
            key: text(&publish.key),
            persistent: publish.persistent,
            mandatory: publish.mandatory,
            native: publish.format == Format::NATIVE,
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("names are text")
}
