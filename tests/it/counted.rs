//! Which attempts to handle a message count, and which do not.

use std::time::Duration;

use pgonce::{
    Failure, Inbox, Lease, Message, OnLapse, Operation, PgOnce, Policy, RunError, SchemaName,
    Verdict, Work,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};

use crate::support::db::{TestDb, effect, on_lapse, tried};

const BRIEF: Duration = Duration::from_millis(50);

fn inbox(once: &PgOnce) -> Inbox {
    Inbox::new(once, "orders")
        .unwrap()
        .policy(Policy::inbox().max_attempts(3).unwrap().wait(Duration::ZERO).unwrap())
        .unwrap()
}

async fn used(db: &TestDb) -> Option<i32> {
    db.ask("select used from {}.message_status('orders', 'm', 3)").await
}

async fn pid(conn: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(conn).await.unwrap()
}

async fn until_gone(db: &TestDb, pid: i32) {
    db.until(&format!("select not exists (select from pg_stat_activity where pid = {pid})")).await;
}

/// What the server does to the work. The work notices only at its end.
async fn dies(db: &TestDb, tx: &mut PgConnection, how: &str) -> sqlx::Result<()> {
    effect(tx, &db.schema, "undone").await?;
    match how {
        "statement_timeout" => {
            sqlx::raw_sql("set local statement_timeout = '10ms'; select pg_sleep(60)")
                .execute(tx)
                .await?;
        }
        "idle_in_transaction_session_timeout" => {
            let pid = pid(tx).await;
            sqlx::raw_sql("set idle_in_transaction_session_timeout = '10ms'").execute(tx).await?;
            until_gone(db, pid).await;
        }
        "pg_terminate_backend" => {
            let pid = pid(tx).await;
            db.execute(&format!("select pg_terminate_backend({pid})")).await;
            until_gone(db, pid).await;
        }
        _ => drop(sqlx::query("select 1 / 0").execute(tx).await), // and ignores the error
    }
    Ok(())
}

#[tokio::test]
async fn a_first_delivery_that_dies_by_the_servers_hand_is_counted_each_time() {
    for how in [
        "statement_timeout",
        "idle_in_transaction_session_timeout",
        "pg_terminate_backend",
        "a swallowed error",
    ] {
        let db = TestDb::new().await;
        for delivery in 1..=4 {
            let message = &Message::new("m").redelivered(false);
            let work = async |tx: &mut PgConnection| dies(&db, tx, how).await;
            let handled = inbox(&db.once).handle(&db.pool, message, work).await;
            let dead = matches!(handled.verdict, Verdict::DeadLetter(_));
            assert_eq!(dead, delivery >= 3, "{how}, {delivery}: {handled:?}");
            assert_eq!(used(&db).await, Some(delivery.min(3)), "{how}");
        }
        assert_eq!(db.effects().await, 0);
    }
}

