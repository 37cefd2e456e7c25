//! `pgonce backfill`.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pgonce::sqlx::postgres::PgRow;
use pgonce::sqlx::{
    self, AssertSqlSafe, Column, Connection, Executor, PgConnection, Row, SqlSafeStr, Statement,
    TypeInfo,
};
use pgonce::{BackfillUndone, Backfilled, Key, PastOperation, Response, Scope};
use serde_json::json;
use time::OffsetDateTime;

use crate::exit::CliError;
use crate::output::{self, grouped};
use crate::session::{Global, Session, connect};

/// Mark work as done that was done before the switch, so that a late retry gets its response and nothing runs
#[derive(clap::Args)]
#[command(after_help = "\
Without --apply or --undo it only counts. Interrupted, it can be run again: keys that are known stay as they are.
--undo deletes what --apply has written with the same query and retention, unless something has touched it since.

The query runs in a read-only transaction and returns these columns:
  scope, key        what the service will ask for: a client's key, or one made from your data
  completed_at      when the work was done; the retention counts from here
  failed            boolean; optional
  fingerprint       of the request, by pgonce.fingerprint(..); optional
  response_code, response_headers, response_body
                    what a retry gets; a body is bytea, json or text; for `run`, the value as JSON; optional

Example:
  pgonce backfill --retention 30d --from-query \"
    select 'acme/payments.create' as scope, 'order-' || order_id as key, paid_at as completed_at,
           to_json(payment_id) as response_body
      from payment where paid_at > '2026-11-01'\"")]
pub(crate) struct Args {
    /// The query
    #[arg(long, value_name = "SQL")]
    from_query: String,
    /// How long a key is remembered after its work was done; as long as the service remembers its keys
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retention: Duration,
    /// Write
    #[arg(long, conflicts_with = "undo")]
    apply: bool,
    /// Delete what --apply has written
    #[arg(long)]
    undo: bool,
    /// Rows of one transaction (1 to 10,000)
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
}

/// The columns that a query may return, and how each is read.
const COLUMNS: [(&str, &str); 8] = [
    ("scope", "q.scope::text"),
    ("key", "q.key::text"),
    ("completed_at", "(extract(epoch from q.completed_at::timestamptz) * 1000000)::bigint"),
    ("failed", "q.failed::boolean"),
    ("fingerprint", "q.fingerprint::bytea"),
    ("response_code", "q.response_code::integer"),
    ("response_headers", "q.response_headers::bytea"),
    ("response_body", "convert_to(q.response_body::text, 'UTF8')"),
];
const NEEDED: usize = 3;
/// How often a batch is tried that meets a key that another transaction has.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Totals {
    written: Backfilled,
    undone: BackfillUndone,
}

pub(crate) async fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let mut session = global.session().await?;
    let mut reader = connect(&global.database()?).await?;
    let query = args.from_query.trim().trim_end_matches(';');
    let mut tx = reader.begin_with("begin isolation level repeatable read, read only").await?;
    let select = select(&mut tx, query).await?;
    // The query may end in a comment.
    let all = format!("select count(*) from ({query}\n) q");
    let all: i64 = sqlx::query_scalar(AssertSqlSafe(all)).fetch_one(&mut *tx).await?;
    let cursor = format!("declare backfill no scroll cursor for {select}");
    sqlx::raw_sql(AssertSqlSafe(cursor)).execute(&mut *tx).await?;
    let bar = bar(all.unsigned_abs());
    let (mut totals, mut place) = (Totals::default(), 0);
    loop {
        let fetch = format!("fetch forward {} from backfill", args.batch);
        let rows = sqlx::query(AssertSqlSafe(fetch)).fetch_all(&mut *tx).await?;
        if rows.is_empty() {
            break;
        }
        let read = rows.iter().enumerate().map(|(n, row)| past(row, place + n + 1));
        let operations = read.collect::<Result<Vec<_>, _>>()?;
        place += rows.len();
        write_patiently(&mut session, args, &operations, &mut totals).await?;
        bar.inc(rows.len() as u64);
    }
    bar.finish_and_clear();
    tx.rollback().await?;
    report(&session, args, &totals)
}

