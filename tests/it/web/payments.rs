//! `examples/payments` from outside: what its users script.

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use super::Got;
use super::example::{Caller, Example};
use crate::support::db::TestDb;

fn order(amount: i64) -> String {
    format!(r#"{{"account": "alice", "amount": {amount}, "currency": "EUR"}}"#)
}

const ROUTES: [&str; 2] = ["/payments", "/charges"];

async fn post(caller: &Caller, path: &str, key: &str, body: &str) -> Got {
    caller.post(path, key, body).await.unwrap()
}

async fn count(caller: &Caller, path: &str) -> usize {
    caller.get(path).await.json().as_array().unwrap().len()
}

#[tokio::test]
async fn both_routes_perform_once_and_keep_final_failures() {
    let db = TestDb::in_new_database().await;
    let example = Example::start(&db, 0).await;
    let caller = Caller::new(&example.address);
    for (path, id) in ROUTES.into_iter().zip(["payment_id", "charge_id"]) {
        let first = post(&caller, path, "k", &order(1200)).await;
        assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false));
        let retry = post(&caller, path, "k", &order(1200)).await;
        assert!(retry.is_replay());
        assert_eq!((retry.status, &retry.body), (first.status, &first.body));
        let location = first.header("location").unwrap();
        assert_eq!(location, format!("{path}/{}", first.json()[id]));
        assert_eq!(caller.get(location).await.json(), first.json(), "it leads there");
        assert_eq!(post(&caller, path, "k", &order(1300)).await.code(), "mismatch");

        for replay in [false, true] {
            let declined = post(&caller, path, "declined", &order(402)).await;
            assert_eq!(declined.status, StatusCode::PAYMENT_REQUIRED);
            assert_eq!(declined.is_replay(), replay, "{path}");
        }
        let provider = path == "/charges";
        for _ in 0..2 {
            let broken = post(&caller, path, "broken", &order(500)).await;
            assert_eq!(broken.status.as_u16(), if provider { 502 } else { 500 });
            assert!(!broken.is_replay(), "a retry runs again");
        }
        assert_eq!(count(&caller, path).await, 1, "{path}");
        // The provider may have acted for the first order.
        let other = post(&caller, path, "broken", &order(1300)).await;
        assert_eq!(other.status.as_u16(), if provider { 422 } else { 201 }, "{path}");
    }
    let seen = caller.get("/provider").await.json();
    let calls = |call: &Value| (call["calls"].as_i64(), call["charges"].as_i64());
    let calls: Vec<_> = seen.as_array().unwrap().iter().map(calls).collect();
    let expected = [(1, 1), (1, 0), (2, 0)]; // done, declined, broken
    assert_eq!(calls, expected.map(|(calls, charges)| (Some(calls), Some(charges))));
}

