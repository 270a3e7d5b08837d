//! Opening a file below a root. The kernel refuses every way out of it (`RESOLVE_BENEATH`): `..`, absolute symbolic
//! links, and relative ones that lead outside.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::{Errno, Result};
use std::os::fd::AsFd as _;

use super::name::FileName;

/// Whether opening may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Only what the kernel knows already; otherwise it fails with `EAGAIN`.
    Never,
    /// As long as it takes: not on a worker's thread.
    Allowed,
}

impl Wait {
    fn flags(self) -> ResolveFlags {
        match self {
            Self::Never => ResolveFlags::CACHED,
            Self::Allowed => ResolveFlags::empty(),
        }
    }
}

/// What a name is.
#[derive(Debug)]
pub(super) enum Found {
    /// A regular file.
    File(OpenFile),
    Directory,
    /// Nothing that is served: it doesn't exist, is outside of the root, may not be read, or isn't a regular file.
    Nothing,
}

/// The state of a file's content, as far as the file system knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileState {
    pub(super) length: u64,
    /// Seconds since 1970, and nanoseconds.
    modified: (i64, u32),
    /// The same of its inode, which no program can set.
    changed: (i64, u32),
    inode: u64,
    device: u64,
}

impl FileState {
    fn of(stat: &Stat) -> Self {
        let nanoseconds = |n| u32::try_from(n).unwrap_or_default();
        Self {
            length: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanoseconds(stat.st_ctime_nsec)),
            inode: stat.st_ino,
            device: stat.st_dev,
        }
    }

    /// Whether the content is the same, as far as is known. A file that was replaced meanwhile, and so removed, is.
    pub(super) fn has_same_content(&self, other: &Self) -> bool {
        (self.length, self.modified) == (other.length, other.modified)
    }

    /// When it was last modified, in seconds since 1970.
    pub(super) fn modified_second(&self) -> i64 {
        self.modified.0
    }

    /// The same as a time.
    pub(super) fn modified(&self) -> SystemTime {
        let (second, nanosecond) = self.modified;
        u64::try_from(second).map_or(UNIX_EPOCH, |second| UNIX_EPOCH + Duration::new(second, nanosecond))
    }

    /// The entity tag, with its quotes: a strong one. It includes the time of the inode's last change: builds and copies
    /// set others of these facts to the same values for different contents. They are hashed, since inode numbers are
    /// nobody's business.
    pub(super) fn etag(&self) -> String {
        let facts = [
            self.modified.0.cast_unsigned(),
            u64::from(self.modified.1),
            self.changed.0.cast_unsigned(),
            u64::from(self.changed.1),
            self.inode,
            self.device,
        ];
        // FNV-1a, 64 bits.
        let hash =
            facts.iter().flat_map(|fact| fact.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("\"{:x}-{hash:x}\"", self.length)
    }
}

/// A regular file, open for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: OwnedFd,
    pub(super) state: FileState,
}

impl OpenFile {
    /// Its state now.
    pub(super) fn state_now(file: BorrowedFd<'_>) -> Result<FileState> {
        Ok(FileState::of(&fstat(file)?))
    }
}

/// Opens a root. It may be reached by symbolic links: it is the administrator's.
pub(super) fn root(path: &Path, wait: Wait) -> Result<OwnedFd> {
    openat2(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), wait.flags())
}

/// Opens what a name is below a root.
///
/// # Errors
/// `EAGAIN`: it had to wait. Or there are no descriptors left, or the disk is broken.
pub(super) fn beneath(root: &OwnedFd, name: &FileName, wait: Wait) -> Result<Found> {
    // Not blocking: or a FIFO would be waited for. A terminal must not become ours.
    let how = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | wait.flags();
    let path = if name.as_bytes().is_empty() { b"." } else { name.as_bytes() };
    let file = match openat2(root, path, how, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::XDEV
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::ACCESS
            | Errno::PERM
            | Errno::NXIO
            | Errno::NODEV
            | Errno::INVAL
            | Errno::ILSEQ,
        ) => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let stat = fstat(file.as_fd())?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Found::File(OpenFile { state: FileState::of(&stat), file }),
        FileType::Directory => Found::Directory,
        _ => Found::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn what(root: &OwnedFd, name: &str) -> &'static str {
        let name = FileName::of(name.as_bytes()).unwrap();
        match beneath(root, &name, Wait::Allowed).unwrap() {
            Found::File(_) => "file",
            Found::Directory => "directory",
            Found::Nothing => "nothing",
        }
    }

    #[test]
    fn only_regular_files_below_the_root_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let public = dir.path().join("public");
        fs::create_dir_all(public.join("a")).unwrap();
        fs::write(public.join("a/x.txt"), "x").unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        symlink("a/x.txt", public.join("inside")).unwrap();
        symlink("../secret", public.join("outside")).unwrap();
        symlink("/etc/passwd", public.join("absolute")).unwrap();
        symlink(public.join("a/x.txt"), public.join("absolute-inside")).unwrap();
        symlink("..", public.join("up")).unwrap();
        symlink("loop", public.join("loop")).unwrap();
        symlink("/proc/self/fd/0", public.join("magic")).unwrap();
        rustix::fs::mkfifoat(CWD, public.join("fifo"), Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(public.join("socket")).unwrap();
        // It may itself be a symbolic link.
        symlink(&public, dir.path().join("link")).unwrap();
        for place in [&public, &dir.path().join("link")] {
            let root = root(place, Wait::Allowed).unwrap();
            for (name, expected) in [
                ("a/x.txt", "file"),
                ("inside", "file"),
                ("a", "directory"),
                ("", "directory"),
                ("a/x.txt/y", "nothing"),
                ("missing", "nothing"),
                ("outside", "nothing"),
                ("absolute", "nothing"),
                ("absolute-inside", "nothing"),
                ("up/secret", "nothing"),
                ("up", "nothing"),
                ("loop", "nothing"),
                ("magic", "nothing"),
                ("fifo", "nothing"),
                ("socket", "nothing"),
                (&"n".repeat(256), "nothing"),
                (&"n/".repeat(1500), "nothing"),
            ] {
                assert_eq!(what(&root, name), expected, "{name}");
            }
        }
    }

    #[test]
    fn what_the_kernel_knows_is_opened_without_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "x").unwrap();
        let root = root(dir.path(), Wait::Never).unwrap();
        let name = FileName::of(b"x").unwrap();
        assert!(matches!(beneath(&root, &name, Wait::Never), Ok(Found::File(_))));
    }

    #[test]
    fn an_entity_tag_changes_with_the_content_even_if_the_dates_are_set() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path(), Wait::Allowed).unwrap();
        let etag = |content: &str| {
            let path = dir.path().join("x");
            let _ = fs::remove_file(&path);
            fs::write(&path, content).unwrap();
            fs::File::open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
            let name = FileName::of(b"x").unwrap();
            let Found::File(file) = beneath(&root, &name, Wait::Allowed).unwrap() else { panic!() };
            assert_eq!(file.state.modified(), UNIX_EPOCH);
            (file.state.etag(), file.state.etag())
        };
        let (first, again) = etag("one");
        assert_eq!(first, again);
        // The clock of a file system ticks every few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        assert_ne!(first, etag("two").0);
    }
}
