//! Static files of a backend, served by uh-proxy itself: which file a request means, and the answer with it.
//!
//! A file belongs to a backend: its root has the name of the backend in it, and a request holds a lease on that backend
//! while its file is sent. So HTML and assets change together, in the one step of a switch.
//!
//! Nothing here waits for the disk on a worker's thread. What the kernel has in memory is opened and read at once; the
//! rest is left to a thread that may wait.

mod head;
mod media_type;
mod name;
mod open;
pub(super) mod source;

use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::task::JoinHandle;

pub(super) use head::{FileAnswer, answer};
use name::FileName;
use open::{Found, OpenFile, Wait};

use super::answer::Form;
use crate::config::Files;
use uh_http1::accept::{Codings, ContentCoding, codings};

/// The search for the file that a request means, without the request: another thread may carry it out.
#[derive(Debug, Clone)]
pub(super) struct FileSearch {
    root: Arc<Path>,
    name: FileName,
    /// Which stored codings the client accepts; none if there are none.
    codings: Codings,
    /// Answers with stored codings depend on `Accept-Encoding`.
    varies: bool,
    /// The page of an app that routes in the browser, for a navigation that means no file.
    page: Option<FileName>,
}

/// What a search has found.
#[derive(Debug)]
pub(super) enum FileFound {
    File(SelectedFile),
    /// A directory with an index, without its final slash.
    Slash,
    Nothing,
    /// The root itself can't be opened.
    NoRoot(Errno),
}

/// The file that answers a request.
#[derive(Debug)]
pub(super) struct SelectedFile {
    opened: OpenFile,
    media_type: &'static str,
    coding: Option<ContentCoding>,
    varies: bool,
}

/// A search that is over, or is carried out by another thread.
pub(super) enum FileSearching {
    Done(Result<FileFound, Errno>),
    Elsewhere(JoinHandle<Result<FileFound, Errno>>),
}

impl FileSearch {
    /// For a request with this head, and this path below what its rule matches. `None`: the path names no file.
    pub(super) fn of(files: &Files, root: &Arc<Path>, head: &[u8], path: &[u8]) -> Option<Self> {
        let name = FileName::of(path)?;
        let name = if name.is_directory() { name.index() } else { name };
        let page = files.spa.as_ref().filter(|_| Form::preferred(head) == Form::Html);
        Some(Self {
            root: Arc::clone(root),
            name,
            codings: if files.precompressed { codings(head) } else { Codings::default() },
            varies: files.precompressed,
            page: page.and_then(|page| FileName::of(page.as_bytes())),
        })
    }

    /// Searches: at once if the kernel has in memory what it takes.
    pub(super) fn start(self) -> FileSearching {
        match self.find(Wait::Never) {
            Err(Errno::AGAIN) => {
                FileSearching::Elsewhere(tokio::task::spawn_blocking(move || self.find(Wait::Allowed)))
            }
            done => FileSearching::Done(done),
        }
    }

    fn find(&self, wait: Wait) -> Result<FileFound, Errno> {
        let root = match open::root(&self.root, wait) {
            Ok(root) => root,
            Err(error @ (Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(error),
            Err(error) => return Ok(FileFound::NoRoot(error)),
        };
        let select = |name: &FileName| self.select(&root, name, wait);
        match select(&self.name)? {
            FileFound::Nothing => self.page.as_ref().map_or(Ok(FileFound::Nothing), select),
            found => Ok(found),
        }
    }

    /// The file of this name, as the client likes it best.
    fn select(&self, root: &std::os::fd::OwnedFd, name: &FileName, wait: Wait) -> Result<FileFound, Errno> {
        let selected = |opened, coding| {
            let media_type = media_type::of_ending(name.ending());
            FileFound::File(SelectedFile { opened, media_type, coding, varies: self.varies })
        };
        for coding in self.codings.into_iter().flatten() {
            if let Found::File(opened) = open::beneath(root, &name.with(ending(coding)), wait)? {
                return Ok(selected(opened, Some(coding)));
            }
        }
        Ok(match open::beneath(root, name, wait)? {
            Found::File(opened) => selected(opened, None),
            Found::Directory if matches!(open::beneath(root, &name.index(), wait)?, Found::File(_)) => {
                FileFound::Slash
            }
            Found::Directory | Found::Nothing => FileFound::Nothing,
        })
    }
}

/// How the file's name ends that holds another one in this coding.
fn ending(coding: ContentCoding) -> &'static str {
    match coding {
        ContentCoding::Brotli => ".br",
        ContentCoding::Zstd => ".zst",
        ContentCoding::Gzip => ".gz",
    }
}
