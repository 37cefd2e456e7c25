//! What operators look at: unfinished keys by state, counts, scopes, searches, one key.

use std::time::Duration;

use pgonce::{
    ErrorKind, Failure, HeldBecause, Inbox, Message, OnLapse, Operation, Policy, Scope, Search,
    Status, UnfinishedFilter, UnfinishedState, Work,
};
use sqlx::PgConnection;

use crate::support::db::{TestDb, kept_for, lasting, on_lapse, op, started, tried};

const MINUTE: Duration = Duration::from_secs(60);

/// Key, state, reason, whether it may be a message, attempts used and allowed.
async fn states(db: &TestDb) -> Vec<String> {
    let found = db.once.unfinished(&mut db.conn().await, &UnfinishedFilter::default(), 100).await;
    let mut found: Vec<_> = found
        .unwrap()
        .into_iter()
        .map(|found| {
            let because = found.held_because.filter(|_| found.state == UnfinishedState::Held);
            let max = found.max_attempts.map_or("-".to_owned(), |max| max.to_string());
            format!(
                "{} {} {because:?} {} {}/{max}",
                found.listed.key,
                found.state.as_str(),
                found.is_message,
                found.used
            )
        })
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn a_key_is_held_by_the_policy_of_its_last_begin() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    drop(db.lease(&op("live"), 10 * MINUTE).await);
    drop(db.lease(&op("retried"), MINUTE).await);
    drop(db.lease(&op("held").policy(on_lapse(OnLapse::Hold)), MINUTE).await);
    drop(db.lease(&op("tried once").policy(tried(1)), MINUTE).await);
    drop(db.lease(&op("tried twice").policy(tried(2)), MINUTE).await);
    db.advance(MINUTE).await;
    assert_eq!(
        states(&db).await,
        [
            "held held Some(Lapsed) false 1/-",
            "live live None false 1/-",
            "retried abandoned None false 1/-",
            "tried once held Some(Attempts) true 1/1",
            "tried twice abandoned None true 1/2",
        ]
    );
    // begin agrees, and a takeover with another policy is noted.
    drop(db.lease(&op("tried twice").policy(tried(2)), MINUTE).await);
    drop(db.lease(&op("retried").policy(tried(5)), MINUTE).await);
    drop(db.lease(&op("held"), MINUTE).await);
    db.advance(MINUTE).await;
    assert_eq!(
        states(&db).await,
        [
            "held abandoned None false 2/-",
            "live live None false 1/-",
            "retried abandoned None true 2/5",
            "tried once held Some(Attempts) true 1/1",
            "tried twice held Some(Attempts) true 2/2",
        ]
    );
    // An operator's release gives all attempts again, and keeps the policy.
    let held = op("tried twice");
    let seen = db.seen(&held).await;
    db.once.revoke_claim(&mut db.conn().await, held.scope(), held.key(), &seen).await.unwrap();
    let after = states(&db).await;
    assert!(after.contains(&"tried twice abandoned None true 0/2".to_owned()), "{after:?}");
}

