//! The dashboards and alerts of `examples/observability` name what the code exports and what the schema has.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use metrics::Label;
use pgonce::metrics::{ALL, MetricKind};
use pgonce::{History, OnLapse};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::db::{PATIENCE, TestDb, effect, on_lapse, op};
use crate::support::roles::{conn_as, role, step_and_fail};

#[allow(dead_code, reason = "the example is a program of its own")]
#[path = "../../examples/metrics.rs"]
mod example;

/// A file of `examples/observability`.
fn text(name: &str) -> String {
    std::fs::read_to_string(format!("examples/observability/{name}")).unwrap()
}

/// Labels that Prometheus itself adds.
const SCRAPED: [&str; 2] = ["job", "instance"];

/// The series as Prometheus reads them, each with its labels.
fn exported() -> HashMap<String, BTreeSet<String>> {
    let recorder = example::exporter().unwrap().build_recorder();
    let prometheus = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        for metric in ALL {
            let labels: Vec<_> = metric.labels.iter().map(|name| Label::new(*name, "x")).collect();
            match metric.kind {
                MetricKind::Counter => metrics::counter!(metric.name, labels).increment(1),
                MetricKind::Gauge => metrics::gauge!(metric.name, labels).set(1),
                MetricKind::Histogram => metrics::histogram!(metric.name, labels).record(1),
                kind => panic!("{kind:?}"),
            }
        }
    });
    let text = prometheus.render();
    let series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let series = series.map(|line| {
        let (name, labels) = line.split_once('{').expect("each has a label");
        let labels = labels.split_once('}').unwrap().0.split(',');
        let labels = labels.map(|label| label.split_once('=').unwrap().0.to_owned());
        (name.to_owned(), labels.collect())
    });
    series.collect()
}

/// The series that an expression names, each with the labels that it selects and groups by.
fn named(expr: &str) -> Vec<(&str, Vec<&str>)> {
    let series = expr.match_indices("pgonce_").map(|(at, _)| {
        let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let (name, rest) = expr[at..].split_at(expr[at..].find(is_end).unwrap_or(expr.len() - at));
        let selectors = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let selectors = selectors.map_or("", |(selectors, _)| selectors).split(", ");
        let selected = selectors.map(|one| one.split(['=', '!']).next().unwrap());
        let grouped = expr[..at].rsplit_once(" by (").map_or("", |(_, by)| by);
        let grouped = grouped.split(')').next().unwrap().split(", ");
        (name, selected.chain(grouped).filter(|label| !label.is_empty()).collect())
    });
    series.collect()
}

/// All values of this name, at any depth.
fn texts(json: &Value, name: &str) -> Vec<String> {
    match json {
        Value::Array(all) => all.iter().flat_map(|one| texts(one, name)).collect(),
        Value::Object(all) => {
            let own = all.get(name).and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(all.values().flat_map(|one| texts(one, name))).collect()
        }
        _ => Vec::new(),
    }
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap()
}

/// The panels that ask something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

/// The alert rules, each from its name on.
fn rules() -> Vec<String> {
    text("alerts.yml").split("- alert: ").skip(1).map(str::to_owned).collect()
}

#[test]
fn every_series_that_is_asked_for_exists_with_its_labels() {
    let exported = exported();
    let dashboard = dashboard("prometheus.json");
    let mut exprs = texts(&dashboard["panels"], "expr");
    assert!(exprs.len() > 30);
    let variables = texts(&dashboard["templating"], "query");
    exprs.extend(variables.into_iter().filter(|query| query.contains("pgonce_")));
    exprs.extend(rules());
    for expr in exprs {
        let series = named(&expr);
        assert!(!series.is_empty(), "{expr}");
        for (name, asked) in series {
            let labels = exported.get(name).unwrap_or_else(|| panic!("no {name}: {expr}"));
            for label in asked {
                let exists = labels.contains(label) || SCRAPED.contains(&label);
                assert!(exists, "{label} of {name}: {expr}");
            }
        }
    }
}

#[test]
fn every_legend_names_labels_by_which_its_expression_groups() {
    let dashboard = dashboard("prometheus.json");
    let targets = panels(&dashboard).flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut checked = 0;
    for target in targets {
        let expr = target["expr"].as_str().unwrap();
        let legend = target["legendFormat"].as_str().unwrap_or_default();
        for label in legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
            checked += 1;
            let groups = named(expr).iter().all(|(_, asked)| asked.contains(&label));
            assert!(groups, "{legend} of {expr}");
        }
    }
    assert!(checked > 10);
}

#[test]
fn the_dashboard_shows_every_metric() {
    let text = text("prometheus.json");
    let shown: BTreeSet<_> = named(&text).into_iter().map(|(series, _)| series).collect();
    for metric in ALL {
        let name = metric.name.replace('.', "_");
        let bucket = format!("{name}_bucket");
        assert!(shown.contains(&*name) || shown.contains(&*bucket), "{name}");
    }
}

#[test]
fn every_panel_says_what_it_shows_and_when_it_is_red() {
    for dashboard in ["prometheus.json", "postgres.json"].map(dashboard) {
        for panel in panels(&dashboard) {
            let says = panel["description"].as_str().unwrap_or_default();
            let is_ever_red = panel["fieldConfig"].to_string().contains("\"red\"");
            let is_told = says.contains("Red");
            assert!(says.len() > 20 && is_told == is_ever_red, "{}", panel["title"]);
        }
    }
}

