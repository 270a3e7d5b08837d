//! Checks of `[files]`: that its source is there, that uh-deploy can write where uh-proxy serves the files, and that
//! there is room for one more copy.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::size;
use crate::assets::AssetsDir;
use crate::chain;
use crate::check::Check;
use crate::config::{Config, RuntimeConfig, ServedFiles};
use crate::runtime::Candidate;

/// How many files are counted, at most: a check must not take minutes.
const MAX_COUNTED: usize = 200_000;

pub(super) fn checks(config: &Config, candidate: &Candidate) -> Vec<Check> {
    let Some(files) = &config.files else { return Vec::new() };
    let to = files.to_of(&candidate.backend);
    vec![source(config, files, candidate), destination(&to), room(config, files, candidate, &to)]
}

/// The directory on this machine that the files come from; `None`: they come out of the image. The part from the first
/// `{version}` on is left out: that version doesn't exist yet.
fn local_source(config: &Config, files: &ServedFiles, candidate: &Candidate) -> Option<PathBuf> {
    if !matches!(config.runtime, RuntimeConfig::Process(_)) {
        return None;
    }
    let from = PathBuf::from(files.from_of(&candidate.backend, VERSION));
    let known = from.iter().take_while(|part| !part.to_string_lossy().contains(VERSION));
    Some(config.directory.join(known.collect::<PathBuf>()))
}

/// Stands for a version that isn't known yet.
const VERSION: &str = "{version}";

fn source(config: &Config, files: &ServedFiles, candidate: &Candidate) -> Check {
    let name = "Source of [files] exists";
    let from = files.from_of(&candidate.backend, VERSION);
    let Some(path) = local_source(config, files, candidate) else {
        return Check::passed(name, format!("{from}, in the image: a deploy checks it when it copies them"));
    };
    let remedy = "fix files.from, or put the files there";
    match fs::read_dir(&path) {
        Ok(_) => Check::passed(name, path.display().to_string()),
        Err(error) => Check::failed(name, format!("{}: {}", path.display(), chain(&error)), remedy),
    }
}

fn destination(to: &Path) -> Check {
    let name = "Destination of [files] writable";
    if let Err(error) = AssetsDir::new(to).demand_ours() {
        return Check::failed(name, chain(&error), "move it away, or change files.to");
    }
    let parent = existing(to.parent().unwrap_or(to));
    match rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Check::passed(name, to.display().to_string()),
        Err(error) => {
            let remedy = "run uh-deploy as a user who may write there, or change files.to";
            Check::failed(name, format!("{}: {}", parent.display(), chain(&error)), remedy)
        }
    }
}

/// The new files are copied before the old ones are removed.
fn room(config: &Config, files: &ServedFiles, candidate: &Candidate, to: &Path) -> Check {
    let name = "Space for [files] sufficient";
    let dir = existing(to);
    let free = match rustix::fs::statvfs(dir) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => {
            return Check::failed(name, format!("{}: {}", dir.display(), chain(&error)), "fix files.to");
        }
    };
    let free_text = format!("{} free at {}", size(free), dir.display());
    // What is to be copied, or else the largest of what was copied before.
    let from = files.from_of(&candidate.backend, VERSION);
    let source = local_source(config, files, candidate).filter(|_| !from.contains(VERSION));
    let places = config.backends.iter().map(|backend| files.to_of(&backend.name));
    let Some(need) = source.into_iter().chain(places).filter_map(|path| tree_size(&path).ok()).max() else {
        return Check::passed(name, format!("{free_text}; how much a version needs isn't known yet"));
    };
    let found = format!("{free_text}, a version needs {}", size(need));
    if free >= need {
        return Check::passed(name, found);
    }
    Check::failed(name, found, "free some space, or change files.to")
}

/// The path, or the nearest directory above it that exists: a deploy makes the others.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// What a directory takes on a disk, in bytes.
fn tree_size(directory: &Path) -> io::Result<u64> {
    let (mut total, mut counted) = (0_u64, 0);
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            counted += 1;
            if counted > MAX_COUNTED {
                return Err(io::Error::other("too many files to count"));
            }
            total = total.saturating_add(entry.metadata()?.blocks().saturating_mul(512));
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(total)
}
