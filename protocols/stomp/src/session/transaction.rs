//! BEGIN, COMMIT and ABORT: frames are held until COMMIT, and then take effect together or not at all.

use bytes::Bytes;
use rocketbridge_core::boundary::Publish;
use rocketbridge_core::request::{Commit, Request, SettlePopped};
use rocketbridge_session::Outbox;

use super::Failure;
use super::acknowledge::Settling;
use super::client::{Client, Map, put_receipt};
use super::events::Asked;
use super::groups::take_settled;
use crate::codec::Frame;
use crate::config::Config;
use crate::error_message::{Error, Text};

/// The open transactions of a connection.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    open: Map<Bytes, Transaction>,
    /// Bytes that all of them hold.
    bytes: usize,
}

/// The frames of one transaction.
#[derive(Debug, Default)]
struct Transaction {
    publishes: Vec<Publish>,
    settlings: Vec<Settling>,
    /// Receipts of its SEND frames, which are given after COMMIT.
    receipts: Vec<Bytes>,
    bytes: usize,
}

/// What a frame costs besides its bytes.
const FRAME_COST: usize = 256;

impl Transactions {
    pub(super) fn hold_publish(
        &mut self,
        id: &[u8],
        mut publish: Publish,
        receipt: Option<Bytes>,
        config: &Config,
    ) -> Result<(), Error> {
        let size = FRAME_COST + Commit::size_of(&publish);
        let transaction = self.room(id, size, config)?;
        // Not the whole input that it lies in.
        publish.body = Bytes::copy_from_slice(&publish.body);
        transaction.publishes.push(publish);
        transaction.receipts.extend(receipt);
        Ok(())
    }

    pub(super) fn hold_settling(&mut self, id: &[u8], settling: Settling, config: &Config) -> Result<(), Error> {
        self.room(id, FRAME_COST, config)?.settlings.push(settling);
        Ok(())
    }

    fn room(&mut self, id: &[u8], size: usize, config: &Config) -> Result<&mut Transaction, Error> {
        let transaction = self
            .open
            .get_mut(id)
            .ok_or_else(|| Error::NoTransaction(Text::from(id)))?;
        let frames = transaction.publishes.len() + transaction.settlings.len();
        let frames_max = config.transaction_frames_max.min(Commit::ITEMS_MAX);
        if frames >= frames_max || self.bytes + size > config.transactions_size_max + frames_max * FRAME_COST {
            return Err(Error::TransactionTooLarge {
                frames: frames_max,
                bytes: config.transactions_size_max,
            });
        }
        self.bytes += size;
        transaction.bytes += size;
        Ok(transaction)
    }

    fn take(&mut self, id: &[u8]) -> Result<Transaction, Error> {
        let transaction = self
            .open
            .remove(id)
            .ok_or_else(|| Error::NoTransaction(Text::from(id)))?;
        self.bytes -= transaction.bytes;
        Ok(transaction)
    }
}

impl Client {
    pub(super) fn handle_begin(&mut self, frame: &Frame, config: &Config) -> Result<(), Failure> {
        let id = transaction_of(frame, "BEGIN")?;
        if self.transactions.open.contains_key(id) {
            return Err(Error::TransactionOpen(id.into()).into());
        }
        if self.transactions.open.len() >= config.transactions_max {
            return Err(Error::TransactionLimit(config.transactions_max).into());
        }
        self.transactions
            .open
            .insert(Bytes::copy_from_slice(id), Transaction::default());
        Ok(())
    }

    /// What the transaction held is forgotten: its messages were never sent, its deliveries are not settled.
    pub(super) fn handle_abort(&mut self, frame: &Frame) -> Result<(), Failure> {
        self.transactions.take(transaction_of(frame, "ABORT")?)?;
        Ok(())
    }

    pub(super) fn handle_commit(&mut self, frame: &Frame, out: &mut Outbox) -> Result<(), Failure> {
        let transaction = self.transactions.take(transaction_of(frame, "COMMIT")?)?;
        let mut settlements = Vec::new();
        let mut popped: Vec<SettlePopped> = Vec::new();
        // All or nothing: what one of them settles, another one may have settled before.
        let mut unacked = Map::default();
        let mut held = Map::default();
        for settling in &transaction.settlings {
            let subscription = self.subscriptions.get(&settling.subscription);
            if let Some(grouped) = subscription.and_then(|subscription| subscription.grouped.as_deref()) {
                let left = held
                    .entry(settling.subscription)
                    .or_insert_with(|| grouped.held().clone());
                if !left.contains_key(&settling.tag) {
                    return Err(Error::UnknownDelivery((&settling.id[..]).into()).into());
                }
                popped.push(grouped.settling(take_settled(left, settling), settling.action));
                continue;
            }
            let left = unacked.entry(settling.subscription).or_insert_with(|| {
                let subscription = self.subscriptions.get(&settling.subscription);
                subscription
                    .map(|subscription| subscription.unacked.clone())
                    .unwrap_or_default()
            });
            let each = |_, settlement| settlements.push(settlement);
            let is_settled = if settling.cumulative {
                left.settle_up_to(settling.tag, settling.action, each)
            } else {
                left.settle_one(settling.tag, settling.action, each)
            };
            if !is_settled {
                return Err(Error::UnknownDelivery((&settling.id[..]).into()).into());
            }
        }
        for (id, left) in unacked {
            if let Some(subscription) = self.subscriptions.get_mut(&id) {
                subscription.unacked = left;
            }
        }
        for (id, left) in held {
            self.settled_in_transaction(id, left, out);
        }
        let mut receipts = transaction.receipts;
        receipts.extend(frame.copy(b"receipt"));
        let mut publishes = transaction.publishes;
        for publish in &mut publishes {
            publish.token = self.next_token;
        }
        if publishes.is_empty() && settlements.is_empty() && popped.is_empty() {
            for receipt in receipts {
                put_receipt(self.version, &receipt, out.bytes());
            }
            return Ok(());
        }
        let asked = Asked::Commit {
            receipts,
            popped: popped.clone(),
        };
        let commit = Commit {
            publishes,
            settlements,
            popped,
        };
        self.ask(asked, Request::Commit(commit), out);
        Ok(())
    }
}

fn transaction_of<'a>(frame: &'a Frame, command: &'static str) -> Result<&'a [u8], Error> {
    frame.header(b"transaction").ok_or(Error::NoHeader {
        command,
        header: "transaction",
    })
}
