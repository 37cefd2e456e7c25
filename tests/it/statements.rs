//! Rules for every statement, so that poolers, proxies, partitions and Citus can be in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use pgonce::{
    Failure, Filter, History, HistoryQuery, Inbox, Lease, Message, OnLapse, Operation, Policy,
    Received, Recovery, Response, Step, Work,
};
use pgonce_testing::Throwaway;
use sqlx::PgConnection;

use crate::overview::every_question_of_operators;
use crate::server_log::{logged, logging};
use crate::support::db::{PATIENCE, TestDb, effect, lasting, on_lapse, op, started};

const MINUTE: Duration = Duration::from_secs(60);

/// The statements of pgonce's SQL files, each with its file: in lower case, on one line, without comments.
fn statements() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["internal", "public", "statements", "ops"] {
        for entry in std::fs::read_dir(Path::new("sql").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
            let lines = text.lines().map(|line| line.split("--").next().unwrap());
            let text = lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
            for statement in text.replace(" collate pg_catalog.\"c\"", "").split(';') {
                found.push((format!("{folder}/{}", file_name(&path)), format!("{statement} ")));
            }
        }
    }
    assert!(found.len() > 300, "{}", found.len());
    found
}

fn file_name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The text after a word, up to the first of some others.
fn between<'a>(text: &'a str, from: &str, to: &[&str]) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    Some(
        to.iter()
            .filter_map(|to| rest.split_once(to))
            .map(|(part, _)| part)
            .min_by_key(|p| p.len())
            .unwrap_or(rest),
    )
}

/// Functions whose value changes during a statement.
const VOLATILE: [&str; 6] =
    ["_clock()", "clock_timestamp()", "gen_random_uuid()", "set_config(", "random()", "nextval("];

#[rustfmt::skip]
const TABLES: [&str; 9] =
    ["idempotency_keys", "steps", "unfinished", "history", "audit", "rollout", "keys", "audit_keys", "abandoned"];

fn is_volatile(text: &str) -> bool {
    VOLATILE.iter().any(|function| text.contains(function))
}

