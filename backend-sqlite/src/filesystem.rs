//! Whether the file lies where SQLite can be relied on.
//!
//! The write-ahead log needs memory that all processes of the file share, and the ownership of a worker needs file locks
//! that hold: network file systems have neither, whatever they answer.

use std::path::{Path, PathBuf};

use event_bus_core::{ErrorKind, Result};

use crate::config::SqliteConfig;
use crate::error::error;

/// Names of file systems that reach over a network, or into another kernel, as `/proc/self/mountinfo` spells them.
const REMOTE: [&str; 19] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "fuse.ceph",
    "fuse.glusterfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.sshfs",
    "gfs2",
    "glusterfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
];

/// Refuses a file on a network file system. Where the system does not say (anything but Linux), all are accepted.
pub(crate) fn check(config: &SqliteConfig, operation: &'static str) -> Result<()> {
    if config.allow_network_filesystem {
        return Ok(());
    }
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return Ok(()) };
    let parent =
        config.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The file may not be there yet, and may be a symbolic link to elsewhere.
    let real =
        config.path.canonicalize().or_else(|_| parent.canonicalize()).unwrap_or_else(|_| parent.to_owned());
    match kind_of(&mounts, &real) {
        Some(kind) if REMOTE.contains(&kind) => {
            let message = format!(
                "{} lies on a network file system ({kind}), where SQLite can lose or damage data; put it on a local disk, \
                 or insist with allow_network_filesystem",
                config.path.display()
            );
            Err(error(ErrorKind::InvalidConfiguration, operation, message))
        }
        _ => Ok(()),
    }
}

/// The kind of file system that `path` lies on: that of the longest mount point above it, of equal ones the last, which
/// hides the others. (Format: <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>.)
fn kind_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mount_point = unescape(before.split(' ').nth(4)?);
            let kind = after.split(' ').next()?;
            path.starts_with(&mount_point).then(|| (mount_point.components().count(), kind))
        })
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, kind)| kind)
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut path = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                path.push('\\');
                rest = after;
            }
        }
    }
    path.push_str(rest);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /home rw,nosuid shared:2 - nfs4 server:/home rw,vers=4.2
24 23 0:22 / /home/anna/local rw shared:3 master:1 - xfs /dev/vdb rw
25 22 0:23 / /mnt/two\\040words rw shared:4 - cifs //server/share rw
26 22 0:24 / /data rw - tmpfs tmpfs rw
27 22 0:25 / /data rw - fuse.sshfs host:/data rw
a broken line
";

    #[test]
    fn the_longest_and_last_mount_point_decides() {
        for (path, kind) in [
            ("/var/lib/orders.db", "ext4"),
            ("/home/anna/orders.db", "nfs4"),
            ("/home/anna/local/orders.db", "xfs"),
            ("/homeless/orders.db", "ext4"),
            ("/mnt/two words/orders.db", "cifs"),
            ("/data/orders.db", "fuse.sshfs"),
        ] {
            assert_eq!(kind_of(MOUNTS, Path::new(path)), Some(kind), "{path}");
        }
        assert_eq!(kind_of("", Path::new("/x")), None);
    }

    #[test]
    fn this_machines_own_disk_is_accepted() {
        assert!(check(&SqliteConfig::new("some.db"), "migrate").is_ok());
    }

    #[test]
    fn names_of_remote_file_systems_are_told_apart() {
        assert!(REMOTE.is_sorted());
        for (kind, is_remote) in [("nfs4", true), ("fuse.sshfs", true), ("ext4", false), ("overlay", false)] {
            assert_eq!(REMOTE.contains(&kind), is_remote);
        }
    }
}
