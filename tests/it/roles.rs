//! What each role of src/docs/security.md can and cannot do.

use std::time::Duration;

use pgonce::{ErrorKind, Failure, Filter, History, Inbox, Key, Message, Operation, Policy};
use pgonce::{Reaper, Recovery, Response, Work};
use sqlx::{Executor, PgConnection, PgPool};
use time::OffsetDateTime;

use crate::support::db::{PATIENCE, TestDb, effect, lasting, op, server, started};
use crate::support::roles::{
    conn_as, lease, pool_as, role, statements, step_and_fail, with_roles, with_tenants,
};

fn refused<T>(answer: pgonce::Result<T>) {
    let error = answer.err().expect("it must be refused");
    assert_eq!((error.kind(), error.sqlstate().as_deref()), (ErrorKind::Database, Some("42501")));
}

#[tokio::test]
async fn the_script_makes_a_schema_that_belongs_to_its_owner() {
    let db = TestDb::open("t_roles_script", server().await.connect_options(), 2).await;
    let blocks = statements(&db, "Roles");
    db.execute(&blocks[0]).await;
    let mut migrator = conn_as(&db, "migrator").await;
    assert!(db.once.migrate(&mut migrator).await.unwrap().functions_replaced);
    migrator.execute(sqlx::AssertSqlSafe(blocks[1..].concat())).await.unwrap();
    let others: i64 = db
        .ask(
            "select (select count(*) from pg_class where relnamespace = '{}'::regnamespace
                        and relowner <> 'pgonce_owner_{}'::regrole)
                  + (select count(*) from pg_proc where pronamespace = '{}'::regnamespace
                        and proowner <> 'pgonce_owner_{}'::regrole)",
        )
        .await;
    assert_eq!(others, 0);
    db.once.audit_on(&mut migrator, 30).await.unwrap();
    let app = pool_as(&db, "app");
    db.once.run(&app, &op("k"), async |_| Ok::<_, Failure>(1)).await.unwrap();
    db.once.check(&app).await.unwrap();
    assert!(db.once.migrate(&mut conn_as(&db, "app").await).await.is_ok(), "it is up to date");
    for name in ["app", "operator", "reaper", "auditor", "viewer"] {
        let created = db.sql("create table {}.evil ()");
        let error = conn_as(&db, name).await.execute(created).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{name}");
    }
}

#[tokio::test]
async fn the_operator_settles_keys_and_begins_none() {
    let db = with_roles().await;
    let (released, completed, live) = (op("released"), op("completed"), op("live"));
    for op in [&released, &completed] {
        assert!(!step_and_fail(&db, &db.pool, op).await);
    }
    drop(db.lease(&live, PATIENCE).await);
    let inbox = Inbox::new(&db.once, "orders").unwrap();
    let inbox = inbox.policy(Policy::inbox().max_attempts(1).unwrap()).unwrap();
    inbox.failed(&db.pool, "dead", "an error").await.unwrap();
    let mut conn = conn_as(&db, "operator").await;
    let claim = async |conn: &mut PgConnection, op: &Operation| {
        let seen = db.seen(op).await;
        db.once.take_over_claim(conn, op.scope(), op.key(), &seen).await.unwrap()
    };
    let taken = claim(&mut conn, &released).await;
    taken.release(&mut conn).await.unwrap();
    let taken = claim(&mut conn, &completed).await;
    taken.complete(&mut conn, Response::bytes("1")).await.unwrap();
    let seen = db.seen(&live).await;
    db.once.revoke_claim(&mut conn, live.scope(), live.key(), &seen).await.unwrap();
    let seen = db.seen(&Operation::new("orders", "dead").unwrap()).await;
    inbox.redrive(&mut conn, "dead", &seen).await.unwrap();

    db.once.overview(&mut conn, 100).await.unwrap();
    assert!(
        db.once.inspect(&mut conn, completed.scope(), completed.key()).await.unwrap().is_some()
    );
    db.once.audit(&mut conn, live.scope(), live.key(), 10).await.unwrap();
    refused(db.once.begin(&mut conn, &op("new")).await);
    refused(db.once.reap_once(&mut conn, 10).await);
    let deleted = conn.execute(db.sql("delete from {}.idempotency_keys")).await;
    assert!(deleted.is_err(), "a key is never forgotten by hand");
}

