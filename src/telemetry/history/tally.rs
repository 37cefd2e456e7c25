//! The counts of a history in memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::operation::class::Class;

/// How many minutes, scopes and classes are told apart until they are written. Scopes beyond count together.
const ENTRIES_MAX: usize = 10_000;
/// How many minutes and classes have such a count of all other scopes. Counts beyond are lost.
const OTHERS_MAX: usize = 2_000;

pub(super) const REPLAYED: usize = 1;
pub(super) const DUPLICATES: usize = 11;
pub(super) const VALUE: usize = 12;
pub(super) const UNKEYED: usize = 13;
pub(super) const OBSERVED_DUPLICATES: usize = 14;
pub(super) const OBSERVED_MISMATCHES: usize = 15;
pub(super) const OBSERVED_VALUE: usize = 16;
/// In the order of `record_history`.
type Counts = [u64; 17];

/// Totals, and what the database has of them. A batch writes totals, not what was added since the last one, so that a
/// batch whose answer was lost can be written again.
#[derive(Default)]
struct Entry {
    class: String,
    totals: Counts,
    written: Counts,
}

/// By minute and scope; a scope has few classes.
#[derive(Default)]
pub(super) struct Tally {
    minutes: BTreeMap<u64, HashMap<String, Vec<Entry>>>,
    entries: usize,
    /// What had no room.
    pub(super) lost: u64,
}

/// A row for `record_history`.
pub(super) struct Row {
    pub(super) minute: u64,
    pub(super) scope: String,
    pub(super) class: String,
    pub(super) totals: Counts,
}

impl Tally {
    pub(super) fn add(
        &mut self,
        minute: u64,
        scope: &str,
        class: &Class,
        counters: &[(usize, u64)],
    ) {
        let Some(totals) = self.totals(minute, scope, class.as_str()) else {
            self.lost = self.lost.saturating_add(1);
            return;
        };
        for &(counter, n) in counters {
            totals[counter] = totals[counter].saturating_add(n);
        }
    }

    /// The totals to add to; `None` if there is no room.
    fn totals(&mut self, minute: u64, scope: &str, class: &str) -> Option<&mut Counts> {
        let is_there = |tally: &Self, scope: &str, class: &str| {
            let classes = tally.minutes.get(&minute).and_then(|scopes| scopes.get(scope));
            classes?.iter().position(|entry| entry.class == class)
        };
        let mut scope = scope;
        let mut place = is_there(self, scope, class);
        if place.is_none() && self.entries >= ENTRIES_MAX {
            scope = "";
            place = is_there(self, scope, class);
        }
        if place.is_none() && self.entries >= ENTRIES_MAX + OTHERS_MAX {
            return None;
        }
        let scopes = self.minutes.entry(minute).or_default();
        if place.is_none() {
            let entry = Entry { class: class.to_owned(), ..Entry::default() };
            scopes.entry(scope.to_owned()).or_default().push(entry);
            self.entries += 1;
        }
        let classes = scopes.get_mut(scope)?;
        let place = place.unwrap_or(classes.len() - 1);
        classes.get_mut(place).map(|entry| &mut entry.totals)
    }

    /// What the database does not have yet.
    pub(super) fn unwritten(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (&minute, scopes) in &self.minutes {
            for (scope, classes) in scopes {
                for entry in classes.iter().filter(|entry| entry.totals != entry.written) {
                    let (scope, class) = (scope.clone(), entry.class.clone());
                    rows.push(Row { minute, scope, class, totals: entry.totals });
                }
            }
        }
        rows
    }

    /// Notes what the database has, and forgets what is written of minutes that are over.
    pub(super) fn written(&mut self, rows: &[Row], this_minute: u64) {
        for row in rows {
            let scopes = self.minutes.get_mut(&row.minute);
            let Some(classes) = scopes.and_then(|scopes| scopes.get_mut(&row.scope)) else {
                continue;
            };
            for entry in classes.iter_mut().filter(|entry| entry.class == row.class) {
                entry.written = row.totals;
            }
        }
        self.minutes.retain(|&minute, scopes| {
            if minute < this_minute {
                scopes.retain(|_, classes| {
                    classes.retain(|entry| entry.totals != entry.written);
                    !classes.is_empty()
                });
            }
            minute >= this_minute || !scopes.is_empty()
        });
        let classes = self.minutes.values().flat_map(HashMap::values);
        self.entries = classes.map(Vec::len).sum();
    }
}

// By hand: it is keyed by scopes.
impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("entries", &self.entries).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(tally: &mut Tally, minute: u64, scope: &str, class: &str) {
        tally.add(minute, scope, &Class::new(class).expect("a class"), &[(0, 1)]);
    }

    #[test]
    fn totals_are_sent_until_the_database_has_them_and_forgotten_when_their_minute_is_over() {
        let mut tally = Tally::default();
        started(&mut tally, 5, "a", "x");
        let sent = tally.unwritten();
        started(&mut tally, 5, "a", "x"); // while the batch is on its way
        tally.written(&sent, 5);
        let next = tally.unwritten();
        assert_eq!((next.len(), next[0].totals[0]), (1, 2), "the total, not what was added");
        tally.written(&next, 5);
        assert!(tally.unwritten().is_empty());
        assert_eq!(tally.entries, 1, "this minute's total goes on");
        started(&mut tally, 5, "a", "x");
        let last = tally.unwritten();
        assert_eq!(last[0].totals[0], 3);
        tally.written(&last, 6);
        assert_eq!((tally.entries, tally.minutes.len()), (0, 0));
    }

    #[test]
    fn a_minute_that_was_not_written_is_kept() {
        let mut tally = Tally::default();
        started(&mut tally, 5, "a", "x");
        tally.written(&[], 9);
        assert_eq!(tally.unwritten().len(), 1);
    }

    #[test]
    fn scopes_beyond_the_limit_count_together_and_memory_has_a_bound() {
        let mut tally = Tally::default();
        for scope in 0..ENTRIES_MAX + 50 {
            started(&mut tally, 5, &format!("scope {scope}"), "x");
        }
        assert_eq!(tally.entries, ENTRIES_MAX + 1);
        assert_eq!(tally.minutes[&5][""][0].totals[0], 50);
        started(&mut tally, 5, "scope 7", "x");
        assert_eq!(tally.minutes[&5]["scope 7"][0].totals[0], 2, "a known one is still told apart");
        for minute in 6..6 + 3 * OTHERS_MAX as u64 {
            started(&mut tally, minute, "a", "x");
        }
        assert_eq!(tally.entries, ENTRIES_MAX + OTHERS_MAX);
        assert_eq!(tally.lost, 2 * OTHERS_MAX as u64 + 1);
    }

    #[test]
    fn totals_do_not_overflow() {
        let mut tally = Tally::default();
        for _ in 0..2 {
            tally.add(5, "a", &Class::default(), &[(REPLAYED, 1), (VALUE, u64::MAX)]);
        }
        let totals = tally.unwritten()[0].totals;
        assert_eq!((totals[REPLAYED], totals[VALUE]), (2, u64::MAX));
    }
}
