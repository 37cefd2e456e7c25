//! Brokers and consumers as separate processes. None outlives the test.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A program that runs until this is dropped; then it and everything it started are killed with `kill -9`.
#[derive(Debug)]
pub struct Process {
    name: String,
    /// Its standard input is a pipe; closing the pipe kills the program.
    supervisor: Child,
    dir: PathBuf,
}

impl Process {
    /// Starts a program in a new folder for its files. The environment tells it the rest.
    pub fn start<'a>(
        program: impl AsRef<Path>,
        arguments: &[&str],
        environment: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("pgonce-").tempdir().unwrap().keep();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", include_str!("supervise.sh"), "supervise"]).arg(&dir);
        command.arg(program.as_ref()).args(arguments).envs(environment);
        command.env("HOME", &dir);
        command.stdin(Stdio::piped()).stdout(std::fs::File::create(dir.join("log")).unwrap());
        command.process_group(0); // a Ctrl-C in the terminal reaches only the test
        let supervisor = command.spawn().expect("start sh");
        Self { name: program.as_ref().display().to_string(), supervisor, dir }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its standard output.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Fails if the program has ended.
    pub fn must_run(&mut self) {
        if let Some(status) = self.supervisor.try_wait().unwrap() {
            panic!("{} has ended: {status}; what it said is above", self.name);
        }
    }

    /// Sends `kill -9` and waits until the program and everything it started have ended.
    pub fn kill(mut self) {
        self.must_run();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.supervisor.stdin = None;
        self.supervisor.wait().expect("wait for the supervisor");
    }
}

/// The path of an installed program.
pub fn installed(places: &[&str], package: &str) -> PathBuf {
    let found = places.iter().map(PathBuf::from).find(|place| place.exists());
    found.unwrap_or_else(|| {
        panic!("none of {places:?} is there: install it with `apt-get install {package}`")
    })
}

/// Ports that no program listens on.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