/// Runs a recovery in this pool until nothing in these scopes is half done.
async fn recover(db: &TestDb, pool: &PgPool, scopes: &str) {
    let recovery =
        Recovery::new(&db.once, scopes).unwrap().interval(Duration::from_millis(1)).unwrap();
    let handler = |found: pgonce::Listed| {
        let (once, pool) = (db.once.clone(), pool.clone());
        async move {
            let op = Operation::new(found.scope.as_str(), found.key.as_str())?;
            let work = async |_: &mut Work| Ok::<_, Failure>(2);
            once.run_leased(&pool, &op, lease(), work).await.map(drop)
        }
    };
    let done = format!(
        "select not exists (select from {{}}.idempotency_keys
           where status = 1 and steps > 0 and scope like '{scopes}')"
    );
    let done = db.until(&done);
    assert_eq!(recovery.run_until(pool.clone(), handler, done).await, 1);
}

#[tokio::test]
async fn the_app_can_do_what_a_service_does() {
    let db = with_roles().await;
    let pool = pool_as(&db, "app");
    let mut conn = conn_as(&db, "app").await;
    db.once.check(&pool).await.unwrap();
    for replayed in [false, true] {
        let ran = db.once.run(&pool, &op("k"), async |tx| effect(tx, &db.schema, "k").await).await;
        assert_eq!(ran.unwrap().is_replay(), replayed);
    }
    let minute = Duration::from_secs(60);
    let mut claim =
        started(db.once.begin_leased(&pool, &op("leased"), lasting(minute)).await.unwrap());
    claim.extend(&pool, lasting(minute * 2)).await.unwrap();
    claim.release(&mut conn).await.unwrap();
    assert!(!step_and_fail(&db, &pool, &op("half done")).await);
    let status = db.once.status(&mut conn, op("k").scope(), &Key::new("half done").unwrap()).await;
    assert_eq!(status.unwrap().unwrap().steps, ["charge"]);
    assert_eq!(db.once.abandoned(&mut conn, 10).await.unwrap().len(), 1);
    recover(&db, &pool, "test/%").await;
    let inbox = Inbox::new(&db.once, "consumer").unwrap();
    for message in ["1", "1"] {
        let work = async |tx: &mut PgConnection| effect(tx, &db.schema, "m").await;
        inbox.handle(&pool, &Message::new(message), work).await.result.unwrap();
    }
    inbox.failed(&pool, "2", "an error").await.unwrap();
    assert!(inbox.remembers(&mut conn).await.unwrap().is_some());
    db.once.stats(&mut conn).await.unwrap();
    assert!(db.once.list(&mut conn, &Filter::default(), 10).await.unwrap().len() > 3);
    refused(db.once.reap_once(&mut conn, 10).await);
    counted(&db, &pool, "s").await.flush(&db.once, &pool).await.unwrap();
    assert_eq!(history(&db, &mut conn).await.unwrap(), 1);
}

/// A history with one count, and no key.
async fn counted(db: &TestDb, pool: &PgPool, scope: &str) -> History {
    let history = History::new(PATIENCE * 1000).unwrap();
    let once = db.once.clone().keep_history(&history);
    let mut tx = pool.begin().await.unwrap();
    let op = Operation::new(scope, "counted").unwrap();
    drop(once.begin(&mut tx, &op).await.unwrap());
    tx.rollback().await.unwrap();
    history
}

/// How many rows a role gets.
async fn history(db: &TestDb, conn: &mut PgConnection) -> pgonce::Result<usize> {
    let (from, until) = (OffsetDateTime::UNIX_EPOCH, OffsetDateTime::now_utc());
    db.once.history_by_scope(conn, from, until, 10).await.map(|rows| rows.len())
}

