//! No call ends in a constraint error of pgonce's tables: such an error quotes the row in the server's log.

use std::collections::HashMap;

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use crate::server_log::{logged, logging};
use crate::support::db::TestDb;

const CANARY: &str = "canary9b1d";
const TOKEN: &str = "4b0c8d0a-3f0e-4c57-9f0e-3d1f5b6a7c8d";

/// A public function or procedure with its argument types.
struct Routine {
    name: String,
    is_procedure: bool,
    is_variadic: bool,
    arguments: Vec<(String, String)>,
}

impl Routine {
    async fn all(db: &TestDb) -> Vec<Self> {
        let sql = db.sql(
            r"select p.proname::text, p.prokind = 'p' as is_procedure,
                     array(select coalesce(p.proargnames[n], '') from generate_series(1, p.pronargs) n) as names,
                     array(select format_type(p.proargtypes[n - 1], null) from generate_series(1, p.pronargs) n) as types,
                     p.provariadic <> 0 as is_variadic
                from pg_proc p where p.pronamespace = '{}'::regnamespace and p.proname !~ '^_|^test_'",
        );
        let rows = sqlx::query(sql).fetch_all(&mut db.conn().await).await.unwrap();
        let routine = |row: &PgRow| Self {
            name: row.get(0),
            is_procedure: row.get(1),
            is_variadic: row.get(4),
            arguments: row
                .get::<Vec<String>, _>(2)
                .into_iter()
                .zip(row.get::<Vec<String>, _>(3))
                .collect(),
        };
        rows.iter().map(routine).collect()
    }

