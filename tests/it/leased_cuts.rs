//! Leased work whose connection breaks: recorded steps are found again, even if their caller got no answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgonce::{ErrorKind, Failure, Lease, RunError, Work};
use sqlx::Connection;

use crate::crash::pool_of_one;
use crate::isolation::{LEVELS, pool};
use crate::support::db::{TestDb, effect, op};
use crate::support::proxy::{Cut, Proxy};

fn lease() -> Lease {
    Lease::new(Duration::from_secs(60)).unwrap() // no heartbeat during a test
}

/// Every place to cut a connection between two requests.
fn cuts(requests: std::ops::Range<usize>) -> impl Iterator<Item = Cut> {
    requests.flat_map(|request| [Cut::Before(request + 1), Cut::After(request + 1)])
}

#[derive(Default)]
struct Counted {
    calls: AtomicUsize,
    failures: AtomicUsize,
    /// Requests sent before the work began.
    asked: AtomicUsize,
}

impl Counted {
    fn call(&self, proxy: &Proxy) -> usize {
        self.asked.store(proxy.requests().len(), Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A successful run with one step. Its first connection goes through `proxy`; without a cut, it is the only one.
async fn one_step(db: &TestDb, proxy: &Proxy) -> Counted {
    let counted = Counted::default();
    let pool = pool_of_one(proxy.options());
    let op = op("k");
    let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
        work.step("charge", async || Ok::<_, Failure>(counted.call(proxy))).await
    });
    assert_eq!(*run.await.expect("one cut is survived"), 1);
    counted
}

#[tokio::test]
async fn an_output_outlives_a_connection_that_breaks_after_the_step() {
    let db = TestDb::new().await;
    let clear = Proxy::start(&db, None);
    let asked = one_step(&db, &clear).await.asked.into_inner();
    for cut in cuts(asked..clear.requests().len()) {
        db.execute("delete from {}.steps; delete from {}.idempotency_keys").await;
        let counted = one_step(&db, &Proxy::start_once(&db, cut)).await;
        assert_eq!(counted.calls.into_inner(), 1, "{cut:?}");
        let kept = "select string_agg(name || convert_from(output, 'UTF8'), ' ') from {}.steps";
        assert_eq!(db.ask::<String>(kept).await, "charge1", "{cut:?}");
        let ended = "select every(status = 'completed' and attempt = 1) from {}.keys";
        assert!(db.ask::<bool>(ended).await, "{cut:?}");
    }
}

async fn delete_and_let_reads_fail(db: &TestDb, code: &str) {
    let function = "create or replace function {}.recorded_steps(p_scope text, p_key text, p_token uuid)
                      returns table (name text, definition bytea, output bytea) language plpgsql as";
    let body = format!("$$begin raise 'no' using errcode = '{code}'; end$$");
    let delete = "delete from {}.steps; delete from {}.idempotency_keys;";
    db.execute(&format!("{delete} {function} {body}")).await;
}

#[tokio::test]
async fn a_record_that_can_be_neither_confirmed_nor_read_is_looked_for_by_the_next_call() {
    let db = TestDb::new().await;
    let clear = Proxy::start(&db, None);
    let asked = one_step(&db, &clear).await.asked.into_inner();
    let read: String = db.ask("select pg_get_functiondef('{}.recorded_steps'::regproc)").await;
    let mut unread = 0;
    for cut in cuts(asked..clear.requests().len()) {
        delete_and_let_reads_fail(&db, "57P01").await; // shutting down
        let proxy = Proxy::start_once(&db, cut);
        let (pool, counted, op) = (pool_of_one(proxy.options()), Counted::default(), op("k"));
        let run = || {
            db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
                work.step("charge", async || Ok::<_, Failure>(counted.call(&proxy))).await
            })
        };
        if let Err(error) = run().await {
            assert!(error.is_retryable(), "{cut:?}: {error:?}");
            unread += 1;
            db.execute(&read).await;
            assert_eq!(*run().await.unwrap(), 1, "{cut:?}");
        }
        assert_eq!(counted.calls.into_inner(), 1, "{cut:?}");
    }
    assert!(unread > 0);
}

/// A run with one step in the database, called again if it fails.
async fn one_step_tx(db: &TestDb, proxy: &Proxy) -> Counted {
    let counted = Counted::default();
    let pool = pool_of_one(proxy.options());
    let op = op("k");
    let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
        for last in [false, true] {
            let ledger = work.step_tx("ledger", async |tx| {
                let call = counted.call(proxy);
                effect(tx, &db.schema, "ledger").await.map(|_| call)
            });
            match ledger.await {
                Err(_) if !last => drop(counted.failures.fetch_add(1, Ordering::Relaxed)),
                result => return result,
            }
        }
        unreachable!()
    });
    run.await.expect("one cut is survived");
    counted
}

#[tokio::test]
async fn a_step_in_the_database_is_done_once_wherever_its_connection_breaks() {
    let db = TestDb::new().await;
    let clear = Proxy::start(&db, None);
    let asked = one_step_tx(&db, &clear).await.asked.into_inner();
    let requests = clear.requests();
    let commit = requests.iter().position(|request| request == "COMMIT").unwrap() + 1;
    for cut in cuts(asked..requests.len()) {
        db.execute("delete from {}.steps; delete from {}.idempotency_keys; delete from {}.effect")
            .await;
        let counted = one_step_tx(&db, &Proxy::start_once(&db, cut)).await;
        let committed = match cut {
            Cut::Before(request) => request > commit,
            Cut::After(request) => request >= commit,
            Cut::At(text) => panic!("{text} is no number"),
        };
        let told = (counted.calls.into_inner(), counted.failures.into_inner());
        assert_eq!(told, if committed { (1, 0) } else { (2, 1) }, "{cut:?}");
        assert_eq!(db.effects().await, 1, "{cut:?}");
        assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 1, "{cut:?}");
    }
}

