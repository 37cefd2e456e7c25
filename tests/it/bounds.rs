//! Waits of verbs, procedures and the inbox: each is bounded and ends with an answer.

use std::time::{Duration, Instant};

use pgonce::{Begin, Error, Inbox, Operation, Policy, Received, Verdict};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};

use crate::support::db::{PATIENCE, TestDb, effect, kept_for, lasting, started, waits, word};

const LONG: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
/// No test waits this long on purpose; only a slow machine comes close.
const SOON: Duration = Duration::from_secs(10);

fn op() -> Operation {
    Operation::new("orders", "k").unwrap()
}

fn inbox(db: &TestDb, wait: Duration) -> Inbox {
    Inbox::new(&db.once, "orders").unwrap().policy(Policy::inbox().wait(wait).unwrap()).unwrap()
}

const BLOCKERS: [&str; 6] = [
    "an open begin",
    "an open receive",
    "an open pick_abandoned",
    "an open take_over_claim",
    "a lock on its row",
    "an open reap",
];

/// Blocks the key in a transaction that stays open on the returned connection.
async fn block(db: &TestDb, blocker: &str) -> PgConnection {
    let mut conn = db.conn().await;
    let statement = match blocker {
        "an open begin" | "an open receive" => String::new(),
        "an open reap" => {
            db.complete(&op().policy(kept_for(MINUTE)), "").await;
            db.advance(MINUTE).await;
            "select _reap_batch(10, null)".to_owned()
        }
        _ => {
            drop(db.lease(&op(), MINUTE).await);
            db.advance(MINUTE).await;
            match blocker {
                "an open pick_abandoned" => "select _pick_abandoned('%', 1, 1000, 1000)".to_owned(),
                "a lock on its row" => "select from idempotency_keys for update".to_owned(),
                _ => "select take_over_claim(scope, key, seen) from keys".to_owned(),
            }
        }
    };
    sqlx::raw_sql(db.sql("begin; set local search_path = {}")).execute(&mut conn).await.unwrap();
    match blocker {
        "an open begin" => drop(started(db.once.begin(&mut conn, &op()).await.unwrap())),
        "an open receive" => drop(inbox(db, Duration::ZERO).receive(&mut conn, "k").await.unwrap()),
        _ => drop(sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut conn).await.unwrap()),
    }
    conn
}

/// Begins the key in one way, on a connection with these settings. Returns the answer.
async fn ask(db: &TestDb, way: &str, wait: Duration, settings: [(&str, &str); 2]) -> String {
    let options = db.options.clone().options(settings);
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let answer = match way {
        "begin_operation" | "receive" => {
            let mut tx = pool.begin().await.unwrap();
            let answer = match way {
                "receive" => match inbox(db, wait).receive(&mut tx, "k").await.unwrap() {
                    Received::New(_) => "started",
                    Received::InProgress => "in progress",
                    other => panic!("{other:?}"),
                },
                _ => word(&db.once.begin(&mut tx, &op().policy(waits(wait))).await.unwrap()),
            };
            // The caller's transaction continues with its settings.
            for (name, value) in settings {
                let now: String = sqlx::query_scalar("select current_setting($1)")
                    .bind(name)
                    .fetch_one(&mut *tx)
                    .await
                    .unwrap();
                assert_eq!(now, value, "{name}");
            }
            tx.rollback().await.unwrap();
            answer
        }
        "begin_leased" => word(
            &db.once.begin_leased(&pool, &op().policy(waits(wait)), lasting(MINUTE)).await.unwrap(),
        ),
        _ => match inbox(db, wait).failed(&pool, "k", "no").await.unwrap() {
            Verdict::Retry(_) => "in progress",
            other => panic!("{other:?}"),
        },
    };
    pool.close().await;
    answer.to_owned()
}

const WAYS: [&str; 4] = ["begin_operation", "begin_leased", "receive", "count_attempt"];

