//! Shared by the tests.

pub mod db;
pub mod example;
pub mod metrics;
pub mod proxy;
pub mod roles;
pub mod worker;
