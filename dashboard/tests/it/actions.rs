//! Release, resolve, redrive: what they do to the row, and when they are refused.

use pgonce::{Begin, Operation};
use pgonce_dashboard::Access;

use crate::kit::{Browser, LONG, abandon, fail_message, half_done, hold, row};
use crate::support::db::{TestDb, lasting, op, started, word};

#[tokio::test]
async fn release_lets_the_next_caller_begin() {
    let db = TestDb::new().await;
    let mut browser = Browser::new(&db, Access::All);
    // A live claim, with a warning; its holder then cannot record anything.
    let holder = db.lease(&op("live"), LONG).await;
    browser.get("release?scope=test%2Fscope&key=live").await.is(200).has("may happen twice");
    let done = browser.confirm("release", "live", &[]).await;
    assert_eq!(done.is(303).location(), "key?scope=test%2Fscope&key=live&done=released");
    browser.get(done.location()).await.is(200).has("Released. The next caller");
    assert_eq!(row(&db, "live").await, "1 false");
    assert!(holder.complete_leased(&db.pool, pgonce::Response::empty()).await.is_err());
    let next = db.once.begin_leased(&db.pool, &op("live"), lasting(LONG)).await.unwrap();
    assert_eq!(started(next).attempt(), 2);
    // A second release of the same claim.
    abandon(&db, "gone").await;
    browser.confirm("release", "gone", &[]).await.is(303);
    browser.get("release?scope=test%2Fscope&key=gone").await.is(409).has("released already");
}

#[tokio::test]
async fn resolve_decides_what_retries_get() {
    let db = TestDb::new().await;
    let mut browser = Browser::new(&db, Access::All);
    for (decision, ends) in [("complete", "2 true"), ("fail", "3 true"), ("release", "1 false")] {
        let op = hold(&db, decision).await;
        half_done_is_shown(&mut browser, decision).await;
        let body = [("decision", decision), ("body", "{\r\n\"id\": 7}"), ("code", " 201 ")];
        browser.confirm("resolve", decision, &body).await.is(303);
        assert_eq!(row(&db, decision).await, ends);
        let answer = db.once.begin_leased(&db.pool, &op, lasting(LONG)).await.unwrap();
        match answer {
            Begin::Replay(replay) => {
                assert_eq!(replay.response().body(), b"{\n\"id\": 7}");
                assert_eq!(replay.response().code(), Some(201));
            }
            other => assert_eq!((decision, word(&other)), ("release", "started")),
        }
    }
    // Not with a bad code, nor without a decision.
    hold(&db, "k").await;
    browser.confirm("resolve", "k", &[("decision", "complete"), ("code", "ok")]).await.is(400);
    browser.confirm("resolve", "k", &[("body", "{}")]).await.is(400);
    assert_eq!(row(&db, "k").await, "1 true");
    // Not while its holder may be at work, nor when it is done.
    drop(db.lease(&op("live"), LONG).await);
    browser.get("resolve?scope=test%2Fscope&key=live").await.is(409).has("still be at work");
    db.complete(&op("done"), "body").await;
    browser.get("resolve?scope=test%2Fscope&key=done").await.is(409).has("finished");
}

async fn half_done_is_shown(browser: &mut Browser, key: &str) {
    let asked = browser.get(&format!("resolve?scope=test%2Fscope&key={key}")).await;
    asked.is(200).has("No step is recorded");
}

#[tokio::test]
async fn redrive_gives_a_message_its_attempts_again() {
    let db = TestDb::new().await;
    let mut browser = Browser::new(&db, Access::All);
    fail_message(&db, "dead", 3, "no such product").await;
    let consumer = browser.get("inbox?consumer=test%2Fscope").await;
    consumer.is(200).has(">dead</span>").has("3 of 3").has("no such product");
    browser.get("inbox").await.is(200).has("<td class=\"number alarm\">1</td>");
    let status = "select status from {}.message_status('test/scope', 'dead', 3)";
    assert_eq!(db.ask::<String>(status).await, "held");
    browser.confirm("redrive", "dead", &[]).await.is(303);
    assert_eq!(db.ask::<String>(status).await, "waiting");
    browser.get("inbox?consumer=test%2Fscope").await.has("waits for delivery").has("0 of 3");
    // A leased operation with steps is no message.
    half_done(&db, "half", "output", "error").await;
    browser.get("redrive?scope=test%2Fscope&key=half").await.is(409).has("no message");
}

