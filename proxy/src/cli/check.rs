//! `uh-proxy check`, like `nginx -t`. Reports every mistake, not only the first.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use uh_protocol::Address;
use uh_protocol::client::{Client, ClientError};

use super::exit::Exit;
use super::{Done, complain, say, target};
use crate::acme::{self, Plan};
use crate::config::{self, Config};
use crate::front::listener;
use crate::front::settings::Settings;
use crate::keeper;
use crate::lock::{self, LockError};
use crate::systemd;
use crate::tls;
use crate::tls::server::TlsError;
use uh_system::plain;

pub(super) fn check(path: &Path) -> Done {
    let config = config::load(path).with_context(|| format!("cannot use {}", path.display()))?;
    let mut faults = Vec::new();
    let (mut serving, unknown) = addresses_of_a_running_one(&config);
    let held = systemd::socket_unit().unwrap_or_default();
    // systemd has bound them for uh-proxy, whether it runs or not.
    serving.extend(held.iter().map(ToString::to_string));
    socket_unit(&config, &held, &mut faults);
    let kept = sockets_of_the_keeper(&config, &held, &mut faults);
    serving.extend(kept.iter().map(ToString::to_string));
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
    if let Some(settings) = &config.server.acme {
        faults.extend(acme::check(settings).iter().map(|error| plain(error).to_string()));
    }
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
        for address in only_ours(&config, &held) {
            say(format_args!(
                "note: {address} isn't in {}, so clients are refused there while uh-proxy restarts; add it to the unit",
                systemd::SOCKET_UNIT
            ))?;
        }
        say(format_args!("{}: ok ({services} service{s}, {backends} backend{b})", path.display()))?;
        return Ok(Exit::Done);
    }
    Err(anyhow::anyhow!("cannot use {}:\n  {}", path.display(), faults.join("\n  ")).into())
}

/// Compares the sockets that systemd holds for uh-proxy with the configuration. uh-proxy doesn't start with a socket that it
/// wouldn't serve.
fn socket_unit(config: &Config, held: &[SocketAddr], faults: &mut Vec<String>) {
    let is_configured = |address| clients(config).chain(&config.server.metrics).any(|other| other == address);
    for address in held.iter().filter(|address| !is_configured(*address)) {
        faults.push(format!(
            "{}: {address} is in none of server.listen, server.listen_tls, server.listen_h2c and server.metrics; add it there, or remove it from the unit",
            systemd::SOCKET_UNIT
        ));
    }
}

/// Compares the configuration with what uh-keeper holds, which is returned. An address of the keeper that nobody serves is a
/// fault, too: its clients would wait without an answer.
fn sockets_of_the_keeper(
    config: &Config,
    by_systemd: &[SocketAddr],
    faults: &mut Vec<String>,
) -> Vec<SocketAddr> {
    let Some(path) = &config.server.keeper else { return Vec::new() };
    match keeper::look(path) {
        Err(error) => {
            faults.push(format!("server.keeper: {}", plain(&error)));
            // Binding them says nothing: the keeper may hold them.
            clients(config).chain(&config.server.metrics).copied().collect()
        }
        Ok(answer) => {
            let held: Vec<SocketAddr> = answer.held.iter().map(|(address, _)| *address).collect();
            compare_with_keeper(config, &held, &answer.missing, by_systemd, faults);
            clients(config).copied().chain(held).collect()
        }
    }
}

fn compare_with_keeper(
    config: &Config,
    held: &[SocketAddr],
    missing: &[(SocketAddr, String)],
    by_systemd: &[SocketAddr],
    faults: &mut Vec<String>,
) {
    let server = &config.server;
    for (key, addresses) in [
        ("server.listen", &server.listen),
        ("server.listen_tls", &server.listen_tls),
        ("server.listen_h2c", &server.listen_h2c),
    ] {
        for address in
            addresses.iter().filter(|address| !held.contains(address) && !by_systemd.contains(address))
        {
            faults.push(match missing.iter().find(|(missing, _)| missing == address) {
                Some((_, reason)) => format!("{key}: uh-keeper cannot bind {address}: {reason}"),
                None => format!(
                    "{key}: uh-keeper doesn't hold {address} (it holds {}): start uh-keeper with {address} too, or remove it here",
                    keeper::list(held.iter())
                ),
            });
        }
    }
    let is_configured = |address| clients(config).chain(&server.metrics).any(|other| other == address);
    for address in held.iter().filter(|address| !is_configured(*address)) {
        faults.push(format!(
            "server.keeper: uh-keeper holds {address}, which is in none of server.listen, server.listen_tls, server.listen_h2c and server.metrics, so its clients wait without an answer: add it there, or remove it from uh-keeper's arguments"
        ));
    }
}

