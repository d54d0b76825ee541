//! What the whole-broker tests share. Each test file uses a part of it.
#![allow(dead_code)]

pub mod broker;
pub mod clients;
