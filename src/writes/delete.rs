//! A row is marked as deleted, and stays.

use sqlx::PgConnection;

use super::error::WriteError;
use super::statement::{Found, Statement, change_or_look};

/// What [`soft_delete`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftDeleted<T> {
    /// This call deleted the row.
    Deleted(T),
    /// It was deleted before. Nothing was written: who deleted it, and when, stay as they were.
    AlreadyDeleted(T),
    /// There is no such row.
    Gone,
}

/// What [`restore`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored<T> {
    /// This call restored the row.
    Restored(T),
    /// It is not deleted. Nothing was written.
    NotDeleted(T),
    /// There is no such row.
    Gone,
}

/// The row may be restored between the update and the look, or deleted again; so both are tried again.
const TRIES: u32 = 3;

/// Marks a row as deleted. The first call and every later one succeed.
///
/// `delete` is `update .. set deleted_at = now() .. where id = $1 and deleted_at is null returning ..`; `current` reads
/// the row by its id, deleted or not; `is_deleted` says which.
///
/// Whether another row may then have its unique values is up to the table: a partial index
/// (`create unique index on customer (email) where deleted_at is null`) sets them free, a unique constraint does not.
///
/// ```no_run
/// use pgonce::writes::{SoftDeleted, soft_delete};
/// # #[derive(sqlx::FromRow)] struct Customer { deleted_at: Option<String> }
/// # async fn example(tx: &mut sqlx::PgConnection, id: i64) -> Result<(), Box<dyn std::error::Error>> {
/// let deleted = soft_delete(
///     tx,
///     || {
///         sqlx::query_as::<_, Customer>(
///             "update customer set deleted_at = now() where id = $1 and deleted_at is null returning *",
///         )
///         .bind(id)
///     },
///     || sqlx::query_as("select * from customer where id = $1").bind(id),
///     |customer| customer.deleted_at.is_some(),
/// )
/// .await?;
/// if let SoftDeleted::Gone = deleted {
///     println!("no such customer");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`WriteError::Statement`] if the row is not deleted and the statement does not delete it, three times; the database's
/// errors, among them a serialization failure (40001) at REPEATABLE READ and SERIALIZABLE, if the row was changed after
/// the transaction's snapshot.
///
/// # Cancel safety
/// Dropped half way, the change may or may not be in the transaction: roll it back.
pub async fn soft_delete<T, D, C>(
    conn: &mut PgConnection,
    delete: impl Fn() -> D,
    current: impl Fn() -> C,
    is_deleted: impl Fn(&T) -> bool,
) -> Result<SoftDeleted<T>, WriteError>
where
    D: Statement<T>,
    C: Statement<T>,
{
    Ok(match settle(conn, delete, current, is_deleted).await? {
        Found::Changed(row) => SoftDeleted::Deleted(row),
        Found::Unchanged(row) => SoftDeleted::AlreadyDeleted(row),
        Found::Nothing => SoftDeleted::Gone,
    })
}

/// Takes the mark of [`soft_delete`] off. The first call and every later one succeed.
///
/// `restore` is `update .. set deleted_at = null where id = $1 and deleted_at is not null returning ..`; the rest as for
/// `soft_delete`.
///
/// ```no_run
/// use pgonce::writes::{Restored, WriteError, restore};
/// # #[derive(sqlx::FromRow)] struct Customer { deleted_at: Option<String> }
/// # async fn example(tx: &mut sqlx::PgConnection, id: i64) -> Result<(), Box<dyn std::error::Error>> {
/// let restored = restore(
///     tx,
///     || {
///         sqlx::query_as::<_, Customer>(
///             "update customer set deleted_at = null where id = $1 and deleted_at is not null returning *",
///         )
///         .bind(id)
///     },
///     || sqlx::query_as("select * from customer where id = $1").bind(id),
///     |customer| customer.deleted_at.is_some(),
/// )
/// .await;
/// if let Err(WriteError::Taken { constraint, .. }) = restored {
///     println!("another row has its values by now: {constraint}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`WriteError::Taken`] if another row has its unique values by now; others as for [`soft_delete`].
///
/// # Cancel safety
/// Dropped half way, the change may or may not be in the transaction: roll it back.
pub async fn restore<T, R, C>(
    conn: &mut PgConnection,
    restore: impl Fn() -> R,
    current: impl Fn() -> C,
    is_deleted: impl Fn(&T) -> bool,
) -> Result<Restored<T>, WriteError>
where
    R: Statement<T>,
    C: Statement<T>,
{
    Ok(match settle(conn, restore, current, |row| !is_deleted(row)).await? {
        Found::Changed(row) => Restored::Restored(row),
        Found::Unchanged(row) => Restored::NotDeleted(row),
        Found::Nothing => Restored::Gone,
    })
}

/// Changes a row to a state, unless it has it.
async fn settle<T, U, C>(
    conn: &mut PgConnection,
    change: impl Fn() -> U,
    current: impl Fn() -> C,
    is_there: impl Fn(&T) -> bool,
) -> Result<Found<T>, WriteError>
where
    U: Statement<T>,
    C: Statement<T>,
{
    for _ in 0..TRIES {
        match change_or_look(conn, change(), &current).await? {
            Found::Unchanged(row) if !is_there(&row) => {}
            found => return Ok(found),
        }
    }
    Err(WriteError::Statement(
        "the statement changes no row, and the row is not in the state that it sets: does it have another condition?"
            .to_owned(),
    ))
}
