//! Text that the database's encoding cannot represent.

use sqlx::postgres::PgDatabaseError;

use super::classify::raised_in;
use super::{Error, sqlstate_in};
use crate::operation::Operation;

/// SQLSTATE: a character has no equivalent in the database's encoding.
pub(super) const UNTRANSLATABLE: &str = "22P05";

impl Error {
    /// Whether the database's encoding cannot represent a text that was sent.
    pub(crate) fn is_untranslatable(&self) -> bool {
        sqlstate_in(self) == Some(UNTRANSLATABLE)
    }

    /// Names the field that the encoding cannot represent, if this error is about that.
    pub(crate) fn naming(mut self, op: &Operation) -> Self {
        // Every encoding has ASCII.
        let field = match (op.scope.as_str().is_ascii(), op.key.as_str().is_ascii()) {
            (true, false) => "key",
            (false, true) => "scope",
            _ => "scope or key",
        };
        if self.is_untranslatable() {
            self.message = cannot_hold(field, raised_in(&self).and_then(named_in));
        }
        self
    }
}

pub(crate) fn cannot_hold(field: &str, encoding: Option<&str>) -> String {
    let encoding = encoding.map(|name| format!(" ({name})")).unwrap_or_default();
    format!("{field} has a character that the encoding of the database{encoding} cannot hold")
}

/// The encoding's name in the server's message, in any language.
pub(super) fn named_in(raised: &PgDatabaseError) -> Option<&str> {
    let is_name = |word: &&str| {
        let mut chars = word.chars();
        word.len() > 2
            && *word != "UTF8"
            && chars.next().is_some_and(|char| char.is_ascii_uppercase())
            && chars.all(|char| char.is_ascii_uppercase() || char.is_ascii_digit() || char == '_')
    };
    let mut words =
        raised.message().split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    words.rfind(is_name)
}
