//! The statements that Rust sends, and the only place that puts the schema into SQL.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::protocol::schema::SchemaName;

/// Times cross as microseconds since the epoch: no `sqlx/time`, and `infinity` cannot panic. It is the largest number or
/// the smallest.
macro_rules! micros {
    ($column:literal) => {
        concat!(
            "case when pg_catalog.isfinite(",
            $column,
            ") then (extract(epoch from ",
            $column,
            ") operator(pg_catalog.*) 1000000)::bigint when ",
            $column,
            " operator(pg_catalog.>) pg_catalog.now() then 9223372036854775807 when ",
            $column,
            " operator(pg_catalog.<) pg_catalog.now() then '-9223372036854775808'::bigint end as ",
            $column
        )
    };
}

/// The columns of `keys`, `inspect_key` and `operation_status` that [`Record`](crate::Record) reads.
macro_rules! record_columns {
    () => {
        concat!(
            "status, claim, attempt, seen, fingerprinted, response_code, response_omitted, ",
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

/// Times from microseconds since 1970, in their order.
macro_rules! times {
    ($parameter:literal) => {
        concat!(r#":"schema"._times("#, $parameter, ")")
    };
}

/// The counts of `history` and `history_by_scope`.
macro_rules! history_columns {
    () => {
        concat!(
            "started, replayed, in_progress, mismatch, held, recovered, completed, failed, released, claim_lost, ",
            "commit_unknown, duplicates, value, unkeyed, observed_duplicates, observed_mismatches, observed_value"
        )
    };
}

/// The statements, with the schema filled in. Operators that are outside the functions are qualified: the caller's
/// `search_path` may lead to others.
pub(crate) struct Statements {
    pub(crate) begin: SqlStr,
    pub(crate) look: SqlStr,
    pub(crate) wait_for_key: SqlStr,
    pub(crate) insert_finished: SqlStr,
    pub(crate) complete: SqlStr,
    pub(crate) fail: SqlStr,
    pub(crate) release: SqlStr,
    pub(crate) begin_leased: SqlStr,
    pub(crate) extend_leases: SqlStr,
    pub(crate) complete_leased: SqlStr,
    pub(crate) fail_leased: SqlStr,
    pub(crate) release_leased: SqlStr,
    pub(crate) lapse_leased: SqlStr,
    pub(crate) record_step: SqlStr,
    pub(crate) commit_step: SqlStr,
    pub(crate) recorded_steps: SqlStr,
    pub(crate) report_progress: SqlStr,
    pub(crate) receive: SqlStr,
    pub(crate) count_attempt: SqlStr,
    pub(crate) holds: SqlStr,
    pub(crate) message_status: SqlStr,
    pub(crate) redrive_message: SqlStr,
    pub(crate) consumer_retention: SqlStr,
    pub(crate) take_over_claim: SqlStr,
    pub(crate) revoke_claim: SqlStr,
    pub(crate) finished_by: SqlStr,
    pub(crate) reap: SqlStr,
    pub(crate) reap_backlog: SqlStr,
    pub(crate) anomalies: SqlStr,
    pub(crate) set_mode: SqlStr,
    pub(crate) rollout_modes: SqlStr,
    pub(crate) rollout_changes: SqlStr,
    pub(crate) adoption: SqlStr,
    pub(crate) backfill: SqlStr,
    pub(crate) undo_backfill: SqlStr,
    pub(crate) audit_on: SqlStr,
    pub(crate) audit_off: SqlStr,
    pub(crate) audit: SqlStr,
    pub(crate) audit_note: SqlStr,
    pub(crate) record_history: SqlStr,
    pub(crate) history: SqlStr,
    pub(crate) history_by_scope: SqlStr,
    pub(crate) inspect_key: SqlStr,
    pub(crate) operation_status: SqlStr,
    pub(crate) list: SqlStr,
    pub(crate) table_stats: SqlStr,
    pub(crate) unfinished_keys: SqlStr,
    pub(crate) consumers: SqlStr,
    pub(crate) overview: SqlStr,
    pub(crate) takes_writes: SqlStr,
    pub(crate) scopes: SqlStr,
    pub(crate) search_keys: SqlStr,
    pub(crate) key_details: SqlStr,
    pub(crate) key_steps: SqlStr,
    pub(crate) step_output: SqlStr,
    pub(crate) abandoned: SqlStr,
    pub(crate) pick_abandoned: SqlStr,
    pub(crate) picked: SqlStr,
}

// Short: it is part of the Debug of every claim.
impl std::fmt::Debug for Statements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Statements(..)")
    }
}

impl Statements {
    pub(crate) fn new(schema: &SchemaName) -> Self {
        let fill = |template| statement(schema, template);
        Self {
            begin: fill(concat!(
                // By name: columns that a later version adds must not change this result.
                "select answer, token, attempt, lease_remaining_ms, held_because, status, ",
                "response_code, response_headers, response_body, response_omitted, recovered ",
                r#"from :"schema".begin_operation($1, $2, $3, $4, $5, $6, $7, $8)"#
            )),
            look: fill(include_str!("../../sql/statements/look.sql")),
            wait_for_key: fill(r#"select :"schema"._wait_for_key($1, $2, $3)"#),
            insert_finished: fill(include_str!("../../sql/statements/insert_finished.sql")),
            complete: fill(r#"select :"schema".complete($1, $2, $3, $4, $5, $6, $7, $8)"#),
            fail: fill(r#"select :"schema".fail($1, $2, $3, $4, $5, $6, $7, $8, $9)"#),
            release: fill(r#"select :"schema".release($1, $2, $3)"#),
            begin_leased: fill(
                r#"call :"schema".begin_leased($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"#,
            ),
            extend_leases: fill(r#"call :"schema".extend_leases($1, $2, $3, $4)"#),
            complete_leased: fill(
                r#"call :"schema".complete_leased($1, $2, $3, $4, $5, $6, $7, $8)"#,
            ),
            fail_leased: fill(r#"call :"schema".fail_leased($1, $2, $3, $4, $5, $6, $7, $8, $9)"#),
            release_leased: fill(r#"call :"schema".release_leased($1, $2, $3)"#),
            lapse_leased: fill(r#"call :"schema".lapse_leased($1, $2, $3, $4, $5, $6)"#),
            record_step: fill(r#"select :"schema".record_step($1, $2, $3, $4, $5, $6)"#),
            commit_step: fill(r#"call :"schema".commit_step($1, $2, $3, $4, $5, $6)"#),
            recorded_steps: fill(
                r#"select name, definition, output from :"schema".recorded_steps($1, $2, $3)"#,
            ),
            report_progress: fill(r#"call :"schema".report_progress($1, $2, $3, $4)"#),
            receive: fill(concat!(
                "select answer, attempt, status, last_error, response_code, response_headers, response_body, ",
                r#"response_omitted from :"schema".receive($1, $2, $3, $4, $5)"#
            )),
            count_attempt: fill(r#"call :"schema".count_attempt($1, $2, $3, $4, $5, $6)"#),
            holds: fill(
                r#"select :"schema"._holds($1) as holds, pg_catalog.getdatabaseencoding()::pg_catalog.text as encoding"#,
            ),
            message_status: fill(
                r#"select status, used, last_error from :"schema".message_status($1, $2, $3)"#,
            ),
            consumer_retention: fill(
                r#"select (extract(epoch from :"schema".consumer_retention($1)) operator(pg_catalog.*) 1000)::bigint"#,
            ),
            redrive_message: fill(r#"select :"schema".redrive_message($1, $2, $3)"#),
            take_over_claim: fill(r#"select :"schema".take_over_claim($1, $2, $3)"#),
            revoke_claim: fill(r#"select :"schema".revoke_claim($1, $2, $3)"#),
            finished_by: fill(r#"select :"schema"._finished_by($1, $2, $3)"#),
            reap: fill(r#"call :"schema".reap($1, 1, $2)"#),
            reap_backlog: fill(r#"select backlog, oldest_ms from :"schema".reap_backlog()"#),
            anomalies: fill(
                r#"select anomaly, scope, saw, matters, remedy from :"schema".anomalies()"#,
            ),
            set_mode: fill(r#"select :"schema".set_mode($1, $2)"#),
            rollout_modes: fill(concat!(
                "select class, mode, role, actor, ",
                micros!("at"),
                r#" from :"schema".rollout_modes()"#
            )),
            rollout_changes: fill(concat!(
                "select class, mode, role, actor, ",
                micros!("at"),
                r#" from :"schema".rollout_changes($1, $2)"#
            )),
            adoption: fill(
                r#"select a.* from :"schema".adoption(pg_catalog.to_timestamp($1), pg_catalog.to_timestamp($2)) a"#,
            ),
            backfill: fill(concat!(
                "select inserted, known, expired from ",
                r#":"schema".backfill($1, $2, "#,
                times!("$3"),
                ", $4, $5, $6, $7, $8, $9, $10)"
            )),
            undo_backfill: fill(concat!(
                "select deleted, kept from ",
                r#":"schema".undo_backfill($1, $2, "#,
                times!("$3"),
                ", $4, $5, $6, $7, $8, $9, $10)"
            )),
            audit_on: fill(r#"select :"schema".audit_on($1)"#),
            audit_off: fill(r#"select :"schema".audit_off()"#),
            audit: fill(concat!(
                "select action, attempt, role, actor, seen, txid, ",
                micros!("at"),
                r#" from :"schema".audit($1, $2, $3)"#
            )),
            audit_note: fill(r#"select :"schema".audit_note($1, $2, $3)"#),
            record_history: fill(r#"call :"schema".record_history($1, $2, $3, $4, $5, $6)"#),
            history: fill(concat!(
                "select ",
                micros!("bucket"),
                ", ",
                history_columns!(),
                r#" from :"schema".history(pg_catalog.to_timestamp($1), pg_catalog.to_timestamp($2), $3, $4)"#
            )),
            history_by_scope: fill(concat!(
                "select scope, class, ",
                history_columns!(),
                r#" from :"schema".history_by_scope(pg_catalog.to_timestamp($1), pg_catalog.to_timestamp($2), $3)"#
            )),
            inspect_key: fill(concat!(
                "select response_headers, response_body, ",
                record_columns!(),
                r#" from :"schema".inspect_key($1, $2)"#
            )),
            operation_status: fill(concat!(
                "select steps, progress, last_error, ",
                record_columns!(),
                r#" from :"schema".operation_status($1, $2)"#
            )),
            list: fill(concat!(
                "select scope, key, ",
                record_columns!(),
                r#" from :"schema"._list_keys($1, $2, $3, $4, $5)"#,
            )),
            abandoned: fill(concat!(
                "select scope, key, ",
                record_columns!(),
                r#" from :"schema".abandoned a order by a.lease_expires_at limit $1"#
            )),
            pick_abandoned: fill(r#"call :"schema".pick_abandoned($1, $2, $3, $4)"#),
            picked: fill(concat!(
                // Not volatile, a proxy would ask a standby, which may not have the keys yet.
                "select k.scope, k.key, pg_catalog.clock_timestamp(), ",
                record_columns!(),
                " from rows from (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) p(scope, key)",
                r#" cross join lateral (select * from :"schema".keys k"#,
                r#" where k.scope operator(pg_catalog.=) p.scope collate pg_catalog."C""#,
                r#" and k.key operator(pg_catalog.=) p.key collate pg_catalog."C" offset 0) k"#
            )),
            table_stats: fill(concat!(
                "select live, lapsed, released, completed, failed, overdue, oldest_in_progress_ms, ",
                r#"table_bytes, index_bytes from :"schema".table_stats()"#
            )),
            unfinished_keys: fill(concat!(
                "select scope, key, state, held_because, is_message, used, max_attempts, steps, tries, last_error, ",
                micros!("try_at"),
                ", ",
                record_columns!(),
                r#" from :"schema".unfinished_keys($1, $2, $3, $4)"#
            )),
            consumers: fill(concat!(
                "select consumer, handled, waiting, dead, longest_lapsed_ms ",
                r#"from :"schema".consumers()"#
            )),
            overview: fill(concat!(
                "select live, abandoned, held, waiting_messages, dead_messages, unfinished_capped, live_by_age, ",
                "oldest_live_ms, longest_abandoned_ms, overdue, oldest_overdue_ms, keys_estimate, table_bytes, ",
                "index_bytes, steps_bytes, unfinished_bytes, dead_rows, ",
                micros!("vacuumed_at"),
                r#" from :"schema".overview($1)"#
            )),
            takes_writes: fill(r#"select :"schema".takes_writes()"#),
            scopes: fill(
                r#"select scope, key_count, unfinished_count from :"schema".scopes($1, $2, $3)"#,
            ),
            search_keys: fill(concat!(
                "select $1::pg_catalog.text as scope, key, ",
                record_columns!(),
                r#" from :"schema".search_keys($1, $2, $3, $4, $5)"#
            )),
            key_details: fill(concat!(
                "select response_headers_bytes, response_body_bytes, overdue, leased, used, progress, last_error, ",
                "state, held_because, is_message, max_attempts, tries, ",
                micros!("try_at"),
                ", ",
                record_columns!(),
                r#" from :"schema".key_details($1, $2)"#
            )),
            key_steps: fill(concat!(
                "select number, name, output_bytes, ",
                micros!("recorded_at"),
                r#" from :"schema".key_steps($1, $2)"#
            )),
            step_output: fill(r#"select :"schema".step_output($1, $2, $3)"#),
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
