//! `run` with a new key: its row is written once, just before the COMMIT.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{Begin, ErrorKind, Failure, Fingerprint, Operation, Response, RunError};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::crash::{nothing_is_stuck, pool_of_one};
use crate::support::db::{TestDb, effect, kept_for, op, server, started, word};
use crate::support::proxy::Proxy;

// The first key prepares the statements.
#[tokio::test]
async fn a_call_sends_what_its_page_says() {
    for (optimistic, new) in
        [(false, "begin execute execute execute COMMIT"), (true, "begin execute execute COMMIT")]
    {
        let db = TestDb::new().await;
        let proxy = Proxy::start(&db, None);
        let pool = pool_of_one(proxy.options());
        let run = async |key: &str, optimistic: bool| {
            let op = if optimistic { op(key).optimistic() } else { op(key) };
            let work = async |tx: &mut PgConnection| effect(tx, &db.schema, key).await;
            db.once.run(&pool, &op, work).await.unwrap()
        };
        run("prepares", optimistic).await;
        run("prepares", false).await; // prepares a replay's statements too
        for (sent, replayed) in [(new, false), ("begin execute", true)] {
            let before = proxy.requests().len();
            assert_eq!(run("key", optimistic && !replayed).await.is_replay(), replayed);
            let mut requests = proxy.requests().split_off(before);
            requests.retain(|request| !request.is_empty() && request != "ROLLBACK"); // the pool sends both
            let words = requests.iter().map(|r| r.split([' ', ';']).next().unwrap());
            assert_eq!(words.collect::<Vec<_>>().join(" "), sent);
            assert_eq!(requests[0], "begin deferrable");
            assert!(!requests.concat().contains("key"), "no value is in a text: {requests:?}");
        }
        // The table has no other writes, so this is its second row version.
        assert_eq!(
            db.ask::<String>("select max(ctid)::text from {}.idempotency_keys").await,
            "(0,2)"
        );
        nothing_is_stuck(&db).await;
    }
}

// Every answer other than *started*, from a pool of one: a refused call must leave its connection clean.
#[tokio::test]
async fn whatever_begin_answers_the_connection_is_fit_for_the_next() {
    for optimistic in [false, true] {
        let db = TestDb::new().await;
        let pool = pool_of_one(db.options.clone());
        let pid = async || {
            sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&pool).await.unwrap()
        };
        let first = pid().await;
        let run = async |op: &Operation| {
            let op = if optimistic { op.clone().optimistic() } else { op.clone() };
            db.once.run(&pool, &op, async |tx| effect(tx, &db.schema, "one").await).await
        };
        let bound = op("k").fingerprint(Fingerprint::of_bytes("a"));
        assert!(!run(&bound).await.unwrap().is_replay());
        assert!(run(&bound).await.unwrap().is_replay());
        let other = op("k").fingerprint(Fingerprint::of_bytes("b"));
        assert!(matches!(run(&other).await, Err(RunError::Mismatch(_))));
        let live = db.lease(&op("live"), Duration::from_secs(60)).await;
        assert!(matches!(run(&op("live")).await, Err(RunError::InProgress(_))));
        live.release(&mut db.conn().await).await.unwrap();
        assert!(!run(&op("live")).await.unwrap().is_replay(), "a row that is written over");
        let mut holder = db.conn().await;
        let mut tx = holder.begin().await.unwrap();
        let open = db.once.begin(&mut tx, &op("open")).await.unwrap();
        assert_eq!(word(&open), "started");
        assert!(matches!(run(&op("open")).await, Err(RunError::InProgress(_))));
        drop(open);
        tx.rollback().await.unwrap();
        assert_eq!((pid().await, db.effects().await), (first, 2), "optimistic: {optimistic}");
        nothing_is_stuck(&db).await;
    }
}

#[tokio::test]
async fn while_the_work_runs_the_key_is_in_progress_for_others() {
    let db = TestDb::new().await;
    let work = async |tx: &mut sqlx::PgConnection| {
        let mut conn = db.conn().await;
        let mut other = conn.begin().await?;
        let begin = db.once.begin(&mut other, &op("k")).await.unwrap();
        assert_eq!(word(&begin), "in progress");
        other.rollback().await?;
        effect(tx, &db.schema, "k").await
    };
    db.once.run(&db.pool, &op("k"), work).await.unwrap();
    assert_eq!(db.effects().await, 1);
}

