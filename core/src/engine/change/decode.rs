//! Bytes to changes. Nothing that a file holds panics or asks for memory beyond its own length.

use super::{Change, NO_QUEUE};
use crate::address::{Level, Pattern};
use crate::attributes::Attributes;
use crate::codec::Reader;
use crate::engine::dedup::{OpenKey, Scope};
use crate::engine::pop::PopPlace;
use crate::engine::progress::Entry;
use crate::engine::timers::Axis;
use crate::engine::transactions::Half;
use crate::message::{self, Format};
use crate::request::{
    Binding, Destination, Exchange, ExchangeKind, Headers, Matcher, Queue, Retry, RetryPolicy, Source, Will,
};
use crate::store::record::Position;
use crate::time::Millis;

impl Change {
    /// Decodes one change. `None` when the bytes are not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = Reader::new(bytes);
        Some(match at.u8()? {
            1 => Self::Exchange(Exchange {
                name: at.bytes()?,
                kind: match at.u8()? {
                    0 => ExchangeKind::Fanout,
                    1 => ExchangeKind::Direct,
                    2 => ExchangeKind::Pattern,
                    3 => ExchangeKind::Headers,
                    4 => ExchangeKind::Hash,
                    _ => return None,
                },
                durable: at.bool()?,
                auto_delete: at.bool()?,
                internal: at.bool()?,
                alternate: at.alternate()?,
                hash_on: at.hash_on()?,
                dedup: at.dedup()?,
                arguments: at.bytes()?,
            }),
            2 => Self::ExchangeGone(at.bytes()?),
            3 => Self::Queue {
                id: at.u32()?,
                queue: Queue {
                    name: at.bytes()?,
                    durable: at.bool()?,
                    exclusive: at.bool()?,
                    auto_delete: at.bool()?,
                    addressable: at.bool()?,
                    limit: at.limit()?,
                    policy: at.policy()?,
                    arguments: at.bytes()?,
                },
            },
            4 => Self::QueueGone { id: at.u32()? },
            5 => Self::Bound {
                queue: Some(at.u32()?).filter(|queue| *queue != NO_QUEUE),
                binding: at.binding()?,
            },
            6 => Self::Unbound {
                queue: Some(at.u32()?).filter(|queue| *queue != NO_QUEUE),
                binding: at.binding()?,
            },
            7 => Self::Topic {
                name: at.bytes()?,
                queues: at.u32()?,
            },
            8 => Self::Group {
                group: at.bytes()?,
                topic: at.bytes()?,
            },
            9 => Self::Offset {
                group: at.bytes()?,
                topic: at.bytes()?,
                queue_id: at.u32()?,
                offset: at.u64()?,
            },
            10 => Self::Holder {
                name: at.bytes()?,
                keep: at.u64()?,
            },
            11 => Self::HolderGone(at.bytes()?),
            12 => Self::Consumed { id: at.u32()? },
            13 => {
                let count = at.u32()?;
                // Nothing is allocated for what is merely claimed: collecting stops at the first missing byte.
                let delivered: Option<Vec<_>> = (0..count).map(|_| Some((at.u32()?, at.u64()?))).collect();
                Self::Stopped { delivered: delivered? }
            }
            40 => {
                let (kind, name) = (at.u8()?, at.bytes()?);
                let count = at.u32()?;
                let keys: Option<Vec<_>> = (0..count).map(|_| at.open_key()).collect();
                Self::KeysOpen {
                    scope: Scope::of(kind, name)?,
                    keys: keys?,
                }
            }
            41 => Self::KeyClosed {
                holder: at.bytes()?,
                number: at.u64()?,
            },
            42 => Self::PopState {
                place: at.pop_place()?,
                head: at.u64()?,
                next: at.u64()?,
                acked: at.pairs()?,
            },
            43 => Self::PopAcked {
                place: at.pop_place()?,
                ranges: at.pairs()?,
            },
            44 => {
                let place = at.pop_place()?;
                let count = at.u32()?;
                let runs: Option<Vec<_>> = (0..count).map(|_| Some((at.u64()?, at.u64()?, at.u32()?))).collect();
                Self::PopReturned { place, runs: runs? }
            }
            45 => Self::Reset {
                group: at.bytes()?,
                topic: at.bytes()?,
                queue_id: at.u32()?,
                offset: at.u64()?,
            },
            50 => Self::Note {
                id: at.u32()?,
                sequence: at.u64()?,
                note: at.u32()?,
            },
            51 => Self::Will {
                holder: at.bytes()?,
                will: Box::new(at.will()?),
            },
            52 => Self::WillGone(at.bytes()?),
            53 => Self::Member {
                holder: at.bytes()?,
                id: at.u32()?,
                cookie: at.bytes()?,
            },
            54 => Self::MemberGone {
                holder: at.bytes()?,
                id: at.u32()?,
            },
            55 => {
                let (id, first, count) = (at.u32()?, at.u64()?, at.u32()?);
                let entries: Option<Vec<_>> = (0..count).map(|_| at.entry()).collect();
                Self::Recalled {
                    id,
                    first,
                    entries: entries?,
                }
            }
            56 => Self::Retained {
                address: at.bytes()?,
                entry: at.entry()?,
            },
            30 => Self::Clock {
                ahead: at.u64()? as i64,
                elapsed: Millis(at.u64()?),
            },
            31 => {
                let (axis, before, count) = (Axis::of(at.u8()?)?, at.u64()?, at.u32()?);
                let positions: Option<Vec<_>> = (0..count).map(|_| Some(Position(at.u64()?))).collect();
                Self::Fired {
                    axis,
                    before,
                    positions: positions?,
                }
            }
            32 => Self::TimerRecalled {
                axis: Axis::of(at.u8()?)?,
                due: at.u64()?,
                position: Position(at.u64()?),
            },
            39 => Self::TimerMoved {
                axis: Axis::of(at.u8()?)?,
                due: at.u64()?,
                first: Position(at.u64()?),
                from: Position(at.u64()?),
                to: Position(at.u64()?),
            },
            34 => Self::Half {
                position: Position(at.u64()?),
                half: Half {
                    size: at.u32()?,
                    offset: at.u64()?,
                    next: Millis(at.u64()?),
                    checks: at.u32()?,
                },
            },
            35 => Self::HalfNumbers { next: at.u64()? },
            36 => Self::HalfChecked {
                position: Position(at.u64()?),
                checks: at.u32()?,
                next: Millis(at.u64()?),
            },
            37 => Self::HalfDone {
                position: Position(at.u64()?),
            },
            38 => Self::Retry {
                group: at.bytes()?,
                retry: Retry {
                    attempts_max: at.u32()? as i32,
                    queues: at.u32()?,
                    policy: match at.u8()? {
                        0 => {
                            let count = at.u32()?;
                            let levels: Option<Vec<_>> = (0..count).map(|_| Some(Millis(at.u64()?))).collect();
                            RetryPolicy::Levels(levels?)
                        }
                        1 => RetryPolicy::Exponential {
                            initial: Millis(at.u64()?),
                            max: Millis(at.u64()?),
                            multiplier: at.u32()?,
                        },
                        _ => return None,
                    },
                },
            },
            33 => Self::Timers {
                axis: Axis::of(at.u8()?)?,
                minute: at.u64()?,
                end: Position(at.u64()?),
                timers: at.bytes()?,
            },
            20 => Self::QueueAltered {
                id: at.u32()?,
                limit: at.limit()?,
                policy: at.policy()?,
            },
            21 => {
                let (id, count) = (at.u32()?, at.u32()?);
                let runs: Option<Vec<_>> = (0..count).map(|_| Some((at.u64()?, at.u64()?, at.u32()?))).collect();
                Self::Attempts { id, runs: runs? }
            }
            23 => Self::Expiring { id: at.u32()? },
            22 => {
                let (id, count) = (at.u32()?, at.u32()?);
                let ranges: Option<Vec<_>> = (0..count).map(|_| Some((at.u64()?, at.u64()?))).collect();
                Self::Purged { id, ranges: ranges? }
            }
            60 => Self::Page {
                list: at.u64()?,
                number: at.u64()?,
                done: at.u64()?,
                first: at.u64()?,
                mixed: at.bool()?,
                stored: Some(at.u32()?).filter(|stored| *stored != u32::MAX),
                entries: at.bytes()?,
            },
            61 => Self::Tail {
                list: at.u64()?,
                head: at.u64()?,
                start: at.u64()?,
                done: at.u64()?,
                bytes: at.u64()?,
                entries: at.bytes()?,
            },
            62 => Self::Numbers { next_queue: at.u32()? },
            63 => Self::Segment {
                number: at.u64()?,
                keep_until: at.u64()?,
                pinned: at.u64()?,
            },
            64 => Self::TopicAt {
                id: at.u32()?,
                name: at.bytes()?,
                queues: at.u32()?,
            },
            _ => return None,
        })
    }
}

