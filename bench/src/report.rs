//! The page with plots: a single, self-contained file.

use std::path::Path;

use anyhow::Context as _;

use crate::Bench;
use crate::figures::Outcome;
use crate::plot;
use crate::print::{HOW, VERSION, cells, say};

const STYLE: &str = include_str!("report.css");

pub(crate) fn write(bench: &Bench<'_>, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("index.html");
    let page = page(bench)?;
    std::fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))?;
    if !bench.args.json {
        say(format!("\nreport: {}", file.display()));
    }
    Ok(())
}

fn page(bench: &Bench<'_>) -> anyhow::Result<String> {
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
        ("Rounds", format!("{} of {} s per variant", bench.args.rounds, bench.args.seconds)),
        ("Delay per round trip", format!("{} ms", bench.args.delay_ms)),
    ];
    let rows =
        rows.map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>", escaped(&value)));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>pgonce-bench</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>pgonce {} bench</h1>\n<table class=\"about\">{}</table>\n\
         <p>{HOW}</p>\n{body}</body>\n</html>\n",
        VERSION,
        rows.concat(),
    ))
}

fn section(page: &mut String, outcome: &Outcome) -> anyhow::Result<()> {
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

/// The first row is the heading.
fn table(rows: &[Vec<String>]) -> String {
    let row = |(at, cells): (usize, &Vec<String>)| {
        let tag = if at == 0 { "th" } else { "td" };
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows = rows.iter().enumerate().map(row).collect::<String>();
    format!("<div class=\"wide\"><table>\n{rows}</table></div>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
