//! Publisher confirms of one channel: tags that are open, and how those that are settled are told in as
//! few methods as possible.
//!
//! `multiple` says "and every lower tag that was not settled yet", so it may only be used where all lower
//! tags are settled the same way, or were told before.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::BytesMut;

use crate::codec::Method;

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `basic.ack`
    Ack,
    /// `basic.nack`
    Nack,
}

/// The confirm state of a channel in confirm mode.
#[derive(Debug)]
pub struct Confirms {
    next_tag: u64,
    /// Tags without a verdict, ascending.
    open: VecDeque<Range<u64>>,
    acked: Vec<Range<u64>>,
    nacked: Vec<Range<u64>>,
}

impl Default for Confirms {
    /// The first publish has tag 1.
    fn default() -> Self {
        Self {
            next_tag: 1,
            open: VecDeque::new(),
            acked: Vec::new(),
            nacked: Vec::new(),
        }
    }
}

impl Confirms {
    /// The tag of a new publish.
    pub fn open(&mut self) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        match self.open.back_mut() {
            Some(last) if last.end == tag => last.end += 1,
            _ => self.open.push_back(tag..tag + 1),
        }
        tag
    }

    /// Notes what became of tags that are open.
    pub fn settle(&mut self, tags: Range<u64>, verdict: Verdict) {
        remove(&mut self.open, &tags);
        let settled = match verdict {
            Verdict::Ack => &mut self.acked,
            Verdict::Nack => &mut self.nacked,
        };
        match settled.last_mut() {
            Some(last) if last.end == tags.start => last.end = tags.end,
            _ => settled.push(tags),
        }
    }

    /// Whether [`flush`](Self::flush) has something to tell.
    pub fn has_verdicts(&self) -> bool {
        !self.acked.is_empty() || !self.nacked.is_empty()
    }

    /// Tells what was noted since the last call.
    pub fn flush(&mut self, channel: u16, out: &mut BytesMut) {
        let oldest_open = self.open.front().map_or(self.next_tag, |range| range.start);
        self.acked.sort_unstable_by_key(|range| range.start);
        if self.nacked.is_empty() {
            put(&self.acked, 0, oldest_open, Verdict::Ack, channel, out);
        } else {
            // Acks below the first nack, the nacks one by one, then all other acks.
            self.nacked.sort_unstable_by_key(|range| range.start);
            let first_nack = self.nacked[0].start;
            let below: Vec<_> = clip(&self.acked, 0..first_nack);
            let above: Vec<_> = clip(&self.acked, first_nack..u64::MAX);
            put(&below, 0, oldest_open.min(first_nack), Verdict::Ack, channel, out);
            put(&self.nacked, 0, 0, Verdict::Nack, channel, out);
            put(&above, 0, oldest_open, Verdict::Ack, channel, out);
        }
        self.acked.clear();
        self.nacked.clear();
    }
}

/// Tells settled tags: those below `safe_below` by one `multiple`, the others singly.
fn put(settled: &[Range<u64>], from: usize, safe_below: u64, verdict: Verdict, channel: u16, out: &mut BytesMut) {
    let safe = clip_iter(&settled[from..], 0..safe_below);
    let (count, last) = safe.fold((0, 0), |(count, _), range| {
        (count + (range.end - range.start), range.end - 1)
    });
    let tell = |tag, multiple, out: &mut BytesMut| match verdict {
        Verdict::Ack => Method::BasicAck {
            delivery_tag: tag,
            multiple,
        }
        .encode(channel, out),
        Verdict::Nack => Method::BasicNack {
            delivery_tag: tag,
            multiple,
            requeue: false,
        }
        .encode(channel, out),
    };
    if count > 0 {
        tell(last, count > 1, out);
    }
    for range in clip_iter(&settled[from..], safe_below..u64::MAX) {
        for tag in range {
            tell(tag, false, out);
        }
    }
}

fn clip_iter(ranges: &[Range<u64>], to: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    ranges
        .iter()
        .map(move |range| range.start.max(to.start)..range.end.min(to.end))
        .filter(|range| !range.is_empty())
}

fn clip(ranges: &[Range<u64>], to: Range<u64>) -> Vec<Range<u64>> {
    clip_iter(ranges, to).collect()
}

