//! The connections: HTTP/1 from the browser to the demo, and from the demo to the payment server.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower_service::Service;

/// In the extensions of a response: do not send it, close the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response is lost")
    }
}

impl std::error::Error for Lost {}

/// The pause after a connection that could not be accepted, for example because there are too many.
const NOT_ACCEPTED: Duration = Duration::from_millis(100);

/// Serves until it is dropped; then all connections close.
pub(super) async fn listen(listener: TcpListener, router: Router) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, router.clone()))),
                Err(_) => tokio::time::sleep(NOT_ACCEPTED).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one request. A connection is never used again (`Connection: close`): where a kept one closes without a response,
/// Chromium takes it for an idle one that timed out, and sends the request again by itself, even a POST. The page would not
/// notice: losses would look rarer than they are, and a payment would be sent twice without a retry of ours. The browser's
/// test compares the numbers of requests sent and served.
async fn serve(stream: TcpStream, router: Router) {
    let service = service_fn(|request: Request<Incoming>| {
        let answering = router.clone().call(request.map(Body::new));
        async {
            let response = answering.await.unwrap_or_else(|never| match never {});
            match response.extensions().get::<Lost>() {
                Some(lost) => Err(*lost),
                None => Ok(response),
            }
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // It fails when the response is lost, or when the browser has gone.
    let _ = http.keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
}

/// Sends a request on a connection of its own and reads the whole response. Dropped, it closes the connection.
pub(super) async fn send(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    // The connection must be polled for the exchange to move; it ends when the exchange has ended, or tells it why not.
    let (response, _) = tokio::join!(exchange, connection);
    response
}
