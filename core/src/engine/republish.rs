//! Publishing a stored message again: what a commit, a timer, a retry, a dead letter and a will have in
//! common. One atomic batch of the log holds what is done thereby and the new record, which is routed by the
//! bindings of that moment.

use std::net::SocketAddr;
use std::ops::Range;

use bytes::Bytes;

use crate::attributes::Attributes;
use crate::boundary::{Native, Publish, Reject};
use crate::engine::change::Change;
use crate::engine::publish::{Birth, Placed};
use crate::engine::router::QueueId;
use crate::engine::state::State;
use crate::history::History;
use crate::message::{Format, Message};
use crate::properties;

/// Most messages that one republished message may cause to be republished in turn (a full queue drops to
/// another full queue, and so on): whoever follows histories ends cycles long before.
const CHAIN_MAX: usize = 1024;

/// A stored message about to be published again. The caller changes what it wants changed: address,
/// attributes, origin, native properties. The body stays where it is until it is copied into the new record.
pub(crate) struct Revived {
    pub publish: Publish,
    pub birth: Birth,
    /// Of a message that a queue gave up: it does not get to a queue again that it goes round through.
    pub history: Option<Box<History>>,
}

impl Revived {
    /// As the message was published. Nobody hears of its outcome.
    pub(crate) fn of(message: &Message) -> Self {
        let view = message.view();
        let record = message.share_record();
        let slice = |part: &[u8]| record.slice_ref(part);
        let (format, origin) = view.origin();
        let is_native = format == Format::NATIVE;
        let native = Native {
            queue_id: is_native.then_some(view.native_queue().0),
            flag: view.flag(),
            sys_flag: view.sys_flag(),
            born_at: view.born_at(),
            reconsume_times: view.reconsume_times(),
            topic_queues: 0,
            half: false,
            attempts_max: None,
        };
        let publish = Publish {
            entry: view.entry(),
            topic: slice(view.topic()),
            key: slice(view.key()),
            body: slice(message.body()),
            attributes: Attributes::encoded(slice(view.attributes())),
            format,
            origin: slice(origin),
            persistent: view.is_persistent(),
            native: Some(Box::new(native)),
            ..Publish::default()
        };
        Self {
            publish,
            birth: Birth {
                host: view.born_host(),
                prepared: 0,
                dedup: None,
            },
            history: None,
        }
    }

    /// A message that the broker makes itself, or that a connection that is gone left behind.
    pub(crate) fn new(publish: Publish, host: SocketAddr) -> Self {
        Self {
            publish,
            birth: Birth {
                host,
                prepared: 0,
                dedup: None,
            },
            history: None,
        }
    }

    /// The key of a native message whose properties were changed lies in the new ones.
    pub(crate) fn retag(&mut self) {
        let tag = properties::find(&self.publish.origin, properties::TAGS).unwrap_or_default();
        self.publish.key = self.publish.origin.slice_ref(tag);
    }

    /// What only native messages have; foreign ones keep their flag and birth in it.
    pub(crate) fn native(&mut self) -> &mut Native {
        self.publish.native.get_or_insert_default()
    }
}

/// What is done with when a message is published again.
pub(crate) enum Done {
    /// Nothing: the original stays where it is, or the caller writes what is done itself within a batch.
    Nothing,
    /// Entries of a queue.
    Entries(QueueId, Range<u64>),
    /// What this change says.
    Change(Change),
}

impl State {
    /// Publishes a message again, and what is done thereby is done in the same batch. Routed now.
    ///
    /// Called while another message is republished (its arrival dropped one from a full queue, say), it is
    /// carried out after that one, in the same batch, and nobody hears of a refusal.
    ///
    /// # Errors
    /// When it cannot be routed or stored: then nothing was done.
    pub(crate) fn republish(&mut self, revived: Revived, done: Done) -> Result<(), Reject> {
        if self.republishing {
            return self.republish_later(revived, done);
        }
        let placed = self.check_republish(&revived)?;
        self.republishing = true;
        self.begin_batch();
        self.republish_one(&revived, &placed, done);
        let mut count = 1;
        while let Some((revived, done)) = self.republishes.pop_front() {
            count += 1;
            match self.check_republish(&revived) {
                Ok(placed) if count <= CHAIN_MAX => self.republish_one(&revived, &placed, done),
                refused => {
                    let why = refused.err();
                    tracing::debug!(?why, topic = %revived.publish.topic.escape_ascii(), "a message is dropped");
                    self.carry_out(done);
                }
            }
        }
        self.end_batch();
        self.republishing = false;
        Ok(())
    }

    fn republish_later(&mut self, revived: Revived, done: Done) -> Result<(), Reject> {
        if self.republishes.len() >= CHAIN_MAX {
            return Err(Reject::QueueFull);
        }
        self.republishes.push_back((revived, done));
        Ok(())
    }

    fn check_republish(&mut self, revived: &Revived) -> Result<Placed, Reject> {
        self.check_size(&revived.publish)?;
        let mut route = self.router.route_inside(&revived.publish, &self.queues)?;
        if let Some(history) = &revived.history {
            let goes_round = |id: &QueueId| {
                let queue = self.queues.get(*id);
                queue.is_some_and(|queue| history.is_cycle(&queue.spec.name))
            };
            if route.queues.iter().any(goes_round) {
                let others: Vec<_> = route.queues.iter().copied().filter(|id| !goes_round(id)).collect();
                route.queues = others.into();
            }
        }
        let mut placed = self.place_at(&revived.publish, route)?;
        // Nobody hears of a refusal: a queue that is full does not get it.
        if !placed.refusing.is_empty() {
            let refusing = std::mem::take(&mut placed.refusing);
            placed.leave_out(&refusing);
        }
        Ok(placed)
    }

    fn republish_one(&mut self, revived: &Revived, placed: &Placed, done: Done) {
        let mut destinations = std::mem::take(&mut self.destinations);
        self.carry_out(done);
        match self.later(&revived.publish) {
            Ok(Some(later)) => self.put_later(&revived.publish, revived.birth, placed, later),
            _ => self.put(&revived.publish, revived.birth, placed, &mut destinations),
        };
        self.destinations = destinations;
    }

    fn carry_out(&mut self, done: Done) {
        match done {
            Done::Nothing => {}
            Done::Entries(queue, range) => self.done(queue, range),
            Done::Change(change) => self.change_quietly(&change),
        }
    }
}

/// The bytes of a property string without the named ones and with others added.
pub(crate) fn edit_properties(properties: &[u8], without: &[&[u8]], with: &[(&[u8], &[u8])]) -> Bytes {
    use crate::properties::{pairs, push};
    let mut edited = Vec::with_capacity(properties.len() + 64);
    for (name, value) in pairs(properties) {
        if !without.contains(&name) && !with.iter().any(|(added, _)| *added == name) {
            push(&mut edited, name, value);
        }
    }
    for (name, value) in with {
        push(&mut edited, name, value);
    }
    edited.into()
}
