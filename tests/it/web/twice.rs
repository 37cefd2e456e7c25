//! The layer around itself: on a router and on a route in it.

use axum::Router;
use axum::routing::post as on_post;
use http::StatusCode;
use pgonce::web::{Answer, IdempotencyLayer, OnceClaim};

use super::kit::MODES;
use super::{post, send};
use crate::support::db::{TestDb, effect};

/// A route with one layer, in a router with another.
fn nested(db: &TestDb, outer: IdempotencyLayer, inner: IdempotencyLayer) -> Router {
    let schema = db.schema.clone();
    let handler = async move |claim: OnceClaim| {
        effect(&mut claim.begin().await.unwrap(), &schema, "done").await.unwrap();
        StatusCode::CREATED
    };
    Router::new().route("/", on_post(handler).layer(inner)).layer(outer)
}

// The outer layer would not do what the inner one promises: keep a secret, or ask whether a replay is allowed.
#[tokio::test]
async fn a_layer_inside_of_another_is_an_error_that_says_so() {
    for outer in MODES {
        for inner in MODES {
            let db = TestDb::new().await;
            for inner in [inner.layer(&db), inner.layer(&db).off()] {
                let router = nested(&db, outer.layer(&db), inner);
                for _ in 0..2 {
                    let got = send(&router, post("k", "")).await;
                    assert_eq!((got.status.as_u16(), got.code()), (500, "layered_twice".into()));
                    assert_eq!(got.json()["retryable"], false);
                }
                assert_eq!(db.effects().await, 0);
            }
        }
    }
}

#[tokio::test]
async fn an_observing_layer_inside_of_another_stands_aside() {
    for outer in MODES {
        for inner in MODES {
            let db = TestDb::new().await;
            let router = nested(&db, outer.layer(&db), inner.layer(&db).observe());
            assert_eq!(send(&router, post("k", "")).await.answer, Some(Answer::Performed));
            assert!(send(&router, post("k", "")).await.is_replay());
            assert_eq!(db.effects().await, 1);
        }
    }
}

// The outer layer has begun no key, so the inner layer's rules apply.
#[tokio::test]
async fn a_layer_inside_of_one_that_ignores_keys_protects_its_route() {
    for outer in MODES {
        for inner in MODES {
            let db = TestDb::new().await;
            let router = nested(&db, outer.layer(&db).off(), inner.layer(&db));
            assert_eq!(send(&router, post("k", "")).await.status, StatusCode::CREATED);
            assert!(send(&router, post("k", "")).await.is_replay());
            let mut unkeyed = post("k", "");
            unkeyed.headers_mut().remove("idempotency-key");
            assert_eq!(send(&router, unkeyed).await.code(), "key_missing");
            assert_eq!(db.effects().await, 1);
        }
    }
}
