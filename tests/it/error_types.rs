//! Five programs with five error types. In each, `?` works in the closure and on the result of `run`, a deadlock in the
//! work restarts it, and the work's error comes back with its own type.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pgonce::{Operation, RunError, WorkError};
use sqlx::PgConnection;

use crate::support::db::{TestDb, effect, op};

/// Writes, and deadlocks in its first call.
async fn charge(tx: &mut PgConnection, db: &TestDb, calls: &AtomicU32) -> Result<i64, sqlx::Error> {
    let id = effect(tx, &db.schema, "charge").await?;
    if calls.fetch_add(1, Ordering::Relaxed) == 0 {
        let raise = "do $$ begin raise exception 'deadlock' using errcode = '40P01'; end $$";
        sqlx::query(raise).execute(tx).await?;
    }
    Ok(id)
}

/// Runs a program once with a good card and once with a declined card.
async fn check<E>(
    program: impl AsyncFn(&TestDb, &Operation, &AtomicU32, bool) -> Result<i64, E>,
) -> E {
    let db = TestDb::new().await;
    let calls = AtomicU32::new(0);
    assert!(program(&db, &op("paid"), &calls, false).await.is_ok());
    assert_eq!(calls.load(Ordering::Relaxed), 2, "it starts again after a deadlock");
    let declined = program(&db, &op("declined"), &calls, true).await;
    assert_eq!(db.effects().await, 1, "what the declined one wrote is undone");
    declined.expect_err("it is declined")
}

mod driver {
    use super::*;

    async fn pay(
        db: &TestDb,
        op: &Operation,
        calls: &AtomicU32,
        declined: bool,
    ) -> Result<i64, RunError<sqlx::Error>> {
        let paid = db.once.run(&db.pool, op, async |tx| {
            let id = charge(tx, db, calls).await?;
            if declined { Err(sqlx::Error::RowNotFound) } else { Ok(id) }
        });
        Ok(paid.await?.into_inner())
    }

    #[tokio::test]
    async fn the_drivers_error() {
        let error = check(pay).await;
        assert!(matches!(error, RunError::Work { error: sqlx::Error::RowNotFound, .. }));
    }
}

mod domain {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum PaymentError {
        #[error("the card was declined")]
        Declined,
        #[error("the database failed")]
        Database(#[from] sqlx::Error),
        #[error(transparent)]
        Once(RunError<Infallible>),
    }

    impl From<RunError<PaymentError>> for PaymentError {
        fn from(error: RunError<PaymentError>) -> Self {
            error.into_work().unwrap_or_else(Self::Once)
        }
    }

    async fn pay(
        db: &TestDb,
        op: &Operation,
        calls: &AtomicU32,
        declined: bool,
    ) -> Result<i64, PaymentError> {
        let paid = db.once.run(&db.pool, op, async |tx| {
            let id = charge(tx, db, calls).await?;
            if declined { Err(PaymentError::Declined) } else { Ok(id) }
        });
        Ok(paid.await?.into_inner())
    }

    #[tokio::test]
    async fn an_enum() {
        let error = check(pay).await;
        assert!(matches!(error, PaymentError::Declined), "{error:?}");
    }

    #[test]
    fn what_is_not_the_works_is_told_apart() {
        let refused: RunError<PaymentError> = pgonce::Key::new("").unwrap_err().into();
        let PaymentError::Once(RunError::Protocol(error)) = refused.into() else { panic!() };
        assert_eq!(error.to_string(), "key is empty; it takes 1 to 255 bytes");
    }
}

mod any {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the card was declined")]
    struct Declined;

    async fn pay(
        db: &TestDb,
        op: &Operation,
        calls: &AtomicU32,
        declined: bool,
    ) -> anyhow::Result<i64> {
        use anyhow::Context;
        let paid = db.once.run(&db.pool, op, async |tx| {
            let id = charge(tx, db, calls).await.context("charging")?;
            anyhow::ensure!(!declined, Declined);
            anyhow::Ok(id)
        });
        Ok(paid.await?.into_inner())
    }

    #[tokio::test]
    async fn anyhow() {
        let error = check(pay).await;
        assert!(error.chain().any(|cause| cause.is::<Declined>()), "{error:?}");
        // With its type, context and backtrace.
        let Ok(RunError::Work { error, .. }) = error.downcast::<RunError<anyhow::Error>>() else {
            panic!("it is what run returned")
        };
        assert!(error.is::<Declined>());
    }
}

mod boxed {
    use super::*;

    type BoxError = Box<dyn StdError + Send + Sync>;

    async fn pay(
        db: &TestDb,
        op: &Operation,
        calls: &AtomicU32,
        declined: bool,
    ) -> Result<i64, BoxError> {
        let paid = db.once.run(&db.pool, op, async |tx| {
            let id = charge(tx, db, calls).await?;
            if declined { Err(BoxError::from("the card was declined")) } else { Ok(id) }
        });
        Ok(paid.await?.into_inner())
    }

    #[tokio::test]
    async fn a_boxed_error() {
        let error = check(pay).await;
        assert_eq!(error.source().unwrap().to_string(), "the card was declined");
        let error = error.downcast::<RunError<BoxError>>().expect("it is what run returned");
        assert_eq!(error.into_work().unwrap().to_string(), "the card was declined");
    }
}

mod response {
    use super::*;

    enum ApiError {
        Declined,
        Blocked,
        Database(sqlx::Error),
    }

    impl From<sqlx::Error> for ApiError {
        fn from(error: sqlx::Error) -> Self {
            Self::Database(error)
        }
    }

    impl IntoResponse for ApiError {
        fn into_response(self) -> Response {
            match self {
                Self::Declined => StatusCode::PAYMENT_REQUIRED.into_response(),
                Self::Blocked | Self::Database(_) => {
                    StatusCode::INTERNAL_SERVER_ERROR.into_response()
                }
            }
        }
    }

    impl WorkError for ApiError {
        fn cause(&self) -> Option<&(dyn StdError + 'static)> {
            match self {
                Self::Database(error) => Some(error),
                Self::Declined | Self::Blocked => None,
            }
        }

        fn keep(&self) -> Option<pgonce::Response> {
            let blocked = || pgonce::Response::bytes("the card is blocked").with_code(403);
            matches!(self, Self::Blocked).then(blocked)
        }
    }

    async fn pay(
        db: &TestDb,
        op: &Operation,
        calls: &AtomicU32,
        declined: bool,
    ) -> Result<i64, RunError<ApiError>> {
        let paid = db.once.run(&db.pool, op, async |tx| {
            let id = charge(tx, db, calls).await?;
            if declined { Err(ApiError::Declined) } else { Ok(id) }
        });
        Ok(paid.await?.into_inner())
    }

    #[tokio::test]
    async fn an_http_error() {
        let error = check(pay).await;
        assert_eq!(error.to_string(), "nothing was kept: the work returned an error");
        assert_eq!(error.into_response().status(), StatusCode::PAYMENT_REQUIRED);
    }

    #[tokio::test]
    async fn an_error_that_is_final_is_kept_and_replayed() {
        let db = TestDb::new().await;
        for again in [false, true] {
            let op = op("k");
            let run = db.once.run(&db.pool, &op, async |tx| {
                effect(tx, &db.schema, "undone").await?;
                Err::<(), _>(ApiError::Blocked)
            });
            let Err(RunError::Failed { response, replayed, .. }) = run.await else {
                panic!("it is kept")
            };
            assert_eq!((response.code(), replayed), (Some(403), again));
        }
        assert_eq!(db.effects().await, 0);
    }
}
