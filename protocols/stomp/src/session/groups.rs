//! Consuming a RocketMQ topic as a group: its messages are popped, and leased to the group until they are
//! acknowledged.
//!
//! A lease outlives nothing here: what is not acknowledged is given back when the subscription or the
//! connection ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rocketbridge_core::address::encode_name;
use rocketbridge_core::boundary::{RequestId, Settle, SubscriptionId};
use rocketbridge_core::engine::tag_hash;
use rocketbridge_core::filter::Sql;
use rocketbridge_core::request::{
    AckPopped, ChangeInvisible, Commit, Filter, Held, Pop, PopFrom, Popped, PoppedMessage, Refusal, Reply, Request,
    SettlePopped,
};
use rocketbridge_core::time::Millis;
use rocketbridge_session::Outbox;

use super::Failure;
use super::acknowledge::Settling;
use super::client::Client;
use super::events::{Asked, put_message};
use super::subscribe::{AckMode, Plan, Subscription};
use crate::codec::Command;
use crate::error_message::{Error, Text};
use crate::mapping::split_tags;

/// Request numbers from here on are pops: their answers come when there is something.
const FIRST_POP: u64 = 1 << 62;

/// Unacknowledged messages of a subscription that asks for no limit: each costs memory here.
const WINDOW: usize = 1000;

/// Most messages of one pop.
const POP_MAX: usize = 32;

/// Most bytes of one pop.
const POP_BYTES_MAX: u32 = 1 << 20;

/// How long a message may stay unacknowledged before another member gets it: RocketMQ's consume timeout.
const INVISIBLE: Millis = Millis::from_secs(15 * 60);

/// Message queues of a topic that a subscription makes.
const QUEUES: u32 = 4;

/// The part of a subscription that consumes as a group.
#[derive(Debug)]
pub(super) struct Grouped {
    group: Bytes,
    topic: Bytes,
    filter: Filter,
    /// What the filter's hashes stand for.
    tags: Vec<Bytes>,
    window: usize,
    /// Messages on their way to the client or not acknowledged by it, by number.
    held: BTreeMap<u64, Held>,
    /// The pop that waits.
    pop: Option<RequestId>,
    is_ready: bool,
}

impl Grouped {
    pub(super) fn holds(&self, number: u64) -> bool {
        self.held.contains_key(&number)
    }

    /// What is unacknowledged.
    pub(super) fn held(&self) -> &BTreeMap<u64, Held> {
        &self.held
    }

    /// A part of a batch.
    pub(super) fn settling(&self, messages: Vec<Held>, action: Settle) -> SettlePopped {
        SettlePopped {
            group: self.group.clone(),
            topic: self.topic.clone(),
            messages,
            action,
        }
    }

    fn ack(&self, messages: Vec<Held>) -> Request {
        Request::AckPopped(AckPopped {
            group: self.group.clone(),
            topic: self.topic.clone(),
            messages,
        })
    }

    fn give_back(&self, message: Held) -> Request {
        Request::ChangeInvisible(ChangeInvisible {
            group: self.group.clone(),
            topic: self.topic.clone(),
            message,
            invisible: Millis(0),
        })
    }

    /// Equal hashes are not yet equal tags.
    fn wants(&self, message: &PoppedMessage) -> bool {
        self.tags.is_empty() || self.tags.iter().any(|tag| *tag == message.message.key())
    }
}

/// Whether an answer is a pop's.
pub(super) fn is_pop(id: RequestId) -> bool {
    id.0 >= FIRST_POP
}

