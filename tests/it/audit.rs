//! The audit trail: a line for each transition of a key, in its transaction, that nobody can change.

use std::time::Duration;

use pgonce::{ErrorKind, Failure, Inbox, OnLapse, Operation, Policy, Reaper, Response, Work};
use sqlx::{Connection, Executor, PgConnection};

use crate::partitions::partition;
use crate::support::db::{TestDb, kept_for, lasting, on_lapse, op, started};
use crate::support::roles::{conn_as, lease, role, statements, with_roles};

const MINUTE: Duration = Duration::from_secs(60);

pub async fn audited() -> TestDb {
    let db = TestDb::new().await;
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    db
}

/// The actions of a key, in order.
async fn trail(db: &TestDb, op: &Operation) -> Vec<String> {
    let lines = db.once.audit(&mut db.conn().await, op.scope(), op.key(), 100).await.unwrap();
    lines.into_iter().map(|line| line.action).collect()
}

async fn lines(db: &TestDb) -> i64 {
    db.ask("select count(*) from {}.audit").await
}

#[tokio::test]
async fn run_leaves_one_line_and_a_replay_none() {
    let db = audited().await;
    for _ in 0..2 {
        db.once.run(&db.pool, &op("done"), async |_| Ok::<_, Failure>(1)).await.unwrap();
        let fails = async |_: &mut PgConnection| Err::<(), _>(Failure::keep(Response::empty()));
        db.once.run(&db.pool, &op("kept"), fails).await.unwrap_err();
    }
    let undone = async |_: &mut PgConnection| Err::<(), _>(Failure::from("no"));
    db.once.run(&db.pool, &op("undone"), undone).await.unwrap_err();
    assert_eq!(trail(&db, &op("done")).await, ["completed"]);
    assert_eq!(trail(&db, &op("kept")).await, ["failed"]);
    assert!(trail(&db, &op("undone")).await.is_empty(), "a rollback leaves no line");
    assert_eq!(lines(&db).await, 2);
}

#[tokio::test]
async fn the_verbs_leave_a_line_each() {
    let db = audited().await;
    for (end, action) in [("complete", "completed"), ("fail", "failed"), ("release", "released")] {
        let mut tx = db.pool.begin().await.unwrap();
        let claim = started(db.once.begin(&mut tx, &op(end)).await.unwrap());
        match end {
            "complete" => claim.complete(&mut tx, Response::empty()).await.unwrap(),
            "fail" => claim.fail(&mut tx, Response::empty()).await.unwrap(),
            _ => claim.release(&mut tx).await.unwrap(),
        }
        tx.commit().await.unwrap();
        assert_eq!(trail(&db, &op(end)).await, ["begun", action]);
    }
    let again = db.lease(&op("release"), MINUTE).await;
    assert_eq!(again.attempt(), 2);
    assert_eq!(trail(&db, &op("release")).await, ["begun", "released", "begun"]);
}

#[tokio::test]
async fn leased_work_leaves_no_lines_for_leases_steps_and_progress() {
    let db = audited().await;
    let mut claim = db.lease(&op("extended"), MINUTE).await;
    claim.extend(&db.pool, lasting(2 * MINUTE)).await.unwrap();
    claim.complete_leased(&db.pool, Response::empty()).await.unwrap();
    assert_eq!(trail(&db, &op("extended")).await, ["begun", "completed"]);
    let work = async |work: &mut Work| {
        work.progress("half").await?;
        work.step("charge", async || Ok::<_, Failure>(7)).await?;
        if work.attempt() == 1 { Err(Failure::from("later")) } else { Ok(1) }
    };
    for _ in 0..2 {
        let _ = db.once.run_leased(&db.pool, &op("steps"), lease(), work).await;
    }
    assert_eq!(trail(&db, &op("steps")).await, ["begun", "lapsed", "taken over", "completed"]);
}

#[tokio::test]
async fn a_claim_that_lapsed_is_taken_over_and_the_first_holder_leaves_no_line() {
    let db = audited().await;
    db.stop_clock().await;
    let first = db.lease(&op("k"), MINUTE).await;
    db.advance(2 * MINUTE).await;
    let second = db.lease(&op("k"), MINUTE).await;
    first.complete_leased(&db.pool, Response::empty()).await.unwrap_err();
    second.fail_leased(&db.pool, Response::empty()).await.unwrap();
    assert_eq!(trail(&db, &op("k")).await, ["begun", "taken over", "failed"]);
}

