//! Packet identifiers of what was sent and is not acknowledged yet.

/// Most slots: every packet identifier its own.
const SLOTS_MAX: usize = 1 << 16;
const SLOTS_MIN: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// 0 is an empty slot.
    packet_id: u16,
    sequence: u64,
}

/// The QoS 1 messages in flight to one client: packet identifier to the sequence in its queue.
///
/// Identifiers are given out one after the other, so a table that is at most half full, indexed by
/// their low bits, has almost no collisions; an identifier whose slot is taken is skipped.
#[derive(Debug, Default)]
pub struct InFlight {
    slots: Vec<Slot>,
    count: usize,
    last: u16,
}

impl InFlight {
    /// A packet identifier for the message of that sequence; `None` when all 65,535 are in use.
    pub fn insert(&mut self, sequence: u64) -> Option<u16> {
        if self.slots.len() < SLOTS_MAX && self.count * 2 >= self.slots.len() {
            self.grow();
        }
        if self.count == usize::from(u16::MAX) {
            return None;
        }
        let mask = self.slots.len() - 1;
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            let slot = &mut self.slots[usize::from(self.last) & mask];
            if slot.packet_id == 0 {
                *slot = Slot {
                    packet_id: self.last,
                    sequence,
                };
                self.count += 1;
                return Some(self.last);
            }
        }
    }

    /// The sequence that was sent under that identifier, without forgetting it.
    pub fn find(&self, packet_id: u16) -> Option<u64> {
        let slot = self
            .slots
            .get(usize::from(packet_id) & self.slots.len().wrapping_sub(1))?;
        (slot.packet_id == packet_id && packet_id != 0).then_some(slot.sequence)
    }

    /// The sequence that was sent under that identifier, which is free again.
    pub fn remove(&mut self, packet_id: u16) -> Option<u64> {
        let sequence = self.find(packet_id)?;
        let mask = self.slots.len() - 1;
        self.slots[usize::from(packet_id) & mask] = Slot::default();
        self.count -= 1;
        Some(sequence)
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).clamp(SLOTS_MIN, SLOTS_MAX);
        let mut slots = vec![Slot::default(); size];
        for slot in self.slots.iter().filter(|slot| slot.packet_id != 0) {
            // Different low bits before are different ones with a bit more.
            slots[usize::from(slot.packet_id) & (size - 1)] = *slot;
        }
        self.slots = slots;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// [MQTT-2.2.1-3]
    #[test]
    fn identifiers_in_flight_are_never_given_out_again() {
        let mut in_flight = InFlight::default();
        let mut model = BTreeMap::new();
        let mut random = 7u64;
        for sequence in 0..40_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let wanted = if sequence < 20_000 { 100 } else { 1000 };
            if model.len() < wanted || random >> 60 < 6 && model.len() < 1500 {
                let packet_id = in_flight.insert(sequence).expect("far from full");
                assert_ne!(packet_id, 0);
                assert_eq!(model.insert(packet_id, sequence), None);
            } else {
                let nth = random as usize % model.len();
                let packet_id = *model.keys().nth(nth).expect("not empty");
                assert_eq!(in_flight.remove(packet_id), model.remove(&packet_id));
                assert_eq!(in_flight.remove(packet_id), None);
            }
            assert_eq!(in_flight.count, model.len());
        }
    }

    #[test]
    fn all_identifiers_can_be_in_flight() {
        let mut in_flight = InFlight::default();
        assert_eq!(in_flight.find(1), None);
        for sequence in 0..65_535u64 {
            assert_eq!(in_flight.insert(sequence), Some(sequence as u16 + 1));
        }
        assert_eq!(in_flight.insert(0), None);
        assert_eq!(in_flight.remove(700), Some(699));
        assert_eq!(in_flight.insert(1), Some(700));
        assert_eq!(in_flight.find(0), None);
    }
}
