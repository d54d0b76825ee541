//! The embedded engine.

mod config;

pub use config::{Config, Flush, User};
