//! A temporary Redis, where `redis-server` is installed. It ends with this program.

#[cfg(unix)]
pub(super) use unix::RedisServer;

#[cfg(unix)]
mod unix {
    use std::os::unix::process::CommandExt;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use crate::demo::serve::lock::Lock;

    pub(in crate::demo::serve) struct RedisServer {
        /// Its standard input is a pipe; closing the pipe stops the server.
        supervisor: Child,
        folder: PathBuf,
    }

    const START_MAX: Duration = Duration::from_secs(10);
    const LOOK_AGAIN: Duration = Duration::from_millis(10);

    impl RedisServer {
        /// Starts one. `None`: it is not installed, or does not start.
        pub(in crate::demo::serve) async fn start() -> Option<Self> {
            let version = Command::new("redis-server").arg("--version").output();
            version.ok().filter(|version| version.status.success())?;
            let server = Self::spawn().ok()?;
            let deadline = Instant::now() + START_MAX;
            while Lock::redis(&server.url(), "").await.is_err() {
                if Instant::now() > deadline {
                    return None;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Some(server)
        }

        fn spawn() -> std::io::Result<Self> {
            let folder = tempfile::Builder::new().prefix("pgonce-redis-").tempdir()?;
            let mut command = Command::new("/bin/sh");
            command.args(["-c", include_str!("redis.sh"), "pgonce-redis"]).arg(folder.path());
            command.args(["--port", "0", "--unixsocket", "socket", "--save", ""]);
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            command.process_group(0); // so that a Ctrl-C in the terminal does not reach the server
            // From here on the supervisor removes the folder.
            Ok(Self { supervisor: command.spawn()?, folder: folder.keep() })
        }

        pub(in crate::demo::serve) fn url(&self) -> String {
            format!("redis+unix://{}", self.folder.join("socket").display())
        }
    }

    impl Drop for RedisServer {
        fn drop(&mut self) {
            self.supervisor.stdin = None;
            // If waiting fails, the supervisor has ended.
            let _ = self.supervisor.wait();
        }
    }
}

#[cfg(not(unix))]
pub(super) struct RedisServer;

#[cfg(not(unix))]
impl RedisServer {
    pub(super) async fn start() -> Option<Self> {
        None
    }

    pub(super) fn url(&self) -> String {
        String::new()
    }
}
