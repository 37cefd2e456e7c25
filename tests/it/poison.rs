//! Messages whose handling fails: how often they are tried, and how they end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{ErrorKind, Failure, Inbox, Lease, Message, Policy, Response, RunError, Verdict};
use sqlx::{Connection, PgConnection};

use crate::support::db::{PATIENCE, TestDb, effect, kept_for, op};
use crate::support::proxy::{Cut, Proxy};
use crate::support::worker::{Parent, Worker};

fn policy(attempts: u32) -> Policy {
    Policy::inbox().max_attempts(attempts).unwrap().wait(Duration::ZERO).unwrap()
}

fn inbox(db: &TestDb, attempts: u32) -> Inbox {
    let inbox = Inbox::new(&db.once, "orders").unwrap().policy(policy(attempts)).unwrap();
    inbox.pauses(Duration::from_secs(1), Duration::from_secs(60)).unwrap()
}

fn patient(db: &TestDb, attempts: u32) -> Inbox {
    inbox(db, attempts).policy(policy(attempts).wait(PATIENCE).unwrap()).unwrap()
}

/// Delivers a message whose work writes and then fails.
async fn fails(db: &TestDb, inbox: &Inbox, redelivered: bool) -> Verdict {
    let message = &Message::new("m").redelivered(redelivered);
    let work = async |tx: &mut PgConnection| {
        effect(tx, &db.schema, "undone").await?;
        sqlx::query("select 1 / 0").execute(tx).await.map(drop)
    };
    let handled = inbox.handle(&db.pool, message, work).await;
    assert!(handled.result.is_err());
    handled.verdict
}

async fn redrive(db: &TestDb, inbox: &Inbox) -> Result<(), pgonce::Error> {
    let op = pgonce::Operation::new("orders", "m").unwrap();
    let seen = db.seen(&op).await;
    inbox.redrive(&mut db.conn().await, "m", &seen).await
}

async fn works(db: &TestDb, inbox: &Inbox) -> Verdict {
    let message = &Message::new("m").redelivered(false);
    let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "m").await;
    inbox.handle(&db.pool, message, work).await.verdict
}

#[tokio::test]
async fn attempts_are_counted_although_what_they_wrote_is_undone() {
    // The broker's redelivery flag does not change the count.
    for redelivered in [false, true] {
        let db = TestDb::new().await;
        let inbox = inbox(&db, 4);
        let mut pauses = Vec::new();
        for _ in 0..3 {
            let Verdict::Retry(pause) = fails(&db, &inbox, redelivered).await else { panic!() };
            pauses.push(pause.as_secs_f64());
        }
        for (pause, most) in pauses.into_iter().zip([1.0, 2.0, 4.0]) {
            assert!((most / 2.0..=most).contains(&pause), "{pause} of {most}");
        }
        let dead = Verdict::DeadLetter("a database error (SQLSTATE 22012)".to_owned());
        assert_eq!(fails(&db, &inbox, redelivered).await, dead);
        assert_eq!(works(&db, &inbox).await, dead, "and it stays dead");
        assert_eq!(db.effects().await, 0);
    }
}

#[tokio::test]
async fn a_message_that_failed_a_hundred_times_is_redriven_and_takes_effect_once() {
    let db = TestDb::new().await;
    let inbox = inbox(&db, 100);
    for n in 1..=100 {
        let verdict = fails(&db, &inbox, n % 2 == 0).await;
        assert_eq!(matches!(verdict, Verdict::DeadLetter(_)), n == 100, "{n}: {verdict:?}");
    }
    // Redriven repeatedly without a fix: each time it gets all its attempts, then it is dead again.
    let _conn = db.conn().await;
    for _ in 0..3 {
        redrive(&db, &inbox).await.unwrap();
    }
    for n in 1..=100 {
        let verdict = fails(&db, &inbox, false).await;
        assert_eq!(matches!(verdict, Verdict::DeadLetter(_)), n == 100, "{n}: {verdict:?}");
    }
    redrive(&db, &inbox).await.unwrap();
    for _ in 0..2 {
        assert_eq!(works(&db, &inbox).await, Verdict::Ack);
    }
    assert_eq!(db.effects().await, 1);
    let refused = redrive(&db, &inbox).await.unwrap_err();
    assert_eq!(refused.to_string(), "the message is done");
}

