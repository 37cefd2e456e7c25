//! The cost of an operation, counted, not timed: one client repeats it.

use pgonce::sqlx::{self, PgConnection, PgPool};

use crate::arena::Stage;
use crate::figures::Cost;
use crate::load::Work;

/// The maximum number of operations before the counted ones.
const WARM_UP: u64 = 50;
/// Numbers that no client reaches.
const FIRST: u64 = 1 << 40;

/// The mean cost of `operations` operations of the work that `make` creates. Counts WAL if only the bench writes.
pub(crate) async fn count<W: Work>(
    stage: &Stage,
    operations: u32,
    make: impl FnOnce(PgPool) -> W,
) -> anyhow::Result<Cost> {
    let (relay, pool) = stage.counted().await?;
    let work = make(pool);
    let warm_up = WARM_UP.min(operations.into());
    repeat(&work, FIRST, warm_up).await?;
    let mut conn = stage.conn().await?;
    let wal = Wal::mark(stage, &mut conn).await?;
    let trips = relay.trips();
    repeat(&work, FIRST + warm_up, operations.into()).await?;
    let trips = relay.trips() - trips;
    let mean = |total: f64| total / f64::from(operations);
    let Written { bytes, dead_rows, xids } = wal.since(&mut conn).await?;
    Ok(Cost {
        // Zero: the relay sees no messages through TLS.
        round_trips: (trips > 0).then(|| mean(trips as f64)),
        wal_bytes: bytes.map(mean),
        dead_rows: dead_rows.map(mean),
        xids: xids.map(mean),
    })
}

pub(crate) async fn repeat(work: &impl Work, first: u64, count: u64) -> anyhow::Result<()> {
    for number in first..first + count {
        work.perform(number).await?;
    }
    Ok(())
}

/// A position in the WAL to count from, if WAL can be counted.
struct Wal(Option<Place>);

/// The end of the WAL, and the next transaction id.
type Place = (String, f64);

/// What was written since a mark, without full-page images.
#[derive(Default)]
struct Written {
    bytes: Option<f64>,
    /// Updated or deleted row versions.
    dead_rows: Option<f64>,
    xids: Option<f64>,
}

impl Wal {
    async fn mark(stage: &Stage, conn: &mut PgConnection) -> anyhow::Result<Self> {
        // Needs PostgreSQL 15 or newer, with its contrib modules.
        let extension = "create extension if not exists pg_walinspect";
        if !stage.is_alone || sqlx::raw_sql(extension).execute(&mut *conn).await.is_err() {
            return Ok(Self(None));
        }
        Ok(Self(Some(place(conn).await?)))
    }

    async fn since(self, conn: &mut PgConnection) -> anyhow::Result<Written> {
        let Some((from, first_xid)) = self.0 else { return Ok(Written::default()) };
        let (to, next_xid) = place(conn).await?;
        // Only flushed WAL can be read, and WAL without a commit may not be flushed yet.
        let flush = "select pg_logical_emit_message(true, 'pgonce', '')";
        sqlx::query(flush).execute(&mut *conn).await?;
        let sql = "select coalesce(sum(record_length - fpi_length), 0)::float8,
            count(*) filter (where resource_manager = 'Heap' and record_type ~ 'UPDATE|DELETE')::float8
            from pg_get_wal_records_info($1::pg_lsn, pg_current_wal_flush_lsn())
            where end_lsn <= $2::pg_lsn and resource_manager not in ('XLOG', 'Standby')";
        let query = sqlx::query_as::<_, (f64, f64)>(sql).bind(from).bind(to);
        let (bytes, dead_rows) = query.fetch_one(conn).await?;
        let xids = Some(next_xid - first_xid);
        Ok(Written { bytes: Some(bytes), dead_rows: Some(dead_rows), xids })
    }
}

async fn place(conn: &mut PgConnection) -> anyhow::Result<Place> {
    let sql = "select pg_current_wal_insert_lsn()::text,
        pg_snapshot_xmax(pg_current_snapshot())::text::float8";
    Ok(sqlx::query_as(sql).fetch_one(conn).await?)
}
