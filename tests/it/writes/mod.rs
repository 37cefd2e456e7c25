//! Writes without a key: each outcome, and what is refused.

mod races;
mod rows;

use pgonce::writes::{
    Expected, Restored, SoftDeleted, Updated, Upserted, WriteError, conditional_update, restore,
    soft_delete, upsert_once,
};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use crate::support::db::PATIENCE;
use rows::{Article, Customer, article, customer, delete, insert, tables, undelete, update};

async fn upsert(
    conn: &mut PgConnection,
    email: &str,
    phone: &str,
) -> Result<Upserted<Customer>, WriteError> {
    let mut tx = conn.begin().await.unwrap();
    let upserted = upsert_once(&mut tx, || insert(email, phone), || customer(email)).await?;
    tx.commit().await.unwrap();
    Ok(upserted)
}

#[tokio::test]
async fn an_upsert_tells_created_from_existing() {
    let mut conn = tables().await.conn().await;
    let Upserted::Created(created) = upsert(&mut conn, "a@x", "1").await.unwrap() else {
        panic!("existing");
    };
    let again = upsert(&mut conn, "a@x", "2").await.unwrap();
    assert_eq!(again, Upserted::Existing(created), "the first call's row");
}

#[tokio::test]
async fn another_unique_constraint_is_an_error_that_names_it_and_no_value() {
    let mut conn = tables().await.conn().await;
    upsert(&mut conn, "a@x", "secret").await.unwrap();
    let error = upsert(&mut conn, "b@x", "secret").await.unwrap_err();
    assert!(
        matches!(&error, WriteError::Taken { constraint, .. } if constraint == "customer_phone_key")
    );
    assert_eq!(error.to_string(), "the unique constraint customer_phone_key refused the row");
    assert!(!format!("{error:?}").contains("secret"));
}

#[tokio::test]
async fn an_upsert_outside_of_a_transaction_is_refused_before_it_writes() {
    let mut conn = tables().await.conn().await;
    let error =
        upsert_once(&mut conn, || insert("a@x", "1"), || customer("a@x")).await.unwrap_err();
    assert_eq!(error.to_string(), "upsert_once needs a transaction, and none is open");
    let count = sqlx::query_scalar::<_, i64>("select count(*) from customer");
    assert_eq!(count.fetch_one(&mut conn).await.unwrap(), 0);
}

#[tokio::test]
async fn an_insert_that_does_not_name_the_key_is_never_taken_for_existing() {
    let mut conn = tables().await.conn().await;
    upsert(&mut conn, "a@x", "1").await.unwrap();
    let any = "insert into customer (email, phone) values ('b@x', '1') on conflict do nothing returning *";
    let any = || sqlx::query_as::<_, Customer>(any);
    let mut tx = conn.begin().await.unwrap();
    let error = upsert_once(&mut tx, any, || customer("b@x")).await.unwrap_err();
    assert!(matches!(error, WriteError::Statement(_)), "{error}");
}

#[tokio::test]
async fn an_upsert_waits_for_another_and_gets_its_row_or_inserts_its_own() {
    for commits in [true, false] {
        let db = tables().await;
        let mut first = db.conn().await;
        sqlx::query("begin").execute(&mut first).await.unwrap(); // which the driver does not know of
        upsert_once(&mut first, || insert("a@x", "1"), || customer("a@x")).await.unwrap();
        let mut conn = db.conn().await;
        let second = tokio::spawn(async move { upsert(&mut conn, "a@x", "2").await });
        db.until_waiting(1).await;
        sqlx::query(if commits { "commit" } else { "rollback" }).execute(&mut first).await.unwrap();
        let second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().unwrap();
        assert_eq!(matches!(second, Upserted::Existing(_)), commits, "{second:?}");
    }
}

// PostgreSQL looks for a conflict in the natural key, then fills the indexes one after the other. An index in front of the
// two unique ones stops the second insert between its look and its entries.
#[tokio::test]
async fn an_insert_that_meets_its_twin_in_another_constraint_finds_it() {
    let db = tables().await;
    db.execute(
        "create function {}.stops(email text) returns text language plpgsql immutable as $$ begin
           if current_setting('test.stops', true) = 'on' then
             perform pg_advisory_lock_shared(4713);
             perform pg_advisory_unlock_shared(4713);
           end if;
           return email;
         end $$;
         alter table {}.customer drop constraint customer_email_key, drop constraint customer_phone_key;
         create index on {}.customer ({}.stops(email));
         alter table {}.customer add unique (email);
         alter table {}.customer add unique (phone)",
    )
    .await;
    let mut gate = db.conn().await;
    sqlx::query("select pg_advisory_lock(4713)").execute(&mut gate).await.unwrap();
    let mut stopped = db.conn().await;
    sqlx::query("set test.stops = 'on'").execute(&mut stopped).await.unwrap();
    let second = tokio::spawn(async move { upsert(&mut stopped, "a@x", "1").await });
    db.until_waiting(1).await;
    let first = upsert(&mut db.conn().await, "a@x", "1").await.unwrap();
    drop(gate);
    let second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().unwrap();
    let Upserted::Created(row) = first else { panic!("{first:?}") };
    assert_eq!(second, Upserted::Existing(row));
}