#[tokio::test]
async fn a_failure_that_was_kept_is_dead_at_once_and_can_be_redriven() {
    let db = TestDb::new().await;
    let inbox = inbox(&db, 3);
    let message = &Message::new("m").redelivered(false);
    for _ in 0..2 {
        let work = async |tx: &mut PgConnection| {
            effect(tx, &db.schema, "undone").await?;
            Err::<(), _>(Failure::keep(Response::bytes("no such product")))
        };
        let handled = inbox.handle(&db.pool, message, work).await;
        assert_eq!(handled.verdict, Verdict::DeadLetter("it has failed for good".to_owned()));
        let Err(RunError::Failed { response, .. }) = handled.result else { panic!() };
        assert_eq!(response.body(), b"no such product");
    }
    redrive(&db, &inbox).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(fails(&db, &inbox, false).await, Verdict::Retry(_)));
    }
    assert_eq!(works(&db, &inbox).await, Verdict::Ack);
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn only_what_is_dead_or_waits_is_redriven() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let inbox =
        inbox(&db, 3).policy(policy(3).retention(Duration::from_secs(60)).unwrap()).unwrap();
    let mut conn = db.conn().await;
    db.complete(&op("another"), "").await;
    let unseen = db.seen(&op("another")).await;
    let refused = async |conn: &mut PgConnection| {
        let op = pgonce::Operation::new("orders", "m").unwrap();
        let row = db.once.inspect(conn, op.scope(), op.key()).await.unwrap();
        let seen = row.map_or(unseen.clone(), |found| found.record);
        let error = inbox.redrive(conn, "m", &seen).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ClaimLost);
        conn.ping().await.unwrap(); // its locks are released
        error.to_string()
    };
    assert_eq!(refused(&mut conn).await, "the key is unknown");
    let mut other = db.conn().await;
    sqlx::raw_sql("begin").execute(&mut other).await.unwrap();
    let claim = db.once.begin(&mut other, &pgonce::Operation::new("orders", "m").unwrap()).await;
    drop(claim);
    assert_eq!(refused(&mut conn).await, "the key is being worked on");
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    let op =
        pgonce::Operation::new("orders", "m").unwrap().policy(kept_for(Duration::from_secs(60)));
    drop(db.lease(&op, Duration::from_secs(30)).await);
    assert_eq!(refused(&mut conn).await, "the message is being handled");
    db.advance(Duration::from_secs(30)).await;
    fails(&db, &inbox, false).await;
    db.advance(Duration::from_secs(60)).await;
    let forgotten = "the message is forgotten: it is handled as new when it comes again";
    assert_eq!(refused(&mut conn).await, forgotten);
    assert_eq!(
        inbox.redrive(&mut conn, "", &unseen).await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

/// A worker's job: dies of its message.
pub async fn die(db: &TestDb, parent: &Parent) {
    let message = Message::new("m").redelivered(parent.hear().await == "redelivered");
    let inbox = patient(db, 3).lease(Lease::new(Duration::from_millis(300)).unwrap()).unwrap();
    let handled = inbox.handle(&db.pool, &message, async |tx| {
        effect(tx, &db.schema, "undone").await?;
        std::process::abort();
        #[allow(unreachable_code)]
        Ok::<_, Failure>(())
    });
    let verdict = handled.await.verdict;
    parent.say(format!("{verdict:?}"));
}

#[tokio::test]
async fn a_message_that_kills_its_consumers_is_dead_in_the_end() {
    let db = TestDb::new().await;
    // The first death is not counted, because the broker does not report a redelivery. It reports the later ones.
    for delivery in ["new", "redelivered", "redelivered", "redelivered"] {
        let mut worker = Worker::spawn(&db, "die");
        worker.tell(delivery).await;
        assert!(!worker.ended().await.success());
    }
    let mut worker = Worker::spawn(&db, "die");
    worker.tell("redelivered").await;
    assert_eq!(worker.hear().await, r#"DeadLetter("its attempts are used up")"#);
    assert_eq!(db.effects().await, 0);
}

#[tokio::test]
async fn what_is_not_the_messages_fault_is_not_counted_against_it() {
    let db = TestDb::new().await;
    let inbox = patient(&db, 1);
    // The connection breaks at each request in turn, before or after the request.
    let (mut acked, mut again, mut dead) = (0, 0, 0);
    let began = AtomicU32::new(0);
    for cut in (1..=14).flat_map(|n| [Cut::Before(n), Cut::After(n)]) {
        let (id, proxy) = (format!("{cut:?}"), Proxy::start_once(&db, cut));
        let pool = sqlx::postgres::PgPoolOptions::new().connect_lazy_with(proxy.options());
        let message = &Message::new(&id).redelivered(false);
        began.store(0, Ordering::Relaxed);
        let work = async |tx: &mut PgConnection| {
            began.fetch_add(1, Ordering::Relaxed);
            effect(tx, &db.schema, &id).await
        };
        let handled = inbox.handle(&pool, message, work).await;
        match (handled.verdict, handled.result) {
            (Verdict::Ack, Ok(_)) => acked += 1,
            // The commit turns out to have succeeded.
            (Verdict::Ack, Err(RunError::Protocol(error))) => {
                assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{id}");
                acked += 1;
            }
            (Verdict::Retry(_), Err(RunError::Protocol(_))) => {
                assert_eq!(began.load(Ordering::Relaxed), 0, "{id}");
                again += 1;
                let verdict = inbox.handle(&db.pool, message, work).await.verdict;
                assert_eq!(verdict, Verdict::Ack, "{id}");
            }
            // A failure after the work has begun counts, whatever it is: the message may break connections.
            (Verdict::DeadLetter(_), Err(RunError::Work { .. } | RunError::Protocol(_))) => {
                assert_eq!(began.load(Ordering::Relaxed), 1, "{id}");
                dead += 1;
            }
            other => panic!("{id}: {other:?}"),
        }
        pool.close().await;
    }
    println!("{acked} acknowledged, {again} again, {dead} dead");
    assert!(acked > 0 && again > 0 && dead > 0);
    assert_eq!(db.effects().await, acked + again);
    assert_eq!(db.ask::<i64>("select count(distinct key) from {}.effect").await, acked + again);
}

#[tokio::test]
async fn work_that_fails_at_its_commit_is_counted() {
    let db = TestDb::new().await;
    db.execute(
        "alter table {}.effect add constraint late unique (key) deferrable initially deferred",
    )
    .await;
    db.execute("insert into {}.effect (key) values ('m')").await;
    let inbox = inbox(&db, 2);
    assert!(matches!(works(&db, &inbox).await, Verdict::Retry(_)));
    let told = format!(
        "COMMIT was refused, and nothing was committed (SQLSTATE 23505, constraint late, table {}.effect)",
        db.schema
    );
    assert_eq!(works(&db, &inbox).await, Verdict::DeadLetter(told));
}

#[tokio::test]
async fn a_batch_with_a_poisoned_message_is_handled_one_by_one() {
    let db = TestDb::new().await;
    let inbox = inbox(&db, 2);
    let ids: Vec<_> = (0..20).map(|n| format!("m{n}")).collect();
    let calls = AtomicU32::new(0);
    let work = async |tx: &mut PgConnection, id: &str| {
        calls.fetch_add(1, Ordering::Relaxed);
        effect(tx, &db.schema, id).await?;
        if id == "m7" { Err(sqlx::Error::RowNotFound) } else { Ok(()) }
    };
    let mut tx = db.pool.begin().await.unwrap();
    let received = inbox.receive_many(&mut tx, &ids).await.unwrap();
    let mut whole = Ok(());
    for (id, received) in ids.iter().zip(received) {
        if whole.is_ok() && matches!(received, pgonce::Received::New(_)) {
            whole = work(&mut tx, id).await;
        }
    }
    assert!(whole.is_err());
    tx.rollback().await.unwrap();
    for delivery in 0..3 {
        for id in &ids {
            let message = &Message::new(id).redelivered(false);
            let verdict =
                inbox.handle(&db.pool, message, async |tx| work(tx, id).await).await.verdict;
            match (id.as_str(), delivery) {
                ("m7", 0) => assert!(matches!(verdict, Verdict::Retry(_))),
                ("m7", _) => assert!(matches!(verdict, Verdict::DeadLetter(_))),
                _ => assert_eq!(verdict, Verdict::Ack),
            }
        }
    }
    assert_eq!(db.effects().await, 19);
}

#[tokio::test]
async fn counting_waits_for_the_transaction_that_failed_to_be_gone() {
    let db = TestDb::new().await;
    let inbox = patient(&db, 3);
    // As after a kill: the server has not noticed yet.
    let mut first = db.conn().await;
    sqlx::raw_sql("begin").execute(&mut first).await.unwrap();
    let op = pgonce::Operation::new("orders", "m").unwrap();
    drop(db.once.begin(&mut first, &op).await.unwrap());
    let _conn = db.conn().await;
    let end = async {
        db.until_waiting(1).await;
        drop(first);
    };
    let (verdict, ()) = tokio::join!(inbox.failed(&db.pool, "m", "no"), end);
    assert!(matches!(verdict.unwrap(), Verdict::Retry(_)));
    let used = db.ask::<i32>("select used from {}.message_status('orders', 'm', 3)").await;
    assert_eq!(used, 1);
}

#[tokio::test]
async fn a_failure_is_not_told_while_its_transaction_is_open() {
    let db = TestDb::new().await;
    let inbox = inbox(&db, 3);
    let mut tx = db.pool.begin().await.unwrap();
    let _ = inbox.receive(&mut tx, "m").await.unwrap();
    // In there the message looks done, and would be acknowledged.
    let call = db.sql("call {}.count_attempt('orders', 'm')");
    let error = sqlx::query(call).execute(&mut *tx).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "2D000");
    tx.rollback().await.unwrap();
    let verdict = inbox.failed(&db.pool, "m", "no").await.unwrap();
    assert!(matches!(verdict, Verdict::Retry(_)));
}

#[tokio::test]
async fn counting_does_not_wait_for_ever_for_an_open_receive() {
    let db = TestDb::new().await;
    let inbox = inbox(&db, 3);
    let mut open = db.pool.begin().await.unwrap();
    let _ = inbox.receive(&mut open, "m").await.unwrap();
    let _conn = db.conn().await;
    let verdict = tokio::time::timeout(PATIENCE, inbox.failed(&db.pool, "m", "no"));
    assert!(matches!(verdict.await.expect("it is bounded").unwrap(), Verdict::Retry(_)));
}

#[tokio::test]
async fn a_message_that_loses_against_another_transaction_is_not_dead_for_it() {
    let db = TestDb::new().await;
    for redelivered in [false, true] {
        let (inbox, id) = (inbox(&db, 2), format!("redelivered: {redelivered}"));
        let message = &Message::new(&id).redelivered(redelivered);
        let calls = AtomicU32::new(0);
        let handled = inbox.handle(&db.pool, message, async |tx| {
            effect(tx, &db.schema, &id).await?;
            if calls.fetch_add(1, Ordering::Relaxed) < 3 {
                sqlx::query("do $$ begin raise sqlstate '40P01'; end $$").execute(tx).await?;
            }
            Ok::<_, sqlx::Error>(())
        });
        assert_eq!(handled.await.verdict, Verdict::Ack, "{id}");
    }
    assert_eq!(db.effects().await, 2);
}

#[tokio::test]
async fn only_messages_are_redriven() {
    let db = TestDb::new().await;
    let request = pgonce::Operation::new("acme/payments.create", "order-17").unwrap();
    let request = request.fingerprint(pgonce::Fingerprint::of_bytes("100"));
    let run = db.once.run(&db.pool, &request, async |_: &mut PgConnection| {
        Err::<(), _>(Failure::keep(Response::bytes("declined")))
    });
    run.await.unwrap_err();
    let inbox = Inbox::new(&db.once, "acme/payments.create").unwrap();
    let seen = db.seen(&request).await;
    let refused = inbox.redrive(&mut db.conn().await, "order-17", &seen).await.unwrap_err();
    assert_eq!(refused.to_string(), "the key is not a message");
}

// Its own error is pgonce's, and looks like the deployment's.
#[tokio::test]
async fn work_that_names_a_bad_key_is_counted() {
    let db = TestDb::new().await;
    for redelivered in [false, true] {
        let (inbox, id) = (inbox(&db, 2), format!("{redelivered}"));
        let message = Message::new(&id).redelivered(redelivered);
        let work = async |_: &mut PgConnection| {
            pgonce::Key::new("")?;
            Ok::<_, Failure>(())
        };
        let first = inbox.handle(&db.pool, &message, work).await.verdict;
        assert!(matches!(first, Verdict::Retry(_)), "{id}: {first:?}");
        let second = inbox.handle(&db.pool, &message, work).await.verdict;
        assert!(matches!(second, Verdict::DeadLetter(_)), "{id}: {second:?}");
    }
}
