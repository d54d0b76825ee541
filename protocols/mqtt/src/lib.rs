#![doc = include_str!("../MAPPING.md")]

pub mod codec;
pub mod config;
#[doc(hidden)]
pub mod fuzzing;
mod inflight;
pub mod mapping;
pub mod reason_code;
mod session;
mod stats;
mod subscriptions;

pub use config::Config;
pub use session::MqttSession;
pub use stats::Stats;
