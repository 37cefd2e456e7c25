//! What the table's layout costs, and what other layouts would cost: bytes at rest, WAL, HOT updates, vacuum's work.
//! Prints Markdown tables. `cargo run --release -p pgonce-bench --bin layout`; with `-- records` only what the history
//! and the audit trail cost.
//!
//! The rows are copies of one that `PgOnce::run` wrote, with other keys, bodies and later times, or come from the SQL
//! functions. Variants change what the migrations create. Byte counts are the same in every run unless keys are random.
//! CPU time is that of the server's process, read from `/proc`; 0 where there is none.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, not an API")]

mod records;

use pgonce::{Failure, Fingerprint, Operation, PgOnce};
use pgonce_testing::{Options, Throwaway};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

/// As long as a UUID.
const ASCENDING: &str = "lpad(n::text, 36, '0')";
const RANDOM: &str = "gen_random_uuid()::text";
/// The copied row, and the table for the copies.
const ONE: &str = "one";
const TABLE: &str = "pgonce.idempotency_keys";

struct Bench {
    conn: PgConnection,
    pid: i32,
}

impl Bench {
    async fn new(server: &Throwaway) -> Self {
        let mut conn = PgConnection::connect_with(&server.connect_options()).await.unwrap();
        let pid = "select pg_backend_pid()";
        let pid = sqlx::query_scalar(pid).fetch_one(&mut conn).await.unwrap();
        Self { conn, pid }
    }

    async fn execute(&mut self, sql: impl Into<String>) {
        self.conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.into()))).await.unwrap();
    }

    async fn ask(&mut self, sql: &str) -> f64 {
        let sql = AssertSqlSafe(format!("select ({sql})::float8"));
        sqlx::query_scalar(sql).fetch_one(&mut self.conn).await.unwrap()
    }

    /// The table's columns in this order, and whether each is a `timestamptz`.
    async fn columns(&mut self, order: &str) -> Vec<(String, bool)> {
        let sql = format!(
            "select attname::text, atttypid = 'timestamptz'::regtype from pg_attribute
              where attrelid = '{TABLE}'::regclass and attnum > 0 and not attisdropped order by {order}"
        );
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut self.conn).await.unwrap()
    }

    /// Inserts copies n = `from` to `to` of the row, each a millisecond later than the last.
    async fn copy(&mut self, key: &str, body: &str, from: u32, to: u32) {
        let columns = self.columns("attnum").await;
        let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let values: Vec<_> = columns
            .iter()
            .map(|(name, is_time)| match name.as_str() {
                "key" => key.to_owned(),
                "response_body" => body.to_owned(),
                _ if *is_time => format!("{name} + n * interval '1 ms'"),
                _ => name.clone(),
            })
            .collect();
        self.execute(format!(
            "insert into {TABLE} ({}) select {} from {ONE}, generate_series({from}, {to}) s(n)",
            names.join(", "),
            values.join(", ")
        ))
        .await;
    }

    async fn wal(&mut self) -> f64 {
        self.ask("pg_current_wal_insert_lsn() - '0/0'").await
    }

    /// The CPU time of the server's process so far.
    fn cpu_micros(&self) -> f64 {
        let path = format!("/proc/{}/schedstat", self.pid);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let nanos = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
        nanos.unwrap_or_default() / 1000.0
    }
}

/// Bytes at rest, for different responses and key orders.
async fn at_rest(bench: &mut Bench) {
    const KEYS: u32 = 1_000_000;
    println!("Bytes per key, {KEYS} keys as `run` writes them\n");
    println!("| response | keys | table | primary key | expiry index | together |");
    println!("|---|---|--:|--:|--:|--:|");
    for bytes in [0, 500] {
        for (order, key) in [("ascending", ASCENDING), ("random", RANDOM)] {
            bench.execute(format!("truncate {TABLE}")).await;
            bench.copy(key, &format!("decode(repeat('7b', {bytes}), 'hex')"), 1, KEYS).await;
            let keys = f64::from(KEYS);
            let table = bench.ask(&format!("pg_table_size('{TABLE}')")).await / keys;
            let primary = format!("pg_relation_size('{TABLE}_pkey')");
            let primary = bench.ask(&primary).await / keys;
            let expiry = format!("pg_relation_size('{TABLE}_expires_at')");
            let expiry = bench.ask(&expiry).await / keys;
            let all = table + primary + expiry;
            println!(
                "| {bytes} bytes | {order} | {table:.0} | {primary:.0} | {expiry:.0} | {all:.0} |"
            );
        }
    }
}

