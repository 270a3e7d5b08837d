//! A build context for the engine: a tar archive of a directory, without what `.dockerignore` excludes.
//!
//! It is packed while it is sent, with a bounded number of chunks in between, so a large context needs little memory.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::Stream;
use globset::{GlobBuilder, GlobMatcher};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use crate::files;

/// How many chunks wait to be sent to the engine.
const CHUNKS: usize = 8;

/// The size of one.
const CHUNK_BYTES: usize = 64 << 10;

/// Packs a directory. The task returns the reason if something can't be packed.
pub(super) fn stream(
    directory: &Path,
    dockerfile: &str,
) -> (impl Stream<Item = io::Result<Bytes>> + Send + 'static, JoinHandle<Result<(), String>>) {
    let (sender, mut chunks): (Sender<io::Result<Bytes>>, Receiver<io::Result<Bytes>>) = channel(CHUNKS);
    let (directory, dockerfile) = (directory.to_owned(), dockerfile.to_owned());
    let packing = tokio::task::spawn_blocking(move || {
        let packed = pack(&directory, &dockerfile, Chunks { sender: sender.clone(), pending: Vec::new() });
        packed.map_err(|error| {
            let _ = sender.blocking_send(Err(io::Error::other("can't pack the build context")));
            format!("can't pack the build context {}: {}", directory.display(), crate::chain(&error))
        })
    });
    (futures_util::stream::poll_fn(move |cx| chunks.poll_recv(cx)), packing)
}

/// Writes chunks to a channel. Fails once the receiver is gone.
struct Chunks {
    sender: Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = Bytes::from(std::mem::take(&mut self.pending));
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        if chunk.is_empty() { Ok(()) } else { self.sender.blocking_send(Ok(chunk)).map_err(gone) }
    }
}

fn pack(directory: &Path, dockerfile: &str, to: impl Write) -> io::Result<()> {
    let ignored = Ignored::read(directory, dockerfile)?;
    let mut tar = tar::Builder::new(to);
    tar.follow_symlinks(false);
    // The same files result in the same archive, no matter who packs them and when.
    tar.mode(tar::HeaderMode::Deterministic);
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let mut entries =
            std::fs::read_dir(directory.join(&folder))?.collect::<io::Result<Vec<std::fs::DirEntry>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (name, kind) = (folder.join(entry.file_name()), entry.file_type()?);
            let skipped = ignored.skips(&name);
            if kind.is_dir() && (!skipped || ignored.has_exceptions) {
                folders.push(name.clone());
            }
            let fits = kind.is_file() || kind.is_dir() || kind.is_symlink();
            if !skipped && fits {
                let path = entry.path();
                let added = if kind.is_dir() {
                    tar.append_dir(&name, &path)
                } else if kind.is_symlink() {
                    tar.append_path_with_name(&path, &name)
                } else {
                    append_file(&mut tar, &path, &name)
                };
                added.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            }
        }
    }
    tar.into_inner()?.flush()
}

/// Adds a file with its current length: a log that grows meanwhile must not corrupt the next entry.
fn append_file(tar: &mut tar::Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(&found, tar::HeaderMode::Deterministic);
    tar.append_data(&mut header, name, file.chain(io::repeat(0)).take(found.len()))
}

/// The largest `.dockerignore`.
const MAX_IGNORE_BYTES: usize = 1 << 20;

/// The rules of a `.dockerignore`: the last pattern that matches a path or one of its parents decides
/// (<https://docs.docker.com/build/concepts/context/#dockerignore-files>).
struct Ignored {
    rules: Vec<(GlobMatcher, bool)>,
    has_exceptions: bool,
    always: [PathBuf; 2],
}

impl Ignored {
    fn read(directory: &Path, dockerfile: &str) -> io::Result<Self> {
        let text = match files::read_foreign(&directory.join(".dockerignore"), MAX_IGNORE_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => String::from_utf8(other?).map_err(|_| io::Error::other(".dockerignore isn't UTF-8"))?,
        };
        Self::parse(&text, dockerfile)
    }

