//! SUBSCRIBE and UNSUBSCRIBE.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use rocketbridge_core::boundary::RequestId;
use rocketbridge_core::request::{Refusal, Reply, Request};
use rocketbridge_session::Outbox;
use tracing::debug;

use super::Close;
use super::client::Client;
use crate::codec::properties::PropertyId;
use crate::codec::text::{is_sys, level_count, split_shared};
use crate::codec::{PacketType, Subscribe, SubscriptionOptions, Unsubscribe, Version, put_fixed_header, variable_len};
use crate::config::Config;
use crate::mapping::{binding_of, pattern_of};
use crate::reason_code::ReasonCode;
use crate::subscriptions::Subscription;

/// Stands for a code that core has not decided yet; SUBACK and UNSUBACK never carry it.
const UNDECIDED: u8 = 0xFF;

/// What core was asked.
#[derive(Debug)]
pub(super) enum Asked {
    /// To bind for the filter at that place of the SUBSCRIBE; what was there before comes back when it
    /// is refused.
    Bind {
        index: usize,
        filter: Bytes,
        granted: u8,
        previous: Option<Subscription>,
    },
    /// To unbind for the filter at that place of the UNSUBSCRIBE.
    Unbind { index: usize },
    /// To be a member for the shared filter at that place of the SUBSCRIBE.
    Share { index: usize, filter: Bytes, granted: u8 },
    /// To note that the client has these messages.
    Note { packet_ids: Vec<u16> },
    /// What the values below `$SYS` are: of those that match these new filters, or, `None`, of all that the
    /// client has subscribed to.
    Values { filters: Option<Vec<Bytes>> },
    /// Something whose answer does not matter.
    Other,
}

impl Asked {
    /// Unanswered requests at which reading stops.
    pub(super) const READ_MAX: usize = 1024;
    /// Most unanswered requests: what one huge SUBSCRIBE may make. Beyond it filters are refused.
    const MAX: usize = 16 * 1024;
}

/// A SUBACK or UNSUBACK that is not complete.
#[derive(Debug)]
pub(super) struct PendingAck {
    packet_type: PacketType,
    packet_id: u16,
    codes: Vec<u8>,
    /// How many codes are not decided.
    waiting: usize,
}

/// What waits for core's answers.
#[derive(Default)]
pub(super) struct Asking {
    /// What core has not answered, in order.
    asked: VecDeque<Asked>,
    /// SUBACKs and UNSUBACKs not sent, in order.
    acks: VecDeque<PendingAck>,
}

impl Asking {
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.acks.is_empty()
    }
}

impl Client {
    /// How much core has not answered.
    pub(super) fn asked_count(&self) -> usize {
        self.asking.as_ref().map_or(0, |asking| asking.asked.len())
    }

    fn asking(&mut self) -> &mut Asking {
        self.asking.get_or_insert_default()
    }

    /// What core answers next, when that is to become values below `$SYS`: the filters of [`Asked::Values`].
    pub(super) fn take_watched(&mut self) -> Option<Option<Vec<Bytes>>> {
        match self.asking.as_mut()?.asked.front_mut()? {
            Asked::Values { filters } => Some(filters.take()),
            _ => None,
        }
    }

    pub(super) fn next_request_id(&mut self) -> RequestId {
        self.asking().asked.push_back(Asked::Other);
        self.next_request += 1;
        RequestId(self.next_request - 1)
    }

    pub(super) fn ask(&mut self, asked: Asked, request: Request, out: &mut Outbox) {
        let id = self.next_request_id();
        if let Some(last) = self.asking().asked.back_mut() {
            *last = asked;
        }
        out.request(id, request);
    }

