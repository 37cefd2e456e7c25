//! Printing: JSON, aligned text, times and durations.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::exit::CliError;

/// Prints one line. Unlike `println!`, does not panic when `head` closes the pipe.
pub(crate) fn line(text: impl Display) -> Result<(), CliError> {
    bytes(format!("{text}\n").as_bytes())
}

pub(crate) fn json(value: &Value) -> Result<(), CliError> {
    line(value)
}

pub(crate) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::failed("io", error)),
        _ => Ok(()),
    }
}

/// Prints names and values in two columns.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> Result<(), CliError> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().try_for_each(|(name, value)| line(format!("{name:width$}  {value}")))
}

/// Prints a heading and rows, each column as wide as its longest cell.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), CliError> {
    let heading = heading.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>();
    let width = |column: usize| {
        let cells = rows.iter().chain([&heading]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths = (0..heading.len()).map(width).collect::<Vec<_>>();
    [&heading].into_iter().chain(rows).try_for_each(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end())
    })
}

/// RFC 3339, in UTC.
pub(crate) fn at(time: OffsetDateTime) -> String {
    // RFC 3339 has no years beyond 9999.
    time.format(&Rfc3339).unwrap_or_else(|_| time.unix_timestamp().to_string())
}

/// To the second, for people.
pub(crate) fn at_second(time: OffsetDateTime) -> String {
    at(time.replace_nanosecond(0).unwrap_or(time))
}

/// The two largest units: `2 d 3 h`, `5 min 4 s`, `12 ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => format!("{} ms", duration.as_millis()),
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {} s", s % 60),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

/// A duration as JSON shows it.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut groups = vec![&digits[..first]];
    groups.extend((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    groups.join(",").trim_start_matches(',').to_owned()
}

/// `4 kB`, `1.2 MB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..1_000_000_000 => tenths(bytes / 100_000, "MB"),
        _ => tenths(bytes / 100_000_000, "GB"),
    }
}

fn tenths(tenths: u64, unit: &str) -> String {
    format!("{}.{} {unit}", grouped(tenths / 10), tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1000, 1_234_567].map(grouped));
        assert_eq!(size(8192), "8 kB");
        assert_eq!(size(1_250_000), "1.2 MB");
        let seconds = [0, 59, 125, 7300, 180_000].map(|s| duration(Duration::from_secs(s)));
        assert_eq!(seconds, ["0 ms", "59 s", "2 min 5 s", "2 h 1 min", "2 d 2 h"]);
    }
}
