//! The tables of the file, one function and one type for each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use uh_protocol::{Address, BackendName, ServiceName};

use super::containers::{self, ComposeSettings, DockerSettings, Restart};
use uh_settings::Section;
use uh_settings::units::{DAY, HOUR, MS, SECOND};

/// uh-proxy, the state directory, and time limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deploy {
    /// uh-proxy's admin socket.
    pub admin_socket: PathBuf,
    /// The service; `None`: the only one.
    pub service: Option<ServiceName>,
    /// Lock, journal, history and records.
    pub state_dir: PathBuf,
    /// How long a build may take.
    pub build_timeout: Duration,
    /// How long uh-proxy's probes may take to find the candidate healthy, after uh-deploy's have.
    pub ready_timeout: Duration,
    /// How long to wait for the old backend's exchanges after the switch. They aren't cut.
    pub drain_timeout: Duration,
    /// How long the candidate is watched after the switch: if it dies within this time, traffic moves back.
    pub settle: Duration,
    /// From SIGTERM to SIGKILL. By default longer than app-shim's drain (30 s) plus its `--kill-after` (5 s).
    pub stop_timeout: Duration,
    /// How long a standby is kept running after it was active.
    pub warm: Duration,
    /// uh-proxy's files, for `validate`.
    pub proxy: ProxyFiles,
}

/// uh-proxy's files, for `validate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyFiles {
    /// The program.
    pub program: PathBuf,
    /// Its configuration; `None`: not checked.
    pub config: Option<PathBuf>,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// Its name.
    pub name: BackendName,
    /// Where its instance listens; at least one.
    pub endpoints: Vec<Address>,
}

/// How instances of the app run.
#[derive(Debug, Clone, PartialEq)]
pub enum RuntimeConfig {
    /// Plain local processes.
    Process(ProcessSettings),
    /// Containers, through the Engine API.
    Docker(Box<DockerSettings>),
    /// The user's compose files, through the compose tool.
    Compose(ComposeSettings),
}

/// How local processes run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSettings {
    /// Command to run before each deploy; empty: nothing to build.
    pub build: Vec<String>,
    /// The app. `{backend}`, `{version}`, `{host}` and `{port}` are replaced.
    pub command: Vec<String>,
    /// The working directory of both.
    pub directory: PathBuf,
    /// Variables to set; the same placeholders.
    pub env: BTreeMap<String, String>,
    /// Environment file. Its values are secret.
    pub env_file: Option<PathBuf>,
    /// Variables to pass on from uh-deploy's environment. Their values are secret.
    pub env_from: Vec<String>,
    /// Memory limit of all processes of an instance, in bytes; `None`: none.
    pub memory_limit: Option<u64>,
    /// Whether it is restarted when it exits.
    pub restart: Restart,
    /// Size in bytes at which a log file is rotated.
    pub log_size: u64,
    /// How many rotated log files are kept.
    pub log_files: u32,
}

/// The health gate of a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateSettings {
    /// The path to request.
    pub path: String,
    /// The `Host` header; `None`: the endpoint.
    pub host: Option<String>,
    /// Other header fields to send.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// Time limit for one probe.
    pub timeout: Duration,
    /// How long a candidate may take in total.
    pub within: Duration,
    /// Consecutive good probes of every endpoint.
    pub successes: u32,
    /// Whether the answer must name the backend and the version.
    pub identity: IdentityCheck,
}

/// How strictly an answer must identify the candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityCheck {
    /// What it reports must match; it may report nothing.
    IfReported,
    /// It must report both, and both must match.
    Required,
    /// What it reports doesn't matter.
    Ignored,
}

/// Thresholds of a watch.
#[derive(Debug, Clone, PartialEq)]
pub struct Monitor {
    /// How long to watch.
    pub duration: Duration,
    /// The time between two measurements.
    pub interval: Duration,
    /// The largest acceptable share of failed requests, from 0 to 1.
    pub max_error_rate: f64,
    /// The largest acceptable p95.
    pub max_p95: Duration,
    /// With fewer requests there is not enough data.
    pub min_requests: u64,
    /// How many consecutive ticks with a bad p95 or bad health are a breach.
    pub breach_after: u32,
    /// Whether a watch without a verdict exits with 8.
    pub require_verdict: bool,
    /// A watch rolls back automatically only for this long after the deploy.
    pub auto_rollback_within: Duration,
}

/// What `validate` requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validate {
    /// Variables that must be set and not empty in the app's environment.
    pub required_env: Vec<String>,
    /// The variable that holds a PostgreSQL URL.
    pub database_url_env: Option<String>,
    /// Required free space in the state directory's file system.
    pub min_disk: u64,
    /// Required available memory: room for a second copy of the app.
    pub min_memory: u64,
}

