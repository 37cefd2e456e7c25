//! `pgonce hash`.

use pgonce::{Key, PgOnce, Scope};
use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Global;

/// Print the hash that stands for a key in logs and traces
#[derive(clap::Args)]
#[command(after_help = "\
Needs no database, but the secret that the service gives to PgOnce::log_secret. Without a secret the hashes
of each process are its own, and nothing can print them.

Example:
  PGONCE_LOG_SECRET=... pgonce hash acme/orders.checkout order-17")]
pub(crate) struct Args {
    /// The scope, such as acme/orders.checkout
    scope: String,
    /// The key within the scope
    key: String,
}

const SECRET: &str = "PGONCE_LOG_SECRET";

/// The secret of the hashes. Only from the environment: other users of the machine can see arguments.
pub(crate) fn secret() -> Option<String> {
    std::env::var(SECRET).ok().filter(|secret| !secret.is_empty())
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let secret = secret().ok_or_else(|| {
        CliError::usage(format!(
            "no secret: set {SECRET} to the one that the service gives to PgOnce::log_secret"
        ))
    })?;
    let (scope, key) = (Scope::new(args.scope.as_str())?, Key::new(args.key.as_str())?);
    let hash = PgOnce::new().log_secret(secret)?.log_hash(&scope, &key);
    if global.json {
        return output::json(&json!({ "scope": args.scope, "key": args.key, "hash": hash }));
    }
    output::line(hash)
}
