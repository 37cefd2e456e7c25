#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod call;
mod error;
mod intent;
mod policy;
#[cfg(feature = "reqwest")]
mod reqwest;
#[cfg(feature = "tower")]
mod tower;

pub use call::Sent;
pub use error::Error;
#[cfg(feature = "postgres")]
pub use intent::PgIntentStore;
pub use intent::{FileIntentStore, Intent, IntentError, IntentStore};
pub use policy::{Budget, RetryPolicy};
#[cfg(feature = "reqwest")]
pub use reqwest::{Retries, client};
#[cfg(feature = "tower")]
pub use tower::{RetryLayer, RetryService};
