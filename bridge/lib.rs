//! RocketBridge: a message broker with RocketMQ's semantics for AMQP, MQTT and RocketMQ clients.
//!
//! This crate is the outer ring: sockets, tasks, clocks, configuration and the log. What a protocol means is
//! in its own crate, what a message means is in `rocketbridge-core`. A publish passes: [`listener`]
//! (accepts), [`driver`] (reads, hands bytes to the protocol's session, carries its orders to core),
//! the protocol's session, and core's engine. [`server`] puts it all together; [`protocols`] is the list.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = rocketbridge::Config::default();
//! config.data_dir = "/tmp/data".into();
//! config.amqp.listen = vec!["127.0.0.1:0".into()];
//! let server = rocketbridge::Server::start(config).await?;
//! println!("AMQP clients connect to {}", server.address("amqp"));
//! server.shutdown().await?;
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod clock;
pub mod config;
pub mod connections;
pub mod driver;
pub mod listener;
pub mod log;
pub mod protocols;
mod scratch;
pub mod server;
pub mod store_tools;
pub mod websocket;

pub use config::Config;
pub use server::Server;