type Rule = (&'static str, fn(&str) -> bool, &'static [&'static str]);

/// What no statement may do, and the files that may. Citus replaces three of them: see sql/ops/citus.sql.
const RULES: [Rule; 11] = [
    (
        "reckons with times in a CASE of a SET, which Citus refuses under a generic plan",
        |s| {
            let set = s.contains("update ").then(|| between(s, " set ", &[" where ", " from "]));
            let mut cases = set.flatten().unwrap_or_default().split("case ").skip(1);
            cases
                .any(|case| case.split(" end").next().is_some_and(|case| case.contains("interval")))
        },
        &[],
    ),
    (
        "names a constraint, whose name Citus changes",
        |s| s.contains("on conflict on constraint"),
        &[],
    ),
    (
        "arbitrates on something else than the key",
        |s| {
            s.contains("on conflict")
                && !["(scope, key", "(scope, class"]
                    .iter()
                    .any(|key| s.contains(&format!("on conflict {key}")))
        },
        &[],
    ),
    (
        "calls a volatile function in SET, which Citus refuses",
        |s| {
            s.contains("update ")
                && between(s, " set ", &[" where ", " from "]).is_some_and(is_volatile)
        },
        &[],
    ),
    (
        "calls a volatile function in RETURNING, which Citus refuses",
        |s| between(s, " returning ", &[" into "]).is_some_and(is_volatile),
        &[],
    ),
    (
        "has a row type in its signature, which Citus refuses",
        |s| {
            let signature =
                s.split_once("create or replace").and_then(|(_, s)| s.split_once(" language "));
            signature.is_some_and(|(signature, _)| {
                let of_types = signature.split_once('(').unwrap().1;
                of_types.contains(":\"schema\".") || of_types.contains("setof")
            })
        },
        &[],
    ),
    (
        "is a SQL function with parameters over the tables, which Citus refuses",
        |s| {
            let body =
                s.split_once(" language sql ").filter(|(signature, _)| signature.contains("(p_"));
            body.is_some_and(|(_, body)| TABLES.iter().any(|t| body.contains(&format!("\".{t}"))))
        },
        &[],
    ),
    (
        "deletes by place alone, which names one row in each partition",
        |s| s.contains("delete from") && s.contains("ctid") && !s.contains("._is_forgotten("),
        &[],
    ),
    (
        "locks rows on many shards",
        |s| {
            let locks = [" for update", " for no key update", " for key share", " for share"];
            let one = ["scope = p_", "scope operator(pg_catalog.=) p_", "scope = v_scope"];
            locks.iter().any(|l| s.contains(l)) && !one.iter().any(|scope| s.contains(scope))
        },
        &["internal/reap_batch", "internal/pick_abandoned"],
    ),
    (
        "inserts keys from a SELECT, which Citus makes a COPY",
        |s| s.contains("insert into :\"schema\".idempotency_keys") && !s.contains(") values ("),
        &["internal/insert_received", "public/backfill"],
    ),
    (
        "leaves a name to the search_path",
        |s| {
            let table = |t: &&str| {
                let words = ["from", "join", "into", "update"];
                words.iter().any(|word| s.contains(&format!(" {word} {t} ")))
            };
            let ours = |(at, _): (usize, &str)| {
                let before = s[..at].chars().next_back().unwrap_or(' ');
                let name =
                    s[at..].split(|c: char| c != '_' && !c.is_alphanumeric()).next().unwrap();
                !matches!(before, '.' | '_' | '\'')
                    && !before.is_alphanumeric()
                    && s[at + name.len()..].starts_with('(')
            };
            TABLES.iter().any(table) || s.match_indices('_').any(ours)
        },
        &[],
    ),
];

fn broken(statement: &str) -> impl Iterator<Item = Rule> {
    RULES.into_iter().filter(move |(_, breaks, _)| breaks(statement))
}

#[test]
fn no_statement_of_a_file_does_what_other_environments_refuse() {
    let mut excused = BTreeSet::new();
    for (file, statement) in statements() {
        for (what, _, may) in broken(&statement) {
            assert!(may.contains(&file.as_str()), "{file} {what}: {statement}");
            excused.insert((what, file.clone()));
        }
    }
    let excuses: usize = RULES.iter().map(|(_, _, may)| may.len()).sum();
    assert_eq!(excused.len(), excuses, "an excuse that nothing needs: {excused:?}");
}

/// The statements that the server ran after the marker statement, each with its session.
async fn run_since(db: &TestDb, server: &Throwaway) -> Vec<(String, String)> {
    let log = logged(db, server).await;
    let log = between(&log, "select 'from here'", &["select 'the end'"]).unwrap().to_lowercase();
    let mut statements: Vec<(String, String)> = Vec::new();
    for line in log.lines() {
        let code = line.split("--").next().unwrap().trim_end();
        if let Some((session, rest)) = code.split_once(" log:  ") {
            // "statement: TEXT", or "execute NAME: TEXT".
            if let Some((_, text)) =
                rest.split_once(':').filter(|(kind, _)| !kind.starts_with("duration"))
            {
                statements.push((session.to_owned(), text.trim().to_owned()));
            }
        } else if let (true, Some((_, text))) = (line.starts_with('\t'), statements.last_mut()) {
            text.push(' ');
            text.push_str(code.trim());
        }
    }
    statements
}

/// What writes or locks, unless it is a CALL.
#[rustfmt::skip]
const WRITES: [&str; 24] = [
    ".backfill(", ".undo_backfill(",
    ".set_mode(", ".begin_operation(", "._begin(", ".complete(", ".fail(", ".release(",
    ".record_step(", ".recorded_steps(", ".receive(", ".take_over_claim(", ".revoke_claim(",
    ".redrive_message(", ".audit_on(", ".audit_off(", ".audit_note(", "._wait_for_key(",
    "pg_try_advisory", "pg_advisory", "insert into", "update ", "delete from", " for update",
];

#[tokio::test]
async fn what_writes_or_locks_is_a_call_or_stands_behind_a_begin_that_is_sent_alone() {
    let (server, db) = logging(&[("log_line_prefix", "%p "), ("log_statement", "all")]).await;
    db.execute("select 'from here'").await;
    everything(&db).await;
    let mut in_transaction: BTreeMap<String, bool> = BTreeMap::new();
    let mut seen = String::new();
    for (session, text) in run_since(&db, &server).await {
        let is_open = in_transaction.entry(session).or_default();
        let begins = text.starts_with("begin") || text.starts_with("start transaction");
        if begins {
            assert!(!text.contains(';'), "BEGIN is not alone: {text}");
            *is_open = true;
        } else if text.starts_with("commit") || text == "rollback" {
            *is_open = false;
        } else if text.starts_with("call ") {
            assert!(!*is_open, "a CALL inside a transaction: {text}");
        } else if WRITES.iter().any(|writes| text.contains(writes)) {
            assert!(*is_open, "no BEGIN before: {text}");
        }
        if text.contains("\"alone\".") {
            let text = text.replace("\"alone\".", ":\"schema\".");
            let text = format!("{} ", text.split_whitespace().collect::<Vec<_>>().join(" "));
            if let Some((what, ..)) = broken(&text).next() {
                panic!("a statement {what}: {text}");
            }
            seen.push_str(&text);
        }
    }
    let ours = std::fs::read_to_string("src/protocol/statements.rs").unwrap();
    for (_, rest) in
        ours.match_indices(":\"schema\".").map(|(at, found)| ours[at..].split_at(found.len()))
    {
        let name = rest.split(|c: char| c != '_' && !c.is_alphanumeric()).next().unwrap();
        let rare = ["_finished_by", "_wait_for_key"];
        assert!(
            rare.contains(&name) || seen.contains(&format!(".{name}")),
            "{name} was not called"
        );
    }
}

async fn everything(db: &TestDb) {
    let (once, pool) = (&db.once, &db.pool);
    let mut conn = db.conn().await;
    once.check(pool).await.unwrap();
    for _ in 0..2 {
        let work = async |tx: &mut PgConnection| effect(tx, "alone", "run").await;
        once.run(pool, &op("run"), work).await.unwrap();
        let fails = async |_: &mut PgConnection| Err::<(), _>(Failure::keep(Response::empty()));
        let _ = once.run(pool, &op("kept"), fails).await;
    }
    for end in ["complete", "fail", "release"] {
        let mut tx = pool.begin().await.unwrap();
        let claim = started(once.begin(&mut tx, &op(end)).await.unwrap());
        match end {
            "complete" => claim.complete(&mut tx, Response::empty()).await.unwrap(),
            "fail" => claim.fail(&mut tx, Response::empty()).await.unwrap(),
            _ => claim.release(&mut tx).await.unwrap(),
        }
        tx.commit().await.unwrap();
    }
    for end in ["complete leased", "fail leased", "release leased"] {
        let mut claim = db.lease(&op(end), MINUTE).await;
        claim.extend(pool, lasting(MINUTE)).await.unwrap();
        match end {
            "complete leased" => claim.complete_leased(pool, Response::empty()).await.unwrap(),
            "fail leased" => claim.fail_leased(pool, Response::empty()).await.unwrap(),
            _ => claim.release_leased(pool).await.unwrap(),
        }
    }
    let lease = Lease::new(MINUTE).unwrap();
    let work = async |work: &mut Work| {
        work.progress("half").await?;
        work.step("remote", async || Ok::<_, Failure>(1)).await?;
        let writes = async |tx: &mut PgConnection| effect(tx, "alone", "step").await;
        work.step_tx(Step::new("ours"), writes).await
    };
    once.run_leased(pool, &op("steps"), lease, work).await.unwrap();
    let gives_up = async |work: &mut Work| {
        work.step("remote", async || Ok::<_, Failure>(1)).await?;
        Err::<(), _>(Failure::from(std::io::Error::other("no")))
    };
    for _ in 0..2 {
        let _ = once.run_leased(pool, &op("given up"), lease, gives_up).await;
    }
    for act in ["take over", "revoke"] {
        let held = op(act).policy(on_lapse(OnLapse::Hold));
        drop(db.lease(&held, Duration::from_millis(1)).await);
        let seen = db.seen(&held).await;
        let mut tx = pool.begin().await.unwrap();
        if act == "revoke" {
            once.revoke_claim(&mut tx, held.scope(), held.key(), &seen).await.unwrap();
        } else {
            let taken =
                once.take_over_claim(&mut tx, held.scope(), held.key(), &seen).await.unwrap();
            taken.complete(&mut tx, Response::empty()).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    once.list(&mut conn, &Filter::default(), 10).await.unwrap();
    once.status(&mut conn, op("steps").scope(), op("steps").key()).await.unwrap();
    once.stats(&mut conn).await.unwrap();
    once.abandoned(&mut conn, 10).await.unwrap();
    history(db).await;
    every_question_of_operators(db).await;
    messages(db).await;
    once.reap_once(&mut conn, 10).await.unwrap();
    pgonce::Reaper::new(once).pass(&mut conn).await.unwrap();
    let recovery =
        Recovery::new(once, "test/%").unwrap().interval(Duration::from_millis(1)).unwrap();
    let (found, finds) = tokio::sync::oneshot::channel();
    let found = std::sync::Mutex::new(Some(found));
    let handler = move |_| {
        let _ = found.lock().unwrap().take().map(|found| found.send(()));
        async { Err::<(), _>(std::io::Error::other("no")) }
    };
    tokio::time::timeout(PATIENCE, recovery.run_until(pool.clone(), handler, finds)).await.unwrap();
}

async fn history(db: &TestDb) {
    let history = History::new(MINUTE).unwrap();
    let once = db.once.clone().keep_history(&history);
    let mut tx = db.pool.begin().await.unwrap();
    let replay = once.begin(&mut tx, &op("run")).await.unwrap();
    assert!(matches!(replay, pgonce::Begin::Replay(_)), "{replay:?}");
    tx.rollback().await.unwrap();
    history.flush(&db.once, &db.pool).await.unwrap();
    let (mut conn, until) = (db.conn().await, time::OffsetDateTime::now_utc());
    let query = HistoryQuery { from: until, until, step: MINUTE, scope: None };
    db.once.history(&mut conn, &query).await.unwrap();
    db.once.history_by_scope(&mut conn, until, until, 10).await.unwrap();
    db.once.anomalies(&mut conn).await.unwrap();
    db.once.adoption(&mut conn, until, until).await.unwrap();
    db.once.rollout_modes(&mut conn).await.unwrap();
    let class = pgonce::Class::default();
    db.once.rollout_changes(&mut conn, &class, 1).await.unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let run = op("run");
    db.once.set_mode(&mut tx, &class, None).await.unwrap();
    db.once.backfill(&mut tx, &[], MINUTE, false).await.unwrap();
    db.once.undo_backfill(&mut tx, &[], MINUTE, true).await.unwrap();
    db.once.audit_on(&mut tx, 30).await.unwrap();
    db.once.audit_note(&mut tx, "viewed", run.scope(), run.key()).await.unwrap();
    db.once.audit_off(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    db.once.audit_days_kept(&mut conn).await.unwrap();
    db.once.audit(&mut conn, run.scope(), run.key(), 10).await.unwrap();
}

async fn messages(db: &TestDb) {
    let inbox = Inbox::new(&db.once, "consumer")
        .unwrap()
        .policy(Policy::inbox().max_attempts(1).unwrap())
        .unwrap();
    let mut tx = db.pool.begin().await.unwrap();
    let received = inbox.receive(&mut tx, "m\u{e9}").await.unwrap();
    assert!(matches!(received, Received::New(_)));
    tx.commit().await.unwrap();
    for message in ["good", "bad"] {
        let work = async |tx: &mut PgConnection| {
            effect(tx, "alone", message).await?;
            if message == "bad" { Err(Failure::from(std::io::Error::other("no"))) } else { Ok(()) }
        };
        let _ = inbox.handle(&db.pool, &Message::new(message), work).await;
    }
    inbox.failed(&db.pool, "bad", "no").await.unwrap();
    let bad = Operation::new("consumer", "bad").unwrap();
    let seen = db.seen(&bad).await;
    let mut tx = db.pool.begin().await.unwrap();
    inbox.redrive(&mut tx, "bad", &seen).await.unwrap();
    tx.commit().await.unwrap();
    inbox.remembers(&mut db.conn().await).await.unwrap();
}
