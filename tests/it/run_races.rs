//! `run` when another caller, a trigger, a pooler or the work itself interferes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{ErrorKind, Failure, Fingerprint, Operation, Response, RunError};
use sqlx::{Connection, PgConnection};

use crate::crash::{nothing_is_stuck, pool_of_one};
use crate::support::db::{TestDb, effect, op, started, waits};
use crate::support::proxy::{Cut, Proxy};

const LONG: Duration = Duration::from_secs(30);
const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];

fn both(key: &str) -> [Operation; 2] {
    [op(key), op(key).optimistic()]
}

fn kind<E>(error: &RunError<E>) -> Option<ErrorKind> {
    match error {
        RunError::Protocol(error) => Some(error.kind()),
        _ => None,
    }
}

/// Inserts a row that another caller has finished, with 7 as its value.
async fn finish_elsewhere(db: &TestDb, key: &str) {
    db.execute(&format!(
        "insert into {{}}.idempotency_keys (created_at, expires_at, status, scope, key, response_body)
         values (now(), now() + interval '1 day', 2, '{}', '{key}', '7')",
        op("k").scope().as_str()
    ))
    .await;
}

#[tokio::test]
async fn a_key_that_is_finished_between_the_look_and_its_lock_is_replayed() {
    let db = TestDb::new().await;
    // The look waits after its snapshot and before its lock.
    db.execute(
        "alter function {}._lock_id(text, text) rename to lock_id;
         create function {}._lock_id(p_scope text, p_key text) returns bigint language plpgsql volatile as
           $$ begin
             perform pg_catalog.pg_advisory_xact_lock_shared(4711);
             return {}.lock_id(p_scope, p_key);
           end $$",
    )
    .await;
    let mut gate = db.conn().await;
    sqlx::raw_sql("select pg_advisory_lock(4711)").execute(&mut gate).await.unwrap();
    let calls = AtomicU32::new(0);
    let work = async |tx: &mut PgConnection| {
        calls.fetch_add(1, Ordering::Relaxed);
        effect(tx, &db.schema, "k").await
    };
    let finish = async {
        db.until_waiting(1).await;
        finish_elsewhere(&db, "k").await;
        gate.close().await.unwrap();
    };
    let op = op("k");
    let (done, ()) = tokio::join!(db.once.run(&db.pool, &op, work), finish);
    let done = done.unwrap();
    assert_eq!((*done, done.is_replay(), calls.into_inner()), (7, true, 1));
    assert_eq!(db.effects().await, 0);
}

#[tokio::test]
async fn work_that_fails_because_it_is_a_duplicate_is_answered_by_the_winner() {
    for level in LEVELS {
        let db = TestDb::new().await;
        let options = db.options.clone().options([("default_transaction_isolation", level)]);
        db.execute("create unique index on {}.effect (key)").await;
        for op in both("k") {
            let pool = pool_of_one(options.clone());
            let key = format!("{:?}", op.key());
            let work = async |tx: &mut PgConnection| {
                finish_elsewhere(&db, "k").await;
                db.execute(&format!("insert into {{}}.effect (key) values ('{key}')")).await;
                effect(tx, &db.schema, &key).await // 23505
            };
            let done = db.once.run(&pool, &op, work).await.unwrap();
            assert_eq!((*done, done.is_replay()), (7, true), "{level}");
            db.execute("delete from {}.effect; delete from {}.idempotency_keys").await;
        }
    }
}

