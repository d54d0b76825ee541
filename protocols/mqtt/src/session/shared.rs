//! Shared subscriptions (5.0, 4.8.2): queues that sessions compete for.
//!
//! At most QoS 1 is granted. A message with QoS 2 would have to wait for this very client once it was sent
//! [MQTT-4.8.2-4], and be lost with its session [MQTT-4.8.2-5]; with QoS 1 what a client leaves
//! unacknowledged goes to another one at once.

use bytes::Bytes;
use rocketbridge_core::boundary::SubscriptionId;
use rocketbridge_core::request::{Acknowledge, Matcher, Request, Share, Source, Subscribe};
use rocketbridge_session::Outbox;

use super::client::Client;
use super::connect::limit_of;
use super::subscribe::Asked;
use crate::codec::SubscriptionOptions;
use crate::codec::text::split_shared;
use crate::config::Config;
use crate::mapping::{pattern_of, shared_queue_of};
use crate::subscriptions::Subscription;

/// The highest QoS granted to a shared subscription.
const QOS_MAX: u8 = 1;

/// Most messages that one shared subscription has in flight: what one client hoards is not there for the
/// others.
const WINDOW_MAX: u16 = 64;

/// A shared subscription.
pub(super) struct Member {
    /// As the client wrote it.
    filter: Box<[u8]>,
    pub(super) subscription: Subscription,
    /// Under which number it is consumed from.
    id: SubscriptionId,
}

/// All of a client's shared subscriptions.
#[derive(Default)]
pub(super) struct Shared {
    members: Vec<Member>,
    last_id: u32,
}

impl Client {
    pub(super) fn shared_count(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.members.len())
    }

    /// The shared subscription that a delivery is for.
    pub(super) fn member(&self, id: SubscriptionId) -> Option<&Member> {
        self.shared.as_ref()?.members.iter().find(|member| member.id == id)
    }

    pub(super) fn has_shared(&self, filter: &[u8]) -> bool {
        let mut members = self.shared.iter().flat_map(|shared| &shared.members);
        members.any(|member| *member.filter == *filter)
    }

    /// Subscribes; gives what is granted.
    pub(super) fn subscribe_shared(
        &mut self,
        index: usize,
        filter: &[u8],
        options: SubscriptionOptions,
        identifier: u32,
        config: &Config,
        out: &mut Outbox,
    ) {
        let Some((group, pattern)) = split_shared(filter) else {
            return;
        };
        let subscription = Subscription {
            options: options.with_qos(options.qos().min(QOS_MAX)),
            identifier,
        };
        let queue = shared_queue_of(group, pattern);
        let share = Share {
            queue: queue.clone(),
            limit: limit_of(config),
            source: Source::Everything,
            matcher: Matcher::Pattern(pattern_of(pattern)),
            cookie: subscription.cookie(filter),
        };
        let granted = subscription.options.qos();
        let asked = Asked::Share {
            index,
            filter: Bytes::copy_from_slice(filter),
            granted,
        };
        self.ask(asked, Request::Share(share), out);
        self.consume_shared(filter, subscription, queue, out);
    }

    /// Remembers a shared subscription and consumes from its queue, unless it does so already.
    pub(super) fn consume_shared(&mut self, filter: &[u8], subscription: Subscription, queue: Bytes, out: &mut Outbox) {
        let window = self.is.window.min(WINDOW_MAX);
        let shared = self.shared.get_or_insert_default();
        if let Some(member) = shared.members.iter_mut().find(|member| *member.filter == *filter) {
            member.subscription = subscription;
            return;
        }
        shared.last_id += 1;
        // 1 is the session's own queue.
        let id = SubscriptionId(shared.last_id + 1);
        shared.members.push(Member {
            filter: filter.into(),
            subscription,
            id,
        });
        let consume = Subscribe {
            subscription: id,
            queue,
            acknowledge: Acknowledge::Persistent,
            window: Some(u32::from(window)),
            exclusive: false,
            priority: 0,
            selector: None,
        };
        self.ask(Asked::Other, Request::Subscribe(consume), out);
    }

    /// Learns the shared subscriptions of a session that was there already.
    pub(super) fn resume_shared(&mut self, shares: Vec<(Bytes, Bytes)>, out: &mut Outbox) {
        for (queue, cookie) in shares {
            if let Some((subscription, filter)) = Subscription::from_cookie(&cookie) {
                self.consume_shared(filter, subscription, queue, out);
            }
        }
    }

    /// Forgets a shared subscription; gives whether there was one.
    pub(super) fn forget_shared(&mut self, filter: &[u8]) -> bool {
        let Some(shared) = &mut self.shared else { return false };
        let before = shared.members.len();
        shared.members.retain(|member| *member.filter != *filter);
        shared.members.len() < before
    }

    /// Asks core to end a shared subscription; gives whether there was one.
    pub(super) fn unsubscribe_shared(&mut self, index: usize, filter: &[u8], out: &mut Outbox) -> bool {
        let Some((group, pattern)) = split_shared(filter) else {
            return false;
        };
        if !self.forget_shared(filter) {
            return false;
        }
        let queue = shared_queue_of(group, pattern);
        self.ask(Asked::Unbind { index }, Request::Unshare { queue }, out);
        true
    }
}
