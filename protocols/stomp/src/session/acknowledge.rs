//! ACK and NACK.

use bytes::Bytes;
use rocketbridge_core::boundary::{Settle, SubscriptionId};
use rocketbridge_session::Outbox;

use super::Failure;
use super::client::Client;
use super::subscribe::AckMode;
use crate::codec::{Frame, Version};
use crate::config::Config;
use crate::error_message::{Error, Text};
use crate::mapping::inbound::boolean;

/// A settlement that a frame asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settling {
    pub subscription: SubscriptionId,
    pub tag: u64,
    /// With all before it.
    pub cumulative: bool,
    pub action: Settle,
    /// The delivery's id, for people.
    pub id: Bytes,
}

impl Client {
    pub(super) fn handle_ack(&mut self, frame: &Frame, config: &Config, out: &mut Outbox) -> Result<(), Failure> {
        let settling = self.settling(frame, "ACK", Settle::Ack)?;
        self.settle_or_hold(frame, settling, config, out)
    }

    pub(super) fn handle_nack(&mut self, frame: &Frame, config: &Config, out: &mut Outbox) -> Result<(), Failure> {
        let requeue = match frame.header(b"requeue") {
            None => config.nack_requeue,
            Some(value) => boolean(value).ok_or_else(|| Error::InvalidHeader {
                header: "requeue",
                value: value.into(),
                expected: "true or false",
            })?,
        };
        let action = if requeue { Settle::Release } else { Settle::Reject };
        let settling = self.settling(frame, "NACK", action)?;
        self.settle_or_hold(frame, settling, config, out)
    }

    fn settle_or_hold(
        &mut self,
        frame: &Frame,
        settling: Settling,
        config: &Config,
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        if let Some(transaction) = frame.header(b"transaction") {
            return Ok(self.transactions.hold_settling(transaction, settling, config)?);
        }
        let subscription = self.subscriptions.get(&settling.subscription);
        if subscription.is_some_and(|subscription| subscription.grouped.is_some()) {
            return Ok(self.settle_popped(&settling, out)?);
        }
        let subscription = self.subscriptions.get_mut(&settling.subscription);
        let is_settled = subscription.is_some_and(|subscription| {
            let each = |_, settlement| out.settle(settlement);
            if settling.cumulative {
                subscription.unacked.settle_up_to(settling.tag, settling.action, each)
            } else {
                subscription.unacked.settle_one(settling.tag, settling.action, each)
            }
        });
        if is_settled {
            Ok(())
        } else {
            Err(Error::UnknownDelivery(Text::from(&settling.id[..])).into())
        }
    }

    /// Finds the delivery that a frame names.
    fn settling(&self, frame: &Frame, command: &'static str, action: Settle) -> Result<Settling, Error> {
        let header = if self.version >= Version::V12 {
            "id"
        } else {
            "message-id"
        };
        let id = frame
            .header(header.as_bytes())
            .ok_or(Error::NoHeader { command, header })?;
        let unknown = || Error::UnknownDelivery(Text::from(id));
        let (tag, number) = self.split_id(id).ok_or_else(unknown)?;
        let found = self
            .by_tag
            .get(tag)
            .and_then(|found| Some((*found, self.subscriptions.get(found)?)));
        let (found, subscription) = found.ok_or_else(|| Error::NoSubscription(Text::from(tag)))?;
        if subscription.mode == AckMode::Auto {
            return Err(Error::AutoMode(Text::from(id)));
        }
        let is_open = match &subscription.grouped {
            Some(grouped) => grouped.holds(number),
            None => subscription.unacked.contains(number),
        };
        if !is_open {
            return Err(unknown());
        }
        Ok(Settling {
            subscription: found,
            tag: number,
            cumulative: subscription.mode == AckMode::Client,
            action,
            id: Bytes::copy_from_slice(id),
        })
    }

    /// `T_subscription@@session@@number`.
    fn split_id<'a>(&self, id: &'a [u8]) -> Option<(&'a [u8], u64)> {
        let digits = id.iter().rev().take_while(|b| b.is_ascii_digit()).count();
        let (rest, number) = id.split_at(id.len() - digits);
        let tag = rest
            .strip_suffix(b"@@")?
            .strip_suffix(self.session.as_bytes())?
            .strip_suffix(b"@@")?;
        Some((tag, std::str::from_utf8(number).ok()?.parse().ok()?))
    }
}
