//! Several calls at once.

use futures_util::future::{join, join_all};
use stacks::{PayError, Payment};

use crate::database::{BALANCE, Database, LEVELS, pay_one, request};
use crate::stack::Stack;

pub async fn fifty_calls_with_one_key_pay_once<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        let paid = join_all((0..50).map(|_| pay_one(&stack, "k"))).await;
        for paid in paid {
            assert_eq!(paid.unwrap(), Payment { balance: BALANCE - 1 });
        }
        db.has(1, 1).await;
    }
}

pub async fn fifty_keys_of_one_account_all_pay<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        let keys: Vec<_> = (0..50).map(|n| format!("key{n}")).collect();
        let paid = join_all(keys.iter().map(|key| pay_one(&stack, key))).await;
        let mut balances: Vec<_> = paid.into_iter().map(|paid| paid.unwrap().balance).collect();
        balances.sort_unstable();
        let expected: Vec<_> = (BALANCE - 50..BALANCE).collect();
        assert_eq!(balances, expected);
        db.has(50, 50).await;
    }
}

/// A call meanwhile does not wait; the work that is the deadlock's victim runs again.
pub async fn a_deadlock_is_tried_again<S: Stack>() {
    let db = Database::new(LEVELS[0]).await;
    let stack = S::new(&db).await;
    let mut tx = db.pool.begin().await.unwrap();
    // So that the call is the victim, not this transaction.
    for sql in ["set local deadlock_timeout = '1h'", "select from account for update"] {
        sqlx::raw_sql(sql).execute(&mut *tx).await.unwrap();
    }
    let other = async {
        db.until_blocked().await;
        let meanwhile = stack.pay("k", &request(1)).await;
        assert!(matches!(meanwhile, Err(PayError::InProgress)), "{meanwhile:?}");
        // Waits for the call's transaction, which waits for this one.
        sqlx::raw_sql(
            "insert into pgonce.idempotency_keys (created_at, expires_at, lease_expires_at, token, status, scope, key)
             values (now(), now() + '1h', now() + '1h', gen_random_uuid(), 1, 'acme/payments.create', 'k')",
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.rollback().await.unwrap();
    };
    let (paid, ()) = join(pay_one(&stack, "k"), other).await;
    assert_eq!(paid.unwrap(), Payment { balance: BALANCE - 1 });
    db.has(1, 1).await;
    // The next try may be a victim, too.
    let deadlocks =
        "select least(deadlocks, 1) from pg_stat_database where datname = current_database()";
    db.until(deadlocks, 1).await;
}
