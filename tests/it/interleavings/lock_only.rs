//! What `run` sends, in each of its ways.

use super::calls::Look;
use super::client::{Answer, Client, Isolation, Tried};

pub fn performed(client: &Client) -> Option<Answer> {
    Some(Answer::Performed(Some(client.body())))
}

fn kept(client: &Client) -> Option<Answer> {
    Some(Answer::Kept(Some(client.body())))
}

pub fn in_progress(client: &Client) -> Option<Answer> {
    client.refused("in progress");
    Some(Answer::InProgress)
}

/// The result of a look that does not lead to the work.
enum Looked {
    Answer(Answer),
    MayBeOverwritten,
    Ours,
}

fn decide(look: Look, client: &Client) -> Looked {
    if look.answer.is_some() {
        Looked::Answer(look.into_answer(client))
    } else if look.found {
        Looked::MayBeOverwritten
    } else if look.is_ours {
        Looked::Ours
    } else {
        client.refused("in progress");
        Looked::Answer(Answer::InProgress)
    }
}

pub async fn lock_only(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    look_and_perform(client).await
}

pub async fn lock_only_late(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    let mut look = client.look(false).await?;
    if !look.found {
        look.is_ours = client.try_lock().await?;
    }
    perform(client, look).await
}

pub async fn look_and_perform(client: &mut Client) -> Tried<Option<Answer>> {
    let look = client.look(true).await?;
    perform(client, look).await
}

pub async fn perform(client: &mut Client, look: Look) -> Tried<Option<Answer>> {
    match decide(look, client) {
        Looked::Answer(answer) => Ok(Some(answer)),
        Looked::MayBeOverwritten => claim_row(client, 0).await,
        Looked::Ours => {
            client.work().await?;
            write_and_commit(client, false).await
        }
    }
}

pub async fn write_and_commit(client: &mut Client, optimistic: bool) -> Tried<Option<Answer>> {
    if !client.insert(2, optimistic).await? {
        return Ok(None);
    }
    client.commit_decision().await?;
    Ok(performed(client))
}

/// Claims the row in the open transaction.
pub async fn claim_row(client: &mut Client, wait_ms: i64) -> Tried<Option<Answer>> {
    let begun = client.begin_operation(wait_ms).await?;
    let Some(token) = begun.token else { return Ok(Some(begun.into_answer(client))) };
    client.work().await?;
    client.finish("complete", token).await?;
    client.commit_decision().await?;
    Ok(performed(client))
}

pub async fn lock_only_waiting(client: &mut Client) -> Tried<Option<Answer>> {
    if client.isolation == Isolation::ReadCommitted {
        client.begin("begin deferrable").await?;
        if !client.wait_for_key().await? {
            return Ok(in_progress(client));
        }
    } else {
        // A snapshot from before the wait would be stale.
        client.begin("begin").await?;
        if !client.wait_for_key().await? {
            return Ok(in_progress(client));
        }
        client.commit().await?;
        client.begin("begin deferrable").await?;
    }
    look_and_perform(client).await
}

pub async fn optimistic(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    client.work().await?;
    write_and_commit(client, true).await
}

pub async fn failing(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    let look = client.look(true).await?;
    match decide(look, client) {
        Looked::Answer(answer) => return Ok(Some(answer)),
        Looked::MayBeOverwritten => {
            let begun = client.begin_operation(0).await?;
            if begun.token.is_none() {
                return Ok(Some(begun.into_answer(client)));
            }
        }
        Looked::Ours => {}
    }
    fail_and_look(client).await
}

pub async fn optimistic_failing(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    fail_and_look(client).await
}

pub async fn fail_and_look(client: &mut Client) -> Tried<Option<Answer>> {
    client.work().await?;
    let failed = client.fail_work().await;
    assert_eq!(failed, Err("22012".to_owned()));
    let failed_at = client.moment();
    client.rollback().await?;
    client.begin("begin").await?;
    let look = client.look(false).await?;
    if look.answer.as_deref() == Some("replay") {
        return Ok(Some(look.into_answer(client)));
    }
    Ok(Some(Answer::Failed(failed_at)))
}

pub async fn keep(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    let look = client.look(true).await?;
    match decide(look, client) {
        Looked::Answer(answer) => return Ok(Some(answer)),
        Looked::MayBeOverwritten => return keep_in_claim(client, true).await,
        Looked::Ours => {}
    }
    if client.isolation == Isolation::Serializable {
        // The failure commits with the reads it depends on.
        client.savepoint().await?;
        client.work().await?;
        client.rollback_to_savepoint().await?;
    } else {
        client.work().await?;
        client.rollback().await?;
        client.begin("begin deferrable").await?;
        let look = client.look(true).await?;
        match decide(look, client) {
            Looked::Answer(answer) => return Ok(Some(answer)),
            Looked::MayBeOverwritten => return keep_in_claim(client, false).await,
            Looked::Ours => {}
        }
    }
    if !client.insert(3, false).await? {
        return Ok(None);
    }
    client.commit_decision().await?;
    Ok(kept(client))
}

pub async fn keep_in_claim(client: &mut Client, works: bool) -> Tried<Option<Answer>> {
    let begun = client.begin_operation(0).await?;
    let Some(token) = begun.token else { return Ok(Some(begun.into_answer(client))) };
    if works {
        client.savepoint().await?;
        client.work().await?;
        client.rollback_to_savepoint().await?;
    }
    client.finish("fail", token).await?;
    client.commit_decision().await?;
    Ok(kept(client))
}
