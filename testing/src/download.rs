//! The last resort: downloads a PostgreSQL and caches it.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use tar::Archive;
use ureq::Agent;
use ureq::http::Response;

const VERSION: &str = "17.5.0";
/// Archives that run without installation.
const RELEASES: &str = "https://github.com/theseus-rs/postgresql-binaries/releases/download";
/// The variable with the URL of a mirror.
const MIRROR: &str = "PGONCE_POSTGRES_MIRROR";
/// Fails soon without a network.
const CONNECT_MAX: Duration = Duration::from_secs(15);
const FETCH_MAX: Duration = Duration::from_secs(600);
/// An archive has about 30 MB.
const BYTES_MAX: u64 = 200_000_000;

/// Where to download from and where to store.
#[derive(Debug, Clone)]
pub(crate) struct Download {
    releases: String,
    cache: PathBuf,
}

impl Download {
    pub(crate) fn from_env() -> Result<Self, String> {
        let mirror = std::env::var(MIRROR).ok().filter(|url| !url.is_empty());
        Ok(Self { releases: mirror.unwrap_or_else(|| RELEASES.to_owned()), cache: cache_dir()? })
    }

    /// The programs' directory. Downloads the programs once.
    pub(crate) async fn bin_dir(self) -> Result<PathBuf, String> {
        let downloaded = tokio::task::spawn_blocking(move || self.bin_dir_blocking()).await;
        downloaded.map_err(in_words)?
    }

    fn bin_dir_blocking(&self) -> Result<PathBuf, String> {
        let dir = self.cache.join(format!("postgresql-{VERSION}"));
        let bin = dir.join("bin");
        if !bin.join("initdb").exists() {
            self.fetch(&dir)?;
        }
        Ok(bin)
    }

    fn fetch(&self, dir: &Path) -> Result<(), String> {
        let url = format!("{}/{VERSION}/postgresql-{VERSION}-{}.tar.gz", self.releases, target()?);
        eprintln!("No usable PostgreSQL is installed. Downloading {url} to {}", dir.display());
        let agent: Agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_global(Some(FETCH_MAX))
            .build()
            .into();
        let get = |url: &str| {
            agent.get(url).call().map_err(|error| format!("{url}: {}", in_words(error)))
        };
        let sum = get(&format!("{url}.sha256"))?.body_mut().read_to_string().map_err(in_words)?;
        let archive = read(get(&url)?).map_err(in_words)?;
        let digest =
            Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if sum.split_whitespace().next() != Some(digest.as_str()) {
            return Err(format!("{url}: the file is damaged: its SHA-256 is {digest}"));
        }
        unpack(&archive, dir).map_err(in_words)
    }
}

fn read(response: Response<ureq::Body>) -> io::Result<Vec<u8>> {
    let length = response.body().content_length();
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {eta} left");
    let bar = bar.with_style(style.map_err(io::Error::other)?);
    let mut archive = Vec::new();
    let reader = response.into_body().into_with_config().limit(BYTES_MAX).reader();
    bar.wrap_read(reader).read_to_end(&mut archive)?;
    bar.finish_and_clear();
    Ok(archive)
}

/// The archive has one top folder. It is renamed once it is complete; another process may be faster.
fn unpack(archive: &[u8], dir: &Path) -> io::Result<()> {
    let parent = dir.parent().unwrap_or(dir);
    fs::create_dir_all(parent)?;
    let unpacked = tempfile::tempdir_in(parent)?;
    Archive::new(GzDecoder::new(archive)).unpack(unpacked.path())?;
    let mut folders = fs::read_dir(unpacked.path())?;
    let folder = folders.next().ok_or_else(|| io::Error::other("the archive is empty"))??.path();
    open_to_all(&folder)?;
    match fs::rename(folder, dir) {
        Err(error) if !dir.is_dir() => Err(error),
        _ => Ok(()),
    }
}

