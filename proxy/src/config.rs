//! Configuration: a TOML file → checked values. Every mistake in a file is reported at once, each with its key; an
//! unknown key is a mistake; a malformed value is never replaced by a default.
//!
//! [`load`] reads a file, [`parse`] a text; the rest of the program works with the checked values.

mod acme;
pub(crate) mod changes;
mod compress;
mod files;
mod headers;
mod limits;
mod paths;
mod preview;
mod previous;
mod rate;
mod request_buffers;
mod server;
mod service;
mod split;
mod sticky;
mod timeouts;
mod tls;

use std::path::Path;

pub use acme::{Acme, AcmeChallenge, can_be_certified};
pub use files::Files;
pub use limits::Limits;
pub(crate) use paths::{EditsOf, edit_mistake};
pub use paths::{
    FixedAnswer, HeaderEdits, MAX_REQUEST_EDITS, PathId, PathRedirect, PathRules, PathSettings, Replacement,
    Reply,
};
pub use preview::PreviewSettings;
pub use previous::{AskPrevious, DeploymentIds};
pub use rate::{Quota, Rate};
pub use request_buffers::{RequestBuffer, RequestBuffers};
pub use server::{AccessLog, AccessLogFormat, LogFormat, Server, ServerLimits};
pub(crate) use service::is_for;
pub use service::{
    HealthCheck, MAX_ENDPOINTS, MaintenanceBypass, Resolve, Retries, SecretField, Service, TunnelsAtDrain,
};
pub use split::SplitSettings;
pub use sticky::Sticky;
pub use timeouts::Timeouts;
pub use tls::{CertificateFiles, Hsts, Tls, TlsVersion};
use uh_settings::Section;
pub use uh_settings::{ConfigError, Mistake, Mistakes, read};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The settings of the process.
    pub server: Server,
    /// At least one, in file order.
    pub services: Vec<Service>,
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file can't be read, is not TOML, or has mistakes.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    parse(&read(path)?).map_err(|error| error.in_file(path))
}

/// Checks a configuration.
///
/// # Errors
/// It is not TOML, or has mistakes.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    uh_settings::parse(text, Path::new(""), |root| {
        let server = server::server(&mut root.section("server"));
        let redirect = server.tls.as_ref().is_some_and(|tls| tls.redirect);
        let has_services = root.has("services");
        let services: Vec<Service> = root
            .sections("services")
            .into_iter()
            .filter_map(|(name, section)| service::service(&name, section, redirect))
            .collect();
        check_services(root, has_services, &services);
        request_buffers::check(root, &server.request_buffers, &services);
        acme::check_hosts(root, server.acme.as_ref(), &services);
        Config { server, services }
    })
}

fn check_services(root: &Section, has_services: bool, services: &[Service]) {
    if !has_services {
        root.mistake("services", "missing: configure at least one, such as [services.app]");
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
                let reason = format!("already handles {host} with path {}", service.path_prefix);
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
