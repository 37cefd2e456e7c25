//! Each answer of the protocol.

use stacks::{Begun, PayError, Payment, Request};

use crate::database::{BALANCE, Database, LEVELS, request};
use crate::stack::Stack;

pub async fn a_retry_gets_the_first_payment<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        let first = stack.pay("k", &request(1)).await.unwrap();
        assert_eq!(first, Payment { balance: BALANCE - 1 });
        assert_eq!(stack.pay("k", &request(1)).await.unwrap(), first);
        let other = stack.pay("k", &request(2)).await;
        assert!(matches!(other, Err(PayError::Mismatch)), "{other:?}");
        db.has(1, 1).await;
        // Another key is another payment.
        let second = stack.pay("l", &request(1)).await.unwrap();
        assert_eq!(second, Payment { balance: BALANCE - 2 });
        db.has(2, 2).await;
    }
}

pub async fn a_declined_payment_is_kept<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        let dear = request(BALANCE + 1);
        let declined = stack.pay("k", &dear).await;
        assert!(matches!(declined, Err(PayError::Declined(_))), "{declined:?}");
        db.has(0, 1).await;
        // Even if there is enough money now.
        db.execute("update account set balance = balance * 10").await;
        let replay = stack.pay("k", &dear).await;
        let (Err(PayError::Declined(first)), Err(PayError::Declined(again))) = (declined, replay)
        else {
            panic!("declined once, then not");
        };
        assert_eq!(first, again);
        db.execute("update account set balance = balance / 10").await;
        db.has(0, 1).await;
    }
}

pub async fn an_amount_below_one_is_refused<S: Stack>() {
    let db = Database::new(LEVELS[0]).await;
    let stack = S::new(&db).await;
    for amount in [0, -5] {
        let refused = stack.pay("k", &request(amount)).await;
        let Err(PayError::Invalid { field: "amount", value, min: 1 }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(value, amount);
        // No key, and the balance is as before.
        db.has(0, 0).await;
    }
    // The key is still free.
    assert_eq!(stack.pay("k", &request(1)).await.unwrap(), Payment { balance: BALANCE - 1 });
    db.has(1, 1).await;
}

pub async fn failed_work_leaves_nothing<S: Stack>() {
    for level in LEVELS {
        let db = Database::new(level).await;
        let stack = S::new(&db).await;
        let bob = Request { customer: "bob".to_owned(), amount: 1 };
        let unknown = stack.pay("k", &bob).await;
        assert!(matches!(unknown, Err(PayError::NoCustomer)), "{unknown:?}");
        // An error of the database: 22003, out of range.
        db.execute("update account set balance = -2").await;
        let huge = stack.pay("l", &request(i64::MAX)).await;
        assert!(matches!(huge, Err(PayError::Database { .. })), "{huge:?}");
        db.execute(&format!("update account set balance = {BALANCE}")).await;
        db.until_idle().await;
        db.has(0, 0).await;
        // A retry tries again.
        db.execute("insert into account values ('bob', 1)").await;
        assert_eq!(stack.pay("k", &bob).await.unwrap(), Payment { balance: 0 });
        assert_eq!(stack.pay("l", &request(1)).await.unwrap(), Payment { balance: BALANCE - 1 });
        db.has(1, 2).await;
    }
}

pub async fn a_response_that_was_not_kept<S: Stack>() {
    let db = Database::new(LEVELS[0]).await;
    let stack = S::new(&db).await;
    stack.pay("k", &request(1)).await.unwrap();
    db.execute("update pgonce.idempotency_keys set response_body = null, response_omitted = true")
        .await;
    let omitted = stack.pay("k", &request(1)).await;
    assert!(matches!(omitted, Err(PayError::Omitted)), "{omitted:?}");
    db.has(1, 1).await;
}

#[test]
fn an_answer_that_no_example_provokes() {
    let of = |answer: &str| Begun::of((answer.to_owned(), None, None, None));
    assert!(matches!(of("held"), Err(PayError::Held)));
    assert!(matches!(of("started"), Err(PayError::Database { again: false, .. })));
    assert!(matches!(of("new"), Err(PayError::Database { again: false, .. })));
}
