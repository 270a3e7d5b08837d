//! Files that survive a crash: written to a temporary file, synced, and renamed into place.
//!
//! State decides what uh-deploy runs with its own rights. So a file is only read if it and its directory belong to
//! uh-deploy's user or root and no other user may write to them. All state is read and appended to through [`read`]
//! and [`append`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// State is only for its owner: records hold secrets.
const FILE_MODE: u32 = 0o600;

/// The same for directories.
const DIR_MODE: u32 = 0o700;

/// Replaces a file atomically: after a crash, it has the old or the new content.
///
/// # Errors
/// The file can't be written; then it has the old content.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, content).map_err(in_words)
}

fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary_path(path);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_directory(path)
}

/// The same error without its number: `No space left on device`.
#[expect(clippy::needless_pass_by_value, reason = "the signature map_err needs")]
fn in_words(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), crate::chain(&error))
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Makes a change in a file's directory (a rename, a removal, a new file) durable.
///
/// # Errors
/// The directory can't be synced.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))
        .and_then(|directory| directory.sync_all())
        .map_err(in_words)
}

/// Opens a file for appending, and creates it with mode 0600 if it is missing.
///
/// # Errors
/// The system refuses the operation.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    let new = !path.exists();
    let file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path).map_err(in_words)?;
    demand_ours(path, &file.metadata()?)?;
    if new {
        sync_directory(path)?;
    }
    Ok(file)
}

/// Creates a directory and its parents with mode 0700, unless it exists.
///
/// # Errors
/// The system refuses the operation.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(path).map_err(in_words)
}

/// Removes a file if it exists.
///
/// # Errors
/// The system refuses the operation.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(in_words),
    }
}

/// The largest state file: a history of a hundred thousand deploys.
const MAX_BYTES: usize = 256 << 20;

/// Reads a state file; `None`: it doesn't exist.
///
/// # Errors
/// It exists but can't be read, or another user could have written it.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(in_words)?,
    };
    demand_ours(path, &file.metadata()?)?;
    if let Some(directory) = path.parent() {
        demand_ours_if_there(directory)?;
    }
    bounded(path, file, MAX_BYTES).map(Some)
}

/// Reads a file of the user, with any owner, up to a size.
///
/// # Errors
/// It can't be read, or is larger.
pub(crate) fn read_foreign(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    bounded(path, File::open(path).map_err(in_words)?, most)
}

fn bounded(path: &Path, file: File, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(in_words)?;
    if bytes.len() > most {
        let reason = format!("{} has more than {most} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// Requires that a directory, if it exists, belongs to uh-deploy's user or root, and that no other user may write to
/// it.
///
/// # Errors
/// It doesn't. The error names the command that fixes it.
pub(crate) fn demand_ours_if_there(directory: &Path) -> io::Result<()> {
    match fs::metadata(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        found => {
            let found = found.map_err(in_words)?;
            if is_mount(directory, &found) {
                demand_closed(directory, &found)
            } else {
                demand_ours(directory, &found)
            }
        }
    }
}

/// Whether a directory is a file system of its own, such as a container's volume, which is trusted regardless of
/// its owner, because the user that started uh-deploy mounted it.
fn is_mount(directory: &Path, found: &fs::Metadata) -> bool {
    fs::metadata(directory.join("..")).is_ok_and(|above| above.dev() != found.dev())
}

/// Group and others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

fn demand_ours(path: &Path, found: &fs::Metadata) -> io::Result<()> {
    let us = rustix::process::geteuid().as_raw();
    if [us, 0].contains(&found.uid()) {
        return demand_closed(path, found);
    }
    let path = path.display();
    Err(not_ours(format!(
        "{path} belongs to user {}, who could make uh-deploy (user {us}) run any command. If you trust its content: chown -R {us} {path}",
        found.uid()
    )))
}

fn demand_closed(path: &Path, found: &fs::Metadata) -> io::Result<()> {
    if found.mode() & WRITABLE_BY_OTHERS == 0 {
        return Ok(());
    }
    let (us, path) = (rustix::process::geteuid().as_raw(), path.display());
    Err(not_ours(format!(
        "{path} is writable by other users (mode {:o}), who could make uh-deploy (user {us}) run any command. If you trust its content: chmod -R go-w {path}",
        found.mode() & 0o7777
    )))
}

fn not_ours(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn state_is_only_readable_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/record.json");
        make_directory(path.parent().unwrap()).unwrap();
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_read_and_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records/blue.json");
        make_directory(path.parent().unwrap()).unwrap();
        replace(&path, b"{}").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for (open, bad, good) in [(path.as_path(), 0o620, 0o600), (path.parent().unwrap(), 0o777, 0o700)] {
            mode(open, bad);
            let refused = read(&path).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert!(refused.to_string().contains(&format!("chmod -R go-w {}", open.display())), "{refused}");
            mode(open, good);
        }
        assert_eq!(read(&path).unwrap().unwrap(), b"{}");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            let refused = read(&path).unwrap_err().to_string();
            assert!(refused.contains(&format!("chown -R 0 {}", path.display())), "{refused}");
        }
    }

    /// A volume may belong to the image's user, while the compose file runs uh-deploy as another one.
    #[test]
    fn a_volume_is_trusted_regardless_of_its_owner() {
        let is = |path: &str| is_mount(Path::new(path), &fs::metadata(path).unwrap());
        assert!(is("/proc") && !is("/proc/self"));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mount(dir.path(), &fs::metadata(dir.path()).unwrap()));
    }

    #[test]
    fn an_endless_file_is_an_error() {
        let refused = read_foreign(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
    }
}
