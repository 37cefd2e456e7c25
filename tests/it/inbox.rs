//! Redelivered messages: one effect each, through every entry point.

use std::time::Duration;

use pgonce::{ErrorKind, Failure, Inbox, Message, Policy, Received, Response, RunError, Verdict};
use sqlx::{Connection, PgConnection};

use crate::support::db::{PATIENCE, TestDb, effect, kept_for, started, word};

const MINUTE: Duration = Duration::from_secs(60);
const CONSUMER: &str = "orders";

fn inbox(db: &TestDb) -> Inbox {
    waiting(db, Duration::ZERO)
}

fn waiting(db: &TestDb, bound: Duration) -> Inbox {
    let policy = Policy::inbox().wait(bound).unwrap().max_attempts(3).unwrap();
    Inbox::new(&db.once, CONSUMER).unwrap().policy(policy).unwrap()
}

fn op(id: &str) -> pgonce::Operation {
    pgonce::Operation::new(CONSUMER, id).unwrap()
}

fn said(received: &Received) -> &'static str {
    match received {
        Received::New(_) => "new",
        Received::Seen(_) => "seen",
        Received::InProgress => "in progress",
        Received::Dead(_) => "dead",
        Received::Refused(_) => "refused",
    }
}

/// A message's state before it arrives, and the expected answer.
const CASES: [(&str, &str); 11] = [
    ("unknown", "new"),
    ("completed", "seen"),
    ("failed for good", "dead"),
    ("forgotten", "new"),
    ("forgotten unfinished", "new"),
    ("lease live", "in progress"),
    ("lease lapsed", "new"),
    ("released", "new"),
    ("attempts left", "new"),
    ("attempts used up", "dead"),
    ("in another transaction", "in progress"),
];

/// Brings a case about. Returns the connection that is at work on it, if any.
async fn bring_about(db: &TestDb, case: &str, id: &str) -> Option<PgConnection> {
    let mut conn = db.conn().await;
    let short = op(id).policy(kept_for(Duration::from_secs(1)));
    match case {
        "unknown" => {}
        "completed" => db.complete(&op(id), "the response").await,
        "failed for good" => {
            let claim = started(db.once.begin(&mut conn, &op(id)).await.unwrap());
            claim.fail(&mut conn, Response::empty()).await.unwrap();
        }
        "forgotten" => {
            db.complete(&short, "").await;
            db.advance(MINUTE).await;
        }
        "forgotten unfinished" => {
            drop(db.lease(&short, Duration::from_secs(1)).await);
            db.advance(MINUTE).await;
        }
        "lease live" => drop(db.lease(&op(id), 10 * MINUTE).await),
        "lease lapsed" => {
            drop(db.lease(&op(id), MINUTE).await);
            db.advance(MINUTE).await;
        }
        "released" => db.lease(&op(id), MINUTE).await.release(&mut conn).await.unwrap(),
        "attempts left" => {
            inbox(db).failed(&db.pool, id, "no").await.unwrap();
        }
        "attempts used up" => {
            for _ in 0..3 {
                inbox(db).failed(&db.pool, id, "no").await.unwrap();
            }
        }
        "in another transaction" => {
            sqlx::raw_sql("begin").execute(&mut conn).await.unwrap();
            drop(started(db.once.begin(&mut conn, &op(id)).await.unwrap()));
            return Some(conn);
        }
        case => panic!("no case is called {case}"),
    }
    None
}

/// The entry points. Each handles a new message, and returns its answer in the same words.
const WAYS: [&str; 7] = [
    "receive",
    "a batch of one",
    "in the midst of a batch",
    "twice in a batch",
    "handle",
    "handle, redelivered",
    "SQL",
];

