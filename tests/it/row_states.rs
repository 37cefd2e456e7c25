//! For every state of a row, begin, the reaper, the counts, the views and the operators' functions agree.

use std::collections::HashMap;
use std::time::Duration;

use pgonce::{ErrorKind, Filter, Inbox, Operation, Received, RunError, Status};
use sqlx::{Connection, PgConnection};

use crate::support::db::{TestDb, lasting};

/// Every state of a row: status, token, lease, retention, steps, and attempts that an operator forgave.
async fn plant_every_state(db: &TestDb) {
    db.execute(
        "insert into {}.idempotency_keys
           (created_at, status, token, lease_expires_at, expires_at, steps, attempts_uncounted, leased, attempt, scope, key)
         select at - interval '2 days', status, token::uuid, at + lease::interval, at + expires::interval, steps,
                uncounted, true, 3, 'test/scope',
                concat_ws(' ', status, left(token, 1), 'lease', lease, 'expires', expires, 'steps', steps, uncounted)
           from (values (1::smallint), (2::smallint), (3::smallint)) s(status),
                (values (null), ('11111111-1111-1111-1111-111111111111')) t(token),
                (values (null), ('-1 h'), ('1 h')) l(lease),
                (values ('-1 min'), ('1 day')) e(expires),
                (values (null), (2)) n(steps),
                (values (null), (3)) u(uncounted),
                lateral (select {}._clock() as at) c
          -- In progress it has a lease, and a released one has ended. Steps are of leased keys, which have leases.
          where (status <> 1 or lease is not null and (token is not null or lease = '-1 h'));
         insert into {}.unfinished (try_at, scope, key)
         select {}._clock(), scope, key from {}.idempotency_keys where status = 1",
    )
    .await;
}

/// What one function returns for every row, each in a transaction that is rolled back.
async fn said(db: &TestDb, call: &str) -> HashMap<String, String> {
    let mut conn = db.conn().await;
    let keys: Vec<(String, String)> =
        sqlx::query_as(db.sql("select key, seen from {}.keys")).fetch_all(&mut conn).await.unwrap();
    let mut said = HashMap::new();
    for (key, seen) in keys {
        let mut tx = conn.begin().await.unwrap();
        let asked = sqlx::query_scalar::<_, Option<String>>(db.sql(call)).bind(&key).bind(&seen);
        let answer = match asked.fetch_one(&mut *tx).await {
            Ok(answer) => answer.unwrap_or_default(),
            Err(error) => error.as_database_error().expect("an answer").message().to_owned(),
        };
        tx.rollback().await.unwrap();
        said.insert(key, answer);
    }
    said
}

#[tokio::test]
async fn begin_the_reaper_the_counts_and_the_views_agree_on_every_state() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    plant_every_state(&db).await;
    let begin = said(
        &db,
        "select concat(answer, case when answer = 'started' then ' ' || attempt || ' ' || recovered end)
           from {}.begin_operation('test/scope', $1) where $2 is not null",
    )
    .await;
    let redrive = said(&db, "select {}.redrive_message('test/scope', $1, $2)::text").await;
    let take_over = said(&db, "select 'taken' from {}.take_over_claim('test/scope', $1, $2)").await;
    let message =
        said(&db, "select status from {}.message_status('test/scope', $1) where $2 is not null")
            .await;
    let polled = said(
        &db,
        "select coalesce((select status from {}.operation_status('test/scope', $1)), 'unknown') where $2 is not null",
    )
    .await;
    let view =
        said(&db, "select coalesce(claim, status) from {}.keys where key = $1 and $2 is not null")
            .await;
    let abandoned = said(
        &db,
        "select (exists (select from {}.abandoned a where a.key = $1))::text where $2 is not null",
    )
    .await;
    let (overdue, live, backlog): (i64, i64, i64) = sqlx::query_as(
        db.sql("select s.overdue, s.live, b.backlog from {}.table_stats() s, {}.reap_backlog() b"),
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    let mut conn = db.conn().await;
    let reaped = db.once.reap_once(&mut conn, 1000).await.unwrap().deleted;
    let left: Vec<String> =
        sqlx::query_scalar(db.sql("select key from {}.keys")).fetch_all(&mut conn).await.unwrap();

    assert!(begin.len() > 50, "{}", begin.len());
    let mut forgotten = 0;
    for (key, answer) in &begin {
        let is_new = answer == "started 1 false";
        forgotten += u64::from(is_new);
        let told = format!(
            "{key}: begin {answer}, redrive {:?}, take over {:?}, message {}, polled {}, view {}, abandoned {}",
            redrive[key], take_over[key], message[key], polled[key], view[key], abandoned[key]
        );
        assert_eq!(
            is_new,
            !left.contains(key),
            "the reaper deletes what begin takes for new; {told}"
        );
        assert_eq!(is_new, redrive[key].contains("forgotten"), "{told}");
        assert_eq!(is_new, polled[key] == "unknown", "{told}");
        let is_live = answer == "in_progress";
        assert_eq!(is_live, view[key] == "live", "{told}");
        assert_eq!(is_live, redrive[key].contains("being handled"), "{told}");
        assert_eq!(is_live, take_over[key].contains("live"), "{told}");
        assert_eq!(is_live, message[key] == "in_progress", "{told}");
        let is_done = answer == "replay";
        assert_eq!(is_done, ["completed", "failed"].contains(&message[key].as_str()), "{told}");
        assert_eq!(
            is_done,
            !is_new && ["completed", "failed"].contains(&view[key].as_str()),
            "{told}"
        );
        let runs_again = answer.starts_with("started") && !is_new;
        assert_eq!(runs_again, take_over[key] == "taken", "{told}");
        assert_eq!(runs_again, message[key] == "waiting", "{told}");
        if is_new {
            assert_eq!(message[key], "new", "{told}");
        }
        // A key that can continue is abandoned until then. A key released with nothing done is not.
        let goes_on = runs_again && (answer == "started 4 true" || key.ends_with("3"));
        assert_eq!(goes_on, abandoned[key] == "true", "{told}");
    }
    assert!(forgotten > 10, "{forgotten}");
    assert_eq!(
        (overdue.unsigned_abs(), backlog.unsigned_abs(), reaped),
        (forgotten, forgotten, forgotten)
    );
    let live_rows = view.values().filter(|word| *word == "live").count();
    assert_eq!(usize::try_from(live).unwrap(), live_rows);
}

