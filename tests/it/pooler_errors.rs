//! The error names poolers that lose or mix up prepared statements, and poolers that hang up.

use pgonce::{Error, ErrorKind, RunError};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::support::db::{TestDb, op};

/// The error of begin after its prepared statement was changed without the driver's knowledge.
async fn begin_after(db: &TestDb, conn: &mut PgConnection, tampering: &str) -> Error {
    let _ = db.once.begin(conn, &op("first")).await.unwrap();
    let name: String = sqlx::query_scalar(db.sql(
        "select name from pg_prepared_statements where statement like '%{}%' order by prepare_time desc limit 1",
    ))
    .persistent(false)
    .fetch_one(&mut *conn)
    .await
    .unwrap();
    let tampering = tampering.replace("{name}", &name);
    sqlx::raw_sql(AssertSqlSafe(tampering)).execute(&mut *conn).await.unwrap();
    db.once.begin(conn, &op("second")).await.unwrap_err()
}

// Like PgBouncer before 1.21: the statement's name belongs to another client's statement.
#[tokio::test]
async fn a_pooler_that_mixes_up_prepared_statements_is_named() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let mixed_up = "deallocate {name}; prepare {name} as select 1";
    let error = begin_after(&db, &mut conn, mixed_up).await;
    assert_eq!(error.sqlstate().as_deref(), Some("08P01"));
    assert_ne!(error.kind(), ErrorKind::Connection, "{error:?}");
    assert!(!error.is_retryable(), "the next call would meet the same pooler");
    let says = error.to_string();
    assert!(says.contains("pooler") && says.contains("prepared statements"), "{says}");
    // In the work, the error is classified the same way.
    let error = db
        .once
        .run(&db.pool, &op("work"), async |tx| {
            sqlx::query("select $1::int").bind(1).execute(&mut *tx).await?;
            let name: String = sqlx::query_scalar(
                "select name from pg_prepared_statements where statement = 'select $1::int'",
            )
            .fetch_one(&mut *tx)
            .await?;
            let mixed_up = AssertSqlSafe(mixed_up.replace("{name}", &name));
            sqlx::raw_sql(mixed_up).execute(&mut *tx).await?;
            sqlx::query("select $1::int").bind(1).execute(tx).await.map(drop)
        })
        .await
        .unwrap_err();
    assert!(matches!(&error, RunError::Work { .. }) && !error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_connection_whose_prepared_statements_were_dropped_says_who_may_have_done_it() {
    let db = TestDb::new().await;
    for dropped in ["deallocate all", "discard all"] {
        let mut conn = db.conn().await;
        let error = begin_after(&db, &mut conn, dropped).await;
        assert_eq!(error.sqlstate().as_deref(), Some("26000"));
        let says = error.to_string();
        for word in ["prepared statement", "DEALLOCATE", "DISCARD ALL", "pooler"] {
            assert!(says.contains(word), "{dropped}: {says}");
        }
    }
}

// PgBouncer uses 08P01 with severity FATAL for nearly all its own errors.
#[tokio::test]
async fn a_pooler_that_hangs_up_is_a_lost_connection() {
    let db = TestDb::new().await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(format!(".s.PGSQL.{}", db.options.get_port()));
    let listener = UnixListener::bind(socket).unwrap();
    let pooler = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let length = client.read_u32().await.unwrap();
            client.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
            let fields = b"SFATAL\0VFATAL\0C08P01\0Mserver login failed\0\0";
            client.write_u8(b'E').await.unwrap();
            client.write_u32(u32::try_from(fields.len()).unwrap() + 4).await.unwrap();
            client.write_all(fields).await.unwrap();
        }
    });
    let options =
        db.options.clone().socket(dir.path()).ssl_mode(sqlx::postgres::PgSslMode::Disable);
    let pool = PgPoolOptions::new().connect_lazy_with(options);
    let run = db.once.run(&pool, &op("k"), async |_| Ok::<_, sqlx::Error>(())).await;
    let error = run.unwrap_err();
    pooler.abort();
    assert!(error.is_retryable(), "{error:?}");
    let RunError::Protocol(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert_eq!(error.sqlstate().as_deref(), Some("08P01"));
}