async fn come_in(db: &TestDb, way: &str, id: &str) -> String {
    let inbox = inbox(db);
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let answer = match way {
        "receive" => said(&inbox.receive(&mut tx, id).await.unwrap()),
        "a batch of one" => said(&inbox.receive_many(&mut tx, &[id]).await.unwrap()[0]),
        "in the midst of a batch" => {
            let call = fastrand::u64(..);
            let others = |n: u32| (0..n).map(move |n| format!("{n} in call {call}"));
            let ids: Vec<_> =
                others(7).chain([id.to_owned(), String::new()]).chain(others(3)).collect();
            let received = inbox.receive_many(&mut tx, &ids).await.unwrap();
            let answers: Vec<_> = received.iter().map(said).collect();
            assert_eq!(answers[..7], ["new"; 7]);
            assert_eq!(answers[8..], ["refused", "seen", "seen", "seen"]);
            answers[7]
        }
        "twice in a batch" => {
            let received = inbox.receive_many(&mut tx, &[id, "another", id]).await.unwrap();
            let (first, second) = (said(&received[0]), said(&received[2]));
            assert_eq!(second, if first == "new" { "seen" } else { first });
            first
        }
        "handle" | "handle, redelivered" => {
            tx.rollback().await.unwrap();
            let message = &Message::new(id).redelivered(way != "handle");
            let work = async |tx: &mut PgConnection| effect(tx, &db.schema, id).await.map(drop);
            let handled = inbox.handle(&db.pool, message, work).await;
            return match (handled.verdict, handled.result) {
                (Verdict::Ack, Ok(done)) if !done.is_replay() => "new",
                (Verdict::Ack, _) => "seen",
                (Verdict::Retry(_), Err(RunError::InProgress(_))) => "in progress",
                (Verdict::DeadLetter(_), _) => "dead",
                other => panic!("{other:?}"),
            }
            .to_owned();
        }
        _ => {
            let sql = "select answer from {}.receive('orders', array[$1], 604800000, 0, 3)";
            let answer: String =
                sqlx::query_scalar(db.sql(sql)).bind(id).fetch_one(&mut *tx).await.unwrap();
            if answer == "new" {
                effect(&mut tx, &db.schema, id).await.unwrap();
            }
            tx.commit().await.unwrap();
            return answer.replace('_', " ");
        }
    };
    if answer == "new" {
        effect(&mut tx, &db.schema, id).await.unwrap();
    }
    tx.commit().await.unwrap();
    answer.to_owned()
}

#[tokio::test]
async fn every_way_in_passes_the_same_table_of_cases() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    for way in WAYS {
        for (case, expected) in CASES {
            let id = format!("{case}, {way}");
            let busy = bring_about(&db, case, &id).await;
            assert_eq!(come_in(&db, way, &id).await, expected, "{id}");
            drop(busy);
            // In every case: a handled message is seen, and has one effect.
            if expected == "new" {
                for again in WAYS {
                    assert_eq!(come_in(&db, again, &id).await, "seen", "{id}, then {again}");
                }
            }
            let effects: i64 =
                db.ask(&format!("select count(*) from {{}}.effect where key = '{id}'")).await;
            assert_eq!(effects, i64::from(expected == "new"), "{id}");
        }
    }
    assert_eq!(
        db.ask::<i64>("select count(*) from {}.unfinished where key like 'lease lapsed%'").await,
        0
    );
}

#[tokio::test]
async fn what_is_seen_brings_its_response_and_what_is_dead_its_reason() {
    let db = TestDb::new().await;
    let inbox = inbox(&db);
    let mut conn = db.conn().await;
    let work = async |_: &mut PgConnection| Ok::<_, Failure>("shipped".to_owned());
    let handled = inbox.handle(&db.pool, &Message::new("m"), work).await;
    assert_eq!(*handled.result.unwrap(), "shipped");
    let Received::Seen(response) = inbox.receive(&mut conn, "m").await.unwrap() else { panic!() };
    assert_eq!(response.parse_json::<String>().unwrap(), "shipped");

    for _ in 0..3 {
        inbox.failed(&db.pool, "bad", "no such product").await.unwrap();
    }
    let Received::Dead(reason) = inbox.receive(&mut conn, "bad").await.unwrap() else { panic!() };
    assert_eq!(reason, "no such product");
    let received = inbox.receive_many(&mut conn, &["", "bad", "good"]).await.unwrap();
    let Received::Refused(error) = &received[0] else { panic!() };
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let Received::New(receipt) = &received[2] else { panic!() };
    assert_eq!(receipt.attempt(), 1);
    assert_eq!(receipt.derived_key("invoice"), inbox.derived_key("good", "invoice").unwrap());
}

