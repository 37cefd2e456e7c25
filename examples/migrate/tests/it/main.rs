//! The programs of the guides against a real PostgreSQL and a real Redis, which the tests start.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod database;
mod guides;
mod keys_table;
mod memory_cache;
#[path = "../../../brokers/tests/it/process.rs"]
#[allow(dead_code, reason = "shared with the tests of the consumers")]
mod process;
mod processed_messages;
mod redis_lock;
mod service;
mod storm;
mod zero_to_production;
