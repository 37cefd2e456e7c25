//! Whatever a session's search_path is, pgonce uses PostgreSQL's operators, functions and types.

use pgonce::RunError;
use pgonce::{Done, Failure, Filter, Fingerprint, History, Listed, Operation, Response};
use sqlx::{Executor, PgConnection};

use crate::support::db::{TestDb, effect, op, started, waits, word};

/// Operators that return wrong answers: equal values differ, all bodies are the same, nothing expires.
const EVIL: &str = "
    create schema {}_evil;
    create function {}_evil.no(text, text) returns boolean language sql immutable as 'select false';
    create function {}_evil.yes(smallint, integer) returns boolean language sql immutable as 'select true';
    create function {}_evil.no(bytea, bytea) returns boolean language sql immutable as 'select false';
    create function {}_evil.no(timestamptz, timestamptz) returns boolean language sql immutable as 'select false';
    create function {}_evil.zero(numeric, integer) returns numeric language sql immutable as 'select 0.0';
    create function {}_evil.early(timestamptz, interval) returns timestamptz language sql immutable
      as $$select timestamptz '1970-01-01'$$;
    create operator {}_evil.= (leftarg = text, rightarg = text, function = {}_evil.no);
    create operator {}_evil.= (leftarg = smallint, rightarg = integer, function = {}_evil.yes);
    create operator {}_evil.<> (leftarg = bytea, rightarg = bytea, function = {}_evil.no);
    create operator {}_evil.<= (leftarg = timestamptz, rightarg = timestamptz, function = {}_evil.no);
    create operator {}_evil.> (leftarg = timestamptz, rightarg = timestamptz, function = {}_evil.no);
    create operator {}_evil.* (leftarg = numeric, rightarg = integer, function = {}_evil.zero);
    create operator {}_evil.+ (leftarg = timestamptz, rightarg = interval, function = {}_evil.early);
    create function {}_evil.isfinite(timestamptz) returns boolean language sql as 'select false';
    create function {}_evil.octet_length(text) returns integer language sql as 'select 999';
    create function {}_evil.yes(integer, integer) returns boolean language sql immutable as 'select true';
    create operator {}_evil.= (leftarg = integer, rightarg = integer, function = {}_evil.yes);
    create function {}_evil.gone(bigint, interval) returns interval language sql immutable as $$select interval '0'$$;
    create operator {}_evil.* (leftarg = bigint, rightarg = interval, function = {}_evil.gone);
    create function {}_evil.no(bigint, integer) returns boolean language sql immutable as 'select false';
    create operator {}_evil.> (leftarg = bigint, rightarg = integer, function = {}_evil.no);
    create function {}_evil.yes(bigint, bigint) returns boolean language sql immutable as 'select true';
    create operator {}_evil.< (leftarg = bigint, rightarg = bigint, function = {}_evil.yes);
    create operator {}_evil.> (leftarg = bigint, rightarg = bigint, function = {}_evil.yes);
    create function {}_evil.pg_try_advisory_xact_lock(bigint) returns boolean language sql as 'select true';
    create function {}_evil.max(integer) returns integer language sql immutable as 'select 0';
    create domain {}_evil.timestamptz as varchar check (value = 'hostile');
    create domain {}_evil.text as varchar check (value = 'hostile');
    create domain {}_evil.uuid as varchar check (value = 'hostile')";

/// The same schema, in sessions that search for operators elsewhere first.
async fn misled(db: &TestDb) -> TestDb {
    db.execute(EVIL).await;
    let path = format!("{0}_evil,{0},pg_catalog", db.schema);
    TestDb::open(&db.schema, db.options.clone().options([("search_path", path)]), 4).await
}

async fn run(db: &TestDb, op: &Operation) -> Result<Done<()>, RunError<sqlx::Error>> {
    db.once.run(&db.pool, op, async |tx| effect(tx, &db.schema, "k").await.map(drop)).await
}

#[tokio::test]
async fn run_decides_the_same() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    // If misled, the first look of `run` would find every key new; without these two operators, every key done.
    let finds = "drop operator {}_evil.= (text, text); drop operator {}_evil.= (smallint, integer)";
    for (round, change) in (0..).zip(["select", finds]) {
        db.execute(change).await;
        let key = format!("k{round}");
        let paid = op(&key).fingerprint(Fingerprint::of_bytes("10 EUR"));
        for _ in 0..3 {
            run(&misled, &paid).await.unwrap();
        }
        assert_eq!(db.effects().await, round * 2 + 1, "replayed");
        let dearer = op(&key).fingerprint(Fingerprint::of_bytes("99 EUR"));
        let dearer = run(&misled, &dearer).await;
        assert!(matches!(dearer, Err(RunError::Mismatch(_))), "{dearer:?}");
        db.execute("update {}.idempotency_keys set expires_at = clock_timestamp()").await;
        run(&misled, &paid).await.unwrap();
        assert_eq!(db.effects().await, round * 2 + 2, "forgotten, and run again");
    }
}

