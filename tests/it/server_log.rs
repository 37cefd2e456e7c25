//! No statement's text and no error's DETAIL contains a caller's value. So no value is in the server's log, even if it
//! has all statements without parameters. (`secrets.rs` checks the client's log.)

use std::time::Duration;

use pgonce::{Failure, Fingerprint, Inbox, Lease, Operation, Response, Work};
use pgonce_testing::{Options, Throwaway};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tokio::task::JoinSet;

use crate::secrets::{CANARY, exercise_the_rest, with_digits};
use crate::support::db::{PATIENCE, TestDb, effect, waits};

pub async fn logging(settings: &[(&str, &str)]) -> (Throwaway, TestDb) {
    let to_file =
        [("logging_collector", "on"), ("log_filename", "server.log"), ("log_file_mode", "0644")];
    let settings = to_file.iter().chain(settings);
    let options = settings
        .fold(Options::new().fast(), |options, &(name, value)| options.setting(name, value));
    let server = Throwaway::start(&options).await.expect("a PostgreSQL");
    let db = TestDb::create("alone", server.connect_options(), 10).await;
    (server, db)
}

pub async fn logged(db: &TestDb, server: &Throwaway) -> String {
    db.execute("do $$ begin raise log 'select ''the end'''; end $$").await;
    let file = server.data_dir().join("log/server.log");
    let reading = async {
        loop {
            let log = std::fs::read_to_string(&file).unwrap_or_default();
            if log.contains("select 'the end'") {
                return log;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("a log")
}

fn operation(key: &str) -> Operation {
    let op = Operation::new(format!("scope {CANARY}"), format!("{key} {CANARY}")).unwrap();
    op.fingerprint(Fingerprint::of_bytes(CANARY))
}

/// Eight concurrent calls with one key, for each way to run.
async fn duplicates(db: &TestDb, pool: &PgPool, name: &str) {
    let mut calls = JoinSet::new();
    for number in 0..40 {
        let (once, pool, schema) = (db.once.clone(), pool.clone(), db.schema.clone());
        let way = ["run", "optimistic", "verbs", "leased", "inbox"][number % 5];
        let op = operation(&format!("{name} {way}")).policy(waits(PATIENCE));
        calls.spawn(async move {
            let work = async |tx: &mut PgConnection| effect(tx, &schema, CANARY).await;
            // The results do not matter here.
            match way {
                "run" => drop(once.run(&pool, &op, work).await),
                "optimistic" => drop(once.run(&pool, &op.optimistic(), work).await),
                "verbs" => {
                    let mut tx = pool.begin().await.unwrap();
                    if let Ok(pgonce::Begin::Started(claim)) = once.begin(&mut tx, &op).await {
                        drop(work(&mut tx).await);
                        drop(claim.complete(&mut tx, Response::bytes(CANARY)).await);
                    }
                    drop(tx.commit().await);
                }
                "leased" => {
                    let lease = Lease::new(Duration::from_secs(60)).unwrap();
                    let work = async |work: &mut Work| {
                        work.step(CANARY, async || Ok::<_, Failure>(CANARY.to_owned())).await
                    };
                    drop(once.run_leased(&pool, &op, lease, work).await);
                }
                _ => {
                    let inbox = Inbox::new(&once, format!("consumer {CANARY}")).unwrap();
                    let mut tx = pool.begin().await.unwrap();
                    drop(inbox.receive(&mut tx, op.key().as_str()).await);
                    drop(tx.commit().await);
                }
            }
        });
    }
    calls.join_all().await;
}

/// A call waits for another one for long enough to be logged.
async fn a_wait(db: &TestDb) {
    let mut holder = db.pool.begin().await.unwrap();
    drop(db.once.begin(&mut holder, &operation("waited for")).await.unwrap());
    let patient = operation("waited for").policy(waits(Duration::from_millis(200)));
    let work = async |tx: &mut PgConnection| effect(tx, &db.schema, CANARY).await;
    drop(db.once.run(&db.pool, &patient, work).await.unwrap_err());
    holder.rollback().await.unwrap();
}

/// What the functions refuse when called without the library's checks.
async fn refused(db: &TestDb) {
    let (long, control) = (CANARY.repeat(30), format!("{CANARY}\n"));
    for (scope, key, fingerprint, retention) in [
        (&long, CANARY, CANARY, 1000_i64),
        (&control, CANARY, CANARY, 1000),
        (&CANARY.to_owned(), long.as_str(), CANARY, 1000),
        (&CANARY.to_owned(), control.as_str(), CANARY, 1000),
        (&CANARY.to_owned(), CANARY, CANARY, 1000), // no fingerprint has this length
        (&CANARY.to_owned(), CANARY, &CANARY.repeat(4)[..36], -1),
    ] {
        let begin = db.sql("select {}.begin_operation($1, $2, $3, $4, 0)");
        let begin = sqlx::query(begin).bind(scope).bind(key).bind(fingerprint.as_bytes());
        let told = begin.bind(retention).execute(&db.pool).await.unwrap_err();
        let told = told.as_database_error().and_then(|error| error.code()).unwrap();
        assert_eq!(told, "IK001", "{scope}, {key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_is_in_any_text_that_the_server_logs() {
    let (server, db) = logging(&[
        ("log_statement", "all"),
        ("log_parameter_max_length", "0"),
        ("log_error_verbosity", "verbose"),
        ("deadlock_timeout", "10ms"),
        ("log_lock_waits", "on"),
    ])
    .await;
    exercise_the_rest(&db).await;
    crate::web::secrets::exercise_plainly(&db, CANARY).await;
    for isolation in ["read committed", "serializable"] {
        let options = db.options.clone().options([("default_transaction_isolation", isolation)]);
        let pool = PgPoolOptions::new().max_connections(20).connect_with(options).await.unwrap();
        duplicates(&db, &pool, isolation).await;
        pool.close().await;
    }
    a_wait(&db).await;
    refused(&db).await;
    db.execute("select 'a literal is seen'").await;
    let log = logged(&db, &server).await;
    for seen in [
        "select 'a literal is seen'",
        ".begin_operation(",
        "insert into",
        "call ",
        "ERROR:",
        "DETAIL:",
        "IK001",
        "still waiting for",
    ] {
        assert!(log.to_lowercase().contains(&seen.to_lowercase()), "no {seen} in the log");
    }
    assert_eq!(log.lines().find(|line| line.contains(CANARY)), None);
    assert_eq!(with_digits(&log), None);
}