/// What pgonce never writes, in rows in progress and finished rows.
const CORRUPT: [(&str, &str); 11] = [
    ("status", "status = 9"),
    ("status zero", "status = 0"),
    ("expires never", "expires_at = 'infinity'"),
    ("expired ever", "expires_at = '-infinity'"),
    ("lease never ends", "lease_expires_at = 'infinity'"),
    ("lease never was", "lease_expires_at = '-infinity'"),
    ("no lease", "lease_expires_at = null"),
    ("done, expires never", "status = 2, expires_at = 'infinity'"),
    ("done, expired ever", "status = 3, expires_at = '-infinity'"),
    ("done, lease never ends", "status = 2, lease_expires_at = 'infinity'"),
    (
        "overdue, lease never was",
        "expires_at = {}._clock() - interval '1 s', lease_expires_at = '-infinity'",
    ),
];

#[tokio::test]
async fn a_corrupt_row_is_neither_replayed_nor_run_nor_deleted_nor_counted() {
    let db = TestDb::new().await;
    let (scope, minute) = ("orders", Duration::from_secs(60));
    for (key, change) in CORRUPT {
        drop(db.lease(&Operation::new(scope, key).unwrap(), minute).await);
        let change = format!(
            "update {{}}.idempotency_keys set {change} where key = '{key}';
             update {{}}.unfinished set try_at = {{}}._clock() - interval '1 h'"
        );
        db.execute(&change).await;
    }
    let inbox = Inbox::new(&db.once, scope).unwrap();
    let mut conn = db.conn().await;
    for (key, _) in CORRUPT {
        let op = &Operation::new(scope, key).unwrap();
        let error = db.once.begin(&mut conn, op).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{key}: begin");
        let error = db.once.begin_leased(&db.pool, op, lasting(minute)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{key}: begin_leased");
        for op in [op.clone(), op.clone().lock_replay()] {
            let ran = db
                .once
                .run(&db.pool, &op, async |_: &mut PgConnection| Ok::<u32, pgonce::Failure>(1));
            match ran.await.unwrap_err() {
                RunError::Protocol(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{key}: run")
                }
                other => panic!("{key}: run: {other:?}"),
            }
        }
        let received = inbox.receive(&mut conn, key).await.unwrap();
        assert!(matches!(received, Received::Dead(_)), "{key}: {received:?}");
    }
    for call in [
        "select status from {}.message_status('orders', $1) where $2 is not null",
        "select 'taken' from {}.take_over_claim('orders', $1, $2)",
        "select 'revoked' from {}.revoke_claim('orders', $1, $2)",
        "select 'redriven' from {}.redrive_message('orders', $1, $2)",
    ] {
        for (key, answer) in said(&db, call).await {
            assert!(answer.contains("never writes"), "{key}: {call}: {answer}");
        }
    }
    let counts = "select s.overdue + b.backlog from {}.table_stats() s, {}.reap_backlog() b";
    assert_eq!(db.ask::<i64>(counts).await, 0);
    assert_eq!(db.once.reap_once(&mut conn, 1000).await.unwrap().deleted, 0);
    // Operators see each corrupt row, in the list beside sound rows, and by its key.
    let list = db.once.list(&mut conn, &Filter::default(), 100).await.unwrap();
    let corrupt = list.iter().filter(|listed| listed.record.status == Status::Corrupt);
    let looks_sound = ["no lease"]; // the view shows the end of the retention instead
    assert_eq!(corrupt.count(), CORRUPT.len() - looks_sound.len());
    for (key, _) in CORRUPT {
        let op = Operation::new(scope, key).unwrap();
        match db.once.status(&mut conn, op.scope(), op.key()).await {
            Ok(progress) => assert!(progress.is_some(), "{key}: status"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{key}: status"),
        }
    }
    // A recovery picks none of them, because they would keep it from keys that can run.
    assert!(db.once.abandoned(&mut conn, 100).await.unwrap().is_empty());
    let picked = "select cardinality(keys)::bigint from {}._pick_abandoned('%', 100, 1000, 1000)";
    assert_eq!(db.ask::<i64>(picked).await, 0);
    let left = i64::try_from(CORRUPT.len()).unwrap();
    assert_eq!(db.ask::<i64>("select count(*) from {}.idempotency_keys").await, left);
}