    fn parse(text: &str, dockerfile: &str) -> io::Result<Self> {
        let mut rules = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (pattern, skip) = line.strip_prefix('!').map_or((line, true), |rest| (rest.trim(), false));
            let pattern = pattern.trim_start_matches("./").trim_matches('/');
            let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
            let glob = glob.map_err(|e| io::Error::other(format!(".dockerignore: {e}")))?;
            rules.push((glob.compile_matcher(), skip));
        }
        let has_exceptions = rules.iter().any(|(_, skip)| !skip);
        // The engine needs these two in any case.
        let always = [PathBuf::from(dockerfile), PathBuf::from(".dockerignore")];
        Ok(Self { rules, has_exceptions, always })
    }

    fn skips(&self, path: &Path) -> bool {
        if self.always.iter().any(|kept| kept.starts_with(path)) {
            return false;
        }
        let applies = |glob: &GlobMatcher| path.ancestors().any(|path| glob.is_match(path));
        self.rules.iter().rev().find(|(glob, _)| applies(glob)).is_some_and(|(_, skip)| *skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_matches_decides() {
        let ignored = Ignored::parse(
            "# comment\nnode_modules\n/target/\n*.log\n**/*.tmp\n!keep.log\ndocs/*\n!docs/README.md\nDockerfile\n",
            "Dockerfile",
        )
        .unwrap();
        for skipped in
            ["node_modules", "node_modules/a/b.js", "target/x", "a.log", "a.tmp", "a/b/c.tmp", "docs/x.md"]
        {
            assert!(ignored.skips(Path::new(skipped)), "{skipped} was kept");
        }
        for kept in
            ["src/main.rs", "keep.log", "a/b.log", "docs/README.md", "Dockerfile", "docs", "a/target/x"]
        {
            assert!(!ignored.skips(Path::new(kept)), "{kept} was skipped");
        }
    }

    #[test]
    fn the_archive_holds_what_is_not_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("src/deep")).unwrap();
        std::fs::create_dir_all(root.join("target")).unwrap();
        for name in ["Dockerfile", ".dockerignore", "src/deep/a.rs", "target/big"] {
            std::fs::write(root.join(name), "target\n").unwrap();
        }
        std::os::unix::fs::symlink("Dockerfile", root.join("link")).unwrap();
        let mut bytes = Vec::new();
        pack(root, "Dockerfile", &mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        names.sort();
        assert_eq!(names, [".dockerignore", "Dockerfile", "link", "src", "src/deep", "src/deep/a.rs"]);
    }

    #[test]
    fn a_growing_file_does_not_corrupt_the_archive() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("a.log");
        std::fs::write(&log, "x").unwrap();
        std::fs::write(directory.path().join("b.txt"), "intact").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = File::options().append(true).open(&log).unwrap();
                // Bounded: a few hundred megabytes at most.
                for _ in 0..100_000 {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    file.write_all(&[b'x'; 4096]).unwrap();
                }
            });
            for _ in 0..20 {
                let mut bytes = Vec::new();
                pack(directory.path(), "Dockerfile", &mut bytes).unwrap();
                let mut archive = tar::Archive::new(bytes.as_slice());
                let mut last = String::new();
                for entry in archive.entries().unwrap() {
                    last.clear();
                    let mut entry = entry.unwrap();
                    if entry.path().unwrap().ends_with("b.txt") {
                        entry.read_to_string(&mut last).unwrap();
                    }
                }
                assert_eq!(last, "intact");
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_missing_directory_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reason = runtime.block_on(async {
            let (_body, packing) = stream(Path::new("/nowhere/at/all"), "Dockerfile");
            packing.await.unwrap().unwrap_err()
        });
        assert!(reason.contains("/nowhere/at/all"), "{reason}");
    }
}