#[tokio::test]
async fn without_a_wait_every_way_in_answers_soon_whatever_stands_in_the_way() {
    for blocker in BLOCKERS {
        for way in WAYS {
            let db = TestDb::new().await;
            db.stop_clock().await;
            let blocking = block(&db, blocker).await;
            // The caller's lock_timeout neither raises an error nor delays the answer.
            for lock_timeout in ["0", "1ms", "1h"] {
                let settings = [("lock_timeout", lock_timeout), ("statement_timeout", "0")];
                let asking = ask(&db, way, Duration::ZERO, settings);
                let answer = tokio::time::timeout(PATIENCE, asking).await;
                let answer = answer.unwrap_or_else(|_| panic!("{way} hangs behind {blocker}"));
                // A leased claim stays in `unfinished`, whose rows are locked here.
                let free = (blocker, way) == ("an open pick_abandoned", "begin_leased");
                assert_eq!(
                    answer,
                    if free { "started" } else { "in progress" },
                    "{way}, {blocker}"
                );
                if free {
                    break;
                }
            }
            drop(blocking);
        }
    }
}

#[tokio::test]
async fn a_statement_timeout_that_is_shorter_than_the_wait_ends_it_with_an_answer() {
    for blocker in ["an open begin", "an open receive", "a lock on its row"] {
        for way in WAYS {
            for statement_timeout in ["300ms", "1s"] {
                let db = TestDb::new().await;
                db.stop_clock().await;
                let blocking = block(&db, blocker).await;
                let settings = [("lock_timeout", "0"), ("statement_timeout", statement_timeout)];
                let answer = ask(&db, way, LONG, settings).await;
                assert_eq!(answer, "in progress", "{way}, {blocker}, {statement_timeout}");
                drop(blocking);
            }
        }
    }
}

#[tokio::test]
async fn a_cancel_by_a_person_is_not_taken_for_the_end_of_a_wait() {
    let db = TestDb::new().await;
    let mut blocking = db.conn().await;
    sqlx::raw_sql("begin").execute(&mut blocking).await.unwrap();
    drop(started(db.once.begin(&mut blocking, &op()).await.unwrap()));
    let waiting = async {
        let mut conn = db.conn().await;
        sqlx::raw_sql("set statement_timeout = '1h'").execute(&mut conn).await.unwrap();
        db.once.begin(&mut conn, &op().policy(waits(LONG))).await.unwrap_err()
    };
    let cancel = async {
        db.until_waiting(1).await;
        db.execute(
            "select pg_cancel_backend(pid) from pg_stat_activity
              where application_name = '{}' and wait_event_type = 'Lock'",
        )
        .await;
    };
    let (error, ()) = tokio::join!(waiting, cancel);
    assert_eq!(error.sqlstate().as_deref(), Some("57014"));
}

#[tokio::test]
async fn a_transaction_that_has_written_is_told_at_once_and_does_not_deadlock() {
    // Long after the answer, but well before MINUTE: a receive always waits some milliseconds, and the holder's
    // deadlock check must not run in that time.
    let options = [("deadlock_timeout", "5s")];
    for way in ["begin_operation", "receive"] {
        let db = TestDb::new().await;
        db.execute("create table {}.stock as select 7 as amount").await;
        let pool = PgPool::connect_lazy_with(db.options.clone().options(options));
        let sell = "update {}.stock set amount = amount - 1";
        // One has the key, the other the business row, and each wants the other's.
        let mut holder = pool.begin().await.unwrap();
        match way {
            "receive" => drop(inbox(&db, MINUTE).receive(&mut holder, "k").await.unwrap()),
            _ => drop(started(db.once.begin(&mut holder, &op()).await.unwrap())),
        }
        let mut duplicate = pool.begin().await.unwrap();
        sqlx::query(db.sql(sell)).execute(&mut *duplicate).await.unwrap();
        let sells = async {
            sqlx::query(db.sql(sell)).execute(&mut *holder).await.unwrap();
            holder.commit().await.unwrap();
        };
        let asks = async {
            db.until_waiting(1).await;
            let began = Instant::now();
            let answer = match way {
                "receive" => match inbox(&db, MINUTE).receive(&mut duplicate, "k").await.unwrap() {
                    Received::InProgress => "in progress",
                    other => panic!("{other:?}"),
                },
                _ => {
                    word(&db.once.begin(&mut duplicate, &op().policy(waits(MINUTE))).await.unwrap())
                }
            };
            assert!(began.elapsed() < SOON);
            duplicate.rollback().await.unwrap();
            answer
        };
        let ((), answer) = tokio::join!(sells, asks);
        assert_eq!(answer, "in progress", "{way}");
        assert_eq!(db.ask::<i32>("select amount from {}.stock").await, 6);
    }
}

