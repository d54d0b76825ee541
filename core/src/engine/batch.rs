//! Atomic batches: publishes and settlements of one link that take effect together, and what it has popped.

use std::collections::HashSet;

use bytes::Bytes;

use crate::boundary::{HolderKey, Publish, Reject};
use crate::engine::group::limit;
use crate::engine::links::LinkId;
use crate::engine::publish::{Birth, TopicOf};
use crate::engine::state::State;
use crate::message::Format;
use crate::request::{Commit, Refusal, Reply};

impl State {
    /// All of it or nothing: every publish is checked before the first takes effect.
    pub(crate) fn commit(&mut self, link: LinkId, commit: Commit) -> Result<Reply, Refusal> {
        let popped: usize = commit.popped.iter().map(|popped| popped.messages.len()).sum();
        if commit.publishes.len() + commit.settlements.len() + popped > Commit::ITEMS_MAX {
            return Err(limit("publishes and settlements in one batch", Commit::ITEMS_MAX));
        }
        if commit.publishes.iter().map(Commit::size_of).sum::<usize>() > Commit::BYTES_MAX {
            return Err(limit("bytes in one batch", Commit::BYTES_MAX));
        }
        let mut new_topics = HashSet::new();
        for (index, publish) in commit.publishes.iter().enumerate() {
            self.check_part(link, publish, &mut new_topics)
                .map_err(|reject| Refusal::Rejected { index, reject })?;
        }
        self.check_popped(&commit.popped)?;
        if commit.publishes.is_empty() && commit.settlements.is_empty() && popped == 0 {
            return Ok(Reply::Done);
        }
        self.begin_batch();
        let mut destinations = std::mem::take(&mut self.destinations);
        for publish in &commit.publishes {
            if let Some(HolderKey::Close(number)) = publish.holder_key {
                self.close_quietly(link, number);
                continue;
            }
            let dedup = self.dedup_key(link, publish).unwrap_or_default();
            if dedup.is_some_and(|key| self.dedups.find(key, self.now).is_some()) {
                continue;
            }
            let birth = Birth {
                dedup,
                ..self.birth(link)
            };
            match self.place(publish) {
                Ok(placed) => {
                    if placed.routes == 0 && publish.mandatory {
                        self.give_back(link, publish);
                    }
                    match self.later(publish) {
                        Ok(Some(later)) => self.put_later(publish, birth, &placed, later),
                        _ => self.put(publish, birth, &placed, &mut destinations),
                    };
                }
                Err(reject) => debug_assert!(false, "what was checked is rejected: {reject:?}"),
            }
        }
        self.destinations = destinations;
        for settlement in commit.settlements {
            self.settle_one(link, settlement);
        }
        for popped in &commit.popped {
            self.settle_popped(popped);
        }
        self.end_batch();
        self.changed = true;
        Ok(Reply::Done)
    }

    /// Whether a publish can be taken, should those before it have been. Changes nothing.
    fn check_part(&mut self, link: LinkId, publish: &Publish, new_topics: &mut HashSet<Bytes>) -> Result<(), Reject> {
        self.check(link, publish)?;
        self.later(publish)?;
        if matches!(publish.holder_key, Some(HolderKey::Close(_))) {
            return Ok(());
        }
        self.dedup_key(link, publish)?;
        let route = self.router.route(publish, &self.queues)?;
        if !self.find_refusing(&route, publish).is_empty() {
            return Err(Reject::QueueFull);
        }
        let chosen = publish.native.as_deref().and_then(|native| native.queue_id);
        let queues = match self.topic_of(publish, &route)? {
            TopicOf::None => return Ok(()),
            TopicOf::Known(topic) => self.topics[topic as usize].queues.len() as u32,
            TopicOf::New { name, queues } => {
                new_topics.insert(name);
                if publish.format == Format::NATIVE && self.topics.len() + new_topics.len() > self.config.topics_max {
                    return Err(Reject::NoTopic);
                }
                queues
            }
        };
        match chosen {
            Some(queue) if queue >= queues => Err(Reject::NoQueue),
            _ => Ok(()),
        }
    }
}
