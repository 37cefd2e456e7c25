//! What a route reports: counts, published policy, problem documents. And when keys are forgotten.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use pgonce::Reaper;
use pgonce::web::{Answer, IdempotencyLayer, RequestFingerprint};
use serde_json::json;

use super::concurrency::sent;
use super::kit::{Gate, LEASE, MODES, Mode, app, closed_pool, gated, keys, numbered, patient};
use super::{layer, lease, post, send};
use crate::support::db::{TestDb, kept_for, waits};
use crate::support::metrics::Metrics;

/// Counts by answer, as expected.
fn counts(of: &[(&str, u64)]) -> HashMap<String, u64> {
    of.iter().map(|(answer, count)| ((*answer).to_owned(), *count)).collect()
}

const ANSWERS: &str = "pgonce.http.answers";
const OBSERVED: &str = "pgonce.http.observed";

#[tokio::test]
async fn an_observing_route_never_blocks_and_counts_what_it_would_have_done() {
    for mode in MODES {
        let metrics = Metrics::of_thread();
        let db = TestDb::new().await;
        let idempotency = mode.layer(&db).observe().request_bytes_max(4);
        let app = app(&db, idempotency.clone(), numbered);
        let mut missing = post("k", "");
        missing.headers_mut().remove("idempotency-key");
        let requests = [
            (post("k", "100"), Answer::Performed),
            (post("k", "100"), Answer::Unkeyed), // a replay
            (post("k", "200"), Answer::Unkeyed), // a mismatch
            (missing, Answer::Unkeyed),
            (post("a,b", "100"), Answer::Unkeyed), // malformed
            (post("long", "12345"), Answer::Unkeyed),
        ];
        let count = requests.len();
        for (number, (request, answer)) in requests.into_iter().enumerate() {
            let got = send(&app.router, request).await;
            assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(answer)), "{number}");
            assert_eq!(got.body, format!("call {}", number + 1));
            assert!(!got.is_replay());
        }
        assert_eq!(db.effects().await as usize, count);
        assert_eq!(metrics.by_answer(ANSWERS), counts(&[("performed", 1), ("unkeyed", 5)]));
        let expected =
            ["replayed", "mismatch", "key_missing", "key_malformed", "request_too_large"]
                .map(|code| (code, 1));
        assert_eq!(metrics.by_answer(OBSERVED), counts(&expected));
        // Nobody was told, and nothing was prevented.
        assert_eq!(metrics.all().keys().find(|name| name.starts_with("pgonce.duplicates")), None);
    }
}

#[tokio::test]
async fn an_observing_route_lets_duplicates_in_flight_run() {
    for mode in MODES {
        let metrics = Metrics::of_thread();
        let db = TestDb::new().await;
        let gate = Gate::new();
        let idempotency = mode.layer(&db).observe().policy(waits(Duration::from_secs(60))).unwrap();
        let slow = gated(&db, idempotency.clone(), &gate);
        let quick = app(&db, idempotency.clone(), numbered);
        let first = sent(&slow, "k", "");
        gate.entered().await;
        let duplicate = patient(send(&quick.router, post("k", ""))).await;
        assert_eq!(duplicate.status, StatusCode::CREATED);
        gate.open();
        assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
        assert_eq!((db.effects().await, metrics.observed(Answer::InProgress)), (2, 1));
    }
}

#[tokio::test]
async fn an_observing_route_keeps_a_loser_its_answer_and_its_writes() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let brief = lease(Duration::from_millis(50)).renewed_for(Duration::ZERO);
    let idempotency = layer(&db).leased(brief).unwrap().observe();
    let slow = gated(&db, idempotency.clone(), &gate);
    let quick = app(&db, idempotency, numbered);
    let first = sent(&slow, "k", "");
    gate.entered().await;
    db.until("select lease_expires_at < {}._clock() from {}.idempotency_keys").await;
    assert_eq!(send(&quick.router, post("k", "")).await.answer, Some(Answer::Performed));
    gate.open();
    let late = patient(first).await.unwrap();
    assert_eq!((late.status, late.body), (StatusCode::CREATED, "call 1".into()));
    assert_eq!(db.effects().await, 2);
}