#[tokio::test]
async fn a_key_is_waited_for_and_written_the_same() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    let mut holder = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let op_k = op("k").policy(waits(std::time::Duration::from_secs(30)));
    let end = async {
        db.until_waiting(1).await;
        claim.complete(&mut holder, Response::json(&()).unwrap()).await.unwrap();
        holder.commit().await.unwrap();
    };
    assert!(tokio::join!(run(&misled, &op_k), end).0.unwrap().is_replay(), "was waited for");
    for op in [op("new"), op("cl\u{e9}"), op("optimistic").optimistic()] {
        misled.once.run(&misled.pool, &op, async |_| Ok::<_, Failure>(7)).await.unwrap();
    }
    let kept =
        "select bool_and(status = 'completed' and expires_at - created_at = interval '1 day')
                  from {}.keys where key <> 'k'";
    assert!(db.ask::<bool>(kept).await);
}

// The response of a kept failure must never be returned as a success.
#[tokio::test]
async fn a_kept_failure_stays_a_failure() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    // So that rows are found, and every status seems to be the expected one.
    db.execute("drop operator {}_evil.= (text, text)").await;
    for _ in 0..2 {
        let declined =
            async |_: &mut PgConnection| Err::<i32, _>(Failure::keep(Response::bytes("7")));
        let told = misled.once.run(&misled.pool, &op("k"), declined).await;
        assert!(matches!(told, Err(RunError::Failed { .. })), "{told:?}");
    }
}

#[tokio::test]
async fn readers_say_the_same() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    db.complete(&op("done"), "done").await;
    drop(db.lease(&op("leased"), std::time::Duration::from_secs(60)).await);
    let (mut conn, mut misled_conn) = (db.conn().await, misled.conn().await);
    let filter = Filter::default();
    for key in ["done", "leased"] {
        let (right, seen) = (
            db.once.inspect(&mut conn, op(key).scope(), op(key).key()).await.unwrap().unwrap(),
            misled.once.inspect(&mut misled_conn, op(key).scope(), op(key).key()).await.unwrap(),
        );
        assert_eq!(format!("{:?}", seen.unwrap()), format!("{right:?}"));
    }
    let right = db.once.list(&mut conn, &filter, 10).await.unwrap();
    let seen = misled.once.list(&mut misled_conn, &filter, 10).await.unwrap();
    let records = |list: Vec<Listed>| list.into_iter().map(|l| l.record).collect::<Vec<_>>();
    assert_eq!(format!("{:?}", records(seen)), format!("{:?}", records(right)));
    let history = History::new(std::time::Duration::from_secs(3600)).unwrap();
    let counting = db.once.clone().keep_history(&history);
    let replay = counting.begin(&mut conn, &op("done").value(5)).await.unwrap();
    assert!(matches!(replay, pgonce::Begin::Replay(_)), "{replay:?}");
    for _ in 0..2 {
        history.flush(&misled.once, &misled.pool).await.unwrap();
        let (from, until) = (time::OffsetDateTime::UNIX_EPOCH, time::OffsetDateTime::now_utc());
        let rows = misled.once.history_by_scope(&mut misled_conn, from, until, 9).await.unwrap();
        assert_eq!((rows.len(), rows[0].counts.duplicates, rows[0].counts.value), (1, 1, 5));
    }
    // A reaper's watermark is a time too.
    db.execute("update {}.idempotency_keys set expires_at = clock_timestamp(), lease_expires_at = null where key = 'done'").await;
    let first = misled.once.reap_once(&mut misled_conn, 10).await.unwrap();
    assert_eq!(first.deleted, 1);
}

#[tokio::test]
async fn a_temp_table_catches_no_row() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    let mut conn = misled.conn().await;
    conn.execute(db.sql(
        "create temp table idempotency_keys (like {}.idempotency_keys including all);
         create domain pg_temp.uuid as varchar check (value = 'hostile');
         set search_path = {}_evil, pg_temp, {}, pg_catalog",
    ))
    .await
    .unwrap();
    db.complete(&op("k"), "done").await;
    assert_eq!(word(&misled.once.begin(&mut conn, &op("k")).await.unwrap()), "replay");
    let claim = started(misled.once.begin(&mut conn, &op("new")).await.unwrap());
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    let captured: i64 =
        sqlx::query_scalar("select pg_catalog.count(*) from pg_temp.idempotency_keys")
            .fetch_one(&mut conn)
            .await
            .unwrap();
    assert_eq!(captured, 0);
    assert_eq!(db.ask::<i64>("select count(*) from {}.idempotency_keys").await, 2);
}