/// The same rows with other column orders.
async fn column_order(bench: &mut Bench) {
    const KEYS: u32 = 100_000;
    bench.execute(format!("truncate {TABLE}")).await;
    bench.copy(ASCENDING, "null", 1, KEYS).await;
    println!("\nColumns in another order, {KEYS} keys without a response\n");
    println!("| order | bytes per key |");
    println!("|---|--:|");
    for (name, order) in [
        ("as the migrations leave it", "attnum"),
        ("fixed width first, the widest first", "attlen < 0, -attlen, attnum"),
        ("by name", "attname"),
        ("variable width first", "attlen > 0, attlen, attnum"),
    ] {
        let columns = bench.columns(order).await;
        let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(", ");
        bench.execute(format!("create table ordered as select {names} from {TABLE}")).await;
        let bytes = bench.ask("pg_relation_size('ordered')").await / f64::from(KEYS);
        bench.execute("drop table ordered").await;
        println!("| {name} | {bytes:.1} |");
    }
}

/// Keys that are begun and completed in one transaction each, with one alteration of the schema.
async fn begun_and_completed(server: &Throwaway) {
    const KEYS: u32 = 20_000;
    println!("\nBegun and completed by the verbs, {KEYS} random keys\n");
    println!("| layout | response | HOT updates | WAL | table | indexes |");
    println!("|---|---|--:|--:|--:|--:|");
    for (name, alteration) in [
        ("as the migrations leave it", ""),
        ("fillfactor 100", "alter table TABLE set (fillfactor = 100)"),
        ("fillfactor 90", "alter table TABLE set (fillfactor = 90)"),
        ("fillfactor 70", "alter table TABLE set (fillfactor = 70)"),
        ("no expiry index", "drop index TABLE_expires_at"),
        ("an index on status", "create index on TABLE (status)"),
        ("an index of those in progress", "create index on TABLE (created_at) where status = 1"),
        ("an index on lease_expires_at", "create index on TABLE (lease_expires_at)"),
    ] {
        for bytes in [460, 1500] {
            let mut bench = Bench::new(server).await;
            bench.execute("drop schema pgonce cascade").await;
            PgOnce::new().migrate(&mut bench.conn).await.unwrap();
            bench.execute(alteration.replace("TABLE", TABLE)).await;
            let before = bench.wal().await;
            bench
                .execute(format!(
                    "do $$ declare claim record; begin
                       for n in 1..{KEYS} loop
                         select scope, key, fingerprint into claim from (
                           select scope, {RANDOM} as key, fingerprint from {ONE} offset 0) o;
                         perform pgonce.complete(p_scope => claim.scope, p_key => claim.key,
                           p_token => (pgonce.begin_operation(p_scope => claim.scope, p_key => claim.key,
                                                  p_fingerprint => claim.fingerprint)).token,
                           p_response_code => 201, p_response_body => decode(repeat('7b', {bytes}), 'hex'));
                         commit;
                       end loop;
                     end $$"
                ))
                .await;
            let keys = f64::from(KEYS);
            let wal = (bench.wal().await - before) / keys;
            bench.conn.close().await.unwrap(); // closing reports the statistics
            let mut bench = Bench::new(server).await;
            let updates = format!("pg_stat_get_tuples_updated('{TABLE}'::regclass)");
            while bench.ask(&updates).await < keys {
                tokio::task::yield_now().await;
            }
            let hot = format!("pg_stat_get_tuples_hot_updated('{TABLE}'::regclass)");
            let hot = bench.ask(&hot).await / keys * 100.0;
            let table = bench.ask(&format!("pg_table_size('{TABLE}')")).await / keys;
            let indexes = bench.ask(&format!("pg_indexes_size('{TABLE}')")).await / keys;
            println!(
                "| {name} | {bytes} bytes | {hot:.0} % | {wal:.0} | {table:.0} | {indexes:.0} |"
            );
        }
    }
}

/// Large responses with different compressions.
async fn compression(bench: &mut Bench) {
    const KEYS: u32 = 2000;
    println!("\nLarge responses (JSON of payments), {KEYS} keys\n");
    println!("| response | stored | bytes per key | WAL | CPU µs per key |");
    println!("|---|---|--:|--:|--:|");
    for (bytes, payments) in [("4 kB", 27), ("64 kB", 430)] {
        bench
            .execute(format!(
                "drop table if exists body; create table body (n int, body bytea);
                 alter table body alter body set storage external;
                 insert into body
                 select n, convert_to(json_agg(json_build_object(
                          'id', gen_random_uuid(), 'amount', (random() * 100000)::int, 'currency', 'EUR',
                          'status', 'succeeded', 'created', now() - p * interval '1 min'))::text, 'UTF8')
                   from generate_series(0, 99) n, generate_series(1, {payments}) p group by n"
            ))
            .await;
        for (name, alteration) in [
            ("lz4", "set storage extended, alter response_body set compression lz4"),
            ("pglz", "set storage extended, alter response_body set compression pglz"),
            ("not compressed", "set storage external"),
        ] {
            let alteration = format!("alter table {TABLE} alter response_body {alteration}");
            bench.execute(format!("truncate {TABLE}; {alteration}")).await;
            let (wal, cpu) = (bench.wal().await, bench.cpu_micros());
            bench.copy(ASCENDING, "(select body from body b where b.n = s.n % 100)", 1, KEYS).await;
            let keys = f64::from(KEYS);
            let (wal, cpu) = ((bench.wal().await - wal) / keys, (bench.cpu_micros() - cpu) / keys);
            let table = bench.ask(&format!("pg_table_size('{TABLE}')")).await / keys;
            println!("| {bytes} | {name} | {table:.0} | {wal:.0} | {cpu:.0} |");
        }
    }
}

