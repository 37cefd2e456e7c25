//! The database that an example or demo uses.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use crate::{Options, Throwaway, ThrowawayError};

/// A database: the caller's, or a [`Throwaway`] that lives as long as this value.
#[derive(Debug)]
#[must_use = "a temporary server stops when this is dropped"]
pub struct Database {
    connect_options: PgConnectOptions,
    throwaway: Option<Throwaway>,
}

impl Database {
    /// The database in `DATABASE_URL`, or a temporary one if it is unset or empty.
    ///
    /// ```no_run
    /// use sqlx::PgPool;
    /// use pgonce_testing::{Database, Options};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let database = Database::from_env(&Options::new()).await?;
    /// let pool = PgPool::connect_with(database.connect_options()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If `DATABASE_URL` is no valid URL, or if it is not set and no server starts.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn from_env(options: &Options) -> Result<Self, ThrowawayError> {
        let url = std::env::var("DATABASE_URL").unwrap_or_default();
        if url.is_empty() {
            return Self::throwaway(options).await;
        }
        // The parser's message names the URL's parts, not their values.
        let connect_options = PgConnectOptions::from_str(&url)
            .map_err(|error| ThrowawayError::new(format!("DATABASE_URL is not valid: {error}")))?;
        Ok(Self { connect_options, throwaway: None })
    }

    /// A temporary database.
    ///
    /// # Errors
    /// As [`Throwaway::start`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn throwaway(options: &Options) -> Result<Self, ThrowawayError> {
        let throwaway = Throwaway::start(options).await?;
        Ok(Self { connect_options: throwaway.connect_options(), throwaway: Some(throwaway) })
    }

    /// Options for a connection.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        self.connect_options.clone()
    }

    /// Whether the database is temporary.
    #[must_use]
    pub fn is_throwaway(&self) -> bool {
        self.throwaway.is_some()
    }

    /// Stops a temporary server. Does nothing to the caller's database.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stop(self) {
        if let Some(throwaway) = self.throwaway {
            throwaway.stop().await;
        }
    }
}

impl From<PgConnectOptions> for Database {
    /// Uses the caller's database.
    fn from(connect_options: PgConnectOptions) -> Self {
        Self { connect_options, throwaway: None }
    }
}
