//! A server on a TCP port, and clients that choose every byte they send.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Got;
use crate::support::db::PATIENCE;

/// An event that can occur several times and be waited for.
#[derive(Debug, Clone)]
pub struct Count(Arc<watch::Sender<usize>>);

impl Count {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub fn add(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    pub fn get(&self) -> usize {
        *self.0.borrow()
    }

    pub async fn until(&self, count: usize) {
        let mut seen = self.0.subscribe();
        let reached = timeout(PATIENCE, seen.wait_for(|seen| *seen >= count)).await;
        reached.unwrap_or_else(|_| panic!("only {} of {count}", self.get())).unwrap();
    }
}

/// Counts when dropped: at the end of a future, or when it is cancelled.
pub struct CountDrop(pub Count);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.add();
    }
}

/// A router served like `axum::serve`: HTTP/1.1, or HTTP/2 if the client begins with it.
pub struct Server {
    pub addr: SocketAddr,
    pub entered: Count,
    /// Requests that the server has ended: answered, or dropped because the client has gone.
    pub left: Count,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<io::Result<()>>,
}

impl Server {
    pub async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (entered, left) = (Count::new(), Count::new());
        let counts = (entered.clone(), left.clone());
        let router = router.layer(from_fn(move |request: Request, next: Next| {
            let (entered, left) = counts.clone();
            async move {
                let _guard = CountDrop(left);
                entered.add();
                next.run(request).await
            }
        }));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let serving = tokio::spawn(serving.into_future());
        Self { addr, entered, left, stop: Some(stop), serving }
    }

    /// Accepts no more requests, and waits for those in progress.
    pub async fn shut_down(mut self) {
        let _ = self.stop.take().unwrap().send(());
        timeout(PATIENCE, self.serving).await.expect("a shutdown").unwrap().unwrap();
    }

    pub async fn post(&self, key: &str, body: &str) -> Got {
        Wire::connect(self.addr).await.post(key, body).await
    }

    /// Repeats a POST until the answer is not "in progress".
    pub async fn post_until_told(&self, key: &str, body: &str) -> Got {
        let asking = async {
            loop {
                let got = self.post(key, body).await;
                if got.status != StatusCode::CONFLICT {
                    return got;
                }
                assert!(got.header("retry-after").is_some(), "{got:?}");
            }
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{key} is stuck"))
    }
}

/// The head of a POST with a key, without the header for the body's length.
pub fn head(key: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: test\r\nx-tenant: acme\r\nidempotency-key: {key}\r\n")
}

pub fn whole(key: &str, body: &str) -> String {
    format!("{}content-length: {}\r\n\r\n{body}", head(key), body.len())
}

pub struct Wire {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    pub async fn post(&mut self, key: &str, body: &str) -> Got {
        self.send(whole(key, body)).await;
        self.answer().await
    }

    /// The next response in full. It must announce its length, or be empty.
    pub async fn answer(&mut self) -> Got {
        let (status, headers) = self.head().await;
        let length = headers.get("content-length").map_or("0", |length| length.to_str().unwrap());
        let body = self.exactly(length.parse().unwrap()).await;
        Got { status, headers, body, answer: None }
    }

    pub async fn head(&mut self) -> (StatusCode, HeaderMap) {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            self.more().await;
        };
        let head = String::from_utf8(self.exactly(end + 4).await.to_vec()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").expect("HTTP/1.1");
        let mut headers = HeaderMap::new();
        for (name, value) in lines.map(|line| line.split_once(": ").unwrap()) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        (StatusCode::from_bytes(&status.as_bytes()[..3]).unwrap(), headers)
    }

    pub async fn exactly(&mut self, length: usize) -> Bytes {
        while self.read.len() < length {
            self.more().await;
        }
        self.read.drain(..length).collect::<Vec<_>>().into()
    }

    async fn more(&mut self) {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        assert_ne!(read.expect("an answer in time").unwrap(), 0, "the server hung up");
    }
}

/// An HTTP/2 connection from the first byte (no TLS, no upgrade).
pub struct Http2 {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

pub type Stream = (ResponseFuture, SendStream<Bytes>);

impl Http2 {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).await.unwrap()).await
    }

    pub async fn over<T>(io: T) -> Self
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = h2::client::handshake(io).await.unwrap();
        let connection = tokio::spawn(async {
            let _ = connection.await;
        });
        Self { requests, connection }
    }

    pub async fn begin(&mut self, key: &str) -> Stream {
        let request = http::Request::post("http://test/")
            .header("x-tenant", "acme")
            .header("idempotency-key", key)
            .body(())
            .unwrap();
        self.requests = self.requests.clone().ready().await.unwrap();
        self.requests.send_request(request, false).unwrap()
    }

    pub async fn post(&mut self, key: &str, body: &str) -> Got {
        let (response, mut stream) = self.begin(key).await;
        stream.send_data(body.to_owned().into(), true).unwrap();
        answer(response).await.0
    }

    /// Closes the connection without a goodbye.
    pub fn close(self) {
        self.connection.abort();
    }
}

/// An HTTP/2 response in full, and its trailers.
pub async fn answer(response: ResponseFuture) -> (Got, Option<HeaderMap>) {
    let reading = async {
        let (parts, mut body) = response.await.unwrap().into_parts();
        let mut read = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            read.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.unwrap();
        let (status, headers) = (parts.status, parts.headers);
        (Got { status, headers, body: read.into(), answer: None }, trailers)
    };
    timeout(PATIENCE, reading).await.expect("an answer in time")
}

/// Resets a stream, like a client that cancels one request of many.
pub fn reset(stream: Stream) {
    let (_, mut body) = stream;
    body.send_reset(Reason::CANCEL);
}