#[tokio::test]
async fn work_that_is_put_off_has_lapsed_and_was_not_taken_over() {
    for policy in [OnLapse::Retry, OnLapse::Hold] {
        let db = audited().await;
        let op = op("k").policy(on_lapse(policy));
        let later = async |_: &mut Work| Err::<(), _>(Failure::later(MINUTE));
        db.once.run_leased(&db.pool, &op, lease(), later).await.unwrap_err();
        assert_eq!(trail(&db, &op).await, ["begun", "lapsed"], "{policy:?}");
    }
}

#[tokio::test]
async fn operators_leave_lines_with_their_names() {
    let db = audited().await;
    db.stop_clock().await;
    for (act, expected) in [
        ("complete", vec!["begun", "taken over", "completed"]),
        ("release", vec!["begun", "taken over", "released"]),
        ("revoke", vec!["begun", "revoked"]),
        ("revoke twice", vec!["begun", "revoked", "begun", "revoked"]),
        ("revoke a live one", vec!["begun", "revoked"]),
        ("put off, then complete", vec!["begun", "lapsed", "taken over", "completed"]),
        ("put off, then revoke", vec!["begun", "lapsed", "revoked"]),
    ] {
        let op = op(act);
        for _ in 0..act.matches("twice").count() + 1 {
            let claim = db.lease(&op, MINUTE).await;
            if act.starts_with("put off") {
                let put_off = "call {}.lapse_leased($1, $2, $3, p_counts => false)";
                let call = sqlx::query(db.sql(put_off)).bind(op.scope().as_str());
                let call = call.bind(op.key().as_str()).bind(claim.token());
                call.execute(&db.pool).await.unwrap();
            }
            drop(claim);
            if act != "revoke a live one" {
                db.advance(2 * MINUTE).await;
            }
            let seen = db.seen(&op).await;
            let mut tx = db.pool.begin().await.unwrap();
            tx.execute("select set_config('pgonce.actor', 'ann', true)").await.unwrap();
            if act.contains("revoke") {
                db.once.revoke_claim(&mut tx, op.scope(), op.key(), &seen).await.unwrap();
            } else {
                let taken = db.once.take_over_claim(&mut tx, op.scope(), op.key(), &seen).await;
                match act {
                    "release" => taken.unwrap().release(&mut tx).await.unwrap(),
                    _ => taken.unwrap().complete(&mut tx, Response::empty()).await.unwrap(),
                }
            }
            tx.commit().await.unwrap();
        }
        assert_eq!(trail(&db, &op).await, expected, "{act}");
        let lines = db.once.audit(&mut db.conn().await, op.scope(), op.key(), 100).await.unwrap();
        let actors: Vec<_> = lines.iter().map(|line| line.actor.as_deref()).collect();
        assert_eq!((actors[0], *actors.last().unwrap()), (None, Some("ann")), "{act}");
        assert!(lines.iter().all(|line| line.role == "postgres"));
        assert_eq!(lines.last().unwrap().seen, db.seen(&op).await.seen, "{act}");
    }
}

