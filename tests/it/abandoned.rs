//! Which operations are abandoned, and how a recovery picks them.

use std::time::Duration;

use pgonce::{ErrorKind, Failure, Lease, Operation, Recovery, Response, Work};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::db::{PATIENCE, TestDb, kept_for, op, started};

const MINUTE: Duration = Duration::from_secs(60);

/// Leaves a lapsed claim for each key; the first key's claim lapsed first.
pub async fn abandon(db: &TestDb, keys: impl IntoIterator<Item = String>) {
    for (number, key) in (0..).zip(keys) {
        drop(db.lease(&op(&key), MINUTE).await);
        let ago = 3600 - number;
        db.execute(&format!(
            "update {{}}.idempotency_keys set lease_expires_at = {{}}._clock() - interval '{ago} s' where key = '{key}';
             update {{}}.unfinished set try_at = {{}}._clock() - interval '{ago} s' where key = '{key}'"
        ))
        .await;
    }
}

pub async fn abandoned(db: &TestDb) -> Vec<String> {
    let found = db.once.abandoned(&mut db.conn().await, 100).await.unwrap();
    found.into_iter().map(|found| found.key).collect()
}

#[tokio::test]
async fn abandoned_is_what_nobody_works_on() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    drop(db.lease(&op("second"), Duration::from_secs(20)).await);
    drop(db.lease(&op("first"), Duration::from_secs(10)).await);
    drop(db.lease(&op("live"), Duration::from_secs(600)).await);
    let done = db.lease(&op("completed"), Duration::from_secs(10)).await;
    done.complete(&mut conn, Response::empty()).await.unwrap();
    let done = db.lease(&op("failed"), Duration::from_secs(10)).await;
    done.fail(&mut conn, Response::empty()).await.unwrap();
    let short = op("forgotten").policy(kept_for(Duration::from_secs(30)));
    drop(db.lease(&short, Duration::from_secs(10)).await);
    // Committed without complete: its effect exists, and it must not run again.
    let transactional = op("transactional");
    drop(started(db.once.begin(&mut conn, &transactional).await.unwrap()));
    assert_eq!(abandoned(&db).await, [""; 0]);
    db.advance(MINUTE).await;
    assert_eq!(abandoned(&db).await, ["first", "second"]);
    // A released key has nothing to continue, unless steps are recorded.
    for (key, step) in [("untouched", false), ("begun", true)] {
        let given_back = db.lease(&op(key), 10 * MINUTE).await;
        if step {
            let sql = "select {}.record_step('test/scope', $1, $2, 'charge', null, '1')";
            let record = sqlx::query(db.sql(sql)).bind(key).bind(given_back.token());
            record.execute(&mut conn).await.unwrap();
        }
        given_back.release(&mut conn).await.unwrap();
    }
    assert_eq!(abandoned(&db).await, ["first", "second", "begun"]);
    assert_eq!(db.once.abandoned(&mut conn, 1).await.unwrap().len(), 1);
    assert!(db.once.abandoned(&mut conn, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_leased_key_is_unfinished_from_begin_to_its_end() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    let unfinished = async || db.ask::<i64>("select count(*) from {}.unfinished").await;
    let ten = Duration::from_secs(10);
    // After a takeover, the row and its tries stay.
    drop(db.lease(&op("k"), ten).await);
    db.execute("update {}.unfinished set tries = 7").await;
    db.advance(ten).await;
    let claim = db.lease(&op("k"), ten).await;
    assert_eq!(db.ask::<i32>("select tries from {}.unfinished").await, 7);
    // Released with a step: it may be picked at once, and its tries count from zero.
    let sql = "select {}.record_step('test/scope', 'k', $1, 'charge', null, '1')";
    sqlx::query(db.sql(sql)).bind(claim.token()).execute(&mut conn).await.unwrap();
    claim.release(&mut conn).await.unwrap();
    let due = "select tries = 0 and try_at = {}._clock() from {}.unfinished";
    assert!(db.ask::<bool>(due).await);
    let claim = db.lease(&op("k"), ten).await;
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    assert_eq!(unfinished().await, 0);
    // A transactional claim takes over a leased one, and is not listed itself.
    drop(db.lease(&op("tx"), ten).await);
    db.advance(ten).await;
    let claim = started(db.once.begin(&mut conn, &op("tx")).await.unwrap());
    assert_eq!(unfinished().await, 0);
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    // A forgotten key leaves the list when it is reaped or begun again.
    let short = |key| op(key).policy(kept_for(ten));
    for key in ["reaped", "again", "again in a transaction"] {
        drop(db.lease(&short(key), ten).await);
    }
    assert_eq!(unfinished().await, 3);
    db.execute("update {}.unfinished set tries = 7").await;
    db.advance(ten).await;
    drop(db.lease(&short("again"), MINUTE.min(ten)).await);
    assert_eq!(db.ask::<i32>("select tries from {}.unfinished where key = 'again'").await, 0);
    drop(started(db.once.begin(&mut conn, &short("again in a transaction")).await.unwrap()));
    assert_eq!(unfinished().await, 2);
    assert_eq!(db.once.reap_once(&mut conn, 100).await.unwrap().deleted, 1);
    let left: String = db.ask("select string_agg(key, ' ') from {}.unfinished").await;
    assert_eq!(left, "again");
}

#[tokio::test]
async fn the_pause_grows_from_try_to_try() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    abandon(&db, ["k".to_owned()]).await;
    let mut conn = db.conn().await;
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let pick =
            "select cardinality(keys)::bigint from {}._pick_abandoned('test/%', 10, 1000, 6000)";
        let picked: i64 = sqlx::query_scalar(db.sql(pick)).fetch_one(&mut conn).await.unwrap();
        assert_eq!(picked, 1);
        let picked: i64 = sqlx::query_scalar(db.sql(pick)).fetch_one(&mut conn).await.unwrap();
        assert_eq!(picked, 0, "it is put off");
        let pause: i32 =
            db.ask("select extract(epoch from try_at - {}._clock())::int from {}.unfinished").await;
        db.advance(Duration::from_secs(pause.unsigned_abs().into())).await;
        pauses.push(pause);
    }
    assert_eq!(pauses, [1, 2, 4, 6, 6]);
}

