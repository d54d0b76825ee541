//! A connected client.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use foldhash::HashMap;
use rocketbridge_core::boundary::{Delivery, Settle, Settlement, SubscriptionId};
use rocketbridge_core::request::Request;
use rocketbridge_core::time::Millis;
use rocketbridge_session::Outbox;

use super::Close;
use super::connect::{FIRST_REQUEST, SUBSCRIPTION, keep_alive_span, keep_of};
use super::note::Note;
use super::publish::Publishing;
use super::shared::Shared;
use super::subscribe::{Asked, Asking};
use crate::codec::properties::PropertyId;
use crate::codec::text::split_shared;
use crate::codec::{Ack, Disconnect, Packet, PacketType, SubscriptionOptions, Version, put_fixed_header};
use crate::config::Config;
use crate::inflight::{InFlight, Step};
use crate::mapping::queue_of;
use crate::reason_code::ReasonCode;
use crate::stats::{Counted, Subscribed};
use crate::subscriptions::{Subscription, Subscriptions};

/// What is settled when a client is connected.
pub(super) struct Connected {
    pub version: Version,
    /// Another broker: it wants nothing back that came from it.
    pub is_bridge: bool,
    pub client_id: Bytes,
    /// Seconds, 0 for off.
    pub keep_alive: u16,
    /// Most messages in flight to it.
    pub window: u16,
    /// Largest packet that the client accepts, bytes.
    pub packet_size_max: u32,
    /// Most topic aliases that the client was told of.
    pub topic_alias_maximum: u16,
    /// Most topic aliases used towards it.
    pub outgoing_alias_maximum: u16,
    /// How long the session outlives the connection.
    pub keep: Millis,
    /// The session outlives a connection, this one or an earlier one: core knows which QoS 2 messages came over it.
    pub is_kept: bool,
}

/// The state of a connected client.
pub(super) struct Client {
    pub(super) is: Connected,
    /// The name of its session's queue.
    pub(super) queue: Bytes,
    pub(super) subscriptions: Subscriptions,
    /// What earlier connections sent may still come, to be sent again.
    pub(super) may_resend: bool,
    /// The subscriptions of then, if others came since.
    pub(super) earlier: Option<Box<Subscriptions>>,
    pub(super) shared: Option<Box<Shared>>,
    pub(super) in_flight: InFlight,
    /// PUBREC came, and core has not said that it is noted: packet identifier and sequence.
    pub(super) received: Vec<(u16, u64)>,
    /// Deliveries that wait because so many messages are in flight as the client accepts.
    pub(super) waiting: VecDeque<Delivery>,
    /// Aliases of topics towards the client.
    pub(super) outgoing_aliases: Option<Box<HashMap<Box<[u8]>, u16>>>,
    /// Of a client that has published something.
    pub(super) publishing: Option<Box<Publishing>>,
    /// Topic and properties of a delivery from another protocol.
    pub(super) foreign: BytesMut,
    pub(super) next_token: u64,
    pub(super) next_request: u64,
    /// What waits for core's answers, if anything does.
    pub(super) asking: Option<Box<Asking>>,
    pub(super) counted: Counted,
    /// How many of its subscriptions are counted with all others.
    pub(super) counted_subscriptions: Subscribed,
}

impl Client {
    pub(super) fn new(is: Connected) -> Self {
        Self {
            queue: queue_of(&is.client_id),
            is,
            subscriptions: Subscriptions::default(),
            may_resend: false,
            earlier: None,
            shared: None,
            in_flight: InFlight::default(),
            received: Vec::new(),
            waiting: VecDeque::new(),
            outgoing_aliases: None,
            publishing: None,
            foreign: BytesMut::new(),
            next_token: 0,
            next_request: FIRST_REQUEST,
            asking: None,
            counted: Counted::default(),
            counted_subscriptions: Subscribed::default(),
        }
    }

    /// Learns the subscriptions of a session that was there already.
    pub(super) fn resume(&mut self, cookies: &[Bytes]) {
        self.may_resend = !cookies.is_empty();
        for cookie in cookies {
            if let Some((subscription, filter)) = Subscription::from_cookie(cookie) {
                self.subscriptions.insert(filter, subscription);
            }
        }
    }

    pub(super) fn subscribed(&self) -> Subscribed {
        Subscribed {
            own: self.subscriptions.len() as u32,
            shared: self.shared_count() as u32,
        }
    }

    pub(super) fn id(&self) -> &[u8] {
        &self.is.client_id
    }

    pub(super) fn version(&self) -> Version {
        self.is.version
    }

    pub(super) fn keep_alive(&self) -> Option<Millis> {
        keep_alive_span(self.is.keep_alive)
    }

