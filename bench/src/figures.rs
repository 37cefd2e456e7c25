//! The result of a scenario: rows of figures, and notes.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::goals::Goal;
use crate::load::{Latencies, Sample, no_latencies};
use crate::plot::Growth;
use crate::print::number;

/// Names of the rows that others are compared with.
pub(crate) const BARE: &str = "bare";
pub(crate) const HAND_WRITTEN: &str = "hand-written";

/// The result of one scenario with one number of clients.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) scenario: &'static str,
    pub(crate) clients: u16,
    /// The delay to the server, if it differs from `--delay-ms`.
    pub(crate) delay_ms: Option<f64>,
    /// What an operation is, and which figures matter.
    pub(crate) about: &'static str,
    pub(crate) rows: Vec<Row>,
    /// The name of pgonce's row.
    pub(crate) own: &'static str,
    /// Figures that fit no column.
    pub(crate) figures: Vec<(&'static str, Value)>,
    /// The same figures in words.
    pub(crate) notes: Vec<String>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) growth: Option<Growth>,
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Operations per call.
    operations: f64,
    /// Operations per second, per round.
    rates: Vec<f64>,
    /// CPU time per operation in microseconds, per round: the client's, then the server's.
    client_cpu: Vec<f64>,
    server_cpu: Vec<f64>,
    pub(crate) latencies: Latencies,
    pub(crate) cost: Cost,
    /// Orders beyond the first for a key.
    pub(crate) doubles: Option<u64>,
}

/// The counted cost of one operation. `None` if it cannot be counted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) round_trips: Option<f64>,
    pub(crate) wal_bytes: Option<f64>,
    pub(crate) dead_rows: Option<f64>,
    pub(crate) xids: Option<f64>,
}

impl Cost {
    /// The cost that each of `times` additions adds to `other`.
    pub(crate) fn each_beyond(self, other: Self, times: usize) -> Self {
        let each = |with: Option<f64>, without: Option<f64>| {
            with.zip(without).map(|(with, without)| (with - without) / times as f64)
        };
        Self {
            round_trips: each(self.round_trips, other.round_trips),
            wal_bytes: each(self.wal_bytes, other.wal_bytes),
            dead_rows: each(self.dead_rows, other.dead_rows),
            xids: each(self.xids, other.xids),
        }
    }
}

/// A median, with the lowest and highest value.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

/// The p99 of a workload in milliseconds, per round: alone, and beside other work.
#[derive(Default)]
pub(crate) struct Disturbed {
    pub(crate) alone: Vec<f64>,
    pub(crate) beside: Vec<f64>,
}

impl Outcome {
    pub(crate) fn new(
        scenario: &'static str,
        clients: u16,
        about: &'static str,
        rows: Vec<Row>,
        own: &'static str,
    ) -> Self {
        Self { scenario, clients, about, rows, own, ..Self::default() }
    }

    pub(crate) fn title(&self) -> String {
        let clients = match self.clients {
            1 => "1 client".to_owned(),
            n => format!("{n} clients"),
        };
        let delay = self.delay_ms.map(|ms| format!(", {ms} ms away")).unwrap_or_default();
        format!("{}, {clients}{delay}", self.scenario)
    }

    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The rates of `row` divided by those of the row named `to`.
    pub(crate) fn ratio(&self, row: &Row, to: &str) -> Option<Spread> {
        if row.name == to { None } else { row.ratio_to(self.row(to)?) }
    }

