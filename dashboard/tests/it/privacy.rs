//! What is a caller's appears only where somebody asked for it, and in no log line.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use pgonce::Response;
use pgonce_dashboard::Access;
use tracing_subscriber::fmt::MakeWriter;

use crate::kit::{Browser, fail_message, half_done, hold};
use crate::support::db::{TestDb, op, started};

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The letters that a text begins with.
fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap()
}

#[tokio::test]
async fn a_canary_is_seen_only_by_those_who_ask_for_it() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let db = TestDb::new().await;
    let mut tx = db.pool.begin().await.unwrap();
    let claim = started(db.once.begin(&mut tx, &op("canary-key")).await.unwrap());
    let response = Response::bytes("canary-body").with_headers("canary-headers");
    claim.complete(&mut tx, response).await.unwrap();
    tx.commit().await.unwrap();
    half_done(&db, "canary-half", "canary-output", "canary-error").await;
    fail_message(&db, "canary-message", 3, "canary-error").await;
    hold(&db, "canary-held").await;
    log.0.lock().unwrap().clear();
    let mut browser = Browser::new(&db, Access::All);
    // Keys are on the pages about keys, the last error where a key or a consumer's messages are looked at.
    let pages: [(&str, &[&str]); 17] = [
        ("overview", &[]),
        ("scopes", &[]),
        ("scopes?prefix=test", &[]),
        ("inbox", &[]),
        ("health", &[]),
        ("keys", &[]),
        ("keys?scope=test%2Fscope", &["half", "held", "key", "message"]),
        ("waiting", &["half", "held"]),
        ("inbox?consumer=test%2Fscope", &["error", "message"]),
        ("key?scope=test%2Fscope&key=canary-key", &["key"]),
        ("key?scope=test%2Fscope&key=canary-half", &["half"]),
        ("key?scope=test%2Fscope&key=canary-message", &["error", "message"]),
        ("key?scope=test%2Fscope&key=none", &[]),
        ("release?scope=test%2Fscope&key=canary-half", &["half"]),
        ("resolve?scope=test%2Fscope&key=canary-held", &["held"]),
        ("redrive?scope=test%2Fscope&key=canary-message", &["error", "message"]),
        ("reveal?scope=test%2Fscope&key=canary-key", &["key"]),
    ];
    for (page, expected) in pages {
        let text = browser.get(page).await.text;
        let shown: BTreeSet<_> = text.split("canary-").skip(1).map(word).collect();
        assert_eq!(shown.into_iter().collect::<Vec<_>>(), expected, "{page}");
    }

    // The response and an output, after a click.
    for (step, shows) in [("", "canary-body"), ("charge", "canary-output")] {
        let key = if step.is_empty() { "canary-key" } else { "canary-half" };
        let asked = browser.get(&format!("reveal?scope=test%2Fscope&key={key}&step={step}")).await;
        asked.is(200).lacks(shows).has("is noted, with your name");
        let token = asked.field("token");
        let fields = [("scope", "test/scope"), ("key", key), ("step", step), ("token", &token)];
        browser.post("reveal", &fields).await.is(200).has(shows);
        browser.get(&format!("key?scope=test%2Fscope&key={key}")).await.lacks(shows);
    }
    browser.confirm("redrive", "canary-message", &[]).await.is(303);
    let resolution = [("decision", "complete"), ("body", "canary-resolution")];
    browser.confirm("resolve", "canary-held", &resolution).await.is(303);
    let fields = [("scope", "test/scope"), ("key", "canary-key"), ("token", "")];
    browser.post("release", &fields).await.is(403);

    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let audit: Vec<_> = logged.lines().filter(|line| line.contains("pgonce::audit")).collect();
    let expected = [
        ("reveal", "shown"),
        ("reveal", "shown"),
        ("redrive", "redriven"),
        ("resolve", "completed"),
        ("release", "forbidden"),
    ];
    assert_eq!(audit.len(), expected.len(), "{audit:#?}");
    for (line, (action, outcome)) in audit.iter().zip(expected) {
        assert!(
            line.contains("actor=\"ada\"") && line.contains(&format!("action=\"{action}\"")),
            "{line}"
        );
        assert!(line.contains(&format!("outcome=\"{outcome}\"")), "{line}");
    }
    let shown = logged.lines().find(|line| line.contains("canary") || line.contains("test/scope"));
    assert_eq!(shown, None);
}

#[tokio::test]
async fn what_a_caller_wrote_is_text_and_never_markup() {
    let db = TestDb::new().await;
    let evil = "<script>alert(1)</script>\"'&";
    db.complete(&op(evil), "body").await;
    fail_message(&db, evil, 0, "").await;
    half_done(&db, "half", evil, evil).await;
    fail_message(&db, "message", 1, evil).await;
    let mut browser = Browser::new(&db, Access::All);
    let link = form_urlencoded::byte_serialize(evil.as_bytes()).collect::<String>();
    for page in [
        "keys?scope=test%2Fscope".to_owned(),
        format!("keys?scope={link}&prefix={link}&status={link}&after={link}"),
        format!("scopes?prefix={link}&after={link}"),
        format!("waiting?scope={link}&state={link}"),
        format!("inbox?consumer={link}"),
        "inbox?consumer=test%2Fscope".to_owned(),
        format!("key?scope=test%2Fscope&key={link}&name={link}&done={link}"),
        "key?scope=test%2Fscope&key=half".to_owned(),
        "key?scope=test%2Fscope&key=message".to_owned(),
        format!("overview?live={link}"),
    ] {
        browser.get(&page).await.lacks("<script>alert");
    }
}