#[tokio::test]
async fn an_observing_route_needs_no_database() {
    for mode in MODES {
        let metrics = Metrics::of_thread();
        let db = TestDb::new().await;
        let pool = closed_pool(&db).await;
        let scope = |_: &http::request::Parts| pgonce::Scope::new("s").ok();
        let idempotency = mode.of(IdempotencyLayer::new(db.once.clone(), pool, scope)).observe();
        let down = super::kit::handled(idempotency.clone(), |call, _| async move {
            axum::response::IntoResponse::into_response(numbered(call))
        });
        assert_eq!(send(&down.router, post("k", "")).await.status, StatusCode::CREATED);
        assert_eq!(metrics.by_answer(OBSERVED), counts(&[("unavailable", 1)]));
    }
}

#[tokio::test]
async fn every_answer_is_counted_once_and_by_all_copies_together() {
    for mode in MODES {
        let metrics = Metrics::of_thread();
        let db = TestDb::new().await;
        let idempotency = mode.layer(&db);
        let fine = app(&db, idempotency.clone(), numbered);
        let failing = app(&db, idempotency.clone().secret(), |_| StatusCode::BAD_GATEWAY);
        for (app, key, body) in [
            (&fine, "k", "1"),      // performed
            (&fine, "k", "1"),      // replayed
            (&fine, "k", "1"),      // replayed
            (&fine, "k", "2"),      // mismatch
            (&failing, "f", ""),    // released
            (&fine, "bad key", ""), // malformed
        ] {
            send(&app.router, post(key, body)).await;
        }
        let expected = [
            ("performed", 1),
            ("replayed", 2),
            ("mismatch", 1),
            ("released", 1),
            ("key_malformed", 1),
        ];
        assert_eq!(metrics.by_answer(ANSWERS), counts(&expected));
        assert_eq!(metrics.by_answer(OBSERVED), HashMap::new());
    }
}

// Traps 63, 66. begin decides by the database's clock; no reaper has run.
#[tokio::test]
async fn a_key_past_its_retention_is_as_good_as_none() {
    for mode in MODES {
        let db = TestDb::new().await;
        db.stop_clock().await;
        let retention = Duration::from_secs(3600);
        let app = app(&db, mode.layer(&db).policy(kept_for(retention)).unwrap(), numbered);
        assert_eq!(send(&app.router, post("k", "100")).await.body, "call 1");
        db.advance(retention - Duration::from_millis(1)).await;
        assert!(send(&app.router, post("k", "100")).await.is_replay());
        db.advance(Duration::from_millis(1)).await;
        // No longer bound to a request, so another request may use it.
        let again = send(&app.router, post("k", "200")).await;
        assert_eq!((again.answer, again.body), (Some(Answer::Performed), "call 2".into()));
        assert!(send(&app.router, post("k", "200")).await.is_replay());
        assert_eq!((db.effects().await, keys(&db).await), (2, 1));
    }
}

// Traps 64, 65. An unfinished key is forgotten too, but neither begin nor the reaper takes a live claim.
#[tokio::test]
async fn a_claim_outlives_the_retention_while_its_lease_runs_and_not_longer() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let gate = Gate::new();
    let unrenewed = lease(LEASE).renewed_for(Duration::ZERO);
    let abandoned =
        gated(&db, layer(&db).leased(unrenewed).unwrap().policy(kept_for(LEASE)).unwrap(), &gate);
    let first = sent(&abandoned, "k", "");
    gate.entered().await;
    let reap = async || Reaper::new(&db.once).pass(&mut db.conn().await).await.unwrap();
    db.advance(LEASE - Duration::from_millis(1)).await;
    reap().await;
    let app = app(&db, Mode::Leased.layer(&db), numbered);
    assert_eq!(send(&app.router, post("k", "")).await.answer, Some(Answer::InProgress));
    db.advance(Duration::from_millis(1)).await;
    let taken = send(&app.router, post("k", "")).await;
    assert_eq!(taken.answer, Some(Answer::Performed));
    reap().await;
    assert!(send(&app.router, post("k", "")).await.is_replay());
    gate.open();
    let late = patient(first).await.unwrap();
    assert_eq!((late.answer, db.effects().await), (Some(Answer::Replayed), 1));
}

