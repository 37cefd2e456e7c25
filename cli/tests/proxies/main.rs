//! pgonce through Debian's PgBouncer and pgpool-II. The tests start both, and the servers behind them. `.ci/long
//! proxies` installs them. Plain `cargo test` skips these tests; `cargo test -p pgonce-cli --test proxies` runs them.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod calls;
mod pgbouncer;
mod pgpool;
mod process;
mod stage;
mod storm;