#[tokio::test]
async fn a_row_that_is_deleted_before_it_is_looked_at_is_inserted() {
    let mut conn = tables().await.conn().await;
    upsert(&mut conn, "a@x", "1").await.unwrap();
    let looks = std::sync::atomic::AtomicU32::new(0);
    let look = || match looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        // Deletes the row, as another session may, and sees none.
        0 => sqlx::query_as::<_, Customer>(
            "with gone as (delete from customer) select * from customer where false",
        ),
        _ => sqlx::query_as("select * from customer"),
    };
    let mut tx = conn.begin().await.unwrap();
    let again = upsert_once(&mut tx, || insert("a@x", "1"), look).await.unwrap();
    assert!(matches!(again, Upserted::Created(_)), "{again:?}");
}

async fn retitle(
    conn: &mut PgConnection,
    seen: i32,
    title: &str,
) -> Result<Updated<Article>, WriteError> {
    let expected =
        Expected::version(|now: &Article| now.version == seen).or_state(|now| now.title == title);
    conditional_update(conn, update(seen, title), article(), expected).await
}

#[tokio::test]
async fn an_update_says_what_has_become_of_the_row() {
    let mut conn = tables().await.conn().await;
    let row = |version, title: &str| Article { title: title.to_owned(), version };
    assert_eq!(retitle(&mut conn, 1, "a").await.unwrap(), Updated::Applied(row(2, "a")));
    assert_eq!(retitle(&mut conn, 1, "a").await.unwrap(), Updated::AlreadyThere(row(2, "a")));
    assert_eq!(retitle(&mut conn, 1, "b").await.unwrap(), Updated::Conflict(row(2, "a")));
    assert_eq!(retitle(&mut conn, 2, "b").await.unwrap(), Updated::Applied(row(3, "b")));
    // Without `or_state`, an answer that was lost looks like another's change.
    let strict = Expected::version(|now: &Article| now.version == 1);
    let again = conditional_update(&mut conn, update(1, "b"), article(), strict).await.unwrap();
    assert_eq!(again, Updated::Conflict(row(3, "b")));
    // No version: the state alone decides.
    let state = Expected::state(|now: &Article| now.title == "b");
    let set = "update article set title = 'b' where title <> 'b' returning *";
    let again = conditional_update(&mut conn, sqlx::query_as(set), article(), state).await.unwrap();
    assert_eq!(again, Updated::AlreadyThere(row(3, "b")));
    sqlx::query("delete from article").execute(&mut conn).await.unwrap();
    assert_eq!(retitle(&mut conn, 3, "c").await.unwrap(), Updated::Gone);
}

#[tokio::test]
async fn a_floor_is_not_met_and_scalars_and_mapped_rows_will_do() {
    let mut conn = tables().await.conn().await;
    let take = "update stock set qty = qty - 1 where qty >= 1 returning qty";
    for expected in [Updated::Applied(1), Updated::Applied(0), Updated::NotMet(0)] {
        let now = sqlx::query_scalar::<_, i32>("select qty from stock");
        let taken = conditional_update(&mut conn, sqlx::query_scalar(take), now, Expected::key());
        assert_eq!(taken.await.unwrap(), expected);
        sqlx::query("update stock set qty = least(qty, 1)").execute(&mut conn).await.unwrap();
    }
    let qty = |row: PgRow| row.get::<i32, _>(0);
    let now = sqlx::query("select qty from stock").map(qty);
    let taken = conditional_update(&mut conn, sqlx::query(take).map(qty), now, Expected::key());
    assert_eq!(taken.await.unwrap(), Updated::NotMet(0));
}

#[tokio::test]
async fn an_update_of_several_rows_is_refused() {
    let mut conn = tables().await.conn().await;
    sqlx::query("insert into article (title) values ('2')").execute(&mut conn).await.unwrap();
    let all = sqlx::query_as::<_, Article>("update article set title = 'x' returning *");
    let mut tx = conn.begin().await.unwrap();
    let error = conditional_update(&mut tx, all, article(), Expected::key()).await.unwrap_err();
    assert_eq!(error.to_string(), "a statement returned 2 rows; it must name one row");
    tx.rollback().await.unwrap();
    let changed = "select count(*) from article where title = 'x'";
    assert_eq!(sqlx::query_scalar::<_, i64>(changed).fetch_one(&mut conn).await.unwrap(), 0);
}