#[tokio::test]
async fn a_transactional_claim_committed_without_complete_can_be_taken_over() {
    let db = audited().await;
    drop(started(db.once.begin(&mut db.conn().await, &op("k")).await.unwrap()));
    let seen = db.seen(&op("k")).await;
    let mut tx = db.pool.begin().await.unwrap();
    let (scope, key) = (op("k").scope().clone(), op("k").key().clone());
    let claim = db.once.take_over_claim(&mut tx, &scope, &key, &seen).await.unwrap();
    claim.complete(&mut tx, Response::empty()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(trail(&db, &op("k")).await, ["begun", "taken over", "completed"]);
}

#[tokio::test]
async fn messages_leave_lines_when_they_are_done_counted_dead_and_redriven() {
    let db = audited().await;
    let inbox = Inbox::new(&db.once, "orders")
        .unwrap()
        .policy(Policy::inbox().max_attempts(2).unwrap())
        .unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let _ = inbox.receive_many(&mut tx, &["1", "2", "1"]).await.unwrap();
    tx.commit().await.unwrap();
    for _ in 0..2 {
        inbox.failed(&db.pool, "3", "no").await.unwrap();
    }
    let message = |id: &str| Operation::new("orders", id).unwrap();
    let seen = db.seen(&message("3")).await;
    let mut tx = db.pool.begin().await.unwrap();
    inbox.redrive(&mut tx, "3", &seen).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let _ = inbox.receive_many(&mut tx, &["3"]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(trail(&db, &message("1")).await, ["completed"]);
    assert_eq!(trail(&db, &message("2")).await, ["completed"]);
    let third = ["begun", "lapsed", "taken over", "lapsed", "redriven", "taken over", "completed"];
    assert_eq!(trail(&db, &message("3")).await, third);
    // A kept failure.
    let kept = async |_: &mut PgConnection| Err::<(), _>(Failure::keep(Response::empty()));
    let _ = inbox.handle(&db.pool, &pgonce::Message::new("4"), kept).await;
    let seen = db.seen(&message("4")).await;
    let mut tx = db.pool.begin().await.unwrap();
    inbox.redrive(&mut tx, "4", &seen).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(trail(&db, &message("4")).await, ["begun", "failed", "redriven"]);
}

#[tokio::test]
async fn a_forgotten_key_is_reaped_or_begun_anew_and_writes_by_hand_are_told_apart() {
    let db = audited().await;
    db.stop_clock().await;
    let brief = |key: &str| op(key).policy(kept_for(MINUTE));
    for key in ["reaped", "again"] {
        db.complete(&brief(key), "").await;
    }
    db.complete(&op("deleted"), "").await;
    db.complete(&op("renamed"), "").await;
    db.advance(MINUTE).await;
    db.complete(&brief("again"), "").await;
    Reaper::new(&db.once).pass(&mut db.conn().await).await.unwrap();
    db.execute(
        "delete from {}.idempotency_keys where key = 'deleted';
         update {}.idempotency_keys set response_body = 'forged' where key = 'again';
         update {}.idempotency_keys set key = 'new name' where key = 'renamed';
         truncate {}.idempotency_keys",
    )
    .await;
    let done = ["begun", "completed"];
    assert_eq!(trail(&db, &op("reaped")).await, [&done[..], &["reaped"]].concat());
    assert_eq!(trail(&db, &op("deleted")).await, [&done[..], &["deleted"]].concat());
    assert_eq!(trail(&db, &op("again")).await, [&done[..], &done[..], &["changed"]].concat());
    assert_eq!(trail(&db, &op("renamed")).await, [&done[..], &["changed"]].concat());
    assert_eq!(trail(&db, &op("new name")).await, ["changed"]);
    let last: String = db.ask("select action from {}.audit order by id desc limit 1").await;
    assert_eq!(last, "truncated");
}

#[tokio::test]
async fn a_line_has_its_transaction_and_vanishes_with_it() {
    let db = audited().await;
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op("k")).await.unwrap());
    claim.complete(&mut tx, Response::empty()).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(lines(&db).await, 0);
    let mut tx = conn.begin().await.unwrap();
    drop(started(db.once.begin(&mut tx, &op("k")).await.unwrap()));
    let txid: i64 = sqlx::query_scalar("select pg_current_xact_id()::text::bigint")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let found = db.once.audit(&mut conn, op("k").scope(), op("k").key(), 1).await.unwrap();
    assert_eq!((found.len(), found[0].txid), (1, txid));
    assert!(!serde_json::to_string(&found).unwrap().contains("token"));
}

// Writes as another release may do them: without this release's functions.
#[tokio::test]
async fn functions_of_another_release_do_not_break() {
    let db = audited().await;
    db.execute(
        "insert into {}.idempotency_keys (created_at, expires_at, lease_expires_at, token, scope, key, status)
         values (now(), now() + interval '1 day', now() + interval '1 day', gen_random_uuid(), 'test/scope', 'k', 1);
         update {}.idempotency_keys set attempts_uncounted = 1; -- a revoke in two steps
         update {}.idempotency_keys set token = null, lease_expires_at = now();
         update {}.idempotency_keys set steps = 1, progress = '7', last_error = 'x';
         alter table {}.idempotency_keys add column later text;
         update {}.idempotency_keys set later = 'x';
         update {}.idempotency_keys set status = 9",
    )
    .await;
    assert_eq!(trail(&db, &op("k")).await, ["begun", "redriven", "released", "changed"]);
}

#[tokio::test]
async fn a_table_that_its_owner_has_partitioned_has_a_trail_too() {
    let db = TestDb::new().await;
    partition(&db).await;
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    db.once.check(&db.pool).await.unwrap();
    let inbox = Inbox::new(&db.once, "orders").unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let _ = inbox.receive_many(&mut tx, &["1", "2"]).await.unwrap();
    tx.commit().await.unwrap();
    db.complete(&op("k"), "").await;
    db.execute("update {}.idempotency_keys set expires_at = now()").await;
    Reaper::new(&db.once).pass(&mut db.conn().await).await.unwrap();
    assert_eq!(trail(&db, &op("k")).await, ["begun", "completed", "changed", "reaped"]);
    let message = Operation::new("orders", "2").unwrap();
    assert_eq!(trail(&db, &message).await, ["completed", "changed", "reaped"]);
}

