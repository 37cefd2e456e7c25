//! Connections that break while a handler's work is committed or its response is stored.

use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::web::Answer;

use super::kit::{App, MODES, Mode, app, handled, numbered};
use super::{layer, post, send};
use crate::support::db::TestDb;
use crate::support::proxy::{Cut, Proxy};

async fn through(db: &TestDb, proxy: &Proxy) -> TestDb {
    TestDb::open(&db.schema, proxy.options(), 1).await
}

/// What this application asks of the database for one HTTP request.
async fn requests(db: &TestDb, make: impl Fn(&TestDb) -> App) -> Vec<String> {
    let proxy = Proxy::start(db, None);
    let app = make(&through(db, &proxy).await);
    let got = send(&app.router, post(pgonce::Key::generate().as_str(), "")).await;
    assert_eq!(got.answer, Some(Answer::Performed));
    proxy.requests()
}

/// The position of the first request with this text on its connection.
async fn place(db: &TestDb, make: impl Fn(&TestDb) -> App, text: &str) -> usize {
    let requests = requests(db, make).await;
    let sent = |request: &String| request == text || request.ends_with("commit and chain");
    requests.iter().position(sent).expect("it is sent") + 1
}

// Trap 41. Cut before COMMIT arrives, and after it is done: the client gets the same answer, and the retry finds out.
#[tokio::test]
async fn an_unknown_commit_is_a_503_and_the_retry_finds_out() {
    for mode in MODES {
        let db = TestDb::new().await;
        let make = |db: &TestDb| app(db, mode.layer(db), numbered);
        let commit = place(&db, make, "COMMIT").await;
        for (key, cut, committed) in
            [("before", Cut::Before(commit), false), ("after", Cut::After(commit), true)]
        {
            let before = db.effects().await;
            let proxy = Proxy::start(&db, Some(cut));
            let cut_off = make(&through(&db, &proxy).await);
            let got = send(&cut_off.router, post(key, "")).await;
            assert!(proxy.commit_was_sent());
            assert_eq!(
                (got.status, got.code()),
                (StatusCode::SERVICE_UNAVAILABLE, "commit_unknown".into())
            );
            assert_eq!(
                (got.header("retry-after"), &got.json()["retryable"]),
                (Some("1"), &true.into())
            );
            // If cut before COMMIT, the server may still be rolling back; the end of the rollback frees the key.
            db.until(
                "select count(*) = 0 from pg_stat_activity
                       where application_name = '{}' and state like 'idle in transaction%'",
            )
            .await;
            assert_eq!(db.effects().await - before, i64::from(committed));
            let retry = send(&make(&db).router, post(key, "")).await;
            let expected = if committed { Answer::Replayed } else { Answer::Performed };
            assert_eq!(retry.answer, Some(expected), "{mode:?} {cut:?}");
            assert_eq!(db.effects().await - before, 1);
        }
    }
}

/// A leased handler that does not use the database while it works, except for a few requests. They distinguish its
/// connection from the one after the cut.
fn outside(db: &TestDb) -> App {
    let pool = db.pool.clone();
    handled(Mode::Leased.layer(db), move |call, _| {
        let pool = pool.clone();
        async move {
            let mut conn = pool.acquire().await.unwrap();
            for _ in 0..20 {
                sqlx::raw_sql("select 'at work'").execute(&mut *conn).await.unwrap();
            }
            drop(conn);
            numbered(call).into_response()
        }
    })
}

// Traps 40, 41. The work is done, so storing its response is retried on another connection.
#[tokio::test]
async fn a_response_is_stored_though_the_connection_breaks() {
    let db = TestDb::new().await;
    let requests = requests(&db, outside).await;
    let last_at_work =
        requests.iter().rposition(|request| request == "select 'at work'").unwrap() + 1;
    assert!(requests.len() > last_at_work, "complete comes after");
    for request in last_at_work + 1..=requests.len() {
        for cut in [Cut::Before(request), Cut::After(request)] {
            let key = format!("{cut:?}").replace(['(', ')'], "-");
            let proxy = Proxy::start(&db, Some(cut));
            let app = outside(&through(&db, &proxy).await);
            let got = send(&app.router, post(&key, "")).await;
            assert_eq!(got.answer, Some(Answer::Performed), "{cut:?}");
            assert_eq!((got.status, got.body), (StatusCode::CREATED, "call 1".into()));
            let retry = send(&outside(&db).router, post(&key, "")).await;
            assert_eq!((retry.answer, app.calls()), (Some(Answer::Replayed), 1), "{cut:?}");
            assert_eq!(retry.body, "call 1");
        }
    }
}

// Trap 40. It cannot be stored at all: the client still gets the response, and the claim stays.
#[tokio::test]
async fn a_response_that_cannot_be_stored_is_sent_all_the_same() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let app = outside(&db);
    db.execute("alter table {}.idempotency_keys add constraint never check (status = 1)").await;
    let got = send(&app.router, post("k", "")).await;
    assert_eq!((got.status, got.answer), (StatusCode::CREATED, Some(Answer::Unstored)));
    let soon = send(&app.router, post("k", "")).await;
    assert_eq!(soon.answer, Some(Answer::InProgress));
    db.execute("alter table {}.idempotency_keys drop constraint never").await;
    db.advance(super::kit::LEASE).await;
    let later = send(&app.router, post("k", "")).await;
    assert_eq!((later.answer, app.calls()), (Some(Answer::Performed), 2));
    assert!(send(&app.router, post("k", "")).await.is_replay());
}

// Trap 39. Broken before the handler began: nothing ran.
#[tokio::test]
async fn a_connection_that_breaks_during_begin_runs_nothing() {
    for mode in MODES {
        let db = TestDb::new().await;
        let make = |db: &TestDb| app(db, mode.of(layer(db)), numbered);
        let begins = |request: &String| request == "execute";
        let begin = requests(&db, make).await.iter().position(begins).expect("it is sent") + 1;
        for (key, cut) in [("before", Cut::Before(begin)), ("after", Cut::After(begin))] {
            let proxy = Proxy::start(&db, Some(cut));
            let cut_off = make(&through(&db, &proxy).await);
            let got = send(&cut_off.router, post(key, "")).await;
            assert_eq!(
                (got.status, got.code()),
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable".into())
            );
            assert_eq!(cut_off.calls(), 0);
        }
    }
}
