//! Work that was done before the switch, as the program marks it.

use pgonce::RunError;
use sqlx::PgConnection;

use crate::commands::pgonce;
use crate::support::db::{TestDb, effect, op};

const QUERY: &str = "select 'test/scope' as scope, 'order-' || id as key, paid_at as completed_at,
                            to_json(id) as response_body from SCHEMA.payment order by id;";

/// Three payments: one long ago.
async fn paid() -> (TestDb, String) {
    let db = TestDb::new().await;
    db.execute(
        "create table {}.payment (id bigint, paid_at timestamptz);
         insert into {}.payment values (1, now() - interval '1 hour'), (2, now() - interval '2 hours'),
                                       (3, now() - interval '40 days')",
    )
    .await;
    let query = QUERY.replace("SCHEMA", &db.schema);
    (db, query)
}

async fn backfill(db: &TestDb, query: &str, more: &[&str]) -> serde_json::Value {
    let arguments = ["backfill", "--from-query", query, "--retention", "30d", "--json"];
    let told = pgonce(db, &[&arguments[..], more].concat()).await;
    assert_eq!(told.code, 0, "{} {}", told.stdout, told.stderr);
    told.json()
}

async fn rows(db: &TestDb) -> i64 {
    db.ask("select count(*) from {}.idempotency_keys").await
}

async fn pay(db: &TestDb, key: &str) -> (i64, bool) {
    let work = async |tx: &mut PgConnection| effect(tx, &db.schema, key).await;
    let done = db.once.run(&db.pool, &op(key), work).await;
    let done = done.unwrap_or_else(|error: RunError<sqlx::Error>| panic!("{error:?}"));
    (*done, done.is_replay())
}

#[tokio::test]
async fn a_dry_run_counts_apply_writes_retries_get_the_response_and_undo_takes_it_back() {
    let (db, query) = paid().await;
    let counts = |inserted: u32, known: u32, expired: u32| serde_json::json!({ "inserted": inserted, "known": known, "expired": expired });
    assert_eq!(backfill(&db, &query, &[]).await["counts"], counts(2, 0, 1));
    assert_eq!(rows(&db).await, 0);
    assert_eq!(
        backfill(&db, &query, &["--apply", "--batch", "1"]).await["counts"],
        counts(2, 0, 1)
    );
    assert_eq!(backfill(&db, &query, &["--apply"]).await["counts"], counts(0, 2, 1), "again");
    assert_eq!(pay(&db, "order-1").await, (1, true));
    assert_eq!((pay(&db, "order-4").await.1, db.effects().await), (false, 1));
    // The retention counts from when the work was done.
    let left = "select extract(epoch from expires_at - (now() + interval '30 days' - interval '2 hours')) between -60 and 60
                  from {}.idempotency_keys where key = 'order-2'";
    assert!(db.ask::<bool>(left).await);
    let undone = backfill(&db, &query, &["--undo"]).await;
    assert_eq!((&undone["deleted"], &undone["kept"]), (&2.into(), &0.into()));
    assert_eq!(rows(&db).await, 1, "what pgonce wrote itself stays");
}

#[tokio::test]
async fn undo_keeps_what_something_else_has_written_or_touched() {
    let (db, query) = paid().await;
    pay(&db, "order-1").await;
    assert_eq!(backfill(&db, &query, &["--apply"]).await["counts"]["known"], 1);
    db.execute("update {}.idempotency_keys set response_code = 7 where key = 'order-2'").await;
    let undone = backfill(&db, &query, &["--undo"]).await;
    assert_eq!((&undone["deleted"], &undone["kept"]), (&0.into(), &2.into()));
    // Another retention is another backfill.
    let arguments = ["backfill", "--from-query", &query, "--retention", "31d", "--undo", "--json"];
    assert_eq!(pgonce(&db, &arguments).await.json()["deleted"], 0);
}

// The service writes the time of its transaction, which is also the time of its key.
#[tokio::test]
async fn undo_never_takes_a_key_of_the_services_for_its_own() {
    let (db, query) = paid().await;
    let kept = std::time::Duration::from_secs(30 * 86_400);
    let op = op("order-9").policy(pgonce::Policy::new().retention(kept).unwrap());
    let work = async |tx: &mut PgConnection| {
        let pay = "insert into {}.payment values (9, now()) returning id";
        sqlx::query_scalar::<_, i64>(db.sql(pay)).fetch_one(tx).await
    };
    db.once.run(&db.pool, &op, work).await.unwrap();
    assert_eq!(backfill(&db, &query, &["--apply"]).await["counts"]["known"], 1);
    let undone = backfill(&db, &query, &["--undo"]).await;
    assert_eq!((&undone["deleted"], &undone["kept"]), (&2.into(), &1.into()));
    assert_eq!(rows(&db).await, 1);
}

