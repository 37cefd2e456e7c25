//! Steps, notes and status in plain SQL, as another language would call them.

use std::time::Duration;

use sqlx::{Connection, Executor, Row};

use crate::support::db::TestDb;
use crate::support::roles::{conn_as, role, with_roles};

const MINUTE: Duration = Duration::from_secs(60);
const BEGIN: &str = "select token::text from {}._begin('test/scope', 'k', null, 86400000, null, 60000, 0, 'retry', null, false)";

/// Begins the key `k` with a lease of a minute. Returns the token as text.
async fn begin(db: &TestDb) -> String {
    db.ask(BEGIN).await
}

/// A call of a function with the key `k` and these further arguments.
fn call(function: &str, token: &str, rest: &str) -> String {
    let rest = if rest.is_empty() { String::new() } else { format!(", {rest}") };
    format!("select from {{}}.{function}('test/scope', 'k', '{token}'{rest})")
}

async fn refused(db: &TestDb, sql: &str) -> (String, String) {
    let mut conn = db.conn().await;
    let error = conn.execute(db.sql(sql)).await.expect_err(sql);
    conn.ping().await.unwrap(); // the server reports the error before it releases the key's lock
    let error = error.as_database_error().unwrap();
    (error.code().unwrap().into_owned(), error.message().to_owned())
}

async fn record(db: &TestDb, token: &str, name: &str, output: &str) {
    db.execute(&call("record_step", token, &format!("'{name}', null, '{output}'"))).await;
}

/// Names and outputs, as the claim's holder gets them.
async fn recorded(db: &TestDb, token: &str) -> String {
    let steps = format!("{{}}.recorded_steps('test/scope', 'k', '{token}')");
    let list = "coalesce(string_agg(name || '=' || convert_from(output, 'UTF8'), ' '), '')";
    db.ask(&format!("select {list} from {steps}")).await
}

async fn status(db: &TestDb, column: &str) -> Option<String> {
    let mut conn = db.conn().await;
    let sql = format!("select ({column})::text from {{}}.operation_status('test/scope', 'k')");
    sqlx::query_scalar(db.sql(&sql)).fetch_optional(&mut conn).await.unwrap().flatten()
}

