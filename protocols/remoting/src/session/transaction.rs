//! Ending transactions and asking about them; messages that consumers give back and producers take back.

use bytes::Bytes;
use rocketbridge_core::boundary::CheckTransaction;
use rocketbridge_core::properties::{self, UNIQUE_KEY};
use rocketbridge_core::request::{EndTransaction, GiveBack, Request, TransactionEnd, Verdict};
use rocketbridge_core::store::record::Position;
use rocketbridge_core::time::Now;
use rocketbridge_session::Outbox;

use super::reply::Pending;
use super::send::offset_id_in;
use super::{ReplyTo, Session, answer};
use crate::codec::{Command, Writer};
use crate::mapping::delay::Handle;
use crate::mapping::{group, names, offset_id, required, required_number};
use crate::request_code::CHECK_TRANSACTION_STATE;
use crate::response_code::{Refused, ResponseCode};

/// Since this version (3.4.9) clients mean it when they say how often a message is tried again.
const ATTEMPTS_SINCE: i32 = 121;

impl Session {
    /// END_TRANSACTION. It may come on another connection than the half message did.
    pub(super) fn end_transaction(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let verdict = match required_number(command, "commitOrRollback")? {
            0x8 => Verdict::Commit,
            0xC => Verdict::Rollback,
            _ => Verdict::Unknown,
        };
        let unsigned =
            |name| -> Result<u64, Refused> { Ok(u64::try_from(required_number(command, name)?).unwrap_or(u64::MAX)) };
        let end = EndTransaction {
            position: Position(unsigned("commitLogOffset")?),
            offset: unsigned("tranStateTableOffset")?,
            group: required(command, "producerGroup")?.to_bytes(),
            verdict,
            from_check: command
                .field("fromTransactionCheck")
                .is_some_and(|value| value.is_true()),
        };
        self.ask(Request::EndTransaction(end), Pending::Ended(to), out)?;
        Ok(())
    }

    /// Asks the client about a transaction of one of its producers.
    pub(super) fn check_transaction(&mut self, check: &CheckTransaction, out: &mut Outbox) {
        let (_, origin) = check.message.origin();
        let unique_key = properties::find(origin, UNIQUE_KEY).unwrap_or_default();
        let mut buffer = [0; offset_id::ID_MAX];
        let id = offset_id_in(&mut buffer, self.config.store_host, check.position);
        self.last_opaque = self.last_opaque.wrapping_add(1) & i32::MAX;
        let mut writer = Writer::oneway(out.bytes(), self.last_opaque, CHECK_TRANSACTION_STATE);
        writer.text("bname", self.config.broker_name.as_bytes());
        writer.number("commitLogOffset", check.position.0 as i64);
        writer.text("msgId", unique_key);
        writer.text("offsetMsgId", id);
        writer.text("topic", check.message.topic());
        writer.number("tranStateTableOffset", check.offset as i64);
        writer.text("transactionId", unique_key);
        let record = check.message.native_record();
        writer.finish(record.len());
        let message = check.message.clone();
        out.body(record, || Bytes::copy_from_slice(message.native_record()));
    }

    /// CONSUMER_SEND_MSG_BACK
    pub(super) fn give_back(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let offset = required_number(command, "offset")?;
        let group = required(command, "group")?.to_bytes();
        names::check_group(&group)?;
        let level = required_number(command, "delayLevel")?.clamp(-1, 1000) as i32;
        let attempts_max = command
            .field("maxReconsumeTimes")
            .filter(|_| command.version() >= ATTEMPTS_SINCE)
            .map(|value| value.number().ok_or_else(|| Refused::no_number("maxReconsumeTimes")))
            .transpose()?;
        let position = Position(u64::try_from(offset).unwrap_or(u64::MAX));
        let mut buffer = [0; offset_id::ID_MAX];
        let id = offset_id_in(&mut buffer, self.config.store_host, position);
        let back = GiveBack {
            group,
            position,
            level,
            attempts_max: attempts_max.map(|max| max.clamp(-1, i32::MAX.into()) as i32),
            id: Bytes::copy_from_slice(id),
        };
        self.ask(
            Request::GiveBack(Box::new(back)),
            Pending::GivenBack { to, offset },
            out,
        )?;
        Ok(())
    }

    /// UPDATE_AND_CREATE_SUBSCRIPTION_GROUP: how its messages are tried again.
    pub(super) fn update_group(&mut self, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let (group, retry) = group::settings(command.body())?;
        self.ask(Request::SetRetry { group, retry }, Pending::Done(to), out)?;
        Ok(())
    }

    /// RECALL_MESSAGE
    pub(super) fn recall(&mut self, now: Now, command: &Command, to: ReplyTo, out: &mut Outbox) -> Result<(), Refused> {
        let topic = required(command, "topic")?.to_bytes();
        let illegal = |remark: &'static str| Refused::new(ResponseCode::IllegalOperation, remark);
        let handle = Handle::decode(&required(command, "recallHandle")?.bytes());
        let handle = handle.ok_or_else(|| illegal("recall handle is invalid"))?;
        if handle.topic != topic {
            return Err(illegal("recall failed, topic not match"));
        }
        let Some(position) = handle.position.filter(|_| handle.broker == self.config.broker_name) else {
            return Err(illegal("recall failed, broker service not available"));
        };
        if handle.due <= now.wall {
            return Err(illegal("recall failed, timestamp invalid"));
        }
        let unique_key = handle.unique_key;
        let request = Request::TakeBack {
            position,
            unique_key: unique_key.clone(),
        };
        self.ask(request, Pending::Recalled { to, unique_key }, out)?;
        Ok(())
    }
}

/// How ending a transaction went, in RocketMQ's words.
pub(super) fn answer_end(to: ReplyTo, end: TransactionEnd, out: &mut Outbox) {
    let (code, remark) = match end {
        TransactionEnd::Done => (ResponseCode::Success, ""),
        TransactionEnd::NotFound => (ResponseCode::SystemError, "Find prepared transaction message failed"),
        TransactionEnd::OtherGroup => (ResponseCode::SystemError, "The producer group wrong"),
        TransactionEnd::OtherOffset => (ResponseCode::SystemError, "The transaction state table offset wrong"),
        TransactionEnd::TooLate => (
            ResponseCode::IllegalOperation,
            "the time to end the transaction is over",
        ),
    };
    answer(out, to, code, remark, |_| {}, b"");
}