#[tokio::test]
async fn what_migrate_makes_is_the_same() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    let mut conn = misled.conn().await;
    db.execute(
        "create or replace function {}.schema_version(out version integer, out serves_from integer, out digest text)
           language sql as $$ select 1, 1, 'older' $$",
    )
    .await;
    let path = "select current_setting('search_path')";
    let before: String = sqlx::query_scalar(path).fetch_one(&mut conn).await.unwrap();
    assert!(misled.once.migrate(&mut conn).await.unwrap().functions_replaced);
    assert!(!misled.once.migrate(&mut conn).await.unwrap().functions_replaced);
    misled.once.check(&misled.pool).await.unwrap();
    let after: String = sqlx::query_scalar(path).fetch_one(&mut conn).await.unwrap();
    assert_eq!(after, before);
    // Views and functions with a standard SQL body remember the operators of their creation.
    db.execute("drop schema {}_evil cascade").await;
    run(&db, &op("k")).await.unwrap();
    db.once.inspect(&mut db.conn().await, op("k").scope(), op("k").key()).await.unwrap().unwrap();
}

// The verbs pin no search_path.
#[tokio::test]
async fn the_verbs_write_the_same() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    let mut conn = misled.conn().await;
    let claim = started(misled.once.begin(&mut conn, &op("k")).await.unwrap());
    let kept = "select expires_at - created_at = interval '1 day' and lease_expires_at = expires_at
                  from {}.idempotency_keys";
    assert!(db.ask::<bool>(kept).await);
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    // Every status seems to be the expected one, and yet a finished claim is not finished again.
    let again = "select {}.fail(scope, key, token) from {}.idempotency_keys";
    let error = sqlx::query(misled.sql(again)).execute(&mut conn).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("IK002"));
    assert_eq!(word(&misled.once.begin(&mut conn, &op("k")).await.unwrap()), "replay");
}

#[tokio::test]
async fn the_audit_trail_says_the_same() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    let mut conn = misled.conn().await;
    misled.once.audit_on(&mut conn, 30).await.unwrap();
    let leased = op("leased");
    drop(misled.lease(&leased, std::time::Duration::from_millis(1)).await);
    let lapsed = "select lease_expires_at < clock_timestamp() from {}.keys where key = 'leased'";
    db.until(lapsed).await;
    let seen = db.seen(&leased).await;
    misled.once.revoke_claim(&mut conn, leased.scope(), leased.key(), &seen).await.unwrap();
    started(misled.once.begin(&mut conn, &leased).await.unwrap())
        .fail(&mut conn, Response::empty())
        .await
        .unwrap();
    misled.once.audit_note(&mut conn, "viewed", leased.scope(), leased.key()).await.unwrap();
    db.execute("update {}.idempotency_keys set expires_at = clock_timestamp()").await;
    misled.once.reap_once(&mut conn, 10).await.unwrap();
    let trail = misled.once.audit(&mut conn, leased.scope(), leased.key(), 100).await.unwrap();
    let actions: Vec<_> = trail.iter().map(|line| line.action.as_str()).collect();
    assert_eq!(actions, ["begun", "revoked", "begun", "failed", "viewed", "changed", "reaped"]);
    assert_eq!(misled.once.audit_days_kept(&mut conn).await.unwrap(), Some(30));
    misled.once.check(&misled.pool).await.unwrap();
    misled.once.anomalies(&mut conn).await.unwrap();
    misled.once.audit_off(&mut conn).await.unwrap();
}

#[tokio::test]
async fn a_failure_is_forgotten_in_time_the_same() {
    let db = TestDb::new().await;
    let misled = misled(&db).await;
    let minute = std::time::Duration::from_secs(60);
    let brief = pgonce::Policy::new().failed_retention(minute).unwrap();
    let mut conn = misled.conn().await;
    let begin = misled.once.begin(&mut conn, &op("verb").policy(brief)).await.unwrap();
    started(begin).fail(&mut conn, Response::empty()).await.unwrap();
    let by_run = op("run").policy(brief);
    let run = misled
        .once
        .run(&misled.pool, &by_run, async |_| Err::<(), _>(Failure::keep(Response::empty())));
    assert!(matches!(run.await, Err(RunError::Failed { .. })));
    let kept = "select count(*) from {}.idempotency_keys
                 where expires_at - completed_at = interval '1 min'
                    or expires_at - created_at between interval '1 min' and interval '2 min'";
    assert_eq!(db.ask::<i64>(kept).await, 2);
}
