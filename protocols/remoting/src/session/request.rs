//! What commands ask of core.

use bytes::Bytes;
use rocketbridge_core::request::{Request, ResetTo};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::{Millis, Now};
use rocketbridge_session::Outbox;

use super::reply::{Gather, Member, Pending, no_message, no_route};
use super::{ReplyTo, Session, answer};
use crate::codec::Command;
use crate::mapping::names::{self, AUTO_CREATE_TOPIC, RETRY_PREFIX};
use crate::mapping::route::{self, PERM_INHERIT, PERM_READ, PERM_WRITE, Route};
use crate::mapping::{group, pull, queue_id, required, required_number};
use crate::response_code::{Refused, ResponseCode};

/// Message queues in the route that producers take for a topic that does not exist.
const AUTO_CREATE_QUEUES: u32 = 8;

impl Session {
    // --- name server --------------------------------------------------------------------------

    /// GET_ROUTEINFO_BY_TOPIC
    pub(super) fn route_info(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let topic = required(command, "topic")?.to_bytes();
        let standard_only = command
            .field("acceptStandardJsonOnly")
            .is_some_and(|value| value.is_true());
        let quoted = route::is_quoted(command.version(), standard_only);
        if *topic == *AUTO_CREATE_TOPIC && self.config.topics_auto_create {
            let perm = PERM_READ | PERM_WRITE | PERM_INHERIT;
            self.answer_route(to, AUTO_CREATE_QUEUES, perm, quoted, out);
            return Ok(());
        }
        if names::check_topic(&topic).is_err() {
            return Err(no_route(&topic));
        }
        let pending = Pending::Route {
            to,
            topic: topic.clone(),
            quoted,
        };
        self.ask(Request::FindTopic { topic }, pending, out)?;
        Ok(())
    }

    pub(super) fn answer_route(&self, to: ReplyTo, queues: u32, perm: u32, quoted: bool, out: &mut Outbox) {
        let address = self.config.broker_address(self.peer.local);
        let route = Route {
            address: &address,
            queues,
            perm,
            quoted,
        };
        let body = route::route_body(&self.config, route);
        answer(out, to, ResponseCode::Success, "", |_| {}, &body);
    }

    /// GET_BROKER_CLUSTER_INFO
    pub(super) fn cluster_info(&self, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let address = self.config.broker_address(self.peer.local);
        let body = route::cluster_body(&self.config, &address);
        answer(out, to, ResponseCode::Success, "", |_| {}, &body);
        Ok(())
    }

    // --- offsets ------------------------------------------------------------------------------

    /// QUERY_CONSUMER_OFFSET
    pub(super) fn query_offset(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let group = required(command, "consumerGroup")?.to_bytes();
        let (topic, queue_id) = topic_and_queue(command)?;
        let pending = Pending::CommittedOffset {
            to,
            topic: topic.clone(),
            queue_id,
            zero_if_young: !command
                .field("setZeroIfNotFound")
                .is_some_and(|value| value.is("false")),
        };
        let request = Request::CommittedOffset { group, topic, queue_id };
        self.ask(request, pending, out)?;
        Ok(())
    }

