//! Prints outcomes as Markdown text and as JSON.

use std::fmt::Display;
use std::io::{Write as _, stdout};

use serde_json::Value;

use crate::Bench;
use crate::figures::{BARE, HAND_WRITTEN, Outcome, Row};
use crate::goals::{Goal, Limit};

/// Marks debug builds, whose figures say nothing about pgonce.
pub(crate) const VERSION: &str = match cfg!(debug_assertions) {
    true => concat!(env!("CARGO_PKG_VERSION"), " (debug build)"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Explains the figures to readers who see nothing else.
pub(crate) const HOW: &str = "Variants take turns, so that noise on the machine hits all of them. Ratios compare \
    variants of the same round: the median and, in brackets, the lowest and highest. Round trips, WAL (without full-page \
    images), dead row versions and transaction ids are per operation, counted while one client works alone. Client \
    and server µs are CPU time per operation. The pools do not ping connections before use; sqlx's do by default.";

/// Prints a line. Unlike `println!`, does not panic when `head` closes the pipe.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(stdout(), "{text}");
}

pub(crate) fn header(bench: &Bench<'_>) -> String {
    let (count, seconds) = (bench.args.rounds, bench.args.seconds);
    let delay = match bench.args.delay_ms {
        0.0 => String::new(),
        ms => format!(", {ms} ms of delay per round trip to the server"),
    };
    let machine = bench.machine.words();
    format!(
        "# pgonce-bench\n\npgonce {VERSION} on {machine}; {count} rounds of {seconds} s{delay}.\n{HOW}"
    )
}

pub(crate) fn json(bench: &Bench<'_>, outcome: &Outcome) -> Value {
    let mut value = outcome.json();
    value["rounds"] = bench.args.rounds.into();
    value["seconds"] = bench.args.seconds.into();
    value["delay_ms"] = outcome.delay_ms.unwrap_or(bench.args.delay_ms).into();
    value["machine"] = bench.machine.json();
    value["version"] = VERSION.into();
    value
}

pub(crate) fn text(outcome: &Outcome) -> String {
    let mut text = format!("\n## {}\n\n{}\n\n", outcome.title(), outcome.about);
    push_table(&mut text, &cells(outcome), 1);
    for note in &outcome.notes {
        text.push_str(&format!("\n- {note}"));
    }
    text.trim_end().to_owned()
}

/// The goals and the measured figures, for `--check`.
pub(crate) fn goals(bench: &Bench<'_>) -> String {
    let heading = ["scenario", "what", "goal", "measured", ""].map(str::to_owned).to_vec();
    let of = |outcome: &Outcome| {
        let title = outcome.title();
        let row = |goal: &Goal| {
            let limit = match goal.limit {
                Limit::AtLeast(limit) => format!("at least {}", number(limit)),
                Limit::AtMost(limit) => format!("at most {}", number(limit)),
            };
            let verdict = if goal.is_met() { "met" } else { "missed" };
            let measured = number(goal.measured);
            vec![title.clone(), goal.what.to_owned(), limit, measured, verdict.to_owned()]
        };
        outcome.goals.iter().map(row).collect::<Vec<_>>()
    };
    let rows: Vec<_> = [heading].into_iter().chain(bench.outcomes.iter().flat_map(of)).collect();
    let mut text = String::from("\n## Goals of the project\n\n");
    push_table(&mut text, &rows, 2);
    text.trim_end().to_owned()
}

type Column = (&'static str, fn(&Outcome, &Row) -> Option<String>);

const COLUMNS: [Column; 12] = [
    ("ops/s", |_, row| Some(number(row.rate()?.median))),
    ("p50 ms", |_, row| row.percentile_ms(50.0).map(number)),
    ("p99 ms", |_, row| row.percentile_ms(99.0).map(number)),
    ("to bare", |outcome, row| Some(outcome.ratio(row, BARE)?.to_string())),
    ("to hand-written", |outcome, row| Some(outcome.ratio(row, HAND_WRITTEN)?.to_string())),
    ("client µs", |_, row| Some(number(row.client_cpu_us()?.median))),
    ("server µs", |_, row| Some(number(row.server_cpu_us()?.median))),
    ("round trips", |_, row| row.cost.round_trips.map(number)),
    ("WAL bytes", |_, row| row.cost.wal_bytes.map(number)),
    ("dead rows", |_, row| row.cost.dead_rows.map(number)),
    ("xids", |_, row| row.cost.xids.map(number)),
    ("doubles", |_, row| row.doubles.map(grouped)),
];

/// The columns that contain anything, after the rows' names, below a heading.
pub(crate) fn cells(outcome: &Outcome) -> Vec<Vec<String>> {
    let names = outcome.rows.iter().map(|row| vec![row.name.to_owned()]);
    let mut table: Vec<_> = [vec![String::new()]].into_iter().chain(names).collect();
    for (name, cell) in COLUMNS {
        let column: Vec<_> = outcome.rows.iter().map(|row| cell(outcome, row)).collect();
        if column.iter().any(Option::is_some) {
            let heading = Some(name.to_owned());
            for (row, cell) in table.iter_mut().zip([heading].into_iter().chain(column)) {
                row.push(cell.unwrap_or_default());
            }
        }
    }
    table
}

/// Left-aligns the first `left` columns, the names; right-aligns the figures.
fn push_table(text: &mut String, rows: &[Vec<String>], left: usize) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for (at, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < left { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(&format!("| {} |\n", cells.collect::<Vec<_>>().join(" | ")));
        if at == 0 {
            let rules = widths.iter().enumerate().map(|(column, width)| match column < left {
                true => "-".repeat(width + 2),
                false => format!("{}:", "-".repeat(width + 1)),
            });
            text.push_str(&format!("|{}|\n", rules.collect::<Vec<_>>().join("|")));
        }
    }
}

/// About three digits.
pub(crate) fn number(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => {
            let sign = if number < 0.0 { "-" } else { "" };
            format!("{sign}{}", grouped(size.round() as u64))
        }
        size => {
            let text = if size < 0.1 { format!("{number:.3}") } else { format!("{number:.2}") };
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

/// `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut groups = vec![&digits[..first]];
    groups.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    groups.join(",").trim_start_matches(',').to_owned()
}

/// `1.2 MB`.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 3.0, 0.756, 12.5, 5012.4, -262_144.0].map(number);
        assert_eq!(shown, ["0", "3", "0.76", "12.5", "5,012", "-262,144"]);
    }
}
