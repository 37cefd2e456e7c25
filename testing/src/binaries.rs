//! Where PostgreSQL's programs may be on this machine.

use std::fs;
use std::path::{Path, PathBuf};

/// Where programs are searched, for the error message.
pub(crate) const PLACES: &str = "PATH, /usr/lib/postgresql, /usr/pgsql-*, Homebrew or Postgres.app";

/// Folders with one PostgreSQL per version: the parent folder, the prefix of the names, the subfolder of the programs.
const VERSIONED: &[(&str, &str, &str)] = &[
    ("/usr/lib/postgresql", "", "bin"),          // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                   // Red Hat, from postgresql.org
    ("/opt/homebrew/opt", "postgresql@", "bin"), // Homebrew on Apple silicon
    ("/usr/local/opt", "postgresql@", "bin"),    // Homebrew on Intel
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// Every directory with both `initdb` and `postgres`, best first: `PATH`, then the usual places, newest version first.
/// Links are resolved: the programs find their libraries and each other (`psql`) relative to their real path.
pub(crate) fn installed() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).collect::<Vec<_>>();
    let usual = VERSIONED.iter().flat_map(|(parent, prefix, below)| {
        newest_first(Path::new(parent), prefix).into_iter().map(move |dir| dir.join(below))
    });
    let mut found = Vec::new();
    for dir in on_path.into_iter().chain(usual).filter_map(|dir| resolved(&dir)) {
        if !found.contains(&dir) {
            found.push(dir);
        }
    }
    found
}

fn resolved(dir: &Path) -> Option<PathBuf> {
    let has_initdb = |dir: &&Path| dir.join("initdb").is_file();
    let postgres = fs::canonicalize(dir.join("postgres")).ok()?;
    let real = postgres.parent().filter(has_initdb);
    real.or(Some(dir).filter(has_initdb)).map(Path::to_owned)
}

/// The directories in `parent` named `prefix` plus a version number, newest first.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut versions = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = version(entry.file_name().to_str()?.strip_prefix(prefix)?)?;
            Some((version, entry.path()))
        })
        .collect::<Vec<_>>();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, dir)| dir).collect()
}

/// Parses `17` or `9.6` into numbers, so that 17 sorts after 9.
fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_first() -> std::io::Result<()> {
        let parent = tempfile::tempdir()?;
        for name in ["pg-9.6", "pg-17", "pg-latest", "pg-16", "other"] {
            fs::create_dir(parent.path().join(name))?;
        }
        let names = newest_first(parent.path(), "pg-");
        let expected = ["pg-17", "pg-16", "pg-9.6"].map(|name| parent.path().join(name));
        assert_eq!(names, expected);
        Ok(())
    }
}
