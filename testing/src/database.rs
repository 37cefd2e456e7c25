//! The database an example or demo should use.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use crate::{Options, Throwaway, ThrowawayError};

/// A database to use: the caller's own, or a [`Throwaway`] that lives as long as this value.
#[derive(Debug)]
#[must_use = "a throw-away server stops when this is dropped"]
pub struct Database {
    connect_options: PgConnectOptions,
    throwaway: Option<Throwaway>,
}

impl Database {
    /// The database that `DATABASE_URL` names, or else a throw-away one.
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
    /// When `DATABASE_URL` is not a database's URL, or it is not set and no server can be started.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn from_env(options: &Options) -> Result<Self, ThrowawayError> {
        let url = std::env::var("DATABASE_URL").unwrap_or_default();
        if url.is_empty() {
            return Self::throwaway(options).await;
        }
        // The parser's message names parts of the URL by what they are, not by what is in them.
        let connect_options = PgConnectOptions::from_str(&url).map_err(|error| {
            ThrowawayError::new(format!("DATABASE_URL is not a database's URL: {error}"))
        })?;
        Ok(Self { connect_options, throwaway: None })
    }

    /// A throw-away database.
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

    /// How to connect.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        self.connect_options.clone()
    }

    /// Whether it is a throw-away one.
    #[must_use]
    pub fn is_throwaway(&self) -> bool {
        self.throwaway.is_some()
    }

    /// Stops a throw-away server; leaves any other alone.
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
    /// A database of the caller's own.
    fn from(connect_options: PgConnectOptions) -> Self {
        Self { connect_options, throwaway: None }
    }
}
