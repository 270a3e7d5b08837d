//! Names of services.

use super::Service;
use crate::import::nginx::Target;

/// The most characters of a service's name, with room for a number.
const MAX_NAME: usize = 56;

/// Words that name no app.
const EMPTY: [&str; 12] = [
    "blue",
    "green",
    "backend",
    "backends",
    "upstream",
    "server",
    "servers",
    "localhost",
    "active",
    "loopback",
    "127",
    "host",
];

/// Gives each service a name of its own.
pub(super) fn name(services: &mut [Service]) {
    let mut taken: Vec<String> = Vec::new();
    for service in services {
        let base = base(service);
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let free = std::iter::once(base.clone()).chain(numbered).find(|name| !taken.contains(name));
        service.name = free.unwrap_or(base);
        taken.push(service.name.clone());
    }
}

fn base(service: &Service) -> String {
    let from_target = match &service.target {
        Target::Upstream(name) => word(name),
        Target::Address(address) if address.starts_with("unix:") => {
            let file = address.rsplit('/').next().unwrap_or_default();
            word(file.split('.').next().unwrap_or_default())
        }
        Target::Address(address) => {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            if host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[') {
                String::new()
            } else {
                word(host.split('.').next().unwrap_or_default())
            }
        }
    };
    let from_path = word(service.prefix.trim_matches('/').split('/').next_back().unwrap_or_default());
    let parts = [from_target, from_path];
    parts.into_iter().find(|part| !part.is_empty()).unwrap_or_else(|| "app".to_owned())
}

/// A text as a name, without what says nothing.
fn word(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let parts = lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty() && !EMPTY.contains(part));
    parts
        .collect::<Vec<_>>()
        .join("-")
        .chars()
        .take(MAX_NAME)
        .collect::<String>()
        .trim_end_matches('-')
        .to_owned()
}