#[tokio::test]
async fn what_ends_a_claim_waits_for_as_long_as_its_caller_allows() {
    let db = TestDb::new().await;
    // Blocked by a lock on the key's row, then on its row in `unfinished`.
    for table in ["idempotency_keys", "unfinished"] {
        for call in ["complete", "fail", "release", "lapse"] {
            let key = format!("{table} {call}");
            let op = Operation::new("orders", key.as_str()).unwrap();
            let claim = db.lease(&op, MINUTE).await;
            let token = format!("select token from {{}}.idempotency_keys where key = '{key}'");
            let token: sqlx::types::Uuid = db.ask(&token).await;
            drop(claim);
            let mut blocking = db.conn().await;
            let lock = format!("begin; select from {{}}.{table} where key = '{key}' for update");
            sqlx::raw_sql(db.sql(&lock)).execute(&mut blocking).await.unwrap();
            let call = match call {
                "lapse" => "_lapse('orders', $1, $2, null, true, true)".to_owned(),
                _ => format!("{call}('orders', $1, $2)"),
            };
            for settings in [
                [("lock_timeout", "30ms"), ("statement_timeout", "0")],
                [("lock_timeout", "0"), ("statement_timeout", "300ms")],
                [("lock_timeout", "0"), ("statement_timeout", "0")],
            ] {
                let options = db.options.clone().options(settings);
                let mut conn = PgConnection::connect_with(&options).await.unwrap();
                let ends = sqlx::query(db.sql(&format!("select {{}}.{call}")))
                    .bind(&key)
                    .bind(token)
                    .execute(&mut conn);
                let ended = tokio::time::timeout(PATIENCE, ends).await;
                let error =
                    ended.unwrap_or_else(|_| panic!("{call} hangs, {settings:?}")).unwrap_err();
                let sqlstate = error.as_database_error().unwrap().code().unwrap().into_owned();
                assert_eq!(sqlstate, "55P03", "{call}, {table}, {settings:?}");
            }
        }
    }
}

#[tokio::test]
async fn operators_actions_do_not_wait() {
    let minute = MINUTE;
    for blocker in ["an open begin", "an open pick_abandoned", "a lock on its row"] {
        for action in ["take_over_claim", "revoke_claim", "redrive_message"] {
            let db = TestDb::new().await;
            db.stop_clock().await;
            if blocker == "an open begin" {
                drop(db.lease(&op(), minute).await);
                db.advance(minute).await;
            }
            let blocking = block(&db, blocker).await;
            let call =
                db.sql(&format!("select {{}}.{action}(scope, key, seen)::text from {{}}.keys"));
            let mut conn = db.conn().await;
            let began = Instant::now();
            let acts = tokio::time::timeout(PATIENCE, sqlx::query(call).execute(&mut conn)).await;
            let error = acts.expect("no hanging").unwrap_err().into_database_error().unwrap();
            assert_eq!(error.message(), "the key is being worked on", "{action}, {blocker}");
            assert!(began.elapsed() < SOON / 4, "{action}, {blocker}");
            drop(blocking);
        }
    }
}

/// Transaction ids of this session: one for its transaction, one per kept subtransaction that has written.
async fn ids(conn: &mut PgConnection) -> i64 {
    let sql = "select count(*) from pg_locks where locktype = 'transactionid' and pid = pg_backend_pid() and granted";
    sqlx::query_scalar(sql).fetch_one(conn).await.unwrap()
}

