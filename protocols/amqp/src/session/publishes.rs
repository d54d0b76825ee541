//! Publishes that core has not answered for, as runs: whose they are, so that an outcome finds its
//! channel and confirm tag.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::mapping::ExchangeName;

/// A channel as it was opened: the number may be used again, the epoch is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelKey {
    /// The channel's number.
    pub number: u16,
    /// Which opening of that number.
    pub epoch: u64,
}

/// Publishes with consecutive tokens of one channel to one exchange.
#[derive(Debug)]
struct Run {
    tokens: Range<u64>,
    channel: ChannelKey,
    /// Confirm tag of the first; 0 when the channel was not in confirm mode.
    tag: u64,
    exchange: Arc<ExchangeName>,
}

/// Publishes of one channel that share an outcome.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled<'a> {
    /// Whose they were.
    pub channel: ChannelKey,
    /// Their confirm tags; empty when there are none.
    pub tags: Range<u64>,
    /// The exchange they were published to.
    pub exchange: &'a ExchangeName,
}

/// Publishes on their way, by token.
#[derive(Debug, Default)]
pub struct Publishes {
    next_token: u64,
    runs: VecDeque<Run>,
}

impl Publishes {
    /// Notes a publish and gives its token. `tag` is 0 outside confirm mode.
    pub fn push(&mut self, channel: ChannelKey, tag: u64, exchange: &Arc<ExchangeName>) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        if let Some(last) = self.runs.back_mut()
            && last.tokens.end == token
            && last.channel == channel
            && (if tag == 0 {
                last.tag == 0
            } else {
                last.tag != 0 && last.tag + (token - last.tokens.start) == tag
            })
            && Arc::ptr_eq(&last.exchange, exchange)
        {
            last.tokens.end += 1;
        } else {
            self.runs.push_back(Run {
                tokens: token..token + 1,
                channel,
                tag,
                exchange: exchange.clone(),
            });
        }
        token
    }

    /// Whether every publish has its outcome.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whose publish that is.
    pub fn channel_of(&self, token: u64) -> Option<ChannelKey> {
        let at = self.runs.partition_point(|run| run.tokens.end <= token);
        let run = self.runs.get(at)?;
        run.tokens.contains(&token).then_some(run.channel)
    }

    /// Takes out publishes that have their outcome, channel by channel.
    pub fn settle(&mut self, tokens: Range<u64>, mut each: impl FnMut(Settled<'_>)) {
        let mut at = self.runs.partition_point(|run| run.tokens.end <= tokens.start);
        while let Some(run) = self.runs.get_mut(at) {
            let part = run.tokens.start.max(tokens.start)..run.tokens.end.min(tokens.end);
            if part.is_empty() {
                break;
            }
            let tag_at = |token: u64| {
                if run.tag == 0 {
                    0
                } else {
                    run.tag + (token - run.tokens.start)
                }
            };
            each(Settled {
                channel: run.channel,
                tags: tag_at(part.start)..tag_at(part.end),
                exchange: &run.exchange,
            });
            let rest_tag = tag_at(part.end);
            let rest = part.end..run.tokens.end;
            match (part.start == run.tokens.start, rest.is_empty()) {
                (true, true) => {
                    self.runs.remove(at);
                }
                (true, false) => {
                    run.tokens = rest;
                    run.tag = rest_tag;
                    break;
                }
                (false, true) => {
                    run.tokens.end = part.start;
                    at += 1;
                }
                (false, false) => {
                    run.tokens.end = part.start;
                    let after = Run {
                        tokens: rest,
                        channel: run.channel,
                        tag: rest_tag,
                        exchange: run.exchange.clone(),
                    };
                    self.runs.insert(at + 1, after);
                    break;
                }
            }
        }
        if self.runs.is_empty() && self.runs.capacity() > 64 {
            self.runs = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ChannelKey = ChannelKey { number: 1, epoch: 10 };
    const TWO: ChannelKey = ChannelKey { number: 2, epoch: 11 };

    fn settled(publishes: &mut Publishes, tokens: Range<u64>) -> Vec<(u16, Range<u64>)> {
        let mut all = Vec::new();
        publishes.settle(tokens, |s| all.push((s.channel.number, s.tags)));
        all
    }

    #[test]
    fn neighbours_are_one_run_and_come_out_with_their_tags() {
        let mut publishes = Publishes::default();
        let exchange = Arc::new(ExchangeName::new(b"e"));
        (0..5).for_each(|n| assert_eq!(publishes.push(ONE, 1 + n, &exchange), n));
        (0..2).for_each(|n| assert_eq!(publishes.push(TWO, 0, &exchange), 5 + n));
        assert_eq!(publishes.push(ONE, 6, &exchange), 7);
        assert_eq!(publishes.runs.len(), 3);
        assert_eq!(publishes.channel_of(6), Some(TWO));
        assert_eq!(settled(&mut publishes, 2..4), [(1, 3..5)]);
        assert_eq!(
            settled(&mut publishes, 0..8),
            [(1, 1..3), (1, 5..6), (2, 0..0), (1, 6..7)]
        );
        assert!(publishes.is_empty());
        assert_eq!(settled(&mut publishes, 0..8), []);
    }

    #[test]
    fn a_token_without_a_publish_is_nobodys() {
        let publishes = Publishes::default();
        assert_eq!(publishes.channel_of(0), None);
    }
}