#[tokio::test]
async fn a_claim_that_is_found_lost_is_told_instead_of_an_unknown_commit() {
    let db = TestDb::new().await;
    let clear = Proxy::start(&db, None);
    let asked = one_step_tx(&db, &clear).await.asked.into_inner();
    let mut lost = 0;
    for cut in cuts(asked..clear.requests().len()) {
        delete_and_let_reads_fail(&db, "IK002").await;
        let proxy = Proxy::start_once(&db, cut);
        let (pool, op) = (pool_of_one(proxy.options()), op("k"));
        let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
            let step = work.step_tx("ledger", async |_| Ok::<_, Failure>(1)).await;
            if let Err(failure) = &step {
                let error = failure.error().and_then(|error| error.downcast_ref());
                let kind = error.map(pgonce::Error::kind);
                assert_ne!(kind, Some(ErrorKind::CommitUnknown), "{cut:?}");
                lost += usize::from(kind == Some(ErrorKind::ClaimLost));
            }
            step
        });
        drop(run.await);
    }
    assert!(lost > 0);
}

#[tokio::test]
async fn a_step_that_was_dropped_while_the_server_commits_it_is_waited_for() {
    let db = TestDb::new().await;
    // Every COMMIT of a step waits for the gate.
    db.execute(
        "create function {}.gate() returns trigger language plpgsql as
           $$ begin perform pg_advisory_xact_lock(hashtext('{}')); return null; end $$;
         create constraint trigger gate after insert on {}.steps deferrable initially deferred
           for each row execute function {}.gate()",
    )
    .await;
    for (level, in_database) in LEVELS.into_iter().flat_map(|level| [(level, false), (level, true)])
    {
        let pool = pool(&db, level);
        let mut conn = db.conn().await;
        let mut gate = conn.begin().await.unwrap();
        sqlx::query(db.sql("select pg_advisory_xact_lock(hashtext('{}'))"))
            .execute(&mut *gate)
            .await
            .unwrap();
        let calls = AtomicUsize::new(0);
        let count = || calls.fetch_add(1, Ordering::Relaxed) + 1;
        let op = op(&format!("{level} {in_database}"));
        let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
            let charge = async |work: &mut Work| {
                if in_database {
                    work.step_tx("charge", async |_| Ok::<_, Failure>(count())).await
                } else {
                    work.step("charge", async || Ok::<_, Failure>(count())).await
                }
            };
            tokio::select! {
                ended = charge(work) => panic!("it ended: {ended:?}"),
                () = db.until_waiting(1) => {}
            }
            let open = async {
                db.until_waiting(2).await;
                gate.rollback().await.unwrap();
            };
            tokio::join!(charge(work), open).0
        });
        assert_eq!(*run.await.unwrap(), 1, "the first call's");
        assert_eq!(calls.into_inner(), 1, "{level}, in the database: {in_database}");
    }
}

#[tokio::test]
async fn failed_work_is_given_up_though_the_connection_breaks() {
    let db = TestDb::new().await;
    let fails = async |proxy: &Proxy| {
        db.execute("delete from {}.idempotency_keys").await;
        let counted = Counted::default();
        let pool = pool_of_one(proxy.options());
        let op = op("k");
        let run = db.once.run_leased(&pool, &op, lease(), async |_: &mut Work| {
            counted.call(proxy);
            Err::<(), _>(Failure::from("no"))
        });
        assert!(matches!(run.await.unwrap_err(), RunError::Work { .. }));
        counted.asked.into_inner()
    };
    let clear = Proxy::start(&db, None);
    let asked = fails(&clear).await;
    for cut in cuts(asked..clear.requests().len()) {
        fails(&Proxy::start_once(&db, cut)).await;
        let told = "select claim || ': ' || last_error from {}.operation_status('test/scope', 'k')";
        assert_eq!(db.ask::<String>(told).await, "lapsed: the work returned an error", "{cut:?}");
    }
}

#[tokio::test]
async fn an_end_that_nobody_knows_is_left_to_lapse() {
    let db = TestDb::new().await;
    let ends = async |proxy: &Proxy| {
        let pool = pool_of_one(proxy.options());
        let op = op("k");
        let run = db.once.run_leased(&pool, &op, lease(), async |work: &mut Work| {
            Ok::<_, Failure>(effect(work.last_tx().await?, &db.schema, "order").await?)
        });
        run.await.map(|done| done.is_replay())
    };
    let clear = Proxy::start(&db, None);
    assert!(!ends(&clear).await.unwrap());
    let commit = clear.requests().iter().position(|request| request == "COMMIT").unwrap() + 1;
    for (cut, effects, found) in
        [(Cut::Before(commit), 0, "in_progress, live"), (Cut::After(commit), 1, "completed")]
    {
        db.execute("delete from {}.idempotency_keys; delete from {}.effect").await;
        let error = ends(&Proxy::start_once(&db, cut)).await.unwrap_err();
        assert!(
            matches!(&error, RunError::Protocol(e) if e.kind() == ErrorKind::CommitUnknown),
            "{error:?}"
        );
        assert_eq!(db.effects().await, effects, "{cut:?}");
        let told = "select concat_ws(', ', status, claim, last_error) from {}.operation_status('test/scope', 'k')";
        assert_eq!(db.ask::<String>(told).await, found, "{cut:?}");
    }
    assert!(ends(&clear).await.unwrap());
}
