//! What an operator does with keys that wait for a decision: `pgonce resolve`, and `take_over_claim` behind it.

use std::process::Stdio;
use std::time::Duration;

use pgonce::{Begin, ErrorKind, Failure, Fingerprint, Lease, OnLapse, Operation, Response};
use pgonce::{RunError, Work};
use serde_json::Value;
use sqlx::Connection;
use tokio::io::AsyncWriteExt;

use crate::support::db::{TestDb, kept_for, on_lapse, op, server, started, tried, word};

const MINUTE: Duration = Duration::from_secs(60);

fn lease() -> Lease {
    Lease::new(MINUTE).unwrap()
}

/// Runs `pgonce` with `input` on standard input. Returns the exit code and what it printed.
async fn pgonce(db: &TestDb, args: &[&str], input: &str) -> (i32, String) {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgonce"))
        .args(args)
        .env("DATABASE_URL", server().await.url())
        .env("PGONCE_SCHEMA", &db.schema)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The command may exit without reading its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let output = child.wait_with_output().await.unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(printed).unwrap())
}

async fn resolve(db: &TestDb, args: &[&str], input: &str) -> (i32, String) {
    pgonce(db, &[&["resolve", "test/scope", "k"], args].concat(), input).await
}

/// An attempt that does the step `charge`, then fails with an error.
async fn attempt(db: &TestDb, op: &Operation) -> Result<u32, RunError<Failure>> {
    let run = db.once.run_leased(&db.pool, op, lease(), async |work: &mut Work| {
        let number = work.attempt();
        work.step("charge", async || Ok::<_, Failure>(number)).await?;
        work.progress(&serde_json::json!({"charged": true})).await?;
        Err::<u32, _>(Failure::from("the card 4242 was lost"))
    });
    run.await.map(pgonce::Done::into_inner)
}

/// A retry, which must not run the work.
async fn retry(db: &TestDb, op: &Operation) -> Result<String, RunError<Failure>> {
    let run =
        db.once.run_leased(&db.pool, op, lease(), async |_: &mut Work| -> Result<_, Failure> {
            panic!("it ran again")
        });
    run.await.map(pgonce::Done::into_inner)
}

/// A key that is held because its work failed with an unknown outcome.
async fn held(db: &TestDb) -> Operation {
    db.stop_clock().await;
    let op = op("k").policy(on_lapse(OnLapse::Hold)).fingerprint(Fingerprint::of_bytes("100"));
    assert!(matches!(attempt(db, &op).await, Err(RunError::Work { .. })));
    db.advance(MINUTE).await;
    assert!(matches!(retry(db, &op).await, Err(RunError::Held(_))));
    op
}

#[tokio::test]
async fn a_held_key_is_completed_with_what_retries_then_get() {
    let db = TestDb::new().await;
    let op = held(&db).await;
    let (code, told) = resolve(&db, &["--complete", "-"], r#""paid by hand""#).await;
    assert_eq!(
        (code, told.as_str()),
        (0, "completed after attempt 1; retries get these 14 bytes\n")
    );
    assert_eq!(retry(&db, &op).await.unwrap(), "paid by hand");
    let (code, told) = resolve(&db, &["--fail", "-"], "").await;
    assert_eq!((code, told.contains("the operation is completed")), (4, true), "{told}");
}

#[tokio::test]
async fn a_held_key_is_failed_from_a_file_with_a_code() {
    let db = TestDb::new().await;
    let op = held(&db).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("declined");
    std::fs::write(&file, "declined").unwrap();
    let args = ["--fail", file.to_str().unwrap(), "--code", "402", "--json"];
    let (code, told) = resolve(&db, &args, "").await;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (code, &told["resolved"], &told["response_code"]),
        (0, &"failed".into(), &402.into())
    );
    let Err(RunError::Failed { response, .. }) = retry(&db, &op).await else {
        panic!("not failed")
    };
    assert_eq!((response.code(), response.body()), (Some(402), b"declined".as_slice()));
}

#[tokio::test]
async fn a_released_key_runs_again_with_its_steps_and_with_all_its_attempts() {
    let db = TestDb::new().await;
    let op = held(&db).await.policy(tried(1));
    let (code, told) = resolve(&db, &["--release"], "").await;
    assert_eq!(
        (code, told.as_str()),
        (0, "released after attempt 1; the next begin runs the work again\n")
    );
    let other = op.clone().fingerprint(Fingerprint::of_bytes("200"));
    assert!(matches!(retry(&db, &other).await, Err(RunError::Mismatch(_))), "a step is done");
    let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        let charge = async || -> Result<u32, Failure> { panic!("it is done") };
        Ok::<_, Failure>((work.attempt(), work.step("charge", charge).await?))
    });
    assert_eq!(run.await.unwrap().into_inner(), (2, 1));
}

