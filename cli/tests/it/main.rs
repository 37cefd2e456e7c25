//! The program, as people and scripts use it, on a real PostgreSQL.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod audit;
mod backfill;
mod commands;
mod dashboard;
mod inbox;
mod resolve;
mod roles;
mod rollout;
mod slayer;
mod support;
