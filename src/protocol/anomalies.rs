//! What looks wrong: for `pgonce doctor` and the operator's page.

use std::fmt;

use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgRow;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};

/// Something that looks wrong; see [`PgOnce::anomalies`]. `Debug` does not show the scope; as JSON it is there.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Anomaly {
    /// What it is: `mismatches` or `duplicates`, whose share in a scope has jumped; `guessable_keys`; `late_reaper`;
    /// `greedy_scope`.
    pub anomaly: String,
    /// The scope, if it is about one.
    pub scope: Option<String>,
    /// What was seen, with figures.
    pub saw: String,
    /// Why it matters.
    pub matters: String,
    /// What to do.
    pub remedy: String,
}

impl PgOnce {
    /// Looks for what is likely to be wrong, though it breaks no promise: a scope whose share of mismatches or duplicates
    /// in the last hour is three times that of the day before (known only if processes keep a
    /// [`History`](crate::History)), keys that are easy to guess, a reaper that is missing or late, a scope that holds
    /// nearly all leased keys in progress.
    ///
    /// Only reads, and never the keys from end to end: for guessable keys, up to 100 keys of each of up to 1,000 scopes.
    /// Leaves out what the role may not read.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, once: pgonce::PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// for found in once.anomalies(&mut *pool.acquire().await?).await? {
    ///     println!("{}: {} {} {}", found.anomaly, found.saw, found.matters, found.remedy);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn anomalies(&self, conn: &mut PgConnection) -> Result<Vec<Anomaly>> {
        let rows = sqlx::query(self.statements.anomalies.clone()).fetch_all(conn).await;
        let anomaly = |row: &PgRow| {
            Ok(Anomaly {
                anomaly: get(row, "anomaly")?,
                scope: get(row, "scope")?,
                saw: get(row, "saw")?,
                matters: get(row, "matters")?,
                remedy: get(row, "remedy")?,
            })
        };
        rows.map_err(database)?.iter().map(anomaly).collect()
    }
}

// By hand: a derived one would show the scope.
impl fmt::Debug for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anomaly")
            .field("anomaly", &self.anomaly)
            .field("saw", &self.saw)
            .finish_non_exhaustive()
    }
}