#[tokio::test]
async fn a_key_whose_attempts_are_used_up_gets_as_many_again() {
    let db = TestDb::new().await;
    let op = op("k").policy(tried(2));
    for round in 0..2 {
        for _ in 0..2 {
            let failed = attempt(&db, &op).await;
            assert!(matches!(failed, Err(RunError::Work { .. })), "{round}: {failed:?}");
        }
        assert!(matches!(retry(&db, &op).await, Err(RunError::Held(_))), "{round}");
        // Released, so it has no token.
        let (code, told) = resolve(&db, &["--release"], "").await;
        assert_eq!(code, 0, "{told}");
    }
    assert_eq!(db.ask::<i32>("select attempt from {}.keys").await, 4, "the count goes on");
    let (code, _) = resolve(&db, &["--complete", "-"], r#""done""#).await;
    assert_eq!(
        (code, retry(&db, &op).await.unwrap().as_str()),
        (0, "done"),
        "also without a token"
    );
}

#[tokio::test]
async fn attempts_before_a_lapse_count_no_more_either() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let op = op("k").policy(tried(2));
    let _conn = db.conn().await;
    for attempts in [[1, 2], [3, 4]] {
        for attempt in attempts {
            assert_eq!(db.lease(&op, MINUTE).await.attempt(), attempt);
            db.advance(MINUTE).await;
        }
        let begin = db.once.begin_leased(&db.pool, &op, Lease::new(MINUTE).unwrap()).await.unwrap();
        assert_eq!(word(&begin), "held", "after {attempts:?}");
        assert_eq!(resolve(&db, &["--release"], "").await.0, 0);
    }
    // Forgotten and begun again: the attempts count from one.
    db.advance(Duration::from_secs(86_400)).await;
    assert_eq!(db.lease(&op, MINUTE).await.attempt(), 1);
    assert_eq!(
        db.ask::<i32>("select coalesce(attempts_uncounted, 0) from {}.idempotency_keys").await,
        0
    );
}

#[tokio::test]
async fn what_does_not_wait_for_an_operator_is_refused_in_plain_words() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let claim = db.lease(&op("k"), MINUTE).await;
    let (code, told) = resolve(&db, &["--release"], "").await;
    assert!(code == 4 && told.contains("the claim is live until"), "{told}");
    assert_eq!(db.ask::<String>("select claim from {}.keys").await, "live", "nothing happened");
    claim.complete(&mut db.conn().await, Response::empty()).await.unwrap();
    let (code, told) = resolve(&db, &["--release"], "").await;
    assert!(code == 4 && told.contains("the operation is completed"), "{told}");
    assert_eq!(pgonce(&db, &["resolve", "test/scope", "none", "--release"], "").await.0, 3);
    let forgotten = op("k2").policy(kept_for(MINUTE));
    drop(db.lease(&forgotten, MINUTE).await);
    db.advance(MINUTE).await;
    let (code, told) = pgonce(&db, &["resolve", "test/scope", "k2", "--release"], "").await;
    assert!(code == 4 && told.contains("the key is forgotten"), "{told}");
    for wrong in [&[][..], &["--release", "--complete", "-"], &["--release", "--code", "1"]] {
        assert_eq!(resolve(&db, wrong, "").await.0, 2, "{wrong:?}");
    }
    let (code, told) = pgonce(&db, &["resolve", "test/scope", "k", "--fail", "no/such"], "").await;
    assert_eq!(code, 4, "a finished key is told before its file is read: {told}");
}

