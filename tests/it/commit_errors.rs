//! How a transaction can end without a commit, and what the caller learns: refused, unknown, or COMMIT never sent.

use pgonce::{Claim, Error, ErrorKind, Failure, Lease, Response, RunError, Work};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection};

use crate::support::db::{PATIENCE, TestDb, effect, op, started};
use crate::support::proxy::Proxy;

/// Creates a trigger that fails at COMMIT; the row's key is the SQLSTATE.
async fn fails_at_commit(db: &TestDb) {
    db.execute(
        "create function {}.refuse() returns trigger language plpgsql as
           $$ begin raise exception 'refused' using errcode = new.key; end $$;
         create constraint trigger refuse after insert on {}.effect deferrable initially deferred
           for each row execute function {}.refuse()",
    )
    .await;
}

/// The error from a commit of the verbs whose transaction fails at COMMIT with this SQLSTATE.
async fn commit_fails(db: &TestDb, sqlstate: &str) -> Error {
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op(sqlstate)).await.unwrap());
    effect(&mut tx, &db.schema, sqlstate).await.unwrap();
    claim.complete(&mut tx, Response::empty()).await.unwrap();
    pgonce::commit(tx).await.unwrap_err()
}

// The sender of these errors may have lost track of the commit, or may be a proxy that has.
#[tokio::test]
async fn a_commit_whose_server_broke_is_unknown_and_not_refused() {
    let db = TestDb::new().await;
    fails_at_commit(&db).await;
    for sqlstate in [
        "XX000", "XX001", "XX002", "57P01", "57P02", "57P03", "57P04", "57P05", "58000", "58030",
        "08006", "08P01", "40003",
    ] {
        let error = commit_fails(&db, sqlstate).await;
        assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{sqlstate}: {error:?}");
        assert!(error.is_retryable(), "{sqlstate}");
        let run = db
            .once
            .run(&db.pool, &op("run"), async |tx| effect(tx, &db.schema, sqlstate).await)
            .await;
        let error = run.unwrap_err();
        let unknown =
            matches!(&error, RunError::Protocol(e) if e.kind() == ErrorKind::CommitUnknown);
        assert!(unknown, "{sqlstate}: {error:?}");
    }
}

// The failing object is a constraint or trigger of the work.
#[tokio::test]
async fn a_commit_that_the_works_own_constraint_refuses_is_the_works_failure() {
    let db = TestDb::new().await;
    fails_at_commit(&db).await;
    for sqlstate in ["23505", "23503", "23514", "23P01", "P0001"] {
        let error = commit_fails(&db, sqlstate).await;
        assert_eq!(error.kind(), ErrorKind::CommitRefused, "{sqlstate}: {error:?}");
        assert!(!error.is_retryable(), "{sqlstate}");
        let says = error.to_string();
        assert!(says.contains("COMMIT") && says.contains(sqlstate), "{says}");
        let run = db
            .once
            .run(&db.pool, &op("run"), async |tx| effect(tx, &db.schema, sqlstate).await)
            .await;
        let error = run.unwrap_err();
        assert_eq!(error.sqlstate().as_deref(), Some(sqlstate));
        let RunError::Protocol(cause) = &error else { panic!("{sqlstate}: {error:?}") };
        assert_eq!(cause.kind(), ErrorKind::CommitRefused);
        assert!(!error.is_retryable(), "{sqlstate}");
    }
    // Less specific errors are not retryable, and not reported as faults of pgonce's schema.
    for sqlstate in ["42P01", "42883", "42501", "22012", "22021"] {
        let error = commit_fails(&db, sqlstate).await;
        assert_eq!(error.kind(), ErrorKind::Database, "{sqlstate}: {error:?}");
        let work = async |tx: &mut PgConnection| effect(tx, &db.schema, sqlstate).await;
        let run = db.once.run(&db.pool, &op("run"), work).await;
        assert!(!error.is_retryable() && !run.unwrap_err().is_retryable(), "{sqlstate}");
    }
    // In leased work too, the last transaction is the work's.
    let lease = Lease::new(PATIENCE).unwrap();
    let run = db
        .once
        .run_leased(&db.pool, &op("leased"), lease, async |work: &mut Work| {
            effect(work.last_tx().await?, &db.schema, "23505").await.map_err(Failure::from)
        })
        .await;
    let error = run.unwrap_err();
    assert!(!error.is_retryable(), "{error:?}");
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::CommitRefused);
    assert_eq!(db.effects().await, 0);
}

