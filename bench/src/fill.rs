//! Fills tables with many keys, in the database.

use pgonce::Operation;
use pgonce::sqlx::{self, PgConnection};

use crate::arena::Stage;
use crate::orders::{SCOPE, fingerprint};
use crate::print::grouped;
use crate::progress::Progress;

/// Rows per statement.
const BATCH: u64 = 500_000;
/// The key of the row that is copied.
const MODEL: &str = "model";

/// How the copies differ from the model.
#[derive(Clone, Copy)]
pub(crate) enum Copies {
    /// Not at all.
    Live,
    /// Past their retention, in the order of creation.
    Overdue,
}

/// Calls `run` to create the row to copy, with a response of `bytes` bytes (at least two) or with none. So the copies
/// have all columns as `run` writes them.
pub(crate) async fn model(stage: &Stage, bytes: usize) -> anyhow::Result<()> {
    let pool = stage.pool(1).await?;
    let op = Operation::new(SCOPE, MODEL)?.fingerprint(fingerprint());
    let value = (bytes > 0).then(|| "y".repeat(bytes.saturating_sub(2)));
    let work = async |_: &mut PgConnection| Ok::<_, sqlx::Error>(value.clone());
    stage.once.run(&pool, &op, work).await?;
    pool.close().await;
    Ok(())
}

/// Copies the model under the keys of these numbers, made like [`key`](crate::orders::key).
pub(crate) async fn fill(
    stage: &Stage,
    numbers: std::ops::Range<u64>,
    copies: Copies,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut conn = stage.conn().await?;
    let insert = insert(stage, &mut conn, copies).await?;
    let what = format!("filling in {} keys", grouped(numbers.end - numbers.start));
    let filling = async {
        let mut from = numbers.start;
        while from < numbers.end {
            let to = numbers.end.min(from + BATCH);
            let insert = sqlx::query(stage.sql(&insert)).bind(from as i64).bind(to as i64 - 1);
            insert.execute(&mut conn).await?;
            from = to;
        }
        Ok(())
    };
    progress.during(what, filling).await
}

/// The copying statement, with all columns of the table.
async fn insert(stage: &Stage, conn: &mut PgConnection, copies: Copies) -> anyhow::Result<String> {
    let names = "select quote_ident(attname) from pg_attribute
        where attrelid = ':schema.idempotency_keys'::regclass and attnum > 0 and not attisdropped
        order by attnum";
    let names: Vec<String> = sqlx::query_scalar(stage.sql(names)).fetch_all(conn).await?;
    let value = |name: &String| match (name.as_str(), copies) {
        ("key", _) => "made.key".to_owned(),
        ("created_at" | "expires_at" | "lease_expires_at", Copies::Overdue) => {
            "clock_timestamp() - interval '1 second'".to_owned()
        }
        _ => format!("m.{name}"),
    };
    let values: Vec<_> = names.iter().map(value).collect();
    Ok(format!(
        "with made as materialized (
           select n, 'k-' || left(encode(sha256(convert_to(n::text, 'UTF8')), 'hex'), 32) as key
             from generate_series($1::bigint, $2::bigint) n)
         insert into :schema.idempotency_keys ({})
         select {} from made, :schema.idempotency_keys m where m.scope = '{SCOPE}' and m.key = '{MODEL}'",
        names.join(", "),
        values.join(", "),
    ))
}
