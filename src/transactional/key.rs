//! The statements for a key without a row: the look that tries to take its lock, the wait for the lock, and the INSERT
//! that decides.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::client::PgOnce;
use crate::client::{get, replay};
use crate::error::{Error, ErrorKind, Result, database, sqlstate_in};
use crate::operation::fingerprint::Fingerprint;
use crate::operation::response::Response;
use crate::operation::{Operation, millis};
use crate::protocol::answer::{Finished, Replay};

/// SQLSTATE of the INSERT: another transaction has the key's lock.
const TAKEN: &str = "IK004";
/// SQLSTATE of an optimistic INSERT: another transaction's row was in the way for too long.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The shortest time between two `discard plans` after slow looks. A server that is slow for another reason must not
/// plan everything anew all the time.
const PLANS_LIVE_MIN: Duration = Duration::from_millis(100);

/// When plans were last discarded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plans(Arc<Mutex<Option<Instant>>>);

impl Plans {
    fn may_be_renewed(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= PLANS_LIVE_MIN);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

pub(super) enum Found {
    /// No row; the transaction has the key's lock if it asked for it.
    Free,
    /// No row; another transaction has the lock.
    Taken,
    /// A finished row of the same request.
    Replay(Replay),
    /// A row that may be overwritten.
    Overwritable,
    /// Any other row: ask `begin_operation`.
    Other,
}

pub(super) struct Look {
    pub(super) found: Found,
    pub(super) isolation: Isolation,
    /// Whether the work has committed a transaction of this call.
    pub(super) is_committed: bool,
    pub(super) is_read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    Written,
    /// Another transaction wrote a row, or something discarded this one.
    NoRow,
    Taken,
}

impl PgOnce {
    /// Looks for the key. `takes`: if there is no row, tries to take the key's lock. `token`: the call's.
    pub(super) async fn look(
        &self,
        conn: &mut PgConnection,
        op: &Operation,
        takes: bool,
        token: &str,
    ) -> Result<Look> {
        let naming = |error| database(error).in_schema(&self.schema).naming(op);
        let row = sqlx::query(self.statements.look.clone())
            .bind(op.scope.as_str())
            .bind(op.key.as_str())
            .bind(op.fingerprint.as_ref().map(Fingerprint::as_bytes))
            .bind(takes)
            .bind(token)
            .fetch_one(&mut *conn)
            .await
            .map_err(naming)?;
        if get(&row, "is_slow")? && self.plans.may_be_renewed() {
            // Its plan may be from a time when the table was small.
            sqlx::raw_sql("discard plans").execute(conn).await.map_err(naming)?;
        }
        Look::of(&row)
    }

    /// Waits until the key's lock is free, the key is finished, or `wait` is over. Look afterwards in any case.
    pub(super) async fn wait_for_key(
        &self,
        conn: &mut PgConnection,
        op: &Operation,
        wait: Duration,
    ) -> Result<()> {
        sqlx::query(self.statements.wait_for_key.clone())
            .bind(op.scope.as_str())
            .bind(op.key.as_str())
            .bind(millis(wait))
            .execute(conn)
            .await
            .map(drop)
            .map_err(|error| database(error).in_schema(&self.schema).naming(op))
    }

    /// Writes the finished row. `optimistic`: the call has not looked.
    pub(super) async fn insert(
        &self,
        conn: &mut PgConnection,
        op: &Operation,
        finished: Finished,
        response: Response,
        optimistic: bool,
    ) -> Result<Inserted> {
        let response = response.omitted_over(i64::from(self.response_bytes_max));
        let policy = self.policy_of(op);
        let failed_retention = match finished {
            Finished::Completed => None,
            Finished::Failed => policy.failed_retention.map(millis),
        };
        let rows = sqlx::query(self.statements.insert_finished.clone())
            .bind(op.scope.as_str())
            .bind(op.key.as_str())
            .bind(op.fingerprint.as_ref().map(Fingerprint::as_bytes))
            .bind(millis(policy.retention))
            .bind(finished.code())
            .bind(response.code)
            .bind(response.headers)
            .bind(response.body)
            .bind(response.omitted)
            .bind(optimistic)
            .bind(failed_retention)
            .fetch_all(conn)
            .await
            .map_err(|error| database(error).in_schema(&self.schema).naming(op));
        match rows {
            Ok(rows) => inserted(op, &rows),
            Err(error) => match sqlstate_in(&error) {
                Some(TAKEN) => Ok(Inserted::Taken),
                Some(LOCK_NOT_AVAILABLE) if optimistic => Ok(Inserted::Taken),
                _ => Err(error),
            },
        }
    }
}

/// Compares the row with what was sent. A pooler may have run another client's statement, or a trigger may have changed
/// the row: then this key has no row.
fn inserted(op: &Operation, rows: &[PgRow]) -> Result<Inserted> {
    let row = match rows {
        [] => return Ok(Inserted::NoRow),
        [row] => Some(row),
        _ => None,
    };
    let is_the_keys = row.is_some_and(|row| {
        row.try_get::<&str, _>("scope").is_ok_and(|scope| scope == op.scope.as_str())
            && row.try_get::<&str, _>("key").is_ok_and(|key| key == op.key.as_str())
    });
    if is_the_keys {
        return Ok(Inserted::Written);
    }
    Err(Error::new(
        ErrorKind::Database,
        "the row of another key came back from the key's INSERT, and nothing was committed: a pooler mixes up the \
         prepared statements of its clients, or a trigger rewrites scope or key",
    ))
}

impl Look {
    fn of(row: &PgRow) -> Result<Self> {
        let found = match get::<Option<&str>>(row, "answer")? {
            Some("replay") => Found::Replay(replay(row)?),
            Some(_) => Found::Other,
            None if get::<Option<bool>>(row, "found")?.is_some() => Found::Overwritable,
            None if get::<Option<bool>>(row, "has_lock")? == Some(false) => Found::Taken,
            None => Found::Free,
        };
        let isolation = match get::<&str>(row, "isolation")? {
            "serializable" => Isolation::Serializable,
            "repeatable read" => Isolation::RepeatableRead,
            _ => Isolation::ReadCommitted,
        };
        let is_committed = get(row, "is_committed")?;
        Ok(Self { found, isolation, is_committed, is_read_only: get(row, "is_read_only")? })
    }
}
