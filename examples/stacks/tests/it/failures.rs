//! Lost connections and lost claims.

use futures_util::future::join;
use stacks::{PayError, Payment};

use crate::database::{BALANCE, Database, LEVELS, pay_one, request};
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
