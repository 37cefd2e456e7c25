//! What many services use for want of something better: a lock on the key, outside the transaction. It is taken first, the
//! payment commits, and the answer replaces the lock last. A process that dies in between leaves a lock that tells
//! nobody whether the payment was made. If the lock expires, a retry charges again. If it never does, the payment is
//! never made.

use std::collections::HashMap;
use std::time::Duration;

use pgonce::sqlx::{self, PgPool, SqlStr};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::demo::books::statement;
use crate::exit::CliError;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
pub(super) enum Lock {
    Redis { redis: MultiplexedConnection, prefix: String },
    Row { pool: PgPool, take: SqlStr, look: SqlStr, keep: SqlStr },
}

/// What the lock knows about a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Entry {
    /// By the server with this number.
    Taken {
        by: u32,
        expires: bool,
    },
    Done {
        answer: Value,
    },
}

pub(super) enum Take {
    Taken,
    /// Another request has taken the key, or has taken it and died.
    InProgress,
    Done(Value),
}

/// Many times as long as a payment takes, so that only the locks of dead servers expire.
const EXPIRY: Duration = Duration::from_secs(2);
/// Longer than anyone plays. Until then a lock that "never" expires, and an answer, stay in a Redis that is not ours.
const FORGOTTEN: Duration = Duration::from_secs(3600);
const REDIS_MAX: Duration = Duration::from_secs(5);

pub(super) const TABLE: &str = "create table :schema.lock (key text primary key, entry text not null, expires_at timestamptz not null)";

const TAKE: &str = "
insert into :schema.lock as l (key, entry, expires_at) values ($1, $2, clock_timestamp() + $3 * interval '1 ms')
    on conflict (key) do update set entry = excluded.entry, expires_at = excluded.expires_at
 where l.expires_at <= clock_timestamp()
returning true";

const LOOK: &str = "
select key, entry from :schema.lock where key = any ($1) and expires_at > clock_timestamp()";

const KEEP: &str = "
update :schema.lock set entry = $2, expires_at = clock_timestamp() + $3 * interval '1 ms' where key = $1";

impl Lock {
    pub(super) fn row(pool: PgPool, schema: &str) -> Self {
        let [take, look, keep] = [TAKE, LOOK, KEEP].map(|template| statement(schema, template));
        Self::Row { pool, take, look, keep }
    }

    pub(super) async fn redis(url: &str, schema: &str) -> Result<Self, CliError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(REDIS_MAX))
            .set_response_timeout(Some(REDIS_MAX));
        let connecting = async {
            redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
        };
        // The reason does not quote the URL, which may contain a password.
        let connected = connecting.await.map_err(|error| {
            CliError::failed("connection", format!("cannot connect to Redis: {error}"))
        });
        Ok(Self::Redis { redis: connected?, prefix: format!("{schema}:") })
    }

    pub(super) async fn name(&self) -> Result<String, BoxError> {
        let Self::Redis { redis, .. } = self else {
            return Ok("a row that is committed first (no Redis was found)".to_owned());
        };
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis.clone()).await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        Ok(format!("a real Redis {}", version.unwrap_or_default().trim()))
    }

    /// Takes the key for the server with this number, unless it is taken or done.
    pub(super) async fn take(&self, key: &str, by: u32, expires: bool) -> Result<Take, BoxError> {
        let entry = serde_json::to_string(&Entry::Taken { by, expires })?;
        let expiry = millis(if expires { EXPIRY } else { FORGOTTEN });
        let is_taken = match self {
            Self::Redis { redis, prefix } => {
                let mut set = redis::cmd("SET");
                set.arg(format!("{prefix}{key}")).arg(entry).arg("NX").arg("PX").arg(expiry);
                set.query_async::<Option<String>>(&mut redis.clone()).await?.is_some()
            }
            Self::Row { pool, take, .. } => {
                let take = sqlx::query_scalar::<_, bool>(take.clone()).bind(key).bind(entry);
                take.bind(expiry).fetch_optional(pool).await?.is_some()
            }
        };
        if is_taken {
            return Ok(Take::Taken);
        }
        match self.look(&[key.to_owned()]).await?.remove(key) {
            Some(Entry::Done { answer }) => Ok(Take::Done(answer)),
            // `None`: it has expired just now.
            Some(Entry::Taken { .. }) | None => Ok(Take::InProgress),
        }
    }

    /// Puts the answer in the place of the lock.
    pub(super) async fn keep(&self, key: &str, answer: Value) -> Result<(), BoxError> {
        let entry = serde_json::to_string(&Entry::Done { answer })?;
        match self {
            Self::Redis { redis, prefix } => {
                let mut set = redis::cmd("SET");
                set.arg(format!("{prefix}{key}")).arg(entry).arg("PX").arg(millis(FORGOTTEN));
                set.query_async::<()>(&mut redis.clone()).await?;
            }
            Self::Row { pool, keep, .. } => {
                let keep = sqlx::query(keep.clone()).bind(key).bind(entry);
                keep.bind(millis(FORGOTTEN)).execute(pool).await?;
            }
        }
        Ok(())
    }

    /// What the lock knows about these keys. Unknown keys are left out.
    pub(super) async fn look(&self, keys: &[String]) -> Result<HashMap<String, Entry>, BoxError> {
        if keys.is_empty() {
            return Ok(HashMap::new()); // MGET without a key is an error
        }
        let found = match self {
            Self::Redis { redis, prefix } => {
                let mut get = redis::cmd("MGET");
                get.arg(keys.iter().map(|key| format!("{prefix}{key}")).collect::<Vec<_>>());
                let entries: Vec<Option<String>> = get.query_async(&mut redis.clone()).await?;
                let found = keys.iter().cloned().zip(entries);
                found.filter_map(|(key, entry)| Some((key, entry?))).collect::<Vec<_>>()
            }
            Self::Row { pool, look, .. } => {
                sqlx::query_as(look.clone()).bind(keys).fetch_all(pool).await?
            }
        };
        let parsed = found.into_iter().map(|(key, entry)| Ok((key, serde_json::from_str(&entry)?)));
        parsed.collect()
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
