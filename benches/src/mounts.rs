//! Which file system a path is on, from the text of `/proc/mounts`. Pure.

use std::path::Path;

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