#[tokio::test]
async fn an_operator_who_saw_another_attempt_decides_nothing() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let op = op("k");
    let (scope, key) = (op.scope().clone(), op.key().clone());
    let seen =
        async || db.once.inspect(&mut db.conn().await, &scope, &key).await.unwrap().unwrap().record;
    let refused = async |seen: &pgonce::Record, words: &str| {
        let mut conn = db.conn().await;
        let error = db.once.take_over_claim(&mut conn, &scope, &key, seen).await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::ClaimLost, words));
        // The server reports the error before it releases the key's lock; the ping waits for that.
        conn.ping().await.unwrap();
    };
    let mut claim = db.lease(&op, MINUTE).await;
    db.advance(MINUTE).await;
    let lapsed = seen().await;
    // The holder was alive after all. Same token, but an operator must not decide.
    claim.extend(&db.pool, Lease::new(MINUTE).unwrap()).await.unwrap();
    refused(&lapsed, "the claim is live: its holder may be at work").await;
    claim.release(&mut db.conn().await).await.unwrap();
    let released = seen().await;
    refused(&lapsed, "the key has changed since it was looked at").await;
    // Two releases differ only in the attempt.
    db.lease(&op, MINUTE).await.release(&mut db.conn().await).await.unwrap();
    refused(&released, "the key has changed since it was looked at").await;
    let mut tx = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op).await.unwrap());
    refused(&released, "the key is being worked on").await;
    claim.complete(&mut tx, Response::empty()).await.unwrap();
    tx.commit().await.unwrap();
    refused(&released, "the key has changed since it was looked at").await;
    db.execute("delete from {}.idempotency_keys").await;
    refused(&released, "the key is unknown").await;
}

#[tokio::test]
async fn the_last_holder_writes_nothing_after_an_operators_decision() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let op = op("k");
    let holder = db.lease(&op, MINUTE).await;
    db.advance(MINUTE).await;
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let seen = db.once.inspect(&mut tx, op.scope(), op.key()).await.unwrap().unwrap().record;
    let claim = db.once.take_over_claim(&mut tx, op.scope(), op.key(), &seen).await.unwrap();
    assert_eq!(claim.attempt(), 1);
    claim.complete(&mut tx, Response::bytes("the operator's")).await.unwrap();
    pgonce::commit(tx).await.unwrap();
    let error = holder.complete(&mut conn, Response::bytes("late")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClaimLost);
    let Begin::Replay(replay) = db.once.begin(&mut conn, &op).await.unwrap() else { panic!() };
    assert_eq!(replay.response().body(), b"the operator's");
}

// Its effect exists, so it must not run again. Its holder ended with its transaction.
#[tokio::test]
async fn a_claim_that_was_committed_without_complete_is_resolved() {
    let db = TestDb::new().await;
    let mut tx = db.pool.begin().await.unwrap();
    drop(started(db.once.begin(&mut tx, &op("k")).await.unwrap()));
    tx.commit().await.unwrap();
    let (code, told) =
        pgonce(&db, &["resolve", "test/scope", "k", "--complete", "-", "--code", "201"], "done")
            .await;
    assert_eq!(code, 0, "{told}");
    let begin = db.once.begin(&mut db.conn().await, &op("k")).await.unwrap();
    let Begin::Replay(replay) = begin else { panic!("{begin:?}") };
    assert_eq!(replay.response().body(), b"done");
}

#[tokio::test]
async fn get_shows_an_operator_what_the_work_has_done_and_no_outputs() {
    let db = TestDb::new().await;
    held(&db).await;
    let (_, told) = pgonce(&db, &["get", "test/scope", "k"], "").await;
    for line in ["steps done", "charge", r#"{"charged":true}"#, r#""the work returned an error""#] {
        assert!(told.contains(line), "{line} in {told}");
    }
    let (_, json) = pgonce(&db, &["get", "test/scope", "k", "--json"], "").await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["steps"], serde_json::json!(["charge"]));
    assert_eq!(json["progress"]["charged"], true);
    assert_eq!(json["last_error"], "the work returned an error");
    assert!(!json.to_string().contains("4242"), "errors are kept without what they were about");
}

#[tokio::test]
async fn an_operator_gets_the_key_that_the_remote_was_given_without_a_database() {
    let db = TestDb::new().await;
    // Any name that the work may use, even an empty one.
    let names = ["charge", ""];
    let op = op("k");
    let given = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
        Ok::<_, Failure>(names.map(|name| work.derived_key(name).as_str().to_owned()))
    });
    for (name, given) in names.into_iter().zip(given.await.unwrap().into_inner()) {
        let nowhere = "--database-url=postgres://127.0.0.1:1/nowhere";
        let args = [nowhere, "derived-key", "test/scope", "k", name];
        assert_eq!(pgonce(&db, &args, "").await, (0, format!("{given}\n")));
        let (_, told) = pgonce(&db, &[&args[..], &["--json"]].concat(), "").await;
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["derived_key"], &told["name"]), (&given.into(), &name.into()));
    }
    let (code, told) = pgonce(&db, &["derived-key", "test/scope", " ", "charge"], "").await;
    assert_eq!((code, told.as_str()), (2, "pgonce: key is blank\n"));
}
