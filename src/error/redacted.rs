//! What pgonce keeps of an error and shows in logs.

use std::error::Error as StdError;

use super::classify::{UNREACHED, is_disconnection};
use super::{Error, causes, sqlstate_in};
use crate::protocol::answer::{Held, InProgress, Mismatch};

/// For an error of the work of which nothing may be shown.
pub(crate) const OPAQUE: &str = "the work returned an error";

/// The SQLSTATE, pgonce's own message, or only that there was an error: any other text could quote the work's data.
/// Looks into errors that wrap others.
pub(crate) fn redacted(error: &(dyn StdError + 'static)) -> String {
    if let Some(code) = sqlstate_in(error) {
        return format!("a database error (SQLSTATE {code})");
    }
    if is_disconnection(error) {
        let is_databases = causes(error).any(|error| error.is::<sqlx::Error>());
        return if is_databases { UNREACHED } else { "a connection failed" }.to_owned();
    }
    let says = |error| {
        text::<Error>(error)
            .or_else(|| text::<InProgress>(error))
            .or_else(|| text::<Mismatch>(error))
            .or_else(|| text::<Held>(error))
            .or_else(|| text::<Decided>(error))
    };
    causes(error).filter_map(says).last().unwrap_or_else(|| OPAQUE.to_owned())
}

/// The text of an error, if it is of this type.
fn text<T: StdError + 'static>(error: &(dyn StdError + 'static)) -> Option<String> {
    error.downcast_ref::<T>().map(ToString::to_string)
}

/// The source of an error that only says how an operation ended.
#[derive(Debug)]
pub(crate) struct Decided(pub(crate) &'static str);

impl std::fmt::Display for Decided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Decided {}
