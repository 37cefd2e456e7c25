//! Routes under the rollout modes.

use http::StatusCode;
use pgonce::web::Answer;
use pgonce::{Class, History, Rollout, RolloutMode};
use time::OffsetDateTime;

use super::kit::{MODES, app, keys, numbered};
use super::{post, send};
use crate::support::db::TestDb;

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

#[tokio::test]
async fn a_route_follows_its_mode_from_one_request_to_the_next() {
    use Answer::{Performed, Replayed, Unkeyed};
    for route in MODES {
        let mut db = TestDb::new().await;
        let (rollout, history) = (Rollout::new(), History::new(DAY).unwrap());
        let class = Class::new("payments").unwrap();
        db.once = db.once.clone().rollout(&rollout).keep_history(&history);
        // In the code: required.
        let app = app(&db, route.layer(&db).class(class.clone()), numbered);
        let unkeyed = || {
            let mut request = post("", "");
            request.headers_mut().remove("idempotency-key");
            request
        };
        let created = StatusCode::CREATED;
        for (mode, key, again, without) in [
            (Some(RolloutMode::Off), Unkeyed, Unkeyed, created),
            (Some(RolloutMode::Observe), Performed, Unkeyed, created),
            (Some(RolloutMode::Optional), Replayed, Replayed, created),
            (Some(RolloutMode::Required), Replayed, Replayed, StatusCode::BAD_REQUEST),
            (None, Replayed, Replayed, StatusCode::BAD_REQUEST),
        ] {
            let mut conn = db.conn().await;
            db.once.set_mode(&mut conn, &class, mode).await.unwrap();
            rollout.read(&db.once, &mut conn).await.unwrap();
            for expected in [key, again] {
                let got = send(&app.router, post("k", "")).await;
                assert_eq!((got.status, got.answer), (created, Some(expected)), "{mode:?}");
                let ignored = got.headers.get("idempotency-status").is_some();
                assert_eq!(ignored, mode == Some(RolloutMode::Off));
            }
            assert_eq!(send(&app.router, unkeyed()).await.status, without, "{mode:?}");
        }
        assert_eq!((app.calls(), keys(&db).await), (2 + 1 + 2 + 1 + 1, 1), "off loses nothing");
        history.flush(&db.once, &db.pool).await.unwrap();
        let now = OffsetDateTime::now_utc();
        let report = db.once.adoption(&mut db.conn().await, now - DAY, now + DAY).await.unwrap();
        // With a key: two observed, six replayed. Without: one in each mode but off.
        assert_eq!((report[0].keyed, report[0].calls, report.len()), (8, 12, 1), "{report:?}");
        assert_eq!((report[0].duplicates, report[0].observed_duplicates), (6, 1), "{report:?}");
    }
}
