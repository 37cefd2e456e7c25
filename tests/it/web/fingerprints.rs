//! Which request a key belongs to.

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Request, StatusCode};
use pgonce::web::{Answer, RequestFingerprint};
use pgonce::{Fingerprint, FingerprintSecret};

use super::kit::{App, Gate, MODES, Mode, app, gated, numbered, patient};
use super::{layer, post, send};
use crate::support::db::{TestDb, waits};

/// A request in short: method, target, headers, body.
type Sent = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

fn request(key: &str, (method, target, headers, body): Sent) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header("x-tenant", "acme")
        .header("idempotency-key", key);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body)).unwrap()
}

/// The answer to the second request after the first.
async fn second(app: &App, first: Sent, second: Sent) -> Answer {
    let key = pgonce::Key::generate();
    let first = send(&app.router, request(key.as_str(), first)).await;
    assert_eq!(first.answer, Some(Answer::Performed));
    let second = send(&app.router, request(key.as_str(), second)).await;
    if second.answer == Some(Answer::Mismatch) {
        assert_eq!(second.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(second.code(), "mismatch");
    }
    second.answer.unwrap()
}

async fn app_with(db: &TestDb, fingerprint: RequestFingerprint) -> App {
    app(db, layer(db).fingerprint(fingerprint), numbered)
}

const JSON: (&str, &str) = ("content-type", "application/json");
const ORDER: Sent = ("POST", "/orders?dry_run=false", &[JSON], r#"{"a":1}"#);

// Traps 11, 15. The path counts as sent, neither decoded nor normalised.
#[tokio::test]
async fn another_method_path_query_type_encoding_or_body_is_a_mismatch() {
    let others: [Sent; 11] = [
        ("PATCH", "/orders?dry_run=false", &[JSON], r#"{"a":1}"#),
        ("POST", "/order?dry_run=false", &[JSON], r#"{"a":1}"#),
        ("POST", "/orders/?dry_run=false", &[JSON], r#"{"a":1}"#),
        ("POST", "/%6frders?dry_run=false", &[JSON], r#"{"a":1}"#),
        ("POST", "/orders?dry_run=true", &[JSON], r#"{"a":1}"#),
        ("POST", "/orders", &[JSON], r#"{"a":1}"#),
        ("POST", "/orders?dry_run=false", &[], r#"{"a":1}"#),
        ("POST", "/orders?dry_run=false", &[("content-type", "text/plain")], r#"{"a":1}"#),
        ("POST", "/orders?dry_run=false", &[JSON, ("content-encoding", "gzip")], r#"{"a":1}"#),
        ("POST", "/orders?dry_run=false", &[JSON], r#"{"a":2}"#),
        ("POST", "/orders?dry_run=false", &[JSON], r#"{"a": 1}"#),
    ];
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        for other in others {
            assert_eq!(second(&app, ORDER, other).await, Answer::Mismatch, "{other:?}");
        }
        // Headers that say nothing about the operation do not count.
        let same = (ORDER.0, ORDER.1, &[JSON, ("user-agent", "retry/2")][..], ORDER.3);
        assert_eq!(second(&app, ORDER, same).await, Answer::Replayed);
        assert_eq!(app.calls() as usize, others.len() + 1);
    }
}

// Trap 11.
#[tokio::test]
async fn query_and_type_can_be_left_out() {
    let db = TestDb::new().await;
    let app = app_with(&db, RequestFingerprint::new().without_query().without_content_type()).await;
    let other: Sent = ("POST", "/orders", &[("content-encoding", "x")], r#"{"a":1}"#);
    assert_eq!(second(&app, ORDER, other).await, Answer::Replayed);
    let other: Sent = ("POST", "/orders", &[], r#"{"a":2}"#);
    assert_eq!(second(&app, ORDER, other).await, Answer::Mismatch);
}

// Trap 12.
#[tokio::test]
async fn parts_never_run_together() {
    let db = TestDb::new().await;
    let [a, b] = ["x-a", "x-b"].map(HeaderName::from_static);
    let app = app_with(&db, RequestFingerprint::new().header(a).header(b)).await;
    let pairs: [[Sent; 2]; 7] = [
        [
            ("POST", "/", &[("x-a", "bc"), ("x-b", "d")], ""),
            ("POST", "/", &[("x-a", "b"), ("x-b", "cd")], ""),
        ],
        // The number of values per header counts too.
        [
            ("POST", "/", &[("x-a", "1"), ("x-a", "2")], ""),
            ("POST", "/", &[("x-a", "1"), ("x-b", "2")], ""),
        ],
        [("POST", "/", &[("x-a", "1"), ("x-a", "2")], ""), ("POST", "/", &[("x-a", "1, 2")], "")],
        [
            ("POST", "/", &[("x-a", "1"), ("x-a", "2")], ""),
            ("POST", "/", &[("x-a", "2"), ("x-a", "1")], ""),
        ],
        [("POST", "/", &[("x-b", "")], ""), ("POST", "/", &[], "")],
        [
            ("POST", "/", &[("content-type", "ab")], "c"),
            ("POST", "/", &[("content-type", "a")], "bc"),
        ],
        [("POST", "/a?b", &[], "c"), ("POST", "/a", &[], "bc")],
    ];
    for [one, other] in pairs {
        assert_eq!(second(&app, one, other).await, Answer::Mismatch, "{one:?} {other:?}");
        assert_eq!(second(&app, one, one).await, Answer::Replayed);
    }
}

// Trap 13. The database compares fingerprints by their bytes. To prevent guessing, set a secret.
#[tokio::test]
async fn a_fingerprint_is_a_256_bit_digest_and_a_secret_changes_it() {
    let db = TestDb::new().await;
    let secret = RequestFingerprint::new().secret(FingerprintSecret::new([7; 16]).unwrap());
    for (key, fingerprint) in [("plain", RequestFingerprint::new()), ("keyed", secret)] {
        let app = app_with(&db, fingerprint).await;
        send(&app.router, post(key, "100")).await;
        assert!(send(&app.router, post(key, "100")).await.is_replay());
        let other = send(&app.router, post(key, "200")).await;
        assert_eq!(other.answer, Some(Answer::Mismatch));
    }
    let whole = "select count(distinct substr(fingerprint, 5)) = 2
                    and bool_and(octet_length(fingerprint) = 4 + 32) from {}.idempotency_keys";
    assert!(db.ask::<bool>(whole).await);
}

// Trap 14.
#[tokio::test]
async fn canonical_json_looks_through_spelling_and_leaves_fields_out() {
    let db = TestDb::new().await;
    let canonical = RequestFingerprint::new()
        .canonical_json()
        .without_field("/sent_at")
        .without_field("/meta/signature")
        .without_field("/odd~1name");
    let app = app_with(&db, canonical).await;
    let json = |body| -> Sent { ("POST", "/", &[JSON], body) };
    let first = r#"{"amount": 1.0, "to": {"b": 2, "a": "é"}, "sent_at": 1, "meta": {"signature": "x", "n": 1}}"#;
    for (same, body) in [
        (
            true,
            r#"{"to":{"a":"\u00e9","b":2},"amount":1,"sent_at":1,"meta":{"signature":"x","n":1}}"#,
        ),
        (true, r#"{"to":{"a":"é","b":2},"amount":1e0,"sent_at":2,"meta":{"signature":"y","n":1}}"#),
        (true, r#"{"to":{"a":"é","b":2},"amount":1,"meta":{"n":1},"odd/name":3}"#),
        // A field that is left out does not matter, whatever it is.
        (true, r#"{"to":{"a":"é","b":2},"amount":1,"sent_at":1.7645e18,"meta":{"n":1}}"#),
        (false, r#"{"to":{"a":"é","b":2},"amount":2,"sent_at":1,"meta":{"signature":"x","n":1}}"#),
        (false, r#"{"to":{"a":"é","b":2},"amount":"1","meta":{"n":1}}"#),
        (false, r#"{"to":{"a":"é","b":2},"amount":1,"meta":{"n":2}}"#),
        (false, r#"{"to":{"a":"é","b":2},"amount":1,"meta":{"n":1},"extra":null}"#),
        (false, r#"{"to":{"a":"é","b":2,"sent_at":1},"amount":1,"meta":{"n":1}}"#),
        (false, "not JSON"),
    ] {
        let expected = if same { Answer::Replayed } else { Answer::Mismatch };
        assert_eq!(second(&app, json(first), json(body)).await, expected, "{body}");
    }
    // A snowflake id is told from its neighbour.
    let [id, spelled, neighbour] =
        [r#"{"n":9007199254740993}"#, r#"{"n": 9007199254740993}"#, r#"{"n":9007199254740992}"#];
    assert_eq!(second(&app, json(id), json(spelled)).await, Answer::Replayed);
    assert_eq!(second(&app, json(id), json(neighbour)).await, Answer::Mismatch);
    // What has no canonical form counts by its bytes.
    for [one, other] in [
        ["not JSON", "not  JSON"],
        ["", " "],
        [r#"{"n":18446744073709551616}"#, r#"{"n": 18446744073709551616}"#],
        [r#"{"n":1e17}"#, r#"{"n":1.0e17}"#],
    ] {
        assert_eq!(second(&app, json(one), json(other)).await, Answer::Mismatch, "{other}");
        assert_eq!(second(&app, json(one), json(one)).await, Answer::Replayed);
    }
}

// Trap 15. A multipart boundary changes with every attempt.
#[tokio::test]
async fn a_route_can_make_its_own_fingerprint() {
    fn order(request: &Parts, _: &Bytes) -> Fingerprint {
        Fingerprint::of_bytes(request.headers["x-order"].as_bytes())
    }
    let db = TestDb::new().await;
    let app = app_with(&db, RequestFingerprint::new().custom(order)).await;
    let first: Sent = (
        "POST",
        "/",
        &[("x-order", "7"), ("content-type", "multipart/form-data; boundary=a")],
        "--a",
    );
    let retry: Sent = (
        "POST",
        "/",
        &[("x-order", "7"), ("content-type", "multipart/form-data; boundary=b")],
        "--b",
    );
    let other: Sent = (
        "POST",
        "/",
        &[("x-order", "8"), ("content-type", "multipart/form-data; boundary=a")],
        "--a",
    );
    assert_eq!(second(&app, first, retry).await, Answer::Replayed);
    assert_eq!(second(&app, first, other).await, Answer::Mismatch);
}

// Trap 16. A leased claim is visible, so a mismatch is answered before "in progress".
#[tokio::test]
async fn a_mismatch_is_told_while_the_first_is_at_work() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let app = gated(&db, Mode::Leased.layer(&db), &gate);
    let first = tokio::spawn({
        let router = app.router.clone();
        async move { send(&router, post("k", "100")).await }
    });
    gate.entered().await;
    let other = send(&app.router, post("k", "200")).await;
    assert_eq!((other.status, other.code()), (StatusCode::UNPROCESSABLE_ENTITY, "mismatch".into()));
    let same = send(&app.router, post("k", "100")).await;
    assert_eq!((same.status, same.code()), (StatusCode::CONFLICT, "in_progress".into()));
    gate.open();
    assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
    assert_eq!(app.calls(), 1);
}

// Trap 16. An open transaction is invisible. After its end, the fingerprint is compared.
#[tokio::test]
async fn a_mismatch_is_told_after_waiting_too() {
    for mode in MODES {
        let db = TestDb::new().await;
        let gate = Gate::new();
        let app =
            gated(&db, mode.layer(&db).policy(waits(crate::support::db::PATIENCE)).unwrap(), &gate);
        let requests = ["100", "100", "200"].map(|body| {
            let router = app.router.clone();
            async move { send(&router, post("k", body)).await }
        });
        let [first, same, other] = requests;
        let first = tokio::spawn(first);
        gate.entered().await;
        let (same, other) = (tokio::spawn(same), tokio::spawn(other));
        gate.open();
        let answers =
            [first, same, other].map(|task| async { patient(task).await.unwrap().answer });
        let [first, same, other] = answers;
        assert_eq!(first.await, Some(Answer::Performed));
        assert_eq!((same.await, other.await), (Some(Answer::Replayed), Some(Answer::Mismatch)));
    }
}

// Trap 17.
#[tokio::test]
async fn the_same_request_under_another_key_is_another_operation() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        for key in ["one", "two"] {
            let got = send(&app.router, post(key, "100")).await;
            assert_eq!(got.answer, Some(Answer::Performed));
        }
        assert_eq!(db.effects().await, 2);
    }
}

// Trap 18.
#[tokio::test]
async fn the_fingerprint_is_fixed_by_begin() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let app = gated(&db, Mode::Leased.layer(&db), &gate);
    let router = app.router.clone();
    let first = tokio::spawn(async move { send(&router, post("k", "100")).await });
    gate.entered().await;
    let print = "select fingerprint from {}.idempotency_keys";
    let at_begin: Vec<u8> = db.ask(print).await;
    gate.open();
    patient(first).await.unwrap();
    assert_eq!(db.ask::<Vec<u8>>(print).await, at_begin);
}

// Trap 19. A deploy that changes the fingerprint's parts does not turn retries into mismatches.
#[tokio::test]
async fn fingerprints_of_another_recipe_are_not_compared() {
    let db = TestDb::new().await;
    let secret = |byte| FingerprintSecret::new([byte; 16]).unwrap();
    let recipes = || {
        [
            RequestFingerprint::new(),
            RequestFingerprint::new().without_query(),
            RequestFingerprint::new().without_content_type(),
            RequestFingerprint::new().canonical_json(),
            RequestFingerprint::new().without_field("/sent_at"),
            RequestFingerprint::new().header(http::header::ACCEPT),
            RequestFingerprint::new().secret(secret(1)),
            RequestFingerprint::new().secret(secret(2)),
            RequestFingerprint::new().custom(|_, body| Fingerprint::of_bytes(body)),
        ]
    };
    for (number, first) in recipes().into_iter().enumerate() {
        let first = app_with(&db, first).await;
        let key = format!("k{number}");
        send(&first.router, post(&key, "100")).await;
        for (other_number, other) in recipes().into_iter().enumerate() {
            let other = app_with(&db, other).await;
            let got = send(&other.router, post(&key, "200")).await;
            let expected = if number == other_number { Answer::Mismatch } else { Answer::Replayed };
            assert_eq!(got.answer, Some(expected), "{number} then {other_number}");
        }
    }
}
