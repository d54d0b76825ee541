//! What a client gets.

use bytes::BufMut;
use rocketbridge_core::boundary::Delivery;
use rocketbridge_session::Outbox;

use super::Close;
use super::client::{Client, settled};
use crate::codec::{PacketType, Version, publish_flags, put_bytes16, put_fixed_header, put_variable, variable_len};
use crate::mapping::{FORMAT, Origin, put_foreign_properties, put_topic};
use crate::reason_code::ReasonCode;

impl Client {
    /// Appends the PUBLISH of a delivery; what the client cannot get is done with.
    pub(super) fn deliver(&mut self, delivery: &Delivery, out: &mut Outbox) -> Result<(), Close> {
        let message = &delivery.message;
        let is_v5 = self.is.version == Version::V5;
        let (format, header) = message.origin();
        let origin = (format == FORMAT).then(|| Origin::parse(header)).flatten();
        let (topic, properties, is_own) = match &origin {
            Some(origin) => (
                origin.topic,
                origin.properties,
                *origin.client_id == self.is.client_id[..],
            ),
            None => {
                self.foreign.clear();
                if !put_topic(message, &mut self.foreign) {
                    return self.done(delivery, out);
                }
                let topic_len = self.foreign.len();
                if is_v5 {
                    put_foreign_properties(message, &mut self.foreign);
                }
                let (topic, properties) = self.foreign.split_at(topic_len);
                (topic, properties, false)
            }
        };
        let own;
        let mut matched = self.subscriptions.matched(topic);
        if matched.no_local && is_own {
            own = self.subscriptions.matched_own(topic);
            matched = &own;
        }
        let Some(granted) = matched.qos else {
            return self.done(delivery, out);
        };
        // Core leases exactly what was published with QoS 1 or its like. [MQTT-3.8.4-8]
        let qos = if delivery.leased { granted } else { 0 };
        let payload = message.payload();
        let body = &payload[..];
        let mut remaining = 2 + topic.len() + usize::from(qos > 0) * 2 + body.len();
        let properties_len = matched.identifiers.len() + properties.len();
        if is_v5 {
            remaining += variable_len(properties_len as u32) + properties_len;
        }
        let size = 1 + variable_len(remaining as u32) + remaining;
        if size > self.is.packet_size_max as usize {
            // [MQTT-3.1.2-25]
            return self.done(delivery, out);
        }
        let packet_id = match qos {
            0 => 0,
            _ => match self.in_flight.insert(delivery.sequence) {
                Some(packet_id) => packet_id,
                // Core keeps to a window below that.
                None => return Err(ReasonCode::UnspecifiedError.into()),
            },
        };
        let bytes = out.bytes();
        bytes.reserve(size - body.len());
        let is_dup = qos > 0 && delivery.redelivered;
        put_fixed_header(
            bytes,
            PacketType::Publish.first_byte() | publish_flags(is_dup, qos, false),
            remaining,
        );
        put_bytes16(bytes, topic);
        if qos > 0 {
            bytes.put_u16(packet_id);
        }
        if is_v5 {
            put_variable(bytes, properties_len as u32);
            bytes.put_slice(&matched.identifiers);
            bytes.put_slice(properties);
        }
        out.body(body, || payload.share());
        if qos == 0 {
            return self.done(delivery, out);
        }
        Ok(())
    }

    fn done(&self, delivery: &Delivery, out: &mut Outbox) -> Result<(), Close> {
        if delivery.leased {
            out.settle(settled(delivery.sequence));
        }
        Ok(())
    }
}
