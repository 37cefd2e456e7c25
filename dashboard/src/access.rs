//! Who may see and do what.

use std::fmt;

/// What a person can do on the page beyond looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Take a claim from a holder that is gone.
    Release,
    /// Decide what becomes of a key that waits for an operator.
    Resolve,
    /// Let a dead message be handled again.
    Redrive,
    /// See a stored response, or the output of a step. Changes nothing, but each time is an audit line.
    Reveal,
}

impl Action {
    /// The word that audit lines use.
    ///
    /// ```
    /// assert_eq!(pgonce_dashboard::Action::Release.as_str(), "release");
    /// ```
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Resolve => "resolve",
            Self::Redrive => "redrive",
            Self::Reveal => "reveal",
        }
    }
}

/// What a visitor may do. On a standby, and in a database that takes no writes, nobody can change anything, whatever
/// this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// See all pages and do everything.
    All,
    /// See all pages. Stored responses and outputs stay hidden: for these, give [`Action::Reveal`].
    ReadOnly,
    /// See all pages, and do what is listed.
    Actions(Vec<Action>),
    /// See nothing.
    None,
}

impl Access {
    pub(crate) fn may(&self, action: Action) -> bool {
        match self {
            Self::All => true,
            Self::Actions(actions) => actions.contains(&action),
            Self::ReadOnly | Self::None => false,
        }
    }
}

/// Who asks, as the application knows them.
///
/// ```
/// use pgonce_dashboard::{Access, Action, Visitor};
/// let on_call = Visitor::new("ada@example.org", Access::All);
/// let support = Visitor::new("bob@example.org", Access::Actions(vec![Action::Redrive]));
/// let stranger = Visitor::nobody();
/// # let _ = (on_call, support, stranger);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visitor {
    pub(crate) name: String,
    pub(crate) access: Access,
}

const NAME_CHARS_MAX: usize = 100;

impl Visitor {
    /// `name` stands in each audit line. The first 100 characters are kept; control characters become question marks.
    #[must_use]
    pub fn new(name: impl AsRef<str>, access: Access) -> Self {
        let printable = |c: char| if c.is_control() { '?' } else { c };
        let name = name.as_ref().chars().take(NAME_CHARS_MAX).map(printable).collect();
        Self { name, access }
    }

    /// Somebody who sees nothing.
    #[must_use]
    pub fn nobody() -> Self {
        Self::new("", Access::None)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_says_what_it_allows() {
        let listed = Access::Actions(vec![Action::Redrive]);
        for action in [Action::Release, Action::Resolve, Action::Redrive, Action::Reveal] {
            assert!(Access::All.may(action));
            assert!(!Access::ReadOnly.may(action) && !Access::None.may(action));
            assert_eq!(listed.may(action), action == Action::Redrive);
        }
    }

    #[test]
    fn a_name_cannot_break_a_log_line() {
        assert_eq!(Visitor::new("a\nb\u{7f}", Access::All).name, "a?b?");
        assert_eq!(Visitor::new("x".repeat(300), Access::All).name.len(), 100);
    }
}
