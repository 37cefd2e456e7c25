//! Databases with encodings other than UTF8: what they cannot represent is refused by name, and does no other harm.

use pgonce::{
    Error, ErrorKind, Failure, Inbox, Lease, Message, Operation, Policy, Received, RunError,
    Verdict, Work,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::db::{TestDb, effect, lasting, server};

const PARCEL: &str = "\u{1f4e6}";
const CANNOT: &str = "has a character that the encoding of the database (LATIN1) cannot hold";

pub async fn database(name: &str, encoding: &str) -> TestDb {
    let options = server().await.connect_options();
    let create =
        format!("create database {name} encoding '{encoding}' locale 'C' template template0");
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut conn).await.unwrap();
    TestDb::create(name, options.database(name), 4).await
}

fn inbox(db: &TestDb) -> Inbox {
    Inbox::new(&db.once, "orders")
        .unwrap()
        .policy(Policy::inbox().max_attempts(3).unwrap())
        .unwrap()
}

#[tokio::test]
async fn a_message_whose_id_cannot_be_held_is_dead_with_a_reason() {
    let db = database("dead_ids", "LATIN1").await;
    let id = format!("order {PARCEL}");
    for redelivered in [false, true, false, true] {
        let message = Message::new(&id).redelivered(redelivered);
        let work =
            async |_: &mut PgConnection| -> Result<(), Failure> { panic!("it must not run") };
        let handled = inbox(&db).handle(&db.pool, &message, work).await;
        assert_eq!(handled.verdict, Verdict::DeadLetter(format!("key {CANNOT}")));
    }
    let error = inbox(&db).failed(&db.pool, &id, "no").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::InvalidInput, format!("key {CANNOT}"))
    );
    // A bad consumer name is not the message's fault.
    let unheard = Inbox::new(&db.once, PARCEL).unwrap();
    for (id, is_dead) in [("m", false), ("caf\u{e9}", false), (PARCEL, true)] {
        let work =
            async |_: &mut PgConnection| -> Result<(), Failure> { panic!("it must not run") };
        let handled = unheard.handle(&db.pool, &Message::new(id).redelivered(false), work).await;
        assert_eq!(matches!(handled.verdict, Verdict::DeadLetter(_)), is_dead, "{id}");
    }
    assert_eq!(db.ask::<i64>("select count(*) from {}.idempotency_keys").await, 0);
}

#[tokio::test]
async fn an_id_that_cannot_be_held_does_no_harm_to_its_batch() {
    let db = database("batches", "LATIN1").await;
    let ids = ["a", PARCEL, "caf\u{e9}", "", "a", "\u{20ac} 7"];
    for expected in [["new", "new", "seen"], ["seen", "seen", "seen"]] {
        let mut tx = db.pool.begin().await.unwrap();
        let received = inbox(&db).receive_many(&mut tx, &ids).await.unwrap();
        let mut answers = Vec::new();
        for (id, received) in ids.iter().zip(&received) {
            match received {
                Received::New(_) => answers.push("new"),
                Received::Seen(_) => answers.push("seen"),
                Received::Refused(error) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput);
                    assert!(id.is_empty() || error.to_string() == format!("key {CANNOT}"));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(answers, expected);
        effect(&mut tx, &db.schema, "the transaction goes on").await.unwrap();
        tx.commit().await.unwrap();
    }
    let mut conn = db.conn().await;
    let error = inbox(&db).receive(&mut conn, PARCEL).await.unwrap_err();
    assert_eq!(error.to_string(), format!("key {CANNOT}"));
}

#[tokio::test]
async fn every_way_to_begin_names_what_cannot_be_held() {
    let db = database("begins", "LATIN1").await;
    let refused = |error: Error, field: &str| {
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), format!("{field} {CANNOT}"));
    };
    let protocol = |error: RunError<Failure>| match error {
        RunError::Protocol(error) => error,
        other => panic!("{other:?}"),
    };
    for (scope, key, field) in
        [("acme", PARCEL, "key"), (PARCEL, "k", "scope"), (PARCEL, "\u{e9}", "scope or key")]
    {
        let op = Operation::new(scope, key).unwrap();
        for op in [op.clone(), op.clone().optimistic()] {
            let run = db.once.run(&db.pool, &op, async |_: &mut PgConnection| Ok::<_, Failure>(7));
            refused(protocol(run.await.unwrap_err()), field);
        }
        let lease = Lease::new(std::time::Duration::from_secs(60)).unwrap();
        let run = async |_: &mut Work| Ok::<_, Failure>(7);
        refused(protocol(db.once.run_leased(&db.pool, &op, lease, run).await.unwrap_err()), field);
        refused(db.once.begin(&mut db.conn().await, &op).await.unwrap_err(), field);
        let leased =
            db.once.begin_leased(&db.pool, &op, lasting(std::time::Duration::from_secs(60)));
        refused(leased.await.unwrap_err(), field);
    }
}

#[tokio::test]
async fn what_an_encoding_holds_is_taken_as_it_is() {
    for (encoding, text) in [
        ("latin1", "caf\u{e9} \u{a0}"),
        ("win1252", "\u{20ac} \u{153} \u{178}"), // bytes that are control characters in other encodings
        ("koi8r", "\u{437}\u{430}\u{43a}\u{430}\u{437}"),
        ("euc_jp", "\u{6ce8}\u{6587}"),
        ("utf8", "\u{6ce8}\u{20ac}\u{1f4e6}"),
    ] {
        let db = database(&format!("holds_{encoding}"), encoding).await;
        let op = Operation::new(format!("scope {text}"), format!("key {text}")).unwrap();
        for is_replay in [false, true] {
            let work = async |_: &mut PgConnection| Ok::<_, Failure>(7);
            let done = db.once.run(&db.pool, &op, work).await.unwrap();
            assert_eq!(done.is_replay(), is_replay, "{encoding}");
        }
        let inbox = Inbox::new(&db.once, text).unwrap();
        let mut conn = db.conn().await;
        for new in [true, false] {
            let received = inbox.receive(&mut conn, text).await.unwrap();
            assert_eq!(matches!(received, Received::New(_)), new, "{encoding}");
        }
    }
}

#[tokio::test]
async fn an_attempt_is_counted_whatever_its_error_says() {
    for (encoding, kept) in
        [("latin1", "no ? ?? ? such"), ("utf8", "no ? \u{6ce8}\u{6587} \u{e9} such")]
    {
        let db = database(&format!("errors_{encoding}"), encoding).await;
        for attempt in 1..=3 {
            let error = "no \0 \u{6ce8}\u{6587} \u{e9} such";
            let verdict = inbox(&db).failed(&db.pool, "m", error).await.unwrap();
            match verdict {
                Verdict::Retry(_) => assert!(attempt < 3),
                verdict => assert_eq!(verdict, Verdict::DeadLetter(kept.to_owned())),
            }
        }
        let used = db.ask::<i32>("select used from {}.message_status('orders', 'm', 3)").await;
        assert_eq!(used, 3);
    }
}
