//! The remoting front-end: RocketMQ's own protocol, name server and broker on one connection.
//!
//! [`codec`] turns bytes into commands and back, [`session`] is the state of one connection, [`mapping`]
//! translates between commands and core. No socket, clock or task is in here.
#![doc = include_str!("../MAPPING.md")]

pub mod codec;
mod config;
pub mod fuzzing;
pub mod mapping;
pub mod request_code;
pub mod response_code;
pub mod session;

pub use config::Config;
pub use session::Session;
