//! A transaction in which the work may run, and its right to the key.

use std::ops::{Deref, DerefMut};

use sqlx::PgConnection;

use super::transaction::OwnedTransaction;
use crate::protocol::answer::Begin;
use crate::protocol::claim::Claim;

#[allow(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub(crate) enum Begun {
    Started(Performing),
    /// Any other answer. There is no transaction.
    Answered(Begin),
}

pub(crate) struct Performing {
    pub(crate) tx: OwnedTransaction,
    pub(crate) right: Right,
}

/// The transaction's right to its key.
pub(crate) enum Right {
    /// None yet: an optimistic call. The INSERT decides.
    None,
    /// The key's lock. The key has no row.
    Lock,
    /// A row in progress, written over an old one.
    Claim(Claim),
}

pub(crate) enum Ended {
    Committed,
    /// Another call got the key. Everything was rolled back: start again.
    Lost,
    /// Another call has decided the key.
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
