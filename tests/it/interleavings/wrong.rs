//! Programs that break a rule.

use super::client::{Answer, Client, Tried};
use super::lock_only::performed;

pub async fn commits_blindly(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    client.work().await?;
    client.insert(2, true).await?;
    client.commit_decision().await?;
    Ok(performed(client))
}

pub async fn looks_before_rollback(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    client.work().await?;
    client.give_work_up().await?;
    let failed_at = client.moment();
    let look = client.look(false).await?;
    if look.answer.as_deref() == Some("replay") {
        return Ok(Some(look.into_answer(client)));
    }
    Ok(Some(Answer::Failed(failed_at)))
}

pub async fn ignores_the_lock(client: &mut Client) -> Tried<Option<Answer>> {
    client.begin("begin deferrable").await?;
    let look = client.look(false).await?;
    if look.answer.is_some() {
        return Ok(Some(look.into_answer(client)));
    }
    client.work().await?;
    client.insert(2, false).await?;
    client.commit_decision().await?;
    Ok(performed(client))
}
