//! Numbers, times and states, as pages show them.

use std::fmt;
use std::time::Duration;

use askama::filters::HtmlSafe;
use pgonce::{Details, Record, Status, UnfinishedState};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A count that may have stopped: `1,234` or `10,000+`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) number: u64,
    pub(crate) is_capped: bool,
}

impl Count {
    pub(crate) fn exact(number: u64) -> Self {
        Self { number, is_capped: false }
    }

    /// More than `max` is `max` and more.
    pub(crate) fn up_to(number: u64, max: u32) -> Self {
        let max = u64::from(max);
        Self { number: number.min(max), is_capped: number > max }
    }

    /// A part of what was counted before the count stopped.
    pub(crate) fn part(number: u64, is_capped: bool) -> Self {
        Self { number, is_capped: is_capped && number > 0 }
    }

    pub(crate) fn is_zero(self) -> bool {
        self.number == 0
    }

    /// `one` or `many`, by the number.
    pub(crate) fn of(self, one: &'static str, many: &'static str) -> &'static str {
        if self.number == 1 && !self.is_capped { one } else { many }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", grouped(self.number), if self.is_capped { "+" } else { "" })
    }
}

impl HtmlSafe for Count {}

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
    let tenths = |tenths: u64, unit| format!("{}.{} {unit}", grouped(tenths / 10), tenths % 10);
    match bytes {
        1 => "1 byte".to_owned(),
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..1_000_000_000 => tenths(bytes / 100_000, "MB"),
        _ => tenths(bytes / 100_000_000, "GB"),
    }
}

/// The two largest units: `2 d 3 h`, `5 min 4 s`, `12 ms`.
pub(crate) fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => format!("{} ms", duration.as_millis()),
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => two(m, "min", s % 60, "s"),
        (0, h, m, _) => two(h, "h", m, "min"),
        (d, h, _, _) => two(d, "d", h, "h"),
    }
}

fn two(large: u64, unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {small_unit}"),
    }
}

/// A time: how long ago or in how long, and exactly where a mouse or a screen reader asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(pub(crate) OffsetDateTime);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.0.replace_nanosecond(0).unwrap_or(self.0).format(&Rfc3339);
        // RFC 3339 has no years beyond 9999.
        let exact = exact.unwrap_or_else(|_| self.0.unix_timestamp().to_string());
        write!(f, "<time datetime=\"{exact}\" title=\"{exact}\">{}</time>", relative(self.0))
    }
}

impl HtmlSafe for Moment {}

fn relative(at: OffsetDateTime) -> String {
    let past = OffsetDateTime::now_utc() - at;
    let apart = lasting(past.unsigned_abs());
    match past.whole_seconds() {
        -1..=1 => "now".to_owned(),
        2.. => format!("{apart} ago"),
        _ => format!("in {apart}"),
    }
}

/// A state: a word and its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) word: &'static str,
    class: &'static str,
}

impl State {
    const fn new(word: &'static str, class: &'static str) -> Self {
        Self { word, class }
    }

    pub(crate) fn of_status(record: &Record) -> Self {
        match (record.status, record.claim.map(pgonce::ClaimState::as_str)) {
            (Status::Completed, _) => Self::new("completed", "good"),
            (Status::Failed, _) => Self::new("failed", "bad"),
            (Status::InProgress, Some("live")) => Self::new("live", "busy"),
            (Status::InProgress, Some("released")) => Self::new("released", "calm"),
            (Status::InProgress, _) => Self::new("lapsed", "warn"),
            _ => Self::new("corrupt", "bad"),
        }
    }

    pub(crate) fn of_unfinished(state: UnfinishedState, is_message: bool) -> Self {
        match (state, is_message) {
            (UnfinishedState::Held, true) => Self::new("dead", "bad"),
            (UnfinishedState::Held, false) => Self::new("held", "bad"),
            (UnfinishedState::Abandoned, true) => Self::new("waits for delivery", "warn"),
            (UnfinishedState::Abandoned, false) => Self::new("abandoned", "warn"),
            (UnfinishedState::Live, true) => Self::new("being handled", "busy"),
            (UnfinishedState::Live, false) => Self::new("live", "busy"),
            _ => Self::new("released", "calm"),
        }
    }

    pub(crate) fn of_details(details: &Details) -> Self {
        if details.overdue {
            return Self::new("forgotten", "calm");
        }
        match details.state {
            Some(state) => Self::of_unfinished(state, details.is_message),
            None => Self::of_status(&details.record),
        }
    }

    pub(crate) const GOOD: Self = Self::new("ok", "good");
    pub(crate) const ATTENTION: Self = Self::new("attention", "warn");
    pub(crate) const PROBLEM: Self = Self::new("problem", "bad");
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<span class=\"state {}\">{}</span>", self.class, self.word)
    }
}

impl HtmlSafe for State {}

/// Bytes for people: indented JSON, text, or the first bytes in hexadecimal. Long ones are cut.
pub(crate) fn content(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 64 * 1024;
    const HEX_MAX: usize = 256;
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes)
        && let Ok(text) = serde_json::to_string_pretty(&value)
    {
        return cut(text, SHOWN_MAX);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => cut(text.to_owned(), SHOWN_MAX),
        Err(_) => {
            let hex = bytes.iter().take(HEX_MAX).map(|byte| format!("{byte:02x} "));
            let more = if bytes.len() > HEX_MAX { "…" } else { "" };
            format!("{}{more}", hex.collect::<String>())
        }
    }
}

/// The first bytes of a text, and a mark if there are more.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 8192, 1_250_000].map(size), ["1 byte", "8 kB", "1.2 MB"]);
        assert_eq!(Count::up_to(10_001, 10_000).to_string(), "10,000+");
        assert_eq!(Count::up_to(10_000, 10_000).to_string(), "10,000");
        assert_eq!(Count::part(0, true).to_string(), "0");
        assert_eq!(Count::exact(1).of("key", "keys"), "key");
    }

    #[test]
    fn times_are_relative_and_exact() {
        let hour = time::Duration::hours(1);
        let now = OffsetDateTime::now_utc();
        assert_eq!(relative(now), "now");
        assert_eq!(relative(now - hour), "1 h ago");
        assert!(relative(now + hour).starts_with("in "));
        let shown = Moment(OffsetDateTime::UNIX_EPOCH).to_string();
        assert!(shown.contains("title=\"1970-01-01T00:00:00Z\""), "{shown}");
    }

    #[test]
    fn content_is_readable_and_short() {
        assert_eq!(content(b"{\"a\":1}"), "{\n  \"a\": 1\n}");
        assert_eq!(content(b"plain"), "plain");
        assert_eq!(content(&[0xff, 0x00]), "ff 00 ");
        let long = content("\u{20ac}".repeat(100_000).as_bytes());
        assert!(long.len() < 65_600 && long.ends_with('…'));
    }
}