#[tokio::test]
async fn a_batch_that_is_rolled_back_has_received_nothing() {
    let db = TestDb::new().await;
    let inbox = inbox(&db);
    let mut conn = db.conn().await;
    let ids: Vec<_> = (0..100).map(|n| format!("m{n}")).collect();
    let mut tx = conn.begin().await.unwrap();
    let received = inbox.receive_many(&mut tx, &ids).await.unwrap();
    assert!(received.iter().all(|received| said(received) == "new"));
    tx.rollback().await.unwrap();
    let received = inbox.receive_many(&mut conn, &ids).await.unwrap();
    assert!(received.iter().all(|received| said(received) == "new"));
    assert!(inbox.receive_many(&mut conn, &[""; 0]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_batch_waits_for_another_one_and_then_knows() {
    let db = TestDb::new().await;
    let ids: Vec<_> = (0..50).map(|n| format!("m{n}")).collect();
    for (ending, expected) in [("commit", "seen"), ("rollback", "new")] {
        let waiting = waiting(&db, MINUTE);
        let mut first = db.conn().await;
        sqlx::raw_sql("begin").execute(&mut first).await.unwrap();
        let _ = waiting.receive_many(&mut first, &ids).await.unwrap();
        let second = async {
            let mut conn = db.conn().await;
            let mut tx = conn.begin().await.unwrap();
            let received = waiting.receive_many(&mut tx, &ids).await.unwrap();
            tx.rollback().await.unwrap();
            received
        };
        let end = async {
            db.until_waiting(1).await;
            sqlx::raw_sql(ending).execute(&mut first).await.unwrap();
        };
        let (received, ()) = tokio::join!(second, end);
        assert!(received.iter().all(|received| said(received) == expected), "{ending}");
        db.execute("delete from {}.idempotency_keys").await;
    }
}

#[tokio::test]
async fn one_that_is_busy_does_not_keep_the_rest_of_its_batch() {
    let db = TestDb::new().await;
    let inbox = inbox(&db);
    let mut first = db.conn().await;
    sqlx::raw_sql("begin").execute(&mut first).await.unwrap();
    let _ = inbox.receive(&mut first, "m7").await.unwrap();
    let mut conn = db.conn().await;
    sqlx::raw_sql("set lock_timeout = '17s'").execute(&mut conn).await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    let ids: Vec<_> = (0..10).map(|n| format!("m{n}")).collect();
    let received = inbox.receive_many(&mut tx, &ids).await.unwrap();
    for (n, received) in received.iter().enumerate() {
        assert_eq!(said(received), if n == 7 { "in progress" } else { "new" });
    }
    let locks =
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    let locks: i64 = sqlx::query_scalar(locks).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(locks, 0, "the server's lock table is not the batch's");
    // Restored after the bound was used up, and when it was not.
    let _ = inbox.receive(&mut tx, "another").await.unwrap();
    let timeout: String =
        sqlx::query_scalar("show lock_timeout").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(timeout, "17s", "the caller's own is restored");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_batches_do_not_deadlock() {
    let db = TestDb::new().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4 {
        let (inbox, options) = (waiting(&db, MINUTE), db.options.clone());
        let mut random = fastrand::Rng::with_seed(seed + task);
        tasks.spawn(async move {
            let mut conn = PgConnection::connect_with(&options).await.unwrap();
            let mut new = 0;
            for round in 0..20 {
                let mut ids: Vec<_> = (0..200).map(|n| format!("{round} {n}")).collect();
                random.shuffle(&mut ids);
                let mut tx = conn.begin().await.unwrap();
                let received = inbox.receive_many(&mut tx, &ids[..150]).await.unwrap();
                new += received.iter().filter(|received| said(received) == "new").count();
                tx.commit().await.unwrap();
            }
            new
        });
    }
    let mut new = 0;
    while let Some(ended) = tasks.join_next().await {
        new += ended.unwrap();
    }
    let stored: i64 = db.ask("select count(*) from {}.idempotency_keys").await;
    assert_eq!(i64::try_from(new).unwrap(), stored);
}

#[tokio::test]
async fn arguments_outside_their_limits_are_refused_in_words() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let error = Inbox::new(&db.once, "").unwrap_err();
    assert_eq!(error.to_string(), "scope is empty; it takes 1 to 255 bytes");
    for id in ["", " ", "a\u{7}", &"x".repeat(256)] {
        let error = inbox(&db).receive(&mut conn, id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let work =
            async |_: &mut PgConnection| -> Result<(), Failure> { panic!("it must not run") };
        let handled = inbox(&db).handle(&db.pool, &Message::new(id), work).await;
        assert_eq!(handled.verdict, Verdict::DeadLetter(error.to_string()));
    }
    let many = vec!["m"; 1_001];
    let error = inbox(&db).receive_many(&mut conn, &many).await.unwrap_err();
    assert_eq!(error.to_string(), "the number of message_ids is 1001; it takes 0 to 1000");
    for (arguments, said) in [
        ("'', array['m']", "consumer is empty; it takes 1 to 255 bytes"),
        ("'c', array['']", "message_id is empty; it takes 1 to 255 bytes"),
        ("'c', array['m', null]", "message_id is empty; it takes 1 to 255 bytes"),
        ("'c', null", "the number of message_ids is null; it takes 0 to 1000"),
        ("'c', array['m'], 0", "retention_ms is 0; it takes 1 to 315576000000"),
        ("'c', array['m'], 1, -1", "wait_ms is -1; it takes 0 to 3600000"),
        ("'c', array['m'], 1, 0, 0", "max_attempts is 0; it takes 1 to 2147483647"),
    ] {
        let sql = db.sql(&format!("select from {{}}.receive({arguments})"));
        let error =
            sqlx::query(sql).execute(&mut conn).await.unwrap_err().into_database_error().unwrap();
        assert_eq!((error.code().as_deref(), error.message()), (Some("IK001"), said));
    }
    let short = Inbox::new(&db.once, "c")
        .unwrap()
        .policy(Policy::inbox().retention(MINUTE).unwrap())
        .unwrap();
    let error = short.outlasts(2 * MINUTE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the inbox forgets after 60 s what the broker may deliver again for 120 s: a message could take effect twice"
    );
    let answer = db.once.begin(&mut conn, &op("untouched")).await.unwrap();
    assert_eq!(word(&answer), "started");
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_consumers_of_the_same_messages_have_one_effect_each_and_acknowledge_all() {
    let db = std::sync::Arc::new(TestDb::with_connections(20).await);
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(8));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (db, barrier) = (std::sync::Arc::clone(&db), std::sync::Arc::clone(&barrier));
        tasks.spawn(async move {
            // Half of them report a redelivery: it makes no difference.
            let inbox = waiting(&db, PATIENCE);
            let mut new = 0;
            for n in 0..50 {
                let id = format!("m{n}");
                let message = Message::new(&id).redelivered(task % 2 == 0);
                barrier.wait().await;
                let work = async |tx: &mut PgConnection| effect(tx, &db.schema, &id).await;
                let handled = inbox.handle(&db.pool, &message, work).await;
                assert_eq!(handled.verdict, Verdict::Ack, "{:?}", handled.result);
                new += i32::from(!handled.result.unwrap().is_replay());
            }
            new
        });
    }
    let mut new = 0;
    while let Some(ended) = tasks.join_next().await {
        new += ended.unwrap();
    }
    assert_eq!((new, db.effects().await), (50, 50), "seven of eight had seen it");
    assert_eq!(db.ask::<i64>("select count(distinct key) from {}.effect").await, 50);
}

#[tokio::test]
async fn two_consumers_know_nothing_of_each_other() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    for consumer in ["orders", "invoices"] {
        let inbox = Inbox::new(&db.once, consumer).unwrap();
        assert_eq!(said(&inbox.receive(&mut conn, "m").await.unwrap()), "new");
        assert_eq!(said(&inbox.receive(&mut conn, "m").await.unwrap()), "seen");
    }
}
