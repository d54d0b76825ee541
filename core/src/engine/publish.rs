//! One message's way in: routed, placed, encoded once, offered to queues and topics.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::address::{fnv1a, is_reserved};
use crate::attributes::{Attribute, Iter, Name, Value};
use crate::boundary::{Event, Fate, HolderKey, Outcome, Publish, Reject, Stored};
use crate::engine::config::Flush;
use crate::engine::dedup::Key;
use crate::engine::group::tag_hash;
use crate::engine::links::LinkId;
use crate::engine::progress::Entry;
use crate::engine::router::Route;
use crate::engine::state::State;
use crate::message::{self, Format, Message};
use crate::policy::Overflow;
use crate::properties;
use crate::store::record::{Later, NewMessage, Position};
use crate::time::Millis;

/// The topic of messages whose own topic may not be made any more.
const CATCH_ALL: &[u8] = b"catch-all";

/// Routing of durable copies: queue and the sequence that the copy gets there.
pub(crate) type Destinations = Vec<(u32, u64)>;

/// What a message's record tells of where it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth {
    /// The publisher's address.
    pub host: SocketAddr,
    /// Position of the half message that it was, or 0.
    pub prepared: u64,
    /// The dedup key that it opens.
    pub dedup: Option<Key>,
}

/// Where a message goes.
pub(crate) struct Placed {
    route: Route,
    /// Topic, message queue and offset.
    pub topic_queue: Option<(u32, u32, u64)>,
    /// Queues and groups that get it.
    pub routes: u32,
    /// It changes the last value of its address.
    is_retained: bool,
    /// Those of the route's queues that are full and refuse it.
    pub refusing: Vec<u32>,
}

impl Placed {
    /// Some queues of the route do not get it.
    pub(crate) fn leave_out(&mut self, queues: &[u32]) {
        let mut taking = self.route.queues.to_vec();
        taking.retain(|queue| !queues.contains(queue));
        self.routes -= (self.route.queues.len() - taking.len()) as u32;
        self.route.queues = taking.into();
    }
}

/// The topic that a message enters.
pub(crate) enum TopicOf {
    None,
    Known(u32),
    New { name: Bytes, queues: u32 },
}

impl State {
    /// Takes one message. Exactly one outcome follows.
    pub(crate) fn publish_one(&mut self, link: LinkId, publish: &Publish, destinations: &mut Destinations) {
        if let Err(reject) = self.try_publish(link, publish, destinations) {
            self.reject(link, publish.token, reject);
        }
    }

    /// The message is certainly not stored.
    pub(crate) fn reject(&mut self, link: LinkId, token: u64, reject: Reject) {
        let outcome = Outcome {
            first: token,
            count: 1,
            fate: Fate::Rejected(reject),
        };
        self.outcome_now(link, outcome, true);
    }

    fn try_publish(&mut self, link: LinkId, publish: &Publish, destinations: &mut Destinations) -> Result<(), Reject> {
        self.check(link, publish)?;
        if let Some(dead) = self.dead_letter_of(publish) {
            return self.try_publish(link, &dead, destinations);
        }
        let later = self.later(publish)?;
        if let Some(HolderKey::Close(number)) = publish.holder_key {
            self.close_key(link, publish, number);
            return Ok(());
        }
        let dedup = self.dedup_key(link, publish)?;
        if let Some(opened) = dedup.and_then(|key| self.dedups.find(key, self.now)) {
            self.tell_duplicate(link, publish, opened);
            return Ok(());
        }
        let placed = self.place(publish)?;
        if placed.routes == 0 && publish.mandatory {
            self.give_back(link, publish);
        }
        let birth = Birth {
            dedup,
            ..self.birth(link)
        };
        if later.is_none() && !placed.refusing.is_empty() {
            return self.put_partly(publish, birth, placed, destinations);
        }
        let (stored, durable) = match later {
            None => {
                let stored = self.put(publish, birth, &placed, destinations);
                (stored, !destinations.is_empty())
            }
            Some(later) => (self.put_later(publish, birth, &placed, later), false),
        };
        self.tell_stored(link, publish, stored, durable);
        Ok(())
    }

    /// Some queues are full and refuse the message: the others get it, and its publisher hears of the refusal.
    fn put_partly(
        &mut self,
        publish: &Publish,
        birth: Birth,
        mut placed: Placed,
        destinations: &mut Destinations,
    ) -> Result<(), Reject> {
        let refusing = std::mem::take(&mut placed.refusing);
        placed.leave_out(&refusing);
        if placed.routes > 0 {
            self.put(publish, birth, &placed, destinations);
        }
        let mut message = None;
        for id in refusing {
            let policy = self.queue(id).and_then(|queue| queue.policy());
            if policy.is_some_and(|policy| policy.overflow == Overflow::RejectAndDeadLetter) {
                let (store_host, now) = (self.config.store_host, self.stored_at);
                let message =
                    message.get_or_insert_with(|| Message::from_publish(publish, birth.host, store_host, now));
                self.dead_letter_refused(id, message);
            }
        }
        Err(Reject::QueueFull)
    }