#[tokio::test]
async fn steps_come_back_to_the_next_holder_in_their_order() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let first = begin(&db).await;
    record(&db, &first, "b", "1").await;
    record(&db, &first, "a", "2").await;
    db.execute(&call("_report_progress", &first, r#"'{"half": true}'"#)).await;
    db.advance(MINUTE).await;
    let second = begin(&db).await;
    assert_eq!(recorded(&db, &second).await, "b=1 a=2");
    assert_eq!(status(&db, "steps").await.unwrap(), "{b,a}");
    assert_eq!(status(&db, "convert_from(progress, 'UTF8')").await.unwrap(), r#"{"half": true}"#);
    assert_eq!(status(&db, "attempt || status || claim").await.unwrap(), "2in_progresslive");
    // The first holder is fenced off from everything.
    for (function, rest) in [
        ("record_step", "'c', null, '3'"),
        ("recorded_steps", ""),
        ("_report_progress", "'1'"),
        ("_lapse", "'no', false"),
        ("release", "'no'"),
    ] {
        assert_eq!(refused(&db, &call(function, &first, rest)).await.0, "IK002", "{function}");
    }
    assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 2);
    assert_eq!(status(&db, "last_error").await, None);
    db.execute(&call("complete", &second, "")).await;
    for (function, rest) in
        [("record_step", "'c', null, '3'"), ("_report_progress", "'1'"), ("release", "'no'")]
    {
        let told = refused(&db, &call(function, &second, rest)).await;
        assert_eq!(told.0, "IK002", "{function} after complete");
    }
}

#[tokio::test]
async fn what_a_step_wrote_is_undone_with_it_when_the_claim_is_lost() {
    let db = TestDb::new().await;
    let token = begin(&db).await;
    let release = call("release", &token, "'gone'");
    db.execute(&release).await;
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    tx.execute(db.sql("insert into {}.effect (key) values ('stale')")).await.unwrap();
    let sql = call("record_step", &token, "'ledger', null, ''");
    assert!(tx.execute(db.sql(&sql)).await.is_err());
    tx.commit().await.unwrap(); // rolls back: the transaction is aborted
    assert_eq!(db.effects().await, 0);
}

#[tokio::test]
async fn arguments_outside_their_limits_are_refused_in_words_and_record_nothing() {
    let db = TestDb::new().await;
    let token = begin(&db).await;
    record(&db, &token, "charge", "1").await;
    let long = "x".repeat(256);
    for (rest, words) in [
        ("'', null, ''".to_owned(), "step is empty; it takes 1 to 255 bytes"),
        ("null, null, ''".to_owned(), "step is empty; it takes 1 to 255 bytes"),
        (format!("'{long}', null, ''"), "step has 256 bytes; the limit is 255"),
        (r"E'a\nb', null, ''".to_owned(), "step contains a control character"),
        ("'n', 'short', ''".to_owned(), "definition has 5 bytes; it takes the 36 that"),
        ("'n', null, null".to_owned(), "output is null; it takes bytes"),
        ("'charge', null, '2'".to_owned(), "a step of this name is recorded already"),
    ] {
        let (code, told) = refused(&db, &call("record_step", &token, &rest)).await;
        assert_eq!(code, "IK001", "{rest}");
        assert!(told.starts_with(words), "{told}");
    }
    let longest = format!("'{}', {{}}.fingerprint('x'), ''", "x".repeat(255));
    db.execute(&call("record_step", &token, &longest)).await;
    assert_eq!(recorded(&db, &token).await, format!("charge=1 {}=", "x".repeat(255)));
}

#[tokio::test]
async fn outputs_and_progress_have_a_limit_that_is_checked_before_any_lock() {
    let db = TestDb::new().await;
    let token = begin(&db).await;
    let output = |bytes: usize| format!("'n', null, repeat('x', {bytes})::bytea");
    let progress = |bytes: usize| format!("repeat('x', {bytes})::bytea");
    // A call that reached the lock would fail with "claim lost".
    let mut conn = db.conn().await;
    let mut holder = conn.begin().await.unwrap();
    let lock = db.sql("select pg_advisory_xact_lock({}._lock_id('test/scope', 'k'))");
    holder.execute(lock).await.unwrap();
    let nobody = "00000000-0000-0000-0000-000000000000";
    for (function, rest, words) in [
        ("record_step", output(1_048_577), "output has 1048577 bytes; the limit is 1048576"),
        ("_report_progress", progress(65_537), "progress has 65537 bytes; the limit is 65536"),
    ] {
        let (code, told) = refused(&db, &call(function, nobody, &rest)).await;
        assert_eq!((code.as_str(), told.as_str()), ("IK001", words));
        let (code, _) = refused(&db, &call(function, nobody, &rest.replace('7', "6"))).await;
        assert_eq!(code, "IK002", "{function}");
    }
    holder.rollback().await.unwrap();
    db.execute(&call("record_step", &token, &output(1_048_576))).await;
    db.execute(&call("_report_progress", &token, &progress(65_536))).await;
    let kept = status(&db, "octet_length(progress)").await.unwrap();
    assert_eq!((kept.as_str(), recorded(&db, &token).await.len()), ("65536", 1_048_578));
}

#[tokio::test]
async fn an_error_too_long_to_keep_is_cut_and_releases_all_the_same() {
    let db = TestDb::new().await;
    for function in ["_lapse", "release"] {
        db.execute("delete from {}.idempotency_keys").await;
        let token = begin(&db).await;
        let rest = if function == "_lapse" { ", false" } else { "" };
        // Letters of three bytes: the text is cut between letters.
        db.execute(&call(function, &token, &format!("repeat('€', 5000){rest}"))).await;
        assert_eq!(status(&db, "last_error").await.unwrap(), "€".repeat(1000), "{function}");
        let claim = if function == "_lapse" { "live" } else { "released" };
        assert_eq!(status(&db, "claim").await.as_deref(), Some(claim));
    }
}

#[tokio::test]
async fn an_error_that_was_kept_stays_until_there_is_another() {
    let db = TestDb::new().await;
    let token = begin(&db).await;
    record(&db, &token, "charge", "1").await;
    db.execute(&call("_report_progress", &token, "'2'")).await;
    db.execute(&call("_lapse", &token, "'first', false")).await;
    assert_eq!(status(&db, "last_error").await.unwrap(), "first");
    let token: String = db.ask("select token::text from {}.idempotency_keys").await;
    db.execute(&call("release", &token, "")).await;
    assert_eq!(
        status(&db, "last_error || convert_from(progress, 'UTF8')").await.unwrap(),
        "first2"
    );
    let token = begin(&db).await;
    assert_eq!(
        status(&db, "last_error").await.unwrap(),
        "first",
        "kept while the next attempt runs"
    );
    db.execute(&call("release", &token, "'second'")).await;
    assert_eq!(status(&db, "last_error").await.unwrap(), "second");
}

#[tokio::test]
async fn nothing_of_a_former_life_is_visible_in_the_next() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    for by_hand in [false, true] {
        let token = begin(&db).await;
        record(&db, &token, "charge", "former").await;
        record(&db, &token, "mail", "former").await;
        db.execute(&call("_lapse", &token, "\'former\', false")).await;
        db.advance(25 * 60 * MINUTE).await; // forgotten
        if by_hand {
            db.execute("delete from {}.idempotency_keys").await;
            assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 2, "left behind");
        }
        assert_eq!(status(&db, "steps").await, None);
        let token = begin(&db).await;
        assert_eq!(recorded(&db, &token).await, "");
        assert_eq!(status(&db, "steps").await.unwrap(), "{}");
        assert_eq!(status(&db, "coalesce(last_error, progress::text)").await, None);
        record(&db, &token, "charge", "new").await;
        assert_eq!(recorded(&db, &token).await, "charge=new", "by hand: {by_hand}");
        assert_eq!(status(&db, "steps").await.unwrap(), "{charge}", "by hand: {by_hand}");
        db.advance(25 * 60 * MINUTE).await;
    }
}

