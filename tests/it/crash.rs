//! Connections that break and processes that die, at every point: a retry with the same key always leads to exactly one
//! effect.

use std::time::Duration;

use pgonce::{Begin, Done, Error, ErrorKind, Failure, Response, RunError};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::support::db::{TestDb, effect, lasting, op, started, waits, word};
use crate::support::proxy::{Cut, Proxy};
use crate::support::worker::{Parent, Worker};

/// Enough for the server to notice that the last holder is gone.
const LONG: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    Succeeds,
    Fails,
    FailsForGood,
    /// Violates a deferred constraint, if the test has one: COMMIT is refused.
    WritesTwice,
}

/// Runs the key's operation: it writes one row to `effect`, whose id is the value, and ends as `work` says.
pub async fn run(
    db: &TestDb,
    pool: &PgPool,
    key: &str,
    work: Work,
) -> Result<Done<i64>, RunError<Failure>> {
    let work = async |tx: &mut PgConnection| {
        let id = effect(tx, &db.schema, key).await?;
        match work {
            Work::Succeeds => Ok(id),
            Work::Fails => Err(sqlx::Error::RowNotFound.into()),
            Work::FailsForGood => Err(Failure::keep(Response::bytes("declined"))),
            Work::WritesTwice => Ok(effect(tx, &db.schema, key).await?),
        }
    };
    db.once.run(pool, &op(key).policy(waits(LONG)), work).await
}

pub async fn pay(db: &TestDb, pool: &PgPool, key: &str) -> Result<Done<i64>, RunError<Failure>> {
    run(db, pool, key, Work::Succeeds).await
}

pub fn pool_of_one(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(5)) // fails soon if a second connection is needed
        .connect_lazy_with(options)
}

pub async fn effects_of(db: &TestDb, key: &str) -> i64 {
    db.ask(&format!("select count(*) from {{}}.effect where key = '{key}'")).await
}

pub async fn nothing_is_stuck(db: &TestDb) {
    db.until(&format!(
        "select not exists (select from pg_stat_activity
          where application_name = '{}' and state like 'idle in transaction%')",
        db.schema
    ))
    .await;
}

/// A retry on an intact connection performs or replays, whichever must follow.
async fn settled(db: &TestDb, key: &str, replayed: bool) {
    let done = pay(db, &db.pool, key).await.unwrap();
    assert_eq!(done.is_replay(), replayed, "{key}");
    assert_eq!(effects_of(db, key).await, 1, "{key}");
}

/// Cuts a run at its first request, then at its second, and so on until a run gets through. `settle` gets each key and
/// whether it is known to be committed.
async fn cut_everywhere(
    db: &TestDb,
    cut_at: fn(usize) -> Cut,
    commits_expected: usize,
    run: impl AsyncFn(&PgPool, &str) -> Result<Done<i64>, RunError<Failure>>,
    settle: impl AsyncFn(&str, bool),
) {
    let mut commits = 0;
    for request in 1.. {
        let cut = cut_at(request);
        let key = format!("{cut:?}");
        let proxy = Proxy::start(db, Some(cut));
        let error = match run(&pool_of_one(proxy.options()), &key).await {
            Ok(_) | Err(RunError::Failed { .. }) => break,
            Err(error) => error,
        };
        let commit = proxy.commit_was_sent();
        commits += usize::from(commit);
        let unknown =
            matches!(&error, RunError::Protocol(e) if e.kind() == ErrorKind::CommitUnknown);
        assert_eq!(unknown, commit, "{cut:?}: {error:?}");
        assert!(error.is_retryable(), "{cut:?}: {error:?}");
        settle(&key, commit && matches!(cut, Cut::After(_))).await;
    }
    assert_eq!(commits, commits_expected, "how many of the cuts were at COMMIT");
    nothing_is_stuck(db).await;
}

