//! What the whole-broker tests share. Each test file uses a part of it.
#![allow(dead_code)]

pub mod amqp;
pub mod broker;
pub mod clients;
pub mod history;
pub mod load;
pub mod measure;
pub mod mqtt;
pub mod random;
pub mod remoting;
pub mod stomp;
pub mod stomp_raw;
pub mod wire;