#[tokio::test]
async fn every_failed_message_is_found_until_it_is_done() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let policy = Policy::inbox().max_attempts(3).unwrap();
    let inbox = Inbox::new(&db.once, "orders").unwrap().policy(policy).unwrap();
    let fails = async |_: &mut PgConnection| Err::<(), _>(Failure::from("no"));
    for _ in 0..3 {
        inbox.failed(&db.pool, "counted", "no").await.unwrap();
        inbox.handle(&db.pool, &Message::new("handled"), fails).await.result.unwrap_err();
        let first = Message::new("not redelivered").redelivered(false);
        inbox.handle(&db.pool, &first, fails).await.result.unwrap_err();
    }
    inbox.failed(&db.pool, "waits", "no").await.unwrap();
    let dead = |key: &str| format!("{key} held Some(Attempts) true 3/3");
    assert_eq!(
        states(&db).await,
        [
            dead("counted"),
            dead("handled"),
            dead("not redelivered"),
            "waits abandoned None true 1/3".to_owned()
        ]
    );
    // A recovery may run redelivered messages, which are leased work.
    let abandoned = db.once.abandoned(&mut db.conn().await, 10).await.unwrap();
    assert_eq!(abandoned.iter().map(|found| &found.key).collect::<Vec<_>>(), ["handled"]);
    for (messages, count) in [(true, 4), (false, 0)] {
        let filter = UnfinishedFilter { messages: Some(messages), ..Default::default() };
        let found = db.once.unfinished(&mut db.conn().await, &filter, 100).await.unwrap();
        assert_eq!(found.len(), count);
    }
    let consumers = db.once.consumers(&mut db.conn().await).await.unwrap();
    assert_eq!(consumers.len(), 1);
    assert_eq!(
        (consumers[0].name.as_str(), consumers[0].dead, consumers[0].waiting),
        ("orders", 3, 1)
    );
    let overview = db.once.overview(&mut db.conn().await, 100).await.unwrap();
    assert_eq!((overview.dead_messages, overview.waiting_messages, overview.held), (3, 1, 0));

    // Done by another delivery, by an operator, or reaped: it is off the list.
    let mut tx = db.pool.begin().await.unwrap();
    let received = inbox.receive(&mut tx, "waits").await.unwrap();
    assert!(matches!(received, pgonce::Received::New(_)));
    tx.commit().await.unwrap();
    let counted = Operation::new("orders", "counted").unwrap();
    let seen = db.seen(&counted).await;
    let mut tx = db.pool.begin().await.unwrap();
    let claim =
        db.once.take_over_claim(&mut tx, counted.scope(), counted.key(), &seen).await.unwrap();
    claim.complete(&mut tx, pgonce::Response::empty()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(states(&db).await, [dead("handled"), dead("not redelivered")]);
    db.advance(Duration::from_secs(8 * 86_400)).await;
    assert_eq!(states(&db).await, [""; 0], "forgotten");
    db.once.reap_once(&mut db.conn().await, 100).await.unwrap();
    assert_eq!(db.ask::<i64>("select count(*) from {}.unfinished").await, 0);
}

#[tokio::test]
async fn the_overview_counts_by_state_and_age_and_stops_at_its_limit() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    let hours = [30, 2, 0, 0];
    for (number, hours) in (0..).zip(hours) {
        let op = op(&format!("live {number}")).policy(kept_for(48 * 60 * MINUTE));
        drop(db.lease(&op, 40 * 60 * MINUTE).await);
        let age = format!(
            "update {{}}.idempotency_keys set created_at = created_at - interval '{hours} h' where key = 'live {number}'"
        );
        db.execute(&age).await;
    }
    drop(db.lease(&op("held").policy(on_lapse(OnLapse::Hold)), MINUTE).await);
    drop(db.lease(&op("gone"), MINUTE).await);
    db.advance(5 * MINUTE).await;
    db.plant_overdue(3, 60).await;
    let seen = db.once.overview(&mut conn, 100).await.unwrap();
    assert_eq!((seen.live, seen.held, seen.abandoned, seen.overdue), (4, 1, 1, 3));
    assert_eq!(seen.live_by_age, [0, 2, 0, 1, 1]);
    assert_eq!(seen.longest_abandoned, Some(4 * MINUTE));
    assert_eq!(seen.oldest_overdue, Some(Duration::from_secs(63)));
    assert!(!seen.unfinished_capped && seen.table_bytes > 0 && seen.index_bytes > 0);
    let seen = db.once.overview(&mut conn, 2).await.unwrap();
    assert_eq!((seen.unfinished_capped, seen.overdue), (true, 2));
    assert!(seen.live + seen.held + seen.abandoned <= 3);
    for count in [0, 100_001] {
        let error = db.once.overview(&mut conn, count).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert!(db.once.takes_writes(&mut conn).await.unwrap());
    sqlx::raw_sql("begin read only").execute(&mut conn).await.unwrap();
    assert!(!db.once.takes_writes(&mut conn).await.unwrap());
}