    /// A mandatory message that nobody is there for goes back to its publisher.
    pub(crate) fn give_back(&mut self, link: LinkId, publish: &Publish) {
        let born_host = self.born_host(link);
        let message = Message::from_publish(publish, born_host, self.config.store_host, self.stored_at);
        let token = publish.token;
        self.tell_at_once(link, Event::Returned { token, message });
    }

    /// Of what this link publishes.
    pub(crate) fn birth(&mut self, link: LinkId) -> Birth {
        Birth {
            host: self.born_host(link),
            prepared: 0,
            dedup: None,
        }
    }

    /// Finds where a message goes. What makes a topic makes it here.
    pub(crate) fn place(&mut self, publish: &Publish) -> Result<Placed, Reject> {
        let route = self.router.route(publish, &self.queues)?;
        self.place_at(publish, route)
    }

    /// As [`place`](Self::place), for a message whose route is known.
    pub(crate) fn place_at(&mut self, publish: &Publish, route: Route) -> Result<Placed, Reject> {
        let is_retained = self.check_retained(publish)?;
        let topic = match self.topic_of(publish, &route)? {
            TopicOf::None => None,
            TopicOf::Known(topic) => Some(topic),
            TopicOf::New { name, queues } => {
                if publish.format != Format::NATIVE && name == publish.topic {
                    self.topics_auto += 1;
                }
                Some(self.add_topic(name, queues))
            }
        };
        let routes = route.queues.len() + self.groups_on(topic, publish);
        let topic_queue = topic.map(|topic| self.message_queue_for(topic, publish)).transpose()?;
        let refusing = self.find_refusing(&route, publish);
        Ok(Placed {
            route,
            topic_queue,
            routes: routes as u32,
            is_retained,
            refusing,
        })
    }

    /// Queues that are full and refuse what comes.
    pub(crate) fn find_refusing(&mut self, route: &Route, publish: &Publish) -> Vec<u32> {
        if self.refusing_queues == 0 {
            return Vec::new();
        }
        let bytes = publish.body.len() as u64;
        let refuses = |id: &&u32| self.queue(**id).is_some_and(|queue| queue.refuses(bytes));
        route.queues.iter().filter(refuses).copied().collect()
    }

    /// Stores a message where it goes and offers it there.
    pub(crate) fn put(
        &mut self,
        publish: &Publish,
        birth: Birth,
        placed: &Placed,
        destinations: &mut Destinations,
    ) -> Stored {
        let Placed {
            route,
            topic_queue,
            routes,
            is_retained,
            refusing: _,
        } = placed;
        let nowhere = Stored {
            position: Position(Position::MEMORY),
            queue_id: 0,
            queue_offset: 0,
            routes: *routes,
            weak: true,
        };
        if route.queues.is_empty() && topic_queue.is_none() && !is_retained {
            if let Some(key) = birth.dedup {
                self.open_key(key, nowhere.position);
            }
            return nowhere;
        }
        // What is in the log for another reason is there for its queues, too: a transient message is kept like any
        // other then, or a crash would undo what a checkpoint holds.
        let logged = topic_queue.is_some() || *is_retained || self.memory.held() > self.config.transient_max;
        let has_durable = self.find_durable(route, publish, logged, destinations);
        let logged = logged || !destinations.is_empty();
        let (position, message) = self.store(publish, birth, *topic_queue, destinations, route.exchange, logged);
        let expires_at = expires_at(publish.format, publish.attributes.iter(), self.clock());
        let entry = Entry::of_queue(position, message.record_len() as u32, publish.body.len(), expires_at);
        if let Some((topic, queue, _)) = *topic_queue {
            self.append_to_topic(
                topic,
                queue,
                Entry {
                    word: tag_hash(&publish.key) as u64,
                    ..entry
                },
            );
        }
        if *is_retained {
            self.retain(publish, topic_queue.map(|(topic, ..)| topic), entry);
        }
        let message = if route.queues.len() > 1 {
            message.shared()
        } else {
            message
        };
        for id in &*route.queues {
            let level = self.queue(*id).map_or(0, |queue| queue.level_for(|| priority(publish)));
            self.offer(*id, level, &message, entry);
        }
        let (queue_id, queue_offset) = topic_queue.map_or((0, 0), |(_, queue, offset)| (queue, offset));
        let durable = is_durable(position, publish, has_durable);
        Stored {
            position,
            queue_id,
            queue_offset,
            weak: !durable || self.config.flush == Flush::Async,
            ..nowhere
        }
    }

