//! What core says: deliveries, outcomes, answers.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_core::boundary::{Delivery, Event, Notice, Settle, Settlement, SubscriptionId};
use rocketbridge_core::message::Message;
use rocketbridge_core::request::{Refusal, Reply, SettlePopped};
use rocketbridge_session::Outbox;

use super::Failure;
use super::client::{Client, put_receipt};
use super::groups::is_pop;
use super::queues::Wishes;
use super::send::rejection;
use super::subscribe::{Subscription, ToExchange};
use crate::codec::{Command, END_OF_FRAME, Version, put_number_header, put_plain_header};
use crate::config::Config;
use crate::error_message::Error;
use crate::mapping::outbound;

/// What core was asked. Each with the receipt of the frame that led to it, which an ERROR names too.
#[derive(Debug)]
pub(super) enum Asked {
    /// To make a queue that a frame needs.
    Declare {
        name: Bytes,
        wishes: Wishes,
        command: Command,
        receipt: Option<Bytes>,
    },
    /// What type an exchange has.
    Exchange(Box<ToExchange>),
    Bind {
        name: Bytes,
        receipt: Option<Bytes>,
    },
    Subscribe {
        queue: Bytes,
        receipt: Option<Bytes>,
        /// No frame is taken before its answer.
        is_awaited: bool,
    },
    Unsubscribe {
        id: SubscriptionId,
        receipt: Option<Bytes>,
    },
    Delete {
        receipt: Option<Bytes>,
    },
    Commit {
        receipts: Vec<Bytes>,
        /// What it settles of groups.
        popped: Vec<SettlePopped>,
    },
    /// To make the topic that a group consumes.
    Group {
        id: SubscriptionId,
        receipt: Option<Bytes>,
    },
    /// Something whose answer does not matter.
    Nothing,
}

impl Client {
    pub(super) fn handle_event(&mut self, event: Event, config: &Config, out: &mut Outbox) -> Result<(), Failure> {
        match event {
            Event::Delivery(delivery) => {
                self.deliver(&delivery, out);
                Ok(())
            }
            Event::Outcome(outcome) => self.handle_outcome(outcome, config, out),
            Event::Reply { id, result } if is_pop(id) => self.handle_popped(id, result, out),
            Event::Reply { result, .. } => self.handle_reply(result, config, out),
            Event::Notice(Notice::SubscriptionEnded(id)) => self.handle_ended(id),
            // Nothing is published as mandatory, and the driver itself goes on when there is room again.
            Event::Notice(_) | Event::Returned { .. } | Event::Writable => Ok(()),
        }
    }

    fn deliver(&mut self, delivery: &Delivery, out: &mut Outbox) {
        let is_leaving = self.is_leaving();
        let Some(subscription) = self.subscriptions.get_mut(&delivery.subscription) else {
            return give_back(delivery, Settle::Release, out);
        };
        // What is not leased is sent even behind a goodbye: nobody would get it any more.
        if delivery.leased && (is_leaving || !subscription.takes) {
            return give_back(delivery, Settle::Release, out);
        }
        let message = &delivery.message;
        if subscription
            .selector
            .as_ref()
            .is_some_and(|selector| !selector.matches_message(message))
        {
            return give_back(delivery, Settle::Ack, out);
        }
        let number = put_message(
            subscription,
            self.version,
            delivery.redelivered,
            message,
            &mut self.foreign,
            out,
        );
        if delivery.leased {
            subscription
                .unacked
                .push(number, delivery.subscription, delivery.sequence);
        }
    }

