//! How many messages a second the inbox takes: one connection to a durable PostgreSQL, one by one and in batches.
//! `cargo bench --bench inbox --features throwaway`
//!
//! Every round runs all the variants, one after the other, so that a noisy machine is noisy for all of
//! them. Ratios are medians over the rounds, against one by one. Ids are random, which is the worst case for the
//! primary key: they go to any page of it. There is no work, and so nothing to commit but the inbox's own rows.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, not an API")]

use std::time::Instant;

use pgonce::throwaway::{Options, Throwaway};
use pgonce::{Inbox, PgOnce, Received};
use sqlx::{Connection, PgConnection};

const ROUNDS: usize = 25;

/// How the messages of a variant come.
struct Variant {
    name: &'static str,
    /// Messages per transaction; `None`: one, by `receive`.
    batch: Option<usize>,
    /// How many hundredths of them are seen already.
    seen: usize,
    /// Transactions per round.
    batches: usize,
}

const fn new(name: &'static str, batch: Option<usize>, batches: usize) -> Variant {
    Variant { name, batch, seen: 0, batches }
}

const VARIANTS: [Variant; 7] = [
    new("one by one", None, 150),
    new("batches of 1", Some(1), 150),
    new("batches of 10", Some(10), 75),
    new("batches of 100", Some(100), 50),
    new("batches of 1,000", Some(1000), 10),
    Variant { name: "batches of 100, half are seen", batch: Some(100), seen: 50, batches: 40 },
    Variant { name: "batches of 100, all are seen", batch: Some(100), seen: 100, batches: 40 },
];

/// What one variant did in one round.
struct Measured {
    ids_per_second: f64,
    wal_per_id: f64,
}

/// Whether a message is new.
async fn is_new(inbox: &Inbox, conn: &mut PgConnection, id: &str) -> bool {
    let mut tx = conn.begin().await.unwrap();
    let received = inbox.receive(&mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    matches!(received, Received::New(_))
}

/// How many of a batch are new.
async fn new_of(inbox: &Inbox, conn: &mut PgConnection, ids: &[String]) -> usize {
    let mut tx = conn.begin().await.unwrap();
    let received = inbox.receive_many(&mut tx, ids).await.unwrap();
    tx.commit().await.unwrap();
    received.iter().filter(|received| matches!(received, Received::New(_))).count()
}

/// The batches of one round. What is seen was taken in the rounds before.
fn batches(variant: &Variant, taken: &[String]) -> Vec<Vec<String>> {
    let size = variant.batch.unwrap_or(1);
    let seen = size * variant.seen / 100;
    let mut again =
        fastrand::choose_multiple(taken.iter(), seen * variant.batches).into_iter().cloned();
    let batch = |_| {
        let mut ids: Vec<_> = again.by_ref().take(seen).collect();
        ids.extend((seen..size).map(|_| random_id()));
        fastrand::shuffle(&mut ids);
        ids
    };
    (0..variant.batches).map(batch).collect()
}

/// As long as a UUID.
fn random_id() -> String {
    format!("{:036x}", fastrand::u128(..))
}

async fn round(
    inbox: &Inbox,
    conn: &mut PgConnection,
    variant: &Variant,
    taken: &mut Vec<String>,
) -> Measured {
    let batches = batches(variant, taken);
    let ids = batches.concat();
    let position = wal_position(conn).await;
    let began = Instant::now();
    let mut new = 0;
    for batch in &batches {
        new += match variant.batch {
            None => usize::from(is_new(inbox, conn, &batch[0]).await),
            Some(_) => new_of(inbox, conn, batch).await,
        };
    }
    let took = began.elapsed().as_secs_f64();
    let wal = wal_position(conn).await - position;
    assert_eq!(new, ids.len() * (100 - variant.seen) / 100, "{}", variant.name);
    let count = ids.len() as f64;
    if variant.seen == 0 {
        taken.extend(ids);
    }
    Measured { ids_per_second: count / took, wal_per_id: wal / count }
}

/// How many bytes of WAL were written so far.
async fn wal_position(conn: &mut PgConnection) -> f64 {
    let sql = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
    sqlx::query_scalar(sql).fetch_one(conn).await.unwrap()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// With commas between the thousands.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[tokio::main]
async fn main() {
    let server = Throwaway::start(&Options::new()).await.unwrap();
    let mut conn = PgConnection::connect_with(&server.connect_options()).await.unwrap();
    PgOnce::new().migrate(&mut conn).await.unwrap();
    let inbox = Inbox::new(&PgOnce::new(), "bench").unwrap();

    let mut taken = Vec::new();
    let mut measured: [Vec<Measured>; VARIANTS.len()] = Default::default();
    for number in 0..=ROUNDS {
        for (variant, measured) in VARIANTS.iter().zip(&mut measured) {
            let result = round(&inbox, &mut conn, variant, &mut taken).await;
            if number > 0 {
                measured.push(result); // the first round warms up
            }
        }
    }

    // Distributions add their own name after a space.
    let version = "select split_part(current_setting('server_version'), ' ', 1)";
    let version: String = sqlx::query_scalar(version).fetch_one(&mut conn).await.unwrap();
    println!("PostgreSQL {version}, durable; one connection, {ROUNDS} rounds; medians");
    println!();
    println!("| one transaction each | ids per second | to one by one | bytes of WAL per id |");
    println!("|---|--:|--:|--:|");
    for (variant, results) in VARIANTS.iter().zip(&measured) {
        let rates = || results.iter().map(|result| result.ids_per_second);
        let one_by_one = measured[0].iter().map(|result| result.ids_per_second);
        println!(
            "| {} | {} | {:.1} | {} |",
            variant.name,
            grouped(median(rates())),
            median(rates().zip(one_by_one).map(|(rate, base)| rate / base)),
            grouped(median(results.iter().map(|result| result.wal_per_id))),
        );
    }
    conn.close().await.unwrap();
    server.stop().await;
}