    pub(super) fn wants_read(&self, config: &Config) -> bool {
        !self.is_full(config) && self.asked_count() < Asked::READ_MAX
    }

    /// Everything that came is handled: gives memory back that an idle client does not need.
    pub(super) fn rest(&mut self) {
        const KEPT_MAX: usize = 4096;
        const ITEMS_KEPT_MAX: usize = 64;
        if self.foreign.capacity() > KEPT_MAX {
            self.foreign = BytesMut::new();
        }
        if self.in_flight.len() == 0 {
            self.in_flight.rest(ITEMS_KEPT_MAX);
        }
        if let Some(Publishing { unconfirmed, .. }) = self.publishing.as_deref_mut()
            && unconfirmed.is_empty()
            && unconfirmed.capacity() > ITEMS_KEPT_MAX
        {
            *unconfirmed = VecDeque::new();
        }
        if self.asking.as_ref().is_some_and(|asking| asking.is_empty()) {
            self.asking = None;
        }
        if self.waiting.is_empty() && self.waiting.capacity() > 0 {
            self.waiting = VecDeque::new();
        }
    }

    pub(super) fn handle_packet(&mut self, packet: Packet, config: &Config, out: &mut Outbox) -> Result<(), Close> {
        self.counted.packets_in += 1;
        match packet {
            Packet::Publish(publish) => self.handle_publish(publish, config, out),
            Packet::PubAck(ack) => self.handle_puback(&ack, out),
            Packet::PubRec(ack) => self.handle_pubrec(&ack, out),
            Packet::PubRel(ack) => {
                self.handle_pubrel(&ack, out);
                Ok(())
            }
            Packet::PubComp(ack) => self.handle_pubcomp(&ack, out),
            Packet::Subscribe(subscribe) => {
                let mut filters = subscribe.filters();
                if filters.any(|(filter, options)| self.changes_qos(filter, Some(options))) {
                    self.keep_sent(out);
                }
                self.handle_subscribe(&subscribe, config, out)
            }
            Packet::Unsubscribe(unsubscribe) => {
                if unsubscribe.filters().any(|filter| self.changes_qos(filter, None)) {
                    self.keep_sent(out);
                }
                self.handle_unsubscribe(&unsubscribe, out)
            }
            Packet::PingReq => {
                put_fixed_header(out.bytes(), PacketType::PingResp.first_byte(), 0);
                self.counted.packets_out += 1;
                Ok(())
            }
            Packet::Disconnect(disconnect) => Err(self.handle_disconnect(&disconnect, config, out)),
            // No authentication method was agreed on (5.0, 4.12); the decoder refuses the others.
            Packet::Auth(_)
            | Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => Err(ReasonCode::ProtocolError.into()),
        }
    }

    // --- acknowledgements of what was sent --------------------------------------------------------

    /// An identifier that is not in flight is ignored: it may be of an earlier connection.
    fn handle_puback(&mut self, ack: &Ack, out: &mut Outbox) -> Result<(), Close> {
        match self.in_flight.get_mut(ack.packet_id).map(|flight| flight.step) {
            None => Ok(()),
            // A failure is final too: the client must not get it again. [MQTT-4.4.0-2]
            Some(Step::Published1) => {
                self.finish(ack.packet_id, out);
                Ok(())
            }
            Some(_) => Err(ReasonCode::ProtocolError.into()),
        }
    }

    /// The client has the message: that is noted with the session before PUBREL is sent, so that a message
    /// that the client may have forgotten is never sent again. [MQTT-4.3.3-8]
    fn handle_pubrec(&mut self, ack: &Ack, out: &mut Outbox) -> Result<(), Close> {
        let is_kept = self.is.keep > Millis(0);
        let Some(flight) = self.in_flight.get_mut(ack.packet_id) else {
            // Of nobody knows what: answered, so that the exchange ends.
            if !ack.reason.is_failure() {
                put_pubrel(out, ack.packet_id);
                self.counted.packets_out += 1;
            }
            return Ok(());
        };
        match flight.step {
            Step::Published1 => return Err(ReasonCode::ProtocolError.into()),
            // [MQTT-4.3.3-4]
            _ if ack.reason.is_failure() => self.finish(ack.packet_id, out),
            Step::Published2 if is_kept && flight.subscription == SUBSCRIPTION => {
                flight.step = Step::Received;
                let sequence = flight.sequence;
                self.received.push((ack.packet_id, sequence));
            }
            Step::Published2 | Step::Released => {
                flight.step = Step::Released;
                put_pubrel(out, ack.packet_id);
                self.counted.packets_out += 1;
            }
            Step::Received => {}
        }
        Ok(())
    }

