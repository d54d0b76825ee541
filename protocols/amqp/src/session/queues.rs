//! Methods of class queue, without bindings, and their replies.

use bytes::Bytes;
use rocketbridge_core::request::{Queue, QueueState, Refusal, Reply, Request};

use super::shared::{Context, What};
use crate::arguments::{QueueType, check_queue, check_queue_equivalence};
use crate::codec::{Method, ShortStr, Table};
use crate::mapping::inbound::{REPLY_TO_QUEUE, is_reply_queue};
use crate::mapping::strip_line_ends;
use crate::reply_code::{ChannelError, Failure, Resource};

/// The fields of `queue.declare`.
pub struct Declare<'a> {
    pub queue: &'a [u8],
    pub passive: bool,
    pub durable: bool,
    pub exclusive: bool,
    pub auto_delete: bool,
    pub no_wait: bool,
    pub arguments: Table<'a>,
}

impl Context<'_> {
    /// `queue.declare`
    pub fn queue_declare(&mut self, declare: &Declare<'_>) -> Result<(), Failure> {
        let no_wait = declare.no_wait;
        let stripped = strip_line_ends(declare.queue);
        if *stripped == *REPLY_TO_QUEUE {
            self.reply_queue_exists(&stripped, no_wait);
            return Ok(());
        }
        // Who is about to reply asks this way whether anybody listens.
        if declare.passive || is_reply_queue(&stripped) {
            let queue = Bytes::copy_from_slice(&stripped);
            self.channel.last_queue = Some(queue.clone());
            let what = What::FindQueue {
                queue: queue.clone(),
                no_wait,
            };
            self.request(what, Request::FindQueue { name: queue });
            return Ok(());
        }
        let server_named = stripped.is_empty();
        let name = if server_named {
            self.shared.names.queue()
        } else if stripped.starts_with(b"amq.") {
            return Err(ChannelError::ReservedName(Resource::queue(&stripped)).into());
        } else {
            Bytes::copy_from_slice(&stripped)
        };
        let arguments = check_queue(&name, declare.arguments)?;
        if arguments.queue_type == QueueType::Quorum {
            check_quorum(declare, &name, server_named)?;
        }
        let wanted = Queue {
            name: name.clone(),
            durable: declare.durable && !declare.exclusive,
            exclusive: declare.exclusive,
            auto_delete: declare.auto_delete,
            addressable: !server_named && !declare.exclusive,
            limit: arguments.limit,
            policy: arguments.policy,
            arguments: Bytes::copy_from_slice(declare.arguments.as_bytes()),
        };
        self.channel.last_queue = Some(name);
        let request = Request::DeclareQueue(wanted.clone());
        self.request(What::DeclareQueue { wanted, no_wait }, request);
        Ok(())
    }

    /// The reply to a declaration; a passive one wants nothing.
    pub fn queue_declared(
        &mut self,
        queue: &Bytes,
        wanted: Option<&Queue>,
        no_wait: bool,
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        match result {
            Ok(Reply::Queue(state)) => {
                if let Some(wanted) = wanted {
                    compare(wanted, &state)?;
                }
                let answer = Method::QueueDeclareOk {
                    queue: ShortStr(queue),
                    message_count: saturated(state.ready),
                    consumer_count: state.consumers,
                };
                self.send_unless(no_wait, &answer);
                Ok(())
            }
            // Another connection's: that it is there is all that anybody may know.
            Err(Refusal::Locked) if is_reply_queue(queue) => {
                self.reply_queue_exists(queue, no_wait);
                Ok(())
            }
            other => Err(self.refused(&Resource::queue(queue), other)),
        }
    }

    fn reply_queue_exists(&mut self, queue: &[u8], no_wait: bool) {
        let answer = Method::QueueDeclareOk {
            queue: ShortStr(queue),
            message_count: 0,
            consumer_count: 1,
        };
        if !no_wait {
            self.answer(&answer);
        }
    }

    /// `queue.purge`
    pub fn queue_purge(&mut self, queue: &[u8], no_wait: bool) -> Result<(), Failure> {
        let queue = self.queue_name(queue)?;
        let request = Request::PurgeQueue { name: queue.clone() };
        self.request(What::PurgeQueue { queue, no_wait }, request);
        Ok(())
    }

    /// The reply to a purge.
    pub fn queue_purged(
        &mut self,
        queue: &Bytes,
        no_wait: bool,
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        match result {
            Ok(Reply::Count(count)) => {
                let message_count = saturated(count);
                self.send_unless(no_wait, &Method::QueuePurgeOk { message_count });
                Ok(())
            }
            other => Err(self.refused(&Resource::queue(queue), other)),
        }
    }

    /// `queue.delete`
    pub fn queue_delete(
        &mut self,
        queue: &[u8],
        if_unused: bool,
        if_empty: bool,
        no_wait: bool,
    ) -> Result<(), Failure> {
        let queue = self.queue_name(&strip_line_ends(queue))?;
        let request = Request::DeleteQueue {
            name: queue.clone(),
            if_unused,
            if_empty,
        };
        self.request(What::DeleteQueue { queue, no_wait }, request);
        Ok(())
    }

    /// The reply to a deletion: what is not there is deleted.
    pub fn queue_deleted(
        &mut self,
        queue: &Bytes,
        no_wait: bool,
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        let count = match result {
            Ok(Reply::Count(count)) => count,
            Err(Refusal::NotFound { .. }) => 0,
            other => return Err(self.refused(&Resource::queue(queue), other)),
        };
        self.shared.gets.remove(queue);
        let message_count = saturated(count);
        self.send_unless(no_wait, &Method::QueueDeleteOk { message_count });
        Ok(())
    }
}

/// What a quorum queue cannot be.
fn check_quorum(declare: &Declare<'_>, name: &[u8], server_named: bool) -> Result<(), ChannelError> {
    if server_named {
        return Err(ChannelError::ServerNamedQuorum);
    }
    for (property, is_set) in [
        ("auto-delete", declare.auto_delete),
        ("exclusive-owner", declare.exclusive),
        ("non-durable", !declare.durable),
    ] {
        if is_set {
            let resource = Resource::queue(name);
            return Err(ChannelError::InvalidProperty { property, resource });
        }
    }
    Ok(())
}

fn saturated(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A queue may be declared again, as what it is; exclusivity is compared first and answered with 405.
fn compare(wanted: &Queue, state: &QueueState) -> Result<(), ChannelError> {
    if state.created {
        return Ok(());
    }
    let current = &state.queue;
    let resource = || Resource::queue(&wanted.name);
    if wanted.exclusive != current.exclusive {
        return Err(ChannelError::Locked(resource()));
    }
    for (argument, received, current) in [
        ("durable", wanted.durable, current.durable),
        ("auto_delete", wanted.auto_delete, current.auto_delete),
    ] {
        if received != current {
            return Err(ChannelError::Inequivalent {
                argument: argument.to_owned(),
                resource: resource(),
                received: format!("'{received}'"),
                current: format!("'{current}'"),
            });
        }
    }
    check_queue_equivalence(
        &wanted.name,
        Table::new(&current.arguments),
        Table::new(&wanted.arguments),
    )
}
