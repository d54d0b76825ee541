//! What the front-end counts, and the `$SYS` topics that tell it.
//!
//! One [`Stats`] belongs to all connections of a broker. Whoever has subscribed to a `$SYS` topic publishes the
//! values when they are due, on behalf of all: so nothing is published while nobody watches.

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
    pub(crate) publishes_in: AtomicU64,
    pub(crate) publishes_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Messages that a client could not get: larger than it accepts, or expired on their way.
    pub(crate) dropped: AtomicU64,
    pub(crate) subscriptions: AtomicU64,
    /// When `$SYS` values are to be published next, monotonic milliseconds.
    sys_due: AtomicU64,
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
    pub packets_in: u64,
    pub publishes_in: u64,
    pub publishes_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub dropped: u64,
}

impl Stats {
    pub(crate) fn add(&self, counted: &mut Counted) {
        let Counted {
            packets_in,
            publishes_in,
            publishes_out,
            bytes_in,
            bytes_out,
            dropped,
        } = std::mem::take(counted);
        let all = [
            (&self.packets_in, packets_in),
            (&self.publishes_in, publishes_in),
            (&self.publishes_out, publishes_out),
            (&self.bytes_in, bytes_in),
            (&self.bytes_out, bytes_out),
            (&self.dropped, dropped),
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

    pub(crate) fn disconnected(&self, subscriptions: u64) {
        self.clients.fetch_sub(1, Relaxed);
        self.recount(subscriptions, 0);
    }

    /// A client has so many subscriptions now.
    pub(crate) fn recount(&self, before: u64, now: u64) {
        if now != before {
            self.subscriptions.fetch_add(now.wrapping_sub(before), Relaxed);
        }
    }

    /// When `$SYS` values are to be published next.
    pub(crate) fn sys_due(&self) -> Millis {
        Millis(self.sys_due.load(Relaxed))
    }

    /// Whether the caller is the one who publishes the values that are due now. They are due again after
    /// `interval`.
    pub(crate) fn take_sys_turn(&self, now: Millis, interval: Millis) -> bool {
        let due = self.sys_due.load(Relaxed);
        due <= now.0
            && self
                .sys_due
                .compare_exchange(due, (now + interval).0, Relaxed, Relaxed)
                .is_ok()
    }

    /// The values are due at once: somebody new watches.
    pub(crate) fn hurry_sys(&self) {
        self.sys_due.store(0, Relaxed);
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
            ("$SYS/broker/messages/sent", publishes_out),
            ("$SYS/broker/messages/stored", totals.kept_messages),
            ("$SYS/broker/store/messages/count", totals.kept_messages),
            ("$SYS/broker/retained messages/count", totals.last_values),
            ("$SYS/broker/publish/messages/received", counted(&self.publishes_in)),
            ("$SYS/broker/publish/messages/sent", publishes_out),
            (
                "$SYS/broker/publish/messages/dropped",
                counted(&self.dropped) + totals.dropped_messages,
            ),
            ("$SYS/broker/bytes/received", counted(&self.bytes_in)),
            ("$SYS/broker/bytes/sent", counted(&self.bytes_out)),
            ("$SYS/broker/subscriptions/count", counted(&self.subscriptions)),
        ] {
            put(topic, format_args!("{count}"));
        }
    }
}
