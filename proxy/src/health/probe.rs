//! One probe: one connection, one request, one deadline for all of it.

use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::LOCATION;
use tokio::net::{TcpStream, UnixStream};
use uh_protocol::Address;
use uh_protocol::health::HealthBody;
use uh_protocol::probe::{Probe, ProbeAnswer, ProbeError};
use uh_protocol::status::ProbeStatus;
use uh_system::plain;

use crate::config::HealthCheck;
use crate::front::endpoint::Endpoint;
use crate::state::time::iso_millis;

/// The most that is kept of a name or version that an app reports: far more than any real one needs.
const SAID_BYTES: usize = 128;

/// How much of a failed probe's body is shown.
const SHOWN_BODY_BYTES: usize = 300;

/// Probes an endpoint once. Redirects aren't followed: an answer from elsewhere isn't this backend's.
pub(crate) async fn probe(endpoint: &Endpoint, backend: &str, check: &HealthCheck) -> ProbeStatus {
    let late = || failed(format!("{}: no answer within {} ms", endpoint.address, check.timeout.as_millis()));
    let start = Instant::now();
    let found = probe_within(check.timeout, endpoint, backend, check).await;
    finished(found.unwrap_or_else(late), start)
}

/// Probes an endpoint once. `None`: it timed out.
pub(crate) async fn probe_within(
    timeout: Duration,
    endpoint: &Endpoint,
    backend: &str,
    check: &HealthCheck,
) -> Option<ProbeStatus> {
    let start = Instant::now();
    let found = match tokio::time::timeout(timeout, ask(endpoint, check)).await.ok()? {
        Ok(ProbeAnswer { status, headers, body }) => {
            let location = headers.get(LOCATION).map(|l| String::from_utf8_lossy(l.as_bytes()).into_owned());
            judge(status, location.as_deref(), &body, backend, check)
        }
        Err(error) => failed(format!("{}: {}", endpoint.address, plain(&*error))),
    };
    Some(finished(found, start))
}

fn finished(found: ProbeStatus, start: Instant) -> ProbeStatus {
    let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    ProbeStatus { at: iso_millis(jiff::Timestamp::now()), took_ms, ..found }
}

async fn ask(endpoint: &Endpoint, check: &HealthCheck) -> Result<ProbeAnswer, ProbeError> {
    let probe = Probe {
        path: &check.path,
        host: check.host.as_deref(),
        headers: &check.headers,
        agent: concat!("uh-proxy-probe/", env!("CARGO_PKG_VERSION")),
    };
    let address = &endpoint.address;
    match address {
        Address::Socket(socket) => probe.ask(TcpStream::connect(socket).await?, address).await,
        Address::Name(..) => {
            let found = endpoint.first_resolution().await;
            if found.addresses.is_empty() {
                return Err(found.error.clone().unwrap_or_default().into());
            }
            probe.ask(TcpStream::connect(&*found.addresses).await?, address).await
        }
        Address::Unix(path) => probe.ask(UnixStream::connect(path).await?, address).await,
    }
}

/// The verdict on an answer.
fn judge(
    status: StatusCode,
    location: Option<&str>,
    body: &[u8],
    backend: &str,
    check: &HealthCheck,
) -> ProbeStatus {
    let reported: HealthBody = serde_json::from_slice(body).unwrap_or_default();
    let error = if status.is_redirection() {
        Some(format!("status {status}, redirected to {}", location.unwrap_or("nowhere")))
    } else if !status.is_success() {
        Some(format!("status {status}, body: {}", head_of(body)))
    } else if check.expect_identity && reported.deployment.as_deref() != Some(backend) {
        let who = reported.deployment.clone().map_or("an unnamed backend".to_owned(), said);
        Some(format!("expected an answer from {backend}, but got one from {who}; body: {}", head_of(body)))
    } else {
        None
    };
    ProbeStatus {
        at: String::new(),
        ok: error.is_none(),
        status: Some(status.as_u16()),
        took_ms: 0,
        error,
        deployment: reported.deployment.map(said),
        version: reported.version.map(said),
    }
}

/// Text from an app, made safe for logs and terminals.
fn said(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SAID_BYTES));
    printable(&text)
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn failed(error: String) -> ProbeStatus {
    ProbeStatus {
        at: String::new(),
        ok: false,
        status: None,
        took_ms: Duration::ZERO.as_millis() as u64,
        error: Some(error),
        deployment: None,
        version: None,
    }
}

fn head_of(body: &[u8]) -> String {
    let shown = printable(&String::from_utf8_lossy(&body[..body.len().min(SHOWN_BODY_BYTES)]));
    if shown.is_empty() { "(empty)".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expect_identity: bool) -> HealthCheck {
        HealthCheck {
            enabled: true,
            path: "/".into(),
            host: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 1,
            expect_identity,
            headers: Vec::new(),
            switch_probe_timeout: Duration::ZERO,
        }
    }

    #[test]
    fn any_success_is_healthy_unless_identity_is_expected() {
        let green = br#"{"deployment":"green","version":"1.0.1"}"#;
        let found = judge(StatusCode::OK, None, green, "blue", &check(false));
        assert!(found.ok);
        assert_eq!(found.version.as_deref(), Some("1.0.1"));
        let found = judge(StatusCode::OK, None, green, "blue", &check(true));
        assert!(!found.ok && found.error.unwrap().contains("green"));
        assert!(!judge(StatusCode::OK, None, b"ok", "blue", &check(true)).ok);
    }

    #[test]
    fn text_reported_by_an_app_is_safe_to_show() {
        let body = format!(r#"{{"deployment":"\u001b[2J","version":"1\r\n{}"}}"#, "é".repeat(5000));
        let found = judge(StatusCode::OK, None, body.as_bytes(), "blue", &check(true));
        let version = found.version.unwrap();
        assert!(version.starts_with("1  é") && version.len() <= SAID_BYTES, "{version}");
        assert_eq!(found.deployment.as_deref(), Some(" [2J"));
        assert!(found.error.unwrap().starts_with("expected an answer from blue, but got one from  [2J;"));
    }

    #[test]
    fn a_failure_shows_the_response() {
        let found = judge(StatusCode::FOUND, Some("/login"), b"", "blue", &check(false));
        assert!(!found.ok && found.error.unwrap().contains("/login"));
        let found = judge(StatusCode::SERVICE_UNAVAILABLE, None, b"no\x1bdb", "blue", &check(false));
        assert_eq!(found.error.unwrap(), "status 503 Service Unavailable, body: no db");
    }
}
