//! Runs the examples as separate programs. `cargo test` builds them together with the tests; `cargo test --test it`
//! does not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

/// The example's path. Builds the example first if it is missing or old.
pub fn example(name: &'static str) -> PathBuf {
    static PROGRAMS: LazyLock<Mutex<HashMap<&str, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    programs.entry(name).or_insert_with(|| up_to_date(name)).clone()
}

fn up_to_date(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.ancestors().nth(2).unwrap(); // target/debug
    let program =
        folder.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    if !is_up_to_date(&program, name) {
        build(folder, name);
    }
    let again = format!("build it: cargo build --example {name}");
    assert!(is_up_to_date(&program, name), "{} is missing or old; {again}", program.display());
    program
}

fn build(folder: &Path, name: &str) {
    let profile = folder.file_name().unwrap().to_str().unwrap();
    let status = std::process::Command::new(env!("CARGO"))
        .args(["build", "--locked", "--offline", "--quiet", "--example", name])
        .args(["--profile", if profile == "debug" { "dev" } else { profile }])
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .status();
    assert!(status.unwrap().success(), "the example is built");
}

/// Whether it is newer than its sources. An old example would be tested instead of the current code.
fn is_up_to_date(program: &Path, name: &str) -> bool {
    let Ok(built) = modified(program) else { return false };
    let folder = Path::new("examples").join(name);
    let source = if folder.is_dir() { folder } else { folder.with_extension("rs") };
    [&source, Path::new("src"), Path::new("sql"), Path::new("migrations"), Path::new("testing/src")]
        .iter()
        .all(|made_of| newest(made_of) <= built)
}

fn newest(path: &Path) -> SystemTime {
    if !path.is_dir() {
        return modified(path).unwrap();
    }
    let entries = std::fs::read_dir(path).unwrap().map(|entry| newest(&entry.unwrap().path()));
    entries.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    path.metadata()?.modified()
}
