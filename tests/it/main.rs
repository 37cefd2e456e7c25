//! Every test runs on a real PostgreSQL that the first one starts.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod abandoned;
mod asked_again;
mod bad_arguments;
mod bounds;
mod cancel;
mod checkout;
mod citus;
mod claim;
#[cfg(feature = "cli")]
mod cli;
mod commit_errors;
mod constraints;
mod consumers;
mod counted;
mod crash;
mod decision;
mod dump;
mod encodings;
mod environment;
mod harness;
mod heartbeat;
mod inbox;
#[cfg(feature = "cli")]
mod inbox_cli;
mod interleavings;
mod isolation;
mod large_responses;
mod leaks;
mod leased;
mod leased_crash;
mod leased_cuts;
mod leased_failures;
mod leased_restarts;
mod limits;
mod migrate;
mod missing_objects;
mod model;
mod out_of_resources;
mod partitions;
mod plans;
mod poison;
mod pooler_errors;
mod procedures;
mod program;
mod progress;
mod proxy;
mod races;
mod readme;
mod reaper;
mod reaper_log;
mod recovery;
#[cfg(feature = "cli")]
mod resolve;
mod restartable;
mod roles;
mod row_states;
mod run;
mod run_lost;
mod run_races;
mod run_together;
mod run_waiting;
mod scope;
mod search_path;
mod secrets;
mod silence;
mod sql;
mod statements;
mod steps_sql;
mod storage;
mod tidy;
mod waiting;
#[cfg(feature = "axum")]
mod web;
mod worker;
mod write_once;