#[tokio::test]
async fn bad_input_is_told_clearly_and_does_not_burn_the_key() {
    let db = TestDb::in_new_database().await;
    let example = Example::start(&db, 0).await;
    let caller = Caller::new(&example.address);
    let bad = [
        ("{}", "account"),
        ("no JSON", "JSON"),
        (r#"{"account": "", "amount": 1, "currency": "EUR"}"#, "account"),
        (r#"{"account": "a\u0000", "amount": 1, "currency": "EUR"}"#, "account"),
        (r#"{"account": "a", "amount": 0, "currency": "EUR"}"#, "amount"),
        (r#"{"account": "a", "amount": -1, "currency": "EUR"}"#, "amount"),
        (r#"{"account": "a", "amount": 1.5, "currency": "EUR"}"#, "amount"),
        (r#"{"account": "a", "amount": 1, "currency": "EURO"}"#, "currency"),
    ];
    for path in ROUTES {
        for (body, named) in bad {
            let got = post(&caller, path, "k", body).await;
            assert_eq!(got.status, StatusCode::BAD_REQUEST, "{body}");
            assert_eq!(got.header("content-type"), Some("application/problem+json"));
            let detail = got.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(named), "{body}: {detail}");
        }
        assert_eq!(post(&caller, path, "k", &order(1200)).await.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn tenants_are_told_apart_and_strangers_turned_away() {
    let db = TestDb::in_new_database().await;
    let example = Example::start(&db, 0).await;
    let caller = Caller::new(&example.address);
    let first = post(&caller, "/payments", "k", &order(1200)).await;
    let as_tenant = async |method, path, authorization: Option<&str>| {
        let mut request = caller
            .request(method, path)
            .header("idempotency-key", "k")
            .body(Full::<Bytes>::from(order(1200)))
            .unwrap();
        request.headers_mut().remove("authorization");
        if let Some(authorization) = authorization {
            request.headers_mut().insert("authorization", authorization.parse().unwrap());
        }
        caller.send(request).await.unwrap()
    };
    // The stored response exists, but not for them.
    for stranger in
        [None, Some(""), Some("Bearer "), Some("Basic acme"), Some("Bearer acme/payments")]
    {
        for (method, path) in [(Method::POST, "/payments"), (Method::GET, "/charges")] {
            let got = as_tenant(method, path, stranger).await;
            assert_eq!(got.status, StatusCode::UNAUTHORIZED, "{stranger:?}");
            assert_eq!(got.header("www-authenticate"), Some("Bearer"));
        }
    }
    let other = as_tenant(Method::POST, "/payments", Some("Bearer other")).await;
    assert_eq!((other.status, other.is_replay()), (StatusCode::CREATED, false));
    assert_ne!(other.json(), first.json());
    assert_eq!(caller.get("/payments").await.json(), Value::from(vec![first.json()]));
    let location = other.header("location").unwrap();
    assert_eq!(caller.get(location).await.status, StatusCode::NOT_FOUND, "another tenant's");
    assert_eq!(caller.get("/healthz").await.status, StatusCode::OK);
    let policy = caller.get("/idempotency").await.json();
    assert_eq!(policy["POST /charges"]["retention_seconds"], 86_400);
}

#[tokio::test]
async fn two_instances_may_start_at_once() {
    let db = TestDb::in_new_database().await;
    // Both find a schema that another transaction is about to create, and which it then rolls back.
    let mut other = db.pool.begin().await.unwrap();
    sqlx::raw_sql("create schema payments_example").execute(&mut *other).await.unwrap();
    let waiting = "select count(*) = 2 from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    let held_up = async {
        db.until(waiting).await;
        other.rollback().await.unwrap();
    };
    let (one, two, ()) = tokio::join!(Example::start(&db, 0), Example::start(&db, 0), held_up);
    let callers = [&one, &two].map(|started| Caller::new(&started.address));
    let first = post(&callers[0], "/payments", "k", &order(1200)).await;
    let retry = post(&callers[1], "/payments", "k", &order(1200)).await;
    assert_eq!((first.is_replay(), retry.is_replay()), (false, true));
}

#[tokio::test]
async fn a_server_asked_to_stop_finishes_the_charges_whose_clients_have_gone() {
    let db = TestDb::in_new_database().await;
    let example = Example::start(&db, 0).await;
    let caller = Caller::new(&example.address);
    // The provider cannot finish until this lock is released.
    let mut blocker = db.pool.begin().await.unwrap();
    let lock = "lock table card_provider_example.charge in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut *blocker).await.unwrap();
    let waiting = "select exists (select from pg_locks where not granted and relation is not null
                    and database = (select oid from pg_database where datname = current_database()))";
    let body = order(1200);
    tokio::select! {
        got = caller.post("/charges", "k", &body) => panic!("answered too soon: {got:?}"),
        () = db.until(waiting) => {} // and the client hangs up
    }
    drop(caller);
    example.terminate().await;
    let listening = async || tokio::net::TcpStream::connect(&example.address).await.is_ok();
    while listening().await {
        tokio::task::yield_now().await;
    }
    blocker.rollback().await.unwrap();
    let (status, last) = example.ended().await;
    assert!(status.success(), "{status:?}");
    assert_eq!(last.as_deref(), Some("stopped"));
    assert_eq!(db.ask::<i64>("select count(*) from payments_example.charge").await, 1);
    assert_eq!(db.ask::<String>("select status::text from {}.keys").await, "completed");
}
