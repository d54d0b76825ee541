//! What the front-end counts, and the `$SYS` topics that tell it.
//!
//! One [`Stats`] belongs to all connections of a broker. A session whose client has subscribed to a `$SYS` topic
//! sends it the values itself: nothing is published, and nothing happens while nobody watches.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rocketbridge_core::request::Totals;
use rocketbridge_core::time::Millis;

/// Counters of all connections.
#[derive(Debug, Default)]
pub struct Stats {
    pub(crate) clients: AtomicU64,
    pub(crate) clients_max: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) packets_in: AtomicU64,
    /// Other ones than PUBLISH.
    pub(crate) packets_out: AtomicU64,
    pub(crate) publishes_in: AtomicU64,
    pub(crate) publishes_out: AtomicU64,
    /// Payloads of PUBLISH.
    pub(crate) payload_bytes_in: AtomicU64,
    pub(crate) payload_bytes_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Messages that a client could not get: larger than it accepts, or expired on their way.
    pub(crate) dropped: AtomicU64,
    subscriptions: AtomicU64,
    shared_subscriptions: AtomicU64,
}

/// How many subscriptions a client has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscribed {
    /// Its own ones.
    pub own: u32,
    pub shared: u32,
}

/// Settings are equal whatever was counted with them.
impl PartialEq for Stats {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Stats {}

/// What one connection counted since it last told it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub packets_in: u32,
    pub packets_out: u32,
    pub publishes_in: u32,
    pub publishes_out: u32,
    pub payload_bytes_in: u64,
    pub payload_bytes_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub dropped: u32,
}

impl Stats {
    pub(crate) fn add(&self, counted: &mut Counted) {
        let Counted {
            packets_in,
            packets_out,
            publishes_in,
            publishes_out,
            payload_bytes_in,
            payload_bytes_out,
            bytes_in,
            bytes_out,
            dropped,
        } = std::mem::take(counted);
        let all = [
            (&self.packets_in, packets_in.into()),
            (&self.packets_out, packets_out.into()),
            (&self.publishes_in, publishes_in.into()),
            (&self.publishes_out, publishes_out.into()),
            (&self.payload_bytes_in, payload_bytes_in),
            (&self.payload_bytes_out, payload_bytes_out),
            (&self.bytes_in, bytes_in),
            (&self.bytes_out, bytes_out),
            (&self.dropped, dropped.into()),
        ];
        for (counter, count) in all {
            if count > 0 {
                counter.fetch_add(count, Relaxed);
            }
        }
    }

    pub(crate) fn connected(&self) {
        let clients = self.clients.fetch_add(1, Relaxed) + 1;
        self.clients_max.fetch_max(clients, Relaxed);
        self.connects.fetch_add(1, Relaxed);
    }

    pub(crate) fn disconnected(&self, subscribed: Subscribed) {
        self.clients.fetch_sub(1, Relaxed);
        self.recount(subscribed, Subscribed::default());
    }

    /// A client has so many subscriptions now.
    pub(crate) fn recount(&self, before: Subscribed, now: Subscribed) {
        if now != before {
            let change = |before: u32, now: u32| u64::from(now).wrapping_sub(before.into());
            self.subscriptions.fetch_add(change(before.own, now.own), Relaxed);
            let shared = change(before.shared, now.shared);
            self.shared_subscriptions.fetch_add(shared, Relaxed);
        }
    }

    /// Something else than a connected client's packets went to and fro.
    pub(crate) fn add_bytes(&self, bytes_in: usize, bytes_out: usize) {
        self.bytes_in.fetch_add(bytes_in as u64, Relaxed);
        self.bytes_out.fetch_add(bytes_out as u64, Relaxed);
    }

    /// Calls `each` with every `$SYS` topic and its value, in Mosquitto's words. The monotonic clock begins
    /// with the broker.
    pub(crate) fn each_sys(&self, now: Millis, totals: &Totals, mut each: impl FnMut(&'static str, &str)) {
        each(
            "$SYS/broker/version",
            concat!("rocketbridge version ", env!("CARGO_PKG_VERSION")),
        );
        let mut text = String::new();
        let mut put = |topic, args: std::fmt::Arguments<'_>| {
            text.clear();
            // Writing to a string cannot fail.
            let _ = text.write_fmt(args);
            each(topic, &text);
        };
        put("$SYS/broker/uptime", format_args!("{} seconds", now.0 / 1000));
        let counted = |counter: &AtomicU64| counter.load(Relaxed);
        let (connected, waiting) = (counted(&self.clients), totals.waiting_sessions);
        let publishes_out = counted(&self.publishes_out);
        for (topic, count) in [
            ("$SYS/broker/clients/connected", connected),
            ("$SYS/broker/clients/active", connected),
            ("$SYS/broker/clients/disconnected", waiting),
            ("$SYS/broker/clients/inactive", waiting),
            ("$SYS/broker/clients/total", connected + waiting),
            ("$SYS/broker/clients/maximum", counted(&self.clients_max)),
            ("$SYS/broker/connections/count", counted(&self.connects)),
            ("$SYS/broker/messages/received", counted(&self.packets_in)),
            ("$SYS/broker/messages/sent", counted(&self.packets_out) + publishes_out),
            ("$SYS/broker/messages/stored", totals.kept_messages),
            ("$SYS/broker/store/messages/count", totals.kept_messages),
            ("$SYS/broker/retained messages/count", totals.last_values),
            ("$SYS/broker/publish/messages/received", counted(&self.publishes_in)),
            ("$SYS/broker/publish/messages/sent", publishes_out),
            (
                "$SYS/broker/publish/messages/dropped",
                counted(&self.dropped) + totals.dropped_messages,
            ),
            ("$SYS/broker/publish/bytes/received", counted(&self.payload_bytes_in)),
            ("$SYS/broker/publish/bytes/sent", counted(&self.payload_bytes_out)),
            ("$SYS/broker/bytes/received", counted(&self.bytes_in)),
            ("$SYS/broker/bytes/sent", counted(&self.bytes_out)),
            ("$SYS/broker/subscriptions/count", counted(&self.subscriptions)),
            (
                "$SYS/broker/shared_subscriptions/count",
                counted(&self.shared_subscriptions),
            ),
        ] {
            put(topic, format_args!("{count}"));
        }
    }
}
