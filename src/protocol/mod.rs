//! The protocol's statements and answers: what is sent, and what comes back.

pub(crate) mod anomalies;
pub(crate) mod answer;
pub(crate) mod audit;
pub(crate) mod backfill;
pub(crate) mod claim;
pub(crate) mod details;
pub(crate) mod files;
pub(crate) mod history;
pub(crate) mod inspection;
pub(crate) mod overview;
pub(crate) mod procedure;
pub(crate) mod record;
pub(crate) mod rollout;
pub(crate) mod schema;
pub(crate) mod search;
pub(crate) mod statements;
pub(crate) mod status;
pub(crate) mod unfinished;

pub use anomalies::Anomaly;
pub use answer::{Begin, Finished, Held, HeldBecause, InProgress, Mismatch, Replay};
pub use audit::AuditLine;
pub use backfill::{BackfillUndone, Backfilled, PastOperation};
pub use claim::Claim;
pub use details::{Details, StepDone};
pub use history::{HistoryBucket, HistoryCounts, HistoryQuery, HistoryScope};
pub use inspection::{Filter, Inspected, Stats};
pub use overview::{Overview, ScopeCounts};
pub use record::{ClaimState, Listed, Record, Status};
pub use rollout::{Adoption, RolloutChange};
pub use schema::SchemaName;
pub use search::{Found, Search};
pub use status::Progress;
pub use unfinished::{Consumer, Unfinished, UnfinishedFilter, UnfinishedState};
