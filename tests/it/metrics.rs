//! What is counted, under which names and classes, and what a span and a log line say.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use pgonce::metrics::{ALL, MetricKind};
use pgonce::{
    Begin, Class, ErrorKind, Failure, Fingerprint, Inbox, Message, OnLapse, Operation, PgOnce,
    Reaper, Response, Verdict, Work,
};
use tracing::Level;

use crate::secrets::{CANARY, Log};
use crate::support::db::{PATIENCE, TestDb, effect, lasting, on_lapse, op, started, waits};
use crate::support::metrics::Metrics;

/// Counters of the class `unclassified`, without their label.
fn counted(metrics: &Metrics) -> HashMap<String, u64> {
    let own = |(name, count): (String, u64)| {
        let name = name.strip_prefix("pgonce.")?.strip_suffix("{class=unclassified}")?;
        Some((name.to_owned(), count))
    };
    metrics.all().into_iter().filter_map(own).collect()
}

fn counts(of: &[(&str, u64)]) -> HashMap<String, u64> {
    of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[tokio::test]
async fn each_way_a_run_can_end_is_counted() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let run = async |op: &Operation| {
        db.once.run(&db.pool, op, async |tx| effect(tx, &db.schema, "k").await).await
    };
    let paid = op("paid").fingerprint(Fingerprint::of_bytes("1"));
    run(&paid).await.unwrap();
    run(&paid).await.unwrap();
    run(&paid.clone().fingerprint(Fingerprint::of_bytes("2"))).await.unwrap_err();
    let declined =
        async |_: &mut sqlx::PgConnection| Err::<(), _>(Failure::keep(Response::bytes("declined")));
    db.once.run(&db.pool, &op("declined"), declined).await.unwrap_err();
    db.once.run(&db.pool, &op("declined"), declined).await.unwrap_err();
    let broken = async |_: &mut sqlx::PgConnection| Err::<(), _>(std::io::Error::other("broken"));
    db.once.run(&db.pool, &op("broken"), broken).await.unwrap_err();
    run(&op("omitted").secret()).await.unwrap();
    run(&op("omitted").secret()).await.unwrap_err();
    let _ = db.lease(&op("busy"), PATIENCE).await;
    run(&op("busy")).await.unwrap_err();
    run(&op("busy").policy(waits(Duration::from_millis(500)))).await.unwrap_err();
    let lapsed = op("lapsed").policy(on_lapse(OnLapse::Hold));
    let _ = db.lease(&lapsed, Duration::from_millis(1)).await;
    db.until("select lease_expires_at < {}._clock() from {}.idempotency_keys where key = 'lapsed'")
        .await;
    run(&lapsed).await.unwrap_err();
    let expected = [
        ("begun", 13), // with the two leases
        ("started", 6),
        ("completed", 2),
        ("failed", 1),
        ("released", 1),
        ("replayed", 3),
        ("omitted", 1),
        ("duplicates", 3),
        ("mismatch", 1),
        ("in_progress", 2),
        ("waited", 1),
        ("held", 1),
    ];
    assert_eq!(counted(&metrics), counts(&expected));
}

#[tokio::test]
async fn a_restart_is_counted_and_its_call_once() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let failed = std::sync::atomic::AtomicBool::new(false);
    let deadlock = async |tx: &mut sqlx::PgConnection| {
        if !failed.swap(true, std::sync::atomic::Ordering::Relaxed) {
            let raise = "do $$ begin raise exception sqlstate '40P01'; end $$";
            sqlx::raw_sql(raise).execute(&mut *tx).await?;
        }
        effect(tx, &db.schema, "k").await
    };
    db.once.run(&db.pool, &op("k"), deadlock).await.unwrap();
    let expected = [("begun", 1), ("started", 1), ("completed", 1), ("restarts", 1)];
    assert_eq!(counted(&metrics), counts(&expected));
}

