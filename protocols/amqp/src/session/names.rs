//! Names that the server gives to queues and consumers.

use bytes::Bytes;

/// Makes names that do not come twice: 128 bits from a seed that the bridge draws for each connection.
#[derive(Debug)]
pub struct Names {
    state: u64,
}

impl Names {
    /// From a seed; two connections must not have the same.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A queue's name: `amq.gen-` and 22 characters.
    pub fn queue(&mut self) -> Bytes {
        self.name("amq.gen-")
    }

    /// A consumer tag: `amq.ctag-` and 22 characters.
    pub fn consumer_tag(&mut self) -> Bytes {
        self.name("amq.ctag-")
    }

    /// The queue of a channel's direct reply-to: the pseudo-queue's name, a full stop, and 22 characters.
    pub fn reply_queue(&mut self) -> Bytes {
        self.name("amq.rabbitmq.reply-to.")
    }

    fn name(&mut self, prefix: &str) -> Bytes {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bits = u128::from(self.next()) << 64 | u128::from(self.next());
        let mut name = Vec::with_capacity(prefix.len() + 22);
        name.extend_from_slice(prefix.as_bytes());
        for _ in 0..22 {
            name.push(DIGITS[(bits & 63) as usize]);
            bits >>= 6;
        }
        Bytes::from(name)
    }

    /// SplitMix64: every state once in 2^64 steps.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_rabbitmqs_form_and_do_not_repeat() {
        let mut names = Names::new(1);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let name = names.queue();
            assert!(name.starts_with(b"amq.gen-") && name.len() == 8 + 22, "{name:?}");
            assert!(seen.insert(name));
        }
        assert_eq!(names.consumer_tag().len(), 9 + 22);
    }
}
