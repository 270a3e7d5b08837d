//! One probe of an instance's endpoint: one connection, one request, one deadline. And the verdict on the answer.

use std::time::{Duration, Instant};

use hyper::header::HeaderName;
use tokio::net::{TcpStream, UnixStream};
use uh_protocol::health::HealthBody;
use uh_protocol::probe::{Probe, ProbeAnswer, ProbeError};
use uh_protocol::{Address, BackendName};

use crate::config::{GateSettings, IdentityCheck};
use crate::redact::Foreign;

/// How much of a body is shown.
const SHOWN_CHARACTERS: usize = 300;

/// Header fields that help to see which instance answered, and why the response is unhealthy.
const SHOWN_HEADERS: [HeaderName; 5] = [
    hyper::header::LOCATION,
    hyper::header::SERVER,
    hyper::header::CONTENT_TYPE,
    hyper::header::RETRY_AFTER,
    hyper::header::WWW_AUTHENTICATE,
];

/// The expected identity of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub backend: &'a BackendName,
    /// The version; `None`: any.
    pub version: Option<&'a str>,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeResult {
    pub verdict: ProbeVerdict,
    /// How long it took.
    pub took: Duration,
    /// What to show of it: status, some header fields, the beginning of the body, or the error.
    pub lines: Vec<String>,
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeVerdict {
    /// Healthy, with the right identity.
    Healthy,
    /// Unhealthy, or no answer.
    Unhealthy(String),
    /// Another instance answered.
    Stranger(String),
}

impl ProbeResult {
    /// Whether the verdict is healthy.
    #[must_use]
    pub(crate) fn is_healthy(&self) -> bool {
        self.verdict == ProbeVerdict::Healthy
    }

    /// The verdict in a few words.
    #[must_use]
    pub(crate) fn summary(&self) -> &str {
        match &self.verdict {
            ProbeVerdict::Healthy => "Healthy ✓",
            ProbeVerdict::Unhealthy(reason) | ProbeVerdict::Stranger(reason) => reason,
        }
    }
}

/// Probes an endpoint once. Redirects aren't followed, because the target may not be this instance.
pub(crate) async fn probe(endpoint: &Address, expected: Expected<'_>, gate: &GateSettings) -> ProbeResult {
    let start = Instant::now();
    let mut found = match tokio::time::timeout(gate.timeout, ask(endpoint, gate)).await {
        Ok(Ok(answer)) => judge(&answer, expected, gate.identity),
        Ok(Err(error)) => no_answer(endpoint, Foreign::error(&*error).to_string()),
        Err(_) => no_answer(endpoint, format!("no answer within {}", crate::time::span(gate.timeout))),
    };
    found.took = start.elapsed();
    found
}

async fn ask(endpoint: &Address, gate: &GateSettings) -> Result<ProbeAnswer, ProbeError> {
    let probe = Probe {
        path: &gate.path,
        host: gate.host.as_deref(),
        headers: &gate.headers,
        agent: concat!("uh-deploy-probe/", env!("CARGO_PKG_VERSION")),
    };
    match endpoint {
        Address::Socket(address) => probe.ask(TcpStream::connect(address).await?, endpoint).await,
        Address::Name(host, port) => {
            probe.ask(TcpStream::connect((host.as_str(), *port)).await?, endpoint).await
        }
        Address::Unix(path) => probe.ask(UnixStream::connect(path).await?, endpoint).await,
    }
}

fn no_answer(endpoint: &Address, reason: String) -> ProbeResult {
    let lines = vec![format!("{endpoint}: {reason}")];
    ProbeResult { verdict: ProbeVerdict::Unhealthy(reason), took: Duration::ZERO, lines }
}

