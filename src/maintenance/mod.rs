//! The schema and its upkeep: migrations, what `check` finds, and the reaper.

mod environment;
mod migrate;
mod reaper;

pub use migrate::Migrated;
pub use reaper::{Reaped, Reaper};
