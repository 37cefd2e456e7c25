//! `run` with a new key that another caller has: the answers, and who waits how long.

use std::time::{Duration, Instant};

use pgonce::{Failure, PgOnce, Response, RunError, SchemaName};
use sqlx::{Connection, PgConnection};

use crate::crash::pool_of_one;
use crate::support::db::{TestDb, effect, op, started, waits};
use crate::support::proxy::Proxy;

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn run_tells_a_duplicate_at_once() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    let _claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let proxy = Proxy::start(&db, None);
    let pool = pool_of_one(proxy.options());
    for prepared in [false, true] {
        let before = proxy.requests().len();
        let refused = db.once.run(&pool, &op("k"), async |_| Ok::<_, Failure>(1)).await;
        assert!(matches!(refused, Err(RunError::InProgress(_))), "{refused:?}");
        let mut requests = proxy.requests().split_off(before);
        requests.retain(|request| !request.is_empty()); // sent by the pool
        assert!(!prepared || requests.len() == 3, "BEGIN, look, ROLLBACK: {requests:?}");
    }
}

// Each call as in its own process. If there is no answer, one of them takes over.
#[tokio::test]
async fn run_waits_beside_others_for_an_answer() {
    for commits in [true, false] {
        let db = TestDb::new().await;
        let mut holder = db.conn().await;
        let mut holder = holder.begin().await.unwrap();
        let claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let schema = SchemaName::new(db.schema.as_str()).unwrap();
            let once = PgOnce::new().schema(schema);
            let pool = db.pool.clone();
            let schema = db.schema.clone();
            waiters.spawn(async move {
                let work = async |tx: &mut PgConnection| {
                    effect(tx, &schema, "k").await.map(|_| "ours".to_owned())
                };
                once.run(&pool, &op("k").policy(waits(LONG)), work).await.unwrap().into_inner()
            });
        }
        db.until(
            "select count(*) = 6 from pg_locks l join pg_stat_activity a using (pid)
              where a.application_name = '{}' and not l.granted",
        )
        .await;
        if commits {
            claim.complete(&mut holder, Response::json("theirs").unwrap()).await.unwrap();
            holder.commit().await.unwrap();
        } else {
            drop(claim);
            holder.rollback().await.unwrap();
        }
        let answers = waiters.join_all().await;
        let (answer, effects) = if commits { ("theirs", 0) } else { ("ours", 1) };
        assert!(answers.iter().all(|each| each == answer), "{answers:?}");
        assert_eq!(db.effects().await, effects);
    }
}

// The limit applies to the whole wait, however often it restarts.
#[tokio::test]
async fn run_waits_no_longer_than_it_was_told() {
    let db = TestDb::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    let _claim = started(db.once.begin(&mut holder, &op("k")).await.unwrap());
    let wait = Duration::from_secs(2);
    let bounded = async || {
        let once = db.once.clone();
        let began = Instant::now();
        let refused =
            once.run(&db.pool, &op("k").policy(waits(wait)), async |_| Ok::<_, Failure>(1)).await;
        assert!(matches!(refused, Err(RunError::InProgress(_))), "{refused:?}");
        let took = began.elapsed();
        assert!(took >= wait && took < wait * 2, "{took:?}");
    };
    tokio::join!(bounded(), bounded(), bounded());
}
