//! What was owed, what was charged, and what the keys say: read from the tables.

use std::collections::HashMap;

use pgonce::Scope;
use pgonce::sqlx::postgres::PgRow;
use pgonce::sqlx::{self, PgPool, Row, SqlStr};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::lock::{self, BoxError, Entry, Lock};
use super::{SCOPE, Service};
use crate::demo::books::Books;
use crate::exit::CliError;
use crate::session::connect;

pub(super) struct Ledger {
    pool: PgPool,
    scope: Scope,
    owe: SqlStr,
    keys: SqlStr,
    rows: SqlStr,
    sums: SqlStr,
}

/// A payment that somebody owes from now on.
#[derive(Serialize)]
pub(super) struct Owed {
    payment: i64,
    key: Option<String>,
    amount: i64,
}

#[derive(Deserialize)]
pub(super) struct Owing {
    /// One per payment; `null` for a payment that will be sent without a key.
    pub(super) keys: Vec<Option<String>>,
}

/// In hundredths. Always the same, so that everyone sees at once how many charges a sum is.
const PRICE: i64 = 1000;
/// Rows that the page shows.
const ROWS_MAX: i64 = 50;
/// Payments until somebody has to start over: every look at the books reads all of them.
pub(super) const PAYMENTS_MAX: usize = 2000;
const CONNECTIONS: u32 = 4;

const TABLES: &str = "
create table :schema.payment (
  id bigint generated always as identity primary key,
  run integer not null, key text, amount bigint not null);
create index on :schema.payment (run);
create table :schema.charge (
  id bigint generated always as identity primary key,
  service text not null, payment bigint not null, amount bigint not null);
create index on :schema.charge (payment);
";

const OWE: &str = "
insert into :schema.payment (run, key, amount)
select $1, key, $3 from unnest($2::text[]) with ordinality as k (key, n) order by n
returning id, key";

const KEYS: &str = "select key from :schema.payment where run = $1";

/// Payments with the rows of their keys and their charges: those charged again first, then the newest.
const ROWS: &str = "
select p.id, p.key, k.status, k.response_code, c.once, c.lock
  from :schema.payment p
  left join :schema.keys k on k.scope = $2 and k.key = p.key
 cross join lateral (
   select coalesce(array_agg(id order by id) filter (where service = 'once'), '{}') as once,
          coalesce(array_agg(id order by id) filter (where service = 'lock'), '{}') as lock
     from :schema.charge where payment = p.id) c
 where p.run = $1
 order by greatest(cardinality(c.once), cardinality(c.lock)) > 1 desc, p.id desc
 limit $3";

/// A service's sums. A payment is lost if it has no charge, and the key lets nobody make one: it is completed, or ($4)
/// its lock says that it is done or is held by a dead server for ever.
const SUMS: &str = "
select count(*) as payments,
       coalesce(sum(amount), 0)::bigint as owed,
       coalesce(sum(charges), 0)::bigint as charges,
       coalesce(sum(charges * amount), 0)::bigint as charged,
       coalesce(sum(greatest(charges - 1, 0)), 0)::bigint as doubled,
       count(*) filter (where charges = 0 and lost) as lost,
       count(*) filter (where charges = 0 and not lost) as unpaid
  from (select p.amount,
               (select count(*) from :schema.charge c where c.payment = p.id and c.service = $2) as charges,
               coalesce(case $2
                 when 'once' then exists (select from :schema.keys k
                                           where k.scope = $3 and k.key = p.key and k.status = 'completed')
                 else p.key = any ($4) end, false) as lost
          from :schema.payment p
         where p.run = $1) as each_payment";

impl Ledger {
    pub(super) async fn open(books: &Books) -> Result<Self, CliError> {
        let mut conn = connect(books.options()).await?;
        for tables in [TABLES, lock::TABLE] {
            sqlx::raw_sql(books.sql(tables)).execute(&mut conn).await?;
        }
        let [owe, keys, rows, sums] = [OWE, KEYS, ROWS, SUMS].map(|template| books.sql(template));
        let pool = books.pool(CONNECTIONS);
        Ok(Self { pool, scope: Scope::of(SCOPE), owe, keys, rows, sums })
    }