#[tokio::test]
async fn the_verbs_are_counted_and_a_lost_claim_is_logged_under_the_hash_of_its_key() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let once = db.once.clone().log_secret("at least sixteen bytes").unwrap();
    let (log, _guard) = Log::of_thread(Level::WARN);
    let mut tx = db.pool.begin().await.unwrap();
    for key in ["completed", "failed", "released"] {
        let claim = started(once.begin(&mut tx, &op(key)).await.unwrap());
        match key {
            "completed" => claim.complete(&mut tx, Response::empty()).await.unwrap(),
            "failed" => claim.fail(&mut tx, Response::empty()).await.unwrap(),
            _ => claim.release(&mut tx).await.unwrap(),
        }
    }
    assert!(matches!(once.begin(&mut tx, &op("completed")).await.unwrap(), Begin::Replay(_)));
    tx.commit().await.unwrap();
    let lost = op("lost");
    let begin = once.begin_leased(&db.pool, &lost, lasting(PATIENCE)).await.unwrap();
    let claim = started(begin);
    db.release(&lost, claim.token()).await.unwrap();
    let error = claim.complete_leased(&db.pool, Response::empty()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClaimLost);
    let expected = [
        ("begun", 5),
        ("started", 4),
        ("completed", 1),
        ("failed", 1),
        ("released", 1),
        ("replayed", 1),
        ("duplicates", 1),
        ("claim_lost", 1),
    ];
    assert_eq!(counted(&metrics), counts(&expected));
    let told = log.close();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.contains("a claim was lost")
            && told.contains(&once.log_hash(lost.scope(), lost.key())),
        "{told}"
    );
}

#[tokio::test]
async fn leased_work_counts_its_end_its_renewals_and_its_takeover() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let lease = lasting(Duration::from_millis(300));
    // Renewed twice: the first renewal is counted before the second one is sent.
    let renewed = async |_: &mut Work| {
        db.until("select lease_expires_at > created_at + interval '450 milliseconds' from {}.idempotency_keys").await;
        Ok::<_, std::io::Error>(1)
    };
    db.once.run_leased(&db.pool, &op("k"), lease, renewed).await.unwrap();
    assert!(metrics.get("pgonce.lease_renewals{class=unclassified,outcome=renewed}") > 0);
    let _ = db.lease(&op("lapsed"), Duration::from_millis(1)).await;
    db.until("select lease_expires_at < {}._clock() from {}.idempotency_keys where key = 'lapsed'")
        .await;
    let quick = async |_: &mut Work| Ok::<_, std::io::Error>(1);
    db.once.run_leased(&db.pool, &op("lapsed"), lease, quick).await.unwrap();
    db.once.run_leased(&db.pool, &op("lapsed"), lease, quick).await.unwrap();
    let broken = async |_: &mut Work| Err::<i32, _>(std::io::Error::other("broken"));
    db.once.run_leased(&db.pool, &op("broken"), lease, broken).await.unwrap_err();
    let expected = [
        ("begun", 5),
        ("started", 4),
        ("recovered", 1),
        ("completed", 2),
        ("released", 1),
        ("replayed", 1),
        ("duplicates", 1),
    ];
    assert_eq!(counted(&metrics), counts(&expected));
}

#[tokio::test]
async fn messages_count_their_verdicts_and_a_dead_one_is_logged() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let once = db.once.clone().log_secret("at least sixteen bytes").unwrap();
    let inbox = Inbox::new(&once, "orders").unwrap().class(Class::new("orders").unwrap());
    let (log, _guard) = Log::of_thread(Level::WARN);
    let fine = async |tx: &mut sqlx::PgConnection| effect(tx, &db.schema, "m").await;
    for _ in 0..2 {
        let handled = inbox.handle(&db.pool, &Message::new("m-1").redelivered(false), fine).await;
        assert_eq!(handled.verdict, Verdict::Ack);
    }
    let declined = async |_: &mut sqlx::PgConnection| {
        Err::<(), _>(Failure::keep(Response::bytes("no such customer")))
    };
    let dead = inbox.handle(&db.pool, &Message::new("m-2").redelivered(false), declined).await;
    assert!(matches!(dead.verdict, Verdict::DeadLetter(_)));
    let mut tx = db.pool.begin().await.unwrap();
    inbox.receive_many(&mut tx, &["m-1", "m-2", "m-3"]).await.unwrap();
    tx.commit().await.unwrap();
    let get = |name: &str| metrics.get(&format!("pgonce.{name}"));
    assert_eq!(get("inbox.verdicts{class=orders,verdict=ack}"), 2);
    assert_eq!(get("inbox.verdicts{class=orders,verdict=dead_letter}"), 1);
    assert_eq!(get("duplicates{class=orders}"), 2, "one handled, one received");
    assert_eq!(get("held{class=orders}"), 1, "the dead one");
    assert_eq!(get("completed{class=orders}"), 2, "m-1 and m-3");
    let told = log.close();
    let hash = once.log_hash(&"orders".parse().unwrap(), &"m-2".parse().unwrap());
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("a message is dead") && told.contains(&hash), "{told}");
}

