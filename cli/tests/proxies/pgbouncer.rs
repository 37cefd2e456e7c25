//! Debian's PgBouncer, 1.18, which does not track prepared statements.

use std::process::{Command, Stdio};

use pgonce::ErrorKind;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::calls;
use crate::process::{Process, folder, installed};
use crate::stage::Stage;
use crate::storm::{CLIENTS, storm};

async fn pgbouncer(stage: &Stage, mode: &str, sessions: usize) -> Process {
    let dir = folder(&stage.server);
    let server = stage.server.connect_options();
    let (here, socket) = (dir.display(), server.get_socket().unwrap().display());
    let settings = format!(
        "[databases]
         postgres = host={socket} port={} dbname=postgres user=postgres
         [pgbouncer]
         listen_addr =
         listen_port = 5432
         unix_socket_dir = {here}
         auth_type = any
         pool_mode = {mode}
         default_pool_size = {sessions}
         query_wait_timeout = 30
         ignore_startup_parameters = extra_float_digits",
        server.get_port()
    );
    let path = dir.join("pgbouncer.ini");
    std::fs::write(&path, settings.replace("\n         ", "\n")).unwrap();
    let program = installed("/usr/sbin/pgbouncer", "pgbouncer");
    Process::start("PgBouncer", dir, &program, &[path.to_str().unwrap()]).await
}

/// Runs `pgonce` as a deployment does.
fn command(process: &Process, arguments: &[&str]) -> Command {
    let socket = process.options().get_socket().unwrap().display().to_string().replace('/', "%2F");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgonce"));
    let url = format!("postgres:///postgres?host={socket}&port=5432&user=postgres&sslmode=disable");
    command.args(arguments).env("DATABASE_URL", url);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn in_transaction_mode_eight_migrate_at_once() {
    let stage = Stage::new(&[]).await;
    let process = pgbouncer(&stage, "transaction", 4).await;
    let migrate = |_| command(&process, &["migrate"]).stdout(Stdio::null()).spawn().unwrap();
    let migrations: Vec<_> = (0..8).map(migrate).collect();
    for mut migration in migrations {
        assert!(migration.wait().unwrap().success());
    }
    stage.once.check(&stage.direct).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_transaction_mode_check_refuses_and_says_why() {
    let stage = Stage::ready(&[]).await;
    // With one server session for all clients, and with several.
    for sessions in [1, 2, 20] {
        let process = pgbouncer(&stage, "transaction", sessions).await;
        let pool = PgPool::connect_lazy_with(process.options());
        let error = stage.once.check(&pool).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
        for command in [command(&process, &["check"]), command(&process, &["doctor"])] {
            let told = { command }.output().unwrap();
            let told =
                [told.stdout, told.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
            assert!(
                told.contains("PgBouncer 1.21 or later with max_prepared_statements"),
                "{told}"
            );
        }
        let one = PgPoolOptions::new().max_connections(1).connect_lazy_with(process.options());
        stage.once.check(&one).await.expect("one connection shows no swap");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_refuses_a_pooler_that_others_use_at_the_same_time() {
    let stage = Stage::ready(&[]).await;
    let process = pgbouncer(&stage, "transaction", 4).await;
    let busy = PgPool::connect_lazy_with(process.options());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let busy = busy.clone();
        clients.spawn(async move {
            loop {
                // These clients' statements are swapped too.
                let _ = sqlx::query("select 3").execute(&busy).await;
            }
        });
    }
    for _ in 0..20 {
        let pool = PgPool::connect_lazy_with(process.options());
        let error = stage.once.check(&pool).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
        pool.close().await;
    }
    clients.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_transaction_mode_nothing_takes_effect_twice() {
    let stage = Stage::ready(&[]).await;
    let mut caught = 0;
    for round in ["one", "two", "three", "four", "five"] {
        // New sessions, where every statement name is free again.
        let process = pgbouncer(&stage, "transaction", CLIENTS).await;
        let ends = storm(&stage, &process.options(), round).await;
        let of_inserts =
            ends.errors.iter().filter(|(error, _)| error.contains("from the key's INSERT"));
        caught += of_inserts.map(|(_, count)| count).sum::<usize>();
    }
    assert!(caught > 0, "no INSERT was swapped");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_session_mode_everything_works() {
    let stage = Stage::ready(&[]).await;
    let process = pgbouncer(&stage, "session", 40).await;
    let pool = PgPool::connect_lazy_with(process.options());
    stage.once.check(&pool).await.unwrap();
    calls::all_work(&stage, &pool).await;
    pool.close().await;
    storm(&stage, &process.options(), "storm").await.are_all_answers();
}
