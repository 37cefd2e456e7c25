//! Dump and restore with PostgreSQL's programs: pgonce and the user's tables beside it work after a restore.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgonce::{Failure, Lease, Response, Work};
use pgonce_testing::{Options, Throwaway};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::process::Command;

use crate::support::db::{PATIENCE, TestDb, effect, lasting, op, server, started, word};

/// The client programs of one version.
struct Programs {
    /// `None`: those on PATH.
    folder: Option<PathBuf>,
    major: u32,
}

impl Programs {
    /// All programs that can dump this server: the server's own or those on PATH, and those of version 18 in
    /// PGONCE_TEST_PG18_BIN. A pg_dump cannot dump a newer server.
    async fn fitting(server: &Throwaway) -> Vec<Self> {
        let major = server_major(&server.connect_options()).await;
        let beside = server.bin_dir().join("pg_dump").exists();
        let own = Self::of(beside.then(|| server.bin_dir().to_owned())).await;
        let of_18 = match std::env::var_os("PGONCE_TEST_PG18_BIN") {
            Some(folder) => {
                let programs = Self::of(Some(folder.into())).await;
                Some(programs.expect("a pg_dump where PGONCE_TEST_PG18_BIN says"))
            }
            None => None,
        };
        let fitting: Vec<_> =
            own.into_iter().chain(of_18).filter(|these| these.major >= major).collect();
        assert!(
            !fitting.is_empty(),
            "no pg_dump of version {major} or newer, neither in {} nor on PATH; install one, or set \
             PGONCE_TEST_PG18_BIN to a folder with the client programs of 18 (.ci/lib: clients_18)",
            server.bin_dir().display()
        );
        fitting
    }

    /// `None` if there is no pg_dump.
    async fn of(folder: Option<PathBuf>) -> Option<Self> {
        let mut programs = Self { folder, major: 0 };
        let said = programs.command("pg_dump").arg("--version").output().await.ok()?;
        let said = String::from_utf8(said.stdout).unwrap();
        let version = said.split_whitespace().nth(2).expect("pg_dump (PostgreSQL) 15.18 …");
        programs.major = version.split('.').next().unwrap().parse().expect("a version");
        Some(programs)
    }

    fn command(&self, name: &str) -> Command {
        let program = self.folder.as_ref().map_or_else(|| name.into(), |folder| folder.join(name));
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program on a database; it must succeed. Returns its output and its warnings.
    async fn run(&self, name: &str, options: &PgConnectOptions, args: &[&str]) -> (String, String) {
        let mut command = self.command(name);
        command.arg("-h").arg(options.get_socket().expect("a socket"));
        command.args(["-p", "5432", "-U", "postgres"]);
        if name != "pg_dumpall" {
            command.args(["-d", options.get_database().expect("a database")]);
        }
        let ended = command.args(args).output().await.expect(name);
        let complaints = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.success(), "{name} {args:?}: {complaints}");
        (String::from_utf8(ended.stdout).unwrap(), complaints)
    }

