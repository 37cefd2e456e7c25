//! The recipes of src/docs/cookbook.md that more than compile: the SQL function runs, a cancel stops a late reservation,
//! and a crash leaves nothing.

use pgonce::{Failure, Operation, Response, RunError};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::sync::Notify;

use crate::support::db::{PATIENCE, TestDb, effect, op, waits};

const PAGE: &str = include_str!("../../src/docs/cookbook.md");

#[test]
fn each_of_the_25_recipes_has_a_problem_code_and_what_to_watch() {
    let recipes: Vec<&str> = PAGE.split("\n### ").skip(1).collect();
    assert_eq!(recipes.len(), 25);
    for (number, recipe) in (1..).zip(recipes) {
        let title = recipe.lines().next().unwrap();
        assert!(title.starts_with(&format!("{number}. ")), "{title}");
        let (problem, rest) = recipe[title.len()..].split_once("\n```").expect(title);
        let (code, watch) = rest.split_once("```\n").expect(title);
        assert!(problem.trim().ends_with('.'), "{title}: {problem}");
        assert!(watch.trim_start().starts_with("Watch: "), "{title}: {watch}");
        let shown = code.lines().skip(1).filter(|line| !line.starts_with("# ")).count();
        assert!((3..=24).contains(&shown), "{title} has {shown} lines");
    }
}

#[tokio::test]
async fn the_sql_function_takes_effect_once_per_key() {
    let db = TestDb::in_new_database().await;
    let mut conn = db.conn().await;
    db.once.migrate(&mut conn).await.unwrap();
    let function = PAGE.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    conn.execute("create table payment (tenant text, amount integer)").await.unwrap();
    conn.execute(AssertSqlSafe(function)).await.unwrap();
    for _ in 0..2 {
        let paid: String =
            sqlx::query_scalar("select pay('acme', 'k', 100)").fetch_one(&mut conn).await.unwrap();
        assert_eq!(paid, "paid");
    }
    let other = conn.execute("select pay('acme', 'k', 999)").await.unwrap_err();
    let other = other.as_database_error().unwrap();
    assert_eq!((other.code().unwrap().as_ref(), other.message()), ("PAY02", "mismatch"));
    // Finished elsewhere: a kept failure and an omitted response are not told as "paid".
    for (key, finish, status) in [
        ("f", "fail('acme/payments.create', 'f', token)", "failed"),
        ("o", "complete('acme/payments.create', 'o', token, p_omit => true)", "completed"),
    ] {
        let begin = format!("pgonce.begin_operation('acme/payments.create', '{key}')");
        let finish = format!("select pgonce.{finish} from {begin}");
        conn.execute(AssertSqlSafe(finish)).await.unwrap();
        let pay = sqlx::query("select pay('acme', $1, 100)").bind(key);
        let refused = pay.execute(&mut conn).await.unwrap_err();
        let refused = refused.as_database_error().unwrap();
        assert_eq!((refused.code().unwrap().as_ref(), refused.message()), ("PAY04", status));
    }
    let count: i64 =
        sqlx::query_scalar("select count(*) from payment").fetch_one(&mut conn).await.unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_cancel_finds_the_reservation_or_stops_it() {
    let db = TestDb::new().await;
    let cancelled = async |_: &mut PgConnection| {
        Err::<i64, _>(Failure::keep(Response::bytes("cancelled").with_code(409)))
    };
    let cancel = async |op: &Operation| db.once.run(&db.pool, op, cancelled).await;
    let reserve = async |op: Operation| {
        let request = op.fingerprint(pgonce::Fingerprint::of_bytes("seat 7"));
        db.once.run(&db.pool, &request, async |tx| effect(tx, &db.schema, "seat").await).await
    };
    // The reservation comes first.
    let seat = *reserve(op("first")).await.unwrap();
    assert_eq!(*cancel(&op("first")).await.unwrap(), seat);
    // The cancel comes first, and a second time.
    for replayed_now in [false, true] {
        let Err(RunError::Failed { replayed, .. }) = cancel(&op("late")).await else { panic!() };
        assert_eq!(replayed, replayed_now);
    }
    let late = reserve(op("late")).await;
    assert!(matches!(late, Err(RunError::Failed { replayed: true, .. })), "{late:?}");
    assert_eq!(db.effects().await, 1);
}

#[tokio::test]
async fn work_that_is_dropped_leaves_nothing() {
    let db = TestDb::new().await;
    let op = op("k").policy(waits(PATIENCE));
    let written = Notify::new();
    let crashing = db.once.run(&db.pool, &op, async |tx| {
        effect(tx, &db.schema, "k").await?;
        written.notify_one();
        std::future::pending::<Result<i64, sqlx::Error>>().await
    });
    tokio::select! {
        _ = crashing => unreachable!(),
        () = written.notified() => {}
    }
    db.once.run(&db.pool, &op, async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    assert_eq!(db.effects().await, 1);
}
