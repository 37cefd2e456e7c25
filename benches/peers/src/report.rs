//! One row per contender, as Markdown or as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::kills::Losses;
use crate::peer::Peer;
use crate::speed::{Others, Scenario, Speed};

/// Under what the figures were taken.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) postgres: String,
    pub(crate) redis: String,
    pub(crate) cores: usize,
    pub(crate) rounds: usize,
    pub(crate) kills: usize,
    pub(crate) seed: u64,
}

#[derive(Debug)]
pub(crate) struct Row {
    peer: Peer,
    /// Per second, by scenario.
    per_second: [Option<f64>; 4],
    /// To the bare transaction in the same round.
    ratios: [Option<f64>; 4],
    others: Others,
    losses: Losses,
}

impl Row {
    pub(crate) fn new(peer: Peer, speed: &Speed, bare: &Speed, losses: Losses) -> Self {
        let ratio = |scenario: Scenario| {
            let base = if scenario == Scenario::Replay8 { Scenario::Fresh8 } else { scenario };
            let own = speed.per_second[scenario as usize].iter();
            median(own.zip(&bare.per_second[base as usize]).map(|(own, bare)| own / bare))
        };
        Self {
            peer,
            per_second: Scenario::ALL
                .map(|at| median(speed.per_second[at as usize].iter().copied())),
            ratios: Scenario::ALL.map(ratio),
            others: speed.others,
            losses,
        }
    }

    /// Whether it broke what it promises.
    pub(crate) fn is_broken(&self) -> bool {
        self.peer.must_not_double() && !self.losses.is_none()
    }

    fn markdown(&self) -> String {
        let mut cells = vec![self.peer.name().to_owned()];
        cells.extend(self.ratios.map(|ratio| ratio.map_or("–".to_owned(), |r| format!("{r:.2}"))));
        cells.push(in_words(self.others));
        let Losses { doubles, stuck, missing } = self.losses;
        cells.extend([doubles, stuck, missing].map(|count| count.to_string()));
        format!("| {} |", cells.join(" | "))
    }

    fn json(&self, setting: &Setting) -> Value {
        let by_scenario = |figures: [Option<f64>; 4]| {
            let [fresh_8, fresh_32, replay_8, at_once_16] = figures;
            json!({ "fresh_8": fresh_8, "fresh_32": fresh_32, "replay_8": replay_8, "at_once_16": at_once_16 })
        };
        let Others { answers, conflicts, doubles } = self.others;
        json!({
            "peer": self.peer.name(),
            "ratio_to_bare": by_scenario(self.ratios),
            "per_second": by_scenario(self.per_second),
            "others": { "answers": answers, "conflicts": conflicts, "doubles": doubles },
            "kills": setting.kills,
            "doubles": self.losses.doubles,
            "stuck": self.losses.stuck,
            "missing": self.losses.missing,
            "rounds": setting.rounds,
            "seed": setting.seed,
        })
    }
}

pub(crate) fn json_lines(rows: &[Row], setting: &Setting) -> String {
    rows.iter().map(|row| format!("{}\n", row.json(setting))).collect()
}

pub(crate) fn markdown(rows: &[Row], setting: &Setting) -> String {
    let Setting { postgres, redis, cores, rounds, kills, seed } = setting;
    let mut text = format!(
        "PostgreSQL {postgres}, Redis {redis}, {cores} cores; ratios to the bare transaction, \
         medians of {rounds} rounds; seed {seed}.\n"
    );
    let bare = Scenario::ALL.into_iter().zip(rows[0].per_second);
    let bare = bare.filter_map(|(at, rate)| Some(format!("{:.0} ({})", rate?, at.name())));
    let _ = writeln!(
        text,
        "The bare transaction, a second: {}.\n",
        bare.collect::<Vec<_>>().join(", ")
    );
    let mut head = vec!["contender".to_owned()];
    head.extend(Scenario::ALL.map(|scenario| scenario.name().to_owned()));
    head.push("the other 15 get".to_owned());
    head.extend(["doubles", "stuck", "missing"].map(|what| format!("{what} after {kills} kills")));
    let _ = writeln!(text, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        let _ = writeln!(text, "{}", row.markdown());
    }
    text
}

fn in_words(others: Others) -> String {
    let all =
        [(others.answers, "the answer"), (others.conflicts, "409"), (others.doubles, "a double")];
    let total: usize = all.iter().map(|(count, _)| count).sum();
    let mut got: Vec<_> = all.into_iter().filter(|(count, _)| *count > 0).collect();
    got.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    match &got[..] {
        [(_, what)] => (*what).to_owned(),
        _ => {
            let share = |(count, what)| format!("{} {what}", percent(count, total));
            got.into_iter().map(share).collect::<Vec<_>>().join(", ")
        }
    }
}

/// What is rare must not look like never.
fn percent(count: usize, total: usize) -> String {
    match 100.0 * count as f64 / total as f64 {
        share if share < 0.1 => "< 0.1 %".to_owned(),
        share if share > 99.9 => "> 99.9 %".to_owned(),
        share => format!("{share:.1} %"),
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[half]),
        _ => Some((values[half - 1] + values[half]) / 2.0),
    }
}