/// What an answer means.
fn judge(answer: &ProbeAnswer, expected: Expected<'_>, identity: IdentityCheck) -> ProbeResult {
    let ProbeAnswer { status, headers, body } = answer;
    let mut lines = vec![format!("status: {status}")];
    for name in SHOWN_HEADERS {
        if let Some(value) = headers.get(&name) {
            lines.push(format!("{name}: {}", printable(value.as_bytes())));
        }
    }
    lines.push(format!("body: {}", head_of(body)));
    let reported: HealthBody = serde_json::from_slice(body).unwrap_or_default();
    let verdict = if status.is_redirection() {
        let to = headers
            .get(hyper::header::LOCATION)
            .map_or("no location".to_owned(), |l| printable(l.as_bytes()));
        ProbeVerdict::Unhealthy(format!("status {}, redirected to {to}", status.as_u16()))
    } else if !status.is_success() {
        ProbeVerdict::Unhealthy(format!("status {status}"))
    } else {
        who(&reported, expected, identity).map_or(ProbeVerdict::Healthy, ProbeVerdict::Stranger)
    };
    ProbeResult { verdict, took: Duration::ZERO, lines }
}

/// Why the answer has the wrong identity; `None`: it has the right one.
fn who(reported: &HealthBody, expected: Expected<'_>, identity: IdentityCheck) -> Option<String> {
    let wrong = |given: Option<&str>, wanted: &str| match (given, identity) {
        (_, IdentityCheck::Ignored) | (None, IdentityCheck::IfReported) => false,
        (given, _) => given != Some(wanted),
    };
    let backend = wrong(reported.deployment.as_deref(), expected.backend.as_str());
    let version = expected.version.is_some_and(|version| wrong(reported.version.as_deref(), version));
    (backend || version).then(|| {
        format!(
            "expected {} {}, but {} {} answered",
            expected.backend,
            expected.version.unwrap_or("(any version)"),
            printable(reported.deployment.as_deref().unwrap_or("(no deployment)").as_bytes()),
            printable(reported.version.as_deref().unwrap_or("(no version)").as_bytes()),
        )
    })
}

fn head_of(body: &[u8]) -> String {
    let shown = printable(body);
    if shown.is_empty() { "(empty)".to_owned() } else { shown }
}

/// Secrets are redacted before the text is cut, because half a secret is still one.
fn printable(bytes: &[u8]) -> String {
    let text = Foreign::from_bytes(bytes).shortened(SHOWN_CHARACTERS);
    text.as_str().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use hyper::body::Bytes;
    use hyper::header::HeaderMap;

    use super::*;

    fn verdict(status: u16, body: &str, identity: IdentityCheck) -> ProbeVerdict {
        let green = "green".parse().unwrap();
        let expected = Expected { backend: &green, version: Some("1.0.1") };
        let status = StatusCode::from_u16(status).unwrap();
        let body = Bytes::copy_from_slice(body.as_bytes());
        judge(&ProbeAnswer { status, headers: HeaderMap::new(), body }, expected, identity).verdict
    }

    #[test]
    fn an_answer_must_not_name_another_backend_or_version() {
        let right = r#"{"deployment":"green","version":"1.0.1"}"#;
        let stale = r#"{"deployment":"green","version":"1.0.0"}"#;
        let other = r#"{"deployment":"blue","version":"1.0.1"}"#;
        for identity in [IdentityCheck::IfReported, IdentityCheck::Required] {
            assert_eq!(verdict(200, right, identity), ProbeVerdict::Healthy);
            assert!(
                matches!(verdict(200, stale, identity), ProbeVerdict::Stranger(r) if r.contains("green 1.0.0"))
            );
            assert!(
                matches!(verdict(200, other, identity), ProbeVerdict::Stranger(r) if r.contains("blue 1.0.1"))
            );
        }
        assert_eq!(verdict(200, "ok", IdentityCheck::IfReported), ProbeVerdict::Healthy);
        assert!(matches!(verdict(200, "ok", IdentityCheck::Required), ProbeVerdict::Stranger(_)));
        assert_eq!(verdict(200, other, IdentityCheck::Ignored), ProbeVerdict::Healthy);
    }

    #[test]
    fn a_redirect_and_an_error_are_not_healthy() {
        assert!(
            matches!(verdict(302, "", IdentityCheck::Ignored), ProbeVerdict::Unhealthy(r) if r.contains("redirected"))
        );
        assert!(
            matches!(verdict(500, "", IdentityCheck::Ignored), ProbeVerdict::Unhealthy(r) if r.contains("500"))
        );
    }
}
