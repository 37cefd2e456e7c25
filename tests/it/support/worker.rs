//! Other processes: this test binary, started again to do one job.
//!
//! Parent and worker exchange lines. At the end of its input a worker fails, so it never outlives its parent.

use std::process::{ExitStatus, Stdio};
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::db::{PATIENCE, TestDb};
use crate::{crash, leased_crash, poison, races, recovery};

/// Marks the worker's lines; the rest of its output is libtest's.
const MARK: &str = "worker> ";
const JOB: &str = "PGONCE_WORKER_JOB";
const SCHEMA: &str = "PGONCE_WORKER_SCHEMA";
const URL: &str = "PGONCE_WORKER_URL";

/// Another process that works on the same schema. Killed when dropped.
pub struct Worker {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// The parent, as a job sees it.
pub struct Parent;

impl Worker {
    pub fn spawn(db: &TestDb, job: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["support::worker::worker_process", "--exact", "--nocapture"])
            .env(JOB, job)
            .env(SCHEMA, &db.schema)
            .env(URL, db.options.to_url_lossy().as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start the test binary again");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output }
    }

    pub async fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.expect("tell the worker");
    }

    pub async fn hear(&mut self) -> String {
        let listening = async {
            while let Some(line) = self.output.next_line().await.expect("read the worker's output")
            {
                // libtest may have begun the line: "test support::worker::worker_process ... ".
                if let Some((_, said)) = line.split_once(MARK) {
                    return said.to_owned();
                }
            }
            panic!("the worker ended without a word");
        };
        tokio::time::timeout(PATIENCE, listening).await.expect("a word from the worker")
    }

    /// Sends `kill -9` and waits until the process has ended.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("kill the worker");
    }

    /// Sends a signal: `STOP`, `CONT`.
    pub async fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id().expect("it still runs"));
        assert!(Command::new("sh").args(["-c", &kill]).status().await.unwrap().success());
    }

    pub async fn ended(mut self) -> ExitStatus {
        let ending = self.child.wait();
        tokio::time::timeout(PATIENCE, ending).await.expect("the worker ends").unwrap()
    }
}

impl Parent {
    pub fn say(&self, line: impl std::fmt::Display) {
        println!("{MARK}{line}");
    }

    /// The parent's next line. Blocks its task, not the runtime.
    pub async fn hear(&self) -> String {
        let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
        line.await.unwrap().expect("the parent is gone").unwrap()
    }
}

async fn work(job: &str, db: TestDb) {
    let parent = Parent;
    match job {
        "echo" => parent.say(parent.hear().await),
        "race" => races::race(&db, &parent).await,
        "pay_and_wait" => crash::pay_and_wait(&db, &parent).await,
        "pay_and_tell" => crash::pay_and_tell(&db, &parent).await,
        "lease" => crash::lease(&db, &parent).await,
        "checkout" => leased_crash::checkout(&db, &parent).await,
        "stall" => leased_crash::stall(&db, &parent).await,
        "leave" => recovery::leave(&db, &parent).await,
        "die" => poison::die(&db, &parent).await,
        "fail" => std::process::exit(1),
        other => panic!("no job is called {other}"),
    }
}

/// In a worker, this is the whole program; in the suite, it tests the mechanism.
#[tokio::test(flavor = "multi_thread")]
async fn worker_process() {
    if let Ok(job) = std::env::var(JOB) {
        let schema = std::env::var(SCHEMA).unwrap();
        let options = PgConnectOptions::from_str(&std::env::var(URL).unwrap()).unwrap();
        return work(&job, TestDb::open(&schema, options, 20).await).await;
    }
    let db = TestDb::new().await;
    let mut worker = Worker::spawn(&db, "echo");
    worker.tell("are you there?").await;
    assert_eq!(worker.hear().await, "are you there?");
    assert!(worker.ended().await.success());

    let worker = Worker::spawn(&db, "echo");
    worker.kill().await; // returns although the job would wait without end
    assert!(!Worker::spawn(&db, "fail").ended().await.success(), "a failure shows");
}
