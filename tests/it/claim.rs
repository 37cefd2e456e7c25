//! Complete, fail, release, extend, and their fence.

use std::time::Duration;

use pgonce::{Begin, Claim, Error, ErrorKind, Response};
use sqlx::{Connection, PgConnection, PgPool};

use crate::support::db::{TestDb, lasting, op, started, word};

const MINUTE: Duration = Duration::from_secs(60);

const VERBS: [&str; 4] = ["complete", "fail", "release", "extend"];

async fn finish(
    verb: &str,
    mut claim: Claim,
    pool: &PgPool,
    conn: &mut PgConnection,
) -> Result<(), Error> {
    match verb {
        "complete" => claim.complete(conn, Response::bytes("stale")).await,
        "fail" => claim.fail(conn, Response::bytes("stale")).await,
        "release" => claim.release(conn).await,
        _ => claim.extend(pool, lasting(MINUTE)).await,
    }
}

/// Puts an old claim's key into a state in which the claim is lost.
async fn lose(how: &str, db: &TestDb, key: &str) -> Claim {
    let op = op(key);
    let old = db.lease(&op, MINUTE).await;
    let mut conn = db.conn().await;
    match how {
        "released" => {
            db.release(&op, old.token()).await.unwrap();
        }
        "released and begun again" => {
            db.release(&op, old.token()).await.unwrap();
            drop(db.lease(&op, MINUTE).await);
        }
        "taken over" => {
            db.advance(MINUTE).await;
            drop(db.lease(&op, MINUTE).await);
        }
        "taken over and completed" => {
            db.advance(MINUTE).await;
            let new = db.lease(&op, MINUTE).await;
            new.complete(&mut conn, Response::bytes("canonical")).await.unwrap();
        }
        "reaped" | "reaped and created again" => {
            db.advance(Duration::from_secs(86_400)).await;
            let reaped = db.once.reap_once(&mut conn, 1000).await.unwrap();
            assert!(reaped.deleted > 0);
            if how != "reaped" {
                drop(db.lease(&op, MINUTE).await);
            }
        }
        _ => unreachable!(),
    }
    old
}

#[tokio::test]
async fn an_old_token_is_refused_by_every_verb() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    let hows = [
        "released",
        "released and begun again",
        "taken over",
        "taken over and completed",
        "reaped",
        "reaped and created again",
    ];
    for how in hows {
        for verb in VERBS {
            let key = format!("{how} {verb}");
            let old = lose(how, &db, &key).await;
            let sql = format!(
                "select coalesce((select k.*::text from {{}}.idempotency_keys k where key = '{key}'), '')"
            );
            let before: String = db.ask(&sql).await;
            let error = finish(verb, old, &db.pool, &mut conn).await.expect_err(&key);
            assert_eq!(error.kind(), ErrorKind::ClaimLost, "{key}");
            assert!(!error.is_retryable());
            let after: String = db.ask(&sql).await;
            assert_eq!(before, after, "a lost claim writes nothing: {key}");
        }
    }
}

#[tokio::test]
async fn a_finished_claim_cannot_be_finished_again() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    for verb in VERBS {
        let op = op(verb);
        let claim = db.lease(&op, MINUTE).await;
        let token = claim.token();
        claim.complete(&mut conn, Response::bytes("first")).await.unwrap();
        if verb == "extend" {
            let extend = format!(
                "call {{}}.extend_leases(array['test/scope'], array['extend'], array['{token}'::uuid], array[1000])"
            );
            let row = sqlx::query(db.sql(&extend)).fetch_one(&mut conn).await.unwrap();
            assert_eq!(sqlx::Row::get::<Vec<String>, _>(&row, "answers"), ["lost"]);
            continue;
        }
        let again = format!("select {{}}.{verb}('test/scope', '{verb}', '{token}')");
        let error = sqlx::query(db.sql(&again)).execute(&mut conn).await.expect_err(verb);
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "IK002");
    }
}

#[tokio::test]
async fn a_lapsed_claim_that_nobody_took_is_still_the_holders() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    for verb in VERBS {
        let claim = db.lease(&op(verb), MINUTE).await;
        db.advance(2 * MINUTE).await;
        finish(verb, claim, &db.pool, &mut conn).await.expect(verb);
    }
}

#[tokio::test]
async fn extend_pushes_the_lease_and_never_pulls_it_in() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    let mut claim = db.lease(&op("k"), MINUTE).await;
    claim.extend(&db.pool, lasting(Duration::from_secs(1))).await.unwrap();
    assert_eq!(remaining(&db, &mut conn).await, MINUTE);
    claim.extend(&db.pool, lasting(5 * MINUTE)).await.unwrap();
    assert_eq!(remaining(&db, &mut conn).await, 5 * MINUTE);
    claim.release(&mut conn).await.unwrap();
}

