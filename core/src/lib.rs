//! RocketMQ's semantics over one log, and the boundary that every front-end talks through.
//!
//! Start with [`boundary`]: a session publishes, settles and requests through a
//! [`Link`](boundary::Link) and hears back through an [`Inbox`](inbox::Inbox). The embedded engine is
//! [`engine`], its disk format is `store/FORMAT.md`. Nothing here knows a protocol, a socket or a clock.

pub mod address;
pub mod attributes;
pub mod boundary;
mod codec;
mod compression;
pub mod engine;
pub mod filter;
#[doc(hidden)]
pub mod fuzzing;
pub mod history;
pub mod inbox;
pub mod message;
pub mod policy;
pub mod properties;
pub mod request;
pub mod store;
pub mod time;
