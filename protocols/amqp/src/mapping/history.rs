//! What the broker adds to the headers of a message: where it was given up before (`x-death` and friends) and
//! how often it came back (`x-delivery-count`). Names, order and types are RabbitMQ's.

use bytes::BytesMut;
use rocketbridge_core::history::{Death, History, Mark, Reason};
use rocketbridge_core::request::Way;

use super::TOPIC_EXCHANGE;
use crate::codec::table::{Array, put_value};
use crate::codec::{Table, TableWriter, Value};

/// How often it came back; absent on the first delivery.
pub const DELIVERY_COUNT: &[u8] = b"x-delivery-count";
/// Every queue that gave it up, the last first.
const DEATH: &[u8] = b"x-death";

/// The marks of the first and of the last death: header of the exchange, queue, reason.
const FIRST: [&[u8]; 3] = [
    b"x-first-death-exchange",
    b"x-first-death-queue",
    b"x-first-death-reason",
];
const LAST: [&[u8]; 3] = [b"x-last-death-exchange", b"x-last-death-queue", b"x-last-death-reason"];

/// Whether a header of that name is replaced when the broker adds its own.
fn is_own(name: &[u8], history: bool, attempts: bool) -> bool {
    (attempts && name == DELIVERY_COUNT)
        || (history && (name == DEATH || FIRST.contains(&name) || LAST.contains(&name)))
}

/// The headers of a message with those that the broker adds, by name as RabbitMQ sorts them.
pub fn headers(published: Option<Table<'_>>, history: Option<&History>, attempts: u32) -> TableWriter {
    let mut deaths = BytesMut::new();
    let mut all: Vec<(&[u8], Value<'_>)> = published
        .iter()
        .flat_map(Table::iter)
        .filter_map(Result::ok)
        .filter(|(name, _)| !is_own(name, history.is_some(), attempts > 0))
        .collect();
    if attempts > 0 {
        all.push((DELIVERY_COUNT, Value::Long(attempts.into())));
    }
    if let Some(history) = history {
        history.deaths.iter().for_each(|death| put_death(&mut deaths, death));
        all.push((DEATH, Value::Array(Array::new(&deaths))));
        all.extend(marks(FIRST, &history.first));
        all.extend(marks(LAST, &history.last));
    }
    all.sort_by_key(|(name, _)| *name);
    let mut headers = TableWriter::default();
    for (name, value) in all {
        headers.put(name, value);
    }
    headers
}

fn marks<'a>(names: [&'static [u8]; 3], mark: &'a Mark) -> [(&'static [u8], Value<'a>); 3] {
    let [exchange, queue, reason] = names;
    [
        (exchange, Value::LongStr(exchange_of(&mark.way))),
        (queue, Value::LongStr(&mark.queue)),
        (reason, Value::LongStr(reason_of(mark.reason))),
    ]
}

fn put_death(out: &mut BytesMut, death: &Death) {
    let expiration;
    let mut keys = BytesMut::new();
    put_value(&mut keys, Value::LongStr(&death.key));
    let mut table = TableWriter::default();
    if let Some(millis) = death.time_to_live {
        expiration = millis.to_string();
        table.put(b"original-expiration", Value::LongStr(expiration.as_bytes()));
    }
    table
        .put(b"count", Value::Long(i64::try_from(death.count).unwrap_or(i64::MAX)))
        .put(b"reason", Value::LongStr(reason_of(death.reason)))
        .put(b"queue", Value::LongStr(&death.queue))
        .put(b"time", Value::Timestamp(death.first_at.0 / 1000))
        .put(b"exchange", Value::LongStr(exchange_of(&death.way)))
        .put(b"routing-keys", Value::Array(Array::new(&keys)));
    put_value(out, Value::Table(table.table()));
}

fn exchange_of(way: &Way) -> &[u8] {
    match way {
        Way::Queue => b"",
        Way::Topics => TOPIC_EXCHANGE,
        Way::Exchange(name) => name,
    }
}

fn reason_of(reason: Reason) -> &'static [u8] {
    match reason {
        Reason::Rejected => b"rejected",
        Reason::Expired => b"expired",
        Reason::Limit => b"maxlen",
        Reason::DeliveryLimit => b"delivery_limit",
    }
}