#[tokio::test]
async fn the_reaper_runs_in_the_service_or_as_a_role_of_its_own() {
    let db = with_roles().await;
    db.execute(&statements(&db, "Roles")[2]).await;
    for name in ["app", "reaper"] {
        db.plant_overdue(10, 1).await;
        let pool = pool_as(&db, name);
        counted(&db, &db.pool, "s").await.flush(&db.once, &db.pool).await.unwrap();
        db.execute("update {}.history set expires_at = now()").await;
        assert!(!step_and_fail(&db, &db.pool, &op("steps too")).await);
        db.execute(
            "update {}.idempotency_keys set created_at = created_at - interval '2 days',
                    expires_at = expires_at - interval '2 days'",
        )
        .await;
        let gone = db.until("select count(*) = 0 from {}.idempotency_keys");
        let reaper = Reaper::new(&db.once).interval(Duration::from_millis(1)).unwrap();
        assert_eq!(reaper.run_until(pool.clone(), gone).await, 11, "{name}");
        assert_eq!(db.ask::<i64>("select count(*) from {}.steps").await, 0);
        assert_eq!(db.ask::<i64>("select count(*) from {}.history").await, 0);
        Reaper::new(&db.once).pass(&mut conn_as(&db, name).await).await.unwrap();
    }
    refused(db.once.begin(&mut conn_as(&db, "reaper").await, &op("k")).await);
    refused(counted(&db, &db.pool, "s").await.flush(&db.once, &pool_as(&db, "reaper")).await);
}

#[tokio::test]
async fn the_auditor_sees_states_and_no_more() {
    let db = with_roles().await;
    db.complete(&op("k"), "secret body").await;
    drop(db.lease(&op("live"), PATIENCE).await);
    db.plant_overdue(2, 1).await;
    let mut conn = conn_as(&db, "auditor").await;
    db.once.check(&pool_as(&db, "auditor")).await.unwrap();
    let listed = db.once.list(&mut conn, &Filter::default(), 10).await.unwrap();
    assert_eq!(listed.len(), 4);
    let key = Filter { key: Some(Key::new("live").unwrap()), ..Filter::default() };
    assert_eq!(db.once.list(&mut conn, &key, 10).await.unwrap().len(), 1);
    let (audited, all) =
        (db.once.stats(&mut conn).await, db.once.stats(&mut db.conn().await).await);
    let (audited, all) = (audited.unwrap(), all.unwrap());
    let counts =
        |s: &pgonce::Stats| (s.live, s.lapsed, s.released, s.completed, s.failed, s.overdue);
    assert_eq!(counts(&audited), (1, 0, 0, 3, 0, 2));
    assert_eq!(counts(&audited), counts(&all));
    assert_eq!(audited.table_bytes, all.table_bytes);
    let inbox = Inbox::new(&db.once, "test/scope").unwrap();
    assert!(inbox.remembers(&mut conn).await.unwrap().is_some());
    assert_eq!(history(&db, &mut conn).await.unwrap(), 0);
    refused(counted(&db, &db.pool, "s").await.flush(&db.once, &pool_as(&db, "auditor")).await);
    refused(db.once.inspect(&mut conn, op("k").scope(), op("k").key()).await.map(drop));
    refused(db.once.status(&mut conn, op("k").scope(), op("k").key()).await.map(drop));
    refused(db.once.begin(&mut conn, &op("new")).await.map(drop));
    for table in ["idempotency_keys", "steps", "unfinished", "keys", "abandoned"] {
        let read = conn.execute(db.sql(&format!("select * from {{}}.{table}"))).await;
        assert!(read.is_err(), "{table}");
    }
}

#[tokio::test]
async fn no_view_shows_a_token_or_a_response() {
    let db = TestDb::new().await;
    db.complete(&op("k"), "secret body").await;
    let claim = db.lease(&op("live"), PATIENCE).await;
    let shown: String = db
        .ask(
            "select string_agg(v::text, ' ') from (
               select k::text from {}.keys k union all select a::text from {}.audit_keys a
               union all select a::text from {}.abandoned a) v",
        )
        .await;
    let token: String =
        db.ask("select token::text from {}.idempotency_keys where key = 'live'").await;
    assert!(!shown.contains(&token) && !shown.contains("secret"), "{shown}");
    let columns: i64 = db
        .ask(
            "select count(*) from information_schema.columns c join information_schema.views v
                using (table_schema, table_name)
              where table_schema = '{}' and column_name in ('token', 'response_body', 'response_headers')",
        )
        .await;
    assert_eq!(columns, 0);
    drop(claim);
}

