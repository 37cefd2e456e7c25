//! Failures inside of a success: what only headers and body tell.

use axum::response::IntoResponse;
use http::{HeaderValue, StatusCode};
use pgonce::web::Answer;

use super::kit::{MODES, app, handled, numbered};
use super::{post, send};
use crate::harness::TestDb;

const GRPC: [&str; 4] =
    ["application/grpc", "application/grpc+proto", "Application/gRPC-Web", "application/grpc;v=1"];

#[tokio::test]
async fn grpc_is_refused_in_words() {
    for mode in MODES {
        let db = TestDb::new().await;
        for layer in [mode.layer(&db), mode.layer(&db).optional(), mode.layer(&db).off()] {
            let app = app(&db, layer, numbered);
            for content_type in GRPC {
                let mut request = post("k", "");
                let value = HeaderValue::from_static(content_type);
                request.headers_mut().insert("content-type", value);
                let got = send(&app.router, request).await;
                assert_eq!(got.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
                assert_eq!(got.code(), "grpc_unsupported");
                assert_eq!(got.json()["retryable"], false);
                // What a gRPC client reads: UNIMPLEMENTED, and why.
                assert_eq!(got.header("grpc-status"), Some("12"));
                assert!(got.header("grpc-message").unwrap().contains("gRPC"));
            }
            assert_eq!(app.calls(), 0);
        }
    }
}

#[tokio::test]
async fn an_observing_route_lets_grpc_pass_as_it_is() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = handled(mode.layer(&db).observe(), |_, _| async { "done".into_response() });
        let mut request = post("k", "");
        request.headers_mut().insert("content-type", HeaderValue::from_static(GRPC[0]));
        let got = send(&app.router, request).await;
        assert_eq!((got.answer, got.body), (None::<Answer>, "done".into()));
    }
}