    /// The same, by two names.
    pub(crate) fn ratio_of(&self, name: &str, to: &str) -> Option<Spread> {
        self.ratio(self.row(name)?, to)
    }

    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(key, _)| *key == name)?.1.as_f64()
    }

    /// Adds the p99 of other work, alone and beside this scenario.
    pub(crate) fn tell_disturbance(&mut self, what: &str, disturbed: &Disturbed) {
        let Disturbed { alone, beside } = disturbed;
        let ratio = Spread::of(beside.iter().zip(alone).map(|(beside, alone)| beside / alone));
        let median = |times: &[f64]| Spread::of(times.iter().copied()).map(|time| time.median);
        let (alone, beside) = (median(alone), median(beside));
        self.figures.extend([
            ("p99_ms_alone", alone.into()),
            ("p99_ms_beside", beside.into()),
            ("p99_ratio", ratio.map(|ratio| ratio.median).into()),
        ]);
        if let (Some(alone), Some(beside)) = (alone, beside) {
            self.notes.push(format!("{what}: {} ms to {} ms.", number(beside), number(alone)));
        }
    }

    pub(crate) fn json(&self) -> Value {
        let own = self.row(self.own);
        let mut object = own.map_or_else(Map::new, |row| self.row_json(row));
        let variants = self.rows.iter().map(|row| (row.name.to_owned(), self.row_json(row).into()));
        let figures = self.figures.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        object.insert("scenario".to_owned(), self.scenario.into());
        object.insert("clients".to_owned(), self.clients.into());
        object.insert("variants".to_owned(), variants.collect::<Map<_, _>>().into());
        object.insert("figures".to_owned(), figures.collect::<Map<_, _>>().into());
        object.insert("goals".to_owned(), self.goals.iter().map(Goal::json).collect());
        object.into()
    }

    fn row_json(&self, row: &Row) -> Map<String, Value> {
        let median = |spread: Option<Spread>| spread.map(|spread| rounded(spread.median));
        let ends = |spread: Option<Spread>| {
            spread.map(|spread| json!([rounded(spread.low), rounded(spread.high)]))
        };
        let (rate, bare) = (row.rate(), self.ratio(row, BARE));
        let by_hand = self.ratio(row, HAND_WRITTEN);
        let figures = json!({
            "ops_per_s": median(rate),
            "p50_ms": row.percentile_ms(50.0),
            "p99_ms": row.percentile_ms(99.0),
            "ratio_to_bare": median(bare),
            "ratio_to_hand_written": median(by_hand),
            "client_cpu_us": median(row.client_cpu_us()),
            "server_cpu_us": median(row.server_cpu_us()),
            "round_trips": row.cost.round_trips.map(rounded),
            "wal_bytes_per_op": row.cost.wal_bytes.map(rounded),
            "dead_rows_per_op": row.cost.dead_rows.map(rounded),
            "xids_per_op": row.cost.xids.map(rounded),
            "doubles": row.doubles,
            "spread": {
                "ops_per_s": ends(rate),
                "ratio_to_bare": ends(bare),
                "ratio_to_hand_written": ends(by_hand),
            },
        });
        let Value::Object(figures) = figures else { unreachable!("it is written as one") };
        figures
    }
}

impl Row {
    pub(crate) fn new(name: &'static str, cost: Cost) -> Self {
        let (rates, client_cpu, server_cpu) = (Vec::new(), Vec::new(), Vec::new());
        let latencies = no_latencies();
        Self {
            name,
            operations: 1.0,
            rates,
            client_cpu,
            server_cpu,
            latencies,
            cost,
            doubles: None,
        }
    }

    /// For work that does `operations` operations per call.
    pub(crate) fn of(self, operations: u32) -> Self {
        Self { operations: operations.into(), ..self }
    }

    pub(crate) fn add(&mut self, sample: &Sample) {
        self.rates.push(sample.per_second * self.operations);
        self.client_cpu.extend(sample.cpu.client.map(|micros| micros / self.operations));
        self.server_cpu.extend(sample.cpu.server.map(|micros| micros / self.operations));
        let added = self.latencies.add(&sample.latencies);
        added.unwrap_or_else(|_| unreachable!("of the same range"));
    }

    pub(crate) fn rate(&self) -> Option<Spread> {
        Spread::of(self.rates.iter().copied())
    }

    pub(crate) fn client_cpu_us(&self) -> Option<Spread> {
        Spread::of(self.client_cpu.iter().copied())
    }

    pub(crate) fn server_cpu_us(&self) -> Option<Spread> {
        Spread::of(self.server_cpu.iter().copied())
    }

    /// Ratio of the rates to another row's, round by round.
    fn ratio_to(&self, other: &Row) -> Option<Spread> {
        Spread::of(self.rates.iter().zip(&other.rates).map(|(rate, other)| rate / other))
    }

    /// The time that `percent` percent of the calls did not exceed, in milliseconds.
    pub(crate) fn percentile_ms(&self, percent: f64) -> Option<f64> {
        let micros =
            (!self.latencies.is_empty()).then(|| self.latencies.value_at_percentile(percent));
        micros.map(|micros| micros as f64 / 1000.0)
    }
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let (left, right) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { low, median: f64::midpoint(left, right), high })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.low, self.high)
    }
}

/// Rounds to three decimals; no figure here is more precise.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, rates: &[f64]) -> Row {
        Row { rates: rates.to_vec(), ..Row::new(name, Cost::default()) }
    }

    #[test]
    fn a_ratio_is_the_median_of_those_of_each_round() {
        let (bare, own) = (row(BARE, &[100.0, 200.0, 400.0]), row("run", &[50.0, 180.0, 100.0]));
        let Some(Spread { low, median, high }) = own.ratio_to(&bare) else { panic!("no ratio") };
        assert_eq!((low, median, high), (0.25, 0.5, 0.9));
        assert!(row("run", &[]).ratio_to(&bare).is_none());
        assert_eq!(Spread::of([4.0, 1.0].into_iter()).map(|spread| spread.median), Some(2.5));
    }
}
