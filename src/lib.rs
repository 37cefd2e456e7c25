#![doc = include_str!("../README.md")]
//!
//! On docs.rs the long pages are the modules of `pgonce::_docs`.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod before;
mod claim;
mod environment;
mod error;
mod fingerprint;
mod heartbeat;
mod inbox;
mod key;
mod later;
mod lease;
mod leased;
mod limits;
mod loans;
mod migrate;
mod once;
mod operation;
mod progress;
mod protocol;
mod reaper;
mod record;
mod recovery;
mod response;
mod run_leased;
mod schema;
mod scope;
mod sql;
mod transactional;
#[cfg(feature = "tower")]
pub mod web;
mod work;

pub use answer::{Begin, Finished, Held, HeldBecause, InProgress, Mismatch, Replay};
pub use claim::Claim;
pub use error::{Error, ErrorKind, Result};
pub use fingerprint::{Fingerprint, FingerprintSecret};
pub use inbox::{Handled, Inbox, Message, Receipt, Received, Verdict};
pub use key::Key;
pub use lease::Lease;
pub use migrate::Migrated;
pub use once::PgOnce;
pub use operation::{OnLapse, Operation};
pub use progress::Progress;
pub use reaper::{Reaped, Reaper};
pub use record::{ClaimState, Filter, Listed, Record, Stats, Status};
pub use recovery::Recovery;
pub use response::Response;
pub use schema::SchemaName;
pub use scope::Scope;
pub use transactional::{Done, Failure, RunError, commit};
pub use work::{Step, Work};

/// sqlx's types are part of this API; use the same version.
pub use sqlx;

/// The long pages.
#[cfg(any(doc, doctest))]
pub mod _docs {
    #[doc = include_str!("docs/protocol.md")]
    pub mod protocol {}
    #[doc = include_str!("docs/leased.md")]
    pub mod leased {}
    #[doc = include_str!("docs/inbox.md")]
    pub mod inbox {}
    #[doc = include_str!("docs/sql.md")]
    pub mod sql {}
    // Its example is an axum program.
    #[cfg(any(feature = "axum", all(feature = "tower", not(doctest))))]
    #[doc = include_str!("docs/http.md")]
    pub mod http {}
    #[doc = include_str!("docs/failure-modes.md")]
    pub mod failure_modes {}
    #[doc = include_str!("docs/operations.md")]
    pub mod operations {}
    #[doc = include_str!("docs/performance.md")]
    pub mod performance {}
    #[doc = include_str!("docs/architecture.md")]
    pub mod architecture {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changes {}
}