/// The server's user must be able to enter the folder.
fn open_to_all(_dir: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(_dir, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The platform's name in the archives.
fn target() -> Result<String, String> {
    let system = match std::env::consts::OS {
        "linux" if cfg!(target_env = "musl") => "unknown-linux-musl",
        "linux" => "unknown-linux-gnu",
        "macos" => "apple-darwin",
        other => return Err(format!("no PostgreSQL to download for {other}")),
    };
    Ok(format!("{}-{system}", std::env::consts::ARCH))
}

/// The user's cache. For root the machine's, because another user runs the server.
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
        .ok_or_else(|| "no folder for the download: HOME is not set".to_owned())
}

/// The error and its causes, which say more than its first line.
fn in_words(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;
    use crate::{Options, Throwaway, binaries};

    /// A local server for archives.
    struct Server {
        url: String,
        requests: Arc<AtomicUsize>,
    }

    impl Server {
        fn start(files: HashMap<String, Vec<u8>>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let requests = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&requests);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    let lines: Vec<_> =
                        lines.map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
                    count.fetch_add(1, Ordering::Relaxed);
                    let path = lines[0].split(' ').nth(1).unwrap();
                    let (status, body) = match files.get(path) {
                        Some(body) => ("200 OK", body.as_slice()),
                        None => ("404 Not Found", b"".as_slice()),
                    };
                    let head = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(head.as_bytes()).unwrap();
                    stream.write_all(body).unwrap();
                }
            });
            Self { url, requests }
        }

        fn requests(&self) -> usize {
            self.requests.load(Ordering::Relaxed)
        }
    }

    fn path() -> String {
        format!("/{VERSION}/postgresql-{VERSION}-{}.tar.gz", target().unwrap())
    }

    /// An archive whose programs start this machine's programs, and its checksum.
    fn archive() -> HashMap<String, Vec<u8>> {
        let installed = binaries::installed().remove(0);
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for program in ["initdb", "postgres"] {
            let script =
                format!("#!/bin/sh\nexec '{}' \"$@\"\n", installed.join(program).display());
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_size(script.len() as u64);
            let name = format!("postgresql-{VERSION}/bin/{program}");
            archive.append_data(&mut header, name, script.as_bytes()).unwrap();
        }
        let archive = archive.into_inner().unwrap().finish().unwrap();
        let digest: String = Sha256::digest(&archive).iter().map(|b| format!("{b:02x}")).collect();
        let sum = format!("{digest}  postgresql.tar.gz\n").into_bytes();
        HashMap::from([(format!("{}.sha256", path()), sum), (path(), archive)])
    }

    fn download(releases: &str) -> (TempDir, Download) {
        let cache = tempfile::tempdir().unwrap();
        open_to_all(cache.path()).unwrap();
        let download =
            Download { releases: releases.to_owned(), cache: cache.path().join("pgonce") };
        (cache, download)
    }

    /// The error message on a machine without PostgreSQL.
    async fn told(download: &Download) -> String {
        let options = Options::new().fast();
        let started = Throwaway::start_from(Vec::new(), &options, Ok(download.clone())).await;
        started.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_machine_without_postgresql_downloads_one_once() {
        let server = Server::start(archive());
        let (_cache, download) = download(&server.url);
        for _ in 0..2 {
            let options = Options::new().fast();
            let started = Throwaway::start_from(Vec::new(), &options, Ok(download.clone())).await;
            let started = started.unwrap();
            assert!(started.bin_dir().starts_with(&download.cache), "{started:?}");
            started.stop().await;
        }
        assert_eq!(server.requests(), 2, "the sum and the archive, once");
    }

    #[tokio::test]
    async fn a_damaged_archive_is_refused_and_not_kept() {
        let mut files = archive();
        files.get_mut(&path()).unwrap()[20] ^= 1;
        let server = Server::start(files);
        let (_cache, download) = download(&server.url);
        for _ in 0..2 {
            let told = told(&download).await;
            assert!(told.contains("damaged"), "{told}");
        }
        assert!(!download.cache.exists());
        assert_eq!(server.requests(), 4);
    }

    #[tokio::test]
    async fn what_was_tried_is_told_with_the_command_that_helps() {
        let server = Server::start(HashMap::new());
        for (releases, why) in [(server.url.as_str(), "404"), ("http://127.0.0.1:1", "refused")] {
            let (_cache, download) = download(releases);
            let told = told(&download).await;
            assert!(told.contains(&format!("{releases}{}", path())), "{told}");
            assert!(told.contains(why) && told.contains("install"), "{told}");
            assert!(told.contains("DATABASE_URL") && told.contains("usr/lib/postgresql"), "{told}");
        }
    }
}