fn remove(open: &mut VecDeque<Range<u64>>, tags: &Range<u64>) {
    let mut at = open.partition_point(|range| range.end <= tags.start);
    while let Some(range) = open.get_mut(at) {
        if range.start >= tags.end {
            break;
        }
        let (before, after) = (range.start..tags.start, tags.end..range.end);
        match (before.is_empty(), after.is_empty()) {
            (true, true) => {
                open.remove(at);
            }
            (true, false) => *range = after,
            (false, true) => {
                *range = before;
                at += 1;
            }
            (false, false) => {
                *range = before;
                open.insert(at + 1, after);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::FrameHeader;

    /// Flushes and shows: `a3*` is an ack of 3 with multiple, `n4` a nack of 4.
    fn flushed(confirms: &mut Confirms) -> Vec<String> {
        let mut out = BytesMut::new();
        confirms.flush(1, &mut out);
        let mut told = Vec::new();
        while let Some(header) = FrameHeader::peek(&out) {
            let frame = out.split_to(header.frame_size());
            let star = |multiple| if multiple { "*" } else { "" };
            told.push(match Method::decode(&frame[7..frame.len() - 1]).expect("ours") {
                Method::BasicAck { delivery_tag, multiple } => format!("a{delivery_tag}{}", star(multiple)),
                Method::BasicNack {
                    delivery_tag, multiple, ..
                } => format!("n{delivery_tag}{}", star(multiple)),
                other => panic!("{other:?}"),
            });
        }
        told
    }

    fn opened(count: u64) -> Confirms {
        let mut confirms = Confirms::default();
        (1..=count).for_each(|tag| assert_eq!(confirms.open(), tag));
        confirms
    }

    #[test]
    fn all_that_is_settled_below_the_oldest_open_tag_is_one_ack() {
        let mut confirms = opened(10);
        confirms.settle(1..6, Verdict::Ack);
        assert_eq!(flushed(&mut confirms), ["a5*"]);
        confirms.settle(6..7, Verdict::Ack);
        assert_eq!(flushed(&mut confirms), ["a6"]);
        assert_eq!(flushed(&mut confirms), [""; 0]);
    }

    #[test]
    fn tags_above_an_open_one_are_acked_singly() {
        let mut confirms = opened(6);
        confirms.settle(5..7, Verdict::Ack);
        confirms.settle(1..3, Verdict::Ack);
        assert_eq!(flushed(&mut confirms), ["a2*", "a5", "a6"]);
        confirms.settle(3..5, Verdict::Ack);
        assert_eq!(flushed(&mut confirms), ["a4*"]);
    }

    #[test]
    fn a_nack_is_never_covered_by_an_ack_of_higher_tags() {
        let mut confirms = opened(7);
        confirms.settle(1..4, Verdict::Ack);
        confirms.settle(4..5, Verdict::Nack);
        confirms.settle(5..7, Verdict::Ack);
        assert_eq!(flushed(&mut confirms), ["a3*", "n4", "a6*"]);
    }

    /// Whatever the order of verdicts, each tag is told exactly once and as it was meant.
    #[test]
    fn every_tag_is_told_once_and_truly() {
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let count = 1 + random(30);
            let mut confirms = opened(count);
            let mut order: Vec<u64> = (1..=count).collect();
            (0..order.len()).for_each(|at| order.swap(at, random(count) as usize));
            let mut meant = vec![' '; count as usize + 1];
            let mut heard = vec![' '; count as usize + 1];
            for tag in order {
                let verdict = if random(5) == 0 { Verdict::Nack } else { Verdict::Ack };
                meant[tag as usize] = if verdict == Verdict::Ack { 'a' } else { 'n' };
                confirms.settle(tag..tag + 1, verdict);
                if random(3) == 0 || tag == count {
                    hear(&flushed(&mut confirms), &mut heard);
                }
            }
            hear(&flushed(&mut confirms), &mut heard);
            assert_eq!(meant, heard);
        }
    }

    fn hear(told: &[String], heard: &mut [char]) {
        for word in told {
            let kind = word.chars().next().expect("not empty");
            let tag: usize = word[1..].trim_end_matches('*').parse().expect("a number");
            assert_eq!(heard[tag], ' ', "{tag} told twice");
            heard[tag] = kind;
            if word.ends_with('*') {
                heard[1..tag].iter_mut().filter(|h| **h == ' ').for_each(|h| *h = kind);
            }
        }
    }
}
