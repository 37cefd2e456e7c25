//! The interface over real connections: what a browser's checks ask, and what the description promises.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

use pgonce::PgOnce;
use pgonce_testing::Throwaway;
use public_api::router;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;

const PAGE: &str = "http://shop.example";

struct Api(String, Client);

impl Api {
    async fn start() -> Self {
        let server = Throwaway::shared().await.expect("a PostgreSQL to test on");
        let pool = PgPool::connect_with(server.new_database().await.unwrap()).await.unwrap();
        let once = PgOnce::new();
        once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
        sqlx::raw_sql(public_api::SCHEMA).execute(&pool).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = router(once, pool, PAGE).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self(url, Client::builder().no_proxy().build().unwrap())
    }

    async fn pay(&self, key: Option<&str>, cents: i64) -> Response {
        let request = self.1.post(format!("{}/payments", self.0)).header("origin", PAGE);
        let request = key.into_iter().fold(request, |it, key| it.header("idempotency-key", key));
        request.json(&json!({ "cents": cents })).send().await.unwrap()
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_page_of_another_origin_may_send_a_key_and_read_how_to_go_on() {
    let api = Api::start().await;
    let asked = api.1.request(Method::OPTIONS, format!("{}/payments", api.0));
    let asked = asked
        .header("origin", PAGE)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type,idempotency-key");
    let allowed = asked.send().await.unwrap();
    assert_eq!(header(&allowed, "access-control-allow-origin"), PAGE);
    assert!(header(&allowed, "access-control-allow-headers").contains("idempotency-key"));

    let answers = [
        (api.pay(Some("k"), 1).await, 201),
        (api.pay(Some("k"), 1).await, 201),
        (api.pay(Some("k"), 2).await, 422),
        (api.pay(None, 2).await, 400),
    ];
    for (answer, status) in &answers {
        assert_eq!(answer.status(), *status);
        assert_eq!(header(answer, "access-control-allow-origin"), PAGE, "{status}");
        let exposed = header(answer, "access-control-expose-headers");
        assert!(exposed.contains("retry-after") && exposed.contains("idempotent-replayed"));
    }
    assert_eq!(header(&answers[1].0, "idempotent-replayed"), "true");
}

#[tokio::test]
async fn the_description_has_the_header_and_every_answer_and_problems_look_as_it_says() {
    let api = Api::start().await;
    let description: Value =
        reqwest::get(format!("{}/openapi.json", api.0)).await.unwrap().json().await.unwrap();
    let pay = &description["paths"]["/payments"]["post"];
    let key = &pay["parameters"][0];
    assert_eq!(
        (&key["name"], &key["in"], &key["required"]),
        (&json!("Idempotency-Key"), &json!("header"), &json!(true))
    );
    let statuses: Vec<_> =
        pay["responses"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(statuses, ["201", "400", "402", "409", "422", "503"]);
    let problem = &pay["responses"]["409"]["content"]["application/problem+json"]["schema"]["$ref"];
    assert_eq!(problem, "#/components/schemas/Problem");

    let schema = &description["components"]["schemas"]["Problem"];
    api.pay(Some("k"), 1).await;
    let mismatch = api.pay(Some("k"), 2).await;
    assert_eq!(header(&mismatch, "content-type"), "application/problem+json");
    let mismatch: Value = mismatch.json().await.unwrap();
    let fields = |of: &Value| {
        of.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(fields(&mismatch), fields(&schema["properties"]));
    let required = schema["required"].as_array().unwrap().len();
    assert_eq!(required, fields(&mismatch).len(), "all are always there");
}