    /// UPDATE_CONSUMER_OFFSET
    pub(super) fn update_offset(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let group = required(command, "consumerGroup")?.to_bytes();
        names::check_group(&group)?;
        let (topic, queue_id) = topic_and_queue(command)?;
        let offset = required_number(command, "commitOffset")?;
        let offset = u64::try_from(offset).map_err(|_| {
            Refused::new(
                ResponseCode::InvalidParameter,
                format!("commitOffset[{offset}] is negative"),
            )
        })?;
        let request = Request::CommitOffset {
            group,
            topic,
            queue_id,
            offset,
        };
        self.ask(request, Pending::Done(to), out)?;
        Ok(())
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP
    pub(super) fn search_offset(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let (topic, queue_id) = topic_and_queue(command)?;
        let at = required_number(command, "timestamp")?;
        let pending = Pending::SearchedOffset {
            to,
            topic: topic.clone(),
            queue_id,
        };
        let at = Millis(u64::try_from(at).unwrap_or(0));
        self.ask(Request::SearchOffset { topic, queue_id, at }, pending, out)?;
        Ok(())
    }

    /// GET_MAX_OFFSET and GET_MIN_OFFSET
    pub(super) fn bounds(&mut self, command: &Command, pending: Pending, out: &mut Outbox) -> Result<(), Refused> {
        let (topic, queue_id) = topic_and_queue(command)?;
        self.ask(Request::Bounds { topic, queue_id }, pending, out)?;
        Ok(())
    }

    /// INVOKE_BROKER_TO_RESET_OFFSET
    pub(super) fn reset_offset(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let group = required(command, "group")?.to_bytes();
        let topic = required(command, "topic")?.to_bytes();
        names::check_group(&group)?;
        names::check_topic(&topic)?;
        let timestamp = required_number(command, "timestamp")?;
        let number = |name| command.field(name).and_then(|value| value.number());
        let queue_id = number("queueId").and_then(|id| u32::try_from(id).ok());
        let offset = number("offset").and_then(|offset| u64::try_from(offset).ok());
        let reset_to = match (queue_id, offset, u64::try_from(timestamp)) {
            (Some(_), Some(offset), _) => ResetTo::Offset(offset),
            (_, _, Ok(at)) => ResetTo::Time(Millis(at)),
            // -1 is the end.
            (_, _, Err(_)) => ResetTo::End,
        };
        let pending = Pending::Reset {
            to,
            topic: topic.clone(),
        };
        let request = Request::ResetOffset {
            group,
            topic,
            queue_id,
            to: reset_to,
        };
        self.ask(request, pending, out)?;
        Ok(())
    }

    // --- messages -----------------------------------------------------------------------------

    /// PULL_MESSAGE and LITE_PULL_MESSAGE
    pub(super) fn pull(&mut self, now: Now, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let wanted = pull::pull_request(command, &self.config, &mut self.last_sql)?;
        let (pull, offset) = (wanted.pull, wanted.offset);
        if let Some(offset) = wanted.commit {
            let commit = Request::CommitOffset {
                group: pull.group.clone(),
                topic: pull.topic.clone(),
                queue_id: pull.queue_id,
                offset,
            };
            self.ask(commit, Pending::Unasked, out)?;
        }
        if offset < 0 {
            let (topic, queue_id) = (pull.topic, pull.queue_id);
            let pending = Pending::PullBounds { to, offset };
            self.ask(Request::Bounds { topic, queue_id }, pending, out)?;
            return Ok(());
        }
        let hold_until = pull.hold.then(|| now.mono + wanted.suspend);
        let pending = Pending::Pull { to, offset, hold_until };
        let id = self.ask(Request::Pull(pull), pending, out)?;
        if let Some(at) = hold_until {
            self.holds.insert((at, id));
        }
        Ok(())
    }

    /// VIEW_MESSAGE_BY_ID
    pub(super) fn view_message(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let offset = required_number(command, "offset")?;
        let position = u64::try_from(offset).map_err(|_| no_message(offset))?;
        let request = Request::View {
            position: Position(position),
        };
        self.ask(request, Pending::View { to, offset }, out)?;
        Ok(())
    }

    // --- groups -------------------------------------------------------------------------------

    /// HEART_BEAT
    pub(super) fn heart_beat(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let heartbeat = group::heartbeat(command.body())?;
        let most = heartbeat.producers.len() + 3 * heartbeat.consumers.len();
        if self.pending.len() + most > self.config.requests_max {
            return Err(super::busy("too many requests on this connection"));
        }
        let mut requests = Vec::new();
        let mut refused = None;
        for group in heartbeat.producers {
            if self.producers.contains(&group) {
                continue;
            }
            if let Err(error) = self.check_groups() {
                refused = Some(error);
                continue;
            }
            self.producers.insert(group.clone());
            let client_id = heartbeat.client_id.clone();
            requests.push(Request::JoinProducers { group, client_id });
        }
        for join in heartbeat.consumers {
            let join = match join {
                Ok(join) => join,
                Err(error) => {
                    refused = Some(error);
                    continue;
                }
            };
            match self.members.get(&join.group) {
                None => {
                    if let Err(error) = self.check_groups() {
                        refused = Some(error);
                        continue;
                    }
                    let topic = Bytes::from([RETRY_PREFIX, &join.group].concat());
                    requests.push(Request::DeclareTopic { topic, queues: 1 });
                }
                // A connection is one member of a group: its last name counts.
                Some(member) if member.client_id != join.client_id => requests.push(Request::LeaveConsumers {
                    group: join.group.clone(),
                    client_id: member.client_id.clone(),
                }),
                // What the group wants is known and stays.
                Some(_) if heartbeat.without_subscriptions => continue,
                Some(_) => {}
            }
            let member = Member {
                client_id: join.client_id.clone(),
                broadcasting: join.broadcasting,
            };
            self.members.insert(join.group.clone(), member);
            requests.push(Request::JoinConsumers(join));
        }
        let gather = Gather {
            to,
            remaining: requests.len(),
            refused,
            heartbeat: true,
        };
        self.gather(gather, requests, out)
    }

    /// UNREGISTER_CLIENT
    pub(super) fn unregister_client(
        &mut self,
        command: &Command,
        to: ReplyTo,
        out: &mut Outbox,
    ) -> Result<(), Refused> {
        required(command, "clientID")?;
        let mut requests = Vec::new();
        if let Some(group) = command.field("producerGroup")
            && let Some(group) = self.producers.take(&*group.bytes())
        {
            requests.push(Request::LeaveProducers { group });
        }
        if let Some(group) = command.field("consumerGroup") {
            // Only who came in on this connection leaves by it.
            if let Some((group, member)) = self.members.remove_entry(&*group.bytes()) {
                let client_id = member.client_id;
                requests.push(Request::LeaveConsumers { group, client_id });
            }
        }
        let gather = Gather {
            to,
            remaining: requests.len(),
            refused: None,
            heartbeat: false,
        };
        self.gather(gather, requests, out)
    }

    fn check_groups(&self) -> Result<(), Refused> {
        if self.members.len() + self.producers.len() >= self.config.groups_max {
            return Err(Refused::new(
                ResponseCode::SystemError,
                format!("more than {} groups on one connection", self.config.groups_max),
            ));
        }
        Ok(())
    }

    fn gather(&mut self, gather: Gather, requests: Vec<Request>, out: &mut Outbox) -> Result<(), Refused> {
        if requests.is_empty() {
            gather.answer(out);
            return Ok(());
        }
        let number = self.last_request + 1;
        self.gathers.insert(number, gather);
        for request in requests {
            if let Err(refused) = self.ask(request, Pending::Part(number), out) {
                self.gather_part(number, Err(refused), out);
            }
        }
        Ok(())
    }

    /// GET_CONSUMER_LIST_BY_GROUP
    pub(super) fn consumer_list(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let group = required(command, "consumerGroup")?.to_bytes();
        let pending = Pending::Members {
            to,
            group: group.clone(),
        };
        self.ask(Request::Members { group }, pending, out)?;
        Ok(())
    }

    /// LOCK_BATCH_MQ
    pub(super) fn lock(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let locks = group::locks(command.body(), &self.config.broker_name)?;
        let request = Request::LockQueues {
            group: locks.group,
            client_id: locks.client_id,
            queues: locks.queues,
        };
        self.ask(request, Pending::Locked(to), out)?;
        Ok(())
    }

    /// UNLOCK_BATCH_MQ
    pub(super) fn unlock(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let locks = group::locks(command.body(), &self.config.broker_name)?;
        let request = Request::UnlockQueues {
            group: locks.group,
            client_id: locks.client_id,
            queues: locks.queues,
        };
        self.ask(request, Pending::Done(to), out)?;
        Ok(())
    }
}

fn topic_and_queue(command: &Command) -> Result<(Bytes, u32), Refused> {
    let topic = required(command, "topic")?.to_bytes();
    names::check_topic(&topic)?;
    Ok((topic, queue_id(command)?))
}
