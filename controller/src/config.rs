//! Configuration: a TOML file → checked values. Every mistake in a file is reported at once, each with its key; an
//! unknown key is a mistake; nothing malformed is ever replaced by a default.
//!
//! [`load`] reads a file, [`parse`] a text; the values here are what the rest of the program works with. Relative
//! paths are relative to the file's directory.

mod containers;
mod reader;
mod sections;
pub mod units;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use containers::{ComposeSettings, DockerSettings, Pull, Restart};
use reader::Section;
pub use sections::{
    BackendConfig, Deploy, Gate, Hooks, Identity, Monitor, Notice, ProcessSettings, ProxyFiles,
    RuntimeConfig, Validate,
};
use uh_protocol::BackendName;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the file is: relative paths start here, and so do the commands it names.
    pub directory: PathBuf,
    /// The front door, the state directory, and how long things may take.
    pub deploy: Deploy,
    /// At least two, in the order of the file.
    pub backends: Vec<BackendConfig>,
    /// How copies of the app are run.
    pub runtime: RuntimeConfig,
    /// When a candidate counts as proven.
    pub gate: Gate,
    /// What `monitor` watches for.
    pub monitor: Monitor,
    /// What `validate` asks for.
    pub validate: Validate,
    /// Commands to run on the way.
    pub hooks: Hooks,
    /// Whom to tell how it ended.
    pub notice: Notice,
}

impl Config {
    /// The backend of this name.
    #[must_use]
    pub fn backend(&self, name: &BackendName) -> Option<&BackendConfig> {
        self.backends.iter().find(|backend| backend.name == *name)
    }
}

/// Why a configuration can't be used.
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
    /// The full key: `deploy.drain_timeout`.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} mistake{} in the configuration:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {}: {}", mistake.key, mistake.reason))
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file can't be read, is not TOML, or has mistakes.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let path = std::path::absolute(path).map_err(unreadable)?;
    parse(&text, path.parent().unwrap_or(Path::new("/")))
}

/// Checks a configuration that lies in this directory.
///
/// # Errors
/// It is not TOML, or has mistakes.
pub fn parse(text: &str, directory: &Path) -> Result<Config, ConfigError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
    let mut root = Section::root(table, directory);
    let mistakes = root.mistakes();
    let config = Config {
        directory: directory.to_owned(),
        deploy: sections::deploy(&mut root.section("deploy")),
        backends: sections::backends(&mut root),
        runtime: sections::runtime(&mut root.section("runtime")),
        gate: sections::gate(&mut root.section("health")),
        monitor: sections::monitor(&mut root.section("monitor")),
        validate: sections::validate(&mut root.section("validate")),
        hooks: sections::hooks(&mut root.section("hooks")),
        notice: sections::notice(&mut root.section("notice")),
    };
    drop(root);
    let mistakes = reader::collect(&mistakes);
    if mistakes.0.is_empty() { Ok(config) } else { Err(ConfigError::Mistakes(mistakes)) }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests;