#[tokio::test]
async fn nobody_changes_deletes_or_forges_lines() {
    let db = with_roles().await;
    db.execute(&statements(&db, "Roles")[2]).await;
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    db.complete(&op("k"), "").await;
    for name in ["app", "reaper", "auditor"] {
        let mut conn = conn_as(&db, name).await;
        for statement in [
            "update {}.audit set action = 'x'",
            "delete from {}.audit",
            "truncate {}.audit",
            "truncate {}.audit_default",
            "drop table {}.audit",
            "insert into {}.audit (at, attempt, action, seen, scope, key) values (now(), 1, 'begun', '', 's', 'k')",
            "alter table {}.idempotency_keys disable trigger audit_updated",
            "select {}.audit_on(1)",
            "select {}.audit_off()",
            "create temp table evil (scope text, key text, status smallint, token uuid, attempt integer, created_at timestamptz);
             create trigger evil after insert on evil referencing new table as new_rows
               for each statement execute function {}._audit_inserted()",
        ] {
            let error = conn.execute(sqlx::raw_sql(db.sql(statement))).await.expect_err(statement);
            let code = error.as_database_error().unwrap().code().unwrap();
            assert_eq!(code, "42501", "{name}: {statement}: {error}");
        }
    }
    for statement in ["update {}.audit set action = 'x'", "delete from {}.audit"] {
        let error = db.conn().await.execute(db.sql(statement)).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "the owner neither: {error}");
    }
    // Whatever the session says, the line names the role that is logged in.
    let mut conn = conn_as(&db, "app").await;
    let (scope, key) = (op("k").scope().clone(), op("k").key().clone());
    db.once.audit_note(&mut conn, "viewed", &scope, &key).await.unwrap();
    let read = conn.execute(db.sql("select * from {}.audit")).await;
    assert!(read.is_err(), "only the auditor reads");
    let mut auditor = conn_as(&db, "auditor").await;
    let lines = db.once.audit(&mut auditor, &scope, &key, 10).await.unwrap();
    let shown: Vec<_> =
        lines.iter().map(|line| (line.action.as_str(), line.role.as_str())).collect();
    let app = role(&db, "app");
    assert_eq!(shown, [("begun", "postgres"), ("completed", "postgres"), ("viewed", app.as_str())]);
}

#[tokio::test]
async fn roles_without_rights_on_the_trail_work_as_before() {
    let db = with_roles().await;
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    let mut conn = conn_as(&db, "app").await;
    let claim = started(db.once.begin(&mut conn, &op("k")).await.unwrap());
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    db.execute("update {}.idempotency_keys set expires_at = now()").await;
    Reaper::new(&db.once).pass(&mut conn_as(&db, "reaper").await).await.unwrap();
    let names = "select string_agg(action || ' ' || replace(role, '_{}', ''), ', ' order by id) from {}.audit";
    assert_eq!(
        db.ask::<String>(names).await,
        "begun app, completed app, changed postgres, reaped reaper"
    );
}

#[tokio::test]
async fn notes_are_checked_and_do_nothing_while_the_trail_is_off() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let (scope, key) = (op("k").scope().clone(), op("k").key().clone());
    db.once.audit_note(&mut conn, "viewed", &scope, &key).await.unwrap();
    assert_eq!(lines(&db).await, 0);
    db.once.audit_on(&mut conn, 30).await.unwrap();
    db.once.audit_note(&mut conn, "viewed", &scope, &key).await.unwrap();
    assert_eq!(trail(&db, &op("k")).await, ["viewed"], "of an unknown key");
    for action in ["", "completed", "taken over", "Viewed", "a\nb", &"a".repeat(41)] {
        let error = db.once.audit_note(&mut conn, action, &scope, &key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{action}: {error}");
        assert!(error.to_string().contains("action"), "{error}");
    }
    for limit in [0, 10_001, u32::MAX] {
        let error = db.once.audit(&mut conn, &scope, &key, limit).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{limit}");
    }
    for days in [0, 367, u32::MAX] {
        let error = db.once.audit_on(&mut conn, days).await.unwrap_err();
        assert!(error.to_string().contains("days_kept is"), "{error}");
    }
}