#[tokio::test]
async fn scopes_and_searches_find_what_begins_alike_and_nothing_else() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let scopes = ["a", "acme", "acme/pay", "acme/pay%", "acme0", "b_", "\u{e4}cme"];
    for scope in scopes {
        for key in ["k", "k1", "k1%", "k2", "l", "\u{1f600}"] {
            db.complete(&Operation::new(scope, key).unwrap(), "").await;
        }
    }
    let listed =
        async |conn: &mut PgConnection, prefix: Option<&str>, after: Option<&str>, limit| {
            let found = db.once.scopes(conn, prefix, after, limit).await.unwrap();
            assert!(found.iter().all(|scope| scope.keys == 6 && scope.unfinished == 0));
            found.into_iter().map(|found| found.scope).collect::<Vec<_>>()
        };
    assert_eq!(listed(&mut conn, None, None, 100).await, scopes);
    assert_eq!(listed(&mut conn, Some("acme"), None, 100).await, scopes[1..5]);
    assert_eq!(listed(&mut conn, Some("acme/pay%"), None, 100).await, scopes[3..4], "no pattern");
    assert_eq!(listed(&mut conn, Some("acme"), Some("acme/pay"), 1).await, scopes[3..4]);
    assert_eq!(listed(&mut conn, Some("none"), None, 100).await, [""; 0]);

    let search = |prefix: Option<&str>, after: Option<&str>, status| Search {
        scope: Scope::new("acme/pay").unwrap(),
        prefix: prefix.map(str::to_owned),
        after: after.map(str::to_owned),
        status,
    };
    let keys = async |conn: &mut PgConnection, search: Search, limit| {
        let found = db.once.search(conn, &search, limit).await.unwrap();
        assert!(found.keys.iter().all(|found| found.scope == "acme/pay"));
        (found.keys.into_iter().map(|found| found.key).collect::<Vec<_>>(), found.next)
    };
    let next = |key: &str| Some(key.to_owned());
    let all = ["k", "k1", "k1%", "k2", "l", "\u{1f600}"];
    assert_eq!(
        keys(&mut conn, search(None, None, None), 100).await,
        (all.map(str::to_owned).to_vec(), None)
    );
    assert_eq!(keys(&mut conn, search(Some("k1"), None, None), 100).await.0, ["k1", "k1%"]);
    assert_eq!(
        keys(&mut conn, search(Some("k"), None, None), 2).await,
        (vec!["k".into(), "k1".into()], next("k1"))
    );
    assert_eq!(
        keys(&mut conn, search(Some("k"), Some("k1"), None), 2).await,
        (vec!["k1%".into(), "k2".into()], None)
    );
    assert_eq!(keys(&mut conn, search(None, None, Some(Status::Failed)), 2).await, (vec![], None));
    // Of many keys without a match, it reads a part, and says where it stopped.
    db.execute(
        "insert into {}.idempotency_keys (created_at, expires_at, status, scope, key)
         select now(), now() + interval '1 day', 2, 'acme/pay', 'm' || to_char(n, 'FM00000') from generate_series(1, 11000) n",
    )
    .await;
    let (found, stopped) = keys(&mut conn, search(Some("m"), None, Some(Status::Failed)), 10).await;
    assert_eq!((found.len(), stopped.as_deref()), (0, Some("m10000")));
    let on = search(Some("m"), stopped.as_deref(), Some(Status::Failed));
    assert_eq!(keys(&mut conn, on, 10).await, (vec![], None));
}