impl Client {
    pub(super) fn consume_as_group(
        &mut self,
        mut plan: Plan,
        group: &[u8],
        topic: &Bytes,
        tags: Option<&[u8]>,
        out: &mut Outbox,
    ) -> Result<(), Error> {
        if group.is_empty() || group.len() > 120 || std::str::from_utf8(group).is_err() {
            return Err(Error::InvalidHeader {
                header: "group",
                value: group.into(),
                expected: "a consumer group's name",
            });
        }
        let tags: Vec<Bytes> = match tags.map(<[u8]>::trim_ascii) {
            None | Some(b"" | b"*") => Vec::new(),
            Some(tags) => split_tags(tags).map(Bytes::copy_from_slice).collect(),
        };
        let filter = match plan.selector.take() {
            Some(sql) => Filter::Sql(Arc::<Sql>::new(sql)),
            None if tags.is_empty() => Filter::All,
            None => Filter::Tags(tags.iter().map(|tag| tag_hash(tag)).collect()),
        };
        let grouped = Grouped {
            group: encode_name(&Bytes::copy_from_slice(group)),
            topic: encode_name(topic),
            filter,
            tags,
            window: plan.window.map_or(WINDOW, |window| window as usize),
            held: BTreeMap::new(),
            pop: None,
            is_ready: false,
        };
        let id = self.next_subscription();
        let asked = Asked::Group {
            id,
            receipt: plan.receipt.clone(),
        };
        let request = Request::DeclareTopic {
            topic: grouped.topic.clone(),
            queues: QUEUES,
        };
        let mut subscription = Subscription::new(id, plan, Bytes::new(), self.version, &self.session);
        subscription.grouped = Some(Box::new(grouped));
        self.by_tag.insert(subscription.tag.clone(), id);
        self.subscriptions.insert(id, subscription);
        self.ask(asked, request, out);
        Ok(())
    }

    /// The topic is there: messages may come.
    pub(super) fn begin_popping(&mut self, id: SubscriptionId, out: &mut Outbox) {
        if let Some(grouped) = self.subscriptions.get_mut(&id).and_then(|s| s.grouped.as_deref_mut()) {
            grouped.is_ready = true;
        }
        self.pop(id, out);
    }

    /// Asks for more, as long as the client may have more.
    fn pop(&mut self, id: SubscriptionId, out: &mut Outbox) {
        if self.is_leaving() {
            return;
        }
        let Some(subscription) = self.subscriptions.get_mut(&id).filter(|s| s.takes) else {
            return;
        };
        let Some(grouped) = subscription.grouped.as_deref_mut() else {
            return;
        };
        let room = grouped.window.saturating_sub(grouped.held.len()).min(POP_MAX);
        if !grouped.is_ready || grouped.pop.is_some() || room == 0 {
            return;
        }
        self.next_pop += 1;
        let request_id = RequestId(FIRST_POP + self.next_pop);
        grouped.pop = Some(request_id);
        self.pops.insert(request_id, id);
        let pop = Pop {
            group: grouped.group.clone(),
            topic: grouped.topic.clone(),
            queue_id: None,
            messages_max: room as u32,
            bytes_max: POP_BYTES_MAX,
            invisible: INVISIBLE,
            filter: Some(grouped.filter.clone()),
            from: PopFrom::Begin,
            in_order: false,
            attempt: Bytes::new(),
            hold: true,
        };
        out.request(request_id, Request::Pop(pop));
    }

