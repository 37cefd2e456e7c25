//! Plots as SVG in the colour of the surrounding text.

use std::error::Error;

use plotters::prelude::*;

use crate::figures::{BARE, HAND_WRITTEN, Outcome, Row};
use crate::load::Latencies;
use crate::print::number;

const SIZE: (u32, u32) = (520, 320);
const FONT: (&str, u32) = ("sans-serif", 13);
/// Fixed colours for common rows; the others take theirs in turn.
const BARE_COLOUR: RGBColor = RGBColor(140, 140, 140);
const HAND_WRITTEN_COLOUR: RGBColor = RGBColor(230, 159, 0);
const OTHERS: [RGBColor; 5] = [
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
];

/// A value that grows with another one.
pub(crate) struct Growth {
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) lines: Vec<(&'static str, Vec<(f64, f64)>)>,
}

type Drawn = Result<(), Box<dyn Error>>;

/// A bar per row for the throughput, with the lowest and highest round.
pub(crate) fn throughput(outcome: &Outcome) -> anyhow::Result<Option<String>> {
    let rates = outcome
        .rows
        .iter()
        .enumerate()
        .filter_map(|(at, row)| Some((row.name, colour(&outcome.rows, at), row.rate()?)));
    let rates: Vec<_> = rates.collect();
    let Some(highest) = rates.iter().map(|(.., rate)| rate.high).reduce(f64::max) else {
        return Ok(None);
    };
    if rates.len() < 2 {
        return Ok(None); // nothing to compare
    }
    draw("operations per second, with the lowest and the highest round", |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d((0..rates.len() - 1).into_segmented(), 0.0..highest * 1.12)?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(at) => rates.get(*at).map_or("", |(name, ..)| name).to_owned(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .axis_style(BLACK.mix(0.5))
            .label_style(FONT)
            .x_labels(rates.len())
            .x_label_formatter(&name)
            .y_label_formatter(&|rate| number(*rate))
            .y_desc("operations per second")
            .draw()?;
        chart.draw_series(rates.iter().enumerate().map(|(at, (_, colour, rate))| {
            let ends = [(SegmentValue::Exact(at), 0.0), (SegmentValue::Exact(at + 1), rate.median)];
            let mut bar = Rectangle::new(ends, colour.filled());
            bar.set_margin(0, 0, 14, 14);
            bar
        }))?;
        chart.draw_series(rates.iter().enumerate().map(|(at, (.., rate))| {
            let ends = [rate.low, rate.high].map(|end| (SegmentValue::CenterOf(at), end));
            PathElement::new(ends.to_vec(), BLACK.stroke_width(2))
        }))?;
        Ok(())
    })
    .map(Some)
}

/// The share of calls that took at most this many milliseconds.
pub(crate) fn latencies(outcome: &Outcome) -> anyhow::Result<Option<String>> {
    let lines: Vec<_> = outcome
        .rows
        .iter()
        .enumerate()
        .map(|(at, row)| (row.name, colour(&outcome.rows, at), shares(&row.latencies)))
        .filter(|(.., points)| !points.is_empty())
        .collect();
    let times = || lines.iter().flat_map(|(.., points)| points).map(|(ms, _)| *ms);
    let (Some(low), Some(high)) = (times().reduce(f64::min), times().reduce(f64::max)) else {
        return Ok(None);
    };
    let high = high.max(low * 2.0);
    draw("the share of calls that took no longer", |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(52)
            .build_cartesian_2d((low..high).log_scale(), 0.0..100.0)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .axis_style(BLACK.mix(0.5))
            .label_style(FONT)
            .x_label_formatter(&|ms| number(*ms))
            .y_label_formatter(&|percent| number(*percent))
            .x_desc("milliseconds")
            .y_desc("% of calls")
            .draw()?;
        for (name, colour, points) in &lines {
            let colour = *colour;
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(line)?.label(*name).legend(key_of(colour));
        }
        let place = SeriesLabelPosition::LowerRight;
        chart.configure_series_labels().position(place).label_font(FONT).draw()?;
        Ok(())
    })
    .map(Some)
}

/// Percentage of calls per time limit, without the slowest thousandth: it would squeeze the rest of the plot.
fn shares(latencies: &Latencies) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for step in latencies.iter_recorded().take_while(|step| step.percentile() <= 99.9) {
        if points.last().is_none_or(|(_, percent)| step.percentile() - percent >= 0.2) {
            points.push((step.value_iterated_to().max(1) as f64 / 1000.0, step.percentile()));
        }
    }
    points
}

/// Lines over a growing value.
pub(crate) fn growth(growth: &Growth) -> anyhow::Result<String> {
    let points = || growth.lines.iter().flat_map(|(_, points)| points);
    let widest = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let highest = points().map(|(_, y)| *y).fold(0.0, f64::max).max(0.001);
    draw(growth.y, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..widest * 1.05, 0.0..highest * 1.15)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .axis_style(BLACK.mix(0.5))
            .label_style(FONT)
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| number(*y))
            .x_desc(growth.x)
            .y_desc(growth.y)
            .draw()?;
        for ((name, points), colour) in growth.lines.iter().zip(OTHERS.iter().cycle()) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(line)?.label(*name).legend(key_of(*colour));
            let dots = points.iter().map(|point| Circle::new(*point, 3, colour.filled()));
            chart.draw_series(dots)?;
        }
        let place = SeriesLabelPosition::LowerRight;
        chart.configure_series_labels().position(place).label_font(FONT).draw()?;
        Ok(())
    })
}

/// The line before a name in the legend.
fn key_of(colour: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(3))
}

fn colour(rows: &[Row], at: usize) -> RGBColor {
    let is_named = |row: &Row| [BARE, HAND_WRITTEN].contains(&row.name);
    match rows[at].name {
        BARE => BARE_COLOUR,
        HAND_WRITTEN => HAND_WRITTEN_COLOUR,
        _ => {
            let before = rows[..at].iter().filter(|row| !is_named(row)).count();
            OTHERS[before % OTHERS.len()]
        }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(words: &str, plot: impl FnOnce(&Area<'_>) -> Drawn) -> anyhow::Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = plot(&area).and_then(|()| Ok(area.present()?));
    drop(area);
    drawn.map_err(|error| anyhow::anyhow!("{error}"))?;
    // Black becomes the surrounding text's colour, so that the plot is readable in dark mode.
    let svg =
        svg.replace("#000000", "currentColor").replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    Ok(svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{words}\" "), 1))
}
