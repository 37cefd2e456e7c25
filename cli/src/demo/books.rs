//! The demo's schema, and the count after the storm. The count reads the database, not what clients report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgonce::sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use pgonce::sqlx::{self, AssertSqlSafe, PgPool, Row, SqlSafeStr, SqlStr};
use pgonce::{PgOnce, SchemaName};

use super::plan::Payment;
use crate::exit::CliError;
use crate::session::connect;

pub(super) struct Books {
    schema: String,
    options: PgConnectOptions,
    pub(super) server_version: String,
}

/// What the tables contain after a storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) requested: u64,
    pub(super) charged: u64,
    pub(super) doubles: u64,
    /// The sum of the extra charges, in hundredths.
    pub(super) taken_twice: u64,
    pub(super) lost: u64,
}

/// Enough for a storm with double clicks, few enough for the smallest hosted database.
pub(super) const CONNECTIONS_MAX: u32 = 16;
const ACQUIRE_MAX: Duration = Duration::from_secs(15);
const QUIET_MAX: Duration = Duration::from_secs(15);

const TABLES: &str = "
create table :schema.request (key text primary key, account text not null, amount bigint not null);
create table :schema.payment (
  id bigint generated always as identity primary key,
  key text not null, account text not null, amount bigint not null);
create index on :schema.payment (key)";

const REQUESTS: &str = "insert into :schema.request (key, account, amount)
select * from unnest($1::text[], $2::text[], $3::bigint[])";

/// A payment is lost if it has no row, or if a client got the number of a payment that has no row.
const COUNT: &str = "
with answer as (select * from unnest($1::text[], $2::bigint[]) as a (key, id)),
     per_request as (
  select r.key, r.amount,
         (select count(*) from :schema.payment p where p.key = r.key) as charges,
         exists (select from answer a where a.key = r.key and not exists (
           select from :schema.payment p where p.key = a.key and p.id = a.id)) as misled
    from :schema.request r)
select count(*) as requested,
       coalesce(sum(charges), 0)::bigint as charged,
       coalesce(sum(greatest(charges - 1, 0)), 0)::bigint as doubles,
       coalesce(sum(greatest(charges - 1, 0) * amount), 0)::bigint as taken_twice,
       count(*) filter (where charges = 0 or misled) as lost
  from per_request";

/// Counts the demo's sessions that are still busy: a COMMIT under way continues after its client hangs up.
const BUSY: &str = "select count(*) from pg_stat_activity
 where application_name = $1 and pid <> pg_backend_pid() and state is distinct from 'idle'";

impl Books {
    pub(super) async fn open(options: PgConnectOptions) -> Result<Self, CliError> {
        let schema = format!("pgonce_demo_{:08x}", fastrand::u32(..));
        let options = options.application_name(&schema);
        let mut conn = connect(&options).await?;
        // Distributions append their own name after a space.
        let server_version =
            sqlx::query_scalar("select split_part(current_setting('server_version'), ' ', 1)")
                .fetch_one(&mut conn)
                .await?;
        Ok(Self { schema, options, server_version })
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Creates the schema with pgonce's tables.
    pub(super) async fn migrate(&self) -> Result<PgOnce, CliError> {
        let once = PgOnce::new().schema(SchemaName::new(self.schema.as_str())?);
        once.migrate(&mut connect(&self.options).await?).await?;
        Ok(once)
    }

    /// Creates the schema with pgonce's tables and those of the storm.
    pub(super) async fn prepare(&self, payments: &[Payment]) -> Result<PgOnce, CliError> {
        let once = self.migrate().await?;
        let mut conn = connect(&self.options).await?;
        sqlx::raw_sql(self.sql(TABLES)).execute(&mut conn).await?;
        sqlx::query(self.sql(REQUESTS))
            .bind(payments.iter().map(|payment| payment.key.as_str()).collect::<Vec<_>>())
            .bind(payments.iter().map(|payment| payment.account.as_str()).collect::<Vec<_>>())
            .bind(payments.iter().map(|payment| payment.amount).collect::<Vec<_>>())
            .execute(&mut conn)
            .await?;
        Ok(once)
    }

    pub(super) async fn empty(&self) -> Result<(), CliError> {
        let mut conn = connect(&self.options).await?;
        sqlx::raw_sql(self.sql("truncate :schema.payment")).execute(&mut conn).await?;
        Ok(())
    }

    pub(super) fn pool(&self, clients: u32) -> PgPool {
        pool(&self.options, &self.schema, 2 * clients)
    }

    /// Counts when all sessions are idle.
    pub(super) async fn count(&self, answers: &[(String, i64)]) -> Result<Count, CliError> {
        let mut conn = connect(&self.options).await?;
        let deadline = Instant::now() + QUIET_MAX;
        loop {
            let busy: i64 =
                sqlx::query_scalar(BUSY).bind(&self.schema).fetch_one(&mut conn).await?;
            if busy == 0 {
                break;
            }
            if Instant::now() > deadline {
                let reason = format!(
                    "{busy} sessions of the demo are still busy after all clients have finished"
                );
                return Err(CliError::failed("demo", reason));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let row = sqlx::query(self.sql(COUNT))
            .bind(answers.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>())
            .bind(answers.iter().map(|(_, id)| *id).collect::<Vec<_>>())
            .fetch_one(&mut conn)
            .await?;
        Ok(counted(&row)?)
    }

    pub(super) async fn discard(&self) -> Result<(), CliError> {
        let by_hand = |error: CliError| error.but(&format!("drop schema {} cascade", self.schema));
        let mut conn = connect(&self.options).await.map_err(by_hand)?;
        let drop = self.sql("set lock_timeout = '10s'; drop schema if exists :schema cascade");
        match sqlx::raw_sql(drop).execute(&mut conn).await {
            Ok(_) => Ok(()),
            Err(error) => Err(by_hand(error.into())),
        }
    }

    /// A statement of the demo.
    pub(super) fn sql(&self, template: &str) -> SqlStr {
        statement(&self.schema, template)
    }
}

/// A statement of the demo. The schema's name needs no escaping.
pub(super) fn statement(schema: &str, template: &str) -> SqlStr {
    let text = template.replace(":schema", schema);
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

/// Its sessions are named after the schema.
pub(super) fn pool(options: &PgConnectOptions, schema: &str, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections.min(CONNECTIONS_MAX))
        .acquire_timeout(ACQUIRE_MAX)
        .connect_lazy_with(options.clone().application_name(schema))
}

fn counted(row: &PgRow) -> Result<Count, sqlx::Error> {
    let get = |column| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
    Ok(Count {
        requested: get("requested")?,
        charged: get("charged")?,
        doubles: get("doubles")?,
        taken_twice: get("taken_twice")?,
        lost: get("lost")?,
    })
}
