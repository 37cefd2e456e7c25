//! Small services: one correct, the others with a fault.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Json, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::MethodRouter, routing::post};
use http_body::Frame;
use pgonce::web::{IdempotencyLayer, OnceTx, RequestFingerprint};
use pgonce::{Fingerprint, PgOnce, Scope};
use sqlx::{Connection, PgConnection, PgPool};

#[derive(serde::Deserialize)]
pub(crate) struct Payment {
    amount: i64,
}

/// What a handler's errors become: a caller tries again.
pub(crate) struct Failed;

impl From<sqlx::Error> for Failed {
    fn from(_: sqlx::Error) -> Self {
        Self
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

type Answer = Result<(StatusCode, String), Failed>;

fn created(body: impl Into<String>) -> Answer {
    Ok((StatusCode::CREATED, body.into()))
}

fn router(pool: PgPool, handler: MethodRouter<PgPool>) -> Router {
    Router::new().route("/payments", handler).with_state(pool)
}

fn layer(pool: &PgPool) -> IdempotencyLayer {
    let scope = |_: &Parts| Scope::new("acme/payments.create").ok();
    IdempotencyLayer::new(PgOnce::new(), pool.clone(), scope)
}

fn key(headers: &HeaderMap) -> &str {
    headers["idempotency-key"].to_str().unwrap()
}

async fn pay(conn: &mut PgConnection, amount: i64) -> sqlx::Result<()> {
    let insert = sqlx::query("insert into payment (amount) values ($1)").bind(amount);
    insert.execute(conn).await.map(drop)
}

/// What is stored under the key: nothing, the key, or also its response.
async fn seen(conn: &mut PgConnection, key: &str) -> sqlx::Result<Option<Option<String>>> {
    let select = "select response from seen where key = $1";
    sqlx::query_scalar(select).bind(key).fetch_optional(conn).await
}

/// Whether the key is new.
async fn claim(conn: &mut PgConnection, key: &str, response: Option<&str>) -> sqlx::Result<bool> {
    let insert = "insert into seen (key, response) values ($1, $2) on conflict do nothing";
    let insert = sqlx::query(insert).bind(key).bind(response).execute(conn).await?;
    Ok(insert.rows_affected() == 1)
}

async fn store_response(conn: &mut PgConnection, key: &str, response: &str) -> sqlx::Result<()> {
    let update = "update seen set response = $2 where key = $1";
    sqlx::query(update).bind(key).bind(response).execute(conn).await.map(drop)
}

/// A stage at which callers hang up, and duplicates arrive.
async fn send_mail() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn pay_in(mut tx: OnceTx, Json(payment): Json<Payment>) -> Answer {
    pay(&mut tx, payment.amount).await?;
    created("paid")
}

pub(crate) fn correct(pool: PgPool) -> Router {
    let layer = layer(&pool);
    router(pool, post(pay_in).layer(layer))
}

/// Correct, with a key as the standard writes it.
pub(crate) fn strict(pool: PgPool, header: HeaderName) -> Router {
    let layer = layer(&pool).header(header).strict_keys();
    router(pool, post(pay_in).layer(layer))
}

/// Looks for the key, and does not exclude a duplicate that looks at the same time.
pub(crate) fn check_then_act(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, headers: HeaderMap, body: Bytes) -> Answer {
        let mut tx = pool.begin().await?;
        let body = std::str::from_utf8(&body).unwrap_or_default();
        match seen(&mut tx, key(&headers)).await? {
            Some(stored) if stored.as_deref() == Some(body) => return created("paid"),
            Some(_) => return Ok((StatusCode::UNPROCESSABLE_ENTITY, String::new())),
            None => {}
        }
        pay(&mut tx, 100).await?;
        send_mail().await;
        claim(&mut tx, key(&headers), Some(body)).await?;
        tx.commit().await?;
        created("paid")
    }
    router(pool, post(handler))
}

/// Pays, then finds that the key is used.
pub(crate) fn effect_before_claim(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, headers: HeaderMap) -> Answer {
        let mut conn = pool.acquire().await?;
        pay(&mut conn, 100).await?;
        claim(&mut conn, key(&headers), None).await?;
        created("paid")
    }
    router(pool, post(handler))
}

/// Commits key and effect, then stores the response: a retry in between finds none.
async fn pay_then_store(pool: &PgPool, headers: &HeaderMap, body: &Bytes) -> Answer {
    let mut conn = pool.acquire().await?;
    let body = std::str::from_utf8(body).unwrap_or_default();
    let mut tx = conn.begin().await?;
    if !claim(&mut tx, key(headers), None).await? {
        tx.rollback().await?;
        return match seen(&mut conn, key(headers)).await?.flatten() {
            Some(stored) if stored == body => created("paid"),
            Some(_) => Ok((StatusCode::UNPROCESSABLE_ENTITY, String::new())),
            None => Ok((StatusCode::CONFLICT, String::new())),
        };
    }
    pay(&mut tx, 100).await?;
    tx.commit().await?;
    send_mail().await;
    store_response(&mut conn, key(headers), body).await?;
    created("paid")
}

