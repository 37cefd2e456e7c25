//! The history: what callers were answered, per minute and scope.

use std::time::Duration;

use pgonce::{
    Class, Error, ErrorKind, Fingerprint, History, HistoryBucket, HistoryCounts, HistoryQuery,
    Operation, Scope,
};
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::crash::pool_of_one;
use crate::support::db::{PATIENCE, TestDb, effect, op};
use crate::support::proxy::{Cut, Proxy};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn scope(name: &str) -> Scope {
    Scope::new(name).unwrap()
}

fn history() -> History {
    History::new(DAY).unwrap()
}

/// The day around now.
fn day(step: Duration) -> HistoryQuery {
    let now = OffsetDateTime::now_utc();
    HistoryQuery { from: now - DAY / 2, until: now + DAY / 2, step, scope: None }
}

/// All counts of the day around now, or of one scope.
async fn total(db: &TestDb, of: Option<&str>) -> HistoryCounts {
    let query = HistoryQuery { scope: of.map(scope), ..day(MINUTE) };
    let buckets = db.once.history(&mut db.conn().await, &query).await.unwrap();
    let mut total = HistoryCounts::default();
    for HistoryBucket { counts, .. } in buckets {
        total.started += counts.started;
        total.duplicates += counts.duplicates;
        total.replayed += counts.replayed;
        total.value += counts.value;
    }
    total
}

/// Records these totals of `started` for a source, in minute 1000 and scope `s`.
async fn record(db: &TestDb, source: u8, started: &[i64]) -> sqlx::Result<()> {
    let counts: Vec<i64> = started.iter().flat_map(|n| [&[*n], &[0; 16][..]].concat()).collect();
    sqlx::query(db.sql("call {}.record_history($1, $2, $3, $4, $5, $6)"))
        .bind(sqlx::types::Uuid::from_u128(source.into()))
        .bind(vec![1000_i64; started.len()])
        .bind(vec!["s"; started.len()])
        .bind(vec!["c"; started.len()])
        .bind(counts)
        .bind(1000_i64)
        .execute(&mut db.conn().await)
        .await
        .map(drop)
}

#[tokio::test]
async fn what_processes_count_is_summed_by_time_and_by_scope() {
    let db = TestDb::new().await;
    let (one, other) = (history(), history());
    let run = async |history: &History, op: Operation| {
        let once = db.once.clone().keep_history(history);
        once.run(&db.pool, &op, async |tx| effect(tx, &db.schema, "k").await).await.ok()
    };
    let pay = |key: &str| {
        let op = Operation::new("acme/pay", key).unwrap().class(Class::new("pay").unwrap());
        op.fingerprint(Fingerprint::of_bytes("1")).value(250)
    };
    let mail =
        || Operation::new("acme/mail", "m").unwrap().class(Class::new("mail").unwrap()).value(7);
    for key in ["a", "b", "c", "a", "a"] {
        run(&one, pay(key)).await;
    }
    for _ in 0..2 {
        run(&one, mail()).await;
    }
    run(&other, pay("d")).await;
    run(&other, pay("d").fingerprint(Fingerprint::of_bytes("2"))).await;
    assert_eq!(one.flush(&db.once, &db.pool).await.unwrap(), 2);
    assert_eq!(other.clone().flush(&db.once, &db.pool).await.unwrap(), 1);
    assert_eq!(other.flush(&db.once, &db.pool).await.unwrap(), 0, "written already");
    let mut conn = db.conn().await;
    let now = OffsetDateTime::now_utc();
    let by_scope = async |conn: &mut PgConnection, limit| {
        db.once.history_by_scope(conn, now - DAY, now + MINUTE, limit).await.unwrap()
    };
    let rows = by_scope(&mut conn, 10).await;
    let names: Vec<_> = rows.iter().map(|row| (row.scope.as_str(), row.class.as_str())).collect();
    assert_eq!(names, [("acme/pay", "pay"), ("acme/mail", "mail")], "the busiest first");
    assert_eq!(by_scope(&mut conn, 1).await.len(), 1);
    let pay = rows[0].counts;
    assert_eq!((pay.completed, pay.mismatch), (4, 1));
    assert_eq!((pay.started, pay.replayed, pay.duplicates, pay.value), (4, 2, 2, 500));
    assert!(!format!("{rows:?}").contains("acme"), "{rows:?}");
    let all = total(&db, None).await;
    assert_eq!((all.started, all.duplicates, all.value), (5, 3, 507));
    assert_eq!(total(&db, Some("acme/mail")).await.duplicates, 1);
    let json = serde_json::to_value(&rows[0]).unwrap();
    assert_eq!((&json["scope"], &json["started"]), (&"acme/pay".into(), &4.into()));
}