    /// Whether the link may publish this at all.
    pub(crate) fn check(&mut self, link: LinkId, publish: &Publish) -> Result<(), Reject> {
        if self.closing {
            return Err(Reject::Closed);
        }
        if !self.link(link).is_some_and(|link| link.logged_in) {
            return Err(Reject::AccessRefused);
        }
        if publish.format != Format::NATIVE && is_reserved(&publish.topic) {
            return Err(Reject::AccessRefused);
        }
        self.check_size(publish)
    }

    pub(crate) fn check_size(&self, publish: &Publish) -> Result<(), Reject> {
        let header = publish.key.len() + publish.attributes.as_bytes().len() + publish.origin.len();
        let is_native = publish.format == Format::NATIVE;
        let too_long = is_native && publish.origin.len() > properties::PROPERTIES_MAX;
        if publish.body.len() > self.config.body_max || header > 1 << 20 || too_long {
            return Err(Reject::TooLarge);
        }
        Ok(())
    }

    /// The topic that the message enters, if it enters one: every native and every persistent message
    /// does, a transient one only when a group is there for it.
    pub(crate) fn topic_of(&self, publish: &Publish, route: &Route) -> Result<TopicOf, Reject> {
        let known = self.topic_ids.get(&publish.topic).copied();
        let is_native = publish.format == Format::NATIVE;
        if !is_native && !publish.persistent {
            let has_group = self
                .topic_groups
                .get(&publish.topic)
                .is_some_and(|groups| !groups.is_empty());
            if !has_group {
                return Ok(TopicOf::None);
            }
        }
        if let Some(known) = known {
            return Ok(TopicOf::Known(known));
        }
        // What goes straight to a queue enters a topic only if that queue may be seen as one: reply
        // queues and queues that are gone leave no topics behind.
        if publish.entry == message::Entry::Queue && !route.addressed && !is_native {
            return Ok(TopicOf::None);
        }
        if is_native {
            let queues = publish.native.as_ref().map_or(0, |native| native.topic_queues);
            if queues == 0 || self.topics.len() >= self.config.topics_max {
                return Err(Reject::NoTopic);
            }
            let name = publish.topic.clone();
            return Ok(TopicOf::New { name, queues });
        }
        let queues = self.config.topic_queues;
        if self.topics_auto < self.config.topics_auto_max {
            let name = publish.topic.clone();
            return Ok(TopicOf::New { name, queues });
        }
        let name = Bytes::from_static(CATCH_ALL);
        Ok(match self.topic_ids.get(&name) {
            Some(topic) => TopicOf::Known(*topic),
            None => TopicOf::New { name, queues },
        })
    }

    fn groups_on(&self, topic: Option<u32>, publish: &Publish) -> usize {
        if topic.is_none() {
            return 0;
        }
        self.topic_groups.get(&publish.topic).map_or(0, Vec::len)
    }

    /// The message queue and offset that a message gets in its topic.
    fn message_queue_for(&mut self, id: u32, publish: &Publish) -> Result<(u32, u32, u64), Reject> {
        let topic = &mut self.topics[id as usize];
        let count = topic.queues.len() as u64;
        let queue = match publish.native.as_deref().and_then(|native| native.queue_id) {
            Some(queue) if u64::from(queue) < count => queue,
            Some(_) => return Err(Reject::NoQueue),
            None => match ordering_hash(publish) {
                Some(hash) => (hash % count) as u32,
                // Nothing says what belongs together: all message queues get their share.
                None => {
                    topic.turn = topic.turn.wrapping_add(1);
                    (u64::from(topic.turn) % count) as u32
                }
            },
        };
        Ok((id, queue, topic.queues[queue as usize].end()))
    }

    /// Durable queues among the destinations, each with the sequence that the message gets there. Gives whether
    /// one of them is to keep it whatever its publisher asked for.
    fn find_durable(
        &mut self,
        route: &Route,
        publish: &Publish,
        logged: bool,
        destinations: &mut Destinations,
    ) -> bool {
        destinations.clear();
        let mut keeps_all = false;
        let kept = publish.persistent || logged;
        if !kept && self.keeping_queues == 0 {
            return keeps_all;
        }
        for id in &*route.queues {
            if let Some(queue) = self.queue(*id).filter(|queue| queue.spec.durable)
                && (kept || queue.keeps_all())
                && !queue.leaves_out(publish.persistent)
            {
                keeps_all |= queue.keeps_all();
                let level = queue.level_for(|| priority(publish));
                destinations.push((*id, queue.end_of(level)));
            }
        }
        keeps_all
    }

