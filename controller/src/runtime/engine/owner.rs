//! Identifies the containers that were started from one state directory, by an id stored in it. The path isn't
//! enough: two containers of the deploy tool may use the same one.
//!
//! ```text
//! STATE_DIR/id    created with the first container
//! ```

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::{Path, PathBuf};

use crate::files;
use crate::runtime::RuntimeError;

/// A state directory.
#[derive(Debug)]
pub(super) struct Owner {
    directory: PathBuf,
}

impl Owner {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()) }
    }

    /// Its path, for operators.
    pub(super) fn directory(&self) -> String {
        self.directory.display().to_string()
    }

    /// Its id; `None`: no container was ever started from it.
    pub(super) fn id(&self) -> Result<Option<String>, RuntimeError> {
        let path = self.path();
        let text = files::read(&path).map_err(|source| RuntimeError::File { path: path.clone(), source })?;
        Ok(text.map(|text| String::from_utf8_lossy(&text).trim().to_owned()).filter(|id| !id.is_empty()))
    }

    /// Its id, created if there is none yet.
    pub(super) fn id_or_new(&self) -> Result<String, RuntimeError> {
        if let Some(id) = self.id()? {
            return Ok(id);
        }
        let id = random();
        let path = self.path();
        files::make_directory(&self.directory)
            .and_then(|()| files::replace(&path, format!("{id}\n").as_bytes()))
            .map_err(|source| RuntimeError::File { path, source })?;
        Ok(id)
    }

    fn path(&self) -> PathBuf {
        self.directory.join("id")
    }
}

/// Needs to be unique, not secret: the standard library's hasher has a random seed.
fn random() -> String {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_keeps_its_id_and_no_two_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| Owner::new(&dir.path().join(name)));
        assert_eq!(one.id().unwrap(), None);
        let id = one.id_or_new().unwrap();
        assert_eq!(one.id_or_new().unwrap(), id);
        assert_eq!(one.id().unwrap(), Some(id.clone()));
        assert_ne!(two.id_or_new().unwrap(), id);
    }
}
