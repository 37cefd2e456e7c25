//! The end of a handler's transaction: commits that fail, and handlers that interfere.

use axum::extract::Request;
use axum::response::IntoResponse;
use http::{Extensions, StatusCode};
use pgonce::web::{Answer, OnceClaim, OnceRejection, OnceTx};
use sqlx::{Connection, Executor};

use super::concurrency::sent;
use super::kit::{App, Gate, MODES, Mode, app, handled, keys, numbered, patient, tx_of};
use super::{layer, post, send};
use crate::support::db::{TestDb, effect};

/// An application whose handler does this with its transaction, and always answers 201.
fn does<F, W>(db: &TestDb, mode: Mode, work: F) -> App
where
    F: Fn(u32, Extensions, String) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let schema = db.schema.clone();
    handled(mode.layer(db).optional(), move |call, request: Request| {
        let worked = work(call, request.into_parts().0.extensions, schema.clone());
        async move {
            worked.await;
            numbered(call).into_response()
        }
    })
}

// Trap 40. The handler has answered 201, but no client gets it.
#[tokio::test]
async fn a_commit_that_fails_turns_a_prepared_201_into_a_500() {
    for mode in MODES {
        let db = TestDb::new().await;
        db.execute(
            "alter table {}.effect add constraint once unique (key) deferrable initially deferred",
        )
        .await;
        let app = app(&db, mode.layer(&db), numbered);
        assert_eq!(send(&app.router, post("one", "")).await.answer, Some(Answer::Performed));
        for _ in 0..2 {
            let got = send(&app.router, post("two", "")).await;
            assert_eq!(
                (got.status, got.code()),
                (StatusCode::INTERNAL_SERVER_ERROR, "commit_refused".into())
            );
            assert_eq!(
                (got.header("retry-after"), &got.json()["retryable"]),
                (None, &false.into())
            );
            assert_eq!(db.effects().await, 1);
        }
        db.execute("alter table {}.effect drop constraint once").await;
        assert_eq!(send(&app.router, post("two", "")).await.answer, Some(Answer::Performed));
        assert_eq!((db.effects().await, app.calls()), (2, 4));
    }
}

// Trap 40. COMMIT of an aborted transaction is a rollback that looks like a success.
#[tokio::test]
async fn an_error_that_the_handler_overlooks_is_not_committed() {
    for mode in MODES {
        let db = TestDb::new().await;
        let careless = does(&db, mode, |call, extensions, schema| async move {
            let mut tx = tx_of(&extensions).await.unwrap();
            effect(&mut tx, &schema, "done").await.unwrap();
            if call < 3 {
                tx.execute("select no_such_column").await.unwrap_err();
            }
        });
        let mut unkeyed = post("k", "");
        unkeyed.headers_mut().remove("idempotency-key");
        for request in [post("k", ""), unkeyed] {
            let got = send(&careless.router, request).await;
            assert_eq!(
                (got.status, got.code()),
                (StatusCode::INTERNAL_SERVER_ERROR, "commit_refused".into())
            );
            assert_eq!(db.effects().await, 0);
        }
        assert_eq!(send(&careless.router, post("k", "")).await.body, "call 3");
        assert_eq!(db.effects().await, 1);
    }
}

// Trap 33. Two payments read the books without seeing each other: one of them must run again.
#[tokio::test]
async fn a_serialization_failure_undoes_the_claim_and_can_be_retried() {
    for mode in MODES {
        let db = TestDb::new().await;
        let serializable =
            db.options.clone().options([("default_transaction_isolation", "serializable")]);
        db.pool.set_connect_options(serializable);
        let gate = Gate::new();
        let stops = gate.clone();
        let books = does(&db, mode, move |call, extensions, schema| {
            let gate = stops.clone();
            async move {
                let mut tx = tx_of(&extensions).await.unwrap();
                let sum = sqlx::AssertSqlSafe(format!("select count(*) from {schema}.effect"));
                sqlx::query(sum).execute(&mut *tx).await.unwrap();
                effect(&mut tx, &schema, "done").await.unwrap();
                if call <= 2 {
                    gate.pass().await;
                }
            }
        });
        // They begin one after the other, so that only the handlers can conflict.
        let mut both = Vec::new();
        for key in ["one", "two"] {
            both.push(sent(&books, key, ""));
            gate.entered().await;
        }
        gate.open();
        gate.open();
        let mut lost = Vec::new();
        for (key, task) in ["one", "two"].into_iter().zip(both) {
            let got = patient(task).await.unwrap();
            if got.answer != Some(Answer::Performed) {
                assert_eq!(
                    (got.status, got.code()),
                    (StatusCode::SERVICE_UNAVAILABLE, "not_committed".into())
                );
                assert_eq!(got.header("retry-after"), Some("1"));
                lost.push(key);
            }
        }
        assert_eq!((lost.len(), db.effects().await), (1, 1), "{mode:?}");
        let retry = send(&books.router, post(lost[0], "")).await;
        assert_eq!(retry.answer, Some(Answer::Performed));
        assert_eq!(db.effects().await, 2);
    }
}

