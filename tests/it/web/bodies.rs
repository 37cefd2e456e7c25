//! Request bodies: read in full before begin, and passed on unchanged.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use pgonce::web::Answer;
use tokio::sync::mpsc;

use super::kit::{MODES, Mode, app, handled, keys, numbered, patient};
use super::{post, send};
use crate::support::db::TestDb;

/// A body of these frames. Counts the frames taken.
pub struct Frames {
    frames: VecDeque<Result<Frame<Bytes>, std::io::Error>>,
    declared: Option<u64>,
    taken: Arc<AtomicUsize>,
}

impl Frames {
    pub fn new(frames: impl IntoIterator<Item = Result<Frame<Bytes>, std::io::Error>>) -> Self {
        Self { frames: frames.into_iter().collect(), declared: None, taken: Arc::default() }
    }

    pub fn of(parts: &[&'static [u8]]) -> Self {
        Self::new(parts.iter().map(|part| Ok(Frame::data(Bytes::from_static(part)))))
    }

    pub fn broken(part: &'static [u8]) -> Self {
        let error = std::io::Error::other("the client is gone");
        Self::new([Ok(Frame::data(Bytes::from_static(part))), Err(error)])
    }

    pub fn declaring(self, bytes: u64) -> Self {
        Self { declared: Some(bytes), ..self }
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(self.frames.pop_front())
    }

    fn size_hint(&self) -> SizeHint {
        self.declared.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn body(frames: Frames) -> (Body, Arc<AtomicUsize>) {
    let taken = Arc::clone(&frames.taken);
    (Body::new(frames), taken)
}

// Trap 20.
#[tokio::test]
async fn a_body_that_says_it_is_too_long_is_refused_unread() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db).request_bytes_max(4), numbered);
        let (long, taken) = body(Frames::of(&[b"12345"]).declaring(5));
        let got = send(&app.router, post("k", long)).await;
        assert_eq!(
            (got.status, got.code()),
            (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large".into())
        );
        assert_eq!(taken.load(Ordering::Relaxed), 0);
        assert_eq!((app.calls(), keys(&db).await), (0, 0));
        // The key is still free. A body of exactly the limit is allowed.
        let got = send(&app.router, post("k", "1234")).await;
        assert_eq!(got.answer, Some(Answer::Performed));
    }
}

// Trap 20. The beginning of a body never counts as the whole, not even for the fingerprint.
#[tokio::test]
async fn a_body_that_turns_out_too_long_is_read_no_further() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db).request_bytes_max(4), numbered);
        let stored = send(&app.router, post("k", Body::new(Frames::of(&[b"12", b"34"])))).await;
        assert_eq!(stored.answer, Some(Answer::Performed));
        let (long, taken) = body(Frames::of(&[b"12", b"345", b"67", b"89"]));
        let got = send(&app.router, post("k", long)).await;
        assert_eq!(got.answer, Some(Answer::RequestTooLarge));
        assert_eq!(taken.load(Ordering::Relaxed), 2);
        assert_eq!(app.calls(), 1);
    }
}

// Trap 20. axum's limit of 2 MB does not apply to a body that the layer has read.
#[tokio::test]
async fn the_layer_has_its_own_limit() {
    let db = TestDb::new().await;
    let body = || vec![b'x'; 1024 * 1024 + 1];
    let narrow = app(&db, Mode::Transactional.layer(&db), numbered);
    let refused = send(&narrow.router, post("k", body())).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    let wide = Mode::Transactional.layer(&db).request_bytes_max(2 * 1024 * 1024);
    let wide = app(&db, wide, numbered);
    assert_eq!(send(&wide.router, post("k", body())).await.answer, Some(Answer::Performed));
    assert!(send(&wide.router, post("k", body())).await.is_replay());
}

// Trap 20. Without a key there is no fingerprint to compare. A transactional route refuses all the same, or its
// connection would wait for a slow client.
#[tokio::test]
async fn a_long_body_without_a_key_is_refused_only_where_a_transaction_would_wait_for_it() {
    for mode in MODES {
        let db = TestDb::new().await;
        for idempotency in [mode.layer(&db).optional(), mode.layer(&db).off()] {
            let echo = handled(idempotency.request_bytes_max(4), |_, request| async {
                request.into_body().collect().await.unwrap().to_bytes().into_response()
            });
            for frames in [
                Frames::of(&[b"12", b"345", b"67"]),
                Frames::of(&[b"12", b"345", b"67"]).declaring(7),
            ] {
                let mut request = post("k", Body::new(frames));
                request.headers_mut().remove("idempotency-key");
                let got = send(&echo.router, request).await;
                match mode {
                    Mode::Transactional => assert_eq!(got.code(), "request_too_large"),
                    Mode::Leased => assert_eq!(got.body, "1234567"),
                }
            }
        }
    }
}

