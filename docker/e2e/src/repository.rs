//! Paths of the shipped files.

use std::path::{Path, PathBuf};

/// The top folder of the repository.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// A file or folder in it.
#[must_use]
pub fn path(relative: &str) -> PathBuf {
    root().join(relative)
}
