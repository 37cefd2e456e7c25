//! Random histories, compared with a small model of the protocol in Rust.

use std::collections::HashMap;
use std::time::Duration;

use pgonce::{
    Begin, Claim, ErrorKind, Failure, Fingerprint, OnLapse, Operation, Response, RunError,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use sqlx::{Connection, PgConnection};

use crate::support::db::{TestDb, kept_for, lasting, word};

const RETENTION: u64 = 100;

#[derive(Debug, Clone)]
enum Step {
    Begin { key: u8, print: u8, lease: u64, hold: bool, max_attempts: Option<u32> },
    Complete { claim: prop::sample::Index },
    Fail { claim: prop::sample::Index },
    Release { claim: prop::sample::Index },
    Extend { claim: prop::sample::Index, lease: u64 },
    Run { key: u8, print: u8, ending: Ending },
    Advance { seconds: u64 },
    Reap,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Value,
    Undo,
    Keep,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..3u8;
    let print = 0..3u8; // 0: none
    let lease = 1..=RETENTION;
    let claim = any::<prop::sample::Index>;
    let ending = prop_oneof![Just(Ending::Value), Just(Ending::Undo), Just(Ending::Keep)];
    let attempts = prop_oneof![3 => Just(None), 1 => (1..4u32).prop_map(Some)];
    prop_oneof![
        6 => (key.clone(), print.clone(), lease.clone(), any::<bool>(), attempts).prop_map(
            |(key, print, lease, hold, max_attempts)| Step::Begin { key, print, lease, hold, max_attempts }
        ),
        2 => claim().prop_map(|claim| Step::Complete { claim }),
        1 => claim().prop_map(|claim| Step::Fail { claim }),
        2 => claim().prop_map(|claim| Step::Release { claim }),
        1 => (claim(), lease).prop_map(|(claim, lease)| Step::Extend { claim, lease }),
        3 => (key, print, ending).prop_map(|(key, print, ending)| Step::Run { key, print, ending }),
        3 => (1..RETENTION).prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Reap),
    ]
}

/// What the model knows of a key. Times are in seconds.
#[derive(Debug, Clone)]
struct Row {
    finished: Option<&'static str>,
    print: u8,
    /// The live or lapsed claim, as a position in the history; `None` after a release.
    holder: Option<usize>,
    attempt: u32,
    lease_expires: u64,
    expires: u64,
}

#[derive(Default)]
struct Model {
    now: u64,
    rows: HashMap<u8, Row>,
    claims: usize,
}

impl Model {
    fn begin(
        &mut self,
        key: u8,
        print: u8,
        lease: u64,
        hold: bool,
        max_attempts: Option<u32>,
    ) -> &'static str {
        let now = self.now;
        let fresh = |attempt, holder| Row {
            finished: None,
            print,
            holder: Some(holder),
            attempt,
            lease_expires: now + lease,
            expires: now + RETENTION,
        };
        let holder = self.claims;
        let Some(row) = self.rows.get_mut(&key) else {
            self.rows.insert(key, fresh(1, holder));
            return "started";
        };
        let unfinished = row.finished.is_none();
        let live = unfinished && row.holder.is_some() && row.lease_expires > now;
        if (row.expires <= now && !live) || (unfinished && row.holder.is_none()) {
            let attempt = if row.expires > now { row.attempt + 1 } else { 1 };
            *row = fresh(attempt, holder);
            return "started";
        }
        if print != 0 && row.print != 0 && print != row.print {
            return "mismatch";
        }
        if !unfinished {
            return "replay";
        }
        if live {
            return "in progress";
        }
        if hold || max_attempts.is_some_and(|max| row.attempt >= max) {
            return "held";
        }
        row.holder = Some(holder);
        row.attempt += 1;
        row.print = if row.print == 0 { print } else { row.print };
        row.lease_expires = now + lease;
        "started"
    }

    /// The row, if this claim still has it.
    fn held(&mut self, key: u8, claim: usize) -> Option<&mut Row> {
        self.rows.get_mut(&key).filter(|row| row.holder == Some(claim) && row.finished.is_none())
    }

    fn reap(&mut self) {
        let now = self.now;
        self.rows.retain(|_, row| {
            let live = row.finished.is_none() && row.lease_expires > now;
            row.expires > now || live
        });
    }
}

/// A real claim, with its key and position in the model.
struct Held {
    key: u8,
    place: usize,
    claim: Option<Claim>,
}

struct History<'d> {
    db: &'d TestDb,
    scope: String,
    model: Model,
    claims: Vec<Held>,
}

