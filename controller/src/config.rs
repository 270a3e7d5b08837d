//! Configuration: a TOML file → checked values. All mistakes in a file are reported at once, each with its key. An
//! unknown key is a mistake, and an invalid value never falls back to a default.
//!
//! [`load`] reads a file, [`parse`] a text. The rest of the program works with these values. Relative paths start at
//! the file's directory.

mod canary;
mod containers;
mod files;
mod release;
mod sections;

use std::path::{Path, PathBuf};

pub use canary::{CanaryPlan, CanaryStep, OnNotEnoughData};
pub use containers::{ComposeSettings, DockerSettings, Pull, Restart};
pub use files::ServedFiles;
pub use release::{ReleaseConfig, release};
pub use sections::{
    BackendConfig, Deploy, GateSettings, Hooks, IdentityCheck, Monitor, Notice, ProcessSettings, ProxyFiles,
    RuntimeConfig, Secrets, Validate,
};
use uh_protocol::BackendName;
pub use uh_settings::{ConfigError, Mistake, Mistakes};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file's directory: relative paths start here, and commands run here.
    pub directory: PathBuf,
    /// uh-proxy, the state directory, and time limits.
    pub deploy: Deploy,
    /// At least two, in the order of the file.
    pub backends: Vec<BackendConfig>,
    /// How instances of the app run.
    pub runtime: RuntimeConfig,
    /// The files that uh-proxy serves; `None`: none are copied.
    pub files: Option<ServedFiles>,
    /// The health gate of a candidate.
    pub gate: GateSettings,
    /// The trial of a new version on some clients; `None`: everybody gets it at once.
    pub canary: Option<CanaryPlan>,
    /// Thresholds of a watch.
    pub monitor: Monitor,
    /// What `validate` requires.
    pub validate: Validate,
    /// Commands to run during a deploy.
    pub hooks: Hooks,
    /// The webhook to notify.
    pub notice: Notice,
    /// What isn't secret.
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
/// The file can't be read, isn't TOML, or has mistakes.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = uh_settings::read(path)?;
    let path = std::path::absolute(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&text, path.parent().unwrap_or(Path::new("/"))).map_err(|error| error.in_file(&path))
}

/// Checks a configuration located in this directory.
///
/// # Errors
/// It isn't TOML, or has mistakes.
pub fn parse(text: &str, directory: &Path) -> Result<Config, ConfigError> {
    uh_settings::parse(text, directory, |root| Config {
        directory: directory.to_owned(),
        deploy: sections::deploy(&mut root.section("deploy")),
        backends: sections::backends(root),
        runtime: sections::runtime(&mut root.section("runtime")),
        files: files::files(root),
        gate: sections::gate(&mut root.section("health")),
        canary: canary::canary(root),
        monitor: sections::monitor(&mut root.section("monitor")),
        validate: sections::validate(&mut root.section("validate")),
        hooks: sections::hooks(&mut root.section("hooks")),
        notice: sections::notice(&mut root.section("notice")),
        secrets: sections::secrets(&mut root.section("secrets")),
    })
}

#[cfg(test)]
mod tests;