#[tokio::test]
async fn a_row_is_deleted_and_restored_once() {
    let mut conn = tables().await.conn().await;
    let is_deleted = |row: &Customer| row.deleted_at.is_some();
    let look = || customer("a@x");
    let gone = soft_delete(&mut conn, || delete("a@x"), look, is_deleted).await.unwrap();
    assert_eq!(gone, SoftDeleted::Gone);
    assert_eq!(
        restore(&mut conn, || undelete("a@x"), look, is_deleted).await.unwrap(),
        Restored::Gone
    );
    let Upserted::Created(row) = upsert(&mut conn, "a@x", "1").await.unwrap() else { panic!() };
    let not = restore(&mut conn, || undelete("a@x"), look, is_deleted).await.unwrap();
    assert_eq!(not, Restored::NotDeleted(row.clone()));
    let first = soft_delete(&mut conn, || delete("a@x"), look, is_deleted).await.unwrap();
    let SoftDeleted::Deleted(deleted) = first else { panic!("{first:?}") };
    let later = soft_delete(&mut conn, || delete("a@x"), look, is_deleted).await.unwrap();
    assert_eq!(later, SoftDeleted::AlreadyDeleted(deleted), "the first call's time");
    for expected in [Restored::Restored(row.clone()), Restored::NotDeleted(row)] {
        let restored = restore(&mut conn, || undelete("a@x"), look, is_deleted).await.unwrap();
        assert_eq!(restored, expected);
    }
}

#[tokio::test]
async fn unique_values_of_a_deleted_row_are_free_only_if_the_index_says_so() {
    let mut conn = tables().await.conn().await;
    upsert(&mut conn, "a@x", "1").await.unwrap();
    let is_deleted = |row: &Customer| row.deleted_at.is_some();
    soft_delete(&mut conn, || delete("a@x"), || customer("a@x"), is_deleted).await.unwrap();
    let still = upsert(&mut conn, "a@x", "2").await.unwrap();
    assert!(matches!(still, Upserted::Existing(_)), "{still:?}");
    for change in [
        "alter table customer drop constraint customer_email_key",
        "create unique index living_email on customer (email) where deleted_at is null",
    ] {
        sqlx::query(change).execute(&mut conn).await.unwrap();
    }
    let insert = "insert into customer (email, phone) values ('a@x', '2')
                  on conflict (email) where deleted_at is null do nothing returning *";
    let living = "select * from customer where email = 'a@x' and deleted_at is null";
    let insert = || sqlx::query_as::<_, Customer>(insert);
    for expected in ["Created", "Existing"] {
        let mut tx = conn.begin().await.unwrap();
        let next = upsert_once(&mut tx, insert, || sqlx::query_as(living)).await.unwrap();
        tx.commit().await.unwrap();
        assert!(format!("{next:?}").starts_with(expected), "{next:?}");
    }
    let undelete =
        || sqlx::query_as("update customer set deleted_at = null where phone = '1' returning *");
    let look = || sqlx::query_as::<_, Customer>("select * from customer where phone = '1'");
    let error = restore(&mut conn, undelete, look, is_deleted).await.unwrap_err();
    assert!(matches!(&error, WriteError::Taken { constraint, .. } if constraint == "living_email"));
}

#[tokio::test]
async fn a_delete_with_another_condition_is_refused_and_not_called_done() {
    let mut conn = tables().await.conn().await;
    upsert(&mut conn, "a@x", "1").await.unwrap();
    let never = || sqlx::query_as("update customer set deleted_at = now() where false returning *");
    let is_deleted = |row: &Customer| row.deleted_at.is_some();
    let error = soft_delete(&mut conn, never, || customer("a@x"), is_deleted).await.unwrap_err();
    assert!(matches!(error, WriteError::Statement(_)), "{error}");
}

#[tokio::test]
async fn run_starts_again_after_contention_in_a_write() {
    let db = tables().await;
    let pool = crate::isolation::pool(&db, "repeatable read");
    let starts = std::sync::atomic::AtomicU32::new(0);
    let op = crate::support::db::op("k");
    let work = async |tx: &mut PgConnection| {
        sqlx::query("select 1 from article")
            .execute(&mut *tx)
            .await
            .map_err(WriteError::Database)?;
        if starts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            db.execute("update {}.article set version = 2").await;
        }
        retitle(tx, 1, "late").await.map(|outcome| matches!(outcome, Updated::Conflict(_)))
    };
    assert!(*db.once.run(&pool, &op, work).await.unwrap(), "the second start sees the version");
    assert_eq!(starts.into_inner(), 2);
}
