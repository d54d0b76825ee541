//! Class tx: what a channel in transaction mode publishes and settles is held here until it commits. Core then
//! does all of it or nothing.
//!
//! As in RabbitMQ, settling takes deliveries out of the unsettled ones at once (a tag is settled once), and a
//! rollback puts them back without sending them again. `basic.recover` and consuming are not part of it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rocketbridge_core::boundary::{Publish, Settlement};
use rocketbridge_core::request::{Commit, Refusal, Reply, Request};

use super::events::rejection;
use super::shared::{Context, What};
use crate::codec::Method;
use crate::mapping::ExchangeName;
use crate::reply_code::{ChannelError, Failure, Resource};
use rocketbridge_session::Unacked;

/// Octets that the transactions of one connection may hold together.
const HELD_MAX: usize = 4 * Commit::BYTES_MAX;

/// What a channel has published and settled since its last commit.
#[derive(Debug, Default)]
pub struct Tx {
    publishes: Vec<(Arc<ExchangeName>, Publish)>,
    bytes: usize,
    /// With the delivery tag of the first.
    settled: Vec<(u64, Settlement)>,
    /// More than core takes at once was published.
    too_large: bool,
}

impl Tx {
    fn items(&self) -> usize {
        self.publishes.len() + self.settled.len()
    }

    /// Holds a settlement.
    pub fn settle(&mut self, tag: u64, settlement: Settlement) {
        if let Some((first_tag, last)) = self.settled.last_mut()
            && *first_tag + u64::from(last.count) == tag
            && last.subscription == settlement.subscription
            && last.action == settlement.action
            && last.first + u64::from(last.count) == settlement.first
            && let Some(count) = last.count.checked_add(settlement.count)
        {
            last.count = count;
            return;
        }
        self.settled.push((tag, settlement));
    }

    /// Undoes what was settled.
    pub fn restore(&mut self, unacked: &mut Unacked) {
        for (tag, settlement) in self.settled.drain(..) {
            unacked.restore(tag, &settlement);
        }
    }
}

impl Context<'_> {
    /// `tx.select`
    pub fn tx_select(&mut self) -> Result<(), Failure> {
        if self.channel.confirms.is_some() {
            return Err(ChannelError::Invalid("cannot switch from confirm to tx mode".to_owned()).into());
        }
        self.channel.tx.get_or_insert_default();
        self.answer(&Method::TxSelectOk {});
        Ok(())
    }

    /// `tx.commit`
    pub fn tx_commit(&mut self) -> Result<(), Failure> {
        let tx = self.take_tx()?;
        if tx.too_large {
            let text = format!(
                "the transaction is larger than {} messages and settlements or {} octets",
                Commit::ITEMS_MAX,
                Commit::BYTES_MAX
            );
            // They go back with what else the channel has.
            self.channel.tx = Some(tx);
            return Err(ChannelError::Invalid(text).into());
        }
        if tx.items() == 0 {
            self.answer(&Method::TxCommitOk {});
            return Ok(());
        }
        self.shared.tx_bytes -= tx.bytes;
        let mut commit = Commit::default();
        let mut exchanges = Vec::with_capacity(tx.publishes.len());
        let mut tokens = 0..0;
        for (exchange, publish) in tx.publishes {
            let token = self.shared.publishes.push(self.channel.key, 0, &exchange);
            tokens = if tokens.is_empty() { token } else { tokens.start }..token + 1;
            commit.publishes.push(Publish { token, ..publish });
            exchanges.push(exchange);
        }
        commit.settlements = tx.settled.into_iter().map(|(_, settlement)| settlement).collect();
        self.request(What::Commit { tokens, exchanges }, Request::Commit(commit));
        Ok(())
    }

    /// `tx.rollback`
    pub fn tx_rollback(&mut self) -> Result<(), Failure> {
        let mut tx = self.take_tx()?;
        self.shared.tx_bytes -= tx.bytes;
        tx.restore(&mut self.channel.unacked);
        self.answer(&Method::TxRollbackOk {});
        Ok(())
    }

    fn take_tx(&mut self) -> Result<Tx, Failure> {
        match &mut self.channel.tx {
            Some(tx) => Ok(std::mem::take(tx)),
            None => Err(ChannelError::Invalid("channel is not transactional".to_owned()).into()),
        }
    }

    /// Holds a message until the channel commits.
    pub fn hold(&mut self, exchange: Arc<ExchangeName>, mut publish: Publish) {
        let size = Commit::size_of(&publish);
        let is_held = self.shared.tx_bytes + size <= HELD_MAX;
        let Some(tx) = &mut self.channel.tx else { return };
        if !is_held || tx.bytes + size > Commit::BYTES_MAX || tx.items() >= Commit::ITEMS_MAX {
            tx.too_large = true;
        }
        if tx.too_large {
            return;
        }
        // The socket's buffer is not to live as long as the transaction.
        for part in [
            &mut publish.topic,
            &mut publish.key,
            &mut publish.origin,
            &mut publish.body,
        ] {
            *part = Bytes::copy_from_slice(part);
        }
        tx.bytes += size;
        tx.publishes.push((exchange, publish));
        self.shared.tx_bytes += size;
    }

    /// The channel ends: nothing of it is committed.
    pub fn abandon_tx(&mut self) {
        if let Some(mut tx) = self.channel.tx.take() {
            self.shared.tx_bytes -= tx.bytes;
            tx.restore(&mut self.channel.unacked);
        }
    }

    /// Core has done all or nothing.
    pub fn committed(
        &mut self,
        tokens: Range<u64>,
        exchanges: &[Arc<ExchangeName>],
        result: Result<Reply, Refusal>,
    ) -> Result<(), Failure> {
        self.shared.publishes.settle(tokens.clone(), |_| {});
        while let Some(at) = self
            .shared
            .returned
            .iter()
            .position(|(token, _)| tokens.contains(token))
            && let Some((_, message)) = self.shared.returned.remove(at)
        {
            self.give_back(&message);
        }
        match result {
            Ok(Reply::Done) => {
                self.send(&Method::TxCommitOk {});
                Ok(())
            }
            Err(Refusal::Rejected { index, reject }) => {
                let exchange = exchanges
                    .get(index)
                    .map(|exchange| exchange.name.clone())
                    .unwrap_or_default();
                self.shared.forget(&exchange);
                let failure = rejection(reject, &exchange, &self.shared.user, self.config.message_size_max);
                Err(failure.unwrap_or_else(|| {
                    ChannelError::Invalid("a queue of the transaction refuses messages: nothing was done".to_owned())
                        .into()
                }))
            }
            other => Err(self.refused(&Resource::exchange(b""), other)),
        }
    }
}
