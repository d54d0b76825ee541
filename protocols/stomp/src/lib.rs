#![doc = include_str!("../MAPPING.md")]

pub mod codec;
mod config;
pub mod error_message;
#[doc(hidden)]
pub mod fuzzing;
mod heart_beat;
pub mod mapping;
mod session;

pub use config::Config;
pub use session::Session;
