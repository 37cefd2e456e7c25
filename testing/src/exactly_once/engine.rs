//! Calls until there is an answer, and counts effects.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection};

use super::call::{Answer, Attempt, Call, Outcome, Running};
use super::report::{Fault, Finding, Report, Scenario};

/// Between two tries of a caller.
const PAUSE: Duration = Duration::from_millis(5);
/// How long to wait until the service's connections are idle. A service may have one that never is.
const QUIET: Duration = Duration::from_secs(2);

/// What a caller sees, and what the database has.
pub(super) struct Engine {
    pub(super) call: Call,
    /// Not of the service's pool: its connections are cut.
    pub(super) conn: PgConnection,
    /// The query that counts effects.
    pub(super) count: String,
    pub(super) patience: Duration,
    pub(super) rng: fastrand::Rng,
    /// The answer to one call, and how long it took.
    pub(super) usual: Option<(Answer, Duration)>,
    pub(super) report: Report,
}

/// A fault, at a stage.
pub(super) type Found<T = ()> = Result<T, (Fault, String)>;

impl Engine {
    pub(super) fn start(&mut self, attempt: Attempt) -> Running {
        self.report.calls += 1;
        (self.call)(attempt)
    }

    /// Calls until answered, as a client does.
    pub(super) async fn answered(&mut self, attempt: &Attempt, stage: &str) -> Found<Answer> {
        let deadline = Instant::now() + self.patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let running = self.start(attempt.clone());
            let last = match tokio::time::timeout(left, running).await {
                Ok(Outcome::Done(answer)) => return self.as_usual(answer, stage),
                Ok(outcome @ Outcome::Refused(_)) => {
                    return Err((Fault::NoAnswer, format!("{stage}: a retry got {outcome}")));
                }
                Ok(outcome) => outcome.to_string(),
                Err(_) => "nothing".to_owned(),
            };
            if Instant::now() >= deadline {
                let patience = self.patience;
                let detail = format!("{stage}: after {patience:?} of retries, the last got {last}");
                return Err((Fault::NoAnswer, detail));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn as_usual(&self, answer: Answer, stage: &str) -> Found<Answer> {
        match &self.usual {
            Some((usual, _)) if !answer.resembles(usual) => {
                let detail = format!("{stage}: a call gets {usual}, the retry got {answer}");
                Err((Fault::OtherAnswer, detail))
            }
            _ => Ok(answer),
        }
    }

    /// Calls until answered, twice. Both answers must be the same, and like `first` if there is one.
    pub(super) async fn replayed(
        &mut self,
        attempt: &Attempt,
        first: Option<Answer>,
        stage: &str,
    ) -> Found {
        let retry = self.answered(attempt, stage).await?;
        let first = first.unwrap_or_else(|| retry.clone());
        let again = self.answered(attempt, stage).await?;
        match [retry, again].into_iter().find(|answer| *answer != first) {
            Some(other) => {
                let detail = format!("{stage}: the first answer was {first}, a retry got {other}");
                Err((Fault::OtherAnswer, detail))
            }
            None => Ok(()),
        }
    }

    /// How many effects there are once the service is idle.
    pub(super) async fn effects(&mut self) -> Found<i64> {
        let deadline = Instant::now() + QUIET;
        let busy = "select count(*) from pg_catalog.pg_stat_activity
                     where datname = current_database() and backend_type = 'client backend'
                       and pid <> pg_backend_pid() and state <> 'idle'";
        while Instant::now() < deadline {
            let busy: i64 =
                sqlx::query_scalar(busy).fetch_one(&mut self.conn).await.map_err(unusable)?;
            if busy == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let count = sqlx::query_scalar(AssertSqlSafe(self.count.as_str()));
        count.fetch_one(&mut self.conn).await.map_err(unusable)
    }

    /// Compares the effects since `before`.
    pub(super) async fn expect(&mut self, before: i64, expected: i64, stage: &str) -> Found {
        let seen = self.effects().await? - before;
        let fault = match seen.cmp(&expected) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => Fault::Doubled,
            std::cmp::Ordering::Less => Fault::Lost,
        };
        Err((fault, format!("{stage}: expected effects: {expected}, counted: {seen}")))
    }

    /// Cuts all connections to this database but the one used here, and waits until they are gone.
    pub(super) async fn cut_connections(&mut self) -> Found {
        let cut = "select pid, pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
                    where datname = current_database() and backend_type = 'client backend'
                      and pid <> pg_backend_pid()";
        let cut: Vec<i32> =
            sqlx::query_scalar(cut).fetch_all(&mut self.conn).await.map_err(unusable)?;
        let left = "select exists (select from pg_catalog.pg_stat_activity where pid = any($1))";
        let deadline = Instant::now() + self.patience;
        while Instant::now() < deadline {
            let left: bool = sqlx::query_scalar(left)
                .bind(&cut)
                .fetch_one(&mut self.conn)
                .await
                .map_err(unusable)?;
            if !left {
                return Ok(());
            }
        }
        Err((Fault::Unusable, "connections do not end".to_owned()))
    }

    /// Notes how a scenario ended. Returns whether it found nothing.
    pub(super) fn note(&mut self, scenario: Scenario, found: Found) -> bool {
        self.report.run.push(scenario);
        match found {
            Ok(()) => true,
            Err((fault, detail)) => {
                self.report.findings.push(Finding { scenario, fault, detail });
                false
            }
        }
    }
}

/// A new key. Not from the seed: the database may remember the keys of an earlier run.
pub(super) fn new_key() -> String {
    let random = fastrand::u128(..);
    let version_4 = random & !(0xf << 76) | (0x4 << 76);
    let uuid = version_4 & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{uuid:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unusable(error: sqlx::Error) -> (Fault, String) {
    (Fault::Unusable, format!("a query of the test failed: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_a_uuid_of_version_4() {
        let key = super::new_key();
        assert_eq!(key.len(), 36);
        assert_eq!(&key[14..15], "4");
        assert!("89ab".contains(&key[19..20]), "{key}");
    }
}
