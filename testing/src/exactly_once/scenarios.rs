//! What callers, networks and databases do to a call.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::call::{Attempt, Outcome, poll_times};
use super::engine::{Engine, Found, new_key};
use super::report::{Fault, Scenario};

/// Calls with one key at the same time.
const AT_ONCE: u32 = 8;
/// Rounds of `AT_ONCE`. The first finds a pool without connections.
const ROUNDS: u32 = 4;
/// A call is cut off at no later stage.
const STAGES_MAX: u32 = 200;
/// Times that a call is hung up on at each stage.
const PASSES: u32 = 4;
/// Cuts of the connections at random times.
const CUTS: u32 = 16;

impl Engine {
    /// Runs all scenarios. If one of the first three finds something, the others would repeat it, and are left out.
    pub(super) async fn run(&mut self, has_other_request: bool) {
        let found = self.one_call().await;
        if !self.note(Scenario::OneCall, found) {
            return;
        }
        let found = self.another_key().await;
        if !self.note(Scenario::AnotherKey, found) {
            return;
        }
        let found = self.in_turn().await;
        if !self.note(Scenario::InTurn, found) {
            return;
        }
        let found = self.at_once().await;
        self.note(Scenario::AtOnce, found);
        let found = self.hang_up().await;
        self.note(Scenario::HangUp, found);
        let found = self.dropped_answer().await;
        self.note(Scenario::DroppedAnswer, found);
        let found = self.killed().await;
        self.note(Scenario::Killed, found);
        if has_other_request {
            let found = self.changed_request().await;
            self.note(Scenario::ChangedRequest, found);
        }
    }

    async fn one_call(&mut self) -> Found {
        let before = self.effects().await?;
        let began = Instant::now();
        let answer = match self.start(Attempt::new(&new_key())).await {
            Outcome::Done(answer) => answer,
            outcome => {
                let detail = format!("the request is not accepted: it got {outcome}");
                return Err((Fault::Unusable, detail));
            }
        };
        self.usual = Some((answer, began.elapsed()));
        self.expect(before, 1, "after one call").await
    }

    async fn another_key(&mut self) -> Found {
        let before = self.effects().await?;
        let began = Instant::now();
        let answer = self.answered(&Attempt::new(&new_key()), "the second key").await?;
        // Faster than the first, which had to connect.
        self.usual = Some((answer, began.elapsed()));
        self.expect(before, 1, "after one call with a second key").await
    }

    async fn in_turn(&mut self) -> Found {
        let before = self.effects().await?;
        let attempt = Attempt::new(&new_key());
        let first = self.answered(&attempt, "the first call").await?;
        let replayed = self.replayed(&attempt, Some(first), "after an answer").await;
        // A second effect says more than another answer.
        self.expect(before, 1, "after three calls in turn").await?;
        replayed
    }

    async fn at_once(&mut self) -> Found {
        for round in 1..=ROUNDS {
            let stage = format!("round {round}, {AT_ONCE} calls");
            let before = self.effects().await?;
            let attempt = Attempt::new(&new_key());
            let mut calls = JoinSet::new();
            for _ in 0..AT_ONCE {
                calls.spawn(self.start(attempt.clone()));
            }
            let outcomes = calls.join_all().await;
            let replayed = self.replayed(&attempt, None, &stage).await;
            self.expect(before, 1, &stage).await?;
            replayed?;
            let last = self.answered(&attempt, &stage).await?;
            for outcome in outcomes {
                match outcome {
                    Outcome::Later(_) => {}
                    Outcome::Done(answer) if answer == last => {}
                    Outcome::Done(answer) => {
                        let detail = format!("{stage}: one got {answer}, a retry got {last}");
                        return Err((Fault::OtherAnswer, detail));
                    }
                    outcome => return Err((Fault::Failed, format!("{stage}: one got {outcome}"))),
                }
            }
        }
        Ok(())
    }

    /// A stage ends where the call's future waits: for the answer to a statement, for example. A quick answer leaves a
    /// stage out, so there are several passes.
    async fn hang_up(&mut self) -> Found {
        for pass in 1..=PASSES {
            for times in 1..=STAGES_MAX {
                let stage = format!("pass {pass}, hung up at stage {times}");
                let before = self.effects().await?;
                let attempt = Attempt::new(&new_key());
                let mut running = self.start(attempt.clone());
                let ended = poll_times(&mut running, times).await.is_some();
                drop(running);
                self.settled(&attempt, before, &stage).await?;
                if ended {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn dropped_answer(&mut self) -> Found {
        let stage = "dropped the response";
        let before = self.effects().await?;
        let attempt = Attempt::new(&new_key());
        self.start(Attempt { unread: true, ..attempt.clone() }).await;
        self.settled(&attempt, before, stage).await
    }

    async fn killed(&mut self) -> Found {
        for times in 1..=STAGES_MAX {
            let stage = format!("connections cut at stage {times}");
            let before = self.effects().await?;
            let attempt = Attempt::new(&new_key());
            let mut running = self.start(attempt.clone());
            let ended = poll_times(&mut running, times).await.is_some();
            self.cut_connections().await?;
            if !ended {
                let _ = tokio::time::timeout(self.patience, running).await;
            }
            self.settled(&attempt, before, &stage).await?;
            if ended {
                break;
            }
        }
        // A service may do the work in another task, of which no stage is seen here.
        let usual = self.usual.as_ref().map_or(Duration::ZERO, |(_, took)| *took);
        for _ in 0..CUTS {
            let after = usual.mul_f64(self.rng.f64());
            let stage = format!("connections cut after {after:?}");
            let before = self.effects().await?;
            let attempt = Attempt::new(&new_key());
            let running = tokio::spawn(self.start(attempt.clone()));
            let began = Instant::now();
            while began.elapsed() < after {
                tokio::task::yield_now().await; // a timer is too coarse
            }
            self.cut_connections().await?;
            let _ = tokio::time::timeout(self.patience, running).await;
            self.settled(&attempt, before, &stage).await?;
        }
        Ok(())
    }

    /// After a call whose caller knows nothing: retries have an answer, and there is one effect.
    async fn settled(&mut self, attempt: &Attempt, before: i64, stage: &str) -> Found {
        let replayed = self.replayed(attempt, None, stage).await;
        match self.expect(before, 1, stage).await {
            // Without an answer, no effect is nothing to complain about.
            Err((Fault::Lost, _)) if replayed.is_err() => replayed,
            Err(found) => Err(found),
            Ok(()) => replayed,
        }
    }

    async fn changed_request(&mut self) -> Found {
        let before = self.effects().await?;
        let other = Attempt { changed: true, ..Attempt::new(&new_key()) };
        match self.start(other).await {
            Outcome::Done(_) => {}
            outcome => {
                let detail = format!(
                    "the changed request is not accepted even with a new key, so a refusal proves \
                     nothing: it got {outcome}"
                );
                return Err((Fault::Unusable, detail));
            }
        }
        self.expect(before, 1, "after the changed request with a new key").await?;

        let attempt = Attempt::new(&new_key());
        self.answered(&attempt, "the first request").await?;
        let outcome = self.start(Attempt { changed: true, ..attempt }).await;
        self.expect(before, 2, "after the changed request with a used key").await?;
        match outcome {
            Outcome::Refused(_) => Ok(()),
            outcome => Err((Fault::NotRefused, format!("the changed request got {outcome}"))),
        }
    }
}