#[tokio::test]
async fn the_reaper_takes_the_steps_with_their_keys_and_no_others() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let begin = "select token::text from {}._begin('test/scope', 'KEY', null, MS, null, 1, 0, 'retry', null, false)";
    for (key, ms) in [("a", 1000), ("b", 1000), ("c", 90_000_000)] {
        let token: String = db.ask(&begin.replace("KEY", key).replace("MS", &ms.to_string())).await;
        for name in ["one", "two"] {
            let sql = format!(
                "select from {{}}.record_step('test/scope', '{key}', '{token}', '{name}', null, '')"
            );
            db.execute(&sql).await;
        }
    }
    db.advance(MINUTE).await;
    let left = "select string_agg(distinct key, '') || count(*) from {}.steps";
    // One transaction: after a rollback, keys and steps are back.
    let mut conn = db.conn().await;
    let mut tx = conn.begin().await.unwrap();
    tx.execute(db.sql("select {}._reap_batch(1000, null)")).await.unwrap();
    assert_eq!(tx.fetch_one(db.sql(left)).await.unwrap().get::<String, _>(0), "c2");
    tx.rollback().await.unwrap();
    assert_eq!(db.ask::<String>(left).await, "abc6");
    db.execute("call {}.reap()").await;
    assert_eq!(db.ask::<String>(left).await, "c2");
}

#[tokio::test]
async fn steps_notes_and_releases_are_hot_updates() {
    let db = TestDb::alone().await;
    let token = begin(&db).await;
    for n in 0..10 {
        record(&db, &token, &format!("step {n}"), "1").await;
        db.execute(&call("_report_progress", &token, &format!("'{n}'"))).await;
    }
    db.execute(&call("release", &token, "'no'")).await;
    let token = begin(&db).await; // released with steps: the same row continues
    db.execute(&call("complete", &token, "")).await;
    db.until(
        "select n_tup_upd >= 23 and n_tup_hot_upd = n_tup_upd from pg_stat_user_tables
          where relid = '{}.idempotency_keys'::regclass",
    )
    .await;
}

#[tokio::test]
async fn roles_have_just_the_rights_that_leased_work_needs() {
    let db = with_roles().await;
    db.stop_clock().await;
    // The stopped clock is a table of the test.
    for name in ["app", "reaper", "auditor"] {
        db.execute(&format!("grant select on {{}}.test_clock to {}", role(&db, name))).await;
    }
    let mut app = conn_as(&db, "app").await;
    let token: String = sqlx::query_scalar(db.sql(BEGIN)).fetch_one(&mut app).await.unwrap();
    for (function, rest) in [
        ("record_step", "'charge', null, '1'"),
        ("recorded_steps", ""),
        ("_report_progress", "'1'"),
        ("_lapse", "'no', false"),
    ] {
        app.execute(db.sql(&call(function, &token, rest))).await.expect(function);
    }
    let token: String = db.ask("select token::text from {}.idempotency_keys").await;
    app.execute(db.sql(&call("release", &token, "'no'"))).await.expect("release");
    app.execute(db.sql("select from {}.operation_status('test/scope', 'k')")).await.unwrap();
    let mut auditor = conn_as(&db, "auditor").await;
    for sql in ["select output from {}.steps", "select from {}.operation_status('test/scope', 'k')"]
    {
        let error = auditor.execute(db.sql(sql)).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{sql}");
    }
    db.advance(25 * 60 * MINUTE).await;
    conn_as(&db, "reaper").await.execute(db.sql("call {}.reap()")).await.unwrap();
    assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 0);
    // Forgotten and begun again in the old row: its steps are deleted too.
    let token: String = sqlx::query_scalar(db.sql(BEGIN)).fetch_one(&mut app).await.unwrap();
    app.execute(db.sql(&call("record_step", &token, "'charge', null, '1'"))).await.unwrap();
    db.advance(25 * 60 * MINUTE).await;
    app.execute(db.sql(BEGIN)).await.unwrap();
    assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 0);
}
