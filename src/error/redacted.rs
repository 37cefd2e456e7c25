//! What of an error is kept, and shown in logs.

use std::error::Error as StdError;

use super::classify::{UNREACHED, is_disconnection};
use super::{Error, causes, sqlstate_in};
use crate::protocol::answer::{Held, InProgress, Mismatch};

/// An error of the work's, of which nothing may be shown.
pub(crate) const OPAQUE: &str = "the work returned an error";

/// Its SQLSTATE, what an error of ours says, or that there was one. Its own text could quote what the work was about.
/// Errors that wrap others are looked into.
pub(crate) fn redacted(error: &(dyn StdError + 'static)) -> String {
    if let Some(code) = sqlstate_in(error) {
        return format!("a database error (SQLSTATE {code})");
    }
    if is_disconnection(error) {
        return UNREACHED.to_owned();
    }
    let says = |error: &(dyn StdError + 'static)| {
        let ours = error.downcast_ref::<Error>().map(Error::to_string);
        let of = |answer: Option<&dyn std::fmt::Display>| answer.map(ToString::to_string);
        ours.or_else(|| of(error.downcast_ref::<InProgress>().map(|answer| answer as _)))
            .or_else(|| of(error.downcast_ref::<Mismatch>().map(|answer| answer as _)))
            .or_else(|| of(error.downcast_ref::<Held>().map(|answer| answer as _)))
    };
    causes(error).filter_map(says).last().unwrap_or_else(|| OPAQUE.to_owned())
}