// Other calls would wait for the batch's rows as long as the batch waits.
#[tokio::test]
async fn a_key_in_the_way_makes_the_batch_let_go_and_come_back() {
    let (db, query) = paid().await;
    let mut holder = db.pool.begin().await.unwrap();
    let held = op("order-2");
    let begun = db.once.begin(&mut holder, &held).await.unwrap();
    assert!(matches!(begun, pgonce::Begin::Started(_)));
    let waits =
        db.sql("select {}.backfill(array['test/scope'], array['order-2'], array[now()], 86400000)");
    let error = sqlx::query(waits).execute(&mut db.conn().await).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "55P03");
    let applying = backfill(&db, &query, &["--apply"]);
    let (applied, ()) = tokio::join!(applying, async {
        db.until("select count(*) > 0 from pg_stat_activity where query like '%backfill(%' and state = 'active'
                     and wait_event_type = 'Lock'").await;
        holder.rollback().await.unwrap();
    });
    assert_eq!(applied["counts"]["inserted"], 2);
}

#[tokio::test]
async fn a_run_on_its_way_and_a_backfill_of_its_key_leave_one_effect() {
    let (db, query) = paid().await;
    let work = async |tx: &mut PgConnection| {
        effect(tx, &db.schema, "order-1").await?;
        backfill(&db, &query, &["--apply"]).await;
        Ok::<_, sqlx::Error>(99_i64)
    };
    let done = db.once.run(&db.pool, &op("order-1"), work).await.unwrap();
    assert_eq!((*done, done.is_replay(), db.effects().await), (1, true, 0), "the past wins");
}

#[tokio::test]
async fn all_columns_are_stored_and_bodies_are_bytes_or_text() {
    let (db, _) = paid().await;
    let query = format!(
        "select 'test/scope' as scope, 'k' as key, now() - interval '1 min' as completed_at, true as failed,
                {}.fingerprint('a') as fingerprint, 402 as response_code, 'x'::bytea as response_headers,
                '\\x00ff'::bytea as response_body",
        db.schema
    );
    backfill(&db, &query, &["--apply"]).await;
    let stored = "select status = 3 and fingerprint = {}.fingerprint('a') and response_code = 402 and
                         response_headers = 'x' and response_body = '\\x00ff' from {}.idempotency_keys";
    assert!(db.ask::<bool>(stored).await);
    assert_eq!(
        backfill(&db, &query, &["--undo"]).await["deleted"],
        0,
        "its time has moved with now()"
    );
    let text = "select 'test/scope' as scope, 't' as key, timestamptz '2020-01-01' as completed_at, 'é' as response_body";
    let arguments = ["backfill", "--from-query", text, "--retention", "3650d", "--apply"];
    assert_eq!(pgonce(&db, &arguments).await.code, 0);
    let body =
        "select convert_from(response_body, 'UTF8') from {}.idempotency_keys where key = 't'";
    assert_eq!(db.ask::<String>(body).await, "é");
}

#[tokio::test]
async fn a_wrong_query_is_told_and_writes_nothing() {
    let (db, query) = paid().await;
    for (wrong, says) in [
        (query.replace("as key", "as cey"), "unknown column: cey"),
        (query.replace("paid_at as completed_at,", ""), "no column completed_at"),
        (query.replace("'order-' || id", "''"), "row 1: key is empty"),
        (
            query.replace("paid_at as", "nullif(id, 2) * interval '-1 h' + now() as"),
            "row 2: completed_at is null",
        ),
        (
            query.replace("paid_at as", "now() + interval '1 h' as"),
            "completed_at of row 1 is null, infinite or in the future",
        ),
        (query.replace("to_json(id)", "nextval('nothing')"), "nothing"),
        ("delete from payment returning 1".to_owned(), "syntax error"),
        (
            format!("{} -- a comment", query.replace(";", "").replace("as key", "as cey")),
            "unknown column: cey",
        ),
    ] {
        let arguments = ["backfill", "--from-query", &wrong, "--retention", "30d", "--apply"];
        let told = pgonce(&db, &arguments).await;
        assert!(told.code != 0 && told.stderr.contains(says), "{says}: {}", told.stderr);
    }
    assert_eq!(rows(&db).await, 0);
    assert_eq!(pgonce(&db, &["backfill", "--from-query", &query]).await.code, 2);
    let both = ["backfill", "--from-query", &query, "--retention", "1d", "--apply", "--undo"];
    assert_eq!(pgonce(&db, &both).await.code, 2);
}

#[tokio::test]
async fn people_are_told_what_to_do_next() {
    let (db, query) = paid().await;
    let arguments = ["backfill", "--from-query", &query, "--retention", "30d"];
    let told = pgonce(&db, &arguments).await.stdout;
    let expected = "would be marked as done             2\n\
                    known before, unchanged             0\n\
                    done too long ago to be remembered  1\n\
                    nothing was written: run it again with --apply\n";
    assert_eq!(told, expected);
}
