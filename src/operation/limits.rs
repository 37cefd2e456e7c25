//! The limits of what a caller may ask for. What takes a number checks it here; the database checks it once more
//! (`sql/internal/check_begin.sql`).

use std::time::Duration;

use crate::error::{Error, Result};
use crate::operation::millis;

pub(crate) const SHORTEST: Duration = Duration::from_millis(1);
const RETENTION_MAX: Duration = Duration::from_secs(315_576_000);
/// Between two turns of a background task.
const PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// Checks how long a key is remembered.
pub(crate) fn check_retention(field: &str, retention: Duration) -> Result<()> {
    if retention < SHORTEST || retention > RETENTION_MAX {
        return Err(outside(field, &spelled(retention), "1 ms to 10 years"));
    }
    Ok(())
}

/// Checks a lease against the retention of its key.
pub(crate) fn check_lease(lease: Duration, retention: Duration) -> Result<()> {
    if lease < SHORTEST || millis(lease) > millis(retention) {
        let takes = format!("1 ms up to the retention, {}", spelled(retention));
        return Err(outside("lease", &spelled(lease), &takes));
    }
    Ok(())
}

/// Checks how often a background task does something.
pub(crate) fn check_pause(field: &str, pause: Duration) -> Result<()> {
    if pause < SHORTEST || pause > PAUSE_MAX {
        return Err(outside(field, &spelled(pause), "1 ms to one day"));
    }
    Ok(())
}

/// Checks the pauses of something that is tried again, which double from the first to the longest.
pub(crate) fn check_pauses(first: Duration, longest: Duration) -> Result<()> {
    check_pause("first pause", first)?;
    check_pause("longest pause", longest)?;
    if first > longest {
        let takes = format!("up to the longest, {}", spelled(longest));
        return Err(outside("first pause", &spelled(first), &takes));
    }
    Ok(())
}

pub(crate) fn outside(field: &str, value: &str, takes: &str) -> Error {
    Error::invalid(format!("{field} is {value}; it takes {takes}"))
}

/// A duration as people say it: `1 h 30 min`.
pub(crate) fn spelled(duration: Duration) -> String {
    const UNITS: [(u128, &str); 7] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "min"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1000, "µs"),
        (1, "ns"),
    ];
    let mut left = duration.as_nanos();
    let mut words = Vec::new();
    for (length, unit) in UNITS {
        if left >= length {
            words.push(format!("{} {unit}", left / length));
            left %= length;
        }
    }
    if words.is_empty() { "0 s".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_in_units_that_people_use() {
        for (duration, words) in [
            (Duration::ZERO, "0 s"),
            (Duration::from_secs(7200), "2 h"),
            (Duration::from_millis(5_400_001), "1 h 30 min 1 ms"),
            (Duration::from_nanos(1001), "1 µs 1 ns"),
            (Duration::from_secs(90_000), "1 d 1 h"),
        ] {
            assert_eq!(spelled(duration), words);
        }
        assert!(spelled(Duration::MAX).starts_with("213503982334601 d"));
    }
}