#[tokio::test]
async fn only_the_scopes_asked_for_are_picked() {
    let db = TestDb::new().await;
    let scopes = ["acme/orders.checkout", "zeta/orders.checkout", "acme/orders_checkout", "50%"];
    for scope in scopes {
        let op = Operation::new(scope, "k").unwrap();
        drop(db.lease(&op, Duration::from_millis(1)).await);
    }
    db.until("select bool_and(lease_expires_at < {}._clock()) from {}.idempotency_keys").await;
    for (pattern, wanted) in [
        ("%/orders.checkout", "acme/orders.checkout zeta/orders.checkout"),
        ("acme/orders\\_checkout", "acme/orders_checkout"),
        ("50\\%", "50%"),
        ("orders", ""),
    ] {
        let sql = "select array_to_string(array(select unnest(scopes) order by 1), ' ') from {}._pick_abandoned($1, 100, 5000, 3600000)";
        let picked: String = sqlx::query_scalar(db.sql(sql))
            .bind(pattern)
            .fetch_one(&mut db.conn().await)
            .await
            .unwrap();
        assert_eq!(picked, wanted, "{pattern}");
    }
}

#[tokio::test]
async fn bad_patterns_and_arguments_are_refused() {
    let db = TestDb::new().await;
    for (scopes, said) in [
        ("", "scopes is empty; it takes 1 to 255 bytes"),
        ("  ", "scopes is blank"),
        ("a\\", "scopes ends with a backslash that makes nothing literal"),
    ] {
        let error = Recovery::new(&db.once, scopes).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidInput, said));
    }
    assert!(Recovery::new(&db.once, "a\\\\").is_ok());
    for (arguments, said) in [
        ("''", "scopes is empty; it takes 1 to 255 bytes"),
        ("'%', 0", "count_max is 0; it takes 1 to 1000"),
        ("'%', 1, 0", "first_pause_ms is 0; it takes 1 to 86400000"),
        ("'%', 1, 10, 9", "longest_pause_ms is 9; it takes 10 to 86400000"),
    ] {
        let sql = format!("call {}.pick_abandoned({arguments})", db.schema);
        let error =
            sqlx::query(AssertSqlSafe(sql)).execute(&mut db.conn().await).await.unwrap_err();
        let error = error.into_database_error().unwrap();
        assert_eq!((error.code().as_deref(), error.message()), (Some("IK001"), said));
    }
}

