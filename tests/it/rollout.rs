//! Rollout modes: what `run` does in each, who may change them, and what is known when the database cannot be asked.

use std::time::Duration;

use pgonce::{Class, ErrorKind, Failure, Fingerprint, Operation, Response};
use pgonce::{Rollout, RolloutMode, RunError};
use sqlx::PgConnection;
use tokio::sync::oneshot;

use crate::support::db::{PATIENCE, TestDb, effect, op, started, waits};
use crate::support::metrics::Metrics;
use crate::support::proxy::{Cut, Proxy};
use crate::support::roles::{conn_as, role, with_roles};

fn class() -> Class {
    Class::new("payments").unwrap()
}

/// A client whose modes come from the database.
pub async fn rolled_out() -> (TestDb, Rollout) {
    let mut db = TestDb::new().await;
    let rollout = Rollout::new();
    db.once = db.once.clone().class(class()).rollout(&rollout);
    (db, rollout)
}

pub async fn switch(db: &TestDb, rollout: &Rollout, mode: impl Into<Option<RolloutMode>>) {
    let mut conn = db.conn().await;
    db.once.set_mode(&mut conn, &class(), mode.into()).await.unwrap();
    rollout.read(&db.once, &mut conn).await.unwrap();
}

/// Runs the usual work; whether it was replayed.
async fn pay(db: &TestDb, op: &Operation) -> Result<bool, RunError<sqlx::Error>> {
    let work = async |tx: &mut PgConnection| effect(tx, &db.schema, op.key().as_str()).await;
    db.once.run(&db.pool, op, work).await.map(|done| done.is_replay())
}

async fn rows(db: &TestDb) -> i64 {
    db.ask("select count(*) from {}.idempotency_keys").await
}

#[tokio::test]
async fn off_runs_the_work_each_time_and_records_no_key() {
    let (db, rollout) = rolled_out().await;
    switch(&db, &rollout, RolloutMode::Off).await;
    for _ in 0..2 {
        assert!(!pay(&db, &op("k")).await.unwrap());
    }
    assert_eq!((db.effects().await, rows(&db).await), (2, 0));
}

#[tokio::test]
async fn observe_runs_the_work_each_time_records_new_keys_and_counts_what_it_would_have_said() {
    let metrics = Metrics::of_thread();
    let (db, rollout) = rolled_out().await;
    switch(&db, &rollout, RolloutMode::Observe).await;
    let request = |bytes: &str| op("k").fingerprint(Fingerprint::of_bytes(bytes)).optimistic();
    for bytes in ["a", "a", "b"] {
        assert!(!pay(&db, &request(bytes)).await.unwrap());
    }
    // Another transaction has the key: nobody waits for it.
    let mut holder = db.pool.begin().await.unwrap();
    drop(started(db.once.begin(&mut holder, &op("busy")).await.unwrap()));
    let busy = op("busy").policy(waits(PATIENCE));
    let paid = tokio::time::timeout(PATIENCE / 2, pay(&db, &busy)).await;
    assert!(!paid.unwrap().unwrap());
    holder.rollback().await.unwrap();
    assert_eq!((db.effects().await, rows(&db).await), (4, 1));
    for (answer, count) in [("replayed", 1), ("mismatch", 1), ("in_progress", 1), ("held", 0)] {
        let name = format!("pgonce.observed{{answer={answer},class=payments}}");
        assert_eq!(metrics.get(&name), count, "{answer}");
    }
    assert_eq!(metrics.get("pgonce.started{class=payments}"), 2, "the new key and the holder");
    // What was recorded counts from now on.
    switch(&db, &rollout, RolloutMode::Required).await;
    assert!(pay(&db, &request("a")).await.unwrap());
    assert!(matches!(pay(&db, &request("b")).await, Err(RunError::Mismatch(_))));
    assert_eq!(db.effects().await, 4);
}

#[tokio::test]
async fn failures_are_told_as_they_are_and_observe_keeps_the_first() {
    let (db, rollout) = rolled_out().await;
    for (mode, kept) in [(RolloutMode::Off, 0), (RolloutMode::Observe, 1)] {
        switch(&db, &rollout, mode).await;
        for _ in 0..2 {
            let declined = async |tx: &mut PgConnection| {
                effect(tx, &db.schema, "k").await?;
                Err::<(), _>(Failure::keep(Response::bytes("declined")))
            };
            let told = db.once.run(&db.pool, &op("declined"), declined).await.unwrap_err();
            assert!(matches!(told, RunError::Failed { replayed: false, .. }), "{told:?}");
            let broken = async |tx: &mut PgConnection| {
                effect(tx, &db.schema, "k").await?;
                Err::<(), _>(Failure::from("broken"))
            };
            let told = db.once.run(&db.pool, &op("broken"), broken).await.unwrap_err();
            assert!(matches!(told, RunError::Work { .. }), "{told:?}");
        }
        assert_eq!((db.effects().await, rows(&db).await), (0, kept), "{mode}");
    }
}

