//! The tools, called by the protocol's own client (npm): again, at once, with other arguments, after a kill.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod agent;
mod remotes;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::agent::{Agent, Database, PATIENCE};
use crate::remotes::Remotes;

fn outcome(result: &Value) -> &str {
    result["structuredContent"]["outcome"].as_str().unwrap_or_else(|| panic!("{result}"))
}

fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap()
}

async fn world() -> (Database, Remotes) {
    (Database::new().await, Remotes::start().await)
}

#[tokio::test]
async fn a_call_that_comes_again_with_another_id_takes_effect_once() {
    let (db, remotes) = world().await;
    let mut agent = Agent::start(&db, &remotes).await;
    let first = json!({ "order": "order-17", "cents": 1999, "note": "thank you" });
    let again = json!({ "order": "order-17", "cents": 1999, "note": "many thanks!" });
    let done = agent.call("create_invoice", &first).await;
    assert_eq!((outcome(&done), &done["isError"]), ("done", &json!(false)));
    let replayed = agent.call("create_invoice", &again).await;
    assert_eq!((outcome(&replayed), &replayed["isError"]), ("replayed", &json!(false)));
    assert!(text(&replayed).contains("Nothing was done now"));
    let invoice = |result: &Value| result["structuredContent"]["invoice"].clone();
    assert_eq!(invoice(&done), invoice(&replayed));
    // In another session, too, as after a restart.
    let mut other = Agent::start(&db, &remotes).await;
    assert_eq!(outcome(&other.call("create_invoice", &again).await), "replayed");
    assert_eq!(db.number("select count(*) from invoice where note = 'thank you'").await, 1);
}

#[tokio::test]
async fn calls_at_once_take_effect_once() {
    let (db, remotes) = world().await;
    let mut agents = [Agent::start(&db, &remotes).await, Agent::start(&db, &remotes).await];
    let arguments = json!({ "order": "order-17", "cents": 1999 });
    for tool in ["create_invoice", "charge_card"] {
        for agent in &mut agents {
            for _ in 0..10 {
                agent.send(tool, &arguments).await;
            }
        }
        let mut done = 0;
        for agent in &mut agents {
            for _ in 0..10 {
                let result = agent.result().await;
                assert!(["done", "replayed", "in_progress"].contains(&outcome(&result)));
                done += usize::from(outcome(&result) == "done");
            }
        }
        assert_eq!(done, 1, "{tool}");
    }
    assert_eq!(db.number("select count(*) from invoice").await, 1);
    assert_eq!(db.number("select count(*) from charge").await, 1);
    assert_eq!((remotes.charges(), remotes.requests()), (1, 1));
}

#[tokio::test]
async fn an_order_with_other_arguments_is_refused_and_the_model_told_not_to_evade() {
    let (db, remotes) = world().await;
    let mut agent = Agent::start(&db, &remotes).await;
    for tool in ["create_invoice", "charge_card"] {
        agent.call(tool, &json!({ "order": "order-17", "cents": 1999 })).await;
        let other = agent.call(tool, &json!({ "order": "order-17", "cents": 2999 })).await;
        assert_eq!((outcome(&other), &other["isError"]), ("mismatch", &json!(true)));
        assert!(text(&other).contains("Ask the user"));
        let bad = agent.call(tool, &json!({ "order": "order-18", "cents": -5 })).await;
        assert!(bad.to_string().contains("cents must be 1 or more"), "{bad}");
    }
    assert_eq!(db.number("select count(*) from pgonce.keys").await, 2);
    assert_eq!(remotes.charges(), 1);
}

#[tokio::test]
async fn a_declined_card_is_final_and_not_asked_again() {
    let (db, remotes) = world().await;
    let mut agent = Agent::start(&db, &remotes).await;
    let too_much = json!({ "order": "order-17", "cents": 1_000_000 });
    for _ in 0..2 {
        let failed = agent.call("charge_card", &too_much).await;
        assert_eq!(outcome(&failed), "failed");
        assert!(text(&failed).contains("the card was declined"));
    }
    assert_eq!((remotes.requests(), remotes.charges()), (1, 0));
}

/// Kills the server while the remote is at work, and calls again in a new one until the outcome is known.
async fn killed_at_the_remote(tool: &str, arguments: &Value) -> (Value, Database, Remotes) {
    let (db, remotes) = world().await;
    let mut agent = Agent::start(&db, &remotes).await;
    let held = remotes.hold();
    agent.send(tool, arguments).await;
    held.arrived().await;
    agent.kill().await;
    drop(held);
    let mut agent = Agent::start(&db, &remotes).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let result = agent.call(tool, arguments).await;
        if outcome(&result) != "in_progress" {
            return (result, db, remotes);
        }
        assert!(result["structuredContent"]["pause_seconds"].as_u64().unwrap() >= 1);
        assert!(Instant::now() < deadline, "{result}");
    }
}

#[tokio::test]
async fn a_charge_whose_server_was_killed_is_charged_once() {
    let arguments = json!({ "order": "order-17", "cents": 1999 });
    let (done, db, remotes) = killed_at_the_remote("charge_card", &arguments).await;
    assert_eq!(outcome(&done), "done");
    assert_eq!((remotes.requests(), remotes.charges()), (2, 1), "the same key");
    assert_eq!(db.number("select count(*) from charge").await, 1);
}

#[tokio::test]
async fn a_letter_whose_server_was_killed_is_left_to_a_person() {
    let arguments = json!({ "order": "order-17", "text": "Dear Ms Jones" });
    let (held, _db, remotes) = killed_at_the_remote("send_letter", &arguments).await;
    assert_eq!((outcome(&held), &held["isError"]), ("held", &json!(true)));
    assert!(text(&held).contains("A person must look"));
    assert_eq!(remotes.requests(), 1);
}
