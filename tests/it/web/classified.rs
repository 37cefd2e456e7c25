//! Failures inside a success: only headers and body tell.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode};
use pgonce::web::{Answer, IdempotencyLayer, Secret, Settle};

use super::bodies::Frames;
use super::kit::{MODES, app, handled, numbered};
use super::{layer, post, send};
use crate::support::db::TestDb;

const GRPC: [&str; 4] =
    ["application/grpc", "application/grpc+proto", "Application/gRPC-Web", "application/grpc;v=1"];

#[tokio::test]
async fn grpc_is_refused_in_words() {
    for mode in MODES {
        let db = TestDb::new().await;
        for layer in [mode.layer(&db), mode.layer(&db).optional(), mode.layer(&db).off()] {
            let app = app(&db, layer, numbered);
            for content_type in GRPC {
                let mut request = post("k", "");
                let value = HeaderValue::from_static(content_type);
                request.headers_mut().insert("content-type", value);
                let got = send(&app.router, request).await;
                assert_eq!(got.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
                assert_eq!(got.code(), "grpc_unsupported");
                assert_eq!(got.json()["retryable"], false);
                // What a gRPC client reads: UNIMPLEMENTED, and the reason.
                assert_eq!(got.header("grpc-status"), Some("12"));
                assert!(got.header("grpc-message").unwrap().contains("gRPC"));
            }
            assert_eq!(app.calls(), 0);
        }
    }
}

#[tokio::test]
async fn an_observing_route_lets_grpc_pass_as_it_is() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = handled(mode.layer(&db).observe(), |_, _| async { "done".into_response() });
        let mut request = post("k", "");
        request.headers_mut().insert("content-type", HeaderValue::from_static(GRPC[0]));
        let got = send(&app.router, request).await;
        assert_eq!((got.answer, got.body), (None::<Answer>, "done".into()));
    }
}

/// Sets `Settle` by a header, or by GraphQL's `errors`.
fn classified(idempotency: IdempotencyLayer) -> IdempotencyLayer {
    idempotency.classify(|status, headers: &HeaderMap, body| {
        assert_ne!(status, StatusCode::ACCEPTED, "the handler has said it");
        match headers.get("x-outcome").map(HeaderValue::as_bytes) {
            Some(b"failed") => return Some(Settle::Fail),
            Some(b"done") => return Some(Settle::Complete),
            _ => {}
        }
        let answer: serde_json::Value = serde_json::from_slice(body?).ok()?;
        answer.get("errors").map(|_| Settle::Release)
    })
}

const ERRORS: &str = r#"{"data": null, "errors": ["the downstream is away"]}"#;

#[tokio::test]
async fn headers_and_body_say_what_becomes_of_a_key() {
    for mode in MODES {
        let db = TestDb::new().await;
        let outcome = |outcome: &'static str| [("x-outcome", outcome)];
        let responses: [(&dyn Fn() -> Response, bool, i64); 7] = [
            (&|| ERRORS.into_response(), false, 0),
            (&|| r#"{"data": 1}"#.into_response(), true, 1),
            (&|| (outcome("failed"), "").into_response(), true, 0),
            (&|| (StatusCode::BAD_GATEWAY, outcome("done"), "").into_response(), true, 1),
            (&|| (StatusCode::BAD_GATEWAY, "").into_response(), false, 0),
            // The handler's `Settle` comes first.
            (&|| (StatusCode::ACCEPTED, Settle::Complete, ERRORS).into_response(), true, 1),
            // A response that is not stored is classified too.
            (&|| (Secret, ERRORS).into_response(), false, 0),
        ];
        for (number, (response, kept, effects)) in responses.into_iter().enumerate() {
            let (before, key) = (db.effects().await, format!("k{number}"));
            let made = std::sync::Mutex::new(vec![response(), response()]);
            let made = std::sync::Arc::new(made);
            let app = app(&db, classified(mode.layer(&db)), move |_| {
                made.lock().unwrap().pop().expect("two calls at most")
            });
            let first = send(&app.router, post(&key, "")).await;
            let retry = send(&app.router, post(&key, "")).await;
            assert_eq!(
                (retry.is_replay(), app.calls()),
                (kept, if kept { 1 } else { 2 }),
                "{number}"
            );
            assert_eq!((first.status, &first.body), (retry.status, &retry.body));
            assert_eq!(db.effects().await - before, effects, "{number}");
        }
    }
}

// Does not wait for an endless body; its headers decide.
#[tokio::test]
async fn a_stream_is_classified_by_its_headers() {
    for mode in MODES {
        let db = TestDb::new().await;
        for outcome in ["failed", "unheard-of"] {
            let effects = db.effects().await;
            let stream = move |_| {
                let body = Body::new(Frames::of(&[ERRORS.as_bytes()]));
                ([("x-outcome", outcome)], body).into_response()
            };
            let app = app(&db, classified(mode.layer(&db)), stream);
            assert_eq!(send(&app.router, post(outcome, "")).await.body, ERRORS);
            let retry = send(&app.router, post(outcome, "")).await;
            assert_eq!((retry.answer, app.calls()), (Some(Answer::Omitted), 1), "{outcome}");
            let written = i64::from(outcome != "failed");
            assert_eq!(db.effects().await - effects, written);
        }
    }
}

#[tokio::test]
async fn without_a_key_a_hidden_failure_is_undone_too() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, classified(mode.of(layer(&db)).optional()), |_| ERRORS);
        let mut request = post("k", "");
        request.headers_mut().remove("idempotency-key");
        let got = send(&app.router, request).await;
        assert_eq!((got.answer, got.body), (Some(Answer::Unkeyed), ERRORS.into()));
        assert_eq!(db.effects().await, 0);
    }
}
