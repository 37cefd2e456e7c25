//! Work under a lease, which also acts outside the database.

pub(crate) mod before;
mod begin;
pub(crate) mod heartbeat;
pub(crate) mod lease;
pub(crate) mod loans;
pub(crate) mod recovery;
pub(crate) mod run;
pub(crate) mod work;

pub use lease::Lease;
pub use recovery::Recovery;
pub use work::{Step, Work};
