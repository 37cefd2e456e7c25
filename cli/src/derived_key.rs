//! `pgonce derived-key`.

use pgonce::Operation;
use serde_json::json;

use crate::exit::CliError;
use crate::output;
use crate::session::Global;

/// Print the key that the remote received, to look up the operation there
#[derive(clap::Args)]
#[command(after_help = "\
NAME is what the code passes to derived_key, byte for byte. Needs no database and checks nothing: with a
scope, key or name that the work did not use, it prints a key that the remote has never seen.

Example:
  pgonce derived-key acme/orders.checkout order-17 charge")]
pub(crate) struct Args {
    /// The scope, such as acme/orders.checkout
    scope: String,
    /// The key within the scope
    key: String,
    /// The name within the operation, often the step's name
    name: String,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let op = Operation::new(args.scope.as_str(), args.key.as_str())?;
    let derived = op.derived_key(&args.name);
    if global.json {
        return output::json(&json!({
            "scope": args.scope,
            "key": args.key,
            "name": args.name,
            "derived_key": derived.as_str(),
        }));
    }
    output::line(derived.as_str())
}