#[tokio::test]
async fn an_ignored_error_of_the_database_is_never_taken_for_a_commit() {
    let (db, rollout) = rolled_out().await;
    for mode in [RolloutMode::Off, RolloutMode::Observe] {
        switch(&db, &rollout, mode).await;
        let swallows = async |tx: &mut PgConnection| {
            effect(tx, &db.schema, "k").await?;
            let _ = sqlx::query("select 1/0").execute(tx).await;
            Ok::<_, sqlx::Error>(())
        };
        let error = db.once.run(&db.pool, &op("k"), swallows).await.unwrap_err();
        let RunError::Protocol(error) = error else { panic!("{mode}: {error:?}") };
        assert_eq!(error.kind(), ErrorKind::TransactionAborted, "{mode}");
        assert_eq!(db.effects().await, 0);
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_stored_is_returned_as_it_is() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Value {
        #[serde(skip)]
        hidden: u32,
        number: f64,
    }
    let metrics = Metrics::of_thread();
    let (db, rollout) = rolled_out().await;
    for mode in [RolloutMode::Off, RolloutMode::Observe] {
        switch(&db, &rollout, mode).await;
        for number in [f64::NAN, 1.0] {
            let work = async |tx: &mut PgConnection| {
                effect(tx, &db.schema, mode.as_str()).await?;
                Ok::<_, sqlx::Error>(Value { hidden: 7, number })
            };
            let done = db.once.run(&db.pool, &op(mode.as_str()), work).await.unwrap();
            assert_eq!((done.hidden, done.number.is_nan()), (7, number.is_nan()), "{mode}");
        }
    }
    assert_eq!((db.effects().await, rows(&db).await), (4, 1));
    assert_no_duplicate(&metrics);
}

// With protection, the same key finds out what became of it. Here another call would run the work again.
#[tokio::test]
async fn a_commit_without_an_answer_is_not_to_be_tried_again() {
    let (db, rollout) = rolled_out().await;
    let required = (RolloutMode::Required, ErrorKind::CommitUnknown, true);
    let off = (RolloutMode::Off, ErrorKind::Database, false);
    let observe = (RolloutMode::Observe, ErrorKind::Database, false);
    for (mode, kind, is_retryable) in [required, off, observe] {
        switch(&db, &rollout, mode).await;
        let proxy = Proxy::start_once(&db, Cut::At("COMMIT"));
        let pool = sqlx::postgres::PgPoolOptions::new().connect_lazy_with(proxy.options());
        let work = async |tx: &mut PgConnection| effect(tx, &db.schema, mode.as_str()).await;
        let error = db.once.run(&pool, &op(mode.as_str()), work).await.unwrap_err();
        assert_eq!(error.is_retryable(), is_retryable, "{mode}");
        let RunError::Protocol(error) = error else { panic!("{mode}: {error:?}") };
        assert_eq!(error.kind(), kind, "{mode}");
    }
}

fn assert_no_duplicate(metrics: &Metrics) {
    assert_eq!(metrics.all().keys().find(|name| name.starts_with("pgonce.observed")), None);
}

#[tokio::test]
async fn contention_starts_observed_and_unprotected_work_again() {
    let (db, rollout) = rolled_out().await;
    let pool = crate::isolation::pool(&db, "serializable");
    for mode in [RolloutMode::Off, RolloutMode::Observe] {
        switch(&db, &rollout, mode).await;
        let starts = std::sync::atomic::AtomicU32::new(0);
        let work = async |tx: &mut PgConnection| {
            let all = db.sql("select count(*) from {}.effect");
            let seen: i64 = sqlx::query_scalar(all).fetch_one(&mut *tx).await?;
            if starts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                // A write skew: each reads what the other writes.
                let mut other = pool.begin().await?;
                sqlx::query(db.sql("select count(*) from {}.effect")).execute(&mut *other).await?;
                effect(&mut other, &db.schema, "other").await?;
                effect(tx, &db.schema, mode.as_str()).await?;
                other.commit().await?;
                return Ok(seen);
            }
            effect(tx, &db.schema, mode.as_str()).await?;
            Ok::<_, sqlx::Error>(seen)
        };
        db.once.run(&pool, &op(mode.as_str()), work).await.unwrap();
        assert_eq!(starts.into_inner(), 2, "{mode}");
        let count = format!("select count(*) from {{}}.effect where key = '{mode}'");
        assert_eq!(db.ask::<i64>(&count).await, 1);
    }
}

#[tokio::test]
async fn observed_work_runs_even_if_pgonce_may_not_write_its_key() {
    let metrics = Metrics::of_thread();
    let mut db = with_roles().await;
    let rollout = Rollout::new();
    db.once = db.once.clone().class(class()).rollout(&rollout);
    switch(&db, &rollout, RolloutMode::Observe).await;
    let pool = crate::support::roles::pool_as(&db, "app");
    for right in ["insert", "select"] {
        let revoke = format!("revoke {right} on {{}}.idempotency_keys from {}", role(&db, "app"));
        db.execute(&revoke).await;
        let work = async |tx: &mut PgConnection| effect(tx, &db.schema, right).await;
        db.once.run(&pool, &op("k"), work).await.unwrap();
    }
    assert_eq!((db.effects().await, rows(&db).await), (2, 0));
    assert_no_duplicate(&metrics);
}

