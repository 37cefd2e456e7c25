//! Search among the keys of a scope.

use sqlx::PgConnection;

use crate::client::{PgOnce, get};
use crate::error::{Result, database};
use crate::operation::key::Scope;
use crate::protocol::record::{Listed, Status, listed};

/// What [`PgOnce::search`] looks for.
#[derive(Clone)]
pub struct Search {
    /// Keys of this scope.
    pub scope: Scope,
    /// Only keys that begin with this.
    pub prefix: Option<String>,
    /// Only keys after this one: [`Found::next`] of the search before.
    pub after: Option<String>,
    /// Only keys with this status.
    pub status: Option<Status>,
}

// By hand: a prefix and a key are a caller's.
impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("status", &self.status).finish_non_exhaustive()
    }
}

/// What [`PgOnce::search`] finds.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The keys, in order.
    pub keys: Vec<Listed>,
    /// Where to search on, if there may be more.
    pub next: Option<String>,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Found")
            .field("keys", &self.keys)
            .field("has_next", &self.next.is_some())
            .finish()
    }
}

impl PgOnce {
    /// Lists the keys of a scope in order, up to `limit` (1 to 1000). Reads at most 10,000 keys through the primary key,
    /// and says where to search on: a search for a rare status can find nothing and not be at its end. Locks nothing.
    ///
    /// ```no_run
    /// # use pgonce::{PgOnce, Scope, Search};
    /// # async fn example(pool: sqlx::PgPool, once: PgOnce) -> Result<(), Box<dyn std::error::Error>> {
    /// let scope = Scope::new("acme/payments.create")?;
    /// let search = Search { scope, prefix: Some("order-".into()), after: None, status: None };
    /// let found = once.search(&mut *pool.acquire().await?, &search, 100).await?;
    /// println!("{} keys, more: {}", found.keys.len(), found.next.is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a limit outside its range, or what the database answers.
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn search(
        &self,
        conn: &mut PgConnection,
        search: &Search,
        limit: u32,
    ) -> Result<Found> {
        let rows = sqlx::query(self.statements.search_keys.clone())
            .bind(search.scope.as_str())
            .bind(search.prefix.as_deref())
            .bind(search.after.as_deref())
            .bind(search.status.map(Status::as_str))
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(conn)
            .await
            .map_err(database)?;
        let mut found = Found::default();
        for row in &rows {
            match get::<Option<&str>>(row, "status")? {
                Some(_) => found.keys.push(listed(row)?),
                None => found.next = Some(get(row, "key")?),
            }
        }
        Ok(found)
    }
}
