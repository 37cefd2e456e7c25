//! The Postgres schema that holds pgonce's objects.

use crate::error::{Error, Result};

/// The name of the Postgres schema that holds pgonce's table and functions.
///
/// Lower-case letters, digits and underscores, not starting with a digit or `pg_`, at most 63 bytes; and not `begin`,
/// because psql could not restore a plain dump of it.
/// Anything else is refused rather than quoted, so that the name means the same in Rust, in psql
/// and in a migration tool.
///
/// ```
/// assert!(pgonce::SchemaName::new("billing_once").is_ok());
/// assert!(pgonce::SchemaName::new("a\"; drop table x;--").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SchemaName(String);

/// The longest identifier Postgres keeps whole.
const SCHEMA_BYTES_MAX: usize = 63;

impl SchemaName {
    /// Checks a schema name.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the name breaks the rule above.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() || name.len() > SCHEMA_BYTES_MAX {
            return Err(Error::invalid(format!(
                "schema has {} bytes; it takes 1 to {SCHEMA_BYTES_MAX}",
                name.len()
            )));
        }
        let letters = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !letters || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Error::invalid(
                "schema takes lower-case letters, digits and underscores, and no digit in front",
            ));
        }
        if name.starts_with("pg_") {
            return Err(Error::invalid("schema must not start with pg_, which Postgres reserves"));
        }
        // In `CREATE FUNCTION begin.…` psql takes the word for the start of a body. pg_dump quotes case and end.
        if name == "begin" {
            return Err(Error::invalid(
                "schema must not be begin, which psql cannot restore from a plain dump",
            ));
        }
        Ok(Self(name))
    }

    /// The name as given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SchemaName {
    /// `pgonce`.
    fn default() -> Self {
        Self("pgonce".to_owned())
    }
}