    /// Asks core to note what was received since the last time.
    pub(super) fn note_received(&mut self, out: &mut Outbox) {
        if self.received.is_empty() {
            return;
        }
        let received = std::mem::take(&mut self.received);
        let notes = received.iter().map(|(id, at)| (*at, Note::received(*id))).collect();
        let packet_ids = received.into_iter().map(|(packet_id, _)| packet_id).collect();
        let request = Request::Note {
            subscription: SUBSCRIPTION,
            notes,
        };
        self.ask(Asked::Note { packet_ids }, request, out);
    }

    /// It is noted: the exchanges go on.
    pub(super) fn noted(&mut self, packet_ids: &[u16], out: &mut Outbox) {
        for packet_id in packet_ids {
            if let Some(flight) = self.in_flight.get_mut(*packet_id)
                && flight.step == Step::Received
            {
                flight.step = Step::Released;
                put_pubrel(out, *packet_id);
                self.counted.packets_out += 1;
            }
        }
    }

    /// Whether messages may be granted another QoS than before, when the filter's options become these.
    fn changes_qos(&mut self, filter: &[u8], options: Option<SubscriptionOptions>) -> bool {
        let granted = |options: SubscriptionOptions| (options.qos(), options.no_local());
        let before = self.subscriptions.get(filter).map(|before| before.options);
        self.is.keep > Millis(0) && split_shared(filter).is_none() && before.map(granted) != options.map(granted)
    }

    /// The subscriptions are about to change. Until now they tell with which QoS a message in flight was sent, so
    /// that is noted with each before: it must be sent with the same again. [MQTT-4.4.0-1]
    ///
    /// What earlier connections sent may not all have come again; the subscriptions of then are kept for that.
    fn keep_sent(&mut self, out: &mut Outbox) {
        if self.may_resend && self.earlier.is_none() {
            self.earlier = Some(Box::new(self.subscriptions.snapshot()));
        }
        let mut notes = Vec::new();
        for (packet_id, flight) in self.in_flight.iter_mut() {
            let qos = match flight.step {
                Step::Published1 => 1,
                Step::Published2 => 2,
                Step::Received | Step::Released => continue,
            };
            if flight.subscription == SUBSCRIPTION && !flight.is_qos_noted {
                flight.is_qos_noted = true;
                notes.push((flight.sequence, Note::sent(packet_id, qos)));
            }
        }
        if !notes.is_empty() {
            let request = Request::Note {
                subscription: SUBSCRIPTION,
                notes,
            };
            self.ask(Asked::Other, request, out);
        }
    }

    fn handle_pubcomp(&mut self, ack: &Ack, out: &mut Outbox) -> Result<(), Close> {
        match self.in_flight.get_mut(ack.packet_id).map(|flight| flight.step) {
            None => Ok(()),
            Some(Step::Released) => {
                self.finish(ack.packet_id, out);
                Ok(())
            }
            Some(_) => Err(ReasonCode::ProtocolError.into()),
        }
    }

    fn finish(&mut self, packet_id: u16, out: &mut Outbox) {
        if let Some(flight) = self.in_flight.remove(packet_id) {
            out.settle(settled(flight.subscription, flight.sequence));
        }
    }

    // --- the end ----------------------------------------------------------------------------------

    fn handle_disconnect(&mut self, disconnect: &Disconnect, config: &Config, out: &mut Outbox) -> Close {
        if let Some(seconds) = disconnect.properties.number(PropertyId::SessionExpiry) {
            // 5.0, 3.14.2.2.2: a session that was to end cannot be kept after all.
            if seconds > 0 && self.is.keep == Millis(0) {
                return ReasonCode::ProtocolError.into();
            }
            self.is.keep = keep_of(seconds, config);
        }
        // [MQTT-3.14.4-3]; before 5.0 the code is always 0.
        let keep_will = disconnect.code != ReasonCode::Success as u8;
        let keep = self.is.keep;
        self.ask(Asked::Other, Request::Detach { keep, keep_will }, out);
        Close::Silently
    }
}

fn put_pubrel(out: &mut Outbox, packet_id: u16) {
    out.bytes().put_u8(PacketType::PubRel.first_byte());
    out.bytes().put_u8(2);
    out.bytes().put_u16(packet_id);
}

/// The settlement of one delivery that is done with.
pub(super) fn settled(subscription: SubscriptionId, sequence: u64) -> Settlement {
    Settlement {
        subscription,
        first: sequence,
        count: 1,
        action: Settle::Ack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle connection costs at most 4 KiB in all.
    #[test]
    fn a_connected_client_is_small() {
        let size = size_of::<Client>();
        assert!(size <= 416, "{size} bytes");
    }
}
