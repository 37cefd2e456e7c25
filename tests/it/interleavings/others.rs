//! The verbs, leased work, operators and consumers.

use sqlx::types::Uuid;

use super::client::{Answer, Client, Tried};
use super::lock_only::{claim_row, in_progress, performed};

pub fn nothing(why: &str) -> Option<Answer> {
    Some(Answer::Nothing(why.to_owned()))
}

pub async fn verbs(client: &mut Client, wait_ms: i64) -> Tried<Option<Answer>> {
    client.begin("begin").await?;
    claim_row(client, wait_ms).await
}

pub async fn verbs_after_work(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin").await?;
    client.work().await?;
    let begun = client.begin_operation(20_000).await?;
    let Some(token) = begun.token else { return Ok(Some(begun.into_answer(client))) };
    client.finish("complete", token).await?;
    client.commit_decision().await?;
    Ok(performed(client))
}

pub async fn verbs_release(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin").await?;
    let begun = client.begin_operation(0).await?;
    let Some(token) = begun.token else { return Ok(Some(begun.into_answer(client))) };
    client.release(token).await?;
    client.commit().await?;
    Ok(nothing("released"))
}

pub async fn leased(client: &mut Client) -> Tried<Option<Answer>> {
    let begun = client.begin_leased().await?;
    if begun.answer != "started" {
        return Ok(Some(begun.into_answer(client)));
    }
    holder(client).await
}

pub async fn holder(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin").await?;
    client.work().await?;
    match client.finish("complete", client.token).await {
        Err(told) if told.starts_with("IK002") => {
            client.holds_a_lease(false);
            return Ok(nothing("lost"));
        }
        finished => finished?,
    }
    client.commit_decision().await?;
    client.holds_a_lease(false);
    Ok(performed(client))
}

/// Its effect is outside of the key's transaction. Its lease is long enough, so there is one effect.
pub async fn leased_alone(client: &mut Client) -> Tried<Option<Answer>> {
    let begun = client.begin_leased().await?;
    if begun.answer != "started" {
        return Ok(Some(begun.into_answer(client)));
    }
    while let Err(code) = client.work().await {
        if code != "40001" {
            return Err(code);
        }
    }
    match client.extend_leases().await?.as_str() {
        "extended" => {}
        "locked" => client.refused("locked"),
        other => client.is_wrong(other),
    }
    client.complete_leased().await?;
    client.decided();
    client.holds_a_lease(false);
    Ok(performed(client))
}

pub async fn take_over(client: &mut Client) -> Tried<Option<Answer>> {
    let Some(token) = operate(client, "take_over_claim").await? else {
        return Ok(nothing("refused"));
    };
    client.work().await?;
    client.finish("complete", token.expect("a token")).await?;
    client.commit_decision().await?;
    Ok(performed(client))
}

pub async fn redrive(client: &mut Client) -> Tried<Option<Answer>> {
    if operate(client, "redrive_message").await?.is_none() {
        return Ok(nothing("refused"));
    }
    client.commit().await?;
    Ok(nothing("redriven"))
}

/// `None`: the operator was refused.
pub async fn operate(client: &mut Client, verb: &'static str) -> Tried<Option<Option<Uuid>>> {
    client.begin("begin").await?;
    let Some(seen) = client.seen().await? else { return Ok(None) };
    match client.operate(verb, &seen).await {
        Err(told) if told.starts_with("IK002") => {
            if told.contains("being worked on") {
                client.refused(&told);
            }
            Ok(None)
        }
        token => token.map(Some),
    }
}

pub async fn receive(client: &mut Client, wait_ms: i64) -> Tried<Option<Answer>> {
    client.begin("begin").await?;
    let received = client.receive(wait_ms).await?;
    match (received.answer.as_str(), received.status) {
        ("new", _) => {
            client.work().await?;
            client.commit_decision().await?;
            Ok(Some(Answer::Performed(None)))
        }
        ("seen", Some(status)) => Ok(Some(Answer::Replay { status, body: received.body })),
        ("dead", Some(status)) if status == "failed" => {
            Ok(Some(Answer::Replay { status, body: received.body }))
        }
        ("dead", Some(status)) if status == "in_progress" => Ok(nothing("dead")),
        ("in_progress", _) => Ok(in_progress(client)),
        (other, status) => Ok(Some(Answer::Broken(format!("{other}, {status:?}")))),
    }
}

pub async fn receive_failing(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin").await?;
    let received = client.receive(0).await?;
    if received.answer != "new" {
        return Ok(nothing(&received.answer));
    }
    client.work().await?;
    client.fail_work().await.expect_err("it divides by zero");
    client.rollback().await?;
    client.count_attempt().await?;
    Ok(nothing("counted"))
}
