//! Work that leaves the database, under a lease.

mod begin;