async fn remaining(db: &TestDb, conn: &mut PgConnection) -> Duration {
    match db.once.begin(conn, &op("k")).await.unwrap() {
        Begin::InProgress(wait) => wait.lease_remaining().unwrap(),
        other => panic!("expected in progress, got {other:?}"),
    }
}

#[tokio::test]
async fn extending_does_not_wait_for_a_row_that_is_locked() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let (mut locked, mut free) =
        (db.lease(&op("k"), MINUTE).await, db.lease(&op("l"), MINUTE).await);
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::query(db.sql("select 1 from {}.idempotency_keys where key = 'k' for update"))
        .execute(&mut *tx)
        .await
        .unwrap();
    let error = locked.extend(&db.pool, lasting(10 * MINUTE)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Contention);
    assert!(error.is_retryable());
    free.extend(&db.pool, lasting(10 * MINUTE)).await.unwrap();
    tx.rollback().await.unwrap();
    db.advance(5 * MINUTE).await;
    locked.extend(&db.pool, lasting(10 * MINUTE)).await.unwrap();
    assert_eq!(remaining(&db, &mut db.conn().await).await, 10 * MINUTE, "from now");
    locked.release_leased(&db.pool).await.unwrap();
    free.release_leased(&db.pool).await.unwrap();
}

#[tokio::test]
async fn stored_bytes_come_back_as_they_were() {
    let db = TestDb::new().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let responses = [
        Response::empty(),
        Response::bytes(""),
        Response::bytes(every_byte.clone()).with_code(-1).with_headers(every_byte),
        Response::bytes(r#"{"a":1e100000,"a":2}"#).with_code(201),
    ];
    let mut conn = db.conn().await;
    for (n, response) in responses.into_iter().enumerate() {
        let op = op(&format!("k{n}"));
        let claim = started(db.once.begin(&mut conn, &op).await.unwrap());
        claim.complete(&mut conn, response.clone()).await.unwrap();
        let Begin::Replay(replay) = db.once.begin(&mut conn, &op).await.unwrap() else {
            panic!("expected a replay");
        };
        assert_eq!(replay.into_response(), response);
    }
}

#[tokio::test]
async fn a_response_that_is_not_kept_still_blocks_a_second_run() {
    let db = TestDb::new().await;
    let once = db.once.clone().response_bytes_max(10);
    let mut conn = db.conn().await;
    let cases = [
        ("fits", Response::bytes("12345").with_headers("12345"), false),
        ("too long", Response::bytes("123456").with_headers("12345"), true),
        ("secret", Response::bytes("1").secret(), true),
    ];
    for (key, response, omitted) in cases {
        let claim = started(once.begin(&mut conn, &op(key)).await.unwrap());
        claim.complete(&mut conn, response.with_code(201)).await.unwrap();
        let Begin::Replay(replay) = once.begin(&mut conn, &op(key)).await.unwrap() else {
            panic!("expected a replay of {key}");
        };
        assert_eq!(replay.response().is_omitted(), omitted, "{key}");
        assert_eq!(replay.response().code(), Some(201), "the code is kept: {key}");
        assert_eq!(replay.response().body().is_empty(), omitted, "{key}");
        let error = replay.parse_json::<u32>();
        assert_eq!(error.is_err(), omitted, "{key}");
    }
}

#[tokio::test]
async fn a_claim_goes_with_the_callers_savepoint() {
    let db = TestDb::new().await;
    let mut tx = db.pool.begin().await.unwrap();
    let mut savepoint = tx.begin().await.unwrap();
    let claim = started(db.once.begin(&mut savepoint, &op("k")).await.unwrap());
    claim.complete(&mut savepoint, Response::bytes("inner")).await.unwrap();
    assert_eq!(word(&db.once.begin(&mut savepoint, &op("k")).await.unwrap()), "replay");
    savepoint.rollback().await.unwrap();
    // The claim is gone, the outer transaction continues, and the key is free for others at once.
    let mut elsewhere = db.conn().await;
    assert_eq!(word(&db.once.begin(&mut elsewhere, &op("other")).await.unwrap()), "started");
    let claim = started(db.once.begin(&mut tx, &op("k")).await.unwrap());
    claim.complete(&mut tx, Response::bytes("outer")).await.unwrap();
    tx.commit().await.unwrap();
    let Begin::Replay(replay) = db.once.begin(&mut elsewhere, &op("k")).await.unwrap() else {
        panic!("expected a replay");
    };
    assert_eq!(replay.response().body(), b"outer");
}
