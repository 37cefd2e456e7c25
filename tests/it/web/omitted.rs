//! Responses that are not stored: the first caller gets them in full, and nothing runs twice.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use pgonce::web::{Answer, IdempotencyLayer, Secret};

use super::kit::{MODES, app};
use super::replays::thrice;
use super::{Got, post, send};
use crate::support::db::TestDb;

/// A body of unknown length, with optional trailers or a broken end.
#[derive(Clone)]
struct Stream {
    parts: Vec<&'static str>,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Good,
    Trailers,
    Broken,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if !self.parts.is_empty() {
            let part = self.parts.remove(0);
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(part.as_bytes())))));
        }
        Poll::Ready(match std::mem::replace(&mut self.end, End::Good) {
            End::Good => None,
            End::Broken => Some(Err(std::io::Error::other("broke off"))),
            End::Trailers => {
                let status = HeaderValue::from_static("0");
                Some(Ok(Frame::trailers(HeaderMap::from_iter([(
                    "grpc-status".parse().unwrap(),
                    status,
                )]))))
            }
        })
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.end {
            End::Good => http_body::SizeHint::new(),
            _ => http_body::SizeHint::with_exact(
                self.parts.iter().map(|part| part.len() as u64).sum(),
            ),
        }
    }
}

/// The retry of a finished request whose response was not stored: same status, another body, and nothing ran.
fn is_omitted(first: &Got, retry: &Got) {
    assert_eq!((retry.status, retry.answer), (first.status, Some(Answer::Omitted)));
    assert!(retry.is_replay());
    assert_eq!(retry.header("cache-control"), Some("no-store"));
    if !matches!(first.status.as_u16(), 204 | 205 | 304) {
        assert_eq!(retry.code(), "omitted");
        assert_eq!(retry.json()["retryable"], false);
    }
}

// Traps 52, 55, 56, 57. In full for the first caller, omitted for the others, and never run again.
#[tokio::test]
async fn what_cannot_be_stored_is_sent_whole_and_then_omitted() {
    type Answers = &'static (dyn Fn() -> Response + Send + Sync);
    fn stream(end: End) -> Response {
        Body::new(Stream { parts: vec!["one", "two"], end }).into_response()
    }
    let answers: [(&str, Answers); 5] = [
        ("12345678901234567890123456789012", &|| {
            "12345678901234567890123456789012".into_response()
        }),
        ("part", &|| (StatusCode::PARTIAL_CONTENT, "part").into_response()),
        ("", &|| StatusCode::NOT_MODIFIED.into_response()),
        ("onetwo", &|| stream(End::Good)),
        ("onetwo", &|| stream(End::Trailers)),
    ];
    for mode in MODES {
        for (body, answer) in answers {
            let db = TestDb::new().await;
            // Room for all responses but the first.
            let app = app(&db, mode.layer(&db).response_bytes_max(60), move |_| {
                let mut response = answer();
                response.headers_mut().remove("content-type");
                response.headers_mut().insert("etag", HeaderValue::from_static("\"v1\""));
                response
            });
            let [first, retry, _] = thrice(&app).await;
            assert_eq!((first.answer, &first.body), (Some(Answer::Performed), &body.into()));
            is_omitted(&first, &retry);
            assert_eq!(db.effects().await, 1);
        }
    }
}

// Trap 55. Stored up to the limit, and not a byte beyond.
#[tokio::test]
async fn the_response_limit_is_exact() {
    for mode in MODES {
        let db = TestDb::new().await;
        // A header block of 18 bytes, without headers.
        for (length, kept) in [(82, true), (83, false), (100, false), (101, false)] {
            let app = app(&db, mode.layer(&db).response_bytes_max(100), move |_| {
                let mut response = Response::new(Body::from(vec![b'x'; length]));
                response.headers_mut().remove("content-type");
                response
            });
            let key = format!("k{length}");
            let first = send(&app.router, post(&key, "")).await;
            assert_eq!((first.answer, first.body.len()), (Some(Answer::Performed), length));
            let retry = send(&app.router, post(&key, "")).await;
            let expected = if kept { Answer::Replayed } else { Answer::Omitted };
            assert_eq!(retry.answer, Some(expected), "{length}");
        }
    }
}

// Trap 56. A response that breaks off while it is read is no success.
#[tokio::test]
async fn a_response_that_breaks_off_is_not_stored() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db), |call| {
            let end = if call == 1 { End::Broken } else { End::Trailers };
            Body::new(Stream { parts: vec!["one", "two"], end }).into_response()
        });
        let got = send(&app.router, post("k", "")).await;
        let code = "response_unreadable".to_owned();
        assert_eq!((got.status, got.code()), (StatusCode::INTERNAL_SERVER_ERROR, code));
        assert_eq!((db.effects().await, &got.json()["retryable"]), (0, &true.into()));
        let retry = send(&app.router, post("k", "")).await;
        assert_eq!((retry.answer, app.calls()), (Some(Answer::Performed), 2));
        assert_eq!(db.effects().await, 1);
    }
}

// Traps 55, 61. The table never contains it.
#[tokio::test]
async fn a_secret_response_is_not_in_the_table() {
    for mode in MODES {
        let routes: [fn(IdempotencyLayer) -> IdempotencyLayer; 2] =
            [IdempotencyLayer::secret, |layer| layer];
        for (number, policy) in routes.into_iter().enumerate() {
            let db = TestDb::new().await;
            let app = app(&db, policy(mode.layer(&db)), move |_| {
                let headers = [("location", "/canary")];
                let mut response = (StatusCode::CREATED, headers, "canary").into_response();
                if number == 1 {
                    response.extensions_mut().insert(Secret);
                }
                response
            });
            let [first, retry, _] = thrice(&app).await;
            assert_eq!(
                (first.body.as_ref(), first.header("location")),
                (b"canary".as_ref(), Some("/canary"))
            );
            is_omitted(&first, &retry);
            assert_eq!(retry.header("location"), None);
            let there = "select count(*) from {}.idempotency_keys k
                          where response_headers is not null or response_body is not null
                             or k::text like '%canary%' or k::text like '%' || encode('canary', 'hex') || '%'";
            assert_eq!(db.ask::<i64>(there).await, 0);
        }
    }
}