/// Commands to run during a deploy. They get a JSON event on standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Before anything is done. If it fails, nothing is deployed.
    pub pre_deploy: Vec<String>,
    /// After traffic has moved. A failure is reported.
    pub post_switch: Vec<String>,
    /// After a failed deploy or rollback.
    pub on_failure: Vec<String>,
    /// After traffic has moved back.
    pub on_rollback: Vec<String>,
    /// How long each may take.
    pub timeout: Duration,
}

/// The webhook to notify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `http://` URL that receives the outcome as JSON by POST.
    pub webhook: Option<String>,
    /// The variable that holds the URL, if the URL is secret.
    pub webhook_env: Option<String>,
    /// Time limit for the request.
    pub timeout: Duration,
}

/// What isn't secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Variables whose values may be shown.
    pub plain: Vec<String>,
}

/// The default size at which a log file is rotated.
const LOG_SIZE: u64 = 10 << 20;

pub(super) fn deploy(section: &mut Section) -> Deploy {
    let mut proxy = section.section("proxy");
    let proxy = ProxyFiles {
        program: PathBuf::from(proxy.text("program").unwrap_or_else(|| "uh-proxy".to_owned())),
        config: proxy.optional_path("config"),
    };
    Deploy {
        admin_socket: section.path("admin_socket", uh_protocol::DEFAULT_ADMIN_SOCKET),
        service: section.parsed("service"),
        state_dir: section.path("state_dir", "/var/lib/uh-deploy"),
        build_timeout: section.duration("build_timeout", 600 * SECOND, (SECOND, DAY)),
        ready_timeout: section.duration("ready_timeout", 30 * SECOND, (100 * MS, HOUR)),
        drain_timeout: section.duration("drain_timeout", 30 * SECOND, (Duration::ZERO, HOUR)),
        settle: section.duration("settle", 2 * SECOND, (Duration::ZERO, HOUR)),
        stop_timeout: section.duration("stop_timeout", 45 * SECOND, (Duration::ZERO, HOUR)),
        warm: section.duration("warm", HOUR, (Duration::ZERO, 365 * DAY)),
        proxy,
    }
}

pub(super) fn backends(root: &mut Section) -> Vec<BackendConfig> {
    let sections = root.sections("backends");
    if sections.len() < 2 {
        root.mistake("backends", "at least two are required, as in [backends.blue] and [backends.green]");
    }
    let mut backends: Vec<BackendConfig> = Vec::new();
    for (name, section) in sections {
        let Some(backend) = backend(&name, section) else { continue };
        for other in &backends {
            if let Some(shared) = backend.endpoints.iter().find(|e| other.endpoints.contains(e)) {
                let reason = format!("{shared} is already used by {}", other.name);
                root.mistake(&format!("backends.{name}.endpoints"), reason);
            }
        }
        backends.push(backend);
    }
    backends
}

fn backend(name: &str, mut section: Section) -> Option<BackendConfig> {
    let (given, none) = (section.has("endpoints"), section.is_empty_list("endpoints"));
    let endpoints = section.list::<Address>("endpoints").unwrap_or_default();
    if !given {
        section.mistake("endpoints", "missing: list at least one, as in [\"127.0.0.1:3008\"]");
    } else if none {
        section.mistake("endpoints", "empty: list at least one, as in [\"127.0.0.1:3008\"]");
    }
    match name.parse() {
        Ok(name) => (!endpoints.is_empty()).then_some(BackendConfig { name, endpoints }),
        Err(e) => {
            section.mistake("", format!("{e}"));
            None
        }
    }
}

#[derive(Clone, Copy)]
enum RuntimeKind {
    Process,
    Docker,
    Compose,
}

pub(super) fn runtime(section: &mut Section) -> RuntimeConfig {
    let kinds = [
        ("process", RuntimeKind::Process),
        ("docker", RuntimeKind::Docker),
        ("compose", RuntimeKind::Compose),
    ];
    match section.choice("kind", RuntimeKind::Process, &kinds) {
        RuntimeKind::Process => RuntimeConfig::Process(process(&mut section.section("process"))),
        RuntimeKind::Docker => {
            RuntimeConfig::Docker(Box::new(containers::docker(&mut section.section("docker"))))
        }
        RuntimeKind::Compose => RuntimeConfig::Compose(containers::compose(&mut section.section("compose"))),
    }
}

