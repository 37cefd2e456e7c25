//! A transaction in which the work may run, and what it has of its key.

use std::ops::{Deref, DerefMut};

use sqlx::PgConnection;

use super::transaction::OwnedTransaction;
use crate::protocol::answer::Begin;
use crate::protocol::claim::Claim;

/// What begin and look have come to.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub(crate) enum Begun {
    Started(Performing),
    /// Anything but *started*. There is no transaction.
    Answered(Begin),
}

/// A transaction in which the work may run.
pub(crate) struct Performing {
    pub(crate) tx: OwnedTransaction,
    pub(crate) right: Right,
}

/// What the transaction has of its key.
pub(crate) enum Right {
    /// Nothing: an optimistic call. The INSERT finds out.
    None,
    /// The lock. The key has no row.
    Lock,
    /// A row in progress, where there was one to overwrite.
    Claim(Claim),
}

/// How a transaction ended.
pub(crate) enum Ended {
    Committed,
    /// The key was another's after all. Everything was rolled back: start again.
    Lost,
    /// The key is decided, by another call.
    Answered(Begin),
}

impl Performing {
    /// How many claims the key has had, this one included.
    #[cfg(feature = "tower")]
    pub(crate) fn attempt(&self) -> u32 {
        match &self.right {
            Right::Claim(claim) => claim.attempt(),
            Right::None | Right::Lock => 1,
        }
    }
}

impl Deref for Performing {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl DerefMut for Performing {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}
