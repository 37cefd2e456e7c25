//! Leased work that fails: what is undone, what is kept, and who may run it again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{Failure, Fingerprint, Lease, OnLapse, Response, RunError, Work};

use crate::harness::{TestDb, effect, op};

fn lease() -> Lease {
    Lease::new(Duration::from_secs(60)).unwrap()
}

#[tokio::test]
async fn failed_work_may_run_again_and_keeps_its_steps() {
    let db = TestDb::new().await;
    let print = |text: &str| op("k").fingerprint(Fingerprint::of_bytes(text));
    let (ours, others) = (print("100"), print("200"));
    let failing = db.once.run_leased(&db.pool, &ours, lease(), async |work: &mut Work| {
        work.step("charge", async || Ok::<_, Failure>(7)).await?;
        effect(work.last_tx().await?, &db.schema, "undone").await?;
        Err::<(), _>(Failure::from("card number 4242"))
    });
    assert!(matches!(failing.await.unwrap_err(), RunError::Work(_)));
    assert_eq!(db.effects().await, 0);
    let told: String = db.ask("select last_error from {}.idempotency_keys").await;
    assert_eq!(told, "the work returned an error", "and not what it was about");
    // With a step done it is no longer free for another request.
    let other =
        db.once.run_leased(&db.pool, &others, lease(), async |_: &mut Work| Ok::<_, Failure>(()));
    assert!(matches!(other.await.unwrap_err(), RunError::Mismatch(_)));
    let again = db.once.run_leased(&db.pool, &ours, lease(), async |work: &mut Work| {
        work.step("charge", async || -> Result<i32, Failure> { panic!("it is done") }).await
    });
    assert_eq!(*again.await.unwrap(), 7);
}

#[tokio::test]
async fn failed_work_is_held_where_an_operator_decides() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let op = op("k").on_lapse(OnLapse::Hold);
    let run = db.once.run_leased(&db.pool, &op, lease(), async |_: &mut Work| {
        sqlx::query("select 1/0").execute(&mut db.conn().await).await?;
        Ok::<_, Failure>(())
    });
    assert!(matches!(run.await.unwrap_err(), RunError::Work(_)));
    db.advance(Duration::from_secs(60)).await;
    let again =
        db.once.run_leased(&db.pool, &op, lease(), async |_: &mut Work| Ok::<_, Failure>(()));
    assert!(matches!(again.await.unwrap_err(), RunError::Held(_)));
    let told: String = db.ask("select last_error from {}.idempotency_keys").await;
    assert_eq!(told, "a database error (SQLSTATE 22012)");
}

#[tokio::test]
async fn a_final_failure_is_replayed() {
    let db = TestDb::new().await;
    let calls = AtomicU32::new(0);
    let op = op("k");
    for replay in [false, true] {
        let run = db.once.run_leased(&db.pool, &op, lease(), async |work: &mut Work| {
            calls.fetch_add(1, Ordering::Relaxed);
            effect(work.last_tx().await?, &db.schema, "undone").await?;
            Err::<(), _>(Failure::keep(Response::bytes("declined")))
        });
        let error = run.await.unwrap_err();
        let RunError::Failed { response, replayed, .. } = error else { panic!("{error:?}") };
        assert_eq!((response.body(), replayed), (b"declined".as_slice(), replay));
    }
    assert_eq!((calls.load(Ordering::Relaxed), db.effects().await), (1, 0));
}

#[tokio::test]
async fn work_that_always_fails_is_held_when_its_attempts_are_used_up() {
    let db = TestDb::new().await;
    let ours = op("k").fingerprint(Fingerprint::of_bytes("100")).max_attempts(2);
    let fails = async || {
        db.once
            .run_leased(&db.pool, &ours, lease(), async |_: &mut Work| {
                Err::<(), _>(Failure::from("no"))
            })
            .await
            .unwrap_err()
    };
    for _ in 0..2 {
        assert!(matches!(fails().await, RunError::Work(_)));
    }
    assert!(matches!(fails().await, RunError::Held(_)));
    let told: String = db.ask("select last_error from {}.idempotency_keys").await;
    assert_eq!(told, "the work returned an error");
    // It may have called a remote under a derived key: the key is no other request's.
    let other = op("k").fingerprint(Fingerprint::of_bytes("200"));
    let run =
        db.once.run_leased(&db.pool, &other, lease(), async |_: &mut Work| Ok::<_, Failure>(()));
    assert!(matches!(run.await.unwrap_err(), RunError::Mismatch(_)));
}