#[tokio::test]
async fn steps_begin_at_multiples_of_their_length_and_empty_ones_are_left_out() {
    let db = TestDb::new().await;
    db.execute(
        "insert into {}.history select timestamptz 'epoch' + n * interval '1 min', now(), n, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 0, 0, 0, 0, 0, gen_random_uuid(), 's', 'c' from unnest(array[3, 59, 60, 200]) n",
    )
    .await;
    let at = |minutes: u64| OffsetDateTime::UNIX_EPOCH + MINUTE * u32::try_from(minutes).unwrap();
    let query = HistoryQuery { from: at(3), until: at(200), step: 60 * MINUTE, scope: None };
    let found = db.once.history(&mut db.conn().await, &query).await.unwrap();
    let found: Vec<_> = found.iter().map(|bucket| (bucket.at, bucket.counts.started)).collect();
    assert_eq!(found, [(at(0), 62), (at(60), 60)]);
}

#[tokio::test]
async fn totals_written_again_change_nothing_and_never_shrink() {
    let db = TestDb::new().await;
    let started = "select sum(started)::bigint from {}.history";
    for (source, totals, expected) in
        [(1, [3, 5], 5), (1, [5, 5], 5), (1, [1, 2], 5), (2, [4, 4], 9), (1, [0, 6], 10)]
    {
        record(&db, source, &totals).await.unwrap();
        assert_eq!(db.ask::<i64>(started).await, expected, "{source} {totals:?}");
    }
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_counted_once() {
    let db = TestDb::new().await;
    let history = history();
    let flush = async |cut| {
        let proxy = Proxy::start(&db, cut);
        let flushed = history.flush(&db.once, &pool_of_one(proxy.options())).await;
        let call = proxy.requests().iter().position(|sent| sent == "execute").map(|at| at + 1);
        (flushed.is_ok(), call)
    };
    let once = db.once.clone().keep_history(&history);
    let start = async |n: u64| {
        let op = op(&n.to_string());
        once.run(&db.pool, &op, async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    };
    start(1).await;
    let (_, call) = flush(None).await;
    let call = call.expect("a call");
    for (n, cut) in (2..).zip([Cut::After(call), Cut::Before(call)]) {
        start(n * 2).await;
        assert!(!flush(Some(cut)).await.0, "{cut:?}");
        start(n * 2 + 1).await;
        assert!(flush(None).await.0);
        assert_eq!(total(&db, None).await.started, n * 2 - 1, "{cut:?}");
    }
}

#[tokio::test]
async fn processes_do_not_wait_for_each_other() {
    let db = TestDb::new().await;
    record(&db, 1, &[1]).await.unwrap();
    let mut busy = db.conn().await;
    let mut tx = busy.begin().await.unwrap();
    sqlx::query(db.sql(
        "select {}._record_history('00000000-0000-0000-0000-000000000001', array[1000, 1001], array['s', 's'],
                                   array['c', 'c'], array_fill(7, array[34])::bigint[], 1000)",
    ))
    .execute(&mut *tx)
    .await
    .unwrap();
    tokio::time::timeout(PATIENCE, record(&db, 2, &[1])).await.unwrap().unwrap();
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn old_rows_are_deleted_with_the_keys_and_a_full_batch_says_that_there_may_be_more() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    db.execute(
        "insert into {}.history select {}._clock() - n * interval '1 min', {}._clock() + (20 - n) * interval '1 min',
                1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, gen_random_uuid(), 's', 'c' from generate_series(1, 30) n",
    )
    .await;
    let left = "select count(*) from {}.history";
    let mut conn = db.conn().await;
    let reaped = db.once.reap_once(&mut conn, 4).await.unwrap();
    assert_eq!((reaped.deleted, reaped.cut_short), (0, true));
    assert_eq!(db.ask::<i64>(left).await, 26, "the oldest first");
    db.execute("call {}.reap(3)").await;
    assert_eq!(db.ask::<i64>(left).await, 19, "what is to be kept is kept");
    db.advance(19 * MINUTE).await;
    pgonce::Reaper::new(&db.once).pass(&mut conn).await.unwrap();
    assert_eq!(db.ask::<i64>(left).await, 0);
}

#[tokio::test]
async fn a_clock_that_is_ahead_does_not_keep_its_rows_for_longer() {
    let db = TestDb::new().await;
    db.execute(
        "call {}.record_history(gen_random_uuid(), array[4000000000], array['s'], array['c'],
                                array_fill(1, array[17])::bigint[], 3600000)",
    )
    .await;
    let kept = "select expires_at < now() + interval '2 h' from {}.history";
    assert!(db.ask::<bool>(kept).await);
}

