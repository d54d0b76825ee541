//! Messages as bytes on the wire: encoded once, copied into one large piece, patched in place.

use super::body::{SIZE_MIN, Stamp};

/// Bytes of one write.
const WRITE_SIZE: usize = 64 * 1024;

/// Digits of a queue's number in its name, so that all names are of one length.
pub const QUEUE_DIGITS: usize = 7;

/// A number that differs from message to message.
#[derive(Clone, Copy, Debug)]
pub enum Id {
    /// 1 to 65,535 in two bytes, then again from 1.
    Packet { at: usize },
    /// As decimal digits, `width` of them: `first` and as many below `modulo`, then again from `first`.
    Decimal {
        at: usize,
        width: usize,
        first: u64,
        modulo: u64,
    },
    /// The publisher in 4, the message in 12 hexadecimal digits.
    Unique { at: usize },
}

/// One publish.
#[derive(Clone, Debug, Default)]
pub struct Template {
    pub bytes: Vec<u8>,
    /// Where the body begins. Its first [`SIZE_MIN`] bytes are in one piece.
    pub body_at: usize,
    /// Where the digits of the queue's number are.
    pub queue_at: Option<usize>,
    pub ids: Vec<Id>,
}

/// Many copies of one publish.
pub struct Batch {
    template: Template,
    bytes: Vec<u8>,
    capacity: u64,
    filler: Vec<u8>,
    /// With more than one, the name of the queue is patched too.
    queues: u64,
    run: u16,
}

/// What the messages of one write are.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub publisher: u16,
    /// The first message's number of this publisher.
    pub first: u64,
    pub count: u64,
}

impl Batch {
    /// Of messages with bodies of `size` bytes.
    pub fn new(template: &Template, size: usize, queues: u32, run: u16) -> Self {
        let capacity = (WRITE_SIZE / template.bytes.len()).max(1);
        Self {
            bytes: template.bytes.repeat(capacity),
            template: template.clone(),
            capacity: capacity as u64,
            filler: vec![FILLER; size - SIZE_MIN],
            queues: u64::from(queues),
            run,
        }
    }

    /// How many messages are one write.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The bytes of these messages; `sent_us` says when each was, or should have been, sent.
    pub fn bytes(&mut self, piece: Piece, mut sent_us: impl FnMut(u64) -> u64) -> &[u8] {
        let each = self.template.bytes.len();
        let length = piece.count as usize * each;
        let numbers = piece.first..piece.first + piece.count;
        for (message, number) in self.bytes[..length].chunks_exact_mut(each).zip(numbers) {
            let queue = number % self.queues;
            let stamp = Stamp {
                run: self.run,
                publisher: piece.publisher,
                queue: queue as u32,
                sequence: number / self.queues,
                sent_us: sent_us(number),
            };
            let at = self.template.body_at;
            message[at..at + SIZE_MIN].copy_from_slice(&stamp.write(&self.filler));
            if let Some(at) = self.template.queue_at
                && self.queues > 1
            {
                put_decimal(&mut message[at..at + QUEUE_DIGITS], queue);
            }
            for id in &self.template.ids {
                id.put(message, piece.publisher, number);
            }
        }
        &self.bytes[..length]
    }
}

/// What a body has behind its stamp.
pub const FILLER: u8 = b'x';

impl Id {
    fn put(self, message: &mut [u8], publisher: u16, number: u64) {
        match self {
            Self::Packet { at } => {
                let id = (number % PACKET_IDS) as u16 + 1;
                message[at..at + 2].copy_from_slice(&id.to_be_bytes());
            }
            Self::Decimal {
                at,
                width,
                first,
                modulo,
            } => put_decimal(&mut message[at..at + width], first + number % modulo),
            Self::Unique { at } => put_hex(&mut message[at..at + 16], u64::from(publisher) << 48 | number),
        }
    }
}

/// How many packet identifiers there are.
pub const PACKET_IDS: u64 = 65_535;

/// The first number at or after `from` that is `place` modulo `modulo`.
pub fn number_at(place: u64, from: u64, modulo: u64) -> u64 {
    from + (place % modulo + modulo - from % modulo) % modulo
}

fn put_decimal(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn put_hex(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789ABCDEF"[(number & 15) as usize];
        number >>= 4;
    }
}

/// The digits of a queue's number as they stand in names.
pub fn queue_digits(queue: u32) -> String {
    format!("{queue:0QUEUE_DIGITS$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_that_comes_round_again_tells_its_message() {
        for expected in [0, 1, 65_533, 65_534, 65_535, 65_536, 1_000_000, 131_069] {
            for behind in [0, 1, 99, 8_000] {
                let from = u64::saturating_sub(expected, behind);
                assert_eq!(number_at(expected % PACKET_IDS, from, PACKET_IDS), expected);
            }
        }
    }

    #[test]
    fn each_copy_is_numbered_for_itself() {
        let mut bytes = b"q0000000 id0000 ".to_vec();
        let body_at = bytes.len();
        bytes.extend_from_slice(&[FILLER; 30]);
        bytes.extend_from_slice(&[0; 2]);
        let template = Template {
            queue_at: Some(1),
            ids: vec![
                Id::Decimal {
                    at: 11,
                    width: 4,
                    first: 1000,
                    modulo: 9000,
                },
                Id::Packet { at: body_at + 30 },
            ],
            body_at,
            bytes,
        };
        let mut batch = Batch::new(&template, 30, 2, 9);
        let piece = Piece {
            publisher: 3,
            first: 65_533,
            count: 4,
        };
        let sent = batch.bytes(piece, |number| number * 2).to_vec();
        for (message, number) in sent.chunks(template.bytes.len()).zip(65_533_u64..) {
            assert_eq!(&message[..8], format!("q{:07}", number % 2).as_bytes());
            assert_eq!(&message[11..15], format!("{}", 1000 + number % 9000).as_bytes());
            assert_eq!(message[body_at + 30..], ((number % 65_535) as u16 + 1).to_be_bytes());
            let stamp = Stamp::read(&message[body_at..body_at + 30]).unwrap();
            assert_eq!((stamp.publisher, stamp.queue), (3, (number % 2) as u32));
            assert_eq!((stamp.sequence, stamp.sent_us), (number / 2, number * 2));
        }
    }
}
