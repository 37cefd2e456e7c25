//! `run` and its parts.

use super::{LEAKS, drop_begin, leave, pool};
use crate::crash::{Work, effects_of, pay, run};
use crate::support::db::TestDb;

#[tokio::test]
async fn what_run_says_is_done_is_committed() {
    let db = TestDb::new().await;
    for (how, leak) in LEAKS {
        let pool = pool(&db);
        leave(&db, &pool, leak).await;
        let id = *pay(&db, &pool, how).await.unwrap_or_else(|error| panic!("{how}: {error:?}"));
        assert_eq!(effects_of(&db, how).await, 1, "{how}");
        leave(&db, &pool, leak).await;
        let again = pay(&db, &pool, how).await.unwrap_or_else(|error| panic!("{how}: {error:?}"));
        assert!(again.is_replay() && *again == id, "{how}");
        // A kept failure, then one that is not kept.
        let kept = format!("{how} kept");
        for work in [Work::FailsForGood, Work::Fails] {
            leave(&db, &pool, leak).await;
            run(&db, &pool, &kept, work).await.unwrap_err();
            let failed = "select count(*) from {}.keys where status = 'failed' and key = ";
            assert_eq!(db.ask::<i64>(&format!("{failed}'{kept}'")).await, 1, "{kept}");
            assert_eq!(effects_of(&db, &kept).await, 0, "{kept}");
        }
        pool.close().await;
        super::nothing_is_left(&db, how).await;
    }
}

#[tokio::test]
async fn what_run_says_is_done_is_committed_behind_a_begin_that_was_dropped() {
    let db = TestDb::new().await;
    let pool = pool(&db);
    for key in ["a", "b"] {
        drop_begin(&db, &pool).await;
        pay(&db, &pool, key).await.unwrap();
        assert_eq!(effects_of(&db, key).await, 1);
        drop_begin(&db, &pool).await;
        assert!(pay(&db, &pool, key).await.unwrap().is_replay());
    }
}
