//! Mistakes in a file.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a configuration is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML; the message has line and column.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// It has mistakes.
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// All mistakes in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistakes(pub Vec<Mistake>);

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file's name, where it is known.
    pub file: Option<String>,
    /// The line of the key, or of the table that should contain it.
    pub line: Option<usize>,
    /// The full key: `services.app.health.interval`.
    pub key: String,
    /// What is wrong, and what is expected.
    pub reason: String,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} mistake{} in the configuration:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

/// `uh-proxy.toml:12: services.app.health.interval: …`
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        write!(f, "{}: {}", self.key, self.reason)
    }
}

impl ConfigError {
    /// The same error with the file's name in each mistake.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        if let Self::Mistakes(mistakes) = &mut self {
            let name = path.file_name().unwrap_or(path.as_os_str()).display().to_string();
            mistakes.0.iter_mut().for_each(|mistake| mistake.file = Some(name.clone()));
        }
        self
    }
}
