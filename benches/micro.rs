//! How long the parts take that need no database. `cargo bench --bench micro --features tower`
//!
//! Times wobble with the machine; `counts` counts the same parts in allocations and instructions.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, not an API")]

mod parts;

use divan::Bencher;

#[divan::bench(args = parts::NAMES)]
fn part(bencher: Bencher<'_, '_>, name: &str) {
    let part = parts::part(name);
    bencher.bench_local(part);
}

fn main() {
    divan::main();
}
