//! Configuration: a TOML file → checked values. Every mistake in a file is reported at once, each with its key; an
//! unknown key is a mistake; nothing malformed is ever replaced by a default.
//!
//! [`load`] reads a file, [`parse`] a text; the values here are what the rest of the program works with.

pub mod changes;
mod headers;
mod network;
mod reader;
mod server;
mod service;
pub mod units;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use headers::{Headers, ServerField, Traceparent, Underscores};
pub use network::Network;
use reader::Section;
pub use server::{AccessLog, AccessLogFormat, LogFormat, Server, ServerLimits};
pub use service::{
    BackendConfig, HealthCheck, Limits, MAX_ENDPOINTS, MaintenanceBypass, Resolve, Retries, SecretField,
    Service, Timeouts, TunnelsAtDrain,
};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What concerns the process.
    pub server: Server,
    /// At least one, in the order of the file.
    pub services: Vec<Service>,
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
    /// The full key: `services.app.health.interval`.
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
    parse(&read(path)?)
}

/// Reads a configuration file, and checks nothing.
///
/// # Errors
/// The file can't be read.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })
}

/// Checks a configuration.
///
/// # Errors
/// It is not TOML, or has mistakes.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
    let mut root = Section::root(table);
    let mistakes = root.mistakes();
    let server = server::server(&mut root.section("server"));
    let has_services = root.has("services");
    let services: Vec<Service> = root
        .sections("services")
        .into_iter()
        .filter_map(|(name, section)| service::service(&name, section))
        .collect();
    check_services(&root, has_services, &services);
    drop(root);
    let mistakes = reader::collect(&mistakes);
    if mistakes.0.is_empty() { Ok(Config { server, services }) } else { Err(ConfigError::Mistakes(mistakes)) }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn check_services(root: &Section, has_services: bool, services: &[Service]) {
    if !has_services {
        root.mistake("services", "missing: at least one, as in [services.app]");
    }
    for (index, service) in services.iter().enumerate() {
        let hosts = if service.hosts.is_empty() { vec![String::new()] } else { service.hosts.clone() };
        for other in &services[..index] {
            let shared = hosts.iter().find(|host| {
                if other.hosts.is_empty() { host.is_empty() } else { other.hosts.contains(host) }
            });
            let prefix = |service: &Service| service.path_prefix.trim_end_matches('/').to_owned();
            if let Some(host) = shared.filter(|_| prefix(other) == prefix(service)) {
                let host = if host.is_empty() { "every host" } else { host };
                let reason = format!("takes {host} with path {} already", service.path_prefix);
                root.mistake(
                    &format!("services.{}", service.name),
                    format!("service {} {reason}", other.name),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