    /// Stores a message that nobody sees yet.
    pub(crate) fn store_later(
        &mut self,
        publish: &Publish,
        birth: Birth,
        (queue, offset): (u32, u64),
        later: Later,
    ) -> (Position, Message) {
        let Self {
            config,
            properties,
            log,
            stored_at,
            dedups,
            ..
        } = self;
        let mut new = NewMessage::of(publish, birth.host, config.store_host, *stored_at, properties);
        new.dedup = birth.dedup.map(|key| dedups.for_record(key));
        new.later = Some(later);
        new.topic_queue = Some((queue, offset));
        let len = new.len();
        let (position, record) = log.append(len, *stored_at, |record, position, synced| {
            new.write(record, position, synced, *stored_at, true);
        });
        if let Some(key) = birth.dedup {
            self.open_key(key, position);
        }
        (position, Message::new(record))
    }

    fn store(
        &mut self,
        publish: &Publish,
        birth: Birth,
        topic_queue: Option<(u32, u32, u64)>,
        destinations: &Destinations,
        exchange: bool,
        logged: bool,
    ) -> (Position, Message) {
        let Self {
            config,
            properties,
            log,
            memory,
            stored_at,
            topics,
            dedups,
            ..
        } = self;
        let mut new = NewMessage::of(publish, birth.host, config.store_host, *stored_at, properties);
        new.prepared = birth.prepared;
        new.dedup = birth.dedup.map(|key| dedups.for_record(key));
        new.destinations = destinations;
        new.exchange = exchange;
        new.topic_queue = topic_queue.map(|(_, queue, offset)| (queue, offset));
        if let Some((topic, ..)) = topic_queue
            && topics[topic as usize].name != publish.topic
        {
            new.topic = &topics[topic as usize].name;
        }
        let len = new.len();
        let (position, record) = if logged {
            log.append(len, *stored_at, |record, position, synced| {
                new.write(record, position, synced, *stored_at, true);
            })
        } else {
            memory.append(len, |record, position| {
                new.write(record, position, Position(0), *stored_at, false)
            })
        };
        if let Some(key) = birth.dedup {
            self.open_key(key, position);
        }
        (position, Message::new(record))
    }

    fn tell_stored(&mut self, link: LinkId, publish: &Publish, stored: Stored, has_durable: bool) {
        let outcome = Outcome {
            first: publish.token,
            count: 1,
            fate: Fate::Stored(stored),
        };
        if is_durable(stored.position, publish, has_durable) {
            self.outcome_later(link, outcome, !publish.detailed);
        } else {
            self.outcome_now(link, outcome, !publish.detailed);
        }
    }
}

/// Whether a message is to be on the disk before its publisher hears of it.
pub(crate) fn is_durable(position: Position, publish: &Publish, has_durable: bool) -> bool {
    !position.is_memory() && (publish.persistent || has_durable || publish.format == Format::NATIVE)
}

/// When a message of that time to live expires, Unix milliseconds; 0 for never. Native messages do not.
pub(crate) fn expires_at(format: Format, attributes: Iter<'_>, now: Millis) -> u64 {
    if format == Format::NATIVE {
        return 0;
    }
    live(attributes).map_or(0, |millis| now.0.saturating_add(millis))
}

/// How long a message may live by its own words, milliseconds.
pub(crate) fn time_to_live(message: &Message) -> Option<u64> {
    match message.origin() {
        (Format::NATIVE, _) => None,
        _ => live(Iter::new(message.view().attributes())),
    }
}

fn live(mut attributes: Iter<'_>) -> Option<u64> {
    attributes.find_map(|(name, value)| match (name, value) {
        (Name::Known(Attribute::TimeToLive), Value::Uint(millis)) => Some(millis),
        _ => None,
    })
}

/// A message's priority; 0 when it has none.
fn priority(publish: &Publish) -> u64 {
    let known = publish.attributes.iter().find_map(|(name, value)| match (name, value) {
        (Name::Known(Attribute::Priority), Value::Uint(priority)) => Some(priority),
        _ => None,
    });
    known.unwrap_or(0)
}

/// What keeps messages of one topic in one message queue: the ordering key, else the key.
fn ordering_hash(publish: &Publish) -> Option<u64> {
    if publish.format == Format::NATIVE {
        let sharding = [&b"__SHARDINGKEY"[..], b"SHARDING_KEY"];
        return sharding
            .iter()
            .find_map(|name| properties::find(&publish.origin, name))
            .map(fnv1a);
    }
    let ordering = publish.attributes.iter().find_map(|(name, value)| match (name, value) {
        (Name::Known(Attribute::OrderingKey), Value::Text(text)) => Some(fnv1a(text)),
        _ => None,
    });
    ordering.or_else(|| (!publish.key.is_empty()).then(|| fnv1a(&publish.key)))
}