#[tokio::test]
async fn the_code_decides_for_a_class_without_a_mode_and_the_database_for_the_others() {
    let (db, rollout) = rolled_out().await;
    let off = op("k").mode(RolloutMode::Off);
    for _ in 0..2 {
        pay(&db, &off).await.unwrap();
    }
    assert_eq!(db.effects().await, 2, "the code's");
    switch(&db, &rollout, RolloutMode::Required).await;
    assert!(!pay(&db, &off).await.unwrap());
    assert!(pay(&db, &off).await.unwrap(), "the database's");
    let other = off.clone().class(Class::new("other").unwrap());
    assert!(!pay(&db, &other).await.unwrap(), "another class");
    switch(&db, &rollout, None).await;
    assert!(!pay(&db, &off).await.unwrap(), "the code's again");
}

#[tokio::test]
async fn while_the_database_cannot_be_asked_the_last_modes_hold() {
    let (db, rollout) = rolled_out().await;
    switch(&db, &rollout, RolloutMode::Off).await;
    let proxy = Proxy::start(&db, None);
    let pool = sqlx::postgres::PgPoolOptions::new().connect_lazy_with(proxy.options());
    drop(proxy);
    let mut reader = rollout.clone().interval(Duration::from_millis(1)).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (once, none) = (db.once.clone(), pool.clone());
    let reading = tokio::spawn(async move { reader.run_until(&once, none, stopped).await });
    pool.acquire().await.unwrap_err();
    drop(stop);
    reading.await.unwrap();
    assert_eq!(rollout.mode(&class()), Some(RolloutMode::Off));
    // And are read again when it can.
    db.once.set_mode(&mut db.conn().await, &class(), Some(RolloutMode::Observe)).await.unwrap();
    reader = rollout.clone().interval(Duration::from_millis(1)).unwrap();
    let seen = async {
        while rollout.mode(&class()) != Some(RolloutMode::Observe) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reader.run_until(&db.once, db.pool.clone(), seen))
        .await
        .unwrap();
}

#[tokio::test]
async fn each_change_says_who_and_when_and_needs_a_right_of_its_own() {
    let mut db = with_roles().await;
    db.once = db.once.clone().class(class());
    let mut app = conn_as(&db, "app").await;
    let refused = db.once.set_mode(&mut app, &class(), Some(RolloutMode::Off)).await.unwrap_err();
    assert_eq!(refused.sqlstate().as_deref(), Some("42501"));
    let forged = format!(
        "insert into {}.rollout (at, class, mode) values (now(), 'payments', 'off')",
        db.schema
    );
    sqlx::query(sqlx::AssertSqlSafe(forged)).execute(&mut app).await.unwrap_err();
    db.execute(&format!("grant execute on function {{}}.set_mode to {}", role(&db, "app"))).await;
    sqlx::query("set pgonce.actor = 'ann'").execute(&mut app).await.unwrap();
    for mode in [Some(RolloutMode::Observe), Some(RolloutMode::Required), None] {
        db.once.set_mode(&mut app, &class(), mode).await.unwrap();
    }
    let changes = db.once.rollout_changes(&mut app, &class(), 10).await.unwrap();
    let modes: Vec<_> = changes.iter().map(|change| change.mode).collect();
    assert_eq!(modes, [Some(RolloutMode::Observe), Some(RolloutMode::Required), None]);
    assert!(changes.iter().all(|change| change.role == role(&db, "app")));
    assert!(changes.iter().all(|change| change.actor.as_deref() == Some("ann")));
    assert!(changes[0].at <= changes[1].at && changes[1].at <= changes[2].at);
    assert_eq!(db.once.rollout_changes(&mut app, &class(), 1).await.unwrap(), changes[2..]);
    assert!(db.once.rollout_modes(&mut app).await.unwrap().is_empty());
    // A migration gives the right to nobody and takes it from nobody.
    let stamp = "create or replace function {}.schema_version(out version integer, out serves_from integer, out digest text)
                   language sql as $$ select 1, 1, 'older' $$";
    db.execute(stamp).await;
    db.once.migrate(&mut db.conn().await).await.unwrap();
    db.once.set_mode(&mut app, &class(), Some(RolloutMode::Off)).await.unwrap();
    let mut reaper = conn_as(&db, "reaper").await;
    db.once.set_mode(&mut reaper, &class(), None).await.unwrap_err();
}

#[tokio::test]
async fn bad_modes_and_classes_are_refused() {
    let db = TestDb::new().await;
    let long = "x".repeat(101);
    for (class, mode, says) in [
        ("c", "on", "mode takes off, observe, optional, required or null"),
        ("", "off", "class is empty; it takes 1 to 255 bytes"),
        (&long, "off", "class is 101 bytes long; it takes 1 to 100 bytes"),
    ] {
        let call = sqlx::query(db.sql("select {}.set_mode($1, $2)")).bind(class).bind(mode);
        let error = call.execute(&mut db.conn().await).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().message(), says);
    }
    assert_eq!("on".parse::<RolloutMode>().unwrap_err().kind(), ErrorKind::InvalidInput);
}
