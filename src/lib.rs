#![doc = include_str!("../README.md")]
//!
//! On docs.rs the long pages are the modules of `pgonce::_docs`.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod error;
mod inbox;
mod leased;
mod maintenance;
mod operation;
mod protocol;
mod rollout;
mod telemetry;
mod transactional;
#[cfg(feature = "tower")]
pub mod web;
pub mod writes;

#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub use telemetry::names as metrics;

pub use client::PgOnce;
pub use error::{Error, ErrorKind, Result};
pub use inbox::{Handled, Inbox, Message, Receipt, Received, Verdict};
pub use leased::{Lease, Recovery, Step, Work};
pub use maintenance::{Migrated, Reaped, Reaper};
pub use operation::{
    Class, Fingerprint, FingerprintSecret, Key, OnLapse, Operation, Policy, Response, Scope,
};
pub use protocol::{Adoption, Anomaly, AuditLine, RolloutChange};
pub use protocol::{BackfillUndone, Backfilled, PastOperation};
pub use protocol::{Begin, Finished, Held, HeldBecause, InProgress, Mismatch, Replay};
pub use protocol::{
    Claim, ClaimState, Filter, Inspected, Listed, Progress, Record, SchemaName, Stats, Status,
};
pub use protocol::{
    Consumer, Details, Found, Overview, ScopeCounts, Search, StepDone, Unfinished,
    UnfinishedFilter, UnfinishedState,
};
pub use protocol::{HistoryBucket, HistoryCounts, HistoryQuery, HistoryScope};
pub use rollout::{Rollout, RolloutMode};
pub use telemetry::History;
pub use transactional::{Done, Failure, RunError, WorkError, commit};

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
    #[doc = include_str!("docs/agents.md")]
    pub mod agents {}
    #[doc = include_str!("docs/patterns.md")]
    pub mod patterns {}
    // Its recipes use axum.
    #[cfg(any(feature = "axum", all(feature = "tower", not(doctest))))]
    #[doc = include_str!("docs/cookbook.md")]
    pub mod cookbook {}
    // Its example is an axum program.
    #[cfg(any(feature = "axum", all(feature = "tower", not(doctest))))]
    #[doc = include_str!("docs/http.md")]
    pub mod http {}
    #[doc = include_str!("docs/comparison.md")]
    pub mod comparison {}
    #[doc = include_str!("docs/where-it-runs.md")]
    pub mod where_it_runs {}
    // Links to the HTTP layer.
    #[cfg(feature = "tower")]
    #[doc = include_str!("docs/security.md")]
    pub mod security {}
    #[doc = include_str!("docs/failure-modes.md")]
    pub mod failure_modes {}
    #[doc = include_str!("docs/operations.md")]
    pub mod operations {}
    // Links to constants and methods of the features.
    #[cfg(all(feature = "metrics", feature = "tower"))]
    #[doc = include_str!("docs/observability.md")]
    pub mod observability {}
    // Links to the HTTP layer.
    #[cfg(feature = "tower")]
    #[doc = include_str!("docs/rollout.md")]
    pub mod rollout {}
    #[doc = include_str!("docs/upgrading.md")]
    pub mod upgrading {}
    #[doc = include_str!("docs/compile-errors.md")]
    pub mod compile_errors {}
    #[cfg(feature = "tower")]
    #[doc = include_str!("docs/testing.md")]
    pub mod testing {}
    #[doc = include_str!("docs/performance.md")]
    pub mod performance {}
    #[doc = include_str!("docs/architecture.md")]
    pub mod architecture {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changes {}
}
