//! The calls of pgonce that the programs make: the statements of `run`, and the public functions and procedures.

use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::client::{Answer, Client, Reach, Tried, text};

const DAY_MS: i64 = 86_400_000;

/// A message is dead after this many failed attempts.
pub const ATTEMPTS: i32 = 3;

/// The fingerprint of all requests, 36 bytes long.
pub const FINGERPRINT: [u8; 36] = [1; 36];

#[derive(Debug)]
pub struct Look {
    pub found: bool,
    pub answer: Option<String>,
    pub status: Option<String>,
    pub body: Option<String>,
    pub is_ours: bool,
}

#[derive(Debug)]
pub struct Begun {
    pub answer: String,
    pub token: Option<Uuid>,
    pub status: Option<String>,
    pub body: Option<String>,
}

impl Begun {
    fn read(client: &Client, row: &PgRow) -> Self {
        let answer: String = row.get("answer");
        client.note(&answer);
        let token = row.try_get("token").ok().flatten();
        Self { answer, token, status: row.get("status"), body: text(row, "response_body") }
    }

    /// The answer for a program without the claim.
    pub fn into_answer(self, client: &Client) -> Answer {
        answer(client, &self.answer, self.status, self.body)
    }
}

impl Look {
    pub fn into_answer(self, client: &Client) -> Answer {
        answer(client, &self.answer.unwrap_or_default(), self.status, self.body)
    }
}

fn answer(client: &Client, word: &str, status: Option<String>, body: Option<String>) -> Answer {
    match (word, status) {
        ("replay", Some(status)) => Answer::Replay { status, body },
        ("in_progress", _) => {
            client.refused_by_claim();
            Answer::InProgress
        }
        (other, status) => Answer::Broken(format!("answered {other:?}, status {status:?}")),
    }
}

impl Client {
    pub async fn look(&mut self, take: bool) -> Tried<Look> {
        let sql = sqlx::AssertSqlSafe(self.texts.look.clone());
        let query =
            sqlx::query(sql).bind(self.scope).bind(self.key.clone()).bind(FINGERPRINT.to_vec());
        let name = if take { "look" } else { "look without the lock" };
        let token = format!("{:016x}", fastrand::u64(..));
        let rows = self.ask(name, Reach::Shared, query.bind(take).bind(token)).await?;
        let [row] = &rows[..] else { panic!("the look returns one row") };
        let look = Look {
            found: row.get::<Option<bool>, _>("found").unwrap_or(false),
            answer: row.get("answer"),
            status: row.get("status"),
            body: text(row, "response_body"),
            is_ours: row.get::<Option<bool>, _>("has_lock").unwrap_or(false),
        };
        self.note(match (&look.answer, look.found, look.is_ours) {
            (Some(answer), ..) => answer,
            (None, true, _) => "may be overwritten",
            (None, false, true) => "no row, ours",
            (None, false, false) => "no row, not ours",
        });
        if look.answer.is_some() {
            self.answered();
        }
        Ok(look)
    }

    /// Whether exactly one row came back, equal to what was sent.
    pub async fn insert(&mut self, status: i16, optimistic: bool) -> Tried<bool> {
        let sql = sqlx::AssertSqlSafe(self.texts.insert.clone());
        let query = sqlx::query(sql)
            .bind(self.scope)
            .bind(self.key.clone())
            .bind(FINGERPRINT.to_vec())
            .bind(DAY_MS)
            .bind(status)
            .bind(200)
            .bind(None::<Vec<u8>>)
            .bind(self.body().into_bytes())
            .bind(false)
            .bind(optimistic)
            .bind(None::<i64>);
        let rows = match self.ask("INSERT", Reach::Shared, query).await {
            Err(code) if code == "IK004" || code == "55P03" => {
                self.refused(&code);
                return Err(code);
            }
            rows => rows?,
        };
        let (scope, key) = (self.scope, self.key.as_str());
        let is_equal = |row: &PgRow| row.get::<&str, _>(0) == scope && row.get::<&str, _>(1) == key;
        let is_one = rows.len() == 1 && is_equal(&rows[0]);
        self.note(if is_one { "one row" } else { "no row" });
        Ok(is_one)
    }

    /// Takes the lock that a look takes.
    pub async fn try_lock(&mut self) -> Tried<bool> {
        let lock = self.sql("select pg_try_advisory_xact_lock({}._lock_id($1, $2))");
        let query = sqlx::query(lock).bind(self.scope).bind(self.key.clone());
        let rows = self.ask("lock", Reach::Shared, query).await?;
        let is_ours: bool = rows[0].get(0);
        self.note(if is_ours { "ours" } else { "not ours" });
        Ok(is_ours)
    }

    /// Whether the wait ended before its limit: with the lock, or because the key was finished.
    pub async fn wait_for_key(&mut self) -> Tried<bool> {
        let query = sqlx::query(self.sql("select {}._wait_for_key($1, $2, 20000)"));
        let query = query.bind(self.scope).bind(self.key.clone());
        let rows = self.ask("wait for the key", Reach::Shared, query).await?;
        let has_lock: Option<bool> = rows[0].get(0);
        self.has_lock = has_lock == Some(true);
        Ok(has_lock != Some(false))
    }