// Trap 40. A transaction that a task still has cannot be committed.
#[tokio::test]
async fn a_transaction_kept_by_a_task_is_never_committed() {
    for mode in MODES {
        let db = TestDb::new().await;
        let gate = Gate::new();
        let held = gate.clone();
        let keeps = does(&db, mode, move |call, extensions, schema| {
            let gate = held.clone();
            async move {
                let mut tx = tx_of(&extensions).await.unwrap();
                effect(&mut tx, &schema, "done").await.unwrap();
                if call == 1 {
                    tokio::spawn(async move {
                        gate.pass().await;
                        effect(&mut tx, &schema, "late").await.unwrap();
                        drop(tx);
                        gate.pass().await;
                    });
                }
            }
        });
        let got = send(&keeps.router, post("k", "")).await;
        assert_eq!(
            (got.status, got.code()),
            (StatusCode::INTERNAL_SERVER_ERROR, "transaction_lost".into())
        );
        assert_eq!(got.json()["retryable"], false);
        // Twice: when the task begins to wait, and when it has written and released the transaction.
        for _ in 0..2 {
            gate.entered().await;
            gate.open();
        }
        db.until(
            "select count(*) = 0 from pg_stat_activity
              where application_name = '{}' and state like 'idle in transaction%'",
        )
        .await;
        assert_eq!(db.effects().await, 0);
        assert_eq!(send(&keeps.router, post("k", "")).await.body, "call 2");
        assert_eq!(db.effects().await, 1);
    }
}

// Trap 40.
#[tokio::test]
async fn a_nested_transaction_left_open_is_never_committed() {
    for mode in MODES {
        let db = TestDb::new().await;
        let forgets = does(&db, mode, |_, extensions, schema| async move {
            let mut tx = tx_of(&extensions).await.unwrap();
            let mut nested = tx.begin().await.unwrap();
            effect(&mut nested, &schema, "done").await.unwrap();
            std::mem::forget(nested);
        });
        let got = send(&forgets.router, post("k", "")).await;
        assert_eq!(
            (got.status, got.code()),
            (StatusCode::INTERNAL_SERVER_ERROR, "transaction_lost".into())
        );
        assert_eq!(db.effects().await, 0);
    }
}

#[tokio::test]
async fn nested_transactions_are_savepoints() {
    for mode in MODES {
        let db = TestDb::new().await;
        let nests = does(&db, mode, |_, extensions, schema| async move {
            let mut tx = tx_of(&extensions).await.unwrap();
            for (key, keep) in [("kept", true), ("undone", false)] {
                let mut nested = tx.begin().await.unwrap();
                effect(&mut nested, &schema, key).await.unwrap();
                if keep { nested.commit().await.unwrap() } else { nested.rollback().await.unwrap() }
            }
        });
        assert_eq!(send(&nests.router, post("k", "")).await.answer, Some(Answer::Performed));
        assert_eq!(db.ask::<String>("select string_agg(key, ',') from {}.effect").await, "kept");
    }
}

// Trap 40. The claim was rolled back, and later writes are in no transaction.
#[tokio::test]
async fn a_handler_that_rolls_back_itself_is_not_told_to_try_again() {
    let db = TestDb::new().await;
    let ends = does(&db, Mode::Transactional, |_, extensions, schema| async move {
        let mut tx = tx_of(&extensions).await.unwrap();
        tx.execute("rollback").await.unwrap();
        effect(&mut tx, &schema, "outside").await.unwrap();
    });
    let got = send(&ends.router, post("k", "")).await;
    assert_eq!(
        (got.status, got.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "transaction_lost".into())
    );
    assert_eq!((keys(&db).await, db.effects().await), (0, 1));
}

