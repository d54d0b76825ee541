pub mod clock;
pub mod connections;
pub mod driver;
pub mod listener;
mod scratch;
