//! What the machine says of a process and of its disks, and the limits that it sets.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A figure of `/proc/PID/status`, such as `VmRSS` (KiB).
///
/// # Errors
/// The process has ended, or there is no such figure.
pub fn process_figure(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let figure = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(figure.with_context(|| format!("no {name}"))?.trim().trim_end_matches(" kB").parse()?)
}

/// Raises the limit of file descriptors, of this process and of what it starts, to the most that it may have: returned.
///
/// # Errors
/// A system call failed.
pub fn raise_descriptors() -> Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    Ok(hard.unwrap_or(u64::MAX))
}

/// Type and device of the mount that holds an absolute path, such as `ext4 on /dev/vda1`. Of several mounts on one
/// point the last one counts, as it covers the others.
#[must_use]
pub fn file_system_of(path: &Path, mounts: &str) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(point), Some(kind)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // The kernel writes a space in a mount point as an escape.
        let point = point.replace("\\040", " ");
        let is_longest = best.as_ref().is_none_or(|(length, _)| point.len() >= *length);
        if path.starts_with(&point) && is_longest {
            best = Some((point.len(), format!("{kind} on {device}")));
        }
    }
    best.map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str =
        "overlay / overlay rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/my\\040disk ext4 rw 0 0\n";

    #[test]
    fn the_longest_mount_point_holds_the_path() {
        for (path, expected) in [
            ("/", "overlay on overlay"),
            ("/tmpfoo", "overlay on overlay"),
            ("/tmp/x", "tmpfs on tmpfs"),
            ("/tmp/my disk/x", "ext4 on /dev/vdb"),
        ] {
            assert_eq!(file_system_of(Path::new(path), MOUNTS).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(file_system_of(Path::new("/x"), "nonsense"), None);
    }
}