#[tokio::test]
async fn a_run_cut_at_any_request_is_settled_by_a_retry() {
    let db = TestDb::new().await;
    for cut_at in [Cut::Before as fn(usize) -> Cut, Cut::After] {
        cut_everywhere(
            &db,
            cut_at,
            1,
            async |pool, key| pay(&db, pool, key).await,
            async |key, committed| settled(&db, key, committed).await,
        )
        .await;
    }
}

#[tokio::test]
async fn a_kept_failure_cut_at_any_request_is_settled_by_a_retry() {
    let db = TestDb::new().await;
    for cut_at in [Cut::Before as fn(usize) -> Cut, Cut::After] {
        cut_everywhere(
            &db,
            cut_at,
            1,
            async |pool, key| run(&db, pool, key, Work::FailsForGood).await,
            async |key, committed| {
                // The kept failure is replayed even to a caller whose work would succeed.
                let retry = pay(&db, &db.pool, key).await;
                assert_eq!(matches!(retry, Err(RunError::Failed { .. })), committed, "{key}");
                assert_eq!(effects_of(&db, key).await, i64::from(!committed), "{key}");
            },
        )
        .await;
    }
}

#[tokio::test]
async fn a_replay_cut_at_any_request_is_replayed_again() {
    let db = TestDb::new().await;
    for cut_at in [Cut::Before as fn(usize) -> Cut, Cut::After] {
        cut_everywhere(
            &db,
            cut_at,
            0, // nothing to commit
            async |pool, key| {
                pay(&db, &db.pool, key).await.unwrap();
                pay(&db, pool, key).await
            },
            async |key, _| settled(&db, key, true).await,
        )
        .await;
    }
}

/// The same by the verbs, calling `between` between any two statements. Returns whether it was a replay.
async fn pay_by_verbs(
    db: &TestDb,
    conn: &mut PgConnection,
    key: &str,
    between: impl AsyncFn(u32),
) -> anyhow::Result<bool> {
    between(0).await;
    let mut tx = conn.begin().await?;
    between(1).await;
    let begin = db.once.begin(&mut tx, &op(key).policy(waits(LONG))).await?;
    if let Begin::Replay(_) = begin {
        return Ok(true);
    }
    between(2).await;
    effect(&mut tx, &db.schema, key).await?;
    between(3).await;
    started(begin).complete(&mut tx, Response::empty()).await?;
    between(4).await;
    pgonce::commit(tx).await?;
    between(5).await;
    Ok(false)
}

#[tokio::test]
async fn a_lost_answer_to_commit_is_unknown_and_the_same_key_finds_out() {
    let db = TestDb::new().await;
    let clear = Proxy::start(&db, None);
    let mut conn = clear.options().connect().await.unwrap();
    assert!(!pay_by_verbs(&db, &mut conn, "clear", async |_| {}).await.unwrap());
    let commit = 1 + clear.requests().iter().position(|request| request == "COMMIT").unwrap();

    for (cut, committed) in [(Cut::Before(commit), false), (Cut::After(commit), true)] {
        let key = format!("{cut:?}");
        let proxy = Proxy::start(&db, Some(cut));
        let mut conn = proxy.options().connect().await.unwrap();
        let error = pay_by_verbs(&db, &mut conn, &key, async |_| {}).await.unwrap_err();
        let error = error.downcast::<Error>().unwrap();
        assert_eq!(error.kind(), ErrorKind::CommitUnknown);
        assert!(error.is_retryable());
        let replayed = pay_by_verbs(&db, &mut db.conn().await, &key, async |_| {}).await.unwrap();
        assert_eq!(replayed, committed, "{cut:?}");
        assert_eq!(effects_of(&db, &key).await, 1, "{cut:?}");
    }
    nothing_is_stuck(&db).await;
}

/// Ends the session like an operator, a failover or an out-of-memory killer.
async fn terminate(db: &TestDb, pid: i32) {
    assert!(db.ask::<bool>(&format!("select pg_terminate_backend({pid})")).await);
    gone(db, pid).await;
}

