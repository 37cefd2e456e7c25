//! Clients that pay, and a service that is killed again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::database::{Database, PATIENCE};
use crate::service::{Answer, Client, Service};

const CLIENTS: usize = 4;
const KILLS: usize = 20;

/// Kills the service at random moments, while clients pay under many keys and try again until they have an answer.
/// Fails unless each key has one payment, and the same answer the second time.
pub async fn pays_once(program: &str, db: &Database, more: &[(&str, String)]) {
    pays_once_and(program, db, more, async || ()).await;
}

/// The same. After each kill it does `after_kill`.
pub async fn pays_once_and(
    program: &str,
    db: &Database,
    more: &[(&str, String)],
    after_kill: impl AsyncFn(),
) {
    let seed = fastrand::u64(..);
    println!("{program}: seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let before = db.payments().await;
    let mut service = Service::start(program, db, more).await;
    let (tell, told) = watch::channel(service.client.clone());
    let (keys, is_over) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
    let client = || {
        let (told, keys, is_over) = (told.clone(), Arc::clone(&keys), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut tries = 0;
            while !is_over.load(Ordering::Relaxed) {
                let number = keys.fetch_add(1, Ordering::Relaxed);
                let first = answer(&told, number, &mut tries).await;
                assert_eq!(answer(&told, number, &mut tries).await, first);
            }
            tries
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| client()).collect();
    for _ in 0..KILLS {
        let payments = "select count(*) from payment";
        db.until(payments, db.payments().await + random.i64(1..=20)).await;
        service.kill();
        after_kill().await;
        service = Service::start(program, db, more).await;
        tell.send(service.client.clone()).unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    let mut tries = 0;
    for client in clients {
        tries += client.await.expect("a client");
    }
    let keys = keys.load(Ordering::Relaxed);
    println!("{program}: {keys} keys, {tries} requests");
    assert_eq!(db.payments().await - before, keys, "payments, and keys");
    let distinct = format!("select count(distinct cents) from payment where cents > {CENTS}");
    assert_eq!(db.number(&distinct).await, keys);
}

/// The amounts of a storm are above it.
const CENTS: i64 = 1_000_000;

/// Sends a payment until it is answered.
async fn answer(told: &watch::Receiver<Client>, number: i64, tries: &mut u32) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let client = told.borrow().clone();
        *tries += 1;
        let cents = CENTS + 1 + number;
        let answer = client.pay("storm", &format!("storm-{number}"), cents).await;
        match answer {
            Ok(answer) if answer.status == 201 => return answer,
            Ok(Answer { status: 409 | 500 | 503, .. }) | Err(_) => tokio::task::yield_now().await,
            Ok(other) => panic!("key {number}: {other:?}"),
        }
        assert!(Instant::now() < deadline, "key {number} is not answered");
    }
}
