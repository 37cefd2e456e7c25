//! One file per scenario.

pub(super) mod churn;
pub(super) mod fresh;
pub(super) mod hot;
pub(super) mod http;
pub(super) mod inbox;
pub(super) mod kills;
pub(super) mod leased;
pub(super) mod mixed;
pub(super) mod peers;
pub(super) mod reap;
pub(super) mod replay;
pub(super) mod scale;
