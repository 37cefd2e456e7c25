//! The layer for gRPC.

mod fold;
mod message;
mod status;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower_layer::Layer;
use tower_service::Service;

use super::answer::Answer;
use super::body::{BoxError, Buffered};
use super::layer::IdempotencyLayer;
use super::service::Idempotency;
use fold::Folded;
use message::OneMessage;

/// [`IdempotencyLayer`] for unary gRPC methods: made by [`IdempotencyLayer::grpc`].
#[derive(Debug, Clone)]
pub struct GrpcLayer(IdempotencyLayer);

/// The service that [`GrpcLayer`] wraps around a gRPC service.
#[derive(Clone)]
pub struct Grpc<S>(Idempotency<Folded<S>>);

impl IdempotencyLayer {
    /// The same layer for unary gRPC methods, such as tonic's. The key is metadata, `idempotency-key`. Status, message,
    /// details and trailing metadata are stored and replayed; of the initial metadata, what
    /// [`keep_header`](Self::keep_header) lists. [HTTP](crate::_docs::http#grpc) has the status codes.
    ///
    /// The handler gets its transaction with [`OnceTx::of`](super::OnceTx::of). Put the layer around services whose
    /// methods are unary: a second message, of a request or a response, is refused (`UNIMPLEMENTED`), also without a key
    /// and in [`observe`](Self::observe), and the transaction's writes are undone. A stream of one message that stays
    /// open ends at the client's deadline. Other requests than gRPC get 415; put a layer for gRPC-Web outside.
    ///
    /// Responses are not compressed, because a retry may come from a client that cannot read them.
    ///
    /// The fingerprint is of the message's bytes. Clients whose encoder writes maps in random order send other bytes in
    /// a retry: these need a method without maps.
    ///
    /// ```
    /// # use pgonce::{PgOnce, Scope, web::{GrpcLayer, IdempotencyLayer}};
    /// # fn example(pool: sqlx::PgPool) -> GrpcLayer {
    /// IdempotencyLayer::new(PgOnce::new(), pool, |_| Some(Scope::of(["acme", "payments.create"]))).grpc()
    /// // tonic: Server::builder().add_service(layer.named_layer(PaymentsServer::new(payments)))
    /// # }
    /// ```
    #[must_use]
    pub fn grpc(mut self) -> GrpcLayer {
        self.grpc = true;
        GrpcLayer(self)
    }
}

impl<S> Layer<S> for GrpcLayer {
    type Service = Grpc<S>;

    fn layer(&self, inner: S) -> Grpc<S> {
        Grpc(self.0.layer(Folded(inner)))
    }
}

impl<S, B, R> Service<Request<B>> for Grpc<S>
where
    S: Service<Request<Buffered<OneMessage<B>>>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    type Response = Response<Buffered<Full<Bytes>>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if !is_http2_grpc(request.headers()) {
            return Box::pin(std::future::ready(Ok(status::not_grpc().map(empty))));
        }
        request.headers_mut().remove(ACCEPT); // answers of the layer's own are read below, as JSON
        // A stored message must be readable by every client that retries.
        request.headers_mut().remove("grpc-accept-encoding");
        let streams = Arc::new(AtomicBool::new(false));
        let request = request.map(|body| OneMessage::new(body, streams.clone()));
        let response = self.0.call(request);
        Box::pin(async move {
            let (parts, body) = response.await?.into_parts();
            let Ok(body) = body.collect().await; // in memory
            let body = body.to_bytes();
            let answer = parts.extensions.get::<Answer>().copied();
            if fold::is_folded(&parts.headers) {
                return Ok(fold::unfold(parts, &body));
            }
            let response = match answer {
                Some(Answer::RequestUnreadable) if streams.load(Ordering::Relaxed) => {
                    let mut response = status::streaming();
                    status::carry(parts, &mut response);
                    response
                }
                Some(Answer::Replayed | Answer::Omitted) => status::without_message(parts),
                _ => status::refused(parts, &body),
            };
            Ok(response.map(empty))
        })
    }
}

fn empty((): ()) -> Buffered<Full<Bytes>> {
    Buffered::whole(Bytes::new(), None)
}

/// `application/grpc`, also with a suffix. gRPC-Web is another protocol.
fn is_http2_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let rest = content_type.and_then(|it| it.trim_ascii().strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

impl<S> fmt::Debug for Grpc<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grpc").finish_non_exhaustive()
    }
}
