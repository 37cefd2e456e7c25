//! Leased handlers that outlive their lease.

use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use http::StatusCode;
use pgonce::Key;
use pgonce::web::{Answer, OnceClaim};
use tokio::sync::Notify;

use super::concurrency::sent;
use super::kit::{App, Gate, LEASE, Mode, app, gated, handled, patient, tx_of};
use super::{layer, lease, post, send};
use crate::support::db::{TestDb, effect};

const SHORT: Duration = Duration::from_millis(200);

/// Makes the claim lapse, as if its holder had been silent for long.
async fn lapse(db: &TestDb) {
    db.execute("update {}.idempotency_keys set lease_expires_at = {}._clock() - interval '1 s'")
        .await;
}

async fn release(db: &TestDb) {
    let mut conn = db.conn().await;
    let (scope, key) = (pgonce::Scope::new("acme/test").unwrap(), Key::new("k").unwrap());
    let record = db.once.inspect(&mut conn, &scope, &key).await.unwrap().unwrap().record;
    db.once.revoke_claim(&mut conn, &scope, &key, &record).await.unwrap();
}

// Trap 32.
#[tokio::test]
async fn a_claim_is_renewed_while_its_handler_runs() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    // Long enough that a busy machine does not let it lapse.
    let second = lease(Duration::from_secs(1));
    let app = gated(&db, layer(&db).leased(second).unwrap(), &gate);
    let first = sent(&app, "k", "");
    gate.entered().await;
    // Four leases long, with at least one renewal each.
    db.until("select clock_timestamp() > created_at + interval '4 s' from {}.idempotency_keys")
        .await;
    let duplicate = patient(send(&app.router, post("k", ""))).await;
    assert_eq!(duplicate.answer, Some(Answer::InProgress));
    gate.open();
    let got = patient(first).await.unwrap();
    assert_eq!((got.answer, got.body), (Some(Answer::Performed), "call 1".into()));
    assert_eq!((app.calls(), db.effects().await), (1, 1));
    assert_eq!(db.ask::<i32>("select attempt from {}.keys").await, 1);
}

// The handler has the pool's only connection; leases are renewed over another one.
#[tokio::test]
async fn a_claim_is_renewed_when_the_pool_is_used_up() {
    let db = TestDb::with_connections(1).await;
    let gate = Gate::new();
    let stops = gate.clone();
    let app = handled(layer(&db).leased(lease(SHORT)).unwrap(), move |_, request| {
        let gate = stops.clone();
        async move {
            let _tx = tx_of(request.extensions()).await.unwrap();
            gate.pass().await;
            "done".into_response()
        }
    });
    let first = sent(&app, "k", "");
    gate.entered().await;
    assert_eq!((db.pool.size(), db.pool.num_idle()), (1, 0));
    db.until("select lease_expires_at > created_at + interval '800 ms' from {}.idempotency_keys")
        .await;
    gate.open();
    assert_eq!(patient(first).await.unwrap().answer, Some(Answer::Performed));
}

/// Sends the same request until the answer is no longer "in progress".
async fn taken_over(db: &TestDb, app: &App) -> super::Got {
    db.until("select lease_expires_at < {}._clock() from {}.idempotency_keys").await;
    patient(send(&app.router, post("k", ""))).await
}

// Trap 32. The winner's response is the operation's; the loser sends it as a replay.
#[tokio::test]
async fn past_the_ceiling_another_takes_over_and_its_answer_counts() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let hanging =
        gated(&db, layer(&db).leased(lease(SHORT).renewed_for(Duration::ZERO)).unwrap(), &gate);
    let other = app(&db, layer(&db).leased(lease(LEASE)).unwrap(), |_| {
        (StatusCode::ACCEPTED, "the winner's")
    });
    let first = sent(&hanging, "k", "");
    gate.entered().await;
    assert_eq!(taken_over(&db, &other).await.answer, Some(Answer::Performed));
    gate.open();
    let late = patient(first).await.unwrap();
    assert_eq!((late.status, late.answer), (StatusCode::ACCEPTED, Some(Answer::Replayed)));
    assert!(late.is_replay() && late.body == "the winner's");
    assert_eq!(db.effects().await, 1, "the loser's write was undone");
}

// Trap 32. The winner has no response yet.
#[tokio::test]
async fn a_loser_is_told_in_progress_while_the_winner_is_at_work() {
    let db = TestDb::new().await;
    let (gate, winners_gate) = (Gate::new(), Gate::new());
    let hanging =
        gated(&db, layer(&db).leased(lease(SHORT).renewed_for(Duration::ZERO)).unwrap(), &gate);
    let winner = gated(&db, layer(&db).leased(lease(LEASE)).unwrap(), &winners_gate);
    let first = sent(&hanging, "k", "");
    gate.entered().await;
    db.until("select lease_expires_at < {}._clock() from {}.idempotency_keys").await;
    let second = sent(&winner, "k", "");
    winners_gate.entered().await;
    gate.open();
    let late = patient(first).await.unwrap();
    assert_eq!((late.status, late.code()), (StatusCode::CONFLICT, "in_progress".into()));
    winners_gate.open();
    assert_eq!(patient(second).await.unwrap().answer, Some(Answer::Performed));
    assert_eq!(db.effects().await, 1);
}