pub async fn gone(db: &TestDb, pid: i32) {
    db.until(&format!("select not exists (select from pg_stat_activity where pid = {pid})")).await;
}

pub async fn pid_of(conn: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(conn).await.unwrap()
}

#[tokio::test]
async fn a_session_terminated_between_any_two_statements_is_settled_by_a_retry() {
    let db = TestDb::new().await;
    // The library's statements follow numbers 1, 3 and 4; after 5 nothing can fail.
    let kinds = [
        None,
        Some(ErrorKind::Connection),
        None,
        Some(ErrorKind::Connection),
        Some(ErrorKind::Connection),
    ];
    for boundary in 0..=5_u32 {
        let key = boundary.to_string();
        let mut conn = db.conn().await;
        let pid = pid_of(&mut conn).await;
        let between = async |reached| {
            if reached == boundary {
                terminate(&db, pid).await;
            }
        };
        let result = pay_by_verbs(&db, &mut conn, &key, between).await;
        if let Some(kind) = kinds.get(boundary as usize) {
            let error = result.unwrap_err();
            let error = error.downcast_ref::<Error>();
            assert_eq!(error.map(Error::kind), *kind, "after {boundary}");
            assert!(error.is_none_or(Error::is_retryable), "after {boundary}");
        } else {
            result.unwrap();
        }
        let replayed = pay_by_verbs(&db, &mut db.conn().await, &key, async |_| {}).await.unwrap();
        assert_eq!(replayed, boundary == 5, "after {boundary}");
        assert_eq!(effects_of(&db, &key).await, 1, "after {boundary}");
    }
}

#[tokio::test]
async fn a_session_terminated_inside_the_work_is_settled_by_a_retry() {
    let db = TestDb::new().await;
    let run = async |key: &str, notices: bool| {
        let work = async |tx: &mut PgConnection| {
            let id = effect(tx, &db.schema, key).await?;
            terminate(&db, pid_of(tx).await).await;
            if notices { effect(tx, &db.schema, key).await } else { Ok(id) }
        };
        db.once.run(&db.pool, &op(key), work).await.unwrap_err()
    };
    let noticed = run("noticed", true).await;
    assert!(matches!(noticed, RunError::Work { .. }), "{noticed:?}");
    let unnoticed = run("unnoticed", false).await;
    // The session ended before it got the COMMIT. The client knows that only if the socket refused the COMMIT.
    assert!(
        matches!(&unnoticed, RunError::Protocol(error)
            if matches!(error.kind(), ErrorKind::CommitUnknown | ErrorKind::Connection)),
        "{unnoticed:?}"
    );
    assert!(unnoticed.is_retryable());
    assert!(noticed.is_retryable());
    settled(&db, "noticed", false).await;
    settled(&db, "unnoticed", false).await;
}

#[tokio::test]
async fn a_commit_after_an_overlooked_error_is_no_success() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op("k")).await.unwrap());
    effect(&mut tx, &db.schema, "k").await.unwrap();
    claim.complete(&mut tx, Response::empty()).await.unwrap();
    sqlx::raw_sql("select 1 / 0").execute(&mut *tx).await.unwrap_err();
    let error = pgonce::commit(tx).await.unwrap_err();
    assert_eq!(error.sqlstate().as_deref(), Some("25P02"));
    assert_eq!(db.effects().await, 0);
}

