//! One server for all tests of a process.

use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

use crate::{Options, Throwaway, ThrowawayError};

impl Throwaway {
    /// The server that all tests of this process share: [fast](Options::fast), started by the first call, and gone when
    /// the process ends.
    ///
    /// ```no_run
    /// use pgonce_testing::Throwaway;
    /// use sqlx::PgPool;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = Throwaway::shared().await?;
    /// let pool = PgPool::connect_with(server.new_database().await?).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`start`](Throwaway::start). The next call tries again.
    ///
    /// # Cancel safety
    /// Cancel safe: the next call starts it.
    pub async fn shared() -> Result<&'static Self, ThrowawayError> {
        static SERVER: OnceCell<Throwaway> = OnceCell::const_new();
        // Tests run at the same time, each with a pool.
        let options = Options::new().fast().setting("max_connections", "400");
        SERVER.get_or_try_init(|| Self::start(&options)).await
    }

    /// Makes a new, empty database, and says how to connect to it.
    ///
    /// # Errors
    /// What the server answers.
    ///
    /// # Cancel safety
    /// Dropped, the database may be there or not. Its name is not used again.
    pub async fn new_database(&self) -> Result<PgConnectOptions, ThrowawayError> {
        static COUNTER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let options = self.connect_options();
        let made = async {
            let mut conn = PgConnection::connect_with(&options).await?;
            let create = AssertSqlSafe(format!("create database {name}"));
            sqlx::raw_sql(create).execute(&mut conn).await?;
            conn.close().await
        };
        let made: sqlx::Result<()> = made.await;
        made.map_err(|error| ThrowawayError::new(format!("cannot make a database: {error}")))?;
        Ok(options.database(&name))
    }
}
