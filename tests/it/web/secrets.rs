//! What the layer shows or logs of a request and its response. `crate::secrets` captures the log.

use axum::extract::Request;
use axum::response::IntoResponse;
use http::{HeaderValue, StatusCode};
use pgonce::FingerprintSecret;
use pgonce::web::{OnceClaim, RequestFingerprint, Settle};

use super::kit::{MODES, Mode, app, handled, tx_of};
use super::post;
use crate::support::db::{TestDb, effect};

/// Sends the canary through the layer as key, scope, body, headers and query, to every possible end of a request.
/// Returns what `Debug` and the layer's answers show.
pub async fn exercise(db: &TestDb, canary: &'static str) -> String {
    let mut shown = String::new();
    for mode in MODES {
        for work in [Work::Done, Work::Refused, Work::Failed, Work::Uncommitted, Work::SetCookie] {
            request(db, mode, work, canary, &mut shown).await;
        }
        corrupt(db, mode, canary, &mut shown).await;
    }
    db.execute("truncate {}.effect; alter table {}.effect add constraint shown unique (key)").await;
    for mode in MODES {
        request(db, mode, Work::Overlooked, canary, &mut shown).await;
    }
    db.execute("alter table {}.idempotency_keys add constraint web check (attempt < 1) not valid")
        .await;
    for mode in MODES {
        // begin is refused, and the error's DETAIL quotes the row.
        request(db, mode, Work::Refused, canary, &mut shown).await;
    }
    db.execute("alter table {}.idempotency_keys drop constraint web; alter table {}.effect drop constraint shown")
        .await;
    shown
}

/// The same, without the ends where the database quotes a row, by constraints that pgonce does not have.
pub async fn exercise_plainly(db: &TestDb, canary: &'static str) {
    for mode in MODES {
        for work in [Work::Done, Work::Refused, Work::Failed, Work::SetCookie] {
            request(db, mode, work, canary, &mut String::new()).await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    Done,
    Refused,
    Failed,
    /// The commit is refused, with the row in the error's DETAIL.
    Uncommitted,
    /// The handler ignores an error with the row in its DETAIL.
    Overlooked,
    SetCookie,
}

async fn request(db: &TestDb, mode: Mode, work: Work, canary: &'static str, shown: &mut String) {
    db.execute("truncate {}.effect").await;
    let schema = db.schema.clone();
    let secret = FingerprintSecret::new(format!("a secret {canary}")).unwrap();
    let idempotency = mode.layer(db).fingerprint(RequestFingerprint::new().secret(secret));
    shown.push_str(&format!("{idempotency:?}\n"));
    let app = handled(idempotency.clone(), move |_, request: Request| {
        let schema = schema.clone();
        async move {
            let extensions = request.into_parts().0.extensions;
            let claim = OnceClaim::of(&extensions).unwrap();
            assert!(!format!("{claim:?}").contains(canary));
            let mut tx = tx_of(&extensions).await.unwrap();
            assert!(!format!("{tx:?}").contains(canary));
            let _ = effect(&mut tx, &schema, canary).await;
            if work == Work::Overlooked {
                effect(&mut tx, &schema, canary).await.unwrap_err();
            }
            match work {
                Work::Refused => (StatusCode::CONFLICT, Settle::Fail, canary).into_response(),
                Work::Failed => (StatusCode::BAD_GATEWAY, canary).into_response(),
                Work::SetCookie => ([("set-cookie", canary)], canary).into_response(),
                _ => ([("location", canary)], canary).into_response(),
            }
        }
    });
    if work == Work::Uncommitted {
        db.execute(
            "alter table {}.effect add constraint late unique (key) deferrable initially deferred",
        )
        .await;
        effect(&mut db.conn().await, &db.schema, canary).await.unwrap();
    }
    let key = format!("{canary}-{mode:?}-{work:?}");
    let malformed = format!("{key},");
    for (key, body) in [(&key, canary), (&key, canary), (&key, "other"), (&malformed, canary)] {
        let mut request = post(key, body);
        *request.uri_mut() = format!("/{canary}?{canary}").parse().unwrap();
        request.headers_mut().insert("x-tenant", HeaderValue::from_static(canary));
        let got = super::send(&app.router, request).await;
        if got.header("content-type") == Some("application/problem+json") {
            shown.push_str(&format!("{got:?}\n"));
        }
    }
    if work == Work::Uncommitted {
        db.execute("alter table {}.effect drop constraint late").await;
    }
}

/// A stored response that is unreadable.
async fn corrupt(db: &TestDb, mode: Mode, canary: &'static str, shown: &mut String) {
    let app = app(db, mode.layer(db), move |_| canary);
    let key = format!("corrupt-{canary}-{mode:?}");
    super::send(&app.router, post(&key, canary)).await;
    // Bound, because the driver logs statements' texts.
    let plant = db.sql("update {}.idempotency_keys set response_headers = $1 where key = $2");
    let planted = sqlx::query(plant).bind(canary.as_bytes()).bind(&key).execute(&db.pool).await;
    assert_eq!(planted.unwrap().rows_affected(), 1);
    let got = super::send(&app.router, post(&key, canary)).await;
    assert_eq!(got.code(), "store_refused");
    shown.push_str(&format!("{got:?}\n"));
}
