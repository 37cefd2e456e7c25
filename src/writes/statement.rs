//! The caller's statements.

use sqlx::postgres::PgRow;
use sqlx::query::{Map, QueryAs, QueryScalar};
use sqlx::{FromRow, IntoArguments, PgConnection, Postgres};

use super::error::WriteError;
use crate::error::sqlstate_in;

/// A query that returns rows of type `T`: `query_as`, `query_scalar`, what `map` makes of a query, and what the macros
/// of these names return.
pub trait Statement<T>: Send {
    #[doc(hidden)]
    fn rows(self, conn: &mut PgConnection) -> impl Future<Output = sqlx::Result<Vec<T>>> + Send;
}

impl<'q, T, A> Statement<T> for QueryAs<'q, Postgres, T, A>
where
    T: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    A: IntoArguments<Postgres> + Send + 'q,
{
    async fn rows(self, conn: &mut PgConnection) -> sqlx::Result<Vec<T>> {
        self.fetch_all(conn).await
    }
}

impl<'q, T, A> Statement<T> for QueryScalar<'q, Postgres, T, A>
where
    T: Send + Unpin,
    (T,): Send + Unpin + for<'r> FromRow<'r, PgRow>,
    A: IntoArguments<Postgres> + Send + 'q,
{
    async fn rows(self, conn: &mut PgConnection) -> sqlx::Result<Vec<T>> {
        self.fetch_all(conn).await
    }
}

impl<'q, T, F, A> Statement<T> for Map<'q, Postgres, F, A>
where
    T: Send + Unpin,
    F: FnMut(PgRow) -> sqlx::Result<T> + Send,
    A: IntoArguments<Postgres> + Send + 'q,
{
    async fn rows(self, conn: &mut PgConnection) -> sqlx::Result<Vec<T>> {
        self.fetch_all(conn).await
    }
}

/// What a change and a look at the row after it have found.
pub(super) enum Found<T> {
    /// The change returned the row.
    Changed(T),
    /// The change returned none, and the look this one.
    Unchanged(T),
    /// Neither returned a row.
    Nothing,
}

/// Sends `change`; if it returns no row, sends `look`. Each is a statement of its own: at READ COMMITTED only a later
/// statement sees the row that stood in the way.
pub(super) async fn change_or_look<T, C, L>(
    conn: &mut PgConnection,
    change: C,
    look: impl FnOnce() -> L,
) -> Result<Found<T>, WriteError>
where
    C: Statement<T>,
    L: Statement<T>,
{
    if let Some(row) = one_row(change, conn).await? {
        return Ok(Found::Changed(row));
    }
    Ok(match one_row(look(), conn).await? {
        Some(row) => Found::Unchanged(row),
        None => Found::Nothing,
    })
}

pub(super) async fn one_row<T>(
    statement: impl Statement<T>,
    conn: &mut PgConnection,
) -> Result<Option<T>, WriteError> {
    let mut rows = statement.rows(conn).await.map_err(WriteError::of)?;
    match rows.len() {
        0 | 1 => Ok(rows.pop()),
        count => Err(WriteError::Statement(format!(
            "a statement returned {count} rows; it must name one row"
        ))),
    }
}

/// Sends a command about a savepoint.
pub(super) async fn send(command: &'static str, conn: &mut PgConnection) -> Result<(), WriteError> {
    match sqlx::raw_sql(command).execute(conn).await {
        Ok(_) => Ok(()),
        Err(error) if sqlstate_in(&error) == Some("25P01") => Err(WriteError::Statement(
            "upsert_once needs a transaction, and none is open".to_owned(),
        )),
        Err(error) => Err(WriteError::Database(error)),
    }
}