#[tokio::test]
async fn bad_arguments_are_refused_by_name() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let record = |changed: &str, by: &str| {
        "call {}.record_history(gen_random_uuid(), array[1], array['s'], array['c'], array_fill(1, array[17])::bigint[], 1)"
            .replacen(changed, by, 1)
    };
    for (call, word) in [
        (record("gen_random_uuid()", "null"), "source is null"),
        (record("array[1]", "null"), "the number of rows is null"),
        (record("array[1]", "array[1, 2]"), "differ in length"),
        (record("array[1]", "array[-1]"), "one of minutes"),
        (record("array[1]", "array[null::bigint]"), "one of minutes"),
        (record("array['s']", "array[E'\\n']"), "scope contains a control character"),
        (record("array['s']", "array[null::text]"), "scope is empty"),
        (record("array['c']", "array['']"), "class is empty"),
        (record("array[17]", "array[16]"), "has not 17 for each"),
        (record("array_fill(1", "array_fill(-1"), "one of counts"),
        (record("array_fill(1", "array_fill(1000000000000001"), "one of counts"),
        (record("bigint[], 1)", "bigint[], 0)"), "retention_ms is 0"),
        ("select {}.history(null, now())".to_owned(), "from is null"),
        ("select {}.history(now(), 'infinity')".to_owned(), "until is null or infinite"),
        ("select {}.history(now(), now(), 59)".to_owned(), "step_seconds is 59"),
        ("select {}.history('1970-01-01', now(), 60)".to_owned(), "the number of steps is"),
        ("select {}.history(now(), '1970-01-01', 600)".to_owned(), "the number of steps is -"),
        ("select {}.history_by_scope(now(), now(), 0)".to_owned(), "limit is 0"),
        ("select {}.history_by_scope('-infinity', now())".to_owned(), "from is null or infinite"),
    ] {
        let error = sqlx::query(db.sql(&call)).execute(&mut conn).await.expect_err(&call);
        let raised = error.as_database_error().unwrap();
        assert_eq!(raised.code().unwrap(), "IK001", "{call}: {raised}");
        assert!(raised.message().contains(word), "{call}: {raised}");
    }
    let refused = |error: Error, word: &str| {
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(word), "{error}");
    };
    for step in [Duration::ZERO, MINUTE * 2 + Duration::from_nanos(1), Duration::MAX] {
        let error = db.once.history(&mut conn, &day(step)).await.unwrap_err();
        refused(error, "step");
    }
    let now = OffsetDateTime::now_utc();
    let error = db.once.history_by_scope(&mut conn, now, now, u32::MAX).await.unwrap_err();
    refused(error, "limit");
    refused(History::new(Duration::ZERO).unwrap_err(), "retention is 0 s");
    refused(history().interval(Duration::ZERO).unwrap_err(), "interval is 0 s");
}

#[tokio::test]
async fn counts_are_written_in_the_background_and_a_last_time_at_shutdown() {
    let db = TestDb::new().await;
    let history = history().interval(Duration::from_millis(1)).unwrap();
    db.execute("alter table {}.history rename to hidden").await;
    let once = db.once.clone().keep_history(&history);
    let run = async |key| {
        once.run(&db.pool, &op(key), async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    };
    run("first").await;
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn({
        let (history, once, pool) = (history.clone(), db.once.clone(), db.pool.clone());
        async move { history.run_until(&once, pool, stopped).await }
    });
    // It has failed at least once, and keeps its counts.
    db.until(
        "select count(*) > 0 from pg_stat_activity
          where application_name = '{}' and query like '%record_history(%' and pid <> pg_backend_pid()",
    )
    .await;
    db.execute("alter table {}.hidden rename to history").await;
    db.until("select count(*) = 1 from {}.history").await;
    run("second").await;
    drop(stop);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    assert_eq!(total(&db, None).await.started, 2);
}

#[tokio::test]
async fn a_large_tally_goes_in_batches() {
    let db = TestDb::new().await;
    let history = history();
    let once = db.once.clone().keep_history(&history);
    let mut tx = db.pool.begin().await.unwrap();
    for n in 0..1100 {
        let op = Operation::new(format!("scope {n}"), "k").unwrap();
        let _ = once.begin(&mut tx, &op).await.unwrap();
    }
    tx.rollback().await.unwrap();
    assert_eq!(history.flush(&db.once, &db.pool).await.unwrap(), 1100);
    assert_eq!(total(&db, None).await.started, 1100);
}