    pub(super) fn pool(&self) -> PgPool {
        self.pool.clone()
    }

    /// Writes down new payments. `None`: there are too many.
    pub(super) async fn owe(&self, run: i32, owing: &Owing) -> Result<Option<Vec<Owed>>, BoxError> {
        let known = sqlx::query(self.keys.clone()).bind(run).fetch_all(&self.pool).await?.len();
        if known + owing.keys.len() > PAYMENTS_MAX {
            return Ok(None);
        }
        let owe = sqlx::query(self.owe.clone()).bind(run).bind(&owing.keys).bind(PRICE);
        let rows = owe.fetch_all(&self.pool).await?;
        let owed = rows.iter().map(|row| {
            Ok(Owed { payment: row.try_get("id")?, key: row.try_get("key")?, amount: PRICE })
        });
        owed.collect::<Result<_, sqlx::Error>>().map_err(Into::into).map(Some)
    }

    /// The books of both services and the payments to show, as JSON. Servers up to number `dead` are dead.
    pub(super) async fn look(&self, run: i32, lock: &Lock, dead: u32) -> Result<Value, BoxError> {
        let keys = sqlx::query_scalar::<_, Option<String>>(self.keys.clone()).bind(run);
        let keys = keys.fetch_all(&self.pool).await?;
        let keys = keys.into_iter().flatten().collect::<Vec<_>>();
        // The locks first: a charge is committed before its lock says so, so the tables know all charges of these locks.
        let locks = lock.look(&keys).await?;
        let stuck = locks.iter().filter(|(_, entry)| is_stuck(entry, dead));
        let stuck = stuck.map(|(key, _)| key.as_str()).collect::<Vec<_>>();
        let rows =
            sqlx::query(self.rows.clone()).bind(run).bind(self.scope.as_str()).bind(ROWS_MAX);
        let rows = rows.fetch_all(&self.pool).await?;
        let rows = rows.iter().map(|row| payment(row, &locks, dead));
        Ok(json!({
            "once": self.sums(run, Service::Once, &stuck).await?,
            "lock": self.sums(run, Service::Lock, &stuck).await?,
            "payments": rows.collect::<Result<Vec<_>, _>>()?,
        }))
    }

    async fn sums(&self, run: i32, service: Service, stuck: &[&str]) -> Result<Value, sqlx::Error> {
        let sums = sqlx::query(self.sums.clone()).bind(run).bind(service.name());
        let row = sums.bind(self.scope.as_str()).bind(stuck).fetch_one(&self.pool).await?;
        let get = |column| row.try_get::<i64, _>(column);
        Ok(json!({
            "payments": get("payments")?,
            "owed": get("owed")?,
            "charges": get("charges")?,
            "charged": get("charged")?,
            "doubled": get("doubled")?,
            "lost": get("lost")?,
            "unpaid": get("unpaid")?,
        }))
    }
}

/// Whether the lock lets nobody make the payment any more.
fn is_stuck(entry: &Entry, dead: u32) -> bool {
    match entry {
        Entry::Done { .. } => true,
        Entry::Taken { by, expires } => *by <= dead && !expires,
    }
}

fn payment(row: &PgRow, locks: &HashMap<String, Entry>, dead: u32) -> Result<Value, sqlx::Error> {
    let key = row.try_get::<Option<String>, _>("key")?;
    let lock = match key.as_ref().and_then(|key| locks.get(key)) {
        None => None,
        Some(Entry::Done { .. }) => Some("done"),
        Some(Entry::Taken { by, .. }) if *by <= dead => Some("taken by a dead server"),
        Some(Entry::Taken { .. }) => Some("taken"),
    };
    Ok(json!({
        "payment": row.try_get::<i64, _>("id")?,
        "amount": PRICE,
        "once": {
            "status": row.try_get::<Option<&str>, _>("status")?,
            "code": row.try_get::<Option<i32>, _>("response_code")?,
            "receipts": row.try_get::<Vec<i64>, _>("once")?,
        },
        "lock": { "status": lock, "receipts": row.try_get::<Vec<i64>, _>("lock")? },
        "key": key,
    }))
}