#[tokio::test]
async fn a_thousand_messages_of_which_one_is_blocked_take_few_subtransactions() {
    let db = TestDb::new().await;
    let messages: Vec<_> = (0..1000).map(|n| format!("m{n:03}")).collect();
    let mut blocking = db.conn().await;
    sqlx::raw_sql("begin").execute(&mut blocking).await.unwrap();
    let _ = inbox(&db, MINUTE).receive(&mut blocking, "m617").await.unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let received = inbox(&db, Duration::ZERO).receive_many(&mut tx, &messages).await.unwrap();
    for (message, received) in messages.iter().zip(&received) {
        match received {
            Received::InProgress => assert_eq!(message, "m617"),
            received => assert!(matches!(received, Received::New(_)), "{message}: {received:?}"),
        }
    }
    let ids = ids(&mut tx).await;
    assert!(ids <= 12, "{ids}"); // about log2(1000), plus the transaction's own
}

#[tokio::test]
async fn a_batch_that_is_blocked_as_a_whole_keeps_to_the_bound() {
    let db = TestDb::new().await;
    let messages: Vec<_> = (0..1000).map(|n| format!("m{n:03}")).collect();
    for (known, answer) in [(false, "new"), (true, "known")] {
        if known {
            // Every message has a row, and every row is locked.
            let fails = "select count(r) from unnest($1::text[]) m,
                         lateral {}._count_attempt('orders', m, 1000000, 0, null, 'no') r";
            sqlx::query(db.sql(fails)).bind(&messages).execute(&mut db.conn().await).await.unwrap();
        }
        let mut blocking = db.conn().await;
        sqlx::raw_sql("begin").execute(&mut blocking).await.unwrap();
        let _ = inbox(&db, MINUTE).receive_many(&mut blocking, &messages).await.unwrap();
        let mut tx = db.pool.begin().await.unwrap();
        let began = Instant::now();
        let inbox = inbox(&db, Duration::from_millis(10));
        let received = inbox.receive_many(&mut tx, &messages).await.unwrap();
        assert!(received.iter().all(|received| matches!(received, Received::InProgress)));
        assert!(began.elapsed() < SOON / 2, "{answer}: {:?}", began.elapsed());
        sqlx::raw_sql("rollback").execute(&mut blocking).await.unwrap();
    }
}

#[tokio::test]
async fn overlapping_batches_that_are_blocked_do_not_deadlock() {
    let db = TestDb::new().await;
    let options = db.options.clone().options([("deadlock_timeout", "5ms")]);
    for wait in [Duration::ZERO, Duration::from_millis(100)] {
        let mut blocking = db.conn().await;
        sqlx::raw_sql("begin").execute(&mut blocking).await.unwrap();
        let blocked: Vec<_> = (0..200).step_by(37).map(|n| format!("{wait:?} {n:03}")).collect();
        let _ = inbox(&db, MINUTE).receive_many(&mut blocking, &blocked).await.unwrap();
        let batch = async |from: usize| {
            let mut conn = PgConnection::connect_with(&options).await.unwrap();
            let mut tx = conn.begin().await.unwrap();
            let mut ids: Vec<_> = (from..from + 150).map(|n| format!("{wait:?} {n:03}")).collect();
            fastrand::shuffle(&mut ids);
            let received = inbox(&db, wait).receive_many(&mut tx, &ids).await?;
            let new =
                received.iter().filter(|received| matches!(received, Received::New(_))).count();
            tx.commit().await.unwrap();
            Ok::<_, Error>(new)
        };
        let (one, other, third) = tokio::join!(batch(0), batch(50), batch(25));
        let new = one.unwrap() + other.unwrap() + third.unwrap();
        assert!(new > 0 && new <= 200 - blocked.len(), "{new}");
        drop(blocking);
    }
}

#[tokio::test]
async fn a_locking_replay_ends_its_wait_before_the_statement_ends() {
    let db = TestDb::new().await;
    db.complete(&op(), "done").await;
    let blocking = db.conn().await;
    let mut blocking = blocking;
    sqlx::raw_sql(db.sql("begin; select from {}.idempotency_keys for update"))
        .execute(&mut blocking)
        .await
        .unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::raw_sql("set local statement_timeout = '300ms'").execute(&mut *tx).await.unwrap();
    let answer = db.once.begin(&mut tx, &op().lock_replay().policy(waits(LONG))).await.unwrap();
    assert!(matches!(answer, Begin::InProgress(_)));
    drop(blocking);

    let _ = effect(&mut tx, &db.schema, "alive").await.unwrap();
}