#[tokio::test]
async fn a_tenant_sees_its_own_scopes_and_works_in_them() {
    let db = with_tenants().await;
    for tenant in ["acme", "globex"] {
        let pool = pool_as(&db, tenant);
        let scope = format!("{}/orders", role(&db, tenant));
        let op = |key: &str| Operation::new(scope.as_str(), key).unwrap();
        for replayed in [false, true] {
            let ran = db.once.run(&pool, &op("k"), async |_| Ok::<_, Failure>(1)).await.unwrap();
            assert_eq!(ran.is_replay(), replayed);
        }
        assert!(!step_and_fail(&db, &pool, &op("half done")).await);
        let inbox = Inbox::new(&db.once, scope.as_str()).unwrap();
        let mut tx = pool.begin().await.unwrap();
        let _ = inbox.receive_many(&mut tx, &["1", "2"]).await.unwrap();
        tx.commit().await.unwrap();
        inbox.failed(&pool, "3", "an error").await.unwrap();
        counted(&db, &pool, &scope).await.flush(&db.once, &pool).await.unwrap();
    }
    let mut acme = conn_as(&db, "acme").await;
    let (ours, theirs) =
        ["acme", "globex"].map(|name| format!("{}/orders", role(&db, name))).into();
    let count = async |acme: &mut PgConnection, what: &str| {
        let asked = format!("select count(*) from {{}}.{what}");
        sqlx::query_scalar::<_, i64>(db.sql(&asked)).fetch_one(acme).await.unwrap()
    };
    for function in ["operation_status", "inspect_key"] {
        for (scope, rows) in [(&ours, 1), (&theirs, 0)] {
            let asked = format!("{function}('{scope}', 'half done')");
            assert_eq!(count(&mut acme, &asked).await, rows, "{asked}");
        }
    }
    let stats = db.once.stats(&mut acme).await.unwrap();
    assert_eq!((stats.completed, stats.released + stats.lapsed), (3, 2), "{stats:?}");
    assert_eq!(count(&mut acme, "steps").await, 1);
    // Before 15, views have their owner's privileges.
    let seen_of_both = if db.ask::<bool>(VIEWS_HAVE_THEIR_READERS_RIGHTS).await { 1 } else { 2 };
    assert_eq!(count(&mut acme, "keys").await, 5 * seen_of_both);
    assert_eq!(count(&mut acme, "abandoned").await, seen_of_both);
    let listed = db.once.list(&mut acme, &Filter::default(), 100).await.unwrap();
    assert_eq!(listed.len(), 5 * usize::try_from(seen_of_both).unwrap());
    assert_eq!(history(&db, &mut acme).await.unwrap(), 1);
    refused(counted(&db, &db.pool, &theirs).await.flush(&db.once, &pool_as(&db, "acme")).await);
    let audit = acme.execute(db.sql("select * from {}.audit_keys")).await;
    assert!(audit.is_err(), "no tenant is an auditor");

    refused(db.once.begin(&mut acme, &Operation::new(theirs.as_str(), "new").unwrap()).await);
    let hidden = Operation::new(theirs.as_str(), "k").unwrap();
    assert!(db.once.begin(&mut acme, &hidden).await.is_err(), "never run again");
    recover(&db, &pool_as(&db, "acme"), &format!("{ours}%")).await;
    let left = db.ask::<i64>("select count(*) from {}.abandoned").await;
    assert_eq!(left, 1, "the other tenant's");
    Reaper::new(&db.once).pass(&mut conn_as(&db, "reaper").await).await.unwrap();
    let mut auditor = conn_as(&db, "auditor").await;
    assert_eq!(db.once.list(&mut auditor, &Filter::default(), 100).await.unwrap().len(), 10);
    assert_eq!(history(&db, &mut auditor).await.unwrap(), 2);
}

const VIEWS_HAVE_THEIR_READERS_RIGHTS: &str =
    "select current_setting('server_version_num')::integer >= 150000";

#[tokio::test]
async fn views_of_a_server_that_was_upgraded_are_made_again() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    for view in ["keys", "abandoned"] {
        db.execute(&format!("alter view {{}}.{view} reset (security_invoker)")).await;
        if db.ask::<bool>(VIEWS_HAVE_THEIR_READERS_RIGHTS).await {
            let error = db.once.check(&db.pool).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::SchemaOutdated);
            assert!(error.to_string().contains("the server upgraded?); run migrate"), "{error}");
            assert!(db.once.migrate(&mut conn).await.unwrap().functions_replaced);
            let mended: bool = db
                .ask(&format!(
                    "select reloptions @> array['security_invoker=true'] from pg_class
                      where oid = '{{}}.{view}'::regclass"
                ))
                .await;
            assert!(mended);
        }
        db.once.check(&db.pool).await.unwrap();
    }
}
