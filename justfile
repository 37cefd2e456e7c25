# For people: `cargo install just`. The gate does not use it. Only `gate` and `long` install anything,
# and only as root or with CI=true.

# List what there is
default:
    @just --list --unsorted

# Format, lint, and the suite on this machine's PostgreSQL
test:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    cargo test --locked

# Everything that must pass before a change lands, and a long part in turn
gate:
    .ci/run

# A long part of the gate, or all; without a name it lists them
long part="":
    .ci/long {{ part }}

# The same payments through lost answers and double clicks, without and with pgonce
demo *options:
    cargo run --locked -- demo {{ options }}
