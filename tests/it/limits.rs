//! Bad input gives a typed error that names field and limit. Nothing runs, nothing is lost.

use std::time::Duration;

use pgonce::{Error, ErrorKind, Failure, Fingerprint, Key, Lease, Operation};
use pgonce::{PgOnce, Reaper, Recovery, RunError, SchemaName, Scope, Work};
use proptest::prelude::*;

use crate::support::db::{TestDb, kept_for, lasting, op, started, word};

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(31_557_600);

/// Invalid names, with a word of the error message.
fn bad_names() -> Vec<(String, &'static str)> {
    vec![
        (String::new(), "empty"),
        (" ".into(), "blank"),
        ("\u{a0}\u{3000} ".into(), "blank"),
        ("a\tb".into(), "control"),
        ("a\nb".into(), "control"),
        ("a\u{7f}".into(), "control"),
        ("a\u{85}".into(), "control"),
        ("x".repeat(256), "256 bytes; the limit is 255"),
        ("\u{e9}".repeat(128), "256 bytes"),
    ]
}

#[tokio::test]
async fn bad_keys_and_scopes_are_refused_in_rust_and_in_sql_alike() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    for (name, word) in bad_names() {
        for field in ["key", "scope"] {
            let error = match field {
                "key" => Key::new(name.as_str()).unwrap_err(),
                _ => Scope::new(name.as_str()).unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let message = error.to_string();
            assert!(message.contains(field) && message.contains(word), "{message}");
            let (scope, key) =
                if field == "key" { ("s", name.as_str()) } else { (name.as_str(), "k") };
            let raised = sqlx::query(db.sql("select {}.begin_operation($1, $2)"))
                .bind(scope)
                .bind(key)
                .execute(&mut conn)
                .await
                .unwrap_err();
            let raised = raised.as_database_error().unwrap();
            assert_eq!(raised.code().unwrap(), "IK001");
            assert_eq!(raised.message(), message, "the two must say the same");
        }
    }
    let rows: i64 = db.ask("select count(*) from {}.idempotency_keys").await;
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn bad_names_of_steps_are_refused_before_their_work() {
    let db = TestDb::new().await;
    let op = op("k");
    let run = db.once.run_leased(
        &db.pool,
        &op,
        Lease::new(60 * SECOND).unwrap(),
        async |work: &mut Work| {
            for (name, word) in bad_names() {
                let step = async || -> Result<(), Failure> { panic!("it was done") };
                let failure = work.step(name.as_str(), step).await.unwrap_err();
                let error =
                    failure.error().and_then(|error| error.downcast_ref::<Error>()).unwrap();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                let message = error.to_string();
                assert!(message.contains("step") && message.contains(word), "{message}");
            }
            Ok::<_, Failure>(())
        },
    );
    run.await.unwrap();
}

#[test]
fn settings_of_background_tasks_are_refused_where_they_are_written() {
    let once = PgOnce::new();
    let (reaper, ms) = (|| Reaper::new(&once), Duration::from_millis);
    let recovery = || Recovery::new(&once, "test/%").unwrap();
    let (no_time, too_long) = (Duration::ZERO, Duration::from_secs(86_401));
    let shares = [f64::NAN, f64::NEG_INFINITY, 0.0, 0.009, 1.01, f64::INFINITY];
    let mut refused = Vec::from(shares.map(|share| reaper().share(share).err()));
    for time in [no_time, too_long] {
        refused.push(reaper().interval(time).err());
        refused.push(recovery().interval(time).err());
        refused.push(recovery().pauses(time, ms(1)).err());
        refused.push(recovery().pauses(ms(1), time).err());
    }
    refused.push(recovery().pauses(ms(2), ms(1)).err());
    refused.push(recovery().time_limit(no_time).err());
    refused.extend([0, 1001].map(|count| recovery().concurrency(count).err()));
    for error in refused {
        let error = error.expect("it must be refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("it takes"), "{error}");
    }
    reaper().share(0.01).unwrap().share(1.0).unwrap().interval(ms(1)).unwrap();
    recovery().concurrency(1000).unwrap().pauses(ms(1), ms(1)).unwrap().time_limit(ms(1)).unwrap();
}

#[tokio::test]
async fn a_nul_byte_is_refused_before_and_by_the_database() {
    let db = TestDb::new().await;
    assert_eq!(Key::new("a\0b").unwrap_err().kind(), ErrorKind::InvalidInput);
    let mut conn = db.conn().await;
    let raised = sqlx::query(db.sql("select {}.begin_operation('s', $1)"))
        .bind("a\0b")
        .execute(&mut conn)
        .await;
    assert_eq!(raised.unwrap_err().as_database_error().unwrap().code().unwrap(), "22021");
}

#[tokio::test]
async fn the_longest_names_work() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let longest = Operation::new("s".repeat(255), "\u{1f511}".repeat(63)).unwrap();
    assert_eq!(word(&db.once.begin(&mut conn, &longest).await.unwrap()), "started");
    let record =
        db.once.inspect(&mut conn, longest.scope(), longest.key()).await.unwrap().unwrap().record;
    assert_eq!(record.attempt, 1);
}

#[tokio::test]
async fn an_extension_outside_its_range_is_refused() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let minute = 60 * SECOND;
    let mut claim = db.lease(&op("k").policy(kept_for(minute)), SECOND).await;
    let error = claim.extend(&db.pool, lasting(Duration::MAX)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    claim.release(&mut conn).await.unwrap();
}

#[tokio::test]
async fn the_ends_of_the_ranges_work() {
    let db = TestDb::new().await;
    db.stop_clock().await;
    let mut conn = db.conn().await;
    let ends = [
        (op("shortest").policy(kept_for(Duration::from_millis(1))), Duration::from_millis(1)),
        (op("longest").policy(kept_for(10 * YEAR)), 10 * YEAR),
    ];
    for (op, lease) in ends {
        let claim = started(db.once.begin_leased(&db.pool, &op, lasting(lease)).await.unwrap());
        claim.complete(&mut conn, pgonce::Response::empty()).await.unwrap();
        assert_eq!(word(&db.once.begin(&mut conn, &op).await.unwrap()), "replay");
    }
}

#[tokio::test]
async fn other_arguments_of_the_sql_functions_are_checked() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    for (call, word) in [
        ("select {}.begin_operation('s', 'k', p_on_lapse => 'explode')", "on_lapse"),
        ("select {}.begin_operation('s', 'k', p_on_lapse => null)", "on_lapse"),
        (
            "select {}.begin_operation('s', 'k', p_fingerprint => sha256('x'))",
            "fingerprint has 32 bytes",
        ),
        ("select {}.begin_operation('s', 'k', p_retention_ms => null)", "retention_ms is null"),
        ("select {}.begin_operation('s', 'k', p_wait_ms => -1)", "wait_ms is -1"),
        ("select {}.begin_operation('s', 'k', p_wait_ms => 9223372036854775807)", "wait_ms"),
        ("call {}.begin_leased('s', 'k', gen_random_uuid(), -5)", "lease_ms is -5"),
        ("select {}.begin_operation(null, 'k')", "scope is empty"),
        ("select {}.begin_operation('s', null)", "key is empty"),
        ("call {}.reap(null)", "batch_size is null"),
        ("select {}.fingerprint('a', null, 'b')", "part of the fingerprint is null"),
    ] {
        let error = sqlx::query(db.sql(call)).execute(&mut conn).await.expect_err(call);
        let raised = error.as_database_error().unwrap();
        assert_eq!(raised.code().unwrap(), "IK001", "{call}: {raised}");
        assert!(raised.message().contains(word), "{call}: {raised}");
    }
}

