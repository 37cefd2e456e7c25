//! The machine of the measurement.

use std::fs::read_to_string;

use serde_json::{Value, json};
use time::OffsetDateTime;

/// A machine, described so that readers can judge its figures.
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) system: String,
    pub(crate) postgres: String,
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn look(server_version: &str, is_throwaway: bool) -> Self {
        let kind = if is_throwaway { "temporary, durable" } else { "given database" };
        Self {
            cpu: cpu().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: system(),
            postgres: format!("{server_version} ({kind})"),
            date: OffsetDateTime::now_utc().date().to_string(),
        }
    }

    pub(crate) fn words(&self) -> String {
        let Self { cpu, cores, system, postgres, date } = self;
        format!("{cpu}, {cores} cores, {system}, PostgreSQL {postgres}, {date}")
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "system": self.system,
            "postgres": self.postgres,
            "date": self.date,
        })
    }
}

fn cpu() -> Option<String> {
    let about = read_to_string("/proc/cpuinfo").ok()?;
    let line = about.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The distribution and its kernel, or else the kind of system.
fn system() -> String {
    let about = read_to_string("/etc/os-release").unwrap_or_default();
    let name = about.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let name = name.map_or(std::env::consts::OS, |name| name.trim_matches('"'));
    format!("{name} {}", kernel.trim()).trim().to_owned()
}

/// This process's resident memory in bytes. Only Linux reports it.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
