//! Which handler a method on a channel goes to.

use bytes::Bytes;
use rocketbridge_core::boundary::Settle;

use super::basic::{Consume, Settling};
use super::bindings::{Action, Fields};
use super::channel::Life;
use super::shared::{Context, What};
use super::{exchanges, queues};
use crate::codec::Method;
use crate::reply_code::{ChannelError, ConnectionError, Failure};

impl Context<'_> {
    /// Handles a method on an open channel. `chunk` is the input that the method's strings lie in.
    pub fn handle(&mut self, method: &Method<'_>, chunk: &Bytes) -> Result<(), Failure> {
        match *method {
            Method::BasicPublish {
                exchange,
                routing_key,
                mandatory,
                immediate,
                ..
            } => self.basic_publish(exchange.0, chunk.slice_ref(routing_key.0), mandatory, immediate),
            Method::BasicAck { delivery_tag, multiple } => self.basic_settle(Settling {
                delivery_tag,
                multiple,
                action: Settle::Ack,
            }),
            Method::BasicNack {
                delivery_tag,
                multiple,
                requeue,
            } => self.basic_settle(Settling {
                delivery_tag,
                multiple,
                action: if requeue { Settle::Release } else { Settle::Reject },
            }),
            Method::BasicReject { delivery_tag, requeue } => self.basic_settle(Settling {
                delivery_tag,
                multiple: false,
                action: if requeue { Settle::Release } else { Settle::Reject },
            }),
            Method::BasicGet { queue, no_ack, .. } => self.basic_get(queue.0, no_ack),
            Method::BasicConsume {
                queue,
                consumer_tag,
                no_ack,
                exclusive,
                no_wait,
                arguments,
                ..
            } => self.basic_consume(&Consume {
                queue: queue.0,
                consumer_tag: consumer_tag.0,
                no_ack,
                exclusive,
                no_wait,
                arguments,
            }),
            Method::BasicCancel { consumer_tag, no_wait } => {
                self.basic_cancel(consumer_tag.0, no_wait);
                Ok(())
            }
            // The answer to our cancel, which did not ask for one.
            Method::BasicCancelOk { .. } => Ok(()),
            Method::BasicQos {
                prefetch_size,
                prefetch_count,
                ..
            } => self.basic_qos(prefetch_size, prefetch_count),
            Method::BasicRecover { requeue } => self.basic_recover(requeue, true),
            Method::BasicRecoverAsync { requeue } => self.basic_recover(requeue, false),
            Method::ConfirmSelect { no_wait } => {
                if self.channel.tx.is_some() {
                    return Err(ChannelError::Invalid("cannot switch from tx to confirm mode".to_owned()).into());
                }
                self.channel.confirms.get_or_insert_default();
                if !no_wait {
                    self.answer(&Method::ConfirmSelectOk {});
                }
                Ok(())
            }
            Method::TxSelect {} => self.tx_select(),
            Method::TxCommit {} => self.tx_commit(),
            Method::TxRollback {} => self.tx_rollback(),
            Method::ChannelOpen { .. } => Err(ConnectionError::SecondChannelOpen.into()),
            Method::ChannelFlow { active: true } => {
                self.answer(&Method::ChannelFlowOk { active: true });
                Ok(())
            }
            Method::ChannelFlow { active: false } => Err(Failure::not_implemented("active=false")),
            Method::ChannelClose { .. } => {
                self.confirm();
                self.release();
                self.channel.life = Life::Closed;
                self.wait_for_turn(What::ChannelCloseOk);
                Ok(())
            }
            Method::AccessRequest { .. } => {
                self.answer(&Method::AccessRequestOk { ticket: 1 });
                Ok(())
            }
            _ => self.handle_topology(method),
        }
    }

    fn handle_topology(&mut self, method: &Method<'_>) -> Result<(), Failure> {
        match *method {
            Method::ExchangeDeclare {
                exchange,
                kind,
                passive,
                durable,
                auto_delete,
                internal,
                no_wait,
                arguments,
                ..
            } => self.exchange_declare(&exchanges::Declare {
                exchange: exchange.0,
                kind: kind.0,
                passive,
                durable,
                auto_delete,
                internal,
                no_wait,
                arguments,
            }),
            Method::ExchangeDelete {
                exchange,
                if_unused,
                no_wait,
                ..
            } => self.exchange_delete(exchange.0, if_unused, no_wait),
            Method::ExchangeBind {
                destination,
                source,
                routing_key,
                no_wait,
                arguments,
                ..
            } => self.exchange_bind(&Fields {
                action: Action::Bind,
                destination: destination.0,
                source: source.0,
                routing_key: routing_key.0,
                no_wait,
                arguments,
            }),
            Method::ExchangeUnbind {
                destination,
                source,
                routing_key,
                no_wait,
                arguments,
                ..
            } => self.exchange_bind(&Fields {
                action: Action::Unbind,
                destination: destination.0,
                source: source.0,
                routing_key: routing_key.0,
                no_wait,
                arguments,
            }),
            Method::QueueDeclare {
                queue,
                passive,
                durable,
                exclusive,
                auto_delete,
                no_wait,
                arguments,
                ..
            } => self.queue_declare(&queues::Declare {
                queue: queue.0,
                passive,
                durable,
                exclusive,
                auto_delete,
                no_wait,
                arguments,
            }),
            Method::QueueBind {
                queue,
                exchange,
                routing_key,
                no_wait,
                arguments,
                ..
            } => self.queue_bind(&Fields {
                action: Action::Bind,
                destination: queue.0,
                source: exchange.0,
                routing_key: routing_key.0,
                no_wait,
                arguments,
            }),
            Method::QueueUnbind {
                queue,
                exchange,
                routing_key,
                arguments,
                ..
            } => self.queue_bind(&Fields {
                action: Action::Unbind,
                destination: queue.0,
                source: exchange.0,
                routing_key: routing_key.0,
                no_wait: false,
                arguments,
            }),
            Method::QueuePurge { queue, no_wait, .. } => self.queue_purge(queue.0, no_wait),
            Method::QueueDelete {
                queue,
                if_unused,
                if_empty,
                no_wait,
                ..
            } => self.queue_delete(queue.0, if_unused, if_empty, no_wait),
            _ => Err(ConnectionError::UnimplementedMethod.into()),
        }
    }
}