// A writer without a lock, such as `receive`. The primary key decides, and the work is rolled back.
#[tokio::test]
async fn a_row_written_past_the_lock_undoes_the_work() {
    let db = TestDb::new().await;
    for (optimistic, end) in
        [(false, "done"), (false, "kept"), (false, "fails"), (true, "done"), (true, "kept")]
    {
        let calls = AtomicU32::new(0);
        let key = format!("{optimistic} {end}");
        let insert = format!(
            "insert into {{}}.idempotency_keys (created_at, expires_at, lease_expires_at, completed_at, attempt,
               status, scope, key, response_body)
             values (now(), now() + interval '1 day', now() + interval '1 day', now(), 1, 2, '{}', '{key}', '7')",
            op("k").scope().as_str()
        );
        let work = async |tx: &mut PgConnection| {
            calls.fetch_add(1, Ordering::Relaxed);
            let id = effect(tx, &db.schema, &key).await?;
            db.execute(&insert).await;
            match end {
                "done" => Ok(id),
                "kept" => Err(Failure::keep(Response::bytes("declined"))),
                _ => Err(Failure::from("a duplicate")),
            }
        };
        let op = if optimistic { op(&key).optimistic() } else { op(&key) };
        let done = db.once.run(&db.pool, &op, work).await.unwrap();
        assert!(done.is_replay());
        assert_eq!((*done, calls.into_inner(), db.effects().await), (7, 1, 0), "{key}");
    }
    nothing_is_stuck(&db).await;
}

#[tokio::test]
async fn any_response_comes_back_as_it_was() {
    let db = TestDb::new().await;
    let fingerprint = Fingerprint::of_bytes("request");
    for length in [0, 1, 16_382, 16_383, 100_000] {
        let value: String = "a'\\\u{0}é$1;".chars().cycle().take(length).collect();
        let key = format!("it's $1 \\ {length}; --");
        let op = Operation::new("o'scope\\", key).unwrap().fingerprint(fingerprint);
        for replayed in [false, true] {
            let done = db
                .once
                .run(&db.pool, &op, async |_| Ok::<_, Failure>(value.clone()))
                .await
                .unwrap();
            assert_eq!((done.is_replay(), &*done), (replayed, &value), "{length}");
        }
        let other = op.fingerprint(Fingerprint::of_bytes("another"));
        let refused =
            db.once.run(&db.pool, &other, async |_| Ok::<_, Failure>(value.clone())).await;
        assert!(matches!(refused, Err(RunError::Mismatch(_))), "{length}");
    }
}

#[tokio::test]
async fn a_key_means_the_same_in_any_database_and_session() {
    for (encoding, standard_strings) in [("utf8", "on"), ("latin1", "off")] {
        let settings =
            [("standard_conforming_strings", standard_strings), ("backslash_quote", "off")];
        let options = server().await.connect_options();
        let create = format!(
            "create database {encoding}_keys encoding '{encoding}' locale 'C' template template0"
        );
        let mut conn = PgConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut conn).await.unwrap();
        let options = options.database(&format!("{encoding}_keys")).options(settings);
        let db = TestDb::create(&format!("{encoding}_keys"), options, 2).await;
        for key in ["it's $1 \\ '; --", "cl\u{e9}", "\\x41"] {
            for (op, replayed) in [(op(key).optimistic(), false), (op(key), true)] {
                let work = async |_: &mut PgConnection| Ok::<_, Failure>(key.to_owned());
                let done = db.once.run(&db.pool, &op, work).await.unwrap();
                assert_eq!(done.is_replay(), replayed, "{encoding} {key}");
                assert_eq!(done.into_inner(), key);
            }
        }
    }
}

#[tokio::test]
async fn the_retention_is_the_operations_own() {
    let db = TestDb::new().await;
    let op = op("k").policy(kept_for(Duration::from_secs(7200)));
    db.once.run(&db.pool, &op, async |_| Ok::<_, Failure>(7)).await.unwrap();
    let kept =
        "select extract(epoch from expires_at - created_at)::bigint from {}.idempotency_keys";
    assert_eq!(db.ask::<i64>(kept).await, 7200);
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    assert!(matches!(db.once.begin(&mut tx, &op).await.unwrap(), Begin::Replay(_)));
}

#[tokio::test]
async fn a_key_is_written_once_at_every_level() {
    for level in ["read uncommitted", "read committed", "repeatable read", "serializable"] {
        for optimistic in [false, true] {
            let db = TestDb::new().await;
            let options = db.options.clone().options([("default_transaction_isolation", level)]);
            let pool = pool_of_one(options);
            let op = if optimistic { op("k").optimistic() } else { op("k") };
            let run = async || {
                db.once.run(&pool, &op, async |tx| effect(tx, &db.schema, "k").await).await
            };
            assert!(!run().await.unwrap().is_replay());
            let written_once = "select token is null from {}.idempotency_keys";
            assert!(db.ask::<bool>(written_once).await, "{level}, optimistic: {optimistic}");
            assert!(run().await.unwrap().is_replay());
            assert_eq!(db.effects().await, 1);
        }
    }
}

#[tokio::test]
async fn where_nothing_can_be_written_the_work_is_not_begun() {
    let db = TestDb::new().await;
    let options = db.options.clone().options([("default_transaction_read_only", "on")]);
    let calls = AtomicU32::new(0);
    let refused = db
        .once
        .run(&pool_of_one(options), &op("k"), async |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Failure>(7)
        })
        .await
        .unwrap_err();
    let RunError::Protocol(error) = refused else { panic!("{refused:?}") };
    assert_eq!((error.kind(), calls.into_inner()), (ErrorKind::ReadOnly, 0));
}