/// COMMIT waits in a deferred trigger until the session is terminated. The server sends FATAL, neither COMMIT nor
/// ERROR, so the outcome is open.
#[tokio::test]
async fn a_session_terminated_inside_commit_leaves_it_unknown() {
    let db = TestDb::new().await;
    db.execute(
        "create function {}.slow() returns trigger language plpgsql as
           $$ begin perform pg_advisory_xact_lock(hashtext('{}')); return null; end $$;
         create constraint trigger slow after insert on {}.effect initially deferred
           for each row execute function {}.slow()",
    )
    .await;
    let mut blocker = db.pool.begin().await.unwrap();
    let lock = db.sql("select pg_advisory_xact_lock(hashtext('{}'))");
    sqlx::raw_sql(lock).execute(&mut *blocker).await.unwrap();

    let end = async {
        db.until_waiting(1).await;
        let waiting = "select pid from pg_stat_activity
                        where application_name = '{}' and wait_event_type = 'Lock'";
        terminate(&db, db.ask(waiting).await).await;
        blocker.rollback().await.unwrap();
    };
    let (result, ()) = tokio::join!(pay(&db, &db.pool, "k"), end);
    let Err(RunError::Protocol(error)) = result else { panic!("expected an error: {result:?}") };
    assert_eq!(error.kind(), ErrorKind::CommitUnknown);
    assert_eq!(error.sqlstate().as_deref(), Some("57P01"));
    settled(&db, "k", false).await;
}

/// A worker's job: dies with its work done but not committed.
pub async fn pay_and_wait(db: &TestDb, parent: &Parent) {
    let work = async |tx: &mut PgConnection| {
        let id = effect(tx, &db.schema, "k").await?;
        parent.say("paid");
        parent.hear().await;
        Ok::<_, sqlx::Error>(id)
    };
    db.once.run(&db.pool, &op("k"), work).await.unwrap();
}

/// A worker's job: dies after its COMMIT, before it reports the commit to others.
pub async fn pay_and_tell(db: &TestDb, parent: &Parent) {
    let done = pay(db, &db.pool, "k").await.unwrap();
    parent.say(*done);
    parent.hear().await;
}

#[tokio::test]
async fn a_process_killed_before_its_commit_leaves_nothing_and_a_retry_performs() {
    let db = TestDb::new().await;
    let mut worker = Worker::spawn(&db, "pay_and_wait");
    assert_eq!(worker.hear().await, "paid");
    worker.kill().await;
    settled(&db, "k", false).await;
    nothing_is_stuck(&db).await;
}

#[tokio::test]
async fn a_process_killed_after_its_commit_is_replayed() {
    let db = TestDb::new().await;
    let mut worker = Worker::spawn(&db, "pay_and_tell");
    let id: i64 = worker.hear().await.parse().unwrap();
    worker.kill().await;
    settled(&db, "k", true).await;
    assert_eq!(db.ask::<i64>("select id from {}.effect").await, id);
}

/// A worker's job: dies with a lease.
pub async fn lease(db: &TestDb, parent: &Parent) {
    let claim = db.lease(&op("k"), LEASE).await;
    parent.say(claim.token());
    parent.hear().await;
}

#[tokio::test]
async fn a_process_killed_with_a_lease_is_replaced_when_the_lease_lapses() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut worker = Worker::spawn(&db, "lease");
    let dead: Uuid = worker.hear().await.parse().unwrap();
    worker.kill().await;

    let mut conn = db.conn().await;
    let op = op("k");
    let begin = async || db.once.begin_leased(&db.pool, &op, lasting(LEASE)).await.unwrap();
    let Begin::InProgress(wait) = begin().await else { panic!("the lease is live") };
    assert_eq!(wait.lease_remaining(), Some(LEASE));
    db.advance(LEASE - SECOND).await;
    assert_eq!(word(&begin().await), "in progress");
    db.advance(SECOND).await;
    let claim = started(begin().await);
    assert_eq!(claim.attempt(), 2);
    assert_ne!(claim.token(), dead);

    let late = db.release(&op, dead).await.unwrap_err();
    assert_eq!(late.as_database_error().unwrap().code().unwrap(), "IK002");
    claim.complete(&mut conn, Response::empty()).await.unwrap();
    let late = db.release(&op, dead).await.unwrap_err();
    assert_eq!(late.as_database_error().unwrap().code().unwrap(), "IK002");
}
