//! The files of a backend that uh-proxy serves by itself, as one directory: put in place before the backend is started,
//! removed after it is stopped.
//!
//! A new directory is filled next to its place, made durable, and renamed into it. So its place always holds all files
//! of one version or none, whenever uh-deploy is killed. Only a directory that uh-deploy has made is ever replaced or
//! removed: it has a [`MARK`].

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::{fault, files};

/// The file that says that a directory is uh-deploy's, and which operation made it. uh-proxy serves no hidden files.
const MARK: &str = ".uh-deploy";

/// Everybody may read what is served: uh-proxy runs as another user.
const DIRECTORY_MODE: u32 = 0o755;

/// The same for files.
const FILE_MODE: u32 = 0o644;

/// Where the files of a backend are.
#[derive(Debug)]
pub(crate) struct AssetsDir {
    place: PathBuf,
}

impl AssetsDir {
    pub(crate) fn new(place: &Path) -> Self {
        Self { place: place.to_owned() }
    }

    /// A directory next to it: `.public.new`.
    fn sibling(&self, ending: &str) -> PathBuf {
        let name = self.place.file_name().unwrap_or_default().to_string_lossy();
        self.place.with_file_name(format!(".{name}.{ending}"))
    }

    /// Makes an empty directory to copy to. What an earlier attempt has left is removed.
    ///
    /// # Errors
    /// Something else is in its place, or the system refuses the operation.
    pub(crate) fn prepare(&self) -> io::Result<PathBuf> {
        self.demand_ours()?;
        let new = self.sibling("new");
        remove_tree(&new)?;
        fs::create_dir_all(&new)?;
        Ok(new)
    }

    /// Puts what was copied to `source`, which lies in the prepared directory, in place.
    ///
    /// # Errors
    /// Something else is in its place, or the system refuses the operation. Then its place is as it was, or empty.
    pub(crate) fn install(&self, source: &Path, operation: &str) -> io::Result<()> {
        make_readable(source)?;
        let mut mark = File::create(source.join(MARK))?;
        mark.write_all(operation.as_bytes())?;
        // Once for all files.
        rustix::fs::syncfs(&mark)?;
        drop(mark);
        fault::point("assets.copied");
        self.demand_ours()?;
        let old = self.sibling("old");
        remove_tree(&old)?;
        match fs::rename(&self.place, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved?,
        }
        fault::point("assets.moved_away");
        fs::rename(source, &self.place)?;
        files::sync_directory(&self.place)?;
        fault::point("assets.installed");
        remove_tree(&old)?;
        remove_tree(&self.sibling("new"))
    }

    /// Removes what a failed attempt has left next to it.
    ///
    /// # Errors
    /// The system refuses the operation.
    pub(crate) fn clean(&self) -> io::Result<()> {
        remove_tree(&self.sibling("new"))?;
        remove_tree(&self.sibling("old"))
    }

    /// Removes it, and what is left next to it. Returns whether it was there. What uh-deploy didn't make stays.
    ///
    /// # Errors
    /// The system refuses the operation.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        self.clean()?;
        if self.mark()?.is_none() {
            return Ok(false);
        }
        // Renamed first: its place is empty at once, whenever this is interrupted.
        let old = self.sibling("old");
        fs::rename(&self.place, &old)?;
        files::sync_directory(&self.place)?;
        remove_tree(&old)?;
        Ok(true)
    }

    /// The same, if this operation has put it there.
    ///
    /// # Errors
    /// The system refuses the operation.
    pub(crate) fn remove_of(&self, operation: &str) -> io::Result<()> {
        match self.mark()? {
            Some(mark) if mark == operation => self.remove().map(|_| ()),
            _ => self.clean(),
        }
    }

    /// The operation that has put it there; `None`: there is nothing of uh-deploy's.
    fn mark(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.place.join(MARK)) {
            Ok(mark) => Ok(Some(mark)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Something else than what uh-deploy has made is never replaced.
    ///
    /// # Errors
    /// There is something else, or the system refuses the operation.
    pub(crate) fn demand_ours(&self) -> io::Result<()> {
        if self.mark()?.is_some() {
            return Ok(());
        }
        match fs::symlink_metadata(&self.place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.is_dir() && fs::read_dir(&self.place)?.next().is_none() => Ok(()),
            Ok(_) => Err(io::Error::other(format!(
                "{} is there already, and uh-deploy didn't make it: move it away, or change files.to",
                self.place.display()
            ))),
        }
    }
}

/// Copies a directory with everything in it. Symbolic links stay what they are.
///
/// # Errors
/// The system refuses the operation, or there is something else than files, directories and links.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        } else {
            return Err(odd(&source));
        }
    }
    Ok(())
}

