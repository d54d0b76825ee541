//! The fuzz target's body, over seeded mutations of valid packets.

mod vectors;

use rocketbridge_mqtt::fuzzing::fuzz;
use vectors::ROWS;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

#[test]
fn nothing_a_peer_sends_panics() {
    let mut random = Random(0x5EED_CAFE_F00D);
    for row in ROWS {
        fuzz(&[&[0][..], row.2].concat());
        fuzz(row.2);
    }
    for _ in 0..12_000 {
        let mut data = vec![random.below(256) as u8];
        for _ in 0..1 + random.below(4) {
            data.extend_from_slice(ROWS[random.below(ROWS.len())].2);
        }
        for _ in 0..random.below(4) {
            let at = random.below(data.len());
            match random.below(4) {
                0 => data[at] ^= 1 << random.below(8),
                1 => data[at] = random.below(256) as u8,
                2 => data.insert(at, random.below(256) as u8),
                _ => data.truncate(at.max(1)),
            }
        }
        fuzz(&data);
        fuzz(&data[1..]);
    }
}