#[tokio::test]
async fn only_unfinished_keys_are_read() {
    let db = TestDb::new().await;
    db.plant_overdue(20_000, 1).await;
    db.execute("update {}.idempotency_keys set expires_at = {}._clock() + interval '1 day'").await;
    abandon(&db, (0..200).map(|n| format!("k{n}"))).await;
    for analyze in [false, true] {
        if analyze {
            db.execute("analyze {}.idempotency_keys, {}.unfinished").await;
        }
        let mut tx = db.pool.begin().await.unwrap();
        assert_eq!(db.once.abandoned(&mut tx, 1000).await.unwrap().len(), 200);
        let pick =
            db.sql("select cardinality(keys) from {}._pick_abandoned('test/%', 3, 5000, 3600000)");
        assert_eq!(sqlx::query_scalar::<_, i32>(pick).fetch_one(&mut *tx).await.unwrap(), 3);
        let read =
            db.sql("select pg_stat_get_xact_tuples_returned('{}.idempotency_keys'::regclass)");
        let read: i64 = sqlx::query_scalar(read).fetch_one(&mut *tx).await.unwrap();
        assert_eq!(read, 0, "rows were read one after the other; analyzed: {analyze}");
        // Of many due keys, looks up only the picked ones.
        let looked_up = async |tx: &mut PgConnection| {
            let sql =
                db.sql("select pg_stat_get_xact_tuples_fetched('{}.idempotency_keys'::regclass)");
            sqlx::query_scalar::<_, i64>(sql).fetch_one(tx).await.unwrap()
        };
        let before = looked_up(&mut tx).await;
        let pick =
            db.sql("select cardinality(keys) from {}._pick_abandoned('test/%', 2, 5000, 3600000)");
        assert_eq!(sqlx::query_scalar::<_, i32>(pick).fetch_one(&mut *tx).await.unwrap(), 2);
        let two = looked_up(&mut tx).await - before;
        assert!(two <= 2, "{two} were looked up for two; analyzed: {analyze}");
        tx.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn a_row_that_somebody_has_locked_is_passed_over() {
    let db = TestDb::new().await;
    abandon(&db, ["first", "second"].map(str::to_owned)).await;
    let mut other = db.pool.begin().await.unwrap();
    let lock = db.sql("select from {}.unfinished where key = 'first' for update");
    sqlx::query(lock).execute(&mut *other).await.unwrap();
    let pick = "select keys[1] from {}._pick_abandoned('test/%', 1, 5000, 3600000)";
    let picked = tokio::time::timeout(PATIENCE, db.ask::<String>(pick));
    assert_eq!(picked.await.expect("it does not wait"), "second");
}

#[tokio::test]
async fn what_has_failed_is_due_at_once_unless_a_recovery_has_put_it_off() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let due = "select try_at <= {}._clock() from {}.unfinished";
    let fails = async || {
        let hour = Lease::new(60 * MINUTE).unwrap();
        let op = op("k");
        let run = db.once.run_leased(&db.pool, &op, hour, async |_: &mut Work| {
            Err::<(), _>(Failure::from("no"))
        });
        run.await.unwrap_err();
    };
    fails().await;
    assert!(db.ask::<bool>(due).await);
    assert_eq!(
        db.ask::<i64>(
            "select cardinality(keys)::bigint from {}._pick_abandoned('test/%', 1, 5000, 3600000)"
        )
        .await,
        1
    );
    fails().await;
    assert!(!db.ask::<bool>(due).await, "its pause is not over");
    db.advance(Duration::from_secs(5)).await;
    assert!(db.ask::<bool>(due).await);
}

// A malformed body can make a handler release its claim. Such claims must not fill the operators' list.
#[tokio::test]
async fn a_claim_that_is_given_back_with_nothing_done_is_not_abandoned() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    let listed = async || db.ask::<i64>("select count(*) from {}.unfinished").await;
    let through = [
        "call {}.release_leased('test/scope', $1, $2)",
        "call {}.release_leased('test/scope', $1, $2, 'a malformed body')",
        "select {}.release('test/scope', $1, $2)",
    ];
    for (round, release) in through.into_iter().enumerate() {
        let key = format!("sql {round}");
        let begin = "call {}.begin_leased('test/scope', $1, $2, 60000)";
        for attempt in 1..=3 {
            let token = sqlx::types::Uuid::new_v4();
            sqlx::query(db.sql(begin)).bind(&key).bind(token).execute(&mut conn).await.unwrap();
            assert_eq!(listed().await, 1, "{release}");
            if attempt == 2 {
                db.advance(2 * MINUTE).await; // lapsed: abandoned until the next caller takes over
                assert_eq!(abandoned(&db).await, [key.as_str()]);
                continue;
            }
            sqlx::query(db.sql(release)).bind(&key).bind(token).execute(&mut conn).await.unwrap();
            assert_eq!((listed().await, abandoned(&db).await), (0, vec![]), "{release}");
            db.advance(2 * MINUTE).await;
            assert_eq!(abandoned(&db).await, [""; 0], "{release}");
        }
    }
    let claim = db.lease(&op("rust"), MINUTE).await;
    claim.release_leased(&db.pool).await.unwrap();
    db.lease(&op("rust"), MINUTE).await.release(&mut conn).await.unwrap();
    db.advance(2 * MINUTE).await;
    assert_eq!((listed().await, abandoned(&db).await), (0, vec![]));
    // With a finished step, a retry continues; after an operator's release, so does a recovery.
    let claim = db.lease(&op("stepped"), MINUTE).await;
    let step = "call {}.commit_step('test/scope', 'stepped', $1, 'charge', null, '1')";
    sqlx::query(db.sql(step)).bind(claim.token()).execute(&mut conn).await.unwrap();
    claim.release_leased(&db.pool).await.unwrap();
    let claim = db.lease(&op("revoked"), MINUTE).await;
    let seen = db.seen(&op("revoked")).await;
    drop(claim);
    let revoked = op("revoked");
    db.once.revoke_claim(&mut conn, revoked.scope(), revoked.key(), &seen).await.unwrap();
    let mut found = abandoned(&db).await;
    found.sort();
    assert_eq!(found, ["revoked", "stepped"]);
}
