//! `uh-proxy check`, like `nginx -t`. Reports every mistake, not only the first.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use uh_protocol::Address;
use uh_protocol::client::{Client, ClientError};

use super::exit::Exit;
use super::{Done, say, target};
use crate::config::{self, Config};
use crate::front::settings::Settings;
use crate::front::worker;
use crate::lock::{self, LockError};
use crate::tls;
use crate::tls::server::TlsError;
use uh_system::plain;

pub(super) fn check(path: &Path) -> Done {
    let config = config::load(path).with_context(|| format!("cannot use {}", path.display()))?;
    let mut faults = Vec::new();
    let (serving, unknown) = addresses_of_a_running_one(&config);
    for address in &config.server.listen {
        try_bind("server.listen", *address, &serving, &mut faults);
    }
    if let Some(address) = config.server.metrics {
        try_bind("server.metrics", address, &serving, &mut faults);
    }
    for address in &config.server.listen_h2c {
        try_bind("server.listen_h2c", *address, &serving, &mut faults);
    }
    for address in &config.server.listen_tls {
        try_bind("server.listen_tls", *address, &serving, &mut faults);
    }
    certificates(&config, &mut faults);
    resolve(&config, &mut faults);
    // Other lock errors depend on the user, and uh-proxy may run as another one.
    if let Err(error @ LockError::OpenDirectory { .. }) = lock::check_directory(&config.server.state_file) {
        faults.push(format!("server.state_file: {error}"));
    }
    if let Err(error) = Settings::load(&config.server) {
        faults.push(error.to_string());
    }
    if !faults.is_empty()
        && let Some(reason) = unknown
    {
        faults.push(format!(
            "a running uh-proxy may be using these addresses, but it didn't report its status: {reason}"
        ));
    }
    if faults.is_empty() {
        let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
        let services = config.services.len();
        let plural = |count| if count == 1 { "" } else { "s" };
        let (s, b) = (plural(services), plural(backends));
        say(format_args!("{}: ok ({services} service{s}, {backends} backend{b})", path.display()))?;
        return Ok(Exit::Done);
    }
    Err(anyhow::anyhow!("cannot use {}:\n  {}", path.display(), faults.join("\n  ")).into())
}

/// Checks that each certificate matches its key and is valid now, and that each host redirected to HTTPS has a certificate.
fn certificates(config: &Config, faults: &mut Vec<String>) {
    let Some(tls) = &config.server.tls else { return };
    let checked = match tls::server::check(tls) {
        Ok(checked) => checked,
        Err(TlsError::Certificates(errors)) => {
            faults.extend(errors.iter().map(|(key, error)| format!("{key}: {}", plain(error))));
            return;
        }
        Err(error) => return faults.push(format!("server.tls: {}", plain(&error))),
    };
    let now = Timestamp::now();
    for (index, certificate) in checked.certificates().iter().enumerate() {
        if let Err(error) = certificate.check_dates(now) {
            faults.push(format!("server.tls.certificates[{index}]: {error}"));
        }
    }
    for service in config.services.iter().filter(|service| service.redirect_https) {
        for host in service.hosts.iter().filter(|host| !checked.serves(host)) {
            faults.push(format!(
                "services.{}: {host} is redirected to HTTPS, but no certificate covers it; add one, or set redirect_https = false",
                service.name
            ));
        }
    }
}

/// The addresses bound by a running uh-proxy with the same admin socket, which don't count as taken; and why it didn't
/// report them, if it didn't.
fn addresses_of_a_running_one(config: &Config) -> (Vec<String>, Option<String>) {
    let asked = target::call(async { Ok(Client::new(&config.server.admin_socket).status().await) });
    match asked {
        Ok(Ok(status)) => {
            let proxy = status.proxy;
            (
                proxy
                    .listen
                    .into_iter()
                    .chain(proxy.listen_tls)
                    .chain(proxy.listen_h2c)
                    .chain(proxy.metrics)
                    .collect(),
                None,
            )
        }
        Ok(Err(ClientError::NoProxy { .. })) => (Vec::new(), None),
        Ok(Err(error)) => (Vec::new(), Some(error.to_string())),
        Err(failed) => (Vec::new(), Some(failed.message())),
    }
}

fn try_bind(key: &str, address: SocketAddr, serving: &[String], faults: &mut Vec<String>) {
    match worker::bind(address) {
        Err(error) if !serving.contains(&address.to_string()) => {
            faults.push(format!("{key}: {address}: {error}"));
        }
        _ => {}
    }
}

fn resolve(config: &Config, faults: &mut Vec<String>) {
    for service in &config.services {
        for backend in &service.backends {
            for endpoint in &backend.endpoints {
                let Address::Name(host, port) = endpoint else { continue };
                let found = (host.as_str(), *port).to_socket_addrs();
                let reason = match found.map(|mut found| found.next()) {
                    Ok(Some(_)) => continue,
                    Ok(None) => "the name doesn't resolve to an address".to_owned(),
                    Err(error) => error.to_string(),
                };
                let key = format!("services.{}.backends.{}.endpoints", service.name, backend.name);
                faults.push(format!("{key}: {endpoint}: {reason}"));
            }
        }
    }
}
