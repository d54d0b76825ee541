//! The fuzz target's body, over seeded mutations of valid frames.

mod vectors;

use rocketbridge_stomp::fuzzing::fuzz;
use vectors::ROWS;

const MORE: &[&[u8]] = &[
    b"SEND\ndestination:/queue/a\nreceipt:1\ntransaction:t\n\nx\0",
    b"SEND\ndestination:/topic/a.b\nreply-to:/temp-queue/x\n\nx\0",
    b"SEND\ndestination:/rocketmq/T\ntag:a\nkey:k\npersistent:true\n\nx\0",
    b"SUBSCRIBE\nid:3\ndestination:/topic/a.*\ndurable:true\nack:client-individual\n\n\0",
    b"SUBSCRIBE\nid:4\ndestination:/temp-queue/x\n\n\0",
    b"ACK\nid:T_1@@session-0000000000000001@@1\nmessage-id:T_1@@session-0000000000000001@@1\n\n\0",
    b"NACK\nid:T_1@@session-0000000000000001@@2\nrequeue:false\ntransaction:t\n\n\0",
    b"BEGIN\ntransaction:u\n\n\0",
    b"COMMIT\ntransaction:t\nreceipt:c\n\n\0",
    b"ABORT\ntransaction:t\n\n\0",
    b"UNSUBSCRIBE\nid:1\nreceipt:u\n\n\0",
    b"DISCONNECT\nreceipt:bye\n\n\0",
];

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
    let frames: Vec<&[u8]> = ROWS.iter().map(|row| row.2).chain(MORE.iter().copied()).collect();
    for frame in &frames {
        for control in [0, 2, 8, 0x30, 0xE1] {
            fuzz(&[&[control], *frame].concat());
        }
    }
    for _ in 0..6_000 {
        let mut data = vec![random.below(256) as u8];
        for _ in 0..1 + random.below(5) {
            data.extend_from_slice(frames[random.below(frames.len())]);
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
    }
}
