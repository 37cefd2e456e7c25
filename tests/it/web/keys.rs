//! Which headers make a key, which are refused, and which requests the layer passes through.

use axum::body::Body;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use pgonce::web::{Answer, IdempotencyLayer};

use super::kit::{MODES, app, closed_pool, keys, numbered};
use super::{Got, layer, post, send};
use crate::support::db::TestDb;

/// A request of tenant `acme` with these key headers, byte for byte.
fn with_keys(keys: &[&[u8]]) -> Request<Body> {
    let mut request = Request::post("/").header("x-tenant", "acme").body(Body::empty()).unwrap();
    for key in keys {
        request.headers_mut().append("idempotency-key", HeaderValue::from_bytes(key).unwrap());
    }
    request
}

fn refused(got: &Got, code: &str) {
    assert_eq!((got.status, got.code().as_str()), (StatusCode::BAD_REQUEST, code), "{got:?}");
    assert_eq!(got.header("cache-control"), Some("no-store"));
}

// Trap 1.
#[tokio::test]
async fn a_string_in_quotes_and_a_bare_token_name_the_same_key() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        for (number, [first, second]) in [
            [r#""abc""#, "abc"],
            [r#""back\\slash""#, r"back\slash"],
            ["base64+/:=", r#""base64+/:=""#],
            ["  padded ", r#"  "padded"  "#],
            [r#""quo\"te""#, r#""quo\"te""#],
            [r#""a b""#, r#""a b""#],
        ]
        .into_iter()
        .enumerate()
        {
            let got = send(&app.router, with_keys(&[first.as_bytes()])).await;
            assert_eq!(got.answer, Some(Answer::Performed), "{first}");
            let again = send(&app.router, with_keys(&[second.as_bytes()])).await;
            assert!(again.is_replay(), "{first} and {second}");
            assert_eq!(app.calls() as usize, number + 1);
        }
        let stored: Vec<String> =
            sqlx::query_scalar(db.sql("select key from {}.idempotency_keys order by created_at"))
                .fetch_all(&db.pool)
                .await
                .unwrap();
        let unescaped = ["abc", r"back\slash", "base64+/:=", "padded", r#"quo"te"#, "a b"];
        assert_eq!(stored, unescaped);
    }
}

// Trap 1.
#[tokio::test]
async fn strict_routes_take_a_string_in_quotes_only() {
    let db = TestDb::new().await;
    let app = app(&db, layer(&db).strict_keys(), numbered);
    let bare = send(&app.router, with_keys(&[b"abc"])).await;
    refused(&bare, "key_malformed");
    assert_eq!(app.calls(), 0);
    let quoted = send(&app.router, with_keys(&[br#""abc""#])).await;
    assert_eq!(quoted.answer, Some(Answer::Performed));
}

// Traps 2, 3. No malformed key is ignored, on optional routes as on required ones.
#[tokio::test]
async fn a_malformed_key_is_refused_and_nothing_runs() {
    let long_quoted = [b"\"".as_slice(), &[b'k'; 256], b"\""].concat();
    let malformed: [&[&[u8]]; 19] = [
        &[b"abc", b"def"],
        &[b"abc", b"abc"],
        &[b"abc, def"],
        &[b"abc,def"],
        &[br#""abc", "def""#],
        &[br#""abc","abc""#],
        &[b""],
        &[b"   "],
        &[br#""""#],
        &[br#""   ""#],
        &[b"tab\tinside"],
        &[b"\"tab\tinside\""],
        &[b"two words"],
        &["clé".as_bytes()],
        &["\"clé\"".as_bytes()],
        &[b"\xff\xfe"],
        &[br#""open"#],
        &[&[b'k'; 256]],
        &[&long_quoted],
    ];
    for mode in MODES {
        let db = TestDb::new().await;
        for idempotency in [mode.layer(&db).required(), mode.layer(&db).optional()] {
            let app = app(&db, idempotency, numbered);
            for keys in malformed {
                let got = send(&app.router, with_keys(keys)).await;
                refused(&got, "key_malformed");
                assert_eq!(got.answer, Some(Answer::KeyMalformed), "{keys:?}");
            }
            assert_eq!((app.calls(), db.effects().await), (0, 0));
        }
        assert_eq!(keys(&db).await, 0);
    }
}

// Trap 4. The limit is checked before the database is asked.
#[tokio::test]
async fn a_key_takes_up_to_255_bytes() {
    let db = TestDb::new().await;
    let here = app(&db, layer(&db), numbered);
    let longest = [b'k'; 255];
    let bare = send(&here.router, with_keys(&[&longest])).await;
    assert_eq!(bare.answer, Some(Answer::Performed));
    // Quotes and escapes do not count.
    let quoted = [b"\"".as_slice(), &longest, b"\""].concat();
    assert!(send(&here.router, with_keys(&[&quoted])).await.is_replay());
    let escaped = [b"\"".as_slice(), &br"\\".repeat(255), b"\""].concat();
    let escaped = send(&here.router, with_keys(&[&escaped])).await;
    assert_eq!(escaped.answer, Some(Answer::Performed));

    let pool = closed_pool(&db).await;
    let down = IdempotencyLayer::new(db.once.clone(), pool, |_| pgonce::Scope::new("s").ok());
    let down = app(&db, down, numbered);
    refused(&send(&down.router, with_keys(&[&[b'k'; 256]])).await, "key_malformed");
    refused(&send(&down.router, with_keys(&[])).await, "key_missing");
}

// Trap 4. Letter case matters.
#[tokio::test]
async fn keys_that_differ_in_case_are_different() {
    let db = TestDb::new().await;
    let app = app(&db, layer(&db), numbered);
    for key in ["Order-1", "order-1", "ORDER-1"] {
        let got = send(&app.router, post(key, "")).await;
        assert_eq!(got.answer, Some(Answer::Performed));
    }
    assert_eq!(db.effects().await, 3);
}

// Trap 4.
#[tokio::test]
async fn a_route_may_refuse_keys_that_are_easy_to_guess() {
    let db = TestDb::new().await;
    let app = app(&db, layer(&db).key_entropy_min(60.0), numbered);
    for guessable in ["1", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "order-17", "2026-01-01"] {
        refused(&send(&app.router, post(guessable, "")).await, "key_malformed");
    }
    let uuid = send(&app.router, post("2f1c8d0e-7a56-4b0b-9a3f-5c1d2e3f4a5b", "")).await;
    assert_eq!(uuid.answer, Some(Answer::Performed));
    assert_eq!(app.calls(), 1);
}

// Trap 5. By decision, parameters of a quoted key are ignored; a bare token has none.
#[tokio::test]
async fn parameters_of_a_string_are_ignored() {
    let db = TestDb::new().await;
    let app = app(&db, layer(&db), numbered);
    let plain = send(&app.router, with_keys(&[br#""k""#])).await;
    assert_eq!(plain.answer, Some(Answer::Performed));
    for with_parameters in [r#""k";v=1"#, r#""k"; v="x"; w"#] {
        let got = send(&app.router, with_keys(&[with_parameters.as_bytes()])).await;
        assert!(got.is_replay(), "{with_parameters}");
    }
    for broken in [r#""k";"#, r#""k"v=1"#, r#""k";V=1"#] {
        refused(&send(&app.router, with_keys(&[broken.as_bytes()])).await, "key_malformed");
    }
    let bare = send(&app.router, with_keys(&[b"k;v=1"])).await;
    assert_eq!(bare.answer, Some(Answer::Performed), "another key");
}

// Trap 6.
#[tokio::test]
async fn a_missing_key_is_refused_where_one_is_required() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        let got = send(&app.router, with_keys(&[])).await;
        refused(&got, "key_missing");
        let problem = got.json();
        assert!(problem["docs"].as_str().unwrap().starts_with("https://"), "{problem}");
        assert_eq!(problem["retryable"], false);
        assert_eq!((app.calls(), keys(&db).await), (0, 0));
    }
}

// Trap 6. Two requests without a key never share a record.
#[tokio::test]
async fn a_missing_key_runs_unprotected_where_one_is_optional() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db).optional(), numbered);
        for call in 1..=2 {
            let got = send(&app.router, with_keys(&[])).await;
            assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(Answer::Unkeyed)));
            assert_eq!(got.body, format!("call {call}"));
            assert!(!got.is_replay() && got.header("idempotency-status").is_none());
        }
        assert_eq!((db.effects().await, keys(&db).await), (2, 0));
        let keyed = send(&app.router, post("k", "")).await;
        assert_eq!(keyed.answer, Some(Answer::Performed));
        assert!(send(&app.router, post("k", "")).await.is_replay());
    }
}

// Trap 8.
#[tokio::test]
async fn a_route_that_ignores_keys_says_so() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db).off(), numbered);
        for _ in ["first", "second"] {
            // Malformed or not: the key means nothing here.
            for key in ["k", "a, b"] {
                let got = send(&app.router, post(key, "")).await;
                assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(Answer::Unkeyed)));
                assert_eq!(got.header("idempotency-status"), Some("ignored"));
            }
        }
        let without = send(&app.router, with_keys(&[])).await;
        assert_eq!(without.header("idempotency-status"), None);
        assert_eq!((db.effects().await, keys(&db).await), (5, 0));
    }
}

// Trap 7. The pool is closed, so the layer cannot have asked the database.
#[tokio::test]
async fn other_methods_pass_untouched() {
    for mode in MODES {
        let db = TestDb::new().await;
        let pool = closed_pool(&db).await;
        // GET and similar methods cannot be covered.
        let all = [Method::POST, Method::PUT, Method::GET, Method::HEAD, Method::CONNECT];
        for (methods, passing) in [
            (None, &["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE", "PURGE"][..]),
            (Some(all), &["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "DELETE"][..]),
        ] {
            let scope = |_: &http::request::Parts| pgonce::Scope::new("s").ok();
            let mut down = mode.of(IdempotencyLayer::new(db.once.clone(), pool.clone(), scope));
            if let Some(methods) = methods {
                down = down.methods(methods);
            }
            let app = app(&db, down, numbered);
            for method in passing {
                let mut request = post("k", "");
                *request.method_mut() = method.parse().unwrap();
                let got = send(&app.router, request).await;
                assert_eq!((got.status, got.answer), (StatusCode::CREATED, None), "{method}");
                assert!(!got.is_replay());
            }
            let calls = app.calls();
            let covered = send(&app.router, post("k", "")).await;
            assert_eq!(covered.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(app.calls(), calls);
        }
    }
}

// Trap 7.
#[tokio::test]
async fn put_and_delete_can_be_covered() {
    let db = TestDb::new().await;
    let app = app(&db, layer(&db).methods([Method::PUT, Method::DELETE]), numbered);
    for method in [Method::PUT, Method::DELETE] {
        for _ in ["first", "retry"] {
            let mut request = post(&format!("k {method}").replace(' ', "-"), "");
            *request.method_mut() = method.clone();
            send(&app.router, request).await;
        }
    }
    assert_eq!((app.calls(), db.effects().await), (2, 2));
}

#[tokio::test]
async fn another_header_can_carry_the_key() {
    let db = TestDb::new().await;
    let name = HeaderName::from_static("x-request-id");
    let app = app(&db, layer(&db).header(name.clone()), numbered);
    refused(&send(&app.router, post("k", "")).await, "key_missing");
    let request = || {
        let mut request = with_keys(&[]);
        request.headers_mut().insert(&name, HeaderValue::from_static("k"));
        request
    };
    assert_eq!(send(&app.router, request()).await.answer, Some(Answer::Performed));
    assert!(send(&app.router, request()).await.is_replay());
    assert_eq!(app.calls(), 1);
}
