//! Lost connections, lost claims, and errors that the libraries make themselves.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::join;
use stacks::{PayError, Payment, answered};
use tokio::time::timeout;

use crate::database::{BALANCE, Database, LEVELS, PATIENCE, pay_one, request};
use crate::stack::Stack;

pub async fn a_lost_connection_leaves_nothing<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        let mut tx = db.pool.begin().await.unwrap();
        sqlx::query("select from account for update").execute(&mut *tx).await.unwrap();
        // The call has begun, and its work waits for the account.
        let kill = async {
            db.until_blocked().await;
            db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                  where datname = current_database() and application_name <> 'test' and wait_event_type = 'Lock'",
            )
            .await;
        };
        let (lost, ()) = join(stack.pay("k", &request(1)), kill).await;
        assert!(matches!(lost, Err(PayError::Database { again: true, .. })), "{lost:?}");
        tx.rollback().await.unwrap();
        db.until_idle().await;
        db.has(0, 0).await;
        let paid = Payment { balance: BALANCE - 1 };
        assert_eq!(pay_one(&stack, "k").await.unwrap(), paid);
        assert_eq!(pay_one(&stack, "k").await.unwrap(), paid);
        db.has(1, 1).await;
    }
}

/// If `complete` or `fail` is refused, nothing is committed.
pub async fn a_lost_claim_is_not_committed<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        db.execute(
            "create function lose() returns trigger language plpgsql as
             'begin delete from pgonce.idempotency_keys; return new; end';
             create trigger lose after update on account for each row execute function lose()",
        )
        .await;
        let lost = stack.pay("k", &request(1)).await;
        let Err(PayError::Database { source, .. }) = lost else { panic!("{lost:?}") };
        assert!(format!("{source:?}").contains("claim"), "{source:?}");
        db.until_idle().await;
        db.has(0, 0).await;
        db.execute("drop trigger lose on account").await;
        stack.pay("k", &request(1)).await.unwrap();
        db.has(1, 1).await;
    }
}

/// Nothing says that the COMMIT succeeded, but it does.
pub async fn a_commit_without_answer_is_found_again<S: Stack>() {
    let mut db = Database::new(LEVELS[0]).await;
    let proxy = db.behind_proxy().await;
    let stack = S::new(&db).await;
    let commits = db.hold_commits().await;
    let cut = async {
        db.until_blocked().await;
        proxy.cut();
    };
    let (lost, ()) = join(stack.pay("k", &request(1)), cut).await;
    assert!(matches!(lost, Err(PayError::Database { again: true, .. })), "{lost:?}");
    commits.rollback().await.unwrap();
    assert_eq!(pay_one(&stack, "k").await.unwrap(), Payment { balance: BALANCE - 1 });
    db.has(1, 1).await;
}

/// A try that is cut off by the time limit may have paid, and the caller is told so.
pub async fn a_call_ends_by_its_limit<S: Stack>() {
    let db = Database::new(LEVELS[0]).await;
    let stack = S::new(&db).await;
    let commits = db.hold_commits().await;
    let request = request(1);
    let call = answered(Duration::from_secs(5), || stack.pay("k", &request));
    let ended = join(timeout(PATIENCE, call), db.until_blocked()).await.0;
    let ended = ended.expect("the call ends by itself");
    assert!(matches!(ended, Err(PayError::TimedOut)), "{ended:?}");
    commits.rollback().await.unwrap();
    // Without another call.
    db.until("select count(*) from pgonce.keys where status = 'completed'", 1).await;
    db.has(1, 1).await;
    assert_eq!(pay_one(&stack, "k").await.unwrap(), Payment { balance: BALANCE - 1 });
    db.has(1, 1).await;
}

/// Another try would get the same error.
pub async fn an_error_of_the_library_is_returned_at_once<S: Stack>() {
    let db = Database::new(LEVELS[0]).await;
    let stack = S::new(&db).await;
    for error in stack.own_errors().await {
        let text = format!("{error:?}");
        let (tries, error) = (Cell::new(0), Cell::new(Some(error)));
        let ended = answered(PATIENCE, || {
            tries.set(tries.get() + 1);
            let error = error.take().unwrap_or(PayError::NoCustomer);
            async { Err(error) }
        })
        .await;
        assert_eq!(tries.get(), 1, "tries after {text}");
        assert!(matches!(ended, Err(PayError::Database { again: false, .. })), "{ended:?}");
    }
}
