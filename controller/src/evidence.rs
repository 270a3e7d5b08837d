//! What is recorded about a breach: the reason, the most frequent failures, and the ids of failed requests.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uh_protocol::{BackendName, ServiceName};

use crate::config::Config;
use crate::redact::Foreign;

/// How many kinds of failures are kept.
const MAX_FAILURES: usize = 5;

/// How many request ids are kept: enough for an investigation, few enough for a message.
const MAX_REQUEST_IDS: usize = 5;

/// How much of the end of the access log is read: at 100 failing requests per second, well over half a minute.
const MAX_LOG_BYTES: u64 = 2 << 20;

/// The largest configuration of uh-proxy that is read to find the access log.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Why a version was found bad.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breach {
    pub reason: String,
    /// The kinds of failures, the most frequent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureCount>,
    /// The newest failed requests from the access log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_ids: Vec<String>,
    /// Why there are no request ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_ids_unknown: Option<String>,
}

/// How often one kind of failure occurred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureCount {
    /// A status, `broken off (…)` or `overdue`.
    pub kind: String,
    /// How often.
    pub count: u64,
}

impl Breach {
    /// Collects what is known. `since`: when the version became active, ISO 8601.
    #[must_use]
    pub fn collect(
        config: &Config,
        service: &ServiceName,
        backend: &BackendName,
        since: &str,
        reason: String,
        failures: Vec<(String, u64)>,
    ) -> Self {
        let failed = !failures.is_empty();
        let failures = failures
            .into_iter()
            .take(MAX_FAILURES)
            .map(|(kind, count)| FailureCount { kind, count })
            .collect();
        let (request_ids, request_ids_unknown) = match request_ids(config, service, backend, since) {
            _ if !failed => (Vec::new(), None),
            Ok(ids) if ids.is_empty() => {
                (ids, Some("the access log shows no failed request of this backend".to_owned()))
            }
            Ok(ids) => (ids, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        Self { reason, failures, request_ids, request_ids_unknown }
    }

    /// The evidence as lines of text, without the reason.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.failures.is_empty() {
            let kinds: Vec<String> =
                self.failures.iter().map(|failure| format!("{} × {}", failure.count, failure.kind)).collect();
            lines.push(format!("failed: {}", kinds.join(", ")));
        }
        if !self.request_ids.is_empty() {
            lines.push(format!("request ids: {}", self.request_ids.join(", ")));
        }
        lines.extend(self.request_ids_unknown.iter().map(|why| format!("request ids: not available, {why}")));
        lines
    }
}

/// The relevant fields of an access log line.
#[derive(Deserialize)]
struct LogLine {
    time: String,
    status: u16,
    service: Option<String>,
    backend: Option<String>,
    request_id: String,
    #[serde(default)]
    termination: String,
}

impl LogLine {
    /// `-` is a normal end, `DC` a client that left; everything else broke off.
    fn has_failed(&self) -> bool {
        self.status >= 500 || !matches!(self.termination.as_str(), "" | "-" | "DC" | "SF")
    }
}

/// The newest ones first. `Err`: why they aren't available.
fn request_ids(
    config: &Config,
    service: &ServiceName,
    backend: &BackendName,
    since: &str,
) -> Result<Vec<String>, String> {
    let path = access_log(config.deploy.proxy.config.as_deref())?;
    let text = tail(&path, MAX_LOG_BYTES).map_err(|e| format!("can't read {}: {e}", path.display()))?;
    // Both are ISO 8601 in UTC, so they compare as text. To the second, since a restarted uh-proxy knows its last
    // switch only to the second.
    let since = since.get(.."2026-11-25T10:00:05".len()).unwrap_or(since);
    // The first line may be cut.
    let lines = String::from_utf8_lossy(&text);
    let mut ids = Vec::new();
    let mut readable = false;
    for line in lines.lines().rev() {
        let Ok(line) = serde_json::from_str::<LogLine>(line) else { continue };
        readable = true;
        if line.time.as_str() < since || ids.len() == MAX_REQUEST_IDS {
            break;
        }
        let ours = line.service.as_deref() == Some(service.as_str())
            && line.backend.as_deref() == Some(backend.as_str());
        if ours && line.has_failed() && !line.request_id.is_empty() {
            ids.push(Foreign::new(&line.request_id).to_string());
        }
    }
    if !readable && !lines.is_empty() {
        return Err(format!("{} isn't in JSON format, so it has no request ids", path.display()));
    }
    Ok(ids)
}

/// The path of the access log, from uh-proxy's configuration.
fn access_log(config: Option<&Path>) -> Result<PathBuf, String> {
    let Some(path) = config else {
        return Err("deploy.proxy.config isn't set".to_owned());
    };
    let failed = |e: io::Error| format!("can't read {}: {e}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).map_err(failed)?;
    let log = uh_settings::text_at(&text, &["server", "access_log", "path"])
        .map_err(|e| format!("can't read {}: {e}", path.display()))?;
    match log.as_deref() {
        None | Some("-") => {
            Err("uh-proxy writes its access log to standard output; look for 5xx there".to_owned())
        }
        // Relative to the directory uh-proxy was started in.
        Some(log) if !log.starts_with('/') => {
            Err(format!("the path of uh-proxy's access log, {log}, isn't absolute"))
        }
        Some(log) => Ok(PathBuf::from(log)),
    }
}

fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u32, backend: &str, status: u16, termination: &str) -> String {
        format!(
            "{{\"time\":\"2026-11-25T10:00:{second:02}.000Z\",\"status\":{status},\"service\":\"app\",\"backend\":\"{backend}\",\
             \"request_id\":\"id{second}\",\"termination\":\"{termination}\"}}\n"
        )
    }

    fn ids(log: Option<&str>) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let proxy = dir.path().join("uh-proxy.toml");
        if let Some(log) = log {
            std::fs::write(&path, log).unwrap();
            std::fs::write(&proxy, format!("[server]\naccess_log = {{ path = {path:?} }}\n")).unwrap();
        } else {
            std::fs::write(&proxy, "[server]\n").unwrap();
        }
        let text = format!(
            "[deploy.proxy]\nconfig = {proxy:?}\n[backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n\
             [backends.green]\nendpoints = [\"127.0.0.1:2\"]\n[runtime.process]\ncommand = [\"x\"]\n"
        );
        let config = crate::config::parse(&text, dir.path()).unwrap();
        request_ids(&config, &"app".parse().unwrap(), &"green".parse().unwrap(), "2026-11-25T10:00:05.000Z")
    }

    #[test]
    fn the_newest_failed_requests_of_this_activation_are_kept() {
        let mut log = String::from("cut\"}\n");
        log.push_str(&line(1, "green", 500, "-"));
        for second in 6..14 {
            log.push_str(&line(second, "green", if second % 2 == 0 { 502 } else { 200 }, "-"));
        }
        log.push_str(&line(20, "blue", 500, "-"));
        log.push_str(&line(21, "green", 200, "UC"));
        log.push_str(&line(22, "green", 499, "DC"));
        assert_eq!(ids(Some(&log)).unwrap(), ["id21", "id12", "id10", "id8", "id6"]);
    }

    #[test]
    fn missing_request_ids_are_explained() {
        assert!(ids(None).unwrap_err().contains("standard output"));
        assert!(
            ids(Some("1.2.3.4 - - [25/Nov/2026] \"GET / HTTP/1.1\" 500\n"))
                .unwrap_err()
                .contains("isn't in JSON format")
        );
        assert_eq!(ids(Some("")).unwrap(), Vec::<String>::new());
        assert!(access_log(None).unwrap_err().contains("deploy.proxy.config"));
    }
}