#[tokio::test]
async fn a_reaping_says_what_it_left() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    db.plant_overdue(150, 60).await;
    let conn = &mut db.conn().await;
    db.once.reap_once(conn, 100).await.unwrap();
    let schema = &db.schema;
    let get = |name: &str| metrics.get(&format!("pgonce.{name}{{schema={schema}}}"));
    assert_eq!((get("reaped"), get("reaper.backlog")), (100, 50));
    assert!(get("reaper.oldest_overdue") >= 60);
    assert!(get("reaper.last") > 1_700_000_000);
    Reaper::new(&db.once).pass(conn).await.unwrap();
    assert_eq!(get("reaped"), 150);
}

#[tokio::test]
async fn duplicates_add_up_what_they_would_have_cost() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let once = db.once.clone().value_unit("cents").unwrap();
    for cents in [1999, 1999, 500] {
        let op = op(&cents.to_string()).value(cents);
        once.run(&db.pool, &op, async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    }
    assert_eq!(metrics.get("pgonce.duplicates.value{class=unclassified,unit=cents}"), 1999);
    assert!(PgOnce::new().value_unit("").is_err());
}

#[tokio::test]
async fn a_class_comes_from_the_operation_or_its_client_and_their_number_is_bounded() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let once = db.once.clone().class(Class::new("mine").unwrap());
    let run = async |op: Operation| {
        once.run(&db.pool, &op, async |tx| effect(tx, &db.schema, "k").await).await.unwrap();
    };
    run(op("k")).await;
    for number in 0..102 {
        run(op(&format!("k{number}")).class(Class::new(format!("c{number}")).unwrap())).await;
    }
    let begun = |class: &str| metrics.get(&format!("pgonce.begun{{class={class}}}"));
    assert_eq!((begun("mine"), begun("c0"), begun("c98")), (1, 1, 1));
    assert_eq!((begun("c99"), begun("other")), (0, 3), "100 classes, and one for the rest");
    for name in ["", &"x".repeat(101), "a\nb"] {
        assert_eq!(Class::new(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
    }
}

#[tokio::test]
async fn spans_name_the_procedure_the_answer_and_the_error() {
    let db = TestDb::new().await;
    let (log, _guard) = Log::of_thread(Level::TRACE);
    let once = db.once.clone().log_secret("at least sixteen bytes").unwrap();
    let claim = started(once.begin_leased(&db.pool, &op("k"), lasting(PATIENCE)).await.unwrap());
    db.release(&op("k"), claim.token()).await.unwrap();
    claim.complete_leased(&db.pool, Response::empty()).await.unwrap_err();
    let told = log.close();
    for part in [
        "pgonce.begin_leased{",
        "db.system.name=\"postgresql\"",
        "db.stored_procedure.name=\"begin_leased\"",
        "pgonce.complete_leased{",
        &format!("key=\"{}\"", once.log_hash(op("k").scope(), op("k").key())),
        "class=\"unclassified\"",
    ] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
}

#[tokio::test]
async fn no_label_has_anything_of_a_key() {
    let metrics = Metrics::of_thread();
    let db = TestDb::new().await;
    let op = Operation::new(format!("scope {CANARY}"), format!("key {CANARY}")).unwrap();
    let broken = async |_: &mut sqlx::PgConnection| Err::<(), _>(std::io::Error::other(CANARY));
    db.once.run(&db.pool, &op, broken).await.unwrap_err();
    let inbox = Inbox::new(&db.once, format!("consumer {CANARY}")).unwrap();
    inbox.handle(&db.pool, &Message::new(CANARY), broken).await;
    let all = metrics.all();
    assert!(all.len() > 3);
    assert!(!all.keys().any(|name| name.contains(CANARY)), "{all:?}");
}

#[test]
fn the_names_are_dotted_and_the_page_lists_them_all() {
    let page = include_str!("../../src/docs/observability.md");
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `pgonce.")).collect();
    let expected: Vec<_> = ALL
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
                _ => "?",
            };
            let labels = metric.labels.join(", ");
            format!("| `{}` | {kind} | {labels} | {} |", metric.name, metric.description)
        })
        .collect();
    assert_eq!(rows, expected, "\n{}", expected.join("\n"));
    let names: HashSet<_> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), ALL.len());
    assert!(
        names.iter().all(|name| name.starts_with("pgonce.") && !name.contains(char::is_uppercase))
    );
}
