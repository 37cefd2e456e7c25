//! How the protocol's statements are sent.

pub(crate) mod procedure;