#[test]
fn every_alert_has_a_runbook_and_is_tested_to_fire_and_to_stay_silent() {
    let tests = text("alerts_test.yml");
    let rules = rules();
    assert!(!rules.is_empty());
    for rule in rules {
        let name = rule.lines().next().unwrap();
        // tidy.rs follows the link.
        assert!(rule.contains("runbook_url: https://docs.rs/pgonce/"), "{name}");
        let silent = format!("{{alertname: {name}, ");
        let silent =
            tests.lines().any(|line| line.contains(&silent) && line.ends_with("exp_alerts: []}"));
        assert!(silent && tests.contains(&format!("alertname: {name}\n")), "{name}");
    }
}

/// A statement of the dashboard as Grafana sends it, for the last six hours.
fn filled_in(db: &TestDb, sql: &str) -> String {
    let hours_ago = |hours| {
        let at = OffsetDateTime::now_utc() - time::Duration::hours(hours);
        format!("'{}'", at.format(&Rfc3339).unwrap())
    };
    let sql = sql
        .replace("$__timeFrom()", &hours_ago(6))
        .replace("$__timeTo()", &hours_ago(0))
        .replace("$__interval_ms", "90000")
        .replace("${scope:sqlstring}", "''")
        .replace("${schema}", &db.schema);
    assert!(!sql.contains('$'), "{sql}");
    sql
}

/// One duplicate in the history; three keys whose holder is gone, one with a holder; many keys that are done.
async fn plant(db: &TestDb) {
    let history = History::new(Duration::from_secs(86_400)).unwrap();
    let once = db.once.clone().keep_history(&history);
    for _ in 0..2 {
        once.run(&db.pool, &op("k"), async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    }
    history.flush(&once, &db.pool).await.unwrap();

    let moment = Duration::from_millis(1);
    let held = op("held").policy(on_lapse(OnLapse::Hold));
    let _ = (db.lease(&held, moment).await, db.lease(&op("lapsed"), moment).await);
    assert!(!step_and_fail(db, &db.pool, &op("released")).await);
    let token = db.ask("select token from {}.idempotency_keys where key = 'released'").await;
    db.release(&op("released"), token).await.unwrap();
    let _ = db.lease(&op("live"), PATIENCE).await;
    db.until("select count(*) = 3 from {}.abandoned").await;

    db.plant_overdue(50, 4000).await;
    db.execute(
        "insert into {}.idempotency_keys (created_at, expires_at, status, scope, key)
         select now(), now() + interval '1 day', 2, 's', 'k' || n from generate_series(1, 20000) n;
         analyze {}.idempotency_keys",
    )
    .await;
}

/// The rows of a statement. Fails if the statement reads the table of keys as a whole.
async fn rows(conn: &mut PgConnection, sql: String) -> Vec<PgRow> {
    let mut tx = conn.begin().await.unwrap();
    let rows = sqlx::query(AssertSqlSafe(sql.clone())).fetch_all(&mut *tx).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error}: {sql}"));
    let scans = "select coalesce(sum(seq_scan), 0)::bigint from pg_stat_xact_user_tables
                  where relname = 'idempotency_keys'";
    let scans: i64 = sqlx::query_scalar(scans).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(scans, 0, "{sql}");
    rows
}

#[tokio::test]
async fn the_postgres_dashboard_asks_what_its_role_may_and_never_reads_all_keys() {
    let db = TestDb::alone().await;
    let readme = text("README.md");
    let grants = readme.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    let grants = grants.replace("grafana", &role(&db, "grafana"));
    db.execute(&grants.replace("pgonce", "{}")).await;
    plant(&db).await;
    let conn = &mut conn_as(&db, "grafana").await;
    let dashboard = dashboard("postgres.json");
    let mut answers = HashMap::new();
    for panel in panels(&dashboard) {
        let sql = &texts(panel, "rawSql")[0];
        let title = panel["title"].as_str().unwrap();
        answers.insert(title, rows(conn, filled_in(&db, sql)).await);
    }
    let variables = texts(&dashboard["templating"], "query");
    let schemas = variables.iter().find(|query| query.starts_with("select")).unwrap();
    answers.insert("schemas", rows(conn, filled_in(&db, schemas)).await);
    let first = |title: &str| &answers[title][0];
    assert_eq!(first("schemas").get::<String, _>(0), db.schema);
    assert_eq!(first("Duplicates prevented").get::<i64, _>("duplicates"), 1);
    assert_eq!(first("Busiest scopes in this time").get::<i64, _>("duplicates"), 1);
    assert_eq!(first("Leased keys without a holder").get::<i64, _>(0), 3);
    assert!(first("The longest without a holder").get::<f64, _>(0) > 0.0);
    let by_scope = answers["By scope"].iter().map(|row| (row.get("claim"), row.get("keys")));
    let expected = [("lapsed".to_owned(), 2_i64), ("released".to_owned(), 1)];
    assert_eq!(by_scope.collect::<Vec<(String, i64)>>(), expected);
    assert_eq!(first("Backlog").get::<i64, _>(0), 50);
    assert_eq!(first("Tables").get::<String, _>(0), "idempotency_keys");
    let responses = sqlx::query(db.sql("select response_body from {}.idempotency_keys"));
    assert!(responses.execute(conn).await.is_err(), "the role reads no response");
}
