//! The only place that names the SQL files and puts the schema into them.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::schema::SchemaName;

/// A released migration never changes. Its number is its place in this list, from 1.
pub(crate) const MIGRATIONS: &[(&str, &str)] = &[
    ("0001_idempotency_keys", include_str!("../migrations/0001_idempotency_keys.sql")),
    ("0002_steps", include_str!("../migrations/0002_steps.sql")),
    ("0003_unfinished", include_str!("../migrations/0003_unfinished.sql")),
    ("0004_write_once", include_str!("../migrations/0004_write_once.sql")),
    ("0005_column_order", include_str!("../migrations/0005_column_order.sql")),
    ("0006_room_for_updates", include_str!("../migrations/0006_room_for_updates.sql")),
];

/// The functions and views, in the order in which they can be created. `migrate` applies all of
/// them or none.
pub(crate) const FUNCTIONS: &[(&str, &str)] = &[
    ("clock", include_str!("../sql/clock.sql")),
    ("lock_id", include_str!("../sql/lock_id.sql")),
    ("check_name", include_str!("../sql/check_name.sql")),
    ("check_range", include_str!("../sql/check_range.sql")),
    ("check_begin", include_str!("../sql/check_begin.sql")),
    ("fingerprint", include_str!("../sql/fingerprint.sql")),
    ("look", include_str!("../sql/look.sql")),
    ("decide", include_str!("../sql/decide.sql")),
    ("bound_locks", include_str!("../sql/bound_locks.sql")),
    ("take_lock", include_str!("../sql/take_lock.sql")),
    ("lock_replay", include_str!("../sql/lock_replay.sql")),
    ("enlist", include_str!("../sql/enlist.sql")),
    ("write_over", include_str!("../sql/write_over.sql")),
    ("check_locks", include_str!("../sql/check_locks.sql")),
    ("wait_for", include_str!("../sql/wait_for.sql")),
    ("can_open", include_str!("../sql/can_open.sql")),
    ("begin", include_str!("../sql/begin.sql")),
    ("open_once", include_str!("../sql/open_once.sql")),
    ("claim_lost", include_str!("../sql/claim_lost.sql")),
    ("lock_claim", include_str!("../sql/lock_claim.sql")),
    ("omits", include_str!("../sql/omits.sql")),
    ("finish", include_str!("../sql/finish.sql")),
    ("insert_finished", include_str!("../sql/insert_finished.sql")),
    ("complete", include_str!("../sql/complete.sql")),
    ("fail", include_str!("../sql/fail.sql")),
    ("release", include_str!("../sql/release.sql")),
    ("extend", include_str!("../sql/extend.sql")),
    ("record_step", include_str!("../sql/record_step.sql")),
    ("recorded_steps", include_str!("../sql/recorded_steps.sql")),
    ("note", include_str!("../sql/note.sql")),
    ("check_receive", include_str!("../sql/check_receive.sql")),
    ("insert_received", include_str!("../sql/insert_received.sql")),
    ("receive_one", include_str!("../sql/receive_one.sql")),
    ("receive", include_str!("../sql/receive.sql")),
    ("message_status", include_str!("../sql/message_status.sql")),
    ("count_attempt", include_str!("../sql/count_attempt.sql")),
    ("remembers", include_str!("../sql/remembers.sql")),
    ("redrive", include_str!("../sql/redrive.sql")),
    ("reap", include_str!("../sql/reap.sql")),
    ("overdue", include_str!("../sql/overdue.sql")),
    ("adopt", include_str!("../sql/adopt.sql")),
    ("keys", include_str!("../sql/keys.sql")),
    ("abandoned", include_str!("../sql/abandoned.sql")),
    ("pick_abandoned", include_str!("../sql/pick_abandoned.sql")),
    ("inspect", include_str!("../sql/inspect.sql")),
    ("status", include_str!("../sql/status.sql")),
    ("stats", include_str!("../sql/stats.sql")),
];

