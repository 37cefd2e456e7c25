//! What a caller gets.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use pgonce_client::{Error, RetryPolicy, Sent, client};

use crate::service::{Service, serve};

fn http() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy()
}

#[tokio::test]
async fn a_mismatch_is_returned_at_once_and_whole() {
    let service = Service::start().await;
    let client = client(http(), RetryPolicy::new()).unwrap();
    let url = format!("http://{}/charges", service.address);
    let send = async |order: &'static str| {
        client.post(&url).header("idempotency-key", "k").body(order).send().await.unwrap()
    };
    let first = send("order-1").await;
    assert_eq!(first.extensions().get(), Some(&Sent { tries: 1, replayed: false }));
    let again = send("order-1").await;
    assert_eq!(again.extensions().get(), Some(&Sent { tries: 1, replayed: true }));
    assert_eq!(again.text().await.unwrap(), first.text().await.unwrap());
    let other = send("order-2").await;
    assert_eq!(
        (other.status(), other.url().path()),
        (StatusCode::UNPROCESSABLE_ENTITY, "/charges")
    );
    assert_eq!(other.extensions().get(), Some(&Sent { tries: 1, replayed: false }));
    assert_eq!(other.headers()["content-type"], "application/problem+json");
    assert!(other.text().await.unwrap().contains("mismatch"), "the document is still there");
    assert_eq!(service.number("select count(*) from charge").await, 1);
}

#[tokio::test]
async fn a_request_in_progress_is_waited_for() {
    let service = Service::start().await;
    let mut blocker = service.pool.begin().await.unwrap();
    sqlx::query("lock table charge").execute(&mut *blocker).await.unwrap();
    let client = client(http(), RetryPolicy::new()).unwrap();
    let send = || {
        let url = format!("http://{}/charges", service.address);
        tokio::spawn(client.post(url).header("idempotency-key", "k").body("order-1").send())
    };
    let first = send();
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like 'insert into charge%'";
    while service.number(waits).await == 0 {}
    let second = send();
    let began = Instant::now();
    while service.conflicts.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    blocker.rollback().await.unwrap();
    let [first, second] = [first.await, second.await].map(|sent| sent.unwrap().unwrap());
    assert_eq!((first.status(), second.status()), (StatusCode::CREATED, StatusCode::CREATED));
    let sent: &Sent = second.extensions().get().unwrap();
    assert!(sent.replayed && sent.tries >= 2, "{sent:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After");
    assert_eq!(service.wrong(1).await, 0);
}

#[tokio::test]
async fn a_stream_is_refused_before_anything_is_sent() {
    let service = Service::start().await;
    let client = client(http(), RetryPolicy::new()).unwrap();
    let stream = http_body_util::channel::Channel::<axum::body::Bytes>::new(1).1;
    let body = reqwest::Body::wrap(stream);
    let send = client.post(format!("http://{}/charges", service.address)).body(body).send();
    let reqwest_middleware::Error::Middleware(error) = send.await.unwrap_err() else { panic!() };
    assert!(matches!(error.downcast_ref(), Some(Error::BodyNotRepeatable)), "{error}");
    assert_eq!(service.number("select count(*) from pgonce.keys").await, 0);
}

#[tokio::test]
async fn the_deadline_ends_a_try_and_says_that_the_outcome_is_unknown() {
    let address = serve(Router::new().route("/", post(std::future::pending::<String>))).await;
    let policy = RetryPolicy::new().deadline(Duration::from_millis(300)).unwrap();
    let client = client(http(), policy).unwrap();
    let error = client.post(format!("http://{address}/")).send().await.unwrap_err();
    assert!(error.to_string().contains("Whether the request took effect is unknown"), "{error}");
}

#[tokio::test]
async fn the_last_answer_is_returned_when_tries_are_at_their_end_and_all_had_one_key() {
    let keys = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = keys.clone();
    let away = move |headers: HeaderMap| async move {
        let both = ["x-request-id", "x-correlation-id"].map(|name| headers[name].clone());
        seen.lock().unwrap().push(both);
        StatusCode::SERVICE_UNAVAILABLE
    };
    let address = serve(Router::new().route("/", post(away))).await;
    let policy = RetryPolicy::new()
        .header(http::HeaderName::from_static("x-request-id"))
        .correlation(http::HeaderName::from_static("x-correlation-id"))
        .pause(Duration::from_millis(1), Duration::from_millis(1))
        .and_then(|policy| policy.tries_max(3));
    let client = client(http(), policy.unwrap()).unwrap();
    for _ in 0..2 {
        let answer = client.post(format!("http://{address}/")).body("x").send().await.unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.extensions().get::<Sent>().unwrap().tries, 3);
    }
    let keys = keys.lock().unwrap();
    assert!(keys[..3].iter().all(|it| *it == keys[0]) && keys[3..].iter().all(|it| *it == keys[3]));
    assert_ne!(keys[0], keys[3]);
}

#[tokio::test]
async fn a_bad_setting_is_refused_with_its_name_and_limits() {
    let zero = RetryPolicy::new().tries_max(0).unwrap_err().to_string();
    assert_eq!(zero, "tries_max is 0; it takes 1 to 100");
    let long = RetryPolicy::new().deadline(Duration::MAX).unwrap_err().to_string();
    assert!(
        long.starts_with("deadline is ") && long.ends_with("it takes 1 ms to 86400s"),
        "{long}"
    );
}