fn process(section: &mut Section) -> ProcessSettings {
    let command = section.list::<String>("command").unwrap_or_default();
    if command.is_empty() {
        section.mistake("command", "missing: set the command to run, as in [\"node\", \"server.js\"]");
    }
    ProcessSettings {
        build: section.list::<String>("build").unwrap_or_default(),
        command,
        directory: section.path("directory", "."),
        env: section.texts("env"),
        env_file: section.optional_path("env_file"),
        env_from: section.list::<String>("env_from").unwrap_or_default(),
        memory_limit: section
            .has("memory_limit")
            .then(|| section.size("memory_limit", u64::MAX, (1 << 20, u64::MAX))),
        restart: containers::restart(section),
        log_size: section.size("log_size", LOG_SIZE, (1 << 10, 1 << 40)),
        log_files: section.integer("log_files", 3, (0, 100)),
    }
}

pub(super) fn gate(section: &mut Section) -> GateSettings {
    let path = section.text("path").unwrap_or_else(|| "/api/health".to_owned());
    if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        section
            .mistake("path", format!("{path:?} isn't a path: start with / and use visible ASCII characters"));
    }
    let host = section.text("host");
    if host.as_ref().is_some_and(|host| host.is_empty() || host.bytes().any(|b| b <= b' ' || b >= 0x7f)) {
        section.mistake("host", "not a host: use visible ASCII characters without spaces");
    }
    let identities = [
        ("if_reported", IdentityCheck::IfReported),
        ("required", IdentityCheck::Required),
        ("ignored", IdentityCheck::Ignored),
    ];
    GateSettings {
        path,
        host,
        headers: probe_headers(section),
        interval: section.duration("interval", SECOND, (10 * MS, HOUR)),
        timeout: section.duration("timeout", 2 * SECOND, (10 * MS, HOUR)),
        within: section.duration("within", 300 * SECOND, (100 * MS, DAY)),
        successes: section.integer("successes", 3, (1, 1000)),
        identity: section.choice("identity", IdentityCheck::IfReported, &identities),
    }
}

/// Header fields that a probe sets itself, or that would change where a message ends.
const OURS: [&str; 6] =
    ["host", "connection", "content-length", "transfer-encoding", "upgrade", "user-agent"];

fn probe_headers(section: &mut Section) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (name, value) in section.texts("headers") {
        let key = format!("headers.{name}");
        match (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            (Ok(name), _) if OURS.contains(&name.as_str()) => {
                let remedy = if name == "host" { "; set health.host instead" } else { "" };
                section.mistake(&key, format!("probes set this field themselves{remedy}"));
            }
            (Ok(name), Ok(value)) => headers.push((name, value)),
            _ => section.mistake(&key, "not a valid header field: use visible ASCII characters"),
        }
    }
    headers
}

pub(super) fn monitor(section: &mut Section) -> Monitor {
    Monitor {
        duration: section.duration("duration", 300 * SECOND, (100 * MS, DAY)),
        interval: section.duration("interval", 10 * SECOND, (50 * MS, HOUR)),
        max_error_rate: section.share("max_error_rate", 0.01),
        max_p95: section.duration("max_p95", 500 * MS, (MS, HOUR)),
        min_requests: u64::from(section.integer("min_requests", 20, (1, u32::MAX))),
        breach_after: section.integer("breach_after", 2, (1, 1000)),
        require_verdict: section.boolean("require_verdict", false),
        auto_rollback_within: section.duration("auto_rollback_within", HOUR, (SECOND, 365 * DAY)),
    }
}

pub(super) fn validate(section: &mut Section) -> Validate {
    Validate {
        required_env: section.list::<String>("required_env").unwrap_or_default(),
        database_url_env: section.text("database_url_env"),
        min_disk: section.size("min_disk", 10 << 30, (0, u64::MAX)),
        min_memory: section.size("min_memory", 2 << 30, (0, u64::MAX)),
    }
}

pub(super) fn hooks(section: &mut Section) -> Hooks {
    let mut command = |key| section.list::<String>(key).unwrap_or_default();
    Hooks {
        pre_deploy: command("pre_deploy"),
        post_switch: command("post_switch"),
        on_failure: command("on_failure"),
        on_rollback: command("on_rollback"),
        timeout: section.duration("timeout", 60 * SECOND, (10 * MS, HOUR)),
    }
}

pub(super) fn secrets(section: &mut Section) -> Secrets {
    Secrets { plain: section.list::<String>("plain").unwrap_or_default() }
}

pub(super) fn notice(section: &mut Section) -> Notice {
    let webhook = section.text("webhook");
    if webhook.as_ref().is_some_and(|url| !url.starts_with("http://")) {
        let reason = "only http:// is supported: for TLS, send to a relay on this machine, or use a hook that runs curl";
        section.mistake("webhook", reason);
    }
    Notice {
        webhook,
        webhook_env: section.text("webhook_env"),
        timeout: section.duration("timeout", 5 * SECOND, (10 * MS, HOUR)),
    }
}
