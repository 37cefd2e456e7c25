//! What the pages say.

use std::time::Duration;

use pgonce::{Fingerprint, Response};
use pgonce_dashboard::Access;
use time::OffsetDateTime;

use crate::kit::{Browser, LONG, abandon, fail_message, half_done, hold};
use crate::support::db::{TestDb, kept_for, op, started};

#[tokio::test]
async fn an_empty_schema_says_what_to_do() {
    let db = TestDb::new().await;
    let mut browser = Browser::new(&db, Access::All);
    browser.get("overview").await.is(200).has("Nothing waits for you").has("history is off");
    browser.get("scopes").await.is(200).has("There are no keys yet");
    browser.get("keys").await.is(200).has("Enter a scope");
    browser.get("keys?scope=none").await.is(200).has("No such key in this scope");
    browser.get("waiting").await.is(200).has("Held keys wait for you here");
    browser.get("inbox").await.is(200).has("No message waits");
    browser.get("inbox?consumer=none").await.is(200).has("No message of this consumer waits");
    browser.get("health").await.is(200).has("It is up to date").has("No forgotten key waits");
    browser.get("key?scope=none&key=none").await.is(404).has("No such key");
    browser.get("key?scope=&key=k").await.is(400).has("Scope is empty; it takes 1 to 255 bytes.");
    browser.get("keys?scope=s&prefix=%00").await.is(400).has("contains a control character");
}

#[tokio::test]
async fn the_overview_counts_what_waits() {
    let db = TestDb::new().await;
    hold(&db, "held").await;
    abandon(&db, "gone").await;
    drop(db.lease(&op("live"), LONG).await);
    fail_message(&db, "waits", 1, "error").await;
    fail_message(&db, "dead", 3, "error").await;
    db.plant_overdue(3, 3600).await;
    let mut browser = Browser::new(&db, Access::All);
    let page = browser.get("overview").await;
    page.is(200)
        .has("1 key is held: callers are refused, and told so, until you decide.")
        .has("1 message is dead")
        .has("No reaper keeps up")
        .lacks("Nothing waits for you");
    for (name, count) in [
        ("At work", 1),
        ("Abandoned", 1),
        ("Held", 1),
        ("Failed messages", 1),
        ("Dead messages", 1),
        ("Overdue", 3),
    ] {
        page.has(&format!(">{name}</span> <strong>{count}</strong>"));
    }
    browser.get("health").await.has(">attention</span>").has("3 keys are past their retention");
}

#[tokio::test]
async fn one_key_shows_its_life() {
    let db = TestDb::new().await;
    half_done(&db, "half", "7", "the remote said no").await;
    let mut browser = Browser::new(&db, Access::All);
    let page = browser.get("key?scope=test%2Fscope&key=half&name=refund").await;
    page.is(200)
        .has(">abandoned</span>")
        .has("step charge recorded")
        .has("attempt 1 lapsed")
        .has("&#34;percent&#34;: 40")
        .has(op("half").derived_key("charge").as_str())
        .has(op("half").derived_key("refund").as_str())
        .has("Resolve")
        .has("Release");
    // A failed transactional claim, its response, and no actions.
    let bound = op("failed").fingerprint(Fingerprint::of_bytes("x"));
    let mut tx = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &bound).await.unwrap());
    claim.fail(&mut tx, Response::bytes("declined").with_code(402)).await.unwrap();
    tx.commit().await.unwrap();
    let page = browser.get("key?scope=test%2Fscope&key=failed").await;
    page.has(">failed</span>").has("402").has("8 bytes of body").lacks("declined");
    page.lacks(">Release</a>").lacks(">Resolve</a>").lacks(">Redrive</a>");
    // Forgotten, but not reaped yet.
    db.complete(&op("short").policy(kept_for(Duration::from_millis(1))), "body").await;
    db.until("select bool_or(overdue) from {}.keys").await;
    browser.get("key?scope=test%2Fscope&key=short").await.is(200).has(">forgotten</span>");
}

#[tokio::test]
async fn a_search_goes_from_page_to_page_and_stops_at_its_prefix() {
    let db = TestDb::new().await;
    db.execute(
        "insert into {}.idempotency_keys (created_at, expires_at, status, scope, key)
         select now(), now() + interval '1 day', 2, 's', 'a' || to_char(n, 'FM0000') from generate_series(1, 250) n
         union all select now(), now() + interval '1 day', 3, 's', 'b' || n from generate_series(1, 2) n",
    )
    .await;
    let mut browser = Browser::new(&db, Access::All);
    let mut page = browser.get("keys?scope=s&prefix=a").await;
    let (mut found, mut pages) = (0, 1);
    loop {
        page.is(200).lacks("key=b1");
        found += page.text.matches("href=\"key?").count();
        let Some((before, _)) = page.text.split_once("\">Search on</a>") else { break };
        let next = before.rsplit('"').next().unwrap().replace("&amp;", "&").replace("&#38;", "&");
        page = browser.get(&next).await;
        pages += 1;
    }
    assert_eq!((found, pages), (250, 3));
    browser.get("keys?scope=s&status=failed").await.has("key=b1").has("key=b2").lacks("key=a0001");
    let exact = browser.get("keys?scope=s&prefix=a0007").await;
    assert_eq!(exact.is(303).location(), "key?scope=s&key=a0007");
}

