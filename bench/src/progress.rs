//! A progress bar on standard error, if that is a terminal.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows the progress of the bench and the running scenario.
pub(crate) struct Progress {
    scenario: &'static str,
    is_shown: bool,
}

/// The steps of one piece of work. Disappears when dropped.
pub(crate) struct Bar(ProgressBar);

impl Progress {
    pub(crate) fn of(scenario: &'static str) -> Self {
        Self { scenario, is_shown: stderr().is_terminal() }
    }

    pub(crate) fn steps(&self, count: u64) -> Bar {
        if !self.is_shown {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(count).with_prefix(self.scenario);
        if let Ok(style) =
            ProgressStyle::with_template("{prefix:8} {wide_bar} {pos}/{len} {eta:>4}  {msg:16}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }

    /// Shows a spinner during work of unknown length, such as filling a table.
    pub(crate) async fn during<T>(
        &self,
        what: String,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let bar = if self.is_shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let _bar = Bar(bar.with_prefix(self.scenario).with_message(what));
        _bar.0.enable_steady_tick(Duration::from_millis(200));
        work.await
    }
}

impl Bar {
    pub(crate) fn say(&self, what: impl Into<std::borrow::Cow<'static, str>>) {
        self.0.set_message(what);
    }

    pub(crate) fn step(&self) {
        self.0.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