/// Times cross as microseconds since the epoch: no `sqlx/time`, and `infinity` cannot panic.
macro_rules! micros {
    ($column:literal) => {
        concat!(
            "case when pg_catalog.isfinite(",
            $column,
            ") then (extract(epoch from ",
            $column,
            ") operator(pg_catalog.*) 1000000)::bigint end as ",
            $column
        )
    };
}

/// The columns of `keys`, `inspect` and `status` that [`Record`](crate::Record) reads.
macro_rules! record_columns {
    () => {
        concat!(
            "status, claim, attempt, token, fingerprinted, response_code, response_omitted, ",
            micros!("created_at"),
            ", ",
            micros!("completed_at"),
            ", ",
            micros!("lease_expires_at"),
            ", ",
            micros!("expires_at")
        )
    };
}

/// The calls of the functions, with the schema filled in. Operators that are outside the functions are qualified:
/// the caller's `search_path` may lead to others.
pub(crate) struct Statements {
    pub(crate) begin: SqlStr,
    pub(crate) glance: SqlStr,
    pub(crate) wait_for: SqlStr,
    pub(crate) open_once: SqlStr,
    pub(crate) insert_finished: SqlStr,
    pub(crate) complete: SqlStr,
    pub(crate) fail: SqlStr,
    pub(crate) release: SqlStr,
    pub(crate) extend: SqlStr,
    pub(crate) record_step: SqlStr,
    pub(crate) recorded_steps: SqlStr,
    pub(crate) note: SqlStr,
    pub(crate) receive: SqlStr,
    pub(crate) count_attempt: SqlStr,
    pub(crate) message_status: SqlStr,
    pub(crate) redrive: SqlStr,
    pub(crate) remembers: SqlStr,
    pub(crate) adopt: SqlStr,
    pub(crate) reap: SqlStr,
    pub(crate) overdue: SqlStr,
    pub(crate) inspect: SqlStr,
    pub(crate) status: SqlStr,
    pub(crate) list: SqlStr,
    pub(crate) stats: SqlStr,
    pub(crate) abandoned: SqlStr,
    pub(crate) pick_abandoned: SqlStr,
}

// Short: it is part of the Debug of every claim.
impl std::fmt::Debug for Statements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Statements(..)")
    }
}