#[tokio::test]
async fn what_has_changed_since_it_was_looked_at_is_refused() {
    let db = TestDb::new().await;
    let mut browser = Browser::new(&db, Access::All);
    for action in ["release", "resolve", "redrive"] {
        if action == "redrive" {
            fail_message(&db, action, 2, "error").await;
        } else {
            abandon(&db, action).await;
        }
        let asked = browser.get(&format!("{action}?scope=test%2Fscope&key={action}")).await;
        let (token, seen) = (asked.field("token"), asked.field("seen"));
        // Meanwhile the claim changes hands.
        let next = Operation::new("test/scope", action).unwrap();
        let claim = started(db.once.begin_leased(&db.pool, &next, lasting(LONG)).await.unwrap());
        let fields = [
            ("scope", "test/scope"),
            ("key", action),
            ("token", &token),
            ("seen", &seen),
            ("decision", "release"),
        ];
        let refused = browser.post(action, &fields).await;
        refused.is(409).has("has changed since you looked at it").has("Look at the key");
        assert_eq!(row(&db, action).await, "1 true");
        claim.complete_leased(&db.pool, pgonce::Response::empty()).await.unwrap();
    }
    // A made-up digest, and a key that is gone.
    abandon(&db, "k").await;
    let asked = browser.get("release?scope=test%2Fscope&key=k").await;
    let token = asked.field("token");
    for (key, seen, status) in [("k", "0000000000000000", 409), ("k", "", 409), ("none", "", 404)] {
        let fields = [("scope", "test/scope"), ("key", key), ("token", &token), ("seen", seen)];
        browser.post("release", &fields).await.is(status);
    }
}

#[tokio::test]
async fn an_operator_does_not_wait_for_somebody_at_work() {
    let db = TestDb::new().await;
    let mut browser = Browser::new(&db, Access::All);
    abandon(&db, "k").await;
    let asked = browser.get("release?scope=test%2Fscope&key=k").await;
    let (token, seen) = (asked.field("token"), asked.field("seen"));
    let mut open = db.pool.begin().await.unwrap();
    let lock = db.sql("select from {}.idempotency_keys where key = 'k' for update");
    sqlx::query(lock).execute(&mut *open).await.unwrap();
    let fields = [("scope", "test/scope"), ("key", "k"), ("token", &token), ("seen", &seen)];
    browser.post("release", &fields).await.is(409).has("being worked on");
}

#[tokio::test]
async fn a_read_only_database_makes_a_read_only_page() {
    let db = TestDb::new().await;
    hold(&db, "held").await;
    fail_message(&db, "dead", 3, "error").await;
    let options = db.options.clone().options([("default_transaction_read_only", "on")]);
    let mut browser = Browser::with_options(&db, options, Access::All);
    let page = browser.get("key?scope=test%2Fscope&key=held").await;
    page.is(200).has("read only: the database takes no writes").lacks(">Release</a>");
    for (action, key) in [("release", "held"), ("resolve", "held"), ("redrive", "dead")] {
        let asked = browser.get(&format!("{action}?scope=test%2Fscope&key={key}")).await;
        asked.is(403).has("takes no writes");
        let seen: String = db.ask(&format!("select seen from {{}}.keys where key = '{key}'")).await;
        let token = browser.token();
        let fields = [
            ("scope", "test/scope"),
            ("key", key),
            ("token", &token),
            ("seen", &seen),
            ("decision", "release"),
        ];
        browser.post(action, &fields).await.is(403).has("takes no writes");
    }
    assert_eq!(row(&db, "held").await, "1 true");
}

#[tokio::test]
async fn the_audit_trail_names_the_visitor() {
    let db = TestDb::new().await;
    let key = "key?scope=test%2Fscope&key=k";
    let mut browser = Browser::new(&db, Access::All);
    browser.get("health").await.has("It is off");
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    hold(&db, "k").await;
    browser.get(key).await.has(">Audit trail</h2>").has("<td>begun</td>").lacks("<td>ada</td>");
    let token = browser.token();
    let fields = [("scope", "test/scope"), ("key", "k"), ("token", &token)];
    browser.post("reveal", &fields).await.is(200);
    browser.confirm("release", "k", &[]).await.is(303);
    let trail = db.once.audit(&mut db.conn().await, op("k").scope(), op("k").key(), 10).await;
    let trail: Vec<_> = trail.unwrap().into_iter().map(|line| (line.action, line.actor)).collect();
    let ada = |action: &str| (action.to_owned(), Some("ada".to_owned()));
    assert_eq!(trail[1..], [ada("viewed"), ada("revoked")]);
    browser.get(key).await.has("<td>viewed</td>").has("<td>revoked</td>").has("<td>ada</td>");
    Browser::new(&db, Access::All).get("health").await.has("keeps 30 days");
}
