//! Why no temporary server started, and how to get one.

use std::fmt::{self, Display};
use std::path::Path;

/// Why no PostgreSQL started: what was tried, and what to do.
#[derive(Debug)]
pub struct ThrowawayError {
    message: String,
}

impl ThrowawayError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl Display for ThrowawayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ThrowawayError {}

/// What was tried, and why it failed.
#[derive(Default)]
pub(crate) struct Tried(Vec<String>);

impl Tried {
    pub(crate) fn push(&mut self, what: impl Display, reason: impl Display) {
        let reason = reason.to_string().replace('\n', "\n    ");
        self.0.push(format!("  {what}: {reason}"));
    }

    pub(crate) fn into_error(self) -> ThrowawayError {
        let mut lines = vec!["no PostgreSQL could be started on this machine".to_owned()];
        lines.extend(self.0);
        lines.push(format!("{}, or set DATABASE_URL to an existing database", install_hint()));
        ThrowawayError::new(lines.join("\n"))
    }
}

/// The command that installs PostgreSQL on this machine.
fn install_hint() -> String {
    const INSTALLERS: &[(&str, &str)] = &[
        ("/usr/bin/apt-get", "apt-get install postgresql"),
        ("/usr/bin/dnf", "dnf install postgresql-server"),
        ("/sbin/apk", "apk add postgresql"),
        ("/usr/bin/pacman", "pacman -S postgresql"),
    ];
    let here = |&&(program, _): &&(&str, &str)| Path::new(program).exists();
    match INSTALLERS.iter().find(here) {
        _ if cfg!(target_os = "macos") => "Run `brew install postgresql@17`".to_owned(),
        _ if cfg!(not(unix)) => "A temporary PostgreSQL needs Unix sockets".to_owned(),
        Some((_, command)) => format!("Run `{command}`"),
        None => "Install PostgreSQL with your system's package manager".to_owned(),
    }
}
