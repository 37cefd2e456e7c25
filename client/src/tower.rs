//! The layer for tower clients.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Either, Full};
use tower_layer::Layer;
use tower_service::Service;

use crate::call::{Call, Next, Outcome, is_read};
use crate::policy::RetryPolicy;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Keys requests and tries them again, for a tower service that sends them. The body must be `Clone`, as `Full<Bytes>`
/// is. Every error of the service counts as a connection that broke. Redirects are the service's affair: one inside of
/// this layer must not take the key to another origin.
///
/// ```
/// use pgonce_client::{RetryLayer, RetryPolicy};
/// let layer = RetryLayer::new(RetryPolicy::new());
/// // tower::ServiceBuilder::new().layer(layer).service(hyper_client)
/// # drop(layer);
/// ```
#[derive(Debug, Clone)]
pub struct RetryLayer(RetryPolicy);

impl RetryLayer {
    /// With this policy.
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        Self(policy)
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> RetryService<S> {
        RetryService { inner, policy: self.0.clone() }
    }
}

/// The service that [`RetryLayer`] makes. Its responses have [`Sent`](crate::Sent) in their extensions.
#[derive(Debug, Clone)]
pub struct RetryService<S> {
    inner: S,
    policy: RetryPolicy,
}

impl<S, B, R> Service<Request<B>> for RetryService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
    B: Clone + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError> + Send,
{
    type Response = Response<Either<R, Full<Bytes>>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call; the clone takes its place.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(send(inner, self.policy.clone(), request))
    }
}

async fn send<S, B, R>(
    mut inner: S,
    policy: RetryPolicy,
    request: Request<B>,
) -> Result<Response<Either<R, Full<Bytes>>>, BoxError>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    B: Clone,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let (mut parts, body) = request.into_parts();
    let mut call = Call::begin(&policy, &parts.method, &mut parts.headers);
    let mut is_ready = true;
    loop {
        let Some(time) = call.try_now() else { return Err(call.over().into()) };
        let request = Request::from_parts(parts.clone(), body.clone());
        let answer = async {
            if !std::mem::take(&mut is_ready)
                && let Err(error) = poll_fn(|cx| inner.poll_ready(cx)).await
            {
                return (Outcome::default(), Err(error.into()));
            }
            match inner.call(request).await {
                Ok(response) => read(response).await,
                Err(error) => (Outcome::default(), Err(error.into())),
            }
        };
        let answer = tokio::time::timeout(time, answer).await;
        let (outcome, answer) =
            answer.unwrap_or_else(|_| (Outcome::default(), Err(call.over().into())));
        match call.after(&outcome) {
            Next::Return => {
                let mut response = answer?;
                response.extensions_mut().insert(call.sent(&outcome));
                return Ok(response);
            }
            Next::AgainAfter(pause) => {
                drop(answer);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// What came of a try. A short response is read whole, and returned unchanged.
async fn read<R>(
    response: Response<R>,
) -> (Outcome, Result<Response<Either<R, Full<Bytes>>>, BoxError>)
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    if !is_read(parts.status, &parts.headers, body.size_hint().exact()) {
        let outcome = Outcome::of(parts.status, &parts.headers, None);
        return (outcome, Ok(Response::from_parts(parts, Either::Left(body))));
    }
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return (Outcome::broken(parts.status, &parts.headers), Err(error.into())),
    };
    let outcome = Outcome::of(parts.status, &parts.headers, Some(&body));
    (outcome, Ok(Response::from_parts(parts, Either::Right(Full::new(body)))))
}
