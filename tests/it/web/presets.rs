//! The presets of a layer, as their interfaces describe themselves.

use std::time::Duration;

use http::{Method, StatusCode};
use pgonce::web::Answer;
use serde_json::json;

use super::kit::{MODES, app, keys, numbered};
use super::statuses::twice;
use super::{layer, post, send};
use crate::support::db::{TestDb, on_lapse};

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

#[tokio::test]
async fn stripe_v1_repeats_any_answer_of_work_that_has_begun() {
    for mode in MODES {
        let db = TestDb::new().await;
        let hasty =
            on_lapse(pgonce::OnLapse::Hold).failed_retention(Duration::from_secs(1)).unwrap();
        let preset = || mode.layer(&db).policy(hasty).unwrap().as_stripe_v1().unwrap();
        twice(&db, &app(&db, preset(), |_| StatusCode::CREATED)).await.is_kept(1);
        for code in [400, 402, 403, 404, 422, 500, 503] {
            twice(&db, &app(&db, preset(), move |_| status(code))).await.is_kept(0);
        }
        for code in [401, 409, 429] {
            twice(&db, &app(&db, preset(), move |_| status(code))).await.is_released();
        }
        let failed =
            "select min(expires_at - completed_at) >= '23 h' from {}.keys where status = 'failed'";
        assert!(db.ask::<bool>(failed).await);
        let third = app(&db, preset(), |call| if call < 3 { panic!("a bug") } else { status(201) });
        for succeeds in [false, false, true] {
            let router = third.router.clone();
            let sent = tokio::spawn(async move { send(&router, post("third", "")).await.status });
            assert_eq!(sent.await.is_ok_and(|status| status == 201), succeeds);
        }
        covers(&db, preset(), &[Method::POST], 86_400).await;
    }
}

#[tokio::test]
async fn stripe_v2_repeats_no_success_and_retries_every_failure_until_it_succeeds() {
    for mode in MODES {
        let db = TestDb::new().await;
        let holds = || mode.layer(&db).policy(on_lapse(pgonce::OnLapse::Hold)).unwrap();
        let preset = || holds().as_stripe_v2().unwrap();
        for code in [400, 402, 409, 429, 500, 503] {
            twice(&db, &app(&db, preset(), move |_| status(code))).await.is_released();
        }
        let third = app(&db, preset(), |call| if call < 3 { status(500) } else { status(201) });
        let answers = [Answer::Released, Answer::Released, Answer::Performed, Answer::Replayed];
        for answer in answers {
            assert_eq!(send(&third.router, post("third", "")).await.answer, Some(answer));
        }
        assert_eq!((third.calls(), db.effects().await), (3, 1));
        covers(&db, preset(), &[Method::POST, Method::DELETE], 30 * 86_400).await;
    }
}

/// The methods that begin a key, a request without one, and the retention.
async fn covers(
    db: &TestDb,
    preset: pgonce::web::IdempotencyLayer,
    methods: &[Method],
    seconds: u64,
) {
    assert_eq!(preset.specification()["retention_seconds"], json!(seconds));
    let app = app(db, preset, numbered);
    let before = keys(db).await;
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let mut request = post(&format!("of-{method}"), "");
        *request.method_mut() = method.clone();
        let answer = send(&app.router, request).await.answer;
        assert_eq!(answer, methods.contains(&method).then_some(Answer::Performed), "{method}");
    }
    assert_eq!(keys(db).await - before, i64::try_from(methods.len()).unwrap());
    let mut keyless = post("", "");
    keyless.headers_mut().remove("idempotency-key");
    assert_eq!(send(&app.router, keyless).await.answer, Some(Answer::Unkeyed));
}

#[tokio::test]
async fn the_draft_by_its_letter_wants_a_key_in_quotes_and_links_to_the_documentation() {
    let docs = "https://api.example.com/docs/idempotency";
    for mode in MODES {
        let db = TestDb::new().await;
        let own = mode.layer(&db).optional().methods([Method::PUT]);
        let draft = own.as_ietf_draft(docs);
        assert_eq!(draft.specification()["methods"], json!(["POST", "PATCH"]));
        let app = app(&db, draft, numbered);
        let mut keyless = post("k", "100");
        keyless.headers_mut().remove("idempotency-key");
        let requests = [
            (post("\"k\"", "100"), 201, Answer::Performed),
            (post("\"k\"", "100"), 201, Answer::Replayed),
            (post("\"k\"", "200"), 422, Answer::Mismatch),
            (post("k", "100"), 400, Answer::KeyMalformed),
            (keyless, 400, Answer::KeyMissing),
        ];
        for (request, code, answer) in requests {
            let got = send(&app.router, request).await;
            assert_eq!((got.status, got.answer), (status(code), Some(answer)));
            if code >= 400 {
                let problem = got.json();
                let page = format!("{docs}#{}", problem["code"].as_str().unwrap());
                assert_eq!((&problem["docs"], &problem["type"]), (&json!(docs), &json!(page)));
            }
        }
        assert_eq!(app.calls(), 1);
    }
}

#[tokio::test]
async fn settings_after_a_preset_override_it() {
    let db = TestDb::new().await;
    let own = layer(&db).as_stripe_v1().unwrap().required().methods([Method::PUT]);
    let specification = own.specification();
    assert_eq!(
        (&specification["key"], &specification["methods"]),
        (&json!("required"), &json!(["PUT"]))
    );
    let other = http::HeaderName::from_static("x-request-id");
    let strict = layer(&db).header(other).as_ietf_draft("https://example.com");
    assert_eq!(strict.specification()["header"], json!("idempotency-key"));
}