// Trap 32. Without a final transaction, the completion itself is refused.
#[tokio::test]
async fn a_late_handler_that_writes_nothing_gets_the_winners_answer_too() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let stops = gate.clone();
    let idempotency = layer(&db).leased(lease(SHORT).renewed_for(Duration::ZERO)).unwrap();
    let hanging = handled(idempotency, move |_, _| {
        let gate = stops.clone();
        async move {
            gate.pass().await;
            "the loser's".into_response()
        }
    });
    let other = app(&db, layer(&db).leased(lease(LEASE)).unwrap(), |_| "the winner's");
    let first = sent(&hanging, "k", "");
    gate.entered().await;
    assert_eq!(taken_over(&db, &other).await.answer, Some(Answer::Performed));
    gate.open();
    let late = patient(first).await.unwrap();
    assert_eq!((late.answer, late.body), (Some(Answer::Replayed), "the winner's".into()));
}

/// Notifies when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

// Traps 28, 32. The renewal learns it first: the handler is stopped at once.
#[tokio::test]
async fn a_handler_whose_claim_is_taken_over_is_stopped() {
    let db = TestDb::new().await;
    let (gate, stopped) = (Gate::new(), Arc::new(Notify::new()));
    let (stops, drops, schema) = (gate.clone(), stopped.clone(), db.schema.clone());
    let first = handled(layer(&db).leased(lease(SHORT)).unwrap(), move |_, request| {
        let (gate, dropped, schema) = (stops.clone(), Dropped(drops.clone()), schema.clone());
        async move {
            let _dropped = dropped;
            let mut tx = tx_of(request.extensions()).await.unwrap();
            effect(&mut tx, &schema, "the loser's").await.unwrap();
            gate.pass().await;
            "the loser's".into_response()
        }
    });
    let other = app(&db, layer(&db).leased(lease(LEASE)).unwrap(), |_| "the winner's");
    let first = sent(&first, "k", "");
    gate.entered().await;
    // Between two renewals the claim may lapse and be taken over here.
    let second = loop {
        lapse(&db).await;
        let got = send(&other.router, post("k", "")).await;
        if got.answer != Some(Answer::InProgress) {
            break got;
        }
    };
    assert_eq!(second.answer, Some(Answer::Performed));
    patient(stopped.notified()).await;
    // It may have learned it before the winner was done.
    let late = patient(first).await.unwrap();
    let told = (late.answer, late.body.as_ref());
    let replayed = (Some(Answer::Replayed), b"the winner's".as_slice());
    assert!(told == replayed || told.0 == Some(Answer::InProgress), "{told:?}");
    assert_eq!(db.effects().await, 1);
}

// Traps 16, 32. An operator released the key, and another request has it now.
#[tokio::test]
async fn a_loser_never_gets_the_answer_to_another_request() {
    for finished in [true, false] {
        let db = TestDb::new().await;
        let (gate, winners_gate) = (Gate::new(), Gate::new());
        let slow = gated(&db, layer(&db).leased(lease(LEASE)).unwrap(), &gate);
        let other = gated(&db, layer(&db).leased(lease(LEASE)).unwrap(), &winners_gate);
        let first = sent(&slow, "k", "100");
        gate.entered().await;
        release(&db).await;
        let second = sent(&other, "k", "200");
        winners_gate.entered().await;
        if finished {
            winners_gate.open();
            assert_eq!(patient(second).await.unwrap().answer, Some(Answer::Performed));
        }
        gate.open();
        let late = patient(first).await.unwrap();
        assert_eq!(
            (late.status, late.answer),
            (StatusCode::UNPROCESSABLE_ENTITY, Some(Answer::Mismatch))
        );
        assert_eq!(db.effects().await, i64::from(finished));
    }
}

// Trap 32. Released and free: the operation has no response, so the client must retry.
#[tokio::test]
async fn a_loser_whose_key_is_free_is_told_to_come_back() {
    let db = TestDb::new().await;
    let gate = Gate::new();
    let slow = gated(&db, layer(&db).leased(lease(LEASE)).unwrap(), &gate);
    let first = sent(&slow, "k", "");
    gate.entered().await;
    release(&db).await;
    gate.open();
    let late = patient(first).await.unwrap();
    assert_eq!((late.status, late.code()), (StatusCode::CONFLICT, "in_progress".into()));
    assert_eq!(db.effects().await, 0);
    let retry = sent(&slow, "k", "");
    gate.entered().await;
    gate.open();
    assert_eq!(patient(retry).await.unwrap().answer, Some(Answer::Performed));
    assert_eq!(db.effects().await, 1);
}

// Trap 32. The remote sees one key for the operation, in every attempt.
#[tokio::test]
async fn every_attempt_hands_the_same_derived_key_on() {
    let db = TestDb::new().await;
    let calls = handled(Mode::Leased.layer(&db), |call, request| async move {
        let claim = OnceClaim::of(request.extensions()).unwrap();
        assert_eq!(claim.attempt(), if call <= 3 { call } else { 1 });
        let key = claim.derived_key("charge").as_str().to_owned();
        assert_ne!(key, claim.derived_key("refund").as_str());
        let status = if call < 3 { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
        (status, key).into_response()
    });
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(send(&calls.router, post("k", "")).await.body);
    }
    assert!(seen.iter().all(|key| key == &seen[0]), "{seen:?}");
    let other = send(&calls.router, post("other", "")).await;
    assert_ne!(other.body, seen[0]);
}
