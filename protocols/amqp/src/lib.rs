#![doc = include_str!("../MAPPING.md")]

pub mod arguments;
pub mod codec;
mod config;
pub mod fuzzing;
pub mod mapping;
pub mod reply_code;
mod session;

pub use config::Config;
pub use mapping::predeclared_exchanges;
pub use session::Session;
