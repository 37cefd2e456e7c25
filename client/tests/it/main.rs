//! The clients against a real service on a real PostgreSQL, through a proxy that loses answers and cuts requests.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod answers;
mod broken;
mod charges;
mod intents;
mod kills;
mod proxy;
mod redirects;
mod service;