/// The query's columns as the batches read them. Refuses a column that is missing or unknown.
async fn select(conn: &mut PgConnection, query: &str) -> Result<String, CliError> {
    let described = format!("select * from ({query}\n) q limit 0");
    let described = conn.prepare(AssertSqlSafe(described).into_sql_str()).await?;
    let found: Vec<_> =
        described.columns().iter().map(|one| (one.name(), one.type_info().name())).collect();
    let is_known = |name: &str| COLUMNS.iter().any(|(known, _)| *known == name);
    if let Some((name, _)) = found.iter().find(|(name, _)| !is_known(name)) {
        return Err(CliError::usage(format!("the query returns an unknown column: {name}")));
    }
    let mut columns = Vec::new();
    for (place, (name, read)) in COLUMNS.iter().enumerate() {
        columns.push(match found.iter().find(|(column, _)| column == name) {
            Some((_, "BYTEA")) if *name == "response_body" => "q.response_body".to_owned(),
            Some(_) => (*read).to_owned(),
            None if place < NEEDED => {
                return Err(CliError::usage(format!("the query returns no column {name}")));
            }
            None => "null".to_owned(),
        });
    }
    Ok(format!("select {} from ({query}\n) q", columns.join(", ")))
}

fn past(row: &PgRow, place: usize) -> Result<PastOperation, CliError> {
    let in_row = |error: pgonce::Error| CliError::usage(format!("row {place}: {error}"));
    let missing = |column: &str| CliError::usage(format!("row {place}: {column} is null"));
    let scope: Option<String> = row.try_get(0)?;
    let key: Option<String> = row.try_get(1)?;
    let completed_at: Option<i64> = row.try_get(2)?;
    let completed_at = completed_at.ok_or_else(|| missing("completed_at"))?;
    let response: Option<Vec<u8>> = row.try_get(7)?;
    let headers: Option<Vec<u8>> = row.try_get(6)?;
    let mut response = response.map_or_else(Response::empty, Response::bytes);
    if let Some(headers) = headers {
        response = response.with_headers(headers);
    }
    if let Some(code) = row.try_get(5)? {
        response = response.with_code(code);
    }
    let completed_at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(completed_at) * 1000);
    Ok(PastOperation {
        scope: Scope::new(scope.ok_or_else(|| missing("scope"))?).map_err(in_row)?,
        key: Key::new(key.ok_or_else(|| missing("key"))?).map_err(in_row)?,
        completed_at: completed_at.map_err(|_| missing("completed_at"))?,
        failed: row.try_get::<Option<bool>, _>(3)?.unwrap_or_default(),
        fingerprint: row.try_get(4)?,
        response,
    })
}

/// Writes a batch. Again, after a pause, while another transaction has one of its keys.
async fn write_patiently(
    session: &mut Session,
    args: &Args,
    operations: &[PastOperation],
    totals: &mut Totals,
) -> Result<(), CliError> {
    for _ in 1..TRIES {
        match write(session, args, operations, totals).await {
            Err(error) if error.is_of_a_lock() => tokio::time::sleep(PAUSE).await,
            written => return written,
        }
    }
    write(session, args, operations, totals).await
}

async fn write(
    session: &mut Session,
    args: &Args,
    operations: &[PastOperation],
    totals: &mut Totals,
) -> Result<(), CliError> {
    let mut tx = session.conn.begin().await?;
    let (mut written, mut undone) = (Backfilled::default(), BackfillUndone::default());
    if args.undo {
        undone = session.once.undo_backfill(&mut tx, operations, args.retention, false).await?;
    } else {
        let dry_run = !args.apply;
        written = session.once.backfill(&mut tx, operations, args.retention, dry_run).await?;
    }
    pgonce::commit(tx).await?;
    totals.undone.deleted += undone.deleted;
    totals.undone.kept += undone.kept;
    totals.written.inserted += written.inserted;
    totals.written.known += written.known;
    totals.written.expired += written.expired;
    Ok(())
}

/// On a terminal only.
fn bar(all: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{wide_bar} {human_pos} of {human_len} rows, {eta} left");
    ProgressBar::new(all).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn report(session: &Session, args: &Args, totals: &Totals) -> Result<(), CliError> {
    if session.json {
        return match args.undo {
            true => output::json(&json!(totals.undone)),
            false => output::json(&json!({ "applied": args.apply, "counts": totals.written })),
        };
    }
    if args.undo {
        return output::pairs(&[
            ("deleted", grouped(totals.undone.deleted)),
            ("kept, because something else has written or touched it", grouped(totals.undone.kept)),
        ]);
    }
    let inserted = if args.apply { "marked as done" } else { "would be marked as done" };
    output::pairs(&[
        (inserted, grouped(totals.written.inserted)),
        ("known before, unchanged", grouped(totals.written.known)),
        ("done too long ago to be remembered", grouped(totals.written.expired)),
    ])?;
    match args.apply {
        true => Ok(()),
        false => output::line("nothing was written: run it again with --apply"),
    }
}