impl Reader<'_> {
    fn pop_place(&mut self) -> Option<PopPlace> {
        Some(PopPlace {
            group: self.bytes()?,
            topic: self.bytes()?,
            queue: self.u32()?,
        })
    }

    fn pairs(&mut self) -> Option<Vec<(u64, u64)>> {
        let count = self.u32()?;
        (0..count).map(|_| Some((self.u64()?, self.u64()?))).collect()
    }

    fn open_key(&mut self) -> Option<OpenKey> {
        Some(OpenKey {
            fingerprint: self.u128()?,
            position: Position(self.u64()?),
            closes_at: self.u64()?,
        })
    }

    fn binding(&mut self) -> Option<Binding> {
        let source = match self.u8()? {
            0 => Source::Exchange(self.bytes()?),
            1 => Source::Topics,
            2 => Source::Everything,
            _ => return None,
        };
        let matcher = match self.u8()? {
            0 => Matcher::Key(self.bytes()?),
            1 => {
                let spare_dollar = self.bool()?;
                let count = self.u32()?;
                let levels: Option<Vec<_>> = (0..count).map(|_| self.level()).collect();
                Matcher::Pattern(Pattern {
                    levels: levels?,
                    spare_dollar,
                })
            }
            2 => Matcher::Headers(Headers {
                all: self.bool()?,
                wanted: self.bytes()?,
            }),
            _ => return None,
        };
        let destination = match self.u8()? {
            0 => Destination::Queue(self.bytes()?),
            1 => Destination::Exchange(self.bytes()?),
            2 => Destination::Topics,
            _ => return None,
        };
        Some(Binding {
            source,
            matcher,
            destination,
            arguments: self.bytes()?,
            cookie: self.bytes()?,
        })
    }

    fn entry(&mut self) -> Option<Entry> {
        Some(Entry {
            position: Position(self.u64()?),
            size: self.u32()?,
            word: self.u64()?,
        })
    }

    fn will(&mut self) -> Option<Will> {
        let delay = Millis(self.u64()?);
        let entry = match self.u8()? {
            0 => message::Entry::Exchange,
            1 => message::Entry::Queue,
            2 => message::Entry::Topic,
            3 => message::Entry::Native,
            _ => return None,
        };
        let format = Format(self.u8()?);
        let (persistent, retain) = (self.bool()?, self.bool()?);
        Some(Will {
            delay,
            entry,
            format,
            persistent,
            retain,
            topic: self.bytes()?,
            key: self.bytes()?,
            body: self.bytes()?,
            origin: self.bytes()?,
            attributes: Attributes::encoded(self.bytes()?),
        })
    }

    fn level(&mut self) -> Option<Level> {
        Some(match self.u8()? {
            0 => Level::Literal(self.bytes()?),
            1 => Level::One,
            2 => Level::Many,
            _ => return None,
        })
    }
}
