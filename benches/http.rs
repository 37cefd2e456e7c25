//! What the HTTP layer costs: the same axum handler with and without it, over real sockets and a durable
//! PostgreSQL. `cargo bench --bench http --features axum,throwaway`
//!
//! Every round runs all the variants, one after the other, so that a noisy machine is noisy for all of
//! them. Ratios are medians over the rounds, against the handler without protection.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, not an API")]

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use http::request::Parts;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pgonce::throwaway::{Options, Throwaway};
use pgonce::web::{Idempotency, OnceClaim, OnceTx};
use pgonce::{Key, Lease, Operation, PgOnce, RunError, Scope};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};

const CLIENTS: usize = 8;
const ROUND: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 9;
/// The size of requests and responses.
const BODY: usize = 1000;

/// Variant, path, and whether all requests carry the same few keys.
const VARIANTS: [(&str, &str, bool); 5] = [
    ("no protection", "/bare", false),
    ("`run` in the handler", "/run", false),
    ("layer, transactional", "/transactional", false),
    ("layer, leased", "/leased", false),
    ("layer, replays", "/transactional", true),
];

async fn pay(conn: &mut PgConnection) -> String {
    let sql = "insert into payment (note) values ($1)";
    sqlx::query(sql).bind("x".repeat(200)).execute(conn).await.unwrap();
    "y".repeat(BODY)
}

async fn bare(State(pool): State<PgPool>, _body: Bytes) -> (StatusCode, String) {
    let mut tx = pool.begin().await.unwrap();
    let paid = pay(&mut tx).await;
    tx.commit().await.unwrap();
    (StatusCode::CREATED, paid)
}

async fn by_run(
    State(pool): State<PgPool>,
    request: http::Request<axum::body::Body>,
) -> (StatusCode, String) {
    let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let op = Operation::new("bench/run", key).unwrap();
    let op = op.fingerprint(pgonce::Fingerprint::of_bytes(&body));
    let work = async |tx: &mut PgConnection| Ok::<_, RunError>(pay(tx).await);
    let paid = PgOnce::new().run(&pool, &op, work).await.unwrap();
    (StatusCode::CREATED, paid.into_inner())
}

async fn transactional(mut tx: OnceTx, _body: Bytes) -> (StatusCode, String) {
    (StatusCode::CREATED, pay(&mut tx).await)
}

async fn leased(claim: OnceClaim, _body: Bytes) -> (StatusCode, String) {
    let mut tx = claim.begin().await.unwrap();
    (StatusCode::CREATED, pay(&mut tx).await)
}

fn router(pool: PgPool) -> Router {
    let layer = Idempotency::new(PgOnce::new(), pool.clone(), |request: &Parts| {
        Scope::new(format!("bench{}", request.uri.path())).ok()
    });
    Router::new()
        .route("/bare", post(bare))
        .route("/run", post(by_run))
        .route("/transactional", post(transactional).layer(layer.clone()))
        .route(
            "/leased",
            post(leased).layer(layer.leased(Lease::new(Duration::from_secs(30)).unwrap())),
        )
        .with_state(pool)
}

/// Requests per second of all clients together.
async fn round(client: &Client<HttpConnector, Full<Bytes>>, url: &str, same_keys: bool) -> f64 {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (client, url) = (client.clone(), url.to_owned());
        tasks.spawn(async move {
            let mut answered = 0_u32;
            while began.elapsed() < ROUND {
                let key = if same_keys {
                    format!("same {number}")
                } else {
                    Key::generate().as_str().to_owned()
                };
                let request = Request::post(&url)
                    .header("idempotency-key", format!("\"{key}\""))
                    .body(Full::from("z".repeat(BODY)))
                    .unwrap();
                let response = client.request(request).await.unwrap();
                assert_eq!(response.status(), StatusCode::CREATED);
                response.into_body().collect().await.unwrap();
                answered += 1;
            }
            answered
        });
    }
    let answered: u32 = tasks.join_all().await.into_iter().sum();
    f64::from(answered) / began.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let server = Throwaway::start(&Options::new()).await.unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(16)
        .connect_with(server.connect_options())
        .await
        .unwrap();
    PgOnce::new().migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    sqlx::query("create table payment (id bigint generated always as identity, note text)")
        .execute(&pool)
        .await
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router(pool.clone())).into_future());
    let client = Client::builder(TokioExecutor::new()).build_http();

    let mut rates = vec![Vec::new(); VARIANTS.len()];
    for number in 0..=ROUNDS {
        for (variant, (_, path, same_keys)) in VARIANTS.iter().enumerate() {
            let rate = round(&client, &format!("http://{address}{path}"), *same_keys).await;
            if number > 0 {
                rates[variant].push(rate); // the first round warms up
            }
        }
    }
    println!("{CLIENTS} clients, bodies of {BODY} bytes, {ROUNDS} rounds; medians");
    println!("{:<22} {:>10} {:>14} {:>16}", "", "requests/s", "to bare", "to `run`");
    for (variant, (name, ..)) in VARIANTS.iter().enumerate() {
        let to = |other: usize| {
            median(
                rates[variant]
                    .iter()
                    .zip(&rates[other])
                    .map(|(rate, other)| rate / other)
                    .collect(),
            )
        };
        println!(
            "{name:<22} {:>10.0} {:>14.2} {:>16.2}",
            median(rates[variant].clone()),
            to(0),
            to(1)
        );
    }
    pool.close().await;
    server.stop().await;
}
