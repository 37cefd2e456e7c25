//! What the demo prints.

use std::time::Duration;

use serde_json::{Value, json};

use super::books::Count;
use super::storm::Tally;
use crate::output::grouped;

pub(super) struct Setting {
    pub(super) server_version: String,
    pub(super) throwaway: bool,
    pub(super) clients: u16,
    pub(super) payments: u32,
    pub(super) loss: f64,
    pub(super) seed: u64,
}

pub(super) struct Half {
    count: Count,
    requests: u64,
    replays: u64,
    in_progress: u64,
    p50: Duration,
    p99: Duration,
}

pub(super) struct Report {
    pub(super) setting: Setting,
    pub(super) unprotected: Half,
    pub(super) protected: Half,
}

impl Setting {
    pub(super) fn header(&self) -> String {
        let Self { server_version, seed, .. } = self;
        let clients = match self.clients {
            1 => "1 client sends".to_owned(),
            n => format!("{n} clients send"),
        };
        let whose = if self.throwaway { "a temporary " } else { "" };
        let payments = grouped(u64::from(self.payments));
        let percent = (self.loss * 1000.0).round() / 10.0;
        format!(
            "\
On {whose}PostgreSQL {server_version}, {clients} {payments} payments to a server.
{percent} % of the responses get lost, so clients retry, often while the first request still runs.
The server runs first without, then with pgonce. (--seed {seed} repeats the faults.)
"
        )
    }
}

impl Half {
    pub(super) fn new(count: Count, tally: Tally) -> Self {
        let mut latencies = tally.latencies;
        latencies.sort_unstable();
        Self {
            count,
            requests: tally.requests,
            replays: tally.replays,
            in_progress: tally.in_progress,
            p50: percentile(&latencies, 50),
            p99: percentile(&latencies, 99),
        }
    }

    pub(super) fn summary(&self, took: Duration) -> String {
        format!("{} requests in {:.1} s", grouped(self.requests), took.as_secs_f64())
    }

    fn json(&self) -> Value {
        json!({
            "requested": self.count.requested,
            "charged": self.count.charged,
            "doubles": self.count.doubles,
            "taken_twice_cents": self.count.taken_twice,
            "lost": self.count.lost,
            "requests": self.requests,
            "replays": self.replays,
            "in_progress": self.in_progress,
            "p50_ms": millis(self.p50),
            "p99_ms": millis(self.p99),
        })
    }

    fn cells(&self) -> [String; 10] {
        let Count { requested, charged, doubles, taken_twice, lost } = self.count;
        [
            grouped(requested),
            grouped(self.requests),
            grouped(charged),
            grouped(doubles),
            money(taken_twice),
            grouped(lost),
            grouped(self.replays),
            grouped(self.in_progress),
            format!("{:.1} ms", millis(self.p50)),
            format!("{:.1} ms", millis(self.p99)),
        ]
    }
}

const ROWS: [&str; 10] = [
    "payments requested",
    "requests sent",
    "payments charged",
    "double charges",
    "amount overcharged",
    "payments lost",
    "responses replayed",
    "\"in progress\" answers",
    "median request time",
    "99th percentile",
];

impl Report {
    /// Whether each payment was charged exactly once with pgonce.
    pub(super) fn is_proved(&self) -> bool {
        let Count { requested, charged, doubles, lost, .. } = self.protected.count;
        doubles == 0 && lost == 0 && charged == requested
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "server_version": self.setting.server_version,
            "throwaway": self.setting.throwaway,
            "clients": self.setting.clients,
            "loss": self.setting.loss,
            "seed": self.setting.seed,
            "unprotected": self.unprotected.json(),
            "protected": self.protected.json(),
            "proved": self.is_proved(),
        })
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!("\n{:26}{:>14}{:>14}\n", "", "unprotected", "protected");
        let cells = self.unprotected.cells().into_iter().zip(self.protected.cells());
        for (name, (unprotected, protected)) in ROWS.iter().zip(cells) {
            text.push_str(&format!("{name:26}{unprotected:>14}{protected:>14}\n"));
        }
        format!("{text}\n{}", self.verdict())
    }

    fn verdict(&self) -> String {
        let Count { requested, doubles, lost, .. } = self.protected.count;
        if !self.is_proved() {
            return format!(
                "FAILED: with pgonce, {doubles} double charges and {lost} lost payments. \
                 This is a bug: please report it\nwith the line that names the seed."
            );
        }
        let without = match self.unprotected.count.doubles {
            0 => "Without pgonce, nothing was charged twice this time".to_owned(),
            1 => "Without pgonce, 1 retry charged again".to_owned(),
            n => format!("Without pgonce, {} retries charged again", grouped(n)),
        };
        let with = match requested {
            1 => "the payment was".to_owned(),
            n => format!("all {} payments were", grouped(n)),
        };
        format!("{without}; with pgonce, {with} charged exactly once.")
    }
}

/// The smallest value that at least `percent` percent of the values do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// In milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Formats hundredths as an amount.
fn money(hundredths: u64) -> String {
    format!("{}.{:02}", grouped(hundredths / 100), hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let sorted = (1..=200).map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(100));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(198));
        assert_eq!(percentile(&sorted[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