pub(crate) fn response_after_commit(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, headers: HeaderMap, body: Bytes) -> Answer {
        pay_then_store(&pool, &headers, &body).await
    }
    router(pool, post(handler))
}

/// Its handler goes on when the caller hangs up.
pub(crate) fn response_after_commit_in_a_task(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, headers: HeaderMap, body: Bytes) -> Answer {
        let running = async move { pay_then_store(&pool, &headers, &body).await };
        tokio::spawn(running).await.unwrap_or(Err(Failed))
    }
    router(pool, post(handler))
}

/// Tells a retry that the payment is there, but not what the first caller was told.
pub(crate) fn other_answer(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, headers: HeaderMap) -> Answer {
        let mut tx = pool.begin().await?;
        if !claim(&mut tx, key(&headers), None).await? {
            return Ok((StatusCode::OK, "paid before".to_owned()));
        }
        pay(&mut tx, 100).await?;
        tx.commit().await?;
        created("paid")
    }
    router(pool, post(handler))
}

/// Makes a key of its own for each try.
pub(crate) fn key_per_try(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, Json(payment): Json<Payment>) -> Answer {
        let key = pgonce::Key::generate();
        let op =
            pgonce::Operation::new("acme/payments.create", key.as_str()).map_err(|_| Failed)?;
        let once = PgOnce::new();
        let paid = once.run(&pool, &op, async |tx: &mut PgConnection| {
            pay(tx, payment.amount).await?;
            Ok::<_, sqlx::Error>("paid".to_owned())
        });
        created(paid.await.map_err(|_| Failed)?.into_inner())
    }
    router(pool, post(handler))
}

pub(crate) fn body_not_in_the_fingerprint(pool: PgPool) -> Router {
    let layer = layer(&pool)
        .fingerprint(RequestFingerprint::new().custom(|_, _| Fingerprint::of_bytes(b"")));
    router(pool, post(pay_in).layer(layer))
}

/// Pays outside the transaction that has the key.
pub(crate) fn forgotten_transaction(pool: PgPool) -> Router {
    async fn handler(
        State(pool): State<PgPool>,
        _tx: OnceTx,
        Json(payment): Json<Payment>,
    ) -> Answer {
        pay(&mut *pool.acquire().await?, payment.amount).await?;
        send_mail().await;
        created("paid")
    }
    let layer = layer(&pool);
    router(pool, post(handler).layer(layer))
}

pub(crate) fn no_effect(pool: PgPool) -> Router {
    router(pool, post(async || created("paid")))
}

/// Takes equal requests for the same.
pub(crate) fn body_as_key(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, body: Bytes) -> Answer {
        let mut tx = pool.begin().await?;
        if claim(&mut tx, std::str::from_utf8(&body).unwrap_or_default(), None).await? {
            pay(&mut tx, 100).await?;
            tx.commit().await?;
        }
        created("paid")
    }
    router(pool, post(handler))
}

/// A response whose body is the answer's, made when it is read.
struct Late(Pin<Box<dyn Future<Output = Answer> + Send>>, bool);

impl http_body::Body for Late {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if self.1 {
            return Poll::Ready(None);
        }
        let answer = ready!(self.0.as_mut().poll(cx));
        self.1 = true;
        let frame = answer.map(|(_, body)| Frame::data(body.into()));
        Poll::Ready(Some(frame.map_err(|_| "failed".into())))
    }
}

/// Pays when the body is read, and stores the response before that.
pub(crate) fn effect_with_the_body(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, headers: HeaderMap, body: Bytes) -> Response {
        let stored = async {
            let text = std::str::from_utf8(&body).unwrap_or_default();
            let mut conn = pool.acquire().await?;
            match claim(&mut conn, key(&headers), Some(text)).await? {
                true => Ok::<_, Failed>(true),
                false
                    if seen(&mut conn, key(&headers)).await?.flatten().as_deref() == Some(text) =>
                {
                    Ok(false)
                }
                false => Err(Failed),
            }
        };
        match stored.await {
            Ok(true) => {
                send_mail().await;
                let paid = async move {
                    pay(&mut *pool.acquire().await?, 100).await?;
                    created("paid")
                };
                (StatusCode::CREATED, Body::new(Late(Box::pin(paid), false))).into_response()
            }
            Ok(false) => (StatusCode::CREATED, "paid").into_response(),
            Err(Failed) => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        }
    }
    router(pool, post(handler))
}

/// Looks for the key, and runs into its unique index at the end.
pub(crate) fn duplicate_that_fails(pool: PgPool) -> Router {
    async fn handler(State(pool): State<PgPool>, headers: HeaderMap, body: Bytes) -> Answer {
        let mut tx = pool.begin().await?;
        let body = std::str::from_utf8(&body).unwrap_or_default();
        match seen(&mut tx, key(&headers)).await? {
            Some(stored) if stored.as_deref() == Some(body) => return created("paid"),
            Some(_) => return Ok((StatusCode::UNPROCESSABLE_ENTITY, String::new())),
            None => {}
        }
        pay(&mut tx, 100).await?;
        send_mail().await;
        if !claim(&mut tx, key(&headers), Some(body)).await? {
            return Err(Failed);
        }
        tx.commit().await?;
        created("paid")
    }
    router(pool, post(handler))
}
