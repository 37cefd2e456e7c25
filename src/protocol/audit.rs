//! The audit trail: which transitions a key made, when, and by whom.

use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};
use crate::operation::key::{Key, Scope};
use crate::protocol::record::{as_text, time};

/// A line of the audit trail of a key; see [`PgOnce::audit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditLine {
    /// When it happened.
    #[serde(serialize_with = "as_text")]
    pub at: OffsetDateTime,
    /// `begun`, `completed`, `failed`, `released`, `taken over`, `lapsed` (given up by its holder), `revoked`, `redriven`
    /// or `reaped`; `changed` or `deleted` by something else than pgonce; or the action of a
    /// [note](PgOnce::audit_note).
    pub action: String,
    /// How many claims the key had had.
    pub attempt: u32,
    /// The role that was logged in.
    pub role: String,
    /// Whom the application named, in the setting `pgonce.actor` of its transaction or session.
    pub actor: Option<String>,
    /// [`Record::seen`](crate::Record::seen) of the key, after the transition. Empty for a note on an unknown key.
    pub seen: String,
    /// The transaction.
    pub txid: i64,
}

impl PgOnce {
    /// Switches the audit trail on: from now on, each transition of a key leaves a line, for `days_kept` whole days (1 to
    /// 366). If it is on already, only changes the number of days. To be called in a transaction, as the owner of the
    /// tables, after [`migrate`](PgOnce::migrate). Waits up to 3 s for the lock of the keys' table.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool, once: pgonce::PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// once.migrate(&mut tx).await?;
    /// once.audit_on(&mut tx, 90).await?;
    /// pgonce::commit(tx).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a number of days outside its limits; a retryable
    /// [`Database`](crate::ErrorKind::Database) error (55P03) if another session kept the lock; other errors of the
    /// database, such as missing rights. Roll back.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may or may not be in the transaction: roll it back.
    pub async fn audit_on(&self, conn: &mut PgConnection, days_kept: u32) -> Result<()> {
        sqlx::query(self.statements.audit_on.clone())
            .bind(i32::try_from(days_kept).unwrap_or(i32::MAX))
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }

    /// Switches the audit trail off. Its lines stay, and reapers no longer drop old ones. To be called in a transaction, as
    /// the owner of the tables. Waits up to 3 s for the lock of the keys' table.
    ///
    /// # Errors
    /// As [`audit_on`](PgOnce::audit_on).
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may or may not be in the transaction: roll it back.
    pub async fn audit_off(&self, conn: &mut PgConnection) -> Result<()> {
        let off = sqlx::query(self.statements.audit_off.clone());
        off.execute(conn).await.map(drop).map_err(database)
    }

    /// For how many days the audit trail is kept; `None` if it is off.
    ///
    /// # Errors
    /// What the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn audit_days_kept(&self, conn: &mut PgConnection) -> Result<Option<u32>> {
        // In the simple protocol: `migrate` asks, through a pooler of which nothing is known yet. Not volatile, a proxy would
        // ask a standby, which may lag.
        let ask =
            r#"select :"schema".audit_days_kept() as days_kept, pg_catalog.clock_timestamp()"#;
        let row = self.ask_simply(conn, ask).await?;
        let days: Option<i32> = get(&row, "days_kept")?;
        Ok(days.map(i32::unsigned_abs))
    }

    /// The audit trail of one key: its last `limit` lines (1 to 10,000), oldest first. None if the trail is off.
    ///
    /// Only reads. Needs the right to read `audit`.
    ///
    /// ```no_run
    /// # use pgonce::{Key, PgOnce, Scope};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let (scope, key) = (Scope::new("acme/payments.create")?, Key::new("order-17")?);
    /// for line in once.audit(&mut *pool.acquire().await?, &scope, &key, 100).await? {
    ///     println!("{} {} by {}", line.at, line.action, line.actor.unwrap_or(line.role));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a limit outside its range, or what the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn audit(
        &self,
        conn: &mut PgConnection,
        scope: &Scope,
        key: &Key,
        limit: u32,
    ) -> Result<Vec<AuditLine>> {
        let rows = sqlx::query(self.statements.audit.clone())
            .bind(scope.as_str())
            .bind(key.as_str())
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        rows.iter().map(line).collect()
    }

    /// Adds a line to the audit trail of a key, for what changes no row, such as looking at a stored response. Does nothing
    /// if the trail is off. To be called in a transaction, with whose commit the line appears. `action`: 1 to 40
    /// lower-case letters and spaces, and none of the trail's own [words](AuditLine::action).
    ///
    /// ```no_run
    /// # use pgonce::{Key, PgOnce, Scope};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let (scope, key) = (Scope::new("acme/payments.create")?, Key::new("order-17")?);
    /// let mut tx = pool.begin().await?;
    /// sqlx::query("select set_config('pgonce.actor', $1, true)").bind("ann").execute(&mut *tx).await?;
    /// once.audit_note(&mut tx, "response viewed", &scope, &key).await?;
    /// pgonce::commit(tx).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for another action, or what the database answers. Roll back.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the line may or may not be in the transaction: roll it back.
    pub async fn audit_note(
        &self,
        conn: &mut PgConnection,
        action: &str,
        scope: &Scope,
        key: &Key,
    ) -> Result<()> {
        sqlx::query(self.statements.audit_note.clone())
            .bind(action)
            .bind(scope.as_str())
            .bind(key.as_str())
            .execute(conn)
            .await
            .map(drop)
            .map_err(database)
    }
}

fn line(row: &PgRow) -> Result<AuditLine> {
    Ok(AuditLine {
        at: time(row, "at")?,
        action: get(row, "action")?,
        attempt: get::<i32>(row, "attempt")?.unsigned_abs(),
        role: get(row, "role")?,
        actor: get(row, "actor")?,
        seen: get(row, "seen")?,
        txid: get(row, "txid")?,
    })
}
