//! CPU time of this process and of the server. Linux reports it, in steps of 10 ms.

use std::fs::{read_dir, read_to_string};
use std::path::Path;

/// CPU time of this process, and of the server if it is on this machine and only the bench uses it.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) client: Option<f64>,
    pub(crate) server: Option<f64>,
}

/// Fields of `/proc/PID/stat` after the program's name, which may contain blanks.
const PARENT: usize = 1;
/// User mode, kernel, then the same for ended children.
const TICKS: std::ops::Range<usize> = 11..15;
const TICKS_PER_SECOND: f64 = 100.0;

impl Cpu {
    /// In microseconds since each process began.
    pub(crate) fn now(postmaster: Option<u32>) -> Self {
        let client = stat(Path::new("/proc/self")).and_then(|stat| micros(&stat, 2));
        Self { client, server: postmaster.and_then(of_server) }
    }

    /// CPU time since `before`, per operation.
    pub(crate) fn each_since(self, before: Self, operations: u64) -> Self {
        let each = |now: Option<f64>, then: Option<f64>| {
            now.zip(then).map(|(now, then)| (now - then) / operations.max(1) as f64)
        };
        Self { client: each(self.client, before.client), server: each(self.server, before.server) }
    }
}

/// The process named in a data directory's `postmaster.pid`.
pub(crate) fn postmaster(data_directory: &str) -> Option<u32> {
    let file = read_to_string(Path::new(data_directory).join("postmaster.pid")).ok()?;
    file.lines().next()?.trim().parse().ok()
}

/// All processes of the server, including ended ones.
fn of_server(postmaster: u32) -> Option<f64> {
    let mut used = micros(&stat(&Path::new("/proc").join(postmaster.to_string()))?, 4)?;
    let parent = postmaster.to_string();
    for process in read_dir("/proc").ok()?.flatten() {
        let Some(stat) = stat(&process.path()) else { continue };
        if stat.get(PARENT) == Some(&parent) {
            used += micros(&stat, 2).unwrap_or(0.0);
        }
    }
    Some(used)
}

fn stat(process: &Path) -> Option<Vec<String>> {
    let stat = read_to_string(process.join("stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// The sum of the first `count` tick counters.
fn micros(stat: &[String], count: usize) -> Option<f64> {
    let ticks = stat.get(TICKS)?.iter().take(count).map(|ticks| ticks.parse::<f64>().ok());
    Some(ticks.sum::<Option<f64>>()? / TICKS_PER_SECOND * 1e6)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_counted() {
        let before = Cpu::now(None);
        while Cpu::now(None).each_since(before, 1).client < Some(20_000.0) {}
        assert!(Cpu::now(None).server.is_none());
    }
}
