//! What `adoption` reports of a rollout.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pgonce::{Adoption, History, RolloutMode};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use crate::rollout::{rolled_out, switch};
use crate::support::db::{PATIENCE, effect, op, waits};

const DAY: Duration = Duration::from_secs(86_400);

// The numbers of the test's own books, and those of the report.
#[tokio::test(flavor = "multi_thread")]
async fn under_live_load_the_report_equals_an_independent_count() {
    let (mut db, rollout) = rolled_out().await;
    let history = History::new(DAY).unwrap();
    db.once = db.once.clone().keep_history(&history);
    let phases = [
        RolloutMode::Off,
        RolloutMode::Observe,
        RolloutMode::Optional,
        RolloutMode::Required,
        RolloutMode::Off,
    ];
    let (mut calls, mut prevented) = (0, 0);
    switch(&db, &rollout, phases[0]).await;
    // A switch waits for the calls on their way, so that each call has one mode; the next come at once.
    let gate = Arc::new(RwLock::new(phases[0]));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut callers = JoinSet::new();
    for caller in 0..8_u32 {
        let (once, pool, schema) = (db.once.clone(), db.pool.clone(), db.schema.clone());
        let (gate, stopped) = (Arc::clone(&gate), stopped.clone());
        callers.spawn(async move {
            let mut counts = HashMap::<RolloutMode, (u64, u64)>::new();
            let mut n = caller;
            while !*stopped.borrow() {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let mode = gate.read().await;
                // A few keys per phase, and new ones.
                let key = format!("{}-{}", *mode, n >> 26);
                let op = op(&key).policy(waits(PATIENCE)).value(7);
                let work = async |tx: &mut PgConnection| effect(tx, &schema, &key).await;
                let done = once.run(&pool, &op, work).await.unwrap();
                let of_mode = counts.entry(*mode).or_default();
                of_mode.0 += 1;
                of_mode.1 += u64::from(done.is_replay());
            }
            counts
        });
    }
    for mode in phases {
        let mut current = gate.write().await;
        switch(&db, &rollout, mode).await;
        *current = mode;
        drop(current);
        let effects =
            if matches!(mode, RolloutMode::Off | RolloutMode::Observe) { 200 } else { 40 };
        let enough =
            format!("select count(*) > {effects} from {{}}.effect where key like '{mode}-%'");
        db.until(&enough).await;
    }
    stop.send(true).unwrap();
    while let Some(counts) = callers.join_next().await {
        for (mode, (called, replayed)) in counts.unwrap() {
            calls += if mode == RolloutMode::Off { 0 } else { called };
            prevented += replayed;
        }
    }
    let observed: i64 = db
        .ask("select count(*) - count(distinct key) from {}.effect where key like 'observe-%'")
        .await;
    let would_be = observed.unsigned_abs();
    history.flush(&db.once, &db.pool).await.unwrap();
    let now = OffsetDateTime::now_utc();
    let report = db.once.adoption(&mut db.conn().await, now - DAY, now + DAY).await.unwrap();
    let [
        Adoption {
            keyed,
            calls: reported,
            duplicates,
            observed_duplicates,
            value,
            observed_value,
            ..
        },
    ] = report[..]
    else {
        panic!("{report:?}")
    };
    assert_eq!((keyed, reported), (calls, calls));
    assert_eq!((duplicates, value), (prevented, 7 * prevented));
    assert_eq!((observed_duplicates, observed_value), (would_be, 7 * would_be));
    assert!(prevented > 0 && would_be > 0);
    let doubled =
        "select count(*) from (select from {}.effect where key not like 'o%' or key like 'opt%'
                     group by key having count(*) > 1 and key not like 'off-%') d";
    assert_eq!(db.ask::<i64>(doubled).await, 0, "with protection none is doubled");
}
