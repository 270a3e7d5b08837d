//! The part of a body that is on disk: a file without a name, so nothing is left of it when its descriptor is closed,
//! however uh-proxy ends. A thread that may wait for the disk creates and writes it.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open, unlink};
use rustix::io::{Errno, pwrite};
use tokio::task::JoinHandle;

use super::budget::Share;
use crate::front::files::source::FileSource;

/// Names that are tried where a file system can't create a file without one.
const TRIES: usize = 8;

/// What has been written of a body. It has its share of the disk until the file is closed.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    /// Created with the first write.
    file: Option<OwnedFd>,
    length: u64,
    pub(super) share: Share,
}

/// What has become of a write.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) spool: Spool,
    /// What was to be written.
    pub(super) bytes: Vec<u8>,
    /// How much of it was. Less than all if it failed.
    pub(super) written: usize,
    pub(super) failed: Option<Errno>,
}

impl Spool {
    /// Nothing is on disk yet.
    pub(super) fn new(directory: PathBuf, share: Share) -> Self {
        Self { directory, file: None, length: 0, share }
    }

    /// Whether anything was written.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends these bytes. If nobody waits for the result, the file is closed.
    pub(super) fn append(mut self, bytes: Vec<u8>) -> JoinHandle<Written> {
        tokio::task::spawn_blocking(move || {
            let (mut written, mut failed) = (0, None);
            while written < bytes.len() && failed.is_none() {
                match self.write(&bytes[written..]) {
                    Ok(0) => failed = Some(Errno::IO),
                    Ok(n) => written += n,
                    Err(Errno::INTR) => {}
                    Err(error) => failed = Some(error),
                }
            }
            Written { spool: self, bytes, written, failed }
        })
    }

    fn write(&mut self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(create(&self.directory)?),
        };
        let written = pwrite(file, bytes, self.length)?;
        self.length += written as u64;
        Ok(written)
    }

    /// What was written, to be read; `None`: nothing.
    ///
    /// # Errors
    /// The file's state isn't known.
    pub(super) fn into_source(self) -> io::Result<Option<(FileSource, Share)>> {
        let Some(file) = self.file.filter(|_| self.length > 0) else { return Ok(None) };
        Ok(Some((FileSource::of_start(file, self.length)?, self.share)))
    }
}

/// Whether files can be created in a directory. A disk that is full now may have room later.
///
/// # Errors
/// They can't.
pub(crate) fn check_directory(directory: &Path) -> io::Result<()> {
    match create(directory) {
        Ok(_) | Err(Errno::NOSPC | Errno::DQUOT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Creates a file without a name.
fn create(directory: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
    match open(directory, flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
        // Not every file system can do that.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => create_and_unlink(directory, flags),
        created => created,
    }
}

/// The same with a name, which is removed at once.
fn create_and_unlink(directory: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let random = RandomState::new();
    for number in 0..TRIES {
        let path = directory.join(format!(".uh-proxy-{:016x}", random.hash_one(number)));
        match open(&path, flags | OFlags::CREATE | OFlags::NOFOLLOW, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                unlink(&path)?;
                return Ok(file);
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::request_buffer::BufferBudgets;

    #[tokio::test]
    async fn a_file_has_no_name_and_holds_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let budgets = BufferBudgets::default();
        let mut share = budgets.of_disk();
        assert!(share.grow(6, 6));
        let spool = Spool::new(directory.path().to_owned(), share);
        let written = spool.append(b"abc".to_vec()).await.unwrap();
        let Written { spool, written, failed, .. } = written.spool.append(b"def".to_vec()).await.unwrap();
        assert_eq!((written, failed, spool.length), (3, None, 6));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        drop(spool);
        assert_eq!(budgets.disk_bytes(), 0);
    }

    #[test]
    fn a_file_with_a_name_loses_it_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
        let file = create_and_unlink(directory.path(), flags).unwrap();
        assert_eq!(pwrite(&file, b"x", 0), Ok(1));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(check_directory(&directory.path().join("none")).is_err());
    }
}
