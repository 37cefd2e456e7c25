//! A gRPC service that pays once per key.

pub mod message;
#[allow(missing_docs, missing_debug_implementations, clippy::all, reason = "generated")]
pub mod shop {
    include!(concat!(env!("OUT_DIR"), "/shop.Payments.rs"));
}

use std::pin::Pin;

use pgonce::web::{IdempotencyLayer, OnceTx};
use pgonce::{Class, PgOnce, Scope};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, iter};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataValue;
use tonic::service::{InterceptorLayer, LayerExt};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::message::{Order, Payment};
use crate::shop::payments_server::{Payments, PaymentsServer};

/// The service.
#[derive(Debug, Clone, Copy)]
pub struct Shop;

/// The user of a request. Here any name is believed; a real service checks a token.
#[derive(Debug, Clone)]
struct User(String);

/// Serves until the listener fails: authentication outside, then the layer, then the service.
///
/// # Errors
/// The server's.
pub async fn serve(listener: TcpListener, once: PgOnce, pool: PgPool) -> anyhow::Result<()> {
    let idempotency = IdempotencyLayer::new(once, pool, |request| {
        let User(user) = request.extensions.get()?;
        Some(Scope::of([user, "payments.pay"]))
    });
    let idempotency = idempotency.class(Class::new("payments.pay")?).grpc();
    let payments = PaymentsServer::new(Shop).send_compressed(CompressionEncoding::Gzip);
    Server::builder()
        .layer(InterceptorLayer::new(authenticate))
        .add_service(idempotency.named_layer(payments))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

#[allow(clippy::result_large_err, reason = "tonic's")]
fn authenticate(mut request: Request<()>) -> Result<Request<()>, Status> {
    let user = request.metadata().get("user").and_then(|user| user.to_str().ok());
    let user = user.ok_or_else(|| Status::unauthenticated("no user"))?.to_owned();
    request.extensions_mut().insert(User(user));
    Ok(request)
}

/// A payment over it is refused for good.
const LIMIT: i64 = 1_000_000;

#[tonic::async_trait]
impl Payments for Shop {
    async fn pay(&self, request: Request<Order>) -> Result<Response<Payment>, Status> {
        let mut tx = OnceTx::of(request.extensions())
            .map_err(|error| Status::internal(error.to_string()))?;
        let Order { cents } = request.into_inner();
        if cents <= 0 {
            return Err(Status::invalid_argument("cents must be 1 or more"));
        }
        let insert = "insert into payment (cents) values ($1) returning id";
        let id = sqlx::query_scalar(insert).bind(cents).fetch_one(&mut *tx).await;
        let id = id.map_err(|error| Status::unavailable(error.to_string()))?;
        if cents > LIMIT {
            let mut refusal = Status::with_details(
                Code::FailedPrecondition,
                "over the limit: 100 %",
                "limit".into(),
            );
            refusal.metadata_mut().insert("limit", MetadataValue::from(LIMIT));
            return Err(refusal);
        }
        let mut paid = Response::new(Payment { id });
        paid.metadata_mut().insert(
            "location",
            format!("payments/{id}").parse().map_err(|_| Status::internal("id"))?,
        );
        Ok(paid)
    }

    type HistoryStream = Pin<Box<dyn Stream<Item = Result<Payment, Status>> + Send>>;

    /// Returns a stream, which the layer refuses.
    async fn history(&self, _: Request<Order>) -> Result<Response<Self::HistoryStream>, Status> {
        Ok(Response::new(Box::pin(iter((1..=3).map(|id| Ok(Payment { id }))))))
    }

    /// Takes a stream, which the layer refuses.
    async fn pay_all(&self, _: Request<Streaming<Order>>) -> Result<Response<Payment>, Status> {
        Err(Status::internal("the layer let a stream pass"))
    }
}