    /// Restores a plain dump as people do, without ON_ERROR_STOP. It must print nothing.
    async fn restore(&self, into: &PgConnectOptions, dump: &str, more: &[&str]) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        // Programs from 17 on set a parameter that servers before 17 do not have.
        let known = server_major(into).await >= 17;
        let dump =
            if known { dump.to_owned() } else { dump.replace("SET transaction_timeout = 0;", "") };
        std::io::Write::write_all(&mut file, dump.as_bytes()).unwrap();
        let file = path(file.path());
        let (_, complaints) =
            self.run("psql", into, &[&["-X", "-q", "-f", file], more].concat()).await;
        assert_eq!(complaints, "");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

async fn server_major(options: &PgConnectOptions) -> u32 {
    let mut conn = PgConnection::connect_with(options).await.unwrap();
    let asked =
        sqlx::query_scalar::<_, i32>("select current_setting('server_version_num')::integer");
    u32::try_from(asked.fetch_one(&mut conn).await.unwrap()).unwrap() / 10_000
}

async fn database(server: &Throwaway) -> PgConnectOptions {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name = format!("dump_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
    let options = server.connect_options();
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    let create = AssertSqlSafe(format!("create database {name} template template0"));
    sqlx::raw_sql(create).execute(&mut conn).await.unwrap();
    options.database(&name)
}

fn lease() -> Lease {
    Lease::new(PATIENCE).unwrap()
}

/// A leased operation that does a step and then fails.
async fn half_done(db: &TestDb, may_do_the_step: bool) -> bool {
    let work = async |work: &mut Work| {
        let charge = async || {
            assert!(may_do_the_step, "the step was done before the dump");
            Ok::<_, Failure>(7)
        };
        work.step("charge", charge).await?;
        if may_do_the_step { Err(Failure::from("later")) } else { Ok(1) }
    };
    db.once.run_leased(&db.pool, &op("half done"), lease(), work).await.is_ok()
}

/// pgonce with keys in every state, and tables of the user, created before and after it.
async fn source(options: PgConnectOptions) -> TestDb {
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    let before =
        "create schema accounts; create table accounts.account (id bigint primary key, name text);
                  insert into accounts.account values (1, 'alice')";
    sqlx::raw_sql(before).execute(&mut conn).await.unwrap();
    let db = TestDb::create("pgonce", options, 5).await;
    db.execute(
        "create schema zoo; create table zoo.animal (id bigint primary key, name text);
         insert into zoo.animal values (1, 'zebra')",
    )
    .await;
    let body = "a\\body\nwith 'quotes' and \u{e4}\u{1f600}";
    db.complete(&op("completed"), body).await;
    assert!(!half_done(&db, true).await);
    drop(db.lease(&op("live"), PATIENCE * 100).await);
    db
}

async fn is_current(db: &TestDb) {
    let mut conn = db.conn().await;
    db.once.check(&db.pool).await.unwrap();
    let migrated = db.once.migrate(&mut conn).await.unwrap();
    assert!(migrated.from == migrated.to && !migrated.functions_replaced, "{migrated:?}");
}

/// New keys run, by functions and by procedures.
async fn works(db: &TestDb) {
    let ran = async || {
        db.once
            .run(&db.pool, &op("new"), async |tx| effect(tx, "pgonce", "new").await)
            .await
            .unwrap()
    };
    assert!(!ran().await.is_replay() && ran().await.is_replay());
    let minute = Duration::from_secs(60);
    let claim =
        started(db.once.begin_leased(&db.pool, &op("leased"), lasting(minute)).await.unwrap());
    claim.complete_leased(&db.pool, Response::empty()).await.unwrap();
    db.execute("call {}.reap()").await;
    db.execute("call {}.pick_abandoned('nothing')").await;
    db.once.stats(&mut db.conn().await).await.unwrap();
}

/// The user's tables, with or without their rows.
async fn users_tables_are_there(db: &TestDb, rows: i64) {
    for table in ["accounts.account", "zoo.animal"] {
        assert_eq!(db.ask::<i64>(&format!("select count(*) from {table}")).await, rows, "{table}");
    }
}

async fn all_came_back(options: PgConnectOptions) {
    let db = TestDb::open("pgonce", options, 5).await;
    users_tables_are_there(&db, 1).await;
    is_current(&db).await;
    old_keys_answer(&db).await;
    works(&db).await;
}

async fn old_keys_answer(db: &TestDb) {
    let mut conn = db.conn().await;
    let pgonce::Begin::Replay(replay) = db.once.begin(&mut conn, &op("completed")).await.unwrap()
    else {
        panic!("the key is forgotten");
    };
    let body = "a\\body\nwith 'quotes' and \u{e4}\u{1f600}";
    assert_eq!(replay.response().body(), body.as_bytes());
    let live = db.once.begin(&mut conn, &op("live")).await.unwrap();
    assert_eq!(word(&live), "in progress");
    assert!(half_done(db, false).await, "goes on where it was");
}

#[tokio::test]
async fn a_plain_dump_comes_back_through_psql() {
    let server = server().await;
    let db = source(database(server).await).await;
    for programs in Programs::fitting(server).await {
        let (dump, _) = programs.run("pg_dump", &db.options, &[]).await;
        for more in [&[][..], &["--single-transaction", "-v", "ON_ERROR_STOP=1"]] {
            let into = database(server).await;
            programs.restore(&into, &dump, more).await;
            all_came_back(into).await;
        }
    }
}

#[tokio::test]
async fn the_audit_trail_comes_back_and_goes_on() {
    let server = server().await;
    let db = source(database(server).await).await;
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    db.complete(&op("audited"), "").await;
    for programs in Programs::fitting(server).await {
        let (dump, _) = programs.run("pg_dump", &db.options, &[]).await;
        let into = database(server).await;
        programs.restore(&into, &dump, &["--single-transaction", "-v", "ON_ERROR_STOP=1"]).await;
        let db = TestDb::open("pgonce", into, 5).await;
        is_current(&db).await;
        db.complete(&op("audited later"), "").await;
        let trail = "select string_agg(key || ' ' || action, ', ' order by id) from {}.audit";
        assert_eq!(
            db.ask::<String>(trail).await,
            "audited begun, audited completed, audited later begun, audited later completed"
        );
        works(&db).await;
    }
}

#[tokio::test]
async fn a_custom_dump_comes_back_through_pg_restore() {
    let server = server().await;
    let db = source(database(server).await).await;
    for programs in Programs::fitting(server).await {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = path(file.path());
        programs.run("pg_dump", &db.options, &["-F", "custom", "-f", file]).await;
        // As a script; and directly, if the server knows all parameters that the program sets.
        let script = programs.command("pg_restore").args(["-f", "-", file]).output().await.unwrap();
        let into = database(server).await;
        let script = String::from_utf8(script.stdout).unwrap();
        programs.restore(&into, &script, &["--single-transaction"]).await;
        all_came_back(into.clone()).await;
        if programs.major == server_major(&into).await {
            let into = database(server).await;
            programs.run("pg_restore", &into, &["--single-transaction", file]).await;
            all_came_back(into).await;
        }
    }
}

#[tokio::test]
async fn a_schema_only_dump_knows_its_version() {
    let server = server().await;
    let db = source(database(server).await).await;
    for programs in Programs::fitting(server).await {
        let (dump, _) = programs.run("pg_dump", &db.options, &["--schema-only"]).await;
        let into = database(server).await;
        programs.restore(&into, &dump, &[]).await;
        let db = TestDb::open("pgonce", into, 5).await;
        users_tables_are_there(&db, 0).await;
        is_current(&db).await;
        works(&db).await;
    }
}

#[tokio::test]
async fn a_data_only_dump_comes_back_into_a_database_that_was_migrated() {
    let server = server().await;
    let db = source(database(server).await).await;
    for programs in Programs::fitting(server).await {
        let (dump, _) =
            programs.run("pg_dump", &db.options, &["--data-only", "--schema", "pgonce"]).await;
        let into = database(server).await;
        let db = TestDb::create("pgonce", into, 5).await;
        programs.restore(&db.options, &dump, &["--single-transaction"]).await;
        is_current(&db).await;
        old_keys_answer(&db).await;
        works(&db).await;
    }
}

#[tokio::test]
async fn a_whole_cluster_comes_back_on_another_server() {
    let options = Options::new().fast();
    let one = Throwaway::start(&options).await.unwrap();
    // In the database that every cluster has: programs of 18 create other databases in a syntax that a server of 14
    // does not know.
    let db = source(one.connect_options()).await;
    db.execute("create role cluster_app login; grant usage on schema {} to cluster_app").await;
    for programs in Programs::fitting(&one).await {
        let (dump, _) = programs.run("pg_dumpall", &db.options, &[]).await;
        let other = Throwaway::start(&options).await.unwrap();
        // The superuser exists already, so the dump must not create it.
        let dump = dump.replace("CREATE ROLE postgres;", "");
        programs.restore(&other.connect_options(), &dump, &[]).await;
        all_came_back(other.connect_options()).await;
        let app = other.connect_options().username("cluster_app");
        db.once.check(&PgPool::connect_lazy_with(app)).await.unwrap();
        other.stop().await;
    }
    db.pool.close().await;
    one.stop().await;
}

#[tokio::test]
async fn no_name_is_a_word_that_psql_takes_for_a_body() {
    let db = TestDb::new().await;
    // pg_dump does not quote `begin`; psql counts all three words after CREATE FUNCTION.
    let taken: i64 = db
        .ask(
            "select count(*) from pg_proc p where p.pronamespace = '{}'::regnamespace
                and p.proname::text || coalesce(p.proargnames, array[]::text[]) && array['begin', 'case', 'end']",
        )
        .await;
    assert_eq!(taken, 0);
    assert!(pgonce::SchemaName::new("begin").is_err());
}
