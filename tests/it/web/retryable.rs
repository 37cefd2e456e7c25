//! Work that cannot be committed: whose client may retry.

use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::web::{Answer, IdempotencyLayer};
use pgonce::{Failure, Operation};
use sqlx::{Executor, PgConnection};

use super::bodies::Frames;
use super::kit::{App, MODES, Mode, closed_pool, handled, numbered, tx_of};
use super::{Got, post, send};
use crate::support::db::{TestDb, effect};

/// What the work does before it returns success.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Ignores an error.
    Swallows,
    /// Changes to a role without privileges.
    ChangesRole,
    /// Writes a row that makes COMMIT fail with this SQLSTATE.
    FailsAtCommit(&'static str),
}

async fn work(what: Work, conn: &mut PgConnection, schema: &str) {
    match what {
        Work::Swallows => {
            conn.execute("select no_such_column").await.unwrap_err();
        }
        Work::ChangesRole => {
            conn.execute("set local role pg_monitor").await.unwrap();
        }
        Work::FailsAtCommit(code) => {
            effect(conn, schema, code).await.unwrap();
        }
    }
}

async fn fail_at_commit(db: &TestDb) {
    db.execute(
        "create function {}.refuse() returns trigger language plpgsql as $$
           begin raise exception 'no' using errcode = new.key; end $$;
         create constraint trigger refuse after insert on {}.effect
           deferrable initially deferred for each row execute function {}.refuse()",
    )
    .await;
}

fn app(db: &TestDb, idempotency: IdempotencyLayer, what: Work) -> App {
    let schema = db.schema.clone();
    handled(idempotency, move |call, request: Request| {
        let schema = schema.clone();
        async move {
            let mut tx = tx_of(request.extensions()).await.unwrap();
            work(what, &mut tx, &schema).await;
            numbered(call).into_response()
        }
    })
}

/// Checks that the status and `retryable` agree.
fn told(got: &Got) -> bool {
    let retryable = got.json()["retryable"].as_bool().unwrap();
    let status = match retryable {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    assert_eq!(got.status, status, "{got:?}");
    assert_eq!(got.header("retry-after").is_some(), retryable);
    retryable
}

const WORK: [Work; 8] = [
    Work::Swallows,
    Work::ChangesRole,
    Work::FailsAtCommit("23505"),
    Work::FailsAtCommit("23514"),
    Work::FailsAtCommit("P0001"),
    Work::FailsAtCommit("40001"),
    Work::FailsAtCommit("40P01"),
    Work::FailsAtCommit("55P03"),
];

#[tokio::test]
async fn a_route_promises_a_retry_where_run_does() {
    let db = TestDb::new().await;
    fail_at_commit(&db).await;
    for what in WORK {
        let op = Operation::new("run", format!("{what:?}")).unwrap();
        let ran = async |conn: &mut PgConnection| {
            work(what, conn, &db.schema).await;
            Ok::<_, Failure>(())
        };
        let error = db.once.run(&db.pool, &op, ran).await.unwrap_err();
        for mode in MODES {
            let key = format!("{what:?}").replace(['(', ')', '"'], "-");
            let got = send(&app(&db, mode.layer(&db), what).router, post(&key, "")).await;
            assert_eq!(told(&got), error.is_retryable(), "{mode:?} {what:?} {error:?}");
        }
    }
}

#[tokio::test]
async fn what_no_retry_can_help_is_an_error_of_the_service() {
    for mode in MODES {
        let db = TestDb::new().await;
        fail_at_commit(&db).await;
        for what in &WORK[..5] {
            let app = app(&db, mode.layer(&db), *what);
            for call in 1..=2 {
                let got = send(&app.router, post("k", "")).await;
                assert_eq!(got.code(), "commit_refused", "{mode:?} {what:?}");
                assert!(!told(&got) && !got.json()["detail"].to_string().contains("again"));
                assert_eq!(app.calls(), call);
            }
        }
        assert_eq!(db.effects().await, 0);
    }
}

fn unkeyed(body: impl Into<Body>) -> http::Request<Body> {
    let mut request = post("k", body);
    request.headers_mut().remove("idempotency-key");
    request
}

// A request without a key has no key to repeat.
#[tokio::test]
async fn without_a_key_no_answer_speaks_of_the_same_key() {
    for mode in MODES {
        let db = TestDb::new().await;
        fail_at_commit(&db).await;
        let scope = |_: &http::request::Parts| pgonce::Scope::new("s").ok();
        let down = IdempotencyLayer::new(db.once.clone(), closed_pool(&db).await, scope);
        let lost = app(&db, mode.layer(&db).optional(), Work::FailsAtCommit("40001"));
        let refused = app(&db, mode.layer(&db).optional(), Work::Swallows);
        let mut answers =
            vec![send(&lost.router, unkeyed("")).await, send(&refused.router, unkeyed("")).await];
        if mode == Mode::Transactional {
            let away = app(&db, down.optional(), Work::Swallows);
            answers.push(send(&away.router, unkeyed("")).await);
            answers.push(send(&lost.router, unkeyed(Body::new(Frames::broken(b"1")))).await);
        }
        for got in answers {
            let detail = got.json()["detail"].to_string();
            assert!(!detail.contains("key"), "{detail}");
            // A leased handler's outside work may be done, and the remote cannot recognize a repetition.
            if mode == Mode::Leased {
                assert_eq!(got.json()["retryable"], false);
                assert_eq!(got.header("retry-after"), None);
            }
        }
        let keyed = send(&lost.router, post("k", "")).await;
        assert!(keyed.json()["detail"].to_string().contains("same key"));
    }
}

#[tokio::test]
async fn an_observing_route_tells_the_same() {
    for mode in MODES {
        let db = TestDb::new().await;
        let app = app(&db, mode.layer(&db).observe(), Work::Swallows);
        let got = send(&app.router, post("k", "")).await;
        assert_eq!(got.answer.map(Answer::code), Some("commit_refused"));
    }
}
