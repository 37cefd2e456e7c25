//! The explorer finds each planted wrong statement and wrong client.

use super::check::State;
use super::client::Isolation;
use super::lane::Case;
use super::programs::Program;
use super::{Depth, explore, pairs, random};

/// What the explorer reports for the cases, with a change to the statements.
async fn found(cases: Vec<Case>, change: impl Fn(&str) -> String) -> String {
    match explore(cases, Depth::All(250), &mut random(), change).await {
        Ok(played) => panic!("{played} interleavings, and nothing was found"),
        Err(wrong) => {
            println!("{wrong}");
            wrong
        }
    }
}

fn unchanged(text: &str) -> String {
    text.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_always_takes_the_lock_is_found() {
    let cases = pairs(&[Program::LockOnly, Program::Optimistic], &[State::Finished], false);
    let always = |text: &str| text.replace("when s.found is null and $4", "when $4");
    let wrong = found(cases, always).await;
    assert!(wrong.contains("IK004, but no other program was at work"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_waits_for_the_lock_is_found() {
    let cases = pairs(&[Program::LockOnly, Program::Optimistic], &[State::Absent], true);
    let key = ":\"schema\"._lock_id($1, $2))";
    let tries = format!("when not pg_catalog.pg_try_advisory_xact_lock({key}");
    let awaits = format!("when pg_catalog.pg_advisory_xact_lock({key} is null");
    let waits = |text: &str| text.replace(&tries, &awaits);
    let wrong = found(cases, waits).await;
    assert!(wrong.contains("deadlock"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whatever_the_insert_returned_is_found() {
    let cases = pairs(&[Program::CommitsBlindly], &[State::Absent], false);
    let wrong = found(cases, unchanged).await;
    assert!(wrong.contains("finished more than once"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_without_the_lock_that_is_taken_for_it_is_found() {
    let cases = pairs(&[Program::IgnoresTheLock], &[State::Absent], false);
    let wrong = found(cases, unchanged).await;
    assert!(wrong.contains("finished more than once"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_before_rollback_is_found() {
    let case = |isolation| Case {
        state: State::Absent,
        programs: vec![Program::LockOnly, Program::LooksBeforeRollback],
        isolation: vec![isolation; 2],
        shares_a_row: false,
    };
    let wrong = found(vec![case(Isolation::RepeatableRead)], unchanged).await;
    assert!(wrong.contains("B believed its error, though the key was finished before"), "{wrong}");
}
