//! Shared by the tests of single traps: both modes, and an application that does what a test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{Extensions, StatusCode};
use pgonce::web::{IdempotencyLayer, OnceClaim, OnceRejection, OnceTx};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Semaphore;

use super::{layer, lease};
use crate::support::db::{PATIENCE, TestDb, effect};

/// The two ways to protect a route. Almost everything applies to both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Transactional,
    Leased,
}

pub const MODES: [Mode; 2] = [Mode::Transactional, Mode::Leased];

/// Longer than any test runs.
pub const LEASE: Duration = Duration::from_secs(60);

impl Mode {
    pub fn of(self, idempotency: IdempotencyLayer) -> IdempotencyLayer {
        match self {
            Self::Transactional => idempotency,
            Self::Leased => idempotency.leased(lease(LEASE)).unwrap(),
        }
    }

    pub fn layer(self, db: &TestDb) -> IdempotencyLayer {
        self.of(layer(db))
    }
}

/// A router behind a layer, and how often its handler ran.
#[derive(Clone)]
pub struct App {
    pub router: Router,
    calls: Arc<AtomicU32>,
}

impl App {
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }
}

/// An application for every method and path: it writes one effect through the layer's transaction, in either mode, and
/// answers as told. The closure gets the number of the call.
pub fn app<F, R>(db: &TestDb, idempotency: IdempotencyLayer, answer: F) -> App
where
    F: Fn(u32) -> R + Clone + Send + Sync + 'static,
    R: IntoResponse + Send,
{
    let schema = db.schema.clone();
    handled(idempotency, move |call, request: Request| {
        let (schema, answer) = (schema.clone(), answer.clone());
        async move {
            if let Some(mut tx) = tx_of(request.extensions()).await {
                effect(&mut tx, &schema, "done").await.unwrap();
            }
            answer(call).into_response()
        }
    })
}

pub fn handled<F, W>(idempotency: IdempotencyLayer, handler: F) -> App
where
    F: Fn(u32, Request) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = Response> + Send + 'static,
{
    let calls = Arc::<AtomicU32>::default();
    let counted = Arc::clone(&calls);
    let handler = move |request: Request| {
        let call = counted.fetch_add(1, Ordering::Relaxed) + 1;
        handler(call, request)
    };
    App { router: Router::new().fallback(handler).layer(idempotency), calls }
}

/// A handler's transaction in either mode; `None` if no layer covers the request or there is no transaction.
pub async fn tx_of(extensions: &Extensions) -> Option<OnceTx> {
    match OnceTx::of(extensions) {
        Ok(tx) => Some(tx),
        Err(OnceRejection::Leased) => {
            Some(OnceClaim::of(extensions).unwrap().begin().await.expect("a transaction"))
        }
        Err(OnceRejection::NoLayer | OnceRejection::NoConnection) => None,
        Err(error) => panic!("{error}"),
    }
}

/// 201 with the number of the call, so that two runs never look alike.
pub fn numbered(call: u32) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("call {call}"))
}

/// Blocks handlers until the test lets them continue.
#[derive(Clone)]
pub struct Gate {
    entered: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub fn new() -> Self {
        Self { entered: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) }
    }

    /// In the handler: signals its arrival, and waits.
    pub async fn pass(&self) {
        self.entered.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }

    /// In the test: waits until a handler arrives.
    pub async fn entered(&self) {
        patient(self.entered.acquire()).await.unwrap().forget();
    }

    /// In the test: lets one handler continue.
    pub fn open(&self) {
        self.open.add_permits(1);
    }
}

/// Like [`app`], but every call stops at the gate after its write.
pub fn gated(db: &TestDb, idempotency: IdempotencyLayer, gate: &Gate) -> App {
    let (schema, gate) = (db.schema.clone(), gate.clone());
    handled(idempotency, move |call, request: Request| {
        let (schema, gate) = (schema.clone(), gate.clone());
        async move {
            let leased = matches!(OnceTx::of(request.extensions()), Err(OnceRejection::Leased));
            if leased {
                gate.pass().await; // a leased handler has no open transaction outside
            }
            let mut tx = tx_of(request.extensions()).await.unwrap();
            effect(&mut tx, &schema, "done").await.unwrap();
            if !leased {
                gate.pass().await;
            }
            numbered(call).into_response()
        }
    })
}

/// Waits for what must happen, and fails if it does not.
pub async fn patient<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it never happened")
}

/// A pool on the same server, with these changes to its options.
pub fn pool(db: &TestDb, change: impl FnOnce(PgPoolOptions) -> PgPoolOptions) -> PgPool {
    change(PgPoolOptions::new().max_connections(4)).connect_lazy_with(db.options.clone())
}

/// A pool without connections.
pub async fn closed_pool(db: &TestDb) -> PgPool {
    let pool = pool(db, |options| options);
    pool.close().await;
    pool
}

pub async fn keys(db: &TestDb) -> i64 {
    db.ask("select count(*) from {}.idempotency_keys").await
}
