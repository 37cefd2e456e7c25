//! Every kind of call, through whatever proxy is in front of the server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{
    Begin, Failure, Inbox, Lease, Message, Operation, PgOnce, Reaper, Recovery, Response, RunError,
    Verdict, Work,
};
use sqlx::PgPool;

use crate::process::PATIENCE;
use crate::stage::{Stage, effect, op};

/// Makes each call and repeats it: the first must perform, the others replay.
pub async fn all_work(stage: &Stage, pool: &PgPool) {
    run(stage, pool).await;
    optimistic(stage, pool).await;
    verbs(stage, pool).await;
    leased(stage, pool).await;
    inbox(stage, pool).await;
    recovery(stage, pool).await;
    reap(stage, pool).await;
}

pub async fn run(stage: &Stage, pool: &PgPool) {
    let calls = AtomicU32::new(0);
    for replayed in [false, true, true] {
        let work = async |conn: &mut _| {
            calls.fetch_add(1, Ordering::Relaxed);
            effect(conn, "run").await
        };
        let done = stage.once.run(pool, &op("run"), work).await.unwrap();
        assert_eq!((done.is_replay(), done.into_inner().as_str()), (replayed, "run"));
    }
    assert_eq!((calls.into_inner(), stage.effects("run").await), (1, 1));
    for again in [false, true] {
        let work = async |conn: &mut _| {
            effect(conn, "declined").await?;
            Err::<(), _>(Failure::keep(Response::bytes("declined")))
        };
        match stage.once.run(pool, &op("declined"), work).await.unwrap_err() {
            RunError::Failed { response, replayed, .. } => {
                assert_eq!((response.body(), replayed), (&b"declined"[..], again));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stage.effects("declined").await, 0);
}

async fn optimistic(stage: &Stage, pool: &PgPool) {
    for replayed in [false, true] {
        let work = async |conn: &mut _| effect(conn, "optimistic").await;
        let done = stage.once.run(pool, &op("optimistic").optimistic(), work).await.unwrap();
        assert_eq!(done.is_replay(), replayed);
    }
    assert_eq!(stage.effects("optimistic").await, 1);
}

async fn verbs(stage: &Stage, pool: &PgPool) {
    for replayed in [false, true] {
        let mut tx = pool.begin().await.unwrap();
        match stage.once.begin(&mut tx, &op("verbs")).await.unwrap() {
            Begin::Started(claim) => {
                assert!(!replayed);
                effect(&mut tx, "verbs").await.unwrap();
                claim.complete(&mut tx, Response::empty()).await.unwrap();
            }
            Begin::Replay(_) => assert!(replayed),
            other => panic!("{other:?}"),
        }
        tx.commit().await.unwrap();
    }
    assert_eq!(stage.effects("verbs").await, 1);
}

fn lease() -> Lease {
    Lease::new(PATIENCE).unwrap()
}

/// The first attempt does the step and fails; the second continues after the step.
async fn two_attempts(
    once: &PgOnce,
    pool: &PgPool,
    op: &Operation,
    steps: &AtomicU32,
) -> Result<bool, RunError<Failure>> {
    let work = async |work: &mut Work| {
        let attempt = work.attempt();
        let step = async || {
            steps.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Failure>(7)
        };
        let seven = work.step("charge", step).await?;
        if attempt == 1 { Err(Failure::from("later")) } else { Ok(seven) }
    };
    let done = once.run_leased(pool, op, lease(), work).await?;
    let replayed = done.is_replay();
    assert_eq!(done.into_inner(), 7);
    Ok(replayed)
}

async fn leased(stage: &Stage, pool: &PgPool) {
    let (op, steps) = (op("leased"), AtomicU32::new(0));
    two_attempts(&stage.once, pool, &op, &steps).await.unwrap_err();
    for replayed in [false, true] {
        assert_eq!(two_attempts(&stage.once, pool, &op, &steps).await.unwrap(), replayed);
    }
    assert_eq!(steps.into_inner(), 1);
}

async fn inbox(stage: &Stage, pool: &PgPool) {
    let inbox = Inbox::new(&stage.once, "consumer").unwrap();
    for _ in 0..2 {
        let work = async |conn: &mut _| effect(conn, "message").await;
        let handled = inbox.handle(pool, &Message::new("1"), work).await;
        assert_eq!(handled.verdict, Verdict::Ack);
    }
    assert_eq!(stage.effects("message").await, 1);
}

async fn recovery(stage: &Stage, pool: &PgPool) {
    let op = Operation::new("recovered/scope", "half done").unwrap();
    let first = two_attempts(&stage.once, pool, &op, &AtomicU32::new(0)).await;
    first.unwrap_err();
    let recovery = Recovery::new(&stage.once, "recovered/%")
        .unwrap()
        .interval(Duration::from_millis(1))
        .unwrap();
    let handler = |found: pgonce::Listed| {
        let (once, pool) = (stage.once.clone(), pool.clone());
        async move {
            let op = Operation::new(found.scope.as_str(), found.key.as_str())?;
            two_attempts(&once, &pool, &op, &AtomicU32::new(0)).await.map(drop)
        }
    };
    let done = stage
        .until("select status = 2 from pgonce.idempotency_keys where scope = 'recovered/scope'");
    assert_eq!(recovery.run_until(pool.clone(), handler, done).await, 1);
}

async fn reap(stage: &Stage, pool: &PgPool) {
    stage
        .execute(
            "update pgonce.idempotency_keys set created_at = created_at - interval '40 days',
                    lease_expires_at = lease_expires_at - interval '40 days',
                    expires_at = expires_at - interval '40 days'",
        )
        .await;
    let keys: i64 = stage.ask("select count(*) from pgonce.idempotency_keys").await;
    let reaped = Reaper::new(&stage.once).pass(&mut pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(i64::try_from(reaped.deleted).unwrap(), keys);
    assert_eq!(stage.ask::<i64>("select count(*) from pgonce.idempotency_keys").await, 0);
}
