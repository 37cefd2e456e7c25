//! A lock in Redis that turns into the answer: `SET key token NX PX`, the transaction, `SET key answer`.

use std::time::{Duration, Instant};

use anyhow::Result;
use redis::aio::MultiplexedConnection;

use crate::peer::bare;
use crate::servers::{Persistence, Services};

/// Many times what a payment takes, so that only the lock of a dead process runs out.
const LOCK_MILLIS: u64 = 2000;
/// A day, as pgonce remembers keys.
const ANSWER_MILLIS: u64 = 86_400_000;
/// What tells a lock from an answer, which is JSON.
const LOCK: &str = "lock ";

const POLL_EVERY: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_secs(10);

enum Found {
    Ours,
    Locked,
    Answer(String),
}

/// One round trip, also for those who come second: `NX` and `GET` together, from Redis 7.0 on.
async fn lock(redis: &mut MultiplexedConnection, key: &str) -> Result<Found> {
    // A lock that is given back after a failure needs its token; here a failure ends the program.
    let token = format!("{LOCK}{:032x}", fastrand::u128(..));
    let mut set = redis::cmd("SET");
    set.arg(key).arg(token).arg("NX").arg("GET").arg("PX").arg(LOCK_MILLIS);
    Ok(match set.query_async::<Option<String>>(redis).await? {
        None => Found::Ours,
        Some(value) if value.starts_with(LOCK) => Found::Locked,
        Some(answer) => Found::Answer(answer),
    })
}

/// Answers at once, `None` while another one holds the lock.
pub(crate) async fn perform(
    services: &Services,
    persistence: Persistence,
    key: &str,
) -> Result<Option<String>> {
    let mut redis = services.redis(persistence);
    match lock(&mut redis, key).await? {
        Found::Locked => Ok(None),
        Found::Answer(answer) => Ok(Some(answer)),
        Found::Ours => {
            let answer = bare(&services.pool, key).await?;
            let mut set = redis::cmd("SET");
            set.arg(key).arg(&answer).arg("PX").arg(ANSWER_MILLIS);
            let () = set.query_async(&mut redis).await?;
            Ok(Some(answer))
        }
    }
}

/// Looks again and again while another one holds the lock.
pub(crate) async fn poll(
    services: &Services,
    persistence: Persistence,
    key: &str,
) -> Result<Option<String>> {
    let deadline = Instant::now() + POLL_MAX;
    loop {
        let answer = perform(services, persistence, key).await?;
        if answer.is_some() || Instant::now() > deadline {
            return Ok(answer);
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}