impl Statements {
    pub(crate) fn new(schema: &SchemaName) -> Self {
        let call = |template| statement(schema, template);
        Self {
            begin: call(concat!(
                // By name: columns that a later version adds must not change this result.
                "select answer, token, attempt, lease_remaining_ms, held_because, status, ",
                "response_code, response_headers, response_body, response_omitted ",
                r#"from :"schema".begin($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"#
            )),
            // As one plain statement: what is called in it is put in its place when it is planned (which takes a
            // clock that is read before), and it costs little more than a select by the key.
            glance: call(concat!(
                "select case when pg_catalog.isfinite(k.expires_at) then d.answer end as answer, ",
                "case when k.status operator(pg_catalog.=) 2 then 'completed' else 'failed' end as status, ",
                "k.response_code, k.response_headers, k.response_body, k.response_omitted, ",
                r#"case when k.status is null and :"schema".can_open() then "#,
                r#"pg_catalog.pg_try_advisory_xact_lock_shared(:"schema".lock_id($1, $2)) end as is_free "#,
                r#"from (select :"schema".clock() as at offset 0) t "#,
                r#"left join :"schema".idempotency_keys k "#,
                r#"on k.scope operator(pg_catalog.=) $1 collate pg_catalog."C" "#,
                r#"and k.key operator(pg_catalog.=) $2 collate pg_catalog."C" "#,
                r#"cross join lateral (select :"schema".decide(k, t.at, $3, 'retry', null) as answer) d"#,
            )),
            wait_for: call(r#"select :"schema".wait_for($1, $2, $3)"#),
            open_once: call(r#"select :"schema".open_once($1, $2, $3, $4, $5)"#),
            insert_finished: call(
                r#"select :"schema".insert_finished($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"#,
            ),
            complete: call(r#"select :"schema".complete($1, $2, $3, $4, $5, $6, $7, $8)"#),
            fail: call(r#"select :"schema".fail($1, $2, $3, $4, $5, $6, $7, $8)"#),
            release: call(r#"select :"schema".release($1, $2, $3)"#),
            extend: call(r#"select :"schema".extend($1, $2, $3, $4)"#),
            record_step: call(r#"select :"schema".record_step($1, $2, $3, $4, $5, $6)"#),
            recorded_steps: call(
                r#"select name, definition, output from :"schema".recorded_steps($1, $2, $3)"#,
            ),
            note: call(r#"select :"schema".note($1, $2, $3, $4, $5, $6)"#),
            receive: call(concat!(
                "select answer, attempt, status, last_error, response_code, response_headers, response_body, ",
                r#"response_omitted from :"schema".receive($1, $2, $3, $4, $5)"#
            )),
            count_attempt: call(concat!(
                "select status, used, last_error ",
                r#"from :"schema".count_attempt($1, $2, $3, $4, $5, $6)"#
            )),
            message_status: call(
                r#"select status, used, last_error from :"schema".message_status($1, $2, $3)"#,
            ),
            remembers: call(
                r#"select (extract(epoch from :"schema".remembers($1)) operator(pg_catalog.*) 1000)::bigint"#,
            ),
            redrive: call(r#"select :"schema".redrive($1, $2)"#),
            adopt: call(r#"select :"schema".adopt($1, $2, $3, $4)"#),
            reap: call(concat!(
                "select deleted, ",
                micros!("watermark"),
                r#" from :"schema".reap($1, pg_catalog.timestamptz 'epoch' operator(pg_catalog.+) ($2 operator(pg_catalog.*) interval '1 microsecond'))"#
            )),
            overdue: call(r#"select backlog, oldest_ms from :"schema".overdue()"#),
            inspect: call(concat!(
                "select response_headers, response_body, ",
                record_columns!(),
                r#" from :"schema".inspect($1, $2)"#
            )),
            status: call(concat!(
                "select steps, progress, last_error, ",
                record_columns!(),
                r#" from :"schema".status($1, $2)"#
            )),
            list: call(concat!(
                "select scope, key, ",
                record_columns!(),
                r#" from :"schema".keys"#,
                " where ($1 is null or scope operator(pg_catalog.=) $1)",
                " and ($2 is null or status operator(pg_catalog.=) $2)",
                " and ($3 is null or claim operator(pg_catalog.=) $3)",
                " order by scope, key limit $4"
            )),
            abandoned: call(concat!(
                "select scope, key, ",
                record_columns!(),
                r#" from :"schema".abandoned a order by a.lease_expires_at limit $1"#
            )),
            pick_abandoned: call(concat!(
                "select k.scope, k.key, ",
                record_columns!(),
                r#" from :"schema".pick_abandoned($1, $2, $3, $4) p"#,
                r#" cross join lateral (select * from :"schema".keys k"#,
                r#" where k.scope operator(pg_catalog.=) p.scope collate pg_catalog."C""#,
                r#" and k.key operator(pg_catalog.=) p.key collate pg_catalog."C" offset 0) k"#
            )),
            stats: call(concat!(
                "select live, lapsed, released, completed, failed, overdue, oldest_in_progress_ms, ",
                r#"table_bytes, index_bytes from :"schema".stats()"#
            )),
        }
    }
}

/// A statement of ours with the schema filled in. The text is ours and a [`SchemaName`] needs no
/// escaping, which is why this may assert that it is safe.
pub(crate) fn statement(schema: &SchemaName, template: &str) -> SqlStr {
    AssertSqlSafe(Arc::<str>::from(render(schema, template))).into_sql_str()
}

/// Fills in the schema: `:"schema"` as an identifier, `:'schema'` as text, as psql would.
pub(crate) fn render(schema: &SchemaName, template: &str) -> String {
    template
        .replace(r#":"schema""#, &format!("\"{}\"", schema.as_str()))
        .replace(":'schema'", &format!("'{}'", schema.as_str()))
}