#[tokio::test]
async fn scopes_go_from_page_to_page() {
    let db = TestDb::new().await;
    db.execute(
        "insert into {}.idempotency_keys (created_at, expires_at, status, scope, key)
         select now(), now() + interval '1 day', 2, 'tenant/' || to_char(n, 'FM000'), 'k' || m
           from generate_series(1, 60) n, generate_series(1, 3) m",
    )
    .await;
    let mut browser = Browser::new(&db, Access::All);
    let first = browser.get("scopes").await;
    first.has("tenant/001").has("tenant/050").lacks("tenant/051").has(">Next</a>");
    let second = browser.get("scopes?after=tenant%2F050").await;
    second.has("tenant/051").has("tenant/060").lacks(">Next</a>");
    let some = browser.get("scopes?prefix=tenant%2F01").await;
    some.has("tenant/010").has("tenant/019").lacks("tenant/020").lacks("tenant/009");
}

#[tokio::test]
async fn a_page_updates_itself_unless_it_is_paused() {
    let db = TestDb::new().await;
    let mut browser = Browser::new(&db, Access::All);
    let live = browser.get("waiting?state=held&scope=a%2Fb").await;
    live.has("hx-get=\"waiting?scope=a%2Fb&#38;state=held\"")
        .has("hx-trigger=\"every 5s\"")
        .has("Pause");
    let paused = browser.get("waiting?state=held&live=off").await;
    paused.lacks("hx-trigger").has("Updates are paused").has("href=\"inbox?live=off\"");
    // Not where somebody types.
    browser.get("keys").await.lacks("hx-trigger");
}

#[tokio::test]
async fn the_history_is_drawn_if_there_is_one() {
    let db = TestDb::new().await;
    // Ten minutes ago, and now.
    let minute = OffsetDateTime::now_utc().unix_timestamp() / 60;
    for (minute, [started, replayed, mismatch]) in [(minute - 10, [20, 9, 1]), (minute, [10, 1, 0])]
    {
        let counts = [
            started,
            replayed,
            0,
            mismatch,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            replayed,
            replayed * 250,
            0,
            0,
            0,
            0,
        ];
        sqlx::query(db.sql("call {}.record_history(gen_random_uuid(), $1, $2, $3, $4, $5)"))
            .bind([minute])
            .bind(["acme/payments"])
            .bind(["payments"])
            .bind(counts.map(i64::from))
            .bind(86_400_000_i64)
            .execute(&mut db.conn().await)
            .await
            .unwrap();
    }
    let mut browser = Browser::new(&db, Access::All);
    let page = browser.get("overview").await;
    page.is(200)
        .lacks("history is off")
        .has("<dd>25.0 %</dd>")
        .has("<dd>10</dd>")
        .has("<dd>2,500</dd>")
        .has("acme/payments");
    let (_, chart) = page.text.split_once("data-chart=\"").unwrap();
    let chart = chart.split('"').next().unwrap().replace("&#34;", "\"");
    let chart: serde_json::Value = serde_json::from_str(&chart).unwrap();
    let times = chart["times"].as_array().unwrap();
    assert_eq!(times.len(), 288);
    // The line ends where the last whole step does.
    for (series, sum) in [(0, 20), (1, 9), (2, 0), (3, 1)] {
        let values = chart["series"][series]["values"].as_array().unwrap();
        assert_eq!(values.len(), times.len());
        assert_eq!(values.iter().map(|value| value.as_u64().unwrap()).sum::<u64>(), sum);
    }
}

#[tokio::test]
async fn health_says_what_looks_wrong() {
    let db = TestDb::new().await;
    for number in 1..=25 {
        let key = number.to_string();
        let op = op(&key).fingerprint(Fingerprint::of_bytes(&key));
        db.complete(&op, "body").await;
    }
    let mut browser = Browser::new(&db, Access::All);
    let page = browser.get("health").await;
    page.is(200).has("Guessable keys").has("Scope test/scope").has("Let clients send random keys");
    page.has("It is up to date.");
}
