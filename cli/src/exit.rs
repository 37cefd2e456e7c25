//! How a command ends: exit codes, and one line per error.

use std::error::Error as StdError;
use std::fmt::Display;
use std::process::ExitCode;

use pgonce::sqlx;
use pgonce::sqlx::postgres::PgConnectOptions;
use pgonce::{Error, ErrorKind};
use serde_json::json;

use crate::output;

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed: the database is unreachable or refused the command, check or doctor found a problem, or the demo
       charged a payment twice or lost one with pgonce
  2    wrong usage
  3    not found: the key is unknown, or it has no stored body
  4    refused: not confirmed, nothing to release or resolve, or the key has changed
  5    the schema is missing, outdated or too new
  130  interrupted";

#[derive(Debug)]
pub(crate) struct CliError {
    code: u8,
    kind: &'static str,
    message: String,
    sqlstate: Option<String>,
}

/// The kind of an error that the command has printed already.
const ALREADY_SAID: &str = "already_said";

impl CliError {
    fn new(code: u8, kind: &'static str, message: impl Display) -> Self {
        Self { code, kind, message: message.to_string(), sqlstate: None }
    }

    pub(crate) fn failed(kind: &'static str, message: impl Display) -> Self {
        Self::new(1, kind, message)
    }

    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(2, "usage", message)
    }

    pub(crate) fn not_found(message: impl Display) -> Self {
        Self::new(3, "not_found", message)
    }

    pub(crate) fn refused(message: impl Display) -> Self {
        Self::new(4, "refused", message)
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(130, "interrupted", "interrupted")
    }

    /// For a command whose output names the problem: sets only the exit code.
    pub(crate) fn already_said() -> Self {
        Self::failed(ALREADY_SAID, "")
    }

    /// Adds what the user can do.
    pub(crate) fn but(self, remedy: &str) -> Self {
        Self { message: format!("{}; to clean up by hand: {remedy}", self.message), ..self }
    }

    pub(crate) fn is_missing_right(&self) -> bool {
        self.sqlstate.as_deref() == Some("42501")
    }

    /// Whether another transaction was in the way.
    pub(crate) fn is_of_a_lock(&self) -> bool {
        matches!(self.sqlstate.as_deref(), Some("55P03" | "40001" | "40P01"))
    }

    /// Names the address, never the password.
    pub(crate) fn cannot_connect(options: &PgConnectOptions, error: &sqlx::Error) -> Self {
        let place = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let reason = innermost(error);
        let sqlstate = sqlstate(error);
        Self {
            sqlstate,
            ..Self::failed("connection", format!("cannot connect to {place}: {reason}"))
        }
    }

    /// Prints the error and returns its exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if self.kind == ALREADY_SAID {
            return ExitCode::from(self.code);
        }
        if json {
            let (kind, message, sqlstate) = (self.kind, &self.message, &self.sqlstate);
            let error = json!({"kind": kind, "message": message, "sqlstate": sqlstate});
            // If printing fails too, there is no place to report it.
            let _ = output::json(&json!({ "error": error }));
        } else {
            eprintln!("pgonce: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<Error> for CliError {
    fn from(error: Error) -> Self {
        let (code, kind) = match error.kind() {
            ErrorKind::InvalidInput => (2, "invalid_input"),
            ErrorKind::ClaimLost => (4, "claim_lost"),
            ErrorKind::SchemaOutdated => (5, "schema_outdated"),
            ErrorKind::SchemaTooNew => (5, "schema_too_new"),
            ErrorKind::Contention => (1, "contention"),
            ErrorKind::CommitUnknown => (1, "commit_unknown"),
            ErrorKind::Connection => (1, "connection"),
            ErrorKind::ReadOnly => (1, "read_only"),
            ErrorKind::Environment => (1, "environment"),
            ErrorKind::Corrupt => (1, "corrupt"),
            ErrorKind::Encoding => (1, "encoding"),
            ErrorKind::ReplayUnreadable => (1, "replay_unreadable"),
            _ => (1, "database"),
        };
        let message = match (error.kind(), error.source()) {
            // pgonce's messages name the cause, except for these two kinds.
            (ErrorKind::Connection | ErrorKind::Database, Some(cause)) => {
                format!("{error}: {}", innermost(cause))
            }
            _ => error.to_string(),
        };
        Self { sqlstate: error.sqlstate(), ..Self::new(code, kind, message) }
    }
}

impl From<sqlx::Error> for CliError {
    fn from(error: sqlx::Error) -> Self {
        let sqlstate = sqlstate(&error);
        Self { sqlstate, ..Self::failed("database", innermost(&error)) }
    }
}

/// Prints clap's usage error, or the help if the user asked for it.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|arg| arg == "--json");
    if json && error.use_stderr() {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        return CliError::usage(line).report(true);
    }
    // A closed terminal cannot be helped.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The last cause of a chain, on one line. The errors around it repeat it.
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    loop {
        // Not the driver's own message: it adds a line number in the server's source.
        let raised =
            error.downcast_ref::<sqlx::Error>().and_then(|error| error.as_database_error());
        if let Some(raised) = raised {
            return raised.message().replace('\n', " ");
        }
        match error.source() {
            Some(cause) => error = cause,
            None => return error.to_string().replace('\n', " "),
        }
    }
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
