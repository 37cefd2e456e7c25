//! The page through its router, on a real PostgreSQL.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod access;
mod actions;
mod busy;
mod kit;
mod mounting;
mod pages;
mod privacy;
mod support;
