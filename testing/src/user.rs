//! The user that runs the server: PostgreSQL refuses to run as root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The user that runs the server if this process is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

/// Whether this process is root: root owns the files that it creates.
pub(crate) fn is_root() -> io::Result<bool> {
    Ok(tempfile::tempfile_in("/tmp")?.metadata()?.uid() == 0)
}

impl User {
    /// `postgres`, or else `nobody`.
    pub(crate) fn unprivileged() -> Result<Self, String> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"].iter().find_map(|name| Self::named(&passwd, name)).ok_or_else(|| {
            "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`".into()
        })
    }

    fn named(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let fields = line.split(':').collect::<Vec<_>>();
            let [found, _, uid, gid, ..] = fields[..] else { return None };
            if found != name {
                return None;
            }
            Some(Self { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })
    }

    pub(crate) fn own(self, dir: &Path) -> io::Result<()> {
        chown(dir, Some(self.uid), Some(self.gid))
    }

    pub(crate) fn run(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// Whether any user can create and remove a directory in `dir`.
pub(crate) fn is_open_to_all(dir: &Path) -> bool {
    let mode = |dir: &Path| fs::metadata(dir).map_or(0, |metadata| metadata.mode());
    mode(dir) & 0o002 != 0 && dir.ancestors().all(|above| mode(above) & 0o001 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd = "root:x:0:0::/:/bin/sh\npostgres2:x:7:7::/:\npostgres:x:101:104:a:/:/bin/sh\n";
        assert_eq!(User::named(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(User::named(passwd, "nobody"), None);
    }
}
