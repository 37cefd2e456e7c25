//! pgonce through Debian's PgBouncer and pgpool-II, which the tests start, as they do the servers behind them.
//! `.ci/long proxies` installs them. Plain `cargo test` leaves these out; `cargo test -p pgonce-cli --test proxies`
//! does not.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod calls;
mod pgbouncer;
mod pgpool;
mod process;
mod stage;
mod storm;