// Rows without lease, token and attempt are overwritten like any other.
#[tokio::test]
async fn a_forgotten_key_that_was_written_once_is_begun_anew() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let op = op("k").policy(kept_for(Duration::from_secs(60)));
    let run =
        async || db.once.run(&db.pool, &op, async |tx| effect(tx, &db.schema, "k").await).await;
    for life in 1..=3 {
        assert!(!run().await.unwrap().is_replay(), "life {life}");
        assert!(run().await.unwrap().is_replay(), "life {life}");
        assert_eq!(db.effects().await, life);
        db.advance(Duration::from_secs(61)).await;
    }
    assert_eq!(db.ask::<i32>("select attempt from {}.keys").await, 1);
}

#[tokio::test]
async fn of_a_response_that_is_too_large_nothing_is_kept() {
    let db = TestDb::new().await;
    for (key, bytes_max, length) in [("short", 8, 9), ("long", 16_384, 17_000)] {
        let once = db.once.clone().response_bytes_max(bytes_max);
        let value = "x".repeat(length);
        let run =
            async || once.run(&db.pool, &op(key), async |_| Ok::<_, Failure>(value.clone())).await;
        assert!(!run().await.unwrap().is_replay());
        assert!(matches!(run().await, Err(RunError::Omitted(_))), "{key}");
    }
    let kept = "select count(*) from {}.idempotency_keys where response_body is not null";
    assert_eq!(db.ask::<i64>(kept).await, 0);
}

// A lapsed claim that never had a lease is taken over with a lease. When abandoned, it is found.
#[tokio::test]
async fn a_lapsed_claim_that_never_had_a_lease_is_listed_when_it_gets_one() {
    let db = TestDb::new().await;
    let op = op("k");
    drop(started(db.once.begin(&mut db.conn().await, &op).await.unwrap()));
    db.execute("update {}.idempotency_keys set lease_expires_at = clock_timestamp()").await;
    assert_eq!(db.ask::<i64>("select count(*) from {}.unfinished").await, 0);
    let claim = db.lease(&op, Duration::from_secs(60)).await;
    assert_eq!(claim.attempt(), 2);
    assert_eq!(db.ask::<i64>("select count(*) from {}.unfinished").await, 1);
    claim.release(&mut db.conn().await).await.unwrap();
}

// A row that was written once has no token to lock it by.
#[tokio::test]
async fn a_replay_that_locks_its_row_commits_that() {
    let db = TestDb::new().await;
    let op = op("k").lock_replay();
    let run = async |pool: &sqlx::PgPool| {
        db.once.run(pool, &op, async |tx| effect(tx, &db.schema, "k").await).await.unwrap()
    };
    assert!(!run(&db.pool).await.is_replay());
    let locked = "select xmax <> '0' from {}.idempotency_keys";
    assert!(!db.ask::<bool>(locked).await);
    let proxy = Proxy::start(&db, None);
    assert!(run(&pool_of_one(proxy.options())).await.is_replay());
    assert!(db.ask::<bool>(locked).await);
    assert!(proxy.commit_was_sent());
}

// The view `keys` fills in what a row omits.
#[tokio::test]
async fn a_row_that_was_written_once_looks_like_any_other_in_keys() {
    let db = TestDb::new().await;
    db.once.run(&db.pool, &op("k"), async |_| Ok::<_, Failure>(7)).await.unwrap();
    let complete =
        "select attempt = 1 and completed_at = created_at and lease_expires_at = expires_at
                           and status = 'completed' and claim is null from {}.keys";
    assert!(db.ask::<bool>(complete).await);
}

// The INSERT must not count as done: a COMMIT follows.
#[tokio::test]
async fn a_row_that_is_not_written_undoes_the_work() {
    let db = TestDb::new().await;
    db.execute(
        "create function {}.swallow() returns trigger language plpgsql as 'begin return null; end';
         create trigger swallow before insert on {}.idempotency_keys
           for each row execute function {}.swallow()",
    )
    .await;
    let done = db.once.run(&db.pool, &op("k"), async |tx| effect(tx, &db.schema, "k").await).await;
    assert!(done.is_err(), "{done:?}");
    assert_eq!(db.effects().await, 0);
}

// The work's writes have no key that would stop a second run.
#[tokio::test]
async fn work_that_has_committed_is_not_run_again_by_itself() {
    let db = TestDb::new().await;
    for (n, ended) in ["commit", "commit; begin"].into_iter().enumerate() {
        let key = format!("k{n}");
        let work = async |tx: &mut sqlx::PgConnection| {
            effect(tx, &db.schema, &key).await?;
            sqlx::raw_sql(ended).execute(&mut *tx).await?;
            let lose = "do $$ begin raise exception 'lost' using errcode = '40001'; end $$";
            sqlx::raw_sql(lose).execute(&mut *tx).await.map(drop)
        };
        let error = db.once.run(&db.pool, &op(&key), work).await.unwrap_err();
        assert_eq!(db.effects().await, i64::try_from(n).unwrap() + 1, "{ended}");
        assert!(!error.is_retryable(), "{error:?}");
    }
}
