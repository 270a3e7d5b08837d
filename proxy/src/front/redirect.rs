//! Redirects: from plain HTTP to HTTPS, and from a service's other hosts to its main one. One response does both.
//!
//! Redirects lead only to hosts in the configuration or in a certificate. Any other `Host` never reaches `Location`:
//! otherwise this would be an open redirect.

use super::bypass::is_health_path;
use super::client::Client;
use super::settings::HTTPS_PORT;
use crate::config::{Service, is_for};
use uh_http1::forwarded::Scheme;
use uh_http1::request::RequestHead;
use uh_switching::route;

/// The redirect for a request.
pub(super) enum Redirect {
    /// To this URL.
    To(String),
    /// Required, but impossible: the host isn't served over HTTPS.
    Impossible,
}

/// The redirect for a request; `None` if it is served.
pub(super) fn of<L>(client: &Client<L>, request: &RequestHead, service: &Service) -> Option<Redirect> {
    if !service.redirects() {
        return None;
    }
    let head = client.request_head();
    let path = request.path.of_head(head);
    let host = std::str::from_utf8(request.host.of_head(head)).unwrap_or_default();
    let name = route::canonical(host.as_bytes());
    // A TLS listener added by a reload opens only at the next start. Until then, redirects would lead to a closed port.
    let closed = client.settings.tls.is_some() && client.worker.tls.is_none();
    let plain = request.scheme == Scheme::Http && !closed;
    // A load balancer's health check may not speak TLS, and treats a redirect as a failure.
    let secures = service.redirect_https && plain && !is_health_path(service, path);
    let main = main_host(service, &name);
    if !secures && main.is_none() {
        return None;
    }
    let covered = || client.worker.tls.as_ref().is_some_and(|tls| tls.names().covers(&name));
    let to = match main {
        Some(main) => main,
        None if !service.hosts.is_empty() || covered() => &name,
        None => return Some(Redirect::Impossible),
    };
    let (scheme, port) = match (secures, client.settings.redirect_port()) {
        (true, HTTPS_PORT) => (Scheme::Https, String::new()),
        (true, port) => (Scheme::Https, format!(":{port}")),
        // Only the host changes; the client's port is kept.
        (false, _) => (request.scheme, port_of(host).to_owned()),
    };
    let path = match std::str::from_utf8(path).unwrap_or("/") {
        "*" => "/".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        query => format!("/{query}"),
    };
    Some(Redirect::To(format!("{}://{to}{port}{path}", scheme.as_str())))
}

/// The service's main host, if the request is for one of its `redirect_hosts`.
fn main_host<'a>(service: &'a Service, name: &str) -> Option<&'a String> {
    if service.redirect_hosts.is_empty() || service.served_hosts().iter().any(|host| is_for(host, name)) {
        return None;
    }
    service.hosts.first()
}

/// `:8443`, or nothing.
fn port_of(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[colon..],
        _ => "",
    }
}
