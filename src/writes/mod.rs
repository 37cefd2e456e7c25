//! Writes that need no key: your own statement, and what came of it.
//!
//! [`upsert_once`] for a natural key, [`conditional_update`] for a version or a wanted state, [`soft_delete`] and
//! [`restore`] for rows that stay. Each takes closures that make a `sqlx` query (`query_as`, `query_scalar`, a macro, or
//! `map`), because it may send it again. They run on your connection, in your transaction if there is one, at any
//! isolation level. [Which one do I need?](crate::_docs::patterns)

mod delete;
mod error;
mod once;
mod statement;
mod update;

pub use delete::{Restored, SoftDeleted, restore, soft_delete};
pub use error::WriteError;
pub use once::{Upserted, upsert_once};
pub use statement::Statement;
pub use update::{Expected, Updated, conditional_update};
