//! Work whose key only looks on, or is ignored: for the [rollout modes](crate::RolloutMode) *observe* and *off*.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;

use super::call::Call;
use super::key::Inserted;
use super::outcome::{Done, Ending};
use super::performing::{Begun, Performing};
use super::run_error::RunError;
use super::work_error::WorkError;
use crate::error::Result;
use crate::operation::Operation;
use crate::operation::response::{Response, read_back};
use crate::protocol::answer::{Begin, InProgress};

/// How observed work ended.
pub(super) struct Observed<T, E> {
    pub(super) ended: Result<Done<T>, RunError<E>>,
    /// What the call would have been told. None: its key was new, and was recorded with the work if that was possible.
    pub(super) told: Option<Begin>,
}

/// Runs the work, with its key if that is new. No trouble with the key keeps the work from running.
pub(super) async fn observed<T, E, Kind, F>(
    call: &mut Call<'_>,
    op: &Operation,
    work: F,
) -> Observed<T, E>
where
    T: Serialize + DeserializeOwned,
    E: WorkError<Kind>,
    F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
{
    loop {
        let performing = match call.begin().await {
            Ok(Begun::Started(performing)) => performing,
            Ok(Begun::Answered(told)) => {
                return Observed { ended: unprotected(call, op, work).await, told: Some(told) };
            }
            Err(error) => {
                tracing::warn!(%error, sqlstate = error.sqlstate(), "an observed key could not be begun");
                return Observed { ended: unprotected(call, op, work).await, told: None };
            }
        };
        match attempt(call, op, performing, work.clone(), true).await {
            None => {}
            Some((ended, is_duplicate)) => {
                let in_progress = || Begin::InProgress(InProgress { lease_remaining: None });
                return Observed { ended, told: is_duplicate.then(in_progress) };
            }
        }
    }
}

/// Runs the work in a transaction without its key.
pub(super) async fn unprotected<T, E, Kind, F>(
    call: &mut Call<'_>,
    op: &Operation,
    work: F,
) -> Result<Done<T>, RunError<E>>
where
    T: Serialize + DeserializeOwned,
    E: WorkError<Kind>,
    F: AsyncFnOnce(&mut PgConnection) -> Result<T, E> + Clone,
{
    loop {
        let performing = call.begin_unprotected().await?;
        if let Some((ended, _)) = attempt(call, op, performing, work.clone(), false).await {
            return ended;
        }
    }
}

/// Runs the work once and commits it, with its key if it has the right to it and the value can be stored. Also returns
/// whether another call got the key since the look. None: start again.
async fn attempt<T, E, Kind, F>(
    call: &mut Call<'_>,
    op: &Operation,
    mut performing: Performing,
    work: F,
    with_key: bool,
) -> Option<(Result<Done<T>, RunError<E>>, bool)>
where
    T: Serialize + DeserializeOwned,
    E: WorkError<Kind>,
    F: AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
{
    match work(&mut performing).await.map_err(E::into_ending) {
        Ok(value) => {
            let committed = match storable(&value, op, with_key) {
                Some(response) => call.finish_or_commit(performing, response).await,
                None => performing.tx.commit_probed().await.map(|()| None),
            };
            match committed {
                Ok(inserted) => {
                    let is_duplicate = matches!(inserted, Some(Inserted::NoRow | Inserted::Taken));
                    Some((Ok(Done::new(value)), is_duplicate))
                }
                Err(error) if call.starts_again(&error).await => None,
                Err(error) => Some((Err(error.into()), false)),
            }
        }
        Err(Ending::Keep(response)) => {
            let kept = match with_key {
                true => call.keep(performing, response.clone()).await.map(drop),
                false => {
                    performing.tx.rollback().await;
                    Ok(())
                }
            };
            if let Err(error) = kept {
                tracing::warn!(%error, sqlstate = error.sqlstate(), "an observed failure was not kept");
            }
            Some((Err(RunError::Failed { response, replayed: false }), false))
        }
        Err(Ending::Undo(error)) => {
            performing.tx.rollback().await;
            match error.is_contention() && call.lost_to_another().await {
                true => None,
                false => Some((Err(error), false)),
            }
        }
    }
}

/// What to store of the value; None if there is no key, or no retry could read it.
fn storable<T: Serialize + DeserializeOwned>(
    value: &T,
    op: &Operation,
    with_key: bool,
) -> Option<Response> {
    if !with_key {
        return None;
    }
    let stored = Response::json(value).and_then(|response| {
        if !op.secret {
            read_back::<T>(response.body())?;
        }
        Ok(response)
    });
    match stored {
        Ok(response) if op.secret => Some(response.secret()),
        Ok(response) => Some(response),
        Err(error) => {
            tracing::warn!(%error, "an observed value cannot be stored; with protection the call would fail");
            None
        }
    }
}
