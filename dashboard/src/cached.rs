//! Figures that are read in the background: a request gets the last ones, however many look and however long a read
//! takes.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::problem::Problem;

/// The last figures, and what went wrong since.
pub(crate) struct Seen<T> {
    pub(crate) value: Option<Arc<T>>,
    /// Set if the last read failed: the figures are older than they should be.
    pub(crate) problem: Option<Problem>,
}

/// Remembers figures, each under a name. Nothing is read unless a page is open.
pub(crate) struct Cached<K, T> {
    entries: Arc<Mutex<HashMap<K, Arc<Entry<T>>>>>,
    fresh: Duration,
}

struct Entry<T> {
    state: Mutex<State<T>>,
    /// Held by the one who reads.
    turn: tokio::sync::Mutex<()>,
}

struct State<T> {
    value: Option<Arc<T>>,
    problem: Option<Problem>,
    read_at: Option<Instant>,
}

/// Figures older than this are of an earlier visit: pages ask again after five seconds.
const STALE: Duration = Duration::from_secs(20);

/// Beyond this, all is forgotten: visitors choose the names.
const ENTRIES_MAX: usize = 64;

impl<K, T> Cached<K, T>
where
    K: Eq + Hash + Send + 'static,
    T: Send + Sync + 'static,
{
    pub(crate) fn new(fresh: Duration) -> Self {
        Self { entries: Arc::default(), fresh }
    }

    /// The last figures. If they are old, starts to read new ones. If there are none, or only those of an earlier visit,
    /// waits for them.
    pub(crate) async fn get<F, Fut>(&self, name: K, read: F) -> Seen<T>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let entry = self.entry(name);
        let (seen, is_fresh) = entry.seen(self.fresh);
        if is_fresh {
            return seen;
        }
        let fresh = self.fresh;
        // In a task of its own: a visitor who leaves does not stop it.
        let reading = tokio::spawn({
            let entry = Arc::clone(&entry);
            async move { entry.read(fresh, read).await }
        });
        if seen.value.is_some() && !entry.is_stale() {
            return seen;
        }
        // It ends early only if it panics; then there is still nothing to show.
        let _ = reading.await;
        entry.seen(fresh).0
    }

    /// Forgets the figures, because an action has changed what they count.
    pub(crate) fn forget(&self) {
        lock(&self.entries).clear();
    }

    fn entry(&self, name: K) -> Arc<Entry<T>> {
        let mut entries = lock(&self.entries);
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&name) {
            entries.clear();
        }
        Arc::clone(entries.entry(name).or_default())
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        let state = State { value: None, problem: None, read_at: None };
        Self { state: Mutex::new(state), turn: tokio::sync::Mutex::default() }
    }
}

impl<T> Entry<T> {
    fn seen(&self, fresh: Duration) -> (Seen<T>, bool) {
        let state = lock(&self.state);
        let is_fresh = state.read_at.is_some_and(|at| at.elapsed() < fresh);
        (Seen { value: state.value.clone(), problem: state.problem.clone() }, is_fresh)
    }

    fn is_stale(&self) -> bool {
        lock(&self.state).read_at.is_none_or(|at| at.elapsed() >= STALE)
    }

    /// Reads, unless another reader has just done so. After a failure the last figures stay.
    async fn read<F, Fut>(&self, fresh: Duration, read: F)
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, Problem>>,
    {
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            // Somebody reads: only those who have nothing to show wait.
            Err(_) if lock(&self.state).value.is_some() && !self.is_stale() => return,
            Err(_) => self.turn.lock().await,
        };
        if self.seen(fresh).1 {
            return;
        }
        let read = read().await;
        let mut state = lock(&self.state);
        state.read_at = Some(Instant::now());
        match read {
            Ok(value) => (state.value, state.problem) = (Some(Arc::new(value)), None),
            Err(problem) => state.problem = Some(problem),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_cause_one_read() {
        let cached = Arc::new(Cached::new(Duration::from_secs(60)));
        let reads = Arc::new(AtomicU32::new(0));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (cached, reads) = (Arc::clone(&cached), Arc::clone(&reads));
            asking.spawn(async move {
                let read = async move || {
                    tokio::task::yield_now().await;
                    Ok(reads.fetch_add(1, Ordering::Relaxed))
                };
                *cached.get((), read).await.value.unwrap()
            });
        }
        assert!(asking.join_all().await.iter().all(|value| *value == 0));
        assert_eq!(reads.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn after_a_failure_the_last_figures_stay() {
        let cached = Cached::new(Duration::ZERO);
        assert_eq!(*cached.get((), async || Ok(7)).await.value.unwrap(), 7);
        // Reads in the background, and shows what there is.
        let (done, is_done) = tokio::sync::oneshot::channel();
        let fails = async move || {
            let _ = done.send(());
            Err(Problem::slow())
        };
        assert!(cached.get((), fails).await.problem.is_none());
        is_done.await.unwrap();
        let seen = loop {
            let seen = cached.get((), async || Err(Problem::slow())).await;
            if seen.problem.is_some() {
                break seen;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(*seen.value.unwrap(), 7);
    }

    #[tokio::test]
    async fn visitors_cannot_fill_the_memory() {
        let cached = Cached::new(Duration::from_secs(60));
        for name in 0..10 * ENTRIES_MAX {
            cached.get(name, async || Ok(())).await;
        }
        assert!(lock(&cached.entries).len() <= ENTRIES_MAX);
    }
}
