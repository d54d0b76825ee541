//! Heart-beats: what the two sides agree on, and when one is due or overdue.

use rocketbridge_core::time::Millis;

/// A silence shorter than this is never the end, however short the interval is.
const SILENCE_MIN: Millis = Millis::from_secs(2);

/// What a connection's heart-beats are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// We send something at least this often; zero is never.
    pub send: Millis,
    /// The peer does; zero is never.
    pub expect: Millis,
}

impl Agreed {
    /// Reads the `heart-beat` header of CONNECT: what the client guarantees and what it wants. Both are
    /// granted, `min` being the shortest interval there is.
    pub fn from_header(header: &[u8], min: Millis) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        let (client_sends, client_wants) = text.split_once(',')?;
        let interval = |text: &str| {
            let text = text.trim();
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            // A number beyond all numbers is longer than any connection.
            digits.then(|| match text.parse().unwrap_or(u64::MAX / 4).min(u64::MAX / 4) {
                0 => Millis(0),
                asked => Millis(asked).max(min),
            })
        };
        Some(Self {
            expect: interval(client_sends)?,
            send: interval(client_wants)?,
        })
    }

    /// When we must send something that last did so at `sent_at`: well before the peer misses it.
    pub fn send_at(&self, sent_at: Millis) -> Option<Millis> {
        (self.send > Millis(0)).then(|| sent_at + Millis(self.send.0 / 4 * 3 + self.send.0 % 4 * 3 / 4))
    }

    /// How long a peer may be silent: its beats may be late by one interval.
    pub fn silence_max(&self) -> Option<Millis> {
        (self.expect > Millis(0)).then(|| Millis(self.expect.0 * 2).max(SILENCE_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Millis = Millis(250);

    #[test]
    fn what_the_client_asks_is_granted_from_the_shortest_interval_on() {
        let agreed = |header: &[u8]| Agreed::from_header(header, MIN).map(|a| (a.expect.0, a.send.0));
        assert_eq!(agreed(b"0,0"), Some((0, 0)));
        assert_eq!(agreed(b"1000, 20000"), Some((1000, 20_000)));
        assert_eq!(agreed(b"1,0"), Some((250, 0)));
        for wrong in [
            &b""[..],
            b"1",
            b"1,",
            b",1",
            b"-1,0",
            b"1.5,0",
            b"a,b",
            b"1,2,3",
            b"+1,0",
            b"\xff,0",
        ] {
            assert_eq!(agreed(wrong), None, "{}", wrong.escape_ascii());
        }
        assert!(agreed(b"99999999999999999999999,0").is_some_and(|(expect, _)| expect > 1 << 60));
    }

    #[test]
    fn beats_are_sent_early_and_expected_late() {
        let agreed = Agreed {
            send: Millis(1000),
            expect: Millis(500),
        };
        assert_eq!(agreed.send_at(Millis(100)), Some(Millis(850)));
        assert_eq!(agreed.silence_max(), Some(Millis(2000)));
        assert_eq!(Agreed::default().send_at(Millis(1)), None);
        assert_eq!(Agreed::default().silence_max(), None);
    }
}