#[tokio::test]
async fn work_that_ends_its_transaction_is_told_so_and_leaves_no_key() {
    for ends in [
        "commit",
        "rollback",
        "end",
        "commit; begin",
        "rollback; begin",
        "abort; start transaction",
    ] {
        for outcome in ["done", "kept", "fails", "breaks"] {
            let db = TestDb::new().await;
            for op in both("k") {
                let calls = AtomicU32::new(0);
                let work = async |tx: &mut PgConnection| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    effect(tx, &db.schema, "k").await?;
                    sqlx::raw_sql(ends).execute(&mut *tx).await?;
                    match outcome {
                        "done" => return Ok(1),
                        "kept" => return Err(Failure::keep(Response::bytes("declined"))),
                        "fails" => return Err(Failure::from("failed")),
                        _ => {}
                    }
                    sqlx::raw_sql(
                        "do $$ begin raise exception 'lost' using errcode = '40001'; end $$",
                    )
                    .execute(tx)
                    .await?;
                    Ok(2)
                };
                let error = db.once.run(&db.pool, &op, work).await.unwrap_err();
                let context = format!("{ends}, {outcome}, optimistic: {:?}", op);
                let is_committed = ends.starts_with("commit") || ends == "end";
                // A new transaction that an error has aborted cannot be queried. A COMMIT is noticed by what the look
                // left behind; a ROLLBACK has done no harm.
                let is_told = outcome != "breaks"
                    || !ends.contains(';')
                    || (is_committed && !is_optimistic(&op));
                if is_told {
                    assert_eq!(
                        kind(&error),
                        Some(ErrorKind::TransactionLost),
                        "{context}: {error:?}"
                    );
                    assert!(!error.is_retryable(), "{context}");
                    assert_eq!(calls.load(Ordering::Relaxed), 1, "{context}");
                    assert_eq!(db.ask::<i64>("select count(*) from {}.keys").await, 0, "{context}");
                }
                if !is_committed {
                    assert_eq!(db.effects().await, 0, "{context}");
                }
                db.execute("delete from {}.effect; delete from {}.idempotency_keys").await;
            }
            nothing_is_stuck(&db).await;
        }
    }
}

fn is_optimistic(op: &Operation) -> bool {
    format!("{op:?}").contains("optimistic: true")
}

#[tokio::test]
async fn a_kept_failure_is_kept_at_every_level_and_undoes_the_work() {
    for level in LEVELS {
        let db = TestDb::new().await;
        let options = db.options.clone().options([("default_transaction_isolation", level)]);
        let pool = pool_of_one(options);
        for (n, op) in (0..).zip(both("k")) {
            let op = Operation::new(op.scope().clone(), format!("k{n}")).unwrap();
            let op = if n == 1 { op.optimistic() } else { op };
            for replay in [false, true] {
                let work = async |tx: &mut PgConnection| {
                    effect(tx, &db.schema, "k").await?;
                    Err::<i32, _>(Failure::keep(Response::bytes("declined")))
                };
                let error = db.once.run(&pool, &op, work).await.unwrap_err();
                let RunError::Failed { response, replayed, .. } = error else {
                    panic!("{error:?}")
                };
                assert_eq!((response.body(), replayed), (&b"declined"[..], replay), "{level}");
            }
        }
        assert_eq!(db.effects().await, 0);
        let failed = "select count(*) from {}.keys where status = 'failed'";
        assert_eq!(db.ask::<i64>(failed).await, 2, "{level}");
    }
}

// The other caller waits for the key's lock, and gets it when the work is rolled back.
#[tokio::test]
async fn another_caller_in_the_gap_of_a_kept_failure_decides() {
    for level in ["read committed", "repeatable read"] {
        for patient in [false, true] {
            let db = TestDb::new().await;
            let options = db.options.clone().options([("default_transaction_isolation", level)]);
            let pool = pool_of_one(options);
            let keeps = async |tx: &mut PgConnection| {
                effect(tx, &db.schema, "ours").await?;
                db.until_waiting(1).await;
                Err::<String, _>(Failure::keep(Response::bytes("declined")))
            };
            let other = async {
                // After the work: the work has the lock while it waits for this caller.
                db.until(
                    "select count(*) > 0 from pg_locks where locktype = 'advisory' and granted",
                )
                .await;
                let mut tx = db.pool.begin().await.unwrap();
                let claim =
                    started(db.once.begin(&mut tx, &op("k").policy(waits(LONG))).await.unwrap());
                effect(&mut tx, &db.schema, "theirs").await.unwrap();
                claim.complete(&mut tx, Response::json("theirs").unwrap()).await.unwrap();
                if !patient {
                    return Some(tx); // still open when the other call gets its answer
                }
                tx.commit().await.unwrap();
                None
            };
            let op_k = if patient { op("k").policy(waits(LONG)) } else { op("k") };
            let (told, open) = tokio::join!(db.once.run(&pool, &op_k, keeps), other);
            match told {
                Ok(done) => assert_eq!((patient, done.as_str()), (true, "theirs"), "{level}"),
                Err(RunError::InProgress(_)) => assert!(!patient, "{level}"),
                Err(other) => panic!("{level}: {other:?}"),
            }
            if let Some(tx) = open {
                tx.commit().await.unwrap();
            }
            assert_eq!(db.effects().await, 1);
        }
    }
}