    pub(super) fn handle_subscribe(
        &mut self,
        subscribe: &Subscribe,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Close> {
        let identifier = subscribe
            .properties
            .number(PropertyId::SubscriptionIdentifier)
            .unwrap_or(0);
        let mut ack = PendingAck {
            packet_type: PacketType::SubAck,
            packet_id: subscribe.packet_id,
            codes: Vec::new(),
            waiting: 0,
        };
        // Retained messages come after the SUBACK of all filters, and so do values below `$SYS`.
        let mut recalls = Vec::new();
        let mut watched = Vec::new();
        for (index, (filter, options)) in subscribe.filters().enumerate() {
            let options = if self.is.is_bridge {
                options.of_bridge()
            } else {
                options
            };
            let code = match self.refusal_of(filter, config) {
                Some(reason) => self.subscribe_code(reason),
                None => {
                    if split_shared(filter).is_some() {
                        self.subscribe_shared(index, filter, options, identifier, config, out);
                    } else if self.subscribe(index, filter, options, identifier, out) {
                        if is_sys(filter) {
                            watched.push(Bytes::copy_from_slice(filter));
                        } else {
                            recalls.push(filter);
                        }
                    }
                    ack.waiting += 1;
                    UNDECIDED
                }
            };
            ack.codes.push(code);
        }
        for filter in recalls {
            let recall = Request::Recall {
                queue: self.queue.clone(),
                pattern: pattern_of(filter),
            };
            self.ask(Asked::Other, recall, out);
        }
        if !watched.is_empty() && config.sys_interval > Duration::ZERO {
            let filters = Some(watched);
            self.ask(Asked::Values { filters }, Request::Totals, out);
        }
        self.asking().acks.push_back(ack);
        self.send_acks(out)
    }

    /// Subscribes; gives whether the retained messages are wanted.
    fn subscribe(
        &mut self,
        index: usize,
        filter: &[u8],
        options: SubscriptionOptions,
        identifier: u32,
        out: &mut Outbox,
    ) -> bool {
        let subscription = Subscription { options, identifier };
        let cookie = subscription.cookie(filter);
        // At once, since deliveries may come before the reply. [MQTT-3.8.4-2]
        let previous = self.subscriptions.insert(filter, subscription);
        let wants_retained = options.wants_retained(previous.is_none());
        let asked = Asked::Bind {
            index,
            filter: cookie.slice(cookie.len() - filter.len()..),
            granted: subscription.options.qos(),
            previous,
        };
        let binding = binding_of(filter, self.queue.clone(), cookie);
        self.ask(asked, Request::Bind(binding), out);
        wants_retained
    }

    fn refusal_of(&mut self, filter: &[u8], config: &Config) -> Option<ReasonCode> {
        if config
            .refused_filters
            .iter()
            .any(|refused| *refused.as_bytes() == *filter)
        {
            return Some(ReasonCode::UnspecifiedError);
        }
        if level_count(filter) > config.topic_levels_max {
            return Some(ReasonCode::TopicFilterInvalid);
        }
        if split_shared(filter).is_some() {
            let is_full = self.shared_count() >= config.shared_subscriptions_max && !self.has_shared(filter);
            return (is_full || self.asked_count() >= Asked::MAX).then_some(ReasonCode::QuotaExceeded);
        }
        let is_full = self.subscriptions.len() >= config.subscriptions_max
            || self.subscriptions.bytes() + filter.len() > config.subscriptions_bytes_max as usize;
        let is_full = is_full && !self.subscriptions.contains(filter);
        (is_full || self.asked_count() >= Asked::MAX).then_some(ReasonCode::QuotaExceeded)
    }

    /// The only failure before 5.0 is 0x80.
    fn subscribe_code(&self, reason: ReasonCode) -> u8 {
        match self.is.version {
            Version::V5 => reason as u8,
            Version::V31 | Version::V311 => ReasonCode::UnspecifiedError as u8,
        }
    }

    pub(super) fn handle_unsubscribe(&mut self, unsubscribe: &Unsubscribe, out: &mut Outbox) -> Result<(), Close> {
        let mut ack = PendingAck {
            packet_type: PacketType::UnsubAck,
            packet_id: unsubscribe.packet_id,
            codes: Vec::new(),
            waiting: 0,
        };
        for (index, filter) in unsubscribe.filters().enumerate() {
            // What is there was asked for before, and there are never too many of those.
            let code = if self.unsubscribe_shared(index, filter, out) {
                ack.waiting += 1;
                UNDECIDED
            } else if self.subscriptions.remove(filter).is_some() {
                let binding = binding_of(filter, self.queue.clone(), Bytes::new());
                self.ask(Asked::Unbind { index }, Request::Unbind(binding), out);
                ack.waiting += 1;
                UNDECIDED
            } else {
                ReasonCode::NoSubscriptionExisted as u8
            };
            ack.codes.push(code);
        }
        self.asking().acks.push_back(ack);
        self.send_acks(out)
    }

    /// Replies come in the order of requests, so they are for the first answer that still waits.
    pub(super) fn handle_reply(
        &mut self,
        id: RequestId,
        result: Result<Reply, Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Close> {
        let asked = self.asking().asked.pop_front();
        if let Err(refusal) = &result {
            debug!(client_id = %self.id().escape_ascii(), ?id, ?asked, %refusal, "request refused");
        }
        let (index, code) = match asked {
            Some(Asked::Bind {
                index,
                filter,
                granted,
                previous,
            }) => (index, self.bound(&filter, granted, previous, &result)),
            Some(Asked::Unbind { index }) => {
                let reason = result.map_or_else(|refusal| ReasonCode::of_refusal(&refusal), |_| ReasonCode::Success);
                (index, reason as u8)
            }
            Some(Asked::Share { index, filter, granted }) => match &result {
                Ok(_) => (index, granted),
                Err(refusal) => {
                    self.forget_shared(&filter);
                    (index, self.subscribe_code(ReasonCode::of_refusal(refusal)))
                }
            },
            Some(Asked::Note { packet_ids }) => {
                // Refused only when the broker goes down: then the client gets its PUBREL when it is back.
                if result.is_ok() {
                    self.noted(&packet_ids, out);
                }
                return Ok(());
            }
            Some(Asked::Values { .. } | Asked::Other) | None => return Ok(()),
        };
        if let Some(ack) = self.asking().acks.iter_mut().find(|ack| ack.waiting > 0) {
            if let Some(slot) = ack.codes.get_mut(index) {
                *slot = code;
            }
            ack.waiting -= 1;
        }
        self.send_acks(out)
    }

    fn bound(
        &mut self,
        filter: &[u8],
        granted: u8,
        previous: Option<Subscription>,
        result: &Result<Reply, Refusal>,
    ) -> u8 {
        let Err(refusal) = result else {
            return granted;
        };
        match previous {
            Some(previous) => {
                self.subscriptions.insert(filter, previous);
            }
            None => {
                self.subscriptions.remove(filter);
            }
        }
        self.subscribe_code(ReasonCode::of_refusal(refusal))
    }

    /// Sends what is complete, in order.
    fn send_acks(&mut self, out: &mut Outbox) -> Result<(), Close> {
        while let Some(ack) = self.asking().acks.pop_front_if(|ack| ack.waiting == 0) {
            self.send_ack(&ack, out)?;
        }
        Ok(())
    }

    fn send_ack(&mut self, ack: &PendingAck, out: &mut Outbox) -> Result<(), Close> {
        let version = self.is.version;
        let is_refused = |code: &u8| *code >= ReasonCode::UnspecifiedError as u8;
        // MQTT 3.1 has no word for it, and a granted QoS would be a lie.
        if version == Version::V31 && ack.codes.iter().any(is_refused) {
            return Err(Close::Silently);
        }
        let codes: &[u8] = match (ack.packet_type, version) {
            (PacketType::UnsubAck, Version::V31 | Version::V311) => &[],
            _ => &ack.codes,
        };
        let remaining = 2 + usize::from(version == Version::V5) + codes.len();
        if 1 + variable_len(remaining as u32) + remaining > self.is.packet_size_max as usize {
            return Err(ReasonCode::PacketTooLarge.into());
        }
        let out = out.bytes();
        put_fixed_header(out, ack.packet_type.first_byte(), remaining);
        out.put_u16(ack.packet_id);
        if version == Version::V5 {
            out.put_u8(0);
        }
        out.put_slice(codes);
        self.counted.packets_out += 1;
        Ok(())
    }
}
