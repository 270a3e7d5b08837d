//! Configuration: a TOML file → checked values. Every mistake in a file is reported at once, each with its key; an
//! unknown key is a mistake; nothing malformed is ever replaced by a default.
//!
//! [`load`] reads a file, [`parse`] a text; the values here are what the rest of the program works with. Relative
//! paths are relative to the file's directory.

mod containers;
mod sections;

use std::path::{Path, PathBuf};

pub use containers::{ComposeSettings, DockerSettings, Pull, Restart};
pub use sections::{
    BackendConfig, Deploy, Gate, Hooks, Identity, Monitor, Notice, ProcessSettings, ProxyFiles,
    RuntimeConfig, Secrets, Validate,
};
use uh_protocol::BackendName;
pub use uh_settings::{ConfigError, Mistake, Mistakes};

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
    /// What is no secret.
    pub secrets: Secrets,
}

impl Config {
    /// The backend of this name.
    #[must_use]
    pub fn backend(&self, name: &BackendName) -> Option<&BackendConfig> {
        self.backends.iter().find(|backend| backend.name == *name)
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file can't be read, is not TOML, or has mistakes.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = uh_settings::read(path)?;
    let path = std::path::absolute(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&text, path.parent().unwrap_or(Path::new("/"))).map_err(|error| error.in_file(&path))
}

/// Checks a configuration that lies in this directory.
///
/// # Errors
/// It is not TOML, or has mistakes.
pub fn parse(text: &str, directory: &Path) -> Result<Config, ConfigError> {
    uh_settings::parse(text, directory, |root| Config {
        directory: directory.to_owned(),
        deploy: sections::deploy(&mut root.section("deploy")),
        backends: sections::backends(root),
        runtime: sections::runtime(&mut root.section("runtime")),
        gate: sections::gate(&mut root.section("health")),
        monitor: sections::monitor(&mut root.section("monitor")),
        validate: sections::validate(&mut root.section("validate")),
        hooks: sections::hooks(&mut root.section("hooks")),
        notice: sections::notice(&mut root.section("notice")),
        secrets: sections::secrets(&mut root.section("secrets")),
    })
}

#[cfg(test)]
mod tests;