    /// What a pop found.
    pub(super) fn handle_popped(
        &mut self,
        request_id: RequestId,
        result: Result<Reply, Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let Some(id) = self.pops.remove(&request_id) else {
            return Ok(());
        };
        let is_leaving = self.is_leaving();
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            return Ok(());
        };
        let Some(mut grouped) = subscription.grouped.take() else {
            return Ok(());
        };
        grouped.pop = None;
        let popped: Popped = match result {
            Ok(Reply::Popped(popped)) => *popped,
            Ok(_) => return Ok(()),
            Err(refusal) => {
                let failure = Failure::of(Error::of_refusal(&refusal, &grouped.topic), Command::Subscribe, None);
                return Err(Failure {
                    subscription: subscription.header.clone(),
                    ..failure
                });
            }
        };
        let takes = subscription.takes && !is_leaving;
        let (mut done, mut back) = (Vec::new(), Vec::new());
        for message in &popped.messages {
            let held = Held {
                queue_id: message.queue_id,
                offset: message.offset,
                lease: message.lease,
            };
            if !takes {
                back.push(held);
                continue;
            }
            if !grouped.wants(message) {
                done.push(held);
                continue;
            }
            let number = put_message(
                subscription,
                self.version,
                message.redelivered,
                &message.message,
                &mut self.foreign,
                out,
            );
            if subscription.mode == AckMode::Auto {
                done.push(held);
            } else {
                grouped.held.insert(number, held);
            }
        }
        let mut requests: Vec<Request> = back.into_iter().map(|held| grouped.give_back(held)).collect();
        if !done.is_empty() {
            requests.push(grouped.ack(done));
        }
        let ended = !subscription.takes;
        subscription.grouped = Some(grouped);
        for request in requests {
            self.ask(Asked::Nothing, request, out);
        }
        if ended {
            self.subscriptions.remove(&id);
        } else {
            self.pop(id, out);
        }
        Ok(())
    }

    /// ACK and NACK of messages of a group.
    pub(super) fn settle_popped(&mut self, settling: &Settling, out: &mut Outbox) -> Result<(), Error> {
        let Some(subscription) = self.subscriptions.get_mut(&settling.subscription) else {
            return Err(Error::NoSubscription(Text::from(&settling.id[..])));
        };
        let Some(grouped) = subscription.grouped.as_deref_mut() else {
            return Err(Error::NoSubscription(Text::from(&settling.id[..])));
        };
        let settled = take_settled(&mut grouped.held, settling);
        let requests: Vec<Request> = match settling.action {
            Settle::Ack => settled.chunks(1024).map(|chunk| grouped.ack(chunk.to_vec())).collect(),
            Settle::Release => settled.into_iter().map(|held| grouped.give_back(held)).collect(),
            // Each by itself: together they would be refused when one lease has ended meanwhile.
            Settle::Reject => settled
                .into_iter()
                .map(|held| {
                    Request::Commit(Commit {
                        popped: vec![grouped.settling(vec![held], Settle::Reject)],
                        ..Commit::default()
                    })
                })
                .collect(),
        };
        for request in requests {
            self.ask(Asked::Nothing, request, out);
        }
        self.pop(settling.subscription, out);
        Ok(())
    }

    /// A transaction with messages of a group was committed: the client may have more of them.
    pub(super) fn settled_in_transaction(&mut self, id: SubscriptionId, left: BTreeMap<u64, Held>, out: &mut Outbox) {
        if let Some(grouped) = self.subscriptions.get_mut(&id).and_then(|s| s.grouped.as_deref_mut()) {
            grouped.held = left;
        }
        self.pop(id, out);
    }

    /// A transaction was refused: what it would have settled goes to other members at once.
    pub(super) fn give_back_settled(&mut self, popped: Vec<SettlePopped>, out: &mut Outbox) {
        for part in popped {
            for message in part.messages {
                let request = Request::ChangeInvisible(ChangeInvisible {
                    group: part.group.clone(),
                    topic: part.topic.clone(),
                    message,
                    invisible: Millis(0),
                });
                self.ask(Asked::Nothing, request, out);
            }
        }
    }

    /// Ends a group's subscription. Says whether nothing more comes of it.
    pub(super) fn stop_popping(&mut self, id: SubscriptionId, cancels: bool, out: &mut Outbox) -> bool {
        let Some(grouped) = self.subscriptions.get_mut(&id).and_then(|s| s.grouped.as_deref_mut()) else {
            return true;
        };
        let held = std::mem::take(&mut grouped.held);
        let requests: Vec<Request> = held.into_values().map(|held| grouped.give_back(held)).collect();
        let pop = grouped.pop;
        for request in requests {
            self.ask(Asked::Nothing, request, out);
        }
        if let Some(pop) = pop.filter(|_| cancels) {
            out.cancel(pop);
        }
        pop.is_none()
    }

    /// The connection ends: what it holds goes to other members at once.
    ///
    /// Who stays for the answers has waiting pops answered; without, they end with the link.
    pub(super) fn stop_all_popping(&mut self, cancels: bool, out: &mut Outbox) {
        let groups = self.subscriptions.iter().filter(|(_, s)| s.grouped.is_some());
        let groups: Vec<SubscriptionId> = groups.map(|(id, _)| *id).collect();
        for id in groups {
            self.stop_popping(id, cancels, out);
        }
    }
}

/// Takes what a frame settles out of what is held.
pub(super) fn take_settled(held: &mut BTreeMap<u64, Held>, settling: &Settling) -> Vec<Held> {
    if !settling.cumulative {
        return held.remove(&settling.tag).into_iter().collect();
    }
    let rest = held.split_off(&(settling.tag + 1));
    std::mem::replace(held, rest).into_values().collect()
}
