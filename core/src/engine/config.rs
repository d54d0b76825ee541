//! What the engine is told at start: limits, defaults, users.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::request::{Dedup, Exchange};
use crate::time::Millis;

/// When a persistent message counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flush {
    /// When the disk has it (`fdatasync`): survives a power cut.
    #[default]
    Sync,
    /// When the kernel has it: survives the broker's death. The disk follows within 500 ms.
    Async,
}

/// Somebody who may log in.
#[derive(Clone, Debug)]
pub struct User {
    /// The login name.
    pub name: Bytes,
    /// The password.
    pub password: Bytes,
    /// Only from this machine.
    pub loopback_only: bool,
}

/// The engine's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// When a persistent message counts as stored.
    pub flush: Flush,
    /// Who may log in with a password.
    pub users: Vec<User>,
    /// Whether clients from this machine may come without credentials.
    pub anonymous_loopback: bool,
    /// Whether clients from anywhere may.
    pub anonymous_remote: bool,
    /// Exchanges that always exist, made at the first start.
    pub exchanges: Vec<Exchange>,
    /// Topics that know copies of messages, by encoded name.
    pub dedup_topics: Vec<(Bytes, Dedup)>,
    /// Keys remembered by all topics and exchanges together, about 100 bytes each.
    pub dedup_keys_max: usize,
    /// The address that native records carry and that clients use to ask for a message by its id.
    pub store_host: SocketAddr,
    /// Message queues of a topic that nobody asked a number for.
    pub topic_queues: u32,
    /// Most topics that publishes of foreign protocols make; beyond it messages enter `catch-all`.
    pub topics_auto_max: usize,
    /// Most topics of all kinds; also bounds what native producers make.
    pub topics_max: usize,
    /// Most consumer groups.
    pub groups_max: usize,
    /// Most queues, named sessions' ones included.
    pub queues_max: usize,
    /// Most exchanges.
    pub exchanges_max: usize,
    /// Most bindings, subscriptions to patterns included.
    pub bindings_max: usize,
    /// Most addresses with a last value.
    pub retained_max: usize,
    /// Largest body, bytes.
    pub body_max: usize,
    /// Longest time from a publish to its delivery.
    pub delay_max: Millis,
    /// How long after its half message a transaction is asked about first.
    pub check_after: Millis,
    /// How long after that again.
    pub check_interval: Millis,
    /// How often.
    pub check_max: u32,
    /// Most bytes that may wait for the disk before publishes are held back.
    pub unsynced_max: usize,
    /// Memory for transient messages, bytes; beyond it they go to the log like any other.
    pub transient_max: usize,
    /// Bytes of the newest log kept in memory for readers.
    pub tail_cache: usize,
    /// Bytes of full index pages kept in memory before they go to the index files.
    pub index_cache: usize,
    /// How long topics keep messages.
    pub retention: Millis,
    /// Bytes by which the log grows until the next checkpoint, at most.
    pub checkpoint_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flush: Flush::Sync,
            users: vec![User {
                name: Bytes::from_static(b"guest"),
                password: Bytes::from_static(b"guest"),
                loopback_only: true,
            }],
            anonymous_loopback: true,
            anonymous_remote: false,
            exchanges: Vec::new(),
            dedup_topics: Vec::new(),
            dedup_keys_max: 1_000_000,
            store_host: SocketAddr::from(([127, 0, 0, 1], 10911)),
            topic_queues: 4,
            topics_auto_max: 10_000,
            topics_max: 100_000,
            groups_max: 100_000,
            queues_max: 2_000_000,
            exchanges_max: 100_000,
            bindings_max: 10_000_000,
            retained_max: 1_000_000,
            body_max: 16 << 20,
            delay_max: Millis::from_secs(3 * 24 * 3600),
            check_after: Millis::from_secs(6),
            check_interval: Millis::from_secs(30),
            check_max: 15,
            unsynced_max: 32 << 20,
            transient_max: 64 << 20,
            tail_cache: 32 << 20,
            index_cache: 8 << 20,
            retention: Millis::from_secs(72 * 3600),
            checkpoint_bytes: 256 << 20,
        }
    }
}