/// Names the addresses for clients that systemd doesn't hold, although it holds others.
fn only_ours(config: &Config, held: &[SocketAddr]) -> Vec<SocketAddr> {
    clients(config).filter(|address| !held.is_empty() && !held.contains(address)).copied().collect()
}

/// The addresses that clients connect to.
fn clients(config: &Config) -> impl Iterator<Item = &SocketAddr> {
    let server = &config.server;
    server.listen.iter().chain(&server.listen_tls).chain(&server.listen_h2c)
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
        if let Some(files) = certificate.files().filter(|_| certificate.is_key_exposed()) {
            let key = files.key.display();
            complain(format_args!("warning: every local user can read {key}; run chmod o-r on it"));
        }
        if let Err(error) = certificate.check_dates(now) {
            faults.push(format!("server.tls.certificates[{index}]: {error}"));
        }
    }
    let plan = Plan::of(config, &checked);
    let is_planned = |host: &str| plan.as_ref().is_some_and(|plan| plan.covers(host));
    for service in config.services.iter().filter(|service| service.redirect_https) {
        for host in service.hosts.iter().filter(|host| !checked.serves(host) && !is_planned(host)) {
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
    match listener::bind(address) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_unit_and_the_configuration_must_agree() {
        let text = "[server]\nlisten = [\"0.0.0.0:80\"]\nlisten_tls = [\"0.0.0.0:443\"]\nmetrics = \"127.0.0.1:9145\"\n\
                    [server.tls]\ncertificates = [{ cert = \"/c\", key = \"/k\" }]\n[services.app]\nactive = \"blue\"\n\
                    [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n";
        let config = config::parse(text).unwrap();
        let compare = |held: &[&str]| {
            let held: Vec<SocketAddr> = held.iter().map(|address| address.parse().unwrap()).collect();
            let mut faults = Vec::new();
            socket_unit(&config, &held, &mut faults);
            (faults, only_ours(&config, &held))
        };
        assert_eq!(compare(&[]), (vec![], vec![]), "no unit");
        assert_eq!(compare(&["0.0.0.0:80", "127.0.0.1:9145", "0.0.0.0:443"]), (vec![], vec![]));
        let (faults, only_ours) = compare(&["0.0.0.0:80", "[::]:443"]);
        assert!(
            faults.len() == 1 && faults[0].contains("uh-proxy.socket: [::]:443 is in none of"),
            "{faults:?}"
        );
        assert_eq!(only_ours, ["0.0.0.0:443".parse().unwrap()]);
    }

    #[test]
    fn the_keeper_and_the_configuration_must_agree() {
        let text = "[server]\nlisten = [\"0.0.0.0:80\"]\nlisten_h2c = [\"0.0.0.0:81\"]\nmetrics = \"127.0.0.1:9145\"\n\
                    keeper = \"/k\"\n[services.app]\nactive = \"blue\"\n\
                    [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n";
        let config = config::parse(text).unwrap();
        let compare = |held: &[&str], missing: &[&str], by_systemd: &[&str]| {
            let parse = |texts: &[&str]| -> Vec<SocketAddr> {
                texts.iter().map(|address| address.parse().unwrap()).collect()
            };
            let missing: Vec<_> =
                parse(missing).into_iter().map(|address| (address, "in use".to_owned())).collect();
            let mut faults = Vec::new();
            compare_with_keeper(&config, &parse(held), &missing, &parse(by_systemd), &mut faults);
            faults
        };
        assert!(compare(&["0.0.0.0:80", "0.0.0.0:81"], &[], &[]).is_empty(), "metrics may be bound here");
        assert!(compare(&["0.0.0.0:80", "0.0.0.0:81", "127.0.0.1:9145"], &[], &[]).is_empty());
        assert!(compare(&["0.0.0.0:80"], &[], &["0.0.0.0:81"]).is_empty());
        let faults = compare(&["0.0.0.0:80", "[::]:80"], &[], &[]);
        assert!(faults[0].starts_with(
            "server.listen_h2c: uh-keeper doesn't hold 0.0.0.0:81 (it holds 0.0.0.0:80, [::]:80)"
        ));
        assert!(
            faults[1].starts_with("server.keeper: uh-keeper holds [::]:80, which is in none of"),
            "{faults:?}"
        );
        let faults = compare(&["0.0.0.0:81"], &["0.0.0.0:80"], &[]);
        assert_eq!(faults, ["server.listen: uh-keeper cannot bind 0.0.0.0:80: in use"]);
    }
}
