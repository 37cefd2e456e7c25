//! Work in one transaction with its key: `run`, and what it shares with transactional routes.

mod call;
mod key;
pub(crate) mod later;
mod observed;
mod outcome;
mod performing;
mod restarts;
mod run;
mod run_error;
mod transaction;
mod waiting;
mod work_error;

#[cfg(feature = "tower")]
pub(crate) use call::Call;
pub(crate) use key::Plans;
pub(crate) use outcome::{BoxError, Ending, answered, say};
pub use outcome::{Done, Failure};
#[cfg(feature = "tower")]
pub(crate) use performing::{Begun, Ended, Performing};
#[cfg(feature = "tower")]
pub(crate) use restarts::is_contention;
pub(crate) use restarts::{Restarts, jitter};
pub use run_error::RunError;
pub(crate) use transaction::OwnedTransaction;
pub use transaction::commit;
#[cfg(feature = "tower")]
pub(crate) use waiting::Waiting;
pub(crate) use waiting::{Lines, Next};
pub use work_error::WorkError;
