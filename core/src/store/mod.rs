//! The store: records, the commit log, its storage and its recovery.
#![doc = include_str!("FORMAT.md")]

pub(crate) mod checkpoint;
pub(crate) mod chunk;
pub mod inspect;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod pages;
pub mod record;
pub mod recovery;
pub(crate) mod segments;
pub mod storage;
