//! The project's goals. `--check` compares the measured figures with them.

use serde_json::{Value, json};

use crate::figures::{BARE, Cost, HAND_WRITTEN, Outcome, rounded};

struct Rule {
    scenario: &'static str,
    when: When,
    what: &'static str,
    measure: Measure,
    limit: Limit,
}

/// Which runs of the scenario a rule applies to.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// No added delay, and this many clients.
    Near(Clients),
    /// A round trip takes at least this many milliseconds longer.
    Away(f64),
}

#[derive(Clone, Copy, PartialEq)]
enum Clients {
    Few,
    Many,
    Any,
}

/// The number of clients that counts as many.
const MANY: u16 = 32;

#[derive(Clone, Copy)]
enum Measure {
    /// Ratio of two rows' throughput.
    Throughput(&'static str, &'static str),
    /// Ratio of two rows' server CPU time per operation.
    ServerCpu(&'static str, &'static str),
    Cost(&'static str, fn(&Cost) -> Option<f64>),
    Figure(&'static str),
    Rate(&'static str),
    /// Orders beyond the first for a key, in pgonce's row.
    Doubles,
    /// The same for another row.
    DoublesOf(&'static str),
}

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

pub(crate) struct Goal {
    pub(crate) what: &'static str,
    pub(crate) limit: Limit,
    pub(crate) measured: f64,
}

use Clients::{Any, Few, Many};
use Limit::{AtLeast, AtMost};
use Measure::{Doubles, DoublesOf, Figure, Rate, ServerCpu, Throughput};
use When::{Always, Away, Near};

const RUN: &str = "run";
const OPTIMISTIC: &str = "run, optimistic";
const VERBS: &str = "begin, complete";

const fn rule(
    scenario: &'static str,
    when: When,
    what: &'static str,
    measure: Measure,
    limit: Limit,
) -> Rule {
    Rule { scenario, when, what, measure, limit }
}

const fn trips(row: &'static str) -> Measure {
    Measure::Cost(row, |cost| cost.round_trips)
}

const fn wal(row: &'static str) -> Measure {
    Measure::Cost(row, |cost| cost.wal_bytes)
}

const fn xids(row: &'static str) -> Measure {
    Measure::Cost(row, |cost| cost.xids)
}

#[rustfmt::skip] // a table
const RULES: &[Rule] = &[
    rule("fresh", Always, "doubles", Doubles, AtMost(0.0)),
    rule("fresh", Near(Few), "run to hand-written", Throughput(RUN, HAND_WRITTEN), AtLeast(0.92)),
    rule("fresh", Near(Many), "run to hand-written", Throughput(RUN, HAND_WRITTEN), AtLeast(0.95)),
    rule("fresh", Near(Any), "server CPU time of run to hand-written", ServerCpu(RUN, HAND_WRITTEN), AtMost(1.1)),
    rule("fresh", Near(Few), "run, optimistic, to hand-written", Throughput(OPTIMISTIC, HAND_WRITTEN), AtLeast(1.04)),
    rule("fresh", Near(Many), "run, optimistic, to hand-written", Throughput(OPTIMISTIC, HAND_WRITTEN), AtLeast(1.08)),
    rule("fresh", Near(Few), "run, optimistic, to bare", Throughput(OPTIMISTIC, BARE), AtLeast(0.68)),
    rule("fresh", Near(Many), "run, optimistic, to bare", Throughput(OPTIMISTIC, BARE), AtLeast(0.59)),
    rule("fresh", Near(Any), "begin, complete to hand-written", Throughput(VERBS, HAND_WRITTEN), AtLeast(0.78)),
    rule("fresh", Away(0.2), "run to hand-written", Throughput(RUN, HAND_WRITTEN), AtLeast(0.95)),
    rule("fresh", Away(0.2), "run, optimistic, to hand-written", Throughput(OPTIMISTIC, HAND_WRITTEN), AtLeast(1.12)),
    rule("fresh", Near(Few), "round trips of run, with its work", trips(RUN), AtMost(5.0)),
    rule("fresh", Near(Few), "round trips of run, optimistic", trips(OPTIMISTIC), AtMost(4.0)),
    rule("fresh", Near(Few), "WAL bytes of run", wal(RUN), AtMost(1240.0)),
    rule("fresh", Near(Few), "transaction ids of run", xids(RUN), AtMost(1.0)),
    rule("fresh", Near(Few), "dead rows of run", Measure::Cost(RUN, |cost| cost.dead_rows), AtMost(0.0)),
    rule("fresh", Near(Few), "WAL bytes of begin, complete", wal(VERBS), AtMost(1330.0)),
    rule("fresh", Near(Any), "WAL bytes of run whose work fails", Figure("rolled_back_wal_bytes"), AtMost(0.0)),
    rule("fresh", Near(Any), "growth of memory in bytes", Figure("rss_growth_bytes"), AtMost(4_000_000.0)),
    rule("replay", Always, "doubles", Doubles, AtMost(0.0)),
    rule("replay", Near(Few), "replays to bare", Throughput(RUN, BARE), AtLeast(1.9)),
    rule("replay", Near(Any), "replays to hand-written", Throughput(RUN, HAND_WRITTEN), AtLeast(1.05)),
    rule("replay", Near(Few), "round trips of a replay", trips(RUN), AtMost(2.0)),
    rule("replay", Near(Few), "WAL bytes of a replay", wal(RUN), AtMost(0.0)),
    rule("replay", Near(Few), "transaction ids of a replay", xids(RUN), AtMost(0.0)),
    rule("mixed", Always, "doubles", Doubles, AtMost(0.0)),
    rule("hot", Always, "doubles", Doubles, AtMost(0.0)),
    rule("hot", Near(Any), "run, in one process, to bare", Throughput(RUN, BARE), AtLeast(1.15)),
    rule("hot", Near(Any), "run, apart, to hand-written", Throughput("run, apart", HAND_WRITTEN), AtLeast(0.9)),
    rule("hot", Near(Any), "WAL bytes of a refused duplicate", Figure("refused_wal_bytes"), AtMost(0.0)),
    rule("hot", Near(Any), "p99 of other keys with 16 refused duplicates to without", Figure("p99_ratio"), AtMost(1.5)),
    rule("leased", Always, "doubles", Doubles, AtMost(0.0)),
    rule("http", Near(Any), "the layer to bare", Throughput("layer", BARE), AtLeast(0.45)),
    rule("http", Near(Any), "the layer to run in the handler", Figure("ratio_to_run"), AtLeast(0.87)),
    rule("reap", Always, "keys reaped per second", Rate("reap"), AtLeast(200_000.0)),
    rule("reap", Always, "keys reaped per second, old snapshot open", Rate("reap, old snapshot open"), AtLeast(200_000.0)),
    rule("reap", Always, "p99 of new keys with a busy reaper to without", Figure("p99_ratio"), AtMost(2.0)),
    rule("reap", Always, "keys reaped per new key", Figure("reaped_to_intake"), AtLeast(5.0)),
    rule("churn", Always, "largest size to the size after turnover 3", Figure("growth"), AtMost(1.5)),
    rule("churn", Always, "share of updates that are HOT", Figure("hot_share"), AtLeast(0.9)),
    rule("scale", Always, "fresh, large to small", Throughput("fresh, large", "fresh, small"), AtLeast(0.85)),
    rule("scale", Always, "replays, large to small", Throughput("replay, large", "replay, small"), AtLeast(0.9)),
    rule("peers", Near(Any), "run to a Redis lock, everysec", Throughput(RUN, "Redis, everysec"), AtLeast(0.76)),
    rule("peers", Near(Any), "run, optimistic, to a Redis lock, everysec", Throughput(OPTIMISTIC, "Redis, everysec"), AtLeast(0.85)),
    rule("kills", Always, "doubles of run", Doubles, AtMost(0.0)),
    rule("kills", Always, "doubles of run, optimistic", DoublesOf(OPTIMISTIC), AtMost(0.0)),
    rule("kills", Always, "keys that pgonce lost", Figure("lost"), AtMost(0.0)),
];

/// The goals for which the outcome has a figure.
pub(crate) fn of(outcome: &Outcome, delay_ms: f64) -> Vec<Goal> {
    let rules = RULES.iter().filter(|rule| rule.scenario == outcome.scenario);
    let rules = rules.filter(|rule| rule.when.holds(outcome.clients, delay_ms));
    let goal = |rule: &Rule| {
        let measured = rule.measure.of(outcome)?;
        Some(Goal { what: rule.what, limit: rule.limit, measured })
    };
    rules.filter_map(goal).collect()
}

impl When {
    fn holds(self, clients: u16, delay_ms: f64) -> bool {
        match self {
            Always => true,
            Near(which) => {
                let is_many = clients >= MANY;
                delay_ms == 0.0 && (which == Any || (which == Many) == is_many)
            }
            Away(least) => delay_ms >= least,
        }
    }
}

impl Measure {
    fn of(self, outcome: &Outcome) -> Option<f64> {
        match self {
            Throughput(row, to) => Some(outcome.ratio_of(row, to)?.median),
            ServerCpu(row, to) => {
                let cpu = |name| Some(outcome.row(name)?.server_cpu_us()?.median);
                Some(cpu(row)? / cpu(to)?)
            }
            Self::Cost(row, cost) => cost(&outcome.row(row)?.cost),
            Figure(name) => outcome.figure(name),
            Rate(row) => Some(outcome.row(row)?.rate()?.median),
            Doubles => DoublesOf(outcome.own).of(outcome),
            DoublesOf(row) => Some(outcome.row(row)?.doubles? as f64),
        }
    }
}

impl Goal {
    pub(crate) fn is_met(&self) -> bool {
        match self.limit {
            AtLeast(limit) => self.measured >= limit,
            AtMost(limit) => self.measured <= limit,
        }
    }

    pub(crate) fn json(&self) -> Value {
        let (at_least, at_most) = match self.limit {
            AtLeast(limit) => (Some(limit), None),
            AtMost(limit) => (None, Some(limit)),
        };
        json!({"what": self.what, "at_least": at_least, "at_most": at_most,
               "measured": rounded(self.measured), "met": self.is_met()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_met_at_their_limit() {
        let met = |limit, measured| Goal { what: "", limit, measured }.is_met();
        assert!(met(AtLeast(0.75), 0.75) && !met(AtLeast(0.75), 0.74));
        assert!(met(AtMost(4.0), 4.0) && !met(AtMost(4.0), 4.01));
    }

    #[test]
    fn each_run_is_held_against_its_own_goals() {
        assert!(Near(Few).holds(8, 0.0) && !Near(Few).holds(32, 0.0) && !Near(Few).holds(8, 1.0));
        assert!(Near(Any).holds(32, 0.0) && Away(0.2).holds(8, 0.25) && !Away(0.2).holds(8, 0.0));
    }
}
