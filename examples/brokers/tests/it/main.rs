//! The consumers against real brokers, which the tests start.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod database;
mod kafka;
mod kills;
mod nats;
mod poison;
mod process;
mod rabbitmq;
