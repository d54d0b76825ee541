//! The `$SYS` topics: a session sends its own client the values of those that it has subscribed to.

use bytes::BufMut;
use rocketbridge_core::request::Totals;
use rocketbridge_core::time::Millis;
use rocketbridge_session::Outbox;

use super::client::Client;
use crate::codec::text::filter_matches;
use crate::codec::{PacketType, Version, publish_flags, put_bytes16, put_fixed_header, put_variable, variable_len};
use crate::stats::Stats;

impl Client {
    /// Core has told its part of the values that were asked for: those for new subscriptions are sent as retained
    /// messages are, the others as new ones.
    pub(super) fn send_values(&mut self, stats: &Stats, now: Millis, totals: &Totals, out: &mut Outbox) {
        let Some(mut filters) = self.take_watched() else {
            return;
        };
        // Some may have been refused.
        if let Some(filters) = &mut filters {
            filters.retain(|filter| self.subscriptions.contains(filter));
        }
        stats.each_sys(now, totals, |topic, value| {
            let (topic, value) = (topic.as_bytes(), value.as_bytes());
            match &filters {
                Some(filters) if filters.iter().any(|filter| filter_matches(filter, topic)) => {
                    self.send_value(topic, value, true, out);
                }
                Some(_) => {}
                None => self.send_value(topic, value, false, out),
            }
        });
    }

    /// Sends a value with QoS 0, unless the client has not subscribed to it.
    fn send_value(&mut self, topic: &[u8], value: &[u8], is_kept: bool, out: &mut Outbox) {
        let matched = self.subscriptions.matched(topic);
        if matched.qos.is_none() {
            return;
        }
        let identifiers = &matched.identifiers;
        let mut remaining = 2 + topic.len() + value.len();
        if self.is.version == Version::V5 {
            remaining += variable_len(identifiers.len() as u32) + identifiers.len();
        }
        if 1 + variable_len(remaining as u32) + remaining > self.is.packet_size_max as usize {
            // [MQTT-3.1.2-25]
            self.counted.dropped += 1;
            return;
        }
        let flags = publish_flags(false, 0, is_kept || matched.retain_as_published);
        let out = out.bytes();
        put_fixed_header(out, PacketType::Publish.first_byte() | flags, remaining);
        put_bytes16(out, topic);
        if self.is.version == Version::V5 {
            put_variable(out, identifiers.len() as u32);
            out.put_slice(identifiers);
        }
        out.put_slice(value);
        self.counted.publishes_out += 1;
        self.counted.payload_bytes_out += value.len() as u64;
    }
}