#[tokio::test]
async fn a_refused_commit_shows_names_and_no_values() {
    let db = TestDb::new().await;
    db.execute(
        "alter table {}.effect add constraint effect_once unique (key) deferrable initially deferred",
    )
    .await;
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    for _ in 0..2 {
        effect(&mut tx, &db.schema, "canary").await.unwrap();
    }
    let error = pgonce::commit(tx).await.unwrap_err();
    for name in ["23505", "effect_once", "effect", &db.schema] {
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
}

// The work ignores an error and continues: in `run`, in leased work, and by the verbs.
#[tokio::test]
async fn an_error_that_the_work_swallowed_is_named_and_not_retryable() {
    let db = TestDb::new().await;
    db.execute("alter table {}.effect add unique (key)").await;
    db.execute("insert into {}.effect (key) values ('taken')").await;
    let swallow = async |conn: &mut PgConnection| {
        effect(conn, &db.schema, "taken").await.unwrap_err();
        Ok::<_, Failure>(())
    };
    let is_named = |error: &Error| {
        assert_eq!(error.kind(), ErrorKind::TransactionAborted, "{error:?}");
        assert_eq!(error.sqlstate().as_deref(), Some("25P02"));
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("swallowed"), "{error}");
    };
    let run = db.once.run(&db.pool, &op("run"), swallow).await.unwrap_err();
    assert!(!run.is_retryable());
    let RunError::Protocol(error) = run else { panic!("{run:?}") };
    is_named(&error);
    let lease = Lease::new(PATIENCE).unwrap();
    let run = db
        .once
        .run_leased(&db.pool, &op("leased"), lease, async |work: &mut Work| {
            swallow(work.last_tx().await?).await
        })
        .await;
    let RunError::Protocol(error) = run.unwrap_err() else { panic!("the last transaction") };
    is_named(&error);
    // The verbs: at complete, at commit, and at a later begin.
    let mut conn = db.conn().await;
    let mut claims: Vec<Claim> = Vec::new();
    for (n, ends_in) in ["complete", "commit", "begin"].into_iter().enumerate() {
        let mut tx = conn.begin().await.unwrap();
        claims.push(started(db.once.begin(&mut tx, &op(&format!("verbs {n}"))).await.unwrap()));
        swallow(&mut tx).await.unwrap_or_default();
        let error = match ends_in {
            "complete" => claims.pop().unwrap().complete(&mut tx, Response::empty()).await,
            "begin" => db.once.begin(&mut tx, &op("another")).await.map(drop),
            _ => pgonce::commit(tx).await,
        };
        is_named(&error.unwrap_err());
    }
    assert_eq!(db.effects().await, 1);
}

// The server ends the session while the work does something else. COMMIT was never sent.
#[tokio::test]
async fn a_session_that_was_idle_for_too_long_has_committed_nothing_and_says_so() {
    let db = TestDb::new().await;
    let dawdle = async |conn: &mut PgConnection| {
        let id = effect(conn, &db.schema, "k").await.unwrap();
        let pid: i32 =
            sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *conn).await.unwrap();
        let impatient = "set local idle_in_transaction_session_timeout = '20ms'";
        sqlx::raw_sql(impatient).execute(&mut *conn).await.unwrap();
        db.until(&format!("select not exists (select from pg_stat_activity where pid = {pid})"))
            .await;
        Ok::<_, Failure>(id)
    };
    let is_told = |error: &Error| {
        assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
        assert!(error.is_retryable());
        assert!(error.to_string().contains("nothing was committed"), "{error}");
    };
    for _ in 0..5 {
        let error = db_error(db.once.run(&db.pool, &op("k"), dawdle).await);
        is_told(&error);
    }
    let mut tx = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op("k")).await.unwrap());
    dawdle(&mut tx).await.unwrap_or_default();
    let error = claim.complete(&mut tx, Response::empty()).await.unwrap_err();
    assert!(error.is_retryable() && error.kind() == ErrorKind::Connection, "{error:?}");
    assert_eq!(db.effects().await, 0);
    // The retry is in time.
    let retry = async |conn: &mut PgConnection| effect(conn, &db.schema, "k").await;
    db.once.run(&db.pool, &op("k"), retry).await.unwrap();
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn a_connection_that_was_dead_before_the_commit_has_committed_nothing() {
    let db = TestDb::new().await;
    let proxy = std::cell::RefCell::new(Some(Proxy::start(&db, None)));
    let options = proxy.borrow().as_ref().unwrap().options();
    let pool = PgPoolOptions::new().connect_lazy_with(options);
    let work = async |conn: &mut PgConnection| {
        let id = effect(conn, &db.schema, "k").await.unwrap();
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(conn).await.unwrap();
        drop(proxy.take());
        db.until(&format!("select not exists (select from pg_stat_activity where pid = {pid})"))
            .await;
        Ok::<_, Failure>(id)
    };
    let error = db_error(db.once.run(&pool, &op("k"), work).await);
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
    assert!(error.is_retryable() && error.to_string().contains("nothing was committed"), "{error}");
    assert_eq!(db.effects().await, 0);
}

fn db_error<T: std::fmt::Debug, E>(result: Result<T, RunError<E>>) -> Error {
    match result {
        Err(RunError::Protocol(error)) => error,
        other => panic!("expected an error of pgonce's: {other:?}"),
    }
}
