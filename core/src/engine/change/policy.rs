//! How policies and what exchanges route by stand in `Change` records (`FORMAT.md`, "Change").

use bytes::{BufMut, Bytes};

use crate::attributes::Attribute;
use crate::codec::{Reader, put_bools, put_bytes, put_way};
use crate::policy::{DeadLetter, HashOn, Limit, Overflow, Policy, Way};
use crate::request::Dedup;
use crate::time::Millis;

/// Stands for a number that is not there.
const NONE: u64 = u64::MAX;

fn put_number(out: &mut Vec<u8>, number: Option<u64>) {
    out.put_u64_le(number.map_or(NONE, |number| number.min(NONE - 1)));
}

pub(crate) fn put_limit(out: &mut Vec<u8>, limit: Limit) {
    put_number(out, limit.messages);
    put_number(out, limit.bytes);
}

pub(crate) fn put_alternate(out: &mut Vec<u8>, alternate: Option<&Way>) {
    match alternate {
        None => out.put_u8(0),
        Some(way) => {
            out.put_u8(1);
            put_way(out, way);
        }
    }
}

pub(crate) fn put_hash_on(out: &mut Vec<u8>, hash_on: &HashOn) {
    match hash_on {
        HashOn::Key => out.put_u8(0),
        HashOn::Property(name) => {
            out.put_u8(1);
            put_bytes(out, name);
        }
        HashOn::Attribute(attribute) => {
            out.put_u8(2);
            out.put_u8(*attribute as u8);
        }
    }
}

pub(crate) fn put_dedup(out: &mut Vec<u8>, dedup: Option<&Dedup>) {
    put_bools(out, &[dedup.is_some()]);
    let Some(dedup) = dedup else { return };
    put_bytes(out, &dedup.property);
    out.put_u32_le(dedup.keys_max);
    put_number(out, dedup.time.map(|time| time.0));
}

pub(crate) fn put_policy(out: &mut Vec<u8>, policy: Option<&Policy>) {
    put_bools(out, &[policy.is_some()]);
    let Some(policy) = policy else { return };
    put_number(out, policy.message_ttl.map(|ttl| ttl.0));
    put_number(out, policy.expires.map(|expires| expires.0));
    out.put_u8(policy.overflow as u8);
    out.put_u8(policy.priorities);
    put_bools(out, &[policy.single_active, policy.counts_attempts, policy.keeps_all]);
    put_number(out, policy.delivery_limit.map(u64::from));
    put_bools(out, &[policy.dead_letter.is_some()]);
    if let Some(DeadLetter { way, key }) = &policy.dead_letter {
        put_way(out, way);
        put_bools(out, &[key.is_some()]);
        put_bytes(out, key.as_deref().unwrap_or_default());
    }
}

impl Reader<'_> {
    fn number(&mut self) -> Option<Option<u64>> {
        let number = self.u64()?;
        Some((number != NONE).then_some(number))
    }

    pub(crate) fn limit(&mut self) -> Option<Limit> {
        Some(Limit {
            messages: self.number()?,
            bytes: self.number()?,
        })
    }

    pub(crate) fn alternate(&mut self) -> Option<Option<Way>> {
        Some(if self.bool()? { Some(self.way()?) } else { None })
    }

    pub(crate) fn hash_on(&mut self) -> Option<HashOn> {
        Some(match self.u8()? {
            0 => HashOn::Key,
            1 => HashOn::Property(self.bytes()?),
            2 => HashOn::Attribute(Attribute::from_id(self.u8()?)?),
            _ => return None,
        })
    }

    pub(crate) fn dedup(&mut self) -> Option<Option<Dedup>> {
        if !self.bool()? {
            return Some(None);
        }
        Some(Some(Dedup {
            property: self.bytes()?,
            keys_max: self.u32()?,
            time: self.number()?.map(Millis),
        }))
    }

    pub(crate) fn policy(&mut self) -> Option<Option<Box<Policy>>> {
        if !self.bool()? {
            return Some(None);
        }
        let mut policy = Policy {
            message_ttl: self.number()?.map(Millis),
            expires: self.number()?.map(Millis),
            overflow: match self.u8()? {
                0 => Overflow::DropHead,
                1 => Overflow::Reject,
                2 => Overflow::RejectAndDeadLetter,
                _ => return None,
            },
            priorities: self.u8()?,
            single_active: self.bool()?,
            counts_attempts: self.bool()?,
            keeps_all: self.bool()?,
            delivery_limit: match self.number()? {
                None => None,
                Some(limit) => Some(u32::try_from(limit).ok()?),
            },
            dead_letter: None,
        };
        if self.bool()? {
            let way = self.way()?;
            let has_key = self.bool()?;
            let key: Bytes = self.bytes()?;
            policy.dead_letter = Some(DeadLetter {
                way,
                key: has_key.then_some(key),
            });
        }
        Some(Some(Box::new(policy)))
    }
}