#[tokio::test]
async fn planted_rows_are_reported_and_neither_replayed_nor_run() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let planted = [
        "status = 9",
        "expires_at = 'infinity'",
        "lease_expires_at = '-infinity'",
        "lease_expires_at = null", // of a held claim: "no lease" must not look like attempts used up
    ];
    for (n, assignment) in planted.iter().enumerate() {
        let op = op(&format!("k{n}"));
        drop(db.lease(&op, SECOND).await);
        db.execute(&format!("update {{}}.idempotency_keys set {assignment} where key = 'k{n}'"))
            .await;
        let error = db.once.begin(&mut conn, &op).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{assignment}");
        let inspected = db.once.inspect(&mut conn, op.scope(), op.key()).await;
        match n {
            0 => assert_eq!(inspected.unwrap().unwrap().record.status, pgonce::Status::Corrupt),
            3 => drop(inspected.unwrap()),
            _ => assert_eq!(inspected.unwrap_err().kind(), ErrorKind::Corrupt),
        }
    }
}

#[test]
fn schema_names_that_would_need_quoting_are_refused() {
    for name in ["", "a\"; drop table x;--", "Upper", "1st", "pg_catalogue", "a b", "\u{e9}", "a.b"]
    {
        let error = SchemaName::new(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
    }
    assert!(SchemaName::new("x".repeat(64)).is_err());
    assert!(SchemaName::new("x".repeat(63)).is_ok());
}

proptest! {
    /// proptest prints the seed and the smallest failing input.
    #[test]
    fn fingerprints_of_different_parts_differ(a: Vec<Vec<u8>>, b: Vec<Vec<u8>>) {
        prop_assert_eq!(a == b, Fingerprint::parts(&a) == Fingerprint::parts(&b));
        prop_assert_eq!(a == b, Key::derive(&a) == Key::derive(&b));
    }
}

#[tokio::test]
async fn rust_and_sql_agree_on_every_character_and_on_fingerprints() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    // Every control and white-space character, and their neighbours.
    let characters = (1..0x3100u32).filter_map(char::from_u32).filter(|c| {
        c.is_control()
            || c.is_whitespace()
            || matches!(*c as u32, 0x80..=0xff | 0x2000..=0x2070 | 0x3000..=0x3002)
    });
    for c in characters {
        let name = c.to_string();
        let sql = sqlx::query(db.sql("select {}._check_name('key', $1)"))
            .bind(&name)
            .execute(&mut conn)
            .await;
        assert_eq!(Key::new(name.as_str()).is_ok(), sql.is_ok(), "U+{:04X}", c as u32);
    }
    for parts in [vec![], vec![vec![]], vec![b"ab".to_vec(), b"c".to_vec()], vec![vec![0; 3000]]] {
        let sql: Vec<u8> = sqlx::query_scalar(db.sql("select {}.fingerprint(variadic $1)"))
            .bind(&parts)
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(sql, Fingerprint::parts(&parts).as_bytes());
    }
}

