//! A leased begin whose answer was lost is repeated with the same token. Also: leases longer than the rest of the
//! retention.

use std::time::Duration;

use pgonce::{Begin, ErrorKind, Operation, Response};
use sqlx::types::Uuid;

use crate::crash::pool_of_one;
use crate::support::db::{TestDb, kept_for, lasting, op, started, word};
use crate::support::proxy::{Cut, Proxy};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_begin_whose_answer_is_lost_starts_once() {
    let db = TestDb::new().await;
    let clear = Proxy::start(&db, None);
    let begun =
        db.once.begin_leased(&pool_of_one(clear.options()), &op("clear"), lasting(MINUTE)).await;
    drop(started(begun.unwrap()));
    let call = clear.requests().iter().position(|sent| sent == "execute").unwrap() + 1;
    for cut in [Cut::Before(call), Cut::After(call)] {
        let proxy = Proxy::start_once(&db, cut);
        let op = op(&format!("{cut:?}"));
        let begun = db.once.begin_leased(&pool_of_one(proxy.options()), &op, lasting(MINUTE)).await;
        let claim = started(begun.unwrap());
        let calls = proxy.requests().iter().filter(|sent| *sent == "execute").count();
        assert_eq!(calls, 2, "{cut:?}: it was asked again");
        assert_eq!(claim.attempt(), 1, "{cut:?}");
        assert_eq!(db.seen(&op).await.attempt, 1, "{cut:?}");
        claim.complete_leased(&db.pool, Response::empty()).await.unwrap();
    }
    let unfinished: i64 = db.ask("select count(*) from {}.unfinished where key <> 'clear'").await;
    assert_eq!(unfinished, 0);
}

/// Begins with this token, like a caller that lost the answer. Returns answer and attempt.
async fn ask(db: &TestDb, token: Uuid, on_lapse: &str) -> (String, Option<i32>) {
    let call = "call {}.begin_leased('test/scope', 'k', $1, 60000, p_on_lapse => $2)";
    let row =
        sqlx::query(db.sql(call)).bind(token).bind(on_lapse).fetch_one(&db.pool).await.unwrap();
    (sqlx::Row::get(&row, "answer"), sqlx::Row::get(&row, "attempt"))
}

#[tokio::test]
async fn a_begin_that_is_asked_again_late_is_the_same_claim_until_another_has_taken_it_over() {
    for on_lapse in ["retry", "hold"] {
        let db = TestDb::new().await;
        db.stop_clock().await;
        let token = Uuid::new_v4();
        let first = ("started".to_owned(), Some(1));
        assert_eq!(ask(&db, token, on_lapse).await, first);
        assert_eq!(ask(&db, token, on_lapse).await, first, "live");
        db.advance(2 * MINUTE).await;
        assert_eq!(ask(&db, token, on_lapse).await, first, "lapsed, and nobody has taken it over");
        let live = "select lease_expires_at = {}._clock() + interval '1 min' from {}.keys";
        assert!(db.ask::<bool>(live).await, "the lease counts from the last asking");
        // Another caller gets "in progress", and takes over once the claim has lapsed again.
        assert_eq!(
            word(&db.once.begin_leased(&db.pool, &op("k"), lasting(MINUTE)).await.unwrap()),
            "in progress"
        );
        db.advance(2 * MINUTE).await;
        let other = db.lease(&op("k"), MINUTE).await;
        assert_eq!(other.attempt(), 2);
        assert_eq!(ask(&db, token, on_lapse).await.0, "in_progress", "taken over");
        other.complete_leased(&db.pool, Response::empty()).await.unwrap();
        assert_eq!(ask(&db, token, on_lapse).await.0, "replay", "finished by the other one");
    }
}

#[tokio::test]
async fn a_claim_that_was_taken_over_after_the_retention_was_raised_is_extended_as_any_other() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let before = op("k").policy(kept_for(HOUR));
    drop(db.lease(&before, MINUTE).await);
    db.advance(50 * MINUTE).await;
    // Longer than the rest of the row's retention, but shorter than the caller's.
    let raised = op("k").policy(kept_for(24 * HOUR));
    let mut claim = db.lease(&raised, 2 * HOUR).await;
    assert_eq!(claim.attempt(), 2);
    for _ in 0..3 {
        db.advance(HOUR).await;
        claim
            .extend(&db.pool, lasting(2 * HOUR))
            .await
            .expect("its lease may outlast the row's retention");
        let begin = db.once.begin_leased(&db.pool, &raised, lasting(MINUTE)).await.unwrap();
        assert_eq!(word(&begin), "in progress", "a live claim is never forgotten");
        let mut conn = db.conn().await;
        assert_eq!(db.once.reap_once(&mut conn, 10).await.unwrap().deleted, 0);
    }
    claim.complete_leased(&db.pool, Response::empty()).await.unwrap();
    // Limits that always applied still apply.
    let op = Operation::new("test/scope", "other").unwrap();
    let Begin::Started(mut claim) =
        db.once.begin_leased(&db.pool, &op, lasting(MINUTE)).await.unwrap()
    else {
        panic!()
    };
    let error = claim.extend(&db.pool, lasting(Duration::MAX)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
