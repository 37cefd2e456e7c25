//! Shared with the library's tests.
#![allow(dead_code, reason = "the library's tests use the rest")]

#[path = "../../../tests/it/support/db.rs"]
pub mod db;
#[path = "../../../tests/it/support/roles.rs"]
pub mod roles;