// Trap 21.
#[tokio::test]
async fn half_a_request_takes_no_claim() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), numbered);
        let got = send(&app.router, post("k", Body::new(Frames::broken(b"1")))).await;
        assert_eq!(
            (got.status, got.code()),
            (StatusCode::BAD_REQUEST, "request_unreadable".into())
        );
        assert_eq!(got.json()["retryable"], true);
        assert_eq!((app.calls(), keys(&db).await), (0, 0));
        let retry = send(&app.router, post("k", "100")).await;
        assert_eq!(retry.answer, Some(Answer::Performed));
    }
}

/// A body whose parts arrive when the test sends them.
struct Slow(mpsc::Receiver<Bytes>);

impl http_body::Body for Slow {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

// Traps 21, 22. Every body is read to its end first, even a retry's, whose fingerprint is compared. With a pool of one
// connection, no request waits for a slow upload.
#[tokio::test]
async fn a_slow_upload_holds_neither_key_nor_connection() {
    for mode in MODES {
        let db = TestDb::with_connections(1).await;
        let app = app(&db, mode.layer(&db), numbered);
        for expected in [Answer::Performed, Answer::Replayed] {
            let (sender, receiver) = mpsc::channel(1);
            let request = post("slow", Body::new(Slow(receiver)));
            let router = app.router.clone();
            let slow = tokio::spawn(async move { send(&router, request).await });
            // Once the second part is taken, the layer is in the middle of the body.
            for _ in 0..3 {
                sender.send(Bytes::from_static(b"part")).await.unwrap();
            }
            let key = format!("quick {expected:?}").replace(' ', "-");
            let quick = patient(send(&app.router, post(&key, ""))).await;
            assert_eq!(quick.answer, Some(Answer::Performed));
            let slow_keys = "select count(*) from {}.idempotency_keys where key = 'slow'";
            let begun = db.ask::<i64>(slow_keys).await == 1;
            assert_eq!(begun, expected == Answer::Replayed);
            drop(sender);
            assert_eq!(patient(slow).await.unwrap().answer, Some(expected));
        }
    }
}

#[derive(Clone)]
struct FromOutside(&'static str);

// Trap 23.
#[tokio::test]
async fn the_handler_gets_the_request_as_it_came() {
    for mode in MODES {
        let db = TestDb::new().await;
        let looks = handled(mode.layer(&db), |_, request| async {
            let (parts, body) = request.into_parts();
            assert_eq!(body.size_hint().lower(), 9);
            let body = body.collect().await.unwrap();
            let trailer = body.trailers().map(|trailers| trailers["x-checksum"].clone());
            assert_eq!(trailer.unwrap(), "7");
            assert_eq!(body.to_bytes().as_ref(), b"\x00one\xfftwo\n");
            let FromOutside(user) = parts.extensions.get().unwrap();
            assert_eq!((*user, parts.uri.to_string().as_str()), ("ada", "/a%20b?c=d"));
            assert_eq!(parts.headers.get_all("x-many").iter().count(), 2);
            assert_eq!(parts.headers["idempotency-key"], "k");
            assert_eq!(parts.version, http::Version::HTTP_2);
            StatusCode::NO_CONTENT.into_response()
        });
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "7".parse().unwrap());
        let data = [b"\x00one".as_slice(), b"", b"\xfftwo\n"].map(Bytes::from_static);
        let frames = data.map(Frame::data).into_iter().chain([Frame::trailers(trailers)]);
        let request = Request::post("/a%20b?c=d")
            .version(http::Version::HTTP_2)
            .header("x-tenant", "acme")
            .header("idempotency-key", "k")
            .header("x-many", "1")
            .header("x-many", "2")
            .extension(FromOutside("ada"))
            .body(Body::new(Frames::new(frames.map(Ok))))
            .unwrap();
        let got = send(&looks.router, request).await;
        assert_eq!((got.status, got.answer), (StatusCode::NO_CONTENT, Some(Answer::Performed)));
    }
}
