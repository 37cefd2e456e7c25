//! A row is changed under a condition.

use std::fmt;

use sqlx::PgConnection;

use super::error::WriteError;
use super::statement::{Found, Statement, change_or_look};

/// What [`conditional_update`] has found. The row is as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updated<T> {
    /// This call changed the row.
    Applied(T),
    /// The row is as wanted already: an earlier call of the same change, or another one. Nothing was written.
    AlreadyThere(T),
    /// The row has another version than the caller has seen. Nothing was written.
    Conflict(T),
    /// Another condition of the statement is not met, such as enough stock. Nothing was written.
    NotMet(T),
    /// There is no such row.
    Gone,
}

/// What makes a second call of an update harmless. One of these is needed: a relative change (`qty - 1`) without a version
/// or a key happens twice.
pub struct Expected<'a, T> {
    version: Option<Predicate<'a, T>>,
    state: Option<Predicate<'a, T>>,
}

type Predicate<'a, T> = Box<dyn Fn(&T) -> bool + Send + 'a>;

impl<'a, T> Expected<'a, T> {
    /// The statement changes only a row with the version that the caller has seen, and gives it another one. `is_seen`
    /// says whether a row still has it.
    #[must_use]
    pub fn version(is_seen: impl Fn(&T) -> bool + Send + 'a) -> Self {
        Self { version: Some(Box::new(is_seen)), state: None }
    }

    /// The statement sets values that do not depend on the old ones. `is_wanted` says whether a row has them.
    #[must_use]
    pub fn state(is_wanted: impl Fn(&T) -> bool + Send + 'a) -> Self {
        Self { version: None, state: Some(Box::new(is_wanted)) }
    }

    /// The statement is part of the work of a key ([`run`](crate::PgOnce::run), a transactional route, a message), which
    /// commits once.
    #[must_use]
    pub fn key() -> Self {
        Self { version: None, state: None }
    }

    /// Also tells a row that is as wanted already, whatever its version: a retry of a call whose answer was lost.
    #[must_use]
    pub fn or_state(self, is_wanted: impl Fn(&T) -> bool + Send + 'a) -> Self {
        Self { state: Some(Box::new(is_wanted)), ..self }
    }

    fn judge(&self, row: T) -> Updated<T> {
        if self.state.as_ref().is_some_and(|is_wanted| is_wanted(&row)) {
            Updated::AlreadyThere(row)
        } else if self.version.as_ref().is_some_and(|is_seen| !is_seen(&row)) {
            Updated::Conflict(row)
        } else {
            Updated::NotMet(row)
        }
    }
}

impl<T> fmt::Debug for Expected<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, state) = (self.version.is_some(), self.state.is_some());
        f.debug_struct("Expected").field("version", &version).field("state", &state).finish()
    }
}

/// Changes one row if its condition is met, and says what is the matter if it is not.
///
/// `update` changes one row and returns it (`update .. where id = $1 and .. returning ..`). `current` reads that row by
/// its id alone. The update takes the row's lock, and waits for another transaction that has it. If the update changed
/// nothing, the row is read as it is then, without a lock; at REPEATABLE READ and SERIALIZABLE, as it was at the snapshot.
///
/// ```no_run
/// use pgonce::writes::{Expected, Updated, conditional_update};
/// # #[derive(sqlx::FromRow)] struct Article { title: String, version: i32 }
/// # async fn example(tx: &mut sqlx::PgConnection, id: i64, seen: i32, title: &str) -> Result<(), Box<dyn std::error::Error>> {
/// let update = sqlx::query_as::<_, Article>(
///     "update article set title = $3, version = version + 1 where id = $1 and version = $2 returning *",
/// );
/// let outcome = conditional_update(
///     tx,
///     update.bind(id).bind(seen).bind(title),
///     sqlx::query_as("select * from article where id = $1").bind(id),
///     Expected::version(|now: &Article| now.version == seen).or_state(|now| now.title == title),
/// )
/// .await?;
/// match outcome {
///     Updated::Applied(now) | Updated::AlreadyThere(now) => println!("version {}", now.version),
///     // Not met, although it has no other condition: a trigger or a policy kept the row as it was.
///     Updated::Conflict(now) | Updated::NotMet(now) => println!("it is {}", now.title),
///     Updated::Gone => println!("it was deleted"),
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`WriteError::Taken`] if a unique constraint refuses the new values; [`WriteError::Statement`] if a statement returns
/// several rows; a serialization failure (40001) at REPEATABLE READ and SERIALIZABLE, if the row that it would
/// change was changed after the snapshot.
///
/// # Cancel safety
/// Dropped half way, the change may or may not be in the transaction: roll it back.
pub async fn conditional_update<T>(
    conn: &mut PgConnection,
    update: impl Statement<T>,
    current: impl Statement<T>,
    expected: Expected<'_, T>,
) -> Result<Updated<T>, WriteError> {
    Ok(match change_or_look(conn, update, || current).await? {
        Found::Changed(row) => Updated::Applied(row),
        Found::Unchanged(row) => expected.judge(row),
        Found::Nothing => Updated::Gone,
    })
}