#[tokio::test]
async fn a_row_that_is_rewritten_or_swallowed_commits_nothing() {
    for (becomes, kind_of) in [("null", ErrorKind::Corrupt), ("new", ErrorKind::Database)] {
        for op in both("k") {
            let db = TestDb::new().await;
            db.execute(&format!(
                "create function {{}}.change() returns trigger language plpgsql as $$
                   begin new.key := 'another'; return {becomes}; end $$;
                 create trigger change before insert on {{}}.idempotency_keys
                   for each row execute function {{}}.change()"
            ))
            .await;
            let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "k").await;
            let error = db.once.run(&db.pool, &op, work).await.unwrap_err();
            assert_eq!(kind(&error), Some(kind_of), "{error:?}");
            assert!(!error.is_retryable());
            assert_eq!(db.effects().await, 0);
            assert_eq!(db.ask::<i64>("select count(*) from {}.keys").await, 0);
        }
    }
}

#[tokio::test]
async fn work_whose_connection_loses_its_statements_runs_again_on_another() {
    let db = TestDb::new().await;
    for (n, op) in (1..).zip([op("a"), op("b").optimistic()]) {
        let key = format!("k{n}");
        let calls = AtomicU32::new(0);
        let run = async |op: &Operation, loses: bool| {
            let work = async |tx: &mut PgConnection| {
                let id = effect(tx, &db.schema, &key).await?;
                if loses && calls.fetch_add(1, Ordering::Relaxed) == 0 {
                    sqlx::raw_sql("deallocate all").execute(tx).await?;
                }
                Ok::<_, sqlx::Error>(id)
            };
            db.once.run(&db.pool, op, work).await
        };
        // To prepare the INSERT.
        run(&Operation::new("prepares", key.as_str()).unwrap(), false).await.unwrap();
        run(&op, true).await.unwrap();
        assert_eq!(db.effects().await, 2 * n);
        assert!(run(&op, false).await.unwrap().is_replay());
    }
    nothing_is_stuck(&db).await;
}

#[tokio::test]
async fn optimistic_work_for_a_key_that_is_not_free_leaves_no_trace() {
    let db = TestDb::new().await;
    let bound = |key: &str| op(key).fingerprint(Fingerprint::of_bytes("a"));
    db.once.run(&db.pool, &bound("done"), async |_| Ok::<_, Failure>(7)).await.unwrap();
    let claim = db.lease(&op("live"), Duration::from_secs(60)).await;
    let mut holder = db.pool.begin().await.unwrap();
    let open = started(db.once.begin(&mut holder, &op("open")).await.unwrap());
    let calls = AtomicU32::new(0);
    let run = async |op: Operation| {
        let work = async |tx: &mut PgConnection| {
            calls.fetch_add(1, Ordering::Relaxed);
            effect(tx, &db.schema, "k").await
        };
        db.once.run(&db.pool, &op.optimistic(), work).await
    };
    assert!(run(bound("done")).await.unwrap().is_replay());
    let other = op("done").fingerprint(Fingerprint::of_bytes("b"));
    assert!(matches!(run(other).await, Err(RunError::Mismatch(_))));
    assert!(
        matches!(run(op("live")).await, Err(RunError::InProgress(wait)) if wait.lease_remaining().is_some())
    );
    assert!(matches!(run(op("open")).await, Err(RunError::InProgress(_))));
    assert_eq!((calls.load(Ordering::Relaxed), db.effects().await), (4, 0));
    drop(open);
    holder.rollback().await.unwrap();
    claim.release(&mut db.conn().await).await.unwrap();
    // A row that may be overwritten: first the optimistic try, then with a claim.
    assert!(!run(op("live")).await.unwrap().is_replay());
    assert_eq!((calls.into_inner(), db.effects().await), (6, 1));
}

/// The replay locks its row, so it needs a COMMIT.
#[tokio::test]
async fn failed_work_is_believed_when_the_winners_answer_cannot_be_committed() {
    let db = TestDb::new().await;
    let proxy = Proxy::start_once(&db, Cut::At("COMMIT"));
    let work = async |_: &mut PgConnection| {
        finish_elsewhere(&db, "k").await;
        Err::<u32, _>("the work's own")
    };
    let op = op("k").optimistic().lock_replay();
    let error = db.once.run(&pool_of_one(proxy.options()), &op, work).await.unwrap_err();
    assert!(
        matches!(&error, RunError::Work { error: own, .. } if *own == "the work's own"),
        "{error:?}"
    );
    assert!(proxy.commit_was_sent());
    nothing_is_stuck(&db).await;
}
