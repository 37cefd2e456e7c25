//! A row with a natural key is inserted once.

use sqlx::PgConnection;

use super::error::WriteError;
use super::statement::{Statement, one_row, send};

/// What [`upsert_once`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upserted<T> {
    /// This call inserted the row.
    Created(T),
    /// The row was there before; nothing was written.
    Existing(T),
}

/// A row that stood in the way may be deleted before it is looked at; so the insert is tried again.
const TRIES: u32 = 3;

/// Inserts a row unless one with the same natural key exists, and returns the row either way.
///
/// `insert` is `insert .. on conflict (NATURAL KEY) do nothing returning ..`; name the key's columns, so that another
/// unique constraint is an error and never mistaken for the row. `existing` reads the row by the natural key. An insert that
/// meets another's open transaction waits for its end. The insert runs in a savepoint, which takes two more
/// round trips, and a transaction.
///
/// One statement that does both (`with new as (insert ..) .. union all select ..`) returns no row if another transaction
/// commits the row meanwhile; these two statements do not. `do update` would write, and could not tell *created* from
/// *existing*.
///
/// ```no_run
/// use pgonce::writes::{Upserted, upsert_once};
/// # #[derive(sqlx::FromRow)] struct Customer { id: i64 }
/// # async fn example(tx: &mut sqlx::PgConnection, email: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
/// let customer = upsert_once(
///     tx,
///     || {
///         sqlx::query_as::<_, Customer>(
///             "insert into customer (email, name) values ($1, $2) on conflict (email) do nothing returning *",
///         )
///         .bind(email)
///         .bind(name)
///     },
///     || sqlx::query_as("select * from customer where email = $1").bind(email),
/// )
/// .await?;
/// match customer {
///     Upserted::Created(customer) => println!("welcome, {}", customer.id),
///     Upserted::Existing(customer) => println!("we know you, {}", customer.id),
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`WriteError::Taken`] for another unique constraint; [`WriteError::Statement`] outside of a transaction, or if the
/// insert finds a conflict and `existing` finds no row, three times; a serialization failure (40001) at REPEATABLE READ and SERIALIZABLE, if the row
/// was inserted after the transaction's snapshot.
///
/// # Cancel safety
/// Dropped half way, the row may or may not be in the transaction: roll it back.
pub async fn upsert_once<T, I, E>(
    conn: &mut PgConnection,
    insert: impl Fn() -> I,
    existing: impl Fn() -> E,
) -> Result<Upserted<T>, WriteError>
where
    I: Statement<T>,
    E: Statement<T>,
{
    let mut taken = None;
    for _ in 0..TRIES {
        // Another insert of the same row may be on its way. PostgreSQL sees it in the natural key only after it has looked
        // there, and can meet it in another unique constraint first. So that is an error only if it stays.
        send("savepoint pgonce_upsert", conn).await?;
        match one_row(insert(), conn).await {
            Ok(inserted) => {
                send("release savepoint pgonce_upsert", conn).await?;
                if let Some(row) = inserted {
                    return Ok(Upserted::Created(row));
                }
            }
            Err(error @ WriteError::Taken { .. }) => {
                send("rollback to savepoint pgonce_upsert", conn).await?;
                taken = Some(error);
            }
            Err(error) => return Err(error),
        }
        if let Some(row) = one_row(existing(), conn).await? {
            return Ok(Upserted::Existing(row));
        }
    }
    Err(taken.unwrap_or_else(|| {
        WriteError::Statement(
            "the insert met a row that is there, and the other statement finds none: do both name the same columns, \
             and may this role read the row?"
                .to_owned(),
        )
    }))
}
