//! Imports a configuration of nginx: its text → directives (`syntax`, `files`) → what they mean (`read`) → services
//! (`plan`) → TOML (`write`). `table` says what happens to each directive, and `ledger` holds what happened to it.
//!
//! Nothing is dropped in silence: every directive is carried over, or is in the report with a reason.

mod files;
mod ledger;
mod nginx;
mod plan;
mod read;
mod syntax;
mod table;
mod values;
mod write;

use std::fmt;
use std::path::Path;

pub use files::LoadError;
pub use ledger::Note;
pub use table::Class;

use crate::config;

/// An imported configuration.
#[derive(Debug)]
pub struct Imported {
    /// The configuration for uh-proxy. `None`: nothing could be carried over.
    pub toml: Option<String>,
    /// Every directive, in order, included files at their place.
    pub notes: Vec<Note>,
    /// Where uh-proxy's defaults differ from nginx's.
    pub defaults: Vec<String>,
}

impl Imported {
    /// Whether requests are handled differently.
    #[must_use]
    pub fn changes_behaviour(&self) -> bool {
        self.toml.is_none() || self.notes.iter().any(|note| note.class == Class::Changes)
    }

    /// How many directives have this class.
    #[must_use]
    pub fn count(&self, class: Class) -> usize {
        self.notes.iter().filter(|note| note.class == class).count()
    }
}

/// `nginx.conf:12: auth_basic Admin: changes behaviour: there is no authentication`
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.directive, self.class)?;
        if self.why.is_empty() { Ok(()) } else { write!(f, ": {}", self.why) }
    }
}

/// Why a configuration isn't imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It can't be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The importer has a defect.
    #[error(
        "the imported configuration isn't valid, which is a defect of the importer; please report it: {reason}\n{toml}"
    )]
    Defect {
        /// What is wrong with it.
        reason: String,
        /// The configuration.
        toml: String,
    },
}

/// Imports a file.
///
/// # Errors
/// The file, or one that it includes, can't be read.
pub fn import(path: &Path) -> Result<Imported, ImportError> {
    let source = files::load(path)?;
    let mut nginx = read::read(&source);
    let site = plan::plan(&mut nginx);
    let notes = nginx.ledger.notes(&source.root);
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let defaults = site.defaults(&nginx.keys);
    if site.services.is_empty() {
        return Ok(Imported { toml: None, notes, defaults });
    }
    let toml = write::write(&name, &nginx.keys, &site, &notes, &defaults);
    if let Err(error) = config::parse(&toml) {
        return Err(ImportError::Defect { reason: error.to_string(), toml });
    }
    Ok(Imported { toml: Some(toml), notes, defaults })
}

#[cfg(test)]
mod tests;