    /// Replies come in the order of requests.
    fn handle_reply(
        &mut self,
        result: Result<Reply, Refusal>,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let Some(asked) = self.asked.pop_front() else {
            return Ok(());
        };
        let receipt = match (asked, result) {
            (
                Asked::Declare {
                    wishes,
                    command,
                    receipt,
                    ..
                },
                Ok(Reply::Queue(state)),
            ) => {
                let checked = wishes.check(&state);
                checked.map_err(|error| Failure::of(error, command, receipt))?;
                None
            }
            (Asked::Exchange(waiting), Ok(Reply::Exchange(exchange))) => {
                self.subscribe_to_exchange(*waiting, &exchange, out);
                None
            }
            (
                Asked::Subscribe {
                    receipt, is_awaited, ..
                },
                Ok(_),
            ) => {
                self.waits &= !is_awaited;
                receipt
            }
            (Asked::Delete { receipt }, Ok(_)) => receipt,
            (Asked::Unsubscribe { id, receipt }, _) => {
                self.subscriptions.remove(&id);
                receipt
            }
            // It is gone, which is what was wanted.
            (Asked::Delete { receipt }, Err(Refusal::NotFound { .. })) => receipt,
            (Asked::Group { id, receipt }, Ok(_)) => {
                self.waits = false;
                // Before the first message.
                if let Some(receipt) = receipt {
                    put_receipt(self.version, &receipt, out.bytes());
                }
                self.begin_popping(id, out);
                None
            }
            (Asked::Group { receipt, .. }, Err(refusal)) => {
                return Err(Failure::of(
                    Error::of_refusal(&refusal, b""),
                    Command::Subscribe,
                    receipt,
                ));
            }
            (Asked::Nothing, _) => None,
            (Asked::Commit { receipts, .. }, Ok(_)) => {
                for receipt in receipts {
                    put_receipt(self.version, &receipt, out.bytes());
                }
                None
            }
            (
                Asked::Declare {
                    name, command, receipt, ..
                },
                Err(refusal),
            ) => {
                return Err(Failure::of(Error::of_refusal(&refusal, &name), command, receipt));
            }
            (Asked::Exchange(waiting), Err(refusal)) => return Err(waiting.failure(&refusal)),
            (
                Asked::Bind { name, receipt }
                | Asked::Subscribe {
                    queue: name, receipt, ..
                },
                Err(refusal),
            ) => {
                return Err(Failure::of(
                    Error::of_refusal(&refusal, &name),
                    Command::Subscribe,
                    receipt,
                ));
            }
            (Asked::Delete { receipt }, Err(refusal)) => {
                return Err(Failure::of(
                    Error::of_refusal(&refusal, b""),
                    Command::Unsubscribe,
                    receipt,
                ));
            }
            (Asked::Commit { mut receipts, popped }, Err(refusal)) => {
                self.give_back_settled(popped, out);
                let error = match &refusal {
                    Refusal::Rejected { reject, .. } => rejection(*reject, b"the transaction", config),
                    other => Error::of_refusal(other, b""),
                };
                return Err(Failure::of(error, Command::Commit, receipts.pop()));
            }
            (Asked::Declare { .. } | Asked::Exchange(_) | Asked::Bind { .. }, Ok(_)) => None,
        };
        if let Some(receipt) = receipt {
            put_receipt(self.version, &receipt, out.bytes());
        }
        Ok(())
    }

    /// A queue was deleted under its subscribers.
    fn handle_ended(&mut self, id: SubscriptionId) -> Result<(), Failure> {
        match self.subscriptions.get(&id) {
            Some(subscription) if subscription.takes => Err(Failure {
                subscription: subscription.header.clone(),
                ..Failure::from(Error::Cancelled)
            }),
            _ => Ok(()),
        }
    }
}

/// MESSAGE. Gives its number within its subscription.
pub(super) fn put_message(
    subscription: &mut Subscription,
    version: Version,
    redelivered: bool,
    message: &Message,
    foreign: &mut BytesMut,
    out: &mut Outbox,
) -> u64 {
    subscription.delivered += 1;
    let bytes = out.bytes();
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(subscription.delivered).as_bytes();
    bytes.put_slice(&subscription.prefix);
    bytes.put_slice(digits);
    bytes.put_u8(b'\n');
    if !subscription.ack_prefix.is_empty() {
        bytes.put_slice(&subscription.ack_prefix);
        bytes.put_slice(digits);
        bytes.put_u8(b'\n');
    }
    bytes.put_slice(if redelivered {
        b"redelivered:true\n"
    } else {
        b"redelivered:false\n"
    });
    if message.is_persistent() {
        put_plain_header(bytes, "persistent", b"true");
    }
    let payload = message.payload();
    if !payload.is_empty() {
        put_number_header(bytes, "content-length", payload.len() as u64);
    }
    outbound::put_headers(message, version, foreign, bytes);
    bytes.put_u8(b'\n');
    out.body(&payload, || payload.share());
    out.bytes().put_slice(END_OF_FRAME);
    subscription.delivered
}

fn give_back(delivery: &Delivery, action: Settle, out: &mut Outbox) {
    if delivery.leased {
        out.settle(Settlement {
            subscription: delivery.subscription,
            first: delivery.sequence,
            count: 1,
            action,
        });
    }
}