    /// Calls the routine with bound values and returns the SQLSTATE of its error.
    async fn call(&self, conn: &mut PgConnection, values: &[Option<String>]) -> Option<String> {
        let casts: Vec<_> = (1..)
            .zip(&self.arguments)
            .map(|(n, (_, r#type))| format!("${n}::text::{type}"))
            .collect();
        let verb = if self.is_procedure { "call" } else { "select" };
        let variadic = if self.is_variadic { "variadic " } else { "" };
        let sql = format!("{verb} alone.{}({variadic}{})", self.name, casts.join(", "));
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for value in values {
            query = query.bind(value);
        }
        let error = query.fetch_all(conn).await.err()?;
        let error = error.as_database_error().unwrap_or_else(|| panic!("{}: {error}", self.name));
        Some(error.code().unwrap().into_owned())
    }

    /// Values within the limits.
    fn values(&self, key: &str) -> Vec<Option<String>> {
        let key = format!("{CANARY} {key}");
        let arrays = HashMap::from([
            ("text[]", format!("{{\"{key}\",\"{key}\"}}")),
            ("uuid[]", format!("{{{TOKEN},{TOKEN}}}")),
            ("bigint[]", "{1000,1000}".to_owned()),
            ("bytea[]", "{a,b}".to_owned()),
            ("boolean[]", "{f,t}".to_owned()),
            ("integer[]", "{200,402}".to_owned()),
            ("timestamp with time zone[]", "{2026-01-01,2026-01-02}".to_owned()),
            ("timestamp with time zone", "2026-01-01".to_owned()),
        ]);
        let value = |(name, r#type): &(String, String)| {
            let value = match (name.as_str(), r#type.as_str()) {
                ("p_on_lapse", _) => "retry".to_owned(),
                ("p_fingerprint" | "p_definition", _) => "f".repeat(36),
                ("p_fingerprints", _) => format!("{{{0},{0}}}", "f".repeat(36)),
                (_, "text") => key.clone(),
                (_, "uuid") => TOKEN.to_owned(),
                (_, "bigint" | "integer") => "1000".to_owned(),
                (_, "bytea") => CANARY.to_owned(),
                (_, "boolean") => "false".to_owned(),
                (name, r#type) => match arrays.get(r#type) {
                    Some(array) => array.clone(),
                    None => panic!("no value for {name} {type} of {}", self.name),
                },
            };
            // An output of a procedure.
            name.starts_with("p_")
                .then_some(value)
                .or_else(|| (!self.is_procedure).then(|| panic!("{name} of {}", self.name)))
        };
        self.arguments.iter().map(value).collect()
    }
}

#[tokio::test]
async fn no_call_ends_in_a_constraint_or_puts_a_value_into_the_servers_log() {
    let (server, db) = logging(&[("log_error_verbosity", "verbose")]).await;
    let routines = Routine::all(&db).await;
    assert!(routines.len() > 20, "{}", routines.len());
    let mut conn = db.conn().await;
    let mut failed: HashMap<String, u32> = HashMap::new();
    let mut check = |routine: &Routine, how: &str, sqlstate: Option<String>| {
        let Some(sqlstate) = sqlstate else { return };
        let own = ["IK001", "IK002", "IK003", "IK005"].contains(&sqlstate.as_str());
        let refused = ["2D000", "55P03", "40001"].contains(&sqlstate.as_str());
        assert!(own || refused, "{} with {how}: {sqlstate}", routine.name);
        *failed.entry(sqlstate).or_default() += 1;
    };
    // Keys in every state: in progress, with steps, completed, failed, released, lapsed, being received.
    for state in [
        "select",
        "call alone.begin_leased($1, $1, $2::uuid, 600000)",
        "call alone.begin_leased($1, $1, $2::uuid, 1)",
        "select alone._begin($1, $1, null, 1000000, $2::uuid, 600000, 0, 'retry', null, false),
                alone.record_step($1, $1, $2::uuid, 'a', null, '')",
        "select alone._begin($1, $1, null, 1000000, $2::uuid, 600000, 0, 'retry', null, false),
                alone.complete($1, $1, $2::uuid)",
        "select alone._begin($1, $1, null, 1000000, $2::uuid, 600000, 0, 'retry', null, false),
                alone.release($1, $1, $2::uuid)",
        "select alone.receive($1, array[$1])",
        "call alone.count_attempt($1, $1)",
    ] {
        for (n, routine) in routines.iter().enumerate() {
            let key = format!("{} {n}", state.len());
            let scope = format!("{CANARY} {key}");
            let state = state.replace("$1", &format!("'{scope}'"));
            let state = state.replace("$2", &format!("'{TOKEN}'"));
            // In an open transaction, and in a finished one.
            let mut other = db.conn().await;
            let in_transaction = !state.starts_with("call");
            if in_transaction {
                sqlx::raw_sql("begin").execute(&mut other).await.unwrap();
            }
            sqlx::raw_sql(sqlx::AssertSqlSafe(state.clone())).execute(&mut other).await.unwrap();
            let values = routine.values(&key);
            if in_transaction {
                check(routine, "a duplicate beside", routine.call(&mut conn, &values).await);
                sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
            }
            for _ in 0..2 {
                check(routine, "a duplicate behind", routine.call(&mut conn, &values).await);
            }
            let mut tx = conn.begin().await.unwrap();
            check(routine, "a transaction", routine.call(&mut tx, &values).await);
            tx.rollback().await.unwrap();
        }
    }
    for (n, routine) in routines.iter().enumerate() {
        let values = routine.values(&format!("null {n}"));
        check(routine, "nulls", routine.call(&mut conn, &vec![None; values.len()]).await);
        for argument in 0..values.len() {
            let mut values = values.clone();
            values[argument] = None;
            let name = &routine.arguments[argument].0;
            check(routine, name, routine.call(&mut conn, &values).await);
            if routine.arguments[argument].1.ends_with("[]") {
                values[argument] = Some("{null,null}".to_owned());
                check(routine, &format!("{name} of nulls"), routine.call(&mut conn, &values).await);
            }
        }
    }
    // Another transaction commits these while a call waits for it.
    let waits = |routine: &&Routine| routine.arguments.iter().any(|(name, _)| name == "p_wait_ms");
    for (n, routine) in routines.iter().filter(waits).enumerate() {
        let mut values = routine.values(&format!("wait {n}"));
        for ((name, _), value) in routine.arguments.iter().zip(&mut values) {
            if name == "p_wait_ms" {
                *value = Some("60000".to_owned());
            }
        }
        let mut other = db.conn().await;
        let key = format!("{CANARY} wait {n}");
        let receive = format!("begin; select alone.receive('{key}', array['{key}'])");
        sqlx::raw_sql(sqlx::AssertSqlSafe(receive)).execute(&mut other).await.unwrap();
        let commit = async {
            db.until_waiting(1).await;
            sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
        };
        let (sqlstate, ()) = tokio::join!(routine.call(&mut conn, &values), commit);
        check(routine, "a duplicate that it waits for", sqlstate);
    }
    println!("{failed:?}");
    assert!(failed.contains_key("IK001") && failed.contains_key("IK002"));
    let log = logged(&db, &server).await;
    assert!(log.contains("IK001"), "errors are in the log: {log}");
    let leak = log.lines().find(|line| line.contains(CANARY));
    assert_eq!(leak, None, "leaked into the server's log");
}
