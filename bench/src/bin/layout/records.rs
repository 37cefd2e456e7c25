//! What the audit trail and the history cost the server, per key and per row.

use pgonce::PgOnce;
use pgonce_testing::Throwaway;
use sqlx::Connection;

use crate::{ASCENDING, Bench, ONE, TABLE};

const SINGLE: u32 = 50_000;
const MESSAGES: u32 = 1_000_000;
const BATCH: u32 = 1000;

/// WAL and CPU time per key of each way to write keys, without the trail and with it.
pub(crate) async fn audit(server: &Throwaway) {
    let ways = [
        ("a key that `run` writes", SINGLE, loop_of(SINGLE, &inserted())),
        ("a key begun and completed by the verbs", SINGLE, loop_of(SINGLE, &begun_and_completed())),
        ("a message, received in batches of 1,000", MESSAGES, received()),
        ("a message, reaped in batches of 1,000", MESSAGES, format!("call pgonce.reap({BATCH})")),
    ];
    println!("\nThe audit trail; {SINGLE} keys, {MESSAGES} messages\n");
    println!("|  | lines | WAL, off | WAL, on | CPU µs, off | CPU µs, on |");
    println!("|---|--:|--:|--:|--:|--:|");
    let (mut figures, mut at_rest) = (Vec::new(), String::new());
    for switch in ["audit_off()", "audit_on()"] {
        let mut bench = fresh(server).await;
        bench.execute(format!("select pgonce.{switch}")).await;
        let mut of_ways = Vec::new();
        for (_, keys, way) in &ways {
            let keys = f64::from(*keys);
            let lines = bench.ask("select count(*) from pgonce.audit").await;
            let (wal, cpu) = (bench.wal().await, bench.cpu_micros());
            bench.execute(way.as_str()).await;
            let (wal, cpu) = ((bench.wal().await - wal) / keys, (bench.cpu_micros() - cpu) / keys);
            let lines = (bench.ask("select count(*) from pgonce.audit").await - lines) / keys;
            of_ways.push((lines, wal, cpu));
        }
        figures.push(of_ways);
        if switch == "audit_on()" {
            at_rest = of_lines(&mut bench).await;
        }
        bench.conn.close().await.unwrap();
    }
    for (n, (name, ..)) in ways.iter().enumerate() {
        let ((_, wal_off, cpu_off), (lines, wal_on, cpu_on)) = (figures[0][n], figures[1][n]);
        println!(
            "| {name} | {lines:.0} | {wal_off:.0} | {wal_on:.0} | {cpu_off:.1} | {cpu_on:.1} |"
        );
    }
    println!("{at_rest}");
}

async fn of_lines(bench: &mut Bench) -> String {
    let lines = bench.ask("select count(*) from pgonce.audit").await;
    let of = "select sum(SIZE(relid)) from pg_partition_tree('pgonce.audit') where isleaf";
    let table = bench.ask(&of.replace("SIZE", "pg_table_size")).await / lines;
    let index = bench.ask(&of.replace("SIZE", "pg_indexes_size")).await / lines;
    format!("\nBytes per line at rest: {table:.0} in the table, {index:.0} in its index")
}

/// A new schema.
async fn fresh(server: &Throwaway) -> Bench {
    let mut bench = Bench::new(server).await;
    bench.execute("drop schema pgonce cascade").await;
    PgOnce::new().migrate(&mut bench.conn).await.unwrap();
    bench
}

/// Each turn commits.
fn loop_of(turns: u32, statement: &str) -> String {
    format!(
        "do $$ declare claim record; begin for n in 1..{turns} loop {statement}; commit; end loop; end $$"
    )
}

fn inserted() -> String {
    format!(
        "insert into {TABLE} (scope, key, status, created_at, expires_at, fingerprint, response_code, response_headers,
                              response_body, response_omitted)
         select scope, {ASCENDING}, status, created_at, expires_at, fingerprint, response_code, response_headers,
                response_body, response_omitted from {ONE}"
    )
}

fn begun_and_completed() -> String {
    format!(
        "select o.scope, o.key, b.token into claim
           from (select scope, 'v' || {ASCENDING} as key, fingerprint from {ONE} offset 0) o
          cross join lateral pgonce.begin_operation(o.scope, o.key, o.fingerprint) b;
         perform pgonce.complete(claim.scope, claim.key, claim.token, 201, null, '{{\"id\": 1}}')"
    )
}

/// Forgotten at once, for the reaper.
fn received() -> String {
    let batch = format!(
        "perform pgonce.receive('bench/payments.create', array(
           select 'm' || lpad((n * {BATCH} + m)::text, 35, '0') from generate_series(1, {BATCH}) m), 1)"
    );
    loop_of(MESSAGES / BATCH, &batch)
}

/// WAL and CPU time per row, written for the first time, again in its minute, and reaped.
pub(crate) async fn history(server: &Throwaway) {
    const ROWS: u32 = 1000;
    const MINUTES: u32 = 50;
    const AGAIN: u32 = 5;
    println!(
        "\nThe history; {ROWS} rows in a call, of {MINUTES} minutes, each written {AGAIN} times again\n"
    );
    println!("| a row is | WAL | CPU µs |");
    println!("|---|--:|--:|");
    let mut bench = fresh(server).await;
    let (mut wal, mut cpu) = ([0.0; 2], [0.0; 2]);
    for minute in 1..=MINUTES {
        for total in 1..=AGAIN + 1 {
            let call = format!(
                "select pgonce._record_history('00000000-0000-0000-0000-000000000001', array_fill({minute}::bigint, array[{ROWS}]),
                   array(select 'bench/payments.' || lpad(n::text, 6, '0') from generate_series(1, {ROWS}) n),
                   array_fill('payments'::text, array[{ROWS}]), array_fill({total}::bigint, array[{ROWS} * 17]), 1)"
            );
            let before = (bench.wal().await, bench.cpu_micros());
            bench.execute(call).await;
            let which = usize::from(total > 1);
            wal[which] += bench.wal().await - before.0;
            cpu[which] += bench.cpu_micros() - before.1;
        }
    }
    let rows = f64::from(ROWS * MINUTES);
    let size = bench.ask("pg_total_relation_size('pgonce.history')").await / rows;
    let before = (bench.wal().await, bench.cpu_micros());
    bench.execute(format!("call pgonce.reap({ROWS})")).await;
    let reaped = (bench.wal().await - before.0, bench.cpu_micros() - before.1);
    for (what, wal, cpu, count) in [
        ("written for the first time", wal[0], cpu[0], rows),
        ("written again", wal[1], cpu[1], rows * f64::from(AGAIN)),
        ("reaped", reaped.0, reaped.1, rows),
    ] {
        println!("| {what} | {:.0} | {:.1} |", wal / count, cpu / count);
    }
    println!("\nBytes per row at rest: {size:.0}, with indexes");
    bench.conn.close().await.unwrap();
}