// Trap 66. What the IETF draft wants published.
#[tokio::test]
async fn a_layer_publishes_its_policy() {
    let db = TestDb::new().await;
    let published = layer(&db).specification();
    assert_eq!(published["header"], "idempotency-key");
    assert_eq!((&published["key"], &published["key_bytes_max"]), (&json!("required"), &json!(255)));
    assert_eq!(published["methods"], json!(["POST", "PATCH"]));
    assert_eq!(published["retention_seconds"], 86_400);
    let fingerprint = RequestFingerprint::new().without_query().without_field("/sent_at");
    let published = layer(&db)
        .optional()
        .strict_keys()
        .header(HeaderName::from_static("x-key"))
        .methods([Method::PUT])
        .policy(kept_for(Duration::from_secs(7)))
        .unwrap()
        .request_bytes_max(9)
        .replay_marker(HeaderName::from_static("x-again"))
        .keep_header(HeaderName::from_static("x-own"))
        .unwrap()
        .fingerprint(fingerprint)
        .docs("https://example.com/keys")
        .specification();
    let replayed = published["replayed_headers"].as_array().unwrap();
    assert!(replayed.contains(&json!("x-own")) && replayed.contains(&json!("location")));
    for (field, value) in [
        ("header", json!("x-key")),
        ("key", json!("optional")),
        ("key_syntax", json!("RFC 9651 string")),
        ("methods", json!(["PUT"])),
        ("retention_seconds", json!(7)),
        ("request_bytes_max", json!(9)),
        ("replay_marker", json!("x-again")),
        ("docs", json!("https://example.com/keys")),
        (
            "fingerprint",
            json!(
                "http 1, method, path, content-type, content-encoding, canonical JSON body, without /sent_at"
            ),
        ),
    ] {
        assert_eq!(published[field], value, "{field}");
    }
    assert_eq!(layer(&db).off().specification()["key"], "ignored");
}

// Trap 67.
#[tokio::test]
async fn an_answer_of_the_layers_own_is_a_problem_with_a_stable_type() {
    let db = TestDb::new().await;
    let app = app(&db, layer(&db).docs("https://example.com/keys"), numbered);
    send(&app.router, post("k", "1")).await;
    let codes = [("k", 422, "mismatch"), ("bad canary", 400, "key_malformed")];
    for (key, status, code) in codes {
        let got = send(&app.router, post(key, "2")).await;
        assert_eq!(got.header("content-type"), Some("application/problem+json"));
        assert_eq!(got.header("cache-control"), Some("no-store"));
        let problem = got.json();
        assert_eq!(problem["type"], format!("https://example.com/keys#{code}"));
        assert_eq!((&problem["status"], got.status.as_u16()), (&json!(status), status));
        assert_eq!(
            (&problem["code"], &problem["docs"]),
            (&json!(code), &json!("https://example.com/keys"))
        );
        assert_eq!(problem["retryable"], false);
        let fields: Vec<_> = problem.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields.len(), 7, "{fields:?}");
        for text in ["title", "detail"] {
            assert!(problem[text].as_str().is_some_and(|text| text.len() > 10), "{problem}");
        }
        assert!(!got.body.windows(6).any(|part| part == b"canary"), "the key is not told back");
    }
}

// Trap 67. Codes are for programs: they never change, and no two answers share one.
#[test]
fn codes_are_stable() {
    let codes = Answer::ALL.iter().map(|answer| answer.code()).collect::<Vec<_>>().join(" ");
    assert_eq!(
        codes,
        "performed released unknown unstored replayed omitted in_progress mismatch held key_missing \
         key_malformed no_scope layered_twice grpc_unsupported request_too_large request_unreadable replay_refused unavailable \
         store_refused not_committed commit_refused commit_unknown transaction_lost transaction_unused response_unreadable unkeyed unprotected"
    );
    let distinct: std::collections::HashSet<_> = codes.split(' ').collect();
    assert_eq!(distinct.len(), Answer::ALL.len());
}

// Trap 67.
#[tokio::test]
async fn a_client_that_takes_no_json_gets_text() {
    let db = TestDb::new().await;
    let app = app(&db, layer(&db), numbered);
    for (accept, json) in [
        (&["text/plain"][..], false),
        (&["text/html, text/*;q=0.5"], false),
        (&["image/png"], false),
        (&[""], false),
        (&[], true),
        (&["*/*"], true),
        (&["text/html, */*;q=0.1"], true),
        (&["application/*"], true),
        (&["Application/JSON"], true),
        (&["application/problem+json"], true),
        (&["text/html", "application/json"], true),
    ] {
        let mut request = post("bad key", "");
        for value in accept {
            request.headers_mut().append("accept", HeaderValue::from_static(value));
        }
        let got = send(&app.router, request).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST);
        if json {
            assert_eq!(got.code(), "key_malformed", "{accept:?}");
        } else {
            assert_eq!(got.header("content-type"), Some("text/plain; charset=utf-8"), "{accept:?}");
            let text = String::from_utf8(got.body.to_vec()).unwrap();
            assert!(text.contains("key_malformed") && text.contains("https://"), "{text}");
        }
    }
}
