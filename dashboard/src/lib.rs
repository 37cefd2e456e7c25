#![doc = include_str!("../README.md")]

mod access;
mod actions;
mod app;
mod assets;
mod audit;
mod cached;
mod dashboard;
mod database;
mod format;
mod guard;
mod history;
mod page;
mod pages;
mod params;
mod problem;
mod trail;

pub use access::{Access, Action, Visitor};
pub use dashboard::{Dashboard, DashboardService};

/// The library whose keys this page shows. Use the same version.
pub use pgonce;
