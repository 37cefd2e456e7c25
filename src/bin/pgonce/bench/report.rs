//! The page with plots: one file that needs no other.

use std::path::Path;

use super::Bench;
use super::figures::Outcome;
use super::plot;
use super::print::{HOW, VERSION, cells, goals, verdict};
use crate::exit::CliError;
use crate::output;

const STYLE: &str = include_str!("report.css");

pub(super) fn write(bench: &Bench<'_>, folder: &Path) -> Result<(), CliError> {
    let file = folder.join("index.html");
    let page = page(bench)?;
    std::fs::write(&file, page).map_err(|error| {
        CliError::failed("io", format!("cannot write {}: {error}", file.display()))
    })?;
    if bench.json { Ok(()) } else { output::line(format!("\nreport: {}", file.display())) }
}

fn page(bench: &Bench<'_>) -> Result<String, CliError> {
    let mut body = String::new();
    for outcome in &bench.outcomes {
        section(&mut body, outcome)?;
    }
    let machine = &bench.machine;
    let rows = [
        ("CPU", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("System", machine.system.clone()),
        ("PostgreSQL", machine.postgres.clone()),
        ("Date", machine.date.clone()),
        ("Rounds", format!("{} of {} s for each variant", bench.args.rounds, bench.args.seconds)),
        ("Delay of a round trip", format!("{} ms", bench.args.delay_ms)),
        ("Goals", verdict(bench)),
    ];
    let rows =
        rows.map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>", escaped(&value)));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>pgonce bench</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>pgonce {} bench</h1>\n<table class=\"about\">{}</table>\n\
         <p>{HOW}</p>\n<section class=\"goals\">\n<h2>Goals</h2>\n{}</section>\n{body}</body>\n</html>\n",
        VERSION,
        rows.concat(),
        table(&goals(bench)),
    ))
}

fn section(page: &mut String, outcome: &Outcome) -> Result<(), CliError> {
    let mut text = format!(
        "<section>\n<h2>{}</h2>\n<p>{}</p>\n<div class=\"plots\">\n",
        outcome.title(),
        escaped(outcome.about)
    );
    let plots = [plot::throughput(outcome)?, plot::latencies(outcome)?];
    let growth = outcome.growth.as_ref().map(plot::growth).transpose()?;
    for svg in plots.into_iter().chain([growth]).flatten() {
        text.push_str(&svg);
    }
    text.push_str("</div>\n");
    text.push_str(&table(&cells(outcome)));
    let notes = outcome.notes.iter().map(|note| format!("<li>{}</li>", escaped(note)));
    text.push_str(&format!("<ul>{}</ul>\n</section>\n", notes.collect::<String>()));
    page.push_str(&text);
    Ok(())
}

/// The first row is the heading. What the last cell of the others says is their class: "met" or "missed".
fn table(rows: &[Vec<String>]) -> String {
    let row = |(at, cells): (usize, &Vec<String>)| {
        let tag = if at == 0 { "th" } else { "td" };
        let class = cells.last().filter(|cell| ["met", "missed"].contains(&cell.as_str()));
        let class = class.map(|class| format!(" class=\"{class}\"")).unwrap_or_default();
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        format!("<tr{class}>{}</tr>\n", cells.collect::<String>())
    };
    let rows = rows.iter().enumerate().map(row).collect::<String>();
    format!("<div class=\"wide\"><table>\n{rows}</table></div>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