#[tokio::test]
async fn one_key_in_full_without_what_is_secret() {
    let db = TestDb::new().await;
    let work = async |work: &mut Work| {
        work.progress(&7).await?;
        work.step("charge", async || Ok::<_, Failure>("receipt".to_owned())).await?;
        Err::<(), _>(Failure::from("no"))
    };
    let half = op("half").policy(on_lapse(OnLapse::Hold));
    db.once.run_leased(&db.pool, &half, lasting(MINUTE), work).await.unwrap_err();
    let mut conn = db.conn().await;
    let (scope, key) = (half.scope(), half.key());
    let found = db.once.details(&mut conn, scope, key).await.unwrap().unwrap();
    assert_eq!(found.record, db.seen(&half).await);
    assert_eq!((found.progress, found.tries), (Some(7.into()), Some(0)));
    assert!(found.leased && !found.overdue && !found.is_message && found.last_error.is_some());
    let steps = db.once.steps(&mut conn, scope, key).await.unwrap();
    assert_eq!((steps.len(), steps[0].name.as_str(), steps[0].output_bytes), (1, "charge", 9));
    let output = db.once.step_output(&mut conn, scope, key, "charge").await.unwrap();
    assert_eq!(output.as_deref(), Some(&b"\"receipt\""[..]));
    assert_eq!(db.once.step_output(&mut conn, scope, key, "none").await.unwrap(), None);
    // Held from when its lease ends.
    db.execute("update {}.idempotency_keys set lease_expires_at = {}._clock() - interval '1 s'")
        .await;
    let found = db.once.details(&mut conn, scope, key).await.unwrap().unwrap();
    assert_eq!(
        (found.state, found.held_because),
        (Some(UnfinishedState::Held), Some(HeldBecause::Lapsed))
    );

    let mut tx = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op("done")).await.unwrap());
    claim.complete(&mut tx, pgonce::Response::bytes("body").with_code(201)).await.unwrap();
    tx.commit().await.unwrap();
    let done = op("done");
    let found = db.once.details(&mut conn, done.scope(), done.key()).await.unwrap().unwrap();
    assert_eq!((found.response_body_bytes, found.record.response_code), (Some(4), Some(201)));
    assert_eq!((found.state, found.held_because, found.tries), (None, None, None));
    let none = op("none");
    assert!(db.once.details(&mut conn, none.scope(), none.key()).await.unwrap().is_none());
}

#[tokio::test]
async fn what_operators_look_at_hides_keys_in_debug() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    drop(db.lease(&op("canary"), MINUTE).await);
    let mut conn = db.conn().await;
    let unfinished = db.once.unfinished(&mut conn, &UnfinishedFilter::default(), 10).await.unwrap();
    let search = Search {
        scope: Scope::new("test/scope").unwrap(),
        prefix: Some("canary".into()),
        after: None,
        status: None,
    };
    let found = db.once.search(&mut conn, &search, 10).await.unwrap();
    let key = op("canary");
    let details = db.once.details(&mut conn, key.scope(), key.key()).await.unwrap();
    let shown = format!("{unfinished:?} {search:?} {found:?} {details:?}");
    assert!(!shown.contains("canary") && !shown.contains("test/scope"), "{shown}");
}

/// For the tests of all statements.
pub async fn every_question_of_operators(db: &TestDb) {
    let (once, op, mut conn) = (&db.once, op("steps"), db.conn().await);
    once.overview(&mut conn, 10).await.unwrap();
    once.takes_writes(&mut conn).await.unwrap();
    once.scopes(&mut conn, None, None, 10).await.unwrap();
    once.unfinished(&mut conn, &UnfinishedFilter::default(), 10).await.unwrap();
    once.consumers(&mut conn).await.unwrap();
    let search = Search { scope: op.scope().clone(), prefix: None, after: None, status: None };
    once.search(&mut conn, &search, 10).await.unwrap();
    once.details(&mut conn, op.scope(), op.key()).await.unwrap();
    once.steps(&mut conn, op.scope(), op.key()).await.unwrap();
    once.step_output(&mut conn, op.scope(), op.key(), "remote").await.unwrap();
}
