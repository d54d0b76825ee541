//! Packet identifiers of what was sent and is not acknowledged yet.

use foldhash::HashMap;
use rocketbridge_core::boundary::SubscriptionId;

/// How far the exchange of a message has come (4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// PUBLISH with QoS 1 was sent, PUBACK ends it.
    Published1,
    /// PUBLISH with QoS 2 was sent, PUBREC is next.
    Published2,
    /// PUBREC came; PUBREL is sent when that is as safe as a stored message.
    Received,
    /// PUBREL was sent, PUBCOMP ends it.
    Released,
}

/// A message in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// What it was delivered to.
    pub subscription: SubscriptionId,
    /// Its sequence there.
    pub sequence: u64,
    /// How far it is.
    pub step: Step,
    /// The QoS that it was sent with is noted on its lease.
    pub is_qos_noted: bool,
}

/// The messages with QoS 1 and 2 in flight to one client, by packet identifier.
///
/// A message of the session's own queue has the identifier that its sequence gives, so that it has the same one
/// when the session is resumed, whatever became of the broker meanwhile. Where that one is taken (or the
/// message is of a queue that sessions share) another one is found, from the top down.
#[derive(Debug, Default)]
pub struct InFlight {
    flights: HashMap<u16, Flight>,
    /// The last identifier that was looked for a message without one of its own.
    last: u16,
}

/// The identifier that a sequence of the session's own queue gives.
pub const fn packet_id_of(sequence: u64) -> u16 {
    (sequence % u16::MAX as u64) as u16 + 1
}

impl InFlight {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.flights.len()
    }

    /// Adds a message, under the wanted identifier if there is one and it is free; gives the identifier.
    /// `None` when all 65,535 are in use. [MQTT-2.2.1-3]
    pub fn insert(&mut self, wanted: Option<u16>, flight: Flight) -> Option<u16> {
        if let Some(wanted) = wanted.filter(|id| *id != 0)
            && let std::collections::hash_map::Entry::Vacant(free) = self.flights.entry(wanted)
        {
            free.insert(flight);
            return Some(wanted);
        }
        if self.flights.len() >= usize::from(u16::MAX) {
            return None;
        }
        loop {
            self.last = self.last.checked_sub(1).filter(|id| *id != 0).unwrap_or(u16::MAX);
            if let std::collections::hash_map::Entry::Vacant(free) = self.flights.entry(self.last) {
                free.insert(flight);
                return Some(self.last);
            }
        }
    }

    /// The message that was sent under that identifier.
    pub fn get_mut(&mut self, packet_id: u16) -> Option<&mut Flight> {
        self.flights.get_mut(&packet_id)
    }

    /// All of them, in no order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Flight)> {
        self.flights.iter_mut().map(|(packet_id, flight)| (*packet_id, flight))
    }

    /// The message of that identifier; it is free again.
    pub fn remove(&mut self, packet_id: u16) -> Option<Flight> {
        self.flights.remove(&packet_id)
    }

    /// Gives memory back that an idle client does not need: more than for so many.
    pub fn rest(&mut self, kept_max: usize) {
        if self.flights.is_empty() && self.flights.capacity() > kept_max {
            self.flights = HashMap::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn flight(sequence: u64) -> Flight {
        Flight {
            subscription: SubscriptionId(1),
            sequence,
            step: Step::Published1,
            is_qos_noted: false,
        }
    }

    /// [MQTT-2.2.1-3]
    #[test]
    fn identifiers_in_flight_are_never_given_out_again() {
        let mut in_flight = InFlight::default();
        let mut model = BTreeMap::new();
        let mut random = 7u64;
        for sequence in 0..200_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let wanted = (random >> 61 > 0).then(|| packet_id_of(sequence));
            if model.len() < 100 || random >> 60 < 6 && model.len() < 1500 {
                let packet_id = in_flight.insert(wanted, flight(sequence)).expect("far from full");
                assert_ne!(packet_id, 0);
                assert_eq!(model.insert(packet_id, sequence), None);
            } else {
                let nth = random as usize % model.len();
                let packet_id = *model.keys().nth(nth).expect("not empty");
                let removed = in_flight.remove(packet_id).map(|flight| flight.sequence);
                assert_eq!(removed, model.remove(&packet_id));
                assert_eq!(in_flight.remove(packet_id), None);
            }
            assert_eq!(in_flight.len(), model.len());
        }
    }

    #[test]
    fn a_free_identifier_that_is_wanted_is_given() {
        let mut in_flight = InFlight::default();
        assert_eq!(packet_id_of(0), 1);
        assert_eq!((packet_id_of(65_534), packet_id_of(65_535)), (65_535, 1));
        assert_eq!(in_flight.insert(Some(7), flight(6)), Some(7));
        assert_ne!(in_flight.insert(Some(7), flight(65_541)), Some(7));
        in_flight.remove(7);
        assert_eq!(in_flight.insert(Some(7), flight(131_076)), Some(7));
    }

    #[test]
    fn all_identifiers_can_be_in_flight() {
        let mut in_flight = InFlight::default();
        for sequence in 0..65_535u64 {
            let wanted = (sequence % 3 == 0).then(|| packet_id_of(sequence));
            assert!(in_flight.insert(wanted, flight(sequence)).is_some());
        }
        assert_eq!(in_flight.insert(None, flight(0)), None);
        assert!(in_flight.remove(700).is_some());
        assert_eq!(in_flight.insert(None, flight(1)), Some(700));
    }
}
