//! Routes on a pool that leaks.

use axum::extract::Request;
use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::web::{Answer, IdempotencyLayer};
use sqlx::PgPool;

use super::{LEAKS, drop_begin, leave, nothing_is_left, pool};
use crate::crash::effects_of;
use crate::support::db::{TestDb, effect};
use crate::web::kit::{MODES, Mode, handled, tx_of};
use crate::web::{post, scoped, send};

/// A request that performs, its retry, and a failing request, each on a pool in this state.
async fn requests(db: &TestDb, pool: &PgPool, mode: Mode, how: &str, leave: impl AsyncFn()) {
    let layer = mode.of(IdempotencyLayer::new(db.once.clone(), pool.clone(), scoped));
    let schema = db.schema.clone();
    let app = handled(layer, move |_, request: Request| {
        let schema = schema.clone();
        async move {
            let extensions = request.into_parts().0.extensions;
            let key = pgonce::web::OnceClaim::of(&extensions).unwrap().derived_key("name");
            let mut tx = tx_of(&extensions).await.expect("a transaction");
            effect(&mut tx, &schema, key.as_str()).await.unwrap();
            (StatusCode::CREATED, key.as_str().to_owned()).into_response()
        }
    });
    let context = format!("{mode:?}, {how}");
    let key = format!("{mode:?}{how}").replace(' ', "-");
    leave().await;
    let got = send(&app.router, post(&key, "")).await;
    assert_eq!(got.answer, Some(Answer::Performed), "{context}: {got:?}");
    let written = String::from_utf8(got.body.to_vec()).unwrap();
    assert_eq!(effects_of(db, &written).await, 1, "{context}");
    let done =
        format!("select count(*) from {{}}.keys where status = 'completed' and key = '{key}'");
    assert_eq!(db.ask::<i64>(&done).await, 1, "{context}");
    leave().await;
    let again = send(&app.router, post(&key, "")).await;
    assert!(again.is_replay() && again.body == got.body, "{context}: {again:?}");
}

#[tokio::test]
async fn what_a_route_answers_is_committed() {
    for mode in MODES {
        let db = TestDb::new().await;
        for (how, leak) in LEAKS {
            let pool = pool(&db);
            requests(&db, &pool, mode, how, async || leave(&db, &pool, leak).await).await;
            pool.close().await;
            nothing_is_left(&db, how).await;
        }
        let pool = pool(&db);
        requests(&db, &pool, mode, "a dropped begin", async || drop_begin(&db, &pool).await).await;
    }
}
