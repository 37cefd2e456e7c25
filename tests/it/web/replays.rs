//! What a replay looks like, and who gets one.

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode};
use pgonce::ErrorKind;
use pgonce::web::Answer;

use super::kit::{App, MODES, app, numbered};
use super::{Got, layer, post, send};
use crate::support::db::TestDb;

pub async fn thrice(app: &App) -> [Got; 3] {
    let first = send(&app.router, post("k", "")).await;
    let replays = [send(&app.router, post("k", "")).await, send(&app.router, post("k", "")).await];
    assert_eq!(app.calls(), 1);
    let [second, third] = replays;
    assert_eq!(
        (second.status, &second.headers, &second.body),
        (third.status, &third.headers, &third.body)
    );
    [first, second, third]
}

fn with_headers(headers: &[(&'static str, &'static str)]) -> Response {
    let mut response = (StatusCode::CREATED, "done").into_response();
    for (name, value) in headers {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    response
}

const KEPT: [(&str, &str); 8] = [
    ("content-location", "/payments/7"),
    ("location", "/payments/7"),
    ("etag", "\"v1\""),
    ("last-modified", "Sat, 21 Nov 2026 00:00:00 GMT"),
    ("link", "</payments>; rel=\"up\""),
    ("content-language", "en"),
    ("content-encoding", "br"),
    ("content-disposition", "attachment"),
];

const NEVER: [(&str, &str); 34] = [
    ("set-cookie", "session=1"),
    ("www-authenticate", "Basic"),
    ("proxy-authenticate", "Basic"),
    ("authentication-info", "nextnonce=1"),
    ("proxy-authentication-info", "nextnonce=1"),
    ("authorization", "Bearer x"),
    ("date", "Sat, 21 Nov 2026 00:00:00 GMT"),
    ("age", "1"),
    ("connection", "x-hop"),
    ("keep-alive", "timeout=5"),
    ("proxy-connection", "close"),
    ("te", "trailers"),
    ("trailer", "x-checksum"),
    ("transfer-encoding", "identity"),
    ("upgrade", "h2c"),
    ("content-length", "4"),
    ("content-range", "bytes 0-3/4"),
    ("server", "x"),
    ("server-timing", "db;dur=1"),
    ("via", "1.1 x"),
    ("vary", "origin"),
    ("cache-control", "max-age=60"),
    ("retry-after", "1"),
    ("ratelimit", "limit=10"),
    ("ratelimit-remaining", "9"),
    ("x-ratelimit-limit", "10"),
    ("x-request-id", "r1"),
    ("request-id", "r1"),
    ("x-correlation-id", "c1"),
    ("traceparent", "00-1-2-00"),
    ("tracestate", "a=b"),
    ("access-control-allow-origin", "*"),
    ("access-control-expose-headers", "x"),
    ("idempotency-status", "ignored"),
];

// Traps 47, 48, 50, 62. The first caller gets all headers; a replay has those that describe the body.
#[tokio::test]
async fn a_replay_has_the_headers_of_the_outcome_and_none_of_the_exchange() {
    for mode in MODES {
        let db = TestDb::new().await;
        let headers = [KEPT.as_slice(), &NEVER, &[("x-hop", "1"), ("x-own", "1")]].concat();
        let sent = headers.clone();
        let app = app(&db, mode.layer(&db), move |_| with_headers(&sent));
        let [first, replay, _] = thrice(&app).await;
        for (name, value) in headers {
            assert_eq!(first.headers[name], value);
        }
        let mut names: Vec<_> = replay.headers.keys().map(HeaderName::as_str).collect();
        let kept = KEPT.map(|(name, _)| name);
        let added = ["content-type", "content-length", "cache-control", "idempotent-replayed"];
        names.retain(|name| !kept.contains(name));
        assert!(names.iter().all(|name| added.contains(name)), "{names:?}");
        for (name, value) in KEPT {
            assert_eq!(replay.headers[name], value);
        }
        assert_eq!(replay.headers["content-type"], first.headers["content-type"]);
        assert_eq!((replay.status, replay.body), (StatusCode::CREATED, first.body));
        if let Some(length) = replay.headers.get("content-length") {
            assert_eq!(length, "4");
        }
    }
}

// Traps 47, 48.
#[tokio::test]
async fn a_route_adds_headers_but_never_those() {
    let db = TestDb::new().await;
    for (name, _) in NEVER {
        let error = layer(&db).keep_header(HeaderName::from_static(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
    }
    for name in ["idempotent-replayed", "idempotency-key", "cookie", "baggage", "x-amzn-trace-id"] {
        layer(&db).keep_header(name.parse().unwrap()).expect_err(name);
    }
    let own = HeaderName::from_static("x-own");
    for mode in MODES {
        let db = TestDb::new().await;
        let idempotency = mode.layer(&db).keep_header(own.clone()).unwrap();
        let app = app(&db, idempotency, |_| with_headers(&[("x-own", "1"), ("x-other", "2")]));
        let [_, replay, _] = thrice(&app).await;
        assert_eq!((replay.header("x-own"), replay.header("x-other")), (Some("1"), None));
    }
}

// Trap 49.
#[tokio::test]
async fn values_are_bytes_and_stay_apart_and_in_order() {
    for mode in MODES {
        let db = TestDb::new().await;
        let values: [&[u8]; 6] =
            [b"<a, b>", b"", b"\xff\xfe latin \xe9", "žluť".as_bytes(), b"<a, b>", b"x: y\tz"];
        let app = app(&db, mode.layer(&db), move |_| {
            let mut response = StatusCode::OK.into_response();
            for value in values {
                response.headers_mut().append("link", HeaderValue::from_bytes(value).unwrap());
            }
            response
        });
        let [first, replay, _] = thrice(&app).await;
        for got in [first, replay] {
            let got: Vec<_> =
                got.headers.get_all("link").iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(got, values);
        }
    }
}

// Trap 53. Nothing that a client sends makes its request a replay.
#[tokio::test]
async fn the_marker_is_the_layers_own() {
    for mode in MODES {
        let db = TestDb::new().await;
        let marker = HeaderName::from_static("x-again");
        for (idempotency, name) in [
            (mode.layer(&db), "idempotent-replayed"),
            (mode.layer(&db).replay_marker(marker), "x-again"),
        ] {
            let app = app(&db, idempotency, numbered);
            let request = || {
                let mut request = post(name, "");
                for marker in ["idempotent-replayed", "x-again", "x-hit", "idempotency-status"] {
                    request.headers_mut().insert(marker, HeaderValue::from_static("true"));
                }
                request
            };
            let first = send(&app.router, request()).await;
            assert_eq!((first.answer, first.header(name)), (Some(Answer::Performed), None));
            let retry = send(&app.router, request()).await;
            assert_eq!((retry.answer, retry.header(name)), (Some(Answer::Replayed), Some("true")));
        }
    }
}

// Trap 53.
#[tokio::test]
async fn a_layer_tells_what_a_browser_may_send_and_see() {
    let db = TestDb::new().await;
    let idempotency = layer(&db)
        .header(HeaderName::from_static("x-key"))
        .replay_marker(HeaderName::from_static("x-again"));
    assert_eq!(idempotency.request_headers(), ["x-key"]);
    assert_eq!(idempotency.response_headers(), ["x-again", "retry-after"]);
}

// Trap 54.
#[tokio::test]
async fn replays_are_not_for_caches() {
    for mode in MODES {
        let db = TestDb::new().await;
        let cacheable = || with_headers(&[("cache-control", "public, max-age=60")]);
        let [first, replay, _] = thrice(&app(&db, mode.layer(&db), move |_| cacheable())).await;
        assert_eq!(first.header("cache-control"), Some("public, max-age=60"));
        assert_eq!(replay.header("cache-control"), Some("no-store"));
    }
}

// Trap 61. Of the request, only its digest is stored.
#[tokio::test]
async fn the_request_is_not_in_the_table() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        let mut request = post("k", "canary");
        request.headers_mut().insert("authorization", HeaderValue::from_static("Bearer canary"));
        *request.uri_mut() = "/canary?canary".parse().unwrap();
        assert_eq!(send(&app.router, request).await.answer, Some(Answer::Performed));
        let there = "select count(*) from {}.idempotency_keys k where k::text like '%canary%'
                         or k::text like '%' || encode('canary', 'hex') || '%'";
        assert_eq!(db.ask::<i64>(there).await, 0);
    }
}

// Trap 10. The current caller's grant is checked again before anything stored is returned.
#[tokio::test]
async fn a_replay_can_be_refused_to_who_asks_for_it_now() {
    for mode in MODES {
        let db = TestDb::new().await;
        let asked = |request: Parts| async move {
            match request.headers.get("x-role").map(HeaderValue::as_bytes) {
                Some(b"revoked") => Err(StatusCode::FORBIDDEN),
                Some(b"gone") => Err(StatusCode::GONE),
                _ => Ok(()),
            }
        };
        for secret in [false, true] {
            let key = format!("secret-{secret}");
            let mut idempotency = mode.layer(&db).authorize_replay(asked);
            if secret {
                idempotency = idempotency.secret();
            }
            let app = app(&db, idempotency, numbered);
            let request = |role| {
                let mut request = post(&key, "");
                request.headers_mut().insert("x-role", HeaderValue::from_static(role));
                request
            };
            // The check applies only to replays.
            assert_eq!(send(&app.router, request("revoked")).await.answer, Some(Answer::Performed));
            for (role, status) in [("revoked", 403), ("gone", 410)] {
                let got = send(&app.router, request(role)).await;
                assert_eq!((got.status.as_u16(), got.code()), (status, "replay_refused".into()));
                assert_eq!(got.json()["status"], status);
                assert!(!got.is_replay());
            }
            let allowed = send(&app.router, request("owner")).await;
            let expected = if secret { Answer::Omitted } else { Answer::Replayed };
            assert_eq!((allowed.answer, app.calls()), (Some(expected), 1));
        }
    }
}
