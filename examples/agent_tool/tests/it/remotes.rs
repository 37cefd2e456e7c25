//! The payment provider, which charges once per key, and the letter service.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::agent::PATIENCE;

#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    /// Receipts by key.
    charges: HashMap<String, String>,
    held: Option<Arc<Semaphore>>,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Seen>>);

#[derive(Debug)]
pub struct Remotes {
    pub url: String,
    seen: Shared,
}

/// While it lives, remotes act and do not answer.
#[derive(Debug)]
pub struct Held {
    seen: Shared,
    arrivals: Arc<Semaphore>,
}

impl Held {
    pub async fn arrived(&self) {
        timeout(PATIENCE, self.arrivals.acquire()).await.expect("a request").unwrap().forget();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.seen.0.lock().unwrap().held = None;
    }
}

impl Remotes {
    pub async fn start() -> Self {
        let seen = Shared::default();
        let router = Router::new()
            .route("/charges", post(charge))
            .route("/letters", post(letter))
            .with_state(seen.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, seen }
    }

    pub fn hold(&self) -> Held {
        let arrivals = Arc::new(Semaphore::new(0));
        self.seen.0.lock().unwrap().held = Some(arrivals.clone());
        Held { seen: self.seen.clone(), arrivals }
    }

    pub fn requests(&self) -> usize {
        self.seen.0.lock().unwrap().requests
    }

    pub fn charges(&self) -> usize {
        self.seen.0.lock().unwrap().charges.len()
    }
}

impl Shared {
    async fn answered(&self) {
        let held = self.0.lock().unwrap().held.clone();
        if let Some(arrivals) = held {
            arrivals.add_permits(1);
            pending::<()>().await;
        }
    }
}

async fn charge(
    State(seen): State<Shared>,
    headers: HeaderMap,
    cents: String,
) -> (StatusCode, String) {
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let answer = {
        let mut seen = seen.0.lock().unwrap();
        seen.requests += 1;
        if cents.parse::<i64>().unwrap() >= 1_000_000 {
            (StatusCode::PAYMENT_REQUIRED, String::new())
        } else {
            let next = format!("receipt {}", seen.charges.len() + 1);
            (StatusCode::OK, seen.charges.entry(key).or_insert(next).clone())
        }
    };
    seen.answered().await;
    answer
}

async fn letter(State(seen): State<Shared>) -> String {
    let number = {
        let mut seen = seen.0.lock().unwrap();
        seen.requests += 1;
        seen.requests
    };
    seen.answered().await;
    format!("letter {number}")
}
