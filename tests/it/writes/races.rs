//! Fifty callers at once, half of them from Rust, half from psql with the page's functions: one effect, and each is told
//! the right thing, at each isolation level.

use std::collections::BTreeMap;

use pgonce::writes::{
    Expected, Restored, SoftDeleted, Updated, Upserted, WriteError, conditional_update, restore,
    soft_delete, upsert_once,
};
use sqlx::{Acquire, PgConnection};
use tokio::task::JoinSet;

use super::rows::{Article, Customer, article, customer, delete, insert, tables, undelete, update};
use crate::isolation::LEVELS;
use crate::support::db::{TestDb, psql, server};

const EACH: u32 = 25;
const PAGE: &str = include_str!("../../../src/docs/patterns.md");

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pattern {
    Upsert,
    Retitle,
    Take,
    Delete,
    Restore,
}

/// The functions that the page shows, and the two that it describes.
async fn functions(db: &TestDb) {
    let mut shown: Vec<String> = PAGE
        .split("```sql\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect();
    let delete = shown.last().unwrap();
    let restore = delete
        .replace("delete_customer", "restore_customer")
        .replace("is not null", "IS NULL")
        .replace("is null", "is not null")
        .replace("IS NULL", "is null")
        .replace("= clock_timestamp()", "= null")
        .replace("'deleted'", "'restored'")
        .replace("'already deleted'", "'not deleted'");
    shown.push(restore);
    shown.push(
        "create function take(out outcome text) language sql as $$
           with taken as (update stock set qty = qty - 1 where qty >= 1 returning qty)
           select case when exists (select from taken) then 'applied' else 'not met' end $$"
            .to_owned(),
    );
    assert_eq!(shown.len(), 5);
    for function in shown {
        sqlx::raw_sql(sqlx::AssertSqlSafe(function)).execute(&mut db.conn().await).await.unwrap();
    }
}

async fn from_rust(
    pattern: Pattern,
    n: u32,
    conn: &mut PgConnection,
) -> Result<String, WriteError> {
    let is_deleted = |row: &Customer| row.deleted_at.is_some();
    let look = || customer("a@x");
    let said = match pattern {
        Pattern::Upsert => {
            // Another constraint is in the way of each, too.
            match upsert_once(conn, || insert("a@x", "1"), look).await? {
                Upserted::Created(row) => format!("created {}", row.id),
                Upserted::Existing(row) => format!("existing {}", row.id),
            }
        }
        Pattern::Retitle => {
            let title = format!("by {n}");
            let expected = Expected::version(|now: &Article| now.version == 1)
                .or_state(|now| now.title == title);
            outcome(&conditional_update(conn, update(1, &title), article(), expected).await?)
        }
        Pattern::Take => {
            let take =
                sqlx::query_scalar("update stock set qty = qty - 1 where qty >= 1 returning qty");
            let now = sqlx::query_scalar::<_, i32>("select qty from stock");
            outcome(&conditional_update(conn, take, now, Expected::key()).await?)
        }
        Pattern::Delete => match soft_delete(conn, || delete("a@x"), look, is_deleted).await? {
            SoftDeleted::Deleted(_) => "deleted".to_owned(),
            SoftDeleted::AlreadyDeleted(_) => "already deleted".to_owned(),
            SoftDeleted::Gone => "gone".to_owned(),
        },
        Pattern::Restore => match restore(conn, || undelete("a@x"), look, is_deleted).await? {
            Restored::Restored(_) => "restored".to_owned(),
            Restored::NotDeleted(_) => "not deleted".to_owned(),
            Restored::Gone => "gone".to_owned(),
        },
    };
    Ok(said)
}

fn outcome<T>(updated: &Updated<T>) -> String {
    match updated {
        Updated::Applied(_) => "applied",
        Updated::AlreadyThere(_) => "already there",
        Updated::Conflict(_) => "conflict",
        Updated::NotMet(_) => "not met",
        Updated::Gone => "gone",
    }
    .to_owned()
}

fn in_sql(pattern: Pattern, n: u32) -> String {
    match pattern {
        Pattern::Upsert => {
            "select case when created then 'created ' else 'existing ' end || (customer).id from upsert_customer('a@x', 'ann')"
                .to_owned()
        }
        Pattern::Retitle => format!("select outcome from rename_article(1, 1, 'by {n}')"),
        Pattern::Take => "select take()".to_owned(),
        Pattern::Delete => "select outcome from delete_customer((select min(id) from customer))".to_owned(),
        Pattern::Restore => "select outcome from restore_customer((select min(id) from customer))".to_owned(),
    }
}

/// All callers stop before they begin, until this number's lock is let go.
const START: i64 = 4711;

async fn rust_caller(db: &TestDb, level: &str, pattern: Pattern, n: u32) -> String {
    let mut conn = db.conn().await;
    sqlx::query("select pg_advisory_lock_shared($1)").bind(START).execute(&mut conn).await.unwrap();
    loop {
        let mut tx = conn.begin().await.unwrap();
        let level = sqlx::AssertSqlSafe(format!("set transaction isolation level {level}"));
        sqlx::query(level).execute(&mut *tx).await.unwrap();
        let said = from_rust(pattern, n, &mut tx).await;
        let error = match said {
            Ok(said) => match tx.commit().await {
                Ok(()) => return said,
                Err(error) => error,
            },
            Err(WriteError::Database(error)) => error,
            Err(error) => panic!("{error}"),
        };
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .unwrap_or_else(|| panic!("{error:?}"))
            .into_owned();
        assert_eq!(code, "40001", "{error}");
    }
}

async fn psql_caller(db: &TestDb, level: &str, pattern: Pattern, n: u32) -> String {
    // Again after a serialization failure, as a shell script would.
    let script = format!(
        "select pg_advisory_lock_shared({START}) \\g /dev/null
         \\set again true
         {}",
        format!(
            "\\if :again
             begin isolation level {level};
             {};
             \\set state :SQLSTATE
             commit;
             select :'state' <> '00000' or :'SQLSTATE' <> '00000' as again \\gset
             \\endif\n",
            in_sql(pattern, n)
        )
        .repeat(60)
    );
    let options = server().await.connect_options();
    let psql = psql()
        .await
        .args(["-X", "-q", "-A", "-t", "-U", "postgres", "-h"])
        .arg(options.get_socket().expect("a socket"))
        .args(["-d", options.get_database().unwrap_or("postgres")])
        .env("PGOPTIONS", format!("-c search_path={}", db.schema))
        .env("PGAPPNAME", &db.schema)
        .args(["-f", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Of an attempt whose COMMIT failed there is a line, too.
    told(psql, &script).await.lines().last().unwrap_or_default().to_owned()
}

async fn told(mut psql: tokio::process::Child, script: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut stdin = psql.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).await.unwrap();
    drop(stdin);
    let output = psql.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    for error in errors.lines().filter(|line| line.contains("ERROR")) {
        assert!(error.contains("could not serialize"), "{errors}");
    }
    String::from_utf8(output.stdout).unwrap()
}

/// How often each answer was given.
async fn race(pattern: Pattern, level: &'static str) -> (TestDb, BTreeMap<String, u32>) {
    let db = tables().await;
    functions(&db).await;
    if pattern != Pattern::Upsert {
        insert("a@x", "1").fetch_one(&mut db.conn().await).await.unwrap();
    }
    if pattern == Pattern::Restore {
        delete("a@x").fetch_one(&mut db.conn().await).await.unwrap();
    }
    db.execute("update {}.stock set qty = 20").await;
    let mut start = db.conn().await;
    sqlx::query("select pg_advisory_lock($1)").bind(START).execute(&mut start).await.unwrap();
    let mut callers = JoinSet::new();
    for n in 0..2 * EACH {
        let db = TestDb::open(&db.schema, db.options.clone(), 1).await;
        callers.spawn(async move {
            match n % 2 {
                0 => rust_caller(&db, level, pattern, n).await,
                _ => psql_caller(&db, level, pattern, n).await,
            }
        });
    }
    db.until_waiting(2 * EACH).await;
    drop(start);
    let mut answers = BTreeMap::new();
    while let Some(answer) = callers.join_next().await {
        *answers.entry(answer.unwrap()).or_default() += 1;
    }
    (db, answers)
}

fn counts(expected: &[(&str, u32)]) -> BTreeMap<String, u32> {
    expected.iter().map(|(answer, count)| ((*answer).to_owned(), *count)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_callers_one_has_the_effect_and_each_is_told_the_right_thing() {
    for level in LEVELS {
        let (db, answers) = race(Pattern::Upsert, level).await;
        let id: i64 = db.ask("select min(id) from {}.customer").await;
        let expected = counts(&[(&format!("created {id}"), 1), (&format!("existing {id}"), 49)]);
        assert_eq!(answers, expected, "{level}");
        assert_eq!(db.ask::<i64>("select count(*) from {}.customer").await, 1);

        let (db, answers) = race(Pattern::Retitle, level).await;
        assert_eq!(answers, counts(&[("applied", 1), ("conflict", 49)]), "{level}");
        assert_eq!(db.ask::<i32>("select version from {}.article").await, 2);

        let (db, answers) = race(Pattern::Take, level).await;
        assert_eq!(answers, counts(&[("applied", 20), ("not met", 30)]), "{level}");
        assert_eq!(db.ask::<i32>("select qty from {}.stock").await, 0);

        let (_, answers) = race(Pattern::Delete, level).await;
        assert_eq!(answers, counts(&[("already deleted", 49), ("deleted", 1)]), "{level}");

        let (_, answers) = race(Pattern::Restore, level).await;
        assert_eq!(answers, counts(&[("not deleted", 49), ("restored", 1)]), "{level}");
    }
}