impl History<'_> {
    fn op(&self, key: u8, print: u8) -> Operation {
        let op = Operation::new(self.scope.as_str(), format!("k{key}")).unwrap();
        let op = op.policy(kept_for(Duration::from_secs(RETENTION)));
        if print == 0 { op } else { op.fingerprint(Fingerprint::of_bytes([print])) }
    }

    async fn play(&mut self, step: &Step) {
        let mut conn = self.db.conn().await;
        match *step {
            Step::Begin { key, print, lease, hold, max_attempts } => {
                let expected = self.model.begin(key, print, lease, hold, max_attempts);
                let mut policy = kept_for(Duration::from_secs(RETENTION));
                policy = if hold { policy.on_lapse(OnLapse::Hold) } else { policy };
                policy = max_attempts.map_or(policy, |max| policy.max_attempts(max).unwrap());
                let op = self.op(key, print).policy(policy);
                let answer = self
                    .db
                    .once
                    .begin_leased(&self.db.pool, &op, lasting(Duration::from_secs(lease)))
                    .await;
                let answer = answer.unwrap();
                assert_eq!(word(&answer), expected);
                if let Begin::Started(claim) = answer {
                    assert_eq!(claim.attempt(), self.model.rows[&key].attempt);
                    self.claims.push(Held { key, place: self.model.claims, claim: Some(claim) });
                    self.model.claims += 1;
                }
            }
            Step::Complete { claim } => self.settle(claim, "completed").await,
            Step::Fail { claim } => self.settle(claim, "failed").await,
            Step::Release { claim } => self.settle(claim, "released").await,
            Step::Extend { claim, lease } => self.extend(claim, lease).await,
            Step::Run { key, print, ending } => self.run(key, print, ending).await,
            Step::Advance { seconds } => {
                self.model.now += seconds;
                self.db.advance(Duration::from_secs(seconds)).await;
            }
            Step::Reap => {
                self.model.reap();
                self.db.once.reap_once(&mut conn, 10_000).await.unwrap();
            }
        }
        // A key is listed in `unfinished` exactly from its leased begin to its end or release.
        let wrong = "select count(*) from {}.unfinished u
                       full join (select * from {}.idempotency_keys
                                   where status = 1 and leased and token is not null) k using (scope, key)
                      where u.scope is null or k.scope is null";
        let wrong: i64 = sqlx::query_scalar(self.db.sql(wrong)).fetch_one(&mut conn).await.unwrap();
        assert_eq!(wrong, 0, "{step:?}");
    }

    async fn settle(&mut self, claim: prop::sample::Index, how: &'static str) {
        if self.claims.is_empty() {
            return;
        }
        let held = claim.index(self.claims.len());
        let Held { key, place, ref mut claim } = self.claims[held];
        let Some(claim) = claim.take() else { return };
        let now = self.model.now;
        let row = self.model.held(key, place);
        let expected = row.is_some();
        if let Some(row) = row {
            match how {
                "released" => {
                    row.holder = None;
                    row.lease_expires = row.lease_expires.min(now);
                }
                _ => row.finished = Some(how),
            }
        }
        let mut conn = self.db.conn().await;
        let result = match how {
            "completed" => claim.complete(&mut conn, Response::json("value").unwrap()).await,
            "failed" => claim.fail(&mut conn, Response::json("failure").unwrap()).await,
            _ => claim.release(&mut conn).await,
        };
        check(result, expected, &mut conn).await;
    }

    async fn extend(&mut self, claim: prop::sample::Index, lease: u64) {
        if self.claims.is_empty() {
            return;
        }
        let held = claim.index(self.claims.len());
        let Held { key, place, ref mut claim } = self.claims[held];
        let Some(claim) = claim else { return };
        let now = self.model.now;
        let row = self.model.held(key, place);
        let expected = row.is_some();
        if let Some(row) = row {
            row.lease_expires = row.lease_expires.max(now + lease);
        }
        let mut conn = self.db.conn().await;
        let result = claim.extend(&self.db.pool, lasting(Duration::from_secs(lease))).await;
        check(result, expected, &mut conn).await;
    }

    async fn run(&mut self, key: u8, print: u8, ending: Ending) {
        let before = self.model.rows.get(&key).cloned();
        let mut expected = self.model.begin(key, print, RETENTION, false, None);
        if expected == "started" {
            let row = self.model.rows.get_mut(&key).unwrap();
            // A transactional claim's lease ends with the retention.
            row.lease_expires = row.expires;
            self.model.claims += 1;
            match ending {
                Ending::Value => row.finished = Some("completed"),
                Ending::Keep => row.finished = Some("failed"),
                Ending::Undo => {
                    self.model.rows.remove(&key);
                    self.model.rows.extend(before.map(|row| (key, row)));
                }
            }
            expected = match ending {
                Ending::Value => "performed",
                Ending::Keep => "failed",
                Ending::Undo => "undone",
            };
        } else if expected == "replay" && self.model.rows[&key].finished == Some("failed") {
            expected = "failed";
        }
        let op = self.op(key, print);
        let result = self.db.once.run(&self.db.pool, &op, async |_| match ending {
            Ending::Value => Ok("value".to_owned()),
            Ending::Undo => Err(Failure::from("undone")),
            Ending::Keep => Err(Failure::keep(Response::json("failure").unwrap())),
        });
        let got = match result.await {
            Ok(done) if done.is_replay() => "replay",
            Ok(_) => "performed",
            Err(RunError::Failed { .. }) => "failed",
            Err(RunError::Work { .. }) => "undone",
            Err(RunError::InProgress(_)) => "in progress",
            Err(RunError::Mismatch(_)) => "mismatch",
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(got, expected);
    }
}

async fn check(result: Result<(), pgonce::Error>, expected: bool, conn: &mut PgConnection) {
    match result {
        Ok(()) => assert!(expected, "a claim that the model had lost was accepted"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ClaimLost);
            assert!(!expected, "a claim that the model still held was refused");
            // The server reports an error before it releases its locks. The ping waits for that.
            conn.ping().await.unwrap();
        }
    }
}

#[test]
fn random_histories_agree_with_the_model() {
    let seed = std::env::var("PGONCE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("to repeat this run: PGONCE_SEED={seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let db = runtime.block_on(async {
        let db = TestDb::new().await;
        db.stop_clock().await;
        db
    });
    let config = Config {
        cases: 60,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    let history = prop::collection::vec(step(), 1..40);
    let case = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&history, |steps| {
            case.set(case.get() + 1);
            let mut history = History {
                db: &db,
                scope: format!("case {}", case.get()),
                model: Model::default(),
                claims: Vec::new(),
            };
            runtime.block_on(async {
                for step in &steps {
                    history.play(step).await;
                }
            });
            Ok(())
        })
        .unwrap();
}