// Trap 38. Programming errors show at the first request, and take no key.
#[tokio::test]
async fn a_transaction_that_cannot_be_had_is_an_error_of_the_program() {
    let db = TestDb::new().await;
    let unavailable = async |mode: Option<Mode>| {
        let handler = async |tx: Result<OnceTx, OnceRejection>| {
            tx.map(|_| "there")
                .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        };
        let route = axum::routing::post(handler);
        let route = match mode {
            Some(mode) => route.layer(mode.layer(&db)),
            None => route,
        };
        send(&axum::Router::new().route("/", route), post("k", "")).await
    };
    let got = unavailable(None).await;
    assert_eq!(got.body, OnceRejection::NoLayer.to_string());
    let got = unavailable(Some(Mode::Leased)).await;
    assert_eq!(
        (got.answer, got.body),
        (Some(Answer::Released), OnceRejection::Leased.to_string().into())
    );
    assert_eq!(unavailable(Some(Mode::Transactional)).await.body, "there");
}

// Trap 38. The extractor answers for a handler that ignores the missing transaction.
#[tokio::test]
async fn a_handler_without_its_transaction_answers_500() {
    let db = TestDb::new().await;
    let route = axum::routing::post(async |_: OnceTx| "there");
    for router in [
        axum::Router::new().route("/", route.clone()),
        axum::Router::new().route("/", route.layer(Mode::Leased.layer(&db))),
    ] {
        assert_eq!(send(&router, post("k", "")).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[tokio::test]
async fn there_is_one_transaction_for_all_parts_of_a_handler() {
    for mode in MODES {
        let db = TestDb::with_connections(1).await;
        let parts = does(&db, mode, |_, extensions, schema| async move {
            let claim = OnceClaim::of(&extensions).unwrap();
            let mut first = claim.begin().await.unwrap();
            effect(&mut first, &schema, "first").await.unwrap();
            // In use: no other part gets the transaction, and none waits for a second connection.
            let in_use = claim.begin().await.unwrap_err();
            assert_eq!(in_use.kind(), pgonce::ErrorKind::InvalidInput);
            drop(first);
            let mut second = claim.begin().await.unwrap();
            let seen = sqlx::AssertSqlSafe(format!("select count(*) from {schema}.effect"));
            assert_eq!(
                sqlx::query_scalar::<_, i64>(seen).fetch_one(&mut *second).await.unwrap(),
                1
            );
        });
        assert_eq!(send(&parts.router, post("k", "")).await.answer, Some(Answer::Performed));
        assert_eq!(db.effects().await, 1);
    }
}

// Trap 40. After the response, it is too late to ask for the transaction.
#[tokio::test]
async fn a_transaction_is_not_handed_out_after_the_answer() {
    for mode in MODES {
        let db = TestDb::new().await;
        let gate = Gate::new();
        let (late, done) = (gate.clone(), Gate::new());
        let tells = done.clone();
        let spawns = does(&db, mode, move |_, extensions, _| {
            let (late, done) = (late.clone(), tells.clone());
            async move {
                tokio::spawn(async move {
                    late.pass().await;
                    let claim = OnceClaim::of(&extensions).unwrap();
                    claim.begin().await.expect_err("it is over");
                    done.pass().await;
                });
            }
        });
        assert_eq!(send(&spawns.router, post("k", "")).await.answer, Some(Answer::Performed));
        gate.entered().await;
        gate.open();
        done.entered().await; // only if the task did not panic
        assert!(send(&spawns.router, post("k", "")).await.is_replay());
    }
}

// Trap 6. Without a key, too, a handler's writes are one transaction.
#[tokio::test]
async fn an_unkeyed_handler_that_fails_has_written_nothing() {
    for mode in MODES {
        let db = TestDb::new().await;
        for status in [500, 409, 201] {
            let status = StatusCode::from_u16(status).unwrap();
            let app = app(&db, mode.of(layer(&db)).off(), move |_| status);
            let got = send(&app.router, post("k", "")).await;
            assert_eq!((got.status, got.answer), (status, Some(Answer::Unkeyed)));
            assert_eq!(db.effects().await, i64::from(status == StatusCode::CREATED));
        }
    }
}
