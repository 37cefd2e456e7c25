//! Calls whose future is dropped.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use futures_util::future::{Either, select};
use stacks::Payment;

use crate::database::{BALANCE, Database, LEVELS, pay_one, request};
use crate::stack::Stack;

pub async fn a_call_dropped_in_its_work_leaves_nothing<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        let mut tx = db.pool.begin().await.unwrap();
        sqlx::query("select from account for update").execute(&mut *tx).await.unwrap();
        let request = request(1);
        {
            let call = pin!(stack.pay("k", &request));
            let blocked = pin!(db.until_blocked());
            let Either::Right(_) = select(call, blocked).await else { panic!("not blocked") };
        }
        tx.rollback().await.unwrap();
        // Without another call: nothing stays open until the next one comes.
        db.until_idle().await;
        db.has(0, 0).await;
        assert_eq!(pay_one(&stack, "k").await.unwrap(), Payment { balance: BALANCE - 1 });
        db.has(1, 1).await;
    }
}

pub async fn a_call_dropped_at_any_point_pays_once<S: Stack>() {
    for level in LEVELS {
        let mut db = Database::new(level).await;
        let _proxy = db.behind_proxy().await; // so that each round trip is at least one poll
        let stack = S::new(&db).await;
        pay_one(&stack, "connects").await.unwrap();
        let mut keys = 1;
        loop {
            let key = format!("dropped after {keys} polls");
            let ended = polled(keys, stack.pay(&key, &request(1))).await;
            // Nothing stays open until the next call comes.
            db.until_idle().await;
            pay_one(&stack, &key).await.unwrap();
            keys += 1;
            db.has(keys, keys).await;
            if let Some(paid) = ended {
                paid.unwrap();
                break;
            }
        }
        println!("{level}: {keys} polls");
        assert!(keys > 6, "begin, work behind a savepoint, complete and commit are 6 round trips");
    }
}

/// Polls up to `polls` times, then drops. None: it had not ended.
async fn polled<F: Future>(polls: i64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