    pub async fn begin_operation(&mut self, wait_ms: i64) -> Tried<Begun> {
        let sql = self.sql(
            "select answer, token, status, response_body from {}.begin_operation($1, $2, $3, $4, $5)",
        );
        let query = sqlx::query(sql).bind(self.scope).bind(self.key.clone());
        let query = query.bind(FINGERPRINT.to_vec()).bind(DAY_MS).bind(wait_ms);
        let rows = self.ask("begin_operation", Reach::Shared, query).await?;
        let begun = Begun::read(self, &rows[0]);
        if begun.answer != "started" {
            self.answered();
        }
        Ok(begun)
    }

    /// `complete` or `fail`, in the transaction.
    pub async fn finish(&mut self, verb: &'static str, token: Uuid) -> Tried<()> {
        let sql = self.sql(&format!("select {{}}.{verb}($1, $2, $3, 200, null, $4)"));
        let query = sqlx::query(sql).bind(self.scope).bind(self.key.clone()).bind(token);
        let query = query.bind(self.body().into_bytes());
        self.ask(verb, Reach::Shared, query).await.map(drop)
    }

    pub async fn release(&mut self, token: Uuid) -> Tried<()> {
        let query = sqlx::query(self.sql("select {}.release($1, $2, $3)"));
        let query = query.bind(self.scope).bind(self.key.clone()).bind(token);
        self.ask("release", Reach::Shared, query).await.map(drop)
    }

    pub async fn begin_leased(&mut self) -> Tried<Begun> {
        let query = sqlx::query(self.sql("call {}.begin_leased($1, $2, $3, 3600000, $4, $5)"));
        let query = query.bind(self.scope).bind(self.key.clone()).bind(self.token);
        let query = query.bind(FINGERPRINT.to_vec()).bind(DAY_MS);
        let rows = self.ask("begin_leased", Reach::Shared, query).await?;
        let begun = Begun::read(self, &rows[0]);
        if begun.answer == "started" {
            self.holds_a_lease(true);
        }
        Ok(begun)
    }

    pub async fn complete_leased(&mut self) -> Tried<()> {
        let query = sqlx::query(self.sql("call {}.complete_leased($1, $2, $3, 200, null, $4)"));
        let query = query.bind(self.scope).bind(self.key.clone()).bind(self.token);
        let query = query.bind(self.body().into_bytes());
        self.ask("complete_leased", Reach::Shared, query).await.map(drop)
    }

    pub async fn extend_leases(&mut self) -> Tried<String> {
        let sql =
            self.sql("call {}.extend_leases(array[$1], array[$2], array[$3], array[3600000])");
        let query = sqlx::query(sql).bind(self.scope).bind(self.key.clone()).bind(self.token);
        let rows = self.ask("extend_leases", Reach::Shared, query).await?;
        let answers: Vec<String> = rows[0].get("answers");
        self.note(&answers[0]);
        Ok(answers[0].clone())
    }

    pub async fn reap(&mut self) -> Tried<()> {
        let query = sqlx::query(self.sql("call {}.reap(1000, null)"));
        self.ask("reap", Reach::Shared, query).await.map(drop)
    }

    /// The key's `seen`, as an operator gets it.
    pub async fn seen(&mut self) -> Tried<Option<String>> {
        let query = sqlx::query(self.sql("select seen from {}.keys where scope = $1 and key = $2"));
        let query = query.bind(self.scope).bind(self.key.clone());
        let rows = self.ask("what the operator sees", Reach::Shared, query).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// `take_over_claim`, which returns a token, or `redrive_message`, which returns nothing.
    pub async fn operate(&mut self, verb: &'static str, seen: &str) -> Tried<Option<Uuid>> {
        let query = sqlx::query(self.sql(&format!("select {{}}.{verb}($1, $2, $3)")));
        let query = query.bind(self.scope).bind(self.key.clone()).bind(seen.to_owned());
        let rows = self.ask(verb, Reach::Shared, query).await?;
        Ok(rows[0].try_get(0).ok().flatten())
    }

    /// The answer to the message, and its stored row.
    pub async fn receive(&mut self, wait_ms: i64) -> Tried<Begun> {
        let sql = self
            .sql("select answer, status, response_body from {}.receive($1, array[$2], $3, $4, $5)");
        let query = sqlx::query(sql).bind(self.scope).bind(self.key.clone()).bind(DAY_MS);
        let query = query.bind(wait_ms).bind(ATTEMPTS);
        let rows = self.ask("receive", Reach::Shared, query).await?;
        let begun = Begun::read(self, &rows[0]);
        if begun.answer != "new" {
            self.answered();
        }
        Ok(begun)
    }

    pub async fn count_attempt(&mut self) -> Tried<String> {
        let query = sqlx::query(self.sql("call {}.count_attempt($1, $2, $3, 20000, $4, 'failed')"));
        let query = query.bind(self.scope).bind(self.key.clone()).bind(DAY_MS).bind(ATTEMPTS);
        let rows = self.ask("count_attempt", Reach::Shared, query).await?;
        let status: String = rows[0].get("status");
        self.note(&status);
        Ok(status)
    }
}
