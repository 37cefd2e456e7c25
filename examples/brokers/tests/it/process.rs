//! Other processes: brokers and consumers. None outlives the test.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A program that runs until this is dropped, which is `kill -9` for it and all that it started.
#[derive(Debug)]
pub struct Process {
    name: String,
    /// Its standard input is the pipe whose end kills the program.
    supervisor: Child,
    dir: PathBuf,
}

impl Process {
    /// Starts a program in a new folder, which it may fill; the environment tells it where the rest is.
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
        command.process_group(0); // a Ctrl-C in the terminal is for the test alone
        let supervisor = command.spawn().expect("start sh");
        Self { name: program.as_ref().display().to_string(), supervisor, dir }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it says on standard output.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Fails when the program has ended by itself.
    pub fn must_run(&mut self) {
        if let Some(status) = self.supervisor.try_wait().unwrap() {
            panic!("{} has ended: {status}; what it said is above", self.name);
        }
    }

    /// `kill -9`, and waits until it and all that it started are gone.
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

/// Where an installed program is.
pub fn installed(places: &[&str], package: &str) -> PathBuf {
    let found = places.iter().map(PathBuf::from).find(|place| place.exists());
    found.unwrap_or_else(|| {
        panic!("none of {places:?} is there: install it with `apt-get install {package}`")
    })
}

/// Ports that nobody listens on.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