/// Keys are replaced; vacuum runs when autovacuum would.
async fn churn(bench: &mut Bench) {
    const KEYS: u32 = 200_000;
    const STEP: u32 = 4000;
    const TURNOVERS: u32 = 3;
    println!("\n{KEYS} random keys, turned over {TURNOVERS} times; the last turnover\n");
    println!("| vacuum after | table and indexes, at most | vacuums | CPU µs per key | WAL |");
    println!("|---|--:|--:|--:|--:|");
    for (name, after) in [
        ("20 % and 50 rows, the default", KEYS / 5 + 50),
        ("10 %", KEYS / 10),
        ("5 %", KEYS / 20),
        ("2 %", KEYS / 50),
    ] {
        bench.execute(format!("truncate {TABLE}")).await;
        bench.copy(RANDOM, "decode(repeat('7b', 460), 'hex')", 1, KEYS).await;
        bench.execute(format!("vacuum analyze {TABLE}")).await;
        let size = format!("pg_total_relation_size('{TABLE}')");
        let fresh = bench.ask(&size).await;
        let (mut dead, mut vacuums, mut cpu, mut wal, mut largest) = (0, 0, 0.0, 0.0, fresh);
        for step in 0..KEYS / STEP * TURNOVERS {
            let first = KEYS + step * STEP + 1;
            bench.copy(RANDOM, "decode(repeat('7b', 460), 'hex')", first, first + STEP - 1).await;
            bench
                .execute(format!(
                    "delete from {TABLE} where ctid = any (array(
                       select ctid from {TABLE} order by expires_at limit {STEP}))"
                ))
                .await;
            dead += STEP;
            if dead >= after {
                let before = (bench.cpu_micros(), bench.wal().await);
                bench.execute(format!("vacuum {TABLE}")).await;
                (dead, vacuums) = (0, vacuums + 1);
                cpu += bench.cpu_micros() - before.0;
                wal += bench.wal().await - before.1;
            }
            if step + 1 == KEYS / STEP * (TURNOVERS - 1) {
                (vacuums, cpu, wal, largest) = (0, 0.0, 0.0, 0.0);
            }
            largest = bench.ask(&size).await.max(largest);
        }
        let keys = f64::from(KEYS);
        println!(
            "| {name} | {:.2} × fresh | {vacuums} | {:.2} | {:.0} |",
            largest / fresh,
            cpu / keys,
            wal / keys
        );
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Off (with `fast`), because full-page images depend on checkpoints and so on time.
    let options = Options::new()
        .fast()
        .setting("autovacuum", "off")
        .setting("shared_buffers", "1GB")
        .setting("max_wal_size", "8GB");
    let server = Throwaway::start(&options).await.unwrap();
    let pool = PgPool::connect_with(server.connect_options()).await.unwrap();
    let once = PgOnce::new();
    once.migrate(&mut pool.acquire().await.unwrap()).await.unwrap();
    let op = Operation::new("bench/payments.create", "one").unwrap();
    let op = op.fingerprint(Fingerprint::of_bytes("request"));
    let work = async |_: &mut PgConnection| Ok::<_, Failure>("paid".to_owned());
    once.run(&pool, &op, work).await.unwrap();
    pool.close().await;

    let mut bench = Bench::new(&server).await;
    bench.execute(format!("create table {ONE} as select * from {TABLE}")).await;
    let only_records = std::env::args().any(|argument| argument == "records");
    let version = "select split_part(current_setting('server_version'), ' ', 1)";
    let version: String = sqlx::query_scalar(version).fetch_one(&mut bench.conn).await.unwrap();
    println!("PostgreSQL {version}; scopes of 21 bytes, keys of 36, with a fingerprint\n");
    if !only_records {
        at_rest(&mut bench).await;
        column_order(&mut bench).await;
        compression(&mut bench).await;
        bench
            .execute(format!("alter table {TABLE} alter response_body set storage extended"))
            .await;
        churn(&mut bench).await;
        begun_and_completed(&server).await;
    }
    records::audit(&server).await;
    records::history(&server).await;
    bench.conn.close().await.unwrap();
    server.stop().await;
}
