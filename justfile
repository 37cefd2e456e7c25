# Shortcuts for people: `cargo install just`. The gate does not use this file. Only `gate` and
# `long` install anything, and only as root or with CI=true.

# List the commands
default:
    @just --list --unsorted

# Check format and lints, run the suite on this machine's PostgreSQL
test:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    cargo test --locked

# Run everything that must pass before a change lands, and one long part in turn
gate:
    .ci/run

# Run a long part of the gate, or all; without a name, list them
long part="":
    .ci/long {{ part }}

# Charge payments through lost responses and double clicks, without and with pgonce
demo *options:
    cargo run --locked -- demo {{ options }}