// fits_begin is the short cut, check_begin the rule. Each argument in turn gets values within and outside of its
// limits.
#[tokio::test]
async fn begin_takes_the_short_cut_for_what_is_within_the_limits_and_for_nothing_else() {
    const USUAL: [&str; 8] = ["'s'", "'k'", "null", "86400000", "null", "0", "'retry'", "null"];
    let (a_name, no_name) =
        (["'~ !'", "repeat('a', 255)"], ["null", "''", "' '", "E'a\\n'", "repeat('a', 256)"]);
    let cases: [(&[&str], &[&str]); 8] = [
        (&a_name, &no_name),
        (&a_name, &no_name),
        (&["null", "decode(repeat('00', 36), 'hex')"], &["''", "decode(repeat('00', 35), 'hex')"]),
        (&["1", "315576000000"], &["null", "0", "-1", "315576000001"]),
        (&["null", "1", "86400000"], &["0", "86400001"]),
        (&["0", "3600000"], &["null", "-1", "3600001"]),
        (&["'hold'", "'retry'"], &["null", "''", "'HOLD'"]),
        (&["null", "1", "2147483647"], &["0", "-1"]),
    ];
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    for (place, (within, outside)) in cases.into_iter().enumerate() {
        for (value, fits) in within
            .iter()
            .map(|value| (value, true))
            .chain(outside.iter().map(|value| (value, false)))
        {
            let mut arguments = USUAL;
            arguments[place] = value;
            let (before, after) = arguments.split_at(4); // the token comes between them
            let all = [before, &["null"], after].concat().join(", ");
            let arguments = arguments.join(", ");
            let short: Option<bool> =
                sqlx::query_scalar(db.sql(&format!("select {{}}._fits_begin({arguments})")))
                    .fetch_one(&mut conn)
                    .await
                    .unwrap();
            assert_eq!(short == Some(true), fits, "fits_begin({arguments})");
            let whole = sqlx::query(db.sql(&format!("select {{}}._check_begin({arguments})")));
            assert_eq!(whole.execute(&mut conn).await.is_ok(), fits, "check_begin({arguments})");
            // begin uses both.
            let begin = format!("begin; select {{}}._begin({all}, false); rollback");
            let begin = sqlx::raw_sql(db.sql(&begin)).execute(&mut conn).await;
            assert_eq!(begin.is_ok(), fits, "begin({arguments})");
            sqlx::raw_sql("rollback").execute(&mut conn).await.unwrap();
        }
    }
}

#[tokio::test]
async fn settings_and_collations_of_the_session_do_not_matter() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    sqlx::raw_sql("set standard_conforming_strings = off; set escape_string_warning = off; set bytea_output = 'escape'; set datestyle = 'German'; set timezone = 'Europe/Berlin'")
        .execute(&mut conn)
        .await
        .unwrap();
    db.execute(
        "create table {}.named (k text collate \"POSIX\"); insert into {}.named values ('k')",
    )
    .await;
    let answer: String = sqlx::query_scalar(db.sql(
        "select b.answer from {}.named, {}.begin_operation('s', named.k, {}.fingerprint('x')) b",
    ))
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert_eq!(answer, "started");
    for name in ["a\tb", "\u{a0}"] {
        let raised = sqlx::query(db.sql("select {}.begin_operation('s', $1)"))
            .bind(name)
            .execute(&mut conn)
            .await;
        assert_eq!(raised.unwrap_err().as_database_error().unwrap().code().unwrap(), "IK001");
    }
    let keeps: i64 = sqlx::query_scalar(
        db.sql("select count(*) from {}.inspect_key('s', (select k from {}.named))"),
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert_eq!(keeps, 1);
}

#[tokio::test]
async fn leases_that_make_no_sense_are_refused_when_built() {
    let refused = |lease: Result<Lease, Error>| {
        assert_eq!(lease.unwrap_err().kind(), ErrorKind::InvalidInput);
    };
    refused(Lease::new(Duration::ZERO));
    refused(Lease::new(SECOND).unwrap().heartbeat(Duration::ZERO));
    refused(Lease::new(SECOND).unwrap().heartbeat(SECOND));
    // Longer than the retention, which only begin knows.
    let db = TestDb::new().await;
    let op = op("k").policy(kept_for(SECOND));
    let run = db.once.run_leased(
        &db.pool,
        &op,
        Lease::new(60 * SECOND).unwrap(),
        async |_: &mut Work| Ok::<_, Failure>(()),
    );
    let error = run.await.unwrap_err();
    assert!(
        matches!(&error, RunError::Protocol(e) if e.kind() == ErrorKind::InvalidInput),
        "{error:?}"
    );
}
