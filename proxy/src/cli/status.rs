//! `uh-proxy status`

use uh_protocol::status::{
    BackendStatus, CertificateSource, CertificateStatus, ProxyStatus, Role, ServiceStatus, Status,
};

use super::args::StatusArgs;
use super::exit::{Exit, Failed};
use super::{Done, say, say_json, split, target, trial};

pub(super) fn status(args: &StatusArgs) -> Done {
    target::call(async {
        let mut status = target::client(&args.client).status().await?;
        if let Some(wanted) = &args.service.service {
            let known: Vec<String> = status.services.iter().map(|service| service.name.to_string()).collect();
            status.services.retain(|service| service.name == *wanted);
            if status.services.is_empty() {
                let message =
                    format!("no service is named {wanted}; configured services: {}", known.join(", "));
                return Err(anyhow::Error::msg(message).into());
            }
        }
        if args.client.json {
            say_json(&status)?;
        } else {
            report(&status)?;
        }
        Ok(Exit::Done)
    })
}

fn report(status: &Status) -> Result<(), Failed> {
    let proxy = &status.proxy;
    let stopping = if proxy.stopping { ", stopping" } else { "" };
    say(format_args!(
        "uh-proxy {} on {} (pid {}, up {}{stopping}), generation {}",
        proxy.version,
        listening(proxy),
        proxy.pid,
        uptime(proxy.uptime_s),
        status.generation
    ))?;
    if !status.persisted {
        say("warning: the current routing isn't saved to disk: a restart now may activate an older backend")?;
    }
    status.warnings.iter().try_for_each(|warning| say(format_args!("warning: {warning}")))?;
    proxy.certificates.iter().try_for_each(report_certificate)?;
    status.services.iter().try_for_each(report_service)
}

/// `0.0.0.0:80, 0.0.0.0:443 (HTTPS), 127.0.0.1:81 (HTTP/2 without TLS)`
fn listening(proxy: &ProxyStatus) -> String {
    let https = proxy.listen_tls.iter().map(|address| format!("{address} (HTTPS)"));
    let h2c = proxy.listen_h2c.iter().map(|address| format!("{address} (HTTP/2 without TLS)"));
    proxy.listen.iter().cloned().chain(https).chain(h2c).collect::<Vec<_>>().join(", ")
}

fn report_certificate(certificate: &CertificateStatus) -> Result<(), Failed> {
    let name = &certificate.name;
    match &certificate.expires {
        Some(expires) => say(format_args!("certificate {name}: expires {expires}"))?,
        None => say(format_args!(
            "certificate {name}: not issued yet; HTTPS connections to its hosts are rejected"
        ))?,
    }
    let Some(problem) = &certificate.problem else { return Ok(()) };
    match (certificate.source, &certificate.next_try) {
        (CertificateSource::Acme, Some(next)) => {
            say(format_args!("  warning: {problem}; next try at {next}"))
        }
        _ => say(format_args!("  warning: its files have changed but can't be loaded: {problem}")),
    }
}

fn report_service(service: &ServiceStatus) -> Result<(), Failed> {
    let previous = service.previous.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let since = service.last_switch.as_deref().unwrap_or("the first start");
    let maintenance = match &service.maintenance_details {
        Some(details) => format!(", in maintenance since {}: {}", details.since, details.message),
        None if service.maintenance => ", in maintenance".to_owned(),
        None => String::new(),
    };
    say(format_args!(
        "\nservice {}: {} has been active since {since} (previous: {previous}){maintenance}",
        service.name, service.active
    ))?;
    if let Some(split) = &service.split {
        say(format_args!("  split since {}: {}", split.since, split::in_words(split, &service.active)))?;
    }
    if let Some(trial) = &service.trial {
        trial::in_words(trial, &service.active).iter().try_for_each(|line| say(format_args!("  {line}")))?;
    }
    say(format_args!(
        "  {:<12} {:<9} {:<9} {:<12} {:>9} {:>7}  endpoints",
        "backend", "role", "health", "version", "in flight", "tunnels"
    ))?;
    service.backends.iter().try_for_each(report_backend)?;
    service.warnings.iter().try_for_each(|warning| say(format_args!("  warning: {warning}")))
}

fn report_backend(backend: &BackendStatus) -> Result<(), Failed> {
    let role = match backend.role {
        Role::Active => "active",
        Role::Standby => "standby",
        Role::Withdrawn => "withdrawn",
        Role::Other => "?",
    };
    let endpoints: Vec<&str> = backend.endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
    say(format_args!(
        "  {:<12} {role:<9} {:<9} {:<12} {:>9} {:>7}  {}",
        backend.name,
        health(backend.healthy),
        backend.version.as_deref().unwrap_or("-"),
        backend.requests_in_flight,
        backend.tunnels,
        endpoints.join(", ")
    ))?;
    match backend.last_probe.as_ref().and_then(|probe| probe.error.as_ref().map(|error| (probe, error))) {
        Some((probe, error)) => say(format_args!("    last probe ({}): {error}", probe.at)),
        None => Ok(()),
    }
}

fn health(healthy: Option<bool>) -> &'static str {
    match healthy {
        Some(true) => "healthy",
        Some(false) => "unhealthy",
        None => "unknown",
    }
}

fn uptime(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    if hours > 0 {
        format!("{hours}h {minutes}m")
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}
