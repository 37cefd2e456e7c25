//! What was found, in words.

use std::fmt::{self, Display};

/// What [`ExactlyOnce`](super::ExactlyOnce) found.
///
/// `Display` says it in words, with the seed.
#[derive(Debug, Clone)]
#[must_use = "a report fails no test; call `assert`"]
pub struct Report {
    pub(super) seed: u64,
    pub(super) calls: u32,
    pub(super) run: Vec<Scenario>,
    pub(super) findings: Vec<Finding>,
}

/// One fault, and how to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was tried.
    pub scenario: Scenario,
    /// What went wrong.
    pub fault: Fault,
    /// The stage, what was expected, and what was seen.
    pub detail: String,
}

/// What was tried. Each scenario uses new keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scenario {
    /// One call.
    OneCall,
    /// The same request with another key. It is another operation.
    AnotherKey,
    /// The same call again and again.
    InTurn,
    /// Eight calls with one key at the same time.
    AtOnce,
    /// The caller hangs up at a stage of the call, then tries again.
    HangUp,
    /// The caller drops the response before it reads the body, then tries again.
    DroppedAnswer,
    /// The service's connections to the database are cut during the call, then the caller tries again.
    Killed,
    /// Another request with a key that is used already.
    ChangedRequest,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// More effects than operations.
    Doubled,
    /// A call was answered, but its effect is missing.
    Lost,
    /// Retries were not answered in time.
    NoAnswer,
    /// A retry was answered with another response.
    OtherAnswer,
    /// Another request was accepted under a used key.
    NotRefused,
    /// A duplicate got an error that does not mean "try again".
    Failed,
    /// The scenario could not be run: the request is not accepted, or a query failed.
    Unusable,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, calls: 0, run: Vec::new(), findings: Vec::new() }
    }

    pub(super) fn unusable(&mut self, detail: String) {
        let (scenario, fault) = (Scenario::OneCall, Fault::Unusable);
        self.run.push(scenario);
        self.findings.push(Finding { scenario, fault, detail });
    }

    /// What was found. Empty if all is well.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The seed of this run's random choices, for [`ExactlyOnce::seed`](super::ExactlyOnce::seed).
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Fails the test if there are findings.
    ///
    /// # Panics
    /// With the report, if there are findings.
    pub fn assert(&self) {
        assert!(self.findings.is_empty(), "{self}");
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (calls, seed) = (self.calls, self.seed);
        match self.findings.len() {
            0 => write!(f, "no findings")?,
            1 => write!(f, "1 finding")?,
            count => write!(f, "{count} findings")?,
        }
        write!(f, " in {calls} calls, seed {seed}")?;
        for finding in &self.findings {
            write!(f, "\n- {finding}")?;
        }
        let left: Vec<_> = Scenario::ALL.iter().filter(|one| !self.run.contains(one)).collect();
        if !left.is_empty() {
            let names: Vec<_> = left.iter().map(ToString::to_string).collect();
            write!(f, "\nnot run: {}", names.join("; "))?;
        }
        Ok(())
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. {}", self.scenario, self.fault, self.detail)
    }
}

impl Scenario {
    pub(super) const ALL: [Self; 8] = [
        Self::OneCall,
        Self::AnotherKey,
        Self::InTurn,
        Self::AtOnce,
        Self::HangUp,
        Self::DroppedAnswer,
        Self::Killed,
        Self::ChangedRequest,
    ];
}

impl Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneCall => "one call",
            Self::AnotherKey => "the same request with another key",
            Self::InTurn => "the same call in turn",
            Self::AtOnce => "the same call at once",
            Self::HangUp => "a hang-up, then retries",
            Self::DroppedAnswer => "a dropped response, then retries",
            Self::Killed => "cut database connections, then retries",
            Self::ChangedRequest => "another request with a used key",
        })
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Doubled => "the effect is doubled",
            Self::Lost => "the effect is lost",
            Self::NoAnswer => "no answer",
            Self::OtherAnswer => "another response",
            Self::NotRefused => "not refused",
            Self::Failed => "a duplicate failed",
            Self::Unusable => "not usable",
        })
    }
}
