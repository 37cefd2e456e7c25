//! The error for a missing object names the object, the schema that pgonce looked in, and the owner.

use pgonce::{Error, ErrorKind, Lease, PgOnce, Response, RunError, SchemaName};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::crash::pool_of_one;
use crate::support::db::{PATIENCE, TestDb, effect, lasting, op};

#[tokio::test]
async fn a_right_that_is_missing_names_the_object_and_the_schema() {
    let db = TestDb::new().await;
    let role = format!("role_{}", db.schema);
    db.execute(&format!("create role {role}")).await;
    let mut conn = db.conn().await;
    sqlx::raw_sql(AssertSqlSafe(format!("set role {role}"))).execute(&mut conn).await.unwrap();
    let refused = async |conn: &mut PgConnection, object: &str| {
        let error = db.once.begin(conn, &op("k")).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.sqlstate().as_deref()),
            (ErrorKind::Database, Some("42501"))
        );
        assert!(!error.is_retryable());
        let says = error.to_string();
        assert!(says.contains(object) && says.contains(&db.schema), "{says}");
        assert!(says.contains("right"), "{says}");
    };
    refused(&mut conn, &db.schema).await;
    db.execute(&format!("grant usage on schema {{}} to {role}")).await;
    refused(&mut conn, "idempotency_keys").await;
    db.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_schema_that_is_not_there_is_named() {
    let db = TestDb::new().await;
    let nowhere = PgOnce::new().schema(SchemaName::new("nowhere_at_all").unwrap());
    let mut conn = db.conn().await;
    let error = nowhere.begin(&mut conn, &op("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaOutdated);
    assert!(error.to_string().contains("nowhere_at_all"), "{error}");
    assert!(error.to_string().contains("migrate"), "{error}");
    let run = nowhere.run(&db.pool, &op("k"), async |_| Ok::<_, Error>(())).await.unwrap_err();
    let RunError::Protocol(error) = run else { panic!("{run:?}") };
    assert!(error.to_string().contains("nowhere_at_all"), "{error}");
    // Part of the schema is missing.
    db.execute("alter table {}.idempotency_keys rename to elsewhere").await;
    let error = db.once.begin(&mut conn, &op("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaOutdated);
    let table = format!("{}.idempotency_keys", db.schema);
    assert!(error.to_string().contains(&table), "{error}");
}

#[tokio::test]
async fn a_claim_in_another_database_is_not_an_outdated_schema() {
    let db = TestDb::new().await;
    let other = format!("other_{}", db.schema);
    db.execute(&format!("create database {other}")).await;
    let mut elsewhere =
        PgConnection::connect_with(&db.options.clone().database(&other)).await.unwrap();
    let pool = pool_of_one(db.options.clone().database(&other));
    let mut claim = db.lease(&op("extend"), PATIENCE).await;
    let lost = [
        claim.extend(&pool, lasting(PATIENCE)).await.unwrap_err(),
        db.lease(&op("leased"), PATIENCE)
            .await
            .complete_leased(&pool, Response::empty())
            .await
            .unwrap_err(),
        claim.complete(&mut elsewhere, Response::empty()).await.unwrap_err(),
        db.lease(&op("fail"), PATIENCE)
            .await
            .fail(&mut elsewhere, Response::empty())
            .await
            .unwrap_err(),
        db.lease(&op("release"), PATIENCE).await.release(&mut elsewhere).await.unwrap_err(),
    ];
    for error in lost {
        assert_eq!(error.kind(), ErrorKind::ClaimLost, "{error:?}");
        let says = error.to_string();
        assert!(says.contains(&db.schema) && says.contains("database"), "{says}");
        assert!(!says.contains("outdated"), "{says}");
    }
    elsewhere.close().await.unwrap();
    pool.close().await;
    db.execute(&format!("drop database {other}")).await;
}

// `migrate` could not create the work's own table.
#[tokio::test]
async fn a_table_of_the_works_own_is_not_called_pgonces() {
    let db = TestDb::new().await;
    db.execute(
        "create function {}.audit() returns trigger language plpgsql as
           $$ begin insert into no_such_table values (new.key); return null; end $$;
         create constraint trigger audit after insert on {}.effect deferrable initially deferred
           for each row execute function {}.audit()",
    )
    .await;
    let run = db.once.run(&db.pool, &op("k"), async |tx| effect(tx, &db.schema, "k").await).await;
    let error = run.unwrap_err();
    assert!(!error.is_retryable() && !format!("{error:?}").contains("migrate"), "{error:?}");
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    effect(&mut tx, &db.schema, "canary").await.unwrap();
    let error = pgonce::commit(tx).await.unwrap_err();
    assert_eq!((error.kind(), error.sqlstate().as_deref()), (ErrorKind::Database, Some("42P01")));
    let says = error.to_string();
    assert!(says.contains("no_such_table") && !says.contains("migrate"), "{says}");
    assert!(!says.contains("canary"), "{says}");
}

// A message from a user's trigger can contain a value, with any SQLSTATE.
#[tokio::test]
async fn what_a_trigger_raises_is_not_repeated() {
    let db = TestDb::new().await;
    for sqlstate in ["42501", "42P01", "42883", "3F000", "53100"] {
        db.execute(&format!(
            "create or replace function {{}}.say() returns trigger language plpgsql as
               $$ begin raise exception 'no % here', new.key using errcode = '{sqlstate}'; end $$;
             drop trigger if exists say on {{}}.idempotency_keys;
             create trigger say before insert on {{}}.idempotency_keys
               for each row execute function {{}}.say()"
        ))
        .await;
        let mut conn = db.conn().await;
        let begin = db.once.begin(&mut conn, &op("canary")).await.unwrap_err();
        assert_eq!(begin.sqlstate().as_deref(), Some(sqlstate));
        let lease = Lease::new(PATIENCE).unwrap();
        let run = db.once.run(&db.pool, &op("canary"), async |_| Ok::<_, Error>(())).await;
        let leased = db
            .once
            .run_leased(&db.pool, &op("canary"), lease, async |_: &mut _| Ok::<_, Error>(()))
            .await;
        for shown in [
            format!("{begin} {begin:?}"),
            format!("{run:?} {}", run.as_ref().unwrap_err()),
            format!("{:?}", leased),
        ] {
            assert!(!shown.contains("canary"), "{shown}");
        }
    }
}
