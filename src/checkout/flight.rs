//! Calls of this process that are at work on a key. Others with that key wait for them here: with no connection, and
//! at no cost to the database. It is only about waiting; who may go on, and who gets which answer, the database says.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::watch;

use crate::operation::Operation;

/// The calls that others may wait for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flights(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    hasher: RandomState,
    ends: Mutex<HashMap<FlightId, watch::Receiver<()>>>,
}

/// A key in a database. Should two have the same one, a call waits in vain and then finds out.
pub(super) type FlightId = u64;

/// One call at work on its key, until this is dropped.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Flights,
    id: FlightId,
    /// Those who wait see it go.
    _end: watch::Sender<()>,
}

impl Flights {
    pub(super) fn id(&self, pool: &PgPool, op: &Operation) -> FlightId {
        // A pool's options are its own, and stay where they are until they are replaced.
        let options = Arc::as_ptr(&pool.connect_options());
        self.0.hasher.hash_one((options, op.scope.as_str(), op.key.as_str()))
    }

    /// Waits for the call that is at work on this key, and says whether there was one.
    pub(super) async fn wait_for(&self, id: FlightId, wait: Duration) -> bool {
        let Some(mut end) = self.ends().get(&id).cloned() else { return false };
        // Nothing is ever sent: it ends with the flight or with the time.
        let _ = tokio::time::timeout(wait, end.changed()).await;
        true
    }

    /// Lets others wait for this call. None: there is one to wait for.
    pub(super) fn enter(&self, id: FlightId) -> Option<Flight> {
        let mut ends = self.ends();
        if ends.contains_key(&id) {
            return None;
        }
        let (flight, end) = watch::channel(());
        ends.insert(id, end);
        Some(Flight { flights: self.clone(), id, _end: flight })
    }

    fn ends(&self) -> MutexGuard<'_, HashMap<FlightId, watch::Receiver<()>>> {
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.ends().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_is_left_of_it() {
        let flights = Flights::default();
        let first = flights.enter(7);
        assert!(first.is_some());
        assert!(flights.enter(7).is_none());
        assert!(flights.enter(8).is_some());
        drop(first);
        assert!(flights.ends().is_empty());
        assert!(flights.enter(7).is_some());
    }
}
