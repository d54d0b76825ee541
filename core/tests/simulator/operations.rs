//! Random operations of every kind, each with what the model makes of it.

use std::collections::{BTreeSet, VecDeque};

use rocketbridge_core::attributes::{self, Attribute, Attributes, AttributesBuilder, Value};
use rocketbridge_core::boundary::*;
use rocketbridge_core::message::{Entry, Format};
use rocketbridge_core::request::{self, *};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::Millis;

use crate::model::{
    self, Described, Due, Effect, Flag, Half, Holder, Item, Lease, Name, Published, Refused, Spec, State,
};
use crate::names::*;
use crate::world::{Awaited, Expect, Expected, Got, Sub, Why, World, check};

const LINKS_MAX: usize = 4;

/// When producers are asked about a transaction first, and how long after that again, milliseconds.
pub const CHECK_AFTER: u64 = 2000;
pub const CHECK_INTERVAL: u64 = 3000;
/// How often.
pub const CHECK_MAX: u32 = 2;

/// How long sessions are kept.
pub const KEEP: u64 = 9000;

impl World {
    /// One random operation.
    pub fn operate(&mut self) {
        let links = self.living();
        if links.is_empty() || (links.len() < LINKS_MAX && self.random.once_in(12)) {
            return self.add_link();
        }
        let at = *self.random.pick(&links);
        match self.random.below(107) {
            100..101 => self.join_producers(at),
            101..104 => self.end_transaction(at),
            104..106 => self.take_back(at),
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
            95..98 => self.pass_time(),
            98..100 => self.maintain(),
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
        let first = self.catalog.messages.len() - batch.len();
        let described: Vec<Described> = self.described(first..first + batch.len());
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
            let (fate, returned) = self.published(at, id, &described);
            let bound = match fate {
                Expected::Duplicate(original) => self.catalog.messages[original].bound,
                _ => self.effects.len(),
            };
            self.catalog.messages[id].bound = bound;
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

    fn described(&self, ids: std::ops::Range<usize>) -> Vec<Described> {
        let messages = &self.catalog.messages[ids];
        messages.iter().map(|message| message.described.clone()).collect()
    }

    fn new_publish(&mut self, at: usize, id: usize) -> Publish {
        let half = self.random.once_in(12);
        let deliver = match self.random.below(if half { 1 } else { 24 }) {
            1 => Deliver::After(Millis(self.random.below(6000))),
            2 => Deliver::At(Millis(self.clock.wall() - 500 + self.random.below(6000))),
            3 => Deliver::After(Millis(60_000 + self.random.below(200_000))),
            _ => Deliver::Now,
        };
        let deliver = self.own_time(deliver);
        let is_later = half || deliver != Deliver::Now;
        let padding = match self.random.below(20) {
            _ if is_later => self.random.below(60) as usize,
            0 => 1500,
            1..4 => self.random.below(700) as usize,
            _ => self.random.below(60) as usize,
        };
        let entries = [
            Entry::Native,
            Entry::Topic,
            Entry::Exchange,
            Entry::Exchange,
            Entry::Queue,
            Entry::Queue,
        ];
        // To whom a timed message goes that goes straight to a queue can be seen in that queue only.
        let entry = entries[self.random.index(match is_later {
            true if half => 1,
            true => 4,
            false => 6,
        })];
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
        publish.deliver = deliver;
        publish.detailed |= is_later;
        let is_remembered = TOPICS.contains(&topic) || EXCHANGES.contains(&topic);
        let dedup = (is_remembered && self.random.once_in(3)).then(|| (*self.random.pick(&KEY_VALUES)).to_owned());
        // How long is left of a key's time after a restart depends on the wall.
        let dedup = dedup.map(|value| match topic {
            TIMED_KEYS => format!("{}-{value}", self.lives),
            _ => value,
        });
        if self.link(at).holder.is_some() && entry != Entry::Queue && !half && self.random.once_in(3) {
            let number = self.random.below(3);
            publish.holder_key = Some(match self.random.below(3) {
                0 => HolderKey::Close(number),
                _ => HolderKey::Open(number),
            });
        }
        // Which keys of what is not kept are remembered depends on what else was told.
        publish.persistent |= dedup.is_some() || publish.holder_key.is_some();
        let mut time_to_live = None;
        if entry == Entry::Native {
            publish.format = Format::NATIVE;
            let mut properties = format!("UNIQ_KEY\x01u{id}\x02PGROUP\x01{PRODUCERS}\x02");
            if !key.is_empty() {
                properties += &format!("TAGS\x01{key}\x02");
            }
            if let Some(value) = &dedup {
                properties += &format!("{DEDUP}\x01{value}\x02");
            }
            publish.origin = bytes(&properties);
            publish.native = Some(Box::new(Native {
                queue_id: self.random.once_in(2).then_some(0),
                topic_queues: TOPIC_QUEUES,
                half,
                ..Native::default()
            }));
        } else {
            let millis = if self.steps_wall {
                600_000
            } else {
                self.random.below(3000)
            };
            // Who looks for what has fired comes when it is there already: it finds nothing that may not wait at all.
            let at_least = u64::from(deliver != Deliver::Now);
            time_to_live = self.random.once_in(5).then_some(millis.max(at_least));
            publish.attributes = attributes(dedup.as_deref(), time_to_live);
        }
        let described = Described {
            entry,
            topic: topic.to_owned(),
            key: key.to_owned(),
            persistent: publish.persistent,
            mandatory: publish.mandatory,
            native: entry == Entry::Native,
            deliver,
            half,
            time_to_live,
            dedup,
            holder_key: publish.holder_key,
        };
        self.catalog.messages.push(Published {
            described,
            expires_at: None,
            order: 0,
            record: None,
            bound: 0,
            persistent: publish.persistent,
            in_topic: false,
            logged: false,
            place: None,
            seen_in: BTreeSet::new(),
        });
        publish
    }

    /// The same time, or one that no other timed message has: of two that are due at once nobody says which
    /// comes first.
    fn own_time(&self, deliver: Deliver) -> Deliver {
        let mono = self.clock.mono();
        let is_free = |due| !self.live.timers.values().any(|known| *known == due);
        let mut times = 0..;
        match deliver {
            Deliver::Now => None,
            Deliver::After(Millis(delay)) => times
                .find(|more| is_free(Due::After(mono + delay + more)))
                .map(|more| Deliver::After(Millis(delay + more))),
            Deliver::At(Millis(at)) => times
                .find(|more| is_free(Due::At(at + more)))
                .map(|more| Deliver::At(Millis(at + more))),
        }
        .unwrap_or(deliver)
    }

    /// The scope of a publish's key and its value there.
    fn key_of(&mut self, at: usize, publish: &Described) -> Option<(Name, Name)> {
        if let Some(HolderKey::Open(number) | HolderKey::Close(number)) = publish.holder_key {
            let holder = self.link(at).holder.clone()?;
            return Some((holder_queue(&holder), number.to_string()));
        }
        let exchange = self.live.exchanges.get(&publish.topic);
        let remembers = TOPICS.contains(&publish.topic.as_str()) || exchange.is_some_and(|exchange| exchange.dedup);
        let value = publish.dedup.clone().filter(|_| remembers)?;
        Some((publish.topic.clone(), value))
    }

    /// Whether a scope's keys are kept over a restart.
    fn keeps_keys(&self, scope: &str) -> bool {
        let holder = scope.strip_prefix('\0').and_then(|name| self.live.holders.get(name));
        holder.is_none_or(|holder| holder.durable)
    }

    /// What becomes of a message, and whether it comes back.
    fn published(&mut self, at: usize, id: usize, publish: &Described) -> (Expected, bool) {
        let mono = self.clock.mono();
        let key = self.key_of(at, publish);
        if let Some(HolderKey::Close(_)) = publish.holder_key {
            let closed = key
                .as_ref()
                .and_then(|(scope, value)| self.live.close_key(scope, value));
            if let Some((scope, value)) = key.filter(|(scope, _)| closed.is_some() && self.keeps_keys(scope)) {
                self.effect(Effect::KeyClosed(scope, value));
            }
            return (Expected::Closed(closed.is_some()), false);
        }
        let opened = key
            .as_ref()
            .and_then(|(scope, value)| self.live.opened(scope, value, mono));
        if let Some(original) = opened {
            return (Expected::Duplicate(original), false);
        }
        let queues = match self.live.route(publish.entry, &publish.topic, &publish.key) {
            Ok(queues) => queues,
            Err(refused) => return (Expected::Rejected(reject(refused)), false),
        };
        let (enters, groups) = self.enter(publish);
        let routes = queues.len() + if enters { groups } else { 0 };
        let returned = routes == 0 && publish.mandatory;
        let due = match publish.deliver {
            Deliver::After(Millis(delay)) if delay > 0 => Some(Due::After(mono + delay)),
            Deliver::At(Millis(wall)) if wall > self.clock.wall() => Some(Due::At(wall)),
            _ => None,
        };
        let key_effect = key.map(|(scope, value)| {
            let closes_at = if scope == TIMED_KEYS { mono + KEY_TIME } else { u64::MAX };
            let open = model::OpenKey {
                value: value.clone(),
                id,
                closes_at,
            };
            self.live.open_key(&scope, open);
            self.keeps_keys(&scope).then_some(Effect::Key(scope, value, id))
        });
        let key_effect = key_effect.flatten();
        let later = if publish.half {
            let next = mono + CHECK_AFTER;
            self.live.halves.insert(id, Half { next, checks: 0 });
            Some(Effect::Half(id, Half { next, checks: 0 }))
        } else if let Some(due) = due {
            self.live.timers.insert(id, due);
            Some(Effect::Timer(id, due))
        } else {
            None
        };
        if let Some(effect) = later {
            self.effect_with(effect, key_effect);
            let durable = publish.persistent || publish.native;
            let routes = routes.max(1);
            return (
                Expected::Stored {
                    durable,
                    routes,
                    later: true,
                },
                returned,
            );
        }
        let logged = self.put(id, publish, queues, enters, key_effect);
        let durable = logged && (publish.persistent || publish.native);
        (
            Expected::Stored {
                durable,
                routes,
                later: false,
            },
            returned,
        )
    }

    /// An effect and what one record says with it.
    fn effect_with(&mut self, effect: Effect, other: Option<Effect>) {
        match other {
            Some(other) => self.effect(Effect::Batch(vec![effect, other])),
            None => self.effect(effect),
        }
    }

    /// Whether a message enters its topic, which is made then, and how many groups are there for it.
    fn enter(&mut self, publish: &Described) -> (bool, usize) {
        let topic = &publish.topic;
        let groups = self.live.groups.iter().filter(|(of, _)| of == topic).count();
        let known = self.live.topics.contains_key(topic);
        let addressed = self.live.queues.get(topic).is_some_and(|queue| queue.spec.addressable);
        let enters = (publish.native || publish.persistent || groups > 0)
            && (known || publish.native || publish.entry != Entry::Queue || addressed);
        if enters && !known {
            let queues = if topic == GIVEN_UP { 1 } else { TOPIC_QUEUES };
            self.live.topics.entry(topic.clone()).or_default().queues = queues;
            self.effect(Effect::Topic(topic.clone(), queues));
        }
        (enters, groups)
    }

    /// A message goes to queues and into its topic. Gives whether it is in the log.
    fn put(
        &mut self,
        id: usize,
        publish: &Described,
        queues: BTreeSet<Name>,
        enters: bool,
        key: Option<Effect>,
    ) -> bool {
        let now = self.now();
        self.entered += 1;
        let message = &mut self.catalog.messages[id];
        message.expires_at = publish.time_to_live.map(|millis| now + millis);
        if enters {
            (message.in_topic, message.order) = (true, self.entered);
            let topic = self.live.topics.get_mut(&publish.topic).expect("just made");
            topic.messages.insert(id);
        }
        let durable_queues: Vec<u64> = queues
            .iter()
            .map(|name| &self.live.queues[name])
            .filter(|queue| {
                let left_out = !publish.persistent && queue.of_holder && queue.consumers.is_empty();
                (publish.persistent || enters) && queue.spec.durable && !left_out
            })
            .map(|queue| queue.incarnation)
            .collect();
        let logged = enters || !durable_queues.is_empty();
        self.catalog.messages[id].logged = logged;
        if logged {
            let effect = Effect::Message {
                id,
                queues: durable_queues,
                topic: enters.then(|| publish.topic.clone()),
            };
            self.effect_with(effect, key);
        }
        for name in &queues {
            self.offer(name, id, publish.persistent);
        }
        logged
    }

    /// The broker publishes a message again, routed now.
    fn republish(&mut self, id: usize, publish: &Described) {
        let Ok(queues) = self.live.route_inside(publish.entry, &publish.topic, &publish.key) else {
            return;
        };
        let (enters, _) = self.enter(publish);
        self.put(id, publish, queues, enters, None);
    }

    /// What the log holds as one batch: these effects, what `act` makes, and what is settled meanwhile.
    fn in_batch(&mut self, first: Vec<Effect>, act: impl FnOnce(&mut Self)) {
        self.end_of_hold();
        self.batch = Some(first);
        act(self);
        self.end_of_hold();
        let batch = self.batch.take().expect("just begun");
        self.effect(Effect::Batch(batch));
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
        let described: Vec<Described> = self.described(first..first + publishes.len());
        let mut settlements = self.some_settlements(at);
        for settlement in &mut settlements {
            // Only what was delivered before: what the batch brings may be delivered before it settles.
            let leases = &self.link(at).subs[&settlement.subscription.0].leases;
            let last = *leases.keys().next_back().expect("something is leased");
            settlement.count = settlement.count.min((last - settlement.first + 1) as u32);
        }
        let nothing = publishes.is_empty() && settlements.is_empty();
        self.note(|| format!("link {at} commits {first}: {described:?}, {settlements:?}"));
        let request = Request::Commit(Commit {
            publishes,
            settlements: settlements.clone(),
            ..Commit::default()
        });
        let refused = described.iter().enumerate().find_map(|(index, publish)| {
            if matches!(publish.holder_key, Some(HolderKey::Close(_))) {
                return None;
            }
            let refused = self.live.route(publish.entry, &publish.topic, &publish.key).err()?;
            Some(Expect::Rejected(index, reject(refused)))
        });
        if let Some(expect) = refused {
            return self.ask(at, request, expect, None);
        }
        if nothing {
            return self.ask(at, request, Expect::Done, None);
        }
        self.in_batch(Vec::new(), |world| {
            for (index, publish) in described.iter().enumerate() {
                world.published(at, first + index, publish);
            }
            for settlement in settlements {
                world.settled_by(at, settlement);
            }
        });
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
        let queue = self.live.queues.get_mut(name).expect("just found");
        queue.items.push(item);
        let last = queue.items.len() - 1;
        if at_once {
            // Even what may not wait at all.
            self.fly(name, last);
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
        if let Some(holder) = name.strip_prefix('\0')
            && self.live.holders.get(holder).and_then(|holder| holder.link) != Some(at)
        {
            return Err(Why::AccessRefused);
        }
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
            selector: None,
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
            dedup: false,
        };
        let wanted = model::Exchange {
            // Which keys are known after a crash depends on what else was told, if the exchange itself is not.
            dedup: wanted.durable && self.random.once_in(2),
            ..wanted
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
        self.live.keys.remove(&holder_queue(name));
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
        // A log that is full makes timers wait: by how much depends on bytes.
        if self.live.timers.len() + self.live.halves.len() > 0 && self.disk.has_refused() {
            return;
        }
        let unsynced = self.effects.len() - self.synced;
        if !self.live.timers.is_empty() && unsynced > 10 && !self.sync() {
            return;
        }
        match self.random.below(4) {
            0 if self.steps_wall => {
                let millis = self.random.below(20_000) as i64 - 10_000;
                self.clock.step_wall(millis);
                self.stepped += millis.unsigned_abs();
            }
            1 => self.clock.advance(4000 + self.random.below(4000)),
            _ => self.clock.advance(1 + self.random.below(4000)),
        }
        self.highest_wall = self.highest_wall.max(self.clock.wall());
        let (mono, wall) = (self.clock.mono(), self.clock.wall());
        self.note(|| format!("it is {mono}, {wall}"));
        self.check_halves();
        self.fire_timers(|due| matches!(due, Due::After(at) if *at <= mono));
        self.fire_timers(|due| matches!(due, Due::At(at) if *at <= wall));
        self.deliver_all();
        self.end_of_hold();
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

    // --- timed messages and transactions ----------------------------------------------------------

    /// What is due by now is published, routed by the bindings of now.
    fn fire_timers(&mut self, is_due: impl Fn(&Due) -> bool) {
        let mut fired: Vec<(u64, usize)> = Vec::new();
        for (id, due) in &self.live.timers {
            if is_due(due) {
                let (Due::After(at) | Due::At(at)) = due;
                fired.push((*at, *id));
            }
        }
        if fired.is_empty() {
            return;
        }
        fired.sort_unstable();
        let ids: Vec<usize> = fired.into_iter().map(|(_, id)| id).collect();
        self.in_batch(vec![Effect::TimersGone(ids.clone())], |world| {
            for id in ids {
                world.live.timers.remove(&id);
                let publish = world.catalog.messages[id].described.clone();
                world.republish(id, &publish);
            }
        });
    }

    fn take_back(&mut self, at: usize) {
        let messages = self.catalog.messages.iter().enumerate();
        let timed: Vec<(usize, u64)> = messages
            .filter(|(_, message)| message.described.native && !message.described.half)
            .filter_map(|(id, message)| Some((id, message.record?.0)))
            .collect();
        if timed.is_empty() {
            return;
        }
        let (id, position) = *self.random.pick(&timed);
        let is_other = self.random.once_in(8);
        let unique_key = bytes(&format!("u{}", if is_other { id + 1 } else { id }));
        let request = Request::TakeBack {
            position: Position(position),
            unique_key,
        };
        let waits = match self.live.timers.get(&id) {
            None => false,
            Some(Due::After(at)) => *at > self.clock.mono(),
            Some(Due::At(at)) => *at > self.clock.wall(),
        };
        if !waits || is_other {
            return self.ask(at, request, Expect::Refused(Why::NotFound), None);
        }
        self.live.timers.remove(&id);
        self.effect(Effect::TimersGone(vec![id]));
        let bound = self.effects.len();
        self.ask(at, request, Expect::Done, Some(bound));
    }

    /// Producers are asked about transactions that were not ended.
    fn check_halves(&mut self) {
        let mono = self.clock.mono();
        let due = self.live.halves.iter().filter(|(_, half)| half.next <= mono);
        let mut due: Vec<(u64, usize)> = due.map(|(id, half)| (half.next, *id)).collect();
        due.sort_unstable();
        for (_, id) in due {
            let checks = self.live.halves[&id].checks;
            if checks < CHECK_MAX {
                let half = Half {
                    next: mono + CHECK_INTERVAL,
                    checks: checks + 1,
                };
                self.live.halves.insert(id, half);
                self.effect(Effect::Half(id, half));
                if self.links.iter().flatten().any(|link| link.produces) {
                    self.asked.insert(id);
                }
                continue;
            }
            let publish = Described {
                entry: Entry::Queue,
                topic: GIVEN_UP.to_owned(),
                ..self.catalog.messages[id].described.clone()
            };
            self.end_half(id, &publish);
        }
    }

    /// A half message is published.
    fn end_half(&mut self, id: usize, publish: &Described) {
        self.live.halves.remove(&id);
        self.enter(publish);
        self.in_batch(vec![Effect::HalfGone(id)], |world| world.republish(id, publish));
    }

    fn join_producers(&mut self, at: usize) {
        self.link(at).produces = true;
        let request = Request::JoinProducers {
            group: bytes(PRODUCERS),
            client_id: bytes(&format!("client {at}")),
        };
        self.ask(at, request, Expect::Done, None);
    }

    fn end_transaction(&mut self, at: usize) {
        let messages = self.catalog.messages.iter().enumerate();
        let halves: Vec<(usize, (u64, u64))> = messages
            .filter(|(_, message)| message.described.half)
            .filter_map(|(id, message)| Some((id, message.record?)))
            .collect();
        if halves.is_empty() {
            return;
        }
        let (id, (position, offset)) = *self.random.pick(&halves);
        let verdict = [Verdict::Commit, Verdict::Commit, Verdict::Rollback, Verdict::Unknown][self.random.index(4)];
        let (other_group, other_offset) = (self.random.once_in(10), self.random.once_in(10));
        let request = Request::EndTransaction(EndTransaction {
            position: Position(position),
            offset: offset + u64::from(other_offset),
            group: bytes(if other_group { "g0" } else { PRODUCERS }),
            verdict,
            from_check: self.random.once_in(2),
        });
        let end = match self.live.halves.contains_key(&id) {
            false => TransactionEnd::NotFound,
            true if other_group => TransactionEnd::OtherGroup,
            true if other_offset => TransactionEnd::OtherOffset,
            true => TransactionEnd::Done,
        };
        if end != TransactionEnd::Done || verdict == Verdict::Unknown {
            return self.ask(at, request, Expect::Transaction(end), None);
        }
        if verdict == Verdict::Commit {
            let publish = self.catalog.messages[id].described.clone();
            self.end_half(id, &publish);
        } else {
            self.live.halves.remove(&id);
            self.effect(Effect::HalfGone(id));
        }
        let bound = self.effects.len();
        self.ask(at, request, Expect::Transaction(end), Some(bound));
    }
}

fn reject(refused: Refused) -> Reject {
    match refused {
        Refused::NoExchange => Reject::NoExchange,
        Refused::Internal => Reject::InternalExchange,
    }
}

fn attributes(dedup: Option<&str>, time_to_live: Option<u64>) -> Attributes {
    let mut builder = AttributesBuilder::default();
    if let Some(millis) = time_to_live {
        builder.put(attributes::Name::Known(Attribute::TimeToLive), Value::Uint(millis));
    }
    if let Some(value) = dedup {
        let name = attributes::Name::User(DEDUP.as_bytes());
        builder.put(name, Value::Text(value.as_bytes()));
    }
    builder.finish()
}