#[tokio::test]
async fn what_has_nothing_to_do_with_a_message_is_not_counted_against_it() {
    let db = TestDb::new().await;
    let pool = |options: sqlx::postgres::PgConnectOptions| {
        PgPoolOptions::new().max_connections(1).acquire_timeout(BRIEF).connect_lazy_with(options)
    };
    let nowhere = pool(db.options.clone().socket("/nowhere"));
    let crowded = pool(db.options.clone());
    let _held = crowded.acquire().await.unwrap();
    let read_only = PgPool::connect_lazy_with(
        db.options.clone().options([("default_transaction_read_only", "on")]),
    );
    let no_schema = PgOnce::new().schema(SchemaName::new("no_such_schema").unwrap());
    let cases = [
        ("unreachable", &db.once, &nowhere),
        ("no connection is free", &db.once, &crowded),
        ("read-only", &db.once, &read_only),
        ("not migrated", &no_schema, &db.pool),
    ];
    for (case, once, pool) in cases {
        for delivery in 0..5 {
            let message = &Message::new("m").redelivered(delivery % 2 == 1);
            let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "m").await.map(drop);
            let handled = inbox(once).handle(pool, message, work).await;
            assert!(matches!(handled.verdict, Verdict::Retry(_)), "{case}: {handled:?}");
        }
    }
    assert_eq!(used(&db).await, None);
    assert_eq!(db.effects().await, 0);
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_message_that_is_put_off_keeps_all_its_attempts() {
    for redelivered in [false, true] {
        let db = TestDb::new().await;
        let inbox = inbox(&db.once);
        let message = &Message::new("m").redelivered(redelivered);
        for _ in 0..10 {
            let work = async |tx: &mut PgConnection| {
                effect(tx, &db.schema, "undone").await?;
                Err::<(), _>(Failure::later(HOUR))
            };
            let handled = inbox.handle(&db.pool, message, work).await;
            assert_eq!(handled.verdict, Verdict::Retry(HOUR));
            assert!(handled.result.unwrap_err().is_retryable());
            assert_eq!(used(&db).await.unwrap_or(0), 0);
        }
        // Also between attempts that count.
        for attempt in 1..=3 {
            let fails = async |_: &mut PgConnection| Err::<(), _>("no");
            let verdict = inbox.handle(&db.pool, message, fails).await.verdict;
            assert_eq!(matches!(verdict, Verdict::DeadLetter(_)), attempt == 3, "{verdict:?}");
            if attempt < 3 {
                let later = async |_: &mut PgConnection| Err::<(), _>(Failure::later(HOUR));
                let verdict = inbox.handle(&db.pool, message, later).await.verdict;
                assert_eq!(verdict, Verdict::Retry(HOUR));
                assert_eq!(used(&db).await, Some(attempt));
            }
        }
        assert_eq!(db.effects().await, 0);
    }
}

#[tokio::test]
async fn work_that_is_put_off_is_undone_and_retryable() {
    let db = TestDb::new().await;
    let put_off = |error: RunError<Failure>| {
        assert!(matches!(error, RunError::Work { .. }) && error.is_retryable(), "{error:?}");
        assert_eq!(error.retry_after(), Some(HOUR));
    };
    let op = Operation::new("acme", "k").unwrap().policy(tried(1));
    let work = async |tx: &mut PgConnection| {
        effect(tx, &db.schema, "undone").await?;
        Err::<(), _>(Failure::later(HOUR))
    };
    put_off(db.once.run(&db.pool, &op, work).await.unwrap_err());
    // Under a lease, the steps stay, and its only attempt is given back each time.
    let lease = Lease::new(Duration::from_secs(60)).unwrap();
    for calls in [1, 0, 0] {
        let mut called = 0;
        let work = async |work: &mut Work| {
            work.step("ask", async || {
                called += 1;
                Ok::<_, Failure>(7)
            })
            .await?;
            effect(work.last_tx().await?, &db.schema, "undone").await?;
            Err::<(), _>(Failure::later(HOUR))
        };
        put_off(db.once.run_leased(&db.pool, &op, lease, work).await.unwrap_err());
        assert_eq!(called, calls);
    }
    let fails = async |_: &mut Work| Err::<(), _>("no");
    let failed = db.once.run_leased(&db.pool, &op, lease, fails).await.unwrap_err();
    assert!(matches!(failed, RunError::Work { .. }) && failed.retry_after().is_none());
    let again = db.once.run_leased(&db.pool, &op, lease, fails).await.unwrap_err();
    assert!(matches!(again, RunError::Held(_)), "{again:?}");
    assert_eq!(db.effects().await, 0);
    // Under `OnLapse::Hold`, postponed work is held too, once its claim lapses.
    let op = Operation::new("acme", "held").unwrap().policy(on_lapse(OnLapse::Hold));
    let later = async |_: &mut Work| Err::<(), _>(Failure::later(HOUR));
    let short = Lease::new(Duration::from_millis(100)).unwrap();
    put_off(db.once.run_leased(&db.pool, &op, short, later).await.unwrap_err());
    db.until(
        "select lease_expires_at < clock_timestamp() from {}.idempotency_keys where key = 'held'",
    )
    .await;
    let held = db.once.run_leased(&db.pool, &op, short, later).await.unwrap_err();
    assert!(matches!(held, RunError::Held(_)), "{held:?}");
}