/// Sets the modes of everything in a directory, and requires that there is nothing odd in it.
fn make_readable(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            make_readable(&path)?;
        } else if kind.is_file() {
            fs::set_permissions(&path, Permissions::from_mode(FILE_MODE))?;
        } else if !kind.is_symlink() {
            return Err(odd(&path));
        }
    }
    Ok(())
}

fn odd(path: &Path) -> io::Error {
    io::Error::other(format!("{} is neither a file, nor a directory, nor a symbolic link", path.display()))
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(assets: &AssetsDir, operation: &str, content: &str) {
        let new = assets.prepare().unwrap();
        fs::create_dir_all(new.join("files/sub")).unwrap();
        fs::write(new.join("files/sub/a.txt"), content).unwrap();
        assets.install(&new.join("files"), operation).unwrap();
    }

    #[test]
    fn a_directory_is_replaced_as_a_whole_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("app-blue/public");
        let assets = AssetsDir::new(&place);
        for content in ["one", "two"] {
            put(&assets, content, content);
            assert_eq!(fs::read_to_string(place.join("sub/a.txt")).unwrap(), content);
            assert_eq!(
                fs::metadata(place.join("sub/a.txt")).unwrap().permissions().mode() & 0o777,
                FILE_MODE
            );
            assert_eq!(fs::read_dir(dir.path().join("app-blue")).unwrap().count(), 1, "nothing else is left");
        }
        assets.remove_of("one").unwrap();
        assert!(place.exists(), "it is another operation's");
        assert!(assets.remove().unwrap() && !place.exists() && !assets.remove().unwrap());
    }

    #[test]
    fn what_was_interrupted_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("public");
        let assets = AssetsDir::new(&place);
        put(&assets, "1", "one");
        // Killed between the two renames, with a half-copied directory of yet another attempt.
        fs::rename(&place, dir.path().join(".public.old")).unwrap();
        fs::create_dir_all(dir.path().join(".public.new/files")).unwrap();
        put(&assets, "2", "two");
        assert_eq!(fs::read_to_string(place.join("sub/a.txt")).unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_uh_deploy_did_not_make_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("public");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("precious"), "x").unwrap();
        let assets = AssetsDir::new(&place);
        assert!(assets.prepare().unwrap_err().to_string().contains("didn't make it"));
        assert!(!assets.remove().unwrap() && place.join("precious").exists());
    }

    #[test]
    fn a_tree_is_copied_with_its_links_and_without_oddities() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/x"), "x").unwrap();
        symlink("b/x", from.join("a/link")).unwrap();
        copy_tree(&from, &dir.path().join("to")).unwrap();
        assert_eq!(fs::read_link(dir.path().join("to/a/link")).unwrap(), Path::new("b/x"));
        assert_eq!(fs::read_to_string(dir.path().join("to/a/link")).unwrap(), "x");
        rustix::fs::mkfifoat(rustix::fs::CWD, from.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
        assert!(copy_tree(&from, &dir.path().join("other")).unwrap_err().to_string().contains("fifo"));
    }
}
